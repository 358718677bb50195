//! What a configuration says of how services are called.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};

use crate::breaker::{self, BreakerConfig};
use crate::bulkhead::{self, BulkheadConfig};
use crate::chaos::{self, ChaosConfig};
use crate::hedge::{self, HedgeConfig};
use crate::problems::Problems;
use crate::rate_limit::{self, RateLimitConfig};
use crate::retry::{Retry, RetryConfig};
use crate::throttle::{self, ThrottleConfig};

/// How a service is called, wherever it is called from. What is not given is taken from the policy that it extends,
/// then from the policy `default`, and from Seawall's own defaults after that, field by field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Another policy, from which it takes what it does not say itself.
    pub extends: Option<ServiceName>,
    /// The time for the whole call, all attempts and waits included. Default 10s.
    pub timeout: Option<Period>,
    /// The time for one attempt. Default: what is left of `timeout`.
    pub attempt_timeout: Option<Period>,
    /// How often it may be called. Default: as often as one likes.
    pub rate_limit: RateLimitConfig,
    /// How a failed call is repeated.
    pub retry: RetryConfig,
    /// When a call that takes long is made once more beside the first. Default: never.
    pub hedge: HedgeConfig,
    /// When a service that turns calls away is called less. Default: never.
    pub throttle: ThrottleConfig,
    /// When to stop calling a service that fails.
    pub breaker: BreakerConfig,
    /// How many calls may be under way at once.
    pub bulkhead: BulkheadConfig,
    /// What goes wrong on purpose. Default: nothing.
    pub chaos: ChaosConfig,
}

impl PolicyConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    pub fn or(&self, base: &Self) -> Self {
        Self {
            extends: self.extends.clone(),
            timeout: self.timeout.or(base.timeout),
            attempt_timeout: self.attempt_timeout.or(base.attempt_timeout),
            rate_limit: self.rate_limit.or(&base.rate_limit),
            retry: self.retry.or(&base.retry),
            hedge: self.hedge.or(&base.hedge),
            throttle: self.throttle.or(&base.throttle),
            breaker: self.breaker.or(&base.breaker),
            bulkhead: self.bulkhead.or(&base.bulkhead),
            chaos: self.chaos.or(&base.chaos),
        }
    }

    /// Every value that is out of its range, as `(path below the policy, what is wrong)`.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Problems::default();
        found.positive("timeout", self.timeout);
        found.positive("attempt_timeout", self.attempt_timeout);
        found.ordered("attempt_timeout", self.attempt_timeout, "timeout", self.timeout);
        self.rate_limit.problems(&mut found);
        self.retry.problems(&mut found);
        self.hedge.problems(&mut found);
        self.throttle.problems(&mut found);
        self.breaker.problems(&mut found);
        self.bulkhead.problems(&mut found);
        self.chaos.problems(&mut found);
        // What would never come to pass within the time that a call has; a default gives way to a short time.
        let timeout = self.timeout.filter(|timeout| !timeout.is_zero());
        found.ordered("breaker.slow_call", self.breaker.slow_call, "timeout", timeout);
        if let (Some(hedge::Delay::After(delay)), None | Some(false)) = (self.hedge.delay, self.hedge.on_error) {
            found.ordered("hedge.delay", Some(delay), "timeout", timeout);
        }
        let floor = self.hedge.delay_floor.filter(|floor| *floor != hedge::Config::default().delay_floor);
        found.ordered("hedge.delay_floor", floor, "timeout", timeout);
        let backoff = self.retry.backoff.filter(|backoff| *backoff != Retry::default().backoff);
        found.ordered("retry.backoff", backoff, "timeout", timeout);
        found.into_vec()
    }

    /// What has no effect for want of something else.
    fn idle(&self) -> Vec<(String, String)> {
        let mut found = Problems::default();
        self.rate_limit.idle(&mut found);
        self.breaker.idle(&mut found);
        self.hedge.idle(&mut found);
        self.bulkhead.idle(&mut found);
        self.chaos.idle(&mut found);
        found.into_vec()
    }

    /// With those of Seawall's defaults that a value may contradict.
    fn with_defaults(mut self) -> Self {
        let defaults = Policy::default();
        self.timeout = self.timeout.or(Some(defaults.timeout));
        self.retry.max_backoff = self.retry.max_backoff.or(Some(defaults.retry.max_backoff));
        self.retry.backoff = self.retry.backoff.or(Some(defaults.retry.backoff));
        self.bulkhead.adaptive = self.bulkhead.adaptive.with_defaults(self.bulkhead.concurrent);
        self.hedge.delay_floor = self.hedge.delay_floor.or(Some(hedge::Config::default().delay_floor));
        let breaker = breaker::Config::default();
        self.breaker.window = self.breaker.window.or(Some(breaker.window));
        self.breaker.open_for = self.breaker.open_for.or(Some(breaker.open_for));
        self.chaos.latency.by = self.chaos.latency.by.or(Some(chaos::BY));
        self
    }

    /// The policy with nothing left open: what is absent is as Seawall has it by default.
    pub fn complete(&self) -> Policy {
        Policy {
            timeout: self.timeout.unwrap_or(Period::secs(10)),
            attempt_timeout: self.attempt_timeout,
            rate_limit: self.rate_limit.resolve(),
            retry: self.retry.resolve(),
            hedge: self.hedge.resolve(),
            throttle: self.throttle.resolve(),
            breaker: self.breaker.resolve(),
            bulkhead: self.bulkhead.resolve(),
            chaos: self.chaos.resolve(),
        }
    }
}

