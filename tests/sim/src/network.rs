//! Streams between agents and the scheduler: what is sent on one arrives in order or not at all, but late, and each
//! side learns of a stream's end in its own time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use muster_core::agent;
use muster_core::ids::{SessionNumber, Term};
use muster_core::leader::{ConnectionId, Input};
use muster_core::message::{Assignments, FromAgent, Goodbye, LeaderMessage, Removal, ToAgent, Welcome};
use muster_core::time::Time;

use crate::election::Reached;
use crate::queue::{MILLI, Micros, SECOND};
use crate::random::Random;
use crate::world::{Event, World};

/// How long connecting may take.
const CONNECT_TIMEOUT: Micros = 3 * SECOND;
/// When an agent, and the scheduler, learn at the latest that the other side does not answer.
const AGENT_KEEPALIVE: (Micros, Micros) = (2 * SECOND, 4 * SECOND);
const SCHEDULER_KEEPALIVE: (Micros, Micros) = (10 * SECOND, 20 * SECOND);
/// What was read from the stream before its end was asked for may still wait for the agent.
const READ_BEFORE: Micros = 2 * MILLI;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the agent to the scheduler.
    Up,
    Down,
}

#[derive(Debug)]
enum Packet {
    Up(FromAgent),
    Down(ToAgent),
    End,
}

/// One direction of a stream.
#[derive(Debug, Default)]
struct Pipe {
    packets: VecDeque<Packet>,
    /// When the last of them should arrive.
    last: Micros,
    /// How many could not when they should have.
    held_up: usize,
}

impl Packet {
    fn is_heartbeat(&self) -> bool {
        match self {
            Self::Up(message) => matches!(message, FromAgent::Heartbeat { .. }),
            Self::Down(message) => matches!(message.body, LeaderMessage::HeartbeatAck { .. }),
            Self::End => false,
        }
    }
}

impl Pipe {
    /// The packet that arrives next. Heartbeats have a connection of their own: they and all else overtake each other.
    fn next(&mut self, random: &mut Random) -> Option<Packet> {
        let first = self.packets.front()?.is_heartbeat();
        let packets = self.packets.iter().take_while(|packet| !matches!(packet, Packet::End));
        let other = packets.enumerate().find(|(_, packet)| packet.is_heartbeat() != first);
        match other {
            Some((at, _)) if random.chance(500) => self.packets.remove(at),
            _ => self.packets.pop_front(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) machine: usize,
    /// Which boot of the machine it belongs to.
    pub(crate) boot: u64,
    /// Which process of the agent, and of the scheduler, has it.
    agent: u64,
    pub(crate) scheduler: u64,
    /// The agent's number for it.
    number: u64,
    /// Until then nothing of it arrives at the scheduler: its packets are sent again and again.
    stalls_until: Micros,
    /// How much later what the scheduler says on it reaches the agent's loop, which has much to do.
    read_late: Micros,
    pub(crate) session: Option<SessionNumber>,
    agent_open: bool,
    /// Until when what was read from it before may still reach the agent.
    agent_reads_until: Micros,
    pub(crate) scheduler_open: bool,
    up: Pipe,
    down: Pipe,
    /// When each heartbeat was sent, by the agent's clock.
    pub(crate) heartbeats: BTreeMap<u64, Time>,
    /// How long the leases are that are granted on it.
    pub(crate) lease_ttl: Duration,
    /// When the agent said on it that it is restarted, by its clock.
    pub(crate) goodbye: Option<Time>,
    /// Not the scheduler answers, but an old leader of this term.
    old_leader: Option<Term>,
}

/// The way between one machine and the scheduler.
#[derive(Debug)]
pub(crate) struct Link {
    /// How many faults block each direction.
    pub(crate) up: u32,
    pub(crate) down: u32,
    /// What faults add to the delay.
    pub(crate) delay: Micros,
    /// How many faults lose and repeat deltas.
    pub(crate) jumbles: u32,
    /// Since when one side does not hear the other's answers.
    silent_since: Option<Micros>,
    random: Random,
    lanes: Random,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) streams: BTreeMap<ConnectionId, Stream>,
    last: u64,
    pub(crate) links: Vec<Link>,
}

impl Stream {
    /// Whether this process of the agent has it.
    pub(crate) fn agent_is(&self, process: u64) -> bool {
        self.agent == process
    }

