//! What goes wrong, and what clients ask for: drawn from the seed before the world begins, as a list from which a
//! failing history can be shortened.

use std::collections::BTreeSet;
use std::fmt;

use muster_core::command::Verb;
use muster_core::machine::{Availability, Drain};

use crate::election::Election;
use crate::palette::{
    ALL_UNITS, EXCLUSIVE, FAILING, FAILING_END, PLAIN, Palette, REPLACING, REPLACING_END, UNITS, WAITED_FOR,
    WAITING, WAITING_END,
};
use crate::queue::{MILLI, Micros, SECOND};
use crate::random::Random;
use crate::systemd::Behaviour;

/// How long things go wrong.
pub(crate) const FAULTS_LAST: Micros = 120 * SECOND;

/// A history before it happens.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all else comes from that happens.
    pub seed: u64,
    pub(crate) machines: usize,
    /// Some histories have a backup restored: what was acknowledged since is lost.
    pub(crate) entries: Vec<Entry>,
    /// When everything heals.
    pub(crate) heals: Micros,
    /// Whether agents are told how short their machine is of something.
    pub(crate) pressure: bool,
    /// The fault that the code itself has.
    #[cfg(feature = "planted-faults")]
    pub(crate) planted: Option<muster_core::planted::Fault>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Its number in the plan as it was drawn.
    pub(crate) number: usize,
    pub(crate) at: Micros,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Client(Order),
    Fault(Fault),
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) ask: Ask,
    /// How many answers are lost on their way.
    pub(crate) lost_answers: u32,
    /// After how many attempts it gives up.
    pub(crate) tries: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Command {
        verb: Verb,
        units: Vec<usize>,
        content: Option<usize>,
        replace: bool,
    },
    Query,
    /// Those that the leader doubts to be dead are.
    ReleaseBrake,
    Machine {
        machine: usize,
        availability: Availability,
    },
    /// The machine has this role from now on, or none.
    Relabel {
        machine: usize,
        role: Option<&'static str>,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The scheduler is killed after so many more effects, and started again after this time.
    CrashScheduler {
        after: u32,
        down: Micros,
    },
    /// Its process is stopped, and goes on.
    FreezeScheduler {
        lasts: Micros,
    },
    /// An operator copies the store.
    BackUp,
    /// An operator puts the copy back.
    Restore {
        down: Micros,
    },
    /// The scheduler cannot tell the store that it goes on leading.
    RenewalsLost {
        lasts: Micros,
    },
    StoreFull {
        lasts: Micros,
    },
    StoreSlow {
        lasts: Micros,
    },
    /// It answers nothing, neither commits nor renewals. Where the scheduler has it to itself, its disk hangs.
    StoreAway {
        lasts: Micros,
    },
    /// What the store answers is lost, and what it is asked comes there late or never; its answers to renewals are late.
    AnswersLost {
        lasts: Micros,
    },
    /// It has no room, neither for batches nor for the key of a leader; but renews what it has.
    NoSpace {
        lasts: Micros,
    },
    /// The scheduler leaves its office to another one.
    StepDown,
    /// From now on, of the batches that share a flush the first ones may be durable when the scheduler dies.
    StoreTears,
    CrashAgent {
        machine: usize,
        after: u32,
        down: Micros,
    },
    /// The agent is told to end, as for an upgrade.
    RestartAgent {
        machine: usize,
        down: Micros,
    },
    /// The machine shuts down in order, and boots again.
    Reboot {
        machine: usize,
        down: Micros,
    },
    FreezeAgent {
        machine: usize,
        lasts: Micros,
    },
    /// The machine loses its power, and boots again.
    PowerLoss {
        machine: usize,
        down: Micros,
    },
    /// The machine stands still as a whole; its clock goes on.
    FreezeMachine {
        machine: usize,
        lasts: Micros,
    },
    /// What one side sends does not arrive at the other.
    Partition {
        machine: usize,
        up: bool,
        down: bool,
        lasts: Micros,
    },
    SlowLink {
        machine: usize,
        delay: Micros,
        lasts: Micros,
    },
    /// The stream breaks; one side learns of it at once, the other when it does.
    StreamBreaks {
        machine: usize,
        agent_first: bool,
    },
    /// What next answers the agent is an old leader, which does not know that it was overtaken.
    OldLeader {
        machine: usize,
    },
    /// Deltas are lost, and others come twice; then the stream breaks.
    DeltasJumbled {
        machine: usize,
        lasts: Micros,
    },
    /// It does not become known whether the next commit was written: the scheduler ends, and starts from the store.
    StoreLost {
        down: Micros,
    },
    DiskFull {
        machine: usize,
        lasts: Micros,
    },
    DiskSlow {
        machine: usize,
        lasts: Micros,
    },
    Pid1Hangs {
        machine: usize,
        lasts: Micros,
    },
    /// The connection to the bus ends.
    BusBreaks {
        machine: usize,
    },
    /// Calls are not answered, although they may have their effect.
    BusFlaky {
        machine: usize,
        lasts: Micros,
    },
    Reload {
        machine: usize,
    },
    SignalsLost {
        machine: usize,
        lasts: Micros,
    },
    /// The process of the guard of exclusive units dies before its time.
    GuardDies {
        machine: usize,
    },
    UnitBehaves {
        unit: usize,
        behaviour: Behaviour,
        lasts: Micros,
    },
    /// The same on one machine alone.
    BehavesHere {
        machine: usize,
        unit: usize,
        behaviour: Behaviour,
        lasts: Micros,
    },
    UnitExits {
        machine: usize,
        unit: usize,
        restart: bool,
    },
    Activate {
        machine: usize,
        unit: usize,
    },
    /// `CLOCK_BOOTTIME` is further than it was, as after a suspend. It never goes back; wall clocks do, and nothing in the cores
    /// reads one.
    ClockJumps {
        machine: usize,
        by: Micros,
    },
}

