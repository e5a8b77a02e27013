//! `muster-cluster`: boots a cluster of machines on this host to try Muster on, and takes it down again.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_cluster::cli::main()
}
