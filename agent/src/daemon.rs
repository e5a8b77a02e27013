//! The loop of the daemon: what comes in goes to the core, and what the core wants done is carried out.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use muster_core::agent::{Agent, CallError, Effect, Event, Input, Ledger, Membership, Verb};
use muster_core::message::{Goodbye, Refused};
use muster_daemon::clock;
use muster_daemon::notify::{hint, tell};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::config::Config;
use crate::files::{LINK_DIR, UnitFiles};
use crate::goodbye::{Goodbyes, Shutdown};
use crate::guard::Pet;
use crate::identity;
use crate::notify::Watchdog;
use crate::pressure;
use crate::records::Records;
use crate::session::Sessions;
use crate::streams::Streams;
use crate::systemd::{Call, Systemd};

/// How many inputs may wait for the core: whoever has more waits.
const INPUTS_MAX: usize = 1024;
/// How long the leader may take to answer the goodbye of an agent that is stopped.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// How many inputs the core takes in one turn, so that it reports and saves once for many.
const TURN_MAX: usize = 256;

/// The agent and what carries out its effects.
#[derive(Debug)]
struct Daemon {
    inputs: mpsc::Sender<Input>,
    records: Records,
    files: UnitFiles,
    systemd: Systemd,
    sessions: Sessions,
    /// Whether the leader has said in this turn that it has done what it can for an agent that goes.
    farewell: bool,
    /// A ledger that could not be saved, and why.
    unsaved: Option<(Box<Ledger>, String)>,
}

/// Runs the agent until SIGTERM or SIGINT. Units run on.
///
/// # Errors
/// When the machine's identity or the agent's own files cannot be read.
pub async fn run(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let records = Records::open(&config.run_dir, &config.state_dir)?;
    let mut ledger = records.ledger(identity::boot()?)?;
    let membership = records.membership()?;
    let files = UnitFiles::open(&config.run_dir, Path::new(LINK_DIR))
        .with_context(|| format!("cannot make the directories for unit files, {LINK_DIR} among them"))?;
    for (name, _) in ledger.writing.iter().filter(|(name, _)| !files.has_all(name)) {
        files.remove(name).with_context(|| format!("cannot remove what is there of {name}"))?;
    }
    ledger.look(|name| files.has(name));
    // A full disk, or an operator, may have kept or taken the record of them: what ran of them would be said to be gone.
    for (name, held) in files.unrecorded(&ledger.units).context("cannot read the unit files")? {
        warn!(unit = %name, epoch = %held.epoch, "files of a unit that the ledger does not name");
        ledger.units.insert(name, held);
    }
    let identity = identity::identity(&config)?;
    info!(machine = %identity.machine, units = ledger.units.len(), term = %membership.term, "starting");

    // Agents that were started together must not come together.
    let seed = u64::try_from(ledger.key.bits() >> 64).unwrap_or_default();
    let schedulers = config.schedulers.iter().map(ToString::to_string).collect();
    let mut agent = Agent::new(identity, schedulers, membership, ledger, seed, clock::now());
    let mut goodbyes = Goodbyes::listen(&config.run_dir)?;
    // The shutdown is held back while these are open.
    let mut waiting: Vec<OwnedFd> = Vec::new();
    let mut stop_by = None;
    let (inputs, mut queue) = mpsc::channel(INPUTS_MAX);
    tokio::spawn(pressure::watch(inputs.clone()));
    let mut daemon = Daemon {
        systemd: Systemd::start(files.clone(), inputs.clone()),
        sessions: Sessions::new(config.insecure, inputs.clone(), Some(Streams::start(config.streams)?)),
        inputs,
        records,
        files,
        farewell: false,
        unsaved: None,
    };
    let mut watchdog = Watchdog::new();
    let mut turn = Vec::with_capacity(TURN_MAX);
    tell(&[NotifyState::Ready]);
    loop {
        let timer = agent.next_timer().map_or(Duration::MAX, |at| at.since(clock::now()));
        let stop = stop_by.map_or(Duration::MAX, |at: Instant| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            _ = queue.recv_many(&mut turn, TURN_MAX) => {}
            () = tokio::time::sleep(timer.min(watchdog.next()).min(stop)) => turn.push(Input::Tick),
            shutdown = goodbyes.next() => turn.push(match shutdown {
                Shutdown::Begins(waits) => {
                    info!("the machine shuts down: asking for its units to be placed elsewhere");
                    waiting.extend(waits);
                    Input::Goodbye(Goodbye::Shutdown)
                }
                Shutdown::Cancelled => Input::ShutdownCancelled,
            }),
            _ = terminate.recv(), if stop_by.is_none() => {
                stop_by = Some(Instant::now() + FAREWELL_MAX);
                turn.push(Input::Goodbye(Goodbye::Restart));
            }
            _ = interrupt.recv() => break,
        }
        daemon.farewell = false;
        for effect in agent.step(clock::now(), turn.drain(..)) {
            daemon.carry_out(effect);
        }
        if daemon.farewell {
            // Who waits is told by the end of its stream or lock.
            waiting.clear();
        }
        if stop_by.is_some_and(|at| daemon.farewell || at <= Instant::now()) {
            break;
        }
        daemon.save_again();
        watchdog.turned();
    }
    // What changed last may not be saved yet.
    daemon.save(Box::new(agent.ledger()));
    info!("stopping; units run on");
    tell(&[NotifyState::Stopping]);
    Ok(())
}

