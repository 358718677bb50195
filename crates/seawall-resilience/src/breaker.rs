//! The circuit breaker: closed, it lets calls pass and watches them; open, it turns them away at once; half open, it
//! lets a few probes decide. (Nygard, *Release It!*, 2007; the parameters follow Resilience4j's.)
//!
//! All state sits in atomics. To admit a call of the closed state is one load; to observe a success is one `fetch_add`
//! more (see `window.rs`). The control word carries an epoch that changes with every transition, so a result that arrives
//! late never decides a newer state. Thresholds, sizes and the kind of window can be changed while calls are under way.
//!
//! ```text
//!                 limits reached                         a probe went badly, or too many did
//!        closed ------------------> open <--------------------------------------+
//!          ^                         | the wait is over                         |
//!          |                         v                                          |
//!          +------------------- half open: probes -> (ramp: 1% -> 10% -> 50%) --+
//!             they went well
//!
//!        disabled, forced open, metrics only: where somebody has put it, until somebody takes it out
//! ```

mod config;
mod control;
mod history;
#[cfg(test)]
#[cfg(feature = "loom")]
mod loom;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod model;
mod permit;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests;
mod window;

use std::fmt;
use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use arc_swap::ArcSwap;

pub use config::{BreakerConfig, Config, Limits, Mode, Semantics, Verdict, WatchConfig, Window};
pub use control::State;
pub use history::BadCall;
pub use permit::{Call, Permit};
pub use window::Sums;

use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Line, Ordering};
use crate::{CallError, Clock, Name, Outcome, PolicyName, Reason, Rejected, Report, Tick};
use control::{Control, RAMP};
use history::History;
use permit::UNSTARTED;
use window::{Ring, Shape, Slices};

/// A change of state, and what led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// The calls that were looked at.
    pub sums: Sums,
    /// How long it stays that way at least; only for [`State::Open`].
    pub open_for: Duration,
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sums { calls, failed, slow } = self.sums;
        write!(f, "{} -> {}", self.from, self.to)?;
        match (self.from, self.to) {
            (State::Open, State::HalfOpen) => f.write_str(": the wait is over, probing"),
            (State::Closed, State::Open) | (State::HalfOpen, _) => {
                write!(f, ": {failed} of {calls} calls failed, {slow} were slow")
            }
            _ => f.write_str(": so ordered"),
        }
    }
}

/// What a breaker has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It moved to another state.
    Moved(Transition),
    /// The watched thresholds, or all while it is metrics-only, have been reached: it would have opened.
    WouldOpen(Sums),
    /// A call ended; only when asked for by [`Breaker::tell_calls`].
    Call(Report),
    /// A call was turned away; only when asked for by [`Breaker::tell_calls`].
    Rejected(Reason),
}

/// Told of events, on the thread of the call that caused them. Must not block.
pub type Listener = Box<dyn Fn(&Event) + Send + Sync>;

/// What a breaker has counted since it was made; read when asked, so that counting costs the calls nothing more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that ended in a success or a failure while they were watched.
    pub calls: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How many of them were slow.
    pub slow: u64,
    /// Calls that said nothing about the service.
    pub ignored: u64,
    /// Calls that were given up too early to say anything.
    pub cancelled: u64,
    /// Calls that were turned away.
    pub rejected: u64,
    /// Results that came after a change of state.
    pub late: u64,
    /// How often it has moved to each state, in the order of [`State::ALL`].
    pub moves: [u64; State::ALL.len()],
    /// How often the watched thresholds were reached.
    pub would_open: u64,
}

/// Says what a result means.
pub type Judge<T, E> = fn(&Result<T, E>) -> Report;

/// A circuit breaker. Share it by reference or `Arc`; all methods take `&self`, none waits or locks on the way of a
/// call that succeeds or is turned away. At most 5 KiB.
pub struct Breaker {
    hot: Line<Hot>,
    ring: OnceLock<Box<Ring>>,
    slices: OnceLock<Slices>,
    busy: Line<Busy>,
    /// How the probes of one stage went: `epoch:27 | failed:17 | slow:17`.
    probes: AtomicU64,
    /// Calls that a stage of the ramp was asked for.
    asked: AtomicU32,
    /// How often it has opened without having closed.
    opens: AtomicU32,
    /// When the service asked to be called again, in the clock's microseconds.
    wanted: AtomicU64,
    tally: Tally,
    history: History,
    name: Name,
    clock: Clock,
    config: ArcSwap<Config>,
    listener: Listener,
}

