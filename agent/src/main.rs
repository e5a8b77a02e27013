//! `muster-agent`: the daemon on every machine that runs units.
//!
//! Exit codes: 0 after SIGTERM or SIGINT, 64 when command line or configuration make no sense, 1 for all else.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use muster_agent::config::{Config, ConfigError, DEFAULT_PATH};
use muster_agent::daemon;
use muster_daemon::log;
use tracing::error;

/// `EX_USAGE` of `sysexits.h`.
const BAD_CONFIG: u8 = 64;

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
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(BAD_CONFIG) } else { ExitCode::SUCCESS };
        }
    };
    let config = match configure(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("muster-agent: {:#}", anyhow::Error::new(error));
            return ExitCode::from(BAD_CONFIG);
        }
    };
    if arguments.check_config {
        println!("{}: ok", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    log::start(config.log);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn configure(path: &Path) -> Result<Config, ConfigError> {
    let config = Config::read(path)?;
    config.check()?;
    Ok(config)
}

#[tokio::main(flavor = "current_thread")]
async fn run(config: Config) -> anyhow::Result<()> {
    daemon::run(config).await
}
