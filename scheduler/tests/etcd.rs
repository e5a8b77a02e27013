//! The store in etcd, with a real etcd: who may write, what becomes of what is not answered, and what the operator reads.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use insta::assert_snapshot;
use muster_core::ids::{ClusterId, Term};
use muster_core::leader::{Change, Durable};
use muster_core::unit::UnitName;
use muster_scheduler::store::etcd::EtcdStore;
use muster_scheduler::store::{CommitError, Store};
use muster_test_etcd::{Certificates, Etcd, runtime, wait_for};
use rustix::process::Signal;
use uuid::Uuid;

use self::common::etcd::{Scheduler, Start};
use self::common::proxy::{Fate, Proxy, of_writes};

fn name(number: u64) -> UnitName {
    format!("unit-{number}.service").parse().expect("a name")
}

/// A unit's file of so many bytes, which names the number.
fn file(unit: u64, number: u64, bytes: usize) -> Change {
    Change::PutFile(name(unit), format!("# {number}\n{}", "x".repeat(bytes)).into())
}

fn commit(store: &mut EtcdStore, term: Term, expected: &mut Durable, change: Change) {
    store.commit(term, vec![change.clone()]).expect("commit");
    expected.apply(change);
}

/// What the next leader finds.
fn loaded(runtime: &tokio::runtime::Runtime, etcd: &Etcd) -> Durable {
    let mut scheduler = Scheduler::new(runtime, etcd.config());
    scheduler.wins().0.load().expect("load")
}

#[test]
fn a_leader_that_was_overtaken_writes_nothing_and_learns_of_it() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let mut old = Scheduler::new(&runtime, etcd.config());
    let (mut old_store, mut old_reign) = old.wins();
    let term = old_store.take_term(Term(0)).expect("term");
    old_store.commit(term, vec![file(1, 1, 10)]).expect("commit");
    // As if its lease had run out while it stood still.
    etcd.ctl(&["del", "/muster/leader"]);
    let mut new = Scheduler::new(&runtime, etcd.config());
    let (mut new_store, _reign) = new.wins();
    let later = new_store.take_term(Term(0)).expect("term");
    assert!(later > term);
    new_store.commit(later, vec![file(2, 2, 10)]).expect("commit");
    let before = etcd.ctl(&["get", "--prefix", "/muster/log/"]);

    let refused = |result: Result<(), CommitError>| match result {
        Err(CommitError::Refused { ours, later: found }) => assert_eq!((ours, found), (term, later)),
        other => panic!("{other:?}"),
    };
    refused(old_store.commit(term, vec![file(1, 3, 10)]));
    refused(old_store.take_term(Term(7)).map(drop));
    // A leader that is just as old, and writes the entry that comes next for both.
    refused(old_store.commit(term, vec![]));
    assert_eq!(etcd.ctl(&["get", "--prefix", "/muster/log/"]), before);
    let reason = runtime.block_on(async {
        loop {
            if let Err(reason) = old_reign.next().await {
                return reason;
            }
        }
    });
    assert_eq!(reason, "its key in etcd is gone");
    drop((old, new));
    assert_eq!(loaded(&runtime, &etcd).files.len(), 2);
}

/// What the leader of this prefix holds on to.
fn lease_of_leader(etcd: &Etcd) -> String {
    let leader = etcd.ctl(&["get", "/muster/leader", "-w", "json"]);
    let leader: serde_json::Value = serde_json::from_str(&leader).expect("JSON");
    format!("{:x}", leader["kvs"][0]["lease"].as_i64().expect("a lease"))
}

