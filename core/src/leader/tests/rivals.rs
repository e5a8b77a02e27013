//! Machines that claim the id of another one.

use std::time::Duration;

use super::world::{World, machine};
use crate::leader::{Event, Input};
use crate::machine::{MachineState, Pressure};
use crate::message::{FromAgent, Refused};

/// Machine 1 with a unit, and a clone of it, here called machine 9, that has said Hello.
fn with_clone() -> World {
    let mut world = World::new(2);
    world.start("a.service", "[X-Fleet]\nMachineID=00000001\n");
    world.join_as(machine(9), machine(1), &[]);
    world
}

/// What it was refused for.
fn refused(world: &World, number: u128) -> Option<&Refused> {
    world.agents[&machine(number)].refused.as_ref()
}

fn in_use(address: &str) -> Refused {
    Refused::IdInUse { address: address.to_owned() }
}

/// The stream of this machine is dead, and nobody has noticed.
fn freeze(world: &mut World, number: u128) {
    world.agents.get_mut(&machine(number)).unwrap().connection = None;
}

/// Lets so many milliseconds pass, in which the leader is not stalled.
fn wait(world: &mut World, milliseconds: u64) {
    for _ in 0..milliseconds / 10 {
        world.now = world.now + Duration::from_millis(10);
        world.step(Input::Tick);
    }
}

#[test]
fn of_two_machines_with_one_id_the_one_that_is_alive_keeps_it() {
    let mut world = with_clone();
    assert_eq!(refused(&world, 9), Some(&in_use("198.18.0.1")));
    assert!(world.agents[&machine(1)].connection.is_some());
    assert_eq!(world.running("a.service"), [machine(1)]);
    // Both are shown.
    let status = &world.machines().machines[0];
    assert_eq!((status.state, &*status.record.address), (MachineState::Up, "198.18.0.1"));
    assert_eq!(status.rival.as_ref().unwrap().address, "198.18.0.9");
    // It comes again and again, and is news once.
    for _ in 0..5 {
        world.pass(15);
        world.connect(machine(9));
    }
    let news = |event: &&Event| matches!(event, Event::IdInUse { rival, .. } if **rival == *"198.18.0.9");
    assert_eq!(world.events.iter().filter(news).count(), 1);
    // Some time after it is gone nothing is said of it any more.
    world.pass(120);
    assert_eq!(world.machines().machines[0].rival.as_ref().unwrap().last_heard_ms, 120_000);
    world.pass(120);
    assert_eq!(world.machines().machines[0].rival, None);
    assert_eq!(world.running("a.service"), [machine(1)]);
}

#[test]
fn a_clone_that_gets_an_id_of_its_own_is_no_rival_any_more() {
    let mut world = with_clone();
    world.agents.get_mut(&machine(9)).unwrap().id = machine(9);
    world.connect(machine(9));
    assert_eq!(refused(&world, 9), None);
    let machines = world.machines().machines;
    assert_eq!(machines.len(), 3);
    assert!(machines.iter().all(|machine| machine.rival.is_none()), "{machines:?}");
}

#[test]
fn who_gives_no_sign_of_life_on_the_old_stream_is_replaced() {
    let mut world = World::new(2);
    world.start("a.service", "[X-Fleet]\nMachineID=00000001\n");
    freeze(&mut world, 1);
    world.join_as(machine(9), machine(1), &[]);
    wait(&mut world, 990);
    assert_eq!(world.running("a.service"), [machine(1)], "the other one waits");
    wait(&mut world, 10);
    assert!(world.running("a.service").contains(&machine(9)));
    assert_eq!(world.machines().machines[0].rival, None);
    // When the other one is back, it is the newcomer.
    world.connect(machine(1));
    assert_eq!(refused(&world, 1), Some(&in_use("198.18.0.9")));
}

#[test]
fn a_machine_that_was_rebooted_takes_its_own_place_when_its_old_stream_is_silent() {
    let mut world = World::new(2);
    world.start("a.service", "[X-Fleet]\nMachineID=00000001\n");
    freeze(&mut world, 1);
    world.reboot(machine(1));
    world.connect(machine(1));
    assert!(world.running("a.service").is_empty());
    world.silence(1);
    assert_eq!(world.running("a.service"), [machine(1)]);
    assert_eq!(refused(&world, 1), None);
    assert!(!world.events.iter().any(|event| matches!(event, Event::IdInUse { .. })));
}

#[test]
fn who_waits_is_let_in_when_the_old_stream_ends_and_forgotten_when_its_own_does() {
    let mut world = World::new(2);
    let old = world.agents[&machine(1)].connection.unwrap();
    freeze(&mut world, 1);
    world.join_as(machine(9), machine(1), &[]);
    assert_eq!(world.agents[&machine(9)].cluster, None);
    world.step(Input::Disconnected(old));
    assert!(world.agents[&machine(9)].cluster.is_some());

    let mut world = World::new(2);
    let old = world.agents[&machine(1)].connection.unwrap();
    freeze(&mut world, 1);
    world.join_as(machine(9), machine(1), &[]);
    world.cut(machine(9));
    world.silence(2);
    assert_eq!(world.agents[&machine(9)].cluster, None);
    // The old stream was the machine's all the time.
    world.agents.get_mut(&machine(1)).unwrap().connection = Some(old);
    world.pass(1);
    assert!(world.agents[&machine(1)].acked > 0);
}

