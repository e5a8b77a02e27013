//! What Muster is compared with: a minimal client of the machine's own systemd.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;
use zbus::proxy::CacheProperties;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath};

/// How many calls are under way at once: dbus-daemon allows 128.
const WINDOW: usize = 64;
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(120);

const JOB_REMOVED: &str = "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
                           interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// A unit as `ListUnitsByNames` tells of it: name, description, load, active, sub, following, path, job, its type and path.
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn list_units_by_names(&self, names: &[&str]) -> zbus::Result<Vec<Listed>>;
}

/// Starts the units, waits until all are active, and prints the seconds that this took.
#[tokio::main(flavor = "current_thread")]
pub async fn start(units: &[String]) -> Result<()> {
    let calls = Connection::system().await.context("the system bus")?;
    let manager = ManagerProxy::builder(&calls).cache_properties(CacheProperties::No).build().await?;
    // A connection of its own: signals that are not read at once would stall the calls.
    let listener = Connection::system().await.context("the system bus")?;
    let mut signals = MessageStream::from(&listener);
    let bus = "org.freedesktop.DBus";
    listener.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "AddMatch", &JOB_REMOVED).await?;
    manager.subscribe().await?;

    let began = Instant::now();
    let mut waiting: BTreeSet<String> = units.iter().cloned().collect();
    let started = tokio::spawn(async move {
        while !waiting.is_empty() {
            let message = signals.next().await.context("the bus has closed the connection")??;
            let Some((unit, result)) = removed(&message) else { continue };
            if waiting.remove(&unit) && result != "done" {
                bail!("{unit}: the start is {result}");
            }
        }
        Ok(())
    });
    let start = |unit| {
        let manager = &manager;
        async move { manager.start_unit(unit, "replace").await }
    };
    let all = async {
        stream::iter(units.iter().map(String::as_str))
            .map(start)
            .buffer_unordered(WINDOW)
            .try_for_each(|_job| async { Ok(()) })
            .await?;
        started.await?
    };
    timeout(LIMIT, all).await.with_context(|| format!("not all started within {} s", LIMIT.as_secs()))??;
    let seconds = began.elapsed().as_secs_f64();

    let names: Vec<&str> = units.iter().map(String::as_str).collect();
    let active = manager.list_units_by_names(&names).await?.into_iter().filter(|unit| unit.3 == "active");
    let active = active.count();
    ensure!(active == units.len(), "only {active} of {} units are active", units.len());
    println!("{seconds}");
    Ok(())
}

/// The unit of a job that has ended, and how.
fn removed(message: &Message) -> Option<(String, String)> {
    if message.header().member()?.as_str() != "JobRemoved" {
        return None;
    }
    let body = message.body();
    let (_, _, unit, result): (u32, OwnedObjectPath, &str, &str) = body.deserialize().ok()?;
    Some((unit.to_owned(), result.to_owned()))
}
