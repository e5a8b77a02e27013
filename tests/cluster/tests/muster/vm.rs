//! Muster on virtual machines: with kernels, clocks and networks of their own, machines fail as real ones do.

use anyhow::{Result, ensure};
use muster_cluster::{Backend, Cluster};

use super::support::{SLEEP, World, property};

#[test]
#[ignore = "run by make vm-tests"]
fn units_move_when_their_machine_is_lost_in_any_way() -> Result<()> {
    let world = World::up(Cluster::builder().backend(Backend::Vm).machines(3))?;
    world.start("wanderer.service", SLEEP)?;

    let killed = world.home("wanderer.service")?;
    killed.kill()?;
    let cut = world.home_other_than("wanderer.service", &[killed.name()])?;
    killed.boot()?;
    world.wait_machines_up(3)?;

    cut.cut()?;
    let frozen = world.home_other_than("wanderer.service", &[cut.name()])?;
    assert_eq!(
        property(&cut, "wanderer.service", "ActiveState")?,
        "active",
        "losing the leader stops nothing"
    );
    cut.heal()?;
    world.wait_machines_up(3)?;
    world.wait_active_state(&cut, "wanderer.service", "inactive")?;

    frozen.freeze()?;
    let silenced = world.home_other_than("wanderer.service", &[frozen.name()])?;
    // Its clock jumps, and what it runs was given to another one meanwhile.
    frozen.thaw()?;
    world.wait_machines_up(3)?;
    world.wait_active_state(&frozen, "wanderer.service", "inactive")?;

    // It hears the scheduler, which does not hear it.
    let scheduler = world.cluster.machine("s1")?;
    silenced.lose(&scheduler)?;
    let last = world.home_other_than("wanderer.service", &[silenced.name()])?;
    silenced.heal()?;
    world.wait_machines_up(3)?;
    world.wait_active_state(&silenced, "wanderer.service", "inactive")?;
    ensure!(property(&last, "wanderer.service", "ActiveState")? == "active", "it runs on");
    Ok(())
}
