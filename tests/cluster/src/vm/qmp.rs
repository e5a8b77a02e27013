//! QEMU's control socket, as far as it is used: pulling the network cable.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Its file in the machine's directory.
pub(super) const SOCKET: &str = "qmp.sock";

/// Sets whether a network device's link is up.
pub(super) fn set_link(socket: &Path, device: &str, up: bool) -> Result<()> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let commands = [
        json!({"execute": "qmp_capabilities"}),
        json!({"execute": "set_link", "arguments": {"name": device, "up": up}}),
    ];
    for command in commands {
        writeln!(stream, "{command}")?;
        // Before the answer there may be the greeting, and news.
        loop {
            let line = lines.next().context("QEMU hung up")??;
            let answer: Value = serde_json::from_str(&line).context("QEMU's answer")?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if answer.get("return").is_some() {
                break;
            }
        }
    }
    Ok(())
}
