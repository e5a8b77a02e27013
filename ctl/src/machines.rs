//! `cordon`, `uncordon`, `drain` and `brake`: what an operator decides of machines.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::ProgressBar;
use muster_core::command::{ClusterStatus, LabelEdit, Left, MachineCommand, MachineStatus};
use muster_core::ids::MachineId;
use muster_core::machine::{Availability, Drain, MachineState};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cli::{DrainArgs, MetadataArgs};
use crate::client::{Client, new_id};
use crate::failure::{Exit, Failure};
use crate::output::{Machines, listed, machine_name, metadata};
use crate::style::harmless;

/// How long the scheduler may take to do what is due at the deadline of a drain, and to tell of it.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often is asked what is left on machines that are drained.
const REFRESH: Duration = Duration::from_millis(500);
/// How often at most it is said what holds up a drain to a reader that sees no progress bar.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// How long what is stopped when the time has passed is given to end.
const LAST_STOPS: Duration = Duration::from_secs(10);
/// How many of the units that hold up a drain are shown for each machine.
const SHOWN_UNITS: usize = 5;
/// How many digits name a machine at least: one or two are rather a mistake.
const LEAST_DIGITS: usize = 4;

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
    client.change_machines(MachineCommand { id: new_id(), machines: machines.clone(), availability }).await?;
    let done = if availability == Availability::Open { "uncordoned" } else { "cordoned" };
    let known = Machines::of(&cluster);
    for machine in machines {
        writeln!(out, "Machine {} {done}", known.legend(machine, false))?;
    }
    Ok(())
}

/// `metadata`: says what the machine has afterwards.
///
/// # Errors
/// When the machine is not known, no unit could ask for that, or the scheduler does not answer.
pub async fn edit_metadata(
    client: &mut Client,
    args: &MetadataArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let machines = resolve(&client.cluster().await?, std::slice::from_ref(&args.machine))?;
    let edit = |machine: &MachineId| {
        let edit = |(key, value): &(String, Option<String>)| LabelEdit {
            machine: *machine,
            key: key.clone(),
            value: value.clone(),
        };
        args.edits.iter().map(edit).collect::<Vec<_>>()
    };
    client.edit_labels(machines.iter().flat_map(edit).collect()).await?;
    let cluster = client.cluster().await?;
    let known = Machines::of(&cluster);
    for machine in cluster.machines.iter().filter(|machine| machines.contains(&machine.id)) {
        let legend = known.legend(machine.id, false);
        match metadata(machine).as_str() {
            "" => writeln!(out, "Machine {legend} has no metadata")?,
            metadata => writeln!(out, "Machine {legend} has {}", harmless(metadata))?,
        }
    }
    Ok(())
}

/// `drain`: waits until the machines say that nothing is left on them.
///
/// # Errors
/// When a machine is not known, the scheduler does not answer, something is left when the time has passed, or Ctrl-C was
/// pressed.
pub async fn drain(client: &mut Client, args: &DrainArgs, out: &mut impl Write) -> Result<(), Failure> {
    let cluster = client.cluster().await?;
    let machines = resolve(&cluster, &args.machines)?;
    let timeout = Duration::from_secs(args.timeout);
    let drain = Drain {
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        max_parallel: args.max_parallel.unwrap_or(0),
    };
    let availability = Availability::Draining(drain);
    client.change_machines(MachineCommand { id: new_id(), machines: machines.clone(), availability }).await?;
    if args.no_block {
        return begun(&client.cluster().await?, &machines, out);
    }
    let spinner = spinner();
    let ended = tokio::select! {
        ended = wait(client, machines.clone(), timeout, &spinner, out) => ended,
        _ = tokio::signal::ctrl_c() => Err(interrupt(&machines)),
    };
    spinner.finish_and_clear();
    ended
}

