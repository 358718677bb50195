//! Claims that were sent and not answered, and how they are made void.
//!
//! Where the store is another process, a write whose answer was lost may still be carried out: a member that was paused does
//! it when it goes on. A claim that its claimant has given up by then would stand in the queue again, and nobody would know
//! of it. So a claim's transaction has a condition that can be broken: the session's key must not have been written since it
//! was read. Who is in doubt writes that key anew, together with the withdrawal, and whatever of the session was sent before
//! is void. Without doubts this costs nothing: the key is read once, and again when the condition does not hold.
//!
//! The session's key also names the process that sends claims for the session. Another process, say a control node after a
//! restart, takes the session over by writing its key: it cannot know what the former one has left in doubt.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use seawall_store::{Compare, LeaseId, Op, OpResult, Txn};
use seawall_types::Revision;

use super::{NAME, SessionValue, StoreBackend, StoreLease, delay_key_of, down, json, reading, session_key, writing};
use crate::backend::BackendError;
use crate::name::{LockName, Token};

/// How often a session's key is read again because somebody has just written it.
pub(super) const TRIES: u32 = 10;
pub(super) const TAKEN_OVER: &str = "the session's key is written again and again by others";

/// How many sessions are known at most. When there are more, all are forgotten and read again.
const KNOWN: usize = 16_384;

/// What this process knows of sessions.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<Sessions>);

#[derive(Debug, Default)]
struct Sessions {
    /// Those of which a claim was sent and not answered, with the number of the latest. Whoever sent one withdraws it sooner
    /// or later, which takes its session out; so there are no more of them than withdrawals to come.
    in_doubt: HashMap<LeaseId, u64>,
    /// How many doubts there were of all sessions. A number that came again would clear a later doubt with an earlier one's
    /// answer.
    arisen: u64,
    /// Those without doubts, as they were last read. What is not true any more is found out by a claim's condition.
    known: HashMap<LeaseId, Known>,
}

/// A session's key, as this process has read it.
#[derive(Clone, Debug)]
struct Known {
    secret: Token,
    owner: String,
    modified: Revision,
}

impl Doubts {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session, if it is known and nothing of it in doubt.
    fn known(&self, lease: &StoreLease) -> Option<Known> {
        self.sessions().known.get(&lease.id).filter(|known| known.secret == lease.secret).cloned()
    }

    fn know(&self, lease: &StoreLease, owner: &str, modified: Revision) {
        let mut sessions = self.sessions();
        if sessions.in_doubt.contains_key(&lease.id) {
            return;
        }
        if sessions.known.len() >= KNOWN {
            sessions.known.clear();
        }
        let known = Known { secret: lease.secret, owner: owner.to_owned(), modified };
        sessions.known.insert(lease.id, known);
    }

    /// The session has to be read again.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.sessions().known.remove(&lease);
    }

    /// A claim is about to be sent. It is in doubt unless its [`Attempt`] hears of an answer.
    pub(super) fn attempt(&self, lease: LeaseId) -> Attempt<'_> {
        Attempt { doubts: self, lease, answered: false }
    }

    /// The session's latest doubt.
    fn of(&self, lease: LeaseId) -> Option<u64> {
        self.sessions().in_doubt.get(&lease).copied()
    }

    /// Nothing of the session that was in doubt when this was its latest can come any more.
    fn cleared(&self, lease: LeaseId, latest: Option<u64>) {
        let in_doubt = &mut self.sessions().in_doubt;
        if latest.is_some() && in_doubt.get(&lease).copied() == latest {
            in_doubt.remove(&lease);
        }
    }
}

/// A claim under way.
pub(super) struct Attempt<'a> {
    doubts: &'a Doubts,
    lease: LeaseId,
    answered: bool,
}

impl Attempt<'_> {
    /// It was done or it was not, and will not be.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let mut sessions = self.doubts.sessions();
            sessions.arisen += 1;
            let number = sessions.arisen;
            sessions.in_doubt.insert(self.lease, number);
            sessions.known.remove(&self.lease);
        }
    }
}

/// A session as it stands, with nothing in doubt.
pub(super) struct Settled {
    pub(super) owner: String,
    /// The condition of claims.
    pub(super) condition: Compare,
}

impl StoreBackend {
    /// The session's key, if the session lives.
    async fn session_entry(&self, lease: &StoreLease) -> Result<(SessionValue, Revision), BackendError> {
        let entry = reading(self.store.get(&session_key(lease))).await?;
        let read = entry.and_then(|entry| Some((lease.read(&entry.value)?, entry.modified)));
        read.ok_or(BackendError::NoSession { backend: NAME.into() })
    }

    /// Whether this session lives, and whose it is.
    ///
    /// # Errors
    /// [`BackendError::NoSession`].
    pub async fn session(&self, lease: &StoreLease) -> Result<String, BackendError> {
        Ok(self.session_entry(lease).await?.0.owner)
    }

