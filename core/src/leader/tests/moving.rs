//! Machines that are cordoned, drained, shut down or about to be restarted.

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::{World, drain, held, machine, machines_command, name, with_units};
use crate::command::{Left, MachineCommandError, Verb};
use crate::ids::{CommandId, MachineId, Term};
use crate::leader::{Arrival, Event, Input};
use crate::machine::{Availability, Drain};
use crate::message::{FromAgent, Goodbye, ReportedChange, UnitReport};
use crate::state::{Failure, Observation, Phase, UnitState};

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);

/// The machine does nothing of what it is told from now on.
fn mute(world: &mut World, id: MachineId) {
    world.agents.get_mut(&id).unwrap().deaf = true;
}

fn slow_to_start(world: &mut World, id: MachineId, slow: bool) {
    world.agents.get_mut(&id).unwrap().activates = !slow;
    if !slow {
        world.activate(id);
    }
}

#[test]
fn a_cordoned_machine_keeps_what_it_has_and_gets_nothing_new() {
    let mut world = with_units(2);
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.start("new.service", "");
    assert_eq!((held(&world, M1), held(&world, M2)), (3, 0));
    // Also across a restart of the leader.
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.start("newer.service", "");
    assert_eq!((held(&world, M1), held(&world, M2)), (4, 0));
    world.machine_command(Availability::Open, M2).unwrap();
    world.start("newest.service", "");
    assert_eq!((held(&world, M1), held(&world, M2)), (4, 1));
    assert_eq!(world.stored.availability.len(), 0);
}

#[test]
fn a_machine_that_is_not_one_is_refused() {
    let mut world = with_units(1);
    let error = world.machine_command(Availability::Cordoned, machine(9)).unwrap_err();
    assert_eq!(error, MachineCommandError::NoSuchMachine(machine(9)));
}

#[test]
fn drained_units_are_active_elsewhere_before_they_stop_here() {
    let mut world = with_units(3);
    world.start("everywhere.service", "[X-Fleet]\nGlobal=true\n");
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    assert_eq!((held(&world, M1), held(&world, M2)), (4, 4), "all are held twice");
    slow_to_start(&mut world, M2, false);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 4));
    assert!(world.leader.retired.is_empty());
    // It gets its global unit back.
    world.machine_command(Availability::Open, M1).unwrap();
    assert_eq!(held(&world, M1), 1);
}

#[test]
fn global_units_are_stopped_last() {
    let mut world = with_units(0);
    world.start("everywhere.service", "[X-Fleet]\nGlobal=true\n");
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.start("with.service", "[X-Fleet]\nMachineOf=everywhere.service\n");
    world.machine_command(drain(0), M1).unwrap();
    assert_eq!(held(&world, M1), 2, "what stays has what it needs");
    world.command(Verb::Unload, &[("with.service", None)]).unwrap();
    assert_eq!(held(&world, M1), 0);
}

#[test]
fn so_many_units_move_at_once_as_may() {
    let mut world = with_units(5);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(2), M1).unwrap();
    assert_eq!((held(&world, M1), held(&world, M2)), (5, 2));
    let turn = "its machine 00000001 is being drained, and it waits for its turn (--max-parallel 2)";
    assert_eq!(world.reason("u5.service"), turn);
    world.activate(M2);
    assert_eq!((held(&world, M1), held(&world, M2)), (3, 4));
    slow_to_start(&mut world, M2, false);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 5));
}

#[test]
fn a_drain_stops_what_lingers_at_its_end() {
    let mut world = with_units(1);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    world.pass(29);
    assert_eq!(held(&world, M1), 1);
    world.pass(2);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 1));
}

#[test]
fn an_old_copy_that_is_gone_makes_room_for_the_next() {
    let mut world = with_units(2);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(1), M1).unwrap();
    assert_eq!((held(&world, M1), held(&world, M2)), (2, 1));
    // As it was told by the leader before this one, which had stopped it.
    let agent = world.agents.get_mut(&M1).unwrap();
    let epoch = agent.held.remove(&name("u1.service")).unwrap().epoch;
    let connection = agent.connection.unwrap();
    let gone = UnitReport { name: name("u1.service"), epoch, change: ReportedChange::Gone };
    world.step(Input::Agent(connection, FromAgent::Report(vec![gone])));
    assert_eq!(held(&world, M2), 2);
}

