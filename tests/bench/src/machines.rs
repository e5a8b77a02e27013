//! What the figures on machines have in common.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_cluster::{Cluster, Machine};
use serde::Deserialize;
use tempfile::TempDir;

/// Where the benchmark is inside a machine.
pub const INSIDE: &str = "/usr/local/bin/muster-bench";
/// How long one command may take.
pub const LIMIT: Duration = Duration::from_secs(180);

/// A service that does nothing for ever, and is active once its program runs.
pub const SERVICE: &str = "[Service]\nType=exec\nExecStart=/usr/bin/sleep infinity\n";

/// Unit files on the host that have not been submitted before.
#[derive(Debug)]
pub struct Units {
    pub names: Vec<String>,
    paths: Vec<PathBuf>,
    _directory: TempDir,
}

impl Units {
    /// `count` services whose names start so.
    pub fn new(prefix: &str, count: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let names: Vec<String> = (1..=count).map(|number| format!("{prefix}-{number:03}.service")).collect();
        let paths: Vec<PathBuf> = names.iter().map(|name| directory.path().join(name)).collect();
        for path in &paths {
            fs::write(path, SERVICE).with_context(|| path.display().to_string())?;
        }
        Ok(Self { names, paths, _directory: directory })
    }

    /// Starts all with one `musterctl start`, which waits for them, and checks with `list-units` that all are
    /// `active/running`. The seconds until the one ended and until the other has said so.
    pub fn start(&self, cluster: &Cluster) -> Result<(f64, f64)> {
        let began = Instant::now();
        ctl(cluster, "start", self.paths.iter().map(PathBuf::as_path))?;
        let started = began.elapsed();
        let running = self.listed(cluster)?.into_iter().filter(Row::is_running).count();
        let listed = began.elapsed();
        ensure!(
            running == self.names.len(),
            "musterctl start has ended, but only {running} of {} units are active/running",
            self.names.len()
        );
        Ok((started.as_secs_f64(), listed.as_secs_f64()))
    }

    /// Destroys all, and waits until `list-units` shows none. The seconds that this takes.
    pub fn destroy(&self, cluster: &Cluster) -> Result<f64> {
        let began = Instant::now();
        ctl(cluster, "destroy", self.names.iter().map(Path::new))?;
        cluster.wait_for("no unit is left in list-units", LIMIT, || {
            let left = self.listed(cluster)?.len();
            ensure!(left == 0, "{left} units are left");
            Ok(Some(()))
        })?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// The rows of `list-units` that are about these units.
    fn listed(&self, cluster: &Cluster) -> Result<Vec<Row>> {
        let listed = cluster.ctl_within(LIMIT, &["list-units", "-o", "json"], &[])?.ok()?;
        let mut rows: Vec<Row> = serde_json::from_str(&listed).context("list-units -o json")?;
        // Names are in order: they are numbered.
        rows.retain(|row| self.names.binary_search(&row.unit).is_ok());
        Ok(rows)
    }
}

/// A row of `list-units -o json`.
#[derive(Debug, Deserialize)]
struct Row {
    unit: String,
    active: Option<String>,
    sub: Option<String>,
}

impl Row {
    fn is_running(&self) -> bool {
        self.active.as_deref() == Some("active") && self.sub.as_deref() == Some("running")
    }
}

fn ctl<'a>(cluster: &Cluster, verb: &'a str, units: impl Iterator<Item = &'a Path>) -> Result<()> {
    let arguments: Vec<&Path> = std::iter::once(Path::new(verb)).chain(units).collect();
    let output = cluster.ctl_within(LIMIT, &arguments, &[])?;
    // Hundreds of paths would hide what was said.
    ensure!(output.success(), "musterctl {verb}: {}", output.stderr.trim_end());
    Ok(())
}

/// Puts the benchmark into a machine.
pub fn install(machine: &Machine<'_>) -> Result<()> {
    machine.write_file(INSIDE, &fs::read(std::env::current_exe()?)?)?;
    machine.exec(&["chmod", "755", INSIDE])?.ok()?;
    Ok(())
}

/// A daemon of Muster's on a machine.
#[derive(Clone, Debug)]
pub struct Daemon<'a> {
    machine: Machine<'a>,
    service: &'static str,
    pid: String,
}

impl<'a> Daemon<'a> {
    pub fn find(machine: Machine<'a>, service: &'static str) -> Result<Self> {
        let pid = machine.exec(&["systemctl", "show", "-P", "MainPID", service])?.ok()?.trim().to_owned();
        ensure!(pid != "0", "{service} does not run on {}", machine.name());
        Ok(Self { machine, service, pid })
    }

    /// What it is called in a method's description.
    pub fn shown(&self) -> String {
        format!("{} on {}", self.service.trim_end_matches(".service"), self.machine.name())
    }

    fn proc(&self, file: &str) -> Result<String> {
        self.machine.exec(&["cat", &format!("/proc/{}/{file}", self.pid)])?.ok()
    }

    /// Its resident memory, in MiB.
    pub fn rss_mib(&self) -> Result<f64> {
        Ok(field(&self.proc("status")?, "VmRSS")? / 1024.0)
    }

    /// The processor time that it has taken, in seconds.
    pub fn cpu_s(&self) -> Result<f64> {
        let stat = self.proc("stat")?;
        // The name in brackets may hold anything. After it: state, … utime and stime as 14th and 15th of all.
        let after = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
        let ticks: Vec<f64> =
            after.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        let per_s = rustix::param::clock_ticks_per_second();
        Ok(ticks.iter().sum::<f64>() / f64::from(u32::try_from(per_s)?))
    }
}

/// A number of `/proc/PID/status`, in its unit.
pub fn field(status: &str, key: &str) -> Result<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no {key} in /proc/PID/status"))
}
