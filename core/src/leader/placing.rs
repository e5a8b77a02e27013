//! Which unit goes where, and when that is asked again.
//!
//! A unit that waits is tried when something about it changes, on all machines; and when a machine changes to its
//! favour (it joins, something on it ends), on that machine. So the cost of an event grows with what it changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::groups::Group;
use super::replacing::Choice;
use super::{Change, Event, Leader, LingerEnd, Machine, PlaceReason, Retired, Unit, UnplaceReason, sorted};
use crate::ids::{Epoch, MachineId};
use crate::machine::MachineState;
use crate::planted::{self, Fault};
use crate::state::DesiredState;
use crate::unit::{Bytes, MilliCpu, UnitName};

/// Who goes first: the higher priority, then who asks for more, then the earlier submission. No two units have the same.
type Key = (Reverse<i32>, Reverse<Tightness>, u64);

/// How much a unit asks of a machine: those that ask for more go first, since they have fewer machines to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tightness {
    /// It names its machine.
    named: bool,
    /// How many labels it needs.
    labels: usize,
    /// How many units it must be with, and patterns it must not be with.
    company: usize,
    /// What it sets aside.
    memory: Option<Bytes>,
    cpu: Option<MilliCpu>,
}

/// The units that wait for a machine, and what has changed since they were last tried.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeMap<Key, UnitName>,
    /// Those that are to be tried on all machines; among them may be some that wait no more.
    fresh: Vec<Key>,
    /// Those of them of which was told that they fit nowhere.
    told: BTreeSet<Key>,
    /// Machines on which those that wait are to be tried.
    touched: BTreeSet<MachineId>,
    /// Global units that are to be tried on all machines.
    fresh_globals: BTreeMap<u64, UnitName>,
}

impl Queue {
    /// The machine changed to the favour of units that wait.
    pub(super) fn touch(&mut self, id: MachineId) {
        self.touched.insert(id);
    }

    /// All that wait are to be tried on all machines.
    pub(super) fn refresh(&mut self) {
        self.fresh.extend(self.waiting.keys());
    }

    pub(super) fn is_waiting(&self, unit: &Unit) -> bool {
        self.waiting.contains_key(&key(unit))
    }

    /// Takes the unit out.
    pub(super) fn remove(&mut self, unit: &Unit) {
        self.waiting.remove(&key(unit));
        self.told.remove(&key(unit));
        self.fresh_globals.remove(&unit.order);
    }

