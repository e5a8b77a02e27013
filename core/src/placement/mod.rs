//! Which machine takes a unit, and why the others do not.
//!
//! The [`Placer`] keeps, for each machine, what is placed there and what that leaves free, with indexes so that
//! neither the choice of a machine nor a change costs more than the logarithm of the cluster where the machines are
//! alike. It knows nothing of leases, epochs or wishes: the leader tells it which machines take units, and which copies
//! count.
//!
//! Policy: among the machines that fit, the least loaded takes the unit. A unit's load is the larger of its shares of
//! the machine's CPU and memory, and at least [`LEAST_SHARE`], so that units that reserve nothing are spread by number.

mod patterns;
mod refusal;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use litemap::LiteMap;
pub use refusal::{Refusal, Tie};

use self::patterns::{PatternId, Patterns};
use self::refusal::Misfit;
use crate::by_name::ByName;
use crate::ids::MachineId;
use crate::machine::{Capacity, Labels};
use crate::planted::{self, Fault};
use crate::unit::{Bytes, Glob, MachineIdMatch, MilliCpu, Options, UnitName};

/// What a unit that reserves nothing counts as: a hundredth of a machine, in millionths.
pub const LEAST_SHARE: u64 = 10_000;

/// Who is preferred among the machines that fit: the smaller score. The fields, from first to last, are the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// The machine's load, in millionths of the machine.
    load: u128,
    /// So that the choice is always the same.
    machine: MachineId,
}

/// Which machine takes a unit.
#[derive(Debug, Default)]
pub struct Placer {
    hosts: BTreeMap<MachineId, Host>,
    /// The machines that take units, least loaded first.
    open: BTreeSet<Score>,
    /// The machines that take units, by each of their labels.
    labelled: BTreeMap<String, BTreeMap<String, BTreeSet<MachineId>>>,
    units: ByName<Entry>,
    patterns: Patterns,
}

#[derive(Debug)]
struct Host {
    labels: Labels,
    capacity: Capacity,
    open: bool,
    load: u128,
    /// Milli-CPU and bytes. Wider than one amount: nothing bounds the sum of what is placed.
    reserved: (u128, u128),
    units: BTreeSet<UnitName>,
    /// How many units here name the pattern.
    declared: BTreeMap<PatternId, usize>,
    /// How many units here match the pattern.
    matched: BTreeMap<PatternId, usize>,
}

#[derive(Debug)]
struct Entry {
    options: Arc<Options>,
    declares: BTreeSet<PatternId>,
    matched_by: BTreeSet<PatternId>,
    on: LiteMap<MachineId, ()>,
    /// Whether the cluster knows the unit; it is kept without that until its last copy is gone.
    known: bool,
}

/// A unit of a group that is placed together.
type Member<'a> = (&'a UnitName, &'a Entry);

/// All of a unit that decides where it fits: of units alike in this, one that fits nowhere speaks for the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    machine_id: Option<String>,
    metadata: BTreeMap<String, BTreeSet<String>>,
    declares: BTreeSet<PatternId>,
    matched_by: BTreeSet<PatternId>,
    cpu: Option<MilliCpu>,
    memory: Option<Bytes>,
}

impl Host {
    fn share(&self, options: &Options) -> u64 {
        let share = |need: u64, of: u64| {
            if need == 0 { 0 } else { need.saturating_mul(1_000_000) / of.max(1) }
        };
        let cpu = share(options.cpu.unwrap_or_default().0, self.capacity.cpu.0);
        let memory = share(options.memory.unwrap_or_default().0, self.capacity.memory.0);
        cpu.max(memory).max(LEAST_SHARE)
    }

    fn score(&self, machine: MachineId) -> Score {
        Score { load: self.load, machine }
    }

    fn add(&mut self, name: &UnitName, entry: &Entry) {
        let (cpu, memory) = reservation(&entry.options);
        self.load += u128::from(self.share(&entry.options));
        self.reserved = (self.reserved.0 + cpu, self.reserved.1 + memory);
        self.units.insert(name.clone());
        for id in &entry.declares {
            *self.declared.entry(*id).or_default() += 1;
        }
        for id in &entry.matched_by {
            *self.matched.entry(*id).or_default() += 1;
        }
    }

