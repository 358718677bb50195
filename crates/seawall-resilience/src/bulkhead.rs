//! The bulkhead: at most so many calls at once, and a bounded, fair queue for a bounded time.
//! (Nygard, *Release It!*, 2007; load is shed by criticality as in *Site Reliability Engineering*, ch. 21, Google, 2016.)
//!
//! One word counts the places that are taken and the calls that wait. While nobody waits, a place costs a load and a
//! compare-and-swap to take, and a `fetch_sub` to give back. Because both counts are in one word, whoever gives a place
//! back sees who waits, or the one that begins to wait sees the place: no wake-up is lost. Those who wait stand in
//! lists behind a lock that nobody else takes.
//!
//! **Shares.** With 100 places and `shares: { low: 50%, normal: 80% }`, a call of priority `low` is admitted while fewer
//! than 50 places are taken by whomever, a `normal` one while fewer than 80 are, all others while fewer than 100 are. A
//! share is rounded up, and is at least one place. So whatever matters less is shed first.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use seawall_types::{Period, Ratio};
use serde::{Deserialize, Serialize};

use crate::adaptive::{self, Adaptive, AdaptiveConfig, Ended, Sample};
use crate::clock::nanos;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Line, Mutex, Ordering, lock};
use crate::{Clock, Name, PolicyName, Problems, Reason, Rejected, Tick};

#[cfg(test)]
#[cfg(feature = "loom")]
mod loom;
mod queue;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests;

use queue::{Queue, Turn};

/// The most places, and the most calls that may wait.
pub const MAX: u32 = 1_000_000;

/// How much a call matters. `low < normal < high < critical`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Work that can be done later or not at all: prefetching, batches.
    Low,
    /// What is not marked.
    #[default]
    Normal,
    /// Somebody waits for it.
    High,
    /// The business stops without it.
    Critical,
}

impl Priority {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Low, Self::Normal, Self::High, Self::Critical];

    /// That of the running code, as [`Priority::scope`] has set it; `normal` otherwise. A task that is spawned has none.
    pub fn current() -> Self {
        CURRENT.try_with(|current| *current).unwrap_or_default()
    }

    /// Runs `future` as so important: so its calls are made under a [`Guard`](crate::Guard), and
    /// [`pass_on`](crate::http::pass_on) tells the next hop. As cancel safe as `future` is.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Runs `call` as so important.
    pub fn within<T>(self, call: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, call)
    }

    /// The word used in configuration, headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

tokio::task_local! {
    static CURRENT: Priority;
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How many calls may be under way at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BulkheadConfig {
    /// `false` switches it off. Default true.
    pub enabled: Option<bool>,
    /// How many calls may be under way at once, 1 to 1000000. Default 1024. With `adaptive` it is where the limit
    /// begins, unless `adaptive.initial` says so.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub concurrent: Option<u32>,
    /// How long a call waits for a place. Default 0s: not at all.
    pub wait: Option<Period>,
    /// How many calls may wait, 0 to 1000000. Default: as many as `concurrent`; with `adaptive`, as `adaptive.max`.
    #[schemars(range(max = 1_000_000))]
    pub queue: Option<u32>,
    /// Which share of the places a call may use by its priority. Default: all of them.
    pub shares: SharesConfig,
    /// Finds the number of places by itself. Off unless one of its fields is given.
    pub adaptive: AdaptiveConfig,
}

/// A call is admitted only while fewer than this share of the places are taken. A priority without a share has that of
/// the next higher one, so that whatever matters less is shed first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SharesConfig {
    /// Of `low`. Default: as `normal`.
    pub low: Option<Ratio>,
    /// Of `normal`, which is every call that is not marked. Default: as `high`.
    pub normal: Option<Ratio>,
    /// Of `high`. Default: as `critical`.
    pub high: Option<Ratio>,
    /// Of `critical`. Default 100%.
    pub critical: Option<Ratio>,
}

