//! Random faults and random clients against a live cluster, from a seed; what was done is written down as a script that does
//! it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use muster_cluster::{Backend, target_dir};

use crate::beats::overlaps;
use crate::cell::Fault;
use crate::strike::Blow;
use crate::trial::{BEATS, SLOW, STEADY};
use crate::world::{Found, Kind, Layout, World, each_runs_once};

/// How many units clients play with.
const UNITS: usize = 40;
/// What is promised of any fault: `docs/failure.md`.
const SETTLES: Duration = Duration::from_secs(120);
/// How long a client waits for an answer.
const CLIENT_WAITS: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What the machines are made of
    #[arg(long, value_enum, default_value_t = Backend::Nspawn)]
    backend: Backend,
    /// For about so many minutes
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Where the dice begin [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
}

/// What is known of a unit's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Active,
    Ended,
    /// A command was not answered: nobody can say.
    Unknown,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}");
    let kind = Kind { backend: options.backend, layout: Layout::Apart, workers: 5 };
    let mut chaos = Chaos::new(World::up(kind)?, seed)?;
    let until = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut rounds = 0;
    while Instant::now() < until {
        rounds += 1;
        if let Err(error) = chaos.round(rounds) {
            let journals = chaos.world.cluster.keep_journals(&format!("chaos-{seed}"));
            let journals =
                journals.map_or_else(|error| format!("{error:#}"), |dir| dir.display().to_string());
            let script = chaos.script(seed, options.backend)?;
            return Err(error.context(format!(
                "round {rounds}; what was done: {}; the machines' journals: {journals}",
                script.display()
            )));
        }
    }
    let script = chaos.script(seed, options.backend)?;
    println!("{rounds} rounds, and nothing was wrong; what was done: {}", script.display());
    chaos.world.cluster.down()?;
    Ok(())
}

struct Chaos {
    world: World,
    rng: Rng,
    wanted: BTreeMap<String, Wanted>,
    began: Instant,
    /// What was done, as lines of a script.
    done: String,
}

impl Chaos {
    fn new(world: World, seed: u64) -> Result<Self> {
        let chaos = Self {
            world,
            rng: Rng::with_seed(seed),
            wanted: BTreeMap::new(),
            began: Instant::now(),
            done: String::new(),
        };
        for (unit, content) in units() {
            chaos.world.file(&unit, content)?;
        }
        Ok(chaos)
    }

    /// Writes down what is done, and when.
    fn note(&mut self, command: &str) {
        let at = self.began.elapsed().as_secs_f64();
        let _ = writeln!(self.done, "at {at:.2}; {command}");
    }

    fn round(&mut self, number: u64) -> Result<()> {
        let beats_before = self.world.cluster.witness()?.len();
        let before = self.world.homes()?;
        // Each at its moment, for its time; one for a machine at most.
        let mut blows = self.draw_blows()?;
        let mut commands = self.draw_commands();
        let names: Vec<String> = blows.iter().map(|(_, blow)| blow.to_string()).collect();
        println!("round {number}: {}, {} commands", names.join(", "), commands.len());
        let touched: BTreeSet<String> = commands.iter().map(|(_, command)| command.unit.clone()).collect();
        let (mut struck, mut ends) = (Vec::new(), Vec::new());
        let began = Instant::now();
        while !(blows.is_empty() && commands.is_empty() && ends.is_empty()) {
            let now = began.elapsed();
            if let Some(at) = blows.iter().position(|(at, _)| *at <= now) {
                let (_, blow) = blows.remove(at);
                self.note(&blow.begins());
                blow.strike(&self.world).with_context(|| blow.to_string())?;
                ends.push((began.elapsed() + blow.lasts, blow.clone()));
                struck.push(blow);
            } else if let Some(at) = ends.iter().position(|(at, _)| *at <= now) {
                let (_, blow) = ends.remove(at);
                if let Some(command) = blow.ends() {
                    self.note(&command);
                }
                blow.mend(&self.world).with_context(|| blow.to_string())?;
            } else if let Some(at) = commands.iter().position(|(at, _)| *at <= now) {
                let (_, command) = commands.remove(at);
                self.give(&command);
            } else {
                thread::sleep(Duration::from_millis(50));
            }
        }
        self.settle()?;
        self.check_undisturbed(&before, &struck, &touched)?;
        self.check_exclusive(beats_before, &struck)
    }

    fn draw_blows(&mut self) -> Result<Vec<(Duration, Blow)>> {
        let count = self.rng.usize(1..=3);
        let mut machines: Vec<String> =
            self.world.cluster.machines().map(|machine| machine.name().to_owned()).collect();
        self.rng.shuffle(&mut machines);
        machines.truncate(count);
        let mut blows = Vec::new();
        for name in machines {
            let machine = self.world.cluster.machine(&name)?;
            let at = Duration::from_millis(self.rng.u64(0..8000));
            blows.push((at, Blow::draw(&mut self.rng, &machine, self.world.kind.backend)));
        }
        Ok(blows)
    }

    fn draw_commands(&mut self) -> Vec<(Duration, Command)> {
        let count = self.rng.usize(0..12);
        let units: Vec<String> = units().into_iter().map(|(unit, _)| unit).collect();
        let mut commands = Vec::new();
        for _ in 0..count {
            let unit = units[self.rng.usize(..units.len())].clone();
            let verb = ["start", "start", "start", "stop", "destroy", "restart"][self.rng.usize(..6)];
            commands.push((Duration::from_millis(self.rng.u64(0..15_000)), Command { verb, unit }));
        }
        commands
    }

