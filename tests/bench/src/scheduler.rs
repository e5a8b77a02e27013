//! A scheduler of its own on the host, on loopback, with its store on the disk that holds the target directory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
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
    /// Starts one with an empty store on a port of the kernel's choice, and waits until it answers.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(muster_cluster::target_dir())?;
        let config = directory.path().join("scheduler.toml");
        let state = directory.path().join("state");
        fs::create_dir(&state)?;
        fs::write(&config, format!("listen = \"127.0.0.1:0\"\nstate_dir = \"{}\"\n", state.display()))?;
        let program = muster_cluster::bin_dir()?.join("muster-scheduler");
        let process = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        let mut scheduler = Self { process, directory, address: String::new() };
        let log = scheduler.process.stderr.take().context("no pipe")?;
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if let Some(address) = address_in(&line) {
                    let _ = tell.send(address);
                } else if !line.contains(" INFO ") {
                    eprintln!("{line}");
                }
            }
        });
        scheduler.address = told.recv_timeout(READY_LIMIT).context("the scheduler does not come up")?;
        // It listens already.
        scheduler.client().await?;
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

/// Where a scheduler listens, in the line of its log that says that it leads.
fn address_in(line: &str) -> Option<String> {
    let (_, fields) = line.split_once(" leading ")?;
    fields.split(' ').find_map(|field| field.strip_prefix("address=")).map(str::to_owned)
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
