//! The machine's own unit files: found, moved aside while the cluster has the unit, and put back.
//!
//! What is moved aside lies in `STATE_DIR/adopted/UNIT` under the path that it had, as a file, or as the link that it was:
//! a person can put it back, too. It is there, down to the disk, before anything is removed from where it was.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use muster_core::unit::UnitName;

use crate::files::absent;

/// Where a machine's own units are, in systemd's order. (`/lib` is a link on most systems.)
const DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system.control",
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// The directories beside them whose links have a unit started with another.
const ENABLING: [&str; 3] = ["wants", "requires", "upholds"];
/// What says that a unit was not seen to be the cluster's yet.
const UNFINISHED: &str = "unfinished";

/// The machine's own unit files.
#[derive(Clone, Debug)]
pub(crate) struct OwnFiles {
    kept: PathBuf,
    directories: Vec<PathBuf>,
}

impl OwnFiles {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self::within(state_dir, Path::new("/"))
    }

    fn within(state_dir: &Path, root: &Path) -> Self {
        let mut directories: Vec<PathBuf> = Vec::new();
        for directory in DIRECTORIES {
            let directory = root.join(directory.trim_start_matches('/'));
            // Not twice, under two names.
            let real = fs::canonicalize(&directory).unwrap_or(directory);
            if !directories.contains(&real) {
                directories.push(real);
            }
        }
        Self { kept: state_dir.join("adopted"), directories }
    }

    /// Whether a file lies directly in one of the directories for the machine's own units, or in one of theirs with this
    /// name.
    pub(crate) fn has(&self, path: &Path, within: Option<&OsStr>) -> bool {
        let Some(parent) = path.parent() else { return false };
        let directory = match within {
            Some(name) if parent.file_name() == Some(name) => parent.parent(),
            Some(_) => None,
            None => Some(parent),
        };
        let real = directory.and_then(|directory| fs::canonicalize(directory).ok());
        real.is_some_and(|real| self.directories.contains(&real))
    }

    /// All that the machine has of the unit: its files, its drop-ins, and the links that have it started.
    pub(crate) fn of(&self, name: &UnitName) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for directory in &self.directories {
            let file = directory.join(name.as_str());
            if fs::symlink_metadata(&file).is_ok() {
                found.push(file);
            }
            found.extend(entries(&directory.join(format!("{name}.d")))?);
            for entry in entries(directory)? {
                let enables = entry.extension().is_some_and(|kind| ENABLING.iter().any(|name| kind == *name));
                let link = entry.join(name.as_str());
                if enables && fs::symlink_metadata(&link).is_ok() {
                    found.push(link);
                }
            }
        }
        Ok(found)
    }

    /// Whether the unit has dependencies in directories of links beside its file, which no unit file can say.
    pub(crate) fn has_links(&self, name: &UnitName) -> Option<PathBuf> {
        let directories = self.directories.iter();
        let mut all = directories.flat_map(|d| ENABLING.map(|kind| d.join(format!("{name}.{kind}"))));
        all.find(|directory| directory.exists())
    }

    /// Whether all that the machine has of the unit was copied, and the unit is not the cluster's yet.
    pub(crate) fn is_unfinished(&self, name: &UnitName) -> bool {
        self.kept(name).join(UNFINISHED).exists()
    }

    /// Copies all that the machine has of the unit. What is there of an earlier time, when the cluster had it, is replaced.
    pub(crate) fn keep(&self, name: &UnitName) -> io::Result<()> {
        let (new, kept) = (self.kept.join(format!("{name}~")), self.kept(name));
        absent(fs::remove_dir_all(&new))?;
        fs::create_dir_all(&new)?;
        for path in self.of(name)? {
            copy(&path, &below(&new, &path))?;
        }
        File::create(new.join(UNFINISHED))?.sync_all()?;
        absent(fs::remove_dir_all(&kept))?;
        fs::rename(&new, &kept)?;
        sync(&self.kept)
    }

    /// Removes what was copied from where it was.
    pub(crate) fn move_aside(&self, name: &UnitName) -> io::Result<()> {
        let kept = self.kept(name);
        for path in self.of(name)? {
            // What came since is not lost.
            if fs::symlink_metadata(below(&kept, &path)).is_err() {
                copy(&path, &below(&kept, &path))?;
            }
            absent(fs::remove_file(&path))?;
            let directory = path.parent().unwrap_or(Path::new("/"));
            sync(directory)?;
            if directory.file_name() == Some(OsStr::new(&format!("{name}.d"))) {
                // The last one takes it along.
                let _ = fs::remove_dir(directory);
            }
        }
        Ok(())
    }

    /// The unit is the cluster's.
    pub(crate) fn finish(&self, name: &UnitName) -> io::Result<()> {
        absent(fs::remove_file(self.kept(name).join(UNFINISHED)))
    }

    /// Puts everything back that is not there; what was put there since stays.
    pub(crate) fn put_back(&self, name: &UnitName) -> io::Result<()> {
        let kept = self.kept(name);
        let mut directories = vec![kept.clone()];
        while let Some(directory) = directories.pop() {
            for entry in entries(&directory)? {
                if fs::symlink_metadata(&entry)?.is_dir() {
                    directories.push(entry);
                    continue;
                }
                let Ok(path) = entry.strip_prefix(&kept) else { continue };
                let path = Path::new("/").join(path);
                if entry != kept.join(UNFINISHED) && fs::symlink_metadata(&path).is_err() {
                    copy(&entry, &path)?;
                }
            }
        }
        Ok(())
    }

    /// The unit is the machine's own again.
    pub(crate) fn forget(&self, name: &UnitName) -> io::Result<()> {
        absent(fs::remove_dir_all(self.kept(name)))
    }

    fn kept(&self, name: &UnitName) -> PathBuf {
        self.kept.join(name.as_str())
    }
}

