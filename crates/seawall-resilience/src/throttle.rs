//! The adaptive throttler: turns calls away here that the service would turn away there.
//!
//! From Google's *Site Reliability Engineering*, "Handling Overload", client-side throttling: a service that is
//! overloaded spends its time on saying no, so each client watches how much of what it asks is accepted, and keeps back
//! by itself, at random, with the probability
//!
//! ```text
//! (requests - k * accepts) / (requests + 1), never less than 0
//! ```
//!
//! over the last `window`, where `requests` counts those that were kept back too. With `k` of 2, a service gets about
//! twice what it accepts. In contrast to a breaker there is no state to fall into: it presses as hard as it is pressed.
//! Here it never keeps back more than `max_reject`, so that a recovery is noticed.
//!
//! One difference: a call is counted when it ends, together with its answer, rather than when it begins. Slow calls under
//! way therefore do not look like refusals, and a service that is well is never throttled. Counters are ten slices of
//! the window, each a number and a count in one atomic word; a slice that is out of date is begun anew by whoever writes
//! it first. While nothing is refused, admission is a single load.

use schemars::JsonSchema;
use seawall_types::{Period, Ratio};
use serde::{Deserialize, Serialize};

use crate::clock::nanos;
use crate::problems::merge;
use crate::sync::{AtomicU32, AtomicU64, Line, Ordering};
use crate::{Clock, Name, PolicyName, Problems, Reason, Rejected, Tick};

/// When to keep calls back from a service that refuses many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ThrottleConfig {
    /// `true` switches it on with all defaults, `false` off. Default: on if any of the others is given.
    pub enabled: Option<bool>,
    /// How many times what it accepts a service is asked, 1 to 100. Default 2; less keeps back earlier.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub k: Option<f64>,
    /// How far to look back, 1s to 1h. Default 2m.
    pub window: Option<Period>,
    /// The largest share of calls that is kept back. Default 90%.
    pub max_reject: Option<Ratio>,
    /// None is kept back before this many calls in the window, 1 to 1000000. Default 10.
    #[schemars(range(min = 1, max = 1000000))]
    pub minimum_calls: Option<u32>,
}

const SHORTEST: Period = Period::secs(1);
const LONGEST: Period = Period::secs(3600);
const MOST_CALLS: u32 = 1_000_000;

#[allow(dead_code, reason = "called as soon as PolicyConfig has the field")]
impl ThrottleConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    pub(crate) fn or(&self, base: &Self) -> Self {
        merge!(self, base; enabled, k, window, max_reject, minimum_calls)
    }

    /// Every value that is out of its range.
    pub(crate) fn problems(&self, found: &mut Problems) {
        found.range("throttle.k", self.k, 1.0, 100.0);
        found.range("throttle.window", self.window, SHORTEST, LONGEST);
        found.some("throttle.max_reject", self.max_reject, "set `enabled: false`");
        found.range("throttle.minimum_calls", self.minimum_calls, 1, MOST_CALLS);
    }

    /// Complete, or `None` where nothing is throttled.
    pub(crate) fn resolve(&self) -> Option<Config> {
        self.enabled.unwrap_or_else(|| *self != Self::default()).then(|| Config {
            k: self.k.filter(|k| !k.is_nan()).unwrap_or(2.0).clamp(1.0, 100.0),
            window: self.window.unwrap_or(Period::secs(120)).clamp(SHORTEST, LONGEST),
            max_reject: self.max_reject.unwrap_or(Ratio::percent(90)),
            minimum_calls: self.minimum_calls.unwrap_or(10).clamp(1, MOST_CALLS),
        })
    }
}

/// What a throttler does; every field is within its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How many times what it accepts a service is asked, at least 1.
    pub k: f64,
    /// How far to look back; the oldest tenth is dropped as a whole.
    pub window: Period,
    /// The largest share of calls that is kept back.
    pub max_reject: Ratio,
    /// None is kept back before this many calls in the window.
    pub minimum_calls: u32,
}

