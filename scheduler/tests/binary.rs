//! The program itself: exit codes, signals, the service manager.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use muster_core::command::{CommandResult, UnitArgument, Verb};
use muster_core::ids::CommandId;
use muster_proto::v1::muster_client::MusterClient;
use muster_proto::{MAX_MESSAGE_BYTES, v1};
use muster_scheduler::config::DEFAULT_PATH;
use muster_test_etcd::wait_for;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-scheduler"));
    command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").stderr(Stdio::piped());
    command
}

/// A running scheduler; it is killed when this is dropped.
struct Scheduler {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    address: String,
}

impl Scheduler {
    /// Starts one on a port of the kernel's choice.
    fn start(directory: &Path, adjust: impl FnOnce(&mut Command)) -> Self {
        let config = directory.join("scheduler.toml");
        let state = directory.join("state");
        fs::write(&config, format!("listen = \"127.0.0.1:0\"\nstate_dir = \"{}\"\n", state.display()))
            .expect("write");
        let mut command = program();
        command.arg("--config").arg(&config);
        adjust(&mut command);
        let mut child = command.spawn().expect("start");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take().expect("a pipe");
        let kept = Arc::clone(&log);
        std::thread::spawn(move || keep(stderr, &kept));
        let find = || {
            let lines = log.lock().expect("lock");
            let line = lines.iter().find(|line| line.contains("leading"))?;
            Some(line.split_once("address=")?.1.split(' ').next()?.to_owned())
        };
        let shown = || format!("{:?}", log.lock().expect("lock"));
        let address = wait_for("the scheduler to lead", find, shown);
        Self { child, log, address }
    }

