//! Conversions of what clients ask for and are answered.

use std::sync::Arc;
use std::time::Duration;

use muster_core::command::{
    BrakeStatus, ClusterStatus, Command, CommandError, CommandResult, CopyRole, CopyStatus, Done, LabelEdit,
    Left, MachineCommand, MachineStatus, Page, Query, RivalStatus, Rows, UnitArgument, UnitError,
    UnitErrorKind, UnitOutcome, UnitStatus, Verb, Waiting,
};
use muster_core::ids::{AgentKey, BootId, ClusterId, CommandId, MachineId, Term};
use muster_core::machine::{Availability, Drain, MachineRecord, MachineState};
use muster_core::state::DesiredState;
use muster_core::unit::{UnitFile, UnitName};
use prost::bytes::Bytes;
use tonic::Status;

use crate::error::{ConvertError, Problem};
use crate::types::{
    bits, content, content_bytes, each, enumeration, epoch, hash, hash_bytes, id, message, micros, name,
    names, required, value,
};
use crate::v1;

enumeration!(Verb, v1::Verb, [Submit, Load, Start, Stop, Unload, Destroy, Restart]);
enumeration!(Done, v1::Done, [Created, Replaced, Changed, Unchanged, KeptOtherContent, Destroyed]);
enumeration!(DesiredState, v1::DesiredState, [Inactive, Loaded, Launched]);
enumeration!(CopyRole, v1::CopyRole, [Current, Stopping, Orphaned]);
enumeration!(MachineState, v1::MachineState, [Up, Degraded, Awaited, Unreachable]);

/// Why a request is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandRequestError {
    /// The client is broken, or speaks another version of the protocol.
    #[error(transparent)]
    Malformed(#[from] ConvertError),
    /// The user's files cannot be unit files: this is the command's result.
    #[error(transparent)]
    Refused(CommandError),
}

impl From<Command> for v1::CommandRequest {
    fn from(command: Command) -> Self {
        let argument = |unit: UnitArgument| v1::UnitArgument {
            name: unit.name.to_string(),
            content: unit.content.map(content_bytes),
        };
        Self {
            id: id(command.id.bits()),
            verb: v1::Verb::from(command.verb).into(),
            units: command.units.into_iter().map(argument).collect(),
            replace: command.replace,
        }
    }
}

impl TryFrom<v1::CommandRequest> for Command {
    type Error = CommandRequestError;

    fn try_from(request: v1::CommandRequest) -> Result<Self, CommandRequestError> {
        let mut units = Vec::with_capacity(request.units.len());
        let mut errors = Vec::new();
        for (index, unit) in request.units.into_iter().enumerate() {
            let name = name(&format!("units[{index}].name"), &unit.name)?;
            match unit.content.map(|bytes| text(&name, &bytes)).transpose() {
                Ok(content) => units.push(UnitArgument { name, content }),
                Err(error) => errors.push(error),
            }
        }
        let command = Self {
            id: CommandId::new(bits("id", &request.id)?),
            verb: value("verb", request.verb)?,
            units,
            replace: request.replace,
        };
        if errors.is_empty() {
            Ok(command)
        } else {
            Err(CommandRequestError::Refused(CommandError::Units(errors)))
        }
    }
}

/// What a user sent as a unit file, as text. What else may be wrong with it is for the core to say.
fn text(name: &UnitName, bytes: &[u8]) -> Result<Arc<str>, UnitError> {
    std::str::from_utf8(bytes).map(Arc::from).map_err(|not_utf8| {
        // The core's words, and its order: a file that is also too large is refused for that.
        let reason =
            UnitFile::parse(bytes).err().map_or_else(|| not_utf8.to_string(), |error| error.to_string());
        UnitError { name: name.clone(), kind: UnitErrorKind::Invalid(vec![reason]) }
    })
}

