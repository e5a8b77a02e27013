//! Units that machines run under plain systemd: taken over as they run, and handed back.

use anyhow::{Result, ensure};
use muster_cluster::Machine;

use super::support::{LIMIT, World, main_pid, property};

const WEB: &str = "[Unit]\nDescription=The web\n[Service]\nExecStart=/usr/bin/sleep infinity\nEnvironment=FROM=file\n\
                   [Install]\nWantedBy=multi-user.target\n";
const DROP_IN: &str = "[Service]\nEnvironment=FROM=drop-in\nNice=3\n";
const ETC: &str = "/etc/systemd/system";

/// What shows that nothing was restarted.
fn start_of(machine: &Machine<'_>, unit: &str) -> Result<(String, String)> {
    Ok((main_pid(machine, unit)?, property(machine, unit, "InvocationID")?))
}

fn sh(machine: &Machine<'_>, script: &str) -> Result<String> {
    machine.exec(&["sh", "-ec", script])?.ok()
}

/// All that the machine has of the unit, with what the files say.
fn own_files(machine: &Machine<'_>, unit: &str) -> Result<String> {
    let find = format!(
        "find {ETC} /usr/local/lib/systemd/system \\( -name {unit} -o -path '*/{unit}.d/*' \\) -printf '%p %y %m %u %l\\n' \
         2>/dev/null | sort; cat {ETC}/{unit} {ETC}/{unit}.d/* 2>/dev/null || true"
    );
    sh(machine, &find)
}

/// Has the machine run a unit of its own: enabled, and with a drop-in.
fn run_own(machine: &Machine<'_>, unit: &str, file: &str) -> Result<()> {
    machine.write_file(&format!("{ETC}/{unit}"), file.as_bytes())?;
    sh(machine, &format!("mkdir -p {ETC}/{unit}.d"))?;
    machine.write_file(&format!("{ETC}/{unit}.d/10-nice.conf"), DROP_IN.as_bytes())?;
    sh(machine, &format!("systemctl daemon-reload; systemctl enable --now {unit}"))?;
    Ok(())
}

#[test]
fn a_unit_is_adopted_as_it_runs_moves_as_any_other_and_another_is_handed_back() -> Result<()> {
    let world = World::of(2)?;
    let machine = world.cluster.machine("m2")?;
    for unit in ["web.service", "db.service"] {
        run_own(&machine, unit, WEB)?;
    }
    let before = [start_of(&machine, "web.service")?, start_of(&machine, "db.service")?];
    let owned = own_files(&machine, "db.service")?;
    let said = world.ctl(&["adopt", machine.machine_id(), "web", "db.service"])?;
    ensure!(said.contains("Unit web.service adopted on"), "{said}");
    let now = || -> Result<_> { Ok([start_of(&machine, "web.service")?, start_of(&machine, "db.service")?]) };
    assert_eq!(now()?, before, "nothing was restarted");
    // What the drop-in says counts, from the cluster's file.
    let file = world.ctl(&["cat", "web.service"])?;
    ensure!(file.starts_with(WEB) && file.contains("Nice=3"), "{file}");
    assert_eq!(property(&machine, "web.service", "Nice")?, "3");
    ensure!(property(&machine, "web.service", "FragmentPath")?.starts_with("/run/"));
    assert_eq!(own_files(&machine, "web.service")?.trim(), "", "the machine's own are moved aside");
    let explained = world.ctl(&["explain", "web.service"])?;
    ensure!(explained.contains("was adopted on machine"), "{explained}");
    // Again it changes nothing.
    world.ctl(&["adopt", machine.machine_id(), "web", "db"])?;
    assert_eq!(now()?, before);

    let said = world.ctl(&["release", "db.service"])?;
    ensure!(said.contains("Released db.service"), "{said}");
    assert_eq!(now()?, before, "it runs on");
    assert_eq!(own_files(&machine, "db.service")?, owned, "all is as it was");
    assert_eq!(sh(&machine, "systemctl is-enabled db.service")?.trim(), "enabled");
    assert_eq!(property(&machine, "db.service", "FragmentPath")?, format!("{ETC}/db.service"));
    assert_eq!(property(&machine, "db.service", "NeedDaemonReload")?, "no");
    ensure!(!world.ctl(&["list-unit-files"])?.contains("db.service"));

    // A reboot does not start what the cluster has moved since.
    machine.kill()?;
    let home = world.home_other_than("web.service", &["m2"])?;
    assert_eq!(property(&home, "web.service", "Nice")?, "3");
    machine.boot()?;
    world.wait_machines_up(2)?;
    world.wait_active_state(&machine, "db.service", "active")?;
    assert_eq!(property(&machine, "web.service", "ActiveState")?, "inactive");
    assert_eq!(world.home("web.service")?.name(), home.name());
    let refused = world.try_ctl(&["release", "web.service"])?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("was adopted from machine"), "{refused}");
    Ok(())
}

