//! `muster-scheduler`: the daemon that leads a cluster.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 64 when command line or configuration make no sense, 1 for all else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use muster_daemon::{descriptors, log, notify, program};
use muster_scheduler::config::{Config, DEFAULT_PATH, insecure_address};
use muster_scheduler::daemon::Daemon;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// Leads a Muster cluster: places units on machines, and keeps them there.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 after SIGTERM, 64 for a bad command line or configuration, 1 for all else."
)]
struct Arguments {
    /// Configuration file; every option is described in the sample file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Check the configuration, and do nothing else.
    #[arg(long)]
    check_config: bool,
    /// Listen on this address without encryption or authentication: loopback, or the test network 198.18.0.0/15.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = insecure_address)]
    insecure_listen: Option<SocketAddr>,
}

const _: () = assert!(!muster_core::HAS_PLANTED_FAULTS, "faults are planted for the simulation alone");

fn main() -> ExitCode {
    program::run(start)
}

fn start(arguments: &Arguments) -> Result<()> {
    let mut config = Config::read(&arguments.config, arguments.insecure_listen)?;
    config.runtime_dir = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    if arguments.check_config {
        // What was read without an error and does not exist is the default file, which need not.
        let found = if arguments.config.exists() { "ok" } else { "does not exist, so the defaults hold: ok" };
        println!("{}: {found}", arguments.config.display());
        return Ok(());
    }
    log::start(config.log)?;
    if let Err(error) = descriptors::allow_all() {
        warn!(%error, "cannot raise the limit of open files: there may be no room for all agents");
    }
    run(&config)
}

#[tokio::main(flavor = "current_thread")]
async fn run(config: &Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut daemon = Daemon::start(config).await?;
    notify::tell(&[NotifyState::Ready]);
    tokio::select! {
        error = daemon.failed() => return Err(error),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    notify::tell(&[NotifyState::Stopping]);
    daemon.shutdown().await
}
