//! Streams between clients and machines: what a client wants from a machine goes through its agent's connections.
//!
//! The leader decides whether there may be one, and has the agent dial for it; what is on it is the shells' business. A
//! stream is of one session, and ends with it.

use std::fmt;

use crate::ids::{MachineId, StreamKey};

/// What is done over a stream, as far as an agent's administrator can forbid it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// To read the journal of a unit.
    Journal,
    /// To read what systemd says of a unit.
    Status,
    /// To connect to a TCP port or a unix socket.
    Forward,
    /// To read and write files.
    Files,
}

impl StreamKind {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Journal, Self::Status, Self::Forward, Self::Files];
}

/// Some kinds of streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamKinds(u8);

impl StreamKinds {
    /// Whether this kind is among them.
    pub fn contains(self, kind: StreamKind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = StreamKind> {
        StreamKind::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }

    fn bit(kind: StreamKind) -> u8 {
        1 << kind as u8
    }
}

impl FromIterator<StreamKind> for StreamKinds {
    fn from_iter<T: IntoIterator<Item = StreamKind>>(kinds: T) -> Self {
        Self(kinds.into_iter().fold(0, |bits, kind| bits | Self::bit(kind)))
    }
}

impl fmt::Display for StreamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Journal => "journal",
            Self::Status => "status",
            Self::Forward => "forward",
            Self::Files => "files",
        })
    }
}

/// A stream that a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamWanted {
    /// To which machine.
    pub machine: MachineId,
    /// What for.
    pub kind: StreamKind,
    /// What its agent shows when it dials: random, and told to that agent alone.
    pub key: StreamKey,
}

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The machine never was part of the cluster.
    #[error("there is no machine {0}")]
    NoSuchMachine(MachineId),
    /// The machine's agent has no session.
    #[error(
        "machine {} is not connected: it is off, cut off, or its agent does not run; `musterctl list-machines --fields \
         machine,state,heard` shows it", .0.short()
    )]
    NotConnected(MachineId),
    /// The machine's agent is of a version without streams.
    #[error("the agent of machine {} is too old for this: it is of version {version}", machine.short())]
    TooOld {
        /// The machine.
        machine: MachineId,
        /// Its agent's version.
        version: String,
    },
    /// The machine's administrator has forbidden it.
    #[error(
        "machine {} does not allow this: `streams` in its agent.toml leaves out \"{kind}\"", machine.short()
    )]
    Forbidden {
        /// The machine.
        machine: MachineId,
        /// What was wanted.
        kind: StreamKind,
    },
}
