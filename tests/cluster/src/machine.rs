//! One machine of a cluster, and what can be done to it.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;

use crate::Cluster;
use crate::daemons::Version;
use crate::process::{self, Output, PATH};
use crate::state::{self, Backend, MachineRecord, Role};
use crate::wait::{self, Poll};

/// How long a container may take to boot, to shut down, to freeze. Generous: hosts are slow at times.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// How long a virtual machine may take to boot: many may be emulated by few cores.
pub(crate) const VM_BOOT_DEADLINE: Duration = Duration::from_secs(300);
/// How long a command in a machine may take, unless [`Machine::exec_within`] says otherwise.
pub const EXEC_DEADLINE: Duration = Duration::from_secs(60);

// The marks in a machine's directory that say what is wrong with its network. Files, so that it holds through reboots.
/// There while its cable is cut.
pub(crate) const CUT: &str = "cut";
/// A directory: for each machine to which what it sends is lost a file of its name, with its address.
pub(crate) const LOST: &str = "lost";
/// There while its frames are impaired: how, in the words of [`Impairment`].
pub(crate) const IMPAIRED: &str = "impaired";

/// What the network does to every frame that a machine sends or receives, each on its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Impairment {
    /// How long a frame takes at least, in milliseconds.
    pub delay_ms: u32,
    /// How much longer it takes at most, in milliseconds: later ones may overtake it.
    pub jitter_ms: u32,
    /// How many in a hundred are lost.
    pub loss_percent: u8,
}

impl fmt::Display for Impairment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.delay_ms, self.jitter_ms, self.loss_percent)
    }
}

impl FromStr for Impairment {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let [delay, jitter, loss] = words[..] else { bail!("{text:?} is no impairment") };
        Ok(Self { delay_ms: delay.parse()?, jitter_ms: jitter.parse()?, loss_percent: loss.parse()? })
    }
}

/// Why containers do not stand still.
const CLOCKS: &str = "its clocks are the host's";

