//! Conversions of what leader and agent say to each other, apart from the cutting into parts.

use std::time::Duration;

use muster_core::ids::{AgentKey, BootId, ClusterId, MachineId, SessionNumber, Term};
use muster_core::message::{
    Assignment, Goodbye, HeldUnit, Hello, Refused, Removal, ReportedChange, UnitReport, Welcome,
};
use muster_core::state::Target;

use crate::error::ConvertError;
use crate::types::{
    bits, content, content_bytes, each, enumeration, epoch, hash, hash_bytes, id, message, micros, name,
    required, value,
};
use crate::v1;

enumeration!(Target, v1::Target, [Loaded, Launched]);
enumeration!(Goodbye, v1::Goodbye, [Restart, Shutdown]);

impl From<Hello> for v1::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            cluster: hello.cluster.map(|cluster| id(cluster.bits())),
            machine: id(hello.machine.bits()),
            boot: id(hello.boot.bits()),
            key: id(hello.key.bits()),
            session: hello.session.0,
            term: hello.term.0,
            address: hello.address,
            labels: hello.labels,
            capacity: Some(hello.capacity.into()),
            version: hello.version,
            units: hello.units.into_iter().map(Into::into).collect(),
            more: false,
            pid1_age_us: micros(hello.pid1_age),
            leaving: hello.leaving,
            streams: hello.streams.map(Into::into),
        }
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = ConvertError;

    fn try_from(hello: v1::Hello) -> Result<Self, ConvertError> {
        let cluster = hello.cluster.map(|cluster| bits("cluster", &cluster)).transpose()?;
        Ok(Self {
            cluster: cluster.map(ClusterId::new),
            machine: MachineId::new(bits("machine", &hello.machine)?),
            boot: BootId::new(bits("boot", &hello.boot)?),
            key: AgentKey::new(bits("key", &hello.key)?),
            session: SessionNumber(hello.session),
            term: Term(hello.term),
            address: hello.address,
            labels: hello.labels,
            capacity: required("capacity", hello.capacity)?.into(),
            version: hello.version,
            pid1_age: Duration::from_micros(hello.pid1_age_us),
            leaving: hello.leaving,
            streams: hello.streams.map(Into::into),
            units: each("units", hello.units)?,
        })
    }
}

impl From<HeldUnit> for v1::HeldUnit {
    fn from(unit: HeldUnit) -> Self {
        Self {
            name: unit.name.to_string(),
            epoch: Some(unit.epoch.into()),
            hash: hash_bytes(&unit.hash),
            target: v1::Target::from(unit.target).into(),
            observation: Some(unit.observation.into()),
        }
    }
}

impl TryFrom<v1::HeldUnit> for HeldUnit {
    type Error = ConvertError;

    fn try_from(unit: v1::HeldUnit) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name("name", &unit.name)?,
            epoch: epoch("epoch", unit.epoch)?,
            hash: hash("hash", &unit.hash)?,
            target: value("target", unit.target)?,
            observation: message("observation", unit.observation)?,
        })
    }
}

impl From<UnitReport> for v1::UnitReport {
    fn from(report: UnitReport) -> Self {
        use v1::unit_report::Change;
        let change = match report.change {
            ReportedChange::Observed(observation) => Change::Observed(observation.into()),
            ReportedChange::Gone => Change::Gone(v1::Gone {}),
            ReportedChange::Stale(epoch) => Change::Stale(epoch.into()),
        };
        Self { name: report.name.to_string(), epoch: Some(report.epoch.into()), change: Some(change) }
    }
}

impl TryFrom<v1::UnitReport> for UnitReport {
    type Error = ConvertError;

    fn try_from(report: v1::UnitReport) -> Result<Self, ConvertError> {
        use v1::unit_report::Change;
        Ok(Self {
            name: name("name", &report.name)?,
            epoch: epoch("epoch", report.epoch)?,
            change: match required("change", report.change)? {
                Change::Observed(observation) => {
                    ReportedChange::Observed(message("observed", Some(observation))?)
                }
                Change::Gone(v1::Gone {}) => ReportedChange::Gone,
                Change::Stale(epoch) => ReportedChange::Stale(epoch.into()),
            },
        })
    }
}

