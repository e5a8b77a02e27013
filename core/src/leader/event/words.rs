//! Events as an operator reads them.

use std::fmt;

use super::Event;
use crate::command::Verb;
use crate::leader::PlaceReason;
use crate::machine::Availability;

/// Of how many units or machines a sentence names all.
const NAMED: usize = 3;

const SYSTEMD_SILENT: &str = "its systemd does not answer";
const SYSTEMD_ANSWERS: &str = "its systemd answers";
const NOTHING_LEFT: &str = "it says that nothing is left there";
const TIME_PASSED: &str = "its time has passed";
const SHUTS_DOWN: &str = "shuts down";
const ENDED: &str = "it has ended by itself, or was stopped there by hand";
const NO_RECORD: &str = "the cluster has no record of that";

impl Event {
    /// Why it was decided, or happened, where its kind does not say that.
    pub fn reason(&self) -> Option<String> {
        Some(match self {
            Self::MachineUp { arrival, .. } => format!("it {arrival}"),
            Self::MachineDegraded(_) => SYSTEMD_SILENT.to_owned(),
            Self::MachineRecovered(_) => SYSTEMD_ANSWERS.to_owned(),
            Self::MachineLost { reason, .. } => reason.to_string(),
            Self::Drained(_) => NOTHING_LEFT.to_owned(),
            Self::NotDrained { .. } => TIME_PASSED.to_owned(),
            Self::FitNowhere { units } => no_machine_takes(units.len()).to_owned(),
            Self::MachineLeaves(_) => format!("it {SHUTS_DOWN}"),
            Self::IdInUse { address, rival, .. } => {
                format!("two machines have it ({address} and {rival}), one of them is a copy")
            }
            Self::BrakeApplied { machines, of, .. } => died_at_once(machines.len(), *of),
            Self::BrakeReleased { reason, .. } => reason.to_string(),
            Self::MachineRefused { reason, .. } | Self::StoreFailed(reason) => reason.clone(),
            Self::Placed { reason, .. } => reason.to_string(),
            Self::Unplaced { reason, .. } => reason.to_string(),
            Self::LingeringEnded { reason, .. } => reason.to_string(),
            Self::Inactive { .. } => ENDED.to_owned(),
            Self::Orphaned { .. } => NO_RECORD.to_owned(),
            Self::StartFailed { reason, .. }
            | Self::StopFailed { reason, .. }
            | Self::Failed { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Retried { reason, .. }
            | Self::Withheld { reason, .. }
            | Self::GivenUp { reason, .. } => reason.to_string(),
            Self::TookOffice { .. }
            | Self::Command { .. }
            | Self::HostAnswers(_)
            | Self::Availability { .. }
            | Self::Labels { .. }
            | Self::AgentRestarts { .. }
            | Self::Stalled(_)
            | Self::StoreSilent(_)
            | Self::Done { .. }
            | Self::Gone { .. }
            | Self::Started { .. } => return None,
        })
    }
}

/// One plain sentence.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TookOffice { term, units, machines } => {
                write!(
                    f,
                    "this scheduler leads, in term {term}, with {} and {}",
                    units_of(*units),
                    machines_of(*machines)
                )
            }
            Self::Command { verb, units } => {
                let verb = match verb {
                    Verb::Submit => "submitted",
                    Verb::Load => "loaded",
                    Verb::Start => "started",
                    Verb::Stop => "stopped",
                    Verb::Unload => "unloaded",
                    Verb::Destroy => "destroyed",
                    Verb::Restart => "restarted",
                };
                write!(f, "a client {verb} {}", Listed(units))
            }
            Self::MachineUp { machine, arrival, units } => {
                write!(f, "machine {} {arrival}", machine.short())?;
                if units.is_empty() { Ok(()) } else { write!(f, "; placed there: {}", Listed(units)) }
            }
            Self::MachineDegraded(machine) => {
                write!(f, "machine {} gets nothing new: {SYSTEMD_SILENT}", machine.short())
            }
            Self::MachineRecovered(machine) => {
                write!(f, "machine {} gets units again: {SYSTEMD_ANSWERS}", machine.short())
            }
            Self::MachineLost { machine, units, held, reason } => {
                write!(f, "machine {} is lost: {reason}; it had ", machine.short())?;
                match units.as_slice() {
                    [] => return f.write_str("no units"),
                    _ => write!(f, "{}", Listed(units))?,
                }
                match held.as_slice() {
                    [] => return Ok(()),
                    _ if held.len() == units.len() => f.write_str(", held there by the brake")?,
                    _ => write!(f, "; the brake holds {} there", Listed(held))?,
                }
                f.write_str(" (`musterctl brake release`)")
            }
            Self::Availability { machine, availability } => {
                let decided = match availability {
                    Availability::Open => "uncordoned",
                    Availability::Cordoned => "cordoned",
                    Availability::Draining(_) => "drains",
                };
                write!(f, "an operator {decided} machine {}", machine.short())
            }
            Self::Labels { machine, edits } => {
                let edits: Vec<String> = edits
                    .iter()
                    .map(|(key, value)| {
                        value.as_ref().map_or(format!("{key}-"), |value| format!("{key}={value}"))
                    })
                    .collect();
                write!(f, "a client changed the metadata of machine {}: {}", machine.short(), Listed(&edits))
            }
            Self::Drained(machine) => {
                write!(f, "machine {} is drained: {NOTHING_LEFT}", machine.short())
            }
            Self::FitNowhere { units } => {
                let wait = if units.len() == 1 { "waits" } else { "wait" };
                let why = no_machine_takes(units.len());
                write!(f, "{} {wait}: {why}; `musterctl status UNIT` says why", Listed(units))
            }
            Self::NotDrained { machine, units } => write!(
                f,
                "machine {} is not drained, and {TIME_PASSED}: left there are {}; what other machines take does not \
                 wait any more",
                machine.short(),
                Listed(units)
            ),
            Self::HostAnswers(machine) => write!(
                f,
                "the host of machine {} answers, and its agent does not: see `journalctl -u muster-agent` there",
                machine.short()
            ),
            Self::MachineLeaves(machine) => {
                write!(f, "machine {} {SHUTS_DOWN}: its units are placed elsewhere", machine.short())
            }
            Self::AgentRestarts { machine, grace } => write!(
                f,
                "the agent of machine {} is restarted: its lease lasts {} s",
                machine.short(),
                grace.as_secs()
            ),
            Self::MachineRefused { machine, reason } => {
                write!(f, "machine {} is refused: {reason}", machine.short())
            }
            Self::IdInUse { machine, address, rival } => write!(
                f,
                "two machines have the machine-id {} ({address} and {rival}), one of them is a copy, and the later one is \
                 refused; give the copy an id of its own: remove /etc/machine-id there, run systemd-machine-id-setup, \
                 and reboot it",
                machine.short()
            ),
            Self::Stalled(stalled) => write!(
                f,
                "this scheduler was stalled for {} ms; that is counted against no machine",
                stalled.as_millis()
            ),
            Self::BrakeApplied { machines, of, units } => {
                let shown: Vec<String> = machines.iter().map(|machine| machine.short()).collect();
                let seem = died_at_once(machines.len(), *of);
                write!(f, "{seem} ({}): nothing is moved off lost machines", Listed(&shown))?;
                if !units.is_empty() {
                    write!(f, ", which holds {},", Listed(units))?;
                }
                f.write_str(
                    " until they are back, or brake_hold has passed while others are up; if they are really dead: \
                     `musterctl brake release`",
                )
            }
            Self::BrakeReleased { reason, .. } => {
                write!(f, "units of lost machines are moved again: {reason}")
            }
            Self::StoreSilent(silent) => write!(
                f,
                "the store has not answered for {} s: clients and machines are told nothing new until it does, and no unit \
                 is moved; is its disk stuck?",
                silent.as_secs()
            ),
            Self::Inactive { unit, machine, .. } => write!(
                f,
                "{unit} is not active any more on {}: {ENDED}; `musterctl restart {unit}` starts it",
                machine.short()
            ),
            Self::Retried { unit, machine, after, attempt: (attempt, attempts), reason } => write!(
                f,
                "{unit}, which failed on {} ({reason}), is started anew in {} s (attempt {attempt} of {attempts})",
                machine.short(),
                after.as_secs_f64()
            ),
            Self::StoreFailed(reason) => {
                write!(f, "the store failed, and what was not yet written is undone: {reason}")
            }
            Self::Placed { unit, machine, from, epoch: _, reason, with } => {
                match from.filter(|from| from != machine) {
                    Some(from) => write!(f, "{unit} moves from {} to {}", from.short(), machine.short())?,
                    None if from.is_some() => write!(f, "{unit} is placed anew on {}", machine.short())?,
                    None => write!(f, "{unit} is placed on {}", machine.short())?,
                }
                match with {
                    Some(with) if *reason == PlaceReason::MakesRoom => write!(f, " to make room for {with}")?,
                    Some(with) => write!(f, ", together with {with}")?,
                    None => {}
                }
                write!(f, ": {reason}")
            }
            Self::Withheld { unit, machine, reason } => {
                write!(f, "{unit} is placed on {} and not started there yet: {reason}", machine.short())
            }
            Self::GivenUp { unit, machine: _, reason } => write!(f, "{unit} is given up: {reason}"),
            Self::Done { unit, machine } => write!(f, "{unit} has run to its end on {}", machine.short()),
            Self::Unplaced { unit, machine, reason } => {
                write!(f, "{unit} is taken off {}: {reason}", machine.short())
            }
            Self::LingeringEnded { unit, machine, reason } => {
                write!(f, "the old copy of {unit} on {} is stopped: {reason}", machine.short())
            }
            Self::Gone { unit, machine, epoch: _ } => write!(f, "{unit} is gone from {}", machine.short()),
            Self::Started { unit, machine, epoch: _ } => {
                write!(f, "{unit} has started on {}", machine.short())
            }
            Self::StartFailed { unit, machine, epoch: _, reason } => {
                write!(f, "{unit} did not start on {}: {reason}", machine.short())
            }
            Self::StopFailed { unit, machine, epoch: _, reason } => {
                write!(f, "{unit} could not be ended on {}, and is tried again: {reason}", machine.short())
            }
            Self::Failed { unit, machine, epoch: _, reason } => {
                write!(f, "{unit} failed on {}: {reason}", machine.short())
            }
            Self::Refused { unit, machine, epoch: _, reason } => {
                write!(f, "{unit} is refused by {}: {reason}", machine.short())
            }
            Self::Orphaned { unit, machine } => {
                write!(f, "{unit} runs on {}, and {NO_RECORD}: it is left alone", machine.short())
            }
        }
    }
}

fn no_machine_takes(units: usize) -> &'static str {
    if units == 1 { "no machine takes it" } else { "no machine takes them" }
}

fn died_at_once(machines: usize, of: usize) -> String {
    format!("{machines} of {of} machines seem to have died at once")
}

fn units_of(count: usize) -> String {
    if count == 1 { "1 unit".to_owned() } else { format!("{count} units") }
}

fn machines_of(count: usize) -> String {
    if count == 1 { "1 machine".to_owned() } else { format!("{count} machines") }
}

/// The first of them, and how many more there are.
struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().take(NAMED).enumerate() {
            let separator = match index {
                0 => "",
                _ if index + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{separator}{item}")?;
        }
        if self.0.len() > NAMED { write!(f, " and {} more", self.0.len() - NAMED) } else { Ok(()) }
    }
}
