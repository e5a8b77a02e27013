//! Lines that are written by a thread of their own: nobody waits for whoever reads them.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

/// How many lines may wait; more are lost.
const ROOM: usize = 4096;

/// A writer of whole lines. It never blocks and never fails.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    lines: SyncSender<Line>,
    lost: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum Line {
    Text(Vec<u8>),
    /// All before it is written when this is dropped.
    Flush(SyncSender<()>),
}

impl Lines {
    /// Starts the thread, which writes to this.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub(crate) fn start(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, waiting) = mpsc::sync_channel(ROOM);
        let lost = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new().name("log".to_owned()).spawn(move || write(sink, &waiting, &counter))?;
        Ok(Self { lines, lost })
    }

    /// Waits until all is written, so long at most.
    pub(crate) fn flush(&self, patience: Duration) {
        let (done, written) = mpsc::sync_channel(0);
        if self.lines.try_send(Line::Flush(done)).is_ok() {
            // The answer is that its sender is gone.
            written.recv_timeout(patience).ok();
        }
    }
}

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Line::Text(text.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(mut sink: impl Write, lines: &Receiver<Line>, lost: &AtomicUsize) {
    for line in lines {
        // Where standard error is closed there is nobody to tell.
        let (written, done) = match line {
            Line::Text(text) => (sink.write_all(&text), None),
            Line::Flush(done) => (sink.flush(), Some(done)),
        };
        let lost = lost.swap(0, Ordering::Relaxed);
        if written.is_ok() && lost > 0 {
            writeln!(sink, "<4>{lost} lines of the log are lost: they were not read fast enough").ok();
        }
        drop(done);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    /// Takes a line whenever it is allowed to.
    struct Slow {
        allowed: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            // Once the other end is gone, all is allowed.
            self.allowed.recv().ok();
            self.written.lock().unwrap().extend(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_log_that_is_not_read_and_what_is_lost_is_counted() {
        let (allow, allowed) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut lines = Lines::start(Slow { allowed, written: Arc::clone(&written) }).unwrap();
        for number in 0..2 * ROOM {
            lines.write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        drop(allow);
        // It finds room once some lines are written.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !String::from_utf8_lossy(&written.lock().unwrap()).contains(&format!("line {}\n", ROOM - 1)) {
            assert!(Instant::now() < deadline, "nothing is written");
            thread::yield_now();
        }
        lines.flush(Duration::from_secs(60));
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let (said, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("<4>"));
        assert!(lines.len() >= ROOM, "{}", lines.len());
        for (number, line) in lines.iter().enumerate().take(ROOM) {
            assert_eq!(*line, format!("line {number}"));
        }
        let lost = said.iter().filter_map(|line| line[3..].split(' ').next()?.parse::<usize>().ok());
        assert_eq!(lost.sum::<usize>() + lines.len(), 2 * ROOM, "{said:?}");
    }
}
