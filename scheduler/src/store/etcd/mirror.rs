//! What etcd holds, in memory: read once, and kept up to date entry by entry. Who follows has it ready when he is elected.

use std::time::Duration;

use muster_core::ids::{ClusterId, Term};
use muster_core::leader::{Change, Durable};
use muster_core::unit::ContentHash;
use muster_etcd::{Client, Error, pb};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::keys::{Keys, op};
use super::log::Parts;
use crate::store::unreadable;

/// The version of how the state lies in etcd.
const FORMAT: &str = "1";

/// How long a question may take. Pages are some MiB.
pub(super) const READ: Duration = Duration::from_secs(5);

/// How many values are read at once: each has up to 1 MiB.
const PAGE: i64 = 16;

/// The oldest etcd that has all that is used here (parts of a watch's answer: 3.4).
const OLDEST: (u32, u32) = (3, 4);

/// Who leads, as it says so in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// Of the scheduler, the same through its restarts until its machine boots.
    pub id: Uuid,
    /// Where agents and clients reach it.
    pub address: String,
    /// Since when it leads, in ms since 1970.
    pub since_ms: u64,
}

/// A scheduler that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerRecord {
    /// Where agents and clients reach it.
    pub address: String,
    /// Its version.
    pub version: String,
}

/// Where the snapshot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotRecord {
    /// What it holds is as of this entry or a later one; the log goes on after it.
    pub(super) from: u64,
    /// How large its parts are together.
    pub(super) bytes: u64,
}

/// Why the state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not now.
    #[error(transparent)]
    Etcd(#[from] Error),
    /// It is not what it should be.
    #[error("etcd, prefix {prefix}: {problem}")]
    Wrong {
        /// Below which it lies.
        prefix: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl ReadError {
    /// Whether it may be better later, without anybody doing anything here.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Etcd(
                Error::Unauthenticated { .. } | Error::Unanswered { .. } | Error::Compacted | Error::NoLease
            )
        )
    }
}

/// The state as of one entry of the log.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) durable: Durable,
    pub(super) term: Term,
    /// When the key of the term was changed last.
    pub(super) term_revision: i64,
    /// The last entry that is in it.
    pub(super) number: u64,
    /// What that was, where it was read.
    last: Option<ContentHash>,
    /// How large the entries after the snapshot are together.
    pub(super) log_bytes: u64,
    pub(super) snapshot: SnapshotRecord,
    /// When the key of the snapshot was changed last; 0: there is none.
    pub(super) snapshot_revision: i64,
    /// Whether it may be older than what was decided.
    pub(super) doubted: bool,
    parts: Parts,
}

/// What lies beside the log, at one moment.
#[derive(Debug)]
struct Head {
    revision: i64,
    cluster: ClusterId,
    term: Term,
    term_revision: i64,
    snapshot: SnapshotRecord,
    snapshot_revision: i64,
    doubted: bool,
    /// The cluster in whose place a backup was restored: it had nothing.
    formerly: Option<ClusterId>,
    leader: Option<pb::KeyValue>,
}

