//! `muster-bench`: measures what Muster is built to be good at, on machines with a real systemd.
//!
//! Prints a table and writes `target/bench.json`. Figures that are compared with something are ratios within one run, in
//! turns: the machines that this runs on are shared, and no two minutes on them are alike.

mod agents;
mod client;
mod dbus;
mod etcd;
mod failover;
mod figure;
mod listing;
mod machines;
mod memory;
mod one;
mod placements;
mod scheduler;
mod several;
mod start;
mod submit;
mod thousand;
mod three;
mod writes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use crate::figure::{Figure, head, say};

/// Figures that are measured together, since they need the same things.
struct Group {
    figures: &'static [&'static str],
    measure: fn() -> Result<Vec<Figure>>,
}

const GROUPS: [Group; 13] = [
    Group { figures: &["placements_per_s"], measure: placements::measure },
    Group { figures: &["submit_ratio"], measure: submit::measure },
    Group { figures: &["scheduler_rss_mib"], measure: memory::measure },
    Group { figures: &["list_units_10k_ms"], measure: listing::measure },
    Group { figures: &["submit_etcd_ratio", "submit_etcd_batches"], measure: etcd::submit },
    Group { figures: &["idle_etcd_writes"], measure: etcd::idle },
    Group { figures: &["leaderless_s"], measure: failover::leaderless },
    Group { figures: &["takeover_100k_s"], measure: failover::takeover },
    Group {
        figures: &["agents_1000_back_s", "agents_1000_lapses", "agents_1000_answer_s"],
        measure: thousand::measure,
    },
    Group { figures: &["start_ratio", "reloads_for_new_units", "agent_rss_mib"], measure: one::measure },
    Group { figures: &["start_200_s", "start_200_systemd_percent"], measure: start::measure },
    Group { figures: &["cluster_up_3_s"], measure: three::boot },
    Group {
        figures: &["start_500_on_3_s", "destroy_500_s", "idle_store_writes", "idle_cpu_percent"],
        measure: three::measure,
    },
];

/// Measures Muster: prints a table, and writes target/bench.json.
///
/// The exit status is 0 when every figure was measured, whatever it is.
#[derive(Debug, Parser)]
#[command(name = "muster-bench", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Cli {
    /// The figures to measure [default: all]
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(names()))]
    names: Vec<String>,
    #[command(subcommand)]
    inside: Option<Inside>,
}

/// What runs inside a machine, where the benchmark copies itself.
#[derive(Debug, Subcommand)]
enum Inside {
    /// Start these units over D-Bus, and print the seconds until all are active
    #[command(hide = true)]
    DbusStart {
        #[arg(required = true)]
        units: Vec<String>,
    },
    /// Count the writes to files under these directories for so long, and print how many there were
    #[command(hide = true)]
    CountWrites {
        #[arg(long)]
        seconds: u64,
        #[arg(required = true)]
        directories: Vec<PathBuf>,
    },
}

fn names() -> Vec<&'static str> {
    GROUPS.iter().flat_map(|group| group.figures).copied().collect()
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.inside {
        Some(Inside::DbusStart { units }) => dbus::start(&units),
        Some(Inside::CountWrites { seconds, directories }) => writes::count(seconds, &directories),
        None => measure(&cli.names),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures these figures, or all.
fn measure(names: &[String]) -> Result<()> {
    let wanted = |figure: &str| names.is_empty() || names.iter().any(|name| name == figure);
    let mut figures = Vec::new();
    let mut failures = Vec::new();
    for group in GROUPS {
        let asked: Vec<&str> = group.figures.iter().copied().filter(|figure| wanted(figure)).collect();
        if asked.is_empty() {
            continue;
        }
        let asked = asked.join(", ");
        say(&format!("measuring {asked}"));
        let began = Instant::now();
        match (group.measure)() {
            Ok(measured) => figures.extend(measured.into_iter().filter(|figure| wanted(figure.name))),
            Err(error) => {
                say(&format!("{error:#}"));
                failures.push(asked);
            }
        }
        say(&format!("that took {:.0} s", began.elapsed().as_secs_f64()));
    }

    println!("{}", head());
    for figure in &figures {
        println!("{}", figure.row());
    }
    let path = muster_cluster::target_dir().join("bench.json");
    let json = serde_json::to_string_pretty(&figures)?;
    std::fs::write(&path, json + "\n").with_context(|| path.display().to_string())?;
    let missed: Vec<&str> =
        figures.iter().filter(|figure| figure.missed()).map(|figure| figure.name).collect();
    if !missed.is_empty() {
        println!("\nMISSED ITS BAR: {}", missed.join(", "));
    }
    anyhow::ensure!(failures.is_empty(), "could not be measured: {}", failures.join(", "));
    Ok(())
}
