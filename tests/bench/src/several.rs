//! Several schedulers and an etcd of three members on loopback, with their data on the disk that holds the target directory.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_core::command::Verb;
use muster_etcd::{Client as EtcdClient, pb};
use muster_proto::{SchedulerRole, v1};
use muster_test_etcd::Etcd;
use tokio::time::{sleep, timeout};

use crate::client::{Client, command, unit};
use crate::scheduler::Scheduler;

/// How many members etcd has.
pub const MEMBERS: usize = 3;
/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Schedulers of which one leads. All end with this.
#[derive(Debug)]
pub struct Several {
    schedulers: Vec<Scheduler>,
    /// Where those listened that were killed.
    killed: Vec<String>,
    /// It ends after them.
    pub etcd: Etcd,
}

impl Several {
    /// Starts so many, with nothing in etcd.
    pub async fn start(count: usize) -> Result<Self> {
        let mut several = Self { schedulers: Vec::new(), killed: Vec::new(), etcd: start_etcd().await? };
        for _ in 0..count {
            several.join().await?;
        }
        Ok(several)
    }

    /// Starts one more, in the place of one that was killed if there is such a place.
    pub async fn join(&mut self) -> Result<()> {
        let free = || anyhow::Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
        let address = self.killed.pop().map_or_else(free, Ok)?;
        self.schedulers.push(Scheduler::join(address, &self.etcd.endpoints()).await?);
        Ok(())
    }

    /// Where all are.
    pub fn addresses(&self) -> Vec<String> {
        self.schedulers.iter().map(|scheduler| scheduler.address().to_owned()).collect()
    }

    /// Which one leads.
    pub async fn leader(&self) -> Result<usize> {
        for (index, scheduler) in self.schedulers.iter().enumerate() {
            if scheduler.describe().await?.role == SchedulerRole::Leading {
                return Ok(index);
            }
        }
        anyhow::bail!("no scheduler leads")
    }

    /// A client of the one that leads.
    pub async fn client(&self) -> Result<Client> {
        self.schedulers[self.leader().await?].client().await
    }

    /// Waits until all that follow have taken in what was written.
    pub async fn follow(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        for scheduler in &self.schedulers {
            loop {
                let status = scheduler.describe().await?;
                if status.behind == 0 && status.role != SchedulerRole::Waiting {
                    break;
                }
                ensure!(Instant::now() < deadline, "it does not follow: {status:?}");
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Kills the one that leads, with SIGKILL. Gives the moment, and clients of the others, which are connected already.
    pub async fn kill_leader(&mut self) -> Result<(Instant, Vec<Client>)> {
        let leader = self.schedulers.swap_remove(self.leader().await?);
        let mut clients = Vec::new();
        for scheduler in &self.schedulers {
            clients.push(scheduler.client().await?);
        }
        let killed = Instant::now();
        self.killed.push(leader.address().to_owned());
        drop(leader);
        Ok((killed, clients))
    }
}

/// An etcd without data.
pub async fn start_etcd() -> Result<Etcd> {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).status();
    found.context("etcd cannot be run (Debian's package etcd-server)")?;
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(muster_cluster::target_dir())?;
    tokio::task::spawn_blocking(|| Etcd::start_in(directory, MEMBERS, &[])).await.context("etcd")
}

/// A client of that etcd.
pub fn etcd_client(etcd: &Etcd) -> Result<EtcdClient> {
    Ok(EtcdClient::new(etcd.config())?)
}

/// The last revision of etcd.
pub async fn revision(client: &EtcdClient) -> Result<i64> {
    let answer = client.range(pb::RangeRequest { key: "none".into(), ..Default::default() }, LIMIT).await?;
    Ok(answer.header.context("an answer without a header")?.revision)
}

/// Asks one after the other until one of them acknowledges the submission of a unit with this number.
pub async fn submitted(clients: &[Client], number: usize) -> Result<Instant> {
    let submission: v1::CommandRequest = command(Verb::Submit, vec![unit(number)?]);
    let deadline = Instant::now() + LIMIT;
    loop {
        for client in clients {
            match timeout(LIMIT, client.clone().execute(submission.clone())).await? {
                Ok(()) => return Ok(Instant::now()),
                Err(error) => ensure!(Instant::now() < deadline, "no scheduler acknowledges: {error:#}"),
            }
        }
        sleep(Duration::from_millis(2)).await;
    }
}
