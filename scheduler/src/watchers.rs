//! Clients that watch units. Each has a set of units that it must be told of again, so one that reads slowly costs no
//! more than that set.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use muster_core::unit::UnitName;
use tokio::sync::Notify;

/// Who watches which unit.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    last: AtomicU64,
    by_unit: DashMap<UnitName, Vec<Arc<Dirty>>>,
    all: DashMap<u64, Arc<Dirty>>,
    closed: AtomicBool,
}

/// The units that one watcher must be told of.
#[derive(Debug)]
struct Dirty {
    watcher: u64,
    names: Mutex<BTreeSet<UnitName>>,
    notify: Notify,
}

/// One client that watches. It stops when this is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    watchers: Arc<Watchers>,
    names: Vec<UnitName>,
    dirty: Arc<Dirty>,
}

impl Watchers {
    /// Starts to watch these units, all of which it must be told of first.
    pub(crate) fn watch(self: &Arc<Self>, names: BTreeSet<UnitName>) -> Watcher {
        let watcher = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let list: Vec<_> = names.iter().cloned().collect();
        let dirty = Arc::new(Dirty { watcher, names: Mutex::new(names), notify: Notify::new() });
        dirty.notify.notify_one();
        for name in &list {
            self.by_unit.entry(name.clone()).or_default().push(Arc::clone(&dirty));
        }
        self.all.insert(watcher, Arc::clone(&dirty));
        Watcher { watchers: Arc::clone(self), names: list, dirty }
    }

    /// Something about these units changed.
    pub(crate) fn changed(&self, names: &[UnitName]) {
        if self.all.is_empty() {
            return;
        }
        for name in names {
            let Some(watching) = self.by_unit.get(name) else { continue };
            for dirty in watching.iter() {
                dirty.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
                dirty.notify.notify_one();
            }
        }
    }

    /// Ends all watching.
    pub(crate) fn close_all(&self) {
        self.closed.store(true, Ordering::Release);
        for dirty in &self.all {
            dirty.notify.notify_one();
        }
    }
}

impl Watcher {
    /// The units to tell of, once there are any; `None` when watching ends.
    pub(crate) async fn next(&self) -> Option<Vec<UnitName>> {
        loop {
            self.dirty.notify.notified().await;
            if self.watchers.closed.load(Ordering::Acquire) {
                return None;
            }
            let names = std::mem::take(&mut *self.dirty.names.lock().unwrap_or_else(PoisonError::into_inner));
            if !names.is_empty() {
                return Some(names.into_iter().collect());
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        for name in &self.names {
            self.watchers.by_unit.remove_if_mut(name, |_, watching| {
                watching.retain(|dirty| dirty.watcher != self.dirty.watcher);
                watching.is_empty()
            });
        }
        self.watchers.all.remove(&self.dirty.watcher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<const N: usize>(names: [&str; N]) -> Vec<UnitName> {
        names.map(|name| name.parse().expect("a name")).to_vec()
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_of_each_unit_once() {
        let watchers = Arc::new(Watchers::default());
        let watcher = watchers.watch(names(["a.service", "b.service", "c.service"]).into_iter().collect());
        assert_eq!(
            watcher.next().await,
            Some(names(["a.service", "b.service", "c.service"])),
            "all at first"
        );
        for _ in 0..1000 {
            watchers.changed(&names(["c.service", "a.service", "unwatched.service"]));
        }
        assert_eq!(watcher.next().await, Some(names(["a.service", "c.service"])));
        watchers.changed(&names(["b.service"]));
        assert_eq!(watcher.next().await, Some(names(["b.service"])));
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_watcher_that_went() {
        let watchers = Arc::new(Watchers::default());
        let first = watchers.watch(names(["a.service", "b.service"]).into_iter().collect());
        let second = watchers.watch(names(["b.service"]).into_iter().collect());
        drop(first);
        watchers.changed(&names(["a.service", "b.service"]));
        assert_eq!(second.next().await, Some(names(["b.service"])));
        drop(second);
        assert!(watchers.by_unit.is_empty() && watchers.all.is_empty());
    }

    #[tokio::test]
    async fn closing_ends_all_watching() {
        let watchers = Arc::new(Watchers::default());
        let watcher = watchers.watch(names(["a.service"]).into_iter().collect());
        watchers.close_all();
        assert_eq!(watcher.next().await, None);
        assert_eq!(watchers.watch(BTreeSet::new()).next().await, None, "one that comes later, too");
    }
}
