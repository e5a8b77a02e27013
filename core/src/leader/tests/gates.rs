//! Placements that wait: exclusive units, and units that wait for others.

use std::time::Duration;

use super::world::{World, machine, name, service};
use crate::command::{CommandError, UnitErrorKind, Verb};
use crate::ids::{CommandId, MachineId};
use crate::leader::{Event, Input};
use crate::machine::{Availability, Drain};
use crate::message::{FromAgent, Goodbye, ReportedChange, UnitReport};
use crate::state::{Observation, Phase, Target, UnitState};

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);

const EXCLUSIVE: &str = "[X-Muster]\nExclusive=yes\nExclusiveStopSec=4\n";

fn invalid(world: &mut World, verb: Verb, units: &[(&str, &str)]) -> String {
    let units: Vec<(&str, Option<&str>)> = units.iter().map(|(name, text)| (*name, Some(*text))).collect();
    match world.command(verb, &units) {
        Err(CommandError::Units(errors)) => {
            let text = |kind: &UnitErrorKind| kind.to_string();
            let lines = errors.iter().map(|error| format!("{}: {}", error.name, text(&error.kind)));
            lines.collect::<Vec<_>>().join("\n")
        }
        other => panic!("it is not refused: {other:?}"),
    }
}

/// An exclusive unit on the first machine.
fn exclusive() -> World {
    let mut world = World::new(1);
    world.start("one.service", EXCLUSIVE);
    world.join(M2, &[]);
    assert_eq!(world.running("one.service"), [M1]);
    world
}

#[test]
fn an_exclusive_unit_waits_until_its_lost_copy_has_ended_for_certain() {
    let mut world = exclusive();
    world.agents.get_mut(&M1).unwrap().connection = None;
    // The lease and its margin; then stop, lag of the guard and margin: 5.1 + 4.08 + 1 s after it was last heard.
    world.pass(6);
    assert!(world.status("one.service").unwrap().copies.iter().any(|copy| copy.machine == M2));
    assert!(world.agents[&M2].held.is_empty(), "it is placed, and its machine does not know");
    assert!(world.reason("one.service").contains("it is exclusive, and 00000001 is unreachable"));
    let withheld = |event: &Event| matches!(event, Event::Withheld { machine, .. } if *machine == M2);
    assert_eq!(world.events.iter().filter(|event| withheld(event)).count(), 1);
    world.pass(4);
    assert!(world.agents[&M2].held.is_empty());
    world.pass(1);
    assert_eq!(world.agents[&M2].held.len(), 1);
    // What comes back is stopped.
    world.connect(M1);
    world.pass(1);
    assert_eq!(world.running("one.service"), [M2]);
}

#[test]
fn an_exclusive_unit_is_back_on_its_machine_before_another_may_have_it() {
    let mut world = exclusive();
    world.agents.get_mut(&M1).unwrap().connection = None;
    world.pass(7);
    // From now on only its machine can say that the copy there has ended.
    world.connect(M1);
    world.pass(1);
    assert_eq!(world.running("one.service"), [M2], "it has stopped there and is started here");
}

#[test]
fn a_reboot_ends_an_exclusive_unit_at_once() {
    let mut world = exclusive();
    world.reboot(M1);
    world.pass(6);
    assert!(world.running("one.service").is_empty());
    world.connect(M1);
    assert_eq!(world.running("one.service").len(), 1);
}

#[test]
fn drained_exclusive_units_stop_here_before_they_start_elsewhere() {
    let mut world = exclusive();
    // Its machine takes its time.
    world.agents.get_mut(&M1).unwrap().cluster = None;
    let connection = world.agents.get_mut(&M1).unwrap().connection.take();
    let drain = Availability::Draining(Drain { timeout_ms: 30_000, max_parallel: 0 });
    world.machine_command(drain, M1).unwrap();
    assert!(world.reason("one.service").contains("00000001 has not yet said that its copy there has ended"));
    assert!(world.agents[&M2].held.is_empty());
    world.agents.get_mut(&M1).unwrap().connection = connection;
    world.step(Input::Agent(connection.unwrap(), FromAgent::SnapshotWanted));
    assert_eq!(world.running("one.service"), [M2]);
}

