//! The leader doubts itself first: before it takes machines for dead, it looks at its own stalls, and at how many seem
//! to have died at once. False deaths hurt people more than slow ones.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Event, Leader, Machine, Settings, Unit};
use crate::command::BrakeStatus;
use crate::ids::MachineId;
use crate::leader::io::RequestId;
use crate::leader::{Effect, ReleaseReason};
use crate::machine::MachineState;
use crate::planted::{self, Fault};
use crate::time::Time;
use crate::unit::UnitName;

/// How often the leader looks at its clock, to see its own stalls.
pub(super) const PULSE: Duration = Duration::from_millis(250);
/// How late it may do so before that counts as a stall.
pub(super) const TOLERANCE: Duration = Duration::from_millis(100);
/// How often stalls are told of at most. One that is due to load comes with many others.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// How long the store may owe an answer before that is told.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// The leader's own time: it stands still while the leader is stalled (its process paused, its loop blocked, its host
/// suspended), so that no machine's lease ends for that.
#[derive(Debug)]
pub(super) struct Awake {
    /// When the leader last looked at its clock, and when it does so next, at the latest.
    looked: Time,
    pulse: Time,
    stalled: Duration,
    /// How much of that was not told of yet, and when it was last.
    untold: Duration,
    told: Option<Time>,
}

impl Awake {
    pub(super) fn new(now: Time) -> Self {
        Self { looked: now, pulse: now + PULSE, stalled: Duration::ZERO, untold: Duration::ZERO, told: None }
    }

    /// It is `now`, and the leader leads until then. Once a stall is over, gives how long the leader was stalled since
    /// that was last told.
    fn look(&mut self, now: Time, leads: Option<Time>) -> Option<Duration> {
        let late = Some(now.since(self.pulse)).filter(|late| *late > TOLERANCE);
        let deposed = leads.map_or(Duration::ZERO, |until| now.since(until.max(self.looked)));
        (self.looked, self.pulse) = (now, now + PULSE);
        if !planted::is(Fault::StallsCount) {
            // Both ended just now.
            self.stalled += late.unwrap_or_default().max(deposed);
        }
        if let Some(late) = late {
            self.untold += late;
            return None;
        }
        let told = self.told.is_some_and(|told| now.since(told) < TELL_INTERVAL);
        (!self.untold.is_zero() && !told).then(|| {
            self.told = Some(now);
            std::mem::take(&mut self.untold)
        })
    }

    /// What the leader's own time is at this moment.
    pub(super) fn at(&self, now: Time) -> Time {
        now - self.stalled
    }

    /// When that moment of the leader's own time comes, if the leader is not stalled before; earlier, if it must look
    /// at its clock before.
    pub(super) fn timer(&self, at: Option<Time>) -> Time {
        at.map_or(self.pulse, |at| self.pulse.min(at + self.stalled))
    }
}

/// Why nothing is moved: too many machines seemed to die at once.
#[derive(Debug)]
pub(super) struct Brake {
    /// In the leader's own time.
    since: Time,
    machines: BTreeSet<MachineId>,
    /// Since when only few of them have been away.
    few_since: Option<Time>,
}

impl Leader {
    /// Takes note of stalls.
    pub(super) fn look_at_clock(&mut self) {
        if let Some(stalled) = self.awake.look(self.now, self.office.until) {
            self.event(Event::Stalled(stalled));
        }
        self.look_at_store();
    }

    /// The store has answered: what it owes still it owes since now.
    pub(super) fn store_answers(&mut self) {
        self.store_silent = (!self.outbox.is_durable()).then(|| (self.awake(), false));
    }

    /// All that the leader decides waits for the store, also what it has to tell: that it waits is told at once, and once.
    pub(super) fn look_at_store(&mut self) {
        if let Some((since, false)) = self.store_silent
            && self.awake().since(since) >= STORE_PATIENCE
        {
            self.store_silent = Some((since, true));
            self.outbox.now(Effect::Event(Event::StoreSilent(self.awake().since(since))));
        }
    }

    /// The leader's own time.
    pub(super) fn awake(&self) -> Time {
        self.awake.at(self.now)
    }

