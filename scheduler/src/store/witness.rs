//! Whether the store is as it was written last, or an older copy of it that somebody has put in its place.
//!
//! Of what an older copy does not hold, machines know that hold a lease, perhaps, and cannot be heard: after such a start
//! exclusive units must wait. A file outside the state directory tells, since no copy of that brings it back: it holds
//! how often the store was committed to. It lies in `/run`: after a boot nobody knows, and that is as if it were a copy.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use muster_core::ids::ClusterId;
use tracing::warn;

/// The name of the file.
const FILE_NAME: &str = "commits";

/// The file. It says nothing for as long as what an older copy lacks may still matter.
#[derive(Debug)]
pub(super) struct Witness {
    path: PathBuf,
    cluster: ClusterId,
    commits: u64,
    doubt: Duration,
    doubted_until: Option<Instant>,
    file: Option<File>,
}

impl Witness {
    /// The witness in this directory of a store that was committed to so many times. It starts to doubt a store that is
    /// not the latest, and for as long a time as is given; but not one that was made just now, for a new cluster: of that
    /// nobody knows anything yet.
    pub fn open(directory: &Path, cluster: ClusterId, commits: u64, made: bool, doubt: Duration) -> Self {
        let path = directory.join(FILE_NAME);
        let mut witness = Self { path, cluster, commits, doubt, doubted_until: None, file: None };
        if !made && !witness.testifies(commits) {
            witness.doubt();
        }
        witness
    }

    /// Whether nothing was committed that the store does not hold, as far as that can be known.
    pub fn is_sure(&self) -> bool {
        self.doubted_until.is_none()
    }

    /// What the file says is what the store holds, or one commit less: it is written after each. (A store that holds more
    /// was set aside when this one was written.)
    fn testifies(&self, commits: u64) -> bool {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let cluster = words.next().and_then(|word| word.parse::<ClusterId>().ok());
        let known = words.next().and_then(|word| word.parse::<u64>().ok());
        cluster == Some(self.cluster)
            && known.is_some_and(|known| commits.checked_sub(known).is_some_and(|more| more <= 1))
    }

    /// The store may be older than what was decided.
    pub fn doubt(&mut self) {
        self.doubted_until = Some(Instant::now() + self.doubt);
        self.file = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %self.path.display(), %error, "cannot remove what tells whether the store is the latest");
            }
            _ => {}
        }
    }

    /// A backup, of this cluster, has taken the place of what the store held.
    pub fn replaced(&mut self, cluster: ClusterId, commits: u64) {
        self.cluster = cluster;
        self.doubt();
        self.committed(commits);
    }

    /// The store was committed to: so many times by now.
    pub fn committed(&mut self, commits: u64) {
        self.commits = commits;
        if self.doubted_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.doubted_until = None;
        // Of one length always, so that no rest of what was written before is left.
        let text = format!("{} {commits:020}\n", self.cluster);
        let mut write = || {
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(File::create(&self.path)?),
            };
            file.write_all_at(text.as_bytes(), 0)
        };
        if let Err(error) = write() {
            warn!(path = %self.path.display(), %error, "cannot write down how far the store is written");
            self.doubt();
        }
    }
}

impl Drop for Witness {
    /// What was committed while it doubted it has not written down, and there may have been nothing since.
    fn drop(&mut self) {
        self.committed(self.commits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_has_no_older_copies() {
        let directory = tempfile::tempdir().unwrap();
        let open = |commits, made| {
            Witness::open(directory.path(), ClusterId::new(1), commits, made, Duration::from_secs(3600))
        };
        let mut witness = open(0, true);
        assert!(witness.is_sure());
        witness.committed(1);
        drop(witness);
        assert!(open(1, false).is_sure());
        assert!(!open(0, false).is_sure());
    }

    #[test]
    fn what_was_committed_during_the_doubt_counts_when_that_is_over() {
        const LONG: Duration = Duration::from_secs(3600);
        let directory = tempfile::tempdir().unwrap();
        let open = |commits| Witness::open(directory.path(), ClusterId::new(1), commits, false, LONG);
        let mut witness = open(0);
        witness.committed(3);
        drop(witness);
        let mut witness = open(3);
        assert!(!witness.is_sure(), "the one before has doubted to its end");
        witness.committed(4);
        witness.doubted_until = Some(Instant::now());
        drop(witness);
        assert!(open(4).is_sure());
    }
}
