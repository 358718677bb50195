//! Opening a SQLite file the one way that Seawall does: WAL, synced at every commit, owned by one process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

const REMEDY: &str = "if it is damaged put a backup in its place, or move it away to begin anew (instances register again by \
                      themselves; sagas that had not ended are lost)";

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made.
    #[error("cannot create the directory for {path}: {source}")]
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
    #[error("{path} cannot be opened: {why}; {REMEDY}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
    /// The file holds what Seawall never writes.
    #[error("{path} is damaged: {what}; {REMEDY}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
}

/// Opens or creates `path` for this process alone, in WAL mode with `synchronous=FULL`, and brings it to the newest of
/// `migrations` (each a script; the file remembers in `user_version` how many it has had). The whole file is checked for damage.
///
/// # Errors
/// [`OpenError`]; the file is untouched unless a migration itself failed, which rolls back.
pub fn open(path: &Path, migrations: &[&str]) -> Result<Connection, OpenError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| OpenError::Directory { path: path.to_owned(), source })?;
    }
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            OpenError::InUse { path: path.to_owned() }
        }
        _ => OpenError::Sqlite { path: path.to_owned(), why: source.to_string() },
    };
    let mut connection = Connection::open(path).map_err(failed)?;
    let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    let migrate = |connection: &mut Connection| -> rusqlite::Result<i64> {
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        for script in migrations.iter().skip(usize::try_from(found).unwrap_or(usize::MAX)) {
            tx.execute_batch(script)?;
        }
        if found < known {
            tx.pragma_update(None, "user_version", known)?;
        }
        tx.commit()?;
        Ok(found)
    };
    let found = migrate(&mut connection).map_err(failed)?;
    if found > known {
        return Err(OpenError::TooNew { path: path.to_owned(), found, known });
    }
    match connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0)).map_err(failed)? {
        ok if ok == "ok" => Ok(connection),
        what => Err(OpenError::Damaged { path: path.to_owned(), what }),
    }
}
