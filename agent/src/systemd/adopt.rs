//! Units that the machine runs as its own: what they are, and how they become the cluster's and the machine's again.
//!
//! systemd is asked first, and then files are moved without a wait: what is not answered has changed nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_core::agent::{Adopted, LEASE, Released, Write};
use muster_core::unit::{ContentHash, UnitName, UnitType, merge};

use super::calls::{Caller, text};
use super::proxy::{NAME, UNIT};
use crate::files::WriteError;

/// What systemd has of a unit.
struct Known {
    fragment: String,
    drop_ins: Vec<String>,
    names: Vec<String>,
    active: String,
    outdated: bool,
    binds_to: Vec<String>,
}

impl Caller {
    /// The whole text of a unit that the machine runs as its own, or why it cannot be adopted.
    pub(super) async fn inspect(&self, name: &UnitName) -> Result<Arc<str>, String> {
        let known = self
            .known(name)
            .await
            .map_err(|error| format!("systemd there does not answer: {}", text(&error)))?;
        self.whole(name, &known)
    }

    fn whole(&self, name: &UnitName, known: &Known) -> Result<Arc<str>, String> {
        let fragment = Path::new(&known.fragment);
        if self.files.is_ours(name, &known.fragment) {
            return Err(
                "is the cluster's there already, of an earlier time: wait until it is gone".to_owned()
            );
        }
        if known.fragment.is_empty() && known.active == "inactive" {
            return Err(
                "is not known to systemd there: `systemctl list-units` there shows what is".to_owned()
            );
        }
        if known.fragment.is_empty() || fragment.starts_with("/run/systemd/transient") {
            return Err(
                "has no file there: it is transient, or systemd's own, and ends with the machine".to_owned()
            );
        }
        if fragment.starts_with("/run/systemd") && known.fragment.contains("/generator") {
            return Err(format!(
                "is generated ({}): write a unit file for what it is generated from",
                known.fragment
            ));
        }
        if !self.own.has(fragment, None) {
            return Err(format!(
                "its file is {}: only those in /etc/systemd/system, /usr/local/lib/systemd/system and \
                 /usr/lib/systemd/system can be adopted; move it to /etc/systemd/system, and run `systemctl daemon-reload`",
                known.fragment
            ));
        }
        if known.active != "active" {
            return Err(format!(
                "is {} there, and only what runs is adopted: start it there first",
                known.active
            ));
        }
        if known.outdated {
            return Err("its files have changed since systemd has read them: run `systemctl daemon-reload` there first".to_owned());
        }
        if let Some(other) = known.names.iter().find(|other| *other != name.as_str()) {
            return Err(format!(
                "is known as {other} too: remove that alias first (`systemctl disable` does)"
            ));
        }
        if let Some(links) = self.own.has_links(name) {
            return Err(format!(
                "has links in {}, which a unit file cannot have: write them into it as Wants= or Requires=",
                links.display()
            ));
        }
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|error| format!("{path} cannot be read there: {error}"))
        };
        let (mut drop_ins, mut of_many) = (Vec::new(), None);
        let directory = format!("{name}.d");
        for path in &known.drop_ins {
            if self.own.has(Path::new(path), Some(directory.as_ref())) {
                if let Some(of_many) = of_many {
                    return Err(format!(
                        "{path} counts after {of_many}, which is for many units, and would count before that: rename it or \
                         that"
                    ));
                }
                drop_ins.push((path.clone(), read(path)?));
            } else if Path::new(path).parent().and_then(Path::file_name) == Some(directory.as_ref()) {
                return Err(format!(
                    "{path} would be lost in a reboot: move it to /etc/systemd/system/{directory}, or remove it"
                ));
            } else {
                // It stays where it is, and counts there still.
                of_many = Some(path);
            }
        }
        Ok(merge(&read(&known.fragment)?, &drop_ins)?.into())
    }

    pub(super) async fn adopt(&self, write: &Write) -> Adopted {
        let name = &write.name;
        let Ok(known) = self.known(name).await else { return Adopted::Unanswered };
        if self.files.is_ours(name, &known.fragment) && self.files.has_all(name) {
            // What an agent left that was killed.
            if let Err(error) = self.own.move_aside(name) {
                tracing::warn!(unit = %name, %error, "cannot move the machine's own files aside; trying again");
                return Adopted::Unanswered;
            }
            if let Some(stop) = write.exclusive {
                // Its processes stay where they are.
                let guarded = match self.control_group(name).await {
                    Ok(group) => self.files.guard().guard_adopted(name, &group, stop).is_ok(),
                    Err(_) => false,
                };
                if !guarded {
                    return Adopted::Unanswered;
                }
            }
            let bound = write.exclusive.is_none() || known.binds_to.iter().any(|unit| unit == LEASE);
            if known.outdated || !bound {
                return Adopted::Moved;
            }
            return match self.own.finish(name) {
                Ok(()) => Adopted::Done { active: known.active == "active" },
                Err(_) => Adopted::Unanswered,
            };
        }
        match self.move_in(write, &known) {
            Ok(()) => Adopted::Moved,
            Err(reason) => Adopted::Refused(reason),
        }
    }

    /// Puts the cluster's files in the place of the machine's own; all of it or nothing.
    fn move_in(&self, write: &Write, known: &Known) -> Result<(), String> {
        let name = &write.name;
        // Where it is so, only what comes after it was not done.
        if !self.own.is_unfinished(name) {
            let whole = self.whole(name, known)?;
            if ContentHash::of(whole.as_bytes()) != write.hash {
                return Err("its files there have changed meanwhile: adopt it again".to_owned());
            }
            self.own.keep(name).map_err(|error| format!("cannot copy its files there: {error}"))?;
        }
        let moved = self.files.write(write).map_err(|error| match error {
            WriteError::Taken(path) => format!("{path} is in the way"),
            error => error.to_string(),
        });
        let moved = moved.and_then(|()| {
            self.own.move_aside(name).map_err(|error| format!("cannot move its files aside there: {error}"))
        });
        if let Err(reason) = moved {
            let undone = self.own.put_back(name).and_then(|()| self.files.remove(name));
            let undone = undone.and_then(|()| self.own.forget(name));
            if let Err(error) = undone {
                return Err(format!("{reason}; and not all could be put back: {error}"));
            }
            return Err(reason);
        }
        Ok(())
    }

    pub(super) async fn release(&self, name: &UnitName) -> Released {
        let Ok(known) = self.known(name).await else { return Released::Unanswered };
        let back =
            self.own.put_back(name).and_then(|()| self.files.remove(name)).and_then(|()| self.own.of(name));
        let own: Vec<PathBuf> = match back {
            Ok(own) => own,
            Err(error) => return Released::Failed(error.to_string()),
        };
        let has_own = self.own.has(Path::new(&known.fragment), None);
        if !own.is_empty() && (!has_own || known.outdated) {
            return Released::Moved;
        }
        match self.own.forget(name) {
            Ok(()) => Released::Done,
            Err(error) => Released::Failed(error.to_string()),
        }
    }

    async fn known(&self, name: &UnitName) -> zbus::Result<Known> {
        Ok(Known {
            fragment: String::try_from(self.get(name, UNIT, "FragmentPath").await?)?,
            drop_ins: self.get_list(name, "DropInPaths").await?,
            names: self.get_list(name, "Names").await?,
            active: String::try_from(self.get(name, UNIT, "ActiveState").await?)?,
            outdated: bool::try_from(self.get(name, UNIT, "NeedDaemonReload").await?)?,
            binds_to: self.get_list(name, "BindsTo").await?,
        })
    }

    /// Where the unit's processes are; empty where it has none.
    async fn control_group(&self, name: &UnitName) -> zbus::Result<String> {
        if !matches!(
            name.unit_type(),
            UnitType::Service | UnitType::Socket | UnitType::Mount | UnitType::Swap
        ) {
            return Ok(String::new());
        }
        let interface = format!("{NAME}.{}", name.unit_type().section());
        String::try_from(self.get(name, &interface, "ControlGroup").await?)
    }

    async fn get_list(&self, name: &UnitName, property: &str) -> zbus::Result<Vec<String>> {
        <Vec<String>>::try_from(self.get(name, UNIT, property).await?)
    }
}