#[test]
fn an_exclusive_unit_is_adopted_once_it_is_bound_to_the_guard() -> Result<()> {
    let world = World::of(2)?;
    let machine = world.cluster.machine("m2")?;
    let file = format!("{WEB}[X-Muster]\nExclusive=yes\nExclusiveStopSec=3\n");
    run_own(&machine, "web.service", &file)?;
    let before = start_of(&machine, "web.service")?;
    world.ctl(&["adopt", "--timeout", "30", machine.machine_id(), "web"])?;
    assert_eq!(start_of(&machine, "web.service")?, before, "it was not restarted");
    assert_eq!(property(&machine, "web.service", "BindsTo")?, "muster-lease.service");
    // The fence finds its processes, too, which stay where they were started.
    let links = "readlink /run/muster/guard/adopted/web.service/*-3.slice";
    let group = property(&machine, "web.service", "ControlGroup")?;
    ensure!(sh(&machine, links)?.contains(&group), "{group}");
    // So it ends with the lease.
    machine.cut()?;
    world.home_other_than("web.service", &["m2"])?;
    let seen = property(&machine, "web.service", "ActiveState")?;
    ensure!(seen != "active", "it is {seen} there too");
    Ok(())
}

#[test]
fn an_agent_or_a_machine_that_dies_in_the_middle_loses_nothing() -> Result<()> {
    let world = World::of(2)?;
    let machine = world.cluster.machine("m2")?;
    run_own(&machine, "web.service", WEB)?;
    let owned = own_files(&machine, "web.service")?;
    let before = start_of(&machine, "web.service")?;
    // Killed at whatever moment: in the middle of each command, again and again.
    for turn in 0..6_u32 {
        let (command, verb): (Vec<&str>, _) = if turn % 2 == 0 {
            (vec!["adopt", "--no-block", machine.machine_id(), "web"], "adopt")
        } else {
            (vec!["release", "--no-block", "web"], "release")
        };
        world.cluster.wait_for("the agent to be connected again", LIMIT, || {
            world.ctl(&command)?;
            Ok(Some(()))
        })?;
        sh(&machine, "systemctl kill --kill-whom=main --signal=KILL muster-agent.service")?;
        assert_eq!(start_of(&machine, "web.service")?, before, "{verb}, turn {turn}");
        world.cluster.wait_for("it to be finished", LIMIT, || {
            let known = world.ctl(&["list-unit-files"])?.contains("web.service");
            let fragment = property(&machine, "web.service", "FragmentPath")?;
            let ours = fragment.starts_with("/run/");
            let explained = world.ctl(&["status", "web.service"]).unwrap_or_default();
            ensure!(
                known == (verb == "adopt") && ours == known && !explained.contains("is being adopted"),
                "{fragment}; {explained}"
            );
            Ok(Some(()))
        })?;
        assert_eq!(start_of(&machine, "web.service")?, before, "{verb}, turn {turn}");
    }
    assert_eq!(own_files(&machine, "web.service")?, owned);
    // The machine loses its power in the midst of it.
    world.cluster.wait_for("the agent to be connected again", LIMIT, || {
        world.ctl(&["adopt", "--no-block", machine.machine_id(), "web"])?;
        Ok(Some(()))
    })?;
    machine.kill()?;
    machine.boot()?;
    world.wait_machines_up(2)?;
    world.cluster.wait_for("it to run as the cluster's, alone", LIMIT, || {
        let explained = world.ctl(&["status", "web.service"])?;
        ensure!(explained.contains("active") && !explained.contains("is being adopted"), "{explained}");
        Ok(Some(()))
    })?;
    let home = world.home("web.service")?;
    assert_eq!(property(&home, "web.service", "Nice")?, "3");
    assert_eq!(own_files(&machine, "web.service")?.trim(), "");
    Ok(())
}

#[test]
fn what_cannot_be_adopted_says_why_and_stays_as_it_is() -> Result<()> {
    let world = World::of(2)?;
    let machine = world.cluster.machine("m2")?;
    let adopt = |unit: &str| world.try_ctl(&["adopt", machine.machine_id(), unit]);
    run_own(&machine, "web.service", WEB)?;
    let before = start_of(&machine, "web.service")?;
    sh(&machine, "systemd-run --unit transient.service sleep infinity")?;
    sh(
        &machine,
        &format!("cp {ETC}/web.service {ETC}/web@.service; cp {ETC}/web.service {ETC}/idle.service"),
    )?;
    sh(&machine, "systemctl daemon-reload")?;
    world.start("known.service", WEB)?;
    for (unit, why) in [
        ("nothing.service", "is not known to systemd there"),
        ("idle.service", "is inactive there, and only what runs is adopted"),
        ("transient.service", "it is transient"),
        ("web@1.service", "a template and its instances share a file"),
        ("known.service", "is a unit of the cluster already"),
    ] {
        let refused = adopt(unit)?;
        ensure!(refused.code == Some(1) && refused.stderr.contains(why), "{unit}: {refused}");
        ensure!(refused.stderr.contains("Nothing was changed"), "{unit}: {refused}");
    }
    let nobody = world.try_ctl(&["adopt", "ffffffff", "web"])?;
    ensure!(nobody.code == Some(1) && nobody.stderr.contains("no machine of this cluster"), "{nobody}");
    // What the machine would not take is refused as anywhere.
    world.ctl(&["cordon", machine.machine_id()])?;
    let refused = adopt("web.service")?;
    ensure!(refused.stderr.contains("would not take it"), "{refused}");
    world.ctl(&["uncordon", machine.machine_id()])?;
    // A file that changed is read by systemd first.
    sh(&machine, &format!("sleep 1.1; echo '# changed' >>{ETC}/web.service"))?;
    let refused = adopt("web.service")?;
    ensure!(refused.stderr.contains("run `systemctl daemon-reload` there first"), "{refused}");
    assert_eq!(start_of(&machine, "web.service")?, before);
    let kept = world.try_ctl(&["release", "known.service"])?;
    ensure!(kept.stderr.contains("was not adopted"), "{kept}");
    Ok(())
}
