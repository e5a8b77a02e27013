//! Schedulers that start on another state directory than the one that their machines know, and on a disk that is full or hangs.

use std::thread;

use anyhow::{Result, anyhow, ensure};
use muster_cluster::Machine;

use super::support::{LIMIT, LONG, SLEEP, World, main_pid, property};

/// Where a service with `DynamicUser=` really has its state directory.
pub const STATE: &str = "/var/lib/private/muster-scheduler";

/// Runs a script on the scheduler's machine while the scheduler is stopped.
pub fn with_scheduler_stopped(world: &World, script: &str) -> Result<()> {
    let scheduler = world.scheduler()?;
    scheduler.exec(&["systemctl", "stop", "muster-scheduler.service"])?.ok()?;
    scheduler.exec(&["sh", "-ec", script])?.ok()?;
    scheduler.exec(&["systemctl", "start", "muster-scheduler.service"])?.ok()?;
    Ok(())
}

#[test]
fn an_empty_or_old_store_stops_nothing() -> Result<()> {
    let world = World::of(2)?;
    for unit in ["a.service", "b.service"] {
        world.start(unit, SLEEP)?;
    }
    with_scheduler_stopped(&world, &format!("cp -a {STATE} /root/old"))?;
    world.wait_machines_up(2)?;
    world.start("later.service", SLEEP)?;
    let before = world.invocations()?;

    // Empty: it is another cluster, and the machines do not join it.
    with_scheduler_stopped(&world, &format!("mv {STATE} /root/now; mkdir {STATE}"))?;
    let scheduler = world.scheduler()?;
    world.cluster.wait_for("the machines to be refused", LIMIT, || {
        let journal =
            scheduler.exec(&["journalctl", "--unit", "muster-scheduler", "--output", "cat"])?.ok()?;
        ensure!(journal.contains("belongs to cluster"), "{journal}");
        Ok(Some(()))
    })?;
    ensure!(world.machine_rows()?.is_empty(), "{:?}", world.machine_rows()?);
    for (unit, machine) in before.keys() {
        world.wait_active_state(&world.by_id(machine)?, unit, "active")?;
    }

    // Old: what it does not know of runs on, and is shown as what it is.
    with_scheduler_stopped(&world, &format!("rm -r {STATE}; cp -a /root/old {STATE}"))?;
    world.wait_machines_up(2)?;
    let row = world.cluster.wait_for("later.service to be shown", LIMIT, || {
        Ok(world.rows()?.into_iter().find(|row| row.unit == "later.service"))
    })?;
    assert_eq!((row.copy.as_str(), row.active.as_deref()), ("orphaned", Some("active")));
    assert_eq!(world.invocations()?, before, "nothing was stopped, restarted or moved");

    // An operator decides.
    world.ctl(&["destroy", "later.service"])?;
    world.wait_active_state(&world.by_id(&row.machine)?, "later.service", "inactive")?;
    Ok(())
}

/// How many times the machine was refused as another cluster's. (The scheduler says it once.)
fn refusals(machine: &Machine<'_>) -> Result<usize> {
    let journal = machine.exec(&["journalctl", "--unit", "muster-agent", "--output", "cat"])?.ok()?;
    Ok(journal.matches("units run on reason=this machine belongs to cluster").count())
}

#[test]
fn a_foreign_store_stops_nothing() -> Result<()> {
    let world = World::of(2)?;
    let machines = [world.cluster.machine("m1")?, world.cluster.machine("m2")?];
    // The worst there is: another cluster's store that knows these very machines, and a unit of a name that is used again.
    for unit in ["a.service", "foreign.service"] {
        world.start(unit, "[Service]\nExecStart=/usr/bin/sleep 100000\n")?;
    }
    for machine in &machines {
        machine.exec(&["systemctl", "stop", "muster-agent.service"])?.ok()?;
        machine.exec(&["rm", "/var/lib/muster/agent.json"])?.ok()?;
        machine.kill()?;
    }
    with_scheduler_stopped(&world, &format!("mv {STATE} /root/foreign; mkdir {STATE}"))?;
    for machine in &machines {
        machine.boot()?;
    }
    world.wait_machines_up(2)?;
    for unit in ["a.service", "b.service"] {
        world.start(unit, SLEEP)?;
    }
    let before = world.invocations()?;
    assert_eq!(before.len(), 2, "{before:?}");

    with_scheduler_stopped(&world, &format!("mv {STATE} /root/own; mv /root/foreign {STATE}"))?;
    let refused_again = || {
        for machine in &machines {
            let so_far = refusals(machine)?;
            world.cluster.wait_for(&format!("{} to be refused", machine.name()), LIMIT, || {
                Ok((refusals(machine)? > so_far).then_some(()))
            })?;
        }
        anyhow::Ok(())
    };
    refused_again()?;
    let units = world.ctl(&["list-unit-files", "--no-legend", "--fields", "unit"])?;
    assert_eq!(units.split_whitespace().collect::<Vec<_>>(), ["a.service", "foreign.service"]);
    world.cluster.wait_for("the machines to be given up", LIMIT, || {
        let rows = world.machine_rows()?;
        ensure!(rows.len() == 2 && rows.iter().all(|row| row.state == "unreachable"), "{rows:?}");
        Ok(Some(()))
    })?;
    // Not even what it is told to end.
    world.ctl(&["destroy", "--no-block", "*"])?;
    refused_again()?;
    for ((unit, machine), invocation) in &before {
        let machine = world.by_id(machine)?;
        assert_eq!(property(&machine, unit, "ActiveState")?, "active", "{unit}");
        assert_eq!(&property(&machine, unit, "InvocationID")?, invocation, "{unit} was not restarted");
    }

    with_scheduler_stopped(&world, &format!("rm -r {STATE}; mv /root/own {STATE}"))?;
    world.wait_machines_up(2)?;
    assert_eq!(world.invocations()?, before, "nothing was stopped, restarted or moved");
    Ok(())
}

