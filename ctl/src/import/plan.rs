//! What an import does with each unit: a pure function of what fleet has and what the cluster knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_core::command::{UnitArgument, UnitStatus, Verb};
use muster_core::state::DesiredState;
use muster_core::unit::{Options, UnitFile, UnitName, normal_form};

use super::api::{FleetOption, FleetUnit};

/// What an import does.
#[derive(Debug, Default)]
pub struct Plan {
    /// What becomes of each unit that Muster takes, in the order of their names.
    pub units: Vec<Planned>,
    /// Those that it does not take, with the reasons.
    pub refused: Vec<(String, Vec<String>)>,
    /// What is worth knowing about units that it takes.
    pub warnings: Vec<(UnitName, String)>,
}

/// What becomes of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: UnitName,
    /// Its text, where it has to be sent.
    pub content: Option<Arc<str>>,
    /// What is done with that.
    pub change: Change,
    /// What the cluster was asked for.
    pub known: DesiredState,
    /// What it is to be asked for: no state is ever lowered.
    pub wanted: DesiredState,
}

/// What is done with a unit's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The cluster does not know the unit.
    New,
    /// It knows it just so.
    Same,
    /// It knows it with other content.
    Other,
}

impl Planned {
    /// In which step the unit's text is sent: the content of a unit that is in use is replaced by the verb of its state.
    fn content_with(&self) -> Verb {
        match self.known {
            DesiredState::Inactive => Verb::Submit,
            _ => self.verb(),
        }
    }

    fn verb(&self) -> Verb {
        match self.wanted {
            DesiredState::Inactive => Verb::Submit,
            DesiredState::Loaded => Verb::Load,
            DesiredState::Launched => Verb::Start,
        }
    }

    /// Whether a command with this verb has to name it.
    fn needs(&self, verb: Verb) -> bool {
        let sends = self.content.is_some() && self.content_with() == verb;
        sends || (self.wanted > self.known && self.verb() == verb)
    }
}

impl Plan {
    /// Decides it. `known` is what the cluster knows of these units, with their files.
    pub fn new(units: Vec<FleetUnit>, known: &BTreeMap<UnitName, UnitStatus>) -> Self {
        let mut plan = Self::default();
        for unit in units {
            match plan.read(&unit) {
                Ok((name, file, desired)) => plan.units.push(planned(known.get(&name), name, &file, desired)),
                Err(reasons) => plan.refused.push((unit.name, reasons)),
            }
        }
        plan
    }

    fn read(&mut self, unit: &FleetUnit) -> Result<(UnitName, UnitFile, DesiredState), Vec<String>> {
        let one = |error: String| vec![error];
        let name = UnitName::parse(&unit.name).map_err(|error| one(error.to_string()))?;
        name.unit_type().schedulable().map_err(|why| one(why.to_owned()))?;
        let desired = match unit.desired_state.as_str() {
            "" | "inactive" => DesiredState::Inactive,
            // Nobody can start a template, and fleet takes one that says so.
            _ if name.is_template() => DesiredState::Inactive,
            "loaded" => DesiredState::Loaded,
            "launched" => DesiredState::Launched,
            other => return Err(one(format!("its desired state is {other:?}, which is none"))),
        };
        let file = UnitFile::parse(text(&unit.options).as_bytes()).map_err(|error| one(error.to_string()))?;
        let parsed = Options::parse(&name, &file)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        self.warnings.extend(parsed.warnings.iter().map(|warning| (name.clone(), warning.message.clone())));
        Ok((name, file, desired))
    }

    /// The units whose content differs from what the cluster knows.
    pub fn differing(&self) -> impl Iterator<Item = &UnitName> {
        self.units.iter().filter(|unit| unit.change == Change::Other).map(|unit| &unit.name)
    }

    /// What commands with this verb have to name.
    pub fn arguments(&self, verb: Verb) -> Vec<UnitArgument> {
        let argument = |unit: &Planned| UnitArgument {
            name: unit.name.clone(),
            content: unit.content.clone().filter(|_| unit.content_with() == verb),
        };
        self.units.iter().filter(|unit| unit.needs(verb)).map(argument).collect()
    }
}

fn planned(known: Option<&UnitStatus>, name: UnitName, file: &UnitFile, desired: DesiredState) -> Planned {
    let known = known.filter(|status| status.known);
    let change = match known {
        None => Change::New,
        Some(status) if is_same(status, file) => Change::Same,
        Some(_) => Change::Other,
    };
    let content = (change != Change::Same).then(|| file.text().clone());
    let known = known.map_or(DesiredState::Inactive, |status| status.desired);
    Planned { name, content, change, known, wanted: desired.max(known) }
}

/// Whether the cluster's file says the same: fleet keeps neither comments nor the order of sections.
fn is_same(status: &UnitStatus, file: &UnitFile) -> bool {
    if status.hash == file.hash() {
        return true;
    }
    let known = status.content.as_ref().and_then(|content| UnitFile::parse(content.as_bytes()).ok());
    known.is_some_and(|known| settings(&known) == settings(file))
}

