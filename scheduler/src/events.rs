//! The events of this scheduler: a bounded ring in memory, which clients and the journal read at their own pace. Who is
//! slower than what happens is told how much it has missed, and holds up nobody.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use muster_core::ids::Term;
use muster_core::leader::{Event, EventFilter, EventNumber, EventRecord, Severity};
use muster_daemon::clock;
use muster_daemon::journal::{Journal, Priority};
use tokio::sync::watch;
use tracing::{Level, debug, enabled, error, info, warn};

/// How many events are kept, and of about how many bytes. The newest is kept in any case.
const KEPT_EVENTS: usize = 10_000;
const KEPT_BYTES: usize = 16 * 1024 * 1024;

/// How many events a reader takes at once.
const BATCH: usize = 500;

/// How many units and machines an entry of the journal names each: it must fit into one datagram.
const JOURNAL_NAMES: usize = 300;

/// What happened, the newest of it.
#[derive(Debug)]
pub(crate) struct Events {
    term: Term,
    ring: Mutex<Ring>,
    news: watch::Sender<News>,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Kept>,
    weight: usize,
    last: u64,
}

/// One event that is kept.
#[derive(Clone, Debug)]
struct Kept {
    sequence: u64,
    at_ms: u64,
    event: Arc<Event>,
}

/// What readers wait for.
#[derive(Clone, Copy, Debug)]
struct News {
    last: u64,
    /// Whether clients are served.
    serving: bool,
    /// Whether more events may come.
    leading: bool,
}

/// Somebody who reads on as events come.
#[derive(Debug)]
pub(crate) struct Follower {
    events: Arc<Events>,
    /// The sequence number that was read last.
    read: u64,
    news: watch::Receiver<News>,
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) struct Batch {
    /// How many events before these it has missed.
    pub(crate) missed: u64,
    events: Vec<Kept>,
}

impl Events {
    /// No events yet of a scheduler that takes office in this term.
    pub(crate) fn new(term: Term) -> Arc<Self> {
        let (news, _) = watch::channel(News { last: 0, serving: true, leading: true });
        Arc::new(Self { term, ring: Mutex::default(), news })
    }

    /// These happened now.
    pub(crate) fn push(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let at_ms = clock::wall_ms();
        let mut ring = self.ring();
        for event in events {
            ring.push(at_ms, event, KEPT_EVENTS, KEPT_BYTES);
        }
        let last = ring.last;
        drop(ring);
        self.news.send_modify(|news| news.last = last);
    }

    /// The kept events that come after that one, or all of them. One of another scheduler comes before all of them.
    pub(crate) fn recall(self: &Arc<Self>, after: Option<EventNumber>) -> (Batch, Follower) {
        let news = self.news.subscribe();
        // What is wanted of them is found out while others may use the ring.
        let kept: Vec<Kept> = self.ring().kept.iter().cloned().collect();
        let read = after.filter(|after| after.term == self.term).map(|after| after.sequence);
        let last = kept.last().map_or(0, |kept| kept.sequence);
        let first = kept.first().map_or(last + 1, |kept| kept.sequence);
        let missed = read.map_or(0, |read| first.saturating_sub(read.saturating_add(1)));
        let events = kept.into_iter().filter(|kept| read.is_none_or(|read| kept.sequence > read)).collect();
        let follower = Follower { events: Arc::clone(self), read: last, news };
        (Batch { missed, events }, follower)
    }

    /// Ends the reading of clients.
    pub(crate) fn stop_serving(&self) {
        self.news.send_modify(|news| news.serving = false);
    }

    /// Nothing more will happen.
    pub(crate) fn close(&self) {
        self.news.send_modify(|news| news.leading = false);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, kept: &Kept) -> EventRecord {
        kept.event.record(EventNumber { term: self.term, sequence: kept.sequence }, kept.at_ms)
    }
}

impl Ring {
    fn push(&mut self, at_ms: u64, event: Event, most: usize, most_bytes: usize) {
        self.last += 1;
        self.weight += event.weight();
        self.kept.push_back(Kept { sequence: self.last, at_ms, event: Arc::new(event) });
        while self.kept.len() > most || (self.weight > most_bytes && self.kept.len() > 1) {
            let Some(old) = self.kept.pop_front() else { break };
            self.weight -= old.event.weight();
        }
    }
}

