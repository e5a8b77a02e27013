//! Clients' changes: checked as a whole first, then done as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use litemap::LiteMap;

use super::{
    Change, Effect, Event, Leader, LingerEnd, PlaceReason, Retired, StoredCommand, Unit, description,
};
use crate::command::{
    Command, CommandError, CommandResult, Done, UnitArgument, UnitError, UnitErrorKind, UnitOutcome, Verb,
};
use crate::ids::{CommandId, MachineId};
use crate::leader::io::RequestId;
use crate::planted::{self, Fault};
use crate::state::DesiredState;
use crate::unit::{ContentHash, Options, UnitFile, UnitName};

/// How many results are kept, and of how many units they may tell in all. A client repeats a command within seconds; the
/// bounds are for the size of memory and store. The last result is kept in any case.
const KEPT_RESULTS: usize = 10_000;
const KEPT_OUTCOMES: usize = 100_000;

/// The results of recent commands.
#[derive(Debug, Default)]
pub(super) struct Commands {
    by_number: BTreeMap<u64, StoredCommand>,
    numbers: BTreeMap<CommandId, u64>,
    /// Of how many units the results tell.
    outcomes: usize,
}

impl Commands {
    pub(super) fn new(by_number: BTreeMap<u64, StoredCommand>) -> Self {
        let numbers = by_number.iter().map(|(number, command)| (command.id, *number)).collect();
        let outcomes = by_number.values().map(StoredCommand::outcomes).sum();
        let numbers = if planted::is(Fault::CommandsForgotten) { BTreeMap::new() } else { numbers };
        Self { by_number, numbers, outcomes }
    }

    fn result(&self, id: CommandId) -> Option<&CommandResult> {
        Some(&self.by_number.get(self.numbers.get(&id)?)?.result)
    }

    /// By the order in which the commands were given.
    pub(super) fn all(&self) -> &BTreeMap<u64, StoredCommand> {
        &self.by_number
    }

    /// Keeps a result, and forgets the oldest beyond the bound.
    fn keep(&mut self, command: StoredCommand) -> Vec<Change> {
        let number = self.by_number.last_key_value().map_or(0, |(number, _)| number + 1);
        self.numbers.insert(command.id, number);
        self.outcomes += command.outcomes();
        let mut changes = vec![Change::PutCommand(number, command.clone())];
        self.by_number.insert(number, command);
        while self.by_number.len() > KEPT_RESULTS
            || (self.outcomes > KEPT_OUTCOMES && self.by_number.len() > 1)
        {
            let Some((number, old)) = self.by_number.pop_first() else { break };
            self.numbers.remove(&old.id);
            self.outcomes -= old.outcomes();
            changes.push(Change::DeleteCommand(number));
        }
        changes
    }
}

/// A unit file that was checked.
#[derive(Clone, Debug)]
struct Checked {
    content: Arc<str>,
    hash: ContentHash,
    description: Box<str>,
    options: Arc<Options>,
    warnings: Vec<String>,
}

/// A unit of a command that was checked: its name, and its file, where there is one that counts.
struct Step {
    name: UnitName,
    file: Option<Checked>,
}

impl Leader {
    pub(super) fn execute(&mut self, request: RequestId, command: &Command) {
        let result = match self.commands.result(command.id) {
            Some(result) => result.clone(),
            None => self.execute_new(command),
        };
        if planted::is(Fault::AnswerBeforeCommit) {
            return self.outbox.now(Effect::AnswerCommand(request, result));
        }
        self.hold(Effect::AnswerCommand(request, result));
    }

    fn execute_new(&mut self, command: &Command) -> CommandResult {
        let steps = self.check(command).map_err(CommandError::Units)?;
        let outcomes: Vec<UnitOutcome> =
            steps.into_iter().map(|step| self.carry_out(command.verb, command.replace, step)).collect();
        let mut units = Vec::with_capacity(outcomes.len());
        for outcome in &outcomes {
            if !matches!(outcome.done, Done::Unchanged | Done::KeptOtherContent) {
                units.push(outcome.name.clone());
            }
        }
        if !units.is_empty() {
            self.event(Event::Command { verb: command.verb, units });
        }
        let result = Ok(outcomes);
        self.keep_result(command.id, result.clone());
        result
    }

    /// Whether the command of this id was carried out.
    pub(super) fn knows_result_of(&self, id: CommandId) -> bool {
        self.commands.result(id).is_some()
    }

