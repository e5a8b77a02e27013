//! What goes into the agent and what comes out, and what it keeps on disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{AgentKey, BootId, ClusterId, Epoch, MachineId, SessionNumber, StreamKey, Term};
use crate::machine::{Capacity, Labels, Pressure};
use crate::message::{FromAgent, Goodbye, Refused, ToAgent};
use crate::state::{Failure, Phase, Target, UnitState};
use crate::stream::StreamKinds;
use crate::time::Time;
use crate::unit::{ContentHash, UnitName};

/// How the agent presents its machine, apart from what is in its [`Ledger`] and [`Membership`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `/etc/machine-id`.
    pub machine: MachineId,
    /// The address that other machines reach it by; may be empty.
    pub address: String,
    /// Labels from its configuration.
    pub labels: Labels,
    /// What it has to give.
    pub capacity: Capacity,
    /// The agent's version.
    pub version: String,
    /// What it opens streams for.
    pub streams: StreamKinds,
}

/// Which cluster the machine belongs to, kept across reboots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The cluster; `None` before the first welcome.
    pub cluster: Option<ClusterId>,
    /// The newest term seen: no older one is obeyed.
    pub term: Term,
    /// The machine that has seen it; `None` where an earlier version wrote this down.
    pub machine: Option<MachineId>,
}

/// What the agent knows of this boot, kept where a reboot removes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// The boot that all of this is about.
    pub boot: BootId,
    /// The agent's own random key.
    pub key: AgentKey,
    /// The session opened last.
    pub session: SessionNumber,
    /// The units whose files are on this machine, and those that have not been seen to end since their files were removed.
    /// The ledger may be a little behind: whoever reads it says of each unit whether its files are there.
    pub units: BTreeMap<UnitName, Held>,
    /// Units whose first files are being written: whether they are there, [`Ledger::look`] finds out.
    #[serde(default)]
    pub writing: BTreeMap<UnitName, Held>,
    /// The last epochs of units that were here and are gone.
    pub stopped: BTreeMap<UnitName, Epoch>,
}

impl Ledger {
    /// The ledger of a machine that holds nothing yet.
    pub fn new(boot: BootId, key: AgentKey) -> Self {
        Self {
            boot,
            key,
            session: SessionNumber(0),
            units: BTreeMap::new(),
            writing: BTreeMap::new(),
            stopped: BTreeMap::new(),
        }
    }

    /// What has become of it when an agent starts, where `has` says of which units the files are there.
    pub fn look(&mut self, has: impl Fn(&UnitName) -> bool) {
        let writing = std::mem::take(&mut self.writing);
        self.units.extend(writing.into_iter().filter(|(name, _)| has(name)));
        for (name, held) in &mut self.units {
            held.removed = !has(name);
        }
    }
}

/// A copy of a unit whose files are on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Which placement.
    pub epoch: Epoch,
    /// Of which content.
    pub hash: ContentHash,
    /// What the leader said to do with it.
    pub target: Target,
    /// How far the agent is with it.
    pub phase: Phase,
    /// Whether it is certain that what runs of it was started from these files, not from older ones.
    pub settled: bool,
    /// Whether it is exclusive: then how long it may take to stop after the lease has ended.
    #[serde(default)]
    pub exclusive: Option<Duration>,
    /// Whether it has ended for a reason of its own, as far as that matters: the guard ran on.
    #[serde(default)]
    pub ended: bool,
    /// Whether its files are removed: what still runs of it, or was activated meanwhile, is to be stopped.
    #[serde(default)]
    pub removed: bool,
}

impl Held {
    /// A copy whose files are there without a record of it. Whether anything of it runs is to be seen, and from which
    /// files.
    pub fn found(epoch: Epoch, hash: ContentHash, exclusive: Option<Duration>) -> Self {
        let (target, phase) = (Target::Loaded, Phase::Loaded);
        Self { epoch, hash, target, phase, settled: false, exclusive, ended: false, removed: false }
    }
}

/// A call that makes systemd do something with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// `StartUnit`.
    Start,
    /// `StopUnit`.
    Stop,
}

/// Why a call to systemd came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// systemd has no such unit loaded.
    NotLoaded,
    /// systemd refused, in these words.
    Refused(String),
    /// It was not asked, for this reason.
    NotAsked(String),
    /// No answer came, or none could come: the call may or may not have had its effect.
    Unanswered(String),
}

