//! What the Tab key offers: commands and flags by themselves; names of units, machines and files where these are asked for.
//!
//! The shell runs `musterctl` for every press of the key, so it answers within a second or not at all, and says nothing
//! where something is wrong.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::CompletionCandidate;
use clap_complete::engine::{PathCompleter, ValueCompleter};
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Shells, Zsh};
use muster_core::command::{ClusterStatus, UnitStatus};
use muster_core::unit::UnitName;

use crate::cli::{Cli, Shell};
use crate::client::Client;
use crate::config;
use crate::failure::Failure;
use crate::style::harmless;

/// The variable by which the shell asks for completions.
const VARIABLE: &str = "MUSTERCTL_COMPLETE";
/// How long the scheduler has to say what there is.
const LIMIT: Duration = Duration::from_millis(800);

/// bash takes `@` for the end of a word, so that it would see two in `web@1`.
const BASH: &str = "# The instances of templates are one word.\nCOMP_WORDBREAKS=${COMP_WORDBREAKS//@}\n";

/// Writes what the shell needs in order to ask for completions.
///
/// # Errors
/// When `out` cannot be written to.
pub fn script(shell: Shell, out: &mut impl Write) -> Result<(), Failure> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => {
            out.write_all(BASH.as_bytes())?;
            &Bash
        }
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    Ok(completer.write_registration(VARIABLE, "musterctl", "musterctl", "musterctl", out)?)
}

/// Answers the shell, if that is what it has asked; whether it was.
pub fn answer() -> bool {
    let shells: [&dyn EnvCompleter; 3] = [&Bash, &Zsh, &Fish];
    let asked = CompleteEnv::with_factory(Cli::command).var(VARIABLE).shells(Shells(&shells));
    let directory = std::env::current_dir().ok();
    // Whoever waits for completions has no use for an error.
    asked.try_complete(std::env::args_os(), directory.as_deref()).unwrap_or(true)
}

/// Units of the cluster.
#[derive(Clone, Copy, Debug)]
pub enum Units {
    /// All.
    Known,
    /// All, and files here.
    OrFiles,
    /// All, and machines.
    OrMachines,
}

impl ValueCompleter for Units {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let mut candidates = Vec::new();
        if matches!(self, Self::OrFiles) {
            candidates.extend(PathCompleter::file().filter(is_unit_file).complete(current));
        }
        // No unit of the cluster has a path.
        let Some(begun) = current.to_str().filter(|begun| !begun.contains('/')) else { return candidates };
        let Some((units, cluster)) = glimpse() else { return candidates };
        let names = units.iter().filter(|unit| unit.known && unit.name.as_str().starts_with(begun));
        candidates.extend(names.map(|unit| candidate(unit.name.as_str(), &unit.description)));
        if matches!(self, Self::OrMachines) {
            candidates.extend(named(&cluster, begun));
        }
        candidates
    }
}

/// Machines of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Machines;

impl ValueCompleter for Machines {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some((begun, (_, cluster))) = current.to_str().zip(glimpse()) else { return Vec::new() };
        named(&cluster, begun)
    }
}

/// The machines whose id begins so, by the digits that lists show, and those whose address does.
fn named(cluster: &ClusterStatus, begun: &str) -> Vec<CompletionCandidate> {
    let mut candidates = Vec::new();
    for machine in &cluster.machines {
        let (id, address) = (machine.id.short(), machine.record.address.as_str());
        if id.starts_with(begun) {
            candidates.push(candidate(&id, address));
        }
        // Not before an address is begun: nobody needs both.
        if !begun.is_empty() && address.starts_with(begun) {
            candidates.push(candidate(address, &id));
        }
    }
    candidates
}

fn candidate(value: &str, help: &str) -> CompletionCandidate {
    let help = Some(harmless(help).into_owned()).filter(|help| !help.is_empty());
    CompletionCandidate::new(value).help(help.map(Into::into))
}

fn is_unit_file(path: &std::path::Path) -> bool {
    path.file_name().and_then(OsStr::to_str).is_some_and(|name| UnitName::parse(name).is_ok())
}

/// What the cluster has, if it says so in time.
fn glimpse() -> Option<(Vec<UnitStatus>, ClusterStatus)> {
    let flag = endpoint(std::env::args_os());
    let variable = |name: &str| std::env::var(name).ok();
    let endpoints = config::endpoints(flag.as_deref(), &variable, &config::files()).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let look = async { Client::connect(endpoints).await?.glimpse().await };
    let seen = runtime.block_on(async { tokio::time::timeout(LIMIT, look).await });
    // A name server that does not answer is not waited for.
    runtime.shutdown_background();
    seen.ok()?.ok()
}

/// `--endpoint` in the command line that is being written.
fn endpoint(words: impl Iterator<Item = OsString>) -> Option<String> {
    let mut words = words.filter_map(|word| word.into_string().ok()).skip_while(|word| word != "--");
    while let Some(word) = words.next() {
        if word == "--endpoint" {
            return words.next();
        }
        if let Some(value) = word.strip_prefix("--endpoint=") {
            return Some(value.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::cluster;

    #[test]
    fn the_endpoint_may_stand_in_the_line() {
        let found = |line: &str| endpoint(line.split(' ').map(OsString::from));
        assert_eq!(found("musterctl -- musterctl --endpoint h:1 start w").as_deref(), Some("h:1"));
        assert_eq!(found("musterctl -- musterctl start --endpoint=h:1 w").as_deref(), Some("h:1"));
        assert_eq!(found("musterctl -- musterctl start --endpoint"), None);
        assert_eq!(found("musterctl --endpoint h:1"), None);
    }

    #[test]
    fn machines_have_ids_and_addresses() {
        let named = |begun| {
            let candidates = named(&cluster(), begun);
            candidates
                .iter()
                .map(|found| found.get_value().to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(named(""), ["11111111", "22222222", "33333333"]);
        assert_eq!(named("2"), ["22222222"]);
        assert_eq!(named("198.18.0.103"), ["198.18.0.103"]);
    }
}
