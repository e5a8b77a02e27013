//! All units of this machine, and what is to be done with them.

mod adopting;
mod answers;
mod exclusive;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::window::Window;
use super::io::{Effect, Event, Held, Verb, Write};
use super::unit::{Action, Doing, Files, Reading, Unit, Want, Wanted, Writing};
use crate::ids::Epoch;
use crate::machine::Capacity;
use crate::message::{Assignment, Assignments, HeldUnit, Removal, ReportedChange, UnitReport};
use crate::planted::{self, Fault};
use crate::state::{Observation, Phase, Target};
use crate::time::Time;
use crate::unit::{UnitName, UnitType};

/// How long a job may take before the unit is read again, the first time.
pub(super) const FIRST_READ: Duration = Duration::from_secs(5);
/// The longest time between two such reads.
const LAST_READ: Duration = Duration::from_secs(30);
/// How long to wait for what PID 1 is about to do: forget a unit that has ended and whose files are gone, or tell the last of
/// what changed while it was asked.
const SOON: Duration = Duration::from_millis(20);
/// How long to wait after a call that may have had no effect, or a reload that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How many epochs of units that are gone are remembered. They guard against a leader that repeats itself, which is
/// rare and soon; they must not fill the memory of a machine that runs short jobs for years.
const STOPPED_MAX: usize = 1000;

/// What one turn asks of systemd and of the disk.
#[derive(Debug, Default)]
struct Out {
    writes: Vec<Write>,
    adopts: Vec<Write>,
    releases: Vec<UnitName>,
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
    starts: Window,
    stops: Window,
    /// All exclusive units, and perhaps some that were.
    exclusive: BTreeSet<UnitName>,
    /// Whether these may be started.
    exclusive_may_start: bool,
    /// Whether some of them may have ended with the guard, of which nobody has heard yet.
    doubt: bool,
    unsaved: Unsaved,
    out: Out,
}

fn is_socket(name: &UnitName) -> bool {
    name.unit_type() == UnitType::Socket
}

impl Units {
    pub fn new(
        held: BTreeMap<UnitName, Held>,
        stopped: BTreeMap<UnitName, Epoch>,
        capacity: Capacity,
    ) -> Self {
        Self {
            exclusive: held
                .iter()
                .filter(|(_, held)| held.exclusive.is_some())
                .map(|(name, _)| name.clone())
                .collect(),
            exclusive_may_start: false,
            doubt: false,
            units: held.into_iter().map(|(name, held)| (name, Unit::new(Some(held)))).collect(),
            stopped,
            due: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            changed: BTreeSet::new(),
            checking: BTreeSet::new(),
            outdated: BTreeSet::new(),
            reload: Reload::Idle(None),
            starts: Window::starts(capacity),
            stops: Window::stops(),
            unsaved: Unsaved::Nothing,
            out: Out::default(),
        }
    }

    /// The units whose files are here, as a whole.
    fn kept(&self) -> impl Iterator<Item = (&UnitName, &Unit, &Held)> {
        let kept = self.units.iter().filter(|(_, unit)| !unit.removed && unit.tried.is_none());
        kept.filter_map(|(name, unit)| Some((name, unit, unit.held.as_ref()?)))
    }

    /// What the ledger keeps of them.
    pub fn held(&self) -> BTreeMap<UnitName, Held> {
        let held = |(name, unit): (&UnitName, &Unit)| {
            let mut held = Held { removed: unit.removed, releasing: unit.release, ..unit.held.clone()? };
            if unit.may_have_begun() {
                // Also where it is to be stopped by now: the next agent must know that it may run.
                held.target = Target::Launched;
            }
            Some((name.clone(), held))
        };
        self.units.iter().filter_map(held).collect()
    }

