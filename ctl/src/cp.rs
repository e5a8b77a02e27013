//! `cp`: one regular file, to a machine or from it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use muster_core::command::ClusterStatus;
use muster_proto::{FileToWrite, STREAM_PIECE, Work};

use crate::cli::CpArgs;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::ssh::one_machine;
use crate::stream::{Heard, Input};

/// The permissions in a file's mode.
const PERMISSIONS: u32 = 0o7777;

/// `cp`.
///
/// # Errors
/// When it is not clear what is meant, a file cannot be read or written, or the machine or the scheduler is lost. Nothing
/// of the file is left then where it was to be.
pub async fn run(client: &mut Client, args: &CpArgs) -> Result<(), Failure> {
    match (side(&args.from), side(&args.to)) {
        (Side::Here(from), Side::There(machine, to)) => {
            let (file, mode, name) = open(from)?;
            let cluster = client.cluster().await?;
            put(client, &cluster, machine, FileToWrite { path: to.to_owned(), name, mode }, file).await
        }
        (Side::There(machine, from), Side::Here(to)) => {
            let cluster = client.cluster().await?;
            get(client, &cluster, machine, from, to).await
        }
        _ => Err(Failure::new(
            Exit::Usage,
            "one of the two is on a machine, as MACHINE:PATH, and the other one here (./a:b is a file here, too)",
        )),
    }
}

/// Where a file is.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Here(&'a Path),
    There(&'a str, &'a str),
}

/// As scp: what stands before the first colon is a machine, if no slash does.
fn side(argument: &str) -> Side<'_> {
    match argument.split_once(':') {
        Some((machine, path)) if !machine.contains('/') && !machine.is_empty() => Side::There(machine, path),
        _ => Side::Here(Path::new(argument)),
    }
}

fn open(path: &Path) -> Result<(File, u32, String), Failure> {
    let failure = |reason: String| Failure::failed(format_args!("cannot read {}: {reason}", path.display()));
    let metadata = fs::metadata(path).map_err(|error| failure(error.to_string()))?;
    is_regular(&metadata).map_err(failure)?;
    let file = File::open(path).map_err(|error| failure(error.to_string()))?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok((file, metadata.mode() & PERMISSIONS, name.to_owned()))
}

fn is_regular(metadata: &fs::Metadata) -> Result<(), String> {
    if metadata.is_dir() {
        return Err("it is a directory, and only regular files are copied".to_owned());
    }
    if metadata.is_file() { Ok(()) } else { Err("it is no regular file".to_owned()) }
}

async fn put(
    client: &mut Client,
    cluster: &ClusterStatus,
    machine: &str,
    to: FileToWrite,
    file: File,
) -> Result<(), Failure> {
    let machine = one_machine(cluster, machine)?;
    let mut stream = client.relay(machine, Work::WriteFile(to)).await?;
    // It says why it takes no more.
    tokio::select! {
        heard = stream.output.next() => return done(&heard?),
        sent = send(&stream.input, file) => sent?,
    }
    done(&stream.output.next().await?)
}

async fn send(input: &Input, mut file: File) -> Result<(), Failure> {
    let mut piece = vec![0; STREAM_PIECE];
    loop {
        let length = match file.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|error| Failure::failed(format_args!("cannot read the file: {error}")))?,
        };
        let sent = if length == 0 { input.end().await } else { input.send(&piece[..length]).await };
        if length == 0 || sent.is_err() {
            return Ok(());
        }
    }
}

fn done(heard: &Heard) -> Result<(), Failure> {
    match heard {
        Heard::Done(0) => Ok(()),
        _ => Err(Failure::failed("the machine's agent says something else than what became of the file")),
    }
}

async fn get(
    client: &mut Client,
    cluster: &ClusterStatus,
    machine: &str,
    from: &str,
    to: &Path,
) -> Result<(), Failure> {
    let machine = one_machine(cluster, machine)?;
    let failure = |reason: String| Failure::failed(format_args!("cannot write {}: {reason}", to.display()));
    let place = place(to, from).map_err(failure)?;
    let directory = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut stream = client.relay(machine, Work::ReadFile(from.to_owned())).await?;
    let temporary = tempfile::Builder::new().prefix(".muster-").tempfile_in(directory);
    let mut temporary = temporary.map_err(|error| failure(error.to_string()))?;
    let mut mode = None;
    loop {
        match stream.output.next().await? {
            Heard::File(permissions) => mode = Some(permissions & PERMISSIONS),
            Heard::Data(data) => {
                temporary.write_all(&data).map_err(|error| failure(error.to_string()))?;
            }
            Heard::Done(0) => break,
            heard => return done(&heard),
        }
    }
    let file = temporary.as_file();
    if let Some(mode) = mode {
        file.set_permissions(Permissions::from_mode(mode)).map_err(|error| failure(error.to_string()))?;
    }
    file.sync_all().map_err(|error| failure(error.to_string()))?;
    temporary.persist(&place).map_err(|error| failure(error.error.to_string()))?;
    Ok(())
}

/// Where the file is put: in a directory under its name, and in the place of what a link leads to.
fn place(to: &Path, from: &str) -> Result<PathBuf, String> {
    let path = if to.is_dir() {
        to.join(Path::new(from).file_name().ok_or("the file has no name")?)
    } else {
        to.to_owned()
    };
    if fs::symlink_metadata(&path).is_err() {
        return Ok(path);
    }
    let place = fs::canonicalize(&path).map_err(|error| error.to_string())?;
    is_regular(&fs::metadata(&place).map_err(|error| error.to_string())?)?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_stands_before_a_colon() {
        let here = |argument| Side::Here(Path::new(argument));
        for argument in ["a", "./a:b", "/a:b", ":a", "-"] {
            assert_eq!(side(argument), here(argument), "{argument}");
        }
        assert_eq!(side("1234abcd:/etc/x:y"), Side::There("1234abcd", "/etc/x:y"));
        assert_eq!(side("1234abcd:"), Side::There("1234abcd", ""));
    }
}
