//! The three lists: units, unit files, machines.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use muster_core::command::{
    BrakeStatus, ClusterStatus, CopyRole, CopyStatus, MachineStatus, RivalStatus, UnitStatus, Waiting,
};
use muster_core::machine::{Availability, MachineState, Pressure};
use muster_core::state::{Observation, Phase};
use serde_json::{Value, json};

use super::table::{Field, Rows};
use super::{Machines, ago, listed, machine_name, metadata};
use crate::style::{Role, harmless};

/// What `list-units` can show; the first four are shown unless others are asked for.
pub const UNIT_FIELDS: [&str; 11] =
    ["unit", "machine", "active", "sub", "load", "hash", "ip", "copy", "epoch", "phase", "error"];
/// How many of [`UNIT_FIELDS`] are shown by default.
pub const UNIT_DEFAULT: usize = 4;

/// What `list-unit-files` can show; the first five are shown unless others are asked for.
pub const UNIT_FILE_FIELDS: [&str; 8] =
    ["unit", "hash", "dstate", "state", "target", "desc", "global", "waiting"];
/// What it can show besides: fleet's older name for `target`.
pub const TMACHINE: &str = "tmachine";
/// How many of [`UNIT_FILE_FIELDS`] are shown by default.
pub const UNIT_FILE_DEFAULT: usize = 5;

/// What `list-machines` can show; the first three are shown unless others are asked for.
pub const MACHINE_FIELDS: [&str; 14] = [
    "machine",
    "ip",
    "metadata",
    "state",
    "units",
    "cpu",
    "memory",
    "version",
    "availability",
    "heard",
    "pressure",
    "rival",
    "host",
    "brake",
];
/// How many of [`MACHINE_FIELDS`] are shown by default.
pub const MACHINE_DEFAULT: usize = 3;

/// How many different reasons of machines are shown in one line.
const SHOWN_REASONS: usize = 3;

/// One row for each copy of a unit, older copies after current ones. Older copies that no machine speaks of (they are
/// on one that is unreachable) are left out: `status` tells of them. Each row has these of [`UNIT_FIELDS`].
pub fn unit_rows(status: &UnitStatus, machines: &Machines, full: bool, fields: &[&'static str]) -> Rows {
    let shown = |copy: &&CopyStatus| copy.role == CopyRole::Current || copy.observation.is_some();
    let mut copies: Vec<&CopyStatus> = status.copies.iter().filter(shown).collect();
    copies.sort_by_key(|copy| (copy.role, copy.machine));
    let row = |copy| fields.iter().map(|name| unit_field(name, status, copy, machines, full)).collect();
    copies.into_iter().map(row).collect()
}

fn unit_field(
    name: &'static str,
    status: &UnitStatus,
    copy: &CopyStatus,
    machines: &Machines,
    full: bool,
) -> Field {
    let state = copy.unit_state();
    let active = Role::of_active_state(state.map_or("", |state| &state.active));
    match name {
        "unit" => Field::text(name, status.name.as_str()),
        "machine" => {
            Field::text(name, copy.machine.to_string()).shown_as(machines.legend(copy.machine, full))
        }
        "active" => Field::optional(name, state.map(|state| state.active.as_str())).in_role(active),
        "sub" => Field::optional(name, state.map(|state| state.sub.as_str())).in_role(active),
        "load" => Field::optional(name, state.map(|state| state.load.as_str())),
        "hash" => hash(status, full),
        "ip" => Field::optional(name, machines.address(copy.machine)),
        "copy" => Field::text(name, role_name(copy.role)),
        "epoch" => Field::text(name, copy.epoch.to_string()),
        "phase" => Field::optional(name, copy.observation.as_ref().map(phase_name)),
        _ => Field::optional(name, copy.observation.as_ref().and_then(error)).in_role(Role::Bad),
    }
}

/// The row of a unit, with these of [`UNIT_FILE_FIELDS`], or [`TMACHINE`].
pub fn unit_file_row(
    status: &UnitStatus,
    machines: &Machines,
    full: bool,
    fields: &[&'static str],
) -> Vec<Field> {
    fields.iter().map(|name| unit_file_field(name, status, machines, full)).collect()
}

fn unit_file_field(name: &'static str, status: &UnitStatus, machines: &Machines, full: bool) -> Field {
    match name {
        "unit" => Field::text(name, status.name.as_str()),
        "hash" => hash(status, full),
        "dstate" => Field::text(name, status.desired.to_string()),
        "state" => Field::optional(name, status.current_state().map(|state| state.to_string())),
        "target" | TMACHINE => match status.current_copy() {
            _ if status.global => Field::text(name, "global"),
            Some(copy) => {
                Field::text(name, copy.machine.to_string()).shown_as(machines.legend(copy.machine, full))
            }
            None => Field::optional(name, None::<String>),
        },
        "desc" => Field::optional(name, Some(status.description.as_str()).filter(|text| !text.is_empty())),
        "global" => Field::text(name, status.global.to_string()).with_json(status.global),
        _ => Field::optional(name, status.waiting.as_ref().map(waiting)).in_role(Role::Warn),
    }
}

/// Why a unit waits, in one line: what machines have against it, what most of them say first.
fn waiting(waiting: &Waiting) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, why) in &waiting.machines {
        *counts.entry(why).or_default() += 1;
    }
    if counts.is_empty() {
        return waiting.reason.clone();
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| Reverse(*count));
    let reason = |(why, count): &(&str, usize)| {
        format!("{count} {}: {why}", if *count == 1 { "machine" } else { "machines" })
    };
    let mut reasons: Vec<String> = counts.iter().take(SHOWN_REASONS).map(reason).collect();
    if counts.len() > SHOWN_REASONS {
        reasons.push(format!("and {} more reasons", counts.len() - SHOWN_REASONS));
    }
    format!("{} ({})", waiting.reason, reasons.join("; "))
}

