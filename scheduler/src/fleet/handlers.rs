//! What is answered.

use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, StatusCode, Uri};
use muster_core::command::{
    Command, CommandError, CopyRole, CopyStatus, Done, Page, Rows, UnitArgument, UnitErrorKind, UnitStatus,
    Verb,
};
use muster_core::ids::CommandId;
use muster_core::machine::MachineState;
use muster_core::unit::UnitName;
use serde::Serialize;
use tokio::time::timeout;
use tonic::{Code, Status};
use uuid::Uuid;

use super::put::{Known, Put, Step};
use super::reach::Reach;
use super::routes::{Parameters, Route, UnitMethod, route};
use super::wire::{self, Machine, Object, Refused, Unit, UnitState};
use super::{options, patch, token};

/// The largest body, in bytes: a unit file of the largest size, with what JSON adds to it.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a PUT is decided anew, where another client changes the unit meanwhile.
const TRIES: usize = 4;

/// What the API offers, for clients that ask for it.
const DISCOVERY: &str = include_str!("discovery.json");

pub(super) const JSON: &str = "application/json";
const TEXT: &str = "text/plain; version=0.0.4";

/// An answer: its status, and what is in it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<&'static str>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    fn json(content: &impl Serialize) -> Self {
        let body = serde_json::to_vec(content).unwrap_or_default();
        Self { status: StatusCode::OK, content_type: Some(JSON), body }
    }

    fn empty(status: StatusCode) -> Self {
        Self { status, content_type: None, body: Vec::new() }
    }
}

impl From<Refused> for Reply {
    fn from(refused: Refused) -> Self {
        Self { status: refused.status, ..Self::json(&refused.body()) }
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(code, status.message())
    }
}

/// fleet's API.
#[derive(Debug)]
pub(super) struct Api(pub(super) Reach);

