//! The status page of a unit: what was asked for, what was decided, what is seen, and why the three differ.

use std::fmt::Write as _;
use std::io::{self, Write};

use muster_core::command::{CopyRole, CopyStatus, UnitStatus, Waiting};
use muster_core::ids::MachineId;
use muster_core::state::{DesiredState, Observation, Phase};
use serde_json::{Value, json};

use super::listing::{error, phase_name, role_name};
use super::{Machines, is_active};
use crate::style::{Role, harmless};
use crate::systemd::Said;

/// Whether every current copy of the unit is active, and there is one.
pub fn all_active(status: &UnitStatus) -> bool {
    let mut current = status.copies.iter().filter(|copy| copy.role == CopyRole::Current).peekable();
    current.peek().is_some() && current.all(is_active)
}

/// Whether the unit is on a machine, or is to be.
pub fn is_placed(status: &UnitStatus) -> bool {
    status.copies.iter().any(|copy| copy.role == CopyRole::Current)
}

/// Writes the page.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_page(out: &mut impl Write, status: &UnitStatus, machines: &Machines) -> io::Result<()> {
    let mut page = Page(String::new());
    page.heading(status);
    page.line(
        "Desired",
        &if status.known {
            status.desired.to_string()
        } else {
            "nothing: the cluster does not know this unit".to_owned()
        },
    );
    if let Some(state) = status.current_state() {
        page.line("Current", &state.to_string());
    }
    let (current, older): (Vec<_>, Vec<_>) =
        status.copies.iter().partition(|copy| copy.role == CopyRole::Current);
    if status.global {
        page.line("Global", &format!("on {} machines, wherever it fits", current.len()));
    }
    for copy in current {
        page.current(copy, machines);
    }
    if let Some(waiting) = &status.waiting {
        page.waiting(waiting, machines);
    }
    if let Some(trouble) = &status.trouble {
        page.line("Failed", &Role::Bad.paint(&harmless(trouble)));
    }
    if status.done {
        page.line("Done", "it has run to its end, and is not started again by itself");
    }
    for copy in older {
        page.line("Older", &older_copy(copy, machines));
    }
    page.line("Hash", &status.hash.to_string());
    out.write_all(page.0.as_bytes())
}

/// Writes what the systemd of the unit's machines says of it.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_said(
    out: &mut impl Write,
    status: &UnitStatus,
    machines: &Machines,
    said: &Said,
) -> io::Result<()> {
    for copy in &status.copies {
        let legend = machines.legend(copy.machine, false);
        match said.get(&(status.name.clone(), copy.machine)) {
            Some(Ok(text)) => {
                writeln!(out, "\n{legend}, as its systemd says:")?;
                for line in text.lines() {
                    writeln!(out, "{}", harmless(line))?;
                }
            }
            Some(Err(why)) => {
                let note = format!("What the systemd of {legend} says is not shown: {}", harmless(why));
                writeln!(out, "\n{}", Role::Warn.paint(&note))?;
            }
            None => {}
        }
    }
    Ok(())
}

struct Page(String);

impl Page {
    fn heading(&mut self, status: &UnitStatus) {
        let failed = |copy: &CopyStatus| {
            copy.observation.as_ref().is_some_and(|seen| error(seen).is_some())
                || copy.unit_state().is_some_and(|state| state.active == "failed")
        };
        let role = if status.copies.iter().any(failed) {
            Role::Bad
        } else if all_active(status) {
            Role::Good
        } else if status.desired == DesiredState::Launched {
            Role::Warn
        } else {
            Role::Plain
        };
        let dot = role.paint(if role == Role::Plain { "○" } else { "●" });
        let name = Role::Strong.paint(status.name.as_str());
        let _ = match status.description.as_str() {
            "" => writeln!(self.0, "{dot} {name}"),
            description => writeln!(self.0, "{dot} {name} - {}", harmless(description)),
        };
    }

    /// One labelled line. `value` may hold colour, and is harmless.
    fn line(&mut self, label: &str, value: &str) {
        let _ = writeln!(self.0, "{label:>12}: {value}");
    }

    /// A line that belongs to the one before.
    fn more(&mut self, value: &str) {
        let _ = writeln!(self.0, "{:14}{value}", "");
    }

    fn current(&mut self, copy: &CopyStatus, machines: &Machines) {
        let lost = if machines.lost(copy.machine) { Role::Bad.paint(", unreachable") } else { String::new() };
        self.line(
            "Machine",
            &format!("{} (epoch {}){lost}", machines.legend(copy.machine, false), copy.epoch),
        );
        if !matches!(copy.observation, Some(Observation::Refused(_))) {
            self.line("Active", &active(copy));
        }
        match &copy.observation {
            Some(Observation::Refused(reason)) => {
                self.line(
                    "Error",
                    &Role::Bad.paint(&format!("the machine refuses it: {}", harmless(reason))),
                );
            }
            Some(Observation::Held { phase: Phase::StartFailed(failure), .. }) => {
                let text = format!("it did not start: {}", harmless(&failure.reason));
                self.line("Error", &Role::Bad.paint(&text));
            }
            Some(Observation::Held { phase: Phase::Failed(failure), .. }) => {
                let text = format!("systemd gave it up: {}", harmless(&failure.reason));
                self.line("Error", &Role::Bad.paint(&text));
            }
            Some(Observation::Held { phase: Phase::StopFailed(failure), .. }) => {
                let text =
                    format!("it could not be ended, and is tried again: {}", harmless(&failure.reason));
                self.line("Error", &Role::Bad.paint(&text));
            }
            Some(Observation::Held { phase: Phase::Starting, .. }) => self.line("Job", "start is running"),
            Some(Observation::Held { phase: Phase::Stopping, .. }) => self.line("Job", "stop is running"),
            None | Some(Observation::Held { phase: Phase::Loaded | Phase::Launched, .. }) => {}
        }
    }

