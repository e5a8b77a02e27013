//! The file that a backup is: all that is durable of a cluster, as lines of JSON, so that a reader's eyes and `jq` can look
//! into it.
//!
//! | line | what is in it |
//! | --- | --- |
//! | the first | [`Header`] |
//! | each that follows | a [`Change`] that puts something; all of them make the state out of nothing |
//! | the last | how many records there are, and the SHA-256 of all lines before |
//!
//! What is cut off, or was changed in any place, is told from what is whole.

use std::fmt::Write as _;
use std::io;

use muster_core::ids::{ClusterId, Term};
use muster_core::leader::{Change, Durable};
use muster_core::unit::{Options, UnitFile, UnitName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

#[cfg(test)]
mod tests;

/// The version of the format that is written here, and the only one that is read.
pub const FORMAT: u32 = 1;

/// How long a line may be, in bytes: as long as the largest request that a client sends, whose result is in one line.
const LONGEST_LINE: usize = 64 * 1024 * 1024;

/// What begins the last line, and no other.
const LAST_LINE: &[u8] = br#"{"records":"#;

/// What stands in the first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format: [`FORMAT`].
    #[serde(rename = "muster_backup")]
    pub format: u32,
    /// Which cluster it is of.
    pub cluster: ClusterId,
    /// The term of the leader that made it.
    pub term: Term,
    /// The version of that leader's scheduler.
    pub version: String,
    /// When it was made, by that scheduler's clock, as RFC 3339 has it.
    pub made: String,
    /// How many units are in it.
    pub units: usize,
    /// How many machines are in it.
    pub machines: usize,
}

impl Header {
    /// Of a backup that is made now, of this state in this term.
    pub fn new(durable: &Durable, term: Term, version: String, made: String) -> Self {
        let Durable { cluster, units, machines, .. } = durable;
        Self {
            format: FORMAT,
            cluster: *cluster,
            term,
            version,
            made,
            units: units.len(),
            machines: machines.len(),
        }
    }
}

/// The only thing that is read of a first line before the version is known.
#[derive(Deserialize)]
struct Mark {
    muster_backup: u32,
}

/// What stands in the last line.
#[derive(Serialize)]
struct Footer {
    records: u64,
    sha256: String,
}

/// A backup that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// What it is.
    pub header: Header,
    /// What is in it.
    pub durable: Durable,
}

/// Why something is no backup that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("it is no backup of a Muster cluster")]
    Other,
    /// A later version has written it.
    #[error(
        "it has format version {0}, and this version of Muster reads version {FORMAT}: use the version that wrote it"
    )]
    Format(u32),
    /// A line is not as it was written.
    #[error("it is damaged: line {line}: {problem}")]
    Damaged {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The end is missing.
    #[error("it is cut off after line {0}: the last line is missing, which would say that it is whole")]
    CutOff(u64),
    /// All lines make sense, and something is other than it was.
    #[error("it was changed after it was written, or is damaged: its last line tells of another content")]
    Changed,
}

/// Writes a backup.
///
/// # Errors
/// When it cannot be written.
pub fn write(header: &Header, durable: &Durable, mut out: impl io::Write) -> io::Result<()> {
    let (mut hash, mut line) = (Sha256::new(), Vec::new());
    let mut records = 0;
    serde_json::to_writer(&mut line, header)?;
    for (_, change) in durable.changes_after(None) {
        put(&mut line, &mut hash, &mut out)?;
        serde_json::to_writer(&mut line, &change)?;
        records += 1;
    }
    put(&mut line, &mut hash, &mut out)?;
    out.write_all(&last_line(records, hash)?)
}

/// Ends the line and writes it.
fn put(line: &mut Vec<u8>, hash: &mut Sha256, out: &mut impl io::Write) -> io::Result<()> {
    line.push(b'\n');
    hash.update(&*line);
    out.write_all(line)?;
    line.clear();
    Ok(())
}

