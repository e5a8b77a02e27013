//! What an operator can read afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::{World, machine, name};
use crate::command::Verb;
use crate::ids::{CommandId, Epoch, MachineId};
use crate::leader::{Arrival, Event, EventFilter, EventNumber, Input};
use crate::machine::{Availability, Drain};
use crate::message::{FromAgent, Goodbye, ReportedChange, UnitReport};
use crate::state::{Failure, Observation, Phase, UnitState};
use crate::unit::Glob;

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);

/// What was told since the last call, in words.
fn told(world: &mut World) -> Vec<String> {
    let event = |event: Event| format!("{}: {event}", event.kind());
    std::mem::take(&mut world.events).into_iter().map(event).collect()
}

fn report(world: &mut World, id: MachineId, unit: &str, observation: Observation) {
    let epoch = world.leader.units.get(&name(unit)).unwrap().placements[&id];
    let report = UnitReport { name: name(unit), epoch, change: ReportedChange::Observed(observation) };
    let connection = world.agents[&id].connection.unwrap();
    world.step(Input::Agent(connection, FromAgent::Report(vec![report])));
}

fn held(phase: Phase, active: &str) -> Observation {
    let state = UnitState { load: "loaded".to_owned(), active: active.to_owned(), sub: "x".to_owned() };
    Observation::Held { phase, state: Some(state) }
}

#[test]
fn the_story_of_a_unit_whose_machine_is_lost() {
    let mut world = World::new(3);
    assert_eq!(
        told(&mut world),
        [
            "leader_took_office: this scheduler leads, in term 1, with 0 units and 0 machines",
            "machine_up: machine 00000001 joined the cluster",
            "machine_up: machine 00000002 joined the cluster",
            "machine_up: machine 00000003 joined the cluster",
        ]
    );
    world.start("web.service", "");
    assert_eq!(
        told(&mut world),
        [
            "client_start: a client started web.service",
            "unit_placed: web.service is placed on 00000001: a client asked for it",
            "unit_started: web.service has started on 00000001",
        ]
    );
    world.cut(M1);
    world.pass(6);
    assert_eq!(
        told(&mut world),
        [
            "machine_lost: machine 00000001 is lost: its lease ended; it had web.service",
            "unit_placed: web.service moves from 00000001 to 00000002: its machine was lost",
            "unit_started: web.service has started on 00000002",
        ]
    );
    world.connect(M1);
    assert_eq!(
        told(&mut world),
        ["machine_up: machine 00000001 is back", "copy_gone: web.service is gone from 00000001",]
    );
    world.command(Verb::Destroy, &[("web.service", None)]).unwrap();
    assert_eq!(
        told(&mut world),
        ["client_destroy: a client destroyed web.service", "copy_gone: web.service is gone from 00000002",]
    );
}

#[test]
fn one_command_is_one_event_however_many_units_it_changes() {
    let mut world = World::new(1);
    let units: Vec<String> = (1..=9).map(|number| format!("u{number}.service")).collect();
    let file = super::service("");
    let submitted: Vec<_> = units.iter().map(|unit| (unit.as_str(), Some(file.as_str()))).collect();
    world.command(Verb::Submit, &submitted[..8]).unwrap();
    told(&mut world);
    world.command(Verb::Submit, &submitted).unwrap();
    assert_eq!(told(&mut world), ["client_submit: a client submitted u9.service"], "only what changed");
    world.command(Verb::Submit, &submitted).unwrap();
    assert_eq!(told(&mut world), [""; 0]);
    world.command(Verb::Start, &submitted).unwrap();
    assert_eq!(
        told(&mut world)[0],
        "client_start: a client started u1.service, u2.service, u3.service and 6 more"
    );
}

#[test]
fn what_a_machine_says_of_a_unit_is_told_once() {
    let mut world = World::new(1);
    world.start("web.service", "");
    told(&mut world);
    let failure = || Failure { result: "exit-code".to_owned(), reason: "exit code 3".to_owned() };
    for _ in 0..2 {
        report(&mut world, M1, "web.service", held(Phase::Failed(failure()), "failed"));
    }
    report(&mut world, M1, "web.service", held(Phase::Launched, "active"));
    report(&mut world, M1, "web.service", held(Phase::Launched, "reloading"));
    report(&mut world, M1, "web.service", held(Phase::StartFailed(failure()), "failed"));
    for _ in 0..2 {
        report(&mut world, M1, "web.service", Observation::Refused("no room".to_owned()));
    }
    assert_eq!(
        told(&mut world),
        [
            "unit_failed: web.service failed on 00000001: exit code 3",
            "unit_retry: web.service, which failed on 00000001 (exit code 3), is started anew in 5 s (attempt 1 of 3)",
            "unit_started: web.service has started on 00000001",
            "start_failed: web.service did not start on 00000001: exit code 3",
            "unit_retry: web.service, which failed on 00000001 (exit code 3), is started anew in 10 s (attempt 2 of 3)",
            "unit_refused: web.service is refused by 00000001: no room",
        ]
    );
}