#[test]
fn a_machine_that_shuts_down_is_told_farewell_when_its_exclusive_units_have_ended() {
    let mut world = exclusive();
    world.goodbye(M1, Goodbye::Shutdown);
    assert_eq!(world.running("one.service"), [M2]);
    assert!(world.agents[&M1].farewell);
}

#[test]
fn a_longer_lease_of_an_agent_that_is_restarted_counts_too() {
    let mut world = exclusive();
    world.goodbye(M1, Goodbye::Restart);
    assert!(world.agents[&M1].farewell && world.stored.machines[&M1].restarting);
    world.cut(M1);
    world.pass(29);
    // Also for the next leader, from when it took over.
    let mut world = world.restarted();
    world.connect(M2);
    world.pass(29);
    assert!(world.status("one.service").unwrap().copies.iter().all(|copy| copy.machine == M1));
    world.pass(2);
    assert!(world.status("one.service").unwrap().copies.iter().any(|copy| copy.machine == M2));
    world.pass(4);
    assert!(world.running("one.service") == [M1], "the old copy runs, for all that is known");
    world.pass(2);
    assert_eq!(world.running("one.service"), [M1, M2]);
}

#[test]
fn a_new_leader_lets_the_leases_of_others_end_first() {
    let world = World::new(2);
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.start("one.service", EXCLUSIVE);
    assert!(world.running("one.service").is_empty());
    assert!(world.reason("one.service").contains("this scheduler has just taken over"));
    // 30.6 s of the longest lease, 4.08 s for the end of the unit, 1 s for the guard's lag.
    world.pass(35);
    assert!(world.running("one.service").is_empty());
    world.pass(1);
    assert_eq!(world.running("one.service").len(), 1);
    // What runs, runs on.
    let on = world.running("one.service")[0];
    let epoch = world.agents[&on].held[&name("one.service")].epoch;
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.pass(1);
    assert_eq!(world.agents[&on].held[&name("one.service")].epoch, epoch);
}

#[test]
fn where_the_store_is_known_to_be_the_latest_there_are_no_leases_of_others() {
    let mut world = World::new(2).restarted();
    world.leader.trust_store();
    world.connect(M1);
    world.connect(M2);
    world.start("one.service", EXCLUSIVE);
    assert_eq!(world.running("one.service").len(), 1);
}

#[test]
fn what_becomes_exclusive_is_nowhere_before() {
    let mut world = World::new(1);
    world.start("one.service", "");
    let error = world.replace(Verb::Start, "one.service", &service(EXCLUSIVE)).unwrap_err();
    assert!(error.to_string().contains("`musterctl unload one.service` first"), "{error}");
    world.command(Verb::Unload, &[("one.service", None)]).unwrap();
    world.replace(Verb::Start, "one.service", &service(EXCLUSIVE)).unwrap();
    assert_eq!(world.running("one.service"), [M1]);
}

#[test]
fn a_copy_from_before_it_was_exclusive_is_ended_by_no_lease() {
    let mut world = World::new(1);
    world.start("one.service", "");
    world.join(M2, &[]);
    world.cut(M1);
    world.command(Verb::Unload, &[("one.service", None)]).unwrap();
    world.replace(Verb::Start, "one.service", &service(EXCLUSIVE)).unwrap();
    world.pass(60);
    assert_eq!(world.running("one.service"), [M1], "the old copy");
    assert!(world.reason("one.service").contains("from before it was exclusive"));
    world.reboot(M1);
    world.connect(M1);
    assert_eq!(world.running("one.service"), [M2]);
}

#[test]
fn what_activates_an_exclusive_unit_is_exclusive_too() {
    let mut world = World::new(1);
    let timer = "[Timer]\nOnCalendar=daily\n";
    let exclusive = service(EXCLUSIVE);
    let refused = invalid(&mut world, Verb::Start, &[("one.timer", timer), ("one.service", &exclusive)]);
    assert!(refused.contains("one.timer: it activates one.service, which is exclusive"), "{refused}");
    world.command(Verb::Submit, &[("one.timer", Some(timer))]).unwrap();
    let refused = invalid(&mut world, Verb::Start, &[("one.service", &exclusive)]);
    assert!(refused.contains("one.timer activates it, and is not exclusive"), "{refused}");
    let timer = format!("{timer}{EXCLUSIVE}");
    world.replace(Verb::Submit, "one.timer", &timer).unwrap();
    world.command(Verb::Start, &[("one.service", Some(&exclusive))]).unwrap();
}

