//! Units that fail, and units that run to their end.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_core::ids::{Epoch, MachineId};
use muster_core::machine::Availability;
use muster_core::message::Assignment;
use muster_core::state::{DesiredState, Observation, Phase};
use muster_core::time::Time;
use muster_core::unit::UnitName;

use super::Before;
use crate::book::{Cause, Failed, has_failed, has_run_to_its_end, is_active};
use crate::fits::{misfit, tied};
use crate::palette::{MEMORY, Options, Reschedule};
use crate::queue::Micros;
use crate::world::World;

/// What makes a machine short of memory, as systemd says it.
const WANTS_MEMORY: [&str; 2] = ["oom-kill", "resources"];
/// How much later than its delay a failed unit may be started anew.
const LATE: Duration = Duration::from_secs(5);

impl World {
    fn options_of(&self, name: &UnitName) -> Option<&Options> {
        Some(&self.palette.contents.get(*self.book.decided.files.get(name)?)?.options)
    }

    fn reschedule(&self, name: &UnitName) -> Reschedule {
        self.options_of(name).map_or(Options::default().reschedule(), Options::reschedule)
    }

    /// The leader is told this of a copy: is it the current one, and has it failed?
    pub(crate) fn copy_is_seen(
        &mut self,
        number: usize,
        name: &UnitName,
        epoch: Epoch,
        observation: &Observation,
    ) {
        let id = self.machines[number].id;
        let Some(unit) = self.book.decided.units.get(name) else { return };
        if unit.placements.get(&id) != Some(&epoch) || unit.desired != DesiredState::Launched {
            return;
        }
        if has_run_to_its_end(observation) && self.options_of(name).is_some_and(|options| options.oneshot) {
            self.book.ended.insert((name.clone(), epoch));
        }
        if unit.done || self.is_global(name) {
            return;
        }
        if is_active(observation) {
            if let Some(failures) = self.book.failures.get_mut(name) {
                failures.last = None;
            }
        } else if has_failed(observation) {
            let now = (self.scheduler.clock.time(self.queue.now()), self.scheduler.stalled(self.queue.now()));
            let interval = Duration::from_secs(self.reschedule(name).interval);
            let known = self.book.failures.get(name);
            if known.is_some_and(|known| known.last == Some(epoch)) {
                return;
            }
            let earlier = known.into_iter().flat_map(|known| &known.all);
            let within = earlier.filter(|failed| self.ago_at_most(failed.at) < interval).count() + 1;
            let wants_memory = match observation {
                Observation::Held { phase: Phase::StartFailed(failure) | Phase::Failed(failure), .. } => {
                    WANTS_MEMORY.contains(&&*failure.result)
                }
                _ => false,
            };
            let failures = self.book.failures.entry(name.clone()).or_default();
            failures.last = Some(epoch);
            failures.all.push(Failed { at: now, machine: number, within, wants_memory });
        }
    }

    /// Whether the leader was told since then that the unit has failed.
    pub(super) fn has_failed_since(&self, name: &UnitName, (since, _): (Time, Micros)) -> bool {
        self.book
            .failures
            .get(name)
            .is_some_and(|failures| failures.all.iter().any(|failed| failed.at.0 >= since))
    }

    /// `RescheduleAttempts=`, `RescheduleDelay=`, `RescheduleInterval=`: what happens when systemd gives a unit up: elsewhere,
    /// after a delay that doubles, so many times in so long.
    ///
    /// Here: a unit is started anew for nothing but that it failed.
    pub(super) fn a_failed_unit_is_started_anew(&mut self, name: &UnitName, epoch: Epoch) {
        let failures = self.book.failures.get(name).filter(|failures| failures.last == Some(epoch));
        if let Some(last) = failures.and_then(|failures| failures.all.last()).copied() {
            self.what_is_given_up_stays(name, last);
            self.the_delay_doubles(name, last);
        }
    }

    /// So many times in so long.
    fn what_is_given_up_stays(&mut self, name: &UnitName, last: Failed) {
        if last.within > self.reschedule(name).attempts as usize {
            let text = format!("{name} is started anew, and failed {} times: it is given up", last.within);
            self.violate("what_is_given_up_stays", text);
        }
    }

