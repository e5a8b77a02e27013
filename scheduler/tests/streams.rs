//! Streams between clients and machines, through a scheduler in this process. The machine is made up.

use std::time::Duration;

use muster_core::ids::{AgentKey, BootId, MachineId, SessionNumber, StreamKey, Term};
use muster_core::machine::{Capacity, Labels, Pressure};
use muster_core::message::{FromAgent, Hello, LeaderMessage, ToAgent};
use muster_core::stream::{StreamKind, StreamKinds};
use muster_core::unit::{Bytes, MilliCpu};
use muster_proto::v1::agents_client::AgentsClient;
use muster_proto::v1::muster_client::MusterClient;
use muster_proto::v1::{FromMachine, ToMachine, from_machine, to_machine};
use muster_proto::{
    SESSION_KEY, STREAM_KEY, STREAM_PIECE, StreamRequest, ToAgentParts, Work, split_from_agent, v1,
};
use muster_scheduler::config::Config;
use muster_scheduler::daemon::Daemon;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// How long anything may take before a test has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// After this time without room a stream is taken to be full.
const STUCK: Duration = Duration::from_secs(1);

/// A scheduler, until it is dropped.
struct World {
    daemon: Daemon,
    _state: TempDir,
}

impl World {
    async fn new() -> Self {
        let state = tempfile::tempdir().expect("a directory");
        let config = Config {
            listen: "127.0.0.1:0".parse().expect("an address"),
            state_dir: state.path().to_owned(),
            ..Config::default()
        };
        Self { daemon: Daemon::start(&config).await.expect("start"), _state: state }
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.daemon.address())).expect("an address").connect_lazy()
    }

    /// A client asks for a stream to the machine.
    async fn ask(&self, machine: u128, work: Work) -> Result<Client, Status> {
        let (to, messages) = mpsc::channel(1);
        let request = StreamRequest { machine: MachineId::new(machine), work }.into();
        let body = Some(to_machine::Body::Request(request));
        to.send(ToMachine { body }).await.expect("room");
        let from = MusterClient::new(self.channel()).relay(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Client { to, from })
    }

    /// A stream, and the machine's end of it.
    async fn open(&self, machine: &mut Machine) -> (Client, Dialled) {
        let (client, dialled) = tokio::join!(self.ask(machine.id, status()), async {
            let key = machine.asked().await;
            let mut dialled = machine.dial(self, key).await.expect("it is taken");
            let first = dialled.from.message().await.expect("a message").expect("a message").body;
            assert!(matches!(first, Some(to_machine::Body::Request(_))), "{first:?}");
            dialled
        });
        (client.expect("a stream"), dialled)
    }
}

fn status() -> Work {
    Work::Status("a.service".parse().expect("a name"))
}

struct Client {
    to: mpsc::Sender<ToMachine>,
    from: Streaming<FromMachine>,
}

impl Client {
    async fn next(&mut self) -> Result<Option<from_machine::Body>, Status> {
        let next = timeout(PATIENCE, self.from.message()).await.expect("something comes in time");
        next.map(|next| next.and_then(|next| next.body))
    }
}

/// The machine's end of a stream.
struct Dialled {
    to: mpsc::Sender<FromMachine>,
    from: Streaming<ToMachine>,
}

impl Dialled {
    async fn say(&self, body: from_machine::Body) {
        self.to.send(FromMachine { body: Some(body) }).await.expect("the stream is open");
    }

    async fn next(&mut self) -> Option<to_machine::Body> {
        let next = timeout(PATIENCE, self.from.message()).await.expect("something comes in time");
        next.ok().flatten().and_then(|next| next.body)
    }
}

struct Machine {
    id: u128,
    to: mpsc::Sender<v1::AgentMessage>,
    from: Streaming<v1::LeaderMessage>,
    parts: ToAgentParts,
    session: AsciiMetadataValue,
}

