//! What an operator sees of the locks in a store.

use std::collections::BTreeSet;

use super::{ELECTIONS, LOCKS, StoreBackend, queries, reading};
use crate::backend::BackendError;
use crate::backend::view::{ClaimView, LockView};
use crate::name::{ElectionName, LockName};
use crate::oversight::{MAX_NAMES, Oversight};

impl Oversight for StoreBackend {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let mut names = Vec::new();
        for directory in [LOCKS, ELECTIONS] {
            let entries = reading(queries::by_age(&*self.store, directory)).await?;
            let named = entries.iter().filter_map(|entry| Some(entry.key.strip_prefix(directory)?.split_once('/')?.0));
            names.extend(named.collect::<BTreeSet<_>>().into_iter().take(MAX_NAMES).filter_map(
                |name| match directory {
                    LOCKS => LockName::try_new(name).ok(),
                    _ => ElectionName::try_new(name).ok().map(|name| LockName::of_election(&name)),
                },
            ));
        }
        Ok(names)
    }

    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        StoreBackend::show(self, name).await
    }

    async fn force(&self, name: &LockName, by: &str, why: &str) -> Result<Option<ClaimView>, BackendError> {
        StoreBackend::force(self, name, by, why).await
    }
}
