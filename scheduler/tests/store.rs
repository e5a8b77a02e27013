//! What every store must do, and what the embedded one does beside.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use muster_core::command::{Done, UnitOutcome};
use muster_core::ids::{AgentKey, BootId, ClusterId, CommandId, Epoch, MachineId, Term};
use muster_core::leader::{Change, Durable, Retired, StoredCommand, StoredUnit};
use muster_core::machine::{Capacity, Labels, MachineRecord};
use muster_core::state::DesiredState;
use muster_core::unit::{Bytes, MilliCpu, UnitName};
use muster_scheduler::store::{CommitError, Embedded, FILE_NAME, Store, StoreError};
use muster_test_etcd::{Etcd, runtime, wait_for};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use self::common::etcd::Opened;

fn name(number: usize) -> UnitName {
    format!("unit-{number}.service").parse().expect("a name")
}

fn unit(number: u64) -> StoredUnit {
    let epoch = Epoch { term: Term(number), counter: number + 1 };
    StoredUnit {
        desired: DesiredState::Launched,
        order: number,
        placements: [(MachineId::new(number.into()), epoch)].into_iter().collect(),
        done: number % 2 == 1,
    }
}

fn machine(number: u64) -> MachineRecord {
    MachineRecord {
        address: format!("198.18.0.{number}"),
        labels: Labels::from([("rack".to_owned(), format!("\"{number}\"\n"))]),
        capacity: Capacity { cpu: MilliCpu(number), memory: Bytes(u64::MAX) },
        version: "0.1.0".to_owned(),
        boot: BootId::new(u128::MAX),
        key: AgentKey::new(number.into()),
        restarting: number % 2 == 1,
        leaving: number % 3 == 1,
        lease: Duration::from_secs(number),
        grace: Duration::from_secs(number / 2),
    }
}

fn command(number: u64) -> StoredCommand {
    let outcome =
        UnitOutcome { name: name(1), done: Done::Created, warnings: vec!["line 1: odd".to_owned()] };
    StoredCommand { id: CommandId::new(number.into()), result: Ok(vec![outcome]) }
}

/// Any change, of few units and machines, so that they meet.
fn change() -> impl Strategy<Value = Change> {
    (0_u8..9, 0_usize..4, 0_u64..3, any::<u16>()).prop_map(|(kind, which, machine_number, value)| {
        let (unit_name, value) = (name(which), u64::from(value));
        let id = MachineId::new(machine_number.into());
        match kind {
            0 => Change::PutUnit(unit_name, unit(value)),
            1 => Change::PutFile(unit_name, format!("[Unit]\nDescription=\u{1f980} {value}\r\n").into()),
            2 => Change::DeleteUnit(unit_name),
            3 => Change::PutMachine(id, machine(value)),
            4 => {
                let exclusive = (value % 2 == 1).then_some(Duration::from_secs(value));
                Change::PutRetired(
                    id,
                    unit_name,
                    Retired { epoch: Epoch { term: Term(value), counter: 1 }, exclusive },
                )
            }
            5 => Change::DeleteRetired(id, unit_name),
            7 => Change::PutLabels(
                id,
                [("a".to_owned(), Some(format!("\"{value}\""))), ("b".to_owned(), None)].into(),
            ),
            6 => Change::PutCommand(value % 5, command(value)),
            _ => Change::DeleteCommand(value % 5),
        }
    })
}

fn apply(durable: &mut Durable, changes: Vec<Change>) {
    changes.into_iter().for_each(|change| durable.apply(change));
}

/// What every store must do. `open` opens the same store each time, after the one before was dropped.
mod contract {
    use super::*;

    pub type Open<'a> = &'a dyn Fn() -> Box<dyn Store>;

    pub fn a_new_store_is_an_empty_cluster(open: Open<'_>) {
        let first = open().load().expect("load");
        assert_eq!(first, Durable::new(first.cluster));
        assert_eq!(open().load().expect("load"), first, "it stays the same cluster");
    }

    pub fn terms_rise(open: Open<'_>) {
        let mut store = open();
        assert_eq!(store.take_term(Term(0)).expect("term"), Term(1));
        assert_eq!(store.take_term(Term(0)).expect("term"), Term(2));
        assert_eq!(store.take_term(Term(10)).expect("term"), Term(11));
        drop(store);
        assert_eq!(open().take_term(Term(0)).expect("term"), Term(12), "it is durable");
    }

