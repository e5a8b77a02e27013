//! Virtual machines under QEMU: each with a kernel of its own, a disk that survives power cuts, and a network through the
//! cluster's hub.
//!
//! KVM is used on hosts that are no virtual machines themselves: on those `/dev/kvm` may be there and yet stop an ordinary
//! kernel after half a minute, and no quick look tells that beforehand. Else they are emulated (TCG), which needs nothing of
//! the host.

mod agent;
mod eater;
mod exec;
mod hub;
mod lines;
mod qmp;
mod switch;

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::daemons::{project_root, target_dir};
use crate::machine::{BOOT_DEADLINE, EXEC_DEADLINE, Machine, Power, VM_BOOT_DEADLINE, clean_environment};
use crate::process::{self, ProcessId, status_field};
use crate::supervisor::{GATEWAY, Supervisor};
use crate::template::Template;
use crate::wait::{self, Poll};

/// Where the machines' directories are, as the supervisor sees it.
const MACHINES: &str = "/run/machines";
/// The name of the host's own port at the switch.
const HOST: &str = "host";
// What is in a machine's directory: sockets of the hub for QEMU and for the harness, …
const NET_SOCKET: &str = "net.sock";
const AGENT_SOCKET: &str = "agent.sock";
const EXEC_SOCKET: &str = "exec.sock";
const WITNESS_SOCKET: &str = "witness.sock";
/// … a file that is there while its agent works, …
const UP: &str = "up";
/// … one that is there while it is paused, what it was doing when it was saved, …
const PAUSED: &str = "paused";
const SAVED: &str = "saved";
/// … what its disk is made of, and its disk.
const OWN: &str = "own";
const DISK: &str = "own.ext4";

/// The names of a machine's serial ports: for the agent's commands, and for what its units tell the witness.
const AGENT_PORT: &str = "agent";
const WITNESS_PORT: &str = "witness";

/// The unit of the agent that every machine has. Where memory runs out it goes on.
const AGENT: &str = "\
[Unit]
Description=Runs what the cluster harness asks for
DefaultDependencies=no

[Service]
ExecStart=/usr/lib/muster-cluster/muster-cluster guest-agent
Restart=always
RestartSec=100ms
TasksMax=infinity
OOMScoreAdjust=-1000
OOMPolicy=continue
";

