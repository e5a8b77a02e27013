//! The simulated PID 1 against a real one: the same operations, the same observations.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use muster_cluster::{Cluster, Machine, Output, project_root};
use muster_core::agent::{LEASE, drop_in};
use muster_core::ids::{Epoch, Term};
use muster_sim::fidelity::{self, Kind, NO_SUCH_UNIT, NOTHING, SCRIPT, Signal, Step};
use serde::Deserialize;
use serde_json::Value;

use super::support::LIMIT;

const MANAGER: [&str; 3] =
    ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
const UNITS: &str = "/run/systemd/system";
/// Where the guard of exclusive units has its files.
const GUARD: &str = "/run/muster/guard";
/// Where is written what systemd signals.
const SIGNALS: &str = "/run/signals";

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
    /// How many of the unit's signals were looked at.
    looked: BTreeMap<&'static str, usize>,
}

impl<'a> Real<'a> {
    /// A machine whose systemd signals what happens, and where that is written down.
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let real = Self { cluster, machine: cluster.machine("m1")?, looked: BTreeMap::new() };
        let source = project_root().join("agent/src/guard");
        for (directory, name) in
            [(GUARD, "lease.sh"), (GUARD, "fence.sh"), (UNITS, LEASE), (UNITS, "muster-fence.service")]
        {
            let text = fs::read_to_string(source.join(name))?;
            // Of the fence nothing is simulated but that all ends.
            let text = text.replace("@DIR@", GUARD).replace("@SLICES@", "");
            real.machine.write_file(&format!("{directory}/{name}"), text.as_bytes())?;
        }
        // It signals on the bus while somebody there has subscribed: logind has.
        real.sh(&format!(
            "systemctl start systemd-logind
             setsid stdbuf -oL busctl --json=short monitor {} </dev/null >{SIGNALS} 2>/dev/null &",
            MANAGER[0]
        ))?;
        cluster.wait_for("systemd to signal, and that to be written down", LIMIT, || {
            real.sh("systemctl start printer.target; systemctl stop printer.target")?;
            let signals = real.sh(&format!("cat {SIGNALS}"))?;
            ensure!(signals.contains("JobRemoved") && signals.contains("printer_2etarget"), "{signals}");
            Ok(Some(()))
        })?;
        Ok(real)
    }

    fn sh(&self, script: &str) -> Result<String> {
        self.machine.exec(&["sh", "-ec", script])?.ok()
    }

    fn sees(&mut self, step: Step) -> Result<String> {
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
            Step::WriteExclusive(unit, kind, version) => {
                let content = file(kind, version);
                let epoch = Epoch { term: Term(1), counter: version };
                let drop_in = drop_in(&unit.parse()?, epoch, &content, Some(fidelity::EXCLUSIVE_STOP));
                let drop_in = drop_in.context("a service has one")?;
                self.machine.write_file(&format!("{UNITS}/{unit}"), content.as_bytes())?;
                self.machine.write_file(&format!("{UNITS}/{unit}.d/90-muster.conf"), drop_in.as_bytes())?;
                done()
            }
            Step::Arm => {
                self.sh(&format!(
                    "systemctl stop muster-fence.service || true
                     read -r up _ </proc/uptime; echo $((${{up%.*}}00 + 30000)) >{GUARD}/end
                     systemctl start {LEASE}
                     NOTIFY_SOCKET=/run/systemd/notify systemd-notify --pid=$(systemctl show -P MainPID {LEASE}) \
                     WATCHDOG_USEC=300000000 WATCHDOG=1"
                ))?;
                done()
            }
            Step::End => {
                // It sleeps until the moment that it has read last.
                self.sh(&format!(
                    "read -r up _ </proc/uptime; echo ${{up%.*}}00 >{GUARD}/end
                     guard=$(systemctl show -P MainPID {LEASE}); kill $(cat /proc/$guard/task/$guard/children)"
                ))?;
                self.cluster.wait_for("the end of the guard", LIMIT, || {
                    let active = self.list(LEASE)?.3;
                    ensure!(active != "active", "it is {active}");
                    Ok(Some(()))
                })?;
                done()
            }
            Step::Settle(unit) => {
                let listed = self.cluster.wait_for(&format!("the end of {unit}"), LIMIT, || {
                    let listed = self.list(unit)?;
                    ensure!(matches!(&*listed.3, "inactive" | "failed"), "it is {}", listed.3);
                    Ok(Some(listed))
                })?;
                Ok(fidelity::state(&listed.2, &listed.3, &listed.4))
            }
            Step::Told(unit) => {
                let looked = self.looked.get(unit).copied().unwrap_or_default();
                let signals = self.cluster.wait_for(&format!("all signals of {unit}"), LIMIT, || {
                    let signals = self.signals(unit)?;
                    // The last one is that it has no job.
                    let all = signals.len() > looked && signals.last().is_some_and(|(_, job)| !job);
                    ensure!(all, "{signals:?}, of which {looked} were looked at");
                    Ok(Some(signals))
                })?;
                self.looked.insert(unit, signals.len());
                let new: Vec<_> = signals.into_iter().skip(looked).map(|(signal, _)| signal).collect();
                Ok(fidelity::told(&new))
            }
        }
    }

    /// All that has been signalled of the unit, and whether it had a job then.
    fn signals(&self, unit: &str) -> Result<Vec<(Signal, bool)>> {
        let mut signals = Vec::new();
        for line in self.sh(&format!("cat {SIGNALS}"))?.lines() {
            // The last one may be half written.
            let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
            let data = &message["payload"]["data"];
            if message["member"] == "JobRemoved" && data[2] == unit {
                signals.push((Signal::Ended(text(&data[3])?), true));
            }
            let active = &data[1]["ActiveState"]["data"];
            if message["member"] == "PropertiesChanged"
                && message["path"] == path(unit)?
                && active.is_string()
            {
                signals.push((Signal::State(text(active)?), data[1]["Job"]["data"][0] != 0));
            }
        }
        Ok(signals)
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
        let path = path(unit)?;
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
        } else if text.contains("dependency job") {
            "dependency"
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

/// Where a unit is on the bus.
fn path(unit: &str) -> Result<String> {
    let mut path = String::from("/org/freedesktop/systemd1/unit/");
    for c in unit.chars() {
        if c.is_ascii_alphanumeric() {
            path.push(c);
        } else {
            write!(path, "_{:02x}", u32::from(c))?;
        }
    }
    Ok(path)
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("a text")?.to_owned())
}

fn file(kind: Kind, version: u64) -> String {
    let sleep = "ExecStart=/usr/bin/sleep infinity\n";
    let kind = match kind {
        Kind::Runs => sleep.to_owned(),
        Kind::Fails => "Type=oneshot\nExecStart=/bin/false\n".to_owned(),
        Kind::Hangs => format!("ExecStartPre=/usr/bin/sleep infinity\nTimeoutStartSec=1\n{sleep}"),
        Kind::Waits => format!("ExecStartPre=/usr/bin/sleep infinity\nTimeoutStartSec=infinity\n{sleep}"),
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
    let mut real = Real::new(&cluster)?;
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
