//! What the leader does for fleet's API beside what it does for everybody.

use super::world::{World, machine, name, service};
use crate::command::{CommandError, Done, Page, Query, QueryAnswer, Rows, UnitErrorKind, UnitStatus, Verb};
use crate::state::{DesiredState, Target};
use crate::unit::ContentHash;

#[test]
fn a_unit_is_ended_with_another_file() {
    let mut world = World::new(1);
    let other = service("[Unit]\nDescription=Other\n");
    world.start("u.service", "");
    let first = world.agents[&machine(1)].held[&name("u.service")].epoch;
    // Without --replace a file does not count, as it never did.
    world.command(Verb::Stop, &[("u.service", Some("no file"))]).unwrap();
    world.start("u.service", "");
    assert_eq!(world.replace(Verb::Stop, "u.service", &other).unwrap()[0].done, Done::Replaced);
    let held = &world.agents[&machine(1)].held[&name("u.service")];
    assert!(
        held.target == Target::Loaded && held.epoch > first && held.hash == ContentHash::of(other.as_bytes())
    );

    world.command(Verb::Start, &[("u.service", None)]).unwrap();
    assert_eq!(world.replace(Verb::Unload, "u.service", &service("")).unwrap()[0].done, Done::Replaced);
    assert!(world.agents[&machine(1)].held.is_empty());
    let status = world.status("u.service").unwrap();
    assert_eq!(
        (status.desired, status.hash),
        (DesiredState::Inactive, ContentHash::of(service("").as_bytes()))
    );
    assert_eq!(world.leader.differences(), Vec::<String>::new());

    // One that is wrong ends nothing.
    world.start("u.service", "");
    let refused = world.replace(Verb::Unload, "u.service", "no section").unwrap_err();
    assert!(
        matches!(&refused, CommandError::Units(errors) if matches!(errors[0].kind, UnitErrorKind::Invalid(_)))
    );
    assert_eq!(world.running("u.service"), [machine(1)]);
}

#[test]
fn long_lists_are_read_in_pages() {
    let mut world = World::new(3);
    for number in 0..5 {
        world.command(Verb::Submit, &[(&format!("idle{number}.service"), Some(&service("")))]).unwrap();
    }
    world.start("all.service", "[X-Fleet]\nGlobal=yes\n");
    world.start("one.service", "");
    let mut page =
        |rows: &Rows, skip, most| match world.query(Query::Page(Page { rows: rows.clone(), skip, most })) {
            QueryAnswer::Units(units) => units,
            other => panic!("{other:?}"),
        };
    let names =
        |units: Vec<UnitStatus>| units.into_iter().map(|unit| unit.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(page(&Rows::Units, 0, 2)), ["all.service", "idle0.service"]);
    assert_eq!(names(page(&Rows::Units, 5, 9)), ["idle4.service", "one.service"]);
    assert!(page(&Rows::Units, 7, 9).is_empty() && page(&Rows::Units, usize::MAX, usize::MAX).is_empty());
    assert!(page(&Rows::Units, 0, 1)[0].content.is_some());

    // A row is a copy: a page may end within a unit.
    let rows = |units: Vec<UnitStatus>| {
        let rows =
            |unit: UnitStatus| unit.copies.into_iter().map(move |copy| (unit.name.to_string(), copy.machine));
        units.into_iter().flat_map(rows).collect::<Vec<_>>()
    };
    let all = Rows::States { unit: None, machine: None };
    let every = rows(page(&all, 0, 100));
    assert_eq!(every.len(), 4, "{every:?}");
    for most in 1..4 {
        let pages: Vec<_> = (0..4).step_by(most).flat_map(|skip| rows(page(&all, skip, most))).collect();
        assert_eq!(pages, every);
    }
    let of = Rows::States { unit: Some(name("all.service")), machine: Some(machine(2)) };
    assert_eq!(rows(page(&of, 0, 9)), [("all.service".to_owned(), machine(2))]);
    let of = Rows::States { unit: Some(name("idle0.service")), machine: None };
    assert!(page(&of, 0, 9).is_empty());
}
