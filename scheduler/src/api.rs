//! What clients ask for.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use muster_backup::{Backup, BackupError, Header, Reader};
use muster_core::command::{
    Command, LabelEdit, MachineCommand, MachineCommandError, Page, Query, QueryAnswer, RestoreError,
    UnitStatus,
};
use muster_core::unit::UnitName;
use muster_daemon::clock;
use muster_proto::v1::muster_server::Muster;
use muster_proto::{
    CommandRequestError, EventsWanted, PART_BYTES, command_response, event_parts, unit_parts, v1,
};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use crate::events::{Events, Follower};
use crate::front::{Front, Leading};
use crate::lead::{Answer, Ask, LeaderHandle};
use crate::watchers::Watcher;

type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service that clients call.
#[derive(Debug)]
pub(crate) struct MusterService(pub(crate) Arc<Front>);

#[tonic::async_trait]
impl Muster for MusterService {
    type ListUnitsStream = Parts<v1::UnitsPart>;
    type PageUnitsStream = Parts<v1::UnitsPart>;
    type WatchUnitsStream = Parts<v1::WatchPart>;
    type EventsStream = Parts<v1::EventsPart>;
    type BackupStream = Parts<v1::BackupPart>;
    type RelayStream = ReceiverStream<Result<v1::FromMachine, Status>>;

    async fn execute(
        &self,
        request: Request<v1::CommandRequest>,
    ) -> Result<Response<v1::CommandResponse>, Status> {
        let result = match Command::try_from(request.into_inner()) {
            Ok(command) => match self.0.leading()?.leader.ask(Ask::Command(command)).await? {
                Answer::Command(result) => result,
                _ => return Err(other_answer()),
            },
            Err(CommandRequestError::Refused(error)) => Err(error),
            Err(CommandRequestError::Malformed(error)) => {
                return Err(Status::invalid_argument(error.to_string()));
            }
        };
        command_response(result).map(Response::new)
    }

    async fn list_units(
        &self,
        request: Request<v1::UnitsRequest>,
    ) -> Result<Response<Self::ListUnitsStream>, Status> {
        let query = Query::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let units = units(&self.0.leading()?.leader, query).await?;
        Ok(Response::new(Box::pin(tokio_stream::iter(unit_parts(units).map(Ok)))))
    }

    async fn page_units(
        &self,
        request: Request<v1::PageRequest>,
    ) -> Result<Response<Self::PageUnitsStream>, Status> {
        let page = Page::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let units = units(&self.0.leading()?.leader, Query::Page(page)).await?;
        Ok(Response::new(Box::pin(tokio_stream::iter(unit_parts(units).map(Ok)))))
    }

    async fn list_machines(
        &self,
        request: Request<v1::MachinesRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        let left_on =
            request.get_ref().machines().map_err(|error| Status::invalid_argument(error.to_string()))?;
        match query(&self.0.leading()?.leader, Query::Machines { left_on }).await? {
            QueryAnswer::Machines(status) => Ok(Response::new(status.into())),
            _ => Err(other_answer()),
        }
    }

    async fn change_machines(
        &self,
        request: Request<v1::MachinesChange>,
    ) -> Result<Response<v1::MachinesChanged>, Status> {
        let mut change = request.into_inner();
        if change.id.is_empty() {
            // The version before gave it none: each time that it asks is another one.
            change.id = uuid::Uuid::new_v4().as_bytes().to_vec().into();
        }
        let command =
            MachineCommand::try_from(change).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.change(Ask::Machines(command)).await
    }

    async fn edit_labels(
        &self,
        request: Request<v1::LabelEdits>,
    ) -> Result<Response<v1::MachinesChanged>, Status> {
        let edits = Vec::<LabelEdit>::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.change(Ask::EditLabels(edits)).await
    }

    async fn release_brake(
        &self,
        _request: Request<v1::ReleaseBrakeRequest>,
    ) -> Result<Response<v1::ReleaseBrakeResponse>, Status> {
        match self.0.leading()?.leader.ask(Ask::ReleaseBrake).await? {
            Answer::Released(released) => Ok(Response::new(released.into())),
            _ => Err(other_answer()),
        }
    }

