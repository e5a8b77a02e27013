//! The leader against machines that do what they are told.

mod activating;
mod adopting;
mod backup;
mod doubt;
mod events;
mod failing;
mod fleet;
mod gates;
mod labels;
mod moving;
mod office;
mod races;
mod random;
mod replacing;
mod rivals;
mod rto;
mod streams;
mod welcome;
mod world;

use std::time::Duration;

use self::world::{World, machine, name, service};
use super::*;
use crate::command::{CommandError, CopyRole, Done, Query, QueryAnswer, UnitErrorKind, Verb};
use crate::ids::CommandId;
use crate::message::{FromAgent, Refused, ReportedChange, UnitReport};

fn heartbeat(number: u64, pid1_age: u64) -> FromAgent {
    let pid1_age = Duration::from_secs(pid1_age);
    FromAgent::Heartbeat { number, pid1_age, pressure: Pressure::default() }
}

#[test]
fn units_spread_over_the_least_loaded_machines() {
    let mut world = World::new(3);
    for number in 1..=9 {
        world.start(&format!("u{number}.service"), "");
    }
    let counts: Vec<usize> = world.agents.values().map(|agent| agent.held.len()).collect();
    assert_eq!(counts, [3, 3, 3]);
    let units: Vec<usize> = world.machines().machines.iter().map(|machine| machine.units).collect();
    assert_eq!(units, [3, 3, 3]);
}

#[test]
fn a_reservation_counts_as_load_and_is_never_exceeded() {
    let mut world = World::new(2);
    world.start("big.service", "[X-Muster]\nMemory=700M\n");
    for number in 1..=5 {
        world.start(&format!("small{number}.service"), "");
    }
    let big = world.running("big.service")[0];
    let other = world.agents.keys().copied().find(|id| *id != big).unwrap();
    assert_eq!(world.agents[&other].held.len(), 5);
    world.start("second.service", "[X-Muster]\nMemory=700M\n");
    assert_eq!(world.running("second.service"), [other]);
    world.start("third.service", "[X-Muster]\nMemory=700M\n");
    assert!(world.running("third.service").is_empty());
    assert!(
        world.reason("third.service").contains("of memory are needed"),
        "{}",
        world.reason("third.service")
    );
    // What ends makes room for what waits.
    world.command(Verb::Destroy, &[("second.service", None)]).unwrap();
    assert_eq!(world.running("third.service"), [other]);
}

#[test]
fn the_higher_priority_goes_first_then_the_earlier_submission() {
    let mut world = World::new(0);
    let alone = |priority| format!("Conflicts=*.service\n[X-Muster]\nPriority={priority}\n");
    for (unit, priority) in [("a.service", 0), ("b.service", 5), ("c.service", 5)] {
        world.start(unit, &format!("[X-Fleet]\n{}", alone(priority)));
    }
    world.join(machine(1), &[]);
    assert_eq!(world.running("b.service").len(), 1);
    world.join(machine(2), &[]);
    assert_eq!(world.running("c.service").len(), 1);
    assert!(world.running("a.service").is_empty());
}

#[test]
fn machine_id_and_metadata_decide_where_a_unit_may_be() {
    let mut world = World::new(0);
    world.join(machine(1), &[("disk", "hdd")]);
    world.join(machine(2), &[("disk", "ssd"), ("zone", "a")]);
    world.join(machine(3), &[("disk", "ssd"), ("zone", "b")]);
    world.start("b.service", "[X-Fleet]\nMachineMetadata=disk=ssd\nMachineMetadata=zone=b\n");
    world.start("or.service", "[X-Fleet]\nMachineMetadata=zone=x\nMachineMetadata=zone=a\n");
    world.start("id.service", &format!("[X-Fleet]\nMachineID={}\n", machine(1)));
    world.start("no.service", "[X-Fleet]\nMachineMetadata=disk=tape\n");
    assert_eq!(world.running("b.service"), [machine(3)]);
    assert_eq!(world.running("or.service"), [machine(2)]);
    assert_eq!(world.running("id.service"), [machine(1)]);
    assert_eq!(
        world.reason("no.service"),
        "no machine takes the unit\n\
         00000001: no.service needs the label disk=tape, the machine has hdd\n\
         00000002: no.service needs the label disk=tape, the machine has ssd\n\
         00000003: no.service needs the label disk=tape, the machine has ssd"
    );
}

