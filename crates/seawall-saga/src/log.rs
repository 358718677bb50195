//! The log: every event of every saga, durable in SQLite before it counts. One writer thread, one sync per batch.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Row, params};
use seawall_store::group_commit::{self, AskError};
use seawall_store::sqlite::{self, OpenError};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::engine::{Event, Millis, Status};
use crate::plan::Plan;

const KIND: sqlite::Kind = sqlite::Kind {
    create: |file| file.execute_batch(TABLES),
    upgrades: &[],
    remedy: "put a backup in its place, or move it away to begin anew (sagas that had not ended are lost)",
    shrinks: false,
};

const TABLES: &str = "
    CREATE TABLE saga (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, key TEXT NOT NULL, plan TEXT NOT NULL, input TEXT NOT NULL,
        status TEXT NOT NULL, started INTEGER NOT NULL, ended INTEGER, UNIQUE (name, key)
    ) WITHOUT ROWID;
    CREATE INDEX saga_unfinished ON saga (status) WHERE status IN ('running', 'undoing');
    CREATE INDEX saga_started ON saga (started);
    CREATE TABLE event (
        saga TEXT NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (saga, seq)
    ) WITHOUT ROWID;
";

/// The log could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Nothing was written. Trying again may help.
    #[error("the saga log is unavailable: {0}")]
    Unavailable(String),
    /// It may have been written.
    #[error("the outcome is unknown, the saga log may have been written: {0}")]
    Unknown(String),
    /// The log holds what this Seawall does not understand.
    #[error("the saga log holds what is not understood: {0}")]
    Damaged(String),
}

/// A saga as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its id.
    pub id: String,
    /// The key that the client gave.
    pub key: String,
    /// The plan that it began with.
    pub plan: Arc<Plan>,
    /// What it was started with.
    pub input: Value,
    /// Where it stands.
    pub status: Status,
    /// When it began.
    pub started: Millis,
    /// When it ended.
    pub ended: Option<Millis>,
    /// Its events with their times; empty in a list.
    pub events: Vec<(Millis, Event)>,
}

/// The answer to a start.
#[derive(Clone, Debug)]
pub enum Begun {
    /// It is new.
    New,
    /// The same name and key have been started before.
    Before(Box<Stored>),
}

enum Job {
    Start(Box<Stored>, oneshot::Sender<Result<Begun, LogError>>),
    Append(Append, oneshot::Sender<Result<(), LogError>>),
    Read(Box<dyn FnOnce(&Connection) + Send>),
}

struct Append {
    id: Arc<str>,
    seq: usize,
    at: Millis,
    events: Vec<Event>,
    status: Status,
}

/// A handle on the log; cheap to clone. The file is closed with the last of them.
#[derive(Clone)]
pub struct Log {
    jobs: group_commit::Sender<Job>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

/// Nothing is due by itself; this is only how often the thread looks up.
const TICK: Duration = Duration::from_secs(60);

impl Log {
    /// Opens or creates the file; it belongs to this process alone.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mut connection = sqlite::open(path, &KIND)?;
        let jobs = group_commit::spawn("saga log", TICK, move |batch| commit(&mut connection, batch));
        let jobs = jobs.map_err(|source| OpenError::Directory { path: path.to_owned(), source })?;
        Ok(Self { jobs })
    }

