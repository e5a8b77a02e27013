//! Counts writes to files.

use std::fs;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// Prints `ready`, and then how many times a file under these directories was written, made, moved or removed within so
/// many seconds.
pub fn count(seconds: u64, directories: &[PathBuf]) -> Result<()> {
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let mut watched = directories.to_vec();
    while let Some(directory) = watched.pop() {
        let flags = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO;
        inotify::add_watch(&events, &directory, flags).with_context(|| directory.display().to_string())?;
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                watched.push(path);
            }
        }
    }
    println!("ready");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut count = 0_u64;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
        if poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&left))? == 0 {
            break;
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&events, &mut buffer);
        loop {
            match reader.next() {
                Ok(_) => count += 1,
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error).context("inotify"),
            }
        }
    }
    println!("{count}");
    Ok(())
}