#[test]
fn conflicts_hold_both_ways_and_against_loaded_units() {
    let mut world = World::new(1);
    world.command(Verb::Load, &[("a.service", Some(&service("[X-Fleet]\nConflicts=b.*\n")))]).unwrap();
    world.start("b.service", "");
    assert!(world.running("b.service").is_empty());
    assert_eq!(
        world.reason("b.service"),
        "no machine takes the unit\n00000001: a.service is there: Conflicts=b.* of a.service"
    );
    world.command(Verb::Unload, &[("a.service", None)]).unwrap();
    assert_eq!(world.running("b.service"), [machine(1)]);
    world.command(Verb::Load, &[("a.service", None)]).unwrap();
    assert!(world.reason("a.service").contains("b.service is there"));
}

#[test]
fn instances_kept_apart_take_a_machine_each() {
    let mut world = World::new(3);
    let template = service("[X-Fleet]\nConflicts=web@*.service\n");
    world.command(Verb::Submit, &[("web@.service", Some(&template))]).unwrap();
    let names: Vec<String> = (1..=4).map(|n| format!("web@{n}.service")).collect();
    let arguments: Vec<(&str, Option<&str>)> = names.iter().map(|name| (name.as_str(), None)).collect();
    world.command(Verb::Start, &arguments).unwrap();
    let machines: BTreeSet<MachineId> = names.iter().flat_map(|name| world.running(name)).collect();
    assert_eq!(machines.len(), 3);
    assert!(world.running("web@4.service").is_empty());
}

#[test]
fn a_group_goes_together_or_not_at_all() {
    let mut world = World::new(0);
    world.start("db.service", "[X-Muster]\nMemory=600M\n");
    world.start("side.service", "[X-Fleet]\nMachineOf=db.service\n[X-Muster]\nMemory=600M\n");
    world.join(machine(1), &[]);
    assert!(world.running("db.service").is_empty() && world.running("side.service").is_empty());
    assert!(world.reason("db.service").starts_with("no machine takes the 2 units that are tied together"));
    world.replace(Verb::Start, "side.service", &service("[X-Fleet]\nMachineOf=db.service\n")).unwrap();
    assert_eq!(world.running("db.service"), [machine(1)]);
    assert_eq!(world.running("side.service"), [machine(1)]);
}

#[test]
fn a_cycle_is_one_group_and_a_loaded_target_suffices() {
    let mut world = World::new(3);
    let units = [
        ("a.service", Some(service("[X-Fleet]\nMachineOf=b.service\n"))),
        ("b.service", Some(service("[X-Fleet]\nMachineOf=a.service\n"))),
    ];
    let units: Vec<(&str, Option<&str>)> = units.iter().map(|(n, c)| (*n, c.as_deref())).collect();
    world.command(Verb::Start, &units[..1]).unwrap();
    let tie = "MachineOf=b.service of a.service";
    assert_eq!(world.reason("a.service"), format!("{tie}: no such unit; submit it, or mend the name"));
    world.command(Verb::Submit, &units[1..]).unwrap();
    assert_eq!(world.reason("a.service"), format!("{tie}: it is inactive; load or start it"));
    world.command(Verb::Load, &units[1..]).unwrap();
    assert_eq!(world.running("a.service").len(), 1);
    let on = world.status("b.service").unwrap().copies[0].machine;
    assert_eq!(world.running("a.service"), [on]);
}

#[test]
fn a_follower_goes_when_its_target_is_unloaded_and_comes_back_with_it() {
    let mut world = World::new(2);
    world.start("db.service", "");
    world.start("side.service", "[X-Fleet]\nMachineOf=db.service\n");
    assert_eq!(world.running("side.service"), world.running("db.service"));
    world.command(Verb::Unload, &[("db.service", None)]).unwrap();
    assert!(world.running("side.service").is_empty());
    world.command(Verb::Start, &[("db.service", None)]).unwrap();
    assert_eq!(world.running("side.service"), world.running("db.service"));
    assert_eq!(world.running("side.service").len(), 1);
}

