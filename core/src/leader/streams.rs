//! Whether a client may have a stream to a machine.

use super::{Effect, Leader, RequestId};
use crate::ids::SessionNumber;
use crate::leader::io::ConnectionId;
use crate::message::LeaderMessage;
use crate::stream::{StreamError, StreamWanted};

impl Leader {
    /// Has the machine's agent dial for a stream, as soon as this leader leads. That rests on nothing that is to be durable.
    pub(super) fn open_stream(&mut self, request: RequestId, wanted: StreamWanted) {
        if !self.leads() {
            self.office.streams.push((request, wanted));
            return;
        }
        let session = self.session_for(wanted);
        // Who waits is told first: the agent may be fast.
        self.outbox.now(Effect::AnswerStream(request, session.as_ref().map(|_| ()).map_err(Clone::clone)));
        if let Ok((connection, number)) = session {
            self.say(connection, number, LeaderMessage::OpenStream(wanted.key));
        }
    }

    /// The session that the stream would be of.
    fn session_for(&self, wanted: StreamWanted) -> Result<(ConnectionId, SessionNumber), StreamError> {
        let StreamWanted { machine: id, kind, .. } = wanted;
        let machine = self.machines.get(&id).ok_or(StreamError::NoSuchMachine(id))?;
        // Before its welcome an agent listens to nothing else.
        let welcomed = machine.session.as_ref().filter(|session| !session.lease.is_zero());
        let session = welcomed.ok_or(StreamError::NotConnected(id))?;
        let Some(streams) = session.streams else {
            return Err(StreamError::TooOld { machine: id, version: machine.record.version.clone() });
        };
        if !streams.contains(kind) {
            return Err(StreamError::Forbidden { machine: id, kind });
        }
        Ok((session.connection, session.number))
    }
}
