//! What a client wants of a machine itself, through the scheduler and the machine's agent.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use muster_cluster::Machine;

use super::ssh::{Keys, Running, SSH_PORT, start_sshd};
use super::support::{LIMIT, World};

/// Says something all the time.
const TALK: &str = "[Service]\nExecStart=/bin/sh -c 'while :; do echo \"Hello, World!\"; sleep 0.2; done'\n";

/// Waits until no journalctl runs on the machine: nobody reads what it would write.
fn wait_no_reader(world: &World, machine: &Machine<'_>) -> Result<()> {
    world.cluster.wait_for("no journalctl", LIMIT, || {
        let found = machine.exec(&["pgrep", "--list-full", "journalctl"])?;
        ensure!(found.stdout.is_empty(), "{found}");
        Ok(Some(()))
    })
}

fn follow(world: &World, unit: &str) -> Result<Running> {
    let running = Running::start(&mut world.cluster.ctl_command(&["journal", "--follow", unit])?)?;
    for _ in 0..15 {
        let line = running.line()?;
        ensure!(line.contains("Hello, World!") || line.contains("systemd"), "{line}");
    }
    Ok(running)
}

#[test]
fn a_units_journal_and_status_are_read_where_it_is_and_was() -> Result<()> {
    let world = World::of(2)?;
    world.start("talk.service", TALK)?;
    let first = world.home("talk.service")?;
    let status = world.ctl(&["status", "talk"])?;
    for expected in ["Desired: launched", "Loaded: loaded", "Active: active", "Main PID:", "Hello, World!"] {
        ensure!(status.contains(expected), "{expected}:\n{status}");
    }
    world.cluster.wait_for("some lines", LIMIT, || {
        let out = world.ctl(&["journal", "--sudo", "--lines", "3", "--output", "cat", "talk"])?;
        ensure!(out == "Hello, World!\n".repeat(3), "{out}");
        Ok(Some(()))
    })?;

    let running = follow(&world, "talk")?;
    running.interrupt()?;
    assert_eq!(running.end()?.0, None, "SIGINT ends it");
    wait_no_reader(&world, &first)?;

    // It moves.
    world.ctl(&["drain", first.machine_id()])?;
    world.ctl(&["uncordon", first.machine_id()])?;
    let second = world.home_other_than("talk.service", &[first.name()])?;
    let out = world.ctl(&["journal", "-n", "4", "talk"])?;
    let short = |machine: &Machine<'_>| format!("{} ", &machine.machine_id()[..8]);
    let lines: Vec<&str> = out.lines().collect();
    ensure!(lines.len() == 8, "{out}");
    ensure!(lines[..4].iter().all(|line| line.starts_with(&short(&first))), "{out}");
    ensure!(lines[4..].iter().all(|line| line.starts_with(&short(&second))), "{out}");
    let out =
        world.ctl(&["journal", "--machine", first.machine_id(), "--since", "-1h", "-o", "cat", "talk"])?;
    ensure!(out.lines().count() > 10 && out.contains("Hello, World!"), "{out}");

    // What there is none of.
    let none = world.try_ctl(&["journal", "none"])?;
    assert_eq!((none.code, none.stderr.trim()), (Some(4), "error: Unit none.service does not exist."));
    world.ctl(&["submit", &world.file("still.service", TALK)?])?;
    let still = world.try_ctl(&["journal", "still"])?;
    let expected = "error: Unit still.service does not appear to be running.";
    assert_eq!((still.code, still.stderr.trim()), (Some(1), expected));
    let bad = world.try_ctl(&["journal", "--since", "nonsense", "talk"])?;
    ensure!(bad.code == Some(1) && bad.stderr.contains("Failed to parse timestamp"), "{bad}");
    Ok(())
}

