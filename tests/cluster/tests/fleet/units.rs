//! Units on their way through their states, on one machine unless said otherwise.

use anyhow::{Context, Result, ensure};

use super::cluster::{HELLO, NONE, Shared, ctl, unit_files, wait_active, wait_rows};
use super::ssh::{Keys, Running, start_sshd};
use super::support::{LIMIT, World, property};

/// So many instances of `hello@.service`: their names, and the paths under which their template's file is found.
fn instances(world: &World, count: usize) -> Result<(Vec<String>, Vec<String>)> {
    let template = world.file("hello@.service", HELLO)?;
    let directory = template.strip_suffix("hello@.service").context("the name")?;
    let names: Vec<String> = (1..=count).map(|number| format!("hello@{number}.service")).collect();
    let paths = names.iter().map(|name| format!("{directory}{name}")).collect();
    Ok((names, paths))
}

/// fleet: `TestUnitRunnable`
#[test]
fn test_unit_runnable() -> Result<()> {
    let shared = Shared::of(1)?;
    shared.start("hello.service", HELLO)?;
    wait_active(&shared, &["hello.service"])?;
    Ok(())
}

/// fleet: `TestUnitSubmit`
#[test]
fn test_unit_submit() -> Result<()> {
    let shared = Shared::of(1)?;
    let (names, paths) = instances(&shared, 9)?;
    for _ in 0..2 {
        ctl(&shared, &["submit"], &paths)?;
        assert_eq!(unit_files(&shared)?, names);
        names.iter().try_for_each(|name| ctl(&shared, &["destroy"], &[name]).map(drop))?;
        assert_eq!(unit_files(&shared)?, NONE);
    }
    Ok(())
}

/// fleet: `TestUnitLoad`
#[test]
fn test_unit_load() -> Result<()> {
    let shared = Shared::of(1)?;
    let (names, paths) = instances(&shared, 6)?;
    for _ in 0..2 {
        ctl(&shared, &["load"], &paths)?;
        wait_rows(&shared, &names)?;
        names.iter().try_for_each(|name| ctl(&shared, &["unload"], &[name]).map(drop))?;
        wait_rows(&shared, &NONE)?;
    }
    Ok(())
}

/// fleet: `TestUnitStart`
#[test]
fn test_unit_start() -> Result<()> {
    let shared = Shared::of(1)?;
    let (names, paths) = instances(&shared, 3)?;
    for _ in 0..2 {
        ctl(&shared, &["start"], &paths)?;
        wait_active(&shared, &names)?;
        names.iter().try_for_each(|name| ctl(&shared, &["stop"], &[name]).map(drop))?;
        wait_active(&shared, &NONE)?;
    }
    Ok(())
}

/// fleet: `TestUnitRestart`, which did not look whether anything was restarted: nothing was
#[test]
fn test_unit_restart() -> Result<()> {
    let shared = Shared::of(1)?;
    let (names, paths) = instances(&shared, 3)?;
    ctl(&shared, &["start"], &paths)?;
    wait_active(&shared, &names)?;
    let before = shared.invocations()?;
    ctl(&shared, &["restart"], &names)?;
    wait_active(&shared, &names)?;
    let after = shared.invocations()?;
    ensure!(before.iter().all(|(unit, invocation)| after[unit] != *invocation), "{before:?} {after:?}");
    ctl(&shared, &["stop"], &names)?;
    wait_active(&shared, &NONE)?;
    ctl(&shared, &["restart"], &names)?;
    wait_active(&shared, &names)?;
    ctl(&shared, &["stop"], &names)?;
    wait_active(&shared, &NONE)?;
    Ok(())
}

/// Instances are made with this verb, changed with `--replace` one after the other, and undone.
fn replace(
    verb: &str,
    count: usize,
    undo: &str,
    all_there: impl Fn(&World, &[String]) -> Result<()>,
) -> Result<()> {
    let shared = Shared::of(1)?;
    let (names, paths) = instances(&shared, count)?;
    ctl(&shared, &[verb], &paths)?;
    all_there(&shared, &names)?;
    let changed = HELLO.replace("sleep 1", "sleep 2");
    for name in &names {
        assert_eq!(shared.ctl(&["cat", name])?, HELLO);
        let file = shared.file(name, &changed)?;
        shared.ctl(&[verb, "--replace", &file])?;
        all_there(&shared, &names)?;
        assert_eq!(shared.ctl(&["cat", name])?, changed);
    }
    ctl(&shared, &[undo], &names)?;
    all_there(&shared, &[])
}

