//! The embedded store: the engine on one SQLite file, or on nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, params};
use seawall_types::Revision;

use crate::engine::{Disk, Engine, NoDisk};
use crate::history::{self, BOUNDS, Bounds, History};
use crate::lease_clock::STEP;
use crate::model::{Change, Model};
use crate::sqlite::{self, OpenError};
use crate::{
    CommitError, Committed, Cursor, Entry, Event, Keys, Lease, LeaseId, LeaseInfo, Limits, MAX_KEY, MAX_OPS, MAX_VALUE,
    Query, Range, ReadError, Status, Store, Txn, WatchError,
};

const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE entry (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL,
        version INTEGER NOT NULL, lease INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
    CREATE TABLE history (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL, key TEXT NOT NULL,
        value BLOB, created INTEGER, version INTEGER, lease INTEGER
    );
    INSERT INTO meta VALUES ('revision', 1), ('last_lease', 0), ('oldest', 2);
"];

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
    /// after the file has been synced; concurrent writes share one sync.
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be opened, belongs to another process, or holds what Seawall never writes.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let connection = sqlite::open(path, MIGRATIONS)?;
        Ok(Self { engine: Engine::start(File::new(connection, path, BOUNDS))?, path: Some(path.into()) })
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
}

/// The SQLite file.
struct File {
    connection: Connection,
    path: PathBuf,
    bounds: Bounds,
    /// The size of the history in the file.
    bytes: usize,
}

impl File {
    fn new(connection: Connection, path: &Path, bounds: Bounds) -> Self {
        Self { connection, path: path.to_owned(), bounds, bytes: 0 }
    }

    fn write(&mut self, model: &Model, changes: &[Change]) -> Result<(), CommitError> {
        let not_written = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => CommitError::Full(error.to_string()),
            _ => CommitError::Unavailable(error.to_string()),
        };
        let tx = self.connection.transaction().map_err(not_written)?;
        let bytes = write(&tx, model, changes, self.bytes)
            .and_then(|bytes| trim(&tx, self.bounds, bytes))
            .map_err(not_written)?;
        tx.commit().map_err(|error| match error.sqlite_error_code() {
            // There was no room for the whole transaction in the log, so none of it counts.
            Some(ErrorCode::DiskFull) => not_written(error),
            // A failed sync leaves open what is on the disk.
            _ => CommitError::Unknown(error.to_string()),
        })?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Disk for File {
    fn persist(&mut self, model: &Model, changes: &[Change]) -> Result<(), CommitError> {
        let written = self.write(model, changes);
        match written {
            Err(error) if !self.connection.is_autocommit() => {
                Err(CommitError::Unknown(format!("{error}, and it could not be rolled back")))
            }
            written => written,
        }
    }

    fn load(&mut self) -> Result<(Model, History), OpenError> {
        let failed = |error: rusqlite::Error| OpenError::Sqlite { path: self.path.clone(), why: error.to_string() };
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK").map_err(failed)?;
        }
        let (model, history, bytes) = read(&self.connection, self.bounds).map_err(failed)?;
        self.bytes = bytes;
        Ok((model, history))
    }
}

/// The size of a row of the history, as [`history::size`] has it.
const SIZE: &str = "length(CAST(key AS BLOB)) + ifnull(length(value), 0)";

/// Takes the size of the history, and says what that is then.
fn write(tx: &Connection, model: &Model, changes: &[Change], mut bytes: usize) -> rusqlite::Result<usize> {
    let mut put = tx.prepare_cached("INSERT OR REPLACE INTO entry VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    let mut delete = tx.prepare_cached("DELETE FROM entry WHERE key = ?1")?;
    let mut event = tx.prepare_cached(
        "INSERT INTO history (revision, key, value, created, version, lease) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for change in changes {
        if let Change::Event(event) = change {
            bytes += history::size(event);
        }
        match change {
            Change::Event(Event { revision, key, entry: Some(e) }) => {
                let (value, lease) = (&e.value[..], e.lease.map(|lease| lease.0));
                put.execute(params![key, value, e.created.0, e.modified.0, e.version, lease])?;
                event.execute(params![revision.0, key, value, e.created.0, e.version, lease])?;
            }
            Change::Event(Event { revision, key, entry: None }) => {
                delete.execute([key])?;
                event.execute(params![revision.0, key, None::<&[u8]>, None::<u64>, None::<u64>, None::<u64>])?;
            }
            Change::Granted(id, ttl) => {
                let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                tx.prepare_cached("INSERT INTO lease VALUES (?1, ?2)")?.execute([id.0, millis])?;
            }
            Change::Forgotten(before) => {
                let sum = format!("SELECT ifnull(sum({SIZE}), 0) FROM history WHERE revision < ?1");
                bytes -= tx.query_row(&sum, [before.0], |row| row.get::<_, usize>(0))?;
                tx.execute("DELETE FROM history WHERE revision < ?1", [before.0])?;
                tx.execute("UPDATE meta SET value = max(value, ?1) WHERE name = 'oldest'", [before.0])?;
            }
            Change::Ended(id) => drop(tx.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id.0])?),
        }
    }
    let mut meta = tx.prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1")?;
    meta.execute(params!["revision", model.revision.0])?;
    meta.execute(params!["last_lease", model.last_lease.0])?;
    Ok(bytes)
}

