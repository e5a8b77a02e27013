//! Shutdowns that logind announces.
//!
//! `systemctl reboot` and the like ask logind where that runs, and it holds the shutdown back as long as somebody has a
//! delay lock, for `InhibitDelayMaxSec=` (5 s unless set) at most. So units can move before PID 1 has stopped anything.
//! What takes longer, and shutdowns that logind is not asked for, are left to `muster-goodbye.service`.

use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tracing::debug;
use zbus::connection::Builder;
use zbus::proxy::CacheProperties;

use crate::goodbye::Shutdown;

/// How long logind's answer may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before the next attempt to connect to the bus.
const RETRY: Duration = Duration::from_secs(1);

/// What of `org.freedesktop.login1(5)` is used.
#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    /// Takes a lock, which lasts until the descriptor is closed. None is given once a shutdown has begun.
    #[zbus(no_autostart)]
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<zbus::OwnedFd>;

    /// A shutdown begins, or has come to nothing.
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, begins: bool) -> zbus::Result<()>;
}

/// Listens to logind from now on, whenever there is one.
pub(crate) fn listen() -> mpsc::Receiver<Shutdown> {
    let (shutdowns, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut begun = false;
        while !shutdowns.is_closed() {
            if let Err(error) = follow(&shutdowns, &mut begun).await {
                debug!(%error, "cannot listen to logind");
            }
            tokio::time::sleep(RETRY).await;
        }
    });
    receiver
}

/// Hands on what logind says, until the connection to the bus ends. `begun`: whether it last said that a shutdown begins.
async fn follow(shutdowns: &mpsc::Sender<Shutdown>, begun: &mut bool) -> zbus::Result<()> {
    let connection = Builder::system().method_timeout(CALL_TIMEOUT).build().await?;
    let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
    let mut announced = manager.receive_prepare_for_shutdown().await?;
    let mut owners = manager.inner().receive_owner_changed().await?;
    let mut lock = take_lock(&manager).await;
    // It was taken back while nobody listened.
    if lock.is_some() && std::mem::take(begun) && shutdowns.send(Shutdown::Cancelled).await.is_err() {
        return Ok(());
    }
    loop {
        let begins = tokio::select! {
            Some(signal) = announced.next() => *signal.args()?.begins(),
            Some(owner) = owners.next() => {
                if owner.is_none() {
                    continue;
                }
                false
            }
            () = connection.closed() => return Ok(()),
        };
        let shutdown = if begins {
            *begun = true;
            Shutdown::Begins(lock.take())
        } else {
            lock = take_lock(&manager).await;
            // Who gives a lock does not shut the machine down: nor does a logind that has come anew, whatever the one
            // before it was about to do.
            if lock.is_none() {
                continue;
            }
            *begun = false;
            Shutdown::Cancelled
        };
        if shutdowns.send(shutdown).await.is_err() {
            return Ok(());
        }
    }
}

async fn take_lock(manager: &ManagerProxy<'_>) -> Option<OwnedFd> {
    let why = "Units are started on other machines before they stop here";
    match manager.inhibit("shutdown", "Muster", why, "delay").await {
        Ok(lock) => Some(lock.into()),
        Err(error) => {
            debug!(%error, "logind gives no lock");
            None
        }
    }
}
