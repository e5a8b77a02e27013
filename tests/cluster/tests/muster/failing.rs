//! Units that fail, that run to their end, and that wait for others.

use anyhow::{Context, Result, ensure};
use muster_cluster::Machine;

use super::support::{LIMIT, SLEEP, World, configure, property};

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
fn a_unit_that_ran_out_of_something_goes_to_a_machine_with_more_memory() -> Result<()> {
    let world = World::of(3)?;
    let [m1, m2, m3] = ["m1", "m2", "m3"].map(|name| world.cluster.machine(name));
    let (m1, m2, m3) = (m1?, m2?, m3?);
    for (machine, memory) in [(&m1, "1G"), (&m2, "1G"), (&m3, "2G")] {
        configure(machine, "agent", &format!("[capacity]\nmemory = \"{memory}\""))?;
    }
    world.wait_machines_up(3)?;
    // It is where less is free than elsewhere, and the best of the others is not the one with the most memory.
    for number in 1..=3 {
        let beside = format!("{SLEEP}[X-Fleet]\nMachineID={}\n", m3.machine_id());
        world.start(&format!("beside{number}.service"), &beside)?;
    }
    world.ctl(&["cordon", m2.machine_id(), m3.machine_id()])?;
    m3.write_file("/var/lib/settings", b"")?;
    // systemd says `resources` of what it cannot even begin.
    let greedy =
        "[Service]\nType=exec\nEnvironmentFile=/var/lib/settings\nExecStart=/usr/bin/sleep infinity\n";
    let patient = "[X-Muster]\nRescheduleDelay=5s\n";
    world.ctl(&["start", "--no-block", &world.file("greedy.service", &format!("{greedy}{patient}"))?])?;
    world.cluster.wait_for("it to fail", LIMIT, || {
        let status = world.try_ctl(&["status", "greedy.service"])?.stdout;
        ensure!(status.contains("resources"), "{status}");
        Ok(Some(()))
    })?;
    world.ctl(&["uncordon", m2.machine_id(), m3.machine_id()])?;
    assert_eq!(world.home("greedy.service")?.name(), "m3");
    let tried = |machine: &Machine<'_>| -> Result<bool> {
        let journal = machine.exec(&["journalctl", "--unit=greedy.service", "--output=cat"])?.ok()?;
        Ok(journal.contains("greedy.service: Failed"))
    };
    ensure!(tried(&m1)? && !tried(&m2)?, "it was to be tried on m1 and not on m2");
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
fn a_unit_that_is_started_after_one_on_another_machine_waits_for_it_also_when_both_have_moved() -> Result<()>
{
    let world = World::of(3)?;
    let db = "[Service]\nType=exec\nExecStartPre=/bin/sh -c 'until test -e /run/go; do sleep 0.1; done'\n\
              ExecStart=/usr/bin/sleep infinity\n";
    let db = world.file("db.service", db)?;
    let web = world.file("web.service", &format!("{SLEEP}[X-Muster]\nAfter=db.service\n"))?;
    world.ctl(&["start", "--no-block", &web, &db])?;
    let (first, other) = waits_for_db(&world, &[])?;
    first.exec(&["touch", "/run/go"])?.ok()?;
    assert_eq!(world.home("db.service")?.name(), first.name());
    assert_eq!(world.home("web.service")?.name(), other.name());

    // Both on one machine; when that is lost, they are spread over the two that are left.
    let third = world.cluster.machines().find(|m| ![first.name(), other.name(), "s1"].contains(&m.name()));
    let third = third.context("there is a third one")?;
    world.ctl(&["cordon", third.machine_id()])?;
    world.ctl(&["drain", other.machine_id()])?;
    assert_eq!(world.home("web.service")?.name(), first.name());
    world.ctl(&["uncordon", third.machine_id(), other.machine_id()])?;
    first.kill()?;
    let (later, _) = waits_for_db(&world, &[first.name()])?;
    later.exec(&["touch", "/run/go"])?.ok()?;
    world.home_other_than("web.service", &[first.name(), later.name()])?;
    Ok(())
}

/// Waits until `web.service` says that it waits for `db.service`, and sees that it has not been started: the machines of
/// `db.service` and of itself, which are two, and not among these.
fn waits_for_db<'a>(world: &'a World, not: &[&str]) -> Result<(Machine<'a>, Machine<'a>)> {
    let (db, web) = world.cluster.wait_for("it to wait", LIMIT, || {
        for verb in ["explain", "status"] {
            let told = world.try_ctl(&[verb, "web.service"])?.stdout;
            ensure!(told.contains("it is started after db.service, which is not active yet"), "{told}");
        }
        let rows = world.rows()?;
        let on = |unit: &str| {
            let row = rows.iter().find(|row| row.unit == unit && row.copy == "current");
            world.by_id(&row.with_context(|| format!("{rows:#?}"))?.machine)
        };
        let (db, web) = (on("db.service")?, on("web.service")?);
        ensure!(!not.contains(&db.name()) && !not.contains(&web.name()), "{rows:#?}");
        Ok(Some((db, web)))
    })?;
    ensure!(db.name() != web.name(), "both are on {}", db.name());
    assert_eq!(property(&web, "web.service", "ExecMainStartTimestampMonotonic")?, "0");
    Ok((db, web))
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
