//! fleet's HTTP API, as a client meets it: over TCP and over a unix socket, with machines that are made up.

#[path = "../common/mod.rs"]
mod common;
mod fleetctl;
mod http;
mod limits;
mod machines;
mod pages;
mod several;
mod units;
