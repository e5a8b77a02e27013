//! What goes into the leader and what comes out.

use std::time::Duration;

use crate::command::{
    Command, CommandResult, LabelEdit, MachineCommand, MachineCommandError, Query, QueryAnswer, RestoreError,
};
use crate::ids::{CommitId, MachineId, Term};
use crate::leader::durable::{Change, Durable};
use crate::leader::event::Event;
use crate::leader::gates::GUARD_LAG;
use crate::message::{FromAgent, ToAgent};
use crate::stream::{StreamError, StreamWanted};
use crate::time::Time;
use crate::unit::{EXCLUSIVE_STOPS, UnitName};

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
    /// How long a machine's PID 1 may be silent before the machine counts as lost.
    pub systemd_timeout: Duration,
    /// How long nothing is moved, if nobody says otherwise, when many machines seem to die at once.
    pub brake_hold: Duration,
    /// How long a machine's lease lasts when its agent says that it is restarted.
    pub restart_grace: Duration,
    /// How long after an election the leader before may have gone on granting leases, where it may have been deposed before
    /// its time: somebody has deleted its key, or the store has ended its lease too soon (as etcd may, where its own leader
    /// stood still, before 3.4.31 and 3.5.13).
    pub overlap: Duration,
    /// The machine that the leader runs on.
    pub own_machine: Option<MachineId>,
}

impl Settings {
    /// How long a machine's lease runs for the leader, which counts from when it heard of the machine.
    pub fn lease(&self) -> Duration {
        self.with_margin(self.lease_ttl)
    }

    /// For how long any machine may count on what it was granted, by who has these settings.
    pub fn longest_lease(&self) -> Duration {
        self.lease().max(self.with_margin(self.restart_grace))
    }

    /// For how long after that anything may run that rests on it.
    pub fn aftermath(&self) -> Duration {
        self.longest_lease() + self.exclusive_end(EXCLUSIVE_STOPS.1)
    }

    /// How long after a lease an exclusive unit has ended for certain that may take so long to stop.
    pub fn exclusive_end(&self, stop: Duration) -> Duration {
        self.with_margin(stop) + GUARD_LAG
    }

    /// A time span with what is added for clocks that drift, whatever the settings: 2 %, for two that drift by 1 % each.
    pub fn with_margin(&self, span: Duration) -> Duration {
        span + span / 50
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(1),
            lease_ttl: Duration::from_secs(5),
            systemd_timeout: Duration::from_secs(30),
            brake_hold: Duration::from_secs(60),
            restart_grace: Duration::from_secs(30),
            overlap: Duration::ZERO,
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
    /// A client asks for changes of machines' labels, in this order.
    EditLabels(RequestId, Vec<LabelEdit>),
    /// A client asks a question.
    Query(RequestId, Query),
    /// A client wants a stream to a machine: [`Effect::AnswerStream`].
    OpenStream(RequestId, StreamWanted),
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
    /// A client asks that a backup takes the place of what there is, of a leader in this term: [`Effect::Restore`].
    Restore(RequestId, Term),
    /// The store did not take the backup, for this reason, and is as it was.
    NotRestored(String),
    /// The host of this machine has answered, or not: [`Effect::Knock`].
    Knocked(MachineId, bool),
    /// The store recorded this term, as [`Effect::TakeTerm`] asked.
    TermTaken(Term),
    /// The store has no room to record a term, and goes on under the present one.
    TermNotTaken,
    /// This leader leads until that moment of its own clock at least: the store's election, counted from when its last
    /// renewal was asked for, less what clocks may drift. It is said before anything else, or never where nobody else can
    /// use the store.
    Leads(Time),
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
    /// Find out whether the host at this address answers anything at all, if only that a port is closed, and say so:
    /// [`Input::Knocked`].
    Knock(MachineId, String),
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
    /// Answer the client that released the brake: for these machines, where it was held.
    AnswerRelease(RequestId, Option<Vec<MachineId>>),
    /// Answer the client that wants a stream: its machine's agent is asked to dial for it, or why not.
    AnswerStream(RequestId, Result<(), StreamError>),
    /// Have the store hold the client's backup in place of all that it holds, and have the next leader take a term above
    /// this one. That ends this leader, if the store does not say [`Input::NotRestored`].
    Restore {
        /// Whose backup.
        request: RequestId,
        /// Above every term of which an epoch may be known anywhere.
        above: Term,
    },
    /// Tell the client why its backup is not restored.
    RefuseRestore(RequestId, RestoreError),
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
