//! The rate limiter: so many calls in a time, and no more.
//!
//! Two algorithms, each with its whole state in one atomic word:
//!
//! - *GCRA*, the generic cell rate algorithm of ITU-T I.371 and the ATM Forum's Traffic Management 4.0. The word is the
//!   theoretical arrival time: when the next call would come if all came evenly. A call passes unless it is more than
//!   the burst too early. In any time `t` whatever, at most `burst + rate * t` calls pass.
//! - *Token bucket*: whole refills of the rate's count at every boundary of its period, of which at most the burst is
//!   saved, as Resilience4j's `limitForPeriod` and `limitRefreshPeriod` have it. Within a period it lets pass as many
//!   as it has at once; around a boundary, therefore, up to the burst and a refill together.
//!
//! A call that may wait takes its turn in advance (the word goes on, the bucket's below zero) and sleeps until then. If
//! its future is dropped the turn is given back: the last turn by moving the word back, one before others by offering
//! it to the next that would have to wait. Nobody's turn ever moves, so what is given back cannot exceed the rate.
//!
//! What it is not: a limit on calls under way (the [`bulkhead`](crate::bulkhead)), or one shared by processes.

mod rate;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use seawall_types::Period;
use serde::{Deserialize, Serialize};

pub use self::rate::Rate;
use crate::clock::nanos;
use crate::problems::merge;
use crate::sync::{AtomicBool, AtomicU64, Line, Mutex, Ordering, lock};
use crate::{Clock, Name, PolicyName, Problems, Reason, Rejected, Tick};

/// How often a service may be called. Without a `rate` there is no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitConfig {
    /// `false` switches it off. Default true, once there is a `rate`.
    pub enabled: Option<bool>,
    /// `gcra` spreads calls evenly beyond the burst; `token_bucket` refills at once at every period's beginning.
    /// Default gcra.
    pub algorithm: Option<Algorithm>,
    /// How many calls in which time: `100/s`, `10/500ms`, `5/m`. Default: no limit.
    pub rate: Option<Rate>,
    /// How many calls may come at once after a pause, 1 to 1000000. Default: the rate's count. A token bucket that
    /// holds less than that refills no more than it holds.
    #[schemars(range(min = 1, max = 1000000))]
    pub burst: Option<u32>,
    /// The longest that a call waits for its turn; one that would have to wait longer is turned away at once.
    /// Default 0s: none waits. At most 1h.
    pub wait: Option<Period>,
}

/// How calls are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// The generic cell rate algorithm: even, and exact over any time.
    #[default]
    Gcra,
    /// Whole refills at the beginning of each period.
    TokenBucket,
}

/// The largest burst.
const MAX_BURST: u32 = 1_000_000;
/// No call waits longer.
const MAX_WAIT: Period = Period::secs(3600);
/// A burst that takes longer to come back is a mistake, and would leave the range of the state.
const MAX_REFILL: Duration = Duration::from_secs(366 * 24 * 3600);

#[allow(dead_code, reason = "called as soon as PolicyConfig has the field")]
impl RateLimitConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    pub(crate) fn or(&self, base: &Self) -> Self {
        merge!(self, base; enabled, algorithm, rate, burst, wait)
    }

    /// Every value that is out of its range.
    pub(crate) fn problems(&self, found: &mut Problems) {
        found.range("rate_limit.burst", self.burst, 1, MAX_BURST);
        found.range("rate_limit.wait", self.wait, Period::default(), MAX_WAIT);
        if let (Some(rate), Some(burst)) = (self.rate, self.burst)
            && rate.interval().saturating_mul(burst) > MAX_REFILL
        {
            found.add("rate_limit.burst", format!("of {burst} would take more than a year to come back at {rate}"));
        }
    }

    /// What has no effect for want of something else.
    pub(crate) fn idle(&self, found: &mut Problems) {
        if self.rate.is_none() {
            found.idle("rate_limit.algorithm", self.algorithm, Some(Algorithm::default()), "rate");
            found.idle("rate_limit.burst", self.burst, None, "rate");
            found.idle("rate_limit.wait", self.wait, Some(Period::default()), "rate");
        }
    }

    /// Complete, or `None` where nothing is limited.
    pub(crate) fn resolve(&self) -> Option<Config> {
        let rate = self.rate.filter(|_| self.enabled.unwrap_or(true))?;
        let most = MAX_REFILL.as_nanos() / rate.interval().as_nanos();
        let most = u32::try_from(most).unwrap_or(MAX_BURST).clamp(1, MAX_BURST);
        Some(Config {
            algorithm: self.algorithm.unwrap_or_default(),
            rate,
            burst: self.burst.unwrap_or(rate.count()).clamp(1, most),
            wait: self.wait.unwrap_or_default().min(MAX_WAIT),
        })
    }
}

