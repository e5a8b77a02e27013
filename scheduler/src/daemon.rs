//! The running scheduler.

use std::fs::File;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt};
use muster_core::ids::{MachineId, Term};
use muster_core::leader::{Durable, Leader, Settings};
use muster_core::time::Time;
use muster_daemon::clock;
use muster_proto::MAX_MESSAGE_BYTES;
use muster_proto::v1::agents_server::AgentsServer;
use muster_proto::v1::muster_server::MusterServer;
use muster_proto::v1::schedulers_server::SchedulersServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use crate::api::MusterService;
use crate::config::Config;
use crate::describe::{Description, SchedulersService, StepDown};
use crate::events::{self, Events};
use crate::fleet;
use crate::front::{Front, Leading};
use crate::lead::{Ended, Lead, Requests, ToLeader, inbox};
use crate::membership::Membership;
use crate::notify;
use crate::sessions::{AgentsService, Sessions};
use crate::store::etcd::{Abandon, Elected, Reign, election_lasts};
use crate::store::{Committed, Committer, Embedded, Store, lock_directory};
use crate::watchers::Watchers;

/// After this long without a word a peer is asked whether it is there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long it may take to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How much one request may send ahead of being read, in bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// How much all requests of one connection may.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// How long it is until a connection is taken again after one could not be.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How often that is said at most.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// How long requests that were begun may take to end when the scheduler stops.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a store that does not answer may hold up the end.
const LAST_COMMITS: Duration = Duration::from_secs(5);

/// A scheduler that serves agents and clients.
#[derive(Debug)]
pub struct Daemon {
    address: SocketAddr,
    front: Arc<Front>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    stop_serving: oneshot::Sender<()>,
    fleet: Option<fleet::Server>,
    /// Leads, or follows and leads again; ends when it is told to, or can lead no more.
    governing: JoinHandle<Result<()>>,
    stop: watch::Sender<bool>,
    /// Keeps other processes from what this one has in `/run`.
    _runtime_dir: Option<File>,
}

impl Daemon {
    /// Serves; with a store of its own it has opened that and leads, with one in etcd it will when it is elected.
    ///
    /// # Errors
    /// When the address or the store cannot be used.
    pub async fn start(config: &Config) -> Result<Self> {
        config.check()?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        let runtime_dir = config.runtime_dir.as_deref().map(lock_directory).transpose()?;
        let front = Arc::new(Front::default());
        let overlap = config.etcd.as_ref().map_or(Duration::ZERO, |_| election_lasts(config.lease_ttl));
        let settings = Settings { own_machine: own_machine(), overlap, ..config.settings() };
        let office = Office { settings: settings.clone(), front: Arc::clone(&front), address };
        let (stop, stopped) = watch::channel(false);
        let advertised = config.advertise.clone().unwrap_or_else(|| address.to_string());
        let (governing, others) = if let Some(etcd) = &config.etcd {
            let membership = Membership::new(config, etcd, advertised.clone())?;
            let (wish, wishes) = mpsc::channel(1);
            let others = (membership.observer.clone(), wish);
            (tokio::spawn(govern(membership, office, stopped, wishes)), Some(others))
        } else {
            let mut store = Embedded::open(&config.state_dir)?;
            if let Some(runtime_dir) = &config.runtime_dir {
                store = store.with_witness(runtime_dir, settings.aftermath())?;
            }
            let government = office.begin(Opened::new(Box::new(store))?, None)?;
            (tokio::spawn(lead_alone(office, government, stopped)), None)
        };

        let fleet = match &config.fleet_api {
            Some(config) => Some(fleet::Server::start(config, Arc::clone(&front)).await?),
            None => None,
        };
        let (stop_serving, serving_stopped) = oneshot::channel::<()>();
        let clients = MusterService(Arc::clone(&front));
        let description = Description { address: advertised, front: Arc::clone(&front), others };
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .add_service(MusterServer::new(clients).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(AgentsServer::new(AgentsService(Arc::clone(&front))))
            .add_service(SchedulersServer::new(SchedulersService(description)))
            .serve_with_incoming_shutdown(connections(listener), async {
                serving_stopped.await.ok();
            });
        let server = tokio::spawn(server);
        Ok(Self { address, front, server, stop_serving, fleet, governing, stop, _runtime_dir: runtime_dir })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves fleet's API on TCP, if it does.
    pub fn fleet_address(&self) -> Option<SocketAddr> {
        self.fleet.as_ref()?.address()
    }

    /// Waits until it can do its work no more; gives why.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            ended = &mut self.governing => match ended {
                Ok(Ok(())) => anyhow::anyhow!("the leader's loop ended"),
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("the leader's loop panicked"),
            },
            served = &mut self.server => match served {
                Ok(Ok(())) => anyhow::anyhow!("the server ended"),
                Ok(Err(error)) => anyhow::Error::new(error).context("cannot serve"),
                Err(error) => anyhow::Error::new(error).context("cannot serve"),
            },
        }
    }

    /// Takes no more requests, answers those that were begun, ends all streams and closes the store.
    ///
    /// # Errors
    /// When the store failed meanwhile.
    pub async fn shutdown(self) -> Result<()> {
        self.stop_serving.send(()).ok();
        self.front.close();
        let fleet = async {
            if let Some(fleet) = self.fleet {
                fleet.stop(DRAIN_TIMEOUT).await;
            }
        };
        let (served, ()) = tokio::join!(timeout(DRAIN_TIMEOUT, self.server), fleet);
        if served.is_err() {
            warn!("some requests did not end in time");
        }
        self.stop.send(true).ok();
        self.governing.await.context("the leader's loop panicked")?
    }
}

