//! What a breaker may be told: as it is written, and complete.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use seawall_types::{Period, Ratio};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::problems::{Problems, merge};

/// What a breaker looks back on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The last so many calls, exact and sliding: `100 calls`.
    Calls(u32),
    /// The calls of the last so long, in ten slices: `30s`.
    Time(Period),
    /// Calls in a row that failed, or were slow where there is such a thing; any other success begins anew, and rates do
    /// not matter: `5 consecutive`.
    Consecutive(u32),
}

impl Window {
    /// The longest window of calls.
    pub const MAX: u32 = 10_000;
    /// The longest window of time.
    pub const LONGEST: Period = Period::secs(3600);
    /// The shortest window of time.
    pub const SHORTEST: Period = Period::millis(10);

    /// A window of the last `calls` calls; `None` outside 1 to [`Window::MAX`].
    pub const fn calls(calls: u32) -> Option<Self> {
        if calls == 0 || calls > Self::MAX { None } else { Some(Self::Calls(calls)) }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calls(calls) => write!(f, "{calls} calls"),
            Self::Time(period) => period.fmt(f),
            Self::Consecutive(failures) => write!(f, "{failures} consecutive"),
        }
    }
}

impl std::str::FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse().ok().filter(|n| (1..=Self::MAX).contains(n));
        let trimmed = text.trim();
        let (window, most) = if let Some(calls) = trimmed.strip_suffix("calls").or(trimmed.strip_suffix("call")) {
            (number(calls).map(Self::Calls), "calls")
        } else if let Some(failures) = trimmed.strip_suffix("consecutive") {
            (number(failures).map(Self::Consecutive), "consecutive")
        } else {
            let period: Period = trimmed
                .parse()
                .map_err(|_| format!("`{text}` is not a window: write `100 calls`, `30s` or `5 consecutive`"))?;
            if !(Self::SHORTEST..=Self::LONGEST).contains(&period) {
                return Err(format!("`{text}` is not a window: from {} to {}", Self::SHORTEST, Self::LONGEST));
            }
            return Ok(Self::Time(period));
        };
        window.ok_or_else(|| format!("`{text}` is not a window: write `1 {most}` to `{} {most}`", Self::MAX))
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
                f.write_str("a window such as `100 calls`, `30s` or `5 consecutive`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Window, E> {
                text.parse().map_err(E::custom)
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
            "description": "What the breaker looks back on: `100 calls`, `30s`, or `5 consecutive` bad calls.",
            "examples": ["100 calls", "30s", "5 consecutive"],
            "pattern": r"^\s*([0-9]+\s*(calls?|consecutive)|([0-9]+(\.[0-9]+)?\s*[a-zµ]+\s*)+)\s*$"
        })
    }
}

/// How the half-open state decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Closes when every probe went well; the first bad one opens it again.
    All,
    /// The rates of the closed state, over the probes.
    #[default]
    Rate,
    /// After the probes, 1%, 10% and 50% of the traffic have to go well before all of it passes.
    Ramp,
}

/// What the operator has decided, whatever the calls say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The calls decide.
    #[default]
    Automatic,
    /// Every call passes and none is watched.
    Disabled,
    /// No call passes.
    ForcedOpen,
    /// Every call passes and is watched: "would have opened".
    MetricsOnly,
}

/// Whose edge semantics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Semantics {
    /// Our own.
    #[default]
    Seawall,
    /// Resilience4j's, for a fleet that moves over: one slice a second, all probes awaited before a verdict, the open
    /// wait exclusive of its last moment, probes without a lease, cancelled calls always ignored.
    Resilience4j,
}