    /// Whether nothing comes of it any more. It is kept, since what was said on it may still wait for the leader.
    fn is_over(&self) -> bool {
        let empty = self.up.packets.is_empty() && self.down.packets.is_empty();
        !self.agent_open && !self.scheduler_open && empty
    }
}

impl Link {
    fn blocks(&self, way: Way) -> bool {
        match way {
            Way::Up => self.up > 0,
            Way::Down => self.down > 0,
        }
    }

    /// How often this message arrives. Losing or repeating an assignment is harmless, until the next one or the next
    /// session at the latest; it is tried with deltas.
    fn arrives(&mut self, message: &ToAgent) -> u32 {
        let delta = matches!(&message.body, LeaderMessage::Assignments(assignments) if !assignments.snapshot);
        if delta && self.jumbles > 0 { *self.random.pick(&[0, 1, 2]) } else { 1 }
    }

    fn wait(&mut self) -> Micros {
        let spike = self.random.chance(10);
        let usual = self.random.between(MILLI / 5, if spike { 200 * MILLI } else { 2 * MILLI });
        usual + if self.delay > 0 { self.random.between(self.delay / 2, self.delay) } else { 0 }
    }
}

impl Network {
    pub(crate) fn new(seed: u64, machines: usize) -> Self {
        let link = |number| Link {
            up: 0,
            down: 0,
            delay: 0,
            jumbles: 0,
            silent_since: None,
            random: Random::new(seed, &format!("link {number}")),
            lanes: Random::new(seed, &format!("heartbeats of link {number}")),
        };
        Self { streams: BTreeMap::new(), last: 0, links: (0..machines).map(link).collect() }
    }

    /// The machine and the session of a stream.
    pub(crate) fn stream(&self, connection: ConnectionId) -> Option<&Stream> {
        self.streams.get(&connection)
    }
}

impl World {
    fn send(&mut self, connection: ConnectionId, way: Way, packet: Packet) {
        let Some(stream) = self.network.streams.get_mut(&connection) else { return };
        if let Packet::Down(ToAgent { body: LeaderMessage::Welcome(welcome), .. }) = &packet {
            stream.lease_ttl = welcome.lease_ttl;
        }
        let late = if way == Way::Down { stream.read_late } else { 0 };
        let wait = self.network.links[stream.machine].wait() + late;
        let pipe = if way == Way::Up { &mut stream.up } else { &mut stream.down };
        pipe.packets.push_back(packet);
        pipe.last = (self.queue.now() + wait).max(pipe.last + 1);
        self.queue.at(pipe.last, Event::Packet(connection, way));
    }

