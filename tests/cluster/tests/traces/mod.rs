//! What a cluster leaves behind: looked for in all of the host.

#![allow(dead_code, reason = "not every test binary uses all of it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_cluster::{Backend, Cluster};

/// How long anything may take that should take a moment.
pub const LIMIT: Duration = Duration::from_secs(30);

/// For what no cluster is needed for; see [`Cluster::wait_for`].
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Result<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match look() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "waited in vain for: {what}; {error:#}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// All processes below one, with itself.
pub fn family(root: i32) -> Result<BTreeSet<i32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse::<i32>().ok());
        parents.push((pid, parent.context("PPid")?));
    }
    let mut family = BTreeSet::from([root]);
    loop {
        let before = family.len();
        family.extend(
            parents
                .iter()
                .filter(|(_, parent)| family.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            return Ok(family);
        }
    }
}

fn namespaces_of(pids: &BTreeSet<i32>) -> BTreeSet<PathBuf> {
    let own: BTreeSet<_> = links_in("/proc/self/ns");
    let all: BTreeSet<_> = pids.iter().flat_map(|pid| links_in(&format!("/proc/{pid}/ns"))).collect();
    all.difference(&own).cloned().collect()
}

fn links_in(directory: &str) -> BTreeSet<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeSet::new() };
    entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

pub fn all_pids() -> Result<BTreeSet<i32>> {
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// What the host shows of mounts and links.
pub fn host_traces() -> Result<BTreeSet<String>> {
    let mut traces: BTreeSet<String> =
        fs::read_to_string("/proc/self/mounts")?.lines().map(str::to_owned).collect();
    traces.extend(fs::read_dir("/sys/class/net")?.flatten().map(|entry| entry.path().display().to_string()));
    Ok(traces)
}

/// The top-level cgroups (of version 2) in which processes are, other than this test's own.
pub fn cgroups_of(pids: &BTreeSet<i32>) -> BTreeSet<String> {
    let all = pids.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    let top =
        all.filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned()));
    let top = top.filter_map(|path| path.split('/').next().map(str::to_owned));
    top.filter(|name| name.starts_with("muster-")).collect()
}

/// Whether a top-level cgroup is there. The host may have no cgroup v2 mount: one of our own, then.
pub fn cgroup_exists(name: &str) -> Result<bool> {
    let script = "mount -t cgroup2 none /sys/fs/cgroup && if [ -e \"/sys/fs/cgroup/$0\" ]; then echo yes; fi";
    let found = Command::new("unshare").args(["--mount", "sh", "-c", script, name]).output()?;
    ensure!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    Ok(found.stdout == b"yes\n")
}

/// Everything that a cluster is made of, taken while it is up, to look for afterwards.
pub struct Traces {
    host: BTreeSet<String>,
    processes: BTreeSet<i32>,
    namespaces: BTreeSet<PathBuf>,
    cgroups: BTreeSet<String>,
    pub dir: PathBuf,
}

impl Traces {
    pub fn of(cluster: &Cluster, host_before: BTreeSet<String>) -> Result<Self> {
        let processes = family(cluster.supervisor_pid())?;
        let namespaces = namespaces_of(&processes);
        let cgroups = cgroups_of(&processes);
        // Else the test could not fail: the supervisor, and for each container nspawn, systemd, journald and the bus, or for
        // virtual machines the hub and a QEMU each.
        let machines = cluster.machines().count();
        let (few_processes, few_namespaces) = match cluster.backend() {
            Backend::Nspawn => (4 * machines, 3 * machines),
            Backend::Vm => (machines + 2, 2),
        };
        ensure!(processes.len() > few_processes, "only {} processes", processes.len());
        ensure!(namespaces.len() > few_namespaces, "only {} namespaces", namespaces.len());
        if cluster.backend() == Backend::Nspawn {
            ensure!(cgroups.len() == 1 && cgroup_exists(cgroups.first().context("cgroup")?)?, "{cgroups:?}");
        }
        // Already now nothing of it is to be seen outside.
        ensure!(host_traces()? == host_before, "{:?}", host_traces()?);
        Ok(Self { host: host_before, processes, namespaces, cgroups, dir: cluster.dir().to_path_buf() })
    }

    pub fn assert_gone(&self) {
        // A number may have been given to a new process, but not one in these namespaces.
        let pids = all_pids().unwrap();
        let inside: Vec<_> = pids
            .iter()
            .filter(|pid| !namespaces_of(&BTreeSet::from([**pid])).is_disjoint(&self.namespaces))
            .collect();
        assert!(inside.is_empty(), "processes {inside:?} are in the cluster's namespaces");
        for pid in self.processes.intersection(&pids) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            assert!(
                !["systemd", "nspawn", "qemu", "muster"].iter().any(|part| name.contains(part)),
                "process {pid} is still there: {name}"
            );
        }
        assert_eq!(host_traces().unwrap(), self.host);
        assert!(self.cgroups.iter().all(|name| !cgroup_exists(name).unwrap()), "{:?}", self.cgroups);
        assert!(!self.dir.exists(), "{} is still there", self.dir.display());
    }
}
