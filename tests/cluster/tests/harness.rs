//! The harness itself, on bare machines: what it says it does to them, and that it leaves nothing behind.

mod disk;
mod traces;

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_cluster::{Builder, Cluster, Machine, Power, target_dir};
use traces::{LIMIT, Traces, all_pids, cgroup_exists, cgroups_of, family, host_traces, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_muster-cluster");

fn bare(machines: usize) -> Builder {
    Cluster::builder().machines(machines).no_daemons()
}

/// A service that says `hello` to whoever connects, and stays connected when asked to.
fn serve(machine: &Machine<'_>, then: &str) -> Result<()> {
    let socket = "[Socket]\nListenStream=7000\nAccept=yes\n";
    let service = format!("[Service]\nStandardOutput=socket\nExecStart=/bin/sh -c 'echo hello; {then}'\n");
    machine.write_file("/run/systemd/system/hello.socket", socket.as_bytes())?;
    machine.write_file("/run/systemd/system/hello@.service", service.as_bytes())?;
    machine.exec(&["systemctl", "start", "hello.socket"])?.ok()?;
    Ok(())
}

/// What `from` hears when it connects to `to`; an error when that takes more than two seconds.
fn hear(from: &Machine<'_>, to: &Machine<'_>) -> Result<String> {
    let script = format!("head -n1 </dev/tcp/{}/7000", to.address());
    from.exec(&["timeout", "2", "bash", "-c", &script])?.ok()
}

#[test]
fn machines_run_systemd_and_reach_each_other() {
    let cluster = bare(2).up().unwrap();
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    for machine in [&m1, &m2] {
        let answer = |command: &[&str]| machine.exec(command).unwrap().ok().unwrap();
        assert_eq!(answer(&["systemctl", "is-system-running"]).trim(), "running");
        assert_eq!(answer(&["cat", "/proc/1/comm"]).trim(), "systemd");
        assert_eq!(answer(&["hostname"]).trim(), machine.name());
        assert_eq!(answer(&["cat", "/etc/machine-id"]).trim(), machine.machine_id());
        assert_eq!(answer(&["cat", "/proc/sys/kernel/random/boot_id"]).trim(), machine.boot_id().unwrap());
        answer(&[
            "busctl",
            "call",
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.DBus.Peer",
            "Ping",
        ]);
    }
    assert_ne!(m1.machine_id(), m2.machine_id());
    assert_ne!(m1.boot_id().unwrap(), m2.boot_id().unwrap());

    serve(&m2, "true").unwrap();
    assert_eq!(hear(&m1, &m2).unwrap(), "hello\n");
    // And from the bridge, where musterctl runs.
    let mut run = cluster.network_command();
    let output = run.args(["bash", "-c", "head -n1 </dev/tcp/198.18.0.102/7000"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");

    let error = cluster.machine("m3").unwrap_err().to_string();
    assert!(error.contains("which has m1, m2"), "{error}");
}

#[test]
fn units_of_the_host_do_not_run_but_can_be_loaded() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    let services = ["systemctl", "list-units", "--type=service", "--plain", "--no-legend", "--state=running"];
    let running = m1.exec(&services).unwrap().ok().unwrap();
    let running: Vec<_> = running.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(
        running.iter().all(|unit| unit.starts_with("dbus") || *unit == "systemd-journald.service"),
        "{running:?}"
    );
    let state =
        m1.exec(&["systemctl", "show", "-P", "LoadState", "systemd-logind.service"]).unwrap().ok().unwrap();
    assert_eq!(state.trim(), "loaded");
}

#[test]
fn a_power_cut_is_silent_and_keeps_the_disk() {
    let cluster = bare(2).up().unwrap();
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    let before = m2.boot_id().unwrap();
    m2.write_file("/var/lib/kept", b"kept").unwrap();
    m2.write_file("/run/lost", b"lost").unwrap();
    serve(&m2, "sleep infinity").unwrap();
    // A connection that stays open.
    let client = format!("cat </dev/tcp/{}/7000 >/run/heard", m2.address());
    m1.exec(&["systemd-run", "--unit=client", "bash", "-c", &client]).unwrap().ok().unwrap();
    cluster
        .wait_for("the client hears hello", LIMIT, || {
            let heard = m1.exec(&["cat", "/run/heard"])?.ok()?;
            Ok((heard == "hello\n").then_some(()))
        })
        .unwrap();

    m2.kill().unwrap();
    assert_eq!(m2.power(), Power::Off);
    assert!(m2.exec(&["true"]).unwrap_err().to_string().contains("m2 is off"));
    assert!(m2.kill().is_err());
    // Every process of m2 is dead, and m1 has not been told.
    let connection = m1.exec(&["ss", "-Htn", "dst", m2.address()]).unwrap().ok().unwrap();
    assert!(connection.starts_with("ESTAB"), "{connection:?}");
    m2.write_file("/etc/while-off", b"there").unwrap();

    m2.boot().unwrap();
    assert!(m2.boot().is_err());
    assert_eq!(m2.exec(&["cat", "/var/lib/kept", "/etc/while-off"]).unwrap().ok().unwrap(), "keptthere");
    assert!(!m2.exec(&["test", "-e", "/run/lost"]).unwrap().success());
    assert_eq!(m2.exec(&["cat", "/etc/machine-id"]).unwrap().ok().unwrap().trim(), m2.machine_id());
    assert_ne!(m2.boot_id().unwrap(), before);
    serve(&m2, "true").unwrap();
    assert_eq!(hear(&m1, &m2).unwrap(), "hello\n");
}

#[test]
fn reboot_and_poweroff_are_orderly() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    let before = m1.boot_id().unwrap();
    let unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecStop=/bin/sh -c 'echo bye >/var/lib/bye'\n";
    m1.write_file("/run/systemd/system/bye.service", unit.as_bytes()).unwrap();
    m1.exec(&["systemctl", "start", "bye.service"]).unwrap().ok().unwrap();
    m1.reboot().unwrap();
    assert_ne!(m1.boot_id().unwrap(), before);
    assert_eq!(m1.exec(&["cat", "/var/lib/bye"]).unwrap().ok().unwrap(), "bye\n");

    m1.exec(&["systemctl", "poweroff"]).unwrap();
    cluster.wait_for("m1 is off", LIMIT, || Ok((m1.power() == Power::Off).then_some(()))).unwrap();
    assert!(m1.journal().unwrap().contains("Reached target poweroff.target"), "{}", m1.journal().unwrap());
    m1.boot().unwrap();
    assert_eq!(m1.exec(&["cat", "/var/lib/bye"]).unwrap().ok().unwrap(), "bye\n");
}

#[test]
fn a_cut_cable_stays_cut_until_healed() {
    let cluster = bare(2).up().unwrap();
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    serve(&m2, "true").unwrap();
    assert_eq!(hear(&m1, &m2).unwrap(), "hello\n");
    m2.cut().unwrap();
    assert!(m2.is_cut());
    assert!(hear(&m1, &m2).is_err());
    // The harness itself does not need the cable.
    m2.reboot().unwrap();
    serve(&m2, "true").unwrap();
    assert!(hear(&m1, &m2).is_err());
    m2.heal().unwrap();
    cluster.wait_for("m2 is heard again", LIMIT, || hear(&m1, &m2).map(Some)).unwrap();
}

#[test]
fn words_are_lost_one_way_until_healed() {
    let cluster = bare(3).up().unwrap();
    let [m1, m2, m3] = ["m1", "m2", "m3"].map(|name| cluster.machine(name).unwrap());
    let exec = |machine: &Machine<'_>, script: &str| machine.exec(&["bash", "-c", script])?.ok();
    // The datagrams that a kernel got, whether anybody waits for them or not.
    let heard = |machine: &Machine<'_>| -> Result<u64> {
        let count = "awk '/^Udp:/ && $3 ~ /[0-9]/ {print $2 + $3}' /proc/net/snmp";
        Ok(exec(machine, count)?.trim().parse()?)
    };
    let arrives = |from: &Machine<'_>, to: &Machine<'_>| {
        let before = heard(to).unwrap();
        exec(from, &format!("echo hi >/dev/udp/{}/7001", to.address())).unwrap();
        cluster.wait_for("it arrives", LIMIT, || Ok((heard(to)? > before).then_some(()))).unwrap();
    };
    // What is said to another one afterwards arrives.
    let is_lost = |from: &Machine<'_>, to: &Machine<'_>, other: &Machine<'_>| {
        let before = heard(to).unwrap();
        exec(from, &format!("echo hi >/dev/udp/{}/7001", to.address())).unwrap();
        arrives(from, other);
        assert_eq!(heard(to).unwrap(), before, "from {} to {}", from.name(), to.name());
    };
    arrives(&m1, &m2);
    m1.lose(&m2).unwrap();
    m1.lose(&m2).unwrap();
    is_lost(&m1, &m2, &m3);
    arrives(&m2, &m1);
    arrives(&m3, &m2);
    assert!(exec(&m1, "ip -br link show eth0").unwrap().contains("LOWER_UP"), "nobody sees that");
    m1.reboot().unwrap();
    is_lost(&m1, &m2, &m3);
    m1.kill().unwrap();
    m1.lose(&m3).unwrap();
    m3.lose(&m1).unwrap();
    m1.boot().unwrap();
    m2.heal().unwrap();
    is_lost(&m1, &m3, &m2);
    is_lost(&m3, &m1, &m2);
    m1.heal().unwrap();
    arrives(&m1, &m3);
    arrives(&m3, &m1);
    m1.heal().unwrap();
}