#[test]
fn a_unit_is_started_once_what_it_requires_is_active() {
    let mut world = World::new(2);
    world.start("web.service", "[X-Muster]\nRequires=db.service\n");
    assert!(world.running("web.service").is_empty());
    assert!(world.reason("web.service").contains("it requires db.service, which the cluster does not know"));
    let on = world.agents.values().find(|agent| !agent.held.is_empty()).unwrap().id;
    assert_eq!(world.status("web.service").unwrap().copies[0].machine, on, "its file is there already");
    for agent in world.agents.values_mut() {
        agent.activates = false;
    }
    world.start("db.service", "");
    assert!(world.reason("web.service").contains("it requires db.service, which is not active yet"));
    let db = world.running("db.service")[0];
    world.activate(db);
    assert_eq!(world.running("web.service"), [on]);
    // What was started is not stopped for what becomes of the other.
    world.command(Verb::Stop, &[("db.service", None)]).unwrap();
    assert_eq!(world.running("web.service"), [on]);
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.pass(1);
    assert_eq!(world.running("web.service"), [on]);
    // But it is not started again.
    world.command(Verb::Restart, &[("web.service", None)]).unwrap();
    assert!(world.running("web.service").is_empty());
}

#[test]
fn what_was_active_before_the_machine_could_be_told_counts_no_more() {
    let mut world = World::new(2);
    world.start("db.service", "[X-Fleet]\nMachineID=00000001\n");
    world.command(Verb::Stop, &[("db.service", None)]).unwrap();
    world.start("web.service", "[X-Fleet]\nMachineID=00000002\n[X-Muster]\nRequires=db.service\n");
    world.cut(M2);
    world.command(Verb::Start, &[("db.service", None)]).unwrap();
    world.agents.get_mut(&M1).unwrap().activates = false;
    world.command(Verb::Restart, &[("db.service", None)]).unwrap();
    world.connect(M2);
    assert!(world.running("web.service").is_empty());
    assert!(world.reason("web.service").contains("it requires db.service, which is not active yet"));
    world.activate(M1);
    assert_eq!(world.running("web.service"), [M2]);
}

#[test]
fn a_stop_that_the_store_could_not_take_opens_no_gate() {
    let mut world = World::new(1);
    let web = service("[X-Muster]\nRequires=db.service\n");
    world.command(Verb::Load, &[("web.service", Some(&web))]).unwrap();
    world.command(Verb::Start, &[("web.service", None)]).unwrap();
    assert!(world.running("web.service").is_empty());
    world.command(Verb::Destroy, &[("web.service", None)]).unwrap();
    world.start("web.service", "[X-Muster]\nRequires=db.service\n");
    world.committing = false;
    world.command_as(CommandId::new(99), Verb::Stop, &[("web.service", None)], false);
    world.fail_store();
    world.pass(2);
    assert!(world.running("web.service").is_empty());
    assert!(world.reason("web.service").contains("it requires db.service"));
}

#[test]
fn a_change_that_the_store_could_not_take_stops_nothing() {
    let mut world = World::new(1);
    world.start("y.service", "");
    world.start("x.service", "[X-Muster]\nRequires=y.service\n");
    world.command(Verb::Stop, &[("y.service", None)]).unwrap();
    assert_eq!(world.running("x.service"), [M1]);
    world.committing = false;
    world.command_as(CommandId::new(99), Verb::Restart, &[("x.service", None)], false);
    world.fail_store();
    world.pass(2);
    assert_eq!(world.running("x.service"), [M1]);
}

#[test]
fn what_was_being_written_when_the_store_failed_is_not_stopped_for_what_it_requires() {
    let mut world = World::new(1);
    world.start("y.service", "");
    world.agents.get_mut(&M1).unwrap().slow = true;
    world.start("x.service", "[X-Muster]\nRequires=y.service\n");
    world.command(Verb::Stop, &[("y.service", None)]).unwrap();
    world.committing = false;
    world.command_as(CommandId::new(99), Verb::Submit, &[("z.service", Some(&service("")))], false);
    world.fail_store();
    world.finish_writing(M1);
    assert_eq!(world.running("x.service"), [M1]);
    world.pass(2);
    assert_eq!(world.running("x.service"), [M1], "its machine was told to start it");
}

