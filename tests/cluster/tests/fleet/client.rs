//! The client by itself, and how it reaches the cluster.

use std::process::Command;

use anyhow::{Result, ensure};
use muster_cluster::bin_dir;

use super::cluster::Shared;
use super::ssh::{Keys, Running, start_sshd};

/// `musterctl` without any cluster: exit status, standard output, standard error.
fn alone(arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = Command::new(bin_dir()?.join("musterctl")).args(arguments).output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

/// fleet: `TestClientHelpFlag`
#[test]
fn test_client_help_flag() -> Result<()> {
    for arguments in [&["--help"][..], &["-h"], &["help"], &[]] {
        let (code, out, errors) = alone(arguments)?;
        ensure!(
            code == Some(0) && out.contains("Usage: musterctl"),
            "{arguments:?}: {code:?} {out} {errors}"
        );
    }
    Ok(())
}

/// fleet: `TestClientVersionFlag`
#[test]
fn test_client_version_flag() -> Result<()> {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    for argument in ["version", "--version", "-v", "-V"] {
        let (code, out, errors) = alone(&[argument])?;
        let expected = format!("musterctl version {VERSION}\n");
        ensure!(code == Some(0) && out == expected, "{argument}: {code:?} {out} {errors}");
    }
    Ok(())
}

/// fleet: `TestClientVersionHelpOutput`
#[test]
fn test_client_version_help_output() -> Result<()> {
    let (_, out, _) = alone(&["help"])?;
    ensure!(out.starts_with(concat!("musterctl version ", env!("CARGO_PKG_VERSION"), "\n")), "{out}");
    Ok(())
}

/// fleet: `TestFleetctlWithEnv`
#[test]
fn test_fleetctl_with_env() -> Result<()> {
    let shared = Shared::of(1)?;
    let endpoint = shared.cluster.endpoints().join(",");
    let run = |arguments: &[&str], variable: Option<&str>| -> Result<(bool, String)> {
        let mut command = shared.cluster.network_command();
        command.arg(bin_dir()?.join("musterctl")).args(arguments).env_remove("MUSTERCTL_ENDPOINT");
        command.envs(variable.map(|value| ("MUSTERCTL_ENDPOINT", value)));
        let output = command.output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let m1 = shared.cluster.machine("m1")?;
    let ways = [
        run(&["list-machines"], Some(&endpoint))?,
        run(&["--endpoint", &endpoint, "list-machines"], None)?,
        // The command line counts more.
        run(&["--endpoint", &endpoint, "list-machines"], Some("127.0.0.1:1"))?,
    ];
    for (success, out) in ways {
        ensure!(success && out.contains(m1.address()), "{success} {out}");
    }
    Ok(())
}

/// fleet: `TestKnownHostsVerification`
///
/// There the machine was made anew under its old address. Here keys are known by machine ids: the one with the old id has a
/// new key.
#[test]
fn test_known_hosts_verification() -> Result<()> {
    let shared = Shared::of(2)?;
    let machine = shared.cluster.machine("m1")?;
    let keys = Keys::new(&shared)?;
    let known = shared.file("known_hosts", "")?;
    // Somebody who says yes to whatever is asked.
    let yes = shared.file("yes", "#!/bin/sh\necho yes\n")?;
    ensure!(Command::new("chmod").args(["755", &yes]).status()?.success());
    let ssh = || {
        let mut command = keys.ssh(&shared, &known, &["--machine", machine.machine_id(), "echo", "foo"])?;
        Running::start(command.env("SSH_ASKPASS", &yes))?.end()
    };
    start_sshd(&shared, &machine, &keys.public)?;
    for _ in 0..2 {
        let (code, out, errors) = ssh()?;
        ensure!((code, &*out) == (Some(0), "foo"), "{code:?} {out} {errors}");
    }
    machine.exec(&["systemctl", "stop", "test-sshd"])?.ok()?;
    start_sshd(&shared, &machine, &keys.public)?;
    let (code, out, errors) = ssh()?;
    ensure!(code == Some(255) && errors.contains("IDENTIFICATION HAS CHANGED"), "{code:?} {out} {errors}");
    std::fs::write(&known, "")?;
    let (code, out, errors) = ssh()?;
    ensure!((code, &*out) == (Some(0), "foo"), "{code:?} {out} {errors}");
    machine.exec(&["systemctl", "stop", "test-sshd"])?.ok()?;
    Ok(())
}
