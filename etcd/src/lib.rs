//! A client of etcd v3, for the part of it that Muster uses.
//!
//! It knows all members of the etcd cluster and asks one of them at a time. A request is made once: whether it may be
//! made again is for who makes it to know, and the next one goes to the next member where one did not answer. So that a
//! member which is cut off or stands still costs a request's time, and not the connection's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status, Streaming};

use self::pb::auth_client::AuthClient;
use self::pb::kv_client::KvClient;
use self::pb::lease_client::LeaseClient;
use self::pb::maintenance_client::MaintenanceClient;
use self::pb::watch_client::WatchClient;

/// etcd's messages.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod pb {
    tonic::include_proto!("etcdserverpb");
}

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a member that owes an answer is asked whether it is there, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// The longest message that is taken, in bytes: an answer to a range has many values of up to 1.5 MiB.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Of a request to a member that has lost the others: it says so at once.
const REQUIRE_LEADER: &str = "hasleader";
/// Where the token of an authenticated client goes.
const TOKEN: &str = "token";

/// How etcd is reached.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The members' URLs for clients: `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// With what `https` is spoken.
    pub tls: Option<Tls>,
    /// Name and password, where etcd asks for them.
    pub user: Option<(String, String)>,
}

/// Whom to trust, and who this client is. All in PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The authorities that sign the members' certificates.
    pub ca: Vec<u8>,
    /// This client's certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Why a request has no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was done, for certain, and it would be refused again.
    #[error("{0}")]
    Refused(String),
    /// There is no room: nothing was done, for certain.
    #[error(
        "etcd is full ({0}): raise its quota (--quota-backend-bytes), or compact and defragment it, then disarm the alarm \
         (etcdctl alarm disarm)"
    )]
    NoSpace(String),
    /// What was asked about is so old that the store has forgotten it.
    #[error("etcd has compacted what was asked for")]
    Compacted,
    /// The lease is over.
    #[error("the lease is over")]
    NoLease,
    /// Nothing was done, for certain, since it is not known there who this client is: it may be asked again.
    #[error("{endpoint}: {problem}")]
    Unauthenticated {
        /// Who was asked.
        endpoint: String,
        /// Why that is not known.
        problem: String,
    },
    /// No answer: it may have been done or not, or may yet be.
    #[error("{endpoint}: {problem}")]
    Unanswered {
        /// Who was asked.
        endpoint: String,
        /// Why there is none.
        problem: String,
    },
}

/// A client of an etcd cluster.
#[derive(Debug)]
pub struct Client {
    members: Vec<Member>,
    /// The member that is asked.
    current: AtomicUsize,
    user: Option<(String, String)>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

#[derive(Debug)]
struct Member {
    endpoint: String,
    /// What may be wrong where it ends connections.
    doubt: &'static str,
    channel: Channel,
}

impl Client {
    /// A client; it connects when it is asked for something, and anew whenever that is needed.
    ///
    /// # Errors
    /// An endpoint that is none, a certificate or key that is none.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn new(config: Config) -> Result<Self, Error> {
        let members: Result<Vec<_>, _> =
            config.endpoints.iter().map(|endpoint| member(endpoint, config.tls.as_ref())).collect();
        let members = members?;
        if members.is_empty() {
            return Err(Error::Refused("no endpoint of etcd is given".to_owned()));
        }
        Ok(Self { members, current: AtomicUsize::new(0), user: config.user, token: Mutex::default() })
    }

