//! Locks that several hold at a time: how much of a lock a claim is for, and what a backend needs to be able to for that.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, BackendError, Claim, ClaimError, Want};

/// The longest delay after a holder that was lost.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// How much of a lock a claim is for. All kinds of claims of one lock stand in one queue, first come, first served: an
/// exclusive one holds it alone, readers hold it together, and so do permits as far as there are enough; readers and permits
/// exclude each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kind {
    /// All of it.
    #[default]
    Exclusive,
    /// To read what others read at the same time.
    Read,
    /// Some of so many permits. Whoever claims permits of the lock has to mean the same limit.
    Permits {
        /// How many there are; at least 1.
        limit: u32,
        /// How many are taken, from 1 to `limit`; all at once or none.
        take: u32,
    },
}

impl Kind {
    /// Whether it can be claimed at all.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(self) -> Result<(), String> {
        match self {
            Self::Permits { limit: 0, .. } => Err("a limit of 0 permits: there has to be one at least".to_owned()),
            Self::Permits { limit, take } if take == 0 || take > limit => {
                Err(format!("{take} of {limit} permits: 1 to {limit} can be taken"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        *self == Self::Exclusive
    }

    /// Whether a claim of this kind holds the lock when these, and no others, came before it and are still there.
    pub(crate) fn holds(self, before: impl IntoIterator<Item = Self>) -> bool {
        let mut before = before.into_iter();
        match self {
            Self::Exclusive => before.next().is_none(),
            Self::Read => before.all(|one| one == Self::Read),
            Self::Permits { limit, take } => {
                let mut taken = u64::from(take);
                before.all(|one| {
                    let Self::Permits { limit: theirs, take } = one else { return false };
                    taken += u64::from(take);
                    theirs == limit
                }) && taken <= u64::from(limit)
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => f.write_str("exclusive"),
            Self::Read => f.write_str("read"),
            Self::Permits { limit, take } => write!(f, "{take} of {limit} permits"),
        }
    }
}

/// How a lock is claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// How much of it.
    pub kind: Kind,
    /// How long whoever comes next waits, on its own clock, when this claim goes without having been released; for what a lost
    /// holder has under way and cannot take back. Of exclusive claims only, at most [`MAX_DELAY`]. Default none.
    pub delay: Duration,
}

impl Manner {
    /// Without a delay.
    pub fn of(kind: Kind) -> Self {
        Self { kind, delay: Duration::ZERO }
    }

    /// Whether a lock can be claimed like this.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let Self { kind, delay } = *self;
        if delay > MAX_DELAY {
            return Err(format!("a delay of {delay:?}: at most {MAX_DELAY:?} is allowed"));
        }
        if !delay.is_zero() && !kind.is_exclusive() {
            return Err(format!("a delay after a claim that is {kind}: only exclusive ones may have one"));
        }
        kind.check()
    }
}

/// A backend with locks that several can hold, and with delays.
pub trait SharedLocks: Backend {
    /// As [`Backend::claim`], in the manner given. The same want again is in the same manner. A claim of permits whose limit
    /// is not that of the claims before it is [`BackendError::Refused`], which names both.
    fn claim_as(
        &self,
        lease: &Self::Lease,
        want: &Want,
        manner: &Manner,
        patience: Duration,
    ) -> impl Future<Output = Result<Claim, ClaimError>> + Send;

    /// Makes an exclusive claim that holds its lock one that reads, in its place: readers right behind it hold the lock, too.
    /// False when it does not hold the lock (any more). Can be repeated.
    fn downgrade(&self, lease: &Self::Lease, claim: &Claim) -> impl Future<Output = Result<bool, BackendError>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_beside_whom() {
        let permits = |take| Kind::Permits { limit: 3, take };
        for (before, own, holds) in [
            (vec![], Kind::Exclusive, true),
            (vec![Kind::Read], Kind::Exclusive, false),
            (vec![Kind::Read, Kind::Read], Kind::Read, true),
            (vec![Kind::Read, Kind::Exclusive], Kind::Read, false),
            (vec![Kind::Read], permits(1), false),
            (vec![permits(1)], Kind::Read, false),
            (vec![permits(1), permits(1)], permits(1), true),
            (vec![permits(2)], permits(2), false),
            (vec![permits(1)], Kind::Permits { limit: 9, take: 1 }, false),
            // Nobody passes one who waits.
            (vec![permits(2), permits(2)], permits(1), false),
        ] {
            assert_eq!(own.holds(before.clone()), holds, "{own} behind {before:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (kind, says) in [
            (Kind::Permits { limit: 0, take: 0 }, "a limit of 0 permits"),
            (Kind::Permits { limit: 3, take: 0 }, "0 of 3 permits: 1 to 3"),
            (Kind::Permits { limit: 3, take: 4 }, "4 of 3 permits: 1 to 3"),
        ] {
            assert!(kind.check().unwrap_err().contains(says));
        }
        let late = |kind, delay| Manner { kind, delay: Duration::from_secs(delay) }.check();
        assert!(late(Kind::Exclusive, 61).unwrap_err().contains("61s: at most 60s"));
        assert!(late(Kind::Read, 1).unwrap_err().contains("only exclusive"));
        assert_eq!(late(Kind::Exclusive, 60), Ok(()));
    }
}
