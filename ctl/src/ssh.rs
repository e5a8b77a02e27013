//! `ssh` and `fd-forward`: connections to machines through their agents.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use muster_core::command::{ClusterStatus, CopyRole};
use muster_core::ids::MachineId;
use muster_proto::{STREAM_PIECE, Work};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::arguments;
use crate::cli::{FdForwardArgs, SshArgs, SshOptions};
use crate::client::{Client, Wanted};
use crate::failure::{Exit, Failure};
use crate::machines;
use crate::output::{Machines, listed};
use crate::stream::Heard;

/// `fd-forward`: standard input and output are the connection.
///
/// # Errors
/// When the machine is not known or connected, nobody listens there, or the scheduler does not answer.
pub async fn fd_forward(client: &mut Client, args: &FdForwardArgs) -> Result<(), Failure> {
    let work = match args.to.parse() {
        Ok(port) if port > 0 => Work::Port(port),
        _ if args.to.starts_with('/') => Work::Socket(args.to.clone()),
        _ => {
            let message =
                format!("{:?} is neither a TCP port nor the absolute path of a unix socket", args.to);
            return Err(Failure::new(Exit::Usage, message));
        }
    };
    let cluster = client.cluster().await?;
    let machine = one_machine(&cluster, &args.machine)?;
    let mut stream = client.relay(machine, work).await?;
    let input = stream.input;
    let up = async {
        let mut stdin = tokio::io::stdin();
        let mut piece = vec![0; STREAM_PIECE];
        loop {
            let said = match stdin.read(&mut piece).await {
                Ok(0) | Err(_) => input.end().await,
                Ok(length) => {
                    if input.send(&piece[..length]).await.is_ok() {
                        continue;
                    }
                    Ok(())
                }
            };
            drop(said);
            // The other side may have something to say still.
            return std::future::pending::<Result<(), Failure>>().await;
        }
    };
    let down = async {
        // Not through a lock of this program: whoever runs commands holds that of standard output.
        let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
        let mut stdout = tokio::fs::File::from_std(stdout.into());
        loop {
            match stream.output.next().await? {
                Heard::Data(data) => {
                    stdout.write_all(&data).await?;
                    stdout.flush().await?;
                }
                Heard::Done(_) => return Ok(()),
                Heard::Errors(_) | Heard::File(_) => {}
            }
        }
    };
    tokio::select! {
        ended = down => ended,
        ended = up => ended,
    }
}

/// The machine that this names.
pub fn one_machine(cluster: &ClusterStatus, name: &str) -> Result<MachineId, Failure> {
    let found = machines::resolve(cluster, &[name.to_owned()])?;
    found.first().copied().ok_or_else(|| Failure::failed(format_args!("{name} names no machine")))
}

/// `ssh`: becomes the OpenSSH client.
///
/// # Errors
/// When it is not clear which machine is meant, or `ssh` cannot be run.
pub async fn ssh(client: &mut Client, args: &SshArgs, options: &SshOptions) -> Result<(), Failure> {
    let mut words = args.words.clone();
    if args.machine.is_some() && args.unit.is_some() {
        let message = "Both machine and unit flags provided, please specify only one.";
        return Err(Failure::failed(message));
    }
    let cluster = client.cluster().await?;
    let machine = match (&args.machine, &args.unit) {
        (Some(machine), _) => one_machine(&cluster, machine)?,
        (None, Some(unit)) => home(client, &cluster, unit)
            .await?
            .ok_or_else(|| Failure::new(Exit::NoSuchUnit, format_args!("Unit {unit} does not exist.")))?,
        (None, None) if words.is_empty() => {
            return Err(Failure::new(Exit::Usage, "Provide one machine or unit."));
        }
        (None, None) => {
            let target = words.remove(0);
            machine_or_unit(client, &cluster, &target).await?
        }
    };
    if words.first().is_some_and(|word| word == "--") {
        words.remove(0);
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format_args!("cannot find out which program this is: {error}")))?;
    let mut command = Command::new("ssh");
    let proxy = proxy_command(&program.to_string_lossy(), client.addresses(), machine, args.ssh_port);
    command.arg("-o").arg(format!("ProxyCommand={proxy}"));
    command.arg("-o").arg(format!("HostKeyAlias={machine}"));
    options.apply(&mut command);
    if args.forward_agent {
        command.arg("-A");
    }
    command.arg("--").arg(machine.to_string()).args(words);
    let error = command.exec();
    Err(Failure::failed(format_args!("cannot run ssh: {error}; is the OpenSSH client installed?")))
}

