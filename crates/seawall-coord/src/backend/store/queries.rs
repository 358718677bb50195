//! What the recipe asks of a store, in the store's own words.

use seawall_store::{CommitError, Entry, Keys, Op, OpResult, ReadError, Store, Txn};
use seawall_types::Revision;

/// Where a key stands in its queue, read at one revision.
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
}

/// The order of a queue: by the revision that created a key. Names decide nothing, but make it an order.
fn order(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    a.created.cmp(&b.created).then_with(|| a.key.cmp(&b.key))
}

/// Where `key`, as it was `created`, stands among the keys under `queue`. Takes no longer however many they are.
pub(super) async fn place(store: &dyn Store, queue: &str, key: &str, created: Revision) -> Result<Place, ReadError> {
    let then = vec![Op::Get(key.into()), Op::Oldest(queue.into()), Op::NewestBefore(queue.into(), created)];
    let (revision, mut entries) = read(store, then).await?;
    let before = entries.pop().flatten();
    let first = entries.pop().flatten();
    let own = entries.pop().flatten();
    Ok(Place { revision, own, first, before })
}

/// The oldest key under `queue`.
pub(super) async fn oldest(store: &dyn Store, queue: &str) -> Result<Option<Entry>, ReadError> {
    Ok(read(store, vec![Op::Oldest(queue.into())]).await?.1.pop().flatten())
}

/// A transaction that only reads.
async fn read(store: &dyn Store, then: Vec<Op>) -> Result<(Revision, Vec<Option<Entry>>), ReadError> {
    let committed = store.commit(Txn { then, ..Txn::default() }).await;
    let committed = committed.map_err(|error: CommitError| ReadError::Unavailable(error.to_string()))?;
    let entry = |result| if let OpResult::Got(entry) = result { entry } else { None };
    Ok((committed.revision, committed.results.into_iter().map(entry).collect()))
}

/// How many keys under `queue` are older than one that was `created` then.
pub(super) async fn ahead(store: &dyn Store, queue: &str, created: Revision) -> Result<usize, ReadError> {
    let entries = store.range(queue).await?.entries;
    Ok(entries.iter().filter(|entry| entry.created < created).count())
}

/// Every key under `prefix`, the oldest first.
pub(super) async fn by_age(store: &dyn Store, prefix: &str) -> Result<Vec<Entry>, ReadError> {
    let mut entries = store.range(prefix).await?.entries;
    entries.sort_by(order);
    Ok(entries)
}

/// One key, with a revision at which this was true. Watch from its successor to miss nothing.
pub(super) async fn one(store: &dyn Store, key: &str) -> Result<(Revision, Option<Entry>), ReadError> {
    let range = store.query(seawall_store::Query::new(Keys::One(key.into()))).await?;
    Ok((range.revision, range.entries.into_iter().next()))
}
