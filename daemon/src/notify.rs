//! What the service manager is told.

use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::unix::net::UnixDatagram;

use sd_notify::NotifyState;
use tracing::warn;

/// Tells the service manager something, where there is one; waits for it if it has much to read.
pub fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify the service manager");
    }
}

/// Tells it something that it can do without. A PID 1 that hangs reads nothing, and nobody waits for it.
pub fn hint(states: &[NotifyState<'_>]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    match send(&socket, states) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => warn!(%error, "cannot notify the service manager"),
        Ok(()) => {}
    }
}

fn send(socket: &OsStr, states: &[NotifyState<'_>]) -> io::Result<()> {
    let mut message = String::new();
    for state in states {
        // Writing to a String cannot fail.
        writeln!(message, "{state}").unwrap_or_default();
    }
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.connect(socket)?;
    datagram.send(message.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_service_manager_that_reads_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut sent = 0;
        let error = loop {
            match send(path.as_os_str(), &[NotifyState::Watchdog]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut buffer = [0; 64];
        for _ in 0..sent {
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"WATCHDOG=1\n");
        }
        assert!(sent > 0);
    }
}
