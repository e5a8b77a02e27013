//! Exclusive units: which there are, when they may start, and their end with the guard.

use std::time::Duration;

use super::{Units, Unsaved};
use crate::agent::unit::{Action, Unit, Want};
use crate::state::{Failure, Phase};
use crate::unit::UnitName;

impl Units {
    fn exclusive(&self) -> impl Iterator<Item = (&UnitName, &Unit)> {
        let units = self.exclusive.iter().filter_map(|name| self.units.get_key_value(name));
        units.filter(|(_, unit)| unit.is_exclusive())
    }

    /// Whether there are any, here or to come.
    pub fn has_exclusive(&self) -> bool {
        self.exclusive().next().is_some()
    }

    /// Whether the guard may be started: some unit needs it, and nothing must end before.
    pub fn may_arm(&self) -> bool {
        self.blocker().is_none() && self.exclusive().any(|(_, unit)| matches!(unit.want, Some(Want::Hold(_))))
    }

    /// A unit that must end before the guard may be started: it is left of the last time, or waits for its removal and may
    /// run on another machine by now.
    fn blocker(&self) -> Option<(&UnitName, &Unit)> {
        self.exclusive().find(|(_, unit)| unit.ending || matches!(unit.want, Some(Want::Remove(_))))
    }

    /// What must end before the guard may be started, in words.
    pub fn blocks_guard(&self) -> Option<String> {
        let (name, unit) = self.blocker()?;
        let why = unit.hindrance.as_ref().map_or(String::new(), |why| format!(": {why}"));
        Some(format!("{name} is still being ended here{why}"))
    }

    /// Says whether exclusive units may be started.
    pub fn permit_exclusive(&mut self, permit: bool) {
        if permit && !self.exclusive_may_start {
            self.due.extend(self.exclusive.iter().cloned());
        }
        self.exclusive_may_start = permit;
    }

    /// Whether some may have ended with the guard: then it is to be seen whether that still runs.
    pub fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubt)
    }

    /// Notes whether the unit may have ended with the guard.
    pub(super) fn doubt(&mut self, name: &UnitName) {
        self.doubt |= self.units.get(name).is_some_and(Unit::is_doubtful);
    }

    /// The guard was seen to run: what had ended before has done so for a reason of its own.
    pub fn guard_was_seen(&mut self) {
        for name in &self.exclusive {
            let Some(unit) = self.units.get_mut(name).filter(|unit| unit.is_doubtful()) else { continue };
            if let Some(held) = &mut unit.held {
                held.ended = true;
                self.unsaved = self.unsaved.max(Unsaved::Something);
                self.changed.insert(name.clone());
            }
        }
    }

    /// The guard cannot be started, for this reason: what waits for that might be started elsewhere.
    pub fn guard_fails(&mut self, reason: &str) {
        let waits =
            |(_, unit): &(&UnitName, &Unit)| unit.held_exclusive().is_some() && unit.next() == Action::Start;
        let waiting: Vec<UnitName> = self.exclusive().filter(waits).map(|(name, _)| name.clone()).collect();
        for name in waiting {
            // That nothing of it runs is no guard's doing.
            if let Some(held) = self.units.get_mut(&name).and_then(|unit| unit.held.as_mut()) {
                held.ended = true;
            }
            self.start_failed(name, Failure::without_result(format!("guard: {reason}")));
        }
    }

    /// The guard has ended, and all exclusive units end with it.
    pub fn end_exclusive(&mut self) {
        for name in &self.exclusive {
            let Some(unit) = self.units.get_mut(name) else { continue };
            let Some(held) = unit.held.as_ref().filter(|held| held.exclusive.is_some()) else { continue };
            // It is not started again.
            if held.ended && matches!(held.phase, Phase::Launched | Phase::Failed(_) | Phase::StartFailed(_))
            {
                continue;
            }
            unit.ending = true;
            unit.stopped = false;
            self.changed.insert(name.clone());
            self.due.insert(name.clone());
        }
    }

    /// Whether some have not been seen to end.
    pub fn any_ending(&self) -> bool {
        self.exclusive().any(|(_, unit)| unit.ending)
    }

    /// The shortest time that one of these has for its end.
    pub fn shortest_stop(&self) -> Duration {
        let stops =
            self.exclusive().filter(|(_, unit)| unit.ending).filter_map(|(_, unit)| unit.held_exclusive());
        stops.min().unwrap_or_default()
    }
}
