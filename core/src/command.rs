//! What clients ask for, and what they are answered.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, ClusterId, CommandId, Epoch, MachineId, Term};
use crate::leader::Durable;
use crate::machine::{
    Availability, MachineRecord, MachineState, Pressure, check_label_key, check_label_value,
};
use crate::state::{DesiredState, Observation, Phase, UnitState};
use crate::unit::{ContentHash, UnitName};

/// A change that a client asks for. All of it is done, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Chosen by the client; a repetition finds the first one's result.
    pub id: CommandId,
    /// What to do.
    pub verb: Verb,
    /// To which units, in this order.
    pub units: Vec<UnitArgument>,
    /// Whether a unit that is known with other content takes the new one.
    pub replace: bool,
}

/// What a command does with its units: fleet's verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Make known; leaves the desired state of a known unit alone.
    Submit,
    /// Submit, and have on a machine.
    Load,
    /// Submit, and have started.
    Start,
    /// Have on a machine, not started. Refused for an inactive unit. With `replace` it takes a file, too.
    Stop,
    /// Have on no machine. With `replace` it takes a file, too.
    Unload,
    /// Forget.
    Destroy,
    /// Stop and start again on the same machine. Refused for an inactive unit.
    Restart,
}

/// A unit that a command names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitArgument {
    /// Its name.
    pub name: UnitName,
    /// Its file, where the client has one. Without it the unit must be known, or be an instance of a known template.
    pub content: Option<Arc<str>>,
}

/// What became of a command.
pub type CommandResult = Result<Vec<UnitOutcome>, CommandError>;

/// What a command did to one unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitOutcome {
    /// The unit.
    pub name: UnitName,
    /// What was done.
    pub done: Done,
    /// What the user should know, for example an unknown key in the file.
    pub warnings: Vec<String>,
}

/// What was done to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Done {
    /// It is new.
    Created,
    /// It took new content.
    Replaced,
    /// Its desired state changed, or it restarts.
    Changed,
    /// It was so already.
    Unchanged,
    /// It is known with other content, which it keeps, since `replace` was not given; the rest of the verb was done.
    KeptOtherContent,
    /// It is forgotten.
    Destroyed,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum CommandError {
    /// What is wrong with these units.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Units(Vec<UnitError>),
    /// The store refused the write.
    #[error("nothing was changed: the scheduler cannot write to its store: {0}")]
    Store(String),
    /// This scheduler stopped leading before it was decided; ask the leader, under the same command id.
    #[error("this scheduler does not lead any more")]
    NotLeader,
}

/// What is wrong with one unit of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{name}: {kind}")]
pub struct UnitError {
    /// The unit, as the client named it.
    pub name: UnitName,
    /// What is wrong.
    pub kind: UnitErrorKind,
}

/// The kinds of [`UnitError`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum UnitErrorKind {
    /// Neither known, nor sent, nor an instance of a known template.
    #[error("no such unit; give its file, or submit it (or its template) first")]
    NotFound,
    /// The file or its options are refused, for these reasons.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// A template cannot be on a machine, only its instances.
    #[error("is a template: name an instance of it, for example {0}")]
    Template(String),
    /// The unit is inactive.
    #[error("is inactive: it cannot be {0}")]
    Inactive(String),
    /// The unit's content is in use in a state above the one that the verb sets.
    #[error("is {0}: its content can be replaced only by a command that leaves it {0} (`{1} --replace`)")]
    InUse(DesiredState, String),
}

/// What a client wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// These units, or all.
    Units {
        /// Which; `None` for all.
        names: Option<Vec<UnitName>>,
        /// With the content of their files.
        content: bool,
        /// With what each machine has against a unit that waits; of many such units only for the first ones.
        reasons: bool,
    },
    /// A part of all units, or of their copies.
    Page(Page),
    /// All machines, and the cluster.
    Machines {
        /// With what is left on these, and why; of many only of the first.
        left_on: Vec<MachineId>,
    },
    /// The worst-case time from the loss of this unit's machine until it is started elsewhere.
    Rto(UnitName),
    /// All that is durable.
    Backup,
}

/// A part of a long list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// What is listed.
    pub rows: Rows,
    /// So many rows are left out first.
    pub skip: usize,
    /// So many follow at most.
    pub most: usize,
}

