//! A leader, its store and its machines, in one thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::command::{
    ClusterStatus, Command, CommandResult, LabelEdit, MachineCommand, MachineCommandError, Query,
    QueryAnswer, RestoreError, UnitArgument, UnitStatus, Verb,
};
use crate::ids::{
    AgentKey, BootId, ClusterId, CommandId, CommitId, Epoch, MachineId, SessionNumber, StreamKey, Term,
};
use crate::leader::{Change, ConnectionId, Durable, Effect, Event, Input, Leader, RequestId, Settings};
use crate::machine::{Availability, Capacity, Drain, Labels, Pressure};
use crate::message::{
    Assignment, FromAgent, Goodbye, HeldUnit, Hello, LeaderMessage, Refused, Removal, ReportedChange,
    ToAgent, UnitReport,
};
use crate::state::{Observation, Phase, Target, UnitState};
use crate::stream::{StreamError, StreamKinds};
use crate::time::Time;
use crate::unit::{Bytes, MilliCpu, UnitName};

/// A machine that holds what it is told to hold.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) id: MachineId,
    pub(super) labels: Labels,
    pub(super) connection: Option<ConnectionId>,
    pub(super) session: SessionNumber,
    pub(super) cluster: Option<ClusterId>,
    pub(super) term: Term,
    pub(super) held: BTreeMap<UnitName, HeldUnit>,
    /// Whether it does nothing of what it is told.
    pub(super) deaf: bool,
    /// Whether its disk takes its time: what it is told to hold waits in `writing`, of which Hello says nothing.
    pub(super) slow: bool,
    pub(super) writing: BTreeMap<UnitName, HeldUnit>,
    pub(super) boots: u128,
    pub(super) pid1_age: Duration,
    pub(super) stopped: BTreeMap<UnitName, Epoch>,
    pub(super) heartbeats: u64,
    pub(super) acked: u64,
    /// How long its leases are, as it was told last in this session.
    pub(super) lease: Option<Duration>,
    pub(super) refused: Option<Refused>,
    pub(super) farewell: bool,
    /// Whether it says that it shuts down.
    pub(super) leaving: bool,
    /// What it opens streams for.
    pub(super) streams: Option<StreamKinds>,
    /// What it was asked to dial for.
    pub(super) dialled: Vec<StreamKey>,
    pub(super) address: String,
    /// Whether it was welcomed, or asked for a sign of life, and has not given one since.
    pub(super) to_beat: bool,
    /// Whether it ever does.
    pub(super) beats: bool,
    /// Whether what it starts is seen to be active; else it is starting.
    pub(super) activates: bool,
}

/// A leader, its store and its machines, in one thread.
pub(super) struct World {
    pub(super) leader: Leader,
    pub(super) now: Time,
    pub(super) stored: Durable,
    pub(super) agents: BTreeMap<MachineId, Agent>,
    pub(super) next_id: u64,
    /// Whether the store commits at once; else batches wait in `uncommitted`.
    pub(super) committing: bool,
    pub(super) uncommitted: Vec<(CommitId, Vec<Change>)>,
    pub(super) results: BTreeMap<RequestId, CommandResult>,
    pub(super) answers: BTreeMap<RequestId, QueryAnswer>,
    pub(super) streams: BTreeMap<RequestId, Result<(), StreamError>>,
    pub(super) commits: usize,
    /// The terms that the leader asked for one above, and whether the store takes it.
    pub(super) terms: Vec<Term>,
    pub(super) takes_terms: bool,
    pub(super) events: Vec<Event>,
    /// For which machines the brake was released, where it was held, when it was asked for last.
    pub(super) released: Option<Vec<MachineId>>,
    /// Whether the hosts of machines that are not heard answer.
    pub(super) hosts_answer: bool,
    pub(super) machine_results: BTreeMap<RequestId, Result<(), MachineCommandError>>,
    /// The backup that the store was asked to hold last, and above which term; and why one was refused.
    pub(super) restores: Option<(RequestId, Term)>,
    pub(super) refused_restore: Option<(RequestId, RestoreError)>,
}

