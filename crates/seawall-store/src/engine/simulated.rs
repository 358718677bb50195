//! The engine without a thread and without a clock of its own: each call is done where it is made, at a moment that somebody
//! else says. For simulations, with the feature `simulation`.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use seawall_types::Revision;
use tokio::sync::oneshot;

use super::{Disk, Follower, Job, Shared, View, Writer, check};
use crate::history::{BOUNDS, History};
use crate::lease_clock::{LeaseClock, STEP};
use crate::model::{Change, Model};
use crate::sqlite::OpenError;
use crate::watchers::Watchers;
use crate::{
    CommitError, Committed, Cursor, Entry, Keys, Lease, LeaseId, LeaseInfo, Limits, MAX_KEY, MAX_OPS, MAX_VALUE, Query,
    Range, ReadError, Status, Store, Txn, WatchError,
};

/// What the next sync of a [`Simulated`] store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// It fails, and nothing is written.
    NotWritten,
    /// It fails, and all is written nevertheless.
    Written,
    /// It fails, and nothing is written, which the store does not know.
    Lost,
}

/// A store in memory, by another clock than the machine's. Leases end when [`Simulated::tick`] is called: 20 times a second,
/// for what the embedded store promises.
pub struct Simulated {
    now: Box<dyn Fn() -> Instant + Send + Sync>,
    running: Mutex<Running>,
}

struct Running {
    shared: Arc<Shared>,
    writer: Writer<Log>,
}

/// A disk: everything that was written, in order.
#[derive(Default)]
struct Log {
    changes: Vec<Change>,
    fault: Option<DiskFault>,
}

impl Disk for Log {
    fn persist(&mut self, _: &Model, changes: &[Change]) -> Result<(), CommitError> {
        let unknown = Err(CommitError::Unknown("a simulated fault of the disk".into()));
        let fault = self.fault.take();
        if matches!(fault, None | Some(DiskFault::Written)) {
            self.changes.extend_from_slice(changes);
        }
        match fault {
            None => Ok(()),
            Some(DiskFault::NotWritten) => Err(CommitError::Unavailable("a simulated fault of the disk".into())),
            Some(DiskFault::Written | DiskFault::Lost) => unknown,
        }
    }

    fn load(&mut self) -> Result<(Model, History), OpenError> {
        let mut model = Model::default();
        let mut history = History::new(model.revision.next(), BOUNDS);
        for change in &self.changes {
            model.apply(change);
            match change {
                Change::Event(event) => history.push(event.clone()),
                Change::Forgotten(before) => history.forget_before(*before),
                Change::Granted(..) | Change::Ended(_) => {}
            }
        }
        Ok((model, history))
    }
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").finish_non_exhaustive()
    }
}

impl Running {
    fn start(mut disk: Log, now: Instant) -> Self {
        let (model, history) = disk.load().expect("a log can be read");
        let mut leases = LeaseClock::new(now);
        leases.agree_with(model.leases(), now);
        let view = View { model: model.clone(), history };
        let shared = Shared { watchers: Watchers::default(), view: view.into(), leases: Mutex::new(leases) };
        let shared = Arc::new(shared);
        Self { shared: shared.clone(), writer: Writer { shared, disk, model, stale: false } }
    }
}

impl Simulated {
    /// An empty one. `now` may stand still and leap, but not go back.
    pub fn new(now: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        let running = Mutex::new(Running::start(Log::default(), now()));
        Self { now: Box::new(now), running }
    }

    /// Ends the leases whose time is over.
    pub fn tick(&self) {
        let now = (self.now)();
        self.running().writer.run(std::iter::empty(), now);
    }

    /// Forgets everything that is not on its disk, and begins anew: every watch ends, every lease has its whole time again.
    pub fn restart(&self) {
        let now = (self.now)();
        let mut running = self.running();
        running.shared.watchers.close();
        let mut disk = std::mem::take(&mut running.writer.disk);
        disk.fault = None;
        *running = Running::start(disk, now);
    }

    /// The next sync that has something to write goes wrong.
    pub fn fail(&self, fault: DiskFault) {
        self.running().writer.disk.fault = Some(fault);
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> Arc<Shared> {
        self.running().shared.clone()
    }

    fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, CommitError>>) -> Job) -> Result<T, CommitError> {
        let (reply, mut answer) = oneshot::channel();
        let now = (self.now)();
        self.running().writer.run(std::iter::once(job(reply)), now);
        answer.try_recv().unwrap_or_else(|_| Err(CommitError::Unknown("it was not answered".into())))
    }

    fn follow(shared: Arc<Shared>, view: &View, keys: Keys, from: Revision) -> Cursor {
        let unread = Some(from).filter(|from| *from <= view.model.revision);
        let (id, waiter) = shared.watchers.add(&keys, unread);
        Cursor::new(Follower { shared, keys, from, id, waiter })
    }
}

#[async_trait]
impl Store for Simulated {
    fn limits(&self) -> Limits {
        Limits {
            min_ttl: STEP,
            max_ttl: Duration::from_secs(24 * 3600),
            ttl_step: Duration::from_millis(1),
            max_key: MAX_KEY,
            max_value: MAX_VALUE,
            max_ops: MAX_OPS,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        Ok(self.shared().view().model.get(key).cloned())
    }

    async fn query(&self, query: Query) -> Result<Range, ReadError> {
        Ok(self.shared().view().model.query(&query))
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let read = self.shared().view().model.read(&txn);
        match read {
            Some(read) => read,
            None => self.ask(|reply| Job::Commit(txn, reply)),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, CommitError> {
        let ttl = ttl.max(STEP);
        Ok(Lease { id: self.ask(|reply| Job::Grant(ttl, reply))?, ttl })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        let now = (self.now)();
        self.shared().leases().keep_alive(lease, now).ok_or(CommitError::NoLease(lease))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        self.ask(|reply| Job::Revoke(lease, reply))
    }

    async fn lease(&self, id: LeaseId) -> Result<Option<LeaseInfo>, ReadError> {
        let shared = self.shared();
        let view = shared.view();
        let left = shared.leases().left(id, (self.now)());
        Ok(left.map(|(ttl, left)| LeaseInfo { id, ttl, left, keys: view.model.keys_of(id) }))
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
        let shared = self.shared();
        let view = shared.view();
        check(&view, from)?;
        Ok(Self::follow(shared.clone(), &view, keys, from))
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        let shared = self.shared();
        let view = shared.view();
        let revision = view.model.revision;
        Ok((revision, Self::follow(shared.clone(), &view, keys, revision.next())))
    }

    async fn compact(&self, before: Revision) -> Result<(), CommitError> {
        self.ask(|reply| Job::Compact(before, reply))
    }

    async fn status(&self) -> Result<Status, ReadError> {
        let shared = self.shared();
        let view = shared.view();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(Status {
            backend: "simulated",
            revision: view.model.revision,
            oldest: view.history.oldest(),
            entries: count(view.model.entries().len()),
            leases: count(view.model.leases().len()),
            bytes: count(view.history.bytes()),
        })
    }
}