/// Whether a machine is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// No process of it exists.
    Off,
    /// Its systemd exists, booted or not.
    On,
    /// All of its processes are frozen.
    Frozen,
    /// It stands still with its clocks.
    Paused,
    /// It is in a file, with all that it was doing, and no process of it exists.
    Saved,
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Frozen => "frozen",
            Self::Paused => "paused",
            Self::Saved => "saved",
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
        match self.backend() {
            Backend::Nspawn => self.nspawn_power(),
            Backend::Vm => self.vm_power(),
        }
    }

    /// Whether its network cable is cut.
    pub fn is_cut(&self) -> bool {
        self.files().join(CUT).exists()
    }

    /// The id of the present boot, different for each one.
    ///
    /// # Errors
    /// The machine is off.
    pub fn boot_id(&self) -> Result<String> {
        match self.backend() {
            Backend::Nspawn => self.nspawn_boot_id(),
            Backend::Vm => {
                Ok(self.exec(&["cat", "/proc/sys/kernel/random/boot_id"])?.ok()?.trim().to_owned())
            }
        }
    }

    fn backend(&self) -> Backend {
        self.cluster.backend()
    }

    pub(crate) fn files(&self) -> PathBuf {
        self.cluster.supervisor().machine_dir(self.name())
    }

    /// An error unless commands can run in it.
    fn ensure_on(&self) -> Result<()> {
        match self.power() {
            Power::On => Ok(()),
            Power::Off => bail!("{} is off", self.name()),
            Power::Frozen => bail!("{0} is frozen: nothing can run in it before `thaw {0}`", self.name()),
            Power::Paused => bail!("{0} is paused: nothing can run in it before `resume {0}`", self.name()),
            Power::Saved => bail!("{0} is saved: nothing can run in it before `restore {0}`", self.name()),
        }
    }

    /// A command that runs inside the machine, as root, with a clean environment and the caller's standard streams.
    ///
    /// # Errors
    /// The machine is off or frozen.
    pub fn command<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<Command> {
        self.ensure_on()?;
        let mut enter = match self.backend() {
            Backend::Nspawn => self.nspawn_command()?,
            Backend::Vm => self.vm_command()?,
        };
        enter.args(command);
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
        match self.backend() {
            Backend::Nspawn => self.nspawn_write_off(SCRIPT, path, bytes),
            Backend::Vm => self.vm_write_off(path, bytes),
        }
    }

    /// Exchanges its Muster for this version, as a package does: programs and services take the place of what is there, and
    /// the daemons that run here are restarted.
    ///
    /// # Errors
    /// The machine is off or frozen, or a daemon does not come up.
    pub fn install(&self, version: &Version) -> Result<()> {
        // Who runs keeps the file that he was started from.
        const SCRIPT: &str = r#"cat >"$1.new" && chmod --reference="$1" "$1.new" && mv "$1.new" "$1""#;
        for (from, to) in version.files() {
            let bytes = fs::read(&from).with_context(|| from.display().to_string())?;
            self.exec_within(EXEC_DEADLINE, &["sh", "-c", SCRIPT, "install", &to], &bytes)?.ok()?;
        }
        self.exec(&["systemctl", "daemon-reload"])?.ok()?;
        let services = self.cluster.services_of(self.record).into_iter().map(|(service, _, _)| service);
        for service in services.filter(|service| service.starts_with("muster-")) {
            self.exec(&["systemctl", "restart", service])?.ok()?;
        }
        Ok(())
    }

    /// Switches the machine on and waits until its systemd has started everything.
    ///
    /// # Errors
    /// It is on already, or it does not come up: its console's last lines are in the error.
    pub fn boot(&self) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        match self.power() {
            Power::Off => {}
            Power::Saved => {
                bail!("{0} is saved: `restore {0}` has it go on, `kill {0}` gives that up", self.name())
            }
            power => bail!("{} is {power} already", self.name()),
        }
        self.prepare()?;
        match self.backend() {
            Backend::Nspawn => self.nspawn_boot()?,
            Backend::Vm => self.vm_boot()?,
        }
        self.wait_booted(None)
    }

    /// Cuts the power: all processes at once, without a goodbye on the network. `/run` and `/tmp` are lost, files stay. What
    /// was [saved](Self::save) of what it was doing is lost, too.
    ///
    /// # Errors
    /// It is off already, or a process does not die.
    pub fn kill(&self) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        ensure!(self.power() != Power::Off, "{} is off already", self.name());
        match self.backend() {
            Backend::Nspawn => self.nspawn_kill(),
            Backend::Vm => self.vm_kill(),
        }
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

    /// Freezes every process of the machine. A container's kernel lives on: connections stay open and are acknowledged. A
    /// virtual machine stops as a whole.
    ///
    /// # Errors
    /// It is off.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Lets a frozen machine go on; for its processes the clocks have jumped.
    ///
    /// # Errors
    /// It is off.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        self.ensure_power()?;
        match self.backend() {
            Backend::Nspawn => self.nspawn_set_frozen(frozen),
            Backend::Vm => self.vm_set_frozen(frozen),
        }
    }

    /// An error unless there are processes of it, in whatever state.
    fn ensure_power(&self) -> Result<()> {
        let power = self.power();
        ensure!(!matches!(power, Power::Off | Power::Saved), "{} is {power}", self.name());
        Ok(())
    }

    /// Has the machine stand still with its clocks, so that to itself no time passes. (For the processes of one that is
    /// [frozen](Self::freeze) the clocks jump.) Only virtual machines can.
    ///
    /// # Errors
    /// It is a container, off, frozen or saved.
    pub fn pause(&self) -> Result<()> {
        self.ensure_vm(CLOCKS)?;
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        if self.power() == Power::Paused {
            return Ok(());
        }
        self.ensure_on()?;
        self.vm_pause()
    }

    /// Lets a paused machine go on, with clocks that are behind: the wall clock, and what counts from the boot.
    ///
    /// # Errors
    /// It is a container, off, frozen or saved.
    pub fn resume(&self) -> Result<()> {
        self.ensure_vm(CLOCKS)?;
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        if self.power() == Power::Paused { self.vm_resume() } else { self.ensure_on() }
    }

    /// Writes the machine to a file with all that it is doing, and ends it without a goodbye, as one does who moves a
    /// virtual machine to another host. Only virtual machines can.
    ///
    /// # Errors
    /// It is a container, off, frozen or saved, or it cannot be written: then it goes on.
    pub fn save(&self) -> Result<()> {
        self.ensure_vm(CLOCKS)?;
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        if self.power() != Power::Paused {
            self.ensure_on()?;
        }
        self.vm_save()
    }

    /// Lets a saved machine go on where it was. It does not notice, but its clocks are behind: the wall clock, and what
    /// counts from the boot.
    ///
    /// # Errors
    /// It is a container, or was not saved; or it does not come back.
    pub fn restore(&self) -> Result<()> {
        self.ensure_vm(CLOCKS)?;
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        let power = self.power();
        ensure!(power == Power::Saved, "{} is {power}: only a saved machine can be restored", self.name());
        self.vm_restore()
    }

    /// Cuts the network cable, which stays cut through reboots. The machine sees that its link is down.
    ///
    /// # Errors
    /// The link could not be changed.
    pub fn cut(&self) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        fs::write(self.files().join(CUT), "")?;
        self.follow_cut()
    }

    /// Mends the network cable, and ends what [`Self::impair`] began, and [`Self::lose`] from and to this machine.
    ///
    /// # Errors
    /// The link could not be changed.
    pub fn heal(&self) -> Result<()> {
        let lock = state::lock(self.cluster.dir(), self.name())?;
        for mark in [CUT, IMPAIRED].map(|mark| self.files().join(mark)) {
            if mark.exists() {
                fs::remove_file(mark)?;
            }
        }
        self.follow_cut()?;
        // Who loses holds its own lock, and another one may be healed at the same time.
        drop(lock);
        self.cluster.machines().try_for_each(|from| from.find(self))
    }

    /// Ends the losses of this machine: those to the other one, or all when that is itself.
    fn find(&self, healed: &Machine<'_>) -> Result<()> {
        let mut marks = Vec::new();
        for entry in fs::read_dir(self.files().join(LOST))? {
            let entry = entry?;
            if self.name() == healed.name() || entry.file_name() == healed.name() {
                marks.push(entry.path());
            }
        }
        if marks.is_empty() {
            return Ok(());
        }
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        // Somebody else may have healed it meanwhile.
        for mark in marks.iter().filter(|mark| mark.exists()) {
            let address = fs::read_to_string(mark).with_context(|| mark.display().to_string())?;
            fs::remove_file(mark).with_context(|| mark.display().to_string())?;
            if self.backend() == Backend::Nspawn {
                self.nspawn_find(&address)?;
            }
        }
        Ok(())
    }

    /// Has the link as the mark of a cut cable says.
    fn follow_cut(&self) -> Result<()> {
        match self.backend() {
            Backend::Nspawn => self.nspawn_link(),
            Backend::Vm => self.vm_link(),
        }
    }

    /// Loses what this machine sends to another one, while all links stay up, until either is [healed](Self::heal). Of
    /// virtual machines every frame is lost, of containers what is sent to the other one's address (which it goes on
    /// asking for).
    ///
    /// # Errors
    /// The two are one, or a container's network could not be changed.
    pub fn lose(&self, to: &Machine<'_>) -> Result<()> {
        ensure!(self.name() != to.name(), "what {0} sends to {0} goes over no network", self.name());
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        let mark = self.files().join(LOST).join(to.name());
        fs::write(&mark, to.address()).with_context(|| mark.display().to_string())?;
        match self.backend() {
            Backend::Nspawn => self.nspawn_lose(to.address()),
            Backend::Vm => Ok(()),
        }
    }

    /// Delays and loses what this machine sends and receives until it is [healed](Self::heal). Only virtual machines can.
    ///
    /// # Errors
    /// It is a container.
    pub fn impair(&self, impairment: Impairment) -> Result<()> {
        self.ensure_vm("the kernel passes frames on between containers")?;
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        let path = self.files().join(IMPAIRED);
        fs::write(&path, impairment.to_string()).with_context(|| path.display().to_string())
    }

    /// For what only virtual machines can, and why containers cannot.
    fn ensure_vm(&self, why: &str) -> Result<()> {
        ensure!(
            self.backend() == Backend::Vm,
            "{} is a container, and {why}: only virtual machines (`up --backend vm`) can do that",
            self.name()
        );
        Ok(())
    }

    /// Takes all that is free on the file system of this directory, such as `/var` or `/run`, until [`Self::clear`]. What is
    /// on the disk is so through power cuts, too.
    ///
    /// # Errors
    /// The machine is off or frozen, or there is no such directory.
    pub fn fill(&self, directory: &str) -> Result<()> {
        // The kernel knows best how much is left: what root may take more than others, or what an allocation rounds up to.
        const SCRIPT: &str = r#"
            cd "$1" || exit
            fallocate -l "$(df -B1 --output=avail . | tail -n1)" "$2" 2>/dev/null
            said=$(dd if=/dev/zero of="$2" bs=64K oflag=append conv=notrunc 2>&1)
            sync "$2"
            [[ $said = *"No space left on device"* ]] || { echo "$said" >&2; exit 1; }"#;
        ensure!(directory.starts_with('/'), "{directory} is not an absolute path");
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        let (path, mut filled) = self.filled()?;
        let file = format!(".muster-fill-{}", filled.len());
        // Before the deed, of which half may be done.
        filled.push(format!("{directory}/{file}"));
        self.ensure_on()?;
        fs::write(&path, filled.join("\n")).with_context(|| path.display().to_string())?;
        self.exec(&["bash", "-c", SCRIPT, "fill", directory, &file])?.ok()?;
        Ok(())
    }

    /// Frees what [`Self::fill`] has taken, wherever that was.
    ///
    /// # Errors
    /// Something was taken, but the machine is off or frozen.
    pub fn clear(&self) -> Result<()> {
        let _lock = state::lock(self.cluster.dir(), self.name())?;
        let (path, filled) = self.filled()?;
        if !filled.is_empty() {
            let files: Vec<_> = filled.iter().map(String::as_str).collect();
            self.exec(&[&["rm", "-f", "--"], &files[..]].concat())?.ok()?;
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Where it is written down which files take up room that was free, and which these are.
    fn filled(&self) -> Result<(PathBuf, Vec<String>)> {
        let path = self.files().join("filled");
        if !path.exists() {
            return Ok((path, Vec::new()));
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok((path, text.lines().map(str::to_owned).collect()))
    }

    /// Has the machine's wall clock jump by so many seconds, on or back, until its next boot. What counts from the boot
    /// (`CLOCK_MONOTONIC`) goes on as before. Only virtual machines have a clock of their own.
    ///
    /// # Errors
    /// It is a container, off or frozen, or there is no such time.
    pub fn jump_clock(&self, seconds: i64) -> Result<()> {
        self.ensure_vm("its clock is the host's")?;
        self.exec(&["date", "--set", &format!("{seconds:+} seconds")])?.ok().map(drop)
    }

    /// Takes all of the machine's memory until the kernel has killed a process for it, the one that it finds best: the
    /// greediest one, or where nobody has more than some MiB the one that took it all. Then that is free again. Returns what
    /// the kernel said of that process. Only virtual machines have memory of their own.
    ///
    /// # Errors
    /// It is a container, off or frozen, or nothing is killed.
    pub fn starve(&self) -> Result<String> {
        self.ensure_vm("its memory is the host's")?;
        self.vm_starve()
    }

    /// Takes the memory from a unit's processes for a moment, so that the kernel kills them. Returns what it said of the
    /// unit's main process. Only virtual machines have memory of their own.
    ///
    /// # Errors
    /// It is a container, off or frozen, no main process of that unit runs, or it is not killed.
    pub fn starve_unit(&self, unit: &str) -> Result<String> {
        self.ensure_vm("its memory is the host's")?;
        self.vm_starve_unit(unit)
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

    /// Stops its PID 1, as if that hung: everything else goes on. Of a container it is stopped by a signal, of a virtual
    /// machine, whose kernel keeps signals from it, by the freezer of its cgroup.
    ///
    /// # Errors
    /// The machine is off, or it is a virtual one that is frozen.
    pub fn stop_pid1(&self) -> Result<()> {
        match self.backend() {
            Backend::Nspawn => self.nspawn_signal_pid1(Signal::STOP),
            Backend::Vm => self.vm_set_pid1_frozen(true),
        }
    }

    /// Lets its PID 1 go on.
    ///
    /// # Errors
    /// The machine is off, or it is a virtual one that is frozen.
    pub fn continue_pid1(&self) -> Result<()> {
        match self.backend() {
            Backend::Nspawn => self.nspawn_signal_pid1(Signal::CONT),
            Backend::Vm => self.vm_set_pid1_frozen(false),
        }
    }

    /// A command that prints the machine's journal of all its boots, with further arguments of `journalctl`. The machine
    /// may be off.
    ///
    /// # Errors
    /// It is a virtual machine that is frozen, or does not answer.
    pub fn journal_command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Command> {
        // By its directory: the machine may have been given another id meanwhile.
        let journalctl = |directory: &str| {
            ["journalctl".to_owned(), "-D".to_owned(), format!("{directory}/{}", self.machine_id())]
        };
        let outside = |directory: &str| {
            let mut command = self.cluster.supervisor().enter();
            command.args(journalctl(directory));
            command
        };
        let mut command = match (self.backend(), self.power()) {
            (Backend::Nspawn, _) => outside(&format!("/run/machines/{}/root/var/log/journal", self.name())),
            (Backend::Vm, Power::Off) => outside(&self.vm_journal_off()?),
            (Backend::Vm, _) => self.command(&journalctl("/var/log/journal"))?,
        };
        command.args(["--no-pager", "-o", "short-precise"]).args(arguments);
        Ok(command)
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
        let mut command = self.journal_command::<&str>(&[])?;
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
        let root = match self.backend() {
            Backend::Nspawn => self.nspawn_files(),
            Backend::Vm => self.vm_files(),
        };
        if root.exists() || self.backend() == Backend::Vm && self.vm_has_disk() {
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
        let limit = match self.backend() {
            Backend::Nspawn => BOOT_DEADLINE,
            Backend::Vm => VM_BOOT_DEADLINE,
        };
        let deadline = Instant::now() + limit;
        let booted = wait::until(&format!("{} booted", self.name()), limit, || {
            if self.power() == Power::Off {
                // A container has power a moment later than it was switched on; no virtual machine does.
                return Ok(match self.backend() {
                    Backend::Nspawn => Poll::Pending("it is off".to_owned()),
                    Backend::Vm => Poll::Ready(Err(anyhow!("it has switched itself off"))),
                });
            }
            let answers = match self.backend() {
                Backend::Nspawn => self.nspawn_answers()?,
                Backend::Vm => self.vm_answers(),
            };
            if !answers {
                return Ok(Poll::Pending("its systemd does not answer yet".to_owned()));
            }
            if before.is_some() && self.boot_id()?.as_str() == before.unwrap_or_default() {
                return Ok(Poll::Pending("it is still shutting down".to_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.exec_within(left, &["systemctl", "is-system-running", "--wait"], &[])?;
            Ok(match answer.stdout.trim() {
                state @ ("running" | "degraded") => Poll::Ready(Ok(state.to_owned())),
                _ => Poll::Pending(answer.to_string()),
            })
        });
        match booted.flatten() {
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
}

/// The program that runs a command in a machine with the same environment everywhere, whatever the caller's is.
pub(crate) fn clean_environment() -> Vec<String> {
    let terminal = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    let words = ["env", "-i", &format!("PATH={PATH}"), &format!("TERM={terminal}")].map(str::to_owned);
    let others = ["HOME=/root", "USER=root", "SHELL=/bin/bash", "LANG=C.UTF-8"].map(str::to_owned);
    [&words[..], &others].concat()
}
