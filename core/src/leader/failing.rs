//! Units that systemd gives up: started anew, elsewhere, after a delay that doubles, so many times in so long.
//!
//! Is it the unit or the machine? What failed on one machine is tried on others first. What runs there after all was its
//! machine's fault, and stays away from that machine for a while; what fails everywhere stops moving.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Event, Leader, PlaceReason, Unit};
use crate::ids::{Epoch, MachineId};
use crate::planted::{self, Fault};
use crate::state::{DesiredState, Observation, Phase};
use crate::time::Time;
use crate::unit::UnitName;

/// The longest delay, however often it was doubled.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The `Result`s of systemd that speak of a machine that has too little of something (`systemd.exec(5)`).
const WANTS_MORE_ROOM: [&str; 2] = ["oom-kill", "resources"];

/// What is remembered of a unit that failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble {
    failures: Vec<OneFailure>,
    /// The placement that failed last: what is said of it again is known.
    last: Epoch,
    /// When it is started anew, in the leader's own time.
    retry: Option<Time>,
    /// Why it is not, any more.
    given_up: Option<String>,
}

#[derive(Clone, Debug)]
struct OneFailure {
    at: Time,
    machine: MachineId,
    wants_room: bool,
}

/// All units that are in trouble.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    by_unit: BTreeMap<UnitName, Trouble>,
    retries: BTreeSet<(Time, UnitName)>,
}

impl Troubles {
    /// Somebody has decided on the unit: what was before does not count any more. Whether there was anything.
    pub(super) fn forget(&mut self, name: &UnitName) -> bool {
        let Some(trouble) = self.by_unit.remove(name) else { return false };
        if let Some(at) = trouble.retry {
            self.retries.remove(&(at, name.clone()));
        }
        true
    }

    /// When the next unit is started anew.
    pub(super) fn next_timer(&self) -> Option<Time> {
        self.retries.first().map(|(at, _)| *at)
    }

    fn set_retry(&mut self, name: &UnitName, at: Option<Time>) {
        let Some(trouble) = self.by_unit.get_mut(name) else { return };
        if let Some(old) = std::mem::replace(&mut trouble.retry, at) {
            self.retries.remove(&(old, name.clone()));
        }
        if let Some(at) = at {
            self.retries.insert((at, name.clone()));
        }
    }
}

impl Leader {
    /// What this observation of a unit's current copy means for its record of failures.
    pub(super) fn look_at_failure(
        &mut self,
        name: &UnitName,
        machine: MachineId,
        epoch: Epoch,
        observation: &Observation,
    ) {
        let (reason, result) = match observation {
            Observation::Held { phase: Phase::StartFailed(failure) | Phase::Failed(failure), .. } => {
                (&failure.reason, &*failure.result)
            }
            Observation::Refused(reason) => (reason, ""),
            Observation::Held { .. } => {
                if observation.is_active()
                    && let Some(trouble) = self.troubles.by_unit.get_mut(name)
                {
                    // systemd, or somebody at the machine, has started it after all. Should it fail again, that counts anew.
                    (trouble.last, trouble.given_up) = (Epoch::default(), None);
                    self.troubles.set_retry(name, None);
                }
                return;
            }
        };
        let Some(unit) = self.units.get(name) else { return };
        if unit.desired != DesiredState::Launched || unit.options.global || unit.done {
            return;
        }
        let reschedule = unit.options.reschedule;
        let awake = self.awake();
        let trouble = self.troubles.by_unit.entry(name.clone()).or_default();
        if trouble.last == epoch {
            // It was known. But its machine may have been away when it was to be started anew.
            if trouble.retry.is_none() && trouble.given_up.is_none() {
                self.troubles.set_retry(name, Some(awake + reschedule.delay));
            }
            return;
        }
        trouble.last = epoch;
        trouble.failures.retain(|failure| awake.since(failure.at) < reschedule.interval);
        let wants_room = WANTS_MORE_ROOM.contains(&result) && !planted::is(Fault::MemoryNotLookedAt);
        trouble.failures.push(OneFailure { at: awake, machine, wants_room });
        let failures = u32::try_from(trouble.failures.len()).unwrap_or(u32::MAX);
        if failures > reschedule.attempts && !planted::is(Fault::AttemptsNotCounted) {
            return self.give_up(name, machine, reason);
        }
        let times = if planted::is(Fault::DelayNotDoubled) { 1 } else { 1 << (failures - 1).min(20) };
        let doubled = reschedule.delay.saturating_mul(times).min(LONGEST_DELAY);
        self.troubles.set_retry(name, Some(awake + doubled));
        let attempt = (failures as usize, reschedule.attempts);
        let reason = reason.as_str().into();
        self.event(Event::Retried { unit: name.clone(), machine, after: doubled, attempt, reason });
    }

