//! Moving a store to another backend, so that at every moment at most one of the two rules, and no more than the same call
//! again finishes what was interrupted.
//!
//! The order is: the target is marked, filled, and read back; then the source is marked; then the target's mark goes. Whoever
//! finds the source's mark goes to the target; whoever finds the target's mark does not use it, unless the source's mark is
//! there, too: then all is done but that.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use seawall_types::Revision;

use crate::snapshot::Snapshot;
use crate::{CommitError, Compare, Entry, Keys, LeaseId, MAX_OPS, Op, Query, ReadError, Store, Txn};

/// In a store that is being filled.
pub(crate) const FILLING: &str = "meta/migrating";
/// In a store that has moved away.
pub(crate) const MOVED: &str = "meta/migrated-to";
/// In a store that was to move: what its marks are made with, so that a second attempt knows its own first.
const SOURCE: &str = "meta/migration";
/// In a store that has come from elsewhere.
const CAME: &str = "meta/migrated-from";

/// Of keys and values in one transaction of an import; etcd takes 1.5 MiB.
const BATCH: usize = 512 << 10;
/// Keys that are looked at in one page.
const PAGE: NonZeroU32 = NonZeroU32::new(MAX_OPS as u32).expect("not zero");

/// What both marks hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The target, as a configuration names it.
    pub(crate) to: String,
    /// Of this source, the same at each attempt.
    pub(crate) id: String,
}

impl Mark {
    fn bytes(&self) -> Bytes {
        format!("{} {}", self.id, self.to).into()
    }

    pub(crate) fn of(value: &[u8]) -> Option<Self> {
        let (id, to) = std::str::from_utf8(value).ok()?.split_once(' ')?;
        Some(Self { to: to.into(), id: id.into() })
    }
}

/// A migration that was not finished. Unless it says otherwise, the source still rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// The target is in use.
    #[error("{to} is not empty: it has the key `{key}`; choose another prefix, or delete what is there")]
    NotEmpty {
        /// The target.
        to: String,
        /// One of its keys.
        key: String,
    },
    /// Somebody else's migration into the same target was not finished.
    #[error("{to} is half filled by the migration of another store; finish that one, or delete its keys")]
    Filling {
        /// The target.
        to: String,
    },
    /// The source has moved already.
    #[error("this store has moved to {to} already")]
    Moved {
        /// Where it is.
        to: String,
    },
    /// A store could not be read; the same again goes on.
    #[error("{which}: {error}; the same command again goes on from here")]
    Read {
        /// Which store.
        which: String,
        /// Why.
        error: ReadError,
    },
    /// A store could not be written; the same again goes on.
    #[error("{which}: {error}; the same command again goes on from here")]
    Write {
        /// Which store.
        which: String,
        /// Why.
        error: CommitError,
    },
    /// What was read back is not what was written.
    #[error("{to} does not hold what was written to it: {what}; the old store is used as before")]
    Differs {
        /// The target.
        to: String,
        /// What differs.
        what: String,
    },
}

/// What a migration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// How many keys there are now.
    pub entries: usize,
    /// How many leases they go with.
    pub leases: usize,
    /// The revision of the source.
    pub from: Revision,
    /// The revision of the target.
    pub to: Revision,
}

/// A store and what to call it.
#[derive(Clone, Copy)]
struct Named<'a> {
    store: &'a dyn Store,
    name: &'a str,
}

impl fmt::Debug for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Named<'_> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, MigrateError> {
        self.store.get(key).await.map_err(|error| self.unread(error))
    }

    /// Writes under a condition; whether it held.
    async fn commit(&self, txn: Txn) -> Result<bool, MigrateError> {
        let done = self.store.commit(txn).await;
        done.map(|done| done.succeeded).map_err(|error| self.unwritten(error))
    }

    fn unread(&self, error: ReadError) -> MigrateError {
        MigrateError::Read { which: self.name.into(), error }
    }

    fn unwritten(&self, error: CommitError) -> MigrateError {
        MigrateError::Write { which: self.name.into(), error }
    }

    async fn first(&self, after: Option<String>) -> Result<Vec<Entry>, MigrateError> {
        let query = Query { after, limit: Some(PAGE), keys_only: true, ..Query::new(Keys::prefix("")) };
        Ok(self.store.query(query).await.map_err(|error| self.unread(error))?.entries)
    }
}

