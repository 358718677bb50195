//! What the recipe asks of a store, in the store's own words.

use seawall_store::{CommitError, Entry, Op, OpResult, ReadError, Store, Txn};
use seawall_types::Revision;

use super::permits::{self, Standing};
use super::watching::Await;
use super::{ClaimValue, delays, directory, queue};
use crate::name::LockName;
use crate::sharing::Kind;

/// A revision after all that will ever be.
pub(super) const LAST: Revision = Revision(i64::MAX.unsigned_abs());

/// How a claim stands in its queue, read at one revision.
#[derive(Debug)]
pub(super) struct Look {
    /// The revision at which all of it was true.
    pub(super) revision: Revision,
    /// The claim's own key, if it is there.
    pub(super) own: Option<Entry>,
    /// The oldest key of the queue.
    pub(super) first: Option<Entry>,
    /// What it waits for; nothing when it is its turn.
    pub(super) behind: Vec<Await>,
    /// Claims before it mean this number of permits, and not the same.
    pub(super) other_limit: Option<u32>,
    /// Others wait for this one to get its permits.
    pub(super) followed: bool,
    /// What a holder with a delay has left. Until the claim's turn has come it may be the holder's.
    pub(super) delay: Option<Entry>,
}

impl Look {
    /// Of a claim that came into an empty queue at this revision.
    pub(super) fn alone(revision: Revision, own: Entry) -> Self {
        let first = Some(own.clone());
        let (behind, other_limit, followed, delay) = (Vec::new(), None, false, None);
        Self { revision, own: Some(own), first, behind, other_limit, followed, delay }
    }
}

/// The order of a queue: by the revision that created a key. Names decide nothing, but make it an order.
fn order(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    a.created.cmp(&b.created).then_with(|| a.key.cmp(&b.key))
}

/// How the claim `key`, as it was `created`, stands. Takes no longer however many there are, but for permits.
pub(super) async fn look(
    store: &dyn Store,
    name: &LockName,
    key: &str,
    kind: Kind,
    created: Revision,
) -> Result<Look, ReadError> {
    let queue = queue(name);
    match kind {
        Kind::Exclusive => {
            let before = [Op::NewestBefore(queue, created)];
            let (mut look, [before]) = look_with(store, name, key, before).await?;
            look.behind = before.into_iter().map(gone).collect();
            Ok(look)
        }
        Kind::Read => {
            let before = |kind| Op::NewestBefore(directory(name, kind), created);
            let before = [before(Kind::Exclusive), before(Kind::Permits { limit: 1, take: 1 })];
            let (mut look, [writer, permit]) = look_with(store, name, key, before).await?;
            // One that held the lock and has become a reader since; nothing else came before that.
            let writer = writer.filter(|writer| ClaimValue::read(writer).kind == Kind::Exclusive);
            let writer = writer.map(|writer| Await::Changed(writer.key));
            look.behind = writer.into_iter().chain(permit.map(gone)).collect();
            Ok(look)
        }
        Kind::Permits { limit, take } => {
            let range = store.range(&queue).await?;
            let mut entries = range.entries;
            entries.sort_by(order);
            let own = entries.iter().find(|entry| *entry.key == *key && entry.created <= created).cloned();
            let before: Vec<_> = entries.iter().filter(|entry| entry.created < created && *entry.key != *key).collect();
            let followed = entries.len() > before.len() + usize::from(own.is_some());
            let kinds: Vec<_> = before.iter().map(|entry| ClaimValue::read(entry).kind).collect();
            let (mut behind, mut other_limit) = (Vec::new(), None);
            match (permits::standing(&kinds, limit, take), before.last()) {
                (Standing::Differs(limit), _) => other_limit = Some(limit),
                (Standing::BehindAll, _) => behind.push(Await::AnyGone(queue.as_str().into())),
                (Standing::BehindLast, Some(last)) => behind.push(Await::Changed(last.key.clone())),
                (Standing::Held | Standing::BehindLast, _) => {}
            }
            let first = entries.first().cloned();
            // What is left by a lost holder is read after the queue: when it is this one's turn, no other can write it.
            let delay = oldest(store, &delays(name)).await?;
            Ok(Look { revision: range.revision, own, first, behind, other_limit, followed, delay })
        }
    }
}

fn gone(entry: Entry) -> Await {
    Await::Gone(entry.key, entry.created)
}

/// What every look reads, and something more.
async fn look_with<const N: usize>(
    store: &dyn Store,
    name: &LockName,
    key: &str,
    more: [Op; N],
) -> Result<(Look, [Option<Entry>; N]), ReadError> {
    let mut then = vec![Op::Get(key.into()), Op::Oldest(queue(name)), Op::Oldest(delays(name))];
    then.extend(more);
    let (revision, entries) = read(store, then).await?;
    let mut entries = entries.into_iter();
    let mut next = || entries.next().flatten();
    let (own, first, delay) = (next(), next(), next());
    let more = std::array::from_fn(|_| next());
    Ok((Look { revision, own, first, behind: Vec::new(), other_limit: None, followed: false, delay }, more))
}

/// The oldest key under `queue`.
pub(super) async fn oldest(store: &dyn Store, queue: &str) -> Result<Option<Entry>, ReadError> {
    Ok(read(store, vec![Op::Oldest(queue.into())]).await?.1.pop().flatten())
}

/// The first of these keys that is there, and a revision at which all this was true.
pub(super) async fn first_of(store: &dyn Store, keys: &[String]) -> Result<(Revision, Option<Entry>), ReadError> {
    let (revision, entries) = read(store, keys.iter().cloned().map(Op::Get).collect()).await?;
    Ok((revision, entries.into_iter().flatten().next()))
}

/// A transaction that only reads.
async fn read(store: &dyn Store, then: Vec<Op>) -> Result<(Revision, Vec<Option<Entry>>), ReadError> {
    let committed = store.commit(Txn { then, ..Txn::default() }).await;
    let committed = committed.map_err(|error: CommitError| ReadError::Unavailable(error.to_string()))?;
    let entry = |result| if let OpResult::Got(entry) = result { entry } else { None };
    Ok((committed.revision, committed.results.into_iter().map(entry).collect()))
}

/// Every key under `prefix`, the oldest first.
pub(super) async fn by_age(store: &dyn Store, prefix: &str) -> Result<Vec<Entry>, ReadError> {
    let mut entries = store.range(prefix).await?.entries;
    entries.sort_by(order);
    Ok(entries)
}
