//! What clients want of this machine itself: streams that the leader asks for, and this agent dials.
//!
//! They have a thread of their own, and each a connection of its own to the scheduler: what is full or stuck there holds up
//! neither leases nor orders. A stream ends with the session that it was asked for in.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `programs` | journalctl and systemctl |
//! | `forward` | connections to ports and sockets |
//! | `files` | files that are read and written |

mod files;
mod forward;
mod programs;
#[cfg(test)]
mod tests;

use std::thread;

use anyhow::{Context, Result};
use muster_core::ids::StreamKey;
use muster_core::stream::StreamKinds;
use muster_proto::v1::agents_client::AgentsClient;
use muster_proto::v1::from_machine::Body;
use muster_proto::{SESSION_KEY, STREAM_KEY, STREAM_PIECE, StreamRequest, Work, v1};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Endpoint;
use tonic::{Request, Streaming};
use tracing::{info, warn};

/// How many bytes the scheduler may send ahead.
const WINDOW_BYTES: u32 = 256 * 1024;

/// Opens streams.
#[derive(Debug)]
pub struct Streams {
    thread: Handle,
    allowed: StreamKinds,
}

/// The session that streams are opened in.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Where its scheduler listens.
    pub(crate) endpoint: Endpoint,
    pub(crate) session: AsciiMetadataValue,
    /// Its sender is dropped with the session.
    pub(crate) alive: watch::Receiver<()>,
}

/// How something that a client wants has ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// It is done: with this exit status, where a program did it.
    Done(i32),
    /// It cannot be done, or not to its end, for this reason.
    Failed(String),
    /// Nobody wants it any more.
    Unwanted,
}

/// What a client sends.
#[derive(Debug)]
struct Input(Streaming<v1::ToMachine>);

/// What comes next of that.
#[derive(Debug)]
enum Said {
    Data(prost::bytes::Bytes),
    /// It is whole.
    End,
    /// The client has gone.
    Gone,
}

/// What a client is sent. It waits until there is room for that.
#[derive(Clone, Debug)]
struct Output(mpsc::Sender<v1::FromMachine>);

/// The client, or the way to it, has gone.
#[derive(Debug)]
struct Gone;

impl Streams {
    /// Streams of these kinds, in a thread of their own.
    pub(crate) fn start(allowed: StreamKinds) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name("streams".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))
            .context("cannot start the thread of streams")?;
        Ok(Self { thread: handle, allowed })
    }

    /// Opens the stream with this key, for as long as the session lasts.
    pub(crate) fn open(&self, line: Line, key: StreamKey) {
        let allowed = self.allowed;
        self.thread.spawn(async move {
            let mut alive = line.alive.clone();
            tokio::select! {
                served = serve(line, key, allowed) => if let Err(error) = served {
                    warn!("cannot open a stream that the scheduler asked for: {error:#}");
                },
                _ = alive.changed() => {}
            }
        });
    }
}

async fn serve(line: Line, key: StreamKey, allowed: StreamKinds) -> Result<()> {
    let endpoint =
        line.endpoint.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let (messages, queue) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(queue));
    request.metadata_mut().insert(SESSION_KEY, line.session);
    request
        .metadata_mut()
        .insert(STREAM_KEY, key.to_string().parse().context("the stream's key is no metadata")?);
    let from_client = AgentsClient::new(endpoint.connect().await?).relay(request).await?.into_inner();
    let (mut input, output) = (Input(from_client), Output(messages));
    let ended = match input.request().await {
        Some(Ok(StreamRequest { work, .. })) if allowed.contains(work.kind()) => {
            let what = describe(&work);
            info!(what, "a client wants something of this machine");
            let ended = perform(work, &mut input, &output).await;
            if let Ended::Failed(reason) = &ended {
                info!(what, reason, "it came to nothing");
            }
            ended
        }
        Some(Ok(StreamRequest { work, .. })) => Ended::Failed(format!(
            "this machine does not allow it: `streams` in its agent.toml leaves out \"{}\"",
            work.kind()
        )),
        Some(Err(error)) => Ended::Failed(format!("this agent does not understand what is wanted: {error}")),
        None => Ended::Unwanted,
    };
    let last = match ended {
        Ended::Done(status) => Body::Done(v1::StreamDone { status }),
        Ended::Failed(reason) => Body::Failed(reason),
        Ended::Unwanted => return Ok(()),
    };
    if output.send(last).await.is_ok() {
        // What is on its way arrives; then the scheduler ends the stream.
        drop(output);
        input.gone().await;
    }
    Ok(())
}

