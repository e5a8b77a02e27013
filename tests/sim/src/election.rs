//! A store that several schedulers share: it elects one of them for a while, and again and again. One that does not ask
//! in time is deposed, and another one leads, while its process lives on and learns of it late. While the store is away nobody's
//! time runs out; it has no room for a leader's key where it has none for batches; and one that is told to leaves its office.

use muster_core::leader::{Effect, Input};
use muster_core::planted::{self, Fault};

use crate::invariants::Done;
use crate::queue::{MILLI, Micros, SECOND};
use crate::random::Random;
use crate::scheduler::Process;
use crate::store::Job;
use crate::world::{Event, World};

/// For how long a scheduler is elected, and how often it asks to be elected again.
const TTL: Micros = 5 * SECOND;
const RENEWS: Micros = TTL / 3;
/// How much earlier a scheduler stops to lead by its own clock, which may be slow.
const MARGIN: Micros = TTL / 50;
/// Where the schedulers listen that share the store. The next process leads at the other address.
const ADDRESSES: [&str; 2] = ["one:7400", "two:7400"];

#[derive(Debug)]
pub(crate) struct Election {
    /// Until when the store elects nobody else; its clock is right.
    until: Micros,
    /// Which process has its key.
    leader: Option<u64>,
    /// How many faults keep the store from electing anybody: it has no room for a key.
    full: u32,
    /// How many faults keep renewals from the store.
    lost: i32,
    /// Whether a renewal waits for the process to go on.
    waits: bool,
    deposed: Option<Deposed>,
    random: Random,
    /// What followers know.
    hints: Random,
}

/// Who takes a connection.
#[derive(Debug)]
pub(crate) enum Reached {
    /// The process that leads, or one that does not know that it was deposed.
    Process(u64),
    /// A scheduler that does not lead, and what it knows of the one that does.
    Follower(Option<&'static str>),
    /// A process that is stopped.
    Silent,
    /// Nobody.
    Nobody,
}

/// The process that led before, and does not know that it does not lead any more.
#[derive(Debug)]
struct Deposed {
    process: Process,
    incarnation: u64,
    frozen: u32,
    /// When its loop next goes round if nothing comes.
    timer: Option<Micros>,
}

impl Election {
    /// In some histories the scheduler has its store to itself.
    pub(crate) fn is_held(seed: u64) -> bool {
        Random::new(seed, "election").chance(400)
    }

    pub(crate) fn new(seed: u64) -> Option<Self> {
        let (random, hints) = (Random::new(seed, "renewals"), Random::new(seed, "hints"));
        Self::is_held(seed).then_some(Self {
            until: 0,
            leader: None,
            full: 0,
            lost: 0,
            waits: false,
            deposed: None,
            random,
            hints,
        })
    }
}

impl World {
    /// Whether a scheduler that starts now leads. Else it does so later.
    pub(crate) fn is_elected(&mut self) -> bool {
        let Some(election) = &mut self.election else { return true };
        let now = self.queue.now();
        if election.full > 0 {
            let again = self.store.answers.between(200 * MILLI, SECOND);
            self.queue.after(again, Event::SchedulerStarts);
            return false;
        }
        if now < election.until {
            let late = election.random.spread(MILLI, 200 * MILLI);
            self.queue.at(election.until + late, Event::SchedulerStarts);
            return false;
        }
        election.until = now + TTL;
        election.waits = false;
        self.queue.at(election.until, Event::ElectionEnds);
        true
    }

    /// The scheduler that has just started knows how long it leads.
    pub(crate) fn is_told_to_lead(&mut self) {
        if let Some(election) = &mut self.election {
            election.leader = Some(self.scheduler.incarnation);
            let now = self.queue.now();
            self.leads_until(now);
            self.queue.after(RENEWS, Event::Renews(self.scheduler.incarnation));
        }
    }

    fn leads_until(&mut self, asked: Micros) {
        self.is_told_how_long_it_leads(self.scheduler.incarnation, asked);
    }

    fn is_told_how_long_it_leads(&mut self, incarnation: u64, asked: Micros) {
        let until = self.scheduler.clock.time(asked) + std::time::Duration::from_micros(TTL - MARGIN);
        self.tell_process(incarnation, Input::Leads(until));
    }

    /// Whether the store has elected this process.
    pub(crate) fn has_key(&self, incarnation: u64) -> bool {
        let now = self.queue.now();
        self.election
            .as_ref()
            .is_some_and(|election| election.leader == Some(incarnation) && now < election.until)
    }

    /// Nobody is elected.
    pub(crate) fn takes_the_key_away(&mut self) {
        if let Some(election) = &mut self.election {
            election.leader = None;
        }
    }

    /// The scheduler is told to leave its office to another one.
    pub(crate) fn steps_down(&mut self) {
        if self.election.is_some()
            && let Some(process) = &mut self.scheduler.process
        {
            process.steps_down = true;
            self.step_down_once_answered();
        }
    }

