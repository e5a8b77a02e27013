//! Everything Muster decides, as pure state machines.
//!
//! Two of them: [`leader::Leader`] and [`agent::Agent`]. Each is handed the time and an input and answers with
//! effects; the daemons are shells that turn sockets, D-Bus and disks into inputs and carry the effects out. Nothing
//! here reads a clock, does I/O, waits or rolls dice, so that a whole cluster can run in one thread of a test.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`mod@unit`] | unit names, unit files, options |
//! | [`ids`], [`time`], [`machine`], [`state`] | the words of the domain, as types |
//! | [`message`] | what leader and agent say to each other |
//! | [`stream`] | what a client wants from a machine itself |
//! | [`command`] | what clients ask for, and what they are answered |
//! | [`placement`] | which machine takes a unit, and why the others do not |
//! | [`leader`], [`agent`] | the two state machines |
//! | [`planted`] | faults that the simulation must find; no daemon has them |

pub mod agent;
mod by_name;
pub mod command;
pub mod ids;
pub mod leader;
pub mod machine;
pub mod message;
pub mod placement;
pub mod planted;
pub mod state;
pub mod stream;
pub mod time;
pub mod unit;

pub use planted::HAS_PLANTED_FAULTS;
