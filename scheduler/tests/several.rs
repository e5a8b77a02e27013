//! Several schedulers in this process, with a real etcd, over gRPC.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use muster_core::command::{Command, CommandResult, UnitArgument, Verb};
use muster_core::ids::CommandId;
use muster_proto::v1::agents_client::AgentsClient;
use muster_proto::v1::muster_client::MusterClient;
use muster_proto::v1::schedulers_client::SchedulersClient;
use muster_proto::{SchedulerRole, SchedulerStatus, StoreStatus, is_not_leading, leader_of, v1};
use muster_scheduler::config::Config;
use muster_scheduler::daemon::Daemon;
use muster_test_etcd::{Etcd, wait_for};
use rustix::process::Signal;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use self::common::on_etcd;
use self::common::proxy::{Fate, Proxy, deletes, writes};

async fn start(etcd: &Etcd, directory: &Path, name: &str) -> Daemon {
    Daemon::start(&on_etcd(etcd.endpoints(), directory, name)).await.expect("start")
}

fn channel(daemon: &Daemon) -> Channel {
    Endpoint::from_shared(format!("http://{}", daemon.address())).expect("an address").connect_lazy()
}

async fn describe(daemon: &Daemon) -> SchedulerStatus {
    let answer = SchedulersClient::new(channel(daemon)).describe(v1::DescribeRequest {}).await;
    SchedulerStatus::try_from(answer.expect("it describes itself").into_inner()).expect("it makes sense")
}

/// Waits until it describes itself so.
async fn describes(daemon: &Daemon, what: &str, is: impl Fn(&SchedulerStatus) -> bool) -> SchedulerStatus {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = describe(daemon).await;
        if is(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}: {status:?}");
        tokio::task::yield_now().await;
    }
}

fn leads(status: &SchedulerStatus) -> bool {
    status.role == SchedulerRole::Leading
}

async fn step_down(daemon: &Daemon, term: u64) -> Result<(), Status> {
    SchedulersClient::new(channel(daemon)).step_down(v1::StepDownRequest { term }).await.map(drop)
}

