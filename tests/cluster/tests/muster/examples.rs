//! The units of `unit-examples/`, as a reader would submit them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use muster_cluster::{Machine, project_root};

use super::support::{LIMIT, World};

#[test]
fn the_examples_run() -> Result<()> {
    let world = World::of(3)?;
    let example = |name: &str| project_root().join("unit-examples").join(name).display().to_string();
    let with = |verb: &str, names: &[&str]| {
        let files: Vec<String> = names.iter().map(|name| example(name)).collect();
        let arguments: Vec<&str> = std::iter::once(verb).chain(files.iter().map(String::as_str)).collect();
        world.ctl(&arguments)
    };
    with(
        "verify",
        &[
            "web.service",
            "web-log.service",
            "api@.service",
            "load-report.service",
            "cleanup.service",
            "cleanup.timer",
            "front.service",
            "front.socket",
        ],
    )?;
    with("start", &["web.service", "web-log.service", "load-report.service"])?;
    with("load", &["front.service", "cleanup.service"])?;
    with("start", &["front.socket", "cleanup.timer"])?;
    with("submit", &["api@.service"])?;
    world.ctl(&["start", "api@1", "api@2", "api@3"])?;

    let web = world.home("web.service")?;
    for follower in ["web-log.service", "front.socket"] {
        assert_eq!(world.home(follower)?.name(), web.name(), "{follower} is with web.service");
    }
    let page = get(&world, &web, 8080)?;
    ensure!(page.contains(&format!("Hello from {}", hostname(&web)?)), "{page}");
    ensure!(page.contains("placement 1."), "the unit sees its epoch: {page}");
    // The first connection to the socket starts the service behind it.
    assert_eq!(get(&world, &web, 8000)?, page);
    assert_eq!(world.home("front.service")?.name(), web.name());

    let mut homes = BTreeSet::new();
    for unit in ["api@1.service", "api@2.service", "api@3.service"] {
        let home = world.home(unit)?;
        homes.insert(home.name().to_owned());
        let page = get(&world, &home, 8081)?;
        ensure!(page.starts_with(&format!("api {} on", &unit[4..5])), "{page}");
    }
    assert_eq!(homes.len(), 3, "the instances are kept apart");
    assert_eq!(world.active()?["load-report.service"].len(), 3, "a global unit is on every machine");

    let timer = world.home("cleanup.timer")?;
    world.cluster.wait_for("the timer to have started its service", LIMIT, || {
        let journal = timer.exec(&["journalctl", "--unit", "cleanup.service", "--output", "cat"])?.ok()?;
        ensure!(journal.contains("cleaned up /var/tmp"), "{journal}");
        Ok(Some(()))
    })?;
    Ok(())
}

fn hostname(machine: &Machine<'_>) -> Result<String> {
    Ok(machine.exec(&["uname", "-n"])?.ok()?.trim().to_owned())
}

/// What the machine answers over HTTP.
fn get(world: &World, machine: &Machine<'_>, port: u16) -> Result<String> {
    let url = format!("http://{}:{port}/", machine.address());
    world.cluster.wait_for(&format!("an answer from {url}"), LIMIT, || {
        let output =
            world.cluster.network_command().args(["curl", "-sSf", "--max-time", "5", &url]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Some(String::from_utf8(output.stdout)?))
    })
}
