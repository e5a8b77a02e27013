//! The agent's state machine: what one machine does with the units that a leader gives it.
//!
//! [`Agent`] is level-triggered. It keeps what the leader wants of each unit, what files are on the machine, and what
//! systemd was last seen to say, and asks for the one thing that brings them together, unit by unit. Nothing is
//! remembered of how it came there, so a message or a signal that is lost or repeated does no harm.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `session` | connecting, terms, heartbeats: what of the leader's words is obeyed |
//! | `unit` | one unit: what is to be done with it next |
//! | `units` | all units: what is wanted of them, what is to be done; in `answers`, what systemd and the disk say |
//! | `guard` | when exclusive units may run, and that PID 1 ends them |
//! | `io` | inputs, effects, and what is kept on disk |
//! | `files` | the drop-in that goes with every unit |

mod files;
mod guard;
mod io;
mod schedulers;
mod session;
#[cfg(test)]
mod tests;
mod unit;
mod units;

use std::time::Duration;

pub use files::{EXCLUSIVE_SLICE, GOODBYE, SLICES, drop_in, found};
pub use guard::LEASE;
pub use io::{
    CallError, Checked, Effect, Event, Held, Identity, Input, Ledger, Membership, Seen, Verb, Write, Written,
};

use crate::ids::{AgentKey, BootId, SessionNumber};
use crate::machine::Pressure;
use crate::message::{FromAgent, Goodbye, Hello};
use crate::planted::{self, Fault};
use crate::time::Time;
use guard::Guard;
use session::{SIGN_OF_LIFE, Session};
use units::{Units, Unsaved};

/// How often everything that is held is read again, in case a signal was lost.
const RESYNC: Duration = Duration::from_secs(5 * 60);
/// A reload that has lasted longer than this has ended, and its signal was lost. (With 3,000 units it takes 8 s.)
const RELOAD_MAX: Duration = Duration::from_secs(60);
/// How long PID 1 may be busy with one start or stop that it was asked for. With 3,000 units in one slice it starts 123 a
/// second, 8 ms for each (systemd 252, two cores); machines are slower, and have other work.
const JOB_MAX: Duration = Duration::from_millis(50);
/// What was read of the machine's pressure longer ago than this says nothing of now.
const PRESSURE_MAX_AGE: Duration = Duration::from_secs(10);

/// How long the ledger may lack what would be found out again. With many units it is large, and under a storm of
/// starts something changes all the time.
const SAVE_INTERVAL: Duration = Duration::from_millis(100);
/// The shortest time between two reports: under a storm, one for many changes costs agent and leader less.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);

/// The agent of one machine.
#[derive(Debug)]
pub struct Agent {
    identity: Identity,
    boot: BootId,
    key: AgentKey,
    session: Session,
    units: Units,
    guard: Guard,
    pid1: Pid1,
    /// How short the machine is of what its units need, and when that was said.
    pressure: (Pressure, Time),
    resync: Time,
    /// When the ledger is to be saved, if it has changed.
    save_at: Option<Time>,
    /// When the leader may be told again what has changed, and whether there is anything to tell.
    report_at: Time,
    to_report: bool,
    /// Why the agent goes, if it does; in which session the leader was told so; and whether somebody waits for an answer.
    leaving: Option<Goodbye>,
    said: Option<SessionNumber>,
    farewell_wanted: bool,
}

/// What is known of PID 1.
#[derive(Debug)]
struct Pid1 {
    up: bool,
    /// Since when it reloads its files.
    reloading: Option<Time>,
    /// When it last said anything. Later by what the agent itself was late since.
    heard: Time,
    /// When the reload began that explains why it is silent; later by the same.
    reload: Option<Time>,
    /// Whether a [`Effect::Ping`] is under way.
    asked: bool,
}

