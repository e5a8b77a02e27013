//! Muster on machines with a real systemd: what it promises, tried from outside.

mod commands;
mod examples;
mod failure;
mod restarts;
mod store;
mod support;
mod systemd;
