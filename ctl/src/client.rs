//! The connection to the schedulers: core types go in and come out.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use muster_core::command::{
    Adoption, ClusterStatus, Command, CommandResult, LabelCommand, MachineCommand, Rto, UnitStatus,
};
use muster_core::ids::{CommandId, MachineId};
use muster_core::leader::EventRecord;
use muster_core::unit::UnitName;
use muster_proto::v1::muster_client::MusterClient;
use muster_proto::v1::schedulers_client::SchedulersClient;
use muster_proto::{
    ConvertError, EventsWanted, MAX_MESSAGE_BYTES, PART_BYTES, SchedulerStatus, Work, is_not_leading,
    leader_of, v1,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};

use crate::config::Endpoints;
use crate::failure::{Exit, Failure};
use crate::reach::{Said, Search, failure};
use crate::stream::MachineStream;

/// How long a connection may take to come about: where there are others to ask, a lost packet is made up for, but no more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(2);

/// How much a scheduler may send before it hears that it has arrived: a list of many thousand units.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// A connection to a scheduler: to the one that leads, once something was asked of it.
#[derive(Clone)]
pub struct Client {
    endpoints: Endpoints,
    address: String,
    muster: MusterClient<Channel>,
}

/// Why a request got no answer that can be used.
pub enum Trouble {
    /// Another scheduler, or the same one again, may know more.
    Said(Said),
    /// The scheduler answered, and will answer the same again.
    Final(Failure),
}

impl Client {
    /// Connects to the first scheduler that answers.
    ///
    /// # Errors
    /// [`Exit::Unreachable`], with what to check.
    pub async fn connect(endpoints: Endpoints) -> Result<Self, Failure> {
        let mut said = Vec::new();
        for address in &endpoints.addresses {
            match transport(address, &endpoints)?.connect().await {
                Ok(channel) => {
                    let (address, muster) = (address.clone(), muster(channel));
                    return Ok(Self { endpoints, address, muster });
                }
                Err(error) => said.push((address.clone(), Said::Unreached(cause(&error)))),
            }
        }
        Err(failure(&endpoints, &said))
    }

    /// What the scheduler that was asked last says of itself; `None` where it does not say it.
    pub async fn describe(&self) -> Option<SchedulerStatus> {
        let channel = transport(&self.address, &self.endpoints).ok()?.connect_lazy();
        let answer = SchedulersClient::new(channel).describe(v1::DescribeRequest {}).await.ok()?;
        answer.into_inner().try_into().ok()
    }

    /// Connects to that scheduler, when it is first asked. A connection to the same one makes itself anew.
    fn go_to(&mut self, address: String) -> Result<(), Failure> {
        if address != self.address {
            self.muster = muster(transport(&address, &self.endpoints)?.connect_lazy());
            self.address = address;
        }
        Ok(())
    }

