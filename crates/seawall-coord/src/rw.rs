//! The read/write lock: many readers or one writer, first come, first served.
//!
//! It is the lock of its name: a writer is who holds it, [`Session::lock`] and [`RwLock::write_within`] exclude each other.
//! Readers and writers stand in one queue, so neither starves: a reader that comes after a writer waits for it, however many
//! read at the moment.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use crate::backend::{BackendError, ClaimError, Released};
use crate::lock::{Guard, Lock};
use crate::name::LockName;
use crate::session::{Session, Why};
use crate::sharing::{Kind, Manner, SharedLocks};

/// A read/write lock of a session. Not held by being there.
pub struct RwLock<B: SharedLocks> {
    read: Lock<B>,
    write: Lock<B>,
}

impl<B: SharedLocks> fmt::Debug for RwLock<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("name", self.name()).finish_non_exhaustive()
    }
}

impl<B: SharedLocks> Session<B> {
    /// A read/write lock of this session. Asks nobody for anything yet.
    pub fn rw_lock(&self, name: LockName) -> RwLock<B> {
        let read = self.lock(name.clone()).in_manner(Manner::of(Kind::Read));
        RwLock { read, write: self.lock(name).in_manner(Manner::of(Kind::Exclusive)) }
    }
}

impl<B: SharedLocks> RwLock<B> {
    /// Its name.
    pub fn name(&self) -> &LockName {
        self.write.name()
    }

    /// The same with a text for those who ask who holds the lock; at most 4 KiB. Default empty.
    #[must_use]
    pub fn info(mut self, info: impl Into<String>) -> Self {
        let info = info.into();
        (self.read, self.write) = (self.read.info(info.clone()), self.write.info(info));
        self
    }

    /// The same for an owner within this session, as with [`Lock::reentrant`]: who reads may read again, though a writer
    /// waits, and who writes may read, too. Who reads and wants to write is refused at once: two who did that would wait for
    /// each other.
    #[must_use]
    pub fn reentrant(mut self, owner: &str) -> Self {
        (self.read, self.write) = (self.read.reentrant(owner), self.write.reentrant(owner));
        self
    }

    /// Waits until the lock can be held to read, at most for `patience`, as [`Lock::acquire_within`]. The guard's token is
    /// larger than those of the writers before it, and smaller than those of the writers after it.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn read_within(&self, patience: Duration) -> Result<Guard<B>, ClaimError> {
        self.read.acquire_within(patience).await
    }

    /// Holds the lock to read if nobody writes or waits to write.
    ///
    /// # Errors
    /// [`ClaimError`], never [`ClaimError::Busy`]: that is `None`.
    pub async fn try_read(&self) -> Result<Option<Guard<B>>, ClaimError> {
        self.read.try_acquire().await
    }

    /// Waits until the lock can be held to write, at most for `patience`, as [`Lock::acquire_within`]. There is no way from
    /// reading to writing but to release: a task that waits for its own reading to end waits until its time is over.
    ///
    /// # Errors
    /// [`ClaimError`]; [`BackendError::Refused`] when the same [owner](Self::reentrant) reads.
    pub async fn write_within(&self, patience: Duration) -> Result<WriteGuard<B>, ClaimError> {
        Ok(WriteGuard { guard: self.write.acquire_within(patience).await? })
    }

    /// Holds the lock to write if nobody has it or waits for it.
    ///
    /// # Errors
    /// [`ClaimError`], never [`ClaimError::Busy`]: that is `None`.
    pub async fn try_write(&self) -> Result<Option<WriteGuard<B>>, ClaimError> {
        Ok(self.write.try_acquire().await?.map(|guard| WriteGuard { guard }))
    }
}

/// Holds a lock to write; a [`Guard`] that can become a reader's.
#[must_use = "the lock is given back when its guard is dropped"]
pub struct WriteGuard<B: SharedLocks> {
    guard: Guard<B>,
}

impl<B: SharedLocks> fmt::Debug for WriteGuard<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteGuard").field("claim", self.guard.claim()).finish_non_exhaustive()
    }
}

impl<B: SharedLocks> Deref for WriteGuard<B> {
    type Target = Guard<B>;

    fn deref(&self) -> &Guard<B> {
        &self.guard
    }
}

/// A writer that did not become a reader.
#[derive(Debug, thiserror::Error)]
pub enum DowngradeError<B: SharedLocks> {
    /// The lock was lost before.
    #[error("the lock is lost: {0}")]
    Lost(Why),
    /// Other guards of the same owner share the claim, and may write.
    #[error("other guards of the same owner share the lock")]
    Shared(WriteGuard<B>),
    /// The backend did not do it.
    #[error("{error}")]
    Backend {
        /// Why; after [`BackendError::Unknown`] it may have been done.
        error: BackendError,
        /// Holds the lock on, at least to read.
        guard: Guard<B>,
    },
}

impl<B: SharedLocks> WriteGuard<B> {
    /// Holds the lock on to read: those who wait to read right behind do so, too, and no writer gets in between. The token
    /// stays. Stop writing **before** this. When the future is dropped, the lock is given back.
    ///
    /// # Errors
    /// [`DowngradeError`], with what is still held.
    pub async fn downgrade(self) -> Result<Guard<B>, DowngradeError<B>> {
        let Self { guard } = self;
        guard.check().map_err(DowngradeError::Lost)?;
        if guard.sharers() > 1 {
            return Err(DowngradeError::Shared(Self { guard }));
        }
        // From here on it is a reader, whatever the backend answers.
        guard.reads();
        let inner = guard.inner();
        match inner.backend.downgrade(&inner.lease, guard.claim()).await {
            Ok(true) => Ok(guard),
            Ok(false) => Err(DowngradeError::Lost(guard.check().err().unwrap_or(Why::Removed))),
            Err(error) => Err(DowngradeError::Backend { error, guard }),
        }
    }

    /// As [`Guard::release`].
    ///
    /// # Errors
    /// As there.
    pub async fn release(self) -> Result<Released, BackendError> {
        self.guard.release().await
    }
}