#[test]
fn members_in_conflict_with_each_other_are_named() {
    let mut world = World::new(2);
    world.start("x.service", "[X-Fleet]\nConflicts=y.*\n");
    world.command(Verb::Unload, &[("x.service", None)]).unwrap();
    world.start("y.service", "[X-Fleet]\nMachineOf=x.service\n");
    world.command(Verb::Start, &[("x.service", None)]).unwrap();
    assert!(
        world
            .reason("y.service")
            .contains("x.service is tied by MachineOf= to y.service, and in conflict with it"),
        "{}",
        world.reason("y.service")
    );
}

#[test]
fn a_global_unit_runs_everywhere_and_yields_to_what_is_there() {
    let mut world = World::new(2);
    world.start("web.service", "[X-Fleet]\nConflicts=mon.service\n");
    world.start("mon.service", "[X-Fleet]\nGlobal=true\n");
    let web = world.running("web.service")[0];
    assert_eq!(world.running("mon.service").len(), 1);
    assert_ne!(world.running("mon.service"), [web]);
    world.command(Verb::Destroy, &[("web.service", None)]).unwrap();
    assert_eq!(world.running("mon.service").len(), 2);
    // It holds its place against those that come later.
    world.start("web.service", "[X-Fleet]\nConflicts=mon.service\n");
    assert!(world.running("web.service").is_empty());
    world.join(machine(3), &[]);
    assert_eq!(world.running("web.service"), [machine(3)]);
    assert_eq!(world.running("mon.service").len(), 2);
}

#[test]
fn of_two_global_units_in_conflict_the_first_submitted_wins() {
    let mut world = World::new(2);
    world.start("z.service", "[X-Fleet]\nGlobal=true\nConflicts=a.service\n");
    world.start("a.service", "[X-Fleet]\nGlobal=true\n");
    world.join(machine(3), &[]);
    assert_eq!(world.running("z.service").len(), 3);
    assert!(world.running("a.service").is_empty());
    let why = |id| format!("\n0000000{id}: z.service is there: Conflicts=a.service of z.service");
    let expected = format!("no machine takes the unit{}{}{}", why(1), why(2), why(3));
    assert_eq!(world.reason("a.service"), expected, "it is said why it is nowhere");
    assert_eq!(world.status("z.service").unwrap().waiting, None);
    let mut world = world.restarted();
    for number in 1..=3 {
        world.connect(machine(number));
    }
    world.join(machine(4), &[]);
    assert_eq!(world.running("z.service").len(), 4);
    assert!(world.running("a.service").is_empty());
}

#[test]
fn a_lost_machine_gives_its_units_to_others_in_one_batch() {
    let mut world = World::new(3);
    for number in 1..=6 {
        world.start(&format!("u{number}.service"), "");
    }
    world.start("side.service", "[X-Fleet]\nMachineOf=u1.service\n");
    let lost = world.running("u1.service")[0];
    let before: BTreeMap<MachineId, Vec<Epoch>> =
        world.agents.iter().map(|(id, a)| (*id, a.held.values().map(|held| held.epoch).collect())).collect();
    world.cut(lost);
    world.pass(4);
    assert_eq!(world.running("u1.service"), [lost], "within the lease nothing moves");
    let commits = world.commits;
    world.pass(2);
    assert_eq!(world.commits, commits + 1, "one batch");
    let survivors: Vec<MachineId> = world.agents.keys().copied().filter(|id| *id != lost).collect();
    for number in 1..=6 {
        let copies: Vec<MachineId> = world.running(&format!("u{number}.service"));
        assert_eq!(copies.iter().filter(|id| survivors.contains(id)).count(), 1);
    }
    assert!(
        world
            .running("side.service")
            .iter()
            .any(|id| world.running("u1.service").contains(id) && *id != lost)
    );
    for id in &survivors {
        let epochs: Vec<Epoch> = world.agents[id].held.values().map(|held| held.epoch).collect();
        assert!(before[id].iter().all(|epoch| epochs.contains(epoch)), "what ran there was left alone");
    }
    // It comes back: the older copies stop, nothing else.
    world.connect(lost);
    assert_eq!(world.agents[&lost].held.len(), 0);
    for number in 1..=6 {
        assert_eq!(world.running(&format!("u{number}.service")).len(), 1);
    }
    assert!(world.leader.retired.is_empty());
}

