//! All units of this machine, and what is to be done with them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::io::{CallError, Checked, Effect, Event, Held, Seen, Verb, Write, Written};
use super::unit::{Action, Doing, Files, Reading, Unit, Want, Wanted};
use crate::ids::Epoch;
use crate::message::{Assignment, Assignments, HeldUnit, Removal, ReportedChange, UnitReport};
use crate::state::{Observation, Phase, UnitState};
use crate::time::Time;
use crate::unit::{UnitName, UnitType};

/// How long a job may take before the unit is read again, the first time.
pub(super) const FIRST_READ: Duration = Duration::from_secs(5);
/// The longest time between two such reads.
const LAST_READ: Duration = Duration::from_secs(30);
/// How long to wait after a call that may have had no effect, or a reload that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How many epochs of units that are gone are remembered. They guard against a leader that repeats itself, which is
/// rare and soon; they must not fill the memory of a machine that runs short jobs for years.
const STOPPED_MAX: usize = 1000;

/// What one turn asks of systemd and of the disk.
#[derive(Debug, Default)]
struct Out {
    writes: Vec<Write>,
    removes: Vec<UnitName>,
    resets: Vec<UnitName>,
    stops: Vec<UnitName>,
    starts: Vec<UnitName>,
    checks: Vec<UnitName>,
    explains: Vec<UnitName>,
    reads: BTreeSet<UnitName>,
    reports: Vec<UnitReport>,
    content_missing: bool,
    events: Vec<Event>,
}

/// What the ledger on disk lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unsaved {
    #[default]
    Nothing,
    /// What would be found out again if it were lost.
    Something,
    /// What must be on disk before what this turn asks for is done.
    NowNeeded,
}

/// The reload of systemd that some units wait for.
#[derive(Debug, PartialEq, Eq)]
enum Reload {
    /// None is under way; not before this moment, after a failure.
    Idle(Option<Time>),
    /// One is under way, for these units.
    Running(BTreeSet<UnitName>),
}

#[derive(Debug)]
pub(super) struct Units {
    units: BTreeMap<UnitName, Unit>,
    stopped: BTreeMap<UnitName, Epoch>,
    /// The units to look at in this turn.
    due: BTreeSet<UnitName>,
    /// The units to be read when a moment comes.
    deadlines: BTreeSet<(Time, UnitName)>,
    /// The units whose observation has changed since the leader was last told.
    changed: BTreeSet<UnitName>,
    /// The units of which it is being found out whether they need a reload.
    checking: BTreeSet<UnitName>,
    /// The units that need one.
    outdated: BTreeSet<UnitName>,
    reload: Reload,
    unsaved: Unsaved,
    out: Out,
}

impl Units {
    pub fn new(held: BTreeMap<UnitName, Held>, stopped: BTreeMap<UnitName, Epoch>) -> Self {
        Self {
            units: held.into_iter().map(|(name, held)| (name, Unit::new(Some(held)))).collect(),
            stopped,
            due: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            changed: BTreeSet::new(),
            checking: BTreeSet::new(),
            outdated: BTreeSet::new(),
            reload: Reload::Idle(None),
            unsaved: Unsaved::Nothing,
            out: Out::default(),
        }
    }

    /// The units whose files are here.
    fn kept(&self) -> impl Iterator<Item = (&UnitName, &Unit, &Held)> {
        let kept = self.units.iter().filter(|(_, unit)| !unit.removed);
        kept.filter_map(|(name, unit)| Some((name, unit, unit.held.as_ref()?)))
    }

    /// What the ledger keeps of them.
    pub fn held(&self) -> BTreeMap<UnitName, Held> {
        self.kept().map(|(name, _, held)| (name.clone(), held.clone())).collect()
    }

    pub fn stopped(&self) -> &BTreeMap<UnitName, Epoch> {
        &self.stopped
    }

    /// What of them the ledger does not have yet.
    pub fn take_unsaved(&mut self) -> Unsaved {
        std::mem::take(&mut self.unsaved)
    }

