//! Agents' sessions: two bidirectional streams each, one for heartbeats and one for all else.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use futures_util::{StreamExt, stream};
use muster_core::leader::ConnectionId;
use muster_core::message::{FromAgent, LeaderMessage, ToAgent};
use muster_proto::v1::agents_server::Agents;
use muster_proto::{FromAgentParts, SESSION_KEY, STREAM_KEY, split_to_agent, v1};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::front::{Front, Leading};
use crate::lead::{LeaderHandle, ToLeader};
use crate::streams::{AgentEnd, Session};

/// How many messages may wait for an agent that reads slowly. One that is further behind loses its stream; it gets a
/// snapshot when it comes back.
const OUTBOX: usize = 1024;

type ToSend = Result<ToAgent, Status>;

/// The open sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    leader: LeaderHandle,
    last: AtomicU64,
    open: DashMap<ConnectionId, Outbox>,
}

/// The sending half of a session. Dropping it ends the streams, after what was put into them.
#[derive(Debug)]
struct Outbox {
    messages: mpsc::Sender<ToSend>,
    /// Where answers to heartbeats go, once the agent has opened that stream.
    heartbeats: Option<mpsc::Sender<ToSend>>,
    /// Who knows it is the agent of this session.
    key: Uuid,
    /// Its receivers learn that this is dropped, and stop reading from the agent.
    open: watch::Sender<()>,
}

impl Sessions {
    pub(crate) fn new(leader: LeaderHandle) -> Arc<Self> {
        Arc::new(Self { leader, last: AtomicU64::new(0), open: DashMap::new() })
    }

    /// Sends a message to an agent, if it is still there.
    pub(crate) fn send(&self, connection: ConnectionId, message: ToAgent) {
        let sent = self.open.get(&connection).map(|outbox| {
            let way = match message.body {
                LeaderMessage::HeartbeatAck { .. } => outbox.heartbeats.as_ref(),
                _ => None,
            };
            way.unwrap_or(&outbox.messages).try_send(Ok(message))
        });
        match sent {
            None | Some(Ok(())) => return,
            Some(Err(TrySendError::Full(_))) => {
                warn!(connection = connection.0, "an agent reads too slowly: its stream is ended");
            }
            Some(Err(TrySendError::Closed(_))) => {
                debug!(connection = connection.0, "an agent's stream is gone: its session is ended");
            }
        }
        self.close(connection);
    }

    /// Ends a session, after what was sent on it.
    pub(crate) fn close(&self, connection: ConnectionId) {
        self.open.remove(&connection);
    }

    /// Ends all sessions; says who leads, if it is not this scheduler any more.
    pub(crate) fn close_all(&self) {
        if let Some(last_word) = self.leader.last_word() {
            for outbox in &self.open {
                outbox.messages.try_send(Err(last_word.clone())).ok();
            }
        }
        self.open.clear();
    }

    /// Opens a session; gives what its agent is to be sent, and the session's key.
    fn open(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        from_agent: Streaming<v1::AgentMessage>,
    ) -> (ReceiverStream<ToSend>, String) {
        let connection = ConnectionId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (messages, to_send) = mpsc::channel(OUTBOX);
        let (open, closed) = watch::channel(());
        // The reader keeps no sender: the stream must end when the session is closed.
        let errors = messages.downgrade();
        let key = Uuid::new_v4();
        self.open.insert(connection, Outbox { messages, heartbeats: None, key, open });
        let sessions = Arc::clone(self);
        tokio::spawn(async move {
            sessions.read_until(closed, connection, peer, from_agent, errors).await;
            sessions.leader.send(ToLeader::Disconnected(connection)).await;
        });
        (ReceiverStream::new(to_send), format!("{}.{key}", connection.0))
    }

    /// Opens the stream of heartbeats of the session with this key; gives the answers.
    fn open_heartbeats(
        self: &Arc<Self>,
        key: &str,
        from_agent: Streaming<v1::AgentMessage>,
    ) -> Option<ReceiverStream<ToSend>> {
        let (connection, key) = parse_key(key)?;
        let (acks, to_send) = mpsc::channel(OUTBOX);
        let errors = acks.downgrade();
        let mut outbox = self.open.get_mut(&connection)?;
        if outbox.heartbeats.is_some() || key != outbox.key {
            return None;
        }
        outbox.heartbeats = Some(acks);
        let closed = outbox.open.subscribe();
        drop(outbox);
        let sessions = Arc::clone(self);
        tokio::spawn(async move { sessions.read_until(closed, connection, None, from_agent, errors).await });
        Some(ReceiverStream::new(to_send))
    }

    /// The session with this key; it ends when that does.
    fn session(&self, key: &str) -> Option<Session> {
        let (connection, key) = parse_key(key)?;
        let outbox = self.open.get(&connection).filter(|outbox| outbox.key == key)?;
        Some(Session { connection, closed: outbox.open.subscribe() })
    }

    /// Reads what an agent says until it ends the stream, or the session is closed; then it is.
    async fn read_until(
        &self,
        mut closed: watch::Receiver<()>,
        connection: ConnectionId,
        peer: Option<IpAddr>,
        from_agent: Streaming<v1::AgentMessage>,
        errors: mpsc::WeakSender<ToSend>,
    ) {
        let read = tokio::select! {
            read = self.read(connection, peer, from_agent) => read,
            _ = closed.changed() => Ok(()),
        };
        if let (Err(status), Some(errors)) = (read, errors.upgrade()) {
            debug!(connection = connection.0, %status, "a session ended with an error");
            errors.try_send(Err(status)).ok();
        }
        self.close(connection);
    }

