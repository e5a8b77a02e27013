//! What clients that mean no good, or are slow, can do.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use muster_scheduler::config::{Config, FleetApi};
use muster_scheduler::daemon::Daemon;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::common::agent::PATIENCE;
use crate::http::Served;

/// Sends this, and gives what comes until the connection ends.
async fn raw(served: &Served, bytes: &[u8]) -> String {
    let mut stream =
        TcpStream::connect(served.daemon.fleet_address().expect("on TCP")).await.expect("it listens");
    // It may end before all is sent.
    stream.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.is_ok();
    assert!(ended, "it goes on after {:?}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_too_large_or_no_http_is_refused() {
    let served = Served::start().await;
    for http in served.clients() {
        let large = "x".repeat(5 * 1024 * 1024);
        for (method, path) in [("PUT", "/fleet/v1/units/u.service"), ("PATCH", "/fleet/v1/machines")] {
            let reply = http.send(method, path, &[("content-type", "application/json")], &large).await;
            assert_eq!(reply.status, 413, "{reply:?}");
            assert_eq!(reply.message(), "the body is larger than the 4194304 bytes that are allowed");
        }
        // A file as large as they may be.
        let file = format!(
            "{{\"options\":[{{\"section\":\"S\",\"name\":\"a\",\"value\":\"{}\"}}]}}",
            "y".repeat(1024 * 1024)
        );
        let reply = http.put("/fleet/v1/units/u.service", &file).await;
        assert!(
            reply.status == 400 && reply.message().contains("more than the 1048576 that are allowed"),
            "{reply:?}"
        );
    }
    let head = format!("GET /fleet/v1/units HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(raw(&served, head.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let fields = "X: y\r\n".repeat(1000);
    let head = format!("GET /fleet/v1/units HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    assert!(raw(&served, head.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    assert!(raw(&served, b"\x16\x03\x01 nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let chunked = b"PUT /fleet/v1/units/u.service HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: \
                    chunked\r\nConnection: close\r\n\r\nzz\r\n";
    let answer = raw(&served, chunked).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let [http, _] = served.clients();
    assert_eq!(http.get("/fleet/v1/units").await.text, "{}", "nothing of that was done, and it serves on");
    served.daemon.shutdown().await.expect("a clean shutdown");
}

/// Who holds all connections keeps others out, and for no longer than he holds them.
#[tokio::test]
async fn connections_are_bounded() {
    let served = Served::start().await;
    let [http, socket] = served.clients();
    let address = served.daemon.fleet_address().expect("on TCP");
    let mut held = Vec::new();
    for _ in 0..128 {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        // Answered once, so that it is known to be taken.
        stream.write_all(b"GET /fleet/v1/units HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("in time").expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        held.push(stream);
    }
    let mut waits = Box::pin(http.get("/fleet/v1/machines"));
    // The socket has room of its own.
    tokio::select! {
        biased;
        _ = &mut waits => panic!("there is one connection more than there may be"),
        reply = socket.get("/fleet/v1/machines") => assert_eq!(reply.status, 200),
    }
    drop(held);
    assert_eq!(waits.await.status, 200);
    served.daemon.shutdown().await.expect("a clean shutdown");
}

fn config(directory: &std::path::Path, state: &str) -> Config {
    Config {
        listen: "127.0.0.1:0".parse().expect("an address"),
        state_dir: directory.join(state),
        fleet_api: Some(FleetApi { listen: None, socket: Some(directory.join("fleet.sock")) }),
        ..Config::default()
    }
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_group() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("fleet.sock");
    let first = Daemon::start(&config(directory.path(), "first")).await.expect("start");
    assert_eq!(fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o660);
    let refused = Daemon::start(&config(directory.path(), "second")).await.expect_err("it is in use");
    assert!(format!("{refused:#}").ends_with("another process listens there"), "{refused:#}");
    first.shutdown().await.expect("a clean shutdown");
    assert!(!socket.exists(), "it is gone with its scheduler");

    // One that a crash has left.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    assert!(socket.exists());
    let third = Daemon::start(&config(directory.path(), "third")).await.expect("start");
    third.shutdown().await.expect("a clean shutdown");

    // What is no socket stays.
    fs::write(&socket, "mine").expect("written");
    let refused = Daemon::start(&config(directory.path(), "fourth")).await.expect_err("it is no socket");
    assert!(format!("{refused:#}").contains("there is a file that is no socket"), "{refused:#}");
    assert_eq!(fs::read_to_string(&socket).expect("still there"), "mine");
}