impl Api {
    /// Answers a request.
    pub(super) async fn answer<B>(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: B) -> Reply
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let parameters = Parameters::new(uri.query());
        let answered = match route(method, uri.path()) {
            Err(refused) => Err(refused),
            Ok(Route::Units) => self.units(&parameters).await,
            Ok(Route::Unit(name, UnitMethod::Get)) => self.unit(&name).await,
            Ok(Route::Unit(name, UnitMethod::Delete)) => self.destroy(&name).await,
            Ok(Route::Unit(name, UnitMethod::Put)) => self.put(&name, headers, body).await,
            Ok(Route::States) => self.states(&parameters).await,
            Ok(Route::State(name)) => self.state(&name).await,
            Ok(Route::Machines) => self.machines(&parameters).await,
            Ok(Route::PatchMachines) => self.patch(body).await,
            Ok(Route::Discovery) => Ok(Reply { body: DISCOVERY.into(), ..Reply::json(&()) }),
            Ok(Route::Metrics) => Ok(self.metrics()),
        };
        answered.unwrap_or_else(Into::into)
    }

    async fn units(&self, parameters: &Parameters) -> Result<Reply, Refused> {
        let number = token::page(&parameters.all("nextPageToken"))?;
        let most = usize::from(token::LIMIT);
        // One more, to know whether there is another page.
        let page = Page { rows: Rows::Units, skip: token::skip(number), most: most + 1 };
        let mut units: Vec<Unit> = self.0.page(page).await?.iter().map(listed).collect();
        let next_page_token = (units.len() > most).then(|| token::after(number)).flatten();
        units.truncate(most);
        Ok(Reply::json(&wire::Page { units, next_page_token, ..Default::default() }))
    }

    async fn unit(&self, name: &str) -> Result<Reply, Refused> {
        let known = match name.parse() {
            Ok(name) => self.status(&name).await?.filter(|status| status.known),
            Err(_) => None,
        };
        known.map(|status| Reply::json(&unit(&status))).ok_or_else(unknown)
    }

    async fn status(&self, name: &UnitName) -> Result<Option<UnitStatus>, Refused> {
        Ok(self.0.units(vec![name.clone()]).await?.pop())
    }

    async fn destroy(&self, name: &str) -> Result<Reply, Refused> {
        let name: UnitName = name.parse().map_err(|_| unknown())?;
        let step =
            Step { verb: Verb::Destroy, content: None, replace: false, status: StatusCode::NO_CONTENT };
        match self.carry_out(&name, &step).await? {
            Carried::Out | Carried::NotAsDecided => Ok(Reply::empty(step.status)),
            Carried::Unknown => Err(unknown()),
        }
    }

    async fn put<B>(&self, name: &str, headers: &HeaderMap, body: B) -> Result<Reply, Refused>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        is_json(headers)?;
        let body = read(body).await?;
        let Object(body) = serde_json::from_slice(&body)
            .map_err(|error| Refused::bad(format!("unable to decode body: {error}")))?;
        let name: UnitName = name.parse().map_err(|error| Refused::bad(format!("{error}")))?;
        let put = Put::new(&name, body)?;
        for _ in 0..TRIES {
            let known = self
                .status(&name)
                .await?
                .filter(|status| status.known)
                .map(|status| Known { content: status.content.unwrap_or_default(), desired: status.desired });
            let step = put.decide(&name, known.as_ref())?;
            if let Carried::Out = self.carry_out(&name, &step).await? {
                return Ok(Reply::empty(step.status));
            }
        }
        Err(Refused::new(StatusCode::CONFLICT, "another client changes this unit all the time; try again"))
    }

    async fn carry_out(&self, name: &UnitName, step: &Step) -> Result<Carried, Refused> {
        let command = Command {
            id: CommandId::new(Uuid::new_v4().as_u128()),
            verb: step.verb,
            units: vec![UnitArgument { name: name.clone(), content: step.content.clone() }],
            replace: step.replace,
        };
        let errors = match self.0.execute(command).await? {
            Ok(outcomes) if outcomes.iter().any(|outcome| outcome.done == Done::KeptOtherContent) => {
                return Ok(Carried::NotAsDecided);
            }
            Ok(_) => return Ok(Carried::Out),
            Err(CommandError::Units(errors)) => errors,
            Err(error @ CommandError::Store(_)) => {
                return Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()));
            }
            Err(error @ CommandError::NotLeader) => {
                return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()));
            }
        };
        let kinds = errors.into_iter().map(|error| error.kind);
        match kinds.last() {
            None | Some(UnitErrorKind::NotFound) => Ok(Carried::Unknown),
            Some(UnitErrorKind::Inactive(_) | UnitErrorKind::InUse(..)) => Ok(Carried::NotAsDecided),
            Some(kind @ (UnitErrorKind::Invalid(_) | UnitErrorKind::Template(_))) => {
                Err(Refused::bad(kind.to_string()))
            }
        }
    }

    async fn states(&self, parameters: &Parameters) -> Result<Reply, Refused> {
        let number = token::page(&parameters.all("nextPageToken"))?;
        let filter = (parameters.first("unitName"), parameters.first("machineID"));
        let (unit, machine) = match (filter.0.map(str::parse), filter.1.map(str::parse)) {
            // Nothing has such a name, or such an id.
            (Some(Err(_)), _) | (_, Some(Err(_))) => return Ok(Reply::json(&wire::Page::default())),
            (unit, machine) => (unit.and_then(Result::ok), machine.and_then(Result::ok)),
        };
        let most = usize::from(token::LIMIT);
        let rows = Rows::States { unit, machine };
        let units = self.0.page(Page { rows, skip: token::skip(number), most: most + 1 }).await?;
        let mut states: Vec<UnitState> = units.iter().flat_map(states).collect();
        let next_page_token = (states.len() > most).then(|| token::after(number)).flatten();
        states.truncate(most);
        Ok(Reply::json(&wire::Page { states, next_page_token, ..Default::default() }))
    }

    /// Of a unit that is known there is always an answer: fleetctl cannot bear another one.
    async fn state(&self, name: &str) -> Result<Reply, Refused> {
        let none = || Refused::new(StatusCode::NOT_FOUND, "unit state does not exist");
        let status = self.status(&name.parse().map_err(|_| none())?).await?.ok_or_else(none)?;
        Ok(Reply::json(&states(&status).next().unwrap_or_default()))
    }

    async fn machines(&self, parameters: &Parameters) -> Result<Reply, Refused> {
        let number = token::page(&parameters.all("nextPageToken"))?;
        let most = usize::from(token::LIMIT);
        let cluster = self.0.machines().await?;
        let mut machines = cluster
            .machines
            .into_iter()
            .filter(|machine| machine.state != MachineState::Unreachable)
            .skip(token::skip(number));
        let page = machines.by_ref().take(most).map(|machine| Machine {
            id: machine.id.to_string(),
            primary_ip: machine.record.address,
            metadata: machine.record.labels,
        });
        let page = page.collect();
        let next_page_token = machines.next().and_then(|_| token::after(number));
        Ok(Reply::json(&wire::Page { machines: page, next_page_token, ..Default::default() }))
    }

    async fn patch<B>(&self, body: B) -> Result<Reply, Refused>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let edits = patch::edits(&read(body).await?)?;
        self.0.edit_labels(edits).await?;
        Ok(Reply { content_type: Some(JSON), ..Reply::empty(StatusCode::NO_CONTENT) })
    }

    /// What of fleet's metrics there is here.
    fn metrics(&self) -> Reply {
        let since = self.0.leads_since().unwrap_or(0.0);
        let text = format!(
            "# HELP fleet_engine_leader_start_time When this scheduler began to lead, in seconds since 1970; 0 where it does \
             not.\n# TYPE fleet_engine_leader_start_time gauge\nfleet_engine_leader_start_time {since}\n"
        );
        Reply { status: StatusCode::OK, content_type: Some(TEXT), body: text.into_bytes() }
    }
}

