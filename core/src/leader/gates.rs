//! What keeps a placement that was decided from being carried out yet: an older copy of an exclusive unit that may still
//! run somewhere, and units that must be active first.
//!
//! The placement stands, with all that it takes up; its machine is told of it (or told to start it) when nothing speaks
//! against it any more. What a machine was told to start is never taken back for what happens to other units later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Event, Leader, Retired, Unit};
use crate::ids::{Epoch, MachineId};
use crate::machine::MachineState;
use crate::planted::{self, Fault};
use crate::state::{DesiredState, Observation, Phase};
use crate::time::Time;
use crate::unit::{Options, UnitName};

/// How late PID 1 and its helpers may be when they stop an exclusive unit after a lease (measured: up to 0.3 s).
pub(super) const GUARD_LAG: Duration = Duration::from_secs(1);

/// How far a machine may be told of a placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Not at all, for this reason; when that ends by itself, in the leader's own time, where it does.
    Shut { why: String, until: Option<Time> },
    /// That it is to be loaded, and not yet started, for this reason.
    Loaded { why: String },
    /// All.
    Open,
}

/// The gates of all placements that have one.
#[derive(Debug, Default)]
pub(super) struct Gates {
    by_copy: BTreeMap<(MachineId, UnitName), (Epoch, Gate)>,
    /// Units whose gates are to be looked at again.
    due: BTreeSet<UnitName>,
    timers: BTreeSet<(Time, UnitName)>,
}

impl Gates {
    /// Something has changed that the unit's placements may wait for.
    pub(super) fn look_at(&mut self, name: &UnitName) {
        self.due.insert(name.clone());
    }

    /// How far this placement is known to be open; none before it was looked at.
    pub(super) fn of(&self, machine: MachineId, name: &UnitName, epoch: Epoch) -> Option<&Gate> {
        let (known, gate) = self.by_copy.get(&(machine, name.clone()))?;
        (*known == epoch).then_some(gate)
    }

    /// The machine was told to start this placement.
    pub(super) fn open(&mut self, machine: MachineId, name: &UnitName, epoch: Epoch) {
        self.set(machine, name, epoch, Gate::Open);
    }

    /// What opened it may have changed before the machine heard of it.
    fn shut(&mut self, machine: MachineId, name: &UnitName) {
        if let Some((_, Gate::Open)) = self.by_copy.get(&(machine, name.clone())) {
            self.forget(machine, name);
        }
        self.look_at(name);
    }

    fn set(&mut self, machine: MachineId, name: &UnitName, epoch: Epoch, gate: Gate) {
        self.forget(machine, name);
        if let Gate::Shut { until: Some(until), .. } = &gate {
            self.timers.insert((*until, name.clone()));
        }
        self.by_copy.insert((machine, name.clone()), (epoch, gate));
    }

    /// The unit is not placed there any more.
    pub(super) fn forget(&mut self, machine: MachineId, name: &UnitName) {
        if let Some((_, Gate::Shut { until: Some(until), .. })) =
            self.by_copy.remove(&(machine, name.clone()))
        {
            self.timers.remove(&(until, name.clone()));
        }
    }

    /// When the next one opens by itself.
    pub(super) fn next_timer(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }
}

impl Options {
    /// Whether a placement of the unit may have to wait for something.
    pub(super) fn is_gated(&self) -> bool {
        self.exclusive.is_some() || self.has_dependencies()
    }

    pub(super) fn has_dependencies(&self) -> bool {
        !self.requires.is_empty() || !self.after.is_empty()
    }

    /// The units that the start of this one may wait for.
    pub(super) fn dependencies(&self) -> impl Iterator<Item = &UnitName> {
        self.requires.iter().chain(&self.after)
    }
}

impl Leader {
    /// Looks at the gates that may have opened.
    pub(super) fn look_at_gates(&mut self) {
        let awake = self.awake();
        while let Some((at, name)) = self.gates.timers.first().cloned().filter(|(at, _)| *at <= awake) {
            self.gates.timers.remove(&(at, name.clone()));
            self.gates.due.insert(name);
        }
        for name in std::mem::take(&mut self.gates.due) {
            let placements: Vec<(MachineId, Epoch)> = match self.units.get(&name) {
                Some(unit) if unit.options.is_gated() => {
                    unit.placements.iter().map(|(machine, epoch)| (*machine, *epoch)).collect()
                }
                _ => continue,
            };
            for (machine, epoch) in placements {
                self.look_at_gate(&name, machine, epoch);
            }
        }
    }

