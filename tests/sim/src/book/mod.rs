//! The simulation's own account of what was decided, promised and said, against which [`crate::invariants`] hold the
//! leader and the agents. None of it is taken from their memories: only from what goes in and out of them.

mod hearing;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_core::command::LabelEdit;
use muster_core::ids::{CommandId, CommitId, Epoch, MachineId, Revision, SessionNumber, Term};
use muster_core::leader::{Change, ConnectionId, RequestId, Retired, StoredUnit};
use muster_core::machine::{Availability, LabelEdits, MachineRecord};
use muster_core::message::HeldUnit;
use muster_core::state::{Observation, Phase};
use muster_core::time::Time;
use muster_core::unit::UnitName;

use crate::client::client_of;
use crate::faults::Ask;
use crate::intent::Intent;
use crate::invariants::Brake;
use crate::palette::{ROLE, machine_id, role};
use crate::queue::Micros;
use crate::world::World;

#[derive(Debug)]
pub(crate) struct Book {
    /// What the leader has decided, durable or not.
    pub(crate) decided: Decided,
    /// What the clients' commands add up to: those that the leader has carried out, and those of them that are durable.
    pub(crate) intent: Intent,
    pub(crate) durable_intent: Intent,
    pub(crate) commands: BTreeSet<CommandId>,
    pub(crate) durable_commands: BTreeSet<CommandId>,
    /// Requests that the leader has not answered, and what is to be said to them.
    pub(crate) expected: BTreeMap<RequestId, Expected>,
    /// All that was durable at any time (since the last restore of a backup).
    pub(crate) placed: BTreeSet<(UnitName, MachineId, Epoch)>,
    pub(crate) retired: BTreeMap<(MachineId, UnitName), Epoch>,
    pub(crate) availabilities: BTreeSet<(MachineId, String)>,
    /// The roles that machines were ever given, durably.
    pub(crate) roles: BTreeSet<(MachineId, Option<String>)>,
    /// The latest epoch of each unit that was ever decided.
    pub(crate) last_epoch: BTreeMap<UnitName, Epoch>,
    /// What the leader has issued and what of it is durable.
    pub(crate) issued: CommitId,
    pub(crate) durable: CommitId,
    /// Before which moment nothing was decided of which the leader tells only now.
    pub(crate) tells_of: Micros,
    /// The leader's clock when it took over, and the machines that it knew then.
    pub(crate) took_over: (Time, Micros),
    pub(crate) expects: BTreeSet<MachineId>,
    /// When it last took office: then, or since it took a higher term.
    pub(crate) office: Micros,
    /// Whether a backup was restored, or the store has lost what was decided on it: from then on machines may know
    /// better than the store.
    pub(crate) restored: bool,
    pub(crate) store_failed: bool,
    pub(crate) machines: Vec<MachineBook>,
    /// The copies that a machine has ever said to the leader to be active.
    pub(crate) said_active: BTreeSet<(UnitName, Epoch)>,
    /// The placements that their machine was told to start.
    pub(crate) told_to_start: BTreeSet<(UnitName, Epoch)>,
    /// Of placements of units that require another: which placement that had when they were decided, or got first after.
    pub(crate) required: BTreeMap<(UnitName, Epoch, UnitName), Epoch>,
    /// What the present leader was told of units that failed, since a client last decided on them.
    pub(crate) failures: BTreeMap<UnitName, Failures>,
    /// Of which units that have failed a client decided since, who may have done so in vain.
    pub(crate) forgiven: BTreeSet<UnitName>,
    /// The copies of one-shot units that a machine has ever said to the leader to have run to their end, and the units that
    /// are done, durable and since a client last decided on them.
    pub(crate) ended: BTreeSet<(UnitName, Epoch)>,
    pub(crate) done: BTreeSet<UnitName>,
    /// Whether, and for which machines, the present leader has said that it moves nothing since too many died.
    pub(crate) brake: Option<Brake>,
    /// When a machine, its stream or the store was last seen not to be well.
    pub(crate) troubled: Micros,
    /// The same, or a machine to be closed; but not for that the store has once lost what was decided on it.
    pub(crate) unwell: Micros,
    /// When the world was found to be well, what had been done until then.
    pub(crate) idle: Option<Done>,
}