    /// The next packet of a stream should arrive.
    pub(crate) fn packet(&mut self, connection: ConnectionId, way: Way) {
        let Some(stream) = self.network.streams.get_mut(&connection) else { return };
        let machine = stream.machine;
        if way == Way::Up && self.queue.now() < stream.stalls_until {
            self.queue.at(stream.stalls_until, Event::Packet(connection, way));
            return;
        }
        let blocked = self.network.links[machine].blocks(way) || self.machines[machine].frozen > 0;
        let pipe = if way == Way::Up { &mut stream.up } else { &mut stream.down };
        if blocked {
            pipe.held_up += 1;
            return;
        }
        if way == Way::Down && !stream.agent_open && self.queue.now() + 1 < stream.agent_reads_until {
            self.queue.at(stream.agent_reads_until - 1, Event::Packet(connection, way));
            return;
        }
        let Some(packet) = pipe.next(&mut self.network.links[machine].lanes) else { return };
        match (packet, stream.old_leader) {
            (Packet::Up(message), Some(term)) => self.old_leader_hears(connection, term, message),
            (Packet::Up(message), None) => {
                if stream.scheduler_open {
                    let scheduler = stream.scheduler;
                    self.tell_process(scheduler, Input::Agent(connection, message));
                }
            }
            (Packet::End, old_leader) if way == Way::Up => {
                if std::mem::replace(&mut stream.scheduler_open, false) && old_leader.is_none() {
                    let scheduler = stream.scheduler;
                    self.tell_process(scheduler, Input::Disconnected(connection));
                }
            }
            (Packet::Down(message), _) => {
                let late = self.queue.now() < stream.agent_reads_until;
                if (stream.agent_open || late) && stream.agent == self.machines[machine].agents {
                    for _ in 0..self.network.links[machine].arrives(&message) {
                        self.tell_agent(machine, agent::Input::Leader(message.clone()));
                    }
                }
            }
            (Packet::End, _) => self.agent_loses(connection),
        }
    }

    /// The agent learns that its stream has ended.
    fn agent_loses(&mut self, connection: ConnectionId) {
        let Some(stream) = self.network.streams.get_mut(&connection) else { return };
        let (machine, number, agent) = (stream.machine, stream.number, stream.agent);
        if std::mem::replace(&mut stream.agent_open, false) && agent == self.machines[machine].agents {
            let random = &mut self.network.links[machine].random;
            if random.chance(300) {
                stream.agent_reads_until = self.queue.now() + random.spread(MILLI, 4 * SECOND);
            }
            self.tell_agent(machine, agent::Input::Disconnected(number));
        }
    }

    /// The leader says something to an agent.
    pub(crate) fn send_down(&mut self, connection: ConnectionId, message: ToAgent) {
        if self.network.stream(connection).is_some_and(|stream| stream.scheduler_open) {
            self.send(connection, Way::Down, Packet::Down(message));
        }
    }

    /// The leader ends a stream, after what was sent on it.
    pub(crate) fn scheduler_closes(&mut self, connection: ConnectionId) {
        let Some(stream) = self.network.streams.get_mut(&connection) else { return };
        if std::mem::replace(&mut stream.scheduler_open, false) {
            let scheduler = stream.scheduler;
            self.send(connection, Way::Down, Packet::End);
            self.tell_process(scheduler, Input::Disconnected(connection));
        }
    }

    /// The agent says something, by its clock at this time.
    pub(crate) fn send_up(&mut self, machine: usize, time: Time, message: FromAgent) {
        let Some(connection) = self.open_stream(machine) else { return };
        let Some(stream) = self.network.streams.get_mut(&connection) else { return };
        match &message {
            FromAgent::Hello(hello) => {
                stream.session = Some(hello.session);
                self.book.machines[machine].session = Some(connection);
                self.book.machines[machine].applied = None;
            }
            FromAgent::Heartbeat { number, .. } => {
                stream.heartbeats.insert(*number, time);
            }
            FromAgent::Goodbye(Goodbye::Restart) => stream.goodbye = Some(time),
            FromAgent::Report(_)
            | FromAgent::SnapshotWanted
            | FromAgent::Inspected { .. }
            | FromAgent::Goodbye(Goodbye::Shutdown) => {}
        }
        self.send(connection, Way::Up, Packet::Up(message));
    }

    /// The stream that the machine's agent has open.
    pub(crate) fn open_stream(&self, machine: usize) -> Option<ConnectionId> {
        let agent = self.machines[machine].agents;
        let open = |stream: &Stream| stream.machine == machine && stream.agent == agent && stream.agent_open;
        self.network.streams.iter().rev().find(|(_, stream)| open(stream)).map(|(connection, _)| *connection)
    }

    /// Whether the machine and the scheduler have the same stream open.
    pub(crate) fn is_connected(&self, machine: usize) -> bool {
        let stream = self.open_stream(machine).and_then(|connection| self.network.stream(connection));
        stream.is_some_and(|stream| stream.scheduler_open && stream.scheduler == self.scheduler.incarnation)
    }

