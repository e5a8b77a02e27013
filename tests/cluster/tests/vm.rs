//! The harness itself on virtual machines: what it says it does to them, and that it leaves nothing behind. `make vm-tests`
//! runs it; emulated machines are slow.

mod disk;
mod traces;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use muster_cluster::{
    Backend, Builder, Cluster, Impairment, Machine, Output, Power, project_root, target_dir,
};
use traces::{LIMIT, Traces, all_pids, family, host_traces, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_muster-cluster");

fn bare(machines: usize) -> Builder {
    Cluster::builder().backend(Backend::Vm).machines(machines).no_daemons()
}

fn answer(machine: &Machine<'_>, command: &[&str]) -> Result<String> {
    machine.exec(command)?.ok()
}

/// Whether `to` answers when `from` asks.
fn reaches(from: &Machine<'_>, to: &Machine<'_>) -> Result<bool> {
    Ok(from.exec(&["ping", "-c", "1", "-W", "2", "-q", to.address()])?.success())
}

/// For how many seconds the machine's kernel has run.
fn uptime(machine: &Machine<'_>) -> Result<f64> {
    let text = answer(machine, &["cat", "/proc/uptime"])?;
    Ok(text.split_whitespace().next().context("uptime")?.parse()?)
}

/// By how many seconds its wall clock is ahead of the host's.
fn clock_ahead(machine: &Machine<'_>) -> Result<i64> {
    let there: i64 = answer(machine, &["date", "+%s"])?.trim().parse()?;
    Ok(there - i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}

/// What becomes of a command that does not end while this is done.
fn waiting_while(machine: &Machine<'_>, act: impl FnOnce()) -> Output {
    thread::scope(|scope| {
        let waiting = scope.spawn(|| machine.exec(&["sh", "-c", "touch /run/waits; sleep infinity"]));
        wait_until("the command runs", || machine.exec(&["ls", "/run/waits"])?.ok());
        act();
        waiting.join().unwrap().unwrap()
    })
}

#[test]
#[ignore = "run by make vm-tests"]
fn machines_run_a_kernel_of_their_own() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    assert_eq!(answer(&m1, &["systemctl", "is-system-running"]).unwrap(), "running\n");
    assert_eq!(answer(&m1, &["hostname"]).unwrap(), "m1\n");
    assert_eq!(answer(&m1, &["cat", "/etc/machine-id"]).unwrap().trim(), m1.machine_id());
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_ne!(m1.boot_id().unwrap(), host.trim());
    let controllers = answer(&m1, &["cat", "/sys/fs/cgroup/cgroup.controllers"]).unwrap();
    for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
        assert!(controllers.split_whitespace().any(|word| word == controller), "{controllers}");
    }
    // What no container can promise, for it may be the host's.
    answer(
        &m1,
        &["systemd-run", "--unit=eater", "-p", "MemoryMax=16M", "-p", "MemorySwapMax=0", "tail", "/dev/zero"],
    )
    .unwrap();
    let result = ["systemctl", "show", "-P", "Result", "eater"];
    cluster
        .wait_for("the unit that eats too much is killed", LIMIT, || {
            let seen = answer(&m1, &result)?;
            ensure!(seen == "oom-kill\n", "{seen}");
            Ok(Some(()))
        })
        .unwrap();
}

