//! `import-fleet`: takes units and their desired states over from a fleet that runs.

mod api;
mod plan;

use std::collections::BTreeMap;
use std::io::Write;

use muster_core::command::{Command, UnitArgument, UnitStatus, Verb};
use muster_core::unit::UnitName;

use crate::arguments::verb_name;
use crate::cli::ImportArgs;
use crate::client::{Client, Wanted, new_id};
use crate::failure::Failure;
use crate::output::listed;
use crate::output::table::{Columns, Field, Rows, write_table};
use crate::style::warn;
use crate::verify::count;

pub use api::Fleet;
use plan::{Change, Plan};

/// How much one command carries: far below what a message may hold.
const UNITS_PER_COMMAND: usize = 1000;
const BYTES_PER_COMMAND: usize = 16 * 1024 * 1024;

/// Imports what this fleet has.
///
/// # Errors
/// When fleet or the scheduler does not answer, and when a unit cannot be taken over as it is.
pub async fn run(
    client: &mut Client,
    fleet: &Fleet,
    args: &ImportArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let units = fleet.units().await?;
    let names: Vec<UnitName> = units.iter().filter_map(|unit| UnitName::parse(&unit.name).ok()).collect();
    let known = if names.is_empty() {
        Vec::new()
    } else {
        client.units(Wanted { names: Some(&names), content: true, reasons: false }).await?
    };
    let known: BTreeMap<UnitName, UnitStatus> =
        known.into_iter().map(|status| (status.name.clone(), status)).collect();
    let plan = Plan::new(units, &known);
    objections(&plan, args)?;
    write_table(out, &rows(&plan), &["unit", "content", "dstate"], true, Columns::of_stdout())?;
    out.flush()?;
    warnings(&plan).iter().for_each(|text| warn(text));
    if !args.dry_run {
        for verb in [Verb::Submit, Verb::Load, Verb::Start] {
            for units in batches(plan.arguments(verb)) {
                carry_out(client, verb, units, args.replace).await?;
            }
        }
    }
    anstream::eprintln!("{}", summary(&plan, args.dry_run));
    Ok(())
}

/// Why nothing can be done unless the user says that he wants it all the same.
fn objections(plan: &Plan, args: &ImportArgs) -> Result<(), Failure> {
    let mut lines = Vec::new();
    let mut hints = Vec::new();
    if !plan.refused.is_empty() {
        let refused = plan.refused.iter();
        let refused =
            refused.flat_map(|(name, reasons)| reasons.iter().map(move |why| format!("{name}: {why}")));
        if args.skip_refused {
            refused.for_each(|line| warn(&format!("left out: {line}")));
        } else {
            lines.extend(refused);
            hints.push("--skip-refused imports the others");
        }
    }
    if !args.replace {
        let differing: Vec<String> =
            plan.differing().map(|name| format!("{name}: is known here with other content")).collect();
        if !differing.is_empty() {
            lines.extend(differing);
            hints.push("--replace takes fleet's content");
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format_args!("{}\nNothing was changed; {}.", lines.join("\n  "), hints.join(", "))))
}

fn rows(plan: &Plan) -> Rows {
    let row = |unit: &plan::Planned| {
        let content = match unit.change {
            Change::New => "new",
            Change::Same => "same",
            Change::Other => "replaced",
        };
        vec![
            Field::text("unit", unit.name.as_str()),
            Field::text("content", content),
            Field::text("dstate", unit.wanted.to_string()),
        ]
    };
    plan.units.iter().map(row).collect()
}

/// What is to be said of units that are taken: of all that say the same in one line.
fn warnings(plan: &Plan) -> Vec<String> {
    let mut by_text: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, text) in &plan.warnings {
        let names = by_text.entry(text).or_default();
        if names.last().is_none_or(|last| last != name.as_str()) {
            names.push(name.to_string());
        }
    }
    by_text.into_iter().map(|(text, names)| format!("{}: {text}", listed(&names))).collect()
}

fn batches(units: Vec<UnitArgument>) -> Vec<Vec<UnitArgument>> {
    let mut batches: Vec<Vec<UnitArgument>> = Vec::new();
    let mut bytes = 0;
    for unit in units {
        let size = unit.content.as_ref().map_or(0, |content| content.len());
        match batches.last_mut() {
            Some(batch) if batch.len() < UNITS_PER_COMMAND && bytes + size <= BYTES_PER_COMMAND => {
                batch.push(unit);
                bytes += size;
            }
            _ => {
                batches.push(vec![unit]);
                bytes = size;
            }
        }
    }
    batches
}

async fn carry_out(
    client: &mut Client,
    verb: Verb,
    units: Vec<UnitArgument>,
    replace: bool,
) -> Result<(), Failure> {
    match client.execute(Command { id: new_id(), verb, units, replace }).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::failed(format_args!(
            "the scheduler refuses to {} units:\n  {}\nWhat was done before stands; it is safe to give the command once more.",
            verb_name(verb),
            error.to_string().replace('\n', "\n  ")
        ))),
    }
}

fn summary(plan: &Plan, dry_run: bool) -> String {
    let of = |change| plan.units.iter().filter(|unit| unit.change == change).count();
    let raised = plan.units.iter().filter(|unit| unit.wanted > unit.known).count();
    let left_out = match plan.refused.len() {
        0 => String::new(),
        left_out => format!(", {left_out} left out"),
    };
    let end = if dry_run {
        "Nothing was changed (--dry-run)."
    } else {
        "`musterctl list-unit-files` shows how far they are."
    };
    format!(
        "{}: {} new, {} the same, {} replaced{left_out}; {raised} to be loaded or started. {end}",
        count(plan.units.len(), "unit"),
        of(Change::New),
        of(Change::Same),
        of(Change::Other),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_carry_so_much() {
        let unit = |bytes: usize| UnitArgument {
            name: UnitName::parse("a.service").expect("a name"),
            content: Some("x".repeat(bytes).into()),
        };
        let sizes = |units| batches(units).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes((0..2100).map(|_| unit(1)).collect()), [1000, 1000, 100]);
        let mib = 1024 * 1024;
        assert_eq!(sizes((0..34).map(|_| unit(mib)).collect()), [16, 16, 2]);
        assert!(batches(Vec::new()).is_empty());
    }
}
