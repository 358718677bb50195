//! A place for a cache of results: a hook, not a cache of Seawall's own.
//!
//! [`Cache`] is what a cache has to offer; implement it for moka's or any other. [`cached`] asks it before a call;
//! [`cached_or_stale`] also falls back on an entry that has expired when the call fails (`stale-if-error`, RFC 5861).
//! [`Bounded`] is a small one for those who have none: bounded, with a time to live, and evicting by CLOCK (Corbató,
//! 1968), which comes near to least-recently-used at the price of one flag.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use crate::sync::{Mutex, MutexGuard, lock};
use crate::{Clock, Tick};

/// A cache, as far as calls are concerned. The methods run in the midst of a call: they have to be quick, and must not
/// block. Values are cloned on the way out, so let them be cheap to clone (`Arc`, `Bytes`).
///
/// For moka's synchronous cache `get` and `put` are its `get` and `insert`; it keeps nothing that is stale.
pub trait Cache<K, V> {
    /// The value, if there is one that is fresh.
    fn get(&self, key: &K) -> Option<V>;

    /// Keeps a value; a later [`Cache::get`] may return it, or not.
    fn put(&self, key: K, value: V);

    /// The value, fresh or not, for the case that there is nothing better.
    fn stale(&self, _key: &K) -> Option<V> {
        None
    }
}

impl<K, V, C: Cache<K, V> + ?Sized> Cache<K, V> for std::sync::Arc<C> {
    fn get(&self, key: &K) -> Option<V> {
        (**self).get(key)
    }

    fn put(&self, key: K, value: V) {
        (**self).put(key, value);
    }

    fn stale(&self, key: &K) -> Option<V> {
        (**self).stale(key)
    }
}

/// The cached value, or that of `call`, which is kept if `should_store` agrees. Errors are never kept. `call` is not
/// polled when there is a cached value. Cancel safe.
///
/// # Errors
/// Those of `call`.
pub async fn cached<K, V, E, C>(
    cache: &C,
    key: K,
    should_store: impl Fn(&V) -> bool,
    call: impl Future<Output = Result<V, E>>,
) -> Result<V, E>
where
    C: Cache<K, V> + ?Sized,
    V: Clone,
{
    if let Some(value) = cache.get(&key) {
        return Ok(value);
    }
    let value = call.await?;
    if should_store(&value) {
        cache.put(key, value.clone());
    }
    Ok(value)
}

/// A value, and whether it is as good as a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served<V> {
    /// The call's own, or a cached one that has not expired.
    Fresh(V),
    /// One that has expired, because the call has failed.
    Stale(V),
}

impl<V> Served<V> {
    /// The value.
    pub fn into_inner(self) -> V {
        match self {
            Self::Fresh(value) | Self::Stale(value) => value,
        }
    }

    /// Whether it has expired.
    pub const fn is_stale(&self) -> bool {
        matches!(self, Self::Stale(_))
    }
}

/// As [`cached`]; and when the call fails with an error for which `excuses` is true, an expired value instead of it, if
/// there is one. Cancel safe.
///
/// # Errors
/// Those of `call`, where there is no value, or no excuse.
pub async fn cached_or_stale<K, V, E, C>(
    cache: &C,
    key: K,
    should_store: impl Fn(&V) -> bool,
    excuses: impl FnOnce(&E) -> bool,
    call: impl Future<Output = Result<V, E>>,
) -> Result<Served<V>, E>
where
    C: Cache<K, V> + ?Sized,
    K: Clone,
    V: Clone,
{
    match cached(cache, key.clone(), should_store, call).await {
        Ok(value) => Ok(Served::Fresh(value)),
        Err(error) if excuses(&error) => cache.stale(&key).map(Served::Stale).ok_or(error),
        Err(error) => Err(error),
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Fresh values found.
    pub hits: u64,
    /// Fresh values not found.
    pub misses: u64,
    /// Stale values given out.
    pub stale: u64,
    /// Values that had to go to make room.
    pub evicted: u64,
}

/// A cache in memory with a bound and a time to live. Expired values stay until they are in the way, or for as long as
/// [`Bounded::keep_stale`] says.
///
/// Behind a mutex for each part of it, held for a look-up and the clone of a value. What may panic there is the keys' and
/// values' own code, and where that runs the part is whole.
pub struct Bounded<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    hasher: RandomState,
    ttl: Duration,
    keep: Duration,
    clock: Clock,
}