#[test]
fn one_deadline_ends_the_whole_drain() {
    let mut world = with_units(3);
    world.start("here.service", &format!("[X-Fleet]\nMachineID={M1}\n"));
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(1), M1).unwrap();
    world.pass(20);
    world.activate(M2);
    // The second of them moves since then, and the third waits for its turn.
    assert_eq!((held(&world, M1), held(&world, M2)), (3, 2));
    world.pass(9);
    assert_eq!((held(&world, M1), held(&world, M2)), (3, 2));
    world.events.clear();
    world.pass(2);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 3), "but for what fits nowhere else");
    let left = ["u2.service", "u3.service", "here.service"].map(name);
    let told = world.events.iter().find_map(|event| match event {
        Event::NotDrained { machine, units } => Some((*machine, units.iter().cloned().collect())),
        _ => None,
    });
    assert_eq!(told, Some((M1, BTreeSet::from(left))));
    // What finds a place later does not wait either.
    world.replace(Verb::Start, "here.service", &super::service("")).unwrap();
    world.pass(1);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 4));
}

#[test]
fn the_time_of_a_drain_begins_with_the_command_and_with_the_leader() {
    let mut world = with_units(1);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    world.pass(29);
    assert_eq!(held(&world, M1), 1);
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.pass(29);
    assert_eq!(held(&world, M1), 1, "another leader");
    world.pass(2);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 1));
}

#[test]
fn the_deadline_of_a_drain_stops_nothing_that_would_run_nowhere() {
    let mut world = with_units(2);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(1), M1).unwrap();
    world.goodbye(M2, Goodbye::Shutdown);
    world.pass(40);
    assert_eq!(held(&world, M1), 2);
}

fn fails(world: &mut World, unit: &str) {
    world.report(M2, unit, Phase::StartFailed(Failure::without_result("exit-code")), "failed");
}

/// A unit of so many attempts moves from a machine that is drained to one where it is slow to start.
fn on_its_way(attempts: u32) -> World {
    let mut world = with_units(0);
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.start("u.service", &format!("[X-Muster]\nRescheduleAttempts={attempts}\n"));
    world.machine_command(Availability::Open, M2).unwrap();
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    world
}

#[test]
fn what_has_failed_elsewhere_runs_on_beyond_the_deadline() {
    for attempts in [0, 3] {
        let mut world = on_its_way(attempts);
        world.pass(28);
        fails(&mut world, "u.service");
        world.pass(10);
        assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
        let told =
            |event: &Event| matches!(event, Event::NotDrained { units, .. } if *units == [name("u.service")]);
        assert!(world.events.iter().any(told));
        let how = if attempts == 0 { "did not start" } else { "is being started" };
        assert!(left(&mut world)[0].starts_with(&format!("u.service {how}")), "{:?}", left(&mut world));
        // Nor is it stopped for another attempt.
        world.command(Verb::Restart, &[("u.service", None)]).unwrap();
        world.pass(1);
        assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
        slow_to_start(&mut world, M2, false);
        assert_eq!((held(&world, M1), held(&world, M2)), (0, 1));
    }
}

#[test]
fn what_has_failed_elsewhere_runs_on_under_the_next_leader_and_after_the_store_has_failed() {
    let failed = |attempts: u32| {
        let mut world = on_its_way(attempts);
        fails(&mut world, "u.service");
        world
    };
    let runs_on = |mut world: World| {
        world.pass(40);
        assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
    };
    for attempts in [0, 3] {
        let mut world = failed(attempts);
        world.fail_store();
        runs_on(world);
        for order in [[M1, M2], [M2, M1]] {
            let mut world = failed(attempts).restarted();
            order.into_iter().for_each(|id| world.connect(id));
            runs_on(world);
        }
    }
}

#[test]
fn what_has_failed_elsewhere_runs_on_where_its_machine_stays_after_all() {
    let mut world = with_units(0);
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.start("u.service", "[X-Muster]\nRescheduleAttempts=0\n");
    world.machine_command(Availability::Open, M2).unwrap();
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    fails(&mut world, "u.service");
    world.machine_command(Availability::Open, M1).unwrap();
    world.pass(70);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
}

