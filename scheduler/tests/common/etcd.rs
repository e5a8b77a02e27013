//! Schedulers as far as the store goes, on a real etcd.

use std::sync::Arc;
use std::time::Duration;

use muster_core::ids::{ClusterId, Term};
use muster_core::leader::{Change, Durable};
use muster_etcd::{Client, Config};
use muster_scheduler::store::etcd::{Candidate, Elected, EtcdStore, Home, Observer, Reign};
use muster_scheduler::store::{CommitError, Store, StoreError};
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};
use uuid::Uuid;

/// A scheduler, as far as the store goes.
pub struct Scheduler {
    pub candidate: Option<Candidate>,
    pub observer: Observer,
    pub runtime: Handle,
    home: TempDir,
}

/// What a scheduler is started with.
#[derive(Clone, Copy)]
pub struct Start {
    pub prefix: &'static str,
    pub id: Uuid,
    /// The cluster that its state directory names.
    pub cluster: Option<ClusterId>,
}

impl Default for Start {
    fn default() -> Self {
        Self { prefix: "/muster/", id: Uuid::new_v4(), cluster: None }
    }
}

impl Scheduler {
    pub fn new(runtime: &Runtime, config: Config) -> Self {
        Self::start(runtime, config, Start::default()).expect("it can take part")
    }

    pub fn start(runtime: &Runtime, config: Config, start: Start) -> Result<Self, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = std::fs::File::open(directory.path()).expect("open");
        let home = Home::new(directory.path().join("cluster"), start.cluster, lock);
        let (observer, candidate) = runtime.block_on(async {
            let client = Arc::new(Client::new(config).map_err(|error| error.to_string())?);
            let observer = Observer::new(client, start.prefix);
            let prepared = Candidate::prepare(&observer, &home).await;
            prepared.map_err(|error| error.to_string())?;
            let address = "127.0.0.1:1".to_owned();
            let candidate =
                Candidate::start(observer.clone(), start.id, address, home, Duration::from_secs(5));
            Ok::<_, String>((observer, Some(candidate)))
        })?;
        Ok(Self { candidate, observer, runtime: runtime.handle().clone(), home: directory })
    }

    /// What its state directory says that it belongs to.
    pub fn cluster_file(&self) -> String {
        std::fs::read_to_string(self.home.path().join("cluster")).expect("its file")
    }

    /// Has it follow until this many entries of the log are taken in.
    pub fn follows_up_to(&mut self, entry: u64) {
        let candidate = self.candidate.as_mut().expect("it is there");
        let observer = &self.observer;
        self.runtime.block_on(async {
            let arrives = async {
                while observer.standing().applied < entry {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                _ = candidate.wins(|_| {}) => panic!("another leads"),
                () = arrives => {}
                () = tokio::time::sleep(Duration::from_secs(60)) => panic!("{:?}", observer.standing()),
            }
        });
    }

    /// Waits until it is elected.
    pub fn wins(&mut self) -> (EtcdStore, Reign) {
        let candidate = self.candidate.as_mut().expect("it is there");
        let observer = &self.observer;
        let elected = self.runtime.block_on(async {
            let wins = candidate.wins(|_| {});
            tokio::time::timeout(Duration::from_secs(60), wins).await
        });
        let elected =
            elected.unwrap_or_else(|_| panic!("not elected in a minute: {:?}", observer.standing()));
        let Elected { store, reign, .. } = elected.expect("it is elected");
        (store, reign)
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        if let Some(candidate) = self.candidate.take() {
            self.runtime.block_on(candidate.end());
        }
    }
}

/// A store whose election ends with it.
pub struct Opened {
    store: EtcdStore,
    _scheduler: Scheduler,
}

impl Opened {
    pub fn new(runtime: &Runtime, config: Config) -> Self {
        let mut scheduler = Scheduler::new(runtime, config);
        let (store, _) = scheduler.wins();
        Self { store, _scheduler: scheduler }
    }
}

impl Store for Opened {
    fn take_term(&mut self, above: Term) -> Result<Term, CommitError> {
        self.store.take_term(above)
    }

    fn load(&mut self) -> Result<Durable, StoreError> {
        self.store.load()
    }

    fn is_latest(&self) -> bool {
        self.store.is_latest()
    }

    fn commit(&mut self, term: Term, changes: Vec<Change>) -> Result<(), CommitError> {
        self.store.commit(term, changes)
    }

    fn replace(&mut self, durable: Durable, above: Term) -> Result<(), CommitError> {
        self.store.replace(durable, above)
    }
}