struct Shard<K, V> {
    places: HashMap<K, usize>,
    slots: Vec<Slot<K, V>>,
    capacity: usize,
    /// The next slot to be looked at when room is needed.
    hand: usize,
    counts: Counts,
}

struct Slot<K, V> {
    key: K,
    value: V,
    stored: Tick,
    /// Read since the hand has last passed.
    used: bool,
}

/// A part is not smaller, so that a few keys of one part do not displace each other in a cache that has room.
const SMALLEST: usize = 64;
const SHARDS: usize = 16;

impl<K: Hash + Eq + Clone, V: Clone> Bounded<K, V> {
    /// At most `capacity` values (at least 1), each fresh for `ttl`.
    pub fn new(capacity: usize, ttl: Duration, clock: Clock) -> Self {
        let capacity = capacity.max(1);
        let shards = (capacity / SMALLEST).clamp(1, SHARDS);
        let shard = |index| {
            let capacity = capacity / shards + usize::from(index < capacity % shards);
            let (places, slots) = (HashMap::new(), Vec::new());
            Mutex::new(Shard { places, slots, capacity, hand: 0, counts: Counts::default() })
        };
        Self { shards: (0..shards).map(shard).collect(), hasher: RandomState::new(), ttl, keep: Duration::MAX, clock }
    }

    /// Gives out expired values as stale for so long and no longer.
    #[must_use]
    pub fn keep_stale(mut self, keep: Duration) -> Self {
        self.keep = keep;
        self
    }

    /// Forgets a value.
    pub fn remove(&self, key: &K) -> Option<V> {
        self.shard(key).remove(key)
    }

    /// How many values there are, expired ones included.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).slots.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.shards.iter().map(|shard| lock(shard).counts).fold(Counts::default(), |sum, counts| Counts {
            hits: sum.hits + counts.hits,
            misses: sum.misses + counts.misses,
            stale: sum.stale + counts.stale,
            evicted: sum.evicted + counts.evicted,
        })
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        lock(&self.shards[self.hasher.hash_one(key) as usize % self.shards.len()])
    }

    fn find(&self, shard: &mut Shard<K, V>, key: &K, age: Duration) -> Option<V> {
        let now = self.clock.now();
        let slot = shard.slots.get_mut(*shard.places.get(key)?)?;
        (now.since(slot.stored) < age).then(|| {
            slot.used = true;
            slot.value.clone()
        })
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> for Bounded<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let mut shard = self.shard(key);
        let found = self.find(&mut shard, key, self.ttl);
        let counts = &mut shard.counts;
        *(if found.is_some() { &mut counts.hits } else { &mut counts.misses }) += 1;
        found
    }

    fn put(&self, key: K, value: V) {
        let slot = Slot { key, value, stored: self.clock.now(), used: false };
        let displaced = self.shard(&slot.key).put(slot);
        // Whatever its drop does, it does not do it below the lock.
        drop(displaced);
    }

    fn stale(&self, key: &K) -> Option<V> {
        let mut shard = self.shard(key);
        let found = self.find(&mut shard, key, self.ttl.saturating_add(self.keep));
        shard.counts.stale += u64::from(found.is_some());
        found
    }
}

impl<K: Hash + Eq + Clone, V> Shard<K, V> {
    /// Stores a value. Returns what it replaces or displaces.
    fn put(&mut self, new: Slot<K, V>) -> Option<Slot<K, V>> {
        if let Some(place) = self.places.get(&new.key) {
            return Some(std::mem::replace(&mut self.slots[*place], new));
        }
        if self.slots.len() < self.capacity {
            self.places.insert(new.key.clone(), self.slots.len());
            self.slots.push(new);
            return None;
        }
        // Ends after one round at most: whatever the hand passes is no longer used.
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % self.slots.len();
        }
        let place = self.hand;
        self.hand = (place + 1) % self.slots.len();
        self.places.insert(new.key.clone(), place);
        self.places.remove(&self.slots[place].key);
        self.counts.evicted += 1;
        Some(std::mem::replace(&mut self.slots[place], new))
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.places.remove(key)?;
        let slot = self.slots.swap_remove(place);
        if let Some(moved) = self.slots.get(place) {
            self.places.insert(moved.key.clone(), place);
        }
        self.hand = if self.hand < self.slots.len() { self.hand } else { 0 };
        Some(slot.value)
    }
}

