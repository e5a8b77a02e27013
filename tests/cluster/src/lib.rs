//! The cluster harness: boots machines with a real systemd on one host, has all sorts of things go wrong with them, and leaves
//! nothing behind.
//!
//! Each machine is a systemd-nspawn container from an overlay of the host's own root, with its own network namespace, address
//! and machine id, on a bridge; or it is a virtual machine under QEMU, from an image. Everything (processes, mounts, links)
//! lives in namespaces that end when one process, the supervisor, ends. A command enters these namespaces, does its work and
//! leaves; into virtual machines it comes through the cluster's hub.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let cluster = muster_cluster::Cluster::builder().machines(3).label("m1", "disk", "ssd").up()?;
//! cluster.machine("m2")?.kill()?;
//! println!("{}", cluster.ctl(&["list-machines"])?.ok()?);
//! # Ok(()) // dropping the cluster takes it down
//! # }
//! ```

mod builder;
pub mod cli;
mod cluster;
mod daemons;
mod machine;
mod nspawn;
pub mod preflight;
mod process;
mod state;
mod supervisor;
mod template;
pub mod vm;
mod wait;
mod witness;

pub use builder::Builder;
pub use cluster::{Cluster, Down};
pub use daemons::{BIN_DIR_VARIABLE, Version, bin_dir, project_root, target_dir};
pub use machine::{BOOT_DEADLINE, EXEC_DEADLINE, Impairment, Machine, Power};
pub use process::Output;
pub use state::{Backend, Role};
pub use witness::Beat;

/// Says on standard error what the harness is doing.
pub(crate) fn say(text: &str) {
    eprintln!("muster-cluster: {text}");
}