    pub fn it_holds_what_was_committed(open: Open<'_>) {
        let mut store = open();
        let term = store.take_term(Term(0)).expect("term");
        let mut expected = store.load().expect("load");
        drop(store);
        let batches = prop::collection::vec(prop::collection::vec(change(), 0..8), 0..6);
        let mut runner =
            TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
        let expected = std::cell::RefCell::new(&mut expected);
        runner
            .run(&batches, |batches| {
                let mut store = open();
                for batch in batches {
                    store.commit(term, batch.clone()).expect("commit");
                    apply(&mut expected.borrow_mut(), batch);
                }
                prop_assert_eq!(&store.load().expect("load"), &**expected.borrow());
                drop(store);
                prop_assert_eq!(&open().load().expect("load"), &**expected.borrow());
                Ok(())
            })
            .expect("what was committed is there");
    }

    pub fn an_overtaken_term_changes_nothing(open: Open<'_>) {
        let mut store = open();
        let old = store.take_term(Term(0)).expect("term");
        store.commit(old, vec![Change::PutMachine(MachineId::new(1), machine(1))]).expect("commit");
        let before = store.load().expect("load");
        let new = store.take_term(Term(0)).expect("term");
        let late = store.commit(old, vec![Change::PutMachine(MachineId::new(2), machine(2))]);
        assert!(
            matches!(late, Err(CommitError::Refused { ours, later }) if ours == old && later == new),
            "{late:?}"
        );
        assert_eq!(store.load().expect("load"), before);
        store
            .commit(new, vec![Change::PutMachine(MachineId::new(2), machine(2))])
            .expect("the new term commits");
    }

    pub fn a_backup_takes_the_place_of_everything(open: Open<'_>) {
        let mut store = open();
        let old = store.take_term(Term(0)).expect("term");
        let batches = || prop::collection::vec(prop::collection::vec(change(), 0..8), 0..6);
        let mut runner =
            TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
        let (store, highest) = (std::cell::RefCell::new(Some(store)), std::cell::Cell::new(old));
        runner
            .run(&(batches(), batches(), 0_u64..50), |(before, changes, above)| {
                let mut store = store.borrow_mut();
                let there = store.as_mut().expect("open");
                let term = there.take_term(Term(0)).expect("term");
                before.into_iter().for_each(|batch| there.commit(term, batch).expect("commit"));
                let mut backup = Durable::new(ClusterId::new(u128::from(above)));
                changes.into_iter().for_each(|batch| apply(&mut backup, batch));
                there.replace(backup.clone(), Term(above)).expect("it is restored");
                prop_assert_eq!(&there.load().expect("load"), &backup);
                prop_assert!(!there.is_latest());
                *store = None;
                let mut again = open();
                prop_assert_eq!(&again.load().expect("load"), &backup, "it is durable");
                prop_assert!(!again.is_latest(), "the next one doubts as well");
                // Terms go on above all that there were.
                let next = again.take_term(Term(0)).expect("term");
                prop_assert!(next > Term(above) && next > term && next > highest.get(), "{}", next);
                highest.set(next);
                let late = vec![Change::DeleteCommand(9)];
                let refused = again.commit(term, late.clone());
                prop_assert!(matches!(refused, Err(CommitError::Refused { .. })), "{:?}", refused);
                again.commit(next, late).expect("commit");
                *store = Some(again);
                Ok(())
            })
            .expect("a backup is there as a whole");
    }
}

macro_rules! contract {
    ($store:ident, [$($test:ident),+ $(,)?]) => {
        mod $store {
            $(
                #[test]
                fn $test() {
                    super::$store(super::contract::$test);
                }
            )+
        }
    };
}

