//! Muster's daemons: found on the host, installed in the machines, waited for.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::state::{MachineRecord, Role};
use crate::template::Template;

/// The port on which schedulers listen.
const PORT: u16 = 7400;
const BINARIES: [&str; 3] = ["muster-scheduler", "muster-agent", "musterctl"];
const SERVICES: [&str; 3] = ["muster-scheduler.service", "muster-agent.service", "muster-goodbye.service"];

/// Where the services are in a source tree.
const SERVICE_DIR: &str = "packaging/systemd";

/// The environment variable that names the directory with the daemons to install.
pub const BIN_DIR_VARIABLE: &str = "MUSTER_BIN_DIR";

/// The root of the source tree that this was built from.
pub fn project_root() -> PathBuf {
    // Where the program is goes before where it was built: the tree may have been moved since.
    let program = std::env::current_exe().unwrap_or_default();
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut candidates = program.ancestors().chain(built.ancestors());
    candidates.find(|dir| dir.join(SERVICE_DIR).is_dir()).unwrap_or(built).to_path_buf()
}

/// Cargo's target directory for the source tree.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project_root().join("target"), PathBuf::from)
}

/// The directory that holds the built daemons: `$MUSTER_BIN_DIR`, else `target/release`, else `target/debug`.
///
/// # Errors
/// They are not all in one of these.
pub fn bin_dir() -> Result<PathBuf> {
    let candidates = match std::env::var_os(BIN_DIR_VARIABLE) {
        Some(directory) => vec![PathBuf::from(directory)],
        None => vec![target_dir().join("release"), target_dir().join("debug")],
    };
    for directory in &candidates {
        if has_all(directory) {
            return Ok(directory.clone());
        }
    }
    let searched: Vec<_> = candidates.iter().map(|directory| directory.display().to_string()).collect();
    bail!(
        "no directory with {}: run `make build` (searched: {}), or boot bare machines with `--no-daemons`",
        BINARIES.join(", "),
        searched.join(", ")
    )
}

fn has_all(directory: &Path) -> bool {
    BINARIES.iter().all(|binary| directory.join(binary).is_file())
}

/// One version of Muster on the host: its programs, and the services that go with them.
#[derive(Debug, Clone)]
pub struct Version {
    programs: PathBuf,
    services: PathBuf,
}

impl Version {
    /// This one: the programs of [`bin_dir`].
    ///
    /// # Errors
    /// As for [`bin_dir`].
    pub fn current() -> Result<Self> {
        Ok(Self { programs: bin_dir()?, services: project_root().join(SERVICE_DIR) })
    }

    /// The one before, of the commit that `tests/cluster/previous-version` names.
    ///
    /// # Errors
    /// It has not been built.
    pub fn previous() -> Result<Self> {
        let directory = target_dir().join("previous");
        let programs = directory.join("bin");
        ensure!(
            has_all(&programs),
            "the version before this one is not in {}: run `make previous-version`",
            programs.display()
        );
        Ok(Self { programs, services: directory.join("src").join(SERVICE_DIR) })
    }

    pub(crate) fn musterctl(&self) -> PathBuf {
        self.programs.join("musterctl")
    }

    /// What a machine has of it: each file on the host, and where it is there.
    pub(crate) fn files(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let programs = BINARIES.iter().map(|name| (self.programs.join(name), format!("/usr/bin/{name}")));
        let services =
            SERVICES.iter().map(|name| (self.services.join(name), format!("/usr/lib/systemd/system/{name}")));
        programs.chain(services)
    }
}

/// The addresses of all schedulers, as `HOST:PORT`.
pub(crate) fn endpoints(machines: &[MachineRecord]) -> Vec<String> {
    machines
        .iter()
        .filter(|machine| machine.role.schedules())
        .map(|machine| format!("{}:{PORT}", machine.address))
        .collect()
}

/// The URLs for clients of all members of etcd.
fn etcd_endpoints(machines: &[MachineRecord]) -> Vec<String> {
    let members = machines.iter().filter(|machine| machine.role == Role::Etcd);
    members.map(|machine| format!("http://{}:2379", machine.address)).collect()
}

/// Puts programs and services where every machine has them; `services` says what runs where.
pub(crate) fn install(version: &Version, template: &Template, machines: &[MachineRecord]) -> Result<()> {
    for (from, to) in version.files() {
        template.copy(&from, &to)?;
    }
    if machines.iter().any(|machine| machine.role == Role::Etcd) {
        // Virtual machines have no such package: the host's programs will do.
        for program in ["etcd", "etcdctl"] {
            template.copy(&Path::new("/usr/bin").join(program), &format!("/usr/bin/{program}"))?;
        }
        template.write("/usr/lib/systemd/system/etcd.service", include_bytes!("etcd.service"))?;
    }
    Ok(())
}