    fn give(&mut self, command: &Command) {
        let Command { verb, unit } = command;
        let known = self.wanted.contains_key(unit);
        // What nobody knows can only be started.
        if !known && *verb != "start" {
            return;
        }
        let file = self.world.path(unit);
        self.note(&format!("muster-cluster ctl {verb} --no-block {unit}"));
        let operand = if *verb == "start" { file } else { unit.clone() };
        let answer = self.world.try_ctl(CLIENT_WAITS, &[verb, "--no-block"], &[operand]);
        let acknowledged = answer.is_ok_and(|answer| answer.success());
        let wanted = match *verb {
            _ if !acknowledged => Wanted::Unknown,
            "start" | "restart" => Wanted::Active,
            _ => Wanted::Ended,
        };
        self.wanted.insert(unit.clone(), wanted);
    }

    /// Waits until all is as it should be.
    fn settle(&mut self) -> Result<()> {
        let (world, wanted) = (&self.world, &self.wanted);
        let of = |state: Wanted| -> BTreeSet<String> {
            wanted.iter().filter(|(_, wanted)| **wanted == state).map(|(unit, _)| unit.clone()).collect()
        };
        let (mut active, mut ended) = (of(Wanted::Active), of(Wanted::Ended));
        let unknown = of(Wanted::Unknown);
        let began = Instant::now();
        let targets = world.until("all as it should be", SETTLES, || {
            world.all_up()?;
            let targets = world.targets()?;
            // What became of a command that was not answered: as the cluster says, but so that it is true.
            let is_active = |unit: &&String| targets.get(*unit).is_some_and(|target| target == "launched");
            let (mut all_active, mut all_ended) = (active.clone(), ended.clone());
            all_active.extend(unknown.iter().filter(is_active).cloned());
            all_ended.extend(unknown.iter().filter(|unit| !is_active(unit)).cloned());
            for unit in &active {
                ensure!(targets.contains_key(unit), "{unit} was acknowledged, and is not known any more");
            }
            each_runs_once(&world.homes()?, &all_active, &all_ended)?;
            Ok((all_active, all_ended))
        });
        (active, ended) = targets?;
        println!(
            "         as it should be after {:.1} s: {} units run",
            began.elapsed().as_secs_f64(),
            active.len()
        );
        self.wanted.extend(active.into_iter().map(|unit| (unit, Wanted::Active)));
        self.wanted.extend(ended.into_iter().map(|unit| (unit, Wanted::Ended)));
        Ok(())
    }

    /// What was healthy, and meant by nobody, still runs as it did.
    fn check_undisturbed(
        &self,
        before: &BTreeMap<String, Vec<Found>>,
        struck: &[Blow],
        touched: &BTreeSet<String>,
    ) -> Result<()> {
        let scheduler_away = struck.iter().any(|blow| blow.outlasts_lease() && blow.machine.starts_with('s'));
        let healthy = before.values().flatten().filter(|found| {
            let disturbed = struck.iter().any(|blow| blow.outlasts_lease() && blow.machine == found.machine)
                || (scheduler_away && found.unit.starts_with("only"))
                || touched.contains(&found.unit);
            !disturbed && self.wanted.get(&found.unit) == Some(&Wanted::Active)
        });
        let memory_was_short = struck.iter().any(|blow| blow.fault == Fault::OutOfMemory);
        self.world.ensure_untouched(healthy, memory_was_short)
    }

    fn check_exclusive(&self, beats_before: usize, struck: &[Blow]) -> Result<()> {
        let beats = self.world.cluster.witness()?;
        for overlap in overlaps(beats.get(beats_before..).unwrap_or_default()) {
            let allows = |blow: &Blow| {
                blow.stands_still() && overlap.is_of(&blow.machine) && overlap.lasted <= blow.fault.overlap()
            };
            let excepted = struck.iter().any(allows);
            ensure!(excepted, "an exclusive unit ran twice: {overlap}");
            println!("         {overlap}: it stood still as a whole");
        }
        Ok(())
    }

    /// Writes what was done to a file.
    fn script(&self, seed: u64, backend: Backend) -> Result<PathBuf> {
        let dir = target_dir().join("chaos");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{seed}.sh"));
        let backend = match backend {
            Backend::Nspawn => "nspawn",
            Backend::Vm => "vm",
        };
        let mut text = format!(
            "#!/bin/bash\n# Does again what was done to a cluster from seed {seed}. Unit files are written to where it is run.\n\
             PATH=$PWD/target/release:$PATH\nmuster-cluster up --backend {backend} --machines {}\nmachines='s1 m1 m2 m3 m4 m5'\n\
             {AT}",
            self.world.kind.workers
        );
        for (unit, content) in units() {
            let _ = write!(text, "cat >{unit} <<'END'\n{content}END\n");
        }
        fs::write(&path, text + &self.done)?;
        Ok(path)
    }
}

/// Waits for a moment after its beginning, in seconds.
const AT: &str = r#"began=$(cut -d ' ' -f 1 /proc/uptime)
at() { sleep "$(awk -v began="$began" -v at="$1" '{left = began + at - $1; print (left > 0 ? left : 0)}' /proc/uptime)"; }
"#;

/// What a client asks for.
#[derive(Debug, Clone)]
struct Command {
    verb: &'static str,
    unit: String,
}

/// All units, with their contents.
fn units() -> Vec<(String, &'static str)> {
    let number = |number: usize| match number % 4 {
        0 => (format!("only{number:02}.service"), BEATS),
        1 => (format!("slow{number:02}.service"), SLOW),
        _ => (format!("steady{number:02}.service"), STEADY),
    };
    (0..UNITS).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_waits_for_its_moments() {
        let mut script = AT.to_owned();
        // Also for one that has passed.
        script += "at 0.2; at 0.1; awk -v began=\"$began\" '{exit $1 - began < 0.19}' /proc/uptime";
        let output = std::process::Command::new("bash").args(["-ec", &script]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}
