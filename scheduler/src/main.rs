//! `muster-scheduler`: the daemon that leads a cluster.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 64 when command line or configuration make no sense, 1 for all else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use muster_daemon::log;
use muster_scheduler::config::{Config, ConfigError, DEFAULT_PATH};
use muster_scheduler::daemon::Daemon;
use muster_scheduler::notify;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

/// `EX_USAGE` of `sysexits.h`.
const BAD_CONFIG: u8 = 64;

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
    #[arg(long, value_name = "ADDRESS:PORT")]
    insecure_listen: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(BAD_CONFIG) } else { ExitCode::SUCCESS };
        }
    };
    let config = match configure(&arguments) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("muster-scheduler: {:#}", anyhow::Error::new(error));
            return ExitCode::from(BAD_CONFIG);
        }
    };
    if arguments.check_config {
        println!("{}: ok", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    log::start(config.log);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn configure(arguments: &Arguments) -> Result<Config, ConfigError> {
    let mut config = Config::read(&arguments.config)?;
    if let Some(address) = arguments.insecure_listen {
        config.listen = address;
        config.insecure_listen = true;
    }
    config.check()?;
    Ok(config)
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
