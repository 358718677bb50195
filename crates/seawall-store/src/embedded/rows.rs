//! The tables of `store.db`, and what a row of each is in Rust. Every row carries a checksum over all that is in it, so that
//! a bit that has flipped on the disk is found when it is read, and named.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, Row, params};
use seawall_types::Revision;

use super::REMEDY;
use super::verify::Damage;
use crate::sqlite::Kind;
use crate::{Entry, Event, LeaseId};

pub(super) const KIND: Kind = Kind { create, upgrades: &[super::upgrade::to_2], remedy: REMEDY, shrinks: true };

/// The store as it begins: revision 1, no lease, nothing to watch before revision 2.
fn create(connection: &Connection) -> rusqlite::Result<()> {
    create_tables(connection)?;
    put_meta(connection, OLDEST, 2)?;
    put_meta(connection, LAST_LEASE, 0)
}

pub(super) fn create_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;
         CREATE TABLE entry (
             key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL,
             version INTEGER NOT NULL, lease INTEGER, sum INTEGER NOT NULL
         ) WITHOUT ROWID;
         CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL, sum INTEGER NOT NULL);
         CREATE TABLE history (
             seq INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, created INTEGER,
             version INTEGER, lease INTEGER, sum INTEGER NOT NULL
         );",
    )
}

/// The oldest revision from which the history is whole. The revision of the store is that of the last row of the history, or
/// the one before this when there is none.
pub(super) const OLDEST: &str = "oldest";
/// The last lease that was granted.
pub(super) const LAST_LEASE: &str = "last_lease";

/// CRC-32 over the parts of a row, each with its length, so that no two rows have the same parts.
struct Sum(crc32fast::Hasher);

impl Sum {
    fn of(table: u8) -> Self {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&[table]);
        Self(sum)
    }

    fn number(mut self, number: u64) -> Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        let mut sum = self.number(bytes.len() as u64);
        sum.0.update(bytes);
        sum
    }

    fn end(self) -> u32 {
        self.0.finalize()
    }
}

fn meta_sum(name: &str, value: u64) -> u32 {
    Sum::of(b'm').bytes(name.as_bytes()).number(value).end()
}

fn lease_sum(id: LeaseId, millis: u64) -> u32 {
    Sum::of(b'l').number(id.0).number(millis).end()
}

fn entry_sum(entry: &Entry) -> u32 {
    let sum = Sum::of(b'e').bytes(entry.key.as_bytes()).bytes(&entry.value);
    let sum = sum.number(entry.created.0).number(entry.modified.0).number(entry.version);
    match entry.lease {
        Some(lease) => sum.number(1).number(lease.0),
        None => sum.number(0),
    }
    .end()
}

/// The entry's own checksum stands for the entry.
fn event_sum(seq: i64, event: &Event, entry: Option<u32>) -> u32 {
    let sum = Sum::of(b'h').bytes(&seq.to_le_bytes()).number(event.revision.0).bytes(event.key.as_bytes());
    match entry {
        Some(entry) => sum.number(1).number(u64::from(entry)),
        None => sum.number(0),
    }
    .end()
}

pub(super) fn put_meta(to: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    let mut put = to.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2, ?3)")?;
    put.execute(params![name, value, meta_sum(name, value)]).map(drop)
}

pub(super) fn put_lease(to: &Connection, id: LeaseId, ttl: Duration) -> rusqlite::Result<()> {
    let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let mut put = to.prepare_cached("INSERT INTO lease VALUES (?1, ?2, ?3)")?;
    put.execute(params![id.0, millis, lease_sum(id, millis)]).map(drop)
}

