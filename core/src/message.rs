//! What leader and agent say to each other, over one stream for each session.
//!
//! Assignments are level-triggered: an agent is told what it should hold, in a snapshot and then in deltas, never
//! "do this once". Losing or repeating a message is harmless: revisions count within (term, session).

use std::sync::Arc;
use std::time::Duration;

use crate::ids::{AgentKey, BootId, ClusterId, Epoch, MachineId, Revision, SessionNumber, StreamKey, Term};
use crate::machine::{Capacity, Labels, Pressure};
use crate::state::{Observation, Target};
use crate::stream::StreamKinds;
use crate::unit::{ContentHash, UnitName};

/// What an agent says to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// The first message of a session.
    Hello(Hello),
    /// The machine is alive.
    Heartbeat {
        /// Counts the heartbeats of this session, from 1.
        number: u64,
        /// For how long PID 1 has given the agent no sign of life, apart from what the agent can explain.
        pid1_age: Duration,
        /// How short the machine is of what its units need.
        pressure: Pressure,
    },
    /// What has changed since the last report (since Hello, for the first).
    Report(Vec<UnitReport>),
    /// A delta did not follow what was applied: the agent wants a snapshot.
    SnapshotWanted,
    /// The machine or its agent stops. The leader answers with [`LeaderMessage::Farewell`].
    Goodbye(Goodbye),
}

/// Why an agent says goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// The agent alone is restarted: its machine's lease is to last longer.
    Restart,
    /// The machine shuts down: its units are to be placed elsewhere at once.
    Shutdown,
}

/// How an agent presents its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster that the machine belongs to; `None` before it was ever welcomed.
    pub cluster: Option<ClusterId>,
    /// `/etc/machine-id`.
    pub machine: MachineId,
    /// This boot.
    pub boot: BootId,
    /// The agent's own random key.
    pub key: AgentKey,
    /// Which of the agent's sessions this is.
    pub session: SessionNumber,
    /// The highest term that the agent has obeyed.
    pub term: Term,
    /// The address that other machines reach it by; may be empty.
    pub address: String,
    /// Labels from its configuration.
    pub labels: Labels,
    /// What it has to give.
    pub capacity: Capacity,
    /// The agent's version.
    pub version: String,
    /// How long ago PID 1 last gave a sign of life.
    pub pid1_age: Duration,
    /// Whether the machine shuts down.
    pub leaving: bool,
    /// What it opens streams for; `None` from an agent that knows of none.
    pub streams: Option<StreamKinds>,
    /// Everything that it holds.
    pub units: Vec<HeldUnit>,
}

/// A copy of a unit that a machine holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldUnit {
    /// The unit.
    pub name: UnitName,
    /// Which placement of it.
    pub epoch: Epoch,
    /// Of which content.
    pub hash: ContentHash,
    /// What it was told to do with it.
    pub target: Target,
    /// What is seen of it.
    pub observation: Observation,
}

/// What became of a copy of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitReport {
    /// The unit.
    pub name: UnitName,
    /// Which placement of it.
    pub epoch: Epoch,
    /// What happened.
    pub change: ReportedChange,
}

/// What a report says of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportedChange {
    /// It is held, or could not be, and is now seen like this.
    Observed(Observation),
    /// It is stopped and its files are removed: nothing of this epoch or an older one is left on the machine.
    Gone,
    /// The assignment was not applied, since the machine holds or has stopped this later (or equal) epoch.
    Stale(Epoch),
}

/// What the leader says to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToAgent {
    /// The leader's term: an agent obeys none older than the newest it has seen.
    pub term: Term,
    /// The session that it belongs to.
    pub session: SessionNumber,
    /// What is said.
    pub body: LeaderMessage,
}

/// The body of a message to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaderMessage {
    /// The machine is part of the cluster. It comes first, a snapshot follows.
    Welcome(Welcome),
    /// The machine's lease runs for `lease_ttl` from the moment that heartbeat was sent.
    HeartbeatAck {
        /// The heartbeat that is answered.
        number: u64,
    },
    /// Another machine says that it is this one: a heartbeat at once proves that this one is alive.
    Probe,
    /// A client wants a stream: the agent dials for it, and shows this.
    OpenStream(StreamKey),
    /// What the machine should hold.
    Assignments(Assignments),
    /// The agent may go: its units are active elsewhere as far as they can be, or its lease is longer.
    Farewell {
        /// How long the machine's lease runs, from the moment that the goodbye was sent, where that was for a restart.
        lease: Option<Duration>,
    },
    /// The session ends, for this reason; the agent keeps what it holds and says Hello again later.
    Refused(Refused),
}

/// The leader's terms for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The cluster.
    pub cluster: ClusterId,
    /// How often to send a heartbeat.
    pub heartbeat_interval: Duration,
    /// How long a lease runs.
    pub lease_ttl: Duration,
}

/// Why a session ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The machine belongs to another cluster.
    #[error("this machine belongs to cluster {theirs}, the scheduler leads cluster {ours}")]
    OtherCluster {
        /// The machine's cluster.
        theirs: ClusterId,
        /// The leader's cluster.
        ours: ClusterId,
    },
    /// The leader must take a higher term first.
    #[error("the scheduler takes a term above {0} first")]
    HigherTermSeen(Term),
    /// The lease ended and nothing revives it.
    #[error("the machine's lease ended")]
    LeaseEnded,
    /// A newer session of the same machine took its place.
    #[error("a newer session of this machine took its place")]
    Replaced,
    /// The machine's PID 1 has not answered for so long that a lease would be lost at once.
    #[error("its systemd has not answered for {} s", .0.as_secs())]
    SystemdSilent(Duration),
    /// Another machine with the same id is alive.
    #[error("another machine has the same id{}{}", if address.is_empty() { "" } else { ": " }, address)]
    IdInUse {
        /// The address of that machine; may be empty.
        address: String,
    },
}

/// What a machine should hold: all of it (a snapshot), or what changed since the revision before (a delta).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignments {
    /// Whether `hold` is everything.
    pub snapshot: bool,
    /// A delta applies only to the revision before it.
    pub revision: Revision,
    /// What to hold.
    pub hold: Vec<Assignment>,
    /// What to stop and remove. Only what stands here is removed: a unit that the leader has no record of is left
    /// alone.
    pub remove: Vec<Removal>,
}

/// One unit that a machine should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The unit.
    pub name: UnitName,
    /// Which placement of it.
    pub epoch: Epoch,
    /// Of which content.
    pub hash: ContentHash,
    /// The content; left out where the machine already holds this hash under this name.
    pub content: Option<Arc<str>>,
    /// What to do with it.
    pub target: Target,
    /// Whether the copy is exclusive: then it must have ended this long after the machine's lease has, whoever is alive.
    pub exclusive: Option<Duration>,
}

/// One unit that a machine should stop and remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The unit.
    pub name: UnitName,
    /// A copy of this epoch or an older one.
    pub epoch: Epoch,
}