/// What a rate limiter does; every field is within its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How calls are counted.
    pub algorithm: Algorithm,
    /// How many calls in which time.
    pub rate: Rate,
    /// How many calls may come at once, at least 1.
    pub burst: u32,
    /// The longest that a call waits; zero turns it away at once.
    pub wait: Period,
}

/// A rate limiter; share it by reference or `Arc`. Lock-free, but for what happens to turns that are given back.
#[derive(Debug)]
pub struct RateLimiter {
    name: Name,
    clock: Clock,
    /// Where the limiter's own nanoseconds begin.
    base: Tick,
    /// The generation (4 bits), and what its plan makes of the other 60.
    word: Line<AtomicU64>,
    /// The plans of the current generation and of the one before or after, by the generation's last bit.
    plans: [Slot; 2],
    /// [`Config::wait`] in nanoseconds.
    wait: AtomicU64,
    /// Whether there may be something in `book.turns`: without it nobody has to look.
    returned: AtomicBool,
    book: Mutex<Book>,
}

/// What happens seldom, and so is behind a lock.
#[derive(Debug)]
struct Book {
    config: Config,
    /// Turns that were given back while there were later ones: when, and how many. There are never more than calls
    /// that could wait, since those that are over are thrown out when another comes in.
    turns: BTreeMap<u64, u32>,
}

impl RateLimiter {
    /// A limiter with its whole burst in it. `name` appears in rejections. The time is taken from
    /// [`Clock::precise`]: a millisecond is too coarse for a thousand calls a second.
    pub fn new(name: Name, config: Config, clock: Clock) -> Self {
        let base = clock.precise();
        let plan = Plan::new(&config, 0);
        let plans = [Slot::default(), Slot::default()];
        plans[0].write(plan);
        Self {
            name,
            clock,
            base,
            word: Line(AtomicU64::new(word(0, plan.full()))),
            plans,
            wait: AtomicU64::new(nanos(config.wait.get())),
            returned: AtomicBool::new(false),
            book: Mutex::new(Book { config, turns: BTreeMap::new() }),
        }
    }

    /// Whether a call may pass now. It does not wait.
    ///
    /// # Errors
    /// [`Rejected`] with `limited`, and after which time one call would pass if no other came before it.
    #[inline]
    pub fn try_acquire(&self) -> Result<(), Rejected> {
        self.take(1, || self.clock.precise())
    }

    /// Whether `n` calls may pass now, all or none. Zero always may, more than the burst never.
    ///
    /// # Errors
    /// As [`RateLimiter::try_acquire`], for `n` calls; without a time if they can never pass together.
    #[inline]
    pub fn try_acquire_n(&self, n: u32) -> Result<(), Rejected> {
        self.take(n, || self.clock.precise())
    }

