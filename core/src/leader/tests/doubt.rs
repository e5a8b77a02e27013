//! The leader doubts itself before it takes machines for dead.

use std::time::Duration;

use super::world::{World, machine, name, with_units};
use crate::command::Verb;
use crate::ids::{MachineId, Term};
use crate::leader::{Event, EventFilter, Input, Leader, ReleaseReason, RequestId, Settings};
use crate::machine::MachineState;

/// A cluster of so many machines with a unit on each; the leader runs on the first one.
fn cluster(machines: u128) -> World {
    let mut world = World::new(0);
    let settings = Settings { own_machine: Some(machine(1)), ..Settings::default() };
    world.leader = Leader::new(settings, Term(1), world.stored.clone(), world.now);
    for number in 1..=machines {
        world.join(machine(number), &[]);
    }
    for number in 1..=machines {
        world.start(&format!("u{number}.service"), "");
    }
    assert!(world.agents.values().all(|agent| agent.held.len() == 1));
    world
}

/// How many units run on machines that are connected.
fn running(world: &World) -> usize {
    let connected = world.agents.values().filter(|agent| agent.connection.is_some());
    connected.map(|agent| agent.held.len()).sum()
}

fn released(world: &World) -> Vec<ReleaseReason> {
    let reason = |event: &Event| match event {
        Event::BrakeReleased { reason, .. } => Some(*reason),
        _ => None,
    };
    world.events.iter().filter_map(reason).collect()
}

fn is_braked(world: &World) -> bool {
    world.leader.braked().is_some()
}

#[test]
fn a_stall_of_the_leader_is_counted_against_no_machine() {
    let mut world = cluster(3);
    for stall in [1, 6, 3600] {
        world.now = world.now + Duration::from_secs(stall);
        world.step(Input::Tick);
        world.pass(1);
    }
    assert_eq!(running(&world), 3);
    let stalled = |event: &&Event| matches!(event, Event::Stalled(_));
    assert_eq!(world.events.iter().filter(stalled).count(), 3);
    // From its end on, every machine has a lease's time.
    world.cut(machine(2));
    world.now = world.now + Duration::from_secs(10);
    world.pass(4);
    assert_eq!(running(&world), 2);
    world.pass(2);
    assert_eq!(running(&world), 3);
}

#[test]
fn stalls_that_follow_each_other_are_told_of_as_one() {
    let mut world = cluster(1);
    for _ in 0..40 {
        world.now = world.now + Duration::from_millis(850);
        world.step(Input::Tick);
        world.step(Input::Tick);
    }
    let told = |world: &World| {
        let stall = |event: &Event| if let Event::Stalled(stalled) = event { Some(*stalled) } else { None };
        world.events.iter().filter_map(stall).collect::<Vec<_>>()
    };
    let times = told(&world);
    assert!((5..=8).contains(&times.len()), "34 s: {times:?}");
    world.pass(6);
    assert_eq!(told(&world).iter().sum::<Duration>(), Duration::from_millis(600) * 40);
}

#[test]
fn one_machine_of_three_or_of_two_is_replaced_at_once() {
    for machines in [2, 3] {
        let mut world = cluster(machines);
        world.cut(machine(2));
        world.pass(6);
        assert_eq!(running(&world), usize::try_from(machines).unwrap());
        assert!(!is_braked(&world));
    }
}

#[test]
fn when_a_third_seems_to_die_at_once_nothing_is_moved_until_they_are_back() {
    let mut world = cluster(6);
    world.cut(machine(2));
    // Of two that die within a lease the first one is known to be dead before the other one.
    world.pass(2);
    world.cut(machine(3));
    world.pass(10);
    assert_eq!(running(&world), 4);
    assert!(is_braked(&world));
    let reason = world.reason("u2.service");
    assert!(reason.contains("2 machines seem to have died at once"), "{reason}");
    // What is new goes where there is room.
    world.start("new.service", "");
    assert_eq!(running(&world), 5);
    // One is back: the other one may be on its way, and if it is not, it may well be dead.
    world.connect(machine(2));
    world.pass(4);
    assert!(is_braked(&world));
    world.pass(2);
    assert_eq!(released(&world), [ReleaseReason::MachinesBack]);
    assert_eq!(running(&world), 7);
    // That one comes back as well, and stops what was moved.
    world.connect(machine(3));
    world.pass(1);
    assert_eq!(running(&world), 7);
}

