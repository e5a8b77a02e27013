//! Units that systemd gives up, units that run to their end, and machines that are rebooted.

use super::world::{World, machine, name};
use crate::command::Verb;
use crate::ids::{CommandId, MachineId};
use crate::leader::{Arrival, Event, Input};
use crate::machine::{Availability, Drain};
use crate::message::{FromAgent, Goodbye, ReportedChange, UnitReport};
use crate::state::{DesiredState, Failure, Observation, Phase, Target, UnitState};

const M1: MachineId = machine(1);
const M2: MachineId = machine(2);
const M3: MachineId = machine(3);

fn seen(world: &mut World, on: MachineId, unit: &str, phase: Phase, active: &str) {
    let unit = name(unit);
    let agent = world.agents.get_mut(&on).unwrap();
    let held = agent.held.get_mut(&unit).unwrap();
    let state = UnitState { load: "loaded".into(), active: active.into(), sub: String::new() };
    held.observation = Observation::Held { phase, state: Some(state) };
    let change = ReportedChange::Observed(held.observation.clone());
    let report = UnitReport { name: unit, epoch: held.epoch, change };
    let connection = agent.connection.unwrap();
    world.step(Input::Agent(connection, FromAgent::Report(vec![report])));
}

/// Wherever it runs, it fails.
fn fails(world: &mut World, unit: &str, result: &str) -> MachineId {
    let [on] = world.running(unit)[..] else { panic!("it runs on one machine") };
    let failure = Failure { result: result.into(), reason: format!("{result}, status 1") };
    seen(world, on, unit, Phase::Failed(failure), "failed");
    on
}

fn trouble(world: &mut World, unit: &str) -> String {
    world.status(unit).unwrap().trouble.expect("it is in trouble")
}

#[test]
fn a_unit_that_fails_is_tried_on_every_machine_and_then_given_up() {
    let mut world = World::new(3);
    world.start("bad.service", "");
    let mut machines = vec![fails(&mut world, "bad.service", "exit-code")];
    assert_eq!(trouble(&mut world, "bad.service"), "it is started anew in 5 s (attempt 1 of 3)");
    world.pass(4);
    assert_eq!(world.running("bad.service"), machines, "not before the delay has passed");
    for delay in [2, 11, 21] {
        world.pass(delay);
        machines.push(fails(&mut world, "bad.service", "exit-code"));
    }
    let mut tried = machines.clone();
    tried.sort();
    tried.dedup();
    assert_eq!(tried, [M1, M2, M3], "{machines:?}");
    let text = trouble(&mut world, "bad.service");
    assert!(text.starts_with("given up: it failed 4 times in 600 s"), "{text}");
    assert!(text.contains("(every machine that takes it)"), "{text}");
    assert!(world.events.iter().any(|event| matches!(event, Event::GivenUp { .. })));
    let commits = world.commits;
    world.pass(120);
    assert_eq!(world.commits, commits, "it moves no more");
    // Who asks for it, gets it.
    world.command(Verb::Start, &[("bad.service", None)]).unwrap();
    assert_eq!(world.status("bad.service").unwrap().trouble, None);
    assert!(world.commits > commits);
}

#[test]
fn the_delay_is_the_units_own_and_nothing_moves_where_it_says_so() {
    let mut world = World::new(2);
    world.start("bad.service", "[X-Muster]\nRescheduleAttempts=0\n");
    let on = fails(&mut world, "bad.service", "exit-code");
    world.pass(60);
    assert_eq!(world.running("bad.service"), [on]);
    assert!(trouble(&mut world, "bad.service").contains("it failed once on"));
}

#[test]
fn failures_of_long_ago_do_not_count() {
    let mut world = World::new(2);
    world.start("bad.service", "[X-Muster]\nRescheduleAttempts=1\nRescheduleInterval=1min\n");
    for _ in 0..3 {
        fails(&mut world, "bad.service", "exit-code");
        world.pass(6);
        assert_eq!(world.status("bad.service").unwrap().trouble, None, "it runs again");
        world.pass(60);
    }
}