#[test]
#[ignore = "run by make vm-tests"]
fn commands_come_through() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    let output = m1.exec(&["sh", "-c", "echo out; echo err >&2; exit 42"]).unwrap();
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (Some(42), "out\n", "err\n"));
    assert_eq!(m1.exec(&["sh", "-c", "kill -KILL $$"]).unwrap().code, Some(137));
    assert_eq!(m1.exec(&["no-such-program"]).unwrap().code, Some(127));
    let long = "0123456789abcdef".repeat(50_000);
    let output = m1.exec_within(LIMIT, &["cat"], long.as_bytes()).unwrap();
    assert!(output.stdout == long && output.success(), "{} bytes came back", output.stdout.len());
    // It does not read its input, and says nothing; the others are not kept waiting.
    assert!(m1.exec_within(LIMIT, &["true"], long.as_bytes()).unwrap().success());

    // Each passes on what it hears from the next one: they all run at the same time.
    answer(&m1, &["bash", "-c", "mkfifo /tmp/{1..9}"]).unwrap();
    thread::scope(|scope| {
        for number in 1..=8 {
            let script = format!("read -r word </tmp/{}; echo $word >/tmp/{number}", number + 1);
            scope.spawn(move || m1.exec(&["bash", "-c", &script]).unwrap().ok().unwrap());
        }
        let last = scope.spawn(move || answer(&m1, &["cat", "/tmp/1"]));
        answer(&m1, &["sh", "-c", "echo passed on >/tmp/9"]).unwrap();
        assert_eq!(last.join().unwrap().unwrap(), "passed on\n");
    });

    let error = m1.exec_within(Duration::from_secs(1), &["sleep", "4711"], &[]).unwrap_err().to_string();
    assert!(error.contains("has not ended"), "{error}");
    cluster
        .wait_for("the command is gone", LIMIT, || {
            let found = m1.exec(&["pgrep", "-fx", "sleep 4711"])?.stdout;
            ensure!(found.is_empty(), "{found}");
            Ok(Some(()))
        })
        .unwrap();
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
    answer(machine, &[&["systemd-run", "--unit", name], &beat[..]].concat()).unwrap();
}

#[test]
#[ignore = "run by make vm-tests"]
fn the_witness_knows_what_runs() {
    let cluster = bare(2).up().unwrap();
    assert_eq!(cluster.witness().unwrap(), []);
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    // They share the port with each other.
    for (machine, name) in [(&m1, "one"), (&m2, "one"), (&m2, "two")] {
        start_beat(machine, name);
    }
    for (machine, name) in [(&m1, "one"), (&m2, "one"), (&m2, "two")] {
        wait_more_beats(&cluster, name, machine);
    }
    m1.kill().unwrap();
    let dead = beats(&cluster, "one", &m1).unwrap();
    wait_more_beats(&cluster, "one", &m2);
    assert_eq!(beats(&cluster, "one", &m1).unwrap(), dead, "it is off");
    // Who finds the port in use goes on when it is free again.
    let hog = "until exec 9>/run/muster-witness; do :; done; : >/run/taken; exec sleep infinity";
    answer(&m2, &["systemd-run", "--unit=hog", "bash", "-c", hog]).unwrap();
    cluster
        .wait_for("the port is in use", LIMIT, || Ok(m2.exec(&["ls", "/run/taken"])?.success().then_some(())))
        .unwrap();
    answer(&m2, &["systemctl", "stop", "hog"]).unwrap();
    wait_more_beats(&cluster, "one", &m2);
    wait_more_beats(&cluster, "two", &m2);
    m2.reboot().unwrap();
    start_beat(&m2, "two");
    wait_more_beats(&cluster, "two", &m2);
    let witness = cluster.witness().unwrap();
    assert!(witness.is_sorted_by_key(|beat| beat.at), "{witness:?}");
    assert!(witness.iter().all(|beat| beat.epoch == "-"), "{witness:?}");
}

#[test]
#[ignore = "run by make vm-tests"]
fn a_power_cut_loses_what_was_not_written() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    let before = m1.boot_id().unwrap();
    m1.write_file("/run/lost", b"lost").unwrap();
    answer(&m1, &["sh", "-c", "echo kept >/var/lib/kept; sync; echo 'not yet' >/var/lib/unwritten"]).unwrap();
    answer(&m1, &["logger", "these are my last words"]).unwrap();
    answer(&m1, &["journalctl", "--sync"]).unwrap();
    m1.kill().unwrap();
    assert_eq!(m1.power(), Power::Off);
    assert!(m1.exec(&["true"]).unwrap_err().to_string().contains("m1 is off"));
    assert!(m1.journal().unwrap().contains("these are my last words"));
    m1.write_file("/etc/while off/file", b"there").unwrap();
    m1.write_file("/var/lib/kept", b"changed").unwrap();

    m1.boot().unwrap();
    assert_ne!(m1.boot_id().unwrap(), before);
    assert_eq!(answer(&m1, &["cat", "/etc/while off/file"]).unwrap(), "there");
    assert_eq!(answer(&m1, &["cat", "/var/lib/kept"]).unwrap(), "changed");
    assert_eq!(answer(&m1, &["stat", "-c", "%a %U", "/var/lib/kept"]).unwrap(), "644 root\n");
    assert!(!m1.exec(&["ls", "/run/lost"]).unwrap().success());
    assert_eq!(answer(&m1, &["sh", "-c", "cat /var/lib/unwritten || :"]).unwrap(), "");
    assert!(m1.journal().unwrap().contains("these are my last words"));
}

