//! How long what `docs/failure.md` promises takes: measured several times each, and written there.

use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use muster_cluster::{Backend, Beat, Machine, project_root};
use serde_json::Value;

use crate::origin::Origin;
use crate::trial;
use crate::world::{Kind, LIMIT, Layout, ONLY, World};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What the machines are made of; there are no bars for virtual ones, which may be emulated and so several times slower
    #[arg(long, value_enum, default_value_t = Backend::Nspawn)]
    backend: Backend,
    /// How often each is measured; less than five times are not written to the documentation
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// How many minutes every processor is kept busy on every machine, to see whether a healthy machine is lost; 0: not at all.
    /// What less than ten minutes show is not written to the documentation
    #[arg(long, default_value_t = 10)]
    load: u64,
    /// Only those in whose name one of these is; nothing is written to the documentation then
    filters: Vec<String>,
}

/// What is written to the documentation was measured so often at least, …
const ROUNDS: u64 = 5;
/// … and for so many minutes.
const LOADED: u64 = 10;
/// What the line about them begins with.
const UNDER_LOAD: &str = "Under full CPU load";
/// What the lease lasts by default, in seconds.
const LEASE: f64 = 5.0;
/// How long an exclusive unit may take to stop here.
const STOP: f64 = 2.0;
const PLAIN: &str = "steady001.service";
/// They write down that they run, ten times a second; the one that is exclusive is `trial::BEATS`.
const BEATS: &str = "[Service]\nExecStart=/usr/lib/muster-cluster/beat %n\n";
/// What it ends with no `Restart=` mends.
const FAILS: &str = "[Service]\nExecStart=/usr/lib/muster-cluster/beat %n\nRestart=no\n";

/// Something that is measured.
struct Figure {
    name: &'static str,
    layout: Layout,
    /// In seconds, as `docs/failure.md` has it.
    promised: Promise,
    measure: fn(&World) -> Result<f64>,
}

enum Promise {
    AtMost(f64),
    /// Not stated: a fact of the program, not of the settings.
    Nothing,
}

const FIGURES: [Figure; 15] = [
    Figure {
        name: "power cut: until a unit runs elsewhere",
        layout: Layout::Apart,
        promised: Promise::AtMost(6.5),
        measure: |world| Ok(lose_power(world, PLAIN)?.total),
    },
    Figure {
        name: "of that, what is not the lease",
        layout: Layout::Apart,
        promised: Promise::AtMost(0.5),
        measure: |world| Ok(lose_power(world, PLAIN)?.beyond_lease),
    },
    Figure {
        name: "power cut: until an exclusive unit runs elsewhere",
        layout: Layout::Apart,
        // `musterctl rto` of it, and its start.
        promised: Promise::AtMost(5.95 + STOP * 1.02 + 1.0 + 0.5),
        measure: |world| Ok(lose_power(world, ONLY)?.total),
    },
    Figure {
        name: "cut off: until an exclusive unit has ended there",
        layout: Layout::Apart,
        promised: Promise::AtMost(LEASE + STOP),
        measure: cut_off,
    },
    Figure {
        name: "agent stopped: until its unit runs elsewhere",
        layout: Layout::Apart,
        promised: Promise::AtMost(6.5),
        measure: stop_agent,
    },
    Figure {
        name: "PID 1 hangs: until a unit runs elsewhere",
        layout: Layout::Apart,
        // `systemd_timeout`, and the same to decide and start; what its agent says of it, it says once a second.
        promised: Promise::AtMost(30.0 + 1.0 + 0.5 + GAP),
        measure: hang,
    },
    Figure {
        name: "agent killed: how long its unit does not run",
        layout: Layout::Apart,
        promised: Promise::AtMost(GAP),
        measure: kill_agent,
    },
    Figure {
        name: "orderly reboot: how long a unit runs nowhere",
        layout: Layout::Apart,
        promised: Promise::AtMost(GAP),
        measure: reboot,
    },
    Figure {
        name: "drain: how long a unit runs nowhere",
        layout: Layout::Apart,
        promised: Promise::AtMost(GAP),
        measure: |world| drain(world, PLAIN),
    },
    Figure {
        name: "drain: how long an exclusive unit runs nowhere",
        layout: Layout::Apart,
        promised: Promise::Nothing,
        measure: |world| drain(world, ONLY),
    },
    Figure {
        name: "unit fails: until it runs elsewhere",
        layout: Layout::Apart,
        promised: Promise::AtMost(6.0),
        measure: fail,
    },
    Figure {
        name: "two of three machines cut off: until their units run elsewhere",
        layout: Layout::Apart,
        // The lease, `brake_hold`, and the same to decide and start.
        promised: Promise::AtMost(66.5),
        measure: cut_off_most,
    },
    Figure {
        name: "the leader of several loses power: until another leads",
        layout: Layout::Several,
        // Its lease in etcd, until etcd has found that it is over, and the same to decide.
        promised: Promise::AtMost(2.0 + 0.5 + 0.5),
        measure: |world| Ok(lose_leader(world)?.leads),
    },
    Figure {
        name: "the leader of several loses power: until a command is acknowledged",
        layout: Layout::Several,
        // Besides, who asks waits for up to 2 s for an answer of the one that is gone, and asks the others in turn.
        promised: Promise::AtMost(6.0),
        measure: |world| Ok(lose_leader(world)?.acknowledges),
    },
    Figure {
        name: "a worker with the leader of several loses power: until its unit runs elsewhere",
        layout: Layout::Several,
        promised: Promise::AtMost(15.0),
        measure: lose_leader_and_worker,
    },
];

