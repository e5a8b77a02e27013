//! The supervisor: PID 1 of a cluster's own namespaces, and the end of the cluster when it ends.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Write, pipe};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::process::{self, Output, PATH, ProcessId};
use crate::state::Backend;
use crate::vm;

/// How long the parts of a cluster may take to vanish once they have been killed.
const GONE_DEADLINE: Duration = Duration::from_secs(30);

/// The host's own address in the cluster's network.
pub(crate) const GATEWAY: &str = "198.18.0.1";

/// Where the supervisor has what the machines' units tell the [witness](crate::Cluster::witness).
pub(crate) const WITNESS: &str = "/run/witness";

/// The supervisor of a cluster, as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Supervisor {
    /// Names the cluster's cgroup and mounts.
    id: String,
    /// PID 1 of the namespaces.
    init: ProcessId,
    /// Its parent, `unshare`, which dies with it.
    parent: ProcessId,
    /// The PID, mount and network namespace, as `/proc/PID/ns` shows them.
    namespaces: Vec<String>,
}

/// Holds a cluster: when this (or the process that has it) ends, the supervisor takes the cluster down.
#[derive(Debug)]
pub(crate) struct Owner {
    parent: Child,
    stdin: ChildStdin,
}

impl Owner {
    /// Lets the cluster live on without an owner.
    pub(crate) fn detach(mut self) -> Result<()> {
        self.stdin.write_all(b"detach\n").context("the supervisor has died")
    }

    /// Reaps the supervisor's parent, which has been killed.
    pub(crate) fn reap(mut self) {
        let _ = self.parent.wait();
    }
}

/// The name of the cluster whose directory is `dir`: always the same, so that its cgroup is found without any state.
pub(crate) fn id_of(dir: &Path) -> String {
    // FNV-1a
    let hash = dir.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("muster-{hash:016x}")
}

impl Supervisor {
    /// Makes the namespaces, with a memory disk for the machines at `/run`, and what the machines need: the bridge and the
    /// cgroup of containers, or the hub of virtual machines.
    pub(crate) fn start(dir: &Path, backend: Backend, machines: &[&str]) -> Result<(Self, Owner)> {
        let id = id_of(dir);
        let script = dir.join("supervisor.sh");
        fs::write(&script, include_str!("scripts/supervisor.sh"))
            .with_context(|| script.display().to_string())?;
        let kind = match backend {
            Backend::Nspawn => vec!["nspawn".into()],
            Backend::Vm => vec!["vm".into(), vm::program()?, vm::qemu()?],
        };
        let (reader, writer) = pipe()?;
        // Its own session: neither Ctrl-C nor a closed terminal is meant for it.
        let mut command = Command::new("setsid");
        command
            .args(["unshare", "--fork", "--pid", "--mount", "--net", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "bash"])
            .args([script.as_os_str(), dir.as_os_str(), id.as_ref()])
            .args(&kind)
            .args(machines)
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut parent = command.spawn().context("cannot start `unshare`")?;
        // It holds the writing end, and the supervisor's last word would not be seen.
        drop(command);
        let stdin = parent.stdin.take().context("no pipe to the supervisor")?;
        let owner = Owner { parent, stdin };
        match Self::await_ready(id, reader, &owner) {
            Ok(supervisor) => Ok((supervisor, owner)),
            Err(error) => {
                let Owner { mut parent, stdin } = owner;
                let _ = parent.kill();
                drop(stdin);
                let _ = parent.wait();
                Err(error)
            }
        }
    }

    fn await_ready(id: String, output: PipeReader, owner: &Owner) -> Result<Self> {
        let mut said = String::new();
        for line in BufReader::new(output).lines() {
            let line = line?;
            if line == "ready" {
                let parent_pid = i32::try_from(owner.parent.id())?;
                let children = process::all()?
                    .into_iter()
                    .filter(|pid| process::status_field(*pid, "PPid") == Some(parent_pid.to_string()));
                let init = children.into_iter().find_map(ProcessId::of).context("the supervisor died")?;
                let parent = ProcessId::of(parent_pid).context("the supervisor's parent died")?;
                let namespaces = ["pid", "mnt", "net"]
                    .iter()
                    .map(|kind| {
                        namespace(init.pid, kind)
                            .with_context(|| format!("the supervisor's {kind} namespace"))
                    })
                    .collect::<Result<_>>()?;
                return Ok(Self { id, init, parent, namespaces });
            }
            said.push('\n');
            said.push_str(&line);
        }
        bail!("cannot make namespaces for the cluster:{said}")
    }