#[test]
#[ignore = "run by make vm-tests"]
fn machines_reboot_and_switch_themselves_off() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    let before = m1.boot_id().unwrap();
    m1.cut().unwrap();
    answer(&m1, &["sh", "-c", "echo kept >/var/lib/kept"]).unwrap();
    m1.reboot().unwrap();
    assert_ne!(m1.boot_id().unwrap(), before);
    assert_eq!(answer(&m1, &["cat", "/var/lib/kept"]).unwrap(), "kept\n");
    assert_eq!(answer(&m1, &["cat", "/sys/class/net/eth0/carrier"]).unwrap(), "0\n", "it is still cut");

    m1.exec(&["systemctl", "poweroff"]).unwrap();
    cluster.wait_for("m1 is off", LIMIT, || Ok((m1.power() == Power::Off).then_some(()))).unwrap();
    assert!(m1.journal().unwrap().contains("Reached target poweroff.target"), "{}", m1.journal().unwrap());
    m1.boot().unwrap();
    assert_eq!(answer(&m1, &["cat", "/sys/class/net/eth0/carrier"]).unwrap(), "0\n", "it is still cut");
    // Whoever waits for a machine that loses its power is told so.
    let output = waiting_while(&m1, || m1.kill().unwrap());
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("lost its power"), "{output}");
}

#[test]
#[ignore = "run by make vm-tests"]
fn cables_are_cut_and_words_are_lost() {
    let cluster = bare(3).up().unwrap();
    let [m1, m2, m3] = ["m1", "m2", "m3"].map(|name| cluster.machine(name).unwrap());
    assert!(reaches(&m1, &m2).unwrap() && reaches(&m2, &m3).unwrap() && reaches(&m1, &m3).unwrap());
    m2.cut().unwrap();
    assert!(m2.is_cut());
    assert_eq!(answer(&m2, &["cat", "/sys/class/net/eth0/carrier"]).unwrap(), "0\n", "it sees that");
    assert!(!reaches(&m1, &m2).unwrap());
    assert!(reaches(&m1, &m3).unwrap());
    m2.heal().unwrap();
    cluster.wait_for("m2 is reached again", LIMIT, || Ok(reaches(&m1, &m2)?.then_some(()))).unwrap();

    // What m2 gets of m1, and m1 of m2, as their kernels count it.
    let heard = |machine: &Machine<'_>| -> Result<u64> {
        let script = "awk '/^Ip:/ && $3 ~ /[0-9]/ {print $4}' /proc/net/snmp";
        Ok(answer(machine, &["sh", "-c", script])?.trim().parse()?)
    };
    m1.lose(&m2).unwrap();
    assert_eq!(answer(&m1, &["cat", "/sys/class/net/eth0/carrier"]).unwrap(), "1\n", "nobody sees that");
    // They know each other's hardware address, or they would not get as far as this.
    for (machine, other) in [(&m1, &m2), (&m2, &m1)] {
        let neighbour = answer(machine, &["ip", "-br", "neigh", "show", other.address()]).unwrap();
        let address = neighbour.split_whitespace().nth(2).context(neighbour.clone()).unwrap();
        answer(
            machine,
            &[
                "ip",
                "neigh",
                "replace",
                other.address(),
                "lladdr",
                address,
                "dev",
                "eth0",
                "nud",
                "permanent",
            ],
        )
        .unwrap();
    }
    let (m1_heard, m2_heard) = (heard(&m1).unwrap(), heard(&m2).unwrap());
    assert!(!reaches(&m1, &m2).unwrap());
    assert_eq!(heard(&m2).unwrap(), m2_heard, "the question is lost");
    assert!(!reaches(&m2, &m1).unwrap());
    assert!(heard(&m1).unwrap() > m1_heard, "the question arrives, its answer is lost");
    assert!(reaches(&m1, &m3).unwrap() && reaches(&m3, &m2).unwrap());
    m2.heal().unwrap();
    assert!(reaches(&m1, &m2).unwrap());
}

