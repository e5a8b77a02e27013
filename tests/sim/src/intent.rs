//! What the units of the cluster should be, after the commands that were carried out: a simple model, against which
//! the leader is held.

use std::collections::BTreeMap;

use muster_core::command::Verb;
use muster_core::state::DesiredState;

use crate::faults::Ask;

/// What is wanted of each unit: which file, and what to do with it. By the numbers of units and files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) units: BTreeMap<usize, (usize, DesiredState)>,
}

impl Intent {
    /// Does what a command asks for, or nothing when it is to be refused.
    pub(crate) fn carry_out(&mut self, ask: &Ask) -> Result<(), String> {
        let Ask::Command { verb, units, content, replace } = ask else { return Ok(()) };
        for unit in units {
            self.check(*verb, *unit, *content, *replace)?;
        }
        for unit in units {
            self.change(*verb, *unit, *content, *replace);
        }
        Ok(())
    }

    /// Destroys those of the units that are known: of what the cluster does not know, copies may be left.
    pub(crate) fn destroy(&mut self, ask: &Ask) {
        if let Ask::Command { verb: Verb::Destroy, units, .. } = ask {
            self.units.retain(|unit, _| !units.contains(unit));
        }
    }

    fn check(&self, verb: Verb, unit: usize, content: Option<usize>, replace: bool) -> Result<(), String> {
        let known = self.units.get(&unit);
        let refused = |why: &str| Err(format!("u{unit:02} {why}"));
        match (verb, known, content) {
            (Verb::Submit | Verb::Load | Verb::Start, None, None) => refused("is unknown"),
            (Verb::Submit | Verb::Load | Verb::Start, Some((old, desired)), Some(new)) => {
                let sets = sets(verb).unwrap_or(DesiredState::Inactive);
                if *old != new && replace && *desired > sets { refused("is in use") } else { Ok(()) }
            }
            (Verb::Submit | Verb::Load | Verb::Start, _, _) => Ok(()),
            (_, None, _) => refused("is unknown"),
            (Verb::Stop | Verb::Restart, Some((_, DesiredState::Inactive)), _) => refused("is inactive"),
            (Verb::Stop | Verb::Restart | Verb::Unload | Verb::Destroy, Some(_), _) => Ok(()),
        }
    }

    fn change(&mut self, verb: Verb, unit: usize, content: Option<usize>, replace: bool) {
        if matches!(verb, Verb::Submit | Verb::Load | Verb::Start)
            && let Some(content) = content
        {
            let known = self.units.entry(unit).or_insert((content, DesiredState::Inactive));
            if replace {
                known.0 = content;
            }
        }
        // What ends takes a file only where it is to be replaced.
        if matches!(verb, Verb::Stop | Verb::Unload)
            && replace
            && let (Some(known), Some(content)) = (self.units.get_mut(&unit), content)
        {
            known.0 = content;
        }
        if verb == Verb::Destroy {
            self.units.remove(&unit);
        }
        if let (Some(known), Some(desired)) = (self.units.get_mut(&unit), sets(verb)) {
            known.1 = desired;
        }
    }
}

/// The desired state that a verb sets.
fn sets(verb: Verb) -> Option<DesiredState> {
    match verb {
        Verb::Submit | Verb::Destroy => None,
        Verb::Load | Verb::Stop => Some(DesiredState::Loaded),
        Verb::Start | Verb::Restart => Some(DesiredState::Launched),
        Verb::Unload => Some(DesiredState::Inactive),
    }
}
