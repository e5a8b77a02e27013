//! Unit files: kept byte for byte, read as systemd reads them.
//!
//! Sources: `systemd.syntax(7)` and what systemd 252 does (`config_parse()` and the line reader below it).

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::{WHITESPACE, Warning};

/// The largest unit file that is accepted, in bytes: 1 MiB, which is also the longest line that systemd accepts.
pub const MAX_UNIT_FILE_BYTES: usize = 1024 * 1024;

/// Why a text cannot be a unit file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitFileError {
    /// Larger than [`MAX_UNIT_FILE_BYTES`].
    #[error("unit file has {bytes} bytes, more than the {MAX_UNIT_FILE_BYTES} that are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A NUL byte.
    #[error("line {line}: unit file contains a NUL byte")]
    Nul {
        /// Where the first one is.
        line: u32,
    },
    /// Bytes that are no text.
    #[error("line {line}: unit file is not valid UTF-8")]
    NotUtf8 {
        /// Where the first such byte is.
        line: u32,
    },
    /// Nothing, or nothing but white space.
    #[error("unit file is empty (systemd takes an empty file for a masked unit)")]
    Empty,
    /// Text, but no section: systemd would ignore all of it.
    #[error("unit file has no section, such as [Unit] or [Service]")]
    NoSection,
    /// A line that starts with `[` and does not end with `]`: systemd refuses the whole file.
    #[error("line {line}: invalid section header {header:?}: it must end with \"]\", with nothing after it")]
    InvalidSectionHeader {
        /// Where it is.
        line: u32,
        /// The line, shortened.
        header: String,
    },
    /// A section whose name has quotes, a backslash or control characters: systemd refuses the whole file.
    #[error("line {line}: the name of section {header:?} has characters that systemd does not accept")]
    BadSectionName {
        /// Where it is.
        line: u32,
        /// The line, shortened.
        header: String,
    },
    /// A code point that Unicode sets aside for internal use, such as U+FFFE: systemd refuses the whole file.
    #[error("line {line}: U+{code:04X} is not a character that systemd accepts")]
    NonCharacter {
        /// Where it is.
        line: u32,
        /// The code point.
        code: u32,
    },
    /// A line as long as systemd's limit of 1 MiB.
    #[error("line {line}: line is too long (systemd accepts less than {MAX_UNIT_FILE_BYTES} bytes)")]
    LineTooLong {
        /// Where it is.
        line: u32,
    },
}

/// A text is no content hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a content hash is 64 lower-case hexadecimal digits")]
pub struct ContentHashError;