#[test]
#[ignore = "run by make vm-tests"]
fn frames_are_delayed_and_lost_until_healed() {
    let cluster = bare(3).up().unwrap();
    let [m1, m2, m3] = ["m1", "m2", "m3"].map(|name| cluster.machine(name).unwrap());
    assert!(reaches(&m2, &m1).unwrap() && reaches(&m2, &m3).unwrap());
    // The fastest answer of some, in milliseconds.
    let fastest = |from: &Machine<'_>, to: &Machine<'_>| -> Result<f64> {
        let said = answer(from, &["ping", "-c", "5", "-i", "0.2", "-q", to.address()])?;
        let times = said.split_once("mdev = ").with_context(|| said.clone())?.1;
        Ok(times.split_once('/').context("no times")?.0.parse()?)
    };
    m1.impair(Impairment { delay_ms: 400, jitter_ms: 100, ..Impairment::default() }).unwrap();
    assert!(fastest(&m2, &m1).unwrap() >= 800.0, "there and back");
    assert!(fastest(&m1, &m3).unwrap() >= 800.0, "there and back");
    cluster
        .wait_for("others are not delayed", LIMIT, || Ok((fastest(&m2, &m3)? < 400.0).then_some(())))
        .unwrap();
    // It is the cable's, not the machine's.
    m1.reboot().unwrap();
    assert!(fastest(&m2, &m1).unwrap() >= 800.0, "there and back");

    m1.impair(Impairment { loss_percent: 100, ..Impairment::default() }).unwrap();
    assert!(!reaches(&m2, &m1).unwrap());
    assert!(reaches(&m2, &m3).unwrap());
    m1.heal().unwrap();
    cluster.wait_for("it is healed", LIMIT, || Ok((fastest(&m2, &m1)? < 400.0).then_some(()))).unwrap();
}

#[test]
#[ignore = "run by make vm-tests"]
fn a_full_disk_is_full_until_it_is_cleared() {
    disk::is_full_until_it_is_cleared(&bare(2).up().unwrap());
}

#[test]
#[ignore = "run by make vm-tests"]
fn a_frozen_machine_misses_time() {
    let cluster = bare(2).up().unwrap();
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    let (frozen_before, other_before) = (uptime(&m1).unwrap(), uptime(&m2).unwrap());
    m1.freeze().unwrap();
    assert_eq!(m1.power(), Power::Frozen);
    assert!(m1.exec(&["true"]).unwrap_err().to_string().contains("m1 is frozen"));
    assert!(!reaches(&m2, &m1).unwrap());
    // A cable that is cut meanwhile is found cut.
    m1.cut().unwrap();
    cluster.wait_for("time passes", LIMIT, || Ok((uptime(&m2)? > other_before + 3.0).then_some(()))).unwrap();
    m1.thaw().unwrap();
    assert_eq!(m1.power(), Power::On);
    assert_eq!(answer(&m1, &["cat", "/sys/class/net/eth0/carrier"]).unwrap(), "0\n");
    assert!(uptime(&m1).unwrap() > frozen_before + 3.0, "its clock has jumped on");
    assert!(clock_ahead(&m1).unwrap().abs() < 60);
    m1.heal().unwrap();
    cluster.wait_for("m1 is reached again", LIMIT, || Ok(reaches(&m2, &m1)?.then_some(()))).unwrap();
}

