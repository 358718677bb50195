//! What a configuration says of how services are called, and a policy together with its state.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use seawall_types::{Period, Ratio, ServiceName};
use serde::{Deserialize, Serialize};

use crate::breaker::{self, Breaker, Window};
use crate::bulkhead::{self, Bulkhead};
use crate::retry::{Budget, Retry, RetryConfig};
use crate::{Clock, Name, Problems};

/// How a service is called, wherever it is called from. What is not given is taken from the policy `default`, and
/// from Seawall's own defaults after that, field by field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// The time for the whole call, all attempts and waits included. Default 10s.
    pub timeout: Option<Period>,
    /// The time for one attempt. Default: what is left of `timeout`.
    pub attempt_timeout: Option<Period>,
    /// How a failed call is repeated.
    pub retry: RetryConfig,
    /// When to stop calling a service that fails.
    pub breaker: BreakerConfig,
    /// How many calls may be under way at once.
    pub bulkhead: BulkheadConfig,
}

/// When to stop calling a service that fails, and when to trust it again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// `false` switches it off. Default true.
    pub enabled: Option<bool>,
    /// Opens when this share of the window failed. Default 50%.
    pub failure_rate: Option<Ratio>,
    /// A call that takes longer is slow. Default: none is.
    pub slow_call: Option<Period>,
    /// Opens when this share of the window was slow. Default 100%.
    pub slow_rate: Option<Ratio>,
    /// How many calls to look back on. Default 100 calls.
    pub window: Option<Window>,
    /// No verdict before this many calls. Default 20, or the window if that is shorter.
    #[schemars(range(min = 1, max = 10000))]
    pub minimum_calls: Option<u32>,
    /// How long it stays open before it probes. Default 10s.
    pub open_for: Option<Period>,
    /// How many probes decide. Default 5.
    #[schemars(range(min = 1, max = 1000))]
    pub half_open_calls: Option<u16>,
}

/// How many calls may be under way at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BulkheadConfig {
    /// `false` switches it off. Default true.
    pub enabled: Option<bool>,
    /// How many calls may be under way at once. Default 1024.
    #[schemars(range(min = 1, max = 1000000))]
    pub concurrent: Option<u32>,
    /// How long a call waits for a place. Default 0s: not at all.
    pub wait: Option<Period>,
    /// How many calls may wait. Default: as many as `concurrent`.
    #[schemars(range(max = 1000000))]
    pub queue: Option<u32>,
}

impl PolicyConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    fn or(&self, base: &Self) -> Self {
        let (b, bb) = (&self.breaker, &base.breaker);
        let (h, hb) = (&self.bulkhead, &base.bulkhead);
        Self {
            timeout: self.timeout.or(base.timeout),
            attempt_timeout: self.attempt_timeout.or(base.attempt_timeout),
            retry: self.retry.or(&base.retry),
            breaker: BreakerConfig {
                enabled: b.enabled.or(bb.enabled),
                failure_rate: b.failure_rate.or(bb.failure_rate),
                slow_call: b.slow_call.or(bb.slow_call),
                slow_rate: b.slow_rate.or(bb.slow_rate),
                window: b.window.or(bb.window),
                minimum_calls: b.minimum_calls.or(bb.minimum_calls),
                open_for: b.open_for.or(bb.open_for),
                half_open_calls: b.half_open_calls.or(bb.half_open_calls),
            },
            bulkhead: BulkheadConfig {
                enabled: h.enabled.or(hb.enabled),
                concurrent: h.concurrent.or(hb.concurrent),
                wait: h.wait.or(hb.wait),
                queue: h.queue.or(hb.queue),
            },
        }
    }

    /// Every value that is out of its range, as `(path below the policy, what is wrong)`.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Problems::default();
        found.positive("timeout", self.timeout);
        found.positive("attempt_timeout", self.attempt_timeout);
        found.positive("breaker.slow_call", self.breaker.slow_call);
        found.positive("breaker.open_for", self.breaker.open_for);
        self.retry.problems(&mut found);
        let mut range = |path, value: Option<u32>, low: u32, high: u32| found.range(path, value, low, high);
        range("breaker.minimum_calls", self.breaker.minimum_calls, 1, Window::MAX);
        range("breaker.half_open_calls", self.breaker.half_open_calls.map(u32::from), 1, 1000);
        range("bulkhead.concurrent", self.bulkhead.concurrent, 1, 1_000_000);
        range("bulkhead.queue", self.bulkhead.queue, 0, 1_000_000);
        for (path, share) in
            [("breaker.failure_rate", self.breaker.failure_rate), ("breaker.slow_rate", self.breaker.slow_rate)]
        {
            found.some(path, share, "nothing would ever pass");
        }
        found.ordered("attempt_timeout", self.attempt_timeout, "timeout", self.timeout);
        found.into_vec()
    }

    fn resolve(&self) -> Policy {
        let window = self.breaker.window.or(Window::calls(100)).expect("100 is within the range");
        let concurrent = self.bulkhead.concurrent.unwrap_or(1024).max(1);
        Policy {
            timeout: self.timeout.unwrap_or(Period::secs(10)),
            attempt_timeout: self.attempt_timeout,
            retry: self.retry.resolve(),
            breaker: self.breaker.enabled.unwrap_or(true).then(|| breaker::Config {
                failure_rate: self.breaker.failure_rate.unwrap_or(Ratio::percent(50)),
                slow_call: self.breaker.slow_call,
                slow_rate: self.breaker.slow_rate.unwrap_or(Ratio::percent(100)),
                window,
                minimum_calls: self.breaker.minimum_calls.unwrap_or(20).clamp(1, window.get()),
                open_for: self.breaker.open_for.unwrap_or(Period::secs(10)),
                half_open_calls: self.breaker.half_open_calls.unwrap_or(5).max(1),
            }),
            bulkhead: self.bulkhead.enabled.unwrap_or(true).then(|| bulkhead::Config {
                concurrent,
                wait: self.bulkhead.wait.unwrap_or_default(),
                queue: self.bulkhead.queue.unwrap_or(concurrent),
            }),
        }
    }
}

