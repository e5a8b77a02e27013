//! The streams to a leader, over gRPC: one for heartbeats, and one for all else.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_core::agent::Input;
use muster_core::message::FromAgent;
use muster_proto::v1::agents_client::AgentsClient;
use muster_proto::v1::{AgentMessage, LeaderMessage};
use muster_proto::{ConvertError, SESSION_KEY, ToAgentParts, split_from_agent};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Streaming};
use tracing::{debug, info, warn};

use crate::config::Scheduler;

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
pub(crate) struct Sessions {
    schedulers: Vec<Scheduler>,
    inputs: mpsc::Sender<Input>,
    stream: Option<Stream>,
    /// Why there is no stream, as it was logged last.
    complaint: Arc<Mutex<String>>,
}

#[derive(Debug)]
struct Stream {
    connection: u64,
    heartbeats: mpsc::Sender<AgentMessage>,
    messages: mpsc::Sender<AgentMessage>,
    task: JoinHandle<()>,
}

impl Sessions {
    pub(crate) fn new(schedulers: Vec<Scheduler>, inputs: mpsc::Sender<Input>) -> Self {
        Self { schedulers, inputs, stream: None, complaint: Arc::default() }
    }

    /// Opens a stream to the next scheduler in turn.
    pub(crate) fn connect(&mut self, connection: u64) {
        let turn = usize::try_from(connection).unwrap_or_default().checked_rem(self.schedulers.len());
        let Some(scheduler) = turn.and_then(|turn| self.schedulers.get(turn)).cloned() else { return };
        self.disconnect();
        let (heartbeats, heartbeats_queue) = mpsc::channel(QUEUE_MAX);
        let (messages, queue) = mpsc::channel(QUEUE_MAX);
        let (inputs, complaint) = (self.inputs.clone(), Arc::clone(&self.complaint));
        let task = tokio::spawn(async move {
            let error = match run(&scheduler, connection, heartbeats_queue, queue, &inputs).await {
                Ok(()) => "it ended the stream".to_owned(),
                Err(error) => error.to_string(),
            };
            complain(&complaint, &scheduler, &error);
            let _ = inputs.send(Input::Disconnected(connection)).await;
        });
        self.stream = Some(Stream { connection, heartbeats, messages, task });
    }

    /// Ends the stream, if there is one.
    pub(crate) fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.task.abort();
        }
    }

    /// Sends a message after those before it, a heartbeat after other heartbeats only. It waits for nobody: a stream that
    /// takes no more is ended.
    pub(crate) fn send(&mut self, message: FromAgent) {
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

    /// The leader has answered: what is wrong later is news again.
    pub(crate) fn welcomed(&self) {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Logs why there is no stream, but not again and again.
fn complain(complaint: &Mutex<String>, scheduler: &Scheduler, error: &str) {
    let mut last = complaint.lock().unwrap_or_else(PoisonError::into_inner);
    let text = format!("{scheduler} {error}");
    if *last == text {
        debug!(%scheduler, error, "no stream to a scheduler");
    } else {
        warn!(%scheduler, error, "no stream to a scheduler; units run on, and it is tried again");
        *last = text;
    }
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
    scheduler: &Scheduler,
    connection: u64,
    heartbeats: mpsc::Receiver<AgentMessage>,
    queue: mpsc::Receiver<AgentMessage>,
    inputs: &mpsc::Sender<Input>,
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