#[test]
fn what_follows_a_journal_is_told_when_its_machine_is_lost() -> Result<()> {
    let world = World::of(1)?;
    world.start("talk.service", TALK)?;
    let home = world.home("talk.service")?;

    let running = follow(&world, "talk")?;
    home.exec(&["systemctl", "restart", "muster-agent.service"])?.ok()?;
    let (code, _, errors) = running.end()?;
    ensure!(code == Some(1) && errors.contains(&home.machine_id()[..8]), "{code:?} {errors}");
    wait_no_reader(&world, &home)?;

    world.wait_machines_up(1)?;
    let running = world.cluster.wait_for("the journal", LIMIT, || Ok(Some(follow(&world, "talk")?)))?;
    home.cut()?;
    let (code, _, errors) = running.end()?;
    ensure!(code == Some(1) && errors.contains("is not connected any more"), "{code:?} {errors}");
    wait_no_reader(&world, &home)?;
    let status = world.try_ctl(&["status", "talk"])?;
    ensure!(status.stdout.contains("Desired: launched"), "{status}");
    ensure!(status.stdout.contains("is not connected: it is off, cut off"), "{status}");
    home.heal()?;
    world.wait_machines_up(1)?;

    // The administrator forbids it.
    let script = "sed -i '1i streams = [\"status\"]' /etc/muster/agent.toml; systemctl restart muster-agent";
    home.exec(&["sh", "-ec", script])?.ok()?;
    world.cluster.wait_for("a refusal", LIMIT, || {
        let refused = world.try_ctl(&["journal", "talk"])?;
        ensure!(refused.code == Some(1) && refused.stderr.contains("leaves out \"journal\""), "{refused}");
        Ok(Some(()))
    })?;
    ensure!(world.ctl(&["status", "talk"])?.contains("Active: active"));
    Ok(())
}

#[test]
fn files_are_copied_as_a_whole_or_not_at_all() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    let at = |path: &str| format!("{}:{path}", machine.machine_id());
    let large = (0..400_000).map(|number| number.to_string()).collect::<Vec<_>>().join("\n");
    let here = world.file("large", &large)?;
    let back = format!("{here}.back");
    world.ctl(&["cp", &here, &at("/var/tmp/")])?;
    machine.exec(&["chmod", "4710", "/var/tmp/large"])?.ok()?;
    world.ctl(&["cp", &at("/var/tmp/large"), &back])?;
    ensure!(std::fs::read_to_string(&back)? == large, "it came back otherwise");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&back)?);
    assert_eq!(mode & 0o7777, 0o4710);

    let refused = [
        (vec!["cp", &here, &back], Some(2), "one of the two is on a machine"),
        (vec!["cp", "/etc", &at("/x")], Some(1), "cannot read /etc: it is a directory"),
        (vec!["cp", &at("/etc"), &back], Some(1), "cannot read /etc there: it is a directory"),
        (vec!["cp", &at("/none"), &back], Some(1), "cannot read /none there: No such file"),
        (vec!["cp", &here, &at("/none/x")], Some(1), "cannot write /none/x there: No such file"),
        (vec!["cp", &here, "ffff:/x"], Some(1), "no machine of this cluster"),
    ]
    .map(|(line, code, error)| (line.into_iter().map(str::to_owned).collect::<Vec<_>>(), code, error));
    for (line, code, error) in refused {
        let output = world.cluster.ctl(&line)?;
        ensure!(output.code == code && output.stderr.contains(error), "{output}");
    }
    machine.fill("/var")?;
    let full = world.try_ctl(&["cp", &here, &at("/var/tmp/large")])?;
    ensure!(full.code == Some(1) && full.stderr.contains("No space left on device"), "{full}");
    let left = machine.exec(&["ls", "-A", "/var/tmp"])?.ok()?;
    ensure!(!left.contains(".muster-"), "{left}");
    machine.clear()?;
    let same = machine.exec(&["sha256sum", "/var/tmp/large"])?.ok()?;
    let expected = Command::new("sha256sum").arg(&here).output()?.stdout;
    ensure!(same[..64] == *String::from_utf8(expected)?[..64].to_owned(), "what was there stays");
    Ok(())
}

