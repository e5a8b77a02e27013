//! What stands still or is away for longer than a lease: a machine's PID 1, the scheduler, an agent.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use muster_cluster::Machine;

use super::support::{LIMIT, LONG, SLEEP, World, configure, main_pid, property};

const AGENT: &str = "muster-agent.service";

/// Starts `only.service`, which is exclusive, and `beside.service`, which is not, on one machine: which.
fn start_two(world: &World) -> Result<Machine<'_>> {
    world.start("only.service", &format!("{SLEEP}[X-Muster]\nExclusive=yes\nExclusiveStopSec=1\n"))?;
    world.start("beside.service", &format!("{SLEEP}[X-Fleet]\nMachineOf=only.service\n"))?;
    world.home("beside.service")
}

/// Which placement of each unit is where.
fn placements(world: &World) -> Result<BTreeSet<(String, String, String)>> {
    let rows = world.rows()?.into_iter().filter(|row| row.copy == "current");
    Ok(rows.map(|row| (row.unit, row.machine, row.epoch)).collect())
}

fn state(world: &World, machine: &Machine<'_>) -> Result<String> {
    let rows = world.machine_rows()?;
    let row = rows.into_iter().find(|row| row.machine == machine.machine_id());
    Ok(row.context("it is listed")?.state)
}

/// Whether a process runs. One that nobody has waited for does not.
fn runs(machine: &Machine<'_>, pid: &str) -> Result<bool> {
    Ok(!machine.exec(&["cat", &format!("/proc/{pid}/cmdline")])?.stdout.is_empty())
}

#[test]
fn a_machine_whose_pid_1_hangs_gets_nothing_new_and_is_given_up_in_the_end() -> Result<()> {
    let world = World::of(2)?;
    // So short a grace, so that a scheduler that has just come to its machine soon starts exclusive units.
    configure(&world.scheduler()?, "scheduler", "systemd_timeout = \"9s\"\nrestart_grace = \"5s\"")?;
    world.wait_machines_up(2)?;
    let home = start_two(&world)?;
    let pids = [main_pid(&home, "only.service")?, main_pid(&home, "beside.service")?];
    let before = placements(&world)?;

    home.stop_pid1()?;
    let degraded = world.cluster.wait_for("the machine to be degraded", LIMIT, || {
        let placements = placements(&world)?;
        let state = state(&world, &home)?;
        ensure!(state == "degraded", "it is {state}");
        Ok(Some(placements))
    })?;
    assert_eq!(degraded, before, "nothing is moved meanwhile");
    // It has two units, and the other machine none.
    for unit in ["new1.service", "new2.service", "new3.service"] {
        world.start(unit, SLEEP)?;
        world.home_other_than(unit, &[home.name()])?;
    }

    let other = world.home_other_than("only.service", &[home.name()])?;
    world.home_other_than("beside.service", &[home.name()])?;
    assert_eq!(state(&world, &home)?, "unreachable");
    ensure!(!runs(&home, &pids[0])?, "the exclusive unit has ended there");
    ensure!(runs(&home, &pids[1])?, "nobody has stopped the other one");
    let events = world.ctl(&["events"])?;
    for kind in ["machine_degraded", "machine_lost"] {
        ensure!(events.contains(kind), "{events}");
    }
    let moved = [main_pid(&other, "only.service")?, main_pid(&other, "beside.service")?];

    home.continue_pid1()?;
    stays_there_alone(&world, &home, &other, &moved)
}

/// Waits until the machine is back, with nothing left of the two units that another machine has taken meanwhile, and sees
/// that they run there as before.
fn stays_there_alone(
    world: &World,
    back: &Machine<'_>,
    other: &Machine<'_>,
    pids: &[String; 2],
) -> Result<()> {
    world.wait_machines_up(2)?;
    for (unit, pid) in ["only.service", "beside.service"].iter().zip(pids) {
        world.cluster.wait_for(&format!("nothing to be left of {unit}"), LIMIT, || {
            let load = property(back, unit, "LoadState")?;
            let rows = world.rows()?;
            let copies = rows.iter().filter(|row| row.unit == *unit).count();
            ensure!(load == "not-found" && copies == 1, "it is {load}: {rows:#?}");
            Ok(Some(()))
        })?;
        assert_eq!(world.home(unit)?.name(), other.name());
        assert_eq!(main_pid(other, unit)?, *pid, "{unit} was not restarted");
    }
    Ok(())
}