impl Fault {
    /// How long it lasts, where it ends by itself.
    pub(crate) fn lasts(&self) -> Option<Micros> {
        match self {
            Self::FreezeScheduler { lasts }
            | Self::RenewalsLost { lasts }
            | Self::StoreFull { lasts }
            | Self::StoreSlow { lasts }
            | Self::StoreAway { lasts }
            | Self::AnswersLost { lasts }
            | Self::NoSpace { lasts }
            | Self::FreezeAgent { lasts, .. }
            | Self::FreezeMachine { lasts, .. }
            | Self::Partition { lasts, .. }
            | Self::SlowLink { lasts, .. }
            | Self::DeltasJumbled { lasts, .. }
            | Self::DiskFull { lasts, .. }
            | Self::DiskSlow { lasts, .. }
            | Self::Pid1Hangs { lasts, .. }
            | Self::BusFlaky { lasts, .. }
            | Self::SignalsLost { lasts, .. }
            | Self::UnitBehaves { lasts, .. }
            | Self::BehavesHere { lasts, .. } => Some(*lasts),
            _ => None,
        }
    }
}

impl Plan {
    /// The history of this seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, "plan");
        let machines = *random.pick(&[1, 2, 3, 3, 3, 3, 3, 3, 4, 5]);
        let mut entries = Vec::new();
        orders(&mut random, machines, &mut entries);
        faults(&mut random, machines, &mut entries);
        units_that_wait(&mut Random::new(seed, "waiting"), &mut entries);
        entries.retain(|entry| entry.at < FAULTS_LAST);
        entries.sort_by_key(|entry| entry.at);
        for (number, entry) in entries.iter_mut().enumerate() {
            entry.number = number;
        }
        if Election::is_held(seed) {
            elections(&mut Random::new(seed, "elections"), &mut entries);
            shared_stores(&mut Random::new(seed, "shared"), machines, &mut entries);
        }
        activations(&mut Random::new(seed, "activations"), &mut entries);
        units_that_fail(&mut Random::new(seed, "failing"), machines, &mut entries);
        releases(&mut Random::new(seed, "releases"), machines, &mut entries);
        torn_commits(&mut Random::new(seed, "torn"), &mut entries);
        cuts_as_long_as_a_lease(&mut Random::new(seed, "cuts"), machines, &mut entries);
        guards_that_die(&mut Random::new(seed, "guards"), machines, &mut entries);
        schedulers_in_a_row(&mut Random::new(seed, "row"), machines, &mut entries);
        drains_again(&mut Random::new(seed, "drains"), machines, &mut entries);
        replacements(&mut Random::new(seed, "replacing"), machines, &mut entries);
        relabels(&mut Random::new(seed, "labels"), machines, &mut entries);
        entries.sort_by_key(|entry| entry.at);
        Self {
            seed,
            machines,
            entries,
            heals: FAULTS_LAST,
            pressure: true,
            #[cfg(feature = "planted-faults")]
            planted: None,
        }
    }

    /// The same with only some of its entries.
    pub(crate) fn only(&self, numbers: &[usize], heals: Micros) -> Self {
        let kept = |entry: &&Entry| numbers.contains(&entry.number);
        let entries = self.entries.iter().filter(kept).cloned().collect();
        let mut shorter = self.clone();
        (shorter.entries, shorter.heals) = (entries, heals);
        shorter
    }
}

