//! Following all locks, or all elections: what is different from the last look, as soon as something has happened.

use std::collections::BTreeMap;
use std::time::Duration;

use seawall_store::{Cursor, Keys};

use super::{CALL, ELECTIONS, LOCKS, StoreBackend, down};
use crate::backend::BackendError;
use crate::backend::view::{ElectionView, LockView};
use crate::name::{ElectionName, LockName};

/// Between two looks. Locks come and go thousands of times a second.
const PAUSE: Duration = Duration::from_millis(100);

/// What can be followed.
pub trait Followed: Clone + PartialEq + Send + Sized {
    /// By which it is known.
    type Name: Clone + Ord + Send;
    #[doc(hidden)]
    const PREFIX: &'static str;
    #[doc(hidden)]
    fn all(backend: &StoreBackend) -> impl Future<Output = Result<Vec<Self>, BackendError>> + Send;
    #[doc(hidden)]
    fn name(&self) -> &Self::Name;
    /// As it is when nobody wants it.
    #[doc(hidden)]
    fn unwanted(name: Self::Name) -> Self;
}

impl Followed for LockView {
    type Name = LockName;
    const PREFIX: &'static str = LOCKS;

    async fn all(backend: &StoreBackend) -> Result<Vec<Self>, BackendError> {
        backend.list().await
    }

    fn name(&self) -> &LockName {
        &self.name
    }

    fn unwanted(name: LockName) -> Self {
        Self::of(name, Vec::new())
    }
}

impl Followed for ElectionView {
    type Name = ElectionName;
    const PREFIX: &'static str = ELECTIONS;

    async fn all(backend: &StoreBackend) -> Result<Vec<Self>, BackendError> {
        backend.elections().await
    }

    fn name(&self) -> &ElectionName {
        &self.name
    }

    fn unwanted(name: ElectionName) -> Self {
        Self { name, leader: None, candidates: Vec::new() }
    }
}

/// Follows all locks, or all elections, of a store.
pub struct Following<V: Followed> {
    backend: StoreBackend,
    seen: Option<BTreeMap<V::Name, V>>,
    cursor: Option<Cursor>,
}

impl<V: Followed> std::fmt::Debug for Following<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").field("prefix", &V::PREFIX).finish_non_exhaustive()
    }
}

impl<V: Followed> Following<V> {
    /// Asks nobody for anything yet.
    pub fn new(backend: StoreBackend) -> Self {
        Self { backend, seen: None, cursor: None }
    }

    /// First everything that somebody wants, which may be nothing; then, each time, those that are not as they were last said to
    /// be, at least one. What comes and goes within a tenth of a second may not be seen. Cancel safe.
    ///
    /// # Errors
    /// [`BackendError::Down`]; the next call tries again.
    pub async fn next(&mut self) -> Result<Vec<V>, BackendError> {
        loop {
            match &mut self.cursor {
                Some(cursor) => {
                    let more = cursor.next().await;
                    if more.is_err() {
                        self.cursor = None;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                // The watch begins before the look, so that the two miss nothing together.
                None => {
                    let watch = tokio::time::timeout(CALL, self.backend.store.watch_now(Keys::prefix(V::PREFIX)));
                    match watch.await {
                        Ok(Ok((_, cursor))) => self.cursor = Some(cursor),
                        Ok(Err(error)) => return Err(down(error)),
                        Err(_) => return Err(down(format!("no answer within {CALL:?}"))),
                    }
                }
            }
            let now: BTreeMap<_, _> =
                V::all(&self.backend).await?.into_iter().map(|view| (view.name().clone(), view)).collect();
            let Some(seen) = self.seen.replace(now) else {
                return Ok(self.seen.iter().flat_map(BTreeMap::values).cloned().collect());
            };
            let now = self.seen.iter().flatten();
            let differs = now.filter(|(name, view)| seen.get(*name) != Some(*view)).map(|(_, view)| view.clone());
            let mut changed: Vec<_> = differs.collect();
            let gone = seen.into_keys().filter(|name| !self.seen.as_ref().is_some_and(|now| now.contains_key(name)));
            changed.extend(gone.map(V::unwanted));
            if !changed.is_empty() {
                return Ok(changed);
            }
        }
    }
}