fn hash(status: &UnitStatus, full: bool) -> Field {
    let field = Field::text("hash", status.hash.to_string());
    if full { field } else { field.shown_as(status.hash.short()) }
}

/// One row for each machine; the unreachable ones only with `lost`.
pub fn machine_rows(cluster: &ClusterStatus, full: bool, lost: bool) -> Rows {
    let shown = |machine: &&MachineStatus| lost || machine.state != MachineState::Unreachable;
    let row = |machine| machine_row(machine, cluster.brake.as_ref(), full);
    cluster.machines.iter().filter(shown).map(row).collect()
}

fn machine_row(machine: &MachineStatus, brake: Option<&BrakeStatus>, full: bool) -> Vec<Field> {
    let MachineStatus { record, reserved, .. } = machine;
    let state = match machine.state {
        MachineState::Up => Role::Good,
        MachineState::Degraded | MachineState::Awaited => Role::Warn,
        MachineState::Unreachable => Role::Bad,
    };
    let availability = match machine.availability {
        _ if machine.record.leaving => "shutting down",
        Availability::Open => "open",
        Availability::Cordoned => "cordoned",
        Availability::Draining(_) if machine.units + machine.orphans == 0 => "drained",
        Availability::Draining(_) => "draining",
    };
    let heard = machine.last_heard_ms.map(|ms| ago(Duration::from_millis(ms)));
    let capacity = record.capacity;
    vec![
        Field::text("machine", machine.id.to_string()).shown_as(machine_name(machine.id, full)),
        ip(machine),
        Field::optional("metadata", Some(metadata(machine)).filter(|text| !text.is_empty()))
            .with_json(json!(record.labels)),
        Field::text("state", machine.state.to_string()).in_role(state),
        Field::text("units", machine.units.to_string()).with_json(machine.units),
        Field::text("cpu", format!("{} of {}", reserved.cpu, capacity.cpu))
            .with_json(json!({"reserved_milli": reserved.cpu.0, "capacity_milli": capacity.cpu.0})),
        Field::text(
            "memory",
            format!("{} of {}", mebibytes(reserved.memory.0), mebibytes(capacity.memory.0)),
        )
        .with_json(json!({"reserved_bytes": reserved.memory.0, "capacity_bytes": capacity.memory.0})),
        Field::text("version", record.version.as_str()),
        Field::text("availability", availability),
        Field::optional("heard", heard).with_json(machine.last_heard_ms.map_or(Value::Null, Value::from)),
        pressure(machine.pressure),
        Field::optional("rival", machine.rival.as_ref().map(rival)).in_role(Role::Bad).with_json(
            machine.rival.as_ref().map_or(
                Value::Null,
                |rival| json!({"ip": rival.address, "boot": rival.boot, "heard": rival.last_heard_ms}),
            ),
        ),
        Field::optional(
            "host",
            machine.host_answers.map(|answers| if answers { "answers" } else { "silent" }),
        ),
        brake_on(brake.filter(|brake| is_missed(machine) || brake.machines.contains(&machine.id))),
    ]
}

