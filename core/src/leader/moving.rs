//! Machines that are emptied: by an operator's word (drain), or since they shut down (goodbye).
//!
//! Their units are placed elsewhere as those of a lost machine are, but what runs there runs on until it is seen to be
//! active elsewhere: its old copy lingers. What fits nowhere else stays. Global units go nowhere else: a drain stops them
//! when nothing else is left.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Change, Effect, Event, Leader, LingerEnd, Machine, UnplaceReason};
use crate::command::{MachineCommand, MachineCommandError};
use crate::ids::MachineId;
use crate::leader::io::RequestId;
use crate::machine::{Availability, MachineState};
use crate::message::{Goodbye, LeaderMessage};
use crate::planted::{self, Fault};
use crate::state::{DesiredState, Observation, Phase};
use crate::time::Time;
use crate::unit::UnitName;

/// How long what lingers on a machine that shuts down does so at most: as long as its shutdown waits for that
/// (`TimeoutStopSec=` of `muster-goodbye.service`), also where the shutdown comes to nothing.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// Old copies that run on until the new ones are active, or until a moment of the leader's own time.
#[derive(Debug, Default)]
pub(super) struct Lingering(BTreeMap<MachineId, BTreeMap<UnitName, Time>>);

impl Lingering {
    fn insert(&mut self, machine: MachineId, name: &UnitName, ends: Time) {
        self.0.entry(machine).or_default().insert(name.clone(), ends);
    }

    fn iter(&self) -> impl Iterator<Item = (MachineId, &UnitName, Time)> {
        self.0.iter().flat_map(|(machine, names)| names.iter().map(|(name, ends)| (*machine, name, *ends)))
    }

    /// When the first of them ends, beyond that moment.
    pub(super) fn next_end(&self, after: Time) -> Option<Time> {
        self.iter().map(|(_, _, ends)| ends).filter(|ends| *ends > after).min()
    }

    pub(super) fn contains(&self, machine: MachineId, name: &UnitName) -> bool {
        self.0.get(&machine).is_some_and(|names| names.contains_key(name))
    }

    fn count(&self, machine: MachineId) -> usize {
        self.0.get(&machine).map_or(0, BTreeMap::len)
    }

    /// Says whether it was there.
    pub(super) fn remove(&mut self, machine: MachineId, name: &UnitName) -> bool {
        let Some(names) = self.0.get_mut(&machine) else { return false };
        let was = names.remove(name).is_some();
        if names.is_empty() {
            self.0.remove(&machine);
        }
        was
    }

    fn machines_of(&self, name: &UnitName) -> Vec<MachineId> {
        self.0.iter().filter(|(_, names)| names.contains_key(name)).map(|(machine, _)| *machine).collect()
    }
}

impl Leader {
    /// Carries out a command on machines: all of it, or nothing.
    pub(super) fn command_machines(&mut self, request: RequestId, command: &MachineCommand) {
        let unknown = command.machines.iter().find(|id| !self.machines.contains_key(id));
        let result = unknown.map_or(Ok(()), |id| Err(MachineCommandError::NoSuchMachine(*id)));
        if result.is_ok() {
            for id in &command.machines {
                self.set_availability(*id, command.availability);
            }
        }
        if planted::is(Fault::AvailabilityBeforeCommit) {
            return self.outbox.now(Effect::AnswerMachines(request, result));
        }
        self.hold(Effect::AnswerMachines(request, result));
    }

    fn set_availability(&mut self, id: MachineId, availability: Availability) {
        let was = self.machines.get(&id).map(|machine| machine.availability);
        self.take_availability(id, availability);
        if was != Some(availability) {
            self.turn.changes.push(Change::PutAvailability(id, availability));
            self.event(Event::Availability { machine: id, availability });
        }
        self.update_openness(id);
        self.empty(id);
        self.look_at_copies(id);
    }

