//! The committer's thread, over a store that does as it is told.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_core::ids::{AgentKey, BootId, ClusterId, CommitId, MachineId, Term};
use muster_core::leader::{Change, Durable};
use muster_core::machine::{Capacity, Labels, MachineRecord};
use muster_scheduler::store::{CommitError, Committed, Committer, Store, StoreError};

/// A store that waits for a permission before each commit, which says how it ends.
struct Scripted {
    durable: Arc<Mutex<Durable>>,
    commits: Arc<Mutex<Vec<(Term, usize)>>>,
    outcomes: Receiver<Outcome>,
    begun: Sender<()>,
    term: Term,
    /// How many terms it has no room for.
    refused_terms: usize,
}

enum Outcome {
    Well,
    Full,
    Refused,
}

impl Store for Scripted {
    fn take_term(&mut self, above: Term) -> Result<Term, CommitError> {
        if self.refused_terms > 0 {
            self.refused_terms -= 1;
            return Err(CommitError::Failed("the disk is full".to_owned()));
        }
        self.term = self.term.max(above).next();
        Ok(self.term)
    }

    fn is_latest(&self) -> bool {
        true
    }

    fn load(&mut self) -> Result<Durable, StoreError> {
        Ok(self.durable.lock().expect("lock").clone())
    }

    fn commit(&mut self, term: Term, changes: Vec<Change>) -> Result<(), CommitError> {
        self.begun.send(()).ok();
        match self.outcomes.recv().expect("an outcome for each commit") {
            Outcome::Well => {
                self.commits.lock().expect("lock").push((term, changes.len()));
                let mut durable = self.durable.lock().expect("lock");
                changes.into_iter().for_each(|change| durable.apply(change));
                Ok(())
            }
            Outcome::Full => Err(CommitError::Failed("the disk is full".to_owned())),
            Outcome::Refused => Err(CommitError::Refused { ours: term, later: term.next() }),
        }
    }

    fn replace(&mut self, durable: Durable, above: Term) -> Result<(), CommitError> {
        self.commit(self.term, Vec::new())?;
        *self.durable.lock().expect("lock") = durable;
        self.term = above;
        Ok(())
    }
}

struct Fixture {
    committer: Committer,
    told: Receiver<Committed>,
    begun: Receiver<()>,
    outcomes: Sender<Outcome>,
    durable: Arc<Mutex<Durable>>,
    commits: Arc<Mutex<Vec<(Term, usize)>>>,
}

fn fixture() -> Fixture {
    fixture_without_room_for_terms(0)
}

fn fixture_without_room_for_terms(refused_terms: usize) -> Fixture {
    let (outcomes, to_come) = mpsc::channel();
    let (begin, begun) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let durable = Arc::new(Mutex::new(Durable::new(ClusterId::new(1))));
    let commits = Arc::default();
    let store = Scripted {
        durable: Arc::clone(&durable),
        commits: Arc::clone(&commits),
        outcomes: to_come,
        begun: begin,
        term: Term(1),
        refused_terms,
    };
    let committer =
        Committer::start(Box::new(store), Term(1), move |what| drop(tell.send(what))).expect("start");
    Fixture { committer, told, begun, outcomes, durable, commits }
}

impl Fixture {
    fn told(&self) -> Committed {
        self.told.recv_timeout(Duration::from_secs(30)).expect("the committer says something")
    }

    fn begun(&self) {
        self.begun.recv_timeout(Duration::from_secs(30)).expect("a commit begins");
    }

    fn commit(&self, number: u64) {
        let record = MachineRecord {
            address: String::new(),
            labels: Labels::new(),
            capacity: Capacity::default(),
            version: String::new(),
            boot: BootId::new(0),
            key: AgentKey::new(0),
            restarting: false,
            leaving: false,
            lease: Duration::ZERO,
            grace: Duration::ZERO,
        };
        self.committer
            .commit(CommitId(number), vec![Change::PutMachine(MachineId::new(number.into()), record)]);
    }

    fn ends(&self, outcomes: impl IntoIterator<Item = Outcome>) {
        outcomes.into_iter().for_each(|outcome| self.outcomes.send(outcome).expect("it wants an outcome"));
    }

    fn machines(&self) -> Vec<u128> {
        self.durable.lock().expect("lock").machines.keys().map(|id| id.bits()).collect()
    }
}

#[test]
fn batches_that_gather_share_a_commit() {
    let fixture = fixture();
    fixture.commit(1);
    fixture.begun();
    (2..=10).for_each(|number| fixture.commit(number));
    fixture.ends([Outcome::Well, Outcome::Well]);
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(1))));
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(10))));
    assert_eq!(*fixture.commits.lock().expect("lock"), [(Term(1), 1), (Term(1), 9)]);
}