/// The SHA-256 of the bytes of a unit file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> ContentHash {
        ContentHash(Sha256::digest(bytes).into())
    }

    /// A hash that was computed before.
    pub fn from_bytes(bytes: [u8; 32]) -> ContentHash {
        ContentHash(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 7 hexadecimal digits, for tables.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(7);
        text
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentHash {
    type Err = ContentHashError;

    fn from_str(text: &str) -> Result<ContentHash, ContentHashError> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(ContentHashError),
        };
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() {
            return Err(ContentHashError);
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(ContentHash(hash))
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ContentHash, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One assignment in a unit file: `key=value` within a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The section that it stands in, without the brackets.
    pub section: Cow<'a, str>,
    /// What stands before the first `=`, without blanks around it.
    pub key: Cow<'a, str>,
    /// What stands after it, without blanks around it; continuation lines are joined, quotes and specifiers are
    /// untouched (see [`words`](super::words) and [`specifier`](super::specifier)).
    pub value: Cow<'a, str>,
    /// The line on which the assignment starts, counted from 1.
    pub line: u32,
}

/// A unit file: its text as it was submitted, which is known to be one that systemd reads to the end.
///
/// Cheap to clone. What is in it is read from the text whenever it is asked for, so that a stored file costs no
/// more than its text.
#[derive(Clone)]
pub struct UnitFile {
    text: Arc<str>,
    hash: ContentHash,
}

impl UnitFile {
    /// Takes the bytes of a unit file.
    ///
    /// # Errors
    /// When systemd would not read the file to its end, or would find nothing in it.
    pub fn parse(bytes: &[u8]) -> Result<UnitFile, UnitFileError> {
        if bytes.len() > MAX_UNIT_FILE_BYTES {
            return Err(UnitFileError::TooLarge { bytes: bytes.len() });
        }
        if let Some(offset) = bytes.iter().position(|byte| *byte == 0) {
            return Err(UnitFileError::Nul { line: line_at(bytes, offset) });
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| UnitFileError::NotUtf8 { line: line_at(bytes, error.valid_up_to()) })?;
        if text.trim_start_matches('\u{feff}').trim_matches(WHITESPACE).is_empty() {
            return Err(UnitFileError::Empty);
        }
        // Only a file of exactly the largest size can have one, so one look is enough.
        if bytes.len() == MAX_UNIT_FILE_BYTES && !bytes.iter().any(|byte| is_end_of_line(*byte)) {
            return Err(UnitFileError::LineTooLong { line: 1 });
        }
        let mut has_section = false;
        for item in Items::new(text) {
            has_section |= matches!(item?, Item::Section { .. });
        }
        if !has_section {
            return Err(UnitFileError::NoSection);
        }
        Ok(UnitFile { text: text.into(), hash: ContentHash::of(bytes) })
    }

    /// The text, byte for byte as it was submitted.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The hash of the text.
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// All assignments, in the order of the file. Those before the first section are not among them: systemd ignores
    /// them.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.items().filter_map(|item| match item {
            Item::Assignment(entry) => Some(entry),
            _ => None,
        })
    }

    /// The values of a key that count: in order, without those that a later empty assignment took back.
    ///
    /// As in systemd, an empty assignment takes nothing back from a dependency (`After=`, `Requires=` …) and takes
    /// back its whole group elsewhere: all `Condition…=`, all `Assert…=`, all `Listen…=` of a socket, all times of a
    /// timer, all paths of a path unit.
    pub fn values(&self, section: &str, key: &str) -> Vec<Cow<'_, str>> {
        let mut values = Vec::new();
        for entry in self.entries().filter(|entry| entry.section == section) {
            if !entry.value.is_empty() {
                if entry.key == key {
                    values.push(entry.value);
                }
            } else if resets(section, &entry.key, key) {
                values.clear();
            }
        }
        values
    }

    /// The last of [`UnitFile::values`]: what counts for a setting that has one value.
    ///
    /// After an empty assignment there is none. systemd agrees for texts and paths (`Description=`), but for switches,
    /// times and choices (`RemainAfterExit=`, `Restart=`) it ignores an empty assignment.
    pub fn value(&self, section: &str, key: &str) -> Option<Cow<'_, str>> {
        self.values(section, key).pop()
    }

    /// The lines that systemd ignores because they are no assignment, or stand in no section. Unknown sections and
    /// keys are not among them: those depend on the type of the unit, see [`Options::parse`](super::Options::parse).
    pub fn warnings(&self) -> Vec<Warning> {
        self.items()
            .filter_map(|item| match item {
                Item::Ignored { line, why, .. } => {
                    Some(Warning { line: Some(line), message: why.to_owned() })
                }
                _ => None,
            })
            .collect()
    }

    pub(super) fn items(&self) -> impl Iterator<Item = Item<'_>> {
        // The constructor has read all of it without an error.
        Items::new(&self.text).filter_map(Result::ok)
    }
}

impl PartialEq for UnitFile {
    fn eq(&self, other: &UnitFile) -> bool {
        self.hash == other.hash
    }
}

impl Eq for UnitFile {}

impl fmt::Debug for UnitFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnitFile({}, {} bytes)", self.hash.short(), self.text.len())
    }
}

