//! A cluster that is put back from a backup, into an empty store, while its machines run on.

use anyhow::{Context, Result, ensure};

use super::exclusive::{BEATS, runs_elsewhere_alone};
use super::store::{STATE, with_scheduler_stopped};
use super::support::{LIMIT, SLEEP, World, configure, main_pid};

/// Writes a backup; gives where.
fn back_up(world: &World) -> Result<String> {
    let path = world.file("cluster.backup", "")?;
    let said = world.ctl(&["backup", &path])?;
    ensure!(said.starts_with("Wrote "), "{said}");
    let said = world.ctl(&["check", &path])?;
    ensure!(said.contains(" of cluster "), "{said}");
    Ok(path)
}

/// Has the scheduler start with nothing, and take the backup.
fn restore(world: &World, backup: &str) -> Result<()> {
    with_scheduler_stopped(world, &format!("mv {STATE} /root/moved-away; mkdir {STATE}"))?;
    let said = world.cluster.wait_for("a scheduler to restore it", LIMIT, || {
        world.try_ctl(&["restore", backup])?.ok().map(Some)
    })?;
    ensure!(said.starts_with("Restored "), "{said}");
    Ok(())
}

/// Of all copies, also of those that are orphaned or being stopped.
fn latest_epoch(world: &World) -> Result<(u64, u64)> {
    let epochs = world.rows()?.into_iter().map(|row| {
        let (term, counter) = row.epoch.split_once('.').context("TERM.COUNTER")?;
        Ok((term.parse()?, counter.parse()?))
    });
    epochs.collect::<Result<Vec<_>>>()?.into_iter().max().context("no copies")
}

#[test]
fn a_backup_is_restored_and_nothing_is_stopped_restarted_or_moved() -> Result<()> {
    let world = World::of(3)?;
    // Exclusive units outlast what takes less than a lease.
    let long =
        "lease_ttl = \"2min\"\nrestart_grace = \"2min\"\nbrake_hold = \"2min\"\nsystemd_timeout = \"3min\"";
    configure(&world.scheduler()?, "scheduler", long)?;
    world.wait_machines_up(3)?;
    for unit in ["a.service", "b.service", "again.service", "gone.service"] {
        world.start(unit, SLEEP)?;
    }
    world.start("beats.service", BEATS)?;
    let exclusive = world.home("beats.service")?;
    let backup = back_up(&world)?;
    let refused = world.try_ctl(&["restore", &backup])?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("not empty: it has 5 units"), "{refused}");
    // All that happens since is not in it.
    world.start("later.service", SLEEP)?;
    world.ctl(&["restart", "again.service"])?;
    world.ctl(&["destroy", "gone.service"])?;
    let (before, latest) = (world.invocations()?, latest_epoch(&world)?);
    let pid = main_pid(&exclusive, "beats.service")?;
    ensure!(before.len() == 5, "{before:?}");

    restore(&world, &backup)?;
    world.wait_machines_up(3)?;
    ensure!(main_pid(&exclusive, "beats.service")? == pid, "the exclusive unit was restarted");
    let row = world.cluster.wait_for("later.service to be shown", LIMIT, || {
        Ok(world.rows()?.into_iter().find(|row| row.unit == "later.service"))
    })?;
    assert_eq!((row.copy.as_str(), row.active.as_deref()), ("orphaned", Some("active")));
    // What was destroyed since is wanted again, and is placed under an epoch above all that there ever were.
    world.home("gone.service")?;
    let gone = world.rows()?.into_iter().find(|row| row.unit == "gone.service").context("it is placed")?;
    let (term, _) = gone.epoch.split_once('.').context("TERM.COUNTER")?;
    ensure!(term.parse::<u64>()? > latest.0 + (1 << 20), "{gone:?} after {latest:?}");
    let unchanged = || -> Result<()> {
        let mut after = world.invocations()?;
        after.retain(|(unit, _), _| unit != "gone.service");
        ensure!(after == before, "{after:#?}\ninstead of {before:#?}");
        ensure!(main_pid(&exclusive, "beats.service")? == pid, "the exclusive unit was restarted");
        Ok(())
    };
    unchanged()?;
    // The next process finds it as well.
    world.scheduler()?.exec(&["systemctl", "restart", "muster-scheduler"])?.ok()?;
    world.wait_machines_up(3)?;
    unchanged()?;

    // An operator decides.
    world.ctl(&["destroy", "later.service"])?;
    world.wait_active_state(&world.by_id(&row.machine)?, "later.service", "inactive")
}

/// A machine that is cut off, and knows of later epochs than the backup, does not hear of the restore.
#[test]
fn after_a_restore_an_exclusive_unit_does_not_run_twice_and_no_epoch_repeats() -> Result<()> {
    let world = World::of(3)?;
    world.start("beats.service", BEATS)?;
    let backup = back_up(&world)?;
    for _ in 0..3 {
        world.ctl(&["restart", "beats.service"])?;
    }
    let (home, latest) = (world.home("beats.service")?, latest_epoch(&world)?);
    home.cut()?;
    restore(&world, &backup)?;
    runs_elsewhere_alone(&world, &home)?;
    let now = latest_epoch(&world)?;
    ensure!(now.0 > latest.0 + (1 << 20), "{now:?} after {latest:?}");
    let new = world.home("beats.service")?;
    let pid = main_pid(&new, "beats.service")?;
    home.heal()?;
    world.wait_machines_up(3)?;
    // Its copy is one that the backup does not know of, so that nobody decides its end; but that it has ended already.
    world.cluster.wait_for("the older copy to be shown", LIMIT, || {
        let rows = world.rows()?;
        let orphan = rows.iter().find(|row| row.copy == "orphaned" && row.machine == home.machine_id());
        ensure!(orphan.is_some_and(|row| row.active.as_deref() == Some("failed")), "{rows:#?}");
        Ok(Some(()))
    })?;
    assert_eq!(main_pid(&new, "beats.service")?, pid, "the later copy is the one that stays");
    Ok(())
}
