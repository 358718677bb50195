//! Coalescing: identical calls that are under way at the same time share one. (Go's `singleflight`; nginx calls it
//! `proxy_cache_lock`.)
//!
//! Not a cache: a call that begins after the last one has ended runs anew. Together with one ([`crate::cache`]) it keeps
//! a crowd from asking for the same missing entry.

use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};

use crate::deadline;
use crate::sync::{Mutex, MutexGuard, lock};

/// What the shared call ends with: its value, or the panic, which the first to come takes along.
type Ended<V> = Result<V, Arc<Mutex<Option<Box<dyn Any + Send>>>>>;
type Work<V> = Pin<Box<dyn Future<Output = Ended<V>> + Send>>;
type Entries<K, V> = HashMap<K, (u64, WeakShared<Work<V>>)>;

const SHARDS: usize = 16;

/// Shares calls by their key. Clones share the same calls.
#[derive(Debug)]
pub struct Coalesce<K, V>(Arc<Inner<K, V>>);

struct Inner<K, V> {
    /// Calls under way. They are kept by those who wait for them, not by this.
    shards: [Mutex<Entries<K, V>>; SHARDS],
    hasher: RandomState,
    capacity: usize,
    under_way: AtomicUsize,
    next: AtomicU64,
    shared: AtomicU64,
    alone: AtomicU64,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that took another's result.
    pub shared: u64,
    /// Calls that ran by themselves because too many keys were under way.
    pub alone: u64,
}

impl<K, V> Clone for Coalesce<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> std::fmt::Debug for Inner<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coalesce").field("capacity", &self.capacity).field("under_way", &self.under_way).finish()
    }
}

impl<K, V> Coalesce<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Shares calls of up to `capacity` keys at the same time; calls of further keys run by themselves.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Inner {
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
            hasher: RandomState::new(),
            capacity,
            under_way: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            shared: AtomicU64::new(0),
            alone: AtomicU64::new(0),
        }))
    }

    /// The result of `make`'s future, or of the one that is under way for an equal key. A result that can fail is shared
    /// as it is: use a `V` of `Result<_, Arc<Error>>`.
    ///
    /// The work belongs to all who wait for it and is polled in their tasks: it goes on while one of them is left, and is
    /// dropped with the last. It is under no caller's deadline: each of them waits for as long as it has time itself. What
    /// else is ambient in a task (its [`Chain`](crate::Chain), say) may change under it; take what is needed before.
    ///
    /// Cancel safe: see above.
    ///
    /// Not for the same key from within its own work: that would wait for itself.
    ///
    /// # Panics
    /// When the work panics, everybody who waits for it does; one of them with its message. The key is free again.
    pub async fn call<F, A>(&self, key: K, make: F) -> V
    where
        F: FnOnce() -> A + Send + 'static,
        A: Future<Output = V> + Send + 'static,
    {
        // The future is made outside: no code of others runs below the lock but `K`'s own.
        let work = match self.0.join(key, make) {
            Ok(work) => work,
            Err(make) => return make().await,
        };
        let panic = match work.await {
            Ok(value) => return value,
            Err(panic) => lock(&panic).take(),
        };
        match panic {
            Some(panic) => resume_unwind(panic),
            None => panic!("the shared call panicked"),
        }
    }

    /// How many keys are under way.
    pub fn under_way(&self) -> usize {
        self.0.under_way.load(Ordering::Relaxed)
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        Counts { shared: self.0.shared.load(Ordering::Relaxed), alone: self.0.alone.load(Ordering::Relaxed) }
    }
}

impl<K, V> Inner<K, V> {
    fn shard(&self, key: &K) -> MutexGuard<'_, Entries<K, V>>
    where
        K: Hash,
    {
        // What may panic below the lock is a key's own code, before anything has changed.
        lock(&self.shards[self.hasher.hash_one(key) as usize % SHARDS])
    }
}

impl<K, V> Inner<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The work of this key, begun by another or by this call; `make` is handed back if there is no room.
    fn join<F, A>(self: &Arc<Self>, key: K, make: F) -> Result<Shared<Work<V>>, F>
    where
        F: FnOnce() -> A + Send + 'static,
        A: Future<Output = V> + Send + 'static,
    {
        let mut entries = self.shard(&key);
        if let Some(work) = entries.get(&key).and_then(|(_, work)| work.upgrade()) {
            self.shared.fetch_add(1, Ordering::Relaxed);
            return Ok(work);
        }
        // A key's own code may panic: nothing has changed yet.
        let named = key.clone();
        let room = |under_way: usize| (under_way < self.capacity).then_some(under_way + 1);
        if self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            self.alone.fetch_add(1, Ordering::Relaxed);
            return Err(make);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { inner: self.clone(), key: named, id };
        let work: Work<V> = Box::pin(async move {
            // Leaves the map before anybody sees the result, and also when the work panics or is dropped.
            let _entry = entry;
            // The panic is caught here because a poisoned `Shared` does not wake those who wait for it.
            let made = deadline::cleared(async move { make().await });
            let made = AssertUnwindSafe(made).catch_unwind().await;
            made.map_err(|panic| Arc::new(Mutex::new(Some(panic))))
        });
        let work = work.shared();
        let weak = work.downgrade().expect("it has not been polled");
        entries.insert(key, (id, weak));
        Ok(work)
    }
}

/// Lives in the work, and takes its key out of the map when that ends.
struct Entry<K: Hash + Eq, V> {
    inner: Arc<Inner<K, V>>,
    key: K,
    id: u64,
}