/// Whether the machine is lost, and has not said that it goes.
fn is_missed(machine: &MachineStatus) -> bool {
    machine.state == MachineState::Unreachable && !machine.record.leaving
}

/// The brake, of a machine for which it is held, or whose units it holds there.
fn brake_on(brake: Option<&BrakeStatus>) -> Field {
    let json = |brake: &BrakeStatus| {
        let left = Some(brake.left_ms).filter(|ms| *ms > 0);
        json!({"held_ms": brake.held_ms, "left_ms": left})
    };
    Field::optional("brake", brake.map(|brake| format!("on for {} s", brake.held_ms / 1000)))
        .in_role(Role::Bad)
        .with_json(brake.map_or(Value::Null, json))
}

/// The machine's address, with that of another one which claims to be it.
fn ip(machine: &MachineStatus) -> Field {
    let address = machine.record.address.as_str();
    let field = Field::optional("ip", Some(address).filter(|address| !address.is_empty()));
    let Some(rival) = &machine.rival else { return field };
    let own = if address.is_empty() { "-" } else { address };
    let other = if rival.address.is_empty() { "another machine" } else { rival.address.as_str() };
    field.shown_as(format!("{} (id also of {})", harmless(own), harmless(other))).in_role(Role::Bad)
}

fn rival(rival: &RivalStatus) -> String {
    let address = if rival.address.is_empty() { "-" } else { rival.address.as_str() };
    format!("{address}, {}", ago(Duration::from_millis(rival.last_heard_ms)))
}

/// In percent of the last ten seconds.
fn pressure(pressure: Pressure) -> Field {
    let Pressure { cpu, memory, io } = pressure;
    let named = [("cpu", cpu), ("memory", memory), ("io", io)];
    let said = named.iter().filter_map(|(name, share)| {
        share.map(|share| format!("{name} {}.{}%", share / 100, share % 100 / 10))
    });
    let said = said.collect::<Vec<_>>().join(" ");
    let percent = |share: Option<u32>| share.map(|share| f64::from(share) / 100.0);
    Field::optional("pressure", Some(said).filter(|said| !said.is_empty())).with_json(json!({
        "cpu_percent": percent(cpu), "memory_percent": percent(memory), "io_percent": percent(io),
    }))
}

/// Whole mebibytes: a machine's memory is no round number of anything larger.
pub fn mebibytes(bytes: u64) -> String {
    if bytes == 0 { "0".to_owned() } else { format!("{}M", bytes.div_ceil(1024 * 1024)) }
}

/// What a copy is, in one word.
pub fn role_name(role: CopyRole) -> &'static str {
    match role {
        CopyRole::Current => "current",
        CopyRole::Stopping => "stopping",
        CopyRole::Orphaned => "orphaned",
    }
}

/// How far a copy is, in one word.
pub fn phase_name(observation: &Observation) -> &'static str {
    match observation {
        Observation::Refused(_) => "refused",
        Observation::Held { phase, .. } => match phase {
            Phase::Loaded => "loaded",
            Phase::Starting => "starting",
            Phase::Launched => "launched",
            Phase::StartFailed(_) => "start-failed",
            Phase::Failed(_) => "failed",
            Phase::Stopping | Phase::StopFailed(_) => "stopping",
        },
    }
}

/// Why a copy is not what it should be, in the machine's words.
pub fn error(observation: &Observation) -> Option<&str> {
    match observation {
        Observation::Refused(reason) => Some(reason),
        Observation::Held {
            phase: Phase::StartFailed(failure) | Phase::Failed(failure) | Phase::StopFailed(failure),
            ..
        } => Some(&failure.reason),
        Observation::Held { .. } => None,
    }
}