/// The services that a machine runs, each with its configuration file and the text for it.
pub(crate) fn services(
    machine: &MachineRecord,
    machines: &[MachineRecord],
) -> Vec<(&'static str, &'static str, String)> {
    let mut services = Vec::new();
    if machine.role.schedules() {
        let mut text = format!("listen = \"{}:{PORT}\"\ninsecure_listen = true\n", machine.address);
        let etcd = etcd_endpoints(machines);
        if !etcd.is_empty() {
            let _ = write!(text, "\n[etcd]\nendpoints = {}\n", Value::from(etcd));
        }
        services.push(("muster-scheduler.service", "etc/muster/scheduler.toml", text));
    }
    if machine.role.works() {
        // Written as JSON, which TOML reads alike for strings and arrays of strings.
        let mut text = format!(
            "schedulers = {}\ninsecure = true\naddress = \"{}\"\n\n[labels]\n",
            Value::from(endpoints(machines)),
            machine.address
        );
        for (key, value) in &machine.labels {
            let _ = writeln!(text, "{} = {}", Value::from(key.as_str()), Value::from(value.as_str()));
        }
        services.push(("muster-agent.service", "etc/muster/agent.toml", text));
    }
    if machine.role == Role::Etcd {
        services.push(("etcd.service", "etc/muster/etcd.env", etcd_environment(machine, machines)));
    }
    services
}

/// How a member of etcd is told of itself and of the others.
fn etcd_environment(member: &MachineRecord, machines: &[MachineRecord]) -> String {
    let members = machines.iter().filter(|machine| machine.role == Role::Etcd);
    let all: Vec<_> =
        members.map(|member| format!("{}=http://{}:2380", member.name, member.address)).collect();
    let (name, address) = (&member.name, &member.address);
    // Compacted by itself, as operators have it: what is older than a few thousand revisions is forgotten.
    format!(
        "ETCD_NAME={name}\n\
         ETCD_DATA_DIR=/var/lib/etcd/member\n\
         ETCD_LISTEN_CLIENT_URLS=http://{address}:2379,http://127.0.0.1:2379\n\
         ETCD_ADVERTISE_CLIENT_URLS=http://{address}:2379\n\
         ETCD_LISTEN_PEER_URLS=http://{address}:2380\n\
         ETCD_INITIAL_ADVERTISE_PEER_URLS=http://{address}:2380\n\
         ETCD_INITIAL_CLUSTER={}\n\
         ETCD_AUTO_COMPACTION_MODE=revision\n\
         ETCD_AUTO_COMPACTION_RETENTION=1000\n\
         ETCD_LOGGER=zap\nETCD_LOG_LEVEL=warn\n",
        all.join(",")
    )
}

/// A row of `musterctl list-machines -o json`, as far as it matters here.
#[derive(Deserialize)]
struct ListedMachine {
    machine: String,
    state: String,
}

/// The names of the workers whose agents are not registered, going by the JSON that `list-machines` printed.
pub(crate) fn unregistered(machines: &[MachineRecord], listed: &str) -> Result<Vec<String>> {
    let listed: Vec<ListedMachine> = serde_json::from_str(listed).context("list-machines -o json")?;
    let up = |machine: &&MachineRecord| {
        listed.iter().any(|listed| listed.machine == machine.machine_id && listed.state == "up")
    };
    let workers = machines.iter().filter(|machine| machine.role.works());
    Ok(workers.filter(|machine| !up(machine)).map(|machine| machine.name.clone()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn machine(name: &str, role: Role, id: char) -> MachineRecord {
        let labels = BTreeMap::from([("disk".to_owned(), "s\"s\"d".to_owned())]);
        let machine_id = id.to_string().repeat(32);
        MachineRecord { name: name.to_owned(), role, address: "198.18.0.9".to_owned(), machine_id, labels }
    }

    #[test]
    fn who_is_not_registered() {
        let machines = [
            machine("s1", Role::Scheduler, '0'),
            machine("m1", Role::Worker, '1'),
            machine("m2", Role::Worker, '2'),
            machine("m3", Role::Worker, '3'),
        ];
        let row = |id: &str, state: &str| format!(r#"{{"machine":"{}","state":"{state}"}}"#, id.repeat(32));
        let listed = format!("[{},{}]", row("1", "up"), row("2", "unreachable"));
        assert_eq!(unregistered(&machines, &listed).unwrap(), ["m2", "m3"]);
        assert!(unregistered(&machines, "no scheduler").is_err());
    }

    #[test]
    fn configuration() {
        let both = machine("m1", Role::SchedulerAndWorker, '1');
        let texts: Vec<_> =
            services(&both, std::slice::from_ref(&both)).into_iter().map(|service| service.2).collect();
        assert_eq!(texts[0], "listen = \"198.18.0.9:7400\"\ninsecure_listen = true\n");
        let agent = "schedulers = [\"198.18.0.9:7400\"]\ninsecure = true\naddress = \"198.18.0.9\"\n\n[labels]\n\"disk\" = \"s\\\"s\\\"d\"\n";
        assert_eq!(texts[1], agent);
    }
}
