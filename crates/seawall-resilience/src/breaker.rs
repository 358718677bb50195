//! The circuit breaker: closed, it lets calls pass and watches them; open, it turns them away at once; half open, it
//! lets a few probes decide. (Nygard, *Release It!*, 2007; the parameters follow Resilience4j's.)
//!
//! All state sits in atomics. The fast path is one load to admit and, to observe, one `fetch_add` and one or two bit
//! operations. A control word carries an epoch that changes with every transition, so a result that arrives late
//! never decides a newer state.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use seawall_types::{Period, Ratio};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Name, Outcome, PolicyName, Reason, Rejected};

/// How many calls the breaker looks back on: `100 calls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(u32);

impl Window {
    /// The longest window.
    pub const MAX: u32 = 10_000;

    /// A window of the last `calls` calls; `None` outside 1 to [`Window::MAX`].
    pub const fn calls(calls: u32) -> Option<Self> {
        if calls == 0 || calls > Self::MAX { None } else { Some(Self(calls)) }
    }

    /// The number of calls.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls", self.0)
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Window;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of calls such as `100 calls`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Window, E> {
                let calls = text.trim().strip_suffix("calls").or_else(|| text.trim().strip_suffix("call"));
                calls.and_then(|n| n.trim().parse().ok()).and_then(Window::calls).ok_or_else(|| {
                    E::custom(format!("`{text}` is not a window: write `1 calls` to `{} calls`", Window::MAX))
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Window {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Window".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "How many calls the breaker looks back on: 100 calls.",
            "pattern": r"^\s*[0-9]+\s*calls?\s*$"
        })
    }
}

/// What a breaker does; every field is within its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Opens when this share of the window's calls failed (`>=`).
    pub failure_rate: Ratio,
    /// A call that takes longer is slow; `None` watches no slowness.
    pub slow_call: Option<Period>,
    /// Opens when this share of the window's calls was slow (`>=`).
    pub slow_rate: Ratio,
    /// How many calls the rates look back on.
    pub window: Window,
    /// No verdict before this many calls.
    pub minimum_calls: u32,
    /// How long it stays open before it probes.
    pub open_for: Period,
    /// How many probes decide in the half-open state.
    pub half_open_calls: u16,
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls pass and are watched.
    Closed,
    /// Calls are turned away.
    Open,
    /// A few probes pass and decide.
    HalfOpen,
}

impl State {
    /// The word used in headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A change of state, and what led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// The calls that were looked at.
    pub calls: u32,
    /// How many of them failed.
    pub failed: u32,
    /// How many of them were slow.
    pub slow: u32,
    /// How long it stays that way at least; only for [`State::Open`].
    pub open_for: Duration,
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)?;
        match self.to {
            State::HalfOpen => f.write_str(": the wait is over, probing"),
            _ => write!(f, ": {} of {} calls failed, {} were slow", self.failed, self.calls, self.slow),
        }
    }
}

/// Told of every transition, on the thread of the call that caused it. Must not block.
pub type Listener = Box<dyn Fn(&Transition) + Send + Sync>;

/// A circuit breaker. Share it by reference or `Arc`; all methods take `&self`.
pub struct Breaker {
    name: Name,
    config: Config,
    listener: Listener,
    base: Instant,
    control: AtomicU64,
    /// Milliseconds since `base` until which it stays open; half open, until which its probes have time.
    until: AtomicU64,
    ring: Ring,
    /// How the probes of one half-open state went: `epoch:30 | failed:17 | slow:17`.
    probes: AtomicU64,
}

/// The control word, unpacked: `state:2 | epoch:30 | issued:16 | done:16`.
#[derive(Clone, Copy)]
struct Control {
    state: State,
    epoch: u32,
    issued: u16,
    done: u16,
}

const EPOCH: u32 = (1 << 30) - 1;

impl Control {
    const fn new(state: State, epoch: u32) -> Self {
        Self { state, epoch: epoch & EPOCH, issued: 0, done: 0 }
    }

    const fn pack(self) -> u64 {
        let state = match self.state {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        };
        state << 62 | (self.epoch as u64) << 32 | (self.issued as u64) << 16 | self.done as u64
    }

    const fn unpack(word: u64) -> Self {
        let state = match word >> 62 {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        };
        Self { state, epoch: (word >> 32) as u32 & EPOCH, issued: (word >> 16) as u16, done: word as u16 }
    }
}

/// The right to make one call. Give it back with [`Permit::finish`]; dropping it means that the call was cancelled,
/// which says nothing about the service and frees a probe's place.
#[must_use = "a permit that is dropped at once counts as a cancelled call"]
pub struct Permit<B: AsRef<Breaker>> {
    breaker: B,
    epoch: u32,
    finished: bool,
}

impl Breaker {
    /// A closed breaker. `name` appears in rejections; `listener` hears of transitions.
    pub fn new(name: Name, config: Config, listener: Listener) -> Self {
        Self {
            ring: Ring::new(config.window.get()),
            name,
            config,
            listener,
            base: Instant::now(),
            control: AtomicU64::new(Control::new(State::Closed, 0).pack()),
            until: AtomicU64::new(0),
            probes: AtomicU64::new(0),
        }
    }

