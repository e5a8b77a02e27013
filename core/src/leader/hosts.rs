//! Whether the host of a machine that is not heard answers all the same: then it is its agent that is to be looked at.
//!
//! Nothing is decided by that: who can say that a port is closed may not be able to run a unit, and may not be that machine.

use std::time::Duration;

use super::{Effect, Event, Leader};
use crate::ids::MachineId;
use crate::machine::MachineState;

/// How long after one question the next is asked, in the leader's own time.
const AGAIN: Duration = Duration::from_secs(15);

impl Leader {
    /// The machine is lost: its host is asked, now and then.
    pub(super) fn knock(&mut self, id: MachineId) {
        let Some(machine) = self.machines.get(&id) else { return };
        let address = machine.record.address.clone();
        if !address.is_empty() {
            self.knocks.insert(id, self.awake() + AGAIN);
            self.outbox.now(Effect::Knock(id, address));
        }
    }

    /// Asks the hosts again whose time has come.
    pub(super) fn knock_again(&mut self) {
        let awake = self.awake();
        let due = self.knocks.iter().filter(|(_, at)| **at <= awake).map(|(id, _)| *id);
        for id in due.collect::<Vec<_>>() {
            self.knocks.remove(&id);
            if self.machines.get(&id).is_some_and(|machine| machine.state == MachineState::Unreachable) {
                self.knock(id);
            }
        }
    }

    /// The machine's host has answered, or not.
    pub(super) fn knocked(&mut self, id: MachineId, answers: bool) {
        let unreachable = |machine: &&mut super::Machine| machine.state == MachineState::Unreachable;
        let Some(machine) = self.machines.get_mut(&id).filter(unreachable) else { return };
        if machine.host_answers.replace(answers) != Some(true) && answers {
            self.event(Event::HostAnswers(id));
        }
    }
}
