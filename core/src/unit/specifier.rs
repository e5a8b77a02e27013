//! Specifiers: `%n`, `%i` and the like in the values of unit files.
//!
//! As in `systemd.unit(5)`. Those that follow from the unit's name are known here; the others (`%m`, `%H`, `%t` …)
//! follow from the machine and the manager, and have to be supplied.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::UnitName;

/// The specifiers of systemd 252 that the name of the unit does not answer.
const OF_THE_MACHINE: &str = "aAbBcCdEgGhHlLmMoqrRsStTuUvVwWyY";

/// Why specifiers in a value cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecifierError {
    /// systemd has no such specifier (or the setting does not take it).
    #[error("unknown specifier %{0}; write %% for a percent sign")]
    Unknown(char),
    /// The value follows from the machine, and was not supplied.
    #[error("specifier %{0} depends on the machine that the unit runs on")]
    OfTheMachine(char),
    /// The part of the name that it stands for cannot be unescaped.
    #[error("specifier %{specifier}: {part:?} is not an escaped string as systemd-escape makes it")]
    NotEscaped {
        /// The specifier.
        specifier: char,
        /// What would have to be unescaped.
        part: String,
    },
}

/// What the specifiers in the values of one unit stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specifiers {
    name: UnitName,
    supplied: BTreeMap<char, String>,
}

impl Specifiers {
    /// Those that follow from the name of the unit: `%n %N %p %P %i %I %j %J %f`.
    pub fn of(name: &UnitName) -> Specifiers {
        Specifiers { name: name.clone(), supplied: BTreeMap::new() }
    }

    /// Supplies a specifier that follows from the machine, such as `m`, `H`, `b` or `t`. Those that follow from the
    /// name are not changed by it.
    #[must_use]
    pub fn with(mut self, specifier: char, value: impl Into<String>) -> Specifiers {
        self.supplied.insert(specifier, value.into());
        self
    }

    fn lookup(&self, specifier: char) -> Result<Cow<'_, str>, SpecifierError> {
        let name = &self.name;
        let instance = name.instance().unwrap_or_default();
        let last = name.prefix().rsplit('-').next().unwrap_or_default();
        let not_escaped = |part: &str| SpecifierError::NotEscaped { specifier, part: part.to_owned() };
        let unescaped = |part: &str| unescape(part).map(Cow::Owned).ok_or_else(|| not_escaped(part));
        match specifier {
            'n' => Ok(name.as_str().into()),
            'N' => Ok(name.stem().into()),
            'p' => Ok(name.prefix().into()),
            'P' => unescaped(name.prefix()),
            'i' => Ok(instance.into()),
            'I' => unescaped(instance),
            'j' => Ok(last.into()),
            'J' => unescaped(last),
            'f' => {
                let part = name.instance().unwrap_or(name.prefix());
                unescape_path(part).map(Cow::Owned).ok_or_else(|| not_escaped(part))
            }
            other => match self.supplied.get(&other) {
                Some(value) => Ok(value.into()),
                None if OF_THE_MACHINE.contains(other) => Err(SpecifierError::OfTheMachine(other)),
                None => Err(SpecifierError::Unknown(other)),
            },
        }
    }
}

/// Replaces the specifiers of a value, as systemd does for most settings.
///
/// # Errors
/// When a specifier is unknown, was not supplied, or cannot be unescaped.
pub fn expand(text: &str, specifiers: &Specifiers) -> Result<String, SpecifierError> {
    expand_with(text, |specifier| specifiers.lookup(specifier))
}

/// Replaces specifiers by what `lookup` answers. `%%` is a percent sign; a `%` before anything but an ASCII letter or
/// digit stays, and so does one at the end.
pub(super) fn expand_with<'a>(
    text: &str,
    lookup: impl Fn(char) -> Result<Cow<'a, str>, SpecifierError>,
) -> Result<String, SpecifierError> {
    let mut result = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            result.push(c);
            continue;
        }
        match chars.next() {
            Some(specifier) if specifier.is_ascii_alphanumeric() => {
                result.push_str(&lookup(specifier)?);
            }
            Some('%') | None => result.push('%'),
            Some(other) => result.extend(['%', other]),
        }
    }
    Ok(result)
}

/// Undoes `systemd-escape`: `-` is `/`, `\xNN` a byte. None when a backslash starts anything else, or when the bytes
/// are no text.
pub fn unescape(text: &str) -> Option<String> {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut result = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        result.push(match byte {
            b'-' => b'/',
            b'\\' => {
                if bytes.get(at) != Some(&b'x') {
                    return None;
                }
                let value = hex(bytes.get(at + 1))? * 16 + hex(bytes.get(at + 2))?;
                at += 3;
                u8::try_from(value).ok()?
            }
            other => *other,
        });
    }
    String::from_utf8(result).ok()
}

/// Undoes `systemd-escape --path`. None when the result is no absolute path in its shortest form.
pub fn unescape_path(text: &str) -> Option<String> {
    if text == "-" {
        return Some("/".to_owned());
    }
    let path = unescape(text)?;
    let normal = path.split('/').all(|component| !matches!(component, "" | "." | ".."));
    normal.then(|| format!("/{path}"))
}