impl Agent {
    /// The agent that starts now, on a machine with this ledger and membership. `schedulers` are those that are configured, at
    /// least one, as `HOST:PORT`. `seed` is for the jitter of its attempts to connect.
    pub fn new(
        identity: Identity,
        schedulers: Vec<String>,
        membership: Membership,
        ledger: Ledger,
        seed: u64,
        now: Time,
    ) -> Self {
        let Ledger { boot, key, session, units, writing: _, stopped } = ledger;
        // Sessions may have been opened since the ledger was saved: not as many as milliseconds have passed.
        let session = session
            .max(SessionNumber(u64::try_from(now.since(Time::default()).as_millis()).unwrap_or_default()));
        Self {
            boot,
            key,
            session: Session::new(identity.machine, schedulers, membership, session, seed, now),
            guard: Guard::new(units.values().any(|held| held.exclusive.is_some()), now),
            units: Units::new(units, stopped, identity.capacity),
            pid1: Pid1 { up: false, reloading: None, heard: now, reload: None, asked: false },
            pressure: (Pressure::default(), now),
            resync: now + RESYNC,
            save_at: None,
            report_at: now,
            to_report: false,
            leaving: None,
            said: None,
            farewell_wanted: false,
            identity,
        }
    }

    /// Takes in all that has happened until `now`, and says what to do.
    pub fn step(&mut self, now: Time, inputs: impl IntoIterator<Item = Input>) -> Vec<Effect> {
        let mut effects = Vec::new();
        // PID 1's answers may wait to be read, and it may have stood still itself, with the machine.
        if !planted::is(Fault::StandstillIsPid1s) {
            self.pid1.leave_out(self.next_timer().map_or(Duration::ZERO, |due| now.since(due)), now);
        }
        for input in inputs {
            self.take(now, input, &mut effects);
        }
        self.look_at_clock(now);
        let silent = now.since(self.pid1.heard);
        let pressure = self.pressure(now);
        if let Some(interval) = self.session.tick(now, self.pid1_age(now), pressure, &mut effects) {
            // PID 1 is asked for a sign of life when it has given none lately. Half an interval, since an answer is
            // always a little younger than a whole one when the next heartbeat is sent.
            let asks = !planted::is(Fault::Pid1NotAsked);
            if asks && self.pid1.up && !self.pid1.asked && silent >= interval / 2 {
                self.pid1.asked = true;
                effects.push(Effect::Ping);
            }
        }
        self.say_goodbye(now, &mut effects);
        let lease = self.session.lease_of_session();
        let last = if planted::is(Fault::GuardNeedsSnapshot) { lease } else { self.session.lease_end() };
        self.guard.look_at_clock(now, lease, last, &mut self.units, &mut effects);
        self.units.effects(now, self.pid1.up, &mut effects);
        self.guard.tick(now, lease, last, self.pid1.up, &self.units, &mut effects);
        self.pid1.note_reload(now, self.pid1.reloading.is_some() || self.units.is_reloading());
        self.report(now, &mut effects);
        match self.units.take_unsaved() {
            Unsaved::Nothing => {}
            Unsaved::Something => self.save_at = self.save_at.or(Some(now + SAVE_INTERVAL)),
            Unsaved::NowNeeded => self.save_at = Some(now),
        }
        if self.save_at.is_some_and(|at| at <= now) {
            self.save_at = None;
            effects.insert(0, Effect::SaveLedger(Box::new(self.ledger())));
        }
        effects
    }

    fn report(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !self.session.is_welcome() {
            self.units.forget_reports();
            return;
        }
        self.to_report = self.units.has_report();
        if self.to_report && self.report_at <= now {
            self.to_report = false;
            self.report_at = now + REPORT_INTERVAL;
            let report = self.units.report();
            if !report.is_empty() {
                effects.push(Effect::Send(FromAgent::Report(report)));
            }
        }
        // After the report, which may say what the leader did not know when it left out the content.
        if !self.to_report && self.units.take_content_missing() {
            self.session.want_snapshot(effects);
        }
    }

    /// When to come back with [`Input::Tick`] at the latest, if nothing else happens.
    pub fn next_timer(&self) -> Option<Time> {
        let reloading = self.pid1.reloading.map(|since| since + RELOAD_MAX);
        let units = self.units.next_timer().filter(|_| self.pid1.up);
        let report = Some(self.report_at).filter(|_| self.to_report && self.session.is_welcome());
        let (lease, last) = (self.session.lease_of_session(), self.session.lease_end());
        let guard = self.guard.next_timer(&self.units, lease, last);
        let session = Some(self.session.next_timer());
        let timers = [session, units, guard, reloading, report, self.save_at, Some(self.resync)];
        timers.into_iter().flatten().min()
    }

    /// When the machine's lease ends; `None` before it ever had one.
    pub fn lease_end(&self) -> Option<Time> {
        self.session.lease_end()
    }

