//! Machines, agents and schedulers that die, and come back.

use std::collections::BTreeSet;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use super::support::{LIMIT, SLEEP, World, main_pid, property};

/// Starts some units that have nothing to do with each other.
fn start_some(world: &World, count: usize) -> Result<()> {
    let files: Vec<String> =
        (1..=count).map(|n| world.file(&format!("some{n}.service"), SLEEP)).collect::<Result<_>>()?;
    let arguments: Vec<&str> = std::iter::once("start").chain(files.iter().map(String::as_str)).collect();
    world.ctl(&arguments)?;
    Ok(())
}

/// Each of these units is active on exactly one machine in the cluster, by the word of the machines' own systemd.
fn each_runs_once(world: &World, units: &[String]) -> Result<()> {
    world.cluster.wait_for("every unit active on exactly one machine", LIMIT, || {
        for unit in units {
            let mut homes = Vec::new();
            for machine in world.cluster.machines().filter(|machine| machine.name().starts_with('m')) {
                if property(&machine, unit, "ActiveState")? == "active" {
                    homes.push(machine.name().to_owned());
                }
            }
            ensure!(homes.len() == 1, "{unit} runs on {homes:?}");
        }
        Ok(Some(()))
    })
}

#[test]
fn a_machine_that_loses_its_power_is_replaced_and_may_come_back() -> Result<()> {
    let world = World::of(3)?;
    start_some(&world, 9)?;
    let lost = world.home("some1.service")?;
    let before = world.invocations()?;
    let units: Vec<String> = (1..=9).map(|n| format!("some{n}.service")).collect();
    let there: BTreeSet<String> = before
        .keys()
        .filter(|(_, machine)| machine == lost.machine_id())
        .map(|(unit, _)| unit.clone())
        .collect();
    assert_eq!(there.len(), 3, "units are spread evenly");

    lost.kill()?;
    for unit in &there {
        world.home_other_than(unit, &[lost.name()])?;
    }
    let rows = world.machine_rows()?;
    let state =
        rows.iter().find(|row| row.machine == lost.machine_id()).context("it is known")?.state.clone();
    assert_eq!(state, "unreachable");

    lost.boot()?;
    world.wait_machines_up(3)?;
    each_runs_once(&world, &units)?;
    let after = world.invocations()?;
    for (key, invocation) in before.iter().filter(|((unit, _), _)| !there.contains(unit)) {
        assert_eq!(after.get(key), Some(invocation), "{} was neither restarted nor moved", key.0);
    }
    Ok(())
}

#[test]
fn a_machine_that_is_cut_off_runs_on_and_its_older_copies_stop_when_it_is_back() -> Result<()> {
    let world = World::of(3)?;
    start_some(&world, 6)?;
    let cut = world.home("some1.service")?;
    let epoch = epoch_seen(&cut, "some1.service")?;
    cut.cut()?;
    let elsewhere = world.home_other_than("some1.service", &[cut.name()])?;
    assert_eq!(property(&cut, "some1.service", "ActiveState")?, "active", "losing the leader stops nothing");
    let later = epoch_seen(&elsewhere, "some1.service")?;
    ensure!(later > epoch, "the later placement has the larger epoch: {epoch:?}, {later:?}");
    cut.heal()?;
    world.wait_active_state(&cut, "some1.service", "inactive")?;
    let units: Vec<String> = (1..=6).map(|n| format!("some{n}.service")).collect();
    each_runs_once(&world, &units)?;
    assert_eq!(world.home("some1.service")?.name(), elsewhere.name());
    // Nothing of it is left on the machine that had it.
    let files = cut.exec(&["find", "/run/muster", "/run/systemd/system", "-name", "some1.service*"])?.ok()?;
    assert_eq!(files, "");
    Ok(())
}

/// `MUSTER_EPOCH`, as the unit's main process sees it.
fn epoch_seen(machine: &muster_cluster::Machine<'_>, unit: &str) -> Result<(u64, u64)> {
    let pid = main_pid(machine, unit)?;
    let environment = machine.exec(&["cat", &format!("/proc/{pid}/environ")])?.ok()?;
    let epoch = environment.split('\0').find_map(|entry| entry.strip_prefix("MUSTER_EPOCH="));
    let (term, counter) =
        epoch.and_then(|epoch| epoch.split_once('.')).context("MUSTER_EPOCH=TERM.COUNTER")?;
    Ok((term.parse()?, counter.parse()?))
}

/// Submits these units, again where the scheduler was away. Returns when they were acknowledged.
fn submit(world: &World, units: &[String]) -> Result<()> {
    let files: Vec<String> = units.iter().map(|unit| world.file(unit, SLEEP)).collect::<Result<_>>()?;
    let arguments: Vec<&str> = std::iter::once("submit").chain(files.iter().map(String::as_str)).collect();
    world.cluster.wait_for("the scheduler to acknowledge", LIMIT, || world.ctl(&arguments).map(Some))?;
    Ok(())
}

#[test]
fn a_scheduler_that_is_killed_during_submissions_loses_none_that_it_acknowledged() -> Result<()> {
    const UNITS: usize = 1000;
    let world = World::of(2)?;
    start_some(&world, 6)?;
    let before = world.invocations()?;
    let scheduler = world.scheduler()?;
    let pid = main_pid(&scheduler, "muster-scheduler.service")?;
    let units: Vec<String> = (0..UNITS).map(|number| format!("bulk{number}.service")).collect();
    let count = || anyhow::Ok(world.ctl(&["list-unit-files", "--no-legend"])?.lines().count());

    // Ten clients, ten units in each command.
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = units
            .chunks(UNITS / 10)
            .map(|own| scope.spawn(|| own.chunks(10).try_for_each(|units| submit(&world, units))))
            .collect();
        world.cluster.wait_for(
            "some submissions to be done",
            LIMIT,
            || Ok((count()? > 100).then_some(())),
        )?;
        scheduler.exec(&["kill", "-KILL", &pid])?.ok()?;
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(())
    })?;

    assert_ne!(main_pid(&scheduler, "muster-scheduler.service")?, pid, "it was killed and runs again");
    let known: BTreeSet<String> = world
        .ctl(&["list-unit-files", "--no-legend", "--fields", "unit"])?
        .lines()
        .map(|line| line.trim().to_owned())
        .collect();
    let lost: Vec<&String> = units.iter().filter(|unit| !known.contains(*unit)).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    world.wait_machines_up(2)?;
    assert_eq!(world.invocations()?, before, "nothing was stopped, restarted or moved");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_takes_up_what_it_held() -> Result<()> {
    let world = World::of(2)?;
    start_some(&world, 6)?;
    let before = world.invocations()?;
    let machine = world.home("some1.service")?;
    let pid = main_pid(&machine, "muster-agent.service")?;
    machine.exec(&["kill", "-KILL", &pid])?.ok()?;
    world.cluster.wait_for("another agent", LIMIT, || {
        let now = main_pid(&machine, "muster-agent.service")?;
        ensure!(now != pid, "it is the old one");
        Ok(Some(()))
    })?;
    world.wait_machines_up(2)?;
    // It obeys still.
    world.ctl(&["stop", "some1.service"])?;
    world.wait_active_state(&machine, "some1.service", "inactive")?;
    let mut after = world.invocations()?;
    after.insert(("some1.service".to_owned(), machine.machine_id().to_owned()), String::new());
    let mut before = before;
    before.insert(("some1.service".to_owned(), machine.machine_id().to_owned()), String::new());
    assert_eq!(after, before, "nothing was restarted or moved");
    Ok(())
}