    /// Those whose first files are being written.
    pub fn writing(&self) -> BTreeMap<UnitName, Held> {
        let writing = |(name, unit): (&UnitName, &Unit)| match (&unit.doing, &unit.held) {
            (Doing::Writing(writing), None) => Some((name.clone(), writing.held())),
            (Doing::Adopting(writing), None) => Some((name.clone(), writing.adopted())),
            _ => None,
        };
        self.units.iter().filter_map(writing).collect()
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
                    _ => unit.observed(held),
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

    /// Whether a reload was asked for and has not ended.
    pub fn is_reloading(&self) -> bool {
        matches!(self.reload, Reload::Running(_))
    }

    /// How many starts and stops are under way.
    pub fn jobs(&self) -> usize {
        let has_job =
            |verb| move |name: &UnitName| self.units.get(name).is_some_and(|unit| unit.has_job(verb));
        self.starts.jobs(has_job(Verb::Start)) + self.stops.jobs(has_job(Verb::Stop))
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
            // While some are being asked about, their answers are waited for.
            Reload::Idle(at) if !self.outdated.is_empty() && self.checking.is_empty() => at,
            _ => None,
        };
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let windows = [self.starts.next_timer(), self.stops.next_timer()];
        [reload, deadline].into_iter().chain(windows).flatten().min()
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
            // What it was to hold instead, this leader does not know of.
            for removal in &assignments.remove {
                if let Some(unit) = self.units.get_mut(&removal.name)
                    && !matches!(unit.doing, Doing::Writing(..))
                    && matches!(&unit.want, Some(Want::Hold(wanted)) if wanted.epoch > removal.epoch)
                {
                    unit.want = None;
                    unit.refused = None;
                }
            }
            // Nobody has a record of them: they are left alone.
            for name in unnamed {
                if let Some(unit) = self.units.get_mut(&name) {
                    let remove = planted::is(Fault::UnnamedRemoved).then(|| unit.epoch()).flatten();
                    unit.want = remove.map(Want::Remove);
                    // It is tried no more.
                    unit.hindrance = None;
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
        let Assignment { name, epoch, hash, content, target, exclusive, adopt } = hold;
        let stopped = self.stopped.get(&name).copied().filter(|_| !planted::is(Fault::StoppedForgotten));
        if let Some(stopped) = stopped.filter(|stopped| epoch <= *stopped) {
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
        if let Some(newest) = newest.filter(|_| !planted::is(Fault::EpochNotCompared)) {
            return self.stale(name, epoch, newest);
        }
        let mut content = content;
        let in_part = unit.tried.is_some();
        if let Some(held) = unit.held.as_mut().filter(|held| held.epoch == epoch && !in_part) {
            content = None;
            if held.target != target {
                held.target = target;
                // Before it is started: the next agent must know that it may run.
                let starts = target == Target::Launched && !planted::is(Fault::LedgerLate);
                self.unsaved = self.unsaved.max(if starts { Unsaved::NowNeeded } else { Unsaved::Something });
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
        unit.want = Some(Want::Hold(Wanted { epoch, hash, content, target, exclusive, adopt }));
        if exclusive.is_some() {
            self.exclusive.insert(name.clone());
        }
        self.due.insert(name);
    }

    pub(super) fn stale(&mut self, name: UnitName, epoch: Epoch, newest: Epoch) {
        self.out.events.push(Event::Stale(name.clone(), newest));
        self.out.reports.push(UnitReport { name, epoch, change: ReportedChange::Stale(newest) });
    }

    fn remove(&mut self, removal: Removal) {
        let Removal { name, epoch, release } = removal;
        if release {
            return self.release(name, epoch);
        }
        if let Some(unit) = self.units.get_mut(&name) {
            if unit.epoch().is_some_and(|newest| newest > epoch)
                && unit.held.as_ref().is_none_or(|h| h.epoch > epoch)
            {
                // What is here, or will be, is newer. Of the older one nothing is left.
                return self.report_gone(name, epoch);
            }
            if unit.held.is_none() && unit.tried.is_none() && unit.doing == Doing::Nothing {
                // Also where it has gone before, and an old store does not know.
                unit.want = None;
                self.forget(name.clone());
                return self.gone(name, epoch);
            }
            // No Hello has said of what is removed why it is still here.
            if unit.removed && unit.hindrance.is_some() {
                self.changed.insert(name.clone());
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
            for (window, verb) in [(&mut self.starts, Verb::Start), (&mut self.stops, Verb::Stop)] {
                let has_job = |name: &UnitName| self.units.get(name).is_some_and(|unit| unit.has_job(verb));
                self.due.extend(window.next(now, has_job));
            }
            // A service that runs keeps its socket from starting: sockets have their turn first, the rest go by name.
            let (sockets, others) =
                std::mem::take(&mut self.due).into_iter().partition::<Vec<_>, _>(is_socket);
            for name in sockets.into_iter().chain(others) {
                self.advance(name);
            }
            self.start_reload(now, effects);
        }
        let Out { reports, content_missing, .. } = &mut self.out;
        let kept =
            Out { reports: std::mem::take(reports), content_missing: *content_missing, ..Out::default() };
        let Out {
            writes,
            adopts,
            releases,
            removes,
            resets,
            stops,
            starts,
            checks,
            explains,
            reads,
            events,
            ..
        } = std::mem::replace(&mut self.out, kept);
        if !writes.is_empty() {
            effects.push(Effect::Write(writes));
        }
        if !adopts.is_empty() {
            effects.push(Effect::Adopt(adopts));
        }
        effects.extend(releases.into_iter().map(Effect::Release));
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
        if let (None | Some(Want::Remove(_)), Doing::Nothing, Some(tried)) =
            (&unit.want, &unit.doing, unit.tried)
        {
            // What is there of it must go, also where nobody has a record of it, and could have been started.
            if unit.held.is_none() {
                unit.held = Some(tried.held());
                self.unsaved = Unsaved::NowNeeded;
            }
            unit.want.get_or_insert(Want::Remove(tried.epoch));
        }
        let action = unit.next();
        if matches!(action, Action::Write | Action::Remove) {
            self.outdated.remove(&name);
        }
        match action {
            Action::Nothing => {}
            // They are looked at again when they may.
            Action::Start if unit.held_exclusive().is_some() && !self.exclusive_may_start => {}
            // PID 1 stops what it finds bound to a guard that does not run.
            Action::Adopt if unit.is_exclusive() && !self.exclusive_may_start => {}
            Action::Adopt => self.adopt(name),
            Action::Release => {
                unit.doing = Doing::Releasing;
                self.outdated.remove(&name);
                self.unsaved = Unsaved::NowNeeded;
                self.out.releases.push(name);
            }
            Action::Start if !self.starts.admits(&name) => {}
            Action::Stop if !self.stops.admits(&name) => {}
            Action::Settle => {
                self.set_phase(&name, Phase::Loaded);
                self.advance(name);
            }
            Action::Write => {
                let Some(Want::Hold(wanted)) = &mut unit.want else { return };
                let content = wanted.content.clone();
                let (epoch, hash, exclusive) = (wanted.epoch, wanted.hash, wanted.exclusive);
                let writing = Writing { epoch, hash, target: wanted.target, exclusive };
                let has_content =
                    unit.tried.is_none() && unit.held.as_ref().is_some_and(|held| held.hash == hash);
                if content.is_none() && !has_content {
                    // The leader may have thought that the copy before it was still here.
                    if !std::mem::replace(&mut unit.asked_for_content, true) {
                        self.out.content_missing = true;
                        return;
                    }
                    let reason =
                        "the scheduler sent no content for a unit file that this machine does not have";
                    return self.refuse(&name, epoch, reason.into());
                }
                unit.doing = Doing::Writing(writing);
                // PID 1 keeps a failed unit, with its old content.
                if unit.is_failed() {
                    self.out.resets.push(name.clone());
                }
                let fresh = unit.held.is_none() || unit.tried.is_some();
                if fresh && !planted::is(Fault::LedgerLate) {
                    // Something else may start it before the agent has heard that its files are there.
                    self.unsaved = Unsaved::NowNeeded;
                }
                self.out.writes.push(Write { name, epoch, exclusive, hash, content, fresh });
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
                unit.stopped = false;
                if let Some(held) = &mut unit.held {
                    held.ended = false;
                }
                // Before the start: whatever becomes of the call, what runs from now on has this content.
                self.settle(&name);
                self.out.starts.push(name);
            }
            Action::Stop => {
                unit.doing = Doing::Calling(Verb::Stop, None);
                self.out.stops.push(name.clone());
                self.set_phase(&name, Phase::Stopping);
            }
            Action::Explain => self.explain(name, None),
            Action::Remove => {
                unit.doing = Doing::Removing;
                unit.files = Files::Current;
                if unit.is_failed() {
                    self.out.resets.push(name.clone());
                }
                self.out.removes.push(name);
            }
            Action::Confirm => {
                unit.doing = Doing::Confirming;
                self.read_anew(&name);
            }
            Action::Ended => {
                unit.ending = false;
                self.changed.insert(name.clone());
                self.set_phase(&name, Phase::Loaded);
                // Before the guard is started again: an agent that takes that up must not think that this one runs.
                self.unsaved = Unsaved::NowNeeded;
                self.advance(name);
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
        self.exclusive.remove(&name);
        if let Some(Want::Remove(epoch)) = unit.want
            && self.stopped.get(&name).is_none_or(|stopped| *stopped < epoch)
        {
            self.gone(name, epoch);
        }
    }
}
