//! The agent in a world that misbehaves: jobs fail, answers and signals get lost, units are started by others, the
//! agent and its leader come and go. When that ends, everything must be as the leader wants it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// Units of the test; some are exclusive, and the last is one of the machine's own.
const NAMES: [&str; 6] = ["a.service", "b.service", "c.socket", "x.service", "y.socket", "own.service"];
const EXCLUSIVE: [&str; 2] = ["x.service", "y.socket"];
const OWN: &str = "own.service";

/// Something that happens besides the ordinary course of things.
#[derive(Clone, Debug)]
enum Chaos {
    /// The leader wants the unit held under a new epoch.
    Place(usize, u8, Target),
    /// The leader changes its mind about what to do with a unit that it has placed.
    Retarget(usize, Target),
    /// The leader wants the unit removed.
    Unplace(usize),
    /// The leader forgets that there ever was such a unit.
    Forget(usize),
    /// Something else starts the unit, as its socket would.
    Activate(usize),
    /// The unit ends by itself.
    Exit(usize),
    /// The stream to the leader breaks.
    Disconnect,
    /// The agent is killed and started again.
    RestartAgent,
    /// The connection to systemd breaks, with all that was asked and not answered.
    RestartBus,
    /// Somebody else reloads systemd.
    Reload,
    /// The guard of exclusive units dies.
    KillGuard,
    /// Nothing reaches anybody for longer than a lease.
    Silence,
    /// Things take their course for so many moments.
    Run(u8),
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![1 => Just(Target::Loaded), 3 => Just(Target::Launched)]
}

fn chaos() -> impl Strategy<Value = Chaos> {
    let name = 0..NAMES.len();
    prop_oneof![
        4 => (name.clone(), 0..3_u8, target()).prop_map(|(name, content, target)| Chaos::Place(name, content, target)),
        2 => (name.clone(), target()).prop_map(|(name, target)| Chaos::Retarget(name, target)),
        2 => name.clone().prop_map(Chaos::Unplace),
        1 => name.clone().prop_map(Chaos::Forget),
        2 => name.clone().prop_map(Chaos::Activate),
        1 => name.prop_map(Chaos::Exit),
        1 => Just(Chaos::Disconnect),
        1 => Just(Chaos::RestartAgent),
        1 => Just(Chaos::RestartBus),
        1 => Just(Chaos::Reload),
        1 => Just(Chaos::KillGuard),
        1 => Just(Chaos::Silence),
        8 => (1..30_u8).prop_map(Chaos::Run),
    ]
}

fn content(number: u8) -> String {
    format!("[Service]\nExecStart=/bin/true {number}\n")
}

/// A unit that PID 1 has loaded.
#[derive(Clone, Debug)]
struct Loaded {
    /// The epoch of the files that it was loaded from; `None` for files of the machine's own, or none at all.
    content: Option<Epoch>,
    active: &'static str,
    /// The epoch of the files that what runs was started from.
    runs: Option<Epoch>,
    job: Option<(u32, Verb)>,
    /// Whether another unit refers to it, so that it stays loaded when it is inactive.
    referenced: bool,
}

/// The guard of exclusive units, and what the agent may know of it.
#[derive(Default)]
struct FakeGuard {
    /// Until when it runs, if it does.
    runs: Option<Time>,
    /// Whether it has ever ended before it was to be stopped.
    ended: bool,
    /// Until when it runs as the agent was told, and what the agent has asked for.
    told: Option<Time>,
    asked: Option<Time>,
    /// When the heartbeats of this session were sent, and until when they have granted a lease.
    sent: BTreeMap<u64, Time>,
    lease: Option<Time>,
    /// Whether a snapshot was applied in this session.
    snapshot: bool,
    /// The units that run since the agent has started them, and those that did when the guard ended.
    started: BTreeSet<UnitName>,
    stopped: BTreeSet<UnitName>,
}

struct World {
    now: Time,
    random: u64,
    /// Whether anything may still go wrong.
    calm: bool,
    agent: Agent,
    ledger: Ledger,
    membership: Membership,
    log: Vec<String>,

    files: BTreeMap<UnitName, (Epoch, ContentHash)>,
    loaded: BTreeMap<UnitName, Loaded>,
    jobs: u32,
    /// What was asked of systemd and of the disk and is not done yet.
    calls: VecDeque<Effect>,
    disk: VecDeque<Effect>,
    signals: VecDeque<Input>,

