//! Many units that come to one machine at once.

use anyhow::{Result, ensure};
use muster_cluster::Machine;

use super::support::{LIMIT, World};

/// Where each unit writes that its start has begun, and that it is about to be over.
const STARTS: &str = "/run/starts";

/// The most units that were starting on the machine at any time.
fn most_starting(machine: &Machine<'_>, units: usize) -> Result<i64> {
    let lines = machine.exec(&["cat", STARTS])?.ok()?;
    let steps: Vec<i64> = lines.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(steps.len(), 2 * units, "each has begun and ended its start, once");
    let starting = steps.iter().scan(0, |starting, step| {
        *starting += step;
        Some(*starting)
    });
    Ok(starting.max().unwrap_or_default())
}

#[test]
fn a_machine_that_gets_many_units_at_once_has_only_so_many_starting_at_a_time() -> Result<()> {
    let world = World::of(2)?;
    let (first, second) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    let cpus: usize = first.exec(&["nproc"])?.ok()?.trim().parse()?;
    let most = (32 * cpus).clamp(64, 384);
    let count = 2 * most + 22;
    let content = format!(
        "[Service]\nType=exec\nExecStartPre=/bin/sh -c 'echo 1 >>{STARTS}; sleep 1; echo -1 >>{STARTS}'\n\
         ExecStart=/usr/bin/sleep infinity\n"
    );
    let files: Vec<String> =
        (0..count).map(|n| world.file(&format!("many{n}.service"), &content)).collect::<Result<_>>()?;
    let start: Vec<&str> = std::iter::once("start").chain(files.iter().map(String::as_str)).collect();

    world.ctl(&["cordon", second.machine_id()])?;
    world.cluster.ctl_within(3 * LIMIT, &start, &[])?.ok()?;
    let seen = most_starting(&first, count)?;
    ensure!(usize::try_from(seen)? <= most, "{seen} of {count} were starting at a time");

    // Those of a lost machine.
    world.ctl(&["uncordon", second.machine_id()])?;
    first.kill()?;
    world.cluster.wait_for("all of them on the other machine", 3 * LIMIT, || {
        let active = world.active()?;
        let there = active.values().flatten().filter(|row| row.machine == second.machine_id()).count();
        ensure!(there == count, "{there} of {count} are active there");
        Ok(Some(()))
    })?;
    let seen = most_starting(&second, count)?;
    ensure!(usize::try_from(seen)? <= most, "{seen} of {count} were starting at a time");
    Ok(())
}