/// A throttler; share it by reference or `Arc`. Lock-free.
#[derive(Debug)]
pub struct Throttle {
    name: Name,
    clock: Clock,
    settings: Settings,
    /// All calls that ended with an answer or were kept back.
    requests: Line<Window>,
    /// Those of them that were not accepted.
    refused: Line<Window>,
    /// One more than the number of the slice in which a call was last refused; zero if that is out of the window. Written
    /// only in bad times, so that in good ones every processor has its own copy.
    last_refused: AtomicU64,
}

/// [`Config`] in atomics, changed one by one: a call that meets a reload goes by some of the old and some of the new.
#[derive(Debug)]
struct Settings {
    k: AtomicU64,
    /// The length of a slice in nanoseconds.
    slice: AtomicU64,
    max_reject: AtomicU64,
    minimum_calls: AtomicU32,
}

/// Leave to make a call. Say what became of it; what is dropped was given up by its caller and counts as nothing, since
/// it says nothing of the service.
#[derive(Debug)]
#[must_use = "a permit that is dropped counts as nothing"]
pub struct Permit<'a>(&'a Throttle);

impl Permit<'_> {
    /// The service took the call on, whatever came of it.
    pub fn accepted(self) {
        self.0.record(true);
    }

    /// The service, or what stands before it, refused the call for lack of capacity, or let it run out of time.
    pub fn refused(self) {
        self.0.record(false);
    }
}

impl Throttle {
    /// A throttler that has seen nothing yet. `name` appears in rejections.
    pub fn new(name: Name, config: Config, clock: Clock) -> Self {
        let throttle = Self {
            name,
            clock,
            settings: Settings {
                k: AtomicU64::new(0),
                slice: AtomicU64::new(slice_of(&config)),
                max_reject: AtomicU64::new(0),
                minimum_calls: AtomicU32::new(0),
            },
            requests: Line::default(),
            refused: Line::default(),
            last_refused: AtomicU64::new(0),
        };
        throttle.set(&config);
        // A word of zeros would be from the future on a machine that has been up for years.
        let slice = throttle.slice(throttle.clock.now());
        throttle.requests.0.restart(slice, 0);
        throttle.refused.0.restart(slice, 0);
        throttle
    }