    connection: Option<u64>,
    to_agent: VecDeque<ToAgent>,
    session: SessionNumber,
    revision: u64,
    counter: u64,
    placed: BTreeMap<UnitName, (Epoch, String, Target)>,
    removing: BTreeMap<UnitName, Epoch>,
    /// The content of every placement ever.
    hashes: BTreeMap<Epoch, ContentHash>,
    /// What the leader was told the agent holds.
    holds: BTreeMap<UnitName, (Epoch, ContentHash)>,
    observed: BTreeMap<UnitName, (Epoch, Observation)>,
    /// The copies that the agent was right to stop.
    stops: BTreeSet<(UnitName, Epoch)>,
    /// What the agent was told last of each unit.
    told: BTreeMap<UnitName, Result<(Epoch, Target), Epoch>>,
    guard: FakeGuard,
}

fn is_exclusive(name: &UnitName) -> bool {
    EXCLUSIVE.contains(&name.as_str())
}

impl FakeGuard {
    fn forget_session(&mut self) {
        self.sent.clear();
        self.lease = None;
        self.snapshot = false;
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let now = seconds(1);
        let agent =
            Agent::new(identity(), schedulers(&["one:1"]), Membership::default(), ledger(), seed, now);
        let own = Loaded { content: None, active: "active", runs: None, job: None, referenced: true };
        let mut world = Self {
            now,
            random: seed,
            calm: false,
            agent,
            ledger: ledger(),
            membership: Membership::default(),
            log: Vec::new(),
            files: BTreeMap::new(),
            loaded: BTreeMap::from([(unit(OWN), own)]),
            jobs: 0,
            calls: VecDeque::new(),
            disk: VecDeque::new(),
            signals: VecDeque::new(),
            connection: None,
            to_agent: VecDeque::new(),
            session: SessionNumber(0),
            revision: 0,
            counter: 0,
            placed: BTreeMap::new(),
            removing: BTreeMap::new(),
            hashes: BTreeMap::new(),
            holds: BTreeMap::new(),
            observed: BTreeMap::new(),
            stops: BTreeSet::new(),
            told: BTreeMap::new(),
            guard: FakeGuard::default(),
        };
        world.step(Input::SystemdUp);
        world
    }

