//! `musterctl` while it runs on, and what `musterctl ssh` meets: keys, and an sshd.

#![allow(dead_code, reason = "not every test binary uses all of it")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use muster_cluster::Machine;
use rustix::process::{Pid, Signal, kill_process_group};

use super::support::{LIMIT, World};

/// The port of the sshd of [`start_sshd`].
pub const SSH_PORT: &str = "2222";

/// `musterctl`, running on.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Running {
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = read(child.stdout.take().context("a pipe")?);
        let errors = read(child.stderr.take().context("a pipe")?);
        Ok(Self { child, lines, errors })
    }

    pub fn line(&self) -> Result<String> {
        self.lines.recv_timeout(LIMIT).context("no line came in time")
    }

    /// Ctrl-C.
    pub fn interrupt(&self) -> Result<()> {
        Ok(kill_process_group(Pid::from_child(&self.child), Signal::INT)?)
    }

    /// Waits for its end; gives the exit status, none where a signal ended it, and what it has written since.
    pub fn end(mut self) -> Result<(Option<i32>, String, String)> {
        let until = Instant::now() + LIMIT;
        let left = || until.saturating_duration_since(Instant::now());
        let rest = |lines: &Receiver<String>| {
            let lines: Vec<String> = std::iter::from_fn(|| lines.recv_timeout(left()).ok()).collect();
            lines.join("\n")
        };
        let (output, errors) = (rest(&self.lines), rest(&self.errors));
        ensure!(!left().is_zero(), "it goes on: {output} {errors}");
        Ok((self.child.wait()?.code(), output, errors))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_process_group(Pid::from_child(&self.child), Signal::KILL).ok();
        self.child.wait().ok();
    }
}

/// Lines, as they come.
fn read(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// An ssh-agent of the test's own, with a new key.
pub struct Keys {
    agent: Child,
    socket: String,
    pub public: String,
}

impl Keys {
    pub fn new(world: &World) -> Result<Self> {
        let key = world.file("key", "")?;
        let socket = format!("{key}.agent");
        std::fs::remove_file(&key)?;
        let run = |command: &mut Command| -> Result<()> {
            let output = command.output()?;
            ensure!(output.status.success(), "{command:?}: {output:?}");
            Ok(())
        };
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &key]))?;
        let agent = Command::new("ssh-agent").args(["-D", "-a", &socket]).stdout(Stdio::null()).spawn()?;
        let keys = Self { agent, public: std::fs::read_to_string(format!("{key}.pub"))?, socket };
        world.cluster.wait_for("the ssh-agent", LIMIT, || {
            run(Command::new("ssh-add").args(["-q", &key]).env("SSH_AUTH_SOCK", &keys.socket))?;
            Ok(Some(()))
        })?;
        Ok(keys)
    }

    /// `musterctl ssh` with these words, with these keys of hosts, and with nobody who could be asked.
    pub fn ssh(&self, world: &World, known_hosts: &str, words: &[&str]) -> Result<Command> {
        let line = ["--known-hosts-file", known_hosts, "ssh", "--ssh-port", SSH_PORT];
        let mut command = world.cluster.ctl_command(&[&line[..], words].concat())?;
        // Who starts the test may have a terminal, and is not to be asked.
        command.env("SSH_AUTH_SOCK", &self.socket).env("SSH_ASKPASS", "/bin/false");
        command.env("SSH_ASKPASS_REQUIRE", "force");
        Ok(command)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.agent.kill().ok();
        self.agent.wait().ok();
    }
}

/// An sshd that listens on the machine's loopback address alone.
pub fn start_sshd(world: &World, machine: &Machine<'_>, public: &str) -> Result<()> {
    machine.write_file("/run/ssh-test/keys", public.as_bytes())?;
    let script = "mkdir -p /run/sshd; rm -f /run/ssh-test/host*; chmod -R go-w /run/ssh-test; \
                  ssh-keygen -q -t ed25519 -N '' -f /run/ssh-test/host; systemctl reset-failed test-sshd || :; \
                  systemd-run -q --unit=test-sshd /usr/sbin/sshd -D -e -f /dev/null -p \"$1\" -o ListenAddress=127.0.0.1 \
                  -o HostKey=/run/ssh-test/host -o AuthorizedKeysFile=/run/ssh-test/keys -o StrictModes=no -o UsePAM=no";
    machine.exec(&["sh", "-ec", script, "start_sshd", SSH_PORT])?.ok()?;
    world.cluster.wait_for("the sshd", LIMIT, || {
        let script = "exec 3<>/dev/tcp/127.0.0.1/$1; head -c 4 <&3";
        let said = machine.exec(&["bash", "-c", script, "look", SSH_PORT])?;
        ensure!(said.stdout == "SSH-", "{said}");
        Ok(Some(()))
    })
}