    /// It does so once all that it has asked of the store is answered, and told.
    pub(crate) fn step_down_once_answered(&mut self) {
        let idle = self.store.is_idle() && !self.store.is_away() && self.scheduler.frozen == 0;
        let answered = |process: &Process| process.steps_down && process.inbox.is_empty();
        let now = self.queue.now();
        if idle
            && self.scheduler.process.as_ref().is_some_and(answered)
            && let Some(election) = &mut self.election
        {
            (election.leader, election.until) = (None, now);
            let next = self.store.answers.spread(MILLI, 20 * MILLI);
            self.note(|| "scheduler: steps down".to_owned());
            self.kill_scheduler(next);
        }
    }

    /// A scheduler asks to be elected again.
    pub(crate) fn renews(&mut self, incarnation: u64) {
        let Some(election) = &mut self.election else { return };
        let current = self.scheduler.incarnation == incarnation && self.scheduler.process.is_some();
        let deposed = election.deposed.as_ref().filter(|deposed| deposed.incarnation == incarnation);
        let frozen = match deposed {
            Some(deposed) => deposed.frozen > 0,
            None if current => self.scheduler.frozen > 0,
            None => return,
        };
        if frozen {
            // A deposed one comes to it when it goes on.
            election.waits |= current;
            return;
        }
        if election.lost == 0 && !self.store.is_away() {
            let wait = self.store.wait();
            self.queue.after(wait, Event::Renewed(incarnation, self.queue.now()));
        }
        self.queue.after(RENEWS, Event::Renews(incarnation));
    }

    /// The store was away since then. Who was elected at that moment is so for its whole time anew.
    pub(crate) fn election_goes_on(&mut self, away_since: Micros) {
        if let Some(election) = &mut self.election {
            if election.until > away_since {
                election.until = self.queue.now() + TTL;
            }
            self.queue.at(election.until.max(self.queue.now()), Event::ElectionEnds);
        }
    }

    /// The store has no room: it takes neither batches nor keys, and renews those that there are.
    pub(crate) fn no_space(&mut self, more: i32) {
        self.store.full = self.store.full.saturating_add_signed(more);
        if let Some(election) = &mut self.election {
            election.full = election.full.saturating_add_signed(more);
        }
    }

    pub(crate) fn renewals_lost(&mut self, more: i32) {
        if let Some(election) = &mut self.election {
            election.lost += more;
        }
    }

    /// The store has answered what it was asked for then.
    pub(crate) fn renewed(&mut self, incarnation: u64, asked: Micros) {
        let now = self.queue.now();
        let Some(election) = &mut self.election else { return };
        if self.store.is_away() {
            return;
        }
        if self.scheduler.incarnation != incarnation || self.scheduler.process.is_none() {
            if planted::is(Fault::RenewedWithoutKey) {
                return self.is_told_how_long_it_leads(incarnation, asked);
            }
            return self.deposed_ends(incarnation);
        }
        if now < election.until {
            election.until = now + TTL;
            self.queue.at(election.until, Event::ElectionEnds);
            if self.store.mute > 0 {
                let late = self.store.answers.spread(10 * MILLI, 6 * SECOND);
                self.queue.after(late, Event::RenewalHeard(incarnation, asked));
            } else {
                self.leads_until(asked);
            }
        }
    }

    /// A scheduler hears late that it was elected again.
    pub(crate) fn renewal_heard(&mut self, incarnation: u64, asked: Micros) {
        let asked = if planted::is(Fault::LeadsFromAnswer) { self.queue.now() } else { asked };
        self.is_told_how_long_it_leads(incarnation, asked);
    }

    /// Nobody has asked to be elected again, perhaps: another scheduler leads, and nobody tells the old one.
    pub(crate) fn election_ends(&mut self) {
        let Some(election) = &self.election else { return };
        if self.queue.now() < election.until || self.store.is_away() {
            return;
        }
        if let Some(deposed) = &election.deposed {
            self.deposed_ends(deposed.incarnation);
        }
        if let Some(process) = self.scheduler.process.take() {
            self.note(|| "scheduler: is deposed".to_owned());
            self.what_waits_arrives_late();
            self.store_dies();
            let (incarnation, frozen) = self.scheduler.is_deposed(self.queue.now());
            if let Some(election) = &mut self.election {
                election.deposed = Some(Deposed { process, incarnation, frozen, timer: None });
            }
            self.queue.after(0, Event::DeposedTurn(incarnation));
            self.clients_lose_scheduler();
            self.look_at_links();
        }
        self.start_scheduler();
    }

    /// One fault less stops the deposed process, if one did. Says whether that was so.
    pub(crate) fn deposed_thaws(&mut self) -> bool {
        let deposed = self.election.as_mut().and_then(|election| election.deposed.as_mut());
        let Some(deposed) = deposed.filter(|deposed| deposed.frozen > 0) else { return false };
        deposed.frozen -= 1;
        if deposed.frozen == 0 {
            self.queue.after(0, Event::DeposedTurn(deposed.incarnation));
            self.queue.after(0, Event::Renews(deposed.incarnation));
        }
        true
    }

