//! What a scheduler says of itself. The core knows of one leader only, so that these types are here.

use muster_core::ids::{ClusterId, Term};

use crate::error::ConvertError;
use crate::types::{bits, enumeration, id, required, value};
use crate::v1;

/// What a scheduler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedulerRole {
    /// It leads.
    Leading,
    /// It does not, and knows who does.
    Following,
    /// It knows of none that leads.
    Waiting,
}

enumeration!(SchedulerRole, v1::SchedulerRole, [Leading, Following, Waiting]);

/// One scheduler, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerStatus {
    /// Where agents and clients reach it, as `HOST:PORT`.
    pub address: String,
    /// Its version.
    pub version: String,
    /// The cluster; `None` as long as it has not read its store.
    pub cluster: Option<ClusterId>,
    /// What it does.
    pub role: SchedulerRole,
    /// The term of the one that leads, as far as this one knows; 0 where it knows of none.
    pub term: Term,
    /// Where the one that leads listens, where it is known.
    pub leader: Option<String>,
    /// Since when that one leads, in ms of Unix time, where that is known.
    pub since_ms: Option<u64>,
    /// How many entries of the store's log it has not applied yet; 0 of the one that leads.
    pub behind: u64,
    /// All schedulers that are registered in the store, this one among them.
    pub registered: Vec<RegisteredScheduler>,
    /// The store, as it is seen from there.
    pub store: StoreStatus,
}

/// A scheduler that has registered itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredScheduler {
    /// Where agents and clients reach it, as `HOST:PORT`.
    pub address: String,
    /// Its version.
    pub version: String,
}

/// How a scheduler's store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreStatus {
    /// A file of its own.
    Embedded,
    /// An etcd cluster, with the members that the scheduler is configured with.
    Etcd(Vec<EtcdMember>),
}

/// A member of an etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdMember {
    /// Where it was asked.
    pub endpoint: String,
    /// What is wrong with it, in words; `None` where it is healthy.
    pub problem: Option<String>,
    /// What it says of itself; `None` where it does not answer.
    pub answer: Option<EtcdAnswer>,
}

/// What a member of an etcd cluster says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAnswer {
    /// Its version.
    pub version: String,
    /// How large its database is, in bytes.
    pub db_bytes: u64,
    /// How large that may become, in bytes; etcd says so from 3.6 on.
    pub quota_bytes: Option<u64>,
    /// Whether it leads the etcd cluster.
    pub leads: bool,
    /// The alarms that are raised, for example `NOSPACE`.
    pub alarms: Vec<String>,
}

impl From<SchedulerStatus> for v1::SchedulerStatus {
    fn from(status: SchedulerStatus) -> Self {
        use v1::scheduler_status::Store;
        Self {
            address: status.address,
            version: status.version,
            cluster: status.cluster.map(|cluster| id(cluster.bits())),
            role: v1::SchedulerRole::from(status.role).into(),
            term: status.term.0,
            leader: status.leader,
            since_ms: status.since_ms,
            behind: status.behind,
            registered: status.registered.into_iter().map(Into::into).collect(),
            store: Some(match status.store {
                StoreStatus::Embedded => Store::Embedded(v1::EmbeddedStore {}),
                StoreStatus::Etcd(members) => {
                    Store::Etcd(v1::EtcdStore { members: members.into_iter().map(Into::into).collect() })
                }
            }),
        }
    }
}

impl TryFrom<v1::SchedulerStatus> for SchedulerStatus {
    type Error = ConvertError;

    fn try_from(status: v1::SchedulerStatus) -> Result<Self, ConvertError> {
        Ok(Self {
            address: status.address,
            version: status.version,
            cluster: status.cluster.map(|id| bits("cluster", &id).map(ClusterId::new)).transpose()?,
            role: value("role", status.role)?,
            term: Term(status.term),
            leader: status.leader,
            since_ms: status.since_ms,
            behind: status.behind,
            registered: status.registered.into_iter().map(Into::into).collect(),
            store: required("store", status.store)?.into(),
        })
    }
}

impl From<v1::scheduler_status::Store> for StoreStatus {
    fn from(store: v1::scheduler_status::Store) -> Self {
        use v1::scheduler_status::Store;
        match store {
            Store::Embedded(v1::EmbeddedStore {}) => Self::Embedded,
            Store::Etcd(v1::EtcdStore { members }) => {
                Self::Etcd(members.into_iter().map(Into::into).collect())
            }
        }
    }
}

impl From<RegisteredScheduler> for v1::RegisteredScheduler {
    fn from(RegisteredScheduler { address, version }: RegisteredScheduler) -> Self {
        Self { address, version }
    }
}

impl From<v1::RegisteredScheduler> for RegisteredScheduler {
    fn from(v1::RegisteredScheduler { address, version }: v1::RegisteredScheduler) -> Self {
        Self { address, version }
    }
}

impl From<EtcdMember> for v1::EtcdMember {
    fn from(EtcdMember { endpoint, problem, answer }: EtcdMember) -> Self {
        Self { endpoint, problem, answer: answer.map(Into::into) }
    }
}

impl From<v1::EtcdMember> for EtcdMember {
    fn from(v1::EtcdMember { endpoint, problem, answer }: v1::EtcdMember) -> Self {
        Self { endpoint, problem, answer: answer.map(Into::into) }
    }
}

impl From<EtcdAnswer> for v1::EtcdAnswer {
    fn from(EtcdAnswer { version, db_bytes, quota_bytes, leads, alarms }: EtcdAnswer) -> Self {
        Self { version, db_bytes, quota_bytes, leads, alarms }
    }
}

impl From<v1::EtcdAnswer> for EtcdAnswer {
    fn from(v1::EtcdAnswer { version, db_bytes, quota_bytes, leads, alarms }: v1::EtcdAnswer) -> Self {
        Self { version, db_bytes, quota_bytes, leads, alarms }
    }
}