    fn look_at_gate(&mut self, name: &UnitName, machine: MachineId, epoch: Epoch) {
        let Some(unit) = self.units.get(name) else { return };
        let was = self.gates.of(machine, name, epoch);
        if was == Some(&Gate::Open) {
            return;
        }
        let gate = self.gate(name, unit, machine, epoch);
        let is_new = was != Some(&gate);
        if let (None, Gate::Shut { why, .. } | Gate::Loaded { why }) = (was, &gate) {
            let (unit, reason) = (name.clone(), why.as_str().into());
            self.event(Event::Withheld { unit, machine, reason });
        }
        // Also where it is as before: its timer may have been due.
        self.gates.set(machine, name, epoch, gate);
        if is_new {
            self.turn.tell(machine, name);
            self.turn.seen.push(name.clone());
        }
    }

    /// What its machine has begun to start it was told to, also where the store has lost a decision meanwhile.
    ///
    /// Of what is exclusive: what systemd says to run, and nobody has begun to end, was to be started by this leader or one
    /// before; so was what has ended by itself, which stays as it is. What has ended with the lease may run elsewhere by now, and an old store would
    /// not know; nor does an agent that was just started know what has.
    pub(super) fn look_at_what_was_started(
        &mut self,
        name: &UnitName,
        machine: MachineId,
        epoch: Epoch,
        observation: &Observation,
    ) {
        let gated = |unit: &&Unit| unit.options.is_gated();
        if self.units.get(name).filter(gated).is_some_and(|unit| unit.has_begun(observation))
            && self.gates.of(machine, name, epoch) != Some(&Gate::Open)
        {
            self.gates.open(machine, name, epoch);
            self.turn.tell(machine, name);
            self.turn.seen.push(name.clone());
        }
    }

    /// What speaks now against telling the machine of the unit's placement there.
    fn gate(&self, name: &UnitName, unit: &Unit, machine: MachineId, epoch: Epoch) -> Gate {
        if unit.options.exclusive.is_some()
            && !planted::is(Fault::ExclusiveNotAwaited)
            && let Some(shut) = self.older_copies(name, unit, machine)
        {
            return shut;
        }
        if unit.desired == DesiredState::Launched
            && !unit.done
            && let Some(why) = self.missing_dependency(&unit.options)
        {
            if self.may_run(name, machine, epoch) {
                let why = format!("{} has not yet said whether it runs", machine.short());
                return Gate::Shut { why, until: None };
            }
            return Gate::Loaded { why };
        }
        Gate::Open
    }

    /// Whether the machine was told to start this placement, as it says, and has not yet said what became of that.
    fn may_run(&self, name: &UnitName, machine: MachineId, epoch: Epoch) -> bool {
        let copy = self.machines.get(&machine).and_then(|machine| machine.observed.get(name));
        copy.is_some_and(|copy| {
            copy.epoch == epoch
                && matches!(
                    copy.observation,
                    Observation::Held { phase: Phase::Launched | Phase::Starting, state: None }
                )
        })
    }

    /// A machine has said which placements it was told to start, and is told anew: those that it does not name wait for
    /// what they wait for at this moment, whatever it was at another.
    pub(super) fn shut_what_was_not_told(&mut self, machine: MachineId, told: &BTreeSet<UnitName>) {
        for name in self.placer.units_on(machine) {
            let gated = self.units.get(name).is_some_and(|unit| unit.options.is_gated());
            if gated && !told.contains(name) {
                self.gates.shut(machine, name);
            }
        }
    }

