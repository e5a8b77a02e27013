//! What the tests have in common: a cluster, unit files of their own, and what `musterctl` says in JSON.

#![allow(dead_code, reason = "not every test binary uses all of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use muster_cluster::{Builder, Cluster, Machine, Output};
use serde::Deserialize;

/// How long anything may take that should take a second: machines here are shared and slow.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Longer than a lease, in all that is counted with it.
pub const LONG: Duration = Duration::from_secs(7);

/// A service that does nothing for ever.
pub const SLEEP: &str = "[Service]\nExecStart=/usr/bin/sleep infinity\n";

/// A cluster, and a directory with unit files for it.
pub struct World {
    pub cluster: Cluster,
    files: PathBuf,
}

/// A row of `list-units -o json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Row {
    pub unit: String,
    pub machine: String,
    pub active: Option<String>,
    pub sub: Option<String>,
    pub copy: String,
    pub epoch: String,
    pub phase: Option<String>,
    pub error: Option<String>,
}

/// A row of `list-machines -o json`.
#[derive(Clone, Debug, Deserialize)]
pub struct MachineRow {
    pub machine: String,
    pub state: String,
    pub ip: Option<String>,
    pub rival: Option<RivalRow>,
}

/// The machine that claims another one's id.
#[derive(Clone, Debug, Deserialize)]
pub struct RivalRow {
    pub ip: String,
}

impl World {
    pub fn up(builder: Builder) -> Result<Self> {
        let cluster = builder.up()?;
        Ok(Self { files: cluster.files()?, cluster })
    }

    pub fn of(machines: usize) -> Result<Self> {
        Self::up(Cluster::builder().machines(machines))
    }

    /// A unit file on the host.
    pub fn file(&self, name: &str, content: &str) -> Result<String> {
        let path: PathBuf = self.files.join(name);
        std::fs::write(&path, content)?;
        Ok(path.to_str().context("the path is UTF-8")?.to_owned())
    }