/// How one service is called, with nothing left open. A policy that is `None` is off.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The time for the whole call.
    pub timeout: Period,
    /// The time for one attempt, where it is less than what is left of the whole.
    pub attempt_timeout: Option<Period>,
    /// How often it may be called.
    pub rate_limit: Option<rate_limit::Config>,
    /// How a failed call is repeated.
    pub retry: Retry,
    /// When a call is made once more beside the first.
    pub hedge: Option<hedge::Config>,
    /// When a service that turns calls away is called less.
    pub throttle: Option<throttle::Config>,
    /// When to stop calling.
    pub breaker: Option<breaker::Config>,
    /// How many calls may be under way at once.
    pub bulkhead: Option<bulkhead::Config>,
    /// What goes wrong on purpose.
    pub chaos: Option<chaos::Config>,
}

impl Default for Policy {
    fn default() -> Self {
        PolicyConfig::default().complete()
    }
}

/// The policy that every other one extends in the end.
pub const DEFAULT: &str = "default";

/// Policies that cannot be used: everything that is wrong with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPolicies {
    /// As `(policy, path below it, what is wrong)`.
    pub problems: Vec<(ServiceName, String, String)>,
}

impl std::error::Error for InvalidPolicies {}

impl fmt::Display for InvalidPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (policy, path, what)) in self.problems.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}policies.{policy}.{path} {what}")?;
        }
        Ok(())
    }
}

/// The policies of a file by service. Those that are no service's are there to be extended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Policies(pub BTreeMap<ServiceName, PolicyConfig>);

impl Policies {
    /// The policy of `service`, complete.
    pub fn of(&self, service: &str) -> Policy {
        self.merged(service).complete()
    }

    /// The policy of `name` over all that it extends, and over `default`.
    fn merged(&self, name: &str) -> PolicyConfig {
        let mut merged = PolicyConfig::default();
        let mut seen = BTreeSet::new();
        let mut next = self.0.get(name);
        while let Some(policy) = next {
            merged = merged.or(policy);
            // A circle is one of the problems; here it only has to end.
            next = policy.extends.as_ref().filter(|base| seen.insert(base.as_str())).and_then(|base| self.0.get(base));
        }
        self.0.get(DEFAULT).map_or_else(|| merged.clone(), |base| merged.or(base))
    }