    fn waiting(&mut self, waiting: &Waiting, machines: &Machines) {
        self.line("Waiting", &Role::Warn.paint(&harmless(&waiting.reason)));
        for (machine, reason) in &waiting.machines {
            self.more(&format!("{}: {}", machines.legend(*machine, false), harmless(reason)));
        }
    }
}

fn active(copy: &CopyStatus) -> String {
    match copy.unit_state() {
        Some(state) => {
            let role = Role::of_active_state(&state.active);
            let text = role.paint(&format!("{} ({})", harmless(&state.active), harmless(&state.sub)));
            match state.load.as_str() {
                "loaded" => text,
                load => format!("{text}, {}", harmless(load)),
            }
        }
        None => "unknown: the machine has not said".to_owned(),
    }
}

fn older_copy(copy: &CopyStatus, machines: &Machines) -> String {
    let what = match copy.role {
        CopyRole::Orphaned => "orphaned: this cluster has no record of it, so it is left alone",
        _ if machines.lost(copy.machine) => "is stopped when its machine is heard from",
        _ => "is being stopped",
    };
    let seen = match copy.unit_state() {
        Some(_) => format!(", {}", active(copy)),
        None => String::new(),
    };
    let hindrance = match &copy.observation {
        Some(Observation::Held { phase: Phase::StopFailed(failure), .. }) => {
            Role::Bad.paint(&format!(": {}", harmless(&failure.reason)))
        }
        _ => String::new(),
    };
    format!("{} (epoch {}){seen}; {what}{hindrance}", machines.legend(copy.machine, false), copy.epoch)
}

/// The same for programs.
pub fn as_json(status: &UnitStatus, machines: &Machines) -> Value {
    let copy = |copy: &CopyStatus| {
        let state = copy.unit_state();
        json!({
            "machine": copy.machine.to_string(),
            "ip": machines.address(copy.machine),
            "epoch": copy.epoch.to_string(),
            "copy": role_name(copy.role),
            "phase": copy.observation.as_ref().map(phase_name),
            "error": copy.observation.as_ref().and_then(error),
            "load": state.map(|state| &state.load),
            "active": state.map(|state| &state.active),
            "sub": state.map(|state| &state.sub),
        })
    };
    let waiting = |waiting: &Waiting| {
        let machine = |(machine, reason): &(MachineId, String)| json!({"machine": machine.to_string(), "ip": machines.address(*machine), "reason": reason});
        json!({"reason": waiting.reason, "machines": waiting.machines.iter().map(machine).collect::<Vec<_>>()})
    };
    json!({
        "unit": status.name.as_str(),
        "known": status.known,
        "desc": status.description,
        "hash": status.hash.to_string(),
        "dstate": status.desired.to_string(),
        "state": status.current_state().map(|state| state.to_string()),
        "global": status.global,
        "copies": status.copies.iter().map(copy).collect::<Vec<_>>(),
        "waiting": status.waiting.as_ref().map(waiting),
        "trouble": status.trouble,
        "done": status.done,
    })
}

#[cfg(test)]
mod tests {
    use muster_core::state::Failure;

    use super::*;
    use crate::fixtures::{held, machines, running, zoo};

    #[test]
    fn pages() {
        let mut out = Vec::new();
        for status in zoo() {
            write_page(&mut out, &status, &machines()).expect("written");
            writeln!(out).expect("written");
        }
        let text = String::from_utf8(out).expect("text");
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn json_of_a_unit() {
        let shown: Vec<Value> = zoo().iter().map(|status| as_json(status, &machines())).collect();
        insta::assert_snapshot!(serde_json::to_string_pretty(&shown).expect("JSON"));
    }

    #[test]
    fn active_means_every_copy() {
        let active: Vec<String> =
            zoo().into_iter().filter(all_active).map(|status| status.name.to_string()).collect();
        assert_eq!(active, ["moved.service"]);
        assert!(all_active(&running("web.service")));
    }

    #[test]
    fn what_keeps_a_copy_from_ending_is_shown() {
        let failure = Failure::without_result("systemd refuses to stop it: busy");
        let mut status = running("web.service");
        status.copies[0].observation = Some(held(Phase::StopFailed(failure), "active", "running"));
        let page = |status: &UnitStatus| {
            let mut out = Vec::new();
            write_page(&mut out, status, &machines()).expect("written");
            anstream::adapter::strip_str(&String::from_utf8(out).expect("text")).to_string()
        };
        let current = "Error: it could not be ended, and is tried again: systemd refuses to stop it: busy";
        assert!(page(&status).contains(current), "{}", page(&status));
        status.copies[0].role = CopyRole::Stopping;
        assert!(page(&status).contains("is being stopped: systemd refuses to stop it: busy"));
        assert_eq!(as_json(&status, &machines())["copies"][0]["error"], "systemd refuses to stop it: busy");
    }

    #[test]
    fn a_description_gives_the_terminal_no_orders() {
        let mut status = running("web.service");
        status.description = "x\u{1b}]0;y\u{7}".to_owned();
        let mut out = Vec::new();
        write_page(&mut out, &status, &machines()).expect("written");
        assert!(!String::from_utf8(out).expect("text").contains('\u{7}'));
    }
}