    /// Something about the unit changed: it is to be tried again if it waits for a machine, and is not in the queue if
    /// it does not. Global units wait for all machines.
    fn update(&mut self, name: &UnitName, unit: &Unit, waits: bool) {
        if waits {
            self.fresh.push(key(unit));
            self.waiting.insert(key(unit), name.clone());
        } else {
            self.remove(unit);
            if unit.options.global && unit.desired != DesiredState::Inactive && !name.is_template() {
                self.fresh_globals.insert(unit.order, name.clone());
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.fresh.is_empty() && self.touched.is_empty() && self.fresh_globals.is_empty()
    }
}

fn key(unit: &Unit) -> Key {
    let options = &unit.options;
    let tightness = Tightness {
        named: options.machine_id.is_some(),
        labels: options.metadata.len(),
        company: options.machine_of.len() + options.conflicts.len() + options.replaces.len(),
        memory: options.memory,
        cpu: options.cpu,
    };
    (Reverse(options.priority), Reverse(tightness), unit.order)
}

impl Leader {
    /// Whether the unit should be on a machine, and is on none where it may stay.
    pub(super) fn waits(&self, name: &UnitName, unit: &Unit) -> bool {
        unit.desired != DesiredState::Inactive
            && !unit.options.global
            && self.live_machine(unit).is_none()
            && !name.is_template()
    }

    /// The machine that a unit is on, if it may stay there.
    pub(super) fn live_machine(&self, unit: &Unit) -> Option<MachineId> {
        unit.placements.keys().copied().find(|id| !is_left(&self.machines, unit, *id))
    }

    /// Something about the unit changed: puts it into the queue, or takes it out.
    pub(super) fn mark(&mut self, name: &UnitName) {
        let Some(unit) = self.units.get(name) else { return };
        let waits = self.waits(name, unit);
        self.queue.update(name, unit, waits);
    }

    /// Places what waits, as far as it fits.
    pub(super) fn place(&mut self) {
        while !self.queue.is_idle() {
            let mut touched = std::mem::take(&mut self.queue.touched);
            touched.retain(|id| self.placer.is_open(*id));
            self.place_waiting(&touched);
            self.place_globals(&touched);
        }
    }

    fn place_waiting(&mut self, touched: &BTreeSet<MachineId>) {
        let fresh = sorted(std::mem::take(&mut self.queue.fresh));
        let keys: Vec<Key> =
            if touched.is_empty() { fresh.clone() } else { self.queue.waiting.keys().copied().collect() };
        let keys = self.what_is_required_first(keys);
        let mut fits_nowhere = BTreeSet::new();
        let mut waits = Vec::new();
        for key in keys {
            // It may have been placed meanwhile, together with others.
            let Some(name) = self.queue.waiting.get(&key) else { continue };
            let Ok(group) = self.group(name) else { continue };
            if self.is_held(&group.units) {
                continue;
            }
            if self.replaces(&group.units) {
                match self.choose_replacing(&group) {
                    Choice::Now(machine) => self.place_together(group, machine, false),
                    Choice::Later => {}
                    Choice::Nowhere => waits.push(key),
                }
                continue;
            }
            let is_fresh = fresh.binary_search(&key).is_ok();
            let alone = group.units.len() == 1;
            if alone && !fits_nowhere.is_empty() {
                let requirement = self.placer.requirement(name).map(|requirement| (is_fresh, requirement));
                if requirement.is_some_and(|requirement| fits_nowhere.contains(&requirement)) {
                    waits.push(key);
                    continue;
                }
            }
            let also = |machine| {
                self.group_may_be_on(&group, machine).is_ok() && self.old_copies_allow(&group.units, machine)
            };
            let best = |also: &dyn Fn(MachineId) -> bool| {
                if is_fresh {
                    self.placer.best(&group.units, also)
                } else {
                    self.placer.best_of(touched, &group.units, also)
                }
            };
            // Rather not where one of them has failed lately.
            let untried =
                |machine| also(machine) && !group.units.iter().any(|name| self.has_failed_on(name, machine));
            let machine =
                if self.anything_failed() { best(&untried).or_else(|| best(&also)) } else { best(&also) };
            if machine.is_none() {
                waits.push(key);
            }
            match machine {
                Some(machine) => self.place_together(group, machine, !is_fresh),
                // What ties a unit to others is not part of its requirement, nor what is left of it somewhere.
                None if alone
                    && self.units.get(name).is_some_and(|unit| {
                        let no_copies = || self.placer.copies(name).next().is_none();
                        self.targets(unit).next().is_none()
                            && (unit.options.exclusive.is_none() || no_copies())
                    }) =>
                {
                    fits_nowhere
                        .extend(self.placer.requirement(name).map(|requirement| (is_fresh, requirement)));
                }
                None => {}
            }
        }
        waits.retain(|key| !self.queue.told.contains(key));
        if !waits.is_empty() {
            let units = waits.iter().filter_map(|key| self.queue.waiting.get(key).cloned()).collect();
            self.queue.told.extend(waits);
            self.event(Event::FitNowhere { units });
        }
    }

    fn place_together(&mut self, group: Group, machine: MachineId, waited: bool) {
        let with = group.tied_to();
        for name in group.units {
            let reason = self.why_placed(&name, waited);
            self.place_on(&name, machine, reason, with.as_ref());
        }
    }

    /// In the same order, but what a unit requires, or is started after, goes before it: the room for one of them is no use
    /// to the one that waits.
    fn what_is_required_first(&self, keys: Vec<Key>) -> Vec<Key> {
        if self.dependents.is_empty() {
            return keys;
        }
        let among: BTreeSet<Key> = keys.iter().copied().collect();
        let mut ordered = Vec::with_capacity(keys.len());
        let (mut entered, mut left) = (BTreeSet::new(), BTreeSet::new());
        for key in keys {
            let mut stack = vec![key];
            while let Some(&next) = stack.last() {
                let waiting = self.queue.waiting.get(&next).and_then(|name| self.units.get(name));
                let required = waiting.into_iter().flat_map(|unit| unit.options.dependencies());
                let before = required
                    .filter_map(|name| self.units.get(name).map(self::key))
                    .filter(|before| among.contains(before) && !entered.contains(before));
                let before: Vec<Key> = before.collect();
                if entered.insert(next) && !before.is_empty() {
                    stack.extend(before);
                    continue;
                }
                stack.pop();
                if left.insert(next) {
                    ordered.push(next);
                }
            }
        }
        ordered
    }

    /// Whether the brake, its own work, or how many units are on their way already, keeps one of these where it is.
    fn is_held(&self, units: &[UnitName]) -> bool {
        if self.may_run_to_its_end(units) {
            return true;
        }
        let on = |name| self.units.get(name).into_iter().flat_map(|unit| unit.placements.keys());
        let mut machines = units.iter().flat_map(on);
        machines.any(|machine| self.is_braked(*machine) || self.moves_enough(*machine))
    }

    /// Global units go wherever they fit, the one submitted first before the others.
    fn place_globals(&mut self, touched: &BTreeSet<MachineId>) {
        let fresh = std::mem::take(&mut self.queue.fresh_globals);
        if fresh.is_empty() && touched.is_empty() {
            return;
        }
        let candidates = if touched.is_empty() { &fresh } else { &self.globals };
        let mut chosen = Vec::new();
        for (order, name) in &candidates.clone() {
            let Some(unit) = self.units.get(name) else { continue };
            if unit.desired == DesiredState::Inactive {
                continue;
            }
            let everywhere: Vec<MachineId> = if fresh.contains_key(order) {
                self.placer.open().collect()
            } else {
                touched.iter().copied().collect()
            };
            for machine in everywhere {
                let there = self.units.get(name).is_some_and(|unit| unit.placements.contains_key(&machine));
                if !there && self.placer.check(std::slice::from_ref(name), machine).is_ok() {
                    self.place_on(name, machine, PlaceReason::Global, None);
                    chosen.push(name.clone());
                }
            }
        }
        for name in chosen {
            self.mark_followers(&name);
        }
    }

    /// The unit changed, and with it the group of those that wait with it.
    pub(super) fn mark_tied(&mut self, name: &UnitName) {
        let Some(unit) = self.units.get(name) else { return };
        if self.is_tied(name, unit) {
            for tied in self.tied(name, &BTreeSet::new()) {
                self.mark(&tied);
            }
        } else {
            let waits = self.waits(name, unit);
            self.queue.update(name, unit, waits);
        }
    }

    /// Units that are tied to this one may fit now.
    pub(super) fn mark_followers(&mut self, name: &UnitName) {
        for follower in self.followers.get(name).cloned().unwrap_or_default() {
            if self.units.get(&follower).is_some_and(|unit| self.waits(&follower, unit)) {
                self.mark(&follower);
            }
        }
    }

    /// Decides that the unit is on this machine from now on, for this reason, and together with that unit.
    pub(super) fn place_on(
        &mut self,
        name: &UnitName,
        machine: MachineId,
        reason: PlaceReason,
        with: Option<&UnitName>,
    ) {
        let Some(unit) = self.units.get(name) else { return };
        let from = if unit.options.global { None } else { unit.placements.keys().next().copied() };
        if let Some(from) = from.filter(|from| *from != machine) {
            self.unplace(name, from);
            self.linger(name, from);
        }
        let epoch = self.mint();
        self.set_placement(name, machine, epoch);
        if from.is_some_and(|from| from != machine) {
            // Those that could not be with it where it was.
            self.mark_followers(name);
        } else if from.is_none() && self.activators.contains_key(name) {
            // What activates it may have been placed before it was known.
            self.unplace_followers(name);
        }
        let with = with.filter(|with| *with != name).cloned();
        self.event(Event::Placed { unit: name.clone(), machine, from, epoch, reason, with });
    }

    /// Why the unit is to be on another machine: since that one asked for units (`waited`), or for its own sake.
    fn why_placed(&self, name: &UnitName, waited: bool) -> PlaceReason {
        let Some(unit) = self.units.get(name) else { return PlaceReason::default() };
        let from = unit.placements.keys().next();
        match from.and_then(|from| self.machines.get(from)) {
            _ if unit.options.global => PlaceReason::Global,
            None if waited => PlaceReason::Waited,
            None => unit.why,
            Some(machine) if machine.record.leaving => PlaceReason::MachineLeaves,
            Some(machine) if machine.state == MachineState::Unreachable => PlaceReason::MachineLost,
            Some(_) => PlaceReason::MachineDrained,
        }
    }

    /// Tells that the unit has another placement where it is.
    pub(super) fn placed_anew(
        &mut self,
        name: &UnitName,
        machine: MachineId,
        epoch: Epoch,
        reason: PlaceReason,
    ) {
        let from = Some(machine);
        self.event(Event::Placed { unit: name.clone(), machine, from, epoch, reason, with: None });
    }

    /// Records that the unit is on this machine, as this placement. Copies there that were ended before are covered:
    /// the machine stops what is older than what it is told to hold.
    pub(super) fn set_placement(&mut self, name: &UnitName, machine: MachineId, epoch: Epoch) {
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.placements.insert(machine, epoch);
        if unit.placements.keys().any(|id| !is_left(&self.machines, unit, *id)) {
            self.queue.remove(unit);
        }
        if unit.options.is_gated() {
            self.gates.look_at(name);
        }
        self.forget_move(machine, name);
        self.placer.assign(name, machine);
        self.mark_replacers_of(name);
        if self.retired.remove(&(machine, name.clone())).is_some() {
            self.turn.changes.push(Change::DeleteRetired(machine, name.clone()));
        }
        self.turn.records.push(name.clone());
        self.turn.tell(machine, name);
        self.turn.seen.push(name.clone());
    }

    /// Decides that the unit is not on this machine any more. What it has there counts until it is gone.
    pub(super) fn unplace(&mut self, name: &UnitName, machine: MachineId) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let exclusive = unit.options.exclusive;
        let Some(epoch) = unit.placements.remove(&machine) else { return };
        self.gates.forget(machine, name);
        self.retire(machine, name, Retired { epoch, exclusive, release: false });
        if planted::is(Fault::EndingCopiesNotCounted) {
            self.placer.release(name, machine);
        }
        self.turn.records.push(name.clone());
    }

    /// Records the end of the unit's copies on this machine up to this epoch.
    pub(super) fn retire(&mut self, machine: MachineId, name: &UnitName, mut retired: Retired) {
        if let Some(known) = self.retired.get(&(machine, name.clone())) {
            retired.epoch = retired.epoch.max(known.epoch);
            let both = retired.exclusive.zip(known.exclusive);
            retired.exclusive = both.map(|(one, other)| one.max(other));
        }
        self.retired.insert((machine, name.clone()), retired);
        self.turn.changes.push(Change::PutRetired(machine, name.clone(), retired));
        self.turn.tell(machine, name);
        self.turn.seen.push(name.clone());
    }

    /// Decides that the unit is on no machine, and with it those that are tied to it.
    pub(super) fn unplace_all(&mut self, name: &UnitName) {
        self.end_lingering(name, LingerEnd::Overtaken);
        let machines: Vec<MachineId> =
            self.units.get(name).map(|unit| unit.placements.keys().copied().collect()).unwrap_or_default();
        for machine in machines {
            self.unplace(name, machine);
        }
        self.mark(name);
    }

    /// Takes those off their machine that are tied to a unit that is not there any more, and those tied to them.
    pub(super) fn unplace_followers(&mut self, name: &UnitName) {
        if planted::is(Fault::FollowersStay) {
            return;
        }
        let mut targets = vec![name.clone()];
        while let Some(target) = targets.pop() {
            let on: BTreeSet<MachineId> = self
                .units
                .get(&target)
                .map(|unit| unit.placements.keys().copied().collect())
                .unwrap_or_default();
            for follower in self.followers.get(&target).cloned().unwrap_or_default() {
                let Some(unit) = self.units.get(&follower) else { continue };
                let tied = self.targets(unit).any(|other| *other == target);
                let off = tied && unit.placements.keys().any(|machine| !on.contains(machine));
                if off {
                    for machine in unit.placements.keys().copied().collect::<Vec<_>>() {
                        let (unit, reason) = (follower.clone(), UnplaceReason::TargetLeft);
                        self.event(Event::Unplaced { unit, machine, reason });
                    }
                    if let Some(unit) = self.units.get_mut(&follower) {
                        unit.why = PlaceReason::TargetMoved;
                    }
                    self.unplace_all(&follower);
                    targets.push(follower);
                } else {
                    self.mark(&follower);
                }
            }
        }
    }

    /// Places the unit anew where it is: it stops there and starts again. Where it does not fit any more (its options
    /// changed), it goes elsewhere.
    pub(super) fn place_again(&mut self, name: &UnitName) {
        let Some(unit) = self.units.get(name) else { return };
        let machines: Vec<MachineId> = unit.placements.keys().copied().collect();
        let global = unit.options.global;
        for machine in machines {
            let one_of_many = placements_exceed(global, self.units.get(name));
            let fits = !one_of_many && self.still_fits(name, machine);
            if fits {
                let epoch = self.mint();
                self.set_placement(name, machine, epoch);
                self.placed_anew(name, machine, epoch, PlaceReason::Replaced);
            } else {
                let (unit, reason) = (name.clone(), UnplaceReason::NoLongerFits);
                self.event(Event::Unplaced { unit, machine, reason });
                self.unplace(name, machine);
            }
        }
        if self.units.get(name).is_some_and(|unit| unit.placements.is_empty()) {
            // There is nothing whose start it would be waited for.
            self.end_lingering(name, LingerEnd::Overtaken);
        }
        self.unplace_followers(name);
        self.mark(name);
    }

    /// Whether the unit may stay on the machine with its present options. A machine that takes nothing new keeps what
    /// it has.
    fn still_fits(&self, name: &UnitName, machine: MachineId) -> bool {
        self.targets_are_on(std::slice::from_ref(name), machine) && self.placer.may_stay(name, machine)
    }
}

fn is_left(machines: &BTreeMap<MachineId, Machine>, unit: &Unit, id: MachineId) -> bool {
    !unit.is_being_adopted()
        && machines.get(&id).is_none_or(|machine| machine.is_left(unit.options.keep_on_reboot))
}

/// A unit that is not global any more cannot stay on several machines.
fn placements_exceed(global: bool, unit: Option<&Unit>) -> bool {
    !global && unit.is_some_and(|unit| unit.placements.len() > 1)
}
