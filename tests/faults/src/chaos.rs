//! Random faults and random clients against a live cluster, from a seed; what is done is written down, as it happens, as a script
//! that does it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use fastrand::Rng;
use muster_cluster::{Backend, target_dir};

use crate::beats::overlaps;
use crate::cell::Fault;
use crate::strike::Blow;
use crate::trial::{BEATS, SLOW, STEADY};
use crate::world::{Found, Kind, Layout, World, each_runs_once};

/// How many units clients play with.
const UNITS: usize = 40;
/// What the names of those begin with that are exclusive.
const EXCLUSIVE: &str = "only";
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
    let script = chaos.script.path.display().to_string();
    println!("what is done: {script}");
    let until = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut rounds = 0;
    while Instant::now() < until {
        rounds += 1;
        if let Err(error) = chaos.round(rounds) {
            let journals = chaos.world.cluster.keep_journals(&format!("chaos-{seed}"));
            let journals =
                journals.map_or_else(|error| format!("{error:#}"), |dir| dir.display().to_string());
            return Err(error.context(format!(
                "round {rounds}; what was done: {script}; the machines' journals: {journals}"
            )));
        }
    }
    println!("{rounds} rounds, and nothing was wrong; what was done: {script}");
    chaos.world.cluster.down()?;
    Ok(())
}

struct Chaos {
    world: World,
    rng: Rng,
    wanted: BTreeMap<String, Wanted>,
    script: Script,
}

impl Chaos {
    fn new(world: World, seed: u64) -> Result<Self> {
        for (unit, content) in units() {
            world.file(&unit, content)?;
        }
        let machines: Vec<String> =
            world.cluster.machines().map(|machine| machine.name().to_owned()).collect();
        let program = std::env::current_exe().context("the path of this program")?;
        let programs = program.parent().context("a program is in a directory")?;
        let script = Script::begin(
            target_dir().join("chaos").join(format!("{seed}.sh")),
            &head(seed, world.kind, &machines, programs),
        )?;
        Ok(Self { world, rng: Rng::with_seed(seed), wanted: BTreeMap::new(), script })
    }