    async fn read(
        &self,
        connection: ConnectionId,
        peer: Option<IpAddr>,
        mut from_agent: Streaming<v1::AgentMessage>,
    ) -> Result<(), Status> {
        let mut parts = FromAgentParts::default();
        while let Some(part) = from_agent.message().await? {
            let said = parts.push(part).map_err(|error| {
                warn!(connection = connection.0, %error, "an agent sent a message that makes no sense");
                Status::invalid_argument(error.to_string())
            })?;
            if let Some(mut said) = said {
                if let (FromAgent::Hello(hello), Some(peer)) = (&mut said, peer)
                    && hello.address.is_empty()
                {
                    hello.address = peer.to_canonical().to_string();
                }
                self.leader.send(ToLeader::Agent(connection, said)).await;
            }
        }
        Ok(())
    }
}

/// A session's key as its agent shows it.
fn parse_key(key: &str) -> Option<(ConnectionId, Uuid)> {
    let (connection, key) = key.split_once('.')?;
    Some((ConnectionId(connection.parse().ok()?), Uuid::parse_str(key).ok()?))
}

/// What the metadata of a request has under this name.
fn metadata<'a, T>(request: &'a Request<T>, name: &str) -> &'a str {
    request.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The service that agents dial.
#[derive(Debug)]
pub(crate) struct AgentsService(pub(crate) Arc<Front>);

type ToAgents = Pin<Box<dyn Stream<Item = Result<v1::LeaderMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Agents for AgentsService {
    type SessionStream = ToAgents;
    type HeartbeatsStream = ToAgents;
    type RelayStream = ReceiverStream<Result<v1::ToMachine, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<ToAgents>, Status> {
        let sessions = self.0.leading()?.sessions;
        if sessions.leader.is_stopped() {
            return Err(sessions.leader.why_ended());
        }
        let peer = request.remote_addr().map(|address| address.ip());
        debug!(?peer, "an agent opened a session");
        let (messages, key) = sessions.open(peer, request.into_inner());
        let mut response = Response::new(parts(messages));
        let key = key.parse().map_err(|_| Status::internal("the session's key is no metadata"))?;
        response.metadata_mut().insert(SESSION_KEY, key);
        Ok(response)
    }

    async fn heartbeats(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<ToAgents>, Status> {
        let sessions = self.0.leading()?.sessions;
        let key = metadata(&request, SESSION_KEY).to_owned();
        let acks = sessions.open_heartbeats(&key, request.into_inner());
        Ok(Response::new(parts(acks.ok_or_else(over)?)))
    }

    async fn relay(
        &self,
        request: Request<Streaming<v1::FromMachine>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        let Leading { sessions, streams, .. } = self.0.leading()?;
        let session = sessions.session(metadata(&request, SESSION_KEY)).ok_or_else(over)?;
        let key = metadata(&request, STREAM_KEY).parse().ok();
        let (to_agent, to_send) = mpsc::channel(1);
        let agent = AgentEnd { from: request.into_inner(), to: to_agent, session };
        let taken = key.is_some_and(|key| streams.take(key, agent));
        if taken {
            Ok(Response::new(ReceiverStream::new(to_send)))
        } else {
            Err(Status::not_found("nobody waits for that stream"))
        }
    }
}

fn over() -> Status {
    Status::not_found("that session is over")
}

/// Cuts messages into parts, only when the connection has room for them.
fn parts(messages: ReceiverStream<ToSend>) -> ToAgents {
    Box::pin(messages.flat_map(|message| {
        stream::iter(match message {
            Ok(message) => split_to_agent(message).into_iter().map(Ok).collect(),
            Err(status) => vec![Err(status)],
        })
    }))
}

#[cfg(test)]
mod tests {
    use muster_core::ids::{SessionNumber, Term};

    use super::*;
    use crate::lead::inbox;

    fn ack(number: u64) -> ToAgent {
        ToAgent { term: Term(1), session: SessionNumber(1), body: LeaderMessage::HeartbeatAck { number } }
    }

    #[tokio::test]
    async fn an_agent_that_does_not_read_loses_its_stream() {
        let (leader, _inbox) = inbox();
        let sessions = Sessions::new(leader);
        let (messages, mut to_send) = mpsc::channel(OUTBOX);
        let (open, mut closed) = watch::channel(());
        let connection = ConnectionId(1);
        sessions.open.insert(connection, Outbox { messages, heartbeats: None, key: Uuid::nil(), open });
        let last = OUTBOX as u64;
        (1..=last).for_each(|number| sessions.send(connection, ack(number)));
        assert!(sessions.open.contains_key(&connection), "so far all messages found room");
        sessions.send(connection, ack(last + 1));
        assert!(!sessions.open.contains_key(&connection));
        closed.changed().await.expect_err("its reader is told by the drop");
        let mut sent = 0;
        while let Some(message) = to_send.recv().await {
            sent += 1;
            assert_eq!(message.expect("a message"), ack(sent));
        }
        assert_eq!(sent, last, "what was sent before arrives, and then the stream ends");
        sessions.send(connection, ack(0));
    }
}
