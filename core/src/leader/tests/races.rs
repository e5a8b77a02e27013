//! Moves that are overtaken by something else: restarts, failures, other moves. Each of these was a bug once.

use super::world::{World, drain, held, machine, machines_command, name, with_units};
use crate::command::Verb;
use crate::ids::MachineId;
use crate::ids::Term;
use crate::leader::{Event, Input, Leader, RequestId, Settings};
use crate::machine::Availability;
use crate::message::{FromAgent, Goodbye};

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);
const M3: MachineId = machine(3);

fn slow(world: &mut World, id: MachineId) {
    world.agents.get_mut(&id).unwrap().activates = false;
}
fn braked(world: &World) -> bool {
    world.leader.braked().is_some()
}

#[test]
fn leader_restart_keeps_old_copy() {
    let mut world = with_units(1);
    slow(&mut world, M2);
    world.machine_command(drain(0), M1).unwrap();
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.pass(1);
    assert_eq!(held(&world, M1), 1, "old copy stopped, new one not active");
}

#[test]
fn store_failure_keeps_old_copy() {
    let mut world = with_units(1);
    slow(&mut world, M2);
    world.machine_command(drain(0), M1).unwrap();
    world.committing = false;
    world.step(Input::Machines(RequestId(7000), machines_command(Availability::Cordoned, M2)));
    world.fail_store();
    world.committing = true;
    world.pass(3);
    assert_eq!(held(&world, M1), 1, "old copy stopped, new one not active");
}

#[test]
fn active_in_hello() {
    let mut world = with_units(1);
    slow(&mut world, M2);
    world.machine_command(drain(0), M1).unwrap();
    world.cut(M2);
    world.activate(M2); // no connection: known from the next hello only
    world.connect(M2);
    world.pass(10);
    assert_eq!(held(&world, M1), 0, "runs twice though the new one is active");
}

#[test]
fn after_the_end_of_a_drain() {
    let mut world = with_units(3);
    slow(&mut world, M2);
    world.machine_command(drain(1), M1).unwrap();
    assert_eq!((held(&world, M1), held(&world, M2)), (3, 1));
    world.pass(3600);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 3), "wedged");
}

#[test]
fn dead_draining_machine() {
    let mut world = with_units(5);
    world.join(M3, &[]);
    slow(&mut world, M2);
    slow(&mut world, M3);
    world.machine_command(drain(1), M1).unwrap();
    world.cut(M1);
    world.pass(10);
    assert_eq!(held(&world, M2) + held(&world, M3), 5, "units of a dead machine are not replaced");
}

#[test]
fn heartbeat_after_restart_goodbye() {
    let mut world = with_units(1);
    world.goodbye(M1, Goodbye::Restart);
    world.pass(1);
    world.cut(M1);
    world.pass(20);
    assert_eq!(held(&world, M2), 0, "its lease was short again");
}

#[test]
fn operator_release_is_final() {
    let mut world = World::new(0);
    let settings = Settings { own_machine: Some(machine(1)), ..Settings::default() };
    world.leader = Leader::new(settings, Term(1), world.stored.clone(), world.now);
    for n in 1..=3 {
        world.join(machine(n), &[]);
    }
    for n in 1..=3 {
        world.start(&format!("u{n}.service"), "");
    }
    world.cut(M2);
    world.pass(1);
    world.cut(M3);
    let mut waited = 0;
    while !braked(&world) {
        world.pass(1);
        waited += 1;
        assert!(waited < 30);
    }
    world.step(Input::ReleaseBrake(RequestId(9999)));
    world.pass(10);
    assert!(!braked(&world), "on again");
}

#[test]
fn drain_end_with_new_home_dead() {
    let mut world = with_units(1);
    slow(&mut world, M2);
    world.machine_command(drain(0), M1).unwrap();
    world.cut(M2);
    world.pass(40);
    assert_eq!(held(&world, M1), 1, "the only copy that runs was stopped");
}

#[test]
fn cordoned_machine_is_seen() {
    let mut world = World::new(0);
    let settings = Settings { own_machine: Some(machine(1)), ..Settings::default() };
    world.leader = Leader::new(settings, Term(1), world.stored.clone(), world.now);
    for n in 1..=4 {
        world.join(machine(n), &[]);
    }
    for n in 1..=4 {
        world.start(&format!("u{n}.service"), "");
    }
    world.machine_command(Availability::Cordoned, machine(4)).unwrap();
    world.cut(M2);
    world.cut(M3);
    world.pass(600);
    assert!(!braked(&world), "machine 4 is up and seen");
}

#[test]
fn reconnect_while_shutting_down() {
    let mut world = with_units(1);
    slow(&mut world, M2);
    world.goodbye(M1, Goodbye::Shutdown);
    world.cut(M1);
    world.connect(M1);
    // The agent says it in every session.
    world.goodbye(M1, Goodbye::Shutdown);
    world.agents.get_mut(&M1).unwrap().activates = true;
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.start("new.service", "");
    assert!(
        !world.agents[&M1].held.contains_key(&name("new.service")),
        "placed on a machine that shuts down"
    );
}

