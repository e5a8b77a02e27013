//! The command line of `muster-cluster`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::vm::Part;
use crate::{Backend, Cluster, Impairment, Machine, Role, project_root};

/// Boots a cluster of machines on this host to try Muster on: each with a real systemd, from the host's own files, with
/// nothing to download, or virtual ones from an image. They can be killed, frozen and cut off; `down` leaves nothing of them
/// behind. Needs root.
#[derive(Parser)]
#[command(name = "muster-cluster", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// The directory by which the cluster is found again [default: .muster-cluster in the source tree]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Machines: m1, m2, … run units, s1 runs the scheduler. Where there are several schedulers, s1, s2, …, their state is in etcd \
on e1, e2 and e3.

Examples:
  muster-cluster up
  muster-cluster ctl start unit-examples/web.service
  muster-cluster ctl list-units
  muster-cluster kill m1
  muster-cluster down";

#[derive(Subcommand)]
enum Verb {
    /// Boot the machines, and wait until every agent is registered
    #[command(
        after_help = "Examples:\n  muster-cluster up\n  muster-cluster up --machines 5 --labels m1:disk=ssd,rack=a\n  \
                      muster-cluster up --backend vm\n  \
                      muster-cluster up --machines 5 --schedulers 3\n  \
                      muster-cluster --dir /tmp/bare up --machines 1 --no-daemons"
    )]
    Up(Up),
    /// Take the cluster down, whatever state it is in; nothing of it is left
    #[command(after_help = "Examples:\n  muster-cluster down\n  muster-cluster --dir /tmp/bare down")]
    Down,
    /// List the machines
    #[command(after_help = "Example:\n  muster-cluster list")]
    List,
    /// Run a command in a machine, as root
    #[command(
        after_help = "Examples:\n  muster-cluster exec m1\n  muster-cluster exec m1 systemctl status web.service"
    )]
    Exec {
        /// Such as m1 or s1
        machine: String,
        /// The command; a shell when there is none
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Cut a machine's power: no goodbye; its disk is kept. Both kinds of machine
    #[command(after_help = "Examples:\n  muster-cluster kill m1\n  muster-cluster kill m1 m2")]
    Kill(Machines),
    /// Switch a machine on, and wait until it is up. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster boot m1")]
    Boot(Machines),
    /// Reboot a machine in an orderly way, and wait until it is up. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster reboot m1")]
    Reboot(Machines),
    /// Freeze all processes of a machine. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster freeze m1")]
    Freeze(Machines),
    /// Let a frozen machine go on. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster thaw m1")]
    Thaw(Machines),
    /// Have a machine stand still with its clocks, unlike `freeze`, through which they go on. Virtual machines only
    #[command(after_help = "Example:\n  muster-cluster pause m1")]
    Pause(Machines),
    /// Let a paused machine go on, with clocks that are behind. Virtual machines only
    #[command(after_help = "Example:\n  muster-cluster resume m1")]
    Resume(Machines),
    /// Write a machine with all that it is doing to a file, and end it, as if it moved away. Virtual machines only
    #[command(after_help = "Example:\n  muster-cluster save m1")]
    Save(Machines),
    /// Let a saved machine go on where it was, with clocks that are behind. Virtual machines only
    #[command(after_help = "Example:\n  muster-cluster restore m1")]
    Restore(Machines),
    /// Cut a machine's network cable. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster cut m1")]
    Cut(Machines),
    /// Mend a machine's network: its cable, what `impair` began, and what `lose` began from and to it. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster heal m1")]
    Heal(Machines),
    /// Lose what a machine sends to another one, while their links stay up; `heal` of either ends it. Both kinds of machine
    #[command(after_help = "Examples:\n  muster-cluster lose m1 m2\n  muster-cluster lose m1 m2 m3 s1")]
    Lose {
        /// Whose words are lost
        from: String,
        /// Who does not hear them
        #[arg(required = true)]
        to: Vec<String>,
    },
    /// Delay and lose what a machine sends and receives; `heal` ends it. Virtual machines only
    #[command(
        after_help = "Examples:\n  muster-cluster impair m1 --delay 50 --jitter 20\n  muster-cluster impair m1 --loss 30"
    )]
    Impair(Impair),
    /// Have a machine's PID 1, systemd, hang: it does nothing any more, all others go on. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster hang m1")]
    Hang(Machines),
    /// Let a machine's PID 1 go on. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster unhang m1")]
    Unhang(Machines),
    /// Have a machine's wall clock jump, on or back, until its next boot. Virtual machines only
    #[command(after_help = "Examples:\n  muster-cluster clock m1 3600\n  muster-cluster clock m1 -3600")]
    Clock {
        /// Such as m1 or s1
        machine: String,
        /// By how many seconds
        #[arg(allow_negative_numbers = true)]
        seconds: i64,
    },
    /// Take a machine's memory until the kernel has killed a process for it. Virtual machines only
    #[command(
        after_help = "Examples:\n  muster-cluster starve m1\n  muster-cluster starve m1 --unit muster-agent.service"
    )]
    Starve {
        /// Such as m1 or s1
        machine: String,
        /// Take it from this unit alone, so that its processes are killed
        #[arg(long)]
        unit: Option<String>,
    },
    /// Take all that is free on a file system of a machine, until `clear`. Both kinds of machine
    #[command(after_help = "Examples:\n  muster-cluster fill m1\n  muster-cluster fill m1 /run")]
    Fill {
        /// Such as m1 or s1
        machine: String,
        /// A directory on that file system
        #[arg(default_value = "/var")]
        directory: String,
    },
    /// Free what `fill` has taken on a machine. Both kinds of machine
    #[command(after_help = "Example:\n  muster-cluster clear m1")]
    Clear(Machines),
    /// Show a machine's journal, of all its boots, also when it is off
    #[command(
        after_help = "Examples:\n  muster-cluster logs m1\n  muster-cluster logs s1 muster-scheduler\n  muster-cluster logs --follow m1 muster-agent"
    )]
    Logs {
        /// Such as m1 or s1
        machine: String,
        /// Only what this unit said
        unit: Option<String>,
        /// Go on showing what is added
        #[arg(short, long)]
        follow: bool,
    },
    /// Run musterctl in the cluster's network
    #[command(
        after_help = "Examples:\n  muster-cluster ctl list-machines\n  muster-cluster ctl list-units -o json"
    )]
    Ctl {
        /// musterctl's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run any of the host's commands in the cluster's network, for example curl
    #[command(after_help = "Example:\n  muster-cluster run curl http://198.18.0.101:8080/")]
    Run {
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    #[command(flatten)]
    Part(Part),
}

#[derive(Args)]
struct Up {
    /// What the machines are made of
    #[arg(long, value_enum, default_value_t = Backend::Nspawn)]
    backend: Backend,
    /// How many workers, m1, m2, …
    #[arg(long, default_value_t = 3, value_name = "N")]
    machines: usize,
    /// How many machines for schedulers, s1, s2, …; with more than one, three machines more, e1 to e3, have their state in
    /// etcd [default: 1, or 0 with --no-daemons]
    #[arg(long, value_name = "M")]
    schedulers: Option<usize>,
    /// Put the schedulers on workers instead of on machines of their own
    #[arg(long)]
    schedulers_on_workers: bool,
    /// Labels for a worker; may be repeated
    #[arg(long, value_name = "MACHINE:KEY=VALUE[,KEY=VALUE…]")]
    labels: Vec<String>,
    /// Boot bare machines, without Muster's daemons
    #[arg(long)]
    no_daemons: bool,
}

#[derive(Args)]
struct Machines {
    /// One or more, such as m1 m2
    #[arg(required = true)]
    machines: Vec<String>,
}

#[derive(Args)]
struct Impair {
    /// Such as m1 or s1
    machine: String,
    /// How many milliseconds every frame takes longer
    #[arg(long, value_name = "MS", required_unless_present_any = ["jitter", "loss"])]
    delay: Option<u32>,
    /// By how many milliseconds more at most, each on its own: they overtake each other
    #[arg(long, value_name = "MS")]
    jitter: Option<u32>,
    /// How many in a hundred are lost
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    loss: Option<u8>,
}

/// Does what the process's arguments say.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("muster-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let named_dir = cli.dir;
    let dir = named_dir.clone().unwrap_or_else(|| project_root().join(".muster-cluster"));
    let open = || Cluster::open(&dir);
    match cli.verb {
        Verb::Part(part) => return Ok(ExitCode::from(part.run()?)),
        Verb::Up(up) => bring_up(named_dir.as_deref(), &dir, &up)?,
        Verb::Down => println!("{}", Cluster::down_in(&dir)?),
        Verb::List => list(&open()?),
        Verb::Exec { machine, mut command } => {
            if command.is_empty() {
                command.push("bash".into());
            }
            return become_command(open()?.machine(&machine)?.command(&command)?);
        }
        Verb::Kill(machines) => each(&open()?, &machines, Machine::kill)?,
        Verb::Boot(machines) => each(&open()?, &machines, Machine::boot)?,
        Verb::Reboot(machines) => each(&open()?, &machines, Machine::reboot)?,
        Verb::Freeze(machines) => each(&open()?, &machines, Machine::freeze)?,
        Verb::Thaw(machines) => each(&open()?, &machines, Machine::thaw)?,
        Verb::Pause(machines) => each(&open()?, &machines, Machine::pause)?,
        Verb::Resume(machines) => each(&open()?, &machines, Machine::resume)?,
        Verb::Save(machines) => each(&open()?, &machines, Machine::save)?,
        Verb::Restore(machines) => each(&open()?, &machines, Machine::restore)?,
        Verb::Cut(machines) => each(&open()?, &machines, Machine::cut)?,
        Verb::Heal(machines) => each(&open()?, &machines, Machine::heal)?,
        Verb::Lose { from, to } => {
            let cluster = open()?;
            let from = cluster.machine(&from)?;
            let to: Vec<_> = to.iter().map(|name| cluster.machine(name)).collect::<Result<_>>()?;
            to.iter().try_for_each(|to| from.lose(to))?;
        }
        Verb::Impair(Impair { machine, delay, jitter, loss }) => {
            let impairment = Impairment {
                delay_ms: delay.unwrap_or_default(),
                jitter_ms: jitter.unwrap_or_default(),
                loss_percent: loss.unwrap_or_default(),
            };
            open()?.machine(&machine)?.impair(impairment)?;
        }
        Verb::Hang(machines) => each(&open()?, &machines, Machine::stop_pid1)?,
        Verb::Unhang(machines) => each(&open()?, &machines, Machine::continue_pid1)?,
        Verb::Clock { machine, seconds } => open()?.machine(&machine)?.jump_clock(seconds)?,
        Verb::Starve { machine, unit } => {
            let cluster = open()?;
            let machine = cluster.machine(&machine)?;
            println!("{}", unit.map_or_else(|| machine.starve(), |unit| machine.starve_unit(&unit))?);
        }
        Verb::Fill { machine, directory } => open()?.machine(&machine)?.fill(&directory)?,
        Verb::Clear(machines) => each(&open()?, &machines, Machine::clear)?,
        Verb::Logs { machine, unit, follow } => {
            let mut arguments: Vec<String> = Vec::new();
            arguments.extend(unit.map(|unit| format!("--unit={unit}")));
            arguments.extend(follow.then(|| "--follow".to_owned()));
            return become_command(open()?.machine(&machine)?.journal_command(&arguments)?);
        }
        Verb::Ctl { arguments } => return become_command(open()?.ctl_command(&arguments)?),
        Verb::Run { command } => {
            let mut entered = open()?.network_command();
            entered.args(command);
            return become_command(entered);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn bring_up(named_dir: Option<&Path>, dir: &Path, up: &Up) -> Result<()> {
    let mut builder = Cluster::builder().backend(up.backend).machines(up.machines).dir(dir);
    if up.no_daemons {
        builder = builder.no_daemons();
    }
    if let Some(schedulers) = up.schedulers {
        builder = builder.schedulers(schedulers);
    }
    if up.schedulers_on_workers {
        builder = builder.schedulers_on_workers();
    }
    for labels in &up.labels {
        let form =
            || format!("--labels {labels}: expected MACHINE:KEY=VALUE[,KEY=VALUE…], such as m1:disk=ssd");
        let (machine, pairs) = labels.split_once(':').with_context(form)?;
        for pair in pairs.split(',') {
            let (key, value) = pair.split_once('=').with_context(form)?;
            builder = builder.label(machine, key, value);
        }
    }
    builder.up()?.detach()?;
    // As it was called, so that the lines can be pasted.
    let mut program = std::env::args().next().unwrap_or_else(|| "muster-cluster".to_owned());
    if let Some(dir) = named_dir {
        program = format!("{program} --dir {}", dir.display());
    }
    println!("The cluster is up. To talk to it, and to end it:");
    if !up.no_daemons {
        println!("  {program} ctl list-machines");
        println!("  {program} ctl start unit-examples/web.service");
    }
    println!("  {program} list");
    println!("  {program} exec m1              # a shell on a machine");
    println!("  {program} kill m1              # power off; boot, reboot, freeze, thaw, cut, heal");
    println!("  {program} down");
    Ok(())
}

/// Becomes the command: terminal, signals and exit status are its own.
fn become_command(mut command: Command) -> Result<ExitCode> {
    let error = command.exec();
    bail!("cannot run {}: {error}", command.get_program().display())
}

fn each<'c>(
    cluster: &'c Cluster,
    machines: &Machines,
    act: impl Fn(&Machine<'c>) -> Result<()>,
) -> Result<()> {
    // All names first: a wrong one must not leave half of them done.
    let machines: Vec<_> =
        machines.machines.iter().map(|name| cluster.machine(name)).collect::<Result<_>>()?;
    machines.iter().try_for_each(act)
}

fn list(cluster: &Cluster) {
    println!("{:<8} {:<16} {:<14} {:<7} {:<5} MACHINE-ID", "MACHINE", "ROLE", "ADDRESS", "POWER", "LINK");
    for machine in cluster.machines() {
        let role = match machine.role() {
            Role::Scheduler => "scheduler",
            Role::Worker => "worker",
            Role::SchedulerAndWorker => "scheduler+worker",
            Role::Etcd => "etcd",
        };
        let link = if machine.is_cut() { "cut" } else { "ok" };
        let (name, address, power) = (machine.name(), machine.address(), machine.power().to_string());
        println!("{name:<8} {role:<16} {address:<14} {power:<7} {link:<5} {}", machine.machine_id());
    }
}