    /// After a delay that doubles.
    fn the_delay_doubles(&mut self, name: &UnitName, last: Failed) {
        // What an old store finds may have failed before that is known here.
        if self.book.restored || self.book.store_failed {
            return;
        }
        let least = Duration::from_secs(self.reschedule(name).delay << (last.within - 1).min(20));
        let passed = self.ago_at_most(last.at);
        if passed < least {
            let text =
                format!("{name} is started anew {passed:?} after failure {}, not {least:?}", last.within);
            self.violate("the_delay_doubles", text);
        }
    }

    /// `RescheduleAttempts=`: so many times. Until then it is started anew, if all that takes part is well.
    pub(super) fn what_has_failed_is_started_anew(&mut self) {
        // What an old store finds may have failed more often.
        if self.book.restored {
            return;
        }
        for (name, failures) in &self.book.failures {
            let (Some(epoch), Some(last)) = (failures.last, failures.all.last()) else { continue };
            let Reschedule { attempts, delay, .. } = self.reschedule(name);
            // What had failed before a client decided counts anew where the store could not take that at once.
            let again = self.book.store_failed && self.book.forgiven.contains(name);
            let all = failures.all.len() + usize::from(again);
            let Some(unit) = self.book.decided.units.get(name) else { continue };
            let id = self.machines[last.machine].id;
            let open = matches!(self.book.decided.availability.get(&id), None | Some(Availability::Open));
            // Its agent may have begun to start it again.
            let at_work = self.book.machines[last.machine].says_at_work.contains(&(name.clone(), epoch));
            if at_work
                || all > attempts as usize
                || unit.desired != DesiredState::Launched
                || unit.done
                || unit.placements.get(&id) != Some(&epoch)
                || !open
            {
                continue;
            }
            // It may have been asked for again since all is well.
            let most = Duration::from_secs((delay << (all - 1)) + delay) + LATE;
            let well = Duration::from_micros((self.queue.now() - self.book.unwell) / 100 * 98);
            if well > most && self.ago(last.at) > most {
                let text =
                    format!("{name} ({epoch}) failed {all} times at most, and is neither tried nor given up");
                return self.violate("what_has_failed_is_started_anew", text);
            }
        }
    }

    /// Elsewhere first: a unit does not go where it failed within the interval as long as another machine takes it.
    pub(super) fn where_it_failed_it_is_left_out(&mut self, cause: &Cause, before: &Before) {
        if self.book.restored || self.book.store_failed || matches!(cause, Cause::Command { .. }) {
            return;
        }
        // Where several are placed at once, each may have been in the way of the others.
        let placed = |(name, was): &(&UnitName, &Vec<(MachineId, Epoch)>)| {
            let unit = self.book.decided.units.get(*name);
            unit.is_some_and(|unit| unit.placements.iter().any(|(id, epoch)| !was.contains(&(*id, *epoch))))
        };
        let mut placed = before.iter().filter(placed);
        let (Some((name, was)), None) = (placed.next(), placed.next()) else { return };
        let Some(failures) = self.book.failures.get(name) else { return };
        let Some(unit) = self.book.decided.units.get(name) else { return };
        let alone = BTreeSet::from([name.clone()]);
        if self.is_global(name)
            || self.keeps(name)
            || tied(&self.palette, &self.book.decided, alone).len() > 1
        {
            return;
        }
        let Some(to) = unit.placements.keys().next().and_then(|id| self.machine_number(*id)) else { return };
        let from = was.first().and_then(|(id, epoch)| Some((self.machine_number(*id)?, *epoch)));
        let interval = Duration::from_secs(self.reschedule(name).interval);
        let within = |failed: &&Failed| self.ago_at_most(failed.at) < interval;
        let failed_on: BTreeSet<usize> =
            failures.all.iter().filter(within).map(|failed| failed.machine).collect();
        let ever: BTreeSet<usize> = failures.all.iter().map(|failed| failed.machine).collect();
        let others: Vec<usize> = (0..self.machines.len())
            .filter(|number| *number != to && !ever.contains(number) && self.takes(name, *number))
            .collect();
        // What its machine did not take, and what was rebooted there, is placed anew where it is.
        let retried = from.is_some_and(|(_, epoch)| failures.last == Some(epoch));
        let moves = from.is_none_or(|(from, _)| from != to);
        if let Some(other) = others.first()
            && failed_on.contains(&to)
            && (moves || retried && !self.book.machines[to].rebooted)
        {
            let text = format!("{name} is placed on m{to}, where it failed, and m{other} takes it");
            return self.violate("where_it_failed_it_is_left_out", text);
        }
        // What is to leave its machine anyway is not moved for its failure.
        let stays = |from: usize| {
            let availability = self.book.decided.availability.get(&self.machines[from].id);
            !matches!(availability, Some(Availability::Draining(_))) && !self.book.machines[from].leaving
        };
        if let Some((from, _)) = from.filter(|(from, _)| retried && stays(*from)) {
            let last = failures.all.last().filter(|last| last.machine == from);
            if last.is_some_and(|last| last.wants_memory) {
                let name = name.clone();
                self.what_wants_memory_gets_more(&name, from, to, &others);
            }
        }
    }

