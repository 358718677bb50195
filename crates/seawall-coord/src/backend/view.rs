//! Locks and elections as people and other programs see it.

use std::fmt;

use seawall_types::Revision;
use serde::{Deserialize, Serialize};

use crate::class::Fence;
use crate::name::{ElectionName, LockName};
use crate::sharing::Kind;

/// Who holds a lock, or waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimView {
    /// Whose session it is.
    pub owner: String,
    /// The session's number; no secret.
    pub session: String,
    /// Its fencing token, or the one that it will have.
    pub fence: Fence,
    /// When it took its place in the queue, in milliseconds since 1970 by its backend's clock.
    pub since_ms: u64,
    /// What it says about itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub info: String,
    /// How much of the lock it is for.
    #[serde(default, skip_serializing_if = "Kind::is_exclusive")]
    pub kind: Kind,
}

impl fmt::Display for ClaimView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (session {}, token {})", self.owner, self.session, self.fence)
    }
}

/// A lock with its queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// Its name.
    pub name: LockName,
    /// Who holds it; nobody in the moment between two holders, too.
    pub holder: Option<ClaimView>,
    /// Who holds it beside: other readers, others with permits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sharing: Vec<ClaimView>,
    /// Who waits, the next one first.
    pub queue: Vec<ClaimView>,
}

impl LockView {
    /// A lock with these claims, the oldest first.
    pub(crate) fn of(name: LockName, mut claims: Vec<ClaimView>) -> Self {
        let kinds: Vec<_> = claims.iter().map(|claim| claim.kind).collect();
        // Nobody holds it behind one who waits.
        let holders = (0..kinds.len()).take_while(|at| kinds[*at].holds(kinds[..*at].iter().copied())).count();
        let queue = claims.split_off(holders);
        let mut claims = claims.into_iter();
        Self { name, holder: claims.next(), sharing: claims.collect(), queue }
    }
}

/// Who leads, or stands for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateView {
    /// The term: its fencing token, or the one that it will have. A later leader's is larger.
    pub term: Fence,
    /// Whose session it is.
    pub owner: String,
    /// The session's number; no secret.
    pub session: String,
    /// Since when it stands for election, in milliseconds since 1970 by its backend's clock.
    pub since_ms: u64,
    /// What it says about itself: what it stood with, or what it has published since.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub info: String,
    /// The revision at which it said so.
    pub modified: Revision,
}

impl fmt::Display for CandidateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (session {}, term {})", self.owner, self.session, self.term)
    }
}

/// An election as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectionView {
    /// Its name.
    pub name: ElectionName,
    /// Who leads; nobody when nobody stands.
    pub leader: Option<CandidateView>,
    /// Who stands, the next leader first.
    pub candidates: Vec<CandidateView>,
}
