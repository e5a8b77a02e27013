//! What the leader and the agents hear, as the book takes it down.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_core::agent;
use muster_core::command::{Command, CommandResult, Verb};
use muster_core::ids::MachineId;
use muster_core::leader::{Change, ConnectionId, Effect, Input, RequestId};
use muster_core::machine::{Availability, Drain, MachineRecord};
use muster_core::message::{FromAgent, Goodbye, LeaderMessage, ReportedChange, ToAgent};
use muster_core::state::Target;

use super::{Cause, Expected, Told, has_failed, is_active, is_at_work};
use crate::client::client_of;
use crate::faults::Ask;
use crate::fits::tied;
use crate::world::World;

impl World {
    /// The leader is about to be told this.
    pub(crate) fn before_step(&mut self, input: &Input) -> Cause {
        match input {
            Input::Command(request, command) => self.before_command(*request, command),
            Input::Query(request, _) => {
                let expected = Expected::Query { intent: self.book.intent.clone(), after: self.book.issued };
                self.book.expected.insert(*request, expected);
                Cause::Other
            }
            Input::Agent(connection, message) => self.before_message(*connection, message),
            Input::Committed(upto) => {
                self.book.durable = *upto;
                Cause::Other
            }
            Input::CommitFailed { .. } => {
                let durable = self.book.durable;
                // Whatever it has said since, it is the boot of which the record knows that is lost.
                let (decided, stored) = (&self.book.decided.machines, &self.store.durable.machines);
                for (machine, book) in self.machines.iter().zip(&mut self.book.machines) {
                    let boot =
                        |of: &BTreeMap<_, MachineRecord>| of.get(&machine.id).map(|record| record.boot);
                    book.rebooted |= boot(stored).is_some_and(|known| boot(decided) != Some(known));
                }
                self.go_back_to_store();
                self.touches_all();
                self.book.store_failed = true;
                let after = self.book.issued;
                for expected in self.book.expected.values_mut() {
                    // One that waits for nothing but the leader's office stays as it was.
                    if let Expected::Query { after: waits, .. } = expected
                        && *waits > durable
                    {
                        *expected = Expected::Query { intent: self.book.intent.clone(), after };
                    }
                }
                Cause::Other
            }
            Input::Machines(request, command) => {
                let machines = command.machines.clone();
                for number in machines.iter().filter_map(|id| self.machine_number(*id)).collect::<Vec<_>>() {
                    self.touches_machine(number);
                }
                let (id, new) = (command.id, !self.book.commands.contains(&command.id));
                if let Availability::Draining(drain) = command.availability
                    && new
                {
                    self.drain_begins(&machines, drain);
                }
                let expected = Expected::Machines { machines, availability: command.availability };
                self.book.expected.insert(*request, expected);
                Cause::Machines { id, new }
            }
            Input::ReleaseBrake(_) => {
                // That the brake is on is told with the commits that are under way; and a lease that is over may put it on first.
                let lease = self.settings.lease_ttl;
                let over = |number| self.heard_ago(number).is_some_and(|ago| ago >= lease);
                let over = (0..self.machines.len()).any(over);
                if self.book.brake.is_some() || over || self.book.durable < self.book.issued {
                    self.silent_machines_are_given_up();
                }
                Cause::Other
            }
            Input::EditLabels(request, edits) => {
                let machine = edits.first().map(|edit| edit.machine);
                if let Some(number) = machine.and_then(|id| self.machine_number(id)) {
                    self.touches_machine(number);
                }
                self.book.expected.insert(*request, Expected::Labels(edits.clone()));
                machine.map_or(Cause::Other, Cause::Relabel)
            }
            Input::Disconnected(_)
            | Input::TermTaken(_)
            | Input::TermNotTaken
            | Input::Knocked(..)
            | Input::Restore(..)
            | Input::NotRestored(_)
            | Input::OpenStream(..)
            | Input::Leads(_)
            | Input::Tick => Cause::Other,
        }
    }

