//! The embedded store: the engine on one SQLite file, or on nothing.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, params};
use seawall_types::Revision;

use crate::engine::{Disk, Engine, HISTORY, History, NoDisk};
use crate::model::{Change, Model};
use crate::sqlite::{self, OpenError};
use crate::{CommitError, Committed, Cursor, Entry, Event, LeaseId, Range, ReadError, Store, Txn, WatchError};

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

/// A store inside this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Embedded {
    engine: Engine,
}

impl Embedded {
    /// Keeps its state in the SQLite file `path`, which it creates if need be and owns alone. A write is acknowledged
    /// after the file has been synced; concurrent writes share one sync.
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be opened, belongs to another process, or holds what Seawall never writes.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let connection = sqlite::open(path, MIGRATIONS)?;
        Ok(Self { engine: Engine::start(File { connection, path: path.to_owned() })? })
    }

    /// Keeps its state in memory alone; for tests and for what need not survive.
    ///
    /// # Errors
    /// [`OpenError`] when the operating system refuses a thread.
    pub fn memory() -> Result<Self, OpenError> {
        Ok(Self { engine: Engine::start(NoDisk)? })
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        Ok(self.engine.view().model.get(key).cloned())
    }

    async fn range(&self, prefix: &str) -> Result<Range, ReadError> {
        Ok(self.engine.view().model.range(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.engine.commit(txn).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, CommitError> {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        if ttl.is_zero() || ttl > DAY {
            return Err(CommitError::Invalid(format!("a lease of {ttl:?}: more than 0 and at most a day is allowed")));
        }
        self.engine.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        self.engine.keep_alive(lease)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        self.engine.revoke(lease).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Cursor, WatchError> {
        self.engine.watch(prefix, from)
    }
}

/// The SQLite file.
struct File {
    connection: Connection,
    path: PathBuf,
}

impl Disk for File {
    fn persist(&mut self, model: &Model, changes: &[Change]) -> Result<(), CommitError> {
        let not_written = |error: rusqlite::Error| CommitError::Unavailable(error.to_string());
        let tx = self.connection.transaction().map_err(not_written)?;
        write(&tx, model, changes).map_err(not_written)?;
        // A failed sync leaves open what is on the disk.
        tx.commit().map_err(|error| CommitError::Unknown(error.to_string()))
    }

    fn load(&mut self) -> Result<(Model, History), OpenError> {
        let failed = |error: rusqlite::Error| OpenError::Sqlite { path: self.path.clone(), why: error.to_string() };
        read(&self.connection).map_err(failed)
    }
}

fn write(tx: &Connection, model: &Model, changes: &[Change]) -> rusqlite::Result<()> {
    let mut put = tx.prepare_cached("INSERT OR REPLACE INTO entry VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    let mut delete = tx.prepare_cached("DELETE FROM entry WHERE key = ?1")?;
    let mut event = tx.prepare_cached(
        "INSERT INTO history (revision, key, value, created, version, lease) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for change in changes {
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
            Change::Ended(id) => drop(tx.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id.0])?),
        }
    }
    let mut meta = tx.prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1")?;
    meta.execute(params!["revision", model.revision.0])?;
    meta.execute(params!["last_lease", model.last_lease.0])?;
    trim(tx)
}

/// Keeps the history between one and two lengths, so that the cost is spread over many commits.
fn trim(tx: &Connection) -> rusqlite::Result<()> {
    let ends =
        "SELECT (SELECT seq FROM history ORDER BY seq LIMIT 1), (SELECT seq FROM history ORDER BY seq DESC LIMIT 1)";
    let (first, last): (Option<i64>, Option<i64>) =
        tx.prepare_cached(ends)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last), length) = (first, last, HISTORY as i64) else { return Ok(()) };
    if last - first > 2 * length {
        let oldest: u64 = tx.query_row("SELECT revision FROM history WHERE seq = ?1", [last - length], |r| r.get(0))?;
        tx.execute("DELETE FROM history WHERE revision < ?1", [oldest])?;
        tx.execute("UPDATE meta SET value = ?1 WHERE name = 'oldest'", [oldest])?;
    }
    Ok(())
}

fn read(connection: &Connection) -> rusqlite::Result<(Model, History)> {
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

    let mut events = VecDeque::new();
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
        events.push_back(Event { revision, key, entry });
    }
    Ok((model, History { oldest: Revision(meta("oldest")?), events }))
}