fn embedded(test: fn(contract::Open<'_>)) {
    let directory = tempfile::tempdir().expect("a directory");
    test(&|| Box::new(open_again(directory.path())));
}

/// Opens a store that this process may have closed a moment ago: a child that another test has forked since holds the
/// lock too, until it executes its program.
fn open_again(directory: &Path) -> Embedded {
    let open = || match Embedded::open(directory) {
        Err(StoreError::Locked { .. }) => None,
        opened => Some(opened.expect("open")),
    };
    wait_for("the lock", open, || directory.display().to_string())
}

contract!(
    embedded,
    [
        a_new_store_is_an_empty_cluster,
        terms_rise,
        it_holds_what_was_committed,
        an_overtaken_term_changes_nothing,
        a_backup_takes_the_place_of_everything,
    ]
);

fn in_etcd(test: fn(contract::Open<'_>)) {
    let (server, runtime) = (Etcd::start(1, &[]), runtime());
    test(&|| Box::new(Opened::new(&runtime, server.config())));
}

contract!(
    in_etcd,
    [
        a_new_store_is_an_empty_cluster,
        terms_rise,
        it_holds_what_was_committed,
        an_overtaken_term_changes_nothing,
        a_backup_takes_the_place_of_everything,
    ]
);

#[test]
fn one_process_at_a_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Embedded::open(directory.path()).expect("open");
    let error = Embedded::open(directory.path()).expect_err("locked");
    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
    assert!(
        error.to_string().ends_with(
            "is in use by another process: is another muster-scheduler running on this directory?"
        )
    );
    drop(first);
    open_again(directory.path());
}

/// A store whose witness is beside it; it is latest again after a restart, and not doubted for long.
fn witnessed(state: &Path, run: &Path, doubt: Duration) -> Embedded {
    open_again(state).with_witness(run, doubt).expect("read")
}

#[test]
fn an_older_copy_of_the_store_is_known_for_one() {
    const LONG: Duration = Duration::from_secs(3600);
    let directory = tempfile::tempdir().expect("a directory");
    let (state, run) = (directory.path().join("state"), directory.path().join("run"));
    fs::create_dir(&run).expect("create");
    let commit = |store: &mut Embedded, term| {
        store.commit(term, vec![Change::DeleteCommand(1)]).expect("commit");
    };
    let store = witnessed(&state, &run, LONG);
    assert!(store.is_latest(), "it was made just now, for a new cluster");
    drop(store);
    // After a boot nobody knows.
    fs::remove_file(run.join("commits")).expect("remove");
    let mut store = witnessed(&state, &run, Duration::ZERO);
    assert!(!store.is_latest());
    let term = store.take_term(Term::default()).expect("a term");
    commit(&mut store, term);
    assert!(store.is_latest(), "by now what it may have lacked matters no more");
    // A copy from while it is used, as of a snapshot of the disk.
    let backup = fs::read(state.join(FILE_NAME)).expect("read");
    drop(store);
    let mut store = witnessed(&state, &run, LONG);
    assert!(store.is_latest());
    let term = store.take_term(Term::default()).expect("a term");
    commit(&mut store, term);
    drop(store);
    fs::write(state.join(FILE_NAME), backup).expect("write");
    let mut store = witnessed(&state, &run, LONG);
    assert!(!store.is_latest());
    // The next start must not believe it either, whatever was committed.
    let term = store.take_term(Term::default()).expect("a term");
    commit(&mut store, term);
    commit(&mut store, term);
    drop(store);
    assert!(!witnessed(&state, &run, LONG).is_latest());
    assert!(!open_again(&state).is_latest(), "where there is no witness");
    // A copy without a witness of its own, of which a machine proves that it is old.
    let mut store = witnessed(&state, &run, Duration::ZERO);
    store.take_term(Term::default()).expect("a term");
    drop(store);
    let mut store = witnessed(&state, &run, LONG);
    assert!(store.is_latest());
    store.take_term(Term(99)).expect("a term");
    assert!(!store.is_latest());
    drop(store);
    assert!(!witnessed(&state, &run, LONG).is_latest());
}

#[test]
fn a_restored_store_is_doubted_for_a_while() {
    const LONG: Duration = Duration::from_secs(3600);
    let directory = tempfile::tempdir().expect("a directory");
    let (state, run) = (directory.path().join("state"), directory.path().join("run"));
    fs::create_dir(&run).expect("create");
    let mut store = witnessed(&state, &run, LONG);
    assert!(store.is_latest());
    store.replace(Durable::new(ClusterId::new(7)), Term(5)).expect("restored");
    assert!(!store.is_latest());
    drop(store);
    assert!(!witnessed(&state, &run, LONG).is_latest());
    let mut store = witnessed(&state, &run, Duration::ZERO);
    store.take_term(Term(0)).expect("term");
    drop(store);
    assert!(witnessed(&state, &run, LONG).is_latest());
}

/// A disk that is full leaves what there was.
#[test]
fn a_backup_for_which_there_is_no_room_changes_nothing() {
    if !common::in_own_mounts("a_backup_for_which_there_is_no_room_changes_nothing") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    common::mount_tmpfs(directory.path(), 12 * 1024);
    let mut store = Embedded::open(directory.path()).expect("open");
    let term = store.take_term(Term(0)).expect("term");
    store.commit(term, vec![Change::PutCommand(1, command(1))]).expect("commit");
    let before = store.load().expect("load");
    let mut backup = Durable::new(ClusterId::new(7));
    for number in 0..20 {
        backup.apply(Change::PutUnit(name(number), unit(1)));
        backup.apply(Change::PutFile(name(number), "x".repeat(1024 * 1024).into()));
    }
    let error = store.replace(backup, Term(99)).expect_err("there is no room");
    assert!(matches!(&error, CommitError::Failed(reason) if reason.contains("No space left")), "{error:?}");
    assert_eq!(store.load().expect("load"), before);
    assert_eq!(store.cluster(), before.cluster);
    store.commit(term, vec![Change::PutCommand(2, command(2))]).expect("it goes on as before");
    assert_eq!(store.take_term(Term(0)).expect("term"), term.next());
}

#[test]
fn only_its_owner_reads_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().join("state");
    drop(Embedded::open(&state).expect("open"));
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&state.join(FILE_NAME))), (0o700, 0o600));
}

