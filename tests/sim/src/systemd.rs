//! A machine's PID 1, with the quirks of the real one that an agent has to live with.
//!
//! It is asked for one thing at a time, in the order in which calls arrive, and does nothing else while it hangs or
//! reloads: the world holds its calls and its own events back meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_core::agent::{CallError, Checked, Effect, Input, LEASE, Seen, Verb, Write, Written};
use muster_core::ids::Epoch;
use muster_core::state::{Failure, UnitState};
use muster_core::unit::{ContentHash, UnitName};

use crate::queue::{MILLI, Micros, SECOND, micros};
use crate::random::Random;

/// The files of a unit, as Muster writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) epoch: Epoch,
    pub(crate) hash: ContentHash,
    /// Whether it is bound to the guard, and how long it may take to stop when that ends.
    pub(crate) exclusive: Option<Duration>,
    /// Whether it runs to its end.
    pub(crate) oneshot: bool,
}

/// The unit files on a machine. They are gone after a reboot.
pub(crate) type Files = BTreeMap<UnitName, File>;

#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    pub(crate) version: Version,
    /// When it was written: what has just come into a directory, systemd may not see yet.
    written: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Inactive,
    Activating,
    Running,
    Deactivating,
    Failed,
}

/// How a unit takes being started and stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Starts take some seconds.
    SlowStart,
    /// Starts fail.
    Fails,
    /// Starts hang until systemd gives up.
    Hangs,
    /// Stops take some seconds.
    SlowStop,
    /// Stops are ignored until systemd kills what is left.
    Unstoppable,
    /// It fails soon after each start, and systemd restarts it.
    Crashes,
    /// It fails soon after each start, and systemd gives it up.
    FailsLater,
    /// The same, since the kernel kills it for want of memory.
    OutOfMemory,
    /// Starts fail, since the machine has too little of something.
    OutOfResources,
    /// Something else, as its socket would, starts it whenever it has been stopped.
    Activated,
}

impl Behaviour {
    /// What systemd says of the failure that comes of it (`systemd.exec(5)`).
    fn result(self) -> &'static str {
        match self {
            Self::OutOfMemory => "oom-kill",
            Self::OutOfResources => "resources",
            Self::Hangs | Self::Unstoppable => "timeout",
            _ => "exit-code",
        }
    }

    /// Whether a start fails at once.
    fn fails(self, oneshot: bool) -> bool {
        match self {
            Self::Fails | Self::Hangs | Self::OutOfResources => true,
            Self::FailsLater | Self::OutOfMemory => oneshot,
            _ => false,
        }
    }
}

/// A unit that PID 1 has loaded.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The files that it was loaded from, if there are any.
    content: Option<Version>,
    pub(crate) active: State,
    /// The files that what runs was started from.
    pub(crate) runs: Option<Version>,
    job: Option<(u32, Verb)>,
    /// Whether another unit refers to it, so that it stays loaded when it is inactive.
    referenced: bool,
    /// Whether it is between two attempts to start by itself; counts them.
    restarts: u32,
    /// Whether something else than the agent has started it.
    pub(crate) foreign: bool,
    /// Whether its processes were killed, and PID 1 has not seen that yet.
    killed: bool,
    /// Why it failed last.
    result: &'static str,
}

/// What PID 1 does later by itself.
#[derive(Clone, Debug)]
pub(crate) enum Later {
    JobEnds(UnitName, u32),
    /// `Restart=`: the unit failed and is started again.
    Restarts(UnitName, u32),
    Crashes(UnitName, u32),
    /// Something else starts the unit.
    Activates(UnitName),
    /// Processes have been killed.
    Reaps,
}

/// What comes out of PID 1 when something goes in.
#[derive(Debug, Default)]
pub(crate) struct Out {
    /// Signals to whoever has subscribed, in this order.
    pub(crate) signals: Vec<Input>,
    pub(crate) later: Vec<(Micros, Later)>,
    /// It is busy for this long.
    pub(crate) busy: Micros,
}

