//! A machine: its agent's process, which is the real agent with the loop around it, its PID 1 and its disks.

mod bus;
mod guard;

use std::collections::{BTreeMap, BTreeSet};

use muster_core::agent::{Agent, CallError, Effect, Held, Identity, Input, Ledger, Membership, Verb};
use muster_core::ids::{AgentKey, BootId, MachineId};
use muster_core::machine::{Capacity, Pressure};
use muster_core::message::{FromAgent, Goodbye};
use muster_core::stream::StreamKinds;
use muster_core::unit::{Bytes, MilliCpu};

pub(crate) use self::bus::is_from_pid1;
use self::bus::unanswered;
use crate::faults::Plan;
use crate::palette::{CPU, MEMORY, ROLE, machine_id, role};
use crate::queue::{Clock, MILLI, Micros, SECOND};
use crate::random::Random;
use crate::systemd::{self, Files, Later, Systemd};
use crate::world::{Event, World};

/// How long an agent that is told to end, and a machine that shuts down, wait for the leader's farewell.
const RESTART_WAITS: Micros = 2 * SECOND;
const SHUTDOWN_WAITS: Micros = 20 * SECOND;

/// How long a machine that stood still may take to stop what should have been stopped before.
pub(crate) const EXCEPTED: Micros = 20 * SECOND;

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: MachineId,
    number: usize,
    pub(crate) clock: Clock,
    pub(crate) on: bool,
    /// Counts the boots.
    pub(crate) boot: u64,
    /// How many faults have stopped the whole machine, and what waits for it to go on.
    pub(crate) frozen: u32,
    waiting: Vec<Event>,
    pub(crate) agent: Option<AgentProcess>,
    /// Counts the agent's processes.
    pub(crate) agents: u64,
    /// When the last of them was started.
    pub(crate) agent_since: Micros,
    /// In `/run`.
    pub(crate) ledger: Option<Ledger>,
    pub(crate) files: Files,
    /// On disk.
    pub(crate) membership: Membership,
    pub(crate) disk_full: u32,
    pub(crate) disk_slow: u32,
    pub(crate) systemd: Systemd,
    /// How many things keep PID 1 from doing anything else, and what waits for it.
    pub(crate) pid1_busy: u32,
    pid1_waiting: Vec<Event>,
    /// The guard of exclusive units, if it runs, and how often it was started or told to last longer.
    pub(crate) guard: Option<u64>,
    guards: u64,
    /// Until when it was told to last.
    pub(crate) guard_until: Micros,
    /// Until then the machine has no part in what is promised of exclusive units: it stood still as a whole.
    pub(crate) excepted_until: Micros,
    /// When PID 1 last gave the agent a sign of life.
    pub(crate) pid1_heard: Micros,
    /// By how much the machine's clock has jumped since.
    pub(crate) jumped: Micros,
    /// Since when the agent stands still, alone or with the machine; and for how long it has since that sign of life, from when
    /// it had anything to do.
    still: Option<Micros>,
    pub(crate) stood_still: Micros,
    pub(crate) bus_flaky: u32,
    /// What next answers the agent is an old leader.
    pub(crate) old_leader_next: bool,
    /// The first moment at which the next signal can arrive.
    signalled: Micros,
    random: Random,
    /// How short it is of something, where that is known at all. Apart, since nothing that is decided rests on it.
    pressure: Option<Random>,
}

#[derive(Debug)]
pub(crate) struct AgentProcess {
    pub(crate) agent: Agent,
    inbox: Vec<Input>,
    turning: bool,
    timer: Option<Micros>,
    pub(crate) frozen: u32,
    /// It is killed after so many effects, and stays down for so long.
    pub(crate) dies: Option<(u32, Micros)>,
    /// Its ledger, where the disk was full.
    unsaved: Option<Ledger>,
    /// It has said goodbye, and is gone for this long once it may go.
    pub(crate) leaves: Option<(Goodbye, Micros)>,
    /// With which number, and where to, it opens a stream.
    pub(crate) connecting: Option<(u64, String)>,
    /// Which connection to the bus it has.
    bus: Option<u64>,
    buses: u64,
    /// What was asked of PID 1 and is not answered.
    calls: BTreeMap<u64, Effect>,
    /// Those of them that have written files, which the agent will be told.
    written: BTreeSet<u64>,
    last_call: u64,
}

