//! One cell of the matrix, from a clean cluster to a clean cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::beats::{Overlap, overlaps};
use crate::cell::{Cell, Fault, Situation};
use crate::strike::Blow;
use crate::world::{Found, LIMIT, ONLY, World, each_runs_once};

pub(crate) const STEADY: &str = "[Service]\nExecStart=/usr/bin/sleep infinity\n";
/// It writes down that it runs, ten times a second.
pub(crate) const BEATS: &str =
    "[Service]\nExecStart=/usr/lib/muster-cluster/beat %n\n[X-Muster]\nExclusive=yes\nExclusiveStopSec=2\n";
/// Only what systemd stops waits for it.
pub(crate) const SLOW: &str = "[Service]\nExecStart=/usr/bin/sleep infinity\nExecStop=/usr/bin/sleep 3\n";
const STEADY_UNITS: usize = 9;
const SLOW_UNITS: usize = 12;
const BATCH_UNITS: usize = 100;
/// How many units are in one command: of the commands some are acknowledged before the fault, some never.
const BATCH: usize = 10;
/// How long a cluster is watched once all is as it should be: more than a lease, and the time to act on its end.
const WATCHED: Duration = Duration::from_secs(7);
/// How long a client waits for an answer.
const CLIENT_WAITS: Duration = Duration::from_secs(20);

/// What came of a cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Seconds from the fault's end until all was as it should be.
    pub(crate) settled: f64,
    /// How long the exclusive unit ran twice: 0, but where no lease covers that.
    pub(crate) overlap: f64,
}

pub(crate) fn run(world: &World, cell: Cell) -> Result<Outcome> {
    let blow = Blow::of(world, cell.fault, cell.target)?;
    let beats_before = world.cluster.witness()?.len();
    let mut expected = set_up(world, cell.situation)?;
    let undisturbed = undisturbed(world, &blow, cell)?;

    let began = begin(world, &blow, cell.situation, &mut expected)?;
    let (settled, acknowledged) = thread::scope(|scope| -> Result<_> {
        let rest = scope.spawn(|| began.go_on(world));
        blow.strike(world).context("the fault cannot be made")?;
        // How long it lasts is part of what is tried.
        thread::sleep(blow.lasts);
        blow.mend(world).context("the fault cannot be ended")?;
        let ended = Instant::now();
        let acknowledged = rest.join().map_err(|_| anyhow!("a client panicked"))?;
        expected.active.extend(acknowledged.iter().cloned());
        let left = cell.bound().saturating_sub(ended.elapsed());
        world
            .until("all as it should be", left, || expected.is_met(world))
            .with_context(|| format!("within {} s after the fault", cell.bound().as_secs()))?;
        Ok((ended.elapsed(), acknowledged))
    })?;

    // What a fault brings about may show later: when the lease is over that it kept from being renewed.
    thread::sleep(WATCHED);
    expected.is_met(world).context("it was as it should be, and is not any more")?;
    expected.each_is_known(world, &acknowledged)?;
    world.ensure_untouched(&undisturbed, cell.fault == Fault::OutOfMemory)?;
    until_heard(world)?;
    let beats = world.cluster.witness()?;
    let overlaps = overlaps(beats.get(beats_before..).unwrap_or_default());
    let most = cell.may_overlap();
    let allowed =
        |overlap: &&Overlap| most.is_some_and(|most| overlap.is_of(&blow.machine) && overlap.lasted <= most);
    let twice: Vec<String> =
        overlaps.iter().filter(|overlap| !allowed(overlap)).map(ToString::to_string).collect();
    ensure!(
        twice.is_empty(),
        "an exclusive unit ran twice ({}): {}",
        most.map_or_else(
            || "never allowed here".to_owned(),
            |most| format!("{most:?} of {} are allowed", blow.machine)
        ),
        twice.join(", ")
    );
    clean(world)?;
    let overlap = overlaps.iter().map(|overlap| overlap.lasted.as_secs_f64()).fold(0.0, f64::max);
    Ok(Outcome { settled: settled.as_secs_f64(), overlap })
}

/// Waits for the exclusive unit's own word, from where it is found.
fn until_heard(world: &World) -> Result<()> {
    let homes = world.homes()?;
    let found = homes.get(ONLY).map(Vec::as_slice).unwrap_or_default();
    ensure!(!found.is_empty(), "{ONLY} is nowhere");
    world.until_heard(found)
}

/// What is to be so in the end.
#[derive(Debug, Default)]
struct Expected {
    active: BTreeSet<String>,
    ended: BTreeSet<String>,
    /// The worker that is to be empty.
    drained: Option<String>,
}

impl Expected {
    fn is_met(&self, world: &World) -> Result<()> {
        world.all_up()?;
        let homes = world.homes()?;
        each_runs_once(&homes, &self.active, &self.ended)?;
        if let Some(drained) = &self.drained {
            let left: Vec<&Found> =
                homes.values().flatten().filter(|found| found.machine == *drained).collect();
            ensure!(left.is_empty(), "{drained} is not empty: {left:?}");
        }
        Ok(())
    }