fn add(entries: &mut Vec<Entry>, at: Micros, what: What) {
    entries.push(Entry { number: 0, at, what });
}

/// In some histories what is to go is activated again just then. These are numbered apart, too.
fn activations(random: &mut Random, entries: &mut Vec<Entry>) {
    if !random.chance(200) {
        return;
    }
    let mut activated = Vec::new();
    for entry in &*entries {
        if let What::Client(Order {
            ask: Ask::Command { verb: Verb::Destroy | Verb::Unload, units, .. },
            ..
        }) = &entry.what
        {
            for unit in units.iter().copied() {
                let fault = Fault::UnitBehaves { unit, behaviour: Behaviour::Activated, lasts: SECOND };
                let number = 2000 + activated.len();
                activated.push(Entry { number, at: entry.at, what: What::Fault(fault) });
            }
        }
    }
    entries.append(&mut activated);
}

/// In some histories an operator says that machines which were just lost are dead indeed, and in some of these many are lost
/// at once. They are numbered apart, too.
fn releases(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(300) {
        return;
    }
    let mut drawn = Vec::new();
    if random.chance(500) {
        let (at, lasts) =
            (random.between(20 * SECOND, 90 * SECOND), random.between(10 * SECOND, 40 * SECOND));
        for machine in random.below(2)..machines {
            let at = at + random.between(0, SECOND);
            drawn.push((at, What::Fault(Fault::Partition { machine, up: true, down: true, lasts })));
        }
    }
    let lost = entries.iter().map(|entry| (entry.at, entry.what.clone())).chain(drawn.clone());
    for (at, what) in lost {
        let lost = matches!(
            what,
            What::Fault(Fault::Partition { .. } | Fault::PowerLoss { .. } | Fault::FreezeMachine { .. })
        );
        if lost && random.chance(300) {
            let order = Order { ask: Ask::ReleaseBrake, lost_answers: 0, tries: 20 };
            drawn.push((at + random.between(3 * SECOND, 15 * SECOND), What::Client(order)));
        }
    }
    let drawn = drawn.into_iter().enumerate();
    entries.extend(drawn.map(|(number, (at, what))| Entry { number: 4000 + number, at, what }));
}

/// In some histories the scheduler dies while many batches wait for a slow disk, and some of them are written. These are
/// numbered apart, too.
fn torn_commits(random: &mut Random, entries: &mut Vec<Entry>) {
    if !random.chance(400) {
        return;
    }
    let mut drawn = vec![(0, What::Fault(Fault::StoreTears))];
    for _ in 0..random.below(4) {
        let at = random.between(5 * SECOND, FAULTS_LAST - 10 * SECOND);
        let crash = at + random.between(SECOND, 5 * SECOND);
        drawn.push((at, What::Fault(Fault::StoreSlow { lasts: crash - at + SECOND })));
        for _ in 0..4 + random.below(8) {
            let verb = *random.pick(&[Verb::Start, Verb::Restart, Verb::Stop, Verb::Unload]);
            let ask = Ask::Command { verb, units: vec![random.below(UNITS)], content: None, replace: false };
            let order = Order { ask, lost_answers: 0, tries: 20 };
            drawn.push((random.between(crash - 600 * MILLI, crash), What::Client(order)));
        }
        drawn.push((
            crash,
            What::Fault(Fault::CrashScheduler { after: 0, down: random.spread(SECOND / 10, 5 * SECOND) }),
        ));
    }
    let drawn = drawn.into_iter().enumerate();
    entries.extend(drawn.map(|(number, (at, what))| Entry { number: 5000 + number, at, what }));
}

/// In some histories units replace others, and something happens to the machines that these go to. These are numbered apart,
/// too.
fn replacements(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(300) {
        return;
    }
    let verbs = [Verb::Start, Verb::Start, Verb::Start, Verb::Load, Verb::Stop, Verb::Unload, Verb::Destroy];
    let mut drawn = Vec::new();
    for _ in 0..=random.below(5) {
        let unit = random.below(UNITS);
        let mut at = random.between(8 * SECOND, 60 * SECOND);
        for number in 0..=random.below(3) {
            let content = Some(REPLACING + random.below(REPLACING_END - REPLACING)).filter(|_| number == 0);
            let verb = if number == 0 { Verb::Start } else { *random.pick(&verbs) };
            let ask = Ask::Command { verb, units: vec![unit], content, replace: true };
            let lost_answers = u32::from(random.chance(150));
            drawn.push((at, What::Client(Order { ask, lost_answers, tries: 20 })));
            if random.chance(300) {
                let at = at + random.between(0, 2 * SECOND);
                let (machine, down) = (random.below(machines), random.spread(SECOND, 20 * SECOND));
                let fault = match random.below(4) {
                    0 => Fault::CrashScheduler { after: 0, down: down / 10 },
                    1 => Fault::StoreFull { lasts: down / 5 },
                    2 => Fault::PowerLoss { machine, down },
                    _ => Fault::Partition { machine, up: true, down: true, lasts: down },
                };
                drawn.push((at, What::Fault(fault)));
            }
            at += random.between(0, 30 * SECOND);
        }
    }
    let drawn = drawn.into_iter().enumerate();
    entries.extend(drawn.map(|(number, (at, what))| Entry { number: 11_000 + number, at, what }));
}