/// A write that is under way when its leader's lease ends, and one of a leader that stood still and wakes: only the key of the
/// election is in their way, since nobody has written that entry.
#[test]
fn what_comes_to_etcd_after_its_leaders_election_changes_nothing() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let proxy = Proxy::new(&etcd);
    let state = || {
        ["cluster", "leader", "log/", "snapshot", "term"]
            .map(|key| etcd.ctl(&["get", "--prefix", &format!("/muster/{key}")]))
    };
    let mut expected = None;
    for another_leads in [false, true] {
        let mut old = Scheduler::new(&runtime, proxy.config());
        let (mut old_store, _reign) = old.wins();
        let mut durable = old_store.load().expect("load");
        assert!(expected.is_none_or(|expected| expected == durable));
        let term = old_store.take_term(Term(0)).expect("term");
        commit(&mut old_store, term, &mut durable, file(1, 1, 10));
        let (waited, late) = (proxy.waiting(), proxy.late().len());
        proxy.rules(of_writes("/muster/log/", || Fate::Waits));
        let under_way = thread::spawn(move || {
            let result = old_store.commit(term, vec![file(1, 2, 10)]);
            (old_store, result)
        });
        let is_held = || (proxy.waiting() > waited).then_some(());
        wait_for("the commit to be under way", is_held, || format!("{}", under_way.is_finished()));
        etcd.ctl(&["lease", "revoke", &lease_of_leader(&etcd)]);
        let mut new = another_leads.then(|| {
            let mut new = Scheduler::new(&runtime, etcd.config());
            let won = new.wins();
            (new, won)
        });
        let before = state();
        let held = proxy.waiting() - waited;
        proxy.rules(|_| Fate::Answered);
        let (mut old_store, result) = under_way.join().expect("no panic");
        let refused = |result: Result<(), CommitError>| match result {
            Err(CommitError::Refused { ours, .. }) => assert_eq!(ours, term),
            other => panic!("{other:?}"),
        };
        refused(result);
        let judged = || Some(proxy.late().split_off(late)).filter(|judged| judged.len() >= held);
        let judged = wait_for("what was held to be judged", judged, || format!("{:?}", proxy.late()));
        assert!(judged.iter().all(|held| !held), "{judged:?}");
        refused(old_store.commit(term, vec![file(1, 3, 10)]));
        refused(old_store.take_term(Term(7)).map(drop));
        refused(old_store.replace(backup(1, 10), Term(7)));
        assert_eq!(state(), before);
        if let Some((_, (store, _))) = &mut new {
            let term = store.take_term(Term(0)).expect("term");
            commit(store, term, &mut durable, file(2, 4, 10));
        }
        expected = Some(durable);
    }
    assert!(expected.is_some_and(|expected| loaded(&runtime, &etcd) == expected));
}

#[test]
fn a_scheduler_that_was_killed_and_starts_again_need_not_wait_for_itself() {
    let (etcd, runtime, id) = (Etcd::start(1, &[]), runtime(), Uuid::new_v4());
    let start = || Start { id, ..Start::default() };
    let first = muster_test_etcd::runtime();
    let mut killed = Scheduler::start(&first, etcd.config(), start()).expect("it can take part");
    let (_store, _) = killed.wins();
    // It ends here, as SIGKILL ends a process; and somebody renews its lease, so that it does not run out.
    std::mem::forget(killed);
    first.shutdown_background();
    let _renewed = etcd.background(&["lease", "keep-alive", &lease_of_leader(&etcd)]);
    Scheduler::start(&runtime, etcd.config(), start()).expect("it can take part").wins();
}

/// One member at a time is killed, or stands still: the leader goes on, and each commit is there once.
#[test]
fn no_member_of_etcd_is_needed() {
    let (mut etcd, runtime) = (Etcd::start(3, &[]), runtime());
    let mut scheduler = Scheduler::new(&runtime, etcd.config());
    let (mut store, mut reign) = scheduler.wins();
    let term = store.take_term(Term(0)).expect("term");
    let done = Arc::new(AtomicU64::new(0));
    let abandon = store.abandon();
    let stop = Arc::new(AtomicU64::new(u64::MAX));
    let commits = {
        let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
        thread::spawn(move || {
            let mut number = 0;
            while number < stop.load(Ordering::Acquire) {
                number += 1;
                store.commit(term, vec![file(number, number, 100)]).expect("commit");
                done.store(number, Ordering::Release);
            }
            number
        })
    };
    let deposed = runtime.spawn(async move {
        loop {
            if let Err(reason) = reign.next().await {
                return reason;
            }
        }
    });
    let goes_on = |what: &str| {
        let before = done.load(Ordering::Acquire);
        wait_for(
            what,
            || (done.load(Ordering::Acquire) >= before + 20).then_some(()),
            || format!("{} commits, leads: {}", done.load(Ordering::Acquire), !deposed.is_finished()),
        );
    };
    goes_on("the first commits");
    for member in 0..3 {
        etcd.kill(member);
        goes_on("commits without a member");
        etcd.start_member(member);
        etcd.wait_until_healthy();
        etcd.signal(member, Signal::STOP);
        goes_on("commits while a member stands still");
        etcd.signal(member, Signal::CONT);
        etcd.wait_until_healthy();
    }
    stop.store(0, Ordering::Release);
    let last = commits.join().expect("no commit has failed");
    assert!(!deposed.is_finished(), "it has led all the time");
    drop(abandon);
    drop(scheduler);
    let found = loaded(&runtime, &etcd);
    let numbers: Vec<_> = (1..=last).filter(|number| found.files.contains_key(&name(*number))).collect();
    assert_eq!((numbers.len() as u64, found.files.len() as u64), (last, last));
    let entries = etcd.ctl(&["get", "--prefix", "/muster/log/", "--keys-only"]).split_whitespace().count();
    assert_eq!(entries as u64, last, "none is there twice");
}

