//! What the service manager is told: that the loop turns, and what it leads.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::warn;

/// How often the status line may change.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Tells the service manager, where there is one, that the leader's loop turns.
#[derive(Debug)]
pub(crate) struct Notifier {
    /// How often to pet the watchdog, and when it was last.
    watchdog: Option<(Duration, Instant)>,
    status_at: Instant,
    size: Option<(usize, usize)>,
}

impl Notifier {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        // Half of the time-out, as sd_watchdog_enabled(3) recommends.
        let watchdog = sd_notify::watchdog_enabled().map(|timeout| (timeout / 2, now));
        Self { watchdog, status_at: now, size: None }
    }

    /// How long the loop may sleep.
    pub(crate) fn next(&self) -> Duration {
        self.watchdog.map_or(Duration::MAX, |(interval, last)| interval.saturating_sub(last.elapsed()))
    }

    /// The loop has turned; `size` gives the number of machines that are up and of units that are known.
    pub(crate) fn turned(&mut self, size: impl FnOnce() -> (usize, usize)) {
        let now = Instant::now();
        if let Some((interval, last)) = &mut self.watchdog
            && now.duration_since(*last) >= *interval
        {
            tell(&[NotifyState::Watchdog]);
            *last = now;
        }
        if now.duration_since(self.status_at) >= STATUS_INTERVAL {
            self.status_at = now;
            let size = size();
            if self.size != Some(size) {
                self.size = Some(size);
                let (machines, units) = size;
                tell(&[NotifyState::Status(&format!(
                    "leading: machines up: {machines}, units known: {units}"
                ))]);
            }
        }
    }
}

/// Tells the service manager something; without one this does nothing.
pub fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify the service manager");
    }
}