    /// The store lost what was decided on it: what its machine has begun was told, and what it has not may have been told
    /// for what was not decided after all. What is placed nowhere now keeps its gate: where its machine holds it, it is taken
    /// up again as it is.
    pub(super) fn gates_go_back(&mut self) {
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            let placed = |(name, copy): (&UnitName, &super::Copy)| {
                let unit = self.units.get(name)?;
                let current = unit.options.is_gated() && unit.placements.get(&id) == Some(&copy.epoch);
                (current && unit.has_begun(&copy.observation)).then(|| (name.clone(), copy.epoch))
            };
            let observed = self.machines.get(&id).into_iter().flat_map(|machine| &machine.observed);
            let begun: BTreeMap<UnitName, Epoch> = observed.filter_map(placed).collect();
            self.shut_what_was_not_told(id, &begun.keys().cloned().collect());
            for (name, epoch) in begun {
                self.gates.open(id, &name, epoch);
            }
        }
    }

    /// Exclusive means one: whether another copy may run, here or elsewhere.
    fn older_copies(&self, name: &UnitName, unit: &Unit, machine: MachineId) -> Option<Gate> {
        let awake = self.awake();
        let mut latest: Option<(Time, String)> = None;
        let mut wait = |until: Time, why: String| {
            if until > awake && latest.as_ref().is_none_or(|(latest, _)| until > *latest) {
                latest = Some((until, why));
            }
        };
        // One on the same machine ends before this one starts there; of one with a record that record says more.
        let unknown = |(other, epoch): &(&MachineId, &Epoch)| {
            **other != machine && self.latest_known(**other, name).is_none_or(|known| known < **epoch)
        };
        if let Some((orphaned, _)) = self.strays.get(name).and_then(|on| on.iter().find(unknown)) {
            let why = format!(
                "{} has a copy of it that the cluster has no record of; `musterctl destroy {name}` ends that one",
                orphaned.short()
            );
            return Some(Gate::Shut { why, until: None });
        }
        for other in self.placer.copies(name).filter(|other| *other != machine) {
            let Some(retired) = self.retired.get(&(other, name.clone())) else { continue };
            let Some(until) = self.copy_is_over(other, retired) else {
                let why = if retired.exclusive.is_none() && self.is_unreachable(other) {
                    format!(
                        "{} is unreachable and has a copy of it from before it was exclusive, which no lease ends; boot \
                         that machine",
                        other.short()
                    )
                } else {
                    format!(
                        "it is exclusive, and {} has not yet said that its copy there has ended{}",
                        other.short(),
                        self.hindrance(name, other),
                    )
                };
                return Some(Gate::Shut { why, until: None });
            };
            wait(
                until,
                format!(
                    "it is exclusive, and {} is unreachable: its copy there is sure to have ended a while after the lease",
                    other.short()
                ),
            );
        }
        if let (Some(from), Some(stop)) = (self.exclusive_from, unit.options.exclusive) {
            wait(
                from + self.settings.exclusive_end(stop),
                "it is exclusive, and this scheduler has just taken over: machines that it does not know of may still \
                 hold a lease"
                    .to_owned(),
            );
        }
        latest.map(|(until, why)| Gate::Shut { why, until: Some(until) })
    }

    /// When a copy that was ended by a decision has ended for certain, in the leader's own time, whatever its machine
    /// says; none while only that machine can say it.
    fn copy_is_over(&self, machine: MachineId, retired: &Retired) -> Option<Time> {
        let stop = retired.exclusive?;
        let machine = self.machines.get(&machine).filter(|m| m.state == MachineState::Unreachable)?;
        if planted::is(Fault::StopNotAwaited) {
            return Some(machine.lease_until);
        }
        Some(machine.lease_until + self.settings.exclusive_end(stop))
    }

    fn is_unreachable(&self, id: MachineId) -> bool {
        self.machines.get(&id).is_some_and(|machine| machine.state == MachineState::Unreachable)
    }

    /// The first unit that the start waits for, and why.
    fn missing_dependency(&self, options: &Options) -> Option<String> {
        for name in &options.requires {
            match self.units.get(name) {
                None => {
                    return Some(format!("it requires {name}, which the cluster does not know; submit it"));
                }
                Some(unit) if self.has_become_active(name, unit) => {}
                Some(unit) => {
                    let why = self.why_not_started(name, unit);
                    let why = why.unwrap_or_else(|| "which is not active yet".to_owned());
                    return Some(format!("it requires {name}, {why}"));
                }
            }
        }
        let starts = |name: &&UnitName| {
            self.units.get(name).is_some_and(|unit| {
                !self.has_become_active(name, unit) && self.why_not_started(name, unit).is_none()
            })
        };
        let after = options.after.iter().find(starts)?;
        // It may wait itself.
        Some(format!("it is started after {after}, which is not active yet"))
    }

    /// Why a unit that is not active will not become so by itself; none where it is being started, or waits for that itself.
    fn why_not_started(&self, name: &UnitName, unit: &Unit) -> Option<String> {
        if unit.desired != DesiredState::Launched {
            return Some(format!("which is {}; start it", unit.desired));
        }
        if self.current_copies(name, unit).any(Observation::has_failed) {
            return Some("which has failed".to_owned());
        }
        if self.current_copies(name, unit).any(Observation::has_ended) {
            return Some("which has ended".to_owned());
        }
        let mut why = Some("which is on no machine".to_owned());
        for id in unit.placements.keys() {
            // One of those of a global unit is enough.
            let idle = self.machines.get(id)?.why_idle()?;
            why = Some(format!("whose machine {} {idle}", id.short()));
        }
        why
    }

    /// Whether a copy of the unit is active somewhere, or it has run to its end.
    fn has_become_active(&self, name: &UnitName, unit: &Unit) -> bool {
        unit.done
            || self.current_copies(name, unit).any(|copy| {
                // One of those of a global unit may have run to its end.
                copy.is_active() || copy.has_ended() && unit.options.ends
            })
    }

    fn current_copies<'a>(
        &'a self,
        name: &'a UnitName,
        unit: &'a Unit,
    ) -> impl Iterator<Item = &'a Observation> {
        unit.placements.iter().filter_map(move |(machine, epoch)| {
            let copy = self.machines.get(machine)?.observed.get(name)?;
            (copy.epoch == *epoch).then_some(&copy.observation)
        })
    }

    /// Something about the unit is other than before: those that wait for it are looked at.
    pub(super) fn look_at_dependents(&mut self, name: &UnitName) {
        if let Some(dependents) = self.dependents.get(name) {
            self.gates.due.extend(dependents.iter().cloned());
        }
    }

    /// Why the unit's placement is not carried out yet, if it has one and something speaks against that.
    pub(super) fn withheld(&self, name: &UnitName, unit: &Unit) -> Option<&str> {
        unit.placements.iter().find_map(|(machine, epoch)| match self.gates.of(*machine, name, *epoch)? {
            Gate::Shut { why, .. } | Gate::Loaded { why } => Some(&**why),
            Gate::Open => None,
        })
    }

    /// An exclusive unit does not go where an older copy of it is that no lease ends: were the machine lost, nobody would
    /// know when that one is gone.
    pub(super) fn old_copies_allow(&self, units: &[UnitName], machine: MachineId) -> bool {
        units.iter().all(|name| {
            let exclusive = self.units.get(name).and_then(|unit| unit.options.exclusive);
            let Some(stop) = exclusive else { return true };
            let retired = self.retired.get(&(machine, name.clone()));
            retired.is_none_or(|retired| retired.exclusive.is_some_and(|old| old <= stop))
        })
    }
}

impl Unit {
    /// Whether a machine that says this of the unit's current placement has begun to start it, and so was told to.
    fn has_begun(&self, observation: &Observation) -> bool {
        match observation {
            Observation::Refused(_)
            | Observation::Held { phase: Phase::Loaded | Phase::Stopping | Phase::StopFailed(_), .. } => {
                false
            }
            _ if self.options.exclusive.is_some() => was_started_for_certain(observation),
            Observation::Held { .. } => true,
        }
    }
}

/// Whether the machine's systemd has said that the copy runs, and nobody has begun to end it; or that it has ended by
/// itself.
fn was_started_for_certain(observation: &Observation) -> bool {
    match observation {
        Observation::Held { phase: Phase::Starting, state: Some(state) } => {
            matches!(&*state.active, "active" | "reloading" | "activating")
        }
        Observation::Held { phase: Phase::Launched, state: Some(state) } => state.active != "deactivating",
        Observation::Held { phase: Phase::StartFailed(_) | Phase::Failed(_), .. } => true,
        Observation::Held { .. } | Observation::Refused(_) => false,
    }
}