/// fleet: `TestUnitSubmitReplace`
#[test]
fn test_unit_submit_replace() -> Result<()> {
    replace("submit", 9, "destroy", |world, names| {
        assert_eq!(unit_files(world)?, names);
        Ok(())
    })
}

/// fleet: `TestUnitLoadReplace`
#[test]
fn test_unit_load_replace() -> Result<()> {
    replace("load", 6, "unload", |world, names| wait_rows(world, names).map(drop))
}

/// fleet: `TestUnitStartReplace`
#[test]
fn test_unit_start_replace() -> Result<()> {
    replace("start", 3, "stop", |world, names| wait_active(world, names).map(drop))
}

/// fleet: `TestReplaceSerialization`, which had become too flaky there: the new version's `ExecStartPre=` runs after the
/// `ExecStopPost=` of the old one
#[test]
fn test_replace_serialization() -> Result<()> {
    let shared = Shared::of(1)?;
    let machine = shared.cluster.machine("m1")?;
    let version = |number: usize| {
        // It is slow to stop: what does not wait for that would be started before.
        format!(
            "[Service]\nExecStartPre=/bin/sh -c 'echo start {number} >>/run/replace-sync'\nExecStart=/bin/sleep infinity\n\
             ExecStopPost=/bin/sh -c 'sleep 2; echo stop {number} >>/run/replace-sync'\n"
        )
    };
    shared.start("replace-sync.service", &version(1))?;
    let second = shared.file("replace-sync.service", &version(2))?;
    shared.ctl(&["start", "--replace", &second])?;
    // Destroyed and made anew, without waiting in between.
    shared.ctl(&["destroy", "--no-block", "replace-sync.service"])?;
    shared.start("replace-sync.service", &version(3))?;
    wait_active(&shared, &["replace-sync.service"])?;
    let order = machine.exec(&["cat", "/run/replace-sync"])?.ok()?;
    assert_eq!(order, "start 1\nstop 1\nstart 2\nstop 2\nstart 3\n");
    Ok(())
}

/// fleet: `TestUnitSSHActions`
#[test]
fn test_unit_ssh_actions() -> Result<()> {
    let shared = Shared::of(1)?;
    shared.start("hello.service", HELLO)?;
    let home = shared.home("hello.service")?;
    let keys = Keys::new(&shared)?;
    start_sshd(&shared, &home, &keys.public)?;
    let known = shared.file("known_hosts", "")?;
    let words = ["--strict-host-key-checking=false", "hello", "echo", "foo"];
    let (code, out, errors) = Running::start(&mut keys.ssh(&shared, &known, &words)?)?.end()?;
    ensure!((code, &*out) == (Some(0), "foo"), "{code:?} {out} {errors}");
    home.exec(&["systemctl", "stop", "test-sshd"])?.ok()?;

    let status = shared.ctl(&["status", "hello.service"])?;
    ensure!(status.contains("Active: active"), "{status}");
    shared.cluster.wait_for("its journal", LIMIT, || {
        let journal = shared.ctl(&["journal", "--sudo", "hello.service"])?;
        ensure!(journal.contains("Hello, World!"), "{journal}");
        Ok(Some(()))
    })
}

/// fleet: `TestUnitCat`
///
/// That showed the file in a form of its own, without comments.
#[test]
fn test_unit_cat() -> Result<()> {
    let shared = Shared::of(1)?;
    let file = shared.file("hello.service", &format!("# As it is.\n{HELLO}\n"))?;
    shared.ctl(&["submit", &file])?;
    assert_eq!(shared.ctl(&["cat", "hello.service"])?, std::fs::read_to_string(&file)?);
    Ok(())
}

