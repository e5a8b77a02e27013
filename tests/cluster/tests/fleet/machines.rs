//! Machines that come, go and are cut off.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use muster_cluster::{Machine, Power};

use super::cluster::{HELLO, NONE, ctl, hello_with, spread, wait_active};
use super::support::{LIMIT, LONG, World, configure, main_pid, property, take_id};

/// Three units that are kept apart, each on a machine of its own.
fn start_conflicting(world: &World) -> Result<BTreeMap<String, String>> {
    let names: Vec<String> = (0..3).map(|number| format!("conflict.{number}.service")).collect();
    let content = hello_with("Conflicts=conflict.*.service");
    let files: Vec<String> = names.iter().map(|name| world.file(name, &content)).collect::<Result<_>>()?;
    ctl(world, &["start"], &files)?;
    let homes = wait_active(world, &names)?;
    assert_eq!(spread(&homes), 3);
    Ok(homes)
}

/// Waits until the three are apart again, one of them on another machine than before, and says which.
fn wait_one_moved(world: &World, before: &BTreeMap<String, String>) -> Result<String> {
    let names: Vec<&String> = before.keys().collect();
    world.cluster.wait_for("one unit on another machine", LIMIT, || {
        let after = wait_active(world, &names)?;
        let moved: Vec<&String> =
            names.iter().copied().filter(|name| before[*name] != after[*name]).collect();
        ensure!(spread(&after) == 3 && moved.len() == 1, "{before:#?} {after:#?}");
        Ok(Some(moved[0].clone()))
    })
}

/// fleet: `TestDynamicClusterNewMemberUnitMigration`
///
/// A machine that is lost, in place of one whose daemon is stopped: Muster's leaves its units where they are.
#[test]
fn test_dynamic_cluster_new_member_unit_migration() -> Result<()> {
    let world = World::of(4)?;
    let homes = start_conflicting(&world)?;
    world.by_id(&homes["conflict.1.service"])?.kill()?;
    world.wait_machines_up(3)?;
    assert_eq!(wait_one_moved(&world, &homes)?, "conflict.1.service");
    Ok(())
}

/// fleet: `TestDynamicClusterMemberReboot`
#[test]
fn test_dynamic_cluster_member_reboot() -> Result<()> {
    let world = World::of(3)?;
    let homes = start_conflicting(&world)?;
    let machine = world.cluster.machine("m1")?;
    machine.kill()?;
    // Made anew, as another machine at the same address.
    machine.write_file("/etc/machine-id", b"0123456789abcdef0123456789abcdef\n")?;
    machine.boot()?;
    wait_one_moved(&world, &homes)?;
    Ok(())
}