impl BulkheadConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    pub(crate) fn or(&self, base: &Self) -> Self {
        Self {
            enabled: self.enabled.or(base.enabled),
            concurrent: self.concurrent.or(base.concurrent),
            wait: self.wait.or(base.wait),
            queue: self.queue.or(base.queue),
            shares: self.shares.or(&base.shares),
            adaptive: self.adaptive.or(&base.adaptive),
        }
    }

    /// Notes every value that is out of its range.
    pub(crate) fn problems(&self, found: &mut Problems) {
        found.range("bulkhead.concurrent", self.concurrent, 1, MAX);
        found.range("bulkhead.queue", self.queue, 0, MAX);
        self.shares.problems(found);
        self.adaptive.problems(found);
    }

    /// What has no effect for want of something else.
    pub(crate) fn idle(&self, found: &mut Problems) {
        self.adaptive.idle(found);
        let wait = self.wait.unwrap_or_default();
        if wait.is_zero() {
            let most = Self { queue: None, enabled: None, ..self.clone() }.resolve().map(|config| config.queue);
            found.idle("bulkhead.queue", self.queue, most, "wait");
        } else if self.queue == Some(0) {
            found.add("bulkhead.wait", format!("of {wait} has no effect: `queue` of 0 lets nobody wait"));
        }
    }

    /// What is in force; `None` if it is switched off.
    pub(crate) fn resolve(&self) -> Option<Config> {
        if self.enabled == Some(false) {
            return None;
        }
        let adaptive = self.adaptive.resolve(self.concurrent);
        let concurrent = adaptive.as_ref().map_or(self.concurrent.unwrap_or(1024), |adaptive| adaptive.initial);
        let concurrent = concurrent.clamp(1, MAX);
        let most = adaptive.as_ref().map_or(concurrent, |adaptive| adaptive.max);
        Some(Config {
            concurrent,
            wait: self.wait.unwrap_or_default(),
            queue: self.queue.unwrap_or(most).min(MAX),
            shares: self.shares.resolve(),
            adaptive,
        })
    }
}

impl SharesConfig {
    fn or(&self, base: &Self) -> Self {
        crate::problems::merge!(self, base; low, normal, high, critical)
    }

    fn given(&self) -> [(&'static str, Option<Ratio>); 4] {
        [
            ("bulkhead.shares.low", self.low),
            ("bulkhead.shares.normal", self.normal),
            ("bulkhead.shares.high", self.high),
            ("bulkhead.shares.critical", self.critical),
        ]
    }

    fn problems(&self, found: &mut Problems) {
        let mut above: Option<(&str, Ratio)> = None;
        for (path, share) in self.given().into_iter().rev() {
            found.some(path, share, "none of its calls would ever pass");
            let Some(share) = share else { continue };
            if let Some((higher, most)) = above.filter(|(_, most)| share > *most) {
                found.add(path, format!("of {share} is more than the {most} of {higher}, which matters more"));
            }
            above = Some((path, share));
        }
    }

    /// By priority. Never more than the priority above has: what is contradictory was reported by `problems`.
    fn resolve(&self) -> [Ratio; 4] {
        let mut shares = [Ratio::percent(100); 4];
        let mut above = Ratio::percent(100);
        for (at, (_, share)) in self.given().into_iter().enumerate().rev() {
            if let Some(share) = share.filter(|share| *share < above) {
                above = share;
            }
            shares[at] = above;
        }
        shares
    }
}

/// What a bulkhead does; every field is within its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How many calls may be under way at once, 1 to [`MAX`]; where it begins if it is adaptive.
    pub concurrent: u32,
    /// How long a call waits for a place; zero turns it away at once.
    pub wait: Period,
    /// How many calls may wait, at most [`MAX`].
    pub queue: u32,
    /// The share of the places by [`Priority`], least first; none has more than the next.
    pub shares: [Ratio; 4],
    /// Finds the number of places by itself.
    pub adaptive: Option<adaptive::Config>,
}

impl Config {
    /// So many places, no wait, the same for all priorities.
    pub const fn places(concurrent: u32) -> Self {
        let all = Ratio::percent(100);
        Self { concurrent, wait: Period::secs(0), queue: concurrent, shares: [all; 4], adaptive: None }
    }
}

/// A place that is taken, in the word `in_use:32 | waiting:32`.
const PLACE: u64 = 1 << 32;
/// A call that waits, in the same word.
const WAITER: u64 = 1;

const fn in_use(word: u64) -> u32 {
    (word >> 32) as u32
}

const fn waiting(word: u64) -> u32 {
    word as u32
}

/// A bulkhead; share it by reference or `Arc`. All methods take `&self` or a handle to it.
pub struct Bulkhead {
    /// The only thing that is written for every call.
    state: Line<AtomicU64>,
    /// Written only by a change of the limit, under the queue's lock.
    limits: Limits,
    name: Name,
    clock: Clock,
    queue: Line<Mutex<Queue>>,
    adaptive: Line<Mutex<Option<Adaptive>>>,
    rejected: Line<Counters>,
}

