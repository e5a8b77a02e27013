//! The cluster that most of these tests have one after the other, the units that they start, and what they look at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use muster_cluster::Cluster;

use super::support::{LIMIT, Row, World, configure};

/// The socket of fleet's API on the scheduler's machine.
pub const SOCKET: &str = "/run/muster-scheduler/fleet.sock";

/// Says the same for ever.
pub const HELLO: &str = "[Unit]\nDescription=Test Unit\n\n[Service]\n\
                         ExecStart=/bin/bash -c \"while true; do echo Hello, World!; sleep 1; done\"\n";

/// No units.
pub const NONE: [&str; 0] = [];

/// [`HELLO`] with these lines in `[X-Fleet]`.
pub fn hello_with(options: &str) -> String {
    format!("{HELLO}\n[X-Fleet]\n{options}\n")
}

/// A cluster of three machines, whose `hostname` is in their metadata, and with fleet's API; one test at a time has it. It
/// ends with this process.
pub struct Shared {
    world: &'static World,
    _alone: MutexGuard<'static, Option<&'static World>>,
}

impl Shared {
    /// The cluster, without any units; only the first `count` machines take some.
    pub fn of(count: usize) -> Result<Self> {
        static WORLD: Mutex<Option<&'static World>> = Mutex::new(None);
        let mut alone = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
        let world = match *alone {
            Some(world) => world,
            None => alone.insert(Box::leak(Box::new(boot()?))),
        };
        for file in fs::read_dir(world.cluster.files()?)? {
            fs::remove_file(file?.path())?;
        }
        if !unit_files(world)?.is_empty() {
            world.ctl(&["destroy", "*"])?;
        }
        wait_rows(world, &NONE)?;
        let ids = world.cluster.machines().filter(|machine| machine.role().works());
        let ids: Vec<String> = ids.map(|machine| machine.machine_id().to_owned()).collect();
        ctl(world, &["uncordon"], &ids)?;
        if count < ids.len() {
            ctl(world, &["cordon"], &ids[count..])?;
        }
        Ok(Self { world, _alone: alone })
    }
}

impl Deref for Shared {
    type Target = World;

    fn deref(&self) -> &World {
        self.world
    }
}

fn boot() -> Result<World> {
    let machines = Cluster::builder().machines(3);
    let machines = ["m1", "m2", "m3"].iter().fold(machines, |all, name| all.label(name, "hostname", name));
    let world = World::up(machines)?;
    configure(&world.scheduler()?, "scheduler", &format!("\n[fleet_api]\nsocket = \"{SOCKET}\"\n"))?;
    world.wait_machines_up(3)?;
    Ok(world)
}

/// Which unit is on which machine, by its id.
pub type Homes = BTreeSet<(String, String)>;

/// Waits until exactly these are active, each on one machine, and says where.
pub fn wait_active<S: AsRef<str>>(world: &World, units: &[S]) -> Result<BTreeMap<String, String>> {
    let homes = wait_copies(world, &units.iter().map(|unit| (unit.as_ref(), 1)).collect::<Vec<_>>())?;
    Ok(homes.into_iter().collect())
}

/// Waits until exactly these are active, each on so many machines, and says where.
pub fn wait_copies(world: &World, expected: &[(&str, usize)]) -> Result<Homes> {
    world.cluster.wait_for(&format!("exactly {expected:?} to be active"), LIMIT, || {
        let rows = world.rows()?;
        let active = rows.iter().filter(|row| row.active.as_deref() == Some("active"));
        let homes: Homes = active.map(|row| (row.unit.clone(), row.machine.clone())).collect();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (unit, _) in &homes {
            *counts.entry(unit).or_default() += 1;
        }
        ensure!(counts == expected.iter().copied().collect(), "{rows:#?}");
        Ok(Some(homes))
    })
}

/// Waits until `list-units` shows exactly these, and returns its rows.
pub fn wait_rows<S: AsRef<str>>(world: &World, units: &[S]) -> Result<Vec<Row>> {
    let expected: Vec<&str> = units.iter().map(AsRef::as_ref).collect();
    world.cluster.wait_for(&format!("rows of {expected:?}"), LIMIT, || {
        let rows = world.rows()?;
        let seen: Vec<&str> = rows.iter().map(|row| row.unit.as_str()).collect();
        ensure!(seen == expected, "{rows:#?}");
        Ok(Some(rows))
    })
}

/// What `list-unit-files` shows, in its order.
pub fn unit_files(world: &World) -> Result<Vec<String>> {
    let rows = world.ctl(&["list-unit-files", "--no-legend", "--fields", "unit"])?;
    Ok(rows.lines().map(|row| row.trim().to_owned()).collect())
}

/// On how many machines these are.
pub fn spread(homes: &BTreeMap<String, String>) -> usize {
    homes.values().collect::<BTreeSet<_>>().len()
}

/// `musterctl` with a verb, its options, and units, which must succeed.
pub fn ctl<S: AsRef<str>>(world: &World, verb: &[&str], units: &[S]) -> Result<String> {
    let units: Vec<&str> = units.iter().map(AsRef::as_ref).collect();
    world.ctl(&[verb, &units[..]].concat())
}