/// What every call reads and only transitions and reloads write.
struct Hot {
    control: AtomicU64,
    shape: AtomicU64,
    /// A call that takes more nanoseconds is slow.
    slow: AtomicU64,
    /// [`PENDING`], [`VERBOSE`], [`WATCHES_SLOW`].
    flags: AtomicU32,
    /// Until when it stays open or waits for its probes: `epoch:16 | microseconds:48`.
    until: AtomicU64,
}

/// There were bad calls, and too few calls for a verdict: a success may bring it about.
const PENDING: u32 = 1;
/// Calls are told of, too.
const VERBOSE: u32 = 2;
/// There is such a thing as a slow call.
const WATCHES_SLOW: u32 = 4;

impl Hot {
    #[inline]
    fn has(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    fn flag(&self, flag: u32, on: bool) {
        // Written only where it changes: every call reads this line.
        if self.has(flag) == on {
            return;
        }
        if on {
            self.flags.fetch_or(flag, Ordering::AcqRel);
        } else {
            self.flags.fetch_and(!flag, Ordering::AcqRel);
        }
    }
}

/// What is written while things go wrong.
#[derive(Default)]
struct Busy {
    /// Failures in a row.
    streak: AtomicU32,
    rejected: AtomicU64,
}

#[derive(Default)]
struct Tally {
    /// Calls of windows that have been cleared for another shape.
    past: AtomicU64,
    failed: AtomicU64,
    slow: AtomicU64,
    probed: AtomicU64,
    ignored: AtomicU64,
    cancelled: AtomicU64,
    late: AtomicU64,
    moves: [AtomicU32; State::ALL.len()],
    would_open: AtomicU32,
    /// The watched thresholds are exceeded right now.
    would: AtomicBool,
}

/// Why a call is turned away; small, because every future has room for it.
#[derive(Clone, Copy, Debug)]
struct Refused {
    reason: Reason,
    /// Microseconds until it is worth trying again.
    left: u64,
}

impl Refused {
    /// Nobody knows when.
    const UNKNOWN: u64 = u64::MAX;
}

/// The end of a wait that has none.
const FOREVER: u64 = (1 << 48) - 1;

impl Breaker {
    /// A breaker as `config` says; a value beyond its range becomes the nearest within. `name` appears in rejections;
    /// `listener` hears of transitions.
    pub fn new(name: Name, config: Config, clock: Clock, listener: Listener) -> Self {
        let config = config.bounded();
        let state = initial(config.mode);
        Self {
            hot: Line(Hot {
                control: AtomicU64::new(Control::new(state, 0).pack()),
                shape: AtomicU64::new(Shape::of(&config).word()),
                slow: AtomicU64::new(slow_nanos(&config)),
                flags: AtomicU32::new(if config.slow_call.is_some() { WATCHES_SLOW } else { 0 }),
                until: AtomicU64::new(0),
            }),
            ring: OnceLock::new(),
            slices: OnceLock::new(),
            busy: Line::default(),
            probes: AtomicU64::new(0),
            asked: AtomicU32::new(0),
            opens: AtomicU32::new(0),
            wanted: AtomicU64::new(0),
            tally: Tally::default(),
            history: History::default(),
            name,
            clock,
            config: ArcSwap::from_pointee(config),
            listener,
        }
    }

    /// Asks to make a call. Never waits.
    ///
    /// # Errors
    /// [`Rejected`] while open (`retry_after` says how long), while the half-open state lets no more pass, or while
    /// forced open.
    #[inline]
    pub fn try_acquire<B: AsRef<Self>>(this: B) -> Result<Permit<B>, Rejected> {
        let breaker = this.as_ref();
        let epoch = breaker.admit(|| breaker.clock.now()).map_err(|refused| breaker.rejected(refused))?;
        let started = breaker.clock.now().nanos();
        Ok(Permit { breaker: this, epoch, settled: false, started })
    }

    /// [`Breaker::try_acquire`] at a time that the caller knows.
    ///
    /// # Errors
    /// As there.
    pub fn try_acquire_at<B: AsRef<Self>>(this: B, now: Tick) -> Result<Permit<B>, Rejected> {
        let breaker = this.as_ref();
        let epoch = breaker.admit(|| now).map_err(|refused| breaker.rejected(refused))?;
        Ok(Permit { breaker: this, epoch, settled: false, started: now.nanos() })
    }

