//! The connection to the scheduler: core types go in and come out.

use std::error::Error as _;
use std::time::Duration;

use muster_core::command::{ClusterStatus, Command, CommandResult, MachineCommand, Rto, UnitStatus};
use muster_core::ids::MachineId;
use muster_core::leader::EventRecord;
use muster_core::unit::UnitName;
use muster_proto::v1::muster_client::MusterClient;
use muster_proto::{ConvertError, EventsWanted, MAX_MESSAGE_BYTES, PART_BYTES, v1};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::config::Endpoint;
use crate::failure::{Exit, Failure};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a lost connection is tried again.
const RETRY_FOR: Duration = Duration::from_secs(30);
/// How long to wait before the first new try, and between later ones.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// A connection to the scheduler.
pub struct Client {
    endpoint: Endpoint,
    muster: MusterClient<Channel>,
}

/// Why a request got no answer that can be used.
pub enum Trouble {
    /// The connection is lost, or the scheduler stopped leading: what was asked may have been done or not.
    Lost(String),
    /// The scheduler answered, and will answer the same again.
    Final(Failure),
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`Exit::Unreachable`], with what to check.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, Failure> {
        let uri = format!("http://{}", endpoint.address);
        let channel = Channel::from_shared(uri)
            .map_err(|error| Failure::new(Exit::Usage, format_args!("{:?}: {error}", endpoint.address)))?
            .connect_timeout(CONNECT_TIMEOUT)
            // A watch is silent while nothing changes: this tells silence from a scheduler that is gone.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .tcp_nodelay(true);
        match channel.connect().await {
            Ok(channel) => {
                let muster = MusterClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES);
                Ok(Self { endpoint, muster })
            }
            Err(error) => Err(unreachable(&endpoint, &cause(&error))),
        }
    }

    /// Where it is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Has a command carried out. When the connection is lost before the answer, it is sent again under the same id,
    /// for [`RETRY_FOR`].
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
        let mut retry = Retry::new();
        loop {
            let lost = match self.muster.execute(request.clone()).await {
                Ok(response) => {
                    return CommandResult::try_from(response.into_inner())
                        .map_err(|error| self.nonsense(&error));
                }
                Err(status) => match self.trouble(&status) {
                    Trouble::Lost(cause) => cause,
                    Trouble::Final(failure) => return Err(failure),
                },
            };
            if !retry.again(&self.endpoint, &lost).await {
                let mut failure = unreachable(&self.endpoint, &lost);
                failure.message.push_str(
                    "\n  Whether the command was carried out is not known; it is safe to give it once more.",
                );
                return Err(failure);
            }
        }
    }

    /// Units in the order of their names: these, or all. Those that are not known are left out.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn units(&mut self, wanted: Wanted<'_>) -> Result<Vec<UnitStatus>, Failure> {
        self.try_units(wanted).await.map_err(|trouble| self.fail(trouble))
    }

    async fn try_units(&mut self, wanted: Wanted<'_>) -> Result<Vec<UnitStatus>, Trouble> {
        let names = wanted
            .names
            .map(|names| v1::UnitNames { names: names.iter().map(ToString::to_string).collect() });
        let request = v1::UnitsRequest { names, content: wanted.content, reasons: wanted.reasons };
        let mut parts =
            self.muster.list_units(request).await.map_err(|status| self.trouble(&status))?.into_inner();
        let mut units = Vec::new();
        while let Some(part) = parts.message().await.map_err(|status| self.trouble(&status))? {
            for unit in part.units {
                units
                    .push(UnitStatus::try_from(unit).map_err(|error| Trouble::Final(self.nonsense(&error)))?);
            }
        }
        Ok(units)
    }

    /// The cluster and its machines.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn cluster(&mut self) -> Result<ClusterStatus, Failure> {
        self.try_cluster(&[]).await.map_err(|trouble| self.fail(trouble))
    }

    /// The same, with what is left on these machines. A lost connection is made again, for [`RETRY_FOR`].
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn cluster_with(&mut self, left_on: &[MachineId]) -> Result<ClusterStatus, Failure> {
        self.patiently(async |client| client.try_cluster(left_on).await).await
    }

    async fn try_cluster(&mut self, left_on: &[MachineId]) -> Result<ClusterStatus, Trouble> {
        match self.muster.list_machines(v1::MachinesRequest::of(left_on)).await {
            Ok(response) => ClusterStatus::try_from(response.into_inner())
                .map_err(|error| Trouble::Final(self.nonsense(&error))),
            Err(status) => Err(self.trouble(&status)),
        }
    }

    /// Changes what is decided of machines. A lost connection is made again, for [`RETRY_FOR`].
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
        self.patiently(ask).await
    }

    /// Releases the brake: for these machines, where it was held.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn release_brake(&mut self) -> Result<Option<Vec<MachineId>>, Failure> {
        match self.muster.release_brake(v1::ReleaseBrakeRequest {}).await {
            Ok(response) => response.into_inner().released().map_err(|error| self.nonsense(&error)),
            Err(status) => Err(self.fail(self.trouble(&status))),
        }
    }

    /// Asks, and asks again when the connection was lost, for [`RETRY_FOR`].
    async fn patiently<T>(
        &mut self,
        mut ask: impl AsyncFnMut(&mut Self) -> Result<T, Trouble>,
    ) -> Result<T, Failure> {
        let mut retry = Retry::new();
        loop {
            let lost = match ask(self).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Lost(cause)) => cause,
                Err(Trouble::Final(failure)) => return Err(failure),
            };
            if !retry.again(&self.endpoint, &lost).await {
                return Err(unreachable(&self.endpoint, &lost));
            }
        }
    }

    /// Units as they are, and then whenever something about them changes. A lost connection is made again, for
    /// [`RETRY_FOR`].
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn watch(&mut self, names: &[UnitName]) -> Result<Watch, Failure> {
        let request = v1::WatchRequest { names: names.iter().map(ToString::to_string).collect() };
        let ask = async |client: &mut Self| match client.muster.watch_units(request.clone()).await {
            Ok(response) => Ok(Watch(response.into_inner())),
            Err(status) => Err(client.trouble(&status)),
        };
        self.patiently(ask).await
    }

    /// The worst-case time of a unit; `None` when it is not known.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn rto(&mut self, unit: &UnitName) -> Result<Option<Rto>, Failure> {
        match self.muster.rto(v1::RtoRequest { unit: unit.to_string() }).await {
            Ok(response) => Ok(Some(response.into_inner().into())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.fail(self.trouble(&status))),
        }
    }

    /// Events, oldest first, with those to come if they are wanted. A lost connection is made again, for [`RETRY_FOR`],
    /// and goes on where it was.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn events(&mut self, wanted: EventsWanted) -> Result<EventStream, Failure> {
        let parts = self.event_parts(&wanted, &mut Retry::new()).await?;
        Ok(EventStream { wanted, parts })
    }

    async fn event_parts(
        &mut self,
        wanted: &EventsWanted,
        retry: &mut Retry,
    ) -> Result<Streaming<v1::EventsPart>, Failure> {
        let request = v1::EventsRequest::from(wanted.clone());
        loop {
            let lost = match self.muster.events(request.clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => match self.trouble(&status) {
                    Trouble::Lost(cause) => cause,
                    Trouble::Final(failure) => return Err(failure),
                },
            };
            if !retry.again(&self.endpoint, &lost).await {
                return Err(unreachable(&self.endpoint, &lost));
            }
        }
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
        self.patiently(ask).await
    }

    /// Has a backup take the place of the cluster that there is.
    ///
    /// # Errors
    /// When it is refused, or the scheduler does not answer.
    pub async fn restore(&mut self, backup: Vec<u8>) -> Result<(), Failure> {
        let count = backup.len().div_ceil(PART_BYTES);
        let part = move |number: usize| {
            let from = number * PART_BYTES;
            let content = &backup[from..backup.len().min(from + PART_BYTES)];
            v1::RestorePart { content: content.to_vec().into() }
        };
        match self.muster.restore(tokio_stream::iter((0..count).map(part))).await {
            Ok(_) => Ok(()),
            Err(status)
                if matches!(
                    status.code(),
                    Code::FailedPrecondition | Code::Aborted | Code::InvalidArgument
                ) =>
            {
                Err(Failure::failed(status.message()))
            }
            Err(status) => {
                let mut failure = self.fail(self.trouble(&status));
                if failure.exit == Exit::Unreachable {
                    failure.message.push_str(
                        "\n  Whether the backup was restored is not known; it is safe to do it once more: a cluster that \
                         has it refuses it.",
                    );
                }
                Err(failure)
            }
        }
    }

    /// The cluster that was restored, once the scheduler leads it.
    ///
    /// # Errors
    /// When the scheduler does not answer.
    pub async fn restored_cluster(&mut self) -> Result<ClusterStatus, Failure> {
        let (until, mut pause) = (Instant::now() + RETRY_FOR, RETRY_FIRST);
        loop {
            match self.try_cluster(&[]).await {
                Ok(cluster) => return Ok(cluster),
                // It leads anew: that is no news.
                Err(Trouble::Lost(_)) if Instant::now() < until => sleep(pause).await,
                Err(trouble) => return Err(self.fail(trouble)),
            }
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    fn trouble(&self, status: &Status) -> Trouble {
        // A status with a source was made on this side, out of what became of the connection.
        if status.code() == Code::Unavailable || status.source().is_some() {
            return Trouble::Lost(match status.source() {
                Some(source) => cause(source),
                None => status.message().to_owned(),
            });
        }
        Trouble::Final(match status.code() {
            Code::Unimplemented => Failure::failed(format_args!(
                "the scheduler at {} does not know this request: musterctl {} speaks another version",
                self.endpoint.address,
                env!("CARGO_PKG_VERSION"),
            )),
            code => Failure::failed(format_args!(
                "the scheduler at {} refuses the request: {} ({code:?})",
                self.endpoint.address,
                status.message(),
            )),
        })
    }

    fn fail(&self, trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Lost(cause) => unreachable(&self.endpoint, &cause),
            Trouble::Final(failure) => failure,
        }
    }

    fn nonsense(&self, error: &ConvertError) -> Failure {
        Failure::failed(format_args!(
            "the scheduler at {} answers what musterctl {} does not understand: {error}",
            self.endpoint.address,
            env!("CARGO_PKG_VERSION"),
        ))
    }
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
            Ok(None) => return Err(Trouble::Lost("the scheduler ended the connection".to_owned())),
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
        let part = self.0.message().await.map_err(|status| client.fail(client.trouble(&status)))?;
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
        let mut retry = Retry::new();
        loop {
            let lost = match self.parts.message().await {
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
                Err(status) => match client.trouble(&status) {
                    Trouble::Lost(cause) => cause,
                    Trouble::Final(failure) => return Err(failure),
                },
            };
            if !retry.again(&client.endpoint, &lost).await {
                return Err(unreachable(&client.endpoint, &lost));
            }
            self.parts = client.event_parts(&self.wanted, &mut retry).await?;
        }
    }
}

