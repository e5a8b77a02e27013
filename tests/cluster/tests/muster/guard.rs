//! Exclusive units and the end of their machine's lease: whoever is dead or frozen by then, nothing of them is left when
//! their time to stop and a second have passed.

use anyhow::{Result, ensure};
use muster_cluster::{Cluster, Machine};

use super::support::{LIMIT, SLEEP, World, main_pid, property};

const AGENT: &str = "muster-agent.service";
const EXCLUSIVE: &str = "[X-Muster]\nExclusive=yes\nExclusiveStopSec=3\n";

/// Says everything of the guard's time: uptime and the end of the lease, in hundredths of a second.
const CLOCK: &str = r"
    now() { read -r up _ </proc/uptime; now=${up%.*}${up#*.}; }
    end() { read -r end </run/muster/guard/end; }
";
/// Prints the processes of exclusive units.
const PROCESSES: &str = r"
    find /sys/fs/cgroup -path '*/muster-exclusive.slice/*' -name cgroup.procs -exec grep -H . {} + || true
";

/// Has the guard's process say that it has failed.
const TRIGGER: &str = "NOTIFY_SOCKET=/run/systemd/notify systemd-notify --pid=GUARD WATCHDOG=trigger";

/// Services that do not want to end, by name.
const STUBBORN: [(&str, &str); 9] = [
    ("term", "Type=exec\nRestart=always\nExecStart=/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'\n"),
    (
        "none",
        "Type=exec\nKillMode=none\nSendSIGKILL=no\nTimeoutStopSec=infinity\nSlice=system.slice\n\
         ExecStart=/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'\n",
    ),
    (
        "extends",
        "Type=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'trap \"\" TERM; systemd-notify --ready; \
         while :; do systemd-notify EXTEND_TIMEOUT_USEC=9000000; sleep 0.3; done'\n",
    ),
    ("stop", "Type=exec\nExecStart=/bin/sleep infinity\nExecStop=-/bin/sleep 99\nExecStop=/bin/sleep 99\n"),
    (
        "post",
        "Type=exec\nExecStart=/bin/sleep infinity\nExecStopPost=-/bin/sleep 99\nExecStopPost=-/bin/sleep 99\n\
         ExecStopPost=/bin/sleep 99\n",
    ),
    ("activating", "Type=oneshot\nExecStart=/bin/sleep infinity\n"),
    ("pre", "Type=exec\nTimeoutStartSec=infinity\nExecStartPre=/bin/sleep infinity\nExecStart=/bin/true\n"),
    ("restart", "Type=exec\nRestart=always\nRestartSec=500ms\nExecStart=/bin/false\n"),
    ("fork", "Type=exec\nExecStart=/bin/sh -c 'trap \"\" TERM; setsid sleep 1000 & exec sleep 1000'\n"),
];

fn sh(machine: &Machine<'_>, script: &str) -> Result<String> {
    machine.exec(&["sh", "-ec", script])?.ok()
}

/// Units that something else starts, each by what is exclusive as well: a socket, a timer, a path.
const ACTIVATED: [(&str, &str); 3] = [
    ("socket", "[Socket]\nListenStream=127.0.0.1:9000\n"),
    ("timer", "[Timer]\nOnActiveSec=1s\nOnUnitInactiveSec=1s\n"),
    ("path", "[Path]\nPathExists=/run/path\n"),
];

/// Units of the machine's own that start exclusive ones. They are bound to nothing.
const OWN: [(&str, &str); 2] = [
    ("own.socket", "[Socket]\nListenStream=127.0.0.1:9001\nService=connected.service\n"),
    ("own.timer", "[Timer]\nOnCalendar=*:*:*\nAccuracySec=10ms\nUnit=clocked.service\n"),
];

/// Starts all of them.
fn start_stubborn(world: &World, machine: &Machine<'_>) -> Result<()> {
    let mut arguments = vec!["start".to_owned(), "--no-block".to_owned()];
    for (name, body) in STUBBORN {
        let content = format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\n{body}{EXCLUSIVE}");
        arguments.push(world.file(&format!("{name}.service"), &content)?);
    }
    let activated = format!("[Unit]\nStartLimitIntervalSec=0\n{SLEEP}{EXCLUSIVE}");
    let mut load = vec!["load".to_owned()];
    for name in ["socket", "timer", "path", "connected", "clocked"] {
        load.push(world.file(&format!("{name}.service"), &activated)?);
    }
    for (kind, body) in ACTIVATED {
        arguments.push(world.file(&format!("{kind}.{kind}"), &format!("{body}{EXCLUSIVE}"))?);
    }
    sh(machine, "touch /run/path")?;
    for arguments in [load, arguments] {
        world.ctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    for (unit, content) in OWN {
        machine.write_file(&format!("/etc/systemd/system/{unit}"), content.as_bytes())?;
    }
    all_run(world, machine)
}

/// Waits until all of them run that are to run.
fn all_run(world: &World, machine: &Machine<'_>) -> Result<()> {
    let started = ["term", "none", "extends", "stop", "post", "activating", "pre", "fork"];
    let activated = ["socket", "timer", "path", "connected", "clocked"];
    world.cluster.wait_for("all exclusive units to run", LIMIT, || {
        let processes = sh(machine, PROCESSES)?;
        let runs = |unit: &str| processes.contains(&format!("muster-exclusive-3.slice/{unit}.service"));
        if !runs("socket") {
            sh(machine, &connect(9000))?;
        }
        if !runs("connected") {
            // systemd has given it up for the many starts that it asked for in vain.
            sh(machine, &format!("systemctl start own.socket; {}", connect(9001)))?;
        }
        sh(machine, "systemctl start own.timer")?;
        for unit in started.iter().chain(&activated) {
            ensure!(runs(unit), "{unit} does not: {processes}");
        }
        Ok(Some(()))
    })
}

/// The service never takes the connection: systemd starts it for that whenever it has stopped.
fn connect(port: u16) -> String {
    format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'")
}

/// Waits for the moment when nothing may be left of exclusive units, and sees whether it is so.
fn nothing_is_left_in_time(machine: &Machine<'_>) -> Result<()> {
    let wait = format!(
        "{CLOCK} end; last=$end; now; while [ $now -lt $((end + 400)) ]; do sleep 0.02; end; now; done; \
         [ $end = $last ] || echo renewed; {PROCESSES}"
    );
    let left = sh(machine, &wait)?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// Nobody can start one of them, in whatever way.
fn nothing_starts(machine: &Machine<'_>) -> Result<()> {
    for unit in ["term.service", "timer.timer", "socket.socket", "path.path", "timer.service"] {
        let started = machine.exec(&["systemctl", "start", unit])?;
        ensure!(!started.success(), "{unit} was started");
    }
    let refused = machine.exec(&["sh", "-c", &connect(9000)])?;
    ensure!(!refused.success(), "the exclusive socket listens still");
    // The timers would have started something each second, and so would `Restart=`. A socket is refused while its service is
    // still about to fail.
    let states = sh(
        machine,
        &format!(
            "for _ in $(seq 50); do systemctl restart own.socket own.timer && break; sleep 0.1; done; {}
             {CLOCK} now; until=$((now + 250)); while [ $now -lt $until ]; do {PROCESSES} sleep 0.05; now; done",
            connect(9001)
        ),
    )?;
    ensure!(states.is_empty(), "{states}");
    for unit in ["connected.service", "clocked.service"] {
        let tried = sh(machine, &format!("journalctl --sync; journalctl -b -o cat -n 1 UNIT={unit}"))?;
        ensure!(tried.contains("start failed with result 'dependency'"), "{unit}: {tried}");
    }
    Ok(())
}

#[test]
fn exclusive_units_end_with_the_lease_whatever_they_do_and_whether_the_agent_lives() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    start_stubborn(&world, &machine)?;
    assert_eq!(property(&machine, "none.service", "Slice")?, "muster-exclusive-3.slice");

    // The agent is killed, and does not come back before we say so.
    sh(
        &machine,
        "mkdir -p /run/systemd/system/muster-agent.service.d
         printf '[Service]\nRestart=no\n' >/run/systemd/system/muster-agent.service.d/test.conf
         systemctl daemon-reload
         systemctl kill --signal KILL muster-agent",
    )?;
    nothing_is_left_in_time(&machine)?;
    nothing_starts(&machine)?;
    sh(&machine, "systemctl start muster-agent")?;
    all_run(&world, &machine)?;

    // It is frozen.
    let agent = main_pid(&machine, AGENT)?.parse()?;
    machine.stop_process(agent)?;
    nothing_is_left_in_time(&machine)?;
    nothing_starts(&machine)?;
    machine.continue_process(agent)?;
    all_run(&world, &machine)?;

    // It lives, and hears nothing any more.
    machine.cut()?;
    nothing_is_left_in_time(&machine)?;
    nothing_starts(&machine)?;
    machine.heal()?;
    all_run(&world, &machine)?;

    // PID 1 hangs, and the agent lives.
    machine.stop_pid1()?;
    machine.cut()?;
    let outcome = nothing_is_left_in_time(&machine);
    machine.continue_pid1()?;
    machine.heal()?;
    outcome?;
    all_run(&world, &machine)?;

    // PID 1 hangs, and the agent is dead.
    sh(&machine, "systemctl kill --signal KILL muster-agent")?;
    machine.stop_pid1()?;
    let outcome = nothing_is_left_in_time(&machine);
    machine.continue_pid1()?;
    outcome?;
    nothing_starts(&machine)?;
    sh(&machine, "systemctl start muster-agent")?;
    all_run(&world, &machine)
}

#[test]
fn a_guard_whose_process_hangs_or_dies_ends_exclusive_units_too() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    world.start("a.service", &format!("{SLEEP}{EXCLUSIVE}"))?;
    let mut before = main_pid(&machine, "a.service")?;
    for way in [
        // The watchdog must do it where the process hangs: it has the time of the last lease.
        "kill -STOP GUARD",
        "kill -KILL GUARD",
        // What the agent tells PID 1 where the lease was over before it had told it of the lease.
        TRIGGER,
    ] {
        let guard = main_pid(&machine, "muster-lease.service")?;
        let agent = main_pid(&machine, AGENT)?;
        sh(&machine, &format!("kill -STOP {agent}; {}", way.replace("GUARD", &guard)))?;
        nothing_is_left_in_time(&machine)?;
        sh(&machine, &format!("kill -CONT {agent}"))?;
        world.wait_active_state(&machine, "a.service", "active")?;
        let after = main_pid(&machine, "a.service")?;
        assert_ne!(after, before, "{way}");
        before = after;
    }
    Ok(())
}

#[test]
fn a_guard_that_is_started_while_the_fence_runs_waits_for_its_end() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    // The fence takes so long.
    world.start("a.service", &format!("{SLEEP}[X-Muster]\nExclusive=yes\nExclusiveStopSec=300\n"))?;
    let guard = main_pid(&machine, "muster-lease.service")?;
    let agent = main_pid(&machine, AGENT)?;
    sh(&machine, &format!("kill -STOP {agent}; {}", TRIGGER.replace("GUARD", &guard)))?;
    world.wait_active_state(&machine, "muster-fence.service", "activating")?;
    world.wait_active_state(&machine, "a.service", "inactive")?;
    sh(&machine, "systemctl start --no-block muster-lease")?;
    let jobs = sh(&machine, "systemctl list-jobs --no-legend")?;
    let job = |unit: &str| jobs.lines().find(|line| line.contains(unit)).unwrap_or_default();
    ensure!(job("muster-fence.service").trim_end().ends_with("running"), "{jobs}");
    ensure!(job("muster-lease.service").trim_end().ends_with("waiting"), "{jobs}");
    assert_eq!(property(&machine, "muster-lease.service", "ActiveState")?, "failed");

    // Somebody ends the fence, and the lease lasts: the guard runs again before the agent knows that it had ended.
    sh(&machine, &format!("{CLOCK} now; echo $((now + 30000)) >/run/muster/guard/end"))?;
    sh(&machine, "systemctl stop muster-fence; systemctl start muster-lease")?;
    sh(&machine, &format!("kill -CONT {agent}"))?;
    world.wait_active_state(&machine, "a.service", "active")?;
    assert_eq!(property(&machine, "muster-fence.service", "ActiveState")?, "inactive");
    Ok(())
}

/// Waits until the guard lasts longer than it was to last by now.
fn wait_for_a_later_lease(world: &World, machine: &Machine<'_>) -> Result<()> {
    let end = sh(machine, &format!("{CLOCK} end; echo $end"))?;
    world.cluster.wait_for("a later lease", LIMIT, || {
        let out = sh(machine, &format!("{CLOCK} end; now; [ $now -lt {0} ] || echo $end", end.trim()))?;
        ensure!(!out.trim().is_empty() && out != end, "{out} after {end}");
        Ok(Some(()))
    })
}

#[test]
fn an_agent_that_is_back_in_time_takes_the_guard_up() -> Result<()> {
    let world = World::up(Cluster::builder().machines(1))?;
    let machine = world.cluster.machine("m1")?;
    world.start("a.service", &format!("{SLEEP}{EXCLUSIVE}"))?;
    let before = world.invocations()?;
    let guard = main_pid(&machine, "muster-lease.service")?;
    for way in [
        "systemctl restart muster-agent",
        "systemctl kill --signal KILL muster-agent",
        "systemctl daemon-reload",
    ] {
        sh(&machine, way)?;
        world.wait_machines_up(1)?;
        wait_for_a_later_lease(&world, &machine)?;
        assert_eq!(world.invocations()?, before, "{way}: nothing was stopped");
        assert_eq!(main_pid(&machine, "muster-lease.service")?, guard, "{way}");
    }
    // It goes with the last unit that needs it.
    world.ctl(&["destroy", "a.service"])?;
    world.wait_active_state(&machine, "muster-lease.service", "inactive")?;
    assert_eq!(property(&machine, "muster-fence.service", "ActiveState")?, "inactive");
    Ok(())
}

#[test]
fn a_full_run_directory_ends_no_exclusive_unit() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    world.start("a.service", &format!("{SLEEP}{EXCLUSIVE}"))?;
    let before = world.invocations()?;
    // dd ends with an error when it is full, as it should.
    sh(&machine, "mount -o remount,size=16m /run; ! dd if=/dev/zero of=/run/full bs=4k")?;
    wait_for_a_later_lease(&world, &machine)?;
    sh(&machine, "! echo full >/run/probe")?;
    assert_eq!(world.invocations()?, before);
    Ok(())
}

