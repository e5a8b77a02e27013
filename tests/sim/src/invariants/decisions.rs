//! What leaders decide.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_core::ids::{Epoch, MachineId};
use muster_core::machine::Availability;
use muster_core::state::DesiredState;
use muster_core::unit::UnitName;

use super::Before;
use crate::book::{Cause, Moved};
use crate::fits::{misfit, replaces, tied};
use crate::queue::SECOND;
use crate::world::World;

/// How long what is moved off a machine that shuts down runs on there at most, unless that one takes it along.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

impl World {
    /// The leader records what the clients' commands add up to, and nothing else.
    pub(super) fn intent_is_what_clients_asked_for(
        &mut self,
        cause: &Cause,
        before: &Before,
        refiled: &BTreeSet<UnitName>,
    ) {
        let mut names: BTreeSet<&UnitName> = before.keys().chain(refiled).collect();
        let named: Vec<UnitName> = match cause {
            Cause::Command { ask: crate::faults::Ask::Command { units, .. }, new: true, .. } => {
                units.iter().map(|unit| self.palette.names[*unit].clone()).collect()
            }
            _ => Vec::new(),
        };
        names.extend(&named);
        for name in names {
            let wanted = self.palette.unit(name).and_then(|unit| self.book.intent.units.get(&unit)).copied();
            let stored = self.book.decided.units.get(name).map(|unit| unit.desired);
            let file = self.book.decided.files.get(name).copied();
            if stored != wanted.map(|(_, desired)| desired)
                || wanted.is_some_and(|(content, _)| file != Some(content))
            {
                let text =
                    format!("{name}: is recorded as {stored:?} of file {file:?}, and was to be {wanted:?}");
                return self.violate("nothing_acknowledged_is_lost", text);
            }
        }
    }

    /// Any unit but exclusive and global ones has at most one current placement.
    pub(super) fn each_is_placed_once(&mut self, before: &Before) {
        for name in before.keys() {
            let Some(unit) = self.book.decided.units.get(name) else { continue };
            if unit.placements.len() > 1 && !self.is_global(name) {
                let text = format!("{name} is placed on {} machines", unit.placements.len());
                return self.violate("one_current_copy", text);
            }
        }
    }

    pub(super) fn is_exclusive(&self, name: &UnitName) -> bool {
        let file = self.book.decided.files.get(name);
        file.is_some_and(|file| self.palette.contents[*file].options.exclusive.is_some())
    }

    /// Whether the unit asks for another role than the machine has.
    fn asks_for_another(&self, name: &UnitName, machine: MachineId) -> bool {
        let file = self.book.decided.files.get(name);
        let wanted = file.and_then(|file| self.palette.contents[*file].options.role);
        let has = self.machine_number(machine).and_then(|number| self.book.decided.role(number));
        wanted.is_some_and(|wanted| has != Some(wanted))
    }

    pub(super) fn keeps(&self, name: &UnitName) -> bool {
        let file = self.book.decided.files.get(name);
        file.is_some_and(|file| self.palette.contents[*file].options.keep)
    }

    fn is_oneshot(&self, name: &UnitName) -> bool {
        let file = self.book.decided.files.get(name);
        file.is_some_and(|file| self.palette.contents[*file].options.oneshot)
    }

    pub(super) fn is_global(&self, name: &UnitName) -> bool {
        let file = self.book.decided.files.get(name);
        file.is_some_and(|file| self.palette.contents[*file].options.global)
    }

    /// Every placement carries an epoch, larger than that of every earlier placement of that unit.
    pub(super) fn epochs_never_repeat(&mut self, before: &Before) {
        let term = self.scheduler.process.as_ref().map(|process| process.term).unwrap_or_default();
        let knows_better = self.book.restored || self.book.store_failed;
        for (name, placements) in before {
            let Some(unit) = self.book.decided.units.get(name).cloned() else { continue };
            let last = self.book.last_epoch.get(name).copied().unwrap_or_default();
            let mut latest = last;
            for (machine, epoch) in &unit.placements {
                if placements.contains(&(*machine, *epoch)) {
                    continue;
                }
                let said = self
                    .machine_number(*machine)
                    .and_then(|number| self.book.machines[number].says.get(name));
                let taken_over = knows_better && said == Some(epoch);
                if !taken_over && (*epoch <= last || epoch.term != term) {
                    let text = format!("{name}: epoch {epoch} in term {term} follows {last}");
                    return self.violate("epochs_never_repeat", text);
                }
                latest = latest.max(*epoch);
            }
            self.book.last_epoch.insert(name.clone(), latest);
        }
    }

