//! What is checked of unit files that is not in one file alone: how a unit goes with what it was and with other units.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Leader;
use crate::command::{UnitError, UnitErrorKind};
use crate::unit::{Options, UnitName};

/// The options that a command's files bring, by unit: those that will count.
pub(super) type Brought = BTreeMap<UnitName, Arc<Options>>;

impl Leader {
    /// Everything that is wrong with these files beside the other units.
    pub(super) fn check_together(&self, brought: &Brought) -> Vec<UnitError> {
        let mut errors = Vec::new();
        for (name, options) in brought {
            let mut wrong = Vec::new();
            wrong.extend(self.changes_guard(name, options));
            wrong.extend(self.is_activated_unguarded(name, options, brought));
            wrong.extend(self.waits_for_itself(name, options, brought));
            if !wrong.is_empty() {
                errors.push(UnitError { name: name.clone(), kind: UnitErrorKind::Invalid(wrong) });
            }
        }
        errors
    }

    fn options<'a>(&'a self, name: &UnitName, brought: &'a Brought) -> Option<&'a Options> {
        let known = || self.units.get(name).map(|unit| &*unit.options);
        brought.get(name).map(|options| &**options).or_else(known)
    }

    /// While a machine has the unit, nobody could say whether what runs there is guarded or not.
    fn changes_guard(&self, name: &UnitName, options: &Options) -> Option<String> {
        let unit = self.units.get(name).filter(|unit| !unit.placements.is_empty())?;
        (unit.options.exclusive != options.exclusive).then(|| {
            format!(
                "Exclusive= and ExclusiveStopSec= can change only while the unit is on no machine: `musterctl unload \
                 {name}` first"
            )
        })
    }

    /// Of a socket, a timer or a path and the unit that it activates, both are exclusive or the second is not.
    fn is_activated_unguarded(
        &self,
        name: &UnitName,
        options: &Options,
        brought: &Brought,
    ) -> Option<String> {
        let is_exclusive = |other: &UnitName| {
            self.options(other, brought).is_some_and(|options| options.exclusive.is_some())
        };
        if options.exclusive.is_none() {
            let activates = options.triggers.iter().find(|triggered| is_exclusive(triggered))?;
            return Some(format!(
                "it activates {activates}, which is exclusive: it must have Exclusive=yes itself, or it would start that \
                 unit where it must not run"
            ));
        }
        let known = self.activators.get(name).into_iter().flatten();
        let new =
            brought.iter().filter(|(_, options)| options.triggers.contains(name)).map(|(other, _)| other);
        let activator = known.chain(new).find(|other| {
            self.options(other, brought)
                .is_some_and(|options| options.triggers.contains(name) && options.exclusive.is_none())
        })?;
        Some(format!("{activator} activates it, and is not exclusive: give that one Exclusive=yes first"))
    }

    /// Units that wait for each other would wait for ever.
    fn waits_for_itself(&self, name: &UnitName, options: &Options, brought: &Brought) -> Option<String> {
        let mut seen = BTreeSet::new();
        let mut next: Vec<(&UnitName, Vec<&UnitName>)> =
            options.dependencies().map(|dependency| (dependency, Vec::new())).collect();
        while let Some((dependency, path)) = next.pop() {
            if dependency == name {
                let path: Vec<&str> = path.into_iter().map(UnitName::as_str).collect();
                return Some(format!(
                    "[X-Muster] Requires= and After=: it waits for {}, and that for it",
                    path.join(", which waits for ")
                ));
            }
            if seen.insert(dependency)
                && let Some(options) = self.options(dependency, brought)
            {
                let path: Vec<&UnitName> = path.iter().copied().chain([dependency]).collect();
                next.extend(options.dependencies().map(|further| (further, path.clone())));
            }
        }
        None
    }
}
