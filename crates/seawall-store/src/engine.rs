//! What every in-process backend shares: a writer that commits in groups, a view that readers read, a history that
//! watchers follow.
//!
//! The writer thread owns a [`Model`] of its own and a [`Disk`]. It gives the model a batch of jobs, makes the changes
//! durable in one sync, shows them to the readers, and only then answers. When the disk fails, the writer's model has
//! run ahead of the truth: what the readers see, if nothing was written; otherwise the disk, which is read anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use seawall_types::Revision;
use tokio::sync::oneshot;

use crate::group_commit::{self, AskError};
use crate::history::{BOUNDS, History};
use crate::lease_clock::{LeaseClock, STEP, TICK};
use crate::model::{Change, Model};
use crate::sqlite::OpenError;
use crate::watchers::{Waiter, WaiterId, Watchers};
use crate::{
    CommitError, Committed, Cursor, Event, Follow, Keys, LeaseId, LeaseInfo, Snapshot, Status, Txn, WatchError,
};

/// An absence of the store that is worth a line in the log.
const AWAY: Duration = Duration::from_secs(1);

/// How long a store may be too busy to tidy up.
const BUSY: Duration = Duration::from_secs(1);

/// Where changes are made durable.
pub(crate) trait Disk: Send + 'static {
    /// Makes all of `changes` durable, or none.
    fn persist(&mut self, model: &Model, changes: &[Change]) -> Result<(), CommitError>;
    /// Reads everything back.
    fn load(&mut self) -> Result<(Model, History), OpenError>;
    /// Whether there is room for keys and values of this many bytes. What takes none is written in any case.
    fn room(&self, _bytes: usize) -> Result<(), CommitError> {
        Ok(())
    }
    /// Called when there is nothing else to do, or after a second in which there always was.
    fn idle(&mut self) {}
}

/// The disk of a store that keeps nothing.
pub(crate) struct NoDisk;

impl Disk for NoDisk {
    fn persist(&mut self, _: &Model, _: &[Change]) -> Result<(), CommitError> {
        Ok(())
    }

    fn load(&mut self) -> Result<(Model, History), OpenError> {
        let model = Model::default();
        let history = History::new(model.revision.next(), BOUNDS);
        Ok((model, history))
    }
}

/// What readers see.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) model: Model,
    history: History,
}

#[derive(Debug)]
struct Shared {
    view: RwLock<View>,
    watchers: Watchers,
    leases: Mutex<LeaseClock>,
}

impl Shared {
    fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, LeaseClock> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Job {
    Commit(Txn, oneshot::Sender<Result<Committed, CommitError>>),
    Grant(Duration, oneshot::Sender<Result<LeaseId, CommitError>>),
    Revoke(LeaseId, oneshot::Sender<Result<Revision, CommitError>>),
    Compact(Revision, oneshot::Sender<Result<(), CommitError>>),
}

/// A finished job that still has to be answered.
enum Answer {
    Commit(Result<Committed, CommitError>, oneshot::Sender<Result<Committed, CommitError>>),
    Grant(Result<LeaseId, CommitError>, oneshot::Sender<Result<LeaseId, CommitError>>),
    Revoke(Result<Revision, CommitError>, oneshot::Sender<Result<Revision, CommitError>>),
    Compact(Result<(), CommitError>, oneshot::Sender<Result<(), CommitError>>),
}

impl Answer {
    // A caller that no longer listens has dropped its receiver: nothing to do about it.
    fn send(self) {
        match self {
            Self::Commit(result, reply) => drop(reply.send(result)),
            Self::Grant(result, reply) => drop(reply.send(result)),
            Self::Revoke(result, reply) => drop(reply.send(result)),
            Self::Compact(result, reply) => drop(reply.send(result)),
        }
    }