    /// What the leader decides. Each end of a placement has a reason of its own: a client who named the unit (or
    /// one that it is tied to), a machine that is lost or was rebooted, a machine that has refused this very placement, or on
    /// which it has failed.
    pub(super) fn placements_end_for_a_reason(&mut self, cause: &Cause, before: &Before) {
        let asked_for = match cause {
            Cause::Command { ask: crate::faults::Ask::Command { units, .. }, .. } => {
                let named = units.iter().map(|unit| self.palette.names[*unit].clone()).collect();
                tied(&self.palette, &self.book.decided, named)
            }
            // What the machine has not any more that it asks for.
            Cause::Relabel(machine) => {
                let there = before.iter().filter(|(_, placed)| placed.iter().any(|(id, _)| id == machine));
                let named = there.map(|(name, _)| name).filter(|name| self.asks_for_another(name, *machine));
                tied(&self.palette, &self.book.decided, named.cloned().collect())
            }
            _ => BTreeSet::new(),
        };
        for machine in &mut self.book.machines {
            machine.moved.retain(|name, _| !asked_for.contains(name));
        }
        for name in before.keys() {
            let placements = self.book.decided.units.get(name).map(|unit| &unit.placements);
            for (machine, _) in placements.into_iter().flatten() {
                // It has come back there.
                if let Some(number) = self.machine_number(*machine) {
                    self.book.machines[number].moved.remove(name);
                }
            }
        }
        let (mut moved, mut restarted) = (Vec::new(), Vec::new());
        for (name, placements) in before.iter().filter(|(name, _)| !asked_for.contains(*name)) {
            for (machine, epoch) in placements {
                let Some(number) = self.machine_number(*machine) else { continue };
                let unit = self.book.decided.units.get(name);
                let now = unit.and_then(|unit| unit.placements.get(machine)).copied();
                if now == Some(*epoch) {
                    continue;
                }
                let book = &self.book.machines[number];
                let drained =
                    matches!(self.book.decided.availability.get(machine), Some(Availability::Draining(_)));
                let keeps = self.keeps(name);
                // It waits for its machine, for however long that is off.
                let waits = book.leaving && keeps;
                let away = !self.lease_holds(number) || book.pid1_lost || book.leaving;
                let lost = away && !waits || drained;
                let refused = book.stale.contains(&(name.clone(), *epoch));
                let failed = book.failed.contains(&(name.clone(), *epoch));
                let lease = self.settings.lease();
                let alive = self.heard_ago(number).is_some_and(|ago| ago < lease);
                let makes_room = now.is_none() && self.makes_room(name, before);
                let emptied = book.leaving || drained || makes_room;
                let active = book.says_active.contains(&(name.clone(), *epoch));
                // After the store has lost decisions, a machine that holds a later copy has the current one.
                let overtaken = (self.book.restored || self.book.store_failed)
                    && self.book.machines.iter().enumerate().any(|(other, book)| match book.says.get(name) {
                        // An epoch of the time that was undone may be given again.
                        Some(said) => said > epoch || said == epoch && other != number,
                        None => false,
                    });
                if now.is_none()
                    && lost
                    && !emptied
                    && !failed
                    && !overtaken
                    && !book.rebooted
                    && !book.pid1_lost
                    && self.too_many_died(number)
                {
                    return self.the_leader_doubts_itself_first(name, number);
                }
                let launched = unit.is_some_and(|unit| unit.desired == DesiredState::Launched);
                let twice = !self.is_global(name) && !self.is_exclusive(name);
                if now.is_none() && emptied && alive && active && launched && !failed && twice {
                    moved.push((number, name.clone(), *epoch));
                }
                let at_work = self.is_oneshot(name)
                    && book.says_at_work.contains(&(name.clone(), *epoch))
                    && self.ago_at_most(book.drains.0) < book.drains.1;
                let heard = book.heard.is_some_and(|heard| self.ago_at_most(heard) < lease);
                let well = heard && !book.leaving && !book.rebooted && !book.pid1_lost && !overtaken;
                if now.is_none() && launched && drained && at_work && well {
                    return self.what_runs_to_its_end_may_do_so(name, number);
                }
                // What an earlier boot had is placed anew, also where it was.
                let rebooted = !self.lease_holds(number) || book.rebooted;
                if launched && !(lost || makes_room || refused || rebooted || overtaken) {
                    restarted.push((name.clone(), *epoch));
                }
                if !(overtaken
                    || failed
                    || (now.is_some() && (refused || rebooted))
                    || (now.is_none() && (lost || makes_room || rebooted && !keeps)))
                {
                    let text = format!(
                        "{name}: its placement {epoch} on m{number} ends ({now:?} follows), for no reason ({cause:?})"
                    );
                    return self.violate("control_plane_is_not_the_workload", text);
                }
            }
        }
        let now = self.scheduler.clock.time(self.queue.now());
        let at = (now, self.scheduler.stalled(self.queue.now()));
        for (number, name, epoch) in moved {
            let availability = self.book.decided.availability.get(&self.machines[number].id);
            let book = &mut self.book.machines[number];
            let (since, most) = match availability {
                Some(Availability::Draining(_)) => book.drains,
                _ => (at, SHUTDOWN_TIMEOUT),
            };
            book.moved.insert(name, Moved { epoch, at, since, most });
        }
        for (name, epoch) in restarted {
            self.a_failed_unit_is_started_anew(&name, epoch);
        }
    }