    /// Stores a new saga with its first events, unless its name and key are known.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn start(&self, saga: Stored) -> Result<Begun, LogError> {
        self.ask(|reply| Job::Start(Box::new(saga), reply)).await
    }

    /// Adds events, the first of which is number `seq` of the saga. `Ok` means durable.
    ///
    /// # Errors
    /// [`LogError`]; a sequence number that is taken is [`LogError::Unavailable`]: somebody else runs this saga.
    pub async fn append(
        &self,
        id: &Arc<str>,
        seq: usize,
        events: Vec<Event>,
        status: Status,
        at: Millis,
    ) -> Result<(), LogError> {
        let append = Append { id: id.clone(), seq, at, events, status };
        self.ask(|reply| Job::Append(append, reply)).await
    }

    /// Every saga that has not ended, with its events.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn unfinished(&self) -> Result<Vec<Stored>, LogError> {
        self.read(|connection| {
            let mut found = sagas(connection, "WHERE status IN ('running', 'undoing') ORDER BY started", [])?;
            for saga in &mut found {
                saga.events = events(connection, &saga.id)?;
            }
            Ok(found)
        })
        .await
    }

    /// One saga with its events.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn load(&self, id: &str) -> Result<Option<Stored>, LogError> {
        let id = id.to_owned();
        self.read(move |connection| {
            let Some(mut saga) = sagas(connection, "WHERE id = ?1", [&id])?.pop() else { return Ok(None) };
            saga.events = events(connection, &id)?;
            Ok(Some(saga))
        })
        .await
    }

    /// The latest sagas, newest first, without their events.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn list(&self, status: Option<Status>, limit: usize) -> Result<Vec<Stored>, LogError> {
        self.read(move |connection| {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let which = "WHERE (?1 IS NULL OR status = ?1) ORDER BY started DESC, id DESC LIMIT ?2";
            sagas(connection, which, params![status.map(Status::as_str), limit])
        })
        .await
    }

    /// How many sagas there are in each status.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn counts(&self) -> Result<Vec<(String, u64)>, LogError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT status, count(*) FROM saga GROUP BY status")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, LogError> {
        self.ask(|reply: oneshot::Sender<Result<T, LogError>>| {
            Job::Read(Box::new(move |connection| drop(reply.send(read(connection).map_err(Into::into)))))
        })
        .await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, LogError>>) -> Job) -> Result<T, LogError> {
        self.jobs.ask(job).await.unwrap_or_else(|error| {
            Err(match error {
                AskError::NotQueued(why) => LogError::Unavailable(why),
                AskError::Unanswered(why) => LogError::Unknown(why),
            })
        })
    }
}

/// Keeps what SQLite says apart from what the rows hold.
enum ReadError {
    Sqlite(rusqlite::Error),
    Damaged(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<ReadError> for LogError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Sqlite(error) => Self::Unavailable(error.to_string()),
            ReadError::Damaged(what) => Self::Damaged(what),
        }
    }
}

/// A written job that is answered after the sync.
enum Written {
    Start(Begun, oneshot::Sender<Result<Begun, LogError>>),
    Append(oneshot::Sender<Result<(), LogError>>),
}

fn commit(connection: &mut Connection, batch: &mut Vec<Job>) {
    let mut reads = Vec::new();
    let mut writes = Vec::new();
    for job in batch.drain(..) {
        match job {
            Job::Read(read) => reads.push(read),
            write => writes.push(write),
        }
    }
    if !writes.is_empty() {
        write(connection, writes);
    }
    for read in reads {
        read(connection);
    }
}

fn write(connection: &mut Connection, jobs: Vec<Job>) {
    let tx = match connection.transaction() {
        Ok(tx) => tx,
        Err(error) => {
            tracing::error!(%error, "the saga log cannot be written");
            return jobs.into_iter().for_each(|job| job.fail(LogError::Unavailable(error.to_string())));
        }
    };
    let mut written = Vec::new();
    for job in jobs {
        // Each job stands or falls alone; the sync is shared.
        match job {
            Job::Start(saga, reply) => match savepoint(&tx, |tx| start(tx, &saga)) {
                Ok(begun) => written.push(Written::Start(begun, reply)),
                Err(error) => drop(reply.send(Err(error.into()))),
            },
            Job::Append(append, reply) => match savepoint(&tx, |tx| Ok(append.write(tx)?)) {
                Ok(()) => written.push(Written::Append(reply)),
                Err(error) => drop(reply.send(Err(error.into()))),
            },
            Job::Read(_) => {}
        }
    }
    let committed = tx.commit().map_err(|error| {
        tracing::error!(%error, "the saga log cannot be synced");
        LogError::Unknown(error.to_string())
    });
    for answer in written {
        match (answer, &committed) {
            (Written::Start(begun, reply), Ok(())) => drop(reply.send(Ok(begun))),
            (Written::Append(reply), Ok(())) => drop(reply.send(Ok(()))),
            (Written::Start(_, reply), Err(error)) => drop(reply.send(Err(error.clone()))),
            (Written::Append(reply), Err(error)) => drop(reply.send(Err(error.clone()))),
        }
    }
}

