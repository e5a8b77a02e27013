//! The leader's state machine.
//!
//! [`Leader::step`] takes in what happened and says what to do. Its memory is the cluster's state, the store is its
//! log: each step first changes the memory, then hands the changes to the store as one batch, and holds back all that
//! tells of them until that batch is durable (the outbox).
//!
//! | file | what is in it |
//! | --- | --- |
//! | `io` | inputs and effects |
//! | `event`, `reason`, `record` | what an operator should be able to read later, with its reasons |
//! | `durable` | what the store holds |
//! | `outbox` | effects that wait for a commit |
//! | `backup` | all that is durable, and what may take its place |
//! | `assignments` | what machines are told to hold |
//! | `office` | whether it is still the leader |
//! | `session` | agents: hello, heartbeats, reports, leases that end |
//! | `welcome` | how long the leases are that machines are told of |
//! | `rivals` | machines that claim the id of another one |
//! | `doubt` | the leader's own stalls, and many deaths at once |
//! | `commands` | clients' changes |
//! | `moving`, `left` | machines that are drained or shut down; what is left on them, and why |
//! | `placing` | which unit goes where, and when that is asked again |
//! | `groups` | units tied by `MachineOf=`, or by what they activate |
//! | `gates` | placements that wait: exclusive units, `Requires=`, `After=` |
//! | `labels` | what clients change of machines' labels |
//! | `failing` | units that systemd gives up |
//! | `streams` | whether a client may have a stream to a machine |
//! | `together` | what is checked of several unit files at once |
//! | `status`, `rto` | clients' questions |

mod assignments;
mod backup;
mod commands;
mod doubt;
mod durable;
mod event;
mod failing;
mod gates;
mod groups;
mod hosts;
mod io;
mod labels;
mod left;
mod moving;
mod office;
mod outbox;
mod placing;
mod reason;
mod record;
mod replacing;
mod rivals;
mod rto;
mod session;
mod status;
mod streams;
#[cfg(test)]
mod tests;
mod together;
mod welcome;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::Discriminant;
use std::sync::Arc;
use std::time::Duration;

use litemap::LiteMap;

use self::commands::Commands;
use self::doubt::{Awake, Brake};
use self::durable::Reading;
pub use self::durable::{Change, Durable, Place, Retired, StoredCommand, StoredFile, StoredUnit};
pub use self::event::{Event, Severity};
use self::failing::Troubles;
use self::gates::{Gate, Gates};
pub use self::io::{ConnectionId, Effect, Input, RequestId, Settings};
use self::moving::{Lingering, OngoingDrain};
use self::office::Office;
use self::outbox::{Held, Outbox};
use self::placing::Queue;
pub use self::reason::{Arrival, LingerEnd, LossReason, PlaceReason, ReleaseReason, UnplaceReason};
pub use self::record::{EventFilter, EventNumber, EventRecord};
use self::rivals::Rivals;
use self::welcome::Longer;
use crate::by_name::ByName;
use crate::ids::{ClusterId, Epoch, MachineId, Revision, SessionNumber, Term};
use crate::machine::{Availability, LabelEdits, MachineRecord, MachineState, Pressure};
use crate::message::Refused;
use crate::placement::Placer;
use crate::planted::{self, Fault};
use crate::state::{DesiredState, Observation, Phase};
use crate::stream::StreamKinds;
use crate::time::Time;
use crate::unit::{ContentHash, Options, UnitFile, UnitName};

