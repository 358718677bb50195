//! The fence of what a PostgreSQL database keeps, checked in the transaction that writes it.

use tokio_postgres::{Client, Error, Transaction};

use crate::{CheckError, Fence, number, stale};

/// Nothing comes back when the token is smaller than the kept one; the row is locked either way. On an update that waited
/// for another transaction the condition is judged anew, by what that one has left.
const CHECK: &str = "INSERT INTO seawall_fence AS kept (resource, fence) VALUES ($1, $2) \
    ON CONFLICT (resource) DO UPDATE SET fence = excluded.fence WHERE kept.fence <= excluded.fence RETURNING fence";

/// Fencing tokens in a PostgreSQL database: the largest of each resource is a row of the table `seawall_fence`.
#[derive(Clone, Copy, Debug)]
pub struct PgFence;

impl PgFence {
    /// What makes the table, for those who have migrations of their own.
    pub const TABLE: &str =
        "CREATE TABLE IF NOT EXISTS seawall_fence (resource text PRIMARY KEY, fence bigint NOT NULL)";

    /// Makes the table, if it is not there. Several may do it at once.
    ///
    /// # Errors
    /// PostgreSQL's.
    pub async fn create_table(client: &Client) -> Result<(), Error> {
        // Two at once may both find no table, and one of them fails on the catalogue's own index.
        client
            .batch_execute(&format!(
                "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('seawall_fence', 0)); {}; COMMIT",
                Self::TABLE
            ))
            .await
    }

    /// Checks a token, and keeps it when it is the largest so far. Call it first in the transaction that writes the resource,
    /// and roll back when it fails. It locks the resource's row: who holds another token waits until this transaction has
    /// ended, so set `lock_timeout`. A commit whose answer was lost is unknown, here as everywhere.
    ///
    /// When the future is dropped the statement may be carried out all the same; it is undone with the transaction.
    ///
    /// # Errors
    /// [`Stale`](crate::Stale) when a larger token has been seen. Anything else says nothing about the lock: the connection may be broken,
    /// or, above `READ COMMITTED`, the transaction has to be begun anew (`40001`).
    pub async fn check(transaction: &Transaction<'_>, resource: &str, fence: Fence) -> Result<(), CheckError<Error>> {
        let number = number(resource, fence)?;
        let failed = CheckError::failed(resource);
        if transaction.query_opt(CHECK, &[&resource, &number]).await.map_err(failed)?.is_some() {
            return Ok(());
        }
        let select = "SELECT fence FROM seawall_fence WHERE resource = $1";
        let row = transaction.query_opt(select, &[&resource]).await.map_err(failed)?;
        Err(stale(resource, row.map_or(0, |row| row.get(0)), fence).into())
    }
}
