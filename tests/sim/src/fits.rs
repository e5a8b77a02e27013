//! Where a unit fits: a model as simple as can be, against which the leader's own check is held.

use std::collections::BTreeSet;

use muster_core::unit::UnitName;

use crate::book::Decided;
use crate::palette::{CPU, MEMORY, Options, Palette, machine_id, matches};

fn options<'a>(palette: &'a Palette, decided: &Decided, name: &UnitName) -> Option<&'a Options> {
    Some(&palette.contents.get(*decided.files.get(name)?)?.options)
}

/// Why the unit may not be on the machine, if anything speaks against it, after all that was decided.
///
/// Copies that are being stopped count where `with_ending` says so.
pub(crate) fn misfit(
    palette: &Palette,
    decided: &Decided,
    name: &UnitName,
    machine: usize,
    with_ending: bool,
) -> Option<String> {
    group_misfit(palette, decided, &BTreeSet::from([name.clone()]), machine, with_ending)
}

/// The same for several units that would come to the machine together.
pub(crate) fn together(
    palette: &Palette,
    decided: &Decided,
    names: &BTreeSet<UnitName>,
    machine: usize,
) -> Option<String> {
    group_misfit(palette, decided, names, machine, true)
}

fn group_misfit(
    palette: &Palette,
    decided: &Decided,
    names: &BTreeSet<UnitName>,
    machine: usize,
    with_ending: bool,
) -> Option<String> {
    let id = machine_id(machine);
    let here: BTreeSet<&UnitName> = decided.on(id, with_ending).into_iter().chain(names).collect();
    let placed =
        |name: &UnitName| decided.units.get(name).is_some_and(|unit| unit.placements.contains_key(&id));
    for name in names {
        let options = options(palette, decided, name)?;
        if options.machine.is_some_and(|wanted| wanted != machine) {
            return Some(format!("{name} is for m{:?}", options.machine));
        }
        if options.role.is_some_and(|wanted| decided.role(machine) != Some(wanted)) {
            return Some(format!("{name} is for another role"));
        }
        for target in options.machine_of {
            let target = &palette.names[*target];
            if !placed(target) && !names.contains(target) {
                return Some(format!("{target}, which {name} is tied to, is not there"));
            }
        }
        for other in here.iter().filter(|other| **other != name) {
            if conflicts(palette, decided, name, other) || conflicts(palette, decided, other, name) {
                return Some(format!("{name} and {other} are in conflict"));
            }
        }
    }
    let sum = |need: fn(&Options) -> u64| -> u64 {
        here.iter().filter_map(|name| self::options(palette, decided, name)).map(need).sum()
    };
    let needs = |need: fn(&Options) -> u64| {
        names.iter().filter_map(|name| self::options(palette, decided, name)).any(|options| need(options) > 0)
    };
    if needs(|options| options.cpu) && sum(|options| options.cpu) > CPU {
        return Some("there is not enough CPU".to_owned());
    }
    if needs(|options| options.memory) && sum(|options| options.memory) > MEMORY {
        return Some("there is not enough memory".to_owned());
    }
    None
}

/// Whether the first unit says that it does not go with the second.
fn conflicts(palette: &Palette, decided: &Decided, name: &UnitName, other: &UnitName) -> bool {
    let patterns = options(palette, decided, name).map_or(&[][..], |options| options.conflicts);
    patterns.iter().any(|pattern| matches(pattern, other.as_str())) || replaces(palette, decided, name, other)
}

/// Whether the second unit makes room for the first one.
pub(crate) fn replaces(palette: &Palette, decided: &Decided, name: &UnitName, other: &UnitName) -> bool {
    let patterns = options(palette, decided, name).map_or(&[][..], |options| options.replaces);
    name != other && patterns.iter().any(|pattern| matches(pattern, other.as_str()))
}

/// These units and all that are tied to them, directly or over others.
pub(crate) fn tied(palette: &Palette, decided: &Decided, names: BTreeSet<UnitName>) -> BTreeSet<UnitName> {
    let mut found = names;
    loop {
        let mut more = BTreeSet::new();
        for name in decided.files.keys() {
            let Some(options) = options(palette, decided, name) else { continue };
            let targets: Vec<&UnitName> =
                options.machine_of.iter().map(|target| &palette.names[*target]).collect();
            if found.contains(name) {
                more.extend(targets.into_iter().filter(|target| !found.contains(*target)).cloned());
            } else if targets.iter().any(|target| found.contains(*target)) {
                more.insert(name.clone());
            }
        }
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}
