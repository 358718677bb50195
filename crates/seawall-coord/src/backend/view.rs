//! Locks and elections as people and other programs see it.

use std::fmt;

use seawall_types::Revision;
use serde::{Deserialize, Serialize};

use crate::class::Fence;
use crate::name::{ElectionName, LockName};

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
    /// Who waits, the next one first.
    pub queue: Vec<ClaimView>,
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
