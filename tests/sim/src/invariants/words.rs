//! What leaders say, to clients and to agents, and what they are told.

use std::time::Duration;

use muster_core::command::{CommandError, CommandResult, CopyRole, LabelEdit, QueryAnswer, UnitStatus};
use muster_core::ids::{CommandId, Epoch, MachineId, Term};
use muster_core::leader::{ConnectionId, Effect, RequestId};
use muster_core::machine::Availability;
use muster_core::message::{Assignment, Assignments};
use muster_core::state::{DesiredState, Target};
use muster_core::time::Time;
use muster_core::unit::UnitName;

use super::Touches;
use crate::book::{Expected, has_failed, has_run_to_its_end};
use crate::intent::Intent;
use crate::machine::Machine;
use crate::palette::ALL_UNITS;
use crate::queue::{MILLI, Micros, SECOND, micros};
use crate::world::World;

/// How much of PID 1's silence a job explains.
const JOB_MAX: Micros = 50 * MILLI;

impl World {
    /// Write before act: the client's answer leaves after the commit that holds it.
    pub(crate) fn judge_answer(
        &mut self,
        id: CommandId,
        expected: &Result<(), String>,
        result: &CommandResult,
    ) {
        match (result, expected) {
            (Ok(_), _) if !self.book.durable_commands.contains(&id) => {
                self.violate(
                    "nothing_acknowledged_is_lost",
                    format!("command {} is acknowledged before it is durable", id.bits()),
                );
            }
            (Ok(_), Err(why)) => {
                self.violate(
                    "nothing_acknowledged_is_lost",
                    format!("command {} is acknowledged although {why}", id.bits()),
                );
            }
            (Err(CommandError::Units(errors)), Ok(())) => {
                self.violate(
                    "nothing_acknowledged_is_lost",
                    format!("command {} is refused: {errors:?}", id.bits()),
                );
            }
            (Ok(_), Ok(())) | (Err(_), _) => {}
        }
    }

    /// The same for what is decided of machines.
    pub(super) fn judge_machines(&mut self, request: RequestId) {
        let (machines, availability) = match self.book.expected.remove(&request) {
            Some(Expected::Machines { machines, availability }) => (machines, availability),
            Some(Expected::Labels(edits)) => {
                let durable =
                    |edit: &LabelEdit| self.book.roles.contains(&(edit.machine, edit.value.clone()));
                if let Some(edit) = edits.into_iter().find(|edit| !durable(edit)) {
                    let text = format!("{edit:?} is acknowledged before that is durable");
                    self.violate("nothing_acknowledged_is_lost", text);
                }
                return;
            }
            _ => return,
        };
        for machine in machines {
            let durable = self.book.availabilities.contains(&(machine, format!("{availability:?}")));
            if !durable && availability != Availability::Open {
                let text = format!("{machine} is acknowledged as {availability:?} before that is durable");
                return self.violate("nothing_acknowledged_is_lost", text);
            }
        }
    }

    /// Write before act: the answers to reads that saw an uncommitted change leave after its commit, too.
    pub(crate) fn judge_query(&mut self, request: RequestId, answer: &QueryAnswer) {
        let Some(Expected::Query { intent, after }) = self.book.expected.remove(&request) else { return };
        if self.book.durable < after {
            return self.violate("write_before_act", "a client is told what is not durable".to_owned());
        }
        let QueryAnswer::Units(units) = answer else { return };
        self.what_is_waited_for_is_being_started(units);
        let mut told = Intent::default();
        for status in units.iter().filter(|status| status.known) {
            let content = status.content.as_ref().and_then(|text| self.palette.number(text));
            if let (Some(unit), Some(content)) = (self.palette.unit(&status.name), content) {
                told.units.insert(unit, (content, status.desired));
            }
        }
        if told != intent {
            self.violate(
                "nothing_acknowledged_is_lost",
                format!("a client is told {told:?}, and it is {intent:?}"),
            );
        }
    }

