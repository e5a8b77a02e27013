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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It does not run.
    Off,
    /// It may run since before the agent was started: what systemd says of it will tell.
    Unknown,
    /// It runs since before the agent was started, until a moment that is not known.
    Found,
    /// It is being started (or taken up, if it ran), to last until then.
    Arming { until: Time, found: bool },
    /// It runs until then.
    On(Time),
    /// It ended then, and units that were bound to it must end.
    Ending { since: Time, fenced: bool },
    /// It is being stopped, since no unit needs it.
    Disarming,
}

#[derive(Debug)]
pub(super) struct Guard {
    state: State,
    /// Whether systemd was asked about it in this state.
    asked: bool,
    /// Since when it may not run any more, for all that is known in this state.
    doubted: Option<Time>,
    /// It is not started before this moment, after a failure.
    retry: Time,
    /// When it was last seen whether it can be started.
    looked: Time,
}

impl Guard {
    /// The guard of a machine that holds exclusive units already, or does not.
    pub fn new(holds_exclusive: bool, now: Time) -> Self {
        Self {
            state: if holds_exclusive { State::Unknown } else { State::Off },
            asked: false,
            doubted: Some(now),
            retry: now,
            looked: now,
        }
    }

    /// Something may have become of it that nobody heard of: systemd is to be asked.
    pub fn ask_again(&mut self, now: Time) {
        self.doubted.get_or_insert(now);
        self.asked = false;
    }

    /// systemd signals how it is. That may be older than what was done since.
    pub fn signalled(&mut self, now: Time, active: &str) {
        if active != "active" {
            self.ask_again(now);
        }
    }

    fn wants_read(&mut self) -> bool {
        let matters = matches!(self.state, State::Unknown | State::Found | State::On(_));
        matters && !std::mem::replace(&mut self.asked, true)
    }

    /// systemd says how it is, or nothing.
    pub fn seen(&mut self, now: Time, seen: Option<&Seen>, units: &mut Units, effects: &mut Vec<Effect>) {
        let Some(seen) = seen else {
            self.asked = false;
            return;
        };
        let active = seen.state.active == "active";
        match self.state {
            State::Unknown if active => (self.state, self.doubted) = (State::Found, None),
            State::Unknown | State::Found | State::On(_) if !active => {
                self.end(now, units, effects);
            }
            _ => self.doubted = None,
        }
    }

    /// [`Effect::ArmGuard`] is done, or failed for this reason.
    pub fn armed(&mut self, now: Time, outcome: Result<(), String>, effects: &mut Vec<Effect>) {
        let State::Arming { until, found } = self.state else { return };
        match outcome {
            Ok(()) => self.enter(State::On(until)),
            Err(reason) => {
                effects.push(Effect::Event(Event::GuardFailed(reason)));
                self.retry = now + RETRY;
                // One that was found may have ended meanwhile, and its units with it.
                self.enter(if found { State::Unknown } else { State::Off });
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
        if matches!(self.state, State::On(_)) {
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
            State::Unknown | State::Found => last,
            _ => None,
        };
        if let Some(until) = ends.filter(|until| *until <= now) {
            self.end(until, units, effects);
        }
        let runs = lease.is_some_and(|end| now < end);
        units.permit_exclusive(runs && matches!(self.state, State::On(_)));
    }

    /// Does what is due, once the units have been looked at. `keep` is the end of the lease to which one that runs lasts.
    pub fn tick(
        &mut self,
        now: Time,
        lease: Option<Time>,
        keep: Option<Time>,
        pid1_up: bool,
        units: &Units,
        effects: &mut Vec<Effect>,
    ) {
        self.looked = now;
        if matches!(self.state, State::Ending { .. }) && !units.any_ending() {
            self.enter(State::Off);
        }
        match (self.state, lease.filter(|end| now < *end), keep) {
            (State::Off, Some(until), _) if self.retry <= now && pid1_up && units.may_arm() => {
                self.enter(State::Arming { until, found: false });
                effects.push(Effect::ArmGuard { until, found: false });
            }
            (State::On(_) | State::Unknown | State::Found, ..) if pid1_up && !units.has_exclusive() => {
                self.enter(State::Disarming);
                effects.push(Effect::DisarmGuard);
            }
            (State::Found, Some(until), _) if self.retry <= now && pid1_up => {
                self.enter(State::Arming { until, found: true });
                effects.push(Effect::ArmGuard { until, found: true });
            }
            (State::On(until), _, Some(end)) if end != until => {
                self.state = State::On(end);
                let more = if planted::is(Fault::GuardOutlastsLease) { 10 } else { 0 };
                effects.push(Effect::PetGuard { until: end + Duration::from_secs(more) });
            }
            (State::Ending { since, fenced: false }, ..) if since + units.shortest_stop() <= now => {
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
        match self.state {
            // What else it may wait for than the moment, it hears of.
            State::Off if units.may_arm() => lease.and(Some(self.retry)).filter(later),
            State::Unknown => last.filter(later),
            State::Found => {
                let retry = lease.and(Some(self.retry)).filter(later);
                [retry, last.filter(later)].into_iter().flatten().min()
            }
            State::On(until) => Some(until),
            State::Ending { since, fenced: false } => Some(since + units.shortest_stop()),
            _ => None,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.asked = false;
        self.doubted = None;
    }

    fn end(&mut self, since: Time, units: &mut Units, effects: &mut Vec<Effect>) {
        // Units that ended since then did so with it, and not by themselves.
        let since = self.doubted.map_or(since, |doubted| doubted.min(since));
        effects.push(Effect::Event(Event::GuardEnded));
        units.end_exclusive(since);
        self.enter(State::Ending { since, fenced: false });
    }
}
