//! What sessions and locks need of a backend, and how it says that something went wrong.

#[cfg(any(feature = "postgres", feature = "redis", feature = "zookeeper"))]
pub(crate) mod home;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod remote;
pub(crate) mod store;
pub(crate) mod view;
#[cfg(feature = "zookeeper")]
pub(crate) mod zookeeper;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use seawall_types::Revision;
use serde::{Deserialize, Serialize};

use crate::backend::view::ClaimView;
use crate::class::{Class, Fence};
use crate::name::{LockName, Owner, Token};
use crate::session::Why;

/// What a session is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long it lives without a keep-alive.
    pub ttl: Duration,
    /// Whose it is, for people to read.
    pub owner: Owner,
}

/// What a backend allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The shortest time to live.
    pub min_ttl: Duration,
    /// The longest.
    pub max_ttl: Duration,
}

impl Limits {
    /// Whether a time to live is allowed.
    ///
    /// # Errors
    /// A sentence that names it and the limits.
    pub fn check(&self, ttl: Duration) -> Result<(), String> {
        let Self { min_ttl, max_ttl } = self;
        if ttl < *min_ttl || ttl > *max_ttl {
            return Err(format!("a time to live of {ttl:?}: {min_ttl:?} to {max_ttl:?} are allowed"));
        }
        Ok(())
    }
}

/// A lock that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The lock.
    pub name: LockName,
    /// By which the claim is recognised.
    pub token: Token,
    /// Shown to those who ask who holds it; at most [`MAX_INFO`] bytes, may be empty.
    pub info: String,
    /// Of a candidate: a higher one leads before a lower. The queue's order is the same for all; see
    /// [`Election::campaign`](crate::Election::campaign).
    pub priority: i32,
}

impl Want {
    /// A lock, by a new token, of which nothing more is said.
    pub fn new(name: LockName) -> Self {
        Self { name, token: Token::random(), info: String::new(), priority: 0 }
    }
}

/// The most that a claim may say about itself, in bytes.
pub const MAX_INFO: usize = 4096;

/// A lock that somebody holds, or a place in its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The lock.
    pub name: LockName,
    /// Its own token.
    pub token: Token,
    /// The backend's number for the claim; later claims of the same lock have larger ones.
    pub created: Revision,
    /// The fencing token, where the backend has one.
    pub fence: Option<Fence>,
}

/// What a release found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The lock was held and is free now.
    Now,
    /// It was not held any more; nothing was changed.
    WasNotHeld,
    /// Another guard of the same owner shares the claim and holds the lock on; nothing was asked of the backend.
    Shared,
}

/// Why a claim vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gone {
    /// The claim alone: an operator took it away, or it was released.
    Removed,
    /// The whole session.
    Session,
}

/// A call to a backend that did not succeed. Every one names the backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// It does not answer or cannot write. Nothing was changed; trying again may help.
    #[error("{backend} is unavailable: {why}")]
    Down {
        /// Which, and where.
        backend: String,
        /// Why.
        why: String,
    },
    /// It was asked and has not answered: it may have been done.
    #[error("{backend} has not answered, it may have been done: {why}")]
    Unknown {
        /// Which, and where.
        backend: String,
        /// Why.
        why: String,
    },
    /// The session has ended there.
    #[error("{backend} does not know the session (any more)")]
    NoSession {
        /// Which, and where.
        backend: String,
    },
    /// It refuses; the same again gives the same.
    #[error("{backend} refuses: {why}")]
    Refused {
        /// Which, and where.
        backend: String,
        /// Why.
        why: String,
    },
}

impl BackendError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Unknown { .. })
    }
}

