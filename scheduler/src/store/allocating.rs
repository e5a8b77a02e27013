//! The file under the embedded store, which takes its room on the disk before anything is written to it.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// redb's file, but for growing: redb makes the file longer without taking room for it, and would learn of a full disk
/// in the middle of writing a commit. Here it learns when it asks for the length, with nothing written yet.
#[derive(Debug)]
pub(super) struct Allocating {
    file: File,
    backend: FileBackend,
}

impl Allocating {
    /// Opens the file, and makes it where it does not exist. Only its owner may read it.
    pub(super) fn open(path: &Path) -> Result<Self, redb::Error> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let backend = FileBackend::new(file.try_clone()?)?;
        Ok(Self { file, backend })
    }
}

impl StorageBackend for Allocating {
    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        let present = self.backend.len()?;
        if length > present {
            // The length stays as it is meanwhile: a half-made extension is one that redb cannot open.
            match fallocate(&self.file, FallocateFlags::KEEP_SIZE, present, length - present) {
                // On a file system that cannot do that, a full disk is an error whose outcome is unknown.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => {
                    // Gives back what was taken before it failed.
                    self.backend.set_len(present)?;
                    return Err(error.into());
                }
            }
        }
        self.backend.set_len(length)
    }

    fn len(&self) -> Result<u64, io::Error> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.backend.read(offset, out)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
