//! What all machines of a cluster have in common: an overlay layer on top of the host's root.
//!
//! Nothing of the host's own work may start in a machine, yet every unit file must still be there to be loaded. So no unit
//! is masked: what is taken away is that anything pulls them in (`*.wants`, `*.requires`, generators, `/etc/systemd`).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{XattrFlags, setxattr};

/// Units that the targets of a machine pull in, where the host has them.
const WANTED: [&str; 9] = [
    "dbus.service",
    "dbus-broker.service",
    "dbus.socket",
    "dev-mqueue.mount",
    "systemd-journal-flush.service",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-tmpfiles-setup.service",
];

/// Directories of which a machine sees nothing of the host's.
const HIDDEN: [&str; 8] = [
    "/etc/muster",
    "/etc/systemd",
    "/usr/lib/systemd/system-generators",
    "/usr/local/lib/systemd",
    "/var/lib/muster-agent",
    "/var/lib/muster-scheduler",
    "/var/lib/systemd",
    "/var/log",
];

const JOURNAL: &str =
    "[Journal]\nStorage=persistent\nReadKMsg=no\nAudit=no\nRateLimitIntervalSec=0\nSystemMaxUse=64M\n";

/// The layer, while it is being written.
pub(crate) struct Template {
    root: PathBuf,
}

impl Template {
    /// Writes the layer for virtual machines at `root`, an empty or missing directory: what is below it is not the host's,
    /// but an image of which the same was taken away.
    pub(crate) fn for_image(root: PathBuf) -> Result<Self> {
        let template = Self { root };
        template.keep_journals()?;
        Ok(template)
    }

    /// Writes the layer at `root` (an empty or missing directory on a file system that keeps extended attributes).
    pub(crate) fn for_host(root: PathBuf) -> Result<Self> {
        let template = Self { root };
        for path in HIDDEN {
            template.hide(Path::new(path))?;
        }
        // Where the two are one, only the real directory can be covered.
        let directories = ["/usr/lib/systemd/system", "/lib/systemd/system"];
        let merged = fs::symlink_metadata("/lib").is_ok_and(|metadata| metadata.is_symlink());
        for directory in &directories[..if merged { 1 } else { 2 }] {
            template.filter_dependencies(Path::new(directory))?;
        }
        // The only link of an administrator that matters: which implementation the bus has.
        if let Ok(target) = fs::read_link("/etc/systemd/system/dbus.service") {
            template.link(&target, "/etc/systemd/system/dbus.service")?;
        }
        template.link(
            Path::new("/usr/lib/systemd/system/multi-user.target"),
            "/etc/systemd/system/default.target",
        )?;
        template.keep_journals()?;
        Ok(template)
    }

    fn keep_journals(&self) -> Result<()> {
        self.write("/etc/systemd/journald.conf.d/cluster.conf", JOURNAL.as_bytes())?;
        fs::create_dir_all(self.at("/var/log/journal")).context("/var/log/journal")
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Makes a directory of the host look empty; one that the host does not have stays away.
    fn hide(&self, path: &Path) -> Result<()> {
        if path.is_dir() {
            let path = self.at(path);
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
            setxattr(&path, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .with_context(|| format!("{}: overlayfs attribute", path.display()))?;
        }
        Ok(())
    }

    fn filter_dependencies(&self, units: &Path) -> Result<()> {
        for entry in fs::read_dir(units).with_context(|| units.display().to_string())? {
            let directory = entry?.path();
            let is_dependencies = directory
                .extension()
                .is_some_and(|extension| extension == "wants" || extension == "requires");
            if !is_dependencies {
                continue;
            }
            self.hide(&directory)?;
            for unit in WANTED {
                if let Ok(target) = fs::read_link(directory.join(unit)) {
                    symlink(target, self.at(directory.join(unit)))?;
                }
            }
        }
        Ok(())
    }

    fn parent_of(&self, path: &str) -> Result<PathBuf> {
        let path = self.at(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        Ok(path)
    }

    /// Makes a symbolic link that every machine has.
    pub(crate) fn link(&self, target: &Path, path: &str) -> Result<()> {
        let path = self.parent_of(path)?;
        symlink(target, &path).with_context(|| path.display().to_string())
    }

    /// Writes a file that every machine has.
    pub(crate) fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.parent_of(path)?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }

    /// Writes a program that every machine has.
    pub(crate) fn write_program(&self, path: &str, text: &str) -> Result<()> {
        self.write(path, text.as_bytes())?;
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(0o755)).context(path.to_owned())
    }

    /// Copies a file of the host, with its mode, to where every machine has it.
    pub(crate) fn copy(&self, from: &Path, path: &str) -> Result<()> {
        let path = self.parent_of(path)?;
        fs::copy(from, &path).with_context(|| format!("{} to {}", from.display(), path.display()))?;
        Ok(())
    }
}