/// In some histories what agents say arrives just when their lease ends. These are numbered apart, too.
fn cuts_as_long_as_a_lease(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(250) {
        return;
    }
    for number in 0..=random.below(5) {
        let (machine, at) = (random.below(machines), random.between(10 * SECOND, FAULTS_LAST - 10 * SECOND));
        let lasts = random.between(4_100 * MILLI, 5_200 * MILLI);
        let fault = Fault::Partition { machine, up: true, down: random.chance(300), lasts };
        entries.push(Entry { number: 7000 + number, at, what: What::Fault(fault) });
    }
}

/// In some histories a scheduler dies soon after it has started, and a machine does not reach the next one. These are numbered
/// apart, too.
fn schedulers_in_a_row(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(300) {
        return;
    }
    let mut drawn = Vec::new();
    for _ in 0..=random.below(4) {
        let at = random.between(10 * SECOND, FAULTS_LAST - 20 * SECOND);
        let down = random.spread(50 * MILLI, SECOND);
        drawn.push((at, Fault::CrashScheduler { after: 0, down }));
        let (began, lasts) = (at + down + MILLI, random.between(100 * MILLI, 3 * SECOND));
        drawn.push((began, Fault::StoreAway { lasts }));
        let at = began + lasts;
        drawn.push((at, Fault::CrashScheduler { after: 0, down: random.spread(50 * MILLI, SECOND) }));
        let (machine, lasts) = (random.below(machines), random.between(4 * SECOND, 12 * SECOND));
        drawn.push((at, Fault::Partition { machine, up: true, down: true, lasts }));
    }
    let drawn = drawn.into_iter().enumerate();
    entries.extend(drawn.map(|(number, (at, fault))| Entry {
        number: 8000 + number,
        at,
        what: What::Fault(fault),
    }));
}

/// In some histories drains are asked for again while they go on, and what they move is slow to come elsewhere. These are
/// numbered apart, too.
fn drains_again(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(250) {
        return;
    }
    let mut drawn = Vec::new();
    for _ in 0..=random.below(3) {
        let (machine, begins) = (random.below(machines), random.between(10 * SECOND, 80 * SECOND));
        let timeout = random.between(6 * SECOND, 15 * SECOND);
        let drain = Drain { timeout_ms: timeout / MILLI, max_parallel: *random.pick(&[0, 0, 1]) };
        let mut order = |at, availability| {
            let ask = Ask::Machine { machine, availability };
            drawn.push((at, What::Client(Order { ask, lost_answers: 0, tries: 20 })));
        };
        order(begins, Availability::Draining(drain));
        for _ in 0..=random.below(2) {
            order(begins + random.between(SECOND, timeout), Availability::Draining(drain));
        }
        order(begins + 2 * timeout + 6 * SECOND, Availability::Open);
        for unit in 0..UNITS {
            if random.chance(300) {
                let behaviour = *random.pick(&[Behaviour::SlowStart, Behaviour::Hangs]);
                let fault = Fault::UnitBehaves { unit, behaviour, lasts: 2 * timeout + 10 * SECOND };
                drawn.push((begins, What::Fault(fault)));
            }
        }
    }
    let drawn = drawn.into_iter().enumerate();
    entries.extend(drawn.map(|(number, (at, what))| Entry { number: 10_000 + number, at, what }));
}

/// In some histories guards of exclusive units die while the lease lasts, and what PID 1 says of it may be lost. These are
/// numbered apart, too.
fn guards_that_die(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(300) {
        return;
    }
    let mut drawn = Vec::new();
    for _ in 0..=random.below(4) {
        let (machine, at) = (random.below(machines), random.between(5 * SECOND, FAULTS_LAST - SECOND));
        drawn.push((at, Fault::GuardDies { machine }));
        if random.chance(300) {
            let lasts = random.spread(200 * MILLI, 10 * SECOND);
            drawn.push((at - random.between(0, SECOND), Fault::SignalsLost { machine, lasts }));
        }
        if random.chance(300) {
            let down = random.spread(50 * MILLI, 4 * SECOND);
            drawn.push((at, Fault::CrashAgent { machine, after: 0, down }));
        }
    }
    let drawn = drawn.into_iter().enumerate();
    entries.extend(drawn.map(|(number, (at, fault))| Entry {
        number: 6000 + number,
        at,
        what: What::Fault(fault),
    }));
}