#[test]
fn a_scheduler_that_stands_still_for_longer_than_a_lease_takes_no_machine_for_dead() -> Result<()> {
    let world = World::of(3)?;
    for number in 1..=6 {
        world.start(&format!("some{number}.service"), SLEEP)?;
    }
    let (before, placed) = (world.invocations()?, placements(&world)?);
    let scheduler = world.scheduler()?;
    let pid = main_pid(&scheduler, "muster-scheduler")?;
    scheduler.stop_process(pid.parse()?)?;
    world.outlast(2 * LONG)?;
    scheduler.continue_process(pid.parse()?)?;
    world.wait_machines_up(3)?;
    world.wait_invocations(&before)?;
    assert_eq!(placements(&world)?, placed);
    assert_eq!(main_pid(&scheduler, "muster-scheduler")?, pid, "it is the same one");
    let events = world.ctl(&["events"])?;
    ensure!(events.contains("leader_stalled") && !events.contains("machine_lost"), "{events}");
    let journal = scheduler.journal()?;
    let stalls = journal.lines().filter_map(|line| {
        line.split_once("this scheduler was stalled for ")?.1.split(' ').next()?.parse::<u128>().ok()
    });
    ensure!(stalls.max() > Some(LONG.as_millis()), "{journal}");
    Ok(())
}

#[test]
fn an_agent_that_is_away_for_longer_than_a_lease_loses_its_units_unless_it_has_said_so() -> Result<()> {
    let world = World::of(2)?;
    configure(&world.scheduler()?, "scheduler", "restart_grace = \"12s\"")?;
    world.wait_machines_up(2)?;
    let home = start_two(&world)?;

    // Killed, and it does not come back.
    let pid = main_pid(&home, "beside.service")?;
    home.exec(&["systemctl", "mask", "--runtime", AGENT])?.ok()?;
    home.exec(&["systemctl", "kill", "--signal=KILL", AGENT])?.ok()?;
    let other = world.home_other_than("only.service", &[home.name()])?;
    world.home_other_than("beside.service", &[home.name()])?;
    assert_eq!(property(&home, "only.service", "ActiveState")?, "inactive");
    assert_eq!(main_pid(&home, "beside.service")?, pid, "what is not exclusive runs on");
    let events = world.ctl(&["events"])?;
    ensure!(events.contains("host_answers"), "its host runs on: {events}");
    let moved = [main_pid(&other, "only.service")?, main_pid(&other, "beside.service")?];
    home.exec(&["systemctl", "unmask", "--runtime", AGENT])?.ok()?;
    home.exec(&["systemctl", "start", AGENT])?.ok()?;
    stays_there_alone(&world, &home, &other, &moved)?;

    // In order.
    let (before, placed) = (world.invocations()?, placements(&world)?);
    other.exec(&["systemctl", "stop", AGENT])?.ok()?;
    world.outlast(LONG)?;
    assert_eq!(placements(&world)?, placed, "nothing is moved while it is away");
    other.exec(&["systemctl", "start", AGENT])?.ok()?;
    world.wait_machines_up(2)?;
    world.wait_invocations(&before)?;
    assert_eq!(placements(&world)?, placed);

    // In order, and it does not come back.
    other.exec(&["systemctl", "stop", AGENT])?.ok()?;
    world.home_other_than("only.service", &[other.name()])?;
    world.home_other_than("beside.service", &[other.name()])?;
    assert_eq!(property(&other, "only.service", "ActiveState")?, "inactive");
    assert_eq!(main_pid(&other, "beside.service")?, moved[1], "what is not exclusive runs on");
    let moved = [main_pid(&home, "only.service")?, main_pid(&home, "beside.service")?];
    other.exec(&["systemctl", "start", AGENT])?.ok()?;
    stays_there_alone(&world, &other, &home, &moved)
}

#[test]
fn a_daemon_reload_that_takes_longer_than_a_lease_is_no_death() -> Result<()> {
    let world = World::of(2)?;
    let home = start_two(&world)?;
    let (before, placed) = (world.invocations()?, placements(&world)?);
    let generator = "/etc/systemd/system-generators/slow";
    let script = format!("#!/bin/sh\ntouch /run/begun\nsleep {}\ntouch /run/over\n", LONG.as_secs());
    home.write_file(generator, script.as_bytes())?;
    home.exec(&["chmod", "+x", generator])?.ok()?;
    home.exec(&["sh", "-c", "setsid systemctl daemon-reload </dev/null >/run/reload 2>&1 &"])?.ok()?;
    let mut states = BTreeSet::new();
    world.cluster.wait_for("the reload to be over", LIMIT, || {
        home.exec(&["test", "-e", "/run/begun"])?.ok()?;
        states.insert(state(&world, &home)?);
        Ok((home.exec(&["test", "-e", "/run/over"])?.code == Some(0)).then_some(()))
    })?;
    assert_eq!(states, BTreeSet::from(["up".to_owned()]), "a silence that is explained");
    // PID 1 has read all that was to be read meanwhile when it has started something.
    world.start("new.service", &format!("{SLEEP}[X-Fleet]\nMachineID={}\n", home.machine_id()))?;
    let mut after = world.invocations()?;
    after.retain(|(unit, _), _| unit != "new.service");
    assert_eq!(after, before, "nothing was stopped, restarted or moved");
    let mut now = placements(&world)?;
    now.retain(|(unit, ..)| unit != "new.service");
    assert_eq!(now, placed);
    let events = world.ctl(&["events"])?;
    ensure!(!events.contains("machine_degraded") && !events.contains("machine_lost"), "{events}");
    Ok(())
}