#[test]
fn where_it_failed_it_does_not_come_back_soon() {
    let mut world = World::new(3);
    world.start("picky.service", "");
    let first = fails(&mut world, "picky.service", "exit-code");
    world.pass(6);
    let [second] = world.running("picky.service")[..] else { panic!("it runs again") };
    assert_ne!(first, second);
    world.cut(second);
    world.pass(6);
    let running = world.running("picky.service");
    assert!(!running.contains(&first) && running.len() == 2, "{running:?}, and it failed on {first}");
}

#[test]
fn what_ran_out_of_memory_goes_where_there_is_more() {
    let mut world = World::new(3);
    world.start("full.service", &format!("[X-Fleet]\nMachineID={M1}\n[X-Muster]\nMemory=900M\n"));
    world.start("half.service", &format!("[X-Fleet]\nMachineID={M3}\n[X-Muster]\nMemory=100M\n"));
    for number in 0..8 {
        let options = format!("[X-Fleet]\nMachineID={M2}\n[X-Muster]\nMemory=0\nCPU=400m\n");
        world.start(&format!("busy{number}.service"), &options);
    }
    world.start("hungry.service", "");
    assert_eq!(world.running("hungry.service"), [M3], "the least loaded");
    fails(&mut world, "hungry.service", "oom-kill");
    world.pass(6);
    assert_eq!(world.running("hungry.service"), [M2], "it has the most memory, though it is the busiest");
}

#[test]
fn a_failure_that_somebody_has_mended_moves_nothing_until_it_comes_back() {
    let mut world = World::new(2);
    world.start("a.service", "");
    let on = fails(&mut world, "a.service", "exit-code");
    seen(&mut world, on, "a.service", Phase::Launched, "active");
    world.pass(30);
    assert_eq!(world.running("a.service"), [on]);
    fails(&mut world, "a.service", "exit-code");
    world.pass(15);
    assert_ne!(world.running("a.service"), [on], "it was tried elsewhere");
}

#[test]
fn units_tied_together_are_started_anew_where_they_are() {
    let mut world = World::new(2);
    world.start("a.service", "");
    world.start("b.service", "[X-Fleet]\nMachineOf=a.service\n");
    let on = fails(&mut world, "a.service", "exit-code");
    let epoch = |world: &World| world.agents[&on].held[&name("a.service")].epoch;
    let before = epoch(&world);
    world.pass(6);
    assert_eq!((world.running("a.service"), world.running("b.service")), (vec![on], vec![on]));
    assert!(epoch(&world) > before);
}

/// The retry was for a placement that is over by then.
#[test]
fn what_was_placed_anew_meanwhile_is_not_moved_for_an_old_failure() {
    let mut world = World::new(2);
    world.start("a.service", "");
    let on = fails(&mut world, "a.service", "exit-code");
    world.reboot(on);
    world.connect(on);
    let [now] = world.running("a.service")[..] else { panic!("it runs again") };
    let epoch = world.agents[&now].held[&name("a.service")].epoch;
    world.pass(10);
    assert_eq!(world.agents[&now].held[&name("a.service")].epoch, epoch);
}

/// What waits to be with it may fit where it goes.
#[test]
fn what_waits_for_a_unit_that_moves_is_tried_there() {
    let mut world = World::new(2);
    world.start("full.service", &format!("[X-Fleet]\nMachineID={M1}\n[X-Muster]\nCPU=3.5\n"));
    world.start("light.service", &format!("[X-Fleet]\nMachineID={M2}\n[X-Muster]\nMemory=1000M\n"));
    world.start("a.service", "");
    world.start("b.service", "[X-Fleet]\nMachineOf=a.service\n[X-Muster]\nCPU=2\nMemory=1M\n");
    let [on] = world.running("a.service")[..] else { panic!("it runs") };
    let other = if on == M1 { M2 } else { M1 };
    if on == M2 {
        // It fits beside it at once.
        assert_eq!(world.running("b.service"), [M2]);
        return;
    }
    assert!(world.running("b.service").is_empty());
    fails(&mut world, "a.service", "exit-code");
    world.pass(6);
    assert_eq!((world.running("a.service"), world.running("b.service")), (vec![other], vec![other]));
}