    /// The command of this id is carried out.
    pub(super) fn keep_result(&mut self, id: CommandId, result: CommandResult) {
        let kept = self.commands.keep(StoredCommand { id, result });
        self.turn.changes.extend(kept);
    }

    /// Checks all units of a command. Nothing is changed.
    fn check(&self, command: &Command) -> Result<Vec<Step>, Vec<UnitError>> {
        let mut steps: Vec<Step> = Vec::with_capacity(command.units.len());
        let mut errors = Vec::new();
        // A template and its instances may come in one command.
        let mut templates: BTreeMap<UnitName, Arc<str>> = BTreeMap::new();
        for argument in first_of_each(&command.units) {
            match self.check_unit(command, argument, &templates) {
                Ok(step) => {
                    if let Some(file) = step.file.as_ref().filter(|_| step.name.is_template()) {
                        templates.insert(step.name.clone(), Arc::clone(&file.content));
                    }
                    steps.push(step);
                }
                Err(kind) => errors.push(UnitError { name: argument.name.clone(), kind }),
            }
        }
        if errors.is_empty() {
            let counts = |step: &&Step| command.replace || !self.units.contains_key(&step.name);
            let files = steps.iter().filter(counts).filter_map(|step| Some((step, step.file.as_ref()?)));
            let brought = files.map(|(step, file)| (step.name.clone(), Arc::clone(&file.options))).collect();
            errors = self.check_together(&brought);
        }
        if errors.is_empty() { Ok(steps) } else { Err(errors) }
    }

    fn check_unit(
        &self,
        command: &Command,
        argument: &UnitArgument,
        templates: &BTreeMap<UnitName, Arc<str>>,
    ) -> Result<Step, UnitErrorKind> {
        let name = &argument.name;
        let known = self.units.get(name);
        let step = |file| Ok(Step { name: name.clone(), file });
        match command.verb {
            Verb::Load | Verb::Start if name.is_template() => {
                return Err(UnitErrorKind::Template(example_instance(name)));
            }
            Verb::Submit | Verb::Load | Verb::Start => {}
            Verb::Destroy if self.strays.contains_key(name) => return step(None),
            _ if known.is_none() => return Err(UnitErrorKind::NotFound),
            Verb::Stop | Verb::Restart
                if known.is_some_and(|unit| unit.desired == DesiredState::Inactive) =>
            {
                let done = if command.verb == Verb::Stop { "stopped" } else { "restarted" };
                return Err(UnitErrorKind::Inactive(done.to_owned()));
            }
            Verb::Stop | Verb::Unload if command.replace => {}
            Verb::Stop | Verb::Unload | Verb::Destroy | Verb::Restart => return step(None),
        }
        let template = || {
            let template = name.template()?;
            templates.get(&template).or_else(|| Some(&self.units.get(&template)?.content))
        };
        let content = match (&argument.content, known) {
            (Some(content), _) => content,
            (None, Some(_)) => return step(None),
            (None, None) => template().ok_or(UnitErrorKind::NotFound)?,
        };
        if known.is_some_and(|unit| unit.content == *content) {
            return step(None);
        }
        if let Err(reason) = name.unit_type().schedulable() {
            return Err(UnitErrorKind::Invalid(vec![reason.to_owned()]));
        }
        let file = check_file(name, content)?;
        // Those that end it are asked for it.
        let ends = matches!(command.verb, Verb::Stop | Verb::Unload);
        if let Some(unit) = known.filter(|_| command.replace && !ends) {
            let verb_sets = wanted(command.verb).unwrap_or(DesiredState::Inactive);
            if unit.desired > verb_sets {
                let verb = if unit.desired == DesiredState::Loaded { "load" } else { "start" };
                return Err(UnitErrorKind::InUse(unit.desired, verb.to_owned()));
            }
        }
        step(Some(file))
    }

    /// Does what a command asks for one unit. It was checked before.
    fn carry_out(&mut self, verb: Verb, replace: bool, step: Step) -> UnitOutcome {
        let Step { name, file } = step;
        let warnings = file.as_ref().map(|file| file.warnings.clone()).unwrap_or_default();
        // Not started anew for a file with which it is to end.
        let ended = if matches!(verb, Verb::Stop | Verb::Unload) {
            self.set_desired(&name, wanted(verb).unwrap_or_default())
        } else {
            Done::Unchanged
        };
        let content = file.map(|file| {
            if !self.units.contains_key(&name) {
                self.create(&name, file);
                Done::Created
            } else if replace {
                self.replace(&name, file);
                Done::Replaced
            } else {
                Done::KeptOtherContent
            }
        });
        let state = match verb {
            Verb::Submit => Done::Unchanged,
            Verb::Stop | Verb::Unload => ended,
            Verb::Load | Verb::Start => self.set_desired(&name, wanted(verb).unwrap_or_default()),
            Verb::Restart => self.restart(&name),
            Verb::Destroy => self.destroy(&name),
        };
        self.turn.seen.push(name.clone());
        UnitOutcome { name, done: content.unwrap_or(state), warnings }
    }

