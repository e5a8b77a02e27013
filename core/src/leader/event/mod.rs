//! What the leader decides and what it learns that an operator should be able to read later, each with its reason.
//!
//! An [`Event`] is cheap: no text is made before somebody reads it. A new one needs an arm in [`Event::kind`],
//! [`Event::units`], [`Event::machines`], [`Event::reason`] and `Display`; the other methods have a rest arm.

mod words;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::Verb;
use crate::ids::{Epoch, MachineId, Term};
use crate::leader::reason::{Arrival, LingerEnd, LossReason, PlaceReason, ReleaseReason, UnplaceReason};
use crate::leader::record::{EventNumber, EventRecord};
use crate::machine::{Availability, LabelEdits};
use crate::state::{Observation, Phase};
use crate::unit::UnitName;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The leader took office, or took a higher term.
    TookOffice {
        /// In this term.
        term: Term,
        /// How many units it knows.
        units: usize,
        /// How many machines it knows.
        machines: usize,
    },
    /// A client's command changed something.
    Command {
        /// What was asked for.
        verb: Verb,
        /// The units that it changed, in the command's order.
        units: Vec<UnitName>,
    },
    /// A machine joined or came back.
    MachineUp {
        /// The machine.
        machine: MachineId,
        /// From where.
        arrival: Arrival,
        /// What is placed there, where it was away or has booted.
        units: Vec<UnitName>,
    },
    /// A machine's PID 1 does not answer: it gets nothing new.
    MachineDegraded(MachineId),
    /// A machine's PID 1 answers again.
    MachineRecovered(MachineId),
    /// A machine is lost: its units are placed elsewhere.
    MachineLost {
        /// The machine.
        machine: MachineId,
        /// What was placed there.
        units: Vec<UnitName>,
        /// What of that the brake holds there.
        held: Vec<UnitName>,
        /// Why.
        reason: LossReason,
    },
    /// The host of a machine that is lost answers all the same.
    HostAnswers(MachineId),
    /// An operator decided this of a machine.
    Availability {
        /// The machine.
        machine: MachineId,
        /// What was decided.
        availability: Availability,
    },
    /// A client changed labels of a machine.
    Labels {
        /// The machine, which need not have joined.
        machine: MachineId,
        /// What was changed.
        edits: LabelEdits,
    },
    /// A drained machine has said that nothing is left there.
    Drained(MachineId),
    /// The time of a drain has passed, and the machine is not empty.
    NotDrained {
        /// The machine.
        machine: MachineId,
        /// What is left there.
        units: Vec<UnitName>,
    },
    /// These units wait: no machine takes them. Told once, until they were placed.
    FitNowhere {
        /// The units.
        units: Vec<UnitName>,
    },
    /// A machine shuts down: its units are placed elsewhere.
    MachineLeaves(MachineId),
    /// A machine's agent is restarted: its lease lasts longer.
    AgentRestarts {
        /// The machine.
        machine: MachineId,
        /// For so long from now on.
        grace: Duration,
    },
    /// A machine's agent was refused.
    MachineRefused {
        /// The machine.
        machine: MachineId,
        /// Why.
        reason: String,
    },
    /// A machine claims the id of another one that is alive: one of the two is a copy.
    IdInUse {
        /// The id.
        machine: MachineId,
        /// The address of the machine that has it.
        address: Box<str>,
        /// The address of the one that was refused; both may be empty, or the same.
        rival: Box<str>,
    },
    /// The leader was stalled for so long in all since this was last said, which is counted against no machine.
    Stalled(Duration),
    /// Too many machines seem to die at once: nothing is moved.
    BrakeApplied {
        /// Those that are lost, or silent for over two heartbeats.
        machines: Vec<MachineId>,
        /// How many machines the cluster had.
        of: usize,
        /// The units that are held where they are.
        units: Vec<UnitName>,
    },
    /// What was held by the brake is moved.
    BrakeReleased {
        /// The machines for which it was held.
        machines: Vec<MachineId>,
        /// The units that were held.
        units: Vec<UnitName>,
        /// Why.
        reason: ReleaseReason,
    },
    /// The store refused what was decided last: it is undone.
    StoreFailed(String),
    /// The store has not answered for so long: nothing is decided or told meanwhile.
    StoreSilent(Duration),
    /// A unit was placed.
    Placed {
        /// The unit.
        unit: UnitName,
        /// Where.
        machine: MachineId,
        /// Where it was before.
        from: Option<MachineId>,
        /// Which placement it is.
        epoch: Epoch,
        /// Why.
        reason: PlaceReason,
        /// The unit that it had to be placed together with, where it is tied to one.
        with: Option<UnitName>,
    },
    /// A placement that was decided is not carried out yet.
    Withheld {
        /// The unit.
        unit: UnitName,
        /// Where it is placed.
        machine: MachineId,
        /// What it waits for.
        reason: Box<str>,
    },
    /// A unit that was started is not active any more: it has ended by itself, or somebody at the machine has stopped it.
    Inactive {
        /// The unit.
        unit: UnitName,
        /// Where.
        machine: MachineId,
        /// Which placement.
        epoch: Epoch,
    },
    /// A unit that failed is started anew.
    Retried {
        /// The unit.
        unit: UnitName,
        /// Where it failed.
        machine: MachineId,
        /// After which time.
        after: Duration,
        /// How often it has failed, and how often it is started anew at most.
        attempt: (usize, u32),
        /// Why it failed, in the machine's words.
        reason: Box<str>,
    },
    /// A unit that failed is not started anew any more.
    GivenUp {
        /// The unit.
        unit: UnitName,
        /// Where it failed last.
        machine: MachineId,
        /// Why.
        reason: Box<str>,
    },
    /// A one-shot unit has run to its end.
    Done {
        /// The unit.
        unit: UnitName,
        /// Where.
        machine: MachineId,
    },
    /// A unit was taken off a machine without a new one. (Where a client asked for that, [`Event::Command`] says so.)
    Unplaced {
        /// The unit.
        unit: UnitName,
        /// Where it was.
        machine: MachineId,
        /// Why.
        reason: UnplaceReason,
    },
    /// The old copy of a unit that was moved runs no longer than this.
    LingeringEnded {
        /// The unit.
        unit: UnitName,
        /// Where the old copy is.
        machine: MachineId,
        /// Why it ends.
        reason: LingerEnd,
    },
    /// A machine says that nothing is left of a unit there.
    Gone {
        /// The unit.
        unit: UnitName,
        /// The machine.
        machine: MachineId,
        /// Up to which placement.
        epoch: Epoch,
    },
    /// A machine says that it has started a unit.
    Started {
        /// The unit.
        unit: UnitName,
        /// The machine.
        machine: MachineId,
        /// Which placement.
        epoch: Epoch,
    },
    /// A unit did not start.
    StartFailed {
        /// The unit.
        unit: UnitName,
        /// The machine.
        machine: MachineId,
        /// Which placement.
        epoch: Epoch,
        /// systemd's words.
        reason: Box<str>,
    },
    /// A copy of a unit could not be stopped or removed. Its machine tries again.
    StopFailed {
        /// The unit.
        unit: UnitName,
        /// The machine.
        machine: MachineId,
        /// Which placement.
        epoch: Epoch,
        /// The machine's words.
        reason: Box<str>,
    },
    /// systemd gave up a unit that had been started.
    Failed {
        /// The unit.
        unit: UnitName,
        /// The machine.
        machine: MachineId,
        /// Which placement.
        epoch: Epoch,
        /// systemd's words.
        reason: Box<str>,
    },
    /// A machine cannot hold a unit.
    Refused {
        /// The unit.
        unit: UnitName,
        /// The machine.
        machine: MachineId,
        /// Which placement.
        epoch: Epoch,
        /// The machine's words.
        reason: Box<str>,
    },
    /// A machine holds a unit that the leader has no record of.
    Orphaned {
        /// The unit.
        unit: UnitName,
        /// Where.
        machine: MachineId,
    },
}