struct Limits {
    places: AtomicU32,
    /// At how many places in use a call of each priority is no longer admitted; the least priority first.
    caps: [AtomicU32; 4],
    /// In nanoseconds.
    wait: AtomicU64,
    queue: AtomicU32,
    adaptive: AtomicBool,
}

/// How many calls were turned away, by reason.
#[derive(Default)]
struct Counters {
    full: AtomicU64,
    queue_full: AtomicU64,
    shed: AtomicU64,
}

/// How many calls a bulkhead has turned away since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejections {
    /// All places were taken.
    pub full: u64,
    /// Too many waited already.
    pub queue_full: u64,
    /// The places left were for calls that matter more.
    pub shed: u64,
}

/// No clock was read for the permit.
const UNTIMED: Tick = Tick::from_nanos(u64::MAX);

/// A place in the bulkhead, free again when dropped, even by a panic. Dropping it tells an adaptive limit nothing;
/// [`Permit::finish`] does.
#[must_use = "the place is free again as soon as the permit is dropped"]
pub struct Permit<B: AsRef<Bulkhead>> {
    bulkhead: B,
    /// How many places were taken when this one was, it included.
    in_flight: u32,
    /// When it was taken; [`UNTIMED`] unless the limit is adaptive.
    taken: Tick,
}

impl Bulkhead {
    /// An empty bulkhead. `name` appears in rejections; `clock` measures latencies if the limit is adaptive.
    pub fn new(name: Name, config: Config, clock: Clock) -> Self {
        let limits = Limits {
            places: AtomicU32::new(0),
            caps: std::array::from_fn(|_| AtomicU32::new(0)),
            wait: AtomicU64::new(0),
            queue: AtomicU32::new(0),
            adaptive: AtomicBool::new(false),
        };
        let bulkhead = Self {
            state: Line(AtomicU64::new(0)),
            limits,
            name,
            clock,
            queue: Line(Mutex::new(Queue::new(config.shares))),
            adaptive: Line(Mutex::new(None)),
            rejected: Line::default(),
        };
        bulkhead.reload(config);
        bulkhead
    }

    /// Takes a place for a call of priority `normal`, if one is free. Never waits.
    ///
    /// # Errors
    /// [`Rejected`] with `full` when all places are taken, or others wait for those that are free; with `shed` when
    /// those that are left are for higher priorities.
    #[inline]
    pub fn try_acquire<B: AsRef<Self>>(this: B) -> Result<Permit<B>, Rejected> {
        Self::try_acquire_as(this, Priority::default())
    }

    /// The same for a call of any priority.
    ///
    /// # Errors
    /// As [`Bulkhead::try_acquire`].
    #[inline]
    pub fn try_acquire_as<B: AsRef<Self>>(this: B, priority: Priority) -> Result<Permit<B>, Rejected> {
        match this.as_ref().take(priority) {
            Ok(in_flight) => Ok(Permit::new(this, in_flight)),
            Err(reason) => Err(this.as_ref().reject(reason)),
        }
    }

    /// Takes a place; `None` if there is none and the call may wait for one, by [`Bulkhead::acquire_as`]. It has not been
    /// turned away then, and is not counted.
    #[inline]
    pub(crate) fn try_or_wait<B: AsRef<Self>>(this: B, priority: Priority) -> Result<Option<Permit<B>>, Rejected> {
        match this.as_ref().take(priority) {
            Ok(in_flight) => Ok(Some(Permit::new(this, in_flight))),
            Err(_) if this.as_ref().patience(Duration::MAX).is_some() => Ok(None),
            Err(reason) => Err(this.as_ref().reject(reason)),
        }
    }

    /// Takes a place for a call of priority `normal`, waiting for one as configured but never longer than `limit`.
    ///
    /// Cancel safe: a dropped future has taken nothing, and a place that it had been given goes to the next.
    ///
    /// # Errors
    /// [`Rejected`] with `full` or `shed` when no place came free in time, with `queue-full` when too many wait.
    pub fn acquire<B: AsRef<Self>>(this: B, limit: Duration) -> impl Future<Output = Result<Permit<B>, Rejected>> {
        Self::acquire_as(this, Priority::default(), limit)
    }