/// What became of the writing of a unit's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// They are in place.
    Done {
        /// Whether PID 1 has a unit of that name loaded, from files of Muster's that were there before.
        known: bool,
    },
    /// Nothing was written: the machine has a unit of that name of its own, from this file (or in this state, where
    /// there is no file).
    NameTaken(String),
    /// They could not be written, for this reason.
    Failed(String),
    /// Nothing was written, since systemd could not be asked whether the name is free.
    Unanswered,
}

/// A unit as systemd shows it when asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its state.
    pub state: UnitState,
    /// Whether a job is pending for it.
    pub job: bool,
    /// What is wrong with its file, in systemd's words, where systemd refuses to load it.
    pub load_error: Option<String>,
}

/// What systemd has of a unit whose files were replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whether it needs a reload, because it has the content that was there before (`NeedDaemonReload`).
    pub outdated: bool,
    /// Whether the unit is anything but inactive or failed: then it may have been started from that content.
    pub active: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The machine or its agent stops: the leader is told, and [`Effect::Farewell`] says when that is done.
    Goodbye(Goodbye),
    /// The machine does not shut down after all.
    ShutdownCancelled,
    /// The stream that [`Effect::Connect`] with this number asked for is open.
    Connected(u64),
    /// That stream could not be opened, or has ended. Every [`Effect::Connect`] ends in this, or in [`Input::Redirected`].
    Disconnected(u64),
    /// The same, since that scheduler does not lead; this one does, it says.
    Redirected(u64, String),
    /// A leader says something.
    Leader(ToAgent),
    /// [`Effect::SaveMembership`] is done, or failed for this reason.
    MembershipSaved(Result<(), String>),
    /// [`Effect::Write`] is done: what became of each unit of it.
    Written(Vec<(UnitName, Written)>),
    /// [`Effect::Remove`] is done: what became of each unit of it.
    Removed(Vec<(UnitName, Result<(), String>)>),
    /// systemd is connected and its signals are subscribed to, for the first time or again.
    SystemdUp,
    /// The connection to systemd is lost. Calls that wait are answered with [`CallError::Unanswered`].
    SystemdDown,
    /// systemd begins (`true`) or ends a reload: signals in between are noise.
    Reloading(bool),
    /// [`Effect::Reload`] is done, or failed for this reason.
    Reloaded(Result<(), String>),
    /// [`Effect::Start`] or [`Effect::Stop`] was answered, with the number of the job if all is well.
    Answered(UnitName, Verb, Result<u32, CallError>),
    /// The job with this number ended, with this result.
    JobRemoved(UnitName, u32, String),
    /// systemd signals the state of a unit.
    Changed {
        /// The unit.
        unit: UnitName,
        /// Its `ActiveState`.
        active: String,
        /// Its `SubState`.
        sub: String,
        /// Whether a job is pending for it.
        job: bool,
    },
    /// [`Effect::Read`] is answered: the units, or those that it could not be found out about.
    Read(Vec<(UnitName, Option<Seen>)>),
    /// [`Effect::Check`] is answered; `None` when nothing could be found out.
    Checked(UnitName, Option<Checked>),
    /// [`Effect::Explain`] is answered: what systemd says of the unit's failure, if anything.
    Explained(UnitName, Option<Failure>),
    /// [`Effect::Ping`] is answered, or (`false`) was not.
    Pong(bool),
    /// [`Effect::ArmGuard`] is done, or failed for this reason.
    GuardArmed(Result<(), String>),
    /// [`Effect::DisarmGuard`] is done, or failed.
    GuardDisarmed,
    /// [`Effect::PetGuard`] reached nobody: the guard does not run any more.
    GuardDown,
    /// How short the machine is of what its units need.
    Pressure(Pressure),
    /// A moment that [`Agent::next_timer`](super::Agent::next_timer) named has come.
    Tick,
}

/// The files of a unit, to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The unit.
    pub name: UnitName,
    /// Its placement, for its drop-in (see [`drop_in`](super::drop_in)).
    pub epoch: Epoch,
    /// Whether it is exclusive, for its drop-in as well.
    pub exclusive: Option<Duration>,
    /// The hash of its content.
    pub hash: ContentHash,
    /// Its content; `None` where the file is already there and stays.
    pub content: Option<Arc<str>>,
    /// Whether Muster has no unit of that name on this machine yet: then the machine must not have one of its own.
    pub fresh: bool,
}

