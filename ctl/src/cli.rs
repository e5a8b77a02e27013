//! The command line.

use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::engine::ArgValueCompleter as Completer;

use crate::complete::{Machines, Units};
use crate::fleetctl::{FieldParser, FleetFlags};
use crate::output::listing::{MACHINE_FIELDS, TMACHINE, UNIT_FIELDS, UNIT_FILE_FIELDS};

/// Talks to a Muster cluster: hands it units, starts and stops them, shows where they run.
#[derive(Debug, Parser)]
#[command(
    name = "musterctl",
    version = concat!("version ", env!("CARGO_PKG_VERSION")),
    before_help = concat!("musterctl version ", env!("CARGO_PKG_VERSION")),
    disable_version_flag = true,
    infer_subcommands = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = AFTER_HELP,
)]
pub struct Cli {
    /// Where the schedulers are: HOST:PORT, several with commas between them (`musterctl --help` says where that is looked
    /// for without this)
    #[arg(long, global = true, value_name = "ADDR,…", help_heading = "Global options")]
    pub endpoint: Option<String>,

    #[command(flatten)]
    pub ssh: SshOptions,

    #[command(flatten)]
    pub fleet: FleetFlags,

    /// Print version
    #[arg(long, short = 'V', short_alias = 'v', action = ArgAction::Version)]
    version: (),

    /// What to do.
    #[command(subcommand)]
    pub command: Sub,
}

/// What the OpenSSH client is told: fleetctl's global flags. `musterctl ssh --help` describes them.
#[derive(Clone, Debug, Default, Args)]
pub struct SshOptions {
    /// As whom to log in
    #[arg(long, global = true, hide = true, value_name = "NAME")]
    pub ssh_username: Option<String>,
    /// The file with the keys of hosts
    #[arg(long, global = true, hide = true, value_name = "FILE")]
    pub known_hosts_file: Option<String>,
    /// Whether a host whose key is not known is asked about, or just connected to
    #[arg(long, global = true, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub strict_host_key_checking: Option<bool>,
}

const AFTER_HELP: &str = "\
A command may be shortened as long as it is the only one that starts so: `musterctl list-m`.

Where UNIT is asked for:
  web.service           a unit; `web` means the same
  units/web.service     a unit file, to submit, load and start
  web@1                 an instance: of web@.service in the cluster, or here
  'web@*'               every unit of the cluster that matches (quoted, or the shell takes it);
                        left out: templates where instances are meant, and inactive units
                        for stop and restart

Where MACHINE is asked for:
  1234abcd              its id, or the first digits of that, at least 4
  198.18.0.101          its address
  1234abcd.../198.18.0.101
                        both, as lists show it

