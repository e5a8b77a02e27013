//! Agents: their hellos, heartbeats and reports, and leases that end.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{
    Arrival, Change, Copy, Effect, Event, Leader, LingerEnd, LossReason, Machine, PlaceReason, Retired,
    Session,
};
use crate::ids::{Epoch, MachineId, Revision, SessionNumber};
use crate::leader::io::ConnectionId;
use crate::machine::{Availability, MachineRecord, MachineState, Pressure};
use crate::message::{
    FromAgent, HeldUnit, Hello, LeaderMessage, Refused, ReportedChange, ToAgent, UnitReport,
};
use crate::planted::{self, Fault};
use crate::state::{DesiredState, Observation, Phase, Target};
use crate::time::Time;
use crate::unit::UnitName;

/// After this time it is said again that a machine is refused.
const REFUSAL_IS_NEWS: Duration = Duration::from_secs(10 * 60);

impl Leader {
    pub(super) fn hear(&mut self, connection: ConnectionId, message: FromAgent) {
        if let FromAgent::Hello(hello) = message {
            // It comes again, to whoever leads then.
            return if self.leads() {
                self.hello(connection, hello);
            } else {
                self.outbox.now(Effect::Close(connection));
            };
        }
        let Some(&id) = self.connections.get(&connection) else { return };
        self.refuse_newcomer(id);
        match message {
            FromAgent::Hello(_) => {}
            FromAgent::Heartbeat { number, pid1_age, pressure } => {
                self.heartbeat(id, number, pid1_age, pressure);
            }
            FromAgent::Report(reports) => {
                for report in reports {
                    self.report(id, report);
                }
            }
            FromAgent::SnapshotWanted => {
                self.turn.snapshots.insert(id);
            }
            FromAgent::Goodbye(goodbye) => self.goodbye(id, goodbye),
        }
    }

