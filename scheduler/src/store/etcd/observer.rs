//! What can be said of the schedulers and of etcd, whoever leads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_etcd::{Client, pb};

use super::Standing;
use super::keys::Keys;
use super::mirror::{self, LeaderRecord, ReadError, SchedulerRecord};

/// How long each question may take: who asks waits for the answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Asks etcd for whoever wants to know.
#[derive(Clone, Debug)]
pub struct Observer {
    client: Arc<Client>,
    keys: Keys,
    standing: Arc<Mutex<Standing>>,
}

/// What etcd says, of itself and of the schedulers.
#[derive(Debug)]
pub struct Observed {
    /// Who leads.
    pub leader: Option<LeaderRecord>,
    /// The schedulers that run, in the order of their addresses.
    pub schedulers: Vec<SchedulerRecord>,
    /// How many entries of the log this scheduler has not taken in, where it does not lead.
    pub behind: u64,
}

/// What one member says of itself.
#[derive(Debug)]
pub struct MemberHealth {
    /// Its URL for clients.
    pub endpoint: String,
    /// Its version and so on, or why it says nothing.
    pub status: Result<pb::StatusResponse, String>,
}

impl Observer {
    pub(super) fn new(client: Arc<Client>, keys: Keys, standing: Arc<Mutex<Standing>>) -> Self {
        Self { client, keys, standing }
    }

    /// What this scheduler knows for as long as it does not lead.
    pub fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks who leads, who else is there, and how far behind this scheduler is.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn ask(&self) -> Result<Observed, ReadError> {
        let wrong = |problem| mirror::wrong(&self.keys, problem);
        let applied = self.standing().applied;
        let key = pb::RangeRequest { key: self.keys.leader().into(), ..Default::default() };
        let leader = self.client.range(key, ANSWER).await?.kvs.first().map(mirror::json).transpose();
        let there = self.client.range(self.keys.schedulers(), ANSWER).await?;
        let schedulers: Result<Vec<SchedulerRecord>, _> = there.kvs.iter().map(mirror::json).collect();
        let mut schedulers = schedulers.map_err(wrong)?;
        schedulers.sort_by(|a, b| a.address.cmp(&b.address));
        let count = pb::RangeRequest { count_only: true, ..self.keys.entries_after(applied) };
        let behind = self.client.range(count, ANSWER).await?.count.unsigned_abs();
        Ok(Observed { leader: leader.map_err(wrong)?, schedulers, behind })
    }

    /// What each member of etcd says of itself, and which alarms are raised.
    pub async fn health(&self) -> (Vec<MemberHealth>, Vec<pb::AlarmMember>) {
        let members = self.client.status(ANSWER).await.into_iter().map(|(endpoint, status)| MemberHealth {
            endpoint: endpoint.to_owned(),
            status: status.map_err(|error| match error {
                muster_etcd::Error::Unanswered { problem, .. } => problem,
                other => other.to_string(),
            }),
        });
        let members = members.collect();
        (members, self.client.alarms(ANSWER).await.unwrap_or_default())
    }
}
