//! Adaptive concurrency: finds how many calls a service can work on at once from how long they take.
//!
//! Little's law says that more calls in flight than the service can work on only wait inside of it, where nobody sees
//! the queue, but everybody feels it as latency. The algorithms are the ones that Netflix's concurrency-limits made
//! known (2018), taken from congestion control: **AIMD** (Chiu and Jain, 1989), **Vegas** (Brakmo and Peterson, 1994),
//! which estimates the queue from the latency without load, and **Gradient2**, which compares the latency now with its
//! long average.
//!
//! Where we differ, each time to keep the limit from running away or from collapsing:
//!
//! - They decide once a *round*, on the mean of the calls that began after the last change, since the earlier ones say
//!   nothing about it. A single slow call so decides nothing.
//! - A dropped call takes a tenth off, at once, under all three, and once for all that were under way together.
//! - Now and then, at random moments so that many processes do not do so together, the limit is halved for one round, a
//!   *probe*. What the calls take then is the latency without load (Vegas) or the long average (Gradient2). Measured
//!   under load either would learn the queue and take it for granted, and the limit would drift up.
//! - Vegas comes down by a tenth, too, as long as the queue is more than a third of the limit.
//! - Nothing changes while less than half of the limit is in use: latency says nothing about it then.

use std::time::Duration;

use schemars::JsonSchema;
use seawall_types::Period;
use serde::{Deserialize, Serialize};

use crate::bulkhead::MAX;
use crate::clock::nanos;
use crate::problems::merge;
use crate::{Problems, Tick};

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests;

/// How the limit is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Keeps the queue inside of the service short, by the latency that it adds.
    #[default]
    Vegas,
    /// Keeps the latency within 1.5 times its long average.
    Gradient2,
    /// One more a round, a tenth less when a call is dropped or the latency is over a threshold.
    Aimd,
}

/// Finds the number of places by itself. On as soon as one of these is given, unless `enabled` says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveConfig {
    /// `true` switches it on with all defaults, `false` off. Default: on if any of the others is given.
    pub enabled: Option<bool>,
    /// How: `vegas`, `gradient2` or `aimd`. Default `vegas`.
    pub algorithm: Option<Algorithm>,
    /// There are never fewer places, 1 to 1000000. Default 1.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min: Option<u32>,
    /// There are never more places, 1 to 1000000. Default 1000, or `min` if that is more.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: Option<u32>,
    /// Where it begins. Default: `bulkhead.concurrent` where that is given, otherwise 20.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub initial: Option<u32>,
    /// `aimd` takes a tenth off when calls take longer than this on average. Default: it watches dropped calls alone.
    /// The others do not use it.
    pub latency: Option<Period>,
}

impl AdaptiveConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    pub(crate) fn or(&self, base: &Self) -> Self {
        merge!(self, base; enabled, algorithm, min, max, initial, latency)
    }

    /// Notes every value that is out of its range.
    pub(crate) fn problems(&self, found: &mut Problems) {
        for (path, value) in
            [("min", self.min), ("max", self.max), ("initial", self.initial)].map(|(key, v)| (path(key), v))
        {
            found.range(&path, value, 1, MAX);
        }
        found.positive(&path("latency"), self.latency);
        let mut ordered = |key, small: Option<u32>, of, large: Option<u32>| {
            if let (Some(small), Some(large)) = (small, large)
                && small > large
            {
                found.add(&path(key), format!("of {small} is more than {of} of {large}"));
            }
        };
        ordered("min", self.min, "max", self.max);
        ordered("min", self.min, "initial", self.initial);
        ordered("initial", self.initial, "max", self.max);
    }

    /// With those defaults that a value may contradict.
    pub(crate) fn with_defaults(mut self, concurrent: Option<u32>) -> Self {
        if self.enabled.unwrap_or_else(|| self != Self::default()) {
            self.max = self.max.or(Some(self.min.unwrap_or(1).max(1000)));
            self.initial = self.initial.or(concurrent);
        }
        self
    }

    /// What has no effect for want of something else.
    pub(crate) fn idle(&self, found: &mut Problems) {
        if self.algorithm != Some(Algorithm::Aimd) {
            found.idle(&path("latency"), self.latency, None, "algorithm: aimd");
        }
    }

    /// What is in force; `None` if it is off. `concurrent` is what the bulkhead says about its places.
    pub(crate) fn resolve(&self, concurrent: Option<u32>) -> Option<Config> {
        if !self.enabled.unwrap_or_else(|| *self != Self::default()) {
            return None;
        }
        let min = self.min.unwrap_or(1).clamp(1, MAX);
        let max = self.max.unwrap_or(1000).clamp(min, MAX);
        Some(Config {
            algorithm: self.algorithm.unwrap_or_default(),
            min,
            max,
            initial: self.initial.or(concurrent).unwrap_or(20).clamp(min, max),
            latency: self.latency,
        })
    }
}

