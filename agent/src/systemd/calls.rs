//! What is asked of systemd, and what its answers mean.

use muster_core::agent::{Adopted, CallError, Checked, Input, Released, Seen, Verb, Write, Written};
use muster_core::ids::SessionNumber;
use muster_core::state::{Failure, UnitState};
use muster_core::time::Time;
use muster_core::unit::{UnitName, UnitType};
use zbus::{Connection, OwnedVariant, Variant, fdo};

use super::path;
use super::proxy::{ListedUnit, ManagerProxy, NAME, UNIT};
use crate::files::{UnitFiles, WriteError};
use crate::own::OwnFiles;

/// How many units are asked about in one call: the answer has about 300 bytes for each, and is held twice while it is
/// read.
const LIST_MAX: usize = 250;
/// After how many units' files others may have a turn.
const WRITE_MAX: usize = 32;

/// Something that the agent asks of systemd.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Start(UnitName),
    Stop(UnitName),
    ResetFailed(UnitName),
    Check(UnitName),
    Explain(UnitName),
    Read(Vec<UnitName>),
    Reload,
    Ping,
    /// Writes files, of units whose names the machine does not use.
    Write(Vec<Write>),
    /// Takes over units of the machine's own.
    Adopt(Write),
    /// Hands one back.
    Release(UnitName),
    /// What units of the machine's own are, for a session's question with this number.
    Inspect(SessionNumber, u64, Vec<UnitName>),
    /// Has PID 1 guard exclusive units until that moment.
    ArmGuard(Time),
    DisarmGuard,
}

/// What it takes to carry out a call.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub connection: Connection,
    pub manager: ManagerProxy<'static>,
    pub files: UnitFiles,
    pub own: OwnFiles,
}

impl Call {
    /// What the agent is told when there is no answer.
    pub(super) fn unanswered(self, reason: &str) -> Option<Input> {
        let error = || CallError::Unanswered(reason.to_owned());
        Some(match self {
            Self::Start(name) => Input::Answered(name, Verb::Start, Err(error())),
            Self::Stop(name) => Input::Answered(name, Verb::Stop, Err(error())),
            Self::ResetFailed(_) => return None,
            Self::Check(name) => Input::Checked(name, None),
            Self::Explain(name) => Input::Explained(name, None),
            Self::Read(names) => Input::Read(names.into_iter().map(|name| (name, None)).collect()),
            Self::Reload => Input::Reloaded(Err(reason.to_owned())),
            Self::Ping => Input::Pong(false),
            Self::ArmGuard(_) => Input::GuardArmed(Err(reason.to_owned())),
            Self::DisarmGuard => Input::GuardDisarmed,
            Self::Adopt(write) => Input::Adopted(write.name, Adopted::Unanswered),
            Self::Release(name) => Input::Released(name, Released::Unanswered),
            Self::Inspect(session, number, units) => {
                let unanswered = |name| (name, Err(format!("systemd there cannot be asked: {reason}")));
                Input::Inspected { session, number, units: units.into_iter().map(unanswered).collect() }
            }
            Self::Write(writes) => {
                Input::Written(writes.into_iter().map(|write| (write.name, Written::Unanswered)).collect())
            }
        })
    }
}

impl Caller {
    /// Does it, and says what the agent is told.
    pub(super) async fn carry_out(&self, call: Call) -> Option<Input> {
        Some(match call {
            Call::Start(name) => {
                let answer = self.manager.start_unit(name.as_str(), "replace").await;
                Input::Answered(name, Verb::Start, job(answer))
            }
            Call::Stop(name) => {
                let answer = self.manager.stop_unit(name.as_str(), "replace").await;
                Input::Answered(name, Verb::Stop, job(answer))
            }
            Call::ResetFailed(name) => {
                // That it is not loaded any more is as well.
                let _ = self.manager.reset_failed_unit(name.as_str()).await;
                return None;
            }
            Call::Check(name) => {
                let answer = self.check(&name).await.ok();
                Input::Checked(name, answer)
            }
            Call::Explain(name) => {
                let answer = self.explain(&name).await.ok().flatten();
                Input::Explained(name, answer)
            }
            Call::Read(names) => Input::Read(self.read(names).await),
            Call::Reload => Input::Reloaded(self.manager.reload().await.map_err(|error| text(&error))),
            Call::Ping => Input::Pong(self.manager.version().await.is_ok()),
            Call::ArmGuard(until) => Input::GuardArmed(self.arm_guard(until).await),
            Call::DisarmGuard => {
                self.disarm_guard().await;
                Input::GuardDisarmed
            }
            Call::Write(writes) => Input::Written(self.write(writes).await),
            Call::Adopt(write) => {
                let adopted = self.adopt(&write).await;
                Input::Adopted(write.name, adopted)
            }
            Call::Release(name) => {
                let released = self.release(&name).await;
                Input::Released(name, released)
            }
            Call::Inspect(session, number, names) => {
                let mut units = Vec::with_capacity(names.len());
                for name in names {
                    let inspected = self.inspect(&name).await;
                    units.push((name, inspected));
                }
                Input::Inspected { session, number, units }
            }
        })
    }