#[test]
fn a_shutdown_waits_for_what_is_tried_again_and_not_for_what_was_given_up() {
    let mut world = with_units(0);
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.start("u.service", "[X-Muster]\nRescheduleAttempts=1\n");
    world.machine_command(Availability::Open, M2).unwrap();
    slow_to_start(&mut world, M2, true);
    world.goodbye(M1, Goodbye::Shutdown);
    fails(&mut world, "u.service");
    assert!(!world.agents[&M1].farewell);
    world.pass(6);
    assert!(!world.agents[&M1].farewell);
    fails(&mut world, "u.service");
    assert!(world.agents[&M1].farewell);
    // It comes to nothing.
    world.connect(M1);
    world.pass(70);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
}

#[test]
fn what_was_given_up_elsewhere_makes_room_for_the_next() {
    let mut world = with_units(0);
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.start("u1.service", "[X-Muster]\nRescheduleAttempts=1\n");
    world.start("u2.service", "");
    world.machine_command(Availability::Open, M2).unwrap();
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(1), M1).unwrap();
    fails(&mut world, "u1.service");
    assert_eq!((held(&world, M1), held(&world, M2)), (2, 1), "it is tried again");
    world.pass(6);
    fails(&mut world, "u1.service");
    assert_eq!((held(&world, M1), held(&world, M2)), (2, 2));
    slow_to_start(&mut world, M2, false);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 2));
}

#[test]
fn what_is_on_no_other_machine_after_all_runs_on_beyond_the_deadline() {
    let mut world = with_units(1);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    world.machine_command(Availability::Cordoned, M2).unwrap();
    world.reboot(M2);
    world.connect(M2);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 0));
    world.pass(40);
    assert_eq!(world.running("u1.service"), [M1]);
    assert_eq!(left(&mut world), ["u1.service runs on here, and no other machine takes it"]);
    // What finds a place later does not wait.
    world.machine_command(Availability::Open, M2).unwrap();
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 1));
}

#[test]
fn what_has_failed_here_too_ends_with_the_drain() {
    let mut world = with_units(1);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    fails(&mut world, "u1.service");
    world.report(M1, "u1.service", Phase::Failed(Failure::without_result("exit-code")), "failed");
    world.pass(31);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 1));
}

/// A one-shot unit at work on the first machine, and another machine.
fn at_work() -> World {
    let mut world = World::new(1);
    world.agents.get_mut(&M1).unwrap().activates = false;
    let job = "[Service]\nType=oneshot\nExecStart=/bin/true\n";
    world.command(Verb::Start, &[("job.service", Some(job))]).unwrap();
    world.join(M2, &[]);
    slow_to_start(&mut world, M2, true);
    world
}

#[test]
fn a_one_shot_unit_runs_to_its_end_before_it_moves() {
    let mut world = at_work();
    world.machine_command(drain(0), M1).unwrap();
    world.pass(20);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 0));
    assert_eq!(left(&mut world), ["job.service runs to its end here, if the time of the drain lasts"]);
    world.report(M1, "job.service", Phase::Launched, "inactive");
    assert!(world.status("job.service").unwrap().done);
    assert_eq!(world.running("job.service"), [], "it is not run again");
    assert!(world.events.contains(&Event::Drained(M1)));
}

#[test]
fn a_one_shot_unit_that_fails_moves_at_once() {
    let mut world = at_work();
    world.machine_command(drain(0), M1).unwrap();
    world.report(M1, "job.service", Phase::StartFailed(Failure::without_result("exit-code")), "failed");
    assert_eq!(world.running("job.service"), [M2]);
}

#[test]
fn a_one_shot_unit_has_as_long_as_the_drain() {
    let mut world = at_work();
    world.machine_command(drain(0), M1).unwrap();
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.pass(29);
    assert_eq!(world.running("job.service"), [M1]);
    world.pass(2);
    assert_eq!(world.running("job.service"), [M2]);
}

