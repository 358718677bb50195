//! What a configuration says of how services are called, and a policy together with its state.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use seawall_types::{Period, Ratio, ServiceName};
use serde::{Deserialize, Serialize};

use crate::breaker::{self, Breaker, BreakerConfig};
use crate::bulkhead::{self, Bulkhead, BulkheadConfig};
use crate::retry::{Budget, Retry};
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

/// How a failed call is repeated: idempotent methods, requests with an `Idempotency-Key`, and whatever was provably
/// never sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// All attempts, the first included, 1 to 20. Default 2; 1 means no retry.
    #[schemars(range(min = 1, max = 20))]
    pub attempts: Option<u32>,
    /// The longest wait before the first retry; it doubles each time, and the wait is random below it. Default 25ms.
    pub backoff: Option<Period>,
    /// No wait is longer. Default 1s.
    pub max_backoff: Option<Period>,
    /// How many retries there may be for the calls that are made. Default 20%, and 3 a second in any case.
    pub budget: Option<Ratio>,
}

impl PolicyConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    fn or(&self, base: &Self) -> Self {
        let (r, rb) = (&self.retry, &base.retry);
        Self {
            timeout: self.timeout.or(base.timeout),
            attempt_timeout: self.attempt_timeout.or(base.attempt_timeout),
            retry: RetryConfig {
                attempts: r.attempts.or(rb.attempts),
                backoff: r.backoff.or(rb.backoff),
                max_backoff: r.max_backoff.or(rb.max_backoff),
                budget: r.budget.or(rb.budget),
            },
            breaker: self.breaker.or(&base.breaker),
            bulkhead: self.bulkhead.or(&base.bulkhead),
        }
    }

    /// Every value that is out of its range, as `(path below the policy, what is wrong)`.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Problems::default();
        found.positive("timeout", self.timeout);
        found.positive("attempt_timeout", self.attempt_timeout);
        found.range("retry.attempts", self.retry.attempts, 1, 20);
        self.bulkhead.problems(&mut found);
        found.ordered("retry.backoff", self.retry.backoff, "max_backoff", self.retry.max_backoff);
        found.ordered("attempt_timeout", self.attempt_timeout, "timeout", self.timeout);
        self.breaker.problems(&mut found);
        found.into_vec()
    }

    /// The policy with nothing left open: what is absent is as Seawall has it by default.
    pub fn complete(&self) -> Policy {
        Policy {
            timeout: self.timeout.unwrap_or(Period::secs(10)),
            attempt_timeout: self.attempt_timeout,
            retry: Retry {
                attempts: self.retry.attempts.unwrap_or(2).clamp(1, 20),
                backoff: self.retry.backoff.unwrap_or(Period::millis(25)),
                max_backoff: self.retry.max_backoff.unwrap_or(Period::secs(1)),
                budget: self.retry.budget.unwrap_or(Ratio::percent(20)),
            },
            breaker: self.breaker.resolve(),
            bulkhead: self.bulkhead.resolve(),
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
        self.0.get(service).map_or_else(|| base.complete(), |policy| policy.or(&base).complete())
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
            breaker: policy
                .breaker
                .clone()
                .map(|config| Arc::new(Breaker::new(Name::new(&name), config, Clock::default(), listener))),
            bulkhead: policy.bulkhead.clone().map(|config| Bulkhead::new(Name::new(&name), config, Clock::default())),
            budget: Budget::new(policy.retry.budget),
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
        base.breaker.window = breaker::Window::calls(7);
        let mut payment = PolicyConfig::default();
        payment.breaker.failure_rate = Some(Ratio::percent(30));
        payment.bulkhead.enabled = Some(false);
        let policies = Policies([(name("default"), base), (name("payment"), payment)].into());
        let payment = policies.of("payment");
        let breaker = payment.breaker.unwrap();
        assert_eq!(payment.timeout, Period::secs(3));
        let limits = breaker.limits;
        assert_eq!((limits.failure_rate, limits.minimum_calls), (Ratio::percent(30), 7));
        assert_eq!(breaker.window, breaker::Window::Calls(7));
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
        assert_eq!(paths, ["timeout", "retry.attempts", "attempt_timeout", "breaker.failure_rate"]);
    }
}