    /// Whether the unit has moved for another one that waits: one that replaces it, or what it is tied to.
    fn makes_room(&self, name: &UnitName, before: &Before) -> bool {
        let (palette, decided) = (&self.palette, &self.book.decided);
        let moves = |name: &UnitName| {
            before.contains_key(name)
                && decided.units.get(name).is_some_and(|unit| !unit.placements.is_empty())
        };
        let left = |id: &MachineId| {
            let Some(number) = self.machine_number(*id) else { return true };
            let book = &self.book.machines[number];
            let drained = matches!(decided.availability.get(id), Some(Availability::Draining(_)));
            !self.lease_holds(number) || book.pid1_lost || book.leaving || book.rebooted || drained
        };
        let waits = decided
            .units
            .iter()
            .filter(|(_, unit)| unit.placements.keys().all(left) && unit.desired != DesiredState::Inactive);
        let replaced = tied(palette, decided, BTreeSet::from([name.clone()]));
        moves(name)
            && waits.into_iter().any(|(waiting, _)| {
                replaced.iter().any(|name| moves(name) && replaces(palette, decided, waiting, name))
            })
    }

    /// Drain: one-shot units that run may run to their end, as long as it has time.
    fn what_runs_to_its_end_may_do_so(&mut self, name: &UnitName, number: usize) {
        let text = format!("{name} is moved from m{number}, where it runs to its end");
        self.violate("what_runs_to_its_end_may_do_so", text);
    }

    /// Whether the machine and its stream are well now.
    pub(super) fn is_well(&self, number: usize) -> bool {
        let book = &self.book.machines[number];
        let open = |connection| self.network.stream(connection).is_some_and(|stream| stream.scheduler_open);
        let connected = book.welcomed.is_some_and(|(connection, _)| open(connection));
        connected && !book.leaving && self.heard_ago(number).is_some_and(|ago| ago < Duration::from_secs(3))
    }

    /// Whether the store, a machine or its stream is not well now.
    pub(super) fn look_for_trouble(&mut self) {
        let (now, decided) = (self.queue.now(), &self.book.decided.availability);
        let well = (0..self.machines.len()).all(|number| self.is_well(number)) && !self.store.is_troubled();
        let open = decided.values().all(|availability| *availability == Availability::Open);
        if !well || self.book.store_failed {
            self.book.troubled = now;
        }
        if !well || !open {
            self.book.unwell = now;
        }
    }

    /// Drain: the deadline always ends it.
    ///
    /// Here: it is one for the whole drain. Where the unit may become active elsewhere, and has not failed, its old copy is told to stop soon
    /// after, if all that takes part is well; also one that moves only then.
    pub(super) fn the_deadline_ends_a_drain(&mut self) {
        if self.queue.now() - self.book.troubled < 3 * SECOND {
            return;
        }
        for (number, book) in self.book.machines.iter().enumerate() {
            let id = self.machines[number].id;
            let over = |(name, moved): &(&UnitName, &Moved)| {
                let placed =
                    self.book.decided.units.get(*name).is_some_and(|unit| {
                        !unit.placements.is_empty() && !unit.placements.contains_key(&id)
                    });
                let soon = Duration::from_secs(4);
                // Another command may have given it more time.
                let (last, longest) = book.drained;
                let more = self.ago(last) <= longest + soon;
                let failed = self.has_failed_since(name, moved.at);
                placed
                    && !failed
                    && !more
                    && self.ago(moved.since) > moved.most + soon
                    && self.ago(moved.at) > soon
            };
            if let Some((name, moved)) = book.moved.iter().find(over) {
                let text =
                    format!("{name} ({}) still runs on m{number}, beyond the time of the drain", moved.epoch);
                return self.violate("the_deadline_ends_a_drain", text);
            }
        }
    }