    /// Asks to make a call. Never waits.
    ///
    /// # Errors
    /// [`Rejected`] while open (`retry_after` says how long) or while every probe of the half-open state is under way.
    pub fn try_acquire<B: AsRef<Self>>(this: B, now: Instant) -> Result<Permit<B>, Rejected> {
        let epoch = this.as_ref().admit(now)?;
        Ok(Permit { breaker: this, epoch, finished: false })
    }

    fn admit(&self, now: Instant) -> Result<u32, Rejected> {
        let mut word = self.control.load(Ordering::Acquire);
        loop {
            let control = Control::unpack(word);
            let left = || self.until.load(Ordering::Acquire).saturating_sub(self.millis(now));
            let fresh = Control { issued: 1, ..Control::new(State::HalfOpen, control.epoch + 1) };
            let next = match control.state {
                State::Closed => return Ok(control.epoch),
                State::Open => match left() {
                    0 => fresh,
                    left => return Err(self.rejected(Reason::Open, Some(Duration::from_millis(left)))),
                },
                State::HalfOpen if control.issued < self.config.half_open_calls => {
                    Control { issued: control.issued + 1, ..control }
                }
                // Probes that do not come back, such as endless streams, decide nothing: others are sent.
                State::HalfOpen => match left() {
                    0 => fresh,
                    left => return Err(self.rejected(Reason::HalfOpen, Some(Duration::from_millis(left)))),
                },
            };
            if next.epoch != control.epoch {
                // Before the state is visible, or somebody would find its time over already.
                self.until.store(self.millis(now).saturating_add(self.wait()), Ordering::Release);
            }
            match self.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if control.state == State::Open {
                        self.tell(State::Open, State::HalfOpen, (0, 0, 0));
                    }
                    return Ok(next.epoch);
                }
                Err(seen) => word = seen,
            }
        }
    }

    fn wait(&self) -> u64 {
        u64::try_from(self.config.open_for.as_millis()).unwrap_or(u64::MAX)
    }

    fn observe(&self, epoch: u32, outcome: Outcome, took: Duration, now: Instant) {
        let control = Control::unpack(self.control.load(Ordering::Acquire));
        if control.epoch != epoch {
            return; // A late result never decides a newer state.
        }
        if outcome == Outcome::Ignored {
            return self.release(epoch);
        }
        let failed = outcome == Outcome::Failure;
        let slow = self.config.slow_call.is_some_and(|limit| took > limit.get());
        match control.state {
            State::Closed => {
                let head = self.ring.record(failed, slow);
                if failed || slow || head == self.config.minimum_calls {
                    self.judge(epoch, now);
                }
            }
            State::HalfOpen => self.observe_probe(epoch, failed, slow, now),
            State::Open => {}
        }
    }

    /// The cold part of the closed state: runs after a failure, a slow call, or when the minimum is reached.
    fn judge(&self, epoch: u32, now: Instant) {
        let (calls, failed, slow) = self.ring.sums();
        if calls >= self.config.minimum_calls.min(self.config.window.get()) && self.too_bad(calls, failed, slow) {
            let from = Control::new(State::Closed, epoch);
            self.open(from.pack(), State::Closed, epoch, (calls, failed, slow), now);
        }
    }

    fn observe_probe(&self, epoch: u32, failed: bool, slow: bool, now: Instant) {
        let (failures, slows) = self.count_probe(epoch, failed, slow);
        let probes = u32::from(self.config.half_open_calls);
        let mut word = self.control.load(Ordering::Acquire);
        loop {
            let control = Control::unpack(word);
            if control.epoch != epoch {
                return;
            }
            let done = control.done + 1;
            // Enough bad ones settle it before the last probe is back.
            if self.too_bad(probes, failures, slows) {
                return self.open(word, State::HalfOpen, epoch, (u32::from(done), failures, slows), now);
            }
            let last = u32::from(done) >= probes;
            let next = if last {
                // Nobody records calls while it is half open.
                self.ring.clear();
                Control::new(State::Closed, epoch + 1)
            } else {
                Control { done, ..control }
            };
            match self.control.compare_exchange_weak(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if last => return self.tell(State::HalfOpen, State::Closed, (probes, failures, slows)),
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// Adds one probe to the counts of its own half-open state; those of an earlier one are replaced.
    fn count_probe(&self, epoch: u32, failed: bool, slow: bool) -> (u32, u32) {
        const MASK: u64 = (1 << 17) - 1;
        let add = |word: u64| {
            let base = if (word >> 34) as u32 == epoch { word } else { u64::from(epoch) << 34 };
            base + (u64::from(failed) << 17) + u64::from(slow)
        };
        let before = self.probes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some(add(word)));
        let after = add(before.unwrap_or_else(|word| word));
        ((after >> 17 & MASK) as u32, (after & MASK) as u32)
    }

    fn too_bad(&self, calls: u32, failed: u32, slow: u32) -> bool {
        failed >= self.config.failure_rate.count_of(calls)
            || (self.config.slow_call.is_some() && slow >= self.config.slow_rate.count_of(calls))
    }

    /// Moves from `word` to open; does nothing when somebody else has moved on already.
    fn open(&self, mut word: u64, from: State, epoch: u32, sums: (u32, u32, u32), now: Instant) {
        let until = self.millis(now).saturating_add(self.wait());
        loop {
            self.until.store(until, Ordering::Release);
            let next = Control::new(State::Open, epoch + 1).pack();
            match self.control.compare_exchange(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.ring.clear();
                    return self.tell(from, State::Open, sums);
                }
                // In the half-open state the counts may have moved under us; the verdict stands.
                Err(seen) if Control::unpack(seen).epoch == epoch => word = seen,
                Err(_) => return,
            }
        }
    }

    fn release(&self, epoch: u32) {
        // Fails, and so changes nothing, unless this very half-open state still lasts.
        let _ = self.control.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let control = Control::unpack(word);
            (control.epoch == epoch && control.state == State::HalfOpen)
                .then(|| Control { issued: control.issued.saturating_sub(1), ..control }.pack())
        });
    }

    fn tell(&self, from: State, to: State, (calls, failed, slow): (u32, u32, u32)) {
        (self.listener)(&Transition { from, to, calls, failed, slow, open_for: self.config.open_for.get() });
    }

    fn rejected(&self, reason: Reason, retry_after: Option<Duration>) -> Rejected {
        Rejected { policy: PolicyName::Breaker, instance: self.name, reason, retry_after }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX)
    }

    /// Where it stands. An open breaker whose wait is over stays open until the next call comes.
    pub fn state(&self) -> State {
        Control::unpack(self.control.load(Ordering::Acquire)).state
    }

    /// Calls, failures and slow calls in the window.
    pub fn sums(&self) -> (u32, u32, u32) {
        self.ring.sums()
    }
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

