//! How a command ends when it does not end well: one message for the reader, one exit code for the script.

use std::fmt::Display;
use std::process::ExitCode;

/// The exit codes, as `musterctl --help` documents them. 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command failed.
    Failed = 1,
    /// The command line or the configuration cannot be understood.
    Usage = 2,
    /// `status`: a unit is not active (as systemctl).
    NotActive = 3,
    /// There is no such unit (as systemctl).
    NoSuchUnit = 4,
    /// No scheduler answers (`EX_UNAVAILABLE`).
    Unreachable = 69,
    /// Ctrl-C while waiting.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ends without having done all that it was asked.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// For the reader, without `error:`, perhaps of several lines. Empty when all was said already.
    pub message: String,
}

impl Failure {
    /// A failure with that exit code.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// A command that failed.
    pub fn failed(message: impl Display) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// A failure of which all was said already.
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }
}

impl From<std::io::Error> for Failure {
    /// What cannot be written to stdout. A reader that left (`| head`) is no news.
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::silent(Exit::Failed)
        } else {
            Self::failed(format_args!("cannot write to standard output: {error}"))
        }
    }
}
