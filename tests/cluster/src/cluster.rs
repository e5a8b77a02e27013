//! A cluster: found again by its directory, and taken down without a trace.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::builder::Builder;
use crate::daemons::Version;
use crate::machine::{EXEC_DEADLINE, Machine};
use crate::process::{self, Output};
use crate::state::{self, Backend, MachineRecord, State};
use crate::supervisor::{Owner, Supervisor, id_of, remove_cgroup};
use crate::template::Template;
use crate::wait::{self, Poll};
use crate::{daemons, say, vm};

/// How long daemons may take, once the machines are booted, until every agent is registered.
const REGISTERED_DEADLINE: Duration = Duration::from_secs(30);
/// The environment variable by which `musterctl` finds a scheduler.
const ENDPOINT_VARIABLE: &str = "MUSTERCTL_ENDPOINT";

/// A cluster of machines on this host. One that was made here is taken down when it is dropped, unless it was
/// [detached](Self::detach); one that was [opened](Self::open) is not.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    state: State,
    owner: Option<Owner>,
}

impl Cluster {
    /// A cluster of three workers and one scheduler, to be changed as needed.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A cluster whose supervisor has just started; written down so that it is found again.
    pub(crate) fn new(dir: PathBuf, state: State, owner: Owner) -> Result<Self> {
        let cluster = Self { dir, state, owner: Some(owner) };
        cluster.state.save(&cluster.dir)?;
        Ok(cluster)
    }

    /// Finds the cluster that is up in a directory.
    ///
    /// # Errors
    /// There is none, or it has died.
    pub fn open(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        let state = State::load(dir)?
            .with_context(|| format!("no cluster is up in {shown}: `muster-cluster up` makes one"))?;
        ensure!(
            state.supervisor.alive(),
            "the cluster in {shown} has died: `muster-cluster down` removes what is left of it"
        );
        Ok(Self { dir: dir.canonicalize()?, state, owner: None })
    }

