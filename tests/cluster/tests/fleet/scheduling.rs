//! Which machine a unit comes to, with what `[X-Fleet]` says of it.

use anyhow::{Context, Result, ensure};

use super::cluster::{HELLO, Shared, ctl, hello_with, spread, unit_files, wait_active, wait_copies};
use super::support::{LIMIT, World};

/// Writes files with these names and options, and returns their paths.
fn files(world: &World, units: &[(String, String)]) -> Result<Vec<String>> {
    units.iter().map(|(name, options)| world.file(name, &hello_with(options))).collect()
}

/// Waits until the unit is said to wait for this reason.
fn wait_reason(world: &World, unit: &str, reason: &str) -> Result<()> {
    world.cluster.wait_for(&format!("{unit} to wait since {reason}"), LIMIT, || {
        let status = world.try_ctl(&["status", unit])?;
        ensure!(status.stdout.contains(reason), "{status}");
        Ok(Some(()))
    })
}

/// fleet: `TestTunnelScheduleBatchUnits`
#[test]
fn test_schedule_batch_units() -> Result<()> {
    let shared = Shared::of(3)?;
    let hello = shared.file("hello.service", HELLO)?;
    let template = shared.file("hello@.service", HELLO)?;
    let mut names: Vec<String> = (1..=10).map(|number| format!("hello@{number}.service")).collect();
    let directory = template.strip_suffix("hello@.service").context("the name")?;
    let paths: Vec<String> = names.iter().map(|name| format!("{directory}{name}")).collect();
    for batch in [std::slice::from_ref(&hello), &paths[..]] {
        let start: Vec<&str> = std::iter::once("start").chain(batch.iter().map(String::as_str)).collect();
        let output = shared.try_ctl(&start)?;
        ensure!(output.success() && !output.stderr.contains("rror"), "{output}");
    }
    names.push("hello.service".to_owned());
    assert_eq!(spread(&wait_active(&shared, &names)?), 3);
    Ok(())
}

/// fleet: `TestScheduleMachineOf`
///
/// A machine that is lost, in place of one whose daemon is stopped: Muster's leaves its units where they are.
#[test]
fn test_schedule_machine_of() -> Result<()> {
    let world = World::of(3)?;
    let units: Vec<(String, String)> = (1..=3)
        .flat_map(|pair| {
            let (ping, pong) = (format!("ping.{pair}.service"), format!("pong.{pair}.service"));
            let with_it = format!("MachineOf={ping}");
            [(ping, String::new()), (pong, with_it)]
        })
        .collect();
    let names: Vec<&str> = units.iter().map(|(name, _)| name.as_str()).collect();
    ctl(&world, &["start", "--no-block"], &files(&world, &units)?)?;
    assert_eq!(unit_files(&world)?.len(), 6);
    let together = || -> Result<_> {
        let homes = wait_active(&world, &names)?;
        for pair in 1..=3 {
            let (ping, pong) = (format!("ping.{pair}.service"), format!("pong.{pair}.service"));
            ensure!(homes[&ping] == homes[&pong], "{homes:#?}");
        }
        Ok(homes)
    };
    let before = together()?;
    assert_eq!(spread(&before), 3);
    let lost = &before["ping.1.service"];
    world.by_id(lost)?.kill()?;
    world.wait_machines_up(2)?;
    let after = world.cluster.wait_for("the pair elsewhere", LIMIT, || {
        let homes = together()?;
        ensure!(homes["ping.1.service"] != *lost, "{homes:#?}");
        Ok(Some(homes))
    })?;
    let stayed = before.iter().filter(|(_, home)| *home != lost).all(|(unit, home)| after[unit] == *home);
    ensure!(stayed, "the others have not moved: {before:#?} {after:#?}");
    Ok(())
}

