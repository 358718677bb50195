//! The semaphore: so many permits, over processes and machines, given first come, first served.
//!
//! Whoever wants many is not passed by others that want few. A permit goes back when it is released and when its holder's
//! session ends, so none is lost with a process that dies. It is the lock of its name, which [`Session::lock`] holds alone: so
//! maintenance can wait until nobody has a permit.

use std::fmt;
use std::time::Duration;

use crate::backend::ClaimError;
use crate::lock::{Guard, Lock};
use crate::name::LockName;
use crate::session::Session;
use crate::sharing::{Kind, Manner, SharedLocks};

/// A semaphore of a session. Holds no permit by being there.
pub struct Semaphore<B: SharedLocks> {
    session: Session<B>,
    name: LockName,
    limit: u32,
    info: String,
}

impl<B: SharedLocks> fmt::Debug for Semaphore<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("name", &self.name).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<B: SharedLocks> Session<B> {
    /// A semaphore of this session, of which `limit` permits can be held at a time; at least 1. Everybody has to say the same
    /// limit: a claim is refused when one before it means another. Asks nobody for anything yet.
    pub fn semaphore(&self, name: LockName, limit: u32) -> Semaphore<B> {
        Semaphore { session: self.clone(), name, limit, info: String::new() }
    }
}

impl<B: SharedLocks> Semaphore<B> {
    /// Its name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The same with a text for those who ask who has permits; at most 4 KiB. Default empty.
    #[must_use]
    pub fn info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    fn lock(&self, take: u32) -> Lock<B> {
        let manner = Manner::of(Kind::Permits { limit: self.limit, take });
        self.session.lock(self.name.clone()).info(self.info.clone()).in_manner(manner)
    }

    /// Waits for so many permits, all at once, at most for `patience`; as [`Lock::acquire_within`]. The guard gives all of
    /// them back. Its token orders who came first; two holders at a time have different ones.
    ///
    /// # Errors
    /// [`ClaimError`]; [`BackendError::Refused`](crate::BackendError::Refused) when `take` is not from 1 to the limit, and
    /// when others mean another limit, with both.
    pub async fn acquire_within(&self, take: u32, patience: Duration) -> Result<Guard<B>, ClaimError> {
        self.lock(take).acquire_within(patience).await
    }

    /// Takes so many permits if they are there and nobody waits.
    ///
    /// # Errors
    /// [`ClaimError`], never [`ClaimError::Busy`]: that is `None`.
    pub async fn try_acquire(&self, take: u32) -> Result<Option<Guard<B>>, ClaimError> {
        self.lock(take).try_acquire().await
    }
}