/// Something to do. They are to be started in this order; none waits for the end of one before it, but for
/// [`Effect::SaveLedger`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The agent may go: the leader has done what it can, or there is none.
    Farewell,
    /// Write this down so that it survives a reboot, then say so with [`Input::MembershipSaved`].
    SaveMembership(Membership),
    /// Write this down so that it survives the agent. Nothing that follows is done before. As long as it cannot be, nothing
    /// is started: the next agent would not know of it.
    SaveLedger(Box<Ledger>),
    /// Open a stream with this number to this scheduler, and end the one before.
    Connect(u64, String),
    /// End this stream.
    Disconnect(u64),
    /// Send this on the stream.
    Send(FromAgent),
    /// Dial for a stream of the session on the stream with this number, and show this; it ends with that. No answer is wanted.
    OpenStream(u64, StreamKey),
    /// Write the files of these units.
    Write(Vec<Write>),
    /// Remove the files of these units.
    Remove(Vec<UnitName>),
    /// Let systemd forget that the unit failed. No answer is wanted.
    ResetFailed(UnitName),
    /// Stop the unit.
    Stop(UnitName),
    /// Start the unit.
    Start(UnitName),
    /// Find out whether systemd still has old content of the unit, and whether the unit is active.
    Check(UnitName),
    /// Find out why the unit failed.
    Explain(UnitName),
    /// Read the state of these units.
    Read(Vec<UnitName>),
    /// Make systemd read its files again.
    Reload,
    /// Ask systemd for anything, to see whether it answers.
    Ping,
    /// Have PID 1 guard exclusive units until that moment: start [`LEASE`](super::LEASE).
    ArmGuard {
        /// When they must end.
        until: Time,
    },
    /// Have it guard them until that moment, also where an agent before this one has started it.
    PetGuard {
        /// When they must end.
        until: Time,
    },
    /// End the guard: no unit needs it any more.
    DisarmGuard,
    /// Kill the processes of exclusive units whose time is over, without PID 1. No answer is wanted.
    Fence,
    /// Something that an operator should be able to read later.
    Event(Event),
}

/// What happened, for the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A leader welcomed the machine.
    Welcomed {
        /// The cluster.
        cluster: ClusterId,
        /// The leader's term.
        term: Term,
        /// How long a lease runs.
        lease_ttl: Duration,
    },
    /// A scheduler refused the machine.
    Refused(Refused),
    /// A scheduler leads another cluster than the machine belongs to.
    OtherCluster {
        /// The machine's cluster.
        ours: ClusterId,
        /// The scheduler's.
        theirs: ClusterId,
    },
    /// A message of a term that has been overtaken was not obeyed.
    OldTerm {
        /// Its term.
        term: Term,
        /// The newest term seen.
        newest: Term,
    },
    /// The cluster and term could not be written down, so that the leader is not obeyed.
    MembershipNotSaved(String),
    /// The leader, at this address, answers no heartbeats.
    LeaderSilent(String),
    /// The scheduler at this address does not answer.
    NoAnswer(String),
    /// An assignment was not applied, since a later epoch is or was here.
    Stale(UnitName, Epoch),
    /// The machine cannot hold a unit.
    UnitRefused(UnitName, String),
    /// A unit's start failed.
    StartFailed(UnitName, String),
    /// systemd gave up a unit that had been started.
    Failed(UnitName, String),
    /// A unit could not be stopped; it is tried again.
    StopFailed(UnitName, String),
    /// A unit's files could not be removed; it is tried again.
    RemoveFailed(UnitName, String),
    /// A reload of systemd failed; it is tried again.
    ReloadFailed(String),
    /// The guard of exclusive units could not be started; it is tried again.
    GuardFailed(String),
    /// The guard has ended, with the lease or before: exclusive units are stopped.
    GuardEnded,
    /// Exclusive units were not seen to end in time.
    Fenced,
    /// A unit is on this machine now.
    Holding(UnitName, Epoch),
    /// A unit is gone from this machine.
    Gone(UnitName, Epoch),
}