    fn create(&mut self, name: &UnitName, file: Checked) {
        self.orders += 1;
        let Checked { content, hash, description, options, warnings: _ } = file;
        self.turn.changes.push(Change::PutFile(name.clone(), Arc::clone(&content).into()));
        let unit = Unit {
            content,
            hash,
            description,
            options,
            desired: DesiredState::Inactive,
            order: self.orders,
            done: false,
            why: PlaceReason::Asked,
            placements: LiteMap::new(),
        };
        self.index(name, &unit);
        self.units.insert(name.clone(), unit);
        // What is left of an earlier unit of this name counts as this one from now on.
        for machine in self.placer.copies(name) {
            self.queue.touch(machine);
        }
        self.turn.records.push(name.clone());
    }

    fn replace(&mut self, name: &UnitName, file: Checked) {
        self.mark_tied(name);
        let Some(mut unit) = self.units.remove(name) else { return };
        self.unindex(name, &unit);
        self.queue.remove(&unit);
        let Checked { content, hash, description, options, warnings: _ } = file;
        self.turn.changes.push(Change::PutFile(name.clone(), Arc::clone(&content).into()));
        (unit.content, unit.hash, unit.description, unit.options) = (content, hash, description, options);
        unit.done = false;
        self.troubles.forget(name);
        unit.why = PlaceReason::Replaced;
        self.index(name, &unit);
        self.units.insert(name.clone(), unit);
        self.turn.records.push(name.clone());
        // Where it stays, it may leave more room than before.
        for machine in self.placer.copies(name) {
            self.queue.touch(machine);
        }
        self.place_again(name);
        self.mark_tied(name);
    }

    fn set_desired(&mut self, name: &UnitName, desired: DesiredState) -> Done {
        let Some(unit) = self.units.get_mut(name) else { return Done::Unchanged };
        let was = std::mem::replace(&mut unit.desired, desired);
        // What has ended, or was given up, is started again by who asks for it.
        let done = std::mem::take(&mut unit.done);
        let failed = self.troubles.forget(name);
        if was == desired && desired == DesiredState::Launched && (done || failed) {
            self.turn.records.push(name.clone());
            self.renew_placements(name, PlaceReason::Asked);
            return Done::Changed;
        }
        if was == desired {
            return Done::Unchanged;
        }
        let Some(unit) = self.units.get_mut(name) else { return Done::Unchanged };
        if was == DesiredState::Inactive {
            unit.why = PlaceReason::Asked;
        }
        let placed = !unit.placements.is_empty();
        self.turn.records.push(name.clone());
        self.end_lingering(name, LingerEnd::Overtaken);
        match desired {
            DesiredState::Inactive => {
                self.unplace_all(name);
                self.unplace_followers(name);
            }
            _ if !placed => {}
            // Whatever it waited for to be started.
            DesiredState::Loaded => {
                self.gates.look_at(name);
                self.tell_placements(name);
            }
            // A later placement, so that a machine that hears only the last of "stop, start" starts it again.
            DesiredState::Launched => self.renew_placements(name, PlaceReason::Asked),
        }
        self.mark_tied(name);
        Done::Changed
    }

    fn restart(&mut self, name: &UnitName) -> Done {
        if self.units.get(name).is_some_and(|unit| unit.desired == DesiredState::Loaded) {
            return self.set_desired(name, DesiredState::Launched);
        }
        if self.units.get_mut(name).is_some_and(|unit| std::mem::take(&mut unit.done)) {
            // Also where it is on no machine.
            self.turn.records.push(name.clone());
        }
        self.troubles.forget(name);
        if !planted::is(Fault::RestartKeepsEpoch) {
            self.renew_placements(name, PlaceReason::Restarted);
        }
        Done::Changed
    }

