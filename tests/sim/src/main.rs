//! `muster-sim`: runs the simulation, from one seed or from many.

#[cfg(feature = "planted-faults")]
mod worth;

use std::num::NonZeroU64;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use muster_sim::{Outcome, Plan, run, shrink};

/// Simulates clusters under faults, and checks the invariants of the design at every step.
///
/// The exit status is 0 only if nothing was found to be wrong.
#[derive(Debug, Parser)]
#[command(name = "muster-sim", version, max_term_width = 100)]
struct Cli {
    /// How many seeds to run
    #[arg(long, value_name = "N", default_value = "1000", conflicts_with = "seed")]
    seeds: NonZeroU64,
    /// The first of them
    #[arg(long, value_name = "S", default_value_t = 1, conflicts_with = "seed")]
    first: u64,
    /// Go on after a seed that failed
    #[arg(long, conflicts_with = "seed")]
    keep_going: bool,
    /// Replay this seed, and print its history
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Of that seed's history only the entries with these numbers, or none of them
    #[arg(long, value_name = "NUMBER,...|none", requires = "seed", value_parser = only)]
    only: Option<Only>,
    /// Everything heals after this time already
    #[arg(long, value_name = "MILLISECONDS", requires = "seed")]
    heals: Option<u64>,
    /// Look for the faults that are planted in the code, for each in so many seeds, and print what found it
    #[cfg(feature = "planted-faults")]
    #[arg(long, conflicts_with_all = ["seed", "keep_going"])]
    worth: bool,
    /// Only this planted fault: look for it, or replay a seed with it
    #[cfg(feature = "planted-faults")]
    #[arg(long, value_name = "FAULT", value_parser = worth::named)]
    planted: Option<muster_core::planted::Fault>,
    /// Print only what was planned and what was wrong, not all that happened
    #[arg(long, requires = "seed")]
    brief: bool,
}

/// The numbers of entries.
#[derive(Clone, Debug)]
struct Only(Vec<usize>);

fn only(text: &str) -> Result<Only, String> {
    if text == "none" {
        return Ok(Only(Vec::new()));
    }
    let number =
        |number: &str| number.parse().map_err(|_| format!("{number:?} is not the number of an entry"));
    text.split(',').map(number).collect::<Result<_, _>>().map(Only)
}

