//! Opening a SQLite file the one way that Seawall does: WAL, synced at every commit, owned by one process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

/// Creates the tables of a file, or changes them from one format to the next. It runs in a transaction.
pub type Step = fn(&Connection) -> rusqlite::Result<()>;

/// What a file holds, and how it came to that.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Makes an empty file one of the newest format.
    pub create: Step,
    /// From format 1 to 2, from 2 to 3, and so on; the file remembers its format in `user_version`.
    pub upgrades: &'static [Step],
    /// What to do about a damaged one; a part of a sentence.
    pub remedy: &'static str,
    /// Whether pages that are free can be given back ([`Connection::pragma_update`] of `incremental_vacuum`). Only for
    /// files that are created so; costs a page now and then.
    pub shrinks: bool,
}

impl Kind {
    /// The newest format.
    pub fn format(&self) -> i64 {
        i64::try_from(self.upgrades.len()).unwrap_or(i64::MAX).saturating_add(1)
    }
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made, or not be read or written.
    #[error("cannot use the directory of {path}: {source}")]
    Directory {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another process: is another `seawall control` running on this data directory?")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A later Seawall has written it.
    #[error("{path} has format {found}, this Seawall reads up to {known}: use the newer Seawall")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: i64,
        /// The latest format that is known.
        known: i64,
    },
    /// Anything that SQLite itself says, corruption included.
    #[error("{path} cannot be opened: {why}; if it is damaged: {remedy}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The file holds what Seawall never writes.
    #[error("{path} is damaged: {what}; {remedy}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found, and where.
        what: String,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl OpenError {
    pub(crate) fn of(path: &Path, kind: &Kind, error: &rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::InUse { path },
            _ => Self::Sqlite { path, why: error.to_string(), remedy: kind.remedy },
        }
    }
}

/// Opens or creates `path` for this process alone, in WAL mode with `synchronous=FULL`, and brings it to the newest format.
/// The structure of the whole file is checked for damage, before anything of it is changed.
///
/// # Errors
/// [`OpenError`]; the file is untouched unless an upgrade itself failed, which rolls back.
pub fn open(path: &Path, kind: &Kind) -> Result<Connection, OpenError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| OpenError::Directory { path: path.to_owned(), source })?;
    }
    let failed = |error: rusqlite::Error| OpenError::of(path, kind, &error);
    let mut connection = Connection::open(path).map_err(failed)?;
    let set_up = |connection: &Connection| -> rusqlite::Result<()> {
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        // In a file that has tables it would change nothing and write all the same.
        if kind.shrinks && connection.query_row("PRAGMA page_count", [], |row| row.get::<_, u64>(0))? == 0 {
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", JOURNAL)
    };
    set_up(&connection).map_err(failed)?;
    if connection.is_readonly("main").map_err(failed)? {
        let why = "it cannot be written, only read".into();
        return Err(OpenError::Sqlite { path: path.to_owned(), why, remedy: kind.remedy });
    }
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    bring_up_to_date(&tx, path, kind)?;
    tx.commit().map_err(failed)?;
    Ok(connection)
}

/// What the log beside a file is cut back to when a large transaction has made it longer.
const JOURNAL: i64 = 64 << 20;

/// Opens a file that is there, for this process alone, and gives it, brought to the newest format, to `look`. Nothing of it
/// is changed, but for what a process that was killed has left in the log beside it, which is written in its place.
///
/// # Errors
/// [`OpenError`]; what `look` says.
pub(crate) fn peek<T>(
    path: &Path,
    kind: &Kind,
    look: impl FnOnce(&Connection, i64) -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    let failed = |error: rusqlite::Error| OpenError::of(path, kind, &error);
    std::fs::metadata(path).map_err(|source| OpenError::Directory { path: path.to_owned(), source })?;
    let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(2)).map_err(failed)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed)?;
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let found = bring_up_to_date(&tx, path, kind)?;
    let seen = look(&tx, found)?;
    tx.rollback().map_err(failed)?;
    Ok(seen)
}

/// Checks the structure of a file, and changes its format if need be; says which it was, 0 for an empty file.
fn bring_up_to_date(tx: &Connection, path: &Path, kind: &Kind) -> Result<i64, OpenError> {
    let failed = |error: rusqlite::Error| OpenError::of(path, kind, &error);
    let known = kind.format();
    let found: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if found > known {
        return Err(OpenError::TooNew { path: path.to_owned(), found, known });
    }
    match tx.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0)).map_err(failed)? {
        ok if ok == "ok" => {}
        what => return Err(OpenError::Damaged { path: path.to_owned(), what, remedy: kind.remedy }),
    }
    let upgrade = || -> rusqlite::Result<()> {
        match usize::try_from(found) {
            Ok(0) => (kind.create)(tx)?,
            Ok(from) => kind.upgrades.iter().skip(from - 1).try_for_each(|step| step(tx))?,
            Err(_) => return Err(rusqlite::Error::InvalidQuery),
        }
        if found < known { tx.pragma_update(None, "user_version", known) } else { Ok(()) }
    };
    upgrade().map_err(failed)?;
    Ok(found)
}
