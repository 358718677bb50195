//! The pool bulkhead: work that blocks or computes runs on its own bounded threads, so that it can neither hold up those
//! that serve everybody nor use them up. (Nygard, *Release It!*, 2007; Hystrix and Resilience4j have it as the thread
//! pool bulkhead.)
//!
//! Who may come in is decided by a [`Bulkhead`] of as many places as there are workers and queued jobs together; a job
//! holds its place until it has ended. The rest is a queue, a lock and threads that are started when they are needed.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use seawall_types::Period;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::bulkhead::{self, Bulkhead, Priority};
use crate::problems::merge;
use crate::{CallError, Chain, Clock, Deadline, Name, PolicyName, Problems, Reason, Rejected, deadline, timeout};

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests;

/// The most threads that a pool may have.
pub const MAX_WORKERS: u32 = 4096;

/// Threads of its own for work that blocks or computes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// How many threads, 1 to 4096. Default: one for each processor. They are started when they are needed.
    #[schemars(range(min = 1, max = 4096))]
    pub workers: Option<u32>,
    /// How many jobs may wait for a thread, 0 to 1000000. Default 100.
    #[schemars(range(max = 1_000_000))]
    pub queue: Option<u32>,
    /// How long a call waits for a place in the queue when that is full. Default 0s: it is turned away at once.
    pub wait: Option<Period>,
    /// So many threads are kept however long they are idle, 0 to `workers`. Default 0; without `idle` all are kept.
    #[schemars(range(max = 4096))]
    pub min: Option<u32>,
    /// A thread above `min` ends when it has had nothing to do for this long. Default: it is kept.
    pub idle: Option<Period>,
}

impl PoolConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    pub fn or(&self, base: &Self) -> Self {
        merge!(self, base; workers, queue, wait, min, idle)
    }

    /// Notes every value that is out of its range.
    pub fn problems(&self, found: &mut Problems) {
        found.range("pool.workers", self.workers, 1, MAX_WORKERS);
        found.range("pool.queue", self.queue, 0, bulkhead::MAX);
        found.range("pool.min", self.min, 0, MAX_WORKERS);
        found.positive("pool.idle", self.idle);
        if let (Some(min), Some(workers)) = (self.min, self.workers)
            && min > workers
        {
            found.add("pool.min", format!("of {min} is more than workers of {workers}"));
        }
    }

    /// What is in force.
    pub fn resolve(&self) -> Config {
        let cores =
            || thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        let workers = self.workers.unwrap_or_else(cores).clamp(1, MAX_WORKERS);
        Config {
            workers,
            queue: self.queue.unwrap_or(100).min(bulkhead::MAX - MAX_WORKERS),
            wait: self.wait.unwrap_or_default(),
            min: self.min.unwrap_or(0).min(workers),
            idle: self.idle,
        }
    }
}

/// What a pool does; every field is within its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many threads at most, 1 to [`MAX_WORKERS`].
    pub workers: u32,
    /// How many jobs may wait for a thread.
    pub queue: u32,
    /// How long a call waits for a place in the queue.
    pub wait: Period,
    /// So many threads are kept.
    pub min: u32,
    /// How long a thread above `min` stays idle before it ends; `None` keeps all.
    pub idle: Option<Period>,
}

impl Config {
    fn places(&self) -> bulkhead::Config {
        // As many may wait for the queue as fit into it: they are bounded too.
        let queue = self.queue.max(self.workers);
        bulkhead::Config { wait: self.wait, queue, ..bulkhead::Config::places(self.workers.saturating_add(self.queue)) }
    }
}

/// What a pool that was shut down left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Jobs that were never started; their callers were told so.
    pub queued: usize,
    /// Jobs that still run. Their threads end with them.
    pub active: usize,
}

/// Threads of its own, a bounded queue before them. All methods take `&self`. Dropped, it starts nothing more; jobs that
/// run are not waited for.
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    name: Name,
    places: Bulkhead,
    state: Mutex<State>,
    /// A job has come, or everybody has to look whether to go on.
    changed: Condvar,
    /// How many threads live.
    live: watch::Sender<u32>,
}

struct State {
    config: Config,
    /// By the order of their arrival, so that a cancelled one is found.
    queue: BTreeMap<u64, Entry>,
    next: u64,
    live: u32,
    idle: u32,
    active: usize,
    closed: bool,
    /// For the threads' names.
    started: u64,
}

struct Entry {
    job: Box<dyn Job>,
    place: bulkhead::Permit<Places>,
}

/// A job holds its place by way of the pool.
struct Places(Arc<Inner>);

impl AsRef<Bulkhead> for Places {
    fn as_ref(&self) -> &Bulkhead {
        &self.0.places
    }
}

trait Job: Send {
    fn run(&mut self);
    /// Gives the result to whoever waits for it.
    fn deliver(self: Box<Self>);
}

struct Task<F, R> {
    work: Option<F>,
    result: Option<thread::Result<R>>,
    caller: oneshot::Sender<thread::Result<R>>,
}