    /// What the agent needs to know of this boot after a restart.
    pub fn ledger(&self) -> Ledger {
        Ledger {
            boot: self.boot,
            key: self.key,
            session: self.session.number(),
            units: self.units.held(),
            writing: self.units.writing(),
            stopped: self.units.stopped().clone(),
        }
    }

    fn take(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        if input.is_from_pid1() {
            self.pid1.heard = now;
        }
        match input {
            Input::Tick => {}
            Input::Pressure(pressure) => self.pressure = (pressure, now),
            Input::Connected(connection) => {
                if self.session.connected(now, connection) {
                    // No session may have the number of another.
                    self.save_at = Some(now);
                    effects.push(Effect::Send(FromAgent::Hello(self.hello(now))));
                }
            }
            Input::Disconnected(connection) => {
                self.session.disconnected(now, connection, None);
            }
            Input::Redirected(connection, leader) => {
                self.session.disconnected(now, connection, Some(leader));
            }
            // The machine goes, and the agent with it: there is nothing to add.
            Input::Goodbye(Goodbye::Restart) if self.leaving == Some(Goodbye::Shutdown) => {
                effects.push(Effect::Farewell);
            }
            Input::Goodbye(goodbye) => {
                (self.leaving, self.said) = (Some(goodbye), None);
                self.farewell_wanted = true;
            }
            Input::ShutdownCancelled => self.stay(now, effects),
            Input::Leader(message) => {
                if let Some(assignments) = self.session.heard(now, message, effects) {
                    self.units.assign(assignments);
                }
            }
            Input::MembershipSaved(outcome) => {
                for message in self.session.saved(now, outcome, effects) {
                    if let Some(assignments) = self.session.heard(now, message, effects) {
                        self.units.assign(assignments);
                    }
                }
            }
            Input::Written(outcomes) => {
                for (name, outcome) in outcomes {
                    self.units.written(now, name, outcome);
                }
            }
            Input::Removed(outcomes) => {
                for (name, outcome) in outcomes {
                    self.units.removed(now, name, outcome);
                }
            }
            Input::SystemdUp => {
                self.pid1.up = true;
                self.pid1.reloading = None;
                self.pid1.asked = false;
                self.units.systemd_up(now);
                self.guard.ask_again();
            }
            Input::SystemdDown => self.pid1.up = false,
            Input::Reloading(true) => self.pid1.reloading = Some(now),
            Input::Reloading(false) => {
                (self.pid1.reloading, self.pid1.reload) = (None, None);
                self.units.read_all(now);
                self.guard.ask_again();
            }
            Input::Reloaded(outcome) => {
                if outcome.is_ok() {
                    self.pid1.reload = None;
                }
                self.units.reloaded(now, outcome);
            }
            Input::Answered(name, verb, answer) => self.units.answered(now, name, verb, answer),
            // All units and jobs go and come again during a reload.
            Input::JobRemoved(..) | Input::Changed { .. } if self.pid1.reloading.is_some() => {}
            Input::Changed { unit, active, .. } if unit.as_str() == LEASE => {
                self.guard.signalled(&active);
            }
            Input::JobRemoved(name, job, result) => self.units.job_removed(now, name, job, result),
            Input::Changed { unit, active, sub, job } => self.units.signalled(now, &unit, active, sub, job),
            Input::Read(units) => {
                for (name, seen) in units {
                    if name.as_str() == LEASE {
                        self.guard.seen(now, seen.as_ref(), &mut self.units, effects);
                    } else {
                        self.units.seen(now, name, seen);
                    }
                }
            }
            Input::Checked(name, answer) => self.units.checked(now, name, answer),
            Input::Explained(name, why) => self.units.explained(name, why),
            Input::Pong(_) => self.pid1.asked = false,
            Input::GuardArmed(outcome) => self.guard.armed(now, outcome, &mut self.units, effects),
            Input::GuardDisarmed => self.guard.disarmed(),
            Input::GuardDown => self.guard.lost(now, &mut self.units, effects),
        }
        if self.units.take_doubt() {
            self.guard.ask_again();
        }
    }