#[test]
fn what_no_other_machine_takes_is_kept_without_a_restart() {
    let mut world = World::new(2);
    world.start("pinned.service", &format!("[X-Fleet]\nMachineID={}\n", machine(1)));
    let epoch = world.agents[&machine(1)].held[&name("pinned.service")].epoch;
    world.cut(machine(1));
    world.pass(7);
    assert!(world.reason("pinned.service").starts_with("its machine 00000001 is unreachable"));
    world.connect(machine(1));
    assert_eq!(world.agents[&machine(1)].held[&name("pinned.service")].epoch, epoch);
    assert_eq!(world.status("pinned.service").unwrap().waiting, None);
}

#[test]
fn a_machine_that_only_ever_says_hello_is_lost() {
    let mut world = World::new(2);
    world.start("u.service", "");
    let on = world.running("u.service")[0];
    let other = if on == machine(1) { machine(2) } else { machine(1) };
    world.agents.get_mut(&on).unwrap().beats = false;
    // It cannot write down whom it obeys, and comes again and again.
    for _ in 0..5 {
        world.cut(on);
        world.pass(1);
        world.connect(on);
        world.pass(1);
    }
    assert!(world.running("u.service").contains(&other));
    world.command(Verb::Destroy, &[("u.service", None)]).unwrap();
    for number in 1..=4 {
        world.start(&format!("u{number}.service"), "");
        assert_eq!(world.running(&format!("u{number}.service")), [other], "nothing new goes there");
    }
}

#[test]
fn a_silent_machine_whose_host_answers_is_shown_as_such() {
    let mut world = World::new(2);
    world.hosts_answer = true;
    world.cut(machine(1));
    world.pass(60);
    let answers = |world: &mut World| world.machines().machines[0].host_answers;
    assert_eq!(answers(&mut world), Some(true));
    world.start("u.service", "[X-Fleet]\nMachineMetadata=none=such\n");
    assert!(world.reason("u.service").contains("is unreachable, though its host answers: see to its agent"));
    let news = world.events.iter().filter(|event| **event == Event::HostAnswers(machine(1))).count();
    assert_eq!(news, 1);
    world.hosts_answer = false;
    world.pass(20);
    assert_eq!(answers(&mut world), Some(false));
    world.connect(machine(1));
    assert_eq!(answers(&mut world), None);
}

#[test]
fn a_late_heartbeat_revives_no_lease() {
    let mut world = World::new(2);
    world.start("u.service", "");
    let on = world.running("u.service")[0];
    let connection = world.agents[&on].connection.unwrap();
    world.silence(6);
    world.step(Input::Agent(connection, heartbeat(99, 0)));
    assert_ne!(world.agents[&on].acked, 99, "the heartbeat was on the way when the lease ended");
    assert_eq!(world.agents[&on].connection, None);
}

#[test]
fn a_restarted_leader_moves_and_restarts_nothing() {
    let mut world = World::new(3);
    for number in 1..=9 {
        world.start(&format!("u{number}.service"), "");
    }
    world.start("global.service", "[X-Fleet]\nGlobal=true\n");
    let before = world.agents.clone();
    let mut world = world.restarted();
    for number in 1..=3 {
        world.connect(machine(number));
    }
    world.pass(20);
    for (id, agent) in &world.agents {
        assert_eq!(agent.held, before[id].held);
        assert_eq!(agent.stopped, before[id].stopped);
    }
}

#[test]
fn a_restarted_leader_waits_a_lease_before_it_takes_a_machine_for_lost() {
    let mut world = World::new(3);
    world.start("u.service", "");
    let on = world.running("u.service")[0];
    let mut world = world.restarted();
    let others: Vec<MachineId> = world.agents.keys().copied().filter(|id| *id != on).collect();
    for id in &others {
        world.connect(*id);
    }
    world.pass(4);
    assert_eq!(world.running("u.service"), [on]);
    world.start("new.service", "");
    assert!(world.reason("new.service").contains("waits for the machines to report"));
    world.pass(2);
    assert_eq!(world.running("u.service").len(), 2);
    assert_eq!(world.running("new.service").len(), 1);
}