#[test]
fn what_has_run_to_its_end_is_not_started_again() {
    let mut world = World::new(2);
    let job = "[Service]\nType=oneshot\nExecStart=/bin/true\n";
    world.command(Verb::Start, &[("job.service", Some(job))]).unwrap();
    let [on] = world.running("job.service")[..] else { panic!("it runs") };
    seen(&mut world, on, "job.service", Phase::Launched, "inactive");
    assert!(world.status("job.service").unwrap().done && world.stored.units[&name("job.service")].done);
    world.reboot(on);
    world.pass(6);
    let other = if on == M1 { M2 } else { M1 };
    assert!(world.running("job.service").is_empty());
    assert!(
        world.agents[&other].held.contains_key(&name("job.service")),
        "its file is where a timer may need it"
    );
    world.connect(on);
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.pass(1);
    assert!(world.running("job.service").is_empty());
    world.command(Verb::Start, &[("job.service", None)]).unwrap();
    assert_eq!(world.running("job.service"), [other]);
    assert!(!world.status("job.service").unwrap().done);
}

#[test]
fn a_reboot_ends_what_was_placed_there_at_once() {
    let mut world = World::new(1);
    world.start("moves.service", "");
    world.start("keeps.service", "[X-Muster]\nOnReboot=keep\n");
    world.join(M2, &[]);
    let epoch = world.agents[&M1].held[&name("keeps.service")].epoch;
    // Within its lease.
    world.reboot(M1);
    world.connect(M1);
    assert_eq!(world.running("moves.service"), [M2], "the least loaded has it");
    assert_eq!(world.running("keeps.service"), [M1]);
    assert!(world.agents[&M1].held[&name("keeps.service")].epoch > epoch);
    let units = vec![name("keeps.service"), name("moves.service")];
    let rebooted = Event::MachineUp { machine: M1, arrival: Arrival::Rebooted, units };
    assert!(world.events.contains(&rebooted));
}

#[test]
fn a_reboot_ends_what_was_placed_there_also_where_the_store_could_not_take_that() {
    let mut world = World::new(1);
    world.start("keeps.service", "[X-Muster]\nOnReboot=keep\n");
    world.start("moves.service", "");
    world.join(M2, &[]);
    let epoch = world.agents[&M1].held[&name("keeps.service")].epoch;
    world.committing = false;
    world.reboot(M1);
    world.connect(M1);
    world.fail_store();
    world.pass(2);
    assert_eq!((world.running("moves.service"), world.running("keeps.service")), (vec![M2], vec![M1]));
    assert!(world.agents[&M1].held[&name("keeps.service")].epoch > epoch);
}

#[test]
fn what_keeps_to_its_machine_waits_for_it_through_a_reboot_and_no_longer() {
    let mut world = World::new(1);
    world.start("moves.service", "");
    world.start("keeps.service", "[X-Muster]\nOnReboot=keep\n");
    world.join(M2, &[]);
    world.goodbye(M1, Goodbye::Shutdown);
    assert_eq!((world.running("moves.service"), world.running("keeps.service")), (vec![M2], vec![M1]));
    assert!(world.agents[&M1].farewell);
    world.reboot(M1);
    world.pass(30);
    assert!(world.running("keeps.service").is_empty());
    let waits = "it stays with its machine 00000001 (OnReboot=keep), which was shut down";
    assert_eq!(world.reason("keeps.service"), waits);
    // Also while another leader takes over.
    let mut world = world.restarted();
    world.connect(M2);
    world.pass(30);
    assert!(world.running("keeps.service").is_empty());
    world.connect(M1);
    assert_eq!(world.status("keeps.service").unwrap().waiting, None);
    assert_eq!(world.running("keeps.service"), [M1]);
    assert!(!world.stored.machines[&M1].leaving);
    // A machine that is lost without a word is no reboot.
    world.reboot(M1);
    world.pass(6);
    assert_eq!(world.running("keeps.service"), [M2]);
}

