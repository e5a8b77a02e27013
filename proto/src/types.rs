//! Conversions of what both services speak of, and the helpers that all conversions are made of.

use std::sync::Arc;
use std::time::Duration;

use muster_core::ids::{Epoch, Term};
use muster_core::machine::{Capacity, Pressure};
use muster_core::state::{Failure, Observation, Phase, UnitState};
use muster_core::unit::{Bytes as MemoryBytes, ContentHash, MilliCpu, UnitName};
use prost::bytes::Bytes;

use crate::error::{ConvertError, Problem};
use crate::v1;

/// Converts between an enumeration of the core and its wire form.
macro_rules! enumeration {
    ($core:ty, $wire:ty, [$($value:ident),+ $(,)?]) => {
        impl From<$core> for $wire {
            fn from(value: $core) -> Self {
                match value {
                    $(<$core>::$value => <$wire>::$value,)+
                }
            }
        }

        impl crate::types::Enumeration for $core {
            fn from_wire(value: i32) -> Option<Self> {
                match <$wire>::try_from(value).ok()? {
                    <$wire>::Unspecified => None,
                    $(<$wire>::$value => Some(<$core>::$value),)+
                }
            }
        }
    };
}
pub(crate) use enumeration;

/// An enumeration of the core that is sent as a number.
pub(crate) trait Enumeration: Sized {
    fn from_wire(value: i32) -> Option<Self>;
}

pub(crate) fn value<T: Enumeration>(field: &str, value: i32) -> Result<T, ConvertError> {
    T::from_wire(value).ok_or_else(|| ConvertError::new(field, Problem::Enumeration(value)))
}

/// The value of a field that is always sent.
pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or_else(|| ConvertError::new(field, Problem::Missing))
}

/// Converts the message in a field that is always sent.
pub(crate) fn message<W, T>(field: &str, value: Option<W>) -> Result<T, ConvertError>
where
    T: TryFrom<W, Error: Into<ConvertError>>,
{
    let value = required(field, value)?;
    T::try_from(value).map_err(|error| error.into().within(field))
}

/// Converts all messages of a repeated field.
pub(crate) fn each<W, T>(field: &str, values: Vec<W>) -> Result<Vec<T>, ConvertError>
where
    T: TryFrom<W, Error = ConvertError>,
{
    let convert =
        |(index, value)| T::try_from(value).map_err(|error| error.within(format_args!("{field}[{index}]")));
    values.into_iter().enumerate().map(convert).collect()
}

/// The bits of an id.
pub(crate) fn bits(field: &str, bytes: &[u8]) -> Result<u128, ConvertError> {
    array(field, bytes).map(u128::from_be_bytes)
}

/// An id as bytes.
pub(crate) fn id(bits: u128) -> Bytes {
    Bytes::copy_from_slice(&bits.to_be_bytes())
}

pub(crate) fn hash(field: &str, bytes: &[u8]) -> Result<ContentHash, ConvertError> {
    array(field, bytes).map(ContentHash::from_bytes)
}

pub(crate) fn hash_bytes(hash: &ContentHash) -> Bytes {
    Bytes::copy_from_slice(hash.as_bytes())
}

fn array<const N: usize>(field: &str, bytes: &[u8]) -> Result<[u8; N], ConvertError> {
    bytes
        .try_into()
        .map_err(|_| ConvertError::new(field, Problem::Length { expected: N, found: bytes.len() }))
}

pub(crate) fn name(field: &str, text: &str) -> Result<UnitName, ConvertError> {
    UnitName::parse(text).map_err(|error| {
        // A text that is no name may be of any length; what is shown of it is not.
        let text = text.chars().take(300).collect();
        ConvertError::new(field, Problem::UnitName { text, error })
    })
}

pub(crate) fn names(field: &str, texts: &[String]) -> Result<Vec<UnitName>, ConvertError> {
    let convert = |(index, text): (usize, &String)| name(&format!("{field}[{index}]"), text);
    texts.iter().enumerate().map(convert).collect()
}

/// A unit file's bytes, without a copy.
pub(crate) fn content_bytes(content: Arc<str>) -> Bytes {
    struct Text(Arc<str>);

    impl AsRef<[u8]> for Text {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }

    Bytes::from_owner(Text(content))
}