/// What the leader has decided.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decided {
    pub(crate) units: BTreeMap<UnitName, StoredUnit>,
    /// The number of each unit's file; also of units that are known no more and of which copies may be left.
    pub(crate) files: BTreeMap<UnitName, usize>,
    pub(crate) machines: BTreeMap<MachineId, MachineRecord>,
    pub(crate) availability: BTreeMap<MachineId, Availability>,
    pub(crate) labels: BTreeMap<MachineId, LabelEdits>,
    pub(crate) retired: BTreeMap<(MachineId, UnitName), Epoch>,
}

/// How much was done until some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// That moment, counted from the end of the faults.
    pub(crate) since: Micros,
    pub(crate) commits: u64,
    pub(crate) reports: u64,
    pub(crate) assignments: u64,
}

/// What a request is to be answered.
#[derive(Debug)]
pub(crate) enum Expected {
    Command {
        id: CommandId,
        outcome: Result<(), String>,
    },
    /// What the clients' commands added up to when the question was asked, and the last commit before.
    Query {
        intent: Intent,
        after: CommitId,
    },
    Machines {
        machines: Vec<MachineId>,
        availability: Availability,
    },
    Labels(Vec<LabelEdit>),
}

/// What is known of one machine.
#[derive(Debug, Default)]
pub(crate) struct MachineBook {
    /// The stream on which its agent last said Hello.
    pub(crate) session: Option<ConnectionId>,
    /// What leaders whom the machine has to obey have told it, in this boot: of each unit, each placement that it was to
    /// hold, in which term that was said, and whether it was to be loaded only at some time.
    pub(crate) told_to_hold: BTreeMap<UnitName, BTreeMap<Epoch, Told>>,
    pub(crate) told_to_remove: BTreeMap<UnitName, (Epoch, Term)>,
    /// The copies that it has begun to stop.
    pub(crate) stops: BTreeSet<(UnitName, Epoch)>,
    /// Up to which epoch its agent has said that nothing is left, as far as the agent has written that down.
    pub(crate) stopped: BTreeMap<UnitName, Epoch>,
    /// Until when its lease runs by its own clock: as it was told, and as the leader has promised.
    pub(crate) granted: Option<Time>,
    pub(crate) promised: Option<Time>,
    /// Until when it was given time to restart its agent; over when that says Hello.
    pub(crate) grace: Option<Time>,
    /// When the present leader last heard Hello or an answered heartbeat of it, by the leader's clock, and how long the
    /// leader had been stopped until then; none after the machine was given up.
    pub(crate) heard: Option<(Time, Micros)>,
    /// Whether a heartbeat of it is still to come after its last Hello; and the same for the last heartbeat, or the first
    /// Hello since.
    pub(crate) unproven: bool,
    pub(crate) counts: Option<(Time, Micros)>,
    /// Since when its heartbeats have been answered without a gap, so far as they were.
    pub(crate) steady: Micros,
    /// Until when the present leader has granted it time to restart its agent, by the leader's clock and at most.
    pub(crate) graced: Option<Time>,
    /// Whether it told a leader that it shuts down, as the present one must know; and whether its last Hello says so.
    pub(crate) leaving: bool,
    pub(crate) says_leaving: bool,
    /// Whether the present leader knows that its PID 1 is silent for too long.
    pub(crate) pid1_lost: bool,
    /// The stream on which the present leader last welcomed it, and of which boot and session that is.
    pub(crate) welcomed: Option<(ConnectionId, (u64, Option<SessionNumber>))>,
    /// When the present leader last heard of it, by its clock, and how long it had been stopped until then; also after the
    /// machine was given up.
    pub(crate) last_heard: Option<(Time, Micros)>,
    /// Whether its PID 1 was last said to have been silent for longer than a lease.
    pub(crate) degraded: bool,
    /// The same, of a Hello that the leader may not have answered yet.
    pub(crate) says_degraded: bool,
    /// What of the assignments of this session the agent can have applied last.
    pub(crate) applied: Option<(Term, Revision)>,
    /// The copies that it said to be active when it last said anything of them.
    pub(crate) says_active: BTreeSet<(UnitName, Epoch)>,
    /// The same of those that it has begun to start, and that have not ended.
    pub(crate) says_at_work: BTreeSet<(UnitName, Epoch)>,
    /// Since when the time of its drain counts, by the leader's clock, and how long the leader had been stopped until then.
    pub(crate) drained: ((Time, Micros), Duration),
    /// The same of the time that it has at least.
    pub(crate) drains: ((Time, Micros), Duration),
    /// Active copies that were placed elsewhere since the machine is drained or shuts down.
    pub(crate) moved: BTreeMap<UnitName, Moved>,
    /// When its agent last took in a sign of life of its PID 1, later by what it has stood still since; and when something
    /// last was in the way of one.
    pub(crate) pid1_heard: Micros,
    pub(crate) pid1_impaired: Micros,
    /// Whether PID 1 reloads, as it has signalled to the agent, and as the agent has asked it to; and whether that may
    /// explain why it is silent.
    pub(crate) reloads: bool,
    pub(crate) asked_to_reload: bool,
    pub(crate) reload_explains: bool,
    /// When it last sent a heartbeat.
    pub(crate) last_beat: Micros,
    /// Whether its agent keeps its guard alive.
    pub(crate) guard_kept: bool,
    /// Whether its agent has seen its guard end, and has not started it again.
    pub(crate) guard_ended: bool,
    /// Placements that it has refused since it has a later one.
    pub(crate) stale: BTreeSet<(UnitName, Epoch)>,
    /// Whether it said at last that it was rebooted since the leader's record of it.
    pub(crate) rebooted: bool,
    /// Placements that it has said to have failed there.
    pub(crate) failed: BTreeSet<(UnitName, Epoch)>,
    /// Up to which epoch the leader has recorded that no copy is left.
    pub(crate) over: BTreeMap<UnitName, Epoch>,
    /// What it said in this session that it holds.
    pub(crate) says: BTreeMap<UnitName, Epoch>,
    /// What a Hello said that the leader has not answered yet.
    pub(crate) hello: Option<(ConnectionId, Vec<HeldUnit>)>,
}

