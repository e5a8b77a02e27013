//! A scheduler, machines that are made up, and `musterctl`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use muster_core::ids::{AgentKey, BootId, MachineId, SessionNumber, Term};
use muster_core::machine::{Capacity, Pressure};
use muster_core::message::{
    Assignments, FromAgent, Hello, LeaderMessage, ReportedChange, ToAgent, UnitReport,
};
use muster_core::state::{Failure, Observation, Phase, Target, UnitState};
use muster_core::unit::{Bytes, MilliCpu, UnitName};
use muster_proto::v1::agents_client::AgentsClient;
use muster_proto::{ToAgentParts, split_from_agent};
use muster_scheduler::config::Config;
use muster_scheduler::daemon::Daemon;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::PATIENCE;

const HEARTBEAT: Duration = Duration::from_millis(200);

/// A scheduler with a state directory of its own, on loopback.
pub struct Cluster {
    directory: TempDir,
    address: SocketAddr,
    handle: Handle,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Cluster {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (address, handle, running) =
            start_scheduler(directory.path(), SocketAddr::from(([127, 0, 0, 1], 0)));
        Self { directory, address, handle, running: Some(running) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the test may put files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Stops the scheduler and starts it again at the same address, with the same state.
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Starts the scheduler that was stopped.
    pub fn start_again(&mut self) {
        let (_, handle, running) = start_scheduler(self.directory.path(), self.address);
        self.handle = handle;
        self.running = Some(running);
    }

    /// Stops the scheduler.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.send(()).ok();
            thread.join().expect("the scheduler ends well");
        }
    }

    /// Adds a machine and waits until it is up. Its id is that digit, repeated.
    pub fn add_machine(&self, digit: u32) -> Machine {
        let (alive, takes_units) = std::sync::mpsc::channel();
        let task = self.handle.spawn(agent(self.address, digit, alive));
        takes_units.recv_timeout(PATIENCE).expect("a heartbeat of it is answered in time");
        Machine(task.abort_handle())
    }

    /// Runs `musterctl` against this cluster.
    pub fn ctl(&self, arguments: &[&str]) -> Run {
        ctl(&self.address.to_string(), arguments)
    }

    /// What bash prints while somebody types these lines; they are keys, so that a tab completes. `musterctl` means this
    /// cluster.
    pub fn typed_in_bash(&self, lines: &[&str]) -> String {
        let programs = Path::new(env!("CARGO_BIN_EXE_musterctl")).parent().expect("a directory");
        let path = std::env::var("PATH").expect("a path");
        let mut terminal = Command::new("script")
            .args(["--quiet", "--return", "--command", "bash --norc --noprofile -i", "/dev/null"])
            .current_dir(self.directory())
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("MUSTERCTL_ENDPOINT", self.address.to_string())
            .envs([("HOME", "/nonexistent"), ("TERM", "dumb"), ("PS1", "$ ")])
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1) starts");
        let mut keys = terminal.stdin.take().expect("a pipe");
        for line in [&["source <(musterctl completions bash)"], lines, &["exit"]].concat() {
            writeln!(keys, "{line}").expect("bash reads");
        }
        let output = terminal.wait_with_output().expect("bash ends");
        String::from_utf8(output.stdout).expect("text").replace('\r', "")
    }

    /// Starts `musterctl` against this cluster.
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        let mut child = command(&self.address.to_string(), arguments).spawn().expect("musterctl starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        Running { child, stdout, stderr }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How `musterctl` ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `musterctl` against a scheduler at this address.
pub fn ctl(address: &str, arguments: &[&str]) -> Run {
    let output = command(address, arguments).output().expect("musterctl runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn command(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_musterctl"));
    command
        .args(arguments)
        .env("MUSTERCTL_ENDPOINT", address)
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `musterctl`, running.
pub struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    /// The next line on stdout.
    pub fn stdout_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("readable");
        line.trim_end_matches('\n').to_owned()
    }

    /// The next line on stderr.
    pub fn stderr_line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).expect("readable");
        line.trim_end_matches('\n').to_owned()
    }

    /// Presses Ctrl-C, and waits for the end.
    pub fn interrupt(self) -> Run {
        let kill = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(kill.expect("kill runs").success());
        self.end()
    }

    /// Waits for the end.
    pub fn end(mut self) -> Run {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stderr.read_to_string(&mut stderr).expect("text");
        self.stdout.read_to_string(&mut stdout).expect("text");
        Run { code: self.child.wait().expect("it ends").code(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until that is so; shows how it was when it never is.
pub fn eventually<T, E: Debug>(what: &str, mut so: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match so() {
            Ok(value) => return value,
            Err(state) => assert!(start.elapsed() < PATIENCE, "not yet: {what}; {state:?}"),
        }
    }
}

fn start_scheduler(
    directory: &Path,
    listen: SocketAddr,
) -> (SocketAddr, Handle, (oneshot::Sender<()>, JoinHandle<()>)) {
    let config = Config {
        listen,
        state_dir: directory.join("state"),
        heartbeat_interval: HEARTBEAT,
        lease_ttl: Duration::from_secs(4),
        ..Config::default()
    };
    std::fs::create_dir_all(&config.state_dir).expect("created");
    let (stop, stopped) = oneshot::channel();
    let (ready, started) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let daemon = Daemon::start(&config).await.expect("the scheduler starts");
            ready.send((daemon.address(), Handle::current())).expect("somebody waits");
            stopped.await.ok();
            daemon.shutdown().await.expect("the scheduler ends well");
        });
    });
    let (address, handle) = started.recv().expect("the scheduler starts");
    (address, handle, (stop, thread))
}

