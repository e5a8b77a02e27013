//! What is written down of a cluster: one file in its directory, so that any later command finds the cluster again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::supervisor::Supervisor;

/// What a machine is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Runs a scheduler and takes no units.
    Scheduler,
    /// Runs an agent.
    Worker,
    /// Runs a scheduler and an agent.
    SchedulerAndWorker,
    /// Runs a member of the etcd cluster that several schedulers have their state in.
    Etcd,
}

impl Role {
    /// Whether a scheduler runs there.
    pub fn schedules(self) -> bool {
        matches!(self, Self::Scheduler | Self::SchedulerAndWorker)
    }

    /// Whether an agent runs there.
    pub fn works(self) -> bool {
        matches!(self, Self::Worker | Self::SchedulerAndWorker)
    }
}

/// What machines are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Containers of systemd-nspawn from the host's own root: up in seconds, with nothing to download
    Nspawn,
    /// Virtual machines under QEMU, with a kernel of their own: slower, from an image that is made of Debian's packages
    Vm,
}

/// What stays the same of a machine through its boots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachineRecord {
    /// `m1`, `s1`, `e1`, …: also its host name and the name of its link at the bridge.
    pub(crate) name: String,
    pub(crate) role: Role,
    /// IPv4 address in 198.18.0.0/24.
    pub(crate) address: String,
    /// 32 hexadecimal digits.
    pub(crate) machine_id: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// The state file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) backend: Backend,
    pub(crate) supervisor: Supervisor,
    pub(crate) machines: Vec<MachineRecord>,
    /// Whether Muster's daemons were installed.
    pub(crate) daemons: bool,
}

const FILE: &str = "cluster.json";
/// A directory for what whoever has the cluster wants to vanish with it.
const FILES: &str = "files";

impl State {
    /// The state of the cluster in `dir`; `None` when there is none.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| {
                    format!("{} is damaged: remove it, then `muster-cluster down`", path.display())
                })
                .map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let (path, new) = (dir.join(FILE), dir.join("cluster.json.new"));
        fs::write(&new, serde_json::to_vec_pretty(self)?).with_context(|| new.display().to_string())?;
        fs::rename(&new, &path).with_context(|| path.display().to_string())
    }
}

/// Makes the directory for files that are removed with the cluster.
pub(crate) fn files(dir: &Path) -> Result<PathBuf> {
    let files = dir.join(FILES);
    fs::create_dir_all(&files).with_context(|| files.display().to_string())?;
    Ok(files)
}

/// Removes what the harness keeps in `dir`, and `dir` itself when nothing else is in it. (`supervisor.sh` does, too.)
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| dir.display().to_string()),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("cluster.json") || name == "supervisor.sh" || name.starts_with("lock-") {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        } else if name == FILES {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other.with_context(|| dir.display().to_string()),
    }
}

/// Keeps others, of this process or another, from working on `what` (a machine, the cluster) at the same time.
pub(crate) fn lock(dir: &Path, what: &str) -> Result<File> {
    let path: PathBuf = dir.join(format!("lock-{what}"));
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    file.lock().with_context(|| path.display().to_string())?;
    Ok(file)
}
