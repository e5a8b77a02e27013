//! The commands that only show something: the lists, status, cat.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};

use muster_core::command::UnitStatus;
use muster_core::unit::UnitName;

use crate::act::resolve;
use crate::arguments;
use crate::cli::{ListArgs, ListMachinesArgs, ListUnitFilesArgs, ListUnitsArgs, Output, StatusArgs};
use crate::client::{Client, Wanted};
use crate::failure::{Exit, Failure};
use crate::output::listing::{
    MACHINE_DEFAULT, MACHINE_FIELDS, TMACHINE, UNIT_DEFAULT, UNIT_FIELDS, UNIT_FILE_DEFAULT,
    UNIT_FILE_FIELDS, machine_notes, machine_rows, unit_file_row, unit_rows,
};
use crate::output::table::{Columns, Rows, write_array, write_json, write_table};
use crate::output::{Machines, status};
use crate::style::{harmless, warn};
use crate::systemd;

/// `list-units`.
///
/// # Errors
/// When the scheduler does not answer.
pub async fn list_units(
    client: &mut Client,
    args: &ListUnitsArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let fields = chosen(args.list, &args.fields, &UNIT_FIELDS, UNIT_DEFAULT);
    let machines = Machines::of(&client.cluster().await?);
    let row = |status| unit_rows(&status, &machines, args.list.full, &fields);
    let rows: Vec<Rows> = client.units_as(Wanted::default(), row).await?;
    print(out, rows.into_iter().flatten().collect(), args.list, &fields)
}

/// `list-unit-files`.
///
/// # Errors
/// When the scheduler does not answer.
pub async fn list_unit_files(
    client: &mut Client,
    args: &ListUnitFilesArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    // Why units wait costs the scheduler something to find out, so it is only asked for where it is to be shown.
    let reasons = args.fields.iter().any(|field| field == "waiting");
    let machines = Machines::of(&client.cluster().await?);
    let mut all = UNIT_FILE_FIELDS.to_vec();
    if args.fields.iter().any(|field| field == TMACHINE) {
        warn("the field tmachine is an older name of target");
        all.push(TMACHINE);
    }
    let fields = chosen(args.list, &args.fields, &all, UNIT_FILE_DEFAULT);
    let row =
        |status: UnitStatus| status.known.then(|| unit_file_row(&status, &machines, args.list.full, &fields));
    let rows = client.units_as(Wanted { reasons, ..Wanted::default() }, row).await?;
    print(out, rows.into_iter().flatten().collect(), args.list, &fields)
}

/// `list-machines`.
///
/// # Errors
/// When the scheduler does not answer.
pub async fn list_machines(
    client: &mut Client,
    args: &ListMachinesArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let cluster = client.cluster().await?;
    let people = args.list.output == Output::Table;
    // A lost machine would look like any other in columns that do not tell its state.
    let lost = !people || args.fields.iter().any(|field| field == "state");
    let rows = machine_rows(&cluster, args.list.full, lost);
    let fields = chosen(args.list, &args.fields, &MACHINE_FIELDS, MACHINE_DEFAULT);
    print(out, rows, args.list, &fields)?;
    out.flush()?;
    if people {
        machine_notes(&cluster).iter().for_each(|note| anstream::eprintln!("{note}"));
        if std::io::stderr().is_terminal()
            && let Some(scheduler) = client.describe().await
            && scheduler.registered.len() < 2
        {
            anstream::eprintln!(
                "One scheduler, at {}: if its machine is lost, units run on and nothing is moved until it is back.",
                harmless(&scheduler.address)
            );
        }
    }
    Ok(())
}

/// The fields that are asked for; without any, those for people by default, and all for programs.
fn chosen(list: ListArgs, asked_for: &[String], all: &[&'static str], default: usize) -> Vec<&'static str> {
    if asked_for.is_empty() {
        return match list.output {
            Output::Json => all.to_vec(),
            Output::Table => all[..default].to_vec(),
        };
    }
    asked_for.iter().filter_map(|wanted| all.iter().copied().find(|name| name == wanted)).collect()
}

fn print(out: &mut impl Write, rows: Rows, list: ListArgs, fields: &[&'static str]) -> Result<(), Failure> {
    match list.output {
        Output::Json => write_json(out, rows, fields)?,
        Output::Table => write_table(out, &rows, fields, !list.no_legend, Columns::of_stdout())?,
    }
    Ok(())
}

/// `status`.
///
/// # Errors
/// When a unit is not known or not active, or the scheduler does not answer.
pub async fn show_status(
    client: &mut Client,
    args: &StatusArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let names = names(client, &args.units).await?;
    let units = client.units(Wanted { names: Some(&names), reasons: true, content: false }).await?;
    let machines = Machines::of(&client.cluster().await?);
    match args.output {
        Output::Json => write_array(out, units.iter().map(|unit| status::as_json(unit, &machines)))?,
        Output::Table => {
            let said = systemd::ask(client, &units).await;
            for (index, unit) in units.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                status::write_page(out, unit, &machines)?;
                status::write_said(out, unit, &machines, &said)?;
            }
        }
    }
    out.flush()?;
    match exit_of(&names, &units) {
        None => Ok(()),
        Some((exit, missing)) if missing.is_empty() => Err(Failure::silent(exit)),
        Some((exit, missing)) => Err(Failure::new(exit, no_such_units(&missing))),
    }
}

/// The exit code of `status`, as systemctl's, and which units are not known.
fn exit_of<'a>(asked_for: &'a [UnitName], found: &[UnitStatus]) -> Option<(Exit, Vec<&'a UnitName>)> {
    let known: BTreeSet<&UnitName> = found.iter().map(|status| &status.name).collect();
    let missing: Vec<&UnitName> = asked_for.iter().filter(|name| !known.contains(name)).collect();
    if !missing.is_empty() {
        return Some((Exit::NoSuchUnit, missing));
    }
    (!found.iter().all(status::all_active)).then_some((Exit::NotActive, missing))
}

/// That these units are not known.
pub fn no_such_units(names: &[&UnitName]) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    format!("no such unit: {}; `musterctl list-unit-files` shows those that are known", names.join(", "))
}

/// `cat`: byte for byte, so `out` must not look into what it is given.
///
/// # Errors
/// When the unit is not known, or the scheduler does not answer.
pub async fn cat(client: &mut Client, unit: &str, out: &mut impl Write) -> Result<(), Failure> {
    let names = names(client, std::slice::from_ref(&unit.to_owned())).await?;
    let [name] = names.as_slice() else {
        return Err(Failure::failed(format_args!("{unit:?} matches {} units: give one", names.len())));
    };
    let units = client.units(Wanted { names: Some(&names), content: true, reasons: false }).await?;
    match units.into_iter().find_map(|status| status.content) {
        Some(content) => {
            out.write_all(content.as_bytes())?;
            Ok(out.flush()?)
        }
        None => Err(Failure::new(Exit::NoSuchUnit, no_such_units(&[name]))),
    }
}

/// The units that the arguments mean.
///
/// # Errors
/// When a glob means no unit, or the scheduler does not answer.
pub async fn names(client: &mut Client, arguments: &[String]) -> Result<Vec<UnitName>, Failure> {
    let resolved = resolve(client, arguments::names(arguments)?, None, false).await?;
    Ok(resolved.units.into_iter().map(|unit| unit.name).collect())
}
