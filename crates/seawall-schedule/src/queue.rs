//! A queue of jobs in a store: put once by a key, claimed by a lease, put back when the claimant dies, parked when it has
//! failed too often.
//!
//! A job is one key, whose place says how it stands: `queue/p/<queue>/<id>` pending, `queue/r/..` running, `queue/f/..` parked,
//! `queue/d/..` done. A claim is `queue/c/<queue>/<id>`, with a lease. Every move is one transaction; those of a claimant are made
//! under the condition that the very claim is there. A running job without a claim is put back by a sweeper
//! ([`Queues::sweep`]), of which there may be any number.

mod claim;
mod item;
mod sweep;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use seawall_coord::TokenError;
use seawall_store::{CommitError, Compare, Entry, Keys, Op, OpResult, Query, ReadError, Store, Txn, WatchError};
use seawall_types::ServiceName;
use serde_json::Value;

use crate::jobs::{CALL, now};
use crate::keys::json;
pub use claim::{ClaimId, Claimed, Retry};
pub use item::{Item, ItemId, ItemView, Place};

/// How many jobs of a queue may wait, about: they are not counted anew for each.
pub const MAX_PENDING: usize = 10_000;
/// How many done jobs of a queue are remembered, about.
pub const MAX_DONE: usize = 1_000;
/// The largest job, and the largest result, in bytes of JSON.
const MAX_DATA: usize = 64 * 1024;
/// How long a count is believed.
const COUNTED: Duration = Duration::from_secs(1);
/// How often something is tried again that others were quicker to change.
const TRIES: usize = 20;
const ALL: &str = "queue/";

/// Something that was not done with a queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such job there.
    #[error("{0}")]
    NotFound(String),
    /// The key was used before, for something else.
    #[error("the key `{0}` was used before for another job")]
    Conflict(ItemId),
    /// The claim is over: its lease has ended, or the job was completed or failed under it or another. Nothing was changed.
    #[error("this claim does not hold the job `{0}` (any more)")]
    NotClaimed(ItemId),
    /// There are too many.
    #[error("the queue `{0}` is full: {MAX_PENDING} jobs wait in it")]
    Full(ServiceName),
    /// Nothing was changed; trying again may help.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// It may have been done or not; the same again says which.
    #[error("the store has not answered, it may have been done: {0}")]
    Unknown(String),
}

impl From<ReadError> for QueueError {
    fn from(error: ReadError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<WatchError> for QueueError {
    fn from(error: WatchError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<CommitError> for QueueError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Unknown(why) => Self::Unknown(why),
            CommitError::Invalid(why) => Self::Invalid(why),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<TokenError> for QueueError {
    fn from(error: TokenError) -> Self {
        Self::Invalid(error.to_string())
    }
}

async fn reading<T, E: Into<QueueError>>(call: impl Future<Output = Result<T, E>>) -> Result<T, QueueError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(QueueError::Unavailable(format!("no answer within {CALL:?}"))),
    }
}

async fn writing<T>(call: impl Future<Output = Result<T, CommitError>>) -> Result<T, QueueError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(QueueError::Unknown(format!("no answer within {CALL:?}"))),
    }
}

fn contended(queue: &ServiceName) -> QueueError {
    QueueError::Unavailable(format!("others change the queue `{queue}` at the same time"))
}

fn checked(data: &Value) -> Result<(), QueueError> {
    let length = data.to_string().len();
    if length > MAX_DATA {
        return Err(QueueError::Invalid(format!("{length} bytes of data: at most {MAX_DATA} are allowed")));
    }
    Ok(())
}

/// What is to be put into a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct NewItem {
    /// The key by which it is put once, however often it is put.
    pub id: ItemId,
    /// What whoever does it needs to know; 64 KiB of JSON at most.
    pub data: Value,
    /// How often it is tried before it is parked; 1 to 100.
    pub max_attempts: u32,
}

/// How often a job is tried unless it says otherwise.
pub const ATTEMPTS: u32 = 5;

/// Queues in a store, under the keys `queue/`; cheap to clone.
#[derive(Clone)]
pub struct Queues {
    store: Arc<dyn Store>,
    fence_base: u64,
    counts: Arc<Mutex<HashMap<String, (Instant, usize)>>>,
    /// Whoever of this process claims from a queue; so they do not take the same job from each other.
    turns: Arc<Mutex<HashMap<ServiceName, Arc<tokio::sync::Mutex<()>>>>>,
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").finish_non_exhaustive()
    }
}

