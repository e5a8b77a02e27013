//! The machine's goodbye before a shutdown, which `muster-goodbye.service` asks the running agent for, and logind, where
//! that runs.
//!
//! That unit stops first when the machine shuts down, since all of Muster's units but exclusive ones are ordered before it;
//! its stop lasts until the agent says that their copies are active elsewhere, and exclusive units have ended here.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::{logind, systemd};

/// The name of the socket in the run directory.
const SOCKET: &str = "goodbye";

/// What the agent hears of a shutdown.
#[derive(Debug)]
pub(crate) enum Shutdown {
    /// The machine shuts down. Where there is a descriptor, that waits until it is closed.
    Begins(Option<OwnedFd>),
    /// It does not after all.
    Cancelled,
}

/// Where goodbyes are asked for.
#[derive(Debug)]
pub(crate) struct Goodbyes {
    listener: UnixListener,
    logind: mpsc::Receiver<Shutdown>,
}

impl Goodbyes {
    /// Listens to logind, and in the run directory, to which root alone has access.
    pub(crate) fn listen(run_dir: &Path) -> Result<Self> {
        let path = socket(run_dir);
        // Left by an agent that crashed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Self { listener, logind: logind::listen() })
    }

    /// What is heard next. Nothing is lost if that is not waited for.
    pub(crate) async fn next(&mut self) -> Shutdown {
        tokio::select! {
            Ok((stream, _)) = self.listener.accept() => {
                Shutdown::Begins(stream.into_std().ok().map(OwnedFd::from))
            }
            Some(shutdown) = self.logind.recv() => shutdown,
            else => std::future::pending().await,
        }
    }
}

/// Asks the running agent for a goodbye, if the machine shuts down, and waits for its end. `None` if it does not.
///
/// # Errors
/// When neither systemd nor the agent answers.
pub async fn say(run_dir: &Path) -> Result<Option<()>> {
    if !systemd::is_stopping().await.context("cannot ask systemd whether the machine shuts down")? {
        return Ok(None);
    }
    let path = socket(run_dir);
    let mut stream = UnixStream::connect(&path)
        .await
        .with_context(|| format!("no agent listens on {}; its units are not moved", path.display()))?;
    // The agent says nothing; it hangs up when it is done.
    stream.read_to_end(&mut Vec::new()).await.context("the agent is gone")?;
    Ok(Some(()))
}

fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}
