//! Labels of machines that clients change.

use std::collections::BTreeMap;

use super::world::{World, machine, name};
use crate::command::MachineCommandError;
use crate::ids::MachineId;
use crate::leader::{Event, UnplaceReason};
use crate::machine::Labels;

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);

const SSD: &str = "[X-Fleet]\nMachineMetadata=disk=ssd\n";

fn labels(world: &mut World, id: MachineId) -> Labels {
    let status = world.machines();
    status.machines.into_iter().find(|machine| machine.id == id).expect("known").record.labels
}

fn list<const N: usize>(labels: [(&str, &str); N]) -> Labels {
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[test]
fn what_is_changed_lies_over_what_the_agent_says_and_stays() {
    let mut world = World::new(0);
    world.join(M1, &[("disk", "hdd"), ("rack", "a")]);
    world.edit_labels(M1, &[("disk", Some("ssd")), ("zone", Some("x")), ("rack", None)]).unwrap();
    assert_eq!(labels(&mut world, M1), list([("disk", "ssd"), ("zone", "x")]));
    let edits = [("disk", Some("ssd")), ("rack", None), ("zone", Some("x"))];
    let edits: BTreeMap<_, _> = edits.map(|(key, value)| (key.to_owned(), value.map(str::to_owned))).into();
    assert!(
        world.events.contains(&Event::Labels { machine: M1, edits: edits.clone() }),
        "{:?}",
        world.events
    );
    assert_eq!(world.stored.labels[&M1], edits);
    assert_eq!(
        world.stored.machines[&M1].labels,
        list([("disk", "hdd"), ("rack", "a")]),
        "as the agent says"
    );

    // What is so already is neither told nor stored again.
    let events = world.events.len();
    world.edit_labels(M1, &[("disk", Some("ssd"))]).unwrap();
    assert_eq!(world.events.len(), events);

    // Neither a restart of the leader nor one of the agent with other labels takes that back.
    let mut world = world.restarted();
    world.agents.get_mut(&M1).unwrap().labels = list([("disk", "tape"), ("rack", "b"), ("os", "debian")]);
    world.connect(M1);
    assert_eq!(labels(&mut world, M1), list([("disk", "ssd"), ("os", "debian"), ("zone", "x")]));
    assert_eq!(world.backup().1, world.stored, "and a backup has it");
}

#[test]
fn units_go_by_what_is_changed() {
    let mut world = World::new(2);
    world.start("u.service", SSD);
    assert!(world.running("u.service").is_empty());
    world.edit_labels(M2, &[("disk", Some("ssd"))]).unwrap();
    assert_eq!(world.running("u.service"), [M2]);
    world.start("all.service", "[X-Fleet]\nGlobal=yes\nMachineMetadata=disk=ssd\n");
    assert_eq!(world.running("all.service"), [M2]);
    world.edit_labels(M1, &[("disk", Some("ssd"))]).unwrap();
    assert_eq!((world.running("u.service"), world.running("all.service")), (vec![M2], vec![M1, M2]));
    assert_eq!(world.leader.differences(), Vec::<String>::new());
}

#[test]
fn what_asks_for_what_is_gone_goes_and_nothing_else_moves() {
    let mut world = World::new(0);
    world.join(M1, &[("disk", "ssd"), ("rack", "a")]);
    world.join(M2, &[("disk", "ssd")]);
    world.start("fast.service", SSD);
    world.start("tied.service", "[X-Fleet]\nMachineOf=fast.service\n");
    world.start("global.service", "[X-Fleet]\nGlobal=yes\nMachineMetadata=disk=ssd\n");
    world.start("here.service", &format!("[X-Fleet]\nMachineID={M1}\n"));
    assert_eq!(world.running("fast.service"), [M1]);
    let here = world.agents[&M1].held[&name("here.service")].epoch;

    world.edit_labels(M1, &[("rack", Some("b"))]).unwrap();
    assert_eq!(world.running("fast.service"), [M1], "it does not ask for that");
    world.edit_labels(M1, &[("disk", None)]).unwrap();
    for unit in ["fast.service", "tied.service", "global.service"] {
        assert_eq!(world.running(unit), [M2], "{unit}");
    }
    assert_eq!(world.agents[&M1].held[&name("here.service")].epoch, here);
    let told = Event::Unplaced { unit: name("fast.service"), machine: M1, reason: UnplaceReason::Relabelled };
    assert!(world.events.contains(&told), "{:?}", world.events);

    // Where nothing else fits, it waits.
    world.edit_labels(M2, &[("disk", Some("hdd"))]).unwrap();
    assert!(world.running("fast.service").is_empty() && world.running("tied.service").is_empty());
    world.edit_labels(M1, &[("disk", Some("ssd"))]).unwrap();
    assert_eq!((world.running("fast.service"), world.running("tied.service")), (vec![M1], vec![M1]));
    assert_eq!(world.leader.differences(), Vec::<String>::new());
}

#[test]
fn a_machine_that_has_not_joined_may_be_labelled() {
    let mut world = World::new(1);
    world.start("u.service", SSD);
    world.edit_labels(M2, &[("disk", Some("ssd"))]).unwrap();
    assert_eq!(world.machines().machines.len(), 1);
    let mut world = world.restarted();
    world.connect(M1);
    world.join(M2, &[]);
    assert_eq!(world.running("u.service"), [M2]);
}

#[test]
fn labels_that_no_unit_can_ask_for_change_nothing() {
    let mut world = World::new(1);
    let before = world.stored.clone();
    for (key, value) in
        [("", Some("a")), ("a=b", None), ("a", Some("b=c")), ("a", Some("")), ("a>", Some("b"))]
    {
        let refused = world.edit_labels(M1, &[("good", Some("label")), (key, value)]);
        assert!(matches!(refused, Err(MachineCommandError::Label(_))), "{key:?} {value:?}: {refused:?}");
    }
    assert_eq!(world.stored, before);
}
