//! Writing for certain: a transaction is tried until it is known whether it was done. Whoever calls this is dropped when the
//! leadership is lost, which bounds it in time.

use std::time::Duration;

use bytes::Bytes;
use seawall_store::{CommitError, Store, Txn};
use seawall_types::Revision;

use crate::jobs::CALL;

/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// Does `txn`, which writes `value` to `key` under conditions that its own success breaks, and says at which revision; none
/// when the conditions do not hold. `value` is nobody else's.
pub(crate) async fn certainly(store: &dyn Store, txn: Txn, key: &str, value: &Bytes) -> Option<Revision> {
    let mut pause = Duration::from_millis(20);
    // Whether an earlier try may have been done.
    let mut uncertain = false;
    loop {
        let why = match tokio::time::timeout(CALL, store.commit(txn.clone())).await {
            Ok(Ok(committed)) if committed.succeeded => return Some(committed.revision),
            Ok(Ok(_)) if !uncertain => return None,
            Ok(Ok(_)) => match tokio::time::timeout(CALL, store.get(key)).await {
                Ok(Ok(entry)) => return entry.filter(|entry| entry.value == *value).map(|entry| entry.modified),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {CALL:?}"),
            },
            Ok(Err(error @ (CommitError::Invalid(_) | CommitError::NoLease(_)))) => {
                tracing::error!(key, %error, "the store refuses a record");
                return None;
            }
            Ok(Err(error)) => {
                uncertain |= matches!(error, CommitError::Unknown(_));
                error.to_string()
            }
            Err(_) => {
                uncertain = true;
                format!("no answer within {CALL:?}")
            }
        };
        tracing::warn!(key, why, "cannot write a record; trying again");
        tokio::time::sleep(pause.mul_f64(0.1 + 0.9 * fastrand::f64())).await;
        pause = (pause * 2).min(PAUSE);
    }
}