/// Between two signs of life that a unit gives, ten a second, on a busy host.
const GAP: f64 = 0.5;

pub(crate) fn run(options: &Options) -> Result<()> {
    let chosen = |name: &str| {
        options.filters.is_empty() || options.filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let up = |layout| World::up(Kind { backend: options.backend, layout, workers: 3 });
    let mut rows = Vec::new();
    for layout in [Layout::Apart, Layout::Several] {
        let figures: Vec<_> =
            FIGURES.iter().filter(|figure| figure.layout == layout && chosen(figure.name)).collect();
        if figures.is_empty() {
            continue;
        }
        let world = up(layout)?;
        for figure in figures {
            let mut seconds = Vec::new();
            for round in 1..=options.rounds {
                let measured =
                    measure(&world, figure).with_context(|| format!("{}, round {round}", figure.name))?;
                println!("{}: {measured:.2} s", figure.name);
                seconds.push(measured);
            }
            rows.push(Row::new(figure, seconds));
        }
        world.cluster.down()?;
    }
    let origin = Origin::now()?;
    let table = format!("{origin}\n\n{}", table(&rows, options.backend));
    if !rows.is_empty() {
        println!("\n{table}");
    }
    let mut loaded = None;
    if options.load > 0 && chosen("load") {
        let world = up(Layout::Apart)?;
        let lost = under_load(&world, Duration::from_secs(options.load * 60))?;
        let line = format!(
            "{UNDER_LOAD} on every machine, for {} min: {lost} healthy machines were taken for lost. {origin}",
            options.load
        );
        println!("{line}\n");
        ensure!(lost == 0 || options.backend == Backend::Vm, "{lost} healthy machines were taken for lost");
        loaded = (options.load >= LOADED).then_some(line);
        world.cluster.down()?;
    }
    if options.filters.is_empty() && options.rounds >= ROUNDS {
        write_down(options.backend, &table, loaded.as_deref())?;
    } else {
        println!("not written to the documentation: for that all is measured, {ROUNDS} times at least");
    }
    let missed: Vec<&str> = rows.iter().filter(|row| row.is_missed()).map(|row| row.name).collect();
    if options.backend == Backend::Nspawn {
        ensure!(missed.is_empty(), "more than promised: {}", missed.join("; "));
    }
    Ok(())
}

struct Row {
    name: &'static str,
    promised: Option<f64>,
    least: f64,
    median: f64,
    most: f64,
}

impl Row {
    fn new(figure: &Figure, mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |index: usize| seconds.get(index).copied().unwrap_or(f64::NAN);
        Self {
            name: figure.name,
            promised: match figure.promised {
                Promise::AtMost(most) => Some(most),
                Promise::Nothing => None,
            },
            least: at(0),
            median: at(seconds.len() / 2),
            most: at(seconds.len().saturating_sub(1)),
        }
    }

    fn is_missed(&self) -> bool {
        self.promised.is_some_and(|promised| self.most > promised)
    }
}

/// Of virtual machines, which may be emulated, nothing is promised.
fn table(rows: &[Row], backend: Backend) -> String {
    let bars = backend == Backend::Nspawn;
    let mut text = "| seconds | least | median | most |".to_owned();
    text +=
        if bars { " promised |\n| --- | --- | --- | --- | --- |\n" } else { "\n| --- | --- | --- | --- |\n" };
    for Row { name, promised, least, median, most } in rows {
        let _ = write!(text, "| {name} | {least:.2} | {median:.2} | {most:.2} |");
        if bars {
            let promised = promised.map_or(String::new(), |promised| format!("{promised:.2}"));
            let _ = write!(text, " {promised} |");
        }
        text.push('\n');
    }
    text
}

/// Puts the table into the documentation, and what was seen under load, if it was looked for long enough.
fn write_down(backend: Backend, table: &str, loaded: Option<&str>) -> Result<()> {
    let path = project_root().join("docs/failure.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let name = match backend {
        Backend::Nspawn => "nspawn",
        Backend::Vm => "vm",
    };
    let replaced = replace(&text, name, table, loaded);
    fs::write(&path, replaced.with_context(|| format!("no place for {name} in {}", path.display()))?)?;
    println!("written to {}", path.display());
    Ok(())
}

/// The text with the table between the marks of this name; what it says of load stays, unless there is something new.
fn replace(text: &str, name: &str, table: &str, loaded: Option<&str>) -> Option<String> {
    let (begin, end) = (format!("<!-- times: {name} -->\n"), format!("<!-- end of times: {name} -->"));
    let (before, rest) = text.split_once(&begin)?;
    let (old, after) = rest.split_once(&end)?;
    let loaded = loaded.or_else(|| old.lines().find(|line| line.starts_with(UNDER_LOAD)));
    let loaded = loaded.map_or_else(String::new, |line| format!("{line}\n\n"));
    Some(format!("{before}{begin}\n{table}\n{loaded}{end}{after}"))
}

/// Once, from a clean cluster to a clean cluster.
fn measure(world: &World, figure: &Figure) -> Result<f64> {
    world.until("every machine is up", LIMIT, || world.all_up())?;
    let seconds = (figure.measure)(world)?;
    world.until("every machine is up", LIMIT, || world.all_up())?;
    trial::clean(world)?;
    Ok(seconds)
}

/// Seconds since the host's boot.
fn now() -> Result<f64> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    Ok(uptime.split_whitespace().next().context("uptime")?.parse()?)
}