    /// The time of a drain is at most that of the last command, and at least the shortest that any has given.
    fn drain_begins(&mut self, machines: &[MachineId], drain: Drain) {
        let now = self.queue.now();
        let most = Duration::from_millis(drain.timeout_ms);
        let at = (self.scheduler.clock.time(now), self.scheduler.stalled(now));
        for number in machines.iter().filter_map(|id| self.machine_number(*id)).collect::<Vec<_>>() {
            let availability = self.book.decided.availability.get(&self.machines[number].id);
            let drains = matches!(availability, Some(Availability::Draining(_)));
            let (since, before) = self.book.machines[number].drains;
            // The same command again gives no more time, unless that has passed.
            if availability == Some(&Availability::Draining(drain)) && self.ago_at_most(since) < before {
                continue;
            }
            let (last, longest) = self.book.machines[number].drained;
            let over = self.ago(last) > longest + Duration::from_secs(4);
            let later = most > longest.saturating_sub(self.ago(last));
            let sooner = most < before.saturating_sub(self.ago_at_most(since));
            let book = &mut self.book.machines[number];
            if !drains || over || later {
                book.drained = (at, most);
            }
            if !drains || over || sooner {
                book.drains = (at, most);
            }
            // What moves already has no more time than it had.
            let mut moved = std::mem::take(&mut book.moved);
            for moved in moved.values_mut() {
                if most < moved.most.saturating_sub(self.ago_at_most(moved.since)) {
                    (moved.since, moved.most) = (at, most);
                }
            }
            self.book.machines[number].moved = moved;
        }
    }

    fn before_command(&mut self, request: RequestId, command: &Command) -> Cause {
        let ask = self.clients[client_of(command.id)].order.ask.clone();
        if let Ask::Command { units, .. } = &ask {
            let named = units.iter().map(|unit| self.palette.names[*unit].clone()).collect();
            self.work.touched += tied(&self.palette, &self.book.decided, named).len() as u64;
        }
        let new = !self.book.commands.contains(&command.id);
        let outcome = if new {
            self.book.intent.clone().carry_out(&ask).and_then(|()| self.guard_stays(&ask))
        } else {
            Ok(())
        };
        self.book.expected.insert(request, Expected::Command { id: command.id, outcome });
        Cause::Command { request, id: command.id, ask, new }
    }

    /// Whether a unit is exclusive can change only while it is on no machine.
    fn guard_stays(&self, ask: &Ask) -> Result<(), String> {
        let Ask::Command { units, content: Some(content), replace: true, verb } = ask else { return Ok(()) };
        let exclusive = |content: &usize| self.palette.contents[*content].options.exclusive;
        let changes = |unit: &&usize| {
            let name = &self.palette.names[**unit];
            let placed = self.book.decided.units.get(name).is_some_and(|unit| !unit.placements.is_empty());
            let file = self.book.decided.files.get(name);
            placed && file.is_some_and(|file| exclusive(file) != exclusive(content))
        };
        let brings = !matches!(verb, Verb::Destroy | Verb::Restart);
        match units.iter().find(changes).filter(|_| brings) {
            Some(unit) => Err(format!("u{unit:02} is guarded otherwise where it is")),
            None => Ok(()),
        }
    }

