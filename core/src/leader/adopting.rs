//! Units that a machine runs as its own: taken over as they run, and handed back.
//!
//! Their machine is asked what they are, and then they are units like any other, placed where they are. All of that is
//! durable before the machine moves a file. Until it says that a unit runs as the cluster's, the unit stays there whatever
//! happens: nobody else knows whether the machine would start it by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::commands::{Checked, check_file, example_instance};
use super::{Adopted, Effect, Event, Leader, Machine, PlaceReason, Retired, StoredCommand, Unit};
use crate::command::{Adoption, CommandError, CommandResult, Done, UnitError, UnitErrorKind, UnitOutcome};
use crate::ids::{Epoch, MachineId};
use crate::leader::io::{ConnectionId, RequestId};
use crate::message::LeaderMessage;
use crate::state::{DesiredState, Observation, Phase};
use crate::unit::UnitName;

/// What a machine says of a unit: its whole text, or why it cannot be adopted.
type Inspected = (UnitName, Result<Arc<str>, String>);

/// Adoptions that wait for what their machine says, and on which stream that is to come.
#[derive(Debug, Default)]
pub(super) struct Inspections(BTreeMap<RequestId, (ConnectionId, Adoption)>);

impl Leader {
    pub(super) fn adopt(&mut self, request: RequestId, adoption: Adoption) {
        let known = self.commands.result(adoption.id).cloned();
        let Some(result) = known.map_or_else(|| self.inspect(request, &adoption), Some) else {
            if let Some((connection, _)) = self.session_of(adoption.machine) {
                self.inspections.0.insert(request, (connection, adoption));
            }
            return;
        };
        self.hold(Effect::AnswerCommand(request, result));
    }

    /// Asks the machine about the units; or says at once what becomes of the adoption.
    fn inspect(&mut self, request: RequestId, adoption: &Adoption) -> Option<CommandResult> {
        if !self.leads() {
            return Some(Err(CommandError::NotLeader));
        }
        if let Err(reason) = self.can_be_asked(adoption.machine) {
            return Some(Err(CommandError::Machine(reason)));
        }
        let mut names = BTreeSet::new();
        let mut errors = Vec::new();
        for name in &adoption.units {
            match self.check_adoption(name, adoption.machine) {
                // A repetition.
                Ok(true) => {}
                Ok(false) => drop(names.insert(name.clone())),
                Err(why) => errors.push(refused(name, why)),
            }
        }
        if !errors.is_empty() {
            return Some(Err(CommandError::Units(errors)));
        }
        if names.is_empty() {
            return Some(self.take_over(adoption, Vec::new()));
        }
        let (connection, session) = self.session_of(adoption.machine)?;
        let (number, units) = (request.0, names.into_iter().collect());
        self.say(connection, session, LeaderMessage::Inspect { number, units });
        None
    }

    /// The machine has said what the units are.
    pub(super) fn inspected(&mut self, connection: ConnectionId, number: u64, units: Vec<Inspected>) {
        let request = RequestId(number);
        if self.inspections.0.get(&request).is_none_or(|(asked, _)| *asked != connection) {
            return;
        }
        let Some((_, adoption)) = self.inspections.0.remove(&request) else { return };
        let result = self.take_over(&adoption, units);
        self.hold(Effect::AnswerCommand(request, result));
    }

    /// Tells those who wait for a machine that is not there any more.
    pub(super) fn end_inspections(&mut self) {
        let is_lost = |(asked, _): &(ConnectionId, Adoption)| !self.connections.contains_key(asked);
        let lost = self.inspections.0.iter().filter(|(_, waits)| is_lost(waits)).map(|(request, _)| *request);
        for request in lost.collect::<Vec<_>>() {
            let Some((_, adoption)) = self.inspections.0.remove(&request) else { continue };
            let reason = format!(
                "the connection to machine {} was lost before it answered; nothing was changed, give the command again",
                adoption.machine.short()
            );
            self.hold(Effect::AnswerCommand(request, Err(CommandError::Machine(reason))));
        }
    }

    fn session_of(&self, machine: MachineId) -> Option<(ConnectionId, crate::ids::SessionNumber)> {
        let session = self.machines.get(&machine)?.session.as_ref()?;
        Some((session.connection, session.number))
    }

    /// Whether the machine can be asked to adopt units, or to take them back.
    fn can_be_asked(&self, id: MachineId) -> Result<(), String> {
        let Some(machine) = self.machines.get(&id) else {
            return Err(format!(
                "no machine of this cluster has the id {id}; `musterctl list-machines --full` shows those that have joined"
            ));
        };
        if machine.session.is_none() {
            return Err(format!(
                "machine {} is not connected: see `systemctl status muster-agent` there",
                id.short()
            ));
        }
        if !machine.adopts() {
            return Err(format!(
                "the agent of machine {} (version {}) cannot adopt units: upgrade it",
                id.short(),
                machine.record.version
            ));
        }
        Ok(())
    }

