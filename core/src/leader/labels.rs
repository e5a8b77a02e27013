//! Labels of machines that clients change at run time: laid over what the machine's agent says, for as long as nobody
//! changes them again.

use std::collections::BTreeMap;

use super::{Change, Effect, Event, Leader, LingerEnd, PlaceReason, UnplaceReason};
use crate::command::LabelEdit;
use crate::ids::MachineId;
use crate::leader::io::RequestId;
use crate::machine::{LabelEdits, Labels, edited};
use crate::planted::{self, Fault};
use crate::unit::UnitName;

impl Leader {
    /// The machine's labels that count.
    pub(super) fn labels_of(&self, id: MachineId) -> Labels {
        let own = self.machines.get(&id).map(|machine| &machine.record.labels);
        own.map(|labels| edited(labels, self.labels.get(&id))).unwrap_or_default()
    }

    /// Carries out changes of labels: all of them in this order, or none.
    pub(super) fn edit_labels(&mut self, request: RequestId, edits: &[LabelEdit]) {
        let result = edits.iter().try_for_each(LabelEdit::check);
        if result.is_ok() {
            let mut changed: BTreeMap<MachineId, LabelEdits> = BTreeMap::new();
            for LabelEdit { machine, key, value } in edits {
                let known = self.labels.entry(*machine).or_default();
                if known.get(key) != Some(value) {
                    known.insert(key.clone(), value.clone());
                    changed.entry(*machine).or_default().insert(key.clone(), value.clone());
                }
            }
            for (machine, edits) in changed {
                let all = self.labels.get(&machine).cloned().unwrap_or_default();
                self.turn.changes.push(Change::PutLabels(machine, all));
                self.event(Event::Labels { machine, edits });
                self.relabelled(machine);
            }
        }
        if planted::is(Fault::LabelsBeforeCommit) {
            return self.outbox.now(Effect::AnswerMachines(request, result));
        }
        self.hold(Effect::AnswerMachines(request, result));
    }

    /// The machine's labels are other ones. As in fleet a unit that asks for what it has no more is taken off it; nothing
    /// else moves.
    fn relabelled(&mut self, id: MachineId) {
        let Some(machine) = self.machines.get(&id) else { return };
        let capacity = machine.record.capacity;
        self.placer.set_machine(id, self.labels_of(id), capacity);
        self.queue.touch(id);
        let misplaced = |name: &&UnitName| {
            let placed = self.units.get(name).is_some_and(|unit| unit.placements.contains_key(&id));
            placed && (!self.placer.labels_suit(name, id) || planted::is(Fault::RelabelledAllMove))
        };
        for name in self.placer.units_on(id).filter(misplaced).cloned().collect::<Vec<_>>() {
            let reason = UnplaceReason::Relabelled;
            self.event(Event::Unplaced { unit: name.clone(), machine: id, reason });
            self.unplace(&name, id);
            if let Some(unit) = self.units.get_mut(&name).filter(|unit| unit.placements.is_empty()) {
                unit.why = PlaceReason::Relabelled;
                self.end_lingering(&name, LingerEnd::Overtaken);
            }
            self.unplace_followers(&name);
            self.mark(&name);
        }
    }
}
