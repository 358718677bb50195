//! Who follows the registry, and which revision each of them acts on.
//!
//! A stream that broke is not yet a subscriber that is gone: it still acts on what it had, and most come back at once.
//! So it is waited for a little longer; and so is everybody after our own start, when nobody has come back yet.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_types::Revision;
use tokio::sync::watch;
use tokio::time::Instant;

/// The live subscribers; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Subscribers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    live: Mutex<BTreeMap<String, Follower>>,
    streams: AtomicU64,
    changed: watch::Sender<()>,
    started: Instant,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            live: Mutex::default(),
            streams: AtomicU64::new(0),
            changed: watch::Sender::default(),
            started: Instant::now(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Follower {
    /// Tells a stream from an earlier one of the same name.
    stream: u64,
    acknowledged: Option<Revision>,
    /// When its stream broke.
    gone: Option<Instant>,
}

/// Longer than a subscriber takes to come back.
const LINGER: Duration = Duration::from_secs(5);
/// Stands for whoever has not come back yet since our own start.
const UNKNOWN: &str = "(control has just started: who followed it may still come back)";
/// The most streams that are open at once.
const LIMIT: usize = 10_000;

impl Subscribers {
    /// A stream begins; it counts as live until the subscription is dropped. `None` when there are too many.
    pub fn open(&self, name: &str) -> Option<Subscription> {
        let mut live = self.live();
        purge(&mut live, Instant::now());
        if live.len() >= LIMIT && !live.contains_key(name) {
            return None;
        }
        let stream = self.shared.streams.fetch_add(1, Ordering::Relaxed);
        live.insert(name.to_owned(), Follower { stream, acknowledged: None, gone: None });
        drop(live);
        self.shared.changed.send_replace(());
        Some(Subscription { subscribers: self.clone(), name: name.to_owned(), stream })
    }

    /// A subscriber acts on `revision`. Says whether it is known.
    pub fn acknowledge(&self, name: &str, revision: Revision) -> bool {
        let known = match self.live().get_mut(name) {
            Some(follower) => {
                follower.acknowledged = follower.acknowledged.max(Some(revision));
                true
            }
            None => false,
        };
        self.shared.changed.send_replace(());
        known
    }

    /// A subscriber acts on nothing any more: it is waited for no longer.
    pub fn leave(&self, name: &str) {
        self.live().remove(name);
        self.shared.changed.send_replace(());
    }

    /// Every live subscriber and the revision that it acts on.
    pub fn list(&self) -> Vec<(String, Option<Revision>)> {
        let live = self.live();
        let open = live.iter().filter(|(_, follower)| follower.gone.is_none());
        open.map(|(name, follower)| (name.clone(), follower.acknowledged)).collect()
    }

    /// Waits until every live subscriber has acknowledged `revision`, at most for `timeout`; names those who have not.
    pub async fn applied(&self, revision: Revision, timeout: Duration) -> Vec<String> {
        let end = Instant::now() + timeout;
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let now = Instant::now();
            let (laggards, look_again) = self.laggards(revision, now);
            if now >= end || laggards.is_empty() {
                return laggards;
            }
            let look_again = look_again.unwrap_or(end).min(end);
            // The sender is ours: it cannot be gone.
            let _ = tokio::time::timeout_at(look_again, changed.changed()).await;
        }
    }

    /// Who is behind, and when the answer may change by itself.
    fn laggards(&self, revision: Revision, now: Instant) -> (Vec<String>, Option<Instant>) {
        let mut live = self.live();
        purge(&mut live, now);
        let behind = |follower: &Follower| follower.acknowledged.is_none_or(|acknowledged| acknowledged < revision);
        let laggards = live.iter().filter(|(_, follower)| behind(follower));
        let returns = laggards.clone().filter_map(|(_, follower)| follower.gone.map(|gone| gone + LINGER)).min();
        let young = Some(self.shared.started + LINGER).filter(|end| *end > now);
        let mut names: Vec<String> = laggards.map(|(name, _)| name.clone()).collect();
        if young.is_some() {
            names.push(UNKNOWN.to_owned());
        }
        (names, returns.into_iter().chain(young).min())
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Follower>> {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets those who have been gone for long enough.
fn purge(live: &mut BTreeMap<String, Follower>, now: Instant) {
    live.retain(|_, follower| follower.gone.is_none_or(|gone| gone + LINGER > now));
}

/// One open stream.
#[derive(Debug)]
pub struct Subscription {
    subscribers: Subscribers,
    name: String,
    stream: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(follower) = self.subscribers.live().get_mut(&self.name)
            && follower.stream == self.stream
        {
            follower.gone = Some(Instant::now());
        }
        self.subscribers.shared.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_applied_when_all_who_live_have_said_so() {
        let subscribers = Subscribers::default();
        let five = Duration::from_secs(5);
        let started = Instant::now();
        assert!(subscribers.applied(Revision(9), 2 * five).await.is_empty(), "nobody follows");
        assert_eq!(started.elapsed(), LINGER, "but somebody might have come back");
        let young = Subscribers::default();
        assert_eq!(young.applied(Revision(9), Duration::from_secs(1)).await, [UNKNOWN]);
        let a = subscribers.open("a").unwrap();
        let b = subscribers.open("b").unwrap();
        assert!(subscribers.acknowledge("a", Revision(9)));
        assert!(!subscribers.acknowledge("c", Revision(9)));
        assert_eq!(subscribers.applied(Revision(9), five).await, ["b"]);
        let waiting = tokio::spawn({
            let subscribers = subscribers.clone();
            async move { subscribers.applied(Revision(9), 2 * five).await }
        });
        tokio::task::yield_now().await;
        let broke = Instant::now();
        drop(b);
        assert!(waiting.await.unwrap().is_empty());
        assert_eq!(broke.elapsed(), LINGER, "a broken stream may come back");
        // A newer stream of the same name is not ended by the older one's end.
        let again = subscribers.open("a").unwrap();
        drop(a);
        assert_eq!(subscribers.list(), [("a".to_owned(), None)]);
        drop(again);
        assert!(subscribers.list().is_empty());
    }
}