/// How much an event is worth an operator's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// All is as it should be.
    Info,
    /// Something is wrong with a unit or a machine.
    Warning,
    /// Somebody should look.
    Error,
}

impl Event {
    /// What a machine's news of a copy means to an operator, if anything: what it does to it on the way does not.
    pub(super) fn seen(
        unit: &UnitName,
        machine: MachineId,
        epoch: Epoch,
        before: Option<&Observation>,
        now: &Observation,
    ) -> Option<Self> {
        let active = |observation: &Observation| match observation {
            Observation::Held { phase: Phase::Launched, state: Some(state) } => {
                Some(state.active != "inactive")
            }
            _ => None,
        };
        if before.and_then(active) == Some(true) && active(now) == Some(false) {
            return Some(Self::Inactive { unit: unit.clone(), machine, epoch });
        }
        let is_old = before.is_some_and(|before| match (before, now) {
            (Observation::Held { phase: before, .. }, Observation::Held { phase: now, .. }) => before == now,
            _ => before == now,
        });
        if is_old {
            return None;
        }
        let unit = unit.clone();
        Some(match now {
            Observation::Refused(reason) => {
                Self::Refused { unit, machine, epoch, reason: reason.as_str().into() }
            }
            Observation::Held { phase, .. } => match phase {
                Phase::Launched => Self::Started { unit, machine, epoch },
                Phase::StartFailed(failure) => {
                    Self::StartFailed { unit, machine, epoch, reason: failure.reason.as_str().into() }
                }
                Phase::Failed(failure) => {
                    Self::Failed { unit, machine, epoch, reason: failure.reason.as_str().into() }
                }
                Phase::StopFailed(failure) => {
                    Self::StopFailed { unit, machine, epoch, reason: failure.reason.as_str().into() }
                }
                Phase::Loaded | Phase::Starting | Phase::Stopping => return None,
            },
        })
    }