    /// Whether some other policy extends it.
    pub fn is_extended(&self, name: &str) -> bool {
        self.0.values().any(|policy| policy.extends.as_ref().is_some_and(|base| base.as_str() == name))
    }

    /// Everything that is wrong: values out of their range, values that contradict what is taken from another policy, and
    /// policies that extend one that is not there, or themselves. As `(policy, path below it, what is wrong)`.
    pub fn problems(&self) -> Vec<(&ServiceName, String, String)> {
        let mut found = Vec::new();
        for (name, policy) in &self.0 {
            let own = policy.problems();
            let mut add = |path: &str, what: String| found.push((name, path.to_owned(), what));
            match &policy.extends {
                Some(base) if !self.0.contains_key(base) => add("extends", format!("names no policy: `{base}`")),
                Some(_) if self.extends_itself(name) => add("extends", "goes round in a circle".into()),
                Some(_) if name.as_str() == DEFAULT => {
                    add("extends", "has no place in `default`, the base of all".into())
                }
                _ => {}
            }
            // What only goes wrong together with another policy, or with a default, is this one's mistake, if it does not
            // go wrong there already.
            let bases = self.bases(name.as_str());
            let inherited = |problem: &(String, String)| bases.iter().any(|base| self.in_force(base).contains(problem));
            let together = self.in_force(name.as_str());
            // Where a part is wrong by itself, what it would contradict is not said too.
            let part = |path: &str| path.split('.').next().map(str::to_owned);
            let wrong: Vec<_> = own.iter().map(|(path, _)| part(path)).collect();
            let together: Vec<_> = together
                .into_iter()
                .filter(|problem| !wrong.contains(&part(&problem.0)) && !inherited(problem))
                .collect();
            // What is there for others to build on may be of no effect by itself.
            let heirs = || self.0.keys().filter(|heir| self.bases(heir.as_str()).contains(name.as_str()));
            let idle = self.merged(name.as_str()).idle().into_iter().filter(|idle| {
                !own.iter().chain(&together).any(|problem| part(&problem.0) == part(&idle.0))
                    && bases.iter().all(|base| !self.merged(base).idle().contains(idle))
                    && heirs().all(|heir| self.merged(heir.as_str()).idle().contains(idle))
            });
            for (path, what) in own.iter().chain(&together).cloned().chain(idle) {
                add(&path, what);
            }
        }
        found
    }

    /// The policies, if nothing is wrong with them.
    ///
    /// # Errors
    /// [`InvalidPolicies`] with every one of [`Policies::problems`].
    pub fn check(&self) -> Result<(), InvalidPolicies> {
        let problems: Vec<_> =
            self.problems().into_iter().map(|(name, path, what)| (name.clone(), path, what)).collect();
        if problems.is_empty() { Ok(()) } else { Err(InvalidPolicies { problems }) }
    }

    /// What is wrong with the policy of `name` as it would be in force.
    fn in_force(&self, name: &str) -> Vec<(String, String)> {
        self.merged(name).with_defaults().problems()
    }

    /// All that the policy of `name` extends, and `default`.
    fn bases(&self, name: &str) -> BTreeSet<&str> {
        let mut bases = BTreeSet::new();
        let mut next = self.0.get(name);
        while let Some(base) =
            next.and_then(|policy| policy.extends.as_ref()).filter(|base| bases.insert(base.as_str()))
        {
            next = self.0.get(base);
        }
        bases.insert(DEFAULT);
        bases.remove(name);
        bases
    }

    fn extends_itself(&self, name: &ServiceName) -> bool {
        let mut seen = BTreeSet::from([name]);
        let mut next = self.0.get(name);
        while let Some(base) = next.and_then(|policy| policy.extends.as_ref()) {
            if !seen.insert(base) {
                return true;
            }
            next = self.0.get(base);
        }
        false
    }
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use seawall_types::Ratio;

    use super::*;

