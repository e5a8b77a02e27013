//! The guard of exclusive units: PID 1 ends them when the machine's lease is over, whether the agent lives or not.
//!
//! [`LEASE`] is a service to which every exclusive unit is bound. It lasts until a moment that the agent moves on with
//! each renewal of the machine's lease, and PID 1 lets nothing start that is bound to it once that moment has come. What
//! is decided here is when it is started, moved on and given up, and when exclusive units may start.

use std::time::Duration;

use super::io::{Effect, Event, Seen};
use super::units::Units;
use crate::planted::{self, Fault};
use crate::time::Time;
use crate::unit::UnitName;

/// The service that stands for the machine's lease.
pub const LEASE: &str = "muster-lease.service";

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// How long it may fail to start before what waits for it counts as failed as well.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It does not run.
    Off,
    /// It may run since before the agent was started, or although it was signalled that it does not: what systemd says of
    /// it will tell. If it does, it runs until then, where it was told so since.
    Unknown(Option<Time>),
    /// It is being started, to last until then.
    Arming { until: Time },
    /// It runs until then.
    On(Time),
    /// It ended then, and units that were bound to it must end.
    Ending { since: Time, fenced: bool },
    /// It is being stopped, since no unit needs it.
    Disarming,
}

/// Whether systemd was asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    No,
    Yes,
    /// Yes, and something has happened since: the answer may be older than that.
    Overtaken,
    Answered,
}

#[derive(Debug)]
pub(super) struct Guard {
    state: State,
    asked: Asked,
    /// It is not started before this moment, after a failure.
    retry: Time,
    /// Since when it cannot be started, though there is a lease: every attempt has failed, or what must end before has not.
    failing: Option<Time>,
    /// When it was last seen whether it can be started.
    looked: Time,
}

impl Guard {
    /// The guard of a machine that holds exclusive units already, or does not.
    pub fn new(holds_exclusive: bool, now: Time) -> Self {
        Self {
            state: if holds_exclusive { State::Unknown(None) } else { State::Off },
            asked: Asked::No,
            retry: now,
            failing: None,
            looked: now,
        }
    }

    /// Something may have become of it that nobody heard of: systemd is to be asked.
    pub fn ask_again(&mut self) {
        self.asked = match self.asked {
            Asked::Yes | Asked::Overtaken => Asked::Overtaken,
            Asked::No | Asked::Answered => Asked::No,
        };
    }

    /// systemd signals how it is. That may be older than what was done since.
    pub fn signalled(&mut self, active: &str) {
        if active != "active" {
            // If it runs by the time that systemd answers, somebody else may have started it: whether this one does is
            // known once it was told to last.
            if matches!(self.state, State::On(_)) {
                self.state = State::Unknown(None);
            }
            self.ask_again();
        }
    }

    fn wants_read(&mut self) -> bool {
        let wants = matches!(self.state, State::Unknown(_) | State::On(_)) && self.asked == Asked::No;
        if wants {
            self.asked = Asked::Yes;
        }
        wants
    }

    /// systemd says how it is, or nothing.
    pub fn seen(&mut self, now: Time, seen: Option<&Seen>, units: &mut Units, effects: &mut Vec<Effect>) {
        let overtaken = std::mem::replace(&mut self.asked, Asked::No) == Asked::Overtaken;
        let Some(seen) = seen.filter(|_| !overtaken) else { return };
        self.asked = Asked::Answered;
        match self.state {
            // While it has a job it is about to be stopped, as at a shutdown, and so is what is bound to it: a unit that has
            // ended before the others has not run to its end.
            State::Unknown(_) | State::On(_) if seen.state.active != "active" || seen.job => {
                self.end(now, units, effects);
            }
            State::Unknown(told) => {
                units.guard_was_seen();
                if let Some(until) = told {
                    self.state = State::On(until);
                }
            }
            State::On(_) => units.guard_was_seen(),
            _ => {}
        }
    }

    /// [`Effect::ArmGuard`] is done, or failed for this reason.
    pub fn armed(
        &mut self,
        now: Time,
        outcome: Result<(), String>,
        units: &mut Units,
        effects: &mut Vec<Effect>,
    ) {
        let State::Arming { until } = self.state else { return };
        match outcome {
            Ok(()) => {
                self.failing = None;
                self.enter(State::On(until));
            }
            Err(reason) => {
                self.retry = now + RETRY;
                self.enter(State::Off);
                if *self.failing.get_or_insert(now) + PATIENCE <= now {
                    units.guard_fails(&reason);
                }
                effects.push(Effect::Event(Event::GuardFailed(reason)));
            }
        }
    }

    /// [`Effect::DisarmGuard`] is done, or came to nothing: then the lease of the guard ends by itself.
    pub fn disarmed(&mut self) {
        if self.state == State::Disarming {
            self.enter(State::Off);
        }
    }

