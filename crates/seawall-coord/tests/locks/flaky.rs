//! A store behind a bad connection: writes that are done and not answered, or not done, and no answers at all.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    late: Mutex<Late>,
    looks: AtomicUsize,
}

/// Writes that are not answered and carried out later, as by a member of etcd that is paused and goes on.
#[derive(Default)]
struct Late {
    /// How many of the next writes are such ones.
    next: usize,
    held: Vec<Txn>,
}

fn unavailable<T>() -> Result<T, CommitError> {
    Err(CommitError::Unavailable("the test has cut it off".into()))
}

impl Flaky {
    pub(crate) fn new(store: Arc<dyn Store>, seed: u64) -> Arc<Self> {
        let random = Mutex::new((fastrand::Rng::with_seed(seed), 0.0));
        let off = AtomicBool::default;
        Arc::new(Self {
            store,
            random,
            keep_alives_cut: off(),
            dies: off(),
            dead: off(),
            late: Mutex::default(),
            looks: AtomicUsize::new(0),
        })
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

    /// So many of the next claims are not answered, and not written before [`Self::carry_out`].
    pub(crate) fn hold_back(&self, writes: usize) {
        self.late.lock().unwrap().next = writes;
    }

    /// Whether nothing of what was held back can write anything any more.
    pub(crate) async fn void(&self) -> bool {
        let held = self.late.lock().unwrap().held.clone();
        for txn in held {
            let checks = Txn { compare: txn.compare, ..Txn::default() };
            if self.store.commit(checks).await.unwrap().succeeded {
                return false;
            }
        }
        true
    }

    /// Carries out what was held back, and says how many of them wrote something.
    pub(crate) async fn carry_out(&self) -> usize {
        let held = std::mem::take(&mut self.late.lock().unwrap().held);
        let mut written = 0;
        for txn in held {
            let before = self.store.status().await.unwrap().revision;
            written += usize::from(self.store.commit(txn).await.is_ok_and(|done| done.revision > before));
        }
        written
    }

    /// How many queues were read as a whole.
    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
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
        self.looks.fetch_add(1, Ordering::SeqCst);
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
        let holds_back = {
            let mut late = self.late.lock().unwrap();
            let claim = |op: &Op| matches!(op, Op::Put { key, .. } if key.starts_with("lock/"));
            let holds_back = late.next > 0 && txn.then.iter().any(claim);
            if holds_back {
                late.next -= 1;
                late.held.push(txn.clone());
            }
            holds_back
        };
        if holds_back {
            return Err(CommitError::Unknown("the test has held it back".into()));
        }
        // Before the write: who sees it done may ask for the next death already.
        let dies = self.dies.swap(false, Ordering::SeqCst);
        // And no other write may slip through between this one and the death.
        if dies {
            self.dead.store(true, Ordering::SeqCst);
        } else if self.dead.load(Ordering::SeqCst) {
            // Another write was the one, since this one came in.
            return unavailable();
        }
        let done = self.store.commit(txn).await;
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