#[test]
fn a_full_disk_refuses_writes_answers_reads_and_recovers() -> Result<()> {
    let world = World::of(1)?;
    world.start("before.service", SLEEP)?;
    with_scheduler_stopped(
        &world,
        &format!(
            "cp -a {STATE} /root/kept; mount -t tmpfs -o size=8m tmpfs {STATE}; cp -a /root/kept/. {STATE}"
        ),
    )?;
    world.wait_machines_up(1)?;
    let scheduler = world.scheduler()?;
    // dd ends with an error when the disk is full, as it should.
    scheduler
        .exec(&["sh", "-c", &format!("dd if=/dev/zero of={STATE}/ballast bs=4k status=none; true")])?
        .ok()?;
    let big = format!("# {}\n{SLEEP}", "x".repeat(500_000));
    let mut acknowledged = vec!["before.service".to_owned()];
    let refused = world.cluster.wait_for("a write to be refused", LIMIT, || {
        let name = format!("big{}.service", acknowledged.len());
        let output = world.try_ctl(&["submit", &world.file(&name, &big)?])?;
        if output.success() {
            acknowledged.push(name);
            return Ok(None);
        }
        Ok(Some(output))
    })?;
    ensure!(refused.stderr.contains("cannot write to its store"), "{refused}");
    let known = |world: &World| world.ctl(&["list-unit-files", "--no-legend", "--fields", "unit"]);
    for unit in &acknowledged {
        ensure!(
            known(&world)?.lines().any(|line| line.trim() == unit),
            "{unit} was acknowledged and is lost"
        );
    }
    assert_eq!(world.active()?["before.service"].len(), 1, "what runs is seen, and runs on");
    scheduler.exec(&["rm", &format!("{STATE}/ballast")])?.ok()?;
    world.start("after.service", SLEEP)?;
    acknowledged.push("after.service".to_owned());
    with_scheduler_stopped(&world, "true")?;
    for unit in &acknowledged {
        ensure!(
            known(&world)?.lines().any(|line| line.trim() == unit),
            "{unit} was acknowledged and is lost"
        );
    }
    Ok(())
}

/// Has the scheduler's store hang, as on a disk that does not answer, or answer again: the thread that writes to it stands
/// still, in a control group of its own, and all others go on.
fn set_store_hangs(world: &World, hangs: bool) -> Result<()> {
    const HANG: &str = r#"
        cd /sys/fs/cgroup/system.slice/muster-scheduler.service
        for task in /proc/$(cat cgroup.procs)/task/*; do
            [ "$(cat "$task/comm")" != store ] || thread=${task##*/}
        done
        mkdir hung
        echo threaded >hung/cgroup.type
        echo "$thread" >hung/cgroup.threads
        echo 1 >hung/cgroup.freeze"#;
    const ANSWER: &str = "echo 0 >/sys/fs/cgroup/system.slice/muster-scheduler.service/hung/cgroup.freeze";
    world.scheduler()?.exec(&["sh", "-ec", if hangs { HANG } else { ANSWER }])?.ok()?;
    Ok(())
}

#[test]
fn while_the_disk_hangs_that_is_said_and_nothing_is_moved_and_leases_go_on() -> Result<()> {
    let world = World::of(2)?;
    let scheduler = world.scheduler()?;
    world.start("lost.service", SLEEP)?;
    world.start("only.service", &format!("{SLEEP}[X-Muster]\nExclusive=yes\nExclusiveStopSec=1\n"))?;
    let (lost, left) = (world.home("lost.service")?, world.home("only.service")?);
    ensure!(lost.name() != left.name(), "both are on {}", left.name());
    let only = main_pid(&left, "only.service")?;
    let follow = format!(
        "systemd-run --unit=follower --setenv=MUSTERCTL_ENDPOINT={} musterctl events -f",
        world.cluster.endpoints()[0]
    );
    scheduler.exec(&["sh", "-ec", &follow])?.ok()?;

    set_store_hangs(&world, true)?;
    thread::scope(|scope| -> Result<()> {
        let client = scope.spawn(|| world.start("later.service", SLEEP));
        let while_it_hangs = || -> Result<()> {
            lost.kill()?;
            for select in ["_SYSTEMD_UNIT=follower.service", "MUSTER_EVENT=store_silent"] {
                world.cluster.wait_for(&format!("{select} to say so"), LIMIT, || {
                    let journal = scheduler.exec(&["journalctl", "--output=cat", select])?.ok()?;
                    ensure!(journal.contains("the store has not answered for 5 s"), "{journal}");
                    Ok(Some(()))
                })?;
            }
            world.outlast(LONG)?;
            ensure!(property(&left, "lost.service", "ActiveState")? == "inactive", "it was moved");
            ensure!(main_pid(&left, "only.service")? == only, "its lease did not go on");
            ensure!(!client.is_finished(), "the client was answered");
            Ok(())
        };
        let seen = while_it_hangs();
        set_store_hangs(&world, false)?;
        client.join().map_err(|_| anyhow!("the client panicked"))??;
        seen
    })?;
    assert_eq!(world.home_other_than("lost.service", &[lost.name()])?.name(), left.name());
    assert_eq!(world.home("later.service")?.name(), left.name());
    assert_eq!(main_pid(&left, "only.service")?, only);
    Ok(())
}
