//! What can be said of the schedulers and of etcd, whoever leads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_core::ids::Term;
use muster_etcd::{Client, pb};
use muster_proto::RegisteredScheduler;

use super::Standing;
use super::keys::{Keys, op};
use super::mirror::{self, LeaderRecord, ReadError, SchedulerRecord};

/// How long the questions may take, which are asked together: who asks waits for the answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Asks etcd for whoever wants to know.
#[derive(Clone, Debug)]
pub struct Observer {
    pub(super) client: Arc<Client>,
    pub(super) keys: Keys,
    pub(super) standing: Arc<Mutex<Standing>>,
}

/// What etcd says, of itself and of the schedulers.
#[derive(Debug)]
pub struct Observed {
    /// Who leads.
    pub leader: Option<LeaderRecord>,
    /// The last term that was taken.
    pub term: Term,
    /// The schedulers that run, in the order of their addresses.
    pub schedulers: Vec<RegisteredScheduler>,
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
    /// Of the cluster below this prefix.
    pub fn new(client: Arc<Client>, prefix: &str) -> Self {
        Self { client, keys: Keys::new(prefix), standing: Arc::default() }
    }

    /// Where etcd is.
    pub fn endpoints(&self) -> String {
        self.client.endpoints().collect::<Vec<_>>().join(", ")
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
        let read = [self.keys.leader(), self.keys.term()].map(op::get).into();
        let read = pb::TxnRequest { success: read, ..Default::default() };
        let count = pb::RangeRequest { count_only: true, ..self.keys.entries_after(applied) };
        let (answer, there, behind) = tokio::try_join!(
            self.client.txn(read, ANSWER),
            self.client.range(self.keys.schedulers(), ANSWER),
            self.client.range(count, ANSWER),
        )?;
        let mut values = op::values(answer).into_iter();
        let (leader, term) = (values.next().flatten(), values.next().flatten());
        let leader = leader.as_ref().map(mirror::json).transpose().map_err(wrong)?;
        let term = term.and_then(|kv| String::from_utf8_lossy(&kv.value).parse().ok());
        let schedulers: Result<Vec<SchedulerRecord>, _> = there.kvs.iter().map(mirror::json).collect();
        let schedulers = schedulers.map_err(wrong)?.into_iter();
        let mut schedulers: Vec<_> =
            schedulers.map(|it| RegisteredScheduler { address: it.address, version: it.version }).collect();
        schedulers.sort_by(|a, b| a.address.cmp(&b.address));
        let behind = behind.count.unsigned_abs();
        Ok(Observed { leader, term: Term(term.unwrap_or_default()), schedulers, behind })
    }

    /// What each member of etcd says of itself, and which alarms are raised.
    pub async fn health(&self) -> (Vec<MemberHealth>, Vec<pb::AlarmMember>) {
        let (members, alarms) = tokio::join!(self.client.status(ANSWER), self.client.alarms(ANSWER));
        let members = members.into_iter().map(|(endpoint, status)| MemberHealth {
            endpoint: endpoint.to_owned(),
            status: status.map_err(|error| match error {
                muster_etcd::Error::Unauthenticated { problem, .. }
                | muster_etcd::Error::Unanswered { problem, .. } => problem,
                other => other.to_string(),
            }),
        });
        (members.collect(), alarms.unwrap_or_default())
    }
}
