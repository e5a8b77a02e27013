//! Figures of a cluster of three machines: how fast it acts, and what it costs when nothing happens.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_cluster::{Cluster, Machine, Role};

use crate::figure::{Bar, Figure, median, say};
use crate::machines::{Daemon, INSIDE, Units, install};

const UNITS: usize = 500;
const RUNS: usize = 3;
const BOOTS: usize = 5;
/// How long the cluster is watched doing nothing.
const MINUTE: Duration = Duration::from_secs(60);
/// How long it is left alone before.
const SETTLE: Duration = Duration::from_secs(10);

/// How fast a cluster comes up.
pub fn boot() -> Result<Vec<Figure>> {
    let mut boots = Vec::new();
    for _ in 0..BOOTS {
        let began = Instant::now();
        let cluster = Cluster::builder().machines(3).up()?;
        boots.push(began.elapsed().as_secs_f64());
        cluster.down()?;
    }
    let seconds = median(&mut boots);
    // In order now.
    let (least, most) = (boots[0], boots[BOOTS - 1]);
    Ok(vec![Figure {
        name: "cluster_up_3_s",
        value: seconds,
        unit: "s",
        bar: Some(Bar::AtMost(10.0)),
        method: format!(
            "what `muster-cluster up --machines 3` does, with the programs built: namespaces, bridge, three machines and one for \
             the scheduler booted from nothing, until the scheduler lists every agent as up; median of {BOOTS} runs \
             ({least:.2} to {most:.2})"
        ),
    }])
}

pub fn measure() -> Result<Vec<Figure>> {
    let cluster = Cluster::builder().machines(3).up()?;
    let (mut starts, mut destroys) = (Vec::new(), Vec::new());
    for run in 1..=RUNS {
        let units = Units::new(&format!("run{run}"), UNITS)?;
        let (_, listed) = units.start(&cluster)?;
        let destroyed = units.destroy(&cluster)?;
        say(&format!("run {run} of {RUNS}: started in {listed:.2} s, destroyed in {destroyed:.2} s"));
        starts.push(listed);
        destroys.push(destroyed);
    }
    let mut figures = vec![
        Figure {
            name: "start_500_on_3_s",
            value: median(&mut starts),
            unit: "s",
            bar: None,
            method: format!(
                "{UNITS} new services with one `musterctl start` over three machines, from its start until list-units has shown \
                 all as active/running; median of {RUNS} runs"
            ),
        },
        Figure {
            name: "destroy_500_s",
            value: median(&mut destroys),
            unit: "s",
            bar: None,
            method: format!(
                "one `musterctl destroy` of these {UNITS}, from its start until list-units shows none; median of {RUNS} runs"
            ),
        },
    ];
    figures.extend(idle(&cluster)?);
    Ok(figures)
}

/// What the daemons do while nobody asks for anything.
fn idle(cluster: &Cluster) -> Result<Vec<Figure>> {
    let machines: Vec<Machine<'_>> = cluster.machines().collect();
    for machine in &machines {
        install(machine)?;
    }
    // A count that cannot rise would say nothing.
    let first = Units::new("first", 1)?;
    let seen = writes_within(&machines, Duration::from_secs(5), || first.start(cluster).map(drop))?;
    let seen = seen.iter().zip(&machines).find(|(_, machine)| machine.role() == Role::Scheduler);
    let seen = seen.map_or(0, |(seen, _)| *seen);
    ensure!(seen > 0, "a unit was started, and no write to the store was counted");

    let units = Units::new("idle", UNITS - 1)?;
    units.start(cluster)?;
    thread::sleep(SETTLE);
    let daemons = machines.iter().map(|machine| Daemon::find(*machine, service(machine)));
    let daemons = daemons.collect::<Result<Vec<_>>>()?;
    let cpu = || daemons.iter().map(Daemon::cpu_s).collect::<Result<Vec<f64>>>();
    say(&format!("watching an idle cluster for {} s", MINUTE.as_secs()));
    let began = Instant::now();
    let before = cpu()?;
    let written: u32 = writes_within(&machines, MINUTE, || Ok(()))?.iter().sum();
    let after = cpu()?;
    let seconds = began.elapsed().as_secs_f64();

    let percent = before.iter().zip(&after).map(|(before, after)| (after - before) / seconds * 100.0);
    let percent: Vec<f64> = percent.collect();
    let each: Vec<String> = daemons
        .iter()
        .zip(&percent)
        .map(|(daemon, percent)| format!("{} {percent:.2}", daemon.shown()))
        .collect();
    Ok(vec![
        Figure {
            name: "idle_store_writes",
            value: f64::from(written),
            unit: "",
            bar: Some(Bar::AtMost(0.0)),
            method: format!(
                "writes to files under the state directories of the scheduler and of three agents with {UNITS} units active, \
                 counted by inotify for {} s (checked with a start, for which the scheduler wrote {seen} times)",
                MINUTE.as_secs()
            ),
        },
        Figure {
            name: "idle_cpu_percent",
            value: percent.iter().copied().fold(0.0, f64::max),
            unit: "%",
            bar: Some(Bar::Below(0.3)),
            method: format!(
                "utime and stime of /proc/PID/stat over that minute, of one core, for the daemon that takes most ({})",
                each.join(", ")
            ),
        },
    ])
}

fn service(machine: &Machine<'_>) -> &'static str {
    if machine.role() == Role::Scheduler { "muster-scheduler.service" } else { "muster-agent.service" }
}

/// Where the daemon of a machine keeps what survives.
fn state_directories(machine: &Machine<'_>) -> &'static [&'static str] {
    if machine.role() == Role::Scheduler {
        &["/var/lib/private/muster-scheduler"]
    } else {
        &["/var/lib/muster", "/run/muster"]
    }
}

/// How often files under the state directories of each machine are written within `limit`, while `act` runs.
fn writes_within(
    machines: &[Machine<'_>],
    limit: Duration,
    act: impl FnOnce() -> Result<()>,
) -> Result<Vec<u32>> {
    let seconds = limit.as_secs().to_string();
    let mut counters = Vec::new();
    for machine in machines {
        let mut command = vec![INSIDE, "count-writes", "--seconds", &seconds];
        command.extend(state_directories(machine));
        let mut counter = machine.command(&command)?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(counter.stdout.take().context("no pipe")?).lines();
        lines.next().with_context(|| format!("{}: count-writes has failed", machine.name()))??;
        counters.push((counter, lines));
    }
    act()?;
    let mut counts = Vec::new();
    for (mut counter, mut lines) in counters {
        let count = lines.next().context("count-writes has failed")??;
        counter.wait()?;
        counts.push(count.parse().with_context(|| format!("count-writes printed {count:?}"))?);
    }
    Ok(counts)
}
