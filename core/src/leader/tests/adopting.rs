//! Units that machines run as their own.

use super::world::{World, machine, name, service};
use super::*;
use crate::command::{Adoption, CommandResult, UnitError};
use crate::leader::event::Event;

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);
const WEB: &str = "web.service";

/// Asks for the adoption of `web.service` on the first machine, which says that it has this file.
fn adopt(world: &mut World, says: Result<&str, &str>) -> CommandResult {
    let id = CommandId::new(world.id().into());
    adopt_as(world, id, says)
}

fn adopt_as(world: &mut World, id: CommandId, says: Result<&str, &str>) -> CommandResult {
    let request = RequestId(world.id());
    world.step(Input::Adopt(request, Adoption { id, machine: M1, units: vec![name(WEB)] }));
    let agent = world.agents.get_mut(&M1).unwrap();
    if let (Some((number, units)), Some(connection)) = (agent.inspected.take(), agent.connection) {
        assert_eq!((number, units), (request.0, vec![name(WEB)]));
        let units = vec![(name(WEB), says.map(Arc::from).map_err(str::to_owned))];
        world.step(Input::Agent(connection, FromAgent::Inspected { number, units }));
    }
    world.results.remove(&request).expect("an answer")
}

fn refusal(result: CommandResult) -> String {
    match result.expect_err("refused") {
        CommandError::Units(errors) => errors.iter().map(UnitError::to_string).collect(),
        error => error.to_string(),
    }
}

fn stored(world: &World) -> Option<Adopted> {
    world.stored.units.get(&name(WEB))?.adopted
}

#[test]
fn a_unit_is_adopted_where_it_runs_and_then_is_as_any_other() {
    let mut world = World::new(2);
    for number in 1..=4 {
        world.start(&format!("u{number}.service"), "");
    }
    let id = CommandId::new(70_000);
    let outcomes = adopt_as(&mut world, id, Ok(&service(""))).unwrap();
    assert_eq!(outcomes[0].done, Done::Adopted);
    assert_eq!(world.running(WEB), [M1]);
    assert_eq!(stored(&world), Some(Adopted { machine: M1, done: true }));
    assert!(world.events.iter().any(|event| matches!(event, Event::Adopted { .. })), "{:?}", world.events);
    // The same command, and the same wish.
    assert_eq!(adopt_as(&mut world, id, Err("asked again")), Ok(outcomes));
    assert_eq!(adopt(&mut world, Err("asked again")).unwrap()[0].done, Done::Unchanged);
    world.cut(M1);
    world.pass(10);
    assert_eq!(world.running(WEB).last(), Some(&M2), "it moves");
    assert!(refusal(world.command(Verb::Release, &[(WEB, None)])).contains("was adopted from machine"));
}

#[test]
fn a_unit_that_is_being_adopted_stays_whatever_becomes_of_its_machine() {
    let mut world = World::new(2);
    world.agents.get_mut(&M1).unwrap().activates = false;
    adopt(&mut world, Ok(&service(""))).unwrap();
    assert_eq!(stored(&world), Some(Adopted { machine: M1, done: false }));
    assert!(world.status(WEB).unwrap().trouble.unwrap().contains("is being adopted"));
    assert!(refusal(world.command(Verb::Stop, &[(WEB, None)])).contains("is being adopted"));
    world.cut(M1);
    world.pass(10);
    // Also for the next leader, and after a reboot.
    let mut world = world.restarted();
    world.connect(M2);
    world.pass(10);
    assert_eq!(world.agents[&M2].held.len(), 0);
    world.reboot(M1);
    world.connect(M1);
    world.pass(10);
    assert_eq!((world.running(WEB), world.agents[&M1].adopting.contains(&name(WEB))), (vec![M1], true));
    world.activate(M1);
    assert_eq!(stored(&world), Some(Adopted { machine: M1, done: true }));
    world.cut(M1);
    world.pass(10);
    assert_eq!(world.running(WEB).last(), Some(&M2));
}

#[test]
fn a_unit_that_its_machine_cannot_have_adopted_is_forgotten() {
    let mut world = World::new(2);
    world.agents.get_mut(&M1).unwrap().deaf = true;
    adopt(&mut world, Ok(&service(""))).unwrap();
    let epoch = *world.stored.units[&name(WEB)].placements.values().next().unwrap();
    world.agents.get_mut(&M1).unwrap().deaf = false;
    let change = ReportedChange::Observed(Observation::Refused("its files have changed".into()));
    let report = UnitReport { name: name(WEB), epoch, change };
    let connection = world.agents[&M1].connection.unwrap();
    world.step(Input::Agent(connection, FromAgent::Report(vec![report])));
    assert_eq!(world.stored.units.len() + world.stored.retired.len(), 0);
    assert_eq!(world.agents[&M2].held.len(), 0, "it is not started elsewhere");
    assert!(world.events.iter().any(|event| matches!(event, Event::NotAdopted { .. })));
}

#[test]
fn what_is_against_an_adoption_is_said_and_nothing_changes() {
    let mut world = World::new(2);
    let memory = service("[X-Muster]\nMemory=2G\n");
    let global = service("[X-Fleet]\nGlobal=true\n");
    for (says, why) in [
        (Err("is transient"), "web.service: is transient"),
        (Ok(&*memory), "would not take it: "),
        (Ok(&*global), "is global by its file"),
        (Ok("[Service]\n[X-Fleet]\nNo=1\n"), "No="),
    ] {
        let refused = refusal(adopt(&mut world, says));
        assert!(refused.contains(why), "{refused}");
    }
    world.command(Verb::Submit, &[(WEB, Some(&service("")))]).unwrap();
    assert!(refusal(adopt(&mut world, Ok(&memory))).contains("knows it with other content"));
    world.start(WEB, "");
    assert!(refusal(adopt(&mut world, Ok(&memory))).contains("is a unit of the cluster already"));
    world.command(Verb::Destroy, &[(WEB, None)]).unwrap();
    // The machine goes before it has answered.
    let request = RequestId(world.id());
    let id = CommandId::new(90_000);
    world.step(Input::Adopt(request, Adoption { id, machine: M1, units: vec![name(WEB)] }));
    world.cut(M1);
    assert!(refusal(world.results.remove(&request).unwrap()).contains("was lost before it answered"));
    assert!(refusal(adopt(&mut world, Err(""))).contains("is not connected"));
    assert_eq!(world.stored.units.len(), 0);
}

#[test]
fn a_unit_is_handed_back_also_where_its_machine_is_rebooted_meanwhile() {
    let mut world = World::new(2);
    adopt(&mut world, Ok(&service(""))).unwrap();
    world.start("other.service", "");
    assert!(refusal(world.command(Verb::Release, &[("other.service", None)])).contains("was not adopted"));
    world.agents.get_mut(&M1).unwrap().deaf = true;
    assert_eq!(world.command(Verb::Release, &[(WEB, None)]).unwrap()[0].done, Done::Released);
    world.reboot(M1);
    world.agents.get_mut(&M1).unwrap().deaf = false;
    assert_eq!(world.stored.units.len(), 1);
    world.connect(M1);
    assert!(world.agents[&M1].released.contains(&name(WEB)), "its files may not have been back");
    assert_eq!(world.stored.retired.len(), 0);
    assert!(world.events.iter().any(|event| matches!(event, Event::Released { .. })));
}
