//! What leases were promised, and when machines were heard from.

use std::time::Duration;

use muster_core::leader::ConnectionId;
use muster_core::time::Time;

use crate::queue::Micros;
use crate::world::World;

impl World {
    /// What the leader promised with this answer, by the machine's clock.
    pub(crate) fn promises(&mut self, connection: ConnectionId, beat: u64) {
        let Some(stream) = self.network.stream(connection) else { return };
        // What is promised to a process that is gone, nobody hears.
        if !stream.agent_is(self.machines[stream.machine].agents) {
            return;
        }
        let end = stream.heartbeats.get(&beat).map(|sent| *sent + stream.lease_ttl);
        let book = &mut self.book.machines[stream.machine];
        book.promised = book.promised.max(end);
    }

    /// What the leader promised to an agent that is restarted.
    pub(crate) fn promises_grace(&mut self, connection: ConnectionId, lease: Duration) {
        if let Some(stream) = self.network.stream(connection)
            && let Some(said) = stream.goodbye
            && stream.agent_is(self.machines[stream.machine].agents)
        {
            let book = &mut self.book.machines[stream.machine];
            book.grace = Some(said + lease);
        }
    }

    /// How long ago the leader heard from the machine, by its clock, without the time in which it was stopped.
    pub(crate) fn heard_ago(&self, number: usize) -> Option<Duration> {
        Some(self.ago(self.book.machines[number].heard?))
    }

    /// The same for any moment that the leader had, at least.
    pub(crate) fn ago(&self, since: (Time, Micros)) -> Duration {
        self.ago_but_for(since, 102)
    }

    /// The same at most. The leader sees a stall by looking at its clock every quarter of a second, and may take each for
    /// that much shorter.
    pub(crate) fn ago_at_most(&self, since: (Time, Micros)) -> Duration {
        self.ago_but_for(since, 99) + Duration::from_secs(1)
    }

    /// How long ago a moment was, but for so many hundredths of the time in which the leader was stopped: its clock
    /// drifts meanwhile.
    fn ago_but_for(&self, (moment, stalled): (Time, Micros), hundredths: Micros) -> Duration {
        let now = self.queue.now();
        let stopped = Duration::from_micros((self.scheduler.stalled(now) - stalled) * hundredths / 100);
        self.scheduler.clock.time(now).since(moment).saturating_sub(stopped)
    }

    /// Whether the machine has reason to believe that its lease holds.
    pub(crate) fn lease_holds(&self, number: usize) -> bool {
        let machine = &self.machines[number];
        let now = machine.clock.time(self.queue.now());
        let book = &self.book.machines[number];
        machine.on && book.promised.max(book.grace).is_some_and(|end| now < end)
    }
}