#[test]
fn an_agent_takes_the_guard_up_while_pid_1_hangs() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    world.start("a.service", &format!("{SLEEP}{EXCLUSIVE}"))?;
    let before = world.invocations()?;
    let guard = main_pid(&machine, "muster-lease.service")?;
    let agent = main_pid(&machine, AGENT)?;
    machine.stop_pid1()?;
    // PID 1 starts no other one now.
    let by_hand = sh(
        &machine,
        &format!("kill -KILL {agent}; setsid /usr/bin/muster-agent </dev/null >/run/by-hand 2>&1 & echo $!"),
    );
    let end = by_hand.and_then(|by_hand| Ok((by_hand, sh(&machine, &format!("{CLOCK} end; echo $end"))?)));
    let outcome = end.and_then(|(by_hand, end)| {
        let outcome = world.cluster.wait_for("a lease of the new agent's", LIMIT, || {
            let out = sh(&machine, &format!("{CLOCK} end; now; [ $now -lt {0} ] || echo $end", end.trim()))?;
            ensure!(!out.trim().is_empty() && out != end, "{out} after {end}");
            Ok(Some(()))
        });
        sh(&machine, &format!("kill -KILL {by_hand}"))?;
        outcome
    });
    machine.continue_pid1()?;
    outcome?;
    world.home("a.service")?;
    assert_eq!(world.invocations()?, before, "nothing was stopped");
    assert_eq!(main_pid(&machine, "muster-lease.service")?, guard);
    Ok(())
}