pub(super) fn name(text: &str) -> UnitName {
    UnitName::parse(text).unwrap()
}

pub(super) const fn machine(number: u128) -> MachineId {
    MachineId::new(number << 96)
}

/// A drain of 30 s.
pub(super) fn drain(max_parallel: u32) -> Availability {
    Availability::Draining(Drain { timeout_ms: 30_000, max_parallel })
}

/// A machine with so many units, and another one that joined later.
pub(super) fn with_units(units: u32) -> World {
    let mut world = World::new(1);
    for number in 1..=units {
        world.start(&format!("u{number}.service"), "");
    }
    world.join(machine(2), &[]);
    world
}

/// How many units the machine holds.
pub(super) fn held(world: &World, id: MachineId) -> usize {
    world.agents[&id].held.len()
}

/// What is decided of a machine, under an id of its own.
pub(super) fn machines_command(availability: Availability, id: MachineId) -> MachineCommand {
    MachineCommand { id: CommandId::new(7000), machines: vec![id], availability }
}

pub(super) fn service(options: &str) -> String {
    format!("[Service]\nExecStart=/bin/sleep infinity\n{options}")
}

impl World {
    pub(super) fn new(machines: u128) -> Self {
        let mut world = Self::of(Durable::new(ClusterId::new(7)), Term(1));
        for number in 1..=machines {
            world.join(machine(number), &[]);
        }
        world
    }

    pub(super) fn of(stored: Durable, term: Term) -> Self {
        let now = Time::from_boot(Duration::from_secs(1000));
        Self {
            leader: Leader::new(Settings::default(), term, stored.clone(), now),
            now,
            stored,
            agents: BTreeMap::new(),
            next_id: 0,
            committing: true,
            uncommitted: Vec::new(),
            results: BTreeMap::new(),
            answers: BTreeMap::new(),
            streams: BTreeMap::new(),
            commits: 0,
            terms: Vec::new(),
            takes_terms: true,
            events: Vec::new(),
            released: None,
            hosts_answer: false,
            machine_results: BTreeMap::new(),
            restores: None,
            refused_restore: None,
        }
    }

    /// The same cluster under a leader that was restarted.
    pub(super) fn restarted(self) -> Self {
        let term = self.leader.term.next();
        let mut world = Self::of(self.stored, term);
        world.next_id = self.next_id;
        world.agents = self.agents;
        world.agents.values_mut().for_each(|agent| agent.connection = None);
        world
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn join(&mut self, id: MachineId, labels: &[(&str, &str)]) {
        self.join_as(id, id, labels);
    }

    /// A machine joins that has the id of another one; the first id is for the test.
    pub(super) fn join_as(&mut self, number: MachineId, id: MachineId, labels: &[(&str, &str)]) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.agents.insert(
            number,
            Agent {
                id,
                labels,
                connection: None,
                session: SessionNumber(0),
                cluster: None,
                term: Term(0),
                held: BTreeMap::new(),
                deaf: false,
                slow: false,
                writing: BTreeMap::new(),
                boots: 1,
                pid1_age: Duration::ZERO,
                stopped: BTreeMap::new(),
                heartbeats: 0,
                acked: 0,
                lease: None,
                refused: None,
                farewell: false,
                leaving: false,
                streams: None,
                dialled: Vec::new(),
                to_beat: false,
                address: format!("198.18.0.{}", number.bits() >> 96),
                beats: true,
                activates: true,
            },
        );
        self.connect(number);
    }

