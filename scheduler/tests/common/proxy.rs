//! A member of etcd as clients see it through a proxy that answers some transactions otherwise than etcd does.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use muster_etcd::pb;
use muster_etcd::pb::kv_client::KvClient;
use muster_etcd::pb::request_op::Request as Operation;
use muster_test_etcd::{Etcd, runtime};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// What becomes of a transaction.
#[derive(Clone)]
pub enum Fate {
    Answered,
    /// It does not reach etcd, and this is the answer.
    Refused(Status),
    /// etcd has done it, and this is the answer.
    Done(Status),
    /// It waits until another rule says something else, also where nobody waits for the answer any more.
    Waits,
}

type Rule = Arc<dyn Fn(&pb::TxnRequest) -> Fate + Send + Sync>;

/// A proxy before the first member of an etcd.
pub struct Proxy {
    endpoint: String,
    etcd: Arc<Member>,
    _runtime: Runtime,
}

struct Member {
    channel: Channel,
    rule: watch::Sender<Rule>,
    waiting: AtomicUsize,
    /// Of those that have waited: whether their comparisons held.
    late: Mutex<Vec<bool>>,
    /// The version that it says it has, where that is not its own.
    version: Mutex<Option<&'static str>>,
}

impl Proxy {
    /// One that changes nothing.
    pub fn new(etcd: &Etcd) -> Self {
        let runtime = runtime();
        let (endpoint, member) = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
            let channel = Endpoint::from_shared(etcd.endpoints().remove(0)).expect("a URL").connect_lazy();
            let (rule, _) = watch::channel(Arc::new(|_: &pb::TxnRequest| Fate::Answered) as Rule);
            let member = Arc::new(Member {
                channel,
                rule,
                waiting: AtomicUsize::new(0),
                late: Mutex::default(),
                version: Mutex::default(),
            });
            let server = Server::builder()
                .add_service(Kv(Arc::clone(&member)))
                .add_service(Lease(Arc::clone(&member)))
                .add_service(Watch(Arc::clone(&member)))
                .add_service(Maintenance(Arc::clone(&member)))
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
            tokio::spawn(server);
            (endpoint, member)
        });
        Self { endpoint, etcd: member, _runtime: runtime }
    }

    /// Where it listens.
    pub fn endpoints(&self) -> Vec<String> {
        vec![self.endpoint.clone()]
    }

    /// How a client gets there.
    pub fn config(&self) -> muster_etcd::Config {
        muster_etcd::Config { endpoints: self.endpoints(), ..Default::default() }
    }

    /// From now on this says what becomes of transactions, also of those that wait.
    pub fn rules(&self, rule: impl Fn(&pb::TxnRequest) -> Fate + Send + Sync + 'static) {
        self.etcd.rule.send_replace(Arc::new(rule));
    }

    /// How many transactions wait.
    pub fn waiting(&self) -> usize {
        self.etcd.waiting.load(Ordering::Acquire)
    }

    /// Of the transactions that have waited and were let go: whether etcd has found their comparisons to hold.
    pub fn late(&self) -> Vec<bool> {
        self.etcd.late.lock().expect("no panic").clone()
    }

    /// From now on it says that it is of this version.
    pub fn has_version(&self, version: &'static str) {
        *self.etcd.version.lock().expect("no panic") = Some(version);
    }
}

/// Whether it writes this key, or one below it.
pub fn writes(transaction: &pb::TxnRequest, key: &str) -> bool {
    transaction.success.iter().any(|operation| match &operation.request {
        Some(Operation::RequestPut(put)) => put.key.starts_with(key.as_bytes()),
        _ => false,
    })
}

/// Whether it deletes this key.
pub fn deletes(transaction: &pb::TxnRequest, key: &str) -> bool {
    transaction.success.iter().any(|operation| match &operation.request {
        Some(Operation::RequestDeleteRange(delete)) => delete.key == key.as_bytes(),
        _ => false,
    })
}

/// The rule for those that write this key or one below it; all others are answered.
pub fn of_writes(
    key: &'static str,
    fate: impl Fn() -> Fate + Send + Sync + 'static,
) -> impl Fn(&pb::TxnRequest) -> Fate + Send + Sync + 'static {
    move |transaction| if writes(transaction, key) { fate() } else { Fate::Answered }
}

/// What etcd says that has no room.
pub fn no_space() -> Status {
    Status::resource_exhausted("etcdserver: mvcc: database space exceeded")
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

macro_rules! services {
    ($($service:ident is $name:literal),+ $(,)?) => {
        $(
            #[derive(Clone)]
            struct $service(Arc<Member>);

            impl NamedService for $service {
                const NAME: &'static str = concat!("etcdserverpb.", $name);
            }

            impl Service<http::Request<Body>> for $service {
                type Response = http::Response<Body>;
                type Error = Infallible;
                type Future = Answer<Result<Self::Response, Infallible>>;

                fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                    Poll::Ready(Ok(()))
                }

                fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                    let member = Arc::clone(&self.0);
                    Box::pin(async move { Ok(member.pass(request).await) })
                }
            }
        )+
    };
}

services![Kv is "KV", Lease is "Lease", Watch is "Watch", Maintenance is "Maintenance"];

impl Member {
    async fn pass(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path().ends_with("/Txn") {
            return Grpc::new(ProstCodec::default()).unary(Transaction(self), request).await;
        }
        let version = *self.version.lock().expect("no panic");
        if let Some(version) = version.filter(|_| request.uri().path().ends_with("/Status")) {
            return Grpc::new(ProstCodec::default()).unary(Version(version), request).await;
        }
        let mut channel = self.channel.clone();
        let answered = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        };
        answered.await.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http())
    }

    async fn transact(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let (mut rule, mut waits) = (self.rule.subscribe(), false);
        let fate = loop {
            let current = Arc::clone(&rule.borrow_and_update());
            match current(request.get_ref()) {
                Fate::Waits => {
                    waits = true;
                    self.waiting.fetch_add(1, Ordering::AcqRel);
                    rule.changed().await.ok();
                }
                fate => break fate,
            }
        };
        if let Fate::Refused(status) = fate {
            return Err(status);
        }
        let answer = KvClient::new(self.channel.clone()).txn(request).await?;
        if waits {
            self.late.lock().expect("no panic").push(answer.get_ref().succeeded);
        }
        if let Fate::Done(status) = fate { Err(status) } else { Ok(answer) }
    }
}

struct Transaction(Arc<Member>);

impl UnaryService<pb::TxnRequest> for Transaction {
    type Response = pb::TxnResponse;
    type Future = Answer<Result<Response<pb::TxnResponse>, Status>>;

    fn call(&mut self, request: Request<pb::TxnRequest>) -> Self::Future {
        let member = Arc::clone(&self.0);
        // Who asks may give up meanwhile: a network that was slow delivers it all the same.
        let transacted = tokio::spawn(async move { member.transact(request).await });
        Box::pin(async move { transacted.await.expect("no panic") })
    }
}

struct Version(&'static str);

impl UnaryService<pb::StatusRequest> for Version {
    type Response = pb::StatusResponse;
    type Future = std::future::Ready<Result<Response<pb::StatusResponse>, Status>>;

    fn call(&mut self, _: Request<pb::StatusRequest>) -> Self::Future {
        let answer = pb::StatusResponse { version: self.0.to_owned(), ..Default::default() };
        std::future::ready(Ok(Response::new(answer)))
    }
}
