//! `muster-faults`: breaks clusters of machines with a real systemd, and looks whether Muster keeps what it promises.

mod beats;
mod cell;
mod chaos;
mod matrix;
mod origin;
mod strike;
mod times;
mod trial;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Breaks clusters of machines with a real systemd, and looks whether Muster keeps what it promises.
///
/// The exit status is 0 where it does.
#[derive(Debug, Parser)]
#[command(name = "muster-faults", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The fault matrix: each fault, on each part of the cluster, in the middle of each thing that goes on
    #[command(after_help = "Examples:\n  muster-faults matrix\n  muster-faults matrix --all\n  \
                            muster-faults matrix nspawn/power-off vm/clock/worker/idle\n  muster-faults matrix --table")]
    Matrix(matrix::Options),
    /// Random faults and random clients, with the same checks; writes what it did as a script
    #[command(
        after_help = "Examples:\n  muster-faults chaos --minutes 30\n  muster-faults chaos --seed 7 --backend vm"
    )]
    Chaos(chaos::Options),
    /// Measure what docs/failure.md promises, and write the table there, if each was measured five times
    #[command(
        after_help = "Examples:\n  muster-faults times\n  muster-faults times --rounds 1 --load 0 'power cut'\n  \
                            muster-faults times --backend vm"
    )]
    Times(times::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Matrix(options) => matrix::run(&options),
        Verb::Chaos(options) => chaos::run(&options),
        Verb::Times(options) => times::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}