/// In some histories there are units that fail, everywhere or on one machine, and units that run to their end, beside all
/// the others. These are numbered apart, too.
fn units_that_fail(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(400) {
        return;
    }
    let behaviours = [
        Behaviour::Fails,
        Behaviour::FailsLater,
        Behaviour::FailsLater,
        Behaviour::OutOfMemory,
        Behaviour::OutOfMemory,
        Behaviour::OutOfResources,
    ];
    let verbs =
        [Verb::Start, Verb::Start, Verb::Restart, Verb::Restart, Verb::Stop, Verb::Unload, Verb::Destroy];
    let mut drawn = Vec::new();
    for unit in UNITS..ALL_UNITS {
        let content = |random: &mut Random| Some(FAILING + random.below(FAILING_END - FAILING));
        let start =
            Ask::Command { verb: Verb::Start, units: vec![unit], content: content(random), replace: false };
        let at = random.between(SECOND, 30 * SECOND);
        drawn.push((at, What::Client(Order { ask: start, lost_answers: 0, tries: 20 })));
        for _ in 0..random.below(4) {
            let at = random.between(10 * SECOND, FAULTS_LAST - SECOND);
            let content = if random.chance(300) { content(random) } else { None };
            let ask = Ask::Command { verb: *random.pick(&verbs), units: vec![unit], content, replace: true };
            drawn.push((at, What::Client(Order { ask, lost_answers: 0, tries: 20 })));
        }
        for _ in 0..random.below(3) {
            let at = random.between(0, 60 * SECOND);
            let (behaviour, lasts) = (*random.pick(&behaviours), random.between(5 * SECOND, 110 * SECOND));
            let fault = if random.chance(400) {
                Fault::UnitBehaves { unit, behaviour, lasts }
            } else {
                Fault::BehavesHere { machine: random.below(machines), unit, behaviour, lasts }
            };
            drawn.push((at, What::Fault(fault)));
        }
    }
    // And what these units live through.
    for _ in 0..random.below(5) {
        let at = random.between(20 * SECOND, FAULTS_LAST - SECOND);
        let (machine, down) = (random.below(machines), random.spread(SECOND, 20 * SECOND));
        let fault = match random.below(4) {
            0 => Fault::CrashScheduler { after: 0, down: down / 10 },
            1 => Fault::StoreFull { lasts: down / 5 },
            2 => Fault::PowerLoss { machine, down },
            _ => Fault::Partition { machine, up: true, down: true, lasts: down },
        };
        drawn.push((at, What::Fault(fault)));
    }
    let drawn = drawn.into_iter().enumerate();
    entries.extend(drawn.map(|(number, (at, what))| Entry { number: 3000 + number, at, what }));
}

/// In some histories units wait for others or for their machine. These are drawn apart, so that the other histories are
/// what they have always been.
fn units_that_wait(random: &mut Random, entries: &mut [Entry]) {
    if !random.chance(300) {
        return;
    }
    for entry in entries {
        if let What::Client(Order { ask: Ask::Command { units, content: Some(content), .. }, .. }) =
            &mut entry.what
            && !WAITED_FOR.iter().any(|unit| units.contains(unit))
            && random.chance(400)
        {
            *content = WAITING + random.below(WAITING_END - WAITING);
        }
    }
}

/// In some histories machines are given other labels. These are numbered apart, too.
fn relabels(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(250) {
        return;
    }
    for number in 0..=random.below(12) {
        let (machine, at) = (random.below(machines), random.between(5 * SECOND, FAULTS_LAST - SECOND));
        let ask = Ask::Relabel { machine, role: *random.pick(&[Some("web"), Some("db"), None]) };
        let lost_answers = u32::from(random.chance(150));
        let what = What::Client(Order { ask, lost_answers, tries: 20 });
        entries.push(Entry { number: 12_000 + number, at, what });
    }
}

/// What happens to the schedulers of a cluster that has several. They are numbered apart, so that other entries have the
/// numbers that they have always had.
fn elections(random: &mut Random, entries: &mut Vec<Entry>) {
    for number in 0..random.below(5) {
        let lasts = random.between(SECOND, 12 * SECOND);
        let fault = if random.chance(700) {
            Fault::RenewalsLost { lasts }
        } else {
            Fault::FreezeScheduler { lasts: lasts + 2 * SECOND }
        };
        let at = random.between(SECOND, FAULTS_LAST - SECOND);
        entries.push(Entry { number: 1000 + number, at, what: What::Fault(fault) });
    }
}