#[test]
fn a_full_disk_is_full_until_it_is_cleared() {
    disk::is_full_until_it_is_cleared(&bare(2).up().unwrap());
}

#[test]
fn a_frozen_machine_does_nothing_until_thawed() {
    let cluster = bare(2).up().unwrap();
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    serve(&m2, "true").unwrap();
    m2.freeze().unwrap();
    assert_eq!(m2.power(), Power::Frozen);
    assert!(hear(&m1, &m2).is_err());
    assert!(m2.exec(&["true"]).unwrap_err().to_string().contains("m2 is frozen"));
    m2.thaw().unwrap();
    cluster.wait_for("m2 is heard again", LIMIT, || hear(&m1, &m2).map(Some)).unwrap();
    // Power cuts work on frozen machines.
    m2.freeze().unwrap();
    m2.kill().unwrap();
    m2.boot().unwrap();
    assert_eq!(m2.power(), Power::On);
}

#[test]
fn single_processes_stop_and_go_on() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    m1.exec(&["systemd-run", "--unit=sleeper", "sleep", "infinity"]).unwrap().ok().unwrap();
    let pid = m1.exec(&["systemctl", "show", "-P", "MainPID", "sleeper"]).unwrap().ok().unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    let wait_state = |letter: &str| {
        cluster
            .wait_for(&format!("process state {letter}"), LIMIT, || {
                let stat = m1.exec(&["cat", &format!("/proc/{pid}/stat")])?.ok()?;
                ensure!(stat.contains(&format!("(sleep) {letter} ")), "{stat}");
                Ok(Some(()))
            })
            .unwrap();
    };
    m1.stop_process(pid).unwrap();
    wait_state("T");
    m1.continue_process(pid).unwrap();
    wait_state("S");
    assert!(m1.stop_process(4_000_000).is_err());
}

