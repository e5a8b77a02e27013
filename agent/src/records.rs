//! The two small files that the agent keeps: what it knows of this boot, and where the machine belongs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use muster_core::agent::{Ledger, Membership};
use muster_core::ids::{AgentKey, BootId};
use muster_daemon::files::replace;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tracing::warn;

/// How long the membership's file is, in bytes: longer than what it says ever is.
const MEMBERSHIP_LENGTH: usize = 512;

/// Where the two files are.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    ledger: PathBuf,
    membership: PathBuf,
    /// The room for the next membership. What it says does not count, and it may be torn.
    spare: PathBuf,
}

impl Records {
    /// Makes the directories that do not exist.
    pub(crate) fn open(run_dir: &Path, state_dir: &Path) -> Result<Self> {
        for directory in [run_dir, state_dir] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let records = Self {
            ledger: run_dir.join("ledger.json"),
            membership: state_dir.join("agent.json"),
            spare: state_dir.join("agent.json~"),
        };
        // One that was saved by an older version has none beside it.
        if records.membership.exists() {
            records.make_room();
        }
        Ok(records)
    }

    /// What was known of this boot before the agent was restarted; nothing of an earlier boot holds any more.
    pub(crate) fn ledger(&self, boot: BootId) -> Result<Ledger> {
        let ledger: Option<Ledger> = read(&self.ledger)?;
        Ok(ledger
            .filter(|ledger| ledger.boot == boot)
            .unwrap_or_else(|| Ledger::new(boot, AgentKey::new(uuid::Uuid::new_v4().as_u128()))))
    }

    pub(crate) fn membership(&self) -> Result<Membership> {
        Ok(read(&self.membership)?.unwrap_or_default())
    }

    /// Replaces the ledger. It is kept where a reboot removes it, so nothing is flushed to a disk.
    pub(crate) fn save_ledger(&self, ledger: &Ledger) -> io::Result<()> {
        replace(&self.ledger, &serde_json::to_vec(ledger)?)
    }

    /// Replaces the membership so that it survives a power cut. But for the first time that takes no room on the file system,
    /// which may be full (a machine that cannot take a scheduler's new term is lost): the spare file is overwritten, and
    /// takes the place of the other, which is the next spare. A file system that writes every change to a new place (btrfs,
    /// ZFS) may refuse all the same.
    pub(crate) fn save_membership(&self, membership: Membership) -> io::Result<()> {
        let mut text = serde_json::to_vec(&membership)?;
        text.resize(text.len().max(MEMBERSHIP_LENGTH - 1), b' ');
        text.push(b'\n');
        overwrite(&self.spare, &text)?;
        match renameat_with(CWD, &self.spare, CWD, &self.membership, RenameFlags::EXCHANGE) {
            // There is none yet, or the file system cannot do that.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => fs::rename(&self.spare, &self.membership)?,
            outcome => outcome?,
        }
        let directory = self.membership.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()?;
        self.make_room();
        Ok(())
    }

    /// Sees to it that there is a spare file as long as the next membership.
    fn make_room(&self) {
        let length = fs::metadata(&self.spare).map_or(0, |spare| spare.len());
        if length < MEMBERSHIP_LENGTH as u64
            && let Err(error) = overwrite(&self.spare, &[b' '; MEMBERSHIP_LENGTH])
        {
            warn!(%error, "cannot set room aside for a scheduler's next term, which is not obeyed while the disk is full");
        }
    }
}

/// Writes a file's content where the one before was, down to the disk.
fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(content, 0)?;
    // What was longer leaves nothing behind.
    file.set_len(content.len() as u64)?;
    file.sync_all()
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    // Not started afresh: what it held would be forgotten, and an older term obeyed. Nor without what a later version has
    // written down, and may rest on.
    let value = serde_json::from_slice(&text).map_err(|error| {
        let path = path.display();
        let why = match error.classify() {
            Category::Data => format!(
                "{path} is not as this version ({}) writes it: if a later one has written it, install that again, or move \
                 the file away to start without it",
                env!("CARGO_PKG_VERSION")
            ),
            _ => format!("{path} is damaged; move it away to start without it"),
        };
        anyhow::Error::new(error).context(why)
    })?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use muster_core::ids::{ClusterId, MachineId, SessionNumber, Term};

    use super::*;

    #[test]
    fn what_is_saved_is_read_again_in_the_same_boot() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(&directory.path().join("run"), &directory.path().join("state")).unwrap();
        assert_eq!(records.membership().unwrap(), Membership::default());
        let boot = BootId::new(1);
        let mut ledger = records.ledger(boot).unwrap();
        ledger.session = SessionNumber(7);
        records.save_ledger(&ledger).unwrap();
        assert_eq!(records.ledger(boot).unwrap(), ledger);
        assert_eq!(records.ledger(BootId::new(2)).unwrap().session, SessionNumber(0));

        let machine = Some(MachineId::new(4));
        let membership = Membership { cluster: Some(ClusterId::new(5)), term: Term(6), machine };
        records.save_membership(membership).unwrap();
        assert_eq!(records.membership().unwrap(), membership);
    }

    #[test]
    fn a_membership_takes_no_room_that_the_one_before_did_not() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path(), directory.path()).unwrap();
        let saved = |term| {
            let membership = Membership {
                cluster: Some(ClusterId::new(u128::MAX)),
                term: Term(term),
                machine: Some(MachineId::new(u128::MAX)),
            };
            records.save_membership(membership).unwrap();
            assert_eq!(records.membership().unwrap(), membership);
            let entries =
                fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
            let mut files: Vec<_> = entries.map(|file| (file.ino(), file.len(), file.blocks())).collect();
            files.sort_unstable();
            files
        };
        let first = saved(6);
        assert_eq!(first.len(), 2);
        for term in [7, u64::MAX, 8] {
            assert_eq!(saved(term), first);
        }
    }

    #[test]
    fn what_is_written_over_the_spare_does_not_count_before_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Records::open(directory.path(), directory.path()).unwrap();
        let membership = |term| Membership {
            cluster: Some(ClusterId::new(5)),
            term: Term(term),
            machine: Some(MachineId::new(4)),
        };
        // As an older version has saved it.
        let text = serde_json::to_vec(&membership(6)).unwrap();
        fs::write(directory.path().join("agent.json"), text).unwrap();
        let records = open();
        assert_eq!(fs::metadata(&records.spare).unwrap().len(), 512);
        for term in 7..10 {
            // The power went while it was written.
            fs::write(&records.spare, "{\"cluster\":null,\"term\":9").unwrap();
            assert_eq!(open().membership().unwrap(), membership(term - 1));
            records.save_membership(membership(term)).unwrap();
            assert_eq!(open().membership().unwrap(), membership(term));
        }
        // Who takes the one away begins anew, whatever the other says.
        fs::remove_file(&records.membership).unwrap();
        assert_eq!(open().membership().unwrap(), Membership::default());
        records.save_membership(membership(2)).unwrap();
        assert_eq!(open().membership().unwrap(), membership(2));
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path(), directory.path()).unwrap();
        fs::write(directory.path().join("agent.json"), "{\"cluster\":").unwrap();
        let error = format!("{:#}", records.membership().unwrap_err());
        assert!(error.contains("agent.json is damaged; move it away"), "{error}");
        // What a later version has written is none.
        fs::write(directory.path().join("agent.json"), "{\"cluster\":null,\"term\":1,\"new\":2}").unwrap();
        let error = format!("{:#}", records.membership().unwrap_err());
        assert!(error.contains("if a later one has written it, install that again"), "{error}");
        assert!(error.contains("unknown field `new`"), "{error}");
    }
}
