//! Units that fail, that run to their end, and that wait for others.

use anyhow::{Result, ensure};

use super::support::{LIMIT, SLEEP, World, property};

const QUICK: &str = "[X-Muster]\nRescheduleDelay=200ms\n";

#[test]
fn a_unit_that_fails_on_some_machines_comes_to_run_where_it_does_not() -> Result<()> {
    let world = World::of(3)?;
    for bad in ["m1", "m2"] {
        world.cluster.machine(bad)?.exec(&["touch", "/var/lib/bad"])?.ok()?;
    }
    // It has been started before it fails: nobody waits for it any more.
    let picky = "[Service]\nType=exec\nExecStart=/bin/sh -c 'sleep 0.2; test ! -e /var/lib/bad && exec sleep infinity'\n";
    let path = world.file("picky.service", &format!("{picky}{QUICK}"))?;
    world.try_ctl(&["start", &path])?;
    assert_eq!(world.home_other_than("picky.service", &["m1", "m2"])?.name(), "m3");
    world.cluster.wait_for("it to last", LIMIT, || {
        let told = world.ctl(&["explain", "picky.service"])?;
        Ok(told.contains("has started on").then_some(()))
    })?;
    assert_eq!(world.home("picky.service")?.name(), "m3");
    for bad in ["m1", "m2"] {
        let state = property(&world.cluster.machine(bad)?, "picky.service", "LoadState")?;
        assert_eq!(state, "not-found", "nothing is left of it on {bad}");
    }
    Ok(())
}

#[test]
fn a_unit_that_fails_everywhere_is_given_up_and_says_so() -> Result<()> {
    let world = World::of(2)?;
    let bad = "[Service]\nType=exec\nExecStart=/bin/false\n[X-Muster]\nRescheduleDelay=200ms\nRescheduleAttempts=2\n";
    let path = world.file("bad.service", bad)?;
    world.try_ctl(&["start", &path])?;
    world.cluster.wait_for("it to be given up", LIMIT, || {
        let status = world.try_ctl(&["status", "bad.service"])?.stdout;
        ensure!(status.contains("given up: it failed 3 times"), "{status}");
        ensure!(status.contains("every machine that takes it"), "{status}");
        Ok(Some(()))
    })?;
    let events = world.ctl(&["events", "bad.service"])?;
    ensure!(events.contains("unit_given_up"), "{events}");
    Ok(())
}

#[test]
fn a_one_shot_unit_that_ended_well_is_not_run_again_when_its_machine_is_lost() -> Result<()> {
    let world = World::of(2)?;
    let job = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo ran >> /var/lib/job'\n";
    world.start("job.service", job)?;
    world.cluster.wait_for("it to be done", LIMIT, || {
        Ok(world.try_ctl(&["status", "job.service"])?.stdout.contains("Done").then_some(()))
    })?;
    let row = world.rows()?.into_iter().find(|row| row.unit == "job.service");
    let home = world.by_id(&row.expect("it is listed").machine)?;
    world.start("beside.service", &format!("{SLEEP}[X-Fleet]\nMachineOf=job.service\n"))?;
    home.kill()?;
    let other = world.home_other_than("beside.service", &[home.name()])?;
    world.wait_active_state(&other, "job.service", "inactive")?;
    ensure!(other.exec(&["test", "-e", "/var/lib/job"])?.code == Some(1), "it was run again");
    world.ctl(&["start", "job.service"])?;
    world.cluster.wait_for("it to run when somebody asks for it", LIMIT, || {
        Ok((other.exec(&["test", "-e", "/var/lib/job"])?.code == Some(0)).then_some(()))
    })
}

#[test]
fn a_unit_starts_once_what_it_requires_is_active_on_another_machine() -> Result<()> {
    let world = World::of(2)?;
    let [m1, m2] = ["m1", "m2"].map(|name| world.cluster.machine(name));
    let (m1, m2) = (m1?, m2?);
    let on = |id: &str| format!("[X-Fleet]\nMachineID={id}\n");
    let db = "[Service]\nType=exec\nExecStartPre=/bin/sh -c 'until test -e /run/go; do sleep 0.1; done'\n\
              ExecStart=/usr/bin/sleep infinity\n";
    let db = world.file("db.service", &format!("{db}{}", on(m1.machine_id())))?;
    let web = format!("{SLEEP}{}[X-Muster]\nRequires=db.service\n", on(m2.machine_id()));
    let web = world.file("web.service", &web)?;
    world.ctl(&["start", "--no-block", &web, &db])?;
    world.cluster.wait_for("it to wait", LIMIT, || {
        let status = world.try_ctl(&["status", "web.service"])?.stdout;
        ensure!(status.contains("it requires db.service, which is not active yet"), "{status}");
        Ok(Some(()))
    })?;
    assert_eq!(property(&m2, "web.service", "ActiveState")?, "inactive");
    m1.exec(&["touch", "/run/go"])?.ok()?;
    assert_eq!(world.home("web.service")?.name(), "m2");
    Ok(())
}

#[test]
fn a_unit_that_keeps_to_its_machine_is_started_there_after_a_reboot() -> Result<()> {
    let world = World::of(2)?;
    world.start("keeps.service", &format!("{SLEEP}[X-Muster]\nOnReboot=keep\n"))?;
    let home = world.home("keeps.service")?;
    home.reboot()?;
    world.wait_machines_up(2)?;
    assert_eq!(world.home("keeps.service")?.name(), home.name());
    Ok(())
}
