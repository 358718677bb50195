//! From format 1 of `store.db` to format 2: the same tables with a checksum in each row. What format 1 holds is checked for
//! all that can be checked without one when the result is loaded.

use rusqlite::Connection;

use super::rows;

/// Format 1 had no checksums, counted its history with AUTOINCREMENT, and wrote the revision at each commit.
pub(super) fn to_2(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "ALTER TABLE meta RENAME TO meta_1;
         ALTER TABLE entry RENAME TO entry_1;
         ALTER TABLE lease RENAME TO lease_1;
         ALTER TABLE history RENAME TO history_1;",
    )?;
    rows::create_tables(connection)?;
    v1::copy(connection)?;
    connection.execute_batch("DROP TABLE meta_1; DROP TABLE entry_1; DROP TABLE lease_1; DROP TABLE history_1;")
}

mod v1 {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use rusqlite::Connection;
    use seawall_types::Revision;

    use super::rows::{self, LAST_LEASE, OLDEST};
    use crate::{Entry, Event, LeaseId};

    pub(super) fn copy(connection: &Connection) -> rusqlite::Result<()> {
        let meta = |name: &str| {
            connection.query_row("SELECT value FROM meta_1 WHERE name = ?1", [name], |row| row.get::<_, u64>(0))
        };
        let revision = meta("revision")?;
        let mut last = None;
        let mut history = connection
            .prepare("SELECT seq, revision, key, value, created, version, lease FROM history_1 ORDER BY seq")?;
        let mut found = history.query([])?;
        while let Some(row) = found.next()? {
            let (revision, key) = (Revision(row.get(1)?), Arc::<str>::from(row.get::<_, String>(2)?));
            let entry = match row.get::<_, Option<Vec<u8>>>(3)? {
                Some(value) => Some(Entry {
                    key: key.clone(),
                    value: Bytes::from(value),
                    created: Revision(row.get(4)?),
                    modified: revision,
                    version: row.get(5)?,
                    lease: row.get::<_, Option<u64>>(6)?.map(LeaseId),
                }),
                None => None,
            };
            rows::put_history(connection, row.get(0)?, &Event { revision, key, entry })?;
            last = Some(revision);
        }
        let mut entries = connection.prepare("SELECT key, value, created, modified, version, lease FROM entry_1")?;
        let mut found = entries.query([])?;
        while let Some(row) = found.next()? {
            let entry = Entry {
                key: row.get::<_, String>(0)?.into(),
                value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
                created: Revision(row.get(2)?),
                modified: Revision(row.get(3)?),
                version: row.get(4)?,
                lease: row.get::<_, Option<u64>>(5)?.map(LeaseId),
            };
            rows::put_entry(connection, &entry)?;
        }
        let mut leases = connection.prepare("SELECT id, ttl_ms FROM lease_1")?;
        let mut found = leases.query([])?;
        while let Some(row) = found.next()? {
            rows::put_lease(connection, LeaseId(row.get(0)?), Duration::from_millis(row.get(1)?))?;
        }
        // What the revision follows from now. It cannot be otherwise unless the file was damaged; then the check that
        // follows finds an entry or a gap.
        let oldest = if last == Some(Revision(revision)) { meta("oldest")? } else { revision + 1 };
        rows::put_meta(connection, OLDEST, oldest)?;
        rows::put_meta(connection, LAST_LEASE, meta("last_lease")?)
    }
}
