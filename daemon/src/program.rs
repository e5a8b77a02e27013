//! A daemon's `main`: the command line, the exit code, the last error.

use std::process::ExitCode;

use clap::Parser;
use tracing::error;

use crate::config::ConfigError;
use crate::log;

/// `EX_USAGE` of `sysexits.h`: the units in `packaging` do not start a daemon again that ends with it.
const BAD_CONFIG: u8 = 64;

/// Reads the command line and runs the daemon.
///
/// It ends with 0 when all was well, with 64 when command line or configuration make no sense, with 1 for all else. An
/// error of the configuration goes to standard error, since it comes before the log [is started](crate::log::start);
/// every other one goes to the log.
pub fn run<A: Parser>(daemon: impl FnOnce(&A) -> anyhow::Result<()>) -> ExitCode {
    let arguments = match A::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(BAD_CONFIG) } else { ExitCode::SUCCESS };
        }
    };
    let code = match daemon(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() => {
            eprintln!("{}: {error:#}", A::command().get_name());
            ExitCode::from(BAD_CONFIG)
        }
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    };
    log::flush();
    code
}
