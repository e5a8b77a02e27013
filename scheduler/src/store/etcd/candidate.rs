//! Who does not lead: he follows the log, so that he has the state when he is elected, and is elected when nobody leads.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_core::ids::ClusterId;
use muster_core::time::Time;
use muster_daemon::clock;
use muster_daemon::files::replace_on_disk;
use muster_etcd::pb::watch_create_request::FilterType;
use muster_etcd::{Client, Error, pb};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};
use uuid::Uuid;

use super::keys::{Keys, op};
use super::mirror::{self, AsOf, LeaderRecord, Mirror, READ, ReadError, SchedulerRecord};
use super::session::{Lease, Session};
use super::{EtcdStore, Observer, Reign};

/// How long it is until the next try after one has failed, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long who has stepped down leaves it to the others to be elected.
const STEPS_BACK: Duration = Duration::from_secs(10);

/// How long an answer to a campaign may take.
const ANSWER: Duration = Duration::from_secs(1);

/// What a scheduler that does not lead knows, for whoever asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The cluster, as soon as it is known.
    pub cluster: Option<ClusterId>,
    /// Who leads.
    pub leader: Option<LeaderRecord>,
    /// The last entry of the log that is taken in.
    pub applied: u64,
    /// Why it cannot follow, or be elected.
    pub problem: Option<String>,
}

/// What a scheduler has on its own disk.
#[derive(Debug)]
pub struct Home {
    /// Says which cluster it belongs to.
    path: PathBuf,
    cluster: Option<ClusterId>,
    /// Whether it says so there.
    is_written: bool,
    _lock: File,
}

impl Home {
    /// The file that says which cluster this is, what it says, and what keeps other processes from all that.
    pub fn new(path: PathBuf, cluster: Option<ClusterId>, lock: File) -> Self {
        Self { path, cluster, is_written: cluster.is_some(), _lock: lock }
    }

    /// It is this cluster: another one only where a backup was restored in this one's place.
    fn belongs_to(&mut self, cluster: ClusterId) {
        if self.cluster == Some(cluster) && self.is_written {
            return;
        }
        let written = replace_on_disk(&self.path, format!("{cluster}\n").as_bytes());
        if let Err(error) = &written {
            warn!(path = %self.path.display(), %error, "cannot write down which cluster this is");
        }
        (self.cluster, self.is_written) = (Some(cluster), written.is_ok());
    }
}

/// A scheduler of a cluster that has its state in etcd.
#[derive(Debug)]
pub struct Candidate {
    client: Arc<Client>,
    keys: Keys,
    id: Uuid,
    address: String,
    home: Home,
    session: Session,
    mirror: Option<Mirror>,
    standing: Arc<Mutex<Standing>>,
    /// Until then others may be elected.
    steps_back: Option<Instant>,
    /// The last election of this process: it is over, whatever etcd still holds of it.
    past: i64,
}

/// What an election has brought.
#[derive(Debug)]
pub struct Elected {
    /// The store, for as long as the election lasts.
    pub store: EtcdStore,
    /// Tells how long that is.
    pub reign: Reign,
    /// Until when at least it lasts, by this machine's clock.
    pub until: Time,
}

impl Candidate {
    /// Makes sure that etcd can be used, and that what lies below the prefix is this scheduler's cluster. Where there is
    /// nothing, makes a cluster.
    ///
    /// # Errors
    /// When etcd, or what it holds, cannot be used; or does not answer: [`ReadError::may_pass`].
    pub async fn prepare(observer: &Observer, home: &Home) -> Result<(), ReadError> {
        mirror::prepare(&observer.client, &observer.keys, home.cluster).await.map(drop)
    }