/// What the machine's PID 1 has said of the unit, in all boots. The machine may be off.
fn pid1_on(machine: &Machine<'_>, unit: &str) -> Result<String> {
    let output = machine.journal_command(&["_PID=1", &format!("UNIT={unit}")])?.output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// fleet: `TestNodeShutdown`
///
/// The machine is switched off. Where only its daemon is stopped, its units run on, see `test_shutdown`.
#[test]
fn test_node_shutdown() -> Result<()> {
    let world = World::of(2)?;
    let (first, second) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    second.kill()?;
    world.wait_machines_up(1)?;
    let template = world.file("pin@.service", &hello_with("MachineID=%i"))?;
    world.ctl(&["submit", &template])?;
    let name = format!("pin@{}.service", first.machine_id());
    world.ctl(&["start", &name])?;
    wait_active(&world, &[&name])?;
    second.boot()?;
    world.wait_machines_up(2)?;

    first.exec(&["systemctl", "--no-block", "poweroff"])?.ok()?;
    world.cluster.wait_for("m1 to be off", LIMIT, || Ok((first.power() == Power::Off).then_some(())))?;
    world.wait_machines_up(1)?;
    let listed = world.ctl(&["list-machines", "--no-legend", "--full"])?;
    ensure!(listed.lines().count() == 1 && listed.contains(second.machine_id()), "{listed}");
    wait_active(&world, &NONE)?;
    let journal = pid1_on(&first, &name)?;
    ensure!(journal.contains("Stopped"), "it was stopped in order: {journal}");
    Ok(())
}

/// fleet: `TestDetectMachineId`
///
/// There nobody could use the second machine's daemon. Here the scheduler names both, and goes on with the first.
#[test]
fn test_detect_machine_id() -> Result<()> {
    let world = World::of(2)?;
    let (first, second) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    take_id(&second, first.machine_id())?;
    world.wait_listed(first.machine_id(), first.address(), Some(second.address()))?;
    assert_eq!(property(&second, "muster-agent.service", "ActiveState")?, "active");
    world.start("hello.service", HELLO)?;
    world.wait_active_state(&first, "hello.service", "active")?;
    assert_eq!(property(&second, "hello.service", "LoadState")?, "not-found");

    // The first takes a new id, and the second has its own back.
    let id = "0123456789abcdef0123456789abcdef";
    take_id(&first, id)?;
    world.wait_listed(id, first.address(), None)?;
    take_id(&second, second.machine_id())?;
    world.wait_listed(second.machine_id(), second.address(), None)
}

/// What systemd says of a unit on the machine.
fn states(machine: &Machine<'_>, units: &[String]) -> Result<Vec<String>> {
    let properties = "--property=LoadState,ActiveState,SubState,UnitFileState,InvocationID";
    units.iter().map(|unit| machine.exec(&["systemctl", "show", properties, unit])?.ok()).collect()
}

/// fleet: `TestSingleNodeConnectivityLoss`
#[test]
fn test_single_node_connectivity_loss() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    let mut units = Vec::new();
    let verbs = [
        ("submit", "submitted", "inactive"),
        ("load", "loaded", "loaded"),
        ("start", "launched", "launched"),
    ];
    for (verb, state, _) in verbs {
        for (kind, options) in [("single", ""), ("global", "Global=true")] {
            let name = format!("{kind}@{state}.service");
            world.ctl(&[verb, &world.file(&name, &hello_with(options))?])?;
            units.push(name);
        }
    }
    let expected = |world: &World| -> Result<()> {
        let listed = world.ctl(&["list-unit-files", "--no-legend", "--fields", "unit,dstate"])?;
        for (_, state, desired) in verbs {
            for kind in ["single", "global"] {
                let name = format!("{kind}@{state}.service");
                let row = listed.lines().find(|line| line.starts_with(&name)).context(listed.clone())?;
                ensure!(row.ends_with(desired), "{listed}");
            }
        }
        wait_active(world, &["global@launched.service", "single@launched.service"])?;
        Ok(())
    };
    expected(&world)?;
    let before = states(&machine, &units)?;

    machine.cut()?;
    world.wait_machines_up(0)?;
    world.outlast(LONG)?;
    assert_eq!(states(&machine, &units)?, before);
    machine.heal()?;
    world.wait_machines_up(1)?;
    expected(&world)?;
    world.outlast(LONG)?;
    expected(&world)?;
    assert_eq!(states(&machine, &units)?, before);
    for unit in ["single@launched.service", "global@launched.service"] {
        let journal = pid1_on(&machine, unit)?;
        ensure!(journal.contains("Started") && !journal.contains("Stopping"), "{journal}");
    }
    Ok(())
}

/// fleet: `TestReconfigureServer`
///
/// SIGHUP left fleetd half dead. Muster's daemons take a new configuration by a restart, which no unit notices.
#[test]
fn test_reconfigure_server() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    world.start("hello.service", HELLO)?;
    wait_active(&world, &["hello.service"])?;
    let pid = main_pid(&machine, "hello.service")?;
    configure(&world.scheduler()?, "scheduler", "brake_hold = \"10m\"")?;
    configure(&machine, "agent", "new = \"label\"")?;
    for (machine, service) in
        [(world.scheduler()?, "muster-scheduler.service"), (machine, "muster-agent.service")]
    {
        assert_eq!(property(&machine, service, "ActiveState")?, "active", "{service}");
        assert_eq!(property(&machine, service, "Result")?, "success", "{service}");
    }
    world.wait_machines_up(1)?;
    wait_active(&world, &["hello.service"])?;
    world.cluster.wait_for("the new label", LIMIT, || {
        let listed = world.ctl(&["list-machines"])?;
        ensure!(listed.contains("new=label"), "{listed}");
        Ok(Some(()))
    })?;
    assert_eq!(main_pid(&machine, "hello.service")?, pid, "it was not restarted");
    Ok(())
}

/// Stops a daemon, which must end as it should.
fn stop(machine: &Machine<'_>, service: &str) -> Result<()> {
    machine.exec(&["systemctl", "stop", service])?.ok()?;
    assert_eq!(property(machine, service, "ActiveState")?, "inactive", "{service}");
    assert_eq!(property(machine, service, "Result")?, "success", "{service}");
    Ok(())
}

/// fleet: `TestShutdown`
///
/// fleetd ended its units with itself; Muster's agent does not.
#[test]
fn test_shutdown() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    world.start("hello.service", HELLO)?;
    let pid = main_pid(&machine, "hello.service")?;
    stop(&machine, "muster-agent.service")?;
    stop(&world.scheduler()?, "muster-scheduler.service")?;
    assert_eq!(main_pid(&machine, "hello.service")?, pid, "it runs on");
    Ok(())
}

/// fleet: `TestShutdownVsMonitor`
#[test]
fn test_shutdown_vs_monitor() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    machine.cut()?;
    world.wait_machines_up(0)?;
    // It has known since before that its lease is over, and tries to connect again.
    stop(&machine, "muster-agent.service")
}