/// The signs of life of a unit.
fn beats(world: &World, unit: &str) -> Result<Vec<Beat>> {
    Ok(world.cluster.witness()?.into_iter().filter(|beat| beat.name == unit).collect())
}

/// Starts a unit, and says where it runs once it has shown that.
fn start<'w>(world: &'w World, unit: &str, content: &str) -> Result<Machine<'w>> {
    let before = world.cluster.witness()?.len();
    world.ctl(&["start"], &[world.file(unit, content)?])?;
    let name = world.until("the unit shows that it runs", LIMIT, || {
        let beats = world.cluster.witness()?;
        let beat = beats.get(before..).unwrap_or_default().iter().rev().find(|beat| beat.name == unit);
        Ok(beat.context("it has not")?.machine.clone())
    })?;
    world.cluster.machine(&name)
}

fn start_any<'w>(world: &'w World, unit: &str) -> Result<Machine<'w>> {
    start(world, unit, if unit == ONLY { trial::BEATS } else { BEATS })
}

/// The first sign of life on another machine since then, in seconds since the host's boot.
fn first_elsewhere(world: &World, unit: &str, not: &str, since: f64) -> Result<f64> {
    world.until(&format!("{unit} runs elsewhere than on {not}"), LIMIT, || {
        let beats = beats(world, unit)?;
        let beat = beats.iter().find(|beat| beat.machine != not && beat.at.as_secs_f64() >= since);
        Ok(beat.context("it does not")?.at.as_secs_f64())
    })
}

struct Loss {
    total: f64,
    beyond_lease: f64,
}

fn lose_power(world: &World, unit: &str) -> Result<Loss> {
    let home = start_any(world, unit)?;
    let cut = now()?;
    home.kill()?;
    // By then no heartbeat is under way any more.
    let machines: Value = serde_json::from_str(&world.ctl(&["list-machines", "-o", "json"], &[])?)?;
    let asked = now()?;
    let row = machines.as_array().into_iter().flatten().find(|row| row["machine"] == *home.machine_id());
    let age = row.and_then(|row| row["heard"].as_u64()).context("when the machine was last heard")?;
    let heard = asked - Duration::from_millis(age).as_secs_f64();
    let runs = first_elsewhere(world, unit, home.name(), cut)?;
    home.boot()?;
    Ok(Loss { total: runs - cut, beyond_lease: runs - heard - LEASE })
}

