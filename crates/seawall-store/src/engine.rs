//! What every in-process backend shares: a writer that commits in groups, a view that readers read, a history that
//! watchers follow.
//!
//! The writer thread owns a [`Model`] of its own and a [`Disk`]. It gives the model a batch of jobs, makes the changes
//! durable in one sync, shows them to the readers, and only then answers. When the disk fails, the writer's model has
//! run ahead of the truth and is read anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use seawall_types::Revision;
use tokio::sync::{oneshot, watch};

use crate::group_commit::{self, AskError};
use crate::history::{BOUNDS, History};
use crate::lease_clock::{LeaseClock, STEP, TICK};
use crate::model::{Change, Model};
use crate::sqlite::OpenError;
use crate::{CommitError, Committed, Event, LeaseId, Txn, WatchError};

/// An absence of the store that is worth a line in the log.
const AWAY: Duration = Duration::from_secs(1);

/// Where changes are made durable.
pub(crate) trait Disk: Send + 'static {
    /// Makes all of `changes` durable, or none.
    fn persist(&mut self, model: &Model, changes: &[Change]) -> Result<(), CommitError>;
    /// Reads everything back.
    fn load(&mut self) -> Result<(Model, History), OpenError>;
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
    latest: watch::Receiver<Revision>,
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
}

/// A finished job that still has to be answered.
enum Answer {
    Commit(Result<Committed, CommitError>, oneshot::Sender<Result<Committed, CommitError>>),
    Grant(LeaseId, oneshot::Sender<Result<LeaseId, CommitError>>),
    Revoke(Result<Revision, CommitError>, oneshot::Sender<Result<Revision, CommitError>>),
}

impl Answer {
    // A caller that no longer listens has dropped its receiver: nothing to do about it.
    fn send(self) {
        match self {
            Self::Commit(result, reply) => drop(reply.send(result)),
            Self::Grant(lease, reply) => drop(reply.send(Ok(lease))),
            Self::Revoke(result, reply) => drop(reply.send(result)),
        }
    }

    fn fail(self, error: CommitError) {
        match self {
            Self::Commit(_, reply) => drop(reply.send(Err(error))),
            Self::Grant(_, reply) => drop(reply.send(Err(error))),
            Self::Revoke(_, reply) => drop(reply.send(Err(error))),
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
        let (latest, seen) = watch::channel(model.revision);
        let shared = Arc::new(Shared {
            latest: seen,
            view: RwLock::new(View { model: model.clone(), history }),
            leases: Mutex::new(running(&model, now)),
        });
        let mut writer = Writer { shared: shared.clone(), latest, disk, model, stale: false };
        let jobs = group_commit::spawn("store", TICK, move |batch: &mut Vec<Job>| {
            writer.run(batch.drain(..), Instant::now());
        })
        .map_err(|source| OpenError::Directory { path: "writer thread".into(), source })?;
        Ok(Self { shared, jobs })
    }

    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.shared.view()
    }

    pub(crate) async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.ask(|reply| Job::Commit(txn, reply)).await
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId, CommitError> {
        self.ask(|reply| Job::Grant(ttl, reply)).await
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        self.ask(|reply| Job::Revoke(lease, reply)).await
    }

    pub(crate) fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        // The clock alone decides: a lease whose end is on the way to the disk is still in the view, and in no clock.
        self.shared.leases().keep_alive(lease, Instant::now()).ok_or(CommitError::NoLease(lease))
    }

    pub(crate) fn watch(&self, prefix: &str, from: Revision) -> Result<Cursor, WatchError> {
        let cursor = Cursor {
            shared: self.shared.clone(),
            latest: self.shared.latest.clone(),
            prefix: prefix.into(),
            next: from,
        };
        cursor.check(&self.view())?;
        Ok(cursor)
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
    /// Gone with the writer, which is how cursors learn that the store is closed.
    latest: watch::Sender<Revision>,
    disk: D,
    model: Model,
    /// The model ran ahead of a disk that failed.
    stale: bool,
}

