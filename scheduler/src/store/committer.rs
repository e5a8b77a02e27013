//! The thread that commits: while the disk is busy with one commit, the next batches gather and share the one after it.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use muster_core::ids::{CommitId, Term};
use muster_core::leader::{Change, Durable};
use tracing::{debug, error, warn};

use super::{CommitError, Store};

/// How many changes a commit takes in, apart from those of its first batch: a bound to what waits for one flush.
const GROUP_CHANGES: usize = 30_000;

/// What became of what the committer was given.
#[derive(Debug)]
pub enum Committed {
    /// This batch and all before it are durable.
    Upto(CommitId),
    /// A commit failed for certain, and all that were given after it are dropped until [`Committer::resume`].
    Failed {
        /// Why.
        reason: String,
        /// What the store holds.
        durable: Box<Durable>,
    },
    /// A new term was taken; what is committed from now on is committed under it.
    TermTaken(Term),
    /// A term was not taken, for certain; what is committed goes on under the present one.
    TermNotTaken,
    /// A backup has taken the place of what the store held: this leader must stop. Nothing is committed any more, and
    /// [`Committer::finish`] gives the store.
    Replaced,
    /// A backup was not taken, for certain, for this reason; what is committed goes on as before.
    NotReplaced(String),
    /// What the store holds is not known, or another leads: this leader must stop. Nothing is committed any more.
    Lost(CommitError),
}

enum Job {
    Commit(CommitId, Vec<Change>),
    TakeTerm(Term),
    Replace(Box<Durable>, Term),
    Resume,
}

/// A thread that owns a store.
#[derive(Debug)]
pub struct Committer {
    jobs: Sender<Job>,
    thread: JoinHandle<Option<Box<dyn Store>>>,
}

impl Committer {
    /// Starts the thread, which commits under this term and calls `tell` with what became of it.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub fn start(
        store: Box<dyn Store>,
        term: Term,
        tell: impl Fn(Committed) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, received) = mpsc::channel();
        let work = Work { store, term, failed: false, tell };
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || work.run(&received))?;
        Ok(Self { jobs, thread })
    }

    /// Commits this batch after those before it.
    pub fn commit(&self, id: CommitId, changes: Vec<Change>) {
        self.give(Job::Commit(id, changes));
    }

    /// Takes a term above this one, after the batches before it.
    pub fn take_term(&self, above: Term) {
        self.give(Job::TakeTerm(above));
    }

    /// The leader knows of the failure that it was told last: the batches that follow build on what the store holds.
    pub fn resume(&self) {
        self.give(Job::Resume);
    }

    /// Has this take the place of all that the store holds, after the batches before it, with terms above that one.
    pub fn replace(&self, durable: Box<Durable>, above: Term) {
        self.give(Job::Replace(durable, above));
    }

    /// Commits what was given, and ends the thread. Gives the store where a backup has taken the place of what it held.
    pub fn finish(self) -> Option<Box<dyn Store>> {
        drop(self.jobs);
        self.thread.join().unwrap_or_else(|_| {
            error!("the store's thread panicked");
            None
        })
    }

    fn give(&self, job: Job) {
        // It ends before its sender only after `Lost` or `Replaced`, which is on its way to the leader then.
        if self.jobs.send(job).is_err() {
            debug!("the store's thread has ended");
        }
    }
}

struct Work<T> {
    store: Box<dyn Store>,
    term: Term,
    /// Whether what is given builds on a batch that failed.
    failed: bool,
    tell: T,
}

impl<T: Fn(Committed)> Work<T> {
    /// Gives the store where a backup has taken the place of what it held.
    fn run(mut self, jobs: &Receiver<Job>) -> Option<Box<dyn Store>> {
        let mut next = jobs.recv().ok();
        while let Some(job) = next.take() {
            let result = match job {
                Job::Resume => {
                    self.failed = false;
                    Ok(())
                }
                Job::TakeTerm(above) => self.take_term(above),
                // The leader believed something of the cluster that is not so.
                Job::Replace(..) if self.failed => {
                    let reason = "a change that was made before could not be written".to_owned();
                    (self.tell)(Committed::NotReplaced(reason));
                    Ok(())
                }
                Job::Replace(durable, above) => match self.store.replace(*durable, above) {
                    Ok(()) => {
                        (self.tell)(Committed::Replaced);
                        return Some(self.store);
                    }
                    Err(CommitError::Failed(reason)) => {
                        warn!(%reason, "a backup could not be restored, and nothing of it was written");
                        (self.tell)(Committed::NotReplaced(reason));
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Job::Commit(..) if self.failed => Ok(()),
                Job::Commit(mut id, mut changes) => {
                    let most = changes.len().saturating_add(GROUP_CHANGES);
                    while let Ok(job) = jobs.try_recv() {
                        match job {
                            Job::Commit(later, more) if changes.len() + more.len() <= most => {
                                id = later;
                                changes.extend(more);
                            }
                            other => {
                                next = Some(other);
                                break;
                            }
                        }
                    }
                    self.commit(id, changes)
                }
            };
            if let Err(error) = result {
                (self.tell)(Committed::Lost(error));
                return None;
            }
            next = next.or_else(|| jobs.recv().ok());
        }
        None
    }

    fn commit(&mut self, id: CommitId, changes: Vec<Change>) -> Result<(), CommitError> {
        match self.store.commit(self.term, changes) {
            Ok(()) => (self.tell)(Committed::Upto(id)),
            Err(CommitError::Failed(reason)) => {
                warn!(%reason, "a commit failed, and nothing of it was written");
                let durable = Box::new(self.store.load().map_err(CommitError::Unknown)?);
                self.failed = true;
                (self.tell)(Committed::Failed { reason, durable });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take_term(&mut self, above: Term) -> Result<(), CommitError> {
        match self.store.take_term(above) {
            Ok(term) => {
                self.term = term;
                (self.tell)(Committed::TermTaken(term));
            }
            Err(CommitError::Failed(reason)) => {
                warn!(%reason, "a higher term could not be taken");
                (self.tell)(Committed::TermNotTaken);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