    /// A number below `bound`.
    fn pick(&mut self, bound: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.random >> 33).unwrap() % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        !self.calm && self.pick(bound) == 0
    }

    fn step(&mut self, input: Input) {
        if self.guard.runs.is_some_and(|until| until <= self.now) {
            self.end_guard();
        }
        self.watch_guard(&input);
        if !matches!(
            input,
            Input::Tick
                | Input::Pong(_)
                | Input::Leader(ToAgent { body: LeaderMessage::HeartbeatAck { .. }, .. })
        ) {
            self.log.push(format!("{:?} <- {input:?}", self.now));
        }
        if let Input::Leader(ToAgent { body: LeaderMessage::Assignments(assignments), .. }) = &input {
            if assignments.snapshot {
                self.told.clear();
            }
            for hold in &assignments.hold {
                self.told.insert(hold.name.clone(), Ok((hold.epoch, hold.target)));
            }
            for removal in &assignments.remove {
                self.told.insert(removal.name.clone(), Err(removal.epoch));
            }
        }
        for effect in self.agent.step(self.now, [input]) {
            if !matches!(
                effect,
                Effect::SaveLedger(_) | Effect::Ping | Effect::Send(FromAgent::Heartbeat { .. })
            ) {
                self.log.push(format!("{:?} -> {effect:?}", self.now));
            }
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match &effect {
            Effect::Start(name) => self.check_start(name),
            Effect::Stop(name) => self.check_stop(name),
            Effect::Remove(names) => names.iter().for_each(|name| self.check_stop(name)),
            Effect::Write(writes) => writes.iter().for_each(|write| self.check_write(write)),
            _ => {}
        }
        if let Effect::Stop(name) = &effect {
            let held = self.files.get(name).map(|(epoch, _)| *epoch).unwrap_or_default();
            self.stops.insert((name.clone(), held));
        }
        match effect {
            Effect::SaveLedger(ledger) => self.ledger = *ledger,
            Effect::Connect(..) | Effect::SaveMembership(_) | Effect::Write(_) | Effect::Remove(_) => {
                self.disk.push_back(effect);
            }
            Effect::Disconnect(connection) => {
                // It may have broken by itself just before.
                assert!(self.connection.is_none_or(|current| current == connection));
                self.disconnect();
            }
            Effect::Send(message) => self.leader_hears(message),
            Effect::Event(_) | Effect::Fence => {}
            Effect::PetGuard { until } => {
                if self.guard.runs.is_some() {
                    self.guard.runs = Some(until);
                    self.guard.told = Some(until);
                } else {
                    self.signals.push_back(Input::GuardDown);
                }
            }
            _ => self.calls.push_back(effect),
        }
    }

    // What must never happen.

    fn check_start(&self, name: &UnitName) {
        let files = self.files.get(name).map(|(epoch, _)| *epoch);
        let Some(Ok((epoch, Target::Launched))) = self.told.get(name) else {
            panic!("{name} was started, which nobody asked for");
        };
        assert_eq!(Some(*epoch), files, "{name} was started from the wrong files");
        if is_exclusive(name) {
            let runs = |until: Option<Time>| until.is_some_and(|until| self.now < until);
            assert!(runs(self.guard.told), "{name} was started without the guard");
            assert!(runs(self.guard.lease), "{name} was started without a lease");
            assert!(self.guard.snapshot, "{name} was started before a snapshot");
        }
    }

    fn check_stop(&self, name: &UnitName) {
        if is_exclusive(name) && self.guard.ended {
            return;
        }
        let held = self.files.get(name).map(|(epoch, _)| *epoch).unwrap_or_default();
        match self.told.get(name) {
            // What runs has older content (or that is not certain), or was being stopped when the agent was restarted.
            Some(Ok((epoch, Target::Launched))) => assert!(
                *epoch > held
                    || self.loaded.get(name).is_some_and(|unit| unit.runs != Some(held))
                    || self.ledger.units.get(name).is_some_and(|held| !held.settled)
                    || self.stops.contains(&(name.clone(), held)),
                "{name} was stopped, which is wanted as it is"
            ),
            Some(Ok((epoch, Target::Loaded))) => {
                assert!(*epoch >= held, "{name} was stopped for an older epoch");
            }
            Some(Err(epoch)) => assert!(*epoch >= held, "{name} was stopped for an older removal"),
            // A removal that was begun, and whose files are gone, is carried to its end; and files that were never known to be
            // there, and that nobody knows of, are removed.
            None => assert!(
                !self.files.contains_key(name) && self.stops.iter().any(|(stopped, _)| stopped == name)
                    || self.loaded.get(name).is_none_or(|unit| unit.runs.is_none()),
                "{name} was stopped, which nobody asked for"
            ),
        }
        assert_ne!(name.as_str(), OWN);
    }

    fn check_write(&self, write: &Write) {
        let held = self.files.get(&write.name).map(|(epoch, _)| *epoch);
        assert!(
            Some(write.epoch) > held,
            "{} was written again under an epoch that is not later",
            write.name
        );
        // What is there after all is seen to be the agent's own.
        assert!(write.fresh || held.is_some(), "{}", write.name);
    }

    // The leader.

    fn leader_hears(&mut self, message: FromAgent) {
        match message {
            FromAgent::Goodbye(_) | FromAgent::Inspected { .. } => {}
            FromAgent::Hello(hello) => {
                self.session = hello.session;
                self.guard.forget_session();
                self.holds = hello.units.iter().map(|u| (u.name.clone(), (u.epoch, u.hash))).collect();
                self.observed =
                    hello.units.into_iter().map(|unit| (unit.name, (unit.epoch, unit.observation))).collect();
                self.say(welcome(CLUSTER));
                self.snapshot();
            }
            FromAgent::Heartbeat { number, .. } => {
                self.guard.sent.insert(number, self.now);
                self.say(LeaderMessage::HeartbeatAck { number });
            }
            FromAgent::SnapshotWanted => self.snapshot(),
            FromAgent::Report(reports) => {
                for UnitReport { name, epoch, change } in reports {
                    match change {
                        ReportedChange::Gone => {
                            self.removing.retain(|removed, at| *removed != name || *at > epoch);
                            self.holds.retain(|held, (at, _)| *held != name || *at > epoch);
                            self.observed.retain(|held, (at, _)| *held != name || *at > epoch);
                        }
                        ReportedChange::Stale(newest) => {
                            assert!(newest >= epoch, "{name}");
                        }
                        ReportedChange::Observed(observation) => {
                            if matches!(observation, Observation::Held { .. }) {
                                self.holds.insert(name.clone(), (epoch, self.hashes[&epoch]));
                            }
                            self.observed.insert(name, (epoch, observation));
                        }
                    }
                }
            }
        }
    }

    fn say(&mut self, body: LeaderMessage) {
        if self.connection.is_some() {
            self.to_agent.push_back(ToAgent { term: Term(5), session: self.session, body });
        }
    }

    fn assignment(&self, name: &UnitName) -> Assignment {
        let (epoch, file, target) = &self.placed[name];
        let hash = ContentHash::of(file.as_bytes());
        // As the leader does it: of a placement that was not reported, it is not known what is held.
        let held = self.holds.get(name) == Some(&(*epoch, hash));
        let content = (!held).then(|| file.as_str().into());
        Assignment {
            name: name.clone(),
            epoch: *epoch,
            hash,
            content,
            target: *target,
            exclusive: is_exclusive(name).then_some(Duration::from_secs(10)),
            adopt: false,
        }
    }

    fn snapshot(&mut self) {
        let hold = self.placed.keys().map(|name| self.assignment(name)).collect();
        let remove = self
            .removing
            .iter()
            .map(|(name, epoch)| Removal { name: name.clone(), epoch: *epoch, release: false })
            .collect();
        self.tell(true, hold, remove);
    }

    fn tell(&mut self, snapshot: bool, hold: Vec<Assignment>, remove: Vec<Removal>) {
        self.revision += 1;
        let revision = Revision(self.revision);
        self.say(LeaderMessage::Assignments(Assignments { snapshot, revision, hold, remove }));
    }

    fn disconnect(&mut self) {
        self.to_agent.clear();
        if let Some(connection) = self.connection.take() {
            self.disk.push_back(Effect::Disconnect(connection));
        }
    }

    // The guard.

    /// Notes what an input tells the agent of the guard and of its lease.
    fn watch_guard(&mut self, input: &Input) {
        match input {
            Input::GuardArmed(Ok(())) => self.guard.told = self.guard.asked,
            Input::Leader(ToAgent { body, session, .. }) if *session == self.session => match body {
                LeaderMessage::HeartbeatAck { number } => {
                    let granted = self.guard.sent.get(number).map(|sent| *sent + Duration::from_secs(5));
                    self.guard.lease = self.guard.lease.max(granted);
                }
                LeaderMessage::Assignments(assignments) => self.guard.snapshot |= assignments.snapshot,
                _ => {}
            },
            _ => {}
        }
    }

    /// systemd ends the guard, and all exclusive units with it.
    fn end_guard(&mut self) {
        self.guard.runs = None;
        self.guard.ended = true;
        self.signal_guard("failed");
        for name in EXCLUSIVE.map(unit) {
            let Some(loaded) = self.loaded.get_mut(&name) else { continue };
            if self.guard.started.contains(&name) {
                self.guard.stopped.insert(name.clone());
            }
            if let Some((job, _)) = loaded.job.take() {
                self.signal(Input::JobRemoved(name.clone(), job, "dependency".into()));
            }
            self.set(&name, "inactive");
        }
    }

    fn signal_guard(&mut self, active: &str) {
        let (unit, active, sub) = (unit(LEASE), active.into(), String::new());
        self.signals.push_back(Input::Changed { unit, active, sub, job: false });
    }

    // systemd.

    fn load(&mut self, name: &UnitName) -> Option<&mut Loaded> {
        if !self.loaded.contains_key(name) {
            let (epoch, _) = self.files.get(name)?;
            let content = Some(*epoch);
            let referenced = self.pick(3) == 0;
            let loaded = Loaded { content, active: "inactive", runs: None, job: None, referenced };
            self.loaded.insert(name.clone(), loaded);
        }
        self.loaded.get_mut(name)
    }

    /// systemd forgets what is inactive and nobody refers to.
    fn collect(&mut self) {
        self.loaded.retain(|_, unit| unit.referenced || unit.job.is_some() || unit.active != "inactive");
    }

    fn set(&mut self, name: &UnitName, active: &'static str) {
        if let Some(unit) = self.loaded.get_mut(name) {
            unit.active = active;
            self.guard.started.remove(name);
            if active != "inactive" {
                self.guard.stopped.remove(name);
            }
            unit.runs = if active == "active" { unit.content } else { None };
            let job = unit.job.is_some();
            self.signal(Input::Changed {
                unit: name.clone(),
                active: active.into(),
                sub: String::new(),
                job,
            });
        }
        self.collect();
    }

    fn signal(&mut self, signal: Input) {
        // What gets lost, if anything, is the end of a job; a state only during a reload, and then it is read.
        if !matches!(signal, Input::JobRemoved(..)) || !self.one_in(6) {
            self.signals.push_back(signal);
        }
    }

    fn end_job(&mut self, name: &UnitName) {
        let fails = self.one_in(5);
        let Some((job, verb)) = self.loaded.get_mut(name).and_then(|unit| unit.job.take()) else { return };
        let (active, result) = match verb {
            Verb::Start if fails => ("failed", "failed"),
            Verb::Start => ("active", "done"),
            Verb::Stop => (if fails { "failed" } else { "inactive" }, "done"),
        };
        if !(verb == Verb::Start && self.loaded[name].active == "active") {
            self.set(name, active);
            if is_exclusive(name) && active == "active" {
                self.guard.started.insert(name.clone());
            }
        }
        self.signal(Input::JobRemoved(name.clone(), job, result.into()));
    }

    fn reload(&mut self) {
        self.signals.push_back(Input::Reloading(true));
        for name in self.loaded.keys() {
            let (active, sub) = ("inactive".into(), String::new());
            self.signals.push_back(Input::Changed { unit: name.clone(), active, sub, job: false });
        }
        for (name, unit) in &mut self.loaded {
            unit.content = self.files.get(name).map(|(epoch, _)| *epoch);
            if unit.content.is_none() && name.as_str() != OWN {
                unit.referenced = false;
            }
        }
        self.collect();
        self.signals.push_back(Input::Reloading(false));
    }

    fn call(&mut self, effect: Effect) -> Option<Input> {
        let unanswered = self.one_in(8);
        let lost = unanswered && self.one_in(2);
        let error = || CallError::Unanswered("no answer".into());
        match effect {
            Effect::Start(name) | Effect::Stop(name) if lost => {
                let verb =
                    if self.told.get(&name).is_some_and(|told| matches!(told, Ok((_, Target::Launched)))) {
                        Verb::Start
                    } else {
                        Verb::Stop
                    };
                // Of one call at a time, the answer to the wrong verb is none.
                Some(Input::Answered(name.clone(), verb, Err(error())))
                    .into_iter()
                    .chain([Input::Answered(
                        name,
                        if verb == Verb::Start { Verb::Stop } else { Verb::Start },
                        Err(error()),
                    )])
                    .for_each(|input| self.step(input));
                None
            }
            Effect::Start(name) => Some(self.job(name, Verb::Start, unanswered)),
            Effect::Stop(name) => Some(self.job(name, Verb::Stop, unanswered)),
            Effect::ResetFailed(name) => {
                if self.loaded.get(&name).is_some_and(|unit| unit.active == "failed") {
                    self.set(&name, "inactive");
                }
                None
            }
            Effect::Check(name) if unanswered => Some(Input::Checked(name, None)),
            Effect::Check(name) => {
                let files = self.files.get(&name).map(|(epoch, _)| *epoch);
                let unit = self.load(&name);
                let outdated = unit.as_ref().is_some_and(|unit| unit.content != files);
                let active = unit.is_some_and(|unit| unit.active == "active");
                Some(Input::Checked(name, Some(Checked { outdated, active })))
            }
            Effect::Explain(name) => Some(Input::Explained(
                name,
                Some(Failure { result: "exit-code".into(), reason: "exit-code".into() }),
            )),
            Effect::Read(names) => {
                let read = names.into_iter().map(|name| {
                    let seen = if unanswered { None } else { Some(self.seen(&name)) };
                    (name, seen)
                });
                Some(Input::Read(read.collect()))
            }
            Effect::Reload if unanswered => Some(Input::Reloaded(Err("no answer".into()))),
            Effect::Reload => {
                self.reload();
                Some(Input::Reloaded(Ok(())))
            }
            Effect::Ping => Some(Input::Pong(!unanswered)),
            Effect::ArmGuard { until } => {
                let done = self.now < until;
                if done && !lost {
                    self.guard.runs = Some(until);
                    self.signal_guard("active");
                }
                self.guard.asked = Some(until);
                let outcome = if done && !unanswered { Ok(()) } else { Err("it does not start".into()) };
                Some(Input::GuardArmed(outcome))
            }
            Effect::DisarmGuard => {
                if !lost {
                    self.guard.runs = None;
                    self.signal_guard("inactive");
                }
                Some(Input::GuardDisarmed)
            }
            other => panic!("{other:?} is no call"),
        }
    }

    fn seen(&mut self, name: &UnitName) -> Seen {
        let state = |load: &str, active: &str| UnitState {
            load: load.into(),
            active: active.into(),
            sub: String::new(),
        };
        if name.as_str() == LEASE {
            let active = if self.guard.runs.is_some() { "active" } else { "inactive" };
            return Seen { state: state("loaded", active), job: false, load_error: None };
        }
        let seen = match self.load(name) {
            None => Seen { state: state("not-found", "inactive"), job: false, load_error: None },
            Some(unit) => {
                Seen { state: state("loaded", unit.active), job: unit.job.is_some(), load_error: None }
            }
        };
        self.collect();
        seen
    }

    fn job(&mut self, name: UnitName, verb: Verb, unanswered: bool) -> Input {
        self.jobs += 1;
        let job = self.jobs;
        if verb == Verb::Start && is_exclusive(&name) && self.guard.runs.is_none() {
            self.signal(Input::JobRemoved(name.clone(), job, "dependency".into()));
            return Input::Answered(name, verb, Ok(job));
        }
        let known = match verb {
            Verb::Start => self.load(&name).is_some(),
            Verb::Stop => self.loaded.contains_key(&name),
        };
        let answer = match self.loaded.get_mut(&name).filter(|_| known) {
            None => Err(CallError::NotLoaded),
            Some(unit) => {
                if let Some((replaced, _)) = unit.job.replace((job, verb)) {
                    self.signal(Input::JobRemoved(name.clone(), replaced, "canceled".into()));
                }
                Ok(job)
            }
        };
        let answer = if unanswered { Err(CallError::Unanswered("no answer".into())) } else { answer };
        Input::Answered(name, verb, answer)
    }

    // The disk and the network.

    fn work(&mut self, effect: Effect) -> Input {
        match effect {
            Effect::Connect(connection, _) => {
                if self.one_in(3) {
                    return Input::Disconnected(connection);
                }
                self.connection = Some(connection);
                Input::Connected(connection)
            }
            Effect::Disconnect(connection) => Input::Disconnected(connection),
            Effect::SaveMembership(membership) => {
                if self.one_in(3) {
                    return Input::MembershipSaved(Err("disk full".into()));
                }
                self.membership = membership;
                Input::MembershipSaved(Ok(()))
            }
            Effect::Write(writes) => {
                let outcomes = writes.into_iter().map(|write| {
                    let outcome = if write.name.as_str() == OWN {
                        Written::NameTaken("/etc/systemd/system/own.service".into())
                    } else if self.one_in(8) {
                        Written::Unanswered
                    } else {
                        self.files.insert(write.name.clone(), (write.epoch, write.hash));
                        Written::Done { known: self.loaded.contains_key(&write.name) }
                    };
                    (write.name, outcome)
                });
                Input::Written(outcomes.collect())
            }
            Effect::Remove(names) => {
                let outcomes = names.into_iter().map(|name| {
                    if self.one_in(8) {
                        return (name, Err("input/output error".into()));
                    }
                    self.files.remove(&name);
                    (name, Ok(()))
                });
                Input::Removed(outcomes.collect())
            }
            other => panic!("{other:?} is no work for the disk"),
        }
    }

    /// One thing happens; `false` when there is nothing left that could.
    fn happen(&mut self) -> bool {
        let jobs: Vec<UnitName> =
            self.loaded.iter().filter(|(_, unit)| unit.job.is_some()).map(|(name, _)| name.clone()).collect();
        let mut possible = Vec::new();
        for (kind, count) in
            [self.calls.len(), self.disk.len(), self.signals.len(), self.to_agent.len(), jobs.len()]
                .iter()
                .enumerate()
        {
            if *count > 0 {
                possible.push(kind);
            }
        }
        if possible.is_empty() {
            return false;
        }
        self.now = self.now + Duration::from_millis(1);
        let kind = possible[self.pick(possible.len())];
        let input = match kind {
            0 => self.calls.pop_front().and_then(|effect| self.call(effect)),
            1 => self.disk.pop_front().map(|effect| self.work(effect)),
            2 => self.signals.pop_front(),
            3 => self.to_agent.pop_front().map(Input::Leader),
            _ => {
                let name = jobs[self.pick(jobs.len())].clone();
                self.end_job(&name);
                None
            }
        };
        if let Some(input) = input {
            self.step(input);
        }
        true
    }

    fn suffer(&mut self, chaos: &Chaos) {
        self.log.push(format!("{:?} !! {chaos:?}", self.now));
        match *chaos {
            Chaos::Place(name, number, target) => {
                let name = unit(NAMES[name]);
                self.counter += 1;
                self.removing.remove(&name);
                let (epoch, file) = (epoch(5, self.counter), content(number));
                self.hashes.insert(epoch, ContentHash::of(file.as_bytes()));
                self.placed.insert(name.clone(), (epoch, file, target));
                let hold = self.assignment(&name);
                self.tell(false, vec![hold], vec![]);
            }
            Chaos::Retarget(name, target) => {
                let name = unit(NAMES[name]);
                if let Some(placed) = self.placed.get_mut(&name) {
                    placed.2 = target;
                    let hold = self.assignment(&name);
                    self.tell(false, vec![hold], vec![]);
                }
            }
            Chaos::Unplace(name) => {
                let name = unit(NAMES[name]);
                if let Some((epoch, ..)) = self.placed.remove(&name) {
                    self.removing.insert(name.clone(), epoch);
                    self.tell(false, vec![], vec![Removal { name, epoch, release: false }]);
                }
            }
            Chaos::Forget(name) => {
                self.placed.remove(&unit(NAMES[name]));
                self.removing.remove(&unit(NAMES[name]));
                self.snapshot();
            }
            Chaos::Activate(name) => {
                let name = unit(NAMES[name]);
                if is_exclusive(&name) && self.guard.runs.is_none() {
                    return;
                }
                if self.load(&name).is_some_and(|unit| unit.active != "active" && unit.job.is_none()) {
                    self.set(&name, "active");
                }
                self.collect();
            }
            Chaos::Exit(name) => {
                let name = unit(NAMES[name]);
                if name.as_str() != OWN && self.loaded.get(&name).is_some_and(|unit| unit.active == "active")
                {
                    self.set(&name, "inactive");
                }
            }
            Chaos::Disconnect => self.disconnect(),
            Chaos::RestartAgent => {
                // Calls on their way may or may not have reached systemd; what was to be written was not.
                self.calls.truncate(1);
                if let Some(effect @ (Effect::Start(_) | Effect::Stop(_))) = self.calls.pop_front() {
                    let (name, verb) = match effect {
                        Effect::Start(name) => (name, Verb::Start),
                        Effect::Stop(name) => (name, Verb::Stop),
                        _ => return,
                    };
                    self.job(name, verb, true);
                }
                self.disk.clear();
                self.connection = None;
                self.to_agent.clear();
                self.signals.clear();
                self.told.clear();
                self.guard.forget_session();
                self.guard.told = None;
                // An agent that finds no guard takes it for ended.
                self.guard.ended |= self.guard.runs.is_none();
                self.ledger.look(|name| self.files.contains_key(name));
                // What is on disk without a record, it finds.
                for (name, (epoch, hash)) in &self.files {
                    let exclusive = is_exclusive(name).then_some(Duration::from_secs(10));
                    let found = || Held::found(*epoch, *hash, exclusive);
                    self.ledger.units.entry(name.clone()).or_insert_with(found);
                }
                self.agent = Agent::new(
                    identity(),
                    schedulers(&["one:1"]),
                    self.membership,
                    self.ledger.clone(),
                    self.random,
                    self.now,
                );
                self.step(Input::SystemdUp);
            }
            Chaos::RestartBus => {
                self.step(Input::SystemdDown);
                self.signals.clear();
                for effect in std::mem::take(&mut self.calls) {
                    let error = || CallError::Unanswered("connection lost".into());
                    match effect {
                        Effect::Start(name) => self.step(Input::Answered(name, Verb::Start, Err(error()))),
                        Effect::Stop(name) => self.step(Input::Answered(name, Verb::Stop, Err(error()))),
                        Effect::Check(name) => self.step(Input::Checked(name, None)),
                        Effect::Explain(name) => self.step(Input::Explained(name, None)),
                        Effect::Read(names) => {
                            self.step(Input::Read(names.into_iter().map(|name| (name, None)).collect()));
                        }
                        Effect::Reload => self.step(Input::Reloaded(Err("connection lost".into()))),
                        Effect::Ping => self.step(Input::Pong(false)),
                        Effect::ArmGuard { .. } => self.step(Input::GuardArmed(Err("no answer".into()))),
                        Effect::DisarmGuard => self.step(Input::GuardDisarmed),
                        _ => {}
                    }
                }
                self.step(Input::SystemdUp);
            }
            Chaos::Reload => self.reload(),
            Chaos::KillGuard if self.guard.runs.is_some() => self.end_guard(),
            Chaos::KillGuard => {}
            Chaos::Silence => {
                self.now = self.now + Duration::from_secs(6);
                self.step(Input::Tick);
            }
            Chaos::Run(moments) => {
                for _ in 0..moments {
                    if !self.happen() {
                        self.sleep();
                    }
                }
            }
        }
    }

    /// Nothing happens until the agent's own clock wakes it.
    fn sleep(&mut self) {
        if let Some(at) = self.agent.next_timer() {
            self.now = at.max(self.now);
            self.step(Input::Tick);
        }
    }

    /// What still differs from what the leader wants.
    fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        for (name, (epoch, file, target)) in &self.placed {
            let observed = self.observed.get(name).filter(|(observed, _)| observed == epoch).map(|(_, o)| o);
            if name.as_str() == OWN {
                if !matches!(observed, Some(Observation::Refused(_))) || self.files.contains_key(name) {
                    differences.push(format!("{name} should be refused"));
                }
                continue;
            }
            if self.files.get(name) != Some(&(*epoch, ContentHash::of(file.as_bytes()))) {
                differences.push(format!("{name} is not written as {epoch}"));
            }
            let phase = match observed {
                Some(Observation::Held { phase, .. }) => Some(phase),
                _ => None,
            };
            if *target == Target::Launched && self.guard.stopped.contains(name) {
                differences.push(format!("{name} ended with the guard and was not started again"));
            }
            let fits = match target {
                Target::Launched => {
                    matches!(phase, Some(Phase::Launched | Phase::StartFailed(_) | Phase::Failed(_)))
                }
                Target::Loaded => phase == Some(&Phase::Loaded),
            };
            if !fits {
                differences.push(format!("{name} should be {target:?} and is seen as {observed:?}"));
            }
            if let Some(unit) = self.loaded.get(name) {
                if unit.job.is_some() {
                    differences.push(format!("{name} has a job"));
                }
                if unit.active == "active" && unit.runs != Some(*epoch) {
                    differences.push(format!("{name} runs {:?}, not {epoch}", unit.runs));
                }
                let state = match observed {
                    Some(Observation::Held { state, .. }) => {
                        state.as_ref().map(|state| state.active.as_str())
                    }
                    _ => None,
                };
                if state.is_some_and(|state| state != unit.active) {
                    differences.push(format!("{name} is {} and seen as {observed:?}", unit.active));
                }
            }
        }
        for name in self.removing.keys() {
            differences.push(format!("{name} is not reported gone"));
        }
        let kept: BTreeSet<&UnitName> = self
            .agent
            .units
            .held()
            .into_keys()
            .filter_map(|n| self.files.get_key_value(&n))
            .map(|(n, _)| n)
            .collect();
        if kept.len() != self.files.len() {
            differences.push("there are files that the agent does not know".into());
        }
        differences
    }

    /// Nothing goes wrong any more: everything must come to what the leader wants.
    fn converge(&mut self) {
        self.calm = true;
        let end = self.now + Duration::from_secs(20 * 60);
        let mut differences = self.differences();
        while self.now < end {
            if !self.happen() {
                differences = self.differences();
                if differences.is_empty() && self.agent.session.is_welcome() {
                    return;
                }
                self.sleep();
            }
        }
        panic!("after 20 minutes: {differences:?}\n{:?}", self.agent.units);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn everything_comes_to_what_the_leader_wants(
        seed in any::<u64>(),
        chaos in prop::collection::vec(chaos(), 1..60),
    ) {
        let mut world = World::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for chaos in chaos {
                world.suffer(&chaos);
            }
            world.converge();
        }));
        if let Err(panic) = outcome {
            let tail = world.log.len().saturating_sub(80);
            eprintln!("{}", world.log[tail..].join("\n"));
            std::panic::resume_unwind(panic);
        }
    }
}