/// Whether an empty assignment to `emptied` takes back what was assigned to `key`.
fn resets(section: &str, emptied: &str, key: &str) -> bool {
    const DEPENDENCIES: [&str; 20] = [
        "After",
        "Before",
        "BindTo",
        "BindsTo",
        "Conflicts",
        "JoinsNamespaceOf",
        "OnFailure",
        "OnSuccess",
        "PartOf",
        "PropagateReloadFrom",
        "PropagateReloadTo",
        "PropagatesReloadTo",
        "PropagatesStopTo",
        "ReloadPropagatedFrom",
        "Requires",
        "RequiresMountsFor",
        "Requisite",
        "StopPropagatedFrom",
        "Upholds",
        "Wants",
    ];
    const TIMES: [&str; 6] =
        ["OnActiveSec", "OnBootSec", "OnCalendar", "OnStartupSec", "OnUnitActiveSec", "OnUnitInactiveSec"];
    const PATHS: [&str; 5] =
        ["DirectoryNotEmpty", "PathChanged", "PathExists", "PathExistsGlob", "PathModified"];
    let both = |group: &[&str]| group.contains(&emptied) && group.contains(&key);
    let both_start = |prefix: &str| emptied.starts_with(prefix) && key.starts_with(prefix);
    match section {
        "Unit" if DEPENDENCIES.contains(&key) => false,
        "Unit" => emptied == key || both_start("Condition") || both_start("Assert"),
        "Timer" => emptied == key || both(&TIMES),
        "Path" => emptied == key || both(&PATHS),
        "Socket" => emptied == key || both_start("Listen"),
        "Service" if key == "Sockets" => false,
        _ => emptied == key,
    }
}

/// What one logical line of a unit file is; comments and blank lines are nothing.
pub(super) enum Item<'a> {
    /// A section header.
    Section { name: Cow<'a, str>, line: u32 },
    /// An assignment in a section.
    Assignment(Entry<'a>),
    /// A line that systemd ignores.
    Ignored { section: Option<Cow<'a, str>>, line: u32, why: &'static str },
}

/// Reads the items of a text one by one; after an error nothing follows that could be relied on.
struct Items<'a> {
    lines: LogicalLines<'a>,
    section: Option<Cow<'a, str>>,
}

impl<'a> Items<'a> {
    fn new(text: &'a str) -> Items<'a> {
        Items {
            lines: LogicalLines {
                physical: PhysicalLines { rest: text.as_bytes(), text, number: 0 },
                bom_seen: false,
            },
            section: None,
        }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, UnitFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (line, text) = self.lines.next()?;
            let trimmed = trim(&text, 0..text.len());
            let content = &text[trimmed.clone()];
            if content.is_empty() {
                continue;
            }
            if let Some(bad) = content.chars().find(|c| is_noncharacter(*c)) {
                return Some(Err(UnitFileError::NonCharacter { line, code: bad.into() }));
            }
            if content.starts_with('[') {
                let header = || content.chars().take(60).collect();
                if !content.ends_with(']') {
                    return Some(Err(UnitFileError::InvalidSectionHeader { line, header: header() }));
                }
                // Blanks within the brackets belong to the name, as in systemd.
                let name = part(&text, trimmed.start + 1..trimmed.end - 1);
                if name.contains(|c: char| c.is_ascii_control() || matches!(c, '"' | '\'' | '\\')) {
                    return Some(Err(UnitFileError::BadSectionName { line, header: header() }));
                }
                self.section = Some(name.clone());
                return Some(Ok(Item::Section { name, line }));
            }
            let ignored = |why| Item::Ignored { section: self.section.clone(), line, why };
            let Some(section) = &self.section else {
                return Some(Ok(ignored("assignment outside of a section, ignored")));
            };
            return Some(Ok(match content.find('=') {
                None => ignored("missing \"=\", line ignored"),
                Some(0) => ignored("missing key before \"=\", line ignored"),
                Some(equals) => {
                    let equals = trimmed.start + equals;
                    Item::Assignment(Entry {
                        section: section.clone(),
                        key: part(&text, trim(&text, trimmed.start..equals)),
                        value: part(&text, trim(&text, equals + 1..trimmed.end)),
                        line,
                    })
                }
            }));
        }
    }
}