/// The connections that are made to it. While it can take none, since it has no descriptors left, it tries again from time
/// to time: at once would be without a pause.
fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    let mut complained: Option<Instant> = None;
    TcpIncoming::from(listener).with_nodelay(Some(true)).then(move |taken| {
        let fails = taken.is_err();
        if let Err(error) = &taken
            && complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL)
        {
            warn!(%error, "cannot take a connection; it is tried again");
            complained = Some(Instant::now());
        }
        async move {
            if fails {
                sleep(ACCEPT_AGAIN).await;
            }
            taken
        }
    })
}

/// The machine that the scheduler runs on. It need not have an id, nor an agent.
fn own_machine() -> Option<MachineId> {
    fs::read_to_string("/etc/machine-id").ok()?.trim().parse().ok()
}

/// What a leader of this process leads with.
#[derive(Debug)]
struct Office {
    settings: Settings,
    front: Arc<Front>,
    address: SocketAddr,
}

/// A store whose term is taken.
#[derive(Debug)]
struct Opened {
    store: Box<dyn Store>,
    term: Term,
    durable: Durable,
}

impl Opened {
    /// Does so from a thread.
    async fn open(store: Box<dyn Store>) -> Result<Self> {
        spawn_blocking(move || Self::new(store)).await.context("the store's thread panicked")?
    }

    /// Waits for the store.
    fn new(mut store: Box<dyn Store>) -> Result<Self> {
        // What cannot be read is left as it is.
        let durable = store.load()?;
        let term = store.take_term(Term::default())?;
        Ok(Self { store, term, durable })
    }
}

/// A leader at work.
#[derive(Debug)]
struct Government {
    front: Arc<Front>,
    leading: Leading,
    journal: thread::JoinHandle<()>,
    /// How the leader's loop ended.
    ended: oneshot::Receiver<Ended>,
}

impl Office {
    /// Leads from now on, where the store may have elected this one for a while only: until then at least.
    fn begin(&self, opened: Opened, until: Option<Time>) -> Result<Government> {
        let Opened { store, term, durable } = opened;
        let cluster = durable.cluster;
        info!(
            cluster = %durable.cluster,
            %term,
            address = %self.address,
            units = durable.units.len(),
            machines = durable.machines.len(),
            "leading"
        );
        let mut core = Leader::new(self.settings.clone(), term, durable, clock::now());
        if store.is_latest() {
            core.trust_store();
        }
        let (leader, inbox) = inbox();
        until.into_iter().for_each(|until| leader.leads_until(until));
        let (teller, current) = (leader.clone(), Arc::new(AtomicU64::new(term.0)));
        let shown = Arc::clone(&current);
        let committer = Committer::start(store, term, move |committed| {
            if let Committed::TermTaken(term) = committed {
                shown.store(term.0, Ordering::Relaxed);
            }
            teller.committed(committed);
        })
        .context("cannot start the store's thread")?;
        let sessions = Sessions::new(leader.clone());
        let watchers = Arc::new(Watchers::default());
        let events = Events::new(term);
        let journal = events::start_journal(&events).context("cannot start the journal's thread")?;
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
        let ended = start_leader(lead, until)?;
        let since_ms = clock::wall_ms();
        let streams = Arc::default();
        let leading =
            Leading { cluster, term: current, since_ms, leader, sessions, watchers, events, streams };
        self.front.leads(leading.clone());
        Ok(Government { front: Arc::clone(&self.front), leading, journal, ended })
    }
}