/// The answer to a command.
///
/// # Errors
/// UNAVAILABLE where this scheduler does not lead any more: the client asks the leader, under the same id.
pub fn command_response(result: CommandResult) -> Result<v1::CommandResponse, Status> {
    use v1::command_error::Kind;
    use v1::command_response::Result as Outcome;
    let error = |kind| Outcome::Error(v1::CommandError { kind: Some(kind) });
    let result = match result {
        Ok(units) => Outcome::Done(v1::CommandDone { units: units.into_iter().map(Into::into).collect() }),
        Err(CommandError::Units(errors)) => {
            error(Kind::Units(v1::UnitErrors { errors: errors.into_iter().map(Into::into).collect() }))
        }
        Err(CommandError::Store(reason)) => error(Kind::Store(reason)),
        Err(not_leader @ CommandError::NotLeader) => return Err(Status::unavailable(not_leader.to_string())),
    };
    Ok(v1::CommandResponse { result: Some(result) })
}

impl TryFrom<v1::CommandResponse> for CommandResult {
    type Error = ConvertError;

    fn try_from(response: v1::CommandResponse) -> Result<Self, ConvertError> {
        use v1::command_error::Kind;
        use v1::command_response::Result as Outcome;
        Ok(match required("result", response.result)? {
            Outcome::Done(done) => Ok(each("units", done.units).map_err(|error| error.within("done"))?),
            Outcome::Error(error) => Err(match required("error.kind", error.kind)? {
                Kind::Units(units) => CommandError::Units(
                    each("errors", units.errors).map_err(|error| error.within("error.units"))?,
                ),
                Kind::Store(reason) => CommandError::Store(reason),
            }),
        })
    }
}

impl From<UnitOutcome> for v1::UnitOutcome {
    fn from(outcome: UnitOutcome) -> Self {
        Self {
            name: outcome.name.to_string(),
            done: v1::Done::from(outcome.done).into(),
            warnings: outcome.warnings,
        }
    }
}

impl TryFrom<v1::UnitOutcome> for UnitOutcome {
    type Error = ConvertError;

    fn try_from(outcome: v1::UnitOutcome) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name("name", &outcome.name)?,
            done: value("done", outcome.done)?,
            warnings: outcome.warnings,
        })
    }
}

impl From<UnitError> for v1::UnitError {
    fn from(error: UnitError) -> Self {
        use v1::unit_error::Kind;
        let kind = match error.kind {
            UnitErrorKind::NotFound => Kind::NotFound(v1::NotFound {}),
            UnitErrorKind::Invalid(reasons) => Kind::Invalid(v1::InvalidFile { reasons }),
            UnitErrorKind::Template(instance) => Kind::Template(instance),
            UnitErrorKind::Inactive(verb) => Kind::Inactive(verb),
            UnitErrorKind::InUse(desired, verb) => {
                Kind::InUse(v1::InUse { desired: v1::DesiredState::from(desired).into(), verb })
            }
        };
        Self { name: error.name.to_string(), kind: Some(kind) }
    }
}

impl TryFrom<v1::UnitError> for UnitError {
    type Error = ConvertError;

    fn try_from(error: v1::UnitError) -> Result<Self, ConvertError> {
        use v1::unit_error::Kind;
        Ok(Self {
            name: name("name", &error.name)?,
            kind: match required("kind", error.kind)? {
                Kind::NotFound(v1::NotFound {}) => UnitErrorKind::NotFound,
                Kind::Invalid(v1::InvalidFile { reasons }) => UnitErrorKind::Invalid(reasons),
                Kind::Template(instance) => UnitErrorKind::Template(instance),
                Kind::Inactive(verb) => UnitErrorKind::Inactive(verb),
                Kind::InUse(v1::InUse { desired, verb }) => {
                    UnitErrorKind::InUse(value("in_use.desired", desired)?, verb)
                }
            },
        })
    }
}

impl TryFrom<v1::UnitsRequest> for Query {
    type Error = ConvertError;

    fn try_from(request: v1::UnitsRequest) -> Result<Self, ConvertError> {
        let wanted = request.names.map(|wanted| names("names.names", &wanted.names)).transpose()?;
        Ok(Self::Units { names: wanted, content: request.content, reasons: request.reasons })
    }
}

impl From<Page> for v1::PageRequest {
    fn from(page: Page) -> Self {
        use v1::page_request::Rows as Wire;
        let rows = match page.rows {
            Rows::Units => Wire::Units(v1::KnownUnits {}),
            Rows::States { unit, machine } => Wire::States(v1::States {
                unit: unit.map(|unit| unit.to_string()),
                machine: machine.map(|machine| id(machine.bits())),
            }),
        };
        Self { skip: page.skip as u64, most: page.most as u64, rows: Some(rows) }
    }
}

