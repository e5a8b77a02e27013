//! Processes of the host: running commands with a deadline, and telling a process from a later one with its number.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

/// Where the programs that the harness uses are found, whatever `PATH` its user has.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a command answered.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// The exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output.
    ///
    /// # Errors
    /// The command did not end with status 0; the error holds all that it said.
    pub fn ok(self) -> Result<String> {
        if self.success() { Ok(self.stdout) } else { Err(anyhow!("{self}")) }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ", self.command)?;
        match self.code {
            Some(code) => write!(f, "ended with status {code}")?,
            None => write!(f, "was ended by a signal")?,
        }
        for text in [&self.stdout, &self.stderr] {
            if !text.trim().is_empty() {
                write!(f, "\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Runs a command to its end, feeding it `input`.
///
/// # Errors
/// It could not be started, or was not done (its output not closed) within `limit`: its process group is then killed.
pub(crate) fn run(command: &mut Command, shown: String, input: &[u8], limit: Duration) -> Result<Output> {
    let deadline = Instant::now() + limit;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        bail!("`{shown}` has no pipes");
    };
    let input = input.to_vec();
    // It may end without reading its input: no error.
    thread::spawn(move || drop(stdin.write_all(&input)));
    let (stdout, stderr) = (collect(stdout), collect(stderr));

    let ended = wait_ended(Pid::from_child(&child), deadline)?;
    let texts = ended
        .then(|| {
            let left = || deadline.saturating_duration_since(Instant::now());
            Some((stdout.recv_timeout(left()).ok()?, stderr.recv_timeout(left()).ok()?))
        })
        .flatten();
    let Some((stdout, stderr)) = texts else {
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
        let why = if ended { "left a process behind that holds its output" } else { "has not ended" };
        bail!("`{shown}` {why} after {} s", limit.as_secs_f32());
    };
    let code = child.wait()?.code();
    Ok(Output { command: shown, code, stdout, stderr })
}

fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Waits until a process has ended (a zombie has). False when the deadline passes first.
pub(crate) fn wait_ended(pid: Pid, deadline: Instant) -> Result<bool> {
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error).context("pidfd_open"),
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("deadline too far away")?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

/// A process that can be told from a later one that got the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number in the host's (the harness's own) PID namespace.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since the host's boot.
    start: u64,
}

impl ProcessId {
    /// The process that has this number now, unless there is none or it is a zombie.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in brackets may hold anything; what follows the last bracket is: state, ppid, …
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start: fields.nth(18)?.parse().ok()? })
    }

    pub(crate) fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// The number as the system calls take it, if the process is alive.
    pub(crate) fn pid(self) -> Option<Pid> {
        self.alive().then(|| Pid::from_raw(self.pid)).flatten()
    }
}

/// All process numbers that `/proc` shows.
pub(crate) fn all() -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").context("/proc")? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// A value of `/proc/PID/status`, such as `PPid`.
pub(crate) fn status_field(pid: i32, key: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}
