//! Events as clients are told of them.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, MachineId, Term};
use crate::leader::event::{Event, Severity};
use crate::unit::{Glob, UnitName};

/// Which event of a scheduler it is: its term when it started, and a number that counts from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventNumber {
    /// The term in which the scheduler that tells of it began.
    pub term: Term,
    /// Counts from 1.
    pub sequence: u64,
}

impl fmt::Display for EventNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.sequence)
    }
}

/// An event as clients are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Which it is.
    pub number: EventNumber,
    /// When, in ms of Unix time, by the scheduler's wall clock.
    pub at_ms: u64,
    /// [`Event::kind`].
    pub kind: String,
    /// [`Event::severity`].
    pub severity: Severity,
    /// [`Event::units`].
    pub units: Vec<UnitName>,
    /// [`Event::machines`].
    pub machines: Vec<MachineId>,
    /// [`Event::epoch`].
    pub epoch: Option<Epoch>,
    /// [`Event::reason`].
    pub reason: Option<String>,
    /// One sentence.
    pub message: String,
}

/// Which events a client wants. One that wants nothing in particular wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Those about these units.
    pub units: BTreeSet<UnitName>,
    /// Those about units that match.
    pub globs: Vec<Glob>,
    /// Those about these machines.
    pub machines: BTreeSet<MachineId>,
}

impl EventFilter {
    /// Whether the event is wanted.
    pub fn wants(&self, event: &Event) -> bool {
        let named = |name: &UnitName| {
            self.units.contains(name) || self.globs.iter().any(|glob| glob.matches(name.as_str()))
        };
        self.wants_all()
            || event.units().iter().any(named)
            || (!self.machines.is_empty() && event.machines().iter().any(|id| self.machines.contains(id)))
    }

    fn wants_all(&self) -> bool {
        self.units.is_empty() && self.globs.is_empty() && self.machines.is_empty()
    }
}