    /// The directory by which the cluster is found again.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory on the host for files that are to vanish with the cluster.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn files(&self) -> Result<PathBuf> {
        state::files(&self.dir)
    }

    /// A machine by its name.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn machine(&self, name: &str) -> Result<Machine<'_>> {
        self.machines().find(|machine| machine.name() == name).with_context(|| {
            let names: Vec<_> = self.machines().map(|machine| machine.name().to_owned()).collect();
            format!("no machine {name} in this cluster, which has {}", names.join(", "))
        })
    }

    /// All machines: the schedulers' first.
    pub fn machines(&self) -> impl Iterator<Item = Machine<'_>> {
        self.state.machines.iter().map(|record| Machine { cluster: self, record })
    }

    /// The schedulers' addresses, as `HOST:PORT`.
    pub fn endpoints(&self) -> Vec<String> {
        daemons::endpoints(&self.state.machines)
    }

    /// What its machines are made of.
    pub fn backend(&self) -> Backend {
        self.state.backend
    }

    /// The number of the supervisor's process on the host: when it is killed, all of the cluster is gone.
    pub fn supervisor_pid(&self) -> i32 {
        self.state.supervisor.pid()
    }

    /// A command on the host's files but in the cluster's network, at the address 198.18.0.1. Program and
    /// arguments are still to be added.
    pub fn network_command(&self) -> Command {
        self.state.supervisor.enter_network()
    }

    /// The host's `musterctl`, in the cluster's network, with the schedulers' addresses in its environment.
    ///
    /// # Errors
    /// It has not been built, or there is no scheduler.
    pub fn ctl_command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Command> {
        self.ctl_command_of(&Version::current()?, arguments)
    }

    fn ctl_command_of<S: AsRef<OsStr>>(&self, version: &Version, arguments: &[S]) -> Result<Command> {
        let endpoints = self.endpoints();
        ensure!(!endpoints.is_empty(), "this cluster has no scheduler");
        let mut command = self.network_command();
        command.arg(version.musterctl()).args(arguments).env(ENDPOINT_VARIABLE, endpoints.join(","));
        Ok(command)
    }

    /// Runs `musterctl` in the cluster's network, for at most [`EXEC_DEADLINE`].
    ///
    /// # Errors
    /// It has not been built, or does not end. A status other than 0 is in the output: see [`Output::ok`].
    pub fn ctl<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Output> {
        self.ctl_within(EXEC_DEADLINE, arguments, &[])
    }

    /// Like [`Self::ctl`], with a limit and with bytes for its standard input.
    ///
    /// # Errors
    /// As for [`Self::ctl`].
    pub fn ctl_within<S: AsRef<OsStr>>(
        &self,
        limit: Duration,
        arguments: &[S],
        input: &[u8],
    ) -> Result<Output> {
        run_ctl(&mut self.ctl_command(arguments)?, arguments, input, limit)
    }

    /// Like [`Self::ctl`], of this version.
    ///
    /// # Errors
    /// As for [`Self::ctl`].
    pub fn ctl_of<S: AsRef<OsStr>>(&self, version: &Version, arguments: &[S]) -> Result<Output> {
        run_ctl(&mut self.ctl_command_of(version, arguments)?, arguments, &[], EXEC_DEADLINE)
    }

    /// Looks again and again until `look` finds something. What it answers with an error counts as "not yet", and is in the
    /// error when the time is over.
    ///
    /// # Errors
    /// Nothing was found within `limit`: what was seen last, and the state of all machines.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let found = wait::until(what, limit, || {
            Ok(look()?.map_or_else(|| Poll::Pending("nothing yet".to_owned()), Poll::Ready))
        });
        found.map_err(|error| {
            let machines: Vec<_> =
                self.machines().map(|machine| format!("{} {}", machine.name(), machine.power())).collect();
            error.context(format!("machines: {}", machines.join(", ")))
        })
    }

    /// Lets the cluster live on after this value and this process.
    ///
    /// # Errors
    /// The supervisor has died.
    pub fn detach(mut self) -> Result<()> {
        self.owner.take().map_or(Ok(()), Owner::detach)
    }

    /// Takes the cluster down, and checks that nothing is left of it.
    ///
    /// # Errors
    /// Something is left: what.
    pub fn down(mut self) -> Result<Down> {
        self.take_down()
    }

    /// Takes down whatever cluster is or was up in a directory, whatever state it is in.
    ///
    /// # Errors
    /// Something is left: what.
    pub fn down_in(dir: &Path) -> Result<Down> {
        if !dir.exists() {
            return Ok(Down { dir: dir.to_path_buf(), machines: None });
        }
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        let state = State::load(&dir)?;
        let down = take_down(&dir, state.as_ref())?;
        state::remove(&dir)?;
        Ok(down)
    }

    fn take_down(&mut self) -> Result<Down> {
        let down = take_down(&self.dir, Some(&self.state));
        if let Some(owner) = self.owner.take() {
            owner.reap();
        }
        state::remove(&self.dir)?;
        down
    }

    pub(crate) fn supervisor(&self) -> &Supervisor {
        &self.state.supervisor
    }

    pub(crate) fn services_of(&self, record: &MachineRecord) -> Vec<(&'static str, &'static str, String)> {
        if self.state.daemons { daemons::services(record, &self.state.machines) } else { Vec::new() }
    }

    /// `version`: of Muster's daemons, where there are to be any.
    pub(crate) fn write_template(&self, version: Option<&Version>) -> Result<()> {
        let root = self.supervisor().path("/run/template");
        let template = match self.backend() {
            Backend::Nspawn => Template::for_host(root)?,
            Backend::Vm => Template::for_image(root)?,
        };
        let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for machine in self.machines() {
            let _ = writeln!(hosts, "{} {}", machine.address(), machine.name());
        }
        template.write("/etc/hosts", hosts.as_bytes())?;
        template.write_program("/usr/lib/muster-cluster/beat", include_str!("scripts/beat"))?;
        if let Some(version) = version {
            daemons::install(version, &template, &self.state.machines)?;
        }
        match self.backend() {
            Backend::Nspawn => Ok(()),
            Backend::Vm => vm::share(self.supervisor(), &template),
        }
    }

    pub(crate) fn boot_all(&self, began: Instant) -> Result<()> {
        let errors: Vec<_> = thread::scope(|scope| {
            let boots: Vec<_> = self
                .machines()
                .map(|machine| {
                    scope.spawn(move || {
                        machine.boot()?;
                        let seconds = began.elapsed().as_secs_f32();
                        say(&format!(
                            "{} ({}) is up after {seconds:.1} s",
                            machine.name(),
                            machine.address()
                        ));
                        anyhow::Ok(())
                    })
                })
                .collect();
            boots
                .into_iter()
                .filter_map(|boot| boot.join().unwrap_or_else(|_| Err(anyhow!("a boot panicked"))).err())
                .collect()
        });
        if errors.is_empty() {
            return Ok(());
        }
        let texts: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
        bail!("{}", texts.join("\n"))
    }

    pub(crate) fn wait_registered(&self) -> Result<()> {
        self.wait_for(
            "the scheduler answers, and every agent is registered there",
            REGISTERED_DEADLINE,
            || {
                let listed = self.ctl(&["list-machines", "-o", "json"])?.ok()?;
                let missing = daemons::unregistered(&self.state.machines, &listed)?;
                ensure!(missing.is_empty(), "not registered: {}", missing.join(", "));
                Ok(Some(()))
            },
        )
        .map_err(|error| self.with_daemon_journals(&error))
    }

    /// Adds what the daemons said last, for a cluster that does not come up is gone when one wants to look.
    fn with_daemon_journals(&self, error: &anyhow::Error) -> anyhow::Error {
        let mut text = String::new();
        for machine in self.machines() {
            let journal = machine.journal_command(&["-u", "muster-*", "-n", "15"]).and_then(|mut command| {
                process::run(&mut command, "journalctl".to_owned(), &[], EXEC_DEADLINE)
            });
            let journal = journal.map_or_else(|error| format!("{error:#}"), |output| output.stdout);
            let _ = write!(text, "\n{}:\n{}", machine.name(), journal.trim_end());
        }
        anyhow!("{error:#}\nThe daemons' last words:{text}")
    }

    /// Keeps every machine's journal and console in a directory under the target directory.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep_journals(&self, name: &str) -> Result<PathBuf> {
        let dir =
            daemons::target_dir().join("cluster-journals").join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        for machine in self.machines() {
            let journal = machine.journal().unwrap_or_else(|error| format!("{error:#}\n"));
            fs::write(dir.join(format!("{}.journal", machine.name())), journal)?;
            fs::write(dir.join(format!("{}.console", machine.name())), machine.console())?;
        }
        Ok(dir)
    }
}