    /// This machine's lease is about to be over: if too many seem to die at once, nothing is moved. Gives the moment,
    /// in the leader's own time, if it counts as a death.
    pub(super) fn consider_brake(&mut self, dying: MachineId) -> Option<Time> {
        let awake = self.awake();
        let alive = self.machines.get(&dying).is_some_and(Machine::is_alive);
        let placed = |name| self.units.get(name).is_some_and(|unit| unit.placements.contains_key(&dying));
        if !alive && !self.placer.units_on(dying).any(placed) {
            return None;
        }
        // It has said so.
        if self.machines.get(&dying).is_some_and(|machine| machine.record.leaving) {
            return None;
        }
        if self.machines.get(&dying).is_some_and(|machine| machine.undoubted) {
            return Some(awake);
        }
        let mut suspects: BTreeSet<MachineId> = self.machines_that(|m| {
            m.is_suspect(awake, &self.settings) || m.is_alive() && planted::is(Fault::BrakeNamesTheLiving)
        });
        suspects.insert(dying);
        if !self.are_too_many(&suspects) || planted::is(Fault::NoBrake) {
            return Some(awake);
        }
        if let Some(brake) = &mut self.brake {
            brake.machines.append(&mut suspects);
        } else {
            let (machines, of) = (suspects.iter().copied().collect(), self.alive_or(&suspects));
            let units = self.held_for(&suspects);
            self.event(Event::BrakeApplied { machines, of, units });
            self.brake = Some(Brake { since: awake, machines: suspects, few_since: None });
        }
        Some(awake)
    }

    /// Releases the brake when the machines are back, or was held for long enough. Of those that come back from a cut the
    /// last ones have a lease's time; then so few as would not have put the brake on count as dead.
    pub(super) fn consider_release(&mut self) {
        let Some(brake) = &self.brake else { return };
        let awake = self.awake();
        let away = |id: &&MachineId| {
            self.machines.get(id).is_some_and(|m| {
                !m.record.leaving
                    && (m.state == MachineState::Unreachable || m.is_suspect(awake, &self.settings))
            })
        };
        let away: BTreeSet<MachineId> = brake.machines.iter().filter(away).copied().collect();
        let others = self.sees_others();
        let few = away.is_empty() || !self.are_too_many(&away);
        let lease = self.lease();
        let held = self.brake_ends().is_some_and(|ends| awake >= ends);
        let Some(brake) = &mut self.brake else { return };
        brake.few_since = brake.few_since.filter(|_| few).or(few.then_some(awake));
        let few_for_long = brake.few_since.is_some_and(|since| awake.since(since) >= lease);
        if away.is_empty() || few_for_long {
            self.release_brake(ReleaseReason::MachinesBack);
        } else if others && held {
            self.release_brake(ReleaseReason::HoldPassed);
        }
    }

    /// An operator says that the machines are really dead.
    pub(super) fn release_brake_for(&mut self, request: RequestId) {
        let held = self.brake.is_some();
        let released = held.then(|| self.release_brake(ReleaseReason::Operator));
        self.hold(Effect::AnswerRelease(request, released));
    }

    /// Gives the machines that count as dead from now on.
    fn release_brake(&mut self, reason: ReleaseReason) -> Vec<MachineId> {
        let awake = self.awake();
        let mut released = Vec::new();
        let Some(Brake { machines, .. }) = self.brake.take() else { return released };
        let units = self.held_for(&machines);
        for &id in &machines {
            // Of those that are back nobody says that they are dead.
            if let Some(machine) = self.machines.get_mut(&id)
                && (machine.state == MachineState::Unreachable || machine.is_suspect(awake, &self.settings))
            {
                machine.undoubted = true;
                released.push(id);
            }
        }
        self.queue.refresh();
        self.event(Event::BrakeReleased { machines: machines.into_iter().collect(), units, reason });
        released
    }

    /// When the brake is released if nothing else happens, in the leader's own time.
    pub(super) fn brake_ends(&self) -> Option<Time> {
        Some(self.brake.as_ref()?.since + self.brake_hold())
    }

    fn brake_hold(&self) -> Duration {
        let held = self.settings.brake_hold;
        if planted::is(Fault::BrakeEndsEarly) { held / 4 } else { held }
    }