/// When to stop calling a service that fails, and when to trust it again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// `false` leaves it out. Default true.
    pub enabled: Option<bool>,
    /// What the operator has decided, whatever the calls say. Default automatic.
    pub mode: Option<Mode>,
    /// What to look back on: `100 calls`, `30s`, `5 consecutive`. Default 100 calls.
    pub window: Option<Window>,
    /// No verdict before this many calls, 1 to 10000. Default 20; never more than a window of calls holds.
    #[schemars(range(min = 1, max = 10000))]
    pub minimum_calls: Option<u32>,
    /// Opens when at least this share of the window failed. Default 50%.
    pub failure_rate: Option<Ratio>,
    /// A call that takes longer is slow. Default: none is.
    pub slow_call: Option<Period>,
    /// Opens when at least this share of the window was slow. Default 100%.
    pub slow_rate: Option<Ratio>,
    /// A call that is given up counts as a failure when it had lasted longer, and as nothing otherwise. Default:
    /// `slow_call`, or 1s.
    pub cancelled_after: Option<Period>,
    /// How long it stays open before it probes. Default 10s.
    pub open_for: Option<Period>,
    /// Each time it opens again without having closed, `open_for` is multiplied by this, 1 to 10. Default 1.
    #[schemars(range(min = 1.0, max = 10.0))]
    pub open_growth: Option<f64>,
    /// It never stays open longer, whatever the growth or the service's `Retry-After`. Default 5m, or `open_for`.
    pub max_open_for: Option<Period>,
    /// The wait is longer or shorter by up to this share, at random. Default 0%.
    pub open_jitter: Option<Ratio>,
    /// Stays open for as long as a failed call's `Retry-After` asks, if one did. Default false.
    pub retry_after: Option<bool>,
    /// How many probes decide in the half-open state, 1 to 1000. Default 5.
    #[schemars(range(min = 1, max = 1000))]
    pub half_open_calls: Option<u16>,
    /// How the half-open state decides: `all`, `rate` or `ramp`. Default rate.
    pub verdict: Option<Verdict>,
    /// A probe that is not back by then is replaced by another; 1ms to a year. Default: `open_for`, or twice `slow_call` if longer.
    pub probe_lease: Option<Period>,
    /// A second set of thresholds, watched only: it is told when it would have opened.
    pub watch: Option<WatchConfig>,
    /// Whose edge semantics: `seawall` or `resilience4j`. Default seawall.
    pub semantics: Option<Semantics>,
}

/// Thresholds that are watched beside those that count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// As in the breaker; default: the same.
    pub failure_rate: Option<Ratio>,
    /// As in the breaker; default: the same.
    pub slow_rate: Option<Ratio>,
    /// As in the breaker; default: the same.
    #[schemars(range(min = 1, max = 10000))]
    pub minimum_calls: Option<u32>,
}

impl BreakerConfig {
    pub(crate) fn or(&self, base: &Self) -> Self {
        merge!(self, base; enabled, mode, window, minimum_calls, failure_rate, slow_call, slow_rate, cancelled_after,
            open_for, open_growth, max_open_for, open_jitter, retry_after, half_open_calls, verdict, probe_lease, watch,
            semantics)
    }