#[test]
fn a_guard_whose_clock_is_not_the_kernels_is_not_started_and_that_is_said() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    // As lxcfs does it.
    sh(&machine, "echo '12.00 9.00' >/run/uptime; mount --bind /run/uptime /proc/uptime")?;
    let file = world.file("a.service", &format!("{SLEEP}{EXCLUSIVE}"))?;
    world.ctl(&["start", "--no-block", &file])?;
    world.cluster.wait_for("the reason", LIMIT, || {
        let status = world.try_ctl(&["status", "a.service"])?.stdout;
        ensure!(status.contains("guard: /proc/uptime differs from CLOCK_BOOTTIME by"), "{status}");
        Ok(Some(()))
    })?;
    sh(&machine, "umount /proc/uptime")?;
    world.wait_active_state(&machine, "a.service", "active")
}

#[test]
fn exclusive_units_stop_before_an_orderly_suspend_and_start_after_it() -> Result<()> {
    let world = World::of(1)?;
    let machine = world.cluster.machine("m1")?;
    world.start("a.service", &format!("{SLEEP}{EXCLUSIVE}"))?;
    let before = main_pid(&machine, "a.service")?;
    // In the place of systemd-suspend.service, which containers do not have: it looks around for a while.
    let nap = format!(
        "{CLOCK} now; until=$((now + 250)); while [ $now -lt $until ]; do {PROCESSES} sleep 0.05; now; done"
    );
    machine.write_file("/run/nap", nap.as_bytes())?;
    machine.write_file(
        "/run/systemd/system/nap.service",
        b"[Unit]\nRequires=sleep.target\nAfter=sleep.target\n[Service]\nType=oneshot\n\
          ExecStart=/bin/sh -e /run/nap\nStandardOutput=file:/run/seen\n",
    )?;
    // In the way that logind does it.
    sh(&machine, "systemctl start --job-mode=replace-irreversibly nap.service")?;
    assert_eq!(sh(&machine, "cat /run/seen")?, "", "nothing of them runs");
    world.wait_active_state(&machine, "a.service", "active")?;
    assert_ne!(main_pid(&machine, "a.service")?, before);
    Ok(())
}
