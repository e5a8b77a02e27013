//! What systemd and the disk say of units.

use super::{FIRST_READ, RETRY, Reload, SOON, Units, Unsaved};
use crate::agent::io::{CallError, Checked, Event, Held, Seen, Verb, Written};
use crate::agent::unit::{Doing, Files, Reading, Unit, Want};
use crate::ids::Epoch;
use crate::planted::{self, Fault};
use crate::state::{Failure, Phase, UnitState};
use crate::time::Time;
use crate::unit::UnitName;

impl Units {
    pub fn written(&mut self, now: Time, name: UnitName, outcome: Written) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let Doing::Writing(mut writing) = unit.doing else { return };
        let epoch = writing.epoch;
        unit.doing = Doing::Nothing;
        let tried = unit.tried.take().is_some();
        let reason = match outcome {
            Written::Done { known } => {
                let known = (known || unit.held.is_some()) && !planted::is(Fault::ReplacedTakenForNew);
                unit.files = if known { Files::Replaced } else { Files::Fresh };
                unit.verified = false;
                unit.stopped = false;
                unit.remembered = false;
                unit.reloaded = false;
                unit.hindrance = None;
                unit.asked_for_content = false;
                if let Some(Want::Hold(wanted)) = &mut unit.want
                    && wanted.epoch == epoch
                {
                    wanted.content = None;
                    writing.target = wanted.target;
                }
                // What is new PID 1 has or will have: so that the ledger need not be saved again before each start.
                unit.held = Some(Held { settled: !known, ..writing.held() });
                self.unsaved = Unsaved::NowNeeded;
                if planted::is(Fault::LedgerLate) {
                    self.unsaved = Unsaved::Something;
                }
                self.out.events.push(Event::Holding(name.clone(), epoch));
                None
            }
            Written::NameTaken(by) => Some(format!(
                "the machine's own configuration already has {name} ({by}); rename the unit or remove that file"
            )),
            Written::Failed(reason) => Some(reason),
            Written::Unanswered => {
                unit.doing = Doing::Pausing;
                unit.tried = Some(writing).filter(|_| unit.held.is_none() || tried);
                return self.read_later(now, &name, RETRY);
            }
        };
        if let Some(reason) = reason {
            self.refuse(&name, epoch, reason);
        }
        self.changed.insert(name.clone());
        self.due.insert(name);
    }

    pub(super) fn refuse(&mut self, name: &UnitName, epoch: Epoch, reason: String) {
        if let Some(unit) = self.units.get_mut(name) {
            self.out.events.push(Event::UnitRefused(name.clone(), reason.clone()));
            unit.refused = Some((epoch, reason));
            // It comes again with the next word about the unit.
            if let Some(Want::Hold(wanted)) = &mut unit.want {
                wanted.content = None;
            }
            self.changed.insert(name.clone());
        }
    }

    pub fn removed(&mut self, now: Time, name: UnitName, outcome: Result<(), String>) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        if unit.doing != Doing::Removing {
            return;
        }
        match outcome {
            Ok(()) => {
                unit.doing = Doing::Nothing;
                unit.tried = None;
                unit.removed = true;
                self.unsaved = self.unsaved.max(Unsaved::Something);
                self.hinder(&name, None);
                self.due.insert(name);
            }
            Err(reason) => {
                unit.doing = Doing::Pausing;
                let why = format!("its files cannot be removed: {reason}");
                self.out.events.push(Event::RemoveFailed(name.clone(), reason));
                self.hinder(&name, Some(why));
                self.read_later(now, &name, RETRY);
            }
        }
    }

    pub fn answered(&mut self, now: Time, name: UnitName, verb: Verb, answer: Result<u32, CallError>) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let Doing::Calling(asked, ended) = &mut unit.doing else { return };
        if *asked != verb {
            return;
        }
        if unit.reading == Reading::Yes {
            // It may tell of the time before the call.
            unit.reading = Reading::Overtaken;
        }
        match (answer, verb) {
            (Ok(job), _) => {
                let ended = ended.take().filter(|(number, _)| *number == job);
                unit.doing = Doing::Job(verb, Some(job));
                unit.job = true;
                if verb == Verb::Start {
                    self.set_phase(&name, Phase::Starting);
                }
                match ended {
                    Some((_, result)) => self.job_ended(now, name, verb, result),
                    None if planted::is(Fault::SignalAwaited) => {}
                    None => self.read_later(now, &name, FIRST_READ),
                }
            }
            (Err(CallError::NotLoaded), Verb::Stop) => {
                unit.job = false;
                unit.state =
                    Some(UnitState { load: "loaded".into(), active: "inactive".into(), sub: "dead".into() });
                self.changed.insert(name.clone());
                self.stop_ended(now, &name);
            }
            (Err(CallError::NotLoaded), Verb::Start) if !unit.reloaded => {
                // systemd looks for new files only where it sees that a directory has changed since it last looked,
                // and its clock is coarse.
                unit.files = Files::Outdated;
                self.outdated.insert(name.clone());
                self.nothing_more(name);
            }
            (Err(CallError::NotLoaded), Verb::Start) => {
                let failure = Failure::without_result("systemd finds no file for the unit");
                self.start_failed(name, failure);
            }
            (Err(CallError::Refused(reason) | CallError::NotAsked(reason)), Verb::Start) => {
                self.start_failed(name, Failure::without_result(reason));
            }
            (Err(CallError::Refused(reason) | CallError::NotAsked(reason)), Verb::Stop) => {
                unit.doing = Doing::Pausing;
                let why = format!("systemd refuses to stop it: {reason}");
                self.out.events.push(Event::StopFailed(name.clone(), reason));
                self.hinder(&name, Some(why));
                self.read_later(now, &name, FIRST_READ);
            }
            (Err(CallError::Unanswered(_)), Verb::Stop) if planted::is(Fault::UnansweredStopCounts) => {
                self.stop_ended(now, &name);
            }
            (Err(CallError::Unanswered(_)), _) => {
                unit.doing = if verb == Verb::Start { Doing::UnsureStart } else { Doing::Pausing };
                self.read_later(now, &name, RETRY);
            }
        }
    }

    pub fn job_removed(&mut self, now: Time, name: UnitName, job: u32, result: String) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        match &mut unit.doing {
            Doing::Calling(_, ended) => *ended = Some((job, result)),
            Doing::Job(verb, number) if number.is_none_or(|number| number == job) => {
                let verb = *verb;
                self.job_ended(now, name, verb, result);
            }
            _ => {}
        }
    }

    fn job_ended(&mut self, now: Time, name: UnitName, verb: Verb, result: String) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        unit.job = false;
        match verb {
            // systemd signals a state before the end of the job that made it.
            Verb::Stop if unit.state.is_some() => {
                self.stop_ended(now, &name);
                // A mount that is in use, for one.
                let lasts = self.units.get(&name).is_some_and(|unit| unit.must_go() && !unit.is_inactive());
                if lasts && result != "done" {
                    self.hinder(&name, Some(format!("its stop job failed ({result})")));
                }
            }
            Verb::Stop => {
                unit.doing = Doing::Pausing;
                self.read(now, &name);
            }
            Verb::Start => match &*result {
                "done" => self.start_ended(name, Phase::Launched),
                "failed" | "timeout" => self.explain(name, Some(result)),
                _ => self.start_failed(name, Failure { reason: job_result(&result), result }),
            },
        }
    }

    pub(super) fn explain(&mut self, name: UnitName, result: Option<String>) {
        if let Some(unit) = self.units.get_mut(&name) {
            unit.doing = Doing::Explaining(result);
            self.out.explains.push(name);
        }
    }

    pub fn explained(&mut self, name: UnitName, why: Option<Failure>) {
        let Some(unit) = self.units.get(&name) else { return };
        let Doing::Explaining(job) = &unit.doing else { return };
        let why = why.unwrap_or_default();
        let Some(job) = job else { return self.given_up(name, why) };
        let reason = match &*why.reason {
            "" => job_result(job),
            reason => format!("{}: {reason}", job_result(job)),
        };
        let result = if why.result.is_empty() { job.clone() } else { why.result };
        self.start_failed(name, Failure { result, reason });
    }

    pub(super) fn start_failed(&mut self, name: UnitName, failure: Failure) {
        self.out.events.push(Event::StartFailed(name.clone(), failure.reason.clone()));
        self.start_ended(name, Phase::StartFailed(failure));
    }

    /// systemd gave the unit up after it had been started, unless it has been started again since.
    fn given_up(&mut self, name: UnitName, failure: Failure) {
        if self.units.get(&name).is_some_and(|unit| unit.is_failed() && !unit.job) {
            self.out.events.push(Event::Failed(name.clone(), failure.reason.clone()));
            self.set_phase(&name, Phase::Failed(failure));
        }
        self.nothing_more(name);
    }

    fn start_ended(&mut self, name: UnitName, phase: Phase) {
        // A start that failed may have failed for the file: whether systemd accepts that is still to be seen.
        if let Some(unit) = self.units.get_mut(&name).filter(|_| phase == Phase::Launched) {
            unit.verified = true;
        }
        self.set_phase(&name, phase);
        self.doubt(&name);
        self.nothing_more(name);
    }

    fn stop_ended(&mut self, now: Time, name: &UnitName) {
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.stopped = true;
        let running = !unit.is_inactive();
        if !(running && unit.must_go()) {
            self.hinder(name, None);
        }
        let Some(unit) = self.units.get(name) else { return };
        if unit.held.as_ref().is_some_and(|held| held.phase == Phase::Stopping) {
            self.set_phase(name, Phase::Loaded);
        }
        self.nothing_more(name.clone());
        if running {
            // Something started it again at once. If it must go, it is stopped again, but not in a tight loop.
            self.read_later(now, name, FIRST_READ);
        }
    }

    /// Notes why the unit could not be stopped or removed, or that nothing is in the way of that any more.
    pub(super) fn hinder(&mut self, name: &UnitName, why: Option<String>) {
        if let Some(unit) = self.units.get_mut(name).filter(|unit| unit.hindrance != why) {
            unit.hindrance = why;
            self.changed.insert(name.clone());
        }
    }

    pub(super) fn set_phase(&mut self, name: &UnitName, phase: Phase) {
        if let Some(held) = self.units.get_mut(name).and_then(|unit| unit.held.as_mut())
            && held.phase != phase
        {
            held.phase = phase;
            self.unsaved = self.unsaved.max(Unsaved::Something);
            self.changed.insert(name.clone());
        }
    }

    /// PID 1 has the content of the unit's files, or will have it when it next loads the unit.
    pub(super) fn settle(&mut self, name: &UnitName) {
        if let Some(unit) = self.units.get_mut(name) {
            unit.files = Files::Current;
            if let Some(held) = unit.held.as_mut().filter(|held| !held.settled) {
                held.settled = true;
                self.unsaved = Unsaved::NowNeeded;
                if planted::is(Fault::LedgerLate) {
                    self.unsaved = Unsaved::Something;
                }
            }
        }
    }

    /// What was under way is over: the unit is looked at again.
    pub(super) fn nothing_more(&mut self, name: UnitName) {
        if let Some(unit) = self.units.get_mut(&name) {
            if std::mem::replace(&mut unit.doing, Doing::Nothing) == Doing::UnsureStart {
                // It was told as starting, and written down so.
                self.changed.insert(name.clone());
                self.unsaved = self.unsaved.max(Unsaved::Something);
            }
            unit.backoff = FIRST_READ;
            if let Some(at) = unit.deadline.take() {
                self.deadlines.remove(&(at, name.clone()));
            }
            self.due.insert(name);
        }
    }

    /// systemd signals a state.
    pub fn signalled(&mut self, now: Time, name: &UnitName, active: String, sub: String, job: bool) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if unit.reading == Reading::Yes {
            unit.reading = Reading::Overtaken;
        }
        // The load state is never signalled; what changes its state was loaded.
        let load = unit.state.take().map_or_else(|| "loaded".into(), |state| state.load);
        self.see(name.clone(), UnitState { load, active, sub }, job);
        let again = |unit: &Unit| unit.stopped && unit.doing == Doing::Nothing && !unit.is_inactive();
        if self.units.get(name).is_some_and(again) {
            // Something has started it since its stop: if it must go, it is stopped again, but not in a tight loop.
            self.read_later(now, name, FIRST_READ);
        }
    }

    fn see(&mut self, name: UnitName, state: UnitState, job: bool) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let recovered = state.active == "active"
            && unit
                .held
                .as_ref()
                .is_some_and(|held| matches!(held.phase, Phase::StartFailed(_) | Phase::Failed(_)));
        unit.job = job;
        if unit.state.as_ref() != Some(&state) {
            unit.state = Some(state);
            self.changed.insert(name.clone());
        }
        let active = !unit.is_inactive();
        if let Some(held) = unit.held.as_mut().filter(|held| active && held.ended) {
            held.ended = false;
            self.unsaved = self.unsaved.max(Unsaved::Something);
        }
        self.doubt(&name);
        if recovered {
            // systemd itself started it again, and that went well.
            self.set_phase(&name, Phase::Launched);
        }
        self.due.insert(name);
    }

    pub fn seen(&mut self, now: Time, name: UnitName, seen: Option<Seen>) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let overtaken = std::mem::replace(&mut unit.reading, Reading::No) == Reading::Overtaken;
        let unanswered = seen.is_none();
        let Some(Seen { state, job, load_error }) = seen.filter(|_| !overtaken) else {
            // The next read decides, where one is waited for.
            if unanswered {
                self.read_later(now, &name, RETRY);
            } else if unit.doing != Doing::Nothing || unit.stopped {
                // What has changed meanwhile was mostly the last of it.
                let again = std::mem::replace(&mut unit.hurried, true);
                self.read_later(now, &name, if again { RETRY } else { SOON });
            }
            return;
        };
        unit.hurried = false;
        let active = state.active.clone();
        let gone = matches!(&*active, "inactive" | "failed") && !job;
        self.see(name.clone(), state, job);
        let Some(unit) = self.units.get_mut(&name) else { return };
        match unit.doing.clone() {
            Doing::Job(..) if job => self.read_again(now, &name),
            Doing::UnsureStart if job => {
                unit.doing = Doing::Job(Verb::Start, None);
                self.set_phase(&name, Phase::Starting);
                self.read_again(now, &name);
            }
            Doing::Job(Verb::Start, _) if matches!(&*active, "failed" | "activating") => {
                self.explain(name, Some("failed".into()));
            }
            // A unit that is inactive by now was active, or had nothing to do: the end of its job was missed.
            Doing::Job(Verb::Start, _) => self.start_ended(name, Phase::Launched),
            Doing::UnsureStart if active == "active" => self.start_ended(name, Phase::Launched),
            Doing::Job(Verb::Stop, _) => self.stop_ended(now, &name),
            Doing::UnsureStart | Doing::Pausing => {
                unit.stopped = unit.stopped && gone;
                self.nothing_more(name);
            }
            Doing::Verifying => {
                let reason = load_error.or_else(|| {
                    let load = unit
                        .state
                        .as_ref()
                        .map(|state| state.load.clone())
                        .filter(|load| load != "loaded")?;
                    Some(format!("systemd does not load the unit: its load state is {load}"))
                });
                unit.verified = true;
                let epoch = unit.held.as_ref().map(|held| held.epoch);
                self.changed.insert(name.clone());
                self.settle(&name);
                if let (Some(reason), Some(epoch)) = (reason, epoch) {
                    self.refuse(&name, epoch, reason);
                }
                self.nothing_more(name);
            }
            Doing::Confirming if gone && unit.is_loaded_still() => self.see_it_forgotten(now, &name),
            Doing::Confirming if gone || planted::is(Fault::GoneUnconfirmed) => self.confirmed(name),
            Doing::Confirming => {
                // It was activated between the end of its stop and the removal of its files.
                self.stop_ended(now, &name);
            }
            Doing::Nothing => unit.stopped = unit.stopped && gone,
            Doing::Writing(..)
            | Doing::Adopting(..)
            | Doing::Releasing
            | Doing::Removing
            | Doing::Checking
            | Doing::Calling(..)
            | Doing::Explaining(_) => {}
        }
    }

    /// PID 1 would start the unit from memory, without any files.
    fn see_it_forgotten(&mut self, now: Time, name: &UnitName) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if unit.files == Files::Replaced {
            unit.files = Files::Outdated;
            self.outdated.insert(name.clone());
            self.nothing_more(name.clone());
        } else if std::mem::replace(&mut unit.remembered, true) {
            // What refers to it may be about to go, too, and a reload takes its time.
            unit.files = Files::Replaced;
            self.read_later(now, name, RETRY);
        } else {
            // Mostly PID 1 has only not got round to it.
            self.read_later(now, name, SOON);
        }
    }

    /// The unit's files are removed and nothing of it runs.
    pub(super) fn confirmed(&mut self, name: UnitName) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let removed = match &unit.want {
            Some(Want::Remove(epoch)) => Some(*epoch),
            _ => None,
        };
        let epoch = removed.max(unit.held.as_ref().map(|held| held.epoch)).unwrap_or_default();
        if unit.is_failed() {
            self.out.resets.push(name.clone());
        }
        unit.held = None;
        unit.release = false;
        unit.removed = false;
        unit.remembered = false;
        unit.ending = false;
        unit.hindrance = None;
        unit.state = None;
        // Somebody else has removed the files of the copy that is wanted: what is said to be gone does not come back.
        let wanted = match &unit.want {
            Some(Want::Hold(wanted)) if wanted.epoch <= epoch && !planted::is(Fault::StoppedForgotten) => {
                Some(wanted.epoch)
            }
            _ => None,
        };
        if wanted.is_some() {
            unit.want = None;
        }
        self.nothing_more(name.clone());
        self.out.events.push(Event::Gone(name.clone(), epoch));
        self.gone(name.clone(), epoch);
        if let Some(wanted) = wanted {
            self.stale(name, wanted, epoch);
        }
    }

    pub fn checked(&mut self, now: Time, name: UnitName, answer: Option<Checked>) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        if unit.doing != Doing::Checking {
            return;
        }
        self.checking.remove(&name);
        let Some(Checked { outdated, active }) = answer else {
            unit.doing = Doing::Pausing;
            return self.read_later(now, &name, RETRY);
        };
        unit.doing = Doing::Nothing;
        if outdated {
            unit.files = Files::Outdated;
            self.outdated.insert(name.clone());
        } else if active {
            // Somebody else has reloaded systemd since: that is as good as ours.
            unit.files = Files::Reloaded;
        } else {
            self.settle(&name);
        }
        self.due.insert(name);
    }

    pub fn reloaded(&mut self, now: Time, outcome: Result<(), String>) {
        let Reload::Running(covered) = std::mem::replace(&mut self.reload, Reload::Idle(None)) else {
            return;
        };
        match outcome {
            Ok(()) => {
                for name in covered {
                    if let Some(unit) = self.units.get_mut(&name).filter(|unit| unit.files == Files::Outdated)
                    {
                        unit.files = Files::Reloaded;
                        unit.reloaded = true;
                        self.due.insert(name);
                    }
                }
            }
            Err(reason) => {
                let why = format!("systemd cannot forget it without a reload: {reason}");
                for name in &covered {
                    if self.units.get(name).is_some_and(|unit| unit.removed) {
                        self.hinder(name, Some(why.clone()));
                    }
                }
                self.out.events.push(Event::ReloadFailed(reason));
                self.outdated.extend(covered);
                self.reload = Reload::Idle(Some(now + FIRST_READ));
            }
        }
    }
}

/// The result of a job, in systemd's words with a few of ours around them.
fn job_result(result: &str) -> String {
    match result {
        "dependency" => "start job failed: a unit that it requires could not be started (dependency)".into(),
        "timeout" => "start job failed: it took too long (timeout)".into(),
        "failed" => "start job failed".into(),
        "canceled" => "start job was canceled".into(),
        "skipped" => "start job was skipped".into(),
        _ => format!("start job failed ({result})"),
    }
}