#[derive(Debug)]
pub(crate) struct Systemd {
    pub(crate) units: BTreeMap<UnitName, Loaded>,
    jobs: u32,
    /// What those that were forgotten have counted: one that is loaded again begins there, or what was still to happen to it
    /// then would happen to it now.
    restarts: u32,
    random: Random,
    pub(crate) behaviours: BTreeMap<UnitName, Behaviour>,
    /// How many faults lose the ends of jobs.
    pub(crate) loses_signals: u32,
    /// The units that ended by themselves when they last ran.
    pub(crate) exited: BTreeSet<UnitName>,
    /// Whether the guard of exclusive units runs, as far as PID 1 knows.
    pub(crate) guarded: bool,
    /// Whether no unit refers to another one.
    alone: bool,
}

impl Loaded {
    pub(crate) fn is_running(&self) -> bool {
        !matches!(self.active, State::Inactive | State::Failed)
    }
}

impl Systemd {
    pub(crate) fn new(random: Random) -> Self {
        Self {
            units: BTreeMap::new(),
            jobs: 0,
            restarts: 0,
            random,
            behaviours: BTreeMap::new(),
            loses_signals: 0,
            exited: BTreeSet::new(),
            guarded: false,
            alone: false,
        }
    }

    /// One with units to which no other unit refers.
    pub(crate) fn of_units_alone(random: Random) -> Self {
        Self { alone: true, ..Self::new(random) }
    }

    /// Whether anything of the unit runs or is about to.
    pub(crate) fn is_running(&self, name: &UnitName) -> bool {
        self.units.get(name).is_some_and(|unit| unit.is_running() || unit.job.is_some())
    }

    /// Which files the unit's processes were started from.
    pub(crate) fn runs(&self, name: &UnitName) -> Option<Version> {
        self.units.get(name)?.runs
    }

    /// The unit does not behave like this any more.
    pub(crate) fn behaves_again(&mut self, name: &UnitName, behaviour: Behaviour) {
        if self.behaviours.get(name) == Some(&behaviour) {
            self.behaviours.remove(name);
        }
    }

    /// Everything ends as it should from now on.
    pub(crate) fn heal(&mut self, out: &mut Out) {
        self.behaviours.clear();
        self.loses_signals = 0;
        // What hangs, ends soon.
        for (name, unit) in &self.units {
            out.later.extend(unit.job.map(|(job, _)| (SECOND, Later::JobEnds(name.clone(), job))));
        }
    }

    fn load(&mut self, files: &Files, name: &UnitName) -> Option<&mut Loaded> {
        if !self.units.contains_key(name) {
            let content = Some(files.get(name)?.version);
            let referenced = self.random.chance(200) && !self.alone;
            let unit = Loaded {
                content,
                active: State::Inactive,
                runs: None,
                job: None,
                referenced,
                restarts: self.restarts,
                foreign: false,
                killed: false,
                result: "success",
            };
            self.units.insert(name.clone(), unit);
        }
        self.units.get_mut(name)
    }

    /// systemd forgets what is inactive and nobody refers to.
    fn collect(&mut self, name: &UnitName) {
        let idle = |unit: &Loaded| !unit.referenced && unit.job.is_none() && unit.active == State::Inactive;
        if self.units.get(name).is_some_and(idle)
            && let Some(unit) = self.units.remove(name)
        {
            self.restarts = self.restarts.max(unit.restarts);
        }
    }

    fn set(&mut self, name: &UnitName, active: State, out: &mut Out) {
        let behaviour = self.behaviours.get(name);
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.active = active;
        if active == State::Failed {
            unit.result = behaviour.map_or("exit-code", |behaviour| behaviour.result());
        }
        match active {
            // A start that fails or is taken back leaves nothing behind; a restart runs what is loaded then.
            State::Inactive | State::Failed => unit.runs = None,
            State::Activating => {
                unit.runs = unit.content;
                self.exited.remove(name);
            }
            State::Running | State::Deactivating => {}
        }
        let job = unit.job.is_some();
        let state = state(active);
        out.signals.push(Input::Changed { unit: name.clone(), active: state.active, sub: state.sub, job });
    }

