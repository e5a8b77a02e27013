//! In a virtual machine: takes its memory until the kernel has to kill somebody.

use std::fs;

use anyhow::{Context, Result};
use rustix::mm::{MlockAllFlags, mlockall};

/// How much is taken at a time, in bytes: while there is enough, and then. Small, for the kernel kills one after another
/// until there is room for all of it.
const BITE: usize = 1 << 20;
const NIBBLE: usize = 1 << 12;
/// How much is enough, in kB.
const ENOUGH: u64 = 32 << 10;
/// To the kernel this process has by so many thousandths of all memory less than it has: hardly any. Were it spared whatever
/// happens, the kernel would panic where there is nobody else whose end helps.
const SCORE: &str = "-900";

/// Takes memory until the kernel has killed a process for it, which may be this one.
pub(crate) fn run() -> Result<()> {
    let path = "/proc/self/oom_score_adj";
    fs::write(path, SCORE).context(path)?;
    // Else this very program would be dropped from memory and read again, over and over, and get no further.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).context("mlockall")?;
    let killed = || number("/proc/vmstat", "oom_kill ");
    let before = killed()?;
    let mut eaten = Vec::new();
    while killed()? == before {
        let size = if number("/proc/meminfo", "MemAvailable:")? > ENOUGH { BITE } else { NIBBLE };
        eaten.push(vec![1_u8; size]);
    }
    Ok(())
}

/// The first number in the line of a file that begins so.
fn number(path: &str, key: &str) -> Result<u64> {
    let text = fs::read_to_string(path).context(path.to_owned())?;
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
    found.with_context(|| format!("no {key:?} in {path}"))
}
