//! The fault matrix: runs cells one after the other, and keeps what came of them.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use muster_cluster::{Backend, bin_dir, target_dir};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Fault, Situation, Target, meaningless};
use crate::origin::Origin;
use crate::trial::{self, Outcome};
use crate::world::{Kind, World};

/// Which cells to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// All cells, not only those of `make test`; those that have passed with the same daemons are left out
    #[arg(long)]
    all: bool,
    /// Only cells on such machines
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// Those that have passed too
    #[arg(long)]
    again: bool,
    /// Print the table of all cells with what came of them, when and where, and run none
    #[arg(long)]
    table: bool,
    /// Only cells in whose name one of these is
    filters: Vec<String>,
}

/// What has passed with these daemons.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Passed {
    /// Of the daemons and of this program.
    build: u64,
    cells: BTreeMap<String, Outcome>,
    /// When and where.
    #[serde(default)]
    origins: BTreeSet<Origin>,
}

impl Passed {
    fn path() -> PathBuf {
        target_dir().join("fault-matrix.json")
    }

    /// What was kept, if it is of this build.
    fn load() -> Result<Self> {
        let build = build()?;
        let kept = fs::read(Self::path()).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        Ok(kept.filter(|kept| kept.build == build).unwrap_or(Self { build, ..Self::default() }))
    }

    fn save(&self) -> Result<()> {
        let (path, new) = (Self::path(), Self::path().with_extension("new"));
        fs::write(&new, serde_json::to_vec_pretty(self)?).with_context(|| new.display().to_string())?;
        fs::rename(&new, &path).with_context(|| path.display().to_string())
    }
}

/// What tells this build of the daemons and of the trials from others.
fn build() -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let daemons =
        ["muster-scheduler", "muster-agent", "musterctl"].map(|name| bin_dir().map(|dir| dir.join(name)));
    for path in daemons.into_iter().chain([std::env::current_exe().map_err(Into::into)]) {
        let path: PathBuf = path?;
        let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
        read(&path)?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut passed = Passed::load()?;
    if options.table {
        print_table(&passed);
        return Ok(());
    }
    let wanted = |cell: &Cell| {
        let name = cell.to_string();
        let chosen = if options.filters.is_empty() {
            options.all || cell.is_quick()
        } else {
            options.filters.iter().any(|filter| name.contains(filter))
        };
        let known = options.all && !options.again && passed.cells.contains_key(&name);
        chosen && !known && options.backend.is_none_or(|backend| backend == cell.backend)
    };
    let cells: Vec<Cell> = Cell::all().into_iter().filter(wanted).collect();
    if options.all && !passed.cells.is_empty() {
        println!("{} cells have passed before with this build (--again runs them too)", passed.cells.len());
    }
    let mut cluster: Option<(Kind, World)> = None;
    let mut failed = Vec::new();
    for (number, cell) in (1..).zip(&cells) {
        say(&format!("[{number}/{}] {cell} …", cells.len()), false);
        let began = Instant::now();
        let outcome = in_cluster(&mut cluster, *cell);
        match outcome {
            Ok(outcome) => {
                let overlap = if cell.is_excepted() {
                    format!(", ran twice for {:.1} s", outcome.overlap)
                } else {
                    String::new()
                };
                say(
                    &format!(
                        "ok      {cell}: as it should be {:.1} s after the fault ({} s are allowed){overlap}; {:.0} s in all",
                        outcome.settled,
                        cell.bound().as_secs(),
                        began.elapsed().as_secs_f64()
                    ),
                    true,
                );
                passed.cells.insert(cell.to_string(), outcome);
                passed.origins.insert(Origin::now()?);
                passed.save()?;
            }
            Err(error) => {
                say(&format!("FAILED  {cell}: {error:#}"), true);
                failed.push(cell.to_string());
                passed.cells.remove(&cell.to_string());
                passed.save()?;
                // Whatever state it is in.
                if let Some((_, world)) = cluster.take() {
                    let journals = world.cluster.keep_journals(&cell.to_string().replace('/', "-"));
                    let journals =
                        journals.map_or_else(|error| format!("{error:#}"), |dir| dir.display().to_string());
                    println!("        the machines' journals: {journals}");
                }
            }
        }
    }
    if let Some((_, world)) = cluster {
        world.cluster.down()?;
    }
    ensure!(failed.is_empty(), "{} of {} cells failed: {}", failed.len(), cells.len(), failed.join(", "));
    println!("{} cells passed", cells.len());
    Ok(())
}

/// Runs it in the cluster that is up, if that is of its kind.
fn in_cluster(cluster: &mut Option<(Kind, World)>, cell: Cell) -> Result<Outcome> {
    if cluster.as_ref().is_none_or(|(kind, _)| *kind != cell.kind()) {
        if let Some((_, world)) = cluster.take() {
            world.cluster.down()?;
        }
        *cluster = Some((cell.kind(), World::up(cell.kind())?));
    }
    let (_, world) = cluster.as_ref().context("it is up")?;
    trial::run(world, cell)
}

/// A line; on a terminal it is replaced by the next one, unless it is to stay.
fn say(line: &str, stays: bool) {
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K{line}{}", if stays { "\n" } else { "" });
        let _ = std::io::stdout().flush();
    } else if stays {
        println!("{line}");
    }
}

/// Of each cell the seconds from the fault's end until all was as it should be, and where no lease covers it for how many the
/// exclusive unit ran twice.
fn print_table(passed: &Passed) {
    let cells = Cell::all();
    let shown = |cell: &Cell| match passed.cells.get(&cell.to_string()) {
        None => "not run".to_owned(),
        Some(outcome) if cell.is_excepted() => {
            format!("{:.1}, twice {:.1}", outcome.settled, outcome.overlap)
        }
        Some(outcome) => format!("{:.1}", outcome.settled),
    };
    for origin in &passed.origins {
        println!("{origin}");
    }
    println!();
    for (backend, machines) in [(Backend::Nspawn, "containers"), (Backend::Vm, "virtual machines")] {
        println!("On {machines}:\n");
        let situations = Situation::ALL.map(|situation| situation.to_string()).join(" | ");
        println!("| fault | of | {situations} | allowed |\n| --- | --- | --- | --- | --- | --- | --- |");
        for target in Target::ALL {
            for fault in Fault::ALL.into_iter().chain(Fault::MORE) {
                let of_row =
                    |cell: &&Cell| (cell.backend, cell.target, cell.fault) == (backend, target, fault);
                let row: Vec<&Cell> = cells.iter().filter(of_row).collect();
                let Some(first) = row.first() else { continue };
                let cell = |situation| row.iter().find(|cell| cell.situation == situation);
                let columns =
                    Situation::ALL.map(|s| cell(s).map_or(String::new(), |cell| shown(cell))).join(" | ");
                println!("| {fault} | {target} | {columns} | {} |", first.bound().as_secs());
            }
        }
        println!();
    }
    println!("What means nothing:\n");
    for target in Target::ALL {
        for fault in Fault::ALL {
            if let Some(reason) = meaningless(fault, target) {
                println!("- `{fault}` of `{target}`: {reason}.");
            }
        }
    }
}
