//! The world: a cluster with all that is around it, in one thread, from one seed.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_core::agent;
use muster_core::agent::Membership;
use muster_core::command::QueryAnswer;
use muster_core::ids::{MachineId, Term};
use muster_core::leader::{ConnectionId, RequestId, Settings};
use muster_core::message::{Goodbye, LeaderMessage, ToAgent};

use crate::book::Book;
use crate::client::Client;
use crate::election::Election;
use crate::faults::{Fault, Plan, What, seconds};
use crate::invariants::Work;
use crate::machine::Machine;
use crate::network::{Network, Way};
use crate::palette::Palette;
use crate::queue::{Clock, Micros, Queue, SECOND};
use crate::random::Random;
use crate::scheduler::Scheduler;
use crate::store::{Job, Store};
use crate::systemd::{Later, Out};

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// The entry of the plan with this position.
    Planned(usize),
    /// The fault at this position ends by itself.
    Ends(usize),
    /// All faults end.
    Heals,
    /// Somebody looks whether all is well.
    Looks,
    SchedulerStarts,
    ElectionEnds,
    Renews(u64),
    Renewed(u64, Micros),
    RenewalHeard(u64, Micros),
    Arrives(u64, Term, Vec<Job>),
    DeposedTurn(u64),
    DeposedEnds(u64),
    LeaderTurn(u64),
    LeaderTimer(u64),
    StoreDone(u64),
    Packet(ConnectionId, Way),
    Keepalive(ConnectionId, Way, Micros),
    StreamBreaks(ConnectionId),
    Handshake(usize, u64, u64),
    ConnectFails(usize, u64, u64),
    PowerOn(usize),
    AgentStarts(usize, u64),
    AgentTurn(usize, u64),
    AgentTimer(usize, u64),
    BusUp(usize, u64),
    MembershipSaved(usize, u64, Membership),
    Call(usize, u64, u64, u64, agent::Effect),
    Answer(usize, u64, u64, agent::Input),
    Signal(usize, u64, u64, agent::Input),
    Later(usize, u64, Later),
    Pid1Free(usize, u64),
    GuardEnds(usize, u64, u64),
    Fences(usize, u64, u64, bool),
    /// The agent has said goodbye for long enough.
    Leaves(usize, u64),
    ClientAsks(usize),
    ClientWaited(usize, u32),
    Request(usize, RequestId),
}

impl Event {
    /// The machine without which it cannot happen.
    fn machine(&self) -> Option<usize> {
        match self {
            Self::AgentStarts(machine, ..)
            | Self::AgentTurn(machine, ..)
            | Self::AgentTimer(machine, ..)
            | Self::BusUp(machine, ..)
            | Self::MembershipSaved(machine, ..)
            | Self::Call(machine, ..)
            | Self::Answer(machine, ..)
            | Self::Signal(machine, ..)
            | Self::Later(machine, ..)
            | Self::Pid1Free(machine, ..)
            | Self::GuardEnds(machine, ..)
            | Self::Fences(machine, ..)
            | Self::Leaves(machine, ..) => Some(*machine),
            _ => None,
        }
    }
}

/// What was found to be wrong.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The name of the function in `invariants` or `healing` that found it.
    pub invariant: &'static str,
    /// When.
    pub at: f64,
    /// What.
    pub text: String,
}