impl Machine {
    /// One that was welcomed.
    async fn join(world: &World, id: u128, streams: Option<StreamKinds>) -> Self {
        let (to, messages) = mpsc::channel(16);
        let session = AgentsClient::new(world.channel()).session(ReceiverStream::new(messages)).await;
        let session = session.expect("a session");
        let key = session.metadata().get(SESSION_KEY).expect("a key").clone();
        let from = session.into_inner();
        let mut machine = Self { id, to, from, parts: ToAgentParts::default(), session: key };
        let hello = Hello {
            cluster: None,
            machine: MachineId::new(id),
            boot: BootId::new(1),
            key: AgentKey::new(id),
            session: SessionNumber(1),
            term: Term::default(),
            address: "198.18.0.1".to_owned(),
            labels: Labels::default(),
            capacity: Capacity { cpu: MilliCpu(1000), memory: Bytes(1 << 30) },
            version: "0.0.9".to_owned(),
            pid1_age: Duration::ZERO,
            leaving: false,
            streams,
            adopts: true,
            units: Vec::new(),
        };
        machine.say(FromAgent::Hello(hello)).await;
        machine.until(|said| matches!(said, LeaderMessage::Welcome(_)).then_some(())).await;
        machine
    }

    async fn say(&self, said: FromAgent) {
        for part in split_from_agent(said) {
            self.to.send(part).await.expect("the session is open");
        }
    }

    /// Waits until the leader says that.
    async fn until<T>(&mut self, wanted: impl Fn(LeaderMessage) -> Option<T>) -> T {
        let hears = async {
            loop {
                let part = self.from.message().await.expect("a message").expect("the session is open");
                let said = self.parts.push(part).expect("it makes sense");
                if let Some(found) = said.and_then(|ToAgent { body, .. }| wanted(body)) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, hears).await.expect("the leader says it in time")
    }

    /// The stream that it is asked to dial for.
    async fn asked(&mut self) -> StreamKey {
        self.until(|said| if let LeaderMessage::OpenStream(key) = said { Some(key) } else { None }).await
    }

    async fn dial(&self, world: &World, key: StreamKey) -> Result<Dialled, Status> {
        let (to, messages) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(messages));
        request.metadata_mut().insert(SESSION_KEY, self.session.clone());
        request.metadata_mut().insert(STREAM_KEY, key.to_string().parse().expect("metadata"));
        let from = AgentsClient::new(world.channel()).relay(request).await?.into_inner();
        Ok(Dialled { to, from })
    }

    /// Whether its heartbeats are answered.
    async fn beats(&mut self, number: u64) {
        let pressure = Pressure::default();
        self.say(FromAgent::Heartbeat { number, pid1_age: Duration::ZERO, pressure }).await;
        let acked =
            |said| (matches!(said, LeaderMessage::HeartbeatAck { number: n } if n == number)).then_some(());
        self.until(acked).await;
    }
}

fn all() -> StreamKinds {
    StreamKinds::from_iter(StreamKind::ALL)
}

fn data(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

#[tokio::test]
async fn what_one_side_says_reaches_the_other_until_it_is_done() {
    let world = World::new().await;
    let mut machine = Machine::join(&world, 1, Some(all())).await;
    let (mut client, mut dialled) = world.open(&mut machine).await;
    let said = to_machine::Body::Data(data("up").into());
    client.to.send(ToMachine { body: Some(said.clone()) }).await.expect("the stream is open");
    assert_eq!(dialled.next().await, Some(said));
    dialled.say(from_machine::Body::Data(data("down").into())).await;
    dialled.say(from_machine::Body::Done(v1::StreamDone { status: 3 })).await;
    assert_eq!(client.next().await.expect("no error"), Some(from_machine::Body::Data(data("down").into())));
    let done = from_machine::Body::Done(v1::StreamDone { status: 3 });
    assert_eq!(client.next().await.expect("no error"), Some(done));
    assert_eq!(client.next().await.expect("no error"), None);
    assert_eq!(dialled.next().await, None, "the machine is told that all has arrived");
}

#[tokio::test]
async fn who_is_left_is_told_that_the_other_has_gone() {
    let world = World::new().await;
    let mut machine = Machine::join(&world, 1, Some(all())).await;

    let (client, mut dialled) = world.open(&mut machine).await;
    drop(client);
    assert_eq!(dialled.next().await, None, "the machine ends what it does");

    let (mut client, dialled) = world.open(&mut machine).await;
    drop(dialled);
    let status = client.next().await.expect_err("an end");
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(status.message(), "the agent of machine 00000000 ended the stream");

    // The stream does not outlive the session, whatever became of its own connection.
    let (mut client, mut dialled) = world.open(&mut machine).await;
    drop(machine);
    let status = client.next().await.expect_err("an end");
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().starts_with("machine 00000000 is not connected any more"), "{status:?}");
    assert_eq!(dialled.next().await, None);
}