/// What happens to a store that several schedulers share. These are numbered apart, too.
fn shared_stores(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    if !random.chance(700) {
        return;
    }
    let mut drawn = Vec::new();
    for _ in 0..=random.below(4) {
        let at = random.between(5 * SECOND, FAULTS_LAST - 5 * SECOND);
        match random.below(8) {
            0 => drawn.push((at, Fault::StoreAway { lasts: random.spread(SECOND, 60 * SECOND) })),
            1 => {
                // About as long as leadership and leases last.
                drawn.push((at, Fault::StoreAway { lasts: random.between(2 * SECOND, 8 * SECOND) }));
                if random.chance(300) {
                    let at = at + random.between(0, 3 * SECOND);
                    let down = random.spread(50 * MILLI, 5 * SECOND);
                    drawn.push((at, Fault::CrashScheduler { after: 0, down }));
                }
            }
            2..=4 => {
                let lasts = random.spread(SECOND, 20 * SECOND);
                drawn.push((at, Fault::AnswersLost { lasts }));
                if random.chance(400) {
                    let lasts = random.between(4 * SECOND, 8 * SECOND);
                    drawn.push((at + random.between(0, 2 * SECOND), Fault::RenewalsLost { lasts }));
                }
                if random.chance(300) {
                    let at = at + random.between(0, lasts);
                    drawn.push((at, Fault::NoSpace { lasts: random.spread(SECOND / 2, 10 * SECOND) }));
                }
            }
            5 => {
                drawn.push((at, Fault::NoSpace { lasts: random.spread(SECOND / 2, 15 * SECOND) }));
                if random.chance(400) {
                    let lasts = random.between(4 * SECOND, 8 * SECOND);
                    drawn.push((at + random.between(0, 3 * SECOND), Fault::RenewalsLost { lasts }));
                }
            }
            _ => {
                drawn.push((at, Fault::StepDown));
                if random.chance(500) {
                    let (machine, lasts) = (random.below(machines), random.between(3 * SECOND, 7 * SECOND));
                    drawn.push((at, Fault::Partition { machine, up: true, down: true, lasts }));
                }
            }
        }
    }
    let drawn = drawn.into_iter().enumerate();
    entries.extend(drawn.map(|(number, (at, fault))| Entry {
        number: 9000 + number,
        at,
        what: What::Fault(fault),
    }));
}

fn orders(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    let palette = Palette::new();
    let contents = WAITING;
    // Some clusters have units that nothing ties to a machine.
    let plain = random.chance(300);
    // Others are full of units of which there may be one.
    let one = random.chance(300);
    let content = |random: &mut Random, units: &[usize]| {
        let drawn = match (plain, one) {
            (_, true) if random.chance(600) => EXCLUSIVE + random.below(contents - EXCLUSIVE),
            (true, _) => random.below(PLAIN),
            (false, _) => random.below(contents),
        };
        // No unit is tied to itself.
        let tied = palette.contents[drawn].options.machine_of.iter().any(|target| units.contains(target));
        if tied { drawn % PLAIN } else { drawn }
    };
    let mut order = |random: &mut Random, at, ask| {
        let lost_answers = if random.chance(150) { 1 + u32::from(random.chance(300)) } else { 0 };
        let tries = if random.chance(100) { 1 } else { 20 };
        add(entries, at, What::Client(Order { ask, lost_answers, tries }));
    };
    let many = 5 + random.below(UNITS - 4);
    let mut unit = 0;
    while unit < many {
        let batch = 1 + random.below(6);
        let units: Vec<usize> = (unit..many.min(unit + batch)).collect();
        unit += batch;
        let verb = if random.chance(850) { Verb::Start } else { Verb::Load };
        let content = Some(content(random, &units));
        let ask = Ask::Command { verb, units, content, replace: false };
        let at = random.between(SECOND / 2, 6 * SECOND);
        order(random, at, ask);
    }
    let verbs = [
        Verb::Submit,
        Verb::Load,
        Verb::Start,
        Verb::Start,
        Verb::Start,
        Verb::Start,
        Verb::Stop,
        Verb::Stop,
        Verb::Unload,
        Verb::Destroy,
        Verb::Destroy,
        Verb::Restart,
    ];
    // In some histories clients and faults meet at the same few units.
    let few = if random.chance(300) { FEW } else { many };
    for _ in 0..random.below(if few < many { 120 } else { 60 }) {
        let at = random.between(5 * SECOND, FAULTS_LAST - SECOND);
        let ask = if random.chance(150) {
            Ask::Query
        } else if random.chance(200) {
            let drain =
                Drain { timeout_ms: random.spread(100, 30_000), max_parallel: *random.pick(&[0, 0, 1, 3]) };
            let kinds = [
                Availability::Open,
                Availability::Open,
                Availability::Cordoned,
                Availability::Draining(drain),
            ];
            Ask::Machine { machine: random.below(machines), availability: *random.pick(&kinds) }
        } else {
            let units =
                (0..if random.chance(800) { 1 } else { 4 }).map(|_| random.below(few)).collect::<Vec<_>>();
            let units: Vec<usize> = units.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
            let content = random.chance(800).then(|| content(random, &units));
            Ask::Command { verb: *random.pick(&verbs), units, content, replace: random.chance(400) }
        };
        order(random, at, ask);
    }
}