fn path(key: &str) -> String {
    format!("bulkhead.adaptive.{key}")
}

/// How the limit is found; every field is within its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How.
    pub algorithm: Algorithm,
    /// There are never fewer places, at least 1.
    pub min: u32,
    /// There are never more places, at least `min`.
    pub max: u32,
    /// Where it begins, from `min` to `max`.
    pub initial: u32,
    /// The latency that is too long for [`Algorithm::Aimd`].
    pub latency: Option<Period>,
}

impl Config {
    /// With at least one place, and in order.
    fn bounded(self) -> Self {
        let min = self.min.max(1);
        let max = self.max.max(min);
        Self { min, max, initial: self.initial.clamp(min, max), ..self }
    }
}

/// How a call ended, as far as the number of calls in flight has to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was served, and its latency counts.
    Served,
    /// The service was overloaded: it timed out, or the service turned it away (429, 503).
    Dropped,
    /// It says nothing: it was cancelled, or it failed by its own fault or by a fault in the service.
    Ignored,
}

/// One finished call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it began.
    pub begun: Tick,
    /// How long the service took; it may have held its place for longer, while its body was read.
    pub latency: Duration,
    /// How many calls were in flight when it began, it included.
    pub in_flight: u32,
    /// It timed out or was turned away.
    pub dropped: bool,
}

/// What a decrease leaves.
const BACKOFF: f64 = 0.9;
/// The fewest calls that a mean is made of.
const FEW: u32 = 10;
/// A round with that few ends after this time.
const LONG_ROUND: Duration = Duration::from_secs(1);
/// There is a probe after 0.5 to 1 times as many rounds.
const PROBE_ROUNDS: f64 = 30.0;
/// The first one comes earlier: the limit may have begun much too high.
const FIRST_PROBE: u32 = 5;
/// A probe that finds less than this part of the former latency says that the limit was much too high.
const FAR: f64 = 0.9;
/// Gradient2: how much longer than on the long average calls may take before the limit falls.
const TOLERANCE: f64 = 1.5;
/// Gradient2: the weight of a new limit against the last.
const SMOOTHING: f64 = 0.2;
/// Gradient2: how many rounds the long average looks back on.
const LONG_WINDOW: f64 = 600.0;
/// Gradient2: the queue that is allowed at least.
const QUEUE: f64 = 4.0;

/// An adaptive limit. Pure: it learns the time from its samples' `now`.
#[derive(Debug)]
pub struct Adaptive {
    config: Config,
    limit: f64,
    round: Round,
    /// The latency without load, or its long average; in nanoseconds, zero while unknown.
    baseline: f64,
    /// When a dropped call last took something off.
    decreased: Tick,
    probing: bool,
    /// So many rounds until the next probe.
    probe_in: u32,
    random: fastrand::Rng,
}

/// The calls since the last decision that began after it.
#[derive(Debug, Default)]
struct Round {
    begun: Tick,
    calls: u32,
    /// Of their latencies, in nanoseconds.
    sum: f64,
    /// The most that were in flight together.
    in_flight: u32,
}

impl Adaptive {
    /// A limit that begins at `config.initial`.
    pub fn new(config: Config) -> Self {
        Self::with_random(config, fastrand::Rng::new())
    }

    /// The same, with the moments of its probes by `random`.
    pub fn with_random(config: Config, random: fastrand::Rng) -> Self {
        let config = config.bounded();
        Self {
            config,
            limit: f64::from(config.initial),
            round: Round::default(),
            baseline: 0.0,
            decreased: Tick::default(),
            probing: false,
            probe_in: FIRST_PROBE,
            random,
        }
    }

    /// How it is found.
    pub const fn algorithm(&self) -> Algorithm {
        self.config.algorithm
    }

    /// How many calls there may be at once now.
    pub fn limit(&self) -> u32 {
        let limit = if self.probing { self.limit / 2.0 } else { self.limit };
        (limit as u32).clamp(self.config.min, self.config.max)
    }

    /// Takes over other bounds or another threshold, and keeps what was found as far as it is within them. Gives the
    /// limit.
    pub(crate) fn reload(&mut self, config: Config) -> u32 {
        self.config = config.bounded();
        self.bound(self.limit);
        self.limit()
    }