/// A unit file that the leader sent, which is known to be text.
pub(crate) fn content(field: &str, bytes: &[u8]) -> Result<Arc<str>, ConvertError> {
    std::str::from_utf8(bytes).map(Arc::from).map_err(|_| ConvertError::new(field, Problem::NotUtf8))
}

/// A duration in whole microseconds; what is longer than 584,000 years becomes that.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl From<Epoch> for v1::Epoch {
    fn from(epoch: Epoch) -> Self {
        Self { term: epoch.term.0, counter: epoch.counter }
    }
}

impl From<v1::Epoch> for Epoch {
    fn from(epoch: v1::Epoch) -> Self {
        Self { term: Term(epoch.term), counter: epoch.counter }
    }
}

pub(crate) fn epoch(field: &str, epoch: Option<v1::Epoch>) -> Result<Epoch, ConvertError> {
    required(field, epoch).map(Epoch::from)
}

impl From<Pressure> for v1::Pressure {
    fn from(Pressure { cpu, memory, io }: Pressure) -> Self {
        Self { cpu, memory, io }
    }
}

impl From<v1::Pressure> for Pressure {
    fn from(v1::Pressure { cpu, memory, io }: v1::Pressure) -> Self {
        Self { cpu, memory, io }
    }
}

impl From<Capacity> for v1::Capacity {
    fn from(capacity: Capacity) -> Self {
        Self { cpu_milli: capacity.cpu.0, memory_bytes: capacity.memory.0 }
    }
}

impl From<v1::Capacity> for Capacity {
    fn from(capacity: v1::Capacity) -> Self {
        Self { cpu: MilliCpu(capacity.cpu_milli), memory: MemoryBytes(capacity.memory_bytes) }
    }
}

impl From<UnitState> for v1::UnitState {
    fn from(UnitState { load, active, sub }: UnitState) -> Self {
        Self { load, active, sub }
    }
}

impl From<v1::UnitState> for UnitState {
    fn from(v1::UnitState { load, active, sub }: v1::UnitState) -> Self {
        Self { load, active, sub }
    }
}

impl From<Failure> for v1::Failure {
    fn from(Failure { result, reason }: Failure) -> Self {
        Self { result, reason }
    }
}

impl From<v1::Failure> for Failure {
    fn from(v1::Failure { result, reason }: v1::Failure) -> Self {
        Self { result, reason }
    }
}

impl From<Observation> for v1::Observation {
    fn from(observation: Observation) -> Self {
        use v1::observation::Kind;
        let kind = match observation {
            Observation::Held { phase, state } => {
                let (phase, failure) = match phase {
                    Phase::Loaded => (v1::Phase::Loaded, None),
                    Phase::Starting => (v1::Phase::Starting, None),
                    Phase::Launched => (v1::Phase::Launched, None),
                    Phase::StartFailed(failure) => (v1::Phase::StartFailed, Some(failure.into())),
                    Phase::Failed(failure) => (v1::Phase::Failed, Some(failure.into())),
                    Phase::Stopping => (v1::Phase::Stopping, None),
                    Phase::StopFailed(failure) => (v1::Phase::Stopping, Some(failure.into())),
                };
                Kind::Held(v1::Held { phase: phase.into(), failure, state: state.map(Into::into) })
            }
            Observation::Refused(reason) => Kind::Refused(reason),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Observation> for Observation {
    type Error = ConvertError;

    fn try_from(observation: v1::Observation) -> Result<Self, ConvertError> {
        use v1::observation::Kind;
        Ok(match required("kind", observation.kind)? {
            Kind::Held(v1::Held { phase, failure, state }) => {
                let unknown = || ConvertError::new("held.phase", Problem::Enumeration(phase));
                let phase = match v1::Phase::try_from(phase).map_err(|_| unknown())? {
                    v1::Phase::Unspecified => return Err(unknown()),
                    v1::Phase::Loaded => Phase::Loaded,
                    v1::Phase::Starting => Phase::Starting,
                    v1::Phase::Launched => Phase::Launched,
                    v1::Phase::StartFailed => Phase::StartFailed(failure.unwrap_or_default().into()),
                    v1::Phase::Failed => Phase::Failed(failure.unwrap_or_default().into()),
                    v1::Phase::Stopping => {
                        failure.map_or(Phase::Stopping, |failure| Phase::StopFailed(failure.into()))
                    }
                };
                Self::Held { phase, state: state.map(Into::into) }
            }
            Kind::Refused(reason) => Self::Refused(reason),
        })
    }
}