    /// What is told of the brake while it is on.
    pub(super) fn braked(&self) -> Option<BrakeStatus> {
        let brake = self.brake.as_ref()?;
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let awake = self.awake();
        let left = self.brake_ends()?.since(awake);
        Some(BrakeStatus {
            machines: brake.machines.iter().copied().collect(),
            held_ms: ms(awake.since(brake.since)),
            left_ms: if self.sees_others() { ms(left) } else { 0 },
        })
    }

    /// Whether the brake holds the units of this machine where they are: one of which nothing is known.
    pub(super) fn is_braked(&self, id: MachineId) -> bool {
        self.brake.is_some() && self.machines.get(&id).is_some_and(Machine::is_missed)
    }

    /// The units that a brake for these machines holds where they are.
    fn held_for(&self, machines: &BTreeSet<MachineId>) -> Vec<UnitName> {
        let mut held = BTreeSet::new();
        for id in self.machines_that(Machine::is_missed).union(machines) {
            held.extend(self.would_move_off(*id).cloned());
        }
        held.into_iter().collect()
    }

    /// The units that are moved off the machine if it is lost and nothing holds them there.
    pub(super) fn would_move_off(&self, id: MachineId) -> impl Iterator<Item = &UnitName> {
        let moves =
            move |unit: &Unit| !unit.options.global && !unit.done && unit.placements.contains_key(&id);
        self.placer.units_on(id).filter(move |name| self.units.get(name).is_some_and(moves))
    }

    /// Whether any machine but the leader's own is up: a leader that is itself cut off sees none, and must not act on
    /// that.
    fn sees_others(&self) -> bool {
        self.machines.iter().any(|(id, machine)| {
            let own = Some(*id) == self.settings.own_machine && !planted::is(Fault::OwnMachineCounts);
            machine.is_alive() && machine.session.is_some() && !own
        })
    }

    /// Whether so many machines do not die at once: a third of the cluster and at least two, or all but the leader's
    /// own. One that is lost is always replaced.
    fn are_too_many(&self, suspects: &BTreeSet<MachineId>) -> bool {
        let all = self.alive_or(suspects);
        let own = self.settings.own_machine.filter(|own| !suspects.contains(own));
        let own = own.is_some_and(|own| self.machines.get(&own).is_some_and(Machine::is_alive));
        let least = if planted::is(Fault::BrakeForOne) { 1 } else { 2 };
        suspects.len() >= least
            && (suspects.len() >= all.div_ceil(3) || suspects.len() + usize::from(own) >= all)
    }

    /// How many machines are alive or among these.
    fn alive_or(&self, suspects: &BTreeSet<MachineId>) -> usize {
        let counts = |(id, machine): &(&MachineId, &Machine)| {
            machine.is_alive() || suspects.contains(id) || planted::is(Fault::BrakeCountsTheDead)
        };
        self.machines.iter().filter(counts).count()
    }

    fn machines_that(&self, is: impl Fn(&Machine) -> bool) -> BTreeSet<MachineId> {
        self.machines.iter().filter(|(_, machine)| is(machine)).map(|(id, _)| *id).collect()
    }
}

impl Machine {
    /// Whether the machine counts as one of the cluster's. One that has not been heard from since the leader took
    /// office, and from which there is nothing to move, may have been away for years.
    fn is_alive(&self) -> bool {
        matches!(self.state, MachineState::Up | MachineState::Degraded)
    }

    /// Whether the machine is lost, and has not said that it goes.
    fn is_missed(&self) -> bool {
        self.state == MachineState::Unreachable && !self.record.leaving
    }

    /// Whether the machine was lost within the last lease, or has a lease and is silent for over two heartbeats, and its
    /// death is not beyond doubt.
    fn is_suspect(&self, awake: Time, settings: &Settings) -> bool {
        let lease = settings.lease();
        if self.undoubted || self.record.leaving {
            return false;
        }
        match (self.lost, self.deadline) {
            (Some(lost), _) => awake.since(lost) <= lease,
            (None, Some(deadline)) => {
                // An agent that is restarted has the time that it was given.
                let heard = if self.record.restarting { deadline - lease } else { self.counts_from };
                self.last_heard.is_some() && awake.since(heard) > settings.heartbeat_interval * 2
            }
            (None, None) => false,
        }
    }
}
