//! What the daemon logs, on standard error.

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;
use std::{fmt, io};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt as layer};

use crate::lines::Lines;

/// How long the end of a daemon waits for its last words to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

static LINES: OnceLock<Lines> = OnceLock::new();

/// Logs on standard error from now on: Muster's own messages from this level on, and warnings of the libraries.
///
/// Under systemd each line starts with its priority, and the journal knows the time. Nobody waits for a journal that does
/// not read: heartbeats must go on. What is lost then is counted.
///
/// # Errors
/// When the system has no room for a thread.
pub fn start(level: LevelFilter) -> io::Result<()> {
    let lines = Lines::start(io::stderr())?;
    // It is started once.
    LINES.set(lines.clone()).ok();
    let filter = Targets::new().with_target("muster", level).with_default(level.min(LevelFilter::WARN));
    let to_stderr = layer::layer().with_writer(move || lines.clone());
    if to_journal() {
        let format = WithPriority(
            Format::default().without_time().with_ansi(false).with_level(false).with_target(false),
        );
        tracing_subscriber::registry()
            .with(to_stderr.with_ansi(false).event_format(format).with_filter(filter))
            .init();
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
        tracing_subscriber::registry()
            .with(to_stderr.with_ansi(ansi).with_target(false).with_filter(filter))
            .init();
    }
    Ok(())
}

/// Waits until what was logged is written, but not for long.
pub(crate) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_WORDS);
    }
}

/// Whether standard error is the journal: systemd says which file the journal's end has, and a pipe in between is not
/// that file.
pub(crate) fn to_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr().as_fd())
        .is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// A format with the priority of `sd-daemon(3)` before each line.
struct WithPriority(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for WithPriority
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}