impl<R: Send, F: FnOnce() -> R + Send> Job for Task<F, R> {
    fn run(&mut self) {
        // The closure is gone after a panic, so nobody sees it in a broken state; the caller gets the panic.
        self.result = self.work.take().map(|work| catch_unwind(AssertUnwindSafe(work)));
    }

    fn deliver(self: Box<Self>) {
        let Self { result, caller, .. } = *self;
        if let Some(result) = result {
            // Where nobody waits any more, the result is dropped on this thread: whatever its drop does is caught.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(caller.send(result))));
        }
    }
}

impl Pool {
    /// A pool without threads yet; `name` is in their names and in rejections.
    pub fn new(name: Name, config: Config, clock: Clock) -> Self {
        let state =
            State { config, queue: BTreeMap::new(), next: 0, live: 0, idle: 0, active: 0, closed: false, started: 0 };
        let inner = Inner {
            name,
            places: Bulkhead::new(name, config.places(), clock),
            state: Mutex::new(state),
            changed: Condvar::new(),
            live: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Runs `work` on one of the pool's threads and waits for its result. A panic of `work` goes on in the caller; the
    /// thread lives on. Deadline, chain and priority of the task are ambient in `work` too, and nobody waits beyond the
    /// deadline.
    ///
    /// Cancel safe: of a dropped future, a job that still waits is never started; one that has been started runs to its
    /// end and keeps its place until then, and nobody learns of its result.
    ///
    /// # Errors
    /// `Inner` with the error of `work`; `Rejected` with `queue-full` when there is no place in the queue, with `full`
    /// when the pool has been shut down, by the timeout when the task's deadline is over. But for the last, a rejected job
    /// was never started.
    pub async fn call<T, E, F>(&self, work: F) -> Result<T, CallError<E>>
    where
        F: FnOnce() -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let handle = Places(self.inner.clone());
        let deadline = deadline::current();
        let left = deadline.map_or(Duration::MAX, Deadline::left);
        let place = Bulkhead::acquire_as(handle, Priority::current(), left).await.map_err(queue_full)?;
        let mut queued = self.submit(ambient(work), place)?;
        let result = match deadline {
            None => (&mut queued.result).await,
            Some(deadline) => timeout::until(deadline, &mut queued.result)
                .await
                .map_err(|_| Rejected::new(PolicyName::Timeout, self.inner.name, Reason::Deadline))?,
        };
        queued.settle(result.ok())
    }

    /// The same for synchronous callers, which wait as long as it takes. Not for threads that run async tasks.
    ///
    /// # Errors
    /// As [`Pool::call`].
    ///
    /// # Panics
    /// When called from within an async task, and with the panic of `work`.
    pub fn call_blocking<T, E, F>(&self, work: F) -> Result<T, CallError<E>>
    where
        F: FnOnce() -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let handle = Places(self.inner.clone());
        let left = deadline::current().map_or(Duration::MAX, Deadline::left);
        let place = Bulkhead::acquire_blocking(handle, Priority::current(), left).map_err(queue_full)?;
        let mut queued = self.submit(ambient(work), place)?;
        let (_, never) = oneshot::channel();
        let result = std::mem::replace(&mut queued.result, never).blocking_recv();
        queued.settle(result.ok())
    }

    fn submit<R, F>(&self, work: F, place: bulkhead::Permit<Places>) -> Result<Queued<'_, R>, Rejected>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let (caller, result) = oneshot::channel();
        let job = Box::new(Task { work: Some(work), result: None, caller });
        let mut state = self.inner.lock();
        if state.closed {
            return Err(self.inner.closed());
        }
        let id = state.next;
        state.next += 1;
        state.queue.insert(id, Entry { job, place });
        let dropped = self.inner.hire(&mut state);
        drop(state);
        drop(dropped);
        self.inner.changed.notify_one();
        Ok(Queued { pool: &self.inner, id, result })
    }

    /// Takes over another configuration. Never blocks: threads that are too many end when they have finished their job,
    /// jobs that are too many in the queue stay, and nobody enters until enough have left.
    pub fn reload(&self, config: Config) {
        let mut state = self.inner.lock();
        state.config = config;
        let dropped = self.inner.hire(&mut state);
        drop(state);
        drop(dropped);
        self.inner.places.reload(config.places());
        self.inner.changed.notify_all();
    }

    /// Takes no more jobs, waits until those that it has are done, and ends its threads, but no longer than `within`.
    /// What has not been started by then never will be; what runs goes on by itself.
    ///
    /// Cancel safe: dropped, it goes on taking no jobs and working off those that it has.
    pub async fn shutdown(&self, within: Duration) -> Left {
        self.inner.close();
        let mut live = self.inner.live.subscribe();
        // The sender lives as long as the pool; what is left is counted below.
        let _ = tokio::time::timeout(within, live.wait_for(|live| *live == 0)).await;
        self.inner.abandon()
    }

    /// The same for synchronous callers: the thread waits.
    pub fn shutdown_blocking(&self, within: Duration) -> Left {
        self.inner.close();
        let begun = Instant::now();
        let mut state = self.inner.lock();
        while state.live > 0
            && let Some(left) = within.checked_sub(begun.elapsed())
            && !left.is_zero()
        {
            let waited = self.inner.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.inner.abandon()
    }

    /// How many jobs wait for a thread.
    pub fn queued(&self) -> usize {
        self.inner.lock().queue.len()
    }

    /// How many jobs run.
    pub fn active(&self) -> usize {
        self.inner.lock().active
    }

    /// How many threads there are.
    pub fn workers(&self) -> u32 {
        self.inner.lock().live
    }

    /// The bulkhead before it, whose places are the threads' and the queue's together.
    pub fn places(&self) -> &Bulkhead {
        &self.inner.places
    }
}