    /// A job ended: its end may be lost on the way, above all when a reload comes in between.
    fn job_removed(&mut self, name: &UnitName, job: u32, result: &str, out: &mut Out) {
        if self.loses_signals == 0 || self.random.chance(500) {
            out.signals.push(Input::JobRemoved(name.clone(), job, result.to_owned()));
        }
    }

    fn begin(
        &mut self,
        files: &Files,
        now: Micros,
        name: &UnitName,
        verb: Verb,
        out: &mut Out,
    ) -> Result<u32, CallError> {
        // systemd looks for new files only where it sees that a directory has changed, and its clock is coarse.
        let seen =
            files.get(name).is_some_and(|file| now > file.written + 4 * MILLI) || !self.random.chance(100);
        if !self.units.contains_key(name) && (!seen || self.load(files, name).is_none()) {
            return Err(CallError::NotLoaded);
        }
        let Some(unit) = self.units.get_mut(name) else { return Err(CallError::NotLoaded) };
        let no_file = unit.content.is_none();
        if no_file && (verb == Verb::Start || !unit.is_running()) {
            return Err(CallError::NotLoaded);
        }
        if let Some((job, pending)) = unit.job {
            if pending == verb {
                return Ok(job);
            }
            unit.job = None;
            self.job_removed(name, job, "canceled", out);
        }
        self.jobs += 1;
        let job = self.jobs;
        let Some(unit) = self.units.get_mut(name) else { return Err(CallError::NotLoaded) };
        if verb == Verb::Start && unit.active == State::Activating {
            // It is about to be started again by itself, and the job waits for that.
            unit.job = Some((job, verb));
            return Ok(job);
        }
        let behaviour = self.behaviours.get(name).copied();
        let quick = self.random.spread(MILLI, 100 * MILLI);
        let slow = self.random.between(SECOND, 12 * SECOND);
        let Some(unit) = self.units.get_mut(name) else { return Err(CallError::NotLoaded) };
        unit.job = Some((job, verb));
        unit.restarts += 1;
        let active = unit.active;
        let (next, wait) = match (verb, active, behaviour) {
            (Verb::Start, State::Running, _) | (Verb::Stop, State::Inactive | State::Failed, _) => {
                (None, MILLI)
            }
            (Verb::Start, ..) if !self.may_run(name) => (None, MILLI),
            (Verb::Start, _, Some(Behaviour::SlowStart)) => (Some(State::Activating), slow),
            (Verb::Start, _, Some(Behaviour::Hangs)) => (Some(State::Activating), 45 * SECOND),
            (Verb::Start, ..) if self.is_oneshot(name) => {
                (Some(State::Activating), self.random.spread(MILLI, 8 * SECOND))
            }
            (Verb::Start, ..) => (Some(State::Activating), quick),
            (Verb::Stop, _, Some(Behaviour::SlowStop)) => (Some(State::Deactivating), slow),
            (Verb::Stop, _, Some(Behaviour::Unstoppable)) => (Some(State::Deactivating), 45 * SECOND),
            (Verb::Stop, ..) => (Some(State::Deactivating), quick),
        };
        if let Some(next) = next {
            self.set(name, next, out);
        }
        out.later.push((wait, Later::JobEnds(name.clone(), job)));
        Ok(job)
    }