impl From<Welcome> for v1::Welcome {
    fn from(welcome: Welcome) -> Self {
        Self {
            cluster: id(welcome.cluster.bits()),
            heartbeat_interval_us: micros(welcome.heartbeat_interval),
            lease_ttl_us: micros(welcome.lease_ttl),
        }
    }
}

impl TryFrom<v1::Welcome> for Welcome {
    type Error = ConvertError;

    fn try_from(welcome: v1::Welcome) -> Result<Self, ConvertError> {
        Ok(Self {
            cluster: ClusterId::new(bits("cluster", &welcome.cluster)?),
            heartbeat_interval: Duration::from_micros(welcome.heartbeat_interval_us),
            lease_ttl: Duration::from_micros(welcome.lease_ttl_us),
        })
    }
}

impl From<Refused> for v1::Refused {
    fn from(refused: Refused) -> Self {
        use v1::refused::Reason;
        let reason = match refused {
            Refused::OtherCluster { theirs, ours } => {
                Reason::OtherCluster(v1::OtherCluster { theirs: id(theirs.bits()), ours: id(ours.bits()) })
            }
            Refused::HigherTermSeen(term) => Reason::HigherTermSeen(term.0),
            Refused::LeaseEnded => Reason::LeaseEnded(v1::LeaseEnded {}),
            Refused::Replaced => Reason::Replaced(v1::Replaced {}),
            Refused::SystemdSilent(age) => Reason::SystemdSilentUs(micros(age)),
            Refused::IdInUse { address } => Reason::IdInUse(address),
        };
        Self { reason: Some(reason) }
    }
}

impl TryFrom<v1::Refused> for Refused {
    type Error = ConvertError;

    fn try_from(refused: v1::Refused) -> Result<Self, ConvertError> {
        use v1::refused::Reason;
        Ok(match required("reason", refused.reason)? {
            Reason::OtherCluster(v1::OtherCluster { theirs, ours }) => Self::OtherCluster {
                theirs: ClusterId::new(bits("other_cluster.theirs", &theirs)?),
                ours: ClusterId::new(bits("other_cluster.ours", &ours)?),
            },
            Reason::HigherTermSeen(term) => Self::HigherTermSeen(Term(term)),
            Reason::LeaseEnded(v1::LeaseEnded {}) => Self::LeaseEnded,
            Reason::Replaced(v1::Replaced {}) => Self::Replaced,
            Reason::SystemdSilentUs(age) => Self::SystemdSilent(Duration::from_micros(age)),
            Reason::IdInUse(address) => Self::IdInUse { address },
        })
    }
}

impl From<Assignment> for v1::Assignment {
    fn from(assignment: Assignment) -> Self {
        Self {
            name: assignment.name.to_string(),
            epoch: Some(assignment.epoch.into()),
            hash: hash_bytes(&assignment.hash),
            content: assignment.content.map(content_bytes),
            target: v1::Target::from(assignment.target).into(),
            exclusive_us: assignment.exclusive.map(micros),
        }
    }
}

impl TryFrom<v1::Assignment> for Assignment {
    type Error = ConvertError;

    fn try_from(assignment: v1::Assignment) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name("name", &assignment.name)?,
            epoch: epoch("epoch", assignment.epoch)?,
            hash: hash("hash", &assignment.hash)?,
            content: assignment.content.map(|bytes| content("content", &bytes)).transpose()?,
            target: value("target", assignment.target)?,
            exclusive: assignment.exclusive_us.map(Duration::from_micros),
        })
    }
}

impl From<Removal> for v1::Removal {
    fn from(removal: Removal) -> Self {
        Self { name: removal.name.to_string(), epoch: Some(removal.epoch.into()) }
    }
}

impl TryFrom<v1::Removal> for Removal {
    type Error = ConvertError;

    fn try_from(removal: v1::Removal) -> Result<Self, ConvertError> {
        Ok(Self { name: name("name", &removal.name)?, epoch: epoch("epoch", removal.epoch)? })
    }
}