    /// `After=`: once these are active, as long as they are being started too.
    pub(crate) fn what_is_waited_for_is_being_started(&mut self, units: &[UnitStatus]) {
        // What the store could not take is looked at again after a while.
        if self.book.store_failed {
            return;
        }
        for status in units {
            let reason = status.waiting.as_ref().map(|waiting| &*waiting.reason);
            let Some(reason) = reason.and_then(|reason| reason.strip_prefix("it is started after ")) else {
                continue;
            };
            let first = reason
                .split(',')
                .next()
                .and_then(|first| units.iter().find(|unit| unit.name.as_str() == first));
            let starts = first.is_some_and(|first| {
                let current = || first.copies.iter().filter(|copy| copy.role == CopyRole::Current);
                let over = current()
                    .filter_map(|copy| copy.observation.as_ref())
                    .any(|seen| has_failed(seen) || has_run_to_its_end(seen));
                first.desired == DesiredState::Launched
                    && !over
                    && current().any(|copy| !self.is_long_lost(copy.machine))
            });
            if !starts {
                let text =
                    format!("{} waits for what is not being started: {reason}: {first:?}", status.name);
                return self.violate("what_is_waited_for_is_being_started", text);
            }
        }
    }

    /// Whether the leader has known for a while that the machine is lost.
    fn is_long_lost(&self, id: MachineId) -> bool {
        let Some(book) = self.machine_number(id).map(|number| &self.book.machines[number]) else {
            return false;
        };
        let long = self.settings.lease_ttl * 3;
        book.heard.is_none() && book.last_heard.is_some_and(|heard| self.ago_at_most(heard) > long)
    }

    /// Drain: units start elsewhere before they stop here where they may run twice. / A machine that shuts down: its units move
    /// before they stop.
    pub(super) fn what_moves_runs_on(&mut self, number: usize, name: &UnitName, epoch: Epoch) {
        let Some(moved) = self.book.machines[number].moved.remove(name) else { return };
        let Some(unit) = self.book.decided.units.get(name) else { return };
        let elsewhere = unit.placements.iter().next();
        if elsewhere.is_none() || moved.epoch != epoch {
            return;
        }
        // It may have ended again meanwhile, or have moved on.
        let mut active = self.book.said_active.range((name.clone(), epoch)..);
        let active = active.any(|(other, later)| other == name && *later > epoch);
        let knows_less = self.book.restored || self.book.store_failed || !self.lease_holds(number);
        let passed = self.ago_at_most(moved.since);
        if !active && !knows_less && passed < moved.most {
            let text = format!("m{number} is told to stop {name} ({epoch}) before it is active elsewhere");
            return self.violate("what_moves_runs_on", text);
        }
        // Whatever time has passed since, as long as it does run on.
        let runs = self.book.machines[number].says_active.contains(&(name.clone(), epoch));
        let failures = self.book.failures.get(name).into_iter().flat_map(|failures| &failures.all);
        let failed = failures
            .map(|failed| failed.at.0)
            .any(|at| at >= moved.at.0 && at.since(moved.since.0) < moved.most);
        if runs && !active && !knows_less && failed {
            let text = format!("m{number} is told to stop {name} ({epoch}), which has failed elsewhere");
            self.violate("what_moves_runs_on", text);
        }
    }

    /// Nothing is said but in the leader's own term.
    pub(super) fn is_said_by_the_leader(&mut self, term: Term) {
        // What waited for a commit while this leader took a higher term is said in the one before.
        let own = self.scheduler.process.as_ref().is_some_and(|process| process.terms.contains(&term));
        if !own || term > self.store.term {
            let text = format!("something is said in term {term}, which is not this leader's");
            self.violate("old_leaders_are_harmless", text);
        }
    }

    /// A leader that was deposed says nothing to anybody.
    pub(super) fn the_deposed_say_nothing(&mut self, effect: &Effect) {
        self.violate("old_leaders_are_harmless", format!("a leader that was deposed says {effect:?}"));
    }

    /// Write before act: the agent's assignment leaves after the commit that holds it.
    pub(super) fn write_before_act(&mut self, number: usize, assignments: &Assignments) {
        let id = self.machines[number].id;
        for hold in &assignments.hold {
            if !self.book.placed.contains(&(hold.name.clone(), id, hold.epoch)) {
                let text = format!(
                    "m{number} is told to hold {} as {}, which is not durable",
                    hold.name, hold.epoch
                );
                return self.violate("write_before_act", text);
            }
            if hold.target == Target::Launched {
                self.what_is_required_is_active_first(hold);
                self.what_is_done_stays_done(number, hold);
            }
            if hold.target == Target::Loaded {
                self.control_plane_is_not_the_workload(Touches::Loads(number, hold));
            }
        }
        for removal in &assignments.remove {
            let retired = self.book.retired.get(&(id, removal.name.clone()));
            if retired.is_none_or(|epoch| *epoch < removal.epoch) {
                let text = format!(
                    "m{number} is told to remove {} up to {}, which is not durable",
                    removal.name, removal.epoch
                );
                return self.violate("write_before_act", text);
            }
            self.what_moves_runs_on(number, &removal.name, removal.epoch);
        }
    }