Where the schedulers are, the first that says so counts:
  --endpoint ADDR,ADDR,…
  MUSTERCTL_ENDPOINT in the environment, the same
  FLEETCTL_ENDPOINT, the same; with it fleetctl's other variables count as its flags do
  endpoint = [\"ADDR\", \"ADDR\"] in ~/.config/muster/ctl.toml; one alone without brackets
  endpoint = [\"ADDR\", \"ADDR\"] in /etc/muster/ctl.toml
  127.0.0.1:7400
They are tried in turn. One that does not lead says who does, which is asked then.

Exit codes:
  0    done
  1    the command failed; verify: a file has an error; check: a backup cannot be used
  2    the command line or the configuration file is wrong
  3    status: a unit is not active
  4    there is no such unit, or none that a glob matches
  69   no scheduler can be reached, or none leads
  130  interrupted while waiting; the command stands
ssh exits as the command there does.";

/// What the fields of lists mean, in the order of their names.
const UNIT_FIELDS_MEAN: [&str; UNIT_FIELDS.len()] = [
    "Its name",
    "Where the copy is",
    "Its state as systemd reports it, in one word",
    "The same more closely",
    "Whether systemd could read its file",
    "Of the file as it was submitted",
    "The machine's address",
    "current: as was decided; stopping: an older one; orphaned: one that the cluster has no record of",
    "Which placement of the unit it is, as TERM.COUNTER: a later one is larger",
    "How far its agent is with it: loaded, starting, launched, start-failed, failed, stopping, refused",
    "Why it is not as it should be, in the machine's words",
];
const UNIT_FILE_FIELDS_MEAN: [&str; UNIT_FILE_FIELDS.len()] = [
    "Its name",
    "Of the file as it was submitted",
    "What was asked for: inactive, loaded, launched",
    "How far it is, in the same words",
    "The machine where it is placed",
    "Description= in its file",
    "Whether it runs on every machine that takes it",
    "Why it is on no machine, and what machines have against it",
];
const MACHINE_FIELDS_MEAN: [&str; MACHINE_FIELDS.len()] = [
    "Its id",
    "Its address",
    "Its labels",
    "up, degraded (systemd does not answer there), awaited (by a new scheduler), unreachable",
    "How many units are placed there, or are being stopped",
    "CPUs set aside for units, of those that it has",
    "Memory set aside for units, of what it has",
    "Of its agent",
    "open, cordoned, draining, drained, shutting down",
    "How long ago its agent was last heard",
    "How much of the last 10 s something waited for CPU, memory or disk there",
    "Another machine that claims its id, and was refused",
    "Of a lost machine: whether its host answers all the same",
    "Where the brake holds its units there: for how long it has been on",
];

fn fields<const N: usize>(names: [&'static str; N], mean: [&'static str; N]) -> FieldParser {
    let described = names.into_iter().zip(mean).map(|(name, means)| PossibleValue::new(name).help(means));
    // fleetctl's older name of `target` is taken, and not told.
    let older = names.contains(&"target").then(|| PossibleValue::new(TMACHINE).hide(true));
    FieldParser::new(described.chain(older))
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Sub {
    /// Make units known to the cluster, without starting them
    #[command(
        after_help = "Examples:\n  musterctl submit web.service\n  musterctl submit units/*.service\n  \
                            musterctl submit --replace web@.service"
    )]
    Submit(SubmitArgs),

    /// Submit units and place them on machines, without starting them
    #[command(after_help = "Examples:\n  musterctl load web.service\n  musterctl load --no-block web@{1..3}")]
    Load(PlaceArgs),

    /// Submit units, place them on machines and start them
    #[command(after_help = "Examples:\n  musterctl start web.service\n  musterctl start web@{1..3}\n  \
                            musterctl start --replace units/web.service\n  musterctl start --timeout 30 'web@*'")]
    Start(PlaceArgs),

    /// Stop units; they stay on their machines
    #[command(after_help = "Examples:\n  musterctl stop web.service\n  musterctl stop 'web@*'")]
    Stop(ActArgs),

    /// Stop units and take them off their machines; they stay known
    #[command(
        after_help = "Examples:\n  musterctl unload web.service\n  musterctl unload --no-block 'web@*'"
    )]
    Unload(ActArgs),

    /// Stop units, take them off their machines and forget them
    #[command(after_help = "Examples:\n  musterctl destroy web.service\n  musterctl destroy 'web@*'")]
    Destroy(ActArgs),

    /// Stop units and start them again, on the machines where they are
    #[command(after_help = "Examples:\n  musterctl restart web.service\n  musterctl restart 'web@*'")]
    Restart(ActArgs),

    /// Take over units that a machine runs under plain systemd, without a restart
    ///
    /// The unit's file there, with its drop-ins merged into it, becomes the cluster's, and the unit runs on under the same
    /// process: it is placed on that machine, and moves elsewhere when that one fails, as any other. The machine's own files
    /// and what enables them are moved to /var/lib/muster/adopted, so that a reboot does not start them; `release` puts them
    /// back. Several units cost one daemon-reload. The command may be repeated.
    #[command(
        after_help = "Examples:\n  musterctl adopt 1234abcd web.service\n  musterctl adopt 198.18.0.101 db cache"
    )]
    Adopt(AdoptArgs),

    /// Hand adopted units back to their machine, where they run on, and forget them
    ///
    /// The machine's own files are put back, with what enabled them, and the unit runs on under the same process. It must be
    /// on the machine that it was adopted from.
    #[command(after_help = "Example:\n  musterctl release web.service")]
    Release(ActArgs),

    /// Show a unit's file, byte for byte as it was submitted
    #[command(after_help = "Example:\n  musterctl cat web.service")]
    Cat(CatArgs),

    /// Show what is known of units: where they run, how they are, why they wait
    ///
    /// And what the systemd of their machines says of them, as `systemctl status` there does, with the newest lines of the
    /// journal; of a machine that does not answer within 2 s it is said why not. Exits with 0 when all of them are active,
    /// with 3 when one is not, with 4 when one is not known.
    #[command(after_help = "Examples:\n  musterctl status web.service\n  musterctl status -o json 'web@*'")]
    Status(StatusArgs),

    /// Show what a unit has written to the journal, on whichever machines it is or was
    ///
    /// Each machine's agent runs journalctl there: neither ssh nor a key is needed. Without `--machine` it is read on all
    /// machines where the unit is or was, as far as the scheduler remembers, where it is now last; of several each line begins
    /// with the machine. One that is not connected is left out, and named on standard error. With --follow it goes on until
    /// Ctrl-C. Exits with 4 when there is no such unit.
    #[command(after_help = "Examples:\n  musterctl journal web.service\n  musterctl journal -f web\n  \
                            musterctl journal -n 1000 --machine 1234abcd web\n  \
                            musterctl journal --since '1 hour ago' -o json web")]
    Journal(JournalArgs),

    /// Log in to a machine, or run a command there, with ssh through the machine's agent
    ///
    /// Runs the OpenSSH client, which needs no way to the machine: the connection goes through the scheduler and the agent to
    /// the machine's own sshd. Host keys are known by machine ids, whatever the addresses are. Exits as ssh does: with the
    /// command's exit status, with 255 when ssh itself fails.
    #[command(
        after_help = "Before or after `ssh`, also:\n  --ssh-username NAME                as whom to log in [default: OpenSSH's]\n  \
                            --known-hosts-file FILE            the file with the keys of hosts [default: OpenSSH's]\n  \
                            --strict-host-key-checking=BOOL    true: ask about a host whose key is not known; false: connect\n  \
                                                                  [default: OpenSSH's]\n\n\
                            Examples:\n  musterctl ssh 1234abcd\n  musterctl ssh web.service -- systemctl status web\n  \
                            musterctl --ssh-username core ssh -A --machine 1234abcd uptime"
    )]
    Ssh(SshArgs),

    /// Connect standard input and output to a TCP port or a unix socket of a machine
    ///
    /// The port is one of the machine's loopback address. The connection goes through the scheduler and the machine's agent.
    #[command(
        after_help = "Examples:\n  musterctl fd-forward 1234abcd 8080\n  musterctl fd-forward 1234abcd /run/app.sock\n  \
                            ssh -o ProxyCommand='musterctl fd-forward 1234abcd %p' 1234abcd"
    )]
    FdForward(FdForwardArgs),

    /// Copy a file to a machine, or from it
    ///
    /// One regular file, with its permissions. It is written beside its place and put there once it is whole: when that fails,
    /// nothing has changed. What belonged to somebody keeps its owner; new files there are root's.
    #[command(
        after_help = "Examples:\n  musterctl cp app.conf 1234abcd:/etc/app.conf\n  musterctl cp 1234abcd:/var/log/app.log ."
    )]
    Cp(CpArgs),

    /// Tell a unit's story: how it is, why it is where it is, what happened to it, and why it waits
    ///
    /// The scheduler remembers the newest 10,000 events since it started; all are in its machine's journal. Exits with 4
    /// when nothing is known of a unit.
    #[command(after_help = "Example:\n  musterctl explain web.service")]
    Explain(StatusArgs),

    /// Show what happened: what was decided and why, what clients asked for, what became of machines and units
    ///
    /// The scheduler remembers the newest 10,000 since it started. All are in its machine's journal, with the fields
    /// `MUSTER_EVENT`, `MUSTER_UNIT`, `MUSTER_MACHINE`, `MUSTER_EPOCH` and `MUSTER_REASON`: `journalctl -u muster-scheduler
    /// MUSTER_UNIT=web.service`.
    #[command(
        after_help = "Examples:\n  musterctl events\n  musterctl events -f\n  musterctl events -n 1000 'web@*' 1234abcd\n  \
                            musterctl events -f -o json"
    )]
    Events(EventsArgs),

    /// Show how long it takes at worst from the loss of a unit's machine until the unit is started elsewhere
    #[command(after_help = "Examples:\n  musterctl rto web.service\n  musterctl rto -o json '*'")]
    Rto(StatusArgs),

    /// List the copies of units on machines, with their states as systemd reports them
    #[command(
        after_help = "Examples:\n  musterctl list-units\n  musterctl list-units --fields unit,machine --no-legend\n  \
                            musterctl list-units -o json"
    )]
    ListUnits(ListUnitsArgs),

    /// List the units that the cluster knows, with what was asked for and where they are placed
    #[command(
        after_help = "Examples:\n  musterctl list-unit-files\n  musterctl list-unit-files --fields unit,dstate,desc"
    )]
    ListUnitFiles(ListUnitFilesArgs),

    /// List the machines of the cluster
    ///
    /// Machines that are lost are listed only where the field `state` is: with `--fields` or `-o json`. Notes on those that
    /// are lost or take no units, and on the brake, go to standard error.
    #[command(
        after_help = "Examples:\n  musterctl list-machines\n  musterctl list-machines --full --fields machine,state,units\n  \
                            musterctl list-machines -o json"
    )]
    ListMachines(ListMachinesArgs),

    /// Give machines no new units; those that they have stay
    #[command(
        after_help = "Examples:\n  musterctl cordon 1234abcd\n  musterctl cordon 198.18.0.101 198.18.0.102"
    )]
    Cordon(MachinesArgs),

    /// Give machines units again, after `cordon` or `drain`
    #[command(after_help = "Example:\n  musterctl uncordon 1234abcd")]
    Uncordon(MachinesArgs),

    /// Change the metadata of a machine, which units ask for with `MachineMetadata=`
    ///
    /// It counts more than what the machine's agent is configured with (`labels` in `agent.toml`), at once, and until it is
    /// changed again: restarts of the machine and of schedulers make no difference. A unit that asks for what the machine has
    /// no more is stopped there, and placed elsewhere where it fits; nothing else moves.
    ///
    /// With several schedulers, wait until all of them are upgraded to a version that has this command: one that does not know
    /// what is written here ends, until it is upgraded, too.
    #[command(
        after_help = "Examples:\n  musterctl metadata 1234abcd disk=ssd zone=a\n  musterctl metadata 198.18.0.101 disk-"
    )]
    Metadata(MetadataArgs),

    /// Empty machines: their units are placed on others, and stop here once they are active there
    ///
    /// Waits until the machines themselves say that nothing is left, and says what it waits for. What fits nowhere else
    /// runs on, and is named when the time has passed. Global units are stopped last, exclusive ones before they are started
    /// elsewhere. The machines take no units until `uncordon`, which also ends the drain.
    #[command(
        after_help = "Examples:\n  musterctl drain 1234abcd\n  musterctl drain --timeout 60 --max-parallel 5 198.18.0.101"
    )]
    Drain(DrainArgs),

    /// Release the brake, which holds units where they are when many machines seem to have died at once
    ///
    /// The scheduler moves nothing then, since it is more likely that it is cut off itself. Released by hand, or after
    /// `brake_hold`, or when the machines are back, the units of machines that are still lost are placed elsewhere. One that
    /// sees no machine but its own waits for a release by hand. Be sure that the machines are dead: what they run still
    /// runs twice then, but for exclusive units.
    #[command(after_help = "Example:\n  musterctl brake release")]
    Brake {
        /// What to do with it
        action: BrakeAction,
    },

    /// List the schedulers: which of them leads, and how their store is
    ///
    /// Asks each scheduler itself: those that are given, and those that these know of. So it works when none leads, too.
    /// BEHIND is how many entries of the store's log a scheduler has not applied yet. Exits with 69 when none answers.
    #[command(after_help = "Examples:\n  musterctl schedulers\n  musterctl schedulers -o json\n  \
                            musterctl schedulers --endpoint 198.18.0.21,198.18.0.22")]
    Schedulers(SchedulersArgs),

    /// Have the scheduler that leads make room for another one, and wait until that leads
    ///
    /// For work on its machine. Units run on; nothing is placed or moved for the moment that it takes. Needs a store that
    /// several schedulers share.
    #[command(after_help = "Example:\n  musterctl step-down")]
    StepDown,

    /// Write all that the cluster knows to a file: units, machines, what was decided of them
    ///
    /// The file holds what is durable, at one moment: units with their files, which may hold secrets, where they are placed,
    /// machines. It is lines of JSON, the first of which says what it is. How units are at the moment, and events, are not
    /// in it.
    #[command(
        after_help = "Examples:\n  musterctl backup cluster.backup\n  musterctl backup \"/backups/$(date +%F)\"\n  \
                            musterctl backup - | ssh elsewhere 'cat >cluster.backup'"
    )]
    Backup(BackupArgs),

    /// Check a backup here, without a cluster, and say what is in it
    ///
    /// Exits with 1 when it is no backup, is cut off or damaged, was written by a later version, or has unit files that
    /// this version would refuse.
    #[command(after_help = "Example:\n  musterctl check cluster.backup")]
    Check(BackupFileArgs),

    /// Put a backup in the place of an empty cluster
    ///
    /// The cluster is the one that was backed up from then on: its machines, which a scheduler of another cluster refuses,
    /// report to it, and what they run runs on, without a restart. What was started after the backup is shown as orphaned,
    /// and runs on until it is destroyed; what was destroyed since is there again. Refused when the cluster has units or has
    /// ever seen a machine. So a cluster is moved to another store too: docs/backup.md says how.
    #[command(
        after_help = "Examples:\n  musterctl restore cluster.backup\n  ssh elsewhere cat cluster.backup | musterctl restore -"
    )]
    Restore(BackupFileArgs),

    /// Take units and their desired states over from a fleet that runs
    ///
    /// Reads all units by fleet's API and asks for them here: all are submitted, then those that are loaded or launched there are
    /// loaded or started. Nothing is changed in fleet, and no state here is ever lowered, so that it may be done again. Does not
    /// wait. Both would run the units then: docs/from-fleet.md says how to change over. What is known here with the same
    /// settings stays as it is.
    #[command(after_help = "Examples:\n  musterctl import-fleet --dry-run unix:///var/run/fleet.sock\n  \
                            musterctl import-fleet --skip-refused http://198.18.0.101:49153")]
    ImportFleet(ImportArgs),

    /// Check unit files here, without a cluster
    ///
    /// Says what the scheduler would refuse (errors) and what systemd would ignore (warnings), with the lines. Exits
    /// with 1 when there is an error.
    #[command(after_help = "Example:\n  musterctl verify units/*.service")]
    Verify(VerifyArgs),

    /// Print what a shell needs so that the Tab key completes commands, flags, and names of units and machines
    ///
    /// The names are those that the cluster has at that moment. Where it does not answer within a second, there are none. Load it
    /// anew in every shell, as the examples do: it belongs to this version. (In bash it takes `@` out of `COMP_WORDBREAKS`, so
    /// that `web@1` is one word.)
    #[command(
        after_help = "Examples:\n  source <(musterctl completions bash)                # in ~/.bashrc\n  \
                            source <(musterctl completions zsh)                 # in ~/.zshrc, after compinit\n  \
                            musterctl completions fish | source                 # in ~/.config/fish/config.fish"
    )]
    Completions {
        /// For which shell
        shell: Shell,
    },

    /// Show the version of musterctl
    #[command(after_help = "Example:\n  musterctl version")]
    Version,
}