    pub(super) fn disconnected(&mut self, connection: ConnectionId) {
        let Some(id) = self.connections.remove(&connection) else {
            return self.rivals.disconnected(connection);
        };
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.session = None;
        }
        self.update_openness(id);
        self.admit_newcomer(id);
    }

    /// A machine presents itself.
    fn hello(&mut self, connection: ConnectionId, hello: Hello) {
        let id = hello.machine;
        let refused = match hello.cluster {
            Some(theirs) if theirs != self.cluster => {
                Some(Refused::OtherCluster { theirs, ours: self.cluster })
            }
            _ if self.term_is_anothers(&hello) => Some(Refused::HigherTermSeen(hello.term)),
            _ if self.opened_later(&hello) => Some(Refused::Replaced),
            // A lease would only be lost again at its first heartbeat.
            _ if hello.pid1_age > self.settings.systemd_timeout => {
                Some(Refused::SystemdSilent(hello.pid1_age))
            }
            _ => None,
        };
        if let Some(refused) = refused {
            let higher = matches!(refused, Refused::HigherTermSeen(term) if term.next() > term);
            let news = self.is_news(id, &refused);
            if higher && !std::mem::replace(&mut self.taking_term, true) {
                self.outbox.now(Effect::TakeTerm { above: hello.term });
            }
            if news {
                self.event(Event::MachineRefused { machine: id, reason: refused.to_string() });
            }
            self.refuse(connection, &hello, refused);
            return;
        }
        if let Some(hello) = self.challenge(connection, hello) {
            self.welcome(connection, hello);
        }
    }

    /// A machine that is refused comes again every few seconds: whether that was not said a while ago.
    fn is_news(&mut self, id: MachineId, refused: &Refused) -> bool {
        let kind = std::mem::discriminant(refused);
        let now = self.now;
        self.refusals.retain(|_, (_, at)| now.since(*at) < REFUSAL_IS_NEWS);
        let known = self.refusals.get(&id).is_some_and(|(said, _)| *said == kind);
        if !known {
            self.refusals.insert(id, (kind, now));
        }
        !known
    }

    /// From here on this session of the machine is the one that counts.
    pub(super) fn welcome(&mut self, connection: ConnectionId, hello: Hello) {
        let id = hello.machine;
        self.rivals.welcomed(&hello);
        let old = self.machines.get_mut(&id).and_then(|machine| machine.session.take());
        if let Some(old) = old.filter(|old| old.connection != connection) {
            self.connections.remove(&old.connection);
            self.say(old.connection, old.number, LeaderMessage::Refused(Refused::Replaced));
            self.outbox.now(Effect::Close(old.connection));
        }
        self.connections.insert(connection, id);
        let (units, rebooted) = self.admit(connection, hello);
        self.tell_lease(id);
        if rebooted {
            self.forget_what_ended_with_its_boot(id, &units.iter().map(|held| held.name.clone()).collect());
        }
        self.take_inventory(id, units);
        self.turn.snapshots.insert(id);
        if planted::is(Fault::HelloTellsAll) {
            self.turn.snapshots.extend(self.machines.keys());
        }
        self.update_openness(id);
        // Also where it was open before: it may have more to give now.
        self.queue.touch(id);
    }

    /// Whether the agent has obeyed a term above this one, or this one under another leader: only from this leader, to
    /// which it then said Hello before, can it know its term. A store that was restored or copied leads to both.
    fn term_is_anothers(&self, hello: &Hello) -> bool {
        if planted::is(Fault::HigherTermIgnored) {
            return false;
        }
        let told = self.machines.get(&hello.machine).and_then(|machine| machine.told);
        hello.term > self.term || (hello.term == self.term && told != Some(self.term))
    }

    /// Whether a session of the same agent that was opened after this one is known.
    fn opened_later(&self, hello: &Hello) -> bool {
        self.machines.get(&hello.machine).is_some_and(|machine| {
            // Also one that has ended: what was said before it may come later.
            let newer = machine.opened > hello.session && !planted::is(Fault::OldHelloTaken);
            newer && machine.record.key == hello.key && machine.record.boot == hello.boot
        })
    }

    /// The machine's record, session and lease. Returns what it holds, and whether it was rebooted.
    fn admit(&mut self, connection: ConnectionId, hello: Hello) -> (Vec<HeldUnit>, bool) {
        let id = hello.machine;
        let granted = self.settings.lease_ttl;
        let record = MachineRecord {
            address: hello.address,
            labels: hello.labels,
            capacity: hello.capacity,
            version: hello.version,
            boot: hello.boot,
            key: hello.key,
            restarting: false,
            leaving: hello.leaving,
            lease: self.machines.get(&id).map_or(granted, |machine| machine.record.lease.max(granted)),
            grace: self.machines.get(&id).map_or(Duration::ZERO, |machine| machine.record.grace),
        };
        if self.machines.get(&id).is_none_or(|machine| machine.record != record) {
            self.unsaved.insert(id);
        }
        let state = self.state_of(hello.pid1_age);
        let known = self.machines.contains_key(&id);
        let machine = self.machines.entry(id).or_insert_with(|| Machine::awaited(record.clone()));
        let rebooted = machine.record.boot != record.boot || planted::is(Fault::EveryHelloIsAReboot);
        let left = machine.record.leaving;
        // An earlier leader may have granted more than this one does. What was granted for a restart is over with it.
        let before = self.elected + self.settings.with_margin(machine.record.lease);
        let granted = machine.deadline.filter(|_| !rebooted);
        let granted = granted.map(|end| if machine.record.restarting { end.min(before) } else { end });
        machine.record = record;
        if rebooted {
            // What an earlier boot was granted has ended with it.
            machine.lease_until = Time::default();
        }
        machine.told = Some(self.term);
        let beats = std::mem::take(&mut machine.beats);
        self.farewells.remove(&id);
        machine.opened = hello.session;
        machine.session = Some(Session {
            connection,
            number: hello.session,
            revision: Revision(0),
            lease: Duration::ZERO,
            streams: hello.streams,
        });
        machine.pressure = Pressure::default();
        machine.observed.clear();
        let was = std::mem::replace(&mut machine.state, state);
        let capacity = machine.record.capacity;
        if planted::is(Fault::HelloTakesLabelsBack) {
            self.labels.remove(&id);
        }
        self.placer.set_machine(id, self.labels_of(id), capacity);
        let arrival = match was {
            _ if !known => Some(Arrival::Joined),
            _ if rebooted => Some(Arrival::Rebooted),
            MachineState::Awaited => Some(Arrival::Reported),
            MachineState::Unreachable => Some(Arrival::Returned),
            // Its shutdown did not take place.
            _ if left && !hello.leaving => Some(Arrival::Returned),
            MachineState::Up | MachineState::Degraded => None,
        };
        if let Some(arrival) = arrival {
            let was_away = matches!(arrival, Arrival::Returned | Arrival::Rebooted);
            let units = if was_away { self.placed_on(id) } else { Vec::new() };
            self.event(Event::MachineUp { machine: id, arrival, units });
        }
        self.strays.retain(|name, machines| {
            if machines.remove(&id).is_some() {
                self.gates.look_at(name);
            }
            !machines.is_empty()
        });
        self.await_heartbeat(id, beats || rebooted, granted);
        if hello.leaving && !left {
            // The leader before may have had its units started elsewhere.
            self.find_lingering_on(id);
        }
        (hello.units, rebooted)
    }

    /// Compares what the machines hold with what was decided, once more: the store has lost what was decided on it.
    pub(super) fn compare_again(&mut self) {
        for id in std::mem::take(&mut self.rebooted) {
            let held = self.machines.get(&id).map(|machine| machine.observed.keys().cloned().collect());
            self.forget_what_ended_with_its_boot(id, &held.unwrap_or_default());
        }
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            for (name, copy) in std::mem::take(&mut machine.observed) {
                self.adopt_or_note(id, &name, &copy);
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.observed.insert(name, copy);
                }
            }
            if !planted::is(Fault::RetryForgotten) {
                self.look_at_copies(id);
            }
        }
    }

    /// The machine was rebooted: what it does not hold is gone. (Without a reboot it may be on its way still: the machine
    /// is told to remove it, and says when it is gone.)
    fn forget_what_ended_with_its_boot(&mut self, id: MachineId, held: &BTreeSet<UnitName>) {
        let ended: Vec<UnitName> =
            self.placer.units_on(id).filter(|name| !held.contains(*name)).cloned().collect();
        for name in ended {
            self.copy_gone(id, &name, None);
            self.end_with_boot(id, &name);
        }
    }

    /// What was placed on a machine that was rebooted is placed anew: there, where it stays with the machine through that or
    /// runs on every one, else on the best one.
    fn end_with_boot(&mut self, id: MachineId, name: &UnitName) {
        let Some(unit) = self.units.get(name).filter(|unit| unit.placements.contains_key(&id)) else {
            return;
        };
        if unit.options.global || unit.options.keep_on_reboot || self.is_tied(name, unit) {
            let epoch = self.mint();
            self.set_placement(name, id, epoch);
            return self.placed_anew(name, id, epoch, PlaceReason::Rebooted);
        }
        if let Some(unit) = self.units.get_mut(name) {
            unit.placements.remove(&id);
            unit.why = PlaceReason::Rebooted;
        }
        self.gates.forget(id, name);
        self.placer.release(name, id);
        self.queue.touch(id);
        self.turn.records.push(name.clone());
        self.turn.seen.push(name.clone());
        self.mark(name);
    }

    /// Compares what a machine holds with what was decided.
    fn take_inventory(&mut self, id: MachineId, held: Vec<HeldUnit>) {
        let told = |unit: &&HeldUnit| {
            let placed = self.units.get(&unit.name).and_then(|known| known.placements.get(&id));
            unit.target == Target::Launched && placed == Some(&unit.epoch)
        };
        let told: BTreeSet<UnitName> = held.iter().filter(told).map(|unit| unit.name.clone()).collect();
        self.shut_what_was_not_told(id, &told);
        for unit in held {
            let copy = Copy { epoch: unit.epoch, hash: unit.hash, observation: unit.observation };
            self.adopt_or_note(id, &unit.name, &copy);
            self.turn.seen.push(unit.name.clone());
            if self.units.get(&unit.name).and_then(|known| known.placements.get(&id)) == Some(&copy.epoch) {
                let exclusive =
                    self.units.get(&unit.name).is_some_and(|unit| unit.options.exclusive.is_some());
                if unit.target == Target::Launched && (!exclusive || planted::is(Fault::EndedCopyTakenUp)) {
                    // It was told so, by this leader or one before.
                    self.gates.open(id, &unit.name, copy.epoch);
                }
                self.look_at_current(id, &unit.name, copy.epoch, &copy.observation);
            }
            self.look_at_dependents(&unit.name);
            if self.units.get(&unit.name).is_some_and(|unit| unit.options.is_gated()) {
                // It may run, which was not known while its machine was away.
                self.gates.look_at(&unit.name);
            }
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.observed.insert(unit.name, copy);
            }
        }
        // Units that waited for another machine stay on this one, since it is back.
        for name in self.placer.units_on(id).cloned().collect::<Vec<_>>() {
            self.mark(&name);
            self.turn.seen.push(name);
        }
    }

    /// A machine holds this copy. A later one than any that this store knows of proves that the store is old: where it
    /// is still what is wanted, the copy is the current one. Of what has no record, the end is not decided here.
    fn adopt_or_note(&mut self, id: MachineId, name: &UnitName, copy: &Copy) {
        if self.latest_known(id, name).is_some_and(|known| copy.epoch <= known) {
            return;
        }
        let latest = self.placer.copies(name).filter_map(|machine| self.latest_known(machine, name)).max();
        let wanted = self.units.get(name).filter(|unit| {
            unit.desired != DesiredState::Inactive && unit.hash == copy.hash && !name.is_template()
        });
        let global = wanted.is_some_and(|unit| unit.options.global);
        if wanted.is_none() || (!global && latest.is_some_and(|latest| copy.epoch < latest)) {
            return self.note_stray(id, name, copy.epoch);
        }
        if !global {
            self.unplace_all(name);
        }
        self.set_placement(name, id, copy.epoch);
        // It was started again since it was done.
        if let Some(unit) = self.units.get_mut(name)
            && matches!(copy.observation, Observation::Held { phase: Phase::Starting, .. })
        {
            unit.done = false;
        }
        self.placed_anew(name, id, copy.epoch, PlaceReason::Found);
    }

    fn note_stray(&mut self, id: MachineId, name: &UnitName, epoch: Epoch) {
        if self.strays.entry(name.clone()).or_default().insert(id, epoch).is_none() {
            self.event(Event::Orphaned { unit: name.clone(), machine: id });
        }
        if planted::is(Fault::OrphansRemoved) {
            self.retire(id, name, super::Retired { epoch, exclusive: None });
        }
    }

    /// The epoch up to which the leader has a record of copies of the unit on this machine.
    pub(super) fn latest_known(&self, id: MachineId, name: &UnitName) -> Option<Epoch> {
        let placed = self.units.get(name).and_then(|unit| unit.placements.get(&id));
        placed.copied().or_else(|| Some(self.retired.get(&(id, name.clone()))?.epoch))
    }

    /// The machine says this of the unit's current copy there.
    pub(super) fn look_at_current(
        &mut self,
        id: MachineId,
        name: &UnitName,
        epoch: Epoch,
        observation: &Observation,
    ) {
        self.look_at_lingering(name, observation);
        self.look_at_failure(name, id, epoch, observation);
        self.look_at_what_was_started(name, id, epoch, observation);
        if self.units.get(name).is_some_and(|unit| unit.options.ends) {
            // Its machine may be drained, and have waited for its end.
            self.mark_tied(name);
            self.mark_replacers_of(name);
        }
        if let Some(unit) = self.units.get_mut(name)
            && observation.has_ended()
            && unit.options.ends
            // That runs to its end on each machine.
            && !unit.options.global
            && unit.desired == DesiredState::Launched
            && !std::mem::replace(&mut unit.done, true)
        {
            self.turn.records.push(name.clone());
            self.event(Event::Done { unit: name.clone(), machine: id });
            self.end_lingering(name, LingerEnd::Active);
        }
    }

    fn heartbeat(&mut self, id: MachineId, number: u64, pid1_age: Duration, pressure: Pressure) {
        if !self.leads() {
            return;
        }
        if pid1_age > self.settings.systemd_timeout {
            return self.lose(id, LossReason::SystemdSilent(pid1_age));
        }
        let state = self.state_of(pid1_age);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(session) = &machine.session else { return };
        let (connection, session) = (session.connection, session.number);
        machine.pressure = pressure;
        let first = !std::mem::replace(&mut machine.beats, true);
        let other = std::mem::replace(&mut machine.state, state) != state;
        if first || other {
            self.update_openness(id);
        }
        if other {
            self.event(match state {
                MachineState::Degraded => Event::MachineDegraded(id),
                _ => Event::MachineRecovered(id),
            });
        }
        self.extend_lease(id);
        if planted::is(Fault::HeartbeatTellsAll) {
            self.turn.snapshots.insert(id);
        }
        self.say(connection, session, LeaderMessage::HeartbeatAck { number });
    }

    /// The state of a machine that has a lease, after the age of its PID 1's last sign of life.
    fn state_of(&self, pid1_age: Duration) -> MachineState {
        if pid1_age > self.settings.lease_ttl { MachineState::Degraded } else { MachineState::Up }
    }

    fn report(&mut self, id: MachineId, report: UnitReport) {
        let UnitReport { name, epoch, change } = report;
        match change {
            ReportedChange::Gone => self.copy_gone(id, &name, Some(epoch)),
            ReportedChange::Stale(_) => {
                let placed = self.units.get(&name).and_then(|unit| unit.placements.get(&id));
                // What is said of an earlier placement was dealt with.
                if placed == Some(&epoch) {
                    self.stale.insert((id, name, epoch));
                }
            }
            ReportedChange::Observed(observation) => {
                // It was on its way when the store lost what was decided on it.
                if matches!(observation, Observation::Held { .. })
                    && self.latest_known(id, &name).is_none_or(|known| known < epoch)
                {
                    self.note_stray(id, &name, epoch);
                }
                let hash = self.units.get(&name).map(|unit| unit.hash);
                let Some(machine) = self.machines.get_mut(&id) else { return };
                self.turn.seen.push(name.clone());
                let placed = self.units.get(&name).and_then(|unit| unit.placements.get(&id));
                let current = (placed == Some(&epoch)).then(|| observation.clone());
                let before = machine.observed.get(&name).filter(|copy| copy.epoch == epoch);
                let news = Event::seen(&name, id, epoch, before.map(|copy| &copy.observation), &observation);
                // Of a copy that is to go, only what keeps it here.
                let news =
                    news.filter(|event| current.is_some() || matches!(event, Event::StopFailed { .. }));
                match machine.observed.get_mut(&name) {
                    Some(copy) if copy.epoch == epoch => copy.observation = observation,
                    Some(copy) if copy.epoch > epoch && current.is_none() => {}
                    _ => {
                        let Some(hash) = hash else { return };
                        machine.observed.insert(name.clone(), Copy { epoch, hash, observation });
                    }
                }
                // Of one that is to end, its end is told as such.
                let ends = self.units.get(&name).is_some_and(|unit| unit.options.ends);
                if let Some(event) = news.filter(|event| !(ends && matches!(event, Event::Inactive { .. }))) {
                    self.event(event);
                }
                // Also of an older copy: an exclusive unit waits for its end.
                if self.units.get(&name).is_some_and(|unit| unit.options.is_gated()) {
                    self.gates.look_at(&name);
                }
                if let Some(observation) = current {
                    self.look_at_current(id, &name, epoch, &observation);
                    self.look_at_dependents(&name);
                }
            }
        }
    }

    /// Nothing of the unit up to this epoch is left on the machine; of any epoch, where none is given.
    fn copy_gone(&mut self, id: MachineId, name: &UnitName, upto: Option<Epoch>) {
        let any = planted::is(Fault::GoneOfAnyEpoch);
        let covers = |epoch: &Epoch| any || upto.is_none_or(|upto| *epoch <= upto);
        let machine = self.machines.get_mut(&id);
        if let Some(machine) =
            machine.filter(|m| m.observed.get(name).is_some_and(|copy| covers(&copy.epoch)))
        {
            machine.observed.remove(name);
        }
        // An exclusive unit may wait for that.
        self.gates.look_at(name);
        if let Some(machines) = self.strays.get_mut(name).filter(|on| on.get(&id).is_some_and(covers)) {
            machines.remove(&id);
            if machines.is_empty() {
                self.strays.remove(name);
            }
        }
        self.turn.seen.push(name.clone());
        let key = (id, name.clone());
        if self.retired.get(&key).is_some_and(|retired| covers(&retired.epoch))
            && let Some(Retired { epoch, .. }) = self.retired.remove(&key)
        {
            self.event(Event::Gone { unit: name.clone(), machine: id, epoch });
            if self.lingering.runs_on(id, name) {
                self.forget_move(id, name);
            }
            self.turn.changes.push(Change::DeleteRetired(id, name.clone()));
            if !self.units.get(name).is_some_and(|unit| unit.placements.contains_key(&id)) {
                self.placer.release(name, id);
                if planted::is(Fault::RoomNotNoticed) {
                    return;
                }
                self.queue.touch(id);
            }
        }
    }

    /// The machine has said Hello: it is given the time of a lease until its first heartbeat, which is what grants one, or as
    /// long as one lasts that was granted before. Where
    /// there was none since the Hello before, that time goes on (not `anew`): one that cannot be worked with may say Hello again
    /// and again.
    fn await_heartbeat(&mut self, id: MachineId, anew: bool, granted: Option<Time>) {
        let awake = self.awake();
        let deadline = granted.unwrap_or_default().max(awake + self.lease());
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.is_heard(self.now);
        if anew || machine.deadline.is_none() || planted::is(Fault::HelloIsALease) {
            machine.counts_from = awake;
            self.set_deadline(id, deadline);
        }
    }

    /// The machine is lost then, unless more is heard of it.
    fn set_deadline(&mut self, id: MachineId, deadline: Time) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if let Some(old) = machine.deadline.replace(deadline) {
            self.deadlines.remove(&(old, id));
        }
        self.deadlines.insert((deadline, id));
    }

    fn extend_lease(&mut self, id: MachineId) {
        let awake = self.awake();
        let deadline = awake + self.lease();
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.counts_from = awake;
        machine.lease_until = machine.lease_until.max(deadline);
        // What was granted before for longer is over only now.
        let granted = self.settings.lease_ttl;
        let record = &mut machine.record;
        let counts_on = if machine.lease_until == deadline {
            (granted, Duration::ZERO)
        } else {
            (record.lease.max(granted), record.grace)
        };
        if (record.lease, record.grace) != counts_on {
            (record.lease, record.grace) = counts_on;
            self.unsaved.insert(id);
        }
        // An agent that is restarted was granted more.
        let deadline = machine.deadline.map_or(deadline, |granted| granted.max(deadline));
        machine.is_heard(self.now);
        self.set_deadline(id, deadline);
    }

    /// Loses the machines whose lease ended.
    pub(super) fn end_leases(&mut self) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > self.awake() {
                break;
            }
            self.lose(id, LossReason::LeaseEnded);
        }
    }

    /// The machine's lease is over, and nothing revives it but another Hello: its units wait for other machines, and
    /// are its own again if it comes back before they found one.
    fn lose(&mut self, id: MachineId, reason: LossReason) {
        let lost = self.consider_brake(id);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.lost = lost;
        if let Some(deadline) = machine.deadline.take() {
            self.deadlines.remove(&(deadline, id));
        }
        machine.state = MachineState::Unreachable;
        machine.pressure = Pressure::default();
        machine.observed.clear();
        if std::mem::take(&mut machine.record.restarting) {
            self.unsaved.insert(id);
        }
        if let Some(session) = machine.session.take_if(|_| !planted::is(Fault::LostKeepsSession)) {
            self.connections.remove(&session.connection);
            self.say(session.connection, session.number, LeaderMessage::Refused(Refused::LeaseEnded));
            self.outbox.now(Effect::Close(session.connection));
        }
        self.update_openness(id);
        let units = self.placed_on(id);
        for name in self.placer.units_on(id).cloned().collect::<Vec<_>>() {
            self.mark(&name);
            self.gates.look_at(&name);
            self.look_at_dependents(&name);
            self.turn.seen.push(name);
        }
        // Whose systemd hangs has an agent that lives: that the host answers would tell nothing, and mislead.
        let agent_is_silent = !matches!(reason, LossReason::SystemdSilent(_));
        let held = if self.is_braked(id) { self.would_move_off(id).cloned().collect() } else { Vec::new() };
        self.event(Event::MachineLost { machine: id, units, held, reason });
        if agent_is_silent {
            self.knock(id);
        }
        self.admit_newcomer(id);
    }

    /// The units that are placed on the machine.
    fn placed_on(&self, id: MachineId) -> Vec<UnitName> {
        let placed =
            |name: &&UnitName| self.units.get(name).is_some_and(|unit| unit.placements.contains_key(&id));
        self.placer.units_on(id).filter(placed).cloned().collect()
    }

    /// Whether the machine takes new units depends on its session and state.
    pub(super) fn update_openness(&mut self, id: MachineId) {
        let open = self.machines.get(&id).is_some_and(|machine| {
            machine.session.is_some()
                && (machine.beats || planted::is(Fault::HelloIsALease))
                && (machine.state == MachineState::Up
                    || machine.state == MachineState::Degraded && planted::is(Fault::DegradedIsOpen))
                && (machine.availability == Availability::Open || planted::is(Fault::DrainedIsOpen))
                && (!machine.record.leaving || planted::is(Fault::LeavingIsOpen))
        });
        match self.placer.set_open(id, open) {
            true if open => self.queue.touch(id),
            true => self.mark_replacers(),
            false => {}
        }
    }

    pub(super) fn refuse(&mut self, connection: ConnectionId, hello: &Hello, refused: Refused) {
        // An agent listens to no term below the one that it has seen.
        if !matches!(refused, Refused::HigherTermSeen(_)) {
            self.say(connection, hello.session, LeaderMessage::Refused(refused));
        }
        self.outbox.now(Effect::Close(connection));
    }

    /// Says something that rests on no commit.
    pub(super) fn say(&mut self, connection: ConnectionId, session: SessionNumber, body: LeaderMessage) {
        let message = self.message(session, body);
        self.outbox.now(Effect::Send(connection, message));
    }

    pub(super) fn message(&self, session: SessionNumber, body: LeaderMessage) -> ToAgent {
        ToAgent { term: self.term, session, body }
    }

    /// Gives a later epoch to placements that their machine did not take since it has stopped that one.
    pub(super) fn renew_stale(&mut self) {
        for (id, name, stale) in std::mem::take(&mut self.stale) {
            if self.units.get(&name).is_some_and(|unit| unit.placements.get(&id) == Some(&stale)) {
                let epoch = self.mint();
                self.set_placement(&name, id, epoch);
                self.placed_anew(&name, id, epoch, PlaceReason::Stale);
            }
        }
    }
}

impl Machine {
    /// Something was heard of it: it is not lost, whatever was thought of it.
    fn is_heard(&mut self, now: Time) {
        self.last_heard = Some(now);
        self.lost = None;
        self.host_answers = None;
        self.undoubted = false;
    }
}