    /// [`RateLimiter::try_acquire_n`] at `now`, of the limiter's own clock.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn try_acquire_at(&self, now: Tick, n: u32) -> Result<(), Rejected> {
        self.take(n, || now)
    }

    #[inline]
    fn take(&self, n: u32, clock: impl Fn() -> Tick) -> Result<(), Rejected> {
        if n == 0 {
            return Ok(());
        }
        let mut view = View::new(self, clock);
        loop {
            let taken = view.plan().take(view.value(), view.now, n);
            if taken.wait > 0 {
                if view.refresh() {
                    continue;
                }
                return Err(self.limited(taken.wait));
            }
            if view.replace(taken.value) {
                return Ok(());
            }
        }
    }

    /// Passes when the call's turn has come: at once within the rate, else after at most the configured wait and no
    /// more than `limit`. A call that would have to wait longer is turned away at once, without waiting.
    /// Cancel safe: a future that is dropped while it waits gives its turn back.
    ///
    /// # Errors
    /// As [`RateLimiter::try_acquire`].
    pub async fn acquire(&self, limit: Duration) -> Result<(), Rejected> {
        if let Some(turn) = self.reserve(limit, || self.clock.precise())? {
            tokio::time::sleep(turn.wait).await;
            turn.keep();
        }
        Ok(())
    }

    /// Whether a call that was turned away now may pass after a wait of at most `limit`: what [`RateLimiter::acquire`]
    /// would decide, unless others come in between.
    pub(crate) fn may_wait(&self, rejected: &Rejected, limit: Duration) -> bool {
        let most = self.wait.load(Ordering::Relaxed).min(nanos(limit));
        let soon = rejected.retry_after.is_some_and(|after| nanos(after) <= most);
        most > 0 && (soon || self.returned.load(Ordering::Relaxed))
    }

    /// Takes a turn, now or later; `None` passes at once.
    fn reserve(&self, limit: Duration, clock: impl Fn() -> Tick) -> Result<Option<Turn<'_>>, Rejected> {
        let most = self.wait.load(Ordering::Relaxed).min(nanos(limit));
        let mut view = View::new(self, clock);
        loop {
            let taken = view.plan().take(view.value(), view.now, 1);
            if taken.wait > 0 && view.refresh() {
                continue;
            }
            if taken.wait > 0 {
                let until = view.now.saturating_add(taken.wait.min(most));
                if let Some(due) = self.reuse(generation(view.word), view.now, until) {
                    return Ok(Some(view.turn(due)));
                }
                if taken.wait > most {
                    return Err(self.limited(taken.wait));
                }
            }
            if view.replace(taken.value) {
                return Ok((taken.wait > 0).then(|| view.turn(view.now + taken.wait)));
            }
        }
    }

    /// The first turn that somebody has given back, if it comes not after `until`.
    fn reuse(&self, generation: u64, now: u64, until: u64) -> Option<u64> {
        if !self.returned.load(Ordering::Relaxed) {
            return None;
        }
        let mut book = lock(&self.book);
        if generation != self.generation() {
            return None;
        }
        self.clear(&mut book, now);
        let due = book.turns.first_key_value().map(|(due, _)| *due).filter(|due| *due <= until)?;
        self.strike(&mut book, due);
        Some(due)
    }

    /// Undoes a turn that nobody will take.
    fn give_back(&self, mut due: u64, generation: u64, now: u64) {
        let mut book = lock(&self.book);
        self.clear(&mut book, now);
        let mut from_book = false;
        loop {
            let seen = self.word.0.load(Ordering::Acquire);
            // What was taken under other rules has been carried over into the new ones, and stays taken.
            if generation != self::generation(seen) {
                return;
            }
            let last = self.plan(seen).last(seen & VALUE, now).filter(|last| last.due == due);
            let Some(last) = last else {
                // Others come after it. Their turns are promised, so this one is left for somebody else, and is lost
                // if its time has come.
                if !from_book && due > now {
                    *book.turns.entry(due).or_insert(0) += 1;
                    self.returned.store(true, Ordering::Relaxed);
                }
                return;
            };
            if self.replace(seen, last.without).is_err() {
                continue;
            }
            if from_book {
                self.strike(&mut book, due);
            }
            // The turn before it may have been given back earlier, and is now the last.
            match book.turns.last_key_value() {
                Some((before, _)) => (due, from_book) = (*before, true),
                None => return,
            }
        }
    }

    /// Throws out the turns whose time has come.
    fn clear(&self, book: &mut Book, now: u64) {
        while book.turns.first_entry().is_some_and(|turn| *turn.key() <= now) {
            book.turns.pop_first();
        }
        self.returned.store(!book.turns.is_empty(), Ordering::Relaxed);
    }

    /// Takes one turn at `due` out of the book.
    fn strike(&self, book: &mut Book, due: u64) {
        if let Some(count) = book.turns.get_mut(&due) {
            *count -= 1;
            if *count == 0 {
                book.turns.remove(&due);
            }
        }
        self.returned.store(!book.turns.is_empty(), Ordering::Relaxed);
    }

    /// How many calls would pass now.
    pub fn available(&self) -> u32 {
        let now = self.own(self.clock.precise());
        let seen = self.word.0.load(Ordering::Acquire);
        self.plan(seen).available(seen & VALUE, now)
    }

    /// Takes all that is left, as when a service says that its limit is reached: the next call passes when a single one
    /// has come back.
    pub fn drain(&self) {
        let now = self.own(self.clock.precise());
        let mut seen = self.word.0.load(Ordering::Acquire);
        while let Err(other) = self.replace(seen, self.plan(seen).drained(seen & VALUE, now)) {
            seen = other;
        }
    }

    /// What it does at present.
    pub fn config(&self) -> Config {
        lock(&self.book).config.clone()
    }

    /// Goes on under other rules. What has been taken stays taken: with 80 of 100 used, a burst of 150 leaves 70, one
    /// of 50 leaves none for the time that 30 take to come back. Calls that wait keep their turns; of these, those that
    /// are given up afterwards are not given back.
    pub fn reload(&self, config: Config) {
        let mut book = lock(&self.book);
        self.wait.store(nanos(config.wait.get()), Ordering::Relaxed);
        let rules = |config: &Config| (config.algorithm, config.rate, config.burst);
        if rules(&config) != rules(&book.config) {
            let now = self.own(self.clock.precise());
            let mut seen = self.word.0.load(Ordering::Acquire);
            let old = self.plan(seen);
            let new = Plan::new(&config, now).following(old);
            let next = (generation(seen) + 1) & GENERATION;
            // Nobody reads this plan before the word says so. One who is as late as a whole round of generations finds
            // the word changed.
            self.plans[next as usize & 1].write(new);
            loop {
                let value = new.carry(old, seen & VALUE, now);
                match self.word.0.compare_exchange(seen, word(next, value), Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break,
                    Err(other) => seen = other,
                }
            }
            book.turns.clear();
            self.returned.store(false, Ordering::Relaxed);
        }
        book.config = config;
    }

    /// Nanoseconds since this limiter began.
    #[inline]
    fn own(&self, now: Tick) -> u64 {
        now.nanos().saturating_sub(self.base.nanos()).min(VALUE)
    }

    #[inline]
    fn plan(&self, seen: u64) -> Plan {
        self.plans[generation(seen) as usize & 1].read()
    }

    fn generation(&self) -> u64 {
        generation(self.word.0.load(Ordering::Acquire))
    }

    /// Changes the value within its generation.
    #[inline]
    fn replace(&self, seen: u64, value: u64) -> Result<u64, u64> {
        let next = seen & !VALUE | value;
        self.word.0.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire)
    }

    #[cold]
    fn limited(&self, wait: u64) -> Rejected {
        let retry_after = (wait != NEVER).then(|| Duration::from_nanos(wait));
        Rejected {
            policy: PolicyName::RateLimit,
            instance: self.name,
            reason: Reason::Limited,
            retry_after,
            begun: false,
        }
    }
}

