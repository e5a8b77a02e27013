//! Whether the work that something causes is bounded by what it is.

use crate::faults::seconds;
use crate::queue::SECOND;
use crate::world::{Event, World};

/// More than ever happens in a second of thirty units that start, stop, fail and are moved all at once.
const EVENTS_A_SECOND: u64 = 20_000;
/// Of how many copies machines are told, how many records are written and how much agents say, at most, each hundred times
/// that something happens to a unit; and besides, whatever happens. (Of a start alone PID 1 tells several times.)
const TOLD: u64 = 80;
const WRITTEN: u64 = 70;
const SAID: u64 = 60;
const ANYWAY: u64 = 100;

/// What was done in this history, and to how many units something happened that may be a reason for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// Each time that something happened to a unit: a client named it, its machine came, went or asked for everything anew, its
    /// state changed there, a leader took office or lost what it had decided.
    pub(crate) touched: u64,
    /// Copies in assignments, and the messages themselves.
    pub(crate) told: u64,
    /// Records in batches.
    pub(crate) written: u64,
    /// What agents said of units.
    pub(crate) said: u64,
}

impl World {
    /// Invariant 8: No storm. The work that a failure causes is bounded by what failed: nobody works without an end.
    pub(crate) fn no_storm(&mut self, event: &Event) {
        let second = self.queue.now() / SECOND;
        if self.second.0 != second {
            self.second = (second, 0);
            self.work_is_bounded_by_what_happened();
        }
        self.second.1 += 1;
        if self.second.1 > EVENTS_A_SECOND {
            let text = format!("{EVENTS_A_SECOND} things happened within one second; the last was {event:?}");
            self.violate("no_storm", text);
        }
    }

    fn work_is_bounded_by_what_happened(&mut self) {
        let Work { touched, told, written, said } = self.work;
        for (what, did, most) in [("told", told, TOLD), ("written", written, WRITTEN), ("said", said, SAID)] {
            if did > touched * most / 100 + ANYWAY {
                let text = format!(
                    "{did} copies were {what} until {:.0} s, and things happened to {touched}",
                    seconds(self.queue.now())
                );
                return self.violate("work_is_bounded_by_what_happened", text);
            }
        }
    }

    /// Something happens to all that is on this machine.
    pub(crate) fn touches_machine(&mut self, number: usize) {
        let on = self.book.decided.on(self.machines[number].id, true).len();
        self.work.touched += on as u64 + 1;
    }

    /// Something happens to everything.
    pub(crate) fn touches_all(&mut self) {
        for number in 0..self.machines.len() {
            self.touches_machine(number);
        }
        self.work.touched += self.book.decided.units.len() as u64;
    }
}