/// How many units are at the centre of some histories.
const FEW: usize = 4;
/// How many kinds of faults [`fault`] knows.
const FAULTS: usize = 32;

fn faults(random: &mut Random, machines: usize, entries: &mut Vec<Entry>) {
    // Not all kinds in each history: what one fault brings about, another may hide.
    let mut kinds: Vec<usize> = (0..FAULTS).filter(|_| random.chance(400)).collect();
    if kinds.is_empty() {
        kinds.push(0);
    }
    let most = *random.pick(&[3, 10, 20, 40, 80]);
    let restores = random.chance(250);
    for _ in 0..=random.below(most) {
        let at = random.between(SECOND, FAULTS_LAST - SECOND);
        let kind = *random.pick(&kinds);
        let fault = fault(random, machines, kind);
        if let Fault::Partition { machine, up, down, lasts } = fault
            && random.chance(200)
        {
            // It comes and goes.
            let period = random.between(SECOND / 2, 4 * SECOND);
            for beat in 0..random.between(2, 12) {
                let fault = Fault::Partition { machine, up, down, lasts: lasts.min(period / 2) };
                add(entries, at + beat * period, What::Fault(fault));
            }
        } else {
            if let Fault::Pid1Hangs { machine, .. } = fault
                && random.chance(300)
            {
                // What makes PID 1 hang may do more.
                let lasts = random.between(5 * SECOND, 40 * SECOND);
                let cut = Fault::Partition { machine, up: true, down: true, lasts };
                add(entries, at + random.between(0, 5 * SECOND), What::Fault(cut));
            }
            add(entries, at, What::Fault(fault));
        }
    }
    // Drains of machines whose units are slow to come elsewhere.
    for at in drains(entries) {
        for unit in 0..UNITS {
            if random.chance(100) {
                let behaviour = *random.pick(&[Behaviour::SlowStart, Behaviour::Hangs]);
                let lasts = random.between(5 * SECOND, 40 * SECOND);
                add(entries, at, What::Fault(Fault::UnitBehaves { unit, behaviour, lasts }));
            }
        }
    }
    if restores {
        let backup = random.between(5 * SECOND, 60 * SECOND);
        add(entries, backup, What::Fault(Fault::BackUp));
        let mut at = random.between(backup + SECOND, FAULTS_LAST - SECOND);
        if random.chance(600) {
            // What was on this machine has moved meanwhile.
            let (machine, lasts) = (random.below(machines), random.between(6 * SECOND, 20 * SECOND));
            let cut = Fault::Partition { machine, up: true, down: true, lasts };
            add(entries, backup + MILLI, What::Fault(cut));
            at = backup + lasts + random.between(0, 3 * SECOND);
            if random.chance(500) {
                // And what has moved is cut off in its turn, and slow to stop.
                let machine = (machine + 1 + random.below(machines.max(2) - 1)) % machines;
                let lasts = random.between(10 * SECOND, 20 * SECOND);
                let cut = Fault::Partition { machine, up: true, down: true, lasts };
                add(entries, at, What::Fault(cut));
                for unit in 0..UNITS {
                    if random.chance(800) {
                        let behaviour = Behaviour::Unstoppable;
                        let fault = Fault::UnitBehaves { unit, behaviour, lasts: 40 * SECOND };
                        add(entries, at, What::Fault(fault));
                    }
                }
            }
        }
        add(entries, at, What::Fault(Fault::Restore { down: random.spread(100 * MILLI, 10 * SECOND) }));
    }
}

/// When machines are drained.
fn drains(entries: &[Entry]) -> Vec<Micros> {
    let drained = |entry: &&Entry| {
        let What::Client(Order { ask: Ask::Machine { availability, .. }, .. }) = &entry.what else {
            return false;
        };
        matches!(availability, Availability::Draining(_))
    };
    entries.iter().filter(drained).map(|entry| entry.at).collect()
}

