//! Well-known mistakes, made on purpose around the real code, each of which has to be caught. None of this is in any path
//! outside of this test: a mutant is a store or a backend that stands between the recipe and the real one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use seawall_coord::{
    Backend, BackendError, CandidateView, Claim, ClaimError, ElectionName, ElectionView, Elections, Fence, Fenced,
    Gone, HandedOver, Limits, LockName, Released, StoreBackend, StoreLease, Terms, Token, Want,
};
use seawall_store::{
    CommitError, Committed, Compare, Cursor, Entry, Event, Follow, Keys, Lease, LeaseId, LeaseInfo, Op, OpResult,
    Query, Range, ReadError, Status, Store, Txn, WatchError,
};
use seawall_types::Revision;

use crate::fleet::{Plan, Report, run_with};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Nothing; the same way through this file.
    None,
    /// A release deletes whatever claim holds the lock, as a `DEL` of one key would.
    ReleasesAnything,
    /// Whoever has waited believes in its own claim without reading it again.
    TrustsItsClaim,
    /// A claim before the own one is known by its name, whichever claim that is by now.
    KnowsByName,
    /// Tokens are the largest of counters that a majority has counted up, as with Redlock's servers.
    CountsOnMajorities,
    /// The deadline counts from the answer to a keep-alive, not from its sending.
    StampsTheAnswer,
    /// A keep-alive that failed counts as one that did not.
    IgnoresErrors,
    /// A claim that was sent and given up may come into the queue later.
    LetsClaimsComeLate,
}

/// Runs a plan with a mistake.
pub(crate) fn run(seed: u64, plan: Plan, mutation: Mutation) -> Report {
    let counters: Arc<Mutex<[u64; 3]>> = Arc::default();
    let around: crate::fleet::Around = match mutation {
        Mutation::TrustsItsClaim => |store| Arc::new(Trusting { store, own: Mutex::default() }),
        Mutation::KnowsByName => |store| Arc::new(ByName(store)),
        Mutation::LetsClaimsComeLate => |store| Arc::new(Unconditional(store)),
        _ => |store| store,
    };
    // Only then does a name come back.
    let same_tokens = mutation == Mutation::KnowsByName;
    run_with(
        seed,
        plan,
        around,
        Arc::new(move |store, real, index| Mutant {
            mutation,
            same_token: same_tokens.then_some(index),
            store,
            real,
            counters: counters.clone(),
            answered: Arc::default(),
        }),
    )
}

/// The same without a mistake, but with the tokens of [`Mutation::KnowsByName`].
pub(crate) fn run_with_same_tokens(seed: u64, plan: Plan) -> Report {
    run_with(
        seed,
        plan,
        |store| store,
        Arc::new(|store, real, index| Mutant {
            mutation: Mutation::None,
            same_token: Some(index),
            store,
            real,
            counters: Arc::default(),
            answered: Arc::default(),
        }),
    )
}

#[derive(Clone)]
struct Mutant {
    mutation: Mutation,
    /// Each claim of a process has the same token then.
    same_token: Option<usize>,
    store: Arc<dyn Store>,
    real: StoreBackend,
    counters: Arc<Mutex<[u64; 3]>>,
    /// A keep-alive that was answered, and whose answer is yet to be looked at.
    answered: Arc<Mutex<Option<Duration>>>,
}

impl Mutant {
    fn token(&self, token: &Token) -> Token {
        self.same_token.map_or(*token, |index| format!("{index:032x}").parse().expect("32 digits"))
    }
}

impl Backend for Mutant {
    type Class = Fenced;
    type Lease = StoreLease;

    fn name(&self) -> String {
        format!("{:?}", self.mutation)
    }

    fn limits(&self) -> Limits {
        self.real.limits()
    }

    async fn open(&self, terms: &Terms) -> Result<(StoreLease, Duration), BackendError> {
        self.real.open(terms).await
    }

    async fn renew(&self, lease: &StoreLease) -> Result<Duration, BackendError> {
        match self.mutation {
            Mutation::IgnoresErrors => Ok(self.real.renew(lease).await.unwrap_or(Duration::from_secs(3600))),
            // The first call sends it and pretends that it failed; the session asks again, and stamps that.
            Mutation::StampsTheAnswer => {
                let take = || self.answered.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(ttl) = take() {
                    return Ok(ttl);
                }
                let ttl = self.real.renew(lease).await?;
                *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(ttl);
                Err(BackendError::Down { backend: self.name(), why: "it is looked at later".into() })
            }
            _ => self.real.renew(lease).await,
        }
    }

    async fn close(&self, lease: &StoreLease) -> Result<(), BackendError> {
        self.real.close(lease).await
    }

    async fn claim(&self, lease: &StoreLease, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let want = Want { token: self.token(&want.token), ..want.clone() };
        let mut claim = self.real.claim(lease, &want, patience).await?;
        if self.mutation == Mutation::CountsOnMajorities {
            let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
            let absent = fastrand::usize(0..3);
            for (_, counter) in counters.iter_mut().enumerate().filter(|(at, _)| *at != absent) {
                *counter += 1;
            }
            let counted = counters.iter().enumerate().filter(|(at, _)| *at != absent).map(|(_, counter)| *counter);
            claim.fence = counted.max().map(Fence::new);
        }
        Ok(claim)
    }

