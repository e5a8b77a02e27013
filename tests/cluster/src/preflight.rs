//! Whether this host can boot machines, and what to do about it if not.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::process;
use crate::state::Backend;
use crate::vm;

/// Checks the host, with the script that the Makefile runs before it builds anything.
///
/// # Errors
/// What is missing, with what to do about it.
pub fn check(backend: Backend) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", include_str!("../host-packages"), "host-packages", "--check"]);
    if backend == Backend::Vm {
        command.arg("--vm").env(vm::DIR_VARIABLE, vm::directory());
    }
    let output =
        process::run(&mut command, "host-packages --check".to_owned(), &[], Duration::from_secs(30))?;
    ensure!(output.success(), "{}", output.stderr.trim());
    Ok(())
}
