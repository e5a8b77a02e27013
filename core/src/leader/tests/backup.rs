//! Backups, and when one is restored.

use super::world::{World, drain, machine, service};
use crate::command::{Query, RestoreError, Verb};
use crate::ids::{ClusterId, CommandId, Term};
use crate::leader::{Durable, Input, RequestId};
use crate::message::Refused;

#[test]
fn a_backup_is_what_is_durable() {
    let mut world = World::new(3);
    world.start("a.service", "");
    world.start("b.service", "");
    world.machine_command(drain(1), machine(3)).unwrap();
    world.cut(machine(1));
    world.pass(8);
    world.command(Verb::Destroy, &[("a.service", None)]).unwrap();
    let stored = world.stored.clone();
    assert_eq!(world.backup(), (Term(1), stored));

    // It waits for what it was made after, and is another one when that fails.
    world.committing = false;
    let lost = &[("lost.service", Some(&*service("")))];
    world.command_as(CommandId::new(99), Verb::Submit, lost, false);
    let request = RequestId(world.id());
    world.step(Input::Query(request, Query::Backup));
    assert!(!world.answers.contains_key(&request));
    let stored = world.stored.clone();
    world.fail_store();
    let crate::command::QueryAnswer::Backup { durable, .. } = &world.answers[&request] else { panic!() };
    assert_eq!(**durable, stored);
}

fn restore(world: &mut World, term: u64) -> RequestId {
    let request = RequestId(world.id());
    world.step(Input::Restore(request, Term(term), 0));
    request
}

#[test]
fn a_backup_that_is_restored_a_second_time_goes_on_above_the_first() {
    let above = |seconds| {
        let mut world = World::new(0);
        let request = RequestId(world.id());
        world.step(Input::Restore(request, Term(5), seconds));
        world.restores.expect("it is restored").1
    };
    let first = above(1_800_000_000);
    assert!(first > Term(5).leap());
    // A minute later, and after a crash each second.
    assert!(above(1_800_000_060) > Term(first.0 + 60));
    assert!(above(0) >= Term(5).leap(), "whatever the clock says");
}

#[test]
fn a_backup_is_restored_into_nothing_only() {
    let refused = |mut world: World| {
        let request = restore(&mut world, 5);
        assert_eq!(world.restores, None);
        let (of, error) = world.refused_restore.take().expect("it is refused");
        assert_eq!(of, request);
        error
    };
    let mut world = World::new(2);
    world.start("a.service", "");
    assert_eq!(refused(world), RestoreError::NotEmpty { units: 1, machines: 2 });
    let mut world = World::new(0);
    world.command(Verb::Submit, &[("a.service", Some(&service("")))]).unwrap();
    let error = refused(world);
    assert_eq!(error, RestoreError::NotEmpty { units: 1, machines: 0 });
    assert!(error.to_string().starts_with("this cluster is not empty: it has 1 unit and 0 machines"));
    // A machine that is not there may hold something still.
    let mut world = World::new(1);
    world.cut(machine(1));
    world.pass(60);
    assert_eq!(refused(world), RestoreError::NotEmpty { units: 0, machines: 1 });
    // Commands that came to nothing are nothing.
    let mut world = World::new(0);
    world.command(Verb::Submit, &[("a.service", Some(&service("")))]).unwrap();
    world.command(Verb::Destroy, &[("a.service", None)]).unwrap();
    assert!(!world.stored.commands.is_empty());
    let request = restore(&mut world, 5);
    assert_eq!(world.restores, Some((request, Term(5).leap())));
}

#[test]
fn what_is_restored_goes_on_far_above_every_term_that_is_known() {
    let above = |own, backups| {
        let mut world = World::of(Durable::new(ClusterId::new(7)), Term(own));
        restore(&mut world, backups);
        world.restores.expect("it is restored").1
    };
    assert_eq!(above(3, 40), Term(40 + (1 << 20)));
    assert_eq!(above(40, 3), Term(40 + (1 << 20)));
    assert_eq!(above(1, u64::MAX), Term(u64::MAX));
}

#[test]
fn nobody_joins_a_cluster_that_gives_way_to_a_backup() {
    let mut world = World::new(0);
    let first = restore(&mut world, 5);
    world.join(machine(1), &[]);
    assert_eq!((world.agents[&machine(1)].connection, world.agents[&machine(1)].cluster), (None, None));
    let unit = &[("a.service", Some(&*service("")))];
    let command = world.command_as(CommandId::new(99), Verb::Start, unit, false);
    let second = restore(&mut world, 5);
    world.pass(10);
    assert!(!world.results.contains_key(&command), "the next leader is asked again");
    assert_eq!((world.restores.unwrap().0, &world.refused_restore), (first, &None));

    // The store does not take it.
    world.step(Input::NotRestored("the disk is full".to_owned()));
    let error = RestoreError::Store("the disk is full".to_owned());
    assert!(world.results[&command].is_ok());
    let refused = world.refused_restore.take().expect("it is refused");
    assert!([(first, error), (second, RestoreError::NotLeader)].contains(&refused), "{refused:?}");
    world.connect(machine(1));
    world.pass(1);
    assert_eq!(world.running("a.service"), [machine(1)]);
    assert_eq!(world.agents[&machine(1)].cluster, Some(ClusterId::new(7)));
}

#[test]
fn who_may_have_been_overtaken_restores_nothing() {
    let mut world = World::new(0);
    world.step(Input::Leads(world.now + std::time::Duration::from_secs(5)));
    world.silence(6);
    let request = restore(&mut world, 5);
    assert_eq!((world.restores, &world.refused_restore), (None, &None));
    world.step(Input::Leads(world.now + std::time::Duration::from_secs(5)));
    assert_eq!(world.refused_restore, Some((request, RestoreError::NotLeader)));
}

/// Machines that ran on under the cluster that was backed up are taken up by the one that it is restored into.
#[test]
fn machines_of_the_backup_are_taken_up_again() {
    let mut world = World::new(2);
    world.start("a.service", "");
    let (term, backup) = world.backup();
    world.start("later.service", "");
    let held = world.agents.clone();
    let mut empty = World::of(Durable::new(ClusterId::new(8)), Term(1));
    (empty.agents, empty.next_id) = (world.agents, world.next_id);
    empty.agents.values_mut().for_each(|agent| agent.connection = None);
    empty.connect(machine(1));
    assert!(matches!(empty.agents[&machine(1)].refused, Some(Refused::OtherCluster { .. })));
    restore(&mut empty, term.0);
    let above = empty.restores.unwrap().1;
    let mut restored = World::of(backup, above.next());
    (restored.agents, restored.next_id) = (empty.agents, empty.next_id);
    [1, 2].into_iter().for_each(|number| restored.connect(machine(number)));
    restored.pass(8);
    for (id, agent) in &restored.agents {
        assert_eq!(agent.held, held[id].held, "nothing was stopped, restarted or moved");
    }
    let orphan = restored.status("later.service").expect("it is shown");
    assert!(!orphan.known);
    assert_eq!(orphan.copies[0].role, crate::command::CopyRole::Orphaned);
    // What is placed from now on has later epochs than all that there ever was.
    restored.start("new.service", "");
    let copies = restored.status("new.service").unwrap().copies;
    assert_eq!(copies[0].epoch.term, above.next());
}