    pub(crate) fn problems(&self, found: &mut Problems) {
        found.positive("breaker.slow_call", self.slow_call);
        found.positive("breaker.cancelled_after", self.cancelled_after);
        found.positive("breaker.open_for", self.open_for);
        found.positive("breaker.max_open_for", self.max_open_for);
        found.range("breaker.probe_lease", self.probe_lease, SHORTEST_LEASE, FAR);
        found.range("breaker.minimum_calls", self.minimum_calls, 1, Window::MAX);
        found.range("breaker.half_open_calls", self.half_open_calls, 1, 1000);
        found.range("breaker.open_growth", self.open_growth, 1.0, 10.0);
        found.some("breaker.failure_rate", self.failure_rate, "nothing would ever pass");
        found.some("breaker.slow_rate", self.slow_rate, "nothing would ever pass");
        found.ordered("breaker.open_for", self.open_for, "max_open_for", self.max_open_for);
        if let Some(watch) = &self.watch {
            found.range("breaker.watch.minimum_calls", watch.minimum_calls, 1, Window::MAX);
            found.some("breaker.watch.failure_rate", watch.failure_rate, "it would always have opened");
            found.some("breaker.watch.slow_rate", watch.slow_rate, "it would always have opened");
        }
        let exact = self.semantics == Some(Semantics::Resilience4j);
        let watched = self.watch.as_ref().and_then(|watch| watch.minimum_calls);
        if let (Some(Window::Calls(size)), Some(minimum), false) = (self.window, watched, exact)
            && minimum > size
        {
            found.add("breaker.watch.minimum_calls", format!("of {minimum} is more than the window of {size} calls"));
        }
        match self.window {
            // Resilience4j takes the smaller of the two, and so does its mode.
            Some(Window::Calls(size)) if !exact && self.minimum_calls.is_some_and(|minimum| minimum > size) => {
                let minimum = self.minimum_calls.unwrap_or_default();
                found.add("breaker.minimum_calls", format!("of {minimum} is more than the window of {size} calls"));
            }
            Some(Window::Consecutive(_)) if self.failure_rate.is_some() || self.minimum_calls.is_some() => {
                found.add("breaker.window", "counts failures in a row: no `failure_rate` or `minimum_calls` beside it");
            }
            Some(Window::Consecutive(_)) if self.slow_rate.is_some() || self.watch.is_some() => {
                found.add("breaker.window", "counts failures in a row: no `slow_rate` or `watch` beside it");
            }
            Some(Window::Time(period)) if exact && (period.subsec_nanos() != 0 || period > SECONDS) => {
                found.add("breaker.window", format!("of {period} must be whole seconds up to {SECONDS} here"));
            }
            _ => {}
        }
    }

    /// What has no effect for want of something else.
    pub(crate) fn idle(&self, found: &mut Problems) {
        if self.slow_call.is_none() {
            let (watched, all) = (self.watch.as_ref().and_then(|watch| watch.slow_rate), Some(Ratio::percent(100)));
            found.idle("breaker.slow_rate", self.slow_rate, all, "slow_call");
            found.idle("breaker.watch.slow_rate", watched, all, "breaker.slow_call");
        }
    }

    pub(crate) fn resolve(&self) -> Option<Config> {
        if self.enabled == Some(false) {
            return None;
        }
        let base = Config::default();
        let window = self.window.unwrap_or(base.window);
        let minimum_calls = self.minimum_calls.unwrap_or(base.limits.minimum_calls);
        let limits = Limits {
            failure_rate: self.failure_rate.unwrap_or(base.limits.failure_rate),
            slow_rate: self.slow_rate.unwrap_or(base.limits.slow_rate),
            minimum_calls,
        };
        let open_for = self.open_for.unwrap_or(base.open_for);
        let semantics = self.semantics.unwrap_or_default();
        let exact = semantics == Semantics::Resilience4j;
        let slow_twice = self.slow_call.map_or(Period::default(), |slow| slow.saturating_mul(2).into());
        let config = Config {
            mode: self.mode.unwrap_or_default(),
            window,
            limits,
            slow_call: self.slow_call,
            cancelled_after: self.cancelled_after.or(self.slow_call).unwrap_or(base.cancelled_after),
            open_for,
            open_growth: self.open_growth.unwrap_or(base.open_growth),
            max_open_for: self.max_open_for.unwrap_or(base.max_open_for),
            open_jitter: self.open_jitter.unwrap_or(base.open_jitter),
            retry_after: self.retry_after.unwrap_or(false),
            half_open_calls: self.half_open_calls.unwrap_or(base.half_open_calls),
            verdict: self.verdict.unwrap_or_default(),
            probe_lease: self.probe_lease.or((!exact).then(|| open_for.max(slow_twice))),
            watch: self.watch.as_ref().map(|watch| Limits {
                failure_rate: watch.failure_rate.unwrap_or(limits.failure_rate),
                slow_rate: watch.slow_rate.unwrap_or(limits.slow_rate),
                minimum_calls: watch.minimum_calls.unwrap_or(limits.minimum_calls),
            }),
            semantics,
        };
        Some(config.bounded())
    }
}

/// A lease that is shorter than a call bounds no probes.
const SHORTEST_LEASE: Period = Period::millis(1);
/// Longer than anything stays open, and short enough to be added to any clock.
const FAR: Period = Period::secs(365 * 24 * 3600);
/// The longest time window in slices of a second.
const SECONDS: Period = Period::secs(120);