impl<D: Disk> Writer<D> {
    fn run(&mut self, jobs: impl Iterator<Item = Job>, now: Instant) {
        if let Err(error) = self.refresh(now) {
            return jobs.for_each(|job| refuse(job, &error));
        }
        let mut changes = Vec::new();
        let mut answers: Vec<Answer> = jobs.map(|job| self.apply(job, &mut changes)).collect();
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
                    self.stale = true;
                    return answers.drain(..).for_each(|answer| answer.fail(error.clone()));
                }
            }
        }
        answers.drain(..).for_each(Answer::send);
    }

    fn apply(&mut self, job: Job, changes: &mut Vec<Change>) -> Answer {
        match job {
            Job::Commit(txn, reply) => Answer::Commit(self.model.commit(&txn, changes), reply),
            Job::Grant(ttl, reply) => Answer::Grant(self.model.grant(ttl, changes), reply),
            Job::Revoke(lease, reply) => Answer::Revoke(self.model.revoke(lease, changes), reply),
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
        {
            let mut view = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
            let mut leases = self.shared.leases();
            for change in changes {
                view.model.apply(change);
                match change {
                    Change::Event(event) => view.history.push(event.clone()),
                    Change::Granted(id, ttl) => leases.start(*id, *ttl, now),
                    Change::Ended(id) => leases.stop(*id),
                }
            }
        }
        self.latest.send_replace(self.model.revision);
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

    /// After a failed write the file is the truth, whatever it holds. Every lease in it has its whole time: one may have
    /// been granted after all, and one whose end could not be written lives on.
    fn refresh(&mut self, now: Instant) -> Result<(), String> {
        if self.stale {
            let (model, history) = self.disk.load().map_err(|error| error.to_string())?;
            self.model = model.clone();
            self.stale = false;
            {
                let mut view = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
                *self.shared.leases() = running(&model, now);
                *view = View { model, history };
            }
            self.latest.send_replace(self.model.revision);
        }
        Ok(())
    }
}

/// The clock of all leases of `model`, each with its whole time.
fn running(model: &Model, now: Instant) -> LeaseClock {
    let mut clock = LeaseClock::new(now);
    for (id, ttl) in model.leases() {
        clock.start(id, ttl, now);
    }
    clock
}

fn refuse(job: Job, why: &str) {
    let error = CommitError::Unavailable(why.to_owned());
    match job {
        Job::Commit(_, reply) => drop(reply.send(Err(error))),
        Job::Grant(_, reply) => drop(reply.send(Err(error))),
        Job::Revoke(_, reply) => drop(reply.send(Err(error))),
    }
}

/// A place in the history. It buffers nothing: a slow reader falls behind, at worst until its place is compacted.
#[derive(Debug)]
pub struct Cursor {
    shared: Arc<Shared>,
    latest: watch::Receiver<Revision>,
    prefix: Box<str>,
    next: Revision,
}

impl Cursor {
    /// The next events under the prefix, whole revisions only; waits until there are some. Cancel safe.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when the reader was so slow that the history has moved past it;
    /// [`WatchError::Closed`] when the store is gone.
    pub async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        loop {
            let latest = *self.latest.borrow_and_update();
            if latest >= self.next {
                let events = {
                    let view = self.shared.view();
                    self.check(&view)?;
                    let events = view.history.since(self.next);
                    self.next = view.model.revision.next();
                    events.filter(|event| event.key.starts_with(&*self.prefix)).cloned().collect::<Vec<_>>()
                };
                if !events.is_empty() {
                    return Ok(events);
                }
            }
            self.latest.changed().await.map_err(|_| WatchError::Closed)?;
        }
    }

    fn check(&self, view: &View) -> Result<(), WatchError> {
        if self.next < view.history.oldest() {
            return Err(WatchError::Compacted { oldest: view.history.oldest() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