    /// A scheduler with this id, which agents and clients reach at this address, where [`Self::prepare`] has found all well.
    /// Its election lasts by machines' leases, which last so long.
    pub fn start(observer: Observer, id: Uuid, address: String, home: Home, machine_lease: Duration) -> Self {
        let Observer { client, keys, standing } = observer;
        let record =
            SchedulerRecord { address: address.clone(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let session = Session::start(Arc::clone(&client), keys.clone(), id, record, machine_lease);
        Self { client, keys, id, address, home, session, mirror: None, standing, steps_back: None, past: 0 }
    }

    /// Its state directory says from now on that it belongs to this cluster.
    pub fn belongs_to(&mut self, cluster: ClusterId) {
        self.home.belongs_to(cluster);
    }

    /// It is for others to be elected, for a while.
    pub fn steps_back(&mut self) {
        self.steps_back = Some(Instant::now() + STEPS_BACK);
    }

    /// Follows who leads, until this one is elected. `news` is called when another leads or nobody does.
    ///
    /// # Errors
    /// What will not pass: see [`ReadError::may_pass`].
    pub async fn wins(&mut self, mut news: impl FnMut(&Standing)) -> Result<Elected, ReadError> {
        let mut pause = AGAIN.0;
        loop {
            match self.follow(&mut news).await {
                Ok(Some(elected)) => return Ok(elected),
                Ok(None) => pause = AGAIN.0,
                // What etcd refuses today it may allow tomorrow: the state that was read is kept meanwhile.
                Err(error @ ReadError::Etcd(_)) => {
                    let text = error.to_string();
                    let is_news =
                        self.stands(|standing| standing.problem.replace(text.clone()) != Some(text.clone()));
                    if is_news {
                        warn!(error = text, "cannot follow the cluster's state in etcd; it is tried again");
                        news(&self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone());
                    }
                    // Not all schedulers at the same moments.
                    sleep(pause.mul_f64(0.5 + 0.5 * f64::from(Uuid::new_v4().as_bytes()[0]) / 255.0)).await;
                    pause = (2 * pause).min(AGAIN.1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends all that hangs on this scheduler in etcd.
    pub async fn end(self) {
        self.session.end().await;
    }

    fn stands<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> T {
        change(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads what is new, campaigns if nobody leads, else waits until something happens.
    async fn follow(&mut self, news: &mut impl FnMut(&Standing)) -> Result<Option<Elected>, ReadError> {
        let read = mirror::refresh(&self.client, &self.keys, self.home.cluster, &mut self.mirror).await?;
        let leader =
            read.leader.as_ref().map(mirror::json::<LeaderRecord>).transpose().map_err(|problem| {
                mirror::wrong(&self.keys, format!("the leader's key makes no sense: {problem}"))
            })?;
        let applied = self.mirror.as_ref().map_or(0, |mirror| mirror.number);
        self.mirror.iter().for_each(|mirror| self.home.belongs_to(mirror.durable.cluster));
        let now = Standing { cluster: self.home.cluster, leader: leader.clone(), applied, problem: None };
        let before = self.stands(|standing| std::mem::replace(standing, now.clone()));
        if (&before.leader, &before.problem) != (&now.leader, &now.problem) {
            news(&now);
        }
        match (&read.leader, leader) {
            (None, _) if self.steps_back.is_some_and(|until| Instant::now() < until) => {
                self.wait(&read).await.map(|()| None)
            }
            (None, _) => self.campaign().await,
            (Some(kv), Some(leader)) if leader.id == self.id => self.is_own(kv).await,
            (Some(_), _) => {
                self.steps_back = None;
                self.wait(&read).await.map(|()| None)
            }
        }
    }

    /// The key is of this scheduler: it was elected without an answer, or it is another process of it, which is dead.
    async fn is_own(&mut self, kv: &pb::KeyValue) -> Result<Option<Elected>, ReadError> {
        let lease = *self.session.lease().borrow();
        if let Some(lease) = lease.filter(|lease| lease.id == kv.lease && kv.create_revision != self.past) {
            return self.is_elected(lease, kv.create_revision).await.map(Some);
        }
        info!("this scheduler leads no more, and etcd does not know it yet: its election is ended");
        self.client.revoke(kv.lease, ANSWER).await?;
        Ok(None)
    }

    /// None where another was faster, or where there is no lease yet.
    async fn campaign(&mut self) -> Result<Option<Elected>, ReadError> {
        self.steps_back = None;
        let mut session = self.session.lease();
        let lease = *session.borrow_and_update();
        let Some(lease) = lease.filter(|lease| clock::now() < lease.until) else {
            // It has none at the moment.
            session.changed().await.ok();
            return Ok(None);
        };
        let record = LeaderRecord { id: self.id, address: self.address.clone(), since_ms: clock::wall_ms() };
        let value = serde_json::to_vec(&record).map_err(|error| Error::Refused(error.to_string()))?;
        let request = pb::TxnRequest {
            compare: vec![op::made_at(self.keys.leader(), 0)],
            success: vec![op::put(self.keys.leader(), value, lease.id)],
            failure: Vec::new(),
        };
        let answer = self.client.txn(request, ANSWER).await?;
        if !answer.succeeded {
            return Ok(None);
        }
        let revision = answer.header.map_or(0, |header| header.revision);
        self.is_elected(lease, revision).await.map(Some)
    }

    /// Its key was made at that revision. What was decided before is read to the end: nobody else can write any more.
    async fn is_elected(&mut self, lease: Lease, office: i64) -> Result<Elected, ReadError> {
        mirror::refresh(&self.client, &self.keys, self.home.cluster, &mut self.mirror).await?;
        let mirror =
            self.mirror.take().ok_or_else(|| mirror::wrong(&self.keys, "nothing was read".to_owned()))?;
        self.stands(|standing| standing.leader = None);
        self.past = office;
        let store =
            EtcdStore::new(Handle::current(), Arc::clone(&self.client), self.keys.clone(), mirror, office);
        let reign = Reign {
            client: Arc::clone(&self.client),
            keys: self.keys.clone(),
            lease: self.session.lease(),
            id: lease.id,
            office,
        };
        Ok(Elected { store, reign, until: lease.until })
    }

    /// Takes in what is written, until something else happens.
    async fn wait(&mut self, read: &AsOf) -> Result<(), ReadError> {
        let watch = |key: Vec<u8>, end: Vec<u8>, filters: Vec<i32>| pb::WatchCreateRequest {
            key: key.into(),
            range_end: end.into(),
            start_revision: read.revision + 1,
            filters,
            fragment: true,
            ..Default::default()
        };
        let number = self.mirror.as_ref().map_or(0, |mirror| mirror.number);
        let no_deletes = vec![FilterType::Nodelete.into()];
        let watches = vec![
            watch(self.keys.leader(), Vec::new(), Vec::new()),
            watch(self.keys.cluster(), Vec::new(), Vec::new()),
            watch(self.keys.entry(number + 1), self.keys.entries_end(), no_deletes),
        ];
        let mut changes = self.client.watch(watches, READ).await?;
        loop {
            let back = self.steps_back;
            let change = tokio::select! {
                change = self.client.next_change(&mut changes) => change?,
                () = async { sleep_until(back.unwrap_or_else(Instant::now)).await }, if back.is_some() => return Ok(()),
            };
            if change.canceled {
                // What it was to start at is forgotten, perhaps: all is read anew.
                info!(
                    reason = change.cancel_reason,
                    compacted = change.compact_revision,
                    "etcd ended a watch"
                );
                return Ok(());
            }
            for event in change.events {
                let Some(kv) = event.kv else { continue };
                match (self.keys.number(&kv.key), &mut self.mirror) {
                    (Some(number), Some(mirror)) => {
                        mirror
                            .take(number, &kv.value)
                            .map_err(|problem| mirror::wrong(&self.keys, problem))?;
                    }
                    _ => return Ok(()),
                }
            }
            let applied = self.mirror.as_ref().map_or(0, |mirror| mirror.number);
            self.stands(|standing| standing.applied = applied);
        }
    }
}
