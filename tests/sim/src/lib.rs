//! The deterministic simulation: the real leader and the real agents, in a simulated world.
//!
//! Network, clocks, store, disks, PID 1 and clients are simulated, in one thread, with one queue of events, from one
//! seed. What goes wrong is drawn before the world begins, as a list ([`Plan`]) that can be shortened. At every step the
//! invariants of the design are checked; after two minutes of faults everything heals, and must come to what the clients
//! asked for.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `invariants`, `healing` | what must hold at every step, and in the end |
//! | `book`, `intent`, `fits` | the simulation's own account of what was decided, asked for and would fit |
//! | `faults`, `palette` | what goes wrong, what clients ask for, and the units that they ask it of |
//! | `world`, `queue`, `random` | what happens when |
//! | `scheduler`, `store`, `machine`, `systemd`, `network`, `client` | the parts of the world |
//! | `fidelity` | whether the simulated PID 1 is like a real one |
//! | `shrink` | makes a failing history short |

mod book;
mod client;
pub mod disk;
mod election;
mod faults;
pub mod fidelity;
mod fits;
mod healing;
mod intent;
mod invariants;
mod leases;
mod machine;
mod network;
mod palette;
mod queue;
mod random;
mod scheduler;
mod shrink;
mod store;
mod systemd;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use faults::FAULTS_LAST;
pub use faults::Plan;
use queue::MILLI;
pub use shrink::shrink;
pub use world::{Stats, Violation};

/// What came of a history.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was found to be wrong first.
    pub violation: Option<Violation>,
    /// What it was like.
    pub stats: Stats,
    /// What happened, line by line, where that was asked for.
    pub log: Vec<String>,
}

/// Lets a history happen.
pub fn run(plan: &Plan, log: bool) -> Outcome {
    #[cfg(feature = "planted-faults")]
    muster_core::planted::plant(plan.planted);
    let mut world = world::World::new(plan.clone(), log);
    nothing_panics(&mut world);
    Outcome { violation: world.violation, stats: world.stats, log: world.log.unwrap_or_default() }
}

/// Lets everything happen: bad input is a value, never a panic.
fn nothing_panics(world: &mut world::World) {
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.violate("nothing_panics", text.unwrap_or_default());
    }
}

impl Plan {
    /// The same history, of code that has this fault.
    #[cfg(feature = "planted-faults")]
    #[must_use]
    pub fn with_planted(mut self, fault: muster_core::planted::Fault) -> Self {
        self.planted = Some(fault);
        self
    }

    /// The same history, in which no machine knows how short it is of anything.
    #[must_use]
    pub fn without_pressure(mut self) -> Self {
        self.pressure = false;
        self
    }

    /// What goes wrong and what clients ask for, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.entries.iter().map(ToString::to_string).collect()
    }

    /// The numbers of its entries in the plan of its seed.
    pub fn numbers(&self) -> Vec<usize> {
        self.entries.iter().map(|entry| entry.number).collect()
    }

    /// The same history with only these of its entries.
    #[must_use]
    pub fn with_only(&self, numbers: &[usize]) -> Self {
        self.only(numbers, self.heals)
    }

    /// The same history, in which everything heals after so many milliseconds.
    #[must_use]
    pub fn healing_after(mut self, heals: u64) -> Self {
        self.heals = heals * MILLI;
        self
    }

    /// What has this very history replayed, each option with its value; `none` where it has no entries.
    pub fn options(&self) -> Vec<(&'static str, String)> {
        let numbers: Vec<String> = self.numbers().iter().map(ToString::to_string).collect();
        let only = if numbers.is_empty() { "none".to_owned() } else { numbers.join(",") };
        let mut options = vec![("seed", self.seed.to_string()), ("only", only)];
        if self.heals != FAULTS_LAST {
            options.push(("heals", (self.heals / MILLI).to_string()));
        }
        options
    }

    /// The command that replays this very history.
    pub fn command(&self) -> String {
        let options = self.options().into_iter();
        options.fold("make sim".to_owned(), |text, (name, value)| {
            format!("{text} {}={value}", name.to_uppercase())
        })
    }
}
