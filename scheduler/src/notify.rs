//! What the service manager is told: that the loop turns, and what it leads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_daemon::notify::hint;
use sd_notify::NotifyState;
use tokio::time::sleep;

use crate::front::Front;

/// How often the status line may change.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Tells the service manager, where there is one, that the leader's loop turns.
#[derive(Debug)]
pub(crate) struct Notifier {
    /// How often to pet the watchdog, and when it was last.
    watchdog: Option<(Duration, Instant)>,
    /// What the status line says, and since when.
    status: Option<((usize, usize), Instant)>,
    /// Whether the status line may be out of date.
    stale: bool,
}

impl Notifier {
    pub(crate) fn new() -> Self {
        // Half of the time-out, as sd_watchdog_enabled(3) recommends.
        let watchdog = sd_notify::watchdog_enabled().map(|timeout| (timeout / 2, Instant::now()));
        Self { watchdog, status: None, stale: true }
    }

    /// How long the loop may sleep.
    pub(crate) fn next(&self) -> Duration {
        let left = |interval: Duration, since: Instant| interval.saturating_sub(since.elapsed());
        let watchdog = self.watchdog.map_or(Duration::MAX, |(interval, last)| left(interval, last));
        match self.status {
            _ if !self.stale => watchdog,
            Some((_, since)) => watchdog.min(left(STATUS_INTERVAL, since)),
            None => Duration::ZERO,
        }
    }

    /// The loop has turned; `size` gives the number of machines that are up and of units that are known.
    pub(crate) fn turned(&mut self, size: impl FnOnce() -> (usize, usize)) {
        let now = Instant::now();
        if let Some((interval, last)) = &mut self.watchdog
            && now.duration_since(*last) >= *interval
        {
            hint(&[NotifyState::Watchdog]);
            *last = now;
        }
        self.stale = self.status.is_some_and(|(_, since)| now.duration_since(since) < STATUS_INTERVAL);
        if !self.stale {
            let (machines, units) = size();
            if self.status.is_none_or(|(told, _)| told != (machines, units)) {
                let line = format!("leading: machines up: {machines}, units known: {units}");
                hint(&[NotifyState::Status(&line)]);
            }
            self.status = Some(((machines, units), now));
        }
    }
}

/// Tells the service manager that a scheduler which does not lead is alive, and whom it follows.
pub(crate) async fn while_following(front: Arc<Front>) {
    let interval = sd_notify::watchdog_enabled().map_or(Duration::from_secs(10), |timeout| timeout / 2);
    let mut told = None;
    loop {
        let status = front.status();
        if let Some(line) = &status {
            hint(&[NotifyState::Watchdog]);
            if status != told {
                hint(&[NotifyState::Status(line)]);
            }
        }
        told = status;
        sleep(interval.min(STATUS_INTERVAL)).await;
    }
}