#[test]
fn what_was_to_be_started_anew_while_its_machine_was_away_is_once_it_is_back() {
    let mut world = World::new(1);
    world.start("a.service", "");
    fails(&mut world, "a.service", "exit-code");
    let epoch = |world: &World| world.agents[&M1].held[&name("a.service")].epoch;
    let before = epoch(&world);
    world.cut(M1);
    world.pass(20);
    world.connect(M1);
    world.pass(6);
    assert!(epoch(&world) > before, "it was started anew");
}

#[test]
fn a_start_anew_that_the_store_could_not_take_is_made_again() {
    let mut world = World::new(2);
    world.start("u.service", "");
    let on = fails(&mut world, "u.service", "exit-code");
    world.committing = false;
    world.pass(6);
    world.fail_store();
    assert_eq!(world.running("u.service"), [on]);
    world.pass(8);
    assert_eq!(world.running("u.service").len(), 1);
    assert_ne!(world.running("u.service"), [on]);
}

#[test]
fn what_is_given_up_is_not_started_anew_for_an_earlier_failure() {
    let mut world = World::new(3);
    world.start("bad.service", "[X-Muster]\nRescheduleAttempts=1\nRescheduleDelay=10\n");
    let first = fails(&mut world, "bad.service", "exit-code");
    // It is moved for another reason before its time has come, and its start fails.
    world.agents.values_mut().for_each(|agent| agent.activates = false);
    let drain = Availability::Draining(Drain { timeout_ms: 1000, max_parallel: 0 });
    world.machine_command(drain, first).unwrap();
    let second = fails(&mut world, "bad.service", "exit-code");
    assert!(trouble(&mut world, "bad.service").starts_with("given up"));
    world.pass(30);
    assert_eq!(world.running("bad.service"), [second]);
}

#[test]
fn what_failed_on_a_machine_that_was_to_be_emptied_is_started_anew_when_that_one_stays() {
    let mut world = World::new(1);
    world.start("a.service", "");
    let epoch = |world: &World| world.agents[&M1].held[&name("a.service")].epoch;
    let drain = Availability::Draining(Drain { timeout_ms: 1000, max_parallel: 0 });
    world.machine_command(drain, M1).unwrap();
    fails(&mut world, "a.service", "exit-code");
    let before = epoch(&world);
    world.pass(20);
    assert_eq!(epoch(&world), before, "it is to go elsewhere, and there is no such place");
    world.machine_command(Availability::Open, M1).unwrap();
    world.pass(6);
    assert!(epoch(&world) > before, "it was started anew");
}

/// Neither what was decided of it nor what a client asked for came to anything.
#[test]
fn what_failed_is_started_anew_after_the_store_has_failed() {
    for asked in [false, true] {
        let mut world = World::new(1);
        world.start("a.service", "");
        let epoch = |world: &World| world.agents[&M1].held[&name("a.service")].epoch;
        fails(&mut world, "a.service", "exit-code");
        let before = epoch(&world);
        world.committing = false;
        if asked {
            let id = CommandId::new(world.id().into());
            world.command_as(id, Verb::Start, &[("a.service", None)], false);
        } else {
            world.pass(6);
        }
        world.fail_store();
        assert_eq!(epoch(&world), before);
        world.pass(12);
        assert!(epoch(&world) > before, "it was started anew");
    }
}

