//! Schedulers that start on another state directory than the one that their machines know, and on a full disk.

use anyhow::{Result, ensure};

use super::support::{LIMIT, SLEEP, World};

/// Where a service with `DynamicUser=` really has its state directory.
const STATE: &str = "/var/lib/private/muster-scheduler";

/// Runs a script on the scheduler's machine while the scheduler is stopped.
fn with_scheduler_stopped(world: &World, script: &str) -> Result<()> {
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
