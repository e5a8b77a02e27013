//! A scheduler that does not lead.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use muster_proto::not_leading;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// It answers every request of a client by saying who leads. It ends when it is dropped.
pub struct Follower {
    address: SocketAddr,
    answers: Answers,
    _stop: oneshot::Sender<()>,
}

#[derive(Clone, Default)]
struct Answers {
    leader: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
}

impl Follower {
    pub fn start(leader: Option<SocketAddr>) -> Self {
        let answers = Answers::default();
        let incoming = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = incoming.local_addr().expect("an address");
        incoming.set_nonblocking(true).expect("possible");
        let (stop, stopped) = oneshot::channel::<()>();
        let service = answers.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::TcpListener::from_std(incoming).expect("a listener");
                let served = Server::builder()
                    .add_service(service)
                    .serve_with_incoming_shutdown(TcpIncoming::from(listener), async { _ = stopped.await });
                served.await.expect("it serves");
            });
        });
        let follower = Self { address, answers, _stop: stop };
        follower.follows(leader);
        follower
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on that one leads.
    pub fn follows(&self, leader: Option<SocketAddr>) {
        *self.answers.leader.lock().expect("not poisoned") = leader.map(|leader| leader.to_string());
    }

    /// How many requests it has answered.
    pub fn asked(&self) -> usize {
        self.answers.asked.load(Ordering::SeqCst)
    }
}

impl NamedService for Answers {
    const NAME: &'static str = "muster.v1.Muster";
}

impl Service<http::Request<Body>> for Answers {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: http::Request<Body>) -> Self::Future {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let leader = self.leader.lock().expect("not poisoned").clone();
        ready(Ok(not_leading(leader.as_deref()).into_http()))
    }
}