async fn perform(work: Work, input: &mut Input, output: &Output) -> Ended {
    match work {
        Work::Port(port) => forward::port(port, input, output).await,
        Work::Socket(path) => forward::socket(&path, input, output).await,
        Work::WriteFile(file) => files::write(&file, input).await,
        work => tokio::select! {
            ended = answer(work, output) => ended,
            () = input.gone() => Ended::Unwanted,
        },
    }
}

/// What takes no input.
async fn answer(work: Work, output: &Output) -> Ended {
    match work {
        Work::Journal(journal) => programs::run(programs::journalctl(&journal), output).await,
        Work::Status(unit) => programs::run(programs::systemctl_status(&unit), output).await,
        Work::ReadFile(path) => files::read(&path, output).await,
        Work::Port(_) | Work::Socket(_) | Work::WriteFile(_) => Ended::Unwanted,
    }
}

/// For the journal.
fn describe(work: &Work) -> String {
    match work {
        Work::Journal(journal) => format!("the journal of {}", journal.unit),
        Work::Status(unit) => format!("the status of {unit}"),
        Work::Port(port) => format!("a connection to port {port}"),
        Work::Socket(path) => format!("a connection to {path:?}"),
        Work::ReadFile(path) => format!("to read {path:?}"),
        Work::WriteFile(file) => format!("to write {:?}", file.path),
    }
}

impl Input {
    /// What is wanted: the first message; none where the client has gone.
    async fn request(&mut self) -> Option<Result<StreamRequest, String>> {
        match self.0.message().await.ok()??.body {
            Some(v1::to_machine::Body::Request(request)) => {
                Some(request.try_into().map_err(|error: muster_proto::ConvertError| error.to_string()))
            }
            _ => Some(Err("it does not begin with that".to_owned())),
        }
    }

    async fn next(&mut self) -> Said {
        use v1::to_machine::Body;
        match self.0.message().await {
            Ok(Some(v1::ToMachine { body: Some(Body::Data(data)) })) => Said::Data(data),
            Ok(Some(v1::ToMachine { body: Some(Body::End(_)) })) => Said::End,
            // A second request makes no sense, and what is not known is of a later version.
            Ok(Some(_) | None) | Err(_) => Said::Gone,
        }
    }

    /// Waits until the client has gone, or the scheduler has ended the stream.
    async fn gone(&mut self) {
        while let Ok(Some(_)) = self.0.message().await {}
    }
}

impl Output {
    async fn send(&self, body: Body) -> Result<(), Gone> {
        self.0.send(v1::FromMachine { body: Some(body) }).await.map_err(|_| Gone)
    }

    /// The same, from a thread that may wait.
    fn send_from_thread(&self, body: Body) -> Result<(), Gone> {
        self.0.blocking_send(v1::FromMachine { body: Some(body) }).map_err(|_| Gone)
    }

    /// Sends all that there is to read, in pieces.
    ///
    /// # Errors
    /// Of the reading; of the sending the inner one.
    async fn send_all(
        &self,
        mut from: impl AsyncRead + Unpin,
        body: impl Fn(prost::bytes::Bytes) -> Body,
    ) -> std::io::Result<Result<(), Gone>> {
        let mut piece = vec![0; STREAM_PIECE];
        loop {
            let length = from.read(&mut piece).await?;
            if length == 0 {
                return Ok(Ok(()));
            }
            let data = prost::bytes::Bytes::copy_from_slice(&piece[..length]);
            if self.send(body(data)).await.is_err() {
                return Ok(Err(Gone));
            }
        }
    }
}
