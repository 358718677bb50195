//! Latches in a store: a key that stays, written only by who holds the latch's lock.

use seawall_store::{Compare, Op, OpResult, Txn};

use super::{LATCHED, StoreBackend, StoreLease, key, reading, refused, writing};
use crate::backend::{BackendError, Claim, MAX_INFO};
use crate::name::LockName;
use crate::once::Latches;

fn latch_key(name: &LockName) -> String {
    format!("{LATCHED}{}", name.latch().unwrap_or(name.as_str()))
}

impl Latches for StoreBackend {
    async fn latch(&self, name: &LockName) -> Result<Option<String>, BackendError> {
        let entry = reading(self.store.get(&latch_key(name))).await?;
        Ok(entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()))
    }

    async fn set_latch(&self, lease: &StoreLease, claim: &Claim, value: &str) -> Result<bool, BackendError> {
        if value.len() > MAX_INFO {
            return Err(refused(format!("an outcome of {} bytes: at most {MAX_INFO} are allowed", value.len())));
        }
        if claim.name.latch().is_none() {
            return Err(refused(format!("the claim of `{}` is not one of a latch", claim.name)));
        }
        let (own, latch) = (key(&claim.name, lease, &claim.token), latch_key(&claim.name));
        let txn = Txn {
            compare: vec![Compare::Created(own.clone(), claim.created), Compare::Absent(latch.clone())],
            then: vec![Op::Put { key: latch.clone(), value: value.to_owned().into(), lease: None }],
            otherwise: vec![Op::Get(own), Op::Get(latch)],
        };
        let committed = writing(self.store.commit(txn)).await?;
        let set = match &committed.results[..] {
            // Set before, by this claim: nobody else could have.
            [OpResult::Got(Some(own)), OpResult::Got(Some(set))] => {
                own.created == claim.created && set.value == value.as_bytes()
            }
            _ => committed.succeeded,
        };
        Ok(set)
    }

    async fn reset_latch(&self, name: &LockName) -> Result<(), BackendError> {
        writing(self.store.commit(Txn::delete(latch_key(name)))).await.map(drop)
    }
}