    /// Goes on from `limit`. Gives the limit, which is within the bounds.
    pub(crate) fn set(&mut self, limit: u32) -> u32 {
        self.probing = false;
        self.bound(f64::from(limit));
        self.limit()
    }

    /// Learns from a call that has ended `now`. Gives the limit.
    pub fn step(&mut self, sample: Sample, now: Tick) -> u32 {
        if sample.dropped {
            if sample.begun >= self.decreased && self.utilised(sample.in_flight) {
                self.bound(self.limit * BACKOFF);
                self.decreased = now;
                self.begin(now);
            }
        } else if sample.begun >= self.round.begun {
            self.round.calls += 1;
            self.round.sum += nanos(sample.latency) as f64;
            self.round.in_flight = self.round.in_flight.max(sample.in_flight);
            if self.is_over(now) {
                self.decide();
                self.begin(now);
            }
        }
        self.limit()
    }

    fn begin(&mut self, now: Tick) {
        self.round = Round { begun: now, ..Round::default() };
    }

    /// Enough calls for a mean that the slow ones among them have reached too: twice what was in flight.
    fn is_over(&self, now: Tick) -> bool {
        let enough = self.limit().saturating_mul(2).max(FEW);
        self.round.calls >= enough || (self.round.calls >= FEW && now.since(self.round.begun) >= LONG_ROUND)
    }

    fn utilised(&self, in_flight: u32) -> bool {
        in_flight.saturating_mul(2) >= self.limit()
    }

    fn bound(&mut self, limit: f64) {
        self.limit = limit.clamp(f64::from(self.config.min), f64::from(self.config.max));
    }

    fn decide(&mut self) {
        let mean = self.round.sum / f64::from(self.round.calls);
        let utilised = self.utilised(self.round.in_flight);
        match self.config.algorithm {
            Algorithm::Aimd if utilised => self.aimd(mean),
            Algorithm::Aimd => {}
            _ if self.probing || self.baseline == 0.0 => {
                if mean < FAR * self.baseline {
                    // The half of it still made a queue, perhaps: look again soon.
                    self.probe_in = self.probe_in.min(FIRST_PROBE);
                }
                self.baseline = mean;
                self.probing = false;
            }
            Algorithm::Vegas => self.vegas(mean, utilised),
            Algorithm::Gradient2 => self.gradient(mean, utilised),
        }
        if self.config.algorithm != Algorithm::Aimd {
            self.plan_probe();
        }
    }

    fn aimd(&mut self, mean: f64) {
        let slow = self.config.latency.is_some_and(|limit| mean > nanos(limit.get()) as f64);
        self.bound(if slow { self.limit * BACKOFF } else { self.limit + 1.0 });
    }

    fn vegas(&mut self, mean: f64, utilised: bool) {
        if mean < self.baseline {
            // Half of the way: the least of many means would be a stroke of luck rather than the truth.
            self.baseline = f64::midpoint(self.baseline, mean);
        }
        if !utilised {
            return;
        }
        let queue = self.limit * (1.0 - self.baseline / mean);
        let unit = self.limit.log10().max(1.0);
        let (alpha, beta) = (3.0 * unit, 6.0 * unit);
        if queue <= unit {
            self.bound(self.limit + beta);
        } else if queue < alpha {
            self.bound(self.limit + unit);
        } else if queue > self.limit / 3.0 && queue > beta {
            // Far from it: step by step it would take minutes to come down.
            self.bound(self.limit * BACKOFF);
        } else if queue > beta {
            self.bound(self.limit - unit);
        }
    }

    fn gradient(&mut self, mean: f64, utilised: bool) {
        self.baseline += (mean - self.baseline) * 2.0 / (LONG_WINDOW + 1.0);
        if self.baseline > 2.0 * mean {
            // After a long time of overload the average would take as long to forget it.
            self.baseline *= 0.95;
        }
        if !utilised {
            return;
        }
        let gradient = (TOLERANCE * self.baseline / mean).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + self.limit.sqrt().max(QUEUE);
        self.bound(self.limit + (wanted - self.limit) * SMOOTHING);
    }

    fn plan_probe(&mut self) {
        self.probe_in = self.probe_in.saturating_sub(1);
        if self.probe_in == 0 {
            self.probing = true;
            self.probe_in = (PROBE_ROUNDS * (0.5 + self.random.f64() / 2.0)) as u32;
        }
    }
}