#[test]
#[ignore = "run by make vm-tests"]
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
#[ignore = "run by make vm-tests"]
fn wall_clocks_jump_until_the_next_boot() {
    let cluster = bare(2).up().unwrap();
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    let before = uptime(&m1).unwrap();
    // What the machines' own slowness makes of it is far less than a minute.
    let assert_ahead = |machine: &Machine<'_>, seconds: i64| {
        let ahead = clock_ahead(machine).unwrap();
        assert!((ahead - seconds).abs() < 60, "{ahead} s instead of {seconds}");
    };
    m1.jump_clock(3600).unwrap();
    assert_ahead(&m1, 3600);
    assert_ahead(&m2, 0);
    m1.jump_clock(-7200).unwrap();
    assert_ahead(&m1, -3600);
    let ran = uptime(&m1).unwrap() - before;
    assert!((0.0..3600.0).contains(&ran), "{ran}");
    let error = m1.jump_clock(i64::MIN).unwrap_err().to_string();
    assert!(error.contains("date"), "{error}");
    assert_ahead(&m1, -3600);
    m1.reboot().unwrap();
    assert_ahead(&m1, 0);
}

#[test]
#[ignore = "run by make vm-tests"]
fn the_kernel_kills_where_memory_is_short() {
    let cluster = bare(1).up().unwrap();
    let m1 = cluster.machine("m1").unwrap();
    let show = |unit: &str, property: &str| -> Result<String> {
        Ok(answer(&m1, &["systemctl", "show", "-P", property, unit])?.trim().to_owned())
    };
    let wait_result = |unit: &str| {
        cluster
            .wait_for("systemd knows", LIMIT, || Ok((show(unit, "Result")? == "oom-kill").then_some(())))
            .unwrap();
    };
    // Whom the kernel finds first: who has most.
    let glutton = "import time; food = b'x' * (64 << 20); print(len(food), flush=True); time.sleep(10000)";
    answer(&m1, &["systemd-run", "--unit=glutton", "python3", "-c", glutton]).unwrap();
    start_beat(&m1, "one");
    start_beat(&m1, "two");
    wait_more_beats(&cluster, "one", &m1);
    cluster
        .wait_for("the glutton has eaten", LIMIT, || {
            Ok(answer(&m1, &["journalctl", "-u", "glutton"])?.contains("67108864").then_some(()))
        })
        .unwrap();
    let said = m1.starve().unwrap();
    assert!(said.contains("(python3)"), "{said}");
    wait_result("glutton");
    wait_more_beats(&cluster, "one", &m1);

    let said = m1.starve_unit("one.service").unwrap();
    assert!(said.starts_with("Killed process") && said.contains("(beat)"), "{said}");
    wait_result("one.service");
    wait_more_beats(&cluster, "two", &m1);
    let error = m1.starve_unit("one.service").unwrap_err().to_string();
    assert!(error.contains("no process of one.service runs"), "{error}");
    // What is started anew has as much as before.
    let pid = show("dbus.service", "MainPID").unwrap();
    answer(
        &m1,
        &["systemd-run", "--unit=again", "-p", "Restart=always", "/usr/lib/muster-cluster/beat", "again"],
    )
    .unwrap();
    m1.starve_unit("again").unwrap();
    wait_more_beats(&cluster, "again", &m1);
    assert_eq!(
        answer(&m1, &["cat", "/sys/fs/cgroup/system.slice/again.service/memory.max"]).unwrap(),
        "max\n"
    );
    assert_eq!(show("dbus.service", "MainPID").unwrap(), pid);
}

/// Does `stop` and, after some seconds, `go_on` to `m1`: its clocks must have stood still meanwhile.
fn assert_misses_no_time(cluster: &Cluster, stop: impl FnOnce(), go_on: impl FnOnce()) {
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    let ahead = clock_ahead(&m1).unwrap();
    let began = Instant::now();
    let before = uptime(&m1).unwrap();
    stop();
    let stopped = Instant::now();
    let other = uptime(&m2).unwrap();
    cluster.wait_for("time passes", LIMIT, || Ok((uptime(&m2)? > other + 4.0).then_some(()))).unwrap();
    let stood = stopped.elapsed();
    go_on();
    let passed = uptime(&m1).unwrap() - before;
    let ran = began.elapsed().saturating_sub(stood).as_secs_f64();
    assert!(passed < ran + 0.5, "{passed} s passed for it, though it ran for {ran} s");
    assert!(clock_ahead(&m1).unwrap() < ahead - 2, "its wall clock is behind");
}