/// From the cut to the last sign of life of an exclusive unit there.
fn cut_off(world: &World) -> Result<f64> {
    let home = start_any(world, ONLY)?;
    let cut = now()?;
    home.cut()?;
    first_elsewhere(world, ONLY, home.name(), cut)?;
    home.heal()?;
    let beats = beats(world, ONLY)?;
    let last = beats.iter().rev().find(|beat| beat.machine == home.name()).context("it ran there")?;
    Ok(last.at.as_secs_f64() - cut)
}

fn signal_agent(machine: &Machine<'_>, signal: &str) -> Result<()> {
    let command = ["systemctl", "kill", "--kill-whom=main", "--signal", signal, "muster-agent.service"];
    machine.exec(&command)?.ok().map(drop)
}

fn stop_agent(world: &World) -> Result<f64> {
    let home = start_any(world, PLAIN)?;
    let stopped = now()?;
    signal_agent(&home, "STOP")?;
    let runs = first_elsewhere(world, PLAIN, home.name(), stopped)?;
    signal_agent(&home, "CONT")?;
    Ok(runs - stopped)
}

/// From when PID 1 hangs, while all others go on.
fn hang(world: &World) -> Result<f64> {
    let home = start_any(world, PLAIN)?;
    let hung = now()?;
    home.stop_pid1()?;
    let runs = first_elsewhere(world, PLAIN, home.name(), hung)?;
    home.continue_pid1()?;
    Ok(runs - hung)
}

/// The longest time since then in which a unit ran nowhere.
fn longest_gap(world: &World, unit: &str, since: f64) -> Result<f64> {
    // It ran then.
    let later = beats(world, unit)?.into_iter().map(|beat| beat.at.as_secs_f64()).filter(|at| *at > since);
    let times: Vec<f64> = std::iter::once(since).chain(later).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    Ok(gaps.fold(0.0, f64::max))
}

fn kill_agent(world: &World) -> Result<f64> {
    let home = start_any(world, PLAIN)?;
    let killed = now()?;
    signal_agent(&home, "KILL")?;
    // A lease later all that could have come of it has come.
    world.until("two leases pass", LIMIT, || {
        ensure!(now()? > killed + 2.0 * LEASE, "not yet");
        Ok(())
    })?;
    let moved =
        beats(world, PLAIN)?.iter().any(|beat| beat.machine != home.name() && beat.at.as_secs_f64() > killed);
    ensure!(!moved, "it was moved");
    longest_gap(world, PLAIN, killed)
}

fn reboot(world: &World) -> Result<f64> {
    let home = start_any(world, PLAIN)?;
    let began = now()?;
    home.reboot()?;
    first_elsewhere(world, PLAIN, home.name(), began)?;
    longest_gap(world, PLAIN, began)
}

fn drain(world: &World, unit: &str) -> Result<f64> {
    let home = start_any(world, unit)?;
    let began = now()?;
    world.ctl(&["drain"], &[home.machine_id().to_owned()])?;
    first_elsewhere(world, unit, home.name(), began)?;
    longest_gap(world, unit, began)
}

fn fail(world: &World) -> Result<f64> {
    let home = start(world, PLAIN, FAILS)?;
    let failed = now()?;
    home.exec(&["systemctl", "kill", "--signal", "SEGV", PLAIN])?.ok()?;
    Ok(first_elsewhere(world, PLAIN, home.name(), failed)? - failed)
}

fn cut_off_most(world: &World) -> Result<f64> {
    let home = start_any(world, PLAIN)?;
    let other = world.workers().find(|machine| machine.name() != home.name()).context("there are three")?;
    let cut = now()?;
    other.cut()?;
    home.cut()?;
    let runs = first_elsewhere(world, PLAIN, home.name(), cut)?;
    home.heal()?;
    other.heal()?;
    Ok(runs - cut)
}

