//! How often, or how many at once, each caller may ask: a limit for every key, here or shared by all gateways.

mod concurrent;
mod counter;
mod fields;
mod key;
mod keys;
mod shared;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Request, Response, StatusCode, header};
use schemars::JsonSchema;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_proxy::metrics;
use seawall_proxy::reject::{Reason, Rejection};
use seawall_proxy::{RequestBody, ResponseBody};
use seawall_resilience::rate_limit::{Config, Plan, Rate};
use seawall_types::Period;
use serde::{Deserialize, Serialize};

use self::concurrent::Concurrent;
pub use self::counter::{Calendar, Quota};
use self::counter::{Counter, Decision, State};
use self::fields::Fields;
pub use self::fields::HeadersConfig;
use self::key::Key;
pub use self::key::KeyConfig;
use self::keys::Keys;
use self::shared::Shared;
use super::{FilterError, refused};

/// How much each key may ask: exactly one of `rate`, `quota` and `concurrent`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// What it is called in headers and in a shared store; letters, digits, `.`, `_` and `-`. Each limit of a route has
    /// another. Default `default`.
    #[serde(default = "name")]
    pub name: String,
    /// So many in a time: `100/s`, `10/500ms`, `5/m`; 1 to 1000000 in 1ms to 30d.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// How a rate is counted. Default gcra.
    #[serde(default)]
    pub algorithm: Option<AlgorithmConfig>,
    /// How many may come at once after a pause, 1 to 1000000; not of a sliding window. Default: the rate's count.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000000))]
    pub burst: Option<u32>,
    /// So many in each minute, hour, day or month of the calendar, in UTC: `1000/day`.
    #[serde(default)]
    pub quota: Option<Quota>,
    /// So many under way at once, each until its answer's body has ended.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub concurrent: Option<u32>,
    /// What tells callers apart, all of it together. Default `[client]`.
    #[serde(default = "client")]
    pub key: Vec<KeyConfig>,
    /// How many bits of an IPv6 address tell clients apart, 1 to 128. Default 64: one network is one client.
    #[serde(default = "ipv6_prefix")]
    #[schemars(range(min = 1, max = 128))]
    pub ipv6_prefix: u8,
    /// What becomes of a request that has not all of the key. Default deny.
    #[serde(default)]
    pub without_key: WithoutKey,
    /// What a request takes. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub cost: u32,
    /// The most keys that are remembered here, 1 to 10000000; the one that was not seen for longest is forgotten first.
    /// Default 100000.
    #[serde(default = "keys")]
    #[schemars(range(min = 1, max = 10000000))]
    pub keys: u32,
    /// In which headers the client is told. Default standard.
    #[serde(default)]
    pub headers: HeadersConfig,
    /// A Redis in which all gateways count together: `redis://user:password@host:6379/0`. Default: each by itself.
    #[serde(default)]
    pub store: Option<String>,
    /// The longest that a request waits for the store, 1ms to 10s. Default 20ms.
    #[serde(default)]
    pub deadline: Option<Period>,
    /// What is done when the store does not say. Default local.
    #[serde(default)]
    pub on_failure: Option<OnFailure>,
}

/// How a rate is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlgorithmConfig {
    /// The generic cell rate algorithm: even, and exact over any time.
    #[default]
    Gcra,
    /// Whole refills at the beginning of each period.
    TokenBucket,
    /// What the window before has counted weighs as much as it overlaps with the last period.
    SlidingWindow,
}

/// What becomes of a request that has not all of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WithoutKey {
    /// It is answered with 403.
    #[default]
    Deny,
    /// It is not limited.
    Pass,
    /// All such requests share a key.
    Shared,
}

/// What is done when the store does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The request passes.
    Allow,
    /// It is answered with 503.
    Deny,
    /// This gateway counts by itself, with the same limit.
    #[default]
    Local,
}

fn name() -> String {
    "default".to_owned()
}

fn client() -> Vec<KeyConfig> {
    vec![KeyConfig::Client]
}

const fn ipv6_prefix() -> u8 {
    64
}

const fn one() -> u32 {
    1
}

const fn keys() -> u32 {
    100_000
}

#[derive(Debug)]
pub(crate) struct RateLimit {
    name: String,
    /// The route, or nothing for the whole gateway.
    place: String,
    /// Which limit it is in a store.
    scope: String,
    counters: OnceLock<[Arc<metrics::Counter>; Outcome::ALL.len()]>,
    /// For people: `100/s`.
    limit: String,
    kind: Kind,
    key: Key,
    without_key: WithoutKey,
    cost: u32,
    fields: Fields,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Passed,
    Limited,
    Keyless,
    /// The store did not say; beside what became of the request.
    StoreFailed,
}

