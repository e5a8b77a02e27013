//! Some seeds of the simulation, and those that once found something.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use muster_sim::{Plan, run};

/// What was found to be wrong with this history, if anything.
fn wrong(plan: &Plan) -> Option<String> {
    let violation = run(plan, false).violation?;
    Some(format!(
        "seed {} violates {}: {}\n({})",
        plan.seed,
        violation.invariant,
        violation.text,
        plan.command()
    ))
}

#[test]
fn nothing_is_wrong() {
    const SEEDS: u64 = 100;
    let next = AtomicU64::new(1);
    let work = || {
        let mut found = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > SEEDS {
                return found;
            }
            found.extend(wrong(&Plan::new(seed)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no worker panics")).collect()
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Each line of `seeds.txt`: a seed, the numbers of the entries of its plan that matter, and what was wrong.
#[test]
fn what_was_found_is_found_no_more() {
    let mut found = Vec::new();
    for line in include_str!("../seeds.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let mut words = line.splitn(3, ' ');
        let seed = words.next().and_then(|seed| seed.parse().ok()).expect("a line begins with a seed");
        let numbers = words.next().expect("after the seed stand the numbers of entries");
        let numbers: Vec<usize> =
            numbers.split(',').map(|number| number.parse().expect("a number of an entry")).collect();
        let what = words.next().expect("a line says what was wrong");
        found.extend(wrong(&Plan::new(seed).with_only(&numbers)).map(|found| format!("{what}: {found}")));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_seed_is_replayed_exactly() {
    let plan = Plan::new(7);
    let (first, second) = (run(&plan, true), run(&plan, true));
    assert!(first.log.len() > 100, "something happens");
    assert_eq!(first.log, second.log);
}

/// How short machines are of something is shown, and nothing rests on it.
#[test]
fn nothing_is_decided_by_pressure() {
    for seed in 1..=20 {
        let plan = Plan::new(seed);
        let (with, without) = (run(&plan, true), run(&plan.without_pressure(), true));
        assert_eq!(with.log, without.log, "seed {seed}");
        assert_eq!(with.violation.map(|violation| violation.text), None, "seed {seed}");
    }
}

/// What is found to be wrong is called after the function that finds it, so that a reader finds that.
#[test]
fn violations_are_called_after_functions() {
    let mut text = String::new();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    for folder in [source.to_owned(), format!("{source}/invariants"), format!("{source}/book")] {
        for file in std::fs::read_dir(folder).expect("the folder is there") {
            let path = file.expect("an entry").path();
            if path.is_file() {
                text += &std::fs::read_to_string(path).expect("a file of text");
            }
        }
    }
    let calls = text.split(".violate(").skip(1);
    let names: BTreeSet<&str> = calls.filter_map(|call| call.trim_start().split('"').nth(1)).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(text.contains(&format!("fn {name}(")), "no function is called {name}");
    }
}
