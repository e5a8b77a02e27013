//! A leader that may have been overtaken.

use std::time::Duration;

use super::world::{World, machine, service};
use crate::command::{Query, Verb};
use crate::ids::{CommandId, CommitId};
use crate::leader::{Input, RequestId};
use crate::machine::MachineState;
use crate::message::{FromAgent, Goodbye};

/// Two machines, and a leader that leads for five seconds.
fn elected() -> World {
    let mut world = World::new(2);
    world.step(Input::Leads(world.now + Duration::from_secs(5)));
    world.start("a.service", "");
    world
}

#[test]
fn who_may_have_been_overtaken_grants_no_lease_and_takes_no_machine_for_dead() {
    let mut world = elected();
    world.pass(4);
    let acked = |world: &World| world.agents[&machine(1)].acked;
    let before = acked(&world);
    assert!(before > 0);
    world.pass(60);
    assert!(acked(&world) <= before + 2, "the last ones were answered while it led");
    // It has heard them all the time, but they may have sworn to another one: that is not its time.
    world.step(Input::Leads(world.now + Duration::from_secs(5)));
    assert!(world.machines().machines.iter().all(|machine| machine.state == MachineState::Up));
    let before = acked(&world);
    world.pass(1);
    assert!(acked(&world) > before);
}

#[test]
fn who_may_have_been_overtaken_gives_no_orders_and_no_answers() {
    let mut world = elected();
    world.silence(6);
    let request = RequestId(world.id());
    let query = Query::Units { names: None, content: false, reasons: false };
    world.step(Input::Query(request, query));
    assert!(!world.answers.contains_key(&request));
    let command =
        world.command_as(CommandId::new(99), Verb::Start, &[("b.service", Some(&service("")))], false);
    assert!(!world.results.contains_key(&command));
    assert!(world.running("b.service").is_empty());
    // It was not: the store elects it again.
    world.step(Input::Leads(world.now + Duration::from_secs(5)));
    assert!(world.results[&command].is_ok());
    assert!(world.answers.contains_key(&request));
    assert_eq!(world.running("b.service").len(), 1);
}

#[test]
fn a_machine_that_comes_to_who_may_have_been_overtaken_is_sent_on() {
    let mut world = elected();
    world.cut(machine(1));
    world.silence(6);
    world.connect(machine(1));
    assert_eq!(world.agents[&machine(1)].connection, None);
    world.step(Input::Leads(world.now + Duration::from_secs(5)));
    world.connect(machine(1));
    assert!(world.agents[&machine(1)].connection.is_some());
}

#[test]
fn who_may_have_been_overtaken_does_not_wait_for_its_store() {
    let mut world = elected();
    world.silence(4);
    world.committing = false;
    world.command_as(CommandId::new(99), Verb::Stop, &[("a.service", None)], false);
    world.fail_store();
    // Its pause ends while it does not lead.
    world.silence(3);
    world.step(Input::Leads(world.now + Duration::from_secs(5)));
    assert!(world.command(Verb::Stop, &[("a.service", None)]).is_ok());
}

#[test]
fn a_farewell_for_which_the_time_was_over_is_said_later() {
    let mut world = elected();
    world.committing = false;
    world.command_as(CommandId::new(99), Verb::Submit, &[("b.service", Some(&service("")))], false);
    let connection = world.agents[&machine(1)].connection.unwrap();
    world.step(Input::Agent(connection, FromAgent::Goodbye(Goodbye::Shutdown)));
    world.silence(6);
    world.commit();
    assert!(!world.agents[&machine(1)].farewell);
    world.step(Input::Leads(world.now + Duration::from_secs(60)));
    world.pass(1);
    assert!(world.agents[&machine(1)].farewell);
}

#[test]
fn nobody_takes_the_place_of_another_one_under_who_may_have_been_overtaken() {
    let mut world = World::new(1);
    world.step(Input::Leads(world.now + Duration::from_secs(1)));
    let old = world.agents.get_mut(&machine(1)).unwrap().connection.take().unwrap();
    world.reboot(machine(1));
    world.connect(machine(1));
    world.now = world.now + Duration::from_millis(1050);
    world.step(Input::Disconnected(old));
    // It would wait for its welcome.
    assert_eq!(world.agents[&machine(1)].connection, None);
}

#[test]
fn who_stood_still_goes_by_the_clock_after_a_message_was_taken_and_not_by_when_it_came() {
    let mut world = elected();
    world.committing = false;
    let command =
        world.command_as(CommandId::new(99), Verb::Start, &[("b.service", Some(&service("")))], false);
    let (connection, heartbeat) = {
        let agent = world.agents.get_mut(&machine(1)).unwrap();
        (agent.connection.unwrap(), agent.heartbeat())
    };
    let acked = world.agents[&machine(1)].acked;
    // All this comes while it leads, and is taken in after it has stood still for longer than that lasts.
    let came = world.now + Duration::from_secs(1);
    world.now = world.now + Duration::from_secs(60);
    let request = RequestId(world.id());
    let query = Query::Units { names: None, content: false, reasons: false };
    world.step_late(came, Input::Agent(connection, heartbeat));
    world.committing = true;
    world.step_late(came, Input::Committed(CommitId(u64::MAX)));
    world.step_late(came, Input::Query(request, query));
    world.step_late(came, Input::Leads(came + Duration::from_secs(5)));
    assert_eq!(world.agents[&machine(1)].acked, acked);
    assert!(!world.results.contains_key(&command) && !world.answers.contains_key(&request));
    assert!(world.running("b.service").is_empty());
    // Nobody has taken its place.
    world.step(Input::Leads(world.now + Duration::from_secs(5)));
    assert!(world.results[&command].is_ok() && world.answers.contains_key(&request));
    assert_eq!(world.running("b.service").len(), 1);
    assert!(world.machines().machines.iter().all(|machine| machine.state == MachineState::Up));
}