impl<K, V> fmt::Debug for Bounded<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded").field("ttl", &self.ttl).field("keep", &self.keep).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_call_is_made_once_while_its_value_is_fresh() {
        let (clock, hand) = Clock::manual();
        let cache = Bounded::new(10, TTL, clock);
        let calls = Cell::new(0);
        let call = || {
            cached(&cache, "key", |value| *value != 2, async {
                calls.set(calls.get() + 1);
                if calls.get() == 4 { Err("failed") } else { Ok(calls.get()) }
            })
        };
        assert_eq!((call().await, call().await), (Ok(1), Ok(1)));
        hand.advance(TTL - Duration::from_nanos(1));
        assert_eq!(call().await, Ok(1));
        hand.advance(Duration::from_nanos(1));
        // The second value is not to be stored, and an error never is.
        assert_eq!((call().await, call().await, call().await), (Ok(2), Ok(3), Ok(3)));
        cache.remove(&"key");
        assert_eq!((call().await, call().await, call().await), (Err("failed"), Ok(5), Ok(5)));
        assert_eq!(cache.counts(), Counts { hits: 4, misses: 5, stale: 0, evicted: 0 });
    }

    #[tokio::test]
    async fn an_expired_value_is_better_than_an_excusable_error() {
        let (clock, hand) = Clock::manual();
        let cache = std::sync::Arc::new(Bounded::new(10, TTL, clock).keep_stale(TTL));
        let call = |result: Result<u32, &'static str>| {
            let excuses = |error: &&str| *error == "unavailable";
            cached_or_stale(&cache, "key", |_| true, excuses, std::future::ready(result))
        };
        assert_eq!(call(Err("unavailable")).await, Err("unavailable"));
        assert_eq!(call(Ok(1)).await, Ok(Served::Fresh(1)));
        assert_eq!(call(Err("unavailable")).await, Ok(Served::Fresh(1)));
        hand.advance(TTL);
        assert_eq!(call(Err("unavailable")).await, Ok(Served::Stale(1)));
        assert_eq!(call(Err("forbidden")).await, Err("forbidden"));
        hand.advance(TTL);
        assert_eq!(call(Err("unavailable")).await, Err("unavailable"));
        assert_eq!(call(Ok(2)).await, Ok(Served::Fresh(2)));
        assert_eq!(cache.counts().stale, 1);

        // A cache that keeps nothing stale does not have to say so.
        struct None;
        impl Cache<u8, u8> for None {
            fn get(&self, _: &u8) -> Option<u8> {
                Option::None
            }
            fn put(&self, _: u8, _: u8) {}
        }
        let call = cached_or_stale(&None, 1, |_| true, |_| true, std::future::ready(Err::<u8, _>("failed")));
        assert_eq!(call.await, Err("failed"));
    }

    #[test]
    fn what_is_used_survives() {
        let cache = Bounded::new(3, TTL, Clock::manual().0);
        (1..=3).for_each(|key| cache.put(key, key));
        cache.get(&1);
        (4..=5).for_each(|key| cache.put(key, key));
        let there: Vec<_> = (1..=5).filter(|key| cache.get(key).is_some()).collect();
        assert_eq!((there, cache.len(), cache.counts().evicted), (vec![1, 4, 5], 3, 2));
    }

    proptest! {
        /// It never holds more than it may, never returns another key's value or an old one, and its parts agree.
        #[test]
        fn it_is_a_bounded_map(
            capacity in 1usize..200,
            steps in proptest::collection::vec((0u16..300, 0u8..8), 1..2000),
        ) {
            let cache = Bounded::new(capacity, TTL, Clock::manual().0);
            let mut latest = HashMap::new();
            for (number, (key, step)) in steps.into_iter().enumerate() {
                match step {
                    0 => prop_assert!(cache.remove(&key).is_none_or(|value| latest.remove(&key) == Some(value))),
                    1..4 => {
                        cache.put(key, number);
                        latest.insert(key, number);
                        prop_assert_eq!(cache.get(&key), Some(number));
                    }
                    _ => prop_assert!(cache.get(&key).is_none_or(|value| latest.get(&key) == Some(&value))),
                }
                prop_assert!(cache.len() <= capacity);
            }
            for shard in &cache.shards {
                let shard = lock(shard);
                prop_assert_eq!(shard.places.len(), shard.slots.len());
                prop_assert!(shard.slots.iter().enumerate().all(|(place, slot)| shard.places[&slot.key] == place));
            }
            let capacities: usize = cache.shards.iter().map(|shard| lock(shard).capacity).sum();
            prop_assert_eq!(capacities, capacity);
        }
    }
}