    fn round(&mut self, number: u64) -> Result<()> {
        let beats_before = self.world.cluster.witness()?.len();
        let before = self.world.homes()?;
        self.until_exclusive_are_heard(&before)?;
        // Each at its moment, for its time; one for a machine at most.
        let blows = self.draw_blows()?;
        let commands = self.draw_commands();
        let names: Vec<String> = blows.iter().map(|(_, blow)| blow.to_string()).collect();
        println!("round {number}: {}, {} commands", names.join(", "), commands.len());
        let touched = Touched::by(&commands);

        let (world, script, wanted) = (&self.world, &self.script, &mut self.wanted);
        let began = Instant::now();
        let struck = thread::scope(|scope| -> Result<Vec<Blow>> {
            // Whoever waits for an answer keeps no fault from its end, and none waits for another.
            let client = scope.spawn(move || {
                commands.into_iter().try_for_each(|(at, command)| {
                    wait_until(began + at);
                    give(world, script, wanted, &command)
                })
            });
            let strikes: Vec<_> = blows
                .into_iter()
                .map(|(at, blow)| {
                    scope.spawn(move || {
                        wait_until(began + at);
                        let named = blow.to_string();
                        deal(world, script, blow).context(named)
                    })
                })
                .collect();
            let struck = strikes
                .into_iter()
                .map(|strike| strike.join().map_err(|_| anyhow!("a fault panicked"))?)
                .collect::<Result<_>>();
            client.join().map_err(|_| anyhow!("a client panicked"))??;
            struck
        })?;
        let lasted: Vec<String> = struck.iter().map(ToString::to_string).collect();
        println!("         really: {}", lasted.join(", "));
        self.open(&touched.machines)?;
        self.settle()?;
        self.check_undisturbed(&before, &struck, &touched)?;
        self.until_exclusive_are_heard(&self.world.homes()?)?;
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

    /// In the order of their moments.
    fn draw_commands(&mut self) -> Vec<(Duration, Command)> {
        let count = self.rng.usize(0..12);
        let units: Vec<String> = units().into_iter().map(|(unit, _)| unit).collect();
        let workers: Vec<String> = self.world.workers().map(|machine| machine.name().to_owned()).collect();
        let mut commands = Vec::new();
        for _ in 0..count {
            let at = Duration::from_millis(self.rng.u64(0..15_000));
            let verb = VERBS[self.rng.usize(..VERBS.len())];
            let of = if is_for_machines(verb) { &workers } else { &units };
            commands.push((at, Command { verb, operand: of[self.rng.usize(..of.len())].clone() }));
        }
        commands.sort_by_key(|(at, _)| *at);
        commands
    }

    /// Opens these machines for units again.
    fn open(&self, machines: &BTreeSet<String>) -> Result<()> {
        for machine in machines {
            let command = Command { verb: "uncordon", operand: machine.clone() };
            self.world.until(&format!("{command} is acknowledged"), SETTLES, || {
                ensure!(command.give(&self.world, &self.script)?, "it is not");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits until those that are exclusive have written down themselves that they run, each where it is found.
    fn until_exclusive_are_heard(&self, homes: &BTreeMap<String, Vec<Found>>) -> Result<()> {
        self.world.until_heard(homes.values().flatten().filter(|found| found.unit.starts_with(EXCLUSIVE)))
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
        touched: &Touched,
    ) -> Result<()> {
        let scheduler_away = struck.iter().any(Blow::keeps_scheduler_away);
        let healthy = before.values().flatten().filter(|found| {
            let disturbed = struck.iter().any(|blow| blow.outlasts_lease() && blow.machine == found.machine)
                || (scheduler_away && found.unit.starts_with(EXCLUSIVE))
                || touched.units.contains(&found.unit)
                || touched.drained.contains(&found.machine);
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
}

fn wait_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// Makes a fault and ends it; the same with the time that it has really lasted.
fn deal(world: &World, script: &Script, mut blow: Blow) -> Result<Blow> {
    script.note(&format!("{} || fail", blow.begins()))?;
    let began = Instant::now();
    blow.strike(world)?;
    thread::sleep(blow.lasts);
    if let Some(command) = blow.ends() {
        script.note(&format!("{command} || fail"))?;
    }
    blow.mend(world)?;
    blow.lasts = began.elapsed();
    Ok(blow)
}

/// Gives a client's command, and keeps what is known of its unit's fate.
fn give(
    world: &World,
    script: &Script,
    wanted: &mut BTreeMap<String, Wanted>,
    command: &Command,
) -> Result<()> {
    let Command { verb, operand } = command;
    // What nobody knows can only be started.
    if !is_for_machines(verb) && *verb != "start" && !wanted.contains_key(operand) {
        return Ok(());
    }
    let acknowledged = command.give(world, script)?;
    if !is_for_machines(verb) {
        let fate = match *verb {
            _ if !acknowledged => Wanted::Unknown,
            "start" | "restart" => Wanted::Active,
            _ => Wanted::Ended,
        };
        wanted.insert(operand.clone(), fate);
    }
    Ok(())
}

/// What clients mean by their commands.
#[derive(Debug, Default)]
struct Touched {
    units: BTreeSet<String>,
    machines: BTreeSet<String>,
    /// Of the machines, those whose units are to move.
    drained: BTreeSet<String>,
}

impl Touched {
    fn by(commands: &[(Duration, Command)]) -> Self {
        let mut touched = Self::default();
        for (_, Command { verb, operand }) in commands {
            if is_for_machines(verb) {
                touched.machines.insert(operand.clone());
            } else {
                touched.units.insert(operand.clone());
            }
            if *verb == "drain" {
                touched.drained.insert(operand.clone());
            }
        }
        touched
    }
}

/// What a client asks for.
#[derive(Debug, Clone)]
struct Command {
    verb: &'static str,
    /// A unit, or a machine's name.
    operand: String,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.operand)
    }
}

/// What clients ask for, each as often as it stands here.
const VERBS: [&str; 9] =
    ["start", "start", "start", "stop", "destroy", "restart", "cordon", "drain", "uncordon"];

fn is_for_machines(verb: &str) -> bool {
    ["cordon", "drain", "uncordon"].contains(&verb)
}

impl Command {
    /// `musterctl`'s arguments; `files` is where the unit files are.
    fn words(&self, files: &str, address: impl Fn(&str) -> Result<String>) -> Result<Vec<String>> {
        let Self { verb, operand } = self;
        let mut words = vec![(*verb).to_owned()];
        if !["cordon", "uncordon"].contains(verb) {
            words.push("--no-block".to_owned());
        }
        words.push(match *verb {
            "start" => format!("{files}/{operand}"),
            verb if is_for_machines(verb) => address(operand)?,
            _ => operand.clone(),
        });
        Ok(words)
    }

    /// Writes it down and gives it; whether it was acknowledged.
    fn give(&self, world: &World, script: &Script) -> Result<bool> {
        let address = |name: &str| Ok(world.cluster.machine(name)?.address().to_owned());
        let words = |files| self.words(files, address);
        script.note(&format!("muster-cluster ctl {} || :", words("\"$dir\"")?.join(" ")))?;
        let files = world.path("");
        let answer = world.try_ctl(CLIENT_WAITS, &[], &words(files.trim_end_matches('/'))?);
        Ok(answer.is_ok_and(|answer| answer.success()))
    }
}

/// A script that does again what is done, and at the same moments.
struct Script {
    path: PathBuf,
    file: File,
    began: Instant,
}

impl Script {
    fn begin(path: PathBuf, head: &str) -> Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        // One of an earlier run; it may be running itself.
        if path.exists() {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        let mut file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o755)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        file.write_all(head.as_bytes()).with_context(|| path.display().to_string())?;
        Ok(Self { path, file, began: Instant::now() })
    }

    /// Writes down what is done now. It keeps nothing that comes later from its moment.
    fn note(&self, command: &str) -> Result<()> {
        let line = format!("at {:.2}; {command} &\n", self.began.elapsed().as_secs_f64());
        (&self.file).write_all(line.as_bytes()).with_context(|| self.path.display().to_string())
    }
}

/// What a script begins with. The harness's program is in `programs`.
fn head(seed: u64, kind: Kind, machines: &[String], programs: &Path) -> String {
    let backend = match kind.backend {
        Backend::Nspawn => "nspawn",
        Backend::Vm => "vm",
    };
    let mut text = format!(
        "#!/bin/bash\n# Does again, in a cluster of its own, what was done to one from seed {seed}, and at the same moments. Needs \
         root.\nPATH='{}':$PATH\nworkers={}\nbackend={backend}\nmachines='{}'\n{BEGIN}",
        programs.display(),
        kind.workers,
        machines.join(" "),
    );
    for (unit, content) in units() {
        let _ = write!(text, "cat >\"$dir\"/{unit} <<'END'\n{content}END\n");
    }
    text + AT
}

/// Makes the cluster, which goes in the end, however that comes, and says then what its units are doing.
const BEGIN: &str = r#"set -e
dir=$(mktemp -d)
muster-cluster() { command muster-cluster --dir "$dir/cluster" "$@"; }
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
muster-cluster up --backend $backend --machines $workers
trap 'wait; muster-cluster ctl list-units; muster-cluster down; rm -rf "$dir"' EXIT
# A fault that cannot be made or ended is the end.
fail() { kill $$; }
"#;

/// Waits for a moment after its beginning, in seconds.
const AT: &str = r#"began=$(cut -d ' ' -f 1 /proc/uptime)
at() { sleep "$(awk -v began="$began" -v at="$1" '{left = began + at - $1; print (left > 0 ? left : 0)}' /proc/uptime)"; }
"#;

/// All units, with their contents.
fn units() -> Vec<(String, &'static str)> {
    let number = |number: usize| match number % 4 {
        0 => (format!("{EXCLUSIVE}{number:02}.service"), BEATS),
        1 => (format!("slow{number:02}.service"), SLOW),
        _ => (format!("steady{number:02}.service"), STEADY),
    };
    (0..UNITS).map(number).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_script_waits_for_its_moments() {
        let mut script = AT.to_owned();
        // Also for one that has passed.
        script += "at 0.2; at 0.1; awk -v began=\"$began\" '{exit $1 - began < 0.19}' /proc/uptime";
        let output = std::process::Command::new("bash").args(["-ec", &script]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }

    #[test]
    fn a_script_says_what_the_harness_understands() {
        let dir = tempfile::tempdir().unwrap();
        // In place of the harness's program: it writes down what it is called with.
        let stub = Script::begin(
            dir.path().join("muster-cluster"),
            "#!/bin/bash\nprintf '%s\\0' \"$@\" $'\\n' >>\"${0%/*}/calls\"\n",
        );
        drop(stub.unwrap());
        let kind = Kind { backend: Backend::Vm, layout: Layout::Apart, workers: 2 };
        let machines = ["s1", "m1", "m2"].map(str::to_owned);
        let head = head(7, kind, &machines, dir.path());
        let script = Script::begin(dir.path().join("7.sh"), &head).unwrap();
        for blow in Blow::each_of("m1") {
            for command in std::iter::once(blow.begins()).chain(blow.ends()) {
                script.note(&format!("{command} || fail")).unwrap();
            }
        }
        for verb in VERBS {
            let operand = if is_for_machines(verb) { "m1" } else { "only00.service" };
            let command = Command { verb, operand: operand.to_owned() };
            let words = command.words("\"$dir\"", |_| Ok("198.18.0.101".to_owned())).unwrap();
            script.note(&format!("muster-cluster ctl {} || :", words.join(" "))).unwrap();
        }
        let path = script.path.clone();
        drop(script);
        let output = std::process::Command::new(path).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

        let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
        let calls: Vec<Vec<&str>> =
            calls.split_terminator("\n\0").map(|call| call.split_terminator('\0').collect()).collect();
        for call in &calls {
            let words = std::iter::once(&"muster-cluster").chain(call);
            if let Err(error) = muster_cluster::cli::Cli::try_parse_from(words) {
                panic!("{call:?}: {error}");
            }
            assert_eq!(call[0], "--dir");
        }
        let verbs: Vec<&str> = calls.iter().map(|call| call[2]).collect();
        assert_eq!((verbs[0], verbs[verbs.len() - 1]), ("up", "down"), "{verbs:?}");
        for verb in
            ["kill", "boot", "freeze", "thaw", "cut", "lose", "impair", "heal", "exec", "ctl", "restore"]
        {
            assert!(verbs.contains(&verb), "{verb}: {verbs:?}");
        }
        let files = Path::new(calls[0][1]).parent().unwrap();
        assert!(!files.exists(), "{} is still there", files.display());
    }
}