#[test]
fn what_has_ended_by_itself_stays_so_through_a_restart_of_the_scheduler() {
    let mut world = World::new(1);
    world.start("y.service", "");
    world.start("x.service", "[X-Muster]\nExclusive=yes\nRequires=y.service\n");
    let unit = world.agents.get_mut(&M1).unwrap().held.get_mut(&name("x.service")).unwrap();
    let state = UnitState { load: "loaded".into(), active: "inactive".into(), sub: "dead".into() };
    unit.observation = Observation::Held { phase: Phase::Launched, state: Some(state) };
    world.command(Verb::Stop, &[("y.service", None)]).unwrap();
    let mut world = world.restarted();
    world.leader.trust_store();
    world.connect(M1);
    world.pass(2);
    // Told to be loaded, it would begin anew when the other one does.
    assert_eq!(world.agents[&M1].held[&name("x.service")].target, Target::Launched);
}

#[test]
fn what_may_run_is_not_stopped_for_what_it_requires() {
    let mut world = World::new(1);
    world.start("db.service", "");
    world.start("one.service", "[X-Muster]\nExclusive=yes\nRequires=db.service\n");
    world.command(Verb::Stop, &[("db.service", None)]).unwrap();
    assert_eq!(world.running("one.service"), [M1]);
    // Neither scheduler nor agent know anything after their restart.
    let mut world = world.restarted();
    world.leader.trust_store();
    let unit = world.agents.get_mut(&M1).unwrap().held.get_mut(&name("one.service")).unwrap();
    unit.observation = Observation::Held { phase: Phase::Launched, state: None };
    world.connect(M1);
    assert_eq!(world.running("one.service"), [M1]);
    assert!(world.reason("one.service").contains("00000001 has not yet said whether it runs"));
}

#[test]
fn what_may_run_is_not_stopped_where_its_gate_was_decided_without_its_agent() {
    let mut world = World::new(2);
    world.start("db.service", "[X-Fleet]\nMachineID=00000002\n");
    world.start(
        "one.service",
        "[X-Fleet]\nMachineID=00000001\n[X-Muster]\nExclusive=yes\nRequires=db.service\n",
    );
    world.command(Verb::Stop, &[("db.service", None)]).unwrap();
    world.goodbye(M1, Goodbye::Restart);
    world.cut(M1);
    let mut world = world.restarted();
    world.leader.trust_store();
    world.connect(M2);
    world.pass(6);
    assert!(world.reason("one.service").contains("it requires db.service"));
    let unit = world.agents.get_mut(&M1).unwrap().held.get_mut(&name("one.service")).unwrap();
    unit.observation = Observation::Held { phase: Phase::Launched, state: None };
    world.connect(M1);
    assert_eq!(world.running("one.service"), [M1]);
}

#[test]
fn after_waits_only_for_what_is_being_started() {
    let mut world = World::new(1);
    world.start("web.service", "[X-Muster]\nAfter=db.service\n");
    assert_eq!(world.running("web.service"), [M1], "there is nothing to wait for");
    world.command(Verb::Stop, &[("web.service", None)]).unwrap();
    world.agents.get_mut(&M1).unwrap().activates = false;
    world.start("db.service", "");
    world.command(Verb::Start, &[("web.service", None)]).unwrap();
    assert!(world.running("web.service").is_empty());
    assert!(world.reason("web.service").contains("it is started after db.service"));
    world.activate(M1);
    assert_eq!(world.running("web.service"), [M1]);
}

#[test]
fn after_waits_for_nothing_that_has_ended_by_itself() {
    let mut world = World::new(1);
    world.start("db.service", "");
    world.report(M1, "db.service", Phase::Launched, "inactive");
    world.start("web.service", "[X-Muster]\nAfter=db.service\n");
    assert_eq!(world.running("web.service"), [M1]);
    world.start("app.service", "[X-Muster]\nRequires=db.service\n");
    assert_eq!(world.reason("app.service"), "it requires db.service, which has ended");
    // Also where it ends before it was active.
    world.agents.get_mut(&M1).unwrap().activates = false;
    world.command(Verb::Restart, &[("db.service", None)]).unwrap();
    world.command(Verb::Restart, &[("web.service", None)]).unwrap();
    assert_eq!(world.reason("web.service"), "it is started after db.service, which is not active yet");
    world.report(M1, "db.service", Phase::Launched, "inactive");
    assert_eq!(world.running("web.service"), [M1]);
}