/// How one service is called, with nothing left open.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The time for the whole call.
    pub timeout: Period,
    /// The time for one attempt, where it is less than what is left of the whole.
    pub attempt_timeout: Option<Period>,
    /// How a failed call is repeated.
    pub retry: Retry,
    /// The breaker, unless it is switched off.
    pub breaker: Option<breaker::Config>,
    /// The bulkhead, unless it is switched off.
    pub bulkhead: Option<bulkhead::Config>,
}

/// The policies of a file by service; `default` is the base of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Policies(pub BTreeMap<ServiceName, PolicyConfig>);

impl Policies {
    /// The policy of `service`, complete.
    pub fn of(&self, service: &str) -> Policy {
        let base = self.0.get("default").cloned().unwrap_or_default();
        self.0.get(service).map_or_else(|| base.resolve(), |policy| policy.or(&base).resolve())
    }
}

/// A policy with its state: what stands between the callers in this process and one service.
#[derive(Debug)]
pub struct Guard {
    /// The service.
    pub name: Arc<str>,
    /// What the policy says.
    pub policy: Policy,
    /// Its breaker.
    pub breaker: Option<Arc<Breaker>>,
    /// Its bulkhead.
    pub bulkhead: Option<Bulkhead>,
    /// Its retry budget.
    pub budget: Budget,
}

impl Guard {
    /// Fresh state for `policy`. `listener` hears of the breaker's transitions.
    pub fn new(name: Arc<str>, policy: Policy, listener: breaker::Listener) -> Self {
        Self {
            breaker: policy.breaker.clone().map(|config| Arc::new(Breaker::new(Name::new(&name), config, listener))),
            bulkhead: policy.bulkhead.clone().map(|config| Bulkhead::new(Name::new(&name), config)),
            budget: Budget::new(policy.retry.budget, policy.retry.budget_floor, Clock::default().now()),
            name,
            policy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_takes_from_the_default_field_by_field() {
        let name = |text: &str| ServiceName::try_new(text).unwrap();
        let mut base = PolicyConfig { timeout: Some(Period::secs(3)), ..PolicyConfig::default() };
        base.breaker.window = Window::calls(7);
        let mut payment = PolicyConfig::default();
        payment.breaker.failure_rate = Some(Ratio::percent(30));
        payment.bulkhead.enabled = Some(false);
        let policies = Policies([(name("default"), base), (name("payment"), payment)].into());
        let payment = policies.of("payment");
        let breaker = payment.breaker.unwrap();
        assert_eq!(payment.timeout, Period::secs(3));
        assert_eq!((breaker.failure_rate, breaker.window.get(), breaker.minimum_calls), (Ratio::percent(30), 7, 7));
        assert_eq!(payment.bulkhead, None);
        assert_eq!(policies.of("other").bulkhead.unwrap().concurrent, 1024);
        assert_eq!(Policies::default().of("x").timeout, Period::secs(10));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let mut policy = PolicyConfig {
            timeout: Some(Period::secs(0)),
            attempt_timeout: Some(Period::secs(1)),
            ..PolicyConfig::default()
        };
        policy.retry.attempts = Some(0);
        policy.breaker.failure_rate = Some(Ratio::percent(0));
        let paths: Vec<_> = policy.problems().into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["timeout", "retry.attempts", "breaker.failure_rate", "attempt_timeout"]);
    }
}
