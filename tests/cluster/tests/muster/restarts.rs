//! What is restarted, or lost for a while, under running units: the bus, the agent, the scheduler.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use muster_cluster::{Cluster, Machine};

use super::support::{LIMIT, SLEEP, World, main_pid, property};

const AGENT: &str = "muster-agent.service";
const SCHEDULER: &str = "muster-scheduler.service";

/// Starts these services together.
fn start_all(world: &World, units: &[&str]) -> Result<()> {
    let files: Vec<String> = units.iter().map(|unit| world.file(unit, SLEEP)).collect::<Result<_>>()?;
    let arguments: Vec<&str> = std::iter::once("start").chain(files.iter().map(String::as_str)).collect();
    world.ctl(&arguments)?;
    Ok(())
}

/// Waits until these units are shown in these states.
fn wait_shown(world: &World, states: &[(&str, &str)]) -> Result<()> {
    world.cluster.wait_for(&format!("units shown as {states:?}"), LIMIT, || {
        let rows = world.rows()?;
        let shown: BTreeMap<&str, &str> =
            rows.iter().filter_map(|row| Some((row.unit.as_str(), row.active.as_deref()?))).collect();
        let right = states.iter().all(|(unit, state)| shown.get(unit) == Some(state));
        ensure!(right, "{rows:#?}");
        Ok(Some(()))
    })
}

/// How often the agent has connected to systemd.
fn connections(machine: &Machine<'_>) -> Result<usize> {
    let journal = machine.exec(&["journalctl", "--unit", AGENT, "--output", "cat"])?.ok()?;
    Ok(journal.lines().filter(|line| line.starts_with("connected to systemd")).count())
}

#[test]
fn the_bus_may_be_restarted_and_killed() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    start_all(&world, &["a.service", "b.service", "c.service"])?;
    let agent = main_pid(&machine, AGENT)?;
    let mut stopped = Vec::new();
    for (way, unit, later) in [
        ("systemctl restart dbus.service", "a.service", "d.service"),
        ("kill -KILL $(systemctl show --property MainPID --value dbus.service)", "b.service", "e.service"),
    ] {
        let before = world.invocations()?;
        let connected = connections(&machine)?;
        machine.exec(&["sh", "-ec", way])?.ok()?;
        world.cluster.wait_for("the agent to connect to systemd again", LIMIT, || {
            ensure!(connections(&machine)? > connected, "it has not");
            Ok(Some(()))
        })?;
        assert_eq!(world.invocations()?, before, "{way}: nothing was stopped or restarted");
        world.ctl(&["stop", unit])?;
        world.wait_active_state(&machine, unit, "inactive")?;
        stopped.push((unit, "inactive"));
        world.start(later, SLEEP)?;
        assert_eq!(property(&machine, later, "ActiveState")?, "active");
        // What happens by itself is heard of.
        machine.exec(&["systemctl", "stop", "c.service"])?.ok()?;
        wait_shown(&world, &[("c.service", "inactive"), (later, "active")])?;
        machine.exec(&["systemctl", "start", "c.service"])?.ok()?;
        wait_shown(&world, &[("c.service", "active")])?;
        wait_shown(&world, &stopped)?;
    }
    assert_eq!(main_pid(&machine, AGENT)?, agent, "the agent runs on");
    Ok(())
}

/// On dbus-daemon, systemd is cut off from the bus for good when some hundreds of jobs are pending: it watches the
/// bus for whoever asked for each, and the bus limits that.
#[test]
fn more_jobs_than_the_bus_bears_may_be_pending() -> Result<()> {
    const UNITS: usize = 600;
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    start_all(&world, &["other.service"])?;
    let before = main_pid(&machine, "other.service")?;
    let gate = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'read line </run/gate'\n";
    machine.exec(&["mkfifo", "/run/gate"])?.ok()?;
    world.ctl(&["start", "--no-block", &world.file("gate.service", gate)?])?;
    world.wait_active_state(&machine, "gate.service", "activating")?;
    let waits =
        "[Unit]\nAfter=gate.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n";
    let files: Vec<String> =
        (0..UNITS).map(|n| world.file(&format!("waits{n}.service"), waits)).collect::<Result<_>>()?;
    let start: Vec<&str> =
        ["start", "--no-block"].into_iter().chain(files.iter().map(String::as_str)).collect();
    world.ctl(&start)?;
    let mut seen = Vec::new();
    world.cluster.wait_for("hundreds of jobs, and no more to come", LIMIT, || {
        let jobs = machine.exec(&["systemctl", "show", "--property", "NJobs", "--value"])?.ok()?;
        seen.push(jobs.trim().parse::<usize>()?);
        let last = &seen[seen.len().saturating_sub(20)..];
        ensure!(
            last.len() == 20 && last[0] > 300 && last.iter().all(|jobs| *jobs == last[0]),
            "{last:?} jobs"
        );
        Ok(Some(()))
    })?;
    machine.exec(&["sh", "-c", "echo open >/run/gate"])?.ok()?;
    world.cluster.wait_for("all of them to have started", LIMIT, || {
        let active = world.active()?.len();
        ensure!(active == UNITS + 2, "{active} units are active");
        Ok(Some(()))
    })?;
    assert_eq!(main_pid(&machine, "other.service")?, before, "what ran was left alone");
    world.ctl(&["stop", "other"])?;
    world.wait_active_state(&machine, "other.service", "inactive")?;
    Ok(())
}

