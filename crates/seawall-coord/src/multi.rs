//! Several locks at a time: all of them or none, before one deadline.
//!
//! They are taken one after the other in the order of their names, whatever order they were named in. So two that want the
//! same locks never wait for each other: of all that is held, whoever holds the last name waits for nobody. This is true of
//! claims that are made through a [`MultiLock`] alone; who holds a lock and then takes others by hand has to keep to the same
//! order.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Backend, BackendError, ClaimError, Released};
use crate::class::{Fence, Fences};
use crate::lock::{Guard, Lock, MAX_PATIENCE};
use crate::name::LockName;
use crate::session::{Session, Why};

/// The most locks that are taken together.
pub const MAX_LOCKS: usize = 64;

/// Several locks of a session. Not held by being there.
pub struct MultiLock<B: Backend> {
    session: Session<B>,
    /// In order, none twice.
    names: Vec<LockName>,
    info: String,
}

impl<B: Backend> fmt::Debug for MultiLock<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiLock").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Locks that were not acquired: one of them was not, and none is held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lock `{name}`: {error}")]
pub struct MultiError {
    /// Which one.
    pub name: LockName,
    /// Why.
    pub error: ClaimError,
}

impl<B: Backend> Session<B> {
    /// Several locks of this session, in any order; a name that comes twice counts once. Asks nobody for anything yet.
    pub fn multi_lock(&self, names: impl IntoIterator<Item = LockName>) -> MultiLock<B> {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        names.dedup();
        MultiLock { session: self.clone(), names, info: String::new() }
    }
}

impl<B: Backend> MultiLock<B> {
    /// Their names, in the order in which they are taken.
    pub fn names(&self) -> &[LockName] {
        &self.names
    }

    /// The same with a text for those who ask who holds the locks; at most 4 KiB. Default empty.
    #[must_use]
    pub fn info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    /// Waits for all of the locks, at most for `patience` in all (a day at most). Those that it has are held meanwhile; if one
    /// cannot be had in time, all are given back. Without any name it has nothing to wait for. Cancel safe: a dropped future
    /// gives back what it has.
    ///
    /// # Errors
    /// [`MultiError`]; [`BackendError::Refused`] for more than [`MAX_LOCKS`].
    pub async fn acquire_within(&self, patience: Duration) -> Result<MultiGuard<B>, MultiError> {
        let until = Instant::now() + patience.min(MAX_PATIENCE);
        let mut held = MultiGuard { guards: Vec::with_capacity(self.names.len()) };
        for name in &self.names {
            let fails = |error| MultiError { name: name.clone(), error };
            if self.names.len() > MAX_LOCKS {
                let backend = self.session.inner.backend.name();
                let why = format!("{} locks at a time: at most {MAX_LOCKS} are allowed", self.names.len());
                return Err(fails(BackendError::Refused { backend, why }.into()));
            }
            let left = until.saturating_duration_since(Instant::now());
            let lock = Lock::new(self.session.clone(), name.clone()).info(self.info.clone());
            held.guards.push(lock.acquire_within(left).await.map_err(fails)?);
        }
        Ok(held)
    }

    /// Takes all of the locks if they are free, or none.
    ///
    /// # Errors
    /// [`MultiError`], never [`ClaimError::Busy`]: that is `None`.
    pub async fn try_acquire(&self) -> Result<Option<MultiGuard<B>>, MultiError> {
        match self.acquire_within(Duration::ZERO).await {
            Ok(guard) => Ok(Some(guard)),
            Err(MultiError { error: ClaimError::Busy { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Holds several locks. When it is dropped, the session's thread gives them back soon after.
#[must_use = "the locks are given back when their guard is dropped"]
pub struct MultiGuard<B: Backend> {
    /// In the order of their names.
    guards: Vec<Guard<B>>,
}

impl<B: Backend> fmt::Debug for MultiGuard<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.guards).finish()
    }
}

impl<B: Backend> MultiGuard<B> {
    /// The guards of the locks, in the order of their names.
    pub fn guards(&self) -> &[Guard<B>] {
        &self.guards
    }

    /// How long all of them are still sure, by the holder's own clock, or why one is lost. See [`Guard::check`].
    ///
    /// # Errors
    /// Why; once lost, always lost.
    pub fn check(&self) -> Result<Duration, Why> {
        self.guards.iter().try_fold(Duration::MAX, |least, guard| Ok(least.min(guard.check()?)))
    }

    /// Resolves when one of them is lost. Never, without any lock. Cancel safe.
    pub async fn lost(&self) -> Why {
        let mut losses: Vec<Pin<Box<dyn Future<Output = Why> + Send + '_>>> =
            self.guards.iter().map(|guard| Box::pin(guard.lost()) as _).collect();
        std::future::poll_fn(|context| {
            let mut losses = losses.iter_mut().map(|loss| loss.as_mut().poll(context));
            losses.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await
    }

    /// Does the work as long as all of them are held, and drops it where it stands when one is lost.
    ///
    /// # Errors
    /// Why it was lost.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Why> {
        tokio::select! {
            biased;
            why = self.lost() => Err(why),
            done = work => Ok(done),
        }
    }

    /// Gives them back, the last name first. Says whether all were still held. Cancel safe: the release goes on.
    ///
    /// # Errors
    /// The first [`BackendError`]; what was not confirmed is tried again in the background, and the others are released
    /// nevertheless.
    pub async fn release(mut self) -> Result<Released, BackendError> {
        let mut all = Ok(Released::Now);
        while let Some(guard) = self.guards.pop() {
            match (guard.release().await, &all) {
                (Err(error), Ok(_)) => all = Err(error),
                (Ok(Released::WasNotHeld), Ok(_)) => all = Ok(Released::WasNotHeld),
                _ => {}
            }
        }
        all
    }
}

impl<B: Backend> Drop for MultiGuard<B> {
    fn drop(&mut self) {
        // A vector drops its first element first.
        while self.guards.pop().is_some() {}
    }
}

impl<B: Backend<Class: Fences>> MultiGuard<B> {
    /// The fencing token of the lock of this name; `None` when it is none of these.
    pub fn fence(&self, name: &LockName) -> Option<Fence> {
        self.guards.iter().find(|guard| guard.name() == name).map(Guard::fence)
    }
}
