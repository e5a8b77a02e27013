//! Whether this host can boot machines, and what to do about it if not.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{self, PATH};

/// Checks the host.
///
/// # Errors
/// What is missing, with the exact command that installs it.
pub fn check() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "booting machines needs root (namespaces, mounts, systemd-nspawn): run it with sudo"
    );
    let mut command = Command::new("sh");
    command.args(["-c", include_str!("../host-packages"), "host-packages", "--check"]);
    let output =
        process::run(&mut command, "host-packages --check".to_owned(), &[], Duration::from_secs(30))?;
    ensure!(output.success(), "{}", output.stderr.trim());

    for (kind, option) in [("overlay", "CONFIG_OVERLAY_FS"), ("cgroup2", "CONFIG_CGROUPS")] {
        ensure!(
            file_system(kind)? || load_module(kind) && file_system(kind)?,
            "the kernel has no {kind} file system ({option}); `modprobe {kind}` did not help"
        );
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mounted = |directory| mounts.lines().any(|line| line.split_whitespace().nth(4) == Some(directory));
    ensure!(
        mounted("/"),
        "the root directory is not a mount point, so this is a chroot: before entering it, make it one with \
         `mount --bind DIR DIR`"
    );
    for directory in ["/usr", "/etc"] {
        ensure!(
            !mounted(directory),
            "{directory} is a mount of its own, but machines are overlays of the root file system alone"
        );
    }
    Ok(())
}

fn file_system(kind: &str) -> Result<bool> {
    let kinds = fs::read_to_string("/proc/filesystems").context("/proc/filesystems")?;
    Ok(kinds.lines().any(|line| line.split_whitespace().last() == Some(kind)))
}

fn load_module(kind: &str) -> bool {
    Command::new("modprobe").arg(kind).env("PATH", PATH).status().is_ok_and(|status| status.success())
}
