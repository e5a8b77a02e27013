//! Files that are read and written for a client.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use muster_proto::v1::from_machine::Body;
use muster_proto::{FileToWrite, v1};
use tempfile::NamedTempFile;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_blocking;

use super::{Ended, Input, Output, Said};

/// The permissions in a file's mode.
const PERMISSIONS: u32 = 0o7777;

/// Sends a regular file.
pub(super) async fn read(path: &str, output: &Output) -> Ended {
    let (file, mode) = match open(path).await {
        Ok(opened) => opened,
        Err(reason) => return Ended::Failed(format!("cannot read {path} there: {reason}")),
    };
    if output.send(Body::File(v1::FileInfo { mode })).await.is_err() {
        return Ended::Unwanted;
    }
    match output.send_all(file, Body::Data).await {
        Ok(Ok(())) => Ended::Done(0),
        Ok(Err(_)) => Ended::Unwanted,
        Err(error) => Ended::Failed(format!("cannot read {path} there: {error}")),
    }
}

async fn open(path: &str) -> Result<(File, u32), String> {
    is_absolute(path)?;
    // To open a pipe may take for ever, and a device may do anything.
    let metadata = tokio::fs::metadata(path).await.map_err(|error| error.to_string())?;
    is_regular(&metadata)?;
    let file = File::open(path).await.map_err(|error| error.to_string())?;
    Ok((file, metadata.mode() & PERMISSIONS))
}

/// Writes a regular file beside its place, and puts it there once it is whole. Nothing of it is left where it is not.
pub(super) async fn write(to_write: &FileToWrite, input: &mut Input) -> Ended {
    let path = &to_write.path;
    match try_write(to_write, input).await {
        Ok(true) => Ended::Done(0),
        Ok(false) => Ended::Unwanted,
        Err(reason) => Ended::Failed(format!("cannot write {path} there: {reason}")),
    }
}

/// Whether the input is whole.
async fn try_write(to_write: &FileToWrite, input: &mut Input) -> Result<bool, String> {
    let text = |error: io::Error| error.to_string();
    is_absolute(&to_write.path)?;
    let place = place(Path::new(&to_write.path), &to_write.name)?;
    let directory = place.parent().ok_or("it is a directory")?;
    let temporary = tempfile::Builder::new().prefix(".muster-").tempfile_in(directory).map_err(text)?;
    let mut file = File::from_std(temporary.as_file().try_clone().map_err(text)?);
    loop {
        match input.next().await {
            Said::Data(data) => file.write_all(&data).await.map_err(text)?,
            Said::End => break,
            Said::Gone => return Ok(false),
        }
    }
    file.flush().await.map_err(text)?;
    let mode = to_write.mode & PERMISSIONS;
    let put = spawn_blocking(move || put(temporary, &place, mode));
    put.await.map_err(|error| error.to_string())?.map_err(text)?;
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