/// What `--no-block` has begun, and how it can be watched.
fn begun(cluster: &ClusterStatus, machines: &[MachineId], out: &mut impl Write) -> Result<(), Failure> {
    let known = Machines::of(cluster);
    for machine in cluster.machines.iter().filter(|machine| machines.contains(&machine.id)) {
        let legend = known.legend(machine.id, false);
        if machine.is_empty() {
            writeln!(out, "Machine {legend} drained")?;
        } else {
            writeln!(out, "Machine {legend} draining, {} left", machine.units + machine.orphans)?;
        }
    }
    out.flush()?;
    anstream::eprintln!(
        "`{}` shows how it goes on, `musterctl list-machines --fields machine,availability,units` what is left; `{}` \
         ends it.",
        command("events -f", machines),
        command("uncordon", machines)
    );
    Ok(())
}

async fn wait(
    client: &mut Client,
    mut left: Vec<MachineId>,
    timeout: Duration,
    spinner: &ProgressBar,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let until = Instant::now() + timeout + LAST_WORDS;
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut said, mut say) = (Vec::new(), Instant::now() + SAY_EVERY);
    loop {
        ticks.tick().await;
        let cluster = client.cluster_with(&left).await?;
        let known = Machines::of(&cluster);
        let drained = |id: &MachineId| cluster.machines.iter().any(|m| m.id == *id && m.is_empty());
        let (empty, full): (Vec<_>, Vec<_>) = left.into_iter().partition(drained);
        left = full;
        for machine in empty {
            spinner.suspend(|| writeln!(out, "Machine {} drained", known.legend(machine, false)))?;
            out.flush()?;
        }
        if left.is_empty() {
            return Ok(());
        }
        let full: Vec<&MachineStatus> =
            cluster.machines.iter().filter(|machine| left.contains(&machine.id)).collect();
        let lines: Vec<String> = full.iter().flat_map(|machine| held_up(machine, &known)).collect();
        let now = Instant::now();
        let stops = now < until + LAST_STOPS && full.iter().all(|machine| all_stops(machine));
        if now >= until && !stops {
            return Err(out_of_time(timeout, &left, &lines));
        }
        if !spinner.is_hidden() {
            spinner.set_message(lines.join("\n"));
        } else if now >= say && lines != said {
            lines.iter().for_each(|line| anstream::eprintln!("{line}"));
            (said, say) = (lines, now + SAY_EVERY);
        }
    }
}

fn out_of_time(timeout: Duration, left: &[MachineId], lines: &[String]) -> Failure {
    Failure::new(
        Exit::Failed,
        format_args!(
            "not drained after {} s; what other machines take moves all the same, until `{}`:\n  {}",
            timeout.as_secs(),
            command("uncordon", left),
            lines.join("\n  ")
        ),
    )
}

fn interrupt(machines: &[MachineId]) -> Failure {
    Failure::new(
        Exit::Interrupted,
        format_args!(
            "interrupted while waiting. The drain goes on, and nothing new comes to {}; `{}` ends it.",
            if machines.len() == 1 { "the machine" } else { "the machines" },
            command("uncordon", machines)
        ),
    )
}

/// A command on these machines, as one would type it.
fn command(verb: &str, machines: &[MachineId]) -> String {
    let machines = machines.iter().map(|machine| format!(" {}", machine.short()));
    std::iter::once(format!("musterctl {verb}")).chain(machines).collect()
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
    let (released, repeated) = client.release_brake().await?;
    let Some(machines) = released else {
        let text = if repeated {
            "The brake is not held (any more): the answer to who released it was lost."
        } else {
            "The brake was not held: nothing has changed."
        };
        return Ok(writeln!(out, "{text}")?);
    };
    if machines.is_empty() {
        return Ok(writeln!(out, "The brake is released: the machines are back.")?);
    }
    // It is released, whether their addresses can be asked for or not.
    let known = client.cluster().await.map(|cluster| Machines::of(&cluster)).unwrap_or_default();
    let names: Vec<String> = machines.iter().map(|machine| known.legend(*machine, false)).collect();
    Ok(writeln!(
        out,
        "The brake is released: what was on {} is placed elsewhere, where it fits.",
        listed(&names)
    )?)
}

