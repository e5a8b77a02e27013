//! What the systemd of machines says of units, for `status`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_core::command::{CopyRole, UnitStatus};
use muster_core::ids::MachineId;
use muster_core::unit::UnitName;
use muster_proto::Work;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::client::Client;
use crate::failure::Failure;
use crate::stream::Heard;

/// How long is waited for what machines say.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many are asked at once.
const AT_ONCE: usize = 16;

/// What machines say of units, or why they do not.
pub type Said = BTreeMap<(UnitName, MachineId), Result<String, String>>;

/// Asks the machines of these units' current copies.
pub async fn ask(client: &Client, units: &[UnitStatus]) -> Said {
    let until = Instant::now() + PATIENCE;
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = JoinSet::new();
    for unit in units {
        for copy in unit.copies.iter().filter(|copy| copy.role == CopyRole::Current) {
            let (client, at_once) = (client.clone(), Arc::clone(&at_once));
            let (name, machine) = (unit.name.clone(), copy.machine);
            asked.spawn(async move {
                let asks = async {
                    let _room = at_once.acquire().await;
                    ask_one(client, machine, name.clone()).await
                };
                let said = match timeout_at(until, asks).await {
                    Ok(said) => said.map_err(|failure| failure.message),
                    Err(_) => Err(format!("it has not answered within {} s", PATIENCE.as_secs())),
                };
                ((name, machine), said)
            });
        }
    }
    asked.join_all().await.into_iter().collect()
}

async fn ask_one(mut client: Client, machine: MachineId, unit: UnitName) -> Result<String, Failure> {
    let mut stream = client.relay(machine, Work::Status(unit)).await?;
    let (mut said, mut errors) = (Vec::new(), Vec::new());
    loop {
        match stream.output.next().await? {
            Heard::Data(data) => said.extend_from_slice(&data),
            Heard::Errors(data) => errors.extend_from_slice(&data),
            Heard::File(_) => {}
            // With 3 a unit is not active, with 4 systemd knows of none: it says so.
            Heard::Done(_) => break,
        }
    }
    if said.is_empty() {
        said = errors;
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}
