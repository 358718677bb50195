//! A store behind a bad connection: writes that are done and not answered, or not done, and no answers at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use seawall_store::{
    CommitError, Committed, Cursor, Entry, Keys, Lease, LeaseId, LeaseInfo, Limits, Op, Query, Range, ReadError,
    Status, Store, Txn, WatchError,
};
use seawall_types::Revision;

pub(crate) struct Flaky {
    store: Arc<dyn Store>,
    random: Mutex<(fastrand::Rng, f64)>,
    keep_alives_cut: AtomicBool,
    dies: AtomicBool,
    dead: AtomicBool,
}

fn unavailable<T>() -> Result<T, CommitError> {
    Err(CommitError::Unavailable("the test has cut it off".into()))
}

impl Flaky {
    pub(crate) fn new(store: Arc<dyn Store>, seed: u64) -> Arc<Self> {
        let random = Mutex::new((fastrand::Rng::with_seed(seed), 0.0));
        let off = AtomicBool::default;
        Arc::new(Self { store, random, keep_alives_cut: off(), dies: off(), dead: off() })
    }

    /// So many of all writes go wrong.
    pub(crate) fn troubles(&self, share: f64) {
        self.random.lock().unwrap().1 = share;
    }

    pub(crate) fn cut_keep_alives(&self, cut: bool) {
        self.keep_alives_cut.store(cut, Ordering::SeqCst);
    }

    pub(crate) fn die_after_a_write(&self) {
        self.dies.store(true, Ordering::SeqCst);
    }

    /// Nothing answers any more.
    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    pub(crate) fn live(&self) {
        self.dead.store(false, Ordering::SeqCst);
    }

    fn reads(&self) -> Result<(), ReadError> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(ReadError::Unavailable("the test has cut it off".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Flaky {
    async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        self.reads()?;
        self.store.get(key).await
    }

    async fn query(&self, query: Query) -> Result<Range, ReadError> {
        self.reads()?;
        self.store.query(query).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        if self.dead.load(Ordering::SeqCst) {
            return unavailable();
        }
        let reads = |op: &Op| matches!(op, Op::Get(_) | Op::Oldest(_) | Op::NewestBefore(..));
        if txn.then.iter().chain(&txn.otherwise).all(reads) {
            return self.store.commit(txn).await;
        }
        let (trouble, before) = {
            let (random, share) = &mut *self.random.lock().unwrap();
            (random.f64() < *share, random.bool())
        };
        if trouble && before {
            return unavailable();
        }
        // Before the write: who sees it done may ask for the next death already.
        let dies = self.dies.swap(false, Ordering::SeqCst);
        let done = self.store.commit(txn).await;
        if dies {
            self.dead.store(true, Ordering::SeqCst);
        }
        if trouble || dies { Err(CommitError::Unknown("the test has lost the answer".into())) } else { done }
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, CommitError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        if self.keep_alives_cut.load(Ordering::SeqCst) || self.dead.load(Ordering::SeqCst) {
            return unavailable();
        }
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        self.store.revoke(lease).await
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
        self.store.watch(keys, from).await
    }

    fn limits(&self) -> Limits {
        self.store.limits()
    }

    async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseInfo>, ReadError> {
        self.reads()?;
        self.store.lease(lease).await
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        self.store.watch_now(keys).await
    }

    async fn compact(&self, before: Revision) -> Result<(), CommitError> {
        self.store.compact(before).await
    }

    async fn status(&self) -> Result<Status, ReadError> {
        self.reads()?;
        self.store.status().await
    }
}
