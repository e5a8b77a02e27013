//! What a scheduler with many units takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use muster_core::command::Verb;
use muster_core::ids::{AgentKey, BootId, MachineId, SessionNumber, Term};
use muster_core::machine::{Capacity, Pressure};
use muster_core::message::{
    Assignments, FromAgent, Hello, LeaderMessage, ReportedChange, ToAgent, UnitReport,
};
use muster_core::state::{Observation, Phase, UnitState};
use muster_core::unit::{Bytes, MilliCpu};
use muster_proto::v1::agents_client::AgentsClient;
use muster_proto::{ToAgentParts, split_from_agent};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{channel, command, unit};
use crate::figure::{Bar, Figure, say};
use crate::scheduler::Scheduler;

const UNITS: usize = 10_000;
const UNITS_PER_COMMAND: usize = 500;
const MACHINES: u32 = 10;
const LIMIT: Duration = Duration::from_secs(60);
/// How long the cluster then only sends heartbeats.
const REST: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
pub async fn measure() -> Result<Vec<Figure>> {
    let scheduler = Scheduler::start().await?;
    let mut agents = JoinSet::new();
    for number in 1..=MACHINES {
        let address = scheduler.address().to_owned();
        agents.spawn(async move { agent(&address, number).await });
    }
    let running = async {
        let mut client = scheduler.client().await?;
        let units = (0..UNITS).map(unit).collect::<Result<Vec<_>>>()?;
        for units in units.chunks(UNITS_PER_COMMAND) {
            client.clone().execute(command(Verb::Start, units.to_vec())).await?;
        }
        let deadline = Instant::now() + LIMIT;
        loop {
            let active = client.active().await?;
            if active == UNITS {
                break;
            }
            ensure!(Instant::now() < deadline, "only {active} of {UNITS} units are active");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(client);
        tokio::time::sleep(REST).await;
        anyhow::Ok(())
    };
    tokio::select! {
        done = running => done?,
        Some(ended) = agents.join_next() => match ended? {
            Ok(()) => bail!("an agent's session ended"),
            Err(error) => return Err(error.context("an agent's session")),
        },
    }
    let (rss, most) = scheduler.memory_mib()?;
    say(&format!("{rss:.1} MiB, {most:.1} MiB at most"));
    Ok(vec![Figure {
        name: "scheduler_rss_mib",
        value: rss,
        unit: "MiB",
        bar: Some(Bar::AtMost(60.0)),
        method: format!(
            "VmRSS of a scheduler whose {UNITS} units of some 150 bytes are launched on {MACHINES} machines (agents that \
             only say so), in commands of {UNITS_PER_COMMAND}, all listed twice at least, after {} s of heartbeats \
             (VmHWM: {most:.1} MiB)",
            REST.as_secs()
        ),
    }])
}

/// An agent that says of whatever it is told to hold that it is active.
async fn agent(address: &str, number: u32) -> Result<()> {
    let (to_leader, messages) = mpsc::channel(1024);
    let say = async |said| {
        for part in split_from_agent(said) {
            to_leader.send(part).await.context("the scheduler has closed the session")?;
        }
        anyhow::Ok(())
    };
    let mut client = AgentsClient::new(channel(address).await?);
    say(FromAgent::Hello(hello(number))).await?;
    let mut from_leader = client.session(ReceiverStream::new(messages)).await?.into_inner();
    let mut parts = ToAgentParts::default();
    let mut heartbeats = interval(Duration::from_secs(1));
    let mut number = 0;
    loop {
        tokio::select! {
            _ = heartbeats.tick() => {
                number += 1;
                say(FromAgent::Heartbeat { number, pid1_age: Duration::ZERO, pressure: Pressure::default() }).await?;
            }
            part = from_leader.message() => {
                let Some(part) = part? else { return Ok(()) };
                match parts.push(part)?.map(|message: ToAgent| message.body) {
                    Some(LeaderMessage::Assignments(assignments)) => say(report(assignments)).await?,
                    Some(LeaderMessage::Refused(refused)) => bail!("{refused}"),
                    _ => {}
                }
            }
        }
    }
}

fn report(assignments: Assignments) -> FromAgent {
    let state =
        UnitState { load: "loaded".to_owned(), active: "active".to_owned(), sub: "running".to_owned() };
    let observation = Observation::Held { phase: Phase::Launched, state: Some(state) };
    let report = |assignment: muster_core::message::Assignment| UnitReport {
        name: assignment.name,
        epoch: assignment.epoch,
        change: ReportedChange::Observed(observation.clone()),
    };
    FromAgent::Report(assignments.hold.into_iter().map(report).collect())
}

fn hello(number: u32) -> Hello {
    Hello {
        cluster: None,
        machine: MachineId::new(u128::from(number) << 96),
        boot: BootId::new(1),
        key: AgentKey::new(number.into()),
        session: SessionNumber(1),
        term: Term(0),
        address: format!("198.18.1.{number}"),
        labels: [("disk".to_owned(), "ssd".to_owned())].into(),
        capacity: Capacity { cpu: MilliCpu(16_000), memory: Bytes(64 << 30) },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid1_age: Duration::ZERO,
        leaving: false,
        adopts: true,
        units: Vec::new(),
    }
}
