//! Who may have a stream to which machine.

use std::time::Duration;

use super::world::{World, machine};
use crate::ids::{MachineId, StreamKey};
use crate::leader::{Input, RequestId};
use crate::stream::{StreamError, StreamKind, StreamWanted};

const ASKED: RequestId = RequestId(77);
const KEY: StreamKey = StreamKey::new(5);

/// A machine whose agent opens streams for what it says.
fn world(kinds: &[StreamKind]) -> World {
    let mut world = World::new(1);
    world.agents.get_mut(&machine(1)).unwrap().streams = Some(kinds.iter().copied().collect());
    world.cut(machine(1));
    world.connect(machine(1));
    world
}

fn ask(world: &mut World, machine: MachineId) -> Option<Result<(), StreamError>> {
    let wanted = StreamWanted { machine, kind: StreamKind::Journal, key: KEY };
    world.step(Input::OpenStream(ASKED, wanted));
    world.streams.remove(&ASKED)
}

#[test]
fn the_machines_agent_is_asked_to_dial() {
    let mut world = world(&StreamKind::ALL);
    // It waits for no disk.
    world.committing = false;
    assert_eq!(ask(&mut world, machine(1)), Some(Ok(())));
    assert_eq!(world.agents[&machine(1)].dialled, [KEY]);
}

#[test]
fn what_keeps_it_from_being_asked_is_told() {
    let mut new = world(&StreamKind::ALL);
    assert_eq!(ask(&mut new, machine(9)), Some(Err(StreamError::NoSuchMachine(machine(9)))));
    new.cut(machine(1));
    assert_eq!(ask(&mut new, machine(1)), Some(Err(StreamError::NotConnected(machine(1)))));
    let mut old = World::new(1);
    let too_old = StreamError::TooOld { machine: machine(1), version: "test".to_owned() };
    assert_eq!(ask(&mut old, machine(1)), Some(Err(too_old)));
    let mut strict = world(&[StreamKind::Status, StreamKind::Files]);
    let forbidden = StreamError::Forbidden { machine: machine(1), kind: StreamKind::Journal };
    assert_eq!(ask(&mut strict, machine(1)), Some(Err(forbidden)));
    for world in [&old, &strict] {
        assert!(world.agents[&machine(1)].dialled.is_empty(), "an old agent would not understand it");
    }
}

#[test]
fn a_leader_that_may_have_been_overtaken_asks_nobody() {
    let mut world = world(&StreamKind::ALL);
    world.step(Input::Leads(world.now + Duration::from_secs(1)));
    world.silence(2);
    assert_eq!(ask(&mut world, machine(1)), None);
    assert!(world.agents[&machine(1)].dialled.is_empty());
    // It was not: who is answered is dialled for.
    world.step(Input::Leads(world.now + Duration::from_secs(1)));
    assert_eq!(world.streams.remove(&ASKED), Some(Ok(())));
    assert_eq!(world.agents[&machine(1)].dialled, [KEY]);
    // What is answered is what is so by then.
    world.silence(2);
    assert_eq!(ask(&mut world, machine(1)), None);
    world.cut(machine(1));
    world.step(Input::Leads(world.now + Duration::from_secs(1)));
    assert_eq!(world.streams.remove(&ASKED), Some(Err(StreamError::NotConnected(machine(1)))));
    assert_eq!(world.agents[&machine(1)].dialled, [KEY]);
}
