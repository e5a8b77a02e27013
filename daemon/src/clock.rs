//! The time that the core is told.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_core::time::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now on `CLOCK_BOOTTIME`, which runs through suspend.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
    Time::from_boot(Duration::new(seconds, nanoseconds))
}

/// What the wall clock says, in ms of Unix time: for people to read, never to decide by.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