/// How often the unit `name` on this machine has told the witness that it runs.
fn beats(cluster: &Cluster, name: &str, machine: &Machine<'_>) -> Result<usize> {
    let witness = cluster.witness()?;
    Ok(witness.iter().filter(|beat| beat.name == name && beat.machine == machine.name()).count())
}

/// Waits until that unit has told it five times more.
fn wait_more_beats(cluster: &Cluster, name: &str, machine: &Machine<'_>) {
    let before = beats(cluster, name, machine).unwrap();
    cluster
        .wait_for("more beats", LIMIT, || Ok((beats(cluster, name, machine)? >= before + 5).then_some(())))
        .unwrap();
}

fn start_beat(machine: &Machine<'_>, name: &str) {
    let beat = ["/usr/lib/muster-cluster/beat", name];
    let command = ["systemd-run", "--setenv=MUSTER_EPOCH=1.7", "--unit", name];
    machine.exec(&[&command[..], &beat[..]].concat()).unwrap().ok().unwrap();
}

#[test]
fn the_witness_knows_what_runs() {
    let cluster = bare(2).up().unwrap();
    assert_eq!(cluster.witness().unwrap(), []);
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    start_beat(&m1, "one");
    start_beat(&m2, "one");
    start_beat(&m2, "two");
    wait_more_beats(&cluster, "one", &m1);
    wait_more_beats(&cluster, "one", &m2);
    wait_more_beats(&cluster, "two", &m2);
    m2.kill().unwrap();
    let dead = ["one", "two"].map(|name| beats(&cluster, name, &m2).unwrap());
    wait_more_beats(&cluster, "one", &m1);
    assert_eq!(["one", "two"].map(|name| beats(&cluster, name, &m2).unwrap()), dead, "it is off");
    m2.boot().unwrap();
    start_beat(&m2, "two");
    wait_more_beats(&cluster, "two", &m2);
    // An orderly reboot has it there, too.
    m2.reboot().unwrap();
    start_beat(&m2, "two");
    wait_more_beats(&cluster, "two", &m2);

    let witness = cluster.witness().unwrap();
    assert!(witness.iter().all(|beat| beat.epoch == "1.7"), "{witness:?}");
    assert!(witness.is_sorted_by_key(|beat| beat.at), "{witness:?}");
    m1.exec(&["sh", "-c", "echo by hand >>/run/muster-witness"]).unwrap().ok().unwrap();
    assert!(cluster.witness().unwrap_err().to_string().contains("by hand"));
}