/// How long the leader leaves its own decisions alone after the store failed: a full disk is not asked again at once.
/// Clients' commands are tried at any time.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// The leader: the single writer of the cluster's state.
#[derive(Debug)]
pub struct Leader {
    settings: Settings,
    cluster: ClusterId,
    term: Term,
    now: Time,
    /// Counts the placements of this term.
    epochs: u64,
    /// Counts submissions.
    orders: u64,
    units: ByName<Unit>,
    machines: BTreeMap<MachineId, Machine>,
    /// What clients have changed of machines' labels.
    labels: BTreeMap<MachineId, LabelEdits>,
    /// Machines whose record is other than the store's.
    unsaved: BTreeSet<MachineId>,
    longer: Longer,
    /// Machines that have booted, of which the store had to lose what follows from it.
    rebooted: BTreeSet<MachineId>,
    /// Copies that were ended by a decision, and that their machine has not said to be gone.
    retired: BTreeMap<(MachineId, UnitName), Retired>,
    /// Machines that hold a copy of the unit that nobody here knows of, or did when they were last heard.
    strays: BTreeMap<UnitName, BTreeMap<MachineId, Epoch>>,
    commands: Commands,
    connections: BTreeMap<ConnectionId, MachineId>,
    rivals: Rivals,
    /// The machines that were refused lately, with what was said of it then.
    refusals: BTreeMap<MachineId, (Discriminant<Refused>, Time)>,
    /// When the hosts of lost machines are asked again whether they answer.
    knocks: BTreeMap<MachineId, Time>,
    /// Since when the store owes an answer, in the leader's own time, and whether that was told of.
    store_silent: Option<(Time, bool)>,
    office: Office,
    awake: Awake,
    lingering: Lingering,
    /// The machines that are drained.
    drains: BTreeMap<MachineId, OngoingDrain>,
    /// Machines that shut down, and wait until nothing more of them can be moved.
    farewells: BTreeSet<MachineId>,
    /// Set while nothing is moved since too many machines seemed to die at once.
    brake: Option<Brake>,
    /// When each machine's lease ends, in the leader's own time.
    deadlines: BTreeSet<(Time, MachineId)>,
    placer: Placer,
    queue: Queue,
    /// Who must be where the unit is: who names it in `MachineOf=`, or activates it.
    followers: BTreeMap<UnitName, BTreeSet<UnitName>>,
    /// Units with `Replaces=`.
    replacers: BTreeSet<UnitName>,
    /// Who names the unit in `Requires=` or `After=`.
    dependents: BTreeMap<UnitName, BTreeSet<UnitName>>,
    /// Sockets, timers and paths that activate the unit.
    activators: BTreeMap<UnitName, BTreeSet<UnitName>>,
    gates: Gates,
    troubles: Troubles,
    /// Since when machines that this store does not know of can have got no lease from another leader, in the leader's
    /// own time; none where there is no such machine.
    exclusive_from: Option<Time>,
    /// The global units, in the order of their submission.
    globals: BTreeMap<u64, UnitName>,
    /// Whether every machine has reported or had a lease's time to: only then are units placed.
    settled: bool,
    /// When that is so at the latest, in the leader's own time.
    settles: Time,
    /// Until when an earlier leader may have granted leases, in the leader's own time.
    elected: Time,
    /// Assignments that a machine did not take, since it holds or has stopped a later epoch.
    stale: BTreeSet<(MachineId, UnitName, Epoch)>,
    /// Set while a higher term is being recorded.
    taking_term: bool,
    /// Set after the store failed: until then nothing is decided that no client asks for.
    paused_until: Option<Time>,
    turn: Turn,
    outbox: Outbox,
}

/// A unit that the cluster knows.
#[derive(Debug)]
struct Unit {
    content: Arc<str>,
    hash: ContentHash,
    description: Box<str>,
    options: Arc<Options>,
    desired: DesiredState,
    order: u64,
    /// Whether it has run to its end.
    done: bool,
    /// Why it is to be placed, where that is not for what became of the machine that it is on.
    why: PlaceReason,
    /// Where it is placed. A unit that is not global is on one machine at most.
    placements: LiteMap<MachineId, Epoch>,
}

