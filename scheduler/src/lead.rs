//! The loop that owns the leader: inputs in, effects out, nothing decided here.

use std::collections::BTreeMap;
use std::future::pending;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use muster_backup::Backup;
use muster_core::command::{
    Adoption, Command, CommandResult, LabelCommand, MachineCommand, MachineCommandError, Query, QueryAnswer,
    RestoreError,
};
use muster_core::ids::MachineId;
use muster_core::leader::{ConnectionId, Durable, Effect, Input, Leader, RequestId};
use muster_core::message::FromAgent;
use muster_core::stream::{StreamError, StreamWanted};
use muster_core::time::Time;
use muster_daemon::clock;
use muster_proto::not_leading;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::events::Events;
use crate::notify::Notifier;
use crate::sessions::Sessions;
use crate::store::{CommitError, Committed, Committer, Store};
use crate::watchers::Watchers;

/// How many messages may wait for the leader; who has more to say waits until there is room.
const INBOX: usize = 1024;

/// The longest that the loop sleeps: its timer does not run while the machine is suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// How long a host has to answer, and the port that is knocked at: the discard service's (RFC 863), which nobody runs.
const KNOCK_WAIT: Duration = Duration::from_secs(1);
const DISCARD: u16 = 9;

/// How many questions and how many changes the leader may have that it has not answered: it answers none while its disk
/// hangs. The answer to a question may be long, and waits with it.
const QUESTIONS: usize = 32;
const CHANGES: usize = 1024;

/// How long an answer is waited for once another may lead: who asked looks for that one then.
const IN_DOUBT: Duration = Duration::from_secs(5);

/// What other tasks say to the loop.
#[derive(Debug)]
pub(crate) enum ToLeader {
    Asked(Asked),
    Agent(ConnectionId, FromAgent),
    Disconnected(ConnectionId),
    /// Whether the host of a machine answers.
    Knocked(MachineId, bool),
    Store(Committed),
    /// This scheduler leads until then at least.
    Leads(Time),
    /// Another scheduler may lead, for this reason.
    Deposed(String),
    Stop,
}

/// How a leader's loop has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was told to: all that was begun is durable and answered.
    Stopped,
    /// The store can be relied on no more, or another leads. Nothing that waited for it was answered.
    Lost(CommitError),
    /// Another scheduler may lead, for this reason.
    Deposed(String),
    /// A backup has taken the place of what the store held: all begins anew.
    Restored(Box<dyn Store>),
    Panicked,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Command(Command),
    Adopt(Adoption),
    Query(Query),
    Machines(MachineCommand),
    /// Answered with [`Answer::Machines`].
    EditLabels(LabelCommand),
    ReleaseBrake,
    Restore(Box<Backup>),
    Stream(StreamWanted),
}

/// The answer to the same.
#[derive(Debug)]
pub(crate) enum Answer {
    Command(CommandResult),
    Query(QueryAnswer),
    Machines(Result<(), MachineCommandError>),
    Released(Option<Vec<MachineId>>),
    Restored(Result<(), RestoreError>),
    Stream(Result<(), StreamError>),
}

/// A client's request, and who waits for the answer.
#[derive(Debug)]
pub(crate) struct Asked {
    ask: Ask,
    waiting: Waiting,
}

/// A client that waits for an answer. The room for that is its own until it is answered, also where it has gone.
#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Answer>,
    _room: OwnedSemaphorePermit,
}

