//! The commands that change something: submit, load, start, stop, unload, destroy, restart.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use muster_core::command::{
    Adoption, Command, CommandError, Done, UnitArgument, UnitError, UnitErrorKind, UnitOutcome, UnitStatus,
    Verb,
};
use muster_core::unit::UnitName;

use crate::arguments::{self, Argument, Known, Needed, Resolved, Unit, verb_name};
use crate::cli::AdoptArgs;
use crate::client::{Client, Wanted, new_id};
use crate::failure::{Exit, Failure};
use crate::machines;
use crate::output::Machines;
use crate::progress::{Pending, wait};
use crate::style::warn;
use crate::wait::Goal;

/// How a command is to be carried out.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// What to do.
    pub verb: Verb,
    /// Whether a known unit takes the content of the file here.
    pub replace: bool,
    /// Whether to wait until the units are there.
    pub wait: bool,
    /// For how long.
    pub timeout: Option<Duration>,
}

/// Where units' files are on this machine.
type Files<'a> = BTreeMap<&'a UnitName, &'a Path>;

/// Carries out one command.
///
/// # Errors
/// Whatever keeps it from being done, or from being seen done.
pub async fn run(
    client: &mut Client,
    how: How,
    arguments: Vec<Argument>,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let Resolved { units, differing } = resolve(client, arguments, Some(how.verb), how.replace).await?;
    for (name, path) in differing {
        warn(&differs(&name, &path.display().to_string()));
    }
    let names: Vec<UnitName> = units.iter().map(|unit| unit.name.clone()).collect();
    // A restart is over when a copy is there that was not there before.
    let before = match how.verb {
        Verb::Restart if how.wait => {
            client.units(Wanted { names: Some(&names), ..Wanted::default() }).await?
        }
        _ => Vec::new(),
    };
    let argument = |unit: &Unit| UnitArgument {
        name: unit.name.clone(),
        content: unit.file.as_ref().map(|file| file.text.clone()),
    };
    let command = Command {
        id: new_id(),
        verb: how.verb,
        units: units.iter().map(argument).collect(),
        replace: how.replace,
    };
    let files: Files<'_> =
        units.iter().filter_map(|unit| Some((&unit.name, unit.file.as_ref()?.path.as_path()))).collect();
    let outcomes = client.execute(command).await?.map_err(|error| refused(how.verb, &error, &files))?;
    for outcome in &outcomes {
        warnings(outcome, &files).iter().for_each(|warning| warn(warning));
    }
    if how.verb == Verb::Submit {
        for outcome in &outcomes {
            writeln!(out, "{}", submitted(outcome))?;
        }
        return Ok(());
    }
    triggered(client, how, &names, out).await?;
    if how.wait {
        let machines = Machines::of(&client.cluster().await?);
        let goals = goals(how.verb, &outcomes, &before);
        wait(client, Pending::new(goals, machines), how.timeout, out).await?;
    }
    match how.verb {
        Verb::Stop if how.wait => anstream::eprintln!("Successfully stopped units [{}].", joined(&names)),
        Verb::Unload if how.wait => anstream::eprintln!("Successfully unloaded units [{}].", joined(&names)),
        _ => {}
    }
    Ok(())
}

/// `adopt`: has units of a machine taken over, and waits until it says that they are.
///
/// # Errors
/// When the machine is not known, something is against it, or it is not seen done.
pub async fn adopt(client: &mut Client, args: &AdoptArgs, out: &mut impl Write) -> Result<(), Failure> {
    let units = args.units.iter().map(|unit| arguments::name(unit)).collect::<Result<Vec<_>, _>>()?;
    let cluster = client.cluster().await?;
    let machines = machines::resolve(&cluster, std::slice::from_ref(&args.machine))?;
    let Some(machine) = machines.first().copied() else { return Ok(()) };
    let id = new_id();
    let adoption = Adoption { id, machine, units };
    let files = Files::new();
    let outcomes = client.adopt(adoption).await?.map_err(|error| refused(Verb::Submit, &error, &files))?;
    for outcome in &outcomes {
        warnings(outcome, &files).iter().for_each(|warning| warn(warning));
    }
    if args.wait.no_block {
        return Ok(outcomes
            .iter()
            .try_for_each(|outcome| writeln!(out, "Triggered unit {} adopt", outcome.name))?);
    }
    let goals = outcomes.into_iter().map(|outcome| (outcome.name, Goal::Adopted)).collect();
    let timeout = args.wait.timeout.map(Duration::from_secs);
    wait(client, Pending::new(goals, Machines::of(&cluster)), timeout, out).await
}