/// Two units that wait on the second machine for one that does not become active on the first.
fn waiting_for_a_slow_start(options: &str) -> World {
    let mut world = World::new(2);
    world.start("db.service", &format!("[X-Fleet]\nMachineID={M1}\n{options}"));
    world.start("web.service", &format!("[X-Fleet]\nMachineID={M2}\n[X-Muster]\nAfter=db.service\n"));
    world.start("app.service", &format!("[X-Fleet]\nMachineID={M2}\n[X-Muster]\nRequires=db.service\n"));
    world.agents.get_mut(&M1).unwrap().activates = false;
    for unit in ["db.service", "web.service", "app.service"] {
        world.command(Verb::Restart, &[(unit, None)]).unwrap();
    }
    assert!(world.running("web.service").is_empty());
    world
}

#[test]
fn after_waits_for_no_machine_that_is_lost() {
    let mut world = waiting_for_a_slow_start("");
    world.cut(M1);
    world.pass(6);
    assert_eq!(world.running("web.service"), [M2]);
    assert_eq!(world.reason("app.service"), "it requires db.service, whose machine 00000001 is unreachable");
}

#[test]
fn after_waits_for_no_machine_that_shuts_down() {
    let mut world = waiting_for_a_slow_start("[X-Muster]\nOnReboot=keep\n");
    world.goodbye(M1, Goodbye::Shutdown);
    assert_eq!(world.running("web.service"), [M2]);
    assert_eq!(world.reason("app.service"), "it requires db.service, whose machine 00000001 shuts down");
    world.cut(M1);
    world.pass(6);
    world.command(Verb::Restart, &[("web.service", None)]).unwrap();
    assert_eq!(world.running("web.service"), [M2]);
    assert_eq!(world.reason("app.service"), "it requires db.service, whose machine 00000001 was shut down");
}

#[test]
fn units_that_wait_for_each_other_are_refused() {
    let mut world = World::new(1);
    world.start("a.service", "[X-Muster]\nRequires=b.service\n");
    let b = service("[X-Muster]\nAfter=c.service\n");
    let c = service("[X-Muster]\nRequires=a.service\n");
    let refused = invalid(&mut world, Verb::Submit, &[("b.service", &b), ("c.service", &c)]);
    assert!(refused.contains("b.service: [X-Muster] Requires= and After=: it waits for c.service, which waits for a.service, and that for it"), "{refused}");
    world.command(Verb::Submit, &[("b.service", Some(&b))]).unwrap();
    let refused = invalid(&mut world, Verb::Submit, &[("c.service", &c)]);
    assert!(refused.contains("c.service"), "{refused}");
}

#[test]
fn a_circle_is_named_with_a_unit_that_is_new() {
    let mut world = World::new(1);
    world.start("known.service", "[X-Muster]\nAfter=z.service\n");
    let after = |names: &str| service(&format!("[X-Muster]\nAfter={names}\n"));
    let files = [
        // It leads to the circle and is not on it.
        ("a.service", after("known.service")),
        ("z.service", after("known.service")),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(unit, file)| (*unit, &**file)).collect();
    let refused = invalid(&mut world, Verb::Submit, &files);
    assert!(!refused.contains("a.service:"), "{refused}");
    assert!(
        refused.contains(
            "z.service: [X-Muster] Requires= and After=: it waits for known.service, and that for it"
        ),
        "{refused}"
    );
}

/// Checking them is the leader's step, in which no heartbeat is answered.
#[test]
fn many_units_that_wait_for_each_other_are_checked_at_once() {
    const MANY: usize = 10_000;
    let unit = |number: usize| format!("u{number}.service");
    let mut world = World::new(1);
    // Each waits for ten before it, the first of them for `first`.
    let units = |first: &str| -> Vec<(String, String)> {
        let before =
            |number: usize| -> Vec<String> { (number.saturating_sub(10)..number).map(unit).collect() };
        let after = |number| if number == 0 { first.to_owned() } else { before(number).join(" ") };
        let file = |number| service(&format!("[X-Muster]\nAfter={}\n", after(number)));
        (0..MANY).map(|number| (unit(number), file(number))).collect()
    };
    let circle = units(&unit(MANY - 1));
    let circle: Vec<(&str, &str)> = circle.iter().map(|(unit, file)| (&**unit, &**file)).collect();
    let refused = invalid(&mut world, Verb::Submit, &circle);
    assert!(refused.contains("more one after the other, and that for it"), "{refused}");
    assert!(refused.len() < 10_000, "{} bytes", refused.len());
    let chain = units("");
    let chain: Vec<(&str, Option<&str>)> =
        chain.iter().map(|(unit, file)| (&**unit, Some(&**file))).collect();
    world.command(Verb::Submit, &chain).unwrap();
}