impl<K: Hash + Eq, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        self.inner.under_way.fetch_sub(1, Ordering::Relaxed);
        let mut entries = self.inner.shard(&self.key);
        // Between the last waiter's end and this, another may have begun anew.
        if entries.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            entries.remove(&self.key);
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    type Calls = Arc<AtomicUsize>;

    const SECOND: Duration = Duration::from_secs(1);

    /// Takes a second and returns how many have begun.
    fn count(calls: &Calls) -> impl FnOnce() -> Pin<Box<dyn Future<Output = usize> + Send>> + Send + use<> {
        let calls = calls.clone();
        move || {
            let number = calls.fetch_add(1, Ordering::Relaxed) + 1;
            Box::pin(async move {
                sleep(SECOND).await;
                number
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn identical_calls_share_one_and_later_ones_run_anew() {
        let (coalesce, calls) = (Coalesce::new(10), Calls::default());
        let call = |key| coalesce.call(key, count(&calls));
        let (a, b, other) = tokio::join!(call("a"), call("a"), call("b"));
        assert_eq!((a, b, other), (1, 1, 2));
        assert_eq!(call("a").await, 3);
        assert_eq!((coalesce.under_way(), coalesce.counts()), (0, Counts { shared: 1, alone: 0 }));
    }

    #[tokio::test(start_paused = true)]
    async fn the_others_carry_on_when_the_first_gives_up() {
        let (coalesce, calls) = (Coalesce::new(10), Calls::default());
        let first = timeout(SECOND / 2, coalesce.call("a", count(&calls)));
        let (first, second, third) = tokio::join!(first, coalesce.call("a", count(&calls)), async {
            sleep(SECOND * 3 / 4).await;
            let begun = tokio::time::Instant::now();
            (coalesce.call("a", count(&calls)).await, begun.elapsed())
        });
        assert!(first.is_err());
        assert_eq!((second, third), (1, (1, SECOND / 4)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_is_dropped_with_the_last() {
        let (coalesce, alive) = (Coalesce::new(10), Arc::new(()));
        let call = || {
            let held = alive.clone();
            coalesce.call("a", move || async move {
                sleep(SECOND).await;
                drop(held);
            })
        };
        let (one, two) = tokio::join!(timeout(SECOND / 4, call()), timeout(SECOND / 2, call()));
        assert!(one.is_err() && two.is_err());
        assert_eq!((Arc::strong_count(&alive), coalesce.under_way()), (1, 0));
        assert!(coalesce.0.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
        call().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_reaches_everybody_and_frees_the_key() {
        let coalesce = Coalesce::new(10);
        let spawn = || {
            let coalesce = coalesce.clone();
            tokio::spawn(async move {
                let work = || async {
                    sleep(SECOND).await;
                    panic!("on purpose");
                };
                coalesce.call("a", work).await
            })
        };
        let tasks = [spawn(), spawn(), spawn()];
        let mut messages = Vec::new();
        for task in tasks {
            let ended = timeout(2 * SECOND, task).await.expect("nobody is left waiting");
            let panic = ended.unwrap_err().into_panic();
            messages.push(*panic.downcast_ref::<&str>().unwrap());
        }
        messages.sort_unstable();
        assert_eq!(messages, ["on purpose", "the shared call panicked", "the shared call panicked"]);
        assert_eq!((coalesce.call("a", || async { 7 }).await, coalesce.under_way()), (7, 0));

        // One that panics before it has a future is no different.
        let task = tokio::spawn({
            let coalesce = coalesce.clone();
            async move { coalesce.call("a", || -> std::future::Ready<i32> { panic!("at once") }).await }
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!((coalesce.call("a", || async { 8 }).await, coalesce.under_way()), (8, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_capacity_calls_run_by_themselves() {
        let (coalesce, calls) = (Coalesce::new(1), Calls::default());
        let call = |key| coalesce.call(key, count(&calls));
        let results = tokio::join!(call("a"), call("b"), call("b"), call("a"));
        assert_eq!(results, (1, 2, 3, 1));
        assert_eq!(coalesce.counts(), Counts { shared: 1, alone: 2 });
        assert_eq!(call("b").await, 4);
        assert_eq!(coalesce.counts().alone, 2);
    }

    /// Many threads, few keys, waits and cancellations at random: whatever happens, every key is free in the end, and no
    /// call gets another key's result.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_left_behind() {
        let coalesce = Coalesce::new(4);
        let tasks: Vec<_> = (0..200u64)
            .map(|task| {
                let coalesce = coalesce.clone();
                tokio::spawn(async move {
                    let mut random = fastrand::Rng::with_seed(task);
                    for _ in 0..50 {
                        let (key, turns, patience) = (random.u32(0..6), random.u32(0..20), random.u32(0..20));
                        let call = coalesce.call(key, move || async move {
                            for _ in 0..turns {
                                tokio::task::yield_now().await;
                            }
                            key
                        });
                        let give_up = async {
                            for _ in 0..patience {
                                tokio::task::yield_now().await;
                            }
                        };
                        tokio::select! {
                            result = call => assert_eq!(result, key),
                            () = give_up => {}
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(coalesce.under_way(), 0);
        assert!(coalesce.0.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
        assert!(coalesce.counts().shared > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_little_time_does_not_end_the_work_of_the_others() {
        let coalesce = Coalesce::<_, Result<bool, ()>>::new(1);
        let (soon, far) =
            (crate::Deadline::after(Duration::from_millis(60)), crate::Deadline::after(Duration::from_secs(5)));
        let work = || async {
            sleep(Duration::from_millis(200)).await;
            Ok(deadline::current().is_none())
        };
        let hasty = deadline::scope(soon, crate::timeout::until(soon, coalesce.call(1, work)));
        let patient = deadline::scope(far, coalesce.call(1, work));
        let (hasty, patient) = tokio::join!(hasty, patient);
        assert!(hasty.is_err());
        assert_eq!((patient, coalesce.counts().shared), (Ok(true), 1));
    }
}
