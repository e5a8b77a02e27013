//! What goes into the leader and what comes out.

use std::time::Duration;

use crate::command::{Command, CommandResult, MachineCommand, MachineCommandError, Query, QueryAnswer};
use crate::ids::{CommitId, MachineId, Term};
use crate::leader::durable::{Change, Durable};
use crate::machine::Availability;
use crate::message::{FromAgent, ToAgent};
use crate::unit::UnitName;

/// The stream of one agent's session, numbered by the shell and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// One request of a client, numbered by the shell and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What the leader decides by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often agents send a heartbeat.
    pub heartbeat_interval: Duration,
    /// How long a lease runs, counted by the agent from the sending of its heartbeat.
    pub lease_ttl: Duration,
    /// What the leader waits beyond that, for clocks that drift.
    pub clock_margin: Duration,
    /// How long a machine's PID 1 may be silent before the machine counts as lost.
    pub systemd_timeout: Duration,
    /// How long nothing is moved, if nobody says otherwise, when many machines seem to die at once.
    pub brake_hold: Duration,
    /// How long a machine's lease lasts when its agent says that it is restarted.
    pub restart_grace: Duration,
    /// The machine that the leader runs on.
    pub own_machine: Option<MachineId>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(1),
            lease_ttl: Duration::from_secs(5),
            clock_margin: Duration::from_millis(100),
            systemd_timeout: Duration::from_secs(30),
            brake_hold: Duration::from_secs(60),
            restart_grace: Duration::from_secs(30),
            own_machine: None,
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client asks for a change.
    Command(RequestId, Command),
    /// A client asks for a change of machines.
    Machines(RequestId, MachineCommand),
    /// A client asks a question.
    Query(RequestId, Query),
    /// An agent says something.
    Agent(ConnectionId, FromAgent),
    /// An agent's stream ended.
    Disconnected(ConnectionId),
    /// This commit and all before it are durable.
    Committed(CommitId),
    /// A commit failed for certain, and with it all that were not yet durable: the store holds this.
    CommitFailed {
        /// Why, for the clients that wait.
        reason: String,
        /// What the store holds.
        durable: Box<Durable>,
    },
    /// A client says that the machines which the leader doubts to be dead are: [`Effect::AnswerRelease`].
    ReleaseBrake(RequestId),
    /// The store recorded this term, as [`Effect::TakeTerm`] asked.
    TermTaken(Term),
    /// A moment that [`Leader::next_timer`](crate::leader::Leader::next_timer) named has come.
    Tick,
}

/// Something to do. They are to be carried out in this order.
///
/// The leader itself holds back what waits for a commit: an effect that is handed out may be carried out at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Commit this batch after those before it, and say so.
    Persist(CommitId, Vec<Change>),
    /// Send this to the agent.
    Send(ConnectionId, ToAgent),
    /// End this stream, after what was sent on it.
    Close(ConnectionId),
    /// Answer the client's command.
    AnswerCommand(RequestId, CommandResult),
    /// Answer the client's command on machines.
    AnswerMachines(RequestId, Result<(), MachineCommandError>),
    /// Answer the client's question.
    AnswerQuery(RequestId, QueryAnswer),
    /// Answer the client that released the brake: whether it was held.
    AnswerRelease(RequestId, bool),
    /// Tell those who watch these units that something about them changed.
    UnitsChanged(Vec<UnitName>),
    /// Record a term above this one, and say so.
    TakeTerm {
        /// The highest term heard of.
        above: Term,
    },
    /// Something that an operator should be able to read later.
    Event(Event),
}

/// What happened, for the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A machine joined or came back.
    MachineUp(MachineId),
    /// A machine is lost: its units are placed elsewhere.
    MachineLost {
        /// The machine.
        machine: MachineId,
        /// How many units were placed there.
        units: usize,
        /// Why.
        reason: LossReason,
    },
    /// An operator decided this of a machine.
    Availability {
        /// The machine.
        machine: MachineId,
        /// What was decided.
        availability: Availability,
    },
    /// A machine shuts down: its units are placed elsewhere.
    MachineLeaves(MachineId),
    /// The leader was stalled for so long in all since this was last said, which is counted against no machine.
    Stalled(Duration),
    /// Too many machines seem to die at once: nothing is moved.
    BrakeApplied {
        /// Those that are lost, or silent for over two heartbeats.
        machines: Vec<MachineId>,
        /// How many machines the cluster had.
        of: usize,
    },
    /// What was held by the brake is moved.
    BrakeReleased(ReleaseReason),
    /// A machine's agent was refused.
    MachineRefused {
        /// The machine.
        machine: MachineId,
        /// Why.
        reason: String,
    },
    /// A machine claims the id of another one that is alive: one of the two is a copy.
    IdInUse {
        /// The id.
        machine: MachineId,
        /// The address of the machine that has it.
        address: String,
        /// The address of the one that was refused; both may be empty, or the same.
        rival: String,
    },
    /// A unit was placed.
    Placed {
        /// The unit.
        unit: UnitName,
        /// Where.
        machine: MachineId,
        /// Where it was before.
        from: Option<MachineId>,
    },
    /// A machine holds a unit that the leader has no record of.
    Orphaned {
        /// The unit.
        unit: UnitName,
        /// Where.
        machine: MachineId,
    },
}

/// Why the brake is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseReason {
    /// The machines are back, or so many of them that the rest may well be dead.
    #[error("the machines are back")]
    MachinesBack,
    /// It was held for long enough.
    #[error("it was held for brake_hold")]
    HoldPassed,
    /// An operator said so.
    #[error("an operator released it")]
    Operator,
}

/// Why a machine counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LossReason {
    /// Nothing was heard from it for the time of a lease.
    #[error("its lease ended")]
    LeaseEnded,
    /// Its agent is alive, and has had no answer from PID 1 for so long.
    #[error("its systemd has not answered for {} s", .0.as_secs())]
    SystemdSilent(Duration),
}
