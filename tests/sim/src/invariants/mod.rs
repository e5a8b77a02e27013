//! What must hold at every moment. Each function stands below the words of the design that it checks: what leaders decide,
//! what they say, what machines do, what becomes of units that fail. Here is when each is called.

mod decisions;
mod doubt;
mod eight;
mod failing;
mod machines;
mod storm;
mod words;

use std::collections::BTreeSet;

use muster_core::agent;
use muster_core::ids::{Epoch, MachineId};
use muster_core::leader::{Change, Effect, Event};
use muster_core::message::{FromAgent, LeaderMessage, Refused, ReportedChange};
use muster_core::time::Time;
use muster_core::unit::UnitName;

pub(crate) use self::doubt::Brake;
pub(crate) use self::eight::{Acknowledged, Done, Touches};
pub(crate) use self::storm::Work;
use crate::book::{Cause, is_at_work};
use crate::world::World;

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
                Change::PutLabels(machine, edits) => {
                    self.book.decided.labels.insert(*machine, edits.clone());
                }
                Change::PutCommand(..) | Change::DeleteCommand(_) => {}
            }
        }
        self.note_what_is_required();
        self.nothing_acknowledged_is_lost(&Acknowledged::Batch(cause, &before, &refiled));
        self.one_current_copy(&before, &ended);
        self.control_plane_is_not_the_workload(Touches::Decides(cause, &before));
        self.a_new_leader_waits_for_reports(&before);
        self.constraints_hold(cause, &before, &refiled);
        self.where_it_failed_it_is_left_out(cause, &before);
    }

    /// One effect of the leader's, at the moment when it is carried out.
    pub(crate) fn judge_effect(&mut self, now: Time, cause: &Cause, effect: &Effect) {
        match effect {
            Effect::Persist(commit, changes) => {
                if self.book.durable >= self.book.issued {
                    self.book.tells_of = self.queue.now();
                }
                self.book.issued = *commit;
                self.work.written += changes.len() as u64;
                self.judge_batch(cause, changes);
            }
            Effect::AnswerCommand(request, result) => {
                self.nothing_acknowledged_is_lost(&Acknowledged::Command(*request, result));
            }
            Effect::Event(Event::MachineLost { machine, .. } | Event::MachineLeaves(machine)) => {
                if let Some(number) = self.machine_number(*machine) {
                    self.touches_machine(number);
                }
            }
            Effect::Event(Event::TookOffice { .. }) => self.touches_all(),
            Effect::Event(Event::Orphaned { unit, machine }) => self.nothing_is_forgotten(unit, *machine),
            Effect::Event(Event::BrakeApplied { machines, of, .. }) => {
                self.the_brake_is_for_many(machines, *of);
            }
            Effect::Event(Event::BrakeReleased { reason, .. }) => {
                self.the_brake_is_released_for_a_reason(*reason);
            }
            Effect::AnswerMachines(request, Ok(())) => {
                self.nothing_acknowledged_is_lost(&Acknowledged::Machines(*request));
            }
            Effect::AnswerQuery(request, answer) => {
                self.nothing_acknowledged_is_lost(&Acknowledged::Query(*request, answer));
            }
            Effect::Send(connection, message) => {
                let Some(stream) = self.network.stream(*connection) else { return };
                let number = stream.machine;
                self.old_leaders_are_harmless(&Done::Says(message.term));
                match &message.body {
                    // It has longer leases from now on.
                    LeaderMessage::Welcome(_)
                        if self.book.machines[number]
                            .welcomed
                            .is_some_and(|(welcomed, _)| welcomed == *connection) => {}
                    LeaderMessage::Welcome(_) => {
                        self.touches_machine(number);
                        self.the_session_opened_last_counts(number, *connection);
                        let stalled = self.scheduler.stalled(self.queue.now());
                        self.machine_is_heard(number);
                        let book = &mut self.book.machines[number];
                        book.last_heard = Some((now, stalled));
                        book.degraded = book.says_degraded;
                        if !std::mem::replace(&mut book.unproven, true) || book.heard.is_none() {
                            book.counts = Some((now, stalled));
                        }
                        (book.heard, book.pid1_lost) = (Some((now, stalled)), false);
                        book.leaving = book.says_leaving;
                        (book.grace, book.graced) = (None, None);
                        let said = book.hello.take_if(|(said, _)| said == connection);
                        let said = said.map(|(_, said)| said).unwrap_or_default();
                        let says = said.iter().map(|unit| (unit.name.clone(), unit.epoch)).collect();
                        self.book.machines[number].says = says;
                        for unit in said {
                            if is_at_work(&unit.observation) {
                                let at_work = &mut self.book.machines[number].says_at_work;
                                at_work.insert((unit.name.clone(), unit.epoch));
                            }
                            self.copy_is_seen(number, &unit.name, unit.epoch, &unit.observation);
                        }
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
                    LeaderMessage::Assignments(assignments) => {
                        self.work.told += (assignments.hold.len() + assignments.remove.len()) as u64 + 1;
                        self.write_before_act(number, assignments);
                    }
                    LeaderMessage::Farewell { lease: None } => {
                        self.a_goodbye_is_on_record(number, *connection);
                    }
                    LeaderMessage::Refused(_) | LeaderMessage::Probe | LeaderMessage::OpenStream(_) => {}
                }
            }
            _ => {}
        }
    }

    pub(crate) fn after_step(&mut self) {
        // Re-deriving everything costs as much as all else together.
        self.look_for_trouble();
        if self.stats.steps.is_multiple_of(16) || self.healed {
            self.the_deadline_ends_a_drain();
            self.what_has_failed_is_started_anew();
            self.indexes_are_right();
        }
    }

    /// A slow full scan re-derives everything and compares.
    fn indexes_are_right(&mut self) {
        let Some(process) = &self.scheduler.process else { return };
        let differences = process.leader.differences();
        if !differences.is_empty() {
            self.violate("indexes_are_right", differences.join("; "));
        }
    }

    /// One effect of an agent's, at the moment when it is carried out.
    pub(crate) fn judge_agent(&mut self, number: usize, effect: &agent::Effect) {
        match effect {
            agent::Effect::Start(name) => {
                self.old_leaders_are_harmless(&Done::Starts(number, name));
                self.starts_nothing_that_is_done(number, name);
            }
            agent::Effect::Stop(name) => {
                self.control_plane_is_not_the_workload(Touches::Stops(number, name));
            }
            agent::Effect::Remove(names) => {
                for name in names {
                    self.control_plane_is_not_the_workload(Touches::Stops(number, name));
                }
            }
            agent::Effect::Write(writes) => {
                for write in writes {
                    self.old_leaders_are_harmless(&Done::Writes(number, &write.name, write.epoch));
                }
            }
            agent::Effect::Send(FromAgent::Heartbeat { pid1_age, .. }) => {
                self.pid1_is_as_old_as_that(number, *pid1_age);
            }
            agent::Effect::ArmGuard { .. } => self.book.machines[number].guard_ended = false,
            agent::Effect::PetGuard { .. } => self.book.machines[number].guard_kept = true,
            agent::Effect::DisarmGuard => self.book.machines[number].guard_kept = false,
            agent::Effect::Event(agent::Event::GuardEnded) => {
                self.control_plane_is_not_the_workload(Touches::GuardSeenToEnd(number));
            }
            agent::Effect::Reload => {
                let book = &mut self.book.machines[number];
                (book.asked_to_reload, book.reload_explains) = (true, true);
            }
            agent::Effect::Send(FromAgent::Hello(hello)) => {
                let held = hello.units.iter().map(|unit| (&unit.name, unit.epoch, &unit.observation));
                self.control_plane_is_not_the_workload(Touches::Reports(number, held.collect()));
            }
            agent::Effect::Send(FromAgent::Report(reports)) => {
                self.work.said += reports.len() as u64;
                let observed = reports.iter().filter_map(|report| match &report.change {
                    ReportedChange::Observed(observation) => Some((&report.name, report.epoch, observation)),
                    _ => None,
                });
                self.control_plane_is_not_the_workload(Touches::Reports(number, observed.collect()));
                for report in reports.iter().filter(|report| report.change == ReportedChange::Gone) {
                    let stopped = self.book.machines[number].stopped.entry(report.name.clone()).or_default();
                    *stopped = report.epoch.max(*stopped);
                }
            }
            agent::Effect::SaveMembership(membership) => {
                self.old_leaders_are_harmless(&Done::Obeys(number, membership.term));
            }
            _ => {}
        }
    }
}