/// What was told of the unit, in words.
fn story(world: &World, unit: &str) -> Vec<String> {
    let filter = EventFilter { units: [name(unit)].into(), ..Default::default() };
    let told = world.events.iter().filter(|event| filter.wants(event));
    told.map(|event| format!("{}: {event}", event.kind())).collect()
}

#[test]
fn the_story_of_a_unit_that_the_brake_holds_tells_of_it() {
    let mut world = cluster(3);
    world.start("all.service", "[X-Fleet]\nGlobal=yes\n");
    world.events.clear();
    world.cut(machine(2));
    world.cut(machine(3));
    world.pass(17);
    let reason = "its machine 00000002 is unreachable, and the brake has been on for 11 s: 2 machines seem to have died at \
                  once, and nothing is moved until they are back; if they are really dead: `musterctl brake release`";
    assert_eq!(world.reason("u2.service"), reason);
    let applied = "brake_applied: 2 of 3 machines seem to have died at once (00000002 and 00000003): nothing is moved off \
                   lost machines, which holds u2.service and u3.service, until they are back, or brake_hold has passed while \
                   others are up; if they are really dead: `musterctl brake release`";
    let lost = |number: u32| {
        format!(
            "machine_lost: machine 0000000{number} is lost: its lease ended; it had all.service and u{number}.service; the \
             brake holds u{number}.service there (`musterctl brake release`)"
        )
    };
    assert_eq!(story(&world, "u2.service"), [applied.to_owned(), lost(2)]);
    assert_eq!(story(&world, "u1.service"), [""; 0]);
    // Where others are up it is not held for ever; and what is lost while it is on is held as well.
    world.command(Verb::Destroy, &[("all.service", None)]).unwrap();
    world.join(machine(4), &[]);
    world.start("new.service", "[X-Fleet]\nMachineID=00000004\n");
    world.pass(10);
    assert!(
        world.reason("u2.service").contains(" are back, for 39 s more at most; "),
        "{}",
        world.reason("u2.service")
    );
    world.events.clear();
    world.cut(machine(4));
    world.pass(6);
    assert!(
        story(&world, "new.service")[0]
            .ends_with("new.service, held there by the brake (`musterctl brake release`)")
    );
    assert!(world.reason("new.service").contains("the brake has been on for "));
    world.events.clear();
    world.step(Input::ReleaseBrake(RequestId(7)));
    let released = "brake_released: units of lost machines are moved again: an operator released it";
    for unit in ["u2.service", "new.service"] {
        assert_eq!(story(&world, unit)[0], released, "{unit}");
    }
    assert_eq!(story(&world, "all.service"), [""; 0], "a global unit does not move");
}

#[test]
fn machines_that_come_back_one_by_one_keep_their_units() {
    let mut world = cluster(3);
    world.cut(machine(2));
    world.cut(machine(3));
    world.pass(8);
    world.connect(machine(2));
    world.pass(2);
    world.connect(machine(3));
    assert_eq!(released(&world), [ReleaseReason::MachinesBack]);
    assert!(world.agents.values().all(|agent| agent.held.len() == 1));
    assert!(!world.events.iter().any(|event| matches!(event, Event::Placed { from: Some(_), .. })));
}

#[test]
fn fewer_than_a_third_are_replaced_at_once() {
    let mut world = cluster(7);
    world.cut(machine(2));
    world.cut(machine(3));
    world.pass(6);
    assert_eq!(running(&world), 7);
    assert!(!is_braked(&world));
}

#[test]
fn machines_that_die_one_after_the_other_are_replaced_one_after_the_other() {
    let mut world = cluster(6);
    for number in [2, 3, 4] {
        world.cut(machine(number));
        world.pass(12);
        assert_eq!(running(&world), 6, "machine {number}");
    }
    assert!(!is_braked(&world));
}

#[test]
fn the_brake_is_held_for_a_while_only() {
    let mut world = cluster(3);
    world.cut(machine(2));
    world.cut(machine(3));
    world.join(machine(4), &[]);
    world.pass(60);
    assert_eq!(running(&world), 1);
    assert!(world.machines().brake.unwrap().left_ms > 0);
    let why = world.reason("u2.service");
    assert!(why.contains("until they are back, for 6 s more at most; if they are really dead"), "{why}");
    world.pass(6);
    assert_eq!(running(&world), 3);
    assert_eq!(released(&world), [ReleaseReason::HoldPassed]);
}