impl TryFrom<v1::PageRequest> for Page {
    type Error = ConvertError;

    fn try_from(request: v1::PageRequest) -> Result<Self, ConvertError> {
        use v1::page_request::Rows as Wire;
        let rows = match required("rows", request.rows)? {
            Wire::Units(v1::KnownUnits {}) => Rows::Units,
            Wire::States(v1::States { unit, machine }) => Rows::States {
                unit: unit.map(|unit| name("states.unit", &unit)).transpose()?,
                machine: machine.map(|id| Ok(MachineId::new(bits("states.machine", &id)?))).transpose()?,
            },
        };
        Ok(Self { rows, skip: count("skip", request.skip)?, most: count("most", request.most)? })
    }
}

impl v1::WatchRequest {
    /// The units to watch.
    ///
    /// # Errors
    /// When one of them is no unit name.
    pub fn unit_names(&self) -> Result<Vec<UnitName>, ConvertError> {
        names("names", &self.names)
    }
}

impl v1::WatchPart {
    /// The units that are not known (any more).
    ///
    /// # Errors
    /// When one of them is no unit name.
    pub fn unknown_names(&self) -> Result<Vec<UnitName>, ConvertError> {
        names("unknown", &self.unknown)
    }
}

impl From<UnitStatus> for v1::UnitStatus {
    fn from(status: UnitStatus) -> Self {
        Self {
            name: status.name.to_string(),
            known: status.known,
            hash: hash_bytes(&status.hash),
            content: status.content.map(content_bytes),
            description: status.description,
            desired: v1::DesiredState::from(status.desired).into(),
            global: status.global,
            copies: status.copies.into_iter().map(Into::into).collect(),
            waiting: status.waiting.map(Into::into),
            trouble: status.trouble,
            done: status.done,
        }
    }
}

impl TryFrom<v1::UnitStatus> for UnitStatus {
    type Error = ConvertError;

    fn try_from(status: v1::UnitStatus) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name("name", &status.name)?,
            known: status.known,
            hash: hash("hash", &status.hash)?,
            content: status.content.map(|bytes| content("content", &bytes)).transpose()?,
            description: status.description,
            desired: value("desired", status.desired)?,
            global: status.global,
            copies: each("copies", status.copies)?,
            waiting: status.waiting.map(|waiting| message("waiting", Some(waiting))).transpose()?,
            trouble: status.trouble,
            done: status.done,
        })
    }
}

impl From<CopyStatus> for v1::CopyStatus {
    fn from(copy: CopyStatus) -> Self {
        Self {
            machine: id(copy.machine.bits()),
            epoch: Some(copy.epoch.into()),
            role: v1::CopyRole::from(copy.role).into(),
            observation: copy.observation.map(Into::into),
        }
    }
}

impl TryFrom<v1::CopyStatus> for CopyStatus {
    type Error = ConvertError;

    fn try_from(copy: v1::CopyStatus) -> Result<Self, ConvertError> {
        Ok(Self {
            machine: MachineId::new(bits("machine", &copy.machine)?),
            epoch: epoch("epoch", copy.epoch)?,
            role: value("role", copy.role)?,
            observation: copy.observation.map(|seen| message("observation", Some(seen))).transpose()?,
        })
    }
}

impl From<Waiting> for v1::Waiting {
    fn from(waiting: Waiting) -> Self {
        let reason = |(machine, reason): (MachineId, String)| v1::MachineReason {
            machine: id(machine.bits()),
            reason,
        };
        Self { reason: waiting.reason, machines: waiting.machines.into_iter().map(reason).collect() }
    }
}

impl TryFrom<v1::Waiting> for Waiting {
    type Error = ConvertError;

    fn try_from(waiting: v1::Waiting) -> Result<Self, ConvertError> {
        let reason = |(index, v1::MachineReason { machine, reason })| {
            Ok((MachineId::new(bits(&format!("machines[{index}].machine"), &machine)?), reason))
        };
        Ok(Self {
            reason: waiting.reason,
            machines: waiting.machines.into_iter().enumerate().map(reason).collect::<Result<_, _>>()?,
        })
    }
}

