//! The state in etcd, for several schedulers of which one leads.
//!
//! The store is the leader's log: each commit is one entry, and once the log is larger than the state, the state is written
//! beside it and the log begins anew. Every write compares the key that the election made, so that a leader which was
//! overtaken writes nothing; and it compares the number of the entry, so that one of which no answer came can be made
//! again, and is there once. So no commit's end is unknown for as long as this scheduler may lead.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `keys` | what lies where |
//! | `log` | batches in values, and the state in pieces |
//! | `mirror` | the state in memory |
//! | `session` | the lease that a scheduler's election hangs on |
//! | `candidate` | following, and being elected |
//! | `observer` | what can be said of the schedulers and of etcd |

mod candidate;
mod keys;
mod log;
mod mirror;
mod observer;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use muster_core::ids::Term;
use muster_core::leader::{Change, Durable, Place};
use muster_core::time::Time;
use muster_etcd::{Client, Error, pb};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

pub use self::candidate::{Candidate, Elected, Home, Standing};
use self::keys::{Keys, op};
pub use self::mirror::{LeaderRecord, ReadError, SchedulerRecord};
use self::mirror::{Mirror, SnapshotRecord};
pub use self::observer::{MemberHealth, Observed, Observer};
use self::session::Lease;
pub use self::session::election_lasts;
use super::{CommitError, Store, StoreError};

/// How long one try of a commit may take before another member is asked.
const ANSWER: Duration = Duration::from_secs(2);

/// How long an answer may take that somebody waits for who could look for the leader himself.
const WHO_LEADS: Duration = Duration::from_millis(200);

/// How long it is until the next try, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long it is asked again for what it did not answer at first and refuses since.
const REFUSED: Duration = Duration::from_secs(10);

/// How long it is tried to give the leadership up.
const GIVES_UP: Duration = Duration::from_secs(2);

/// What is wrong where a comparison does not hold that does for as long as this leader has its key.
const PUT_BACK: &str = "it does not hold what this leader has written: it was put back to an older copy of itself, or somebody \
                        else writes there";

/// The log is not begun anew before it is so large, in bytes.
const MIN_LOG_BYTES: u64 = 8 * 1024 * 1024;

/// The store of a leader, for as long as its election lasts.
#[derive(Debug)]
pub struct EtcdStore {
    network: Handle,
    client: Arc<Client>,
    keys: Keys,
    mirror: Mirror,
    /// The revision at which the leader's key was made: the guard of each write.
    office: i64,
    /// Set when nobody waits for an answer any more.
    abandoned: Arc<AtomicBool>,
    /// How far the snapshot has come that is being written.
    snapshot: Option<Snapshot>,
    /// For how long what the state may lack matters, and since when this leader has led on it.
    doubt: Duration,
    led_since: Instant,
}

#[derive(Debug, Default)]
struct Snapshot {
    from: u64,
    after: Option<Place>,
    parts: u64,
    bytes: u64,
    log_bytes_before: u64,
}

/// Makes a store give up what is not answered.
#[derive(Clone, Debug, Default)]
pub struct Abandon(Arc<AtomicBool>);