    /// What failed on this machine and was not started anew, since the machine was to be emptied or the store could not take
    /// it, may be now; and what ran to its end there is done, also where the store could not take that.
    pub(super) fn look_at_copies(&mut self, id: MachineId) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let observed = std::mem::take(&mut machine.observed);
        for (name, copy) in &observed {
            if self.units.get(name).and_then(|unit| unit.placements.get(&id)) == Some(&copy.epoch) {
                self.look_at_current(id, name, copy.epoch, &copy.observation);
            }
            self.look_at_dependents(name);
        }
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.observed = observed;
        }
    }

    /// The machines on which the unit has failed within its interval.
    fn failed_on(&self, name: &UnitName, unit: &Unit) -> BTreeSet<MachineId> {
        if planted::is(Fault::FailedMachineTaken) {
            return BTreeSet::new();
        }
        let since = self.awake() - unit.options.reschedule.interval;
        let failures = self.troubles.by_unit.get(name).into_iter().flat_map(|trouble| &trouble.failures);
        failures.filter(|failure| failure.at >= since).map(|failure| failure.machine).collect()
    }

    /// The unit failed once too often, at last on this machine with this.
    fn give_up(&mut self, name: &UnitName, machine: MachineId, last: &str) {
        let Some(unit) = self.units.get(name) else { return };
        let interval = unit.options.reschedule.interval;
        let failed_on = self.failed_on(name, unit);
        let everywhere = self.places_besides(name, &failed_on).is_none();
        let machines: Vec<String> = failed_on.iter().map(|id| id.short()).collect();
        let Some(trouble) = self.troubles.by_unit.get_mut(name) else { return };
        let times = trouble.failures.len();
        let reason = format!(
            "it failed {} on {}{}, with: {last}; `musterctl restart {name}` tries again",
            if times == 1 { "once".to_owned() } else { format!("{times} times in {} s", interval.as_secs()) },
            machines.join(", "),
            if everywhere && machines.len() > 1 { " (every machine that takes it)" } else { "" },
        );
        trouble.given_up = Some(reason.clone());
        // It may have been placed anew for another reason before its time came.
        if !planted::is(Fault::GivenUpMovesOn) {
            self.troubles.set_retry(name, None);
        }
        self.event(Event::GivenUp { unit: name.clone(), machine, reason: reason.into() });
        self.let_others_move(name);
    }

    pub(super) fn is_given_up(&self, name: &UnitName) -> bool {
        self.troubles.by_unit.get(name).is_some_and(|trouble| trouble.given_up.is_some())
    }

    /// Starts anew the units whose time has come.
    pub(super) fn retry_failed(&mut self) {
        let awake = self.awake();
        while let Some((at, name)) = self.troubles.retries.first().cloned().filter(|(at, _)| *at <= awake) {
            self.troubles.retries.remove(&(at, name.clone()));
            if let Some(trouble) = self.troubles.by_unit.get_mut(&name) {
                trouble.retry = None;
            }
            self.reschedule(&name);
        }
    }

    /// Starts a unit anew that has failed: on the best machine where it has not, else where it is.
    fn reschedule(&mut self, name: &UnitName) {
        let Some(unit) = self.units.get(name) else { return };
        // It waits for a machine anyway, or for an operator.
        let Some(on) = self.live_machine(unit) else { return };
        let Some(trouble) = self.troubles.by_unit.get(name) else { return };
        // It may have been placed anew since for another reason.
        if unit.desired != DesiredState::Launched || unit.placements.get(&on) != Some(&trouble.last) {
            return;
        }
        let failed_on = self.failed_on(name, unit);
        // Units that are tied together stay together.
        let elsewhere = if self.is_bound(name, unit) { None } else { self.places_besides(name, &failed_on) };
        let reason = PlaceReason::Failed(trouble.failures.len());
        match elsewhere {
            Some(machine) => {
                self.place_on(name, machine, reason, None);
                // Others may wait to be where it is.
                self.mark_tied(name);
            }
            None => self.renew_placements(name, reason),
        }
    }

    /// Whether it must be where others are, or others that are placed must be where it is.
    fn is_bound(&self, name: &UnitName, unit: &Unit) -> bool {
        let placed = |other: &UnitName| self.units.get(other).is_some_and(|unit| !unit.placements.is_empty());
        // Also where these are gone, and an old store has found it without them.
        self.targets(unit).next().is_some()
            || self.followers.get(name).is_some_and(|followers| followers.iter().any(placed))
    }

    /// The best machine for the unit besides these; one with more room, if it ran out of it where it is.
    fn places_besides(&self, name: &UnitName, failed_on: &BTreeSet<MachineId>) -> Option<MachineId> {
        let group = std::slice::from_ref(name);
        let besides = |id: MachineId| !failed_on.contains(&id) && self.old_copies_allow(group, id);
        let trouble = self.troubles.by_unit.get(name);
        let last = trouble.and_then(|trouble| trouble.failures.last()).filter(|failure| failure.wants_room);
        let roomier = last.and_then(|failure| {
            let there = self.placer.free_memory(failure.machine);
            self.placer.best(group, |id| besides(id) && self.placer.free_memory(id) > there)
        });
        roomier.or_else(|| self.placer.best(group, besides))
    }

    /// Whether the unit should rather go elsewhere, since it failed on this machine not long ago.
    pub(super) fn has_failed_on(&self, name: &UnitName, machine: MachineId) -> bool {
        self.units.get(name).is_some_and(|unit| self.failed_on(name, unit).contains(&machine))
    }

    /// Whether anything of that kind is known of any unit: for most, nothing is.
    pub(super) fn anything_failed(&self) -> bool {
        !self.troubles.by_unit.is_empty()
    }

    /// What is to be said of a unit that failed: that it is tried again, or why it is not.
    pub(super) fn trouble(&self, name: &UnitName) -> Option<String> {
        let trouble = self.troubles.by_unit.get(name)?;
        if let Some(given_up) = &trouble.given_up {
            return Some(format!("given up: {given_up}"));
        }
        let at = trouble.retry?;
        let attempts = self.units.get(name)?.options.reschedule.attempts;
        Some(format!(
            "it is started anew in {} s (attempt {} of {attempts})",
            at.since(self.awake()).as_millis().div_ceil(1000),
            trouble.failures.len(),
        ))
    }
}