    /// The agent ends its stream, or gives up to wait for one.
    pub(crate) fn agent_disconnects(&mut self, machine: usize) {
        if let Some(process) = &mut self.machines[machine].agent {
            process.connecting = None;
        }
        self.agent_closes(machine);
    }

    /// The agent ends its stream, or its process has ended.
    pub(crate) fn agent_closes(&mut self, machine: usize) {
        if let Some(connection) = self.open_stream(machine)
            && let Some(stream) = self.network.streams.get_mut(&connection)
        {
            stream.agent_open = false;
            stream.agent_reads_until = self.queue.now() + READ_BEFORE;
            self.send(connection, Way::Up, Packet::End);
        }
    }

    /// The machine has lost its power: nothing tells the scheduler.
    pub(crate) fn power_is_lost(&mut self, machine: usize) {
        let now = self.queue.now();
        for stream in self.network.streams.values_mut().filter(|stream| stream.machine == machine) {
            stream.agent_open = false;
            if now < stream.stalls_until {
                // Nobody sends it again.
                stream.up.packets.clear();
            }
        }
    }

    /// A scheduler's process has ended: its kernel ends the streams.
    pub(crate) fn scheduler_is_gone(&mut self, incarnation: u64) {
        let of_it = |stream: &Stream| {
            stream.scheduler_open && stream.old_leader.is_none() && stream.scheduler == incarnation
        };
        let streams: Vec<ConnectionId> = self
            .network
            .streams
            .iter()
            .filter(|(_, s)| of_it(s))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in streams {
            if let Some(stream) = self.network.streams.get_mut(&connection) {
                stream.scheduler_open = false;
            }
            self.send(connection, Way::Down, Packet::End);
        }
    }

    pub(crate) fn connect(&mut self, machine: usize, number: u64, address: String) {
        self.agent_closes(machine);
        let link = &mut self.network.links[machine];
        let wait = 2 * link.wait();
        if let Some(agent) = &mut self.machines[machine].agent {
            agent.connecting = Some((number, address));
        }
        self.queue.after(wait, Event::Handshake(machine, self.machines[machine].agents, number));
    }

    pub(crate) fn handshake(&mut self, machine: usize, agent: u64, number: u64) {
        let Some(process) = self.machines[machine].agent_if(agent) else { return };
        let Some((_, address)) = process.connecting.clone().filter(|(current, _)| *current == number) else {
            return;
        };
        let link = &self.network.links[machine];
        if link.up > 0 || link.down > 0 {
            self.queue.after(CONNECT_TIMEOUT, Event::ConnectFails(machine, agent, number));
            return;
        }
        let term = self.machines[machine].membership.term;
        let old_leader = std::mem::take(&mut self.machines[machine].old_leader_next) && term.0 > 1;
        let reached = match self.reached(&address) {
            Reached::Process(incarnation) => incarnation,
            _ if old_leader => self.scheduler.incarnation,
            Reached::Follower(Some(leader)) => {
                if let Some(process) = &mut self.machines[machine].agent {
                    process.connecting = None;
                }
                self.note(|| format!("m{machine}: is sent on to {leader}"));
                self.tell_agent(machine, agent::Input::Redirected(number, leader.to_owned()));
                return;
            }
            Reached::Silent => {
                self.queue.after(AGENT_KEEPALIVE.1, Event::ConnectFails(machine, agent, number));
                return;
            }
            Reached::Follower(None) | Reached::Nobody => {
                self.connect_fails(machine, agent, number);
                return;
            }
        };
        self.network.last += 1;
        let connection = ConnectionId(self.network.last);
        let stream = Stream {
            machine,
            boot: self.machines[machine].boot,
            agent,
            scheduler: reached,
            number,
            stalls_until: 0,
            read_late: 0,
            session: None,
            agent_open: true,
            agent_reads_until: 0,
            scheduler_open: true,
            up: Pipe::default(),
            down: Pipe::default(),
            heartbeats: BTreeMap::new(),
            lease_ttl: Duration::ZERO,
            goodbye: None,
            old_leader: old_leader.then(|| Term(term.0 - 1)),
        };
        self.network.streams.insert(connection, stream);
        self.may_stall(connection);
        if let Some(since) = self.network.links[machine].silent_since {
            self.expect_keepalives(connection, since);
        }
        if let Some(process) = &mut self.machines[machine].agent {
            process.connecting = None;
        }
        self.tell_agent(machine, agent::Input::Connected(number));
    }