/// Keeps the history between one and two lengths, so that the cost is spread over many commits. Takes its size, and says
/// what that is then.
fn trim(tx: &Connection, bounds: Bounds, bytes: usize) -> rusqlite::Result<usize> {
    let ends =
        "SELECT (SELECT seq FROM history ORDER BY seq LIMIT 1), (SELECT seq FROM history ORDER BY seq DESC LIMIT 1)";
    let (first, last): (Option<i64>, Option<i64>) =
        tx.prepare_cached(ends)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last)) = (first, last) else { return Ok(bytes) };
    if !bounds.exceeded_by(usize::try_from(last - first).unwrap_or(0) / 2, bytes / 2) {
        return Ok(bytes);
    }
    // From the newest back: the revision that no longer fits goes, whole, and all before it.
    let mut newest_first = tx.prepare(&format!("SELECT revision, {SIZE} FROM history ORDER BY seq DESC"))?;
    let mut rows = newest_first.query([])?;
    let (mut events, mut size) = (0, 0);
    let (mut revision, mut before) = (0, 0);
    while let Some(row) = rows.next()? {
        let (of, grown): (u64, usize) = (row.get(0)?, row.get(1)?);
        if of != revision {
            (revision, before) = (of, size);
        }
        (events, size) = (events + 1, size + grown);
        if bounds.exceeded_by(events, size) {
            tx.execute("DELETE FROM history WHERE revision <= ?1", [revision])?;
            tx.execute("UPDATE meta SET value = ?1 WHERE name = 'oldest'", [revision + 1])?;
            return Ok(before);
        }
    }
    Ok(size)
}

fn read(connection: &Connection, bounds: Bounds) -> rusqlite::Result<(Model, History, usize)> {
    let meta =
        |name: &str| connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get::<_, u64>(0));
    let mut model = Model::default();
    let mut leases = connection.prepare("SELECT id, ttl_ms FROM lease")?;
    let mut rows = leases.query([])?;
    while let Some(row) = rows.next()? {
        model.apply(&Change::Granted(LeaseId(row.get(0)?), Duration::from_millis(row.get(1)?)));
    }
    let mut entries = connection.prepare("SELECT key, value, created, modified, version, lease FROM entry")?;
    let mut rows = entries.query([])?;
    while let Some(row) = rows.next()? {
        let entry = Entry {
            key: row.get::<_, String>(0)?.into(),
            value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
            created: Revision(row.get(2)?),
            modified: Revision(row.get(3)?),
            version: row.get(4)?,
            lease: row.get::<_, Option<u64>>(5)?.map(LeaseId),
        };
        model.apply(&Change::Event(Event { revision: entry.modified, key: entry.key.clone(), entry: Some(entry) }));
    }
    model.revision = Revision(meta("revision")?);
    model.last_lease = LeaseId(meta("last_lease")?);

    let mut history = History::new(Revision(meta("oldest")?), bounds);
    let mut bytes = 0;
    let mut statement =
        connection.prepare("SELECT revision, key, value, created, version, lease FROM history ORDER BY seq")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let revision = Revision(row.get(0)?);
        let key: Arc<str> = row.get::<_, String>(1)?.into();
        let entry = match row.get::<_, Option<Vec<u8>>>(2)? {
            Some(value) => Some(Entry {
                key: key.clone(),
                value: Bytes::from(value),
                created: Revision(row.get(3)?),
                modified: revision,
                version: row.get(4)?,
                lease: row.get::<_, Option<u64>>(5)?.map(LeaseId),
            }),
            None => None,
        };
        let event = Event { revision, key, entry };
        bytes += history::size(&event);
        history.push(event);
    }
    Ok((model, history, bytes))
}

#[cfg(test)]
mod tests;