    /// The same for a call of any priority. Higher priorities are served first, equal ones in the order of their
    /// arrival. Where the queue is full, the youngest waiter of the least priority below `priority` gives way (`shed`).
    ///
    /// Cancel safe, as [`Bulkhead::acquire`].
    ///
    /// # Errors
    /// As [`Bulkhead::acquire`].
    pub async fn acquire_as<B: AsRef<Self>>(
        this: B,
        priority: Priority,
        limit: Duration,
    ) -> Result<Permit<B>, Rejected> {
        let taken = match this.as_ref().take(priority) {
            // Boxed so that those who need not wait do not carry a timer through their future.
            Err(reason) => Box::pin(this.as_ref().wait(priority, limit, reason)).await,
            taken => taken,
        };
        match taken {
            Ok(in_flight) => Ok(Permit::new(this, in_flight)),
            Err(reason) => Err(this.as_ref().reject(reason)),
        }
    }

    /// The same for synchronous callers: the thread waits. Not for threads that run async tasks.
    ///
    /// # Errors
    /// As [`Bulkhead::acquire`].
    pub fn acquire_blocking<B: AsRef<Self>>(
        this: B,
        priority: Priority,
        limit: Duration,
    ) -> Result<Permit<B>, Rejected> {
        let taken = match this.as_ref().take(priority) {
            Err(reason) => this.as_ref().wait_blocking(priority, limit, reason),
            taken => taken,
        };
        match taken {
            Ok(in_flight) => Ok(Permit::new(this, in_flight)),
            Err(reason) => Err(this.as_ref().reject(reason)),
        }
    }

    /// Takes a place, or says why not. Gives how many are taken then.
    #[inline]
    fn take(&self, priority: Priority) -> Result<u32, Reason> {
        let cap = self.limits.caps[priority as usize].load(Ordering::Relaxed);
        let mut word = self.state.0.load(Ordering::Relaxed);
        loop {
            if in_use(word) >= cap {
                return Err(self.lack(in_use(word)));
            }
            if waiting(word) != 0 {
                return self.take_past_waiters(priority);
            }
            match self.state.0.compare_exchange_weak(word, word + PLACE, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(in_use(word) + 1),
                Err(seen) => word = seen,
            }
        }
    }

    /// Takes a place though others wait, all of whom matter less.
    #[cold]
    fn take_past_waiters(&self, priority: Priority) -> Result<u32, Reason> {
        let queue = lock(&self.queue.0);
        if queue.highest().is_some_and(|highest| highest >= priority) {
            return Err(Reason::Full);
        }
        self.take_locked(priority, PLACE)
    }

    /// Adds `step`, a place at least, if `priority` may have one. The queue is locked, so the limit stands still.
    fn take_locked(&self, priority: Priority, step: u64) -> Result<u32, Reason> {
        let cap = self.limits.caps[priority as usize].load(Ordering::Relaxed);
        let mut word = self.state.0.load(Ordering::Acquire);
        loop {
            if in_use(word) >= cap {
                return Err(self.lack(in_use(word)));
            }
            match self.state.0.compare_exchange_weak(word, word.wrapping_add(step), Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Ok(in_use(word) + 1),
                Err(seen) => word = seen,
            }
        }
    }

    /// What a call lacks that finds so many places taken: any place, or one that it may have.
    fn lack(&self, in_use: u32) -> Reason {
        let cap = self.limits.caps[Priority::Critical as usize].load(Ordering::Relaxed);
        if in_use < cap { Reason::Shed } else { Reason::Full }
    }

    async fn wait(&self, priority: Priority, limit: Duration, reason: Reason) -> Result<u32, Reason> {
        let wait = self.patience(limit).ok_or(reason)?;
        let mut waiting = self.enqueue(priority)?;
        match tokio::time::timeout(wait, &mut waiting).await {
            Ok(turn) => turn,
            Err(_) => waiting.give_up(),
        }
    }