/// The one that leads, once the others follow it.
fn leader(world: &World) -> Result<Machine<'_>> {
    world.until("one leads and the others follow", LIMIT, || {
        let (leader, rows) = world.leader()?;
        let following = rows.iter().filter(|row| row.role == "following").count();
        ensure!(following + 1 == rows.len(), "{rows:?}");
        Ok(leader)
    })
}

struct Succession {
    leads: f64,
    acknowledges: f64,
}

fn lose_leader(world: &World) -> Result<Succession> {
    let old = leader(world)?;
    let file = world.file(PLAIN, BEATS)?;
    let (cut, cut_by_wall_clock) = (now()?, SystemTime::now());
    old.kill()?;
    world.ctl(&["submit"], &[file])?;
    let acknowledged = now()?;
    let (_, rows) = world.leader()?;
    let since = rows.iter().filter(|row| row.role == "leading").find_map(|row| row.since_ms);
    let since = UNIX_EPOCH + Duration::from_millis(since.context("since when it leads")?);
    old.boot()?;
    leader(world)?;
    Ok(Succession {
        leads: since.duration_since(cut_by_wall_clock).context("the wall clock")?.as_secs_f64(),
        acknowledges: acknowledged - cut,
    })
}

fn lose_leader_and_worker(world: &World) -> Result<f64> {
    let home = leader(world)?;
    let others = world.workers().filter(|machine| machine.name() != home.name());
    let others: Vec<String> = others.map(|machine| machine.machine_id().to_owned()).collect();
    world.ctl(&["cordon"], &others)?;
    let runs_on = start_any(world, PLAIN)?;
    ensure!(runs_on.name() == home.name(), "{PLAIN} runs on {}", runs_on.name());
    world.ctl(&["uncordon"], &others)?;
    let cut = now()?;
    home.kill()?;
    let runs = first_elsewhere(world, PLAIN, home.name(), cut)?;
    home.boot()?;
    leader(world)?;
    Ok(runs - cut)
}

/// Keeps every processor busy on every machine for so long: how many machines were taken for lost.
fn under_load(world: &World, lasts: Duration) -> Result<usize> {
    const BUSY: &str = "for _ in $(seq \"$(nproc)\"); do while :; do :; done & done; wait";
    world.until("every machine is up", LIMIT, || world.all_up())?;
    println!("every processor is busy on every machine for {} min", lasts.as_secs() / 60);
    let before = losses(world)?;
    for machine in world.cluster.machines() {
        machine.exec(&["systemd-run", "--quiet", "--unit=busy", "bash", "-c", BUSY])?.ok()?;
    }
    let began = now()?;
    thread::sleep(lasts);
    for machine in world.cluster.machines() {
        machine.exec(&["systemctl", "stop", "busy"])?.ok()?;
    }
    let spent = now()? - began;
    if spent < lasts.as_secs_f64() {
        bail!("only {spent:.0} s have passed");
    }
    Ok(losses(world)?.saturating_sub(before))
}

/// How many machines were taken for lost since the scheduler's machine was made, by its journal.
fn losses(world: &World) -> Result<usize> {
    let scheduler = world.scheduler()?;
    scheduler.exec(&["journalctl", "--sync"])?.ok()?;
    // All that it has said, for then that nothing is found is an error.
    let said = scheduler.exec_within(
        LIMIT,
        &["journalctl", "--unit=muster-scheduler", "--output=json", "--output-fields=MUSTER_EVENT"],
        &[],
    )?;
    let said = said.ok()?;
    ensure!(!said.trim().is_empty(), "the scheduler's journal is empty");
    let events = said.lines().map(|line| Ok(serde_json::from_str::<Value>(line)?));
    let events: Vec<Value> = events.collect::<Result<_>>().context("the scheduler's journal")?;
    Ok(events.iter().filter(|event| event["MUSTER_EVENT"] == "machine_lost").count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_under_load_stays_unless_there_is_something_new() {
        let text =
            "a\n<!-- times: vm -->\n\n| old |\n\nUnder full CPU load: old\n\n<!-- end of times: vm -->\nb\n";
        let with = |loaded| replace(text, "vm", "| new |\n", loaded).unwrap();
        assert_eq!(with(None), text.replace("| old |", "| new |"));
        assert_eq!(
            with(Some("Under full CPU load: new")),
            text.replace("| old |", "| new |").replace(": old", ": new")
        );
        assert_eq!(replace(text, "nspawn", "| new |\n", None), None);
    }
}