#[test]
#[ignore = "run by make vm-tests"]
fn a_paused_machine_misses_no_time() {
    let cluster = bare(2).up().unwrap();
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    m1.resume().unwrap();
    let stop = || {
        m1.pause().unwrap();
        m1.pause().unwrap();
        assert_eq!(m1.power(), Power::Paused);
        assert!(m1.exec(&["true"]).unwrap_err().to_string().contains("m1 is paused"));
        assert!(!reaches(&m2, &m1).unwrap());
        // Both at once: it stands still until both have ended.
        m1.freeze().unwrap();
        assert_eq!(m1.power(), Power::Frozen);
        assert!(m1.resume().unwrap_err().to_string().contains("m1 is frozen"));
        m1.thaw().unwrap();
        assert_eq!(m1.power(), Power::Paused);
        m1.cut().unwrap();
    };
    assert_misses_no_time(&cluster, stop, || m1.resume().unwrap());
    assert_eq!(m1.power(), Power::On);
    assert_eq!(answer(&m1, &["cat", "/sys/class/net/eth0/carrier"]).unwrap(), "0\n", "it was cut meanwhile");
    m1.heal().unwrap();
    cluster.wait_for("m1 is reached again", LIMIT, || Ok(reaches(&m2, &m1)?.then_some(()))).unwrap();
    // Power cuts work on paused machines.
    m1.pause().unwrap();
    m1.kill().unwrap();
    assert!(m1.pause().unwrap_err().to_string().contains("m1 is off"));
    m1.boot().unwrap();
    assert_eq!(m1.power(), Power::On);
}

#[test]
#[ignore = "run by make vm-tests"]
fn a_saved_machine_goes_on_where_it_was() {
    let cluster = bare(2).up().unwrap();
    let (m1, m2) = (cluster.machine("m1").unwrap(), cluster.machine("m2").unwrap());
    start_beat(&m1, "beat");
    wait_more_beats(&cluster, "beat", &m1);
    let boot = m1.boot_id().unwrap();
    let pid = answer(&m1, &["systemctl", "show", "-P", "MainPID", "beat"]).unwrap();
    let stop = || {
        // Whoever waits for it is told, and does not keep it from going on.
        let output = waiting_while(&m1, || m1.save().unwrap());
        assert!(output.stderr.contains("lost its power"), "{output}");
        assert_eq!(m1.power(), Power::Saved);
        for error in [m1.exec(&["true"]).map(drop), m1.boot(), m1.freeze(), m1.pause(), m1.save()] {
            assert!(error.unwrap_err().to_string().contains("m1 is saved"));
        }
        assert!(m1.journal().is_err());
        assert!(!reaches(&m2, &m1).unwrap());
        m1.cut().unwrap();
    };
    assert_misses_no_time(&cluster, stop, || m1.restore().unwrap());
    assert_eq!(m1.power(), Power::On);
    assert_eq!(m1.boot_id().unwrap(), boot);
    assert_eq!(answer(&m1, &["systemctl", "show", "-P", "MainPID", "beat"]).unwrap(), pid);
    wait_more_beats(&cluster, "beat", &m1);
    assert_eq!(answer(&m1, &["cat", "/sys/class/net/eth0/carrier"]).unwrap(), "0\n", "it was cut meanwhile");
    m1.heal().unwrap();
    cluster.wait_for("m1 is reached again", LIMIT, || Ok(reaches(&m2, &m1)?.then_some(()))).unwrap();
    assert!(m1.restore().unwrap_err().to_string().contains("m1 is on"));

    // A second time, paused before; and given up, but for its disk.
    answer(&m1, &["sh", "-c", "echo kept >/var/lib/kept; sync"]).unwrap();
    m1.pause().unwrap();
    m1.save().unwrap();
    m1.restore().unwrap();
    assert_eq!(answer(&m1, &["cat", "/var/lib/kept"]).unwrap(), "kept\n");
    m1.save().unwrap();
    m1.kill().unwrap();
    assert_eq!(m1.power(), Power::Off);
    m1.boot().unwrap();
    assert_ne!(m1.boot_id().unwrap(), boot);
    assert_eq!(answer(&m1, &["cat", "/var/lib/kept"]).unwrap(), "kept\n");
}

