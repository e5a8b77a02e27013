//! The leader doubts itself first: the brake goes on when too many machines seem to die at once, and off as is written.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_core::ids::MachineId;
use muster_core::leader::ReleaseReason;
use muster_core::unit::UnitName;

use crate::book::MachineBook;
use crate::queue::Micros;
use crate::world::World;
use muster_core::time::Time;

/// How long what the leader says may wait for what it has decided to be written.
const LATE: Duration = Duration::from_secs(10);

/// What the leader has said of the brake that is on.
#[derive(Debug)]
pub(crate) struct Brake {
    /// The machines for which it was put on.
    machines: BTreeSet<usize>,
    /// A moment before which it was not put on: of the leader's, and for how long that had been stopped. None if that is not
    /// known.
    not_before: Option<(Time, Micros)>,
}

impl World {
    /// The leader doubts itself first: when a large share of the machines seems to die at once it moves nothing until it knows
    /// better.
    pub(super) fn the_leader_doubts_itself_first(&mut self, name: &UnitName, number: usize) {
        let text = format!("{name} is moved from m{number} although too many died at once");
        self.violate("the_leader_doubts_itself_first", text);
    }

    /// Whether this machine was lost within the last lease, and so many others with it. Those that were granted time to
    /// restart, and a brake that was held for so long that it is released, are left out.
    pub(super) fn too_many_died(&self, number: usize) -> bool {
        let lease = self.settings.lease();
        let silent = |book: &MachineBook| book.last_heard.map(|heard| self.ago(heard));
        // One that only says Hello is lost all the same, and earlier than when it says nothing any more.
        let proven =
            |book: &MachineBook| book.counts.filter(|_| book.unproven).map(|counts| self.ago(counts));
        let just_lost = |book: &MachineBook| {
            let window = lease..(lease * 2).saturating_sub(Duration::from_millis(600));
            !book.leaving
                && !book.pid1_lost
                && book.graced.is_none()
                && silent(book).is_some_and(|ago| window.contains(&ago))
                && proven(book).is_none_or(|ago| window.contains(&ago))
        };
        let books = &self.book.machines;
        let held_for_long = self.settings.brake_hold.saturating_sub(lease);
        let lost = books.iter().filter(|book| just_lost(book)).count();
        let known = books.iter().filter(|book| book.last_heard.is_some()).count();
        just_lost(&books[number])
            && books.iter().all(|book| silent(book).is_none_or(|ago| ago < held_for_long))
            && lost >= known.div_ceil(3).max(2)
    }

    /// The leader has heard of the machine. Whether that was silent meanwhile is seen by what counts for its lease.
    pub(super) fn machine_is_heard(&mut self, number: usize) {
        let silent = self.settings.heartbeat_interval * 2;
        let counts = self.book.machines[number].counts.filter(|_| self.book.machines[number].heard.is_some());
        if counts.is_none_or(|counts| self.ago_at_most(counts) > silent) {
            self.book.machines[number].steady = self.queue.now();
        }
    }

    /// Whether the leader cannot but take the machine for alive, now and since whatever it tells of now was decided.
    fn is_steady(&self, number: usize) -> bool {
        let book = &self.book.machines[number];
        let silent = self.settings.heartbeat_interval * 2;
        let decided = self.queue.now().min(self.book.tells_of);
        book.heard.is_some()
            && !book.pid1_lost
            && !book.leaving
            && book.counts.is_some_and(|counts| self.ago_at_most(counts) <= silent)
            && book.steady < decided
    }

    /// The brake is released: those that are still away count as dead from now on.
    pub(crate) fn silent_machines_are_given_up(&mut self) {
        let least = self.settings.heartbeat_interval * 2;
        for number in 0..self.machines.len() {
            let heard = self.book.machines[number].last_heard;
            if heard.map(|heard| self.ago(heard)).is_some_and(|ago| ago > least) {
                self.book.machines[number].last_heard = None;
            }
        }
    }