/// fleet: `TestScheduleConflicts`
#[test]
fn test_schedule_conflicts() -> Result<()> {
    let shared = Shared::of(3)?;
    let units: Vec<_> = (0..5)
        .map(|number| (format!("conflict.{number}.service"), "Conflicts=conflict.*.service".to_owned()))
        .collect();
    ctl(&shared, &["start", "--no-block"], &files(&shared, &units)?)?;
    let listed = unit_files(&shared)?;
    assert_eq!(listed, units.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    // Those that were submitted first.
    assert_eq!(spread(&wait_active(&shared, &listed[..3])?), 3);
    for waiting in &listed[3..] {
        wait_reason(&shared, waiting, "no machine takes the unit")?;
    }
    assert_eq!(wait_active(&shared, &listed[..3])?.len(), 3);
    Ok(())
}

/// fleet: `TestScheduleOneWayConflict`
#[test]
fn test_schedule_one_way_conflict() -> Result<()> {
    let shared = Shared::of(1)?;
    shared.start("conflicts-with-hello.service", &hello_with("Conflicts=hello.service"))?;
    let hello = shared.file("hello.service", HELLO)?;
    shared.ctl(&["start", "--no-block", &hello])?;
    wait_reason(&shared, "hello.service", "no machine takes the unit")?;
    wait_active(&shared, &["conflicts-with-hello.service"])?;
    shared.ctl(&["destroy", "conflicts-with-hello.service"])?;
    assert_eq!(unit_files(&shared)?, ["hello.service"]);
    wait_active(&shared, &["hello.service"])?;
    Ok(())
}

/// fleet: `TestScheduleMultipleConflicts`
#[test]
fn test_schedule_multiple_conflicts() -> Result<()> {
    let shared = Shared::of(3)?;
    let units = [
        ("conflict.0.service", "Conflicts=conflict.2.service conflict.1.service conflict.100.service"),
        ("conflict.1.service", "Conflicts=conflict.2.service\nConflicts=conflict.200.service"),
        ("conflict.2.service", "Conflicts=other.*.service\nConflicts=conflict.?.service"),
    ]
    .map(|(name, options)| (name.to_owned(), options.to_owned()));
    ctl(&shared, &["start"], &files(&shared, &units)?)?;
    let homes = wait_active(&shared, &units.map(|(name, _)| name))?;
    assert_eq!(spread(&homes), 3);
    Ok(())
}

/// fleet: `TestScheduleReplace`
///
/// There either of the two moved, by chance; here it is the unit that is replaced.
#[test]
fn test_schedule_replace() -> Result<()> {
    let shared = Shared::of(2)?;
    let units = [
        ("replace.0.service", ""),
        ("replace.1.service", ""),
        ("replace.2.service", "MachineOf=replace.1.service"),
    ]
    .map(|(name, options)| (name.to_owned(), options.to_owned()));
    ctl(&shared, &["start"], &files(&shared, &units)?)?;
    let before = wait_active(&shared, &units.map(|(name, _)| name))?;
    let (old, other) = (&before["replace.0.service"], &before["replace.1.service"]);
    ensure!(old != other && before["replace.2.service"] == *other, "{before:#?}");

    shared.start("replace-kick0.service", &hello_with("Replaces=replace.0.service"))?;
    let all = ["replace-kick0.service", "replace.0.service", "replace.1.service", "replace.2.service"];
    let after = wait_active(&shared, &all)?;
    assert_eq!(all.map(|unit| &after[unit]), [old, other, other, other], "{after:#?}");
    Ok(())
}

/// fleet: `TestScheduleCircularReplace`
///
/// There a unit that replaces one that replaces it was never placed. Here neither makes room for the other where that fits
/// nowhere else, and both run as soon as there are two machines.
#[test]
fn test_schedule_circular_replace() -> Result<()> {
    let shared = Shared::of(1)?;
    shared.start("replace.0.service", &hello_with("Replaces=replace-kick0.service"))?;
    assert_eq!(unit_files(&shared)?, ["replace.0.service"]);
    let before = wait_active(&shared, &["replace.0.service"])?;
    let kick0 = shared.file("replace-kick0.service", &hello_with("Replaces=replace.0.service"))?;
    shared.ctl(&["start", "--no-block", &kick0])?;
    wait_reason(&shared, "replace-kick0.service", "no machine takes the unit")?;
    assert_eq!(unit_files(&shared)?, ["replace-kick0.service", "replace.0.service"]);
    assert_eq!(wait_active(&shared, &["replace.0.service"])?, before);
    let states = shared.ctl(&["list-unit-files", "--no-legend", "--fields", "unit,state"])?;
    assert_eq!(states.matches("launched").count(), 1, "{states}");

    shared.ctl(&["uncordon", shared.cluster.machine("m2")?.machine_id()])?;
    let after = wait_active(&shared, &["replace-kick0.service", "replace.0.service"])?;
    assert_eq!((spread(&after), &after["replace.0.service"]), (2, &before["replace.0.service"]));
    Ok(())
}

/// fleet: `TestScheduleConditionMachineID`
#[test]
fn test_schedule_condition_machine_id() -> Result<()> {
    let shared = Shared::of(3)?;
    let units: Vec<(String, String)> = shared
        .cluster
        .machines()
        .filter(|machine| machine.role().works())
        .map(|machine| {
            (format!("on-{}.service", machine.name()), format!("MachineID={}", machine.machine_id()))
        })
        .collect();
    let names: Vec<&str> = units.iter().map(|(name, _)| name.as_str()).collect();
    ctl(&shared, &["start"], &files(&shared, &units)?)?;
    let homes = wait_active(&shared, &names)?;
    for (unit, home) in &homes {
        assert_eq!(*unit, format!("on-{}.service", shared.by_id(home)?.name()));
    }
    Ok(())
}

/// fleet: `TestScheduleGlobalUnits`, where `restart` of a global unit did nothing
#[test]
fn test_schedule_global_units() -> Result<()> {
    let shared = Shared::of(3)?;
    shared.start("hello.service", HELLO)?;
    shared.start("goodbye.service", HELLO)?;
    wait_active(&shared, &["goodbye.service", "hello.service"])?;
    shared.start("global.service", &hello_with("Global=true"))?;
    let all = [("goodbye.service", 1), ("hello.service", 1), ("global.service", 3)];
    wait_copies(&shared, &all)?;
    let before = shared.invocations()?;
    shared.ctl(&["status", "global.service"])?;
    shared.ctl(&["restart", "global.service"])?;
    wait_copies(&shared, &all)?;
    for (unit, invocation) in shared.invocations()? {
        let restarted = before[&unit] != invocation;
        ensure!(restarted == (unit.0 == "global.service"), "{unit:?} {invocation} {before:#?}");
    }
    Ok(())
}

/// fleet: `TestScheduleGlobalConflicts`
#[test]
fn test_schedule_global_conflicts() -> Result<()> {
    let shared = Shared::of(3)?;
    let options = "Global=true\nConflicts=conflict-global.*.service";
    shared.start("conflict-global.0.service", &hello_with(options))?;
    let expected = [("conflict-global.0.service", 3)];
    wait_copies(&shared, &expected)?;
    let second = shared.file("conflict-global.1.service", &hello_with(options))?;
    // On every machine that takes it: there is none.
    shared.ctl(&["start", &second])?;
    wait_reason(&shared, "conflict-global.1.service", "conflict-global.0.service")?;
    wait_copies(&shared, &expected)?;
    Ok(())
}

/// fleet: `TestTemplatesWithSpecifiersInMetadata`
#[test]
fn test_templates_with_specifiers_in_metadata() -> Result<()> {
    let shared = Shared::of(3)?;
    let template = shared.file("metadata@.service", &hello_with("MachineMetadata=hostname=%i"))?;
    shared.ctl(&["submit", &template])?;
    let names = ["metadata@m3.service", "metadata@m2.service", "metadata@m1.service"];
    for name in names {
        shared.ctl(&["start", name])?;
    }
    let homes = wait_active(&shared, &names)?;
    for (unit, home) in &homes {
        assert_eq!(*unit, format!("metadata@{}.service", shared.by_id(home)?.name()));
    }
    let invalid = shared.try_ctl(&["start", "--timeout", "5", "metadata@invalid.service"])?;
    ensure!(invalid.code == Some(1) && invalid.stderr.contains("hostname=invalid"), "{invalid}");
    Ok(())
}
