//! Which requests have come already, as long as they could come again.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::auth::recent::Key;

/// Signatures that have passed. Bounded: when it is full of those that could still pass, nothing is known of another.
#[derive(Debug)]
pub(super) struct Nonces {
    capacity: usize,
    passed: Mutex<Passed>,
}

#[derive(Debug, Default)]
struct Passed {
    keys: HashSet<Key>,
    /// In the order in which they may be forgotten.
    order: VecDeque<(u64, Key)>,
}

/// Whether a request has come before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Never,
    Before,
    Unknown,
}

impl Nonces {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, passed: Mutex::default() }
    }

    /// Whether this one has come before; from now on it has. `until` may be forgotten what cannot pass any more, and never
    /// lies before that of an earlier call.
    pub(super) fn remember(&self, key: Key, until: u64, now: u64) -> Seen {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let Passed { keys, order } = &mut *passed;
        while let Some((_, old)) = order.front().filter(|(until, _)| *until <= now) {
            keys.remove(old);
            order.pop_front();
        }
        if keys.contains(&key) {
            return Seen::Before;
        }
        if keys.len() >= self.capacity {
            return Seen::Unknown;
        }
        keys.insert(key);
        order.push_back((until, key));
        Seen::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_passes_twice_while_it_could() {
        let nonces = Nonces::new(2);
        assert_eq!(nonces.remember([1; 32], 10, 0), Seen::Never);
        assert_eq!(nonces.remember([1; 32], 10, 0), Seen::Before);
        assert_eq!(nonces.remember([2; 32], 11, 1), Seen::Never);
        assert_eq!(nonces.remember([3; 32], 12, 2), Seen::Unknown);
        assert_eq!(nonces.remember([1; 32], 12, 9), Seen::Before);
        assert_eq!(nonces.remember([3; 32], 20, 10), Seen::Never);
        assert_eq!(nonces.passed.lock().unwrap().keys.len(), 2);
    }
}