    /// Says goodbye once in every session. Where no leader listens there is nobody to wait for.
    fn say_goodbye(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(goodbye) = self.leaving else { return };
        if !self.session.is_welcome() {
            if std::mem::take(&mut self.farewell_wanted) {
                effects.push(Effect::Farewell);
            }
        } else if self.said.replace(self.session.number()) != Some(self.session.number()) {
            if goodbye == Goodbye::Restart {
                self.session.restart_said(now);
            }
            effects.push(Effect::Send(FromAgent::Goodbye(goodbye)));
        }
    }

    /// Takes back that the machine shuts down. That says nothing of the agent's own end.
    fn stay(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.leaving == Some(Goodbye::Shutdown) {
            (self.leaving, self.farewell_wanted) = (None, false);
            effects.push(Effect::Farewell);
            self.session.renew(now, effects);
        }
    }

    fn look_at_clock(&mut self, now: Time) {
        if self.pid1.reloading.is_some_and(|since| since + RELOAD_MAX <= now) {
            self.pid1.reloading = None;
            self.resync = now;
        }
        if self.resync <= now {
            self.resync = now + RESYNC;
            if self.pid1.up {
                self.units.read_all(now);
                self.guard.ask_again();
            }
        }
    }

    /// For how long PID 1 has been silent without a reason that is known.
    fn pid1_age(&self, now: Time) -> Duration {
        let silent = now.since(self.pid1.heard);
        // In the ordinary case there is nothing to explain.
        if silent <= SIGN_OF_LIFE {
            return silent;
        }
        let jobs = u32::try_from(self.units.jobs()).unwrap_or(u32::MAX);
        silent.saturating_sub(self.pid1.reloads_for(now)).saturating_sub(JOB_MAX.saturating_mul(jobs))
    }

    fn pressure(&self, now: Time) -> Pressure {
        let (pressure, read) = self.pressure;
        if now.since(read) <= PRESSURE_MAX_AGE { pressure } else { Pressure::default() }
    }

    fn hello(&mut self, now: Time) -> Hello {
        let membership = self.session.membership();
        Hello {
            cluster: membership.cluster,
            machine: self.identity.machine,
            boot: self.boot,
            key: self.key,
            session: self.session.number(),
            term: membership.term,
            address: self.identity.address.clone(),
            labels: self.identity.labels.clone(),
            capacity: self.identity.capacity,
            version: self.identity.version.clone(),
            pid1_age: self.pid1_age(now),
            leaving: self.leaving == Some(Goodbye::Shutdown),
            streams: Some(self.identity.streams),
            units: self.units.hello(),
        }
    }
}

impl Pid1 {
    /// Leaves out of its silence, and of a reload, the time for which the agent did not run: none of it is PID 1's.
    fn leave_out(&mut self, late: Duration, now: Time) {
        self.heard = now.min(self.heard + late).max(self.heard);
        self.reload = self.reload.map(|began| now.min(began + late).max(began));
    }

    /// Whether a reload is under way. One that is asked for while PID 1 is silent explains no more than the one before.
    fn note_reload(&mut self, now: Time, under_way: bool) {
        if under_way {
            self.reload.get_or_insert(now);
        } else if self.reload.is_some_and(|began| self.heard > began) {
            self.reload = None;
        }
    }

    /// How much of its silence is a reload's.
    fn reloads_for(&self, now: Time) -> Duration {
        self.reload.map_or(Duration::ZERO, |began| now.min(began + RELOAD_MAX).since(began.max(self.heard)))
    }
}

impl Input {
    /// Whether this proves that PID 1 is alive.
    fn is_from_pid1(&self) -> bool {
        match self {
            Self::Answered(..) | Self::Read(_) | Self::Pong(_) if planted::is(Fault::Pid1AgeTooYoung) => true,
            Self::Answered(_, _, answer) => {
                !matches!(answer, Err(CallError::Unanswered(_) | CallError::NotAsked(_)))
            }
            Self::Read(units) => units.iter().any(|(_, seen)| seen.is_some()),
            Self::Checked(_, answer) => answer.is_some(),
            Self::Explained(_, why) => why.is_some(),
            Self::Reloaded(outcome) | Self::GuardArmed(outcome) => outcome.is_ok(),
            Self::Pong(answered) => *answered,
            Self::SystemdUp | Self::Reloading(_) | Self::JobRemoved(..) | Self::Changed { .. } => true,
            _ => false,
        }
    }
}
