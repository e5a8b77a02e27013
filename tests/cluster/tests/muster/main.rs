//! Muster on machines with a real systemd: what it promises, tried from outside.

mod adopt;
mod backup;
mod clones;
mod commands;
mod examples;
mod exclusive;
mod failing;
mod failure;
mod fidelity;
mod fleet;
mod guard;
mod machines;
mod restarts;
mod several;
mod ssh;
mod stalls;
mod store;
mod storm;
mod streams;
mod support;
mod systemd;
mod upgrade;
mod vm;
