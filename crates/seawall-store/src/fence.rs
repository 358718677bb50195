//! Where fencing tokens begin, so that they still grow when revisions start anew.
//!
//! A fencing token is the store's fence base plus the revision that created the holder's key. Revisions alone would start
//! again at 1 in a store that was begun anew, restored from an old backup, or moved to another backend, and whoever guards a
//! resource would refuse every new holder, or worse, accept an old one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seawall_types::Revision;

use crate::{CommitError, Compare, ReadError, Store, Txn};

/// The key that holds the fence base, in decimal digits.
pub const FENCE_BASE: &str = "meta/fence-base";

/// Seconds since 1970 are shifted by this: room for a million revisions in each second of a store's life. It fits into the
/// 53 bits of a JSON number until the year 2242.
const SHIFT: u32 = 20;

/// The fence base of a store, made when it has none yet. It never changes, so it may be kept. Cancel safe: calling again
/// gives the same.
///
/// # Errors
/// As a commit; [`CommitError::Invalid`] when the key holds no number. Calling again is right after
/// [`CommitError::Unknown`], too.
pub async fn fence_base(store: &dyn Store) -> Result<u64, CommitError> {
    if let Some(base) = read(store).await? {
        return Ok(base);
    }
    let base = next_fence_base(None, SystemTime::now());
    store.commit(Txn::put(FENCE_BASE, base.to_string()).when(Compare::Absent(FENCE_BASE.into()))).await?;
    // Somebody else's may have been first.
    read(store).await?.ok_or_else(|| CommitError::Unavailable(format!("{FENCE_BASE} was deleted meanwhile")))
}

/// The fence base of a store that takes the place of another: `before` is that one's base and the last revision that it can
/// have come to. Larger than every token that has been given.
pub fn next_fence_base(before: Option<(u64, Revision)>, now: SystemTime) -> u64 {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let given = before.map_or(0, |(base, revision)| base.saturating_add(revision.0).saturating_add(1));
    given.max(seconds << SHIFT)
}

async fn read(store: &dyn Store) -> Result<Option<u64>, CommitError> {
    let entry = store.get(FENCE_BASE).await.map_err(|ReadError::Unavailable(why)| CommitError::Unavailable(why))?;
    let Some(entry) = entry else { return Ok(None) };
    let base = std::str::from_utf8(&entry.value).ok().and_then(|digits| digits.parse().ok());
    let held = || CommitError::Invalid(format!("{FENCE_BASE} holds {:?}, which is no number", entry.value));
    base.map(Some).ok_or_else(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_grow_when_revisions_start_anew() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let first = next_fence_base(None, at(1_764_000_000));
        // Begun anew a minute later, after as many revisions as no disk can sync in that time.
        assert!(next_fence_base(None, at(1_764_000_060)) > first + 60_000_000);
        // Restored under a clock that is wrong.
        assert_eq!(next_fence_base(Some((first, Revision(500))), at(0)), first + 501);
        assert_eq!(next_fence_base(Some((first, Revision(500))), at(1_764_000_001)), first + (1 << 20));
        // The last second of the year 2241.
        assert!(next_fence_base(None, at(8_583_494_399)) < 1 << 53);
    }
}