    fn remove(&mut self, name: &UnitName, entry: &Entry) {
        let (cpu, memory) = reservation(&entry.options);
        self.load -= u128::from(self.share(&entry.options));
        if !planted::is(Fault::CapacityKept) {
            self.reserved = (self.reserved.0 - cpu, self.reserved.1 - memory);
        }
        self.units.remove(name);
        for id in &entry.declares {
            decrement(&mut self.declared, *id);
        }
        for id in &entry.matched_by {
            decrement(&mut self.matched, *id);
        }
    }
}

/// What a unit sets aside: milli-CPU and bytes.
fn reservation(options: &Options) -> (u128, u128) {
    (options.cpu.unwrap_or_default().0.into(), options.memory.unwrap_or_default().0.into())
}

fn narrow(amount: u128) -> u64 {
    u64::try_from(amount).unwrap_or(u64::MAX)
}

fn decrement(counts: &mut BTreeMap<PatternId, usize>, id: PatternId) {
    if let Some(count) = counts.get_mut(&id) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&id);
        }
    }
}

/// The machines that `MachineID=` can mean: it gives all 32 digits of an id, or the first ones.
fn named(id: &MachineIdMatch) -> RangeInclusive<MachineId> {
    let unnamed = 4 * 32_usize.saturating_sub(id.as_str().len());
    let first = u128::from_str_radix(id.as_str(), 16).unwrap_or_default() << unnamed;
    MachineId::new(first)..=MachineId::new(first | ((1 << unnamed) - 1))
}

/// Whether the machine takes these units, all together.
fn takes<'a>(members: &[Member<'a>], machine: MachineId, host: &Host) -> Result<(), Misfit<'a>> {
    if host.open { fits(members, machine, host) } else { Err(Misfit::Closed) }
}

/// The same for a machine that need not take anything new.
fn fits<'a>(members: &[Member<'a>], machine: MachineId, host: &Host) -> Result<(), Misfit<'a>> {
    let mut needed = (0, 0);
    let mut own = (0, 0);
    for &(unit, entry) in members {
        let options = &entry.options;
        if options.machine_id.as_ref().is_some_and(|id| !named(id).contains(&machine)) {
            return Err(Misfit::MachineId { unit });
        }
        if let Err((key, wanted)) = suits(options, host) {
            return Err(Misfit::Metadata { unit, key, wanted });
        }
        let already_here = entry.on.contains_key(&machine);
        conflicts(unit, entry, host, already_here)?;
        let (cpu, memory) = reservation(options);
        needed = (needed.0 + cpu, needed.1 + memory);
        if planted::is(Fault::GroupNotSummed) {
            needed = (cpu, memory);
        }
        if already_here {
            own = (own.0 + cpu, own.1 + memory);
        }
    }
    let free = |capacity: u64, reserved: u128, own: u128| u128::from(capacity).saturating_sub(reserved - own);
    let cpu = free(host.capacity.cpu.0, host.reserved.0, own.0);
    if needed.0 > cpu {
        return Err(Misfit::Cpu { needed: needed.0, free: cpu });
    }
    let memory = free(host.capacity.memory.0, host.reserved.1, own.1);
    if needed.1 > memory {
        return Err(Misfit::Memory { needed: needed.1, free: memory });
    }
    Ok(())
}

/// Whether the host has the labels that are asked for; else the first that it has not.
fn suits<'a>(options: &'a Options, host: &Host) -> Result<(), (&'a String, &'a BTreeSet<String>)> {
    let has =
        |key, wanted: &BTreeSet<String>| host.labels.get(key).is_some_and(|value| wanted.contains(value));
    options.metadata.iter().find(|(key, wanted)| !has(*key, wanted)).map_or(Ok(()), Err)
}

/// Whether a unit on the host is in conflict with this one. A copy of the unit itself is not.
fn conflicts<'a>(
    unit: &'a UnitName,
    entry: &Entry,
    host: &Host,
    already_here: bool,
) -> Result<(), Misfit<'a>> {
    let other = |counts: &BTreeMap<PatternId, usize>, id: &PatternId, itself: bool| {
        counts.get(id).copied().unwrap_or(0) > usize::from(itself)
    };
    for id in &entry.declares {
        if other(&host.matched, id, already_here && entry.matched_by.contains(id)) {
            return Err(Misfit::Conflict { unit, id: *id, own: true });
        }
    }
    for id in entry.matched_by.iter().filter(|_| !planted::is(Fault::ConflictOneWay)) {
        if other(&host.declared, id, already_here && entry.declares.contains(id)) {
            return Err(Misfit::Conflict { unit, id: *id, own: false });
        }
    }
    Ok(())
}

