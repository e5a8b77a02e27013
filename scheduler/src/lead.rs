//! The loop that owns the leader: inputs in, effects out, nothing decided here.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use muster_core::command::{Command, CommandResult, MachineCommand, MachineCommandError, Query, QueryAnswer};
use muster_core::ids::MachineId;
use muster_core::leader::{ConnectionId, Effect, Input, Leader, RequestId};
use muster_core::message::FromAgent;
use muster_core::time::Time;
use muster_daemon::clock;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tonic::Status;

use crate::events::Events;
use crate::notify::Notifier;
use crate::sessions::Sessions;
use crate::store::{CommitError, Committed, Committer};
use crate::watchers::Watchers;

/// How many messages may wait for the leader; who has more to say waits until there is room.
const INBOX: usize = 1024;

/// The longest that the loop sleeps: its timer does not run while the machine is suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// How long a host has to answer, and the port that is knocked at: the discard service's (RFC 863), which nobody runs.
const KNOCK_WAIT: Duration = Duration::from_secs(1);
const DISCARD: u16 = 9;

/// What other tasks say to the loop.
#[derive(Debug)]
pub(crate) enum ToLeader {
    Command(Command, oneshot::Sender<CommandResult>),
    Query(Query, oneshot::Sender<QueryAnswer>),
    Machines(MachineCommand, oneshot::Sender<Result<(), MachineCommandError>>),
    ReleaseBrake(oneshot::Sender<Option<Vec<MachineId>>>),
    Agent(ConnectionId, FromAgent),
    Disconnected(ConnectionId),
    /// Whether the host of a machine answers.
    Knocked(MachineId, bool),
    Store(Committed),
    Stop,
}

impl ToLeader {
    fn is_urgent(&self) -> bool {
        match self {
            Self::Agent(..) | Self::Disconnected(_) | Self::Knocked(..) | Self::Store(_) | Self::Stop => true,
            Self::Command(..) | Self::Query(..) | Self::Machines(..) | Self::ReleaseBrake(_) => false,
        }
    }
}

/// What other tasks talk to the leader through.
#[derive(Clone, Debug)]
pub(crate) struct LeaderHandle {
    /// With the moment when each message came: it counts from then, so that no machine's lease ends while its heartbeat
    /// waits.
    heartbeats: mpsc::Sender<(Time, ToLeader)>,
    urgent: mpsc::Sender<(Time, ToLeader)>,
    requests: mpsc::Sender<ToLeader>,
}

/// What waits for the leader. A heartbeat waits for other heartbeats only, and the end of a commit not for clients,
/// however many they are.
#[derive(Debug)]
pub(crate) struct Inbox {
    heartbeats: mpsc::Receiver<(Time, ToLeader)>,
    urgent: mpsc::Receiver<(Time, ToLeader)>,
    requests: mpsc::Receiver<ToLeader>,
}

/// A leader's inbox, with the handle that puts messages into it.
pub(crate) fn inbox() -> (LeaderHandle, Inbox) {
    let (heartbeats, heartbeats_received) = mpsc::channel(INBOX);
    let (urgent, urgent_received) = mpsc::channel(INBOX);
    let (requests, requests_received) = mpsc::channel(INBOX);
    (
        LeaderHandle { heartbeats, urgent, requests },
        Inbox { heartbeats: heartbeats_received, urgent: urgent_received, requests: requests_received },
    )
}

impl Inbox {
    /// The next message, and the time to count from. Nothing is lost when this is dropped before it is ready.
    async fn next(&mut self) -> Option<(Time, ToLeader)> {
        tokio::select! {
            biased;
            Some(message) = self.heartbeats.recv() => Some(message),
            Some(message) = self.urgent.recv() => Some(message),
            // Nothing urgent waits, so that it is as late as the clock says.
            Some(message) = self.requests.recv() => Some((clock::now(), message)),
            else => None,
        }
    }
}

impl LeaderHandle {
    /// Asks for a change, and waits for it.
    pub(crate) async fn command(&self, command: Command) -> Result<CommandResult, Status> {
        let (answer, answered) = oneshot::channel();
        self.send(ToLeader::Command(command, answer)).await;
        answered.await.map_err(|_| stopped())
    }