impl Outcome {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Passed, "passed"),
        (Self::Limited, "limited"),
        (Self::Keyless, "keyless"),
        (Self::StoreFailed, "store_failed"),
    ];
}

#[derive(Debug)]
enum Kind {
    Counted(Box<Counted>),
    Concurrent(Arc<Concurrent>),
}

#[derive(Debug)]
struct Counted {
    counter: Counter,
    keys: Keys<State>,
    began: Instant,
    shared: Option<Arc<Shared>>,
    on_failure: OnFailure,
}

impl RateLimit {
    /// `place` is the route that it limits, or nothing for the whole gateway.
    pub(crate) fn try_new(config: &RateLimitConfig, place: &str) -> Result<Self, FilterError> {
        Self::checked(config, place)
            .map_err(|FilterError(what)| FilterError(format!("the limit `{}`: {what}", config.name)))
    }

    fn checked(config: &RateLimitConfig, place: &str) -> Result<Self, FilterError> {
        let wrong = |what: String| Err(FilterError(what));
        let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
        if !(1..=64).contains(&config.name.len()) || !config.name.chars().all(plain) {
            return wrong("a name is 1 to 64 letters, digits, `.`, `_` and `-`".into());
        }
        if !(1..=10_000_000).contains(&config.keys) {
            return wrong(format!("`keys` is {}, allowed is 1 to 10000000", config.keys));
        }
        if config.rate.is_none() && (config.algorithm.is_some() || config.burst.is_some()) {
            return wrong("`algorithm` and `burst` need a `rate`".into());
        }
        if config.store.is_none() && (config.deadline.is_some() || config.on_failure.is_some()) {
            return wrong("`deadline` and `on_failure` need a `store`".into());
        }
        let most;
        let (limit, kind, fields) = match (config.rate, config.quota, config.concurrent) {
            (Some(rate), None, None) => {
                let counter;
                (counter, most) = rated(config, rate)?;
                let window = match rate.per().get() {
                    per if per.subsec_nanos() == 0 => format!(";w={}", per.as_secs()),
                    _ => String::new(),
                };
                let fields = Fields::new(config.headers, &config.name, rate.count().into(), &window);
                (rate.to_string(), Kind::Counted(Box::new(counted(config, counter)?)), fields)
            }
            (None, Some(quota), None) => {
                most = quota.limit;
                let window = quota.per.seconds().map(|seconds| format!(";w={seconds}")).unwrap_or_default();
                let fields = Fields::new(config.headers, &config.name, quota.limit.into(), &window);
                (quota.to_string(), Kind::Counted(Box::new(counted(config, Counter::Quota(quota))?)), fields)
            }
            (None, None, Some(limit)) => {
                if config.store.is_some() {
                    return wrong("what is under way is counted by each gateway for itself: leave `store` out".into());
                }
                if limit == 0 {
                    return wrong("`concurrent` is 0, at least 1 is allowed".into());
                }
                most = 1;
                let fields = Fields::new(config.headers, &config.name, limit.into(), ";qu=\"concurrent-requests\"");
                let concurrent = Arc::new(Concurrent::new(limit, config.keys as usize));
                (format!("{limit} at once"), Kind::Concurrent(concurrent), fields)
            }
            _ => return wrong("give exactly one of `rate`, `quota` and `concurrent`".into()),
        };
        if !(1..=most).contains(&config.cost) {
            return wrong(format!("`cost` is {}, allowed is 1 to {most}, or no request would ever pass", config.cost));
        }
        let key = Key::try_new(&config.key, config.ipv6_prefix)?;
        let (without_key, cost) = (config.without_key, config.cost);
        Ok(Self {
            name: config.name.clone(),
            place: place.to_owned(),
            scope: format!("{place}:{}", config.name),
            counters: OnceLock::new(),
            limit,
            kind,
            key,
            without_key,
            cost,
            fields,
        })
    }

    async fn answer(&self, request: Request<RequestBody>, next: Next<'_>) -> Response<ResponseBody> {
        let key = match self.key.of(request.headers(), &next) {
            Ok(key) => key,
            Err(missing) => {
                self.count(next, Outcome::Keyless);
                match self.without_key {
                    WithoutKey::Pass => return next.run(request).await,
                    WithoutKey::Shared => Vec::new(),
                    WithoutKey::Deny => return keyless(missing),
                }
            }
        };
        let counted = match &self.kind {
            Kind::Counted(counted) => counted,
            Kind::Concurrent(concurrent) => {
                let decision = |pass, remaining| Decision { pass, remaining, reset: Duration::ZERO, retry_after: None };
                let Some((place, left)) = concurrent.take(&key) else {
                    return self.refuse(next, &decision(false, 0), false);
                };
                self.count(next, Outcome::Passed);
                let mut response = next.run(request).await;
                self.fields.tell(response.headers_mut(), &decision(true, left), false);
                return response.map(|body| place.until(body));
            }
        };
        let said = match &counted.shared {
            None => Some(counted.here(&key, self.cost)),
            Some(shared) => match (shared.take(&self.scope, &key, self.cost).await, counted.on_failure) {
                (Some(decision), _) => Some(decision),
                (None, OnFailure::Local) => Some(counted.here(&key, self.cost)),
                (None, OnFailure::Allow) => None,
                (None, OnFailure::Deny) => return unknown(),
            },
        };
        let Some(decision) = said else { return next.run(request).await };
        if !decision.pass {
            return self.refuse(next, &decision, true);
        }
        self.count(next, Outcome::Passed);
        let mut response = next.run(request).await;
        self.fields.tell(response.headers_mut(), &decision, true);
        response
    }

