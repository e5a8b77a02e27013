//! A cluster that is put back from a backup, into an empty store, while its machines run on.

use anyhow::{Context, Result, ensure};
use muster_cluster::{Cluster, Machine};

use super::exclusive::{BEATS, runs_elsewhere_alone};
use super::several::etcdctl;
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

const LONG_LEASES: [&str; 4] = [
    "lease_ttl = \"5min\"",
    "restart_grace = \"5min\"",
    "brake_hold = \"5min\"",
    "systemd_timeout = \"6min\"",
];

fn schedulers(world: &World) -> Vec<Machine<'_>> {
    world.cluster.machines().filter(|machine| machine.role().schedules()).collect()
}

/// Runs a script on each of these.
fn on(machines: &[Machine<'_>], script: &str) -> Result<()> {
    machines.iter().try_for_each(|machine| machine.exec(&["sh", "-ec", script])?.ok().map(drop))
}

/// Names these in every `agent.toml`.
fn name_in_agents(world: &World, schedulers: &[Machine<'_>], then: &str) -> Result<()> {
    let named: Vec<_> = schedulers.iter().map(|machine| format!("\"{}:7400\"", machine.address())).collect();
    let named = named.join(", ");
    let script =
        format!("sed -i 's/^schedulers = .*/schedulers = [{named}]/' /etc/muster/agent.toml; {then}");
    let workers: Vec<_> = world.cluster.machines().filter(|machine| machine.role().works()).collect();
    on(&workers, &script)
}

/// For a move: a cluster of which one scheduler is known, with a file of its own; etcd is there, and has nothing.
fn begin() -> Result<(World, String)> {
    let world = World::up(Cluster::builder().machines(2).schedulers(3))?;
    let schedulers = schedulers(&world);
    let table = schedulers[0].exec(&["sed", "-n", "/^\\[etcd\\]/,$p", "/etc/muster/scheduler.toml"])?.ok()?;
    ensure!(table.contains("endpoints"), "{table}");
    let forget = format!(
        "systemctl disable --now muster-scheduler; rm -r {STATE}/*; sed -i '/^\\[etcd\\]/,$d' /etc/muster/scheduler.toml"
    );
    on(&schedulers, &forget)?;
    etcdctl(&world.etcd()[0], &["del", "--prefix", "/muster/"])?;
    on(&schedulers[..1], "systemctl enable --now muster-scheduler")?;
    let rejoin = "systemctl stop muster-agent; rm /var/lib/muster/agent.json; systemctl start muster-agent";
    name_in_agents(&world, &schedulers[..1], rejoin)?;
    world.wait_machines_up(2)?;
    drop(schedulers);
    Ok((world, table))
}

/// Steps 1 to 3 of a move in `docs/backup.md`.
fn leave(world: &World, from: &[Machine<'_>]) -> Result<String> {
    let insert = LONG_LEASES.map(|line| format!("sed -i '1i {line}' /etc/muster/scheduler.toml")).join("; ");
    on(from, &format!("{insert}; systemctl restart muster-scheduler"))?;
    world.wait_machines_up(2)?;
    let backup = back_up(world)?;
    on(from, "systemctl stop muster-scheduler")?;
    Ok(backup)
}

/// Steps 5 to 7.
fn arrive(world: &World, at: &[Machine<'_>], backup: &str) -> Result<()> {
    on(at, "systemctl enable --now muster-scheduler")?;
    let said = world.ctl(&["restore", backup])?;
    ensure!(said.starts_with("Restored "), "{said}");
    name_in_agents(world, at, "systemctl restart muster-agent")?;
    world.wait_machines_up(2)?;
    let remove = LONG_LEASES.map(|line| format!("sed -i '/^{line}/d' /etc/muster/scheduler.toml")).join("; ");
    on(at, &format!("{remove}; systemctl restart muster-scheduler"))?;
    world.wait_followers(at.len() - 1)?;
    world.wait_machines_up(2)
}

/// As `docs/backup.md` says it, step by step.
#[test]
fn a_cluster_is_moved_to_etcd_and_back_under_units_that_run_on() -> Result<()> {
    let (world, table) = begin()?;
    let all = schedulers(&world);
    for unit in ["a.service", "b.service"] {
        world.start(unit, SLEEP)?;
    }
    world.start("everywhere.service", &format!("{SLEEP}[X-Fleet]\nGlobal=true\n"))?;
    world.start("beats.service", BEATS)?;
    let before = world.cluster.wait_for("all units to run", LIMIT, || {
        let running = world.invocations()?;
        ensure!(running.len() == 5, "{running:#?}");
        Ok(Some(running))
    })?;

    let backup = leave(&world, &all[..1])?;
    for machine in &all {
        machine
            .exec_within(LIMIT, &["sh", "-c", "cat >>/etc/muster/scheduler.toml"], table.as_bytes())?
            .ok()?;
    }
    arrive(&world, &all, &backup)?;
    world.wait_invocations(&before)?;
    // Any of them leads this cluster.
    let led = world.leader_other_than(&[])?;
    world.ctl(&["step-down"])?;
    world.leader_other_than(&[led.name()])?;
    world.start("later.service", SLEEP)?;
    world.ctl(&["destroy", "later.service"])?;
    world.wait_invocations(&before)?;

    let backup = leave(&world, &all)?;
    on(&all[1..], "systemctl disable muster-scheduler")?;
    let back = format!("sed -i '/^\\[etcd\\]/,$d' /etc/muster/scheduler.toml; mv {STATE}/muster.redb /root");
    on(&all[..1], &back)?;
    arrive(&world, &all[..1], &backup)?;
    world.wait_invocations(&before)
}