/// A seed that failed.
struct Failure {
    seed: u64,
    outcome: Outcome,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.seed.is_none() {
        // The simulation finds a panic, and tells its seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let well = match cli.seed {
        #[cfg(feature = "planted-faults")]
        None if cli.worth => {
            let one = cli.planted.as_slice();
            let faults = if one.is_empty() { muster_core::planted::Fault::ALL } else { one };
            worth::measure(faults, cli.first, cli.seeds.get())
        }
        Some(seed) => replay(&cli, seed),
        None => many(&cli),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The history that is to be replayed.
fn planned(cli: &Cli, seed: u64) -> Plan {
    let mut plan = Plan::new(seed);
    #[cfg(feature = "planted-faults")]
    if let Some(fault) = cli.planted {
        plan = plan.with_planted(fault);
    }
    if let Some(Only(numbers)) = &cli.only {
        plan = plan.with_only(numbers);
    }
    match cli.heals {
        Some(heals) => plan.healing_after(heals),
        None => plan,
    }
}

fn replay(cli: &Cli, seed: u64) -> bool {
    let plan = planned(cli, seed);
    let outcome = run(&plan, true);
    if cli.brief {
        plan.lines().iter().for_each(|line| println!("{line}"));
    } else {
        outcome.log.iter().for_each(|line| println!("{line}"));
    }
    tell(&outcome)
}

fn tell(outcome: &Outcome) -> bool {
    match &outcome.violation {
        Some(violation) => {
            println!(
                "{} is violated after {:.6} s:\n  {}",
                violation.invariant, violation.at, violation.text
            );
        }
        None => println!("nothing is wrong: {:?}", outcome.stats),
    }
    outcome.violation.is_none()
}

fn many(cli: &Cli) -> bool {
    let seeds = cli.seeds.get();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let failures: Mutex<Vec<Failure>> = Mutex::new(Vec::new());
    let progress = ProgressBar::new(seeds);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left {msg}")
    {
        progress.set_style(style);
    }
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let mut died = 0;
    let (mut simulated, mut steps, mut run_seeds, mut slowest, mut alone) = (0.0, 0, 0, 0.0_f64, 0.0);
    thread::scope(|scope| {
        let work = || {
            let (mut seconds, mut steps, mut count, mut slowest, mut busy) = (0.0, 0, 0, 0.0_f64, 0.0);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= seeds || stop.load(Ordering::Relaxed) {
                    return (seconds, steps, count, slowest, busy);
                }
                let seed = cli.first + number;
                let begun = Instant::now();
                let outcome = run(&Plan::new(seed), false);
                busy += begun.elapsed().as_secs_f64();
                seconds += outcome.stats.seconds;
                steps += outcome.stats.steps;
                slowest = slowest.max(outcome.stats.healed_after);
                count += 1;
                progress.inc(1);
                if let Some(violation) = &outcome.violation {
                    progress
                        .println(format!("seed {seed}: {} at {:.3} s", violation.invariant, violation.at));
                    if progress.is_hidden() {
                        println!("seed {seed}: {} at {:.3} s", violation.invariant, violation.at);
                    }
                    stop.store(!cli.keep_going, Ordering::Relaxed);
                    if let Ok(mut failures) = failures.lock() {
                        failures.push(Failure { seed, outcome });
                    }
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let Ok((seconds, more, count, slow, busy)) = worker.join() else {
                died += 1;
                continue;
            };
            simulated += seconds;
            steps += more;
            run_seeds += count;
            slowest = slowest.max(slow);
            alone += busy;
        }
    });
    progress.finish_and_clear();
    println!(
        "{run_seeds} seeds from {}: {simulated:.0} simulated seconds and {steps} steps in {:.1} s on {threads} cores: \
         {:.0} simulated seconds per second and core; at most {slowest:.1} s until all was well",
        cli.first,
        began.elapsed().as_secs_f64(),
        simulated / alone
    );
    let mut failures = failures.into_inner().unwrap_or_default();
    failures.sort_by_key(|failure| failure.seed);
    if let Some(failure) = failures.first() {
        print_shortest(failure);
    }
    // What was to be run by it was not.
    if died > 0 {
        println!("{died} of {threads} threads panicked outside of the simulation");
    }
    failures.is_empty() && died == 0
}

/// The shortest history found that fails like this seed.
fn print_shortest(failure: &Failure) {
    let Some(violation) = &failure.outcome.violation else { return };
    println!("\nseed {} violates {}: {}", failure.seed, violation.invariant, violation.text);
    let (plan, outcome) = shrink(&Plan::new(failure.seed), violation.invariant);
    println!("\nThe shortest history found that does:");
    plan.lines().iter().for_each(|line| println!("{line}"));
    tell(&outcome);
    println!("Replay it with: {}", plan.command());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shortened in all ways that there are.
    #[test]
    fn a_history_is_replayed_by_the_options_that_are_printed() {
        let whole = Plan::new(7);
        let some = whole.with_only(&whole.numbers()[..5]);
        let short = some.clone().healing_after(20_123);
        let empty = short.with_only(&[]);
        for plan in [whole, some, short, empty] {
            let options = plan.options().into_iter().flat_map(|(name, value)| [format!("--{name}"), value]);
            let cli = Cli::parse_from(std::iter::once("muster-sim".to_owned()).chain(options));
            let replayed = planned(&cli, cli.seed.unwrap());
            assert_eq!(run(&replayed, true).log, run(&plan, true).log, "{}", plan.command());
        }
        assert_eq!(
            Plan::new(7).with_only(&[1, 3]).healing_after(20_123).command(),
            "make sim SEED=7 ONLY=1,3 HEALS=20123"
        );
    }
}
