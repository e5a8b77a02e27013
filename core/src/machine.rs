//! What is known of a machine.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{AgentKey, BootId};
use crate::unit::{Bytes, MilliCpu};

/// A machine's labels: fleet's metadata.
pub type Labels = BTreeMap<String, String>;

/// What clients have changed of a machine's labels, whatever its agent says of them: other values, and `None` for what it
/// is not to have.
pub type LabelEdits = BTreeMap<String, Option<String>>;

/// The labels that count: those that the agent names, with what clients have changed.
pub fn edited(labels: &Labels, edits: Option<&LabelEdits>) -> Labels {
    let mut labels = labels.clone();
    for (key, value) in edits.into_iter().flatten() {
        match value {
            Some(value) => labels.insert(key.clone(), value.clone()),
            None => labels.remove(key),
        };
    }
    labels
}

/// Checks that `MachineMetadata=` can ask for a label with this key.
///
/// # Errors
/// Why it cannot.
pub fn check_label_key(key: &str) -> Result<(), String> {
    let compares = key.ends_with(['!', '<', '>', '~']).then_some("it ends in !, <, > or ~");
    match compares.or_else(|| what_no_unit_can_say(key)) {
        Some(why) => Err(format!("MachineMetadata= cannot ask for a label {key:?}: {why}")),
        None => Ok(()),
    }
}

/// Checks that `MachineMetadata=` can ask for a label with this value.
///
/// # Errors
/// Why it cannot.
pub fn check_label_value(value: &str) -> Result<(), String> {
    match what_no_unit_can_say(value) {
        Some(why) => Err(format!("MachineMetadata= cannot ask for a label's value {value:?}: {why}")),
        None => Ok(()),
    }
}

/// Why this can be no side of the `=` in `MachineMetadata=KEY=VALUE`.
fn what_no_unit_can_say(side: &str) -> Option<&'static str> {
    if side.is_empty() {
        Some("it is empty")
    } else if side.contains('=') {
        Some("it has a \"=\"")
    } else if side.contains('"') {
        Some("it has a quotation mark")
    } else if side.contains(['\n', '\r', '\0']) {
        Some("it has a line end or a NUL")
    } else if side.trim_matches([' ', '\t']) != side {
        Some("it has a blank at an end")
    } else {
        None
    }
}

/// What a machine has to give to units that reserve something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Processor time, in thousandths of one CPU.
    pub cpu: MilliCpu,
    /// Main memory, in bytes.
    pub memory: Bytes,
}

/// What a machine's agent says of its machine, and the leader keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRecord {
    /// The address that other machines reach it by; where its agent was told none, the one that it dials from.
    pub address: String,
    /// Its labels, as its agent names them.
    pub labels: Labels,
    /// What it can give to units.
    pub capacity: Capacity,
    /// The version of its agent.
    pub version: String,
    /// Its last known boot.
    pub boot: BootId,
    /// Its agent's key.
    pub key: AgentKey,
    /// Whether its agent has said that it is restarted, and has not come back: its lease runs longer.
    #[serde(default)]
    pub restarting: bool,
    /// Whether it said goodbye for a shutdown, and has not come back.
    #[serde(default)]
    pub leaving: bool,
    /// The longest lease that it may count on, as its heartbeats were answered: another leader may have other settings.
    #[serde(default)]
    pub lease: Duration,
    /// What its agent was granted for a restart, as long as what is exclusive may count on it.
    #[serde(default)]
    pub grace: Duration,
}

impl MachineRecord {
    /// For how long at most what is exclusive may count on what was granted.
    pub fn longest_lease(&self) -> Duration {
        self.lease.max(self.grace)
    }
}

/// How short a machine is of something: the kernel's pressure stall information (PSI). Each is the share of the last ten
/// seconds in which some task had to wait for it, in hundredths of a percent; `None` where the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Of processor time.
    pub cpu: Option<u32>,
    /// Of memory.
    pub memory: Option<u32>,
    /// Of disks.
    pub io: Option<u32>,
}

/// What an operator has decided of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// It takes units.
    #[default]
    Open,
    /// It takes no new units, and keeps those that it has.
    Cordoned,
    /// It takes no new units, and those that it has are placed elsewhere.
    Draining(Drain),
}

/// How a machine is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// After this time, counted for all of them from when the leader decided it, units are stopped here that are not yet
    /// seen to be active elsewhere, in ms.
    pub timeout_ms: u64,
    /// How many units may be on their way elsewhere at once; 0: any number.
    pub max_parallel: u32,
}

impl Drain {
    pub(crate) fn timeout(self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    pub(crate) fn max_parallel(self) -> usize {
        match self.max_parallel {
            0 => usize::MAX,
            most => usize::try_from(most).unwrap_or(usize::MAX),
        }
    }
}

/// How the leader sees a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Its lease holds.
    Up,
    /// Its lease holds, but its PID 1 has not answered for longer than a lease: it gets nothing new.
    Degraded,
    /// It has not reported since this leader was elected, and still has time to.
    Awaited,
    /// Its lease ended: its units are placed elsewhere.
    Unreachable,
}

impl MachineState {
    /// Whether it is heard from, so that what it says of its units is so.
    pub fn is_heard(self) -> bool {
        matches!(self, Self::Up | Self::Degraded)
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Awaited => "awaited",
            Self::Unreachable => "unreachable",
        })
    }
}