#[test]
fn who_asks_for_more_goes_first() {
    let mut world = World::new(0);
    let memory = |mib: u64| format!("[X-Muster]\nMemory={mib}M\n");
    world.start("small.service", &memory(100));
    world.start("large.service", &memory(900));
    world.start("first.service", "[X-Muster]\nMemory=200M\nPriority=1\n");
    world.join(M1, &[]);
    assert_eq!(world.running("first.service"), [M1]);
    assert_eq!(world.running("small.service"), [M1]);
    assert!(world.running("large.service").is_empty(), "priority counts more than size");
}

#[test]
fn a_unit_waits_no_more_for_one_that_is_not_to_be_started_after_all() {
    let mut world = World::new(1);
    world.agents.get_mut(&M1).unwrap().activates = false;
    world.start("db.service", "");
    world.start("web.service", "[X-Muster]\nAfter=db.service\n");
    assert!(!world.running("web.service").contains(&M1));
    world.command(Verb::Unload, &[("db.service", None)]).unwrap();
    assert_eq!(world.running("web.service"), [M1]);
}

#[test]
fn what_an_agent_that_was_just_started_believes_opens_no_gate() {
    let mut world = World::new(1);
    world.start("one.service", EXCLUSIVE);
    let mut world = world.restarted();
    // It may have ended with the lease, and the agent has not asked systemd yet.
    let unit = world.agents.get_mut(&M1).unwrap().held.get_mut(&name("one.service")).unwrap();
    unit.observation = Observation::Held { phase: Phase::Launched, state: None };
    world.connect(M1);
    assert!(world.reason("one.service").contains("this scheduler has just taken over"));
    let said = |world: &World| world.agents[&M1].held[&name("one.service")].clone();
    let observation = Observation::Held {
        phase: Phase::Launched,
        state: Some(UnitState { load: "loaded".into(), active: "active".into(), sub: "running".into() }),
    };
    let report = UnitReport {
        name: name("one.service"),
        epoch: said(&world).epoch,
        change: ReportedChange::Observed(observation),
    };
    world.step(Input::Agent(world.agents[&M1].connection.unwrap(), FromAgent::Report(vec![report])));
    assert_eq!(world.status("one.service").unwrap().waiting, None);
}

#[test]
fn a_lease_that_was_granted_under_other_settings_is_waited_out() {
    let mut world = exclusive();
    world.stored.machines.get_mut(&M1).unwrap().lease = Duration::from_secs(20);
    let mut world = world.restarted();
    world.leader.trust_store();
    world.connect(M2);
    // 20.4 s of lease, 4.08 s for its end, 1 s for the guard's lag.
    world.pass(25);
    assert_eq!(world.running("one.service"), [M1]);
    world.pass(1);
    assert_eq!(world.running("one.service"), [M1, M2]);
}

#[test]
fn the_longer_lease_of_an_agent_counts_also_when_it_is_back() {
    let mut world = exclusive();
    world.goodbye(M1, Goodbye::Restart);
    world.cut(M1);
    world.connect(M1);
    let lease = |world: &World| world.stored.machines[&M1].longest_lease().as_secs();
    assert_eq!((lease(&world), world.stored.machines[&M1].restarting), (30, false));
    world.pass(24);
    assert_eq!(lease(&world), 30);
    world.pass(3);
    assert_eq!(lease(&world), 5);
}

#[test]
fn of_two_that_fit_one_at_a_time_the_required_one_goes_first() {
    let mut world = World::new(0);
    world.start("db.service", "[X-Muster]\nMemory=700M\n");
    world.start("web.service", "[X-Muster]\nMemory=700M\nPriority=10\nRequires=db.service\n");
    world.join(M1, &[]);
    assert_eq!(world.running("db.service"), [M1]);
}