    fn before_message(&mut self, connection: ConnectionId, message: &FromAgent) -> Cause {
        let Some(stream) = self.network.stream(connection) else { return Cause::Other };
        let number = stream.machine;
        let record = self.book.decided.machines.get(&self.machines[number].id);
        let boot = record.map(|record| record.boot);
        let book = &mut self.book.machines[number];
        match message {
            FromAgent::Hello(hello) => {
                book.rebooted = boot.is_some_and(|boot| boot != hello.boot);
                let failed = hello.units.iter().filter(|unit| has_failed(&unit.observation));
                book.failed.extend(failed.map(|unit| (unit.name.clone(), unit.epoch)));
                let active = hello.units.iter().filter(|unit| is_active(&unit.observation));
                book.says_active = active.map(|unit| (unit.name.clone(), unit.epoch)).collect();
                self.book.said_active.extend(book.says_active.iter().cloned());
                // Known again once it is welcomed: it may be of an older session.
                book.says_at_work.clear();
                if book.rebooted {
                    book.moved.clear();
                }
                book.hello = Some((connection, hello.units.clone()));
                book.says_degraded = hello.pid1_age > self.settings.lease_ttl;
                book.says_leaving = hello.leaving;
            }
            FromAgent::Heartbeat { pid1_age, .. } => {
                if book.welcomed.is_some_and(|(welcomed, _)| welcomed == connection) {
                    book.degraded = *pid1_age > self.settings.lease_ttl;
                }
                if *pid1_age > self.settings.systemd_timeout && book.heard.is_some() {
                    book.pid1_lost = true;
                }
            }
            FromAgent::Report(reports) => {
                let known =
                    book.heard.is_some() && book.welcomed.is_some_and(|(welcomed, _)| welcomed == connection);
                for report in reports {
                    let book = &mut self.book.machines[number];
                    match &report.change {
                        ReportedChange::Stale(_) => {
                            book.stale.insert((report.name.clone(), report.epoch));
                        }
                        ReportedChange::Observed(observation) => {
                            if has_failed(observation) {
                                book.failed.insert((report.name.clone(), report.epoch));
                            }
                            book.says.insert(report.name.clone(), report.epoch);
                            let copy = (report.name.clone(), report.epoch);
                            if known && is_at_work(observation) {
                                book.says_at_work.insert(copy.clone());
                            } else {
                                book.says_at_work.remove(&copy);
                            }
                            if is_active(observation) {
                                book.says_active.insert(copy.clone());
                                self.book.said_active.insert(copy);
                            } else {
                                book.says_active.remove(&copy);
                            }
                            if known {
                                self.copy_is_seen(number, &report.name, report.epoch, observation);
                            }
                        }
                        ReportedChange::Gone => {}
                    }
                }
            }
            FromAgent::Goodbye(Goodbye::Shutdown) => book.leaving = book.heard.is_some(),
            FromAgent::Goodbye(Goodbye::Restart) => {
                let now = self.scheduler.clock.time(self.queue.now());
                book.graced = Some(now + self.settings.restart_grace + Duration::from_secs(1));
            }
            FromAgent::SnapshotWanted => self.touches_machine(number),
        }
        Cause::Agent
    }

    /// The leader has made a step, and this is to come of it: whether it has carried out a command.
    pub(crate) fn commands_are_carried_out_once(&mut self, cause: &Cause, effects: &[Effect]) {
        let batches = || {
            effects.iter().filter_map(|effect| match effect {
                Effect::Persist(_, changes) => Some(changes),
                _ => None,
            })
        };
        let results = || {
            batches().flatten().filter_map(|change| match change {
                Change::PutCommand(_, command) => Some(command.id),
                _ => None,
            })
        };
        if let Cause::Command { request, id, ask, new: true } = cause {
            if results().any(|result| result == *id) {
                self.book.commands.insert(*id);
                self.is_decided_anew(ask);
                if let Err(why) = self.book.intent.carry_out(ask) {
                    // Of what it does not know, the leader can destroy what is left after a restore.
                    if !self.book.restored {
                        self.violate(
                            "nothing_acknowledged_is_lost",
                            format!("a command is carried out although {why}"),
                        );
                    }
                    self.book.intent.destroy(ask);
                }
                // What was in its way may have ended in this very step.
                self.book.expected.insert(*request, Expected::Command { id: *id, outcome: Ok(()) });
            } else if let Some(Expected::Command { outcome: Ok(()), .. }) = self.book.expected.get(request) {
                let text = format!("command {} is refused or not recorded: {ask:?}", id.bits());
                self.violate("nothing_acknowledged_is_lost", text);
            }
        } else if let Cause::Machines { id, new: true } = cause {
            if results().any(|result| result == *id) {
                self.book.commands.insert(*id);
            }
        } else if let Some(id) = results().next() {
            self.violate(
                "nothing_acknowledged_is_lost",
                format!("command {} is carried out again", id.bits()),
            );
        }
    }

