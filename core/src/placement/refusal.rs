//! Why a machine does not take a unit.

use std::collections::BTreeSet;
use std::fmt;

use super::patterns::PatternId;
use crate::unit::{Bytes, Glob, MilliCpu, UnitName};

/// Why a machine does not take a unit, or a group of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The machine takes nothing new at present.
    #[error("takes no new units at present")]
    Closed,
    /// `MachineID=` of this unit names another machine.
    #[error("MachineID= of {0} names another machine")]
    MachineId(UnitName),
    /// The machine has not the label that this unit asks for.
    #[error("{unit} needs the label {key}={}, the machine has {}", .wanted.join(" or "), .has.as_deref().unwrap_or("none of that key"))]
    Metadata {
        /// The unit that asks.
        unit: UnitName,
        /// The label's key.
        key: String,
        /// Which values would do.
        wanted: Vec<String>,
        /// The machine's value.
        has: Option<String>,
    },
    /// Too little processor time is left.
    #[error("{needed} of CPU are needed, {free} are free")]
    Cpu {
        /// What the unit, or its group, reserves.
        needed: MilliCpu,
        /// What is left.
        free: MilliCpu,
    },
    /// Too little memory is left.
    #[error("{needed} of memory are needed, {free} are free")]
    Memory {
        /// What the unit, or its group, reserves.
        needed: Bytes,
        /// What is left.
        free: Bytes,
    },
    /// A unit there is in conflict with this one.
    #[error(
        "{with} is there: {}={pattern} of {}",
        if *.replaces { "Replaces" } else { "Conflicts" },
        if *.own { .unit } else { .with }
    )]
    Conflict {
        /// The unit to be placed.
        unit: UnitName,
        /// The unit that is there.
        with: UnitName,
        /// The pattern that matches.
        pattern: Glob,
        /// Whether the unit to be placed names the pattern, or the one that is there.
        own: bool,
        /// Whether it names it as what it replaces.
        replaces: bool,
    },
    /// The units of a group are in conflict with each other.
    #[error("{unit} is tied by MachineOf= to {with}, and in conflict with it: Conflicts={pattern}")]
    WithinGroup {
        /// The unit that names the pattern.
        unit: UnitName,
        /// The unit that it matches.
        with: UnitName,
        /// The pattern.
        pattern: Glob,
    },
    /// A unit that this one is tied to is on another machine.
    #[error("{0}: it is not on this machine")]
    MachineOf(Tie),
}

/// A unit that must be where another one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    /// The unit.
    pub unit: UnitName,
    /// The unit that it must be with.
    pub target: UnitName,
    /// Whether that is so since it activates that; else `MachineOf=` says so.
    pub activates: bool,
}

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, target, activates } = self;
        match activates {
            true => write!(f, "{unit} goes with {target}, which it activates"),
            false => write!(f, "MachineOf={target} of {unit}"),
        }
    }
}

/// A [`Refusal`] as the check finds it: most are of no interest to anybody, so that they must cost nothing to make.
/// Amounts are wider than those of one unit, as they are sums.
#[derive(Clone, Copy, Debug)]
pub(super) enum Misfit<'a> {
    Closed,
    MachineId { unit: &'a UnitName },
    Metadata { unit: &'a UnitName, key: &'a str, wanted: &'a BTreeSet<String> },
    Conflict { unit: &'a UnitName, id: PatternId, own: bool },
    Cpu { needed: u128, free: u128 },
    Memory { needed: u128, free: u128 },
}
