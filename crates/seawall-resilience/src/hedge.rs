//! Hedged calls: when an answer takes longer than usual, ask a second time and take whichever comes first.
//! (Dean and Barroso, "The Tail at Scale", CACM 2013.)
//!
//! Waiting for the 95th percentile first means that about one call in twenty is asked twice, and cuts off the tail above
//! it. A budget keeps the rest honest: when everything turns slow, hedges would only make it slower.
//!
//! **Only for calls that may be done twice**: a hedge is a second call while the first may well succeed, and the loser is
//! dropped wherever it is.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use seawall_types::{Period, Ratio};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::nanos;
use crate::problems::merge;
use crate::{Budget, Clock, Name, Problems, Tick};

mod latency;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests;

use latency::Latencies;

/// When to ask a second time before the first has answered. Only for services whose calls may be done twice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HedgeConfig {
    /// `true` switches it on with all defaults, `false` off. Default: on if any of the others is given.
    pub enabled: Option<bool>,
    /// How long to wait for the answer before asking again: a time (`50ms`), or a percentile of the latencies seen so
    /// far (`p95`, from p50 to p99.9). Default p95.
    pub delay: Option<Delay>,
    /// No wait is shorter, whatever the percentile. Default 1ms.
    pub delay_floor: Option<Period>,
    /// With a percentile: nothing is asked twice before this many calls have been seen, 20 to 2000. Default 100.
    #[schemars(range(min = 20, max = 2000))]
    pub minimum_calls: Option<u32>,
    /// How many more calls there may be for one, each after another wait, 1 to 5. Default 1.
    #[schemars(range(min = 1, max = 5))]
    pub max: Option<u32>,
    /// How many more calls there may be for all that are made. Default 10%.
    pub budget: Option<Ratio>,
    /// Whether a call that fails is asked again at once, without the rest of the wait. Default false: that is what retries
    /// are for.
    pub on_error: Option<bool>,
}

impl HedgeConfig {
    /// Fills what is absent from `base`.
    pub(crate) fn or(&self, base: &Self) -> Self {
        merge!(self, base; enabled, delay, delay_floor, minimum_calls, max, budget, on_error)
    }

    /// Notes every value that is out of its range.
    pub(crate) fn problems(&self, found: &mut Problems) {
        match self.delay {
            Some(Delay::After(after)) => found.positive("hedge.delay", Some(after)),
            Some(Delay::Percentile(rank)) if !RANKS.contains(&rank) => {
                found.add("hedge.delay", format!("is {}, allowed is p50 to p99.9", Delay::Percentile(rank)));
            }
            _ => {}
        }
        if let (Some(Delay::After(after)), Some(floor)) = (self.delay, self.delay_floor)
            && after < floor
        {
            found.add("hedge.delay", format!("of {after} is shorter than delay_floor of {floor}"));
        }
        found.range("hedge.minimum_calls", self.minimum_calls, MINIMUM.0, MINIMUM.1);
        found.range("hedge.max", self.max, 1, MAX);
        found.some("hedge.budget", self.budget, "nothing would ever be asked twice");
    }

    /// What has no effect for want of something else.
    pub(crate) fn idle(&self, found: &mut Problems) {
        if let Some(Delay::After(_)) = self.delay {
            found.idle(
                "hedge.minimum_calls",
                self.minimum_calls,
                Some(Config::default().minimum_calls),
                "a percentile",
            );
        }
    }

    /// With the defaults for what is absent; none unless it is switched on.
    pub(crate) fn resolve(&self) -> Option<Config> {
        let defaults = Config::default();
        self.enabled.unwrap_or_else(|| *self != Self::default()).then(|| Config {
            delay: match self.delay.unwrap_or(defaults.delay) {
                Delay::Percentile(rank) => Delay::Percentile(rank.clamp(*RANKS.start(), *RANKS.end())),
                after => after,
            },
            delay_floor: self.delay_floor.unwrap_or(defaults.delay_floor),
            minimum_calls: self.minimum_calls.unwrap_or(defaults.minimum_calls).clamp(MINIMUM.0, MINIMUM.1),
            max: self.max.unwrap_or(defaults.max).clamp(1, MAX),
            budget: self.budget.unwrap_or(defaults.budget),
            on_error: self.on_error.unwrap_or(defaults.on_error),
        })
    }
}

/// The percentiles that can be estimated from so few samples, in hundredths.
const RANKS: std::ops::RangeInclusive<u16> = 5000..=9990;
/// Halving has to leave more samples than the minimum.
const MINIMUM: (u32, u32) = (20, latency::WINDOW / 2 - 48);
const MAX: u32 = 5;

/// How long to wait for an answer before asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// A time: `50ms`.
    After(Period),
    /// A percentile of the latencies, in hundredths of a percent: `p95` is 9500.
    Percentile(u16),
}

impl std::fmt::Display for Delay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::After(period) => write!(f, "{period}"),
            Self::Percentile(rank) => write!(f, "p{}", f64::from(*rank) / 100.0),
        }
    }
}