    /// Whether a call may be made. Draws a random number only if the service has refused more than its share.
    ///
    /// # Errors
    /// [`Rejected`] with `throttled`; it has been counted as a request.
    #[inline]
    pub fn admit(&self) -> Result<Permit<'_>, Rejected> {
        if self.last_refused.load(Ordering::Relaxed) == 0 {
            return Ok(Permit(self));
        }
        self.admit_at(self.clock.now(), fastrand::f64)
    }

    /// [`Throttle::admit`] at `now`; `random` is uniform in 0..1, and only asked for when it matters.
    ///
    /// # Errors
    /// As there.
    pub fn admit_at(&self, now: Tick, random: impl FnOnce() -> f64) -> Result<Permit<'_>, Rejected> {
        let probability = self.probability_at(now);
        if probability > 0.0 && random() < probability {
            self.record_at(now, false);
            return Err(Rejected::new(PolicyName::Throttle, self.name, Reason::Throttled));
        }
        Ok(Permit(self))
    }

    /// With which probability a call is kept back at `now`.
    pub fn probability_at(&self, now: Tick) -> f64 {
        let last = self.last_refused.load(Ordering::Relaxed);
        if last == 0 {
            return 0.0;
        }
        let slice = self.slice(now);
        if slice >= last - 1 + SLICES {
            // Unless there is a newer one by now, nobody needs to look again.
            let _ = self.last_refused.compare_exchange(last, 0, Ordering::Relaxed, Ordering::Relaxed);
            return 0.0;
        }
        // In this order, so that a call in between is never seen refused but not asked.
        let refused = self.refused.0.sum(slice);
        let requests = self.requests.0.sum(slice);
        if requests < u64::from(self.settings.minimum_calls.load(Ordering::Relaxed)) {
            return 0.0;
        }
        let k = f64::from_bits(self.settings.k.load(Ordering::Relaxed));
        let most = f64::from_bits(self.settings.max_reject.load(Ordering::Relaxed));
        probability(requests, requests.saturating_sub(refused), k).min(most)
    }

    /// Counts a call that has ended: whether the service accepted it. What [`Permit`] does, for those who cannot keep one.
    #[inline]
    pub fn record(&self, accepted: bool) {
        self.record_at(self.clock.now(), accepted);
    }

    /// [`Throttle::record`] at `now`.
    #[inline]
    pub fn record_at(&self, now: Tick, accepted: bool) {
        let slice = self.slice(now);
        self.requests.0.add(slice, 1);
        if !accepted {
            self.refused.0.add(slice, 1);
            if self.last_refused.load(Ordering::Relaxed) <= slice {
                self.last_refused.fetch_max(slice + 1, Ordering::Relaxed);
            }
        }
    }

    /// How many calls the window has, and how many of them were accepted.
    pub fn counts(&self) -> (u64, u64) {
        let slice = self.slice(self.clock.now());
        let refused = self.refused.0.sum(slice);
        let requests = self.requests.0.sum(slice);
        (requests, requests.saturating_sub(refused))
    }

    /// Goes on with other settings and the same counts. If the window changes in length, what has been counted is taken
    /// as if it were of this moment.
    pub fn reload(&self, config: Config) {
        let (old, new) = (self.settings.slice.load(Ordering::Relaxed), slice_of(&config));
        if old != new {
            let now = self.clock.now();
            let (requests, accepts) = self.counts();
            // The slices are numbered anew, and what a call counts in between by the old numbers may be lost.
            self.settings.slice.store(new, Ordering::Relaxed);
            let slice = self.slice(now);
            self.requests.0.restart(slice, requests);
            self.refused.0.restart(slice, requests - accepts);
            self.last_refused.store(if requests > accepts { slice + 1 } else { 0 }, Ordering::Relaxed);
        }
        self.set(&config);
    }

    fn set(&self, config: &Config) {
        self.settings.k.store(config.k.to_bits(), Ordering::Relaxed);
        self.settings.max_reject.store(config.max_reject.get().to_bits(), Ordering::Relaxed);
        self.settings.minimum_calls.store(config.minimum_calls, Ordering::Relaxed);
    }

    /// The number of the slice that `now` is in.
    #[inline]
    fn slice(&self, now: Tick) -> u64 {
        now.nanos() / self.settings.slice.load(Ordering::Relaxed)
    }
}

