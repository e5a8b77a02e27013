//! The scheduler in this process, over gRPC.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use muster_core::command::{
    ClusterStatus, Command, CommandError, CommandResult, CopyRole, Done, UnitArgument, UnitErrorKind,
    UnitOutcome, UnitStatus, Verb,
};
use muster_core::ids::{AgentKey, BootId, ClusterId, CommandId, MachineId, SessionNumber, Term};
use muster_core::machine::{Capacity, Labels, MachineState};
use muster_core::message::{
    FromAgent, HeldUnit, Hello, LeaderMessage, Refused, ReportedChange, ToAgent, UnitReport,
};
use muster_core::state::{DesiredState, Observation};
use muster_core::unit::{Bytes, MilliCpu, UnitName};
use muster_proto::v1::muster_client::MusterClient;
use muster_proto::{MAX_MESSAGE_BYTES, PART_BYTES, ToAgentParts, split_from_agent, v1};
use muster_scheduler::config::Config;
use muster_scheduler::daemon::Daemon;
use muster_test_etcd::Etcd;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use self::common::agent::{Agent, PATIENCE, beat, channel, running};

const FILE: &str = "[Unit]\nDescription=A test\n[Service]\nExecStart=/bin/sleep infinity\n";

async fn start(state: &Path) -> Daemon {
    let config = Config {
        listen: "127.0.0.1:0".parse().expect("an address"),
        state_dir: state.to_owned(),
        ..Config::default()
    };
    Daemon::start(&config).await.expect("start")
}

#[derive(Clone)]
struct Client(MusterClient<Channel>);

