//! Entries of the journal with fields of their own, by journald's native protocol: `journalctl MUSTER_UNIT=web.service`
//! finds them. A field may stand in an entry several times, which a line on standard error (and what is made for
//! `tracing`) cannot do.

use std::fmt::Display;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::log::to_journal;

const SOCKET: &str = "/run/systemd/journal/socket";
/// How long an entry may wait for a journal that is busy.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The journal of this machine.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    identifier: &'static str,
}

/// What an entry is worth, as in `syslog(3)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Somebody should look.
    Error = 3,
    /// Something is wrong.
    Warning = 4,
    /// All is as it should be.
    Info = 6,
}

impl Journal {
    /// The journal, if that is where this process logs to. `identifier` is what `journalctl` shows it as.
    pub fn open(identifier: &'static str) -> Option<Self> {
        let path = Path::new(SOCKET);
        if !to_journal() || !path.exists() {
            return None;
        }
        Self::at(path, identifier).ok()
    }

    fn at(path: &Path, identifier: &'static str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { socket, path: path.to_owned(), identifier })
    }

    /// Writes one entry.
    ///
    /// # Errors
    /// When the journal does not take it.
    pub fn send(&self, priority: Priority, message: &str, fields: &[(&str, &dyn Display)]) -> io::Result<()> {
        let mut entry = Vec::with_capacity(256);
        put(&mut entry, "PRIORITY", &(priority as u8).to_string());
        put(&mut entry, "SYSLOG_IDENTIFIER", self.identifier);
        put(&mut entry, "MESSAGE", message);
        for (name, value) in fields {
            put(&mut entry, name, &value.to_string());
        }
        // Not connected, so that a journal that is restarted is found again.
        self.socket.send_to(&entry, &self.path).map(|_| ())
    }
}

/// A value of several lines has its length before it.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_written_as_journald_reads_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let journald = UnixDatagram::bind(&path).expect("a socket");
        let journal = Journal::at(&path, "me").expect("a journal");
        let fields: [(&str, &dyn Display); 3] =
            [("MUSTER_UNIT", &"a.service"), ("MUSTER_UNIT", &"b.service"), ("MUSTER_REASON", &"two\nlines")];
        journal.send(Priority::Warning, "it happened", &fields).expect("sent");
        let mut entry = [0; 1024];
        let length = journald.recv(&mut entry).expect("an entry");
        let expected = b"PRIORITY=4\nSYSLOG_IDENTIFIER=me\nMESSAGE=it happened\nMUSTER_UNIT=a.service\n\
            MUSTER_UNIT=b.service\nMUSTER_REASON\n\x09\0\0\0\0\0\0\0two\nlines\n";
        assert_eq!(String::from_utf8_lossy(&entry[..length]), String::from_utf8_lossy(expected));
        drop(journald);
        std::fs::remove_file(&path).expect("removed");
        journal.send(Priority::Info, "nobody listens", &[]).expect_err("not sent");
        let journald = UnixDatagram::bind(&path).expect("a socket");
        journal.send(Priority::Info, "found again", &[]).expect("sent");
        assert!(journald.recv(&mut entry).expect("an entry") > 0);
    }
}