/// What the rows of a list are, in the order of the units' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The units that the cluster knows.
    Units,
    /// Copies of units of which a machine has told systemd's state. A unit has those of its copies that are rows.
    States {
        /// Of this unit only.
        unit: Option<UnitName>,
        /// On this machine only.
        machine: Option<MachineId>,
    },
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryAnswer {
    /// To [`Query::Units`], in the order of their names; those that are not known are left out. To [`Query::Page`], with
    /// their files.
    Units(Vec<UnitStatus>),
    /// To [`Query::Machines`].
    Machines(ClusterStatus),
    /// To [`Query::Rto`]; `None` for a unit that is not known.
    Rto(Option<Rto>),
    /// To [`Query::Backup`].
    Backup {
        /// The leader's term.
        term: Term,
        /// The state, at one moment.
        durable: Box<Durable>,
    },
}

/// All that is known of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub name: UnitName,
    /// Whether the cluster knows it. It does not know one that was destroyed while copies of it are still being
    /// stopped, nor an orphan.
    pub known: bool,
    /// The hash of its file.
    pub hash: ContentHash,
    /// The file, where it was asked for.
    pub content: Option<Arc<str>>,
    /// `Description=` of the file; empty without one.
    pub description: String,
    /// What was asked for.
    pub desired: DesiredState,
    /// Whether it runs on every machine that fits.
    pub global: bool,
    /// Its copies: what was decided and what is seen, current ones first.
    pub copies: Vec<CopyStatus>,
    /// Why it waits, where it does.
    pub waiting: Option<Waiting>,
    /// What was decided of it since it failed: that it is tried again, or is not any more.
    pub trouble: Option<String>,
    /// Whether it has run to its end, as a one-shot unit does.
    pub done: bool,
}

/// A copy of a unit on a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// The machine.
    pub machine: MachineId,
    /// Which placement of the unit.
    pub epoch: Epoch,
    /// What it is.
    pub role: CopyRole,
    /// What the machine says of it; `None` while it has not, or cannot.
    pub observation: Option<Observation>,
}

/// What a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyRole {
    /// The one that was decided.
    Current,
    /// An older one, which its machine stops (when it is heard from).
    Stopping,
    /// One that the leader has no record of: it runs on until an operator decides.
    Orphaned,
}

/// Why a unit waits for a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// In one sentence.
    pub reason: String,
    /// What each machine has against it, where that was asked for.
    pub machines: Vec<(MachineId, String)>,
}

/// A unit's worst-case time from the loss of its machine until it is started elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rto {
    /// Its parts, in their order: their sum is the time until the start is asked for. None for a unit that is not moved.
    pub parts: Vec<RtoPart>,
    /// How long the start itself may take until systemd gives it up; `None`: as long as it takes.
    pub start_ms: Option<u64>,
    /// What may come on top, in one sentence each.
    pub notes: Vec<String>,
}

/// A part of a worst-case time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtoPart {
    /// Its name, as one word that stays the same.
    pub name: String,
    /// How long it takes at most.
    pub span_ms: u64,
    /// What it is.
    pub what: String,
}

impl Rto {
    /// From the loss of the machine until the start is asked for.
    pub fn sum_ms(&self) -> u64 {
        self.parts.iter().map(|part| part.span_ms).sum()
    }
}

/// All that is known of the cluster's machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// The leader's term.
    pub term: Term,
    /// The machines, in the order of their ids.
    pub machines: Vec<MachineStatus>,
    /// Set while nothing is moved since too many machines seem to have died at once.
    pub brake: Option<BrakeStatus>,
}

/// A change of machines that a client asks for. It may be repeated under its id, and is carried out once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineCommand {
    /// Chosen by the client.
    pub id: CommandId,
    /// Which machines.
    pub machines: Vec<MachineId>,
    /// What is decided of them.
    pub availability: Availability,
}

/// A change of a machine's labels that a client asks for. It may be repeated.
///
/// The machine need not have joined: then the change waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelEdit {
    /// The machine.
    pub machine: MachineId,
    /// The label.
    pub key: String,
    /// Its value; `None` where the machine is not to have it, even if its agent names it.
    pub value: Option<String>,
}

impl LabelEdit {
    pub(crate) fn check(&self) -> Result<(), MachineCommandError> {
        let key = check_label_key(&self.key);
        let value = self.value.as_deref().map_or(Ok(()), check_label_value);
        key.and(value).map_err(MachineCommandError::Label)
    }
}