/// The queue is what is full here.
fn queue_full(rejected: Rejected) -> Rejected {
    Rejected { reason: Reason::QueueFull, ..rejected }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.inner.close();
        self.inner.abandon();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.lock();
        f.debug_struct("Pool")
            .field("name", &self.inner.name)
            .field("queued", &state.queue.len())
            .field("active", &state.active)
            .field("workers", &state.live)
            .finish_non_exhaustive()
    }
}

/// A job as its caller sees it. Dropped, the job is taken out of the queue if it is still there.
struct Queued<'a, R> {
    pool: &'a Inner,
    id: u64,
    result: oneshot::Receiver<thread::Result<R>>,
}

impl<T, E> Queued<'_, Result<T, E>> {
    /// `None`: it was dropped without having been started.
    fn settle(self, result: Option<thread::Result<Result<T, E>>>) -> Result<T, CallError<E>> {
        match result {
            Some(Ok(result)) => result.map_err(CallError::Inner),
            Some(Err(panic)) => resume_unwind(panic),
            None => Err(self.pool.closed().into()),
        }
    }
}

impl<R> Drop for Queued<'_, R> {
    fn drop(&mut self) {
        let cancelled = self.pool.lock().queue.remove(&self.id);
        // Outside of the lock: the closure's own drop may do anything.
        drop(cancelled);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that may panic runs under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> Rejected {
        Rejected::new(PolicyName::Bulkhead, self.name, Reason::Full)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Drops what has not been started, and counts what is left.
    fn abandon(&self) -> Left {
        let mut state = self.lock();
        let queue = std::mem::take(&mut state.queue);
        let left = Left { queued: queue.len(), active: state.active };
        drop(state);
        drop(queue);
        left
    }

    /// Starts threads while there are more jobs than idle ones, as far as allowed. If there is none and none can be
    /// had, gives back the jobs, so that their callers learn of it.
    #[must_use = "to be dropped outside of the lock"]
    fn hire(self: &Arc<Self>, state: &mut State) -> BTreeMap<u64, Entry> {
        let mut wanted = state.queue.len().saturating_sub(state.idle as usize);
        while wanted > 0 && state.live < state.config.workers {
            let name = format!("{}-{}", self.name, state.started).replace('\0', "");
            let inner = self.clone();
            if thread::Builder::new().name(name).spawn(move || inner.work()).is_err() {
                // The others do it, later.
                break;
            }
            state.started += 1;
            state.live += 1;
            wanted -= 1;
        }
        self.live.send_replace(state.live);
        if state.live == 0 { std::mem::take(&mut state.queue) } else { BTreeMap::new() }
    }

    /// What a thread does.
    fn work(self: Arc<Self>) {
        while let Some(Entry { mut job, place }) = self.next() {
            job.run();
            self.lock().active -= 1;
            // Before the caller learns of it, who may come again at once.
            drop(place);
            job.deliver();
        }
    }

    /// Waits for a job; `None` ends the thread.
    fn next(&self) -> Option<Entry> {
        let mut state = self.lock();
        let mut since = None;
        loop {
            let surplus = state.live > state.config.workers;
            if !surplus && let Some((_, entry)) = state.queue.pop_first() {
                state.active += 1;
                return Some(entry);
            }
            let patience = state.config.idle.filter(|_| state.live > state.config.min);
            let idle = since.get_or_insert_with(Instant::now).elapsed();
            let left = patience.map(|patience| patience.saturating_sub(idle));
            if surplus || state.closed || left.is_some_and(|left| left.is_zero()) {
                state.live -= 1;
                self.live.send_replace(state.live);
                drop(state);
                // A job's wake-up may have been meant for another; and a shutdown waits for the last.
                self.changed.notify_all();
                return None;
            }
            state.idle += 1;
            state = match left {
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.idle -= 1;
        }
    }
}

/// `work` under the deadline, chain and priority of the task that asks for it.
fn ambient<R>(work: impl FnOnce() -> R) -> impl FnOnce() -> R {
    let (deadline, chain, priority) = (deadline::current(), Chain::current(), Priority::current());
    let work = move || match chain {
        Some(chain) => chain.within(work),
        None => work(),
    };
    let work = move || match deadline {
        Some(deadline) => deadline::enter(deadline, work),
        None => work(),
    };
    move || priority.within(work)
}