    fn client(&self) -> MusterClient<Channel> {
        let channel = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        MusterClient::new(channel.connect_lazy()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("kill");
    }

    fn wait(&mut self) -> ExitStatus {
        let log = Arc::clone(&self.log);
        let child = &mut self.child;
        wait_for(
            "the scheduler to end",
            || child.try_wait().expect("wait"),
            || format!("{:?}", log.lock().expect("lock")),
        )
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn keep(stderr: ChildStderr, log: &Mutex<Vec<String>>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        log.lock().expect("lock").push(line);
    }
}

fn command(number: usize) -> v1::CommandRequest {
    let unit = UnitArgument {
        name: format!("unit-{number}.service").parse().expect("a name"),
        content: Some("[Service]\nExecStart=/bin/true\n".into()),
    };
    let id = CommandId::new(number as u128 + 1);
    muster_core::command::Command { id, verb: Verb::Start, units: vec![unit], replace: false }.into()
}

async fn names(client: &mut MusterClient<Channel>) -> Vec<String> {
    let mut parts = client.list_units(v1::UnitsRequest::default()).await.expect("an answer").into_inner();
    let mut names = Vec::new();
    while let Some(part) = parts.message().await.expect("a part") {
        names.extend(part.units.into_iter().map(|unit| unit.name));
    }
    names
}

fn checked(config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("scheduler.toml");
    fs::write(&path, config).expect("write");
    let output = program().arg("--config").arg(&path).args(arguments).output().expect("run");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said.replace(&directory.path().display().to_string(), "DIR"))
}

#[test]
fn a_configuration_can_be_checked() {
    assert_eq!(checked("", &["--check-config"]), (Some(0), "DIR/scheduler.toml: ok\n".to_owned()));
    let (code, said) = checked("\nlisten_ = \"127.0.0.1:1\"\n", &["--check-config"]);
    assert_eq!(code, Some(64));
    assert_snapshot!(said, @r#"muster-scheduler: DIR/scheduler.toml:2: unknown option "listen_"; did you mean "listen"?"#);
    // Without --check-config a wrong file is no less wrong.
    assert_eq!(checked("lease_ttl = \"1s\"", &[]).0, Some(64));
    let (code, said) = checked("", &["--check-config", "--insecure-listen", "192.0.2.1:7400"]);
    assert_eq!(code, Some(64));
    assert_snapshot!(said, @r"
    error: invalid value '192.0.2.1:7400' for '--insecure-listen <ADDRESS:PORT>': every agent and client that reaches the address could command the cluster, since mutual TLS does not exist yet; a loopback address is allowed, and one in 198.18.0.0/15, the network set aside for tests by RFC 2544

    For more information, try '--help'.
    ");
    assert_eq!(checked("", &["--check-config", "--insecure-listen", "198.18.0.1:7400"]).0, Some(0));
    assert_eq!(checked("", &["--no-such-flag"]).0, Some(64));
}

#[test]
fn the_default_file_need_not_exist() {
    let output = program().arg("--check-config").output().expect("run");
    let found =
        if Path::new(DEFAULT_PATH).exists() { "ok" } else { "does not exist, so the defaults hold: ok" };
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{DEFAULT_PATH}: {found}\n"));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_missing_file_is_an_error() {
    let output = program().args(["--check-config", "--config", "/nonexistent/x.toml"]).output().expect("run");
    assert_eq!(output.status.code(), Some(64));
    assert_snapshot!(String::from_utf8_lossy(&output.stderr), @"muster-scheduler: cannot read /nonexistent/x.toml: No such file or directory (os error 2)");
}

#[test]
fn a_store_in_use_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Scheduler::start(directory.path(), |_| {});
    let config = directory.path().join("scheduler.toml");
    let output = program().arg("--config").arg(&config).output().expect("run");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("is in use by another process"), "{said}");
    drop(first);
}

#[tokio::test]
async fn sigterm_ends_it_well() {
    let directory = tempfile::tempdir().expect("a directory");
    for signal in [Signal::TERM, Signal::INT] {
        let mut scheduler = Scheduler::start(directory.path(), |_| {});
        // An open stream does not hold it up.
        let request = v1::WatchRequest { names: vec!["unit-1.service".to_owned()] };
        let mut watch = scheduler.client().watch_units(request).await.expect("an answer").into_inner();
        watch.message().await.expect("a part");
        scheduler.signal(signal);
        assert_eq!(scheduler.wait().code(), Some(0), "{:?}", scheduler.log.lock().expect("lock"));
    }
}

#[test]
fn the_service_manager_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    let mut scheduler = Scheduler::start(directory.path(), |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    });
    let mut heard: Vec<String> = Vec::new();
    let mut hear = |wanted: &str, times: usize| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while heard.iter().filter(|line| line.starts_with(wanted)).count() < times {
            assert!(Instant::now() < deadline, "waited in vain for {wanted}: {heard:?}");
            let mut buffer = [0; 4096];
            let length =
                socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {wanted}: {error}: {heard:?}"));
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            heard.extend(text.lines().map(str::to_owned));
        }
        heard.iter().find(|line| line.starts_with(wanted)).cloned().unwrap_or_default()
    };
    hear("READY=1", 1);
    hear("WATCHDOG=1", 2);
    assert_snapshot!(hear("STATUS=", 1), @"STATUS=leading: machines up: 0, units known: 0");
    scheduler.signal(Signal::TERM);
    hear("STOPPING=1", 1);
    assert_eq!(scheduler.wait().code(), Some(0));
}

#[test]
fn the_journal_gets_priorities() {
    use std::os::linux::fs::MetadataExt;

    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let file = fs::File::create(&log).expect("create");
    let metadata = file.metadata().expect("metadata");
    let config = directory.path().join("scheduler.toml");
    fs::write(&config, "state_dir = \"/proc/nothing\"\nlisten = \"127.0.0.1:0\"\n").expect("write");
    let status = program()
        .arg("--config")
        .arg(&config)
        .env("JOURNAL_STREAM", format!("{}:{}", metadata.st_dev(), metadata.st_ino()))
        .stderr(file)
        .status()
        .expect("run");
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    fs::File::open(&log).expect("open").read_to_string(&mut said).expect("read");
    assert_snapshot!(said, @"<3>cannot make the directory /proc/nothing: No such file or directory (os error 2)");
}