    /// A client has decided on these units: what was before does not count any more. A file that is submitted again as it is
    /// decides nothing.
    fn is_decided_anew(&mut self, ask: &Ask) {
        let Ask::Command { verb, units, content, replace } = ask else { return };
        for unit in units {
            let name = &self.palette.names[*unit];
            let other = content.is_some() && self.book.decided.files.get(name) != content.as_ref();
            if *verb != Verb::Submit || *replace && other {
                if self.book.failures.remove(name).is_some_and(|failures| failures.last.is_some()) {
                    self.book.forgiven.insert(name.clone());
                }
                self.book.done.remove(name);
            }
        }
    }

    /// The agent's loop hands it these.
    pub(crate) fn agent_hears(&mut self, number: usize, inputs: &[agent::Input]) {
        for input in inputs {
            if let agent::Input::Leader(message) = input {
                self.agent_is_told(number, message);
            }
            let now = self.queue.now();
            let book = &mut self.book.machines[number];
            match input {
                agent::Input::Reloading(reloads) => {
                    (book.reloads, book.reload_explains) = (*reloads, book.reload_explains || *reloads);
                }
                agent::Input::SystemdUp => book.reloads = false,
                agent::Input::Reloaded(_) => book.asked_to_reload = false,
                _ => {}
            }
            if crate::machine::is_from_pid1(input) {
                book.pid1_heard = now;
                book.reload_explains &= book.reloads || book.asked_to_reload;
            }
        }
    }

    /// Whether all that the agent is told now was said in sessions before its present one.
    pub(crate) fn are_of_old_sessions(&self, number: usize, inputs: &[agent::Input]) -> bool {
        let session = self.book.machines[number].session;
        let session = session.and_then(|connection| self.network.stream(connection)?.session);
        inputs.iter().all(|input| match input {
            agent::Input::Leader(message) => session.is_some_and(|session| message.session < session),
            _ => false,
        })
    }

    fn agent_is_told(&mut self, number: usize, message: &ToAgent) {
        let session = self.book.machines[number].session;
        let Some(stream) = session.and_then(|connection| self.network.stream(connection)) else { return };
        if stream.session != Some(message.session) || message.term < self.machines[number].membership.term {
            return;
        }
        let book = &mut self.book.machines[number];
        match &message.body {
            LeaderMessage::Farewell { lease: Some(lease) } => {
                book.granted = book.granted.max(stream.goodbye.map(|said| said + *lease));
            }
            LeaderMessage::HeartbeatAck { number: beat } => {
                let end = stream.heartbeats.get(beat).map(|sent| *sent + stream.lease_ttl);
                book.granted = book.granted.max(end);
            }
            LeaderMessage::Assignments(assignments) => {
                let next = (message.term, assignments.revision);
                let follows = match book.applied {
                    _ if assignments.snapshot => book.applied.is_none_or(|applied| applied <= next),
                    Some((term, revision)) => term == next.0 && revision.0 + 1 == next.1.0,
                    None => false,
                };
                if !follows {
                    return;
                }
                book.applied = Some(next);
                for hold in &assignments.hold {
                    let told = book.told_to_hold.entry(hold.name.clone()).or_default();
                    let told = told.entry(hold.epoch).or_insert(Told {
                        term: message.term,
                        loaded: false,
                        launched: false,
                    });
                    match hold.target {
                        Target::Loaded => told.loaded = true,
                        Target::Launched => (told.launched, told.loaded) = (true, false),
                    }
                }
                for removal in &assignments.remove {
                    let told = book.told_to_remove.entry(removal.name.clone()).or_default();
                    if told.0 < removal.epoch {
                        *told = (removal.epoch, message.term);
                    }
                }
            }
            LeaderMessage::Welcome(_)
            | LeaderMessage::Refused(_)
            | LeaderMessage::Probe
            | LeaderMessage::OpenStream(_)
            | LeaderMessage::Farewell { .. } => {}
        }
    }

    pub(crate) fn is_answered(&mut self, request: RequestId, result: &CommandResult) {
        let Some(Expected::Command { id, outcome }) = self.book.expected.remove(&request) else { return };
        self.judge_answer(id, &outcome, result);
    }
}