#[test]
fn an_agent_that_was_away_learns_what_systemd_did_meanwhile() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    start_all(&world, &["healthy.service", "stopped.service", "killed.service", "removed.service"])?;
    world.ctl(&["load", &world.file("loaded.service", SLEEP)?])?;
    let before = world.invocations()?;
    // An announced stop, as at an upgrade.
    machine.exec(&["systemctl", "stop", AGENT])?.ok()?;
    let pid = main_pid(&machine, "killed.service")?;
    machine.exec(&["systemctl", "stop", "stopped.service"])?.ok()?;
    machine.exec(&["kill", "-KILL", &pid])?.ok()?;
    world.wait_active_state(&machine, "killed.service", "failed")?;
    machine.exec(&["systemctl", "start", "loaded.service"])?.ok()?;
    world.ctl(&["destroy", "--no-block", "removed.service"])?;
    machine.exec(&["systemctl", "start", AGENT])?.ok()?;
    world.wait_machines_up(1)?;
    wait_shown(
        &world,
        &[
            ("healthy.service", "active"),
            ("stopped.service", "inactive"),
            ("killed.service", "failed"),
            ("loaded.service", "active"),
        ],
    )?;
    world.wait_active_state(&machine, "removed.service", "inactive")?;
    let key = ("healthy.service".to_owned(), machine.machine_id().to_owned());
    assert_eq!(world.invocations()?.get(&key), before.get(&key), "what was healthy was not restarted");
    assert_eq!(world.try_ctl(&["status", "killed"])?.code, Some(3));

    world.ctl(&["restart", "stopped", "killed"])?;
    wait_shown(&world, &[("stopped.service", "active"), ("killed.service", "active")])?;
    world.ctl(&["destroy", "*"])?;
    let left =
        machine.exec(&["find", "/run/muster/units", "/run/systemd/system", "-name", "*.service*"])?.ok()?;
    assert_eq!(left, "");
    Ok(())
}

#[test]
fn a_scheduler_may_run_on_a_worker() -> Result<()> {
    let world = World::up(Cluster::builder().machines(2).schedulers_on_workers())?;
    world.wait_machines_up(2)?;
    let machine = world.cluster.machine("m1")?;
    let pinned = format!("{SLEEP}[X-Fleet]\nMachineID={}\n", machine.machine_id());
    world.start("pinned.service", &pinned)?;
    start_all(&world, &["a.service", "b.service"])?;
    assert_eq!(world.home("pinned.service")?.name(), "m1");
    let before = world.invocations()?;
    assert_eq!(before.len(), 3, "{before:?}");
    let agent = main_pid(&machine, AGENT)?;
    let scheduler = main_pid(&machine, SCHEDULER)?;
    for way in ["systemctl restart muster-scheduler", "systemctl kill --signal KILL muster-scheduler"] {
        machine.exec(&["sh", "-ec", way])?.ok()?;
        world.wait_machines_up(2)?;
        world.cluster.wait_for("all units to be heard of", LIMIT, || {
            let active = world.active()?;
            ensure!(active.len() == 3, "{active:?}");
            Ok(Some(()))
        })?;
        assert_eq!(world.invocations()?, before, "{way}: nothing was stopped, restarted or moved");
    }
    ensure!(main_pid(&machine, SCHEDULER)? != scheduler, "it is another one");
    assert_eq!(main_pid(&machine, AGENT)?, agent, "the agent runs on");
    let home = before.keys().find(|(unit, _)| unit == "a.service").context("it ran")?.1.clone();
    world.ctl(&["stop", "a"])?;
    world.wait_active_state(&world.by_id(&home)?, "a.service", "inactive")?;
    Ok(())
}

#[test]
fn what_cannot_be_written_down_is_not_started() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    // In the way of the ledger, as a full /run would be.
    machine.exec(&["mkdir", "/run/muster/ledger.json~"])?.ok()?;
    let file = world.file("a.service", SLEEP)?;
    world.ctl(&["start", "--no-block", &file])?;
    world.cluster.wait_for("the reason", LIMIT, || {
        let status = world.try_ctl(&["status", "a.service"])?.stdout;
        ensure!(status.contains("the agent cannot write down that it is here"), "{status}");
        Ok(Some(()))
    })?;
    assert_eq!(property(&machine, "a.service", "ExecMainStartTimestampMonotonic")?, "0", "it never ran");
    machine.exec(&["rmdir", "/run/muster/ledger.json~"])?.ok()?;
    world.wait_active_state(&machine, "a.service", "active")
}

#[test]
fn a_unit_of_which_there_is_no_record_is_not_said_to_be_gone_while_it_runs() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    start_all(&world, &["a.service", "b.service"])?;
    machine.exec(&["systemctl", "stop", AGENT])?.ok()?;
    machine.exec(&["rm", "/run/muster/ledger.json"])?.ok()?;
    world.ctl(&["destroy", "--no-block", "a.service"])?;
    assert_eq!(property(&machine, "a.service", "ActiveState")?, "active");
    machine.exec(&["systemctl", "start", AGENT])?.ok()?;
    world.wait_active_state(&machine, "a.service", "inactive")?;
    wait_shown(&world, &[("b.service", "active")])?;
    machine.exec(&["test", "!", "-e", "/run/muster/units/a.service"])?.ok()?;
    Ok(())
}
