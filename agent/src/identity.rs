//! What this machine is.

use std::path::Path;
use std::str::FromStr;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use muster_core::agent::Identity;
use muster_core::ids::{BootId, MachineId};
use muster_core::machine::Capacity;
use muster_core::unit::{Bytes, MilliCpu};

use crate::config::Config;

/// How the agent presents this machine.
///
/// # Errors
/// When the machine has no id, or does not say how large it is.
pub fn identity(config: &Config) -> Result<Identity> {
    let capacity = Capacity {
        cpu: config.capacity.cpu.map_or_else(cpus, Ok)?,
        memory: config.capacity.memory.map_or_else(memory, Ok)?,
    };
    Ok(Identity {
        machine: id::<MachineId>("/etc/machine-id")
            .context("the machine has no id; systemd-machine-id-setup makes one")?,
        address: config.address.clone(),
        labels: config.labels.clone(),
        capacity,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        streams: config.streams,
    })
}

/// This boot's id.
///
/// # Errors
/// When the kernel does not say.
pub fn boot() -> Result<BootId> {
    id("/proc/sys/kernel/random/boot_id")
}

fn id<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(path: &str) -> Result<T> {
    let text = read(path)?;
    text.trim().parse().with_context(|| path.to_owned())
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn cpus() -> Result<MilliCpu> {
    let cpus = thread::available_parallelism()
        .context("cannot count the CPUs; capacity.cpu says how many there are")?;
    Ok(MilliCpu(u64::try_from(cpus.get())?.saturating_mul(1000)))
}

fn memory() -> Result<Bytes> {
    total_memory(&read("/proc/meminfo")?)
}

/// Reads `MemTotal:       24586544 kB`.
fn total_memory(meminfo: &str) -> Result<Bytes> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let Some(kibibytes) = total.and_then(|total| total.parse::<u64>().ok()) else {
        bail!("/proc/meminfo does not say how much memory there is; capacity.memory does");
    };
    Ok(Bytes(kibibytes.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        let meminfo = "MemTotal:       24586544 kB\nMemFree:         1 kB\n";
        assert_eq!(total_memory(meminfo).unwrap(), Bytes(24_586_544 * 1024));
        assert!(total_memory("MemFree: 1 kB\n").is_err());
    }
}