    pub(super) fn connect(&mut self, id: MachineId) {
        let connection = ConnectionId(self.id());
        let agent = self.agents.get_mut(&id).unwrap();
        agent.connection = Some(connection);
        agent.session = SessionNumber(agent.session.0 + 1);
        (agent.refused, agent.lease) = (None, None);
        let hello = Hello {
            cluster: agent.cluster,
            machine: agent.id,
            boot: BootId::new(agent.boots),
            key: AgentKey::new(id.bits()),
            session: agent.session,
            term: agent.term,
            address: agent.address.clone(),
            labels: agent.labels.clone(),
            capacity: Capacity { cpu: MilliCpu(4000), memory: Bytes(1 << 30) },
            version: "test".to_owned(),
            leaving: agent.leaving,
            streams: agent.streams,
            pid1_age: agent.pid1_age,
            units: agent.held.values().cloned().collect(),
        };
        self.step(Input::Agent(connection, FromAgent::Hello(hello)));
    }

    /// The machine says goodbye.
    pub(super) fn goodbye(&mut self, id: MachineId, goodbye: Goodbye) {
        let connection = self.agents[&id].connection.unwrap();
        self.step(Input::Agent(connection, FromAgent::Goodbye(goodbye)));
    }

    /// The machine loses its power, and all that it held.
    pub(super) fn reboot(&mut self, id: MachineId) {
        if self.agents[&id].connection.is_some() {
            self.cut(id);
        }
        let agent = self.agents.get_mut(&id).unwrap();
        agent.boots += 1;
        (agent.held, agent.writing, agent.stopped) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    }

    /// All that was being written is in place.
    pub(super) fn finish_writing(&mut self, id: MachineId) {
        let agent = self.agents.get_mut(&id).unwrap();
        agent.slow = false;
        let reports: Vec<UnitReport> =
            std::mem::take(&mut agent.writing).into_values().map(|unit| agent.hold(unit)).collect();
        if let Some(connection) = agent.connection {
            self.step(Input::Agent(connection, FromAgent::Report(reports)));
        }
    }

    /// What the machine was starting is active now.
    pub(super) fn activate(&mut self, id: MachineId) {
        let agent = self.agents.get_mut(&id).unwrap();
        let mut reports = Vec::new();
        for unit in agent.held.values_mut() {
            if let Observation::Held { phase: phase @ Phase::Starting, state: Some(state) } =
                &mut unit.observation
            {
                *phase = Phase::Launched;
                state.active = "active".into();
                let change = ReportedChange::Observed(unit.observation.clone());
                reports.push(UnitReport { name: unit.name.clone(), epoch: unit.epoch, change });
            }
        }
        if let Some(connection) = agent.connection {
            self.step(Input::Agent(connection, FromAgent::Report(reports)));
        }
    }

    /// The machine says this of its copy of the unit, which is the current one.
    pub(super) fn report(&mut self, id: MachineId, unit: &str, phase: Phase, active: &str) {
        let agent = self.agents.get_mut(&id).unwrap();
        let held = agent.held.get_mut(&name(unit)).unwrap();
        let state = UnitState { load: "loaded".into(), active: active.into(), sub: String::new() };
        held.observation = Observation::Held { phase, state: Some(state) };
        let change = ReportedChange::Observed(held.observation.clone());
        let report = UnitReport { name: name(unit), epoch: held.epoch, change };
        let connection = agent.connection.unwrap();
        self.step(Input::Agent(connection, FromAgent::Report(vec![report])));
    }

    /// The machine goes silent, with all that it holds running on.
    pub(super) fn cut(&mut self, id: MachineId) {
        let connection = self.agents.get_mut(&id).unwrap().connection.take().unwrap();
        self.step(Input::Disconnected(connection));
    }

    /// Takes in an input and all that follows from it.
    pub(super) fn step(&mut self, input: Input) {
        self.step_late(self.now, input);
    }

