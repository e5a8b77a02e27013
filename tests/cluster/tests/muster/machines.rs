//! Machines that an operator empties, or that shut down; and many that seem to die at once.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use muster_cluster::{Cluster, Machine, Power};

use super::support::{LIMIT, LONG, SLEEP, World, configure, main_pid, property};

/// A service that says of itself when it ran: its lines stay on the machine through reboots.
const DIARY: &str = "[Service]\nType=exec\nExecStart=/bin/sh -c 'echo start $(date +%%s.%%N) >> /var/lib/%N; \
                     exec sleep infinity'\nExecStopPost=/bin/sh -c 'echo stop $(date +%%s.%%N) >> /var/lib/%N'\n";

/// The moment of the last line of that kind in a machine's diary, in seconds.
fn diary(world: &World, machine: &str, kind: &str) -> Result<f64> {
    diary_of("diary", world, machine, kind)
}

/// The same of the service of this name, without its suffix.
fn diary_of(service: &str, world: &World, machine: &str, kind: &str) -> Result<f64> {
    let lines = world.cluster.machine(machine)?.exec(&["cat", &format!("/var/lib/{service}")])?.ok()?;
    let last = lines.lines().rev().find_map(|line| line.strip_prefix(kind)).context("it was not written")?;
    Ok(last.trim().parse()?)
}