/// fleet: `TestUnitStatus`
#[test]
fn test_unit_status() -> Result<()> {
    let shared = Shared::of(1)?;
    let file = shared.file("hello.service", HELLO)?;
    shared.ctl(&["load", &file])?;
    let status = shared.try_ctl(&["status", "hello.service"])?;
    // As systemctl says of a unit that is not active.
    ensure!(status.code == Some(3) && status.stdout.contains("Loaded: loaded"), "{status}");
    Ok(())
}

/// fleet: `TestListUnitFilesOrder`
#[test]
fn test_list_unit_files_order() -> Result<()> {
    let shared = Shared::of(1)?;
    let names: Vec<String> = (1..=20).map(|number| format!("hello@{number:02}.service")).collect();
    // Not in the order in which they are to be shown.
    for name in names.iter().rev() {
        let file = shared.file(name, HELLO)?;
        shared.ctl(&["submit", &file])?;
    }
    assert_eq!(unit_files(&shared)?, names);
    Ok(())
}

/// fleet: `TestSystemdUnitFlow`
#[test]
fn test_systemd_unit_flow() -> Result<()> {
    const FIELDS: &str = "unit,load,active,sub,hash";
    let shared = Shared::of(1)?;
    let machine = shared.cluster.machine("m1")?;
    let name = "hello-4f1d.service";
    let files = || machine.exec(&["ls", "/run/muster/units"])?.ok();
    let row = || -> Result<Vec<String>> {
        let row = shared.ctl(&["list-units", "--no-legend", "--full", "--fields", FIELDS])?;
        Ok(row.split_whitespace().map(str::to_owned).collect())
    };
    let becomes = |active: &str, sub: &str, hash: &str| {
        shared.cluster.wait_for(&format!("{name} {active} {sub}"), LIMIT, || {
            let row = row()?;
            ensure!(row == [name, "loaded", active, sub, hash], "{row:?}");
            Ok(Some(()))
        })
    };
    let before = files()?;
    ensure!(!before.contains(name), "{before}");

    let file = shared.file(name, HELLO)?;
    shared.ctl(&["load", &file])?;
    let hash = shared.ctl(&["list-unit-files", "--no-legend", "--full", "--fields", "hash"])?;
    ensure!(files()?.lines().any(|line| line == name), "{}", files()?);
    becomes("inactive", "dead", hash.trim())?;
    shared.ctl(&["start", name])?;
    becomes("active", "running", hash.trim())?;
    shared.ctl(&["stop", name])?;
    becomes("inactive", "dead", hash.trim())?;
    shared.ctl(&["unload", name])?;
    assert_eq!((row()?.len(), files()?), (0, before));
    assert_eq!(property(&machine, name, "LoadState")?, "not-found");
    Ok(())
}

/// fleet: `TestInstallUnit`
#[test]
fn test_install_unit() -> Result<()> {
    let shared = Shared::of(2)?;
    let discovery = "[Unit]\nBindsTo=hello.service\nAfter=hello.service\n\n[Service]\nExecStart=/usr/bin/sleep infinity\n\n\
                     [Install]\nWantedBy=hello.service\n\n[X-Fleet]\nMachineOf=hello.service\n";
    let files = [shared.file("hello.service", HELLO)?, shared.file("discovery.service", discovery)?];
    let both = ["discovery.service", "hello.service"];
    ctl(&shared, &["load"], &files)?;
    wait_rows(&shared, &both)?;
    wait_active(&shared, &NONE)?;
    shared.ctl(&["start", "hello.service"])?;
    let homes = wait_active(&shared, &both)?;
    assert_eq!(homes[both[0]], homes[both[1]]);
    shared.ctl(&["stop", "hello.service"])?;
    wait_active(&shared, &NONE)?;
    let rows = wait_rows(&shared, &both)?;
    ensure!(rows.iter().all(|row| row.active.as_deref() == Some("inactive")), "{rows:#?}");
    let files = shared.ctl(&["list-unit-files", "--no-legend", "--fields", "unit,dstate"])?;
    ensure!(files.lines().all(|line| line.ends_with("loaded")), "{files}");
    Ok(())
}