impl Daemon {
    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::SaveLedger(ledger) => self.save(ledger),
            Effect::SaveMembership(membership) => self.save_membership(membership),
            Effect::Connect(connection, scheduler) => self.sessions.connect(connection, scheduler),
            Effect::Disconnect(_) => self.sessions.disconnect(),
            Effect::Send(message) => self.sessions.send(message),
            Effect::OpenStream(connection, key) => self.sessions.open_stream(connection, key),
            Effect::Write(writes) => self.systemd.call(Call::Write(writes)),
            Effect::Remove(names) => {
                let outcome = |name| {
                    let outcome = self.files.remove(&name).map_err(|error| error.to_string());
                    (name, outcome)
                };
                self.answer(Input::Removed(names.into_iter().map(outcome).collect()));
            }
            Effect::ResetFailed(name) => self.systemd.call(Call::ResetFailed(name)),
            Effect::Stop(name) => self.systemd.call(Call::Stop(name)),
            Effect::Start(name) => match self.why_unsaved() {
                None => self.systemd.call(Call::Start(name)),
                Some(reason) => {
                    self.answer(Input::Answered(name, Verb::Start, Err(CallError::NotAsked(reason))));
                }
            },
            Effect::Check(name) => self.systemd.call(Call::Check(name)),
            Effect::Explain(name) => self.systemd.call(Call::Explain(name)),
            Effect::Read(names) => self.systemd.call(Call::Read(names)),
            Effect::Reload => {
                info!("reloading systemd, which has old content of a unit that stays loaded");
                self.systemd.call(Call::Reload);
            }
            Effect::Ping => self.systemd.call(Call::Ping),
            Effect::ArmGuard { until } => match self.why_unsaved() {
                None => self.systemd.call(Call::ArmGuard(until)),
                Some(reason) => self.answer(Input::GuardArmed(Err(reason))),
            },
            Effect::DisarmGuard => self.systemd.call(Call::DisarmGuard),
            Effect::PetGuard { until } => match self.files.guard().pet(until) {
                Ok(Pet::Done) => {}
                Ok(Pet::Lost) => self.answer(Input::GuardDown),
                Err(error) => warn!(%error, "cannot renew the guard of exclusive units"),
            },
            Effect::Fence => self.files.guard().fence(),
            Effect::Farewell => self.farewell = true,
            Effect::Event(event) => self.log(event),
        }
    }

    /// Hands the core an answer without waiting: the queue may be full, and it is this task that empties it.
    fn answer(&self, input: Input) {
        if let Err(mpsc::error::TrySendError::Full(input)) = self.inputs.try_send(input) {
            let inputs = self.inputs.clone();
            tokio::spawn(async move { inputs.send(input).await });
        }
    }

    fn save(&mut self, ledger: Box<Ledger>) {
        self.unsaved = None;
        if let Err(error) = self.records.save_ledger(&ledger) {
            error!(%error, "cannot save the ledger; nothing is started until that is possible");
            self.unsaved = Some((ledger, format!("the agent cannot write down that it is here: {error}")));
        }
    }

    fn save_again(&mut self) {
        if let Some((ledger, reason)) = self.unsaved.take()
            && self.records.save_ledger(&ledger).is_err()
        {
            self.unsaved = Some((ledger, reason));
        }
    }

    fn why_unsaved(&self) -> Option<String> {
        self.unsaved.as_ref().map(|(_, reason)| reason.clone())
    }

    fn save_membership(&self, membership: Membership) {
        let (records, inputs) = (self.records.clone(), self.inputs.clone());
        tokio::spawn(async move {
            // A disk may take its time, and heartbeats must not wait for it.
            let saving = tokio::task::spawn_blocking(move || records.save_membership(membership));
            let outcome = match saving.await {
                Ok(outcome) => outcome.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            inputs.send(Input::MembershipSaved(outcome)).await
        });
    }

    fn log(&self, event: Event) {
        match event {
            Event::Welcomed { cluster, term, lease_ttl } => {
                self.sessions.welcomed();
                info!(%cluster, %term, ?lease_ttl, "welcomed");
                hint(&[NotifyState::Status(&format!("member of cluster {cluster}, term {term}"))]);
            }
            Event::Refused(reason @ Refused::IdInUse { .. }) => error!(
                %reason,
                "refused by the scheduler: one of the two machines is a copy; units run on. If this is the copy, give it an \
                 id of its own: remove /etc/machine-id, run systemd-machine-id-setup, and reboot"
            ),
            Event::Refused(reason) => warn!(%reason, "refused by the scheduler; units run on"),
            Event::OtherCluster { ours, theirs } => {
                warn!(
                    %ours,
                    %theirs,
                    "the scheduler leads another cluster than this machine belongs to; units run on. If the machine is \
                     to change clusters, stop the agent and remove agent.json from its state directory"
                );
            }
            Event::OldTerm { term, newest } => warn!(%term, %newest, "a leader of an old term is not obeyed"),
            Event::MembershipNotSaved(error) => {
                error!(error, "cannot write down the leader's term, so it is not obeyed; is the disk full?");
            }
            Event::LeaderSilent(scheduler) => {
                warn!(%scheduler, "the leader answers no heartbeats; looking for one that does");
            }
            Event::NoAnswer(scheduler) => self.sessions.complain(&scheduler, "it does not answer"),
            Event::Stale(unit, newest) => warn!(%unit, %newest, "an old assignment is not applied"),
            Event::UnitRefused(unit, reason) => warn!(%unit, reason, "refused a unit"),
            Event::StartFailed(unit, reason) => warn!(%unit, reason, "start failed"),
            Event::Failed(unit, reason) => warn!(%unit, reason, "systemd has given up a unit"),
            Event::StopFailed(unit, reason) => warn!(%unit, reason, "stop failed; trying again"),
            Event::RemoveFailed(unit, reason) => warn!(%unit, reason, "cannot remove files; trying again"),
            Event::GuardFailed(reason) => {
                warn!(reason, "cannot have systemd guard exclusive units, so they wait; trying again");
            }
            Event::GuardEnded => warn!("the lease or its guard has ended: exclusive units are stopped"),
            Event::Fenced => warn!("exclusive units were not seen to stop in time: killing them"),
            Event::ReloadFailed(reason) => warn!(reason, "cannot reload systemd; trying again"),
            Event::Holding(unit, epoch) => debug!(%unit, %epoch, "holding a unit"),
            Event::Gone(unit, epoch) => debug!(%unit, %epoch, "a unit is gone"),
        }
    }
}