    /// [`Effect::PetGuard`] reached nobody.
    pub fn lost(&mut self, now: Time, units: &mut Units, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Unknown(_) | State::On(_)) {
            self.end(now, units, effects);
        }
    }

    /// Ends it when its moment has come, and says whether exclusive units may start. `lease` is the end of the lease of
    /// this session, in which it is known what the leader wants here, `last` the last end of a lease that is known.
    pub fn look_at_clock(
        &mut self,
        now: Time,
        lease: Option<Time>,
        last: Option<Time>,
        units: &mut Units,
        effects: &mut Vec<Effect>,
    ) {
        let ends = match self.state {
            State::On(until) => Some(until),
            // PID 1 has not said how it is, and may never: nothing that is bound to it outlasts the lease.
            State::Unknown(_) => last,
            _ => None,
        };
        if let Some(until) = ends.filter(|until| *until <= now) {
            self.end(until, units, effects);
        }
        let runs = lease.is_some_and(|end| now < end);
        units.permit_exclusive(runs && matches!(self.state, State::On(_)));
        if !runs {
            self.failing = None;
        } else if matches!(self.state, State::Off | State::Ending { .. })
            && let Some(reason) = units.blocks_guard()
            && *self.failing.get_or_insert(now) + PATIENCE <= now
        {
            units.guard_fails(&reason);
        }
    }

    /// Does what is due, once the units have been looked at; `lease` and `last` as above.
    pub fn tick(
        &mut self,
        now: Time,
        lease: Option<Time>,
        last: Option<Time>,
        pid1_up: bool,
        units: &Units,
        effects: &mut Vec<Effect>,
    ) {
        self.looked = now;
        if matches!(self.state, State::Ending { .. }) && !units.any_ending() {
            self.enter(State::Off);
        }
        match (self.state, last.filter(|end| now < *end)) {
            (State::Off, _) => match lease.filter(|end| now < *end && units.may_arm()) {
                Some(until) if self.retry <= now && pid1_up => {
                    self.enter(State::Arming { until });
                    effects.push(Effect::ArmGuard { until });
                }
                None if units.blocks_guard().is_none() => self.failing = None,
                _ => {}
            },
            (State::On(_) | State::Unknown(_), _) if pid1_up && !units.has_exclusive() => {
                self.enter(State::Disarming);
                effects.push(Effect::DisarmGuard);
            }
            // What runs may run as long as any lease that was granted, whether or not it is known what the leader wants;
            // and PID 1 need not answer for that.
            (State::On(until), Some(end)) if until < end => {
                self.state = State::On(end);
                pet(end, effects);
            }
            (State::Unknown(told), Some(end)) if told < Some(end) => {
                self.state = State::Unknown(Some(end));
                pet(end, effects);
                if told.is_none() {
                    // That it runs counts once it was seen after that.
                    self.ask_again();
                }
            }
            (State::Ending { since, fenced: false }, _) if since + units.shortest_stop() <= now => {
                // Nobody has seen them end: PID 1 hangs, or cannot be asked.
                self.state = State::Ending { since, fenced: true };
                if !planted::is(Fault::NoFence) {
                    effects.push(Effect::Fence);
                }
                effects.push(Effect::Event(Event::Fenced));
            }
            _ => {}
        }
        if pid1_up && self.wants_read() {
            effects.extend(UnitName::parse(LEASE).ok().map(|lease| Effect::Read(vec![lease])));
        }
    }

    /// When to come back if nothing else happens.
    pub fn next_timer(&self, units: &Units, lease: Option<Time>, last: Option<Time>) -> Option<Time> {
        let later = |at: &Time| *at > self.looked;
        // What cannot be started under a lease, and is not tried again by itself.
        let patience = self.failing.map(|since| since + PATIENCE).filter(later);
        match self.state {
            // What else it may wait for than the moment, it hears of.
            State::Off if units.may_arm() => lease.and(Some(self.retry)).filter(later),
            State::Unknown(_) => last.filter(later),
            State::On(until) => Some(until),
            State::Ending { since, fenced: false } => {
                Some(since + units.shortest_stop()).into_iter().chain(patience).min()
            }
            State::Off | State::Ending { .. } => patience,
            _ => None,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.ask_again();
    }

    fn end(&mut self, since: Time, units: &mut Units, effects: &mut Vec<Effect>) {
        effects.push(Effect::Event(Event::GuardEnded));
        units.end_exclusive();
        self.enter(State::Ending { since, fenced: false });
    }
}

fn pet(end: Time, effects: &mut Vec<Effect>) {
    let more = if planted::is(Fault::GuardOutlastsLease) { 10 } else { 0 };
    effects.push(Effect::PetGuard { until: end + Duration::from_secs(more) });
}