/// When a window is too bad.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// At least this share failed.
    pub failure_rate: Ratio,
    /// At least this share was slow.
    pub slow_rate: Ratio,
    /// No verdict before this many calls.
    pub minimum_calls: u32,
}

/// What a breaker does. [`BreakerConfig`] says what each field means, and its range; a breaker that is given a value
/// beyond it takes the nearest within.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is documented where it is written, in BreakerConfig")]
pub struct Config {
    pub mode: Mode,
    pub window: Window,
    pub limits: Limits,
    pub slow_call: Option<Period>,
    pub cancelled_after: Period,
    pub open_for: Period,
    pub open_growth: f64,
    pub max_open_for: Period,
    pub open_jitter: Ratio,
    pub retry_after: bool,
    pub half_open_calls: u16,
    pub verdict: Verdict,
    /// `None` waits for a probe for ever.
    pub probe_lease: Option<Period>,
    pub watch: Option<Limits>,
    pub semantics: Semantics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Automatic,
            window: Window::Calls(100),
            limits: Limits { failure_rate: Ratio::percent(50), slow_rate: Ratio::percent(100), minimum_calls: 20 },
            slow_call: None,
            cancelled_after: Period::secs(1),
            open_for: Period::secs(10),
            open_growth: 1.0,
            max_open_for: Period::secs(300),
            open_jitter: Ratio::percent(0),
            retry_after: false,
            half_open_calls: 5,
            verdict: Verdict::Rate,
            probe_lease: Some(Period::secs(10)),
            watch: None,
            semantics: Semantics::Seawall,
        }
    }
}

impl Config {
    /// With every value in its range: whoever wrote it, no call may panic because of it, or find the breaker shut for ever.
    #[must_use]
    pub(super) fn bounded(mut self) -> Self {
        let exact = self.exact();
        self.window = match self.window {
            Window::Calls(size) => Window::Calls(size.clamp(1, Window::MAX)),
            Window::Consecutive(failures) => Window::Consecutive(failures.clamp(1, Window::MAX)),
            Window::Time(period) => Window::Time(period.clamp(Window::SHORTEST, Window::LONGEST)),
        };
        let most = match self.window {
            Window::Calls(size) if !exact => size,
            _ => Window::MAX,
        };
        self.limits.minimum_calls = self.limits.minimum_calls.clamp(1, most);
        if let Some(watch) = &mut self.watch {
            watch.minimum_calls = watch.minimum_calls.clamp(1, most);
        }
        self.open_for = self.open_for.min(FAR);
        self.max_open_for = self.max_open_for.clamp(self.open_for, FAR);
        self.open_growth = if self.open_growth.is_nan() { 1.0 } else { self.open_growth.clamp(1.0, 10.0) };
        self.half_open_calls = self.half_open_calls.clamp(1, 1000);
        self.probe_lease = self.probe_lease.map(|lease| lease.clamp(SHORTEST_LEASE, FAR));
        self
    }

    pub(super) fn exact(&self) -> bool {
        self.semantics == Semantics::Resilience4j
    }

    /// How many results the half-open state needs.
    pub(super) fn probes_needed(&self) -> u32 {
        let probes = u32::from(self.half_open_calls);
        if self.exact() { probes.min(self.limits.minimum_calls) } else { probes }
    }

    /// How long it stays open when it opens for the `opens`th time in a row. `random` is uniform in 0..1.
    pub(super) fn open_wait(&self, opens: u32, random: f64) -> std::time::Duration {
        let exponent = i32::try_from(opens.saturating_sub(1)).unwrap_or(i32::MAX).min(64);
        let grown = self.open_for.as_secs_f64() * self.open_growth.powi(exponent);
        let most = self.max_open_for.as_secs_f64();
        let spread = 1.0 + self.open_jitter.get() * (2.0 * random - 1.0);
        std::time::Duration::from_secs_f64((grown.min(most) * spread).min(most))
    }
}