/// Arguments of `adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The machine that runs them: its id, the first digits of that (at least 4), its address, or both as lists show it
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Units that systemd runs there
    #[arg(required = true, value_name = "UNIT")]
    pub units: Vec<String>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Shells that can be told what there is to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// The Z shell
    Zsh,
    /// fish
    Fish,
}

/// Arguments of `cordon` and `uncordon`.
#[derive(Debug, Args)]
pub struct MachinesArgs {
    /// Machines: ids, the first digits of ids (at least 4), addresses, or both as lists show them
    #[arg(required = true, value_name = "MACHINE", add = Completer::new(Machines))]
    pub machines: Vec<String>,
}

/// Arguments of `metadata`.
#[derive(Debug, Args)]
pub struct MetadataArgs {
    /// A machine: its id, the first digits of that (at least 4), its address, or both as lists show them
    #[arg(value_name = "MACHINE", add = Completer::new(Machines))]
    pub machine: String,
    /// What it is to have (KEY=VALUE), and what it is not to have any more (KEY-)
    #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = edit)]
    pub edits: Vec<(String, Option<String>)>,
}

/// One change of a machine's metadata.
fn edit(text: &str) -> Result<(String, Option<String>), String> {
    if let Some((key, value)) = text.split_once('=') {
        return Ok((key.to_owned(), Some(value.to_owned())));
    }
    let key = text.strip_suffix('-').ok_or("KEY=VALUE is expected, or KEY- for what is to go")?;
    Ok((key.to_owned(), None))
}