    /// The same of an input that came at that moment.
    pub(super) fn step_late(&mut self, came: Time, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for effect in self.leader.step(came, self.now, input) {
                self.carry_out(effect, &mut inputs);
            }
            assert_eq!(self.leader.differences(), Vec::<String>::new());
            assert!(self.leader.next_timer() > came, "it would spin");
        }
    }

    pub(super) fn carry_out(&mut self, effect: Effect, inputs: &mut Vec<Input>) {
        match effect {
            Effect::Persist(commit, changes) => {
                self.commits += 1;
                if self.committing {
                    changes.into_iter().for_each(|change| self.stored.apply(change));
                    inputs.insert(0, Input::Committed(commit));
                } else {
                    self.uncommitted.push((commit, changes));
                }
            }
            Effect::Send(connection, message) => {
                let agent = self.agents.values_mut().find(|agent| agent.connection == Some(connection));
                let Some(agent) = agent else { return };
                if let Some(reports) = agent.hear(message) {
                    inputs.insert(0, Input::Agent(connection, FromAgent::Report(reports)));
                }
                if std::mem::take(&mut agent.to_beat) && agent.beats {
                    inputs.insert(0, Input::Agent(connection, agent.heartbeat()));
                }
            }
            Effect::Close(connection) => {
                for agent in self.agents.values_mut().filter(|agent| agent.connection == Some(connection)) {
                    agent.connection = None;
                }
            }
            Effect::AnswerCommand(request, result) => {
                self.results.insert(request, result);
            }
            Effect::AnswerQuery(request, answer) => {
                self.answers.insert(request, answer);
            }
            Effect::TakeTerm { above } => {
                self.terms.push(above);
                if self.takes_terms {
                    inputs.insert(0, Input::TermTaken(above.next()));
                }
            }
            Effect::Event(event) => self.events.push(event),
            Effect::AnswerMachines(request, result) => {
                self.machine_results.insert(request, result);
            }
            Effect::AnswerRelease(_, released) => self.released = released,
            Effect::AnswerStream(request, answer) => {
                self.streams.insert(request, answer);
            }
            Effect::Restore { request, above } => self.restores = Some((request, above)),
            Effect::RefuseRestore(request, refused) => self.refused_restore = Some((request, refused)),
            Effect::Knock(machine, _) => inputs.push(Input::Knocked(machine, self.hosts_answer)),
            Effect::UnitsChanged(_) => {}
        }
    }

    /// The store takes what was given to it, and all that comes.
    pub(super) fn commit(&mut self) {
        for (_, changes) in std::mem::take(&mut self.uncommitted) {
            changes.into_iter().for_each(|change| self.stored.apply(change));
        }
        self.committing = true;
        self.step(Input::Committed(CommitId(u64::MAX)));
    }

    /// The store fails with what was given to it last, and works again.
    pub(super) fn fail_store(&mut self) {
        self.uncommitted.clear();
        self.committing = true;
        let durable = Box::new(self.stored.clone());
        self.step(Input::CommitFailed { reason: "no space left on device".to_owned(), durable });
    }

    /// Lets time pass, in which no machine says anything.
    pub(super) fn silence(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.now = self.now + Duration::from_millis(250);
            self.step(Input::Tick);
        }
    }

    /// Lets time pass, with heartbeats from all machines that are connected.
    pub(super) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            for _ in 0..2 {
                self.now = self.now + Duration::from_millis(250);
                self.step(Input::Tick);
            }
            let beating = self.agents.iter().filter(|(_, agent)| agent.beats);
            let connected: Vec<(MachineId, ConnectionId)> =
                beating.filter_map(|(id, agent)| Some((*id, agent.connection?))).collect();
            for (id, connection) in connected {
                let agent = self.agents.get_mut(&id).unwrap();
                let heartbeat = agent.heartbeat();
                self.step(Input::Agent(connection, heartbeat));
            }
        }
    }

    pub(super) fn command_as(
        &mut self,
        id: CommandId,
        verb: Verb,
        units: &[(&str, Option<&str>)],
        replace: bool,
    ) -> RequestId {
        let request = RequestId(self.id());
        let argument = |(unit, content): &(&str, Option<&str>)| UnitArgument {
            name: name(unit),
            content: content.map(Arc::from),
        };
        let units = units.iter().map(argument).collect();
        self.step(Input::Command(request, Command { id, verb, units, replace }));
        request
    }

    pub(super) fn command(&mut self, verb: Verb, units: &[(&str, Option<&str>)]) -> CommandResult {
        let id = CommandId::new(self.id().into());
        let request = self.command_as(id, verb, units, false);
        self.results.remove(&request).expect("an answer")
    }

    pub(super) fn replace(&mut self, verb: Verb, unit: &str, content: &str) -> CommandResult {
        let id = CommandId::new(self.id().into());
        let request = self.command_as(id, verb, &[(unit, Some(content))], true);
        self.results.remove(&request).expect("an answer")
    }

    pub(super) fn machine_command(
        &mut self,
        availability: Availability,
        id: MachineId,
    ) -> Result<(), MachineCommandError> {
        let command = CommandId::new(self.id().into());
        self.machine_command_as(command, availability, id)
    }

    /// The same under this id.
    pub(super) fn machine_command_as(
        &mut self,
        command: CommandId,
        availability: Availability,
        id: MachineId,
    ) -> Result<(), MachineCommandError> {
        let request = RequestId(self.id());
        let command = MachineCommand { id: command, machines: vec![id], availability };
        self.step(Input::Machines(request, command));
        self.machine_results.remove(&request).expect("an answer")
    }

    pub(super) fn edit_labels(
        &mut self,
        id: MachineId,
        edits: &[(&str, Option<&str>)],
    ) -> Result<(), MachineCommandError> {
        let request = RequestId(self.id());
        let edit = |(key, value): &(&str, Option<&str>)| LabelEdit {
            machine: id,
            key: (*key).to_owned(),
            value: value.map(str::to_owned),
        };
        self.step(Input::EditLabels(request, edits.iter().map(edit).collect()));
        self.machine_results.remove(&request).expect("an answer")
    }

    pub(super) fn start(&mut self, unit: &str, options: &str) {
        self.command(Verb::Start, &[(unit, Some(&service(options)))]).expect("started");
    }

    pub(super) fn query(&mut self, query: Query) -> QueryAnswer {
        let request = RequestId(self.id());
        self.step(Input::Query(request, query));
        self.answers.remove(&request).expect("an answer")
    }

    pub(super) fn status(&mut self, unit: &str) -> Option<UnitStatus> {
        let names = Some(vec![name(unit)]);
        match self.query(Query::Units { names, content: false, reasons: true }) {
            QueryAnswer::Units(mut units) => units.pop(),
            QueryAnswer::Machines(_) | QueryAnswer::Rto(_) | QueryAnswer::Backup { .. } => None,
        }
    }

    pub(super) fn machines(&mut self) -> ClusterStatus {
        self.machines_with(Vec::new())
    }

    /// The machines, with what is left on these.
    pub(super) fn machines_with(&mut self, left_on: Vec<MachineId>) -> ClusterStatus {
        match self.query(Query::Machines { left_on }) {
            QueryAnswer::Machines(status) => status,
            QueryAnswer::Units(_) | QueryAnswer::Rto(_) | QueryAnswer::Backup { .. } => unreachable!(),
        }
    }

    /// All that is durable, and in which term.
    pub(super) fn backup(&mut self) -> (Term, Durable) {
        match self.query(Query::Backup) {
            QueryAnswer::Backup { term, durable } => (term, *durable),
            QueryAnswer::Units(_) | QueryAnswer::Machines(_) | QueryAnswer::Rto(_) => unreachable!(),
        }
    }

    /// The machines on which the unit runs.
    pub(super) fn running(&self, unit: &str) -> Vec<MachineId> {
        let unit = name(unit);
        let runs = |agent: &&Agent| agent.held.get(&unit).is_some_and(|held| held.target == Target::Launched);
        self.agents.iter().filter(|(_, agent)| runs(agent)).map(|(id, _)| *id).collect()
    }

    pub(super) fn reason(&mut self, unit: &str) -> String {
        let waiting = self.status(unit).expect("known").waiting.expect("waits");
        let machines = waiting.machines.iter().map(|(id, why)| format!("\n{}: {why}", id.short()));
        std::iter::once(waiting.reason).chain(machines).collect()
    }
}

