//! systemd, over D-Bus.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `proxy` | what of systemd's interfaces is used |
//! | `bus` | the two connections, one for calls and one for signals, and their ends |
//! | `calls` | what is asked of systemd, and what its answers mean |
//! | `adopt` | units of the machine's own that are taken over, or handed back |
//! | `guard` | the start and the end of the guard of exclusive units |
//! | `signals` | what systemd tells by itself |
//! | `path` | object paths of units |

mod adopt;
mod bus;
mod calls;
mod guard;
mod path;
mod proxy;
mod signals;

pub(crate) use bus::Systemd;
pub(crate) use calls::Call;

/// Whether the machine shuts down.
pub(crate) async fn is_stopping() -> zbus::Result<bool> {
    let connection = zbus::Connection::system().await?;
    Ok(proxy::ManagerProxy::new(&connection).await?.system_state().await? == "stopping")
}
