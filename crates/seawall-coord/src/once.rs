//! The once-latch: something that is done once for all, and whose outcome everybody gets. The migration of a database, the
//! first invoice number, the key that was generated.
//!
//! Whoever comes first holds the latch's lock and does it; the others wait for that. The outcome is set by a write that
//! succeeds only while the claim is there, so a worker that was lost and goes on sets nothing. "Once" is the outcome: work that
//! failed, or whose worker was lost, is done again by the next.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Backend, BackendError, Claim, ClaimError};
use crate::lock::{Guard, Lock};
use crate::name::LockName;
use crate::session::{Session, Why};

/// A backend with latches.
pub trait Latches: Backend {
    /// What a latch is set to, if it is set.
    fn latch(&self, name: &LockName) -> impl Future<Output = Result<Option<String>, BackendError>> + Send;

    /// Sets a latch, of at most [`MAX_INFO`](crate::MAX_INFO) bytes, while this claim holds its lock; false when it is gone.
    /// Can be repeated.
    fn set_latch(
        &self,
        lease: &Self::Lease,
        claim: &Claim,
        value: &str,
    ) -> impl Future<Output = Result<bool, BackendError>> + Send;

    /// Makes a latch one that was never set. One that is not set stays so.
    fn reset_latch(&self, name: &LockName) -> impl Future<Output = Result<(), BackendError>> + Send;
}

/// A latch of a session. Does nothing by being there.
pub struct OnceLatch<B: Latches> {
    session: Session<B>,
    name: LockName,
    lock: Lock<B>,
}

impl<B: Latches> fmt::Debug for OnceLatch<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceLatch").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A latch that was not set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OnceError<E> {
    /// It was not this one's turn; the work has not begun.
    #[error(transparent)]
    Claim(ClaimError),
    /// The turn was lost and the work was dropped where it stood, or its outcome was not taken. Another does it again.
    #[error("the turn was lost during the work: {0}")]
    Lost(Why),
    /// The work failed. The next one tries.
    #[error("the work failed: {0}")]
    Work(E),
    /// The work was done, and its outcome was not, or not surely, set.
    #[error("the work was done, but its outcome could not be set: {0}")]
    Unset(BackendError),
}

impl<B: Latches> Session<B> {
    /// A latch. It has nothing to do with the lock of its name. Asks nobody for anything yet.
    pub fn once(&self, name: LockName) -> OnceLatch<B> {
        let lock = self.lock(LockName::of_latch(&name));
        OnceLatch { session: self.clone(), name, lock }
    }
}

impl<B: Latches> OnceLatch<B> {
    /// Its name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// What it is set to, if it is.
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn get(&self) -> Result<Option<String>, BackendError> {
        self.session.inner.backend.latch(&self.name).await
    }

    /// What it is set to; if it is not set, does the work, or waits at most for `patience` while another does it. The outcome is
    /// a text of at most 4 KiB. When the future is dropped, the work is dropped where it stands and the latch is not set.
    ///
    /// # Errors
    /// [`OnceError`].
    pub async fn get_or_run<E>(
        &self,
        patience: Duration,
        work: impl AsyncFnOnce(&Guard<B>) -> Result<String, E>,
    ) -> Result<String, OnceError<E>> {
        let until = Instant::now() + patience;
        let backend = |error| OnceError::Claim(ClaimError::Backend(error));
        if let Some(value) = self.get().await.map_err(backend)? {
            return Ok(value);
        }
        let left = until.saturating_duration_since(Instant::now());
        let guard = self.lock.acquire_within(left).await.map_err(OnceError::Claim)?;
        // The one before may have set it.
        if let Some(value) = self.get().await.map_err(backend)? {
            return Ok(value);
        }
        // A failure, and an outcome that is not taken, give the turn to the next one by dropping the guard.
        let value = guard.run(work(&guard)).await.map_err(OnceError::Lost)?.map_err(OnceError::Work)?;
        let mut pause = Duration::from_millis(20);
        loop {
            let sure = guard.check().map_err(OnceError::Lost)?;
            match self.session.inner.backend.set_latch(&guard.inner().lease, guard.claim(), &value).await {
                Ok(true) => return Ok(value),
                Ok(false) => return Err(OnceError::Lost(guard.check().err().unwrap_or(Why::Removed))),
                Err(error) if !error.retryable() || sure < pause => return Err(OnceError::Unset(error)),
                Err(error) => tracing::debug!(%error, latch = %self.name, "an outcome is set again"),
            }
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Makes it one that was never set. Whoever works on it at the moment sets it all the same.
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn reset(&self) -> Result<(), BackendError> {
        self.session.inner.backend.reset_latch(&self.name).await
    }
}