/// A machine that ever was part of the cluster.
#[derive(Debug)]
struct Machine {
    record: MachineRecord,
    /// How long its leases are by the store's record of it, at least; none where there is no such record: nothing is assigned to
    /// the machine before there is.
    kept: Option<Duration>,
    state: MachineState,
    availability: Availability,
    /// The term in which this leader last spoke to it.
    told: Option<Term>,
    session: Option<Session>,
    /// The session that was opened last, of the boot and the agent that its record names.
    opened: SessionNumber,
    last_heard: Option<Time>,
    /// Whether a heartbeat has come since its last Hello; where this leader has heard nothing of it, that is taken for granted.
    beats: bool,
    /// What its last heartbeat said of it.
    pressure: Pressure,
    /// When its lease ends, in the leader's own time.
    deadline: Option<Time>,
    /// Since when it has been silent, in the leader's own time, as far as its lease goes by that.
    counts_from: Time,
    /// Until when it may at most count on a lease, in the leader's own time, whatever has become of it since.
    lease_until: Time,
    /// When it was lost, in the leader's own time.
    lost: Option<Time>,
    /// Whether its host was last seen to answer since, where that was asked.
    host_answers: Option<bool>,
    /// Whether the brake was released for it, and it has not been heard from since.
    undoubted: bool,
    /// What it says that it holds.
    observed: BTreeMap<UnitName, Copy>,
}

#[derive(Debug)]
struct Session {
    connection: ConnectionId,
    number: SessionNumber,
    revision: Revision,
    /// How long its leases are, as it was told last; zero before its welcome.
    lease: Duration,
    /// What its agent opens streams for; none where it knows of none.
    streams: Option<StreamKinds>,
}

#[derive(Debug)]
struct Copy {
    epoch: Epoch,
    hash: ContentHash,
    observation: Observation,
}

/// What one step has changed. Names may be in a list several times.
#[derive(Debug, Default)]
struct Turn {
    changes: Vec<Change>,
    /// Units whose record is other than the store's.
    records: Vec<UnitName>,
    /// Copies of which their machine must be told.
    copies: BTreeMap<MachineId, Vec<UnitName>>,
    /// Machines that are told everything anew.
    snapshots: BTreeSet<MachineId>,
    /// Units of which something that a client sees is other than before.
    seen: Vec<UnitName>,
    effects: Vec<Held>,
    /// Who wants a backup.
    backups: Vec<RequestId>,
}

impl Leader {
    /// A leader that takes office now, in this term, with what the store holds.
    pub fn new(settings: Settings, term: Term, durable: Durable, now: Time) -> Self {
        let mut leader = Self {
            settings,
            cluster: durable.cluster,
            term,
            now,
            epochs: 0,
            orders: 0,
            units: ByName::default(),
            machines: BTreeMap::new(),
            labels: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            longer: Longer::default(),
            rebooted: BTreeSet::new(),
            retired: BTreeMap::new(),
            strays: BTreeMap::new(),
            commands: Commands::default(),
            connections: BTreeMap::new(),
            rivals: Rivals::default(),
            refusals: BTreeMap::new(),
            knocks: BTreeMap::new(),
            store_silent: None,
            office: Office::default(),
            awake: Awake::new(now),
            lingering: Lingering::default(),
            drains: BTreeMap::new(),
            farewells: BTreeSet::new(),
            brake: None,
            deadlines: BTreeSet::new(),
            placer: Placer::default(),
            queue: Queue::default(),
            followers: BTreeMap::new(),
            replacers: BTreeSet::new(),
            dependents: BTreeMap::new(),
            activators: BTreeMap::new(),
            gates: Gates::default(),
            troubles: Troubles::default(),
            exclusive_from: None,
            globals: BTreeMap::new(),
            settled: durable.machines.is_empty() || planted::is(Fault::NewLeaderPlacesAtOnce),
            settles: now,
            elected: now,
            stale: BTreeSet::new(),
            taking_term: false,
            paused_until: None,
            turn: Turn::default(),
            outbox: Outbox::default(),
        };
        leader.load(durable);
        let short = planted::is(Fault::NewLeaderCountsShort);
        let early = planted::is(Fault::LeasesFromBeforeElection);
        let elected = if early { now - Duration::from_secs(2) } else { now + leader.settings.overlap };
        let lease = elected + if short { Duration::from_millis(100) } else { leader.lease() };
        for (id, machine) in &mut leader.machines {
            // The leader before may have had other settings.
            let granted = |span| lease.max(elected + leader.settings.with_margin(span));
            let longest = granted(machine.record.longest_lease());
            let deadline = if machine.record.restarting { longest } else { granted(machine.record.lease) };
            let (deadline, longest) = if short { (lease, lease) } else { (deadline, longest) };
            machine.deadline = Some(deadline);
            machine.lease_until = longest;
            leader.deadlines.insert((deadline, *id));
        }
        leader.elected = elected;
        leader.settles = lease;
        // Before the first term there was no leader.
        if term > Term(1) && !planted::is(Fault::ExclusiveFromStart) {
            leader.exclusive_from = Some(elected + leader.longest_lease());
        }
        leader.tell_office();
        leader
    }