    pub(super) async fn get(
        &self,
        name: &UnitName,
        interface: &str,
        property: &str,
    ) -> zbus::Result<OwnedVariant> {
        let path = path::of_unit(name.as_str());
        let interfaces = Some("org.freedesktop.DBus.Properties");
        let reply =
            self.connection.call_method(Some(NAME), path, interfaces, "Get", &(interface, property)).await?;
        reply.body().deserialize()
    }

    async fn check(&self, name: &UnitName) -> zbus::Result<Checked> {
        let outdated = bool::try_from(self.get(name, UNIT, "NeedDaemonReload").await?)?;
        let active = String::try_from(self.get(name, UNIT, "ActiveState").await?)?;
        Ok(Checked { outdated, active: !matches!(active.as_str(), "inactive" | "failed") })
    }

    /// Why a unit failed, in systemd's words.
    async fn explain(&self, name: &UnitName) -> zbus::Result<Option<Failure>> {
        let interface = match name.unit_type() {
            UnitType::Device | UnitType::Slice | UnitType::Target => return Ok(None),
            kind => format!("{NAME}.{}", kind.section()),
        };
        let result = String::try_from(self.get(name, &interface, "Result").await?)?;
        match name.unit_type() {
            UnitType::Service => {}
            // It was refused before anything could fail.
            UnitType::Socket if result == "success" => {
                let reason = self.running_behind(name).await?;
                return Ok(reason.map(|reason| Failure { result: String::new(), reason }));
            }
            _ => return Ok(Some(Failure { reason: result.clone(), result })),
        }
        let status = i32::try_from(self.get(name, &interface, "ExecMainStatus").await?)?;
        let reason = match (result.as_str(), status) {
            ("exit-code", 1..) => format!("{result}, status {status}"),
            ("signal" | "core-dump", 1..) => format!("{result}, signal {status}"),
            _ => result.clone(),
        };
        Ok(Some(Failure { result, reason }))
    }

    /// Which service keeps a socket from being listened on: systemd refuses that while what it activates is running.
    async fn running_behind(&self, socket: &UnitName) -> zbus::Result<Option<String>> {
        for triggered in <Vec<String>>::try_from(self.get(socket, UNIT, "Triggers").await?)? {
            let Ok(triggered) = UnitName::parse(&triggered) else { continue };
            let active = String::try_from(self.get(&triggered, UNIT, "ActiveState").await?)?;
            if !matches!(active.as_str(), "inactive" | "failed") {
                return Ok(Some(format!(
                    "{triggered}, which it activates, is {active} already; stop that first"
                )));
            }
        }
        Ok(None)
    }

    /// The states of units; nothing of those that could not be read.
    async fn read(&self, names: Vec<UnitName>) -> Vec<(UnitName, Option<Seen>)> {
        let mut read = Vec::with_capacity(names.len());
        for names in names.chunks(LIST_MAX) {
            for (name, listed) in names.iter().zip(self.list(names).await) {
                let seen = match listed {
                    Some(listed) => Some(self.seen(name, listed).await),
                    None => None,
                };
                read.push((name.clone(), seen));
            }
        }
        read
    }

    /// What systemd says of these units, in their order; systemd loads those that are not loaded.
    async fn list(&self, names: &[UnitName]) -> Vec<Option<ListedUnit>> {
        let names: Vec<&str> = names.iter().map(UnitName::as_str).collect();
        match self.manager.list_units_by_names(&names).await {
            Ok(units) if units.len() == names.len() => units.into_iter().map(Some).collect(),
            Ok(units) => {
                tracing::warn!(
                    asked = names.len(),
                    answered = units.len(),
                    "systemd answers for other units"
                );
                names.iter().map(|_| None).collect()
            }
            Err(error) => {
                tracing::debug!(error = text(&error), "systemd does not tell the states of units");
                names.iter().map(|_| None).collect()
            }
        }
    }

