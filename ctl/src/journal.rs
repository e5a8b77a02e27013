//! `journal`: what a unit has written, on whichever machines it is or was.

use std::io::{self, Write};

use muster_core::command::CopyRole;
use muster_core::ids::MachineId;
use muster_core::unit::UnitName;
use muster_proto::{Journal, Work};
use tokio::sync::mpsc;

use crate::arguments::{self, Argument};
use crate::cli::JournalArgs;
use crate::client::{Client, Wanted};
use crate::events::story;
use crate::failure::{Exit, Failure};
use crate::machines;
use crate::output::Machines;
use crate::stream::Heard;
use crate::style::harmless;

/// How many lines are shown, unless something else is asked for.
const LINES: u32 = 10;

/// Of a machine's journal: what comes next, or how it ended.
type Part = (MachineId, Result<Heard, Failure>);

/// `journal`.
///
/// # Errors
/// When the unit is not known or was on no machine, none of its machines can be read, or the scheduler does not answer.
pub async fn run(client: &mut Client, args: &JournalArgs) -> Result<(), Failure> {
    let unit = match arguments::names(std::slice::from_ref(&args.unit))?.pop() {
        Some(Argument::Unit(unit)) => unit.name,
        _ => return Err(Failure::new(Exit::Usage, format_args!("{:?} is a glob: give one unit", args.unit))),
    };
    let cluster = client.cluster().await?;
    let homes = match &args.machine {
        Some(machine) => machines::resolve(&cluster, std::slice::from_ref(machine))?,
        None => homes(client, &unit).await?,
    };
    let journal = Journal {
        unit,
        lines: args.lines.or(args.since.is_none().then_some(LINES)),
        since: args.since.clone(),
        output: args.output.clone(),
        follow: args.follow,
    };
    let mut printer = Printer {
        machines: Machines::of(&cluster),
        prefixed: homes.len() > 1 && !args.output.starts_with("json") && args.output != "export",
        begun: Vec::new(),
    };
    let mut failures = Vec::new();
    let mut good = 0;
    if args.follow {
        let (parts, mut heard) = mpsc::channel(homes.len());
        for home in homes.iter().copied() {
            tokio::spawn(read(client.clone(), home, journal.clone(), parts.clone()));
        }
        drop(parts);
        while let Some((machine, part)) = heard.recv().await {
            good += usize::from(printer.take(machine, part, &mut failures)?);
        }
    } else {
        // One after the other, those where it was before first: so what it wrote before it moved comes before what it wrote
        // then.
        for home in homes.iter().copied() {
            let (parts, mut heard) = mpsc::channel(1);
            tokio::spawn(read(client.clone(), home, journal.clone(), parts));
            while let Some((machine, part)) = heard.recv().await {
                good += usize::from(printer.take(machine, part, &mut failures)?);
            }
        }
    }
    // Of those that could not be read the last is the reason for the exit status, where nothing could.
    let last = if good == 0 { failures.pop() } else { None };
    failures.iter().for_each(|failure| anstream::eprintln!("{}", harmless(&failure.message)));
    last.map_or(Ok(()), Err)
}

/// Where the unit is or was, as far as the scheduler remembers: where it is now last.
async fn homes(client: &mut Client, unit: &UnitName) -> Result<Vec<MachineId>, Failure> {
    let known = client.units(Wanted { names: Some(std::slice::from_ref(unit)), ..Wanted::default() }).await?;
    let known = known.into_iter().next();
    let mut homes: Vec<MachineId> = Vec::new();
    for event in story(client, unit).await? {
        // Those of its placements. Of one that moves the new machine comes first.
        if event.epoch.is_some() {
            homes.extend(event.machines.iter().rev());
        }
    }
    if known.is_none() && homes.is_empty() {
        return Err(Failure::new(Exit::NoSuchUnit, format_args!("Unit {unit} does not exist.")));
    }
    let mut copies = known.map(|status| status.copies).unwrap_or_default();
    copies.sort_by_key(|copy| copy.role == CopyRole::Current);
    homes.extend(copies.iter().map(|copy| copy.machine));
    // Each at its last place.
    let mut seen = std::collections::BTreeSet::new();
    let mut last: Vec<MachineId> = homes.into_iter().rev().filter(|home| seen.insert(*home)).collect();
    last.reverse();
    if last.is_empty() {
        return Err(Failure::failed(format_args!("Unit {unit} does not appear to be running.")));
    }
    Ok(last)
}

/// Reads a machine's journal to its end.
async fn read(mut client: Client, machine: MachineId, journal: Journal, parts: mpsc::Sender<Part>) {
    let mut stream = match client.relay(machine, Work::Journal(journal)).await {
        Ok(stream) => stream,
        Err(failure) => {
            parts.send((machine, Err(failure))).await.ok();
            return;
        }
    };
    loop {
        let heard = stream.output.next().await;
        let ends = matches!(heard, Ok(Heard::Done(_)) | Err(_));
        if parts.send((machine, heard)).await.is_err() || ends {
            return;
        }
    }
}

/// Prints whole lines, of whichever machine.
struct Printer {
    machines: Machines,
    prefixed: bool,
    /// What came of each machine since the end of its last line.
    begun: Vec<(MachineId, Vec<u8>)>,
}

impl Printer {
    /// Prints what came; says whether it was the good end of a machine's journal.
    fn take(
        &mut self,
        machine: MachineId,
        part: Result<Heard, Failure>,
        failures: &mut Vec<Failure>,
    ) -> Result<bool, Failure> {
        match part {
            Ok(Heard::Data(data)) => self.print(machine, &data)?,
            Ok(Heard::Errors(data)) => io::stderr().write_all(&data)?,
            Ok(Heard::File(_)) => {}
            Ok(Heard::Done(0)) => return Ok(true),
            Ok(Heard::Done(status)) => failures.push(Failure::failed(format_args!(
                "journalctl on {} ended with exit status {status}",
                self.machines.legend(machine, false)
            ))),
            Err(failure) => failures.push(failure),
        }
        Ok(false)
    }

    fn print(&mut self, machine: MachineId, data: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if !self.prefixed {
            out.write_all(data)?;
            return out.flush();
        }
        if !self.begun.iter().any(|(of, _)| *of == machine) {
            self.begun.push((machine, Vec::new()));
        }
        let Some((_, begun)) = self.begun.iter_mut().find(|(of, _)| *of == machine) else { return Ok(()) };
        begun.extend_from_slice(data);
        let whole = begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in begun[..whole].split_inclusive(|byte| *byte == b'\n') {
            write!(out, "{} ", machine.short())?;
            out.write_all(line)?;
        }
        begun.drain(..whole);
        out.flush()
    }
}
