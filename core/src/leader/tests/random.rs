//! Random histories, and what must be true at their ends.

use proptest::prelude::*;

use super::world::{World, machine, service};
use super::*;
use crate::machine::Drain;
use crate::message::Goodbye;

/// One thing that happens in a random history.
#[derive(Clone, Debug)]
enum Happening {
    Command(Verb, usize, usize, bool),
    Cut(u128),
    Connect(u128),
    Reboot(u128),
    Machine(Availability, u128),
    Goodbye(Goodbye, u128),
    /// The machine's disk takes its time.
    Slow(u128),
    FinishWriting(u128),
    Pass(u64),
    RestartLeader,
    FailStore,
}

/// Options that pull in all directions. Which one a unit has is drawn anew with each command.
const OPTIONS: [&str; 9] = [
    "",
    "[X-Fleet]\nConflicts=u1.*\n",
    "[X-Fleet]\nConflicts=u?.service\n",
    "[X-Fleet]\nMachineOf=u0.service\n",
    "[X-Fleet]\nMachineOf=u3.service\n",
    "[X-Fleet]\nGlobal=true\nConflicts=u2.service\n",
    "[X-Fleet]\nMachineID=00000002000000000000000000000000\n",
    "[X-Muster]\nMemory=400M\nPriority=3\n",
    "[X-Fleet]\nMachineOf=u0.service\nMachineOf=u1.service\n[X-Muster]\nMemory=300M\n",
];

fn availability() -> impl Strategy<Value = Availability> {
    let drain = |max_parallel| Availability::Draining(Drain { timeout_ms: 3000, max_parallel });
    prop::sample::select(vec![Availability::Cordoned, Availability::Open, drain(0), drain(1)])
}

fn happening() -> impl Strategy<Value = Happening> {
    let verb = prop::sample::select(vec![
        Verb::Submit,
        Verb::Load,
        Verb::Start,
        Verb::Start,
        Verb::Start,
        Verb::Stop,
        Verb::Unload,
        Verb::Destroy,
        Verb::Restart,
    ]);
    prop_oneof![
        12 => (verb, 0..6usize, 0..OPTIONS.len(), any::<bool>())
            .prop_map(|(verb, unit, options, replace)| Happening::Command(verb, unit, options, replace)),
        3 => (1..4u128).prop_map(Happening::Cut),
        4 => (1..4u128).prop_map(Happening::Connect),
        1 => (1..4u128).prop_map(Happening::Reboot),
        2 => (availability(), 1..4u128).prop_map(|(decided, number)| Happening::Machine(decided, number)),
        1 => (prop::sample::select(vec![Goodbye::Restart, Goodbye::Shutdown]), 1..4u128)
            .prop_map(|(goodbye, number)| Happening::Goodbye(goodbye, number)),
        1 => (1..4u128).prop_map(Happening::Slow),
        2 => (1..4u128).prop_map(Happening::FinishWriting),
        3 => (1..8u64).prop_map(Happening::Pass),
        1 => Just(Happening::RestartLeader),
        1 => Just(Happening::FailStore),
    ]
}

fn happen(mut world: World, happening: &Happening) -> World {
    let connected = |world: &World, number| world.agents[&machine(number)].connection.is_some();
    match *happening {
        Happening::Command(verb, unit, options, replace) => {
            let id = CommandId::new(world.id().into());
            let content = service(OPTIONS[options]);
            let unit = format!("u{unit}.service");
            world.command_as(id, verb, &[(&unit, Some(&content))], replace);
        }
        Happening::Cut(number) if connected(&world, number) => world.cut(machine(number)),
        Happening::Connect(number) if !connected(&world, number) => world.connect(machine(number)),
        Happening::Cut(_) | Happening::Connect(_) => {}
        Happening::Reboot(number) => world.reboot(machine(number)),
        Happening::Machine(decided, number) => {
            world.machine_command(decided, machine(number)).ok();
        }
        Happening::Goodbye(goodbye, number) => {
            if let Some(connection) = world.agents[&machine(number)].connection {
                world.step(Input::Agent(connection, FromAgent::Goodbye(goodbye)));
            }
        }
        Happening::Slow(number) => world.agents.get_mut(&machine(number)).unwrap().slow = true,
        Happening::FinishWriting(number) => world.finish_writing(machine(number)),
        Happening::Pass(seconds) => world.pass(seconds),
        Happening::RestartLeader => world = world.restarted(),
        Happening::FailStore => {
            world.committing = false;
            let id = CommandId::new(world.id().into());
            world.command_as(id, Verb::Start, &[("u5.service", Some(&service("")))], false);
            world.fail_store();
        }
    }
    world
}

fn heal(world: &mut World) {
    for number in 1..=3 {
        if world.agents[&machine(number)].connection.is_none() {
            world.connect(machine(number));
        }
        world.finish_writing(machine(number));
    }
    world.pass(8);
}

/// What must be true when all machines are back and the leader has had a lease's time.
fn check(world: &mut World) {
    let (_, backup) = world.backup();
    assert_eq!(backup, world.stored, "the store is the leader's log");
    for (id, name) in world.leader.retired.keys() {
        // Or is the last one, on a machine that is drained.
        let unit = world.leader.units.get(name);
        let last = unit.is_some_and(|unit| unit.placements.is_empty() && world.leader.waits(name, unit));
        assert!(last && world.leader.lingering.runs_on(*id, name), "{name} was ended on {id}, and is gone");
    }
    for (id, agent) in &world.agents {
        for (name, held) in &agent.held {
            if world.leader.lingering.runs_on(*id, name) {
                continue;
            }
            let unit = world.leader.units.get(name).unwrap_or_else(|| panic!("{name} on {id} was destroyed"));
            assert_eq!(unit.placements.get(id), Some(&held.epoch), "{name} on {id} is the current copy");
            assert_eq!(
                (unit.hash, world.leader.target(unit, *id, name, held.epoch)),
                (held.hash, Some(held.target)),
                "{name} on {id} is as asked for"
            );
        }
    }
    for (name, unit) in world.leader.units.iter() {
        for machine in unit.placements.keys() {
            assert!(world.agents[machine].held.contains_key(name), "{name} is where it was placed");
        }
        let alone = std::slice::from_ref(name);
        if world.leader.waits(name, unit) {
            if let Ok(group) = world.leader.group(name) {
                for id in world.agents.keys() {
                    let fits = world.leader.group_may_be_on(&group, *id).is_ok()
                        && world.leader.placer.check(&group.units, *id).is_ok();
                    assert!(!fits, "{name} waits, and fits on {id}");
                }
            }
        } else if unit.options.global && unit.desired != DesiredState::Inactive {
            for id in world.agents.keys() {
                let fits = world.leader.placer.check(alone, *id).is_ok();
                assert!(unit.placements.contains_key(id) || !fits, "{name} is missing on {id}");
            }
        }
        for machine in unit.placements.keys() {
            assert!(world.leader.placer.may_stay(name, *machine), "{name} on {machine}: constraints hold");
            for target in &unit.options.machine_of {
                let there = world.leader.units.get(target).map(|unit| unit.placements.contains_key(machine));
                assert_eq!(there, Some(true), "{name} is with {target}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn histories_end_as_they_should(happenings in prop::collection::vec(happening(), 1..60)) {
        let mut world = World::new(3);
        for happening in happenings {
            world = happen(world, &happening);
        }
        heal(&mut world);
        check(&mut world);
    }
}
