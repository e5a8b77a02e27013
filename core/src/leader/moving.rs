//! Machines that are emptied: by an operator's word (drain), or since they shut down (goodbye).
//!
//! Their units are placed elsewhere as those of a lost machine are, but what runs there runs on until it is seen to be
//! active elsewhere: its old copy lingers. What runs to its end may do so first, while the drain lasts. What fits nowhere
//! else stays. What makes room for a unit that replaces it moves in the same way. Global units go nowhere else: a drain stops them
//! when nothing else is left.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Change, Copy, Effect, Event, Leader, LingerEnd, Machine, Unit, UnplaceReason};
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

/// How far the drain of a machine is.
#[derive(Debug)]
pub(super) struct OngoingDrain {
    /// When its time has passed, in the leader's own time: then nothing waits any more.
    ends: Time,
    /// Whether that is so, and what waited was looked at again.
    over: bool,
    /// Whether it was told that nothing is left there.
    empty: bool,
}

/// A unit on its way from a machine to another one, where it is to be started.
#[derive(Clone, Copy, Debug)]
struct Move {
    /// Until when it may be, in the leader's own time.
    ends: Time,
    /// Whether its old copy runs on until the new one is active. That of an exclusive unit, or of a one-shot one, does not.
    runs_on: bool,
    /// Whether it has failed since where it goes. Then nothing but its being active there ends the old copy.
    failed: bool,
}

/// Units on their way from these machines.
#[derive(Debug, Default)]
pub(super) struct Lingering(BTreeMap<MachineId, BTreeMap<UnitName, Move>>);

impl Lingering {
    fn insert(&mut self, machine: MachineId, name: &UnitName, moves: Move) {
        self.0.entry(machine).or_default().insert(name.clone(), moves);
    }

    fn iter(&self) -> impl Iterator<Item = (MachineId, &UnitName, Move)> {
        self.0.iter().flat_map(|(machine, names)| names.iter().map(|(name, moves)| (*machine, name, *moves)))
    }

    fn get(&self, machine: MachineId, name: &UnitName) -> Option<&Move> {
        self.0.get(&machine)?.get(name)
    }

    /// Whether the unit is on its way from there.
    fn moves(&self, machine: MachineId, name: &UnitName) -> bool {
        self.get(machine, name).is_some()
    }

    /// Whether it is, and its old copy there runs on.
    pub(super) fn runs_on(&self, machine: MachineId, name: &UnitName) -> bool {
        self.get(machine, name).is_some_and(|moves| moves.runs_on)
    }

    /// What is on its way from there.
    fn from(&self, machine: MachineId) -> impl Iterator<Item = &UnitName> {
        self.0.get(&machine).into_iter().flat_map(BTreeMap::keys)
    }

    /// The unit has failed where it goes.
    fn has_failed(&mut self, name: &UnitName) {
        self.0.values_mut().filter_map(|names| names.get_mut(name)).for_each(|moves| moves.failed = true);
    }

    /// What is on its way from there has until then.
    fn put_off(&mut self, machine: MachineId, ends: Time) {
        self.0
            .get_mut(&machine)
            .into_iter()
            .flat_map(BTreeMap::values_mut)
            .for_each(|moves| moves.ends = ends);
    }

    fn remove(&mut self, machine: MachineId, name: &UnitName) -> Option<Move> {
        let names = self.0.get_mut(&machine)?;
        let was = names.remove(name);
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
        // What was decided since stays as it is when a command comes again.
        let known = self.knows_result_of(command.id) && !planted::is(Fault::MachinesChangedAgain);
        let result = unknown.map_or(Ok(()), |id| Err(MachineCommandError::NoSuchMachine(*id)));
        if result.is_ok() && !known {
            for id in &command.machines {
                self.set_availability(*id, command.availability);
            }
            self.keep_result(command.id, Ok(Vec::new()));
        }
        if planted::is(Fault::AvailabilityBeforeCommit) {
            return self.outbox.now(Effect::AnswerMachines(request, result));
        }
        self.hold(Effect::AnswerMachines(request, result));
    }