/// What is worth knowing beside the list of machines, for stderr: which are lost or take no units, and how to add the first
/// one.
pub fn machine_notes(cluster: &ClusterStatus) -> Vec<String> {
    if cluster.machines.is_empty() {
        return vec![
            "No machine has joined this cluster yet. To add one: install muster-agent there, put this scheduler's \
             address into `schedulers` in /etc/muster/agent.toml, and run `systemctl enable --now muster-agent`."
                .to_owned(),
        ];
    }
    let mut notes = doubles(cluster);
    notes.extend(closed(cluster));
    notes.extend(lost(cluster));
    if let Some(brake) = &cluster.brake {
        let until = match brake.left_ms {
            0 => String::new(),
            ms => format!(", for {} s at most,", ms.div_ceil(1000)),
        };
        notes.push(format!(
            "THE BRAKE IS ON: {} machines seem to have died at once, {}, so that the scheduler doubts itself and moves \
             nothing{until} until they are back. If they are really dead: musterctl brake release",
            brake.machines.len(),
            ago(Duration::from_millis(brake.held_ms))
        ));
    }
    notes
}

/// Which machines are lost, and what became of their units.
fn lost(cluster: &ClusterStatus) -> Vec<String> {
    let line = |machine: &MachineStatus| {
        let heard = match machine.last_heard_ms {
            Some(ms) => format!("last heard {}", ago(Duration::from_millis(ms))),
            None => "not heard since this scheduler took over".to_owned(),
        };
        let host = match machine.host_answers {
            Some(true) => " (its host answers: see to its muster-agent)",
            Some(false) => " (its host does not answer either)",
            None => "",
        };
        format!("{}, {heard}{host}", with_address(machine))
    };
    let lost = cluster.machines.iter().filter(|machine| machine.state == MachineState::Unreachable);
    let (missed, shut_down): (Vec<_>, Vec<_>) = lost.partition(|machine| is_missed(machine));
    let note = |machines: Vec<&MachineStatus>, how: &str, units: &str| {
        let one = machines.len() == 1;
        let whose = if one { "its" } else { "their" };
        let lines: Vec<String> = machines.into_iter().map(line).collect();
        (!lines.is_empty())
            .then(|| format!("{} {how}: {}; {whose} units {units}.", count_of(lines.len()), listed(&lines)))
    };
    let units = if cluster.brake.is_some() { "wait" } else { "were placed elsewhere where they fit" };
    let kept =
        "were placed elsewhere where they fit, but for those that stay with their machine (OnReboot=keep)";
    [note(missed, "unreachable", units), note(shut_down, "shut down", kept)].into_iter().flatten().collect()
}

/// Which machines take no units at present although they are not lost, and why.
fn closed(cluster: &ClusterStatus) -> Vec<String> {
    let is = |machine: &MachineStatus| match (machine.state, machine.availability) {
        (MachineState::Unreachable, _) => None,
        (MachineState::Awaited, _) => Some("awaited (not heard yet since this scheduler took over)"),
        _ if machine.record.leaving => Some("shutting down"),
        (_, Availability::Draining(_)) if machine.is_empty() => Some("drained"),
        (_, Availability::Draining(_)) => Some("draining"),
        (_, Availability::Cordoned) => Some("cordoned"),
        (MachineState::Degraded, _) => Some("degraded (systemd does not answer there)"),
        (MachineState::Up, Availability::Open) => None,
    };
    let mut by_word: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for machine in &cluster.machines {
        let Some(word) = is(machine) else { continue };
        let left = match machine.units + machine.orphans {
            left if word == "draining" => format!(", {left} left"),
            _ => String::new(),
        };
        by_word.entry(word).or_default().push(format!("{}{left}", with_address(machine)));
    }
    let note = |(word, machines): (&str, Vec<String>)| {
        let takes = if machines.len() == 1 { "it takes" } else { "they take" };
        format!("{} {word}: {}; {takes} no new units.", count_of(machines.len()), listed(&machines))
    };
    by_word.into_iter().map(note).collect()
}

/// `1 machine is`, `2 machines are`.
fn count_of(machines: usize) -> String {
    if machines == 1 { "1 machine is".to_owned() } else { format!("{machines} machines are") }
}