impl AsRef<Self> for RateLimiter {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// What a call has seen of a limiter.
struct View<'a, C> {
    limiter: &'a RateLimiter,
    clock: C,
    word: u64,
    now: u64,
    /// Whether the time was read after the word.
    fresh: bool,
}

impl<'a, C: Fn() -> Tick> View<'a, C> {
    /// The word is read before the time. The other way round, a thread that is held up in between for some milliseconds
    /// would find the word of a later time, take that for debt, and turn a call away that is within the rate.
    #[inline]
    fn new(limiter: &'a RateLimiter, clock: C) -> Self {
        let word = limiter.word.0.load(Ordering::Acquire);
        let now = limiter.own(clock());
        Self { limiter, clock, word, now, fresh: true }
    }

    #[inline]
    fn plan(&self) -> Plan {
        self.limiter.plan(self.word)
    }

    #[inline]
    const fn value(&self) -> u64 {
        self.word & VALUE
    }

    /// Puts another value in the place of the one that was seen; if somebody else was quicker, his is seen now.
    #[inline]
    fn replace(&mut self, value: u64) -> bool {
        let replaced = self.limiter.replace(self.word, value);
        // A time from before the word is good enough to pass, and is not good enough to be turned away.
        (self.word, self.fresh) = (replaced.err().unwrap_or(self.word), replaced.is_ok());
        replaced.is_ok()
    }