/// Arguments of `drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Machines: ids, the first digits of ids (at least 4), addresses, or both as lists show them
    #[arg(required = true, value_name = "MACHINE", add = Completer::new(Machines))]
    pub machines: Vec<String>,
    /// After so long in all, stop units here that are not active elsewhere yet, move the others without waiting, and fail
    /// if something is left; the same command again, while the drain goes on, gives no more time
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Move at most so many units at once [default: all]
    #[arg(long, value_name = "UNITS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_parallel: Option<u32>,
    /// Return when the command is accepted, without waiting until the machines are empty
    #[arg(long)]
    pub no_block: bool,
}

/// What can be done with the brake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BrakeAction {
    /// The machines are really dead: place their units elsewhere
    Release,
}

/// Arguments of `submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// Unit files, or instances of templates
    #[arg(required = true, value_name = "UNIT", add = Completer::new(Units::OrFiles))]
    pub units: Vec<String>,
    /// Give a unit that is known with other content the content of the file here
    #[arg(long)]
    pub replace: bool,
    /// Refused: units are not signed
    #[arg(long, hide = true)]
    pub sign: bool,
}

/// Arguments of `load` and `start`.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// Unit files, known units, instances of templates, or globs
    #[arg(required = true, value_name = "UNIT", add = Completer::new(Units::OrFiles))]
    pub units: Vec<String>,
    /// Give a unit that is known with other content the content of the file here
    #[arg(long)]
    pub replace: bool,
    /// Refused: units are not signed
    #[arg(long, hide = true)]
    pub sign: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Arguments of the commands that take known units only.
