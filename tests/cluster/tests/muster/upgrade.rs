//! Versions that are apart by one: under units that run, one daemon after the other is exchanged for that of the next
//! version, and for that of the one before. (In which nothing was used that is new.)

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use muster_cluster::{Cluster, Machine, Version};
use serde_json::Value;

use super::support::{LIMIT, SLEEP, World};

/// It tells the witness that it runs.
const ONLY: &str = "[Service]\nExecStart=/usr/lib/muster-cluster/beat %n\n[X-Muster]\nExclusive=yes\n";
const EVERYWHERE: &str = "[Service]\nExecStart=/usr/bin/sleep infinity\n[X-Fleet]\nGlobal=true\n";
const WORKERS: usize = 2;

/// Of several schedulers, which one is exchanged first or last: the one that leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leader {
    First,
    Last,
}

struct Rolling {
    world: World,
    /// With what `musterctl` of it says that it is.
    old: (Version, String),
    new: (Version, String),
    /// What runs, and is to run on.
    running: BTreeMap<(String, String), String>,
    submitted: Vec<String>,
}

impl Rolling {
    /// A cluster of the old version, with units of all kinds.
    fn begin(schedulers: usize) -> Result<Self> {
        let (old, new) = (Version::previous()?, Version::current()?);
        let world = World::up(Cluster::builder().machines(WORKERS).schedulers(schedulers).version(&old))?;
        let named = |version: Version| -> Result<_> {
            let said = world.cluster.ctl_of(&version, &["version"])?.ok()?;
            Ok((version, said.trim().trim_start_matches("musterctl version ").to_owned()))
        };
        let (old, new) = (named(old)?, named(new)?);
        ensure!(old.1 != new.1, "both versions say that they are {}", old.1);
        for name in ["a.service", "b.service", "c.service"] {
            world.start(name, SLEEP)?;
        }
        world.start("only.service", ONLY)?;
        world.start("everywhere.service", EVERYWHERE)?;
        let running = world.cluster.wait_for("all units to run", LIMIT, || {
            let running = world.invocations()?;
            ensure!(running.len() == 4 + WORKERS, "{running:#?}");
            Ok(Some(running))
        })?;
        let rolling = Self { world, old, new, running, submitted: Vec::new() };
        rolling.world.wait_followers(schedulers - 1)?;
        Ok(rolling)
    }

    /// All of it to the next version: schedulers before agents, as an agent may say what the version before does not know.
    fn upgrade(&mut self, leader: Leader) -> Result<()> {
        self.exchange_schedulers(leader, &self.new.clone())?;
        self.exchange_agents(&self.new.clone())
    }

    /// The way back.
    fn downgrade(&mut self, leader: Leader) -> Result<()> {
        self.exchange_agents(&self.old.clone())?;
        self.exchange_schedulers(leader, &self.old.clone())
    }

    fn exchange_schedulers(&mut self, leader: Leader, to: &(Version, String)) -> Result<()> {
        let leads = self.world.leader_other_than(&[])?.name().to_owned();
        let mut names = self.machines(|machine| machine.role().schedules());
        names.sort_by_key(|name| (*name == leads) == (leader == Leader::Last));
        for name in &names {
            let machine = self.world.cluster.machine(name)?;
            machine.install(&to.0)?;
            let address = format!("{}:7400", machine.address());
            self.wait_version("address", &address, &to.1, || self.world.schedulers())?;
            self.world.wait_followers(names.len() - 1)?;
            self.goes_on().with_context(|| format!("the scheduler of {name} is {}", to.1))?;
        }
        Ok(())
    }

    fn exchange_agents(&mut self, to: &(Version, String)) -> Result<()> {
        for name in self.machines(|machine| machine.role().works()) {
            let machine = self.world.cluster.machine(&name)?;
            machine.install(&to.0)?;
            let listed = || Ok(serde_json::from_str(&self.world.ctl(&["list-machines", "-o", "json"])?)?);
            self.wait_version("machine", machine.machine_id(), &to.1, listed)?;
            self.goes_on().with_context(|| format!("the agent of {name} is {}", to.1))?;
        }
        Ok(())
    }

    fn machines(&self, which: impl Fn(&Machine<'_>) -> bool) -> Vec<String> {
        self.world.cluster.machines().filter(which).map(|machine| machine.name().to_owned()).collect()
    }

    /// Waits until the one in whose row this key has this value says that it is this version.
    fn wait_version(
        &self,
        key: &str,
        value: &str,
        version: &str,
        list: impl Fn() -> Result<Value>,
    ) -> Result<()> {
        self.world.cluster.wait_for(&format!("{value} to be {version}"), LIMIT, || {
            let rows = list()?;
            let row = rows.as_array().into_iter().flatten().find(|row| row[key] == value);
            ensure!(row.is_some_and(|row| row["version"] == version), "{rows:#}");
            Ok(Some(()))
        })
    }

    /// The commands of either `musterctl` are done, every machine is heard, nothing that runs was touched, and nothing is lost.
    fn goes_on(&mut self) -> Result<()> {
        for (one, other) in [(&self.old, &self.new), (&self.new, &self.old)] {
            let unit = format!("step-{}.service", self.submitted.len());
            let path = self.world.file(&unit, SLEEP)?;
            self.world.cluster.ctl_of(&one.0, &["start", &path])?.ok()?;
            self.world.cluster.ctl_of(&other.0, &["stop", &unit])?.ok()?;
            self.submitted.push(unit);
        }
        self.world.wait_machines_up(WORKERS)?;
        self.world.wait_invocations(&self.running)?;
        self.world.has_all(&self.submitted)?;
        let beats = self.world.cluster.witness()?;
        let only = beats.iter().filter(|beat| beat.name == "only.service");
        let places: BTreeSet<_> = only.map(|beat| (&beat.machine, &beat.epoch)).collect();
        ensure!(places.len() == 1, "the exclusive unit has run at {places:?}");
        Ok(())
    }
}

#[test]
fn schedulers_and_agents_of_neighbouring_versions_work_together() -> Result<()> {
    let mut rolling = Rolling::begin(3)?;
    rolling.upgrade(Leader::Last)?;
    rolling.downgrade(Leader::First)?;
    rolling.upgrade(Leader::First)
}

/// Its file was written by the version before, and is read by that again.
#[test]
fn a_scheduler_with_a_file_of_its_own_is_exchanged_for_its_neighbouring_version() -> Result<()> {
    let mut rolling = Rolling::begin(1)?;
    rolling.upgrade(Leader::First)?;
    rolling.downgrade(Leader::First)
}