    /// Everything that is held, for Hello; what is listed there need not be reported.
    pub fn hello(&mut self) -> Vec<HeldUnit> {
        self.out.reports.clear();
        let units: Vec<HeldUnit> = self
            .kept()
            .map(|(name, unit, held)| HeldUnit {
                name: name.clone(),
                epoch: held.epoch,
                hash: held.hash,
                target: held.target,
                observation: match &unit.refused {
                    Some((epoch, reason)) if *epoch == held.epoch => Observation::Refused(reason.clone()),
                    _ => Observation::Held { phase: held.phase.clone(), state: unit.state.clone() },
                },
            })
            .collect();
        for unit in &units {
            let refused = self.units.get(&unit.name).and_then(|unit| unit.refused.as_ref());
            if refused.is_none_or(|(epoch, _)| *epoch == unit.epoch) {
                self.changed.remove(&unit.name);
            }
        }
        units
    }

    /// Whether there is something to report.
    pub fn has_report(&self) -> bool {
        !self.changed.is_empty() || !self.out.reports.is_empty()
    }

    /// What has changed since the leader was last told.
    pub fn report(&mut self) -> Vec<UnitReport> {
        let mut reports = std::mem::take(&mut self.out.reports);
        for name in std::mem::take(&mut self.changed) {
            if let Some((epoch, observation)) = self.units.get(&name).and_then(Unit::observation) {
                reports.push(UnitReport { name, epoch, change: ReportedChange::Observed(observation) });
            }
        }
        reports
    }

    /// Whether the leader left out the content of a unit that is not here.
    pub fn take_content_missing(&mut self) -> bool {
        std::mem::take(&mut self.out.content_missing)
    }

    /// No leader hears what happened: it is told in the next Hello what is held then.
    pub fn forget_reports(&mut self) {
        self.out.reports.clear();
    }

    /// When to come back if nothing else happens. While systemd is away there is nothing to come back for.
    pub fn next_timer(&self) -> Option<Time> {
        let reload = match self.reload {
            Reload::Idle(at) if !self.outdated.is_empty() => at,
            _ => None,
        };
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        [reload, deadline].into_iter().flatten().min()
    }

    // What the leader wants.

    pub fn assign(&mut self, assignments: Assignments) {
        if assignments.snapshot {
            let mut unnamed: BTreeSet<UnitName> = self.units.keys().cloned().collect();
            for name in assignments
                .hold
                .iter()
                .map(|hold| &hold.name)
                .chain(assignments.remove.iter().map(|r| &r.name))
            {
                unnamed.remove(name);
            }
            // Nobody has a record of them: they are left alone.
            for name in unnamed {
                if let Some(unit) = self.units.get_mut(&name) {
                    unit.want = None;
                    self.due.insert(name);
                }
            }
        }
        for hold in assignments.hold {
            self.hold(hold);
        }
        for removal in assignments.remove {
            self.remove(removal);
        }
    }

    fn hold(&mut self, hold: Assignment) {
        let Assignment { name, epoch, hash, content, target } = hold;
        if let Some(stopped) = self.stopped.get(&name).copied().filter(|stopped| epoch <= *stopped) {
            return self.stale(name, epoch, stopped);
        }
        let unit = self.units.entry(name.clone()).or_insert_with(|| Unit::new(None));
        let newest = match &unit.want {
            // What is to be removed does not come back under the same epoch.
            Some(Want::Remove(removed)) if epoch <= *removed => Some(*removed),
            // One epoch has one content: another is a mistake of the leader's.
            _ => {
                unit.epoch().filter(|newest| epoch < *newest || epoch == *newest && !unit.may_be(epoch, hash))
            }
        };
        if let Some(newest) = newest {
            return self.stale(name, epoch, newest);
        }
        let mut content = content;
        if let Some(held) = unit.held.as_mut().filter(|held| held.epoch == epoch) {
            content = None;
            if held.target != target {
                held.target = target;
                self.unsaved = self.unsaved.max(Unsaved::Something);
            }
        }
        // Said again: the reason may be gone.
        if unit.refused.take().is_some() {
            unit.verified = false;
        }
        // What has happened to it since it was last stopped was none of the leader's business, and may be now.
        if !matches!(&unit.want, Some(Want::Hold(wanted)) if wanted.epoch == epoch && wanted.target == target)
        {
            unit.stopped = false;
        }
        unit.want = Some(Want::Hold(Wanted { epoch, hash, content, target }));
        self.due.insert(name);
    }

