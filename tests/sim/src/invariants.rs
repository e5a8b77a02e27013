//! What must hold at every moment. Each function stands below the words of the design that it checks.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_core::agent;
use muster_core::command::{CommandError, CommandResult, QueryAnswer};
use muster_core::ids::{CommandId, Epoch, MachineId, Term};
use muster_core::leader::{Change, ConnectionId, Effect, Event, RequestId};
use muster_core::machine::Availability;
use muster_core::message::{Assignment, Assignments, FromAgent, LeaderMessage, Refused, ReportedChange};
use muster_core::state::{DesiredState, Observation, Phase, Target};
use muster_core::time::Time;
use muster_core::unit::UnitName;

use crate::book::{Cause, Expected, MachineBook, Moved};
use crate::fits::{misfit, tied};
use crate::intent::Intent;
use crate::machine::{Machine, alive_since};
use crate::palette::UNITS;
use crate::queue::{MILLI, Micros, SECOND, micros};
use crate::world::World;

/// How much of PID 1's silence a job explains.
const JOB_MAX: Micros = 50 * MILLI;

/// What a placement was before a batch, and after it.
type Before = std::collections::BTreeMap<UnitName, Vec<(MachineId, Epoch)>>;

impl World {
    /// One batch of the leader's: taken down, and judged as a whole.
    pub(crate) fn judge_batch(&mut self, cause: &Cause, changes: &[Change]) {
        let mut before = Before::new();
        let mut refiled = BTreeSet::new();
        let mut ended = Vec::new();
        for change in changes {
            match change {
                Change::PutUnit(name, unit) => {
                    let was = self.book.decided.units.insert(name.clone(), unit.clone());
                    let placements = was.map(|was| was.placements.into_iter().collect()).unwrap_or_default();
                    before.entry(name.clone()).or_insert(placements);
                }
                Change::PutFile(name, text) => {
                    let number = self.palette.number(text).unwrap_or(usize::MAX);
                    self.book.decided.files.insert(name.clone(), number);
                    refiled.insert(name.clone());
                }
                Change::DeleteUnit(name) => {
                    if let Some(was) = self.book.decided.units.remove(name) {
                        before.entry(name.clone()).or_insert(was.placements.into_iter().collect());
                    }
                }
                Change::PutMachine(id, record) => {
                    self.book.decided.machines.insert(*id, record.clone());
                }
                Change::PutRetired(machine, name, epoch) => {
                    self.book.decided.retired.insert((*machine, name.clone()), epoch.epoch);
                    if let Some(number) = self.machine_number(*machine) {
                        self.book.machines[number].over.remove(name);
                    }
                }
                Change::DeleteRetired(machine, name) => {
                    if let Some(epoch) = self.book.decided.retired.remove(&(*machine, name.clone())) {
                        ended.push((*machine, name.clone(), epoch));
                    }
                }
                Change::PutAvailability(machine, availability) => {
                    self.book.decided.availability.insert(*machine, *availability);
                }
                Change::PutCommand(..) | Change::DeleteCommand(_) => {}
            }
        }
        self.note_what_is_required(&before);
        self.intent_is_what_clients_asked_for(cause, &before, &refiled);
        self.what_is_over_is_gone(&ended);
        self.one_current_copy(&before);
        self.epochs_never_repeat(&before);
        self.control_plane_is_not_the_workload(cause, &before);
        self.a_new_leader_waits_for_reports(&before);
        self.constraints_hold(cause, &before, &refiled);
    }

