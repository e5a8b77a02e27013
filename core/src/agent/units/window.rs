//! How many jobs systemd is asked for at once.

use std::collections::BTreeSet;

use crate::unit::UnitName;

/// The most start jobs and the most stop jobs that may be pending. systemd watches the bus for whoever asked for each
/// job, and dbus-daemon allows a connection 512 such watches in all: beyond it systemd 252 leaves the bus for good.
/// Stops have their own share, so that units that are slow to start keep none from being stopped.
pub(super) const STARTS: usize = 384;
pub(super) const STOPS: usize = 64;

/// Units that have a job, at most so many, and those that wait for one of these to end.
#[derive(Debug)]
pub(super) struct Window {
    most: usize,
    /// Some of these may have ended since.
    pending: BTreeSet<UnitName>,
    waiting: BTreeSet<UnitName>,
}

impl Window {
    pub(super) fn new(most: usize) -> Self {
        Self { most, pending: BTreeSet::new(), waiting: BTreeSet::new() }
    }

    /// Whether the unit may have its job now. If not, it waits for its turn.
    pub(super) fn admits(&mut self, name: &UnitName) -> bool {
        let room = self.pending.len() < self.most;
        if room { &mut self.pending } else { &mut self.waiting }.insert(name.clone());
        room
    }

    /// Those whose turn has come, now that only these still have a job.
    pub(super) fn next(&mut self, has_job: impl Fn(&UnitName) -> bool) -> Vec<UnitName> {
        if self.pending.len() < self.most && self.waiting.is_empty() {
            return Vec::new();
        }
        self.pending.retain(has_job);
        let room = self.most - self.pending.len();
        std::iter::from_fn(|| self.waiting.pop_first()).take(room).collect()
    }
}
