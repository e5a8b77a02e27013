//! What the service manager is told.

use std::time::{Duration, Instant};

use muster_daemon::notify::hint;
use sd_notify::NotifyState;

/// Tells the service manager, where there is one, that the agent's loop turns.
#[derive(Debug)]
pub(crate) struct Watchdog {
    /// How often to pet it, and when it was last.
    interval: Option<(Duration, Instant)>,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        // Half of the time-out, as sd_watchdog_enabled(3) recommends.
        Self { interval: sd_notify::watchdog_enabled().map(|timeout| (timeout / 2, Instant::now())) }
    }

    /// How long the loop may sleep.
    pub(crate) fn next(&self) -> Duration {
        self.interval.map_or(Duration::MAX, |(interval, last)| interval.saturating_sub(last.elapsed()))
    }

    /// The loop has turned.
    pub(crate) fn turned(&mut self) {
        if let Some((interval, last)) = &mut self.interval
            && last.elapsed() >= *interval
        {
            *last = Instant::now();
            hint(&[NotifyState::Watchdog]);
        }
    }
}
