//! What was found out lately, so that it need not be found out again: a bounded map that forgets the oldest.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::digest::{SHA256, digest};

/// The SHA-256 of a secret: the secret itself is not kept.
pub(crate) type Key = [u8; 32];

/// The key of a secret.
pub(crate) fn key(secret: &[u8]) -> Key {
    digest(&SHA256, secret).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

const SHARDS: usize = 16;

/// A map of what is known of secrets. Of `capacity` entries at most, a half at least are the newest.
#[derive(Debug)]
pub(crate) struct Recent<V> {
    shards: Vec<Mutex<Shard<V>>>,
    /// Of one generation of a shard.
    room: usize,
}

#[derive(Debug)]
struct Shard<V> {
    young: HashMap<Key, V>,
    old: HashMap<Key, V>,
}

impl<V: Clone> Recent<V> {
    pub(crate) fn new(capacity: usize) -> Self {
        let shard = || Mutex::new(Shard { young: HashMap::new(), old: HashMap::new() });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), room: (capacity / SHARDS / 2).max(1) }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard<V>> {
        self.shards[usize::from(key[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<V> {
        let mut shard = self.shard(key);
        if let Some(value) = shard.young.get(key) {
            return Some(value.clone());
        }
        let value = shard.old.remove(key)?;
        shard.put(*key, value.clone(), self.room);
        Some(value)
    }

    pub(crate) fn put(&self, key: Key, value: V) {
        self.shard(&key).put(key, value, self.room);
    }
}

impl<V> Shard<V> {
    fn put(&mut self, key: Key, value: V, room: usize) {
        if self.young.len() >= room && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let recent = Recent::new(3200);
        let used = key(b"used");
        recent.put(used, 0);
        for n in 1..20_000u32 {
            recent.put(key(&n.to_be_bytes()), n);
            assert!(n % 50 != 0 || recent.get(&used) == Some(0), "{n}");
        }
        let held: usize =
            recent.shards.iter().map(|shard| shard.lock().unwrap()).map(|s| s.young.len() + s.old.len()).sum();
        assert!(held <= 3200, "{held}");
        assert_eq!(recent.get(&key(&19_999u32.to_be_bytes())), Some(19_999));
        assert_eq!(recent.get(&key(&1u32.to_be_bytes())), None);
    }
}