/// Joins continued lines and drops comments. Yields the line on which the text starts.
struct LogicalLines<'a> {
    physical: PhysicalLines<'a>,
    bom_seen: bool,
}

impl<'a> Iterator for LogicalLines<'a> {
    type Item = (u32, Cow<'a, str>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut joined: Option<(u32, String)> = None;
        for (number, line) in self.physical.by_ref() {
            // Comments are dropped between continued lines too, whatever they end with.
            if line.trim_start_matches(WHITESPACE).starts_with(['#', ';']) {
                continue;
            }
            // systemd looks for a byte order mark at the start of every line until it has seen one, and after it has
            // looked for comments.
            let line = match line.strip_prefix('\u{feff}') {
                Some(stripped) if !self.bom_seen => {
                    self.bom_seen = true;
                    stripped
                }
                _ => line,
            };
            let backslashes = line.bytes().rev().take_while(|byte| *byte == b'\\').count();
            if backslashes % 2 == 1 {
                let (first, text) = joined.get_or_insert_with(|| (number, String::new()));
                if text.trim_matches(WHITESPACE).is_empty() {
                    *first = number;
                }
                text.push_str(&line[..line.len() - 1]);
                text.push(' ');
                continue;
            }
            return Some(match joined {
                None => (number, Cow::Borrowed(line)),
                Some((first, mut text)) => {
                    let first = if text.trim_matches(WHITESPACE).is_empty() { number } else { first };
                    text.push_str(line);
                    (first, Cow::Owned(text))
                }
            });
        }
        joined.map(|(first, text)| (first, Cow::Owned(text)))
    }
}

/// Cuts a text into lines as systemd does: a line ends in LF or CR, or in one of each in any order.
struct PhysicalLines<'a> {
    text: &'a str,
    rest: &'a [u8],
    number: u32,
}

impl<'a> Iterator for PhysicalLines<'a> {
    type Item = (u32, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        self.number += 1;
        let start = self.text.len() - self.rest.len();
        let length = self.rest.iter().position(|byte| is_end_of_line(*byte)).unwrap_or(self.rest.len());
        self.rest = &self.rest[length..];
        self.rest = match self.rest {
            [b'\n', b'\r', rest @ ..] | [b'\r', b'\n', rest @ ..] | [_, rest @ ..] => rest,
            [] => &[],
        };
        Some((self.number, &self.text[start..start + length]))
    }
}

fn is_end_of_line(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

/// The number of the line that the byte at `offset` stands on.
fn line_at(bytes: &[u8], offset: usize) -> u32 {
    let mut line = 1;
    let mut previous = None;
    for byte in bytes.iter().take(offset).copied() {
        previous = match (previous, byte) {
            (Some(b'\r'), b'\n') | (Some(b'\n'), b'\r') => None,
            _ if is_end_of_line(byte) => {
                line += 1;
                Some(byte)
            }
            _ => None,
        };
    }
    line
}

/// The code points that systemd's notion of UTF-8 leaves out.
fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

/// The range without the white space at its ends.
fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let slice = &text[range.clone()];
    let start = range.start + (slice.len() - slice.trim_start_matches(WHITESPACE).len());
    let end = range.end - (slice.len() - slice.trim_end_matches(WHITESPACE).len());
    start..end.max(start)
}

/// A part of a line, without a copy where the line stands in the file as it is.
fn part<'a>(line: &Cow<'a, str>, range: Range<usize>) -> Cow<'a, str> {
    match line {
        Cow::Borrowed(line) => Cow::Borrowed(&line[range]),
        Cow::Owned(line) => Cow::Owned(line[range].to_owned()),
    }
}