#[derive(Debug, Args)]
pub struct ActArgs {
    /// Known units, or globs
    #[arg(required = true, value_name = "UNIT", add = Completer::new(Units::Known))]
    pub units: Vec<String>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArgs {
    /// Return when the command is accepted, without waiting until the units are there
    #[arg(long)]
    pub no_block: bool,
    /// Wait at most so long, then fail; the command stands [default: as long as it takes]
    #[arg(long, value_name = "SECS", conflicts_with = "no_block", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub timeout: Option<u64>,
    /// Wait at most N times 2 s, as fleetctl; 0: as long as it takes
    #[arg(long, value_name = "N", conflicts_with = "timeout", value_parser = clap::value_parser!(u64).range(0..=15_768_000))]
    pub block_attempts: Option<u64>,
}

impl WaitArgs {
    /// For how long to wait; `None` for as long as it takes.
    pub fn limit(self) -> Option<Duration> {
        let attempts = self.block_attempts.filter(|attempts| *attempts > 0);
        self.timeout.or(attempts.map(|attempts| attempts * BLOCK_ATTEMPT_S)).map(Duration::from_secs)
    }
}

/// How long fleetctl looks whether a unit is there, each time.
const BLOCK_ATTEMPT_S: u64 = 2;

/// Arguments of `cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// A known unit
    #[arg(value_name = "UNIT", add = Completer::new(Units::Known))]
    pub unit: String,
}

