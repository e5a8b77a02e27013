//! `cordon`, `uncordon`, `drain` and `brake`: what an operator decides of machines.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::ProgressBar;
use muster_core::command::{ClusterStatus, MachineCommand, MachineStatus, UnitStatus};
use muster_core::ids::MachineId;
use muster_core::machine::{Availability, Drain};
use muster_core::state::DesiredState;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cli::DrainArgs;
use crate::client::{Client, Wanted};
use crate::failure::{Exit, Failure};
use crate::output::{Machines, machine_name};
use crate::style::harmless;

/// How often is asked what is left on machines that are drained.
const REFRESH: Duration = Duration::from_millis(500);
/// How many of the units that hold up a drain are shown.
const SHOWN_UNITS: usize = 5;

/// `cordon` and `uncordon`.
///
/// # Errors
/// When a machine is not known, or the scheduler does not answer.
pub async fn set(
    client: &mut Client,
    machines: &[String],
    availability: Availability,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let cluster = client.cluster().await?;
    let machines = resolve(&cluster, machines)?;
    client.change_machines(MachineCommand { machines: machines.clone(), availability }).await?;
    let done = if availability == Availability::Open { "uncordoned" } else { "cordoned" };
    let known = Machines::of(&cluster);
    for machine in machines {
        writeln!(out, "Machine {} {done}", known.legend(machine, false))?;
    }
    Ok(())
}

/// `drain`: waits until the machines say that nothing is left on them.
///
/// # Errors
/// When a machine is not known, the scheduler does not answer, or something is left when the time has passed.
pub async fn drain(client: &mut Client, args: &DrainArgs, out: &mut impl Write) -> Result<(), Failure> {
    let cluster = client.cluster().await?;
    let machines = resolve(&cluster, &args.machines)?;
    let timeout = Duration::from_secs(args.timeout);
    let drain = Drain {
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        max_parallel: args.max_parallel.unwrap_or(0),
    };
    let availability = Availability::Draining(drain);
    client.change_machines(MachineCommand { machines: machines.clone(), availability }).await?;
    if args.no_block {
        return Ok(());
    }
    let until = Instant::now() + timeout;
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let spinner = spinner();
    let mut left: Vec<MachineId> = machines;
    loop {
        ticks.tick().await;
        let cluster = client.cluster().await?;
        let known = Machines::of(&cluster);
        let (empty, full): (Vec<_>, Vec<_>) = left.into_iter().partition(|id| is_empty(&cluster, *id));
        left = full;
        for machine in empty {
            spinner.suspend(|| writeln!(out, "Machine {} drained", known.legend(machine, false)))?;
            out.flush()?;
        }
        if left.is_empty() {
            spinner.finish_and_clear();
            return Ok(());
        }
        let over = Instant::now() >= until;
        if over || !spinner.is_hidden() {
            let units = client.units(Wanted { names: None, reasons: over, content: false }).await?;
            let held_up = held_up(&left, &units, &known);
            if over {
                spinner.finish_and_clear();
                return Err(Failure::new(
                    Exit::Failed,
                    format_args!(
                        "not drained after {} s; the machines take nothing new, and what fits nowhere else runs on:\n  {}",
                        args.timeout,
                        held_up.join("\n  ")
                    ),
                ));
            }
            spinner.set_message(held_up.join("\n"));
        }
    }
}

/// On stderr; hidden when that is no terminal.
fn spinner() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

/// `brake release`.
///
/// # Errors
/// When the scheduler does not answer.
pub async fn release_brake(client: &mut Client, out: &mut impl Write) -> Result<(), Failure> {
    let line = if client.release_brake().await? {
        "The brake is released: units of lost machines are placed elsewhere."
    } else {
        "The brake was not held: nothing has changed."
    };
    Ok(writeln!(out, "{line}")?)
}

fn is_empty(cluster: &ClusterStatus, id: MachineId) -> bool {
    cluster.machines.iter().any(|machine| machine.id == id && machine.units == 0)
}

