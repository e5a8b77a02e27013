//! Exclusive units: which there are, when they may start, and their end with the guard.

use std::time::Duration;

use super::Units;
use crate::agent::unit::{Unit, Want};
use crate::state::Phase;
use crate::time::Time;
use crate::unit::UnitName;

/// A unit that ended this long before the guard did so by itself, and is not started again.
const BY_ITSELF: Duration = Duration::from_secs(1);

impl Units {
    fn exclusive(&self) -> impl Iterator<Item = (&UnitName, &Unit)> {
        let units = self.exclusive.iter().filter_map(|name| self.units.get_key_value(name));
        units.filter(|(_, unit)| unit.is_exclusive())
    }

    /// Whether there are any, here or to come.
    pub fn has_exclusive(&self) -> bool {
        self.exclusive().next().is_some()
    }

    /// Whether the guard may be started: some unit needs it, none of the last time is left, and none waits for its
    /// removal, which may run on another machine by now.
    pub fn may_arm(&self) -> bool {
        let mut wanted = false;
        for (_, unit) in self.exclusive() {
            match &unit.want {
                _ if unit.ending => return false,
                Some(Want::Remove(_)) => return false,
                Some(Want::Hold(_)) => wanted = true,
                None => {}
            }
        }
        wanted
    }

    /// Says whether exclusive units may be started.
    pub fn permit_exclusive(&mut self, permit: bool) {
        if permit && !self.exclusive_may_start {
            self.due.extend(self.exclusive.iter().cloned());
        }
        self.exclusive_may_start = permit;
    }

    /// The guard has ended, and all exclusive units end with it.
    pub fn end_exclusive(&mut self, since: Time) {
        for name in &self.exclusive {
            let Some(unit) = self.units.get_mut(name) else { continue };
            let Some(held) = unit.held.as_ref().filter(|held| held.exclusive.is_some()) else { continue };
            let by_itself = unit.inactive_since.is_some_and(|at| at + BY_ITSELF < since);
            if by_itself && matches!(held.phase, Phase::Launched | Phase::Failed(_) | Phase::StartFailed(_)) {
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