#[test]
fn uncordon_while_moving() {
    let mut world = with_units(1);
    slow(&mut world, M2);
    world.machine_command(drain(0), M1).unwrap();
    world.machine_command(Availability::Open, M1).unwrap();
    world.pass(3600);
    assert_eq!(held(&world, M1) + held(&world, M2), 1, "two copies for ever");
}

#[test]
fn goodbye_under_the_brake() {
    let mut world = World::new(6);
    for n in 1..=6 {
        world.start(&format!("u{n}.service"), "");
    }
    world.cut(M2);
    world.cut(M3);
    world.pass(8);
    assert!(braked(&world));
    let home = machine(4);
    let unit = world.agents[&home].held.keys().next().unwrap().clone();
    world.goodbye(home, Goodbye::Shutdown);
    assert!(
        !world.leader.units.get(&unit).unwrap().placements.contains_key(&home),
        "not moved before it stops"
    );
}

#[test]
fn shutdown_then_restart_goodbye() {
    // SIGTERM of the agent follows at every shutdown; the leader that was restarted in between knows only that one.
    let mut world = with_units(1);
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.goodbye(M1, Goodbye::Shutdown);
    world.goodbye(M1, Goodbye::Restart);
    world.reboot(M1);
    world.pass(10);
    assert_eq!(world.machines().machines[0].state, crate::machine::MachineState::Unreachable);
}

#[test]
fn stale_lingering_after_coming_home() {
    let mut world = with_units(1);
    slow(&mut world, M2);
    world.machine_command(drain(0), M1).unwrap();
    slow(&mut world, M1);
    world.machine_command(Availability::Open, M1).unwrap();
    world.cut(M2);
    world.pass(8); // comes home, and is starting
    assert!(world.leader.units.get(&name("u1.service")).unwrap().placements.contains_key(&M1));
    assert!(!world.leader.lingering.runs_on(M1, &name("u1.service")), "current and lingering at once");
    let _ = Verb::Stop;
    let _ = |e: &Event| matches!(e, Event::MachineUp { .. });
}

#[test]
fn all_shut_down() {
    let mut world = with_units(2);
    slow(&mut world, M2);
    world.goodbye(M1, Goodbye::Shutdown);
    world.goodbye(M2, Goodbye::Shutdown);
    assert!(world.agents[&M2].farewell);
    world.pass(30);
    assert!(world.agents[&M1].farewell, "waits for what never comes");
}

#[test]
fn farewell_survives_store_failure() {
    let mut world = with_units(0);
    world.committing = false;
    world.step(Input::Machines(RequestId(7000), machines_command(Availability::Cordoned, M2)));
    world.goodbye(M1, Goodbye::Shutdown);
    world.fail_store();
    world.committing = true;
    world.pass(5);
    assert!(world.agents[&M1].farewell, "hangs until its time-out");
}

#[test]
fn clean_shutdown_is_no_suspect() {
    let mut world = World::new(6);
    for n in 1..=6 {
        world.start(&format!("u{n}.service"), "");
    }
    world.goodbye(M3, Goodbye::Shutdown);
    world.reboot(M3);
    world.cut(M2);
    world.pass(8);
    assert!(!braked(&world), "one shut down, one died");
}

#[test]
fn oneshot_that_has_ended() {
    use crate::message::{ReportedChange, UnitReport};
    use crate::state::{Observation, Phase, UnitState};
    let mut world = with_units(1);
    let ended = |world: &mut World, id: MachineId| {
        let agent = &world.agents[&id];
        let (epoch, connection) = (agent.held[&name("u1.service")].epoch, agent.connection.unwrap());
        let state = UnitState { load: "loaded".into(), active: "inactive".into(), sub: "dead".into() };
        let change =
            ReportedChange::Observed(Observation::Held { phase: Phase::Launched, state: Some(state) });
        world.step(Input::Agent(
            connection,
            FromAgent::Report(vec![UnitReport { name: name("u1.service"), epoch, change }]),
        ));
    };
    slow(&mut world, M2);
    ended(&mut world, M1);
    world.goodbye(M1, Goodbye::Shutdown);
    ended(&mut world, M2);
    world.pass(30);
    assert!(world.agents[&M1].farewell, "the shutdown waits for a unit that has ended on both");
}

#[test]
fn a_restart_of_the_leader_during_a_shutdown_keeps_the_old_copy() {
    let mut world = with_units(1);
    slow(&mut world, M2);
    world.goodbye(M1, Goodbye::Shutdown);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
    let mut world = world.restarted();
    world.agents.get_mut(&M1).unwrap().leaving = true;
    world.connect(M1);
    world.connect(M2);
    world.goodbye(M1, Goodbye::Shutdown);
    world.pass(1);
    assert_eq!(held(&world, M1), 1, "old copy stopped, new one not active");
}
