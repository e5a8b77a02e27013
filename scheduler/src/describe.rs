//! What this scheduler says of itself, whether it leads or not, and that it is asked to step down.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_proto::v1::schedulers_server::Schedulers;
use muster_proto::{SchedulerRole, SchedulerStatus, StoreStatus, not_leading, v1};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::lead::stopped;

/// Somebody wants the leader to step down, and waits until it has, or hears why it does not.
pub(crate) type StepDown = oneshot::Sender<Result<(), Status>>;

/// What is known of this scheduler, by whoever finds it out.
#[derive(Debug)]
pub(crate) struct Description {
    status: Mutex<SchedulerStatus>,
    /// Who takes such a wish; nobody where the store is this scheduler's alone.
    step_down: Option<mpsc::Sender<StepDown>>,
}

impl Description {
    pub(crate) fn new(status: SchedulerStatus, step_down: Option<mpsc::Sender<StepDown>>) -> Self {
        Self { status: Mutex::new(status), step_down }
    }

    /// Something about it is different from now on.
    pub(crate) fn update(&self, change: impl FnOnce(&mut SchedulerStatus)) {
        change(&mut self.lock());
    }

    pub(crate) fn status(&self) -> SchedulerStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, SchedulerStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the scheduler that leads in this term step down.
    async fn step_down(&self, term: u64) -> Result<(), Status> {
        let status = self.status();
        if status.role != SchedulerRole::Leading || status.term.0 != term {
            return Err(not_leading(status.leader.as_deref().filter(|leader| *leader != status.address)));
        }
        let Some(wishes) = self.step_down.as_ref().filter(|_| status.store != StoreStatus::Embedded) else {
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
        wishes.send(done).await.map_err(|_| stopped())?;
        stepped_down.await.map_err(|_| stopped())?
    }
}

/// The service that every scheduler answers for itself.
#[derive(Debug)]
pub(crate) struct SchedulersService(pub(crate) Arc<Description>);

#[tonic::async_trait]
impl Schedulers for SchedulersService {
    async fn describe(
        &self,
        _request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::SchedulerStatus>, Status> {
        Ok(Response::new(self.0.status().into()))
    }

    async fn step_down(
        &self,
        request: Request<v1::StepDownRequest>,
    ) -> Result<Response<v1::StepDownResponse>, Status> {
        self.0.step_down(request.get_ref().term).await?;
        Ok(Response::new(v1::StepDownResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use muster_core::ids::Term;
    use muster_proto::{RegisteredScheduler, is_not_leading, leader_of};
    use tonic::Code;

    use super::*;

    fn leading(others: &[&str]) -> SchedulerStatus {
        let registered = [&["here:1"], others].concat().into_iter();
        SchedulerStatus {
            address: "here:1".to_owned(),
            version: "0".to_owned(),
            cluster: None,
            role: SchedulerRole::Leading,
            term: Term(3),
            leader: Some("here:1".to_owned()),
            since_ms: None,
            behind: 0,
            registered: registered
                .map(|address| RegisteredScheduler { address: address.to_owned(), version: "0".to_owned() })
                .collect(),
            store: StoreStatus::Etcd(Vec::new()),
        }
    }

    #[tokio::test]
    async fn nobody_steps_down_for_nobody() {
        let (wishes, _taken) = mpsc::channel(1);
        let alone = Description::new(leading(&[]), Some(wishes));
        let refused = alone.step_down(3).await.expect_err("refused");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let own = Description::new(SchedulerStatus { store: StoreStatus::Embedded, ..leading(&[]) }, None);
        let refused = own.step_down(3).await.expect_err("refused");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    }

    #[tokio::test]
    async fn only_the_leader_of_that_term_steps_down() {
        let (wishes, mut taken) = mpsc::channel::<StepDown>(1);
        let description = Description::new(leading(&["there:1"]), Some(wishes));
        let refused = description.step_down(2).await.expect_err("refused");
        assert!(is_not_leading(&refused) && leader_of(&refused).is_none(), "{refused}");
        let answer = async { taken.recv().await.expect("a wish").send(Ok(())) };
        let (stepped_down, _) = tokio::join!(description.step_down(3), answer);
        stepped_down.expect("it did");
        description.update(|status| {
            status.role = SchedulerRole::Following;
            status.leader = Some("there:1".to_owned());
        });
        let refused = description.step_down(3).await.expect_err("refused");
        assert_eq!(leader_of(&refused).as_deref(), Some("there:1"));
    }
}
