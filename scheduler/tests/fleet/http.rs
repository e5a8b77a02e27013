//! A plain HTTP client, over TCP and over a unix socket, and a scheduler to speak to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use muster_scheduler::config::{Config, FleetApi};
use muster_scheduler::daemon::Daemon;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::common::agent::{Agent, PATIENCE};

/// The machines' ids, as they are shown.
pub const M1: &str = "00000000000000000000000000000001";
pub const M2: &str = "00000000000000000000000000000002";

/// A scheduler that serves fleet's API both ways.
pub struct Served {
    pub daemon: Daemon,
    pub socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("fleet.sock");
        let config = Config {
            listen: "127.0.0.1:0".parse().expect("an address"),
            state_dir: directory.path().join("state"),
            fleet_api: Some(FleetApi {
                listen: Some("127.0.0.1:0".parse().expect("an address")),
                socket: Some(socket.clone()),
            }),
            ..Config::default()
        };
        let daemon = Daemon::start(&config).await.expect("start");
        Self { daemon, socket, _directory: directory }
    }

    /// One client on TCP and one on the socket.
    pub fn clients(&self) -> [Http; 2] {
        [Http::Tcp(self.daemon.fleet_address().expect("on TCP")), Http::Unix(self.socket.clone())]
    }

    /// A machine that does all that it is told.
    pub async fn machine(&self, number: u128) {
        let mut agent = Agent::dial(&self.daemon).await;
        agent.hello_from(number, &format!("198.18.0.{number}")).await;
        agent.obeys();
    }
}

#[derive(Clone, Debug)]
pub enum Http {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What was answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The message of an error, whose body has to be fleet's.
    pub fn message(&self) -> String {
        let json = self.json();
        assert_eq!(json["error"]["code"], self.status, "{self:?}");
        assert_eq!(self.content_type(), Some("application/json"));
        json["error"]["message"].as_str().expect("a text").to_owned()
    }

    pub fn content_type(&self) -> Option<&str> {
        self.headers.get("content-type").map(|value| value.to_str().expect("text"))
    }
}

impl Http {
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let request = async {
            match self {
                Self::Tcp(address) => {
                    exchange(
                        TcpStream::connect(address).await.expect("it listens"),
                        method,
                        path,
                        headers,
                        body,
                    )
                    .await
                }
                Self::Unix(path_of_socket) => {
                    let stream = UnixStream::connect(path_of_socket).await.expect("it listens");
                    exchange(stream, method, path, headers, body).await
                }
            }
        };
        timeout(PATIENCE * 2, request).await.unwrap_or_else(|_| panic!("no answer to {method} {path}"))
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[("user-agent", "google-api-go-client/0.5")], "").await
    }

    /// Gets what must be there.
    pub async fn json(&self, path: &str) -> Value {
        let reply = self.get(path).await;
        assert_eq!(
            (reply.status, reply.content_type()),
            (200, Some("application/json")),
            "{path}: {reply:?}"
        );
        reply.json()
    }

    pub async fn put(&self, path: &str, body: &str) -> Reply {
        self.send("PUT", path, &[("content-type", "application/json")], body).await
    }

    /// As fleetctl does: gets a unit until its field is so.
    pub async fn until(&self, path: &str, field: &str, value: &str) -> Value {
        let mut last = Value::Null;
        let wait = async {
            loop {
                last = self.json(path).await;
                if last[field] == value {
                    return last.clone();
                }
                tokio::task::yield_now().await;
            }
        };
        let seen = timeout(PATIENCE, wait).await;
        seen.unwrap_or_else(|_| panic!("waited in vain for {field} = {value} in {path}: {last}"))
    }

    /// All rows of a list, page by page, and how many pages there were.
    pub async fn all(&self, path: &str, rows: &str) -> (Vec<Value>, usize) {
        let (mut all, mut pages, mut token) = (Vec::new(), 0, String::new());
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = self.json(&format!("{path}{separator}alt=json&nextPageToken={token}")).await;
            all.extend(page[rows].as_array().cloned().unwrap_or_default());
            pages += 1;
            match page["nextPageToken"].as_str() {
                Some(next) => next.clone_into(&mut token),
                None => return (all, pages),
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let (mut sender, connection) =
        http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.expect("a connection");
    tokio::spawn(connection);
    let mut request =
        Request::builder().method(Method::from_bytes(method.as_bytes()).expect("a method")).uri(path);
    request = request.header("host", "fleet");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::from(body.to_owned())).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        text: String::from_utf8(body.to_vec()).expect("text"),
    }
}

/// Not so long that a test would wait for the scheduler's own limits.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(120), future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
