//! `muster-agent`: the daemon on every machine that runs units.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 64 when command line or configuration make no sense, 1 for all else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use muster_agent::config::{Config, DEFAULT_PATH};
use muster_agent::{daemon, goodbye};
use muster_daemon::{log, program};
use tracing::info;

/// Runs this machine's share of a Muster cluster's units, through its systemd.
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
    /// If the machine shuts down, have the running agent move its units, and wait until that is done. For
    /// muster-goodbye.service.
    #[arg(long)]
    goodbye: bool,
}

const _: () = assert!(!muster_core::HAS_PLANTED_FAULTS, "faults are planted for the simulation alone");

fn main() -> ExitCode {
    program::run(start)
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config)?;
    if arguments.check_config {
        println!("{}: ok", arguments.config.display());
        return Ok(());
    }
    log::start(config.log)?;
    if arguments.goodbye { say_goodbye(&config) } else { run(config) }
}

#[tokio::main(flavor = "current_thread")]
async fn say_goodbye(config: &Config) -> anyhow::Result<()> {
    if goodbye::say(&config.run_dir).await?.is_none() {
        info!("the machine does not shut down: nothing is done");
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn run(config: Config) -> anyhow::Result<()> {
    daemon::run(config).await
}