/// What one history was like.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// How long it lasted, in simulated seconds.
    pub seconds: f64,
    /// How many steps the state machines made.
    pub steps: u64,
    /// How many batches the leaders handed to their store.
    pub commits: u64,
    /// How many messages other than heartbeats agents sent.
    pub reports: u64,
    /// How many assignments leaders sent.
    pub assignments: u64,
    /// How long it took from the end of the faults until all was well, in seconds.
    pub healed_after: f64,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    /// Those of the latest scheduler.
    pub(crate) settings: Settings,
    pub(crate) configured: Configured,
    pub(crate) palette: Palette,
    pub(crate) queue: Queue<Event>,
    pub(crate) random: Random,
    /// What happened, in the reader's words; none while nobody will read it.
    pub(crate) log: Option<Vec<String>>,
    pub(crate) scheduler: Scheduler,
    pub(crate) store: Store,
    /// Whether other schedulers share it.
    pub(crate) election: Option<Election>,
    pub(crate) network: Network,
    pub(crate) machines: Vec<Machine>,
    pub(crate) clients: Vec<Client>,
    pub(crate) requests: u64,
    /// The requests that the scheduler has and has not answered.
    pub(crate) asked: BTreeMap<RequestId, usize>,
    pub(crate) book: Book,
    pub(crate) healed: bool,
    pub(crate) violation: Option<Violation>,
    pub(crate) stats: Stats,
    pub(crate) over: bool,
    /// What the leader last answered to whoever looks whether all is well.
    pub(crate) answer: Option<QueryAnswer>,
    /// How much has happened in this second, and what was done until now.
    pub(crate) second: (Micros, u64),
    pub(crate) work: Work,
}

/// How long leases are in clusters that have other settings.
const LEASES: [Duration; 5] = [
    Duration::from_secs(4),
    Duration::from_secs(4),
    Duration::from_secs(5),
    Duration::from_secs(8),
    Duration::from_secs(10),
];

/// What schedulers are configured with. Most clusters have the default settings; some have others, which in some of these an
/// operator changes with each start of a scheduler; and in some the scheduler runs on one of their machines.
#[derive(Debug)]
pub(crate) struct Configured {
    random: Random,
    others: bool,
    pub(crate) changes: bool,
    own_machine: Option<MachineId>,
}

impl Configured {
    fn new(seed: u64, machines: &[Machine]) -> Self {
        let mut random = Random::new(seed, "settings");
        let others = random.chance(250);
        let changes = others && random.chance(500);
        let own_machine = random.chance(250).then(|| machines[random.below(machines.len())].id);
        Self { random, others, changes, own_machine }
    }

    fn first(&mut self) -> Settings {
        let settings = if self.others { self.draw() } else { Settings::default() };
        Settings { own_machine: self.own_machine, ..settings }
    }

    /// Those of the next scheduler.
    pub(crate) fn next(&mut self, settings: &Settings) -> Settings {
        let drawn = if self.changes { self.draw() } else { settings.clone() };
        Settings { own_machine: self.own_machine, ..drawn }
    }

    fn draw(&mut self) -> Settings {
        let random = &mut self.random;
        let lease_ttl = *random.pick(&LEASES);
        let mut longer = |seconds: &[u64]| lease_ttl.max(Duration::from_secs(*random.pick(seconds)));
        Settings {
            overlap: std::time::Duration::ZERO,
            lease_ttl,
            brake_hold: longer(&[3, 15, 60]),
            restart_grace: longer(&[3, 10, 30]),
            systemd_timeout: longer(&[11, 30]),
            heartbeat_interval: lease_ttl / *random.pick(&[3, 5, 8]),
            own_machine: None,
        }
    }
}

impl World {
    /// For how long a machine may be taken for alive that is not heard from: what an earlier leader has granted counts, too.
    pub(crate) fn longest_lease(&self) -> Duration {
        let before = self.settings.with_margin(LEASES[LEASES.len() - 1]);
        let at_first = self.configured.changes && self.ago(self.book.took_over) <= before;
        if at_first { before } else { self.settings.lease() }
    }