    fn policies(json: serde_json::Value) -> Policies {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_service_takes_from_what_it_extends_field_by_field() {
        let policies = policies(serde_json::json!({
            "default": { "timeout": "3s", "breaker": { "window": "7 calls" } },
            "careful": { "extends": "strict", "breaker": { "failure_rate": "30%" } },
            "strict": { "attempt_timeout": "1s", "breaker": { "failure_rate": "10%", "open_for": "1m" } },
            "payment": { "extends": "careful", "bulkhead": { "enabled": false } },
        }));
        let payment = policies.of("payment");
        let breaker = payment.breaker.unwrap();
        assert_eq!((payment.timeout, payment.attempt_timeout), (Period::secs(3), Some(Period::secs(1))));
        assert_eq!((breaker.limits.failure_rate, breaker.limits.minimum_calls), (Ratio::percent(30), 7));
        assert_eq!((breaker.window, breaker.open_for), (breaker::Window::Calls(7), Period::secs(60)));
        assert_eq!(payment.bulkhead, None);
        assert_eq!(policies.of("other").bulkhead.unwrap().concurrent, 1024);
        assert_eq!(Policies::default().of("x"), Policy::default());
        assert!(policies.problems().is_empty(), "{:?}", policies.problems());
    }

    #[test]
    fn what_has_no_effect_is_named_where_nobody_gives_it_one() {
        let found = |json| {
            let policies = policies(json);
            let problems = policies.problems();
            problems.iter().map(|(name, path, _)| format!("{name}.{path}")).collect::<Vec<_>>()
        };
        let slow = serde_json::json!({ "breaker": { "slow_rate": "50%" } });
        let chaos = serde_json::json!({ "chaos": { "latency": { "by": "1s" }, "status": { "code": 500 } } });
        assert_eq!(found(serde_json::json!({ "default": slow, "a": {} })), ["default.breaker.slow_rate"]);
        assert_eq!(found(serde_json::json!({ "default": { "timeout": "2s" }, "a": slow })), ["a.breaker.slow_rate"]);
        let gives = serde_json::json!({ "breaker": { "slow_call": "1s" } });
        assert!(found(serde_json::json!({ "default": slow, "a": gives, "b": {} })).is_empty());
        assert!(found(serde_json::json!({ "default": gives, "a": slow })).is_empty());
        let burst = serde_json::json!({ "rate_limit": { "burst": 5 } });
        assert_eq!(found(serde_json::json!({ "a": burst, "b": { "extends": "a" } })), ["a.rate_limit.burst"]);
        assert_eq!(found(serde_json::json!({ "a": chaos })), ["a.chaos.latency.by", "a.chaos.status.code"]);
    }

    #[test]
    fn what_is_wrong_is_named_once_and_where_it_is() {
        let policies = policies(serde_json::json!({
            "default": { "timeout": "2s", "retry": { "attempts": 0 } },
            "a": { "attempt_timeout": "5s" },
            "b": { "extends": "c" },
            "c": { "extends": "b" },
            "d": { "extends": "nobody", "timeout": "0s" },
            "e": { "retry": { "attempts": 3, "backoff": "2s" } },
            "f": { "extends": "e", "breaker": { "minimum_calls": 101 } },
            "g": { "extends": "f", "timeout": "1m", "attempt_timeout": "30s" },
        }));
        let problems = policies.problems();
        let found: Vec<_> = problems.iter().map(|(name, path, _)| (name.as_str(), path.as_str())).collect();
        let expected = [
            ("a", "attempt_timeout"),
            ("b", "extends"),
            ("c", "extends"),
            ("d", "extends"),
            ("d", "timeout"),
            ("default", "retry.attempts"),
            ("e", "retry.backoff"),
            ("f", "breaker.minimum_calls"),
        ];
        assert_eq!(found, expected, "{problems:?}");
        assert_eq!(policies.of("b").retry.attempts, 1, "whatever is wrong, there is a policy");
    }
}