    fn count(&self, next: Next<'_>, outcome: Outcome) {
        let counters = self.counters.get_or_init(|| {
            Outcome::ALL.map(|(_, result)| {
                let help = "Requests that came to a rate limit, by what became of them.";
                let labels = [("route", &*self.place), ("limit", &*self.name), ("result", result)];
                next.counter("seawall_rate_limit_requests_total", help, &labels)
            })
        });
        counters[outcome as usize].increment();
    }

    fn refuse(&self, next: Next<'_>, decision: &Decision, resets: bool) -> Response<ResponseBody> {
        self.count(next, Outcome::Limited);
        let detail = format!("more than {} (`{}`)", self.limit, self.name);
        let mut rejection = Rejection::unsent(Reason::RateLimit, next.service().into(), detail);
        rejection.retry_after = decision.retry_after;
        let mut response = rejection.into_response();
        self.fields.tell(response.headers_mut(), decision, resets);
        response
    }
}

impl Counted {
    fn here(&self, key: &[u8], cost: u32) -> Decision {
        self.keys.with(key, self.counter.full(), |state| {
            // Read under the key's lock, so that it never goes back.
            let now = match self.counter {
                Counter::Quota(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
                Counter::Plan(_) | Counter::Window { .. } => self.began.elapsed(),
            };
            self.counter.take(state, u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), cost)
        })
    }
}

/// The counter of a rate, and the most that one request may cost.
fn rated(config: &RateLimitConfig, rate: Rate) -> Result<(Counter, u32), FilterError> {
    let algorithm = match config.algorithm.unwrap_or_default() {
        AlgorithmConfig::SlidingWindow => {
            if config.burst.is_some() {
                return Err(FilterError("a sliding window has no `burst`".into()));
            }
            let window = u64::try_from(rate.per().get().as_nanos()).unwrap_or(u64::MAX);
            return Ok((Counter::Window { limit: rate.count().into(), window }, rate.count()));
        }
        AlgorithmConfig::Gcra => seawall_resilience::rate_limit::Algorithm::Gcra,
        AlgorithmConfig::TokenBucket => seawall_resilience::rate_limit::Algorithm::TokenBucket,
    };
    let burst = config.burst.unwrap_or(rate.count());
    if !(1..=1_000_000).contains(&burst) {
        return Err(FilterError(format!("`burst` is {burst}, allowed is 1 to 1000000")));
    }
    const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
    if rate.interval().saturating_mul(burst) > YEAR {
        return Err(FilterError(format!("a burst of {burst} would take more than a year to come back at {rate}")));
    }
    let plan = Plan::new(&Config { algorithm, rate, burst, wait: Period::default() }, 0);
    Ok((Counter::Plan(plan), burst))
}

fn counted(config: &RateLimitConfig, counter: Counter) -> Result<Counted, FilterError> {
    let deadline = config.deadline.unwrap_or(Period::millis(20));
    if !(Period::millis(1)..=Period::secs(10)).contains(&deadline) {
        return Err(FilterError(format!("`deadline` is {deadline}, allowed is 1ms to 10s")));
    }
    let shared = config.store.as_ref().map(|url| Shared::try_new(url, deadline.get(), counter)).transpose()?;
    Ok(Counted {
        counter,
        keys: Keys::new(config.keys as usize),
        began: Instant::now(),
        shared: shared.map(Arc::new),
        on_failure: config.on_failure.unwrap_or_default(),
    })
}

fn keyless(missing: &str) -> Response<ResponseBody> {
    refused(StatusCode::FORBIDDEN, &format!("the request has no {missing}, and its rate is limited by that"))
}

fn unknown() -> Response<ResponseBody> {
    let mut response = refused(StatusCode::SERVICE_UNAVAILABLE, "the rate limit cannot be asked; try again");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

impl Filter for RateLimit {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(self.answer(request, next))
    }
}