#[test]
#[ignore = "run by make vm-tests"]
fn down_leaves_nothing_in_whatever_state_the_machines_are() {
    let before = host_traces().unwrap();
    let cluster = bare(3).up().unwrap();
    let traces = Traces::of(&cluster, before).unwrap();
    cluster.machine("m1").unwrap().kill().unwrap();
    cluster.machine("m2").unwrap().freeze().unwrap();
    cluster.machine("m3").unwrap().cut().unwrap();
    cluster.down().unwrap();
    traces.assert_gone();
}

/// Has the script look for its image in a directory, with an `apt-get` that fetches nothing, so that none is made.
fn look_for_image(images: &Path) -> std::process::Output {
    let programs = images.join("programs");
    fs::create_dir_all(&programs).unwrap();
    let apt_get = programs.join("apt-get");
    fs::write(&apt_get, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&apt_get, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let script = project_root().join("tests/cluster/vm/image");
    Command::new(script).arg(images).env("PATH", path).output().unwrap()
}

#[test]
#[ignore = "run by make vm-tests"]
fn a_damaged_image_is_made_anew() {
    let made = Command::new(project_root().join("tests/cluster/vm/image"))
        .arg(target_dir().join("vm"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let made = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
    let images = tempfile::tempdir().unwrap();
    let image = images.path().join(made.file_name().unwrap());
    let copied = Command::new("cp").arg("-r").arg(&made).arg(&image).status().unwrap();
    assert!(copied.success());

    let output = look_for_image(images.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(Path::new(String::from_utf8(output.stdout).unwrap().trim()), image);

    let system = File::options().read(true).write(true).open(image.join("system.squashfs")).unwrap();
    let (mut byte, middle) = ([0], system.metadata().unwrap().len() / 2);
    system.read_exact_at(&mut byte, middle).unwrap();
    system.write_all_at(&[!byte[0]], middle).unwrap();
    let output = look_for_image(images.path());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("is damaged and made anew"), "{stderr}");
    // What it would be made of cannot be fetched here: rather none than a damaged one, and nothing half made.
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(!image.exists());
    let left: Vec<_> = fs::read_dir(images.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "lock" || name == "programs"), "{left:?}");
}

#[test]
#[ignore = "run by make vm-tests"]
fn nothing_is_left_of_a_run_that_is_interrupted() {
    let before = host_traces().unwrap();
    let dir = tempfile::tempdir().unwrap();
    // While the machines boot.
    let mut owner = Command::new(BINARY)
        .arg("--dir")
        .arg(dir.path().join("cluster"))
        .args(["up", "--backend", "vm", "--no-daemons", "--machines", "2"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let supervisor = wait_until("a machine has power", || {
        ensure!(owner.try_wait()?.is_none(), "it has ended");
        let state = fs::read_to_string(dir.path().join("cluster/cluster.json"))?;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        let pid = state["supervisor"]["init"]["pid"].as_i64().context("pid")?;
        let pid = i32::try_from(pid)?;
        ensure!(family(pid)?.len() >= 4, "no QEMU yet");
        Ok(pid)
    });
    let members = family(supervisor).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until("the cluster is gone", || {
        let pids = all_pids()?;
        ensure!(members.is_disjoint(&pids), "{:?}", members.intersection(&pids));
        let left: Vec<_> = fs::read_dir(dir.path())?.collect();
        ensure!(left.is_empty(), "{left:?}");
        assert_eq!(host_traces()?, before);
        Ok(())
    });
}
