//! The scheduler's process: the real leader, and the loop around it.

use std::collections::VecDeque;

use muster_core::command::Query;
use muster_core::ids::Term;
use muster_core::leader::{Effect, Input, Leader, RequestId};
use muster_core::time::Time;

use crate::invariants::Acknowledged;
use crate::queue::{Clock, MILLI, Micros, micros};
use crate::world::{Event, World};

/// The request of whoever looks whether all is well.
const OURS: RequestId = RequestId(u64::MAX);

#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) clock: Clock,
    pub(crate) process: Option<Process>,
    /// Counts the processes; what belongs to an earlier one is nobody's.
    pub(crate) incarnation: u64,
    /// How many faults have stopped the process.
    pub(crate) frozen: u32,
    /// Until when the process leads, by its own clock, where it is elected.
    leads: Option<Micros>,
    /// For how long its own time has stood still, until that moment.
    stalled: (Micros, Micros),
    /// What waits for it to go on.
    pub(crate) store_waits: bool,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) leader: Leader,
    pub(crate) term: Term,
    /// All that it has taken.
    pub(crate) terms: Vec<Term>,
    /// With the moment when each came, by its own clock, where it was stopped since; else that is when it is taken.
    pub(crate) inbox: VecDeque<(Option<Time>, Input)>,
    turning: bool,
    timer: Option<Micros>,
    /// It is killed after so many effects, and stays down for so long.
    pub(crate) dies: Option<(u32, Micros)>,
    /// Whether it is to leave its office to another one.
    pub(crate) steps_down: bool,
}

impl Scheduler {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            process: None,
            incarnation: 0,
            frozen: 0,
            leads: None,
            stalled: (0, 0),
            store_waits: false,
        }
    }
}

impl Scheduler {
    /// For how long its own time has stood still until now, in all: it was stopped, or did not know whether it leads.
    pub(crate) fn stalled(&self, now: Micros) -> Micros {
        let (stalled, counted) = self.stalled;
        let since =
            if self.frozen > 0 { counted } else { self.leads.map_or(now, |leads| leads.max(counted)) };
        stalled + now.saturating_sub(since)
    }

    /// Something about that is about to change.
    fn count_stall(&mut self, now: Micros) {
        self.stalled = (self.stalled(now), now);
    }

    /// It is known at this moment that it leads until that one.
    fn leads_until(&mut self, now: Micros, until: Micros) {
        self.count_stall(now);
        // What was asked for before may be answered after.
        self.leads = self.leads.filter(|leads| *leads > until).or(Some(until));
    }

    /// Another process leads. Gives which one did until now, and how many faults have stopped it.
    pub(crate) fn is_deposed(&mut self, now: Micros) -> (u64, u32) {
        self.count_stall(now);
        self.store_waits = false;
        (self.incarnation, std::mem::take(&mut self.frozen))
    }
}

impl World {
    /// The process is stopped.
    pub(crate) fn scheduler_freezes(&mut self) {
        self.scheduler.count_stall(self.queue.now());
        self.scheduler.frozen += 1;
        let now = self.scheduler.clock.time(self.queue.now());
        if let Some(process) = self.scheduler.process.as_mut().filter(|_| self.scheduler.frozen == 1) {
            process.inbox.iter_mut().for_each(|(came, _)| *came = came.or(Some(now)));
        }
        self.look_at_links();
    }

    /// One fault less stops the process.
    pub(crate) fn scheduler_thaws_once(&mut self) {
        if self.deposed_thaws() {
            return;
        }
        self.scheduler.count_stall(self.queue.now());
        self.scheduler.frozen = self.scheduler.frozen.saturating_sub(1);
        self.scheduler_thaws();
    }

    pub(crate) fn start_scheduler(&mut self) {
        if self.scheduler.process.is_some() || self.store.is_away() || !self.is_elected() {
            return;
        }
        self.scheduler.incarnation += 1;
        let term = self.store.take_term(Term(0));
        let now = self.scheduler.clock.time(self.queue.now());
        let durable = self.store.durable.clone();
        self.note(|| format!("scheduler: starts in term {term} with {} units", durable.units.len()));
        self.leader_takes_over(now);
        // What a store that was put in place does not know of was granted under the settings that an operator keeps meanwhile.
        let doubted = self.store.doubted.is_some_and(|until| self.queue.now() < until);
        if self.scheduler.incarnation > 1 && !doubted {
            self.settings = self.configured.next(&self.settings);
        }
        let mut leader = Leader::new(self.settings.clone(), term, durable, now);
        let doubt = self.doubt_of_store();
        match &mut self.store.doubted {
            // The file that would tell is gone, and is not written again before it says nothing that matters.
            Some(until) if self.queue.now() < *until => *until = doubt,
            _ => {
                self.store.doubted = None;
                leader.trust_store();
            }
        }
        let inbox = VecDeque::new();
        self.scheduler.process = Some(Process {
            leader,
            term,
            terms: vec![term],
            inbox,
            turning: false,
            timer: None,
            dies: None,
            steps_down: false,
        });
        self.is_told_to_lead();
        self.set_leader_timer();
    }

    /// Until when what a store that is put in place now does not know of may matter.
    pub(crate) fn doubt_of_store(&self) -> Micros {
        self.queue.now() + micros(self.settings.aftermath())
    }

    /// The process is killed between two effects, and started again later.
    pub(crate) fn kill_scheduler(&mut self, down: Micros) {
        if self.scheduler.process.take().is_none() {
            return;
        }
        self.note(|| "scheduler: is killed".to_owned());
        self.store_dies();
        self.scheduler.count_stall(self.queue.now());
        (self.scheduler.store_waits, self.scheduler.frozen) = (false, 0);
        self.scheduler_is_gone(self.scheduler.incarnation);
        self.scheduler.incarnation += 1;
        self.clients_lose_scheduler();
        self.queue.after(down, Event::SchedulerStarts);
    }

