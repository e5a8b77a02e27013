//! The time that the core is told.

use std::time::Duration;

use muster_core::time::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now on `CLOCK_BOOTTIME`, which runs through suspend.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
    Time::from_boot(Duration::new(seconds, nanoseconds))
}
