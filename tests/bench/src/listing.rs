//! How long `musterctl list-units` takes, from the start of its process to its end.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::agents::Agents;
use crate::figure::{Bar, Figure, median, say};
use crate::scheduler::Scheduler;

const UNITS: usize = 10_000;
const UNITS_PER_COMMAND: usize = 500;
const MACHINES: u32 = 100;
const RUNS: usize = 31;

#[tokio::main(flavor = "current_thread")]
pub async fn measure() -> Result<Vec<Figure>> {
    let scheduler = Scheduler::start().await?;
    let agents = Agents::start(MACHINES, &[scheduler.address().to_owned()]);
    scheduler.client().await?.launch(UNITS, UNITS_PER_COMMAND).await?;
    let (mut lists, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (seconds, lines) = run(scheduler.address(), &["list-units", "--no-legend"])?;
        ensure!(lines == UNITS, "list-units has shown {lines} of {UNITS} units");
        lists.push(seconds * 1000.0);
        // What the process itself costs.
        starts.push(run(scheduler.address(), &["version"])?.0 * 1000.0);
    }
    drop(agents);
    let milliseconds = median(&mut lists);
    // In order now.
    let (least, most) = (lists[0], lists[RUNS - 1]);
    say(&format!("{milliseconds:.0} ms ({least:.0} to {most:.0})"));
    Ok(vec![Figure {
        name: "list_units_10k_ms",
        value: milliseconds,
        unit: "ms",
        bar: Some(Bar::Below(100.0)),
        method: format!(
            "`musterctl list-units` of {UNITS} active units on {MACHINES} machines (agents without systemd), from the start of its \
             process until all it prints is read and it has ended; the scheduler is on the same host, and sends for it \
             all it knows of the units; median of {RUNS} runs ({least:.0} to {most:.0}); `musterctl version` takes {:.1} ms",
            median(&mut starts)
        ),
    }])
}

/// Runs `musterctl`; the seconds that it takes, and how many lines it prints.
fn run(address: &str, arguments: &[&str]) -> Result<(f64, usize)> {
    let program = muster_cluster::bin_dir()?.join("musterctl");
    let began = Instant::now();
    let output = Command::new(&program)
        .args(arguments)
        .env("MUSTERCTL_ENDPOINT", address)
        .stdin(Stdio::null())
        .output()
        .with_context(|| program.display().to_string())?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(output.status.success(), "musterctl: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok((seconds, output.stdout.split_inclusive(|byte| *byte == b'\n').count()))
}