    /// Asks a question, and waits for the answer.
    pub(crate) async fn query(&self, query: Query) -> Result<QueryAnswer, Status> {
        let (answer, answered) = oneshot::channel();
        self.send(ToLeader::Query(query, answer)).await;
        answered.await.map_err(|_| stopped())
    }

    /// Asks for a change of machines, and waits for it.
    pub(crate) async fn change_machines(
        &self,
        command: MachineCommand,
    ) -> Result<Result<(), MachineCommandError>, Status> {
        let (answer, answered) = oneshot::channel();
        self.send(ToLeader::Machines(command, answer)).await;
        answered.await.map_err(|_| stopped())
    }

    /// Releases the brake: for these machines, where it was held.
    pub(crate) async fn release_brake(&self) -> Result<Option<Vec<MachineId>>, Status> {
        let (answer, answered) = oneshot::channel();
        self.send(ToLeader::ReleaseBrake(answer)).await;
        answered.await.map_err(|_| stopped())
    }

    /// Says something that nobody waits for. After the leader has stopped it is lost, as it would be in a crash.
    pub(crate) async fn send(&self, message: ToLeader) {
        if let ToLeader::Agent(_, FromAgent::Heartbeat { .. }) = message {
            self.heartbeats.send((clock::now(), message)).await.ok();
        } else if message.is_urgent() {
            self.urgent.send((clock::now(), message)).await.ok();
        } else {
            self.requests.send(message).await.ok();
        }
    }

    /// Whether the leader has stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.requests.is_closed()
    }

    /// Says what became of a commit, from a thread.
    pub(crate) fn committed(&self, committed: Committed) {
        self.urgent.blocking_send((clock::now(), ToLeader::Store(committed))).ok();
    }
}

pub(crate) fn stopped() -> Status {
    Status::unavailable(
        "this scheduler is stopping; whether a command was carried out, its repetition will tell",
    )
}

/// The leader and all that its effects reach.
#[derive(Debug)]
pub(crate) struct Lead {
    pub(crate) leader: Leader,
    pub(crate) handle: LeaderHandle,
    /// What the network is asked on: the leader's own thread does nothing but lead.
    pub(crate) network: Handle,
    pub(crate) inbox: Inbox,
    pub(crate) committer: Committer,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) watchers: Arc<Watchers>,
    pub(crate) events: Arc<Events>,
    pub(crate) requests: Requests,
}

/// The clients that wait for an answer.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    last: u64,
    commands: BTreeMap<RequestId, oneshot::Sender<CommandResult>>,
    queries: BTreeMap<RequestId, oneshot::Sender<QueryAnswer>>,
    machines: BTreeMap<RequestId, oneshot::Sender<Result<(), MachineCommandError>>>,
    releases: BTreeMap<RequestId, oneshot::Sender<Option<Vec<MachineId>>>>,
}

impl Requests {
    fn next(&mut self) -> RequestId {
        self.last += 1;
        RequestId(self.last)
    }
}

impl Lead {
    /// Leads until it is told to stop.
    ///
    /// # Errors
    /// When the store can be relied on no more. Nothing that waited for it was answered.
    pub(crate) async fn run(mut self) -> Result<(), CommitError> {
        let mut notifier = Notifier::new();
        loop {
            let now = clock::now();
            let timer = self.leader.next_timer().since(now);
            let sleep = timer.min(LONGEST_SLEEP).min(notifier.next());
            // It is closed by nobody but this loop.
            let (came, message) = timeout(sleep, self.inbox.next()).await.ok().flatten().unzip();
            // The leader's own time never goes back, also where a heartbeat has overtaken this.
            let now = came.unwrap_or_else(clock::now);
            let input = match message {
                None => Input::Tick,
                Some(message) => match message {
                    ToLeader::Command(command, answer) => {
                        let request = self.requests.next();
                        self.requests.commands.insert(request, answer);
                        Input::Command(request, command)
                    }
                    ToLeader::Query(query, answer) => {
                        let request = self.requests.next();
                        self.requests.queries.insert(request, answer);
                        Input::Query(request, query)
                    }
                    ToLeader::Machines(command, answer) => {
                        let request = self.requests.next();
                        self.requests.machines.insert(request, answer);
                        Input::Machines(request, command)
                    }
                    ToLeader::ReleaseBrake(answer) => {
                        let request = self.requests.next();
                        self.requests.releases.insert(request, answer);
                        Input::ReleaseBrake(request)
                    }
                    ToLeader::Knocked(machine, answers) => Input::Knocked(machine, answers),
                    ToLeader::Agent(connection, said) => Input::Agent(connection, said),
                    ToLeader::Disconnected(connection) => Input::Disconnected(connection),
                    ToLeader::Store(Committed::Upto(commit)) => Input::Committed(commit),
                    ToLeader::Store(Committed::Failed { reason, durable }) => {
                        self.committer.resume();
                        Input::CommitFailed { reason, durable }
                    }
                    ToLeader::Store(Committed::TermTaken(term)) => Input::TermTaken(term),
                    ToLeader::Store(Committed::TermNotTaken(reason)) => Input::TermNotTaken(reason),
                    ToLeader::Store(Committed::Lost(error)) => return Err(error),
                    ToLeader::Stop => {
                        self.inbox.requests.close();
                        self.inbox.urgent.close();
                        self.inbox.heartbeats.close();
                        self.committer.finish();
                        return Ok(());
                    }
                },
            };
            self.step(now, input);
            notifier.turned(|| self.leader.size());
        }
    }

