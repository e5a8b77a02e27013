//! A daemon's configuration file: TOML whose mistakes are told with their line and with what was likely meant.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use toml::de::DeTable;
use tracing::level_filters::LevelFilter;

/// Why a daemon cannot run by a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in the file makes no sense.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, and what was likely meant.
        message: String,
    },
    /// Something is wrong with the file as a whole: an option that is not in it is needed.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// Options that do not go together, or a value that is not allowed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Contradiction {
    /// The options that it is about. The first of them that the file has says in which line it is.
    pub options: &'static [&'static str],
    /// What is wrong, and why.
    pub message: String,
}

impl Contradiction {
    /// The error, for the text of the file that it was found in.
    pub fn in_file(self, path: &Path, text: &str) -> ConfigError {
        let (path, message) = (path.to_owned(), self.message);
        let file = DeTable::parse(text).ok();
        let offset = |option: &&str| Some(file.as_ref()?.get_ref().get_key_value(*option)?.0.span().start);
        match self.options.iter().find_map(offset) {
            Some(offset) => ConfigError::Line { path, line: line(text, offset), message },
            None => ConfigError::File { path, message },
        }
    }
}

/// Reads the text of a file; `path` is for the errors. These are its options, and those of its tables of options.
///
/// # Errors
/// [`ConfigError::Line`], for an unknown option with the nearest one.
pub fn parse<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    options: &[&str],
    tables: &[(&str, &[&str])],
) -> Result<T, ConfigError> {
    let error = |offset: usize, message: String| ConfigError::Line {
        path: path.to_owned(),
        line: line(text, offset),
        message,
    };
    let syntax = |wrong: toml::de::Error| {
        error(wrong.span().map_or(0, |span| span.start), wrong.message().trim_end().to_owned())
    };
    let known = |table: &DeTable<'_>, options: &[&str]| {
        let unknown = table.keys().find(|key| !options.contains(&key.get_ref().as_ref()));
        unknown.map_or(Ok(()), |key| Err(error(key.span().start, unknown_option(key.get_ref(), options))))
    };
    let file = DeTable::parse(text).map_err(syntax)?;
    known(file.get_ref(), options)?;
    for (name, options) in tables {
        if let Some(table) = file.get_ref().get(*name).and_then(|value| value.get_ref().as_table()) {
            known(table, options)?;
        }
    }
    toml::from_str(text).map_err(syntax)
}

/// The line that this byte is in, counted from 1.
fn line(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

fn unknown_option(name: &str, options: &[&str]) -> String {
    let near = options
        .iter()
        .map(|option| (strsim::damerau_levenshtein(name, option), *option))
        .filter(|(distance, option)| *distance <= option.len() / 3)
        .min();
    let hint = near.map_or_else(
        || format!("the options are {}", options.join(", ")),
        |(_, option)| format!("did you mean {option:?}?"),
    );
    format!("unknown option {name:?}; {hint}")
}

/// Reads a value that stands as text in the file; `expected` says what it should be.
///
/// # Errors
/// When it is no text, or the text cannot be understood.
pub fn text<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
    expected: &str,
) -> Result<T, D::Error> {
    let text = quoted(deserializer, expected)?;
    text.parse().map_err(|error| D::Error::custom(format!("{text:?} is not {expected}: {error}")))
}

/// Reads a text; `expected` says what it should be.
///
/// # Errors
/// When it is something else, such as a number without quotes.
pub fn quoted<'de, D: Deserializer<'de>>(deserializer: D, expected: &str) -> Result<String, D::Error> {
    String::deserialize(deserializer)
        .map_err(|_| D::Error::custom(format!("{expected} is expected, in quotes")))
}

/// Reads what is logged: messages of this importance, and of more.
///
/// # Errors
/// When it is none of the five levels.
pub fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LevelFilter, D::Error> {
    let level = quoted(deserializer, "a log level")?;
    match level.as_str() {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(D::Error::custom(format!(
            "{level:?} is no log level: \"error\", \"warn\", \"info\", \"debug\" or \"trace\" is expected"
        ))),
    }
}

/// 198.18.0.0/15, of RFC 2544: not routed anywhere, and used by the cluster harness.
pub fn is_test_network(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets()[0] == 198 && address.octets()[1] & !1 == 18)
}
