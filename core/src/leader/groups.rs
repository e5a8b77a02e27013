//! Units that are tied: placed together on one machine, or not at all. `MachineOf=` ties a unit to others, and a socket, a
//! timer or a path is tied to the unit that it activates, where the cluster knows that: what it starts must be there.

use std::collections::BTreeSet;
use std::fmt;

use super::{Leader, Unit};
use crate::ids::MachineId;
use crate::placement::{Refusal, Tie};
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
    TargetUnknown(Tie),
    /// A unit that it is tied to is inactive.
    TargetInactive(Tie),
    /// A unit that it is tied to cannot be placed itself.
    TargetAway(Tie),
    /// Units that it is tied to are on different machines.
    TargetsApart { unit: UnitName },
}

impl fmt::Display for Ungrouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TargetUnknown(tie) => write!(f, "{tie}: no such unit; submit it, or mend the name"),
            Self::TargetInactive(tie) => write!(f, "{tie}: it is inactive; load or start it"),
            Self::TargetAway(tie) => write!(f, "{tie}: it cannot be placed itself"),
            Self::TargetsApart { unit } => {
                write!(f, "MachineOf= of {unit} names units on different machines")
            }
        }
    }
}

impl Group {
    /// A unit by itself.
    pub(super) fn of_one(name: &UnitName) -> Self {
        Self { units: vec![name.clone()], pinned: None, globals: Vec::new() }
    }

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
            let (unit, target) = (name.clone(), name.clone());
            return Err(Ungrouped::TargetUnknown(Tie { unit, target, activates: false }));
        };
        if !self.is_tied(name, unit) || planted::is(Fault::GroupSplit) {
            return Ok(Group::of_one(name));
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
        self.targets(unit).next().is_some() || self.followers.contains_key(name)
    }

    /// The units that the unit is tied to: it must be where they are.
    pub(super) fn targets<'a>(&'a self, unit: &'a Unit) -> impl Iterator<Item = &'a UnitName> {
        let known =
            |target: &&UnitName| unit.options.machine_of.contains(*target) || self.units.contains_key(target);
        unit.options.tied_to().filter(known)
    }

    /// Whether all that these are tied to is on this machine, or among them.
    pub(super) fn targets_are_on(&self, party: &[UnitName], machine: MachineId) -> bool {
        let targets =
            party.iter().filter_map(|name| self.units.get(name)).flat_map(|unit| self.targets(unit));
        targets.into_iter().all(|target| {
            let there = |unit: &Unit| unit.placements.contains_key(&machine);
            party.contains(target) || self.units.get(target).is_some_and(there)
        })
    }

    fn tie(&self, unit: &UnitName, target: &UnitName) -> Tie {
        let named = self.units.get(unit).is_some_and(|unit| unit.options.machine_of.contains(target));
        Tie { unit: unit.clone(), target: target.clone(), activates: !named }
    }

    /// This unit, and all that wait and are tied to it, directly or over others that wait.
    pub(super) fn tied(&self, name: &UnitName, excluded: &BTreeSet<UnitName>) -> BTreeSet<UnitName> {
        let mut members = BTreeSet::from([name.clone()]);
        let mut next = vec![name.clone()];
        while let Some(member) = next.pop() {
            let targets = self.units.get(&member).into_iter().flat_map(|unit| self.targets(unit));
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
        for target in self.targets(unit) {
            let tie = || self.tie(name, target);
            let Some(other) = self.units.get(target) else {
                return Some(Ungrouped::TargetUnknown(tie()));
            };
            if other.desired == DesiredState::Inactive {
                return Some(Ungrouped::TargetInactive(tie()));
            }
            if other.options.global {
                continue;
            }
            match self.live_machine(other) {
                Some(machine) => {
                    machines.insert(machine);
                }
                None if members.contains(target) => {}
                None => return Some(Ungrouped::TargetAway(tie())),
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
            for target in self.targets(unit) {
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
            return Err(Refusal::MachineOf(self.tie(unit, target)));
        }
        for (unit, target) in &group.globals {
            let there = |unit: &Unit| unit.placements.contains_key(&machine);
            if !self.units.get(target).is_some_and(there) {
                return Err(Refusal::MachineOf(self.tie(unit, target)));
            }
        }
        Ok(())
    }
}