impl Client {
    fn new(daemon: &Daemon) -> Self {
        Self(MusterClient::new(channel(daemon)).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    async fn execute(&mut self, id: u128, verb: Verb, units: &[(&str, Option<&str>)]) -> CommandResult {
        let unit = |(name, content): &(&str, Option<&str>)| UnitArgument {
            name: unit_name(name),
            content: content.map(Into::into),
        };
        let units = units.iter().map(unit).collect();
        let command = Command { id: CommandId::new(id), verb, units, replace: false };
        let response = self.0.execute(v1::CommandRequest::from(command)).await.expect("an answer");
        CommandResult::try_from(response.into_inner()).expect("a result")
    }

    /// 2,000 units of 3 kB each; gives their content.
    async fn execute_many(&mut self, verb: Verb) -> (String, Vec<UnitOutcome>) {
        let content = format!("{FILE}# {}\n", "x".repeat(3000));
        let names: Vec<_> = (0..2000).map(|number| format!("unit-{number}.service")).collect();
        let units: Vec<_> = names.iter().map(|name| (name.as_str(), Some(content.as_str()))).collect();
        let outcomes = self.execute(1, verb, &units).await.expect("done");
        (content, outcomes)
    }

    async fn units(&mut self, content: bool) -> BTreeMap<UnitName, UnitStatus> {
        let request = v1::UnitsRequest { content, ..Default::default() };
        let mut parts = self.0.list_units(request).await.expect("an answer").into_inner();
        let mut units = BTreeMap::new();
        while let Some(part) = parts.message().await.expect("a part") {
            for unit in part.units {
                let unit = UnitStatus::try_from(unit).expect("a status");
                units.insert(unit.name.clone(), unit);
            }
        }
        units
    }

    async fn machines(&mut self) -> ClusterStatus {
        let status =
            self.0.list_machines(v1::MachinesRequest::default()).await.expect("an answer").into_inner();
        ClusterStatus::try_from(status).expect("a status")
    }

    async fn backup(&mut self) -> Vec<u8> {
        let mut parts = self.0.backup(v1::BackupRequest {}).await.expect("an answer").into_inner();
        let mut backup = Vec::new();
        while let Some(part) = parts.message().await.expect("a part") {
            assert!(part.content.len() <= PART_BYTES);
            backup.extend_from_slice(&part.content);
        }
        backup
    }

    async fn restore(&mut self, backup: &[u8]) -> Result<(), Status> {
        let parts: Vec<_> =
            backup.chunks(PART_BYTES).map(|part| v1::RestorePart { content: part.to_vec().into() }).collect();
        self.0.restore(tokio_stream::iter(parts)).await.map(drop)
    }

    /// Waits until a scheduler leads.
    async fn led(&mut self) -> ClusterStatus {
        let mut last = None;
        let leads = async {
            loop {
                match self.0.list_machines(v1::MachinesRequest::default()).await {
                    Ok(status) => return ClusterStatus::try_from(status.into_inner()).expect("a status"),
                    Err(status) => last = Some(status),
                }
                tokio::task::yield_now().await;
            }
        };
        let led = timeout(PATIENCE, leads).await;
        led.unwrap_or_else(|_| panic!("waited in vain for a leader: {last:?}"))
    }

    async fn watch(&mut self, names: &[&str]) -> Watch {
        let names = names.iter().map(ToString::to_string).collect();
        Watch(self.0.watch_units(v1::WatchRequest { names }).await.expect("an answer").into_inner())
    }
}

struct Watch(Streaming<v1::WatchPart>);

impl Watch {
    async fn next(&mut self) -> v1::WatchPart {
        let part = timeout(PATIENCE, self.0.message()).await.expect("something is told in time");
        part.expect("no error").expect("the stream goes on")
    }

    /// Waits until the unit is as `done` says.
    async fn until(&mut self, what: &str, done: impl Fn(&UnitStatus) -> bool) {
        let mut last = None;
        let wait = async {
            loop {
                for unit in self.next().await.units {
                    let unit = UnitStatus::try_from(unit).expect("a status");
                    if done(&unit) {
                        return;
                    }
                    last = Some(unit);
                }
            }
        };
        assert!(timeout(PATIENCE, wait).await.is_ok(), "waited in vain for {what}: {last:?}");
    }
}

fn unit_name(name: &str) -> UnitName {
    name.parse().expect("a name")
}

/// What a machine keeps while schedulers come and go.
#[derive(Default)]
struct Machine {
    cluster: Option<ClusterId>,
    term: Term,
    sessions: u64,
    units: Vec<HeldUnit>,
}

impl Machine {
    /// Presents itself. A leader that takes it must leave all that it holds alone.
    async fn joins(&mut self, daemon: &Daemon) -> Result<Agent, Refused> {
        let mut agent = Agent::dial(daemon).await;
        self.sessions += 1;
        agent
            .say(FromAgent::Hello(Hello {
                cluster: self.cluster,
                machine: MachineId::new(7),
                boot: BootId::new(7),
                key: AgentKey::new(7),
                session: SessionNumber(self.sessions),
                term: self.term,
                address: "198.18.0.7".to_owned(),
                labels: Labels::new(),
                capacity: Capacity { cpu: MilliCpu(2000), memory: Bytes(1 << 30) },
                version: "0.1.0".to_owned(),
                pid1_age: Duration::ZERO,
                leaving: false,
                streams: None,
                units: self.units.clone(),
            }))
            .await;
        let said = agent.hear().await.expect("an answer");
        match said.body {
            LeaderMessage::Welcome(welcome) => {
                assert!(said.term > self.term, "term {} after term {}", said.term, self.term);
                (self.cluster, self.term) = (Some(welcome.cluster), said.term);
            }
            LeaderMessage::Refused(refused) => return Err(refused),
            other => panic!("{other:?}"),
        }
        agent.say(beat(1)).await;
        Ok(agent)
    }

    /// Waits until it is told to hold what it does not, and says that it runs; what it holds it keeps as it is.
    async fn runs_more(&mut self, agent: &mut Agent) {
        loop {
            let said = agent.hear().await.expect("the session goes on");
            let LeaderMessage::Assignments(assignments) = said.body else { continue };
            assert_eq!(assignments.remove, []);
            let known = self.units.len();
            for hold in assignments.hold {
                if let Some(unit) = self.units.iter().find(|unit| unit.name == hold.name) {
                    assert_eq!((unit.epoch, unit.target), (hold.epoch, hold.target), "{}", hold.name);
                    continue;
                }
                let latest = self.units.iter().map(|unit| unit.epoch).max();
                assert!(Some(hold.epoch) > latest, "{}: {} after {latest:?}", hold.name, hold.epoch);
                let unit = HeldUnit {
                    name: hold.name.clone(),
                    epoch: hold.epoch,
                    hash: hold.hash,
                    target: hold.target,
                    observation: running(),
                };
                self.units.push(unit);
                let change = ReportedChange::Observed(running());
                let report = UnitReport { name: hold.name, epoch: hold.epoch, change };
                agent.say(FromAgent::Report(vec![report])).await;
            }
            if self.units.len() > known {
                return;
            }
        }
    }
}

fn is_running(unit: &UnitStatus) -> bool {
    unit.copies.iter().any(|copy| {
        matches!(&copy.observation, Some(Observation::Held { state: Some(state), .. }) if state.sub == "running")
    })
}

#[tokio::test]
async fn what_was_submitted_is_there_after_a_restart() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut client = Client::new(&daemon);
    let outcome = client.execute(1, Verb::Start, &[("web.service", Some(FILE))]).await.expect("done");
    assert_eq!(outcome[0].done, Done::Created);
    let cluster = client.machines().await;
    assert_eq!(cluster.term, Term(1));
    drop(client);
    daemon.shutdown().await.expect("a clean shutdown");

    let daemon = start(state.path()).await;
    let mut client = Client::new(&daemon);
    let units = client.units(true).await;
    let unit = &units[&unit_name("web.service")];
    assert_eq!((unit.content.as_deref(), unit.desired), (Some(FILE), DesiredState::Launched));
    assert_eq!(unit.description, "A test");
    let again = client.execute(1, Verb::Start, &[("web.service", Some(FILE))]).await.expect("done");
    assert_eq!(again, outcome, "the repetition of a command finds its result");
    let now = client.machines().await;
    assert_eq!((now.cluster, now.term), (cluster.cluster, Term(2)));
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn many_units_pass_in_one_command_and_one_list() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut client = Client::new(&daemon);
    // More than gRPC's usual 4 MiB in both directions.
    let (content, outcomes) = client.execute_many(Verb::Submit).await;
    assert!(outcomes.iter().all(|outcome| outcome.done == Done::Created));
    let listed = client.units(true).await;
    assert_eq!(listed.len(), 2000);
    assert!(listed.values().all(|unit| unit.content.as_deref() == Some(&content)));
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn bad_input_changes_nothing() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut client = Client::new(&daemon);

    let units = [("good.service", Some(FILE)), ("bad.service", Some("no section\n"))];
    let error = client.execute(1, Verb::Submit, &units).await.expect_err("refused");
    assert_eq!(error.to_string(), "bad.service: unit file has no section, such as [Unit] or [Service]");
    let error = client.execute(2, Verb::Start, &[("unknown.service", None)]).await.expect_err("refused");
    let CommandError::Units(errors) = error else { panic!("{error:?}") };
    assert_eq!(errors[0].kind, UnitErrorKind::NotFound);

    let command = |units| v1::CommandRequest {
        id: vec![0; 16].into(),
        verb: v1::Verb::Submit.into(),
        units,
        replace: false,
    };
    let argument = |name: &str, content: &[u8]| v1::UnitArgument {
        name: name.to_owned(),
        content: Some(content.to_vec().into()),
    };
    let binary = command(vec![argument("binary.service", b"[Service]\n\xff\xfe")]);
    let response = client.0.execute(binary).await.expect("an answer").into_inner();
    let error = CommandResult::try_from(response).expect("a result").expect_err("refused");
    assert_eq!(error.to_string(), "binary.service: line 2: unit file is not valid UTF-8");

    let nameless = command(vec![argument("web", FILE.as_bytes())]);
    let status = client.0.execute(nameless).await.expect_err("malformed");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "units[0].name: \"web\": unit name must contain \".\"");

