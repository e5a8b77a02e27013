//! One machine of a cluster, and what can be done to it.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::Cluster;
use crate::process::{self, Output, PATH, status_field};
use crate::state::{self, MachineRecord, Role};
use crate::wait::{self, Poll};

/// How long a machine may take to boot, to shut down, to freeze. Generous: hosts are slow at times.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// How long a command in a machine may take, unless [`Machine::exec_within`] says otherwise.
pub const EXEC_DEADLINE: Duration = Duration::from_secs(60);

/// Whether a machine is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// No process of it exists.
    Off,
    /// Its systemd exists, booted or not.
    On,
    /// All of its processes are frozen.
    Frozen,
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Frozen => "frozen",
        })
    }
}

/// A machine of a cluster: a real systemd as PID 1, with its own network, address, machine id and files.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) record: &'a MachineRecord,
}

impl Machine<'_> {
    /// Its name, which is its host name too: `m1`, `s1`, ….
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// What it is there for.
    pub fn role(&self) -> Role {
        self.record.role
    }

    /// Its IPv4 address on the bridge.
    pub fn address(&self) -> &str {
        &self.record.address
    }

    /// The content of its `/etc/machine-id`: 32 hexadecimal digits, the same at every boot.
    pub fn machine_id(&self) -> &str {
        &self.record.machine_id
    }

    /// Whether it is on.
    pub fn power(&self) -> Power {
        if self.leader().is_none() {
            Power::Off
        } else if fs::read_to_string(self.cgroup().join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
        {
            Power::Frozen
        } else {
            Power::On
        }
    }

    /// Whether its network cable is cut.
    pub fn is_cut(&self) -> bool {
        self.files().join("cut").exists()
    }

    /// The id of the present boot, different for each one.
    ///
    /// # Errors
    /// The machine is off.
    pub fn boot_id(&self) -> Result<String> {
        let leader = self.leader().with_context(|| format!("{} is off", self.name()))?;
        let path = format!("/proc/{leader}/root/proc/sys/kernel/random/boot_id");
        Ok(fs::read_to_string(&path).with_context(|| path.clone())?.trim().to_owned())
    }

    /// The present number of its PID 1 on the host; `None` when it is off.
    fn leader(&self) -> Option<i32> {
        // nspawn's own tree, and where systemd moves itself in it.
        ["machine/payload/init.scope", "machine/payload"].iter().find_map(|directory| {
            let pids = fs::read_to_string(self.cgroup().join(directory).join("cgroup.procs")).ok()?;
            // NSpid: the host's number, the supervisor's, the machine's.
            pids.lines().filter_map(|pid| pid.parse().ok()).find(|pid| {
                status_field(*pid, "NSpid").is_some_and(|pids| pids.split_whitespace().last() == Some("1"))
            })
        })
    }

    fn cgroup(&self) -> PathBuf {
        self.cluster.supervisor().cgroup(self.name())
    }

    fn files(&self) -> PathBuf {
        self.cluster.supervisor().machine_dir(self.name())
    }

    /// A command that runs inside the machine, as root, with a clean environment and the caller's standard streams.
    ///
    /// # Errors
    /// The machine is off or frozen.
    pub fn command<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<Command> {
        let Some(leader) = self.leader() else { bail!("{} is off", self.name()) };
        ensure!(
            self.power() != Power::Frozen,
            "{0} is frozen: nothing can run in it before `thaw {0}`",
            self.name()
        );
        // In a cgroup of the machine, so that freezing and killing it does not spare what we run there.
        let cgroup = self.cgroup().join("machine/payload/harness");
        fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        let mut enter = Command::new("sh");
        enter.args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec nsenter \"$@\""]).arg(cgroup);
        enter.args(["-t", &leader.to_string(), "-a", "-r", "-w", "--", "env", "-i"]);
        enter.args([&format!("PATH={PATH}"), "HOME=/root", "USER=root", "SHELL=/bin/bash", "LANG=C.UTF-8"]);
        enter.arg(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned())));
        enter.args(command).env("PATH", PATH);
        Ok(enter)
    }

    /// Runs a command in the machine, as root, and waits for it for at most [`EXEC_DEADLINE`].
    ///
    /// # Errors
    /// The machine is off or frozen, or the command does not end. A status other than 0 is in the output: see
    /// [`Output::ok`].
    pub fn exec<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<Output> {
        self.exec_within(EXEC_DEADLINE, command, &[])
    }

    /// Like [`Self::exec`], with a limit and with bytes for its standard input.
    ///
    /// # Errors
    /// As for [`Self::exec`].
    pub fn exec_within<S: AsRef<OsStr>>(
        &self,
        limit: Duration,
        command: &[S],
        input: &[u8],
    ) -> Result<Output> {
        let words: Vec<_> = command.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        process::run(
            &mut self.command(command)?,
            format!("{}: {}", self.name(), words.join(" ")),
            input,
            limit,
        )
    }

    /// Writes a file, with its directories, mode 0644. On a machine that is off it is there at the next boot.
    ///
    /// # Errors
    /// It could not be written.
    pub fn write_file(&self, path: &str, bytes: &[u8]) -> Result<()> {
        const SCRIPT: &str = r#"mkdir -p "${1%/*}/" && cat >"$1""#;
        ensure!(path.starts_with('/'), "{path} is not an absolute path");
        if self.power() != Power::Off {
            self.exec_within(EXEC_DEADLINE, &["sh", "-c", SCRIPT, "write_file", path], bytes)?.ok()?;
            return Ok(());
        }
        let mut command = self.cluster.supervisor().enter();
        command.args(["chroot", &format!("/run/machines/{}/root", self.name())]);
        command.args(["sh", "-c", SCRIPT, "write_file", path]);
        process::run(&mut command, format!("write {path}"), bytes, EXEC_DEADLINE)?.ok()?;
        Ok(())
    }

    /// Switches the machine on and waits until its systemd has started everything.
    ///
    /// # Errors
    /// It is on already, or it does not come up: its console's last lines are in the error.
    pub fn boot(&self) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        ensure!(self.power() == Power::Off, "{} is on already", self.name());
        self.prepare()?;
        self.cluster.supervisor().boot(self.name(), self.address())?;
        self.wait_booted(None)
    }

    /// Cuts the power: all processes at once, without a goodbye on the network. `/run` and `/tmp` are lost, files stay.
    ///
    /// # Errors
    /// It is off already, or a process does not die.
    pub fn kill(&self) -> Result<()> {
        const SCRIPT: &str = r#"ip link del "$1" && umount "/run/machines/$1/net""#;
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        ensure!(self.power() != Power::Off, "{} is off already", self.name());
        // The link first: dying processes close their connections, and nobody must see that.
        self.link("down")?;
        self.write_cgroup("cgroup.kill", "1")?;
        self.wait_cgroup_event("populated", "0")?;
        // Being frozen was the processes' state, and does not outlive them.
        self.write_cgroup("cgroup.freeze", "0")?;
        let script = self.cluster.supervisor().script("unplug", SCRIPT, &[self.name()], EXEC_DEADLINE)?;
        script.ok()?;
        Ok(())
    }

    /// Reboots in an orderly way (`systemctl reboot`) and waits until the machine is up again.
    ///
    /// # Errors
    /// It is off or frozen, or does not come up again.
    pub fn reboot(&self) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        let before = self.boot_id()?;
        // The answer may be lost in the shutdown: the boot id tells.
        let answer = self.exec(&["systemctl", "reboot"])?;
        self.wait_booted(Some(&before)).with_context(|| answer.to_string())
    }

    /// Freezes every process of the machine. Its kernel lives on: connections stay open and are acknowledged.
    ///
    /// # Errors
    /// It is off.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen("1")
    }

    /// Lets a frozen machine go on; for its processes the clocks have jumped.
    ///
    /// # Errors
    /// It is off.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen("0")
    }

    fn set_frozen(&self, frozen: &str) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        ensure!(self.power() != Power::Off, "{} is off", self.name());
        self.write_cgroup("cgroup.freeze", frozen)?;
        self.wait_cgroup_event("frozen", frozen)
    }

    /// Cuts the network cable, which stays cut through reboots. The machine sees that its link is down.
    ///
    /// # Errors
    /// The link could not be changed.
    pub fn cut(&self) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        fs::write(self.files().join("cut"), "")?;
        self.link("down")
    }

    /// Mends the network cable.
    ///
    /// # Errors
    /// The link could not be changed.
    pub fn heal(&self) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        if self.is_cut() {
            fs::remove_file(self.files().join("cut"))?;
        }
        self.link("up")
    }

    /// Stops a process of the machine (SIGSTOP), by its number in the machine.
    ///
    /// # Errors
    /// There is no such process.
    pub fn stop_process(&self, pid: u32) -> Result<()> {
        self.exec(&["bash", "-c", "kill -STOP \"$1\"", "kill", &pid.to_string()])?.ok().map(drop)
    }

    /// Lets a stopped process go on (SIGCONT).
    ///
    /// # Errors
    /// There is no such process.
    pub fn continue_process(&self, pid: u32) -> Result<()> {
        self.exec(&["bash", "-c", "kill -CONT \"$1\"", "kill", &pid.to_string()])?.ok().map(drop)
    }

    /// Stops its PID 1 (SIGSTOP), as if that hung: everything else goes on.
    ///
    /// # Errors
    /// It is off.
    pub fn stop_pid1(&self) -> Result<()> {
        self.signal_pid1(Signal::STOP)
    }

    /// Lets its PID 1 go on (SIGCONT).
    ///
    /// # Errors
    /// It is off.
    pub fn continue_pid1(&self) -> Result<()> {
        self.signal_pid1(Signal::CONT)
    }

    fn signal_pid1(&self, signal: Signal) -> Result<()> {
        let leader =
            self.leader().and_then(Pid::from_raw).with_context(|| format!("{} is off", self.name()))?;
        kill_process(leader, signal).context("cannot signal PID 1")
    }

    /// A command that prints the machine's journal of all its boots, with further arguments of `journalctl`. The machine
    /// may be off.
    pub fn journal_command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = self.cluster.supervisor().enter();
        let directory = format!("/run/machines/{}/root/var/log/journal/{}", self.name(), self.machine_id());
        command.args(["journalctl", "--no-pager", "-o", "short-precise", "-D", &directory]).args(arguments);
        command
    }

    /// The machine's journal of all its boots.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn journal(&self) -> Result<String> {
        if self.power() == Power::On {
            // What was said a moment ago may not have been written yet. One that is going down writes it by itself.
            let _ = self.exec(&["journalctl", "--sync"]);
        }
        let mut command = self.journal_command::<&str>(&[]);
        process::run(&mut command, format!("journal of {}", self.name()), &[], EXEC_DEADLINE)?.ok()
    }

    /// What systemd wrote on the machine's console since it was last switched on.
    pub fn console(&self) -> String {
        fs::read(self.files().join("console"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Writes what makes this machine this one, before its first boot.
    fn prepare(&self) -> Result<()> {
        let root = self.files().join("upper");
        if root.exists() {
            return Ok(());
        }
        let write = |path: &str, text: String| -> Result<()> {
            let path = root.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write("etc/hostname", format!("{}\n", self.name()))?;
        write("etc/machine-id", format!("{}\n", self.machine_id()))?;
        for (service, path, text) in self.cluster.services_of(self.record) {
            write(path, text)?;
            let wants = root.join("etc/systemd/system/multi-user.target.wants");
            fs::create_dir_all(&wants)?;
            std::os::unix::fs::symlink(format!("/usr/lib/systemd/system/{service}"), wants.join(service))?;
        }
        Ok(())
    }

    /// Waits until systemd says that it has started everything, in another boot than `before`.
    fn wait_booted(&self, before: Option<&str>) -> Result<()> {
        let deadline = Instant::now() + BOOT_DEADLINE;
        let booted = wait::until(&format!("{} booted", self.name()), BOOT_DEADLINE, || {
            let Some(leader) = self.leader() else {
                return Ok(Poll::Pending("it is off".to_owned()));
            };
            if before.is_some() && self.boot_id()?.as_str() == before.unwrap_or_default() {
                return Ok(Poll::Pending("it is still shutting down".to_owned()));
            }
            if !fs::exists(format!("/proc/{leader}/root/run/systemd/private"))? {
                return Ok(Poll::Pending("its systemd does not answer yet".to_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.exec_within(left, &["systemctl", "is-system-running", "--wait"], &[])?;
            Ok(match answer.stdout.trim() {
                state @ ("running" | "degraded") => Poll::Ready(state.to_owned()),
                _ => Poll::Pending(answer.to_string()),
            })
        });
        match booted {
            Ok(state) if state == "degraded" => {
                let failed = self.exec(&["systemctl", "list-units", "--failed", "--plain", "--no-legend"])?;
                crate::say(&format!(
                    "{} runs, but units have failed:\n{}",
                    self.name(),
                    failed.stdout.trim_end()
                ));
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                let console = self.console();
                let lines: Vec<_> = console.lines().collect();
                let mut text = String::new();
                for line in &lines[lines.len().saturating_sub(30)..] {
                    let _ = write!(text, "\n  {line}");
                }
                Err(error.context(format!("{} does not boot; its console:{text}", self.name())))
            }
        }
    }

    fn link(&self, state: &str) -> Result<()> {
        // A machine that is off has no link; `cut` is remembered for its next boot.
        const SCRIPT: &str = r#"ip link show "$1" >/dev/null 2>&1 || exit 0; ip link set "$1" "$2""#;
        self.cluster.supervisor().script("link", SCRIPT, &[self.name(), state], EXEC_DEADLINE)?.ok()?;
        Ok(())
    }

    fn write_cgroup(&self, file: &str, text: &str) -> Result<()> {
        let path = self.cgroup().join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    fn wait_cgroup_event(&self, key: &str, value: &str) -> Result<()> {
        let path = self.cgroup().join("cgroup.events");
        wait::until(&format!("{}: {key} {value}", self.name()), BOOT_DEADLINE, || {
            let events = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let reached = events.lines().any(|line| line.split_once(' ') == Some((key, value)));
            Ok(if reached { Poll::Ready(()) } else { Poll::Pending(events) })
        })
    }
}
