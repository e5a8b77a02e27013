//! `backup`, `check` and `restore`: all that is durable of a cluster, in a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use muster_backup::{Backup, BackupError, Reader, refused_files};
use tempfile::NamedTempFile;

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::style::harmless;
use crate::verify::count;

/// The name of a file that means standard output, or standard input.
const STANDARD: &str = "-";

/// `backup`. There is either a whole backup under that name afterwards, or what was there before.
///
/// # Errors
/// When the scheduler does not answer, the file cannot be written, or Ctrl-C was pressed.
pub async fn back_up(client: &mut Client, file: &str, out: &mut impl Write) -> Result<(), Failure> {
    let mut target = Target::open(file)?;
    let backup = tokio::select! {
        received = receive(client, &mut target) => received?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::new(Exit::Interrupted, "interrupted: nothing was written")),
    };
    target.finish()?;
    if file == STANDARD {
        anstream::eprintln!("Wrote {}", harmless(&description(&backup)));
        return Ok(());
    }
    Ok(writeln!(out, "Wrote {file}: {}", harmless(&description(&backup)))?)
}

/// Takes in what the scheduler sends, and sees that it is whole.
async fn receive(client: &mut Client, target: &mut Target) -> Result<Backup, Failure> {
    let mut parts = client.backup().await?;
    let mut reader = Reader::default();
    while let Some(part) = parts.next(client).await? {
        reader.push(&part).map_err(|error| received(&error))?;
        target.write(&part)?;
    }
    reader.finish().map_err(|error| received(&error))
}

fn received(error: &BackupError) -> Failure {
    Failure::failed(format_args!("what the scheduler sent cannot be used as a backup: {error}"))
}

/// `check`.
///
/// # Errors
/// When the file is no backup that can be restored, or has unit files that would be refused.
pub fn check(file: &str, out: &mut impl Write) -> Result<(), Failure> {
    let (_, backup) = read(file)?;
    let refused = refused_files(&backup.durable);
    writeln!(out, "{file}: {}", harmless(&description(&backup)))?;
    for (name, why) in &refused {
        writeln!(out, "{file}: {name}: this version of Muster would refuse its file: {}", harmless(why))?;
    }
    if refused.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

/// `restore`.
///
/// # Errors
/// When the file is no backup, the cluster is not empty, or the scheduler does not answer.
pub async fn restore(client: &mut Client, file: &str, out: &mut impl Write) -> Result<(), Failure> {
    let (bytes, backup) = read(file)?;
    for (name, why) in refused_files(&backup.durable) {
        anstream::eprintln!("{name}: this version of Muster would refuse its file: {}", harmless(&why));
    }
    client.restore(bytes).await?;
    let cluster = client.restored_cluster().await?;
    if cluster.cluster != backup.header.cluster {
        return Err(Failure::failed(format_args!(
            "the backup was restored, and the scheduler leads cluster {} now, not {}",
            cluster.cluster, backup.header.cluster
        )));
    }
    writeln!(out, "Restored {}", harmless(&description(&backup)))?;
    writeln!(out, "The scheduler leads it in term {}.", cluster.term)?;
    out.flush()?;
    anstream::eprintln!(
        "What was started after the backup runs on: `musterctl list-units --fields unit,machine,copy` shows it as orphaned \
         once its machine has reported, `musterctl destroy` ends it. What was destroyed since is there again."
    );
    Ok(())
}

/// What a backup is, in one line.
fn description(backup: &Backup) -> String {
    let (header, durable) = (&backup.header, &backup.durable);
    format!(
        "{} and {} of cluster {}, in term {}, made at {} by muster-scheduler {}",
        count(durable.units.len(), "unit"),
        count(durable.machines.len(), "machine"),
        header.cluster,
        header.term,
        header.made,
        header.version
    )
}

/// Reads a backup; gives the file as well.
fn read(file: &str) -> Result<(Vec<u8>, Backup), Failure> {
    let mut bytes = Vec::new();
    let read = if file == STANDARD {
        io::stdin().lock().read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    let failed = |why: &str| Failure::failed(format_args!("{file}: {why}"));
    read.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed("no such file"),
        _ => failed(&format!("cannot be read: {error}")),
    })?;
    let mut reader = Reader::default();
    let backup = reader.push(&bytes).and_then(|()| reader.finish());
    backup.map(|backup| (bytes, backup)).map_err(|error| failed(&error.to_string()))
}

/// Where a backup is written to.
enum Target {
    Standard(io::Stdout),
    /// Beside the file first, so that there never is half of one under its name.
    File {
        path: PathBuf,
        directory: PathBuf,
        temporary: NamedTempFile,
    },
}

