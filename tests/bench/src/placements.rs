//! The core alone: how many placements a second it decides.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use muster_core::command::{Command, UnitArgument, Verb};
use muster_core::ids::{AgentKey, BootId, ClusterId, CommandId, MachineId, SessionNumber, Term};
use muster_core::leader::{Change, ConnectionId, Durable, Effect, Input, Leader, RequestId, Settings};
use muster_core::machine::{Capacity, Pressure};
use muster_core::message::{FromAgent, Hello, LeaderMessage};
use muster_core::time::Time;
use muster_core::unit::{Bytes, MilliCpu, UnitName};
use rustix::time::{ClockId, clock_gettime};

use crate::figure::{Bar, Figure, median, say};

const MACHINES: u32 = 1_000;
const UNITS: u32 = 10_000;
const RUNS: usize = 15;

pub fn measure() -> Result<Vec<Figure>> {
    let mut rates = Vec::new();
    for run in 1..=RUNS {
        let seconds = placing_seconds()?;
        let rate = f64::from(UNITS) / seconds;
        say(&format!("run {run} of {RUNS}: {UNITS} placements in {:.1} ms", seconds * 1e3));
        rates.push(rate);
    }
    Ok(vec![Figure {
        name: "placements_per_s",
        value: median(&mut rates).round(),
        unit: "1/s",
        bar: Some(Bar::AtLeast(200_000.0)),
        method: format!(
            "muster_core::leader::Leader alone, one thread, {MACHINES} machines up and {UNITS} units submitted \
             (of ten: six plain, two with CPU= and Memory=, one with MachineMetadata= for a tenth of the machines, one \
             with Conflicts= with its like); the time of one Start command for all of them and of the commit's end: \
             checks, choice of machines, epochs, records for the store, assignments; in the thread's CPU time; \
             median of {RUNS} runs"
        ),
    }])
}

/// The seconds that the leader takes to place all units.
fn placing_seconds() -> Result<f64> {
    let now = Time::from_boot(Duration::from_secs(1_000));
    let mut leader = Leader::new(Settings::default(), Term(1), Durable::new(ClusterId::new(1)), now);
    for number in 1..=MACHINES {
        let connection = ConnectionId(number.into());
        settle(&mut leader, now, Input::Agent(connection, FromAgent::Hello(hello(number))))?;
        let (pid1_age, pressure) = (Duration::ZERO, Pressure::default());
        let heartbeat = FromAgent::Heartbeat { number: 1, pid1_age, pressure };
        settle(&mut leader, now, Input::Agent(connection, heartbeat))?;
    }
    let names = (0..UNITS).map(name).collect::<Result<Vec<_>>>()?;
    let files = names.iter().zip(0..).map(|(name, number)| (name, Some(Arc::from(file(number)))));
    settle(&mut leader, now, Input::Command(RequestId(1), command(1, Verb::Submit, files)))?;
    let start = Input::Command(RequestId(2), command(2, Verb::Start, names.iter().map(|name| (name, None))));

    let began = thread_cpu_time();
    let effects = settle(&mut leader, now, start)?;
    let seconds = thread_cpu_time().saturating_sub(began).as_secs_f64();

    let placed = effects.iter().flat_map(placements).count();
    ensure!(placed == names.len(), "{placed} of {UNITS} units were placed");
    let assigned: usize = effects.iter().map(assignments).sum();
    ensure!(assigned == names.len(), "{assigned} of {UNITS} units were assigned");
    Ok(seconds)
}

/// How long this thread has run: what other processes take from it is not the core's.
fn thread_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// A step, and the end of the commit that it asks for: all effects.
fn settle(leader: &mut Leader, now: Time, input: Input) -> Result<Vec<Effect>> {
    let mut effects = leader.step(now, now, input);
    let commits: Vec<_> = effects
        .iter()
        .filter_map(|effect| if let Effect::Persist(commit, _) = effect { Some(*commit) } else { None })
        .collect();
    for commit in commits {
        effects.extend(leader.step(now, now, Input::Committed(commit)));
    }
    let refused = effects.iter().find_map(|effect| match effect {
        Effect::AnswerCommand(_, Err(error)) => Some(error),
        _ => None,
    });
    if let Some(error) = refused {
        bail!("the leader refuses the command: {error}");
    }
    Ok(effects)
}

/// The units that an effect records as placed.
fn placements(effect: &Effect) -> impl Iterator<Item = &UnitName> {
    let changes = if let Effect::Persist(_, changes) = effect { changes.as_slice() } else { &[] };
    changes.iter().filter_map(|change| match change {
        Change::PutUnit(name, unit) if !unit.placements.is_empty() => Some(name),
        _ => None,
    })
}

/// How many units an effect assigns.
fn assignments(effect: &Effect) -> usize {
    match effect {
        Effect::Send(_, message) => match &message.body {
            LeaderMessage::Assignments(assignments) => assignments.hold.len(),
            _ => 0,
        },
        _ => 0,
    }
}

fn command<'a>(
    id: u128,
    verb: Verb,
    units: impl Iterator<Item = (&'a UnitName, Option<Arc<str>>)>,
) -> Command {
    let units = units.map(|(name, content)| UnitArgument { name: name.clone(), content }).collect();
    Command { id: CommandId::new(id), verb, units, replace: false }
}

fn hello(number: u32) -> Hello {
    // Ids as machines have them: spread over the whole range.
    let machine = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    Hello {
        cluster: None,
        machine: MachineId::new(machine),
        boot: BootId::new(1),
        key: AgentKey::new(machine),
        session: SessionNumber(1),
        term: Term(0),
        address: String::new(),
        labels: [("rack".to_owned(), format!("r{}", number % 10))].into(),
        capacity: Capacity { cpu: MilliCpu(16_000), memory: Bytes(64 << 30) },
        version: "bench".to_owned(),
        pid1_age: Duration::ZERO,
        leaving: false,
        streams: None,
        units: Vec::new(),
    }
}

fn name(number: u32) -> Result<UnitName> {
    UnitName::parse(&format!("app-{number:05}{}.service", if number % 10 == 9 { "-apart" } else { "" }))
        .context("a unit's name")
}

fn file(number: u32) -> String {
    let options = match number % 10 {
        6 | 7 => "[X-Muster]\nCPU=0.25\nMemory=256M\n".to_owned(),
        8 => format!("[X-Fleet]\nMachineMetadata=rack=r{}\n", number / 10 % 10),
        9 => "[X-Fleet]\nConflicts=app-*-apart.service\n".to_owned(),
        _ => String::new(),
    };
    format!("[Unit]\nDescription=Unit {number}\n[Service]\nExecStart=/usr/bin/sleep infinity\n{options}")
}
