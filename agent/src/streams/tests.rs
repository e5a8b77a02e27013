//! Streams for a leader that is made up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use muster_core::ids::MachineId;
use muster_core::stream::StreamKind;
use muster_proto::FileToWrite;
use muster_proto::v1::agents_server::{Agents, AgentsServer};
use muster_proto::v1::{FromMachine, ToMachine, from_machine, to_machine};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Status};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
/// After this time without a byte a stream is taken to be full.
const STUCK: Duration = Duration::from_secs(1);

/// A leader that has streams opened.
struct Leader {
    line: Line,
    /// Dropped, the session ends.
    alive: Option<watch::Sender<()>>,
    streams: Streams,
    dialled: mpsc::Receiver<Dialled>,
}

/// One stream, as the leader has it.
struct Dialled {
    to: mpsc::Sender<Result<ToMachine, Status>>,
    from: Streaming<FromMachine>,
}

struct Service(mpsc::Sender<Dialled>);

type ToAgents = Pin<Box<dyn Stream<Item = Result<v1::LeaderMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Agents for Service {
    type SessionStream = ToAgents;
    type HeartbeatsStream = ToAgents;
    type RelayStream = ReceiverStream<Result<ToMachine, Status>>;

    async fn session(&self, _: Request<Streaming<v1::AgentMessage>>) -> Result<Response<ToAgents>, Status> {
        Err(Status::unimplemented("no sessions here"))
    }

    async fn heartbeats(
        &self,
        _: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<ToAgents>, Status> {
        Err(Status::unimplemented("no sessions here"))
    }

    async fn relay(
        &self,
        request: Request<Streaming<FromMachine>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        for (name, expected) in [(SESSION_KEY, "1.key"), (STREAM_KEY, "00000000000000000000000000000007")] {
            assert_eq!(request.metadata().get(name).expect("metadata"), expected);
        }
        let (to, messages) = mpsc::channel(1);
        self.0.send(Dialled { to, from: request.into_inner() }).await.expect("the test waits");
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl Leader {
    async fn new(allowed: &[StreamKind]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (dials, dialled) = mpsc::channel(1);
        let server = Server::builder().add_service(AgentsServer::new(Service(dials)));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        let (alive, lives) = watch::channel(());
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let line = Line { endpoint, session: "1.key".parse().expect("metadata"), alive: lives };
        let streams = Streams::start(allowed.iter().copied().collect()).expect("a thread");
        Self { line, alive: Some(alive), streams, dialled }
    }

    async fn open(&mut self, work: Work) -> Dialled {
        self.streams.open(self.line.clone(), StreamKey::new(7));
        let stream = timeout(PATIENCE, self.dialled.recv()).await.expect("it dials in time");
        let stream = stream.expect("a stream");
        let request = StreamRequest { machine: MachineId::new(1), work }.into();
        stream.say(to_machine::Body::Request(request)).await;
        stream
    }
}

impl Dialled {
    async fn say(&self, body: to_machine::Body) {
        self.to.send(Ok(ToMachine { body: Some(body) })).await.expect("the stream is open");
    }

    async fn data(&self, text: &str) {
        self.say(to_machine::Body::Data(text.as_bytes().to_vec().into())).await;
    }

    async fn end(&self) {
        self.say(to_machine::Body::End(v1::InputEnd {})).await;
    }

    async fn next(&mut self) -> Option<from_machine::Body> {
        let next = timeout(PATIENCE, self.from.message()).await.expect("something comes in time");
        next.ok().flatten().and_then(|next| next.body)
    }

    /// All of the output, and how it ended.
    async fn rest(&mut self) -> (String, Option<from_machine::Body>) {
        let mut output = Vec::new();
        loop {
            match self.next().await {
                Some(from_machine::Body::Data(data)) => output.extend_from_slice(&data),
                last => return (String::from_utf8(output).expect("text"), last),
            }
        }
    }

    async fn failure(&mut self) -> String {
        match self.rest().await.1 {
            Some(from_machine::Body::Failed(reason)) => reason,
            other => panic!("no failure: {other:?}"),
        }
    }
}

fn done() -> from_machine::Body {
    from_machine::Body::Done(v1::StreamDone { status: 0 })
}

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().expect("text").to_owned()
}

fn write(path: &str) -> Work {
    Work::WriteFile(FileToWrite { path: path.to_owned(), name: "named".to_owned(), mode: 0o640 })
}

#[tokio::test]
async fn what_is_not_allowed_is_not_done() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut leader = Leader::new(&[StreamKind::Journal]).await;
    let mut stream = leader.open(write(&path(directory.path(), "a"))).await;
    let expected = "this machine does not allow it: `streams` in its agent.toml leaves out \"files\"";
    assert_eq!(stream.failure().await, expected);
    assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0);
}