#[test]
fn a_one_shot_unit_whose_machine_shuts_down_stops_there_first() {
    let mut world = at_work();
    world.goodbye(M1, Goodbye::Shutdown);
    assert_eq!(world.running("job.service"), [M2]);
    assert!(world.agents[&M1].farewell);
}

#[test]
fn exclusive_units_on_their_way_are_counted() {
    let mut world = with_units(0);
    for number in 1..=3 {
        let options = "[X-Muster]\nExclusive=yes\n";
        let pinned = format!("{options}MachineID={M1}\n");
        world.start(&format!("x{number}.service"), &pinned);
        world.replace(Verb::Start, &format!("x{number}.service"), &super::service(options)).unwrap();
    }
    assert_eq!((held(&world, M1), held(&world, M2)), (3, 0));
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(1), M1).unwrap();
    assert_eq!((held(&world, M1), held(&world, M2)), (2, 1), "one has stopped here and is started there");
    world.pass(1);
    assert_eq!((held(&world, M1), held(&world, M2)), (2, 1));
    world.activate(M2);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 2));
    slow_to_start(&mut world, M2, false);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 3));
}

/// What is left on the first machine, as it is told.
fn left(world: &mut World) -> Vec<String> {
    let status = world.machines_with(vec![M1]).machines.swap_remove(0);
    assert_eq!(status.is_empty(), status.left.is_empty());
    let line = |left: &Left| format!("{} {}{}", left.unit, left.why, if left.stops { "." } else { "" });
    status.left.iter().map(line).collect()
}

#[test]
fn what_is_left_on_a_machine_is_told_with_why() {
    let mut world = with_units(2);
    world.start("all.service", "[X-Fleet]\nGlobal=true\n");
    world.start("here.service", &format!("[X-Fleet]\nMachineID={M1}\n"));
    assert_eq!(world.machines_with(Vec::new()).machines[0].left, []);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(1), M1).unwrap();
    let here =
        "here.service no other machine takes it: 00000002: MachineID= of here.service names another machine";
    let all = "all.service is global, and stops when nothing else is left";
    assert_eq!(
        left(&mut world),
        [
            "u1.service is being started on 00000002",
            here,
            "u2.service waits for its turn (--max-parallel 1)",
            all
        ]
    );
    world.report(M2, "u1.service", Phase::StartFailed(Failure::without_result("exit-code")), "failed");
    assert_eq!(
        left(&mut world)[0],
        "u1.service did not start on 00000002: exit-code; it is started anew in 5 s (attempt 1 of 3)"
    );
    // It is stopped where it was as soon as it is active; that takes its time.
    mute(&mut world, M1);
    world.report(M2, "u1.service", Phase::Launched, "active");
    assert_eq!(left(&mut world)[0], "u1.service is active on 00000002, and is being stopped here.");
    world.command(Verb::Destroy, &[("u1.service", None)]).unwrap();
    assert_eq!(left(&mut world)[0], "u1.service is being stopped here.");
    world.command(Verb::Destroy, &[("u2.service", None)]).unwrap();
    assert_eq!(left(&mut world)[2..], [here, all]);
}

#[test]
fn what_is_left_of_exclusive_units_and_after_the_deadline() {
    let mut world = with_units(1);
    let options = "[X-Muster]\nExclusive=yes\n";
    world.start("x.service", &format!("{options}MachineID={M1}\n"));
    world.replace(Verb::Start, "x.service", &super::service(options)).unwrap();
    slow_to_start(&mut world, M2, true);
    mute(&mut world, M1);
    world.machine_command(drain(0), M1).unwrap();
    let exclusive = "x.service is exclusive, and is being stopped here before it is started on 00000002.";
    assert_eq!(left(&mut world), ["u1.service is being started on 00000002", exclusive]);
    world.pass(31);
    assert_eq!(left(&mut world), ["u1.service is being stopped here, and goes to 00000002.", exclusive]);
}