#[tokio::test]
async fn why_there_is_no_stream_is_told() {
    let world = World::new().await;
    let _old = Machine::join(&world, 1, None).await;
    let strict = Some(StreamKinds::from_iter([StreamKind::Journal]));
    let _strict = Machine::join(&world, 2, strict).await;
    let cases = [
        (
            1,
            Code::FailedPrecondition,
            "the agent of machine 00000000 is too old for this: it is of version 0.0.9",
        ),
        (
            2,
            Code::FailedPrecondition,
            "machine 00000000 does not allow this: `streams` in its agent.toml leaves out \"status\"",
        ),
        (3, Code::NotFound, "there is no machine 00000000000000000000000000000003"),
    ];
    for (machine, code, message) in cases {
        let status = world.ask(machine, status()).await.err().expect("no stream");
        assert_eq!((status.code(), status.message()), (code, message));
    }
}

#[tokio::test]
async fn a_stream_is_taken_once_and_by_who_was_asked() {
    let world = World::new().await;
    let mut machine = Machine::join(&world, 1, Some(all())).await;
    let asks = world.ask(1, status());
    let dials = async {
        let key = machine.asked().await;
        let wrong = machine.dial(&world, StreamKey::new(key.bits() ^ 1)).await.err().expect("refused");
        assert_eq!(wrong.code(), Code::NotFound);
        let dialled = machine.dial(&world, key).await.expect("taken");
        let again = machine.dial(&world, key).await.err().expect("refused");
        assert_eq!(again.code(), Code::NotFound);
        dialled
    };
    let (client, dialled) = tokio::join!(asks, dials);
    drop((client.expect("a stream"), dialled));
    machine.session = "1.00000000-0000-0000-0000-000000000000".parse().expect("metadata");
    let stranger = machine.dial(&world, StreamKey::new(1)).await.err().expect("refused");
    assert_eq!(stranger.message(), "that session is over");
}

/// What nobody reads stays where it is written, and nothing else waits for it.
#[tokio::test]
async fn a_stream_that_is_not_read_slows_down_who_writes_it_and_nobody_else() {
    let world = World::new().await;
    let mut machine = Machine::join(&world, 1, Some(all())).await;
    let (mut slow, dialled) = world.open(&mut machine).await;
    let piece = || FromMachine { body: Some(from_machine::Body::Data(vec![b'x'; STREAM_PIECE].into())) };
    let mut written = 0;
    while let Ok(sent) = timeout(STUCK, dialled.to.send(piece())).await {
        sent.expect("the stream is open");
        written += STREAM_PIECE;
        assert!(written < 64 << 20, "it takes all there is, and nobody reads it");
    }
    machine.beats(1).await;
    let (mut other, quick) = world.open(&mut machine).await;
    quick.say(from_machine::Body::Done(v1::StreamDone { status: 0 })).await;
    assert_eq!(
        other.next().await.expect("no error"),
        Some(from_machine::Body::Done(v1::StreamDone { status: 0 }))
    );
    machine.beats(2).await;
    drop(dialled.to);
    let mut read = 0;
    while let Ok(Some(from_machine::Body::Data(piece))) = slow.next().await {
        read += piece.len();
    }
    assert_eq!(read, written, "all of it arrives once it is read");
}
