//! What the recipe asks of a store beyond the store's own words, built from `range`. A store that has an index for these
//! questions replaces this file.

use seawall_store::{CommitError, Compare, Entry, Op, ReadError, Store, Txn};
use seawall_types::Revision;

/// Where a key stands in its queue.
#[derive(Debug)]
pub(super) struct Place {
    /// The revision at which all of it was true.
    pub(super) revision: Revision,
    /// The key itself, if it is there.
    pub(super) own: Option<Entry>,
    /// The oldest key of the queue.
    pub(super) first: Option<Entry>,
    /// The newest key that is older than this one.
    pub(super) before: Option<Entry>,
    /// How many are older.
    pub(super) ahead: usize,
}

/// The order of a queue: by the revision that created a key. Names decide nothing, but make it an order.
fn order(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    a.created.cmp(&b.created).then_with(|| a.key.cmp(&b.key))
}

/// Where `key` stands among the keys under `queue`; for a key that is not there, all of them are before it.
pub(super) async fn place(store: &dyn Store, queue: &str, key: &str) -> Result<Place, ReadError> {
    let range = store.range(queue).await?;
    let own = range.entries.iter().find(|entry| &*entry.key == key).cloned();
    let older = |entry: &&Entry| own.as_ref().is_none_or(|own| order(entry, own).is_lt());
    let first = range.entries.iter().min_by(|a, b| order(a, b)).cloned();
    let before = range.entries.iter().filter(older).max_by(|a, b| order(a, b)).cloned();
    let ahead = range.entries.iter().filter(older).count();
    Ok(Place { revision: range.revision, own, first, before, ahead })
}

/// Every key under `prefix`, the oldest first.
pub(super) async fn by_age(store: &dyn Store, prefix: &str) -> Result<Vec<Entry>, ReadError> {
    let mut entries = store.range(prefix).await?.entries;
    entries.sort_by(order);
    Ok(entries)
}

/// One key, with a revision at which this was true. Watch from its successor to miss nothing.
pub(super) async fn one(store: &dyn Store, key: &str) -> Result<(Revision, Option<Entry>), ReadError> {
    let range = store.range(key).await?;
    Ok((range.revision, range.entries.into_iter().find(|entry| &*entry.key == key)))
}

/// Where the number is kept that revisions are added to. Written once in the life of a store.
const FENCE_BASE: &str = "meta/fence-base";

/// What a fencing token is more than a revision. A store that begins anew begins its revisions anew, and the tokens have to
/// grow nevertheless: so a new store starts from the time, at a million a second, faster than any store writes.
pub(super) async fn fence_base(store: &dyn Store) -> Result<u64, CommitError> {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let put = Op::Put { key: FENCE_BASE.into(), value: (unix << 20).to_string().into(), lease: None };
    let get = Op::Get(FENCE_BASE.into());
    let txn =
        Txn { compare: vec![Compare::Absent(FENCE_BASE.into())], then: vec![put, get.clone()], otherwise: vec![get] };
    let committed = store.commit(txn).await?;
    let Some(seawall_store::OpResult::Got(Some(entry))) = committed.results.into_iter().next_back() else {
        return Err(CommitError::Unavailable(format!("`{FENCE_BASE}` was written and is not there")));
    };
    let number = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| CommitError::Invalid(format!("`{FENCE_BASE}` holds no number")))
}
