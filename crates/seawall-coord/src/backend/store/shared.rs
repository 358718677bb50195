//! Locks that several hold in a store, and what lost holders leave behind.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use seawall_store::{Compare, Entry, Op, Txn};
use tokio::time::Instant;

use super::{ClaimValue, StoreBackend, StoreLease, delay_key_of, json, key, queries, reading, writing};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Want};
use crate::sharing::{Kind, MAX_DELAY, Manner, SharedLocks};

/// When this process first saw what lost holders have left. Entries are forgotten some time after they are due.
#[derive(Debug, Default)]
pub(super) struct Delays(Mutex<HashMap<Box<str>, Instant>>);

impl Delays {
    /// When the delay is over.
    pub(super) fn due(&self, left: &Entry) -> Instant {
        let delay: Option<u64> = serde_json::from_slice(&left.value).ok();
        let delay = delay.map_or(MAX_DELAY, Duration::from_millis).min(MAX_DELAY);
        let now = Instant::now();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, first| now.duration_since(*first) < 2 * MAX_DELAY);
        *seen.entry((*left.key).into()).or_insert(now) + delay
    }
}

impl SharedLocks for StoreBackend {
    async fn claim_as(
        &self,
        lease: &StoreLease,
        want: &Want,
        manner: &Manner,
        patience: Duration,
    ) -> Result<Claim, ClaimError> {
        let claimed = self.wait_as(lease, want, manner, patience).await;
        if let Err(ClaimError::Busy { .. } | ClaimError::TimedOut { .. }) = &claimed {
            match Box::pin(self.withdraw(lease, &want.name, &want.token)).await {
                Ok(_) | Err(BackendError::NoSession { .. }) => {}
                // May still be in the queue.
                Err(error) => return Err(ClaimError::Unknown(error)),
            }
        }
        claimed
    }

    async fn downgrade(&self, lease: &StoreLease, claim: &Claim) -> Result<bool, BackendError> {
        let key = key(&claim.name, lease, &claim.token);
        let look = reading(queries::look(&*self.store, &claim.name, &key, Kind::Exclusive, claim.created)).await?;
        let holds = look.behind.is_empty() && claim.name.is_plain();
        let Some(own) = look.own.filter(|own| own.created == claim.created && holds) else { return Ok(false) };
        let value = json(&ClaimValue { kind: Kind::Read, ..ClaimValue::read(&own) });
        let put = Op::Put { key: key.clone(), value: value.into(), lease: Some(lease.id) };
        // Which revision created it stays, and with it its place before all the others.
        let then = vec![put, Op::Delete(delay_key_of(&claim.name, lease, &claim.token))];
        let txn = Txn { then, ..Txn::default() }.when(Compare::Created(key, claim.created));
        match writing(self.store.commit(txn)).await {
            Ok(committed) => Ok(committed.succeeded),
            Err(BackendError::NoSession { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
