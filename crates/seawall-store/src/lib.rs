//! The store that coordination state lives in: keys in one history of revisions, transactions, leases, watches.
//!
//! The model is etcd's: every committed transaction that writes makes one new [`Revision`]; a [`Txn`] compares and
//! then does one of two lists of operations; a key may belong to a lease and goes with it; a watch is a cursor in the
//! history and misses nothing.
//!
//! Two backends share one engine: [`Embedded::memory`] keeps nothing, [`Embedded::open`] acknowledges a write only
//! after SQLite has synced it. The file is described in `docs/store.md`. With the feature `etcd` there is a third, for
//! keys in an etcd cluster; [`open`] chooses by a [`StoreUrl`]. A [`Snapshot`] is all of a store: for backups, [`restore`] and [`migrate`].

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod embedded;
mod engine;
#[cfg(feature = "etcd")]
mod etcd;
mod fence;
pub mod group_commit;
mod history;
mod lease_clock;
mod migrate;
mod model;
mod open;
mod restore;
mod snapshot;
pub mod sqlite;
mod watchers;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use seawall_types::Revision;
use serde::{Deserialize, Serialize};

pub use embedded::{Embedded, STORE_LIMIT};
#[cfg(feature = "simulation")]
pub use engine::simulated::{DiskFault, Simulated};
#[cfg(feature = "etcd")]
pub use etcd::Etcd;
pub use fence::{FENCE_BASE, fence_base, next_fence_base};
pub use migrate::{MigrateError, Migrated, migrate, rehearse};
pub use open::{InvalidStoreUrl, StoreError, StoreUrl, connect, open, open_within};
pub use restore::{RestoreError, Restored, restore};
pub use snapshot::{BackupError, Report, STORE_ID, Snapshot};

/// One key as it stands at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// The revision that created the key (since it was last absent).
    pub created: Revision,
    /// The revision that last wrote it.
    pub modified: Revision,
    /// How many times it has been written since it was created; 1 for a new key.
    pub version: u64,
    /// The lease that it goes with, if any.
    pub lease: Option<LeaseId>,
}

/// A key and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision that did it.
    pub revision: Revision,
    /// The key.
    pub key: Arc<str>,
    /// The key as it is now; `None` when it was deleted.
    pub entry: Option<Entry>,
}

/// Names a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease as it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Names it.
    pub id: LeaseId,
    /// Its whole time: what was asked for or more, see [`Limits`].
    pub ttl: Duration,
}

/// A lease as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Names it.
    pub id: LeaseId,
    /// Its whole time.
    pub ttl: Duration,
    /// What is left of it without another keep-alive. A store that is away in between lets it be longer.
    pub left: Duration,
    /// The keys that go with it, in their order.
    pub keys: Vec<Arc<str>>,
}

/// What a backend takes. The same for as long as it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The shortest lease; a shorter one is granted with this time.
    pub min_ttl: Duration,
    /// The longest lease; a longer one is refused.
    pub max_ttl: Duration,
    /// Leases are granted in whole multiples of this, rounded up.
    pub ttl_step: Duration,
    /// The longest key, in bytes.
    pub max_key: usize,
    /// The largest value, in bytes.
    pub max_value: usize,
    /// The most conditions, and the most operations in one branch of a transaction.
    pub max_ops: usize,
}

/// How a store stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is: `memory`, `embedded`, `etcd`.
    pub backend: &'static str,
    /// The revision that it has come to.
    pub revision: Revision,
    /// The oldest revision that can be watched from.
    pub oldest: Revision,
    /// How many keys there are.
    pub entries: u64,
    /// How many leases there are.
    pub leases: u64,
    /// What it takes: on the disk, or in memory of keys and values, those of the history included.
    pub bytes: u64,
}

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// This one.
    One(Arc<str>),
    /// Those that start with this; all, when it is empty.
    Prefix(Arc<str>),
}

impl Keys {
    /// The one key.
    pub fn one(key: impl Into<Arc<str>>) -> Self {
        Self::One(key.into())
    }

    /// The keys that start with `prefix`.
    pub fn prefix(prefix: impl Into<Arc<str>>) -> Self {
        Self::Prefix(prefix.into())
    }