/// What is known of a unit that failed.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    pub(crate) all: Vec<Failed>,
    /// The copy that failed last, if it has not been active since.
    pub(crate) last: Option<Epoch>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    /// By the leader's clock, and how long it had been stopped until then.
    pub(crate) at: (Time, Micros),
    pub(crate) machine: usize,
    /// The how manieth within the unit's interval it is, at least.
    pub(crate) within: usize,
    pub(crate) wants_memory: bool,
}

/// A copy that was to run on until it is active elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub(crate) epoch: Epoch,
    /// When that was decided, by the leader's clock, and how long it had been stopped until then.
    pub(crate) at: (Time, Micros),
    /// Since when its time counts (of a drain for all units alike), and how long it may run on at most.
    pub(crate) since: (Time, Micros),
    pub(crate) most: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) term: Term,
    pub(crate) loaded: bool,
    pub(crate) launched: bool,
}

/// Why the leader makes a step.
#[derive(Debug)]
pub(crate) enum Cause {
    /// A client's command: new, or a repetition.
    Command {
        request: RequestId,
        id: CommandId,
        ask: Ask,
        new: bool,
    },
    /// What a client decides of machines: new, or a repetition.
    Machines {
        id: CommandId,
        new: bool,
    },
    Agent,
    /// A client has changed labels of this machine.
    Relabel(MachineId),
    Other,
}

impl Decided {
    /// The role of the machine with this number.
    pub(crate) fn role(&self, machine: usize) -> Option<&str> {
        match self.labels.get(&machine_id(machine)).and_then(|edits| edits.get(ROLE)) {
            Some(edited) => edited.as_deref(),
            None => Some(role(machine)),
        }
    }

    /// The units that are placed on a machine, and those of which a copy is being stopped there.
    pub(crate) fn on(&self, machine: MachineId, with_ending: bool) -> BTreeSet<&UnitName> {
        let placed = self.units.iter().filter(|(_, unit)| unit.placements.contains_key(&machine));
        let ending = self.retired.keys().filter(|(id, _)| with_ending && *id == machine);
        placed.map(|(name, _)| name).chain(ending.map(|(_, name)| name)).collect()
    }
}

pub(crate) fn has_failed(observation: &Observation) -> bool {
    matches!(
        observation,
        Observation::Refused(_) | Observation::Held { phase: Phase::StartFailed(_) | Phase::Failed(_), .. }
    )
}