    fn set_availability(&mut self, id: MachineId, availability: Availability) {
        let was = self.machines.get(&id).map(|machine| machine.availability);
        // The same command may come again, since its answer was lost: the time of a drain that goes on is no other then.
        let awake = self.awake();
        let goes_on = |drain: &OngoingDrain| !drain.over && awake < drain.ends;
        let goes_on = was == Some(availability) && self.drains.get(&id).is_some_and(goes_on);
        if !goes_on || planted::is(Fault::DrainAgainIsLonger) {
            self.take_availability(id, availability);
        }
        if was != Some(availability) {
            self.turn.changes.push(Change::PutAvailability(id, availability));
        }
        if was != Some(availability) || self.drains.contains_key(&id) && !goes_on {
            self.event(Event::Availability { machine: id, availability });
        }
        self.update_openness(id);
        self.empty(id);
        self.look_at_copies(id);
    }

    /// What was decided of the machine is this.
    pub(super) fn take_availability(&mut self, id: MachineId, availability: Availability) {
        let awake = self.awake();
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.availability = availability;
        self.drains.remove(&id);
        if let Availability::Draining(drain) = availability {
            let ends = awake + drain.timeout();
            self.drains.insert(id, OngoingDrain { ends, over: false, empty: false });
            self.lingering.put_off(id, ends);
        }
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
                let deadline = machine.deadline.filter(|_| !machine.record.leaving && !paused);
                let Some(deadline) = deadline else { return self.farewell(id, None) };
                if deadline < restart {
                    machine.deadline = Some(restart);
                    self.deadlines.remove(&(deadline, id));
                    self.deadlines.insert((restart, id));
                }
                machine.lease_until = machine.lease_until.max(restart);
                machine.record.restarting = true;
                machine.record.grace = machine.record.grace.max(lease);
                self.unsaved.insert(id);
                self.farewell(id, Some(lease));
                self.event(Event::AgentRestarts { machine: id, grace: lease });
            }
            Goodbye::Shutdown => {
                if !std::mem::replace(&mut machine.record.leaving, true) {
                    self.unsaved.insert(id);
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
            // Nothing is started any more on a machine that shuts down.
            self.look_at_dependents(&name);
            self.turn.seen.push(name);
        }
    }

    /// The unit was placed elsewhere: what it has on this machine runs on, if it does anything there and may run twice,
    /// until it is seen to be active elsewhere.
    pub(super) fn linger(&mut self, name: &UnitName, from: MachineId) {
        let launched = self.units.get(name).is_some_and(|unit| unit.desired == DesiredState::Launched);
        let Some(machine) = self.machines.get(&from) else { return };
        let runs = machine.observed.get(name).is_some_and(Copy::runs);
        let stops_first = planted::is(Fault::DrainStopsFirst)
            || planted::is(Fault::ReplacedStopsFirst) && self.makes_room(name);
        let runs_on = self.units.get(name).is_some_and(Unit::may_run_twice) && !stops_first;
        if launched && runs && machine.state != MachineState::Unreachable {
            let ends = self.lingers_until(from);
            self.lingering.insert(from, name, Move { ends, runs_on, failed: false });
        }
    }

    /// Whether one of these runs to its end on a machine that is drained, and has the time to: what it has done would be
    /// done a second time elsewhere.
    pub(super) fn may_run_to_its_end(&self, units: &[UnitName]) -> bool {
        let at_work = |name: &UnitName| {
            let unit = self.units.get(name).filter(|unit| {
                unit.options.ends
                    && unit.desired == DesiredState::Launched
                    && !planted::is(Fault::DrainRunsAgain)
            })?;
            let (id, epoch) = unit.placements.iter().next()?;
            let machine = self.machines.get(id).filter(|machine| machine.why_idle().is_none())?;
            let has_time = self.drains.get(id).is_some_and(|drain| !drain.over);
            let copy = machine.observed.get(name).filter(|copy| copy.epoch == *epoch)?;
            Some(has_time && copy.is_at_work())
        };
        units.iter().any(|name| at_work(name) == Some(true))
    }

    /// When what lingers on the machine from now on is stopped in any case.
    fn lingers_until(&self, id: MachineId) -> Time {
        match self.machines.get(&id).map(|machine| machine.availability) {
            Some(Availability::Draining(drain)) if planted::is(Fault::DrainEndsUnitByUnit) => {
                self.awake() + drain.timeout()
            }
            _ => self.drains.get(&id).map_or(self.awake() + SHUTDOWN_TIMEOUT, |drain| drain.ends),
        }
    }

    /// When the time of what moves has passed next.
    pub(super) fn next_move_ends(&self) -> Option<Time> {
        let moves = self.lingering.iter().map(|(_, _, moves)| moves.ends);
        let ends = moves.chain(self.drains.values().map(|drain| drain.ends));
        ends.filter(|ends| *ends > self.awake()).min()
    }

