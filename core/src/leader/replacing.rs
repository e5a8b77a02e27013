//! `Replaces=`: a unit that waits has others, which are in its way on a machine, placed elsewhere first.
//!
//! The two are kept apart as by `Conflicts=`, whichever of them is there first. But where nothing else speaks against the
//! machine, and all that the unit replaces there fits on other machines, that is placed there; its old copies run on until
//! the new ones are active, as in a drain. The unit itself waits until nothing of them is left, or so long has passed as
//! that may take. Nobody keeps its place meanwhile: what goes before it may take that.
//!
//! fleet placed both on the machine and then moved one of the two, without asking where it fits, and not always the one that
//! is replaced.

use std::collections::{BTreeMap, BTreeSet};

use super::groups::Group;
use super::{Leader, Machine, PlaceReason, Unit};
use crate::ids::MachineId;
use crate::machine::Availability;
use crate::planted::{self, Fault};
use crate::state::DesiredState;
use crate::time::Time;
use crate::unit::UnitName;

/// The machines that others are leaving for units which wait for that, each until when in the leader's own time. Only in memory:
/// another leader chooses anew.
pub(super) type Claims = BTreeMap<UnitName, (MachineId, Time)>;

/// Where a group goes that replaces others.
pub(super) enum Choice {
    /// There, now.
    Now(MachineId),
    /// To a machine that others are leaving for it.
    Later,
    /// Nowhere, as things are.
    Nowhere,
}

impl Leader {
    /// Whether one of these units replaces others.
    pub(super) fn replaces(&self, units: &[UnitName]) -> bool {
        let names_any = |unit: &Unit| !unit.options.replaces.is_empty();
        !self.replacers.is_empty() && units.iter().any(|name| self.units.get(name).is_some_and(names_any))
    }

    /// Chooses the least loaded machine that takes the group, or would after what the group replaces there has gone: that
    /// is placed elsewhere then. Rather one where none of the group has failed lately.
    pub(super) fn choose_replacing(&mut self, group: &Group) -> Choice {
        if self.room_being_made(&group.units).is_some() {
            return Choice::Later;
        }
        let claimed = group.units.iter().find_map(|name| self.claims.remove(name));
        if let Some((machine, _)) = claimed
            && self.group_may_be_on(group, machine).is_ok()
            && self.placer.check(&group.units, machine).is_ok()
        {
            return Choice::Now(machine);
        }
        let candidate = |machine: &MachineId| {
            self.group_may_be_on(group, *machine).is_ok() && self.old_copies_allow(&group.units, *machine)
        };
        let machines: Vec<MachineId> = self.placer.open().filter(candidate).collect();
        let failed = |machine: &MachineId| group.units.iter().any(|name| self.has_failed_on(name, *machine));
        let (tried, untried): (Vec<MachineId>, Vec<MachineId>) = machines.into_iter().partition(failed);
        let machines: Vec<MachineId> = untried.into_iter().chain(tried).collect();
        // What is lost with one machine moves nothing on others, if it fits as they are.
        let is_placed = |name| self.units.get(name).is_some_and(|unit| !unit.placements.is_empty());
        if group.units.iter().any(is_placed)
            && let Some(machine) =
                machines.iter().find(|machine| self.placer.check(&group.units, **machine).is_ok())
        {
            return Choice::Now(*machine);
        }
        for machine in machines {
            if self.placer.check(&group.units, machine).is_ok() {
                return Choice::Now(machine);
            }
            if self.make_room(&group.units, machine) {
                let waits = !planted::is(Fault::ReplacerDoesNotWait);
                return if waits { Choice::Later } else { Choice::Now(machine) };
            }
        }
        Choice::Nowhere
    }

    /// A unit that is leaving a machine for one of these, that machine, and where it goes.
    pub(super) fn room_being_made(&self, units: &[UnitName]) -> Option<(&UnitName, MachineId, MachineId)> {
        let (from, until) = units.iter().find_map(|name| self.claims.get(name)).copied()?;
        // One whose connection has just ended may be back in a moment.
        let stays =
            |machine: &Machine| machine.why_idle().is_none() && machine.availability == Availability::Open;
        if until <= self.awake() || !self.machines.get(&from).is_some_and(stays) {
            return None;
        }
        self.placer.units_on(from).find_map(|name| {
            let to = *self.units.get(name)?.placements.keys().next()?;
            (to != from && self.is_replaced_by(name, units)).then_some((name, from, to))
        })
    }

    /// What this unit has on the machine may run on until it is active elsewhere, and those that wait for that place wait
    /// so long. For a leader that has taken over.
    pub(super) fn find_claims(&mut self, name: &UnitName, machine: MachineId, until: Time) {
        for replacer in self.waiting_replacers_of(name).cloned().collect::<Vec<_>>() {
            self.claims.entry(replacer).or_insert((machine, until));
        }
    }

    /// When the next unit has waited long enough for room on one machine.
    pub(super) fn next_claim_ends(&self) -> Option<Time> {
        self.claims.values().map(|(_, until)| *until).filter(|until| *until > self.awake()).min()
    }

    /// Units that have waited long enough for room on one machine are tried on others.
    pub(super) fn end_claims(&mut self) {
        let awake = self.awake();
        let over = |(_, (_, until)): &(&UnitName, &(MachineId, Time))| *until <= awake;
        let over: Vec<UnitName> = self.claims.iter().filter(over).map(|(name, _)| name.clone()).collect();
        for name in over {
            self.claims.remove(&name);
            self.mark(&name);
        }
    }

    /// The units that wait and replace others.
    fn waiting_replacers(&self) -> impl Iterator<Item = &UnitName> {
        let waits = |name: &&UnitName| self.units.get(name).is_some_and(|unit| self.waits(name, unit));
        self.replacers.iter().filter(waits)
    }