    assert!(client.units(false).await.is_empty());
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn an_agent_gets_its_units_and_watchers_see_them_run() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut client = Client::new(&daemon);
    let mut watch = client.watch(&["web.service", "other.service"]).await;
    let present = watch.next().await;
    assert_eq!((present.units.len(), present.present), (0, true));
    assert_eq!(present.unknown, ["other.service", "web.service"]);

    let mut agent = Agent::dial(&daemon).await;
    agent.hello(7).await;
    client.execute(1, Verb::Start, &[("web.service", Some(FILE))]).await.expect("done");
    assert_eq!(agent.run(FILE).await, unit_name("web.service"));
    watch.until("web.service to run", is_running).await;

    let status = client.machines().await;
    assert_eq!(status.machines.len(), 1);
    assert_eq!(status.machines[0].state, MachineState::Up);
    assert_eq!((status.machines[0].record.address.as_str(), status.machines[0].units), ("198.18.0.7", 1));

    // A unit that is destroyed is told too: first that its copy stops, then, once it has, that it is gone.
    client.execute(2, Verb::Destroy, &[("web.service", None)]).await.expect("done");
    watch.until("web.service to be forgotten", |unit| !unit.known).await;
    let removal = loop {
        let said = agent.hear().await.expect("the session goes on");
        let LeaderMessage::Assignments(assignments) = said.body else { continue };
        if let Some(removal) = assignments.remove.into_iter().next() {
            break removal;
        }
    };
    let report = UnitReport { name: removal.name, epoch: removal.epoch, change: ReportedChange::Gone };
    agent.say(FromAgent::Report(vec![report])).await;
    while watch.next().await.unknown.is_empty() {}
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn a_message_that_makes_no_sense_ends_the_session() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut agent = Agent::dial(&daemon).await;
    let empty = v1::Hello::default();
    let message = v1::AgentMessage { body: Some(v1::agent_message::Body::Hello(empty)) };
    agent.to_leader.send(message).await.expect("the session is open");
    let status =
        timeout(PATIENCE, agent.from_leader.message()).await.expect("an answer").expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "hello.machine: 0 bytes where 16 are expected");
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn heartbeats_pass_by_all_else_and_end_with_their_session() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut client = Client::new(&daemon);
    // Far more than the agent's end of the stream takes unread.
    client.execute_many(Verb::Start).await;
    let mut agent = Agent::dial(&daemon).await;
    agent.hello(7).await;

    let (to_leader, mut acks) = Agent::heartbeats(&daemon, agent.key.clone()).await.expect("its key");
    for number in 1..=3 {
        for part in split_from_agent(beat(number)) {
            to_leader.send(part).await.expect("the stream is open");
        }
        let ack = timeout(PATIENCE, acks.message()).await.expect("answered in time").expect("no error");
        let said = ToAgentParts::default().push(ack.expect("an answer")).expect("it makes sense");
        assert_eq!(said.expect("whole").body, LeaderMessage::HeartbeatAck { number });
    }
    let twice = Agent::heartbeats(&daemon, agent.key.clone()).await.expect_err("it has one");
    assert_eq!(twice.code(), Code::NotFound);
    let other = Agent::heartbeats(&daemon, "1.of-another".parse().unwrap()).await.expect_err("not its key");
    assert_eq!(other.code(), Code::NotFound);

    // Either ends with the other.
    drop(agent);
    let end = timeout(PATIENCE, acks.message()).await.expect("it ends in time");
    assert!(end.is_ok_and(|more| more.is_none()));
    let mut agent = Agent::dial(&daemon).await;
    let (to_leader, acks) = Agent::heartbeats(&daemon, agent.key.clone()).await.expect("its key");
    drop((to_leader, acks));
    assert!(agent.hear().await.is_none());
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn a_silent_machine_whose_host_answers_is_shown_as_such() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut client = Client::new(&daemon);
    // Its address is this machine's.
    let mut agent = Agent::dial(&daemon).await;
    agent.hello_from(7, "127.0.0.1").await;
    let answers = async {
        while client.machines().await.machines[0].host_answers != Some(true) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, answers).await.expect("it is lost, and its host is asked, in time");
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn a_newer_session_ends_the_older_one() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut first = Agent::dial(&daemon).await;
    first.hello(7).await;
    let mut second = Agent::dial(&daemon).await;
    let hello = async {
        second
            .say(FromAgent::Hello(Hello {
                cluster: None,
                machine: MachineId::new(7),
                boot: BootId::new(7),
                key: AgentKey::new(7),
                session: SessionNumber(2),
                term: Term(0),
                address: String::new(),
                labels: Labels::new(),
                capacity: Capacity::default(),
                version: String::new(),
                pid1_age: Duration::ZERO,
                leaving: false,
                streams: None,
                units: Vec::new(),
            }))
            .await;
    };
    hello.await;
    while let Some(said) = first.hear().await {
        assert!(matches!(said.body, LeaderMessage::Assignments(_) | LeaderMessage::Refused(_)), "{said:?}");
    }
    assert!(matches!(second.hear().await, Some(ToAgent { body: LeaderMessage::Welcome(_), .. })));
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn a_shutdown_ends_every_stream() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut agent = Agent::dial(&daemon).await;
    agent.hello(7).await;
    let mut watch = Client::new(&daemon).watch(&["web.service"]).await;
    watch.next().await;
    let follow = v1::EventsRequest { follow: true, ..Default::default() };
    let mut events = Client::new(&daemon).0.events(follow).await.expect("an answer").into_inner();
    let told =
        timeout(PATIENCE, events.message()).await.expect("in time").expect("no error").expect("events");
    assert_eq!(told.events[0].kind, "leader_took_office");
    timeout(PATIENCE, daemon.shutdown()).await.expect("it ends").expect("a clean shutdown");
    while agent.hear().await.is_some() {}
    let status = watch.0.message().await.expect_err("an ended watch");
    assert_eq!(status.code(), Code::Unavailable);
    let status = loop {
        match events.message().await {
            Ok(part) => assert!(part.is_some(), "it ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_store_in_use_is_an_error() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let config = Config {
        listen: "127.0.0.1:0".parse().expect("an address"),
        state_dir: state.path().to_owned(),
        ..Config::default()
    };
    let error = Daemon::start(&config).await.expect_err("in use");
    assert!(error.to_string().contains("is in use by another process"), "{error:#}");
    let config = Config { listen: daemon.address(), ..config };
    let error = Daemon::start(&config).await.expect_err("in use");
    assert_eq!(
        format!("{error:#}"),
        format!("cannot listen on {}: Address already in use (os error 98)", daemon.address())
    );
    daemon.shutdown().await.expect("a clean shutdown");
}

/// The machine knows nothing of all that: it is refused for a while, runs on, and is taken up again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_to_etcd_and_back_and_its_units_run_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(1, &[])).await.expect("etcd");
    let config = |name: &str, etcd| Config {
        listen: "127.0.0.1:0".parse().expect("an address"),
        state_dir: directory.path().join(name),
        etcd,
        ..Config::default()
    };
    let in_etcd = muster_scheduler::config::Etcd {
        endpoints: etcd.endpoints(),
        prefix: "/muster/".to_owned(),
        ca: None,
        cert: None,
        key: None,
        user: None,
        password_file: None,
    };
    let places = [config("first", None), config("second", Some(in_etcd)), config("third", None)];
    let mut machine = Machine::default();
    let mut daemon = Daemon::start(&places[0]).await.expect("start");
    let mut client = Client::new(&daemon);
    let cluster = client.led().await.cluster;
    let mut agent = machine.joins(&daemon).await.expect("it joins");
    client.execute(1, Verb::Start, &[("first.service", Some(FILE))]).await.expect("done");
    machine.runs_more(&mut agent).await;
    for (id, place) in (2..).zip(&places[1..]) {
        let backup = client.backup().await;
        let later = format!("later-{id}.service");
        client.execute(10 * id, Verb::Start, &[(&later, Some(FILE))]).await.expect("done");
        machine.runs_more(&mut agent).await;
        daemon.shutdown().await.expect("a clean shutdown");

        daemon = Daemon::start(place).await.expect("start");
        client = Client::new(&daemon);
        assert_ne!(client.led().await.cluster, cluster);
        let refused = machine.joins(&daemon).await.err();
        assert!(matches!(refused, Some(Refused::OtherCluster { .. })), "{refused:?}");
        let error = client.restore(&backup[..backup.len() - 1]).await.expect_err("it is cut off");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        client.restore(&backup).await.expect("restored");
        assert_eq!(client.led().await.cluster, cluster);
        let error = client.restore(&backup).await.expect_err("it is not empty");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        // The same scheduler finds it again.
        daemon.shutdown().await.expect("a clean shutdown");
        daemon = Daemon::start(place).await.expect("start");
        client = Client::new(&daemon);
        client.led().await;

        agent = machine.joins(&daemon).await.expect("it is taken up");
        let next = format!("next-{id}.service");
        client.execute(10 * id + 1, Verb::Start, &[(&next, Some(FILE))]).await.expect("done");
        machine.runs_more(&mut agent).await;
        let units = client.units(false).await;
        let roles =
            |name: &str| units[&unit_name(name)].copies.iter().map(|copy| copy.role).collect::<Vec<_>>();
        assert_eq!(roles(&later), [CopyRole::Orphaned]);
        assert_eq!(roles("first.service"), [CopyRole::Current]);
    }
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn a_large_backup_passes_both_ways() {
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let (content, _) = Client::new(&daemon).execute_many(Verb::Submit).await;
    let backup = Client::new(&daemon).backup().await;
    daemon.shutdown().await.expect("a clean shutdown");
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    let mut client = Client::new(&daemon);
    client.restore(&backup).await.expect("restored");
    client.led().await;
    let listed = client.units(true).await;
    assert_eq!(listed.len(), 2000);
    assert!(listed.values().all(|unit| unit.content.as_deref() == Some(&content)));
    // It is the same again but for what is said of it: when it was made, and in which term.
    let records = |backup: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(backup);
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[1..lines.len() - 1].to_vec()
    };
    assert!(records(&client.backup().await) == records(&backup));
    daemon.shutdown().await.expect("a clean shutdown");
}