#[test]
fn a_machine_without_an_open_port_is_logged_in_to() -> Result<()> {
    let world = World::of(2)?;
    world.start("talk.service", TALK)?;
    let home = world.home("talk.service")?;
    let other =
        world.cluster.machines().find(|m| m.name() != home.name() && m.name() != "s1").context("two")?;
    let keys = Keys::new(&world)?;
    start_sshd(&world, &home, &keys.public)?;
    let known = world.file("known_hosts", "")?;
    let ssh = |words: &[&str]| Running::start(&mut keys.ssh(&world, &known, words)?)?.end();
    // Nobody who could be asked about the key.
    let (code, _, errors) = ssh(&["talk", "echo", "foo"])?;
    ensure!(code == Some(255) && errors.contains("Host key verification failed"), "{code:?} {errors}");
    let (code, out, errors) = ssh(&["--strict-host-key-checking=false", "talk", "echo", "foo"])?;
    ensure!((code, out.as_str()) == (Some(0), "foo"), "{code:?} {out} {errors}");
    // By its id, with an exit status.
    let id = home.machine_id();
    let (code, out, errors) = ssh(&[&id[..8], "--", "hostname; exit 7"])?;
    ensure!(code == Some(7) && out.trim() == home.name(), "{code:?} {out} {errors}");
    let (code, out, errors) = ssh(&["--unit", "talk", "--", "cat", "/etc/machine-id"])?;
    ensure!(code == Some(0) && out.trim() == id, "{code:?} {out} {errors}");
    // More than fits anywhere.
    let (code, out, errors) = ssh(&["--machine", id, "head -c 20000000 /dev/zero | tr '\\0' x"])?;
    ensure!(code == Some(0) && out.len() == 20_000_000, "{code:?} {} {errors}", out.len());

    let refused = [
        (vec!["--machine", id, "--unit", "talk"], "please specify only one."),
        (vec!["none"], "Unable to proceed: could not find matching unit or machine"),
        (vec!["--machine", other.machine_id(), "true"], "cannot connect to port 2222 there"),
    ];
    for (words, error) in refused {
        let (code, _, errors) = ssh(&words)?;
        ensure!(code != Some(0) && errors.contains(error), "{code:?} {errors}");
    }
    // It takes another key: it may be another machine.
    home.exec(&["systemctl", "stop", "test-sshd"])?.ok()?;
    start_sshd(&world, &home, &keys.public)?;
    let (code, _, errors) = ssh(&["talk", "echo", "foo"])?;
    ensure!(code == Some(255) && errors.contains("IDENTIFICATION HAS CHANGED"), "{code:?} {errors}");
    std::fs::write(&known, "")?;
    let (code, _, errors) = ssh(&["--strict-host-key-checking=false", "talk", "echo", "foo"])?;
    ensure!(code == Some(0), "{code:?} {errors}");

    // A port and a socket without ssh.
    let banner = Running::start(&mut world.cluster.ctl_command(&["fd-forward", id, SSH_PORT])?)?;
    ensure!(banner.line()?.starts_with("SSH-2.0-"), "no sshd");
    banner.interrupt()?;
    banner.end()?;
    let bus = ["fd-forward", id, "/run/dbus/system_bus_socket"];
    let said = world.cluster.ctl_within(LIMIT, &bus, b"\0AUTH EXTERNAL 30\r\n")?;
    ensure!(said.stdout.starts_with("OK "), "{said}");
    let none = world.try_ctl(&["fd-forward", id, "/run/none"])?;
    ensure!(none.code == Some(1) && none.stderr.contains("cannot connect to /run/none there"), "{none}");
    let bad = world.try_ctl(&["fd-forward", id, "http"])?;
    if bad.code != Some(2) {
        bail!("{bad}");
    }
    Ok(())
}
