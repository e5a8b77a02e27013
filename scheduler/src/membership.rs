//! What makes this scheduler one of several: its part of the configuration, and who it is through its restarts.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use muster_core::ids::ClusterId;
use muster_daemon::files::replace;
use muster_etcd::Client;
use tokio::time::sleep;
use tracing::{info, warn};
use uuid::Uuid;

use crate::config::{Config, Etcd};
use crate::store::etcd::{Candidate, Home, Observer};
use crate::store::{FILE_NAME, lock_directory};

/// In the state directory: the cluster that this scheduler belongs to.
const CLUSTER_FILE: &str = "cluster";

/// In the runtime directory: this scheduler's id. It is another one after a boot, and in a copy of the machine.
const ID_FILE: &str = "id";

/// How long it is until etcd is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What a scheduler needs to be one of several.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) observer: Observer,
    id: Uuid,
    address: String,
    home: Home,
    machine_lease: Duration,
}

impl Membership {
    /// Reads what is needed to speak to etcd, and who this is.
    ///
    /// # Errors
    /// Files that cannot be read, or that make no sense; a state directory that another process uses.
    pub(crate) fn new(config: &Config, etcd: &Etcd, address: String) -> Result<Self> {
        let lock = lock_directory(&config.state_dir)?;
        if config.state_dir.join(FILE_NAME).exists() {
            info!(
                state_dir = %config.state_dir.display(),
                "there is a store of this scheduler's own, which is not used: the state is in etcd"
            );
        }
        let id = match &config.runtime_dir {
            Some(directory) => own_id(&directory.join(ID_FILE))?,
            None => Uuid::new_v4(),
        };
        let path = config.state_dir.join(CLUSTER_FILE);
        let cluster = read(&path)?.map(|text| {
            text.trim().parse::<ClusterId>().with_context(|| {
                let path = path.display();
                format!("{path} names no cluster; remove it if `prefix` and `endpoints` are those of this scheduler's cluster")
            })
        });
        let home = Home::new(path, cluster.transpose()?, lock);
        let client = Client::new(etcd.client()?).context("the configuration of etcd")?;
        let observer = Observer::new(Arc::new(client), &etcd.prefix);
        Ok(Self { observer, id, address, home, machine_lease: config.lease_ttl })
    }

    /// Waits for etcd, and takes part.
    ///
    /// # Errors
    /// What will not be better by itself.
    pub(crate) async fn candidate(self) -> Result<Candidate> {
        let mut complaint = String::new();
        loop {
            match Candidate::prepare(&self.observer, &self.home).await {
                Ok(()) => break,
                Err(error) if error.may_pass() => {
                    let text = error.to_string();
                    if complaint != text {
                        warn!(
                            endpoints = self.observer.endpoints(),
                            error = text,
                            "cannot use etcd; it is tried again"
                        );
                        complaint = text;
                    }
                    sleep(AGAIN).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Candidate::start(self.observer, self.id, self.address, self.home, self.machine_lease))
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The id in this file, or a new one that is written there.
fn own_id(path: &Path) -> Result<Uuid> {
    if let Some(id) = read(path)?.and_then(|text| text.trim().parse().ok()) {
        return Ok(id);
    }
    let id = Uuid::new_v4();
    replace(path, id.to_string().as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}