    fn stale(&mut self, name: UnitName, epoch: Epoch, newest: Epoch) {
        self.out.events.push(Event::Stale(name.clone(), newest));
        self.out.reports.push(UnitReport { name, epoch, change: ReportedChange::Stale(newest) });
    }

    fn remove(&mut self, removal: Removal) {
        let Removal { name, epoch } = removal;
        if let Some(unit) = self.units.get_mut(&name) {
            if unit.epoch().is_some_and(|newest| newest > epoch)
                && unit.held.as_ref().is_none_or(|h| h.epoch > epoch)
            {
                // What is here, or will be, is newer. Of the older one nothing is left.
                return self.report_gone(name, epoch);
            }
            if !matches!(&unit.want, Some(Want::Hold(wanted)) if wanted.epoch > epoch) {
                unit.stopped &= matches!(&unit.want, Some(Want::Remove(_)));
                unit.want = Some(Want::Remove(epoch));
            }
            self.due.insert(name);
        } else {
            self.gone(name, epoch);
        }
    }

    /// Nothing of this epoch or an older one is left.
    fn gone(&mut self, name: UnitName, epoch: Epoch) {
        let stopped = self.stopped.entry(name.clone()).or_default();
        *stopped = epoch.max(*stopped);
        self.unsaved = self.unsaved.max(Unsaved::Something);
        if self.stopped.len() > STOPPED_MAX {
            let oldest = self.stopped.iter().min_by_key(|(_, epoch)| **epoch).map(|(name, _)| name.clone());
            oldest.map(|name| self.stopped.remove(&name));
        }
        self.report_gone(name, epoch);
    }

    fn report_gone(&mut self, name: UnitName, epoch: Epoch) {
        self.out.reports.push(UnitReport { name, epoch, change: ReportedChange::Gone });
    }

    // What systemd and the disk say.

