//! What the leader says of a unit's worst-case time is what it does.

use std::time::Duration;

use super::world::{World, machine, name};
use crate::command::{Query, QueryAnswer, Rto};
use crate::ids::MachineId;
use crate::leader::Input;

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);
const STEP: Duration = Duration::from_millis(50);

fn rto(world: &mut World) -> Rto {
    match world.query(Query::Rto(name("web.service"))) {
        QueryAnswer::Rto(Some(rto)) => rto,
        other => panic!("{other:?}"),
    }
}

/// How long it takes from the last heartbeat of the unit's machine until the other machine is told of it.
fn moved_after(options: &str) -> (Duration, Rto) {
    let mut world = World::new(2);
    world.start("web.service", options);
    let rto = rto(&mut world);
    world.pass(1);
    world.cut(M1);
    let since = world.now;
    let mut heartbeat = since;
    while !world.agents[&M2].held.contains_key(&name("web.service")) {
        assert!(world.now.since(since) < Duration::from_secs(60), "never moved");
        world.now = world.now + STEP;
        world.step(Input::Tick);
        if world.now.since(heartbeat) >= Duration::from_millis(500) {
            heartbeat = world.now;
            let agent = world.agents.get_mut(&M2).unwrap();
            let (connection, said) = (agent.connection.unwrap(), agent.heartbeat());
            world.step(Input::Agent(connection, said));
        }
    }
    (world.now.since(since), rto)
}

#[test]
fn a_lost_unit_is_moved_no_later_than_that_and_hardly_earlier() {
    let exclusive = |stop: u32| format!("[X-Muster]\nExclusive=yes\nExclusiveStopSec={stop}\n");
    for options in [String::new(), exclusive(1), exclusive(30)] {
        let (took, rto) = moved_after(&options);
        let span = |name: &str| rto.parts.iter().find(|part| part.name == name).unwrap().span_ms;
        // The rest of it is the shell's, and this one is never late.
        let least = Duration::from_millis(rto.sum_ms() - span("decide") - span("look"));
        assert!(took >= least && took <= least + STEP, "{took:?}, at least {least:?}: {options}");
    }
}

#[test]
fn a_unit_that_is_not_known_has_none() {
    let mut world = World::new(1);
    assert_eq!(world.query(Query::Rto(name("web.service"))), QueryAnswer::Rto(None));
}
