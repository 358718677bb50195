//! The SQLite file as the engine's disk. A commit dirties the page of each key that it writes and the last page of the
//! history, no more: the revision is that of the history's last row, and what else is counted is kept in memory.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};
use seawall_types::Revision;

use super::rows::{self, KIND, LAST_LEASE, OLDEST};
use super::verify::{Damage, Replay};
use crate::engine::Disk;
use crate::history::{self, BOUNDS, Bounds, History};
use crate::model::{Change, Model};
use crate::sqlite::{self, OpenError};
use crate::{CommitError, Event};

/// How much more than its bounds the history in the file may hold, so that the cost of trimming is spread over many commits.
const SLACK: Bounds = Bounds { events: 1024, bytes: 4 << 20 };
/// Pages that are given back to the file system at one time, and how many have to be free: those few will be used again.
const GIVE_BACK: u64 = 256;
const FREE: u64 = 2048;
/// What a row takes beside its key and value, about.
const ROW: usize = 100;

/// An open `store.db`.
#[derive(Debug)]
pub(super) struct File {
    pub(super) connection: Connection,
    path: PathBuf,
    bounds: Bounds,
    limit: u64,
    /// The history as it is in the file.
    pub(super) kept: Kept,
    /// What the file took when it was measured, pages that are free not counted, and what has been written since.
    used: u64,
    since: u64,
    /// Whether so many pages are free that some are to be given back.
    roomy: bool,
}

/// The size of the history in the file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// The number of the last row; they are consecutive.
    last: i64,
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl File {
    pub(super) fn open(path: &Path, limit: u64) -> Result<Self, OpenError> {
        let connection = sqlite::open(path, &KIND)?;
        let quarter = usize::try_from(limit / 8).unwrap_or(usize::MAX);
        let bounds = Bounds { bytes: BOUNDS.bytes.min(quarter), ..BOUNDS };
        let file = Self::new(connection, path, bounds, limit);
        file.can_give_back();
        Ok(file)
    }

    pub(super) fn new(connection: Connection, path: &Path, bounds: Bounds, limit: u64) -> Self {
        let (path, kept) = (path.to_owned(), Kept::default());
        Self { connection, path, bounds, limit, kept, used: 0, since: 0, roomy: false }
    }

    /// Files of format 1 were created in such a way that their pages cannot be given back one by one. It does without.
    fn can_give_back(&self) {
        let done = self.number("auto_vacuum").and_then(|mode| match mode {
            2 => Ok(()),
            _ => self.connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM"),
        });
        if let Err(error) = done {
            tracing::warn!(file = %self.path.display(), %error, "it will not shrink when keys are deleted");
        }
    }

    fn write(&mut self, model: &Model, changes: &[Change]) -> Result<(), CommitError> {
        let path = self.path.clone();
        let not_written = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => CommitError::Full(format!("{}: {error}", path.display())),
            _ => CommitError::Unavailable(format!("{}: {error}", path.display())),
        };
        let tx = self.connection.transaction().map_err(not_written)?;
        let kept =
            write(&tx, model, changes, self.kept).and_then(|kept| trim(&tx, self.bounds, kept)).map_err(not_written)?;
        tx.commit().map_err(|error| match error.sqlite_error_code() {
            // There was no room for the whole transaction in the log, so none of it counts.
            Some(ErrorCode::DiskFull) => not_written(error),
            // A failed sync leaves open what is on the disk.
            _ => CommitError::Unknown(format!("{}: {error}", path.display())),
        })?;
        self.kept = kept;
        Ok(())
    }

    /// Looks how large the file is.
    fn measure(&mut self) {
        let look = || -> rusqlite::Result<(u64, bool)> {
            let (pages, free) = (self.number("page_count")?, self.number("freelist_count")?);
            let used = pages.saturating_sub(free) * self.number("page_size")?;
            Ok((used, free > FREE && free > pages / 4))
        };
        match look() {
            Ok((used, roomy)) => (self.used, self.since, self.roomy) = (used, 0, roomy),
            Err(error) => tracing::warn!(file = %self.path.display(), %error, "its size cannot be read"),
        }
    }

    fn give_back(&self) -> rusqlite::Result<()> {
        // Each step gives back one page; it is one transaction.
        let mut pages = self.connection.prepare_cached(&format!("PRAGMA incremental_vacuum({GIVE_BACK})"))?;
        let mut pages = pages.query([])?;
        while pages.next()?.is_some() {}
        Ok(())
    }

    /// The file itself becomes shorter when the log is written back to it.
    fn write_back(&self) -> rusqlite::Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    fn number(&self, pragma: &str) -> rusqlite::Result<u64> {
        self.connection.prepare_cached(&format!("PRAGMA {pragma}"))?.query_row([], |row| row.get(0))
    }
}

impl Disk for File {
    fn persist(&mut self, model: &Model, changes: &[Change]) -> Result<(), CommitError> {
        let written = self.write(model, changes);
        if written.is_err() && !self.connection.is_autocommit() {
            let error = written.err().map(|error| error.to_string()).unwrap_or_default();
            return Err(CommitError::Unknown(format!("{error}, and it could not be rolled back")));
        }
        // Each key is written twice, once into the history.
        let size = |change: &Change| if let Change::Event(event) = change { history::size(event) + ROW } else { ROW };
        let bytes: usize = changes.iter().map(size).sum();
        self.since += 2 * bytes as u64;
        if self.used + self.since > self.limit - self.limit / 16 || self.since > self.limit / 16 {
            self.measure();
        }
        written
    }

