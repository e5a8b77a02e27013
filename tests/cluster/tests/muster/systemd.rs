//! Units of every sort, and what a machine's systemd makes of them: what it refuses, what ends at once, what a socket
//! has activated, and what is left behind.

use anyhow::{Result, ensure};
use muster_cluster::Machine;

use super::support::{LIMIT, SLEEP, World, main_pid, property};

/// Where the files of Muster's units are, and where systemd finds them.
const UNIT_DIRS: [&str; 2] = ["/run/muster/units", "/run/systemd/system"];

/// All files in these directories.
fn unit_files(machine: &Machine<'_>) -> Result<String> {
    machine.exec(&["find", UNIT_DIRS[0], UNIT_DIRS[1], "-mindepth", "1"])?.ok()
}

/// The arguments of the unit's main process.
fn command_line(machine: &Machine<'_>, unit: &str) -> Result<String> {
    let pid = main_pid(machine, unit)?;
    Ok(machine.exec(&["cat", &format!("/proc/{pid}/cmdline")])?.ok()?.replace('\0', " ").trim().to_owned())
}

#[test]
fn what_systemd_does_not_load_is_refused_in_its_words() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    let before = unit_files(&machine)?;
    // Muster's own checks take all of these.
    let cases = [
        ("none.service", "[Service]\nType=oneshot\n"),
        ("relative.service", "[Service]\nExecStart=not/absolute\n"),
        ("two.service", "[Service]\nExecStart=/bin/sleep 1\nExecStart=/bin/sleep 2\n"),
        ("none.timer", "[Timer]\n"),
        ("none.socket", "[Socket]\n"),
        ("none.path", "[Path]\n"),
        ("other.mount", "[Mount]\nWhat=tmpfs\nWhere=/mnt/else\n"),
    ];
    for (name, content) in cases {
        let words = format!("Unit {name} has a bad unit file setting");
        let file = world.file(name, content)?;
        // Refused once more when it is asked for once more.
        for verb in ["load", "load", "start", "load", "start"] {
            let output = world.try_ctl(&[verb, &file])?;
            ensure!(output.code == Some(1) && output.stderr.contains(&words), "{output}");
            let status = world.try_ctl(&["status", name])?;
            ensure!(status.code == Some(3) && status.stdout.contains(&words), "{status}");
        }
    }
    let mended = world.file("none.service", SLEEP)?;
    world.ctl(&["start", "--replace", &mended])?;
    assert_eq!(world.home("none.service")?.name(), "m1");
    world.ctl(&["destroy", "*"])?;
    assert_eq!(unit_files(&machine)?, before);
    Ok(())
}

#[test]
fn what_ends_at_once_is_shown_as_it_ended() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    let before = unit_files(&machine)?;
    // Name, type, program; whether its start went well; how it is afterwards.
    let cases = [
        // Its start is over before systemd knows how the program ends; which of the two is told is a matter of moments.
        ("simple.service", "simple", "/bin/false", None, "failed"),
        ("absent.service", "exec", "/absent", Some(false), "failed"),
        ("job.service", "oneshot", "/bin/true", Some(true), "inactive"),
        ("failing.service", "oneshot", "/bin/false", Some(false), "failed"),
        ("silent.service", "notify", "/bin/true", Some(false), "failed"),
    ];
    for (name, kind, program, started, state) in cases {
        let once = "[X-Muster]\nRescheduleAttempts=0\n";
        let file = world.file(name, &format!("[Service]\nType={kind}\nExecStart={program}\n{once}"))?;
        let output = world.try_ctl(&["start", &file])?;
        ensure!(started.is_none_or(|started| output.success() == started), "{output}");
        let told = output.stderr.contains(&format!("{name} did not start on"));
        ensure!(started != Some(false) || told, "{output}");
        world.cluster.wait_for(&format!("{name} to be shown as {state}"), LIMIT, || {
            let rows = world.rows()?;
            let shown = rows.iter().any(|row| row.unit == name && row.active.as_deref() == Some(state));
            ensure!(shown, "{rows:#?}");
            Ok(Some(()))
        })?;
        let status = world.try_ctl(&["status", name])?;
        ensure!(status.code == Some(3) && status.stdout.contains(state), "{status}");
        world.ctl(&["destroy", name])?;
        assert_eq!(property(&machine, name, "LoadState")?, "not-found", "{name}: systemd has forgotten it");
    }
    assert_eq!(unit_files(&machine)?, before);
    Ok(())
}

