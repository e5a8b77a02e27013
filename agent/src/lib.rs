//! Muster's agent: the daemon on every machine that runs units.
//!
//! A shell round [`muster_core::agent::Agent`], which decides everything. What comes in over gRPC and D-Bus becomes its
//! inputs, and its effects are carried out without choices of their own.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`daemon`] | the loop |
//! | `systemd` | D-Bus: calls and signals |
//! | [`session`] | gRPC: the streams to a leader |
//! | `streams` | what clients want of this machine itself |
//! | `files` | unit files |
//! | `guard` | the units and scripts with which PID 1 ends exclusive units |
//! | [`goodbye`] | shutdowns, as `muster-goodbye.service` tells of them |
//! | `logind` | shutdowns, as logind announces them |
//! | `records` | what the agent keeps on disk for itself |
//! | [`config`], `identity` | what the machine is |
//! | `notify` | the service manager |

pub mod config;
pub mod daemon;
mod files;
pub mod goodbye;
mod guard;
mod identity;
mod logind;
mod notify;
mod pressure;
mod records;
pub mod session;
pub mod streams;
mod systemd;