    fn fail(self, error: CommitError) {
        match self {
            Self::Commit(_, reply) => drop(reply.send(Err(error))),
            Self::Grant(_, reply) => drop(reply.send(Err(error))),
            Self::Revoke(_, reply) => drop(reply.send(Err(error))),
            Self::Compact(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

/// A running engine; cheap to clone. The thread ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
    jobs: group_commit::Sender<Job>,
}

impl Engine {
    pub(crate) fn start(mut disk: impl Disk) -> Result<Self, OpenError> {
        let (model, history) = disk.load()?;
        let now = Instant::now();
        let mut leases = LeaseClock::new(now);
        leases.agree_with(model.leases(), now);
        let shared = Arc::new(Shared {
            watchers: Watchers::default(),
            view: RwLock::new(View { model: model.clone(), history }),
            leases: Mutex::new(leases),
        });
        let mut writer = Writer { shared: shared.clone(), disk, model, stale: false };
        let mut last_idle = now;
        let jobs = group_commit::spawn("store", TICK, move |batch: &mut Vec<Job>| {
            let now = Instant::now();
            // A store that is never quiet has a moment for it all the same.
            let idle = batch.is_empty() || now.duration_since(last_idle) > BUSY;
            writer.run(batch.drain(..), now);
            if idle && !writer.stale {
                last_idle = now;
                writer.disk.idle();
            }
        })
        .map_err(|source| OpenError::Directory { path: "writer thread".into(), source })?;
        Ok(Self { shared, jobs })
    }

    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.shared.view()
    }

    pub(crate) async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        // What is in the view is durable and was acknowledged after it got there: a reading of it waits for no disk.
        let read = self.view().model.read(&txn);
        if let Some(read) = read {
            return read;
        }
        self.ask(|reply| Job::Commit(txn, reply)).await
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId, CommitError> {
        self.ask(|reply| Job::Grant(ttl, reply)).await
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        self.ask(|reply| Job::Revoke(lease, reply)).await
    }

    pub(crate) async fn compact(&self, before: Revision) -> Result<(), CommitError> {
        self.ask(|reply| Job::Compact(before, reply)).await
    }

    pub(crate) fn status(&self) -> Status {
        let view = self.view();
        let entries = view.model.entries();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Status {
            backend: "memory",
            revision: view.model.revision,
            oldest: view.history.oldest(),
            entries: count(entries.len()),
            leases: count(view.model.leases().len()),
            bytes: count(entries.map(|e| e.key.len() + e.value.len()).sum::<usize>() + view.history.bytes()),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let view = self.view();
        Snapshot {
            revision: view.model.revision,
            last_lease: view.model.last_lease,
            leases: view.model.leases().collect(),
            entries: view.model.entries().cloned().collect(),
        }
    }

    pub(crate) fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        // The clock alone decides: a lease whose end is on the way to the disk is still in the view, and in no clock.
        self.shared.leases().keep_alive(lease, Instant::now()).ok_or(CommitError::NoLease(lease))
    }

    pub(crate) fn lease(&self, id: LeaseId) -> Option<LeaseInfo> {
        let view = self.view();
        let (ttl, left) = self.shared.leases().left(id, Instant::now())?;
        Some(LeaseInfo { id, ttl, left, keys: view.model.keys_of(id) })
    }

    pub(crate) fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
        let view = self.view();
        check(&view, from)?;
        self.follow(&view, keys, from)
    }

    pub(crate) fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        let view = self.view();
        let revision = view.model.revision;
        Ok((revision, self.follow(&view, keys, revision.next())?))
    }

    /// Nothing is published while the view is held, so nothing happens between its revision and the waiter's beginning.
    fn follow(&self, view: &View, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
        if self.shared.watchers.closed() {
            return Err(WatchError::Closed);
        }
        let unread = Some(from).filter(|from| *from <= view.model.revision);
        let (id, waiter) = self.shared.watchers.add(&keys, unread);
        Ok(Cursor::new(Follower { shared: self.shared.clone(), keys, from, id, waiter }))
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, CommitError>>) -> Job) -> Result<T, CommitError> {
        self.jobs.ask(job).await.unwrap_or_else(|error| {
            Err(match error {
                AskError::NotQueued(why) => CommitError::Unavailable(why),
                AskError::Unanswered(why) => CommitError::Unknown(why),
            })
        })
    }
}

struct Writer<D> {
    shared: Arc<Shared>,
    disk: D,
    model: Model,
    /// A write failed in such a way that only the disk knows what is on it.
    stale: bool,
}

impl<D: Disk> Writer<D> {
    fn run(&mut self, jobs: impl Iterator<Item = Job>, now: Instant) {
        if let Err(error) = self.refresh(now) {
            return jobs.for_each(|job| refuse(job, &error));
        }
        let mut changes = Vec::new();
        let mut put = 0;
        let mut answers: Vec<Answer> = jobs.map(|job| self.apply(job, &mut changes, &mut put)).collect();
        for lease in self.expired(now) {
            // One that a job of this batch has ended already is no longer there.
            let _ = self.model.revoke(lease, &mut changes);
        }
        self.stop(&changes);
        if !changes.is_empty() {
            match self.disk.persist(&self.model, &changes) {
                Ok(()) => self.publish(&changes, now),
                Err(error) => {
                    tracing::error!(%error, writes = answers.len(), "the store could not be written");
                    match error {
                        CommitError::Unknown(_) => self.stale = true,
                        _ => self.roll_back(now),
                    }
                    return answers.drain(..).for_each(|answer| answer.fail(error.clone()));
                }
            }
        }
        answers.drain(..).for_each(Answer::send);
    }

    /// `put` counts what the batch puts.
    fn apply(&mut self, job: Job, changes: &mut Vec<Change>, put: &mut usize) -> Answer {
        match job {
            Job::Commit(txn, reply) => {
                let room = self.model.puts(&txn).map_or(Ok(()), |bytes| {
                    *put += bytes;
                    self.disk.room(*put)
                });
                Answer::Commit(room.and_then(|()| self.model.commit(&txn, changes)), reply)
            }
            Job::Grant(ttl, reply) => {
                Answer::Grant(self.disk.room(*put).map(|()| self.model.grant(ttl, changes)), reply)
            }
            Job::Revoke(lease, reply) => Answer::Revoke(self.model.revoke(lease, changes), reply),
            Job::Compact(before, reply) => Answer::Compact(self.model.compact(before, changes), reply),
        }
    }

