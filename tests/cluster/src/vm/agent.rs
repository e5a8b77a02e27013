//! In a virtual machine: runs the commands that come through its serial port, as many at once as are asked for.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{AGENT_PORT, WITNESS_PORT, lines};
use crate::machine::EXEC_DEADLINE;
use crate::wait::{self, Poll};

/// Where the machine's units find the witness.
const WITNESS: &str = "/run/muster-witness";
const NEW_WITNESS: &str = "/run/muster-witness.new";

/// A command that runs.
struct Running {
    group: Option<Pid>,
    /// For its standard input, which is closed with this.
    input: Option<Sender<Vec<u8>>>,
}

type Commands = Arc<Mutex<HashMap<String, Running>>>;

/// Where lines to the host are written, each whole.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn send(&self, line: &str) -> std::io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes())
    }
}

/// Serves the host until the port is closed, which it never is.
pub(crate) fn run() -> Result<()> {
    let path = port(AGENT_PORT)?;
    // Nobody else gives names to devices here. Renamed over what an early unit may have written there.
    symlink(port(WITNESS_PORT)?, NEW_WITNESS).context(NEW_WITNESS)?;
    fs::rename(NEW_WITNESS, WITNESS).context(WITNESS)?;
    let file =
        File::options().read(true).write(true).open(&path).with_context(|| path.display().to_string())?;
    let lines = BufReader::new(file.try_clone()?).lines();
    let port = Port(Arc::new(Mutex::new(file)));
    let commands = Commands::default();
    // The line before may be half of one of the last boot.
    port.send("\nboot\n")?;
    for line in lines {
        let line = line?;
        let (id, rest) = lines::split(&line);
        let (kind, hex) = lines::split(rest);
        let Some(bytes) = lines::decode(hex) else { continue };
        if kind == "hello" {
            port.send("here\n")?;
            continue;
        }
        if kind == "run" {
            start(id, &bytes, &port, &commands)?;
            continue;
        }
        // What is sent to a command that has ended comes too late.
        let mut commands = commands.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(running) = commands.get_mut(id) else { continue };
        match kind {
            "in" => {
                let _ = running.input.as_ref().map(|input| input.send(bytes));
            }
            "eof" => running.input = None,
            "end" => {
                let _ = running.group.map(|group| kill_process_group(group, Signal::KILL));
            }
            _ => {}
        }
    }
    bail!("{} was closed", path.display())
}

/// The device of the serial port that has this name; its number depends on what else is plugged in.
fn port(name: &str) -> Result<PathBuf> {
    const DIRECTORY: &str = "/sys/class/virtio-ports";
    // The host tells the names a moment after the ports.
    wait::until(&format!("the serial port {name}"), EXEC_DEADLINE, || {
        for entry in fs::read_dir(DIRECTORY).context(DIRECTORY)? {
            let entry = entry?;
            if fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim() == name) {
                return Ok(Poll::Ready(Path::new("/dev").join(entry.file_name())));
            }
        }
        Ok(Poll::Pending("no port has it".to_owned()))
    })
}

fn start(id: &str, arguments: &[u8], port: &Port, commands: &Commands) -> Result<()> {
    let mut words = arguments.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let program = words.next().unwrap_or_default();
    let mut words: Vec<_> = words.collect();
    words.pop(); // what follows the last zero byte
    let spawned = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .current_dir("/")
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let text = format!("cannot run {}: {error}\n", program.display());
            port.send(&format!(
                "{id} err {}\n{id} exit {}\n",
                lines::encode(text.as_bytes()),
                lines::encode(b"127")
            ))?;
            return Ok(());
        }
    };
    // A command may leave its input unread for ever, and nobody else must wait for it.
    let (input, inputs) = mpsc::channel::<Vec<u8>>();
    if let Some(mut stdin) = child.stdin.take() {
        thread::spawn(move || inputs.iter().all(|bytes| lines::write_all(&mut stdin, &bytes)));
    }
    let running = Running { group: Some(Pid::from_child(&child)), input: Some(input) };
    commands.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), running);
    let (id, port, commands) = (id.to_owned(), port.clone(), commands.clone());
    thread::spawn(move || {
        let code = hear_out(&id, child, &port);
        commands.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        port.send(&format!("{id} exit {}\n", lines::encode(code.to_string().as_bytes())))
    });
    Ok(())
}

/// Hands on what a command says until it has ended and closed its output; its exit status as shells have it.
fn hear_out(id: &str, mut child: Child, port: &Port) -> i32 {
    thread::scope(|scope| {
        if let Some(stdout) = child.stdout.take() {
            scope.spawn(move || lines::pump(stdout, &format!("{id} out"), |line| port.send(line)));
        }
        if let Some(stderr) = child.stderr.take() {
            scope.spawn(move || lines::pump(stderr, &format!("{id} err"), |line| port.send(line)));
        }
    });
    match child.wait() {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        Err(_) => 255,
    }
}