/// What the process may open.
fn descriptors(scheduler: &Scheduler, limit: Rlimit) -> Rlimit {
    prlimit(Some(Pid::from_child(&scheduler.child)), Resource::Nofile, limit).expect("a limit")
}

#[tokio::test]
async fn connections_that_there_is_no_room_for_disturb_nobody_else() {
    let directory = tempfile::tempdir().expect("a directory");
    // As systemd has it: few, where more are allowed to whoever asks.
    let scheduler = Scheduler::start(directory.path(), |command| {
        let mut limited = Command::new("prlimit");
        limited.arg("--nofile=256:4096").arg(command.get_program()).args(command.get_args());
        limited.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").stderr(Stdio::piped());
        *command = limited;
    });
    let own = descriptors(&scheduler, Rlimit { current: Some(64), maximum: Some(64) });
    assert_eq!(own.current, Some(4096), "it asks for as many as it may have: two for each agent");
    let mut early = scheduler.client();
    assert!(names(&mut early).await.is_empty());
    let mut connections = Vec::new();
    for _ in 0..100 {
        connections
            .push(tokio::net::TcpStream::connect(&scheduler.address).await.expect("the kernel takes it"));
    }
    let log = || scheduler.log.lock().expect("lock").join("\n");
    let complained = || log().contains("cannot take a connection").then_some(());
    wait_for("it to say so", complained, log);
    early.execute(command(1)).await.expect("who was there before is answered");
    // Each is noticed to have ended as soon as the descriptors of others are free.
    drop(connections);
    assert_eq!(names(&mut scheduler.client()).await, ["unit-1.service"]);
    assert_eq!(log().matches("cannot take a connection").count(), 1, "once: {}", log());
}

#[tokio::test]
async fn sigkill_during_submissions_loses_none_that_was_acknowledged() {
    const SUBMISSIONS: usize = 1000;
    let directory = tempfile::tempdir().expect("a directory");
    let mut scheduler = Scheduler::start(directory.path(), |_| {});
    let next = Arc::new(AtomicUsize::new(0));
    let (acknowledge, mut acknowledgements) = mpsc::unbounded_channel();
    for _ in 0..8 {
        let (mut client, next, acknowledge) = (scheduler.client(), Arc::clone(&next), acknowledge.clone());
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Ok(response) = client.execute(command(number)).await else { return };
                CommandResult::try_from(response.into_inner()).expect("a result").expect("done");
                acknowledge.send(number).expect("the test goes on");
            }
        });
    }
    drop(acknowledge);
    let mut acknowledged = Vec::new();
    while acknowledged.len() < SUBMISSIONS / 2 {
        acknowledged.push(acknowledgements.recv().await.expect("it answers until it is killed"));
    }
    scheduler.signal(Signal::KILL);
    // The submitters end with the first error.
    while let Some(number) = acknowledgements.recv().await {
        acknowledged.push(number);
    }
    assert_eq!(scheduler.wait().signal(), Some(Signal::KILL.as_raw()));

    let scheduler = Scheduler::start(directory.path(), |_| {});
    let mut client = scheduler.client();
    let known = names(&mut client).await;
    for number in &acknowledged {
        let name = format!("unit-{number}.service");
        assert!(known.contains(&name), "{name} was acknowledged and is lost");
    }
    // A client that got no answer asks again, and finds what was done.
    let begun = next.load(Ordering::Relaxed);
    assert!(begun > acknowledged.len(), "it was killed in the middle");
    for number in 0..begun {
        let response = client.execute(command(number)).await.expect("an answer").into_inner();
        CommandResult::try_from(response).expect("a result").expect("done");
    }
    assert_eq!(names(&mut client).await.len(), begun);
}