    /// Asks the scheduler that leads, whichever that is: the one that was asked last may have stopped to lead, or its
    /// connection may be lost. What is asked must be such that it may be repeated.
    async fn ask<T>(
        &mut self,
        search: &mut Search,
        mut ask: impl AsyncFnMut(&mut Self) -> Result<T, Trouble>,
    ) -> Result<T, Failure> {
        loop {
            match ask(self).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Said(said)) => self.look_further(search, said).await?,
                Err(Trouble::Final(failure)) => return Err(failure),
            }
        }
    }

    /// Goes on to whom the request is to be sent next.
    async fn look_further(&mut self, search: &mut Search, said: Said) -> Result<(), Failure> {
        let next = search.next(&self.endpoints, &self.address, said).await?;
        self.go_to(next)
    }

    /// Has a command carried out. When the connection is lost before the answer, it is sent again under the same id.
    ///
    /// # Errors
    /// When there is no answer. What the scheduler has against the command is no error but its answer.
    pub async fn execute(&mut self, command: Command) -> Result<CommandResult, Failure> {
        let bytes: usize = command
            .units
            .iter()
            .map(|unit| unit.name.as_str().len() + unit.content.as_ref().map_or(0, |c| c.len()) + 32)
            .sum();
        if bytes + 64 > MAX_MESSAGE_BYTES {
            return Err(Failure::failed(format_args!(
                "these units are {} MiB, more than the {} MiB that one command can carry: give fewer at once",
                bytes.div_ceil(1024 * 1024),
                MAX_MESSAGE_BYTES / (1024 * 1024),
            )));
        }
        let request = v1::CommandRequest::from(command);
        self.ask_for(async |client: &mut Self| client.muster.execute(request.clone()).await).await
    }

    /// Has units adopted. When the connection is lost before the answer, it is asked for again under the same id.
    ///
    /// # Errors
    /// When there is no answer. What the scheduler has against it is no error but its answer.
    pub async fn adopt(&mut self, adoption: Adoption) -> Result<CommandResult, Failure> {
        let request = v1::AdoptRequest::from(adoption);
        self.ask_for(async |client: &mut Self| client.muster.adopt(request.clone()).await).await
    }

    /// Asks for a change until there is an answer.
    async fn ask_for(
        &mut self,
        mut ask: impl AsyncFnMut(&mut Self) -> Result<Response<v1::CommandResponse>, Status>,
    ) -> Result<CommandResult, Failure> {
        let mut search = Search::new();
        let execute = async |client: &mut Self| match ask(client).await {
            Ok(response) => CommandResult::try_from(response.into_inner())
                .map_err(|error| Trouble::Final(client.nonsense(&error))),
            Err(status) => Err(client.trouble(&status)),
        };
        self.ask(&mut search, execute).await.map_err(|mut failure| {
            if failure.exit == Exit::Unreachable {
                failure.message.push_str(if search.in_doubt() {
                    "\n  Whether the command was carried out is not known; it is safe to give it once more."
                } else {
                    "\n  Nothing was changed."
                });
            }
            failure
        })
    }

    /// Units in the order of their names: these, or all. Those that are not known are left out.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn units(&mut self, wanted: Wanted<'_>) -> Result<Vec<UnitStatus>, Failure> {
        self.units_as(wanted, |status| status).await
    }

    /// What is made of each of them, as they arrive: of many thousand units little is kept so.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn units_as<T>(
        &mut self,
        wanted: Wanted<'_>,
        mut make: impl FnMut(UnitStatus) -> T,
    ) -> Result<Vec<T>, Failure> {
        self.ask(&mut Search::new(), async |client| client.try_units(wanted, &mut make).await).await
    }

    /// What there is, for somebody who looks on only: nothing is said while a scheduler is looked for.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn glimpse(&mut self) -> Result<(Vec<UnitStatus>, ClusterStatus), Failure> {
        let mut search = Search::quiet();
        let look = async |client: &mut Self| {
            Ok((
                client.try_units(Wanted::default(), &mut |status| status).await?,
                client.try_cluster(&[]).await?,
            ))
        };
        self.ask(&mut search, look).await
    }

    async fn try_units<T>(
        &mut self,
        wanted: Wanted<'_>,
        make: &mut impl FnMut(UnitStatus) -> T,
    ) -> Result<Vec<T>, Trouble> {
        let names = wanted
            .names
            .map(|names| v1::UnitNames { names: names.iter().map(ToString::to_string).collect() });
        let request = v1::UnitsRequest { names, content: wanted.content, reasons: wanted.reasons };
        let mut parts =
            self.muster.list_units(request).await.map_err(|status| self.trouble(&status))?.into_inner();
        let mut units = Vec::new();
        while let Some(part) = parts.message().await.map_err(|status| self.trouble(&status))? {
            for unit in part.units {
                let status =
                    UnitStatus::try_from(unit).map_err(|error| Trouble::Final(self.nonsense(&error)))?;
                units.push(make(status));
            }
        }
        Ok(units)
    }

    /// The cluster and its machines.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn cluster(&mut self) -> Result<ClusterStatus, Failure> {
        self.cluster_with(&[]).await
    }

    /// The same, with what is left on these machines.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn cluster_with(&mut self, left_on: &[MachineId]) -> Result<ClusterStatus, Failure> {
        self.ask(&mut Search::new(), async |client| client.try_cluster(left_on).await).await
    }

    async fn try_cluster(&mut self, left_on: &[MachineId]) -> Result<ClusterStatus, Trouble> {
        match self.muster.list_machines(v1::MachinesRequest::of(left_on)).await {
            Ok(response) => ClusterStatus::try_from(response.into_inner())
                .map_err(|error| Trouble::Final(self.nonsense(&error))),
            Err(status) => Err(self.trouble(&status)),
        }
    }

    /// Changes what is decided of machines.
    ///
    /// # Errors
    /// When a machine is not known, or the scheduler does not answer.
    pub async fn change_machines(&mut self, command: MachineCommand) -> Result<(), Failure> {
        let change = v1::MachinesChange::from(command);
        let ask = async |client: &mut Self| match client.muster.change_machines(change.clone()).await {
            Ok(_) => Ok(()),
            Err(status) if matches!(status.code(), Code::NotFound | Code::Aborted) => {
                Err(Trouble::Final(Failure::failed(status.message())))
            }
            Err(status) => Err(client.trouble(&status)),
        };
        self.ask(&mut Search::new(), ask).await
    }

    /// Changes labels of machines.
    ///
    /// # Errors
    /// When no unit could ask for one of them, or the scheduler does not answer.
    pub async fn edit_labels(&mut self, command: LabelCommand) -> Result<(), Failure> {
        let edits = v1::LabelEdits::from(command);
        let ask = async |client: &mut Self| match client.muster.edit_labels(edits.clone()).await {
            Ok(_) => Ok(()),
            Err(status) if matches!(status.code(), Code::InvalidArgument | Code::Aborted) => {
                Err(Trouble::Final(Failure::failed(status.message())))
            }
            Err(status) => Err(client.trouble(&status)),
        };
        self.ask(&mut Search::new(), ask).await
    }

    /// Releases the brake: for these machines, where it was held; and whether that may be the answer to a repetition.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn release_brake(&mut self) -> Result<(Option<Vec<MachineId>>, bool), Failure> {
        let release =
            async |client: &mut Self| match client.muster.release_brake(v1::ReleaseBrakeRequest {}).await {
                Ok(response) => {
                    response.into_inner().released().map_err(|error| Trouble::Final(client.nonsense(&error)))
                }
                Err(status) => Err(client.trouble(&status)),
            };
        let mut search = Search::new();
        let released = self.ask(&mut search, release).await?;
        Ok((released, search.in_doubt()))
    }

    /// Units as they are, and then whenever something about them changes.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn watch(&mut self, names: &[UnitName]) -> Result<Watch, Failure> {
        self.watch_on(names, &mut Search::new()).await
    }

    /// The same, after a watch has ended so.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn watch_again(&mut self, names: &[UnitName], ended: Trouble) -> Result<Watch, Failure> {
        let mut search = Search::new();
        match ended {
            Trouble::Said(said) => self.look_further(&mut search, said).await?,
            Trouble::Final(failure) => return Err(failure),
        }
        self.watch_on(names, &mut search).await
    }

    async fn watch_on(&mut self, names: &[UnitName], search: &mut Search) -> Result<Watch, Failure> {
        let request = v1::WatchRequest { names: names.iter().map(ToString::to_string).collect() };
        let watch = async |client: &mut Self| match client.muster.watch_units(request.clone()).await {
            Ok(response) => Ok(Watch(response.into_inner())),
            Err(status) => Err(client.trouble(&status)),
        };
        self.ask(search, watch).await
    }

    /// The worst-case time of a unit; `None` when it is not known.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn rto(&mut self, unit: &UnitName) -> Result<Option<Rto>, Failure> {
        let request = v1::RtoRequest { unit: unit.to_string() };
        let rto = async |client: &mut Self| match client.muster.rto(request.clone()).await {
            Ok(response) => Ok(Some(response.into_inner().into())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(client.trouble(&status)),
        };
        self.ask(&mut Search::new(), rto).await
    }

    /// Events, oldest first, with those to come if they are wanted. After a loss they go on where they were: with all that
    /// the scheduler remembers, where it is another one.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn events(&mut self, wanted: EventsWanted) -> Result<EventStream, Failure> {
        let parts = self.event_parts(&wanted, &mut Search::new()).await?;
        Ok(EventStream { wanted, parts })
    }

    async fn event_parts(
        &mut self,
        wanted: &EventsWanted,
        search: &mut Search,
    ) -> Result<Streaming<v1::EventsPart>, Failure> {
        let request = v1::EventsRequest::from(wanted.clone());
        let events = async |client: &mut Self| match client.muster.events(request.clone()).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(client.trouble(&status)),
        };
        self.ask(search, events).await
    }

    /// All that is durable, as the file that a backup is.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn backup(&mut self) -> Result<BackupStream, Failure> {
        let ask = async |client: &mut Self| match client.muster.backup(v1::BackupRequest {}).await {
            Ok(response) => Ok(BackupStream(response.into_inner())),
            Err(status) => Err(client.trouble(&status)),
        };
        self.ask(&mut Search::new(), ask).await
    }

    /// Has a backup take the place of the cluster that there is.
    ///
    /// # Errors
    /// When it is refused, or the scheduler does not answer.
    pub async fn restore(&mut self, backup: Vec<u8>) -> Result<(), Failure> {
        let backup = Arc::new(backup);
        let mut search = Search::new();
        loop {
            let (content, count) = (Arc::clone(&backup), backup.len().div_ceil(PART_BYTES));
            let part = move |number: usize| {
                let from = number * PART_BYTES;
                let content = &content[from..content.len().min(from + PART_BYTES)];
                v1::RestorePart { content: content.to_vec().into() }
            };
            let Err(status) = self.muster.restore(tokio_stream::iter((0..count).map(part))).await else {
                return Ok(());
            };
            if matches!(status.code(), Code::FailedPrecondition | Code::Aborted | Code::InvalidArgument) {
                return Err(Failure::failed(status.message()));
            }
            match self.trouble(&status) {
                // It may have been done: then a repetition would be refused, and not say so.
                Trouble::Said(said @ Said::Nothing(_)) => {
                    let mut failure = failure(&self.endpoints, &[(self.address.clone(), said)]);
                    failure.message.push_str(
                        "\n  Whether the backup was restored is not known; it is safe to do it once more: a cluster that \
                         has it refuses it.",
                    );
                    return Err(failure);
                }
                Trouble::Said(said) => self.look_further(&mut search, said).await?,
                Trouble::Final(failure) => return Err(failure),
            }
        }
    }

    /// The cluster that was restored, once the scheduler leads it.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn restored_cluster(&mut self) -> Result<ClusterStatus, Failure> {
        // It leads anew: that is no news.
        self.ask(&mut Search::quiet(), async |client| client.try_cluster(&[]).await).await
    }

    /// A stream to a machine.
    ///
    /// # Errors
    /// When the machine is not known or connected or does not do that, or the scheduler does not answer.
    pub async fn relay(&mut self, machine: MachineId, work: Work) -> Result<MachineStream, Failure> {
        let mut search = Search::new();
        // (Not with `ask`: several tasks do this at once, which a closure that is asynchronous cannot.)
        loop {
            let (input, messages) = MachineStream::request(machine, work.clone());
            let status = match self.muster.relay(ReceiverStream::new(messages)).await {
                Ok(response) => return Ok(MachineStream::new(input, response.into_inner())),
                Err(status) => status,
            };
            if matches!(status.code(), Code::NotFound | Code::FailedPrecondition | Code::ResourceExhausted) {
                return Err(Failure::failed(status.message()));
            }
            match self.trouble(&status) {
                Trouble::Said(said) => self.look_further(&mut search, said).await?,
                Trouble::Final(failure) => return Err(failure),
            }
        }
    }

    /// Where the schedulers are, as it was said.
    pub fn addresses(&self) -> &[String] {
        &self.endpoints.addresses
    }

    /// What was begun cannot be gone on with elsewhere.
    fn give_up(&self, trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Said(said) => failure(&self.endpoints, &[(self.address.clone(), said)]),
            Trouble::Final(failure) => failure,
        }
    }

    fn trouble(&self, status: &Status) -> Trouble {
        if is_not_leading(status) {
            return Trouble::Said(Said::NotLeading(leader_of(status)));
        }
        // A status with a source was made on this side, out of what became of the connection.
        if status.code() == Code::Unavailable || status.source().is_some() {
            return Trouble::Said(match status.source() {
                Some(source) if causes(source).any(<Cause>::is::<tonic::ConnectError>) => {
                    Said::Unreached(cause(source))
                }
                Some(source) => Said::Nothing(cause(source)),
                None => Said::Nothing(status.message().to_owned()),
            });
        }
        Trouble::Final(match status.code() {
            Code::Unimplemented => Failure::failed(format_args!(
                "the scheduler at {} does not know this request: musterctl {} speaks another version",
                self.address,
                env!("CARGO_PKG_VERSION"),
            )),
            code => Failure::failed(format_args!(
                "the scheduler at {} refuses the request: {} ({code:?})",
                self.address,
                status.message(),
            )),
        })
    }

    fn nonsense(&self, error: &ConvertError) -> Failure {
        Failure::failed(format_args!(
            "the scheduler at {} answers what musterctl {} does not understand: {error}",
            self.address,
            env!("CARGO_PKG_VERSION"),
        ))
    }
}