    /// Reads the time anew, unless it is later than the word already.
    fn refresh(&mut self) -> bool {
        let stale = !self.fresh;
        if stale {
            (self.now, self.fresh) = (self.limiter.own((self.clock)()), true);
        }
        stale
    }

    fn turn(&self, due: u64) -> Turn<'a> {
        let wait = Duration::from_nanos(due.saturating_sub(self.now));
        Turn { limiter: self.limiter, due, wait, generation: generation(self.word), kept: false }
    }
}

/// A turn that has been taken in advance; given back when dropped, unless it is kept.
#[derive(Debug)]
struct Turn<'a> {
    limiter: &'a RateLimiter,
    due: u64,
    /// From when it was taken until it is due.
    wait: Duration,
    generation: u64,
    kept: bool,
}

impl Turn<'_> {
    /// The call has been let through.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let now = self.limiter.own(self.limiter.clock.precise());
            self.limiter.give_back(self.due, self.generation, now);
        }
    }
}

/// The bits of a value.
const VALUE: u64 = (1 << 60) - 1;
/// The largest generation. Sixteen are enough that nobody is so late as to take a word for the one that he has read.
const GENERATION: u64 = 15;
/// A wait that does not end.
const NEVER: u64 = u64::MAX;

const fn word(generation: u64, value: u64) -> u64 {
    generation << 60 | value
}

const fn generation(word: u64) -> u64 {
    word >> 60
}

/// The arithmetic of one algorithm, in nanoseconds since the limiter began, on a state of 60 bits that is kept elsewhere. Pure:
/// for those who keep a state for each of many callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The value is the theoretical arrival time. A call costs an `interval`; one that is more than `tolerance` early
    /// (the burst, less the call itself) has to wait. 36 years fit.
    Gcra {
        /// What a call costs, in nanoseconds.
        interval: u64,
        /// How early a call may be, itself included, in nanoseconds.
        tolerance: u64,
    },
    /// The value is a period's number (36 bits) and the tokens left in it (24 bits, below zero if turns of later periods are
    /// taken).
    Bucket {
        /// When the first period begins, in nanoseconds.
        origin: u64,
        /// How long one is, in nanoseconds.
        period: u64,
        /// The tokens of a refill.
        count: u32,
        /// The most that there are.
        burst: u32,
    },
}

/// What taking comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The state when it is done. Without it nothing is taken.
    pub value: u64,
    /// How many nanoseconds the call would have to wait, 0 if it may pass; [`Plan::NEVER`] if it cannot be done.
    pub wait: u64,
}