impl SshOptions {
    /// As options of ssh.
    fn apply(&self, command: &mut Command) {
        if let Some(name) = &self.ssh_username {
            command.arg("-l").arg(name);
        }
        if let Some(file) = &self.known_hosts_file {
            command.arg("-o").arg(format!("UserKnownHostsFile={}", file.replace('%', "%%")));
        }
        if let Some(strict) = self.strict_host_key_checking {
            command.arg("-o").arg(format!("StrictHostKeyChecking={}", if strict { "ask" } else { "no" }));
        }
    }
}

/// What the OpenSSH client runs to get a connection.
fn proxy_command(program: &str, addresses: &[String], machine: MachineId, port: u16) -> String {
    // A shell reads it, after ssh has put in what % stands for.
    let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''").replace('%', "%%"));
    let mut words = vec![quoted(program), "--endpoint".to_owned(), quoted(&addresses.join(","))];
    words.extend(["fd-forward".to_owned(), machine.to_string(), port.to_string()]);
    words.join(" ")
}

/// The machine that is meant, or the one where the unit is that is meant.
async fn machine_or_unit(
    client: &mut Client,
    cluster: &ClusterStatus,
    target: &str,
) -> Result<MachineId, Failure> {
    let machine = machines::resolve(cluster, &[target.to_owned()]);
    let unit = if arguments::names(&[target.to_owned()]).is_ok() {
        home(client, cluster, target).await
    } else {
        Ok(None)
    };
    match (machine, unit) {
        (Ok(_), Ok(Some(_)) | Err(_)) => Err(Failure::failed(format_args!(
            "ambiguous argument, both machine and unit found: {target}; give it with --machine or --unit"
        ))),
        (Ok(machines), Ok(None)) => machines
            .first()
            .copied()
            .ok_or_else(|| Failure::failed("Unable to proceed: could not find matching unit or machine")),
        (Err(_), Ok(Some(machine))) => Ok(machine),
        (Err(_), Err(failure)) => Err(failure),
        (Err(_), Ok(None)) => {
            Err(Failure::new(Exit::NoSuchUnit, "Unable to proceed: could not find matching unit or machine"))
        }
    }
}

/// The machine where that unit is; none where there is no such unit.
async fn home(
    client: &mut Client,
    cluster: &ClusterStatus,
    unit: &str,
) -> Result<Option<MachineId>, Failure> {
    let names = crate::show::names(client, &[unit.to_owned()]).await?;
    let [name] = names.as_slice() else {
        return Err(Failure::new(
            Exit::Usage,
            format_args!("{unit:?} matches {} units: give one", names.len()),
        ));
    };
    let found = client.units(Wanted { names: Some(&names), ..Wanted::default() }).await?;
    let Some(status) = found.first() else { return Ok(None) };
    let current: Vec<MachineId> =
        status.copies.iter().filter(|copy| copy.role == CopyRole::Current).map(|copy| copy.machine).collect();
    match current.as_slice() {
        [machine] => Ok(Some(*machine)),
        [] => Err(Failure::failed(format_args!("Unit {name} does not appear to be running."))),
        several => {
            let known = Machines::of(cluster);
            let several: Vec<String> = several.iter().map(|id| known.legend(*id, false)).collect();
            Err(Failure::failed(format_args!(
                "global units unsupported: {name} is on {}; name one of these",
                listed(&several)
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_runs_survives_its_shell_and_its_percent_signs() {
        let addresses = ["10.0.0.1:7400".to_owned(), "10.0.0.2:7400".to_owned()];
        let proxy = proxy_command("/opt/it's 100%/musterctl", &addresses, MachineId::new(255), 2222);
        assert_eq!(
            proxy,
            r"'/opt/it'\''s 100%%/musterctl' --endpoint '10.0.0.1:7400,10.0.0.2:7400' fd-forward 000000000000000000000000000000ff 2222"
        );
    }
}