/// What the program is called with when the harness starts itself, which no user does.
#[derive(Debug, clap::Subcommand)]
pub enum Part {
    /// Serve as the cluster's hub
    #[command(hide = true)]
    Hub {
        /// The machines
        machines: Vec<String>,
    },
    /// Serve in a virtual machine
    #[command(hide = true)]
    GuestAgent,
    /// Eat up a virtual machine's memory
    #[command(hide = true)]
    GuestEater,
    /// Run a command in a virtual machine
    #[command(hide = true)]
    GuestExec {
        /// The hub's socket for that machine
        socket: PathBuf,
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

impl Part {
    /// Does this part's work; the exit status to end with.
    ///
    /// # Errors
    /// It cannot.
    pub fn run(self) -> Result<u8> {
        match self {
            Self::Hub { machines } => hub::run(&machines).map(|()| 0),
            Self::GuestAgent => agent::run().map(|()| 0),
            Self::GuestEater => eater::run().map(|()| 0),
            Self::GuestExec { socket, command } => exec::run(&socket, &command),
        }
    }
}

/// The program of the harness, which is also part of it while it runs.
pub(crate) fn program() -> Result<PathBuf> {
    const NAME: &str = "muster-cluster";
    let this = std::env::current_exe().context("the path of this program")?;
    // A test's own program is in `deps` beside it, those of the benchmarks are just beside it.
    let mut candidates = this.ancestors().skip(1).take(2).map(|directory| directory.join(NAME));
    candidates.find(|path| path.is_file()).with_context(|| {
        format!("no {NAME} where {} is or in the directory above: run `make build`", this.display())
    })
}

/// The same program in a machine.
const GUEST_PROGRAM: &str = "/usr/lib/muster-cluster/muster-cluster";

/// The exit status of what was killed.
const KILLED: i32 = 128 + 9;

/// Names to `host-packages` the directory for what virtual machines are made of.
pub(crate) const DIR_VARIABLE: &str = "MUSTER_VM_DIR";

/// Where images are kept, and QEMU when it is not installed.
pub(crate) fn directory() -> PathBuf {
    target_dir().join("vm")
}

/// QEMU: installed, or unpacked by `host-packages`.
pub(crate) fn qemu() -> Result<PathBuf> {
    const NAME: &str = "qemu-system-x86_64";
    let unpacked = directory().join("qemu").join(NAME);
    let installed = process::PATH.split(':').map(|directory| Path::new(directory).join(NAME));
    installed
        .chain([unpacked])
        .find(|path| path.is_file())
        .context("the host has no QEMU: `make vm-packages` installs it")
}

/// The directory of the image, which is made when it is not there or damaged.
fn image() -> Result<PathBuf> {
    let script = project_root().join("tests/cluster/vm/image");
    // In our process group, for Ctrl-C to reach it; whatever else ends us ends it, too.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "bash"]).arg(&script).arg(directory());
    command.env("PATH", process::PATH).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("cannot start `setpriv`")?;
    ensure!(output.status.success(), "the image of the virtual machines cannot be made: see above");
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

/// Makes the disks that all machines share: the image's system, and what the harness adds to it.
pub(crate) fn share(supervisor: &Supervisor, template: &Template) -> Result<()> {
    // What a running cluster uses must not go away with what it was copied from.
    const SCRIPT: &str = r#"
        mksquashfs /run/template /run/template.squashfs -all-root -comp zstd -Xcompression-level 1 -quiet -no-progress
        rm -rf /run/template
        cp "$1/kernel" "$1/initrd" "$1/system.squashfs" /run/"#;
    template.copy(&program()?, GUEST_PROGRAM)?;
    let unit = "/usr/lib/systemd/system/muster-cluster-agent.service";
    template.write(unit, AGENT.as_bytes())?;
    template
        .link(Path::new(unit), "/etc/systemd/system/sysinit.target.wants/muster-cluster-agent.service")?;
    let image = image()?;
    let image = image.to_str().context("the image's path is not UTF-8")?;
    supervisor.script("disks", &format!("set -e\n{SCRIPT}"), &[image], BOOT_DEADLINE)?.ok()?;
    Ok(())
}

/// The speed in kHz of the host's time stamp counter, which under TCG is the machine's too, by `/proc/cpuinfo`. Where that
/// tells how fast the processor is at the moment instead, the machine has to measure it, which may go wrong on a busy host.
fn clock_khz(cpuinfo: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    if field("flags")?.split(' ').any(|flag| flag == "aperfmperf") {
        return None;
    }
    let (whole, part) = field("cpu MHz")?.split_once('.')?;
    format!("{whole}{part:0<3.3}").parse().ok()
}

/// Whether this host is no virtual machine: those set a flag of their processors (CPUID 1, ECX bit 31).
fn is_bare_metal() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or("hypervisor");
    !flags.split_whitespace().any(|flag| flag == "hypervisor")
}

/// The command that starts a machine; it returns when the machine has power.
fn power_on(machine: &Machine<'_>) -> Result<Command> {
    let (name, address) = (machine.name(), machine.address());
    let path = |file: &str| format!("{MACHINES}/{name}/{file}");
    // The same at each boot, or the neighbours would go on talking to the old one.
    let [a, b, c, d] = address.parse::<Ipv4Addr>()?.octets();
    let mac = format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:01");
    let clock = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| clock_khz(&text));
    let clock = clock.map(|khz| format!("tsc_early_khz={khz} tsc=reliable ")).unwrap_or_default();
    let mut command = machine.cluster.supervisor().enter();
    command.arg(qemu()?).args(["-name", name, "-daemonize"]);
    if is_bare_metal() {
        // Where that cannot be had QEMU takes the next.
        command.args(["-accel", "kvm"]);
    }
    command.args(["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "qemu64,+rdrand,+rdseed"]);
    // Without the devices that nobody uses it boots faster.
    command.args(["-M", "q35,smm=off,usb=off,sata=off,smbus=off,hpet=off,vmport=off,i8042=off"]);
    command.args(["-smp", "1", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-kernel", "/run/kernel", "-initrd", "/run/initrd"]);
    for (disk, options) in [
        ("/run/system.squashfs", "readonly=on,file.locking=off"),
        ("/run/template.squashfs", "readonly=on,file.locking=off"),
        (path(DISK).as_str(), "readonly=off"),
    ] {
        command.args(["-drive", &format!("if=virtio,format=raw,file={disk},{options}")]);
    }
    command.args([
        "-netdev",
        &format!("stream,id=net,server=off,addr.type=unix,addr.path={}", path(NET_SOCKET)),
    ]);
    command.args(["-device", &format!("virtio-net-pci,netdev=net,id=nic,romfile=,mac={mac}")]);
    command.args(["-device", "virtio-serial-pci"]);
    for (port, socket) in [(AGENT_PORT, AGENT_SOCKET), (WITNESS_PORT, WITNESS_SOCKET)] {
        command.args(["-chardev", &format!("socket,id={port},path={},server=off", path(socket))]);
        command.args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
    }
    command.args(["-serial", &format!("file:{}", path("console")), "-monitor", "none"]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", path(qmp::SOCKET))]);
    command.args([
        "-append",
        &format!(
            "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=1 mitigations=off {clock}no_timer_check \
             cryptomgr.notests=1 init_on_alloc=0 lsm= audit=0 nowatchdog rcupdate.rcu_expedited=1 rdinit=/init \
             muster.address={address} muster.gateway={GATEWAY}"
        ),
    ]);
    Ok(command)
}

/// What only virtual machines do in their way.
impl Machine<'_> {
    /// QEMU's number on the host.
    pub(crate) fn vm_process(&self) -> Option<i32> {
        let parent = self.cluster.supervisor_pid().to_string();
        process::all().ok()?.into_iter().find(|pid| {
            status_field(*pid, "PPid").as_ref() == Some(&parent)
                && ProcessId::of(*pid).is_some()
                && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                    let mut words = line.split(|byte| *byte == 0);
                    words.any(|word| word == b"-name") && words.next() == Some(self.name().as_bytes())
                })
        })
    }

    fn vm_pid(&self) -> Result<Pid> {
        let pid = self.vm_process().and_then(Pid::from_raw);
        pid.with_context(|| format!("{} is off", self.name()))
    }

    pub(crate) fn vm_power(&self) -> Power {
        match self.vm_process().map(|pid| status_field(pid, "State").unwrap_or_default()) {
            None if self.files().join(SAVED).exists() => Power::Saved,
            None => Power::Off,
            Some(state) if state.starts_with('T') => Power::Frozen,
            Some(_) if self.files().join(PAUSED).exists() => Power::Paused,
            Some(_) => Power::On,
        }
    }

    /// Whether commands can be run in it.
    pub(crate) fn vm_answers(&self) -> bool {
        self.files().join(UP).exists()
    }

    pub(crate) fn vm_command(&self) -> Result<Command> {
        let mut command = Command::new(program()?);
        command.arg("guest-exec").arg(self.files().join(EXEC_SOCKET)).arg("--");
        command.args(clean_environment());
        Ok(command)
    }

    pub(crate) fn vm_files(&self) -> PathBuf {
        self.files().join(OWN).join("upper")
    }

    /// Whether it has been switched on before.
    pub(crate) fn vm_has_disk(&self) -> bool {
        self.files().join(DISK).exists()
    }

    pub(crate) fn vm_boot(&self) -> Result<()> {
        // It takes up room only as it is filled.
        const SCRIPT: &str = r#"cd "$1" && mkdir -p own/work && mke2fs -q -t ext4 -J size=8 -d own new.ext4 2G &&
            mv new.ext4 own.ext4 && rm -r own"#;
        let supervisor = self.cluster.supervisor();
        if !self.vm_has_disk() {
            supervisor.script("disk", SCRIPT, &[&self.vm_dir()], EXEC_DEADLINE)?.ok()?;
        }
        // Somebody may have killed QEMU.
        self.remove_mark(PAUSED)?;
        self.vm_start(&[])?;
        self.vm_link()
    }

    fn vm_start(&self, options: &[&str]) -> Result<()> {
        let mut command = power_on(self)?;
        command.args(options);
        process::run(&mut command, format!("QEMU for {}", self.name()), &[], BOOT_DEADLINE)?.ok()?;
        Ok(())
    }

    /// The socket by which its QEMU is controlled.
    fn vm_qmp(&self) -> PathBuf {
        self.files().join(qmp::SOCKET)
    }

    pub(crate) fn vm_pause(&self) -> Result<()> {
        qmp::command(&self.vm_qmp(), "stop")?;
        let mark = self.files().join(PAUSED);
        fs::write(&mark, "").with_context(|| mark.display().to_string())
    }

    pub(crate) fn vm_resume(&self) -> Result<()> {
        qmp::command(&self.vm_qmp(), "cont")?;
        self.remove_mark(PAUSED)?;
        // The cable may have been cut or mended meanwhile.
        self.vm_link()
    }

    fn remove_mark(&self, mark: &str) -> Result<()> {
        let path = self.files().join(mark);
        if path.exists() {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    pub(crate) fn vm_save(&self) -> Result<()> {
        let new = format!("{}/{SAVED}.new", self.vm_dir());
        let migrate = json!({"execute": "migrate", "arguments": {"uri": format!("exec:cat >{new}")}});
        let written = qmp::command(&self.vm_qmp(), "stop")
            .and_then(|_| qmp::execute(&self.vm_qmp(), &migrate))
            .and_then(|_| {
                wait::until(&format!("{} is written down", self.name()), BOOT_DEADLINE, || {
                    let info = qmp::command(&self.vm_qmp(), "query-migrate")?;
                    Ok(match info["status"].as_str() {
                        Some("completed") => Poll::Ready(Ok(())),
                        Some("failed") => Poll::Ready(Err(anyhow!("{info}"))),
                        _ => Poll::Pending(info.to_string()),
                    })
                })
            });
        if let Err(error) = written.flatten() {
            self.vm_resume().with_context(|| format!("{error:#}"))?;
            return Err(error.context(format!("{} cannot be saved", self.name())));
        }
        // It counts as soon as there is no process any more.
        let new = self.files().join(format!("{SAVED}.new"));
        fs::rename(&new, self.files().join(SAVED)).with_context(|| new.display().to_string())?;
        self.vm_kill()
    }

    pub(crate) fn vm_restore(&self) -> Result<()> {
        self.vm_start(&["-incoming", &format!("exec:cat {}/{SAVED}", self.vm_dir())])?;
        wait::until(&format!("{} is read", self.name()), BOOT_DEADLINE, || {
            let status = qmp::command(&self.vm_qmp(), "query-status")?;
            let read = status["status"] != "inmigrate";
            Ok(if read { Poll::Ready(()) } else { Poll::Pending(status.to_string()) })
        })?;
        self.vm_resume()?;
        self.remove_mark(SAVED)?;
        wait::until(&format!("the agent of {} answers", self.name()), VM_BOOT_DEADLINE, || {
            Ok(if self.vm_answers() { Poll::Ready(()) } else { Poll::Pending("not yet".to_owned()) })
        })
    }

    /// Its directory as the supervisor sees it.
    fn vm_dir(&self) -> String {
        format!("{MACHINES}/{}", self.name())
    }

    pub(crate) fn vm_kill(&self) -> Result<()> {
        if self.vm_power() == Power::Saved {
            return self.remove_mark(SAVED);
        }
        let pid = self.vm_pid()?;
        kill_process(pid, Signal::KILL).context("cannot kill QEMU")?;
        let ended = process::wait_ended(pid, Instant::now() + BOOT_DEADLINE)?;
        ensure!(ended, "QEMU of {} does not die", self.name());
        self.remove_mark(PAUSED)?;
        // The hub has noticed when the agent's mark is gone.
        wait::until(&format!("{} is unplugged", self.name()), EXEC_DEADLINE, || {
            let gone = !self.vm_answers() && self.vm_process().is_none();
            Ok(if gone { Poll::Ready(()) } else { Poll::Pending("the hub still has it".to_owned()) })
        })
    }

    pub(crate) fn vm_set_frozen(&self, frozen: bool) -> Result<()> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        kill_process(self.vm_pid()?, signal).context("cannot signal QEMU")?;
        wait::until(&format!("{}: frozen {frozen}", self.name()), EXEC_DEADLINE, || {
            let power = self.vm_power();
            let reached = (power == Power::Frozen) == frozen;
            Ok(if reached { Poll::Ready(()) } else { Poll::Pending(power.to_string()) })
        })?;
        // The cable may have been cut or mended meanwhile.
        if frozen { Ok(()) } else { self.vm_link() }
    }

    /// The agent, to which PID 1 is nothing but its parent, does that.
    pub(crate) fn vm_set_pid1_frozen(&self, frozen: bool) -> Result<()> {
        const CGROUP: &str = "/sys/fs/cgroup/init.scope";
        let digit = if frozen { "1" } else { "0" };
        self.exec(&["sh", "-c", &format!("echo {digit} >{CGROUP}/cgroup.freeze")])?.ok()?;
        wait::until(&format!("PID 1 of {}: frozen {digit}", self.name()), EXEC_DEADLINE, || {
            let events = self.exec(&["cat", &format!("{CGROUP}/cgroup.events")])?.ok()?;
            let reached = events.lines().any(|line| line.split_once(' ') == Some(("frozen", digit)));
            Ok(if reached { Poll::Ready(()) } else { Poll::Pending(events) })
        })
    }

    pub(crate) fn vm_starve(&self) -> Result<String> {
        let before = self.vm_oom_kills()?;
        let eater = self.exec_within(VM_BOOT_DEADLINE, &[GUEST_PROGRAM, "guest-eater"], &[])?;
        ensure!(eater.success() || eater.code == Some(KILLED), "{eater}");
        self.vm_wait_oom_kill(&before, "Killed process ")
    }

    pub(crate) fn vm_starve_unit(&self, unit: &str) -> Result<String> {
        // Nothing of it may stay in memory, and writing ends when that is so. Its cgroup goes away with its processes,
        // unless it is started again.
        const SCRIPT: &str = r#"
            pid=$(systemctl show -P MainPID -- "$1") && group=$(systemctl show -P ControlGroup -- "$1") || exit
            [ "$pid" != 0 ] || { echo "no process of $1 runs" >&2; exit 1; }
            cd "/sys/fs/cgroup$group" && max=$(cat memory.max) && echo 0 >memory.max || exit
            echo "$max" 2>/dev/null >memory.max || [ ! -e memory.max ] || exit
            echo "$pid""#;
        let before = self.vm_oom_kills()?;
        let pid = self.exec(&["bash", "-c", SCRIPT, "starve", unit])?.ok()?;
        self.vm_wait_oom_kill(&before, &format!("Killed process {} ", pid.trim()))
    }

    /// What the kernel has said of processes that it killed for want of memory.
    fn vm_oom_kills(&self) -> Result<Vec<String>> {
        let said = self.exec(&["dmesg"])?.ok()?;
        Ok(said.lines().filter(|line| line.contains("Killed process ")).map(str::to_owned).collect())
    }

    /// Waits until the kernel has said so of another one, and in these words.
    fn vm_wait_oom_kill(&self, before: &[String], words: &str) -> Result<String> {
        wait::until(&format!("{}: {words}", self.name()), EXEC_DEADLINE, || {
            let kills = self.vm_oom_kills()?;
            let new = kills.iter().filter(|line| !before.contains(line));
            let found = new.clone().find_map(|line| Some(line[line.find(words)?..].to_owned()));
            Ok(found.map_or_else(|| Poll::Pending(format!("{kills:?}")), Poll::Ready))
        })
    }

    /// Lets the machine see whether its cable is cut. Frames are lost as soon as the mark is there, whatever it sees.
    pub(crate) fn vm_link(&self) -> Result<()> {
        // One that stands still sees it when it goes on, one that is off when it is on again.
        if self.vm_power() != Power::On {
            return Ok(());
        }
        let set_link = json!({"execute": "set_link", "arguments": {"name": "nic", "up": !self.is_cut()}});
        qmp::execute(&self.vm_qmp(), &set_link)
            .with_context(|| format!("cannot change the link of {}", self.name()))?;
        Ok(())
    }

    /// Writes a file to the disk of a machine that is off.
    pub(crate) fn vm_write_off(&self, path: &str, bytes: &[u8]) -> Result<()> {
        // What was written before a power cut is in the disk's journal: e2fsck brings it in, and says so with status 1.
        const SCRIPT: &str = r#"
            cd "$1"
            e2fsck -fp own.ext4 >/dev/null || [ $? = 1 ] || exit
            cat >new-file
            chmod 644 new-file
            {
                directory=/upper
                while IFS= read -r -d / part; do
                    directory=$directory/$part
                    echo "mkdir \"$directory\""
                done <<<"${2#/}"
                echo "rm \"/upper$2\""
                echo "write new-file \"/upper$2\""
            } | debugfs -w -f - own.ext4 >/dev/null 2>&1
            rm new-file
            # debugfs says what is there; its status tells nothing.
            [[ "$(debugfs -R "stat \"/upper$2\"" own.ext4 2>/dev/null)" = *"Type: regular"* ]]"#;
        let mut command = self.cluster.supervisor().enter();
        command.args(["bash", "-c", SCRIPT, "write", &self.vm_dir(), path]);
        process::run(
            &mut command,
            format!("write {path} to the disk of {}", self.name()),
            bytes,
            EXEC_DEADLINE,
        )?
        .ok()?;
        Ok(())
    }

    /// Where the journal of a machine that is off is, as the supervisor sees it: taken from its disk.
    pub(crate) fn vm_journal_off(&self) -> Result<String> {
        const SCRIPT: &str = r#"
            cd "$1"
            rm -rf journal
            mkdir journal
            [ ! -e own.ext4 ] || {
                e2fsck -fp own.ext4 >/dev/null || [ $? = 1 ] || exit
                debugfs -R "rdump /upper/var/log/journal journal" own.ext4 >/dev/null 2>&1
            }"#;
        let supervisor = self.cluster.supervisor();
        supervisor.script("journal", SCRIPT, &[&self.vm_dir()], EXEC_DEADLINE)?.ok()?;
        Ok(format!("{}/journal/journal", self.vm_dir()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_known_where_it_is_constant() {
        let cpuinfo = "processor\t: 0\ncpu MHz\t\t: 2596.14\nflags\t\t: fpu tsc\n";
        assert_eq!(clock_khz(cpuinfo), Some(2_596_140));
        assert_eq!(clock_khz(&cpuinfo.replace("fpu", "aperfmperf")), None);
        assert_eq!(clock_khz(""), None);
    }
}
