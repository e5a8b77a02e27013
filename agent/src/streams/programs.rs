//! journalctl and systemctl, run for a client: with fixed arguments, never through a shell.

use std::process::Stdio;

use muster_core::unit::UnitName;
use muster_proto::Journal;
use muster_proto::v1::from_machine::Body;
use tokio::process::Command;

use super::{Ended, Output};

/// The newest lines of the journal that a unit's status ends with.
const STATUS_LINES: u32 = 10;

/// Reads a unit's journal.
pub(super) fn journalctl(journal: &Journal) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--quiet"]).arg(format!("--output={}", journal.output));
    command.arg(journal.lines.map_or("--lines=all".to_owned(), |lines| format!("--lines={lines}")));
    if let Some(since) = &journal.since {
        command.arg(format!("--since={since}"));
    }
    if journal.follow {
        command.arg("--follow");
    }
    command.arg(format!("--unit={}", journal.unit));
    command
}

/// Prints what systemd says of a unit.
pub(super) fn systemctl_status(unit: &UnitName) -> Command {
    let mut command = Command::new("systemctl");
    command.args(["status", "--full", "--no-pager"]).arg(format!("--lines={STATUS_LINES}"));
    command.arg("--").arg(unit.as_str());
    command
}

/// Runs it, and sends what it writes. It is killed when this is dropped.
pub(super) async fn run(mut command: Command, output: &Output) -> Ended {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ended::Failed(format!("cannot run {program} there: {error}")),
    };
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Ended::Failed(format!("{program} has no output"));
    };
    let sent = tokio::try_join!(output.send_all(stdout, Body::Data), output.send_all(stderr, Body::Errors));
    match sent {
        Ok((Ok(()), Ok(()))) => {}
        Ok(_) => return Ended::Unwanted,
        Err(error) => return Ended::Failed(format!("cannot read what {program} writes there: {error}")),
    }
    match child.wait().await {
        Ok(status) => match status.code() {
            Some(code) => Ended::Done(code),
            None => Ended::Failed(format!("{program} ended there by a signal: {status}")),
        },
        Err(error) => Ended::Failed(format!("cannot find out how {program} ended there: {error}")),
    }
}
