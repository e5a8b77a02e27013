//! The streams to a leader, over gRPC: one for heartbeats, and one for all else.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use muster_core::agent::Input;
use muster_core::ids::StreamKey;
use muster_core::message::FromAgent;
use muster_proto::v1::agents_client::AgentsClient;
use muster_proto::v1::{AgentMessage, LeaderMessage};
use muster_proto::{ConvertError, SESSION_KEY, ToAgentParts, leader_of, split_from_agent};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Streaming};
use tracing::{debug, info, warn};

use crate::config::{Scheduler, check_scheduler};
use crate::streams::{Line, Streams};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the connection is tried, and how long the answer may take: what is cut off is noticed before the lease
/// is long over.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long the rest of a session is waited for whose heartbeats have ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How many messages may wait to be sent. There are two or three a second, so a leader for which more wait reads
/// none.
const QUEUE_MAX: usize = 256;
/// How many bytes the leader may send ahead: a message has about 1 MiB.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// The streams to schedulers, one at a time.
#[derive(Debug)]
pub struct Sessions {
    /// Whether a scheduler may be on the test network.
    insecure: bool,
    inputs: mpsc::Sender<Input>,
    streams: Option<Streams>,
    stream: Option<Stream>,
    complaints: Complaints,
}

/// What each scheduler has said, or why it said nothing, as it was logged last: it is not logged again and again.
#[derive(Clone, Debug, Default)]
struct Complaints(Arc<Mutex<BTreeMap<String, String>>>);

#[derive(Debug)]
struct Stream {
    connection: u64,
    heartbeats: mpsc::Sender<AgentMessage>,
    messages: mpsc::Sender<AgentMessage>,
    /// What clients' streams need, once the session is open.
    line: Arc<OnceLock<Line>>,
    task: JoinHandle<()>,
}

impl Sessions {
    /// None yet; what comes of them goes to `inputs`. What clients want of the machine itself is for `streams` to see to, if
    /// there are any.
    pub fn new(insecure: bool, inputs: mpsc::Sender<Input>, streams: Option<Streams>) -> Self {
        Self { insecure, inputs, streams, stream: None, complaints: Complaints::default() }
    }

    /// Opens a stream to this scheduler.
    pub fn connect(&mut self, connection: u64, scheduler: String) {
        self.disconnect();
        let (heartbeats, heartbeats_queue) = mpsc::channel(QUEUE_MAX);
        let (messages, queue) = mpsc::channel(QUEUE_MAX);
        let (inputs, complaints, insecure) = (self.inputs.clone(), self.complaints.clone(), self.insecure);
        let line = Arc::new(OnceLock::new());
        let opened = Arc::clone(&line);
        let task = tokio::spawn(async move {
            let ended = run(&scheduler, connection, heartbeats_queue, queue, &inputs, &opened).await;
            let leader = leader(&ended, insecure);
            let said = match (&ended, &leader) {
                (Ok(()), _) => "it ended the stream".to_owned(),
                (Err(error), Some(Err(refused))) => format!("{error}, but that is not asked: {refused}"),
                (Err(error), _) => error.to_string(),
            };
            if let Some(Ok(leader)) = leader {
                complaints.redirected(&scheduler, &said);
                _ = inputs.send(Input::Redirected(connection, leader)).await;
            } else {
                complaints.complain(&scheduler, &said);
                _ = inputs.send(Input::Disconnected(connection)).await;
            }
        });
        self.stream = Some(Stream { connection, heartbeats, messages, line, task });
    }

    /// Ends the stream, if there is one.
    pub fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.task.abort();
        }
    }

    /// Opens a stream for a client, which ends with the session.
    pub(crate) fn open_stream(&self, connection: u64, key: StreamKey) {
        let stream = self.stream.as_ref().filter(|stream| stream.connection == connection);
        if let (Some(line), Some(streams)) = (stream.and_then(|stream| stream.line.get()), &self.streams) {
            streams.open(line.clone(), key);
        }
    }

    /// Sends a message after those before it, a heartbeat after other heartbeats only. It waits for nobody: a stream that
    /// takes no more is ended.
    pub fn send(&mut self, message: FromAgent) {
        let Some(stream) = &self.stream else { return };
        let way = match &message {
            FromAgent::Heartbeat { .. } => &stream.heartbeats,
            _ => &stream.messages,
        };
        for part in split_from_agent(message) {
            if let Err(mpsc::error::TrySendError::Full(_)) = way.try_send(part) {
                warn!("the scheduler does not read what it is sent; connecting anew");
                let lost = Input::Disconnected(stream.connection);
                let inputs = self.inputs.clone();
                self.disconnect();
                tokio::spawn(async move { inputs.send(lost).await });
                return;
            }
        }
    }

    /// A scheduler does not answer, or not any more.
    pub(crate) fn complain(&self, scheduler: &str, why: &str) {
        self.complaints.complain(scheduler, why);
    }

    /// The leader has answered: what is wrong later is news again.
    pub(crate) fn welcomed(&self) {
        self.complaints.lock().clear();
    }
}

