//! Locks and elections as people and other programs see it.

use std::fmt;

use seawall_types::Revision;
use serde::{Deserialize, Serialize};

use crate::class::Fence;
use crate::name::{ElectionName, LockName};
use crate::sharing::Kind;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(crate) fn is_zero(priority: &i32) -> bool {
    *priority == 0
}

/// Who holds a lock, or waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimView {
    /// Whose session it is.
    pub owner: String,
    /// The session's number; no secret.
    pub session: String,
    /// Its fencing token, or the one that it will have; none where the backend has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// When it took its place in the queue, in milliseconds since 1970 by its backend's clock.
    pub since_ms: u64,
    /// What it says about itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub info: String,
    /// How much of the lock it is for.
    #[serde(default, skip_serializing_if = "Kind::is_exclusive")]
    pub kind: Kind,
    /// Of a candidate: a higher one leads before a lower.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
}

impl fmt::Display for ClaimView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (session {}", self.owner, self.session)?;
        match self.fence {
            Some(fence) => write!(f, ", token {fence})"),
            None => write!(f, ")"),
        }
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
    /// A higher one leads before a lower.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
}

impl CandidateView {
    /// What stands for election by a claim that last said something at this revision.
    pub(crate) fn of(claim: ClaimView, modified: Revision) -> Self {
        let ClaimView { owner, session, fence, since_ms, info, kind: _, priority } = claim;
        Self { term: fence.unwrap_or_default(), owner, session, since_ms, info, modified, priority }
    }
}

impl CandidateView {
    /// Its claim of the lock that decides the election.
    pub(crate) fn claim(self) -> ClaimView {
        let Self { term, owner, session, since_ms, info, modified: _, priority } = self;
        ClaimView { owner, session, fence: Some(term), since_ms, info, kind: Kind::Exclusive, priority }
    }
}

impl fmt::Display for CandidateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.term.get() {
            // Where terms are only given to those who lead.
            0 => write!(f, "{} (session {})", self.owner, self.session),
            term => write!(f, "{} (session {}, term {term})", self.owner, self.session),
        }
    }
}

/// An election as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectionView {
    /// Its name.
    pub name: ElectionName,
    /// Who leads; nobody when nobody stands.
    pub leader: Option<CandidateView>,
    /// Who stands, who has stood longest first.
    pub candidates: Vec<CandidateView>,
}

impl ElectionView {
    /// An election in which these stand, the leader first.
    pub(crate) fn of(name: ElectionName, candidates: impl IntoIterator<Item = CandidateView>) -> Self {
        let mut candidates = candidates.into_iter();
        Self { name, leader: candidates.next(), candidates: candidates.collect() }
    }

    /// Of those who wait with a higher priority than this the one with the highest; among equals who has stood longest.
    pub(crate) fn above(&self, priority: i32) -> Option<&CandidateView> {
        let higher = self.candidates.iter().filter(|candidate| candidate.priority > priority);
        // Of several greatest the last is taken, so from behind.
        higher.rev().max_by_key(|candidate| candidate.priority)
    }
}