/// Without a majority nothing is decided. What was under way is done once there is one again, or by whoever leads then.
#[test]
fn without_a_majority_a_commit_waits() {
    let (etcd, runtime) = (Etcd::start(3, &[]), runtime());
    let mut scheduler = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = scheduler.wins();
    let term = store.take_term(Term(0)).expect("term");
    [0, 1].iter().for_each(|member| etcd.signal(*member, Signal::STOP));
    let waits = thread::spawn(move || {
        store.commit(term, vec![file(1, 1, 100)]).map(|()| store.load().expect("load").files.len())
    });
    wait_for("etcd to say so", || (!etcd.is_healthy()).then_some(()), || "it is healthy".to_owned());
    assert!(!waits.is_finished());
    [0, 1].iter().for_each(|member| etcd.signal(*member, Signal::CONT));
    assert_eq!(waits.join().expect("no panic").expect("commit"), 1);
    // Nobody waits for ever for what nobody answers.
    drop(scheduler);
    etcd.wait_until_healthy();
    let mut scheduler = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = scheduler.wins();
    let term = store.take_term(Term(0)).expect("term");
    [0, 1].iter().for_each(|member| etcd.signal(*member, Signal::STOP));
    let abandon = store.abandon();
    let waits = thread::spawn(move || store.commit(term, vec![file(2, 2, 100)]));
    wait_for("etcd to say so", || (!etcd.is_healthy()).then_some(()), || "it is healthy".to_owned());
    abandon.now();
    let error = waits.join().expect("no panic").expect_err("it is not known");
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    [0, 1].iter().for_each(|member| etcd.signal(*member, Signal::CONT));
}

#[test]
fn the_log_begins_anew_and_nothing_is_lost() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let mut leader = Scheduler::new(&runtime, etcd.config());
    let mut follower = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = leader.wins();
    let term = store.take_term(Term(0)).expect("term");
    let mut expected = store.load().expect("load");
    follower.follows_up_to(0);
    let mut entries = 0;
    for number in 0..50 {
        // Also one that lies in several entries.
        let bytes = if number % 7 == 6 { 2_500_000 } else { 900_000 };
        commit(&mut store, term, &mut expected, file(number % 9, number, bytes));
        entries += if number % 7 == 6 { 3 } else { 1 };
        if number == 20 {
            follower.follows_up_to(entries);
            // What it would go on from is forgotten.
            etcd.compact();
        }
    }
    let left = etcd.ctl(&["get", "--prefix", "/muster/log/", "--keys-only"]).split_whitespace().count();
    assert!(left < 30, "{left} entries are left of {entries}");
    let parts =
        etcd.ctl(&["get", "--prefix", "/muster/snapshots/", "--keys-only"]).split_whitespace().count();
    assert!((5..40).contains(&parts), "{parts} parts");
    etcd.compact();
    drop(leader);
    let (mut store, _reign) = follower.wins();
    assert!(store.load().expect("load") == expected, "who has followed has it all");
    drop(follower);
    assert!(loaded(&runtime, &etcd) == expected, "and so has who comes later");
}

fn backup(files: u64, bytes: usize) -> Durable {
    let mut backup = Durable::new(ClusterId::new(7));
    (1..=files).for_each(|number| backup.apply(file(number, number, bytes)));
    backup
}

