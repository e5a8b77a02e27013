//! A daemon's configuration file: TOML whose mistakes are told with their line and with what was likely meant.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::DeTable;

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
    /// Options that do not go together, or a value that is not allowed.
    #[error("{0}")]
    Contradiction(String),
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
    let error = |offset: usize, message: String| {
        let before = text.as_bytes().iter().take(offset);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        ConfigError::Line { path: path.to_owned(), line, message }
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

/// 198.18.0.0/15, of RFC 2544: not routed anywhere, and used by the cluster harness.
pub fn is_test_network(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets()[0] == 198 && address.octets()[1] & !1 == 18)
}