    async fn withdraw(&self, lease: &StoreLease, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        if self.mutation == Mutation::ReleasesAnything {
            let queue = name.election().map_or_else(|| format!("lock/{name}/"), |name| format!("elect/{name}/"));
            let oldest = Txn { then: vec![Op::Oldest(queue)], ..Txn::default() };
            let found = self.store.commit(oldest).await?.results.pop();
            if let Some(OpResult::Got(Some(first))) = found {
                self.store.commit(Txn::delete(&*first.key)).await?;
            }
        }
        self.real.withdraw(lease, name, &self.token(token)).await
    }

    async fn gone(&self, lease: &StoreLease, claim: &Claim) -> Gone {
        self.real.gone(lease, claim).await
    }
}

impl Elections for Mutant {
    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        self.real.election(name).await
    }

    async fn publish(&self, lease: &StoreLease, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        self.real.publish(lease, claim, info).await
    }

    async fn hand_over(&self, lease: &StoreLease, claim: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        self.real.hand_over(lease, claim, to).await
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        self.real.changed(name, seen).await
    }
}

/// Passes everything on but what is given here.
macro_rules! passes_on {
    ($name:ident: $($own:item)*) => {
        #[async_trait]
        impl Store for $name {
            fn limits(&self) -> seawall_store::Limits {
                self.inner().limits()
            }

            async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
                self.inner().get(key).await
            }

            async fn query(&self, query: Query) -> Result<Range, ReadError> {
                self.inner().query(query).await
            }

            async fn grant(&self, ttl: Duration) -> Result<Lease, CommitError> {
                self.inner().grant(ttl).await
            }

            async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
                self.inner().keep_alive(lease).await
            }

            async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
                self.inner().revoke(lease).await
            }

            async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseInfo>, ReadError> {
                self.inner().lease(lease).await
            }

            async fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
                self.inner().watch(keys, from).await
            }

            async fn compact(&self, before: Revision) -> Result<(), CommitError> {
                self.inner().compact(before).await
            }

            async fn status(&self) -> Result<Status, ReadError> {
                self.inner().status().await
            }

            $($own)*
        }
    };
}

/// Finds every claim that was ever made through it, whether it is there or not.
struct Trusting {
    store: Arc<dyn Store>,
    own: Mutex<BTreeMap<String, Entry>>,
}

impl Trusting {
    fn inner(&self) -> &dyn Store {
        &*self.store
    }

    fn own(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

passes_on! { Trusting:
    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let mut committed = self.store.commit(txn.clone()).await?;
        match (&*txn.then, &mut *committed.results) {
            // A claim comes into the queue.
            ([.., Op::Put { key, .. }, Op::Get(_)], [.., OpResult::Got(Some(entry))]) => {
                self.own().insert(key.clone(), entry.clone());
            }
            // Its place is read.
            ([Op::Get(key), Op::Oldest(_), ..], [OpResult::Got(own @ None), ..]) => {
                *own = self.own().get(key).cloned();
            }
            _ => {}
        }
        Ok(committed)
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        self.store.watch_now(keys).await
    }
}

/// Puts claims into the queue on the condition alone that their session lives.
struct Unconditional(Arc<dyn Store>);

impl Unconditional {
    fn inner(&self) -> &dyn Store {
        &*self.0
    }
}

passes_on! { Unconditional:
    async fn commit(&self, mut txn: Txn) -> Result<Committed, CommitError> {
        if let [Compare::Absent(_), as_it_was] = &mut *txn.compare
            && let Compare::Modified(session, _) = as_it_was
        {
            *as_it_was = Compare::Exists(std::mem::take(session));
        }
        self.0.commit(txn).await
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        self.0.watch_now(keys).await
    }
}

/// Takes a key for the same as long as there is one of its name.
struct ByName(Arc<dyn Store>);

impl ByName {
    fn inner(&self) -> &dyn Store {
        &*self.0
    }
}

passes_on! { ByName:
    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.0.commit(txn).await
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        let (since, cursor) = self.0.watch_now(keys.clone()).await?;
        let created = match &keys {
            Keys::One(key) => self.0.get(key).await.ok().flatten().map(|entry| entry.created),
            Keys::Prefix(_) => None,
        };
        Ok((since, Cursor::new(NameFollower { store: self.0.clone(), keys, cursor, created })))
    }
}

struct NameFollower {
    store: Arc<dyn Store>,
    keys: Keys,
    cursor: Cursor,
    created: Option<Revision>,
}

impl std::fmt::Debug for NameFollower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NameFollower").field("keys", &self.keys).finish_non_exhaustive()
    }
}

#[async_trait]
impl Follow for NameFollower {
    async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        let events = self.cursor.next().await?;
        let Keys::One(key) = &self.keys else { return Ok(events) };
        // Something has happened to it. Is it there?
        let now = self.store.get(key).await.ok().flatten();
        let (Some(entry), Some(event)) = (now, events.last()) else { return Ok(events) };
        let created = self.created.unwrap_or(entry.created);
        Ok(vec![Event { entry: Some(Entry { created, ..entry }), ..event.clone() }])
    }
}
