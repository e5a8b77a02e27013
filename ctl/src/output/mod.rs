//! What is shown to people and to programs, made of core types, and of what schedulers say of themselves.

pub mod events;
pub mod listing;
pub mod rto;
pub mod schedulers;
pub mod status;
pub mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use muster_core::command::{ClusterStatus, CopyStatus, MachineStatus};
use muster_core::ids::MachineId;
use muster_core::machine::MachineState;

use crate::style::harmless;

/// What is needed of the machines in order to name them.
#[derive(Clone, Debug, Default)]
pub struct Machines(BTreeMap<MachineId, (String, MachineState)>);

impl Machines {
    /// Those of this cluster.
    pub fn of(cluster: &ClusterStatus) -> Self {
        Self(cluster.machines.iter().map(|m| (m.id, (m.record.address.clone(), m.state))).collect())
    }

    /// Whether this machine is known.
    pub fn knows(&self, id: MachineId) -> bool {
        self.0.contains_key(&id)
    }

    /// Whether the leader has given this machine up. One that is not known is not known to be lost.
    pub fn lost(&self, id: MachineId) -> bool {
        self.0.get(&id).is_some_and(|(_, state)| *state == MachineState::Unreachable)
    }

    /// Whether one is known that has not reported since the leader was elected, and still has time to.
    pub fn awaited(&self) -> bool {
        self.0.values().any(|(_, state)| *state == MachineState::Awaited)
    }

    /// The machine's address, where it has one.
    pub fn address(&self, id: MachineId) -> Option<&str> {
        self.0.get(&id).map(|(address, _)| address.as_str()).filter(|address| !address.is_empty())
    }

    /// A machine as fleet names it: `1234abcd.../198.18.0.101`, or with the whole id.
    pub fn legend(&self, id: MachineId, full: bool) -> String {
        let name = machine_name(id, full);
        match self.address(id) {
            Some(address) => format!("{name}/{}", harmless(address)),
            None => name,
        }
    }
}

/// `1234abcd...`, or the whole id.
pub fn machine_name(id: MachineId, full: bool) -> String {
    if full { id.to_string() } else { format!("{}...", id.short()) }
}

/// Whether systemd says that this copy is active.
pub fn is_active(copy: &CopyStatus) -> bool {
    copy.unit_state().is_some_and(|state| matches!(state.active.as_str(), "active" | "reloading"))
}

/// `key=value,key=value`.
pub fn metadata(machine: &MachineStatus) -> String {
    let labels = machine.record.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(",")
}

/// How many machines a sentence names.
const NAMED: usize = 5;

/// `a; b; c`, or the first of them, and how many more there are.
pub fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned();
    let more = names.len().saturating_sub(NAMED);
    let more = (more > 0).then(|| format!("and {more} more"));
    shown.chain(more).collect::<Vec<_>>().join("; ")
}

/// How long ago, roughly.
pub fn ago(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_times_are_rough() {
        let shown = [0, 119, 120, 7199, 7200, 172_800].map(|seconds| ago(Duration::from_secs(seconds)));
        assert_eq!(shown, ["0 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 days ago"]);
    }
}
