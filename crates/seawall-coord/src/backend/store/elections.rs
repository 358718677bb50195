//! Elections in a store: what a leader may do beside holding its claim, and how others see it.

use std::collections::BTreeMap;

use seawall_store::{Compare, Entry, Keys, MAX_OPS, Op, Txn, WatchError};

use super::{
    ClaimValue, ELECTIONS, NAME, StoreBackend, StoreLease, json, key, queries, queue, reading, refused, writing,
};
use crate::backend::view::{CandidateView, ElectionView};
use crate::backend::{BackendError, Claim, MAX_INFO};
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName};

impl StoreBackend {
    fn candidate(&self, entry: &Entry) -> CandidateView {
        CandidateView::of(self.view(entry), entry.modified)
    }

    fn election_of(&self, name: ElectionName, entries: &[Entry]) -> ElectionView {
        ElectionView::of(name, entries.iter().map(|entry| self.candidate(entry)))
    }

    /// Every election that somebody leads, by name.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn elections(&self) -> Result<Vec<ElectionView>, BackendError> {
        let mut elections = BTreeMap::<ElectionName, Vec<Entry>>::new();
        for entry in reading(queries::by_age(&*self.store, ELECTIONS)).await? {
            let name = entry.key.strip_prefix(ELECTIONS).and_then(|rest| rest.split_once('/')).map(|(name, _)| name);
            let Some(name) = name.and_then(|name| ElectionName::try_new(name).ok()) else { continue };
            elections.entry(name).or_default().push(entry);
        }
        Ok(elections.into_iter().map(|(name, entries)| self.election_of(name, &entries)).collect())
    }
}

impl Elections for StoreBackend {
    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        let entries = reading(queries::by_age(&*self.store, &queue(&LockName::of_election(name)))).await?;
        Ok(self.election_of(name.clone(), &entries))
    }

    async fn publish(&self, lease: &StoreLease, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        if info.len() > MAX_INFO {
            return Err(refused(format!("an info of {} bytes: at most {MAX_INFO} are allowed", info.len())));
        }
        let key = key(&claim.name, lease, &claim.token);
        let own = reading(self.store.get(&key)).await?.filter(|own| own.created == claim.created);
        let Some(own) = own else { return Ok(false) };
        let value = ClaimValue::read(&own);
        // Written anew under the same lease; which revision created it stays, and with it the place in the queue.
        let value = json(&ClaimValue { info: info.to_owned(), ..value });
        let put = Op::Put { key: key.clone(), value: value.into(), lease: Some(lease.id) };
        let txn = Txn { then: vec![put], ..Txn::default() }.when(Compare::Created(key, claim.created));
        match writing(self.store.commit(txn)).await {
            Ok(committed) => Ok(committed.succeeded),
            Err(BackendError::NoSession { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn hand_over(&self, lease: &StoreLease, claim: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        let key = key(&claim.name, lease, &claim.token);
        let entries = reading(queries::by_age(&*self.store, &queue(&claim.name))).await?;
        if !entries.first().is_some_and(|first| *first.key == *key && first.created == claim.created) {
            return Ok(HandedOver::NotLeading);
        }
        let called = |entry: &&Entry| {
            let view = self.view(entry);
            view.owner == to || view.session == to
        };
        let Some(next) = entries.iter().skip(1).find(called) else { return Ok(HandedOver::NoCandidate) };
        // Terms are in the order of the queue. So those who are passed over go, and queue anew behind it.
        let passed = entries.iter().take_while(|entry| entry.key != next.key);
        let then: Vec<_> = passed.map(|entry| Op::Delete(entry.key.to_string())).collect();
        if then.len() > MAX_OPS {
            return Err(refused(format!(
                "`{to}` has {} candidates before it: {MAX_OPS} at most are passed over",
                then.len()
            )));
        }
        let compare = vec![Compare::Created(key, claim.created), Compare::Created(next.key.to_string(), next.created)];
        let committed = writing(self.store.commit(Txn { compare, then, otherwise: Vec::new() })).await?;
        // Otherwise one of the two has gone in this very moment; the leader hears of it if it was its own.
        Ok(if committed.succeeded { HandedOver::Now(self.candidate(next)) } else { HandedOver::NoCandidate })
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        let queue = queue(&LockName::of_election(name));
        loop {
            // The watch begins first, so that the reading and it miss nothing together.
            let watch = tokio::time::timeout(super::CALL, self.store.watch_now(Keys::prefix(&*queue)));
            let (_, mut cursor) = match watch.await {
                Ok(Ok(watch)) => watch,
                Ok(Err(error)) => return Err(super::down(error)),
                Err(_) => return Err(super::down(format!("no answer within {:?}", super::CALL))),
            };
            loop {
                let first = reading(queries::oldest(&*self.store, &queue)).await?;
                let leader = first.map(|first| self.candidate(&first));
                let known = |seen: &Option<CandidateView>| {
                    let which = |view: &CandidateView| (view.term, view.modified);
                    seen.as_ref().map(which) == leader.as_ref().map(which)
                };
                if !seen.is_some_and(known) {
                    return Ok(leader);
                }
                match cursor.next().await {
                    Ok(_) => {}
                    Err(WatchError::Compacted { .. }) => break,
                    Err(error @ (WatchError::Unavailable(_) | WatchError::Closed)) => {
                        return Err(BackendError::Down { backend: NAME.into(), why: error.to_string() });
                    }
                }
            }
        }
    }
}
