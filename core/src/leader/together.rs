//! What is checked of unit files that is not in one file alone: how a unit goes with what it was and with other units.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Leader;
use crate::command::{UnitError, UnitErrorKind};
use crate::unit::{Options, UnitName};

/// The options that a command's files bring, by unit: those that will count.
pub(super) type Brought = BTreeMap<UnitName, Arc<Options>>;

/// So many units of a circle are named.
const NAMED: usize = 10;

impl Leader {
    /// Everything that is wrong with these files beside the other units.
    pub(super) fn check_together(&self, brought: &Brought) -> Vec<UnitError> {
        let mut errors = Vec::new();
        let mut waiting = self.wait_for_each_other(brought);
        for (name, options) in brought {
            let mut wrong = Vec::new();
            wrong.extend(self.changes_guard(name, options));
            wrong.extend(self.is_activated_unguarded(name, options, brought));
            wrong.extend(waiting.remove(name));
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

    /// Units that wait for each other would wait for ever: of each such circle that is found one of the units that are
    /// brought, with the others.
    fn wait_for_each_other(&self, brought: &Brought) -> BTreeMap<UnitName, String> {
        let mut wrong = BTreeMap::new();
        // Where a unit is on the path that is followed; none once all that it waits for was looked at. Each is looked at
        // once, however many there are: heartbeats wait meanwhile.
        let mut seen: BTreeMap<&UnitName, Option<usize>> = BTreeMap::new();
        for (name, options) in brought {
            if seen.contains_key(name) {
                continue;
            }
            seen.insert(name, Some(0));
            let mut path = vec![(name, options.dependencies())];
            while let Some((name, dependencies)) = path.last_mut() {
                let Some(dependency) = dependencies.next() else {
                    seen.insert(*name, None);
                    path.pop();
                    continue;
                };
                match seen.get(dependency) {
                    Some(None) => {}
                    Some(Some(begin)) => {
                        let circle = &path[*begin..];
                        // What is known already was checked when it came.
                        let new = circle.iter().position(|(name, _)| brought.contains_key(*name));
                        if let Some(new) = new.filter(|new| !wrong.contains_key(circle[*new].0)) {
                            let others = circle[new + 1..].iter().chain(&circle[..new]);
                            let others = others.map(|(name, _)| name.as_str());
                            wrong.insert(circle[new].0.clone(), waits_for_itself(others, circle.len() - 1));
                        }
                    }
                    None => {
                        if let Some(options) = self.options(dependency, brought) {
                            seen.insert(dependency, Some(path.len()));
                            path.push((dependency, options.dependencies()));
                        }
                    }
                }
            }
        }
        wrong
    }
}

/// A unit waits for the first of so many others, that for the next, and the last for it.
fn waits_for_itself<'a>(others: impl Iterator<Item = &'a str>, count: usize) -> String {
    let names: Vec<&str> = others.take(NAMED).collect();
    let more = match count - names.len() {
        0 => String::new(),
        more => format!(", which waits for {more} more one after the other"),
    };
    format!(
        "[X-Muster] Requires= and After=: it waits for {}{more}, and that for it",
        names.join(", which waits for ")
    )
}
