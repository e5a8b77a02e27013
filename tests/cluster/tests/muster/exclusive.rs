//! Exclusive units: never two at once, whoever is cut off, frozen or dead.

use anyhow::{Context, Result, ensure};
use muster_cluster::Machine;

use super::support::{LIMIT, SLEEP, World, main_pid, property};

/// A service that writes down ten times a second that it runs, and pays no heed to SIGTERM. All machines have the host's
/// clock.
pub const BEATS: &str = "[Service]\nType=exec\nExecStart=/bin/sh -c 'trap \"\" TERM; while :; do date +%%s.%%N >> \
                     /var/lib/beats; sleep 0.1; done'\n[X-Muster]\nExclusive=yes\nExclusiveStopSec=3\n";

fn beats(machine: &Machine<'_>) -> Result<Vec<f64>> {
    let lines = machine.exec(&["cat", "/var/lib/beats"])?;
    // The last line may be half written.
    let whole = lines.stdout.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.parse().context("a moment")).collect()
}

/// Waits until the unit runs on another machine, and sees that it had ended on this one before.
pub fn runs_elsewhere_alone(world: &World, old: &Machine<'_>) -> Result<()> {
    let new = world.home_other_than("beats.service", &[old.name()])?;
    let first =
        world.cluster.wait_for("its first word there", LIMIT, || Ok(beats(&new)?.first().copied()))?;
    let last = *beats(old)?.last().context("it has run here")?;
    ensure!(last < first, "it ran on {} until {last}, and on {} from {first}", old.name(), new.name());
    Ok(())
}

#[test]
fn an_exclusive_unit_has_ended_on_a_machine_that_is_cut_off_before_it_starts_elsewhere() -> Result<()> {
    let world = World::of(3)?;
    world.start("beats.service", BEATS)?;
    world.start("other.service", SLEEP)?;
    let home = world.home("beats.service")?;
    assert_eq!(property(&home, "beats.service", "BindsTo")?, "muster-lease.service");
    home.cut()?;
    runs_elsewhere_alone(&world, &home)?;
    let explained = world.ctl(&["explain", "beats.service"])?;
    ensure!(explained.contains("its machine was lost"), "{explained}");
    // By hand neither.
    let by_hand = home.exec(&["systemctl", "start", "beats.service"])?;
    ensure!(by_hand.code != Some(0), "it was started without a lease: {by_hand}");
    let new = world.home("beats.service")?;
    let pid = main_pid(&new, "beats.service")?;
    home.heal()?;
    world.wait_machines_up(3)?;
    world.wait_active_state(&home, "beats.service", "inactive")?;
    assert_eq!(main_pid(&new, "beats.service")?, pid, "the later copy is the one that stays");
    Ok(())
}

#[test]
fn an_exclusive_unit_has_ended_on_a_machine_of_which_only_one_direction_is_lost() -> Result<()> {
    let world = World::of(2)?;
    let scheduler = world.scheduler()?;
    world.start("beats.service", BEATS)?;
    for mute in [true, false] {
        let home = world.home("beats.service")?;
        if mute { home.lose(&scheduler) } else { scheduler.lose(&home) }?;
        runs_elsewhere_alone(&world, &home)?;
        let new = world.home("beats.service")?;
        let pid = main_pid(&new, "beats.service")?;
        home.heal()?;
        world.wait_machines_up(2)?;
        world.wait_active_state(&home, "beats.service", "inactive")?;
        assert_eq!(main_pid(&new, "beats.service")?, pid, "the later copy is the one that stays");
        // It may come back.
        home.exec(&["rm", "/var/lib/beats"])?.ok()?;
    }
    Ok(())
}

#[test]
fn an_exclusive_unit_has_ended_where_the_agent_stands_still_before_it_starts_elsewhere() -> Result<()> {
    let world = World::of(2)?;
    world.start("beats.service", BEATS)?;
    let home = world.home("beats.service")?;
    let agent = main_pid(&home, "muster-agent")?;
    home.exec(&["kill", "-STOP", &agent])?.ok()?;
    runs_elsewhere_alone(&world, &home)?;
    let new = world.home("beats.service")?;
    // It may have been killed by its watchdog meanwhile.
    home.exec(&["kill", "-CONT", &agent])?;
    world.wait_machines_up(2)?;
    world.wait_active_state(&home, "beats.service", "inactive")?;
    assert_eq!(world.home("beats.service")?.name(), new.name());
    Ok(())
}

#[test]
fn restarts_of_agent_and_scheduler_leave_an_exclusive_unit_alone() -> Result<()> {
    let world = World::of(2)?;
    world.start("beats.service", BEATS)?;
    let home = world.home("beats.service")?;
    let before = world.invocations()?;
    home.exec(&["systemctl", "restart", "muster-agent"])?.ok()?;
    world.wait_machines_up(2)?;
    home.exec(&["systemctl", "kill", "--signal=KILL", "muster-agent"])?.ok()?;
    world.scheduler()?.exec(&["systemctl", "restart", "muster-scheduler"])?.ok()?;
    world.wait_machines_up(2)?;
    // Longer than the lease that was granted to the first of these agents.
    let until = beats(&home)?.last().context("it runs")? + 8.0;
    world.cluster.wait_for("eight seconds of its life", LIMIT, || {
        Ok(beats(&home)?.last().is_some_and(|last| *last > until).then_some(()))
    })?;
    assert_eq!(world.invocations()?, before);
    Ok(())
}

#[test]
fn a_drained_exclusive_unit_stops_before_it_starts_elsewhere() -> Result<()> {
    let world = World::of(2)?;
    world.start("beats.service", BEATS)?;
    let home = world.home("beats.service")?;
    world.ctl(&["drain", home.machine_id()])?;
    runs_elsewhere_alone(&world, &home)
}

#[test]
fn an_exclusive_unit_whose_machine_lost_its_power_and_is_back_waits_for_no_lease() -> Result<()> {
    let world = World::of(2)?;
    // To wait for its end on a machine of which nothing is heard would take longer than anything here may.
    world.start("slow.service", &format!("{SLEEP}[X-Muster]\nExclusive=yes\nExclusiveStopSec=300\n"))?;
    let home = world.home("slow.service")?;
    let before = world.invocations()?;
    home.kill()?;
    home.boot()?;
    world.home("slow.service")?;
    world.cluster.wait_for("another start of it", LIMIT, || {
        let now = world.invocations()?;
        ensure!(now.len() == 1 && now != before, "{now:?}");
        Ok(Some(()))
    })
}