impl Complaints {
    fn complain(&self, scheduler: &str, why: &str) {
        if self.is_news(scheduler, why) {
            warn!(%scheduler, "no stream to a scheduler: {why}; units run on, and schedulers are tried again");
        } else {
            debug!(%scheduler, "no stream to a scheduler: {why}");
        }
    }

    /// Another scheduler leads, which is nothing to worry about.
    fn redirected(&self, scheduler: &str, said: &str) {
        if self.is_news(scheduler, said) {
            info!(%scheduler, "redirected: {said}");
        } else {
            debug!(%scheduler, "redirected: {said}");
        }
    }

    fn is_news(&self, scheduler: &str, said: &str) -> bool {
        let last = self.lock().insert(scheduler.to_owned(), said.to_owned());
        last.is_none_or(|last| last != said)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who leads, where the scheduler has said so; or why that one is not asked.
fn leader(ended: &Result<(), StreamError>, insecure: bool) -> Option<Result<String, String>> {
    let Err(StreamError::Status(status)) = ended else { return None };
    let leader = leader_of(status)?;
    let checked = leader.parse::<Scheduler>().map_err(|error| error.to_string()).and_then(|scheduler| {
        check_scheduler(&scheduler, insecure)?;
        Ok(scheduler.to_string())
    });
    Some(checked)
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("cannot connect: {}; is the scheduler running there?", innermost(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("{}", .0.message())]
    Status(#[from] tonic::Status),
    #[error("it sent what makes no sense: {0}")]
    Convert(#[from] ConvertError),
    #[error("it gave the session no key: it is of another version")]
    NoKey,
    #[error("the agent is ending")]
    Ending,
}

/// The cause of all causes: those before it say no more than "transport error".
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

async fn run(
    scheduler: &str,
    connection: u64,
    heartbeats: mpsc::Receiver<AgentMessage>,
    queue: mpsc::Receiver<AgentMessage>,
    inputs: &mpsc::Sender<Input>,
    line: &OnceLock<Line>,
) -> Result<(), StreamError> {
    let endpoint = Endpoint::from_shared(format!("http://{scheduler}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES);
    let session = AgentsClient::new(endpoint.connect().await?).session(ReceiverStream::new(queue)).await?;
    // On a connection of their own: what is lost or slow on the other one holds up nothing here.
    let mut request = Request::new(ReceiverStream::new(heartbeats));
    let key = session.metadata().get(SESSION_KEY).ok_or(StreamError::NoKey)?;
    request.metadata_mut().insert(SESSION_KEY, key.clone());
    // Dropped when the session ends.
    let (_alive, alive) = watch::channel(());
    line.set(Line { endpoint: endpoint.clone(), session: key.clone(), alive }).ok();
    let acks = AgentsClient::new(endpoint.connect().await?).heartbeats(request).await?;
    info!(%scheduler, "connected");
    // The leader says nothing before it has read a Hello.
    inputs.send(Input::Connected(connection)).await.map_err(|_| StreamError::Ending)?;
    // They end together. What was said on the session before, why it ends for one, is heard all the same.
    let mut session = pin!(hear(session.into_inner(), inputs));
    tokio::select! {
        ended = &mut session => ended,
        ended = hear(acks.into_inner(), inputs) => match timeout(LAST_WORDS, session).await {
            Ok(session_ended) => session_ended.and(ended),
            Err(_) => ended,
        },
    }
}

/// Hands on what the leader says, until it ends the stream.
async fn hear(mut stream: Streaming<LeaderMessage>, inputs: &mpsc::Sender<Input>) -> Result<(), StreamError> {
    let mut parts = ToAgentParts::default();
    while let Some(part) = stream.message().await? {
        if let Some(message) = parts.push(part)? {
            inputs.send(Input::Leader(message)).await.map_err(|_| StreamError::Ending)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use muster_core::stream::StreamKinds;
    use muster_proto::not_leading;
    use muster_proto::v1::agents_server::{Agents, AgentsServer};
    use muster_proto::v1::{FromMachine, ToMachine};
    use tokio::net::TcpListener;
    use tokio_stream::Stream;
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;
    use tonic::{Response, Status};

    use super::*;

    /// A scheduler that does not lead, or not any more.
    struct Follower {
        leader: &'static str,
        begins: bool,
    }

    type ToAgents = std::pin::Pin<Box<dyn Stream<Item = Result<LeaderMessage, Status>> + Send>>;

    #[tonic::async_trait]
    impl Agents for Follower {
        type SessionStream = ToAgents;
        type HeartbeatsStream = ToAgents;
        type RelayStream = tokio_stream::Pending<Result<ToMachine, Status>>;

        async fn session(&self, _: Request<Streaming<AgentMessage>>) -> Result<Response<ToAgents>, Status> {
            if !self.begins {
                return Err(not_leading(Some(self.leader)));
            }
            let last = tokio_stream::once(Err(not_leading(Some(self.leader))));
            let mut response: Response<ToAgents> = Response::new(Box::pin(last));
            response.metadata_mut().insert(SESSION_KEY, "1.key".parse().expect("metadata"));
            Ok(response)
        }

        async fn heartbeats(
            &self,
            _: Request<Streaming<AgentMessage>>,
        ) -> Result<Response<ToAgents>, Status> {
            Ok(Response::new(Box::pin(tokio_stream::pending())))
        }

        async fn relay(
            &self,
            _: Request<Streaming<FromMachine>>,
        ) -> Result<Response<Self::RelayStream>, Status> {
            Err(Status::unimplemented("no streams here"))
        }
    }

    /// What the core hears of a stream to it.
    async fn heard(follower: Follower) -> Vec<Input> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let serves = Server::builder()
            .add_service(AgentsServer::new(follower))
            .serve_with_incoming(TcpIncoming::from(listener));
        let serves = tokio::spawn(serves);
        let (inputs, mut queue) = mpsc::channel(8);
        let mut sessions =
            Sessions::new(false, inputs, Some(Streams::start(StreamKinds::default()).expect("a thread")));
        sessions.connect(7, address);
        let mut heard = Vec::new();
        while !matches!(heard.last(), Some(Input::Disconnected(_) | Input::Redirected(..))) {
            heard.push(queue.recv().await.expect("an input"));
        }
        serves.abort();
        heard
    }

    #[tokio::test]
    async fn whoever_does_not_lead_sends_on_to_whom_may_be_asked() {
        let (allowed, refused) = ("127.0.0.1:7401", "10.0.0.1:7400");
        let redirected = Input::Redirected(7, allowed.to_owned());
        let sent_on = heard(Follower { leader: allowed, begins: false }).await;
        assert_eq!(sent_on, std::slice::from_ref(&redirected));
        assert_eq!(heard(Follower { leader: refused, begins: false }).await, [Input::Disconnected(7)]);
        let ended = heard(Follower { leader: allowed, begins: true }).await;
        assert_eq!(ended, [Input::Connected(7), redirected]);
    }

    #[test]
    fn a_leader_that_is_told_of_is_checked_as_those_that_are_configured() {
        let told = |leader, insecure| {
            super::leader(&Err(StreamError::Status(not_leading(Some(leader)))), insecure).expect("a leader")
        };
        assert_eq!(told("198.18.0.21:7400", true).as_deref(), Ok("198.18.0.21:7400"));
        assert_eq!(told("127.0.0.1:7400", false).as_deref(), Ok("127.0.0.1:7400"));
        assert!(told("198.18.0.21:7400", false).unwrap_err().contains("insecure = true allows it"));
        assert!(told("10.0.0.1:7400", true).unwrap_err().contains("mutual TLS does not exist yet"));
        assert!(told("nonsense", true).unwrap_err().contains("is no scheduler"));
        for other in [not_leading(None), Status::unavailable("this scheduler is stopping")] {
            assert!(super::leader(&Err(StreamError::Status(other)), true).is_none());
        }
        assert!(super::leader(&Ok(()), true).is_none());
    }

    #[test]
    fn the_same_is_not_said_again_and_again() {
        let complaints = Complaints::default();
        assert!(complaints.is_news("a", "refused") && complaints.is_news("b", "does not lead"));
        assert!(!complaints.is_news("a", "refused") && !complaints.is_news("b", "does not lead"));
        assert!(complaints.is_news("a", "does not lead"));
        complaints.lock().clear();
        assert!(complaints.is_news("a", "does not lead"));
    }
}