    /// Whether the unit was adopted there already.
    fn check_adoption(&self, name: &UnitName, machine: MachineId) -> Result<bool, String> {
        if name.is_template() || name.template().is_some() {
            return Err(format!(
                "a template and its instances share a file, so that one alone cannot be adopted: submit the template, stop the \
                 unit there, and start {} in the cluster",
                if name.is_template() { example_instance(name) } else { name.to_string() }
            ));
        }
        name.unit_type().schedulable().map_err(str::to_owned)?;
        let Some(unit) = self.units.get(name) else { return Ok(false) };
        if unit.adopted.is_some_and(|adopted| adopted.machine == machine) {
            return Ok(true);
        }
        match unit.placements.keys().next() {
            Some(on) if unit.options.global => {
                Err(format!("is a global unit of the cluster, on machine {} too", on.short()))
            }
            Some(on) => Err(format!(
                "is a unit of the cluster already, on machine {}: `musterctl destroy {name}` first, if the one on machine {} is \
                 to be in its place",
                on.short(),
                machine.short()
            )),
            None if unit.desired != DesiredState::Inactive => Err(format!(
                "is a unit of the cluster already, and waits for a machine: `musterctl unload {name}` first"
            )),
            None => Ok(false),
        }
    }

    /// Makes the units the cluster's: all of them, or none.
    fn take_over(&mut self, adoption: &Adoption, inspected: Vec<Inspected>) -> CommandResult {
        let machine = adoption.machine;
        self.can_be_asked(machine).map_err(CommandError::Machine)?;
        let mut errors = Vec::new();
        let mut files = BTreeMap::new();
        for (name, inspected) in inspected {
            // Other commands may have come first.
            let checked = match (self.check_adoption(&name, machine), inspected) {
                (Err(why), _) | (Ok(false), Err(why)) => Err(UnitErrorKind::Adoption(why)),
                (Ok(true), _) => continue,
                (Ok(false), Ok(content)) => self.check_adopted(&name, &content),
            };
            match checked {
                Ok(file) => drop(files.insert(name, file)),
                Err(kind) => errors.push(UnitError { name, kind }),
            }
        }
        if errors.is_empty() {
            let brought =
                files.iter().map(|(name, file)| (name.clone(), Arc::clone(&file.options))).collect();
            errors = self.check_together(&brought);
        }
        if errors.is_empty() {
            errors = self.check_room(machine, &files);
        }
        if !errors.is_empty() {
            return Err(CommandError::Units(errors));
        }
        let mut outcomes = Vec::with_capacity(adoption.units.len());
        for name in &adoption.units {
            let outcome = |done, warnings| UnitOutcome { name: name.clone(), done, warnings };
            match files.remove(name) {
                None => outcomes.push(outcome(Done::Unchanged, Vec::new())),
                Some(file) => {
                    outcomes.push(outcome(Done::Adopted, file.warnings.clone()));
                    self.place_adopted(name, machine, file);
                }
            }
        }
        let adopted = outcomes.iter().filter(|outcome| outcome.done == Done::Adopted);
        let units: Vec<UnitName> = adopted.map(|outcome| outcome.name.clone()).collect();
        if !units.is_empty() {
            self.event(Event::Adopting { machine, units });
        }
        let result = Ok(outcomes);
        let kept = self.commands.keep(StoredCommand { id: adoption.id, result: result.clone() });
        self.turn.changes.extend(kept);
        result
    }

    fn check_adopted(&self, name: &UnitName, content: &Arc<str>) -> Result<Checked, UnitErrorKind> {
        let file = check_file(name, content)?;
        if self.units.get(name).is_some_and(|unit| unit.content != *content) {
            return Err(UnitErrorKind::Adoption(format!(
                "the cluster knows it with other content: `musterctl destroy {name}` first, if what the machine has is to count"
            )));
        }
        if file.options.global {
            return Err(UnitErrorKind::Adoption(
                "is global by its file, and would be started on all machines: submit it instead".to_owned(),
            ));
        }
        if self.placer.copies(name).next().is_some() || self.strays.contains_key(name) {
            return Err(UnitErrorKind::Adoption(format!(
                "older copies of a unit of this name are left in the cluster: `musterctl status {name}` shows where"
            )));
        }
        Ok(file)
    }

    /// Whether the machine would take the units, as it does any other.
    fn check_room(&mut self, machine: MachineId, files: &BTreeMap<UnitName, Checked>) -> Vec<UnitError> {
        let mut errors = Vec::new();
        for (name, file) in files {
            self.placer.set_unit(name, Arc::clone(&file.options));
            let away = file.options.tied_to().find(|target| {
                let there = self.units.get(target).is_some_and(|unit| unit.placements.contains_key(&machine));
                !there && !files.contains_key(*target) && self.units.contains_key(target)
            });
            let taken = match away {
                Some(target) => Err(format!("must be on the machine of {target}, which is not there")),
                None => self.placer.check(std::slice::from_ref(name), machine).map_err(|why| why.to_string()),
            };
            if let Err(why) = taken {
                let why = format!("machine {} would not take it: {why}", machine.short());
                errors.push(refused(name, why));
            }
            self.placer.assign(name, machine);
        }
        for name in files.keys() {
            self.placer.release(name, machine);
            if !self.units.contains_key(name) {
                self.placer.forget_unit(name);
            }
        }
        errors
    }