    /// What was acknowledged is there.
    fn each_is_known(&self, world: &World, acknowledged: &[String]) -> Result<()> {
        let listed = world.ctl(&["list-unit-files", "--no-legend", "--fields", "unit"], &[])?;
        let known: BTreeSet<&str> = listed.lines().map(str::trim).collect();
        for unit in acknowledged.iter().chain(&self.active).chain(&self.ended) {
            ensure!(known.contains(&**unit), "{unit} was acknowledged, and is not known any more");
        }
        Ok(())
    }
}

/// The units that the fault is no reason to touch, as they are.
fn undisturbed(world: &World, blow: &Blow, cell: Cell) -> Result<Vec<Found>> {
    let drained = (cell.situation == Situation::Draining).then(|| drained(world, blow)).transpose()?;
    let touched = |found: &Found| {
        found.unit.starts_with("slow")
            || Some(&found.machine) == drained.as_ref()
            || (found.machine == blow.machine && cell.moves_its_units())
            || (found.unit == ONLY && cell.ends_exclusive())
    };
    Ok(world.homes()?.into_values().flatten().filter(|found| !touched(found)).collect())
}

/// The worker that is drained: the broken one, or where the exclusive unit is.
fn drained(world: &World, blow: &Blow) -> Result<String> {
    let works = world.cluster.machine(&blow.machine)?.role().works();
    Ok(if works { blow.machine.clone() } else { "m1".to_owned() })
}

/// Starts what runs in every cell: the exclusive unit on the first worker, and some on each.
fn set_up(world: &World, situation: Situation) -> Result<Expected> {
    world.until("every machine is up", LIMIT, || world.all_up())?;
    let others: Vec<String> = world
        .workers()
        .filter(|machine| machine.name() != "m1")
        .map(|machine| machine.machine_id().to_owned())
        .collect();
    world.ctl(&["cordon"], &others)?;
    world.ctl(&["start"], &[world.file(ONLY, BEATS)?])?;
    world.ctl(&["uncordon"], &others)?;
    world.ctl(&["start"], &world.many("steady", STEADY_UNITS, STEADY)?)?;
    let mut active = names("steady", STEADY_UNITS);
    active.insert(ONLY.to_owned());
    if situation == Situation::Stopping {
        world.ctl(&["start"], &world.many("slow", SLOW_UNITS, SLOW)?)?;
        active.extend(names("slow", SLOW_UNITS));
    }
    let expected = Expected { active, ..Expected::default() };
    world.until("all runs before the fault", LIMIT, || expected.is_met(world))?;
    until_heard(world)?;
    Ok(expected)
}

fn names(prefix: &str, count: usize) -> BTreeSet<String> {
    (1..=count).map(|number| format!("{prefix}{number:03}.service")).collect()
}

/// What goes on while the fault is made.
struct Begun {
    /// Commands that are still to be given, each with these unit files.
    commands: Vec<Vec<String>>,
    acknowledged: Vec<String>,
}

/// Begins it: it is under way when this returns.
fn begin(world: &World, blow: &Blow, situation: Situation, expected: &mut Expected) -> Result<Begun> {
    let mut begun = Begun { commands: Vec::new(), acknowledged: Vec::new() };
    match situation {
        Situation::Idle => {}
        Situation::Starting => {
            let files = world.many("batch", BATCH_UNITS, STEADY)?;
            begun.commands = files.chunks(BATCH).map(<[String]>::to_vec).collect();
            begun.give_one(world)?;
        }
        Situation::Draining => {
            let drained = drained(world, blow)?;
            let id = world.cluster.machine(&drained)?.machine_id().to_owned();
            world.ctl(&["drain", "--no-block", "--timeout", "60", "--max-parallel", "2"], &[id])?;
            expected.drained = Some(drained);
        }
        Situation::Stopping => {
            let slow = names("slow", SLOW_UNITS);
            world.ctl(&["stop", "--no-block"], &slow.iter().cloned().collect::<Vec<_>>())?;
            expected.active.retain(|unit| !slow.contains(unit));
            expected.ended = slow;
        }
    }
    Ok(begun)
}

impl Begun {
    fn give_one(&mut self, world: &World) -> Result<()> {
        if self.commands.is_empty() {
            return Ok(());
        }
        let files = self.commands.remove(0);
        world.try_ctl(CLIENT_WAITS, &["start", "--no-block"], &files)?.ok()?;
        let name = |file: &String| file.rsplit('/').next().unwrap_or_default().to_owned();
        self.acknowledged.extend(files.iter().map(name));
        Ok(())
    }

    /// Gives what is left of the commands; the units that were acknowledged in all. What becomes of a command that is not
    /// answered nobody can say.
    fn go_on(mut self, world: &World) -> Vec<String> {
        while !self.commands.is_empty() {
            let _ = self.give_one(world);
        }
        self.acknowledged
    }
}

/// Leaves the cluster as it was found: no unit, and every machine open.
pub(crate) fn clean(world: &World) -> Result<()> {
    let ids: Vec<String> = world.workers().map(|machine| machine.machine_id().to_owned()).collect();
    world.ctl(&["uncordon"], &ids)?;
    world.ctl(&["destroy"], &["*".to_owned()])?;
    world.until("nothing is left", LIMIT, || {
        let homes: BTreeMap<_, _> = world.homes()?;
        ensure!(homes.is_empty(), "{homes:?}");
        Ok(())
    })
}