/// The id of a command that is given now: it is the same when that is repeated.
pub fn new_id() -> CommandId {
    CommandId::new(uuid::Uuid::now_v7().as_u128())
}

/// Which units are asked for, and what of them.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Their names; all units without.
    pub names: Option<&'a [UnitName]>,
    /// With their files.
    pub content: bool,
    /// With what each machine has against a unit that waits.
    pub reasons: bool,
}

/// Units as they change.
pub struct Watch(Streaming<v1::WatchPart>);

/// Some units as they are now: `None` for one that is not known.
pub type Seen = Vec<(UnitName, Option<UnitStatus>)>;

impl Watch {
    /// What comes next.
    ///
    /// # Errors
    /// When the stream ends, which it never does by itself.
    pub async fn next(&mut self, client: &Client) -> Result<Seen, Trouble> {
        let part = match self.0.message().await {
            Ok(Some(part)) => part,
            Ok(None) => {
                return Err(Trouble::Said(Said::Nothing("the scheduler ended the connection".to_owned())));
            }
            Err(status) => return Err(client.trouble(&status)),
        };
        let nonsense = |error| Trouble::Final(client.nonsense(&error));
        let unknown = part.unknown_names().map_err(nonsense)?;
        let mut seen: Seen = unknown.into_iter().map(|name| (name, None)).collect();
        for unit in part.units {
            let status = UnitStatus::try_from(unit).map_err(nonsense)?;
            seen.push((status.name.clone(), Some(status)));
        }
        Ok(seen)
    }
}

