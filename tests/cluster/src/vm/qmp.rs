//! QEMU's control socket, as far as it is used: pulling the network cable, pausing, and what moves a machine into a file.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Its file in the machine's directory.
pub(super) const SOCKET: &str = "qmp.sock";

/// Gives a command without arguments, such as `stop`, and returns QEMU's answer.
pub(super) fn command(socket: &Path, name: &str) -> Result<Value> {
    execute(socket, &json!({"execute": name}))
}

/// Gives a command, and returns QEMU's answer.
pub(super) fn execute(socket: &Path, command: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut tell = |command: &Value| {
        writeln!(stream, "{command}")?;
        // Before the answer there may be the greeting, and news.
        loop {
            let line = lines.next().context("QEMU hung up")??;
            let mut answer: Value = serde_json::from_str(&line).context("QEMU's answer")?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    };
    tell(&json!({"execute": "qmp_capabilities"}))?;
    tell(command)
}