    async fn seen(&self, name: &UnitName, listed: ListedUnit) -> Seen {
        let ListedUnit { load, active, sub, job, .. } = listed;
        let load_error = match load.as_str() {
            "loaded" | "not-found" | "masked" => None,
            _ => self.get(name, UNIT, "LoadError").await.ok().and_then(|error| load_error(&error)),
        };
        Seen { state: UnitState { load, active, sub }, job: job != 0, load_error }
    }

    async fn write(&self, writes: Vec<Write>) -> Vec<(UnitName, Written)> {
        let fresh: Vec<UnitName> =
            writes.iter().filter(|write| write.fresh).map(|write| write.name.clone()).collect();
        let mut listed = Vec::with_capacity(fresh.len());
        for names in fresh.chunks(LIST_MAX) {
            listed.extend(self.list(names).await);
        }
        let mut listed = listed.into_iter();
        let mut written = Vec::with_capacity(writes.len());
        for (at, write) in writes.into_iter().enumerate() {
            let standing = if write.fresh {
                self.standing(&write.name, listed.next().flatten()).await
            } else {
                Standing::Ours
            };
            let outcome = match standing {
                Standing::Unknown => Written::Unanswered,
                Standing::Taken(by) => Written::NameTaken(by),
                standing => match self.files.write(&write) {
                    Ok(()) => Written::Done { known: standing == Standing::Ours },
                    Err(WriteError::Taken(path)) => Written::NameTaken(path),
                    Err(error) => Written::Failed(error.to_string()),
                },
            };
            written.push((write.name, outcome));
            if at % WRITE_MAX == WRITE_MAX - 1 {
                tokio::task::yield_now().await;
            }
        }
        written
    }

    /// Whether the machine uses a name.
    async fn standing(&self, name: &UnitName, listed: Option<ListedUnit>) -> Standing {
        let Some(listed) = listed else { return Standing::Unknown };
        let idle = matches!(&*listed.active, "inactive" | "failed");
        if listed.load == "not-found" && idle {
            return Standing::Free;
        }
        let Ok(fragment) = self.get(name, UNIT, "FragmentPath").await.and_then(String::try_from) else {
            return Standing::Unknown;
        };
        if self.files.is_ours(name, &fragment) {
            return Standing::Ours;
        }
        // systemd has every slice, also those that have no file and that nothing uses.
        if name.unit_type() == UnitType::Slice && fragment.is_empty() && idle {
            return Standing::Free;
        }
        Standing::Taken(match (fragment.as_str(), &*listed.load) {
            ("", _) => format!("without a file, {} {}", listed.load, listed.active),
            (_, "masked") => format!("{fragment}, masked"),
            _ => fragment,
        })
    }
}

/// Who uses a unit's name.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Nobody.
    Free,
    /// PID 1 has it loaded from files of Muster's that were there before.
    Ours,
    /// The machine itself: its file, or what is known of it.
    Taken(String),
    Unknown,
}

fn job(answer: zbus::Result<zbus::OwnedObjectPath>) -> Result<u32, CallError> {
    let path = answer.map_err(|error| call_error(&error))?;
    path::job(path.as_str()).ok_or_else(|| CallError::Unanswered(format!("{path} is no job")))
}

/// What an error says of the call: whether systemd has refused, or may have done what it was asked for.
fn call_error(error: &zbus::Error) -> CallError {
    match error {
        zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" => {
            CallError::NotLoaded
        }
        zbus::Error::MethodError(..) => CallError::Refused(text(error)),
        zbus::Error::FDO(refused)
            if matches!(
                **refused,
                fdo::Error::Failed(_)
                    | fdo::Error::AccessDenied(_)
                    | fdo::Error::InvalidArgs(_)
                    | fdo::Error::NotSupported(_)
                    | fdo::Error::FileNotFound(_)
                    | fdo::Error::InteractiveAuthorizationRequired(_)
            ) =>
        {
            CallError::Refused(text(error))
        }
        _ => CallError::Unanswered(text(error)),
    }
}

/// An error in the words of whoever sent it, without the name of its type where it has words.
pub(super) fn text(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(_, Some(text), _) => text.clone(),
        zbus::Error::MethodError(name, None, _) => name.to_string(),
        error => error.to_string(),
    }
}

/// The message of a `LoadError`, which is the name of an error and its message.
fn load_error(value: &Variant<'_>) -> Option<String> {
    let Variant::Structure(error) = value else { return None };
    match error.fields() {
        [Variant::Str(name), Variant::Str(text)] if !text.is_empty() || !name.is_empty() => {
            Some(if text.is_empty() { name } else { text }.as_str().to_owned())
        }
        _ => None,
    }
}
