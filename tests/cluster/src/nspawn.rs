//! What only containers of systemd-nspawn do in their way: their processes are the host's, and so are found in `/proc`, kept
//! together by a cgroup, and entered by their namespaces.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::machine::{BOOT_DEADLINE, EXEC_DEADLINE, Machine, Power, clean_environment};
use crate::process::{self, PATH, status_field};
use crate::wait::{self, Poll};

impl Machine<'_> {
    /// The present number of its PID 1 on the host; `None` when it is off.
    pub(crate) fn nspawn_leader(&self) -> Option<i32> {
        // nspawn's own tree, and where systemd moves itself in it.
        ["machine/payload/init.scope", "machine/payload"].iter().find_map(|directory| {
            let pids = fs::read_to_string(self.cgroup().join(directory).join("cgroup.procs")).ok()?;
            // NSpid: the host's number, the supervisor's, the machine's.
            pids.lines().filter_map(|pid| pid.parse().ok()).find(|pid| {
                status_field(*pid, "NSpid").is_some_and(|pids| pids.split_whitespace().last() == Some("1"))
            })
        })
    }

    fn running_leader(&self) -> Result<i32> {
        self.nspawn_leader().with_context(|| format!("{} is off", self.name()))
    }

    pub(crate) fn nspawn_power(&self) -> Power {
        if self.nspawn_leader().is_none() {
            Power::Off
        } else if fs::read_to_string(self.cgroup().join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
        {
            Power::Frozen
        } else {
            Power::On
        }
    }

    /// Also of a machine that is frozen.
    pub(crate) fn nspawn_boot_id(&self) -> Result<String> {
        let path = format!("/proc/{}/root/proc/sys/kernel/random/boot_id", self.running_leader()?);
        Ok(fs::read_to_string(&path).with_context(|| path.clone())?.trim().to_owned())
    }

    /// Whether its systemd takes commands.
    pub(crate) fn nspawn_answers(&self) -> Result<bool> {
        Ok(fs::exists(format!("/proc/{}/root/run/systemd/private", self.running_leader()?))?)
    }

    pub(crate) fn nspawn_command(&self) -> Result<Command> {
        let leader = self.running_leader()?;
        // In a cgroup of the machine, so that freezing and killing it does not spare what we run there.
        let cgroup = self.cgroup().join("machine/payload/harness");
        fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        let mut enter = Command::new("sh");
        enter.args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec nsenter \"$@\""]).arg(cgroup);
        enter.args(["-t", &leader.to_string(), "-a", "-r", "-w", "--"]);
        enter.args(clean_environment()).env("PATH", PATH);
        Ok(enter)
    }

    pub(crate) fn nspawn_files(&self) -> PathBuf {
        self.files().join("disk/upper")
    }

    /// Writes a file into a machine that is off.
    pub(crate) fn nspawn_write_off(&self, script: &str, path: &str, bytes: &[u8]) -> Result<()> {
        let mut command = self.cluster.supervisor().enter();
        command.args(["chroot", &format!("/run/machines/{}/root", self.name())]);
        command.args(["sh", "-c", script, "write_file", path]);
        process::run(&mut command, format!("write {path}"), bytes, EXEC_DEADLINE)?.ok()?;
        Ok(())
    }

    /// Starts it.
    pub(crate) fn nspawn_boot(&self) -> Result<()> {
        let supervisor = self.cluster.supervisor();
        let arguments = [supervisor.id(), self.name(), self.address()];
        supervisor
            .script("boot", include_str!("scripts/boot.sh"), &arguments, Duration::from_secs(30))?
            .ok()?;
        Ok(())
    }

    pub(crate) fn nspawn_kill(&self) -> Result<()> {
        const SCRIPT: &str = r#"ip link del "$1" && umount "/run/machines/$1/net""#;
        // The link first: dying processes close their connections, and nobody must see that.
        self.set_link("down")?;
        self.write_cgroup("cgroup.kill", "1")?;
        self.wait_cgroup_event("populated", "0")?;
        // Being frozen was the processes' state, and does not outlive them.
        self.write_cgroup("cgroup.freeze", "0")?;
        let script = self.cluster.supervisor().script("unplug", SCRIPT, &[self.name()], EXEC_DEADLINE)?;
        script.ok()?;
        Ok(())
    }

    pub(crate) fn nspawn_set_frozen(&self, frozen: bool) -> Result<()> {
        let text = if frozen { "1" } else { "0" };
        self.write_cgroup("cgroup.freeze", text)?;
        self.wait_cgroup_event("frozen", text)
    }

    /// Has the link as the mark says that it is to be.
    pub(crate) fn nspawn_link(&self) -> Result<()> {
        self.set_link(if self.is_cut() { "down" } else { "up" })
    }

    pub(crate) fn nspawn_signal_pid1(&self, signal: Signal) -> Result<()> {
        let leader = Pid::from_raw(self.running_leader()?).context("no such process")?;
        kill_process(leader, signal).context("cannot signal PID 1")
    }

    /// Loses what it sends to this address: to a hardware address that nobody has, so that no link and no error tells.
    pub(crate) fn nspawn_lose(&self, address: &str) -> Result<()> {
        self.set_neighbour(&format!("replace {address} lladdr 02:00:00:00:00:00 dev eth0 nud permanent"))
    }

    /// Has it ask again who has this address.
    pub(crate) fn nspawn_find(&self, address: &str) -> Result<()> {
        self.set_neighbour(&format!("del {address} dev eth0"))
    }

    fn set_neighbour(&self, what: &str) -> Result<()> {
        const SCRIPT: &str = r#"nsenter --net="$1" ip neigh $2"#;
        // One that is off has no network; a loss is remembered for its next boot.
        if self.power() == Power::Off {
            return Ok(());
        }
        let net = format!("/run/machines/{}/net", self.name());
        self.cluster.supervisor().script("neighbour", SCRIPT, &[&net, what], EXEC_DEADLINE)?.ok()?;
        Ok(())
    }

    fn cgroup(&self) -> PathBuf {
        self.cluster.supervisor().cgroup(self.name())
    }

    fn set_link(&self, state: &str) -> Result<()> {
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