#[test]
fn after_a_failure_nothing_is_committed_that_builds_on_it() {
    let fixture = fixture();
    fixture.commit(1);
    fixture.begun();
    fixture.commit(2);
    fixture.ends([Outcome::Well, Outcome::Full]);
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(1))));
    // The leader has given this before it knows.
    fixture.commit(3);
    let told = fixture.told();
    let Committed::Failed { reason, durable } = told else { panic!("{told:?}") };
    assert_eq!((reason.as_str(), durable.machines.len()), ("the disk is full", 1));
    fixture.commit(4);
    fixture.committer.resume();
    fixture.commit(5);
    fixture.ends([Outcome::Well]);
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(5))));
    assert_eq!(fixture.machines(), [1, 5]);
}

#[test]
fn a_term_is_taken_between_the_batches() {
    let fixture = fixture();
    fixture.commit(1);
    fixture.begun();
    fixture.committer.take_term(Term(7));
    fixture.commit(2);
    fixture.ends([Outcome::Well, Outcome::Well]);
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(1))));
    assert!(matches!(fixture.told(), Committed::TermTaken(Term(8))));
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(2))));
    assert_eq!(*fixture.commits.lock().expect("lock"), [(Term(1), 1), (Term(8), 1)]);
}

#[test]
fn a_term_that_there_is_no_room_for_is_asked_for_again() {
    let fixture = fixture_without_room_for_terms(1);
    fixture.committer.take_term(Term(7));
    assert!(matches!(fixture.told(), Committed::TermNotTaken));
    fixture.commit(1);
    fixture.ends([Outcome::Well]);
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(1))));
    fixture.committer.take_term(Term(7));
    assert!(matches!(fixture.told(), Committed::TermTaken(Term(8))));
    assert_eq!(*fixture.commits.lock().expect("lock"), [(Term(1), 1)]);
}

fn backup() -> Box<Durable> {
    Box::new(Durable::new(ClusterId::new(7)))
}

#[test]
fn a_backup_is_the_last_that_is_done() {
    let fixture = fixture();
    fixture.commit(1);
    fixture.begun();
    fixture.committer.replace(backup(), Term(7));
    fixture.commit(2);
    fixture.ends([Outcome::Well, Outcome::Well]);
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(1))));
    assert!(matches!(fixture.told(), Committed::Replaced));
    assert!(fixture.told.recv().is_err(), "its thread has ended");
    let mut store = fixture.committer.finish().expect("the store is given back");
    assert_eq!(store.load().expect("load"), *backup());
    assert_eq!(store.take_term(Term(0)).expect("term"), Term(8));
}

#[test]
fn a_backup_that_is_not_taken_changes_nothing() {
    let fixture = fixture();
    fixture.committer.replace(backup(), Term(7));
    fixture.begun();
    fixture.commit(1);
    fixture.ends([Outcome::Full, Outcome::Well]);
    assert!(matches!(fixture.told(), Committed::NotReplaced(reason) if reason == "the disk is full"));
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(1))));
    assert_eq!(fixture.machines(), [1]);
    // Nor one that was asked for by a leader that took something for durable that is not.
    fixture.commit(2);
    fixture.committer.replace(backup(), Term(7));
    fixture.ends([Outcome::Full]);
    assert!(matches!(fixture.told(), Committed::Failed { .. }));
    assert!(matches!(fixture.told(), Committed::NotReplaced(_)));
    fixture.committer.resume();
    fixture.commit(3);
    fixture.ends([Outcome::Well]);
    assert!(matches!(fixture.told(), Committed::Upto(CommitId(3))));
    assert_eq!(fixture.machines(), [1, 3]);
    assert!(fixture.committer.finish().is_none());
}

#[test]
fn a_lost_store_is_never_tried_again() {
    let fixture = fixture();
    fixture.commit(1);
    fixture.ends([Outcome::Refused]);
    assert!(matches!(fixture.told(), Committed::Lost(CommitError::Refused { later: Term(2), .. })));
    fixture.commit(2);
    assert!(fixture.told.recv().is_err(), "its thread has ended");
    assert!(fixture.committer.finish().is_none());
}

#[test]
fn what_was_given_is_committed_before_the_end() {
    let fixture = fixture();
    (1..=3).for_each(|number| fixture.commit(number));
    fixture.ends([Outcome::Well, Outcome::Well, Outcome::Well]);
    let Fixture { committer, durable, .. } = fixture;
    committer.finish();
    assert_eq!(durable.lock().expect("lock").machines.len(), 3);
}