impl Placer {
    /// Makes a machine known, or takes in what changed of it. It keeps its units.
    pub fn set_machine(&mut self, id: MachineId, labels: Labels, capacity: Capacity) {
        let (open, units) = match self.hosts.get(&id) {
            Some(host) => (host.open, host.units.clone()),
            None => (false, BTreeSet::new()),
        };
        self.set_open(id, false);
        let mut host = Host {
            labels,
            capacity,
            open: false,
            load: 0,
            reserved: (0, 0),
            units: BTreeSet::new(),
            declared: BTreeMap::new(),
            matched: BTreeMap::new(),
        };
        for name in &units {
            if let Some(entry) = self.units.get(name) {
                host.add(name, entry);
            }
        }
        self.hosts.insert(id, host);
        self.set_open(id, open);
    }

    /// Whether the machine takes new units from now on. Says whether that changed.
    pub fn set_open(&mut self, id: MachineId, open: bool) -> bool {
        let Some(host) = self.hosts.get_mut(&id) else {
            return false;
        };
        if host.open == open {
            return false;
        }
        host.open = open;
        if open {
            self.open.insert(host.score(id));
        } else {
            self.open.remove(&host.score(id));
        }
        for (key, value) in &host.labels {
            let machines = self.labelled.entry(key.clone()).or_default().entry(value.clone()).or_default();
            if open {
                machines.insert(id);
            } else {
                machines.remove(&id);
            }
        }
        true
    }

    /// Whether the machine takes new units.
    pub fn is_open(&self, id: MachineId) -> bool {
        self.hosts.get(&id).is_some_and(|host| host.open)
    }

    /// Makes a unit known, or takes in its new options. Its copies stay where they are.
    pub fn set_unit(&mut self, name: &UnitName, options: Arc<Options>) {
        if let Some(entry) = self.units.get_mut(name).filter(|entry| *entry.options == *options) {
            entry.options = options;
            entry.known = true;
            return;
        }
        let on = self.units.get(name).map(|entry| entry.on.clone()).unwrap_or_default();
        for machine in on.keys() {
            self.lift(name, *machine);
        }
        self.drop_entry(name);
        let mut declares = BTreeSet::new();
        for glob in options.conflicts.iter().chain(&options.replaces) {
            let (id, new) = self.patterns.acquire(glob);
            declares.insert(id);
            if new {
                self.index_new_pattern(id, glob);
            }
        }
        let matched_by = self.patterns.matching(name.as_str());
        let entry = Entry { options, declares, matched_by, on: LiteMap::new(), known: true };
        self.units.insert(name.clone(), entry);
        for machine in on.keys() {
            self.assign(name, *machine);
        }
    }

    /// The cluster does not know the unit any more; its copies count until they are gone.
    pub fn forget_unit(&mut self, name: &UnitName) {
        let Some(entry) = self.units.get_mut(name) else {
            return;
        };
        entry.known = false;
        if entry.on.is_empty() {
            self.drop_entry(name);
        }
    }

    /// A copy of the unit counts on this machine from now on.
    pub fn assign(&mut self, name: &UnitName, machine: MachineId) {
        let (Some(entry), Some(host)) = (self.units.get_mut(name), self.hosts.get_mut(&machine)) else {
            return;
        };
        if entry.on.insert(machine, ()).is_some() {
            return;
        }
        if host.open {
            self.open.remove(&host.score(machine));
        }
        host.add(name, entry);
        if host.open {
            self.open.insert(host.score(machine));
        }
    }

    /// The unit's copy on this machine is gone.
    pub fn release(&mut self, name: &UnitName, machine: MachineId) {
        self.lift(name, machine);
        if self.units.get(name).is_some_and(|entry| !entry.known && entry.on.is_empty()) {
            self.drop_entry(name);
        }
    }