/// Submits a unit under a command's id.
async fn submit(daemon: &Daemon, id: u128, unit: &str) -> Result<CommandResult, Status> {
    let command = Command {
        id: CommandId::new(id),
        verb: Verb::Submit,
        units: vec![UnitArgument {
            name: unit.parse().expect("a name"),
            content: Some("[Service]\nExecStart=/bin/true\n".into()),
        }],
        replace: false,
    };
    let answer = MusterClient::new(channel(daemon)).execute(v1::CommandRequest::from(command)).await?;
    Ok(CommandResult::try_from(answer.into_inner()).expect("it makes sense"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_the_others_say_who() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(1, &[])).await.expect("etcd");
    let first = start(&etcd, directory.path(), "first").await;
    describes(&first, "it leads", leads).await;
    let second = start(&etcd, directory.path(), "second").await;
    let status = describes(&second, "it follows", |status| status.role == SchedulerRole::Following).await;
    let address = first.address().to_string();
    assert_eq!((status.leader.as_deref(), status.term.0), (Some(&*address), 1));
    assert_eq!(status.cluster, describe(&first).await.cluster);
    let mut addresses = [address.clone(), second.address().to_string()];
    addresses.sort();
    let registered: Vec<_> = status.registered.iter().map(|it| it.address.clone()).collect();
    assert_eq!(registered, addresses);
    let StoreStatus::Etcd(members) = &status.store else { panic!("{status:?}") };
    let answer = members[0].answer.as_ref().expect("it answers");
    assert!(answer.leads && answer.db_bytes > 0 && members[0].problem.is_none(), "{members:?}");

    let refused = submit(&second, 1, "a.service").await.expect_err("it does not lead");
    assert!(is_not_leading(&refused), "{refused}");
    assert_eq!(leader_of(&refused), Some(address));
    let done = submit(&first, 1, "a.service").await.expect("it leads").expect("it is done");

    // The leader ends as it should: another leads at once, and finds the result of the command.
    first.shutdown().await.expect("shutdown");
    let status = describes(&second, "it leads", leads).await;
    assert_eq!(status.term.0, 2);
    assert_eq!(submit(&second, 1, "a.service").await.expect("it leads").expect("it is done"), done);
    second.shutdown().await.expect("shutdown");
    assert_eq!(etcd.ctl(&["get", "--prefix", "/muster/schedulers/"]), "", "nothing is left of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_steps_down_where_another_can_lead() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(1, &[])).await.expect("etcd");
    let first = start(&etcd, directory.path(), "first").await;
    describes(&first, "it leads", leads).await;
    let refused = step_down(&first, 1).await.expect_err("nobody else could lead");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let second = start(&etcd, directory.path(), "second").await;
    describes(&second, "it follows", |status| status.role == SchedulerRole::Following).await;
    let refused = step_down(&second, 1).await.expect_err("it does not lead");
    assert_eq!(leader_of(&refused), Some(first.address().to_string()), "{refused}");
    let refused = step_down(&first, 7).await.expect_err("not in that term");
    assert!(is_not_leading(&refused), "{refused}");
    step_down(&first, 1).await.expect("it steps down");
    let status = describes(&second, "it leads", leads).await;
    assert_eq!(status.term.0, 2);
    describes(&first, "it follows", |status| status.role == SchedulerRole::Following).await;
    submit(&second, 2, "a.service").await.expect("it leads").expect("it is done");
    first.shutdown().await.expect("shutdown");
    second.shutdown().await.expect("shutdown");
}

/// `musterctl schedulers` waits for 5 s: what stands still is described, however many members do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_describes_itself_where_all_of_etcd_stands_still() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(3, &[])).await.expect("etcd");
    let first = start(&etcd, directory.path(), "first").await;
    describes(&first, "it leads", leads).await;
    (0..3).for_each(|member| etcd.signal(member, Signal::STOP));
    let silent = |status: &SchedulerStatus| match &status.store {
        StoreStatus::Etcd(members) => {
            members.len() == 3 && members.iter().all(|it| it.answer.is_none() && it.problem.is_some())
        }
        StoreStatus::Embedded => false,
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    // What was asked before they stood still may be answered.
    let described = loop {
        let described = tokio::time::timeout(Duration::from_secs(5), describe(&first)).await;
        if described.as_ref().map_or(true, silent) || Instant::now() > deadline {
            break described;
        }
    };
    (0..3).for_each(|member| etcd.signal(member, Signal::CONT));
    let described = described.expect("it answers in time");
    assert!(silent(&described), "{described:?}");
    first.shutdown().await.ok();
}

/// Who is under way when its leader is cut off from etcd is not kept for as long as that lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_leader_in_doubt_is_sent_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(1, &[])).await.expect("etcd");
    let first = start(&etcd, directory.path(), "first").await;
    describes(&first, "it leads", leads).await;
    etcd.signal(0, Signal::STOP);
    let waits = tokio::time::timeout(Duration::from_secs(60), submit(&first, 1, "a.service")).await;
    etcd.signal(0, Signal::CONT);
    let error = waits.expect("it is answered").expect_err("nothing is written");
    assert_eq!((error.code(), is_not_leading(&error)), (Code::Unavailable, false), "{error}");
    assert_snapshot!(error.message(), @"this scheduler hears nothing of its store, and another one may lead; whether a command was carried out, its repetition will tell");
    describes(&first, "it leads again", leads).await;
    submit(&first, 1, "a.service").await.expect("it leads").expect("it is done");
    first.shutdown().await.expect("shutdown");
}

/// Who steps down says so once nothing is in the way of another one, and else what is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_say_that_it_steps_down_does_not_claim_that() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(1, &[])).await.expect("etcd");
    let proxy = tokio::task::block_in_place(|| Proxy::new(&etcd));
    let first = Daemon::start(&on_etcd(proxy.endpoints(), directory.path(), "first")).await.expect("start");
    describes(&first, "it leads", leads).await;
    let second = start(&etcd, directory.path(), "second").await;
    describes(&second, "it follows", |status| status.role == SchedulerRole::Following).await;
    let is_asked = |transaction: &_| deletes(transaction, "/muster/leader");
    proxy.rules(move |transaction| {
        if is_asked(transaction) { Fate::Refused(Status::unavailable("lost")) } else { Fate::Answered }
    });
    let error = step_down(&first, 1).await.expect_err("it has not");
    assert_eq!((error.code(), is_not_leading(&error)), (Code::Unavailable, false), "{error}");
    let text = error.message().replace(&proxy.endpoints()[0], "ETCD");
    assert_snapshot!(text, @"it leads no more, but etcd could not be told so (ETCD: lost): another scheduler is elected once its election is over there");
    // It finds its old key, and ends its election in another way: with its lease, so that it is registered anew.
    let both = |status: &SchedulerStatus| status.registered.len() == 2;
    describes(&second, "it leads", |status| leads(status) && status.term.0 == 2 && both(status)).await;
    step_down(&second, 2).await.expect("it steps down");
    describes(&first, "it leads", |status| leads(status) && status.term.0 == 3).await;
    // An answer that is lost is asked for again.
    let lost = AtomicBool::new(false);
    proxy.rules(move |transaction| {
        let loses = is_asked(transaction) && !lost.swap(true, Ordering::AcqRel);
        if loses { Fate::Done(Status::unavailable("lost")) } else { Fate::Answered }
    });
    step_down(&first, 3).await.expect("it steps down");
    describes(&second, "it leads", |status| leads(status) && status.term.0 == 4).await;
    first.shutdown().await.expect("shutdown");
    second.shutdown().await.expect("shutdown");
    tokio::task::block_in_place(|| drop(proxy));
}