/// Arguments of `journal`.
#[derive(Debug, Args)]
pub struct JournalArgs {
    /// A unit
    #[arg(value_name = "UNIT", add = Completer::new(Units::Known))]
    pub unit: String,
    /// Go on with what is written from now on
    #[arg(long, short, alias = "f")]
    pub follow: bool,
    /// Show the newest LINES, of each machine [default: 10, with --since all]
    #[arg(long, short = 'n', value_name = "LINES")]
    pub lines: Option<u32>,
    /// Show nothing older than this, as journalctl reads it
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// How to print, as journalctl does
    #[arg(long, short, value_name = "MODE", default_value = "short")]
    pub output: String,
    /// On this machine only, whether the unit is known to have been there or not
    #[arg(long, value_name = "MACHINE", add = Completer::new(Machines))]
    pub machine: Option<String>,
    /// Without effect: the machine's agent may read all there is
    #[arg(long)]
    pub sudo: bool,
}

/// Arguments of `ssh`.
#[derive(Debug, Args)]
pub struct SshArgs {
    /// A machine, or a unit that is on one; with --machine or --unit the command begins here
    #[arg(value_name = "MACHINE|UNIT] [--] [COMMAND", trailing_var_arg = true, allow_hyphen_values = true,
          add = Completer::new(Units::OrMachines))]
    pub words: Vec<String>,
    /// The machine
    #[arg(long, value_name = "MACHINE", add = Completer::new(Machines))]
    pub machine: Option<String>,
    /// A unit that is on the machine
    #[arg(long, value_name = "UNIT", add = Completer::new(Units::Known))]
    pub unit: Option<String>,
    /// Forward the connection to the ssh-agent here
    #[arg(long, short = 'A', alias = "A")]
    pub forward_agent: bool,
    /// The port of the machine's sshd
    #[arg(long, value_name = "PORT", default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..))]
    pub ssh_port: u16,
}