impl std::str::FromStr for Delay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percentile) = text.trim().strip_prefix('p') else { return text.parse().map(Self::After) };
        percentile
            .parse::<f64>()
            .ok()
            .map(|percentile| (percentile * 100.0).round())
            .filter(|rank| (0.0..10_000.0).contains(rank))
            .map(|rank| Self::Percentile(rank as u16))
            .ok_or_else(|| format!("`{text}` is not a percentile such as `p95` or `p99.9`"))
    }
}

impl Serialize for Delay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Delay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Delay;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a duration such as `50ms`, or a percentile such as `p95`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Delay, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Delay {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Delay".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration with its unit (50ms), or a percentile of the latencies (p95).",
            "examples": ["50ms", "p95", "p99.9"],
            "pattern": r"^\s*(p[0-9]+(\.[0-9]+)?|([0-9]+(\.[0-9]+)?\s*[a-zµ]+\s*)+)$"
        })
    }
}

/// When to ask a second time; every field is within its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// How long to wait for the answer first.
    pub delay: Delay,
    /// No wait is shorter.
    pub delay_floor: Period,
    /// With a percentile: how many calls have to be seen first.
    pub minimum_calls: u32,
    /// How many more calls there may be for one.
    pub max: u32,
    /// How many more calls there may be for every call that is made.
    pub budget: Ratio,
    /// Whether a call that fails is asked again at once.
    pub on_error: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            delay: Delay::Percentile(9500),
            delay_floor: Period::millis(1),
            minimum_calls: 100,
            max: 1,
            budget: Ratio::percent(10),
            on_error: false,
        }
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls made beyond the first.
    pub hedges: u64,
    /// Hedges whose answer came first.
    pub won: u64,
    /// Hedges that the budget refused.
    pub refused: u64,
}

/// Hedges the calls of one service. Needs tokio's timers.
#[derive(Debug)]
pub struct Hedge {
    name: Name,
    clock: Clock,
    budget: Budget,
    /// A fixed wait in nanoseconds; zero for a percentile.
    fixed: AtomicU64,
    /// The percentile as last estimated, in nanoseconds; zero while it is not known.
    estimate: AtomicU64,
    /// The shortest wait, in nanoseconds.
    floor: AtomicU64,
    /// The percentile, in hundredths.
    rank: AtomicU32,
    minimum_calls: AtomicU32,
    max: AtomicU32,
    on_error: AtomicBool,
    latencies: Latencies,
    hedges: AtomicU64,
    won: AtomicU64,
    refused: AtomicU64,
}

/// The estimate is renewed after so many calls of one of its stripes, and more often until there is one.
const RENEWED: u32 = 256;
const FIRST: u32 = 16;