    /// The session for a claim. What of it is in doubt is made void before.
    pub(super) async fn settled(&self, lease: &StoreLease) -> Result<Settled, BackendError> {
        if let Some(Known { owner, modified, .. }) = self.doubts.known(lease) {
            return Ok(Settled { owner, condition: Compare::Modified(session_key(lease), modified) });
        }
        for _ in 0..TRIES {
            let in_doubt = self.doubts.of(lease.id).is_some();
            let (value, modified) = self.session_entry(lease).await?;
            if !in_doubt && value.by == self.instance.to_string() {
                self.doubts.know(lease, &value.owner, modified);
                let condition = Compare::Modified(session_key(lease), modified);
                return Ok(Settled { owner: value.owner, condition });
            }
            self.settle(lease, &[]).await?;
        }
        Err(down(TAKEN_OVER))
    }

    /// Makes void what was sent for the session and may not have been done yet, and deletes these keys. Says how many of them
    /// were there.
    async fn settle(&self, lease: &StoreLease, keys: &[String]) -> Result<usize, BackendError> {
        for _ in 0..TRIES {
            self.doubts.forget(lease.id);
            let latest = self.doubts.of(lease.id);
            let (value, modified) = match self.session_entry(lease).await {
                Ok(entry) => entry,
                Err(error @ BackendError::NoSession { .. }) => {
                    // Without a session nothing is ever written for it.
                    self.doubts.cleared(lease.id, latest);
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            let value = json(&SessionValue { by: self.instance.to_string(), ..value });
            let mut then: Vec<_> = keys.iter().cloned().map(Op::Delete).collect();
            then.push(Op::Put { key: session_key(lease), value: value.into(), lease: Some(lease.id) });
            let txn = Txn { then, ..Txn::default() }.when(Compare::Modified(session_key(lease), modified));
            let committed = writing(self.store.commit(txn)).await?;
            if committed.succeeded {
                self.doubts.cleared(lease.id, latest);
                return Ok(deleted(&committed.results));
            }
        }
        Err(down(TAKEN_OVER))
    }

    /// Deletes a claim, so that it does not come back. Says how many keys of it were there.
    pub(super) async fn delete(
        &self,
        lease: &StoreLease,
        name: &LockName,
        token: &Token,
    ) -> Result<usize, BackendError> {
        let keys = super::keys(name, lease, token);
        let session = || Op::Get(session_key(lease));
        let mut otherwise: Vec<_> = keys[1..].iter().cloned().map(Op::Delete).collect();
        let mut then: Vec<_> = keys.iter().cloned().map(Op::Delete).collect();
        // Word that was left for the case of a loss goes with the claim, and stays where there is none any more.
        then.push(Op::Delete(delay_key_of(name, lease, token)));
        then.push(session());
        otherwise.push(session());
        let txn = Txn { compare: vec![Compare::Exists(keys[0].clone())], then, otherwise };
        // What is in doubt now may be done right after the deletion. That somebody clears it up meanwhile changes nothing.
        let in_doubt = self.doubts.of(lease.id).is_some();
        let committed = writing(self.store.commit(txn)).await?;
        let gone = usize::from(committed.succeeded || deleted(&committed.results) > 0);
        let session = match committed.results.last() {
            Some(OpResult::Got(Some(entry))) => lease.read(&entry.value),
            _ => None,
        };
        // Whoever is in doubt has a process of its own, and another that takes over is always in doubt.
        if !in_doubt && session.is_none_or(|value| value.by == self.instance.to_string()) {
            return Ok(gone);
        }
        match self.settle(lease, &keys).await {
            Ok(more) => Ok(gone + more),
            Err(BackendError::NoSession { .. }) => Ok(gone),
            Err(error) => Err(error),
        }
    }
}

fn deleted(results: &[OpResult]) -> usize {
    results.iter().filter(|result| matches!(result, OpResult::Deleted(true))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_stays_until_it_is_cleared_after_it_arose() {
        let (doubts, lease) = (Doubts::default(), LeaseId(1));
        doubts.attempt(lease).answered();
        assert_eq!(doubts.of(lease), None);
        drop(doubts.attempt(lease));
        let first = doubts.of(lease);
        drop(doubts.attempt(lease));
        doubts.cleared(lease, first);
        let second = doubts.of(lease);
        assert!(second > first, "one has arisen since");
        doubts.cleared(lease, second);
        assert_eq!((doubts.of(lease), doubts.sessions().in_doubt.len()), (None, 0));
    }

    #[test]
    fn an_answer_that_comes_late_clears_no_later_doubt() {
        let (doubts, lease) = (Doubts::default(), LeaseId(1));
        drop(doubts.attempt(lease));
        // Two withdrawals see the same doubt. The first is answered, a claim is sent on what it has written and dropped, and
        // then the second is answered.
        let (one, other) = (doubts.of(lease), doubts.of(lease));
        doubts.cleared(lease, one);
        drop(doubts.attempt(lease));
        doubts.cleared(lease, other);
        assert!(doubts.of(lease).is_some());
    }
}
