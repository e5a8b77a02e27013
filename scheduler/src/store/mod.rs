//! What survives: the one trait of all stores, and the thread that commits to one.

mod allocating;
mod committer;
mod embedded;
pub mod etcd;
mod witness;

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use muster_core::ids::Term;
use muster_core::leader::{Change, Durable};
use rustix::fs::{FlockOperation, flock};
use serde_json::error::Category;

pub use self::committer::{Committed, Committer};
pub use self::embedded::{Embedded, FILE_NAME};

/// Where a leader keeps what must survive.
///
/// One leader uses a store at a time: each takes a term, and nothing is committed under a term that was overtaken.
/// All methods wait for the disk.
pub trait Store: Send {
    /// Takes a new term, higher than `above` and than every term that was taken before. It is durable on return.
    fn take_term(&mut self, above: Term) -> Result<Term, CommitError>;

    /// Reads everything.
    fn load(&mut self) -> Result<Durable, StoreError>;

    /// Whether it is known that nothing was ever committed that this store does not hold: it is no older copy that was put
    /// in its place, nor was it for as long as that may matter.
    fn is_latest(&self) -> bool;

    /// Makes these changes, in this order: all of them or none. They are durable on return.
    fn commit(&mut self, term: Term, changes: Vec<Change>) -> Result<(), CommitError>;

    /// Holds this in place of all that it held, another cluster's perhaps, and gives no term that is not above this one any
    /// more: all of that or nothing, durable on return. From then on it is not known to be the latest. Who leads must take
    /// a new term.
    fn replace(&mut self, durable: Durable, above: Term) -> Result<(), CommitError>;
}

impl std::fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

/// What became of a commit that did not succeed. The difference decides what the leader may do next.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A later term was taken, or may be by another one: this leader leads no more.
    #[error("the election of term {ours} is over; the store is in term {later}")]
    Refused {
        /// The leader's term.
        ours: Term,
        /// The one that is in the store.
        later: Term,
    },
    /// Nothing was changed, for certain, and the store can be used as before. The text says what to do.
    #[error("{0}")]
    Failed(String),
    /// The changes may or may not be durable.
    #[error("whether the last changes were written is not known")]
    Unknown(#[source] StoreError),
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{} is in use by another process: is another muster-scheduler running on this directory?", path.display())]
    Locked {
        /// The directory of its state, or the one in `/run`.
        path: PathBuf,
    },
    /// It is written by a later (or much earlier) version.
    #[error(
        "{} has format version {found}, this muster-scheduler reads version {known}: use the version that wrote it",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The version that it has.
        found: String,
        /// The version that is known here.
        known: &'static str,
    },
    /// It is no store, or a broken one.
    #[error("{} is not a Muster store, or it is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What etcd holds, or that it does not answer.
    #[error("etcd, prefix {prefix}: {problem}")]
    Etcd {
        /// Below which it lies.
        prefix: String,
        /// What is wrong.
        problem: String,
    },
    /// The disk, or the file system.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Why a record cannot be read. One that is whole, and says what is not known here, is no damage.
fn unreadable(error: &serde_json::Error) -> String {
    match error.classify() {
        Category::Data => {
            format!("{error}; was it written by a later version? Then upgrade this muster-scheduler")
        }
        _ => error.to_string(),
    }
}

/// Makes sure that nobody else uses the directory, for as long as the file is open.
pub(crate) fn lock_directory(path: &Path) -> Result<File, StoreError> {
    let io = |doing, source| StoreError::Io { doing, path: path.to_owned(), source };
    // Unit files may hold secrets.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| io("make the directory", source))?;
    let directory = File::open(path).map_err(|source| io("open the directory", source))?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(directory),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { path: path.to_owned() }),
        Err(error) => Err(io("lock the directory", error.into())),
    }
}