impl Queues {
    /// The queues of this store.
    ///
    /// # Errors
    /// [`QueueError`] when the store cannot be written.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, QueueError> {
        let fence_base = writing(seawall_store::fence_base(&*store)).await?;
        Ok(Self { store, fence_base, counts: Arc::default(), turns: Arc::default() })
    }

    /// Puts a job into a queue, once: says where it is by now, and whether it is new. Can be repeated.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn put(&self, queue: &ServiceName, new: NewItem) -> Result<(Place, bool), QueueError> {
        let NewItem { id, data, max_attempts } = new;
        checked(&data)?;
        if !(1..=100).contains(&max_attempts) {
            return Err(QueueError::Invalid(format!("{max_attempts} attempts: 1 to 100 are allowed")));
        }
        for _ in 0..TRIES {
            if let Some((place, item, _)) = self.find(queue, &id).await? {
                // What is done no longer says what it was.
                if place != Place::Done && item.data != data {
                    return Err(QueueError::Conflict(id));
                }
                return Ok((place, false));
            }
            if self.count(Place::Pending, queue).await? >= MAX_PENDING {
                return Err(QueueError::Full(queue.clone()));
            }
            let item = Item::new(data.clone(), max_attempts, now());
            let mut txn = Txn::put(Place::Pending.key(queue, &id), json(&item));
            txn.compare = Place::ALL.map(|place| Compare::Absent(place.key(queue, &id))).into();
            if writing(self.store.commit(txn)).await?.succeeded {
                self.counted(Place::Pending, queue, 1);
                return Ok((Place::Pending, true));
            }
        }
        Err(contended(queue))
    }

    /// A job, wherever it is.
    async fn find(&self, queue: &ServiceName, id: &ItemId) -> Result<Option<(Place, Item, Entry)>, QueueError> {
        let then = Place::ALL.map(|place| Op::Get(place.key(queue, id))).into();
        let read = reading(self.store.commit(Txn { then, ..Txn::default() })).await?;
        for (place, result) in Place::ALL.into_iter().zip(read.results) {
            if let OpResult::Got(Some(entry)) = result {
                let item = serde_json::from_slice(&entry.value).map_err(|error| {
                    QueueError::Invalid(format!("the job `{id}` in the store makes no sense: {error}"))
                })?;
                return Ok(Some((place, item, entry)));
            }
        }
        Ok(None)
    }

    /// How many jobs of a queue are somewhere, about.
    async fn count(&self, place: Place, queue: &ServiceName) -> Result<usize, QueueError> {
        let directory = place.directory(queue);
        let known = self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(&directory).copied();
        if let Some((_, count)) = known.filter(|(since, _)| since.elapsed() < COUNTED) {
            return Ok(count);
        }
        let query = Query { keys_only: true, ..Query::new(Keys::prefix(directory.clone())) };
        let count = reading(self.store.query(query)).await?.entries.len();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, (since, _)| since.elapsed() < COUNTED);
        counts.insert(directory, (Instant::now(), count));
        Ok(count)
    }

    fn counted(&self, place: Place, queue: &ServiceName, more: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = counts.get_mut(&place.directory(queue)) {
            *count += more;
        }
    }

    /// One job.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn get(&self, queue: &ServiceName, id: &ItemId) -> Result<ItemView, QueueError> {
        let found = self.find(queue, id).await?;
        let (place, item, _) = found.ok_or_else(|| no_item(queue, id))?;
        Ok(item.shown(id.clone(), place))
    }

    /// The jobs of a queue that are somewhere, in the order in which they came there, at most `limit`.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn list(&self, queue: &ServiceName, place: Place, limit: usize) -> Result<Vec<ItemView>, QueueError> {
        let directory = place.directory(queue);
        let mut entries = reading(self.store.range(&directory)).await?.entries;
        entries.sort_by_key(|entry| entry.created);
        let view = |entry: &Entry| {
            let id = entry.key.strip_prefix(&*directory)?.parse().ok()?;
            Some(serde_json::from_slice::<Item>(&entry.value).ok()?.shown(id, place))
        };
        Ok(entries.iter().filter_map(view).take(limit).collect())
    }

    /// How many jobs are where, by queue.
    ///
    /// # Errors
    /// [`QueueError`].
    pub async fn totals(&self) -> Result<BTreeMap<ServiceName, BTreeMap<Place, usize>>, QueueError> {
        let query = Query { keys_only: true, ..Query::new(Keys::prefix(ALL)) };
        let mut totals = BTreeMap::<ServiceName, BTreeMap<Place, usize>>::new();
        for entry in reading(self.store.query(query)).await?.entries {
            if let Some((place, queue, _)) = item::parse(&entry.key) {
                *totals.entry(queue).or_default().entry(place).or_default() += 1;
            }
        }
        Ok(totals)
    }

    /// Lets a parked job be tried again, as often as at first.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is none; nothing was changed.
    pub async fn retry(&self, queue: &ServiceName, id: &ItemId) -> Result<(), QueueError> {
        self.unpark(queue, id, |item| {
            let item = Item { attempts: 0, resume: None, ended: None, ..item };
            Some(Op::Put { key: Place::Pending.key(queue, id), value: json(&item), lease: None })
        })
        .await
    }

    /// Forgets a parked job.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is none; nothing was changed.
    pub async fn discard(&self, queue: &ServiceName, id: &ItemId) -> Result<(), QueueError> {
        self.unpark(queue, id, |_| None).await
    }

    async fn unpark(
        &self,
        queue: &ServiceName,
        id: &ItemId,
        put: impl Fn(Item) -> Option<Op>,
    ) -> Result<(), QueueError> {
        for _ in 0..TRIES {
            let found = self.find(queue, id).await?.filter(|(place, ..)| *place == Place::Parked);
            let Some((_, item, entry)) = found else {
                return Err(QueueError::NotFound(format!("no job `{id}` is parked in the queue `{queue}`")));
            };
            let key = entry.key.to_string();
            let then = std::iter::once(Op::Delete(key.clone())).chain(put(item)).collect();
            let txn = Txn { compare: vec![Compare::Modified(key, entry.modified)], then, ..Txn::default() };
            if writing(self.store.commit(txn)).await?.succeeded {
                return Ok(());
            }
        }
        Err(contended(queue))
    }
}

fn no_item(queue: &ServiceName, id: &ItemId) -> QueueError {
    QueueError::NotFound(format!("there is no job `{id}` in the queue `{queue}`"))
}

/// So much later.
fn later(now: Timestamp, by: Duration) -> Timestamp {
    now.checked_add(by).ok().and_then(|at| Timestamp::from_millisecond(at.as_millisecond()).ok()).unwrap_or(now)
}
