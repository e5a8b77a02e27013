//! Files of which nobody ever sees half.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes a file so that nobody ever sees half of it; but where the machine loses its power, on a disk, the next boot may.
///
/// # Errors
/// When it cannot be written. What was there before is there still.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = beside(path);
    fs::write(&new, content)?;
    fs::rename(&new, path)
}

/// The same of a file on a disk: after a loss of power it has this content as a whole, or what it had before. It waits for the
/// disk.
///
/// # Errors
/// As of [`replace`].
pub fn replace_on_disk(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = beside(path);
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    // Its name must not be there before what it holds.
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Where the new file is written: with no suffix that systemd looks at.
fn beside(path: &Path) -> PathBuf {
    let mut new = path.as_os_str().to_owned();
    new.push("~");
    new.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_as_a_whole_or_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        for write in [replace, replace_on_disk] {
            write(&path, b"before").expect("written");
            // What one that was interrupted has left is in nobody's way.
            fs::write(beside(&path), "half of a longer content").expect("written");
            write(&path, b"after").expect("written");
            assert_eq!(fs::read(&path).expect("read"), b"after");
            assert!(!beside(&path).exists());
            // It cannot be written: what was there stays.
            fs::create_dir(beside(&path)).expect("a directory");
            write(&path, b"never").expect_err("it cannot be written");
            assert_eq!(fs::read(&path).expect("read"), b"after");
            fs::remove_dir(beside(&path)).expect("removed");
        }
    }
}