#[tokio::test]
async fn a_file_is_written_as_a_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| path(directory.path(), name);
    let mut leader = Leader::new(&StreamKind::ALL).await;
    fs::write(at("old"), "old").expect("written");
    std::os::unix::fs::symlink("old", at("link")).expect("a link");
    // To itself, in the place of what a link leads to, and into a directory.
    for (to, written) in [("new", "new"), ("link", "old"), ("", "named")] {
        let mut stream = leader.open(write(&at(to))).await;
        stream.data("one ").await;
        stream.data("two").await;
        stream.end().await;
        assert_eq!(stream.rest().await, (String::new(), Some(done())));
        assert_eq!(fs::read_to_string(at(written)).expect("readable"), "one two", "{to}");
        assert_eq!(fs::metadata(at(written)).expect("a file").permissions().mode() & 0o7777, 0o640);
    }
    assert!(fs::symlink_metadata(at("link")).expect("a link").is_symlink());
    // The client goes before it is whole.
    let stream = leader.open(write(&at("half"))).await;
    stream.data("half").await;
    let Dialled { to, mut from } = stream;
    drop(to);
    assert!(timeout(PATIENCE, from.message()).await.expect("in time").ok().flatten().is_none());
    let entries = fs::read_dir(directory.path()).expect("readable");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["link", "named", "new", "old"]);
}

#[tokio::test]
async fn what_keeps_a_file_from_being_copied_is_told() {
    use rustix::fs::{CWD, FileType, mknodat};
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| path(directory.path(), name);
    fs::create_dir_all(at("dir/named")).expect("a directory");
    mknodat(CWD, at("pipe"), FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    let mut leader = Leader::new(&StreamKind::ALL).await;
    let is_directory = "it is a directory, and only regular files are copied";
    let reads = [
        ("a".to_owned(), "an absolute path is needed"),
        (at("none"), "No such file or directory (os error 2)"),
        (at("dir"), is_directory),
        (at("pipe"), "it is no regular file"),
    ];
    for (path, reason) in reads {
        let mut stream = leader.open(Work::ReadFile(path.clone())).await;
        assert_eq!(stream.failure().await, format!("cannot read {path} there: {reason}"));
    }
    let writes = [
        ("a".to_owned(), "an absolute path is needed"),
        (at("none/"), "there is no such directory"),
        (at("dir"), is_directory),
        (at("pipe"), "it is no regular file"),
    ];
    for (path, reason) in writes {
        let mut stream = leader.open(write(&path)).await;
        assert_eq!(stream.failure().await, format!("cannot write {path} there: {reason}"));
    }
    let mut stream = leader.open(write(&at("none/a"))).await;
    assert!(stream.failure().await.contains("No such file or directory"));
}

#[tokio::test]
async fn a_file_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = path(directory.path(), "a");
    let content = "0123456789".repeat(20_000);
    fs::write(&file, &content).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).expect("changed");
    let mut leader = Leader::new(&StreamKind::ALL).await;
    let mut stream = leader.open(Work::ReadFile(file)).await;
    assert_eq!(stream.next().await, Some(from_machine::Body::File(v1::FileInfo { mode: 0o4755 })));
    assert_eq!(stream.rest().await, (content, Some(done())));
}

/// Set in a test that runs in mounts of its own.
const INSIDE: &str = "MUSTER_TEST_MOUNTS";

/// What is asked of a file system whose server never answers takes for ever, and the other streams go on.
#[test]
fn a_mount_that_hangs_holds_up_no_other_stream() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        return runtime.expect("a runtime").block_on(asks_of_a_mount_that_hangs());
    }
    assert!(rustix::process::geteuid().is_root(), "this test mounts a file system: run it as root");
    let directory = tempfile::tempdir().expect("a directory");
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().expect("the test's own program"))
        .args(["--exact", "streams::tests::a_mount_that_hangs_holds_up_no_other_stream", "--nocapture"])
        .env(INSIDE, directory.path())
        .status()
        .expect("unshare (of util-linux) can be run");
    assert!(status.success(), "the test failed in its own mounts: {status}");
}