impl AgentProcess {
    /// All that the agent has in its memory, but for what time it is.
    fn remembers(&self) -> String {
        let times = [" now: Time(", " looked: Time("];
        times.iter().fold(format!("{:?}", self.agent), |memory, time| {
            let mut parts = memory.split(time);
            let first = parts.next().unwrap_or_default().to_owned();
            parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
        })
    }

    /// Whether it is connected to the bus.
    pub(crate) fn has_bus(&self) -> bool {
        self.bus.is_some()
    }
}

/// What identifies a boot of a machine.
pub(crate) fn boot_id(machine: usize, boot: u64) -> BootId {
    BootId::new((u128::from(boot) << 64) | machine as u128)
}

impl Machine {
    pub(crate) fn new(plan: &Plan, number: usize, clock: Clock) -> Self {
        let dice = |purpose: &str| Random::new(plan.seed, &format!("{purpose} {number}"));
        Self {
            id: machine_id(number),
            number,
            clock,
            on: false,
            boot: 0,
            frozen: 0,
            waiting: Vec::new(),
            agent: None,
            agents: 0,
            agent_since: 0,
            ledger: None,
            files: Files::new(),
            membership: Membership::default(),
            disk_full: 0,
            disk_slow: 0,
            systemd: Systemd::new(dice("systemd")),
            pid1_busy: 0,
            pid1_waiting: Vec::new(),
            guard: None,
            guards: 0,
            guard_until: 0,
            excepted_until: 0,
            pid1_heard: 0,
            jumped: 0,
            still: None,
            stood_still: 0,
            bus_flaky: 0,
            old_leader_next: false,
            signalled: 0,
            random: dice("machine"),
            pressure: plan.pressure.then(|| dice("pressure")),
        }
    }

    /// How short it is of something now.
    fn pressure(&mut self) -> Option<Pressure> {
        let random = self.pressure.as_mut()?;
        let mut share = || u32::try_from(random.below(10_001)).ok();
        let (cpu, memory, io) = (share(), share(), share());
        // The kernel may not know of all of it.
        Some(Pressure { cpu, memory: memory.filter(|_| random.chance(800)), io })
    }

    /// The agent's process, if it is still that one.
    pub(crate) fn agent_if(&mut self, process: u64) -> Option<&mut AgentProcess> {
        self.agent.as_mut().filter(|_| self.agents == process)
    }

    fn identity(&self) -> Identity {
        Identity {
            machine: self.id,
            address: format!("198.18.0.{}", self.number + 1),
            labels: [(ROLE.to_owned(), role(self.number).to_owned())].into(),
            capacity: Capacity { cpu: MilliCpu(CPU), memory: Bytes(MEMORY) },
            version: "simulated".to_owned(),
            streams: StreamKinds::default(),
        }
    }
}

impl World {
    pub(crate) fn power_on(&mut self, number: usize) {
        let now = self.queue.now();
        let machine = &mut self.machines[number];
        if machine.on {
            return;
        }
        machine.on = true;
        machine.boot += 1;
        let boots_for = machine.random.between(100 * MILLI, 2 * SECOND);
        machine.clock = Clock::new(now, boots_for, machine.clock.drift());
        let (boot, heard) = (machine.boot, now);
        (machine.pid1_heard, machine.jumped) = (heard, 0);
        self.note(|| format!("m{number}: boots, for the {boot}. time"));
        self.look_at_link(number);
        self.queue.after(boots_for, Event::AgentStarts(number, boot));
    }

    pub(crate) fn power_off(&mut self, number: usize, down: Micros) {
        let machine = &mut self.machines[number];
        if !machine.on {
            return;
        }
        machine.on = false;
        machine.agent = None;
        machine.agents += 1;
        machine.ledger = None;
        machine.files.clear();
        machine.systemd.units.clear();
        machine.systemd.exited.clear();
        machine.systemd.guarded = false;
        machine.guard = None;
        (machine.frozen, machine.pid1_busy) = (0, 0);
        machine.waiting.clear();
        machine.pid1_waiting.clear();
        self.note(|| format!("m{number}: loses its power"));
        self.power_is_lost(number);
        self.boot_ends(number);
        self.look_at_link(number);
        self.queue.after(down, Event::PowerOn(number));
    }