fn last_line(records: u64, hash: Sha256) -> io::Result<Vec<u8>> {
    let mut sha256 = String::with_capacity(64);
    for byte in hash.finalize() {
        let _ = write!(sha256, "{byte:02x}");
    }
    let mut line = serde_json::to_vec(&Footer { records, sha256 })?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a backup that comes in pieces.
#[derive(Debug, Default)]
pub struct Reader {
    /// The line that has begun.
    rest: Vec<u8>,
    lines: u64,
    hash: Sha256,
    begun: Option<Backup>,
    /// Whether the last line was read.
    whole: bool,
}

impl Reader {
    /// Takes the next piece in, cut anywhere.
    ///
    /// # Errors
    /// When it is no backup that can be used; then there is nothing more to be asked.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), BackupError> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, more) = bytes.split_at(end + 1);
            bytes = more;
            self.lines += 1;
            if self.rest.is_empty() {
                self.line(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.line(&whole)?;
            }
        }
        self.rest.extend_from_slice(bytes);
        if self.begun.is_none() && !self.rest.is_empty() && !self.rest.starts_with(b"{") {
            return Err(BackupError::Other);
        }
        if self.rest.len() > LONGEST_LINE {
            self.lines += 1;
            return Err(self.damaged("it is longer than any that a scheduler writes"));
        }
        Ok(())
    }

    /// All was pushed.
    ///
    /// # Errors
    /// When it is no backup that can be used.
    pub fn finish(self) -> Result<Backup, BackupError> {
        let Some(backup) = self.begun else { return Err(BackupError::Other) };
        if !self.whole {
            return Err(BackupError::CutOff(self.lines));
        }
        if !self.rest.is_empty() {
            return Err(BackupError::Damaged { line: self.lines + 1, problem: AFTER_LAST.to_owned() });
        }
        let Durable { units, files, .. } = &backup.durable;
        if !units.keys().eq(files.keys()) {
            let problem = "before it there are units without a file, or files without a unit".to_owned();
            return Err(BackupError::Damaged { line: self.lines, problem });
        }
        Ok(backup)
    }

    /// Takes in a line, with its end.
    fn line(&mut self, line: &[u8]) -> Result<(), BackupError> {
        if self.whole {
            return Err(self.damaged(AFTER_LAST));
        }
        if line.starts_with(LAST_LINE) && self.begun.is_some() {
            let expected = last_line(self.lines - 2, self.hash.clone());
            self.whole = expected.is_ok_and(|expected| expected == line);
            return if self.whole { Ok(()) } else { Err(BackupError::Changed) };
        }
        self.hash.update(line);
        let Some(backup) = &mut self.begun else {
            let mark: Mark = serde_json::from_slice(line).map_err(|_| BackupError::Other)?;
            if mark.muster_backup != FORMAT {
                return Err(BackupError::Format(mark.muster_backup));
            }
            let header: Header = serde_json::from_slice(line).map_err(|error| self.nonsense(&error))?;
            let durable = Durable::new(header.cluster);
            self.begun = Some(Backup { header, durable });
            return Ok(());
        };
        match serde_json::from_slice(line) {
            Ok(Change::DeleteUnit(_) | Change::DeleteRetired(..) | Change::DeleteCommand(_)) => {
                Err(self.damaged("it is a record that takes something away"))
            }
            Ok(change) => {
                backup.durable.apply(change);
                Ok(())
            }
            Err(error) => Err(self.nonsense(&error)),
        }
    }

    fn nonsense(&self, error: &serde_json::Error) -> BackupError {
        let text = error.to_string();
        // It takes each line for the first.
        let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
        let later = if error.is_data() { "; was it written by a later version?" } else { "" };
        self.damaged(format!("column {}: {what}{later}", error.column()))
    }

    fn damaged(&self, problem: impl Into<String>) -> BackupError {
        BackupError::Damaged { line: self.lines, problem: problem.into() }
    }
}

const AFTER_LAST: &str = "it comes after the last one";

/// The unit files that this version of Muster would not take if they were submitted, and why.
pub fn refused_files(durable: &Durable) -> Vec<(UnitName, String)> {
    let refused = |(name, content): (&UnitName, &muster_core::leader::StoredFile)| {
        let why = match UnitFile::parse(content.as_bytes()) {
            Err(error) => error.to_string(),
            Ok(file) => {
                let errors = Options::parse(name, &file).err()?;
                errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }
        };
        Some((name.clone(), why))
    };
    durable.files.iter().filter_map(refused).collect()
}
