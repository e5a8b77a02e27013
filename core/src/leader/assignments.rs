//! What machines are told: what to hold, and what to remove.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Effect, Gate, Held, Leader, Unit, sorted};
use crate::ids::{Epoch, MachineId, Revision};
use crate::message::{Assignment, Assignments, LeaderMessage, Removal, ToAgent};
use crate::planted::{self, Fault};
use crate::state::{DesiredState, Observation, Phase, Target};
use crate::unit::UnitName;

impl Leader {
    /// Tells the machine everything: what it should hold, and what it should not any more.
    pub(super) fn send_snapshot(&mut self, id: MachineId) {
        let names = self.placer.units_on(id).cloned().collect();
        let (hold, remove) = self.orders_for(id, names);
        self.send_assignments(id, true, hold, remove);
    }

    pub(super) fn send_deltas(&mut self, copies: BTreeMap<MachineId, Vec<UnitName>>) {
        for (machine, names) in copies {
            let (hold, remove) = self.orders_for(machine, sorted(names));
            if !hold.is_empty() || !remove.is_empty() {
                self.send_assignments(machine, false, hold, remove);
            }
        }
    }

    fn send_assignments(
        &mut self,
        id: MachineId,
        snapshot: bool,
        hold: Vec<Assignment>,
        remove: Vec<Removal>,
    ) {
        // That a unit was placed in an earlier boot is known only from the machine's record. A snapshot follows that.
        if self.unsaved.contains(&id) {
            return;
        }
        let Some(session) = self.machines.get_mut(&id).and_then(|machine| machine.session.as_mut()) else {
            return;
        };
        session.revision = Revision(session.revision.0 + 1);
        let assignments = Assignments { snapshot, revision: session.revision, hold, remove };
        let (connection, session) = (session.connection, session.number);
        let message = ToAgent { term: self.term, session, body: LeaderMessage::Assignments(assignments) };
        if planted::is(Fault::AssignmentBeforeCommit) {
            return self.outbox.now(Effect::Send(connection, message));
        }
        self.outbox.hold(Held::Effect(Effect::Send(connection, message)));
    }

    /// What the machine must be told of these units.
    fn orders_for(&self, id: MachineId, names: Vec<UnitName>) -> (Vec<Assignment>, Vec<Removal>) {
        let mut hold = Vec::new();
        let mut remove = Vec::new();
        let Some(machine) = self.machines.get(&id) else { return (hold, remove) };
        for name in names {
            let unit = self.units.get(&name);
            if let Some((unit, epoch)) = unit.and_then(|unit| Some((unit, *unit.placements.get(&id)?))) {
                let held = machine.observed.get(&name).filter(|copy| copy.epoch == epoch);
                // Until every machine has had the time to report, a later copy may be anywhere: nothing new is started.
                if held.is_none() && !self.settled {
                    continue;
                }
                let Some(target) = self.target(unit, id, &name, epoch) else { continue };
                let adopt = unit.is_being_adopted();
                if adopt && !machine.adopts() {
                    continue;
                }
                let has_content = held.is_some_and(|copy| {
                    copy.hash == unit.hash && matches!(copy.observation, Observation::Held { .. })
                });
                hold.push(Assignment {
                    epoch,
                    hash: unit.hash,
                    content: (!has_content).then(|| Arc::clone(&unit.content)),
                    target,
                    exclusive: unit.options.exclusive,
                    adopt,
                    name,
                });
            } else if let Some(retired) = self.retired.get(&(id, name.clone()))
                && !self.lingering.runs_on(id, &name)
                && (!retired.release || machine.adopts())
            {
                remove.push(Removal { name, epoch: retired.epoch, release: retired.release });
            }
        }
        (hold, remove)
    }

    /// What the machine is told to do with its placement of a unit; none while it is not to know of it.
    pub(super) fn target(&self, unit: &Unit, id: MachineId, name: &UnitName, epoch: Epoch) -> Option<Target> {
        let has_run_here = || {
            let copy = self.machines.get(&id).and_then(|machine| machine.observed.get(name));
            // What was only loaded may be stopped for what something else had started of it; and an agent that was killed may
            // not have written down how a start ended.
            copy.is_some_and(|copy| {
                let ran = matches!(
                    copy.observation,
                    Observation::Held {
                        phase: Phase::Launched | Phase::StartFailed(_) | Phase::Failed(_),
                        ..
                    }
                );
                copy.epoch == epoch && ran
            })
        };
        let wanted = match unit.desired {
            // It is not started a second time; where it has run, nothing is stopped either.
            DesiredState::Launched if unit.done && !has_run_here() => Target::Loaded,
            DesiredState::Launched => Target::Launched,
            DesiredState::Inactive | DesiredState::Loaded => Target::Loaded,
        };
        if !unit.options.is_gated() {
            return Some(wanted);
        }
        match self.gates.of(id, name, epoch)? {
            Gate::Shut { .. } => None,
            Gate::Loaded { .. } => Some(Target::Loaded),
            Gate::Open => Some(wanted),
        }
    }
}
