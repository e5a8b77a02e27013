//! What an operator types, and what a mistake gets.

use anyhow::{Result, ensure};
use muster_cluster::Cluster;

use super::support::{LIMIT, SLEEP, World, main_pid, property};

#[test]
fn a_unit_goes_through_all_its_states() -> Result<()> {
    let world = World::of(2)?;
    let file = world.file("life.service", SLEEP)?;
    assert_eq!(world.ctl(&["submit", &file])?.trim(), "Unit life.service inactive");
    ensure!(world.ctl(&["load", "life"])?.starts_with("Unit life.service loaded on "));
    let out = world.ctl(&["start", "life.service"])?;
    let home = world.home("life.service")?;
    ensure!(
        out.contains(&format!(
            "Unit life.service launched on {}.../{}",
            &home.machine_id()[..8],
            home.address()
        )),
        "{out}"
    );
    let pid = main_pid(&home, "life.service")?;
    world.ctl(&["restart", "life"])?;
    let home = world.home("life.service")?;
    assert_ne!(main_pid(&home, "life.service")?, pid, "a restart restarts");
    world.ctl(&["stop", "lif*"])?;
    world.wait_active_state(&home, "life.service", "inactive")?;
    world.ctl(&["start", "life"])?;
    assert_eq!(world.home("life.service")?.name(), home.name(), "it starts where it was");
    assert_eq!(world.ctl(&["cat", "life"])?, SLEEP, "byte for byte");
    world.ctl(&["unload", "life"])?;
    world.wait_active_state(&home, "life.service", "inactive")?;
    assert_eq!(property(&home, "life.service", "LoadState")?, "not-found");
    world.ctl(&["start", "life"])?;
    assert_eq!(world.ctl(&["destroy", "life"])?.trim(), "Destroyed life.service");
    assert_eq!(world.ctl(&["list-unit-files", "--no-legend"])?, "");
    world.wait_active_state(&home, "life.service", "inactive")?;
    Ok(())
}

#[test]
fn changed_content_is_taken_with_replace_only() -> Result<()> {
    let world = World::of(1)?;
    world.start("u.service", SLEEP)?;
    let changed = "[Service]\nExecStart=/usr/bin/sleep 100000\n";
    let file = world.file("u.service", changed)?;
    let output = world.try_ctl(&["start", &file])?;
    ensure!(output.stderr.contains("WARNING: Unit u.service in registry differs"), "{output}");
    assert_eq!(world.ctl(&["cat", "u"])?, SLEEP);
    world.ctl(&["start", "--replace", &file])?;
    let home = world.home("u.service")?;
    let pid = main_pid(&home, "u.service")?;
    let command = home.exec(&["cat", &format!("/proc/{pid}/cmdline")])?.ok()?;
    ensure!(command.contains("100000"), "the new content runs: {command:?}");
    Ok(())
}

#[test]
fn the_machines_own_units_are_never_touched() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    machine.write_file("/etc/systemd/system/mine.service", SLEEP.as_bytes())?;
    machine.exec(&["systemctl", "start", "mine.service"])?.ok()?;
    let pid = main_pid(&machine, "mine.service")?;
    let output = world.try_ctl(&["start", &world.file("mine.service", SLEEP)?])?;
    ensure!(!output.success() && output.stderr.contains("/etc/systemd/system/mine.service"), "{output}");
    world.ctl(&["destroy", "mine.service"])?;
    assert_eq!(main_pid(&machine, "mine.service")?, pid, "it runs on");
    Ok(())
}

#[test]
fn what_systemd_says_reaches_the_user() -> Result<()> {
    let world = World::of(1)?;
    let bad = world.file("bad.service", "[Service]\nType=oneshot\nExecStart=not/absolute\n")?;
    let output = world.try_ctl(&["start", &bad])?;
    ensure!(!output.success() && output.stderr.contains("bad.service"), "{output}");
    ensure!(
        output.stderr.contains("bad unit file setting") || output.stderr.contains("bad-setting"),
        "{output}"
    );
    let failing = world.file("failing.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")?;
    let output = world.try_ctl(&["start", &failing])?;
    ensure!(!output.success() && output.stderr.contains("failed"), "{output}");
    let status = world.try_ctl(&["status", "failing"])?;
    assert_eq!(status.code, Some(3), "{status}");
    Ok(())
}

#[test]
fn a_unit_that_fits_nowhere_waits_and_says_why() -> Result<()> {
    let world = World::up(Cluster::builder().machines(2).label("m1", "disk", "hdd"))?;
    let file = world.file("picky.service", &format!("{SLEEP}[X-Fleet]\nMachineMetadata=disk=ssd\n"))?;
    world.ctl(&["start", "--no-block", &file])?;
    let status = world.cluster.wait_for("the reasons", LIMIT, || {
        let status = world.try_ctl(&["status", "picky"])?;
        ensure!(status.stdout.contains("no machine takes the unit"), "{status}");
        Ok(Some(status))
    })?;
    ensure!(status.stdout.contains("needs the label disk=ssd, the machine has hdd"), "{status}");
    ensure!(status.stdout.contains("needs the label disk=ssd, the machine has none of that key"), "{status}");
    Ok(())
}

#[test]
fn an_unreachable_scheduler_says_what_was_tried() -> Result<()> {
    let world = World::of(1)?;
    world.scheduler()?.exec(&["systemctl", "stop", "muster-scheduler.service"])?.ok()?;
    let output = world.try_ctl(&["list-machines"])?;
    assert_eq!(output.code, Some(69), "{output}");
    ensure!(output.stderr.contains(&world.cluster.endpoints()[0]), "{output}");
    ensure!(output.stderr.contains("systemctl status muster-scheduler"), "{output}");
    Ok(())
}