#[test]
fn why_a_copy_does_not_end_is_told_wherever_it_is_waited_for() {
    let mut world = with_units(0);
    world.start("x.service", &format!("[X-Muster]\nExclusive=yes\nMachineID={M1}\n"));
    world.replace(Verb::Start, "x.service", &super::service("[X-Muster]\nExclusive=yes\n")).unwrap();
    mute(&mut world, M1);
    world.machine_command(drain(0), M1).unwrap();
    world.events.clear();
    let epoch = world.leader.retired[&(M1, name("x.service"))].epoch;
    let state = UnitState { load: "loaded".into(), active: "active".into(), sub: "running".into() };
    let connection = world.agents[&M1].connection.unwrap();
    for _ in 0..2 {
        let phase = Phase::StopFailed(Failure::without_result("systemd refuses to stop it: busy"));
        let observation = Observation::Held { phase, state: Some(state.clone()) };
        let change = ReportedChange::Observed(observation);
        let report = UnitReport { name: name("x.service"), epoch, change };
        world.step(Input::Agent(connection, FromAgent::Report(vec![report])));
    }
    let why = "systemd refuses to stop it: busy";
    let left = left(&mut world);
    let place = "before it is started on 00000002";
    assert_eq!(left, [format!("x.service is exclusive, and is being stopped here {place}: {why}.")]);
    let waits = format!("00000001 has not yet said that its copy there has ended: {why}");
    assert!(world.reason("x.service").contains(&waits), "{}", world.reason("x.service"));
    let told: Vec<String> = world.events.iter().map(|event| format!("{}: {event}", event.kind())).collect();
    let event = format!("stop_failed: x.service could not be ended on 00000001, and is tried again: {why}");
    assert_eq!(told, [event]);
}

#[test]
fn of_much_that_is_left_the_first_is_told() {
    let mut world = with_units(0);
    for number in 10..40 {
        world.start(&format!("u{number}.service"), &format!("[X-Fleet]\nMachineID={M1}\n"));
    }
    world.machine_command(drain(0), M1).unwrap();
    let status = world.machines_with(vec![M1]).machines.swap_remove(0);
    assert_eq!((status.left.len(), status.units), (10, 30));
    let why = |world: &mut World| world.machines_with(vec![M1]).machines[0].left[0].why.clone();
    for number in 3..9 {
        world.join(machine(number), &[]);
    }
    assert_eq!(
        why(&mut world),
        "no other machine takes it: 7 machines: MachineID= of u10.service names another machine"
    );
    let mut alone = World::new(1);
    alone.start("u.service", "");
    alone.machine_command(drain(0), M1).unwrap();
    assert_eq!(why(&mut alone), "no other machine takes it: there is none");
}

#[test]
fn a_machine_is_drained_when_it_says_so() {
    let mut world = with_units(1);
    let drained = |world: &mut World| {
        let drained = world.events.iter().filter(|event| **event == Event::Drained(M1)).count();
        world.events.clear();
        drained
    };
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    let begun = world.events.iter().find(|event| matches!(event, Event::Availability { .. })).unwrap();
    assert_eq!(begun.kind(), "machine_drains");
    assert_eq!(drained(&mut world), 0);
    slow_to_start(&mut world, M2, false);
    assert_eq!(drained(&mut world), 1);
    world.pass(60);
    assert!(world.events.is_empty(), "{:?}", world.events);
    // Of one that is not heard from nobody knows.
    let mut world = world.restarted();
    world.connect(M2);
    world.pass(1);
    assert_eq!(drained(&mut world), 0);
    world.connect(M1);
    assert_eq!(drained(&mut world), 1);
}

#[test]
fn an_orphan_keeps_a_machine_from_being_drained() {
    let mut world = with_units(1);
    // A store that has no record of what the machine runs.
    world.stored.units.remove(&name("u1.service"));
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.machine_command(drain(0), M1).unwrap();
    assert!(!world.events.contains(&Event::Drained(M1)));
    world.pass(31);
    let left = Event::NotDrained { machine: M1, units: vec![name("u1.service")] };
    assert!(world.events.contains(&left), "{:?}", world.events);
    assert_eq!(held(&world, M1), 1, "it is left alone");
    world.command(Verb::Destroy, &[("u1.service", None)]).unwrap();
    assert!(world.events.contains(&Event::Drained(M1)));
}