    /// Nothing was ever decided that the leader's store does not hold: it is no older copy of itself.
    pub fn trust_store(&mut self) {
        self.exclusive_from = None;
    }

    /// Takes in what came at that moment, and says what to do, in this order. Leases count from when it came, so that none
    /// ends while a heartbeat waits. `now` was read after it was taken: whether this leader still leads is judged by that,
    /// since it may have stood still while the message waited.
    pub fn step(&mut self, came: Time, now: Time, input: Input) -> Vec<Effect> {
        self.now = self.now.max(came);
        self.office.clock = self.office.clock.max(now).max(self.now);
        self.look_at_clock();
        // First, so that what was on its way when a lease ended does not revive it.
        if !planted::is(Fault::LateHeartbeatRevives) {
            self.end_leases();
        }
        self.end_probes();
        match input {
            Input::Command(request, command) => self.execute(request, &command),
            Input::Machines(request, command) => self.command_machines(request, &command),
            Input::EditLabels(request, edits) => self.edit_labels(request, &edits),
            Input::Query(request, query) => self.answer(request, query),
            Input::OpenStream(request, wanted) => self.open_stream(request, wanted),
            Input::Agent(connection, message) => self.hear(connection, message),
            Input::Disconnected(connection) => self.disconnected(connection),
            Input::Committed(upto) => {
                self.leases_are_durable(upto);
                self.outbox.committed(upto);
                self.store_answers();
            }
            Input::CommitFailed { reason, durable } => self.roll_back(&reason, *durable),
            Input::TermTaken(term) => self.take_office(term),
            // The agent that has seen a higher one comes again.
            Input::TermNotTaken => self.taking_term = false,
            Input::Restore(request, term) => self.restore(request, term),
            Input::NotRestored(reason) => self.not_restored(reason),
            Input::Leads(until) => self.goes_on_leading(until),
            Input::Knocked(machine, answers) => self.knocked(machine, answers),
            Input::ReleaseBrake(request) => self.release_brake_for(request),
            Input::Tick => {}
        }
        if planted::is(Fault::LateHeartbeatRevives) {
            self.end_leases();
        }
        self.decide();
        self.finish_turn();
        let effects = self.outbox.take();
        self.only_what_is_harmless(effects)
    }

    /// When to come back with [`Input::Tick`] at the latest, if nothing else happens.
    pub fn next_timer(&self) -> Time {
        let lease = self.deadlines.first().map(|(deadline, _)| *deadline);
        // What is over already, and waits for something else, is looked at when the leader next looks at its clock.
        let settles = Some(self.settles).filter(|_| !self.settled);
        let (gate, retry) = (self.gates.next_timer(), self.troubles.next_timer());
        let (rivals, knocks) = (self.rivals.next_end(), self.knocks.values().min().copied());
        let timers = [lease, self.next_move_ends(), self.brake_ends(), settles, gate, retry, rivals, knocks]
            .into_iter()
            .flatten();
        // The own time of one that may be overtaken stands still, and it does nothing.
        let timer = self.awake.timer(timers.filter(|at| *at > self.awake() && self.leads()).min());
        self.paused_until.filter(|_| self.leads()).map_or(timer, |until| timer.min(until))
    }

    /// How many machines have a lease, and how many units are known.
    pub fn size(&self) -> (usize, usize) {
        let up = self.machines.values().filter(|machine| machine.state == MachineState::Up).count();
        (up, self.units.len())
    }

    /// How long the leader counts a machine as alive after it heard from it.
    fn lease(&self) -> Duration {
        if planted::is(Fault::NoMargin) {
            return self.settings.lease_ttl;
        }
        self.settings.lease()
    }

