//! The embedded store: the engine on one SQLite file, or on nothing.

mod file;
mod rows;
mod upgrade;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;
use seawall_types::Revision;

use crate::engine::{Engine, NoDisk};
use crate::history::BOUNDS;
use crate::lease_clock::STEP;
use crate::restore;
use crate::snapshot::directory;
use crate::sqlite::{self, OpenError};
use crate::{
    CommitError, Committed, Cursor, Entry, FENCE_BASE, Keys, Lease, LeaseId, LeaseInfo, Limits, MAX_KEY, MAX_OPS,
    MAX_VALUE, Query, Range, ReadError, Report, Snapshot, Status, Store, Txn, WatchError,
};
use file::File;
use rows::KIND;

/// What to do about a file that is damaged. A copy that is put in its place by hand would let fencing tokens start over.
const REMEDY: &str = "restore a backup with `seawall store restore FILE`, which keeps fencing tokens growing (a copy that is \
                      put in its place by hand does not); without a backup, move it and the files whose names begin with its \
                      own away: services register again by themselves, every lock is free, and its tokens still grow as \
                      long as this machine's clock has not been set back";

/// How large `store.db` may become unless something else is said: 2 GiB.
pub const STORE_LIMIT: u64 = 2 << 30;

const LIMITS: Limits = Limits {
    min_ttl: STEP,
    max_ttl: Duration::from_secs(24 * 3600),
    ttl_step: Duration::from_millis(1),
    max_key: MAX_KEY,
    max_value: MAX_VALUE,
    max_ops: MAX_OPS,
};

/// A store inside this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Embedded {
    engine: Engine,
    /// None in memory.
    path: Option<Arc<Path>>,
}

impl Embedded {
    /// Keeps its state in the SQLite file `path`, which it creates if need be and owns alone. A write is acknowledged
    /// after the file has been synced; concurrent writes share one sync. As [`open_within`](Self::open_within) with
    /// [`STORE_LIMIT`].
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be opened, belongs to another process, or holds what Seawall never writes.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_within(path, STORE_LIMIT)
    }

    /// As [`open`](Self::open), of a file that take `limit` bytes, the log beside it not counted. When it does, what puts
    /// a key or grants a lease is [`CommitError::Full`]; deletions go on. Its history takes a quarter of `limit` at most.
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be opened, belongs to another process, or holds what Seawall never writes.
    pub fn open_within(path: &Path, limit: u64) -> Result<Self, OpenError> {
        let unusable = |source| OpenError::Directory { path: path.to_owned(), source };
        std::fs::create_dir_all(directory(path)).map_err(unusable)?;
        let _alone = restore::lock(path)?;
        restore::finish(path).map_err(unusable)?;
        Ok(Self { engine: Engine::start(File::open(path, limit)?)?, path: Some(path.into()) })
    }

    /// Keeps its state in memory alone; for tests and for what need not survive.
    ///
    /// # Errors
    /// [`OpenError`] when the operating system refuses a thread.
    pub fn memory() -> Result<Self, OpenError> {
        Ok(Self { engine: Engine::start(NoDisk)?, path: None })
    }
}

#[async_trait]
impl Store for Embedded {
    fn limits(&self) -> Limits {
        LIMITS
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        Ok(self.engine.view().model.get(key).cloned())
    }

    async fn query(&self, query: Query) -> Result<Range, ReadError> {
        Ok(self.engine.view().model.query(&query))
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.engine.commit(txn).await
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, CommitError> {
        if ttl.is_zero() || ttl > LIMITS.max_ttl {
            let most = LIMITS.max_ttl;
            return Err(CommitError::Invalid(format!(
                "a lease of {ttl:?}: more than 0 and at most {most:?} is allowed"
            )));
        }
        // The file keeps milliseconds.
        let millis = u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let ttl = Duration::from_millis(millis).max(LIMITS.min_ttl);
        Ok(Lease { id: self.engine.grant(ttl).await?, ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        self.engine.keep_alive(lease)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        self.engine.revoke(lease).await
    }

    async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseInfo>, ReadError> {
        Ok(self.engine.lease(lease))
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
        self.engine.watch(keys, from)
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        self.engine.watch_now(keys)
    }

    async fn compact(&self, before: Revision) -> Result<(), CommitError> {
        self.engine.compact(before).await
    }

    async fn status(&self) -> Result<Status, ReadError> {
        let mut status = self.engine.status();
        if let Some(path) = &self.path {
            let unavailable = |error| ReadError::Unavailable(format!("{}: {error}", path.display()));
            status.backend = "embedded";
            // The log beside the file is there while the file is open.
            let mut log = path.as_os_str().to_owned();
            log.push("-wal");
            let log = std::fs::metadata(log).map_or(0, |log| log.len());
            status.bytes = std::fs::metadata(path).map_err(unavailable)?.len() + log;
        }
        Ok(status)
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        Ok(self.engine.snapshot())
    }
}

/// Checks a file as [`Embedded::open`] does, and reads it.
pub(crate) fn check(path: &Path) -> Result<Report, OpenError> {
    sqlite::peek(path, &KIND, |connection, format| {
        if format == 0 {
            let what = "it is empty".into();
            return Err(OpenError::Damaged { path: path.to_owned(), what, remedy: KIND.remedy });
        }
        let (model, history, kept) = file::read(connection, BOUNDS).map_err(|damage| file::named(path, damage))?;
        let snapshot = Snapshot {
            revision: model.revision,
            last_lease: model.last_lease,
            leases: model.leases().collect(),
            entries: model.entries().cloned().collect(),
        };
        let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
        Ok(Report { format, snapshot, oldest: history.oldest(), events: kept.events, bytes })
    })
}

/// Writes a new file, which nobody may look at before it is synced.
pub(crate) fn write(snapshot: &Snapshot, path: &Path) -> rusqlite::Result<()> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    let tx = connection.transaction()?;
    (KIND.create)(&tx)?;
    rows::put_meta(&tx, rows::OLDEST, snapshot.revision.next().0)?;
    rows::put_meta(&tx, rows::LAST_LEASE, snapshot.last_lease.0)?;
    for (id, ttl) in &snapshot.leases {
        rows::put_lease(&tx, *id, *ttl)?;
    }
    for entry in &snapshot.entries {
        rows::put_entry(&tx, entry)?;
    }
    tx.pragma_update(None, "user_version", KIND.format())?;
    tx.commit()
}

/// What can still be said of the fencing tokens that a damaged store has given: its fence base, and the last revision that is
/// readable.
pub(crate) fn salvage_fences(path: &Path) -> Option<(u64, Revision)> {
    let connection = Connection::open(path).ok()?;
    let (base, last) = rows::salvage(&connection, FENCE_BASE)?;
    Some((std::str::from_utf8(&base.value).ok()?.parse().ok()?, last))
}

#[cfg(test)]
mod tests;
