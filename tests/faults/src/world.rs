//! A cluster to be broken: what runs on it, and what of that is seen from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use muster_cluster::{Backend, Cluster, Machine, Output, Power};
use serde::Deserialize;

/// How long anything may take that is no part of what is tried: machines here are shared and slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The unit that must never run twice.
pub(crate) const ONLY: &str = "only.service";
/// What the names of all units begin with that run here.
const PREFIXES: [&str; 4] = ["only", "steady", "batch", "slow"];

/// Where the scheduler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// On a machine of its own, s1.
    Apart,
    /// On the first worker, m1.
    Together,
    /// One on each of the first three workers, with their state in etcd.
    Several,
}

/// What a cluster is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) backend: Backend,
    pub(crate) layout: Layout,
    pub(crate) workers: usize,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machines = match self.backend {
            Backend::Nspawn => "containers",
            Backend::Vm => "virtual machines",
        };
        let scheduler = match self.layout {
            Layout::Apart => "and one for the scheduler",
            Layout::Together => "one of them with the scheduler",
            Layout::Several => "three of them with a scheduler, and three for etcd",
        };
        write!(f, "{} {machines}, {scheduler}", self.workers)
    }
}

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) kind: Kind,
    files: PathBuf,
}

/// A unit as the systemd of one machine has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    pub(crate) unit: String,
    pub(crate) machine: String,
    /// `ActiveState`.
    pub(crate) state: String,
    /// Another one with each start.
    pub(crate) invocation: String,
}

impl Found {
    /// Whether something of it may run.
    pub(crate) fn is_up(&self) -> bool {
        !["inactive", "failed"].contains(&&*self.state)
    }
}

/// A row of `list-machines -o json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct MachineRow {
    /// For who reads what went wrong.
    #[expect(dead_code, reason = "it is printed")]
    machine: String,
    state: String,
}

/// A row of `schedulers -o json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SchedulerRow {
    pub(crate) address: String,
    pub(crate) role: String,
    /// Since when it leads, in ms since 1970.
    pub(crate) since_ms: Option<u64>,
}

impl World {
    pub(crate) fn up(kind: Kind) -> Result<Self> {
        let mut builder = Cluster::builder().backend(kind.backend).machines(kind.workers);
        match kind.layout {
            Layout::Apart => {}
            Layout::Together => builder = builder.schedulers_on_workers(),
            Layout::Several => builder = builder.schedulers(3).schedulers_on_workers(),
        }
        let cluster = builder.up()?;
        Ok(Self { files: cluster.files()?, cluster, kind })
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = Machine<'_>> {
        self.cluster.machines().filter(|machine| machine.role().works())
    }