/// Why a command on machines has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineCommandError {
    /// A machine that never was part of the cluster.
    #[error(
        "no machine of this cluster has the id {0}; `musterctl list-machines --full` shows those that have joined"
    )]
    NoSuchMachine(MachineId),
    /// A label that no unit could ask for, for this reason.
    #[error("{0}")]
    Label(String),
    /// The store refused the write.
    #[error("nothing was changed: the scheduler cannot write to its store: {0}")]
    Store(String),
}

/// Why a backup was not restored: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The cluster has something already.
    #[error(
        "this cluster is not empty: it has {} and {}, and a backup is restored into an empty one only. To put it in this \
         cluster's place, stop muster-scheduler.service, move its state away (its state directory, or what lies in etcd), \
         start it again and restore then; units run on meanwhile", counted(*units, "unit"), counted(*machines, "machine")
    )]
    NotEmpty {
        /// How many units it knows.
        units: usize,
        /// How many machines it has ever seen.
        machines: usize,
    },
    /// The store refused the write.
    #[error("nothing was changed: the scheduler cannot write to its store: {0}")]
    Store(String),
    /// Whether this scheduler leads was not known at that moment.
    #[error("nothing was changed: whether this scheduler leads was not certain; try again")]
    NotLeader,
}

fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// The brake: nothing is moved away from lost machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrakeStatus {
    /// The machines that seem to have died at once.
    pub machines: Vec<MachineId>,
    /// For how long it has been held, in ms.
    pub held_ms: u64,
    /// For how long it is held still, at most, in ms. Zero: until one of them is back, or an operator releases it.
    pub left_ms: u64,
}

/// All that is known of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Its id.
    pub id: MachineId,
    /// What its agent said of it; of its labels what counts, with what clients have changed.
    pub record: MachineRecord,
    /// How the leader sees it.
    pub state: MachineState,
    /// What an operator has decided of it.
    pub availability: Availability,
    /// Milliseconds since the leader last heard from it; `None` when this leader never did.
    pub last_heard_ms: Option<u64>,
    /// How many units are placed there or being stopped.
    pub units: usize,
    /// How many units run there that the leader has no record of.
    pub orphans: usize,
    /// What the first of all these wait for before they are gone, where that was asked for.
    pub left: Vec<Left>,
    /// What they reserve.
    pub reserved: crate::machine::Capacity,
    /// How short it is of what its units need, by its last heartbeat.
    pub pressure: Pressure,
    /// The machine that claims the same id and was refused for that lately.
    pub rival: Option<RivalStatus>,
    /// Whether its host answers, although the machine is unreachable; `None` where that was not asked, or is not known yet.
    pub host_answers: Option<bool>,
}

impl UnitStatus {
    /// The copy that was decided, where it has just one.
    pub fn current_copy(&self) -> Option<&CopyStatus> {
        self.copies.iter().find(|copy| copy.role == CopyRole::Current)
    }

    /// How far it is, in the words of what was asked for. `None` for a global unit, which may be as far on one machine and
    /// not on another.
    pub fn current_state(&self) -> Option<DesiredState> {
        if self.global {
            return None;
        }
        Some(match self.current_copy().and_then(|copy| copy.observation.as_ref()) {
            None | Some(Observation::Refused(_)) => DesiredState::Inactive,
            Some(Observation::Held { phase, .. }) => match phase {
                Phase::Loaded | Phase::Starting | Phase::Stopping | Phase::StopFailed(_) => {
                    DesiredState::Loaded
                }
                Phase::Launched | Phase::StartFailed(_) | Phase::Failed(_) => DesiredState::Launched,
            },
        })
    }
}

impl CopyStatus {
    /// What systemd says of it.
    pub fn unit_state(&self) -> Option<&UnitState> {
        match &self.observation {
            Some(Observation::Held { state, .. }) => state.as_ref(),
            _ => None,
        }
    }
}

impl MachineStatus {
    /// Whether it says that nothing is left there.
    pub fn is_empty(&self) -> bool {
        self.state.is_heard() && self.units == 0 && self.orphans == 0
    }
}

/// A unit that is left on a machine that is emptied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The unit.
    pub unit: UnitName,
    /// Why it is there still: what can be said of it, in one sentence.
    pub why: String,
    /// Whether it is being stopped there.
    pub stops: bool,
}

/// A machine that claims the id of another one which is alive: one of the two is a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RivalStatus {
    /// Its address; may be empty, or the same where the configuration was copied too.
    pub address: String,
    /// Its boot.
    pub boot: BootId,
    /// Milliseconds since it was last refused.
    pub last_heard_ms: u64,
}
