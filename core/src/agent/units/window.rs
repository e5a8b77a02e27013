//! How many jobs systemd is asked for at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::is_socket;
use crate::machine::Capacity;
use crate::time::Time;
use crate::unit::UnitName;

/// The most start jobs and the most stop jobs that may be pending. systemd watches the bus for whoever asked for each
/// job, and dbus-daemon allows a connection 512 such watches in all: beyond it systemd 252 leaves the bus for good.
/// Stops have their own share, so that units that are slow to start keep none from being stopped.
const STARTS: usize = 384;
const STOPS: usize = 64;
/// How many units may be starting at once for each CPU, and the least on any machine: hundreds that come from a lost
/// machine must not bring down the one that takes them. (Trivial units start no faster with more than the least.)
const STARTS_PER_CPU: u64 = 32;
const STARTS_LEAST: usize = 64;
/// A unit that has been starting for so long is a slow one or a job that runs for hours, and keeps no other waiting.
const STARTING: Duration = Duration::from_secs(10);

/// Units that have a job, not too many, and those that wait for one of these to end.
#[derive(Debug)]
pub(super) struct Window {
    most: usize,
    /// How many of the jobs may be younger than [`STARTING`].
    most_young: usize,
    /// With the moment when each was asked for. Some of these may have ended since.
    pending: BTreeMap<UnitName, Time>,
    /// Sockets first, the rest by name, as all that has its turn.
    waiting: BTreeSet<(bool, UnitName)>,
    now: Time,
}

impl Window {
    /// For starts on a machine of this capacity.
    pub(super) fn starts(capacity: Capacity) -> Self {
        let starts = capacity.cpu.0.saturating_mul(STARTS_PER_CPU) / 1000;
        Self::new(STARTS, usize::try_from(starts).unwrap_or(STARTS).clamp(STARTS_LEAST, STARTS))
    }

    /// For stops.
    pub(super) fn stops() -> Self {
        Self::new(STOPS, STOPS)
    }

    fn new(most: usize, most_young: usize) -> Self {
        let (pending, waiting) = (BTreeMap::new(), BTreeSet::new());
        Self { most, most_young, pending, waiting, now: Time::default() }
    }

    /// Whether the unit may have its job now. If not, it waits for its turn.
    pub(super) fn admits(&mut self, name: &UnitName) -> bool {
        let room = self.room() > 0;
        if room {
            self.pending.insert(name.clone(), self.now);
        } else {
            self.waiting.insert((!is_socket(name), name.clone()));
        }
        room
    }

    /// How many units have a job, now that only these still have.
    pub(super) fn jobs(&self, has_job: impl Fn(&UnitName) -> bool) -> usize {
        self.pending.keys().filter(|name| has_job(name)).count()
    }

    /// Those whose turn has come `now` that only these still have a job.
    pub(super) fn next(&mut self, now: Time, has_job: impl Fn(&UnitName) -> bool) -> Vec<UnitName> {
        self.now = now;
        if self.waiting.is_empty() && self.room() > 0 {
            return Vec::new();
        }
        self.pending.retain(|name, _| has_job(name));
        let room = self.room();
        std::iter::from_fn(|| self.waiting.pop_first()).map(|(_, name)| name).take(room).collect()
    }

    /// When the next one that waits has its turn, if no job ends.
    pub(super) fn next_timer(&self) -> Option<Time> {
        if self.waiting.is_empty() || self.pending.len() >= self.most {
            return None;
        }
        self.young().min().map(|asked| asked + STARTING)
    }

    fn room(&self) -> usize {
        (self.most - self.pending.len()).min(self.most_young.saturating_sub(self.young().count()))
    }

    /// When each of those was asked for that are not slow yet.
    fn young(&self) -> impl Iterator<Item = Time> {
        self.pending.values().copied().filter(|asked| *asked + STARTING > self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::{Bytes, MilliCpu};

    fn starts(cpus: u64) -> Window {
        Window::starts(Capacity { cpu: MilliCpu(cpus * 1000), memory: Bytes(0) })
    }

    fn name(number: usize) -> UnitName {
        format!("u{number:03}.service").parse().unwrap()
    }

    fn seconds(seconds: u64) -> Time {
        Time::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn more_units_start_at_once_where_there_are_more_cpus() {
        let admitted = |mut window: Window| (0..500).filter(|number| window.admits(&name(*number))).count();
        let cases = [(0, 64), (1, 64), (2, 64), (4, 128), (12, 384), (64, 384), (u64::MAX / 1000, 384)];
        for (cpus, expected) in cases {
            assert_eq!(admitted(starts(cpus)), expected, "{cpus} CPUs");
        }
        assert_eq!(admitted(Window::stops()), 64);
    }

    #[test]
    fn among_those_that_wait_sockets_go_first() {
        let mut window = starts(2);
        assert_eq!((0..64).filter(|number| window.admits(&name(*number))).count(), 64);
        let names = ["a.service", "b.socket", "c.service", "d.socket"].map(|name| name.parse().unwrap());
        assert_eq!(names.iter().filter(|name| window.admits(name)).count(), 0);
        let next = window.next(seconds(1), |name| name.as_str() >= "u004");
        let [a, b, c, d] = names;
        assert_eq!(next, [b, d, a, c]);
    }

    #[test]
    fn who_has_started_makes_room_at_once_and_who_is_slow_after_a_while() {
        let mut window = starts(2);
        assert_eq!((0..500).filter(|number| window.admits(&name(*number))).count(), 64);
        assert_eq!(window.next(seconds(1), |_| true), []);
        let has_job = |unit: &UnitName| *unit != name(3) && *unit != name(5);
        let next = window.next(seconds(2), has_job);
        assert_eq!(next, [name(64), name(65)]);
        assert!(next.iter().all(|unit| window.admits(unit)));
        // The others start for hours.
        let (mut now, mut begun) = (2, 66);
        while let Some(at) = window.next_timer() {
            assert!(at > seconds(now), "it would spin");
            now = at.since(Time::default()).as_secs();
            let next = window.next(at, |_| true);
            assert!(!next.is_empty());
            begun += next.len();
            assert!(next.iter().all(|unit| window.admits(unit)));
        }
        assert_eq!((begun, window.pending.len()), (386, 384), "the bus bears no more");
        assert_eq!(window.next(seconds(1000), |_| true), []);
    }
}
