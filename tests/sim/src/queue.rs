//! What happens when: one queue for the whole world, and a clock for each machine.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use muster_core::time::Time;

/// True time, which no machine knows: microseconds since the world began.
pub(crate) type Micros = u64;

pub(crate) fn micros(span: Duration) -> Micros {
    Micros::try_from(span.as_micros()).unwrap_or(Micros::MAX)
}

pub(crate) const MILLI: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// Events in the order of their moments; those of one moment in the order in which they were put in.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    now: Micros,
    count: u64,
    events: BinaryHeap<Reverse<Entry<E>>>,
}

#[derive(Debug)]
struct Entry<E> {
    at: Micros,
    count: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.count).cmp(&(other.at, other.count))
    }
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self { now: 0, count: 0, events: BinaryHeap::new() }
    }

    pub(crate) fn now(&self) -> Micros {
        self.now
    }

    pub(crate) fn at(&mut self, at: Micros, event: E) {
        self.count += 1;
        self.events.push(Reverse(Entry { at: at.max(self.now), count: self.count, event }));
    }

    pub(crate) fn after(&mut self, wait: Micros, event: E) {
        self.at(self.now + wait, event);
    }

    /// The next event until that moment, which has come if there is none.
    pub(crate) fn next_before(&mut self, until: Micros) -> Option<E> {
        if self.events.peek().is_some_and(|Reverse(entry)| entry.at <= until) {
            return self.next();
        }
        self.now = self.now.max(until);
        None
    }

    pub(crate) fn next(&mut self) -> Option<E> {
        let Reverse(entry) = self.events.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

/// A machine's `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    since: Micros,
    shown: Micros,
    /// How much faster than true time it runs, in millionths.
    drift: i64,
}

impl Clock {
    /// A clock that shows this now.
    pub(crate) fn new(now: Micros, shown: Micros, drift: i64) -> Self {
        Self { since: now, shown, drift }
    }

    fn rate(self) -> u128 {
        u128::from(1_000_000_u64.saturating_add_signed(self.drift))
    }

    fn shows(self, now: Micros) -> Micros {
        let passed = u128::from(now - self.since) * self.rate() / 1_000_000;
        self.shown + u64::try_from(passed).unwrap_or(u64::MAX)
    }

    /// What it shows at this moment.
    pub(crate) fn time(self, now: Micros) -> Time {
        Time::from_boot(Duration::from_micros(self.shows(now)))
    }

    /// The first moment at which it shows this.
    pub(crate) fn moment(self, shown: Time) -> Micros {
        let shown = shown.since(Time::default()).as_micros();
        let ahead = shown.saturating_sub(u128::from(self.shown));
        self.since + u64::try_from((ahead * 1_000_000).div_ceil(self.rate())).unwrap_or(u64::MAX / 2)
    }

    /// It jumps forward, as after a suspend in which it was not looked at.
    pub(crate) fn jump(&mut self, now: Micros, by: Micros) {
        *self = Self { since: now, shown: self.shows(now) + by, drift: self.drift };
    }

    pub(crate) fn drift(self) -> i64 {
        self.drift
    }
}