pub(super) fn put_entry(to: &Connection, entry: &Entry) -> rusqlite::Result<u32> {
    let sum = entry_sum(entry);
    let (key, value, lease) = (&*entry.key, &entry.value[..], entry.lease.map(|lease| lease.0));
    let mut put = to.prepare_cached("INSERT OR REPLACE INTO entry VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    put.execute(params![key, value, entry.created.0, entry.modified.0, entry.version, lease, sum])?;
    Ok(sum)
}

/// A change of a key: the entry as it is now, and a row of the history.
pub(super) fn put_event(to: &Connection, seq: i64, event: &Event) -> rusqlite::Result<()> {
    let entry = match &event.entry {
        Some(entry) => Some(put_entry(to, entry)?),
        None => {
            to.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([&*event.key])?;
            None
        }
    };
    add_history(to, seq, event, entry)
}

pub(super) fn put_history(to: &Connection, seq: i64, event: &Event) -> rusqlite::Result<()> {
    add_history(to, seq, event, event.entry.as_ref().map(entry_sum))
}

fn add_history(to: &Connection, seq: i64, event: &Event, entry: Option<u32>) -> rusqlite::Result<()> {
    let sum = event_sum(seq, event, entry);
    let mut add = to.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    let (revision, key) = (event.revision.0, &*event.key);
    match &event.entry {
        Some(e) => {
            let lease = e.lease.map(|lease| lease.0);
            add.execute(params![seq, revision, key, &e.value[..], e.created.0, e.version, lease, sum])
        }
        None => {
            let none = None::<u64>;
            add.execute(params![seq, revision, key, None::<&[u8]>, none, none, none, sum])
        }
    }
    .map(drop)
}

pub(super) fn meta(from: &Connection, name: &str) -> Result<u64, Damage> {
    let place = || format!("table `meta`, row `{name}`");
    let mut meta = from.prepare_cached("SELECT value, sum FROM meta WHERE name = ?1")?;
    let mut rows = meta.query([name])?;
    let row = rows.next()?.ok_or_else(|| Damage::at(place(), "it is missing"))?;
    let read = || -> rusqlite::Result<(u64, u32)> { Ok((row.get(0)?, row.get(1)?)) };
    let (value, sum) = read().map_err(|error| Damage::row(place(), &error))?;
    right(meta_sum(name, value) == sum, place)?;
    Ok(value)
}

pub(super) fn each_lease(from: &Connection, mut take: impl FnMut(LeaseId, Duration)) -> Result<(), Damage> {
    let mut leases = from.prepare("SELECT id, ttl_ms, sum FROM lease ORDER BY id")?;
    let mut rows = leases.query([])?;
    while let Some(row) = rows.next()? {
        let place = || format!("table `lease`, lease {}", text(row, 0));
        let read = || -> rusqlite::Result<(LeaseId, u64, u32)> { Ok((LeaseId(row.get(0)?), row.get(1)?, row.get(2)?)) };
        let (id, millis, sum) = read().map_err(|error| Damage::row(place(), &error))?;
        right(lease_sum(id, millis) == sum, place)?;
        take(id, Duration::from_millis(millis));
    }
    Ok(())
}

const ENTRY: &str = "SELECT key, value, created, modified, version, lease, sum FROM entry";
const EVENT: &str = "SELECT seq, revision, key, value, created, version, lease, sum FROM history ORDER BY seq";

pub(super) fn each_entry(from: &Connection, mut take: impl FnMut(Entry)) -> Result<(), Damage> {
    let mut entries = from.prepare(&format!("{ENTRY} ORDER BY key"))?;
    let mut rows = entries.query([])?;
    while let Some(row) = rows.next()? {
        take(entry_of(row)?);
    }
    Ok(())
}

pub(super) fn each_event(from: &Connection, mut take: impl FnMut(i64, Event)) -> Result<(), Damage> {
    let mut history = from.prepare(EVENT)?;
    let mut rows = history.query([])?;
    while let Some(row) = rows.next()? {
        let (seq, event) = event_of(row)?;
        take(seq, event);
    }
    Ok(())
}

/// Of a file that is damaged: one entry, if it is sound, and the last revision in any row that is.
pub(super) fn salvage(from: &Connection, key: &str) -> Option<(Entry, Revision)> {
    let mut entries = from.prepare(ENTRY).ok()?;
    let (mut wanted, mut last) = (None, Revision(0));
    let mut rows = entries.query([]).ok()?;
    while let Ok(Some(row)) = rows.next() {
        let Ok(entry) = entry_of(row) else { continue };
        last = last.max(entry.modified);
        if &*entry.key == key {
            wanted = Some(entry);
        }
    }
    if let Ok(mut history) = from.prepare(EVENT)
        && let Ok(mut rows) = history.query([])
    {
        while let Ok(Some(row)) = rows.next() {
            last = event_of(row).map_or(last, |(_, event)| last.max(event.revision));
        }
    }
    wanted.map(|wanted| (wanted, last))
}

fn entry_of(row: &Row<'_>) -> Result<Entry, Damage> {
    let place = || format!("table `entry`, key `{}`, revision {}", text(row, 0), text(row, 3));
    let read = || -> rusqlite::Result<(Entry, u32)> {
        let entry = Entry {
            key: row.get::<_, String>(0)?.into(),
            value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
            created: Revision(row.get(2)?),
            modified: Revision(row.get(3)?),
            version: row.get(4)?,
            lease: row.get::<_, Option<u64>>(5)?.map(LeaseId),
        };
        Ok((entry, row.get(6)?))
    };
    let (entry, sum) = read().map_err(|error| Damage::row(place(), &error))?;
    right(entry_sum(&entry) == sum, place)?;
    Ok(entry)
}

fn event_of(row: &Row<'_>) -> Result<(i64, Event), Damage> {
    let place = || format!("table `history`, row {}, key `{}`, revision {}", text(row, 0), text(row, 2), text(row, 1));
    let read = || -> rusqlite::Result<(i64, Event, u32)> {
        let revision = Revision(row.get(1)?);
        let key: Arc<str> = row.get::<_, String>(2)?.into();
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
        Ok((row.get(0)?, Event { revision, key, entry }, row.get(7)?))
    };
    let (seq, event, sum) = read().map_err(|error| Damage::row(place(), &error))?;
    right(event_sum(seq, &event, event.entry.as_ref().map(entry_sum)) == sum, place)?;
    Ok((seq, event))
}

fn right(sum: bool, place: impl FnOnce() -> String) -> Result<(), Damage> {
    if sum { Ok(()) } else { Err(Damage::at(place(), "its checksum is wrong")) }
}

/// A column for a message, whatever is in it.
fn text(row: &Row<'_>, column: usize) -> String {
    use rusqlite::types::ValueRef;
    match row.get_ref(column) {
        Ok(ValueRef::Text(text)) => text.escape_ascii().to_string(),
        Ok(ValueRef::Integer(number)) => number.to_string(),
        _ => "?".to_owned(),
    }
}