/// What is in a directory, in the order of the names; nothing where there is none.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let read = match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        read => read?,
    };
    let mut paths = read.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Where a path lies in the tree below this directory.
fn below(directory: &Path, path: &Path) -> PathBuf {
    directory.join(path.components().filter(|part| matches!(part, Component::Normal(_))).collect::<PathBuf>())
}

/// Copies a file or a link, with its owner and mode, down to the disk.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let directory = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let about = fs::symlink_metadata(from)?;
    if about.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else {
        let mut new = to.as_os_str().to_owned();
        // No suffix that systemd looks at.
        new.push("~");
        fs::copy(from, &new)?;
        chown(&new, Some(about.uid()), Some(about.gid()))?;
        let file = File::options().write(true).open(&new)?;
        file.set_modified(about.modified()?)?;
        file.sync_all()?;
        fs::rename(&new, to)?;
    }
    sync(directory)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_moved_aside_is_put_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let etc = root.join("etc/systemd/system");
        let write = |path: &str, text: &str| {
            let path = etc.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a.service", "[Service]\n");
        write("a.service.d/10.conf", "[Service]\nNice=1\n");
        write("b.service", "[Service]\n");
        let wants = etc.join("multi-user.target.wants");
        fs::create_dir(&wants).unwrap();
        symlink("/etc/systemd/system/a.service", wants.join("a.service")).unwrap();
        symlink("/etc/systemd/system/b.service", wants.join("b.service")).unwrap();
        let own = OwnFiles::within(&root.join("state"), &root);
        let name = UnitName::parse("a.service").unwrap();
        let all = own.of(&name).unwrap();
        assert_eq!(all.len(), 3, "{all:?}");
        own.keep(&name).unwrap();
        assert!(own.is_unfinished(&name));
        // An agent that was killed on the way begins again.
        fs::remove_file(etc.join("a.service")).unwrap();
        own.move_aside(&name).unwrap();
        assert_eq!(own.of(&name).unwrap(), Vec::<PathBuf>::new());
        assert!(!etc.join("a.service.d").exists() && etc.join("b.service").exists());
        own.finish(&name).unwrap();
        own.put_back(&name).unwrap();
        assert_eq!(own.of(&name).unwrap(), all);
        assert_eq!(
            fs::read_link(wants.join("a.service")).unwrap(),
            Path::new("/etc/systemd/system/a.service")
        );
        assert_eq!(fs::read_to_string(etc.join("a.service.d/10.conf")).unwrap(), "[Service]\nNice=1\n");
        own.forget(&name).unwrap();
        assert!(!root.join("state/adopted/a.service").exists());
    }
}