    /// A permit whose clock starts only when the call turns out to last: a call that is ready at once pays for no
    /// reading of the clock, unless slow calls are watched.
    #[inline(always)]
    fn acquire_lazily<B: AsRef<Self>>(this: B) -> Result<Permit<B>, (B, Refused)> {
        let breaker = this.as_ref();
        match breaker.admit(|| breaker.clock.now()) {
            Ok(epoch) => {
                let started = if breaker.hot.0.has(WATCHES_SLOW) { breaker.clock.now().nanos() } else { UNSTARTED };
                Ok(Permit { breaker: this, epoch, settled: false, started })
            }
            Err(refused) => Err((this, refused)),
        }
    }

    /// Makes a call under the breaker: `Ok` is a success, `Err` a failure.
    ///
    /// Cancel safe: a dropped future gives back what it took; see [`Permit`] for what that says about the service.
    ///
    /// # Errors
    /// [`CallError::Rejected`] if the breaker turned it away, [`CallError::Inner`] if it failed.
    pub fn call<F, T, E>(&self, future: F) -> Call<F, &Self, Judge<T, E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_with(future, outcome)
    }

    /// Makes a call under the breaker; `judge` says what its result means. A judge that panics counts as a failure.
    ///
    /// # Errors
    /// As for [`Breaker::call`].
    pub fn call_with<F, T, E, J>(&self, future: F, judge: J) -> Call<F, &Self, J>
    where
        F: Future<Output = Result<T, E>>,
        J: FnMut(&Result<T, E>) -> Report,
    {
        Call::new(self, || future, judge)
    }

    /// Makes a call that blocks the thread under the breaker.
    ///
    /// # Errors
    /// As for [`Breaker::call`].
    pub fn call_blocking<T, E>(&self, call: impl FnOnce() -> Result<T, E>) -> Result<T, CallError<E>> {
        let permit = Self::acquire_lazily(self).map_err(|(_, refused)| self.rejected(refused))?;
        let result = call();
        permit.finish(outcome(&result));
        result.map_err(CallError::Inner)
    }

    #[inline(always)]
    fn admit(&self, now: impl FnOnce() -> Tick) -> Result<u32, Refused> {
        let control = Control::unpack(self.hot.0.control.load(Ordering::Acquire));
        match control.state {
            State::Closed | State::Disabled | State::MetricsOnly => Ok(control.epoch),
            State::Open => self.admit_open(now()),
            State::HalfOpen | State::ForcedOpen => self.admit_probe(now()),
        }
    }

    #[inline]
    fn admit_open(&self, now: Tick) -> Result<u32, Refused> {
        match self.left(now) {
            0 => self.admit_probe(now),
            left => Err(self.reject(Reason::Open, Some(left))),
        }
    }

