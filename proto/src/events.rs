//! Conversions of events, and of a unit's worst-case time.

use muster_core::command::{Query, Rto, RtoPart};
use muster_core::ids::{MachineId, Term};
use muster_core::leader::{EventFilter, EventNumber, EventRecord, Severity};
use muster_core::unit::Glob;

use crate::error::{ConvertError, Problem};
use crate::types::{bits, each, enumeration, id, name, names, required, value};
use crate::v1;

enumeration!(Severity, v1::Severity, [Info, Warning, Error]);

/// Which events a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventsWanted {
    /// What they are about.
    pub filter: EventFilter,
    /// Of those that have happened at most so many, the newest; `None` for all that are remembered.
    pub last: Option<u32>,
    /// Those after this one.
    pub after: Option<EventNumber>,
    /// Whether those that are yet to happen are wanted.
    pub follow: bool,
}

impl From<EventsWanted> for v1::EventsRequest {
    fn from(wanted: EventsWanted) -> Self {
        let EventFilter { units, globs, machines } = wanted.filter;
        Self {
            units: units.iter().map(ToString::to_string).collect(),
            globs: globs.iter().map(|glob| glob.as_str().to_owned()).collect(),
            machines: machines.into_iter().map(|machine| id(machine.bits())).collect(),
            last: wanted.last,
            after: wanted.after.map(Into::into),
            follow: wanted.follow,
        }
    }
}

impl TryFrom<v1::EventsRequest> for EventsWanted {
    type Error = ConvertError;

    fn try_from(request: v1::EventsRequest) -> Result<Self, ConvertError> {
        let glob = |(index, text): (usize, &String)| {
            let field = format!("globs[{index}]");
            Glob::parse(text).map_err(|error| ConvertError::new(&field, Problem::Glob(error)))
        };
        Ok(Self {
            filter: EventFilter {
                units: names("units", &request.units)?.into_iter().collect(),
                globs: request.globs.iter().enumerate().map(glob).collect::<Result<_, _>>()?,
                machines: machines("machines", &request.machines)?.into_iter().collect(),
            },
            last: request.last,
            after: request.after.map(Into::into),
            follow: request.follow,
        })
    }
}

fn machines(field: &str, ids: &[prost::bytes::Bytes]) -> Result<Vec<MachineId>, ConvertError> {
    let convert = |(index, id): (usize, &prost::bytes::Bytes)| {
        Ok(MachineId::new(bits(&format!("{field}[{index}]"), id)?))
    };
    ids.iter().enumerate().map(convert).collect()
}

impl From<EventNumber> for v1::EventNumber {
    fn from(number: EventNumber) -> Self {
        Self { term: number.term.0, sequence: number.sequence }
    }
}

impl From<v1::EventNumber> for EventNumber {
    fn from(number: v1::EventNumber) -> Self {
        Self { term: Term(number.term), sequence: number.sequence }
    }
}

impl From<EventRecord> for v1::Event {
    fn from(event: EventRecord) -> Self {
        Self {
            number: Some(event.number.into()),
            at_ms: event.at_ms,
            kind: event.kind,
            severity: v1::Severity::from(event.severity).into(),
            units: event.units.iter().map(ToString::to_string).collect(),
            machines: event.machines.into_iter().map(|machine| id(machine.bits())).collect(),
            epoch: event.epoch.map(Into::into),
            reason: event.reason,
            message: event.message,
        }
    }
}

impl TryFrom<v1::Event> for EventRecord {
    type Error = ConvertError;

    fn try_from(event: v1::Event) -> Result<Self, ConvertError> {
        Ok(Self {
            number: required("number", event.number)?.into(),
            at_ms: event.at_ms,
            kind: event.kind,
            severity: value("severity", event.severity)?,
            units: names("units", &event.units)?,
            machines: machines("machines", &event.machines)?,
            epoch: event.epoch.map(Into::into),
            reason: event.reason,
            message: event.message,
        })
    }
}

impl v1::EventsPart {
    /// The events of this message.
    ///
    /// # Errors
    /// When one of them makes no sense.
    pub fn records(self) -> Result<Vec<EventRecord>, ConvertError> {
        each("events", self.events)
    }
}

impl TryFrom<v1::RtoRequest> for Query {
    type Error = ConvertError;

    fn try_from(request: v1::RtoRequest) -> Result<Self, ConvertError> {
        Ok(Self::Rto(name("unit", &request.unit)?))
    }
}

impl From<Rto> for v1::RtoResponse {
    fn from(rto: Rto) -> Self {
        let part = |RtoPart { name, span_ms, what }| v1::RtoPart { name, span_ms, what };
        Self { parts: rto.parts.into_iter().map(part).collect(), start_ms: rto.start_ms, notes: rto.notes }
    }
}

