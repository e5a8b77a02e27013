//! Events: a line each for people, an object each for programs, and the story of one unit.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use muster_core::command::UnitStatus;
use muster_core::leader::{EventRecord, Severity};
use muster_core::unit::UnitName;
use serde_json::{Value, json};

use super::{Machines, status};
use crate::style::{Role, harmless};

/// How many events of a unit are shown as its story.
const STORY: usize = 50;
/// The kind of event that says where a unit is, and why.
const PLACED: &str = "unit_placed";

/// Writes an event as a line.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_line(out: &mut impl Write, event: &EventRecord, zone: &TimeZone) -> io::Result<()> {
    let role = match event.severity {
        Severity::Info => Role::Plain,
        Severity::Warning => Role::Warn,
        Severity::Error => Role::Bad,
    };
    let kind = role.paint(&format!("{:<18}", harmless(&event.kind)));
    writeln!(out, "{}  {kind}  {}", local_time(event.at_ms, zone), harmless(&event.message))
}

/// The same for programs.
pub fn as_json(event: &EventRecord) -> Value {
    json!({
        "number": event.number.to_string(),
        "time": timestamp(event.at_ms).map(|time| format!("{time:.3}")),
        "kind": event.kind,
        "severity": event.severity,
        "units": event.units.iter().map(UnitName::as_str).collect::<Vec<_>>(),
        "machines": event.machines.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "epoch": event.epoch.map(|epoch| epoch.to_string()),
        "reason": event.reason,
        "message": event.message,
    })
}

/// Writes why a unit is where it is, and what happened to it, below its status.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_story(
    out: &mut impl Write,
    name: &UnitName,
    unit: Option<&UnitStatus>,
    story: &[EventRecord],
    zone: &TimeZone,
) -> io::Result<()> {
    let in_journal = format!("journalctl -u muster-scheduler MUSTER_UNIT={name}");
    if unit.is_some_and(status::is_placed) {
        match placed(story) {
            Some(event) => {
                let when = local_time(event.at_ms, zone);
                writeln!(out, "{:>12}: {} (at {when})", "Why there", harmless(&event.message))?;
            }
            None => writeln!(
                out,
                "{:>12}: the scheduler does not remember; on its machine: {in_journal} MUSTER_EVENT={PLACED}",
                "Why there"
            )?,
        }
    }
    if story.is_empty() {
        return writeln!(
            out,
            "{:>12}: nothing that the scheduler remembers; on its machine: {in_journal}",
            "Story"
        );
    }
    writeln!(out, "{:>12}:", "Story")?;
    let earlier = story.len().saturating_sub(STORY);
    if earlier > 0 {
        writeln!(out, "  {earlier} earlier events: musterctl events -n {} {name}", story.len())?;
    }
    for event in &story[earlier..] {
        write!(out, "  ")?;
        write_line(out, event, zone)?;
    }
    Ok(())
}

/// The same for programs.
pub fn explained_as_json(
    name: &UnitName,
    unit: Option<&UnitStatus>,
    story: &[EventRecord],
    machines: &Machines,
) -> Value {
    json!({
        "unit": name.as_str(),
        "status": unit.map(|unit| status::as_json(unit, machines)),
        "placed": unit.filter(|unit| status::is_placed(unit)).and_then(|_| placed(story)).map(as_json),
        "events": story.iter().map(as_json).collect::<Vec<_>>(),
    })
}

/// What placed the unit where it is.
fn placed(story: &[EventRecord]) -> Option<&EventRecord> {
    story.iter().rev().find(|event| event.kind == PLACED)
}

fn timestamp(at_ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(at_ms).ok()?).ok()
}

fn local_time(at_ms: u64, zone: &TimeZone) -> String {
    match timestamp(at_ms) {
        Some(time) => time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use muster_core::ids::{Epoch, Term};
    use muster_core::leader::EventNumber;
    use muster_core::state::DesiredState;

    use super::*;
    use crate::fixtures::{machine_id, machines, running, unit, unit_name};

    fn event(sequence: u64, kind: &str, severity: Severity, message: &str) -> EventRecord {
        EventRecord {
            number: EventNumber { term: Term(3), sequence },
            at_ms: 1_795_000_000_000 + sequence * 1_001,
            kind: kind.to_owned(),
            severity,
            units: vec![unit_name("web.service")],
            machines: vec![machine_id(1)],
            epoch: (kind == PLACED).then_some(Epoch { term: Term(3), counter: sequence }),
            reason: (kind == PLACED).then(|| "its machine was lost".to_owned()),
            message: message.to_owned(),
        }
    }

    fn story() -> Vec<EventRecord> {
        vec![
            event(1, "client_start", Severity::Info, "a client started web.service"),
            event(2, PLACED, Severity::Info, "web.service is placed on 33333333: a client asked for it"),
            event(
                3,
                "machine_lost",
                Severity::Warning,
                "machine 33333333 is lost: its lease ended; it had web.service",
            ),
            event(
                4,
                PLACED,
                Severity::Info,
                "web.service moves from 33333333 to 11111111: its machine was lost",
            ),
            event(5, "store_failed", Severity::Error, "the store failed: \u{1b}[2J"),
        ]
    }

    fn told(name: &str, unit: Option<&UnitStatus>, story: &[EventRecord]) -> String {
        let mut out = Vec::new();
        write_story(&mut out, &unit_name(name), unit, story, &TimeZone::UTC).expect("written");
        anstream::adapter::strip_str(&String::from_utf8(out).expect("text")).to_string()
    }

    #[test]
    fn stories() {
        let placed = running("web.service");
        let waits = unit("web.service", DesiredState::Launched);
        let told = [
            told("web.service", Some(&placed), &story()),
            told("web.service", Some(&placed), &[]),
            told("web.service", Some(&waits), &story()[..1]),
            told("web.service", None, &story()[..1]),
        ];
        insta::assert_snapshot!(told.join("---\n"));
    }

    #[test]
    fn a_long_story_is_told_from_its_end() {
        let long: Vec<EventRecord> = (1..=60)
            .map(|sequence| {
                event(sequence, "client_restart", Severity::Info, "a client restarted web.service")
            })
            .collect();
        let told = told("web.service", Some(&unit("web.service", DesiredState::Inactive)), &long);
        assert!(told.contains("10 earlier events: musterctl events -n 60 web.service"), "{told}");
        assert_eq!(told.lines().filter(|line| line.contains("client_restart")).count(), STORY);
    }

    #[test]
    fn json_of_events_and_explanations() {
        let mut shown: Vec<Value> = story().iter().map(as_json).collect();
        let placed = running("web.service");
        shown.push(explained_as_json(&placed.name, Some(&placed), &story()[..2], &machines()));
        shown.push(explained_as_json(&placed.name, None, &story()[..2], &machines()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&shown).expect("JSON"));
    }
}
