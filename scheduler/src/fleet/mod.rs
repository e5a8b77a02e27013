//! fleet's HTTP API, version 1, so that fleetctl and whatever else speaks to fleet works with Muster.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `routes` | paths, methods, parameters |
//! | `handlers` | what is answered |
//! | `put`, `patch` | what clients ask for, as what the core does |
//! | `options` | unit files as lists of assignments |
//! | `token` | page tokens |
//! | `wire` | the objects |
//! | `reach` | the leader, here or on another scheduler |

mod handlers;
mod options;
mod patch;
mod put;
mod reach;
mod routes;
mod token;
mod wire;

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, SERVER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::either::Either;
use tracing::{debug, info, warn};

use self::handlers::{Api, Reply};
use self::reach::Reach;
use self::wire::Refused;
use crate::config::FleetApi;
use crate::front::Front;

/// How many connections there may be on TCP, and on the socket; who comes then waits for one to end.
const CONNECTIONS: usize = 128;

/// How long a client may take to send the head of a request, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How large that head may be, in bytes, and how many fields it may have.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 100;

/// How long a request may take, with its body and the leader's answer: fleetctl waits for ever.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a connection may last, and what was begun on it beyond that: so long at most holds a client its place that
/// does not read.
const CONNECTION_LASTS: Duration = Duration::from_secs(300);
const LAST_ANSWER: Duration = Duration::from_secs(60);

/// How long it is until a connection is accepted again when that has failed, as it does without file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Who may use the socket: its user and its group, and root.
const SOCKET_MODE: u32 = 0o660;

/// fleet says which version it is; and this is none of its own.
const SERVER_NAME: &str = concat!("fleetd/1.0.0+muster-", env!("CARGO_PKG_VERSION"));

/// The API, served.
#[derive(Debug)]
pub(crate) struct Server {
    address: Option<SocketAddr>,
    socket: Option<PathBuf>,
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

impl Server {
    /// Serves where the configuration says.
    ///
    /// # Errors
    /// When one of these places cannot be used.
    pub(crate) async fn start(config: &FleetApi, front: Arc<Front>) -> Result<Self> {
        let api = Arc::new(Api(Reach::new(front)));
        let (stop, stopped) = watch::channel(false);
        let mut server = Self { address: None, socket: None, stop, accepting: JoinSet::new() };
        let mut listeners = Vec::new();
        if let Some(listen) = config.listen {
            let listener = TcpListener::bind(listen)
                .await
                .with_context(|| format!("cannot listen on {listen} for fleet's API"))?;
            server.address = Some(listener.local_addr()?);
            listeners.push(Listener::Tcp(listener));
        }
        if let Some(path) = &config.socket {
            let listener =
                bind(path).with_context(|| format!("cannot listen on {} for fleet's API", path.display()))?;
            server.socket = Some(path.clone());
            listeners.push(Listener::Unix(listener));
        }
        for listener in listeners {
            server.accepting.spawn(accept(listener, Arc::clone(&api), stopped.clone()));
        }
        info!(address = ?server.address, socket = ?server.socket, "serving fleet's API");
        Ok(server)
    }

    /// Where it listens, if it does so on TCP.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Takes no more requests, and waits for a while for those that were begun.
    pub(crate) async fn stop(mut self, at_most: Duration) {
        self.stop.send(true).ok();
        if timeout(at_most, async { while self.accepting.join_next().await.is_some() {} }).await.is_err() {
            warn!("some requests of fleet's API did not end in time");
        }
        if let Some(path) = self.socket {
            fs::remove_file(path).ok();
        }
    }
}

/// Makes the socket. One that is left over, where nobody listens any more, is removed.
fn bind(path: &Path) -> Result<UnixListener> {
    match StdUnixStream::connect(path) {
        Ok(_) => bail!("another process listens there"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                bail!("there is a file that is no socket");
            }
            fs::remove_file(path).context("cannot remove the socket that is left there")?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).context("cannot set its permissions")?;
    Ok(listener)
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Either<TcpStream, UnixStream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true).ok();
                Ok(Either::Left(stream))
            }
            Self::Unix(listener) => Ok(Either::Right(listener.accept().await?.0)),
        }
    }
}

/// Takes connections until it is told to stop, then waits for those that there are.
async fn accept(listener: Listener, api: Arc<Api>, stopped: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stop = stopped.clone();
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // Never closed.
            let place = Arc::clone(&room).acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        tokio::select! {
            () = told(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            next = next => match next {
                Some((place, Ok(stream))) => {
                    connections.spawn(connection(stream, Arc::clone(&api), place, stopped.clone()));
                }
                Some((_, Err(error))) => {
                    debug!(%error, "cannot accept a connection for fleet's API");
                    sleep(ACCEPT_AGAIN).await;
                }
                None => break,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits until the server is to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    stop.wait_for(|stop| *stop).await.map(drop).ok();
}

async fn connection(
    stream: Either<TcpStream, UnixStream>,
    api: Arc<Api>,
    _place: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(|request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(answer(&api, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.max_header_size(MAX_HEAD).max_headers(MAX_FIELDS);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // How it ended is the client's to know.
        _ = served.as_mut() => return,
        () = told(&mut stop) => {}
        () = sleep(CONNECTION_LASTS) => {}
    }
    served.as_mut().graceful_shutdown();
    timeout(LAST_ANSWER, served).await.ok();
}

async fn answer(api: &Api, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let answered = timeout(REQUEST_TIMEOUT, api.answer(&head.method, &head.uri, &head.headers, body)).await;
    let Reply { status, content_type, body } = answered.unwrap_or_else(|_| {
        let text =
            format!("no answer within {} s: the scheduler's store may not answer", REQUEST_TIMEOUT.as_secs());
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, text).into()
    });
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}
