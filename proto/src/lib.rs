//! The gRPC contracts between schedulers, agents and clients, and the one place where wire types become core types.
//!
//! [`v1`] is generated from `proto/muster/v1/*.proto`. Everything else converts: `From` a core type, and `TryFrom` a
//! message, with a [`ConvertError`] that names the field. What one gRPC message should not hold is cut into parts:
//! [`split_from_agent`] and [`split_to_agent`] on the sending side, [`FromAgentParts`] and [`ToAgentParts`] on the
//! receiving one, [`unit_parts`] and [`event_parts`] for lists of units and events.

mod agent;
mod api;
mod error;
mod events;
mod leading;
mod parts;
mod schedulers;
mod streams;
mod types;

pub use self::{
    api::{CommandRequestError, command_response},
    error::ConvertError,
    events::EventsWanted,
    leading::{is_not_leading, leader_of, not_leading},
    parts::{
        FromAgentParts, MAX_PART_UNITS, PART_BYTES, ToAgentParts, event_parts, split_from_agent,
        split_to_agent, unit_parts,
    },
    schedulers::{EtcdAnswer, EtcdMember, RegisteredScheduler, SchedulerRole, SchedulerStatus, StoreStatus},
    streams::{FileToWrite, Journal, STREAM_PIECE, StreamRequest, Work},
};

/// The generated messages, clients and servers.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("muster.v1");
}

/// The metadata that ties a session's stream of heartbeats to the session.
pub const SESSION_KEY: &str = "muster-session";

/// The metadata that ties what an agent dials to the stream that it was asked for.
pub const STREAM_KEY: &str = "muster-stream";

/// The largest request or response that either side decodes, in bytes: 64 MiB.
///
/// gRPC's own default of 4 MiB is enough for every streamed message; [`v1::CommandRequest`] and its response may be
/// larger.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