impl Job {
    fn fail(self, error: LogError) {
        match self {
            Self::Start(_, reply) => drop(reply.send(Err(error))),
            Self::Append(_, reply) => drop(reply.send(Err(error))),
            Self::Read(_) => {}
        }
    }
}

fn savepoint<T>(tx: &Connection, work: impl FnOnce(&Connection) -> Result<T, ReadError>) -> Result<T, ReadError> {
    tx.execute_batch("SAVEPOINT job")?;
    let result = work(tx);
    tx.execute_batch(if result.is_ok() { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" })?;
    result
}

fn start(tx: &Connection, saga: &Stored) -> Result<Begun, ReadError> {
    if let Some(before) = sagas(tx, "WHERE name = ?1 AND key = ?2", [&saga.plan.name, &saga.key])?.pop() {
        return Ok(Begun::Before(Box::new(before)));
    }
    let plan = serde_json::to_string(&*saga.plan).expect("a plan is plain data");
    tx.prepare_cached("INSERT INTO saga VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL)")?.execute(params![
        saga.id,
        saga.plan.name,
        saga.key,
        plan,
        saga.input.to_string(),
        saga.status.as_str(),
        saga.started
    ])?;
    for (seq, (at, event)) in saga.events.iter().enumerate() {
        insert(tx, &saga.id, seq, *at, event)?;
    }
    Ok(Begun::New)
}

impl Append {
    fn write(&self, tx: &Connection) -> rusqlite::Result<()> {
        for (offset, event) in self.events.iter().enumerate() {
            insert(tx, &self.id, self.seq + offset, self.at, event)?;
        }
        let ended = self.status.is_final().then_some(self.at);
        tx.prepare_cached("UPDATE saga SET status = ?2, ended = ?3 WHERE id = ?1")?.execute(params![
            &*self.id,
            self.status.as_str(),
            ended
        ])?;
        Ok(())
    }
}

fn insert(tx: &Connection, id: &str, seq: usize, at: Millis, event: &Event) -> rusqlite::Result<()> {
    let text = serde_json::to_string(event).expect("an event is plain data");
    tx.prepare_cached("INSERT INTO event VALUES (?1, ?2, ?3, ?4)")?.execute(params![id, seq, at, text])?;
    Ok(())
}

fn sagas(connection: &Connection, which: &str, params: impl rusqlite::Params) -> Result<Vec<Stored>, ReadError> {
    let sql = format!("SELECT id, key, plan, input, status, started, ended FROM saga {which}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(stored(row)?);
    }
    Ok(found)
}

fn stored(row: &Row<'_>) -> Result<Stored, ReadError> {
    let id: String = row.get(0)?;
    let parse = |text: String, what: &str| {
        serde_json::from_str(&text).map_err(|error| ReadError::Damaged(format!("{what} of saga {id}: {error}")))
    };
    Ok(Stored {
        key: row.get(1)?,
        plan: Arc::new(
            serde_json::from_value(parse(row.get(2)?, "the plan")?)
                .map_err(|error| ReadError::Damaged(format!("the plan of saga {id}: {error}")))?,
        ),
        input: parse(row.get(3)?, "the input")?,
        status: serde_json::from_value(Value::String(row.get(4)?))
            .map_err(|error| ReadError::Damaged(format!("the status of saga {id}: {error}")))?,
        started: row.get(5)?,
        ended: row.get(6)?,
        events: Vec::new(),
        id,
    })
}

fn events(connection: &Connection, id: &str) -> Result<Vec<(Millis, Event)>, ReadError> {
    let sql = "SELECT at, event FROM event WHERE saga = ?1 ORDER BY seq";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([id], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
    let mut found = Vec::new();
    for row in rows.collect::<rusqlite::Result<Vec<(Millis, String)>>>()? {
        let event = serde_json::from_str(&row.1)
            .map_err(|error| ReadError::Damaged(format!("event {} of saga {id}: {error}", found.len())))?;
        found.push((row.0, event));
    }
    Ok(found)
}
