//! Agents' sessions: one bidirectional stream each.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use futures_util::{StreamExt, stream};
use muster_core::leader::ConnectionId;
use muster_core::message::{FromAgent, ToAgent};
use muster_proto::v1::agents_server::Agents;
use muster_proto::{FromAgentParts, split_to_agent, v1};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use crate::lead::{LeaderHandle, ToLeader, stopped};

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

/// The sending half of a session. Dropping it ends the stream, after what was put into it.
#[derive(Debug)]
struct Outbox {
    messages: mpsc::Sender<ToSend>,
    /// Its receiver learns that this is dropped, and stops reading from the agent.
    _open: oneshot::Sender<()>,
}

impl Sessions {
    pub(crate) fn new(leader: LeaderHandle) -> Arc<Self> {
        Arc::new(Self { leader, last: AtomicU64::new(0), open: DashMap::new() })
    }

    /// Sends a message to an agent, if it is still there.
    pub(crate) fn send(&self, connection: ConnectionId, message: ToAgent) {
        let Some(sent) = self.open.get(&connection).map(|outbox| outbox.messages.try_send(Ok(message)))
        else {
            return;
        };
        if sent.is_err() {
            warn!(connection = connection.0, "an agent reads too slowly: its stream is ended");
            self.close(connection);
        }
    }

    /// Ends a session, after what was sent on it.
    pub(crate) fn close(&self, connection: ConnectionId) {
        self.open.remove(&connection);
    }

    /// Ends all sessions.
    pub(crate) fn close_all(&self) {
        self.open.clear();
    }

    /// Opens a session; gives what its agent is to be sent.
    fn open(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        from_agent: Streaming<v1::AgentMessage>,
    ) -> ReceiverStream<ToSend> {
        let connection = ConnectionId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (messages, to_send) = mpsc::channel(OUTBOX);
        let (open, closed) = oneshot::channel();
        self.open.insert(connection, Outbox { messages: messages.clone(), _open: open });
        let sessions = Arc::clone(self);
        // The reader keeps no sender: the stream must end when the session is closed.
        let errors = messages.downgrade();
        tokio::spawn(async move {
            let read = tokio::select! {
                read = sessions.read(connection, peer, from_agent) => read,
                _ = closed => Ok(()),
            };
            if let (Err(status), Some(errors)) = (read, errors.upgrade()) {
                debug!(connection = connection.0, %status, "a session ended with an error");
                errors.try_send(Err(status)).ok();
            }
            sessions.close(connection);
            sessions.leader.send(ToLeader::Disconnected(connection)).await;
        });
        ReceiverStream::new(to_send)
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

/// The service that agents dial.
#[derive(Debug)]
pub(crate) struct AgentsService(pub(crate) Arc<Sessions>);

#[tonic::async_trait]
impl Agents for AgentsService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::LeaderMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if self.0.leader.is_stopped() {
            return Err(stopped());
        }
        let peer = request.remote_addr().map(|address| address.ip());
        debug!(?peer, "an agent opened a session");
        // Cut into parts only when the connection has room for them.
        let parts = self.0.open(peer, request.into_inner()).flat_map(|message| {
            let parts = match message {
                Ok(message) => split_to_agent(message).into_iter().map(Ok).collect(),
                Err(status) => vec![Err(status)],
            };
            stream::iter(parts)
        });
        Ok(Response::new(Box::pin(parts)))
    }
}

#[cfg(test)]
mod tests {
    use muster_core::ids::{SessionNumber, Term};
    use muster_core::message::LeaderMessage;

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
        let (open, closed) = oneshot::channel();
        let connection = ConnectionId(1);
        sessions.open.insert(connection, Outbox { messages, _open: open });
        let last = OUTBOX as u64;
        (1..=last).for_each(|number| sessions.send(connection, ack(number)));
        assert!(sessions.open.contains_key(&connection), "so far all messages found room");
        sessions.send(connection, ack(last + 1));
        assert!(!sessions.open.contains_key(&connection));
        closed.await.expect_err("its reader is told by the drop");
        let mut sent = 0;
        while let Some(message) = to_send.recv().await {
            sent += 1;
            assert_eq!(message.expect("a message"), ack(sent));
        }
        assert_eq!(sent, last, "what was sent before arrives, and then the stream ends");
        sessions.send(connection, ack(0));
    }
}
