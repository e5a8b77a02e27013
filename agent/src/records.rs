//! The two small files that the agent keeps: what it knows of this boot, and where the machine belongs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use muster_core::agent::{Ledger, Membership};
use muster_core::ids::{AgentKey, BootId};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::files::{replace, replace_for_good};

/// Where the two files are.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    ledger: PathBuf,
    membership: PathBuf,
}

impl Records {
    /// Makes the directories that do not exist.
    pub(crate) fn open(run_dir: &Path, state_dir: &Path) -> Result<Self> {
        for directory in [run_dir, state_dir] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(Self { ledger: run_dir.join("ledger.json"), membership: state_dir.join("agent.json") })
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

    /// Replaces the membership so that it survives a power cut.
    pub(crate) fn save_membership(&self, membership: Membership) -> io::Result<()> {
        replace_for_good(&self.membership, &serde_json::to_vec(&membership)?)
    }
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
