//! `musterctl`: the command line of Muster.

mod act;
mod arguments;
mod backup;
mod cli;
mod client;
mod complete;
mod config;
mod cp;
mod events;
mod failure;
#[cfg(test)]
mod fixtures;
mod fleetctl;
mod import;
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

use clap::{CommandFactory, Parser};
use muster_core::command::Verb;
use muster_core::machine::Availability;

use crate::act::How;
use crate::cli::{BrakeAction, Cli, PlaceArgs, Sub, SubmitArgs, WaitArgs};
use crate::client::Client;
use crate::config::Source;
use crate::failure::{Exit, Failure};
use crate::style::{Role, harmless};

fn main() -> ExitCode {
    if complete::answer() {
        return ExitCode::SUCCESS;
    }
    let arguments = fleetctl::plain_switches(std::env::args_os());
    if arguments.len() < 2 {
        // As fleetctl: who says nothing wants to know what there is to say.
        return match Cli::command().print_help() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => end(&error.into()),
        };
    }
    let cli = Cli::parse_from(arguments);
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
    let variable = |name: &str| std::env::var(name).ok();
    let endpoints = || {
        let found = config::endpoints(cli.endpoint.as_deref(), &variable, &config::files())?;
        cli.fleet.check((found.source == Source::Fleetctl).then_some(&variable))?;
        Ok::<_, Failure>(found)
    };
    let connect = async || Client::connect(endpoints()?).await;
    // Arguments are read before anything is sent: a mistake in them is told even when no scheduler is there.
    let (how, arguments) = match cli.command {
        Sub::Verify(args) => return verify::run(&args.files, out),
        Sub::Check(args) => return backup::check(&args.file, out),
        Sub::Completions { shell } => return complete::script(shell, out),
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
        Sub::ImportFleet(args) => {
            let fleet = import::Fleet::parse(&args.url)?;
            return import::run(&mut connect().await?, &fleet, &args, out).await;
        }
        Sub::ListMachines(args) => return show::list_machines(&mut connect().await?, &args, out).await,
        Sub::Submit(SubmitArgs { sign: true, .. })
        | Sub::Load(PlaceArgs { sign: true, .. })
        | Sub::Start(PlaceArgs { sign: true, .. }) => {
            return Err(Failure::new(Exit::Usage, NO_SIGNATURES));
        }
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

const NO_SIGNATURES: &str = "--sign: units are not signed, and nobody would look at the signature (fleet's last version did not \
                             either); leave it out";

fn how(verb: Verb, replace: bool, wait: WaitArgs) -> How {
    How { verb, replace, wait: !wait.no_block, timeout: wait.limit() }
}
