//! Why a message cannot be taken.

use std::fmt;

use muster_core::unit::{GlobError, UnitNameError};

/// A message that makes no sense: its sender speaks another version of the protocol, or is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertError {
    field: String,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Missing,
    Enumeration(i32),
    Length { expected: usize, found: usize },
    NotUtf8,
    UnitName { text: String, error: UnitNameError },
    Glob(GlobError),
    TooLarge(u64),
    TooMany(usize),
    Interrupted,
}

impl ConvertError {
    pub(crate) fn new(field: impl Into<String>, problem: Problem) -> Self {
        Self { field: field.into(), problem }
    }

    /// The same error, seen from the message that `outer` is a field of.
    pub(crate) fn within(mut self, outer: impl fmt::Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }

    /// The path of the field that is wrong, for example `hello.units[3].epoch`.
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl std::error::Error for ConvertError {}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.field)?;
        match &self.problem {
            Problem::Missing => f.write_str("missing"),
            Problem::Enumeration(value) => write!(f, "{value} is no value that this version knows"),
            Problem::Length { expected, found } => write!(f, "{found} bytes where {expected} are expected"),
            Problem::NotUtf8 => f.write_str("not UTF-8"),
            Problem::UnitName { text, error } => write!(f, "{text:?}: {error}"),
            Problem::Glob(error) => write!(f, "{error}"),
            Problem::TooLarge(value) => write!(f, "{value} is out of range"),
            Problem::TooMany(limit) => write!(f, "more than {limit} units"),
            Problem::Interrupted => f.write_str("another message came before the rest of this one"),
        }
    }
}
