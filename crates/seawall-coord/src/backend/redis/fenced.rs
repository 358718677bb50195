//! Redlock with the tokens of a store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use seawall_store::{Store, Txn};
use seawall_types::Revision;
use tokio::time::Instant;

use super::redlock::Redlock;
use super::session::RedisSession;
use crate::backend::view::{CandidateView, ElectionView};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, Released, Terms, Want};
use crate::class::{Fence, Fenced};
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName, Token};

/// The key whose revisions are the tokens.
const KEY: &str = "redlock/fence";
/// How long the store may take.
const CALL: Duration = Duration::from_secs(5);

/// [`Redlock`] whose claims have a fencing token, which a [`Store`] mints after the majority has granted the lock and before it
/// is looked at once more. A holder whose lock has run out meanwhile gets none, so later holders have larger ones. Whoever has
/// such a store could lock there: this is for those who have Redis for the load and the store for the order.
#[derive(Clone)]
pub struct RedlockFenced {
    pub(super) redlock: Redlock,
    store: Arc<dyn Store>,
    base: u64,
}

impl fmt::Debug for RedlockFenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedlockFenced").field(&self.redlock).finish()
    }
}

impl Redlock {
    /// The same with tokens of a store.
    ///
    /// # Errors
    /// [`BackendError`] when the store cannot be written.
    pub async fn with_fences(self, store: Arc<dyn Store>) -> Result<RedlockFenced, BackendError> {
        let base = seawall_store::fence_base(&*store).await?;
        Ok(RedlockFenced { redlock: self, store, base })
    }
}

impl RedlockFenced {
    async fn mint(&self) -> Result<Revision, BackendError> {
        let put = self.store.commit(Txn::put(KEY, Vec::new()));
        match tokio::time::timeout(CALL, put).await {
            Ok(committed) => Ok(committed?.revision),
            Err(_) => Err(BackendError::Down {
                backend: self.name(),
                why: format!("the store that mints tokens has not answered within {CALL:?}"),
            }),
        }
    }
}

impl Backend for RedlockFenced {
    type Class = Fenced;
    type Lease = RedisSession;

    fn name(&self) -> String {
        self.redlock.name()
    }

    fn limits(&self) -> Limits {
        self.redlock.limits()
    }

    async fn open(&self, terms: &Terms) -> Result<(RedisSession, Duration), BackendError> {
        self.redlock.open(terms).await
    }

    async fn renew(&self, lease: &RedisSession) -> Result<Duration, BackendError> {
        self.redlock.renew(lease).await
    }

    async fn close(&self, lease: &RedisSession) -> Result<(), BackendError> {
        self.redlock.close(lease).await
    }

    async fn claim(&self, lease: &RedisSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let claim = self.redlock.claim(lease, want, left).await?;
            let minted = self.mint().await?;
            if self.redlock.extended(lease, want).await {
                let fence = Some(Fence::new(self.base + minted.0));
                return Ok(Claim { created: minted, fence, ..claim });
            }
            if Instant::now() >= until {
                let why = "the lock ran out while its token was minted".to_owned();
                return Err(BackendError::Down { backend: self.name(), why }.into());
            }
        }
    }

    async fn withdraw(&self, lease: &RedisSession, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        self.redlock.withdraw(lease, name, token).await
    }

    async fn gone(&self, lease: &RedisSession, claim: &Claim) -> Gone {
        self.redlock.gone(lease, claim).await
    }
}

impl Elections for RedlockFenced {
    fn prioritises(&self) -> bool {
        self.redlock.prioritises()
    }

    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        self.redlock.election(name).await
    }

    async fn publish(&self, lease: &RedisSession, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        self.redlock.publish(lease, claim, info).await
    }

    async fn hand_over(&self, lease: &RedisSession, claim: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        self.redlock.hand_over(lease, claim, to).await
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        self.redlock.changed(name, seen).await
    }
}
