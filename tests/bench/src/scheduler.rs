//! A scheduler of its own on the host, on loopback, with its store on the disk that holds the target directory.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::client::Client;
use crate::machines::field;

const READY_LIMIT: Duration = Duration::from_secs(20);

/// A running scheduler; it ends with this value, and its store is removed.
#[derive(Debug)]
pub struct Scheduler {
    process: Child,
    directory: TempDir,
    address: String,
}

impl Scheduler {
    /// Starts one with an empty store, and waits until it answers.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(muster_cluster::target_dir())?;
        // Free a moment ago; nobody else here takes ports of this range by chance.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = directory.path().join("scheduler.toml");
        let state = directory.path().join("state");
        fs::create_dir(&state)?;
        fs::write(
            &config,
            format!("listen = \"{address}\"\nstate_dir = \"{}\"\nlog = \"warn\"\n", state.display()),
        )?;
        let program = muster_cluster::bin_dir()?.join("muster-scheduler");
        let process = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let scheduler = Self { process, directory, address };
        let deadline = Instant::now() + READY_LIMIT;
        while let Err(error) = scheduler.client().await {
            ensure!(Instant::now() < deadline, "the scheduler does not come up: {error:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(scheduler)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub async fn client(&self) -> Result<Client> {
        Client::connect(&self.address).await
    }

    /// Its resident memory, now and at most, in MiB.
    pub fn memory_mib(&self) -> Result<(f64, f64)> {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        Ok((field(&status, "VmRSS")? / 1024.0, field(&status, "VmHWM")? / 1024.0))
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
