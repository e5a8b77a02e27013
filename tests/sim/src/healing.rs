//! After the faults: everything comes to what was asked for, and then there is silence.

use std::collections::BTreeSet;

use muster_core::command::{CopyRole, Query, QueryAnswer, UnitStatus, Verb};
use muster_core::leader::StoredFile;
use muster_core::machine::{Availability, MachineState, Pressure};
use muster_core::state::{DesiredState, Observation, Phase};
use muster_core::unit::UnitName;

use crate::book::Done;
use crate::faults::{Ask, Order};
use crate::fits::{replaces, tied, together};
use crate::queue::{Micros, SECOND};
use crate::systemd::State;
use crate::world::{Event, World};

/// Within this time after the last fault all must be well, as `docs/failure.md` says: a lease to notice what is away, the longest backoff of agents
/// and of reads that replace signals, the longest stop, and the operator, who comes every ten seconds.
const CONVERGES_WITHIN: Micros = 120 * SECOND;
/// After this, everything that was on its way has arrived.
const SETTLES: Micros = 3 * SECOND;
/// After this, under one leader, nothing keeps an exclusive unit from being started, and no agent counts on the longer lease of a restart.
const GATES_OPEN: Micros = 45 * SECOND;
/// How long the silence lasts.
const SILENCE: Micros = 10 * SECOND;
/// How often the operator looks after what nothing but a person decides.
const OPERATOR: Micros = 10 * SECOND;

impl World {
    /// Looks whether all is well.
    pub(crate) fn looks(&mut self) {
        let since = self.queue.now() - self.plan.heals;
        if let Some(done) = self.book.idle {
            // On a store that may be an old one exclusive units wait for the longest lease and a stop. A leader may take
            // office after the faults, since an agent knows a higher term.
            let office = self.book.office.saturating_sub(self.plan.heals);
            let settled = (done.since + SETTLES).max(office + GATES_OPEN);
            if since >= settled + SILENCE {
                self.an_idle_cluster_is_silent(done);
                self.over = true;
            } else {
                if since < settled + SECOND {
                    self.book.idle = Some(Done { since: done.since, ..self.done() });
                }
                self.queue.after(SECOND, Event::Looks);
            }
            return;
        }
        let differences = self.everything_converges();
        if differences.is_empty() {
            self.stats.healed_after = crate::faults::seconds(since);
            self.note(|| "==== all is well".to_owned());
            self.book.idle = Some(Done { since, ..self.done() });
        } else if since > CONVERGES_WITHIN {
            return self.violate("everything_converges", differences.join("\n  "));
        } else if since % OPERATOR < SECOND / 2 && since >= OPERATOR {
            self.operator_decides();
        }
        self.queue.after(SECOND / 2, Event::Looks);
    }

    fn done(&self) -> Done {
        Done {
            since: 0,
            commits: self.stats.commits,
            reports: self.stats.reports,
            assignments: self.stats.assignments,
        }
    }

    /// An idle cluster writes nothing to its store. / Invariant 8: No storm: nothing is said that is not a heartbeat.
    fn an_idle_cluster_is_silent(&mut self, before: Done) {
        let now = Done { since: before.since, ..self.done() };
        if now != before {
            self.violate("an_idle_cluster_is_silent", format!("{before:?} became {now:?}"));
        }
        let differences = self.everything_converges();
        if !differences.is_empty() {
            self.violate("everything_converges", format!("and then: {}", differences.join("\n  ")));
        }
    }

    /// Asks the leader itself, behind the back of all others.
    fn ask(&mut self, query: Query) -> Option<QueryAnswer> {
        self.answer = None;
        self.leader_is_asked(query);
        self.answer.take()
    }

    fn statuses(&mut self) -> Option<Vec<UnitStatus>> {
        match self.ask(Query::Units { names: None, content: true, reasons: false })? {
            QueryAnswer::Units(units) => Some(units),
            QueryAnswer::Machines(_) | QueryAnswer::Rto(_) | QueryAnswer::Backup { .. } => None,
        }
    }