impl Agent {
    pub(super) fn heartbeat(&mut self) -> FromAgent {
        self.heartbeats += 1;
        let (number, pid1_age) = (self.heartbeats, self.pid1_age);
        FromAgent::Heartbeat { number, pid1_age, pressure: Pressure::default() }
    }

    pub(super) fn hear(&mut self, message: ToAgent) -> Option<Vec<UnitReport>> {
        assert!(message.term >= self.term, "a leader speaks in a term that is over");
        if message.session != self.session {
            return None;
        }
        if !matches!(message.body, LeaderMessage::Refused(_)) {
            self.term = message.term;
        }
        match message.body {
            LeaderMessage::Welcome(welcome) => {
                self.cluster = Some(welcome.cluster);
                self.lease = Some(welcome.lease_ttl);
                self.to_beat = true;
            }
            LeaderMessage::HeartbeatAck { number } => self.acked = number,
            LeaderMessage::Farewell { .. } => self.farewell = true,
            LeaderMessage::Probe => self.to_beat = true,
            LeaderMessage::OpenStream(key) => self.dialled.push(key),
            LeaderMessage::Refused(refused) => {
                self.refused = Some(refused);
                self.connection = None;
            }
            LeaderMessage::Assignments(_) if self.deaf => {}
            LeaderMessage::Assignments(assignments) => {
                let held: Vec<UnitReport> =
                    assignments.hold.into_iter().filter_map(|assignment| self.take(assignment)).collect();
                let removed = assignments.remove.into_iter().map(|removal| self.remove(removal));
                return Some(removed.chain(held).collect());
            }
        }
        None
    }