    fn step(&mut self, now: Time, input: Input) {
        let mut events = Vec::new();
        for effect in self.leader.step(now, input) {
            match effect {
                Effect::Persist(commit, changes) => self.committer.commit(commit, changes),
                Effect::TakeTerm { above } => self.committer.take_term(above),
                Effect::Knock(machine, address) => {
                    self.network.spawn(knock(self.handle.clone(), machine, address));
                }
                Effect::Send(connection, message) => self.sessions.send(connection, message),
                Effect::Close(connection) => self.sessions.close(connection),
                // Who asked may have gone since.
                Effect::AnswerCommand(request, result) => {
                    self.requests.commands.remove(&request).map(|answer| answer.send(result).ok());
                }
                Effect::AnswerQuery(request, answer) => {
                    self.requests.queries.remove(&request).map(|sender| sender.send(answer).ok());
                }
                Effect::AnswerMachines(request, result) => {
                    self.requests.machines.remove(&request).map(|answer| answer.send(result).ok());
                }
                Effect::AnswerRelease(request, released) => {
                    self.requests.releases.remove(&request).map(|sender| sender.send(released).ok());
                }
                Effect::UnitsChanged(names) => self.watchers.changed(&names),
                Effect::Event(event) => events.push(event),
            }
        }
        self.events.push(events);
    }
}

/// Finds out whether a host answers: it does so too by saying that nobody listens there.
async fn knock(leader: LeaderHandle, machine: MachineId, address: String) {
    let answers = match timeout(KNOCK_WAIT, TcpStream::connect((&*address, DISCARD))).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
        Err(_) => false,
    };
    leader.send(ToLeader::Knocked(machine, answers)).await;
}

#[cfg(test)]
mod tests {
    use muster_core::machine::Pressure;

    use super::*;

    #[tokio::test]
    async fn what_is_urgent_goes_first_and_counts_from_when_it_came() {
        let (leader, mut inbox) = inbox();
        let (answer, _answered) = oneshot::channel();
        leader.send(ToLeader::Query(Query::Machines { left_on: Vec::new() }, answer)).await;
        let before = clock::now();
        leader.send(ToLeader::Disconnected(ConnectionId(1))).await;
        let after = clock::now();
        let beat =
            FromAgent::Heartbeat { number: 1, pid1_age: Duration::ZERO, pressure: Pressure::default() };
        leader.send(ToLeader::Agent(ConnectionId(2), beat)).await;
        // The leader is busy with something else meanwhile.
        while clock::now() == after {}
        let (_, message) = inbox.next().await.expect("a message");
        assert!(matches!(message, ToLeader::Agent(..)), "{message:?}");
        let (came, message) = inbox.next().await.expect("a message");
        assert!(matches!(message, ToLeader::Disconnected(_)), "{message:?}");
        assert!((before..=after).contains(&came), "{came:?}");
        let (came, message) = inbox.next().await.expect("a message");
        assert!(matches!(message, ToLeader::Query(..)), "{message:?}");
        assert!(came > after, "nothing is decided for it by a clock that is slow");
    }
}