    pub fn written(&mut self, now: Time, name: UnitName, outcome: Written) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let Doing::Writing(epoch, hash, target) = unit.doing else { return };
        unit.doing = Doing::Nothing;
        let reason = match outcome {
            Written::Done { known } => {
                unit.files = if known || unit.held.is_some() { Files::Replaced } else { Files::Fresh };
                unit.verified = false;
                unit.stopped = false;
                unit.reloaded = false;
                unit.asked_for_content = false;
                let mut target = target;
                if let Some(Want::Hold(wanted)) = &mut unit.want
                    && wanted.epoch == epoch
                {
                    wanted.content = None;
                    target = wanted.target;
                }
                unit.held = Some(Held { epoch, hash, target, phase: Phase::Loaded, settled: false });
                self.unsaved = Unsaved::NowNeeded;
                self.out.events.push(Event::Holding(name.clone(), epoch));
                None
            }
            Written::NameTaken(by) => Some(format!(
                "the machine's own configuration already has {name} ({by}); rename the unit or remove that file"
            )),
            Written::Failed(reason) => Some(reason),
            Written::Unanswered => {
                unit.doing = Doing::Pausing;
                return self.read_later(now, &name, RETRY);
            }
        };
        if let Some(reason) = reason {
            self.refuse(&name, epoch, reason);
        }
        self.changed.insert(name.clone());
        self.due.insert(name);
    }

    fn refuse(&mut self, name: &UnitName, epoch: Epoch, reason: String) {
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
                unit.removed = true;
                self.unsaved = self.unsaved.max(Unsaved::Something);
                self.due.insert(name);
            }
            Err(reason) => {
                unit.doing = Doing::Pausing;
                self.out.events.push(Event::RemoveFailed(name.clone(), reason));
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
                self.start_failed(name, "systemd finds no file for the unit".into());
            }
            (Err(CallError::Refused(reason)), Verb::Start) => self.start_failed(name, reason),
            (Err(CallError::Refused(reason)), Verb::Stop) => {
                unit.doing = Doing::Pausing;
                self.out.events.push(Event::StopFailed(name.clone(), reason));
                self.read_later(now, &name, FIRST_READ);
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
            Verb::Stop if unit.state.is_some() => self.stop_ended(now, &name),
            Verb::Stop => {
                unit.doing = Doing::Pausing;
                self.read(now, &name);
            }
            Verb::Start => match &*result {
                "done" => self.start_ended(name, Phase::Launched),
                "failed" | "timeout" => self.explain(name, result),
                _ => self.start_failed(name, job_result(&result)),
            },
        }
    }

    fn explain(&mut self, name: UnitName, result: String) {
        if let Some(unit) = self.units.get_mut(&name) {
            unit.doing = Doing::Explaining(result);
            self.out.explains.push(name);
        }
    }

    pub fn explained(&mut self, name: UnitName, why: Option<String>) {
        let Some(unit) = self.units.get(&name) else { return };
        let Doing::Explaining(result) = &unit.doing else { return };
        let reason = match why {
            Some(why) => format!("{}: {why}", job_result(result)),
            None => job_result(result),
        };
        self.start_failed(name, reason);
    }

    fn start_failed(&mut self, name: UnitName, reason: String) {
        self.out.events.push(Event::StartFailed(name.clone(), reason.clone()));
        self.start_ended(name, Phase::StartFailed(reason));
    }

    fn start_ended(&mut self, name: UnitName, phase: Phase) {
        self.set_phase(&name, phase);
        self.nothing_more(name);
    }

    fn stop_ended(&mut self, now: Time, name: &UnitName) {
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.stopped = true;
        let running = !unit.is_inactive();
        if unit.held.as_ref().is_some_and(|held| held.phase == Phase::Stopping) {
            self.set_phase(name, Phase::Loaded);
        }
        self.nothing_more(name.clone());
        if running {
            // Something started it again at once. If it must go, it is stopped again, but not in a tight loop.
            self.read_later(now, name, FIRST_READ);
        }
    }

    fn set_phase(&mut self, name: &UnitName, phase: Phase) {
        if let Some(held) = self.units.get_mut(name).and_then(|unit| unit.held.as_mut())
            && held.phase != phase
        {
            held.phase = phase;
            self.unsaved = self.unsaved.max(Unsaved::Something);
            self.changed.insert(name.clone());
        }
    }

    /// PID 1 has the content of the unit's files, or will have it when it next loads the unit.
    fn settle(&mut self, name: &UnitName) {
        if let Some(unit) = self.units.get_mut(name) {
            unit.files = Files::Current;
            if let Some(held) = unit.held.as_mut().filter(|held| !held.settled) {
                held.settled = true;
                self.unsaved = Unsaved::NowNeeded;
            }
        }
    }

    /// What was under way is over: the unit is looked at again.
    fn nothing_more(&mut self, name: UnitName) {
        if let Some(unit) = self.units.get_mut(&name) {
            unit.doing = Doing::Nothing;
            unit.backoff = FIRST_READ;
            if let Some(at) = unit.deadline.take() {
                self.deadlines.remove(&(at, name.clone()));
            }
            self.due.insert(name);
        }
    }

    /// systemd signals a state.
    pub fn signalled(&mut self, name: UnitName, active: String, sub: String, job: bool) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        if unit.reading == Reading::Yes {
            unit.reading = Reading::Overtaken;
        }
        // The load state is never signalled; what changes its state was loaded.
        let load = unit.state.take().map_or_else(|| "loaded".into(), |state| state.load);
        self.see(name, UnitState { load, active, sub }, job);
    }

    fn see(&mut self, name: UnitName, state: UnitState, job: bool) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let recovered = state.active == "active"
            && unit.held.as_ref().is_some_and(|held| matches!(held.phase, Phase::StartFailed(_)));
        unit.job = job;
        if unit.state.as_ref() != Some(&state) {
            unit.state = Some(state);
            self.changed.insert(name.clone());
        }
        if recovered {
            // systemd itself started it again, and that went well.
            self.set_phase(&name, Phase::Launched);
        }
        self.due.insert(name);
    }

    pub fn seen(&mut self, now: Time, name: UnitName, seen: Option<Seen>) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let overtaken = std::mem::replace(&mut unit.reading, Reading::No) == Reading::Overtaken;
        let Some(Seen { state, job, load_error }) = seen.filter(|_| !overtaken) else {
            // The next read decides, where one is waited for.
            if unit.doing != Doing::Nothing || unit.stopped {
                self.read_later(now, &name, RETRY);
            }
            return;
        };
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
                self.explain(name, "failed".into());
            }
            // A unit that is inactive by now was active, or had nothing to do: the end of its job was missed.
            Doing::Job(Verb::Start, _) => self.start_ended(name, Phase::Launched),
            Doing::UnsureStart if active == "active" => self.start_ended(name, Phase::Launched),
            Doing::Job(Verb::Stop, _) => self.stop_ended(now, &name),
            Doing::UnsureStart | Doing::Pausing => self.nothing_more(name),
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
            Doing::Confirming if gone => self.confirmed(name),
            Doing::Confirming => {
                // It was activated between the end of its stop and the removal of its files.
                self.stop_ended(now, &name);
            }
            Doing::Nothing => unit.stopped = unit.stopped && gone,
            Doing::Writing(..)
            | Doing::Removing
            | Doing::Checking
            | Doing::Calling(..)
            | Doing::Explaining(_) => {}
        }
    }

    /// The unit's files are removed and nothing of it runs.
    fn confirmed(&mut self, name: UnitName) {
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
        unit.removed = false;
        unit.state = None;
        self.nothing_more(name.clone());
        self.out.events.push(Event::Gone(name.clone(), epoch));
        self.gone(name, epoch);
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
                self.out.events.push(Event::ReloadFailed(reason));
                self.outdated.extend(covered);
                self.reload = Reload::Idle(Some(now + FIRST_READ));
            }
        }
    }

    // Reading.

    /// Reads everything that is held.
    pub fn read_all(&mut self, now: Time) {
        for name in self
            .units
            .iter()
            .filter(|(_, unit)| unit.held.is_some())
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
        {
            self.read(now, &name);
        }
    }

    /// systemd may have lost what was asked of it and may have told what nobody heard: everything is looked at again.
    pub fn systemd_up(&mut self, now: Time) {
        self.read_all(now);
        self.due.extend(self.units.keys().cloned());
    }

    fn read(&mut self, now: Time, name: &UnitName) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if unit.reading == Reading::No {
            unit.reading = Reading::Yes;
            self.out.reads.insert(name.clone());
        }
        if unit.doing != Doing::Nothing {
            self.read_again(now, name);
        }
    }

    /// Reads it; the answer to an earlier question will not do.
    fn read_anew(&mut self, name: &UnitName) {
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.reading = if unit.reading == Reading::No { Reading::Yes } else { Reading::Overtaken };
        if unit.reading == Reading::Yes {
            self.out.reads.insert(name.clone());
        }
    }

    /// Reads it again after a while, and then after twice that.
    fn read_again(&mut self, now: Time, name: &UnitName) {
        if let Some(unit) = self.units.get_mut(name) {
            let wait = unit.backoff;
            unit.backoff = (wait * 2).min(LAST_READ);
            self.read_later(now, name, wait);
        }
    }

    fn read_later(&mut self, now: Time, name: &UnitName, wait: Duration) {
        if let Some(unit) = self.units.get_mut(name) {
            if let Some(at) = unit.deadline.replace(now + wait) {
                self.deadlines.remove(&(at, name.clone()));
            }
            self.deadlines.insert((now + wait, name.clone()));
        }
    }

    // What is to be done.

    /// Everything that is to be done now, in order.
    pub fn effects(&mut self, now: Time, systemd_up: bool, effects: &mut Vec<Effect>) {
        if systemd_up {
            while let Some((at, name)) = self.deadlines.first().cloned().filter(|(at, _)| *at <= now) {
                self.deadlines.remove(&(at, name.clone()));
                if let Some(unit) = self.units.get_mut(&name) {
                    unit.deadline = None;
                    self.read(now, &name);
                }
            }
            while let Some(name) = self.due.pop_first() {
                self.advance(name);
            }
            self.start_reload(now, effects);
        }
        let Out { reports, content_missing, .. } = &mut self.out;
        let kept =
            Out { reports: std::mem::take(reports), content_missing: *content_missing, ..Out::default() };
        let Out { writes, removes, resets, stops, mut starts, checks, explains, reads, events, .. } =
            std::mem::replace(&mut self.out, kept);
        // A service that runs keeps its socket from starting: sockets go first, the rest by name.
        starts.sort_by_key(|name| name.unit_type() != UnitType::Socket);
        if !writes.is_empty() {
            effects.push(Effect::Write(writes));
        }
        if !removes.is_empty() {
            effects.push(Effect::Remove(removes));
        }
        effects.extend(resets.into_iter().map(Effect::ResetFailed));
        effects.extend(stops.into_iter().map(Effect::Stop));
        effects.extend(starts.into_iter().map(Effect::Start));
        effects.extend(checks.into_iter().map(Effect::Check));
        effects.extend(explains.into_iter().map(Effect::Explain));
        if !reads.is_empty() {
            effects.push(Effect::Read(reads.into_iter().collect()));
        }
        effects.extend(events.into_iter().map(Effect::Event));
    }

    fn start_reload(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Reload::Idle(not_before) = self.reload else { return };
        // One reload for as many units as possible: those that are being asked about may need it too.
        if self.outdated.is_empty() || !self.checking.is_empty() || not_before.is_some_and(|at| now < at) {
            return;
        }
        self.reload = Reload::Running(std::mem::take(&mut self.outdated));
        effects.push(Effect::Reload);
    }

    fn advance(&mut self, name: UnitName) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let action = unit.next();
        if matches!(action, Action::Write | Action::Remove) {
            self.outdated.remove(&name);
        }
        match action {
            Action::Nothing => {}
            Action::Settle => {
                self.set_phase(&name, Phase::Loaded);
                self.advance(name);
            }
            Action::Write => {
                let Some(Want::Hold(wanted)) = &mut unit.want else { return };
                let content = wanted.content.clone();
                let (epoch, hash, target) = (wanted.epoch, wanted.hash, wanted.target);
                if content.is_none() && unit.held.as_ref().is_none_or(|held| held.hash != hash) {
                    // The leader may have thought that the copy before it was still here.
                    if !std::mem::replace(&mut unit.asked_for_content, true) {
                        self.out.content_missing = true;
                        return;
                    }
                    let reason =
                        "the scheduler sent no content for a unit file that this machine does not have";
                    return self.refuse(&name, epoch, reason.into());
                }
                unit.doing = Doing::Writing(epoch, hash, target);
                // PID 1 keeps a failed unit, with its old content.
                if unit.is_failed() {
                    self.out.resets.push(name.clone());
                }
                let fresh = unit.held.is_none();
                self.out.writes.push(Write { name, epoch, hash, content, fresh });
            }
            Action::Check => {
                unit.doing = Doing::Checking;
                self.checking.insert(name.clone());
                self.out.checks.push(name);
            }
            Action::Verify => {
                unit.doing = Doing::Verifying;
                self.read_anew(&name);
            }
            Action::Start => {
                unit.doing = Doing::Calling(Verb::Start, None);
                unit.verified = true;
                unit.stopped = false;
                // Before the start: whatever becomes of the call, what runs from now on has this content.
                self.settle(&name);
                self.out.starts.push(name);
            }
            Action::Stop => {
                unit.doing = Doing::Calling(Verb::Stop, None);
                self.out.stops.push(name.clone());
                self.set_phase(&name, Phase::Stopping);
            }
            Action::Remove => {
                unit.doing = Doing::Removing;
                if unit.is_failed() {
                    self.out.resets.push(name.clone());
                }
                self.out.removes.push(name);
            }
            Action::Confirm => {
                unit.doing = Doing::Confirming;
                self.read_anew(&name);
            }
            Action::Forget => self.forget(name),
        }
    }

    /// A unit of which nothing is here and that nobody wants here.
    fn forget(&mut self, name: UnitName) {
        let Some(unit) = self.units.remove(&name) else { return };
        if let Some(at) = unit.deadline {
            self.deadlines.remove(&(at, name.clone()));
        }
        self.changed.remove(&name);
        self.outdated.remove(&name);
        if let Some(Want::Remove(epoch)) = unit.want
            && self.stopped.get(&name).is_none_or(|stopped| *stopped < epoch)
        {
            self.gone(name, epoch);
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
