//! The simulation's own account of what was decided, promised and said, against which [`crate::invariants`] hold the
//! leader and the agents. None of it is taken from their memories: only from what goes in and out of them.

use std::collections::{BTreeMap, BTreeSet};

use std::time::Duration;

use muster_core::agent;
use muster_core::command::{Command, CommandResult, Verb};
use muster_core::ids::{CommandId, CommitId, Epoch, MachineId, Revision, SessionNumber, Term};
use muster_core::leader::{Change, ConnectionId, Effect, Input, RequestId, Retired, StoredUnit};
use muster_core::machine::{Availability, MachineRecord};
use muster_core::message::{FromAgent, Goodbye, HeldUnit, LeaderMessage, ReportedChange, ToAgent};
use muster_core::state::{Observation, Phase, Target};
use muster_core::time::Time;
use muster_core::unit::UnitName;

use crate::client::client_of;
use crate::faults::Ask;
use crate::fits::tied;
use crate::intent::Intent;
use crate::invariants::Brake;
use crate::machine::boot_id;
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
    /// The latest epoch of each unit that was ever decided.
    pub(crate) last_epoch: BTreeMap<UnitName, Epoch>,
    /// What the leader has issued and what of it is durable.
    pub(crate) issued: CommitId,
    pub(crate) durable: CommitId,
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
#[derive(Debug, Default)]
pub(crate) struct Decided {
    pub(crate) units: BTreeMap<UnitName, StoredUnit>,
    /// The number of each unit's file; also of units that are known no more and of which copies may be left.
    pub(crate) files: BTreeMap<UnitName, usize>,
    pub(crate) machines: BTreeMap<MachineId, MachineRecord>,
    pub(crate) availability: BTreeMap<MachineId, Availability>,
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
    /// When its agent last took in a sign of life of its PID 1; and when something last was in the way of one.
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
    Agent,
    Other,
}