    fn destroy(&mut self, name: &UnitName) -> Done {
        for (machine, epoch) in self.strays.remove(name).unwrap_or_default() {
            if self.latest_known(machine, name).is_none_or(|known| known < epoch) {
                // Nobody knows what it was started from.
                self.retire(machine, name, Retired { epoch, exclusive: None });
                self.count_stray(name, machine);
            }
        }
        self.set_desired(name, DesiredState::Inactive);
        if let Some(unit) = self.units.remove(name) {
            self.unindex(name, &unit);
            self.queue.remove(&unit);
            self.placer.forget_unit(name);
            self.turn.records.push(name.clone());
            // What activates it is tied to nothing any more.
            self.mark_followers(name);
        }
        Done::Destroyed
    }

    /// What an orphan takes up counts from the moment that its end is decided until it is gone.
    fn count_stray(&mut self, name: &UnitName, machine: MachineId) {
        let known = self.units.contains_key(name);
        if !known && self.placer.copies(name).next().is_none() {
            self.placer.set_unit(name, Arc::default());
        }
        self.placer.assign(name, machine);
        if !known {
            self.placer.forget_unit(name);
        }
    }

    /// Tells the machines that the unit's desired state is another one.
    fn tell_placements(&mut self, name: &UnitName) {
        for machine in self.units.get(name).into_iter().flat_map(|unit| unit.placements.keys()) {
            self.turn.tell(*machine, name);
        }
    }

    /// Gives each placement of the unit a later epoch: it stops and starts where it is.
    pub(super) fn renew_placements(&mut self, name: &UnitName, reason: PlaceReason) {
        let machines: Vec<MachineId> =
            self.units.get(name).map(|unit| unit.placements.keys().copied().collect()).unwrap_or_default();
        for machine in machines {
            let epoch = self.mint();
            self.set_placement(name, machine, epoch);
            self.placed_anew(name, machine, epoch, reason);
        }
    }
}

/// The units without those that were named before.
fn first_of_each(units: &[UnitArgument]) -> impl Iterator<Item = &UnitArgument> {
    let mut names: Vec<&UnitName> = units.iter().map(|unit| &unit.name).collect();
    names.sort_unstable();
    let repeated: BTreeSet<&UnitName> =
        names.windows(2).filter(|two| two[0] == two[1]).map(|two| two[0]).collect();
    let mut named = BTreeSet::new();
    units.iter().filter(move |unit| !repeated.contains(&unit.name) || named.insert(&unit.name))
}

fn wanted(verb: Verb) -> Option<DesiredState> {
    match verb {
        Verb::Submit | Verb::Destroy | Verb::Restart => None,
        Verb::Load | Verb::Stop => Some(DesiredState::Loaded),
        Verb::Start => Some(DesiredState::Launched),
        Verb::Unload => Some(DesiredState::Inactive),
    }
}

fn check_file(name: &UnitName, content: &Arc<str>) -> Result<Checked, UnitErrorKind> {
    let file = UnitFile::parse(content.as_bytes())
        .map_err(|error| UnitErrorKind::Invalid(vec![error.to_string()]))?;
    let parsed = Options::parse(name, &file)
        .map_err(|errors| UnitErrorKind::Invalid(errors.iter().map(ToString::to_string).collect()))?;
    Ok(Checked {
        content: Arc::clone(content),
        hash: file.hash(),
        description: description(&file),
        options: Arc::new(parsed.options),
        warnings: parsed.warnings.iter().map(ToString::to_string).collect(),
    })
}

fn example_instance(template: &UnitName) -> String {
    template.instance_of("1").map_or_else(|_| template.to_string(), |name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_results_are_forgotten_by_number_and_by_what_they_tell() {
        let outcome = |number: usize| UnitOutcome {
            name: UnitName::parse(&format!("u{number}.service")).unwrap(),
            done: Done::Changed,
            warnings: Vec::new(),
        };
        let result = |id: usize, units| StoredCommand {
            id: CommandId::new(id as u128),
            result: Ok((0..units).map(outcome).collect()),
        };
        let mut commands = Commands::default();
        for id in 0..=KEPT_RESULTS {
            commands.keep(result(id, 1));
        }
        assert_eq!(commands.by_number.len(), KEPT_RESULTS);
        assert_eq!(commands.result(CommandId::new(0)), None);
        let changes = commands.keep(result(20_000, KEPT_OUTCOMES - 5));
        assert_eq!(changes.len(), 1 + KEPT_RESULTS - 5);
        commands.keep(result(20_001, KEPT_OUTCOMES + 1));
        assert_eq!(commands.by_number.len(), 1);
        assert!(commands.result(CommandId::new(20_001)).is_some());
        assert_eq!(Commands::new(commands.by_number.clone()).outcomes, commands.outcomes);
    }
}