/// Finds out which units the arguments mean.
///
/// # Errors
/// As [`arguments::resolve`], and when the scheduler does not answer.
pub async fn resolve(
    client: &mut Client,
    arguments: Vec<Argument>,
    verb: Option<Verb>,
    replace: bool,
) -> Result<Resolved, Failure> {
    let known: Vec<UnitStatus> = match arguments::needed(&arguments, replace) {
        Needed::Nothing => Vec::new(),
        Needed::Names(names) => client.units(Wanted { names: Some(&names), ..Wanted::default() }).await?,
        Needed::All => client.units(Wanted::default()).await?,
    };
    let known: BTreeMap<UnitName, Known> = known
        .into_iter()
        .filter(|status| status.known)
        .map(|status| (status.name, Known { hash: status.hash, desired: status.desired }))
        .collect();
    arguments::resolve(arguments, &known, verb, replace)
}

fn goals(verb: Verb, outcomes: &[UnitOutcome], before: &[UnitStatus]) -> BTreeMap<UnitName, Goal> {
    let before: BTreeMap<&UnitName, &UnitStatus> =
        before.iter().map(|status| (&status.name, status)).collect();
    let goal = |outcome: &UnitOutcome| {
        let goal = Goal::of(verb, before.get(&outcome.name).copied())?;
        Some((outcome.name.clone(), goal))
    };
    outcomes.iter().filter_map(goal).collect()
}

/// What is printed before anything is waited for, as fleetctl: of global units always, of others if nothing is waited for.
async fn triggered(
    client: &mut Client,
    how: How,
    names: &[UnitName],
    out: &mut impl Write,
) -> Result<(), Failure> {
    if let Verb::Destroy | Verb::Release = how.verb {
        let done = if how.verb == Verb::Destroy { "Destroyed" } else { "Released" };
        if !how.wait {
            names.iter().try_for_each(|name| writeln!(out, "{done} {name}"))?;
        }
        return Ok(());
    }
    let units = client.units(Wanted { names: Some(names), ..Wanted::default() }).await?;
    let global: BTreeMap<&UnitName, bool> =
        units.iter().map(|status| (&status.name, status.global)).collect();
    for name in names {
        let global = global.get(name).copied().unwrap_or_default();
        if global || !how.wait {
            let unit = if global { "global unit" } else { "unit" };
            writeln!(out, "Triggered {unit} {name} {}", verb_name(how.verb))?;
        }
    }
    Ok(out.flush()?)
}

fn submitted(outcome: &UnitOutcome) -> String {
    let name = &outcome.name;
    match outcome.done {
        Done::Created => format!("Unit {name} inactive"),
        Done::Replaced => format!("Unit {name} replaced"),
        _ => format!("Unit {name} unchanged"),
    }
}

fn differs(name: &UnitName, path: &str) -> String {
    format!("Unit {name} in registry differs from local unit file {path}. Add --replace to override.")
}

/// What the user should know of what was done to a unit.
fn warnings(outcome: &UnitOutcome, files: &Files<'_>) -> Vec<String> {
    let path = files.get(&outcome.name).map(|path| path.display().to_string());
    let mut warnings = Vec::new();
    if let (Done::KeptOtherContent, Some(path)) = (outcome.done, &path) {
        warnings.push(differs(&outcome.name, path));
    }
    let origin = path.unwrap_or_else(|| outcome.name.to_string());
    warnings.extend(outcome.warnings.iter().map(|warning| format!("{origin}: {warning}")));
    warnings
}