#[test]
fn an_empty_store_stops_nothing() {
    let mut world = World::new(2);
    world.start("u.service", "");
    let agents = world.agents.clone();
    let mut world = World::of(Durable::new(ClusterId::new(8)), Term(1));
    world.agents = agents;
    // They come again and again, and are news once.
    for number in [1, 2, 1, 2, 1, 2] {
        world.connect(machine(number));
        assert!(matches!(world.agents[&machine(number)].refused, Some(Refused::OtherCluster { .. })));
    }
    let news = world.events.iter().filter(|event| matches!(event, Event::MachineRefused { .. }));
    assert_eq!(news.count(), 2);
    world.pass(20);
    assert_eq!(world.running("u.service").len(), 1);
}

#[test]
fn an_old_store_stops_nothing_and_takes_up_what_it_finds() {
    let mut world = World::new(2);
    world.start("moved.service", "");
    let on = world.running("moved.service")[0];
    let other = world.agents.keys().copied().find(|id| *id != on).unwrap();
    let backup = world.stored.clone();
    world.start("later.service", "");
    world.cut(on);
    world.pass(7);
    assert!(world.running("moved.service").contains(&other));
    world.connect(on);
    let running = |world: &World| -> BTreeMap<MachineId, Vec<UnitName>> {
        world.agents.iter().map(|(id, agent)| (*id, agent.held.keys().cloned().collect())).collect()
    };
    let before = running(&world);
    let agents = world.agents.clone();
    let mut world = World::of(backup, Term(1));
    world.next_id = 1000;
    world.agents = agents;
    world.agents.values_mut().for_each(|agent| agent.connection = None);
    world.connect(on);
    // The copy's leader found its term used, and took another.
    world.connect(on);
    world.connect(other);
    world.pass(20);
    assert!(world.agents.values().all(|agent| agent.connection.is_some()));
    assert_eq!(running(&world), before);
    let status = world.status("moved.service").unwrap();
    assert_eq!((status.copies[0].machine, status.copies[0].role), (other, CopyRole::Current));
    let orphan = world.status("later.service").unwrap();
    assert_eq!(orphan.copies[0].role, CopyRole::Orphaned);
    // What is said of a placement before it does not concern it.
    let on = orphan.copies[0].machine;
    let connection = world.agents[&on].connection.unwrap();
    let epoch = Epoch { term: Term(0), counter: 1 };
    let gone = UnitReport { name: name("later.service"), epoch, change: ReportedChange::Gone };
    world.step(Input::Agent(connection, FromAgent::Report(vec![gone])));
    assert_eq!(world.status("later.service").unwrap().copies, orphan.copies);
    // It is known while its machine is away, and after a decision that was lost with the store.
    world.cut(on);
    world.pass(7);
    assert_eq!(world.status("later.service").unwrap().copies[0].role, CopyRole::Orphaned);
    world.committing = false;
    world.command_as(CommandId::new(99), Verb::Destroy, &[("later.service", None)], false);
    world.fail_store();
    world.connect(on);
    world.pass(2);
    assert_eq!(world.status("later.service").unwrap().copies[0].role, CopyRole::Orphaned);
    // An operator decides, also while the machine is away.
    world.cut(on);
    world.pass(7);
    world.command(Verb::Destroy, &[("later.service", None)]).unwrap();
    assert_eq!(world.status("later.service").unwrap().copies[0].role, CopyRole::Stopping);
    world.connect(on);
    assert_eq!(world.status("later.service"), None);
    assert!(world.running("later.service").is_empty());
}

#[test]
fn an_orphan_is_gone_with_its_boot() {
    let mut world = World::new(1);
    let empty = world.stored.clone();
    world.start("u.service", "");
    let agents = world.agents.clone();
    let mut world = World::of(empty, Term(2));
    (world.agents, world.next_id) = (agents, 1000);
    world.connect(machine(1));
    assert_eq!(world.status("u.service").unwrap().copies[0].role, CopyRole::Orphaned);
    world.reboot(machine(1));
    world.connect(machine(1));
    assert_eq!(world.status("u.service"), None);
}

#[test]
fn a_write_that_was_under_way_when_the_machine_was_cut_off_is_undone() {
    let mut world = World::new(1);
    world.agents.get_mut(&machine(1)).unwrap().slow = true;
    world.start("u.service", "");
    world.cut(machine(1));
    world.join(machine(2), &[]);
    world.pass(7);
    assert_eq!(world.running("u.service"), [machine(2)]);
    // Hello says nothing of what is being written.
    world.connect(machine(1));
    world.finish_writing(machine(1));
    world.pass(2);
    assert_eq!(world.running("u.service"), [machine(2)]);
    assert!(world.leader.retired.is_empty());
}

