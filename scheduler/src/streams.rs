//! Streams between clients and machines: what one side says is handed to the other as it comes, and looked into by nobody.
//!
//! An agent that is asked for a stream dials for it on a connection of its own, so that a stream that is full, or whose
//! reader is stuck, holds up nothing but itself. One message waits in each direction: a side that reads slowly slows the
//! other one down.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_core::ids::{MachineId, StreamKey};
use muster_core::leader::ConnectionId;
use muster_core::stream::{StreamError, StreamWanted};
use muster_proto::{StreamRequest, v1};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::debug;
use uuid::Uuid;

use crate::lead::{Answer, Ask, LeaderHandle};

/// How many streams one machine may have, and how many there may be in all. One whose reader is stuck takes 2 MiB here at most.
const OF_A_MACHINE: usize = 16;
const IN_ALL: usize = 128;
/// How long a client may take to say what it wants.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long an agent may take to dial.
const DIAL: Duration = Duration::from_secs(5);
/// How long a client may take to read why its stream has ended.
const LAST_WORD: Duration = Duration::from_secs(10);

/// The streams that there are, and those that an agent is to dial for.
#[derive(Debug, Default)]
pub(crate) struct Streams(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    awaited: BTreeMap<StreamKey, oneshot::Sender<AgentEnd>>,
    /// How many each machine has.
    open: BTreeMap<MachineId, usize>,
}

/// The session that a stream belongs to.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: ConnectionId,
    /// Its sender is dropped with the session.
    pub(crate) closed: watch::Receiver<()>,
}

/// An agent that has dialled.
#[derive(Debug)]
pub(crate) struct AgentEnd {
    pub(crate) from: Streaming<v1::FromMachine>,
    /// Dropping it tells the agent that its client has gone.
    pub(crate) to: mpsc::Sender<Result<v1::ToMachine, Status>>,
    pub(crate) session: Session,
}

#[derive(Debug)]
struct ClientEnd {
    from: Streaming<v1::ToMachine>,
    to: mpsc::Sender<Result<v1::FromMachine, Status>>,
}

/// The room that a stream takes, until this is dropped.
#[derive(Debug)]
struct Room {
    streams: Arc<Streams>,
    machine: MachineId,
    key: StreamKey,
}

impl Streams {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the stream that a client asks for, which lasts as long as both sides and the machine's session do.
    pub(crate) async fn open(
        self: &Arc<Self>,
        leader: &LeaderHandle,
        mut from: Streaming<v1::ToMachine>,
    ) -> Result<ReceiverStream<Result<v1::FromMachine, Status>>, Status> {
        let first = timeout(FIRST_WORD, from.message()).await;
        let first = first.map_err(|_| Status::invalid_argument("nothing was asked for"))??;
        let Some(v1::to_machine::Body::Request(request)) = first.and_then(|first| first.body) else {
            return Err(Status::invalid_argument("a stream begins with what is wanted"));
        };
        let StreamRequest { machine, work } =
            request.clone().try_into().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let key = StreamKey::new(Uuid::new_v4().as_u128());
        let (room, dialled) = self.reserve(machine, key)?;
        let wanted = StreamWanted { machine, kind: work.kind(), key };
        match leader.ask(Ask::Stream(wanted)).await? {
            Answer::Stream(Ok(())) => {}
            Answer::Stream(Err(error @ StreamError::NoSuchMachine(_))) => {
                return Err(Status::not_found(error.to_string()));
            }
            Answer::Stream(Err(error)) => return Err(Status::failed_precondition(error.to_string())),
            _ => return Err(Status::internal("the leader answered another question")),
        }
        let Ok(Ok(agent)) = timeout(DIAL, dialled).await else {
            let machine = machine.short();
            return Err(Status::failed_precondition(format!(
                "the agent of machine {machine} was asked to open a stream, and has not in {} s; its journal says why: \
                 journalctl -u muster-agent",
                DIAL.as_secs()
            )));
        };
        let request = v1::to_machine::Body::Request(request);
        agent.to.send(Ok(v1::ToMachine { body: Some(request) })).await.ok();
        let (to, to_client) = mpsc::channel(1);
        tokio::spawn(relay(ClientEnd { from, to }, agent, room));
        Ok(ReceiverStream::new(to_client))
    }