/// A disk without room for it leaves the empty cluster as it was, and the scheduler leads on.
#[tokio::test]
async fn a_backup_for_which_there_is_no_room_is_refused() {
    if !common::in_own_mounts("a_backup_for_which_there_is_no_room_is_refused") {
        return;
    }
    let state = tempfile::tempdir().expect("a directory");
    let daemon = start(state.path()).await;
    Client::new(&daemon).execute_many(Verb::Submit).await;
    let backup = Client::new(&daemon).backup().await;
    daemon.shutdown().await.expect("a clean shutdown");
    let directory = tempfile::tempdir().expect("a directory");
    common::mount_tmpfs(directory.path(), 8 * 1024);
    let daemon = start(&directory.path().join("state")).await;
    let mut client = Client::new(&daemon);
    let before = client.machines().await;
    let error = client.restore(&backup).await.expect_err("no room");
    assert_eq!(error.code(), Code::Aborted, "{error}");
    assert!(error.message().contains("No space left on device"), "{error}");
    assert_eq!(client.machines().await, before);
    let outcome = client.execute(5, Verb::Submit, &[("small.service", Some(FILE))]).await.expect("done");
    assert_eq!(outcome[0].done, Done::Created);
    daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn a_full_disk_refuses_commands_and_answers_questions() {
    if !common::in_own_mounts("a_full_disk_refuses_commands_and_answers_questions") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    common::mount_tmpfs(directory.path(), 8 * 1024);
    let ballast = directory.path().join("ballast");
    fs::write(&ballast, vec![0; 4 * 1024 * 1024]).expect("ballast");
    let state = directory.path().join("state");
    let daemon = start(&state).await;
    let mut client = Client::new(&daemon);
    client.execute(1, Verb::Submit, &[("small.service", Some(FILE))]).await.expect("there is room");

    let content = format!("{FILE}# {}\n", "x".repeat(500_000));
    let names: Vec<_> = (0..16).map(|number| format!("large-{number}.service")).collect();
    let large: Vec<_> = names.iter().map(|name| (name.as_str(), Some(content.as_str()))).collect();
    for id in 2..5 {
        let error = client.execute(id, Verb::Submit, &large).await.expect_err("no room");
        let expected = format!(
            "nothing was changed: the scheduler cannot write to its store: {}: No space left on device (os error 28): \
             make room on that file system",
            state.join("muster.redb").display()
        );
        assert_eq!(error.to_string(), expected);
        let units = client.units(true).await;
        assert_eq!(units.keys().map(UnitName::as_str).collect::<Vec<_>>(), ["small.service"]);
    }

    fs::remove_file(&ballast).expect("remove");
    client.execute(6, Verb::Submit, &large[..4]).await.expect("there is room again");
    daemon.shutdown().await.expect("a clean shutdown");
    let daemon = start(&state).await;
    assert_eq!(Client::new(&daemon).units(false).await.len(), 5);
    daemon.shutdown().await.expect("a clean shutdown");
}