/// A lock that was not acquired, or an election that was not won; the words fit both.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Somebody holds it, and this claimant did not want to wait. Nothing of the claim is left.
    #[error("it is not free{}", held_by(.holder.as_deref()))]
    Busy {
        /// Who, if that can be told.
        holder: Option<Box<ClaimView>>,
    },
    /// The wait was too short. Nothing of the claim is left.
    #[error("it was not free within {waited:?}, {ahead} before this one{}", held_by(.holder.as_deref()))]
    TimedOut {
        /// How long it was waited for.
        waited: Duration,
        /// How many were still before this one.
        ahead: usize,
        /// Who held it, if that can be told.
        holder: Option<Box<ClaimView>>,
    },
    /// The session was lost, and with it the place in the queue.
    #[error("the session was lost while waiting: {0}")]
    Lost(Why),
    /// The place in the queue was taken away by an operator, or given up by the backend while its line was down, and there was
    /// no time left to queue anew.
    #[error("the claim was removed from the queue")]
    Removed,
    /// It may be in the queue, or may even hold the lock: the backend did not say. It is withdrawn in the background, at the
    /// latest when the session ends.
    #[error("whether it was acquired is unknown: {0}")]
    Unknown(BackendError),
    /// The backend. Nothing was acquired.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

#[cfg(any(feature = "postgres", feature = "zookeeper"))]
impl ClaimError {
    /// What an error means before anything was claimed.
    pub(crate) fn of_backend(error: BackendError) -> Self {
        match error {
            BackendError::NoSession { .. } => Self::Lost(Why::Ended),
            error => Self::Backend(error),
        }
    }
}

fn held_by(holder: Option<&ClaimView>) -> impl fmt::Display {
    holder.map(|holder| format!(", held by {holder}")).unwrap_or_default()
}

/// Does sessions and locks. All calls are bounded in time by the backend itself.
pub trait Backend: Clone + Send + Sync + 'static {
    /// What it promises.
    type Class: Class;
    /// A session there.
    type Lease: Clone + fmt::Debug + Send + Sync + 'static;

    /// Which it is and where, for messages: "control at 127.0.0.1:7400".
    fn name(&self) -> String;

    /// What it allows.
    fn limits(&self) -> Limits;

    /// Opens a session, and says how long it lives without a keep-alive.
    fn open(&self, terms: &Terms) -> impl Future<Output = Result<(Self::Lease, Duration), BackendError>> + Send;

    /// Keeps a session alive, and says how long it lives from now on.
    fn renew(&self, lease: &Self::Lease) -> impl Future<Output = Result<Duration, BackendError>> + Send;

    /// Ends a session and all that it holds. Ending one that is gone is no error.
    fn close(&self, lease: &Self::Lease) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Takes a place in the queue and waits at most `patience` for the lock; none at all means: only if it is free. The same
    /// want again keeps its place. After every error but [`ClaimError::Busy`] and [`ClaimError::TimedOut`], and when the
    /// future was dropped, the caller has to [`Backend::withdraw`].
    fn claim(
        &self,
        lease: &Self::Lease,
        want: &Want,
        patience: Duration,
    ) -> impl Future<Output = Result<Claim, ClaimError>> + Send;

    /// Gives a claim back, whether it holds the lock or waits. Only the one with this token, and idempotent: after
    /// [`BackendError::Unknown`] it is called again.
    fn withdraw(
        &self,
        lease: &Self::Lease,
        name: &LockName,
        token: &Token,
    ) -> impl Future<Output = Result<Released, BackendError>> + Send;

    /// The same by a caller who holds the lock, on the caller's runtime: [`Backend::withdraw`] is called on the session's
    /// thread, and a connection belongs to the runtime that opened it.
    fn release(
        &self,
        lease: &Self::Lease,
        claim: &Claim,
    ) -> impl Future<Output = Result<Released, BackendError>> + Send {
        self.withdraw(lease, &claim.name, &claim.token)
    }

    /// Resolves when the claim is no longer there. Tries for as long as it takes: a backend that does not answer says nothing.
    fn gone(&self, lease: &Self::Lease, claim: &Claim) -> impl Future<Output = Gone> + Send;
}