#[test]
fn what_fits_nowhere_else_stays_on_a_drained_machine() {
    let mut world = with_units(1);
    world.start("here.service", &format!("[X-Fleet]\nMachineID={M1}\n"));
    world.machine_command(drain(0), M1).unwrap();
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
    let reason = world.reason("here.service");
    assert!(reason.contains("is being drained, and no other machine takes the unit"), "{reason}");
    world.pass(60);
    assert_eq!(held(&world, M1), 1);
    assert_eq!(world.machines().machines[0].units, 1, "what is left there is seen");
}

#[test]
fn a_unit_that_is_destroyed_while_it_moves_is_gone_everywhere() {
    for verb in [Verb::Destroy, Verb::Unload] {
        let mut world = with_units(1);
        slow_to_start(&mut world, M2, true);
        world.machine_command(drain(0), M1).unwrap();
        assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
        world.command(verb, &[("u1.service", None)]).unwrap();
        assert_eq!((held(&world, M1), held(&world, M2)), (0, 0));
    }
}

#[test]
fn a_machine_lost_while_its_unit_moves_to_it_gives_it_to_others() {
    let mut world = with_units(1);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    world.join(machine(3), &[]);
    world.agents.get_mut(&machine(3)).unwrap().activates = false;
    world.cut(M2);
    world.pass(7);
    assert_eq!(held(&world, machine(3)), 1);
    assert_eq!(held(&world, M1), 1, "the old copy runs on until the newest one is active");
    slow_to_start(&mut world, machine(3), false);
    assert_eq!(held(&world, M1), 0);
}

#[test]
fn a_machine_that_shuts_down_is_told_when_its_units_are_active_elsewhere() {
    let mut world = with_units(2);
    slow_to_start(&mut world, M2, true);
    world.goodbye(M1, Goodbye::Shutdown);
    assert_eq!((held(&world, M1), held(&world, M2)), (2, 2));
    assert!(!world.agents[&M1].farewell);
    slow_to_start(&mut world, M2, false);
    assert!(world.agents[&M1].farewell);
    // It is off; nobody doubts that.
    world.reboot(M1);
    world.pass(7);
    assert!(!world.events.iter().any(|event| matches!(event, Event::BrakeApplied { .. })));
    // It comes back, and takes units again.
    world.connect(M1);
    world.start("new.service", "");
    assert_eq!(world.running("new.service"), [M1]);
    assert_eq!(world.running("u1.service"), [M2]);
}

#[test]
fn a_machine_that_does_not_shut_down_after_all_takes_units_again() {
    let mut world = with_units(1);
    slow_to_start(&mut world, M2, true);
    world.goodbye(M1, Goodbye::Shutdown);
    world.start("new.service", &format!("[X-Fleet]\nMachineID={M1}\n"));
    assert_eq!(held(&world, M1), 1, "it gets nothing new");
    world.connect(M1);
    assert_eq!(held(&world, M1), 2);
    // What is on its way elsewhere goes there.
    slow_to_start(&mut world, M2, false);
    assert_eq!((world.running("u1.service"), world.running("new.service")), (vec![M2], vec![M1]));
    let back =
        |event: &&Event| matches!(event, Event::MachineUp { machine: M1, arrival: Arrival::Returned, .. });
    assert_eq!(world.events.iter().filter(back).count(), 1);
}

#[test]
fn what_a_shutdown_that_came_to_nothing_left_behind_ends() {
    let mut world = with_units(1);
    slow_to_start(&mut world, M2, true);
    world.goodbye(M1, Goodbye::Shutdown);
    world.connect(M1);
    world.pass(59);
    assert_eq!(held(&world, M1), 1);
    world.pass(2);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 1));
}

#[test]
fn a_machine_whose_units_fit_nowhere_else_need_not_wait() {
    let mut world = World::new(1);
    world.start("u.service", "");
    world.goodbye(M1, Goodbye::Shutdown);
    assert!(world.agents[&M1].farewell);
    assert_eq!(world.running("u.service"), [M1]);
    world.reboot(M1);
    world.connect(M1);
    assert_eq!(world.running("u.service"), [M1]);
}