impl Target {
    fn open(file: &str) -> Result<Self, Failure> {
        if file == STANDARD {
            return Ok(Self::Standard(io::stdout()));
        }
        let path = PathBuf::from(file);
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(Failure::failed(format_args!(
                "{file}: is no regular file; `-` means standard output"
            )));
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        // Only its owner may read it: unit files may hold secrets.
        let temporary = tempfile::Builder::new().prefix(".muster-backup-").tempfile_in(&directory);
        let temporary = temporary.map_err(|error| unwritten(&path, &error))?;
        Ok(Self::File { path, directory, temporary })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Standard(out) => Ok(out.write_all(bytes)?),
            Self::File { path, temporary, .. } => {
                temporary.write_all(bytes).map_err(|error| unwritten(path, &error))
            }
        }
    }

    /// All was written: it is on the disk, under its name, when this returns.
    fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Standard(mut out) => Ok(out.flush()?),
            Self::File { path, directory, temporary } => {
                let place = || -> io::Result<()> {
                    temporary.as_file().sync_all()?;
                    temporary.persist(&path)?;
                    File::open(directory)?.sync_all()
                };
                place().map_err(|error| unwritten(&path, &error))
            }
        }
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format_args!("{}: cannot be written, and is as it was: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use muster_backup::Header;
    use muster_core::ids::{ClusterId, Term};
    use muster_core::leader::{Change, Durable, StoredUnit};
    use muster_core::state::DesiredState;

    use super::*;

    fn backup(unit_file: &str) -> Vec<u8> {
        let mut durable = Durable::new(ClusterId::new(7));
        let unit = StoredUnit {
            desired: DesiredState::Inactive,
            order: 1,
            placements: [].into_iter().collect(),
            done: false,
            adopted: None,
        };
        let name = || "web.service".parse().expect("a name");
        durable.apply(Change::PutUnit(name(), unit));
        durable.apply(Change::PutFile(name(), unit_file.into()));
        let made = "2026-01-31T12:00:00Z".to_owned();
        let header = Header::new(&durable, Term(3), "0.1.0".to_owned(), made);
        let mut bytes = Vec::new();
        muster_backup::write(&header, &durable, &mut bytes).expect("written");
        bytes
    }

    #[test]
    fn what_a_check_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let good = backup("[Service]\nExecStart=/bin/true\n");
        let mut changed = good.clone();
        changed[150] ^= 1;
        let newer = String::from_utf8_lossy(&good).replacen("\"muster_backup\":1", "\"muster_backup\":2", 1);
        let cases: [(&str, &[u8]); 7] = [
            ("good", &good),
            ("refused", &backup("[Service]\nExecStart=/bin/true\n[X-Fleet]\nReplicas=2\n")),
            ("cut", &good[..good.len() - 20]),
            ("changed", &changed),
            ("newer", newer.as_bytes()),
            ("a-unit", b"[Service]\nExecStart=/bin/true\n"),
            ("empty", b""),
        ];
        let mut said = Vec::new();
        let mut check = |path: &Path| match check(&path.display().to_string(), &mut said) {
            Ok(()) => writeln!(said, "exit 0").expect("written"),
            Err(failure) => {
                writeln!(said, "{}\nexit {}", failure.message, failure.exit as u8).expect("written");
            }
        };
        for (name, bytes) in cases {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            check(&path);
        }
        check(&directory.path().join("missing"));
        let said = String::from_utf8(said).expect("text");
        let shown = said.replace(&*directory.path().display().to_string(), "/backups");
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn a_file_is_there_as_a_whole_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let name = path.display().to_string();
        std::fs::write(&path, "before").expect("written");
        let mut target = Target::open(&name).expect("open");
        target.write(b"half").expect("written");
        drop(target);
        assert_eq!(std::fs::read(&path).expect("read"), b"before");
        let mut target = Target::open(&name).expect("open");
        target.write(b"whole").expect("written");
        target.finish().expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"whole");
        assert_eq!(path.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(directory.path().read_dir().expect("read").count(), 1, "nothing is left beside it");

        let failure = |file: &str| Target::open(file).err().expect("refused").message;
        assert_eq!(failure("/dev/null"), "/dev/null: is no regular file; `-` means standard output");
        let missing = directory.path().join("missing/file").display().to_string();
        let expected = format!("{missing}: cannot be written, and is as it was: No such file or directory");
        assert!(failure(&missing).starts_with(&expected), "{}", failure(&missing));
        let mut full = Target::open(&name).expect("open");
        if let Target::File { temporary, .. } = &mut full {
            *temporary.as_file_mut() = File::options().write(true).open("/dev/full").expect("open");
        }
        let failure = full.write(b"more").expect_err("there is no room").message;
        let expected = format!("{name}: cannot be written, and is as it was: No space left on device");
        assert!(failure.starts_with(&expected), "{failure}");
    }
}
