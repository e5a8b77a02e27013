//! Machines with the id of another one: copies of its disk.

use anyhow::{Context, Result, ensure};
use muster_cluster::Machine;

use super::support::{LIMIT, MachineRow, SLEEP, World};

/// The machine has this id from now on, and its agent knows it.
fn take_id(machine: &Machine<'_>, id: &str) -> Result<()> {
    machine.write_file("/etc/machine-id", format!("{id}\n").as_bytes())?;
    machine.exec(&["systemctl", "restart", "muster-agent"])?.ok()?;
    Ok(())
}

/// Waits until the machine with this id is listed under this address, with this rival.
fn wait_listed(world: &World, id: &str, address: &str, rival: Option<&str>) -> Result<()> {
    world.cluster.wait_for(&format!("{id} is {address}, and not {rival:?}"), LIMIT, || {
        let rows = world.machine_rows()?;
        let row: &MachineRow = rows.iter().find(|row| row.machine == id).context("it is listed")?;
        let listed = (row.ip.as_deref(), row.rival.as_ref().map(|rival| rival.ip.as_str()), &*row.state);
        ensure!(listed == (Some(address), rival, "up"), "{rows:#?}");
        Ok(Some(()))
    })
}

#[test]
fn of_two_machines_with_one_id_the_living_one_keeps_it_until_it_is_silent() -> Result<()> {
    let world = World::of(2)?;
    let (first, second) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    let pinned = format!("{SLEEP}[X-Fleet]\nMachineID={}\n", first.machine_id());
    world.start("pinned.service", &pinned)?;
    let before = world.invocations()?;

    take_id(&second, first.machine_id())?;
    wait_listed(&world, first.machine_id(), first.address(), Some(second.address()))?;
    let listed = world.try_ctl(&["list-machines"])?;
    let marked = format!("{} (id also of {})", first.address(), second.address());
    ensure!(listed.stdout.contains(&marked), "{listed}");
    ensure!(listed.stderr.contains("Two machines have the id"), "{listed}");
    let journal = second.journal()?;
    ensure!(journal.contains("another machine has the same id"), "{journal}");
    ensure!(journal.contains("systemd-machine-id-setup"), "{journal}");
    assert_eq!(world.invocations()?, before, "nothing was moved or restarted");

    // With an id of its own it is another machine again.
    take_id(&second, second.machine_id())?;
    world.wait_machines_up(2)?;
    wait_listed(&world, first.machine_id(), first.address(), None)?;
    assert_eq!(world.invocations()?, before, "nothing was moved or restarted");

    // Of two of which one is silent the other one has the id, long before a lease would end.
    first.cut()?;
    take_id(&second, first.machine_id())?;
    wait_listed(&world, first.machine_id(), second.address(), None)?;
    first.heal()?;
    wait_listed(&world, first.machine_id(), second.address(), Some(first.address()))?;
    Ok(())
}
