//! The three kinds of state: what was asked for, what a machine was told, and what was seen.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesiredState {
    /// Known to the cluster, on no machine.
    #[default]
    Inactive,
    /// On a machine, not started.
    Loaded,
    /// On a machine and started.
    Launched,
}

impl fmt::Display for DesiredState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inactive => "inactive",
            Self::Loaded => "loaded",
            Self::Launched => "launched",
        })
    }
}

/// What a machine is told to do with a unit that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Its file in place, the unit not started by Muster.
    Loaded,
    /// Started.
    Launched,
}

/// A unit's state in systemd's own words, as `systemctl list-units` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState {
    /// `LoadState`, for example `loaded`.
    pub load: String,
    /// `ActiveState`, for example `active`.
    pub active: String,
    /// `SubState`, for example `running`.
    pub sub: String,
}

/// Why systemd gave a unit up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// systemd's `Result` (`systemd.exec(5)`): `exit-code`, `oom-kill`, `resources` …; empty where it is not known.
    pub result: String,
    /// The same and more in words for a reader.
    pub reason: String,
}

impl Failure {
    /// One of which systemd gives no result, since nothing of the unit ran.
    pub fn without_result(reason: impl Into<String>) -> Self {
        Self { result: String::new(), reason: reason.into() }
    }
}

/// How far an agent is with a unit that it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The file is in place; nothing was started.
    Loaded,
    /// A start was asked for and has not ended.
    Starting,
    /// The start ended well. Whether the unit is still active is systemd's to say.
    Launched,
    /// The start failed.
    StartFailed(Failure),
    /// The start ended well, and systemd has given the unit up since.
    Failed(Failure),
    /// A stop was asked for and has not ended.
    Stopping,
    /// It is to be stopped or removed, and that came to nothing for this reason; it is tried again. (An agent tells it, and
    /// writes it down nowhere: the next one tries anyway.)
    StopFailed(Failure),
}

/// What is seen of one copy of a unit on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Observation {
    /// The machine holds it.
    Held {
        /// How far its agent is with it.
        phase: Phase,
        /// What systemd says of it; `None` while that is unknown.
        state: Option<UnitState>,
    },
    /// The machine cannot hold it, for this reason.
    Refused(String),
}

impl Observation {
    /// Whether it was started, and is active.
    pub fn is_active(&self) -> bool {
        self.launched().is_some_and(|active| matches!(active, "active" | "reloading"))
    }

    /// Whether it was started, and has ended by itself or was stopped at its machine: it stays so.
    pub fn has_ended(&self) -> bool {
        self.launched() == Some("inactive")
    }

    /// Whether it was refused, or systemd has given it up.
    pub fn has_failed(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Held { phase: Phase::StartFailed(_) | Phase::Failed(_), .. })
    }

    /// What systemd says of one that was started (`ActiveState`).
    fn launched(&self) -> Option<&str> {
        match self {
            Self::Held { phase: Phase::Launched, state: Some(state) } => Some(&state.active),
            Self::Held { .. } | Self::Refused(_) => None,
        }
    }
}
