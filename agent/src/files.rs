//! Unit files: kept in a directory of Muster's own, linked to where systemd looks for units that a reboot removes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use muster_core::agent::{self, Held, Write};
use muster_core::unit::install::{self, Wanted};
use muster_core::unit::{ContentHash, UnitFile, UnitName};
use muster_daemon::files::replace;

use crate::guard::Guard;

/// Where systemd finds units that are gone after a reboot.
pub(crate) const LINK_DIR: &str = "/run/systemd/system";

/// The name of the drop-in, within `NAME.d`.
const DROP_IN: &str = "90-muster.conf";

/// Why a unit's files could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// There is something else in the place of the link.
    #[error("{0} is there already")]
    Taken(String),
    #[error("cannot write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The content was left out, and what is there is something else.
    #[error("{} does not have the content that the scheduler expects there", .0.display())]
    Differs(PathBuf),
}

/// The directories for unit files and links to them.
#[derive(Clone, Debug)]
pub(crate) struct UnitFiles {
    units: PathBuf,
    links: PathBuf,
    guard: Guard,
}

impl UnitFiles {
    /// Makes the directories that do not exist.
    pub(crate) fn open(run_dir: &Path, links: &Path) -> io::Result<Self> {
        let files =
            Self { units: run_dir.join("units"), links: links.to_owned(), guard: Guard::new(run_dir, links) };
        fs::create_dir_all(&files.units)?;
        fs::create_dir_all(&files.links)?;
        Ok(files)
    }

    /// The guard of exclusive units.
    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Whether a file that systemd read a unit from is one of Muster's.
    pub(crate) fn is_ours(&self, name: &UnitName, fragment: &str) -> bool {
        let fragment = Path::new(fragment);
        // systemd may name the link or what it points to. A link that is gone by now was ours if it stood alone.
        fragment == self.file(name)
            || fragment == self.link(name) && self.link_is_ours(name).is_ok_and(|ours| ours.unwrap_or(true))
    }

    /// Whether the content of a unit is there.
    pub(crate) fn has(&self, name: &UnitName) -> bool {
        self.file(name).exists()
    }

    /// Whether all files of a unit are there, of which not all may have been written.
    pub(crate) fn has_all(&self, name: &UnitName) -> bool {
        // The link comes last.
        self.link_is_ours(name).is_ok_and(|ours| ours == Some(true))
    }

    /// The units that systemd can find here and that are not among these.
    pub(crate) fn unrecorded(&self, known: &BTreeMap<UnitName, Held>) -> io::Result<Vec<(UnitName, Held)>> {
        let mut unrecorded = Vec::new();
        for entry in fs::read_dir(&self.units)? {
            // What no unit has for its name is what the writing of a file has left.
            let name = entry?.file_name().to_str().and_then(|name| UnitName::parse(name).ok());
            let Some(name) = name.filter(|name| !known.contains_key(name)) else { continue };
            if self.link_is_ours(&name)? != Some(true) {
                continue;
            }
            let file = fs::read_to_string(self.file(&name))?;
            let drop_in = fs::read_to_string(self.drop_in_dir(&name).join(DROP_IN)).unwrap_or_default();
            unrecorded.extend(agent::found(&name, &file, &drop_in).map(|held| (name, held)));
        }
        Ok(unrecorded)
    }

    /// Writes content and drop-in, and links to them.
    pub(crate) fn write(&self, write: &Write) -> Result<(), WriteError> {
        let outcome = self.try_write(write);
        if write.fresh && matches!(outcome, Err(WriteError::Io { .. } | WriteError::Differs(_))) {
            // Nothing that is not held may be found by systemd.
            self.remove(&write.name).ok();
        }
        outcome
    }

