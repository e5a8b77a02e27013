//! A connection that breaks at the worst moment: the command has arrived, its answer has not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// Passes connections on. In the first, nothing comes back any more once the client has sent the marker.
pub struct Proxy {
    address: SocketAddr,
    cut: Sender<()>,
}

impl Proxy {
    pub fn start(upstream: SocketAddr, marker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cut, cuts) = channel();
        let (cuts, marker) = (Arc::new(Mutex::new(Some(cuts))), marker.as_bytes().to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let first = cuts.lock().expect("not poisoned").take();
                pass(&client, upstream, first.map(|cut| (cut, marker.clone())));
            }
        });
        Self { address, cut }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks the first connection.
    pub fn cut(&self) {
        self.cut.send(()).expect("a connection came");
    }
}

fn pass(client: &TcpStream, upstream: SocketAddr, cut: Option<(Receiver<()>, Vec<u8>)>) {
    let server = TcpStream::connect(upstream).expect("the scheduler is there");
    let muted = Arc::new(AtomicBool::new(false));
    let (cut, marker) = cut.unzip();
    let pair = |stream: &TcpStream| stream.try_clone().expect("a handle");
    let (mut from_client, mut to_server) = (pair(client), pair(&server));
    let mute = Arc::clone(&muted);
    thread::spawn(move || {
        let mut seen = Vec::new();
        copy(&mut from_client, &mut to_server, |bytes| {
            if let Some(marker) = &marker {
                seen.extend_from_slice(bytes);
                if seen.windows(marker.len()).any(|window| window == marker) {
                    mute.store(true, Ordering::SeqCst);
                }
            }
            true
        });
    });
    let (mut from_server, mut to_client) = (pair(&server), pair(client));
    thread::spawn(move || copy(&mut from_server, &mut to_client, |_| !muted.load(Ordering::SeqCst)));
    if let Some(cut) = cut {
        let client = pair(client);
        thread::spawn(move || {
            cut.recv().ok();
            client.shutdown(Shutdown::Both).ok();
            server.shutdown(Shutdown::Both).ok();
        });
    }
}

/// Copies what `passes` lets through, until either side is closed. It is asked before the bytes are passed on.
fn copy(from: &mut TcpStream, to: &mut TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if passes(&buffer[..length]) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Write).ok();
}