    /// Invariant 4: Everything converges. When faults end, within a stated bound every launched unit that fits somewhere is active
    /// exactly once, every unit that should be gone is gone.
    fn everything_converges(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, client) in self.clients.iter().enumerate() {
            if !client.done {
                found.push(format!("client {number} waits for an answer"));
            }
        }
        if self.scheduler.process.is_none() || !self.store.is_idle() {
            found.push("the scheduler or its store is not at rest".to_owned());
            return found;
        }
        let timer = self.scheduler.process.as_ref().map(|process| process.leader.differences());
        found.extend(timer.into_iter().flatten());
        let Some(QueryAnswer::Machines(cluster)) = self.ask(Query::Machines { left_on: Vec::new() }) else {
            found.push("the leader does not answer at once".to_owned());
            return found;
        };
        for status in &cluster.machines {
            if status.availability != Availability::Open || status.record.leaving {
                found.push(format!("{} is {:?}", status.id.short(), status.availability));
            }
            if (status.pressure == Pressure::default()) == self.plan.pressure {
                found.push(format!("{} is said to be under {:?}", status.id.short(), status.pressure));
            }
            if status.state != MachineState::Up {
                found.push(format!("{} is {}", status.id.short(), status.state));
            }
        }
        for number in (0..self.machines.len()).filter(|number| !self.is_connected(*number)) {
            found.push(format!("m{number} is not connected"));
        }
        if cluster.machines.len() < self.machines.len() {
            found.push("a machine is missing".to_owned());
        }
        self.memory_equals_store(&mut found);
        self.copies_are_right(&mut found);
        self.what_fits_is_placed(&mut found);
        self.what_is_tied_is_together(&mut found);
        found
    }

    /// Whether a launched unit may be only loaded, since one that it requires is not to run.
    fn may_wait(&self, name: &UnitName) -> bool {
        let durable = &self.store.disk.durable;
        let file = durable.files.get(name).and_then(|text| self.palette.number(text));
        let requires = file.map_or(&[][..], |file| self.palette.contents[file].options.requires);
        requires.iter().any(|required| {
            let unit = durable.units.get(&self.palette.names[*required]);
            unit.is_none_or(|unit| unit.desired != DesiredState::Launched || unit.placements.is_empty())
        })
    }

    /// What a client sees of a unit is how it is.
    fn is_seen_as_wanted(&self, status: &UnitStatus) -> bool {
        let current = status.copies.iter().filter(|copy| copy.role == CopyRole::Current);
        let mut seen = current.map(|copy| copy.observation.as_ref());
        match status.desired {
            DesiredState::Inactive => seen.next().is_none(),
            DesiredState::Loaded => {
                seen.all(|seen| matches!(seen, Some(Observation::Held { phase: Phase::Loaded, .. })))
            }
            DesiredState::Launched if status.done => true,
            DesiredState::Launched => seen.all(|seen| match seen {
                Some(Observation::Held { phase: Phase::Launched, state: Some(state) }) => {
                    state.active == "active"
                }
                Some(Observation::Held { phase: Phase::Loaded, .. }) => self.may_wait(&status.name),
                _ => false,
            }),
        }
    }

    /// The leader's memory is the state, the store is its log.
    fn memory_equals_store(&mut self, found: &mut Vec<String>) {
        let Some(statuses) = self.statuses() else {
            found.push("the leader does not answer at once".to_owned());
            return;
        };
        self.what_is_waited_for_is_being_started(&statuses);
        let durable = &self.store.disk.durable;
        for status in statuses.iter().filter(|status| status.known) {
            let stored = durable.units.get(&status.name);
            let current = status.copies.iter().filter(|copy| copy.role == CopyRole::Current);
            let placements: Vec<_> = current.map(|copy| (copy.machine, copy.epoch)).collect();
            let same = stored.is_some_and(|unit| {
                let stored: Vec<_> =
                    unit.placements.iter().map(|(machine, epoch)| (*machine, *epoch)).collect();
                unit.desired == status.desired && stored == placements
            });
            if !self.is_seen_as_wanted(status) {
                found.push(format!("{} is {}, and seen as {:?}", status.name, status.desired, status.copies));
            }
            if !same || durable.files.get(&status.name).map(StoredFile::text) != status.content.as_ref() {
                found.push(format!("{}: memory is not as the store", status.name));
            }
        }
        let known = statuses.iter().filter(|status| status.known).count();
        if known != durable.units.len() || durable.files.len() != known {
            found.push("memory and store have different units".to_owned());
        }
        for ((machine, name), retired) in &durable.retired {
            found.push(format!("{name} ({}) on {} is not known to be gone", retired.epoch, machine.short()));
        }
        for status in
            statuses.iter().filter(|status| status.copies.iter().any(|c| c.role == CopyRole::Orphaned))
        {
            found.push(format!("{} is an orphan", status.name));
        }
        for (name, unit) in &durable.units {
            let wanted = self.palette.unit(name).and_then(|unit| self.book.durable_intent.units.get(&unit));
            if wanted.map(|(_, desired)| *desired) != Some(unit.desired) {
                found.push(format!("{name} is {} and should be {wanted:?}", unit.desired));
            }
        }
        if durable.units.len() != self.book.durable_intent.units.len() {
            found.push("units are lost".to_owned());
        }
    }

    /// Every copy runs from the files of its placement, where it should, and no other copy is anywhere.
    fn copies_are_right(&self, found: &mut Vec<String>) {
        for (number, machine) in self.machines.iter().enumerate() {
            let names: BTreeSet<&UnitName> =
                machine.files.keys().chain(machine.systemd.units.keys()).collect();
            for name in names {
                let placed =
                    self.store.disk.durable.units.get(name).and_then(|unit| unit.placements.get(&machine.id));
                let file = machine.files.get(name).map(|file| file.version);
                if placed.copied() != file.map(|version| version.epoch) {
                    found.push(format!(
                        "m{number} has files of {name} {file:?}, and it is placed there as {placed:?}"
                    ));
                }
                let runs = machine.systemd.is_running(name);
                if runs && machine.systemd.runs(name) != file {
                    found.push(format!("m{number} runs {name} from {:?}", machine.systemd.runs(name)));
                }
            }
        }
        let options = |text| self.palette.number(text).map(|file| &self.palette.contents[file].options);
        let file_of =
            |name: &UnitName| self.store.disk.durable.files.get(name).and_then(|text| options(text));
        for (name, unit) in &self.store.disk.durable.units {
            for (id, epoch) in &unit.placements {
                let Some(number) = self.machine_number(*id) else { continue };
                let machine = &self.machines[number];
                let active = machine.systemd.units.get(name).map(|unit| unit.active);
                let there = machine.files.get(name).is_some_and(|file| {
                    file.version.epoch == *epoch
                        && self.palette.content(file.version.hash).map(|content| &content.text)
                            == self.store.disk.durable.files.get(name).map(StoredFile::text)
                });
                if !there {
                    found.push(format!("m{number} does not have {name} as {epoch}"));
                }
                let oneshot = file_of(name).is_some_and(|options| options.oneshot);
                if unit.desired == DesiredState::Launched && oneshot && !unit.done {
                    found.push(format!("{name} is not known to have run to its end"));
                }
                let foreign = machine.systemd.units.get(name).is_some_and(|unit| unit.foreign);
                if unit.desired == DesiredState::Loaded && machine.systemd.is_running(name) && !foreign {
                    found.push(format!("{name} should only be loaded on m{number}, and runs"));
                }
                if unit.done && machine.systemd.is_running(name) && !foreign {
                    found.push(format!("{name} has run to its end, and runs on m{number}"));
                }
                let waits = !machine.systemd.is_running(name) && self.may_wait(name);
                let waits = waits || unit.done;
                if unit.desired == DesiredState::Launched && active != Some(State::Running) && !waits {
                    found.push(format!("{name} should be active on m{number} and is {active:?}"));
                }
            }
        }
    }

    /// What waits does not fit anywhere.
    fn what_fits_is_placed(&self, found: &mut Vec<String>) {
        let (palette, decided) = (&self.palette, &self.book.decided);
        for (name, unit) in &decided.units {
            if unit.desired == DesiredState::Inactive {
                if !unit.placements.is_empty() {
                    found.push(format!("{name} is inactive and placed"));
                }
                continue;
            }
            let Some(options) = decided.files.get(name).map(|file| &palette.contents[*file].options) else {
                continue;
            };
            let machines = 0..self.machines.len();
            let alone = BTreeSet::from([name.clone()]);
            if options.global {
                for number in machines {
                    let there = unit.placements.contains_key(&self.machines[number].id);
                    if !there && together(palette, decided, &alone, number).is_none() {
                        found.push(format!("{name} is global and missing on m{number}"));
                    }
                }
            } else if unit.placements.is_empty() {
                // With all that waits and is tied to it, as one.
                let waits = |name: &UnitName| {
                    decided.units.get(name).is_some_and(|unit| {
                        unit.placements.is_empty() && unit.desired != DesiredState::Inactive
                    })
                };
                let group: BTreeSet<UnitName> =
                    tied(palette, decided, alone).into_iter().filter(waits).collect();
                for number in machines {
                    if together(palette, decided, &group, number).is_none() {
                        found.push(format!("{name} waits and would fit on m{number}"));
                    }
                }
                if group.len() == 1
                    && let Some((other, from, to)) = self.could_make_room(name)
                {
                    found.push(format!(
                        "{name} waits, and {other} could make room on m{from}: m{to} would take it"
                    ));
                }
            }
        }
    }

    /// The only unit that this one replaces on a machine, that machine, and another one that would take it. Units that are
    /// tied to others, or run to their end, are left out.
    fn could_make_room(&self, name: &UnitName) -> Option<(UnitName, usize, usize)> {
        let (palette, decided) = (&self.palette, &self.book.decided);
        let free = |name: &UnitName| tied(palette, decided, BTreeSet::from([name.clone()])).len() == 1;
        if !free(name) {
            return None;
        }
        (0..self.machines.len()).find_map(|from| {
            let on = decided.on(self.machines[from].id, true);
            let mut replaced = on.into_iter().filter(|other| replaces(palette, decided, name, other));
            let other = replaced.next().filter(|_| replaced.next().is_none())?.clone();
            let options = &palette.contents[*decided.files.get(&other)?].options;
            if options.global || options.oneshot || !free(&other) || replaces(palette, decided, &other, name)
            {
                return None;
            }
            let alone = BTreeSet::from([other.clone()]);
            let to = (0..self.machines.len())
                .find(|to| *to != from && together(palette, decided, &alone, *to).is_none())?;
            let mut without = decided.clone();
            without.units.get_mut(&other)?.placements.clear();
            let makes_room = together(palette, &without, &BTreeSet::from([name.clone()]), from).is_none();
            makes_room.then_some((other, from, to))
        })
    }

    /// A unit is only where the units are that it is tied to. (What an old store finds, it takes up as it is.)
    fn what_is_tied_is_together(&self, found: &mut Vec<String>) {
        if self.book.restored || self.book.store_failed {
            return;
        }
        let decided = &self.book.decided;
        for (name, unit) in &decided.units {
            let options = decided.files.get(name).map(|file| &self.palette.contents[*file].options);
            let targets = options.into_iter().flat_map(|options| options.machine_of);
            for target in targets.map(|target| &self.palette.names[*target]) {
                let there =
                    |id| decided.units.get(target).is_some_and(|unit| unit.placements.contains_key(id));
                if let Some(id) = unit.placements.keys().find(|id| !there(*id)) {
                    found.push(format!("{name} is on {} without {target}", id.short()));
                }
            }
        }
    }

    /// What nothing but a person decides today: a unit that could not be started is started again, an orphan is
    /// destroyed.
    fn operator_decides(&mut self) {
        let orders: Vec<Order> = self
            .statuses()
            .into_iter()
            .flatten()
            .filter_map(|status| {
                let unit = self.palette.unit(&status.name)?;
                let verb = remedy(&status)?;
                let ask = Ask::Command { verb, units: vec![unit], content: None, replace: false };
                Some(Order { ask, lost_answers: 0, tries: 20 })
            })
            .collect();
        let closed = self.store.disk.durable.availability.keys().filter_map(|id| self.machine_number(*id));
        let opens = closed.map(|machine| Ask::Machine { machine, availability: Availability::Open });
        let opens = opens.map(|ask| Order { ask, lost_answers: 0, tries: 20 });
        let orders: Vec<Order> = opens.chain(orders).collect();
        for order in orders {
            self.note(|| format!("==== operator: {order}"));
            self.new_client(order);
        }
    }
}

/// What an operator does about a unit.
fn remedy(status: &UnitStatus) -> Option<Verb> {
    if status.copies.iter().any(|copy| copy.role == CopyRole::Orphaned) {
        return Some(Verb::Destroy);
    }
    let current = status.copies.iter().filter(|copy| copy.role == CopyRole::Current);
    let failed = current.filter_map(|copy| copy.observation.as_ref()).any(|observation| match observation {
        Observation::Refused(_)
        | Observation::Held { phase: Phase::StartFailed(_) | Phase::Failed(_), .. } => true,
        Observation::Held { phase: Phase::Launched, state: Some(state) } => {
            matches!(&*state.active, "inactive" | "failed") && !status.done
        }
        Observation::Held { .. } => false,
    });
    match status.desired {
        DesiredState::Launched if failed => Some(Verb::Restart),
        // It cannot be loaded again where it is but by being placed again.
        DesiredState::Loaded if failed => Some(Verb::Unload),
        _ => None,
    }
}