/// One line for each of the first units that are still on the machine: why.
fn held_up(machine: &MachineStatus, known: &Machines) -> Vec<String> {
    let legend = known.legend(machine.id, false);
    match machine.state {
        MachineState::Up | MachineState::Degraded => {}
        MachineState::Awaited => {
            return vec![format!("{legend}: has not reported yet to the scheduler, which has just started")];
        }
        MachineState::Unreachable => {
            return vec![format!("{legend}: is unreachable, so that nobody knows what it runs")];
        }
    }
    let line = |left: &Left| format!("{} on {legend}: {}", left.unit, harmless(&left.why));
    let mut lines: Vec<String> = machine.left.iter().take(SHOWN_UNITS).map(line).collect();
    match (machine.units + machine.orphans).saturating_sub(lines.len()) {
        0 => {}
        more if lines.is_empty() => lines.push(format!("{more} left on {legend}")),
        more => lines.push(format!("and {more} more on {legend}")),
    }
    lines
}

/// Whether what is left on the machine is being stopped there, as far as it is named.
fn all_stops(machine: &MachineStatus) -> bool {
    machine.state.is_heard() && !machine.left.is_empty() && machine.left.iter().all(|left| left.stops)
}

/// A machine as an argument names it: by the first digits of its id, and as lists show it with its address
/// (`1234abcd.../198.18.0.101`).
struct Named<'a> {
    digits: &'a str,
    address: Option<&'a str>,
}

impl<'a> Named<'a> {
    fn new(argument: &'a str) -> Self {
        let (name, address) = match argument.split_once('/') {
            Some((name, address)) => (name, Some(address)),
            None => (argument, None),
        };
        Self { digits: name.trim_end_matches('.'), address }
    }

    fn is_too_short(&self) -> bool {
        self.digits.len() < LEAST_DIGITS
    }

    fn may_be(&self, machine: &MachineStatus) -> bool {
        machine.id.to_string().starts_with(self.digits)
            && self.address.is_none_or(|address| machine.record.address == address)
    }
}

/// Whether this is the beginning of a machine's id, and too short to name it.
pub fn is_too_short(cluster: &ClusterStatus, argument: &str) -> bool {
    let named = Named::new(argument);
    let may_be = |machine: &MachineStatus| named.may_be(machine);
    named.is_too_short() && !named.digits.is_empty() && cluster.machines.iter().any(may_be)
}