    /// A machine that may go since nothing more of it moves is known by the next leader to have said goodbye.
    pub(super) fn a_goodbye_is_on_record(&mut self, number: usize, connection: ConnectionId) {
        let book = &self.book.machines[number];
        let is_current = book.welcomed.is_some_and(|(welcomed, _)| welcomed == connection);
        // That of an agent that is restarted is answered without a lease where nothing can be written.
        let restarts = self.network.stream(connection).is_some_and(|stream| stream.goodbye.is_some());
        let record = self.store.durable.machines.get(&self.machines[number].id);
        if is_current && book.leaving && !restarts && record.is_none_or(|record| !record.leaving) {
            let text = format!("m{number} may shut down, and the next leader would not know");
            self.violate("write_before_act", text);
        }
    }

    /// What runs, as it should, is not to be loaded only.
    pub(super) fn what_runs_is_to_run_on(&mut self, number: usize, hold: &Assignment) {
        if self.was_to_run(number, hold) {
            let text = format!("m{number} is told only to load {} ({}), which runs", hold.name, hold.epoch);
            self.violate("control_plane_is_not_the_workload", text);
        }
    }

    /// Whether the machine runs this placement, was told to start it, and it is still to run.
    fn was_to_run(&self, number: usize, hold: &Assignment) -> bool {
        let Assignment { name, epoch, .. } = hold;
        let Machine { id, systemd, agent, guard, .. } = &self.machines[number];
        let book = &self.book.machines[number];
        let unit = self.book.decided.units.get(name);
        let wanted = unit.is_some_and(|unit| {
            unit.desired == DesiredState::Launched && unit.placements.get(id) == Some(epoch)
        });
        let guarded = guard.is_some() && !book.guard_ended;
        let runs = systemd.runs(name).filter(|_| systemd.is_running(name));
        let runs = runs.is_some_and(|runs| runs.epoch == *epoch && (runs.exclusive.is_none() || guarded));
        let foreign = systemd.units.get(name).is_some_and(|unit| unit.foreign);
        let told = book.told_to_hold.get(name).and_then(|told| told.get(epoch));
        // What a stop that the store has lost is ending does not run as it should.
        let removed = book.told_to_remove.get(name).is_some_and(|(removed, _)| removed >= epoch);
        let lost = |loaded| self.book.restored && (loaded || removed);
        let told = told.is_some_and(|told| told.launched && !lost(told.loaded));
        wanted && runs && !foreign && agent.is_some() && told
    }

    /// `Requires=`: cluster-wide: units that must be active, on any machine, first. What was told to start once is told so
    /// whatever becomes of these.
    pub(super) fn what_is_required_is_active_first(&mut self, hold: &Assignment) {
        let Assignment { name, epoch, hash, .. } = hold;
        if !self.book.told_to_start.insert((name.clone(), *epoch)) {
            return;
        }
        // Not what was decided last: that may be a later one.
        let content = self.palette.content(*hash);
        for required in content.map_or(&[][..], |content| content.options.requires) {
            let required = &self.palette.names[*required];
            let unit = self.book.decided.units.get(required);
            let active = unit.is_some_and(|unit| {
                let said = |epoch: &Epoch| self.book.said_active.contains(&(required.clone(), *epoch));
                unit.placements.values().any(said)
            });
            // Or was when that was decided: it may have moved since.
            let then = self.book.required.get(&(name.clone(), *epoch, required.clone()));
            let was = then.is_some_and(|then| {
                let mut said = self.book.said_active.range((required.clone(), *then)..);
                said.next().is_some_and(|(name, _)| name == required)
            });
            if !active && !was {
                let text = format!("{name} is started, and {required} is not active: {unit:?}");
                return self.violate("what_is_required_is_active_first", text);
            }
        }
    }