    /// How long what another leader granted may last: by the settings, or by what is on record.
    fn longest_lease(&self) -> Duration {
        let granted =
            self.machines.values().map(|machine| machine.record.longest_lease()).max().unwrap_or_default();
        self.settings.longest_lease().max(self.settings.with_margin(granted))
    }

    /// How long it counts one as alive whose agent is restarted.
    fn restart_grace(&self) -> Duration {
        self.settings.with_margin(self.settings.restart_grace)
    }

    /// Decides what follows from what has changed. The order is the policy: units wait for machines before global
    /// units fill what is left.
    fn decide(&mut self) {
        if self.paused_until.is_some_and(|until| self.now < until) || !self.leads() {
            return;
        }
        if self.paused_until.take().is_some() {
            self.compare_again();
            self.turn.snapshots.extend(self.machines.keys());
        }
        for id in std::mem::take(&mut self.unsaved) {
            let record = self.machines.get(&id).map(|machine| machine.record.clone());
            self.turn.changes.extend(record.map(|record| Change::PutMachine(id, record)));
        }
        let awaits = |machine: &Machine| machine.state == MachineState::Awaited;
        if !self.settled && (self.awake() >= self.settles || !self.machines.values().any(awaits)) {
            self.settled = true;
            // They may start what they were not told of until now.
            self.turn.snapshots.extend(self.machines.keys());
        }
        self.consider_release();
        if self.settled {
            self.renew_stale();
            self.retry_failed();
            self.knock_again();
            self.end_drains();
            self.place();
            self.finish_moves();
            // Those that wait for a unit of which something was decided may wait for it no more.
            if !self.dependents.is_empty() {
                for name in self.turn.records.clone() {
                    self.look_at_dependents(&name);
                }
            }
            self.look_at_gates();
        }
    }

    /// Hands the turn's changes to the store, and all that tells of them to the outbox.
    fn finish_turn(&mut self) {
        let mut turn = std::mem::take(&mut self.turn);
        let records = sorted(turn.records);
        turn.changes.reserve(records.len());
        for name in records {
            turn.changes.push(match self.units.get(&name) {
                Some(unit) => Change::PutUnit(name, unit.stored()),
                None => Change::DeleteUnit(name),
            });
        }
        if !turn.changes.is_empty() {
            let commit = self.outbox.issue();
            self.leases_are_written(commit, &turn.changes);
            self.store_silent.get_or_insert((self.awake(), false));
            self.outbox.now(Effect::Persist(commit, turn.changes));
        }
        for effect in turn.effects {
            self.outbox.hold(effect);
        }
        self.answer_backups(turn.backups);
        for machine in &turn.snapshots {
            self.send_snapshot(*machine);
        }
        turn.copies.retain(|machine, _| !turn.snapshots.contains(machine));
        self.send_deltas(turn.copies);
        if !turn.seen.is_empty() {
            self.outbox.hold(Held::Effect(Effect::UnitsChanged(sorted(turn.seen))));
        }
    }

