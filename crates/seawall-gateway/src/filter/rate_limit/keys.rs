//! A state for each key, of a bounded number of keys: the one that was used least recently gives its place up.
//!
//! A key is kept as 128 bits of keyed hashes, so that every entry has the same size however long a header is, and nobody
//! can choose two that meet. Shards keep the locks short; each orders its own entries.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Above this many keys there are several shards.
const ALONE: usize = 1024;
const SHARDS: usize = 16;
/// No entry.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Keys<V> {
    shards: Box<[Mutex<Shard<V>>]>,
    seeds: [RandomState; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id([u64; 2]);

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

/// An [`Id`] is a hash already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The entries, and a list through them from the newest use to the oldest.
#[derive(Debug)]
struct Shard<V> {
    places: HashMap<Id, u32, BuildHasherDefault<Same>>,
    entries: Vec<Entry<V>>,
    newest: u32,
    oldest: u32,
    most: usize,
}

#[derive(Debug)]
struct Entry<V> {
    id: Id,
    newer: u32,
    older: u32,
    value: V,
}

impl<V> Keys<V> {
    /// For at most about `most` keys: each shard has its part of them.
    pub(super) fn new(most: usize) -> Self {
        let count = if most > ALONE { SHARDS } else { 1 };
        let shard = || Shard {
            places: HashMap::default(),
            entries: Vec::new(),
            newest: NONE,
            oldest: NONE,
            most: most.div_ceil(count).max(1),
        };
        let shards = (0..count).map(|_| Mutex::new(shard())).collect();
        Self { shards, seeds: [RandomState::new(), RandomState::new()] }
    }

    /// Works on the state of a key; a key that is not known begins with `new`.
    pub(super) fn with<R>(&self, key: &[u8], new: V, work: impl FnOnce(&mut V) -> R) -> R {
        let id = Id([self.seeds[0].hash_one(key), self.seeds[1].hash_one(key)]);
        let shard = &self.shards[(id.0[1] % self.shards.len() as u64) as usize];
        work(lock(shard).entry(id, new))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).entries.len()).sum()
    }
}

fn lock<V>(shard: &Mutex<Shard<V>>) -> MutexGuard<'_, Shard<V>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<V> Shard<V> {
    fn entry(&mut self, id: Id, new: V) -> &mut V {
        let place = match self.places.get(&id) {
            Some(place) if *place == self.newest => *place,
            Some(place) => {
                let place = *place;
                self.unlink(place);
                self.link(place);
                place
            }
            None => self.make(id, new),
        };
        &mut self.entries[place as usize].value
    }

    fn make(&mut self, id: Id, new: V) -> u32 {
        let entry = Entry { id, newer: NONE, older: NONE, value: new };
        let place = if self.entries.len() < self.most.min(NONE as usize) {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        } else {
            let place = self.oldest;
            self.unlink(place);
            self.places.remove(&self.entries[place as usize].id);
            self.entries[place as usize] = entry;
            place
        };
        self.places.insert(id, place);
        self.link(place);
        place
    }

    fn unlink(&mut self, place: u32) {
        let Entry { newer, older, .. } = self.entries[place as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
    }

    fn link(&mut self, place: u32) {
        let before = std::mem::replace(&mut self.newest, place);
        match before {
            NONE => self.oldest = place,
            before => self.entries[before as usize].newer = place,
        }
        let entry = &mut self.entries[place as usize];
        (entry.newer, entry.older) = (NONE, before);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_list_of_the_last_keys_that_were_used(uses in proptest::collection::vec(0u8..12, 0..200), most in 1usize..9) {
            let keys = Keys::new(most);
            let mut slow: Vec<(u8, u32)> = Vec::new();
            for key in uses {
                let at = slow.iter().position(|(own, _)| *own == key);
                let (_, count) = at.map_or((key, 0), |at| slow.remove(at));
                slow.push((key, count + 1));
                if slow.len() > most {
                    slow.remove(0);
                }
                let seen = keys.with(&[key], 0, |count| { *count += 1; *count });
                prop_assert_eq!((seen, keys.len()), (count + 1, slow.len()));
            }
        }
    }

    #[test]
    fn a_hundred_thousand_keys_take_twelve_megabytes() {
        let memory = allocation_counter::measure(|| {
            let keys = Keys::new(100_000);
            for key in 0..300_000u32 {
                keys.with(&key.to_ne_bytes(), [0u64; 2], |state| state[0] += 1);
            }
            assert!((99_000..=100_000).contains(&keys.len()));
            std::mem::forget(keys);
        });
        let each = memory.bytes_current / 100_000;
        println!("{each} bytes a key");
        assert!(each <= 120, "{each}");
    }
}