/// A backup as it comes.
pub struct BackupStream(Streaming<v1::BackupPart>);

impl BackupStream {
    /// The bytes that come next; `None` at the end.
    ///
    /// # Errors
    /// When the scheduler does not answer any more.
    pub async fn next(&mut self, client: &Client) -> Result<Option<Vec<u8>>, Failure> {
        let part = self.0.message().await.map_err(|status| client.give_up(client.trouble(&status)))?;
        Ok(part.map(|part| part.content.into()))
    }
}

/// Events as they are told.
pub struct EventStream {
    wanted: EventsWanted,
    parts: Streaming<v1::EventsPart>,
}

impl EventStream {
    /// What comes next, and how many events are missing before it; `None` at the end.
    ///
    /// # Errors
    /// When the scheduler does not answer any more.
    pub async fn next(&mut self, client: &mut Client) -> Result<Option<(u64, Vec<EventRecord>)>, Failure> {
        let mut search = Search::new();
        loop {
            let status = match self.parts.message().await {
                Ok(Some(part)) => {
                    let missed = part.missed;
                    let events = part.records().map_err(|error| client.nonsense(&error))?;
                    if let Some(last) = events.last() {
                        // After a loss the stream goes on from there, with all that it then has to tell.
                        (self.wanted.after, self.wanted.last) = (Some(last.number), None);
                    }
                    return Ok(Some((missed, events)));
                }
                Ok(None) => return Ok(None),
                Err(status) => status,
            };
            match client.trouble(&status) {
                Trouble::Said(said) => client.look_further(&mut search, said).await?,
                Trouble::Final(failure) => return Err(failure),
            }
            self.parts = client.event_parts(&self.wanted, &mut search).await?;
        }
    }
}