#[test]
fn pid_1_hangs_and_nobody_else() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    let answers = || m1.exec(&["timeout", "2", "systemctl", "is-system-running"]).unwrap().success();
    start_beat(&m1, "beat");
    assert!(answers());
    m1.continue_pid1().unwrap();
    m1.stop_pid1().unwrap();
    assert!(!answers());
    wait_more_beats(&cluster, "beat", &m1);
    m1.continue_pid1().unwrap();
    cluster.wait_for("PID 1 answers", LIMIT, || Ok(answers().then_some(()))).unwrap();
    // Power cuts work where it hangs, and a new boot has a new one.
    m1.stop_pid1().unwrap();
    m1.kill().unwrap();
    assert!(m1.stop_pid1().unwrap_err().to_string().contains("m1 is off"));
    m1.boot().unwrap();
    assert!(answers());
}

#[test]
fn a_command_that_does_not_end_is_ended() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    let error = m1.exec_within(Duration::from_millis(300), &["sleep", "4711"], &[]).unwrap_err().to_string();
    assert!(error.contains("has not ended"), "{error}");
    cluster
        .wait_for("the command is gone", LIMIT, || {
            let found =
                m1.exec(&["bash", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"])?.stdout;
            ensure!(!found.contains("sleep 4711"), "{found}");
            Ok(Some(()))
        })
        .unwrap();
}

#[test]
fn down_leaves_nothing() {
    let before = host_traces().unwrap();
    let cluster = bare(2).up().unwrap();
    let traces = Traces::of(&cluster, before).unwrap();
    let said = cluster.down().unwrap().to_string();
    assert!(
        said.ends_with("is gone (m1, m2): no process, mount, namespace, link or cgroup is left"),
        "{said}"
    );
    traces.assert_gone();
    assert!(Cluster::down_in(&traces.dir).unwrap().to_string().starts_with("nothing was up"));
}

#[test]
fn down_leaves_nothing_when_the_supervisor_was_killed() {
    let before = host_traces().unwrap();
    let cluster = bare(2).up().unwrap();
    let traces = Traces::of(&cluster, before).unwrap();
    let killed =
        Command::new("kill").args(["-KILL", &cluster.supervisor_pid().to_string()]).status().unwrap();
    assert!(killed.success());
    cluster
        .wait_for("the cluster is known to be dead", LIMIT, || {
            Ok(Cluster::open(cluster.dir()).is_err().then_some(()))
        })
        .unwrap();
    let error = Cluster::open(cluster.dir()).unwrap_err().to_string();
    assert!(error.contains("has died"), "{error}");
    cluster.down().unwrap();
    traces.assert_gone();
}

#[test]
fn down_leaves_nothing_in_whatever_state_the_machines_are() {
    let before = host_traces().unwrap();
    let cluster = bare(4).up().unwrap();
    let traces = Traces::of(&cluster, before).unwrap();
    cluster.machine("m1").unwrap().kill().unwrap();
    cluster.machine("m2").unwrap().freeze().unwrap();
    cluster.machine("m3").unwrap().cut().unwrap();
    // nspawn itself, from under its machine.
    let nspawn = family(cluster.supervisor_pid()).unwrap().into_iter().find(|pid| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.starts_with("systemd-nspawn") && command.contains("--machine=m4")
    });
    let killed = Command::new("kill").args(["-KILL", &nspawn.unwrap().to_string()]).status().unwrap();
    assert!(killed.success());
    cluster.down().unwrap();
    traces.assert_gone();
}

const OWNER_DIR: &str = "MUSTER_TEST_OWNER_DIR";

