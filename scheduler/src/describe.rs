//! What this scheduler says of itself, whether it leads or not, and that it is asked to step down.

use std::sync::Arc;

use muster_core::ids::Term;
use muster_etcd::pb;
use muster_proto::v1::schedulers_server::Schedulers;
use muster_proto::{
    EtcdAnswer, EtcdMember, RegisteredScheduler, SchedulerRole, SchedulerStatus, StoreStatus, not_leading, v1,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::front::{Front, Role};
use crate::lead::stopped;
use crate::store::etcd::{MemberHealth, Observer};

/// Somebody wants who leads in this term to step down, and waits until it has.
#[derive(Debug)]
pub(crate) struct StepDown {
    pub(crate) term: Term,
    /// What etcd said to that.
    pub(crate) done: oneshot::Sender<Result<(), muster_etcd::Error>>,
}

/// Where what is known of this scheduler is found.
#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) address: String,
    pub(crate) front: Arc<Front>,
    /// Where there may be others: what etcd says, and who takes the wish that it steps down.
    pub(crate) others: Option<(Observer, mpsc::Sender<StepDown>)>,
}

impl Description {
    async fn status(&self) -> SchedulerStatus {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let own = RegisteredScheduler { address: self.address.clone(), version: version.clone() };
        let mut status = SchedulerStatus {
            address: self.address.clone(),
            version,
            cluster: None,
            role: SchedulerRole::Waiting,
            term: Term::default(),
            leader: None,
            since_ms: None,
            behind: 0,
            registered: vec![own],
            store: StoreStatus::Embedded,
        };
        match self.front.role() {
            Role::Leads(leading) => {
                status.role = SchedulerRole::Leading;
                status.cluster = Some(leading.cluster);
                status.term = leading.term();
                status.leader = Some(self.address.clone());
                status.since_ms = Some(leading.since_ms);
            }
            Role::Follows { leader: Some(leader) } => {
                status.role = SchedulerRole::Following;
                status.leader = Some(leader);
            }
            Role::Follows { leader: None } => {}
        }
        if let Some((observer, _)) = &self.others {
            observe(observer, &mut status).await;
        }
        status
    }

    /// Has the scheduler that leads in this term step down.
    async fn step_down(&self, term: u64) -> Result<(), Status> {
        let status = self.status().await;
        if status.role != SchedulerRole::Leading || status.term.0 != term {
            return Err(not_leading(status.leader.as_deref().filter(|leader| *leader != status.address)));
        }
        let Some((_, wishes)) = &self.others else {
            return Err(Status::failed_precondition(
                "it has its store to itself (state_dir), so that no other scheduler could lead; stop \
                 muster-scheduler.service to have nobody lead",
            ));
        };
        if status.registered.iter().all(|other| other.address == status.address) {
            return Err(Status::failed_precondition(
                "no other scheduler is registered in its store that could lead",
            ));
        }
        let (done, stepped_down) = oneshot::channel();
        let wish = StepDown { term: Term(term), done };
        wishes.send(wish).await.map_err(|_| stopped())?;
        // By the time that the wish is read this scheduler may lead no more, or again in another term.
        stepped_down.await.map_err(|_| not_leading(None))?.map_err(|error| {
            Status::unavailable(format!(
                "it leads no more, but etcd could not be told so ({error}): another scheduler is elected once its election \
                 is over there"
            ))
        })
    }
}

/// Takes in what etcd says.
async fn observe(observer: &Observer, status: &mut SchedulerStatus) {
    let standing = observer.standing();
    status.cluster = status.cluster.or(standing.cluster);
    let (observed, (members, alarms)) = tokio::join!(observer.ask(), observer.health());
    if let Ok(observed) = observed {
        status.registered = observed.schedulers;
        if status.role != SchedulerRole::Leading {
            status.behind = observed.behind;
        }
        if let Some(leader) = observed.leader.filter(|_| status.role == SchedulerRole::Following) {
            status.term = observed.term;
            status.since_ms = Some(leader.since_ms);
        }
    }
    status.store = StoreStatus::Etcd(members.into_iter().map(|member| described(member, &alarms)).collect());
}

fn described(member: MemberHealth, alarms: &[pb::AlarmMember]) -> EtcdMember {
    let MemberHealth { endpoint, status } = member;
    let status = match status {
        Ok(status) => status,
        Err(problem) => return EtcdMember { endpoint, problem: Some(problem), answer: None },
    };
    let id = status.header.as_ref().map_or(0, |header| header.member_id);
    let raised = alarms.iter().filter(|alarm| alarm.member_id == id);
    let alarms: Vec<String> = raised.map(|alarm| alarm.alarm().as_str_name().to_owned()).collect();
    let problem = if status.leader == 0 {
        Some("it has lost the other members".to_owned())
    } else if alarms.is_empty() {
        status.errors.first().cloned()
    } else {
        Some(format!("alarm {}", alarms.join(", ")))
    };
    let answer = EtcdAnswer {
        version: status.version,
        db_bytes: status.db_size.unsigned_abs(),
        quota_bytes: Some(status.db_size_quota.unsigned_abs()).filter(|quota| *quota > 0),
        leads: status.leader == id && id != 0,
        alarms,
    };
    EtcdMember { endpoint, problem, answer: Some(answer) }
}

/// The service that every scheduler answers for itself.
#[derive(Debug)]
pub(crate) struct SchedulersService(pub(crate) Description);

#[tonic::async_trait]
impl Schedulers for SchedulersService {
    async fn describe(
        &self,
        _request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::SchedulerStatus>, Status> {
        Ok(Response::new(self.0.status().await.into()))
    }

    async fn step_down(
        &self,
        request: Request<v1::StepDownRequest>,
    ) -> Result<Response<v1::StepDownResponse>, Status> {
        self.0.step_down(request.get_ref().term).await?;
        Ok(Response::new(v1::StepDownResponse {}))
    }
}
