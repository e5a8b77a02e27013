//! What figures were measured with: without that nobody can say what they mean.

use std::fmt;
use std::fs;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use muster_cluster::project_root;
use serde::{Deserialize, Serialize};

/// When, with which code and where something was measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Such as 2026-11-27.
    date: String,
    /// Of the source tree; that it was built as it is is taken for granted.
    commit: String,
    processors: usize,
    /// The kernel's release.
    kernel: String,
}

impl Origin {
    /// That of what is measured now.
    pub(crate) fn now() -> Result<Self> {
        let kernel = "/proc/sys/kernel/osrelease";
        Ok(Self {
            date: said(Command::new("date").arg("+%F")).context("`date` does not say which day it is")?,
            commit: commit(),
            processors: thread::available_parallelism()?.get(),
            kernel: fs::read_to_string(kernel).context(kernel)?.trim().to_owned(),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, commit, processors, kernel } = self;
        write!(
            f,
            "Measured on {date} with the code of {commit}, on a host with {processors} processors and Linux {kernel}."
        )
    }
}

/// The commit, and whether something was changed since; but for what figures are written into.
fn commit() -> String {
    let git = |words: &[&str]| said(Command::new("git").arg("-C").arg(project_root()).args(words));
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "an unknown commit".to_owned() };
    match git(&["status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/docs"]) {
        Some(changed) if changed.is_empty() => commit,
        _ => format!("{commit} and changes"),
    }
}

/// What a command says, in one line, if all is well.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