/// How a scheduler is connected to.
///
/// # Errors
/// An address that is none.
pub fn transport(address: &str, endpoints: &Endpoints) -> Result<Endpoint, Failure> {
    let several = endpoints.addresses.len() > 1;
    let endpoint = Channel::from_shared(format!("http://{address}"))
        .map_err(|error| Failure::new(Exit::Usage, format_args!("{address:?}: {error}")))?;
    Ok(endpoint
        .connect_timeout(if several { CONNECT_TIMEOUT_OF_SEVERAL } else { CONNECT_TIMEOUT })
        // Long lists are not held up at every 64 KiB.
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        // A watch is silent while nothing changes: this tells silence from a scheduler that is gone.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .tcp_nodelay(true))
}

fn muster(channel: Channel) -> MusterClient<Channel> {
    MusterClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// An error, what caused it, and so on.
fn causes<'a>(error: &'a Cause) -> impl Iterator<Item = &'a Cause> {
    std::iter::successors(Some(error), |error: &&'a Cause| (**error).source())
}

type Cause = dyn std::error::Error + 'static;

/// What lies at the bottom of an error, in a few words.
pub fn cause(error: &Cause) -> String {
    let text = causes(error).last().map(ToString::to_string).unwrap_or_default();
    // "Connection refused (os error 111)": the number helps nobody.
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_what_the_system_said() {
        let refused = std::io::Error::from_raw_os_error(111);
        let wrapped = std::io::Error::other(refused);
        assert_eq!(cause(&wrapped), "Connection refused");
    }
}
