//! What systemd tells by itself.

use std::collections::HashMap;

use futures_util::StreamExt;
use muster_core::agent::Input;
use muster_core::unit::UnitName;
use tokio::sync::mpsc;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath, Variant};

use super::{path, proxy};

/// Which messages the bus hands on: nothing that nobody looks at, since it would cost everybody time.
const RULES: [&str; 4] = [
    "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.DBus.Properties',\
     member='PropertiesChanged',path_namespace='/org/freedesktop/systemd1/unit',\
     arg0='org.freedesktop.systemd1.Unit'",
    "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
     interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
    "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
     interface='org.freedesktop.systemd1.Manager',member='Reloading'",
    "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',\
     arg0='org.freedesktop.systemd1'",
];

/// Signals of systemd, from now on.
pub(super) struct Signals {
    stream: MessageStream,
    // Kept open: it ends with the last handle.
    _connection: Connection,
}

impl Signals {
    pub(super) async fn listen(connection: Connection) -> zbus::Result<Self> {
        // Before the rules, so that none is missed.
        let stream = MessageStream::from(&connection);
        for rule in RULES {
            connection
                .call_method(
                    Some("org.freedesktop.DBus"),
                    "/org/freedesktop/DBus",
                    Some("org.freedesktop.DBus"),
                    "AddMatch",
                    &rule,
                )
                .await?;
        }
        Ok(Self { stream, _connection: connection })
    }

    /// Hands on all that comes, until the connection ends or systemd leaves the bus.
    ///
    /// Nothing on the connection is waited for here: a stream that is not read stalls it.
    pub(super) async fn run(mut self, inputs: mpsc::Sender<Input>) {
        while let Some(Ok(message)) = self.stream.next().await {
            match read(&message) {
                Ok(Signal::Input(input)) => {
                    if inputs.send(input).await.is_err() {
                        return;
                    }
                }
                Ok(Signal::OwnerChanged) => return,
                Ok(Signal::Nothing) => {}
                Err(error) => tracing::debug!(%error, "a signal of systemd cannot be read"),
            }
        }
    }
}

enum Signal {
    Input(Input),
    /// systemd has left the bus or come to it: what was subscribed to is forgotten.
    OwnerChanged,
    Nothing,
}

fn read(message: &Message) -> zbus::Result<Signal> {
    if message.message_type() != Type::Signal {
        return Ok(Signal::Nothing);
    }
    let header = message.header();
    let input = match header.member().map_or("", |member| member.as_str()) {
        "PropertiesChanged" => {
            let unit = header.path().and_then(|path| path::unit(path.as_str()));
            unit.map_or(Ok(None), |unit| changed(message, &unit))?
        }
        "JobRemoved" => {
            let body = message.body();
            let (job, _, unit, result): (u32, OwnedObjectPath, &str, &str) = body.deserialize()?;
            UnitName::parse(unit).ok().map(|unit| Input::JobRemoved(unit, job, result.to_owned()))
        }
        "Reloading" => Some(Input::Reloading(message.body().deserialize()?)),
        "NameOwnerChanged" => return Ok(Signal::OwnerChanged),
        _ => None,
    };
    Ok(input.map_or(Signal::Nothing, Signal::Input))
}

/// A change of a unit's state; none when the signal says nothing of it.
fn changed(message: &Message, unit: &str) -> zbus::Result<Option<Input>> {
    let body = message.body();
    let (interface, mut values, _): (&str, HashMap<&str, Variant<'_>>, Vec<&str>) = body.deserialize()?;
    let Ok(unit) = UnitName::parse(unit) else { return Ok(None) };
    if interface != proxy::UNIT {
        return Ok(None);
    }
    let mut text = |key| match values.remove(key) {
        Some(Variant::Str(text)) => Some(text.as_str().to_owned()),
        _ => None,
    };
    let (Some(active), Some(sub)) = (text("ActiveState"), text("SubState")) else { return Ok(None) };
    let job = match values.remove("Job") {
        Some(Variant::Structure(job)) => matches!(job.fields().first(), Some(Variant::U32(job)) if *job != 0),
        _ => false,
    };
    Ok(Some(Input::Changed { unit, active, sub, job }))
}