    /// Whether `key` is one of them.
    pub fn contain(&self, key: &str) -> bool {
        match self {
            Self::One(one) => **one == *key,
            Self::Prefix(prefix) => key.starts_with(&**prefix),
        }
    }
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key exists.
    Exists(String),
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written at this revision.
    Modified(String, Revision),
    /// The key exists and was created at this revision.
    Created(String, Revision),
    /// The key exists and has this value.
    Value(String, Bytes),
    /// The key does not exist, or was last written at this revision or before: nobody has written it since.
    Unmodified(String, Revision),
    /// The key exists and goes with this lease.
    Lease(String, LeaseId),
    /// The key exists and has been written this many times since it was created.
    Version(String, u64),
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key. A lease, if given, must exist; without one the key leaves its former lease.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The lease that it goes with.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; nothing happens when it is absent.
    Delete(String),
    /// Deletes every key that starts with this, which may not be empty. No key among them may be put in the same branch.
    DeletePrefix(String),
    /// Reads a key as it stands after the operations before this one.
    Get(String),
    /// Reads, of the keys in a directory, the one that was created first. A directory is a prefix that ends with `/`,
    /// and everything that starts with it is in it, at any depth. Of keys that one transaction created, any may be taken for the first.
    /// Takes no longer however many there are.
    Oldest(String),
    /// Reads, of the keys in a directory, the one that was created last before the given revision; as
    /// [`Oldest`](Self::Oldest) otherwise. So a queue's members each learn who is just before them.
    NewestBefore(String, Revision),
}

/// If all of `compare` holds, do `then`, otherwise do `otherwise`; all of it or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions; none means that they hold.
    pub compare: Vec<Compare>,
    /// Done when they hold.
    pub then: Vec<Op>,
    /// Done when they do not.
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// Writes one key unconditionally.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { then: vec![Op::Put { key: key.into(), value: value.into(), lease: None }], ..Self::default() }
    }

    /// Deletes one key unconditionally.
    pub fn delete(key: impl Into<String>) -> Self {
        Self { then: vec![Op::Delete(key.into())], ..Self::default() }
    }

    /// The same with one more condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compare.push(compare);
        self
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The store's revision after it. Durable, where the backend is durable at all.
    pub revision: Revision,
    /// Whether the conditions held.
    pub succeeded: bool,
    /// One answer for each operation of the branch that was taken.
    pub results: Vec<OpResult>,
}

/// The answer to one [`Op`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// Written.
    Put,
    /// Whether there was something to delete.
    Deleted(bool),
    /// How many keys were deleted.
    DeletedMany(u64),
    /// What was read; `None` when there is none.
    Got(Option<Entry>),
}

/// A reading of many keys, or of a page of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Which keys.
    pub keys: Keys,
    /// Only those after this key: the last one of the page before. None begins at the first.
    pub after: Option<String>,
    /// Not more entries than this; None sets no limit.
    pub limit: Option<NonZeroU32>,
    /// Leaves the values out: they are empty in the answer.
    pub keys_only: bool,
}

impl Query {
    /// All of `keys`, with their values.
    pub fn new(keys: Keys) -> Self {
        Self { keys, after: None, limit: None, keys_only: false }
    }
}

/// A consistent reading of some keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The revision at which all of it was true. Watch from its successor to miss nothing.
    pub revision: Revision,
    /// The entries in order of their keys.
    pub entries: Vec<Entry>,
    /// Whether the limit left some out. Another page is true at a revision of its own.
    pub more: bool,
}

/// A read that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store does not answer; trying again may help.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}

/// A write that was not, or may not have been, done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Refused as it stands; trying again gives the same.
    #[error("refused: {0}")]
    Invalid(String),
    /// The lease has expired, was revoked or never existed.
    #[error("lease {0} does not exist")]
    NoLease(LeaseId),
    /// Not written: there is no room, on the disk or within the backend's quota. Trying again helps once somebody has made
    /// some, for instance by [`Store::compact`].
    #[error("the store is full, nothing was written: {0}")]
    Full(String),
    /// Not written. Trying again may help.
    #[error("the store is unavailable, nothing was written: {0}")]
    Unavailable(String),
    /// It may have been written or not: read back before trying again. Where the store is another process it may even be
    /// written later, after a reading that does not find it; what must not come late has a condition that others' writes
    /// break, or a lease that can be revoked.
    #[error("the outcome is unknown, it may have been written: {0}")]
    Unknown(String),
}

impl CommitError {
    /// Whether the same write may be tried again without reading back first.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// A watch that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The history before `oldest` is gone: read the range again and watch from there.
    #[error("revisions before {oldest} have been compacted")]
    Compacted {
        /// The oldest revision that can still be watched from.
        oldest: Revision,
    },
    /// The store does not answer; the watch may be begun again from the revision after the last one seen.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// What a backend puts behind a [`Cursor`].
#[async_trait]
pub trait Follow: fmt::Debug + Send + 'static {
    /// As [`Cursor::next`], and as cancel safe.
    async fn next(&mut self) -> Result<Vec<Event>, WatchError>;
}