impl From<ClusterStatus> for v1::ClusterStatus {
    fn from(status: ClusterStatus) -> Self {
        Self {
            cluster: id(status.cluster.bits()),
            term: status.term.0,
            machines: status.machines.into_iter().map(Into::into).collect(),
            brake: status.brake.map(|brake| v1::Brake {
                machines: brake.machines.into_iter().map(|machine| id(machine.bits())).collect(),
                left_ms: brake.left_ms,
                held_ms: brake.held_ms,
            }),
        }
    }
}

impl TryFrom<v1::Brake> for BrakeStatus {
    type Error = ConvertError;

    fn try_from(brake: v1::Brake) -> Result<Self, ConvertError> {
        Ok(Self {
            machines: machines("machines", &brake.machines)?,
            held_ms: brake.held_ms,
            left_ms: brake.left_ms,
        })
    }
}

impl TryFrom<v1::ClusterStatus> for ClusterStatus {
    type Error = ConvertError;

    fn try_from(status: v1::ClusterStatus) -> Result<Self, ConvertError> {
        Ok(Self {
            cluster: ClusterId::new(bits("cluster", &status.cluster)?),
            term: Term(status.term),
            machines: each("machines", status.machines)?,
            brake: status.brake.map(|brake| message("brake", Some(brake))).transpose()?,
        })
    }
}

impl From<MachineStatus> for v1::MachineStatus {
    fn from(status: MachineStatus) -> Self {
        Self {
            id: id(status.id.bits()),
            address: status.record.address,
            labels: status.record.labels,
            capacity: Some(status.record.capacity.into()),
            version: status.record.version,
            boot: id(status.record.boot.bits()),
            key: id(status.record.key.bits()),
            restarting: status.record.restarting,
            lease_us: micros(status.record.lease),
            grace_us: micros(status.record.grace),
            state: v1::MachineState::from(status.state).into(),
            last_heard_ms: status.last_heard_ms,
            units: status.units as u64,
            orphans: status.orphans as u64,
            left: status.left.into_iter().map(Into::into).collect(),
            reserved: Some(status.reserved.into()),
            availability: Some(status.availability.into()),
            leaving: status.record.leaving,
            pressure: Some(status.pressure.into()),
            rival: status.rival.map(|rival| v1::Rival {
                address: rival.address,
                boot: id(rival.boot.bits()),
                last_heard_ms: rival.last_heard_ms,
            }),
            host_answers: status.host_answers,
        }
    }
}

impl TryFrom<v1::Rival> for RivalStatus {
    type Error = ConvertError;

    fn try_from(rival: v1::Rival) -> Result<Self, ConvertError> {
        Ok(Self {
            address: rival.address,
            boot: BootId::new(bits("boot", &rival.boot)?),
            last_heard_ms: rival.last_heard_ms,
        })
    }
}

impl From<Availability> for v1::Availability {
    fn from(availability: Availability) -> Self {
        use v1::availability::Decision;
        let decision = match availability {
            Availability::Open => Decision::Open(v1::Open {}),
            Availability::Cordoned => Decision::Cordoned(v1::Cordoned {}),
            Availability::Draining(Drain { timeout_ms, max_parallel }) => {
                Decision::Draining(v1::Drain { timeout_ms, max_parallel })
            }
        };
        Self { decision: Some(decision) }
    }
}

impl TryFrom<v1::Availability> for Availability {
    type Error = ConvertError;

    fn try_from(availability: v1::Availability) -> Result<Self, ConvertError> {
        use v1::availability::Decision;
        Ok(match required("decision", availability.decision)? {
            Decision::Open(v1::Open {}) => Self::Open,
            Decision::Cordoned(v1::Cordoned {}) => Self::Cordoned,
            Decision::Draining(v1::Drain { timeout_ms, max_parallel }) => {
                Self::Draining(Drain { timeout_ms, max_parallel })
            }
        })
    }
}

impl From<MachineCommand> for v1::MachinesChange {
    fn from(command: MachineCommand) -> Self {
        Self {
            id: id(command.id.bits()),
            machines: ids(&command.machines),
            availability: Some(command.availability.into()),
        }
    }
}

impl TryFrom<v1::MachinesChange> for MachineCommand {
    type Error = ConvertError;

    fn try_from(change: v1::MachinesChange) -> Result<Self, ConvertError> {
        Ok(Self {
            id: CommandId::new(bits("id", &change.id)?),
            machines: machines("machines", &change.machines)?,
            availability: message("availability", change.availability)?,
        })
    }
}

