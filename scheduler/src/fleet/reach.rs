//! The leader, wherever it is: fleetctl goes to one scheduler only, so one that follows asks the leader for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_core::command::{
    ClusterStatus, Command, CommandError, CommandResult, LabelEdit, Page, Query, QueryAnswer, UnitStatus,
};
use muster_core::unit::UnitName;
use muster_proto::v1::muster_client::MusterClient;
use muster_proto::{ConvertError, MAX_MESSAGE_BYTES, v1};
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::api::{machine_status, other_answer};
use crate::front::{Front, Role};
use crate::lead::{Answer, Ask, LeaderHandle};

/// How long a request waits for a scheduler that leads: as long as an election takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon it is looked for again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long connecting to it may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// After this long without a word from it, it is asked whether it is there, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Who is asked.
enum Leader {
    Here(LeaderHandle),
    There(MusterClient<Channel>),
}

/// What the API asks of the leader.
#[derive(Debug)]
pub(super) struct Reach {
    front: Arc<Front>,
    /// The connection to another scheduler, and where that is.
    dialled: Mutex<Option<(String, Channel)>>,
}

impl Reach {
    pub(super) fn new(front: Arc<Front>) -> Self {
        Self { front, dialled: Mutex::default() }
    }

    /// Since when this scheduler leads, in s since 1970.
    pub(super) fn leads_since(&self) -> Option<f64> {
        match self.front.role() {
            #[expect(clippy::cast_precision_loss, reason = "a time in ms fits")]
            Role::Leads(leading) => Some(leading.since_ms as f64 / 1000.0),
            Role::Follows { .. } => None,
        }
    }

    /// These units, with their files.
    pub(super) async fn units(&self, names: Vec<UnitName>) -> Result<Vec<UnitStatus>, Status> {
        self.list(Query::Units { names: Some(names), content: true, reasons: false }).await
    }

    /// A page of units, with their files.
    pub(super) async fn page(&self, page: Page) -> Result<Vec<UnitStatus>, Status> {
        self.list(Query::Page(page)).await
    }

    async fn list(&self, query: Query) -> Result<Vec<UnitStatus>, Status> {
        match self.ask(Ask::Query(query)).await? {
            Answer::Query(QueryAnswer::Units(units)) => Ok(units),
            _ => Err(other_answer()),
        }
    }

    /// The machines.
    pub(super) async fn machines(&self) -> Result<ClusterStatus, Status> {
        match self.ask(Ask::Query(Query::Machines { left_on: Vec::new() })).await? {
            Answer::Query(QueryAnswer::Machines(status)) => Ok(status),
            _ => Err(other_answer()),
        }
    }

    /// Carries out a command.
    pub(super) async fn execute(&self, command: Command) -> Result<CommandResult, Status> {
        match self.ask(Ask::Command(command)).await? {
            Answer::Command(result) => Ok(result),
            _ => Err(other_answer()),
        }
    }

    /// Changes labels of machines.
    pub(super) async fn edit_labels(&self, edits: Vec<LabelEdit>) -> Result<(), Status> {
        match self.ask(Ask::EditLabels(edits)).await? {
            Answer::Machines(result) => result.map_err(|error| machine_status(&error)),
            _ => Err(other_answer()),
        }
    }

    /// Asks whoever leads, until one that does has answered, or none is found for too long. All that is asked may be asked
    /// again.
    async fn ask(&self, ask: Ask) -> Result<Answer, Status> {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = match self.leader() {
                Ok(Leader::Here(leader)) => leader.ask(ask.clone()).await,
                Ok(Leader::There(leader)) => forward(leader, ask.clone()).await,
                Err(status) => Err(status),
            };
            let retry = match &answer {
                Err(status) => status.code() == Code::Unavailable,
                Ok(answer) => matches!(answer, Answer::Command(Err(CommandError::NotLeader))),
            };
            if !retry || Instant::now() + AGAIN >= until {
                return answer;
            }
            sleep(AGAIN).await;
        }
    }

    fn leader(&self) -> Result<Leader, Status> {
        let address = match self.front.role() {
            Role::Leads(leading) => return Ok(Leader::Here(leading.leader)),
            Role::Follows { leader: Some(address) } => address,
            Role::Follows { leader: None } => return Err(muster_proto::not_leading(None)),
        };
        let mut dialled = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match &*dialled {
            Some((to, channel)) if *to == address => channel.clone(),
            _ => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))
                    .map_err(|error| Status::unavailable(format!("{address}, which leads: {error}")))?;
                let channel = endpoint
                    .connect_timeout(CONNECT_TIMEOUT)
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE)
                    .tcp_nodelay(true)
                    .connect_lazy();
                *dialled = Some((address, channel.clone()));
                channel
            }
        };
        let client = MusterClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Leader::There(client))
    }
}

/// Asks another scheduler.
async fn forward(mut leader: MusterClient<Channel>, ask: Ask) -> Result<Answer, Status> {
    Ok(match ask {
        Ask::Command(command) => {
            let response = leader.execute(v1::CommandRequest::from(command)).await?.into_inner();
            Answer::Command(response.try_into().map_err(nonsense)?)
        }
        Ask::EditLabels(edits) => {
            leader.edit_labels(v1::LabelEdits::from(edits)).await?;
            Answer::Machines(Ok(()))
        }
        Ask::Query(Query::Units { names, content, reasons }) => {
            let names = names.map(|names| names.iter().map(ToString::to_string).collect());
            let names = names.map(|names| v1::UnitNames { names });
            let request = v1::UnitsRequest { names, content, reasons };
            gather(leader.list_units(request).await?.into_inner()).await?
        }
        Ask::Query(Query::Page(page)) => {
            gather(leader.page_units(v1::PageRequest::from(page)).await?.into_inner()).await?
        }
        Ask::Query(Query::Machines { left_on }) => {
            let status = leader.list_machines(v1::MachinesRequest::of(&left_on)).await?.into_inner();
            Answer::Query(QueryAnswer::Machines(status.try_into().map_err(nonsense)?))
        }
        Ask::Query(Query::Rto(_) | Query::Backup)
        | Ask::Machines(_)
        | Ask::ReleaseBrake
        | Ask::Restore(_)
        | Ask::Stream(_) => {
            return Err(Status::internal("fleet's API does not ask for that"));
        }
    })
}

async fn gather(mut parts: Streaming<v1::UnitsPart>) -> Result<Answer, Status> {
    let mut units = Vec::new();
    while let Some(part) = parts.message().await? {
        for unit in part.units {
            units.push(UnitStatus::try_from(unit).map_err(nonsense)?);
        }
    }
    Ok(Answer::Query(QueryAnswer::Units(units)))
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err has it")]
fn nonsense(error: ConvertError) -> Status {
    Status::internal(format!(
        "the scheduler that leads answers what this version does not understand: {error}"
    ))
}