    pub(crate) fn new(plan: Plan, log: bool) -> Self {
        let seed = plan.seed;
        let mut random = Random::new(seed, "world");
        // Up to 1 %: two clocks that drift apart as far as the leader's margin is for.
        let mut clock = || {
            let drift = random.between(0, 19_800).cast_signed() - 9_900;
            Clock::new(0, random.between(SECOND, 100_000 * SECOND), drift)
        };
        let scheduler = Scheduler::new(clock());
        let machines: Vec<Machine> =
            (0..plan.machines).map(|number| Machine::new(&plan, number, clock())).collect();
        let palette = Palette::new();
        let mut configured = Configured::new(seed, &machines);
        let mut world = Self {
            settings: configured.first(),
            configured,
            queue: Queue::new(),
            random: Random::new(seed, "rest"),
            log: log.then(Vec::new),
            scheduler,
            store: Store::new(Random::new(seed, "store"), Random::new(seed, "answers")),
            election: Election::new(seed),
            network: Network::new(seed, machines.len()),
            book: Book::new(machines.len()),
            machines,
            clients: Vec::new(),
            requests: 0,
            asked: BTreeMap::new(),
            palette,
            healed: false,
            violation: None,
            stats: Stats::default(),
            over: false,
            answer: None,
            second: (0, 0),
            work: Work::default(),
            plan,
        };
        world.queue.at(0, Event::SchedulerStarts);
        for machine in 0..world.machines.len() {
            let at = world.random.between(0, SECOND);
            world.queue.at(at, Event::PowerOn(machine));
        }
        for (position, entry) in world.plan.entries.iter().enumerate() {
            world.queue.at(entry.at, Event::Planned(position));
        }
        world.queue.at(world.plan.heals, Event::Heals);
        world
    }

