//! The two connections to the bus, one for calls and one for signals, and what happens when they end.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use muster_core::agent::Input;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;
use zbus::Connection;
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::proxy::CacheProperties;

use super::calls::{Call, Caller};
use super::proxy::{ManagerProxy, NAME};
use super::signals::Signals;
use crate::files::UnitFiles;
use crate::own::OwnFiles;

/// How many calls are under way at most: dbus-daemon allows 128 on one connection, and refuses what is beyond.
const CALLS_MAX: usize = 64;
/// How many messages a connection holds for whoever reads them.
const QUEUE: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// How long an answer may take. A reload of a machine with thousands of units takes 8 s, and under a storm of starts a
/// call has been seen to take 25 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait before the next attempt to connect.
const RETRY: Duration = Duration::from_secs(1);

/// A handle on systemd; what becomes of a call is told as an input of the agent.
#[derive(Debug)]
pub(crate) struct Systemd {
    calls: mpsc::UnboundedSender<Call>,
}

impl Systemd {
    /// Connects, and connects again whenever the connection ends.
    pub(crate) fn start(files: UnitFiles, own: OwnFiles, inputs: mpsc::Sender<Input>) -> Self {
        let (calls, receiver) = mpsc::unbounded_channel();
        tokio::spawn(supervise(files, own, inputs, receiver));
        Self { calls }
    }

    /// Asks for something. There are never more calls than units and a few.
    pub(crate) fn call(&self, call: Call) {
        // The other side ends with the agent only.
        let _ = self.calls.send(call);
    }
}

async fn supervise(
    files: UnitFiles,
    own: OwnFiles,
    inputs: mpsc::Sender<Input>,
    mut calls: mpsc::UnboundedReceiver<Call>,
) {
    let mut complained = false;
    while !inputs.is_closed() {
        match connect(&files, &own).await {
            Ok((caller, signals)) => {
                complained = false;
                tracing::info!("connected to systemd");
                let _ = inputs.send(Input::SystemdUp).await;
                serve(&caller, signals, &inputs, &mut calls).await;
                tracing::warn!("the connection to systemd is lost");
                let _ = inputs.send(Input::SystemdDown).await;
            }
            Err(error) if !complained => {
                complained = true;
                tracing::error!(%error, "cannot connect to systemd over D-Bus; is the system bus running?");
            }
            Err(_) => {}
        }
        let retry = tokio::time::sleep(RETRY);
        tokio::pin!(retry);
        loop {
            tokio::select! {
                () = &mut retry => break,
                Some(call) = calls.recv() => refuse(call, &inputs).await,
            }
        }
    }
}

async fn connect(files: &UnitFiles, own: &OwnFiles) -> zbus::Result<(Caller, Signals)> {
    let system = || Builder::system().max_queued(QUEUE).method_timeout(CALL_TIMEOUT).build();
    let connection: Connection = system().await?;
    if !DBusProxy::new(&connection).await?.name_has_owner(NAME.try_into()?).await? {
        call_back();
    }
    let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
    // Answered once systemd is there: its coming must not be taken for its leaving.
    manager.version().await?;
    let signals = Signals::listen(system().await?).await?;
    // Who has asked counts for the whole bus, as long as its connection lasts.
    manager.subscribe().await?;
    Ok((Caller { connection, manager, files: files.clone(), own: own.clone() }, signals))
}

/// Has systemd connect to the bus again (SIGUSR1, see systemd(1)). When it loses its connection while the bus lives on,
/// as it does at the bus's limit of match rules, it does not do so by itself.
fn call_back() {
    // Another init might take the signal for something else.
    if Path::new("/run/systemd/private").exists()
        && let Err(error) = kill_process(Pid::INIT, Signal::USR1)
    {
        tracing::warn!(%error, "cannot signal PID 1");
    }
}

/// Carries out calls until a connection ends. Then every call that was under way is answered.
async fn serve(
    caller: &Caller,
    signals: Signals,
    inputs: &mpsc::Sender<Input>,
    calls: &mut mpsc::UnboundedReceiver<Call>,
) {
    let mut signals = tokio::spawn(signals.run(inputs.clone()));
    let mut open = BTreeMap::new();
    let mut under_way = FuturesUnordered::new();
    let mut last = 0_u64;
    loop {
        tokio::select! {
            Some((number, input)) = under_way.next() => {
                open.remove(&number);
                if let Some(input) = input {
                    let _ = inputs.send(input).await;
                }
            }
            Some(call) = calls.recv(), if open.len() < CALLS_MAX => {
                last += 1;
                let number = last;
                open.insert(number, call.clone());
                under_way.push(async move { (number, caller.carry_out(call).await) });
            }
            _ = &mut signals => break,
            () = caller.connection.closed() => break,
        }
    }
    signals.abort();
    for call in open.into_values() {
        refuse(call, inputs).await;
    }
}

async fn refuse(call: Call, inputs: &mpsc::Sender<Input>) {
    if let Some(input) = call.unanswered("there is no connection to systemd") {
        let _ = inputs.send(input).await;
    }
}
