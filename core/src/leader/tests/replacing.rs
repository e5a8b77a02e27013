//! `Replaces=`: what is in the way is placed elsewhere first, or the unit waits.

use super::world::{World, drain, machine, name, service};
use crate::command::Verb;
use crate::ids::MachineId;
use crate::leader::{Event, PlaceReason};
use crate::machine::Availability;

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);
const M3: MachineId = machine(3);

const REPLACES: &str = "[X-Fleet]\nReplaces=old*.service\n";

/// One machine with `old.service`, and a second one that is busier.
fn with_old(options: &str) -> World {
    let mut world = World::new(1);
    world.start("old.service", options);
    world.join(M2, &[]);
    world.start("a.service", "[X-Muster]\nCPU=1\n");
    assert_eq!((world.running("old.service"), world.running("a.service")), (vec![M1], vec![M2]));
    world
}

fn slow(world: &mut World, id: MachineId, slow: bool) {
    world.agents.get_mut(&id).unwrap().activates = !slow;
    if !slow {
        world.activate(id);
    }
}

#[test]
fn what_it_replaces_is_active_elsewhere_before_it_stops_and_then_it_starts() {
    let mut world = with_old("");
    slow(&mut world, M2, true);
    world.start("new.service", REPLACES);
    assert_eq!(world.running("old.service"), [M1, M2], "its old copy runs on");
    assert!(world.running("new.service").is_empty());
    let waits = "it waits for old.service, which it replaces and which is leaving 00000001 for 00000002";
    assert_eq!(world.reason("new.service"), waits);
    slow(&mut world, M2, false);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M2], vec![M1]));
    let moved = world.events.iter().find_map(|event| match event {
        Event::Placed { unit, reason: PlaceReason::MakesRoom, with, .. } => {
            Some((unit.clone(), with.clone()))
        }
        _ => None,
    });
    assert_eq!(moved, Some((name("old.service"), Some(name("new.service")))));
    // Nor does it come back to it.
    world.machine_command(drain(0), M2).unwrap();
    assert_eq!(world.running("old.service"), [M2]);
}

#[test]
fn nothing_moves_where_a_less_loaded_machine_takes_it_as_it_is() {
    let mut world = with_old("");
    world.join(M3, &[]);
    world.start("new.service", REPLACES);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M1], vec![M3]));
}

#[test]
fn it_waits_where_what_it_replaces_fits_nowhere_else() {
    // The other machine has not enough left for the one, nor for the other.
    let mut world = with_old("[X-Muster]\nMemory=300M\n");
    world.start("b.service", "[X-Muster]\nMemory=800M\n");
    let new = "[X-Fleet]\nReplaces=old.service\n[X-Muster]\nMemory=500M\n";
    world.start("new.service", new);
    assert!(world.running("new.service").is_empty());
    let status = world.status("new.service").unwrap().waiting.unwrap();
    assert_eq!(status.reason, "no machine takes the unit");
    let there = "old.service is there: Replaces=old.service of new.service".to_owned();
    assert!(status.machines.contains(&(M1, there)), "{:?}", status.machines);
    // Once another machine could take it, it is moved.
    world.join(M3, &[]);
    world.start("c.service", "[X-Fleet]\nMachineID=00000003\n[X-Muster]\nMemory=600M\n");
    world.command(Verb::Destroy, &[("new.service", None)]).unwrap();
    world.start("new.service", new);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M3], vec![M1]));
}

#[test]
fn a_machine_that_joins_takes_what_is_in_the_way() {
    let mut world = World::new(1);
    world.start("old.service", "");
    world.start("new.service", "[X-Fleet]\nReplaces=old.service\nMachineMetadata=disk=fast\n");
    assert!(world.running("new.service").is_empty());
    // The first machine has no such label: nothing is moved for nothing.
    world.join(M2, &[]);
    assert_eq!(world.running("old.service"), [M1]);
    let mut world =
        World::of(crate::leader::Durable::new(crate::ids::ClusterId::new(7)), crate::ids::Term(1));
    world.join(M1, &[("disk", "fast")]);
    world.start("old.service", "");
    world.start("new.service", "[X-Fleet]\nReplaces=old.service\nMachineMetadata=disk=fast\n");
    assert!(world.running("new.service").is_empty());
    world.join(M2, &[]);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M2], vec![M1]));
}