    fn try_write(&self, write: &Write) -> Result<(), WriteError> {
        let file = self.file(&write.name);
        let link = self.link(&write.name);
        let taken = || WriteError::Taken(link.display().to_string());
        if !self.link_is_ours(&write.name).is_ok_and(|ours| ours.unwrap_or(true)) {
            return Err(taken());
        }
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteError::Io { path, source }
        };
        let wanted_before = self.wanted(&write.name);
        let kept;
        let content = if let Some(content) = &write.content {
            replace(&file, content.as_bytes()).map_err(at(&file))?;
            content.as_ref()
        } else {
            kept = fs::read_to_string(&file).map_err(at(&file))?;
            &kept
        };
        if ContentHash::of(content.as_bytes()) != write.hash {
            return Err(WriteError::Differs(file));
        }
        if write.exclusive.is_some() {
            self.guard.write_files().map_err(at(&self.links))?;
        }
        let directory = self.drop_in_dir(&write.name);
        let drop_in = directory.join(DROP_IN);
        match agent::drop_in(&write.name, write.epoch, content, write.exclusive) {
            Some(text) => {
                fs::create_dir_all(&directory).map_err(at(&directory))?;
                replace(&drop_in, text.as_bytes()).map_err(at(&drop_in))?;
            }
            None => absent(fs::remove_file(&drop_in)).map_err(at(&drop_in))?,
        }
        let wanted = wanted(&write.name, content);
        for gone in wanted_before.difference(&wanted) {
            self.unlink_wanted(&write.name, gone).map_err(at(&self.links.join(gone.directory())))?;
        }
        for new in &wanted {
            self.link_wanted(&write.name, new).map_err(at(&self.links.join(new.directory())))?;
        }
        // Last: from here on systemd can find it.
        match symlink(&file, &link) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if let Ok(Some(true)) = self.link_is_ours(&write.name) {
                    Ok(())
                } else {
                    // It came just now, and must not get a drop-in of ours.
                    self.remove(&write.name).map_err(at(&drop_in))?;
                    Err(taken())
                }
            }
            outcome => outcome.map_err(at(&link)),
        }
    }

    /// Removes the link, the drop-in and the content; what is not there need not be removed.
    pub(crate) fn remove(&self, name: &UnitName) -> io::Result<()> {
        for wanted in self.wanted(name) {
            self.unlink_wanted(name, &wanted)?;
        }
        // Anything else there is not ours to remove.
        if self.link_is_ours(name)? == Some(true) {
            absent(fs::remove_file(self.link(name)))?;
        }
        let directory = self.drop_in_dir(name);
        absent(fs::remove_file(directory.join(DROP_IN)))?;
        remove_empty(&directory)?;
        absent(fs::remove_file(self.file(name)))
    }

    /// The units that start this one along with themselves, as its file says that is there.
    fn wanted(&self, name: &UnitName) -> BTreeSet<Wanted> {
        fs::read_to_string(self.file(name)).map(|content| wanted(name, &content)).unwrap_or_default()
    }

    /// Has systemd start the unit along with that one, from when it reads that one's files next.
    fn link_wanted(&self, name: &UnitName, wanted: &Wanted) -> io::Result<()> {
        let directory = self.links.join(wanted.directory());
        fs::create_dir_all(&directory)?;
        match symlink(self.file(name), directory.join(name.as_str())) {
            // Ours, or the machine's own: the name is the same, and so is the effect.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    }

    fn unlink_wanted(&self, name: &UnitName, wanted: &Wanted) -> io::Result<()> {
        let directory = self.links.join(wanted.directory());
        let link = directory.join(name.as_str());
        if fs::read_link(&link).is_ok_and(|target| target == self.file(name)) {
            absent(fs::remove_file(&link))?;
        }
        remove_empty(&directory)
    }

    fn file(&self, name: &UnitName) -> PathBuf {
        self.units.join(name.as_str())
    }

    fn link(&self, name: &UnitName) -> PathBuf {
        self.links.join(name.as_str())
    }

    fn drop_in_dir(&self, name: &UnitName) -> PathBuf {
        self.links.join(format!("{name}.d"))
    }

    /// Whether what stands at the place of the link is the link; none when nothing does.
    fn link_is_ours(&self, name: &UnitName) -> io::Result<Option<bool>> {
        match fs::read_link(self.link(name)) {
            Ok(target) => Ok(Some(target == self.file(name))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // Not a link.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(Some(false)),
            Err(error) => Err(error),
        }
    }
}

fn wanted(name: &UnitName, content: &str) -> BTreeSet<Wanted> {
    UnitFile::parse(content.as_bytes()).map(|file| install::wanted(name, &file)).unwrap_or_default()
}

/// Removes a directory, but for one in which somebody else has something.
fn remove_empty(directory: &Path) -> io::Result<()> {
    match absent(fs::remove_dir(directory)) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        outcome => outcome,
    }
}

/// It is well when there was nothing to remove.
pub(crate) fn absent(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_core::ids::{Epoch, Term};

    use super::*;

    const FILE: &str = "[Service]\nExecStart=/bin/true\n";

    struct Bench {
        _directory: tempfile::TempDir,
        files: UnitFiles,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let files =
                UnitFiles::open(&directory.path().join("run"), &directory.path().join("links")).unwrap();
            Self { _directory: directory, files }
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = [&self.files.units, &self.files.links]
                .into_iter()
                .flat_map(|directory| fs::read_dir(directory).unwrap())
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn write(content: Option<&str>, counter: u64) -> Write {
        Write {
            name: "a.service".parse().unwrap(),
            epoch: Epoch { term: Term(1), counter },
            exclusive: None,
            hash: ContentHash::of(FILE.as_bytes()),
            content: content.map(Into::into),
            fresh: false,
        }
    }

    #[test]
    fn files_are_written_replaced_and_removed() {
        let bench = Bench::new();
        let files = &bench.files;
        let name = write(None, 1).name;
        assert!(!files.has_all(&name));
        files.write(&write(Some(FILE), 1)).unwrap();
        assert_eq!(bench.names(), ["a.service", "a.service", "a.service.d"]);
        assert!(files.has_all(&name));
        assert_eq!(fs::read_to_string(files.link(&name)).unwrap(), FILE);
        let drop_in = || fs::read_to_string(files.drop_in_dir(&name).join(DROP_IN)).unwrap();
        assert!(drop_in().contains("MUSTER_EPOCH=1.1\n"));
        files.write(&write(None, 2)).unwrap();
        assert!(drop_in().contains("MUSTER_EPOCH=1.2\n"));
        // An agent that ended half way.
        fs::remove_file(files.link(&name)).unwrap();
        assert!(files.has(&name) && !files.has_all(&name));
        files.remove(&name).unwrap();
        assert_eq!(bench.names(), [""; 0]);
        files.remove(&name).unwrap();
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let bench = Bench::new();
        let files = &bench.files;
        let name = write(None, 1).name;
        fs::write(files.link(&name), "the machine's own").unwrap();
        fs::create_dir(files.drop_in_dir(&name)).unwrap();
        fs::write(files.drop_in_dir(&name).join("10-own.conf"), "").unwrap();
        assert!(matches!(files.write(&write(Some(FILE), 1)), Err(WriteError::Taken(_))));
        files.remove(&name).unwrap();
        assert_eq!(fs::read_to_string(files.link(&name)).unwrap(), "the machine's own");
        assert!(files.drop_in_dir(&name).join("10-own.conf").exists());
        assert!(!files.drop_in_dir(&name).join(DROP_IN).exists());
        assert!(!files.is_ours(&name, files.link(&name).to_str().unwrap()));
    }

    #[test]
    fn a_unit_is_enabled_for_the_units_that_its_file_names() {
        let bench = Bench::new();
        let files = &bench.files;
        let of = |wanted: &str, counter| {
            let content = format!("{FILE}[Install]\nWantedBy={wanted} multi-user.target\n");
            let hash = ContentHash::of(content.as_bytes());
            Write { hash, content: Some(content.into()), ..write(None, counter) }
        };
        files.write(&of("b.service c.service", 1)).unwrap();
        let name = write(None, 1).name;
        let link = |by: &str| files.links.join(format!("{by}.wants/a.service"));
        assert_eq!(fs::read_link(link("b.service")).unwrap(), files.file(&name));
        assert!(link("c.service").is_symlink() && !link("multi-user.target").is_symlink());
        // Another file names others. What the machine has itself there stays.
        fs::create_dir(files.links.join("d.service.wants")).unwrap();
        symlink("/own/a.service", link("d.service")).unwrap();
        files.write(&of("c.service d.service", 2)).unwrap();
        assert!(!files.links.join("b.service.wants").exists() && link("c.service").is_symlink());
        files.remove(&name).unwrap();
        assert_eq!(bench.names(), ["d.service.wants"]);
        assert!(link("d.service").is_symlink());
    }

    #[test]
    fn units_without_a_record_are_found() {
        let bench = Bench::new();
        let files = &bench.files;
        let name = write(None, 1).name;
        files.write(&write(Some(FILE), 7)).unwrap();
        let exclusive = "[Timer]\nOnBootSec=1\n[X-Muster]\nExclusive=yes\nExclusiveStopSec=3\n";
        let (timer, stop) = (UnitName::parse("b.timer").unwrap(), Some(Duration::from_secs(3)));
        files
            .write(&Write {
                name: timer.clone(),
                hash: ContentHash::of(exclusive.as_bytes()),
                content: Some(exclusive.into()),
                exclusive: stop,
                ..write(None, 8)
            })
            .unwrap();
        // These are none: systemd does not see them.
        fs::write(files.units.join("c.service"), FILE).unwrap();
        fs::write(files.units.join("d.service~"), FILE).unwrap();
        let epoch = |counter| Epoch { term: Term(1), counter };
        let found = BTreeMap::from([
            (name, Held::found(epoch(7), ContentHash::of(FILE.as_bytes()), None)),
            (timer, Held::found(epoch(8), ContentHash::of(exclusive.as_bytes()), stop)),
        ]);
        let unrecorded = files.unrecorded(&BTreeMap::new()).unwrap();
        assert_eq!(unrecorded.into_iter().collect::<BTreeMap<_, _>>(), found);
        assert_eq!(files.unrecorded(&found).unwrap(), []);
    }

    #[test]
    fn content_that_was_left_out_must_be_there() {
        let bench = Bench::new();
        assert!(matches!(bench.files.write(&write(None, 1)), Err(WriteError::Io { .. })));
        let name = write(None, 1).name;
        fs::write(bench.files.file(&name), "changed by somebody").unwrap();
        assert!(matches!(bench.files.write(&write(None, 1)), Err(WriteError::Differs(_))));
    }
}