    fn wait_blocking(&self, priority: Priority, limit: Duration, reason: Reason) -> Result<u32, Reason> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let wait = self.patience(limit).ok_or(reason)?;
        let begun = Instant::now();
        let mut waiting = self.enqueue(priority)?;
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            if let Poll::Ready(turn) = Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)) {
                return turn;
            }
            match wait.checked_sub(begun.elapsed()) {
                Some(left) if !left.is_zero() => std::thread::park_timeout(left),
                _ => return waiting.give_up(),
            }
        }
    }

    /// How long a call may wait, if at all.
    fn patience(&self, limit: Duration) -> Option<Duration> {
        let wait = Duration::from_nanos(self.limits.wait.load(Ordering::Relaxed)).min(limit);
        (!wait.is_zero()).then_some(wait)
    }

    /// Joins the queue, or displaces one who matters less.
    fn enqueue(&self, priority: Priority) -> Result<Waiting<'_>, Reason> {
        let mut queue = lock(&self.queue.0);
        let mut displaced = None;
        if queue.waiting() >= self.limits.queue.load(Ordering::Relaxed) {
            displaced = Some(queue.displace(priority).ok_or(Reason::QueueFull)?);
            self.state.0.fetch_sub(WAITER, Ordering::AcqRel);
        }
        let waiting = Waiting { bulkhead: self, priority, slot: Some(queue.push(priority)) };
        // Whoever gives a place back after this sees the waiter; what was given back before is granted below.
        self.state.0.fetch_add(WAITER, Ordering::AcqRel);
        drop(queue);
        if let Some(waker) = displaced.flatten() {
            waker.wake();
        }
        self.grant();
        Ok(waiting)
    }

    /// Gives free places to those who wait, as long as there are both.
    #[cold]
    fn grant(&self) {
        loop {
            let mut queue = lock(&self.queue.0);
            // Shares never rise as the priority falls: if the first in turn may not have a place, nobody may.
            let Some(priority) = queue.highest() else { return };
            let Ok(in_use) = self.take_locked(priority, PLACE - WAITER) else { return };
            let waker = queue.grant(priority, in_use);
            drop(queue);
            // Outside of the lock: a waker may run anything.
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    #[inline]
    fn release(&self) {
        if waiting(self.state.0.fetch_sub(PLACE, Ordering::AcqRel)) != 0 {
            self.grant();
        }
    }

    #[cold]
    fn reject(&self, reason: Reason) -> Rejected {
        let counter = match reason {
            Reason::Shed => &self.rejected.0.shed,
            Reason::QueueFull => &self.rejected.0.queue_full,
            _ => &self.rejected.0.full,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Rejected::new(PolicyName::Bulkhead, self.name, reason)
    }

    /// Takes over another configuration, keeping every place that is taken and everyone who waits. Never blocks: when
    /// there are fewer places than calls, nobody enters until enough have left. Those who wait keep the wait that they
    /// began with. An adaptive limit that stays adaptive by the same algorithm keeps what it has found.
    pub fn reload(&self, config: Config) {
        let mut adaptive = lock(&self.adaptive.0);
        let places = match (&mut *adaptive, config.adaptive) {
            (Some(found), Some(wanted)) if found.algorithm() == wanted.algorithm => found.reload(wanted),
            (found, wanted) => {
                *found = wanted.map(Adaptive::new);
                found.as_ref().map_or(config.concurrent, Adaptive::limit)
            }
        };
        self.limits.adaptive.store(adaptive.is_some(), Ordering::Relaxed);
        self.limits.wait.store(nanos(config.wait.get()), Ordering::Relaxed);
        self.limits.queue.store(config.queue.min(MAX), Ordering::Relaxed);
        lock(&self.queue.0).shares = config.shares;
        self.set_places(places);
        drop(adaptive);
        self.grant();
    }

    /// Changes the number of places, 1 to [`MAX`], as [`Bulkhead::reload`] does. An adaptive limit goes on from there,
    /// within its bounds.
    pub fn resize(&self, places: u32) {
        let mut adaptive = lock(&self.adaptive.0);
        let places = adaptive.as_mut().map_or(places, |adaptive| adaptive.set(places));
        self.set_places(places);
        drop(adaptive);
        self.grant();
    }

    /// The adaptive limit is locked, so the last to set it has the last word. [`Bulkhead::grant`] has to follow.
    fn set_places(&self, places: u32) {
        let places = places.clamp(1, MAX);
        let queue = lock(&self.queue.0);
        self.limits.places.store(places, Ordering::Relaxed);
        for (cap, share) in self.limits.caps.iter().zip(queue.shares) {
            cap.store(share.count_of(places), Ordering::Relaxed);
        }
    }

    /// Shows a finished call to the adaptive limit. If another thread does so at the same moment, this one is skipped:
    /// the algorithms live on averages, and nobody should wait for them.
    fn learn(&self, sample: Sample, now: Tick) {
        let Ok(mut adaptive) = self.adaptive.0.try_lock() else { return };
        let Some(found) = adaptive.as_mut() else { return };
        let places = found.step(sample, now);
        if places != self.limit() {
            self.set_places(places);
            drop(adaptive);
            self.grant();
        }
    }

    /// How many places are taken.
    pub fn in_use(&self) -> u32 {
        in_use(self.state.0.load(Ordering::Acquire))
    }

    /// How many calls wait.
    pub fn waiting(&self) -> u32 {
        waiting(self.state.0.load(Ordering::Acquire))
    }

    /// How many places there are now.
    pub fn limit(&self) -> u32 {
        self.limits.places.load(Ordering::Relaxed)
    }

    /// How many places are free; none while more are taken than there are.
    pub fn available(&self) -> u32 {
        self.limit().saturating_sub(self.in_use())
    }

    /// How many calls were turned away.
    pub fn rejections(&self) -> Rejections {
        Rejections {
            full: self.rejected.0.full.load(Ordering::Relaxed),
            queue_full: self.rejected.0.queue_full.load(Ordering::Relaxed),
            shed: self.rejected.0.shed.load(Ordering::Relaxed),
        }
    }
}

impl AsRef<Self> for Bulkhead {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulkhead")
            .field("name", &self.name)
            .field("in_use", &self.in_use())
            .field("waiting", &self.waiting())
            .field("limit", &self.limit())
            .finish_non_exhaustive()
    }
}

impl<B: AsRef<Bulkhead>> Permit<B> {
    #[inline]
    fn new(bulkhead: B, in_flight: u32) -> Self {
        let this = bulkhead.as_ref();
        let taken = if this.limits.adaptive.load(Ordering::Relaxed) { this.clock.precise() } else { UNTIMED };
        Self { bulkhead, in_flight, taken }
    }

    /// Gives the place back and, if the limit is adaptive, shows it how the call ended. `took` is how long the service
    /// took; by default the time since the permit was given.
    pub fn finish(self, ended: Ended, took: Option<Duration>) {
        let this = self.bulkhead.as_ref();
        if self.taken != UNTIMED && ended != Ended::Ignored {
            let now = this.clock.precise();
            let latency = took.unwrap_or_else(|| now.since(self.taken));
            let dropped = ended == Ended::Dropped;
            this.learn(Sample { begun: self.taken, latency, in_flight: self.in_flight, dropped }, now);
        }
    }
}

impl<B: AsRef<Bulkhead>> Drop for Permit<B> {
    #[inline]
    fn drop(&mut self) {
        self.bulkhead.as_ref().release();
    }
}

impl<B: AsRef<Bulkhead>> fmt::Debug for Permit<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// A place in the queue. Dropped, it leaves no trace, and a place in the bulkhead that it was given goes to the next.
struct Waiting<'a> {
    bulkhead: &'a Bulkhead,
    priority: Priority,
    /// Taken out when the wait has ended.
    slot: Option<u32>,
}

