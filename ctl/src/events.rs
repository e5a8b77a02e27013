//! `events`, `explain` and `rto`: what happened, why, and how long it may take.

use std::collections::BTreeSet;
use std::io::Write;

use jiff::tz::TimeZone;
use muster_core::leader::{EventFilter, EventRecord};
use muster_core::unit::UnitName;
use muster_proto::EventsWanted;

use crate::arguments::{self, Argument};
use crate::cli::{EventOutput, EventsArgs, Output, StatusArgs};
use crate::client::{Client, Wanted};
use crate::failure::{Exit, Failure};
use crate::machines;
use crate::output::events::{self, write_line, write_story};
use crate::output::table::write_array;
use crate::output::{Machines, rto as rto_output, status};
use crate::show::{names, no_such_units};

/// How many events are shown unless something else is asked for.
const SHOWN: u32 = 100;
const SHOWN_BEFORE: u32 = 10;

/// `events`.
///
/// # Errors
/// When the scheduler does not answer.
pub async fn list(client: &mut Client, args: &EventsArgs, out: &mut impl Write) -> Result<(), Failure> {
    let filter = filter(client, &args.about).await?;
    let last = args.lines.unwrap_or(if args.follow { SHOWN_BEFORE } else { SHOWN });
    let wanted = EventsWanted { filter, last: Some(last), after: None, follow: args.follow };
    let mut stream = client.events(wanted).await?;
    let zone = TimeZone::system();
    while let Some((missed, events)) = stream.next(client).await? {
        if missed > 0 {
            anstream::eprintln!("{missed} events are missing here: the scheduler remembers only the newest.");
        }
        for event in &events {
            match args.output {
                EventOutput::Text => write_line(out, event, &zone)?,
                EventOutput::Json => writeln!(out, "{}", events::as_json(event))?,
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// What the arguments mean: a unit that the cluster knows, else a machine, else a unit that it does not know (any more).
async fn filter(client: &mut Client, about: &[String]) -> Result<EventFilter, Failure> {
    let mut filter = EventFilter::default();
    let mut plain: Vec<(&String, Option<UnitName>)> = Vec::new();
    for argument in about {
        match arguments::names(std::slice::from_ref(argument)).map(|mut read| read.pop()) {
            Ok(Some(Argument::Glob(pattern))) => filter.globs.extend_from_slice(pattern.globs()),
            Ok(Some(Argument::Unit(unit))) => plain.push((argument, Some(unit.name))),
            // A whole id is no unit name, or an odd one.
            Ok(None) | Err(_) => plain.push((argument, None)),
        }
    }
    if plain.is_empty() {
        return Ok(filter);
    }
    let candidates: Vec<UnitName> = plain.iter().filter_map(|(_, name)| name.clone()).collect();
    let known = client.units(Wanted { names: Some(&candidates), ..Wanted::default() }).await?;
    let known: BTreeSet<UnitName> = known.into_iter().map(|status| status.name).collect();
    let cluster = client.cluster().await?;
    for (argument, name) in plain {
        match (machines::resolve(&cluster, std::slice::from_ref(argument)), name) {
            (_, Some(name)) if known.contains(&name) => {
                filter.units.insert(name);
            }
            (Ok(machines), _) => filter.machines.extend(machines),
            (Err(_), Some(name)) if machines::is_too_short(&cluster, argument) => {
                return Err(Failure::failed(format_args!(
                    "{argument} is no unit that the cluster knows, and too short to name a machine: give {name}, or at \
                     least the first 4 digits of the machine's id"
                )));
            }
            (Err(_), Some(name)) => {
                filter.units.insert(name);
            }
            (Err(failure), None) => return Err(failure),
        }
    }
    Ok(filter)
}

/// `explain`.
///
/// # Errors
/// When nothing is known of a unit, or the scheduler does not answer.
pub async fn explain(client: &mut Client, args: &StatusArgs, out: &mut impl Write) -> Result<(), Failure> {
    let names = names(client, &args.units).await?;
    let units = client.units(Wanted { names: Some(&names), reasons: true, content: false }).await?;
    let machines = Machines::of(&client.cluster().await?);
    let zone = TimeZone::system();
    let mut missing = Vec::new();
    let mut objects = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let story = story(client, name).await?;
        let unit = units.iter().find(|status| status.name == *name);
        if unit.is_none() && story.is_empty() {
            missing.push(name);
            continue;
        }
        if args.output == Output::Json {
            objects.push(events::explained_as_json(name, unit, &story, &machines));
            continue;
        }
        if index > 0 {
            writeln!(out)?;
        }
        match unit {
            Some(unit) => status::write_page(out, unit, &machines)?,
            None => writeln!(out, "{name}: the cluster does not know it any more")?,
        }
        write_story(out, name, unit, &story, &zone)?;
    }
    if args.output == Output::Json {
        write_array(out, objects.into_iter())?;
    }
    out.flush()?;
    if missing.is_empty() { Ok(()) } else { Err(Failure::new(Exit::NoSuchUnit, no_such_units(&missing))) }
}

/// All that the scheduler remembers of a unit, oldest first.
///
/// # Errors
/// When the scheduler does not answer.
pub async fn story(client: &mut Client, name: &UnitName) -> Result<Vec<EventRecord>, Failure> {
    let filter = EventFilter { units: BTreeSet::from([name.clone()]), ..EventFilter::default() };
    let mut stream = client.events(EventsWanted { filter, ..EventsWanted::default() }).await?;
    let mut story = Vec::new();
    while let Some((_, events)) = stream.next(client).await? {
        story.extend(events);
    }
    Ok(story)
}

/// `rto`.
///
/// # Errors
/// When a unit is not known, or the scheduler does not answer.
pub async fn rto(client: &mut Client, args: &StatusArgs, out: &mut impl Write) -> Result<(), Failure> {
    let names = names(client, &args.units).await?;
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for name in &names {
        match client.rto(name).await? {
            Some(rto) => found.push((name, rto)),
            None => missing.push(name),
        }
    }
    match args.output {
        Output::Json => write_array(out, found.iter().map(|(name, rto)| rto_output::as_json(name, rto)))?,
        Output::Table => {
            for (index, (name, rto)) in found.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                rto_output::write_page(out, name, rto)?;
            }
        }
    }
    out.flush()?;
    if missing.is_empty() { Ok(()) } else { Err(Failure::new(Exit::NoSuchUnit, no_such_units(&missing))) }
}