    pub(crate) fn scheduler(&self) -> Result<Machine<'_>> {
        self.cluster.machines().find(|machine| machine.role().schedules()).context("there is a scheduler")
    }

    /// What `musterctl schedulers` says of them, with the one that leads.
    pub(crate) fn leader(&self) -> Result<(Machine<'_>, Vec<SchedulerRow>)> {
        // It says so with its exit status when one cannot be reached.
        let said = self.try_ctl(LIMIT, &["schedulers", "-o", "json"], &[])?;
        let rows: Vec<SchedulerRow> = serde_json::from_str(&said.stdout).with_context(|| said.to_string())?;
        let leads = |machine: &Machine<'_>| {
            rows.iter()
                .any(|row| row.role == "leading" && row.address == format!("{}:7400", machine.address()))
        };
        let leader = self.cluster.machines().find(leads);
        Ok((leader.with_context(|| format!("nobody leads: {rows:?}"))?, rows))
    }

    /// Where a unit file is on the host.
    pub(crate) fn path(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }

    /// A unit file on the host.
    pub(crate) fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.path(name);
        std::fs::write(&path, content).with_context(|| path.clone())?;
        Ok(path)
    }

    /// Unit files `PREFIX001.service` and so on.
    pub(crate) fn many(&self, prefix: &str, count: usize, content: &str) -> Result<Vec<String>> {
        (1..=count).map(|number| self.file(&format!("{prefix}{number:03}.service"), content)).collect()
    }

    /// `musterctl`, which must succeed.
    pub(crate) fn ctl(&self, verb: &[&str], operands: &[String]) -> Result<String> {
        self.try_ctl(LIMIT, verb, operands)?.ok()
    }

    pub(crate) fn try_ctl(&self, limit: Duration, verb: &[&str], operands: &[String]) -> Result<Output> {
        let words: Vec<&str> = verb.iter().copied().chain(operands.iter().map(String::as_str)).collect();
        self.cluster.ctl_within(limit, &words, &[])
    }

    pub(crate) fn machine_rows(&self) -> Result<Vec<MachineRow>> {
        Ok(serde_json::from_str(&self.ctl(&["list-machines", "-o", "json"], &[])?)?)
    }

    /// All workers are up in the scheduler's eyes.
    pub(crate) fn all_up(&self) -> Result<()> {
        let rows = self.machine_rows()?;
        let up = rows.iter().filter(|row| row.state == "up").count();
        ensure!(up == self.kind.workers, "{rows:?}");
        Ok(())
    }

    /// The units of a trial, by the word of every worker's own systemd, of those that have power and are not frozen.
    pub(crate) fn found(&self) -> Result<Vec<Found>> {
        let workers: Vec<Machine<'_>> =
            self.workers().filter(|machine| machine.power() == Power::On).collect();
        thread::scope(|scope| {
            let looks: Vec<_> = workers.iter().map(|machine| scope.spawn(|| found_on(machine))).collect();
            let mut all = Vec::new();
            for look in looks {
                all.extend(look.join().map_err(|_| anyhow!("a look at a machine panicked"))??);
            }
            Ok(all)
        })
    }

    /// What the cluster has been asked for, by unit: `launched`, `loaded` or `inactive`.
    pub(crate) fn targets(&self) -> Result<BTreeMap<String, String>> {
        let listed = self.ctl(&["list-unit-files", "--no-legend", "--fields", "unit,dstate"], &[])?;
        let pair = |line: &str| {
            let mut words = line.split_whitespace().map(str::to_owned);
            Some((words.next()?, words.next()?))
        };
        Ok(listed.lines().filter_map(pair).collect())
    }

    /// Where each unit is up; not where a machine has only heard of it.
    pub(crate) fn homes(&self) -> Result<BTreeMap<String, Vec<Found>>> {
        let mut homes: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for found in self.found()?.into_iter().filter(Found::is_up) {
            homes.entry(found.unit.clone()).or_default().push(found);
        }
        Ok(homes)
    }

    /// Waits until each of these, units that write down that they run, has done so anew on the very machine where it is found:
    /// without that, nothing is known of whether they run twice.
    pub(crate) fn until_heard<'a>(&self, units: impl IntoIterator<Item = &'a Found>) -> Result<()> {
        let units: Vec<&Found> = units.into_iter().collect();
        let before = self.cluster.witness()?.len();
        self.until("the exclusive units' own word that they run", LIMIT, || {
            let beats = self.cluster.witness()?;
            let new = beats.get(before..).unwrap_or_default();
            for Found { unit, machine, .. } in &units {
                ensure!(
                    new.iter().any(|beat| beat.name == *unit && beat.machine == *machine),
                    "{unit} is to run on {machine}, and has not written so"
                );
            }
            Ok(())
        })
    }

    /// Whether each of these still runs as it did; but for what the kernel has killed, where memory was short.
    pub(crate) fn ensure_untouched<'a>(
        &self,
        before: impl IntoIterator<Item = &'a Found>,
        memory_was_short: bool,
    ) -> Result<()> {
        let homes = self.homes()?;
        for found in before {
            let now = homes.get(&found.unit).map(Vec::as_slice).unwrap_or_default();
            ensure!(
                now == [found.clone()] || (memory_was_short && self.was_killed_for_memory(found)?),
                "{} was healthy, and was stopped, restarted or moved: {found:?}, then {now:?}",
                found.unit
            );
        }
        Ok(())
    }

    fn was_killed_for_memory(&self, found: &Found) -> Result<bool> {
        let of_this_run = format!("INVOCATION_ID={}", found.invocation);
        let machine = self.cluster.machine(&found.machine)?;
        let journal = machine
            .exec(&["journalctl", "--sync"])?
            .ok()
            .and_then(|_| machine.exec(&["journalctl", "--output=cat", &of_this_run])?.ok())?;
        Ok(journal.contains("has been killed by the OOM killer"))
    }

    /// Waits until it is so.
    pub(crate) fn until<T>(&self, what: &str, limit: Duration, look: impl Fn() -> Result<T>) -> Result<T> {
        self.cluster.wait_for(what, limit, || look().map(Some))
    }
}

/// What the machine's systemd has of the units of a trial.
fn found_on(machine: &Machine<'_>) -> Result<Vec<Found>> {
    let patterns = PREFIXES.map(|prefix| format!("{prefix}*.service"));
    let mut command = vec!["systemctl", "show", "--property=Id,ActiveState,InvocationID"];
    command.extend(patterns.iter().map(String::as_str));
    let text = machine.exec(&command)?.ok()?;
    let found = text.split("\n\n").filter_map(|block| {
        let field = |name: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or_default()
                .to_owned()
        };
        let unit = field("Id");
        (!unit.is_empty()).then(|| Found {
            unit,
            machine: machine.name().to_owned(),
            state: field("ActiveState"),
            invocation: field("InvocationID"),
        })
    });
    Ok(found.collect())
}

/// Each of these is active on exactly one machine, and nothing of these is up on any.
pub(crate) fn each_runs_once(
    homes: &BTreeMap<String, Vec<Found>>,
    wanted: &BTreeSet<String>,
    ended: &BTreeSet<String>,
) -> Result<()> {
    for unit in wanted {
        let homes = homes.get(unit).map(Vec::as_slice).unwrap_or_default();
        ensure!(
            matches!(homes, [one] if one.state == "active"),
            "{unit} is not active exactly once: {homes:?}"
        );
    }
    for unit in ended {
        let homes = homes.get(unit).map(Vec::as_slice).unwrap_or_default();
        ensure!(homes.is_empty(), "{unit} is up: {homes:?}");
    }
    Ok(())
}