impl Decided {
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
            last_epoch: BTreeMap::new(),
            issued: CommitId(0),
            durable: CommitId(0),
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
        for machine in &mut book.machines {
            machine.over.clear();
            // What was granted since, nobody knows.
            machine.grace = None;
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
        book.brake = None;
        book.expects = self.store.durable.machines.keys().copied().collect();
        let stored = &self.store.durable.machines;
        let (changes, at) = (self.configured.changes, self.queue.now());
        for (number, (machine, known)) in book.machines.iter_mut().zip(&self.machines).enumerate() {
            if changes {
                // What it was granted last by one that dies before that is written down, and is followed by one with shorter
                // leases, is promised by nobody. Nothing is assigned to a machine before its record is written.
                let record =
                    stored.get(&known.id).filter(|record| record.boot == boot_id(number, known.boot));
                let counts_on = record.map(|record| known.clock.time(at) + record.longest_lease());
                machine.promised = machine.promised.min(counts_on);
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

    /// The leader is about to be told this.
    pub(crate) fn before_step(&mut self, input: &Input) -> Cause {
        match input {
            Input::Command(request, command) => self.before_command(*request, command),
            Input::Query(request, _) => {
                let expected = Expected::Query { intent: self.book.intent.clone(), after: self.book.issued };
                self.book.expected.insert(*request, expected);
                Cause::Other
            }
            Input::Agent(connection, message) => self.before_message(*connection, message),
            Input::Committed(upto) => {
                self.book.durable = *upto;
                Cause::Other
            }
            Input::CommitFailed { .. } => {
                self.go_back_to_store();
                self.touches_all();
                self.book.store_failed = true;
                let after = self.book.issued;
                for expected in self.book.expected.values_mut() {
                    if let Expected::Query { .. } = expected {
                        *expected = Expected::Query { intent: self.book.intent.clone(), after };
                    }
                }
                Cause::Other
            }
            Input::Machines(request, command) => {
                let machines = command.machines.clone();
                for number in machines.iter().filter_map(|id| self.machine_number(*id)).collect::<Vec<_>>() {
                    self.touches_machine(number);
                }
                if let Availability::Draining(drain) = command.availability {
                    self.drain_begins(&machines, Duration::from_millis(drain.timeout_ms));
                }
                let expected = Expected::Machines { machines, availability: command.availability };
                self.book.expected.insert(*request, expected);
                Cause::Other
            }
            Input::ReleaseBrake(_) => {
                // That the brake is on is told with the commits that are under way; and a lease that is over may put it on first.
                let lease = self.settings.lease_ttl;
                let over = |number| self.heard_ago(number).is_some_and(|ago| ago >= lease);
                let over = (0..self.machines.len()).any(over);
                if self.book.brake.is_some() || over || self.book.durable < self.book.issued {
                    self.silent_machines_are_given_up();
                }
                Cause::Other
            }
            Input::Disconnected(_)
            | Input::TermTaken(_)
            | Input::TermNotTaken
            | Input::Knocked(..)
            | Input::Leads(_)
            | Input::Restore(..)
            | Input::NotRestored(_)
            | Input::Tick => Cause::Other,
        }
    }

    /// The time of a drain is at most that of the last command, and at least the shortest that any has given.
    fn drain_begins(&mut self, machines: &[MachineId], most: Duration) {
        let now = self.queue.now();
        let at = (self.scheduler.clock.time(now), self.scheduler.stalled(now));
        for number in machines.iter().filter_map(|id| self.machine_number(*id)).collect::<Vec<_>>() {
            let drains = matches!(
                self.book.decided.availability.get(&self.machines[number].id),
                Some(Availability::Draining(_))
            );
            let (since, before) = self.book.machines[number].drains;
            let (last, longest) = self.book.machines[number].drained;
            let over = self.ago(last) > longest + Duration::from_secs(4);
            let later = most > longest.saturating_sub(self.ago(last));
            let sooner = most < before.saturating_sub(self.ago_at_most(since));
            let book = &mut self.book.machines[number];
            if !drains || over || later {
                book.drained = (at, most);
            }
            if !drains || over || sooner {
                book.drains = (at, most);
            }
            // What moves already has no more time than it had.
            let mut moved = std::mem::take(&mut book.moved);
            for moved in moved.values_mut() {
                if most < moved.most.saturating_sub(self.ago_at_most(moved.since)) {
                    (moved.since, moved.most) = (at, most);
                }
            }
            self.book.machines[number].moved = moved;
        }
    }

    fn before_command(&mut self, request: RequestId, command: &Command) -> Cause {
        let ask = self.clients[client_of(command.id)].order.ask.clone();
        if let Ask::Command { units, .. } = &ask {
            let named = units.iter().map(|unit| self.palette.names[*unit].clone()).collect();
            self.work.touched += tied(&self.palette, &self.book.decided, named).len() as u64;
        }
        let new = !self.book.commands.contains(&command.id);
        let outcome = if new {
            self.book.intent.clone().carry_out(&ask).and_then(|()| self.guard_stays(&ask))
        } else {
            Ok(())
        };
        self.book.expected.insert(request, Expected::Command { id: command.id, outcome });
        Cause::Command { request, id: command.id, ask, new }
    }

    /// Whether a unit is exclusive can change only while it is on no machine.
    fn guard_stays(&self, ask: &Ask) -> Result<(), String> {
        let Ask::Command { units, content: Some(content), replace: true, verb } = ask else { return Ok(()) };
        let exclusive = |content: &usize| self.palette.contents[*content].options.exclusive;
        let changes = |unit: &&usize| {
            let name = &self.palette.names[**unit];
            let placed = self.book.decided.units.get(name).is_some_and(|unit| !unit.placements.is_empty());
            let file = self.book.decided.files.get(name);
            placed && file.is_some_and(|file| exclusive(file) != exclusive(content))
        };
        let brings = matches!(verb, Verb::Submit | Verb::Load | Verb::Start);
        match units.iter().find(changes).filter(|_| brings) {
            Some(unit) => Err(format!("u{unit:02} is guarded otherwise where it is")),
            None => Ok(()),
        }
    }

    fn before_message(&mut self, connection: ConnectionId, message: &FromAgent) -> Cause {
        let Some(stream) = self.network.stream(connection) else { return Cause::Other };
        let number = stream.machine;
        let record = self.book.decided.machines.get(&self.machines[number].id);
        let boot = record.map(|record| record.boot);
        let book = &mut self.book.machines[number];
        match message {
            FromAgent::Hello(hello) => {
                book.rebooted = boot.is_some_and(|boot| boot != hello.boot);
                book.says = hello.units.iter().map(|unit| (unit.name.clone(), unit.epoch)).collect();
                let failed = hello.units.iter().filter(|unit| has_failed(&unit.observation));
                book.failed.extend(failed.map(|unit| (unit.name.clone(), unit.epoch)));
                let active = hello.units.iter().filter(|unit| is_active(&unit.observation));
                book.says_active = active.map(|unit| (unit.name.clone(), unit.epoch)).collect();
                self.book.said_active.extend(book.says_active.iter().cloned());
                // Known again once it is welcomed: it may be of an older session.
                book.says_at_work.clear();
                if book.rebooted {
                    book.moved.clear();
                }
                book.hello = Some((connection, hello.units.clone()));
                book.says_degraded = hello.pid1_age > self.settings.lease_ttl;
                book.says_leaving = hello.leaving;
            }
            FromAgent::Heartbeat { pid1_age, .. } => {
                if book.welcomed.is_some_and(|(welcomed, _)| welcomed == connection) {
                    book.degraded = *pid1_age > self.settings.lease_ttl;
                }
                if *pid1_age > self.settings.systemd_timeout && book.heard.is_some() {
                    book.pid1_lost = true;
                }
            }
            FromAgent::Report(reports) => {
                let known =
                    book.heard.is_some() && book.welcomed.is_some_and(|(welcomed, _)| welcomed == connection);
                for report in reports {
                    let book = &mut self.book.machines[number];
                    match &report.change {
                        ReportedChange::Stale(_) => {
                            book.stale.insert((report.name.clone(), report.epoch));
                        }
                        ReportedChange::Observed(observation) => {
                            if has_failed(observation) {
                                book.failed.insert((report.name.clone(), report.epoch));
                            }
                            book.says.insert(report.name.clone(), report.epoch);
                            let copy = (report.name.clone(), report.epoch);
                            if known && is_at_work(observation) {
                                book.says_at_work.insert(copy.clone());
                            } else {
                                book.says_at_work.remove(&copy);
                            }
                            if is_active(observation) {
                                book.says_active.insert(copy.clone());
                                self.book.said_active.insert(copy);
                            } else {
                                book.says_active.remove(&copy);
                            }
                            if known {
                                self.copy_is_seen(number, &report.name, report.epoch, observation);
                            }
                        }
                        ReportedChange::Gone => {}
                    }
                }
            }
            FromAgent::Goodbye(Goodbye::Shutdown) => book.leaving = book.heard.is_some(),
            FromAgent::Goodbye(Goodbye::Restart) => {
                let now = self.scheduler.clock.time(self.queue.now());
                book.graced = Some(now + self.settings.restart_grace + Duration::from_secs(1));
            }
            FromAgent::SnapshotWanted => self.touches_machine(number),
        }
        Cause::Agent
    }

    /// The leader has made a step, and this is to come of it: whether it has carried out a command.
    pub(crate) fn commands_are_carried_out_once(&mut self, cause: &Cause, effects: &[Effect]) {
        let batches = || {
            effects.iter().filter_map(|effect| match effect {
                Effect::Persist(_, changes) => Some(changes),
                _ => None,
            })
        };
        let results = || {
            batches().flatten().filter_map(|change| match change {
                Change::PutCommand(_, command) => Some(command.id),
                _ => None,
            })
        };
        if let Cause::Command { request, id, ask, new: true } = cause {
            if results().any(|result| result == *id) {
                self.book.commands.insert(*id);
                self.is_decided_anew(ask);
                if let Err(why) = self.book.intent.carry_out(ask) {
                    // Of what it does not know, the leader can destroy what is left after a restore.
                    if !self.book.restored {
                        self.violate(
                            "nothing_acknowledged_is_lost",
                            format!("a command is carried out although {why}"),
                        );
                    }
                    self.book.intent.destroy(ask);
                }
                // What was in its way may have ended in this very step.
                self.book.expected.insert(*request, Expected::Command { id: *id, outcome: Ok(()) });
            } else if let Some(Expected::Command { outcome: Ok(()), .. }) = self.book.expected.get(request) {
                let text = format!("command {} is refused or not recorded: {ask:?}", id.bits());
                self.violate("nothing_acknowledged_is_lost", text);
            }
        } else if let Some(id) = results().next() {
            self.violate(
                "nothing_acknowledged_is_lost",
                format!("command {} is carried out again", id.bits()),
            );
        }
    }

    /// A client has decided on these units: what was before does not count any more. A file that is submitted again as it is
    /// decides nothing.
    fn is_decided_anew(&mut self, ask: &Ask) {
        let Ask::Command { verb, units, content, replace } = ask else { return };
        for unit in units {
            let name = &self.palette.names[*unit];
            let other = content.is_some() && self.book.decided.files.get(name) != content.as_ref();
            if *verb != Verb::Submit || *replace && other {
                self.book.failures.remove(name);
                self.book.done.remove(name);
            }
        }
    }

    /// The agent's loop hands it these.
    pub(crate) fn agent_hears(&mut self, number: usize, inputs: &[agent::Input]) {
        for input in inputs {
            if let agent::Input::Leader(message) = input {
                self.agent_is_told(number, message);
            }
            let now = self.queue.now();
            let book = &mut self.book.machines[number];
            match input {
                agent::Input::Reloading(reloads) => {
                    (book.reloads, book.reload_explains) = (*reloads, book.reload_explains || *reloads);
                }
                agent::Input::SystemdUp => book.reloads = false,
                agent::Input::Reloaded(_) => book.asked_to_reload = false,
                _ => {}
            }
            if crate::machine::is_from_pid1(input) {
                book.pid1_heard = now;
                book.reload_explains &= book.reloads || book.asked_to_reload;
            }
        }
    }

    /// Whether all that the agent is told now was said in sessions before its present one.
    pub(crate) fn are_of_old_sessions(&self, number: usize, inputs: &[agent::Input]) -> bool {
        let session = self.book.machines[number].session;
        let session = session.and_then(|connection| self.network.stream(connection)?.session);
        inputs.iter().all(|input| match input {
            agent::Input::Leader(message) => session.is_some_and(|session| message.session < session),
            _ => false,
        })
    }

    fn agent_is_told(&mut self, number: usize, message: &ToAgent) {
        let session = self.book.machines[number].session;
        let Some(stream) = session.and_then(|connection| self.network.stream(connection)) else { return };
        if stream.session != Some(message.session) || message.term < self.machines[number].membership.term {
            return;
        }
        let book = &mut self.book.machines[number];
        match &message.body {
            LeaderMessage::Farewell { lease: Some(lease) } => {
                book.granted = book.granted.max(stream.goodbye.map(|said| said + *lease));
            }
            LeaderMessage::HeartbeatAck { number: beat } => {
                let end = stream.heartbeats.get(beat).map(|sent| *sent + stream.lease_ttl);
                book.granted = book.granted.max(end);
            }
            LeaderMessage::Assignments(assignments) => {
                let next = (message.term, assignments.revision);
                let follows = match book.applied {
                    _ if assignments.snapshot => book.applied.is_none_or(|applied| applied <= next),
                    Some((term, revision)) => term == next.0 && revision.0 + 1 == next.1.0,
                    None => false,
                };
                if !follows {
                    return;
                }
                book.applied = Some(next);
                for hold in &assignments.hold {
                    let told = book.told_to_hold.entry(hold.name.clone()).or_default();
                    let told = told.entry(hold.epoch).or_insert(Told {
                        term: message.term,
                        loaded: false,
                        launched: false,
                    });
                    match hold.target {
                        Target::Loaded => told.loaded = true,
                        Target::Launched => (told.launched, told.loaded) = (true, false),
                    }
                }
                for removal in &assignments.remove {
                    let told = book.told_to_remove.entry(removal.name.clone()).or_default();
                    if told.0 < removal.epoch {
                        *told = (removal.epoch, message.term);
                    }
                }
            }
            LeaderMessage::Welcome(_)
            | LeaderMessage::Refused(_)
            | LeaderMessage::Probe
            | LeaderMessage::Farewell { .. } => {}
        }
    }

    pub(crate) fn is_answered(&mut self, request: RequestId, result: &CommandResult) {
        let Some(Expected::Command { id, outcome }) = self.book.expected.remove(&request) else { return };
        self.judge_answer(id, &outcome, result);
    }
}