    /// Something that was to happen later happens now.
    pub(crate) fn happens(&mut self, files: &Files, now: Micros, later: Later, out: &mut Out) {
        match later {
            Later::Activates(name) => self.activate(files, now, &name, out),
            Later::Reaps => self.reap(out),
            Later::JobEnds(name, job) => self.end_job(&name, job, out),
            Later::Restarts(name, count) => {
                let waits = |unit: &Loaded| unit.restarts == count && unit.active == State::Activating;
                if self.units.get(&name).is_some_and(waits) && !self.may_run(&name) {
                    self.set(&name, State::Inactive, out);
                    if let Some((job, _)) = self.units.get_mut(&name).and_then(|unit| unit.job.take()) {
                        self.job_removed(&name, job, "dependency", out);
                    }
                    self.collect(&name);
                } else if self.units.get(&name).is_some_and(waits) {
                    self.set(&name, State::Activating, out);
                    self.set(&name, State::Running, out);
                    if let Some((job, _)) = self.units.get_mut(&name).and_then(|unit| unit.job.take()) {
                        self.job_removed(&name, job, "done", out);
                    }
                    self.crash_later(&name, out);
                }
            }
            Later::Crashes(name, count) => {
                let runs = |unit: &Loaded| unit.restarts == count && unit.active == State::Running;
                if self.units.get(&name).is_some_and(runs) {
                    match self.behaviours.get(&name) {
                        Some(Behaviour::FailsLater | Behaviour::OutOfMemory) => {
                            self.is_killed(&name, false, out);
                        }
                        _ => self.exit(&name, true, out),
                    }
                }
            }
        }
    }

    fn end_job(&mut self, name: &UnitName, job: u32, out: &mut Out) {
        let Some(unit) = self.units.get_mut(name).filter(|unit| unit.job.is_some_and(|(id, _)| id == job))
        else {
            return;
        };
        let Some((_, verb)) = unit.job else { return };
        let was = unit.active;
        let idle = matches!(
            (verb, was),
            (Verb::Start, State::Running) | (Verb::Stop, State::Inactive | State::Failed)
        );
        let early = self.random.chance(300) || idle;
        if !early && let Some(unit) = self.units.get_mut(name) {
            // The signal of the state already says that the job is over.
            unit.job = None;
        }
        let result = match (verb, was, self.behaviours.get(name)) {
            // What it has just loaded, it does not say anything of before.
            (Verb::Stop, State::Inactive, _) => "done",
            _ if idle => {
                self.set(name, was, out);
                "done"
            }
            (Verb::Start, ..) if !self.may_run(name) => {
                // A unit that had failed before still has.
                self.set(name, if was == State::Failed { was } else { State::Inactive }, out);
                "dependency"
            }
            // The job itself has no time limit: where the start hangs the unit fails, and with it the job.
            (Verb::Start, _, Some(behaviour)) if behaviour.fails(self.is_oneshot(name)) => {
                self.set(name, State::Failed, out);
                "failed"
            }
            (Verb::Start, ..) if self.is_oneshot(name) => {
                if was != State::Activating {
                    self.set(name, State::Activating, out);
                }
                self.set(name, State::Inactive, out);
                self.exited.insert(name.clone());
                "done"
            }
            (Verb::Start, ..) => {
                if was != State::Activating {
                    self.set(name, State::Activating, out);
                }
                self.set(name, State::Running, out);
                self.crash_later(name, out);
                "done"
            }
            (Verb::Stop, _, behaviour) => {
                if behaviour == Some(&Behaviour::Activated) {
                    // Most often before the files are gone.
                    let wait = self.random.spread(100, 5 * MILLI);
                    out.later.push((wait, Later::Activates(name.clone())));
                }
                // A start that is called off has failed.
                let killed = matches!(behaviour, Some(Behaviour::Unstoppable | Behaviour::Hangs));
                self.set(name, if killed { State::Failed } else { State::Inactive }, out);
                "done"
            }
        };
        if let Some(unit) = self.units.get_mut(name) {
            unit.job = None;
        }
        self.job_removed(name, job, result, out);
        if early && let Some(unit) = self.units.get(name) {
            let state = state(unit.active);
            out.signals.push(Input::Changed {
                unit: name.clone(),
                active: state.active,
                sub: state.sub,
                job: false,
            });
        }
        self.collect(name);
    }

