//! What the simulation is worth: whether it finds faults that were planted in the code.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use muster_core::planted::Fault;
use muster_sim::{Plan, Violation, run};

/// Where a planted fault was found.
struct Found {
    seed: u64,
    violation: Violation,
    seconds: f64,
}

/// Looks for each of these faults in this many seeds, and prints a table. Says whether all were found.
pub fn measure(faults: &[Fault], first: u64, seeds: u64) -> bool {
    println!("{:<24} {:>5} {:>7}  {:<34} what is wrong", "fault", "seed", "after", "found by");
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    let work = || {
        while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = format!("{fault:?}");
            match find(*fault, first, seeds) {
                Some(found) => println!(
                    "{name:<24} {:>5} {:>5.1} s  {:<34} {}",
                    found.seed,
                    found.seconds,
                    found.violation.invariant,
                    fault.text()
                ),
                None => {
                    println!("{name:<24} {:>5} {:>7}  {:<34} {}", "-", "-", "NOTHING", fault.text());
                    missed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(name);
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let missed = missed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if missed.is_empty() {
        println!("all {} planted faults were found", faults.len());
    } else {
        println!("of {} planted faults {} were missed: {}", faults.len(), missed.len(), missed.join(", "));
    }
    missed.is_empty()
}

/// The first seed in which something is wrong with the fault, and nothing without it.
fn find(fault: Fault, first: u64, seeds: u64) -> Option<Found> {
    let began = Instant::now();
    for seed in first..first.saturating_add(seeds) {
        let plan = Plan::new(seed);
        if let Some(violation) = run(&plan.clone().with_planted(fault), false).violation
            && run(&plan, false).violation.is_none()
        {
            return Some(Found { seed, violation, seconds: began.elapsed().as_secs_f64() });
        }
    }
    None
}

/// The fault of this name.
pub fn named(name: &str) -> Result<Fault, String> {
    let named = |fault: &&Fault| format!("{fault:?}") == name;
    Fault::ALL.iter().find(named).copied().ok_or_else(|| format!("no planted fault has the name {name}"))
}