    /// Takes in what the store holds. What was observed is kept.
    fn load(&mut self, durable: Durable) {
        let Durable { cluster: _, units, mut files, machines, availability, labels, retired, commands } =
            durable;
        self.units = ByName::default();
        self.placer = Placer::default();
        self.queue = Queue::default();
        self.followers.clear();
        self.replacers.clear();
        self.dependents.clear();
        self.activators.clear();
        self.globals.clear();
        self.commands = Commands::new(commands);
        self.unsaved = self.machines.keys().copied().collect();
        self.leases_are_lost();
        for (id, mut record) in machines {
            record.leaving &= !planted::is(Fault::GoodbyeForgotten);
            let machine = self.machines.entry(id).or_insert_with(|| Machine::awaited(record.clone()));
            machine.kept = Some(record.lease);
            if machine.record.boot != record.boot {
                self.rebooted.insert(id);
            }
            if machine.record == record {
                self.unsaved.remove(&id);
            } else {
                self.unsaved.insert(id);
            }
        }
        self.drains.clear();
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.take_availability(id, availability.get(&id).copied().unwrap_or_default());
        }
        self.labels = if planted::is(Fault::LabelsForgotten) { BTreeMap::new() } else { labels };
        for (id, machine) in &self.machines {
            self.placer.set_machine(*id, self.labels_of(*id), machine.record.capacity);
        }
        for (name, stored) in units {
            let file = files.remove(&name).unwrap_or_else(|| "".into());
            self.orders = self.orders.max(stored.order);
            let Reading { hash, description, options } = file.reading(&name).clone();
            let content = Arc::clone(file.text());
            let StoredUnit { desired, order, placements, done } = stored;
            let done = done && !planted::is(Fault::DoneForgotten);
            let why = PlaceReason::default();
            let unit = Unit { content, hash, description, options, desired, order, done, why, placements };
            self.index(&name, &unit);
            for machine in unit.placements.keys() {
                self.placer.assign(&name, *machine);
            }
            self.units.insert(name, unit);
        }
        for (machine, name) in retired.keys() {
            if !self.units.contains_key(name) && self.placer.copies(name).next().is_none() {
                self.placer.set_unit(name, Arc::default());
            }
            self.placer.assign(name, *machine);
            if !self.units.contains_key(name) {
                self.placer.forget_unit(name);
            }
        }
        self.retired = retired;
        self.find_lingering();
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.update_openness(id);
        }
        for name in self.units.keys().cloned().collect::<Vec<_>>() {
            self.mark(&name);
            self.gates.look_at(&name);
        }
    }

    /// The store lost what was not yet durable: goes on from what it holds, and tells who waited.
    fn roll_back(&mut self, reason: &str, durable: Durable) {
        let waited = self.outbox.failed(reason);
        self.store_answers();
        if !planted::is(Fault::FailedCommitIsKept) {
            self.load(durable);
        }
        self.gates_go_back();
        self.event(Event::StoreFailed(reason.to_owned()));
        self.paused_until = Some(self.now + STORE_RETRY);
        // What they were told of it is lost.
        self.farewells.extend(self.machines.iter().filter(|(_, m)| m.record.leaving).map(|(id, _)| *id));
        for held in waited {
            match held {
                Held::Answer(request, query, _) => self.answer(request, query),
                Held::Effect(Effect::UnitsChanged(names)) => self.turn.seen.extend(names),
                Held::Effect(effect) if planted::is(Fault::FailedCommitIsTold) => self.outbox.now(effect),
                // What machines were to be told was not decided: they are told anew when the pause ends.
                Held::Effect(Effect::Send(..)) => {}
                Held::Effect(Effect::Event(event)) if event.tells_of_a_change() => {}
                Held::Effect(effect) => self.outbox.now(effect),
            }
        }
    }

    /// Goes on in a higher term: all that is said from now on is said in it.
    fn take_office(&mut self, term: Term) {
        if term > self.term {
            self.term = term;
            self.epochs = 0;
        }
        self.taking_term = false;
        // There were decisions that this store does not know of, perhaps machines as well, and agents that were restarted.
        self.exclusive_from = Some(self.awake() + self.longest_lease());
        for machine in self.machines.values_mut().filter(|machine| machine.session.is_some()) {
            machine.told = Some(self.term);
        }
        self.turn.snapshots.extend(self.machines.keys());
        self.tell_office();
    }

    fn tell_office(&mut self) {
        let (units, machines) = (self.units.len(), self.machines.len());
        self.event(Event::TookOffice { term: self.term, units, machines });
    }

    /// An epoch larger than all before it.
    fn mint(&mut self) -> Epoch {
        self.epochs += 1;
        Epoch { term: self.term, counter: self.epochs }
    }

    /// The unit is known to the placer and to the indexes from now on. Templates are on no machine, so that neither
    /// needs them.
    fn index(&mut self, name: &UnitName, unit: &Unit) {
        if name.is_template() {
            return;
        }
        self.placer.set_unit(name, Arc::clone(&unit.options));
        for target in unit.options.tied_to() {
            self.followers.entry(target.clone()).or_default().insert(name.clone());
        }
        for dependency in unit.options.dependencies() {
            self.dependents.entry(dependency.clone()).or_default().insert(name.clone());
        }
        for triggered in &unit.options.triggers {
            self.activators.entry(triggered.clone()).or_default().insert(name.clone());
        }
        if !unit.options.replaces.is_empty() {
            self.replacers.insert(name.clone());
        }
        if unit.options.global {
            self.globals.insert(unit.order, name.clone());
        }
    }

    /// The opposite of [`Self::index`], but for the placer.
    fn unindex(&mut self, name: &UnitName, unit: &Unit) {
        for target in unit.options.tied_to() {
            unlink(&mut self.followers, target, name);
        }
        for dependency in unit.options.dependencies() {
            unlink(&mut self.dependents, dependency, name);
        }
        for triggered in &unit.options.triggers {
            unlink(&mut self.activators, triggered, name);
        }
        self.replacers.remove(name);
        self.globals.remove(&unit.order);
    }

    fn hold(&mut self, effect: Effect) {
        self.turn.effects.push(Held::Effect(effect));
    }

    fn event(&mut self, event: Event) {
        self.hold(Effect::Event(event));
    }

    /// Re-derives what is counted and indexed from what it is derived from, and says what differs. Empty when all is
    /// well. Its cost grows with the cluster: it is for tests and for operators.
    pub fn differences(&self) -> Vec<String> {
        let mut found = self.placer.differences();
        for (name, unit) in self.units.iter() {
            if !unit.options.global && unit.placements.len() > 1 {
                found.push(format!("{name}: placed on {} machines", unit.placements.len()));
            }
            if unit.desired == DesiredState::Inactive && !unit.placements.is_empty() {
                found.push(format!("{name}: is inactive and placed"));
            }
            if self.queue.is_waiting(unit) != self.waits(name, unit) {
                found.push(format!("{name}: whether it waits is remembered wrongly"));
            }
            let placed: BTreeSet<MachineId> = unit.placements.keys().copied().collect();
            let counted: BTreeSet<MachineId> = self.placer.copies(name).collect();
            if !placed.is_subset(&counted) {
                found.push(format!("{name}: a placement is not counted"));
            }
        }
        for (machine, name) in self.retired.keys() {
            if !self.placer.copies(name).any(|id| id == *machine) {
                found.push(format!("{name}: a copy on {machine} that is not gone is not counted"));
            }
        }
        found
    }
}

