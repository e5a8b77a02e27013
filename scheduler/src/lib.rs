//! The daemon that leads: a shell round [`muster_core::leader`].
//!
//! Three threads: the network (the caller's tokio runtime), the leader's loop, and the store. They talk over channels;
//! the loop alone owns the state.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`config`] | the configuration file, and which addresses are allowed |
//! | [`daemon`] | start, and shutdown |
//! | `lead` | the loop that owns the leader |
//! | [`store`] | what survives |
//! | `sessions` | agents' streams |
//! | `api`, `watchers` | clients' requests |
//! | `notify` | service manager |

mod api;
pub mod config;
pub mod daemon;
mod lead;
pub mod notify;
mod sessions;
pub mod store;
mod watchers;
