//! The machine's goodbye before a shutdown, which `muster-goodbye.service` asks the running agent for.
//!
//! That unit stops first when the machine shuts down, since all of Muster's units are ordered before it; its stop lasts
//! until the agent says that their copies are active elsewhere.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};

use crate::systemd;

/// The name of the socket in the run directory.
const SOCKET: &str = "goodbye";

/// Where goodbyes are asked for. Who has asked waits until its stream is dropped.
#[derive(Debug)]
pub(crate) struct Goodbyes(UnixListener);

impl Goodbyes {
    /// Listens in the run directory, to which root alone has access.
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
        Ok(Self(listener))
    }

    /// The next one who asks.
    pub(crate) async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.0.accept().await?.0)
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