#[test]
fn a_machine_that_was_given_another_label_takes_what_waits_for_it() {
    let mut world = World::new(1);
    world.start("u.service", "[X-Fleet]\nMachineMetadata=disk=ssd\n");
    assert!(world.running("u.service").is_empty());
    // The agent is restarted so fast that its lease runs on.
    world.agents.get_mut(&machine(1)).unwrap().labels.insert("disk".to_owned(), "ssd".to_owned());
    world.connect(machine(1));
    assert_eq!(world.running("u.service"), [machine(1)]);
}

#[test]
fn what_is_said_of_an_earlier_placement_renews_none() {
    let mut world = World::new(1);
    world.start("u.service", "");
    let first = world.agents[&machine(1)].held[&name("u.service")].epoch;
    world.command(Verb::Restart, &[("u.service", None)]).unwrap();
    let second = world.agents[&machine(1)].held[&name("u.service")].epoch;
    let connection = world.agents[&machine(1)].connection.unwrap();
    for (epoch, renewed) in [(first, false), (second, true)] {
        let change = ReportedChange::Stale(second);
        let stale = UnitReport { name: name("u.service"), epoch, change };
        world.step(Input::Agent(connection, FromAgent::Report(vec![stale])));
        assert_eq!(world.agents[&machine(1)].held[&name("u.service")].epoch > second, renewed);
    }
}

#[test]
fn a_term_that_nothing_is_above_is_refused() {
    let mut world = World::new(1);
    world.agents.get_mut(&machine(1)).unwrap().term = Term(u64::MAX);
    world.cut(machine(1));
    world.connect(machine(1));
    assert_eq!(world.agents[&machine(1)].connection, None);
    assert_eq!(world.leader.term, Term(1));
    // Others are not troubled by it.
    world.join(machine(2), &[]);
    world.start("u.service", "");
    assert_eq!(world.running("u.service"), [machine(2)]);
}

#[test]
fn a_term_that_could_not_be_taken_is_asked_for_again() {
    let mut world = World::new(1);
    world.cut(machine(1));
    let asks = |world: &mut World| {
        let agent = world.agents.get_mut(&machine(1)).unwrap();
        agent.term = agent.term.max(Term(9));
        world.connect(machine(1));
        std::mem::take(&mut world.terms)
    };
    world.takes_terms = false;
    assert_eq!(asks(&mut world), [Term(9)]);
    assert_eq!(asks(&mut world), [], "it is being taken");
    world.step(Input::TermNotTaken);
    world.takes_terms = true;
    assert_eq!(asks(&mut world), [Term(9)]);
    asks(&mut world);
    assert!(world.agents[&machine(1)].connection.is_some());
    assert_eq!(world.leader.term, Term(10));
}

#[test]
fn of_many_units_that_wait_some_are_explained() {
    let mut world = World::new(2);
    let tape = service("[X-Fleet]\nMachineMetadata=disk=tape\n");
    let names: Vec<String> = (1..=30).map(|number| format!("u{number}.service")).collect();
    let units: Vec<(&str, Option<&str>)> = names.iter().map(|name| (&**name, Some(&*tape))).collect();
    world.command(Verb::Start, &units).unwrap();
    let all = Query::Units { names: None, content: false, reasons: true };
    let QueryAnswer::Units(units) = world.query(all) else { panic!("units were asked for") };
    let explained = units.iter().filter(|unit| unit.waiting.as_ref().unwrap().machines.len() == 2).count();
    assert_eq!((units.len(), explained), (30, 20));
    let last = units[29].waiting.as_ref().unwrap();
    assert_eq!(last.reason, "no machine takes it; `musterctl status u9.service` says why");
}

#[test]
fn a_higher_term_is_taken_before_anything_is_said() {
    let mut world = World::new(1);
    world.agents.get_mut(&machine(1)).unwrap().term = Term(9);
    world.cut(machine(1));
    world.connect(machine(1));
    assert_eq!(world.agents[&machine(1)].connection, None);
    assert_eq!(world.leader.term, Term(10));
    world.connect(machine(1));
    assert_eq!(world.agents[&machine(1)].term, Term(10));
}

