//! Sockets, timers and paths go with the unit that they activate.

use super::world::{World, machine, name};
use crate::command::Verb;
use crate::ids::MachineId;

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);

const TIMER: &str = "[Timer]\nOnCalendar=hourly\n";
const SERVICE: &str = "[Service]\nExecStart=/bin/true\n";

/// Two machines, of which the second one is less loaded.
fn world() -> World {
    let mut world = World::new(2);
    world.start("a.service", "[X-Fleet]\nMachineID=00000001\n");
    world
}

fn on(world: &World, unit: &str) -> Vec<MachineId> {
    let unit = name(unit);
    world.agents.iter().filter(|(_, agent)| agent.held.contains_key(&unit)).map(|(id, _)| *id).collect()
}

#[test]
fn a_timer_is_placed_with_its_service_and_moves_with_it() {
    let mut world = world();
    world.command(Verb::Load, &[("job.service", Some(SERVICE))]).unwrap();
    // By number this machine is the better one now.
    world.start("b.service", "[X-Fleet]\nMachineID=00000002\n");
    world.start("c.service", "[X-Fleet]\nMachineID=00000002\n");
    world.command(Verb::Start, &[("job.timer", Some(TIMER))]).unwrap();
    assert_eq!((on(&world, "job.service"), on(&world, "job.timer")), (vec![M2], vec![M2]));
    world.cut(M2);
    world.agents.remove(&M2);
    world.pass(10);
    assert_eq!((on(&world, "job.service"), on(&world, "job.timer")), (vec![M1], vec![M1]));
}

#[test]
fn both_are_placed_together_whichever_comes_first() {
    for units in [["job.timer", "job.service"], ["job.service", "job.timer"]] {
        let mut world = world();
        let content = |unit: &str| if unit.ends_with("timer") { TIMER } else { SERVICE };
        world.command(Verb::Start, &units.map(|unit| (unit, Some(content(unit))))).unwrap();
        assert_eq!(on(&world, "job.service"), on(&world, "job.timer"));
        assert_eq!(on(&world, "job.service").len(), 1);
    }
}

#[test]
fn what_it_names_counts_and_of_a_unit_that_is_not_the_clusters_nothing_is_known() {
    let mut world = world();
    world
        .command(Verb::Start, &[("other.timer", Some("[Timer]\nOnCalendar=hourly\nUnit=a.service\n"))])
        .unwrap();
    assert_eq!(on(&world, "other.timer"), [M1]);
    world.command(Verb::Start, &[("machines-own.timer", Some(TIMER))]).unwrap();
    assert_eq!(on(&world, "machines-own.timer"), [M2]);
}

#[test]
fn it_waits_for_a_service_that_is_inactive_and_says_so() {
    let mut world = world();
    world.command(Verb::Submit, &[("job.service", Some(SERVICE))]).unwrap();
    world.command(Verb::Start, &[("job.timer", Some(TIMER))]).unwrap();
    let waits = "job.timer goes with job.service, which it activates: it is inactive; load or start it";
    assert_eq!(world.reason("job.timer"), waits);
    world.command(Verb::Load, &[("job.service", None)]).unwrap();
    assert_eq!(on(&world, "job.timer"), on(&world, "job.service"));
    // It goes with it, too.
    world.command(Verb::Unload, &[("job.service", None)]).unwrap();
    assert!(on(&world, "job.timer").is_empty());
    // What nobody knows any more ties nothing.
    world.command(Verb::Destroy, &[("job.service", None)]).unwrap();
    assert_eq!(on(&world, "job.timer").len(), 1);
}

#[test]
fn one_that_runs_follows_a_service_that_is_known_later_and_runs_when_that_is_forgotten() {
    let mut world = world();
    world.command(Verb::Start, &[("job.timer", Some(TIMER))]).unwrap();
    assert_eq!(on(&world, "job.timer"), [M2]);
    world.command(Verb::Submit, &[("job.service", Some(SERVICE))]).unwrap();
    assert_eq!(on(&world, "job.timer"), [M2], "nothing stops for what is only submitted");
    let pinned = format!("{SERVICE}[X-Fleet]\nMachineID=00000001\n");
    world.command(Verb::Destroy, &[("job.service", None)]).unwrap();
    world.command(Verb::Start, &[("job.service", Some(&pinned))]).unwrap();
    assert_eq!((on(&world, "job.service"), on(&world, "job.timer")), (vec![M1], vec![M1]));
    world.command(Verb::Destroy, &[("job.service", None)]).unwrap();
    assert_eq!(on(&world, "job.timer").len(), 1);
}

#[test]
fn a_global_one_is_everywhere() {
    let mut world = world();
    world.command(Verb::Load, &[("job.service", Some(SERVICE))]).unwrap();
    let everywhere = format!("{TIMER}[X-Fleet]\nGlobal=true\n");
    world.command(Verb::Start, &[("job.timer", Some(&everywhere))]).unwrap();
    assert_eq!(on(&world, "job.timer"), [M1, M2]);
}