    /// What sort of event it is, as one word that stays the same.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TookOffice { .. } => "leader_took_office",
            Self::Command { verb, .. } => match verb {
                Verb::Submit => "client_submit",
                Verb::Load => "client_load",
                Verb::Start => "client_start",
                Verb::Stop => "client_stop",
                Verb::Unload => "client_unload",
                Verb::Destroy => "client_destroy",
                Verb::Restart => "client_restart",
            },
            Self::MachineUp { .. } => "machine_up",
            Self::MachineDegraded(_) => "machine_degraded",
            Self::MachineRecovered(_) => "machine_recovered",
            Self::MachineLost { .. } => "machine_lost",
            Self::HostAnswers(_) => "host_answers",
            Self::Availability { availability, .. } => match availability {
                Availability::Open => "machine_uncordoned",
                Availability::Cordoned => "machine_cordoned",
                Availability::Draining(_) => "machine_drains",
            },
            Self::Labels { .. } => "machine_metadata",
            Self::Drained(_) => "machine_drained",
            Self::NotDrained { .. } => "machine_not_drained",
            Self::FitNowhere { .. } => "unit_waits",
            Self::Inactive { .. } => "unit_inactive",
            Self::Retried { .. } => "unit_retry",
            Self::StoreSilent(_) => "store_silent",
            Self::MachineLeaves(_) => "machine_leaves",
            Self::AgentRestarts { .. } => "agent_restarts",
            Self::MachineRefused { .. } => "machine_refused",
            Self::IdInUse { .. } => "machine_id_in_use",
            Self::Stalled(_) => "leader_stalled",
            Self::BrakeApplied { .. } => "brake_applied",
            Self::BrakeReleased { .. } => "brake_released",
            Self::StoreFailed(_) => "store_failed",
            Self::Placed { .. } => "unit_placed",
            Self::Withheld { .. } => "unit_withheld",
            Self::GivenUp { .. } => "unit_given_up",
            Self::Done { .. } => "unit_done",
            Self::Unplaced { .. } => "unit_unplaced",
            Self::LingeringEnded { .. } => "old_copy_ends",
            Self::Gone { .. } => "copy_gone",
            Self::Started { .. } => "unit_started",
            Self::StartFailed { .. } => "start_failed",
            Self::StopFailed { .. } => "stop_failed",
            Self::Failed { .. } => "unit_failed",
            Self::Refused { .. } => "unit_refused",
            Self::Orphaned { .. } => "unit_orphaned",
        }
    }

    /// The units that it is about.
    pub fn units(&self) -> &[UnitName] {
        match self {
            Self::Command { units, .. }
            | Self::MachineLost { units, .. }
            | Self::MachineUp { units, .. }
            | Self::FitNowhere { units }
            | Self::BrakeApplied { units, .. }
            | Self::BrakeReleased { units, .. }
            | Self::NotDrained { units, .. } => units,
            Self::Placed { unit, .. }
            | Self::Inactive { unit, .. }
            | Self::Retried { unit, .. }
            | Self::Withheld { unit, .. }
            | Self::GivenUp { unit, .. }
            | Self::Done { unit, .. }
            | Self::Unplaced { unit, .. }
            | Self::LingeringEnded { unit, .. }
            | Self::Gone { unit, .. }
            | Self::Started { unit, .. }
            | Self::StartFailed { unit, .. }
            | Self::StopFailed { unit, .. }
            | Self::Failed { unit, .. }
            | Self::Refused { unit, .. }
            | Self::Orphaned { unit, .. } => std::slice::from_ref(unit),
            Self::TookOffice { .. }
            | Self::MachineDegraded(_)
            | Self::MachineRecovered(_)
            | Self::HostAnswers(_)
            | Self::Availability { .. }
            | Self::Labels { .. }
            | Self::Drained(_)
            | Self::MachineLeaves(_)
            | Self::AgentRestarts { .. }
            | Self::MachineRefused { .. }
            | Self::IdInUse { .. }
            | Self::Stalled(_)
            | Self::StoreSilent(_)
            | Self::StoreFailed(_) => &[],
        }
    }

    /// The machines that it is about. Of a unit that moves the new one comes first.
    pub fn machines(&self) -> Vec<MachineId> {
        match self {
            Self::MachineDegraded(machine)
            | Self::MachineRecovered(machine)
            | Self::HostAnswers(machine)
            | Self::Drained(machine)
            | Self::MachineLeaves(machine)
            | Self::NotDrained { machine, .. }
            | Self::Inactive { machine, .. }
            | Self::Retried { machine, .. }
            | Self::MachineUp { machine, .. }
            | Self::MachineLost { machine, .. }
            | Self::Availability { machine, .. }
            | Self::Labels { machine, .. }
            | Self::AgentRestarts { machine, .. }
            | Self::MachineRefused { machine, .. }
            | Self::IdInUse { machine, .. }
            | Self::Withheld { machine, .. }
            | Self::GivenUp { machine, .. }
            | Self::Done { machine, .. }
            | Self::Unplaced { machine, .. }
            | Self::LingeringEnded { machine, .. }
            | Self::Gone { machine, .. }
            | Self::Started { machine, .. }
            | Self::StartFailed { machine, .. }
            | Self::StopFailed { machine, .. }
            | Self::Failed { machine, .. }
            | Self::Refused { machine, .. }
            | Self::Orphaned { machine, .. } => vec![*machine],
            Self::Placed { machine, from, .. } => {
                std::iter::once(*machine).chain(from.filter(|from| from != machine)).collect()
            }
            Self::BrakeApplied { machines, .. } | Self::BrakeReleased { machines, .. } => machines.clone(),
            Self::TookOffice { .. }
            | Self::Command { .. }
            | Self::FitNowhere { .. }
            | Self::Stalled(_)
            | Self::StoreSilent(_)
            | Self::StoreFailed(_) => Vec::new(),
        }
    }

    /// Which placement of its unit it is about.
    pub fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Placed { epoch, .. }
            | Self::Inactive { epoch, .. }
            | Self::Gone { epoch, .. }
            | Self::Started { epoch, .. }
            | Self::StartFailed { epoch, .. }
            | Self::StopFailed { epoch, .. }
            | Self::Failed { epoch, .. }
            | Self::Refused { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }

    /// How much it is worth an operator's attention.
    pub fn severity(&self) -> Severity {
        match self {
            Self::BrakeApplied { .. }
            | Self::StoreFailed(_)
            | Self::StoreSilent(_)
            | Self::GivenUp { .. }
            | Self::IdInUse { .. } => Severity::Error,
            Self::MachineDegraded(_)
            | Self::MachineLost { .. }
            | Self::HostAnswers(_)
            | Self::NotDrained { .. }
            | Self::FitNowhere { .. }
            | Self::MachineRefused { .. }
            | Self::Stalled(_)
            | Self::BrakeReleased { .. }
            | Self::StartFailed { .. }
            | Self::StopFailed { .. }
            | Self::Failed { .. }
            | Self::Refused { .. }
            | Self::Orphaned { .. } => Severity::Warning,
            _ => Severity::Info,
        }
    }

    /// Whether it tells of a change that the store holds: it did not happen if the commit fails.
    pub(super) fn tells_of_a_change(&self) -> bool {
        matches!(
            self,
            Self::Command { .. }
                | Self::Availability { .. }
                | Self::Labels { .. }
                | Self::Drained(_)
                | Self::NotDrained { .. }
                | Self::Placed { .. }
                | Self::Unplaced { .. }
                | Self::Done { .. }
                | Self::Withheld { .. }
        )
    }

    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        let text = match self {
            Self::StartFailed { reason, .. }
            | Self::StopFailed { reason, .. }
            | Self::Failed { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Retried { reason, .. }
            | Self::Withheld { reason, .. }
            | Self::GivenUp { reason, .. } => reason.len(),
            Self::MachineRefused { reason, .. } | Self::StoreFailed(reason) => reason.len(),
            Self::BrakeApplied { machines, .. } | Self::BrakeReleased { machines, .. } => {
                size_of_val(machines.as_slice())
            }
            Self::MachineLost { held, .. } => names_weight(held),
            Self::Labels { edits, .. } => {
                edits.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, String::len)).sum()
            }
            _ => 0,
        };
        size_of::<Self>() + names_weight(self.units()) + text
    }

    /// The event as clients are told of it.
    pub fn record(&self, number: EventNumber, at_ms: u64) -> EventRecord {
        EventRecord {
            number,
            at_ms,
            kind: self.kind().to_owned(),
            severity: self.severity(),
            units: self.units().to_vec(),
            machines: self.machines(),
            epoch: self.epoch(),
            reason: self.reason(),
            message: self.to_string(),
        }
    }
}

fn names_weight(names: &[UnitName]) -> usize {
    names.iter().map(|name| size_of::<UnitName>() + name.as_str().len()).sum()
}