#[test]
fn who_follows_reads_a_restored_backup_anew() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let mut leader = Scheduler::new(&runtime, etcd.config());
    let mut follower = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = leader.wins();
    let term = store.take_term(Term(0)).expect("term");
    let empty = store.load().expect("load").cluster;
    store.commit(term, vec![Change::DeleteCommand(1)]).expect("commit");
    follower.follows_up_to(1);
    let mut expected = backup(5, 900_000);
    store.replace(expected.clone(), Term(1000)).expect("restored");
    follower.follows_up_to(2);
    let term = store.take_term(Term(0)).expect("term");
    assert_eq!(term, Term(1001));
    commit(&mut store, term, &mut expected, file(9, 9, 10));
    follower.follows_up_to(3);
    assert_eq!(follower.observer.standing().cluster, Some(ClusterId::new(7)));
    assert_eq!(follower.cluster_file(), format!("{}\n", ClusterId::new(7)));
    let left = etcd.ctl(&["get", "--prefix", "/muster/log/", "--keys-only"]).split_whitespace().count();
    assert_eq!(left, 1, "the log begins anew");
    drop(leader);
    let (mut store, _reign) = follower.wins();
    assert!(store.load().expect("load") == expected);
    assert_eq!(store.take_term(Term(0)).expect("term"), Term(1002));
    assert!(!store.is_latest(), "who is elected next doubts as well");
    // A scheduler that was away belongs to the cluster all the same: that which it knows had nothing.
    let away = Start { cluster: Some(empty), ..Start::default() };
    Scheduler::start(&runtime, etcd.config(), away).expect("it can take part");
    // Once a leader has led for long enough it is believed, with the commit that comes next.
    drop(follower);
    let mut next = Scheduler::new(&runtime, etcd.config());
    let (store, _reign) = next.wins();
    let mut store = store.with_doubt(Duration::ZERO);
    let term = store.take_term(Term(0)).expect("term");
    assert!(!store.is_latest());
    commit(&mut store, term, &mut expected, file(10, 10, 10));
    assert!(store.is_latest());
    assert_eq!(etcd.ctl(&["get", "/muster/doubt"]), "");
    // An agent proves that there was a later term: etcd is an older copy of itself.
    store.take_term(Term(5000)).expect("term");
    assert!(!store.is_latest());
    drop(next);
    let mut next = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = next.wins();
    assert!(!store.is_latest());
    assert!(store.load().expect("load") == expected);
}

#[test]
fn half_a_restore_is_none() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let mut old = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = old.wins();
    let term = store.take_term(Term(0)).expect("term");
    let mut expected = store.load().expect("load");
    commit(&mut store, term, &mut expected, Change::PutFile(name(1), "x".into()));
    // Its parts are written, and then another leads: as after a crash.
    for part in 0..3 {
        let key = format!("/muster/snapshots/{:016x}/{part:016x}", 2);
        etcd.ctl(&["put", &key, "half of a snapshot"]);
    }
    etcd.ctl(&["del", "/muster/leader"]);
    let refused = store.replace(backup(5, 900_000), Term(1000));
    assert!(matches!(refused, Err(CommitError::Refused { .. })), "{refused:?}");
    drop(old);
    assert!(loaded(&runtime, &etcd) == expected);
    let mut new = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = new.wins();
    assert!(store.is_latest());
    store.take_term(Term(0)).expect("term");
    let small = backup(1, 10);
    store.replace(small.clone(), Term(0)).expect("restored");
    drop(new);
    assert!(loaded(&runtime, &etcd) == small);
    let parts = etcd.ctl(&["get", "--prefix", "/muster/snapshots/", "--keys-only"]);
    assert_eq!(parts.split_whitespace().count(), 1, "nothing is left of the other: {parts}");
}