impl Government {
    /// Another leads, there if that is known, or will.
    fn is_deposed(&self, leader: Option<String>) {
        self.leading.leader.is_deposed(leader.as_deref());
        self.front.follows(leader);
    }

    /// It is over: all streams end, and what happened is in the journal.
    async fn conclude(self) {
        self.leading.close();
        self.leading.events.close();
        spawn_blocking(move || self.journal.join()).await.ok();
    }

    /// Has the leader stop once all is durable that was begun, if the store answers before long.
    async fn ends_soon(&mut self, abandon: &Abandon) -> Ended {
        self.leading.leader.send(ToLeader::Stop).await;
        if let Ok(ended) = timeout(LAST_COMMITS, &mut self.ended).await {
            return ended.unwrap_or(Ended::Panicked);
        }
        abandon.now();
        (&mut self.ended).await.unwrap_or(Ended::Panicked)
    }

    /// Has the leader stop; gives how that ended.
    async fn stop(&mut self, how: ToLeader) -> Ended {
        self.leading.leader.send(how).await;
        (&mut self.ended).await.unwrap_or(Ended::Panicked)
    }
}

/// Runs the loop in a thread of its own, so that a long step holds up no connection.
fn start_leader(lead: Lead, until: Option<Time>) -> Result<oneshot::Receiver<Ended>> {
    let (end, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    thread::Builder::new()
        .name("leader".to_owned())
        .spawn(move || end.send(runtime.block_on(lead.run(until))))
        .context("cannot start the leader's thread")?;
    Ok(ended)
}

/// Leads with a store that is this scheduler's own, until it is told to stop.
async fn lead_alone(
    office: Office,
    mut government: Government,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    loop {
        let ended = tokio::select! {
            ended = &mut government.ended => ended.unwrap_or(Ended::Panicked),
            () = told(&mut stop) => government.stop(ToLeader::Stop).await,
        };
        government.conclude().await;
        let store = match ended {
            Ended::Restored(store) => store,
            Ended::Stopped => return Ok(()),
            Ended::Lost(error) => {
                return Err(anyhow::Error::new(error).context("the store can be relied on no more"));
            }
            Ended::Deposed(reason) => return Err(anyhow::anyhow!(reason)),
            Ended::Panicked => return Err(anyhow::anyhow!("the leader's loop panicked")),
        };
        info!("a backup was restored");
        office.front.follows(None);
        government = office.begin(Opened::open(store).await?, None)?;
    }
}

/// Follows, leads when it is elected, and follows again, until it is told to stop.
async fn govern(
    membership: Membership,
    office: Office,
    mut stop: watch::Receiver<bool>,
    mut wishes: mpsc::Receiver<StepDown>,
) -> Result<()> {
    let alive = tokio::spawn(notify::while_following(Arc::clone(&office.front)));
    let mut candidate = tokio::select! {
        candidate = membership.candidate() => candidate?,
        () = told(&mut stop) => return Ok(()),
    };
    let ended = loop {
        let front = &office.front;
        let elected = tokio::select! {
            elected = candidate.wins(|standing| {
                let leader = standing.leader.as_ref().map(|leader| leader.address.clone());
                if let Some(leader) = &leader {
                    info!(leader, "following");
                } else {
                    info!("no scheduler leads");
                }
                front.follows(leader);
            }) => elected,
            () = told(&mut stop) => break Ok(()),
        };
        let Elected { store, reign, mut until } = match elected {
            Ok(elected) => elected,
            Err(error) => break Err(error.into()),
        };
        let abandon = store.abandon();
        let mut store: Box<dyn Store> = Box::new(store.with_doubt(office.settings.aftermath()));
        let ended = loop {
            let mut opening = pin!(Opened::open(store));
            let opened = tokio::select! {
                opened = &mut opening => opened,
                () = told(&mut stop) => {
                    abandon.now();
                    opening.await
                }
            };
            let begun = opened.and_then(|opened| {
                candidate.belongs_to(opened.durable.cluster);
                office.begin(opened, Some(until))
            });
            let ended = match begun {
                Ok(government) => {
                    reigns(government, &reign, &mut until, &abandon, &mut stop, &mut wishes).await
                }
                Err(error) => {
                    warn!(error = format!("{error:#}"), "elected, and the store cannot be used");
                    Reigned::Lost
                }
            };
            office.front.follows(None);
            match ended {
                Reigned::Restored(restored) => store = restored,
                ended => break ended,
            }
        };
        match ended {
            // It goes on in that loop.
            Reigned::Restored(_) => {}
            Reigned::Stopped => break Ok(()),
            Reigned::SteppedDown(StepDown { done, .. }) => {
                candidate.steps_back();
                done.send(reign.end().await).ok();
            }
            // What it did not learn the end of is found when the state is read anew: by whoever is elected next.
            Reigned::Lost => {
                reign.end().await.ok();
            }
            Reigned::Panicked => break Err(anyhow::anyhow!("the leader's loop panicked")),
        }
    };
    candidate.end().await;
    alive.abort();
    ended
}

/// Waits until this scheduler is to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    stop.wait_for(|stop| *stop).await.map(drop).ok();
}

