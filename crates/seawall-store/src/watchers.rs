//! Who waits for which keys: an index, so that a commit wakes those whose keys it touches, and nobody else.
//!
//! A waiter that has not been touched has missed nothing, however far the history has moved on.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use seawall_types::Revision;
use tokio::sync::Notify;

use crate::{Event, Keys};

/// One cursor, as the writer sees it.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    /// The first revision that touched its keys since it last read; 0 for none. Written under the view's write lock,
    /// taken under its read lock, so it agrees with the history; the ordering is the lock's.
    touched: AtomicU64,
    wake: Notify,
}

impl Waiter {
    pub(crate) fn touched(&self) -> Option<Revision> {
        Some(Revision(self.touched.load(Ordering::Relaxed))).filter(|revision| revision.0 != 0)
    }

    /// It has read everything up to now.
    pub(crate) fn has_read(&self) {
        self.touched.store(0, Ordering::Relaxed);
    }

    /// Wakes it, now or when it next waits.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Cancel safe.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Whether this was the first touch since it last read: then it has to be woken.
    fn touch(&self, revision: Revision) -> bool {
        self.touched.compare_exchange(0, revision.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Names a waiter, until it is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WaiterId(u64);

#[derive(Debug, Default)]
pub(crate) struct Watchers {
    index: Mutex<Index>,
    closed: AtomicBool,
}

/// In the order of their names, which only grow. Most keys have one waiter.
type Group = Vec<(WaiterId, Arc<Waiter>)>;

#[derive(Debug, Default)]
struct Index {
    last: u64,
    /// By exact key.
    one: HashMap<Arc<str>, Group>,
    /// By length, so that a key is looked up once for every length that anybody waits for.
    prefixes: BTreeMap<usize, HashMap<Arc<str>, Group>>,
}

impl Watchers {
    /// Adds a waiter. It counts as touched by `unread`, if given: the past that it still has to read.
    pub(crate) fn add(&self, keys: &Keys, unread: Option<Revision>) -> (WaiterId, Arc<Waiter>) {
        let waiter = Arc::new(Waiter::default());
        if let Some(revision) = unread {
            waiter.touch(revision);
        }
        let mut index = self.index();
        index.last += 1;
        let id = WaiterId(index.last);
        let group = match keys {
            Keys::One(key) => index.one.entry(key.clone()),
            Keys::Prefix(prefix) => index.prefixes.entry(prefix.len()).or_default().entry(prefix.clone()),
        };
        group.or_insert_with(|| Vec::with_capacity(1)).push((id, waiter.clone()));
        (id, waiter)
    }

    /// Takes a waiter out again; its keys are those that it came with.
    pub(crate) fn forget(&self, keys: &Keys, id: WaiterId) {
        let mut index = self.index();
        match keys {
            Keys::One(key) => leave(&mut index.one, key, id),
            Keys::Prefix(prefix) => {
                let Some(of_length) = index.prefixes.get_mut(&prefix.len()) else { return };
                leave(of_length, prefix, id);
                if of_length.is_empty() {
                    index.prefixes.remove(&prefix.len());
                }
            }
        }
    }

    /// Marks everybody whose keys these events touch, and adds to `wake` who has to be woken once the readers' lock is free.
    pub(crate) fn touch<'a>(&self, events: impl Iterator<Item = &'a Event>, wake: &mut Vec<Arc<Waiter>>) {
        let index = self.index();
        for Event { revision, key, .. } in events {
            let prefixes = index.prefixes.range(..=key.len());
            let groups = prefixes.filter_map(|(length, of_length)| of_length.get(key.get(..*length)?));
            for group in groups.chain(index.one.get(&**key)) {
                wake.extend(group.iter().map(|(_, waiter)| waiter).filter(|waiter| waiter.touch(*revision)).cloned());
            }
        }
    }

    /// Marks everybody: what happened since `revision` is not known in full.
    pub(crate) fn touch_all(&self, revision: Revision, wake: &mut Vec<Arc<Waiter>>) {
        wake.extend(self.index().waiters().filter(|waiter| waiter.touch(revision)).cloned());
    }

    /// Nothing will happen any more: wakes everybody.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.index().waiters().for_each(|waiter| waiter.wake());
    }

    pub(crate) fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn waiters(&self) -> impl Iterator<Item = &Arc<Waiter>> {
        let groups = self.one.values().chain(self.prefixes.values().flat_map(HashMap::values));
        groups.flatten().map(|(_, waiter)| waiter)
    }
}

fn leave(groups: &mut HashMap<Arc<str>, Group>, keys: &str, id: WaiterId) {
    let Some(group) = groups.get_mut(keys) else { return };
    if let Ok(at) = group.binary_search_by_key(&id, |(id, _)| *id) {
        group.remove(at);
    }
    if group.is_empty() {
        groups.remove(keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(watchers: &Watchers, key: &str, revision: u64) -> usize {
        let mut wake = Vec::new();
        let event = Event { revision: Revision(revision), key: key.into(), entry: None };
        watchers.touch([&event].into_iter(), &mut wake);
        wake.len()
    }

    #[test]
    fn a_key_touches_those_who_wait_for_it_or_for_a_prefix_of_it() {
        let watchers = Watchers::default();
        let all = [
            Keys::One("a/b".into()),
            Keys::One("a/b".into()),
            Keys::Prefix("".into()),
            Keys::Prefix("a/".into()),
            Keys::Prefix("a/é".into()),
            Keys::Prefix("b/".into()),
        ];
        let waiters: Vec<_> = all.iter().map(|keys| watchers.add(keys, None)).collect();
        assert_eq!(touched(&watchers, "a/b", 5), 4);
        assert_eq!(touched(&watchers, "a/b", 6), 0, "they are being woken already");
        let marks = || waiters.iter().map(|(_, w)| w.touched().map_or(0, |r| r.0)).collect::<Vec<_>>();
        assert_eq!(marks(), [5, 5, 5, 5, 0, 0]);
        waiters.iter().for_each(|(_, waiter)| waiter.has_read());
        // A length that falls within a character of the key is no prefix of it.
        assert_eq!(touched(&watchers, "a/éé", 7), 3);
        assert_eq!(touched(&watchers, "a/ü", 8), 0);
        assert_eq!(marks(), [0, 0, 7, 7, 7, 0]);
        let mut wake = Vec::new();
        watchers.touch_all(Revision(9), &mut wake);
        assert_eq!(wake.len(), 3);
        for (keys, (id, _)) in all.iter().zip(&waiters) {
            watchers.forget(keys, *id);
        }
        let index = watchers.index();
        assert_eq!(index.one.len() + index.prefixes.len(), 0, "nothing is left of them");
    }
}