impl Follower {
    /// What has happened since, up to a bound; empty when all of it was read.
    fn take(&mut self) -> Batch {
        let ring = self.events.ring();
        let first = ring.kept.front().map_or(ring.last + 1, |kept| kept.sequence);
        let missed = first.saturating_sub(self.read + 1);
        self.read += missed;
        let skip = usize::try_from(self.read + 1 - first).unwrap_or(usize::MAX);
        let events: Vec<Kept> = ring.kept.iter().skip(skip).take(BATCH).cloned().collect();
        drop(ring);
        self.read += events.len() as u64;
        Batch { missed, events }
    }

    /// What happens next; `None` when the scheduler stops.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        self.next_while(|news| news.serving).await
    }

    async fn next_while(&mut self, goes_on: impl Fn(&News) -> bool) -> Option<Batch> {
        loop {
            let news = *self.news.borrow_and_update();
            if news.last > self.read {
                return Some(self.take());
            }
            if !goes_on(&news) || self.news.changed().await.is_err() {
                return None;
            }
        }
    }
}

impl Batch {
    /// Those of them that are wanted, and of these at most so many, the newest.
    pub(crate) fn records(&self, events: &Events, filter: &EventFilter, most: usize) -> Vec<EventRecord> {
        let wanted: Vec<&Kept> =
            self.events.iter().rev().filter(|kept| filter.wants(&kept.event)).take(most).collect();
        wanted.into_iter().rev().map(|kept| events.record(kept)).collect()
    }
}

/// Writes all events to the journal, in a thread of its own: a journal that is slow holds up no leader. Ends after
/// [`Events::close`].
pub(crate) fn start_journal(events: &Arc<Events>) -> io::Result<JoinHandle<()>> {
    let mut follower = Follower { events: Arc::clone(events), read: 0, news: events.news.subscribe() };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let journal = Journal::open("muster-scheduler");
    thread::Builder::new().name("journal".to_owned()).spawn(move || {
        while let Some(batch) = runtime.block_on(follower.next_while(|news| news.leading)) {
            if batch.missed > 0 {
                warn!(missed = batch.missed, "the journal is too slow: some events are not in it");
            }
            for kept in &batch.events {
                log(journal.as_ref(), &kept.event);
            }
        }
    })
}

/// As an entry with fields where there is a journal, else as a line.
fn log(journal: Option<&Journal>, event: &Event) {
    let (wanted, priority) = match event.severity() {
        Severity::Info => (enabled!(Level::INFO), Priority::Info),
        Severity::Warning => (enabled!(Level::WARN), Priority::Warning),
        Severity::Error => (enabled!(Level::ERROR), Priority::Error),
    };
    if !wanted {
        return;
    }
    let Some(journal) = journal else { return log_line(event) };
    let (kind, epoch, reason, machines) = (event.kind(), event.epoch(), event.reason(), event.machines());
    let mut fields: Vec<(&str, &dyn Display)> = vec![("MUSTER_EVENT", &kind)];
    fields.extend(event.units().iter().take(JOURNAL_NAMES).map(|unit| ("MUSTER_UNIT", unit as &dyn Display)));
    fields.extend(machines.iter().take(JOURNAL_NAMES).map(|id| ("MUSTER_MACHINE", id as &dyn Display)));
    fields.extend(epoch.iter().map(|epoch| ("MUSTER_EPOCH", epoch as &dyn Display)));
    fields.extend(reason.iter().map(|reason| ("MUSTER_REASON", reason as &dyn Display)));
    if let Err(error) = journal.send(priority, &event.to_string(), &fields) {
        debug!(%error, "the journal takes no entry");
        log_line(event);
    }
}

fn log_line(event: &Event) {
    match event.severity() {
        Severity::Info => info!("{event}"),
        Severity::Warning => warn!("{event}"),
        Severity::Error => error!("{event}"),
    }
}