    /// Revisions count within (term, session): only the session opened last counts.
    ///
    /// Here: within one boot of the machine, while the later one's stream is open.
    pub(super) fn the_session_opened_last_counts(&mut self, number: usize, connection: ConnectionId) {
        let Some(stream) = self.network.stream(connection) else { return };
        let opened = (stream.boot, stream.session);
        let last = self.book.machines[number].welcomed.replace((connection, opened));
        let open = |connection| self.network.stream(connection).is_some_and(|stream| stream.scheduler_open);
        if last.is_some_and(|(other, last)| last.0 == opened.0 && last.1 > opened.1 && open(other)) {
            let text = format!("m{number} is welcomed in {opened:?} after {last:?}");
            self.violate("the_session_opened_last_counts", text);
        }
    }

    /// Once the leader has decided that a lease ended, nothing revives it: the machine says Hello anew.
    pub(super) fn nothing_revives_a_lease(&mut self, now: Time, number: usize) {
        let lease = self.longest_lease();
        let book = &self.book.machines[number];
        let graced = book.heard.is_some() && book.graced.is_some_and(|end| now < end);
        if !graced && self.heard_ago(number).is_none_or(|ago| ago >= lease) {
            let text = format!("a heartbeat of m{number} is answered after its lease ended");
            return self.violate("nothing_revives_a_lease", text);
        }
        self.machine_is_heard(number);
        let stalled = self.scheduler.stalled(self.queue.now());
        let book = &mut self.book.machines[number];
        (book.heard, book.last_heard) = (Some((now, stalled)), Some((now, stalled)));
        (book.counts, book.unproven) = (Some((now, stalled)), false);
    }

    /// The agent always knows first that its lease is over.
    pub(crate) fn the_agent_knows_first(&mut self, number: usize) {
        if self.lease_holds(number) && !self.book.machines[number].pid1_lost {
            let text = format!("m{number} is given up while its agent may rely on its lease");
            self.violate("the_agent_knows_first", text);
        }
    }

    /// The leader doubts itself first: it subtracts its own stalls.
    pub(super) fn stalls_are_counted_against_nobody(&mut self, number: usize) {
        let book = &self.book.machines[number];
        let ago = book.counts.map(|counts| self.ago_at_most(counts));
        if !book.pid1_lost && ago.is_some_and(|ago| ago < self.settings.lease_ttl) {
            let text = format!("m{number} is given up for a time in which the leader was stopped");
            self.violate("stalls_are_counted_against_nobody", text);
        }
    }

    /// A heartbeat carries the age of PID 1's last answer. Older than `systemd_timeout`: the machine is lost. (A daemon-reload of
    /// a large machine takes 8 s and is no death.)
    ///
    /// Here: nobody's PID 1 is said to be more silent than it is, or less, but for the time in which the agent stood still
    /// itself; nor silent while nothing keeps it from answering.
    pub(super) fn pid1_is_as_old_as_that(&mut self, number: usize, age: Duration) {
        let now = self.queue.now();
        let machine = &self.machines[number];
        let bus = machine.agent.as_ref().is_some_and(crate::machine::AgentProcess::has_bus);
        let book = &mut self.book.machines[number];
        // It is asked with every heartbeat, but not before a question that is under way is given up, which takes up to 3 s.
        let beat = micros(self.settings.heartbeat_interval).max(SECOND);
        let gap = now - std::mem::replace(&mut book.last_beat, now) > 3 * SECOND;
        if gap || machine.pid1_busy > 0 || machine.bus_flaky > 0 || !bus {
            book.pid1_impaired = now;
        }
        // Clocks drift, and what it said last may have waited for the agent.
        let age = micros(age);
        let heard = machine.pid1_heard.max(machine.agent_since);
        let most = (now - heard + machine.jumped).saturating_sub(machine.stood_still);
        let least = now - book.pid1_heard.max(machine.agent_since);
        // Jobs of its own, and a reload that it knows of, explain some of it.
        let least =
            if book.reload_explains { 0 } else { least.saturating_sub(ALL_UNITS as Micros * JOB_MAX) };
        let idle = now - book.pid1_impaired.max(machine.agent_since) > 6 * SECOND && machine.jumped == 0;
        let problem = if Duration::from_micros(age) > self.settings.systemd_timeout && most < age / 100 * 98 {
            "it was heard since, or the agent stood still itself"
        } else if age < least / 100 * 98 {
            "it has been silent for longer"
        } else if idle && age > 3 * SECOND + 2 * beat {
            "nothing keeps it from answering"
        } else {
            return;
        };
        let text = format!("PID 1 of m{number} is said to be silent for {age} µs; {problem}");
        self.violate("pid1_is_as_old_as_that", text);
    }
}