#[test]
fn all_that_is_in_the_way_goes_or_nothing_does() {
    let mut world = World::new(1);
    for unit in ["old1.service", "old2.service"] {
        world.start(unit, "[X-Muster]\nMemory=300M\n");
    }
    world.join(M2, &[]);
    // Only one of them fits there.
    world.start("a.service", "[X-Muster]\nMemory=600M\nCPU=2\n");
    world.start("new.service", "[X-Fleet]\nReplaces=old?.service\n[X-Muster]\nMemory=700M\n");
    assert_eq!(world.running("new.service"), [M1; 0]);
    assert_eq!((world.running("old1.service"), world.running("old2.service")), (vec![M1], vec![M1]));
    assert_eq!(world.leader.placer.differences(), [""; 0]);
    // The second machine takes the unit once it has the room.
    world.command(Verb::Destroy, &[("a.service", None)]).unwrap();
    assert_eq!(world.running("new.service"), [M2]);
}

#[test]
fn what_is_tied_to_it_goes_with_it() {
    let mut world = with_old("");
    world.start("with-old.service", "[X-Fleet]\nMachineOf=old.service\n");
    world.start("b.service", "[X-Fleet]\nMachineID=00000002\n[X-Muster]\nCPU=1\n");
    world.start("new.service", REPLACES);
    assert_eq!((world.running("old.service"), world.running("with-old.service")), (vec![M2], vec![M2]));
    assert_eq!(world.running("new.service"), [M1]);
}

#[test]
fn what_is_tied_to_a_unit_that_stays_stays() {
    let mut world = World::new(1);
    world.start("anchor.service", "");
    world.start("old.service", "[X-Fleet]\nMachineOf=anchor.service\n");
    world.join(M2, &[]);
    world.start("a.service", "[X-Muster]\nCPU=1\n");
    world.start("new.service", REPLACES);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M1], vec![M2]));
}

#[test]
fn global_units_and_those_that_replace_it_in_turn_stay() {
    let mut world = World::new(1);
    world.start("old-everywhere.service", "[X-Fleet]\nGlobal=true\n");
    world.start("new.service", REPLACES);
    assert!(world.running("new.service").is_empty());
    assert_eq!(world.running("old-everywhere.service"), [M1]);

    let mut world = with_old("[X-Fleet]\nReplaces=new.service\n");
    world.start("new.service", REPLACES);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M1], vec![M2]));
}

#[test]
fn what_runs_to_its_end_is_waited_for() {
    let mut world = World::new(1);
    world
        .command(Verb::Start, &[("old.service", Some("[Service]\nType=oneshot\nExecStart=/bin/true\n"))])
        .unwrap();
    world.report(M1, "old.service", crate::state::Phase::Launched, "activating");
    world.join(M2, &[]);
    world.start("a.service", "[X-Muster]\nCPU=1\n");
    world.start("new.service", REPLACES);
    assert_eq!(world.running("old.service"), [M1]);
    assert_eq!(world.running("new.service"), [M2]);
}

#[test]
fn a_machine_that_is_lost_meanwhile_is_not_waited_for() {
    let mut world = with_old("");
    slow(&mut world, M2, true);
    world.start("new.service", REPLACES);
    assert_eq!(world.running("old.service"), [M1, M2]);
    // The machine on which room is made is drained: the other one would have to take it.
    world.join(M3, &[]);
    world.machine_command(drain(0), M1).unwrap();
    assert_eq!(world.running("new.service"), [M3]);
}