/// Why the scheduler did nothing, for the reader: a file's mistakes under the file's path.
pub fn refused(verb: Verb, error: &CommandError, files: &Files<'_>) -> Failure {
    let CommandError::Units(errors) = error else {
        return Failure::failed(error);
    };
    let mut lines = Vec::new();
    let mut invalid = None;
    let takes_files = matches!(verb, Verb::Submit | Verb::Load | Verb::Start);
    let missing = errors.iter().filter(|error| error.kind == UnitErrorKind::NotFound);
    let missing: Vec<&str> = missing.map(|error| error.name.as_str()).collect();
    let all_missing = missing.len() == errors.len();
    if !takes_files && !missing.is_empty() {
        lines.push(format!("Units not found in registry: {}", missing.join(", ")));
    }
    for UnitError { name, kind } in errors {
        match (kind, files.get(name)) {
            (UnitErrorKind::Invalid(reasons), Some(path)) => {
                invalid.get_or_insert(path.display());
                lines.extend(reasons.iter().map(|reason| format!("{}: {reason}", path.display())));
            }
            (UnitErrorKind::NotFound, _) if !takes_files => {}
            (UnitErrorKind::Inactive(_), _) => {
                lines.push(format!("Unable to {} unit {name} in state inactive", verb_name(verb)));
            }
            _ => lines.push(format!("{name}: {kind}")),
        }
    }
    let hint = invalid.map(|path| format!(" `musterctl verify {path}` shows the lines.")).unwrap_or_default();
    let exit = if all_missing { Exit::NoSuchUnit } else { Exit::Failed };
    Failure::new(exit, format_args!("{}\nNothing was changed.{hint}", lines.join("\n  ")))
}

fn joined(names: &[UnitName]) -> String {
    names.iter().map(UnitName::as_str).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::unit_name;

    fn unit_error(name: &str, kind: UnitErrorKind) -> UnitError {
        UnitError { name: unit_name(name), kind }
    }

    #[test]
    fn refusals_name_files_and_units() {
        let web = unit_name("web.service");
        let files = Files::from([(&web, Path::new("units/web.service"))]);
        let reasons = vec!["line 7: [X-Fleet] MachinOf= is unknown".to_owned(), "line 9: two".to_owned()];
        let error = CommandError::Units(vec![
            unit_error("web.service", UnitErrorKind::Invalid(reasons)),
            unit_error("db.service", UnitErrorKind::NotFound),
        ]);
        let failure = refused(Verb::Start, &error, &files);
        assert_eq!(failure.exit, Exit::Failed);
        insta::assert_snapshot!(failure.message, @r"
        units/web.service: line 7: [X-Fleet] MachinOf= is unknown
          units/web.service: line 9: two
          db.service: no such unit; give its file, or submit it (or its template) first
        Nothing was changed. `musterctl verify units/web.service` shows the lines.
        ");
        let missing = CommandError::Units(vec![unit_error("db.service", UnitErrorKind::NotFound)]);
        assert_eq!(refused(Verb::Start, &missing, &files).exit, Exit::NoSuchUnit);
        let failure = refused(Verb::Stop, &missing, &files);
        assert_eq!(failure.exit, Exit::NoSuchUnit);
        assert_eq!(failure.message, "Units not found in registry: db.service\nNothing was changed.");
        let inactive = UnitErrorKind::Inactive("stopped".to_owned());
        let inactive = CommandError::Units(vec![unit_error("db.service", inactive)]);
        let failure = refused(Verb::Stop, &inactive, &files);
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(failure.message, "Unable to stop unit db.service in state inactive\nNothing was changed.");
        let full = refused(Verb::Start, &CommandError::Store("No space left on device".to_owned()), &files);
        assert_eq!(
            full.message,
            "nothing was changed: the scheduler cannot write to its store: No space left on device"
        );
    }

    #[test]
    fn warnings_name_the_file() {
        let web = unit_name("web.service");
        let files = Files::from([(&web, Path::new("units/web.service"))]);
        let outcome = UnitOutcome {
            name: unit_name("web.service"),
            done: Done::KeptOtherContent,
            warnings: vec!["line 3: unknown key".to_owned()],
        };
        assert_eq!(
            warnings(&outcome, &files),
            [
                "Unit web.service in registry differs from local unit file units/web.service. \
                 Add --replace to override.",
                "units/web.service: line 3: unknown key",
            ]
        );
    }
}