    /// Some streams are in trouble as soon as they are open: what the agent says on them comes late, also after the agent
    /// has opened another one.
    fn may_stall(&mut self, connection: ConnectionId) {
        let Some(stream) = self.network.streams.get_mut(&connection) else { return };
        let random = &mut self.network.links[stream.machine].random;
        if self.healed {
            return;
        }
        if random.chance(30) {
            let stalls = random.spread(20 * MILLI, 5 * SECOND);
            stream.stalls_until = self.queue.now() + stalls;
            self.queue.after(random.between(0, stalls), Event::StreamBreaks(connection));
        } else if random.chance(31) {
            stream.read_late = random.spread(20 * MILLI, SECOND);
            self.queue.after(random.between(0, 5 * SECOND), Event::StreamBreaks(connection));
        }
    }

    /// The agent learns that this stream is broken.
    pub(crate) fn breaks(&mut self, connection: ConnectionId) {
        if !self.healed {
            self.loses_stream(connection, Way::Down);
        }
    }

    pub(crate) fn connect_fails(&mut self, machine: usize, agent: u64, number: u64) {
        if let Some(process) = self.machines[machine].agent_if(agent)
            && process.connecting.as_ref().is_some_and(|(current, _)| *current == number)
        {
            process.connecting = None;
            self.tell_agent(machine, agent::Input::Disconnected(number));
        }
    }

    /// Something about the link or its ends has changed.
    pub(crate) fn look_at_link(&mut self, machine: usize) {
        let now = self.queue.now();
        let host = &self.machines[machine];
        let asleep = host.frozen > 0 || !host.on || host.agent.as_ref().is_some_and(|agent| agent.frozen > 0);
        let link = &mut self.network.links[machine];
        let silent = link.up > 0 || link.down > 0 || asleep || self.scheduler.frozen > 0;
        match (silent, link.silent_since) {
            (true, None) => {
                link.silent_since = Some(now);
                for connection in self.streams_of(machine) {
                    self.expect_keepalives(connection, now);
                }
            }
            (false, Some(_)) => link.silent_since = None,
            _ => {}
        }
        if self.machines[machine].frozen > 0 {
            return;
        }
        for connection in self.streams_of(machine) {
            for way in [Way::Up, Way::Down] {
                let link = &mut self.network.links[machine];
                let Some(stream) = self.network.streams.get_mut(&connection) else { continue };
                let pipe = if way == Way::Up { &mut stream.up } else { &mut stream.down };
                if link.blocks(way) || pipe.held_up == 0 {
                    continue;
                }
                let wait = link.wait();
                pipe.last = (now + wait).max(pipe.last);
                for _ in 0..std::mem::take(&mut pipe.held_up) {
                    self.queue.at(pipe.last, Event::Packet(connection, way));
                }
            }
        }
    }

    fn streams_of(&self, machine: usize) -> Vec<ConnectionId> {
        let of_it =
            self.network.streams.iter().filter(|(_, stream)| stream.machine == machine && !stream.is_over());
        of_it.map(|(connection, _)| *connection).collect()
    }