impl Waiting<'_> {
    /// Ends the wait: with the place that was given at the last moment, or with none.
    fn give_up(&mut self) -> Result<u32, Reason> {
        let slot = self.slot.take().expect("a wait ends once");
        let mut queue = lock(&self.bulkhead.queue.0);
        match queue.leave(slot) {
            Turn::Granted(in_use) => Ok(in_use),
            Turn::Displaced => Err(Reason::Shed),
            Turn::Waits => {
                let word = self.bulkhead.state.0.fetch_sub(WAITER, Ordering::AcqRel);
                Err(self.bulkhead.lack(in_use(word)))
            }
        }
    }
}

impl Future for Waiting<'_> {
    type Output = Result<u32, Reason>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let slot = self.slot.expect("not polled after its end");
        let mut queue = lock(&self.bulkhead.queue.0);
        let turn = match queue.turn(slot) {
            Turn::Waits => {
                let old = queue.register(slot, context.waker());
                drop(queue);
                drop(old);
                return Poll::Pending;
            }
            Turn::Granted(in_use) => Ok(in_use),
            Turn::Displaced => Err(Reason::Shed),
        };
        queue.leave(slot);
        drop(queue);
        self.slot = None;
        Poll::Ready(turn)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.slot.is_some() && self.give_up().is_ok() {
            self.bulkhead.release();
        }
    }
}

impl fmt::Debug for Waiting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("priority", &self.priority).finish_non_exhaustive()
    }
}
