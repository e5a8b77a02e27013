//! Machines, agents and schedulers that die, and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use muster_cluster::Machine;
use serde_json::Value;

use super::support::{LIMIT, SLEEP, World, configure, main_pid, property};

/// Starts some units that have nothing to do with each other.
fn start_some(world: &World, count: usize) -> Result<()> {
    let files: Vec<String> =
        (1..=count).map(|n| world.file(&format!("some{n}.service"), SLEEP)).collect::<Result<_>>()?;
    let arguments: Vec<&str> = std::iter::once("start").chain(files.iter().map(String::as_str)).collect();
    world.ctl(&arguments)?;
    Ok(())
}

#[test]
fn a_machine_whose_disk_is_full_is_not_lost_when_the_scheduler_is_restarted() -> Result<()> {
    let world = World::of(2)?;
    let (full, other) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    world.ctl(&["cordon", other.machine_id()])?;
    world.start("plain.service", SLEEP)?;
    world.start("exclusive.service", &format!("{SLEEP}[X-Muster]\nExclusive=yes\n"))?;
    world.ctl(&["uncordon", other.machine_id()])?;
    let before = world.invocations()?;
    full.fill("/var/lib")?;
    let welcomes = || -> Result<usize> {
        let journal = full.exec(&["journalctl", "--unit=muster-agent", "--output=cat"])?.ok()?;
        Ok(journal.lines().filter(|line| line.starts_with("welcomed")).count())
    };
    // Each one has another term, which the agent writes down before it says that the machine is alive.
    for _ in 0..3 {
        let welcomed = welcomes()?;
        world.scheduler()?.exec(&["systemctl", "restart", "muster-scheduler"])?.ok()?;
        world
            .cluster
            .wait_for("the agent to obey it", LIMIT, || Ok((welcomes()? > welcomed).then_some(())))?;
        world.wait_machines_up(2)?;
        world.wait_invocations(&before)?;
    }
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
    its_journal_has_fields(&world, &lost, &before)?;

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
fn what_has_the_higher_priority_takes_the_room_that_is_left_when_a_machine_is_lost() -> Result<()> {
    let world = World::of(2)?;
    let (lost, left) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    for (machine, memory) in [(&lost, "4G"), (&left, "2G")] {
        configure(machine, "agent", &format!("[capacity]\nmemory = \"{memory}\""))?;
    }
    world.wait_machines_up(2)?;
    world.ctl(&["cordon", left.machine_id()])?;
    // Neither the order of names nor that of submissions is that of priorities.
    for (unit, priority) in [("a.service", 10), ("b.service", -10), ("c.service", 20), ("d.service", 0)] {
        world.start(unit, &format!("{SLEEP}[X-Muster]\nMemory=800M\nPriority={priority}\n"))?;
        assert_eq!(world.home(unit)?.name(), lost.name());
    }
    world.ctl(&["uncordon", left.machine_id()])?;
    lost.kill()?;
    for unit in ["a.service", "c.service"] {
        assert_eq!(world.home_other_than(unit, &[lost.name()])?.name(), left.name());
    }
    for unit in ["b.service", "d.service"] {
        let explained = world.ctl(&["explain", unit])?;
        ensure!(explained.contains("800M of memory are needed"), "{explained}");
    }
    let events = world.ctl(&["events", "-o", "json", left.machine_id()])?;
    let at = |unit: &str| events.find(&format!("{unit} moves from")).with_context(|| events.clone());
    ensure!(at("c.service")? < at("a.service")?, "{events}");
    // What makes room lets in the one that is next.
    world.ctl(&["stop", "a.service"])?;
    world.ctl(&["unload", "a.service"])?;
    assert_eq!(world.home_other_than("d.service", &[lost.name()])?.name(), left.name());
    // The lost machine is back with what is its own still.
    lost.boot()?;
    assert_eq!(world.home("b.service")?.name(), lost.name());
    Ok(())
}

/// What the scheduler's journal says of a unit of the lost machine: that it was placed there, that its machine was lost,
/// that it was placed elsewhere, each with all that a reader may select by.
fn its_journal_has_fields(
    world: &World,
    lost: &Machine<'_>,
    before: &BTreeMap<(String, String), String>,
) -> Result<()> {
    let unit =
        before.keys().find(|(_, machine)| machine == lost.machine_id()).context("it had units")?.0.clone();
    let rows = world.rows()?;
    let row = rows.iter().find(|row| row.unit == unit && row.copy == "current").context("it is listed")?;
    let scheduler = world.scheduler()?;
    scheduler.exec(&["journalctl", "--sync"])?.ok()?;
    let select = format!("MUSTER_UNIT={unit}");
    let journal = scheduler.exec(&["journalctl", "-u", "muster-scheduler", &select, "-o", "json"])?.ok()?;
    let entries: Vec<Value> = journal.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let find = |kind: &str| entries.iter().filter(|entry| entry["MUSTER_EVENT"] == kind).collect::<Vec<_>>();
    let has = |entry: &Value, field: &str| entry[field].as_str().is_some_and(|text| !text.is_empty());

    let placed = find("unit_placed");
    let [first, second] = placed.as_slice() else { bail!("{journal}") };
    assert_eq!(first["MUSTER_MACHINE"], *lost.machine_id(), "{journal}");
    // Where it is, and where it was.
    let machines: BTreeSet<&str> =
        second["MUSTER_MACHINE"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(machines, BTreeSet::from([&*row.machine, lost.machine_id()]), "{journal}");
    assert_eq!(second["MUSTER_EPOCH"], *row.epoch, "{journal}");
    ensure!(has(first, "MUSTER_REASON") && has(second, "MUSTER_REASON"), "{journal}");
    let losses = find("machine_lost");
    let [loss] = losses.as_slice() else { bail!("{journal}") };
    assert_eq!(loss["MUSTER_MACHINE"], *lost.machine_id(), "{journal}");
    ensure!(has(loss, "MUSTER_REASON"), "{journal}");
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
fn epoch_seen(machine: &Machine<'_>, unit: &str) -> Result<(u64, u64)> {
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

/// Kills the agent, and waits until systemd has started another.
fn kill_agent(world: &World, machine: &Machine<'_>) -> Result<()> {
    let pid = main_pid(machine, "muster-agent.service")?;
    machine.exec(&["kill", "-KILL", &pid])?.ok()?;
    world.cluster.wait_for("another agent", LIMIT, || {
        let now = main_pid(machine, "muster-agent.service")?;
        ensure!(now != pid, "it is the old one");
        Ok(Some(()))
    })
}

#[test]
fn an_agent_that_is_killed_takes_up_what_it_held() -> Result<()> {
    let world = World::of(2)?;
    start_some(&world, 6)?;
    let before = world.invocations()?;
    let machine = world.home("some1.service")?;
    kill_agent(&world, &machine)?;
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

/// The units among these (patterns as `systemctl` takes them) that are active, each with which start of it this is.
fn active_here(machine: &Machine<'_>, patterns: &[&str]) -> Result<BTreeMap<String, String>> {
    let show = ["systemctl", "show", "--property=Id", "--property=ActiveState", "--property=InvocationID"];
    let shown = machine.exec(&[&show[..], patterns].concat())?.ok()?;
    let value = |unit: &str, key: &str| {
        unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    };
    let active = shown.split("\n\n").filter(|unit| value(unit, "ActiveState").as_deref() == Some("active"));
    active
        .map(|unit| value(unit, "Id").zip(value(unit, "InvocationID")).with_context(|| unit.to_owned()))
        .collect()
}

/// How often systemd has started each unit whose name starts so, by its journal.
fn starts(machine: &Machine<'_>, prefix: &str) -> Result<BTreeMap<String, usize>> {
    machine.exec(&["journalctl", "--sync"])?.ok()?;
    let journal = machine.exec(&["journalctl", "--boot", "--output=cat", "_PID=1"])?.ok()?;
    let mut starts = BTreeMap::new();
    for line in journal.lines() {
        let unit = line.strip_prefix("Started ").and_then(|line| line.split(' ').next());
        if let Some(unit) = unit.filter(|unit| unit.starts_with(prefix)) {
            *starts.entry(unit.trim_end_matches('.').to_owned()).or_default() += 1;
        }
    }
    Ok(starts)
}

#[test]
fn an_agent_that_is_killed_again_and_again_during_a_start_starts_each_unit_once() -> Result<()> {
    const WAVES: usize = 4;
    const UNITS: usize = 75;
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    start_some(&world, 6)?;
    let mut seen = active_here(&machine, &["some*.service"])?;
    assert_eq!(seen.len(), 6);

    // Each wave of units waits for a gate, so that the start is not over before the agent has been killed in its midst.
    let gate = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'read line </run/gate%i'\n";
    machine.write_file("/etc/systemd/system/gate@.service", gate.as_bytes())?;
    let mut files = Vec::new();
    for wave in 1..=WAVES {
        machine.exec(&["mkfifo", &format!("/run/gate{wave}")])?.ok()?;
        machine.exec(&["systemctl", "start", "--no-block", &format!("gate@{wave}.service")])?.ok()?;
        for number in 1..=UNITS {
            let content = format!("[Unit]\nAfter=gate@{wave}.service\n{SLEEP}");
            files.push(world.file(&format!("wave{wave}-{number}.service"), &content)?);
        }
    }
    let start: Vec<&str> = std::iter::once("start").chain(files.iter().map(String::as_str)).collect();

    thread::scope(|scope| -> Result<()> {
        let client = scope.spawn(|| world.cluster.ctl_within(3 * LIMIT, &start, &[])?.ok());
        world.cluster.wait_for("the first unit files", LIMIT, || {
            let files = machine.exec(&["find", "/run/muster/units", "-name", "wave*"])?.ok()?;
            Ok((!files.is_empty()).then_some(()))
        })?;
        kill_agent(&world, &machine)?;
        for wave in 1..=WAVES {
            machine.exec(&["sh", "-c", &format!("echo open >/run/gate{wave}")])?.ok()?;
            let active = world.cluster.wait_for(&format!("the first units of wave {wave}"), LIMIT, || {
                let active = active_here(&machine, &[&format!("wave{wave}-*.service")])?;
                Ok((!active.is_empty()).then_some(active))
            })?;
            seen.extend(active);
            kill_agent(&world, &machine)?;
            submit(&world, &[format!("late{wave}.service")])?;
        }
        client.join().map_err(|_| anyhow!("the client panicked"))??;
        Ok(())
    })?;

    let after = active_here(&machine, &["some*.service", "wave*.service"])?;
    assert_eq!(after.len(), WAVES * UNITS + 6, "all are active");
    // The last agent may not have said so yet.
    world.cluster.wait_for("all units shown as active, each once", LIMIT, || {
        let active = world.active()?;
        let others: Vec<_> = after.keys().filter(|unit| active.get(*unit).map(Vec::len) != Some(1)).collect();
        ensure!(others.is_empty() && active.len() == after.len(), "not so: {others:?}");
        Ok(Some(()))
    })?;
    for (unit, invocation) in &seen {
        assert_eq!(&after[unit], invocation, "{unit} was active, and has been restarted");
    }
    let starts = starts(&machine, "wave")?;
    assert_eq!(starts.len(), WAVES * UNITS, "{starts:?}");
    ensure!(starts.values().all(|count| *count == 1), "started more than once: {starts:?}");
    let known = world.ctl(&["list-unit-files", "--no-legend", "--fields", "unit"])?;
    for wave in 1..=WAVES {
        let late = format!("late{wave}.service");
        ensure!(known.lines().any(|line| line.trim() == late), "{late} was acknowledged and is lost");
    }
    Ok(())
}