    /// What was killed for want of memory goes to a machine with more memory that is set aside for nobody, if there is one.
    fn what_wants_memory_gets_more(&mut self, name: &UnitName, from: usize, to: usize, others: &[usize]) {
        let need = self.options_of(name).map_or(0, |options| options.memory);
        let there = self.free_memory(from);
        // It takes its own up already.
        let enough = from != to && self.free_memory(to) + need > there;
        if !enough && let Some(roomy) = others.iter().find(|other| self.free_memory(**other) > there) {
            let text = format!("{name} ran out of memory on m{from}, and goes to m{to}; m{roomy} has more");
            self.violate("what_wants_memory_gets_more", text);
        }
    }

    /// What of the machine's memory is set aside for nobody.
    fn free_memory(&self, number: usize) -> u64 {
        let here = self.book.decided.on(self.machines[number].id, true);
        let taken = here.iter().filter_map(|name| self.options_of(name)).map(|options| options.memory);
        MEMORY.saturating_sub(taken.sum())
    }

    /// Whether the machine takes the unit for certain.
    fn takes(&self, name: &UnitName, number: usize) -> bool {
        let (id, book, decided) = (self.machines[number].id, &self.book.machines[number], &self.book.decided);
        let open = matches!(decided.availability.get(&id), None | Some(Availability::Open));
        // An older copy of an exclusive unit may be in the way.
        let free = !decided.retired.contains_key(&(id, name.clone()));
        let well = self.is_well(number) && !book.degraded && !book.unproven && !book.pid1_lost;
        well && open && free && misfit(&self.palette, decided, name, number, true).is_none()
    }

    /// One-shot units that ended well are done, and stay done: they are not run again without a client's word.
    pub(super) fn what_is_done_stays_done(&mut self, number: usize, hold: &Assignment) {
        let Assignment { name, epoch, .. } = hold;
        // What an old store finds is taken up as it is.
        let found = self.book.machines[number].says.get(name) == Some(epoch);
        if self.book.restored || found && self.book.store_failed {
            return;
        }
        if self.book.done.contains(name) && !self.book.ended.contains(&(name.clone(), *epoch)) {
            let text = format!("m{number} is told to start {name} ({epoch}), which has run to its end");
            self.violate("what_is_done_stays_done", text);
        }
    }

    /// The same for its machine, whoever leads.
    pub(super) fn starts_nothing_that_is_done(&mut self, number: usize, name: &UnitName) {
        let epoch = self.machines[number].files.get(name).map(|file| file.version.epoch);
        if let Some(epoch) = epoch.filter(|epoch| self.book.ended.contains(&(name.clone(), *epoch))) {
            let text = format!("m{number} starts {name} ({epoch}), which has run to its end");
            self.violate("what_is_done_stays_done", text);
        }
    }
}
