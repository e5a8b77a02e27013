//! Unit names, unit files and the options in them that are Muster's own.
//!
//! A unit file is kept byte for byte ([`UnitFile`]) and read as systemd reads it; [`words`] and [`specifier`]
//! follow systemd's rules for what stands inside a value. [`Options`] is what `[X-Fleet]` and `[X-Muster]` ask for.

use std::fmt;

mod file;
mod glob;
pub mod install;
mod keys;
mod merge;
mod name;
mod normal;
mod options;
mod quantity;
pub mod specifier;
pub mod words;

#[cfg(test)]
mod tests;

pub use file::{ContentHash, ContentHashError, Entry, MAX_UNIT_FILE_BYTES, UnitFile, UnitFileError};
pub use glob::{Glob, GlobError};
pub use merge::merge;
pub use name::{MAX_UNIT_NAME_BYTES, UnitName, UnitNameError, UnitType};
pub use normal::normal_form;
pub(crate) use options::EXCLUSIVE_STOPS;
pub use options::{MachineIdMatch, Options, Parsed, Reschedule};
pub use quantity::{Bytes, MilliCpu, QuantityError, time_span};

/// Something in a unit file that systemd ignores or that is likely not meant: the file is accepted all the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// The line that it is about, counted from 1; none when it is about the file as a whole.
    pub line: Option<u32>,
    /// What is odd, naming section and option.
    pub message: String,
}

/// A mistake in a unit file for which it is refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub struct OptionError {
    /// The line that it is about, counted from 1; none when it is about the file as a whole.
    pub line: Option<u32>,
    /// What is wrong and what to do, naming section and option.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_at(f, self.line, &self.message)
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_at(f, self.line, &self.message)
    }
}

fn write_at(f: &mut fmt::Formatter<'_>, line: Option<u32>, message: &str) -> fmt::Result {
    match line {
        Some(line) => write!(f, "line {line}: {message}"),
        None => f.write_str(message),
    }
}

/// What systemd counts as white space in a unit file, and nothing else: no form feed, nothing of Unicode's.
const WHITESPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The candidate that was most likely meant, or none when nothing is near.
fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_ascii_lowercase();
    let length = name.chars().count();
    let limit = (length / 3).clamp(1, 3);
    candidates
        .into_iter()
        // Nothing near has another length; comparing is slow.
        .filter(|candidate| candidate.len().abs_diff(length) <= limit)
        .map(|candidate| (strsim::osa_distance(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// `; did you mean …?`, or nothing.
fn did_you_mean(suggestion: Option<impl fmt::Display>) -> String {
    suggestion.map_or_else(String::new, |suggestion| format!("; did you mean {suggestion}?"))
}