#[test]
fn a_store_of_another_version_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(Embedded::open(directory.path()).expect("open"));
    let path = directory.path().join(FILE_NAME);
    let database = redb::Database::open(&path).expect("open");
    let transaction = database.begin_write().expect("write");
    let meta = redb::TableDefinition::<&str, &str>::new("meta");
    transaction.open_table(meta).expect("table").insert("format", "2").expect("insert");
    transaction.commit().expect("commit");
    drop(database);
    let error = Embedded::open(directory.path()).expect_err("another version");
    let expected =
        "has format version 2, this muster-scheduler reads version 1: use the version that wrote it";
    assert_eq!(error.to_string(), format!("{} {expected}", path.display()));
}

#[test]
fn a_record_of_a_later_version_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(Embedded::open(directory.path()).expect("open"));
    let path = directory.path().join(FILE_NAME);
    let database = redb::Database::open(&path).expect("open");
    let transaction = database.begin_write().expect("write");
    let units = redb::TableDefinition::<&str, &str>::new("units");
    let unit = r#"{"desired":"launched","order":1,"placements":{},"shiny":true}"#;
    transaction.open_table(units).expect("table").insert("a.service", unit).expect("insert");
    transaction.commit().expect("commit");
    drop(database);
    let error = open_again(directory.path()).load().expect_err("another version");
    let text = error.to_string().replace(&path.display().to_string(), "STORE");
    insta::assert_snapshot!(text, @r#"STORE is not a Muster store, or it is damaged: table units<&str, &str>, key "a.service": unknown field `shiny`, expected one of `desired`, `order`, `placements`, `done` at line 1 column 55; was it written by a later version? Then upgrade this muster-scheduler"#);
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(FILE_NAME);
    fs::write(&path, "not a database\n".repeat(1000)).expect("write");
    let before = fs::read(&path).expect("read");
    let error = Embedded::open(directory.path()).expect_err("no store");
    let expected = format!("{} is not a Muster store, or it is damaged: ", path.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(fs::read(&path).expect("read"), before);
}

#[test]
fn a_crash_while_it_is_made_leaves_nothing_in_the_way() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("muster.redb.new"), "half a file").expect("write");
    let mut store = Embedded::open(directory.path()).expect("open");
    assert!(store.load().expect("load").units.is_empty());
    let names: Vec<_> = fs::read_dir(directory.path())
        .expect("read the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, [FILE_NAME]);
}

/// A file of this many KiB that takes room on the disk.
fn fill(path: &Path, kib: usize) {
    fs::write(path, vec![0; kib * 1024]).expect("there is room for it");
}

#[test]
fn a_full_tmpfs_refuses_writes_and_loses_nothing() {
    if common::in_own_mounts("a_full_tmpfs_refuses_writes_and_loses_nothing") {
        let directory = tempfile::tempdir().expect("a directory");
        common::mount_tmpfs(directory.path(), 12 * 1024);
        fill_and_empty(directory.path());
    }
}

/// ext4 may take half of what it is asked for before it says that the rest is not there.
#[test]
fn a_full_ext4_refuses_writes_and_loses_nothing() {
    if common::in_own_mounts("a_full_ext4_refuses_writes_and_loses_nothing") {
        let (image, directory) = (tempfile::NamedTempFile::new().expect("a file"), tempfile::tempdir());
        let directory = directory.expect("a directory");
        common::mount_ext4(image.path(), directory.path(), 13 * 1024);
        fill_and_empty(directory.path());
    }
}

