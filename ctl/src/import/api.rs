//! The part of fleet's HTTP API that an import needs: all units, page by page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::client::cause;
use crate::failure::{Exit, Failure};

/// For how long one page is waited for: fleet reads all units for each.
const LIMIT: Duration = Duration::from_secs(30);
/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Where fleet has its API; the second is the older name.
const PREFIXES: [&str; 2] = ["/fleet/v1", "/v1-alpha"];

/// A unit as fleet has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FleetUnit {
    /// Its name.
    pub name: String,
    /// What is in its file, in order.
    #[serde(default)]
    pub options: Vec<FleetOption>,
    /// `inactive`, `loaded` or `launched`; nothing is the first.
    #[serde(default)]
    pub desired_state: String,
}

/// A line of a unit file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct FleetOption {
    /// The section, without brackets.
    pub section: String,
    /// The name of the setting.
    pub name: String,
    /// Its value; where a line goes on on the next one, with the backslash and the line break.
    #[serde(default)]
    pub value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    units: Vec<FleetUnit>,
    #[serde(default)]
    next_page_token: String,
}

/// Where a fleet's API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    at: At,
    /// What stands before the prefix, without a `/` at the end.
    base: String,
    shown: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Tcp { authority: String, host: String, port: u16 },
    Unix(PathBuf),
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Fleet {
    /// Reads an endpoint as fleetctl writes it.
    ///
    /// # Errors
    /// [`Exit::Usage`] with what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::new(
                Exit::Usage,
                format_args!(
                    "{url:?} is no address of fleet's API: {why}\n  Write http://HOST:PORT or unix:///PATH"
                ),
            )
        };
        let fleet =
            |at, base: &str| Self { at, base: base.trim_end_matches('/').to_owned(), shown: url.to_owned() };
        match url.split_once("://") {
            Some(("unix" | "file", path)) if path.starts_with('/') => Ok(fleet(At::Unix(path.into()), "")),
            Some(("unix" | "file", _)) => {
                Err(wrong("the path of a socket begins with a /, so that there are three of them"))
            }
            Some(("https", _)) => {
                Err(wrong("https is not spoken here: a tunnel of ssh's (ssh -L) makes it http"))
            }
            Some(("http", _)) => {
                let uri: Uri = url.parse().map_err(|error| wrong(&format!("{error}")))?;
                let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
                let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
                let at = At::Tcp {
                    authority: authority.to_string(),
                    host,
                    port: authority.port_u16().unwrap_or(80),
                };
                Ok(fleet(at, uri.path()))
            }
            Some((scheme, _)) => Err(wrong(&format!("{scheme}:// is not known"))),
            None => Err(wrong("it has no scheme")),
        }
    }

    /// All units, in the order of their names.
    ///
    /// # Errors
    /// When fleet does not answer, or with something else.
    pub async fn units(&self) -> Result<Vec<FleetUnit>, Failure> {
        let mut prefix = PREFIXES[0];
        let mut first = self.get(&format!("{prefix}/units")).await?;
        if first.0 == StatusCode::NOT_FOUND {
            prefix = PREFIXES[1];
            first = self.get(&format!("{prefix}/units")).await?;
        }
        let mut answer = first;
        // A unit may come twice where the list changed between two pages.
        let mut units = BTreeMap::new();
        let mut tokens = BTreeSet::new();
        loop {
            let page = self.page(answer.0, &answer.1)?;
            units.extend(page.units.into_iter().map(|unit| (unit.name.clone(), unit)));
            let token = page.next_page_token;
            if token.is_empty() {
                return Ok(units.into_values().collect());
            }
            let query = escaped(&token);
            if !tokens.insert(token) {
                return Err(self.failure("its pages go round in a circle"));
            }
            answer = self.get(&format!("{prefix}/units?nextPageToken={query}")).await?;
        }
    }

    fn page(&self, status: StatusCode, body: &[u8]) -> Result<Page, Failure> {
        match status {
            StatusCode::OK => serde_json::from_slice(body)
                .map_err(|error| self.failure(&format!("its list of units is not understood: {error}"))),
            StatusCode::NO_CONTENT => Ok(Page::default()),
            StatusCode::NOT_FOUND => Err(self.failure("it has no list of units (404): is that fleet's API?")),
            status => {
                let said = serde_json::from_slice::<serde_json::Value>(body).ok();
                let said =
                    said.as_ref().and_then(|error| error["error"]["message"].as_str()).unwrap_or_default();
                let said = if said.is_empty() { String::new() } else { format!(": {said}") };
                Err(self.failure(&format!("it answers {status}{said}")))
            }
        }
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), Failure> {
        let get = async {
            match &self.at {
                At::Tcp { authority, host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    get(stream, authority, &format!("{}{path}", self.base)).await
                }
                At::Unix(socket) => get(UnixStream::connect(socket).await?, "fleet", path).await,
            }
        };
        match tokio::time::timeout(LIMIT, get).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(&cause(&*error))),
            Err(_) => Err(self.failure(&format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    fn failure(&self, why: &str) -> Failure {
        Failure::failed(format_args!(
            "cannot read the units of the fleet at {self}: {why}\nNothing was changed."
        ))
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// One request, on a connection of its own.
async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    path: &str,
) -> Result<(StatusCode, Bytes), Cause> {
    let (mut requests, connection) = handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(HOST, host).body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = requests.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await?;
        Ok::<_, Cause>((status, body.to_bytes()))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The other side may end it after the last byte.
        ended = connection => { ended?; answer.await }
    }
}

/// A token as it may stand in a query.
fn escaped(token: &str) -> String {
    let mut escaped = String::new();
    for byte in token.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~=".contains(&byte) {
            escaped.push(byte.into());
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let tcp = |url: &str| match Fleet::parse(url).expect(url) {
            Fleet { at: At::Tcp { authority, host, port }, base, .. } => {
                format!("{authority} {host} {port} {base}")
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(tcp("http://10.0.0.1:49153"), "10.0.0.1:49153 10.0.0.1 49153 ");
        assert_eq!(tcp("http://fleet.example/under/"), "fleet.example fleet.example 80 /under");
        assert_eq!(tcp("http://[::1]:8080/"), "[::1]:8080 ::1 8080 ");
        let socket = At::Unix("/var/run/fleet.sock".into());
        assert_eq!(Fleet::parse("unix:///var/run/fleet.sock").expect("a socket").at, socket);
        assert_eq!(Fleet::parse("file:///var/run/fleet.sock").expect("a socket").at, socket);
        let wrong = ["unix://var/run/fleet.sock", "https://h:1", "10.0.0.1:49153", "http://", "tcp://h:1"];
        let wrong = wrong.map(|url| {
            let failure = Fleet::parse(url).expect_err(url);
            assert_eq!(failure.exit, Exit::Usage);
            failure.message
        });
        insta::assert_snapshot!(wrong.join("\n"));
    }

    #[test]
    fn tokens_stand_in_a_query() {
        assert_eq!(escaped("ZAACAA=="), "ZAACAA==");
        assert_eq!(escaped("a&b#c"), "a%26b%23c");
    }
}