/// A place in the history of some keys. Ends when it is dropped.
///
/// Who waits in [`next`](Cursor::next) is woken only by what touches these keys, and is never too late for it, however
/// much happens to others. Who does not wait falls behind, at worst until its next event is no longer kept.
#[derive(Debug)]
pub struct Cursor(Box<dyn Follow>);

impl Cursor {
    /// A cursor of a backend.
    pub fn new(follow: impl Follow) -> Self {
        Self(Box::new(follow))
    }

    /// The next events, at least one, in order, whole revisions only (of these keys); waits until there are some. Cancel
    /// safe: a dropped call has taken nothing.
    ///
    /// # Errors
    /// [`WatchError`]; the cursor stays where it is, so that [`WatchError::Compacted`] is said again each time.
    pub async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        self.0.next().await
    }
}

/// Keys, transactions, leases and watches.
///
/// Every method may be dropped before it is done: then a `commit`, `grant`, `keep_alive`, `revoke` or `compact` may still be
/// done or not, and the others have no effect. Reads see every write that was acknowledged before they began. No method
/// waits for ever: a backend that does not answer within seconds is an error.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What this backend takes.
    fn limits(&self) -> Limits;

    /// Reads one key.
    ///
    /// # Errors
    /// [`ReadError`], as every reading.
    async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError>;

    /// Reads every key that starts with `prefix`, at one revision.
    async fn range(&self, prefix: &str) -> Result<Range, ReadError> {
        self.query(Query::new(Keys::prefix(prefix))).await
    }

    /// Reads some keys, at one revision.
    async fn query(&self, query: Query) -> Result<Range, ReadError>;

    /// Does a transaction. `Ok` means durable, where the backend is durable at all.
    ///
    /// # Errors
    /// [`CommitError`]; only after [`CommitError::Unknown`] may it have been done.
    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError>;

    /// Makes a lease that ends `ttl` after its last keep-alive. It never ends because the store itself was away: its
    /// time stands still while the store is paused or waits for its disk, and after a restart it has the whole of it.
    ///
    /// # Errors
    /// [`CommitError::Invalid`] for no time at all, or more than [`Limits::max_ttl`]. After [`CommitError::Unknown`] a
    /// lease may exist that nobody knows; it ends by itself.
    async fn grant(&self, ttl: Duration) -> Result<Lease, CommitError>;

    /// Gives a lease its whole time again, and says how long that is; counted from before the call was made, to be safe.
    ///
    /// # Errors
    /// [`CommitError::NoLease`] from the moment at which the lease is due, be its keys still to be seen or not.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError>;

    /// Ends a lease and deletes its keys, in one revision, which it gives back.
    ///
    /// # Errors
    /// [`CommitError::NoLease`] when it is gone already; otherwise as a commit.
    async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError>;

    /// A lease as it stands; `None` when it has ended, or is due.
    async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseInfo>, ReadError>;

    /// Everything that happens to `keys` from revision `from` on (inclusive, also one that is still to come), in order,
    /// nothing missing.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when the history from there on is no longer whole.
    async fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError>;

    /// Everything that happens to `keys` after the revision that is given back. A reading that is made afterwards and
    /// the cursor together miss nothing.
    ///
    /// # Errors
    /// [`WatchError::Unavailable`], [`WatchError::Closed`].
    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError>;

    /// Forgets what happened before a revision: nobody can watch from there any more. The keys stay. Does nothing when it
    /// is forgotten already; every backend also forgets by itself at some point.
    ///
    /// # Errors
    /// [`CommitError::Invalid`] for a revision beyond the next one.
    async fn compact(&self, before: Revision) -> Result<(), CommitError>;

    /// How the store stands.
    async fn status(&self) -> Result<Status, ReadError>;

    /// All of it at one revision. A lease that ends while it is read may be left out, with its keys.
    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let Range { revision, entries, .. } = self.range("").await?;
        Snapshot::of(self, revision, entries).await
    }
}

/// The longest key, in bytes.
pub const MAX_KEY: usize = 1024;
/// The largest value, in bytes.
pub const MAX_VALUE: usize = 1 << 20;
/// The most conditions or operations in one branch of a transaction.
pub const MAX_OPS: usize = 128;