/// The last turn that is promised.
struct Last {
    due: u64,
    /// The state without it.
    without: u64,
}

/// The bits of a period's number. They go round: two years of milliseconds.
const CYCLES: u64 = (1 << 36) - 1;
/// A clock that was read a little earlier than another's may name an earlier period; a distance beyond this is one
/// back. (Only a bucket that rests for years is taken for one from the future, and is empty for the rest of them.)
const BEHIND: u64 = CYCLES / 16 * 15;
/// The tokens are kept as that many more, so that the field is never negative.
const ZERO: i64 = 1 << 23;

impl Plan {
    /// A wait that does not end.
    pub const NEVER: u64 = NEVER;

    /// What the rules come to for a limiter whose first period begins at `origin` nanoseconds.
    pub fn new(config: &Config, origin: u64) -> Self {
        let interval = nanos(config.rate.interval());
        match config.algorithm {
            Algorithm::Gcra => Self::Gcra { interval, tolerance: interval.saturating_mul(config.burst.into()) },
            Algorithm::TokenBucket => Self::Bucket {
                origin,
                period: nanos(config.rate.per().get()),
                // What does not fit is not refilled, not even for those who wait: they would all pass at once.
                count: config.rate.count().min(config.burst),
                burst: config.burst,
            },
        }
    }

    /// Keeps the boundaries where they are if the period is the same.
    fn following(self, old: Self) -> Self {
        match (self, old) {
            (Self::Bucket { period, count, burst, .. }, Self::Bucket { origin, period: before, .. })
                if period == before =>
            {
                Self::Bucket { origin, period, count, burst }
            }
            _ => self,
        }
    }

    /// The value of a limiter that has not been used.
    pub fn full(self) -> u64 {
        match self {
            Self::Gcra { .. } => 0,
            Self::Bucket { burst, .. } => Bucket { cycle: 0, tokens: burst.into() }.pack(),
        }
    }

    /// What it comes to when `n` calls are to pass at `now`, all or none.
    #[inline]
    pub fn take(self, value: u64, now: u64, n: u32) -> Taken {
        match self {
            Self::Gcra { interval, tolerance } => {
                let cost = interval.saturating_mul(n.into());
                let next = value.max(now).saturating_add(cost);
                let wait = next.saturating_sub(now.saturating_add(tolerance));
                // More than the burst would be too early for ever.
                Taken { value: next & VALUE, wait: if cost > tolerance || next > VALUE { NEVER } else { wait } }
            }
            Self::Bucket { count, burst, .. } => {
                let bucket = self.refilled(value, now);
                let tokens = bucket.tokens - i64::from(n);
                let wait = if n > burst || tokens < -ZERO {
                    NEVER
                } else if tokens >= 0 {
                    0
                } else {
                    let refills = tokens.unsigned_abs().div_ceil(count.into());
                    self.boundary(bucket.cycle, refills, now).saturating_sub(now)
                };
                Taken { value: Bucket { cycle: bucket.cycle, tokens: tokens.max(-ZERO) }.pack(), wait }
            }
        }
    }

    /// The last turn, and the state as if it had not been taken. `None` if none is to come, or if it cannot be undone.
    fn last(self, value: u64, now: u64) -> Option<Last> {
        match self {
            Self::Gcra { interval, tolerance } => {
                // Undone, even if its time has come: the arrival time is then what it was before.
                Some(Last { due: value.checked_sub(tolerance)?, without: value.checked_sub(interval)? })
            }
            Self::Bucket { count, .. } => {
                let Bucket { cycle, tokens } = self.refilled(value, now);
                if tokens >= 0 {
                    return None;
                }
                let due = self.boundary(cycle, tokens.unsigned_abs().div_ceil(count.into()), now);
                Some(Last { due, without: Bucket { cycle, tokens: tokens + 1 }.pack() })
            }
        }
    }

