//! Files that are read and written for a client: each from a thread of its own, since a mount that hangs may hold up whatever
//! touches it, to look for a file and to close one as well, and the other streams are none the slower.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use muster_proto::v1::from_machine::Body;
use muster_proto::{FileToWrite, STREAM_PIECE, v1};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::{Ended, Gone, Input, Output, Said};

/// The permissions in a file's mode.
const PERMISSIONS: u32 = 0o7777;

/// Sends a regular file.
pub(super) async fn read(path: &str, output: &Output) -> Ended {
    let (file, output) = (path.to_owned(), output.clone());
    // Where nobody waits for it any more it ends with the next piece that it sends.
    let reading = spawn_blocking(move || try_read(&file, &output));
    match reading.await.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(Ok(())) => Ended::Done(0),
        Ok(Err(Gone)) => Ended::Unwanted,
        Err(reason) => Ended::Failed(format!("cannot read {path} there: {reason}")),
    }
}

fn try_read(path: &str, output: &Output) -> Result<Result<(), Gone>, String> {
    let text = |error: io::Error| error.to_string();
    is_absolute(path)?;
    // To open a pipe may take for ever, and a device may do anything.
    let metadata = fs::metadata(path).map_err(text)?;
    is_regular(&metadata)?;
    let mut file = File::open(path).map_err(text)?;
    let mut sent = output.send_from_thread(Body::File(v1::FileInfo { mode: metadata.mode() & PERMISSIONS }));
    let mut piece = vec![0; STREAM_PIECE];
    while sent.is_ok() {
        let length = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(text(error)),
        };
        sent = output.send_from_thread(Body::Data(prost::bytes::Bytes::copy_from_slice(&piece[..length])));
    }
    Ok(sent)
}

/// Writes a regular file beside its place, and puts it there once it is whole. Nothing of it is left where it is not.
pub(super) async fn write(to_write: &FileToWrite, input: &mut Input) -> Ended {
    let path = &to_write.path;
    let (pieces, received) = mpsc::channel(1);
    let file = to_write.clone();
    // Where nobody waits for it any more it ends as if the client had gone.
    let mut writing = spawn_blocking(move || try_write(&file, received));
    let passed = async {
        loop {
            let said = input.next().await;
            let is_last = !matches!(said, Said::Data(_));
            if pieces.send(said).await.is_err() || is_last {
                return;
            }
        }
    };
    let written = tokio::select! {
        written = &mut writing => written,
        () = passed => writing.await,
    };
    match written.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(true) => Ended::Done(0),
        Ok(false) => Ended::Unwanted,
        Err(reason) => Ended::Failed(format!("cannot write {path} there: {reason}")),
    }
}

/// Whether the input is whole.
fn try_write(to_write: &FileToWrite, mut input: mpsc::Receiver<Said>) -> Result<bool, String> {
    let text = |error: io::Error| error.to_string();
    is_absolute(&to_write.path)?;
    let place = place(Path::new(&to_write.path), &to_write.name)?;
    let directory = place.parent().ok_or("it is a directory")?;
    let mut temporary = tempfile::Builder::new().prefix(".muster-").tempfile_in(directory).map_err(text)?;
    loop {
        match input.blocking_recv() {
            Some(Said::Data(data)) => temporary.write_all(&data).map_err(text)?,
            Some(Said::End) => break,
            Some(Said::Gone) | None => return Ok(false),
        }
    }
    put(temporary, &place, to_write.mode & PERMISSIONS).map_err(text)?;
    Ok(true)
}

/// Where the file is put: in a directory under its name, and in the place of what a link leads to.
fn place(path: &Path, name: &str) -> Result<PathBuf, String> {
    let path = if path.is_dir() {
        let is_plain = Path::new(name).file_name().is_some_and(|plain| plain == name);
        if !is_plain {
            return Err(format!("it is a directory, and {name:?} is no name for a file in it"));
        }
        path.join(name)
    } else if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err("there is no such directory".to_owned());
    } else {
        path.to_owned()
    };
    if fs::symlink_metadata(&path).is_err() {
        return Ok(path);
    }
    let place = fs::canonicalize(&path).map_err(|error| error.to_string())?;
    is_regular(&fs::metadata(&place).map_err(|error| error.to_string())?)?;
    Ok(place)
}

fn put(temporary: NamedTempFile, place: &Path, mode: u32) -> io::Result<()> {
    let file = temporary.as_file();
    // What is replaced keeps its owner. (To change that takes away bits of the mode.)
    if let Ok(replaced) = fs::metadata(place) {
        fchown(file, Some(replaced.uid()), Some(replaced.gid()))?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    temporary.persist(place).map_err(|error| error.error)?;
    Ok(())
}

fn is_absolute(path: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err("an absolute path is needed".to_owned()) }
}

fn is_regular(metadata: &fs::Metadata) -> Result<(), String> {
    if metadata.is_dir() {
        return Err("it is a directory, and only regular files are copied".to_owned());
    }
    if metadata.is_file() { Ok(()) } else { Err("it is no regular file".to_owned()) }
}