impl ToLeader {
    fn is_urgent(&self) -> bool {
        match self {
            Self::Asked(_) => false,
            Self::Agent(..)
            | Self::Disconnected(_)
            | Self::Knocked(..)
            | Self::Store(_)
            | Self::Leads(_)
            | Self::Deposed(_)
            | Self::Stop => true,
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
    questions: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    /// Until when it leads at least, where it was elected for a while.
    until: Arc<Mutex<Option<Time>>>,
    /// What is said to those whose streams end with it, where another leads or may.
    last_word: Arc<OnceLock<Status>>,
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
        LeaderHandle {
            heartbeats,
            urgent,
            requests,
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            changes: Arc::new(Semaphore::new(CHANGES)),
            until: Arc::default(),
            last_word: Arc::default(),
        },
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
    /// It leads until then at least.
    pub(crate) fn leads_until(&self, until: Time) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Until when it leads at least, where it was elected for a while.
    pub(crate) fn until(&self) -> Option<Time> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another may have led for [`IN_DOUBT`], and this one knows no better.
    async fn is_long_in_doubt(&self) {
        loop {
            let Some(until) = self.until() else { return pending().await };
            let (now, end) = (clock::now(), until + IN_DOUBT);
            if now >= end {
                return;
            }
            sleep(end.since(now)).await;
        }
    }

    /// Asks the leader for something, once there is room for that, and waits for the answer: not for long where it answers
    /// nobody since another may lead, as it does for as long as its store is silent.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Answer, Status> {
        tokio::select! {
            biased;
            answer = self.answer(ask) => answer,
            () = self.is_long_in_doubt() => Err(Status::unavailable(
                "this scheduler hears nothing of its store, and another one may lead; whether a command was carried out, its \
                 repetition will tell",
            )),
        }
    }

    async fn answer(&self, ask: Ask) -> Result<Answer, Status> {
        // A backup takes as much room as the answer to a question may.
        let large = matches!(ask, Ask::Query(_) | Ask::Restore(_));
        let room = if large { &self.questions } else { &self.changes };
        let room = Arc::clone(room).acquire_owned().await.map_err(|_| self.why_ended())?;
        let (answer, answered) = oneshot::channel();
        self.send(ToLeader::Asked(Asked { ask, waiting: Waiting { answer, _room: room } })).await;
        answered.await.map_err(|_| self.why_ended())
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

    /// It leads no more, and another one does, there if that is known, or will.
    pub(crate) fn is_deposed(&self, leader: Option<&str>) {
        self.last_word.set(not_leading(leader)).ok();
    }

    /// What is said to those whose streams end with it; nothing where it stops.
    pub(crate) fn last_word(&self) -> Option<Status> {
        self.last_word.get().cloned()
    }

    /// Why nothing is answered any more.
    pub(crate) fn why_ended(&self) -> Status {
        self.last_word().unwrap_or_else(stopped)
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
    waiting: BTreeMap<RequestId, Waiting>,
    /// The backups that clients want restored.
    backups: BTreeMap<RequestId, Box<Durable>>,
    /// Whose is being restored.
    restoring: Option<RequestId>,
}

impl Requests {
    /// Takes in a request: it has a number until it is answered.
    fn take(&mut self, asked: Asked) -> Input {
        self.last += 1;
        let request = RequestId(self.last);
        self.waiting.insert(request, asked.waiting);
        match asked.ask {
            Ask::Command(command) => Input::Command(request, command),
            Ask::Adopt(adoption) => Input::Adopt(request, adoption),
            Ask::Query(query) => Input::Query(request, query),
            Ask::Machines(command) => Input::Machines(request, command),
            Ask::EditLabels(command) => Input::EditLabels(request, command),
            Ask::ReleaseBrake => Input::ReleaseBrake(request),
            Ask::Stream(wanted) => Input::OpenStream(request, wanted),
            Ask::Restore(backup) => {
                let Backup { header, durable } = *backup;
                self.backups.insert(request, Box::new(durable));
                Input::Restore(request, header.term, clock::wall_ms() / 1000)
            }
        }
    }

    fn answer(&mut self, request: RequestId, answer: Answer) {
        // Who asked may have gone since.
        self.waiting.remove(&request).map(|waiting| waiting.answer.send(answer).ok());
    }
}

impl Lead {
    /// Leads until it is told to stop, or cannot; by an election only until then, if it is not told of more time.
    pub(crate) async fn run(mut self, elected_until: Option<Time>) -> Ended {
        let mut notifier = Notifier::new();
        if let Some(until) = elected_until {
            let now = clock::now();
            self.step(now, now, Input::Leads(until));
        }
        loop {
            let now = clock::now();
            let timer = self.leader.next_timer().since(now);
            let sleep = timer.min(LONGEST_SLEEP).min(notifier.next());
            // It is closed by nobody but this loop.
            let (came, message) = timeout(sleep, self.inbox.next()).await.ok().flatten().unzip();
            let now = clock::now();
            let input = match message {
                None => Input::Tick,
                Some(message) => match message {
                    ToLeader::Asked(asked) => self.requests.take(asked),
                    ToLeader::Knocked(machine, answers) => Input::Knocked(machine, answers),
                    ToLeader::Agent(connection, said) => Input::Agent(connection, said),
                    ToLeader::Disconnected(connection) => Input::Disconnected(connection),
                    ToLeader::Store(Committed::Upto(commit)) => Input::Committed(commit),
                    ToLeader::Store(Committed::Failed { reason, durable }) => {
                        self.committer.resume();
                        Input::CommitFailed { reason, durable }
                    }
                    ToLeader::Store(Committed::TermTaken(term)) => Input::TermTaken(term),
                    ToLeader::Store(Committed::TermNotTaken) => Input::TermNotTaken,
                    ToLeader::Store(Committed::NotReplaced(reason)) => Input::NotRestored(reason),
                    ToLeader::Store(Committed::Replaced) => {
                        if let Some(request) = self.requests.restoring.take() {
                            self.requests.answer(request, Answer::Restored(Ok(())));
                        }
                        return self.finish().map_or(Ended::Panicked, Ended::Restored);
                    }
                    ToLeader::Store(Committed::Lost(error)) => return Ended::Lost(error),
                    ToLeader::Leads(until) => Input::Leads(until),
                    ToLeader::Deposed(reason) => {
                        self.finish();
                        return Ended::Deposed(reason);
                    }
                    ToLeader::Stop => {
                        self.finish();
                        return Ended::Stopped;
                    }
                },
            };
            // The leader's own time never goes back, also where a heartbeat has overtaken this.
            self.step(came.unwrap_or(now), now, input);
            notifier.turned(|| self.leader.size());
        }
    }

    /// Takes nothing more in, and waits for what was given to the store.
    fn finish(mut self) -> Option<Box<dyn Store>> {
        self.inbox.requests.close();
        self.inbox.urgent.close();
        self.inbox.heartbeats.close();
        self.committer.finish()
    }

    fn step(&mut self, came: Time, now: Time, input: Input) {
        let mut events = Vec::new();
        for effect in self.leader.step(came, now, input) {
            match effect {
                Effect::Persist(commit, changes) => self.committer.commit(commit, changes),
                Effect::TakeTerm { above } => self.committer.take_term(above),
                Effect::Knock(machine, address) => {
                    self.network.spawn(knock(self.handle.clone(), machine, address));
                }
                Effect::Send(connection, message) => self.sessions.send(connection, message),
                Effect::Close(connection) => self.sessions.close(connection),
                Effect::AnswerCommand(request, result) => {
                    self.requests.answer(request, Answer::Command(result));
                }
                Effect::AnswerQuery(request, answer) => {
                    self.requests.answer(request, Answer::Query(answer));
                }
                Effect::AnswerMachines(request, result) => {
                    self.requests.answer(request, Answer::Machines(result));
                }
                Effect::AnswerRelease(request, released) => {
                    self.requests.answer(request, Answer::Released(released));
                }
                Effect::AnswerStream(request, answer) => {
                    self.requests.answer(request, Answer::Stream(answer));
                }
                Effect::Restore { request, above } => {
                    if let Some(durable) = self.requests.backups.remove(&request) {
                        self.requests.restoring = Some(request);
                        self.committer.replace(durable, above);
                    }
                }
                Effect::RefuseRestore(request, error) => {
                    self.requests.backups.remove(&request);
                    self.requests.answer(request, Answer::Restored(Err(error)));
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
    use std::pin::{Pin, pin};

    use muster_core::machine::Pressure;

    use super::*;

    fn question() -> Ask {
        Ask::Query(Query::Machines { left_on: Vec::new() })
    }

    /// Goes on with it, and says whether it waits for something.
    async fn is_pending(asks: Pin<&mut impl Future<Output = Result<Answer, Status>>>) -> bool {
        tokio::select! {
            biased;
            _ = asks => false,
            () = std::future::ready(()) => true,
        }
    }

    /// Of what the leader does not answer no more waits with it than there is room for, whether the clients go or stay.
    #[tokio::test]
    async fn while_nothing_is_answered_little_is_asked() {
        let (leader, mut inbox) = inbox();
        let mut requests = Requests::default();
        for _ in 0..QUESTIONS {
            let mut asks = Box::pin(leader.ask(question()));
            assert!(is_pending(asks.as_mut()).await);
        }
        let mut next = pin!(leader.ask(question()));
        assert!(is_pending(next.as_mut()).await);
        for _ in 0..QUESTIONS {
            let Ok(ToLeader::Asked(asked)) = inbox.requests.try_recv() else { panic!("a question") };
            requests.take(asked);
        }
        assert!(is_pending(next.as_mut()).await && inbox.requests.try_recv().is_err());
        // Changes have room of their own.
        let mut change = pin!(leader.ask(Ask::ReleaseBrake));
        assert!(is_pending(change.as_mut()).await);
        assert!(matches!(inbox.requests.try_recv(), Ok(ToLeader::Asked(_))));
        requests.answer(RequestId(1), Answer::Released(None));
        assert!(is_pending(next.as_mut()).await);
        assert!(matches!(inbox.requests.try_recv(), Ok(ToLeader::Asked(_))));
    }

    #[tokio::test]
    async fn what_is_urgent_goes_first_and_counts_from_when_it_came() {
        let (leader, mut inbox) = inbox();
        let mut asks = pin!(leader.ask(question()));
        assert!(is_pending(asks.as_mut()).await);
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
        assert!(matches!(message, ToLeader::Asked(_)), "{message:?}");
        assert!(came > after, "nothing is decided for it by a clock that is slow");
    }
}