/// Arguments of `fd-forward`.
#[derive(Debug, Args)]
pub struct FdForwardArgs {
    /// The machine
    #[arg(value_name = "MACHINE", add = Completer::new(Machines))]
    pub machine: String,
    /// The TCP port, or the absolute path of the unix socket
    #[arg(value_name = "PORT|SOCKET")]
    pub to: String,
}

/// Arguments of `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// The file: MACHINE:PATH, or one here
    #[arg(value_name = "SRC")]
    pub from: String,
    /// Where to: MACHINE:PATH, or here; into it where it is a directory
    #[arg(value_name = "DST")]
    pub to: String,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Units, known or not, globs, or machines, named as for `drain` [default: all events]
    #[arg(value_name = "UNIT|MACHINE", add = Completer::new(Units::OrMachines))]
    pub about: Vec<String>,
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub follow: bool,
    /// Of what has happened show the newest LINES [default: 100, with --follow 10]
    #[arg(long, short = 'n', value_name = "LINES")]
    pub lines: Option<u32>,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = EventOutput::Text)]
    pub output: EventOutput,
}

/// How to print events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventOutput {
    /// For people: a line each, in local time
    Text,
    /// For programs: an object on a line each
    Json,
}

/// Arguments of `status`, `explain` and `rto`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Known units, or globs
    #[arg(required = true, value_name = "UNIT", add = Completer::new(Units::Known))]
    pub units: Vec<String>,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How a list is shown.
#[derive(Clone, Copy, Debug, Args)]
pub struct ListArgs {
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Whole ids and hashes
    #[arg(long, short = 'l', alias = "l")]
    pub full: bool,
    /// No headings
    #[arg(long)]
    pub no_legend: bool,
}

/// Arguments of `list-units`.
#[derive(Debug, Args)]
pub struct ListUnitsArgs {
    #[command(flatten)]
    pub list: ListArgs,
    /// What to show, in this order [default: unit,machine,active,sub]
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',', value_parser = fields(UNIT_FIELDS, UNIT_FIELDS_MEAN))]
    pub fields: Vec<String>,
}

/// Arguments of `list-unit-files`.
#[derive(Debug, Args)]
pub struct ListUnitFilesArgs {
    #[command(flatten)]
    pub list: ListArgs,
    /// What to show, in this order [default: unit,hash,dstate,state,target]
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',', value_parser = fields(UNIT_FILE_FIELDS, UNIT_FILE_FIELDS_MEAN))]
    pub fields: Vec<String>,
}