    /// A new leader places nothing away from a machine until that machine has had a full lease to report in: until then
    /// a later copy may be anywhere, and nothing new is placed.
    pub(super) fn a_new_leader_waits_for_reports(&mut self, before: &Before) {
        let lease = self.settings.lease();
        let now = self.scheduler.clock.time(self.queue.now());
        if now.since(self.book.took_over.0) >= lease {
            return;
        }
        let silent = self.machines.iter().enumerate().find(|(number, machine)| {
            let book = &self.book.machines[*number];
            self.book.expects.contains(&machine.id) && book.heard.is_none() && !book.pid1_lost
        });
        let Some((number, _)) = silent else { return };
        for (name, placements) in before {
            let Some(unit) = self.book.decided.units.get(name) else { continue };
            let new = unit.placements.iter().find(|(machine, epoch)| {
                let said = self.machine_number(**machine).and_then(|n| self.book.machines[n].says.get(name));
                placements.iter().all(|(was, _)| was != *machine) && said != Some(*epoch)
            });
            if let Some((machine, epoch)) = new {
                let text = format!("{name} is placed on {machine} ({epoch}) before m{number} has reported");
                return self.violate("a_new_leader_waits_for_reports", text);
            }
        }
    }

    /// Invariant 7: Constraints hold for every placement at the moment it is decided.
    pub(super) fn constraints_hold(&mut self, cause: &Cause, before: &Before, refiled: &BTreeSet<UnitName>) {
        let lease = self.longest_lease();
        for (name, placements) in before {
            let Some(unit) = self.book.decided.units.get(name) else { continue };
            for (machine, epoch) in &unit.placements {
                let Some(number) = self.machine_number(*machine) else { continue };
                let book = &self.book.machines[number];
                let new = placements.iter().all(|(was, _)| was != machine);
                let said = book.says.get(name) == Some(epoch);
                if said && (self.book.restored || self.book.store_failed) || !(new || refiled.contains(name))
                {
                    continue;
                }
                // What stays need not make room for what ends beside it.
                // Of what an old store does not know, the leader does not know what it asks for.
                let with_ending = new && !self.book.restored;
                if let Some(why) = misfit(&self.palette, &self.book.decided, name, number, with_ending) {
                    let text = format!("{name} is placed on m{number} although {why} ({cause:?})");
                    return self.violate("constraints_hold", text);
                }
                let open =
                    matches!(self.book.decided.availability.get(machine), None | Some(Availability::Open));
                let closed = book.leaving || book.degraded || book.unproven || !open;
                let now = self.scheduler.clock.time(self.queue.now());
                let graced = book.heard.is_some() && book.graced.is_some_and(|end| now < end);
                let silent = self.heard_ago(number).is_none_or(|ago| ago >= lease) && !graced;
                if new && (silent || closed) {
                    let text = format!("{name} is placed on m{number}, which takes nothing new");
                    return self.violate("constraints_hold", text);
                }
            }
        }
    }

    /// Older copies stop: the record that one is to be stopped is forgotten only when it is gone.
    pub(super) fn what_is_over_is_gone(&mut self, ended: &[(MachineId, UnitName, Epoch)]) {
        for (id, name, epoch) in ended {
            let Some(number) = self.machine_number(*id) else { continue };
            // A later copy there has taken its place.
            if self.book.decided.units.get(name).is_some_and(|unit| unit.placements.contains_key(id)) {
                continue;
            }
            // That one has made room again, in the same step.
            if self.book.decided.retired.contains_key(&(*id, name.clone())) {
                continue;
            }
            let machine = &self.machines[number];
            // Or holds it back: an orphan of a later epoch, since the store is an old one.
            if machine.files.get(name).is_some_and(|file| file.version.epoch > *epoch) {
                continue;
            }
            let files = machine.files.contains_key(name);
            let runs = machine.systemd.runs(name).is_some_and(|version| version.epoch <= *epoch);
            if machine.on && (files || runs) {
                let text = format!("{name}: {epoch} on m{number} is recorded as gone, and is there");
                return self.violate("what_is_over_is_gone", text);
            }
            self.book.machines[number].over.insert(name.clone(), *epoch);
        }
    }

    /// A leader never orders the removal of a unit whose end it has no record of. Such units are shown as orphaned.
    ///
    /// Here: only the store's past comes to that.
    pub(super) fn nothing_is_forgotten(&mut self, name: &UnitName, machine: MachineId) {
        if !self.book.restored {
            let text = format!("{name} on {} is an orphan, and no backup was restored", machine.short());
            self.violate("nothing_is_forgotten", text);
        }
    }

    /// Takes down where units are that placements may wait for: those that were there first, or came after these placements.
    pub(super) fn note_what_is_required(&mut self) {
        for (name, unit) in &self.book.decided.units {
            let Some(file) = self.book.decided.files.get(name) else { continue };
            for required in self.palette.contents[*file].options.requires {
                let required = &self.palette.names[*required];
                let on = self.book.decided.units.get(required).map(|unit| &unit.placements);
                // One of several is enough.
                let Some(then) = on.and_then(|on| on.values().min()) else { continue };
                for epoch in unit.placements.values() {
                    let key = (name.clone(), *epoch, required.clone());
                    self.book.required.entry(key).or_insert(*then);
                }
            }
        }
    }
}
