//! The scheduler's store: commits that take their time and share it, a disk that is full, a process that dies.
//!
//! One that several schedulers share compares two things with each batch: the key of the leader that asks, and that batch's
//! number. So it takes none of a leader that was deposed, and none twice: what came to no answer is asked again.

use std::collections::{BTreeSet, VecDeque};

use muster_core::ids::{ClusterId, CommandId, CommitId, Term};
use muster_core::leader::{Change, Durable, Input};
use muster_core::planted::{self, Fault};

use crate::disk::Disk;
use crate::intent::Intent;
use crate::queue::{MILLI, Micros, SECOND};
use crate::random::Random;
use crate::world::{Event, World};

/// What the committer's thread is given.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    Commit(CommitId, Vec<Change>),
    TakeTerm(Term),
    Resume,
}

/// What is on disk, and the thread that writes to it.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) disk: Disk,
    /// The term of the process that uses it.
    ours: Term,
    queue: VecDeque<Job>,
    /// What the disk is busy with: several batches, or a term.
    working: Vec<Job>,
    /// Whether what is given builds on a batch that failed.
    failed: bool,
    /// How many faults make the disk full, and slow.
    pub(crate) full: u32,
    pub(crate) slow: u32,
    /// How many faults keep it from answering at all, since when, and whether it owes an answer.
    away: u32,
    away_since: Micros,
    owes: bool,
    /// How many faults lose its answers, and whether one was lost to what the disk is busy with.
    pub(crate) mute: u32,
    unanswered: bool,
    /// Which process's batch it took last, and which.
    last: (u64, CommitId),
    /// When what is asked comes late, and when it is asked again.
    pub(crate) answers: Random,
    /// What the next commit is written to has lost it, or not: nobody can say. For how long the scheduler is down then.
    pub(crate) lost: Option<Micros>,
    /// How much is written of what shares a flush with others when the scheduler dies, where that is not all or nothing.
    pub(crate) tears: Option<Random>,
    backup: Option<Backup>,
    random: Random,
}

/// A copy of the store, and what the clients could know of it.
#[derive(Debug)]
struct Backup {
    durable: Durable,
    term: Term,
    intent: Intent,
    commands: BTreeSet<CommandId>,
}

impl Store {
    pub(crate) fn new(random: Random, answers: Random) -> Self {
        Self {
            disk: Disk::new(ClusterId::new(7)),
            ours: Term(0),
            queue: VecDeque::new(),
            working: Vec::new(),
            failed: false,
            full: 0,
            slow: 0,
            away: 0,
            away_since: 0,
            owes: false,
            mute: 0,
            unanswered: false,
            last: (0, CommitId(0)),
            answers,
            lost: None,
            tears: None,
            backup: None,
            random,
        }
    }

    /// A term above all before it, durable at once, under which is committed from then on.
    pub(crate) fn take_term(&mut self, above: Term) -> Term {
        self.ours = self.disk.take_term(above);
        self.ours
    }

    /// Whether the disk is full or slow, or the store does not answer.
    pub(crate) fn is_troubled(&self) -> bool {
        self.full > 0 || self.slow > 0 || self.away > 0 || self.mute > 0
    }

    /// Whether it does not answer: its disk hangs, or most of those that make it up are away.
    pub(crate) fn is_away(&self) -> bool {
        self.away > 0
    }

    /// How long it takes to do something.
    pub(crate) fn wait(&mut self) -> Micros {
        match self.slow {
            0 => self.random.spread(MILLI / 2, 20 * MILLI),
            _ => self.random.spread(50 * MILLI, 3 * SECOND),
        }
    }

    /// Whether nothing is on its way to the disk.
    pub(crate) fn is_idle(&self) -> bool {
        self.working.is_empty() && self.queue.is_empty()
    }
}

impl World {
    pub(crate) fn commit(&mut self, commit: CommitId, changes: Vec<Change>) {
        self.store.queue.push_back(Job::Commit(commit, changes));
        self.store_works();
    }

    pub(crate) fn take_term(&mut self, above: Term) {
        self.store.queue.push_back(Job::TakeTerm(above));
        self.store_works();
    }

    pub(crate) fn store_resumes(&mut self) {
        self.store.queue.push_back(Job::Resume);
        self.store_works();
    }