    /// Invariant 1: Nothing acknowledged is lost. What a client was told is done survives every crash.
    ///
    /// Here: the leader records what the clients' commands add up to, and nothing else.
    fn intent_is_what_clients_asked_for(
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

    /// Invariant 1: Nothing acknowledged is lost. / Write before act: the client's answer leaves after the commit that holds it.
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

    /// Invariant 1: Nothing acknowledged is lost: the same for what is decided of machines.
    fn judge_machines(&mut self, request: RequestId) {
        let Some(Expected::Machines { machines, availability }) = self.book.expected.remove(&request) else {
            return;
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

    /// Invariant 2: Exclusive means one. An exclusive unit is never active on two machines at one moment (but for the two cases
    /// under Leases).
    ///
    /// Here: a machine that stood still as a whole is one of them; and one whose PID 1 hangs while its agent does too, or was
    /// started anew and has not had a lease since.
    pub(crate) fn exclusive_means_one(&mut self) {
        let now = self.queue.now();
        let excepted = |machine: &Machine| {
            let hangs = |since: Micros| !alive_since(machine.agent.as_ref(), machine.agent_since, since);
            let busy = machine.pid1_busy > 0 && hangs(now);
            machine.frozen > 0
                || now < machine.excepted_until
                || busy
                || machine.hung_since.is_some_and(hangs)
        };
        let machines = || self.machines.iter().filter(|machine| machine.on);
        for name in &self.palette.names {
            let versions: Vec<_> = machines().filter_map(|m| Some((m, m.systemd.lives(name)?))).collect();
            // What takes its place after a restore of the store may be another unit, of other files.
            let latest = versions.iter().map(|(_, version)| version).max_by_key(|version| version.epoch);
            let stop = latest.and_then(|version| version.exclusive);
            let alike = versions.iter().all(|(_, version)| version.exclusive == stop);
            let exclusive = stop.is_some() && (alike || !self.book.restored);
            if versions.len() > 1 && exclusive && !versions.iter().any(|(machine, _)| excepted(machine)) {
                let on: Vec<String> = versions
                    .iter()
                    .map(|(m, version)| format!("{} ({})", m.id.short(), version.epoch))
                    .collect();
                let text = format!("{name} runs on {}", on.join(" and "));
                return self.violate("exclusive_means_one", text);
            }
        }
    }

    /// Invariant 3: One current copy. Any other unit has at most one current placement.
    fn one_current_copy(&mut self, before: &Before) {
        for name in before.keys() {
            let Some(unit) = self.book.decided.units.get(name) else { continue };
            if unit.placements.len() > 1 && !self.is_global(name) {
                let text = format!("{name} is placed on {} machines", unit.placements.len());
                return self.violate("one_current_copy", text);
            }
        }
    }

    fn is_exclusive(&self, name: &UnitName) -> bool {
        let file = self.book.decided.files.get(name);
        file.is_some_and(|file| self.palette.contents[*file].options.exclusive.is_some())
    }

    fn keeps(&self, name: &UnitName) -> bool {
        let file = self.book.decided.files.get(name);
        file.is_some_and(|file| self.palette.contents[*file].options.keep)
    }

    fn is_global(&self, name: &UnitName) -> bool {
        let file = self.book.decided.files.get(name);
        file.is_some_and(|file| self.palette.contents[*file].options.global)
    }

    /// Every placement carries an epoch, larger than that of every earlier placement of that unit.
    fn epochs_never_repeat(&mut self, before: &Before) {
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

    /// Invariant 6: The control plane is not the workload. Crash, restart, upgrade or failover of schedulers and agents never
    /// stops, restarts or moves a healthy unit on a machine whose lease is valid. / Invariant 8: No storm. The work that a failure
    /// causes is bounded by what failed.
    ///
    /// Here: what the leader decides. Each end of a placement has a reason of its own: a client who named the unit (or
    /// one that it is tied to), a machine that is lost or was rebooted, a machine that has refused this very placement, or on
    /// which it has failed.
    fn control_plane_is_not_the_workload(&mut self, cause: &Cause, before: &Before) {
        let asked_for = match cause {
            Cause::Command { ask: crate::faults::Ask::Command { units, .. }, .. } => {
                let named = units.iter().map(|unit| self.palette.names[*unit].clone()).collect();
                tied(&self.palette, &self.book.decided, named)
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
        let mut moved = Vec::new();
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
                let leaves = book.leaving && !keeps;
                let lost = !self.lease_holds(number) || book.pid1_lost || leaves || drained;
                let refused = book.stale.contains(&(name.clone(), *epoch));
                let failed = book.failed.contains(&(name.clone(), *epoch));
                let lease = self.settings.lease_ttl + self.settings.clock_margin;
                let alive = self.heard_ago(number).is_some_and(|ago| ago < lease);
                let emptied = book.leaving || drained;
                let active = book.says_active.contains(&(name.clone(), *epoch));
                if now.is_none()
                    && lost
                    && !emptied
                    && !failed
                    && !book.rebooted
                    && !book.pid1_lost
                    && self.too_many_died(number)
                {
                    let text = format!("{name} is moved from m{number} although too many died at once");
                    return self.violate("the_leader_doubts_itself_first", text);
                }
                let launched = unit.is_some_and(|unit| unit.desired == DesiredState::Launched);
                let twice = !self.is_global(name) && !self.is_exclusive(name);
                if now.is_none() && emptied && alive && active && launched && !failed && twice {
                    moved.push((number, name.clone(), *epoch));
                }
                // After the store has lost decisions, a machine that holds a later copy has the current one.
                let overtaken = (self.book.restored || self.book.store_failed)
                    && self.book.machines.iter().enumerate().any(|(other, book)| match book.says.get(name) {
                        // An epoch of the time that was undone may be given again.
                        Some(said) => said > epoch || said == epoch && other != number,
                        None => false,
                    });
                // What an earlier boot had is placed anew, also where it was.
                let rebooted = !self.lease_holds(number) || book.rebooted;
                if !(overtaken
                    || failed
                    || (now.is_some() && (refused || rebooted))
                    || (now.is_none() && (lost || rebooted && !keeps)))
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
            let most = match self.book.decided.availability.get(&self.machines[number].id) {
                Some(Availability::Draining(drain)) => Some(Duration::from_millis(drain.timeout_ms)),
                _ => None,
            };
            self.book.machines[number].moved.insert(name, Moved { epoch, at, most });
        }
    }

    /// The leader doubts itself first: when a large share of the machines seems to die at once it moves nothing until it knows
    /// better.
    ///
    /// Here: this machine was lost within the last lease, and so many others with it. Those that were granted time to
    /// restart, and a brake that was held for so long that it is released, are left out.
    fn too_many_died(&self, number: usize) -> bool {
        let lease = self.settings.lease_ttl + self.settings.clock_margin;
        let silent = |book: &MachineBook| book.last_heard.map(|heard| self.ago(heard));
        let just_lost = |book: &MachineBook| {
            let window = lease..(lease * 2).saturating_sub(Duration::from_millis(600));
            !book.leaving
                && !book.pid1_lost
                && book.graced.is_none()
                && silent(book).is_some_and(|ago| window.contains(&ago))
        };
        let books = &self.book.machines;
        let held_for_long = self.settings.brake_hold.saturating_sub(lease);
        let lost = books.iter().filter(|book| just_lost(book)).count();
        let known = books.iter().filter(|book| book.last_heard.is_some()).count();
        just_lost(&books[number])
            && books.iter().all(|book| silent(book).is_none_or(|ago| ago < held_for_long))
            && lost >= known.div_ceil(3).max(2)
    }

    /// The brake is released: those that are still away count as dead from now on.
    fn silent_machines_are_given_up(&mut self) {
        let least = self.settings.heartbeat_interval * 2;
        for number in 0..self.machines.len() {
            let heard = self.book.machines[number].last_heard;
            if heard.map(|heard| self.ago(heard)).is_some_and(|ago| ago > least) {
                self.book.machines[number].last_heard = None;
            }
        }
    }

    /// Drain: units start elsewhere before they stop here where they may run twice. / A machine that shuts down: its units move
    /// before they stop.
    fn what_moves_runs_on(&mut self, number: usize, name: &UnitName, epoch: Epoch) {
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
        let passed = self.ago_at_most(moved.at);
        if !active && !knows_less && moved.most.is_none_or(|most| passed < most) {
            let text = format!("m{number} is told to stop {name} ({epoch}) before it is active elsewhere");
            self.violate("what_moves_runs_on", text);
        }
    }

    /// Whether the store, a machine or its stream is not well now.
    fn look_for_trouble(&mut self) {
        let well = |number: usize| {
            let book = &self.book.machines[number];
            let open =
                |connection| self.network.stream(connection).is_some_and(|stream| stream.scheduler_open);
            let connected = book.welcomed.is_some_and(|(connection, _)| open(connection));
            connected
                && !book.leaving
                && self.heard_ago(number).is_some_and(|ago| ago < Duration::from_secs(3))
        };
        if self.store.is_troubled() || self.book.store_failed || !(0..self.machines.len()).all(well) {
            self.book.troubled = self.queue.now();
        }
    }

    /// Drain: the deadline always ends it.
    ///
    /// Here: where the unit may become active elsewhere, its old copy is told to stop soon after, if all that takes part is
    /// well.
    fn the_deadline_ends_a_drain(&mut self) {
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
                let most = moved.most.map(|most| most + Duration::from_secs(4));
                placed && most.is_some_and(|most| self.ago(moved.at) > most)
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
    fn a_new_leader_waits_for_reports(&mut self, before: &Before) {
        let lease = self.settings.lease_ttl + self.settings.clock_margin;
        let now = self.scheduler.clock.time(self.queue.now());
        if now.since(self.book.took_over) >= lease {
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
    fn constraints_hold(&mut self, cause: &Cause, before: &Before, refiled: &BTreeSet<UnitName>) {
        let lease = self.settings.lease_ttl + self.settings.clock_margin;
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
                let closed = book.leaving || book.degraded || !open;
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

    /// Invariant 3: Older copies stop: the record that one is to be stopped is forgotten only when it is gone.
    fn what_is_over_is_gone(&mut self, ended: &[(MachineId, UnitName, Epoch)]) {
        for (id, name, epoch) in ended {
            let Some(number) = self.machine_number(*id) else { continue };
            // A later copy there has taken its place.
            if self.book.decided.units.get(name).is_some_and(|unit| unit.placements.contains_key(id)) {
                continue;
            }
            let machine = &self.machines[number];
            let files = machine.files.get(name).is_some_and(|file| file.version.epoch <= *epoch);
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
    fn nothing_is_forgotten(&mut self, name: &UnitName, machine: MachineId) {
        if !self.book.restored {
            let text = format!("{name} on {} is an orphan, and no backup was restored", machine.short());
            self.violate("nothing_is_forgotten", text);
        }
    }

    /// One effect of the leader's, at the moment when it is carried out.
    pub(crate) fn judge_effect(&mut self, now: Time, cause: &Cause, effect: &Effect) {
        match effect {
            Effect::Persist(commit, changes) => {
                self.book.issued = *commit;
                self.judge_batch(cause, changes);
            }
            Effect::AnswerCommand(request, result) => self.is_answered(*request, result),
            Effect::Event(Event::Orphaned { unit, machine }) => self.nothing_is_forgotten(unit, *machine),
            Effect::Event(Event::BrakeReleased(_)) => self.silent_machines_are_given_up(),
            Effect::AnswerMachines(request, Ok(())) => self.judge_machines(*request),
            Effect::AnswerQuery(request, answer) => self.judge_query(*request, answer),
            Effect::Send(connection, message) => {
                let Some(stream) = self.network.stream(*connection) else { return };
                let number = stream.machine;
                self.old_leaders_are_harmless(message.term);
                match &message.body {
                    LeaderMessage::Welcome(_) => {
                        self.the_session_opened_last_counts(number, *connection);
                        let stalled = self.scheduler.stalled(self.queue.now());
                        let book = &mut self.book.machines[number];
                        book.last_heard = Some((now, stalled));
                        book.degraded = book.says_degraded;
                        (book.heard, book.pid1_lost, book.leaving) = (Some((now, stalled)), false, false);
                        (book.grace, book.graced) = (None, None);
                    }
                    LeaderMessage::Farewell { lease: Some(lease) } => {
                        self.promises_grace(*connection, *lease);
                    }
                    LeaderMessage::HeartbeatAck { number: beat } => {
                        self.nothing_revives_a_lease(now, number);
                        self.promises(*connection, *beat);
                    }
                    LeaderMessage::Refused(Refused::LeaseEnded) => {
                        self.the_agent_knows_first(number);
                        self.stalls_are_counted_against_nobody(number);
                        self.book.machines[number].heard = None;
                    }
                    LeaderMessage::Assignments(assignments) => self.write_before_act(number, assignments),
                    LeaderMessage::Farewell { lease: None }
                    | LeaderMessage::Refused(_)
                    | LeaderMessage::Probe => {}
                }
            }
            _ => {}
        }
    }

    /// Invariant 5: Old leaders are harmless. Nothing is written or done in a term that has been overtaken.
    fn old_leaders_are_harmless(&mut self, term: Term) {
        // What waited for a commit while this leader took a higher term is said in the one before.
        let own = self.scheduler.process.as_ref().is_some_and(|process| process.terms.contains(&term));
        if !own || term > self.store.term {
            let text = format!("something is said in term {term}, which is not this leader's");
            self.violate("old_leaders_are_harmless", text);
        }
    }

    /// Write before act: the agent's assignment leaves after the commit that holds it.
    fn write_before_act(&mut self, number: usize, assignments: &Assignments) {
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

    /// `Requires=`: cluster-wide: units that must be active, on any machine, first. What was told to start once is told so
    /// whatever becomes of these.
    fn what_is_required_is_active_first(&mut self, hold: &Assignment) {
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

    /// Takes down where units are that new placements may wait for.
    fn note_what_is_required(&mut self, before: &Before) {
        for (name, was) in before {
            let (Some(unit), Some(file)) =
                (self.book.decided.units.get(name), self.book.decided.files.get(name))
            else {
                continue;
            };
            let new = unit.placements.iter().filter(|(id, epoch)| !was.contains(&(**id, **epoch)));
            for (_, epoch) in new {
                for required in self.palette.contents[*file].options.requires {
                    let required = &self.palette.names[*required];
                    let on = self.book.decided.units.get(required).map(|unit| &unit.placements);
                    if let Some(then) = on.and_then(|on| on.values().max()) {
                        let key = (name.clone(), *epoch, required.clone());
                        self.book.required.insert(key, *then);
                    }
                }
            }
        }
    }

    /// Revisions count within (term, session): only the session opened last counts.
    ///
    /// Here: within one boot of the machine, while the later one's stream is open.
    fn the_session_opened_last_counts(&mut self, number: usize, connection: ConnectionId) {
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
    fn nothing_revives_a_lease(&mut self, now: Time, number: usize) {
        let lease = self.settings.lease_ttl + self.settings.clock_margin;
        let book = &self.book.machines[number];
        let graced = book.heard.is_some() && book.graced.is_some_and(|end| now < end);
        if !graced && self.heard_ago(number).is_none_or(|ago| ago >= lease) {
            let text = format!("a heartbeat of m{number} is answered after its lease ended");
            return self.violate("nothing_revives_a_lease", text);
        }
        let stalled = self.scheduler.stalled(self.queue.now());
        let book = &mut self.book.machines[number];
        (book.heard, book.last_heard) = (Some((now, stalled)), Some((now, stalled)));
    }

    /// The agent always knows first that its lease is over.
    pub(crate) fn the_agent_knows_first(&mut self, number: usize) {
        if self.lease_holds(number) && !self.book.machines[number].pid1_lost {
            let text = format!("m{number} is given up while its agent may rely on its lease");
            self.violate("the_agent_knows_first", text);
        }
    }

    /// The leader doubts itself first: it subtracts its own stalls.
    fn stalls_are_counted_against_nobody(&mut self, number: usize) {
        let book = &self.book.machines[number];
        let ago = book.heard.map(|heard| self.ago_at_most(heard));
        if !book.pid1_lost && ago.is_some_and(|ago| ago < self.settings.lease_ttl) {
            let text = format!("m{number} is given up for a time in which the leader was stopped");
            self.violate("stalls_are_counted_against_nobody", text);
        }
    }

    /// A heartbeat carries the age of PID 1's last answer. Older than `systemd_timeout`: the machine is lost. (A daemon-reload of
    /// a large machine takes 8 s and is no death.)
    ///
    /// Here: nobody's PID 1 is said to be more silent than it is, or less; nor silent while nothing keeps it from answering.
    fn pid1_is_as_old_as_that(&mut self, number: usize, age: Duration) {
        let now = self.queue.now();
        let machine = &self.machines[number];
        let bus = machine.agent.as_ref().is_some_and(crate::machine::AgentProcess::has_bus);
        let book = &mut self.book.machines[number];
        // It is asked with every heartbeat.
        let gap = now - std::mem::replace(&mut book.last_beat, now) > 3 * SECOND;
        if gap || machine.pid1_busy > 0 || machine.bus_flaky > 0 || !bus {
            book.pid1_impaired = now;
        }
        // Clocks drift, and what it said last may have waited for the agent.
        let age = micros(age);
        let heard = machine.pid1_heard.max(machine.agent_since);
        let (most, least) = (now - heard + machine.jumped, now - book.pid1_heard.max(machine.agent_since));
        // Jobs of its own, and a reload that it knows of, explain some of it.
        let least = if book.reload_explains { 0 } else { least.saturating_sub(UNITS as Micros * JOB_MAX) };
        let idle = now - book.pid1_impaired.max(machine.agent_since) > 6 * SECOND && machine.jumped == 0;
        let problem = if Duration::from_micros(age) > self.settings.systemd_timeout && most < age / 100 * 98 {
            "it was heard since"
        } else if age < least / 100 * 98 {
            "it has been silent for longer"
        } else if idle && age > 5 * SECOND {
            "nothing keeps it from answering"
        } else {
            return;
        };
        let text = format!("PID 1 of m{number} is said to be silent for {age} µs; {problem}");
        self.violate("pid1_is_as_old_as_that", text);
    }

    pub(crate) fn after_step(&mut self) {
        // Re-deriving everything costs as much as all else together.
        self.look_for_trouble();
        if self.stats.steps.is_multiple_of(16) || self.healed {
            self.the_deadline_ends_a_drain();
            let Some(process) = &self.scheduler.process else { return };
            let differences = process.leader.differences();
            if !differences.is_empty() {
                self.violate("indexes_are_right", differences.join("; "));
            }
        }
    }

    /// One effect of an agent's, at the moment when it is carried out.
    pub(crate) fn judge_agent(&mut self, number: usize, effect: &agent::Effect) {
        match effect {
            agent::Effect::Start(name) => self.starts_what_it_was_told(number, name),
            agent::Effect::Stop(name) => self.stops_nothing_healthy(number, name),
            agent::Effect::Remove(names) => {
                names.iter().for_each(|name| self.stops_nothing_healthy(number, name));
            }
            agent::Effect::Write(writes) => {
                writes
                    .iter()
                    .for_each(|write| self.writes_what_it_was_told(number, &write.name, write.epoch));
            }
            agent::Effect::Send(FromAgent::Heartbeat { pid1_age, .. }) => {
                self.pid1_is_as_old_as_that(number, *pid1_age);
            }
            agent::Effect::ArmGuard { .. } => self.book.machines[number].guard_ended = false,
            agent::Effect::PetGuard { .. } => self.book.machines[number].guard_kept = true,
            agent::Effect::DisarmGuard => self.book.machines[number].guard_kept = false,
            agent::Effect::Event(agent::Event::GuardEnded) => self.guard_ends_with_the_lease(number),
            agent::Effect::Reload => {
                let book = &mut self.book.machines[number];
                (book.asked_to_reload, book.reload_explains) = (true, true);
            }
            agent::Effect::Send(FromAgent::Hello(hello)) => {
                let held = hello.units.iter().map(|unit| (&unit.name, &unit.observation));
                self.what_the_guard_ends_has_not_run_to_its_end(number, held);
            }
            agent::Effect::Send(FromAgent::Report(reports)) => {
                let observed = reports.iter().filter_map(|report| match &report.change {
                    ReportedChange::Observed(observation) => Some((&report.name, observation)),
                    _ => None,
                });
                self.what_the_guard_ends_has_not_run_to_its_end(number, observed);
                for report in reports.iter().filter(|report| report.change == ReportedChange::Gone) {
                    let stopped = self.book.machines[number].stopped.entry(report.name.clone()).or_default();
                    *stopped = report.epoch.max(*stopped);
                }
            }
            agent::Effect::SaveMembership(membership)
                if membership.term < self.machines[number].membership.term =>
            {
                let text = format!("m{number} goes back to term {}", membership.term);
                self.violate("old_leaders_are_harmless", text);
            }
            _ => {}
        }
    }

    /// Invariant 5: Old leaders are harmless. An agent obeys no term older than the newest it has seen, and writes that down before
    /// it obeys. / It applies nothing with a lower epoch than it holds or has stopped.
    fn writes_what_it_was_told(&mut self, number: usize, name: &UnitName, epoch: Epoch) {
        let machine = &self.machines[number];
        let book = &self.book.machines[number];
        let told = book.told_to_hold.get(name).and_then(|told| told.get(&epoch));
        let has = machine.files.get(name).map(|file| file.version.epoch);
        let problem = match told {
            None => "nobody told it to",
            Some(told) if told.term > machine.membership.term => "its term is not written down",
            Some(_) if has.is_some_and(|has| has > epoch) => "it has a later copy",
            Some(_) if book.stopped.get(name).is_some_and(|stopped| epoch <= *stopped) => "it has stopped it",
            Some(_) if book.over.get(name).is_some_and(|over| epoch <= *over) => {
                "its end is recorded, and that nothing is left of it"
            }
            Some(_) => return,
        };
        let text = format!("m{number} writes {name} as {epoch}: {problem}");
        self.violate("old_leaders_are_harmless", text);
    }

    /// What the machine starts, it was told to start.
    fn starts_what_it_was_told(&mut self, number: usize, name: &UnitName) {
        let machine = &self.machines[number];
        let files = machine.files.get(name).map(|file| file.version.epoch);
        let told = self.book.machines[number].told_to_hold.get(name);
        if !files
            .is_some_and(|epoch| told.and_then(|told| told.get(&epoch)).is_some_and(|told| told.launched))
        {
            let text = format!("m{number} starts {name} from files of {files:?}, which nobody told it to");
            self.violate("old_leaders_are_harmless", text);
        }
    }

    /// Invariant 6: The control plane is not the workload.
    ///
    /// Here: what the agent stops. It was told to hold a later placement, or this one loaded only, or to remove it; or
    /// what runs is not what the files say.
    fn stops_nothing_healthy(&mut self, number: usize, name: &UnitName) {
        let machine = &self.machines[number];
        let book = &mut self.book.machines[number];
        let obeyed = machine.membership.term;
        let held = machine.files.get(name).map(|file| file.version.epoch);
        let Some(held) = held else {
            // What was begun is carried to its end.
            if !book.stops.iter().any(|(stopped, _)| stopped == name) && machine.systemd.is_running(name) {
                self.violate(
                    "control_plane_is_not_the_workload",
                    format!("m{number} stops {name}, which is not its own"),
                );
            }
            return;
        };
        let told = book.told_to_hold.get(name);
        let later = told.is_some_and(|told| {
            told.iter()
                .any(|(epoch, told)| told.term <= obeyed && (*epoch > held || *epoch == held && told.loaded))
        });
        let removed =
            book.told_to_remove.get(name).is_some_and(|(epoch, term)| *epoch >= held && *term <= obeyed);
        let other = machine.systemd.runs(name).is_none_or(|version| version.epoch != held)
            || machine.systemd.units.get(name).is_some_and(|unit| unit.foreign);
        // Exclusive units end with the guard.
        let file = machine.files.get(name).map(|file| file.version);
        let unguarded = (book.guard_ended || machine.guard.is_none())
            && file.is_some_and(|version| version.exclusive.is_some());
        let other = other || unguarded;
        let begun = book.stops.contains(&(name.clone(), held));
        if !(later || removed || other || begun) {
            let text = format!("m{number} stops {name} ({held}), which is wanted as it is");
            return self.violate("control_plane_is_not_the_workload", text);
        }
        book.stops.insert((name.clone(), held));
    }

    /// Exclusive units end with the lease of their machine, and not before.
    fn guard_ends_with_the_lease(&mut self, number: usize) {
        let machine = &self.machines[number];
        let time = machine.clock.time(self.queue.now());
        let book = &mut self.book.machines[number];
        (book.guard_ended, book.guard_kept) = (true, false);
        let lease = machine.agent.as_ref().and_then(|agent| agent.agent.lease_end());
        let stood_still = self.queue.now() < machine.excepted_until;
        let lasts = machine.guard.is_some() && self.queue.now() < machine.guard_until;
        if lasts && !stood_still && lease.is_some_and(|end| time < end) {
            let text = format!("m{number} ends its exclusive units while its lease and its guard last");
            self.violate("control_plane_is_not_the_workload", text);
        }
    }

    /// PID 1 ends exclusive units when the lease is over, and not before.
    pub(crate) fn the_guard_lasts_as_long_as_the_lease(&mut self, number: usize) {
        let machine = &self.machines[number];
        let time = machine.clock.time(self.queue.now());
        let lease = machine.agent.as_ref().and_then(|agent| agent.agent.lease_end());
        if self.book.machines[number].guard_kept && lease.is_some_and(|end| time < end) {
            let text = format!("the guard of m{number} ends at {time:?}, and its lease at {lease:?}");
            self.violate("control_plane_is_not_the_workload", text);
        }
    }

    /// What is exclusive and ended with the guard is not done with.
    fn what_the_guard_ends_has_not_run_to_its_end<'a>(
        &mut self,
        number: usize,
        said: impl Iterator<Item = (&'a UnitName, &'a Observation)>,
    ) {
        let ended = |observation: &Observation| {
            matches!(observation, Observation::Held { phase: Phase::Launched, state: Some(state) }
                if state.active == "inactive")
        };
        for (name, _) in said.filter(|(_, observation)| ended(observation)) {
            let Machine { files, systemd, .. } = &self.machines[number];
            let version = files.get(name).map(|file| file.version);
            let exclusive = version.filter(|version| version.exclusive.is_some());
            // What the leader wanted stopped may have been so by an agent that had no time to write that down; the leader
            // does not take that copy for the current one any more.
            let stops = &self.book.machines[number].stops;
            let by_itself = |epoch| systemd.exited.contains(name) || stops.contains(&(name.clone(), epoch));
            if exclusive.is_some_and(|version| !by_itself(version.epoch)) {
                let text = format!("m{number} says that {name} has run to its end");
                return self.violate("control_plane_is_not_the_workload", text);
            }
        }
    }

    /// The agent counts its lease from the moment it sent the heartbeat that was answered.
    pub(crate) fn judge_lease(&mut self, number: usize) {
        let Some(agent) = &self.machines[number].agent else { return };
        let end = agent.agent.lease_end();
        let granted = self.book.machines[number].granted;
        if end > granted {
            let text = format!("m{number} takes its lease to end at {end:?}, and was granted {granted:?}");
            self.violate("the_agent_knows_first", text);
        }
    }
}