impl AsRef<Self> for Throttle {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// The formula of the book.
fn probability(requests: u64, accepts: u64, k: f64) -> f64 {
    ((requests as f64 - k * accepts as f64) / (requests as f64 + 1.0)).max(0.0)
}

/// At least 100ms, since a window is at least a second.
fn slice_of(config: &Config) -> u64 {
    nanos(config.window.get() / SLICES as u32).max(1)
}

/// How many slices a window has. The current one is not yet whole, so it looks back on nine to ten tenths.
const SLICES: u64 = 10;

/// Counts of the last [`SLICES`] slices: in each word the lower half of the slice's number (which comes again after
/// thirteen years of the shortest), and a count.
#[derive(Debug, Default)]
struct Window([AtomicU64; SLICES as usize]);

const fn cell(slice: u64, count: u64) -> u64 {
    slice << 32 | count
}

/// How many slices a word is behind `slice`; less than zero if it is ahead.
const fn age(word: u64, slice: u64) -> i32 {
    (slice as u32).wrapping_sub((word >> 32) as u32) as i32
}

impl Window {
    /// Counts `n` in `slice`. (Somebody who is held up for a whole window between the look and the count puts one count
    /// into a later slice.)
    #[inline]
    fn add(&self, slice: u64, n: u64) {
        let place = &self.0[(slice % SLICES) as usize];
        let mut seen = place.load(Ordering::Relaxed);
        while age(seen, slice) > 0 {
            match place.compare_exchange(seen, cell(slice, n), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
        place.fetch_add(n, Ordering::AcqRel);
    }

    /// All that was counted in the window that ends with `slice`.
    fn sum(&self, slice: u64) -> u64 {
        let words = self.0.iter().map(|word| word.load(Ordering::Acquire));
        words.filter(|word| (0..SLICES as i32).contains(&age(*word, slice))).map(|word| word & 0xffff_ffff).sum()
    }

    /// Forgets everything but `count`, which it has in `slice`.
    fn restart(&self, slice: u64, count: u64) {
        for (index, place) in self.0.iter().enumerate() {
            // The other slices are so old that they are begun anew.
            let own = index as u64 == slice % SLICES;
            let word = if own { cell(slice, count.min(0xffff_ffff)) } else { cell(slice.wrapping_sub(1 << 30), 0) };
            place.store(word, Ordering::Release);
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::Manual;

    fn config() -> Config {
        ThrottleConfig { enabled: Some(true), ..ThrottleConfig::default() }.resolve().unwrap()
    }

    fn throttle(config: Config) -> (Throttle, Manual) {
        let (clock, hand) = Clock::manual();
        (Throttle::new("payment".into(), config, clock), hand)
    }

    fn never() -> f64 {
        panic!("no random number was needed")
    }

    #[test]
    fn off_unless_wanted_and_mistakes_are_named() {
        assert_eq!(ThrottleConfig::default().resolve(), None);
        let expected = Config { k: 2.0, window: Period::secs(120), max_reject: Ratio::percent(90), minimum_calls: 10 };
        assert_eq!(config(), expected);
        let base = ThrottleConfig { enabled: Some(true), k: Some(1.5), ..ThrottleConfig::default() };
        let own = ThrottleConfig { minimum_calls: Some(3), ..ThrottleConfig::default() };
        assert_eq!(own.or(&base).resolve(), Some(Config { k: 1.5, minimum_calls: 3, ..expected }));

        let problems = |config: &ThrottleConfig| {
            let mut found = Problems::default();
            config.problems(&mut found);
            found.into_vec().into_iter().map(|(path, _)| path).collect::<Vec<_>>()
        };
        let wrong = ThrottleConfig {
            enabled: Some(true),
            k: Some(f64::NAN),
            window: Some(Period::millis(999)),
            max_reject: Some(Ratio::percent(0)),
            minimum_calls: Some(0),
        };
        let paths = ["throttle.k", "throttle.window", "throttle.max_reject", "throttle.minimum_calls"];
        assert_eq!((problems(&wrong), problems(&own.or(&base))), (paths.map(String::from).to_vec(), vec![]));
        let brought_in = wrong.resolve().unwrap();
        assert_eq!((brought_in.k, brought_in.window, brought_in.minimum_calls), (2.0, SHORTEST, 1));
    }

    #[test]
    fn the_formula_is_the_books() {
        for (requests, accepts, k, expected) in [
            (0, 0, 2.0, 0.0),
            (100, 100, 2.0, 0.0),
            (100, 50, 2.0, 0.0),
            (99, 49, 2.0, 0.01),
            (99, 0, 2.0, 0.99),
            (100, 50, 1.0, 50.0 / 101.0),
            (1000, 100, 4.0, 600.0 / 1001.0),
        ] {
            assert!((probability(requests, accepts, k) - expected).abs() < 1e-12, "{requests} {accepts} {k}");
        }
    }

    #[test]
    fn keeps_back_what_would_be_refused_and_lets_go() {
        let (throttle, hand) = throttle(config());
        let now = throttle.clock.now();
        for _ in 0..4 {
            throttle.admit_at(now, never).unwrap().accepted();
        }
        for _ in 0..5 {
            throttle.admit_at(now, never).unwrap().refused();
        }
        // 9 requests, 4 accepts: already more than twice, but nine are not enough to judge by.
        drop(throttle.admit_at(now, never).unwrap());
        assert_eq!((throttle.counts(), throttle.probability_at(now)), ((9, 4), 0.0), "a dropped one counts as nothing");
        throttle.admit_at(now, never).unwrap().refused();
        let expected = 2.0 / 11.0;
        assert!((throttle.probability_at(now) - expected).abs() < 1e-12);
        drop(throttle.admit_at(now, || expected).unwrap());
        let rejected = throttle.admit_at(now, || expected - 1e-9).unwrap_err();
        assert_eq!((rejected.policy, rejected.reason), (PolicyName::Throttle, Reason::Throttled));
        assert_eq!(throttle.counts(), (11, 4), "one that was kept back was asked for too");
        // Never more than the limit, however bad it gets.
        for _ in 0..1000 {
            throttle.record(false);
        }
        assert_eq!(throttle.probability_at(now), 0.9);
        // The service takes calls again: as many as are refused are enough.
        for _ in 0..1010 {
            throttle.record(true);
        }
        assert_eq!(throttle.probability_at(now), 0.0);
        // What is out of the window is forgotten, and then even the flag is.
        throttle.record(false);
        hand.advance(Duration::from_secs(119));
        assert_ne!(throttle.counts(), (0, 0));
        hand.advance(Duration::from_secs(1));
        drop(throttle.admit_at(throttle.clock.now(), never).unwrap());
        assert_eq!((throttle.counts(), throttle.last_refused.load(Ordering::Relaxed)), ((0, 0), 0));
    }

    #[test]
    fn asks_a_service_about_twice_what_it_takes() {
        // A service that takes 100 calls a second, asked for 1000, over ten windows.
        let (throttle, hand) = throttle(Config { window: Period::secs(10), ..config() });
        let mut random = fastrand::Rng::with_seed(7);
        let mut asked = Vec::new();
        for _ in 0..100 {
            let mut this = 0;
            for _ in 0..1000 {
                hand.advance(Duration::from_millis(1));
                if let Ok(permit) = throttle.admit_at(throttle.clock.now(), || random.f64()) {
                    this += 1;
                    if this <= 100 { permit.accepted() } else { permit.refused() }
                }
            }
            asked.push(this);
        }
        let settled = asked[20..].iter().sum::<u32>() / 80;
        assert!((190..260).contains(&settled), "{settled} a second");
    }

    #[test]
    fn threads_lose_no_count() {
        let (throttle, _) = throttle(config());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let throttle = &throttle;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        throttle.record(thread != 0);
                    }
                });
            }
        });
        assert_eq!(throttle.counts(), (40_000, 30_000));
    }

    #[test]
    fn a_reload_keeps_the_counts() {
        let (throttle, hand) = throttle(config());
        hand.advance(Duration::from_secs(1000));
        for call in 0..100 {
            throttle.record(call % 5 == 0);
        }
        hand.advance(Duration::from_secs(60));
        throttle.reload(Config { k: 3.0, max_reject: Ratio::percent(30), ..config() });
        assert_eq!((throttle.counts(), throttle.probability_at(throttle.clock.now())), ((100, 20), 0.3));
        for window in [Period::secs(1), Period::secs(3600)] {
            throttle.reload(Config { window, ..config() });
            assert_eq!(throttle.counts(), (100, 20));
            assert!((throttle.probability_at(throttle.clock.now()) - 60.0 / 101.0).abs() < 1e-12);
            throttle.record(true);
            throttle.reload(Config { window: Period::secs(3), ..config() });
            assert_eq!(throttle.counts(), (101, 21));
            hand.advance(Duration::from_secs(3));
            assert_eq!(throttle.counts(), (0, 0), "a whole window later all is gone");
            for call in 0..100 {
                throttle.record(call % 5 == 0);
            }
        }
    }

    proptest! {
        /// Counts and probability are those of one who keeps a list.
        #[test]
        fn it_counts_as_a_list_would(
            steps in prop::collection::vec((prop_oneof![0u64..40, 0u64..3000], any::<bool>()), 1..300),
        ) {
            let (throttle, hand) = throttle(Config { window: Period::secs(2), minimum_calls: 1, ..config() });
            let mut list: VecDeque<(u64, bool)> = VecDeque::new();
            let mut millis = 0;
            for (gap, accepted) in steps {
                millis += gap;
                hand.advance(Duration::from_millis(gap));
                let now = throttle.clock.now();
                throttle.record_at(now, accepted);
                list.push_back((millis, accepted));
                list.retain(|(at, _)| millis / 200 - at / 200 < 10);
                let (requests, accepts) = (list.len() as u64, list.iter().filter(|call| call.1).count() as u64);
                prop_assert_eq!(throttle.counts(), (requests, accepts));
                prop_assert_eq!(throttle.probability_at(now), probability(requests, accepts, 2.0).min(0.9));
            }
        }
    }
}
