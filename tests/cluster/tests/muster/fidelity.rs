//! The simulated PID 1 against a real one: the same operations, the same observations.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use muster_cluster::{Cluster, Machine, Output};
use muster_sim::fidelity::{self, Kind, NO_SUCH_UNIT, NOTHING, SCRIPT, Step};
use serde::Deserialize;

use super::support::LIMIT;

const MANAGER: [&str; 3] =
    ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
const UNITS: &str = "/run/systemd/system";

/// What `busctl --json=short` prints of a reply.
#[derive(Debug, Deserialize)]
struct Reply<T> {
    data: T,
}

/// A unit as `ListUnitsByNames` lists it.
type Listed = (String, String, String, String, String, String, String, u32, String, String);

struct Real<'a> {
    cluster: &'a Cluster,
    machine: Machine<'a>,
}

impl Real<'_> {
    fn sees(&self, step: Step) -> Result<String> {
        let done = || Ok("done".to_owned());
        match step {
            Step::Write(unit, kind, version) => {
                self.machine.write_file(&format!("{UNITS}/{unit}"), file(kind, version).as_bytes())?;
                done()
            }
            Step::Remove(unit) => {
                self.machine.exec(&["rm", &format!("{UNITS}/{unit}")])?.ok()?;
                done()
            }
            Step::Start(unit) => self.job("start", unit),
            Step::Ask(unit) => {
                self.machine.exec(&["systemctl", "start", "--no-block", unit])?.ok()?;
                done()
            }
            Step::Stop(unit) => self.job("stop", unit),
            Step::Kill(unit) => {
                let pid = self.main_pid(unit)?.context("a main process runs")?;
                self.machine.exec(&["kill", "-9", &pid.to_string()])?.ok()?;
                self.cluster.wait_for(&format!("{unit} to be seen to have ended"), LIMIT, || {
                    Ok((self.main_pid(unit)? != Some(pid) && self.list(unit)?.3 != "active").then_some(()))
                })?;
                done()
            }
            Step::ResetFailed(unit) => {
                self.call(&["ResetFailedUnit", "s", unit])?.ok()?;
                done()
            }
            Step::Reload => {
                self.machine.exec(&["systemctl", "daemon-reload"])?.ok()?;
                done()
            }
            Step::Read(unit) => {
                let listed = self.list(unit)?;
                Ok(fidelity::state(&listed.2, &listed.3, &listed.4))
            }
            Step::Check(unit) => {
                let outdated: Reply<bool> =
                    serde_json::from_str(&self.property(unit, "Unit", "NeedDaemonReload")?)?;
                let active: Reply<String> =
                    serde_json::from_str(&self.property(unit, "Unit", "ActiveState")?)?;
                let active = !matches!(&*active.data, "inactive" | "failed");
                Ok(fidelity::check(outdated.data, active))
            }
            Step::Runs(unit) => {
                let Some(pid) = self.main_pid(unit)? else { return Ok(NOTHING.to_owned()) };
                let environment = self.machine.exec(&["cat", &format!("/proc/{pid}/environ")])?.ok()?;
                let version = environment.split('\0').find_map(|line| line.strip_prefix("VERSION="));
                Ok(fidelity::runs(version.context("the process has a version")?.parse()?))
            }
        }
    }

    fn call(&self, arguments: &[&str]) -> Result<Output> {
        let command = ["busctl", "--json=short", "call"];
        self.machine.exec(&command.iter().chain(&MANAGER).chain(arguments).copied().collect::<Vec<_>>())
    }

    /// As the agent asks for it: systemd loads the unit to answer.
    fn list(&self, unit: &str) -> Result<Listed> {
        let reply = self.call(&["ListUnitsByNames", "as", "1", unit])?.ok()?;
        let reply: Reply<(Vec<Listed>,)> = serde_json::from_str(&reply)?;
        reply.data.0.into_iter().next().context("systemd lists the unit")
    }

    fn property(&self, unit: &str, interface: &str, property: &str) -> Result<String> {
        let mut path = String::from("/org/freedesktop/systemd1/unit/");
        for c in unit.chars() {
            if c.is_ascii_alphanumeric() {
                path.push(c);
            } else {
                write!(path, "_{:02x}", u32::from(c))?;
            }
        }
        let interface = format!("org.freedesktop.systemd1.{interface}");
        let command = ["busctl", "--json=short", "get-property", MANAGER[0], &path, &interface, property];
        self.machine.exec(&command)?.ok()
    }

    fn main_pid(&self, unit: &str) -> Result<Option<u32>> {
        let pid: Reply<u32> = serde_json::from_str(&self.property(unit, "Service", "MainPID")?)?;
        Ok(Some(pid.data).filter(|pid| *pid > 0))
    }

    /// Asks for a job, and waits for its end: `systemctl` tells its result in words.
    fn job(&self, verb: &str, unit: &str) -> Result<String> {
        let output = self.machine.exec_within(LIMIT, &["systemctl", verb, unit], b"")?;
        let text = &output.stderr;
        let result = if output.success() {
            "done"
        } else if text.contains("not found") || text.contains("not loaded") {
            NO_SUCH_UNIT
        } else if text.contains("failed because") {
            "failed"
        } else if text.contains("timed out") {
            "timeout"
        } else {
            bail!("{output}")
        };
        Ok(result.to_owned())
    }
}

fn file(kind: Kind, version: u64) -> String {
    let sleep = "ExecStart=/usr/bin/sleep infinity\n";
    let kind = match kind {
        Kind::Runs => sleep.to_owned(),
        Kind::Fails => "Type=oneshot\nExecStart=/bin/false\n".to_owned(),
        Kind::Hangs => format!("ExecStartPre=/usr/bin/sleep infinity\nTimeoutStartSec=1\n{sleep}"),
        Kind::Unstoppable => {
            "ExecStart=/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'\nTimeoutStopSec=1\n".to_owned()
        }
        Kind::Restarts => format!("{sleep}Restart=always\nRestartSec=1h\n"),
    };
    format!("[Service]\nEnvironment=VERSION={version}\n{kind}")
}

#[test]
fn the_simulated_pid_1_is_like_a_real_one() -> Result<()> {
    let cluster = Cluster::builder().machines(1).no_daemons().up()?;
    let real = Real { cluster: &cluster, machine: cluster.machine("m1")? };
    let mut differences = String::new();
    for (step, simulated) in SCRIPT.iter().zip(fidelity::simulated()) {
        // What cannot be seen is a difference, too.
        let seen = real.sees(*step).unwrap_or_else(|error| format!("{error:#}"));
        if seen != simulated {
            writeln!(differences, "{step}: really {seen}; simulated {simulated}")?;
        }
    }
    ensure!(differences.is_empty(), "the simulated PID 1 is not like the real one:\n{differences}");
    Ok(())
}