impl Head {
    /// Makes sure that it is this cluster's, where one is known, or that of a backup that was restored in its place.
    fn is_of(&self, keys: &Keys, known: Option<ClusterId>) -> Result<(), ReadError> {
        let found = self.cluster;
        match known {
            Some(known) if known != found && self.formerly != Some(known) => Err(wrong(
                keys,
                format!(
                    "cluster {found} is there, and this scheduler's state directory says that it belongs to cluster {known}: \
                     is it the right prefix, and the right etcd? (To have it join the other cluster, give it an empty state \
                     directory)"
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// What was read: the state is as of `revision`.
#[derive(Debug)]
pub(super) struct AsOf {
    pub(super) revision: i64,
    pub(super) leader: Option<pb::KeyValue>,
}

impl Mirror {
    /// Takes in an entry; one that it has had before changes nothing.
    pub(super) fn take(&mut self, number: u64, value: &[u8]) -> Result<(), String> {
        if number <= self.number {
            return Ok(());
        }
        if number != self.number + 1 {
            return Err(format!("entry {} of the log is missing", self.number + 1));
        }
        let changes = self
            .parts
            .push(value)
            .map_err(|problem| format!("entry {number} of the log makes no sense: {problem}"))?;
        self.number = number;
        self.last = Some(ContentHash::of(value));
        self.log_bytes += value.len() as u64;
        changes.into_iter().flatten().for_each(|change| take(&mut self.durable, change));
        Ok(())
    }

    /// This batch was written by who has this mirror.
    pub(super) fn wrote(&mut self, changes: Vec<Change>) {
        changes.into_iter().for_each(|change| self.durable.apply(change));
    }

    /// A backup has taken its place: it is in that snapshot, which was written at this revision with a term.
    pub(super) fn replaced(&mut self, durable: Durable, term: Term, snapshot: SnapshotRecord, revision: i64) {
        *self = Self {
            durable,
            term,
            term_revision: revision,
            number: snapshot.from,
            last: None,
            log_bytes: 0,
            snapshot,
            snapshot_revision: revision,
            doubted: true,
            parts: Parts::default(),
        };
    }
}

/// Takes in a change by another leader. Files are read now, and not when this scheduler is elected.
fn take(durable: &mut Durable, change: Change) {
    if let Change::PutFile(name, file) = &change {
        file.read(name);
    }
    durable.apply(change);
}

/// Makes sure that all members that answer are new enough, and that what lies below the prefix is a cluster's, this one
/// where one is given. Where there is nothing, makes a new cluster.
pub(super) async fn prepare(
    client: &Client,
    keys: &Keys,
    cluster: Option<ClusterId>,
) -> Result<ClusterId, ReadError> {
    for (endpoint, status) in client.status(READ).await {
        let Ok(status) = status else { continue };
        if parse_version(&status.version).is_none_or(|version| version < OLDEST) {
            let (major, minor) = OLDEST;
            return Err(wrong(
                keys,
                format!("{endpoint} is etcd {}: at least {major}.{minor} is needed", status.version),
            ));
        }
    }
    let head = loop {
        match head(client, keys).await? {
            Some(head) => break head,
            None => make(client, keys, cluster).await?,
        }
    };
    head.is_of(keys, cluster)?;
    Ok(head.cluster)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Makes a new cluster, unless somebody else does.
async fn make(client: &Client, keys: &Keys, known: Option<ClusterId>) -> Result<(), ReadError> {
    let there = client.range(pb::RangeRequest { limit: 1, keys_only: true, ..keys.all() }, READ).await?;
    // A scheduler is registered before.
    let other =
        there.kvs.iter().find(|kv| !kv.key.starts_with(format!("{}schedulers/", keys.prefix()).as_bytes()));
    // Another scheduler may have made it a moment ago.
    if let Some(other) = other
        && head(client, keys).await?.is_none()
    {
        let key = String::from_utf8_lossy(&other.key).into_owned();
        return Err(wrong(
            keys,
            format!("it is in use by something else than Muster (key {key}): choose another prefix"),
        ));
    }
    if let Some(known) = known {
        return Err(wrong(
            keys,
            format!(
                "nothing is there, and this scheduler's state directory says that it belongs to cluster {known}: is it the \
                 right prefix, and the right etcd? (To start a new cluster there, or to restore this one from a backup, \
                 give it an empty state directory)"
            ),
        ));
    }
    let cluster = ClusterId::new(Uuid::new_v4().as_u128());
    let request = pb::TxnRequest {
        compare: vec![op::made_at(keys.format(), 0), op::made_at(keys.cluster(), 0)],
        success: vec![
            op::put(keys.format(), FORMAT.into(), 0),
            op::put(keys.cluster(), cluster.to_string().into(), 0),
            op::put(keys.term(), Term(0).to_string().into(), 0),
        ],
        failure: Vec::new(),
    };
    client.txn(request, READ).await?;
    Ok(())
}

/// Reads what lies beside the log; none where nothing is there at all.
async fn head(client: &Client, keys: &Keys) -> Result<Option<Head>, ReadError> {
    let read = [
        keys.format(),
        keys.cluster(),
        keys.term(),
        keys.snapshot(),
        keys.leader(),
        keys.doubt(),
        keys.formerly(),
    ];
    let request = pb::TxnRequest { success: read.map(op::get).into(), ..Default::default() };
    let answer = client.txn(request, READ).await?;
    let revision = answer.header.as_ref().map_or(0, |header| header.revision);
    let mut values = op::values(answer).into_iter();
    let mut next = || values.next().flatten();
    let (format, cluster, term, snapshot, leader) = (next(), next(), next(), next(), next());
    let (doubt, formerly) = (next(), next());
    let Some(format) = format else {
        return if cluster.is_none() { Ok(None) } else { Err(wrong(keys, "it has no format".to_owned())) };
    };
    let found = text(&format);
    if found != FORMAT {
        let problem = format!(
            "it has format version {found}, this muster-scheduler reads version {FORMAT}: use the version that wrote it"
        );
        return Err(wrong(keys, problem));
    }
    let missing = |name: &str| wrong(keys, format!("it is damaged: it has no {name}"));
    let damaged = |name: &str, problem: &dyn std::fmt::Display| {
        wrong(keys, format!("it is damaged: {name}: {problem}"))
    };
    let cluster = cluster.ok_or_else(|| missing("cluster"))?;
    let term = term.ok_or_else(|| missing("term"))?;
    let (snapshot_revision, snapshot) = match snapshot {
        Some(kv) => (kv.mod_revision, json(&kv).map_err(|problem| damaged("snapshot", &problem))?),
        None => Default::default(),
    };
    Ok(Some(Head {
        revision,
        cluster: text(&cluster).parse().map_err(|error| damaged("cluster", &error))?,
        term: Term(text(&term).parse().map_err(|error| damaged("term", &error))?),
        term_revision: term.mod_revision,
        snapshot,
        snapshot_revision,
        doubted: doubt.is_some(),
        formerly: formerly.and_then(|kv| text(&kv).parse().ok()),
        leader,
    }))
}

/// Brings the mirror up to date, or reads everything where there is none; of this cluster, where one is known.
pub(super) async fn refresh(
    client: &Client,
    keys: &Keys,
    cluster: Option<ClusterId>,
    mirror: &mut Option<Mirror>,
) -> Result<AsOf, ReadError> {
    let head =
        head(client, keys).await?.ok_or_else(|| wrong(keys, "nothing is there any more".to_owned()))?;
    head.is_of(keys, cluster)?;
    // What it lacks may be in a snapshot only; and a restored backup is another state altogether.
    let goes_on = |mirror: &Mirror| {
        mirror.durable.cluster == head.cluster
            && mirror.number >= head.snapshot.from
            && mirror.term <= head.term
    };
    let mut kept = mirror.take().filter(goes_on);
    // Nor is it of use where etcd was put back to what it was before the last entry, and has another one by now, perhaps.
    if let Some(number) = kept.as_ref().map(|mirror| mirror.number).filter(|last| *last > head.snapshot.from)
    {
        let key = keys.entry(number).into();
        let entry = pb::RangeRequest { key, revision: head.revision, ..Default::default() };
        let there = client.range(entry, READ).await?.kvs.first().map(|kv| ContentHash::of(&kv.value));
        kept = kept.filter(|mirror| mirror.last.is_some() && mirror.last == there);
    }
    let mut current = match kept {
        Some(mirror) => mirror,
        None => load(client, keys, &head).await?,
    };
    let mut entries = keys.entries_after(current.number);
    pages(client, &mut entries, head.revision, &mut |kv| {
        let number = keys.number(&kv.key).ok_or("a key of the log is none")?;
        current.take(number, &kv.value)
    })
    .await?
    .map_err(|problem| wrong(keys, problem))?;
    (current.term, current.term_revision) = (head.term, head.term_revision);
    (current.snapshot, current.snapshot_revision) = (head.snapshot, head.snapshot_revision);
    current.doubted = head.doubted;
    *mirror = Some(current);
    Ok(AsOf { revision: head.revision, leader: head.leader })
}

async fn load(client: &Client, keys: &Keys, head: &Head) -> Result<Mirror, ReadError> {
    let mut durable = Durable::new(head.cluster);
    let mut parts = Parts::default();
    let mut bytes = 0;
    let mut snapshot = keys.snapshot_parts(head.snapshot.from);
    pages(client, &mut snapshot, head.revision, &mut |kv| {
        bytes += kv.value.len() as u64;
        let changes =
            parts.push(&kv.value).map_err(|problem| format!("its snapshot makes no sense: {problem}"))?;
        changes.into_iter().flatten().for_each(|change| take(&mut durable, change));
        Ok(())
    })
    .await?
    .map_err(|problem| wrong(keys, problem))?;
    if bytes != head.snapshot.bytes {
        let problem = format!(
            "it is damaged: its snapshot has {bytes} bytes where {} are expected",
            head.snapshot.bytes
        );
        return Err(wrong(keys, problem));
    }
    Ok(Mirror {
        durable,
        term: head.term,
        term_revision: head.term_revision,
        number: head.snapshot.from,
        last: None,
        log_bytes: 0,
        snapshot: head.snapshot,
        snapshot_revision: head.snapshot_revision,
        doubted: head.doubted,
        parts: Parts::default(),
    })
}

/// Reads keys in their order, as they were at a revision, until one is wrong.
async fn pages(
    client: &Client,
    range: &mut pb::RangeRequest,
    revision: i64,
    take: &mut (dyn FnMut(&pb::KeyValue) -> Result<(), String> + Send),
) -> Result<Result<(), String>, Error> {
    (range.revision, range.limit) = (revision, PAGE);
    loop {
        let page = client.range(range.clone(), READ).await?;
        for kv in &page.kvs {
            if let Err(problem) = take(kv) {
                return Ok(Err(problem));
            }
        }
        let Some(last) = page.kvs.last().filter(|_| page.more) else { return Ok(Ok(())) };
        // The first key that comes after it.
        range.key = [&last.key[..], &[0]].concat().into();
    }
}

pub(super) fn wrong(keys: &Keys, problem: String) -> ReadError {
    ReadError::Wrong { prefix: keys.prefix().to_owned(), problem }
}

fn text(kv: &pb::KeyValue) -> String {
    String::from_utf8_lossy(&kv.value).into_owned()
}

pub(super) fn json<T: DeserializeOwned>(kv: &pb::KeyValue) -> Result<T, String> {
    serde_json::from_slice(&kv.value).map_err(|error| unreadable(&error))
}