/// Whose streams end with a leader that was overtaken is told who leads now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_deposed_leader_end_with_who_leads() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(1, &[])).await.expect("etcd");
    let first = start(&etcd, directory.path(), "first").await;
    describes(&first, "it leads", leads).await;
    let second = start(&etcd, directory.path(), "second").await;
    describes(&second, "it follows", |status| status.role == SchedulerRole::Following).await;
    let mut client = MusterClient::new(channel(&first));
    let watch = client.watch_units(v1::WatchRequest { names: vec!["a.service".to_owned()] }).await;
    let mut watch = watch.expect("it leads").into_inner();
    watch.message().await.expect("it leads").expect("the unit as it is");
    let events = v1::EventsRequest { follow: true, ..Default::default() };
    let mut events = client.events(events).await.expect("it leads").into_inner();
    let mut agent = AgentsClient::new(channel(&first));
    let mut session = agent.session(tokio_stream::pending()).await.expect("it leads").into_inner();

    tokio::task::block_in_place(|| etcd.ctl(&["del", "/muster/leader"]));
    let address = Some(second.address().to_string());
    let ended = watch.message().await.expect_err("it leads no more");
    assert_eq!(leader_of(&ended), address, "{ended}");
    let ended = loop {
        if let Err(ended) = events.message().await {
            break ended;
        }
    };
    assert_eq!(leader_of(&ended), address, "{ended}");
    let ended = session.message().await.expect_err("it leads no more");
    assert_eq!(leader_of(&ended), address, "{ended}");
    let refused = submit(&first, 1, "a.service").await.expect_err("it does not lead");
    assert!(is_not_leading(&refused), "{refused}");
    first.shutdown().await.expect("shutdown");
    // One that stops says nothing of others.
    let mut session = AgentsClient::new(channel(&second));
    describes(&second, "it leads", leads).await;
    let mut session = session.session(tokio_stream::pending()).await.expect("it leads").into_inner();
    second.shutdown().await.expect("shutdown");
    assert!(session.message().await.expect("no error").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_stopped_while_it_takes_its_term_leaves_nothing_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(1, &[])).await.expect("etcd");
    let proxy = tokio::task::block_in_place(|| Proxy::new(&etcd));
    // Not the one that makes the cluster.
    proxy.rules(|transaction| {
        let begins = writes(transaction, "/muster/term") && !writes(transaction, "/muster/cluster");
        if begins { Fate::Waits } else { Fate::Answered }
    });
    let first = Daemon::start(&on_etcd(proxy.endpoints(), directory.path(), "first")).await.expect("start");
    let leader = || tokio::task::block_in_place(|| etcd.ctl(&["get", "/muster/leader"]));
    tokio::task::block_in_place(|| {
        wait_for("its term to be asked for", || (proxy.waiting() > 0).then_some(()), leader);
    });
    assert_ne!(leader(), "", "it is elected");
    let stopped = tokio::time::timeout(Duration::from_secs(30), first.shutdown()).await;
    stopped.expect("it ends").expect("and well");
    assert_eq!(leader(), "");
    // Neither its election nor what was on its way is in the way of the next one.
    proxy.rules(|_| Fate::Answered);
    let second = start(&etcd, directory.path(), "second").await;
    let status = describes(&second, "it leads", leads).await;
    assert_eq!(status.term.0, 1);
    second.shutdown().await.expect("shutdown");
    // The runtime of its own ends where nothing waits for it.
    tokio::task::block_in_place(|| drop(proxy));
}

#[tokio::test]
async fn files_that_are_not_what_they_should_be_or_are_others_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    // None of this needs etcd.
    let one = on_etcd(vec!["http://127.0.0.1:1".to_owned()], directory.path(), "one");
    let other = on_etcd(vec!["http://127.0.0.1:1".to_owned()], directory.path(), "other");
    let refused = async |config: &Config| {
        let error = Daemon::start(config).await.expect_err("it is refused");
        error.to_string().replace(&directory.path().display().to_string(), "DIR")
    };
    let running = Daemon::start(&one).await.expect("start");
    let same_state = Config { state_dir: one.state_dir.clone(), ..other.clone() };
    assert_snapshot!(refused(&same_state).await, @"DIR/one-state is in use by another process: is another muster-scheduler running on this directory?");
    let same_run = Config { runtime_dir: one.runtime_dir.clone(), ..other.clone() };
    assert_snapshot!(refused(&same_run).await, @"DIR/one-run is in use by another process: is another muster-scheduler running on this directory?");
    let own_store = Config { etcd: None, ..same_run };
    assert_snapshot!(refused(&own_store).await, @"DIR/one-run is in use by another process: is another muster-scheduler running on this directory?");
    running.shutdown().await.expect("shutdown");
    std::fs::create_dir_all(&other.state_dir).expect("a directory");
    std::fs::write(other.state_dir.join("cluster"), "0123").expect("written");
    assert_snapshot!(refused(&other).await, @"DIR/other-state/cluster names no cluster; remove it if `prefix` and `endpoints` are those of this scheduler's cluster");
}
