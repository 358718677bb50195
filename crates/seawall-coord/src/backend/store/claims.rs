//! How a claim comes into the queue, and what it waits for there.

use std::time::Duration;

use seawall_store::{Committed, Compare, Entry, Op, OpResult, Txn};
use seawall_types::Revision;
use tokio::time::Instant;

use super::doubts::{self, Settled, TRIES};
use super::queries::{self, Look};
use super::watching::{Await, Watching};
use super::{
    Backoff, ClaimValue, StoreBackend, StoreLease, delay_key, delays, down, json, key_of, queue, reading, refused,
    unix_ms, writing,
};
use crate::backend::{BackendError, Claim, ClaimError, MAX_INFO, Want};
use crate::session::Why;
use crate::sharing::{Kind, Manner};

/// How long something that has to be written before a lock is held is tried, when there is less patience left.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// A claim in its queue.
struct Queued {
    /// By which revision.
    created: Revision,
    /// How it stood then, if it was alone.
    look: Option<Box<Look>>,
}

/// Where a claim is and how long it has patience.
struct Place<'a> {
    lease: &'a StoreLease,
    want: &'a Want,
    manner: &'a Manner,
    key: &'a str,
    created: Revision,
    until: Instant,
}

/// What a look at the queue means for a claim.
enum Turn {
    /// It has the lock.
    Holds(Claim),
    /// The delay that it was after is over.
    Over,
    /// One of these things has to happen, or the time to come. All was so at this revision.
    Waits { awaits: Vec<Await>, due: Instant, revision: Revision, first: Option<Entry> },
}

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
        let kind = manner.kind;
        if !want.name.is_plain() && *manner != Manner::default() {
            let what = if want.name.election().is_some() { "an election is won" } else { "a latch is set" };
            return Err(refused(format!("{what} by one alone, and without a delay")).into());
        }
        if want.name.barrier().is_some() {
            return Err(refused("nobody holds a barrier").into());
        }
        let key = key_of(&want.name, kind, lease, &want.token);
        if want.info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", want.info.len());
            return Err(refused(why).into());
        }
        if patience.is_zero() || matches!(kind, Kind::Permits { .. }) {
            match reading(Box::pin(queries::look(&*self.store, &want.name, &key, kind, queries::LAST))).await {
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
        // What is done quickly is put in boxes of its own, so that ten thousand that wait are small.
        let Queued { created, mut look } = Box::pin(self.enqueue(lease, want, kind, &key, until)).await?;
        let place = Place { lease, want, manner, key: &key, created, until };
        let mut watching: Option<Watching> = None;
        loop {
            let (awaits, due, revision) = match Box::pin(self.turn(&place, look.take().map(|look| *look))).await? {
                Turn::Holds(claim) => return Ok(claim),
                Turn::Over => continue,
                Turn::Waits { first, .. } if patience.is_zero() => {
                    let holder = self.holder(first.as_ref().filter(|first| *first.key != *key));
                    return Err(ClaimError::Busy { holder });
                }
                Turn::Waits { awaits, due, revision, .. } => (awaits, due, revision),
            };
            if !watching.as_ref().is_some_and(|watching| watching.are(&awaits)) {
                watching = Box::pin(self.watch(awaits, due)).await;
                let seen = watching.as_ref().is_some_and(|watching| watching.follow(revision));
                if !seen && Instant::now() < due {
                    continue;
                }
            }
            let happened = match watching.take() {
                Some(watching) => watching.happens(due).await,
                None => false,
            };
            if !happened && Instant::now() >= until {
                return Err(Box::pin(self.timed_out(&place, began.elapsed())).await);
            }
        }
    }

    /// Whether a claim holds its lock, and what it waits for otherwise.
    async fn turn(&self, place: &Place<'_>, look: Option<Look>) -> Result<Turn, ClaimError> {
        let Place { lease, want, manner: Manner { kind, delay }, key, created, until } = *place;
        let look = match look {
            Some(look) => look,
            None => self.look(want, *kind, key, created, until).await?,
        };
        // The own key, and no other that has come under the same name since.
        let Some(own) = look.own.as_ref().filter(|own| own.created == created) else {
            return Err(self.why_gone(lease).await);
        };
        let value = ClaimValue::read(own);
        if value.kind != *kind {
            return Err(refused(format!("this claim is {} and not {kind}", value.kind)).into());
        }
        Self::same_limit(*kind, &look)?;
        let (mut awaits, due) = if !look.behind.is_empty() {
            (look.behind.clone(), until)
        } else if let Some(left) = look.delay.as_ref().filter(|left| *left.key != *delay_key(want, lease)) {
            let due = self.delays.due(left);
            if Instant::now() >= due {
                self.end_delay(left, until).await?;
                return Ok(Turn::Over);
            }
            (vec![Await::Gone(left.key.clone(), left.created)], due.min(until))
        } else {
            let mut then = Vec::new();
            if look.followed && !value.held {
                let value = json(&ClaimValue { held: true, ..value });
                then.push(Op::Put { key: key.to_owned(), value: value.into(), lease: Some(lease.id) });
            }
            if !delay.is_zero() {
                let value = json(&u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
                then.push(Op::Put { key: delay_key(want, lease), value: value.into(), lease: None });
            }
            if !then.is_empty() && !self.write_own(key, created, then, until).await? {
                return Err(self.why_gone(lease).await);
            }
            return Ok(Turn::Holds(self.claim_of(&want.name, &want.token, own)));
        };
        awaits.push(Await::Gone(own.key.clone(), created));
        Ok(Turn::Waits { awaits, due, revision: look.revision, first: look.first })
    }

    async fn timed_out(&self, place: &Place<'_>, waited: Duration) -> ClaimError {
        let entries = reading(queries::by_age(&*self.store, &queue(&place.want.name))).await.unwrap_or_default();
        let ahead = entries.iter().filter(|entry| entry.created < place.created).count();
        let holder = self.holder(entries.first().filter(|first| *first.key != *place.key));
        ClaimError::TimedOut { waited, ahead, holder }
    }

    fn same_limit(kind: Kind, look: &Look) -> Result<(), BackendError> {
        match look.other_limit {
            Some(limit) => Err(refused(format!("{kind}: the claims before mean a limit of {limit}"))),
            None => Ok(()),
        }
    }

    /// Puts the claim into the queue, or finds it there.
    async fn enqueue(
        &self,
        lease: &StoreLease,
        want: &Want,
        kind: Kind,
        key: &str,
        until: Instant,
    ) -> Result<Queued, ClaimError> {
        let mut backoff = Backoff::new();
        let mut doubt = None;
        loop {
            let error = match self.put_claim(lease, want, kind, key).await {
                Ok(queued) => return Ok(queued),
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
                    (Ok(Some(own)), _) => Ok(Queued { created: own.created, look: None }),
                    (Ok(None), None) => Err(error.into()),
                    (_, doubt) => Err(ClaimError::Unknown(doubt.unwrap_or(error))),
                };
            }
        }
    }

    /// One try at it. Can be repeated whatever became of the last one: a key that is there is left as it is, and what is
    /// still on its way is made void before.
    async fn put_claim(&self, lease: &StoreLease, want: &Want, kind: Kind, key: &str) -> Result<Queued, BackendError> {
        for _ in 0..TRIES {
            let Settled { owner, condition } = self.settled(lease).await?;
            let (info, priority) = (want.info.clone(), want.priority);
            let value = json(&ClaimValue { owner, since_ms: unix_ms(), info, kind, held: false, priority });
            let put = Op::Put { key: key.into(), value: value.into(), lease: Some(lease.id) };
            let txn = Txn {
                compare: vec![Compare::Absent(key.into()), condition],
                // Whoever is alone in the queue need not look again.
                then: vec![
                    Op::NewestBefore(queue(&want.name), queries::LAST),
                    Op::Oldest(delays(&want.name)),
                    put,
                    Op::Get(key.into()),
                ],
                otherwise: vec![Op::Get(key.into())],
            };
            let attempt = self.doubts.attempt(lease.id);
            let committed = writing(self.store.commit(txn)).await;
            if !matches!(committed, Err(BackendError::Unknown { .. })) {
                attempt.answered();
            }
            let Committed { succeeded, revision, mut results } = committed?;
            if let Some(OpResult::Got(Some(own))) = results.pop() {
                let created = own.created;
                let mut results = results.into_iter();
                let look = match (succeeded, results.next(), results.next()) {
                    (true, Some(OpResult::Got(None)), Some(OpResult::Got(delay))) => {
                        Some(Box::new(Look { delay, ..Look::alone(revision, own) }))
                    }
                    _ => None,
                };
                return Ok(Queued { created, look });
            }
            // The session's key was written in this moment: for another claim that was in doubt, or by another process.
            self.doubts.forget(lease.id);
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