/// New tries after a loss: bounded in time, less and less often, and said once.
struct Retry {
    until: Option<Instant>,
    pause: Duration,
}

impl Retry {
    fn new() -> Self {
        Self { until: None, pause: RETRY_FIRST }
    }

    /// Waits for the next try; false when there is none.
    async fn again(&mut self, endpoint: &Endpoint, cause: &str) -> bool {
        let until = *self.until.get_or_insert_with(|| {
            anstream::eprintln!(
                "Lost the scheduler at {} ({cause}); trying again for {} s.",
                endpoint.address,
                RETRY_FOR.as_secs()
            );
            Instant::now() + RETRY_FOR
        });
        if Instant::now() >= until {
            return false;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_MOST);
        true
    }
}

/// What lies at the bottom of an error, in a few words.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    // "Connection refused (os error 111)": the number helps nobody.
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// That no scheduler answers, and what to check.
fn unreachable(endpoint: &Endpoint, cause: &str) -> Failure {
    let (_, port) = endpoint.address.rsplit_once(':').unwrap_or_default();
    Failure::new(
        Exit::Unreachable,
        format_args!(
            "cannot reach the scheduler at {} ({}): {cause}\n  \
             Is it running?            systemctl status muster-scheduler   (on its machine)\n  \
             Is this its address?      --endpoint, {} or `endpoint` in {} names another\n  \
             Is something in between?  a firewall must let TCP port {port} through",
            endpoint.address,
            endpoint.source,
            crate::config::ENDPOINT_VARIABLE,
            "~/.config/muster/ctl.toml",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn an_unreachable_scheduler_says_what_to_check() {
        let endpoint = Endpoint { address: "10.0.0.1:7401".to_owned(), source: Source::Environment };
        insta::assert_snapshot!(unreachable(&endpoint, "Connection refused").message);
    }

    #[test]
    fn the_cause_is_what_the_system_said() {
        let refused = std::io::Error::from_raw_os_error(111);
        let wrapped = std::io::Error::other(refused);
        assert_eq!(cause(&wrapped), "Connection refused");
    }
}
