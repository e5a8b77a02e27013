//! `musterctl`: the command line of Muster.

mod act;
mod arguments;
mod backup;
mod cli;
mod client;
mod config;
mod cp;
mod events;
mod failure;
#[cfg(test)]
mod fixtures;
mod journal;
mod machines;
mod output;
mod progress;
mod reach;
mod schedulers;
mod show;
mod ssh;
mod stream;
mod style;
mod systemd;
mod verify;
mod wait;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use muster_core::command::Verb;
use muster_core::machine::Availability;

use crate::act::How;
use crate::cli::{BrakeAction, Cli, Sub, WaitArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::style::{Role, harmless};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&Failure::failed(format_args!("cannot start: {error}"))),
    };
    let ended = runtime.block_on(run(cli));
    // Nobody waits for a thread that reads standard input.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure),
    }
}

fn end(failure: &Failure) -> ExitCode {
    if !failure.message.is_empty() {
        let lines = failure.message.lines().map(harmless).collect::<Vec<_>>().join("\n");
        anstream::eprintln!("{} {lines}", Role::Bad.paint("error:"));
    }
    failure.exit.into()
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    let result = run_command(cli, &mut out).await;
    out.flush()?;
    result
}

async fn run_command(cli: Cli, out: &mut impl Write) -> Result<(), Failure> {
    let endpoints = || {
        let variable = std::env::var(config::ENDPOINT_VARIABLE).ok();
        config::endpoints(cli.endpoint.as_deref(), variable.as_deref(), &config::files())
    };
    let connect = async || Client::connect(endpoints()?).await;
    // Arguments are read before anything is sent: a mistake in them is told even when no scheduler is there.
    let (how, arguments) = match cli.command {
        Sub::Verify(args) => return verify::run(&args.files, out),
        Sub::Check(args) => return backup::check(&args.file, out),
        Sub::Version => return Ok(writeln!(out, "musterctl version {}", env!("CARGO_PKG_VERSION"))?),
        Sub::Cat(args) => {
            return show::cat(&mut connect().await?, &args.unit, &mut std::io::stdout().lock()).await;
        }
        Sub::Journal(args) => return journal::run(&mut connect().await?, &args).await,
        Sub::Ssh(args) => return ssh::ssh(&mut connect().await?, &args, &cli.ssh).await,
        Sub::FdForward(args) => return ssh::fd_forward(&mut connect().await?, &args).await,
        Sub::Cp(args) => return cp::run(&mut connect().await?, &args).await,
        Sub::Status(args) => return show::show_status(&mut connect().await?, &args, out).await,
        Sub::Explain(args) => return events::explain(&mut connect().await?, &args, out).await,
        Sub::Events(args) => return events::list(&mut connect().await?, &args, out).await,
        Sub::Rto(args) => return events::rto(&mut connect().await?, &args, out).await,
        Sub::ListUnits(args) => return show::list_units(&mut connect().await?, &args, out).await,
        Sub::ListUnitFiles(args) => return show::list_unit_files(&mut connect().await?, &args, out).await,
        Sub::Adopt(args) => return act::adopt(&mut connect().await?, &args, out).await,
        Sub::Cordon(args) => {
            return machines::set(&mut connect().await?, &args.machines, Availability::Cordoned, out).await;
        }
        Sub::Uncordon(args) => {
            return machines::set(&mut connect().await?, &args.machines, Availability::Open, out).await;
        }
        Sub::Metadata(args) => return machines::edit_metadata(&mut connect().await?, &args, out).await,
        Sub::Drain(args) => return machines::drain(&mut connect().await?, &args, out).await,
        Sub::Brake { action: BrakeAction::Release } => {
            return machines::release_brake(&mut connect().await?, out).await;
        }
        Sub::Schedulers(args) => return schedulers::list(&endpoints()?, &args, out).await,
        Sub::StepDown => return schedulers::step_down(&endpoints()?, out).await,
        Sub::Backup(args) => return backup::back_up(&mut connect().await?, &args.file, out).await,
        Sub::Restore(args) => return backup::restore(&mut connect().await?, &args.file, out).await,
        Sub::ListMachines(args) => return show::list_machines(&mut connect().await?, &args, out).await,
        Sub::Submit(args) => {
            let how = How { verb: Verb::Submit, replace: args.replace, wait: false, timeout: None };
            (how, arguments::names_or_files(&args.units)?)
        }
        Sub::Load(args) => {
            (how(Verb::Load, args.replace, args.wait), arguments::names_or_files(&args.units)?)
        }
        Sub::Start(args) => {
            (how(Verb::Start, args.replace, args.wait), arguments::names_or_files(&args.units)?)
        }
        Sub::Stop(args) => (how(Verb::Stop, false, args.wait), arguments::names(&args.units)?),
        Sub::Unload(args) => (how(Verb::Unload, false, args.wait), arguments::names(&args.units)?),
        Sub::Destroy(args) => (how(Verb::Destroy, false, args.wait), arguments::names(&args.units)?),
        Sub::Release(args) => (how(Verb::Release, false, args.wait), arguments::names(&args.units)?),
        Sub::Restart(args) => (how(Verb::Restart, false, args.wait), arguments::names(&args.units)?),
    };
    act::run(&mut connect().await?, how, arguments, out).await
}

fn how(verb: Verb, replace: bool, wait: WaitArgs) -> How {
    How { verb, replace, wait: !wait.no_block, timeout: wait.timeout.map(Duration::from_secs) }
}