#[test]
fn units_of_every_type_run_and_leave_nothing() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    let before = unit_files(&machine)?;
    let cases = [
        ("a.service", SLEEP, "running"),
        ("b.socket", "[Socket]\nListenStream=/run/b.sock\nRemoveOnStop=yes\n", "listening"),
        ("b.timer", "[Timer]\nOnActiveSec=1h\n", "waiting"),
        ("b.path", "[Path]\nPathExists=/absent\n", "waiting"),
        ("mnt-b.mount", "[Mount]\nWhat=tmpfs\nWhere=/mnt/b\nType=tmpfs\n", "mounted"),
        ("b.target", "[Unit]\nDescription=A target\n", "active"),
        ("b.slice", "[Slice]\nTasksMax=100\n", "active"),
    ];
    // What is activated must be there first.
    world.ctl(&["load", &world.file("b.service", SLEEP)?])?;
    for (name, content, sub) in cases {
        world.start(name, content)?;
        let rows = world.rows()?;
        let shown = rows.iter().any(|row| row.unit == name && row.sub.as_deref() == Some(sub));
        ensure!(shown, "{name} is not {sub}: {rows:#?}");
    }
    assert_eq!(property(&machine, "b.slice", "TasksMax")?, "100");
    // Not in containers, and systemd says so.
    let automount = world.file("mnt-c.automount", "[Automount]\nWhere=/mnt/c\n")?;
    world.ctl(&["load", &world.file("mnt-c.mount", "[Mount]\nWhat=tmpfs\nWhere=/mnt/c\nType=tmpfs\n")?])?;
    let output = world.try_ctl(&["start", &automount])?;
    ensure!(output.code == Some(1) && output.stderr.contains("unsupported"), "{output}");

    world.ctl(&["destroy", "*"])?;
    assert_eq!(unit_files(&machine)?, before);
    let patterns = ["a.service", "b.*", "mnt-*"];
    let list = ["systemctl", "list-units", "--all", "--no-legend", "--plain"];
    let left = machine.exec(&[&list[..], &patterns[..]].concat())?.ok()?;
    // Every slice exists for systemd, and so does a mount point that a unit named.
    assert_eq!(left, "", "systemd knows none of them any more");
    Ok(())
}

#[test]
fn what_a_socket_has_activated_is_replaced_while_it_is_busy() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    let service = |seconds: u32| format!("[Service]\nExecStart=/usr/bin/sleep {seconds}\n");
    let socket = |text: &str| format!("[Unit]\nDescription={text}\n[Socket]\nListenStream=9000\n");
    world.ctl(&["load", &world.file("front.service", &service(100_001))?])?;
    world.start("front.socket", &socket("first"))?;
    // The service never takes the connection: systemd starts it again for that as soon as it has stopped.
    let client = "exec 3<>/dev/tcp/127.0.0.1/9000; exec sleep infinity";
    machine.exec(&["systemd-run", "--unit=client", "bash", "-c", client])?.ok()?;
    world.wait_active_state(&machine, "front.service", "active")?;
    assert_eq!(command_line(&machine, "front.service")?, "/usr/bin/sleep 100001");

    world.ctl(&["load", "--replace", &world.file("front.service", &service(100_002))?])?;
    world.wait_active_state(&machine, "front.service", "active")?;
    assert_eq!(command_line(&machine, "front.service")?, "/usr/bin/sleep 100002");

    // systemd listens on no socket whose service is running, and says so in its journal only.
    let second = world.file("front.socket", &socket("second"))?;
    let output = world.try_ctl(&["start", "--replace", &second])?;
    ensure!(output.code == Some(1), "{output}");
    ensure!(output.stderr.contains("front.service, which it activates, is active already"), "{output}");

    let third = world.file("front.socket", &socket("third"))?;
    world.ctl(&["start", "--replace", &third, &world.file("front.service", &service(100_003))?])?;
    for unit in ["front.socket", "front.service"] {
        assert_eq!(property(&machine, unit, "ActiveState")?, "active", "{unit}");
    }
    assert_eq!(command_line(&machine, "front.service")?, "/usr/bin/sleep 100003");
    assert_eq!(property(&machine, "front.socket", "Description")?, "third");
    Ok(())
}

#[test]
fn names_that_the_machine_uses_are_refused_with_the_cause() -> Result<()> {
    const SETUP: &str = r"
        cd /etc/systemd/system
        for unit in template@ real; do printf '[Service]\nExecStart=/usr/bin/sleep 1000\n' >$unit.service; done
        ln -s real.service alias.service
        ln -s /dev/null masked.service
        mkdir local.service.d && printf '[Service]\nEnvironment=LOCAL=yes\n' >local.service.d/local.conf
        systemctl daemon-reload
        systemctl start real.service
        systemd-run --unit=transient sleep infinity
    ";
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    machine.exec(&["sh", "-ec", SETUP])?.ok()?;
    let own = || machine.exec(&["find", "/etc/systemd/system", "/run/systemd/transient", "-ls"])?.ok();
    let (before, files) = (own()?, unit_files(&machine)?);
    let pids = [main_pid(&machine, "real.service")?, main_pid(&machine, "transient.service")?];
    for (name, cause) in [
        ("template@1.service", "/etc/systemd/system/template@.service"),
        ("alias.service", "/etc/systemd/system/real.service"),
        ("masked.service", "/etc/systemd/system/masked.service, masked"),
        ("transient.service", "/run/systemd/transient/transient.service"),
    ] {
        let reason = format!("the machine's own configuration already has {name} ({cause})");
        for verb in ["load", "start"] {
            let output = world.try_ctl(&[verb, &world.file(name, SLEEP)?])?;
            ensure!(output.code == Some(1) && output.stderr.contains(&reason), "{output}");
        }
        world.ctl(&["stop", name])?;
        world.ctl(&["destroy", name])?;
    }
    assert_eq!(property(&machine, "template@1.service", "ActiveState")?, "inactive");
    let after = [main_pid(&machine, "real.service")?, main_pid(&machine, "transient.service")?];
    assert_eq!(after, pids, "they run on");

    // A drop-in alone makes no unit: what the machine's operator adds to units of that name holds for this one too.
    world.start("local.service", SLEEP)?;
    ensure!(property(&machine, "local.service", "Environment")?.contains("LOCAL=yes"));
    world.ctl(&["destroy", "local.service"])?;
    assert_eq!(own()?, before, "nothing of the machine's own has changed");
    assert_eq!(unit_files(&machine)?, files);
    Ok(())
}