    /// Gives the disk its next work, when it is idle.
    fn store_works(&mut self) {
        let store = &mut self.store;
        while store.working.is_empty() {
            match store.queue.pop_front() {
                None => return,
                Some(Job::Resume) => store.failed = false,
                Some(Job::Commit(..)) if store.failed => {}
                Some(job) => {
                    let commit = matches!(job, Job::Commit(..));
                    store.working.push(job);
                    // All batches that wait share one flush.
                    while commit && matches!(store.queue.front(), Some(Job::Commit(..))) {
                        store.working.extend(store.queue.pop_front());
                    }
                }
            }
        }
        let wait = store.wait();
        self.queue.after(wait, Event::StoreDone(self.scheduler.incarnation));
    }

    /// The disk has done what it was busy with.
    pub(crate) fn store_done(&mut self, incarnation: u64) {
        if self.scheduler.incarnation != incarnation {
            return;
        }
        if self.scheduler.frozen > 0 {
            self.scheduler.store_waits = true;
            return;
        }
        if self.store.is_away() {
            self.store.owes = true;
            return;
        }
        let commits = matches!(self.store.working.first(), Some(Job::Commit(..)));
        if commits && let Some(down) = self.store.lost.take() {
            return self.kill_scheduler(down);
        }
        if commits && self.comes_to_no_answer() {
            return self.ask_again();
        }
        self.store.unanswered = false;
        let working = std::mem::take(&mut self.store.working);
        if self.store.full > 0 {
            self.note(|| "store: no space left on device".to_owned());
            if commits {
                self.store.failed = true;
                let reason = "no space left on device".to_owned();
                let durable = Box::new(self.store.disk.durable.clone());
                self.tell_leader(Input::CommitFailed { reason, durable });
            } else {
                self.tell_leader(Input::TermNotTaken);
            }
        } else if let Some(input) = self.write_to_disk(working) {
            self.tell_leader(input);
        }
        self.store_works();
    }

    fn write_to_disk(&mut self, working: Vec<Job>) -> Option<Input> {
        let mut input = None;
        for job in working {
            match job {
                Job::Commit(commit, changes) => {
                    self.take_once(self.scheduler.incarnation, self.store.ours, commit, &changes);
                    input = Some(Input::Committed(commit));
                }
                Job::TakeTerm(above) => {
                    if above > self.store.disk.term {
                        self.store.disk.doubted = Some(self.doubt_of_store());
                    }
                    input = Some(Input::TermTaken(self.store.take_term(above)));
                }
                Job::Resume => {}
            }
        }
        input
    }

    /// A batch is taken if it comes after those that were taken of this process, and no later term was taken.
    fn take_once(&mut self, asks: u64, term: Term, commit: CommitId, changes: &[Change]) {
        if self.store.last.0 == asks
            && commit <= self.store.last.1
            && !planted::is(Fault::AskedAgainAppliedAgain)
        {
            return;
        }
        self.store.last = (asks, commit);
        let term = if planted::is(Fault::DeposedCommitTaken) { self.store.disk.term } else { term };
        match self.store.disk.commit(term, changes.to_vec()) {
            Ok(()) => changes.iter().for_each(|change| self.becomes_durable(change)),
            Err(later) => self.note(|| format!("store: refuses what comes in term {term} after {later}")),
        }
    }

    /// Whether nothing is heard of what the store was asked: it has taken it and the answer is lost, or it comes there late, or
    /// never. What came to no answer once has not failed if there is no room for it now.
    fn comes_to_no_answer(&mut self) -> bool {
        let full = self.store.full > 0;
        if self.store.mute == 0 || !self.store.answers.chance(600) {
            return full && self.store.unanswered;
        }
        match self.store.answers.below(3) {
            0 if !full => {
                self.write_to_disk(self.store.working.clone());
            }
            1 => {
                let late = self.store.answers.spread(100 * MILLI, 10 * SECOND);
                let working = self.store.working.clone();
                let arrives = Event::Arrives(self.scheduler.incarnation, self.store.ours, working);
                self.queue.after(late, arrives);
            }
            _ => {}
        }
        true
    }

