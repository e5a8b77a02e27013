//! Connections that a client has to a port or a socket of this machine.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use muster_proto::v1::from_machine::Body;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::{Ended, Input, Output, Said};

/// A TCP port of the loopback address.
pub(super) async fn port(port: u16, input: &mut Input, output: &Output) -> Ended {
    let addresses =
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    match TcpStream::connect(&addresses[..]).await {
        Ok(mut stream) => {
            // Keys that are typed do not wait for others.
            stream.set_nodelay(true).ok();
            let (read, write) = stream.split();
            both_ways(read, write, input, output).await
        }
        Err(error) => Ended::Failed(format!("cannot connect to port {port} there: {error}")),
    }
}

/// A unix socket.
pub(super) async fn socket(path: &str, input: &mut Input, output: &Output) -> Ended {
    // To look for it may take for ever where a mount hangs, and then it is a thread of its own that waits.
    let found = tokio::fs::metadata(path).await;
    let connected = match found {
        Ok(_) => UnixStream::connect(path).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok(mut stream) => {
            let (read, write) = stream.split();
            both_ways(read, write, input, output).await
        }
        Err(error) => Ended::Failed(format!("cannot connect to {path} there: {error}")),
    }
}

/// Until the other side has no more to say, or the client has gone.
async fn both_ways(
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    input: &mut Input,
    output: &Output,
) -> Ended {
    let up = async {
        loop {
            let written = match input.next().await {
                Said::Data(data) => write.write_all(&data).await,
                Said::End => write.shutdown().await,
                Said::Gone => return,
            };
            if written.is_err() {
                // Nobody there listens any more, but perhaps speaks still.
                return input.gone().await;
            }
        }
    };
    tokio::select! {
        () = up => Ended::Unwanted,
        sent = output.send_all(read, Body::Data) => match sent {
            Ok(Ok(())) => Ended::Done(0),
            Ok(Err(_)) => Ended::Unwanted,
            Err(error) => Ended::Failed(format!("the connection was lost there: {error}")),
        }
    }
}