/// Moves all that `from` holds to `to`, which has to be empty; `name` is what a configuration calls that. Nobody else may
/// write to either meanwhile. Revisions are the target's own, in the same order; fencing tokens go on above those of the
/// source; leases are granted anew with their whole time, so that who holds one of the source's loses it, and nobody else
/// gets what went with it before that time is over. After any error or end, the same call again goes on.
///
/// # Errors
/// [`MigrateError`].
pub async fn migrate(from: &dyn Store, to: &dyn Store, name: &str) -> Result<Migrated, MigrateError> {
    let (from, to) = (Named { store: from, name: "the old store" }, Named { store: to, name });
    let snapshot = from.store.snapshot().await.map_err(|error| from.unread(error))?;
    let moved = snapshot.get(MOVED).and_then(|entry| Mark::of(&entry.value));
    let filling = to.get(FILLING).await?.map(|entry| Mark::of(&entry.value));
    let mark = match (moved, filling) {
        (Some(moved), _) if moved.to != name => return Err(MigrateError::Moved { to: moved.to }),
        // All but the last step was done, or that, too.
        (Some(moved), filling) => {
            if filling.is_some_and(|filling| filling.as_ref() == Some(&moved)) {
                complete(to.store, &moved).await.map_err(|error| to.unwritten(error))?;
            } else if to.get(CAME).await?.is_none_or(|came| came.value != moved.bytes()) {
                return Err(MigrateError::Moved { to: moved.to });
            }
            return done(&to, &snapshot).await;
        }
        (None, Some(Some(filling))) if is_of(&filling, &snapshot) => filling,
        (None, Some(_)) => return Err(MigrateError::Filling { to: name.into() }),
        (None, None) => {
            empty(&to).await?;
            begin(&from, &to, &snapshot).await?
        }
    };
    wipe(&to, &mark).await?;
    let mut next = snapshot.clone();
    next.succeed([], SystemTime::now());
    let leases = import(&to, &next, &mark).await?;
    compare(&to, &next, &leases).await?;
    from.commit(Txn::put(MOVED, mark.bytes())).await?;
    complete(to.store, &mark).await.map_err(|error| to.unwritten(error))?;
    done(&to, &snapshot).await
}

/// Whether a mark was made for this source.
fn is_of(mark: &Mark, source: &Snapshot) -> bool {
    source.get(SOURCE).is_some_and(|id| id.value == mark.id.as_bytes())
}

/// Refuses a target that is in use.
///
/// # Errors
/// [`MigrateError::NotEmpty`].
async fn empty(to: &Named<'_>) -> Result<(), MigrateError> {
    match to.first(None).await?.first() {
        Some(entry) => Err(MigrateError::NotEmpty { to: to.name.into(), key: (*entry.key).into() }),
        None => Ok(()),
    }
}

/// What [`migrate`] would do: refuses what it would refuse, and changes nothing.
///
/// # Errors
/// [`MigrateError`].
pub async fn rehearse(from: &dyn Store, to: &dyn Store, name: &str) -> Result<Migrated, MigrateError> {
    let (from, to) = (Named { store: from, name: "the old store" }, Named { store: to, name });
    let snapshot = from.store.snapshot().await.map_err(|error| from.unread(error))?;
    if let Some(moved) = snapshot.get(MOVED).and_then(|entry| Mark::of(&entry.value)) {
        return Err(MigrateError::Moved { to: moved.to });
    }
    match to.get(FILLING).await? {
        Some(entry) if Mark::of(&entry.value).is_some_and(|mark| is_of(&mark, &snapshot)) => {}
        Some(_) => return Err(MigrateError::Filling { to: name.into() }),
        None => empty(&to).await?,
    }
    done(&to, &snapshot).await
}