    fn waiting_replacers_of<'a>(&'a self, name: &'a UnitName) -> impl Iterator<Item = &'a UnitName> {
        self.waiting_replacers().filter(|replacer| self.is_replaced_by(name, std::slice::from_ref(*replacer)))
    }

    /// Whether a unit that waits replaces this one.
    pub(super) fn makes_room(&self, name: &UnitName) -> bool {
        self.waiting_replacers_of(name).next().is_some()
    }

    /// The unit is on another machine, or may be moved now: those that wait and replace it are tried again.
    pub(super) fn mark_replacers_of(&mut self, name: &UnitName) {
        for replacer in self.waiting_replacers_of(name).cloned().collect::<Vec<_>>() {
            self.mark(&replacer);
        }
    }

    /// A machine takes nothing new any more: those that waited for room there are tried on others.
    pub(super) fn mark_replacers(&mut self) {
        for replacer in self.waiting_replacers().cloned().collect::<Vec<_>>() {
            self.mark(&replacer);
        }
    }

    fn is_replaced_by(&self, name: &UnitName, units: &[UnitName]) -> bool {
        let patterns =
            units.iter().filter_map(|unit| self.units.get(unit)).flat_map(|unit| &unit.options.replaces);
        !units.contains(name) && patterns.into_iter().any(|pattern| pattern.matches(name.as_str()))
    }

    /// Places what the group replaces on the machine elsewhere, if all of it fits somewhere and the group fits here then.
    fn make_room(&mut self, group: &[UnitName], machine: MachineId) -> bool {
        let Some(parties) = self.parties_replaced(group, machine) else { return false };
        let leaving: BTreeSet<UnitName> = parties.iter().flatten().cloned().collect();
        if self.placer.check_without(group, machine, &leaving).is_err() {
            return false;
        }
        if planted::is(Fault::ReplacedGoesNowhere) {
            leaving.iter().for_each(|name| self.unplace(name, machine));
            return true;
        }
        // As if those before it were placed already.
        let mut places = Vec::new();
        let mut assigned = Vec::new();
        for party in &parties {
            let also = |other| {
                other != machine && self.old_copies_allow(party, other) && self.targets_are_on(party, other)
            };
            // Rather not where one of them has failed lately.
            let untried = |other| also(other) && !party.iter().any(|name| self.has_failed_on(name, other));
            let place = self.placer.best(party, untried).or_else(|| self.placer.best(party, also));
            let Some(place) = place else { break };
            for name in party {
                if self.placer.copies(name).all(|on| on != place) {
                    self.placer.assign(name, place);
                    assigned.push((name, place));
                }
            }
            places.push(place);
        }
        for (name, place) in assigned {
            self.placer.release(name, place);
        }
        if places.len() < parties.len() {
            return false;
        }
        let replacer = group.iter().find(|name| self.replaces(std::slice::from_ref(name))).cloned();
        if let Some(replacer) = &replacer {
            self.claims.insert(replacer.clone(), (machine, self.lingers_until(machine)));
        }
        for (party, place) in parties.iter().zip(places) {
            for name in party {
                self.place_on(name, place, PlaceReason::MakesRoom, replacer.as_ref());
            }
        }
        true
    }

    /// What the group replaces on the machine, each with those that are tied to it and so go with it. None where there is
    /// nothing, or one of them must stay.
    fn parties_replaced(&self, group: &[UnitName], machine: MachineId) -> Option<Vec<Vec<UnitName>>> {
        let replaced = self.placer.replaced(group, machine)?;
        let mut parties: Vec<Vec<UnitName>> = Vec::new();
        let mut leaving = BTreeSet::new();
        for name in replaced {
            if leaving.contains(&name) {
                continue;
            }
            let mut party = vec![name];
            let mut next = 0;
            while let Some(member) = party.get(next).cloned() {
                next += 1;
                let unit = self.units.get(&member).filter(|unit| unit.placements.contains_key(&machine))?;
                if group.contains(&member)
                    || unit.options.global
                    || unit.is_being_adopted()
                    || self.is_at_work(&member, unit, machine)
                {
                    return None;
                }
                // One that is on its way stays where it goes until it has left where it was: two that replace it would move it
                // to and fro.
                if self.placer.copies(&member).nth(1).is_some() {
                    return None;
                }
                let here = |name: &&UnitName| {
                    self.units.get(name).is_some_and(|unit| unit.placements.contains_key(&machine))
                };
                let followers = self.followers.get(&member).into_iter().flatten().filter(here);
                party.extend(followers.filter(|name| !party.contains(*name)).cloned().collect::<Vec<_>>());
            }
            leaving.extend(party.iter().cloned());
            // What is tied to several goes with all of them.
            let (same, others): (Vec<_>, Vec<_>) =
                parties.into_iter().partition(|other| other.iter().any(|name| party.contains(name)));
            parties = others;
            for name in same.into_iter().flatten() {
                if !party.contains(&name) {
                    party.push(name);
                }
            }
            parties.push(party);
        }
        (!parties.is_empty()).then_some(parties)
    }

    /// Whether the unit runs to its end there, and is not done: elsewhere its work would be done a second time.
    fn is_at_work(&self, name: &UnitName, unit: &Unit, machine: MachineId) -> bool {
        let copy = self.machines.get(&machine).and_then(|machine| machine.observed.get(name));
        unit.options.ends
            && unit.desired == DesiredState::Launched
            && !unit.done
            && copy.is_none_or(super::Copy::is_at_work)
            && !planted::is(Fault::DrainRunsAgain)
    }
}