/// What it is tied to is gone, and an old store has found it without that.
#[test]
fn a_unit_does_not_leave_for_a_machine_where_what_it_is_tied_to_is_not() {
    let mut world = World::new(2);
    world.start("a.service", "");
    world.start("b.service", "[X-Fleet]\nMachineOf=a.service\n");
    let [on] = world.running("b.service")[..] else { panic!("it runs") };
    let backup = world.stored.clone();
    world.command(Verb::Restart, &[("b.service", None)]).unwrap();
    // The present epoch of it is later than any that the copy of the store knows of; the other unit is unloaded there.
    world.stored = backup;
    world.stored.units.get_mut(&name("a.service")).unwrap().placements.clear();
    world.stored.units.get_mut(&name("a.service")).unwrap().desired = DesiredState::Inactive;
    let mut world = world.restarted();
    world.connect(M1);
    world.connect(M2);
    world.pass(1);
    assert_eq!(world.running("b.service"), [on]);
    fails(&mut world, "b.service", "exit-code");
    world.pass(6);
    assert_eq!(world.running("b.service"), [on]);
}

/// Neither a machine that stops what something else had started of it, nor one that could not hold it, has run it; and one
/// whose agent was killed before it wrote down how its start ended is not to start it again.
#[test]
fn what_has_run_to_its_end_is_not_started_where_it_has_not_run() {
    let loaded = || Some(UnitState { load: "loaded".into(), active: "inactive".into(), sub: String::new() });
    let said = [
        Observation::Held { phase: Phase::Stopping, state: loaded() },
        Observation::Held { phase: Phase::Starting, state: None },
        Observation::Refused("no space left on device".into()),
    ];
    for observation in said {
        let mut world = World::new(2);
        let job = "[Service]\nType=oneshot\nExecStart=/bin/true\n";
        world.command(Verb::Start, &[("job.service", Some(job))]).unwrap();
        let [on] = world.running("job.service")[..] else { panic!("it runs") };
        seen(&mut world, on, "job.service", Phase::Launched, "inactive");
        world.cut(on);
        world.pass(6);
        let other = if on == M1 { M2 } else { M1 };
        world.agents.get_mut(&other).unwrap().held.get_mut(&name("job.service")).unwrap().observation =
            observation;
        world.connect(other);
        assert_eq!(world.agents[&other].held[&name("job.service")].target, Target::Loaded);
    }
}

#[test]
fn a_restart_of_what_is_done_is_recorded_also_where_it_waits_for_a_machine() {
    let mut world = World::new(1);
    let job = "[Service]\nType=oneshot\nExecStart=/bin/true\n";
    world.command(Verb::Start, &[("job.service", Some(job))]).unwrap();
    seen(&mut world, M1, "job.service", Phase::Launched, "inactive");
    world.machine_command(Availability::Cordoned, M1).unwrap();
    world.reboot(M1);
    world.connect(M1);
    assert!(world.stored.units[&name("job.service")].placements.is_empty());
    world.command(Verb::Restart, &[("job.service", None)]).unwrap();
    assert!(!world.stored.units[&name("job.service")].done);
}

#[test]
fn what_has_run_to_its_end_is_done_also_after_the_store_has_failed() {
    let mut world = World::new(1);
    let job = "[Service]\nType=oneshot\nExecStart=/bin/true\n";
    world.command(Verb::Start, &[("job.service", Some(job))]).unwrap();
    world.committing = false;
    seen(&mut world, M1, "job.service", Phase::Launched, "inactive");
    world.fail_store();
    // Told that it is wanted as it is, its machine has nothing new to say.
    world.agents.get_mut(&M1).unwrap().slow = true;
    world.pass(3);
    assert!(world.stored.units[&name("job.service")].done);
}

#[test]
fn a_global_one_shot_unit_runs_on_every_machine() {
    let mut world = World::new(1);
    let job = "[Service]\nType=oneshot\nExecStart=/bin/true\n[X-Fleet]\nGlobal=yes\n";
    world.command(Verb::Start, &[("job.service", Some(job))]).unwrap();
    world.start("after.service", "[X-Fleet]\nMachineID=00000001\n[X-Muster]\nRequires=job.service\n");
    seen(&mut world, M1, "job.service", Phase::Launched, "inactive");
    assert_eq!(world.running("after.service"), [M1]);
    world.join(M2, &[]);
    assert_eq!(world.running("job.service"), [M1, M2]);
}
