//! Long lists are cut into messages of about a mebibyte, so that none is refused for its size and no heartbeat waits
//! long behind one.

use std::time::Duration;

use muster_core::command::UnitStatus;
use muster_core::ids::{Revision, SessionNumber, StreamKey, Term};
use muster_core::leader::EventRecord;
use muster_core::message::{Assignments, FromAgent, LeaderMessage, ToAgent};
use prost::Message;

use crate::error::{ConvertError, Problem};
use crate::types::{bits, each, id, message, micros, required, value};
use crate::v1;

/// About how large a part of a list becomes, in bytes. One item may be larger than that: unit files of up to 1 MiB
/// are never cut.
pub const PART_BYTES: usize = 1024 * 1024;

/// How many units a list that comes in parts may have: a sender without end must not fill the receiver's memory.
pub const MAX_PART_UNITS: usize = 100_000;

/// Cuts a list into parts. There is at least one part, and none is empty but the only one.
fn cut<T: Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for item in items {
        let length = item.encoded_len();
        if bytes > 0 && bytes + length > PART_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
    }
    parts
}

/// The status of many units as the messages of [`ListUnits`](v1::muster_client::MusterClient::list_units).
pub fn unit_parts(units: Vec<UnitStatus>) -> impl Iterator<Item = v1::UnitsPart> {
    cut(units.into_iter().map(Into::into).collect()).into_iter().map(|units| v1::UnitsPart { units })
}

/// Events as the messages of [`Events`](v1::muster_client::MusterClient::events); so many are missing before them.
pub fn event_parts(missed: u64, events: Vec<EventRecord>) -> impl Iterator<Item = v1::EventsPart> {
    let parts = cut(events.into_iter().map(Into::into).collect());
    let part = move |(index, events)| v1::EventsPart { events, missed: if index == 0 { missed } else { 0 } };
    parts.into_iter().enumerate().map(part)
}

/// What an agent says, as messages of a session.
pub fn split_from_agent(said: FromAgent) -> Vec<v1::AgentMessage> {
    use v1::agent_message::Body;
    let bodies = match said {
        FromAgent::Hello(hello) => {
            let mut whole = v1::Hello::from(hello);
            let mut parts = cut(std::mem::take(&mut whole.units)).into_iter();
            whole.units = parts.next().unwrap_or_default();
            let mut hellos = vec![whole];
            hellos.extend(parts.map(|units| v1::Hello { units, ..Default::default() }));
            let last = hellos.len() - 1;
            hellos.iter_mut().take(last).for_each(|hello| hello.more = true);
            hellos.into_iter().map(Body::Hello).collect()
        }
        FromAgent::Heartbeat { number, pid1_age, pressure } => {
            let (pid1_age_us, pressure) = (micros(pid1_age), Some(pressure.into()));
            vec![Body::Heartbeat(v1::Heartbeat { number, pid1_age_us, pressure })]
        }
        FromAgent::Report(reports) => cut(reports.into_iter().map(Into::into).collect())
            .into_iter()
            .map(|units| Body::Report(v1::Report { units }))
            .collect(),
        FromAgent::SnapshotWanted => vec![Body::SnapshotWanted(v1::SnapshotWanted {})],
        FromAgent::Goodbye(goodbye) => vec![Body::Goodbye(v1::Goodbye::from(goodbye).into())],
    };
    bodies.into_iter().map(|body| v1::AgentMessage { body: Some(body) }).collect()
}

/// Puts together what an agent says in one session.
#[derive(Debug, Default)]
pub struct FromAgentParts {
    hello: Option<v1::Hello>,
}

impl FromAgentParts {
    /// Takes the next message; gives what was said, once it is complete.
    ///
    /// # Errors
    /// When the message makes no sense: the session should end.
    pub fn push(&mut self, part: v1::AgentMessage) -> Result<Option<FromAgent>, ConvertError> {
        use v1::agent_message::Body;
        let body = required("body", part.body)?;
        if self.hello.is_some() && !matches!(body, Body::Hello(_)) {
            return Err(ConvertError::new("hello", Problem::Interrupted));
        }
        Ok(Some(match body {
            Body::Hello(part) => match self.hello(part)? {
                Some(hello) => FromAgent::Hello(message("hello", Some(hello))?),
                None => return Ok(None),
            },
            Body::Heartbeat(v1::Heartbeat { number, pid1_age_us, pressure }) => FromAgent::Heartbeat {
                number,
                pid1_age: Duration::from_micros(pid1_age_us),
                pressure: pressure.unwrap_or_default().into(),
            },
            Body::Report(report) => {
                FromAgent::Report(each("units", report.units).map_err(|error| error.within("report"))?)
            }
            Body::SnapshotWanted(v1::SnapshotWanted {}) => FromAgent::SnapshotWanted,
            Body::Goodbye(goodbye) => FromAgent::Goodbye(value("goodbye", goodbye)?),
        }))
    }

    fn hello(&mut self, part: v1::Hello) -> Result<Option<v1::Hello>, ConvertError> {
        let hello = match self.hello.take() {
            None => part,
            Some(mut whole) => {
                whole.units.extend(part.units);
                whole.more = part.more;
                whole
            }
        };
        limit("hello.units", hello.units.len())?;
        if hello.more {
            self.hello = Some(hello);
            return Ok(None);
        }
        Ok(Some(hello))
    }
}