    /// The machines on which a copy of the unit counts.
    pub fn copies(&self, name: &UnitName) -> impl Iterator<Item = MachineId> + '_ {
        self.units.get(name).into_iter().flat_map(|entry| entry.on.keys().copied())
    }

    /// The units that the cluster does not know any more and that have copies.
    pub fn forgotten(&self) -> impl Iterator<Item = &UnitName> {
        self.units.iter().filter(|(_, entry)| !entry.known).map(|(name, _)| name)
    }

    /// The units that count on a machine.
    pub fn units_on(&self, machine: MachineId) -> impl Iterator<Item = &UnitName> {
        self.hosts.get(&machine).into_iter().flat_map(|host| host.units.iter())
    }

    /// The machines that take new units, least loaded first.
    pub fn open(&self) -> impl Iterator<Item = MachineId> + '_ {
        self.open.iter().map(|score| score.machine)
    }

    /// How many units count on a machine, and what they reserve.
    pub fn usage(&self, machine: MachineId) -> (usize, Capacity) {
        let Some(host) = self.hosts.get(&machine) else { return (0, Capacity::default()) };
        let (cpu, memory) = host.reserved;
        (host.units.len(), Capacity { cpu: MilliCpu(narrow(cpu)), memory: Bytes(narrow(memory)) })
    }

    /// How much memory of the machine is set aside for nobody, in bytes.
    pub fn free_memory(&self, machine: MachineId) -> u64 {
        let Some(host) = self.hosts.get(&machine) else { return 0 };
        u64::try_from(u128::from(host.capacity.memory.0).saturating_sub(host.reserved.1)).unwrap_or(u64::MAX)
    }

    /// What decides where the unit fits.
    pub fn requirement(&self, name: &UnitName) -> Option<Requirement> {
        let entry = self.units.get(name)?;
        Some(Requirement {
            machine_id: entry.options.machine_id.as_ref().map(|id| id.as_str().to_owned()),
            metadata: entry.options.metadata.clone(),
            declares: entry.declares.clone(),
            matched_by: entry.matched_by.clone(),
            cpu: entry.options.cpu,
            memory: entry.options.memory,
        })
    }

    /// The machine that should take these units, all together: the least loaded of those that fit.
    ///
    /// `also` is a further condition on the machine, for what the placer does not know.
    pub fn best(&self, group: &[UnitName], also: impl Fn(MachineId) -> bool) -> Option<MachineId> {
        let members = self.members(group);
        match self.few_candidates(&members) {
            Some(few) => self.first_fit(&members, &self.by_load(few.into_iter()), also),
            None => self.first_fit(&members, &self.open, also),
        }
    }

    /// The best of these machines for the units.
    pub fn best_of(
        &self,
        machines: &BTreeSet<MachineId>,
        group: &[UnitName],
        also: impl Fn(MachineId) -> bool,
    ) -> Option<MachineId> {
        self.first_fit(&self.members(group), &self.by_load(machines.iter().copied()), also)
    }

    /// Whether the machine takes these units, all together; if not, why not. This is the one feasibility check.
    pub fn check(&self, group: &[UnitName], machine: MachineId) -> Result<(), Refusal> {
        let members = self.members(group);
        self.within_group(&members).map_or(Ok(()), Err)?;
        let host = self.hosts.get(&machine).ok_or(Refusal::Closed)?;
        takes(&members, machine, host).map_err(|misfit| self.refusal(misfit, host))
    }

    /// The same, as if these units were not there.
    pub fn check_without(
        &mut self,
        group: &[UnitName],
        machine: MachineId,
        without: &BTreeSet<UnitName>,
    ) -> Result<(), Refusal> {
        let there = |name: &&UnitName| self.copies(name).any(|on| on == machine);
        let lifted: Vec<&UnitName> = without.iter().filter(there).collect();
        for name in &lifted {
            self.lift(name, machine);
        }
        let result = self.check(group, machine);
        for name in lifted {
            self.assign(name, machine);
        }
        result
    }

    /// The units on the machine that these replace; none where one of them replaces one of these in turn.
    pub fn replaced(&self, group: &[UnitName], machine: MachineId) -> Option<BTreeSet<UnitName>> {
        let host = self.hosts.get(&machine)?;
        let replacing = |entry: &&Entry| !entry.options.replaces.is_empty();
        let mut found = BTreeSet::new();
        for entry in group.iter().filter_map(|name| self.units.get(name)).filter(replacing) {
            let there = entry.declares.iter().any(|id| host.matched.contains_key(id));
            for name in host.units.iter().filter(|name| there && !group.contains(*name)) {
                let Some(other) = self.units.get(name) else { continue };
                if entry.declares.is_disjoint(&other.matched_by) {
                    continue;
                }
                if replacing(&other) && !other.declares.is_disjoint(&entry.matched_by) {
                    return None;
                }
                found.insert(name.clone());
            }
        }
        Some(found)
    }

    /// Whether the unit may stay on the machine, also on one that takes nothing new.
    pub fn may_stay(&self, name: &UnitName, machine: MachineId) -> bool {
        let members = self.members(std::slice::from_ref(name));
        self.hosts.get(&machine).is_some_and(|host| fits(&members, machine, host).is_ok())
    }

    /// Whether the machine has the labels that the unit asks for.
    pub fn labels_suit(&self, name: &UnitName, machine: MachineId) -> bool {
        let (Some(entry), Some(host)) = (self.units.get(name), self.hosts.get(&machine)) else { return true };
        suits(&entry.options, host).is_ok()
    }

    fn members<'a>(&'a self, group: &'a [UnitName]) -> Vec<Member<'a>> {
        group.iter().filter_map(|name| Some((name, self.units.get(name)?))).collect()
    }

    fn by_load(&self, machines: impl Iterator<Item = MachineId>) -> BTreeSet<Score> {
        machines.filter_map(|id| Some(self.hosts.get(&id)?.score(id))).collect()
    }

    fn first_fit(
        &self,
        members: &[Member<'_>],
        machines: &BTreeSet<Score>,
        also: impl Fn(MachineId) -> bool,
    ) -> Option<MachineId> {
        if self.within_group(members).is_some() {
            return None;
        }
        let takes = |id: &MachineId| {
            also(*id) && self.hosts.get(id).is_some_and(|host| takes(members, *id, host).is_ok())
        };
        machines.iter().map(|score| score.machine).find(takes)
    }

    fn refusal(&self, misfit: Misfit<'_>, host: &Host) -> Refusal {
        match misfit {
            Misfit::Closed => Refusal::Closed,
            Misfit::MachineId { unit } => Refusal::MachineId(unit.clone()),
            Misfit::Metadata { unit, key, wanted } => Refusal::Metadata {
                unit: unit.clone(),
                key: key.to_owned(),
                wanted: wanted.iter().cloned().collect(),
                has: host.labels.get(key).cloned(),
            },
            Misfit::Conflict { unit, id, own } => self.conflict(unit, host, id, own),
            Misfit::Cpu { needed, free } => {
                Refusal::Cpu { needed: MilliCpu(narrow(needed)), free: MilliCpu(narrow(free)) }
            }
            Misfit::Memory { needed, free } => {
                Refusal::Memory { needed: Bytes(narrow(needed)), free: Bytes(narrow(free)) }
            }
        }
    }

    fn conflict(&self, name: &UnitName, host: &Host, id: PatternId, own: bool) -> Refusal {
        let counterpart = |other: &&UnitName| {
            let matches = |entry: &Entry| if own { &entry.matched_by } else { &entry.declares }.contains(&id);
            *other != name && self.units.get(other).is_some_and(matches)
        };
        match (host.units.iter().find(counterpart), self.patterns.glob(id)) {
            (Some(with), Some(pattern)) => Refusal::Conflict {
                unit: name.clone(),
                with: with.clone(),
                pattern: pattern.clone(),
                own,
                replaces: self.names_replaced(if own { name } else { with }),
            },
            _ => Refusal::Closed,
        }
    }

    /// Whether what the unit names is what it replaces; else what it is in conflict with.
    fn names_replaced(&self, name: &UnitName) -> bool {
        self.units.get(name).is_some_and(|entry| !entry.options.replaces.is_empty())
    }

    /// Whether units of the group are in conflict with each other.
    fn within_group(&self, members: &[Member<'_>]) -> Option<Refusal> {
        if members.len() < 2 {
            return None;
        }
        members.iter().find_map(|(unit, entry)| {
            members.iter().filter(|(with, _)| with != unit).find_map(|(with, other)| {
                let id = entry.declares.intersection(&other.matched_by).next()?;
                let pattern = self.patterns.glob(*id)?.clone();
                Some(Refusal::WithinGroup { unit: (*unit).clone(), with: (*with).clone(), pattern })
            })
        })
    }

    /// The only machines that can fit, where an index knows them and they are few enough that trying them all is
    /// cheaper than walking the machines by their load until one fits.
    fn few_candidates(&self, members: &[Member<'_>]) -> Option<BTreeSet<MachineId>> {
        let mut fewest: Option<BTreeSet<MachineId>> = None;
        for (_, entry) in members {
            if let Some(id) = &entry.options.machine_id {
                return Some(self.hosts.range(named(id)).map(|(machine, _)| *machine).collect());
            }
            for (key, values) in &entry.options.metadata {
                let by_value = self.labelled.get(key);
                let sets = || values.iter().filter_map(|value| by_value?.get(value));
                let count: usize = sets().map(BTreeSet::len).sum();
                let enough = fewest.as_ref().map_or(usize::MAX, BTreeSet::len);
                if count < enough && count.saturating_mul(count) <= self.open.len() {
                    fewest = Some(sets().flatten().copied().collect());
                }
            }
        }
        fewest
    }

    /// Takes the unit's copy off the machine, and keeps the unit.
    fn lift(&mut self, name: &UnitName, machine: MachineId) {
        let (Some(entry), Some(host)) = (self.units.get_mut(name), self.hosts.get_mut(&machine)) else {
            return;
        };
        if entry.on.remove(&machine).is_none() {
            return;
        }
        if host.open {
            self.open.remove(&host.score(machine));
        }
        host.remove(name, entry);
        if host.open {
            self.open.insert(host.score(machine));
        }
    }

    fn drop_entry(&mut self, name: &UnitName) {
        let Some(entry) = self.units.remove(name) else {
            return;
        };
        for id in entry.declares {
            let Some(pattern) = self.patterns.release(id) else { continue };
            for name in self.matched(&pattern) {
                let Some(other) = self.units.get_mut(&name) else { continue };
                other.matched_by.remove(&id);
                for machine in other.on.keys() {
                    if let Some(host) = self.hosts.get_mut(machine) {
                        host.matched.remove(&id);
                    }
                }
            }
        }
    }

    /// The units that the pattern matches.
    fn matched(&self, pattern: &Glob) -> Vec<UnitName> {
        let names = self.units.starting_with(patterns::prefix(pattern));
        names.filter(|name| pattern.matches(name.as_str())).cloned().collect()
    }

    fn index_new_pattern(&mut self, id: PatternId, pattern: &Glob) {
        for name in self.matched(pattern) {
            let Some(entry) = self.units.get_mut(&name) else { continue };
            entry.matched_by.insert(id);
            for machine in entry.on.keys() {
                if let Some(host) = self.hosts.get_mut(machine) {
                    *host.matched.entry(id).or_default() += 1;
                }
            }
        }
    }
}

impl Placer {
    /// Re-derives every count and index from what is placed where, and says what differs. Empty when all is well.
    pub fn differences(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (id, host) in &self.hosts {
            let mut fresh = Host {
                labels: host.labels.clone(),
                capacity: host.capacity,
                open: host.open,
                load: 0,
                reserved: (0, 0),
                units: BTreeSet::new(),
                declared: BTreeMap::new(),
                matched: BTreeMap::new(),
            };
            for (name, entry) in self.units.iter().filter(|(_, entry)| entry.on.contains_key(id)) {
                fresh.add(name, entry);
            }
            if (fresh.load, fresh.reserved) != (host.load, host.reserved) {
                found.push(format!("machine {id}: the load is counted wrongly"));
            }
            if (&fresh.units, &fresh.declared, &fresh.matched) != (&host.units, &host.declared, &host.matched)
            {
                found.push(format!("machine {id}: what is placed there is counted wrongly"));
            }
            if self.open.contains(&host.score(*id)) != host.open {
                found.push(format!("machine {id}: the index by load is wrong"));
            }
        }
        for (name, entry) in self.units.iter() {
            if entry.matched_by != self.patterns.matching(name.as_str()) {
                found.push(format!("{name}: the index of conflicts is wrong"));
            }
        }
        found
    }
}