    /// How many calls would pass at `now`.
    pub fn available(self, value: u64, now: u64) -> u32 {
        let available = match self {
            Self::Gcra { interval, tolerance } => tolerance.saturating_sub(value.saturating_sub(now)) / interval,
            Self::Bucket { .. } => self.refilled(value, now).tokens.max(0).unsigned_abs(),
        };
        u32::try_from(available).unwrap_or(u32::MAX)
    }

    /// How many nanoseconds after `now` there is more than now: when all has come back, or the next refill.
    pub fn reset(self, value: u64, now: u64) -> u64 {
        match self {
            Self::Gcra { .. } => value.saturating_sub(now),
            Self::Bucket { .. } => self.boundary(self.cycle(now), 1, now).saturating_sub(now),
        }
    }

    fn drained(self, value: u64, now: u64) -> u64 {
        match self {
            Self::Gcra { tolerance, .. } => value.max(now.saturating_add(tolerance)).min(VALUE),
            Self::Bucket { .. } => {
                let Bucket { cycle, tokens } = self.refilled(value, now);
                Bucket { cycle, tokens: tokens.min(0) }.pack()
            }
        }
    }

    /// The state that has as much taken as `value` had under `old`.
    fn carry(self, old: Self, value: u64, now: u64) -> u64 {
        // A GCRA keeps parts of calls: what is taken is a fraction of its interval.
        let (taken, unit) = match old {
            Self::Gcra { interval, .. } => (i128::from(value.saturating_sub(now)), i128::from(interval)),
            Self::Bucket { burst, .. } => (i128::from(i64::from(burst) - old.refilled(value, now).tokens), 1),
        };
        match self {
            Self::Gcra { interval, .. } => {
                let nanos = (taken * i128::from(interval) + unit - 1) / unit;
                u64::try_from(nanos).map_or(VALUE, |nanos| now.saturating_add(nanos).min(VALUE))
            }
            Self::Bucket { burst, .. } => {
                let tokens = i128::from(burst) - (taken + unit - 1) / unit;
                let tokens = i64::try_from(tokens).unwrap_or(-ZERO).max(-ZERO);
                // A reader with a later clock may have begun a period that goes on: its refill is not given twice.
                let goes_on = matches!((self, old), (Self::Bucket { origin, period, .. },
                    Self::Bucket { origin: o, period: p, .. }) if origin == o && period == p);
                let cycle = if goes_on { old.refilled(value, now).cycle } else { self.cycle(now) };
                Bucket { cycle, tokens }.pack()
            }
        }
    }

    /// The number of the period that `now` is in.
    fn cycle(self, now: u64) -> u64 {
        match self {
            Self::Gcra { .. } => 0,
            Self::Bucket { origin, period, .. } => (now.saturating_sub(origin) / period) & CYCLES,
        }
    }

    /// The bucket of `value` with every refill up to `now`.
    #[inline]
    fn refilled(self, value: u64, now: u64) -> Bucket {
        let bucket = Bucket::unpack(value);
        let Self::Bucket { count, burst, .. } = self else { return bucket };
        let cycle = self.cycle(now);
        let passed = cycle.wrapping_sub(bucket.cycle) & CYCLES;
        if passed == 0 || passed > BEHIND {
            return bucket;
        }
        // At most 2^36 refills of 2^20 each.
        let tokens = bucket.tokens + passed as i64 * i64::from(count);
        Bucket { cycle, tokens: tokens.min(burst.into()) }
    }

    /// When the period `after` periods after `cycle` begins; `cycle` is that of `now`, or a later one.
    fn boundary(self, cycle: u64, after: u64, now: u64) -> u64 {
        let Self::Bucket { origin, period, .. } = self else { return now };
        let ahead = cycle.wrapping_sub(self.cycle(now)) & CYCLES;
        let periods = now.saturating_sub(origin) / period + ahead;
        origin.saturating_add(periods.saturating_add(after).saturating_mul(period))
    }
}

/// The value of a bucket.
#[derive(Clone, Copy)]
struct Bucket {
    cycle: u64,
    tokens: i64,
}

