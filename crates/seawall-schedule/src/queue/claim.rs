//! Claiming a job, keeping it, and saying what became of it.

use std::fmt;
use std::str::FromStr;
use std::sync::PoisonError;
use std::time::Duration;

use seawall_coord::{Fence, Owner, Token};
use seawall_store::{Compare, Entry, Keys, LeaseId, Op, OpResult, Txn};
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::item::{CLAIMS, Item, ItemId, Place, claim_key};
use super::{MAX_DONE, QueueError, Queues, TRIES, checked, contended, later, reading, writing};
use crate::jobs::now;
use crate::keys::json;

/// How long a claim may live without a keep-alive.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// The pause before a job that has failed is pending again, which doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Names a claim; a secret of its holder. As text the number of its lease and its token, in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimId {
    lease: LeaseId,
    token: Token,
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.lease.0, self.token)
    }
}

impl FromStr for ClaimId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-').filter(|(lease, _)| lease.len() == 16);
        let claim = parts.and_then(|(lease, token)| {
            Some(Self { lease: LeaseId(u64::from_str_radix(lease, 16).ok()?), token: token.parse().ok()? })
        });
        claim.ok_or_else(|| "this is no claim; one looks like `<16 digits>-<32 digits>`".to_owned())
    }
}

/// The value of a claim's key.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    claim: String,
}

/// A job that somebody has claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The job.
    pub id: ItemId,
    /// What is to be done.
    pub data: Value,
    /// How often it has been claimed, this time included.
    pub attempt: u32,
    /// By which the holder is recognised.
    pub claim: ClaimId,
    /// Larger than that of every claim of this job before.
    pub fence: Fence,
    /// How long the claim lives without a keep-alive, from before it was asked for.
    pub ttl: Duration,
}

/// What happens to a job that has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retry {
    /// It is tried again after a while that grows, unless it was tried often enough.
    #[default]
    Later,
    /// The same after this while, a day at most.
    After(Duration),
    /// It is parked.
    Never,
}