fn fill_and_empty(directory: &Path) {
    let ballast = directory.join("ballast");
    fill(&ballast, 5 * 1024);
    let state = directory.join("state");

    let mut store = Embedded::open(&state).expect("open");
    let mut term = store.take_term(Term(0)).expect("term");
    let mut expected = store.load().expect("load");
    // Commits of many sizes, so that the disk gets full at different moments of one.
    let mut failures = 0;
    for number in 0..400 {
        if failures == 12 {
            break;
        }
        let size = 1 << (number % 20);
        let batch = vec![
            Change::PutUnit(name(number), unit(1)),
            Change::PutFile(name(number), "x".repeat(size).into()),
        ];
        match store.commit(term, batch.clone()) {
            Ok(()) => apply(&mut expected, batch),
            Err(CommitError::Failed(reason)) => {
                failures += 1;
                let start = format!("{}: No space left on device", state.join(FILE_NAME).display());
                assert!(reason.starts_with(&start), "{reason}");
                assert_eq!(store.load().expect("reads go on"), expected);
            }
            Err(other) => panic!("commit {number}: {other:?}"),
        }
    }
    assert_eq!(failures, 12, "the disk did not get full");
    assert!(!expected.units.is_empty());

    // A scheduler that is started on the full disk leads, if only to answer questions.
    drop(store);
    let mut store = Embedded::open(&state).expect("open on a full disk");
    term = store.take_term(term).expect("a term on a full disk");
    assert_eq!(store.load().expect("load"), expected);

    // Not one byte is left on the file system now, and what is forgotten makes room within the file.
    let mut rest = fs::File::create(directory.join("rest")).expect("a file");
    while rest.write_all(&[0; 4096]).is_ok() {}
    let large = vec![Change::PutFile(name(1000), "x".repeat(1_000_000).into())];
    let refused = store.commit(term, large.clone());
    assert!(matches!(refused, Err(CommitError::Failed(_))), "{refused:?}");
    let known: Vec<_> = expected.units.keys().cloned().collect();
    let forget: Vec<_> = known.iter().skip(known.len() / 2).cloned().map(Change::DeleteUnit).collect();
    store.commit(term, forget.clone()).expect("units can be destroyed on a full disk");
    apply(&mut expected, forget);
    assert_eq!(store.load().expect("load"), expected);

    // With room, it goes on by itself.
    fs::remove_file(&ballast).expect("remove");
    let large: Vec<_> = large.into_iter().chain([Change::PutUnit(name(1000), unit(1))]).collect();
    store.commit(term, large.clone()).expect("there is room again");
    apply(&mut expected, large);
    drop(store);
    assert_eq!(open_again(&state).load().expect("load"), expected);
}

/// Set in the process that is killed: the state directory.
const VICTIM: &str = "MUSTER_TEST_VICTIM";

#[test]
fn sigkill_loses_nothing_that_was_acknowledged() {
    if let Some(directory) = std::env::var_os(VICTIM) {
        commit_for_ever(Path::new(&directory));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut acknowledged = 0;
    for round in 1..=5_u64 {
        let mut victim = Command::new(std::env::current_exe().expect("the test's own program"))
            .args(["--exact", "sigkill_loses_nothing_that_was_acknowledged", "--nocapture"])
            .env(VICTIM, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut lines = BufReader::new(victim.stdout.take().expect("a pipe")).lines();
        // Killed somewhere in the commits after this one: nobody waits for them.
        let enough = acknowledged + 20 * round;
        while acknowledged < enough {
            let line = lines.next().expect("it goes on until it is killed").expect("read");
            if let Some(number) = line.strip_prefix("acknowledged ") {
                acknowledged = number.parse().expect("a number");
            }
        }
        victim.kill().expect("kill");
        victim.wait().expect("wait");
        for line in lines {
            if let Some(number) = line.expect("read").strip_prefix("acknowledged ") {
                acknowledged = number.parse().unwrap_or(acknowledged);
            }
        }
        let mut store = Embedded::open(directory.path()).expect("open after SIGKILL");
        let durable = store.load().expect("load");
        for number in 0..acknowledged {
            let name = name(usize::try_from(number).expect("a small number"));
            assert_eq!(
                durable.units.get(&name),
                Some(&unit(number)),
                "round {round}: {name} was acknowledged"
            );
            assert!(durable.files.contains_key(&name), "round {round}: {name} has no file");
        }
        // All of a batch or nothing.
        assert_eq!(durable.units.len(), durable.files.len());
        acknowledged = durable.units.len() as u64;
    }
}

/// Commits unit after unit, and says so after each.
fn commit_for_ever(directory: &Path) -> ! {
    let mut store = Embedded::open(directory).expect("open");
    let term = store.take_term(Term(0)).expect("term");
    let known = store.load().expect("load").units.len();
    let content: Arc<str> = "x".repeat(2000).into();
    let mut out = std::io::stdout();
    for number in known.. {
        let batch = vec![
            Change::PutUnit(name(number), unit(number as u64)),
            Change::PutFile(name(number), content.clone().into()),
        ];
        store.commit(term, batch).expect("commit");
        writeln!(out, "acknowledged {}", number + 1).expect("write");
        out.flush().expect("flush");
    }
    unreachable!("the numbers do not end")
}