    /// The name of the cluster's cgroup and mounts.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn alive(&self) -> bool {
        self.init.alive()
    }

    /// The number of PID 1 on the host.
    pub(crate) fn pid(&self) -> i32 {
        self.init.pid
    }

    /// The cluster's files as the supervisor sees them: `/proc/PID/root` followed by `path`.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init.pid))
    }

    /// A machine's files: its overlay (`disk`, `root`), network (`net`), link state (`cut`) and `console`.
    pub(crate) fn machine_dir(&self, machine: &str) -> PathBuf {
        self.path("/run/machines").join(machine)
    }

    /// The cgroup of a machine: `harness` (our own processes for it) and `machine` (what nspawn makes).
    pub(crate) fn cgroup(&self, machine: &str) -> PathBuf {
        self.path("/sys/fs/cgroup").join(&self.id).join(machine)
    }

    /// A command that enters all of the supervisor's namespaces, to be followed by program and arguments.
    pub(crate) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.env("PATH", PATH);
        command.args(["-t", &self.init.pid.to_string(), "-m", "-n", "-p", "-r", "-w", "--"]);
        command
    }

    /// A command that enters network and processes only: it sees the host's files as they are.
    pub(crate) fn enter_network(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.pid.to_string(), "-n", "-p", "--"]);
        command
    }

    /// Runs a bash script in the supervisor's namespaces; `name` is for messages.
    pub(crate) fn script(
        &self,
        name: &str,
        script: &str,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<Output> {
        let mut command = self.enter();
        command.args(["bash", "-c", script, name]).args(arguments);
        process::run(&mut command, format!("{name} {}", arguments.join(" ")), &[], limit)
    }

    /// Kills the supervisor, and with it all that the cluster is made of.
    ///
    /// # Errors
    /// Something is left after half a minute: which.
    pub(crate) fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + GONE_DEADLINE;
        if let Some(pid) = self.init.pid() {
            let _ = kill_process(pid, Signal::KILL);
            process::wait_ended(pid, deadline)?;
        }
        // The parent reaps it and ends, unless somebody has stopped it.
        if let Some(pid) = self.parent.pid()
            && !process::wait_ended(pid, Instant::now() + Duration::from_secs(2))?
        {
            let _ = kill_process(pid, Signal::KILL);
        }
        loop {
            let left = self.left()?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the supervisor was killed, but there is still:\n  {}",
                left.join("\n  ")
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What there still is of the cluster: processes in its namespaces (which these would keep alive) and mounts.
    fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for pid in process::all()? {
            // A zombie holds nothing, and how soon it is reaped is its parent's affair.
            let Some(process) = ProcessId::of(pid) else { continue };
            let inside = ["pid", "mnt", "net"].iter().any(|kind| {
                namespace(pid, kind).is_some_and(|namespace| self.namespaces.contains(&namespace))
            });
            if inside || process == self.init || process == self.parent {
                let name = process::status_field(pid, "Name").unwrap_or_default();
                left.push(format!("process {pid} ({name})"));
            }
        }
        left.extend(mounts_of(&self.id)?);
        Ok(left)
    }
}

/// A namespace of a process, such as `net:[4026532009]`.
fn namespace(pid: i32, kind: &str) -> Option<String> {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?.into_os_string().into_string().ok()
}

fn mounts_of(id: &str) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .filter(|line| line.split_whitespace().any(|word| word == id))
        .map(|line| format!("mount {line}"))
        .collect())
}

/// Kills what is in the cluster's cgroup and removes it; with a mount of our own, for the host may have none of cgroup v2.
pub(crate) fn remove_cgroup(id: &str) -> Result<()> {
    const SCRIPT: &str = r#"
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        cd "/sys/fs/cgroup/$1" 2>/dev/null || exit 0
        echo 1 >cgroup.kill
        cd /
        for _ in {1..500}; do
            find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} + 2>/dev/null && exit 0
            sleep 0.01
        done
        echo "cgroup $1 cannot be removed, these processes are in it:"
        find "/sys/fs/cgroup/$1" -name cgroup.procs -exec cat {} +
        exit 1
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-c", SCRIPT, "remove-cgroup", id]);
    command.env("PATH", PATH);
    process::run(&mut command, "remove cgroup".to_owned(), &[], GONE_DEADLINE)?.ok()?;
    Ok(())
}