/// `1234abcd... (198.18.0.101)`.
fn with_address(machine: &MachineStatus) -> String {
    let name = machine_name(machine.id, false);
    match machine.record.address.as_str() {
        "" => name,
        address => format!("{name} ({})", harmless(address)),
    }
}

/// What to do about machines with the same id.
fn doubles(cluster: &ClusterStatus) -> Vec<String> {
    let named = |address: &str| match address {
        "" => "one without an address".to_owned(),
        address => harmless(address).to_string(),
    };
    let double = |machine: &MachineStatus| {
        let rival = machine.rival.as_ref()?;
        Some(format!(
            "Two machines have the id {}: {}, and {}, which was refused {}. One is a copy of the other: remove \
             /etc/machine-id there, run systemd-machine-id-setup, and reboot it.",
            machine_name(machine.id, false),
            named(&machine.record.address),
            named(&rival.address),
            ago(Duration::from_millis(rival.last_heard_ms))
        ))
    };
    cluster.machines.iter().filter_map(double).collect()
}

#[cfg(test)]
mod tests {
    use muster_core::ids::BootId;
    use muster_core::machine::Drain;

    use super::super::table::{Columns, write_json, write_table};
    use super::*;
    use crate::fixtures::{cluster, machine_id, machines, unit, with_waiting, zoo};
    use muster_core::state::DesiredState;

    fn unit_rows_of(units: &[UnitStatus], full: bool) -> Rows {
        units.iter().flat_map(|status| unit_rows(status, &machines(), full, &UNIT_FIELDS)).collect()
    }

    fn unit_file_rows_of(units: &[UnitStatus]) -> Rows {
        units.iter().map(|status| unit_file_row(status, &machines(), false, &UNIT_FILE_FIELDS)).collect()
    }

    fn plain(bytes: Vec<u8>) -> String {
        let text = String::from_utf8(bytes).expect("text");
        anstream::adapter::strip_str(&text).to_string()
    }

