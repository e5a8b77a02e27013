//! Makes a failing history short: entry by entry is taken out of its plan while the same invariant is still violated.

use crate::faults::Plan;
use crate::queue::{MILLI, SECOND};
use crate::{Outcome, run};

/// How many shorter histories are tried at most.
const TRIES: usize = 600;

/// The shortest plan found that violates the same invariant, and what happens in it.
pub fn shrink(plan: &Plan, invariant: &str) -> (Plan, Outcome) {
    let mut tries = 0;
    let mut fails = |numbers: &[usize], heals| {
        tries += 1;
        let shorter = plan.only(numbers, heals);
        let outcome = run(&shorter, false);
        let same = outcome.violation.as_ref().is_some_and(|violation| violation.invariant == invariant);
        (tries <= TRIES && same).then_some((shorter, outcome))
    };
    let mut kept: Vec<usize> = plan.entries.iter().map(|entry| entry.number).collect();
    let mut best = (plan.clone(), run(plan, false));
    let mut chunk = kept.len().div_ceil(2).max(1);
    loop {
        let mut position = 0;
        let mut shorter = false;
        while position < kept.len() {
            let mut without = kept.clone();
            without.drain(position..kept.len().min(position + chunk));
            if let Some(found) = fails(&without, plan.heals) {
                (kept, best, shorter) = (without, found, true);
            } else {
                position += chunk;
            }
        }
        if chunk == 1 && !shorter {
            break;
        }
        chunk = if chunk == 1 { 1 } else { chunk.div_ceil(2) };
    }
    // It may end as soon as its last fault has begun.
    let last = best.0.entries.last().map_or(0, |entry| entry.at);
    for wait in [SECOND, 5 * SECOND, 20 * SECOND] {
        // In whole milliseconds, so that it can be said how to replay it.
        let heals = (last + wait).next_multiple_of(MILLI);
        if heals < plan.heals
            && let Some(found) = fails(&kept, heals)
        {
            best = found;
            break;
        }
    }
    best
}