#[test]
fn what_is_lost_with_its_machine_moves_nothing_if_it_need_not() {
    let mut world = with_old("");
    world.start("new.service", REPLACES);
    world.join(M3, &[]);
    for unit in ["b.service", "c.service"] {
        world.start(unit, "[X-Fleet]\nMachineID=00000003\n[X-Muster]\nCPU=1\n");
    }
    world.command(Verb::Destroy, &[("a.service", None)]).unwrap();
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M2], vec![M1]));
    // The second machine is the least loaded, but for what is replaced there.
    world.cut(M1);
    world.agents.remove(&M1);
    world.pass(10);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M2], vec![M3]));
}

#[test]
fn what_leaves_for_another_reason_and_what_never_leaves_are_not_waited_for() {
    let mut world = with_old("");
    world.agents.get_mut(&M1).unwrap().deaf = true;
    world.machine_command(drain(0), M1).unwrap();
    world.machine_command(Availability::Open, M1).unwrap();
    world.join(M3, &[]);
    // Its old copy does not end, which is no reason to wait for it.
    world.start("new.service", REPLACES);
    assert_eq!(world.running("new.service"), [M3]);

    let mut world = with_old("");
    slow(&mut world, M2, true);
    world.start("new.service", REPLACES);
    assert!(world.running("new.service").is_empty());
    world.join(M3, &[]);
    world.pass(58);
    assert!(world.running("new.service").is_empty(), "it may still become active");
    world.pass(3);
    assert_eq!(world.running("new.service").len(), 1);
}

#[test]
fn what_is_tied_to_several_that_make_room_goes_with_all_of_them() {
    let mut world = World::new(1);
    world.start("old1.service", "");
    world.start("old2.service", "[X-Fleet]\nMachineOf=old1.service\n");
    world.start("both.service", "[X-Fleet]\nMachineOf=old1.service\nMachineOf=old2.service\n");
    world.join(M2, &[]);
    world.start("a.service", "[X-Muster]\nCPU=2\n");
    world.start("new.service", REPLACES);
    assert_eq!(world.running("new.service"), [M1]);
    for unit in ["old1.service", "old2.service", "both.service"] {
        assert_eq!(world.running(unit), [M2]);
    }
}

#[test]
fn two_that_replace_the_same_unit_do_not_move_it_to_and_fro() {
    let mut world = with_old("");
    slow(&mut world, M2, true);
    let file = service(REPLACES);
    world.command(Verb::Start, &[("new1.service", Some(&file)), ("new2.service", Some(&file))]).unwrap();
    assert_eq!(world.running("old.service"), [M1, M2]);
    slow(&mut world, M2, false);
    assert_eq!(world.running("old.service"), [M2]);
    assert_eq!((world.running("new1.service"), world.running("new2.service")), (vec![M1], vec![M1]));
}

#[test]
fn a_leader_that_takes_over_lets_the_old_copy_run_on() {
    let mut world = with_old("");
    slow(&mut world, M2, true);
    world.start("new.service", REPLACES);
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.pass(1);
    assert_eq!(world.running("old.service"), [M1, M2], "it is not active elsewhere yet");
    assert!(world.running("new.service").is_empty());
    slow(&mut world, M2, false);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M2], vec![M1]));
}

#[test]
fn an_exclusive_unit_has_ended_here_before_it_starts_elsewhere() {
    let mut world = with_old("[X-Muster]\nExclusive=yes\n");
    world.agents.get_mut(&M1).unwrap().deaf = true;
    world.start("new.service", REPLACES);
    assert_eq!(world.running("old.service"), [M1], "it is not started elsewhere before it has ended");
    world.agents.get_mut(&M1).unwrap().deaf = false;
    world.cut(M1);
    world.connect(M1);
    assert_eq!((world.running("old.service"), world.running("new.service")), (vec![M2], vec![M1]));
}