    /// Where the members are.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| &*member.endpoint)
    }

    /// Reads keys. The answer is as of a moment after the question.
    pub async fn range(&self, request: pb::RangeRequest, wait: Duration) -> Result<pb::RangeResponse, Error> {
        self.ask(wait, request, async |channel, request| {
            KvClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).range(request).await
        })
        .await
    }

    /// Changes keys, if comparisons hold.
    pub async fn txn(&self, request: pb::TxnRequest, wait: Duration) -> Result<pb::TxnResponse, Error> {
        self.ask(wait, request, async |channel, request| {
            KvClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).txn(request).await
        })
        .await
    }

    /// A new lease of at least so many seconds, with its number.
    pub async fn grant(&self, ttl: i64, wait: Duration) -> Result<pb::LeaseGrantResponse, Error> {
        let request = pb::LeaseGrantRequest { ttl, id: 0 };
        self.ask(wait, request, async |channel, request| LeaseClient::new(channel).lease_grant(request).await)
            .await
    }

    /// Has a lease run its full time from a moment after this call began; gives that time in seconds.
    ///
    /// # Errors
    /// [`Error::NoLease`] when it is over.
    pub async fn keep_alive(&self, lease: i64, wait: Duration) -> Result<i64, Error> {
        let request = pb::LeaseKeepAliveRequest { id: lease };
        let answer = self
            .ask(wait, request, async |channel, request: Request<pb::LeaseKeepAliveRequest>| {
                let (metadata, extensions, message) = request.into_parts();
                let request = Request::from_parts(metadata, extensions, tokio_stream::once(message));
                let mut stream = LeaseClient::new(channel).lease_keep_alive(request).await?.into_inner();
                let answer = stream.message().await?;
                answer.map(Response::new).ok_or_else(|| Status::unavailable("it ended the stream"))
            })
            .await?;
        if answer.ttl > 0 { Ok(answer.ttl) } else { Err(Error::NoLease) }
    }

    /// Ends a lease, and with it the keys that hang on it. That it is over already is no error.
    pub async fn revoke(&self, lease: i64, wait: Duration) -> Result<(), Error> {
        let request = pb::LeaseRevokeRequest { id: lease };
        let revoked = self
            .ask(wait, request, async |channel, request| {
                LeaseClient::new(channel).lease_revoke(request).await
            })
            .await;
        match revoked {
            Ok(_) | Err(Error::NoLease) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens a stream that tells of changes to keys.
    pub async fn watch(
        &self,
        watches: Vec<pb::WatchCreateRequest>,
        wait: Duration,
    ) -> Result<Changes, Error> {
        let (index, _) = self.current();
        let requests = watches.into_iter().map(|create| pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
        });
        // The stream stays open for as long as requests may come.
        let requests = tokio_stream::iter(requests.collect::<Vec<_>>()).chain(tokio_stream::pending());
        let mut request = Request::new(requests);
        request.metadata_mut().insert(REQUIRE_LEADER, MetadataValue::from_static("true"));
        let opened = self
            .authenticated(index, wait, request, async |channel, request| {
                WatchClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).watch(request).await
            })
            .await;
        match opened {
            Ok(stream) => Ok(Changes { member: index, stream }),
            Err(error) => Err(self.failed(index, error)),
        }
    }

    /// The next change that a stream tells of.
    ///
    /// # Errors
    /// When the stream has ended: a new one is needed.
    pub async fn next_change(&self, changes: &mut Changes) -> Result<pb::WatchResponse, Error> {
        let status = match changes.stream.message().await {
            Ok(Some(response)) => return Ok(response),
            Ok(None) => Status::unavailable("it ended the stream"),
            Err(status) => status,
        };
        Err(self.failed(changes.member, judge(&self.members[changes.member], &status)))
    }

    /// What each member says of itself, in the order of the endpoints. They are asked together, so that one that stands still
    /// costs the time of a request, however many do.
    pub async fn status(&self, wait: Duration) -> Vec<(&str, Result<pb::StatusResponse, Error>)> {
        let ask = async |index| {
            // A member without the others is to answer as well: no leader is required.
            let request = Request::new(pb::StatusRequest {});
            self.authenticated(index, wait, request, async |channel, request| {
                MaintenanceClient::new(channel).status(request).await
            })
            .await
        };
        let answers = join_all((0..self.members.len()).map(ask)).await;
        self.endpoints().zip(answers).collect()
    }

    /// The alarms that are raised.
    pub async fn alarms(&self, wait: Duration) -> Result<Vec<pb::AlarmMember>, Error> {
        let request = pb::AlarmRequest::default();
        let answer = self
            .ask(wait, request, async |channel, request| MaintenanceClient::new(channel).alarm(request).await)
            .await?;
        Ok(answer.alarms)
    }

    fn current(&self) -> (usize, &Member) {
        let index = self.current.load(Ordering::Relaxed) % self.members.len();
        (index, &self.members[index])
    }

    /// The next request goes to another member than this one, where it is for want of an answer.
    fn failed(&self, index: usize, error: Error) -> Error {
        if let Error::Unauthenticated { .. } | Error::Unanswered { .. } = error {
            let next = (index + 1) % self.members.len();
            self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed).ok();
        }
        error
    }

    async fn ask<Q: Clone, A>(
        &self,
        wait: Duration,
        message: Q,
        call: impl AsyncFn(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let (index, _) = self.current();
        let mut request = Request::new(message);
        request.metadata_mut().insert(REQUIRE_LEADER, MetadataValue::from_static("true"));
        self.authenticated(index, wait, request, call).await.map_err(|error| self.failed(index, error))
    }

    /// Makes a request, with the token that etcd has given; with a new one where it does not know that any more.
    async fn authenticated<Q, A>(
        &self,
        index: usize,
        wait: Duration,
        mut request: Request<Q>,
        call: impl AsyncFn(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let member = &self.members[index];
        let deadline = Instant::now() + wait;
        let late = || Status::deadline_exceeded(format!("no answer in {} ms", wait.as_millis()));
        let unauthenticated = |problem| Error::Unauthenticated { endpoint: member.endpoint.clone(), problem };
        let token = timeout_at(deadline, self.token(member)).await.unwrap_or_else(|_| Err(late()));
        let token = token.map_err(|status| match judge(member, &status) {
            // It was not asked for anything yet.
            Error::Unanswered { problem, .. } => unauthenticated(problem),
            error => error,
        })?;
        if let Some(token) = token {
            request.metadata_mut().insert(TOKEN, token);
        }
        let status = match timeout_at(deadline, call(member.channel.clone(), request)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => late(),
        };
        if is_about_token(&status) {
            // The next request gets a new one; this one was not carried out, and who made it makes it again.
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(unauthenticated(format!("it asks for a new token ({})", status.message())));
        }
        Err(judge(member, &status))
    }

    async fn token(&self, member: &Member) -> Result<Option<MetadataValue<Ascii>>, Status> {
        let Some((name, password)) = &self.user else { return Ok(None) };
        if let Some(token) = &*self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Some(token.clone()));
        }
        let request = pb::AuthenticateRequest { name: name.clone(), password: password.clone() };
        let answer = AuthClient::new(member.channel.clone()).authenticate(request).await;
        let token = match answer {
            Ok(answer) => answer.into_inner().token,
            // No one needs to say who he is.
            Err(status) if status.message().contains("authentication is not enabled") => return Ok(None),
            Err(status) => return Err(status),
        };
        let token = MetadataValue::try_from(token)
            .map_err(|_| Status::internal("the token that it gives is no metadata"))?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(Some(token))
    }
}

