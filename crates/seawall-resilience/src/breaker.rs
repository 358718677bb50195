//! The circuit breaker: closed, it lets calls pass and watches them; open, it turns them away at once; half open, it
//! lets a few probes decide. (Nygard, *Release It!*, 2007; the parameters follow Resilience4j's.)
//!
//! All state sits in atomics. To admit a call of the closed state is one load (`admission.rs`); to observe a success is one
//! `fetch_add` more (`observation.rs`, `window.rs`). The control word carries an epoch that changes with every transition, so a result that arrives
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

mod admission;
mod config;
mod control;
mod history;
#[cfg(test)]
#[cfg(feature = "loom")]
mod loom;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod model;
mod observation;
mod orders;
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
pub(crate) use permit::waits;
pub use permit::{Call, Permit};
pub use window::Sums;

use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Line, Ordering};
use crate::{CallError, Clock, Name, Outcome, Reason, Rejected, Report, Tick};
use control::Control;
use history::History;
use orders::{initial, slow_nanos};
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
    /// Where the window stood when it asked: so many calls, or the clock's microseconds.
    wanted_at: AtomicU64,
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
            wanted_at: AtomicU64::new(0),
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

    fn tell(&self, from: State, to: State, sums: Sums, open_for: Duration) {
        self.tally.moves[to as usize].fetch_add(1, Ordering::Relaxed);
        (self.listener)(&Event::Moved(Transition { from, to, sums, open_for }));
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

#[inline]
const fn micros(tick: Tick) -> u64 {
    tick.nanos() / 1000
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