impl Hedge {
    /// With nothing seen and nothing saved.
    pub fn new(name: Name, config: Config, clock: Clock) -> Self {
        let hedge = Self {
            name,
            budget: Budget::new(config.budget, 0, clock.now()),
            clock,
            fixed: AtomicU64::new(0),
            estimate: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            rank: AtomicU32::new(0),
            minimum_calls: AtomicU32::new(0),
            max: AtomicU32::new(0),
            on_error: AtomicBool::new(false),
            latencies: Latencies::new(),
            hedges: AtomicU64::new(0),
            won: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        hedge.set(config);
        hedge
    }

    /// Goes on with other parameters, and the same latencies and budget.
    pub fn reload(&self, config: Config) {
        self.budget.reload(config.budget, 0);
        self.set(config);
    }

    fn set(&self, config: Config) {
        let (fixed, rank) = match config.delay {
            Delay::After(after) => (nanos(*after).max(1), 0),
            Delay::Percentile(rank) => (0, u32::from(rank)),
        };
        self.floor.store(nanos(*config.delay_floor), Ordering::Relaxed);
        self.minimum_calls.store(config.minimum_calls, Ordering::Relaxed);
        self.max.store(config.max, Ordering::Relaxed);
        self.on_error.store(config.on_error, Ordering::Relaxed);
        if self.rank.swap(rank, Ordering::Relaxed) != rank {
            self.estimate.store(0, Ordering::Relaxed);
        }
        self.fixed.store(fixed, Ordering::Relaxed);
        if fixed == 0 {
            self.estimate();
        }
    }

    /// Whose calls these are.
    pub fn name(&self) -> Name {
        self.name
    }

    /// How long a call waits now before it is asked again; none while too few have been seen.
    pub fn delay(&self) -> Option<Duration> {
        let delay = match self.fixed.load(Ordering::Relaxed) {
            0 => self.estimate.load(Ordering::Relaxed),
            fixed => fixed,
        };
        (delay > 0).then(|| Duration::from_nanos(delay.max(self.floor.load(Ordering::Relaxed))))
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        Counts {
            hedges: self.hedges.load(Ordering::Relaxed),
            won: self.won.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Makes a call (`attempt(1)`), and others beside it (`attempt(2)`, ..) when no answer comes in time: the first
    /// success is the result, or the last error when all that were made have failed. Those still under way are then
    /// dropped. An error before anything else is under way is the result at once, unless `on_error` is configured.
    ///
    /// Only for calls that may be done twice.
    ///
    /// Cancel safe: dropping it drops all calls under way. Hedges that were made stay paid for.
    pub async fn call<T, E, F, A>(&self, mut attempt: F) -> Result<T, E>
    where
        F: FnMut(u32) -> A,
        A: Future<Output = Result<T, E>>,
    {
        self.budget.deposit();
        let delay = self.delay();
        let sample = self.sample();
        let mut first = pin!(attempt(1));
        let result = match delay {
            None => first.as_mut().await,
            // The call is asked first, so that no timer is set for one that has its answer at once.
            Some(delay) => tokio::select! {
                biased;
                result = first.as_mut() => result,
                () = tokio::time::sleep(delay) => return Box::pin(self.race(Some((first, sample)), None, delay, attempt)).await,
            },
        };
        sample.end(result.is_ok());
        match result {
            Err(error) if self.on_error.load(Ordering::Relaxed) => {
                // Without a percentile there is no wait yet after which to add a third call.
                Box::pin(self.race(None, Some(error), delay.unwrap_or(Duration::MAX), attempt)).await
            }
            result => result,
        }
    }

    /// Goes on from the moment at which another call is due. Boxed by its callers: most calls do not come here.
    async fn race<T, E, F, A>(
        &self,
        mut first: Option<(Pin<&mut A>, Sample<'_>)>,
        mut error: Option<E>,
        delay: Duration,
        mut attempt: F,
    ) -> Result<T, E>
    where
        F: FnMut(u32) -> A,
        A: Future<Output = Result<T, E>>,
    {
        let mut most = self.max.load(Ordering::Relaxed);
        let mut made = 0;
        let mut hedges = FuturesUnordered::new();
        loop {
            if made < most && self.pay() {
                made += 1;
                hedges.push(attempt(made + 1));
            } else {
                most = made;
            }
            // Waits until another is due: the timer, or a failure where that is a reason.
            let due = tokio::time::sleep(delay);
            let mut due = pin!(due);
            loop {
                let result = tokio::select! {
                    biased;
                    result = poll_first(&mut first), if first.is_some() => result,
                    Some(result) = hedges.next(), if !hedges.is_empty() => {
                        if result.is_ok() {
                            self.won.fetch_add(1, Ordering::Relaxed);
                        }
                        result
                    }
                    () = due.as_mut(), if made < most && (first.is_some() || !hedges.is_empty()) => break,
                    else => return Err(error.expect("whatever is no longer under way has failed")),
                };
                match result {
                    Ok(value) => return Ok(value),
                    Err(failed) => error = Some(failed),
                }
                if made < most && self.on_error.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    }

    /// Takes a hedge out of the budget.
    fn pay(&self) -> bool {
        // There is no floor to be filled, so the time does not matter.
        let paid = self.budget.withdraw(Tick::default());
        let counter = if paid { &self.hedges } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        paid
    }

    /// Begins to measure, if anybody wants to know.
    fn sample(&self) -> Sample<'_> {
        let begun = (self.fixed.load(Ordering::Relaxed) == 0).then(|| self.clock.precise());
        Sample { hedge: self, begun }
    }

    fn record(&self, latency: Duration) {
        let seen = self.latencies.record(latency);
        let known = self.estimate.load(Ordering::Relaxed) > 0;
        if seen.is_multiple_of(if known { RENEWED } else { FIRST }) {
            self.estimate();
        }
    }

    fn estimate(&self) {
        let (rank, minimum) = (self.rank.load(Ordering::Relaxed), self.minimum_calls.load(Ordering::Relaxed));
        if let Some(estimate) = self.latencies.percentile(rank, minimum) {
            self.estimate.store(nanos(estimate), Ordering::Relaxed);
        }
    }
}

impl AsRef<Self> for Hedge {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// The first call's latency while it is under way. One that is dropped because a hedge was faster, or because the caller gave
/// up, is known to take longer than it had: left out, the slow calls would vanish from the percentile, and with every
/// hedge there would be more of them.
struct Sample<'a> {
    hedge: &'a Hedge,
    begun: Option<Tick>,
}

impl Sample<'_> {
    /// It is over. How fast a failure is says nothing of how long an answer takes.
    fn end(mut self, worked: bool) {
        if let Some(begun) = self.begun.take()
            && worked
        {
            self.hedge.record(self.hedge.clock.precise().since(begun));
        }
    }
}

impl Drop for Sample<'_> {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            let latency = self.hedge.clock.precise().since(begun);
            let estimate = self.hedge.estimate.load(Ordering::Relaxed);
            // Below the percentile it could have ended on either side of it.
            if estimate > 0 && nanos(latency) >= estimate {
                self.hedge.record(latency);
            }
        }
    }
}

/// Waits for the first call and ends its measurement. Cancel safe: until there is an answer nothing changes.
async fn poll_first<T, E, A>(first: &mut Option<(Pin<&mut A>, Sample<'_>)>) -> Result<T, E>
where
    A: Future<Output = Result<T, E>>,
{
    let Some((call, _)) = first else { return std::future::pending().await };
    let result = call.as_mut().await;
    if let Some((_, sample)) = first.take() {
        sample.end(result.is_ok());
    }
    result
}