#[test]
fn a_full_etcd_refuses_and_can_be_used_again() {
    // Several times what the log and the state have together: the rest is history.
    let (etcd, runtime) = (Etcd::start(1, &["--quota-backend-bytes=40000000"]), runtime());
    let mut scheduler = Scheduler::new(&runtime, etcd.config());
    let (mut store, mut reign) = scheduler.wins();
    let term = store.take_term(Term(0)).expect("term");
    let mut expected = store.load().expect("load");
    let error = loop {
        let change = file(1, 1, 1_000_000);
        match store.commit(term, vec![change.clone()]) {
            Ok(()) => expected.apply(change),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CommitError::Failed(_)), "{error:?}");
    assert_snapshot!(error, @"etcd is full (mvcc: database space exceeded): raise its quota (--quota-backend-bytes), or compact and defragment it, then disarm the alarm (etcdctl alarm disarm)");
    assert!(store.load().expect("load") == expected, "it holds what was acknowledged");
    runtime.block_on(reign.next()).expect("it still leads: renewing a lease needs no room");
    etcd.compact();
    etcd.ctl(&["defrag"]);
    etcd.ctl(&["alarm", "disarm"]);
    commit(&mut store, term, &mut expected, file(2, 2, 1000));
    drop(scheduler);
    assert!(loaded(&runtime, &etcd) == expected);
}

#[test]
fn etcd_may_ask_who_it_is() {
    let (mut etcd, runtime) = (Etcd::start(1, &[]), runtime());
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["user", "add", "muster:pass"]);
    etcd.ctl(&["role", "add", "muster"]);
    etcd.ctl(&["role", "grant-permission", "muster", "--prefix=true", "readwrite", "/muster/"]);
    etcd.ctl(&["user", "grant-role", "muster", "muster"]);
    etcd.ctl(&["auth", "enable"]);
    let config = |name: &str, password: &str| muster_etcd::Config {
        user: Some((name.to_owned(), password.to_owned())),
        ..etcd.config()
    };
    let refused = |config, prefix| {
        let error = Scheduler::start(&runtime, config, Start { prefix, ..Start::default() }).err();
        let endpoint = &etcd.endpoints()[0];
        error.expect("it is refused").replace(&**endpoint, "ENDPOINT")
    };
    assert_snapshot!(refused(config("muster", "wrong"), "/muster/"), @"ENDPOINT: authentication failed, invalid user ID or password");
    assert_snapshot!(refused(etcd.config(), "/muster/"), @"ENDPOINT: user name is empty");
    assert_snapshot!(refused(config("muster", "pass"), "/other/"), @"ENDPOINT: permission denied");
    let mut scheduler = Scheduler::new(&runtime, config("muster", "pass"));
    let (mut store, _reign) = scheduler.wins();
    let term = store.take_term(Term(0)).expect("term");
    store.commit(term, vec![file(1, 1, 10)]).expect("commit");
    // A member that was started again knows no token that it gave before.
    etcd.kill(0);
    etcd.start_member(0);
    store.commit(term, vec![file(2, 2, 10)]).expect("commit");
}

#[test]
fn certificates_are_checked_both_ways() {
    let (etcd, runtime) = (Etcd::start_with_tls(), runtime());
    let mut scheduler = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = scheduler.wins();
    let term = store.take_term(Term(0)).expect("term");
    store.commit(term, vec![file(1, 1, 10)]).expect("commit");
    let others = tempfile::tempdir().expect("a directory");
    let others = Certificates::new(others.path(), "other");
    let refused = |tls| {
        let config = muster_etcd::Config { tls: Some(tls), ..etcd.config() };
        Scheduler::start(&runtime, config, Start::default()).err().expect("it is refused")
    };
    let good = etcd.certificates().tls();
    let error = refused(muster_etcd::Tls { ca: others.tls().ca, ..good.clone() });
    assert!(error.ends_with("invalid peer certificate: UnknownIssuer"), "{error}");
    // A member that refuses a certificate ends the connection: how that shows depends on what it had read by then.
    let error = refused(muster_etcd::Tls { identity: others.tls().identity, ..good.clone() });
    assert!(error.ends_with("(does it trust this client's certificate?)"), "{error}");
    let error = refused(muster_etcd::Tls { identity: None, ..good });
    assert!(error.ends_with("(does it ask for a client's certificate? None is given)"), "{error}");
}

/// They come up together, and find nothing.
#[test]
fn several_schedulers_make_one_cluster() {
    let etcd = Etcd::start(1, &[]);
    for prefix in ["/1/", "/2/", "/3/", "/4/", "/5/", "/6/"] {
        let clusters = thread::scope(|scope| {
            let begin = || {
                let runtime = runtime();
                let start = Start { prefix, ..Start::default() };
                let mut scheduler =
                    Scheduler::start(&runtime, etcd.config(), start).expect("it can take part");
                scheduler.wins().0.load().expect("load").cluster
            };
            [0; 4].map(|_| scope.spawn(begin)).map(|begun| begun.join().expect("no panic"))
        });
        assert!(clusters.iter().all(|cluster| *cluster == clusters[0]), "{clusters:?}");
    }
}