#[test]
fn a_term_that_another_leader_used_is_left_for_a_higher_one() {
    let mut world = World::new(2);
    world.start("u.service", "");
    let stored = world.stored.clone();
    let agents = world.agents.clone();
    // The same store once more, as a copy: its leader takes a term that the machines have obeyed already.
    let mut world = World::of(stored, Term(1));
    (world.agents, world.next_id) = (agents, 1000);
    world.agents.values_mut().for_each(|agent| agent.connection = None);
    for number in [1, 1, 2] {
        if world.agents[&machine(number)].connection.is_none() {
            world.connect(machine(number));
        }
    }
    assert_eq!(world.leader.term, Term(2));
    assert!(world.agents.values().all(|agent| agent.connection.is_some() && agent.term == Term(2)));
    assert_eq!(world.running("u.service").len(), 1);
}

#[test]
fn nothing_is_told_before_it_is_durable() {
    let mut world = World::new(1);
    world.committing = false;
    let id = CommandId::new(77);
    let request = world.command_as(id, Verb::Start, &[("u.service", Some(&service("")))], false);
    assert!(world.results.is_empty() && world.running("u.service").is_empty());
    let asked = RequestId(world.id());
    world.step(Input::Query(asked, Query::Machines { left_on: Vec::new() }));
    assert!(!world.answers.contains_key(&asked), "the answer rests on what is not durable");
    let connection = world.agents[&machine(1)].connection.unwrap();
    world.step(Input::Agent(connection, heartbeat(5, 0)));
    assert_eq!(world.agents[&machine(1)].acked, 5, "a heartbeat waits for no disk");
    let (commit, changes) = world.uncommitted.remove(0);
    changes.into_iter().for_each(|change| world.stored.apply(change));
    world.committing = true;
    world.step(Input::Committed(commit));
    assert!(world.results[&request].is_ok());
    assert_eq!(world.running("u.service").len(), 1);
    assert!(world.answers.contains_key(&asked));
}

#[test]
fn a_full_disk_fails_the_command_and_nothing_else() {
    let mut world = World::new(1);
    world.start("old.service", "");
    world.committing = false;
    let request =
        world.command_as(CommandId::new(78), Verb::Start, &[("new.service", Some(&service("")))], false);
    world.fail_store();
    let error = world.results[&request].clone().unwrap_err();
    assert_eq!(error, CommandError::Store("no space left on device".to_owned()));
    assert_eq!(world.status("new.service"), None);
    assert_eq!(world.running("old.service").len(), 1);
    world.pass(2);
    assert_eq!(world.running("new.service").len(), 0);
    let placed = |event: &Event| matches!(event, Event::Placed { unit, .. } if *unit == name("new.service"));
    assert!(!world.events.iter().any(placed), "what was undone is not told of");
    world.start("new.service", "");
    assert_eq!(world.running("new.service").len(), 1);
}

#[test]
fn a_repeated_command_finds_its_result() {
    let mut world = World::new(1);
    let id = CommandId::new(5);
    let unit = service("");
    let first = world.command_as(id, Verb::Start, &[("u.service", Some(&unit))], false);
    let epoch = world.agents[&machine(1)].held[&name("u.service")].epoch;
    let mut world = world.restarted();
    world.connect(machine(1));
    world.command(Verb::Destroy, &[("u.service", None)]).unwrap();
    let again = world.command_as(id, Verb::Start, &[("u.service", Some(&unit))], false);
    assert_eq!(world.results[&again].as_ref().unwrap()[0].done, Done::Created);
    assert!(world.running("u.service").is_empty(), "it was not done twice ({first:?}, {epoch})");
}

#[test]
fn stop_then_start_is_a_later_placement_and_so_is_restart() {
    let mut world = World::new(1);
    world.start("u.service", "");
    let epoch = |world: &World| world.agents[&machine(1)].held[&name("u.service")].epoch;
    let first = epoch(&world);
    world.command(Verb::Stop, &[("u.service", None)]).unwrap();
    assert_eq!(epoch(&world), first);
    assert!(world.running("u.service").is_empty());
    world.command(Verb::Start, &[("u.service", None)]).unwrap();
    let second = epoch(&world);
    assert!(second > first);
    world.command(Verb::Restart, &[("u.service", None)]).unwrap();
    assert!(epoch(&world) > second);
    world.command(Verb::Start, &[("u.service", None)]).unwrap();
}