    /// Lets it all happen.
    pub(crate) fn run(&mut self) {
        while !self.over && self.violation.is_none() {
            let Some(event) = self.queue.next() else { break };
            self.no_storm(&event);
            let event = match event.machine() {
                Some(machine) => match self.waits(machine, event) {
                    Some(event) => event,
                    None => continue,
                },
                None => event,
            };
            self.happens(event);
        }
        self.stats.seconds = seconds(self.queue.now());
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Planned(position) if !self.healed => self.planned(position),
            Event::Ends(position) if !self.healed => self.ends(position),
            Event::Planned(_) | Event::Ends(_) => {}
            Event::Heals => self.heals(),
            Event::Looks => self.looks(),
            Event::SchedulerStarts => self.start_scheduler(),
            Event::ElectionEnds => self.election_ends(),
            Event::Renews(incarnation) => self.renews(incarnation),
            Event::Renewed(incarnation, asked) => self.renewed(incarnation, asked),
            Event::RenewalHeard(incarnation, asked) => self.renewal_heard(incarnation, asked),
            Event::Arrives(asks, term, batches) => self.arrives(asks, term, batches),
            Event::DeposedTurn(incarnation) => self.deposed_turn(incarnation),
            Event::DeposedEnds(incarnation) => self.deposed_ends(incarnation),
            Event::LeaderTurn(incarnation) => self.leader_turn(incarnation),
            Event::LeaderTimer(incarnation) => self.leader_timer(incarnation),
            Event::StoreDone(incarnation) => self.store_done(incarnation),
            Event::Packet(connection, way) => self.packet(connection, way),
            Event::Keepalive(connection, way, since) => self.keepalive(connection, way, since),
            Event::StreamBreaks(connection) => self.breaks(connection),
            Event::Handshake(machine, agent, number) => self.handshake(machine, agent, number),
            Event::ConnectFails(machine, agent, number) => self.connect_fails(machine, agent, number),
            Event::PowerOn(machine) => self.power_on(machine),
            Event::AgentStarts(machine, boot) => self.start_agent(machine, boot),
            Event::AgentTurn(machine, agent) => self.agent_turn(machine, agent),
            Event::AgentTimer(machine, agent) => self.agent_timer(machine, agent),
            Event::BusUp(machine, agent) => self.bus_up(machine, agent),
            Event::MembershipSaved(machine, agent, membership) => {
                self.membership_saved(machine, agent, membership);
            }
            Event::Call(machine, boot, agent, id, call) => self.call(machine, boot, agent, id, call),
            Event::Answer(machine, agent, id, answer) => self.answered(machine, agent, id, answer),
            Event::Signal(machine, agent, bus, signal) => self.signal(machine, agent, bus, signal),
            Event::Later(machine, boot, later) => self.later(machine, boot, later),
            Event::GuardEnds(machine, boot, guard) => self.guard_ends(machine, boot, guard),
            Event::Fences(machine, boot, stop, dead) => self.fences(machine, boot, stop, dead),
            Event::Pid1Free(machine, boot) => self.pid1_goes_on(machine, boot),
            Event::Leaves(machine, agent) => self.has_left(machine, agent),
            Event::ClientAsks(client) => self.client_asks(client),
            Event::ClientWaited(client, attempt) => self.client_waited(client, attempt),
            Event::Request(client, request) => self.request(client, request),
        }
    }

    fn planned(&mut self, position: usize) {
        let entry = self.plan.entries[position].clone();
        self.note(|| format!("==== {entry}"));
        match entry.what {
            What::Client(order) => self.new_client(order),
            What::Fault(fault) => {
                if let Some(lasts) = fault.lasts() {
                    self.queue.after(lasts, Event::Ends(position));
                }
                self.begins(&fault);
            }
        }
    }

    fn begins(&mut self, fault: &Fault) {
        let now = self.queue.now();
        match *fault {
            Fault::CrashScheduler { after: 0, down } => self.kill_scheduler(down),
            Fault::CrashScheduler { after, down } => {
                if let Some(process) = &mut self.scheduler.process {
                    process.dies = Some((after, down));
                }
            }
            Fault::FreezeScheduler { .. } => self.scheduler_freezes(),
            Fault::BackUp => self.back_up(),
            Fault::Restore { down } => {
                self.kill_scheduler(down);
                self.restore();
            }
            Fault::RenewalsLost { .. } => self.renewals_lost(1),
            Fault::StoreFull { .. } => self.store.full += 1,
            Fault::StoreSlow { .. } => self.store.slow += 1,
            Fault::StoreAway { .. } => self.store_goes_away(),
            Fault::AnswersLost { .. } => self.store.mute += 1,
            Fault::NoSpace { .. } => self.no_space(1),
            Fault::StepDown => self.steps_down(),
            Fault::StoreTears => self.store.tears = Some(Random::new(self.plan.seed, "tears")),
            Fault::CrashAgent { machine, after: 0, down } => self.kill_agent(machine, down),
            Fault::CrashAgent { machine, after, down } => {
                if let Some(agent) = &mut self.machines[machine].agent {
                    agent.dies = Some((after, down));
                }
            }
            Fault::FreezeAgent { machine, .. } => {
                if let Some(agent) = &mut self.machines[machine].agent {
                    agent.frozen += 1;
                }
                self.look_at_standstill(machine);
                self.look_at_link(machine);
            }
            Fault::RestartAgent { machine, down } => self.leaves(machine, Goodbye::Restart, down),
            Fault::Reboot { machine, down } => self.leaves(machine, Goodbye::Shutdown, down),
            Fault::PowerLoss { machine, down } => self.power_off(machine, down),
            Fault::FreezeMachine { machine, .. } => {
                if self.machines[machine].on {
                    self.machines[machine].frozen += 1;
                }
                self.look_at_standstill(machine);
                self.look_at_link(machine);
            }
            Fault::Partition { machine, up, down, .. } => {
                self.network.links[machine].up += u32::from(up);
                self.network.links[machine].down += u32::from(down);
                self.look_at_link(machine);
            }
            Fault::SlowLink { machine, delay, .. } => self.network.links[machine].delay += delay,
            Fault::StreamBreaks { machine, agent_first } => self.stream_breaks(machine, agent_first),
            Fault::OldLeader { machine } => {
                self.machines[machine].old_leader_next = true;
                self.stream_breaks(machine, true);
            }
            Fault::DeltasJumbled { machine, .. } => self.network.links[machine].jumbles += 1,
            Fault::StoreLost { down } => self.store.lost = Some(down),
            Fault::DiskFull { machine, .. } => self.machines[machine].disk_full += 1,
            Fault::DiskSlow { machine, .. } => self.machines[machine].disk_slow += 1,
            Fault::Pid1Hangs { machine, .. } => self.machines[machine].pid1_busy += 1,
            Fault::BusBreaks { machine } => self.bus_breaks(machine),
            Fault::GuardDies { machine } => self.guard_dies(machine),
            Fault::BusFlaky { machine, .. } => self.machines[machine].bus_flaky += 1,
            Fault::Reload { machine } => {
                self.pid1(machine, |machine, _, out| machine.systemd.reload(&machine.files, out));
            }
            Fault::SignalsLost { machine, .. } => self.machines[machine].systemd.loses_signals += 1,
            Fault::UnitBehaves { unit, behaviour, .. } => {
                let name = self.palette.names[unit].clone();
                for machine in &mut self.machines {
                    machine.systemd.behaviours.insert(name.clone(), behaviour);
                }
            }
            Fault::BehavesHere { machine, unit, behaviour, .. } => {
                let name = self.palette.names[unit].clone();
                self.machines[machine].systemd.behaviours.insert(name, behaviour);
            }
            Fault::UnitExits { machine, unit, restart } => {
                let name = self.palette.names[unit].clone();
                self.pid1(machine, |machine, _, out| machine.systemd.exit(&name, restart, out));
            }
            Fault::Activate { machine, unit } => {
                let name = self.palette.names[unit].clone();
                self.pid1(machine, |machine, now, out| {
                    machine.systemd.activate(&machine.files, now, &name, out);
                });
            }
            Fault::ClockJumps { machine, by } => {
                let machine = &mut self.machines[machine];
                machine.clock.jump(now, by);
                machine.jumped += by;
                machine.excepted_until = now + by + crate::machine::EXCEPTED;
            }
        }
    }

    /// Has PID 1 do something, if it is able to.
    fn pid1(&mut self, number: usize, does: impl FnOnce(&mut Machine, Micros, &mut Out)) {
        let now = self.queue.now();
        let machine = &mut self.machines[number];
        if machine.on && machine.frozen == 0 && machine.pid1_busy == 0 {
            let mut out = Out::default();
            does(machine, now, &mut out);
            self.pid1_did(number, out);
        }
    }

    fn ends(&mut self, position: usize) {
        let What::Fault(fault) = self.plan.entries[position].what.clone() else { return };
        self.note(|| format!("==== ends: {fault:?}"));
        match fault {
            Fault::FreezeScheduler { .. } => self.scheduler_thaws_once(),
            Fault::RenewalsLost { .. } => self.renewals_lost(-1),
            Fault::StoreFull { .. } => self.store.full -= 1,
            Fault::StoreSlow { .. } => self.store.slow -= 1,
            Fault::StoreAway { .. } => self.store_comes_back(1),
            Fault::AnswersLost { .. } => self.store.mute -= 1,
            Fault::NoSpace { .. } => self.no_space(-1),
            Fault::FreezeAgent { machine, .. } => {
                if let Some(agent) = &mut self.machines[machine].agent {
                    agent.frozen = agent.frozen.saturating_sub(1);
                }
                self.agent_thaws(machine);
            }
            Fault::FreezeMachine { machine, .. } => {
                self.machines[machine].frozen = self.machines[machine].frozen.saturating_sub(1);
                self.machine_thaws(machine);
            }
            Fault::Partition { machine, up, down, .. } => {
                self.network.links[machine].up -= u32::from(up);
                self.network.links[machine].down -= u32::from(down);
                self.look_at_link(machine);
            }
            Fault::SlowLink { machine, delay, .. } => self.network.links[machine].delay -= delay,
            Fault::DeltasJumbled { machine, .. } => {
                self.network.links[machine].jumbles -= 1;
                self.stream_breaks(machine, true);
            }
            Fault::DiskFull { machine, .. } => self.machines[machine].disk_full -= 1,
            Fault::DiskSlow { machine, .. } => self.machines[machine].disk_slow -= 1,
            Fault::Pid1Hangs { machine, .. } => {
                let boot = self.machines[machine].boot;
                self.pid1_goes_on(machine, boot);
            }
            Fault::BusFlaky { machine, .. } => self.machines[machine].bus_flaky -= 1,
            Fault::SignalsLost { machine, .. } => self.machines[machine].systemd.loses_signals -= 1,
            Fault::UnitBehaves { unit, behaviour, .. } => {
                let name = &self.palette.names[unit];
                for machine in &mut self.machines {
                    machine.systemd.behaves_again(name, behaviour);
                }
            }
            Fault::BehavesHere { machine, unit, behaviour, .. } => {
                self.machines[machine].systemd.behaves_again(&self.palette.names[unit], behaviour);
            }
            _ => {}
        }
    }

    /// All faults end: from here on nothing goes wrong any more.
    fn heals(&mut self) {
        self.healed = true;
        self.note(|| "==== all faults end".to_owned());
        (self.store.full, self.store.slow, self.store.lost, self.store.mute) = (0, 0, None, 0);
        self.store_comes_back(u32::MAX);
        self.heal_election();
        self.scheduler.frozen = self.scheduler.frozen.min(1);
        if let Some(process) = &mut self.scheduler.process {
            process.dies = None;
        }
        self.scheduler_thaws_once();
        self.start_scheduler();
        for number in 0..self.machines.len() {
            // What has said goodbye, goes.
            self.has_left(number, self.machines[number].agents);
            self.power_on(number);
            let machine = &mut self.machines[number];
            (machine.disk_full, machine.disk_slow, machine.bus_flaky) = (0, 0, 0);
            machine.frozen = 0;
            if let Some(agent) = &mut machine.agent {
                (agent.frozen, agent.dies) = (0, None);
            }
            machine.pid1_busy = 0;
            let boot = machine.boot;
            let mut out = Out::default();
            machine.systemd.heal(&mut out);
            self.machine_thaws(number);
            self.agent_thaws(number);
            self.pid1_goes_on(number, boot);
            self.pid1_did(number, out);
            self.start_agent(number, boot);
        }
        self.heal_network();
        self.queue.after(SECOND, Event::Looks);
    }

    pub(crate) fn look_at_links(&mut self) {
        for machine in 0..self.machines.len() {
            self.look_at_link(machine);
        }
    }

    /// Writes down what happened, for whoever reads it.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>10.6}  {}", seconds(self.queue.now()), text()));
        }
    }

    pub(crate) fn note_inputs(&mut self, machine: usize, inputs: &[agent::Input]) {
        if self.log.is_none() {
            return;
        }
        for input in inputs {
            let heartbeat = matches!(
                input,
                agent::Input::Tick
                    | agent::Input::Pong(_)
                    | agent::Input::Leader(ToAgent { body: LeaderMessage::HeartbeatAck { .. }, .. })
            );
            if !heartbeat {
                self.note(|| format!("m{machine}: hears {input:?}"));
            }
        }
    }

    pub(crate) fn note_message(&mut self, connection: ConnectionId, message: &ToAgent) {
        if let LeaderMessage::HeartbeatAck { .. } = message.body {
            return;
        }
        if matches!(message.body, LeaderMessage::Assignments(_)) {
            self.stats.assignments += 1;
        }
        let machine = self.network.stream(connection).map(|stream| stream.machine);
        self.note(|| format!("leader: to m{machine:?} {message:?}"));
    }

    pub(crate) fn violate(&mut self, invariant: &'static str, text: String) {
        if self.violation.is_none() {
            self.note(|| format!("VIOLATED: {invariant}: {text}"));
            self.violation = Some(Violation { invariant, at: seconds(self.queue.now()), text });
        }
    }
}
