//! What a scheduler with its state in etcd makes of it: against etcd alone, and when nothing happens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use muster_etcd::pb::request_op::Request;
use muster_etcd::{Client as EtcdClient, pb};

use tokio::time::sleep;

use crate::agents::Agents;
use crate::figure::{Bar, Figure, median, say};
use crate::several::{LIMIT, MEMBERS, Several, etcd_client, revision, start_etcd};
use crate::submit::{IN_FLIGHT, UNITS, acknowledgements_per_s};

const PAIRS: usize = 5;
/// How many transactions wait for their answer at once: what is best is found by trying.
const DEPTHS: [usize; 4] = [1, 8, 64, 512];

const SCHEDULERS: usize = 3;
const MACHINES: u32 = 3;
const IDLE_UNITS: usize = 500;
const SETTLE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(30);

/// How often it is waited for an answer at most.
const MAX_ROUNDS: usize = 500;

/// The changes of one transaction.
type Batch = Vec<pb::RequestOp>;

/// How many submissions a second that were if etcd alone wrote it.
#[derive(Clone, Copy)]
struct Limits {
    /// In the scheduler's own transactions.
    batches: f64,
    /// As much in all, in a transaction for each.
    single: f64,
}

#[tokio::main(flavor = "current_thread")]
pub async fn submit() -> Result<Vec<Figure>> {
    let (mut rates, mut limits, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    let mut batches: Vec<Batch> = Vec::new();
    for pair in 1..=PAIRS {
        // Both ways round, so that what changes slowly touches both alike.
        let before = if pair % 2 == 0 { Some(limits_per_s(&batches).await?) } else { None };
        let several = Several::start(1).await?;
        let client = etcd_client(&several.etcd)?;
        let from = revision(&client).await? + 1;
        let rate = acknowledgements_per_s(&several.client().await?).await?;
        batches = written(&client, from).await?;
        drop(several);
        let limit = match before {
            Some(limit) => limit,
            None => limits_per_s(&batches).await?,
        };
        say(&format!(
            "pair {pair} of {PAIRS}: {rate:.0} acknowledgements/s in {} transactions; etcd alone {:.0}/s, in one for each {:.0}/s",
            batches.len(),
            limit.batches,
            limit.single
        ));
        rates.push(rate);
        limits.push(limit);
        sizes.push(f64::from(u32::try_from(batches.len())?));
    }
    let ratio = |of: fn(&Limits) -> f64| {
        let mut ratios: Vec<f64> = rates.iter().zip(&limits).map(|(rate, limit)| rate / of(limit)).collect();
        median(&mut ratios)
    };
    let limit = |of: fn(&Limits) -> f64| median(&mut limits.iter().map(of).collect::<Vec<_>>());
    let (single, in_batches) = (|limits: &Limits| limits.single, |limits: &Limits| limits.batches);
    let best = "by a client that has all ready and compares nothing, with the member and the number in flight (of 1 to 512) \
                that are fastest";
    Ok(vec![
        Figure {
            name: "submit_etcd_ratio",
            value: ratio(single),
            unit: "",
            bar: Some(Bar::AtLeast(0.5)),
            method: format!(
                "one client on one connection submits {UNITS} units, a command each, {IN_FLIGHT} in flight, to a scheduler with \
                 an empty etcd of {MEMBERS} members, all on this host; acknowledgements/s ({:.0}) over etcd alone with a \
                 transaction for each ({:.0}/s), which puts as many bytes in all, {best}; median of {PAIRS} pairs in turns",
                median(&mut rates.clone()),
                limit(single)
            ),
        },
        Figure {
            name: "submit_etcd_batches",
            value: ratio(in_batches),
            unit: "",
            bar: None,
            method: format!(
                "the same acknowledgements/s over etcd alone with what the scheduler wrote ({:.0}/s): the same {:.0} \
                 transactions with the same values, {best}",
                limit(in_batches),
                median(&mut sizes)
            ),
        },
    ])
}

/// All that was written from this revision on.
async fn written(client: &EtcdClient, from: i64) -> Result<Vec<Batch>> {
    let last = revision(client).await?;
    let everything = pb::WatchCreateRequest {
        key: "/muster/".into(),
        range_end: "/muster0".into(),
        start_revision: from,
        fragment: true,
        ..Default::default()
    };
    let mut changes = client.watch(vec![everything], LIMIT).await?;
    let mut batches: BTreeMap<i64, Batch> = BTreeMap::new();
    while batches.last_key_value().is_none_or(|(revision, _)| *revision < last) {
        let change = client.next_change(&mut changes).await?;
        ensure!(!change.canceled, "etcd ended the watch: {}", change.cancel_reason);
        for event in change.events {
            let deletes = event.r#type() == pb::event::EventType::Delete;
            let kv = event.kv.context("a change without a key")?;
            let change = if deletes {
                Request::RequestDeleteRange(pb::DeleteRangeRequest { key: kv.key, ..Default::default() })
            } else {
                Request::RequestPut(pb::PutRequest { key: kv.key, value: kv.value, ..Default::default() })
            };
            let change = pb::RequestOp { request: Some(change) };
            batches.entry(kv.mod_revision).or_default().push(change);
        }
    }
    Ok(batches.into_values().collect())
}

async fn limits_per_s(batches: &[Batch]) -> Result<Limits> {
    let values = batches.iter().flatten().filter_map(|op| match &op.request {
        Some(Request::RequestPut(put)) => Some(put.value.len()),
        _ => None,
    });
    let value = vec![b'x'; values.sum::<usize>() / usize::from(UNITS)];
    let single = |number| {
        let key = format!("/muster/log/{number:020}").into_bytes().into();
        let request = pb::PutRequest { key, value: value.clone().into(), lease: 0 };
        vec![pb::RequestOp { request: Some(Request::RequestPut(request)) }]
    };
    let single: Vec<Batch> = (0..UNITS).map(single).collect();
    Ok(Limits { batches: fastest_per_s(batches).await?, single: fastest_per_s(&single).await? })
}

/// How many submissions a second that were if etcd had nothing else to do than to write this.
async fn fastest_per_s(batches: &[Batch]) -> Result<f64> {
    let etcd = start_etcd().await?;
    let mut least = f64::MAX;
    for endpoint in etcd.endpoints() {
        let config = muster_etcd::Config { endpoints: vec![endpoint], ..etcd.config() };
        for depth in DEPTHS {
            // One by one, many would take long; and would never be fastest.
            if depth * MAX_ROUNDS < batches.len() {
                continue;
            }
            least = least.min(write_s(&EtcdClient::new(config.clone())?, batches, depth).await?);
        }
    }
    Ok(f64::from(UNITS) / least)
}

/// The seconds that it takes to write this.
async fn write_s(client: &EtcdClient, batches: &[Batch], depth: usize) -> Result<f64> {
    // It connects with the first question.
    revision(client).await?;
    let requests: Vec<_> =
        batches.iter().map(|batch| pb::TxnRequest { success: batch.clone(), ..Default::default() }).collect();
    let began = Instant::now();
    stream::iter(requests)
        .map(|request| client.txn(request, LIMIT))
        .buffer_unordered(depth)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(began.elapsed().as_secs_f64())
}

#[tokio::main(flavor = "current_thread")]
pub async fn idle() -> Result<Vec<Figure>> {
    let several = Several::start(SCHEDULERS).await?;
    let _agents = Agents::start(MACHINES, &several.addresses());
    let mut client = several.client().await?;
    let etcd = etcd_client(&several.etcd)?;
    let empty = proposals(&etcd).await?;
    client.launch(IDLE_UNITS, IDLE_UNITS).await?;
    // A count that cannot rise would say nothing.
    ensure!(proposals(&etcd).await? > empty, "units were started, and no entry of etcd's log was counted");
    sleep(SETTLE).await;
    let before = (revision(&etcd).await?, proposals(&etcd).await?);
    sleep(IDLE).await;
    let after = (revision(&etcd).await?, proposals(&etcd).await?);
    let (active, (up, _)) = (client.active().await?, client.machines().await?);
    ensure!(
        active == IDLE_UNITS && up == MACHINES as usize,
        "{active} units are active, {up} machines are up"
    );
    #[expect(clippy::cast_precision_loss, reason = "there are not so many")]
    let written = (after.1 - before.1) as f64;
    Ok(vec![Figure {
        name: "idle_etcd_writes",
        value: written,
        unit: "",
        bar: Some(Bar::AtMost(0.0)),
        method: format!(
            "entries of etcd's own log in {} s (by the index that its members show; its revision rose by {}), with \
             {SCHEDULERS} schedulers, {MEMBERS} members, {MACHINES} agents without systemd and {IDLE_UNITS} active units; \
             leases are renewed meanwhile, which is no entry",
            IDLE.as_secs(),
            after.0 - before.0
        ),
    }])
}

/// How many entries etcd's own log has had.
async fn proposals(client: &EtcdClient) -> Result<u64> {
    let answers = client.status(LIMIT).await;
    let indexes = answers.into_iter().filter_map(|(_, status)| status.ok()).map(|status| status.raft_index);
    indexes.max().context("no member of etcd says how it is")
}
