//! What the simulated store holds, takes and refuses: as every store must, which the scheduler's own tests of stores see to.

use muster_core::ids::{ClusterId, Term};
use muster_core::leader::{Change, Durable};

/// A store, but for the time that it takes and the faults that it has.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What was committed.
    pub durable: Durable,
    /// The last term that was taken, or given as one that those must be above.
    pub term: Term,
    /// Until when it may matter that it may be older than what was decided, in microseconds of the simulation's time; none
    /// where it is not.
    pub doubted: Option<u64>,
}

impl Disk {
    /// The store of a cluster that has nothing.
    pub fn new(cluster: ClusterId) -> Self {
        Self { durable: Durable::new(cluster), term: Term(0), doubted: None }
    }

    /// A term above this one and all before it.
    pub fn take_term(&mut self, above: Term) -> Term {
        self.term = self.term.max(above).next();
        self.term
    }

    /// Makes the changes.
    ///
    /// # Errors
    /// The term that has overtaken this one. Nothing is changed then.
    pub fn commit(&mut self, term: Term, changes: Vec<Change>) -> Result<(), Term> {
        if term < self.term {
            return Err(self.term);
        }
        changes.into_iter().for_each(|change| self.durable.apply(change));
        Ok(())
    }

    /// Holds this in place of all that it held. Terms go on above this one and those before.
    pub fn replace(&mut self, durable: Durable, above: Term) {
        self.durable = durable;
        self.term = self.term.max(above);
        self.doubted = Some(u64::MAX);
    }
}