    /// Whether the unit is bound to the guard, and how long it may take to stop when that ends.
    fn exclusive(&self, name: &UnitName) -> Option<Duration> {
        let unit = self.units.get(name)?;
        unit.runs.or(unit.content)?.exclusive
    }

    fn is_oneshot(&self, name: &UnitName) -> bool {
        self.units.get(name).and_then(|unit| unit.content).is_some_and(|version| version.oneshot)
    }

    fn may_run(&self, name: &UnitName) -> bool {
        self.guarded || self.units.get(name).and_then(|unit| unit.content?.exclusive).is_none()
    }

    /// Whether processes of the unit run that were started from files that say so.
    pub(crate) fn lives(&self, name: &UnitName) -> Option<Version> {
        let unit = self.units.get(name).filter(|unit| unit.is_running() && !unit.killed)?;
        unit.runs
    }

    /// Starts the guard; false where it waits, since something that was bound to it is being stopped still.
    pub(crate) fn start_guard(&mut self, out: &mut Out) -> bool {
        let stops = |name: &UnitName, unit: &Loaded| {
            unit.active == State::Deactivating && self.exclusive(name).is_some()
        };
        if self.units.iter().any(|(name, unit)| stops(name, unit)) {
            return false;
        }
        self.guarded = true;
        self.signal_guard(out);
        true
    }

    /// The guard has ended: PID 1 stops what is bound to it, and kills what takes too long.
    pub(crate) fn guard_ends(&mut self, out: &mut Out) {
        self.guarded = false;
        self.signal_guard(out);
        for name in self.units.keys().cloned().collect::<Vec<_>>() {
            let Some(stop) = self.exclusive(&name).filter(|_| self.is_running(&name)) else { continue };
            let stop = micros(stop);
            let wait = match self.behaviours.get(&name) {
                Some(Behaviour::SlowStop) => self.random.between(SECOND, 12 * SECOND).min(stop),
                Some(Behaviour::Unstoppable) => stop,
                _ => self.random.spread(MILLI, 100 * MILLI),
            };
            let Some(unit) = self.units.get_mut(&name) else { continue };
            unit.restarts += 1;
            if let Some((job, verb)) = unit.job {
                if verb == Verb::Stop {
                    out.later.push((wait, Later::JobEnds(name.clone(), job)));
                    continue;
                }
                unit.job = None;
                self.job_removed(&name, job, "canceled", out);
            }
            self.jobs += 1;
            let job = self.jobs;
            if let Some(unit) = self.units.get_mut(&name) {
                unit.job = Some((job, Verb::Stop));
            }
            self.set(&name, State::Deactivating, out);
            out.later.push((wait, Later::JobEnds(name, job)));
        }
    }

    /// The guard runs, or has ended: that is signalled as of any unit.
    pub(crate) fn signal_guard(&self, out: &mut Out) {
        let (active, sub) = if self.guarded { ("active", "running") } else { ("failed", "failed") };
        if let Ok(unit) = UnitName::parse(LEASE) {
            out.signals.push(Input::Changed {
                unit,
                active: active.to_owned(),
                sub: sub.to_owned(),
                job: false,
            });
        }
    }

    /// The processes of exclusive units are killed; PID 1 learns of it when it can.
    pub(crate) fn fence(&mut self, stop: u64) {
        for unit in self.units.values_mut() {
            let exclusive = unit.runs.and_then(|version| version.exclusive);
            unit.killed |= unit.is_running() && exclusive.is_some_and(|takes| takes.as_secs() <= stop);
        }
    }

    fn reap(&mut self, out: &mut Out) {
        let killed = self.units.iter().filter(|(_, unit)| unit.killed).map(|(name, _)| name.clone());
        for name in killed.collect::<Vec<_>>() {
            let Some(unit) = self.units.get_mut(&name) else { continue };
            unit.killed = false;
            unit.restarts += 1;
            if let Some((job, _)) = unit.job.take() {
                self.job_removed(&name, job, "done", out);
            }
            self.set(&name, State::Failed, out);
        }
    }