/// A machine that is made up.
pub struct Machine(AbortHandle);

impl Machine {
    /// Lets it fall silent.
    pub fn kill(self) {
        self.0.abort();
    }
}

/// An agent that starts every unit at once: but for `fails…`, which fail, and `refused…`, which it refuses.
async fn agent(address: SocketAddr, digit: u32, alive: std::sync::mpsc::Sender<()>) {
    let channel = Channel::from_shared(format!("http://{address}")).expect("an address").connect().await;
    let (to_leader, messages) = mpsc::channel(64);
    let send = async |said: FromAgent| {
        for message in split_from_agent(said) {
            to_leader.send(message).await.ok();
        }
    };
    send(FromAgent::Hello(hello(digit))).await;
    let mut client = AgentsClient::new(channel.expect("connected"));
    let mut from_leader =
        client.session(ReceiverStream::new(messages)).await.expect("a session").into_inner();
    let mut parts = ToAgentParts::default();
    let mut heartbeats = tokio::time::interval(HEARTBEAT);
    let mut number = 0;
    loop {
        tokio::select! {
            message = from_leader.message() => {
                let Ok(Some(message)) = message else { return };
                let Some(ToAgent { body, .. }) = parts.push(message).expect("understood") else { continue };
                match body {
                    LeaderMessage::Assignments(assignments) => {
                        send(FromAgent::Report(reports(assignments))).await;
                    }
                    LeaderMessage::Welcome(_) => heartbeats.reset_immediately(),
                    LeaderMessage::HeartbeatAck { .. } => _ = alive.send(()),
                    _ => {}
                }
            }
            _ = heartbeats.tick() => {
                number += 1;
                send(FromAgent::Heartbeat { number, pid1_age: Duration::ZERO, pressure: Pressure::default() }).await;
            }
        }
    }
}

fn hello(digit: u32) -> Hello {
    Hello {
        cluster: None,
        machine: digit.to_string().repeat(32).parse::<MachineId>().expect("an id"),
        boot: BootId::new(digit.into()),
        key: AgentKey::new(digit.into()),
        session: SessionNumber(1),
        term: Term::default(),
        address: format!("198.18.0.{}", 100 + digit),
        labels: BTreeMap::from([("zone".to_owned(), digit.to_string())]),
        capacity: Capacity { cpu: MilliCpu(2000), memory: Bytes(1 << 30) },
        version: "test".to_owned(),
        pid1_age: Duration::ZERO,
        leaving: false,
        streams: None,
        adopts: true,
        units: Vec::new(),
    }
}

fn reports(Assignments { hold, remove, .. }: Assignments) -> Vec<UnitReport> {
    let held = hold.into_iter().map(|unit| {
        let observation = observed(&unit.name, unit.target);
        UnitReport { name: unit.name, epoch: unit.epoch, change: ReportedChange::Observed(observation) }
    });
    let gone = remove.into_iter().map(|unit| UnitReport {
        name: unit.name,
        epoch: unit.epoch,
        change: ReportedChange::Gone,
    });
    held.chain(gone).collect()
}

fn observed(name: &UnitName, target: Target) -> Observation {
    let held = |phase, active: &str, sub: &str| Observation::Held {
        phase,
        state: Some(UnitState { load: "loaded".to_owned(), active: active.to_owned(), sub: sub.to_owned() }),
    };
    match target {
        _ if name.as_str().starts_with("refused") => {
            Observation::Refused("the machine has a unit of that name".to_owned())
        }
        Target::Loaded => held(Phase::Loaded, "inactive", "dead"),
        Target::Launched if name.as_str().starts_with("fails") => {
            held(Phase::StartFailed(Failure::without_result("exit-code")), "failed", "failed")
        }
        Target::Launched => held(Phase::Launched, "active", "running"),
    }
}