impl From<v1::RtoResponse> for Rto {
    fn from(rto: v1::RtoResponse) -> Self {
        let part = |v1::RtoPart { name, span_ms, what }| RtoPart { name, span_ms, what };
        Self { parts: rto.parts.into_iter().map(part).collect(), start_ms: rto.start_ms, notes: rto.notes }
    }
}

#[cfg(test)]
mod tests {
    use muster_core::ids::Epoch;
    use muster_core::unit::UnitName;
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::select;
    use prost::Message;

    use super::*;
    use crate::{PART_BYTES, event_parts};

    /// Through the bytes on the wire, not only through the generated types.
    fn wire<M: Message + Default>(message: &M) -> M {
        M::decode(message.encode_to_vec().as_slice()).expect("what was encoded can be decoded")
    }

    fn unit() -> impl Strategy<Value = UnitName> {
        "[a-z]{1,8}\\.service".prop_map(|name| UnitName::parse(&name).expect("a name"))
    }

    fn machine() -> impl Strategy<Value = MachineId> {
        any::<u128>().prop_map(MachineId::new)
    }

    fn number() -> impl Strategy<Value = EventNumber> {
        any::<(u64, u64)>().prop_map(|(term, sequence)| EventNumber { term: Term(term), sequence })
    }

    prop_compose! {
        fn record()(
            number in number(),
            at_ms in any::<u64>(),
            severity in select(vec![Severity::Info, Severity::Warning, Severity::Error]),
            units in vec(unit(), 0..3),
            machines in vec(machine(), 0..3),
            epoch in option::of(any::<(u64, u64)>()),
            reason in option::of(".{0,9}"),
            (kind, message) in ("[a-z_]{1,9}", ".{0,9}"),
        ) -> EventRecord {
            let epoch = epoch.map(|(term, counter)| Epoch { term: Term(term), counter });
            EventRecord { number, at_ms, kind, severity, units, machines, epoch, reason, message }
        }
    }

    proptest! {
        #[test]
        fn events_arrive_as_they_were_told(records in vec(record(), 0..4), missed in any::<u64>()) {
            let parts: Vec<_> = event_parts(missed, records.clone()).map(|part| wire(&part)).collect();
            prop_assert_eq!(parts.iter().map(|part| part.missed).sum::<u64>(), missed);
            let arrived: Result<Vec<_>, _> = parts.into_iter().map(v1::EventsPart::records).collect();
            prop_assert_eq!(arrived.map(|parts| parts.concat()), Ok(records));
        }

        #[test]
        fn what_is_asked_for_arrives(
            units in btree_set(unit(), 0..3),
            globs in vec(select(vec!["web@*", "?.service", "*"]), 0..3),
            machines in btree_set(machine(), 0..3),
            last in option::of(any::<u32>()),
            after in option::of(number()),
            follow in any::<bool>(),
        ) {
            let globs = globs.into_iter().map(|glob| Glob::parse(glob).expect("a glob")).collect();
            let wanted = EventsWanted { filter: EventFilter { units, globs, machines }, last, after, follow };
            let request = v1::EventsRequest::from(wanted.clone());
            prop_assert_eq!(EventsWanted::try_from(wire(&request)), Ok(wanted));
        }

        #[test]
        fn a_worst_case_time(spans in vec(any::<u64>(), 0..4), start_ms in option::of(any::<u64>())) {
            let part = |span_ms| RtoPart { name: "lease".to_owned(), span_ms, what: "it ends".to_owned() };
            let rto = Rto { parts: spans.into_iter().map(part).collect(), start_ms, notes: vec!["x".to_owned()] };
            prop_assert_eq!(Rto::from(wire(&v1::RtoResponse::from(rto.clone()))), rto);
        }
    }

    #[test]
    fn many_events_come_in_parts_and_what_is_missing_is_said_once() {
        let record = EventRecord {
            number: EventNumber { term: Term(1), sequence: 1 },
            at_ms: 0,
            kind: "x".to_owned(),
            severity: Severity::Info,
            units: Vec::new(),
            machines: Vec::new(),
            epoch: None,
            reason: None,
            message: "m".repeat(PART_BYTES / 3),
        };
        let parts: Vec<_> = event_parts(7, vec![record; 8]).collect();
        assert_eq!(parts.iter().map(|part| part.events.len()).collect::<Vec<_>>(), [2, 2, 2, 2]);
        assert_eq!(parts.iter().map(|part| part.missed).collect::<Vec<_>>(), [7, 0, 0, 0]);
    }

    #[test]
    fn errors_name_the_field() {
        let request = v1::EventsRequest { globs: vec!["*".to_owned(), "[".to_owned()], ..Default::default() };
        let error = EventsWanted::try_from(request).expect_err("refused").to_string();
        assert!(error.starts_with("globs[1]: "), "{error}");
    }
}
