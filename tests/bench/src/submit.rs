//! How many submissions a second are acknowledged, against what the disk alone does.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use muster_core::command::Verb;

use crate::client::{Client, command, unit};
use crate::figure::{Bar, Figure, median, say};
use crate::scheduler::Scheduler;

pub const UNITS: u16 = 10_000;
const PAIRS: usize = 5;
/// How many submissions wait for their acknowledgement at once.
pub const IN_FLIGHT: usize = 1_000;
const FLUSHES: u16 = 300;

#[tokio::main(flavor = "current_thread")]
pub async fn measure() -> Result<Vec<Figure>> {
    let (mut rates, mut flushes) = (Vec::new(), Vec::new());
    for pair in 1..=PAIRS {
        let scheduler = Scheduler::start().await?;
        // Both ways round, so that what changes slowly on the disk touches both alike.
        let (rate, flush) = if pair % 2 == 0 {
            let rate = acknowledgements_per_s(&scheduler.client().await?).await?;
            (rate, flushes_per_s(scheduler.directory())?)
        } else {
            let flush = flushes_per_s(scheduler.directory())?;
            (acknowledgements_per_s(&scheduler.client().await?).await?, flush)
        };
        say(&format!("pair {pair} of {PAIRS}: {rate:.0} acknowledgements/s, {flush:.0} fdatasync/s"));
        rates.push(rate);
        flushes.push(flush);
    }
    let (rate, flush) = (median(&mut rates), median(&mut flushes));
    Ok(vec![Figure {
        name: "submit_ratio",
        value: rate / flush,
        unit: "",
        // 50, or as much as makes 15,000 a second, where that is less.
        bar: Some(Bar::AtLeast((15_000.0 / flush).min(50.0))),
        method: format!(
            "one client on one connection submits {UNITS} units, a command each, {IN_FLIGHT} in flight, to a scheduler \
             with an empty store on a disk; acknowledgements/s ({rate:.0}) over appends of one unit file with fdatasync each in \
             the same directory ({flush:.0}/s); medians of {PAIRS} pairs in turns"
        ),
    }])
}

pub async fn acknowledgements_per_s(client: &Client) -> Result<f64> {
    let submit = |number: u16| Ok(command(Verb::Submit, vec![unit(number.into())?]));
    let commands = (0..UNITS).map(submit).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    stream::iter(commands)
        .map(|command| client.clone().execute(command))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await
        .context("a submission was not acknowledged")?;
    Ok(f64::from(UNITS) / began.elapsed().as_secs_f64())
}

fn flushes_per_s(directory: &Path) -> Result<f64> {
    let (_, content) = unit(0)?;
    let mut file = OpenOptions::new().create(true).append(true).open(directory.join("flushed"))?;
    let began = Instant::now();
    for _ in 0..FLUSHES {
        file.write_all(content.as_bytes())?;
        file.sync_data()?;
    }
    Ok(f64::from(FLUSHES) / began.elapsed().as_secs_f64())
}
