//! Units tied by `MachineOf=`: placed together on one machine, or not at all.

use std::collections::BTreeSet;
use std::fmt;

use super::{Leader, Unit};
use crate::ids::MachineId;
use crate::placement::Refusal;
use crate::planted::{self, Fault};
use crate::state::DesiredState;
use crate::unit::UnitName;

/// Units that wait and are placed together.
#[derive(Debug)]
pub(super) struct Group {
    /// All of them; the one that was asked for comes first.
    pub(super) units: Vec<UnitName>,
    /// Where they must go, and for which of them that is so: a unit that it is tied to is there.
    pinned: Option<(MachineId, UnitName, UnitName)>,
    /// Global units that must be on the machine, and which unit says so.
    globals: Vec<(UnitName, UnitName)>,
}

/// Why a unit cannot be placed on any machine, whatever the machines are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ungrouped {
    /// No such unit as it is tied to is known.
    TargetUnknown { unit: UnitName, target: UnitName },
    /// A unit that it is tied to is inactive.
    TargetInactive { unit: UnitName, target: UnitName },
    /// A unit that it is tied to cannot be placed itself.
    TargetAway { unit: UnitName, target: UnitName },
    /// Units that it is tied to are on different machines.
    TargetsApart { unit: UnitName },
}

impl fmt::Display for Ungrouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TargetUnknown { unit, target } => {
                write!(f, "MachineOf={target} of {unit}: no such unit; submit it, or mend the name")
            }
            Self::TargetInactive { unit, target } => {
                write!(f, "MachineOf={target} of {unit}: it is inactive; load or start it")
            }
            Self::TargetAway { unit, target } => {
                write!(f, "MachineOf={target} of {unit}: it cannot be placed itself")
            }
            Self::TargetsApart { unit } => {
                write!(f, "MachineOf= of {unit} names units on different machines")
            }
        }
    }
}

impl Group {
    /// The unit that decides where these go, if they are tied to one.
    pub(super) fn tied_to(&self) -> Option<UnitName> {
        match (&self.pinned, self.units.as_slice()) {
            (Some((_, _, target)), _) => Some(target.clone()),
            (None, [first, _, ..]) => Some(first.clone()),
            (None, _) => None,
        }
    }
}

impl Leader {
    /// The units that must be placed together with this one, which waits.
    pub(super) fn group(&self, name: &UnitName) -> Result<Group, Ungrouped> {
        let Some(unit) = self.units.get(name) else {
            return Err(Ungrouped::TargetUnknown { unit: name.clone(), target: name.clone() });
        };
        if !self.is_tied(name, unit) || planted::is(Fault::GroupSplit) {
            return Ok(Group { units: vec![name.clone()], pinned: None, globals: Vec::new() });
        }
        let mut excluded = BTreeSet::new();
        loop {
            let members = self.tied(name, &excluded);
            let unfit = members.iter().find_map(|member| Some((member, self.unfit(member, &members)?)));
            match unfit {
                Some((member, why)) if member == name => return Err(why),
                Some((member, _)) => {
                    excluded.insert(member.clone());
                }
                None => return self.pin(name, members),
            }
        }
    }

    /// Whether the unit is tied to another one, known or not.
    pub(super) fn is_tied(&self, name: &UnitName, unit: &Unit) -> bool {
        !unit.options.machine_of.is_empty() || self.followers.contains_key(name)
    }

    /// This unit, and all that wait and are tied to it, directly or over others that wait.
    pub(super) fn tied(&self, name: &UnitName, excluded: &BTreeSet<UnitName>) -> BTreeSet<UnitName> {
        let mut members = BTreeSet::from([name.clone()]);
        let mut next = vec![name.clone()];
        while let Some(member) = next.pop() {
            let targets = self.units.get(&member).into_iter().flat_map(|unit| &unit.options.machine_of);
            let followers = self.followers.get(&member).into_iter().flatten();
            for other in targets.chain(followers) {
                let waits = self.units.get(other).is_some_and(|unit| self.waits(other, unit));
                if waits && !excluded.contains(other) && members.insert(other.clone()) {
                    next.push(other.clone());
                }
            }
        }
        members
    }

    /// Why this member can be placed with none of the others.
    fn unfit(&self, name: &UnitName, members: &BTreeSet<UnitName>) -> Option<Ungrouped> {
        let unit = self.units.get(name)?;
        let mut machines = BTreeSet::new();
        for target in &unit.options.machine_of {
            let tie = || (name.clone(), target.clone());
            let Some(other) = self.units.get(target) else {
                let (unit, target) = tie();
                return Some(Ungrouped::TargetUnknown { unit, target });
            };
            if other.desired == DesiredState::Inactive {
                let (unit, target) = tie();
                return Some(Ungrouped::TargetInactive { unit, target });
            }
            if other.options.global {
                continue;
            }
            match self.live_machine(other) {
                Some(machine) => {
                    machines.insert(machine);
                }
                None if members.contains(target) => {}
                None => {
                    let (unit, target) = tie();
                    return Some(Ungrouped::TargetAway { unit, target });
                }
            }
        }
        (machines.len() > 1).then(|| Ungrouped::TargetsApart { unit: name.clone() })
    }

    /// Where the members must go because of units that are placed already.
    fn pin(&self, name: &UnitName, mut members: BTreeSet<UnitName>) -> Result<Group, Ungrouped> {
        members.remove(name);
        let units: Vec<UnitName> = std::iter::once(name.clone()).chain(members).collect();
        let mut pinned: Option<(MachineId, UnitName, UnitName)> = None;
        let mut globals = Vec::new();
        for member in &units {
            let Some(unit) = self.units.get(member) else { continue };
            for target in &unit.options.machine_of {
                let Some(other) = self.units.get(target) else { continue };
                if other.options.global {
                    globals.push((member.clone(), target.clone()));
                } else if let Some(machine) = self.live_machine(other) {
                    if pinned.as_ref().is_some_and(|(pinned, ..)| *pinned != machine) {
                        return Err(Ungrouped::TargetsApart { unit: member.clone() });
                    }
                    pinned = Some((machine, member.clone(), target.clone()));
                }
            }
        }
        Ok(Group { units, pinned, globals })
    }

    /// Whether the units that the group is tied to are on this machine.
    pub(super) fn group_may_be_on(&self, group: &Group, machine: MachineId) -> Result<(), Refusal> {
        let elsewhere = group.pinned.as_ref().filter(|(pinned, ..)| *pinned != machine);
        if let Some((_, unit, target)) = elsewhere {
            return Err(Refusal::MachineOf { unit: unit.clone(), target: target.clone() });
        }
        for (unit, target) in &group.globals {
            let there = |unit: &Unit| unit.placements.contains_key(&machine);
            if !self.units.get(target).is_some_and(there) {
                return Err(Refusal::MachineOf { unit: unit.clone(), target: target.clone() });
            }
        }
        Ok(())
    }
}