    fn ask_again(&mut self) {
        self.note(|| "store: no answer".to_owned());
        self.store.unanswered = true;
        let wait = self.store.answers.between(300 * MILLI, 2 * SECOND);
        self.queue.after(wait, Event::StoreDone(self.scheduler.incarnation));
    }

    /// What this process asked of the store arrives late: when it was asked again, or another process leads.
    pub(crate) fn arrives(&mut self, asks: u64, term: Term, batches: Vec<Job>) {
        if self.store.is_away() || self.store.full > 0 {
            return;
        }
        if self.has_key(asks) || planted::is(Fault::DeposedCommitTaken) {
            for batch in batches {
                if let Job::Commit(commit, changes) = batch {
                    self.take_once(asks, term, commit, &changes);
                }
            }
        } else {
            self.note(|| "store: refuses what one has asked that does not lead".to_owned());
            self.deposed_ends(asks);
        }
    }

    /// What waits has been asked as well by a process that is deposed.
    pub(crate) fn what_waits_arrives_late(&mut self) {
        let batches: Vec<Job> = self.store.queue.drain(..).collect();
        if !batches.is_empty() {
            let late = self.store.answers.spread(MILLI, 5 * SECOND);
            let asks = (self.scheduler.incarnation, self.store.ours);
            self.queue.after(late, Event::Arrives(asks.0, asks.1, batches));
        }
    }

    /// The process died: what the disk was busy with is written or not, or some of it; what waited is lost.
    pub(crate) fn store_dies(&mut self) {
        let working = std::mem::take(&mut self.store.working);
        self.store.queue.clear();
        (self.store.failed, self.store.owes, self.store.unanswered) = (false, false, false);
        if self.store.full == 0 && !working.is_empty() {
            let mut working = working;
            let mut written = if self.store.random.chance(500) { working.len() } else { 0 };
            // Each batch by itself is written as a whole, and in order.
            if let Some(tears) = &mut self.store.tears {
                written = tears.below(working.len() + 1);
            }
            self.note(|| {
                format!("store: of what it was busy with {written} of {} are durable", working.len())
            });
            let rest = working.split_off(written);
            self.write_to_disk(working);
            if let Some(Job::Commit(commit, mut changes)) = rest.into_iter().next()
                && planted::is(Fault::HalfBatchTaken)
            {
                changes.truncate(changes.len().div_ceil(2));
                self.write_to_disk(vec![Job::Commit(commit, changes)]);
            }
        }
    }

    /// The store does not answer any more.
    pub(crate) fn store_goes_away(&mut self) {
        if self.store.away == 0 {
            self.store.away_since = self.queue.now();
        }
        self.store.away += 1;
    }

    /// One fault less keeps it from answering, or none does any more.
    pub(crate) fn store_comes_back(&mut self, faults: u32) {
        if self.store.away == 0 {
            return;
        }
        self.store.away = self.store.away.saturating_sub(faults);
        if self.store.away > 0 {
            return;
        }
        if std::mem::take(&mut self.store.owes) {
            let wait = self.store.wait();
            self.queue.after(wait, Event::StoreDone(self.scheduler.incarnation));
        }
        self.election_goes_on(self.store.away_since);
        self.step_down_once_answered();
        self.queue.after(0, Event::SchedulerStarts);
    }

    pub(crate) fn back_up(&mut self) {
        self.store.backup = Some(Backup {
            durable: self.store.disk.durable.clone(),
            term: self.store.disk.term,
            intent: self.book.durable_intent.clone(),
            commands: self.book.durable_commands.clone(),
        });
    }

    /// Puts the copy in the place of the store, which nobody uses at the moment: its files, or by `musterctl restore` in an
    /// empty store, after which terms leap. What was acknowledged since is lost, as the operator knows.
    pub(crate) fn restore(&mut self) {
        let Some(backup) = self.store.backup.take() else { return };
        self.takes_the_key_away();
        let leaps = Random::new(self.plan.seed, "leap").chance(500);
        self.note(|| format!("store: a backup takes its place, of term {}; it leaps: {leaps}", backup.term));
        self.store.disk = Disk::new(backup.durable.cluster);
        self.store.disk.replace(backup.durable, if leaps { backup.term.leap() } else { backup.term });
        self.restored(backup.intent, backup.commands, leaps);
    }
}