    fn take(&mut self, assignment: Assignment) -> Option<UnitReport> {
        let Assignment { name, epoch, hash, content, target, exclusive: _ } = assignment;
        let held = self.held.get(&name);
        let epochs = [held, self.writing.get(&name)].map(|unit| unit.map(|unit| unit.epoch));
        let last = epochs.into_iter().max().flatten().max(self.stopped.get(&name).copied());
        if last.is_some_and(|last| epoch < last) || self.stopped.get(&name).is_some_and(|last| epoch <= *last)
        {
            return Some(UnitReport { name, epoch, change: ReportedChange::Stale(last.unwrap()) });
        }
        assert!(
            content.is_some() || held.is_some_and(|held| held.hash == hash),
            "{name}: nobody sent its content"
        );
        if held.is_some_and(|held| held.epoch == epoch && held.target == target) {
            return None;
        }
        let phase = match target {
            Target::Loaded => Phase::Loaded,
            Target::Launched if self.activates => Phase::Launched,
            Target::Launched => Phase::Starting,
        };
        let active = if phase == Phase::Launched { "active" } else { "inactive" };
        let state = UnitState { load: "loaded".into(), active: active.into(), sub: String::new() };
        let observation = Observation::Held { phase, state: Some(state) };
        let unit = HeldUnit { name: name.clone(), epoch, hash, target, observation };
        if self.slow {
            self.writing.insert(name, unit);
            return None;
        }
        self.writing.remove(&name);
        Some(self.hold(unit))
    }

    fn hold(&mut self, unit: HeldUnit) -> UnitReport {
        let HeldUnit { name, epoch, observation, .. } = unit.clone();
        self.held.insert(name.clone(), unit);
        UnitReport { name, epoch, change: ReportedChange::Observed(observation) }
    }

    fn remove(&mut self, removal: Removal) -> UnitReport {
        let Removal { name, epoch } = removal;
        self.writing.retain(|writing, unit| *writing != name || unit.epoch > epoch);
        if self.held.get(&name).is_some_and(|held| held.epoch <= epoch) {
            self.held.remove(&name);
            self.stopped.insert(name.clone(), epoch);
        }
        UnitReport { name, epoch, change: ReportedChange::Gone }
    }
}