async fn done(to: &Named<'_>, snapshot: &Snapshot) -> Result<Migrated, MigrateError> {
    let status = to.store.status().await.map_err(|error| to.unread(error))?;
    let leased: std::collections::BTreeSet<_> = snapshot.entries.iter().filter_map(|entry| entry.lease).collect();
    let entries = snapshot.entries.iter().filter(|entry| !entry.key.starts_with(crate::snapshot::OWN)).count();
    Ok(Migrated { entries, leases: leased.len(), from: snapshot.revision, to: status.revision })
}

/// Marks the target, with a name of the source that is written there first.
async fn begin(from: &Named<'_>, to: &Named<'_>, snapshot: &Snapshot) -> Result<Mark, MigrateError> {
    let id = match snapshot.get(SOURCE) {
        Some(entry) => String::from_utf8_lossy(&entry.value).into_owned(),
        None => {
            let id = fresh_id();
            from.commit(Txn::put(SOURCE, id.clone())).await?;
            id
        }
    };
    let mark = Mark { to: to.name.into(), id };
    let put = Txn::put(FILLING, mark.bytes()).when(Compare::Absent(FILLING.into()));
    if to.commit(put).await? { Ok(mark) } else { Err(MigrateError::Filling { to: to.name.into() }) }
}

fn fresh_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}

/// What every write of an import is made under.
fn marked(mark: &Mark) -> Compare {
    Compare::Value(FILLING.into(), mark.bytes())
}

/// Removes what an attempt before this one has left. Its leases end by themselves.
async fn wipe(to: &Named<'_>, mark: &Mark) -> Result<(), MigrateError> {
    let mut after = None;
    loop {
        let page = to.first(after).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((*last.key).into());
        let keys = page.iter().filter(|entry| &*entry.key != FILLING);
        let then: Vec<Op> = keys.map(|entry| Op::Delete((*entry.key).into())).collect();
        write(to, then, mark).await?;
    }
}

async fn write(to: &Named<'_>, then: Vec<Op>, mark: &Mark) -> Result<(), MigrateError> {
    let txn = Txn { compare: vec![marked(mark)], then, ..Txn::default() };
    if to.commit(txn).await? { Ok(()) } else { Err(MigrateError::Filling { to: to.name.into() }) }
}

/// Writes every entry, in the order in which they were created: only what was created at one revision is written in one, for
/// whose queues go by that. Those that go with a lease are the last, so that it does not end meanwhile, and each by itself: of
/// two claims of one revision, neither would be before the other.
async fn import(to: &Named<'_>, snapshot: &Snapshot, mark: &Mark) -> Result<HashMap<LeaseId, LeaseId>, MigrateError> {
    let mut entries: Vec<&Entry> = snapshot.entries.iter().collect();
    entries.sort_by_key(|entry| entry.created);
    let (leased, free): (Vec<&Entry>, Vec<&Entry>) = entries.into_iter().partition(|entry| entry.lease.is_some());
    let put = |entry: &Entry, lease| Op::Put { key: (*entry.key).into(), value: entry.value.clone(), lease };
    for together in free.chunk_by(|one, next| one.created == next.created) {
        let (mut then, mut bytes) = (Vec::new(), 0);
        for entry in together {
            let size = entry.key.len() + entry.value.len();
            if then.len() == MAX_OPS || (bytes + size > BATCH && !then.is_empty()) {
                write(to, std::mem::take(&mut then), mark).await?;
                bytes = 0;
            }
            bytes += size;
            then.push(put(entry, None));
        }
        write(to, then, mark).await?;
    }
    let mut leases = HashMap::new();
    for entry in leased {
        let Some(old) = entry.lease else { continue };
        let lease = match leases.get(&old) {
            Some(lease) => *lease,
            None => {
                let lease = grant(to, snapshot, old).await?;
                leases.insert(old, lease);
                lease
            }
        };
        write(to, vec![put(entry, Some(lease))], mark).await?;
    }
    Ok(leases)
}