    fn expect_keepalives(&mut self, connection: ConnectionId, since: Micros) {
        let Some(machine) = self.network.stream(connection).map(|stream| stream.machine) else { return };
        let random = &mut self.network.links[machine].random;
        let agent = random.between(AGENT_KEEPALIVE.0, AGENT_KEEPALIVE.1);
        let scheduler = random.between(SCHEDULER_KEEPALIVE.0, SCHEDULER_KEEPALIVE.1);
        self.queue.after(agent, Event::Keepalive(connection, Way::Down, since));
        self.queue.after(scheduler, Event::Keepalive(connection, Way::Up, since));
    }

    /// One side gives a stream up, if the other has not answered since.
    pub(crate) fn keepalive(&mut self, connection: ConnectionId, way: Way, since: Micros) {
        let Some(stream) = self.network.stream(connection) else { return };
        if self.network.links[stream.machine].silent_since != Some(since) {
            return;
        }
        self.loses_stream(connection, way);
    }

    /// The side to which this way leads learns that the stream has ended.
    fn loses_stream(&mut self, connection: ConnectionId, way: Way) {
        match way {
            Way::Down => {
                self.agent_loses(connection);
                self.send(connection, Way::Up, Packet::End);
            }
            Way::Up => {
                let Some(stream) = self.network.streams.get_mut(&connection) else { return };
                let (scheduler, known) = (stream.scheduler, stream.old_leader.is_none());
                if std::mem::replace(&mut stream.scheduler_open, false) && known {
                    self.tell_process(scheduler, Input::Disconnected(connection));
                }
                self.send(connection, Way::Down, Packet::End);
            }
        }
    }

    /// A stream breaks; one side learns of it first.
    pub(crate) fn stream_breaks(&mut self, machine: usize, agent_first: bool) {
        if let Some(connection) = self.open_stream(machine) {
            self.loses_stream(connection, if agent_first { Way::Down } else { Way::Up });
        }
    }

    /// A leader that does not know that it was overtaken, and that does not look at the terms of others: only the agent
    /// can know better.
    fn old_leader_hears(&mut self, connection: ConnectionId, term: Term, message: FromAgent) {
        let Some(session) = self.network.stream(connection).and_then(|stream| stream.session) else { return };
        let say = |world: &mut Self, body| {
            world.send(connection, Way::Down, Packet::Down(ToAgent { term, session, body }));
        };
        match message {
            FromAgent::Hello(hello) => {
                let cluster = self.store.disk.durable.cluster;
                let heartbeat_interval = self.settings.heartbeat_interval;
                let lease_ttl = self.settings.lease_ttl;
                say(self, LeaderMessage::Welcome(Welcome { cluster, heartbeat_interval, lease_ttl }));
                let removal = |unit: muster_core::message::HeldUnit| Removal {
                    name: unit.name,
                    epoch: unit.epoch,
                    release: false,
                };
                let remove = hello.units.into_iter().map(removal).collect();
                let revision = muster_core::ids::Revision(1);
                let assignments = Assignments { snapshot: true, revision, hold: Vec::new(), remove };
                say(self, LeaderMessage::Assignments(assignments));
            }
            FromAgent::Heartbeat { number, .. } => say(self, LeaderMessage::HeartbeatAck { number }),
            FromAgent::Goodbye(_) => say(self, LeaderMessage::Farewell { lease: None }),
            FromAgent::Report(_) | FromAgent::SnapshotWanted | FromAgent::Inspected { .. } => {}
        }
    }

    /// Nothing stands in the way any more.
    pub(crate) fn heal_network(&mut self) {
        for machine in 0..self.machines.len() {
            let link = &mut self.network.links[machine];
            (link.up, link.down, link.delay) = (0, 0, 0);
            let jumbled = std::mem::take(&mut link.jumbles) > 0;
            self.machines[machine].old_leader_next = false;
            self.look_at_link(machine);
            if jumbled {
                self.stream_breaks(machine, true);
            }
            let open = self.open_stream(machine);
            if let Some(connection) = open.filter(|open| self.network.streams[open].old_leader.is_some()) {
                self.loses_stream(connection, Way::Down);
            }
        }
    }
}