fn run_ctl<S: AsRef<OsStr>>(
    command: &mut Command,
    arguments: &[S],
    input: &[u8],
    limit: Duration,
) -> Result<Output> {
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    process::run(command, format!("musterctl {}", words.join(" ")), input, limit)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.owner.is_none() {
            return;
        }
        if thread::panicking() {
            let test = thread::current().name().unwrap_or("cluster").replace("::", "-");
            match self.keep_journals(&test) {
                Ok(dir) => say(&format!("the machines' journals are in {}", dir.display())),
                Err(error) => say(&format!("the machines' journals are lost: {error:#}")),
            }
        }
        if let Err(error) = self.take_down() {
            say(&format!("{error:#}"));
        }
    }
}

/// What taking a cluster down found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    dir: PathBuf,
    /// The machines there were; `None` when no cluster was up.
    machines: Option<Vec<String>>,
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.dir.display();
        match &self.machines {
            None => write!(f, "nothing was up in {dir}"),
            Some(machines) => write!(
                f,
                "the cluster in {dir} is gone ({}): no process, mount, namespace, link or cgroup is left",
                machines.join(", ")
            ),
        }
    }
}

/// Kills and checks; works with whatever is left, also with nothing.
pub(crate) fn take_down(dir: &Path, state: Option<&State>) -> Result<Down> {
    if let Some(state) = state {
        state.supervisor.kill()?;
    }
    remove_cgroup(&id_of(dir))?;
    let machines = state.map(|state| state.machines.iter().map(|machine| machine.name.clone()).collect());
    Ok(Down { dir: dir.to_path_buf(), machines })
}