/// One line for each of the first units that are still on these machines: why.
fn held_up(machines: &[MachineId], units: &[UnitStatus], known: &Machines) -> Vec<String> {
    let mut lines = Vec::new();
    for machine in machines {
        let here: Vec<&UnitStatus> =
            units.iter().filter(|unit| unit.copies.iter().any(|copy| copy.machine == *machine)).collect();
        for unit in here.iter().take(SHOWN_UNITS) {
            let elsewhere = unit.copies.iter().find(|copy| copy.machine != *machine);
            let why = match (&unit.waiting, elsewhere) {
                (Some(waiting), _) => harmless(&waiting.reason).into_owned(),
                (None, Some(copy)) if unit.desired == DesiredState::Launched => {
                    format!("is not seen to be active on {} yet", known.legend(copy.machine, false))
                }
                (None, Some(_)) => "is being stopped".to_owned(),
                (None, None) => "no other machine has taken it yet".to_owned(),
            };
            lines.push(format!("{} on {}: {why}", unit.name, known.legend(*machine, false)));
        }
        if here.len() > SHOWN_UNITS {
            lines.push(format!("and {} more on {}", here.len() - SHOWN_UNITS, known.legend(*machine, false)));
        }
    }
    lines
}

/// The machines that are meant: by id, by the first digits of one, or by address.
///
/// # Errors
/// When one of them means no machine, or several.
pub fn resolve(cluster: &ClusterStatus, arguments: &[String]) -> Result<Vec<MachineId>, Failure> {
    let mut found = Vec::new();
    for argument in arguments {
        let digits = argument.trim_end_matches('.');
        let means = |machine: &&MachineStatus| {
            let address = machine.record.address.as_str();
            !digits.is_empty() && (address == argument || machine.id.to_string().starts_with(digits))
        };
        let matching: Vec<&MachineStatus> = cluster.machines.iter().filter(means).collect();
        match matching.as_slice() {
            [machine] => found.push(machine.id),
            [] => {
                return Err(Failure::failed(format_args!(
                    "no machine of this cluster has the id or address {argument}; `musterctl list-machines` shows them"
                )));
            }
            several => {
                let names: Vec<String> =
                    several.iter().map(|machine| machine_name(machine.id, true)).collect();
                return Err(Failure::failed(format_args!(
                    "{argument} means several machines: {}",
                    names.join(", ")
                )));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use muster_core::command::CopyRole;

    use super::*;
    use crate::fixtures::{cluster, machine_id, machines, running, unit, with_copy, with_waiting};

    fn resolved(arguments: &[&str]) -> Result<Vec<MachineId>, String> {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        resolve(&cluster(), &arguments).map_err(|failure| failure.message)
    }

    #[test]
    fn machines_are_meant_by_id_its_first_digits_or_address() {
        assert_eq!(resolved(&["11111111..."]), Ok(vec![machine_id(1)]));
        assert_eq!(resolved(&["3", "198.18.0.101", "1111"]), Ok(vec![machine_id(1), machine_id(3)]));
        assert_eq!(resolved(&[&machine_id(2).to_string()]), Ok(vec![machine_id(2)]));
        assert_eq!(
            resolved(&["4"]).unwrap_err(),
            "no machine of this cluster has the id or address 4; `musterctl list-machines` shows them"
        );
        assert!(resolved(&[""]).is_err() && resolved(&["..."]).is_err());
        let mut two = cluster();
        two.machines[1].id = MachineId::new(machine_id(1).bits() + 1);
        let error = resolve(&two, &["111".to_owned()]).unwrap_err().message;
        assert!(error.starts_with("111 means several machines: 1111"), "{error}");
    }

    #[test]
    fn what_holds_up_a_drain_is_named() {
        let stuck = with_waiting(running("a.service"), "its machine 11111111 is being drained, and …", &[]);
        let moving = with_copy(running("b.service"), 2, CopyRole::Current, None);
        let elsewhere = with_copy(unit("c.service", DesiredState::Launched), 2, CopyRole::Current, None);
        let lines = held_up(&[machine_id(1)], &[stuck, moving, elsewhere], &machines());
        assert_eq!(
            lines,
            [
                "a.service on 11111111.../198.18.0.101: its machine 11111111 is being drained, and …",
                "b.service on 11111111.../198.18.0.101: is not seen to be active on 22222222... yet",
            ]
        );
    }
}
