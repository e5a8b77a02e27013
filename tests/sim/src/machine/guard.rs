//! The guard of exclusive units on a simulated machine.

use muster_core::time::Time;

use super::{AgentProcess, EXCEPTED};
use crate::invariants::Touches;
use crate::palette::EXCLUSIVE_STOPS;
use crate::queue::{MILLI, Micros, SECOND};
use crate::systemd::{Later, Out};
use crate::world::{Event, World};

/// How long the agent takes at most to see that what the guard was for has not ended, and to kill it: its clock may be
/// behind.
const FENCING: Micros = 200 * MILLI;

impl World {
    /// The guard is started to last until then.
    pub(super) fn arm_guard(&mut self, number: usize, until: Time, out: &mut Out) -> Result<(), String> {
        let machine = &mut self.machines[number];
        if machine.guard.is_none() && machine.systemd.guarded {
            return Err("the guard does not run".to_owned());
        }
        if !machine.systemd.start_guard(out) {
            return Err("the guard does not start".to_owned());
        }
        self.guard_lasts(number, until);
        Ok(())
    }

    /// The guard lasts until this moment of its machine's clock.
    pub(super) fn guard_lasts(&mut self, number: usize, until: Time) {
        let machine = &mut self.machines[number];
        machine.guards += 1;
        machine.guard = Some(machine.guards);
        let ends = machine.clock.moment(until);
        machine.guard_until = ends;
        self.queue.at(ends, Event::GuardEnds(number, machine.boot, machine.guards));
    }

    /// The guard has not been told to last longer.
    pub(crate) fn guard_ends(&mut self, number: usize, boot: u64, guard: u64) {
        let machine = &mut self.machines[number];
        if machine.boot != boot || !machine.on || machine.guard.is_some_and(|runs| runs != guard) {
            return;
        }
        let ran = machine.guard.take().is_some();
        if machine.pid1_busy > 0 {
            machine.pid1_waiting.push(Event::GuardEnds(number, boot, guard));
            // The guard's process leaves another one behind, which PID 1 would end; if it is not dead itself.
            let dead = machine.random.chance(500);
            for stop in EXCLUSIVE_STOPS {
                self.queue.after(stop * SECOND, Event::Fences(number, boot, stop, dead));
                // Where the agent was to do it, it may have died of a sudden.
                self.queue.after(stop * SECOND + FENCING, Event::Fences(number, boot, stop, dead));
            }
        } else if machine.systemd.guarded {
            self.note(|| format!("m{number}: the guard ends"));
            if ran {
                self.control_plane_is_not_the_workload(Touches::GuardEnds(number));
            }
            let mut out = Out::default();
            self.machines[number].systemd.guard_ends(&mut out);
            self.pid1_did(number, out);
        }
    }

    /// The guard's process dies: for PID 1 that is the end of the guard, whenever it comes.
    pub(crate) fn guard_dies(&mut self, number: usize) {
        let machine = &self.machines[number];
        let Some(guard) = machine.guard.filter(|_| machine.on) else { return };
        self.book.machines[number].guard_kept = false;
        self.guard_ends(number, machine.boot, guard);
    }

    /// What the guard's process has left behind kills what may take so many seconds to stop.
    pub(crate) fn fences(&mut self, number: usize, boot: u64, stop: u64, dead: bool) {
        let machine = &mut self.machines[number];
        // Of the two that see to that one is alive: who has been the agent for so long knows when the lease was over.
        let since = (self.queue.now() - stop * SECOND).saturating_sub(EXCEPTED);
        let able = |agent: &AgentProcess| agent.frozen == 0 && agent.agent.lease_end().is_some();
        let dead = dead && machine.agent_since <= since && machine.agent.as_ref().is_some_and(able);
        if machine.boot == boot && machine.on && machine.pid1_busy > 0 && machine.guard.is_none() && !dead {
            machine.systemd.fence(stop);
            self.queue.after(0, Event::Later(number, boot, Later::Reaps));
        }
    }
}
