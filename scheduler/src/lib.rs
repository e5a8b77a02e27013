//! The daemon that leads: a shell round [`muster_core::leader`].
//!
//! Four threads: the network (the caller's tokio runtime), the leader's loop, the store, and the journal. They talk over channels;
//! the loop alone owns the state.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`config`] | the configuration file, and which addresses are allowed |
//! | [`daemon`] | start, and shutdown |
//! | `membership` | what makes this scheduler one of several |
//! | `front` | whom agents and clients meet |
//! | `lead` | the loop that owns the leader |
//! | [`store`] | what survives |
//! | `sessions` | agents' streams |
//! | `streams` | clients' streams to machines |
//! | `api`, `watchers` | clients' requests |
//! | `fleet` | fleet's HTTP API |
//! | `describe` | what this scheduler says of itself |
//! | `events` | what happened, for clients and the journal |
//! | `notify` | service manager |

mod api;
pub mod config;
pub mod daemon;
mod describe;
mod events;
mod fleet;
mod front;
mod lead;
mod membership;
mod notify;
mod sessions;
pub mod store;
mod streams;
mod watchers;
