//! What the loss of a leader costs: until another one acknowledges, and how long it takes one that has much to take over.

use std::time::Duration;

use anyhow::{Context, Result};
use muster_core::command::Verb;
use muster_daemon::clock;
use muster_etcd::pb;
use serde::Deserialize;

use crate::agents::Agents;
use crate::client::{command, unit};
use crate::figure::{Bar, Figure, median, say};
use crate::several::{LIMIT, MEMBERS, Several, etcd_client, submitted};

const SCHEDULERS: usize = 3;
const RUNS: usize = 9;

const UNITS: usize = 100_000;
const UNITS_PER_COMMAND: usize = 500;
const MACHINES: u32 = 100;
const TAKEOVERS: usize = 5;

/// Who leads, as it stands in etcd.
#[derive(Deserialize)]
struct Leader {
    since_ms: u64,
}

#[tokio::main(flavor = "current_thread")]
pub async fn leaderless() -> Result<Vec<Figure>> {
    let mut several = Several::start(SCHEDULERS).await?;
    let mut times = Vec::new();
    for run in 1..=RUNS {
        several.client().await?.execute(command(Verb::Submit, vec![unit(run)?])).await?;
        let (killed, clients) = several.kill_leader().await?;
        let acknowledged = submitted(&clients, RUNS + run).await?;
        let seconds = acknowledged.duration_since(killed).as_secs_f64();
        say(&format!("run {run} of {RUNS}: {seconds:.2} s"));
        times.push(seconds);
        several.join().await?;
        several.follow().await?;
    }
    let seconds = median(&mut times);
    // In order now.
    let (least, most) = (times[0], times[RUNS - 1]);
    Ok(vec![Figure {
        name: "leaderless_s",
        value: most,
        unit: "s",
        bar: Some(Bar::AtMost(2.75)),
        method: format!(
            "from SIGKILL of the leader of {SCHEDULERS} schedulers, which is not started again, until one of the others has \
             acknowledged a submission that is tried without a pause; default settings, etcd of {MEMBERS} members, all on \
             this host; the longest of {RUNS} runs (least {least:.2}, median {seconds:.2})"
        ),
    }])
}

#[tokio::main(flavor = "current_thread")]
pub async fn takeover() -> Result<Vec<Figure>> {
    let mut several = Several::start(2).await?;
    let etcd = etcd_client(&several.etcd)?;
    let _agents = Agents::start(MACHINES, &several.addresses());
    several.client().await?.launch(UNITS, UNITS_PER_COMMAND).await?;
    let mut times = Vec::new();
    for run in 1..=TAKEOVERS {
        several.follow().await?;
        let (_, clients) = several.kill_leader().await?;
        submitted(&clients, UNITS + run).await?;
        let acknowledged = clock::wall_ms();
        let range = pb::RangeRequest { key: "/muster/leader".into(), ..Default::default() };
        let leader = etcd.range(range, LIMIT).await?.kvs.into_iter().next().context("no leader in etcd")?;
        let Leader { since_ms } = serde_json::from_slice(&leader.value)?;
        let seconds = Duration::from_millis(acknowledged.saturating_sub(since_ms)).as_secs_f64();
        say(&format!("run {run} of {TAKEOVERS}: {seconds:.3} s"));
        times.push(seconds);
        several.join().await?;
    }
    let seconds = median(&mut times);
    Ok(vec![Figure {
        name: "takeover_100k_s",
        value: seconds,
        unit: "s",
        bar: Some(Bar::AtMost(1.0)),
        method: format!(
            "a leader with {UNITS} units active on {MACHINES} machines (agents without systemd) is killed; from the moment at \
             which the one that followed asks etcd to be elected until it has acknowledged a submission that is tried \
             without a pause; median of {TAKEOVERS} runs ({:.3} to {:.3})",
            times[0],
            times[TAKEOVERS - 1]
        ),
    }])
}