/// Up to which epoch copies were ended.
fn epochs(retired: &BTreeMap<(MachineId, UnitName), Retired>) -> BTreeMap<(MachineId, UnitName), Epoch> {
    retired.iter().map(|(copy, retired)| (copy.clone(), retired.epoch)).collect()
}

impl Book {
    pub(crate) fn new(machines: usize) -> Self {
        Self {
            decided: Decided::default(),
            intent: Intent::default(),
            durable_intent: Intent::default(),
            commands: BTreeSet::new(),
            durable_commands: BTreeSet::new(),
            expected: BTreeMap::new(),
            placed: BTreeSet::new(),
            retired: BTreeMap::new(),
            availabilities: BTreeSet::new(),
            roles: BTreeSet::new(),
            last_epoch: BTreeMap::new(),
            issued: CommitId(0),
            durable: CommitId(0),
            tells_of: 0,
            took_over: (Time::default(), 0),
            office: 0,
            expects: BTreeSet::new(),
            restored: false,
            store_failed: false,
            machines: (0..machines).map(|_| MachineBook::default()).collect(),
            said_active: BTreeSet::new(),
            told_to_start: BTreeSet::new(),
            required: BTreeMap::new(),
            failures: BTreeMap::new(),
            forgiven: BTreeSet::new(),
            ended: BTreeSet::new(),
            done: BTreeSet::new(),
            unwell: 0,
            brake: None,
            troubled: 0,
            idle: None,
        }
    }
}

/// Whether a copy was started and has ended by itself, well.
pub(crate) fn has_run_to_its_end(observation: &Observation) -> bool {
    matches!(observation, Observation::Held { phase: Phase::Launched, state: Some(state) } if state.active == "inactive")
}

/// Whether the start of a copy was begun, and neither that nor what was started has ended.
pub(crate) fn is_at_work(observation: &Observation) -> bool {
    match observation {
        Observation::Held { phase: Phase::Starting, .. } => true,
        Observation::Held { phase: Phase::Launched, state } => {
            state.as_ref().is_none_or(|state| !matches!(&*state.active, "inactive" | "failed"))
        }
        Observation::Held { .. } | Observation::Refused(_) => false,
    }
}

/// Whether a copy was started and is active.
pub(crate) fn is_active(observation: &Observation) -> bool {
    matches!(observation, Observation::Held { phase: Phase::Launched, state: Some(state) } if state.active == "active")
}