/// A lease with the same time, or the next that the target has, and a name that no lease of the source has: whoever still
/// keeps that one alive must not keep this one.
async fn grant(to: &Named<'_>, snapshot: &Snapshot, old: LeaseId) -> Result<LeaseId, MigrateError> {
    let ttl = snapshot.leases.get(&old).copied().unwrap_or(to.store.limits().min_ttl);
    loop {
        let lease = to.store.grant(ttl.min(to.store.limits().max_ttl)).await.map_err(|error| to.unwritten(error))?;
        if !snapshot.leases.contains_key(&lease.id) {
            return Ok(lease.id);
        }
        to.store.revoke(lease.id).await.map_err(|error| to.unwritten(error))?;
    }
}

/// Reads everything back. A key whose lease has ended by now may be gone with it.
async fn compare(to: &Named<'_>, snapshot: &Snapshot, leases: &HashMap<LeaseId, LeaseId>) -> Result<(), MigrateError> {
    let found = to.store.snapshot().await.map_err(|error| to.unread(error))?;
    let mut found: BTreeMap<&str, &Entry> = found.entries.iter().map(|entry| (&*entry.key, entry)).collect();
    found.remove(FILLING);
    let differs = |what: String| Err(MigrateError::Differs { to: to.name.into(), what });
    for entry in &snapshot.entries {
        let lease = entry.lease.and_then(|old| leases.get(&old).copied());
        match found.remove(&*entry.key) {
            Some(found) if found.value == entry.value && found.lease == lease => {}
            Some(_) => return differs(format!("the key `{}` has another value or lease", entry.key)),
            None => {
                let ended = match lease {
                    Some(lease) => to.store.lease(lease).await.map_err(|error| to.unread(error))?.is_none(),
                    None => false,
                };
                if !ended {
                    return differs(format!("the key `{}` is missing", entry.key));
                }
            }
        }
    }
    match found.keys().next() {
        Some(key) => differs(format!("the key `{key}` is from somebody else")),
        None => Ok(()),
    }
}

/// Makes the target a store that may be used.
pub(crate) async fn complete(to: &dyn Store, mark: &Mark) -> Result<(), CommitError> {
    let then = vec![Op::Delete(FILLING.into()), Op::Put { key: CAME.into(), value: mark.bytes(), lease: None }];
    let txn = Txn { compare: vec![marked(mark)], then, ..Txn::default() };
    to.commit(txn).await.map(drop)
}

/// The mark in a file whose store has moved away.
pub(crate) fn mark_of(file: &Path) -> Option<Mark> {
    let report = Snapshot::check(file).ok()?;
    Mark::of(&report.snapshot.get(MOVED)?.value)
}

/// Whether a store may be used; `at_home` is the mark of the file that it may have come from.
pub(crate) async fn usable(store: &dyn Store, at_home: impl FnOnce() -> Option<Mark>) -> Result<(), Unusable> {
    let unread = |error: ReadError| Unusable::Failed(error.to_string());
    if let Some(moved) = store.get(MOVED).await.map_err(unread)? {
        let text = || String::from_utf8_lossy(&moved.value).into_owned();
        return Err(Unusable::Moved(Mark::of(&moved.value).map_or_else(text, |mark| mark.to)));
    }
    let Some(filling) = store.get(FILLING).await.map_err(unread)? else { return Ok(()) };
    match Mark::of(&filling.value) {
        Some(mark) if at_home().as_ref() == Some(&mark) => {
            complete(store, &mark).await.map_err(|error| Unusable::Failed(error.to_string()))
        }
        _ => Err(Unusable::Filling),
    }
}

/// Why a store may not be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    Moved(String),
    Filling,
    Failed(String),
}