    async fn watch_units(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchUnitsStream>, Status> {
        let names =
            request.get_ref().unit_names().map_err(|error| Status::invalid_argument(error.to_string()))?;
        if names.is_empty() {
            return Err(Status::invalid_argument("names: a watch names at least one unit"));
        }
        let Leading { leader, watchers, .. } = self.0.leading()?;
        let watcher = watchers.watch(names.into_iter().collect());
        // Room for one part: a client that reads slowly holds up its own watcher, which gathers changes meanwhile.
        let (parts, stream) = mpsc::channel(1);
        tokio::spawn(watch(leader, watcher, parts));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn events(
        &self,
        request: Request<v1::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let wanted = EventsWanted::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Leading { leader, events, .. } = self.0.leading()?;
        let (remembered, follower) = events.recall(wanted.after);
        let most = wanted.last.map_or(usize::MAX, |last| usize::try_from(last).unwrap_or(usize::MAX));
        let records = remembered.records(&events, &wanted.filter, most);
        let first = event_parts(remembered.missed, records);
        if !wanted.follow {
            return Ok(Response::new(Box::pin(tokio_stream::iter(first.map(Ok)))));
        }
        // Room for one part: a client that reads slowly falls behind in the ring, and holds up nobody.
        let (parts, stream) = mpsc::channel(1);
        let first: Vec<v1::EventsPart> = first.collect();
        tokio::spawn(follow(leader, events, wanted, follower, first, parts));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn rto(&self, request: Request<v1::RtoRequest>) -> Result<Response<v1::RtoResponse>, Status> {
        let about = Query::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        match query(&self.0.leading()?.leader, about).await? {
            QueryAnswer::Rto(Some(rto)) => Ok(Response::new(rto.into())),
            QueryAnswer::Rto(None) => Err(Status::not_found("the cluster does not know this unit")),
            _ => Err(other_answer()),
        }
    }

    async fn backup(
        &self,
        _request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let QueryAnswer::Backup { term, durable } = query(&self.0.leading()?.leader, Query::Backup).await?
        else {
            return Err(other_answer());
        };
        let made = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(clock::wall_ms()));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let header = Header::new(&durable, term, version, made.to_string());
        // Made while it is sent: one part waits for the client, and nothing waits for that.
        let (parts, stream) = mpsc::channel(1);
        spawn_blocking(move || {
            let mut out = BufWriter::with_capacity(PART_BYTES, ToClient(parts));
            let sent = muster_backup::write(&header, &durable, &mut out).and_then(|()| out.flush());
            if let Err(error) = sent {
                debug!(%error, "a backup was not read to its end");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn relay(
        &self,
        request: Request<Streaming<v1::ToMachine>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        let Leading { leader, streams, .. } = self.0.leading()?;
        streams.open(&leader, request.into_inner()).await.map(Response::new)
    }

    async fn restore(
        &self,
        request: Request<Streaming<v1::RestorePart>>,
    ) -> Result<Response<v1::RestoreResponse>, Status> {
        let leader = self.0.leading()?.leader;
        let backup = read_backup(request.into_inner()).await?;
        match leader.ask(Ask::Restore(Box::new(backup))).await? {
            Answer::Restored(Ok(())) => Ok(Response::new(v1::RestoreResponse {})),
            Answer::Restored(Err(error @ RestoreError::NotEmpty { .. })) => {
                Err(Status::failed_precondition(error.to_string()))
            }
            Answer::Restored(Err(error @ (RestoreError::Store(_) | RestoreError::NotLeader))) => {
                Err(Status::aborted(error.to_string()))
            }
            _ => Err(other_answer()),
        }
    }
}

impl MusterService {
    async fn change(&self, machines: Ask) -> Result<Response<v1::MachinesChanged>, Status> {
        let Answer::Machines(result) = self.0.leading()?.leader.ask(machines).await? else {
            return Err(other_answer());
        };
        match result {
            Ok(()) => Ok(Response::new(v1::MachinesChanged {})),
            Err(error) => Err(machine_status(&error)),
        }
    }
}

/// Why a command on machines has changed nothing, as it is answered.
pub(crate) fn machine_status(error: &MachineCommandError) -> Status {
    let text = error.to_string();
    match error {
        MachineCommandError::NoSuchMachine(_) => Status::not_found(text),
        MachineCommandError::Label(_) => Status::invalid_argument(text),
        MachineCommandError::Store(_) => Status::aborted(text),
    }
}

/// Sends what is written to it to a client, in parts.
struct ToClient(mpsc::Sender<Result<v1::BackupPart, Status>>);

impl io::Write for ToClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(PART_BYTES)];
        let part = v1::BackupPart { content: bytes.to_vec().into() };
        self.0.blocking_send(Ok(part)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a backup that a client sends, in a thread of its own.
async fn read_backup(mut parts: Streaming<v1::RestorePart>) -> Result<Backup, Status> {
    let (pieces, mut to_read) = mpsc::channel::<v1::RestorePart>(1);
    let reads = spawn_blocking(move || -> Result<Backup, BackupError> {
        let mut reader = Reader::default();
        while let Some(piece) = to_read.blocking_recv() {
            reader.push(&piece.content)?;
        }
        reader.finish()
    });
    while let Some(part) = parts.message().await? {
        if pieces.send(part).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let read = reads.await.map_err(|_| Status::internal("the backup could not be read"))?;
    read.map_err(|error| Status::invalid_argument(format!("the backup cannot be used: {error}")))
}

async fn query(leader: &LeaderHandle, query: Query) -> Result<QueryAnswer, Status> {
    match leader.ask(Ask::Query(query)).await? {
        Answer::Query(answer) => Ok(answer),
        _ => Err(other_answer()),
    }
}

async fn units(leader: &LeaderHandle, about: Query) -> Result<Vec<UnitStatus>, Status> {
    match query(leader, about).await? {
        QueryAnswer::Units(units) => Ok(units),
        _ => Err(other_answer()),
    }
}

pub(crate) fn other_answer() -> Status {
    Status::internal("the leader answered another question")
}

/// Tells a client of its units until it goes, or the scheduler stops.
async fn watch(leader: LeaderHandle, watcher: Watcher, parts: mpsc::Sender<Result<v1::WatchPart, Status>>) {
    let mut present = true;
    loop {
        let names = tokio::select! {
            names = watcher.next() => names,
            () = parts.closed() => return,
        };
        let Some(names) = names else {
            parts.send(Err(leader.why_ended())).await.ok();
            return;
        };
        let told = tell(&leader, names, std::mem::take(&mut present), &parts).await;
        if let Err(status) = told {
            parts.send(Err(status)).await.ok();
            return;
        }
    }
}

/// Tells a client how these units are now; `present` says that they are all that it watches.
async fn tell(
    leader: &LeaderHandle,
    names: Vec<UnitName>,
    present: bool,
    parts: &mpsc::Sender<Result<v1::WatchPart, Status>>,
) -> Result<(), Status> {
    let query = Query::Units { names: Some(names.clone()), content: false, reasons: false };
    let units = units(leader, query).await?;
    let known: BTreeSet<_> = units.iter().map(|unit| unit.name.clone()).collect();
    let unknown: Vec<_> =
        names.iter().filter(|name| !known.contains(*name)).map(ToString::to_string).collect();
    let mut told: Vec<_> =
        unit_parts(units).map(|part| v1::WatchPart { units: part.units, ..Default::default() }).collect();
    // There is always one part, if only an empty one.
    if let Some(last) = told.last_mut() {
        last.unknown = unknown;
        last.present = present;
    }
    for part in told {
        // A client that has gone is noticed by the caller.
        parts.send(Ok(part)).await.ok();
    }
    Ok(())
}

/// Tells a client what has happened and what happens, until it goes, or the scheduler stops.
async fn follow(
    leader: LeaderHandle,
    events: Arc<Events>,
    wanted: EventsWanted,
    mut follower: Follower,
    first: Vec<v1::EventsPart>,
    parts: mpsc::Sender<Result<v1::EventsPart, Status>>,
) {
    let mut next = first;
    loop {
        for part in next {
            if parts.send(Ok(part)).await.is_err() {
                return;
            }
        }
        let batch = tokio::select! {
            batch = follower.next() => batch,
            () = parts.closed() => return,
        };
        let Some(batch) = batch else {
            parts.send(Err(leader.why_ended())).await.ok();
            return;
        };
        let records = batch.records(&events, &wanted.filter, usize::MAX);
        let is_news = batch.missed > 0 || !records.is_empty();
        next = if is_news { event_parts(batch.missed, records).collect() } else { Vec::new() };
    }
}
