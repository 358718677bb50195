//! How a claim comes into the queue, and what it waits for there.

use std::time::Duration;

use seawall_store::{Compare, Cursor, Entry, Keys, Op, OpResult, Txn, WatchError};
use seawall_types::Revision;
use tokio::time::Instant;

use super::doubts::{self, Settled, TRIES};
use super::queries::{self, Await, Look};
use super::{
    Backoff, ClaimValue, StoreBackend, StoreLease, delay_key, down, json, key_of, reading, refused, unix_ms, writing,
};
use crate::backend::{BackendError, Claim, ClaimError, MAX_INFO, Want};
use crate::session::Why;
use crate::sharing::{Kind, Manner};

/// How long something that has to be written before a lock is held is tried, when there is less patience left.
const LAST_WRITES: Duration = Duration::from_secs(1);

impl StoreBackend {
    /// As [`Backend::claim`](crate::Backend::claim), but a wait that runs out leaves the claim in the queue, where the same
    /// want finds it again; whoever does not come back has to [withdraw](crate::Backend::withdraw) it.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn wait(&self, lease: &StoreLease, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        self.wait_as(lease, want, &Manner::default(), patience).await
    }

    /// The same in the manner given.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn wait_as(
        &self,
        lease: &StoreLease,
        want: &Want,
        manner: &Manner,
        patience: Duration,
    ) -> Result<Claim, ClaimError> {
        let began = Instant::now();
        let until = began + patience;
        manner.check().map_err(refused)?;
        let Manner { kind, delay } = *manner;
        if want.name.election().is_some() && *manner != Manner::default() {
            return Err(refused("an election is won by one alone, and without a delay").into());
        }
        let key = key_of(&want.name, kind, lease, &want.token);
        if want.info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", want.info.len());
            return Err(refused(why).into());
        }
        if patience.is_zero() || matches!(kind, Kind::Permits { .. }) {
            let last = Revision(i64::MAX.unsigned_abs());
            match reading(queries::look(&*self.store, &want.name, &key, kind, last)).await {
                Ok(look) if look.own.is_none() => {
                    // Nothing is written for permits of another limit: it would be in the way of those who are right. Only
                    // a claim that comes in the same moment is found out below.
                    Self::same_limit(kind, &look)?;
                    // Nor for a lock that is held anyway.
                    if patience.is_zero() && !look.behind.is_empty() {
                        return Err(ClaimError::Busy { holder: self.holder(look.first.as_ref()) });
                    }
                }
                Err(error) if patience.is_zero() => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        let created = self.enqueue(lease, want, kind, &key, until).await?;
        loop {
            let look = self.look(want, kind, &key, created, until).await?;
            // The own key, and no other that has come under the same name since.
            let Some(own) = look.own.as_ref().filter(|own| own.created == created) else {
                return Err(self.why_gone(lease).await);
            };
            let value = ClaimValue::read(own);
            if value.kind != kind {
                return Err(refused(format!("this claim is {} and not {kind}", value.kind)).into());
            }
            Self::same_limit(kind, &look)?;
            let (awaits, due, ahead) = if !look.behind.is_empty() {
                (look.behind.clone(), until, None)
            } else if let Some(left) = look.delay.as_ref().filter(|left| *left.key != *delay_key(want, lease)) {
                let due = self.delays.due(left);
                if Instant::now() >= due {
                    self.end_delay(left, until).await?;
                    continue;
                }
                (vec![Await::Gone(left.key.to_string(), left.created)], due.min(until), Some(0))
            } else {
                let mut then = Vec::new();
                if look.followed && !value.held {
                    let value = json(&ClaimValue { held: true, ..value });
                    then.push(Op::Put { key: key.clone(), value: value.into(), lease: Some(lease.id) });
                }
                if !delay.is_zero() {
                    let value = json(&u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
                    then.push(Op::Put { key: delay_key(want, lease), value: value.into(), lease: None });
                }
                if !then.is_empty() && !self.write_own(&key, created, then, until).await? {
                    return Err(self.why_gone(lease).await);
                }
                return Ok(self.claim_of(&want.name, &want.token, own));
            };
            let holder = self.holder(look.first.as_ref().filter(|first| *first.key != *key));
            if patience.is_zero() {
                return Err(ClaimError::Busy { holder });
            }
            if !self.happens(awaits, &key, &look, due).await && Instant::now() >= until {
                let ahead = match ahead {
                    Some(ahead) => ahead,
                    None => reading(queries::ahead(&*self.store, &want.name, created)).await.unwrap_or(1),
                };
                return Err(ClaimError::TimedOut { waited: began.elapsed(), ahead, holder });
            }
        }
    }

    fn same_limit(kind: Kind, look: &Look) -> Result<(), BackendError> {
        match look.other_limit {
            Some(limit) => Err(refused(format!("{kind}: the claims before mean a limit of {limit}"))),
            None => Ok(()),
        }
    }

    /// Waits for one of these things, or for the own claim to go. False when none has come by then.
    async fn happens(&self, mut awaits: Vec<Await>, key: &str, look: &Look, by: Instant) -> bool {
        let own = look.own.iter().map(|own| Await::Gone(key.to_owned(), own.created));
        awaits.extend(own);
        tokio::time::timeout_at(by, self.any(&awaits, look.revision)).await.is_ok()
    }

    /// Puts the claim into the queue, or finds it there; says which revision created it.
    async fn enqueue(
        &self,
        lease: &StoreLease,
        want: &Want,
        kind: Kind,
        key: &str,
        until: Instant,
    ) -> Result<Revision, ClaimError> {
        let mut backoff = Backoff::new();
        let mut doubt = None;
        loop {
            let error = match self.put_claim(lease, want, kind, key).await {
                Ok(created) => return Ok(created),
                Err(error) => error,
            };
            match error {
                error if !error.retryable() => return Err(ClaimError::from_store(error)),
                BackendError::Unknown { .. } => doubt = Some(error.clone()),
                _ => {}
            }
            if !backoff.wait(until).await {
                // The last word: is it there?
                return match (reading(self.store.get(key)).await, doubt) {
                    (Ok(Some(own)), _) => Ok(own.created),
                    (Ok(None), None) => Err(error.into()),
                    (_, doubt) => Err(ClaimError::Unknown(doubt.unwrap_or(error))),
                };
            }
        }
    }

    /// One try at it. Can be repeated whatever became of the last one: a key that is there is left as it is, and what is
    /// still on its way is made void before.
    async fn put_claim(
        &self,
        lease: &StoreLease,
        want: &Want,
        kind: Kind,
        key: &str,
    ) -> Result<Revision, BackendError> {
        for _ in 0..TRIES {
            let Settled { owner, condition } = self.settled(lease).await?;
            let info = want.info.clone();
            let value = json(&ClaimValue { owner, since_ms: unix_ms(), info, kind, held: false });
            let put = Op::Put { key: key.into(), value: value.into(), lease: Some(lease.id) };
            let txn = Txn {
                compare: vec![Compare::Absent(key.into()), condition],
                then: vec![put, Op::Get(key.into())],
                otherwise: vec![Op::Get(key.into())],
            };
            let attempt = self.doubts.attempt(lease.id);
            let committed = writing(self.store.commit(txn)).await;
            if !matches!(committed, Err(BackendError::Unknown { .. })) {
                attempt.answered();
            }
            if let Some(OpResult::Got(Some(own))) = committed?.results.into_iter().next_back() {
                return Ok(own.created);
            }
            // The session's key was written in this moment: for another claim that was in doubt, or by another process.
        }
        Err(down(doubts::TAKEN_OVER))
    }

    async fn look(
        &self,
        want: &Want,
        kind: Kind,
        key: &str,
        created: Revision,
        until: Instant,
    ) -> Result<Look, ClaimError> {
        let mut backoff = Backoff::new();
        loop {
            match reading(queries::look(&*self.store, &want.name, key, kind, created)).await {
                Ok(look) => return Ok(look),
                // The claim is in the queue and may come to hold the lock.
                Err(error) if !backoff.wait(until).await => return Err(ClaimError::Unknown(error)),
                Err(_) => {}
            }
        }
    }

    /// Writes what belongs to a claim, as long as it is there; false when it is not.
    async fn write_own(&self, key: &str, created: Revision, then: Vec<Op>, until: Instant) -> Result<bool, ClaimError> {
        let until = until.max(Instant::now() + LAST_WRITES);
        let txn = Txn { then, ..Txn::default() }.when(Compare::Created(key.into(), created));
        let mut backoff = Backoff::new();
        loop {
            match writing(self.store.commit(txn.clone())).await {
                Ok(committed) => return Ok(committed.succeeded),
                Err(BackendError::NoSession { .. }) => return Ok(false),
                Err(error) if !error.retryable() => return Err(error.into()),
                Err(error) if !backoff.wait(until).await => return Err(ClaimError::Unknown(error)),
                Err(_) => {}
            }
        }
    }

    /// What a lost holder has left is over.
    async fn end_delay(&self, left: &Entry, until: Instant) -> Result<(), ClaimError> {
        let key = left.key.to_string();
        self.write_own(&key, left.created, vec![Op::Delete(key.clone())], until).await.map(drop)
    }

    /// Resolves when one of these things may have happened after `from`.
    pub(super) async fn any(&self, awaits: &[Await], from: Revision) {
        let mut cursors = Vec::with_capacity(awaits.len());
        for one in awaits {
            let keys = match one {
                Await::Gone(key, _) | Await::Changed(key) => Keys::one(key),
                Await::AnyGone(directory) => Keys::prefix(directory),
            };
            match self.store.watch(keys, from.next()).await {
                Ok(cursor) => cursors.push(happened(cursor, one)),
                // Look again, and watch from there.
                Err(_) => return tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        let mut cursors: Vec<_> = cursors.into_iter().map(Box::pin).collect();
        std::future::poll_fn(|context| {
            if cursors.iter_mut().any(|cursor| cursor.as_mut().poll(context).is_ready()) {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }

    /// Why a claim that was in the queue is there no more.
    async fn why_gone(&self, lease: &StoreLease) -> ClaimError {
        match self.session(lease).await {
            Ok(_) => ClaimError::Removed,
            Err(error) => ClaimError::from_store(error),
        }
    }
}

impl ClaimError {
    fn from_store(error: BackendError) -> Self {
        match error {
            BackendError::NoSession { .. } => Self::Lost(Why::Ended),
            error => Self::Backend(error),
        }
    }
}

/// Resolves when it happens, or the watch cannot say.
async fn happened(mut cursor: Cursor, what: &Await) {
    loop {
        match cursor.next().await {
            Ok(events) => {
                let happened = events.iter().any(|event| match what {
                    // Known by its key and its revision: the key alone may be another's by now.
                    Await::Gone(_, created) => event.entry.as_ref().is_none_or(|entry| entry.created != *created),
                    Await::Changed(_) => true,
                    Await::AnyGone(_) => event.entry.is_none(),
                });
                if happened {
                    return;
                }
            }
            Err(WatchError::Compacted { .. }) => return,
            Err(WatchError::Closed | WatchError::Unavailable(_)) => {
                return tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
