//! What a machine's systemd makes of unit files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_cluster::Machine;
use muster_core::unit::UnitName;
use serde_json::Value;

use crate::DIRECTORIES;

/// What the machine's systemd says.
pub(crate) struct Systemd {
    /// For each unit, its properties of all interfaces, as `busctl` writes them: `{"Id": {"type": "s", "data": …}, …}`.
    pub(crate) properties: BTreeMap<UnitName, Value>,
    /// The main name of each unit that goes by several.
    main_names: BTreeMap<String, String>,
    /// For each unit and kind of dependency, those that stand in its file. Only the dump tells them from others.
    pub(crate) dependencies: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Systemd {
    /// Lets a machine load all these units.
    pub(crate) fn ask<'a>(
        machine: &Machine<'_>,
        units: impl Iterator<Item = &'a UnitName> + Clone,
    ) -> Result<Systemd> {
        // The files alone shall count, so what adds to them goes. `After=` loads units and keeps them loaded until the
        // dump, and starts none.
        const SCRIPT: &str = r#"set -e
            for directory; do
                rm -rf "$directory"/*.d "$directory"/*.wants "$directory"/*.requires
            done
            find /etc/systemd/system /run/systemd/system -lname /dev/null -delete
            systemctl daemon-reload
            systemctl start shipped-units.target
            ask() { busctl --json=short call org.freedesktop.systemd1 "$@"; }
            while read -r path; do
                ask "$path" org.freedesktop.DBus.Properties GetAll s ""
            done
            ask /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager Dump"#;
        let mut target = "[Unit]\nDefaultDependencies=no\n".to_owned();
        let mut paths = String::new();
        for unit in units.clone() {
            writeln!(target, "After={unit}")?;
            writeln!(paths, "{}", object_path(unit))?;
        }
        machine.write_file("/run/systemd/system/shipped-units.target", target.as_bytes())?;
        let mut command = vec!["sh", "-c", SCRIPT, "ask"];
        command.extend(DIRECTORIES);
        let answers = machine.exec_within(Duration::from_secs(120), &command, paths.as_bytes())?.ok()?;
        let mut answers = answers.lines().map(|line| -> Result<Value> {
            let mut answer: Value = serde_json::from_str(line)?;
            Ok(answer["data"][0].take())
        });

        let mut properties = BTreeMap::new();
        let mut main_names = BTreeMap::new();
        for unit in units {
            let answer = answers.next().with_context(|| format!("no answer about {unit}"))??;
            for name in answer["Names"]["data"].as_array().into_iter().flatten() {
                main_names.insert(text(name).to_owned(), text(&answer["Id"]["data"]).to_owned());
            }
            properties.insert(unit.clone(), answer);
        }
        let dump = answers.next().context("no dump")??;
        ensure!(answers.next().is_none(), "an answer too many");
        Ok(Systemd { properties, main_names, dependencies: read_dump(text(&dump)) })
    }

    pub(crate) fn main_name(&self, name: &str) -> String {
        self.main_names.get(name).cloned().unwrap_or_else(|| name.to_owned())
    }
}

/// The name of a unit in D-Bus.
fn object_path(unit: &UnitName) -> String {
    let mut path = "/org/freedesktop/systemd1/unit/".to_owned();
    for (index, byte) in unit.as_str().bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (byte.is_ascii_digit() && index > 0) {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

/// The dependencies that systemd knows from the files: `<tab>After: a.target (origin-file destination-implicit)`.
fn read_dump(dump: &str) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut dependencies: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    let mut unit = "";
    for line in dump.lines() {
        if let Some(name) = line.strip_prefix("-> Unit ") {
            unit = name.trim_end_matches(':');
        } else if let Some((key, value)) = line.trim_start().split_once(": ")
            && let Some((other, origins)) = value.split_once(" (")
            && origins.trim_end_matches(')').split(' ').any(|origin| origin == "origin-file")
        {
            dependencies.entry((unit.to_owned(), key.to_owned())).or_default().insert(other.to_owned());
        }
    }
    dependencies
}

/// A text of an answer.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
