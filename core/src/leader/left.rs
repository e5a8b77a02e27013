//! What is left on a machine that is emptied, and why: for those who wait until nothing is.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Copy, Leader, Machine, Unit};
use crate::command::Left;
use crate::ids::{Epoch, MachineId};
use crate::machine::Availability;
use crate::state::{Observation, Phase};
use crate::unit::UnitName;

/// How many units of a machine are named.
const NAMED: usize = 10;
/// How many different reasons of machines one sentence names.
const REASONS: usize = 3;

impl Leader {
    /// The first of what is left on the machine: what is on its way first, global units last. It says of at most so many
    /// why each other machine refuses them.
    pub(super) fn left(&self, id: MachineId, explained: &mut usize) -> Vec<Left> {
        let rank = |name: &UnitName| match self.units.get(name) {
            Some(unit) if unit.placements.contains_key(&id) => 1 + u8::from(unit.options.global),
            _ => 0,
        };
        let mut names: Vec<&UnitName> = self.left_on(id).collect();
        names.sort_by_key(|name| rank(name));
        let mut all = Vec::new();
        for name in names.into_iter().take(NAMED) {
            let placed = self.units.get(name).filter(|unit| unit.placements.contains_key(&id));
            let (why, stops) = match placed {
                Some(_) if *explained == 0 => break,
                Some(unit) => {
                    *explained -= 1;
                    (self.why_it_stays(name, unit, id), false)
                }
                None => self.how_it_goes(name, id),
            };
            all.push(Left { unit: name.clone(), why, stops });
        }
        all
    }

    /// Why a unit that is placed on the machine is placed there still.
    fn why_it_stays(&self, name: &UnitName, unit: &Unit, id: MachineId) -> String {
        if unit.options.global {
            return "is global, and stops when nothing else is left".to_owned();
        }
        if !self.settled {
            return "waits for the other machines to report to the scheduler, which has just started"
                .to_owned();
        }
        let group = match self.group(name) {
            Ok(group) => group,
            Err(why) => return format!("no other machine takes it: {why}"),
        };
        let mut refusals = self.refusals(&group);
        if refusals.len() == self.machines.len() {
            refusals.retain(|(machine, _)| *machine != id);
            let tied = match group.units.len() {
                1 => "it".to_owned(),
                many => format!("the {many} units that are tied together"),
            };
            return format!("no other machine takes {tied}: {}", summary(&refusals));
        }
        self.why_not_yet(&group.units, id)
    }

    /// Why units are on the machine still that another one takes.
    pub(super) fn why_not_yet(&self, units: &[UnitName], id: MachineId) -> String {
        if self.may_run_to_its_end(units) {
            return "runs to its end here, if the time of the drain lasts".to_owned();
        }
        match self.machines.get(&id).map(|machine| machine.availability) {
            Some(Availability::Draining(drain)) if self.moves_enough(id) => {
                format!("waits for its turn (--max-parallel {})", drain.max_parallel)
            }
            _ => "has not moved yet".to_owned(),
        }
    }

    /// How far a unit is that is not placed on the machine any more, and whether it is being stopped there.
    fn how_it_goes(&self, name: &UnitName, id: MachineId) -> (String, bool) {
        if !self.retired.contains_key(&(id, name.clone())) {
            let why =
                format!("is orphaned, the cluster has no record of it; `musterctl destroy {name}` ends it");
            return (why, false);
        }
        let unit = self.units.get(name).filter(|unit| !unit.options.global);
        let home = unit.and_then(|unit| Some((unit, unit.placements.iter().next()?)));
        let hindrance = self.hindrance(name, id);
        let Some((unit, (home, epoch))) = home else {
            if self.lingering.runs_on(id, name) {
                return ("runs on here, and no other machine takes it".to_owned(), false);
            }
            return (format!("is being stopped here{hindrance}"), true);
        };
        let there = home.short();
        if self.lingering.runs_on(id, name) {
            return (self.how_it_starts(name, unit, *home, *epoch), false);
        }
        let why = if self.copy_on(name, *home, *epoch).is_some_and(|copy| copy.observation.is_active()) {
            format!("is active on {there}, and is being stopped here{hindrance}")
        } else if unit.options.exclusive.is_some() {
            format!("is exclusive, and is being stopped here before it is started on {there}{hindrance}")
        } else {
            format!("is being stopped here, and goes to {there}{hindrance}")
        };
        (why, true)
    }

    /// Why the unit's copy on the machine could not be ended so far, if that was tried, to be added to a sentence.
    pub(super) fn hindrance(&self, name: &UnitName, id: MachineId) -> String {
        let copy = self.machines.get(&id).and_then(|machine| machine.observed.get(name));
        match copy.map(|copy| &copy.observation) {
            Some(Observation::Held { phase: Phase::StopFailed(failure), .. }) => {
                format!(": {}", failure.reason)
            }
            _ => String::new(),
        }
    }

    /// How far the unit is where it is to become active.
    fn how_it_starts(&self, name: &UnitName, unit: &Unit, home: MachineId, epoch: Epoch) -> String {
        let there = home.short();
        if let Some(why) = self.machines.get(&home).and_then(Machine::why_idle) {
            return format!("is to start on {there}, which {why}");
        }
        if let Some(why) = self.withheld(name, unit) {
            return format!("is to start on {there}, and is not started yet: {why}");
        }
        let trouble = self.trouble(name).map_or(String::new(), |trouble| format!("; {trouble}"));
        match self.copy_on(name, home, epoch).map(|copy| &copy.observation) {
            Some(Observation::Refused(reason)) => format!("is refused by {there}: {reason}{trouble}"),
            Some(Observation::Held { phase: Phase::StartFailed(failure), .. }) => {
                format!("did not start on {there}: {}{trouble}", failure.reason)
            }
            Some(Observation::Held { phase: Phase::Failed(failure), .. }) => {
                format!("failed on {there}: {}{trouble}", failure.reason)
            }
            _ => format!("is being started on {there}"),
        }
    }

    fn copy_on(&self, name: &UnitName, machine: MachineId, epoch: Epoch) -> Option<&Copy> {
        let copy = self.machines.get(&machine)?.observed.get(name)?;
        (copy.epoch == epoch).then_some(copy)
    }
}

/// What machines say, what most of them say first.
fn summary(refusals: &[(MachineId, String)]) -> String {
    let mut by_reason: BTreeMap<&str, Vec<MachineId>> = BTreeMap::new();
    for (machine, why) in refusals {
        by_reason.entry(why).or_default().push(*machine);
    }
    let mut by_reason: Vec<(&str, Vec<MachineId>)> = by_reason.into_iter().collect();
    by_reason.sort_by_key(|(_, machines)| Reverse(machines.len()));
    let mut reasons: Vec<String> = by_reason
        .iter()
        .take(REASONS)
        .map(|(why, machines)| match machines.as_slice() {
            [machine] => format!("{}: {why}", machine.short()),
            machines => format!("{} machines: {why}", machines.len()),
        })
        .collect();
    match by_reason.len().saturating_sub(REASONS) {
        0 if reasons.is_empty() => return "there is none".to_owned(),
        0 => {}
        more => reasons.push(format!("and {more} more reasons")),
    }
    reasons.join("; ")
}
