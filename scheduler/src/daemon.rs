//! The running scheduler.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result};
use muster_core::ids::{ClusterId, MachineId, Term};
use muster_core::leader::{Leader, Settings};
use muster_daemon::clock;
use muster_proto::v1::agents_server::AgentsServer;
use muster_proto::v1::muster_server::MusterServer;
use muster_proto::v1::schedulers_server::SchedulersServer;
use muster_proto::{MAX_MESSAGE_BYTES, RegisteredScheduler, SchedulerRole, SchedulerStatus, StoreStatus};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use crate::api::MusterService;
use crate::config::Config;
use crate::describe::{Description, SchedulersService};
use crate::events::{self, Events};
use crate::lead::{Lead, LeaderHandle, Requests, ToLeader, inbox};
use crate::sessions::{AgentsService, Sessions};
use crate::store::{Committed, Committer, Embedded, Store};
use crate::watchers::Watchers;

/// After this long without a word a peer is asked whether it is there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long it may take to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How much one request may send ahead of being read, in bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// How much all requests of one connection may.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// How long requests that were begun may take to end when the scheduler stops.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// A scheduler that serves agents and clients.
#[derive(Debug)]
pub struct Daemon {
    address: SocketAddr,
    leader: LeaderHandle,
    sessions: Arc<Sessions>,
    watchers: Arc<Watchers>,
    events: Arc<Events>,
    journal: Option<thread::JoinHandle<()>>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    stop_serving: oneshot::Sender<()>,
    /// How the leader's loop ended.
    ended: oneshot::Receiver<Result<()>>,
}

impl Daemon {
    /// Opens the store, takes office and serves.
    ///
    /// # Errors
    /// When the address or the store cannot be used.
    pub async fn start(config: &Config) -> Result<Self> {
        config.check()?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr()?;

        let settings = Settings { own_machine: own_machine(), ..config.settings() };
        let mut store = Embedded::open(&config.state_dir)?;
        if let Some(runtime_dir) = &config.runtime_dir {
            store = store.with_witness(runtime_dir, settings.aftermath())?;
        }
        let term = store.take_term(Term::default())?;
        let durable = store.load()?;
        info!(
            cluster = %durable.cluster,
            %term,
            %address,
            units = durable.units.len(),
            machines = durable.machines.len(),
            "leading"
        );

        let description = Arc::new(Description::new(alone(address, durable.cluster, term), None));
        let mut core = Leader::new(settings, term, durable, clock::now());
        if store.is_latest() {
            core.trust_store();
        }
        let (leader, inbox) = inbox();
        let (teller, described) = (leader.clone(), Arc::clone(&description));
        let committer = Committer::start(store, term, move |committed| {
            if let Committed::TermTaken(term) = committed {
                described.update(|status| status.term = term);
            }
            teller.committed(committed);
        })
        .context("cannot start the store's thread")?;
        let sessions = Sessions::new(leader.clone());
        let watchers = Arc::new(Watchers::default());
        let events = Events::new(term);
        let journal = Some(events::start_journal(&events).context("cannot start the journal's thread")?);
        let lead = Lead {
            leader: core,
            handle: leader.clone(),
            network: Handle::current(),
            inbox,
            committer,
            sessions: Arc::clone(&sessions),
            watchers: Arc::clone(&watchers),
            events: Arc::clone(&events),
            requests: Requests::default(),
        };
        let ended = start_leader(lead)?;

        let (stop_serving, stopped) = oneshot::channel::<()>();
        let clients = MusterService {
            leader: leader.clone(),
            watchers: Arc::clone(&watchers),
            events: Arc::clone(&events),
        };
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .add_service(MusterServer::new(clients).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(AgentsServer::new(AgentsService(Arc::clone(&sessions))))
            .add_service(SchedulersServer::new(SchedulersService(description)))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
                stopped.await.ok();
            });
        let server = tokio::spawn(server);
        Ok(Self { address, leader, sessions, watchers, events, journal, server, stop_serving, ended })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it can lead no more; gives why.
    pub async fn failed(&mut self) -> anyhow::Error {
        let error = tokio::select! {
            ended = &mut self.ended => match ended {
                Ok(Ok(())) => anyhow::anyhow!("the leader's loop ended"),
                Ok(Err(error)) => error.context("the store can be relied on no more"),
                Err(_) => anyhow::anyhow!("the leader's loop panicked"),
            },
            served = &mut self.server => match served {
                Ok(Ok(())) => anyhow::anyhow!("the server ended"),
                Ok(Err(error)) => anyhow::Error::new(error).context("cannot serve"),
                Err(error) => anyhow::Error::new(error).context("cannot serve"),
            },
        };
        finish_journal(&self.events, self.journal.take()).await;
        error
    }

    /// Takes no more requests, answers those that were begun, ends all streams and closes the store.
    ///
    /// # Errors
    /// When the store failed meanwhile.
    pub async fn shutdown(self) -> Result<()> {
        self.stop_serving.send(()).ok();
        self.sessions.close_all();
        self.watchers.close_all();
        self.events.stop_serving();
        if timeout(DRAIN_TIMEOUT, self.server).await.is_err() {
            warn!("some requests did not end in time");
        }
        self.leader.send(ToLeader::Stop).await;
        let ended = self.ended.await.context("the leader's loop panicked");
        finish_journal(&self.events, self.journal).await;
        ended?
    }
}

/// What a scheduler says of itself that has its store to itself: it leads.
fn alone(address: SocketAddr, cluster: ClusterId, term: Term) -> SchedulerStatus {
    let (address, version) = (address.to_string(), env!("CARGO_PKG_VERSION").to_owned());
    SchedulerStatus {
        address: address.clone(),
        version: version.clone(),
        cluster: Some(cluster),
        role: SchedulerRole::Leading,
        term,
        leader: Some(address.clone()),
        since_ms: Some(clock::wall_ms()),
        behind: 0,
        registered: vec![RegisteredScheduler { address, version }],
        store: StoreStatus::Embedded,
    }
}

/// Nothing more happens: all that did is to be in the journal.
async fn finish_journal(events: &Events, journal: Option<thread::JoinHandle<()>>) {
    events.close();
    if let Some(journal) = journal {
        tokio::task::spawn_blocking(move || journal.join()).await.ok();
    }
}

/// The machine that the scheduler runs on. It need not have an id, nor an agent.
fn own_machine() -> Option<MachineId> {
    fs::read_to_string("/etc/machine-id").ok()?.trim().parse().ok()
}

/// Runs the loop in a thread of its own, so that a long step holds up no connection.
fn start_leader(lead: Lead) -> Result<oneshot::Receiver<Result<()>>> {
    let (end, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    thread::Builder::new()
        .name("leader".to_owned())
        .spawn(move || end.send(runtime.block_on(lead.run()).map_err(Into::into)))
        .context("cannot start the leader's thread")?;
    Ok(ended)
}
