//! On the host: a process that stands for a command in a virtual machine, with its standard streams and its exit status.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use super::lines;

/// Runs a command in the machine whose hub listens at `socket`; its exit status.
pub(crate) fn run(socket: &Path, command: &[OsString]) -> Result<u8> {
    let mut stream = UnixStream::connect(socket).context("the cluster's hub does not answer")?;
    let terminal = Terminal::take();
    let command = terminal.wrap(command);
    let mut arguments = Vec::new();
    for word in &command {
        arguments.extend_from_slice(word.as_bytes());
        arguments.push(0);
    }
    writeln!(stream, "run {}", lines::encode(&arguments))?;
    let mut input = stream.try_clone()?;
    thread::spawn(move || {
        lines::pump(io::stdin(), "in", |line| input.write_all(line.as_bytes()));
        input.write_all(b"eof\n")
    });
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let (kind, hex) = lines::split(&line);
        let bytes = lines::decode(hex).context("the hub sent what is no answer")?;
        match kind {
            "out" => stdout.write_all(&bytes).and_then(|()| stdout.flush())?,
            "err" => stderr.write_all(&bytes)?,
            "exit" => return Ok(String::from_utf8_lossy(&bytes).parse().unwrap_or(255)),
            _ => bail!("{}", String::from_utf8_lossy(&bytes)),
        }
    }
    bail!("the machine lost its power or was reset before the command ended")
}

/// The caller's terminal, if there is one: what is typed is the command's alone, also Ctrl-C.
struct Terminal {
    /// The settings to go back to, as `stty` prints them, and the size.
    saved: Option<(String, String)>,
}

impl Terminal {
    fn take() -> Self {
        let saved = (io::stdin().is_terminal() && io::stdout().is_terminal())
            .then(|| Some((stty(&["-g"])?, stty(&["size"])?)))
            .flatten();
        if saved.is_some() {
            stty(&["raw", "-echo"]);
        }
        Self { saved }
    }

    /// The command with a terminal of its own in the machine, of the size of the caller's.
    fn wrap(&self, command: &[OsString]) -> Vec<OsString> {
        const SCRIPT: &str = r#"export WORDS=$(printf "%q " "${@:3}")
            exec script --quiet --return --command "stty rows $1 cols $2; eval \"\$WORDS\"" /dev/null"#;
        let Some((_, size)) = &self.saved else { return command.to_vec() };
        let (rows, columns) = lines::split(size);
        let shell = ["/bin/bash", "-c", SCRIPT, "terminal", rows, columns];
        shell.iter().map(OsString::from).chain(command.iter().cloned()).collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some((settings, _)) = &self.saved {
            stty(&[settings]);
        }
    }
}

/// `stty` works on its standard input.
fn stty(arguments: &[&str]) -> Option<String> {
    let output = Command::new("stty").args(arguments).stdin(std::process::Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
