//! Agents that are made up.

#![allow(dead_code, reason = "no test uses all of it")]

use std::time::Duration;

use muster_core::ids::{AgentKey, BootId, MachineId, SessionNumber, Term};
use muster_core::machine::{Capacity, Labels, Pressure};
use muster_core::message::{FromAgent, Hello, LeaderMessage, ReportedChange, ToAgent, UnitReport};
use muster_core::state::{Observation, Phase, Target, UnitState};
use muster_core::unit::{Bytes, MilliCpu, UnitName};
use muster_proto::v1::agents_client::AgentsClient;
use muster_proto::{SESSION_KEY, ToAgentParts, split_from_agent, v1};
use muster_scheduler::daemon::Daemon;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// How long anything may take before a test has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the scheduler.
pub fn channel(daemon: &Daemon) -> Channel {
    Endpoint::from_shared(format!("http://{}", daemon.address())).expect("an address").connect_lazy()
}

/// The agent of a machine, as far as a scheduler sees it.
pub struct Agent {
    pub to_leader: mpsc::Sender<v1::AgentMessage>,
    pub from_leader: Streaming<v1::LeaderMessage>,
    parts: ToAgentParts,
    pub key: AsciiMetadataValue,
}

impl Agent {
    pub async fn dial(daemon: &Daemon) -> Self {
        let (to_leader, messages) = mpsc::channel(16);
        let mut client = AgentsClient::new(channel(daemon));
        let session = client.session(ReceiverStream::new(messages)).await.expect("a session");
        let key = session.metadata().get(SESSION_KEY).expect("a key").clone();
        Self { to_leader, from_leader: session.into_inner(), parts: ToAgentParts::default(), key }
    }

    /// Opens a stream of heartbeats with this key.
    pub async fn heartbeats(
        daemon: &Daemon,
        key: AsciiMetadataValue,
    ) -> Result<(mpsc::Sender<v1::AgentMessage>, Streaming<v1::LeaderMessage>), Status> {
        let (to_leader, messages) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(messages));
        request.metadata_mut().insert(SESSION_KEY, key);
        let acks = AgentsClient::new(channel(daemon)).heartbeats(request).await?;
        Ok((to_leader, acks.into_inner()))
    }

    pub async fn say(&self, said: FromAgent) {
        for part in split_from_agent(said) {
            self.to_leader.send(part).await.expect("the session is open");
        }
    }

    pub async fn hear(&mut self) -> Option<ToAgent> {
        loop {
            let part =
                timeout(PATIENCE, self.from_leader.message()).await.expect("something is said in time");
            if let Some(said) = self.parts.push(part.ok()??).expect("it makes sense") {
                return Some(said);
            }
        }
    }

    pub async fn hello(&mut self, machine: u128) {
        self.hello_from(machine, "198.18.0.7").await;
    }

    pub async fn hello_from(&mut self, machine: u128, address: &str) {
        self.say(FromAgent::Hello(Hello {
            cluster: None,
            machine: MachineId::new(machine),
            boot: BootId::new(machine),
            key: AgentKey::new(machine),
            session: SessionNumber(1),
            term: Term(0),
            address: address.to_owned(),
            labels: Labels::from([("rack".to_owned(), "a".to_owned())]),
            capacity: Capacity { cpu: MilliCpu(2000), memory: Bytes(1 << 30) },
            version: "0.1.0".to_owned(),
            pid1_age: Duration::ZERO,
            leaving: false,
            streams: None,
            units: Vec::new(),
        }))
        .await;
        let welcome = self.hear().await.expect("a welcome");
        assert!(matches!(welcome.body, LeaderMessage::Welcome(_)), "{welcome:?}");
    }

    /// Waits until it is told to hold a unit, and says that it runs.
    pub async fn run(&mut self, file: &str) -> UnitName {
        self.say(beat(1)).await;
        loop {
            let said = self.hear().await.expect("the session goes on");
            let LeaderMessage::Assignments(assignments) = said.body else { continue };
            let Some(hold) = assignments.hold.into_iter().next() else { continue };
            assert_eq!((hold.content.as_deref(), hold.target), (Some(file), Target::Launched));
            let change = ReportedChange::Observed(running());
            let report = UnitReport { name: hold.name.clone(), epoch: hold.epoch, change };
            self.say(FromAgent::Report(vec![report])).await;
            return hold.name;
        }
    }

    /// From now on does all that it is told, at once, for as long as the scheduler is there.
    pub fn obeys(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut beats = interval(Duration::from_millis(500));
            let mut number = 0;
            loop {
                let part = tokio::select! {
                    _ = beats.tick() => {
                        number += 1;
                        for part in split_from_agent(beat(number)) {
                            self.to_leader.send(part).await.ok();
                        }
                        continue;
                    }
                    part = self.from_leader.message() => part,
                };
                let Ok(Some(part)) = part else { return };
                let said = self.parts.push(part).expect("it makes sense");
                let Some(LeaderMessage::Assignments(told)) = said.map(|said| said.body) else { continue };
                let mut reports = Vec::new();
                for hold in told.hold {
                    let change = ReportedChange::Observed(match hold.target {
                        Target::Launched => running(),
                        Target::Loaded => loaded(),
                    });
                    reports.push(UnitReport { name: hold.name, epoch: hold.epoch, change });
                }
                for gone in told.remove {
                    let change = ReportedChange::Gone;
                    reports.push(UnitReport { name: gone.name, epoch: gone.epoch, change });
                }
                for part in split_from_agent(FromAgent::Report(reports)) {
                    self.to_leader.send(part).await.ok();
                }
            }
        })
    }
}

pub fn running() -> Observation {
    let state =
        UnitState { load: "loaded".to_owned(), active: "active".to_owned(), sub: "running".to_owned() };
    Observation::Held { phase: Phase::Launched, state: Some(state) }
}

pub fn beat(number: u64) -> FromAgent {
    FromAgent::Heartbeat { number, pid1_age: Duration::ZERO, pressure: Pressure::default() }
}

/// What it says of a unit that it holds and has not started.
pub fn loaded() -> Observation {
    let state =
        UnitState { load: "loaded".to_owned(), active: "inactive".to_owned(), sub: "dead".to_owned() };
    Observation::Held { phase: Phase::Loaded, state: Some(state) }
}
