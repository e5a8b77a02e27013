//! How long the leases are that machines are told of.

use std::time::Duration;

use super::world::{World, machine};
use crate::leader::Input;

/// A machine whose record knows of leases of so many seconds, under a leader with those of five seconds, whose store does
/// not answer yet.
fn after(seconds: u64) -> World {
    let mut world = World::new(1);
    world.stored.machines.get_mut(&machine(1)).unwrap().lease = Duration::from_secs(seconds);
    let mut world = world.restarted();
    world.committing = false;
    world.connect(machine(1));
    world
}

/// How long the machine's leases are, in seconds.
fn lease(world: &World) -> Option<u64> {
    world.agents[&machine(1)].lease.map(|lease| lease.as_secs())
}

#[test]
fn a_longer_lease_is_granted_once_it_is_on_record() {
    let mut world = after(2);
    assert_eq!(lease(&world), Some(2));
    assert!(world.agents[&machine(1)].acked > 0, "it has that lease");
    world.commit();
    assert_eq!((lease(&world), world.stored.machines[&machine(1)].lease.as_secs()), (Some(5), 5));
    world.cut(machine(1));
    world.committing = false;
    world.connect(machine(1));
    assert_eq!(lease(&world), Some(5), "the store knows");
}

#[test]
fn a_lease_that_is_on_record_waits_for_nothing() {
    for seconds in [5, 20] {
        let mut world = after(seconds);
        assert_eq!(lease(&world), Some(5));
        // That it is not longer any more is written when the longer one is over.
        assert!(world.uncommitted.is_empty());
        world.pass(1);
        assert!(world.uncommitted.is_empty());
    }
}

#[test]
fn without_a_record_of_any_lease_there_is_none_yet() {
    let mut world = after(0);
    assert_eq!(lease(&world), None);
    world.commit();
    assert_eq!(lease(&world), Some(5));
    // Nothing is assigned to a machine that the store does not know.
    world.committing = false;
    world.join(machine(2), &[]);
    assert_eq!(world.agents[&machine(2)].lease.map(|lease| lease.as_secs()), Some(5));
}

#[test]
fn a_store_that_fails_leaves_leases_as_they_were() {
    let mut world = after(2);
    world.fail_store();
    assert_eq!(lease(&world), Some(2));
    world.cut(machine(1));
    world.connect(machine(1));
    assert_eq!(lease(&world), Some(2), "nothing is written while that is not tried again");
    world.pass(2);
    assert_eq!(lease(&world), Some(5));
}

#[test]
fn a_longer_lease_waits_for_a_leader_that_may_have_been_overtaken() {
    let mut world = after(2);
    world.step(Input::Leads(world.now + Duration::from_secs(1)));
    world.silence(2);
    world.commit();
    assert_eq!(lease(&world), Some(2));
    world.step(Input::Leads(world.now + Duration::from_secs(5)));
    assert_eq!(lease(&world), Some(5));
}