#[test]
fn an_agent_that_is_restarted_has_a_longer_lease() {
    let mut world = with_units(1);
    world.goodbye(M1, Goodbye::Restart);
    assert!(world.agents[&M1].farewell);
    world.cut(M1);
    world.pass(29);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 0));
    // It is back, with a lease as any other.
    world.connect(M1);
    world.cut(M1);
    world.pass(6);
    assert_eq!(world.running("u1.service"), [M1, M2]);
}

#[test]
fn a_drain_is_a_decision_and_waits_for_its_commit() {
    let mut world = with_units(1);
    world.committing = false;
    world.step(Input::Machines(crate::leader::RequestId(7000), machines_command(drain(0), M1)));
    assert!(world.machine_results.is_empty());
    assert_eq!(held(&world, M2), 0);
    world.fail_store();
    let result = world.machine_results.values().next().unwrap();
    assert!(matches!(result, Err(MachineCommandError::Store(_))), "{result:?}");
    world.pass(2);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 0));
    assert_eq!(world.machines().machines[0].availability, Availability::Open);
    assert!(
        world.leader.units.get(&name("u1.service")).is_some_and(|unit| unit.placements.contains_key(&M1))
    );
    world.pass(Duration::from_secs(60).as_secs());
    assert_eq!(held(&world, M1), 1);
}

#[test]
fn what_a_dead_machine_cannot_stop_is_said_once() {
    let mut world = World::new(2);
    world.start("everywhere.service", "[X-Fleet]\nGlobal=true\n");
    world.cut(M1);
    world.pass(7);
    world.machine_command(drain(0), M1).unwrap();
    world.pass(60);
    let said = world.events.iter().filter(|event| matches!(event, Event::Unplaced { .. }));
    assert_eq!(said.count(), 1);
}

#[test]
fn a_drain_that_is_asked_for_again_has_no_more_time() {
    let mut world = with_units(1);
    slow_to_start(&mut world, M2, true);
    world.machine_command(drain(0), M1).unwrap();
    world.pass(20);
    world.machine_command(drain(0), M1).unwrap();
    world.pass(11);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 1));
}

#[test]
fn a_drain_that_is_asked_for_again_when_its_time_has_passed_begins_anew() {
    let mut world = with_units(1);
    world.join(machine(3), &[]);
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    slow_to_start(&mut world, M2, true);
    // The third may have a later copy, as far as the leader knows: nothing is placed before it is lost.
    let drain = Availability::Draining(Drain { timeout_ms: 3000, max_parallel: 0 });
    world.machine_command(drain, M1).unwrap();
    world.pass(4);
    world.machine_command(drain, M1).unwrap();
    world.pass(2);
    assert_eq!((held(&world, M1), held(&world, M2)), (1, 1));
    world.pass(2);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 1));
}

/// Its answer was lost, and somebody else has decided something since.
#[test]
fn a_drain_that_is_repeated_under_its_id_is_no_second_one() {
    let mut world = with_units(2);
    let first = CommandId::new(99);
    world.machine_command_as(first, drain(0), M1).unwrap();
    world.pass(2);
    assert_eq!((held(&world, M1), held(&world, M2)), (0, 2));
    world.machine_command(Availability::Open, M1).unwrap();
    world.machine_command_as(first, drain(0), M1).unwrap();
    world.pass(2);
    assert_eq!(world.machines().machines[0].availability, Availability::Open);
    // Nor under the next leader.
    let mut next = World::of(world.stored.clone(), Term(2));
    next.agents = std::mem::take(&mut world.agents);
    for id in [M1, M2] {
        next.agents.get_mut(&id).unwrap().connection = None;
        next.connect(id);
    }
    next.machine_command_as(first, drain(0), M1).unwrap();
    next.pass(2);
    assert_eq!(next.machines().machines[0].availability, Availability::Open);
    // One that changed nothing is carried out when it comes again.
    let error = next.machine_command_as(CommandId::new(98), drain(0), machine(9)).unwrap_err();
    assert_eq!(error, MachineCommandError::NoSuchMachine(machine(9)));
    next.join(machine(9), &[]);
    next.machine_command_as(CommandId::new(98), drain(0), machine(9)).unwrap();
    assert_eq!(next.machines().machines[2].availability, drain(0));
}