#[test]
fn clusters_are_not_taken_for_one_another() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let start = |prefix, cluster| {
        Scheduler::start(&runtime, etcd.config(), Start { prefix, cluster, ..Start::default() })
    };
    let own = |prefix: &'static str| {
        let (mut store, _reign) = start(prefix, None).expect("it can take part").wins();
        store.load().expect("load").cluster
    };
    let one = own("/one/");
    assert_ne!(one, own("/two/"));
    start("/one/", Some(one)).expect("its own");
    let refused = |prefix, cluster| {
        let error = start(prefix, cluster).err().expect("it is refused");
        error.replace(&one.to_string(), "ONE")
    };
    let other = Some(ClusterId::new(2));
    assert_snapshot!(refused("/one/", other), @"etcd, prefix /one/: cluster ONE is there, and this scheduler's state directory says that it belongs to cluster 00000000000000000000000000000002: is it the right prefix, and the right etcd? (To have it join the other cluster, give it an empty state directory)");
    assert_snapshot!(refused("/three/", other), @"etcd, prefix /three/: nothing is there, and this scheduler's state directory says that it belongs to cluster 00000000000000000000000000000002: is it the right prefix, and the right etcd? (To start a new cluster there, or to restore this one from a backup, give it an empty state directory)");
    assert_eq!(etcd.ctl(&["get", "--prefix", "/three/"]), "", "nothing was made");
    etcd.ctl(&["put", "/four/registry", "somebody's"]);
    assert_snapshot!(refused("/four/", None), @"etcd, prefix /four/: it is in use by something else than Muster (key /four/registry): choose another prefix");
    etcd.ctl(&["put", "/one/format", "2"]);
    assert_snapshot!(refused("/one/", None), @"etcd, prefix /one/: it has format version 2, this muster-scheduler reads version 1: use the version that wrote it");
}

#[test]
fn an_etcd_that_is_too_old_is_refused() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let proxy = Proxy::new(&etcd);
    let start = |version| {
        proxy.has_version(version);
        Scheduler::start(&runtime, proxy.config(), Start::default()).map(drop)
    };
    let refused =
        |version| start(version).expect_err("it is refused").replace(&proxy.endpoints()[0], "ENDPOINT");
    assert_snapshot!(refused("3.3.27"), @"etcd, prefix /muster/: ENDPOINT is etcd 3.3.27: at least 3.4 is needed");
    assert_snapshot!(refused("2.5.1"), @"etcd, prefix /muster/: ENDPOINT is etcd 2.5.1: at least 3.4 is needed");
    assert_snapshot!(refused("three"), @"etcd, prefix /muster/: ENDPOINT is etcd three: at least 3.4 is needed");
    assert_eq!(etcd.ctl(&["get", "--prefix", "/"]), "", "nothing was made");
    for new in ["3.4.0", "3.10.0-rc.1", "4.0.0"] {
        start(new).expect("it is new enough");
    }
}