    /// What was decided of the machine is this.
    pub(super) fn take_availability(&mut self, id: MachineId, availability: Availability) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.availability = availability;
        match availability {
            Availability::Draining(_) => self.drains.insert(id),
            Availability::Open | Availability::Cordoned => self.drains.remove(&id),
        };
    }

    /// A machine goes.
    pub(super) fn goodbye(&mut self, id: MachineId, goodbye: Goodbye) {
        let none = planted::is(Fault::NoRestartGrace);
        let restart = self.awake() + if none { self.lease() } else { self.restart_grace() };
        // What is not written down is promised to nobody: the next leader would not know of it.
        let paused = self.paused_until.is_some();
        let lease = self.settings.restart_grace;
        let Some(machine) = self.machines.get_mut(&id) else { return };
        match goodbye {
            Goodbye::Restart => {
                // One that is shut down is not waited for.
                let deadline = machine.deadline.filter(|_| !machine.leaving && !paused);
                let Some(deadline) = deadline else { return self.farewell(id, None) };
                if deadline < restart {
                    machine.deadline = Some(restart);
                    self.deadlines.remove(&(deadline, id));
                    self.deadlines.insert((restart, id));
                }
                machine.lease_until = machine.lease_until.max(restart);
                machine.record.restarting = true;
                machine.record.lease = machine.record.lease.max(lease);
                self.unsaved.insert(id);
                self.farewell(id, Some(lease));
                self.event(Event::AgentRestarts { machine: id, grace: lease });
            }
            Goodbye::Shutdown => {
                if !machine.leaving {
                    machine.leaving = true;
                    self.event(Event::MachineLeaves(id));
                }
                self.update_openness(id);
                self.empty(id);
                self.farewells.insert(id);
            }
        }
    }

    /// Looks again at what is to leave the machine, or to stay.
    fn empty(&mut self, id: MachineId) {
        for name in self.placer.units_on(id).cloned().collect::<Vec<_>>() {
            self.mark(&name);
            self.turn.seen.push(name);
        }
    }

    /// The unit was placed elsewhere: what it has on this machine runs on, if it does anything there, until it is seen
    /// to be active elsewhere.
    pub(super) fn linger(&mut self, name: &UnitName, from: MachineId) {
        let launched = self.units.get(name).is_some_and(|unit| unit.desired == DesiredState::Launched);
        let Some(machine) = self.machines.get(&from) else { return };
        let runs = machine.observed.get(name).is_some_and(super::Copy::runs);
        let may_run_twice = self.units.get(name).is_some_and(|unit| unit.options.exclusive.is_none());
        let may_run_twice = may_run_twice && !planted::is(Fault::DrainStopsFirst);
        if launched && runs && may_run_twice && machine.state != MachineState::Unreachable {
            let ends = self.lingers_until(machine);
            self.lingering.insert(from, name, ends);
        }
    }

    /// When what lingers on the machine from now on is stopped in any case.
    fn lingers_until(&self, machine: &Machine) -> Time {
        self.awake()
            + match machine.availability {
                Availability::Draining(drain) => drain.timeout(),
                Availability::Open | Availability::Cordoned => SHUTDOWN_TIMEOUT,
            }
    }

    /// Finds what lingers among the copies that were ended, after the memory of it was lost.
    pub(super) fn find_lingering(&mut self) {
        self.lingering = Lingering::default();
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.find_lingering_on(id);
        }
    }

    pub(super) fn find_lingering_on(&mut self, id: MachineId) {
        let left = self.machines.get(&id).filter(|machine| {
            machine.state != MachineState::Unreachable && (machine.leaving || self.drains.contains(&id))
        });
        let Some(left) = left else { return };
        let ends = self.lingers_until(left);
        for name in self.placer.units_on(id).cloned().collect::<Vec<_>>() {
            let moved = self.units.get(&name).is_some_and(|unit| {
                unit.desired == DesiredState::Launched
                    && !unit.options.global
                    && unit.options.exclusive.is_none()
                    && !unit.placements.is_empty()
            });
            let retired = self.retired.contains_key(&(id, name.clone()));
            if moved && retired && !self.lingering.contains(id, &name) {
                self.lingering.insert(id, &name, ends);
            }
        }
    }

    /// Whether the unit is where it may become active: else it is not waited for, and nothing of it is stopped either.
    fn may_become_active(&self, name: &UnitName) -> bool {
        let on = self.units.get(name).and_then(|unit| unit.placements.keys().next());
        let machine = on.and_then(|id| self.machines.get(id));
        machine.is_some_and(|machine| machine.state != MachineState::Unreachable && !machine.leaving)
    }

    /// Whether as many units of the machine are on their way elsewhere as may be.
    pub(super) fn moves_enough(&self, id: MachineId) -> bool {
        self.machines.get(&id).is_some_and(|machine| match machine.availability {
            _ if machine.state == MachineState::Unreachable => false,
            Availability::Draining(drain) => self.lingering.count(id) >= drain.max_parallel(),
            Availability::Open | Availability::Cordoned => false,
        })
    }

    /// What this observation of a unit's current copy means for its old ones: once it is active they go.
    pub(super) fn look_at_lingering(&mut self, name: &UnitName, observation: &Observation) {
        let active = matches!(observation, Observation::Held { phase: Phase::Launched, state: Some(state) } if state.active == "active");
        if active {
            self.end_lingering(name, LingerEnd::Active);
        }
    }

    /// The old copies of the unit are stopped now.
    pub(super) fn end_lingering(&mut self, name: &UnitName, reason: LingerEnd) {
        for machine in self.lingering.machines_of(name) {
            self.end_lingering_on(machine, name, reason);
        }
    }

    fn end_lingering_on(&mut self, machine: MachineId, name: &UnitName, reason: LingerEnd) {
        let enough = self.moves_enough(machine);
        if self.lingering.remove(machine, name) {
            self.turn.tell(machine, name);
            self.event(Event::LingeringEnded { unit: name.clone(), machine, reason });
        }
        if enough {
            // The next one may go.
            self.empty(machine);
        }
    }

    /// Ends what lingers beyond its time, stops global units where nothing else is left to drain, and says farewell to
    /// machines of which nothing more can be moved.
    pub(super) fn finish_moves(&mut self) {
        let awake = self.awake();
        let over = |(_, name, ends): &(MachineId, &UnitName, Time)| {
            let placed = self.units.get(name).is_some_and(|unit| !unit.placements.is_empty());
            *ends <= awake && !planted::is(Fault::DrainNeverEnds) && (!placed || self.may_become_active(name))
        };
        let over: Vec<(MachineId, UnitName)> =
            self.lingering.iter().filter(over).map(|(id, name, _)| (id, name.clone())).collect();
        for (id, name) in over {
            self.end_lingering_on(id, &name, LingerEnd::TimePassed);
        }
        for id in self.drains.clone() {
            let is_global = |name: &UnitName| self.units.get(name).is_some_and(|unit| unit.options.global);
            if self.placer.units_on(id).all(is_global) {
                for name in self.placer.units_on(id).cloned().collect::<Vec<_>>() {
                    self.unplace(&name, id);
                    self.event(Event::Unplaced { unit: name, machine: id, reason: UnplaceReason::Drained });
                }
            }
        }
        for id in self.farewells.clone() {
            let waits = |(on, name, _): (MachineId, &UnitName, _)| on == id && self.may_become_active(name);
            // What is exclusive is started elsewhere once the machine has said that it has ended here.
            let ends = |name: &UnitName| {
                let retired = self.retired.get(&(id, name.clone()));
                retired.is_some_and(|retired| retired.exclusive.is_some())
            };
            if !self.lingering.iter().any(waits) && !self.placer.units_on(id).any(ends) {
                self.farewells.remove(&id);
                self.farewell(id, None);
            }
        }
    }

    fn farewell(&mut self, id: MachineId, lease: Option<Duration>) {
        let Some(session) = self.machines.get(&id).and_then(|machine| machine.session.as_ref()) else {
            return;
        };
        let (connection, number) = (session.connection, session.number);
        // What was decided on its units may not be durable yet.
        let message = self.message(number, LeaderMessage::Farewell { lease });
        self.hold(Effect::Send(connection, message));
    }
}

impl Machine {
    /// Whether its units are to be on other machines, if these take them. One that stays with its machine through a
    /// reboot stays there when the machine says goodbye.
    pub(super) fn is_left(&self, keeps: bool) -> bool {
        let goes = self.state == MachineState::Unreachable || self.leaving;
        goes && !(keeps && self.leaving) || matches!(self.availability, Availability::Draining(_))
    }
}
