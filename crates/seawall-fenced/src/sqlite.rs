//! The fence of what a SQLite database keeps, checked in the transaction that writes it.

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::{CheckError, Fence, number, stale};

/// Nothing comes back when the token is smaller than the kept one.
const CHECK: &str = "INSERT INTO seawall_fence (resource, fence) VALUES (?1, ?2) \
    ON CONFLICT (resource) DO UPDATE SET fence = excluded.fence WHERE fence <= excluded.fence RETURNING fence";

/// Fencing tokens in a SQLite database: the largest of each resource is a row of the table `seawall_fence`.
#[derive(Clone, Copy, Debug)]
pub struct SqliteFence;

impl SqliteFence {
    /// What makes the table, for those who have migrations of their own.
    pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS seawall_fence (\
        resource TEXT PRIMARY KEY NOT NULL, fence INTEGER NOT NULL) WITHOUT ROWID";

    /// Makes the table, if it is not there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn create_table(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute(Self::TABLE, ()).map(drop)
    }

    /// Checks a token, and keeps it when it is the largest so far. Call it first in the transaction that writes the resource,
    /// and roll back when it fails; it takes the database's write lock, so nobody writes between this and the commit.
    ///
    /// # Errors
    /// [`Stale`](crate::Stale) when a larger token has been seen. Anything else says nothing about the lock: SQLite may be busy, full, or
    /// have no such table. In a transaction that has read before, `SQLITE_BUSY_SNAPSHOT` means to begin it anew; one that is
    /// `IMMEDIATE` spares that.
    pub fn check(
        transaction: &Transaction<'_>,
        resource: &str,
        fence: Fence,
    ) -> Result<(), CheckError<rusqlite::Error>> {
        let number = number(resource, fence)?;
        let failed = CheckError::failed(resource);
        let mut check = transaction.prepare_cached(CHECK).map_err(failed)?;
        let kept: Option<i64> = check.query_row((resource, number), |row| row.get(0)).optional().map_err(failed)?;
        match kept {
            Some(_) => Ok(()),
            None => {
                let seen = Self::seen(transaction, resource).map_err(failed)?;
                Err(stale(resource, seen.unwrap_or(0), fence).into())
            }
        }
    }

    /// The largest token that a resource has seen.
    ///
    /// # Errors
    /// SQLite's.
    pub fn highest(connection: &Connection, resource: &str) -> rusqlite::Result<Option<Fence>> {
        Ok(Self::seen(connection, resource)?.and_then(|seen| u64::try_from(seen).ok()).map(Fence::new))
    }

    fn seen(connection: &Connection, resource: &str) -> rusqlite::Result<Option<i64>> {
        let mut select = connection.prepare_cached("SELECT fence FROM seawall_fence WHERE resource = ?1")?;
        select.query_row((resource,), |row| row.get(0)).optional()
    }
}