    /// Finds what lingers among the copies that were ended, after the memory of it was lost.
    pub(super) fn find_lingering(&mut self) {
        self.lingering = Lingering::default();
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.find_lingering_on(id);
        }
    }

    pub(super) fn find_lingering_on(&mut self, id: MachineId) {
        let left = self.machines.get(&id).is_some_and(|machine| {
            machine.state != MachineState::Unreachable
                && (machine.record.leaving || self.drains.contains_key(&id))
        });
        if !left && self.replacers.is_empty() {
            return;
        }
        let ends = self.lingers_until(id);
        for name in self.placer.units_on(id).cloned().collect::<Vec<_>>() {
            // What is on no machine may have been ended for what it is tied to.
            let moved = self.units.get(&name).filter(|unit| {
                unit.desired == DesiredState::Launched && !unit.options.global && !unit.placements.is_empty()
            });
            let retired = self.retired.contains_key(&(id, name.clone()));
            let leaves = || left || self.makes_room(&name);
            if let Some(unit) = moved.filter(|_| retired && !self.lingering.moves(id, &name) && leaves()) {
                let runs_on = unit.may_run_twice();
                self.lingering.insert(id, &name, Move { ends, runs_on, failed: false });
            }
        }
    }

    /// Whether the unit is where it may become active by itself: else it is not waited for, and nothing of it is stopped
    /// either.
    fn may_become_active(&self, name: &UnitName) -> bool {
        if self.is_given_up(name) {
            return false;
        }
        let on = self.units.get(name).and_then(|unit| unit.placements.keys().next());
        on.and_then(|id| self.machines.get(id)).is_some_and(|machine| machine.why_idle().is_none())
    }

    /// Whether as many units of the machine are on their way elsewhere as may be. What was given up there is not.
    pub(super) fn moves_enough(&self, id: MachineId) -> bool {
        self.machines.get(&id).is_some_and(|machine| match machine.availability {
            _ if machine.state == MachineState::Unreachable => false,
            Availability::Draining(_) if self.drains.get(&id).is_some_and(|drain| drain.over) => false,
            Availability::Draining(drain) => {
                let moves = self.lingering.from(id).filter(|name| !self.is_given_up(name));
                moves.count() >= drain.max_parallel()
            }
            Availability::Open | Availability::Cordoned => false,
        })
    }

    /// What this observation of a unit's current copy means for its old ones: once it is active they go.
    pub(super) fn look_at_lingering(&mut self, name: &UnitName, observation: &Observation) {
        if observation.is_active() {
            self.end_lingering(name, LingerEnd::Active);
        } else if observation.has_failed() {
            self.lingering.has_failed(name);
        }
    }

    /// The unit was given up where it goes: others may go meanwhile.
    pub(super) fn let_others_move(&mut self, name: &UnitName) {
        for machine in self.lingering.machines_of(name) {
            self.empty(machine);
        }
    }

    /// The old copies of the unit are stopped now.
    pub(super) fn end_lingering(&mut self, name: &UnitName, reason: LingerEnd) {
        for machine in self.lingering.machines_of(name) {
            self.end_lingering_on(machine, name, reason);
        }
    }

    fn end_lingering_on(&mut self, machine: MachineId, name: &UnitName, reason: LingerEnd) {
        if self.forget_move(machine, name) {
            self.turn.tell(machine, name);
            self.event(Event::LingeringEnded { unit: name.clone(), machine, reason });
        }
    }

    /// The unit is not on its way from the machine any more: the next one may go. Says whether its old copy ran on there.
    pub(super) fn forget_move(&mut self, machine: MachineId, name: &UnitName) -> bool {
        let enough = self.moves_enough(machine);
        let was = self.lingering.remove(machine, name);
        if was.is_some() && enough {
            self.empty(machine);
        }
        was.is_some_and(|moves| moves.runs_on)
    }

    /// Where the time of a drain has passed, what waited for its turn moves now.
    pub(super) fn end_drains(&mut self) {
        let awake = self.awake();
        let ends =
            |drain: &OngoingDrain| !drain.over && drain.ends <= awake && !planted::is(Fault::DrainNeverEnds);
        let over: Vec<MachineId> =
            self.drains.iter().filter(|(_, drain)| ends(drain)).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(drain) = self.drains.get_mut(&id) {
                drain.over = true;
            }
            self.empty(id);
            let units: Vec<UnitName> = self.left_on(id).cloned().collect();
            if !units.is_empty() {
                self.event(Event::NotDrained { machine: id, units });
            }
        }
    }

    /// What is placed on the machine, being stopped there, or orphaned.
    pub(super) fn left_on(&self, id: MachineId) -> impl Iterator<Item = &UnitName> {
        let orphaned = self.strays.iter().filter(move |(name, on)| {
            on.get(&id).is_some_and(|epoch| self.is_orphan(id, name, *epoch))
                && !self.placer.copies(name).any(|machine| machine == id)
        });
        self.placer.units_on(id).chain(orphaned.map(|(name, _)| name))
    }

    /// Tells of a drained machine once it has said that nothing is left there.
    fn look_whether_drained(&mut self, id: MachineId) {
        let heard = self.machines.get(&id).is_some_and(|machine| machine.state.is_heard());
        let told = self.drains.get(&id).is_some_and(|drain| drain.empty);
        let has_units = self.placer.units_on(id).next().is_some();
        let empty = !has_units && (told || heard && self.left_on(id).next().is_none());
        if empty && !told {
            self.event(Event::Drained(id));
        }
        if let Some(drain) = self.drains.get_mut(&id) {
            drain.empty = empty;
        }
    }

    /// Ends what lingers beyond its time, stops global units where nothing else is left to drain, and says farewell to
    /// machines of which nothing more can be moved.
    pub(super) fn finish_moves(&mut self) {
        let awake = self.awake();
        let over = |(id, name, moves): &(MachineId, &UnitName, Move)| {
            let copy = self.machines.get(id).and_then(|machine| machine.observed.get(*name));
            let runs_on = moves.runs_on && copy.is_none_or(Copy::runs);
            let replaced =
                !moves.failed && self.may_become_active(name) || planted::is(Fault::DrainStopsTheLast);
            moves.ends <= awake && !planted::is(Fault::DrainNeverEnds) && (!runs_on || replaced)
        };
        let over: Vec<(MachineId, UnitName)> =
            self.lingering.iter().filter(over).map(|(id, name, _)| (id, name.clone())).collect();
        for (id, name) in over {
            self.end_lingering_on(id, &name, LingerEnd::TimePassed);
        }
        for id in self.drains.keys().copied().collect::<Vec<_>>() {
            let is_global = |name: &UnitName| self.units.get(name).is_some_and(|unit| unit.options.global);
            if self.placer.units_on(id).all(is_global) {
                let placed = |name: &&UnitName| {
                    self.units.get(name).is_some_and(|unit| unit.placements.contains_key(&id))
                };
                for name in self.placer.units_on(id).filter(placed).cloned().collect::<Vec<_>>() {
                    self.unplace(&name, id);
                    self.event(Event::Unplaced { unit: name, machine: id, reason: UnplaceReason::Drained });
                }
            }
            self.look_whether_drained(id);
        }
        for id in self.farewells.clone() {
            let waits = |(on, name, moves): (MachineId, &UnitName, Move)| {
                on == id && moves.runs_on && self.may_become_active(name)
            };
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

impl Unit {
    /// Whether a second copy may be started while one runs. What runs to its end would do its work twice.
    fn may_run_twice(&self) -> bool {
        self.options.exclusive.is_none() && !self.options.ends
    }
}

impl Copy {
    /// Whether it was started, and has not ended, as far as its machine has said.
    pub(super) fn is_at_work(&self) -> bool {
        match &self.observation {
            Observation::Held { phase: Phase::Starting, .. } => true,
            Observation::Held { phase: Phase::Launched, .. } => self.runs(),
            Observation::Held { .. } | Observation::Refused(_) => false,
        }
    }
}

impl Machine {
    /// Whether its units are to be on other machines, if these take them. One that stays with its machine through a
    /// reboot stays there when the machine says goodbye.
    pub(super) fn is_left(&self, keeps: bool) -> bool {
        let goes = self.state == MachineState::Unreachable || self.record.leaving;
        goes && !(keeps && self.record.leaving) || matches!(self.availability, Availability::Draining(_))
    }

    /// Why nothing that is placed on it is started there at present, if that is so.
    pub(super) fn why_idle(&self) -> Option<&'static str> {
        match (self.state, self.record.leaving) {
            (MachineState::Unreachable, true) => Some("was shut down"),
            (MachineState::Unreachable, false) => Some("is unreachable"),
            (_, true) => Some("shuts down"),
            (MachineState::Awaited | MachineState::Up | MachineState::Degraded, false) => None,
        }
    }
}
