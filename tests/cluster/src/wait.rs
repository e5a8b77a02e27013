//! Waiting for a condition: never a plain sleep, always with a deadline, and with what was seen last in the error.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// What a look at a condition found.
pub(crate) enum Poll<T> {
    Ready(T),
    /// Not yet; and what there is instead.
    Pending(String),
}

/// Looks until the condition holds. An error from `look` is what was seen this time, and it is looked at again.
///
/// # Errors
/// The deadline passed; with what was seen last.
pub(crate) fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Poll<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let seen = match look() {
            Ok(Poll::Ready(value)) => return Ok(value),
            Ok(Poll::Pending(state)) => anyhow!("{state}"),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(
                seen.context(format!("waited {} s in vain for: {what}; last seen", limit.as_secs_f32()))
            );
        }
        thread::sleep(INTERVAL);
    }
}