impl World {
    pub(crate) fn machine_number(&self, id: MachineId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.id == id)
    }

    /// The disk has this now.
    pub(crate) fn becomes_durable(&mut self, change: &Change) {
        let book = &mut self.book;
        match change {
            Change::PutUnit(name, unit) => {
                for (machine, epoch) in &unit.placements {
                    book.placed.insert((name.clone(), *machine, *epoch));
                }
                // A later command may be on its way.
                if unit.done && book.decided.units.get(name).is_some_and(|unit| unit.done) {
                    book.done.insert(name.clone());
                }
            }
            Change::PutAvailability(machine, availability) => {
                book.availabilities.insert((*machine, format!("{availability:?}")));
            }
            Change::PutLabels(machine, edits) => {
                book.roles.extend(edits.get(ROLE).map(|role| (*machine, role.clone())));
            }
            Change::PutRetired(machine, name, epoch) => {
                let last = book.retired.entry((*machine, name.clone())).or_default();
                *last = (*last).max(epoch.epoch);
            }
            Change::PutCommand(_, command) => {
                book.durable_commands.insert(command.id);
                if let Some(client) = self.clients.get(client_of(command.id))
                    && book.durable_intent.carry_out(&client.order.ask).is_err()
                {
                    book.durable_intent.destroy(&client.order.ask);
                }
            }
            _ => {}
        }
    }

    /// A backup was restored: all that came after it never was. Only where terms leap, all epochs are above all before.
    pub(crate) fn restored(&mut self, intent: Intent, commands: BTreeSet<CommandId>, leaps: bool) {
        let book = &mut self.book;
        book.restored = true;
        book.durable_intent = intent;
        book.durable_commands = commands;
        if !leaps {
            book.last_epoch.clear();
        }
        book.ended.clear();
        let (now, stored) = (self.queue.now(), &self.store.durable.machines);
        for (machine, known) in book.machines.iter_mut().zip(&self.machines) {
            machine.over.clear();
            // What was granted since, nobody knows, but for what the present settings say.
            machine.grace = None;
            let granted = stored.get(&known.id).map_or(Duration::ZERO, MachineRecord::longest_lease);
            let most = known.clock.time(now) + granted.max(self.settings.lease_ttl);
            machine.promised = machine.promised.min(Some(most));
        }
        (book.placed, book.retired) = (BTreeSet::new(), epochs(&self.store.durable.retired));
        for (name, unit) in &self.store.durable.units {
            for (machine, epoch) in &unit.placements {
                self.book.placed.insert((name.clone(), *machine, *epoch));
            }
        }
    }

    /// A leader begins with what the store holds.
    pub(crate) fn leader_takes_over(&mut self, now: Time) {
        self.go_back_to_store();
        let book = &mut self.book;
        book.expected.clear();
        (book.issued, book.durable) = (CommitId(0), CommitId(0));
        let stalled = self.scheduler.stalled(self.queue.now());
        (book.took_over, book.office) = ((now, stalled), self.queue.now());
        book.failures.clear();
        book.forgiven.clear();
        book.brake = None;
        book.expects = self.store.durable.machines.keys().copied().collect();
        let stored = &self.store.durable.machines;
        for (machine, known) in book.machines.iter_mut().zip(&self.machines) {
            if !book.restored && !stored.contains_key(&known.id) {
                // Nothing was assigned to it.
                machine.promised = None;
            }
            machine.heard = None;
            machine.unproven = false;
            machine.pid1_lost = false;
            machine.leaving = stored.get(&known.id).is_some_and(|record| record.leaving);
            machine.graced = None;
            machine.stale.clear();
            machine.says.clear();
            machine.says_active.clear();
            machine.says_at_work.clear();
            machine.hello = None;
            (machine.welcomed, machine.last_heard, machine.degraded) = (None, None, false);
        }
    }

    /// What was decided and is not durable is lost.
    fn go_back_to_store(&mut self) {
        let stored = &self.store.durable;
        let number = |text: &str| self.palette.number(text).unwrap_or_default();
        let files = stored.files.iter().map(|(name, text)| (name.clone(), number(text))).collect();
        let book = &mut self.book;
        book.decided.units = stored.units.clone();
        book.decided.machines = stored.machines.clone();
        book.decided.availability = stored.availability.clone();
        book.decided.labels = stored.labels.clone();
        book.decided.retired = epochs(&stored.retired);
        // The files of units that are known no more are gone, and with them what they asked for, although copies of them
        // may be left.
        book.decided.files = files;
        book.done = stored.units.iter().filter(|(_, unit)| unit.done).map(|(name, _)| name.clone()).collect();
        book.intent = book.durable_intent.clone();
        book.commands = book.durable_commands.clone();
        book.durable = book.issued;
        let now = self.queue.now();
        let at = (self.scheduler.clock.time(now), self.scheduler.stalled(now));
        for (machine, known) in book.machines.iter_mut().zip(&self.machines) {
            machine.moved.clear();
            // A drain has its whole time anew.
            if let Some(Availability::Draining(drain)) = book.decided.availability.get(&known.id) {
                machine.drains = (at, Duration::from_millis(drain.timeout_ms));
                machine.drained = machine.drains;
            }
            // It may not have become durable.
            machine.over.clear();
        }
    }

    pub(crate) fn boot_ends(&mut self, number: usize) {
        let book = &mut self.book.machines[number];
        // The leader, which knows nothing of it, goes by what it has heard.
        let was = std::mem::take(book);
        *book = MachineBook {
            heard: was.heard,
            counts: was.counts,
            steady: was.steady,
            unproven: was.unproven,
            graced: was.graced,
            leaving: was.leaving,
            says_leaving: was.says_leaving,
            pid1_lost: was.pid1_lost,
            welcomed: was.welcomed,
            last_heard: was.last_heard,
            degraded: was.degraded,
            says: was.says,
            hello: was.hello,
            says_active: was.says_active,
            says_at_work: was.says_at_work,
            drained: was.drained,
            drains: was.drains,
            moved: was.moved,
            stale: was.stale,
            failed: was.failed,
            over: was.over,
            ..MachineBook::default()
        };
    }
}