    /// `musterctl`, which must succeed.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        self.try_ctl(arguments)?.ok()
    }

    pub fn try_ctl(&self, arguments: &[&str]) -> Result<Output> {
        self.cluster.ctl_within(LIMIT, arguments, &[])
    }

    /// Starts a unit with this content.
    pub fn start(&self, name: &str, content: &str) -> Result<()> {
        let path = self.file(name, content)?;
        self.ctl(&["start", &path])?;
        Ok(())
    }

    pub fn rows(&self) -> Result<Vec<Row>> {
        Ok(serde_json::from_str(&self.ctl(&["list-units", "-o", "json"])?)?)
    }

    /// The rows of current copies that are active, by unit.
    pub fn active(&self) -> Result<BTreeMap<String, Vec<Row>>> {
        let mut active: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        for row in self.rows()? {
            if row.active.as_deref() == Some("active") && row.copy == "current" {
                active.entry(row.unit.clone()).or_default().push(row);
            }
        }
        Ok(active)
    }

    pub fn machine_rows(&self) -> Result<Vec<MachineRow>> {
        Ok(serde_json::from_str(&self.ctl(&["list-machines", "-o", "json"])?)?)
    }

    /// Waits until the unit is active on one machine, and says on which.
    pub fn home(&self, unit: &str) -> Result<Machine<'_>> {
        self.home_other_than(unit, &[])
    }

    /// Waits until the unit is active on one machine other than these, and says on which.
    pub fn home_other_than(&self, unit: &str, not: &[&str]) -> Result<Machine<'_>> {
        let id = self.cluster.wait_for(&format!("{unit} active elsewhere than on {not:?}"), LIMIT, || {
            let rows = self.rows()?;
            let homes: Vec<&Row> = rows
                .iter()
                .filter(|row| {
                    row.unit == unit && row.copy == "current" && row.active.as_deref() == Some("active")
                })
                .collect();
            match homes.as_slice() {
                [row] if !not.contains(&self.by_id(&row.machine)?.name()) => Ok(Some(row.machine.clone())),
                _ => bail!("{rows:#?}"),
            }
        })?;
        self.by_id(&id)
    }

    pub fn by_id(&self, id: &str) -> Result<Machine<'_>> {
        self.cluster
            .machines()
            .find(|machine| machine.machine_id() == id)
            .with_context(|| format!("no machine {id}"))
    }

    /// Waits until systemd on the machine says this of the unit's `ActiveState`.
    pub fn wait_active_state(&self, machine: &Machine<'_>, unit: &str, state: &str) -> Result<()> {
        self.cluster.wait_for(&format!("{unit} {state} on {}", machine.name()), LIMIT, || {
            let seen = property(machine, unit, "ActiveState")?;
            ensure!(seen == state, "it is {seen}");
            Ok(Some(()))
        })
    }

    /// Which start of each unit on each machine this is, as systemd counts: it changes with every restart.
    pub fn invocations(&self) -> Result<BTreeMap<(String, String), String>> {
        let mut found = BTreeMap::new();
        for row in self.rows()?.into_iter().filter(|row| row.active.as_deref() == Some("active")) {
            let invocation = property(&self.by_id(&row.machine)?, &row.unit, "InvocationID")?;
            found.insert((row.unit, row.machine), invocation);
        }
        Ok(found)
    }

    /// Waits until the scheduler knows that these run, and nothing else. An agent that was restarted has to find out first.
    pub fn wait_invocations(&self, expected: &BTreeMap<(String, String), String>) -> Result<()> {
        self.cluster.wait_for("what ran before, and was not restarted or moved", LIMIT, || {
            let seen = self.invocations()?;
            ensure!(seen == *expected, "{seen:#?}");
            Ok(Some(()))
        })
    }

    /// Lets time pass: that nothing happens can be seen in no other way.
    pub fn outlast(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        self.cluster.wait_for("time to pass", LIMIT, || Ok((Instant::now() > until).then_some(())))
    }

    /// The machine that the scheduler runs on.
    pub fn scheduler(&self) -> Result<Machine<'_>> {
        self.cluster.machine("s1")
    }

    /// Waits until this many machines are up in the scheduler's eyes.
    pub fn wait_machines_up(&self, count: usize) -> Result<()> {
        self.cluster.wait_for(&format!("{count} machines up"), LIMIT, || {
            let rows = self.machine_rows()?;
            let up = rows.iter().filter(|row| row.state == "up").count();
            ensure!(up == count, "{rows:#?}");
            Ok(Some(()))
        })
    }

    /// Waits until the machine with this id is listed under this address, with this rival.
    pub fn wait_listed(&self, id: &str, address: &str, rival: Option<&str>) -> Result<()> {
        self.cluster.wait_for(&format!("{id} is {address}, and not {rival:?}"), LIMIT, || {
            let rows = self.machine_rows()?;
            let row: &MachineRow = rows.iter().find(|row| row.machine == id).context("it is listed")?;
            let listed = (row.ip.as_deref(), row.rival.as_ref().map(|rival| rival.ip.as_str()), &*row.state);
            ensure!(listed == (Some(address), rival, "up"), "{rows:#?}");
            Ok(Some(()))
        })
    }
}

/// A property of a unit, as `systemctl show` prints it.
pub fn property(machine: &Machine<'_>, unit: &str, property: &str) -> Result<String> {
    Ok(machine.exec(&["systemctl", "show", "--property", property, "--value", unit])?.ok()?.trim().to_owned())
}

/// Adds these lines to the configuration of the machine's `scheduler` or `agent`, and restarts that.
pub fn configure(machine: &Machine<'_>, daemon: &str, lines: &str) -> Result<()> {
    let script =
        format!("printf '%s\\n' '{lines}' >>/etc/muster/{daemon}.toml; systemctl restart muster-{daemon}");
    machine.exec(&["sh", "-ec", &script])?.ok()?;
    Ok(())
}

/// The main process of a service.
pub fn main_pid(machine: &Machine<'_>, unit: &str) -> Result<String> {
    let pid = property(machine, unit, "MainPID")?;
    ensure!(pid != "0", "{unit} does not run on {}", machine.name());
    Ok(pid)
}

/// The machine has this id from now on, and its agent knows it.
pub fn take_id(machine: &Machine<'_>, id: &str) -> Result<()> {
    machine.write_file("/etc/machine-id", format!("{id}\n").as_bytes())?;
    machine.exec(&["systemctl", "restart", "muster-agent"])?.ok()?;
    Ok(())
}