    fn crash_later(&mut self, name: &UnitName, out: &mut Out) {
        let crashes = [Behaviour::Crashes, Behaviour::FailsLater, Behaviour::OutOfMemory];
        if self.behaviours.get(name).is_some_and(|behaviour| crashes.contains(behaviour))
            && let Some(unit) = self.units.get(name)
        {
            let wait = self.random.between(300 * MILLI, 3 * SECOND);
            out.later.push((wait, Later::Crashes(name.clone(), unit.restarts)));
        }
    }

    /// The unit's main process ends by itself.
    pub(crate) fn exit(&mut self, name: &UnitName, restart: bool, out: &mut Out) {
        let Some(unit) =
            self.units.get(name).filter(|unit| unit.active == State::Running && unit.job.is_none())
        else {
            return;
        };
        let count = unit.restarts;
        let failed = self.random.chance(500);
        self.ends(name, restart, failed, count, out);
    }

    /// The unit's main process is killed.
    pub(crate) fn is_killed(&mut self, name: &UnitName, restart: bool, out: &mut Out) {
        let running = |unit: &&Loaded| unit.active == State::Running && unit.job.is_none();
        if let Some(count) = self.units.get(name).filter(running).map(|unit| unit.restarts) {
            self.ends(name, restart, true, count, out);
        }
    }

    /// Which files the unit's main process was started from, if it runs.
    pub(crate) fn main_process(&self, name: &UnitName) -> Option<Version> {
        self.units.get(name).filter(|unit| unit.active == State::Running)?.runs
    }

    fn ends(&mut self, name: &UnitName, restart: bool, failed: bool, count: u32, out: &mut Out) {
        let Some(unit) = self.units.get(name) else { return };
        if restart && unit.content.is_some() {
            self.set(name, State::Activating, out);
            out.later.push((self.random.between(100 * MILLI, SECOND), Later::Restarts(name.clone(), count)));
        } else {
            self.set(name, if failed { State::Failed } else { State::Inactive }, out);
            self.exited.insert(name.clone());
            self.collect(name);
        }
    }

    /// Something else on the machine starts the unit, as its socket would.
    pub(crate) fn activate(&mut self, files: &Files, now: Micros, name: &UnitName, out: &mut Out) {
        let idle = |unit: &mut Loaded| !unit.is_running() && unit.job.is_none();
        // What is loaded still starts from memory, also where its files are gone.
        let loaded = self.units.get(name).is_some_and(|unit| unit.content.is_some());
        if (loaded || files.contains_key(name)) && self.load(files, name).is_some_and(idle) {
            // The job is nobody's that is listened to, and its end is signalled all the same.
            let _ = self.begin(files, now, name, Verb::Start, out);
            if let Some(unit) = self.units.get_mut(name) {
                unit.foreign = true;
            }
        }
        self.collect(name);
    }

    pub(crate) fn reload(&mut self, files: &Files, out: &mut Out) {
        out.signals.push(Input::Reloading(true));
        // All units and jobs are removed and added again.
        for (name, unit) in &mut self.units {
            let (unit_name, active, sub) = (name.clone(), "inactive".to_owned(), "dead".to_owned());
            out.signals.push(Input::Changed { unit: unit_name, active, sub, job: false });
            unit.content = files.get(name).map(|file| file.version);
            unit.referenced &= unit.content.is_some();
        }
        for name in self.units.keys().cloned().collect::<Vec<_>>() {
            self.collect(&name);
        }
        out.signals.push(Input::Reloading(false));
        out.busy = self.random.spread(50 * MILLI, SECOND);
    }