impl From<Vec<LabelEdit>> for v1::LabelEdits {
    fn from(edits: Vec<LabelEdit>) -> Self {
        let edit =
            |LabelEdit { machine, key, value }| v1::LabelEdit { machine: id(machine.bits()), key, value };
        Self { edits: edits.into_iter().map(edit).collect() }
    }
}

impl TryFrom<v1::LabelEdits> for Vec<LabelEdit> {
    type Error = ConvertError;

    fn try_from(edits: v1::LabelEdits) -> Result<Self, ConvertError> {
        each("edits", edits.edits)
    }
}

impl TryFrom<v1::LabelEdit> for LabelEdit {
    type Error = ConvertError;

    fn try_from(edit: v1::LabelEdit) -> Result<Self, ConvertError> {
        let v1::LabelEdit { machine, key, value } = edit;
        Ok(Self { machine: MachineId::new(bits("machine", &machine)?), key, value })
    }
}

impl v1::MachinesRequest {
    /// With what is left on these machines.
    pub fn of(left_on: &[MachineId]) -> Self {
        Self { left_on: ids(left_on) }
    }

    /// These.
    ///
    /// # Errors
    /// When one of them is no machine's id.
    pub fn machines(&self) -> Result<Vec<MachineId>, ConvertError> {
        machines("left_on", &self.left_on)
    }
}

impl From<Option<Vec<MachineId>>> for v1::ReleaseBrakeResponse {
    fn from(released: Option<Vec<MachineId>>) -> Self {
        Self { held: released.is_some(), machines: ids(&released.unwrap_or_default()) }
    }
}

impl v1::ReleaseBrakeResponse {
    /// The machines that count as dead for that, where the brake was held.
    ///
    /// # Errors
    /// When one of them is no machine's id.
    pub fn released(&self) -> Result<Option<Vec<MachineId>>, ConvertError> {
        self.held.then(|| machines("machines", &self.machines)).transpose()
    }
}

fn count(field: &str, number: u64) -> Result<usize, ConvertError> {
    usize::try_from(number).map_err(|_| ConvertError::new(field, Problem::TooLarge(number)))
}

fn ids(machines: &[MachineId]) -> Vec<Bytes> {
    machines.iter().map(|machine| id(machine.bits())).collect()
}

fn machines(field: &str, ids: &[Bytes]) -> Result<Vec<MachineId>, ConvertError> {
    ids.iter().map(|id| Ok(MachineId::new(bits(field, id)?))).collect()
}

impl From<Left> for v1::Left {
    fn from(left: Left) -> Self {
        Self { unit: left.unit.to_string(), why: left.why, stops: left.stops }
    }
}

impl TryFrom<v1::Left> for Left {
    type Error = ConvertError;

    fn try_from(left: v1::Left) -> Result<Self, ConvertError> {
        Ok(Self { unit: name("unit", &left.unit)?, why: left.why, stops: left.stops })
    }
}

impl TryFrom<v1::MachineStatus> for MachineStatus {
    type Error = ConvertError;

    fn try_from(status: v1::MachineStatus) -> Result<Self, ConvertError> {
        Ok(Self {
            id: MachineId::new(bits("id", &status.id)?),
            record: MachineRecord {
                address: status.address,
                labels: status.labels,
                capacity: required("capacity", status.capacity)?.into(),
                version: status.version,
                boot: BootId::new(bits("boot", &status.boot)?),
                key: AgentKey::new(bits("key", &status.key)?),
                restarting: status.restarting,
                leaving: status.leaving,
                lease: Duration::from_micros(status.lease_us),
                grace: Duration::from_micros(status.grace_us),
            },
            state: value("state", status.state)?,
            last_heard_ms: status.last_heard_ms,
            units: count("units", status.units)?,
            orphans: count("orphans", status.orphans)?,
            left: each("left", status.left)?,
            reserved: required("reserved", status.reserved)?.into(),
            availability: message("availability", status.availability)?,
            pressure: status.pressure.unwrap_or_default().into(),
            rival: status.rival.map(|rival| message("rival", Some(rival))).transpose()?,
            host_answers: status.host_answers,
        })
    }
}
