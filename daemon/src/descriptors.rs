//! How many files and connections a process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Allows as many as the system does: each agent has two connections to the leader, and systemd's default is 1,024. (That is
/// kept low for programs that use `select`, as none of Muster's does.)
///
/// # Errors
/// The system refuses.
pub fn allow_all() -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