    /// Makes room for a stream; gives who has dialled for it, once that is so.
    fn reserve(
        self: &Arc<Self>,
        machine: MachineId,
        key: StreamKey,
    ) -> Result<(Room, oneshot::Receiver<AgentEnd>), Status> {
        let mut table = self.table();
        if table.open.values().sum::<usize>() >= IN_ALL {
            return Err(Status::resource_exhausted(format!(
                "this scheduler has {IN_ALL} streams to machines already, which is all it takes: try again later"
            )));
        }
        let open = table.open.entry(machine).or_default();
        if *open >= OF_A_MACHINE {
            return Err(Status::resource_exhausted(format!(
                "machine {} has {OF_A_MACHINE} streams already, which is all it takes: try again later",
                machine.short()
            )));
        }
        *open += 1;
        let (dials, dialled) = oneshot::channel();
        table.awaited.insert(key, dials);
        Ok((Room { streams: Arc::clone(self), machine, key }, dialled))
    }

    /// An agent has dialled for the stream with this key; false where nobody waits for it (any more).
    pub(crate) fn take(&self, key: StreamKey, agent: AgentEnd) -> bool {
        let awaits = self.table().awaited.remove(&key);
        awaits.is_some_and(|awaits| awaits.send(agent).is_ok())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut table = self.streams.table();
        table.awaited.remove(&self.key);
        if let Some(open) = table.open.get_mut(&self.machine) {
            *open -= 1;
            if *open == 0 {
                table.open.remove(&self.machine);
            }
        }
    }
}

/// Hands on what both sides say, until one of them or the session ends; says so to the other.
async fn relay(client: ClientEnd, agent: AgentEnd, room: Room) {
    let ClientEnd { from: mut from_client, to: to_client } = client;
    let AgentEnd { from: mut from_agent, to: to_agent, mut session } = agent;
    let machine = room.machine.short();
    let up = async {
        while let Some(said) = from_client.message().await? {
            if to_agent.send(Ok(said)).await.is_err() {
                break;
            }
        }
        // There may be an answer still: who gives it ends the stream.
        std::future::pending::<Result<(), Status>>().await
    };
    let down = async {
        loop {
            let Ok(Some(said)) = from_agent.message().await else {
                return Some(Status::aborted(format!("the agent of machine {machine} ended the stream")));
            };
            let last = is_last(&said);
            if to_client.send(Ok(said)).await.is_err() || last {
                return None;
            }
        }
    };
    let ended = tokio::select! {
        ended = down => ended,
        _ = up => None,
        _ = session.closed.changed() => Some(Status::aborted(format!(
            "machine {machine} is not connected any more: it is cut off or off, or its agent or the scheduler has stopped"
        ))),
        () = to_client.closed() => None,
    };
    debug!(machine, connection = session.connection.0, ?ended, "a stream ended");
    // The other side is told by this; and a client that does not read keeps no room.
    drop((from_agent, to_agent, from_client, room));
    if let Some(ended) = ended {
        timeout(LAST_WORD, to_client.send(Err(ended))).await.ok();
    }
}

/// Whether nothing comes after it.
fn is_last(said: &v1::FromMachine) -> bool {
    use v1::from_machine::Body;
    matches!(said.body, Some(Body::Done(_) | Body::Failed(_)))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn there_is_room_for_some_streams_to_each_machine_and_for_some_in_all() {
        let streams = Arc::new(Streams::default());
        let reserve = |machine: usize, key: usize| {
            streams.reserve(MachineId::new(machine as u128), StreamKey::new(key as u128))
        };
        let refused = |machine| reserve(machine, usize::MAX).expect_err("no room").message().to_owned();
        let mut rooms: Vec<_> = (0..OF_A_MACHINE).map(|key| reserve(0, key).expect("room")).collect();
        assert!(refused(0).starts_with("machine 00000000 has 16 streams already"));
        rooms.pop();
        rooms.push(reserve(0, 0).expect("the room of one that has ended"));
        for key in OF_A_MACHINE..IN_ALL {
            rooms.push(reserve(key, key).expect("room for another machine's"));
        }
        assert_eq!(reserve(IN_ALL, IN_ALL).expect_err("no room").code(), Code::ResourceExhausted);
        rooms.clear();
        let table = streams.table();
        assert!(table.open.is_empty() && table.awaited.is_empty(), "{table:?}");
    }
}