#[test]
fn each_placement_has_its_reason() {
    let mut world = World::new(1);
    world.start("tied.service", "[X-Fleet]\nMachineOf=web.service\n");
    world.start("web.service", "");
    world.start("ssd.service", "[X-Fleet]\nMachineMetadata=disk=ssd\n");
    world.start("all.service", "[X-Fleet]\nGlobal=yes\n");
    world.join(M2, &[("disk", "ssd")]);
    world.command(Verb::Restart, &[("web.service", None)]).unwrap();
    world.replace(Verb::Start, "ssd.service", &super::service("[X-Fleet]\nMachineID=00000001\n")).unwrap();
    let drain = Availability::Draining(Drain { timeout_ms: 30_000, max_parallel: 0 });
    world.machine_command(drain, M1).unwrap();
    world.machine_command(Availability::Open, M1).unwrap();
    world.command(Verb::Unload, &[("web.service", None)]).unwrap();
    world.replace(Verb::Start, "ssd.service", &super::service("")).unwrap();
    world.goodbye(M1, Goodbye::Shutdown);
    let mut told = told(&mut world);
    let about = ["unit_placed", "unit_unplaced", "old_copy_ends"];
    told.retain(|told| about.iter().any(|kind| told.starts_with(kind)));
    let told: Vec<&str> = told.iter().map(|told| told.split_once(": ").unwrap().1).collect();
    let expected = [
        "tied.service is placed on 00000001: a client asked for it",
        "web.service is placed on 00000001, together with tied.service: a client asked for it",
        "all.service is placed on 00000001: it is global, and this machine takes it",
        "ssd.service is placed on 00000002: it waited for a machine that takes it",
        "all.service is placed on 00000002: it is global, and this machine takes it",
        "web.service is placed anew on 00000001: a client restarted it",
        "ssd.service is taken off 00000002: it does not fit there with its new file",
        "ssd.service is placed on 00000001: a client replaced its file",
        "tied.service moves from 00000001 to 00000002: its machine is drained",
        "web.service moves from 00000001 to 00000002, together with tied.service: its machine is drained",
        "the old copy of tied.service on 00000001 is stopped: the new one is active",
        "the old copy of web.service on 00000001 is stopped: the new one is active",
        "tied.service is taken off 00000002: a unit that it is tied to (MachineOf=, or what it activates) is not there any more",
        "ssd.service is placed anew on 00000001: a client replaced its file",
        "ssd.service moves from 00000001 to 00000002: its machine shuts down",
        "the old copy of ssd.service on 00000001 is stopped: the new one is active",
    ];
    assert_eq!(told, expected, "{told:#?}");
}

#[test]
fn what_the_store_refused_did_not_happen() {
    let mut world = World::new(1);
    told(&mut world);
    world.committing = false;
    world.command_as(CommandId::new(78), Verb::Start, &[("web.service", Some(&super::service("")))], false);
    assert_eq!(told(&mut world), [""; 0], "not before it is durable");
    world.fail_store();
    let told = told(&mut world);
    assert_eq!(
        told,
        ["store_failed: the store failed, and what was not yet written is undone: no space left on device"]
    );
}

#[test]
fn events_are_wanted_by_unit_glob_or_machine() {
    let mut world = World::new(2);
    world.start("web@1.service", "");
    world.start("api.service", "");
    let wanted = |filter: &EventFilter| {
        let events = world.events.iter().filter(|event| filter.wants(event));
        events.map(Event::kind).collect::<Vec<_>>()
    };
    assert_eq!(wanted(&EventFilter::default()).len(), world.events.len());
    let story = ["client_start", "unit_placed", "unit_started"];
    let unit = EventFilter { units: BTreeSet::from([name("api.service")]), ..Default::default() };
    assert_eq!(wanted(&unit), story);
    let glob = EventFilter { globs: vec![Glob::parse("web@*").unwrap()], ..Default::default() };
    assert_eq!(wanted(&glob), story);
    let on = EventFilter { machines: BTreeSet::from([M2]), ..Default::default() };
    assert_eq!(wanted(&on), ["machine_up", "unit_placed", "unit_started"]);
    let both = EventFilter { machines: BTreeSet::from([M2]), ..glob };
    assert_eq!(wanted(&both).len(), 3 + 3);
}

