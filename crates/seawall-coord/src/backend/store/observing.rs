//! Following all locks, or all elections: what is different from the last look, as soon as something has happened. And following
//! which sessions end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use seawall_store::{Cursor, Keys, LeaseId, Query};

use super::{CALL, ELECTIONS, LOCKS, SESSIONS, StoreBackend, down, reading};
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
    /// Something has happened since the last look.
    happened: bool,
}

impl<V: Followed> std::fmt::Debug for Following<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").field("prefix", &V::PREFIX).finish_non_exhaustive()
    }
}

impl<V: Followed> Following<V> {
    /// Asks nobody for anything yet.
    pub fn new(backend: StoreBackend) -> Self {
        Self { backend, seen: None, cursor: None, happened: false }
    }

    /// First everything that somebody wants, which may be nothing; then, each time, those that are not as they were last said to
    /// be, at least one. What comes and goes within a tenth of a second may not be seen. Cancel safe.
    ///
    /// # Errors
    /// [`BackendError::Down`]; the next call tries again.
    pub async fn next(&mut self) -> Result<Vec<V>, BackendError> {
        loop {
            match &mut self.cursor {
                Some(_) if self.happened => tokio::time::sleep(PAUSE).await,
                Some(cursor) => {
                    let more = cursor.next().await;
                    self.happened = true;
                    if more.is_err() {
                        self.cursor = None;
                    }
                    continue;
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
            self.happened = false;
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

/// What is heard of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionNews {
    /// These are all that live: in the beginning, and whenever something may have been missed.
    Alive(BTreeSet<String>),
    /// These have ended.
    Ended(Vec<String>),
}

/// Follows which sessions of a store end, by their numbers.
#[derive(Debug)]
pub struct SessionEnds {
    backend: StoreBackend,
    cursor: Option<Cursor>,
}

impl SessionEnds {
    /// Asks nobody for anything yet.
    pub fn new(backend: StoreBackend) -> Self {
        Self { backend, cursor: None }
    }

    /// What comes next. Cancel safe.
    ///
    /// # Errors
    /// [`BackendError::Down`]; the next call tries again.
    pub async fn next(&mut self) -> Result<SessionNews, BackendError> {
        loop {
            let Some(cursor) = &mut self.cursor else {
                let watch = tokio::time::timeout(CALL, self.backend.store.watch_now(Keys::prefix(SESSIONS))).await;
                let watch = watch.map_err(|_| down(format!("no answer within {CALL:?}")))?;
                let (_, cursor) = watch.map_err(down)?;
                let alive = self.backend.sessions().await?;
                self.cursor = Some(cursor);
                return Ok(SessionNews::Alive(alive));
            };
            let Ok(events) = cursor.next().await else {
                self.cursor = None;
                return Err(down("the watch of sessions has broken"));
            };
            let ended = events.iter().filter(|event| event.entry.is_none());
            let ended: Vec<_> = ended.filter_map(|event| event.key.strip_prefix(SESSIONS)).map(str::to_owned).collect();
            if !ended.is_empty() {
                return Ok(SessionNews::Ended(ended));
            }
        }
    }
}

impl StoreBackend {
    /// The numbers of all sessions.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn sessions(&self) -> Result<BTreeSet<String>, BackendError> {
        let query = Query { keys_only: true, ..Query::new(Keys::prefix(SESSIONS)) };
        let entries = reading(self.store.query(query)).await?.entries;
        Ok(entries.iter().filter_map(|entry| entry.key.strip_prefix(SESSIONS)).map(str::to_owned).collect())
    }

    /// How long the session of this number lives without another keep-alive; nothing when there is none.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn left(&self, session: &str) -> Result<Option<Duration>, BackendError> {
        let Ok(id) = u64::from_str_radix(session, 16) else { return Ok(None) };
        Ok(reading(self.store.lease(LeaseId(id))).await?.map(|lease| lease.left))
    }
}