    /// The scheduler goes on, and asks what it did not ask in time.
    pub(crate) fn renews_late(&mut self) {
        if self.election.as_mut().is_some_and(|election| std::mem::take(&mut election.waits)) {
            self.queue.after(0, Event::Renews(self.scheduler.incarnation));
        }
    }

    /// The schedulers that agents are configured with.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let known = if self.election.is_some() { &ADDRESSES[..] } else { &ADDRESSES[..1] };
        known.iter().map(|address| (*address).to_owned()).collect()
    }

    /// Who takes an agent's connection at this address. A deposed process takes some, and then knows that it is deposed.
    pub(crate) fn reached(&mut self, address: &str) -> Reached {
        let (current, leads) = (self.scheduler.incarnation, self.scheduler.process.is_some());
        let Some(election) = &mut self.election else {
            return if leads { Reached::Process(current) } else { Reached::Nobody };
        };
        let leader = address_of(current);
        if address == leader {
            return if leads { Reached::Process(current) } else { Reached::Nobody };
        }
        match &election.deposed {
            Some(deposed) if deposed.frozen > 0 => Reached::Silent,
            Some(deposed) if election.random.chance(300) => Reached::Process(deposed.incarnation),
            _ => Reached::Follower(Some(leader).filter(|_| leads && election.hints.chance(800))),
        }
    }

    /// Something comes to this process, if it is there.
    pub(crate) fn tell_process(&mut self, incarnation: u64, input: Input) {
        if incarnation == self.scheduler.incarnation {
            return self.tell_leader(input);
        }
        let deposed = self.election.as_mut().and_then(|election| election.deposed.as_mut());
        if let Some(deposed) = deposed.filter(|deposed| deposed.incarnation == incarnation) {
            deposed.process.inbox.push_back((None, input));
            self.queue.after(MILLI / 2, Event::DeposedTurn(incarnation));
        }
    }

    /// The loop of the deposed process goes round once.
    pub(crate) fn deposed_turn(&mut self, incarnation: u64) {
        let time = self.scheduler.clock.time(self.queue.now());
        let deposed = self.election.as_mut().and_then(|election| election.deposed.as_mut());
        let Some(deposed) =
            deposed.filter(|deposed| deposed.incarnation == incarnation && deposed.frozen == 0)
        else {
            return;
        };
        let mut inputs = std::mem::take(&mut deposed.process.inbox);
        inputs.push_back((None, Input::Tick));
        let mut effects = Vec::new();
        for (came, input) in inputs {
            effects.append(&mut deposed.process.leader.step(came.unwrap_or(time), time, input));
        }
        let now = self.queue.now();
        if deposed.timer.is_none_or(|timer| timer <= now) {
            let next = self.scheduler.clock.moment(deposed.process.leader.next_timer()).max(now + MILLI);
            deposed.timer = Some(next);
            self.queue.at(next, Event::DeposedTurn(incarnation));
        }
        for effect in effects {
            self.deposed_does(incarnation, effect);
        }
    }

    fn deposed_does(&mut self, incarnation: u64, effect: Effect) {
        match effect {
            Effect::Persist(commit, changes) => {
                let wait = self.store.wait();
                self.queue.after(wait, Event::Arrives(incarnation, vec![Job::Commit(commit, changes)]));
            }
            Effect::TakeTerm { .. } => {
                // The store refuses it, and the process ends.
                let wait = self.store.wait();
                self.queue.after(wait, Event::DeposedEnds(incarnation));
            }
            Effect::Close(connection) => self.scheduler_closes(connection),
            Effect::Event(event) => self.note(|| format!("deposed leader: {event:?}")),
            Effect::UnitsChanged(_) | Effect::Knock(..) | Effect::Restore { .. } => {}
            Effect::Send(..)
            | Effect::AnswerCommand(..)
            | Effect::AnswerQuery(..)
            | Effect::AnswerMachines(..)
            | Effect::AnswerRelease(..)
            | Effect::AnswerStream(..)
            | Effect::RefuseRestore(..) => self.old_leaders_are_harmless(&Done::Deposed(&effect)),
        }
    }

    /// The deposed process ends.
    pub(crate) fn deposed_ends(&mut self, incarnation: u64) {
        let Some(election) = &mut self.election else { return };
        if election.deposed.take_if(|deposed| deposed.incarnation == incarnation).is_some() {
            self.note(|| "deposed scheduler: ends".to_owned());
            self.scheduler_is_gone(incarnation);
        }
    }

    /// Nobody is deposed any more, and everybody who leads may go on.
    pub(crate) fn heal_election(&mut self) {
        if let Some(election) = &mut self.election {
            (election.lost, election.full) = (0, 0);
        }
        let deposed = self.election.as_ref().and_then(|election| election.deposed.as_ref());
        if let Some(incarnation) = deposed.map(|deposed| deposed.incarnation) {
            self.deposed_ends(incarnation);
        }
    }
}

fn address_of(incarnation: u64) -> &'static str {
    if incarnation.is_multiple_of(2) { ADDRESSES[0] } else { ADDRESSES[1] }
}