    /// The cold part: the wait is over, it is half open, or somebody has forced it.
    #[cold]
    fn admit_probe(&self, now: Tick) -> Result<u32, Refused> {
        let config = self.config.load();
        let mut word = self.hot.0.control.load(Ordering::Acquire);
        loop {
            let control = Control::unpack(word);
            let first = Control { issued: 1, ..control.next(State::HalfOpen) };
            let next = match control.state {
                State::Closed | State::Disabled | State::MetricsOnly => return Ok(control.epoch),
                State::ForcedOpen => return Err(self.reject(Reason::ForcedOpen, None)),
                State::Open => match self.left(now) {
                    0 => first,
                    left => return Err(self.reject(Reason::Open, Some(left))),
                },
                State::HalfOpen if control.stage > 0 => {
                    let one_in = RAMP[usize::from(control.stage) - 1];
                    if !self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in) {
                        return Err(self.reject(Reason::HalfOpen, None));
                    }
                    return Ok(control.epoch);
                }
                State::HalfOpen if control.issued < config.half_open_calls && !self.lapsed(&config, now) => {
                    Control { issued: control.issued + 1, ..control }
                }
                State::HalfOpen if self.lapse(control, &config, now) => {
                    word = self.hot.0.control.load(Ordering::Acquire);
                    continue;
                }
                // Probes that do not come back, such as endless streams, decide nothing: others are sent.
                State::HalfOpen => match (config.probe_lease, self.left(now)) {
                    (Some(_), 0) => first,
                    (lease, left) => {
                        return Err(self.reject(Reason::HalfOpen, lease.map(|_| left)));
                    }
                },
            };
            if next.epoch != control.epoch {
                // Before the state is visible, or somebody would find its time over already.
                self.extend(next.epoch, config.probe_lease.map_or(FOREVER, |lease| micros(now + *lease)));
            }
            match self.hot.0.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if control.state == State::Open {
                        self.tell(State::Open, State::HalfOpen, Sums::default(), Duration::ZERO);
                    }
                    return Ok(next.epoch);
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// In the exact mode a half-open state whose lease is over has opened, at that very moment.
    fn lapsed(&self, config: &Config, now: Tick) -> bool {
        config.exact() && config.probe_lease.is_some() && self.left(now) == 0
    }

    /// Opens it if it has lapsed, and says so.
    #[cold]
    fn lapse(&self, control: Control, config: &Config, now: Tick) -> bool {
        if control.state != State::HalfOpen || !self.lapsed(config, now) {
            return false;
        }
        let over = Tick::from_nanos((self.hot.0.until.load(Ordering::Acquire) & FOREVER) * 1000);
        let word = self.hot.0.control.load(Ordering::Acquire);
        if Control::unpack(word).epoch == control.epoch {
            self.open(word, config, Sums::default(), over);
        }
        true
    }

    /// Microseconds until the open wait or the probes' lease is over.
    #[inline]
    fn left(&self, now: Tick) -> u64 {
        (self.hot.0.until.load(Ordering::Acquire) & FOREVER).saturating_sub(micros(now))
    }

    /// Sets the end of the wait of the state with this epoch, unless a newer state has set its own.
    fn extend(&self, epoch: u32, until: u64) {
        let tag = epoch as u16;
        let word = u64::from(tag) << 48 | until.min(FOREVER);
        let newer = |seen: u64| (seen >> 48) as u16 != tag && ((seen >> 48) as u16).wrapping_sub(tag) < 1 << 15;
        let update = |seen| (!newer(seen)).then_some(word);
        let _ = self.hot.0.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }

    /// Takes the result of a call that was admitted in `epoch`, at a time that the caller knows or now.
    ///
    /// The report goes to the cold parts by value: a reference would have it written out for every call.
    #[inline(always)]
    fn observe(&self, epoch: u32, started: u64, report: Report, at: Option<Tick>) {
        let hot = &self.hot.0;
        let word = hot.control.load(Ordering::Acquire);
        let flags = hot.flags.load(Ordering::Relaxed);
        let usual = Control::is_closed_in(word, epoch) && report.outcome == Outcome::Success;
        if !usual || flags & VERBOSE != 0 {
            return self.observe_unusual(word, epoch, started, report, at);
        }
        let shape = hot.shape.load(Ordering::Relaxed);
        let mut time = at;
        let mut now = || *time.get_or_insert_with(|| self.clock.now());
        let slow = flags & WATCHES_SLOW != 0 && took(&report, started, &mut now) > hot.slow.load(Ordering::Relaxed);
        if slow {
            return self.observe_slow(shape, epoch, started, report, now());
        }
        if self.record(shape, false, false, &mut now) | (flags & PENDING != 0) {
            self.judge(epoch, now());
        }
    }

    /// A success that took too long.
    #[cold]
    fn observe_slow(&self, shape: u64, epoch: u32, started: u64, report: Report, now: Tick) {
        self.record_unusual(shape, false, true, now);
        self.remember(&report, started, now);
        self.judge(epoch, now);
    }

    #[cold]
    fn observe_unusual(&self, word: u64, epoch: u32, started: u64, report: Report, at: Option<Tick>) {
        let control = Control::unpack(word);
        if self.hot.0.has(VERBOSE) {
            (self.listener)(&Event::Call(report));
        }
        if control.state == State::Disabled {
            return;
        }
        let now = at.unwrap_or_else(|| self.clock.now());
        let lapsed = control.state == State::HalfOpen && self.lapse(control, &self.config.load(), now);
        if control.epoch != epoch || lapsed {
            // A late result never decides a newer state.
            self.tally.late.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if report.outcome == Outcome::Ignored {
            self.tally.ignored.fetch_add(1, Ordering::Relaxed);
            return self.release(epoch);
        }
        let failed = report.outcome == Outcome::Failure;
        let slow_after = self.hot.0.slow.load(Ordering::Relaxed);
        let slow = slow_after != u64::MAX && took(&report, started, || now) > slow_after;
        if failed && let Some(after) = report.retry_after {
            self.wanted.fetch_max(micros(now + after), Ordering::AcqRel);
        }
        if failed || slow {
            self.remember(&report, started, now);
        }
        match control.state {
            State::Closed | State::MetricsOnly => {
                let shape = self.hot.0.shape.load(Ordering::Relaxed);
                let moved = self.record_unusual(shape, failed, slow, now);
                if failed || slow || moved || self.hot.0.has(PENDING) {
                    self.judge(epoch, now);
                }
            }
            State::HalfOpen => self.observe_probe(epoch, failed, slow, now),
            State::Open | State::Disabled | State::ForcedOpen => {}
        }
    }

    /// [`Breaker::record`], away from the way of the usual calls.
    #[cold]
    fn record_unusual(&self, shape: u64, failed: bool, slow: bool, now: Tick) -> bool {
        self.record(shape, failed, slow, || now)
    }

    /// Counts a call in the window; answers whether the window has moved, and a verdict may have changed with it.
    #[inline(always)]
    fn record(&self, shape: u64, failed: bool, slow: bool, now: impl FnOnce() -> Tick) -> bool {
        let size = Shape::size(shape);
        match Shape::kind(shape) {
            0 => {
                self.ring.get_or_init(Box::default).record(size as u32, failed, slow);
                false
            }
            1 => self.slices.get_or_init(Slices::default).record(shape, failed, slow, now()),
            _ => {
                self.slices.get_or_init(Slices::default).count(shape);
                if failed || slow {
                    self.busy.0.streak.fetch_add(1, Ordering::AcqRel);
                } else if self.busy.0.streak.load(Ordering::Relaxed) != 0 {
                    self.busy.0.streak.store(0, Ordering::Release);
                }
                false
            }
        }
    }

    fn remember(&self, report: &Report, started: u64, now: Tick) {
        let failed = report.outcome == Outcome::Failure;
        let known = report.took.is_some() || started != UNSTARTED;
        let duration = known.then(|| Duration::from_nanos(took(report, started, || now)));
        if failed {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
        let slow_after = self.hot.0.slow.load(Ordering::Relaxed);
        if duration.is_some_and(|duration| crate::clock::nanos(duration) > slow_after) {
            self.tally.slow.fetch_add(1, Ordering::Relaxed);
        }
        let cause = if failed { report.cause } else { "slow" };
        self.history.push(BadCall { at: now, took: duration, failed, cause, trace: report.trace });
    }

    /// The cold part of the watched states: runs after a failure, a slow call, when the window has moved, and while bad
    /// calls wait for the minimum. In between no verdict can change: a success makes no rate worse.
    #[cold]
    fn judge(&self, epoch: u32, now: Tick) {
        let config = self.config.load();
        let sums = self.sums_at(now);
        let bad = exceeded(&config, &config.limits, sums);
        let fewest = config.watch.map_or(0, |watch| watch.minimum_calls).max(config.limits.minimum_calls);
        let pending =
            sums.failed + sums.slow > 0 && sums.calls < fewest && !matches!(config.window, Window::Consecutive(_));
        self.hot.0.flag(PENDING, pending);
        let control = Control::unpack(self.hot.0.control.load(Ordering::Acquire));
        if control.epoch != epoch {
            return;
        }
        let watched = config.watch.is_some_and(|limits| exceeded(&config, &limits, sums));
        let would = watched || (bad && control.state == State::MetricsOnly);
        if self.tally.would.load(Ordering::Relaxed) != would
            && self.tally.would.swap(would, Ordering::AcqRel) != would
            && would
        {
            self.tally.would_open.fetch_add(1, Ordering::Relaxed);
            (self.listener)(&Event::WouldOpen(sums));
        }
        if bad && control.state == State::Closed {
            self.open(Control::new(State::Closed, epoch).pack(), &config, sums, now);
        }
    }

    fn observe_probe(&self, epoch: u32, failed: bool, slow: bool, now: Tick) {
        let config = self.config.load();
        let Some((failures, slows)) = self.count_probe(epoch, failed, slow) else {
            // The state has moved on since the caller looked.
            self.tally.late.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.tally.probed.fetch_add(1, Ordering::Relaxed);
        let needed = config.probes_needed();
        let mut word = self.hot.0.control.load(Ordering::Acquire);
        loop {
            let control = Control::unpack(word);
            if control.epoch != epoch {
                return;
            }
            let done = u32::from(control.done) + 1;
            let sums = Sums { calls: done, failed: failures, slow: slows };
            let last = done >= needed;
            let bad = match config.verdict {
                Verdict::All => failures > 0 || (config.slow_call.is_some() && slows > 0),
                // Enough bad ones settle it before the last probe is back; the exact mode waits for it.
                Verdict::Rate | Verdict::Ramp => {
                    let of = if config.exact() { done } else { needed };
                    (last || !config.exact()) && too_many(&config, &config.limits, Sums { calls: of, ..sums })
                }
            };
            if bad {
                return self.open(word, &config, sums, now);
            }
            let ramp = config.verdict == Verdict::Ramp && usize::from(control.stage) < RAMP.len();
            let next = match (last, ramp) {
                (true, true) => Control { stage: control.stage + 1, ..control.next(State::HalfOpen) },
                (true, false) => {
                    // Nobody records calls while it is half open.
                    self.clear();
                    control.next(State::Closed)
                }
                (false, _) => Control { done: control.done.saturating_add(1), ..control },
            };
            match self.hot.0.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if next.state == State::Closed => {
                    self.opens.store(0, Ordering::Release);
                    return self.tell(State::HalfOpen, State::Closed, sums, Duration::ZERO);
                }
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// Adds one probe to the counts of its own stage; those of an earlier one are replaced, those of a later one are not:
    /// then there is nothing to count.
    fn count_probe(&self, epoch: u32, failed: bool, slow: bool) -> Option<(u32, u32)> {
        const MASK: u64 = (1 << 17) - 1;
        let add = |word: u64| {
            let counted = (word >> 34) as u32;
            if control::is_later(counted, epoch) {
                return None;
            }
            let base = if counted == epoch { word } else { u64::from(epoch) << 34 };
            Some(base + (u64::from(failed) << 17) + u64::from(slow))
        };
        let before = self.probes.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        let after = add(before)?;
        Some(((after >> 17 & MASK) as u32, (after & MASK) as u32))
    }

    /// Moves from `word` to open; does nothing when somebody else has moved on already.
    fn open(&self, mut word: u64, config: &Config, sums: Sums, now: Tick) {
        let from = Control::unpack(word);
        let opens = self.opens.load(Ordering::Acquire).saturating_add(1);
        let mut wait = config.open_wait(opens, fastrand::f64());
        let wanted = self.wanted.swap(0, Ordering::AcqRel).saturating_sub(micros(now));
        if config.retry_after && wanted > 0 {
            wait = Duration::from_micros(wanted).min(*config.max_open_for);
        }
        let next = from.next(State::Open);
        // To the exact mode the last moment of the wait still belongs to it.
        self.extend(next.epoch, micros(now + wait).saturating_add(u64::from(config.exact())));
        loop {
            match self.hot.0.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.opens.store(opens, Ordering::Release);
                    self.clear();
                    return self.tell(from.state, State::Open, sums, wait);
                }
                // In the half-open state the counts may have moved under us; the verdict stands.
                Err(seen) if Control::unpack(seen).epoch == from.epoch => word = seen,
                Err(_) => return,
            }
        }
    }

    /// Gives a probe's place back; changes nothing unless this very half-open state still lasts.
    fn release(&self, epoch: u32) {
        let _ = self.hot.0.control.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let control = Control::unpack(word);
            (control.epoch == epoch && control.state == State::HalfOpen && control.stage == 0)
                .then(|| Control { issued: control.issued.saturating_sub(1), ..control }.pack())
        });
    }

    #[cold]
    fn cancelled(&self, epoch: u32, started: u64) {
        if std::thread::panicking() {
            let report = Report { cause: "panicked", ..Outcome::Failure.into() };
            return self.observe(epoch, started, report, None);
        }
        let config = self.config.load();
        let age = if started == UNSTARTED { 0 } else { self.clock.now().nanos().saturating_sub(started) };
        if age >= crate::clock::nanos(*config.cancelled_after) && !config.exact() {
            let report = Report { cause: "given up", ..Outcome::Failure.into() };
            return self.observe(epoch, started, report, None);
        }
        self.tally.cancelled.fetch_add(1, Ordering::Relaxed);
        self.release(epoch);
    }

    fn tell(&self, from: State, to: State, sums: Sums, open_for: Duration) {
        self.tally.moves[to as usize].fetch_add(1, Ordering::Relaxed);
        (self.listener)(&Event::Moved(Transition { from, to, sums, open_for }));
    }

    #[inline]
    fn reject(&self, reason: Reason, left: Option<u64>) -> Refused {
        self.busy.0.rejected.fetch_add(1, Ordering::Relaxed);
        if self.hot.0.has(VERBOSE) {
            (self.listener)(&Event::Rejected(reason));
        }
        Refused { reason, left: left.unwrap_or(Refused::UNKNOWN) }
    }

    /// What the caller is told of it.
    #[inline]
    fn rejected(&self, refused: Refused) -> Rejected {
        let Refused { reason, left } = refused;
        let retry_after = (left != Refused::UNKNOWN).then(|| Duration::from_micros(left));
        Rejected { policy: PolicyName::Breaker, instance: self.name, reason, retry_after }
    }

    /// Everything that was seen is forgotten: a verdict on what comes next is not to rest on it.
    fn clear(&self) {
        self.hot.0.flag(PENDING, false);
        self.wanted.store(0, Ordering::Release);
        self.busy.0.streak.store(0, Ordering::Release);
        if let Some(ring) = self.ring.get() {
            ring.clear();
        }
        if let Some(slices) = self.slices.get() {
            let shape = self.hot.0.shape.load(Ordering::Relaxed);
            self.tally.past.fetch_add(slices.clear(shape), Ordering::Relaxed);
        }
    }

    /// Puts it where the operator wants it: closed or open as a beginning from which the calls decide on; disabled,
    /// forced open or metrics-only until this is called again. The window begins anew.
    pub fn set(&self, state: State) {
        let now = self.clock.now();
        let config = self.config.load();
        let mut word = self.hot.0.control.load(Ordering::Acquire);
        loop {
            let from = Control::unpack(word);
            if from.state == state && state != State::Closed {
                return;
            }
            let next = from.next(state);
            let wait = if state == State::Open { config.open_wait(1, fastrand::f64()) } else { Duration::ZERO };
            self.extend(next.epoch, micros(now + wait));
            match self.hot.0.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.opens.store(u32::from(state == State::Open), Ordering::Release);
                    self.clear();
                    if from.state != state {
                        self.tell(from.state, state, Sums::default(), wait);
                    }
                    return;
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Takes over another configuration without losing state: calls under way, the state, and an open wait stay as they
    /// are; the window stays unless its own kind or size changes.
    pub fn reload(&self, config: Config) {
        let config = std::sync::Arc::new(config.bounded());
        let old = self.config.swap(config.clone());
        let hot = &self.hot.0;
        hot.slow.store(slow_nanos(&config), Ordering::Release);
        hot.flag(WATCHES_SLOW, config.slow_call.is_some());
        let shape = Shape::of(&config).word();
        if shape != hot.shape.load(Ordering::Acquire) {
            // What is under way was admitted under another window: its results would be counted in the wrong one.
            let _ = hot.control.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let control = Control::unpack(word);
                matches!(control.state, State::Closed | State::MetricsOnly).then(|| control.next(control.state).pack())
            });
            self.clear();
            hot.shape.store(shape, Ordering::Release);
        }
        if old.half_open_calls != config.half_open_calls {
            self.probe_anew(&config);
        }
        if old.mode != config.mode {
            self.set(initial(config.mode));
        }
        // A lower minimum may make a verdict out of what is there.
        hot.flag(PENDING, true);
    }

    /// Another number of probes: those that were sent may be all that the new number allows, and what came back may not be
    /// enough for a verdict, so that nobody would ever be let through again.
    fn probe_anew(&self, config: &Config) {
        let hot = &self.hot.0;
        let mut word = hot.control.load(Ordering::Acquire);
        loop {
            let control = Control::unpack(word);
            if control.state != State::HalfOpen {
                return;
            }
            let next = Control { stage: control.stage, ..control.next(State::HalfOpen) };
            let lease = config.probe_lease.map_or(FOREVER, |lease| micros(self.clock.now() + *lease));
            self.extend(next.epoch, lease);
            match hot.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// Tells the listener of every call and rejection too, or no longer.
    pub fn tell_calls(&self, on: bool) {
        self.hot.0.flag(VERBOSE, on);
    }

    /// Whose breaker it is.
    pub const fn name(&self) -> Name {
        self.name
    }

    /// What it was told.
    pub fn config(&self) -> std::sync::Arc<Config> {
        self.config.load_full()
    }

    /// Where it stands. An open breaker whose wait is over stays open until the next call comes.
    pub fn state(&self) -> State {
        let control = Control::unpack(self.hot.0.control.load(Ordering::Acquire));
        let lapsed = control.state == State::HalfOpen && self.lapse(control, &self.config.load(), self.clock.now());
        if lapsed { State::Open } else { control.state }
    }

    /// How long it stays open at least; zero when it is not open or lets the next call probe.
    pub fn open_for(&self) -> Duration {
        if self.state() == State::Open { Duration::from_micros(self.left(self.clock.now())) } else { Duration::ZERO }
    }

    /// The calls that it looks back on.
    pub fn sums(&self) -> Sums {
        self.sums_at(self.clock.now())
    }

    fn sums_at(&self, now: Tick) -> Sums {
        let shape = self.hot.0.shape.load(Ordering::Relaxed);
        match Shape::kind(shape) {
            0 => self.ring.get().map(|ring| ring.sums(Shape::size(shape) as u32)).unwrap_or_default(),
            1 => self.slices.get().map(|slices| slices.sums(shape, now)).unwrap_or_default(),
            _ => {
                let failed = self.busy.0.streak.load(Ordering::Acquire);
                Sums { calls: failed, failed, slow: 0 }
            }
        }
    }

    /// The last calls that went wrong, oldest first: why it opened.
    pub fn bad_calls(&self) -> Vec<BadCall> {
        self.history.calls()
    }

    /// What it has counted since it was made.
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shape = self.hot.0.shape.load(Ordering::Relaxed);
        let live = self.slices.get().map_or(0, |slices| slices.total(shape));
        let ring = self.ring.get().map_or(0, |ring| ring.total());
        Counts {
            calls: get(&self.tally.past) + get(&self.tally.probed) + live + ring,
            failed: get(&self.tally.failed),
            slow: get(&self.tally.slow),
            ignored: get(&self.tally.ignored),
            cancelled: get(&self.tally.cancelled),
            rejected: get(&self.busy.0.rejected),
            late: get(&self.tally.late),
            moves: std::array::from_fn(|to| u64::from(self.tally.moves[to].load(Ordering::Relaxed))),
            would_open: u64::from(self.tally.would_open.load(Ordering::Relaxed)),
        }
    }
}

const fn initial(mode: Mode) -> State {
    match mode {
        Mode::Automatic => State::Closed,
        Mode::Disabled => State::Disabled,
        Mode::ForcedOpen => State::ForcedOpen,
        Mode::MetricsOnly => State::MetricsOnly,
    }
}

fn slow_nanos(config: &Config) -> u64 {
    config.slow_call.map_or(u64::MAX, |slow| crate::clock::nanos(*slow))
}

#[inline]
const fn micros(tick: Tick) -> u64 {
    tick.nanos() / 1000
}

/// Nanoseconds that the service took; zero if nobody knows.
#[inline]
fn took(report: &Report, started: u64, now: impl FnOnce() -> Tick) -> u64 {
    match report.took {
        Some(took) => crate::clock::nanos(took),
        None if started == UNSTARTED => 0,
        None => now().nanos().saturating_sub(started),
    }
}

fn exceeded(config: &Config, limits: &Limits, sums: Sums) -> bool {
    match config.window {
        Window::Consecutive(failures) => sums.failed >= failures,
        Window::Calls(size) => sums.calls >= limits.minimum_calls.min(size) && too_many(config, limits, sums),
        Window::Time(_) => sums.calls >= limits.minimum_calls && too_many(config, limits, sums),
    }
}

fn too_many(config: &Config, limits: &Limits, sums: Sums) -> bool {
    sums.failed >= limits.failure_rate.count_of(sums.calls)
        || (config.slow_call.is_some() && sums.slow >= limits.slow_rate.count_of(sums.calls))
}

/// What a result means where nobody says otherwise: `Ok` is a success, `Err` a failure.
pub fn outcome<T, E>(result: &Result<T, E>) -> Report {
    if result.is_ok() { Outcome::Success } else { Outcome::Failure }.into()
}

impl AsRef<Self> for Breaker {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("name", &self.name).field("state", &self.state()).finish_non_exhaustive()
    }
}