#[test]
fn the_same_agent_on_another_stream_is_a_sign_of_life_too() {
    let mut world = World::new(2);
    freeze(&mut world, 1);
    world.join_as(machine(9), machine(1), &[]);
    assert_eq!(refused(&world, 9), None);
    world.connect(machine(1));
    assert_eq!(refused(&world, 9), Some(&in_use("198.18.0.1")));
    assert_eq!(refused(&world, 1), None);
}

#[test]
fn a_second_newcomer_takes_the_first_ones_turn_and_no_more_time() {
    let mut world = World::new(2);
    freeze(&mut world, 1);
    world.join_as(machine(8), machine(1), &[]);
    wait(&mut world, 900);
    world.join_as(machine(9), machine(1), &[]);
    assert_eq!(refused(&world, 8), Some(&Refused::Replaced));
    wait(&mut world, 100);
    assert!(world.agents[&machine(9)].cluster.is_some());
}

#[test]
fn a_known_clone_does_not_slip_in_between_two_streams_of_the_machine() {
    let mut world = with_clone();
    world.cut(machine(1));
    world.connect(machine(9));
    assert_eq!(refused(&world, 9), Some(&in_use("198.18.0.1")));
    world.connect(machine(1));
    assert_eq!(refused(&world, 1), None);
    assert_eq!(world.running("a.service"), [machine(1)]);
    // When the machine is lost, its id is free.
    world.cut(machine(1));
    world.silence(6);
    world.connect(machine(9));
    assert_eq!(refused(&world, 9), None);
}

#[test]
fn a_stall_of_the_leader_is_no_silence_of_the_old_stream() {
    let mut world = World::new(2);
    let old = world.agents[&machine(1)].connection.unwrap();
    freeze(&mut world, 1);
    world.join_as(machine(9), machine(1), &[]);
    world.now = world.now + Duration::from_secs(60);
    let heartbeat = world.agents.get_mut(&machine(1)).unwrap().heartbeat();
    world.step(Input::Agent(old, heartbeat));
    assert_eq!(refused(&world, 9), Some(&in_use("198.18.0.1")));
}

#[test]
fn the_pressure_of_a_machine_is_what_it_said_last() {
    let mut world = World::new(1);
    let pressure = |world: &mut World| world.machines().machines[0].pressure;
    assert_eq!(pressure(&mut world), Pressure::default());
    let connection = world.agents[&machine(1)].connection.unwrap();
    let said = Pressure { cpu: Some(1234), memory: Some(0), io: None };
    let heartbeat = FromAgent::Heartbeat { number: 1, pid1_age: Duration::ZERO, pressure: said };
    world.step(Input::Agent(connection, heartbeat));
    assert_eq!(pressure(&mut world), said);
    world.silence(6);
    assert_eq!(pressure(&mut world), Pressure::default(), "of a machine that is lost nothing is known");
}

#[test]
fn a_clone_of_a_silent_machine_does_not_end_its_exclusive_units() {
    for noticed in [true, false] {
        let mut world = World::new(2);
        let options = "[X-Fleet]\nMachineID=00000001\n[X-Muster]\nExclusive=yes\nExclusiveStopSec=4\n";
        world.start("a.service", options);
        if noticed {
            world.cut(machine(1));
        } else {
            freeze(&mut world, 1);
        }
        world.join_as(machine(9), machine(1), &[]);
        // 5.1 s of lease, 4.08 s for its end, 1 s for the guard's lag.
        for _ in 0..10 {
            assert_eq!(world.running("a.service"), [machine(1)]);
            wait(&mut world, 1000);
            world.connect(machine(9));
        }
        assert_eq!(refused(&world, 9), Some(&in_use("198.18.0.1")));
        wait(&mut world, 1000);
        world.connect(machine(9));
        assert_eq!(world.running("a.service"), [machine(1), machine(9)]);
    }
}

#[test]
fn a_rival_does_not_take_the_place_of_one_that_is_silent_for_a_moment() {
    let mut world = with_clone();
    freeze(&mut world, 1);
    wait(&mut world, 1000);
    world.connect(machine(9));
    wait(&mut world, 2000);
    assert_eq!(world.running("a.service"), [machine(1)]);
    assert_eq!(refused(&world, 9), Some(&in_use("198.18.0.1")));
    // When its lease is over the other one is there.
    wait(&mut world, 3000);
    world.connect(machine(9));
    assert!(world.running("a.service").contains(&machine(9)));
}

#[test]
fn an_address_that_others_have_is_no_proof() {
    for shared in ["127.0.0.1", "198.18.0.2"] {
        let mut world = World::new(2);
        world.agents.get_mut(&machine(1)).unwrap().address = shared.to_owned();
        world.connect(machine(1));
        world.start(
            "a.service",
            "[X-Fleet]\nMachineID=00000001\n[X-Muster]\nExclusive=yes\nExclusiveStopSec=4\n",
        );
        world.cut(machine(1));
        world.join_as(machine(9), machine(1), &[]);
        assert_eq!(world.running("a.service"), [machine(1)]);
    }
}