impl Queues {
    /// Claims the job that has waited longest, and waits for one at most for `patience`; none when there is none. The claim
    /// ends `ttl` (1 s to 1 h) after its last keep-alive, and the job is pending again. Cancel safe: what was claimed by a
    /// dropped future ends by its time, and counts as an attempt.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn claim(
        &self,
        queue: &ServiceName,
        worker: &Owner,
        ttl: Duration,
        patience: Duration,
    ) -> Result<Option<Claimed>, QueueError> {
        if !TTL.contains(&ttl) {
            let (ttl, from, to) = (Period::from(ttl), Period::from(*TTL.start()), Period::from(*TTL.end()));
            return Err(QueueError::Invalid(format!("a time to live of {ttl}: {from} to {to} are allowed")));
        }
        let until = Instant::now() + patience;
        let directory = Place::Pending.directory(queue);
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| std::sync::Arc::strong_count(turn) > 1);
            turns.entry(queue.clone()).or_default().clone()
        };
        loop {
            // Begun before it is looked, so that both together miss nothing.
            let (_, mut cursor) = reading(self.store.watch_now(Keys::prefix(directory.clone()))).await?;
            if let Ok(_turn) = tokio::time::timeout_at(until, turn.lock()).await
                && let Some(claimed) = self.try_claim(queue, &directory, worker, ttl).await?
            {
                return Ok(Some(claimed));
            }
            match tokio::time::timeout_at(until, cursor.next()).await {
                // Also when its place is compacted: it is looked anew.
                Ok(_) => {}
                Err(_) => return Ok(None),
            }
        }
    }

    async fn try_claim(
        &self,
        queue: &ServiceName,
        directory: &str,
        worker: &Owner,
        ttl: Duration,
    ) -> Result<Option<Claimed>, QueueError> {
        let mut lease = None;
        let claimed = self.race(queue, directory, worker, ttl, &mut lease).await;
        if let (Some(lease), Ok(None) | Err(_)) = (lease, &claimed) {
            // Otherwise it ends by itself.
            let _ = writing(self.store.revoke(lease)).await;
        }
        claimed
    }

    async fn race(
        &self,
        queue: &ServiceName,
        directory: &str,
        worker: &Owner,
        ttl: Duration,
        lease: &mut Option<LeaseId>,
    ) -> Result<Option<Claimed>, QueueError> {
        for _ in 0..TRIES {
            let oldest = Txn { then: vec![Op::Oldest(directory.to_owned())], ..Txn::default() };
            let read = reading(self.store.commit(oldest)).await?;
            let Some(OpResult::Got(Some(entry))) = read.results.into_iter().next() else { return Ok(None) };
            let parsed = super::item::parse(&entry.key);
            let item = serde_json::from_slice::<Item>(&entry.value);
            let (Some((_, _, id)), Ok(item)) = (parsed, item) else {
                return Err(QueueError::Invalid(format!("`{}` in the store makes no sense", entry.key)));
            };
            let granted = match *lease {
                Some(lease) => lease,
                None => {
                    let granted = writing(self.store.grant(ttl)).await?.id;
                    *lease = Some(granted);
                    granted
                }
            };
            let claim = ClaimId { lease: granted, token: Token::random() };
            let item = Item {
                attempts: item.attempts + 1,
                worker: worker.to_string(),
                started: Some(now()),
                resume: None,
                claim: None,
                ..item
            };
            let (pending, running) = (entry.key.to_string(), Place::Running.key(queue, &id));
            let key = claim_key(queue, &id);
            let stored = json(&Stored { claim: claim.to_string() });
            let txn = Txn {
                compare: vec![
                    Compare::Modified(pending.clone(), entry.modified),
                    Compare::Absent(running.clone()),
                    Compare::Absent(key.clone()),
                ],
                then: vec![
                    Op::Delete(pending),
                    Op::Put { key: running, value: json(&item), lease: None },
                    Op::Put { key: key.clone(), value: stored.clone(), lease: Some(granted) },
                ],
                ..Txn::default()
            };
            let revision = match writing(self.store.commit(txn)).await {
                Ok(committed) => committed.succeeded.then_some(committed.revision),
                Err(QueueError::Unknown(why)) => {
                    // To be read is to be known. Without an answer the claim ends with its lease.
                    let own = reading(self.store.get(&key)).await.map_err(|_| QueueError::Unknown(why))?;
                    own.filter(|own| own.value == stored).map(|own| own.created)
                }
                Err(error) => return Err(error),
            };
            if let Some(revision) = revision {
                let fence = Fence::new(self.fence_base + revision.0);
                return Ok(Some(Claimed { id, data: item.data, attempt: item.attempts, claim, fence, ttl }));
            }
            tokio::time::sleep(Duration::from_millis(10).mul_f64(fastrand::f64())).await;
        }
        Err(contended(queue))
    }

    /// The claim's key, if it is this claim's.
    async fn held(&self, queue: &ServiceName, id: &ItemId, claim: ClaimId) -> Result<Option<Entry>, QueueError> {
        let entry = reading(self.store.get(&claim_key(queue, id))).await?;
        Ok(entry.filter(|entry| {
            serde_json::from_slice::<Stored>(&entry.value).is_ok_and(|stored| stored.claim == claim.to_string())
        }))
    }

    /// Keeps a claim alive, and says for how long: counted from before the call.
    ///
    /// # Errors
    /// [`QueueError::NotClaimed`] when it is over.
    pub async fn keep(&self, queue: &ServiceName, id: &ItemId, claim: ClaimId) -> Result<Duration, QueueError> {
        let over = || QueueError::NotClaimed(id.clone());
        self.held(queue, id, claim).await?.ok_or_else(over)?;
        match writing(self.store.keep_alive(claim.lease)).await {
            Ok(ttl) => Ok(ttl),
            // Whether it was kept alive makes no difference to whoever asks again.
            Err(QueueError::Unknown(why)) => Err(QueueError::Unavailable(why)),
            Err(error) => match reading(self.store.lease(claim.lease)).await? {
                None => Err(over()),
                Some(_) => Err(error),
            },
        }
    }

    /// The job is done. Can be repeated.
    ///
    /// # Errors
    /// [`QueueError::NotClaimed`] when the claim is over; somebody else may do it, or have done it.
    pub async fn complete(
        &self,
        queue: &ServiceName,
        id: &ItemId,
        claim: ClaimId,
        result: Value,
    ) -> Result<(), QueueError> {
        checked(&result)?;
        self.end(queue, id, claim, |item| {
            let result = Some(result.clone()).filter(|result| !result.is_null());
            (Place::Done, Item { data: Value::Null, result, ended: Some(now()), error: None, ..item })
        })
        .await
        .map(drop)
    }

    /// The job has failed; says whether it will be tried again. Can be repeated.
    ///
    /// # Errors
    /// [`QueueError::NotClaimed`] when the claim is over.
    pub async fn fail(
        &self,
        queue: &ServiceName,
        id: &ItemId,
        claim: ClaimId,
        error: &str,
        retry: Retry,
    ) -> Result<bool, QueueError> {
        let error: String = error.chars().take(1000).collect();
        let place = self.end(queue, id, claim, |item| {
            let growing = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(item.attempts - 1).unwrap_or(u32::MAX));
            let pause = match retry {
                Retry::Later => Some(growing.min(LONGEST_PAUSE).mul_f64(0.5 + 0.5 * fastrand::f64())),
                Retry::After(pause) => Some(pause.min(Duration::from_secs(86_400))),
                Retry::Never => None,
            };
            let error = Some(error.clone());
            match pause.filter(|_| item.attempts < item.max_attempts) {
                Some(pause) => (Place::Running, Item { error, resume: Some(later(now(), pause)), ..item }),
                None => (Place::Parked, Item { error, ended: Some(now()), ..item }),
            }
        });
        Ok(place.await? != Place::Parked)
    }

    async fn end(
        &self,
        queue: &ServiceName,
        id: &ItemId,
        claim: ClaimId,
        to: impl Fn(Item) -> (Place, Item),
    ) -> Result<Place, QueueError> {
        let own = self.held(queue, id, claim).await?;
        let found = self.find(queue, id).await?;
        let over = || QueueError::NotClaimed(id.clone());
        let (place, item, entry) = found.ok_or_else(over)?;
        let Some(own) = own.filter(|_| place == Place::Running) else {
            // The same again finds what it has done.
            return if item.claim == Some(claim.to_string()) { Ok(place) } else { Err(over()) };
        };
        if item.attempts == 0 {
            return Err(over());
        }
        let (place, item) = to(item);
        let item = Item { claim: Some(claim.to_string()), ..item };
        let running = entry.key.to_string();
        let to = place.key(queue, id);
        let mut then =
            vec![Op::Delete(own.key.to_string()), Op::Put { key: to.clone(), value: json(&item), lease: None }];
        if to != running {
            then.push(Op::Delete(running.clone()));
        }
        if place == Place::Done && self.count(Place::Done, queue).await? >= MAX_DONE {
            let oldest = Txn { then: vec![Op::Oldest(Place::Done.directory(queue))], ..Txn::default() };
            let read = reading(self.store.commit(oldest)).await?;
            if let Some(OpResult::Got(Some(oldest))) = read.results.first() {
                then.push(Op::Delete(oldest.key.to_string()));
            }
        }
        let compare =
            vec![Compare::Created(own.key.to_string(), own.created), Compare::Modified(running, entry.modified)];
        if !writing(self.store.commit(Txn { compare, then, ..Txn::default() })).await?.succeeded {
            return Err(over());
        }
        // It has no keys any more; otherwise it ends by itself.
        let _ = writing(self.store.revoke(claim.lease)).await;
        Ok(place)
    }
}

/// The job that a claim's key is about.
pub(super) fn parse(key: &str) -> Option<(ServiceName, ItemId)> {
    let (queue, id) = key.strip_prefix(CLAIMS)?.split_once('/')?;
    Some((ServiceName::try_new(queue).ok()?, id.parse().ok()?))
}