/// A stream that tells of changes.
#[derive(Debug)]
pub struct Changes {
    member: usize,
    stream: Streaming<pb::WatchResponse>,
}

fn member(endpoint: &str, tls: Option<&Tls>) -> Result<Member, Error> {
    let refused = |problem: &dyn std::fmt::Display| Error::Refused(format!("{endpoint}: {problem}"));
    let mut doubt = "";
    let mut channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| refused(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    if endpoint.starts_with("https://") {
        let tls = tls.ok_or_else(|| refused(&"https needs the certificate of the authority (`ca`)"))?;
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
        if let Some((certificate, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        channel = channel.tls_config(config).map_err(|error| refused(&innermost(&error)))?;
        doubt = match tls.identity {
            Some(_) => " (does it trust this client's certificate?)",
            None => " (does it ask for a client's certificate? None is given)",
        };
    }
    Ok(Member { endpoint: endpoint.to_owned(), doubt, channel: channel.connect_lazy() })
}

/// The token is unknown there, or older than what was changed of users and roles. Nothing was carried out.
fn is_about_token(status: &Status) -> bool {
    let message = status.message();
    message.contains("invalid auth token") || message.contains("revision of auth store is old")
}

/// Tells what was not done, for certain, from what may have been. etcd's errors: api/v3rpc/rpctypes/error.go.
fn judge(member: &Member, status: &Status) -> Error {
    let endpoint = &member.endpoint;
    let message = status.message().trim_start_matches("etcdserver: ");
    match status.code() {
        Code::ResourceExhausted if message.contains("space exceeded") => Error::NoSpace(message.to_owned()),
        Code::OutOfRange if message.contains("compacted") => Error::Compacted,
        Code::NotFound if message.contains("lease not found") => Error::NoLease,
        Code::InvalidArgument if message.contains("request is too large") => Error::Refused(format!(
            "{endpoint}: {message}: Muster's take up to 1.1 MiB; etcd's --max-request-bytes must not be below its default"
        )),
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::Unimplemented => Error::Refused(format!("{endpoint}: {message}")),
        _ => {
            let transport = std::error::Error::source(status).map(innermost);
            let mut problem = transport.unwrap_or_else(|| message.to_owned());
            // A member that does not like a certificate ends the connection, sooner or later.
            let ended = ["alert", "broken pipe", "closed", "reset"];
            if ended.iter().any(|how| problem.to_lowercase().contains(how)) {
                problem.push_str(member.doubt);
            }
            Error::Unanswered { endpoint: endpoint.clone(), problem }
        }
    }
}

/// The cause of all causes: those before it say no more than "transport error".
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
