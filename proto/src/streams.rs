//! What a client wants from a machine, and over which kind of stream.

use muster_core::ids::MachineId;
use muster_core::stream::{StreamKind, StreamKinds};
use muster_core::unit::UnitName;

use crate::error::{ConvertError, Problem};
use crate::types::{bits, enumeration, id, name, required, value};
use crate::v1;

enumeration!(StreamKind, v1::StreamKind, [Journal, Status, Forward, Files]);

/// How many bytes of data one message of a stream has at most, as it is sent.
pub const STREAM_PIECE: usize = 32 * 1024;

/// What a client wants from a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRequest {
    /// The machine.
    pub machine: MachineId,
    /// What it wants.
    pub work: Work,
}

/// What is done over a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// The journal of a unit is read.
    Journal(Journal),
    /// What systemd says of a unit is read.
    Status(UnitName),
    /// A connection to this TCP port of the loopback address.
    Port(u16),
    /// A connection to the unix socket with this path.
    Socket(String),
    /// The regular file with this path is read.
    ReadFile(String),
    /// A regular file is written.
    WriteFile(FileToWrite),
}

/// Which part of a unit's journal is read, and how it is printed: as options of journalctl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// The unit.
    pub unit: UnitName,
    /// So many lines, the newest; all without.
    pub lines: Option<u32>,
    /// None older than this.
    pub since: Option<String>,
    /// How it is printed.
    pub output: String,
    /// Whether it goes on with what is written from now on.
    pub follow: bool,
}

/// Where a file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileToWrite {
    /// Its path. A directory: in that, under `name`.
    pub path: String,
    /// Its name where `path` is a directory.
    pub name: String,
    /// Its permissions, as in `chmod`.
    pub mode: u32,
}

impl Work {
    /// Which kind of stream that is.
    pub fn kind(&self) -> StreamKind {
        match self {
            Self::Journal(_) => StreamKind::Journal,
            Self::Status(_) => StreamKind::Status,
            Self::Port(_) | Self::Socket(_) => StreamKind::Forward,
            Self::ReadFile(_) | Self::WriteFile(_) => StreamKind::Files,
        }
    }
}

impl From<StreamRequest> for v1::StreamRequest {
    fn from(request: StreamRequest) -> Self {
        use v1::stream_request::Work as Wire;
        let work = match request.work {
            Work::Journal(Journal { unit, lines, since, output, follow }) => {
                Wire::Journal(v1::JournalRequest { unit: unit.to_string(), lines, since, output, follow })
            }
            Work::Status(unit) => Wire::Status(unit.to_string()),
            Work::Port(port) => Wire::Port(port.into()),
            Work::Socket(path) => Wire::Socket(path),
            Work::ReadFile(path) => Wire::ReadFile(path),
            Work::WriteFile(FileToWrite { path, name, mode }) => {
                Wire::WriteFile(v1::FileToWrite { path, name, mode })
            }
        };
        Self { machine: id(request.machine.bits()), work: Some(work) }
    }
}

impl TryFrom<v1::StreamRequest> for StreamRequest {
    type Error = ConvertError;

    fn try_from(request: v1::StreamRequest) -> Result<Self, ConvertError> {
        use v1::stream_request::Work as Wire;
        let work = match required("work", request.work)? {
            Wire::Journal(v1::JournalRequest { unit, lines, since, output, follow }) => {
                Work::Journal(Journal { unit: name("journal.unit", &unit)?, lines, since, output, follow })
            }
            Wire::Status(unit) => Work::Status(name("status", &unit)?),
            Wire::Port(port) => {
                let error = || ConvertError::new("port", Problem::TooLarge(port.into()));
                Work::Port(u16::try_from(port).map_err(|_| error())?)
            }
            Wire::Socket(path) => Work::Socket(path),
            Wire::ReadFile(path) => Work::ReadFile(path),
            Wire::WriteFile(v1::FileToWrite { path, name, mode }) => {
                Work::WriteFile(FileToWrite { path, name, mode })
            }
        };
        Ok(Self { machine: MachineId::new(bits("machine", &request.machine)?), work })
    }
}

impl From<StreamKinds> for v1::StreamKinds {
    fn from(kinds: StreamKinds) -> Self {
        Self { kinds: kinds.iter().map(|kind| v1::StreamKind::from(kind).into()).collect() }
    }
}

impl From<v1::StreamKinds> for StreamKinds {
    /// A kind that is not known is of a later version, and nobody here asks for it.
    fn from(kinds: v1::StreamKinds) -> Self {
        kinds.kinds.into_iter().filter_map(|kind| value("kinds", kind).ok()).collect()
    }
}
