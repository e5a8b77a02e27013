//! What a scheduler with many units takes.

use std::time::Duration;

use anyhow::Result;

use crate::agents::Agents;
use crate::figure::{Bar, Figure, say};
use crate::scheduler::Scheduler;

const UNITS: usize = 10_000;
const UNITS_PER_COMMAND: usize = 500;
const MACHINES: u32 = 10;
/// How long the cluster then only sends heartbeats.
const REST: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
pub async fn measure() -> Result<Vec<Figure>> {
    let scheduler = Scheduler::start().await?;
    let agents = Agents::start(MACHINES, &[scheduler.address().to_owned()]);
    let mut client = scheduler.client().await?;
    client.launch(UNITS, UNITS_PER_COMMAND).await?;
    drop(client);
    tokio::time::sleep(REST).await;
    let (rss, most) = scheduler.memory_mib()?;
    drop(agents);
    say(&format!("{rss:.1} MiB, {most:.1} MiB at most"));
    Ok(vec![Figure {
        name: "scheduler_rss_mib",
        value: rss,
        unit: "MiB",
        bar: Some(Bar::AtMost(60.0)),
        method: format!(
            "VmRSS of a scheduler whose {UNITS} units of some 150 bytes are launched on {MACHINES} machines (agents \
             without systemd), in commands of {UNITS_PER_COMMAND}, all listed twice at least, after {} s of heartbeats \
             (VmHWM: {most:.1} MiB)",
            REST.as_secs()
        ),
    }])
}
