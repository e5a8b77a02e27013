//! What the shells of both daemons have in common, and neither's core: `main`, the clock, the log, the journal, the
//! reading of a configuration file, the writing of small files, the word to the service manager. The daemons themselves never
//! depend on each other.

pub mod clock;
pub mod config;
pub mod descriptors;
pub mod files;
pub mod journal;
mod lines;
pub mod log;
pub mod notify;
pub mod program;