#[cfg(test)]
mod tests {
    use muster_core::ids::MachineId;

    use super::*;

    /// One that can be told from others.
    fn event(number: u128) -> Event {
        Event::MachineLeaves(MachineId::new(number << 96))
    }

    fn numbers(events: &Events, batch: &Batch) -> Vec<u64> {
        let all = batch.records(events, &EventFilter::default(), usize::MAX);
        all.iter().map(|record| record.number.sequence).collect()
    }

    fn many(events: &Events, count: usize) {
        (0..count as u128).for_each(|number| events.push(vec![event(number)]));
    }

    #[test]
    fn the_ring_is_bounded_by_number_and_by_weight() {
        let mut ring = Ring::default();
        let weight = event(1).weight();
        (1..=10).for_each(|number| ring.push(0, event(number), 4, usize::MAX));
        assert_eq!(ring.kept.iter().map(|kept| kept.sequence).collect::<Vec<_>>(), [7, 8, 9, 10]);
        assert_eq!(ring.weight, 4 * weight);
        ring.push(0, event(11), 4, 2 * weight);
        assert_eq!(ring.kept.len(), 2);
        ring.push(0, event(12), 4, 1);
        assert_eq!(ring.kept.iter().map(|kept| kept.sequence).collect::<Vec<_>>(), [12], "the newest stays");
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_how_much_it_has_missed() {
        let events = Events::new(Term(3));
        many(&events, 2);
        let (batch, mut follower) = events.recall(None);
        assert_eq!((batch.missed, numbers(&events, &batch)), (0, vec![1, 2]));
        many(&events, KEPT_EVENTS + 5);
        let batch = follower.next().await.expect("events");
        assert_eq!(batch.missed, 5);
        assert_eq!(numbers(&events, &batch), (8..8 + BATCH as u64).collect::<Vec<_>>());
        let batch = follower.next().await.expect("events");
        assert_eq!(
            (batch.missed, numbers(&events, &batch)[0]),
            (0, 8 + BATCH as u64),
            "in order from there on"
        );
    }

    #[tokio::test]
    async fn a_reader_goes_on_where_it_was() {
        let events = Events::new(Term(3));
        many(&events, 5);
        let after = |term, sequence| {
            let (batch, _) = events.recall(Some(EventNumber { term: Term(term), sequence }));
            (batch.missed, numbers(&events, &batch))
        };
        assert_eq!(after(3, 3), (0, vec![4, 5]));
        assert_eq!(after(3, 5), (0, vec![]));
        assert_eq!(after(2, 700), (0, vec![1, 2, 3, 4, 5]), "that was another scheduler's");
        many(&events, KEPT_EVENTS);
        assert_eq!(after(3, 3).0, 2);
        assert_eq!(after(3, u64::MAX).1, [0; 0]);
    }

    #[tokio::test]
    async fn the_newest_of_those_that_are_wanted_are_given_in_order() {
        let events = Events::new(Term(3));
        many(&events, 4);
        events.push(vec![event(1), event(2)]);
        let (batch, _) = events.recall(None);
        let filter = EventFilter { machines: [MachineId::new(1 << 96)].into(), ..Default::default() };
        let sequences = |filter, most| {
            let records = batch.records(&events, filter, most);
            records.into_iter().map(|record| record.number.sequence).collect::<Vec<_>>()
        };
        assert_eq!(sequences(&filter, 9), [2, 5]);
        assert_eq!(sequences(&filter, 1), [5]);
        assert_eq!(sequences(&EventFilter::default(), 3), [4, 5, 6]);
    }

    #[tokio::test]
    async fn clients_end_before_the_journal() {
        let events = Events::new(Term(3));
        let (_, mut client) = events.recall(None);
        let (_, mut journal) = events.recall(None);
        events.stop_serving();
        assert!(client.next().await.is_none());
        events.push(vec![event(1)]);
        let last = journal.next_while(|news| news.leading).await.expect("the last events");
        assert_eq!(numbers(&events, &last), [1]);
        events.close();
        assert!(journal.next_while(|news| news.leading).await.is_none());
    }
}