/// Arguments of `list-machines`.
#[derive(Debug, Args)]
pub struct ListMachinesArgs {
    #[command(flatten)]
    pub list: ListArgs,
    /// What to show, in this order [default: machine,ip,metadata]
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',', value_parser = fields(MACHINE_FIELDS, MACHINE_FIELDS_MEAN))]
    pub fields: Vec<String>,
}

/// Arguments of `schedulers`.
#[derive(Debug, Args)]
pub struct SchedulersArgs {
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where to; a file that is there is replaced, once the new one is whole. `-` is standard output
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: String,
}

/// Arguments of `check` and `restore`.
#[derive(Debug, Args)]
pub struct BackupFileArgs {
    /// The backup; `-` is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: String,
}

/// Arguments of `import-fleet`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Where fleet's API is, as fleetctl's `--endpoint`: `http://HOST:PORT` or `unix:///PATH` (`--endpoint` is where Muster's
    /// schedulers are, here too)
    #[arg(value_name = "URL")]
    pub url: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Give units that are known here with other content the content that they have in fleet
    #[arg(long)]
    pub replace: bool,
    /// Leave out units that Muster does not take, for example for an option that fleet ignored
    #[arg(long)]
    pub skip_refused: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Unit files
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<String>,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs: an array of objects
    Json,
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_of_every_command() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut all = command.render_long_help().to_string();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let help = sub.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{} has no example", sub.get_name());
            let _ = write!(all, "\n---- {} ----\n{help}", sub.get_name());
        }
        insta::assert_snapshot!(all.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }

    fn error(line: &str) -> String {
        let error = Cli::try_parse_from(line.split(' ')).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        error.render().to_string()
    }

    #[test]
    fn commands_may_be_shortened() {
        let cli = Cli::try_parse_from(["musterctl", "list-m", "--endpoint", "h:1"]).expect("understood");
        assert!(matches!(cli.command, Sub::ListMachines(_)));
        assert_eq!(cli.endpoint.as_deref(), Some("h:1"));
        assert!(Cli::try_parse_from(["musterctl", "list-", "x"]).is_err());
    }

    #[test]
    fn block_attempts() {
        let limit = |line: &str| match Cli::try_parse_from(line.split(' ')).expect("understood").command {
            Sub::Start(args) => args.wait.limit(),
            other => panic!("{other:?}"),
        };
        assert_eq!(limit("musterctl start --block-attempts=5 web"), Some(Duration::from_secs(10)));
        assert_eq!(limit("musterctl start --block-attempts 0 web"), None);
        assert_eq!(limit("musterctl start --timeout 7 web"), Some(Duration::from_secs(7)));
        // As in fleetctl, which does not wait then.
        assert!(
            Cli::try_parse_from(["musterctl", "start", "--no-block", "--block-attempts=5", "web"]).is_ok()
        );
    }

    #[test]
    fn fleetctl_says_the_version_so() {
        for flag in ["--version", "-V", "-v"] {
            let text = Cli::try_parse_from(["musterctl", flag]).expect_err("it is said").to_string();
            assert_eq!(text, concat!("musterctl version ", env!("CARGO_PKG_VERSION"), "\n"));
        }
    }

    #[test]
    fn mistakes_get_suggestions() {
        let lines = [
            "musterctl strat web",
            "musterctl start --no-bock web",
            "musterctl start",
            "musterctl start --no-block --timeout 3 web",
            "musterctl list-units --fields unit,machin",
            "musterctl list-units --fields=",
            "musterctl list-unit-files --fields unit,nothing-like-it",
            "musterctl rest web",
            "musterctl start --block-attempts 3 --timeout 5 web",
            "musterctl start --block-attemps 3 web",
            "musterctl list-units -o jsn",
        ];
        let errors: Vec<String> = lines.iter().map(|line| format!("$ {line}\n{}", error(line))).collect();
        insta::assert_snapshot!(errors.join("\n"));
    }
}