#[test]
fn a_leader_that_sees_no_machine_but_its_own_moves_nothing_until_an_operator_says_so() {
    let mut world = cluster(3);
    world.cut(machine(2));
    world.cut(machine(3));
    for seconds in [10, 600] {
        world.pass(seconds);
        assert_eq!(running(&world), 1);
        assert_eq!(world.machines().brake.unwrap().left_ms, 0, "no time ends it");
        let why = world.reason("u2.service");
        assert!(
            why.contains("until they are back; if they are really dead: `musterctl brake release`"),
            "{why}"
        );
    }
    let request = RequestId(world.id());
    world.step(Input::ReleaseBrake(request));
    assert_eq!(running(&world), 3);
    assert_eq!(released(&world), [ReleaseReason::Operator]);
    assert_eq!(world.released, Some(vec![machine(2), machine(3)]));
    world.step(Input::ReleaseBrake(request));
    assert_eq!(world.released, None, "it is not held any more");
}

#[test]
fn an_operators_word_holds_for_all_machines_that_were_silent() {
    let mut world = cluster(3);
    world.cut(machine(2));
    world.pass(1);
    world.cut(machine(3));
    while !is_braked(&world) {
        world.pass(1);
    }
    assert!(world.machines().machines[2].state != MachineState::Unreachable, "its lease is not over yet");
    let request = RequestId(world.id());
    world.step(Input::ReleaseBrake(request));
    world.pass(3);
    assert_eq!(running(&world), 3);
}

#[test]
fn machines_that_do_not_come_back_to_a_new_leader_count() {
    let mut world = cluster(3).restarted();
    world.connect(machine(1));
    world.pass(8);
    assert!(is_braked(&world));
    assert_eq!(running(&world), 1);
    world.connect(machine(2));
    world.pass(6);
    assert_eq!(running(&world), 3, "the third one is dead");
}

#[test]
fn machines_that_were_away_before_the_leader_took_office_do_not_count() {
    let mut world = cluster(6);
    for number in [4, 5, 6] {
        world.cut(machine(number));
        world.pass(12);
    }
    let mut world = world.restarted();
    for number in [1, 2, 3] {
        world.connect(machine(number));
    }
    world.pass(8);
    assert!(!is_braked(&world));
    // Of those three, one is one of three.
    world.cut(machine(2));
    world.pass(6);
    assert_eq!(running(&world), 6);
}

#[test]
fn who_is_silent_is_so_also_where_another_leader_granted_it_more() {
    let mut world = cluster(3);
    world.stored.machines.get_mut(&machine(2)).unwrap().lease = Duration::from_secs(20);
    let mut world = world.restarted();
    (1..=3).for_each(|number| world.connect(machine(number)));
    world.pass(2);
    world.cut(machine(2));
    world.cut(machine(3));
    world.pass(6);
    assert!(is_braked(&world));
}

/// What a machine with a unit was granted by a leader with other settings, and where that runs after so many seconds.
fn after_a_longer_lease(says_hello: bool, grace: u64, seconds: u64) -> Vec<MachineId> {
    let mut world = with_units(1);
    let record = world.stored.machines.get_mut(&machine(1)).unwrap();
    (record.lease, record.grace) = (Duration::from_secs(20), Duration::from_secs(grace));
    let mut world = world.restarted();
    world.connect(machine(2));
    if says_hello {
        world.connect(machine(1));
        world.cut(machine(1));
    }
    world.pass(seconds);
    world.stored.units.values().flat_map(|unit| unit.placements.keys().copied()).collect()
}

#[test]
fn a_lease_that_was_granted_under_other_settings_is_waited_for() {
    // Also where its agent was restarted lately, which is back.
    for (says_hello, grace) in [(false, 0), (true, 0), (true, 30)] {
        assert_eq!(after_a_longer_lease(says_hello, grace, 20), [machine(1)]);
        assert_eq!(after_a_longer_lease(says_hello, grace, 21), [machine(2)]);
    }
}