/// Waits until somebody wishes that who leads in this term steps down. What was wished of an earlier reign is forgotten, and
/// who wished it is told so.
async fn wished(wishes: &mut mpsc::Receiver<StepDown>, term: &AtomicU64) -> StepDown {
    loop {
        match wishes.recv().await {
            Some(wish) if wish.term.0 == term.load(Ordering::Relaxed) => return wish,
            Some(_) => {}
            None => pending().await,
        }
    }
}

/// How a reign has ended.
enum Reigned {
    Stopped,
    SteppedDown(StepDown),
    /// A backup was restored, and the same scheduler leads on.
    Restored(Box<dyn Store>),
    Lost,
    Panicked,
}

/// Leads for as long as the election lasts.
async fn reigns(
    mut government: Government,
    reign: &Reign,
    until: &mut Time,
    abandon: &Abandon,
    stop: &mut watch::Receiver<bool>,
    wishes: &mut mpsc::Receiver<StepDown>,
) -> Reigned {
    let mut reign = reign.clone();
    let mut wish = None;
    let ended = loop {
        tokio::select! {
            ended = &mut government.ended => break ended.unwrap_or(Ended::Panicked),
            news = reign.next() => match news {
                Ok(longer) => {
                    *until = longer;
                    government.leading.leader.send(ToLeader::Leads(longer)).await;
                    government.leading.leader.leads_until(longer);
                }
                Err(reason) => {
                    abandon.now();
                    break government.stop(ToLeader::Deposed(reason)).await;
                }
            },
            () = told(stop) => break government.ends_soon(abandon).await,
            wanted = wished(wishes, &government.leading.term) => {
                info!("stepping down, as somebody wishes");
                wish = Some(wanted);
                break government.ends_soon(abandon).await;
            }
        }
    };
    match ended {
        Ended::Lost(_) | Ended::Deposed(_) => government.is_deposed(reign.leader().await),
        Ended::Stopped if wish.is_some() => government.is_deposed(None),
        Ended::Stopped | Ended::Restored(_) | Ended::Panicked => {}
    }
    government.conclude().await;
    match ended {
        Ended::Stopped => wish.map_or(Reigned::Stopped, Reigned::SteppedDown),
        Ended::Lost(error) => {
            warn!(%error, "leading no more");
            Reigned::Lost
        }
        Ended::Deposed(reason) => {
            warn!(reason, "leading no more");
            Reigned::Lost
        }
        Ended::Restored(store) => {
            info!("a backup was restored");
            Reigned::Restored(store)
        }
        Ended::Panicked => Reigned::Panicked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_wished_of_an_earlier_reign_does_not_end_this_one() {
        let (wish, mut wishes) = mpsc::channel(2);
        let asked = [3, 4].map(|term| {
            let (done, stepped_down) = oneshot::channel();
            wish.try_send(StepDown { term: Term(term), done }).expect("there is room");
            stepped_down
        });
        let [earlier, present] = asked;
        let wanted = wished(&mut wishes, &AtomicU64::new(4)).await;
        earlier.await.expect_err("it is forgotten");
        wanted.done.send(Ok(())).expect("somebody waits");
        present.await.expect("somebody answers").expect("it steps down");
    }
}