/// What a start refuses a scheduler refuses that runs: another cluster is there by now, and has taken this one's place while
/// it stood still.
#[test]
fn who_follows_does_not_go_over_to_another_cluster() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let mut leader = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = leader.wins();
    let term = store.take_term(Term(0)).expect("term");
    store.commit(term, vec![file(1, 1, 10)]).expect("commit");
    let own = store.load().expect("load").cluster;
    let mut followers = [(); 2].map(|()| Scheduler::new(&runtime, etcd.config()));
    followers.iter_mut().for_each(|follower| follower.follows_up_to(1));
    // None of them looks any more.
    drop(leader);
    etcd.ctl(&["del", "--prefix", "/muster/"]);
    let mut other = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = other.wins();
    let found = store.load().expect("load").cluster;
    let term = store.take_term(Term(0)).expect("term");
    store.commit(term, vec![file(2, 2, 10)]).expect("commit");
    // All but which schedulers run.
    let state = || {
        ["cluster", "formerly", "leader", "log/", "snapshot", "term"]
            .map(|key| etcd.ctl(&["get", "--prefix", &format!("/muster/{key}")]))
    };
    let refused = |follower: &mut Scheduler| {
        let before = state();
        let candidate = follower.candidate.as_mut().expect("it is there");
        let ended = runtime.block_on(async {
            let wins = candidate.wins(|_| {});
            tokio::time::timeout(Duration::from_secs(60), wins).await.expect("it ends")
        });
        let error = ended.expect_err("it is not elected");
        assert!(!error.may_pass());
        assert_eq!((follower.cluster_file(), state()), (format!("{own}\n"), before));
        error.to_string().replace(&own.to_string(), "OWN").replace(&found.to_string(), "FOUND")
    };
    let [first, second] = &mut followers;
    // While another leads, and where nobody does and it could.
    assert_snapshot!(refused(first), @"etcd, prefix /muster/: cluster FOUND is there, and this scheduler's state directory says that it belongs to cluster OWN: is it the right prefix, and the right etcd? (To have it join the other cluster, give it an empty state directory)");
    drop((other, store));
    let text = refused(second);
    assert!(text.contains("cluster FOUND is there"), "{text}");
    assert_eq!(etcd.ctl(&["get", "/muster/leader"]), "");
}

/// Who follows does not pass over what it does not know, nor leads without it, and changes nothing.
#[test]
fn what_a_later_version_has_written_ends_who_follows() {
    let (etcd, runtime) = (Etcd::start(1, &[]), runtime());
    let mut leader = Scheduler::new(&runtime, etcd.config());
    let (mut store, _reign) = leader.wins();
    let term = store.take_term(Term(0)).expect("term");
    store.commit(term, vec![file(1, 1, 10)]).expect("commit");
    // All but which schedulers run.
    let state = || {
        ["leader", "log/", "snapshot", "term"]
            .map(|key| etcd.ctl(&["get", "--prefix", &format!("/muster/{key}")]))
    };
    let ended = || {
        let before = state();
        let mut follower = Scheduler::new(&runtime, etcd.config());
        let mut candidate = follower.candidate.take().expect("it is there");
        let error = runtime.block_on(async {
            let wins = candidate.wins(|_| {});
            let ended = tokio::time::timeout(Duration::from_secs(60), wins).await.expect("it ends");
            candidate.end().await;
            ended.expect_err("it is not elected")
        });
        assert!(!error.may_pass());
        assert_eq!(state(), before);
        error.to_string()
    };
    let put = |header: &str, changes: &str| {
        etcd.ctl(&["put", "/muster/log/0000000000000002", &format!("{header}\n{changes}")]);
    };
    let header = r#"{"term":1,"part":0,"more":false}"#;
    let unit = r#"{"desired":"launched","order":1,"placements":{},"shiny":true}"#;
    // While another leads.
    put(header, r#"[{"PutShiny":["unit-1.service",1]}]"#);
    assert_snapshot!(ended(), @"etcd, prefix /muster/: entry 2 of the log makes no sense: unknown variant `PutShiny`, expected one of `PutUnit`, `PutFile`, `DeleteUnit`, `PutMachine`, `PutAvailability`, `PutLabels`, `PutRetired`, `DeleteRetired`, `PutCommand`, `DeleteCommand` at line 1 column 12; was it written by a later version? Then upgrade this muster-scheduler");
    drop(leader);
    put(header, &format!(r#"[{{"PutUnit":["unit-1.service",{unit}]}}]"#));
    assert_snapshot!(ended(), @"etcd, prefix /muster/: entry 2 of the log makes no sense: unknown field `shiny`, expected one of `desired`, `order`, `placements`, `done`, `adopted` at line 1 column 85; was it written by a later version? Then upgrade this muster-scheduler");
    put(r#"{"term":1,"part":0,"more":false,"packed":true}"#, "[]");
    assert_snapshot!(ended(), @"etcd, prefix /muster/: entry 2 of the log makes no sense: unknown field `packed`, expected one of `term`, `part`, `more` at line 1 column 40; was it written by a later version? Then upgrade this muster-scheduler");
    // Written as this version does, all is well.
    put(header, "[]");
    assert_eq!(loaded(&runtime, &etcd).files.len(), 1);
}