/// What a leader says, as messages of a session.
pub fn split_to_agent(said: ToAgent) -> Vec<v1::LeaderMessage> {
    use v1::leader_message::Body;
    let (term, session) = (said.term.0, said.session.0);
    let bodies = match said.body {
        LeaderMessage::Welcome(welcome) => vec![Body::Welcome(welcome.into())],
        LeaderMessage::HeartbeatAck { number } => vec![Body::HeartbeatAck(v1::HeartbeatAck { number })],
        LeaderMessage::Assignments(assignments) => {
            split_assignments(assignments).into_iter().map(Body::Assignments).collect()
        }
        LeaderMessage::Refused(refused) => vec![Body::Refused(refused.into())],
        LeaderMessage::Probe => vec![Body::Probe(v1::Probe {})],
        LeaderMessage::OpenStream(key) => vec![Body::OpenStream(v1::OpenStream { key: id(key.bits()) })],
        LeaderMessage::Farewell { lease } => {
            vec![Body::Farewell(v1::Farewell { lease_us: lease.map(micros) })]
        }
    };
    bodies.into_iter().map(|body| v1::LeaderMessage { term, session, body: Some(body) }).collect()
}

fn split_assignments(assignments: Assignments) -> Vec<v1::Assignments> {
    let Assignments { snapshot, revision, hold, remove } = assignments;
    let part = |hold, remove| v1::Assignments { snapshot, revision: revision.0, hold, remove, more: true };
    let hold = cut(hold.into_iter().map(Into::into).collect());
    let remove = cut(remove.into_iter().map(Into::into).collect());
    let mut parts: Vec<_> = hold.into_iter().map(|hold| part(hold, Vec::new())).collect();
    let mut remove = remove.into_iter();
    // Most often both lists are short: they share a message.
    if let (Some(last), Some(first)) = (parts.last_mut(), remove.next()) {
        last.remove = first;
    }
    parts.extend(remove.map(|remove| part(Vec::new(), remove)));
    if let Some(last) = parts.last_mut() {
        last.more = false;
    }
    parts
}

/// Puts together what a leader says in one session.
#[derive(Debug, Default)]
pub struct ToAgentParts {
    assignments: Option<(u64, u64, v1::Assignments)>,
}

impl ToAgentParts {
    /// Takes the next message; gives what was said, once it is complete.
    ///
    /// # Errors
    /// When the message makes no sense: the session should end.
    pub fn push(&mut self, part: v1::LeaderMessage) -> Result<Option<ToAgent>, ConvertError> {
        use v1::leader_message::Body;
        let body = required("body", part.body)?;
        if self.assignments.is_some() && !matches!(body, Body::Assignments(_)) {
            return Err(ConvertError::new("assignments", Problem::Interrupted));
        }
        let body = match body {
            Body::Welcome(welcome) => LeaderMessage::Welcome(message("welcome", Some(welcome))?),
            Body::HeartbeatAck(v1::HeartbeatAck { number }) => LeaderMessage::HeartbeatAck { number },
            Body::Assignments(assignments) => match self.assignments(part.term, part.session, assignments)? {
                Some(assignments) => LeaderMessage::Assignments(whole(assignments)?),
                None => return Ok(None),
            },
            Body::Probe(v1::Probe {}) => LeaderMessage::Probe,
            Body::OpenStream(v1::OpenStream { key }) => {
                LeaderMessage::OpenStream(StreamKey::new(bits("open_stream.key", &key)?))
            }
            Body::Refused(refused) => LeaderMessage::Refused(message("refused", Some(refused))?),
            Body::Farewell(v1::Farewell { lease_us }) => {
                LeaderMessage::Farewell { lease: lease_us.map(Duration::from_micros) }
            }
        };
        Ok(Some(ToAgent { term: Term(part.term), session: SessionNumber(part.session), body }))
    }

    fn assignments(
        &mut self,
        term: u64,
        session: u64,
        part: v1::Assignments,
    ) -> Result<Option<v1::Assignments>, ConvertError> {
        let assignments = match self.assignments.take() {
            None => part,
            Some((begun_term, begun_session, mut whole)) => {
                let same = (begun_term, begun_session, whole.snapshot, whole.revision)
                    == (term, session, part.snapshot, part.revision);
                if !same {
                    return Err(ConvertError::new("assignments", Problem::Interrupted));
                }
                whole.hold.extend(part.hold);
                whole.remove.extend(part.remove);
                whole.more = part.more;
                whole
            }
        };
        limit("assignments.hold", assignments.hold.len())?;
        limit("assignments.remove", assignments.remove.len())?;
        if assignments.more {
            self.assignments = Some((term, session, assignments));
            return Ok(None);
        }
        Ok(Some(assignments))
    }
}

fn whole(assignments: v1::Assignments) -> Result<Assignments, ConvertError> {
    Ok(Assignments {
        snapshot: assignments.snapshot,
        revision: Revision(assignments.revision),
        hold: each("hold", assignments.hold).map_err(|error| error.within("assignments"))?,
        remove: each("remove", assignments.remove).map_err(|error| error.within("assignments"))?,
    })
}

fn limit(field: &str, units: usize) -> Result<(), ConvertError> {
    if units > MAX_PART_UNITS {
        return Err(ConvertError::new(field, Problem::TooMany(MAX_PART_UNITS)));
    }
    Ok(())
}
