//! A scheduler of its own on the host, on loopback, with its store on the disk that holds the target directory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::schedulers_client::SchedulersClient;
use muster_proto::{SchedulerRole, SchedulerStatus, v1};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::client::{Client, channel};
use crate::machines::field;

const READY_LIMIT: Duration = Duration::from_secs(20);
/// How many open files systemd allows to who does not ask for more.
const USUAL_OPEN_FILES: u32 = 1024;

/// A running scheduler; it is killed with this value, and its store is removed.
#[derive(Debug)]
pub struct Scheduler {
    process: Child,
    directory: TempDir,
    address: String,
}

impl Scheduler {
    /// Starts one with an empty store on a port of the kernel's choice, and waits until it answers.
    pub async fn start() -> Result<Self> {
        let (mut scheduler, leads) = Self::spawn("127.0.0.1:0", "")?;
        scheduler.address = leads.recv_timeout(READY_LIMIT).context("the scheduler does not come up")?;
        // It listens already.
        scheduler.client().await?;
        Ok(scheduler)
    }

    /// Starts one of several at this address, with their state in this etcd, and waits until one of them leads.
    pub async fn join(address: String, etcd: &[String]) -> Result<Self> {
        let (mut scheduler, _) = Self::spawn(&address, &format!("[etcd]\nendpoints = {etcd:?}\n"))?;
        scheduler.address = address;
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let status = scheduler.describe().await;
            if status.as_ref().is_ok_and(|status| status.role != SchedulerRole::Waiting) {
                return Ok(scheduler);
            }
            ensure!(Instant::now() < deadline, "the scheduler does not come up: {status:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts one, and gives where it listens once it leads.
    fn spawn(listen: &str, more: &str) -> Result<(Self, mpsc::Receiver<String>)> {
        let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(muster_cluster::target_dir())?;
        let config = directory.path().join("scheduler.toml");
        let state = directory.path().join("state");
        fs::create_dir(&state)?;
        fs::write(&config, format!("listen = \"{listen}\"\nstate_dir = \"{}\"\n{more}", state.display()))?;
        let program = muster_cluster::bin_dir()?.join("muster-scheduler");
        // It is to ask for more open files by itself where it needs them, as under systemd.
        let mut process = Command::new("prlimit")
            .arg(format!("--nofile={USUAL_OPEN_FILES}:"))
            .arg(&program)
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run prlimit and {}", program.display()))?;
        let log = process.stderr.take().context("no pipe")?;
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
        Ok((Self { process, directory, address: String::new() }, told))
    }

    /// What it says of itself.
    pub async fn describe(&self) -> Result<SchedulerStatus> {
        let mut client = SchedulersClient::new(channel(&self.address).await?);
        Ok(client.describe(v1::DescribeRequest {}).await?.into_inner().try_into()?)
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