fn fault(random: &mut Random, machines: usize, kind: usize) -> Fault {
    let machine = random.below(machines);
    let unit = if random.chance(400) { random.below(FEW) } else { random.below(UNITS) };
    let short = random.spread(50 * MILLI, 4 * SECOND);
    let lasts = random.spread(200 * MILLI, 30 * SECOND);
    // The interesting times are those about as long as a lease.
    let lease = if random.chance(500) { (4_100, 5_200) } else { (4_500, 6_000) };
    let lease = random.between(lease.0 * MILLI, lease.1 * MILLI);
    let lasts = if random.chance(250) { lease } else { lasts };
    let after = if random.chance(300) { 0 } else { u32::try_from(random.below(12)).unwrap_or(0) };
    match kind {
        0 | 1 => Fault::CrashScheduler { after, down: random.spread(50 * MILLI, 12 * SECOND) },
        2 => Fault::FreezeScheduler { lasts },
        3 => Fault::StoreFull { lasts: short },
        4 => Fault::StoreSlow { lasts },
        5 | 6 => Fault::CrashAgent { machine, after, down: random.spread(50 * MILLI, 12 * SECOND) },
        7 => Fault::FreezeAgent { machine, lasts },
        8 => Fault::PowerLoss { machine, down: random.spread(SECOND, 30 * SECOND) },
        9 => Fault::FreezeMachine { machine, lasts },
        10 | 11 => {
            let (up, down) = *random.pick(&[(true, true), (true, true), (true, false), (false, true)]);
            let lasts = if random.chance(400) { lease } else { lasts };
            Fault::Partition { machine, up, down, lasts }
        }
        12 => Fault::SlowLink { machine, delay: random.spread(20 * MILLI, 3 * SECOND), lasts },
        13 => Fault::StreamBreaks { machine, agent_first: random.chance(500) },
        14 => Fault::OldLeader { machine },
        15 => Fault::DiskFull { machine, lasts },
        16 => Fault::DiskSlow { machine, lasts },
        17 => Fault::Pid1Hangs { machine, lasts: random.spread(200 * MILLI, 80 * SECOND) },
        18 => Fault::BusBreaks { machine },
        19 | 30 => Fault::BusFlaky { machine, lasts },
        20 => Fault::Reload { machine },
        21 => Fault::SignalsLost { machine, lasts },
        22 => {
            let behaviours = [
                Behaviour::SlowStart,
                Behaviour::Fails,
                Behaviour::Hangs,
                Behaviour::SlowStop,
                Behaviour::Unstoppable,
                Behaviour::Crashes,
                Behaviour::Activated,
            ];
            Fault::UnitBehaves { unit, behaviour: *random.pick(&behaviours), lasts }
        }
        23 if random.chance(500) => Fault::Activate { machine, unit },
        23 => Fault::UnitExits { machine, unit, restart: random.chance(500) },
        24 => Fault::RestartAgent { machine, down: random.spread(50 * MILLI, 40 * SECOND) },
        25 => Fault::Reboot { machine, down: random.spread(SECOND, 30 * SECOND) },
        26 => Fault::DeltasJumbled { machine, lasts },
        27 => Fault::StoreLost { down: random.spread(50 * MILLI, 12 * SECOND) },
        28 | 29 => Fault::UnitBehaves { unit, behaviour: Behaviour::Activated, lasts },
        _ => Fault::ClockJumps { machine, by: random.spread(100 * MILLI, 20 * SECOND) },
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>4}  {:>10.3} s  ", self.number, seconds(self.at))?;
        match &self.what {
            What::Fault(fault) => write!(f, "{fault:?}"),
            What::Client(order) => write!(f, "client: {order}"),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ask {
            Ask::Query => write!(f, "query")?,
            Ask::ReleaseBrake => write!(f, "release the brake")?,
            Ask::Machine { machine, availability } => write!(f, "m{machine} {availability:?}")?,
            Ask::Relabel { machine, role } => write!(f, "m{machine} role {}", role.unwrap_or("-"))?,
            Ask::Command { verb, units, content, replace } => {
                write!(f, "{verb:?} {units:?}")?;
                if let Some(content) = content {
                    write!(f, " content {content}")?;
                }
                if *replace {
                    write!(f, " --replace")?;
                }
            }
        }
        if self.lost_answers > 0 {
            write!(f, ", loses {} answers", self.lost_answers)?;
        }
        if self.tries == 1 {
            write!(f, ", tries once")?;
        }
        Ok(())
    }
}

/// Seconds, to be shown.
pub(crate) fn seconds(at: Micros) -> f64 {
    std::time::Duration::from_micros(at).as_secs_f64()
}