    /// The leader doubts itself first: it does so for that many machines which it has not heard from, and never for one alone.
    pub(super) fn the_brake_is_for_many(&mut self, machines: &[MachineId], of: usize) {
        let own = self.settings.own_machine.is_some_and(|own| !machines.contains(&own));
        let many = machines.len() >= of.div_ceil(3) || machines.len() + usize::from(own) >= of;
        if machines.len() < 2 || !many {
            let text = format!("the brake is on for {} machines of {of}", machines.len());
            return self.violate("the_leader_doubts_itself_first", text);
        }
        let machines = machines.iter().filter_map(|id| self.machine_number(*id)).collect::<BTreeSet<_>>();
        let all = 0..self.machines.len();
        // That may have been decided a while ago.
        let steady = |number: &usize| self.is_steady(*number);
        if let Some(number) = machines.iter().find(|number| steady(number)) {
            let text = format!("the brake is on for m{number}, which was heard all the time");
            return self.violate("the_leader_doubts_itself_first", text);
        }
        let least = all.clone().filter(|number| machines.contains(number) || steady(number)).count();
        let knows = |number: &usize| self.book.machines[*number].welcomed.is_some();
        let most = all.filter(|number| machines.contains(number) || knows(number)).count();
        if !(least..=most).contains(&of) {
            let text = format!("the brake is on for {machines:?} of {of}, and there are {least} to {most}");
            return self.violate("the_leader_doubts_itself_first", text);
        }
        // Lost a lease after it was heard from last; but for one that has said Hello again in the same step, and one whose PID 1
        // is silent.
        let silent = self.settings.heartbeat_interval * 2;
        let heard = |number: &usize| {
            let book = &self.book.machines[*number];
            book.last_heard.filter(|heard| !book.pid1_lost && self.ago(*heard) > silent)
        };
        let not_before =
            machines.iter().map(heard).collect::<Option<Vec<_>>>().and_then(|heard| heard.into_iter().min());
        self.book.brake = Some(Brake { machines, not_before });
    }

    /// The leader doubts itself first: it moves nothing until they are back, an operator confirms, or `brake_hold` passes; never
    /// by itself if it sees no machine but its own.
    pub(super) fn the_brake_is_released_for_a_reason(&mut self, reason: ReleaseReason) {
        let Some(brake) = self.book.brake.take() else { return };
        match reason {
            ReleaseReason::Operator => {}
            ReleaseReason::HoldPassed => {
                let most = brake.not_before.map(|moment| self.ago_at_most(moment));
                if let Some(most) =
                    most.filter(|most| *most < self.settings.lease_ttl + self.settings.brake_hold)
                {
                    let text =
                        format!("the brake is off before brake_hold has passed: after {most:?} at most");
                    return self.violate("the_leader_doubts_itself_first", text);
                }
                let lately = self.settings.lease() + LATE;
                let seen = |number: usize| {
                    let heard = self.book.machines[number].last_heard;
                    heard.is_some_and(|heard| self.ago(heard) < lately)
                        && Some(self.machines[number].id) != self.settings.own_machine
                };
                if !(0..self.machines.len()).any(seen) {
                    let text = "the brake is off while the leader sees no machine but its own".to_owned();
                    return self.violate("the_leader_doubts_itself_first", text);
                }
            }
            ReleaseReason::MachinesBack => {
                let lease = self.longest_lease();
                let away = |number: &&usize| {
                    let book = &self.book.machines[**number];
                    !book.leaving && book.last_heard.is_none_or(|heard| self.ago(heard) > lease * 2 + LATE)
                };
                let away = brake.machines.iter().filter(away).count();
                if away >= 2 && away >= self.machines.len().div_ceil(3) {
                    let text = format!("the brake is off since the machines are back, and {away} are away");
                    return self.violate("the_leader_doubts_itself_first", text);
                }
            }
        }
        self.silent_machines_are_given_up();
    }
}