/// The machines that are meant: by id, by the first digits of one, by address, or by both as lists show them.
///
/// # Errors
/// When one of them means no machine, or several, or is too short.
pub fn resolve(cluster: &ClusterStatus, arguments: &[String]) -> Result<Vec<MachineId>, Failure> {
    let mut found = Vec::new();
    for argument in arguments {
        let named = Named::new(argument);
        let means = |machine: &&MachineStatus| {
            !named.is_too_short() && named.may_be(machine)
                || !argument.is_empty() && machine.record.address == *argument
        };
        let matching: Vec<&MachineStatus> = cluster.machines.iter().filter(means).collect();
        match matching.as_slice() {
            [machine] => found.push(machine.id),
            [] if is_too_short(cluster, argument) => {
                return Err(Failure::failed(format_args!(
                    "{argument} is too short to name a machine: give at least the first {LEAST_DIGITS} digits of its id, \
                     or its address"
                )));
            }
            [] => {
                let what =
                    if named.address.is_some() { "the id and the address" } else { "the id or address" };
                return Err(Failure::failed(format_args!(
                    "no machine of this cluster has {what} {argument}; `musterctl list-machines` shows them"
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
    use super::*;
    use crate::fixtures::{cluster, machine_id, machines, unit_name};

    fn resolved(arguments: &[&str]) -> Result<Vec<MachineId>, String> {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        resolve(&cluster(), &arguments).map_err(|failure| failure.message)
    }

    #[test]
    fn machines_are_meant_by_id_its_first_digits_address_or_as_lists_show_them() {
        assert_eq!(resolved(&["11111111..."]), Ok(vec![machine_id(1)]));
        assert_eq!(resolved(&["3333", "198.18.0.101", "1111"]), Ok(vec![machine_id(1), machine_id(3)]));
        assert_eq!(resolved(&[&machine_id(2).to_string()]), Ok(vec![machine_id(2)]));
        for machine in [1, 2, 3].map(machine_id) {
            for full in [false, true] {
                assert_eq!(resolved(&[&machines().legend(machine, full)]), Ok(vec![machine]));
            }
        }
        assert_eq!(
            resolved(&["11111111.../198.18.0.103"]).unwrap_err(),
            "no machine of this cluster has the id and the address 11111111.../198.18.0.103; `musterctl list-machines` \
             shows them"
        );
        for unknown in ["4", "4444"] {
            assert_eq!(
                resolved(&[unknown]).unwrap_err(),
                format!(
                    "no machine of this cluster has the id or address {unknown}; `musterctl list-machines` shows them"
                )
            );
        }
        for short in ["1", "111", "1...", "1.../198.18.0.101"] {
            assert_eq!(
                resolved(&[short]).unwrap_err(),
                format!(
                    "{short} is too short to name a machine: give at least the first 4 digits of its id, or its address"
                )
            );
        }
        for none in ["", "...", "/", "/198.18.0.101", ".../198.18.0.101", "11111111.../"] {
            assert!(resolved(&[none]).is_err(), "{none}");
        }
        assert!(!is_too_short(&cluster(), "1/web.service"), "a path");
        let mut two = cluster();
        two.machines[1].id = MachineId::new(machine_id(1).bits() + 1);
        let error = resolve(&two, &["1111".to_owned()]).unwrap_err().message;
        assert!(error.starts_with("1111 means several machines: 1111"), "{error}");
    }

    fn left(unit: &str, why: &str, stops: bool) -> Left {
        Left { unit: unit_name(unit), why: why.to_owned(), stops }
    }

    #[test]
    fn what_holds_up_a_drain_is_named() {
        let mut cluster = cluster();
        let machine = &mut cluster.machines[0];
        machine.left = vec![
            left("a.service", "is being started on 22222222", false),
            left("b.service", "waits\u{1b}[31m for its turn", false),
        ];
        let lines = held_up(machine, &machines());
        assert_eq!(
            lines,
            [
                "a.service on 11111111.../198.18.0.101: is being started on 22222222",
                "b.service on 11111111.../198.18.0.101: waits\\u{1b}[31m for its turn",
            ]
        );
        machine.units = 6;
        machine.orphans = 3;
        assert_eq!(held_up(machine, &machines())[2], "and 7 more on 11111111.../198.18.0.101");
        machine.left.clear();
        assert!(!all_stops(machine));
        assert_eq!(held_up(machine, &machines()), ["9 left on 11111111.../198.18.0.101"]);
        let lost = held_up(&cluster.machines[2], &machines());
        assert_eq!(lost, ["33333333.../198.18.0.103: is unreachable, so that nobody knows what it runs"]);
    }

    #[test]
    fn what_is_being_stopped_when_time_is_up_is_waited_for() {
        let mut cluster = cluster();
        let machine = &mut cluster.machines[0];
        machine.left = vec![left("a.service", "is being stopped here", true)];
        assert!(all_stops(machine));
        machine.left.push(left("b.service", "is orphaned", false));
        assert!(!all_stops(machine));
    }

    #[test]
    fn how_a_drain_ends_badly() {
        let machines = [machine_id(1), machine_id(2)];
        insta::assert_snapshot!(interrupt(&machines).message, @"interrupted while waiting. The drain goes on, and nothing new comes to the machines; `musterctl uncordon 11111111 22222222` ends it.");
        let lines = ["a.service on 11111111...: is being started on 22222222".to_owned()];
        insta::assert_snapshot!(out_of_time(Duration::from_secs(5), &machines[..1], &lines).message, @r"
        not drained after 5 s; what other machines take moves all the same, until `musterctl uncordon 11111111`:
          a.service on 11111111...: is being started on 22222222
        ");
    }
}
