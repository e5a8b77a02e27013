//! Machines with the id of another one: copies of its disk.

use anyhow::{Result, ensure};

use super::support::{SLEEP, World, take_id};

#[test]
fn of_two_machines_with_one_id_the_living_one_keeps_it_until_it_is_silent() -> Result<()> {
    let world = World::of(2)?;
    let (first, second) = (world.cluster.machine("m1")?, world.cluster.machine("m2")?);
    let pinned = format!("{SLEEP}[X-Fleet]\nMachineID={}\n", first.machine_id());
    world.start("pinned.service", &pinned)?;
    let before = world.invocations()?;

    take_id(&second, first.machine_id())?;
    world.wait_listed(first.machine_id(), first.address(), Some(second.address()))?;
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
    world.wait_listed(first.machine_id(), first.address(), None)?;
    assert_eq!(world.invocations()?, before, "nothing was moved or restarted");

    // Of two of which one is silent the other one has the id, long before a lease would end.
    first.cut()?;
    take_id(&second, first.machine_id())?;
    world.wait_listed(first.machine_id(), second.address(), None)?;
    first.heal()?;
    world.wait_listed(first.machine_id(), second.address(), Some(first.address()))?;
    Ok(())
}
