//! A client of a scheduler that is spoken to without `musterctl`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use muster_core::command::{Command, CommandResult, UnitArgument, UnitStatus, Verb};
use muster_core::ids::CommandId;
use muster_core::machine::MachineState;
use muster_core::state::Observation;
use muster_core::unit::UnitName;
use muster_proto::v1::muster_client::MusterClient;
use muster_proto::{MAX_MESSAGE_BYTES, v1};
use tonic::transport::{Channel, Endpoint};

/// How long it may take until units are active that are launched.
const LAUNCH_LIMIT: Duration = Duration::from_secs(120);

/// One connection to a scheduler.
#[derive(Clone, Debug)]
pub struct Client(MusterClient<Channel>);

/// A unit to be submitted: its name and its file.
pub type Unit = (UnitName, Arc<str>);

pub async fn channel(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    endpoint.connect().await.with_context(|| format!("cannot connect to {address}"))
}

impl Client {
    pub async fn connect(address: &str) -> Result<Self> {
        let client = MusterClient::new(channel(address).await?);
        Ok(Self(client.max_decoding_message_size(MAX_MESSAGE_BYTES)))
    }

    /// Has a command carried out.
    pub async fn execute(mut self, command: v1::CommandRequest) -> Result<()> {
        let answer = self.0.execute(command).await?.into_inner();
        CommandResult::try_from(answer)?.map(drop).map_err(|error| anyhow!("{error}"))
    }

    /// Has so many units launched, so many with each command, and waits until all are active.
    pub async fn launch(&mut self, count: usize, per_command: usize) -> Result<()> {
        let units = (0..count).map(unit).collect::<Result<Vec<_>>>()?;
        for units in units.chunks(per_command) {
            self.clone().execute(command(Verb::Start, units.to_vec())).await?;
        }
        let deadline = Instant::now() + LAUNCH_LIMIT;
        loop {
            let active = self.active().await?;
            if active == count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "only {active} of {count} units are active");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many machines are up, and how many are unreachable.
    pub async fn machines(&mut self) -> Result<(usize, usize)> {
        let machines = self.0.list_machines(v1::MachinesRequest::default()).await?.into_inner().machines;
        let count = |state: MachineState| {
            let state = v1::MachineState::from(state) as i32;
            machines.iter().filter(|machine| machine.state == state).count()
        };
        Ok((count(MachineState::Up), count(MachineState::Unreachable)))
    }

    /// How many units are active.
    pub async fn active(&mut self) -> Result<usize> {
        let request = v1::UnitsRequest { names: None, content: false, reasons: false };
        let mut parts = self.0.list_units(request).await?.into_inner();
        let mut active = 0;
        while let Some(part) = parts.message().await? {
            for unit in part.units {
                active += usize::from(is_active(&UnitStatus::try_from(unit)?));
            }
        }
        Ok(active)
    }
}

fn is_active(unit: &UnitStatus) -> bool {
    unit.copies.iter().any(|copy| match &copy.observation {
        Some(Observation::Held { state: Some(state), .. }) => state.active == "active",
        _ => false,
    })
}

/// A command with these units.
pub fn command(verb: Verb, units: Vec<Unit>) -> v1::CommandRequest {
    let units = units.into_iter().map(|(name, content)| UnitArgument { name, content: Some(content) });
    let id = CommandId::new(uuid::Uuid::now_v7().as_u128());
    v1::CommandRequest::from(Command { id, verb, units: units.collect(), replace: false })
}

/// A service as people write them, some 200 bytes long.
pub fn unit(number: usize) -> Result<Unit> {
    let name = UnitName::parse(&format!("bench-{number:05}.service"))?;
    let content = format!(
        "[Unit]\nDescription=A service of the benchmark, number {number}\nAfter=network.target\n\n\
         [Service]\nType=exec\nExecStart=/usr/bin/sleep infinity\nRestart=on-failure\n"
    );
    Ok((name, content.into()))
}
