//! One unit file, as core and as systemd read it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use muster_core::unit::UnitFile;
use muster_core::unit::specifier::{Specifiers, expand};
use muster_core::unit::words::{Escapes, plain, split_exec, split_with};
use serde_json::{Value, json};

use crate::systemd::{Systemd, text};
use crate::table::How::{self, *};

/// Units that systemd adds by itself and counts as the file's, besides what [`Reading::is_derived`] names.
const DERIVED: [&str; 4] = [
    "dbus.socket",
    "systemd-journald.socket",
    "systemd-remount-fs.service",
    "systemd-tmpfiles-setup.service",
];

/// One unit, as both read it.
pub(crate) struct Reading<'a> {
    pub(crate) systemd: &'a Systemd,
    pub(crate) file: &'a UnitFile,
    pub(crate) properties: &'a Value,
    pub(crate) specifiers: Specifiers,
}

impl Reading<'_> {
    /// What core and systemd say, in the same form; nothing where that cannot be compared.
    pub(crate) fn both(&self, section: &str, key: &str, how: How) -> Result<Option<(Value, Value)>> {
        let last = || self.expand(&self.file.value(section, key).unwrap_or_default());
        let both = match how {
            Not(_) => return Ok(None),
            PathName => (json!(shortest(&last()?)), self.property(key)?),
            RunPath => (json!(shortest_in_run(&last()?)), self.property(key)?),
            Directory => {
                let path = last()?;
                let (optional, path) = path.strip_prefix('-').map_or(("", &*path), |path| ("!", path));
                (json!(format!("{optional}{}", shortest(path))), self.property(key)?)
            }
            Choice => {
                let word = last()?;
                let word = truth(&word).map_or(&*word, |truth| if truth { "yes" } else { "no" });
                (json!(word), self.property(key)?)
            }
            Switch => (json!(truth(&last()?).context("not a truth value")?), self.property(key)?),
            Number => match last()?.parse::<i64>() {
                Ok(number) => (json!(number), self.property(key)?),
                Err(_) => return Ok(None),
            },
            WordSet(escapes) => {
                let ours = self.words(section, key, escapes)?.into_iter().map(Value::from).collect();
                sorted(ours, self.property(key)?)
            }
            Words(escapes) => (json!(self.words(section, key, escapes)?), self.property(key)?),
            Credential => {
                let pair = |text: String| match text.split_once(':') {
                    Some((name, path)) => json!([name, path]),
                    None => json!([text, text]),
                };
                let ours: Vec<_> = self.values(section, key)?.into_iter().map(pair).collect();
                sorted(ours, self.property(key)?)
            }
            Device => {
                let pair = |text: String| match text.split_once(' ') {
                    Some((device, access)) => json!([device, access.trim_start()]),
                    None => json!([text, "rwm"]),
                };
                let ours: Vec<_> = self.values(section, key)?.into_iter().map(pair).collect();
                let theirs = among(&ours, self.property(key)?);
                sorted(ours, theirs)
            }
            Variables => {
                let words = self.words(section, key, Escapes::Decode)?;
                let name_and_value = |word: &String| {
                    word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
                };
                let theirs: Vec<String> = serde_json::from_value(self.property(key)?)?;
                let map =
                    |words: &[String]| words.iter().map(name_and_value).collect::<Option<BTreeMap<_, _>>>();
                (json!(map(&words)), json!(map(&theirs)))
            }
            EnvironmentFile => {
                let files = self.values(section, key)?.into_iter().map(|file| match file.strip_prefix('-') {
                    Some(file) => json!([shortest(file), true]),
                    None => json!([shortest(&file), false]),
                });
                (files.collect(), self.property("EnvironmentFiles")?)
            }
            Dependency => {
                let own = text(&self.properties["Id"]["data"]);
                let ours = self.units(section, key)?;
                let mut theirs = self
                    .systemd
                    .dependencies
                    .get(&(own.to_owned(), key.to_owned()))
                    .cloned()
                    .unwrap_or_default();
                theirs.retain(|unit| ours.contains(unit) || !self.is_derived(unit));
                // systemd drops what a unit has to do with itself.
                (ours.iter().filter(|unit| **unit != own).map(|unit| json!(unit)).collect(), json!(theirs))
            }
            Among(property) => {
                let ours: Vec<_> = self.units(section, key)?.into_iter().map(Value::from).collect();
                let theirs = among(&ours, self.property(property)?);
                sorted(ours, theirs)
            }
            AmongPaths => {
                let ours: Vec<_> = self
                    .words(section, key, Escapes::Drop)?
                    .iter()
                    .map(|path| json!(shortest(path)))
                    .collect();
                let theirs = among(&ours, self.property(key)?);
                sorted(ours, theirs)
            }
            Condition => {
                let property = if key.starts_with("Assert") { "Asserts" } else { "Conditions" };
                sorted(self.conditions(section, key)?, self.property_with(property, key, 4)?)
            }
            Command => {
                let ours = self.commands(section, key)?;
                if let Ok(theirs) = self.fields(&format!("{key}Ex"), 3) {
                    (json!(ours), theirs)
                } else {
                    // Of other units than services the bus has only the flag that failures do not count.
                    let ignores = |flags: &Value| json!(flags == &json!(["ignore-failure"]));
                    let ours =
                        ours.iter().map(|command| json!([command[0], command[1], ignores(&command[2])]));
                    (ours.collect(), self.fields(key, 3)?)
                }
            }
            Listen => {
                let kind = key.trim_start_matches("Listen");
                let addresses = self.values(section, key)?;
                if !addresses.iter().all(|address| address.starts_with(['/', '@']) || kind == "Netlink") {
                    // IP addresses have many forms.
                    return Ok(None);
                }
                let ours = addresses.iter().map(|address| json!([kind, shortest_in_run(address)]));
                (ours.collect(), self.property_with("Listen", kind, 2)?)
            }
            PathSpec => {
                let ours = self.values(section, key)?;
                let ours = ours.iter().map(|path| json!([key, shortest(path)]));
                (ours.collect(), self.property_with("Paths", key, 2)?)
            }
            Counted => {
                let (property, base) = match key.strip_suffix("Sec") {
                    Some(base) => ("TimersMonotonic", format!("{base}USec")),
                    None => ("TimersCalendar", key.to_owned()),
                };
                let theirs = self.property_with(property, &base, 1)?;
                (json!(self.values(section, key)?.len()), json!(theirs.as_array().map(Vec::len)))
            }
            Unmounted if self.property("SubState")? == "mounted" => return Ok(None),
            Text | Unmounted => (json!(last()?), self.property(key)?),
        };
        Ok(Some(both))
    }

    fn expand(&self, text: &str) -> Result<String> {
        Ok(expand(text, &self.specifiers)?)
    }

    fn values(&self, section: &str, key: &str) -> Result<Vec<String>> {
        self.file.values(section, key).iter().map(|value| self.expand(value)).collect()
    }

    fn words(&self, section: &str, key: &str, escapes: Escapes) -> Result<Vec<String>> {
        let mut words = Vec::new();
        for value in self.file.values(section, key) {
            for word in split_with(&value, escapes)? {
                words.push(self.expand(&word)?);
            }
        }
        Ok(words)
    }

    fn units(&self, section: &str, key: &str) -> Result<BTreeSet<String>> {
        let mut units = BTreeSet::new();
        for value in self.file.values(section, key) {
            for word in plain(&value) {
                units.insert(self.systemd.main_name(&self.expand(word)?));
            }
        }
        Ok(units)
    }

    /// Whether systemd has this unit from other keys than dependencies (`Slice=`, `StandardOutput=`, `StateDirectory=`,
    /// `PrivateTmp=`, `Unit=`, `Sockets=` …), which it counts as the file's too.
    fn is_derived(&self, unit: &str) -> bool {
        let named = [("Service", "Sockets"), ("Socket", "Service"), ("Timer", "Unit"), ("Path", "Unit")];
        DERIVED.contains(&unit)
            || [".slice", ".mount"].iter().any(|suffix| unit.ends_with(suffix))
            || named
                .iter()
                .any(|(section, key)| self.units(section, key).is_ok_and(|units| units.contains(unit)))
    }

    /// Each with type, whether it triggers, whether it is negated, parameter.
    fn conditions(&self, section: &str, key: &str) -> Result<Vec<Value>> {
        let mut conditions = Vec::new();
        for value in self.file.values(section, key) {
            let (trigger, rest) = value.strip_prefix('|').map_or((false, &*value), |rest| (true, rest));
            let (negate, rest) =
                rest.trim_start().strip_prefix('!').map_or((false, rest), |rest| (true, rest));
            conditions.push(json!([key, trigger, negate, shortest(&self.expand(rest.trim_start())?)]));
        }
        Ok(conditions)
    }

    /// Each with program, arguments, flags.
    fn commands(&self, section: &str, key: &str) -> Result<Vec<Value>> {
        let mut commands = Vec::new();
        for line in self.file.values(section, key) {
            for command in split_exec(&line)? {
                let words: Result<Vec<_>> = command.arguments.iter().map(|word| self.expand(word)).collect();
                let mut flags = Vec::new();
                for (prefix, flag) in [("-", "ignore-failure"), ("+", "privileged"), (":", "no-env-expand")] {
                    flags.extend(command.prefixes.contains(prefix).then_some(flag));
                }
                match command.prefixes.matches('!').count() {
                    0 => {}
                    1 => flags.push("no-setuid"),
                    _ => flags.push("ambient"),
                }
                commands.push(json!([shortest(&self.expand(&command.program)?), words?, flags]));
            }
        }
        Ok(commands)
    }

    fn property(&self, name: &str) -> Result<Value> {
        let property =
            self.properties.get(name).with_context(|| format!("systemd has no property {name}"))?;
        Ok(property["data"].clone())
    }

    /// The first fields of each struct of a list.
    fn fields(&self, name: &str, count: usize) -> Result<Value> {
        let Value::Array(items) = self.property(name)? else { bail!("property {name} is no list") };
        Ok(items.iter().filter_map(|item| Some(json!(item.as_array()?.get(..count)?))).collect())
    }

    /// The same, of those structs that start with a text.
    fn property_with(&self, name: &str, first: &str, count: usize) -> Result<Value> {
        let Value::Array(items) = self.fields(name, count)? else { bail!("property {name} is no list") };
        Ok(items.into_iter().filter(|item| item[0] == first).collect())
    }
}

/// Both lists, where the order says nothing.
fn sorted(mut ours: Vec<Value>, theirs: Value) -> (Value, Value) {
    let Value::Array(mut theirs) = theirs else { return (json!(ours), theirs) };
    for list in [&mut ours, &mut theirs] {
        list.sort_by_cached_key(Value::to_string);
    }
    (json!(ours), json!(theirs))
}

/// What of theirs is ours too.
fn among(ours: &[Value], theirs: Value) -> Value {
    match theirs {
        Value::Array(theirs) => theirs.into_iter().filter(|item| ours.contains(item)).collect(),
        other => other,
    }
}

/// systemd's ways to say yes and no.
fn truth(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

/// A path without what does not count in it. Anything else stays as it is.
fn shortest(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    format!("/{}", parts.join("/"))
}

/// The same, where systemd puts `/run` for `/var/run`.
fn shortest_in_run(path: &str) -> String {
    let path = shortest(path);
    if path.starts_with("/var/run/") { path["/var".len()..].to_owned() } else { path }
}