    pub(crate) fn start_agent(&mut self, number: usize, boot: u64) {
        let (now, addresses) = (self.queue.now(), self.addresses());
        let machine = &mut self.machines[number];
        if !machine.on || machine.boot != boot || machine.agent.is_some() {
            return;
        }
        machine.agents += 1;
        (machine.agent_since, machine.still, machine.stood_still) = (now, None, 0);
        let boot = boot_id(number, boot);
        let key = AgentKey::new((u128::from(machine.random.bits()) << 64) | number as u128);
        let kept = machine.ledger.take().filter(|ledger| ledger.boot == boot);
        let mut ledger = kept.unwrap_or_else(|| Ledger::new(boot, key));
        ledger.look(|name| machine.files.contains_key(name));
        for (name, file) in &machine.files {
            let version = file.version;
            let found = || Held::found(version.epoch, version.hash, version.exclusive);
            ledger.units.entry(name.clone()).or_insert_with(found);
        }
        let book = &mut self.book.machines[number];
        book.stopped = ledger.stopped.clone();
        (book.reloads, book.asked_to_reload, book.reload_explains) = (false, false, false);
        book.guard_kept = false;
        machine.ledger = Some(ledger.clone());
        let time = machine.clock.time(now);
        let (identity, seed) = (machine.identity(), machine.random.bits());
        let agent = Agent::new(identity, addresses, machine.membership, ledger, seed, time);
        machine.agent = Some(AgentProcess {
            agent,
            inbox: Vec::new(),
            turning: false,
            timer: None,
            frozen: 0,
            dies: None,
            unsaved: None,
            leaves: None,
            connecting: None,
            bus: None,
            buses: 0,
            calls: BTreeMap::new(),
            written: BTreeSet::new(),
            last_call: 0,
        });
        let wait = machine.random.spread(5 * MILLI, 300 * MILLI);
        let process = machine.agents;
        self.note(|| format!("m{number}: agent starts"));
        self.queue.after(wait, Event::BusUp(number, process));
        self.set_agent_timer(number);
    }

    /// The agent's process is killed between two effects, and started again later.
    pub(crate) fn kill_agent(&mut self, number: usize, down: Micros) {
        let machine = &mut self.machines[number];
        let Some(process) = machine.agent.take() else { return };
        // Of the files that it was writing, the first ones are there.
        for (id, call) in process.calls {
            if let Effect::Write(writes) = call
                && !process.written.contains(&id)
                && machine.disk_full == 0
                && machine.random.chance(500)
            {
                let some = machine.random.below(writes.len() + 1);
                for write in writes.iter().take(some) {
                    systemd::write(&mut machine.files, &machine.systemd, self.queue.now(), write);
                }
            }
        }
        let boot = machine.boot;
        self.note(|| format!("m{number}: agent is killed"));
        self.agent_closes(number);
        self.machines[number].agents += 1;
        self.look_at_link(number);
        self.queue.after(down, Event::AgentStarts(number, boot));
    }

    /// The agent is told to end, or its machine shuts down: it says goodbye first.
    pub(crate) fn leaves(&mut self, number: usize, goodbye: Goodbye, down: Micros) {
        let machine = &mut self.machines[number];
        let process = machine.agents;
        if let Some(agent) = machine.agent.as_mut().filter(|agent| agent.leaves.is_none()) {
            agent.leaves = Some((goodbye, down));
            let most = if goodbye == Goodbye::Restart { RESTART_WAITS } else { SHUTDOWN_WAITS };
            self.queue.after(most, Event::Leaves(number, process));
            self.tell_agent(number, Input::Goodbye(goodbye));
        }
    }

    /// The leader has said farewell, or nobody waits for it any longer.
    pub(crate) fn has_left(&mut self, number: usize, process: u64) {
        let healed = self.healed;
        let Some(agent) = self.machines[number].agent_if(process).filter(|agent| agent.frozen == 0 || healed)
        else {
            return;
        };
        let ledger = agent.agent.ledger();
        match agent.leaves.take() {
            Some((Goodbye::Restart, down)) => {
                if self.machines[number].disk_full == 0 {
                    self.machines[number].ledger = Some(ledger);
                }
                self.kill_agent(number, down);
            }
            Some((Goodbye::Shutdown, down)) => self.power_off(number, down),
            None => {}
        }
    }

