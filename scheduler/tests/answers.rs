//! The store in etcd, with an etcd whose answers are not what has become of what it was asked, or that is put back to what it
//! was before.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use insta::assert_snapshot;
use muster_core::ids::Term;
use muster_core::leader::Change;
use muster_core::unit::UnitName;
use muster_scheduler::store::{CommitError, Store};
use muster_test_etcd::{Etcd, runtime};
use tonic::Status;

use self::common::etcd::Scheduler;
use self::common::proxy::{Fate, Proxy, no_space, of_writes};

/// A change that names the number.
fn file(number: u64) -> Change {
    let name: UnitName = format!("unit-{number}.service").parse().expect("a name");
    Change::PutFile(name, format!("# {number}").into())
}

fn entries(etcd: &Etcd) -> usize {
    etcd.ctl(&["get", "--prefix", "/muster/log/", "--keys-only"]).split_whitespace().count()
}

#[test]
fn what_etcd_has_no_room_for_and_has_done_all_the_same_is_done_once() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let proxy = Proxy::new(&etcd);
    let mut scheduler = Scheduler::new(&runtime, proxy.config());
    let (mut store, _reign) = scheduler.wins();
    let term = store.take_term(Term(0)).expect("term");
    proxy.rules(of_writes("/muster/log/", || Fate::Done(no_space())));
    store.commit(term, vec![file(1)]).expect("it is done");
    assert_eq!(entries(&etcd), 1);
    proxy.rules(of_writes("/muster/log/", || Fate::Refused(no_space())));
    let error = store.commit(term, vec![file(2)]).expect_err("there is no room");
    assert!(matches!(error, CommitError::Failed(_)), "{error:?}");
    proxy.rules(|_| Fate::Answered);
    store.commit(term, vec![file(3)]).expect("there is room again");
    let found = store.load().expect("load");
    drop(scheduler);
    let mut next = Scheduler::new(&runtime, etcd.config());
    assert_eq!(next.wins().0.load().expect("load"), found);
    assert_eq!((found.files.len(), entries(&etcd)), (2, 2));
}

#[test]
fn what_was_refused_for_want_of_a_token_was_not_done() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let proxy = Proxy::new(&etcd);
    let mut scheduler = Scheduler::new(&runtime, proxy.config());
    let (mut store, _reign) = scheduler.wins();
    let term = store.take_term(Term(0)).expect("term");
    let asked = AtomicUsize::new(0);
    proxy.rules(of_writes("/muster/log/", move || {
        Fate::Refused(match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Status::unauthenticated("etcdserver: invalid auth token"),
            _ => no_space(),
        })
    }));
    let error = store.commit(term, vec![file(1)]).expect_err("there is no room");
    assert!(matches!(error, CommitError::Failed(_)), "this leader need not end for it: {error:?}");
    // Who had no answer does not know.
    let asked = AtomicUsize::new(0);
    proxy.rules(of_writes("/muster/log/", move || {
        Fate::Refused(match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Status::unavailable("no answer"),
            _ => no_space(),
        })
    }));
    let error = store.commit(term, vec![file(1)]).expect_err("there is no room");
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
}

/// The key of an election is made once, and one whose election is over is not elected by what etcd still holds of it.
#[test]
fn nobody_is_elected_twice_by_one_key() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let proxy = Proxy::new(&etcd);
    // Both names are of one member: what the first was asked, the second finds done.
    let endpoints = [proxy.endpoints(), etcd.endpoints()].concat();
    let mut scheduler = Scheduler::new(&runtime, muster_etcd::Config { endpoints, ..Default::default() });
    proxy.rules(of_writes("/muster/leader", || Fate::Done(Status::unavailable("no answer"))));
    let made = || {
        let leader = etcd.ctl(&["get", "/muster/leader", "-w", "json"]);
        let leader: serde_json::Value = serde_json::from_str(&leader).expect("JSON");
        let kv = leader["kvs"][0].clone();
        (kv["create_revision"].as_i64(), kv["version"].as_i64())
    };
    let (mut store, _reign) = scheduler.wins();
    let (first, version) = made();
    assert_eq!(version, Some(1), "it was made once");
    let term = store.take_term(Term(0)).expect("term");
    store.commit(term, vec![file(1)]).expect("it leads");
    // It gives up, and etcd does not learn of that.
    let (mut next, _reign) = scheduler.wins();
    assert!(made().0 > first, "it is another election");
    let late = store.commit(term, vec![file(2)]);
    assert!(matches!(late, Err(CommitError::Refused { .. })), "{late:?}");
    let term = next.take_term(Term(0)).expect("term");
    next.commit(term, vec![file(3)]).expect("it leads");
    assert_eq!(next.load().expect("load").files.len(), 2);
}

#[test]
fn an_etcd_that_is_put_back_to_what_it_was_is_read_anew() {
    let (mut etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let mut leader = Scheduler::new(&runtime, etcd.config());
    let mut follower = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = leader.wins();
    let term = store.take_term(Term(0)).expect("term");
    store.commit(term, vec![file(1)]).expect("commit");
    let before = store.load().expect("load");
    etcd.kill(0);
    etcd.copy_data(0);
    etcd.start_member(0);
    store.commit(term, vec![file(2)]).expect("commit");
    store.commit(term, vec![file(3)]).expect("commit");
    follower.follows_up_to(3);
    etcd.kill(0);
    etcd.put_data_back(0);
    etcd.start_member(0);
    // The leader's own key was there by then.
    let error = store.commit(term, vec![file(4)]).expect_err("what it builds on is gone");
    let CommitError::Unknown(source) = &error else { panic!("{error:?}") };
    assert_snapshot!(source, @"etcd, prefix /muster/: it does not hold what this leader has written: it was put back to an older copy of itself, or somebody else writes there");
    assert_eq!(entries(&etcd), 1, "nothing is built on what is not there");
    let (mut store, reign) = leader.wins();
    assert_eq!(store.load().expect("load"), before, "it is read anew");
    let later = store.take_term(Term(0)).expect("term");
    assert!(later > term);
    // As many entries as there were, of which one has followed.
    [5, 6].iter().for_each(|number| store.commit(later, vec![file(*number)]).expect("commit"));
    let now = store.load().expect("load");
    runtime.block_on(reign.end()).expect("it is given up");
    let (mut store, _reign) = follower.wins();
    assert_eq!(store.load().expect("load"), now, "nothing is left of what was undone");
}
