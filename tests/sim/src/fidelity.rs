//! Whether the simulated PID 1 is like a real one: a script of operations that both can be put through, and what is seen
//! of each. The test on a machine is `tests/cluster/tests/muster/fidelity.rs`.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use muster_core::agent::{CallError, Effect, Input, Write, Written};
use muster_core::ids::{Epoch, Term};
use muster_core::unit::{ContentHash, UnitName};

use crate::queue::{Micros, Queue, SECOND};
use crate::random::Random;
use crate::systemd::{self, Behaviour, Files, Later, Out, Systemd};

/// What a unit file of the script is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It runs until it is stopped.
    Runs,
    /// Its start fails.
    Fails,
    /// Its start hangs until systemd gives up.
    Hangs,
    /// Its start lasts for longer than anybody waits.
    Waits,
    /// It ignores being stopped until systemd kills it.
    Unstoppable,
    /// It is started again by systemd, after a long while, when it has ended.
    Restarts,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The unit's file is written, or replaced, with this version of its content.
    Write(&'static str, Kind, u64),
    /// The unit's file is removed.
    Remove(&'static str),
    /// The unit is started, and the end of the job waited for.
    Start(&'static str),
    /// The unit is started, and nothing waited for.
    Ask(&'static str),
    /// The unit is stopped, and the end of the job waited for.
    Stop(&'static str),
    /// The unit's main process is killed.
    Kill(&'static str),
    /// It is forgotten that the unit failed.
    ResetFailed(&'static str),
    /// All files are read again.
    Reload,
    /// How is the unit?
    Read(&'static str),
    /// Does it need a reload, and is it active?
    Check(&'static str),
    /// Which version of its file does it run from?
    Runs(&'static str),
    /// The file of an exclusive unit is written, or replaced, with this version of its content.
    WriteExclusive(&'static str, Kind, u64),
    /// The guard of exclusive units is started, as the agent does it.
    Arm,
    /// The guard ends as it does with the lease.
    End,
    /// The unit is waited for to have ended: how?
    Settle(&'static str),
    /// What has been signalled of the unit since this was last asked?
    Told(&'static str),
}

/// How long the exclusive units of the script may take to stop.
pub const EXCLUSIVE_STOP: Duration = Duration::from_secs(4);

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(name, kind, version) => write!(f, "write {name}, {kind:?}, version {version}"),
            Self::Remove(name) => write!(f, "remove {name}"),
            Self::Start(name) => write!(f, "start {name}"),
            Self::Ask(name) => write!(f, "ask for a start of {name}"),
            Self::Stop(name) => write!(f, "stop {name}"),
            Self::Kill(name) => write!(f, "kill {name}"),
            Self::ResetFailed(name) => write!(f, "reset-failed {name}"),
            Self::Reload => write!(f, "reload"),
            Self::Read(name) => write!(f, "read {name}"),
            Self::Check(name) => write!(f, "check {name}"),
            Self::Runs(name) => write!(f, "which version of {name} runs"),
            Self::WriteExclusive(name, kind, version) => {
                write!(f, "write {name}, exclusive, {kind:?}, version {version}")
            }
            Self::Arm => write!(f, "start the guard"),
            Self::End => write!(f, "end of the guard"),
            Self::Settle(name) => write!(f, "wait for {name}"),
            Self::Told(name) => write!(f, "what was signalled of {name}"),
        }
    }
}

/// What is seen when a call finds no such unit loaded.
pub const NO_SUCH_UNIT: &str = "no such unit";

/// What is seen when nothing of a unit runs.
pub const NOTHING: &str = "nothing";

/// The script.
pub const SCRIPT: &[Step] = {
    use Kind::{Fails, Hangs, Restarts, Runs, Unstoppable, Waits};
    use Step::{
        Arm, Ask, Check, End, Kill, Read, Reload, Remove, ResetFailed, Settle, Start, Stop, Told, Write,
        WriteExclusive,
    };
    const A: &str = "fidelity-a.service";
    const B: &str = "fidelity-b.service";
    const F: &str = "fidelity-f.service";
    const H: &str = "fidelity-h.service";
    const R: &str = "fidelity-r.service";
    const U: &str = "fidelity-u.service";
    const S: &str = "fidelity-s.service";
    const T: &str = "fidelity-t.service";
    const W: &str = "fidelity-w.service";
    const EXCLUSIVE: &str = "fidelity-exclusive.service";
    const FAILS: &str = "fidelity-exclusive-fails.service";
    const RESTARTS: &str = "fidelity-exclusive-restarts.service";
    const STARTS: &str = "fidelity-exclusive-starts.service";
    const STUBBORN: &str = "fidelity-exclusive-stubborn.service";
    &[
        // What is not there.
        Read(A),
        Check(A),
        Start(A),
        Stop(A),
        // A new file is found without a reload, and nothing keeps the unit loaded when it is inactive.
        Write(A, Runs, 1),
        Read(A),
        Check(A),
        Stop(A),
        Start(A),
        Read(A),
        Step::Runs(A),
        Start(A),
        Check(A),
        // A replaced file, without a reload: what was loaded stays, until the unit is forgotten.
        Write(A, Runs, 2),
        Check(A),
        Start(A),
        Step::Runs(A),
        Stop(A),
        Read(A),
        Step::Runs(A),
        Start(A),
        Step::Runs(A),
        Check(A),
        // With a reload, what runs goes on as it was started, until it is started anew.
        Write(A, Runs, 3),
        Reload,
        Check(A),
        Read(A),
        Step::Runs(A),
        Start(A),
        Step::Runs(A),
        Stop(A),
        Stop(A),
        Start(A),
        Step::Runs(A),
        // Its file is removed while it runs.
        Remove(A),
        Read(A),
        Check(A),
        Stop(A),
        Read(A),
        Start(A),
        // The same with a reload in between.
        Write(B, Runs, 1),
        Start(B),
        Remove(B),
        Reload,
        Read(B),
        Check(B),
        Start(B),
        Step::Runs(B),
        Stop(B),
        Read(B),
        Stop(B),
        // What has failed stays loaded, with the file that it had.
        Write(F, Fails, 1),
        Start(F),
        Read(F),
        Check(F),
        Stop(F),
        Read(F),
        Write(F, Fails, 2),
        Check(F),
        Reload,
        Check(F),
        Read(F),
        ResetFailed(F),
        Read(F),
        Stop(F),
        Write(F, Runs, 3),
        Check(F),
        Start(F),
        Read(F),
        Step::Runs(F),
        Kill(F),
        Read(F),
        Step::Runs(F),
        Start(F),
        Read(F),
        Stop(F),
        Read(F),
        // A start that takes too long, and a stop.
        Write(H, Hangs, 1),
        Start(H),
        Read(H),
        ResetFailed(H),
        Read(H),
        Write(U, Unstoppable, 1),
        Start(U),
        Read(U),
        Stop(U),
        Read(U),
        ResetFailed(U),
        Read(U),
        // Between two starts by systemd itself.
        Write(R, Restarts, 1),
        Start(R),
        Kill(R),
        Read(R),
        Check(R),
        Step::Runs(R),
        Ask(R),
        Read(R),
        Step::Runs(R),
        Write(R, Restarts, 2),
        Check(R),
        Stop(R),
        Read(R),
        Start(R),
        Step::Runs(R),
        Stop(R),
        Read(R),
        // What is signalled before the end of a job: of one that has nothing to do, too, and of one that is called off.
        Write(S, Runs, 1),
        Stop(S),
        Told(S),
        Start(S),
        Told(S),
        Start(S),
        Told(S),
        Stop(S),
        Told(S),
        Start(S),
        Told(S),
        Kill(S),
        Told(S),
        ResetFailed(S),
        Told(S),
        Write(T, Fails, 1),
        Start(T),
        Told(T),
        Stop(T),
        Told(T),
        Start(T),
        Told(T),
        ResetFailed(T),
        Write(W, Waits, 1),
        Ask(W),
        Read(W),
        Stop(W),
        Told(W),
        Read(W),
        // Without the guard nothing starts that is bound to it.
        WriteExclusive(EXCLUSIVE, Runs, 1),
        Read(EXCLUSIVE),
        Start(EXCLUSIVE),
        Told(EXCLUSIVE),
        Read(EXCLUSIVE),
        Arm,
        Start(EXCLUSIVE),
        Told(EXCLUSIVE),
        Read(EXCLUSIVE),
        Step::Runs(EXCLUSIVE),
        // It ends, and so does what runs, what is being started, and what waits for its restart.
        WriteExclusive(FAILS, Fails, 1),
        Start(FAILS),
        Told(FAILS),
        WriteExclusive(RESTARTS, Restarts, 1),
        Start(RESTARTS),
        Kill(RESTARTS),
        Read(RESTARTS),
        Told(RESTARTS),
        WriteExclusive(STARTS, Waits, 1),
        Ask(STARTS),
        Read(STARTS),
        End,
        Settle(EXCLUSIVE),
        Told(EXCLUSIVE),
        Step::Runs(EXCLUSIVE),
        Settle(RESTARTS),
        Told(RESTARTS),
        Settle(STARTS),
        Told(STARTS),
        Read(FAILS),
        Start(FAILS),
        Told(FAILS),
        Read(FAILS),
        Check(FAILS),
        Start(EXCLUSIVE),
        Told(EXCLUSIVE),
        Read(EXCLUSIVE),
        Stop(EXCLUSIVE),
        Told(EXCLUSIVE),
        // While something of the last time is left, it waits.
        Arm,
        WriteExclusive(STUBBORN, Unstoppable, 1),
        Start(STUBBORN),
        Read(STUBBORN),
        End,
        Read(STUBBORN),
        Arm,
        Read(STUBBORN),
        Start(EXCLUSIVE),
        Settle(STUBBORN),
        Told(STUBBORN),
        Read(EXCLUSIVE),
        Start(FAILS),
        Told(FAILS),
    ]
};

/// What is signalled of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It is in this active state.
    State(String),
    /// A job of it ended with this result.
    Ended(String),
}

/// What is seen of signals. What a unit goes through on its way may be signalled or not: what counts is what it was said to
/// be before each end of a job, and in the end.
pub fn told(signals: &[Signal]) -> String {
    let mut text = String::new();
    let mut state = NOTHING;
    for signal in signals {
        match signal {
            Signal::State(active) => state = active,
            Signal::Ended(result) => {
                let _ = write!(text, "{state}, the job is over ({result}), ");
            }
        }
    }
    text + state
}

/// Puts the simulated PID 1 through the script, and says what is seen of each step.
pub fn simulated() -> Vec<String> {
    let mut machine = Fake {
        systemd: Systemd::of_units_alone(Random::new(1, "fidelity")),
        files: Files::new(),
        queue: Queue::new(),
        ended: None,
        signals: BTreeMap::new(),
    };
    SCRIPT.iter().map(|step| machine.sees(*step)).collect()
}

struct Fake {
    systemd: Systemd,
    files: Files,
    queue: Queue<Later>,
    /// The result of the job that ended last.
    ended: Option<String>,
    /// What was signalled of each unit.
    signals: BTreeMap<UnitName, Vec<Signal>>,
}

impl Fake {
    fn sees(&mut self, step: Step) -> String {
        // Nothing is so fast that a file is not seen yet.
        self.passes(SECOND);
        let name = |name: &str| UnitName::parse(name).expect("the script has names of units");
        match step {
            Step::Write(unit, kind, version) => self.writes(&name(unit), kind, version, None),
            Step::WriteExclusive(unit, kind, version) => {
                self.writes(&name(unit), kind, version, Some(EXCLUSIVE_STOP))
            }
            Step::Remove(unit) => {
                self.files.remove(&name(unit));
                "done".to_owned()
            }
            Step::Start(unit) => self.job(&Effect::Start(name(unit))),
            Step::Ask(unit) => match self.asks(&Effect::Start(name(unit))) {
                Some(Input::Answered(_, _, Ok(_))) => "done".to_owned(),
                other => format!("{other:?}"),
            },
            Step::Stop(unit) => self.job(&Effect::Stop(name(unit))),
            Step::Kill(unit) => {
                let mut out = Out::default();
                let restarts = matches!(unit, "fidelity-r.service" | "fidelity-exclusive-restarts.service");
                self.systemd.is_killed(&name(unit), restarts, &mut out);
                // Its own restart comes after a long while.
                out.later.clear();
                self.takes(out);
                "done".to_owned()
            }
            Step::ResetFailed(unit) => {
                self.asks(&Effect::ResetFailed(name(unit)));
                "done".to_owned()
            }
            Step::Reload => match self.asks(&Effect::Reload) {
                Some(Input::Reloaded(Ok(()))) => "done".to_owned(),
                other => format!("{other:?}"),
            },
            Step::Read(unit) => match self.asks(&Effect::Read(vec![name(unit)])) {
                Some(Input::Read(read)) => {
                    let seen = read.into_iter().next().and_then(|(_, seen)| seen).expect("it answers");
                    state(&seen.state.load, &seen.state.active, &seen.state.sub)
                }
                other => format!("{other:?}"),
            },
            Step::Check(unit) => match self.asks(&Effect::Check(name(unit))) {
                Some(Input::Checked(_, Some(checked))) => check(checked.outdated, checked.active),
                other => format!("{other:?}"),
            },
            Step::Runs(unit) => match self.systemd.main_process(&name(unit)) {
                Some(version) => runs(version.epoch.counter),
                None => NOTHING.to_owned(),
            },
            Step::Arm => {
                let mut out = Out::default();
                while !self.systemd.start_guard(&mut out) {
                    self.passes(SECOND);
                }
                self.takes(out);
                "done".to_owned()
            }
            Step::End => {
                let mut out = Out::default();
                self.systemd.guard_ends(&mut out);
                self.takes(out);
                "done".to_owned()
            }
            Step::Settle(unit) => {
                self.passes(100 * SECOND);
                self.sees(Step::Read(unit))
            }
            Step::Told(unit) => told(&self.signals.remove(&name(unit)).unwrap_or_default()),
        }
    }

    fn writes(&mut self, unit: &UnitName, kind: Kind, version: u64, exclusive: Option<Duration>) -> String {
        let behaviour = match kind {
            Kind::Runs | Kind::Restarts => None,
            Kind::Fails => Some(Behaviour::Fails),
            Kind::Hangs | Kind::Waits => Some(Behaviour::Hangs),
            Kind::Unstoppable => Some(Behaviour::Unstoppable),
        };
        self.systemd.behaviours.remove(unit);
        self.systemd.behaviours.extend(behaviour.map(|behaviour| (unit.clone(), behaviour)));
        let text = format!("{kind:?} {version}");
        let write = Write {
            name: unit.clone(),
            epoch: Epoch { term: Term(1), counter: version },
            exclusive,
            hash: ContentHash::of(text.as_bytes()),
            content: Some(text.into()),
            fresh: !self.files.contains_key(unit),
        };
        match systemd::write(&mut self.files, &self.systemd, self.queue.now(), &write) {
            Written::Done { .. } => "done".to_owned(),
            other => format!("{other:?}"),
        }
    }

    fn asks(&mut self, call: &Effect) -> Option<Input> {
        let mut out = Out::default();
        let answer = self.systemd.call(&self.files, self.queue.now(), call, &mut out);
        self.takes(out);
        answer
    }

    /// Asks for a job, and waits for its end.
    fn job(&mut self, call: &Effect) -> String {
        self.ended = None;
        match self.asks(call) {
            Some(Input::Answered(_, _, Ok(_))) => {
                self.passes(100 * SECOND);
                self.ended.clone().unwrap_or_else(|| "no end".to_owned())
            }
            Some(Input::Answered(_, _, Err(CallError::NotLoaded))) => NO_SUCH_UNIT.to_owned(),
            other => format!("{other:?}"),
        }
    }

    fn takes(&mut self, out: Out) {
        for signal in out.signals {
            let (unit, signal) = match signal {
                Input::JobRemoved(unit, _, result) => {
                    self.ended = Some(result.clone());
                    (unit, Signal::Ended(result))
                }
                Input::Changed { unit, active, .. } => (unit, Signal::State(active)),
                _ => continue,
            };
            self.signals.entry(unit).or_default().push(signal);
        }
        for (wait, later) in out.later {
            self.queue.after(wait, later);
        }
    }

    fn passes(&mut self, time: Micros) {
        let until = self.queue.now() + time;
        while let Some(later) = self.queue.next_before(until) {
            let mut out = Out::default();
            self.systemd.happens(&self.files, self.queue.now(), later, &mut out);
            self.takes(out);
        }
    }
}

/// What is seen of a unit's state. What it is called while something is under way depends on the sort of unit.
pub fn state(load: &str, active: &str, sub: &str) -> String {
    match active {
        "activating" | "deactivating" => format!("{load}, {active}"),
        _ => format!("{load}, {active} ({sub})"),
    }
}

/// What is seen when a unit is checked.
pub fn check(outdated: bool, active: bool) -> String {
    let reload = if outdated { "needs a reload" } else { "needs no reload" };
    format!("{reload}, is {}active", if active { "" } else { "not " })
}

/// What is seen when this version of a unit's file runs.
pub fn runs(version: u64) -> String {
    format!("version {version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_played_to_its_end() {
        let seen = simulated();
        assert_eq!(seen.len(), SCRIPT.len());
        assert!(seen.iter().all(|seen| seen != "no end"), "{seen:?}");
    }
}