impl Abandon {
    /// Nothing more is waited for.
    pub fn now(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// One write of a leader: this value under this key, and what goes with it.
struct Write {
    key: Vec<u8>,
    value: Vec<u8>,
    /// When the key was changed last; 0: there is none. Not compared where that does not matter.
    was: Option<i64>,
    /// What else must hold.
    compare: Vec<pb::Compare>,
    also: Vec<pb::RequestOp>,
}

impl EtcdStore {
    fn new(network: Handle, client: Arc<Client>, keys: Keys, mirror: Mirror, office: i64) -> Self {
        Self {
            network,
            client,
            keys,
            mirror,
            office,
            abandoned: Arc::default(),
            snapshot: None,
            doubt: Duration::MAX,
            led_since: Instant::now(),
        }
    }

    /// Where the state may be older than what was decided, it is taken for the latest once a leader has led on it for so
    /// long.
    #[must_use]
    pub fn with_doubt(mut self, doubt: Duration) -> Self {
        self.doubt = doubt;
        self
    }

    /// What makes it give up.
    pub fn abandon(&self) -> Abandon {
        Abandon(Arc::clone(&self.abandoned))
    }

    /// Writes, if this scheduler still leads; gives the revision of that. Asked again until there is an answer: the
    /// comparisons see to it that it is done once.
    fn write(&self, write: Write) -> Result<i64, CommitError> {
        self.network.block_on(self.write_until_answered(write))
    }

    async fn write_until_answered(&self, write: Write) -> Result<i64, CommitError> {
        let mut compare = vec![op::made_at(self.keys.leader(), self.office)];
        compare.extend(write.was.map(|revision| op::changed_at(write.key.clone(), revision)));
        compare.extend(write.compare);
        let mut success = vec![op::put(write.key.clone(), write.value.clone(), 0)];
        success.extend(write.also);
        let read = vec![op::get(self.keys.leader()), op::get(self.keys.term()), op::get(write.key)];
        let request = pb::TxnRequest { compare, success, failure: read.clone() };
        let read = pb::TxnRequest { success: read, ..Default::default() };
        let (mut unanswered, mut pause, mut refused_since) = (false, AGAIN.0, None);
        loop {
            let mut refused = None;
            let answer = match self.client.txn(request.clone(), ANSWER).await {
                // etcd says so also where it has found that only after it had done it.
                Err(error @ Error::NoSpace(_)) => {
                    refused = Some(error.to_string());
                    self.client.txn(read.clone(), ANSWER).await.map(|mut answer| {
                        answer.succeeded = false;
                        answer
                    })
                }
                answer => answer,
            };
            match answer {
                Ok(answer) if answer.succeeded => {
                    return Ok(answer.header.map_or(0, |header| header.revision));
                }
                Ok(answer) => match self.judge(answer, &write.value)? {
                    Some(revision) => return Ok(revision),
                    None if refused.is_none() => return Err(self.unknown(PUT_BACK)),
                    // It may come there still.
                    None if unanswered => {}
                    None => return Err(CommitError::Failed(refused.unwrap_or_default())),
                },
                Err(error @ Error::Unanswered { .. }) => {
                    if !unanswered {
                        warn!(%error, "etcd does not answer; it is asked again");
                    }
                    unanswered = true;
                }
                Err(error @ Error::Unauthenticated { .. }) => {
                    debug!(%error, "etcd is asked again, with a new token");
                }
                Err(error) if unanswered => {
                    debug!(%error, "etcd refuses what it was asked before");
                    refused = Some(error.to_string());
                }
                Err(error) => return Err(CommitError::Failed(error.to_string())),
            }
            if self.abandoned.load(Ordering::Acquire) {
                return Err(self.unknown("etcd did not answer"));
            }
            // What was not answered at first may be done or not, and that stays so.
            if let Some(reason) = refused {
                let since: Instant = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= REFUSED {
                    return Err(self.unknown(&reason));
                }
            }
            sleep(pause).await;
            pause = (2 * pause).min(AGAIN.1);
        }
    }

    /// What comes before the next entry is there: etcd was not put back to what it was before that.
    fn predecessor(&self) -> pb::Compare {
        if self.mirror.number == self.mirror.snapshot.from {
            op::changed_at(self.keys.snapshot(), self.mirror.snapshot_revision)
        } else {
            op::exists(self.keys.entry(self.mirror.number))
        }
    }

    /// What became of a write whose comparisons did not hold: done before, at this revision; or not.
    fn judge(&self, answer: pb::TxnResponse, value: &[u8]) -> Result<Option<i64>, CommitError> {
        let mut values = op::values(answer).into_iter();
        let (leader, term, key) = (values.next().flatten(), values.next().flatten(), values.next().flatten());
        if leader.is_none_or(|leader| leader.create_revision != self.office) {
            let term = term.and_then(|kv| String::from_utf8_lossy(&kv.value).parse().ok());
            return Err(CommitError::Refused {
                ours: self.mirror.term,
                later: Term(term.unwrap_or_default()),
            });
        }
        Ok(key.filter(|kv| kv.value == value).map(|kv| kv.mod_revision))
    }

    fn unknown(&self, problem: &str) -> CommitError {
        CommitError::Unknown(StoreError::Etcd {
            prefix: self.keys.prefix().to_owned(),
            problem: problem.to_owned(),
        })
    }

    /// Writes more of the state beside the log, once that is large. It waits for the commits that follow, so that a cluster
    /// in which nothing happens writes nothing; and writes about twice as much as they do, so that it ends.
    fn shorten_log(&mut self, committed: u64) -> Result<(), CommitError> {
        let state = self.mirror.snapshot.bytes;
        if self.snapshot.is_none() && self.mirror.log_bytes > state.max(MIN_LOG_BYTES) {
            self.snapshot = Some(Snapshot {
                from: self.mirror.number,
                log_bytes_before: self.mirror.log_bytes,
                ..Snapshot::default()
            });
        }
        let Some(mut snapshot) = self.snapshot.take() else { return Ok(()) };
        let enough = snapshot.bytes + 2 * committed;
        while snapshot.bytes <= enough {
            let Some((changes, place)) = log::chunk(&self.mirror.durable, snapshot.after.as_ref()) else {
                return self.begin_log(&snapshot);
            };
            self.write_piece(&mut snapshot, &changes, place)?;
        }
        self.snapshot = Some(snapshot);
        Ok(())
    }

    /// Writes the next piece of a snapshot, which ends at this place.
    fn write_piece(
        &self,
        snapshot: &mut Snapshot,
        changes: &[Change],
        place: Place,
    ) -> Result<(), CommitError> {
        for value in self.values(changes)? {
            snapshot.bytes += value.len() as u64;
            let key = self.keys.snapshot_part(snapshot.from, snapshot.parts);
            self.write(Write { key, value, was: None, compare: Vec::new(), also: Vec::new() })?;
            snapshot.parts += 1;
        }
        snapshot.after = Some(place);
        Ok(())
    }

    /// The state is written: the log begins after the entry as of which it was begun.
    fn begin_log(&mut self, snapshot: &Snapshot) -> Result<(), CommitError> {
        let (record, revision) = self.put_snapshot(snapshot, Vec::new())?;
        info!(entry = record.from, bytes = record.bytes, "the log in etcd begins anew");
        self.mirror.snapshot_revision = revision;
        self.mirror.snapshot = record;
        self.mirror.log_bytes -= snapshot.log_bytes_before;
        Ok(())
    }

    /// Has a snapshot that is written be the one that counts, with what goes with it; gives the revision of that.
    fn put_snapshot(
        &self,
        snapshot: &Snapshot,
        mut also: Vec<pb::RequestOp>,
    ) -> Result<(SnapshotRecord, i64), CommitError> {
        let record = SnapshotRecord { from: snapshot.from, bytes: snapshot.bytes };
        let value = serde_json::to_vec(&record).map_err(|error| CommitError::Failed(error.to_string()))?;
        also.extend([
            // All snapshots before, and what one that came after them has left.
            op::delete(self.keys.snapshot_part(0, 0), self.keys.snapshot_part(snapshot.from, 0)),
            op::delete(
                self.keys.snapshot_part(snapshot.from, snapshot.parts),
                self.keys.snapshot_part(u64::MAX, u64::MAX),
            ),
            op::delete(self.keys.entry(0), self.keys.entry(snapshot.from + 1)),
        ]);
        let was = Some(self.mirror.snapshot_revision);
        let revision =
            self.write(Write { key: self.keys.snapshot(), value, was, compare: Vec::new(), also })?;
        Ok((record, revision))
    }

    /// What is written with a commit once what the state may lack matters no more. (Where nothing is committed nothing is
    /// written, and the next leader doubts as well.)
    fn end_of_doubt(&self) -> Vec<pb::RequestOp> {
        let over = self.mirror.doubted && self.led_since.elapsed() >= self.doubt;
        over.then(|| op::delete(self.keys.doubt(), Vec::new())).into_iter().collect()
    }

    fn values(&self, changes: &[Change]) -> Result<Vec<Vec<u8>>, CommitError> {
        log::values(self.mirror.term, changes).map_err(|error| CommitError::Failed(error.to_string()))
    }
}

impl Store for EtcdStore {
    fn take_term(&mut self, above: Term) -> Result<Term, CommitError> {
        let term = self.mirror.term.max(above).next();
        let (key, value) = (self.keys.term(), term.to_string().into_bytes());
        let was = Some(self.mirror.term_revision);
        // There was a term that etcd does not know of: it is an older copy of itself.
        let doubted = above > self.mirror.term;
        let also = doubted.then(|| op::put(self.keys.doubt(), Vec::new(), 0)).into_iter().collect();
        self.mirror.term_revision = self.write(Write { key, value, was, compare: Vec::new(), also })?;
        self.mirror.term = term;
        if doubted {
            (self.mirror.doubted, self.led_since) = (true, Instant::now());
        }
        Ok(term)
    }

    fn is_latest(&self) -> bool {
        !self.mirror.doubted
    }

    fn load(&mut self) -> Result<Durable, StoreError> {
        Ok(self.mirror.durable.clone())
    }

    fn commit(&mut self, term: Term, changes: Vec<Change>) -> Result<(), CommitError> {
        if term != self.mirror.term {
            return Err(CommitError::Refused { ours: term, later: self.mirror.term });
        }
        let mut committed = 0;
        for value in self.values(&changes)? {
            let (key, bytes) = (self.keys.entry(self.mirror.number + 1), value.len() as u64);
            committed += bytes;
            let also = self.end_of_doubt();
            let over = !also.is_empty();
            let compare = vec![self.predecessor()];
            self.write(Write { key, value, was: Some(0), compare, also })?;
            self.mirror.doubted &= !over;
            self.mirror.number += 1;
            self.mirror.log_bytes += bytes;
        }
        self.mirror.wrote(changes);
        if let Err(error) = self.shorten_log(committed) {
            // The commit itself is durable; of what follows the next one learns.
            warn!(%error, "the state could not be written beside its log");
        }
        Ok(())
    }

    fn replace(&mut self, durable: Durable, above: Term) -> Result<(), CommitError> {
        self.snapshot = None;
        // As if it were one entry, which nobody has who has followed until now: they read all anew.
        let mut snapshot = Snapshot { from: self.mirror.number + 1, ..Snapshot::default() };
        while let Some((changes, place)) = log::chunk(&durable, snapshot.after.as_ref()) {
            self.write_piece(&mut snapshot, &changes, place)?;
        }
        let term = self.mirror.term.max(above);
        let also = vec![
            op::put(self.keys.cluster(), durable.cluster.to_string().into(), 0),
            op::put(self.keys.formerly(), self.mirror.durable.cluster.to_string().into(), 0),
            op::put(self.keys.term(), term.to_string().into(), 0),
            op::put(self.keys.doubt(), Vec::new(), 0),
        ];
        let (record, revision) = self.put_snapshot(&snapshot, also)?;
        self.mirror.replaced(durable, term, record, revision);
        self.led_since = Instant::now();
        Ok(())
    }
}

/// How long a leader's election lasts.
#[derive(Clone, Debug)]
pub struct Reign {
    client: Arc<Client>,
    keys: Keys,
    lease: watch::Receiver<Option<Lease>>,
    id: i64,
    office: i64,
}

impl Reign {
    /// The next news: until when it leads at least, by this machine's clock; or why it does not any more.
    pub async fn next(&mut self) -> Result<Time, String> {
        loop {
            if self.lease.changed().await.is_err() {
                return Err("this scheduler stops".to_owned());
            }
            let lease = *self.lease.borrow_and_update();
            let Some(lease) = lease.filter(|lease| lease.id == self.id) else {
                return Err("its lease in etcd is over".to_owned());
            };
            // The lease may outlive the key, where somebody has deleted that.
            let range = pb::RangeRequest { key: self.keys.leader().into(), ..Default::default() };
            match self.client.range(range, ANSWER).await {
                Ok(answer) if answer.kvs.first().is_some_and(|kv| kv.create_revision == self.office) => {
                    return Ok(lease.until);
                }
                Ok(_) => return Err("its key in etcd is gone".to_owned()),
                Err(error) => debug!(%error, "whether this scheduler still leads is not known"),
            }
        }
    }

    /// Who leads in its place, where etcd knows that by now: the address.
    pub async fn leader(&self) -> Option<String> {
        let range = pb::RangeRequest { key: self.keys.leader().into(), ..Default::default() };
        let answer = self.client.range(range, WHO_LEADS).await.ok()?;
        let other = answer.kvs.first().filter(|kv| kv.create_revision != self.office)?;
        mirror::json::<LeaderRecord>(other).ok().map(|leader| leader.address)
    }

    /// Gives the leadership up, so that another is elected at once. Asked again for a while where etcd does not answer.
    ///
    /// # Errors
    /// Where that could not be done: the election ends by itself then, with its lease, if nobody renews that.
    pub async fn end(&self) -> Result<(), Error> {
        let request = pb::TxnRequest {
            compare: vec![op::made_at(self.keys.leader(), self.office)],
            success: vec![op::delete(self.keys.leader(), Vec::new())],
            failure: Vec::new(),
        };
        let (deadline, mut pause) = (Instant::now() + GIVES_UP, AGAIN.0);
        loop {
            match self.client.txn(request.clone(), ANSWER).await {
                Ok(_) => return Ok(()),
                Err(error @ (Error::Unanswered { .. } | Error::Unauthenticated { .. }))
                    if Instant::now() < deadline =>
                {
                    debug!(%error, "the leadership is not given up yet");
                }
                Err(error) => {
                    warn!(%error, "the leadership could not be given up; it ends by itself");
                    return Err(error);
                }
            }
            sleep(pause).await;
            pause = (2 * pause).min(AGAIN.1);
        }
    }
}