/// What `list-machines` says of the machine.
fn availability(world: &World, id: &str) -> Result<String> {
    let rows = world.ctl(&["list-machines", "--full", "--no-legend", "--fields", "machine,availability"])?;
    let row = rows.lines().find(|line| line.starts_with(id)).context("it is listed")?;
    Ok(row.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_machine_is_cordoned_drained_and_uncordoned() -> Result<()> {
    let world = World::of(2)?;
    world.start("diary.service", DIARY)?;
    world.start("everywhere.service", &format!("{SLEEP}[X-Fleet]\nGlobal=true\n"))?;
    let home = world.home("diary.service")?;
    let other = if home.name() == "m1" { "m2" } else { "m1" };
    let pinned = format!("{SLEEP}[X-Fleet]\nMachineID={}\n", home.machine_id());
    world.start("pinned.service", &pinned)?;

    let stuck = world.try_ctl(&["drain", "--timeout", "5", home.machine_id()])?;
    assert_eq!(stuck.code, Some(1), "{stuck}");
    ensure!(stuck.stderr.contains("pinned.service on"), "{stuck}");
    ensure!(stuck.stderr.contains(": no other machine takes it: "), "{stuck}");
    assert_eq!(world.home("diary.service")?.name(), other);
    assert_eq!(availability(&world, home.machine_id())?, "draining");
    let (started, stopped) = (diary(&world, other, "start")?, diary(&world, home.name(), "stop")?);
    ensure!(started < stopped, "it ran elsewhere ({started}) before it stopped here ({stopped})");
    for still in ["pinned.service", "everywhere.service"] {
        assert_eq!(property(&home, still, "ActiveState")?, "active", "{still}");
    }

    world.ctl(&["destroy", "pinned.service"])?;
    let drained = world.ctl(&["drain", home.machine_id()])?;
    ensure!(drained.contains("drained"), "{drained}");
    assert_eq!(property(&home, "everywhere.service", "ActiveState")?, "inactive");
    assert_eq!(availability(&world, home.machine_id())?, "drained");
    // It gets nothing, and keeps that through a restart of the scheduler.
    world.cluster.machine("s1")?.exec(&["systemctl", "restart", "muster-scheduler"])?.ok()?;
    world.start("new.service", SLEEP)?;
    assert_eq!(world.home("new.service")?.name(), other);

    world.ctl(&["uncordon", home.machine_id()])?;
    world.wait_active_state(&home, "everywhere.service", "active")?;
    world.ctl(&["cordon", home.machine_id()])?;
    assert_eq!(availability(&world, home.machine_id())?, "cordoned");
    assert_eq!(property(&home, "everywhere.service", "ActiveState")?, "active");
    Ok(())
}

#[test]
fn a_drain_says_what_holds_it_up_and_ends_at_its_deadline() -> Result<()> {
    let world = World::of(2)?;
    let (home, other) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    world.ctl(&["cordon", other.machine_id()])?;
    // It starts here at once, and elsewhere not before it is let go.
    let start =
        "ExecStartPre=/bin/sh -c 'test -e /run/here || exec sleep infinity'\nTimeoutStartSec=infinity\n";
    home.write_file("/run/here", b"")?;
    world.start("a-start.service", &format!("{SLEEP}{start}"))?;
    // It stops in the time that is left to it after the deadline.
    let stop = "ExecStop=/usr/bin/sleep 4\n";
    world.start("b-stop.service", &format!("{SLEEP}{stop}"))?;
    world.ctl(&["uncordon", other.machine_id()])?;

    let drained = world.try_ctl(&["drain", "--max-parallel", "1", "--timeout", "12", home.machine_id()])?;
    assert_eq!(drained.code, Some(0), "{drained}");
    let (here, there) = (&home.machine_id()[..8], &other.machine_id()[..8]);
    for said in [
        format!("a-start.service on {here}.../{}: is being started on {there}\n", home.address()),
        format!("b-stop.service on {here}.../{}: waits for its turn (--max-parallel 1)\n", home.address()),
    ] {
        ensure!(drained.stderr.contains(&said), "{said}: {drained}");
    }
    // The first was not active there, the second had not begun to move.
    for unit in ["a-start.service", "b-stop.service"] {
        assert_eq!(property(&home, unit, "ActiveState")?, "inactive", "{unit}");
    }
    assert_eq!(world.home("b-stop.service")?.name(), other.name());
    let events = world.ctl(&["events", "-o", "json", home.machine_id()])?;
    let at = |kind: &str| events.find(&format!("\"kind\":\"{kind}\"")).with_context(|| events.clone());
    let (drains, late, empty) = (at("machine_drains")?, at("machine_not_drained")?, at("machine_drained")?);
    ensure!(drains < late && late < empty, "{events}");
    Ok(())
}

#[test]
fn the_units_of_a_machine_that_is_rebooted_run_elsewhere_before_they_stop() -> Result<()> {
    let world = World::of(2)?;
    world.start("diary.service", DIARY)?;
    let home = world.home("diary.service")?;
    let other = if home.name() == "m1" { "m2" } else { "m1" };
    home.reboot()?;
    let (started, stopped) = (diary(&world, other, "start")?, diary(&world, home.name(), "stop")?);
    ensure!(started < stopped, "it ran elsewhere ({started}) before it stopped here ({stopped})");
    world.wait_machines_up(2)?;
    assert_eq!(world.home("diary.service")?.name(), other);
    assert_eq!(property(&home, "diary.service", "ActiveState")?, "inactive");
    // Restarts of the agent are no shutdowns.
    let before = world.invocations()?;
    world.cluster.machine(other)?.exec(&["systemctl", "restart", "muster-agent", "muster-goodbye"])?.ok()?;
    world.wait_invocations(&before)
}

#[test]
fn exclusive_units_of_a_machine_that_is_switched_off_run_elsewhere_once_they_have_ended() -> Result<()> {
    let world = World::of(2)?;
    let (home, other) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    // Only the scheduler's farewell ends the goodbye, and only the agent's word the wait for an exclusive unit: a lease and
    // a stop would take longer than anything here may.
    let unit = "muster-goodbye.service";
    home.write_file(
        &format!("/run/systemd/system/{unit}.d/patient.conf"),
        b"[Service]\nTimeoutStopSec=infinity\n",
    )?;
    home.exec(&["systemctl", "daemon-reload"])?.ok()?;
    let exclusive = format!("{DIARY}[X-Muster]\nExclusive=yes\nExclusiveStopSec=300\n");
    let slow = exclusive.replace("[X-Muster]", "ExecStop=/usr/bin/sleep 3\n[X-Muster]");
    world.ctl(&["cordon", other.machine_id()])?;
    world.start("diary.service", DIARY)?;
    world.start("quick.service", &exclusive)?;
    world.start("slow.service", &slow)?;
    world.ctl(&["uncordon", other.machine_id()])?;

    // Without logind, which would hold the shutdown back.
    home.exec(&["systemctl", "start", "--no-block", "poweroff.target"])?.ok()?;
    for unit in ["diary.service", "quick.service", "slow.service"] {
        assert_eq!(world.home_other_than(unit, &[home.name()])?.name(), other.name());
    }
    world.cluster.wait_for("m1 to be off", LIMIT, || Ok((home.power() == Power::Off).then_some(())))?;
    home.boot()?;
    let moments = |service| -> Result<(f64, f64)> {
        let started = diary_of(service, &world, other.name(), "start")?;
        Ok((started, diary_of(service, &world, home.name(), "stop")?))
    };
    let (started, stopped) = moments("diary")?;
    ensure!(started < stopped, "it ran elsewhere ({started}) before it stopped here ({stopped})");
    for service in ["quick", "slow"] {
        let (started, stopped) = moments(service)?;
        ensure!(
            stopped < started,
            "{service} had ended here ({stopped}) before it ran elsewhere ({started})"
        );
    }
    Ok(())
}

/// Waits until the machine's logind lists the lock of the agent that runs there.
fn wait_locked(world: &World, machine: &Machine<'_>) -> Result<()> {
    let list = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager ListInhibitors";
    world.cluster.wait_for(&format!("a lock on {}", machine.name()), LIMIT, || {
        let listed = machine.exec(&["sh", "-c", &format!("busctl call {list}")])?.ok()?;
        let agent = main_pid(machine, "muster-agent.service")?;
        let (locked, agents) = (r#""shutdown" "Muster" "#, format!(r#""delay" 0 {agent}"#));
        ensure!(listed.contains(locked) && listed.contains(&agents), "{listed}");
        Ok(Some(()))
    })
}

#[test]
fn logind_holds_a_shutdown_back_until_units_run_elsewhere() -> Result<()> {
    let world = World::of(2)?;
    // So slow to start that it is stopped here before, if nobody waits.
    world.start("diary.service", &format!("{DIARY}ExecStartPre=/usr/bin/sleep 2\n"))?;
    let home = world.home("diary.service")?;
    let other = world.cluster.machine(if home.name() == "m1" { "m2" } else { "m1" })?;
    let before = world.invocations()?;
    for machine in [&home, &other] {
        // The agent is there first, and does not have it started.
        assert_eq!(property(machine, "systemd-logind.service", "ActiveState")?, "inactive");
        // Longer than anything here may take: only the agent ends it.
        machine.write_file("/etc/systemd/logind.conf.d/slow.conf", b"[Login]\nInhibitDelayMaxSec=1h\n")?;
        machine.exec(&["systemctl", "start", "systemd-logind"])?.ok()?;
        wait_locked(&world, machine)?;
        for again in ["muster-agent", "systemd-logind"] {
            machine.exec(&["systemctl", "restart", again])?.ok()?;
            wait_locked(&world, machine)?;
        }
        // Nobody else says goodbye.
        machine.exec(&["systemctl", "stop", "muster-goodbye"])?.ok()?;
    }
    // An agent that is restarted moves nothing.
    world.wait_invocations(&before)?;

    // A shutdown that systemd refuses in the end: the machine takes units again.
    let refusal = b"[Unit]\nRefuseManualStart=yes\n";
    home.write_file("/run/systemd/system/reboot.target.d/refused.conf", refusal)?;
    home.exec(&["systemctl", "daemon-reload"])?.ok()?;
    home.exec(&["systemctl", "reboot"])?.ok()?;
    assert_eq!(world.home_other_than("diary.service", &[home.name()])?.name(), other.name());
    world.start("pinned.service", &format!("{SLEEP}[X-Fleet]\nMachineID={}\n", home.machine_id()))?;
    assert_eq!(world.home("pinned.service")?.name(), home.name());
    wait_locked(&world, &home)?;

    let first = diary(&world, home.name(), "start")?;
    other.reboot()?;
    let (started, stopped) = (diary(&world, home.name(), "start")?, diary(&world, other.name(), "stop")?);
    ensure!(first < started, "it was started elsewhere");
    ensure!(started < stopped, "it ran elsewhere ({started}) before it stopped here ({stopped})");
    Ok(())
}

#[test]
fn when_most_machines_seem_to_die_nothing_is_moved_before_an_operator_says_so() -> Result<()> {
    let world = World::up(Cluster::builder().machines(3))?;
    let files: Vec<String> =
        (1..=3).map(|n| world.file(&format!("some{n}.service"), SLEEP)).collect::<Result<_>>()?;
    let start: Vec<&str> = std::iter::once("start").chain(files.iter().map(String::as_str)).collect();
    world.ctl(&start)?;
    let before = world.invocations()?;
    for machine in ["m1", "m2"] {
        world.cluster.machine(machine)?.cut()?;
    }
    world.cluster.wait_for("the brake", LIMIT, || {
        let listed = world.try_ctl(&["list-machines"])?;
        ensure!(listed.stderr.contains("THE BRAKE IS ON: 2 machines"), "{listed}");
        Ok(Some(()))
    })?;
    let told = world.ctl(&["explain", "some*"])?;
    ensure!(told.matches("  brake_applied  ").count() == 2, "{told}");
    for machine in ["m1", "m2"] {
        world.cluster.machine(machine)?.heal()?;
    }
    world.wait_machines_up(3)?;
    assert_eq!(world.invocations()?, before, "nothing was moved or restarted");
    let released = world.ctl(&["brake", "release"])?;
    ensure!(released.contains("was not held"), "{released}");

    for machine in ["m1", "m2"] {
        world.cluster.machine(machine)?.cut()?;
    }
    world.cluster.wait_for("the brake", LIMIT, || {
        let released = world.ctl(&["brake", "release"])?;
        ensure!(released.contains("The brake is released"), "{released}");
        Ok(Some(()))
    })?;
    for unit in ["some1.service", "some2.service", "some3.service"] {
        assert_eq!(world.home_other_than(unit, &["m1", "m2"])?.name(), "m3");
    }
    Ok(())
}

#[test]
fn the_brake_is_released_in_time_but_for_a_scheduler_that_sees_no_machine_but_its_own() -> Result<()> {
    let world = World::up(Cluster::builder().machines(4).schedulers_on_workers())?;
    configure(&world.cluster.machine("m1")?, "scheduler", "brake_hold = \"5s\"")?;
    world.wait_machines_up(4)?;
    for number in 1..=4 {
        world.start(&format!("some{number}.service"), SLEEP)?;
    }
    let before = world.invocations()?;
    let machines: BTreeSet<_> = before.keys().map(|(_, machine)| machine.clone()).collect();
    assert_eq!(machines.len(), 4, "units are spread evenly");
    let cut = |names: &[&str]| names.iter().try_for_each(|name| world.cluster.machine(name)?.cut());
    let heal = |names: &[&str]| names.iter().try_for_each(|name| world.cluster.machine(name)?.heal());
    let all_on = |names: &[&str]| {
        world.cluster.wait_for(&format!("all units on {names:?}"), LIMIT, || {
            let rows = world.rows()?;
            for row in rows.iter().filter(|row| row.copy == "current") {
                let on = world.by_id(&row.machine)?;
                let there = row.active.as_deref() == Some("active") && names.contains(&on.name());
                ensure!(there, "{rows:#?}");
            }
            Ok(Some(()))
        })
    };

    // It sees another one than its own.
    cut(&["m2", "m3"])?;
    all_on(&["m1", "m4"])?;
    let events = world.ctl(&["events"])?;
    let at = |text: &str| events.find(text).with_context(|| format!("{text}: {events}"));
    let held = events.get(at("brake_applied")?..at("brake_released")?).context("it was held first")?;
    ensure!(held.contains("machine_lost") && !held.contains("unit_placed"), "{events}");
    ensure!(events.contains("it was held for brake_hold"), "{events}");
    heal(&["m2", "m3"])?;
    world.wait_machines_up(4)?;

    cut(&["m2", "m3", "m4"])?;
    world.cluster.wait_for("the brake", LIMIT, || {
        let listed = world.try_ctl(&["list-machines"])?;
        let on = "THE BRAKE IS ON: 3 machines seem to have died at once";
        ensure!(listed.stderr.contains(on) && !listed.stderr.contains("s at most"), "{listed}");
        Ok(Some(()))
    })?;
    // Longer than the brake is held, and longer than a lease.
    world.outlast(LONG)?;
    let released = world.ctl(&["brake", "release"])?;
    ensure!(released.contains("The brake is released"), "{released}");
    all_on(&["m1"])
}