async fn asks_of_a_mount_that_hangs() {
    use std::os::fd::AsRawFd;
    let directory = std::path::PathBuf::from(std::env::var_os(INSIDE).expect("a directory"));
    let server = fs::File::options().read(true).write(true).open("/dev/fuse").expect("FUSE");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    let options = std::ffi::CString::new(options).expect("no zero");
    rustix::mount::mount("test", &directory, "fuse", rustix::mount::MountFlags::empty(), Some(&*options))
        .expect("mounted");
    let file = path(&directory, "a");
    let mut leader = Leader::new(&StreamKind::ALL).await;
    let mut hang = Vec::new();
    for work in [write(&file), Work::ReadFile(file.clone()), Work::Socket(file)] {
        hang.push(leader.open(work).await);
        let mut other = leader.open(Work::ReadFile("/proc/self/comm".to_owned())).await;
        assert!(matches!(other.next().await, Some(from_machine::Body::File(_))));
        assert_eq!(other.rest().await.1, Some(done()));
    }
    for stream in &mut hang {
        assert!(timeout(STUCK, stream.from.message()).await.is_err(), "it has not ended");
    }
    // Its server ends, and so does what waits for that.
    drop(server);
    for mut stream in hang {
        let reason = stream.failure().await;
        assert!(reason.contains("there: ") && reason.contains("os error"), "{reason}");
    }
}

#[tokio::test]
async fn a_connection_goes_both_ways_and_each_may_end_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut leader = Leader::new(&StreamKind::ALL).await;
    let mut stream = leader.open(Work::Port(port)).await;
    let (mut there, _) = listener.accept().await.expect("a connection");
    stream.data("up").await;
    stream.end().await;
    let mut heard = String::new();
    there.read_to_string(&mut heard).await.expect("readable");
    assert_eq!(heard, "up");
    there.write_all(b"down").await.expect("written");
    drop(there);
    assert_eq!(stream.rest().await, ("down".to_owned(), Some(done())));
    // The client goes.
    let stream = leader.open(Work::Port(port)).await;
    let (mut there, _) = listener.accept().await.expect("a connection");
    drop(stream);
    assert_eq!(there.read_to_string(&mut heard).await.expect("an end"), 0);
    drop(listener);
    let mut stream = leader.open(Work::Port(port)).await;
    let reason = stream.failure().await;
    assert!(reason.starts_with(&format!("cannot connect to port {port} there: ")), "{reason}");
    let mut stream = leader.open(Work::Socket("/nonexistent".to_owned())).await;
    assert!(stream.failure().await.starts_with("cannot connect to /nonexistent there: "));
}

#[tokio::test]
async fn who_reads_slowly_slows_down_who_writes_and_all_ends_with_the_session() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut leader = Leader::new(&StreamKind::ALL).await;
    let mut stream = leader.open(Work::Port(port)).await;
    let (mut there, _) = listener.accept().await.expect("a connection");
    let piece = vec![b'x'; 1 << 16];
    let mut written = 0;
    while let Ok(length) = timeout(STUCK, there.write(&piece)).await {
        written += length.expect("written");
        assert!(written < 64 << 20, "the agent takes all there is, and nobody reads it");
    }
    // Another one is none the slower.
    let mut other = leader.open(Work::ReadFile("/proc/self/comm".to_owned())).await;
    assert!(matches!(other.next().await, Some(from_machine::Body::File(_))));
    assert_eq!(other.rest().await.1, Some(done()));
    leader.alive.take();
    while stream.next().await.is_some() {}
    let ends = async { while there.write(&piece).await.is_ok() {} };
    timeout(PATIENCE, ends).await.expect("the connection ends with the session");
}

#[tokio::test]
async fn a_programs_output_and_exit_status_are_told() {
    let (messages, mut sent) = mpsc::channel(8);
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(programs::run(command, &Output(messages.clone())).await, Ended::Done(3));
    let missing = tokio::process::Command::new("/nonexistent/program");
    let ended = programs::run(missing, &Output(messages)).await;
    assert!(
        matches!(&ended, Ended::Failed(why) if why.starts_with("cannot run /nonexistent/program there: "))
    );
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(FromMachine { body: Some(body) }) = sent.recv().await {
        match body {
            from_machine::Body::Data(data) => out.extend_from_slice(&data),
            from_machine::Body::Errors(data) => err.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((out.as_slice(), err.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn arguments_are_never_options_of_their_own() {
    let journal = muster_proto::Journal {
        unit: "a.service".parse().expect("a name"),
        lines: None,
        since: Some("--vacuum-size=1".to_owned()),
        output: "short --rotate".to_owned(),
        follow: true,
    };
    let command = programs::journalctl(&journal);
    let arguments: Vec<_> = command.as_std().get_args().collect();
    assert_eq!(
        arguments,
        [
            "--no-pager",
            "--quiet",
            "--output=short --rotate",
            "--lines=all",
            "--since=--vacuum-size=1",
            "--follow",
            "--unit=a.service"
        ]
    );
}
