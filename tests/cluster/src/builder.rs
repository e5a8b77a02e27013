//! What a new cluster is to be like, and how it comes up.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, take_down};
use crate::daemons::Version;
use crate::state::{self, Backend, MachineRecord, Role, State};
use crate::supervisor::Supervisor;
use crate::{preflight, say};

/// How many members the etcd of several schedulers has: one may be lost.
const ETCD_MEMBERS: usize = 3;

/// What a new cluster is to be like.
#[derive(Debug, Clone)]
pub struct Builder {
    backend: Backend,
    workers: usize,
    schedulers: usize,
    schedulers_on_workers: bool,
    daemons: bool,
    version: Option<Version>,
    labels: BTreeMap<String, BTreeMap<String, String>>,
    dir: Option<PathBuf>,
}

impl Default for Builder {
    /// Three workers and one scheduler with Muster's daemons.
    fn default() -> Self {
        Self {
            backend: Backend::Nspawn,
            workers: 3,
            schedulers: 1,
            schedulers_on_workers: false,
            daemons: true,
            version: None,
            labels: BTreeMap::new(),
            dir: None,
        }
    }
}

impl Builder {
    /// What the machines are made of: containers unless said otherwise.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// How many workers (`m1`, `m2`, …) there are: 0 to 99; 3 unless said otherwise.
    #[must_use]
    pub fn machines(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// How many machines for schedulers (`s1`, …) there are: 1 unless said otherwise, or 0 without daemons. With more than
    /// one, three machines more (`e1` to `e3`) run etcd.
    #[must_use]
    pub fn schedulers(mut self, schedulers: usize) -> Self {
        self.schedulers = schedulers;
        self
    }

    /// Puts the schedulers on the first workers, instead of on machines of their own.
    #[must_use]
    pub fn schedulers_on_workers(mut self) -> Self {
        self.schedulers_on_workers = true;
        self
    }

    /// Boots bare machines: without Muster's daemons, and without schedulers unless asked for afterwards.
    #[must_use]
    pub fn no_daemons(mut self) -> Self {
        self.daemons = false;
        self.schedulers = 0;
        self
    }

    /// Which version of Muster's daemons the machines begin with: this one unless said otherwise.
    #[must_use]
    pub fn version(mut self, version: &Version) -> Self {
        self.version = Some(version.clone());
        self
    }

    /// Gives a worker's agent a label.
    #[must_use]
    pub fn label(mut self, machine: &str, key: &str, value: &str) -> Self {
        self.labels.entry(machine.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// The directory by which the cluster is found again; a new one in the temporary directory unless said otherwise.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Makes the cluster and waits until all of it works.
    ///
    /// # Errors
    /// The host lacks something, a machine does not boot, or a daemon does not come up. Nothing is left behind then.
    pub fn up(self) -> Result<Cluster> {
        let began = Instant::now();
        let machines = self.machine_records()?;
        preflight::check(self.backend)?;
        let version = self.daemons.then(|| self.version.map_or_else(Version::current, Ok)).transpose()?;
        let dir = self.dir.unwrap_or_else(temporary_dir);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| dir.display().to_string())?;
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        let lock = state::lock(&dir, "cluster")?;
        if let Some(state) = State::load(&dir)? {
            let shown = dir.display();
            ensure!(
                !state.supervisor.alive(),
                "a cluster is up in {shown} already: `muster-cluster down` ends it"
            );
            say(&format!("cleaning up after the cluster in {shown}, which has died"));
            take_down(&dir, Some(&state))?;
        }

        let names: Vec<_> = machines.iter().map(|machine| machine.name.as_str()).collect();
        let (supervisor, owner) = Supervisor::start(&dir, self.backend, &names).inspect_err(|_| {
            // What went wrong first is what is to be told.
            let _ = take_down(&dir, None);
            let _ = state::remove(&dir);
        })?;
        let state = State { backend: self.backend, supervisor, machines, daemons: self.daemons };
        // From here on an error drops the cluster, which takes it down.
        let cluster = Cluster::new(dir, state, owner)?;
        cluster.write_template(version.as_ref())?;
        cluster.boot_all(began)?;
        if self.daemons {
            cluster.wait_registered()?;
            say(&format!("every agent is registered after {:.1} s", began.elapsed().as_secs_f32()));
        }
        drop(lock);
        Ok(cluster)
    }

    fn machine_records(&self) -> Result<Vec<MachineRecord>> {
        ensure!(self.workers <= 99 && self.schedulers <= 80, "at most 99 machines and 80 schedulers");
        ensure!(self.workers + self.schedulers > 0, "a cluster needs a machine");
        ensure!(
            !self.daemons || self.schedulers > 0,
            "agents without a scheduler: ask for one, or for no daemons"
        );
        ensure!(
            !self.schedulers_on_workers || self.schedulers <= self.workers,
            "{} schedulers do not fit on {} workers, one each",
            self.schedulers,
            self.workers
        );
        let mut records = Vec::new();
        let mut add = |name: String, role, address: String| -> Result<()> {
            let labels = self.labels.get(&name).cloned().unwrap_or_default();
            records.push(MachineRecord { name, role, address, machine_id: random_id()?, labels });
            Ok(())
        };
        if !self.schedulers_on_workers {
            for number in 1..=self.schedulers {
                add(format!("s{number}"), Role::Scheduler, format!("198.18.0.{}", 10 + number))?;
            }
        }
        for number in 1..=self.workers {
            let schedules = self.schedulers_on_workers && number <= self.schedulers;
            let role = if schedules { Role::SchedulerAndWorker } else { Role::Worker };
            add(format!("m{number}"), role, format!("198.18.0.{}", 100 + number))?;
        }
        if self.daemons && self.schedulers > 1 {
            for number in 1..=ETCD_MEMBERS {
                add(format!("e{number}"), Role::Etcd, format!("198.18.0.{}", 200 + number))?;
            }
        }
        for name in self.labels.keys() {
            let known = records.iter().any(|record| record.name == *name && record.role.works());
            ensure!(known, "labels for {name}, but there is no such worker");
        }
        Ok(records)
    }
}

fn temporary_dir() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("muster-cluster-{}-{number}", std::process::id()))
}

/// A new machine id: the kernel's random UUIDs without the hyphens are exactly that.
fn random_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    Ok(fs::read_to_string(path).context(path)?.trim().replace('-', ""))
}