    pub(crate) fn tell_leader(&mut self, input: Input) {
        let Some(process) = &mut self.scheduler.process else { return };
        process.inbox.push_back((None, input));
        if !std::mem::replace(&mut process.turning, true) {
            // A loop that has other things to do is a little late.
            let most = if self.random.chance(30) { 90 * MILLI } else { MILLI / 2 };
            let wait = self.random.between(20, most);
            self.queue.after(wait, Event::LeaderTurn(self.scheduler.incarnation));
        }
    }

    /// The loop goes round once.
    pub(crate) fn leader_turn(&mut self, incarnation: u64) {
        if self.scheduler.incarnation != incarnation || self.scheduler.frozen > 0 {
            return;
        }
        let Some(process) = &mut self.scheduler.process else { return };
        process.turning = false;
        let now = self.scheduler.clock.time(self.queue.now());
        let inputs = std::mem::take(&mut process.inbox);
        let due = process.leader.next_timer() <= now;
        if inputs.is_empty() && due {
            self.leader_step(now, Input::Tick);
        }
        for (came, input) in inputs {
            if matches!(input, Input::CommitFailed { .. }) {
                self.store_resumes();
            }
            self.leader_step(came.unwrap_or(now), input);
            if self.scheduler.incarnation != incarnation || self.violation.is_some() {
                return;
            }
        }
        self.set_leader_timer();
        self.step_down_once_answered();
    }

    /// Asks the leader something; the answer is in `answer` if it came at once.
    pub(crate) fn leader_is_asked(&mut self, query: Query) {
        let now = self.scheduler.clock.time(self.queue.now());
        self.leader_step(now, Input::Query(OURS, query));
        self.set_leader_timer();
    }

    fn set_leader_timer(&mut self) {
        let Some(process) = &mut self.scheduler.process else { return };
        let at = self.scheduler.clock.moment(process.leader.next_timer());
        if process.timer.is_none_or(|timer| at < timer) {
            process.timer = Some(at);
            let late = if self.random.chance(300) {
                self.random.between(20 * MILLI, 95 * MILLI)
            } else {
                self.random.spread(50, 80 * MILLI)
            };
            self.queue.at(at + late, Event::LeaderTimer(self.scheduler.incarnation));
        }
    }

    pub(crate) fn leader_timer(&mut self, incarnation: u64) {
        if self.scheduler.incarnation != incarnation {
            return;
        }
        let now = self.queue.now();
        let Some(process) = &mut self.scheduler.process else { return };
        // Another one may have been set since for an earlier moment.
        if process.timer.is_some_and(|timer| timer <= now) {
            process.timer = None;
            self.leader_turn(incarnation);
        }
    }

    /// The process goes on, if nothing else keeps it.
    pub(crate) fn scheduler_thaws(&mut self) {
        if self.scheduler.frozen > 0 {
            return;
        }
        if std::mem::take(&mut self.scheduler.store_waits) {
            self.queue.after(0, Event::StoreDone(self.scheduler.incarnation));
        }
        self.renews_late();
        self.queue.after(0, Event::LeaderTurn(self.scheduler.incarnation));
        for machine in 0..self.machines.len() {
            self.look_at_link(machine);
        }
    }

    fn leader_step(&mut self, came: Time, input: Input) {
        let now = self.scheduler.clock.time(self.queue.now());
        self.stats.steps += 1;
        let cause = self.before_step(&input);
        if let Input::Leads(until) = input {
            let until = self.scheduler.clock.moment(until);
            self.scheduler.leads_until(self.queue.now(), until);
        }
        let Some(process) = &mut self.scheduler.process else { return };
        if let Input::TermTaken(term) = input {
            process.term = term;
            process.terms.push(term);
            self.book.office = self.queue.now();
        }
        let effects = process.leader.step(came, now, input);
        self.nothing_acknowledged_is_lost(&Acknowledged::Step(&cause, &effects));
        for effect in effects {
            let Some(process) = &mut self.scheduler.process else { return };
            match &mut process.dies {
                Some((0, down)) => {
                    let down = *down;
                    return self.kill_scheduler(down);
                }
                Some((effects, _)) => *effects -= 1,
                None => {}
            }
            self.judge_effect(now, &cause, &effect);
            self.carry_out_leaders(effect);
        }
        self.after_step();
    }

    fn carry_out_leaders(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(commit, changes) => {
                self.stats.commits += 1;
                self.note(|| format!("leader: persist {} {changes:?}", commit.0));
                self.commit(commit, changes);
            }
            Effect::TakeTerm { above } => self.take_term(above),
            Effect::Send(connection, message) => {
                self.note_message(connection, &message);
                self.send_down(connection, message);
            }
            Effect::Close(connection) => self.scheduler_closes(connection),
            Effect::AnswerCommand(request, result) => self.answer_command(request, &result),
            Effect::AnswerQuery(OURS, answer) => self.answer = Some(answer),
            Effect::AnswerQuery(request, _) => self.answer_query(request),
            Effect::AnswerMachines(request, result) => self.answer_machines(request, &result),
            Effect::AnswerRelease(request, released) => self.answer_release(request, released.is_some()),
            // Nobody asks the leader for a restore here (see `World::restore`), or for a stream.
            Effect::Restore { .. }
            | Effect::RefuseRestore(..)
            | Effect::AnswerStream(..)
            | Effect::UnitsChanged(_)
            | Effect::Knock(..) => {}
            Effect::Event(event) => self.note(|| format!("leader: {event:?}")),
        }
    }
}