impl Bucket {
    const fn pack(self) -> u64 {
        self.cycle << 24 | (self.tokens + ZERO) as u64
    }

    const fn unpack(value: u64) -> Self {
        Self { cycle: value >> 24, tokens: (value & 0xff_ffff) as i64 - ZERO }
    }
}

/// A plan in atomics. Read torn, it is never used: the word has changed since.
#[derive(Debug)]
struct Slot {
    /// Count and burst of a bucket; zero for GCRA.
    counts: AtomicU64,
    /// Interval or period.
    step: AtomicU64,
    /// Tolerance or origin.
    other: AtomicU64,
}

impl Default for Slot {
    fn default() -> Self {
        Self { counts: AtomicU64::new(0), step: AtomicU64::new(1), other: AtomicU64::new(0) }
    }
}

impl Slot {
    #[inline]
    fn read(&self) -> Plan {
        let counts = self.counts.load(Ordering::Relaxed);
        let (step, other) = (self.step.load(Ordering::Relaxed), self.other.load(Ordering::Relaxed));
        if counts == 0 {
            return Plan::Gcra { interval: step, tolerance: other };
        }
        Plan::Bucket { origin: other, period: step, count: (counts >> 32) as u32, burst: counts as u32 }
    }

    fn write(&self, plan: Plan) {
        let (counts, step, other) = match plan {
            Plan::Gcra { interval, tolerance } => (0, interval, tolerance),
            Plan::Bucket { origin, period, count, burst } => {
                (u64::from(count) << 32 | u64::from(burst), period, origin)
            }
        };
        self.counts.store(counts, Ordering::Relaxed);
        self.step.store(step, Ordering::Relaxed);
        self.other.store(other, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[cfg(feature = "loom")]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn limiter(algorithm: Algorithm, burst: u32) -> Arc<RateLimiter> {
        let rate = Rate::new(1, Period::secs(1)).expect("in range");
        let config = Config { algorithm, rate, burst, wait: Period::secs(60) };
        Arc::new(RateLimiter::new("payment".into(), config, Clock::manual().0))
    }

    #[test]
    fn one_of_two_gets_the_last_place() {
        for algorithm in [Algorithm::Gcra, Algorithm::TokenBucket] {
            loom::model(move || {
                let limiter = limiter(algorithm, 1);
                let other = thread::spawn({
                    let limiter = limiter.clone();
                    move || limiter.try_acquire().is_ok()
                });
                let mine = limiter.try_acquire().is_ok();
                assert!(mine ^ other.join().expect("it does not panic"));
            });
        }
    }

    #[test]
    fn a_reload_forgets_nothing_that_was_taken_meanwhile() {
        loom::model(|| {
            let limiter = limiter(Algorithm::Gcra, 2);
            let other = thread::spawn({
                let limiter = limiter.clone();
                move || limiter.try_acquire().is_ok()
            });
            let config = Config { algorithm: Algorithm::TokenBucket, ..limiter.config() };
            limiter.reload(config);
            assert!(other.join().expect("it does not panic"));
            assert_eq!(limiter.available(), 1);
        });
    }

    #[test]
    fn turns_given_back_at_once_leave_nothing_behind() {
        for algorithm in [Algorithm::Gcra, Algorithm::TokenBucket] {
            loom::model(move || {
                let limiter = limiter(algorithm, 1);
                assert!(limiter.try_acquire().is_ok());
                let take = |limiter: &RateLimiter| drop(limiter.reserve(Duration::MAX, Tick::default));
                let other = thread::spawn({
                    let limiter = limiter.clone();
                    move || take(&limiter)
                });
                take(&limiter);
                other.join().expect("it does not panic");
                let next = limiter.reserve(Duration::MAX, Tick::default);
                assert_eq!(next.expect("there is time").expect("it waits").wait, Duration::from_secs(1));
            });
        }
    }
}