    fn load(&mut self) -> Result<(Model, History), OpenError> {
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK").map_err(|error| OpenError::of(&self.path, &KIND, &error))?;
        }
        let (model, history, kept) = read(&self.connection, self.bounds).map_err(|damage| named(&self.path, damage))?;
        self.kept = kept;
        self.measure();
        Ok((model, history))
    }

    fn room(&self, bytes: usize) -> Result<(), CommitError> {
        let used = self.used + self.since;
        if used + 2 * bytes as u64 <= self.limit {
            return Ok(());
        }
        let (path, limit) = (self.path.display(), self.limit);
        Err(CommitError::Full(format!(
            "{path} takes {used} bytes of the {limit} that it may (`control.store_limit`): delete keys, or allow more"
        )))
    }

    fn idle(&mut self) {
        if self.since > 0 {
            self.measure();
        }
        if self.roomy {
            let mut given = self.give_back();
            self.measure();
            if given.is_ok() && !self.roomy {
                given = self.write_back();
            }
            if let Err(error) = given {
                tracing::warn!(file = %self.path.display(), %error, "the file does not shrink");
                self.roomy = false;
            }
        }
    }
}

pub(super) fn named(path: &Path, damage: Damage) -> OpenError {
    match damage {
        Damage::Sqlite(error) => OpenError::of(path, &KIND, &error),
        Damage::Found(what) => OpenError::Damaged { path: path.to_owned(), what, remedy: KIND.remedy },
    }
}

/// Takes the size of the history, and says what that is then.
fn write(tx: &Connection, model: &Model, changes: &[Change], mut kept: Kept) -> rusqlite::Result<Kept> {
    let mut granted = false;
    for change in changes {
        match change {
            Change::Event(event) => {
                kept.last += 1;
                rows::put_event(tx, kept.last, event)?;
                kept.events += 1;
                kept.bytes += history::size(event);
            }
            Change::Granted(id, ttl) => {
                rows::put_lease(tx, *id, *ttl)?;
                granted = true;
            }
            Change::Ended(id) => drop(tx.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id.0])?),
            Change::Forgotten(before) => kept = forget(tx, *before, kept)?,
        }
    }
    if granted {
        rows::put_meta(tx, LAST_LEASE, model.last_lease.0)?;
    }
    Ok(kept)
}

/// Keeps the history within its bounds, and some slack.
fn trim(tx: &Connection, bounds: Bounds, kept: Kept) -> rusqlite::Result<Kept> {
    let slack = Bounds { events: bounds.events + SLACK.events, bytes: bounds.bytes + SLACK.bytes.min(bounds.bytes) };
    if !slack.exceeded_by(kept.events, kept.bytes) {
        return Ok(kept);
    }
    cut(tx, kept, |_, kept| bounds.exceeded_by(kept.events, kept.bytes))
}

/// Forgets what happened before a revision.
fn forget(tx: &Connection, before: Revision, kept: Kept) -> rusqlite::Result<Kept> {
    let kept = cut(tx, kept, |revision, _| revision < before)?;
    let known: u64 = tx.query_row("SELECT value FROM meta WHERE name = ?1", [OLDEST], |row| row.get(0))?;
    rows::put_meta(tx, OLDEST, known.max(before.0))?;
    Ok(kept)
}

/// Takes whole revisions off the beginning of the history for as long as `more` says so of the next one, or of what is left.
fn cut(tx: &Connection, mut kept: Kept, more: impl Fn(Revision, Kept) -> bool) -> rusqlite::Result<Kept> {
    let mut gone = None;
    {
        let mut oldest_first = tx.prepare_cached(
            "SELECT seq, revision, length(CAST(key AS BLOB)) + ifnull(length(value), 0) FROM history ORDER BY seq",
        )?;
        let mut rows = oldest_first.query([])?;
        while let Some(row) = rows.next()? {
            let (seq, revision): (i64, u64) = (row.get(0)?, row.get(1)?);
            let begun = gone.is_some_and(|(_, last)| last == revision);
            if !begun && !more(Revision(revision), kept) {
                break;
            }
            gone = Some((seq, revision));
            kept.events -= 1;
            kept.bytes -= row.get::<_, usize>(2)?;
        }
    }
    if let Some((seq, revision)) = gone {
        tx.prepare_cached("DELETE FROM history WHERE seq <= ?1")?.execute([seq])?;
        rows::put_meta(tx, OLDEST, revision + 1)?;
    }
    Ok(kept)
}

pub(super) fn read(connection: &Connection, bounds: Bounds) -> Result<(Model, History, Kept), Damage> {
    let mut model = Model::default();
    rows::each_lease(connection, |id, ttl| model.apply(&Change::Granted(id, ttl)))?;
    rows::each_entry(connection, |entry| {
        let (revision, key) = (entry.modified, entry.key.clone());
        model.apply(&Change::Event(Event { revision, key, entry: Some(entry) }));
    })?;
    model.last_lease = crate::LeaseId(rows::meta(connection, LAST_LEASE)?);

    let oldest = Revision(rows::meta(connection, OLDEST)?);
    let (mut history, mut replay, mut kept) = (History::new(oldest, bounds), Replay::new(oldest), Kept::default());
    rows::each_event(connection, |seq, event| {
        kept = Kept { last: seq, events: kept.events + 1, bytes: kept.bytes + history::size(&event) };
        replay.event(seq, event.clone());
        history.push(event);
    })?;
    model.revision = replay.revision;
    replay.check(&model)?;
    Ok((model, history, kept))
}