impl Turn {
    /// The machine must be told of its copy of the unit.
    fn tell(&mut self, machine: MachineId, name: &UnitName) {
        self.copies.entry(machine).or_default().push(name.clone());
    }
}

impl Unit {
    fn stored(&self) -> StoredUnit {
        let Self { desired, order, done, .. } = *self;
        StoredUnit { desired, order, done, placements: self.placements.clone() }
    }
}

impl Copy {
    /// Whether it runs, as far as its machine has said.
    fn runs(&self) -> bool {
        match &self.observation {
            Observation::Held { state: Some(state), .. } => !matches!(&*state.active, "inactive" | "failed"),
            Observation::Held { state: None, phase } => *phase == Phase::Launched,
            Observation::Refused(_) => false,
        }
    }
}

impl Machine {
    fn awaited(record: MachineRecord) -> Self {
        Self {
            record,
            kept: None,
            state: MachineState::Awaited,
            availability: Availability::Open,
            told: None,
            session: None,
            opened: SessionNumber(0),
            last_heard: None,
            beats: true,
            pressure: Pressure::default(),
            deadline: None,
            counts_from: Time::default(),
            lease_until: Time::default(),
            lost: None,
            host_answers: None,
            undoubted: false,
            observed: BTreeMap::new(),
        }
    }
}

/// The unit does not name that one any more.
fn unlink(links: &mut BTreeMap<UnitName, BTreeSet<UnitName>>, to: &UnitName, from: &UnitName) {
    if let Some(linked) = links.get_mut(to) {
        linked.remove(from);
        if linked.is_empty() {
            links.remove(to);
        }
    }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    // Most of it is in order.
    list.sort();
    list.dedup();
    list
}

fn description(file: &UnitFile) -> Box<str> {
    file.value("Unit", "Description").map(|text| text.into_owned().into_boxed_str()).unwrap_or_default()
}