/// Not a test: the process that the next test kills.
#[test]
#[ignore = "run by nothing_is_left_when_the_owner_is_killed"]
fn owner() {
    let Some(dir) = std::env::var_os(OWNER_DIR) else { return };
    let cluster = bare(1).dir(dir).up().unwrap();
    fs::write(cluster.files().unwrap().join("a.service"), "").unwrap();
    fs::write(cluster.dir().join("lock-ready"), cluster.supervisor_pid().to_string()).unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn nothing_is_left_when_the_owner_is_killed() {
    let before = host_traces().unwrap();
    let dir = std::env::temp_dir().join(format!("muster-cluster-owner-{}", std::process::id()));
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner", "--ignored"])
        .env(OWNER_DIR, &dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let ready = wait_until("the owner has its cluster up", || {
        ensure!(owner.try_wait()?.is_none(), "the owner has ended");
        Ok(fs::read_to_string(dir.join("lock-ready"))?.parse::<i32>()?)
    });
    let members = family(ready).unwrap();
    assert!(members.len() > 4);
    let cgroups = cgroups_of(&members);
    assert_eq!(cgroups.len(), 1, "{cgroups:?}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    // Nobody calls `down`: the supervisor cleans up by itself.
    wait_until("the cluster is gone", || {
        let pids = all_pids()?;
        ensure!(members.is_disjoint(&pids), "{:?}", members.intersection(&pids));
        ensure!(cgroups.iter().all(|name| !cgroup_exists(name).unwrap_or(true)), "cgroup");
        ensure!(!dir.exists(), "{:?}", fs::read_dir(&dir)?.collect::<Vec<_>>());
        assert_eq!(host_traces()?, before);
        Ok(())
    });
    assert!(Cluster::down_in(&dir).unwrap().to_string().starts_with("nothing was up"));
}

#[test]
fn nothing_is_left_of_an_up_that_is_interrupted() {
    let before = host_traces().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for signal in ["INT", "TERM"] {
        let cluster = dir.path().join(signal);
        let mut up = Command::new(BINARY)
            .arg("--dir")
            .arg(&cluster)
            .args(["up", "--no-daemons", "--machines", "1"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the cluster is being made", || {
            ensure!(up.try_wait()?.is_none(), "it has ended");
            ensure!(cluster.join("cluster.json").exists(), "it is not written down");
            Ok(())
        });
        let killed = Command::new("kill").args(["-s", signal, &up.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(up.wait().unwrap().code(), None, "the signal has ended it");
        wait_until("the cluster is gone", || {
            ensure!(!cluster.exists(), "{:?}", fs::read_dir(&cluster)?.collect::<Vec<_>>());
            Ok(())
        });
    }
    assert_eq!(host_traces().unwrap(), before);
}

#[test]
fn nothing_is_left_of_an_up_that_fails() {
    let before = host_traces().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cluster = dir.path().join("cluster");
    // No links can be made, says this `ip`: by then the supervisor has a cgroup.
    let ip = dir.path().join("ip");
    fs::write(&ip, "#!/bin/sh\n[ \"$2\" != add ] || { echo no links here; exit 1; }\n").unwrap();
    let script = "chmod +x \"$1\" && mount --bind \"$1\" \"$(command -v ip)\" && shift && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&ip)
        .args([BINARY, "--dir"])
        .arg(&cluster)
        .args(["up", "--no-daemons", "--machines", "1"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("no links here"), "{stderr}");
    assert!(!cluster.exists(), "{:?}", fs::read_dir(&cluster).unwrap().collect::<Vec<_>>());
    assert_eq!(host_traces().unwrap(), before);
}

#[test]
fn root_that_may_not_make_namespaces_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    // As in a container.
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", BINARY, "--dir"])
        .arg(dir.path().join("cluster"))
        .args(["up", "--no-daemons", "--machines", "1"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for part in ["namespaces, which are refused here", "lacks CAP_SYS_ADMIN", "docker run --privileged"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn two_clusters_at_once() {
    let before = host_traces().unwrap();
    let (one, two) = (bare(1).up().unwrap(), bare(1).up().unwrap());
    let machine = two.machine("m1").unwrap();
    assert_eq!(machine.address(), one.machine("m1").unwrap().address());
    one.down().unwrap();
    assert_eq!(machine.exec(&["hostname"]).unwrap().ok().unwrap(), "m1\n");
    two.down().unwrap();
    assert_eq!(host_traces().unwrap(), before);
}

#[test]
fn a_failing_test_keeps_the_journals() {
    let test = "journal-keeper";
    let failing = thread::Builder::new().name(test.to_owned()).spawn(|| {
        let cluster = bare(1).up().unwrap();
        cluster.machine("m1").unwrap().exec(&["logger", "these are my last words"]).unwrap().ok().unwrap();
        panic!("as the test wants it");
    });
    failing.unwrap().join().unwrap_err();
    let dir = target_dir().join("cluster-journals").join(format!("{test}-{}", std::process::id()));
    let journal = fs::read_to_string(dir.join("m1.journal")).unwrap();
    assert!(journal.contains("these are my last words"), "{journal}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_command_line_does_it_all() {
    let before = host_traces().unwrap();
    let dir = std::env::temp_dir().join(format!("muster-cluster-cli-{}", std::process::id()));
    let call = |arguments: &[&str]| {
        let output = Command::new(BINARY).arg("--dir").arg(&dir).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let good = |arguments: &[&str]| {
        let (code, stdout, stderr) = call(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
        stdout
    };
    let bad = |arguments: &[&str], expected: &str| {
        let (code, _, stderr) = call(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    };
    bad(&["list"], "no cluster is up");
    assert!(good(&["down"]).starts_with("nothing was up"));
    bad(&["up", "--schedulers", "0"], "agents without a scheduler");
    bad(&["up", "--no-daemons", "--machines", "1", "--labels", "m1"], "expected MACHINE:KEY=VALUE");
    bad(&["up", "--no-daemons", "--machines", "1", "--labels", "m2:a=b"], "no such worker");
    good(&["up", "--no-daemons", "--machines", "1", "--schedulers", "1"]);
    bad(&["up", "--no-daemons"], "is up in");
    let list = good(&["list"]);
    let rows: Vec<Vec<_>> = list.lines().map(|line| line.split_whitespace().take(5).collect()).collect();
    assert_eq!(rows[1], ["s1", "scheduler", "198.18.0.11", "on", "ok"]);
    assert_eq!(rows[2], ["m1", "worker", "198.18.0.101", "on", "ok"]);
    assert_eq!(good(&["exec", "m1", "hostname"]), "m1\n");
    assert_eq!(call(&["exec", "m1", "bash", "-c", "exit 42"]).0, Some(42));
    assert!(good(&["run", "ip", "-o", "link"]).contains("muster0"));
    assert!(good(&["logs", "m1", "dbus.service"]).contains("D-Bus System Message Bus"));
    bad(&["kill", "m1", "m7"], "no machine m7");
    bad(&["lose", "m1", "s1", "m7"], "no machine m7");
    bad(&["lose", "m1", "m1"], "goes over no network");
    good(&["lose", "m1", "s1"]);
    good(&["heal", "s1"]);
    bad(&["impair", "m1", "--delay", "5"], "only virtual machines");
    assert_eq!(call(&["impair", "m1"]).0, Some(2));
    bad(&["clock", "m1", "-3600"], "its clock is the host's");
    bad(&["starve", "m1", "--unit", "dbus.service"], "its memory is the host's");
    for verb in ["pause", "resume", "save", "restore"] {
        bad(&[verb, "m1"], "its clocks are the host's");
    }
    good(&["hang", "m1"]);
    good(&["unhang", "m1", "s1"]);
    bad(&["fill", "m1", "var"], "not an absolute path");
    good(&["fill", "m1", "/run"]);
    good(&["clear", "m1", "s1"]);
    good(&["freeze", "m1"]);
    good(&["cut", "m1"]);
    assert!(good(&["list"]).contains("frozen  cut"));
    good(&["thaw", "m1"]);
    good(&["heal", "m1"]);
    good(&["reboot", "m1"]);
    good(&["kill", "m1", "s1"]);
    assert!(good(&["logs", "m1"]).contains("systemd"));
    good(&["boot", "m1", "s1"]);
    assert!(good(&["down"]).contains("is gone (s1, m1)"));
    assert!(good(&["down"]).starts_with("nothing was up"));
    assert_eq!(host_traces().unwrap(), before);

    let output = Command::new(BINARY)
        .arg("--dir")
        .arg(&dir)
        .arg("up")
        .env("MUSTER_BIN_DIR", "/nowhere")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("`make build`") && stderr.contains("/nowhere"), "{stderr}");
    assert!(!dir.exists());
}