#[test]
fn a_bad_unit_changes_nothing_of_its_command() {
    let mut world = World::new(1);
    let good = service("");
    let result = world.command(Verb::Start, &[("good.service", Some(&good)), ("bad.service", Some(""))]);
    let Err(CommandError::Units(errors)) = result else { panic!("{result:?}") };
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].name, name("bad.service"));
    assert_eq!(world.status("good.service"), None);
    let result = world.command(Verb::Start, &[("t@.service", Some(&good))]);
    let Err(CommandError::Units(errors)) = result else { panic!("{result:?}") };
    assert_eq!(errors[0].kind, UnitErrorKind::Template("t@1.service".to_owned()));
    let result = world.command(Verb::Stop, &[("none.service", None)]);
    assert_eq!(result.unwrap_err().to_string(), format!("none.service: {}", UnitErrorKind::NotFound));
}

#[test]
fn other_content_is_kept_without_replace_and_taken_with_it() {
    let mut world = World::new(2);
    world.start("u.service", "");
    let on = world.running("u.service");
    let changed = service("Nice=5\n");
    let outcome = world.command(Verb::Start, &[("u.service", Some(&changed))]).unwrap();
    assert_eq!(outcome[0].done, Done::KeptOtherContent);
    let error = world.replace(Verb::Submit, "u.service", &changed).unwrap_err();
    assert!(error.to_string().contains("is launched"), "{error}");
    assert_eq!(world.replace(Verb::Start, "u.service", &changed).unwrap()[0].done, Done::Replaced);
    assert_eq!(world.running("u.service"), on, "it stays on its machine");
    assert_eq!(world.agents[&on[0]].held[&name("u.service")].hash, ContentHash::of(changed.as_bytes()));
    let moved = service(&format!(
        "[X-Fleet]\nMachineID={}\n",
        if on == [machine(1)] { machine(2) } else { machine(1) }
    ));
    world.replace(Verb::Start, "u.service", &moved).unwrap();
    assert_ne!(world.running("u.service"), on);
    assert_eq!(world.running("u.service").len(), 1);
}

#[test]
fn an_idle_cluster_writes_nothing() {
    let mut world = World::new(3);
    for number in 1..=20 {
        world.start(&format!("u{number}.service"), "");
    }
    let commits = world.commits;
    world.pass(60);
    assert_eq!(world.commits, commits);
}

#[test]
fn a_machine_whose_pid_1_is_silent_gets_nothing_new_and_is_lost_in_the_end() {
    let mut world = World::new(2);
    let connection = world.agents[&machine(1)].connection.unwrap();
    let beat = |age| Input::Agent(connection, heartbeat(1, age));
    world.step(beat(6));
    world.start("a.service", "");
    world.start("b.service", "");
    assert_eq!(world.agents[&machine(2)].held.len(), 2);
    world.step(beat(0));
    world.start("c.service", "");
    assert_eq!(world.running("c.service"), [machine(1)]);
    world.step(beat(31));
    assert!(world.running("c.service").contains(&machine(2)));
    // It is no use to give it a lease that its first heartbeat would end.
    world.agents.get_mut(&machine(1)).unwrap().pid1_age = Duration::from_secs(32);
    world.connect(machine(1));
    let silent = Refused::SystemdSilent(Duration::from_secs(32));
    assert_eq!(world.agents[&machine(1)].refused, Some(silent));
    world.agents.get_mut(&machine(1)).unwrap().pid1_age = Duration::from_secs(6);
    world.connect(machine(1));
    assert_eq!(world.running("c.service"), [machine(2)]);
    world.start("d.service", "");
    assert_eq!(world.running("d.service"), [machine(2)], "the least loaded machine gets nothing new yet");
    world.agents.get_mut(&machine(1)).unwrap().pid1_age = Duration::ZERO;
    world.pass(1);
    world.start("e.service", "");
    assert_eq!(world.running("e.service"), [machine(1)]);
}
