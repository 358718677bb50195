//! What histories are compared with: a lock, and keys with transactions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Hold;
use crate::linear::{Model, Operation};

/// A lock with fencing tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct LockModel;

/// What a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// Free, after the holder with this token.
    Free(u64),
    /// Held with this token.
    By(u64),
}

/// What is asked of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAsk {
    /// To have it.
    Acquire,
    /// To give it back, or to let it expire, by the holder with this token.
    Release(u64),
}

/// What it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAnswer {
    /// Had, with this token.
    Acquired(u64),
    /// Somebody else has it.
    Busy,
    /// Given back.
    Released,
    /// It was not held with this token.
    NotHeld,
}

impl Model for LockModel {
    type State = Held;
    type Ask = LockAsk;
    type Answer = LockAnswer;

    fn first(&self) -> Held {
        Held::Free(0)
    }

    fn step(&self, state: &Held, ask: &LockAsk, answer: Option<&LockAnswer>) -> Option<Held> {
        match (*state, *ask, answer.copied()) {
            (Held::Free(last), LockAsk::Acquire, Some(LockAnswer::Acquired(fence))) if fence > last => {
                Some(Held::By(fence))
            }
            (Held::By(_), LockAsk::Acquire, Some(LockAnswer::Busy)) => Some(*state),
            // Nobody ever hears of an acquisition without an answer: its token is not known, and it is given back unseen.
            (Held::By(by), LockAsk::Release(fence), Some(LockAnswer::Released) | None) if by == fence => {
                Some(Held::Free(fence))
            }
            (state, LockAsk::Release(fence), Some(LockAnswer::NotHeld)) if state != Held::By(fence) => Some(state),
            _ => None,
        }
    }
}

/// The holds of one lock as operations. Each ends at a time that its holder does not know, after it has stopped to count on it.
pub fn lock_operations(holds: &[Hold]) -> Vec<Operation<LockAsk, LockAnswer>> {
    let mut operations = Vec::new();
    // One that was over before its holder knew was never believed in.
    for hold in holds.iter().filter(|hold| hold.from < hold.until) {
        let Some(fence) = hold.fence else { continue };
        let process = hold.process.clone();
        let answered = Some((hold.from, LockAnswer::Acquired(fence)));
        operations.push(Operation { process: process.clone(), called: hold.asked, ask: LockAsk::Acquire, answered });
        let ask = LockAsk::Release(fence);
        operations.push(Operation { process, called: hold.until, ask, answered: None });
    }
    operations
}

/// Keys in one history of revisions, as a store has them: transactions of conditions and writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvModel {
    /// The revision that there was before, with none of the keys.
    pub from: u64,
}

/// All keys, and the revision that they have come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KvState {
    revision: u64,
    keys: BTreeMap<String, (u64, u64)>,
}

/// A condition on a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// It is not there.
    Absent(String),
    /// It was last written at this revision.
    Modified(String, u64),
}

/// What is asked of the keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvAsk {
    /// A key's value.
    Get(String),
    /// To write (or delete) these if all conditions hold.
    Set {
        /// The conditions.
        when: Vec<Condition>,
        /// The keys; nothing deletes. No key twice.
        then: Vec<(String, Option<u64>)>,
    },
}

/// What they answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvAnswer {
    /// The value and the revision that wrote it.
    Got(Option<(u64, u64)>),
    /// Whether the conditions held, and the revision after it.
    Set(bool, u64),
}

impl Model for KvModel {
    type State = KvState;
    type Ask = KvAsk;
    type Answer = KvAnswer;

    fn first(&self) -> KvState {
        KvState { revision: self.from, keys: BTreeMap::new() }
    }

    fn step(&self, state: &KvState, ask: &KvAsk, answer: Option<&KvAnswer>) -> Option<KvState> {
        let (is, after) = match ask {
            KvAsk::Get(key) => (KvAnswer::Got(state.keys.get(key).copied()), state.clone()),
            KvAsk::Set { when, then } => {
                let holds = when.iter().all(|condition| match condition {
                    Condition::Absent(key) => !state.keys.contains_key(key),
                    Condition::Modified(key, revision) => state.keys.get(key).is_some_and(|(_, at)| at == revision),
                });
                let mut after = state.clone();
                if holds {
                    after.write(then);
                }
                (KvAnswer::Set(holds, after.revision), after)
            }
        };
        (answer.is_none_or(|answer| *answer == is)).then_some(after)
    }

    fn reached(&self, state: &KvState) -> u64 {
        state.revision
    }

    fn at_most(&self, ask: &KvAsk, answer: &KvAnswer) -> u64 {
        match (ask, answer) {
            (_, KvAnswer::Got(_)) => u64::MAX,
            // What writes a value makes a revision.
            (KvAsk::Set { then, .. }, KvAnswer::Set(true, revision))
                if then.iter().any(|(_, value)| value.is_some()) =>
            {
                revision.saturating_sub(1)
            }
            (_, KvAnswer::Set(_, revision)) => *revision,
        }
    }
}

impl KvState {
    /// The revision that it has come to.
    #[cfg(test)]
    pub(crate) fn revision_now(&self) -> u64 {
        self.revision
    }

    #[cfg(test)]
    pub(crate) fn keys_at(&self, key: &str) -> Option<(u64, u64)> {
        self.keys.get(key).copied()
    }

    fn write(&mut self, then: &[(String, Option<u64>)]) {
        let next = self.revision + 1;
        for (key, value) in then {
            let changed = match value {
                Some(value) => {
                    self.keys.insert(key.clone(), (*value, next));
                    true
                }
                None => self.keys.remove(key).is_some(),
            };
            if changed {
                self.revision = next;
            }
        }
    }
}