impl<B: AsRef<Breaker>> Permit<B> {
    /// Reports how the call ended, and how long the service took: the time from its sending, without any wait before.
    pub fn finish(mut self, outcome: Outcome, took: Duration, now: Instant) {
        self.finished = true;
        self.breaker.as_ref().observe(self.epoch, outcome, took, now);
    }
}

impl<B: AsRef<Breaker>> Drop for Permit<B> {
    fn drop(&mut self) {
        if !self.finished {
            self.breaker.as_ref().release(self.epoch);
        }
    }
}

impl<B: AsRef<Breaker>> fmt::Debug for Permit<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The last `size` calls, one bit each for failed and slow, and their sums; exact and sliding.
struct Ring {
    size: u32,
    /// How many calls have ever been recorded since it was cleared.
    head: AtomicU32,
    failed: Bits,
    slow: Bits,
}

struct Bits {
    words: Box<[AtomicU64]>,
    sum: AtomicU32,
}

impl Ring {
    fn new(size: u32) -> Self {
        Self { size, head: AtomicU32::new(0), failed: Bits::new(size), slow: Bits::new(size) }
    }

    /// Takes the place of the oldest call and returns how many have been recorded.
    fn record(&self, failed: bool, slow: bool) -> u32 {
        let head = self.head.fetch_add(1, Ordering::AcqRel);
        let at = head % self.size;
        if head >= 2 * self.size {
            // Keeps the counter from wrapping; a multiple of the size leaves every place where it is.
            let _ = self.head.compare_exchange(head + 1, head + 1 - self.size, Ordering::AcqRel, Ordering::Relaxed);
        }
        self.failed.set(at, failed);
        self.slow.set(at, slow);
        head + 1
    }

    fn sums(&self) -> (u32, u32, u32) {
        let calls = self.head.load(Ordering::Acquire).min(self.size);
        (calls, self.failed.sum.load(Ordering::Acquire), self.slow.sum.load(Ordering::Acquire))
    }

    fn clear(&self) {
        self.failed.clear();
        self.slow.clear();
        self.head.store(0, Ordering::Release);
    }
}

impl Bits {
    fn new(size: u32) -> Self {
        let words = (0..size.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, sum: AtomicU32::new(0) }
    }

    fn set(&self, at: u32, on: bool) {
        let word = &self.words[at as usize / 64];
        let bit = 1 << (at % 64);
        // The common case, a success over a success, writes nothing.
        if (word.load(Ordering::Relaxed) & bit != 0) == on {
            return;
        }
        if on && word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.sum.fetch_add(1, Ordering::AcqRel);
        } else if !on && word.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.sum.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Every cleared bit takes its own one off the sum, so that a racing `set` cannot make the two disagree.
    fn clear(&self) {
        for word in &self.words {
            let bits = word.swap(0, Ordering::AcqRel).count_ones();
            self.sum.fetch_sub(bits, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests;