#[test]
fn a_record_tells_programs_what_its_sentence_says() {
    let mut world = World::new(2);
    world.start("web.service", "");
    world.cut(M1);
    world.pass(6);
    let moved =
        world.events.iter().find(|event| matches!(event, Event::Placed { from: Some(_), .. })).unwrap();
    let number = EventNumber { term: world.leader.term, sequence: 7 };
    let record = moved.record(number, 1_000);
    assert_eq!(record.number.to_string(), "1.7");
    assert_eq!((record.kind.as_str(), record.machines), ("unit_placed", vec![M2, M1]));
    assert_eq!(record.units, [name("web.service")]);
    assert_eq!(record.epoch, Some(world.leader.units.get(&name("web.service")).unwrap().placements[&M2]));
    assert_eq!(record.reason.as_deref(), Some("its machine was lost"));
    assert!(moved.weight() >= size_of::<Event>() + "web.service".len());
}

#[test]
fn a_reason_that_a_sentence_tells_is_a_field_as_well() {
    let unit = || name("web.service");
    let events = [
        Event::MachineUp { machine: M1, arrival: Arrival::Returned, units: vec![unit()] },
        Event::MachineDegraded(M1),
        Event::MachineRecovered(M1),
        Event::MachineLeaves(M1),
        Event::Drained(M1),
        Event::NotDrained { machine: M1, units: vec![unit()] },
        Event::FitNowhere { units: vec![unit()] },
        Event::FitNowhere { units: vec![unit(), unit()] },
        Event::IdInUse { machine: M1, address: "198.18.0.1".into(), rival: "198.18.0.2".into() },
        Event::BrakeApplied { machines: vec![M1, M2], of: 3, units: vec![unit()] },
        Event::Retried {
            unit: unit(),
            machine: M1,
            after: Duration::from_secs(5),
            attempt: (1, 3),
            reason: "exit code 3".into(),
        },
        Event::Inactive { unit: unit(), machine: M1, epoch: Epoch::default() },
        Event::Orphaned { unit: unit(), machine: M1 },
    ];
    let told: Vec<String> =
        events.iter().map(|event| format!("{}: {}", event.kind(), event.reason().unwrap())).collect();
    let expected = [
        "machine_up: it is back",
        "machine_degraded: its systemd does not answer",
        "machine_recovered: its systemd answers",
        "machine_leaves: it shuts down",
        "machine_drained: it says that nothing is left there",
        "machine_not_drained: its time has passed",
        "unit_waits: no machine takes it",
        "unit_waits: no machine takes them",
        "machine_id_in_use: two machines have it (198.18.0.1 and 198.18.0.2), one of them is a copy",
        "brake_applied: 2 of 3 machines seem to have died at once",
        "unit_retry: exit code 3",
        "unit_inactive: it has ended by itself, or was stopped there by hand",
        "unit_orphaned: the cluster has no record of that",
    ];
    assert_eq!(told, expected, "{told:#?}");
}

#[test]
fn what_fits_nowhere_and_a_store_that_is_silent_are_told_once() {
    let mut world = World::new(1);
    for number in 1..=2 {
        world.start(&format!("w{number}.service"), "[X-Fleet]\nMachineMetadata=disk=ssd\n");
    }
    world.pass(10);
    let waits = |name: &str| {
        format!("unit_waits: {name} waits: no machine takes it; `musterctl status UNIT` says why")
    };
    let said: Vec<String> =
        told(&mut world).into_iter().filter(|event| event.starts_with("unit_waits")).collect();
    assert_eq!(said, [waits("w1.service"), waits("w2.service")]);
    world.committing = false;
    world.command_as(CommandId::new(99), Verb::Stop, &[("w1.service", None)], false);
    world.pass(20);
    let said = told(&mut world);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("store_silent: the store has not answered for 5 s: "), "{said:?}");
}

#[test]
fn what_somebody_has_stopped_at_its_machine_is_told() {
    let mut world = World::new(1);
    world.start("web.service", "");
    told(&mut world);
    report(&mut world, M1, "web.service", held(Phase::Launched, "deactivating"));
    for _ in 0..2 {
        report(&mut world, M1, "web.service", held(Phase::Launched, "inactive"));
    }
    let said = "unit_inactive: web.service is not active any more on 00000001: it has ended by itself, or was stopped there by \
                hand; `musterctl restart web.service` starts it";
    assert_eq!(told(&mut world), [said]);
}