    /// Stops the clock of the leases that a batch ends, before it is known whether that can be written: whoever is told
    /// that a lease lives on may rely on it for its whole time.
    fn stop(&self, changes: &[Change]) {
        let mut leases = self.shared.leases();
        for change in changes {
            if let Change::Ended(id) = change {
                leases.stop(*id);
            }
        }
    }

    /// Makes a batch visible: it is durable by now.
    fn publish(&mut self, changes: &[Change], now: Instant) {
        let mut wake = Vec::new();
        {
            let mut view = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
            let mut leases = self.shared.leases();
            for change in changes {
                view.model.apply(change);
                match change {
                    Change::Event(event) => view.history.push(event.clone()),
                    Change::Granted(id, ttl) => leases.start(*id, *ttl, now),
                    Change::Ended(id) => leases.stop(*id),
                    Change::Forgotten(before) => view.history.forget_before(*before),
                }
            }
            let events = changes.iter().filter_map(|change| match change {
                Change::Event(event) => Some(event),
                _ => None,
            });
            self.shared.watchers.touch(events, &mut wake);
        }
        wake.iter().for_each(|waiter| waiter.wake());
    }

    /// The leases whose time is over, out of the clock already.
    fn expired(&self, now: Instant) -> Vec<LeaseId> {
        let mut leases = self.shared.leases();
        let away = leases.unseen(now);
        if away > AWAY {
            tracing::warn!(?away, counted = ?STEP, "the store was away; leases end that much later");
        }
        leases.look(now)
    }

    /// After a write of which nothing is on the disk, what the readers see is the truth. A lease whose end could not be
    /// written lives on.
    fn roll_back(&mut self, now: Instant) {
        let view = self.shared.view();
        self.model = view.model.clone();
        self.shared.leases().agree_with(view.model.leases(), now);
    }

    /// After a write that may be on the disk, that is the truth, whatever it holds: a lease may have been granted or ended
    /// after all.
    fn refresh(&mut self, now: Instant) -> Result<(), String> {
        if self.stale {
            let (model, history) = self.disk.load().map_err(|error| error.to_string())?;
            self.model = model.clone();
            self.stale = false;
            let mut wake = Vec::new();
            {
                let mut view = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
                self.shared.leases().agree_with(model.leases(), now);
                let unknown = view.model.revision.next();
                if history.oldest() <= unknown {
                    self.shared.watchers.touch(history.since(unknown), &mut wake);
                } else {
                    self.shared.watchers.touch_all(unknown, &mut wake);
                }
                *view = View { model, history };
            }
            wake.iter().for_each(|waiter| waiter.wake());
        }
        Ok(())
    }
}

impl<D> Drop for Writer<D> {
    fn drop(&mut self) {
        self.shared.watchers.close();
    }
}

fn refuse(job: Job, why: &str) {
    let error = CommitError::Unavailable(why.to_owned());
    match job {
        Job::Commit(_, reply) => drop(reply.send(Err(error))),
        Job::Grant(_, reply) => drop(reply.send(Err(error))),
        Job::Revoke(_, reply) => drop(reply.send(Err(error))),
        Job::Compact(_, reply) => drop(reply.send(Err(error))),
    }
}

/// A place in the history. It buffers nothing: a slow reader falls behind, at worst until its place is compacted.
#[derive(Debug)]
struct Follower {
    shared: Arc<Shared>,
    keys: Keys,
    /// Earlier events are not wanted.
    from: Revision,
    id: WaiterId,
    waiter: Arc<Waiter>,
}

impl Follower {
    /// What has happened since the last reading; nothing is there yet when that is empty.
    fn read(&self) -> Result<Vec<Event>, WatchError> {
        let view = self.shared.view();
        let Some(touched) = self.waiter.touched() else { return Ok(Vec::new()) };
        let from = touched.max(self.from);
        check(&view, from)?;
        self.waiter.has_read();
        Ok(view.history.since(from).filter(|event| self.keys.contain(&event.key)).cloned().collect())
    }
}

#[async_trait]
impl Follow for Follower {
    async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        loop {
            let events = self.read()?;
            if !events.is_empty() {
                return Ok(events);
            }
            if self.shared.watchers.closed() {
                return Err(WatchError::Closed);
            }
            self.waiter.woken().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.watchers.forget(&self.keys, self.id);
    }
}

fn check(view: &View, from: Revision) -> Result<(), WatchError> {
    let oldest = view.history.oldest();
    if from < oldest { Err(WatchError::Compacted { oldest }) } else { Ok(()) }
}

#[cfg(feature = "simulation")]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;