/// What a file says, by section.
fn settings(file: &UnitFile) -> BTreeMap<String, Vec<(String, String)>> {
    let mut sections: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for entry in file.entries() {
        let section = sections.entry(entry.section.into_owned()).or_default();
        section.push((entry.key.into_owned(), entry.value.into_owned()));
    }
    sections
}

/// The unit file that fleet writes, and shows with `cat`.
fn text(options: &[FleetOption]) -> String {
    normal_form(options.iter().map(|option| (&*option.section, &*option.name, &*option.value)))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::fixtures::unit;

    fn option(section: &str, name: &str, value: &str) -> FleetOption {
        FleetOption { section: section.to_owned(), name: name.to_owned(), value: value.to_owned() }
    }

    fn fleet(name: &str, desired: &str, options: &[(&str, &str, &str)]) -> FleetUnit {
        let options = options.iter().map(|(section, name, value)| option(section, name, value)).collect();
        FleetUnit { name: name.to_owned(), options, desired_state: desired.to_owned() }
    }

    fn known(units: &[(&str, DesiredState, &str)]) -> BTreeMap<UnitName, UnitStatus> {
        let status = |(name, desired, text): &(&str, DesiredState, &str)| {
            let mut status = unit(name, *desired);
            status.hash = muster_core::unit::ContentHash::of(text.as_bytes());
            status.content = Some((*text).into());
            (status.name.clone(), status)
        };
        units.iter().map(status).collect()
    }

    fn shown(plan: &Plan) -> String {
        let mut shown = String::new();
        for verb in [Verb::Submit, Verb::Load, Verb::Start] {
            for UnitArgument { name, content } in plan.arguments(verb) {
                let _ = writeln!(
                    shown,
                    "{verb:?} {name} {}",
                    if content.is_some() { "with its file" } else { "" }
                );
            }
        }
        for (name, reasons) in &plan.refused {
            let _ = writeln!(shown, "{name} refused: {}", reasons.join("; "));
        }
        for (name, warning) in &plan.warnings {
            let _ = writeln!(shown, "{name}: {warning}");
        }
        shown.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    const SERVICE: (&str, &str, &str) = ("Service", "ExecStart", "/bin/true");
    const TEXT: &str = "[Service]\nExecStart=/bin/true\n";

    #[test]
    fn files_are_those_that_fleet_writes() {
        let options = [
            option("Unit", "Description", "The web"),
            option("Service", "ExecStart", "/bin/sh -c 'a; \\\n  b'"),
            option("X-Fleet", "Global", "true"),
            option("Unit", "After", "network.target"),
        ];
        assert_eq!(
            text(&options),
            "[Unit]\nDescription=The web\nAfter=network.target\n\n[Service]\nExecStart=/bin/sh -c 'a; \\\n  b'\n\n\
             [X-Fleet]\nGlobal=true\n"
        );
    }

    #[test]
    fn a_cluster_that_knows_nothing() {
        let units = vec![
            fleet("a.service", "launched", &[SERVICE]),
            fleet("b.timer", "loaded", &[("Timer", "OnCalendar", "daily")]),
            fleet(
                "bad.service",
                "launched",
                &[SERVICE, ("X-Fleet", "MachinOf", "a.service"), ("X-Fleet", "Bogus", "x")],
            ),
            fleet("bogus.service", "bogus", &[SERVICE]),
            fleet("c@.service", "launched", &[SERVICE]),
            fleet("c@1.service", "inactive", &[SERVICE, ("Install", "WantedBy", "multi-user.target")]),
            fleet("d!.service", "", &[SERVICE]),
            fleet("e.service", "", &[]),
            fleet("f.device", "", &[("Unit", "Description", "a device")]),
        ];
        insta::assert_snapshot!(shown(&Plan::new(units, &BTreeMap::new())));
    }

    #[test]
    fn what_is_there_already() {
        let commented = "# By hand\n[X-Fleet]\nGlobal=true\n\n[Service]\nExecStart = /bin/true\n";
        let known = known(&[
            ("same.service", DesiredState::Launched, TEXT),
            ("lower.service", DesiredState::Inactive, TEXT),
            ("higher.service", DesiredState::Launched, TEXT),
            ("commented.service", DesiredState::Inactive, commented),
            ("other.service", DesiredState::Inactive, "[Service]\nExecStart=/bin/false\n"),
            ("used.service", DesiredState::Launched, "[Service]\nExecStart=/bin/false\n"),
        ]);
        let units = vec![
            fleet("same.service", "launched", &[SERVICE]),
            fleet("lower.service", "launched", &[SERVICE]),
            fleet("higher.service", "loaded", &[SERVICE]),
            fleet("commented.service", "inactive", &[SERVICE, ("X-Fleet", "Global", "true")]),
            fleet("other.service", "loaded", &[SERVICE]),
            fleet("used.service", "inactive", &[SERVICE]),
        ];
        let plan = Plan::new(units, &known);
        let differing: Vec<&str> = plan.differing().map(UnitName::as_str).collect();
        assert_eq!(differing, ["other.service", "used.service"]);
        insta::assert_snapshot!(shown(&plan));
    }
}