    /// Carries out a call, and gives its answer.
    pub(crate) fn call(&mut self, files: &Files, now: Micros, call: &Effect, out: &mut Out) -> Option<Input> {
        match call {
            Effect::Start(name) => {
                if let Some(unit) = self.units.get_mut(name) {
                    unit.foreign = false;
                }
                let answer = self.begin(files, now, name, Verb::Start, out);
                Some(Input::Answered(name.clone(), Verb::Start, answer))
            }
            Effect::Stop(name) => {
                let answer = self.begin(files, now, name, Verb::Stop, out);
                Some(Input::Answered(name.clone(), Verb::Stop, answer))
            }
            Effect::ResetFailed(name) => {
                if self.units.get(name).is_some_and(|unit| unit.active == State::Failed) {
                    self.set(name, State::Inactive, out);
                    self.collect(name);
                }
                None
            }
            Effect::Check(name) => {
                let version = files.get(name).map(|file| file.version);
                let unit = self.load(files, name);
                let outdated = unit.as_ref().is_some_and(|unit| unit.content != version);
                let active = unit.is_some_and(|unit| unit.is_running());
                self.collect(name);
                Some(Input::Checked(name.clone(), Some(Checked { outdated, active })))
            }
            Effect::Explain(name) => {
                let result = self.units.get(name).map_or("success", |unit| unit.result);
                let reason = format!("{result}, status 1");
                Some(Input::Explained(name.clone(), Some(Failure { result: result.to_owned(), reason })))
            }
            Effect::Read(names) => Some(Input::Read(
                names.iter().map(|name| (name.clone(), Some(self.seen(files, name)))).collect(),
            )),
            Effect::Reload => {
                self.reload(files, out);
                Some(Input::Reloaded(Ok(())))
            }
            Effect::Ping => Some(Input::Pong(true)),
            _ => None,
        }
    }

    fn seen(&mut self, files: &Files, name: &UnitName) -> Seen {
        if name.as_str() == LEASE {
            let active = if self.guarded { State::Running } else { State::Inactive };
            return Seen { state: state(active), job: false, load_error: None };
        }
        let seen = match self.load(files, name) {
            None => {
                let load = "not-found".to_owned();
                Seen { state: UnitState { load, ..state(State::Inactive) }, job: false, load_error: None }
            }
            Some(unit) => {
                let mut state = state(unit.active);
                if unit.content.is_none() {
                    "not-found".clone_into(&mut state.load);
                }
                Seen { state, job: unit.job.is_some(), load_error: None }
            }
        };
        self.collect(name);
        seen
    }

    /// Whether a unit of that name is loaded, from files of Muster's that were there before.
    pub(crate) fn knows(&self, name: &UnitName) -> bool {
        self.units.contains_key(name)
    }
}

/// Writes a unit's files, as the agent's shell does.
pub(crate) fn write(files: &mut Files, systemd: &Systemd, now: Micros, write: &Write) -> Written {
    let known = systemd.knows(&write.name);
    if write.content.is_none() && files.get(&write.name).is_none_or(|file| file.version.hash != write.hash) {
        return Written::Failed("it does not have the content that the scheduler expects there".to_owned());
    }
    let oneshot = match &write.content {
        Some(text) => text.contains("Type=oneshot"),
        None => files.get(&write.name).is_some_and(|file| file.version.oneshot),
    };
    let version = Version { epoch: write.epoch, hash: write.hash, exclusive: write.exclusive, oneshot };
    files.insert(write.name.clone(), File { version, written: now });
    Written::Done { known: known || !write.fresh }
}

fn state(active: State) -> UnitState {
    let (active, sub) = match active {
        State::Inactive => ("inactive", "dead"),
        State::Activating => ("activating", "start"),
        State::Running => ("active", "running"),
        State::Deactivating => ("deactivating", "stop-sigterm"),
        State::Failed => ("failed", "failed"),
    };
    UnitState { load: "loaded".to_owned(), active: active.to_owned(), sub: sub.to_owned() }
}