    pub(crate) fn bus_up(&mut self, number: usize, process: u64) {
        let Some(agent) = self.machines[number].agent_if(process) else { return };
        if agent.bus.is_none() {
            agent.buses += 1;
            agent.bus = Some(agent.buses);
            self.pid1_is_heard(number);
            self.tell_agent(number, Input::SystemdUp);
        }
    }

    /// The agent's connection to the bus ends: what was asked may have its effect all the same.
    pub(crate) fn bus_breaks(&mut self, number: usize) {
        let Some(agent) = &mut self.machines[number].agent else { return };
        if agent.bus.take().is_none() {
            return;
        }
        let (written, calls): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut agent.calls).into_iter().partition(|(id, _)| agent.written.contains(id));
        agent.calls = written;
        let process = self.machines[number].agents;
        for (id, call) in calls {
            if let Effect::Write(writes) = &call
                && self.machines[number].disk_full == 0
            {
                // The first ones are there.
                let machine = &mut self.machines[number];
                let some = usize::try_from(id).unwrap_or_default() % (writes.len() + 1);
                for write in writes.iter().take(some) {
                    systemd::write(&mut machine.files, &machine.systemd, self.queue.now(), write);
                }
            }
            if let Some(input) = unanswered(&call) {
                self.tell_agent(number, input);
            }
        }
        self.tell_agent(number, Input::SystemdDown);
        self.queue.after(SECOND, Event::BusUp(number, process));
    }

    fn pid1_is_heard(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        (machine.pid1_heard, machine.jumped, machine.stood_still) = (self.queue.now(), 0, 0);
    }

    /// What keeps the agent from running may have begun or ended.
    pub(crate) fn look_at_standstill(&mut self, number: usize) {
        let now = self.queue.now();
        let machine = &mut self.machines[number];
        let still = machine.frozen > 0 || machine.agent.as_ref().is_some_and(|agent| agent.frozen > 0);
        if still {
            machine.still.get_or_insert(now);
        } else if let Some(since) = machine.still.take() {
            let heard = machine.pid1_heard.max(machine.agent_since);
            let due = machine.agent.as_ref().and_then(|agent| agent.agent.next_timer());
            let due = due.map_or(now, |due| machine.clock.moment(due));
            machine.stood_still += now.saturating_sub(since.max(heard).max(due));
            let book = &mut self.book.machines[number];
            book.pid1_heard =
                book.pid1_heard.max(machine.agent_since) + (now - since.max(machine.agent_since));
        }
    }

    pub(crate) fn tell_agent(&mut self, number: usize, input: Input) {
        let process = self.machines[number].agents;
        let Some(agent) = &mut self.machines[number].agent else { return };
        agent.inbox.push(input);
        if !std::mem::replace(&mut agent.turning, true) {
            let wait = self.machines[number].random.between(20, MILLI / 2);
            self.queue.after(wait, Event::AgentTurn(number, process));
        }
    }

    /// The agent's loop goes round once.
    pub(crate) fn agent_turn(&mut self, number: usize, process: u64) {
        let now = self.queue.now();
        let machine = &mut self.machines[number];
        let time = machine.clock.time(now);
        let Some(agent) = machine.agent_if(process).filter(|agent| agent.frozen == 0) else { return };
        agent.turning = false;
        let mut inputs = std::mem::take(&mut agent.inbox);
        if inputs.is_empty() {
            inputs.push(Input::Tick);
        }
        self.stats.steps += 1;
        self.agent_hears(number, &inputs);
        self.note_inputs(number, &inputs);
        let old = self.are_of_old_sessions(number, &inputs);
        if let Some(pressure) = self.machines[number].pressure().filter(|_| !old) {
            inputs.insert(0, Input::Pressure(pressure));
        }
        let Some(agent) = self.machines[number].agent_if(process) else { return };
        let due = agent.agent.next_timer().is_some_and(|at| at <= time);
        let before = (old && !due).then(|| agent.remembers());
        let effects = agent.agent.step(time, inputs);
        let after = before.is_some().then(|| agent.remembers());
        if before != after {
            self.violate("the_session_opened_last_counts", format!("m{number} obeys an older session"));
        }
        for effect in effects {
            let Some(agent) = self.machines[number].agent_if(process) else { return };
            match &mut agent.dies {
                Some((0, down)) => {
                    let down = *down;
                    return self.kill_agent(number, down);
                }
                Some((effects, _)) => *effects -= 1,
                None => {}
            }
            self.judge_agent(number, &effect);
            self.carry_out_agents(number, process, effect);
        }
        let machine = &mut self.machines[number];
        if machine.disk_full == 0
            && let Some(ledger) = machine.agent.as_mut().and_then(|agent| agent.unsaved.take())
        {
            machine.ledger = Some(ledger);
        }
        self.judge_lease(number);
        self.set_agent_timer(number);
    }

    fn set_agent_timer(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let (clock, process) = (machine.clock, machine.agents);
        let Some(agent) = &mut machine.agent else { return };
        let Some(at) = agent.agent.next_timer().map(|at| clock.moment(at)) else { return };
        // The real loop's timer has milliseconds.
        let at = at.max(self.queue.now() + 50);
        if agent.timer.is_none_or(|timer| at < timer) {
            agent.timer = Some(at);
            self.queue.at(at, Event::AgentTimer(number, process));
        }
    }

    pub(crate) fn agent_timer(&mut self, number: usize, process: u64) {
        let now = self.queue.now();
        let machine = &mut self.machines[number];
        let time = machine.clock.time(now);
        let Some(agent) = machine.agent_if(process) else { return };
        if agent.timer.is_none_or(|timer| timer > now) {
            return;
        }
        agent.timer = None;
        if agent.frozen > 0 {
            // It has a turn when it goes on.
            return;
        }
        if agent.agent.next_timer().is_some_and(|at| at <= time) {
            self.agent_turn(number, process);
        } else {
            self.set_agent_timer(number);
        }
    }

    /// The agent's process goes on, if nothing else keeps it.
    pub(crate) fn agent_thaws(&mut self, number: usize) {
        let process = self.machines[number].agents;
        if self.machines[number].agent.as_ref().is_some_and(|agent| agent.frozen == 0) {
            self.queue.after(0, Event::AgentTurn(number, process));
        }
        self.look_at_standstill(number);
        self.look_at_link(number);
    }

    /// The machine goes on, if nothing else keeps it.
    pub(crate) fn machine_thaws(&mut self, number: usize) {
        if self.machines[number].frozen > 0 {
            return;
        }
        self.machines[number].excepted_until = self.queue.now() + EXCEPTED;
        for event in std::mem::take(&mut self.machines[number].waiting) {
            self.queue.after(0, event);
        }
        self.look_at_standstill(number);
        self.look_at_link(number);
    }

    /// Whether the machine stands still; then the event waits.
    pub(crate) fn waits(&mut self, number: usize, event: Event) -> Option<Event> {
        if self.machines[number].frozen > 0 {
            self.machines[number].waiting.push(event);
            return None;
        }
        Some(event)
    }

    /// PID 1 goes on, if nothing else keeps it busy.
    pub(crate) fn pid1_goes_on(&mut self, number: usize, boot: u64) {
        let machine = &mut self.machines[number];
        if machine.boot != boot {
            return;
        }
        machine.pid1_busy = machine.pid1_busy.saturating_sub(1);
        if machine.pid1_busy == 0 {
            // It sees that a process has died before it reads what it is asked for: sd-event's priorities of SIGCHLD and
            // the bus, systemd's core/manager.c and core/dbus.c.
            let mut waiting = std::mem::take(&mut machine.pid1_waiting);
            waiting.sort_by_key(|event| !matches!(event, Event::GuardEnds(..)));
            for event in waiting {
                self.queue.after(0, event);
            }
        }
    }

    fn carry_out_agents(&mut self, number: usize, process: u64, effect: Effect) {
        let now = self.queue.now();
        let time = self.machines[number].clock.time(now);
        let machine = &mut self.machines[number];
        match effect {
            Effect::Farewell => self.queue.after(0, Event::Leaves(number, process)),
            Effect::SaveLedger(ledger) => {
                let full = machine.disk_full > 0;
                let Some(agent) = &mut machine.agent else { return };
                agent.unsaved = full.then(|| (*ledger).clone());
                if !full {
                    machine.ledger = Some(*ledger);
                }
            }
            Effect::Start(name) if machine.agent.as_ref().is_some_and(|agent| agent.unsaved.is_some()) => {
                let answer = Err(CallError::NotAsked("the ledger is not saved".to_owned()));
                self.tell_agent(number, Input::Answered(name, Verb::Start, answer));
            }
            Effect::ArmGuard { .. }
                if machine.agent.as_ref().is_some_and(|agent| agent.unsaved.is_some()) =>
            {
                self.tell_agent(number, Input::GuardArmed(Err("the ledger is not saved".to_owned())));
            }
            Effect::SaveMembership(membership) => {
                let wait = match machine.disk_slow {
                    0 => machine.random.spread(MILLI, 50 * MILLI),
                    _ => machine.random.spread(100 * MILLI, 5 * SECOND),
                };
                self.queue.after(wait, Event::MembershipSaved(number, process, membership));
            }
            Effect::Connect(connection, address) => self.connect(number, connection, address),
            Effect::Disconnect(_) => self.agent_disconnects(number),
            Effect::Send(message) => {
                if !matches!(message, FromAgent::Heartbeat { .. }) {
                    self.stats.reports += 1;
                    self.note(|| format!("m{number}: says {message:?}"));
                }
                self.send_up(number, time, message);
            }
            Effect::Remove(names) => {
                self.note(|| format!("m{number}: removes {names:?}"));
                let machine = &mut self.machines[number];
                let mut outcomes = Vec::with_capacity(names.len());
                for name in names {
                    if machine.disk_full > 0 && machine.random.chance(300) {
                        outcomes.push((name, Err("input/output error".to_owned())));
                    } else {
                        machine.files.remove(&name);
                        outcomes.push((name, Ok(())));
                    }
                }
                self.tell_agent(number, Input::Removed(outcomes));
            }
            Effect::Event(event) => self.note(|| format!("m{number}: {event:?}")),
            Effect::PetGuard { until } => {
                if self.machines[number].guard.is_none() {
                    return self.tell_agent(number, Input::GuardDown);
                }
                self.guard_lasts(number, until);
            }
            Effect::Fence => {
                let machine = &mut self.machines[number];
                machine.systemd.fence(u64::MAX);
                let boot = machine.boot;
                self.queue.after(0, Event::Later(number, boot, Later::Reaps));
            }
            // Nobody wants one here.
            Effect::OpenStream(..) => {}
            Effect::ArmGuard { .. }
            | Effect::DisarmGuard
            | Effect::Ping
            | Effect::Write(_)
            | Effect::ResetFailed(_)
            | Effect::Stop(_)
            | Effect::Start(_)
            | Effect::Check(_)
            | Effect::Explain(_)
            | Effect::Read(_)
            | Effect::Reload => {
                if !matches!(effect, Effect::Ping | Effect::Read(_)) {
                    self.note(|| format!("m{number}: asks {effect:?}"));
                }
                let machine = &mut self.machines[number];
                let wait = machine.random.spread(100, 5 * MILLI);
                let Some(agent) = &mut machine.agent else { return };
                if agent.bus.is_none() {
                    if let Some(input) = unanswered(&effect) {
                        self.tell_agent(number, input);
                    }
                    return;
                }
                agent.last_call += 1;
                let call = agent.last_call;
                agent.calls.insert(call, effect.clone());
                self.queue.after(wait, Event::Call(number, machine.boot, process, call, effect));
            }
        }
    }

    pub(crate) fn membership_saved(&mut self, number: usize, process: u64, membership: Membership) {
        let machine = &mut self.machines[number];
        // But for the first time it takes no room, where the file system does not write every change to a new place.
        let first = machine.membership.cluster.is_none();
        let full = machine.disk_full > 0 && (first || machine.random.chance(200));
        let alive = machine.agents == process;
        // Of an agent that was killed meanwhile, it may be on disk or not; but not over what the next one has written.
        let older = membership.term < machine.membership.term;
        if !full && (alive || (!older && machine.random.chance(500))) {
            machine.membership = membership;
        }
        if alive {
            let outcome = if full { Err("no space left on device".to_owned()) } else { Ok(()) };
            self.tell_agent(number, Input::MembershipSaved(outcome));
        }
    }
}