    fn place_adopted(&mut self, name: &UnitName, machine: MachineId, file: Checked) {
        if !self.units.contains_key(name) {
            self.create(name, file);
        }
        let epoch = self.mint();
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.desired = DesiredState::Launched;
        unit.done = false;
        unit.adopted = Some(Adopted { machine, done: false });
        self.set_placement(name, machine, epoch);
        // It runs already.
        self.gates.open(machine, name, epoch);
        self.placed_first(name, machine, epoch);
        self.mark_tied(name);
    }

    fn placed_first(&mut self, name: &UnitName, machine: MachineId, epoch: Epoch) {
        let (unit, reason) = (name.clone(), PlaceReason::Adopted);
        self.event(Event::Placed { unit, machine, from: None, epoch, reason, with: None });
    }

    /// The machine says this of a unit's current copy there. Whether that counts as what any unit does: until it is adopted,
    /// what the machine does with it is none of the cluster's business.
    pub(super) fn look_at_adoption(
        &mut self,
        name: &UnitName,
        machine: MachineId,
        epoch: Epoch,
        observation: &Observation,
    ) -> bool {
        let Some(unit) = self.units.get_mut(name).filter(|unit| unit.is_being_adopted()) else { return true };
        match observation {
            Observation::Refused(reason) => {
                let (unit, reason) = (name.clone(), reason.as_str().into());
                self.event(Event::NotAdopted { unit, machine, reason });
                self.destroy(name);
                false
            }
            // A reboot came in between, or it was stopped: it is started from the cluster's files.
            Observation::Held { phase: Phase::Starting | Phase::Stopping | Phase::Loaded, .. } => false,
            Observation::Held { .. } => {
                unit.adopted = Some(Adopted { machine, done: true });
                self.turn.records.push(name.clone());
                self.turn.seen.push(name.clone());
                self.event(Event::Adopted { unit: name.clone(), machine, epoch });
                // Its machine may be drained, or lost since.
                self.mark_tied(name);
                true
            }
        }
    }

    /// That the unit is being adopted, for the reader.
    pub(super) fn adoption(&self, name: &UnitName) -> Option<String> {
        let unit = self.units.get(name).filter(|unit| unit.is_being_adopted())?;
        let machine = unit.adopted?.machine;
        let what = match self.can_be_asked(machine) {
            Ok(()) => "its files are being moved aside there".to_owned(),
            Err(reason) => reason,
        };
        Some(format!(
            "is being adopted from machine {}, and stays there until that is done: {what}",
            machine.short()
        ))
    }

    pub(super) fn check_release(&self, name: &UnitName) -> Result<(), UnitErrorKind> {
        let unit = self.units.get(name).ok_or(UnitErrorKind::NotFound)?;
        let refused = |reason: String| Err(UnitErrorKind::Adoption(reason));
        let Some(Adopted { machine, .. }) = unit.adopted else {
            return refused(format!(
                "was not adopted, so no machine has files of its own for it; `musterctl destroy {name}` stops and forgets it"
            ));
        };
        if !unit.placements.contains_key(&machine) {
            let on = unit
                .placements
                .keys()
                .next()
                .map_or("no machine".to_owned(), |on| format!("machine {}", on.short()));
            return refused(format!(
                "is on {on} now, and was adopted from machine {}, where its own files are kept: bring it back there first, or \
                 destroy it",
                machine.short()
            ));
        }
        self.can_be_asked(machine).map_err(UnitErrorKind::Adoption)
    }

    /// Has the unit handed back to the machine that it was adopted from. It was checked before.
    pub(super) fn release(&mut self, name: &UnitName) -> Done {
        let Some(unit) = self.units.get_mut(name) else { return Done::Unchanged };
        let Some(Adopted { machine, .. }) = unit.adopted else { return Done::Unchanged };
        let exclusive = unit.options.exclusive;
        let Some(epoch) = unit.placements.remove(&machine) else { return Done::Unchanged };
        self.gates.forget(machine, name);
        self.retire(machine, name, Retired { epoch, exclusive, release: true });
        self.destroy(name);
        Done::Released
    }
}

impl Unit {
    /// Whether its machine has not said yet that it runs as the cluster's.
    pub(super) fn is_being_adopted(&self) -> bool {
        self.adopted.is_some_and(|adopted| !adopted.done && self.placements.contains_key(&adopted.machine))
    }
}

impl Machine {
    /// Whether its agent can adopt units.
    pub(super) fn adopts(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.adopts)
    }
}

fn refused(name: &UnitName, why: String) -> UnitError {
    UnitError { name: name.clone(), kind: UnitErrorKind::Adoption(why) }
}