/// What became of a command on one unit.
enum Carried {
    Out,
    /// The unit is not (any more) as it was when that was decided.
    NotAsDecided,
    /// There is no such unit.
    Unknown,
}

fn unknown() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "unit does not exist")
}

fn is_json(headers: &HeaderMap) -> Result<(), Refused> {
    let unsupported = |text: String| Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    let types: Vec<_> = headers.get_all(CONTENT_TYPE).iter().collect();
    let [content_type] = types[..] else {
        return Err(unsupported(format!("expected 1 Content-Type, got {}", types.len())));
    };
    let media_type = content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case(JSON) {
        Ok(())
    } else {
        Err(unsupported(format!("only acceptable Content-Type is {JSON}")))
    }
}

async fn read<B>(body: B) -> Result<Bytes, Refused>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body is larger than the {MAX_BODY} bytes that are allowed");
            Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => Err(Refused::bad(format!("unable to read body: {error}"))),
        Err(_) => {
            let text = format!("the body has not come within {} s", BODY_TIMEOUT.as_secs());
            Err(Refused::new(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}

/// A unit, as it is answered alone.
fn unit(status: &UnitStatus) -> Unit {
    let placed = status.current_copy().filter(|_| !status.global);
    Unit {
        name: status.name.to_string(),
        options: status.content.as_deref().map(options::read).unwrap_or_default(),
        desired_state: status.desired.to_string(),
        current_state: status.current_state().map(|state| state.to_string()),
        machine_id: placed.map(|copy| copy.machine.to_string()),
    }
}

/// The same in a list, where fleet says of a global unit that it is inactive.
fn listed(status: &UnitStatus) -> Unit {
    let inactive = || muster_core::state::DesiredState::Inactive.to_string();
    let unit = unit(status);
    Unit { current_state: unit.current_state.or_else(|| Some(inactive())), ..unit }
}

/// What systemd says of the unit, on each machine that has told it.
fn states(status: &UnitStatus) -> impl Iterator<Item = UnitState> {
    // The file is that of the copies that were decided; what older ones were started from is not known here.
    let mut hash = None;
    let mut hash_of = move |copy: &CopyStatus| {
        let content = status.content.as_deref().filter(|_| copy.role == CopyRole::Current)?;
        Some(hash.get_or_insert_with(|| options::hash(content)).clone())
    };
    status.copies.iter().filter_map(move |copy| {
        let state = copy.unit_state()?;
        Some(UnitState {
            name: status.name.to_string(),
            hash: hash_of(copy).unwrap_or_default(),
            machine_id: copy.machine.to_string(),
            systemd_load_state: state.load.clone(),
            systemd_active_state: state.active.clone(),
            systemd_sub_state: state.sub.clone(),
        })
    })
}