    fn table(rows: &Rows, fields: &[&'static str], legend: bool) -> String {
        let mut out = Vec::new();
        write_table(&mut out, rows, fields, legend, Columns::Blanks).expect("written");
        plain(out)
    }

    #[test]
    fn scripts_get_tabs() {
        let tabs = |rows: &Rows, fields: &[&'static str]| {
            let mut out = Vec::new();
            write_table(&mut out, rows, fields, true, Columns::Tabs).expect("written");
            String::from_utf8(out).expect("text").replace('\t', "<TAB>")
        };
        let units = unit_rows_of(&zoo(), false);
        let files = unit_file_rows_of(&zoo());
        let live = machine_rows(&cluster(), false, false);
        let all = [
            tabs(&units, &UNIT_FIELDS[..UNIT_DEFAULT]),
            tabs(&files, &UNIT_FILE_FIELDS[..UNIT_FILE_DEFAULT]),
            tabs(&live, &MACHINE_FIELDS[..MACHINE_DEFAULT]),
            tabs(&Vec::new(), &["unit", "machine"]),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }

    fn json(rows: Rows, fields: &[&'static str]) -> String {
        let mut out = Vec::new();
        write_json(&mut out, rows, fields).expect("written");
        let parsed: Value = serde_json::from_slice(&out).expect("JSON");
        assert!(parsed.is_array());
        plain(out)
    }

    fn names(rows: &Rows) -> Vec<&'static str> {
        rows[0].iter().map(|field| field.name).collect()
    }

    #[test]
    fn units() {
        let rows = unit_rows_of(&zoo(), false);
        assert_eq!(names(&rows), UNIT_FIELDS);
        insta::assert_snapshot!("units_default", table(&rows, &UNIT_FIELDS[..UNIT_DEFAULT], true));
        insta::assert_snapshot!("units_all", table(&rows, &UNIT_FIELDS, true));
        insta::assert_snapshot!(
            "units_full",
            table(&unit_rows_of(&zoo(), true), &["hash", "machine"], false)
        );
        insta::assert_snapshot!("units_json", json(rows, &UNIT_FIELDS));
    }

    #[test]
    fn unit_files() {
        let rows = unit_file_rows_of(&zoo());
        assert_eq!(names(&rows), UNIT_FILE_FIELDS);
        insta::assert_snapshot!(
            "unit_files_default",
            table(&rows, &UNIT_FILE_FIELDS[..UNIT_FILE_DEFAULT], true)
        );
        insta::assert_snapshot!("unit_files_all", table(&rows, &UNIT_FILE_FIELDS, true));
        insta::assert_snapshot!("unit_files_json", json(rows, &UNIT_FILE_FIELDS));
    }

    #[test]
    fn what_most_machines_say_comes_first() {
        let unit = |machines: &[(u128, &str)]| {
            with_waiting(unit("a.service", DesiredState::Launched), "no machine takes the unit", machines)
        };
        let shown = |status| unit_file_rows_of(&[status]);
        let field = |machines| table(&shown(unit(machines)), &["waiting"], false);
        assert_eq!(field(&[]), "no machine takes the unit\n");
        assert_eq!(
            field(&[(1, "a"), (2, "is unreachable"), (3, "is unreachable"), (4, "c"), (5, "d"), (6, "e")]),
            "no machine takes the unit (2 machines: is unreachable; 1 machine: a; 1 machine: c; and 2 more reasons)\n"
        );
    }

    #[test]
    fn machines_of_a_cluster() {
        let live = machine_rows(&cluster(), false, false);
        assert_eq!(names(&live), MACHINE_FIELDS);
        insta::assert_snapshot!("machines_default", table(&live, &MACHINE_FIELDS[..MACHINE_DEFAULT], true));
        let all = machine_rows(&cluster(), true, true);
        insta::assert_snapshot!("machines_all", table(&all, &MACHINE_FIELDS, true));
        insta::assert_snapshot!("machines_json", json(all, &MACHINE_FIELDS));
    }

    #[test]
    fn programs_see_the_brake_too() {
        let mut cluster = cluster();
        let mut shown = |brake| {
            cluster.brake = brake;
            let rows = machine_rows(&cluster, false, true);
            let text = table(&rows, &["machine", "brake"], false);
            (text, json(rows, &["brake"]).replace('\n', ""))
        };
        let (text, json) =
            shown(Some(BrakeStatus { machines: vec![machine_id(2)], held_ms: 18_800, left_ms: 41_200 }));
        assert_eq!(text, "11111111...  -\n22222222...  on for 18 s\n33333333...  on for 18 s\n");
        let on = r#"{"brake":{"held_ms":18800,"left_ms":41200}}"#;
        assert_eq!(json, format!(r#"[{{"brake":null}},{on},{on}]"#));
        let (_, json) = shown(Some(BrakeStatus { machines: vec![], held_ms: 1, left_ms: 0 }));
        assert_eq!(json, r#"[{"brake":null},{"brake":null},{"brake":{"held_ms":1,"left_ms":null}}]"#);
        assert_eq!(shown(None).1, r#"[{"brake":null},{"brake":null},{"brake":null}]"#);
    }

    #[test]
    fn json_of_some_fields_and_of_nothing() {
        let rows = unit_rows_of(&zoo()[..1], false);
        assert_eq!(
            json(rows, &["unit", "active"]),
            "[\n{\"active\":\"failed\",\"unit\":\"broken.service\"}\n]\n"
        );
        assert_eq!(json(Vec::new(), &["unit"]), "[]\n");
    }

    #[test]
    fn an_empty_list_is_its_heading() {
        assert_eq!(table(&Vec::new(), &["unit", "machine"], true), "UNIT  MACHINE\n");
        assert_eq!(table(&Vec::new(), &["unit", "machine"], false), "");
    }

    #[test]
    fn machines_with_one_id_are_both_shown() {
        let mut cluster = cluster();
        let rival = |address: &str| {
            Some(RivalStatus { address: address.into(), boot: BootId::new(9), last_heard_ms: 4200 })
        };
        cluster.machines[0].rival = rival("198.18.0.104");
        cluster.machines[1].rival = rival("");
        cluster.machines.truncate(2);
        let rows = machine_rows(&cluster, false, false);
        insta::assert_snapshot!("machines_with_rivals", table(&rows, &["machine", "ip", "rival"], true));
        assert_eq!(
            machine_notes(&cluster),
            [
                "Two machines have the id 11111111...: 198.18.0.101, and 198.18.0.104, which was refused 4 s ago. One is a \
              copy of the other: remove /etc/machine-id there, run systemd-machine-id-setup, and reboot it.",
                "Two machines have the id 22222222...: one without an address, and one without an address, which was refused \
              4 s ago. One is a copy of the other: remove /etc/machine-id there, run systemd-machine-id-setup, and reboot it."
            ]
        );
        let json: Value = serde_json::from_str(&json(rows, &["ip", "rival"])).expect("JSON");
        assert_eq!(json[0]["ip"], "198.18.0.101");
        assert_eq!(json[0]["rival"]["ip"], "198.18.0.104");
        assert_eq!(json[0]["rival"]["heard"], 4200);
    }

    #[test]
    fn machines_that_take_no_units_are_named() {
        let mut cluster = cluster();
        cluster.machines.truncate(2);
        let drain = Availability::Draining(Drain { timeout_ms: 1000, max_parallel: 0 });
        cluster.machines[0].availability = drain;
        cluster.machines[1].state = MachineState::Degraded;
        let mut many = cluster.machines[1].clone();
        many.availability = Availability::Cordoned;
        cluster.machines.extend(std::iter::repeat_n(many, 7));
        let [mut drained, mut awaited, mut leaving] = [0; 3].map(|first| cluster.machines[first].clone());
        (drained.units, awaited.state, leaving.record.leaving) = (0, MachineState::Awaited, true);
        cluster.machines.extend([drained, awaited, leaving]);
        insta::assert_snapshot!(machine_notes(&cluster).join("\n"), @r"
        1 machine is awaited (not heard yet since this scheduler took over): 11111111... (198.18.0.101); it takes no new units.
        7 machines are cordoned: 22222222...; 22222222...; 22222222...; 22222222...; 22222222...; and 2 more; they take no new units.
        1 machine is degraded (systemd does not answer there): 22222222...; it takes no new units.
        1 machine is drained: 11111111... (198.18.0.101); it takes no new units.
        1 machine is draining: 11111111... (198.18.0.101), 2 left; it takes no new units.
        1 machine is shutting down: 11111111... (198.18.0.101); it takes no new units.
        ");
    }

    #[test]
    fn notes_beside_the_list_of_machines() {
        let mut cluster = cluster();
        assert_eq!(
            machine_notes(&cluster),
            ["1 machine is unreachable: 33333333... (198.18.0.103), last heard 12 s ago; \
              its units were placed elsewhere where they fit."]
        );
        cluster.machines[1].state = MachineState::Unreachable;
        assert_eq!(
            machine_notes(&cluster),
            ["2 machines are unreachable: 22222222..., not heard since this scheduler took over; \
              33333333... (198.18.0.103), last heard 12 s ago; their units were placed elsewhere where they fit."]
        );
        let machines = vec![cluster.machines[1].id, cluster.machines[2].id];
        cluster.brake = Some(BrakeStatus { machines, held_ms: 18_800, left_ms: 41_200 });
        assert_eq!(
            machine_notes(&cluster)[1],
            "THE BRAKE IS ON: 2 machines seem to have died at once, 18 s ago, so that the scheduler doubts itself and moves \
             nothing, for 42 s at most, until they are back. If they are really dead: musterctl brake release"
        );
        cluster.machines[2].record.leaving = true;
        assert_eq!(
            machine_notes(&cluster)[..2],
            [
                "1 machine is unreachable: 22222222..., not heard since this scheduler took over; its units wait.",
                "1 machine is shut down: 33333333... (198.18.0.103), last heard 12 s ago; its units were placed elsewhere \
                 where they fit, but for those that stay with their machine (OnReboot=keep)."
            ]
        );
        cluster.machines.truncate(1);
        assert!(
            machine_notes(&cluster)[0].starts_with("THE BRAKE IS ON: "),
            "those that are silent are not lost yet"
        );
        cluster.brake = None;
        assert!(machine_notes(&cluster).is_empty());
        cluster.machines.clear();
        assert!(machine_notes(&cluster)[0].contains("install muster-agent"));
    }
}
