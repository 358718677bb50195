//! Retry: backoff with jitter, a budget that keeps a bad moment from becoming a storm, and a bound for whole chains.
//!
//! Jitter and the decorrelated strategy after Brooker, "Exponential Backoff and Jitter" (AWS, 2015). The [`Budget`] is
//! Finagle's idea (each call earns a share of a retry, each retry costs one); it is charged when the retry is decided, so
//! that those which still wait for their backoff are counted. The [`Chain`] bounds the retries of all hops
//! together.
//!
//! [`Retry`] is pure: what it says depends on its arguments alone. [`Retrier`] has the state, and drives attempts.

use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use schemars::JsonSchema;
use seawall_types::{Period, Ratio};
use serde::{Deserialize, Serialize};

use crate::chain::Chain;
use crate::deadline::Deadline;
use crate::problems::merge;
use crate::{CallError, Clock, Name, PolicyName, Problems, Reason, Tick};

mod budget;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests;

pub use budget::Budget;

/// How a failed call is repeated: idempotent methods, requests with an `Idempotency-Key`, and whatever was provably
/// never sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// All attempts, the first included, 1 to 20. Default 2; 1 means no retry.
    #[schemars(range(min = 1, max = 20))]
    pub attempts: Option<u32>,
    /// How the wait grows from retry to retry. Default `exponential`.
    pub strategy: Option<Strategy>,
    /// The wait before the first retry, before its jitter. Default 25ms.
    pub backoff: Option<Period>,
    /// No wait is longer, unless the service asked for it (`Retry-After`). Default 1s.
    pub max_backoff: Option<Period>,
    /// By how much the exponential wait grows with every retry, 1 to 10. Default 2.
    #[schemars(range(min = 1, max = 10))]
    pub multiplier: Option<f64>,
    /// How much of the wait is left to chance. Default `full`. The decorrelated strategy has its own.
    pub jitter: Option<Jitter>,
    /// How many retries there may be for the calls that are made. Default 20%.
    pub budget: Option<Ratio>,
    /// How many retries a second are allowed in any case, 0 to 1000. Default 3.
    #[schemars(range(max = 1000))]
    pub budget_floor: Option<u32>,
    /// Whether a `Retry-After` is waited for; one that is longer than what is left of the call's time then means that
    /// there is no retry. Default true.
    pub honour_retry_after: Option<bool>,
    /// The most retries that a whole chain of calls may make, over all hops from here on, 0 to 1000. Default: no
    /// such bound. A request that has been told a smaller number keeps it.
    #[schemars(range(max = 1000))]
    pub chain: Option<u32>,
}

/// How the wait grows from retry to retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// `backoff`, then `multiplier` times as long each time.
    #[default]
    Exponential,
    /// Anything from `backoff` to three times the previous wait.
    Decorrelated,
    /// `backoff` every time.
    Fixed,
}

/// How much of a wait is left to chance, so that those who failed together do not come back together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// All of it: from nothing to the whole wait.
    #[default]
    Full,
    /// Half of it: from one half to the whole.
    Equal,
    /// Nothing.
    None,
}

impl RetryConfig {
    /// Fills what is absent from `base`.
    pub(crate) fn or(&self, base: &Self) -> Self {
        merge!(self, base; attempts, strategy, backoff, max_backoff, multiplier, jitter, budget, budget_floor,
            honour_retry_after, chain)
    }

    /// Notes every value that is out of its range.
    pub(crate) fn problems(&self, found: &mut Problems) {
        found.range("retry.attempts", self.attempts, 1, 20);
        found.range("retry.multiplier", self.multiplier, 1.0, 10.0);
        found.range("retry.budget_floor", self.budget_floor, 0, Budget::MAX_FLOOR);
        found.range("retry.chain", self.chain, 0, 1000);
        found.ordered("retry.backoff", self.backoff, "max_backoff", self.max_backoff);
        let strategy = self.strategy.unwrap_or_default();
        if self.multiplier.is_some() && strategy != Strategy::Exponential {
            found.add("retry.multiplier", "means nothing here: only the exponential strategy multiplies");
        }
        if self.jitter.is_some() && strategy == Strategy::Decorrelated {
            found.add("retry.jitter", "means nothing here: the decorrelated strategy has its own");
        }
    }

    /// With the defaults for what is absent.
    pub(crate) fn resolve(&self) -> Retry {
        let max_backoff = self.max_backoff.unwrap_or(Period::secs(1));
        let multiplier = self.multiplier.filter(|multiplier| !multiplier.is_nan()).unwrap_or(2.0);
        Retry {
            attempts: self.attempts.unwrap_or(2).clamp(1, 20),
            strategy: self.strategy.unwrap_or_default(),
            // The two may come from different policies.
            backoff: self.backoff.unwrap_or(Period::millis(25)).min(max_backoff),
            max_backoff,
            multiplier: multiplier.clamp(1.0, 10.0),
            jitter: self.jitter.unwrap_or_default(),
            budget: self.budget.unwrap_or(Ratio::percent(20)),
            budget_floor: self.budget_floor.unwrap_or(3).min(Budget::MAX_FLOOR),
            honour_retry_after: self.honour_retry_after.unwrap_or(true),
            chain: self.chain.map(|retries| retries.min(1000)),
        }
    }
}

/// How a call is repeated; every field is within its range. The default is that of the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// All attempts, the first included: 1 means no retry.
    pub attempts: u32,
    /// How the wait grows.
    pub strategy: Strategy,
    /// The wait before the first retry, before its jitter.
    pub backoff: Period,
    /// No wait is longer, unless the service asked for it.
    pub max_backoff: Period,
    /// By how much the exponential wait grows with every retry.
    pub multiplier: f64,
    /// How much of the wait is left to chance.
    pub jitter: Jitter,
    /// How many retries there may be for every call that is made.
    pub budget: Ratio,
    /// How many retries a second are allowed in any case.
    pub budget_floor: u32,
    /// Whether a `Retry-After` is waited for.
    pub honour_retry_after: bool,
    /// The most retries of a whole chain of calls.
    pub chain: Option<u32>,
}

impl Default for Retry {
    fn default() -> Self {
        RetryConfig::default().resolve()
    }
}

/// Without a deadline, the longest `Retry-After` that is waited for: no wait is without a bound.
const PATIENCE: Duration = Duration::from_secs(60);

impl Retry {
    /// How long to back off before retry number `retry` (1 is the first), where `previous` is what this said for the
    /// retry before (zero for the first). `random` is uniform in 0..1.
    pub fn delay(&self, retry: u32, previous: Duration, random: f64) -> Duration {
        let random = random.clamp(0.0, 1.0);
        let (base, cap) = (*self.backoff, *self.max_backoff);
        let whole = match self.strategy {
            Strategy::Decorrelated => {
                let most = previous.max(base).saturating_mul(3);
                return (base + part(most - base, random)).min(cap);
            }
            Strategy::Fixed => base,
            Strategy::Exponential => {
                let exponent = retry.saturating_sub(1).min(i32::MAX as u32) as i32;
                Duration::try_from_secs_f64(base.as_secs_f64() * self.multiplier.powi(exponent)).unwrap_or(cap)
            }
        }
        .min(cap);
        match self.jitter {
            Jitter::Full => part(whole, random),
            Jitter::Equal => whole / 2 + part(whole - whole / 2, random),
            Jitter::None => whole,
        }
    }

    /// How long to wait in all before a retry: the backoff of `delay`, and `after` before it if the service asked for
    /// that; only `after` where there is no time for both. `None` if there is no time for it: the wait has to end
    /// before what is `left` of the call's time does. Where there is no deadline (`left` is `None`), nobody waits for an
    /// `after` of more than a minute.
    pub fn pause(&self, delay: Duration, after: Option<Duration>, left: Option<Duration>) -> Option<Duration> {
        let after = after.filter(|_| self.honour_retry_after).unwrap_or_default();
        let both = after.saturating_add(delay);
        match left {
            Some(left) => [both, after.max(delay)].into_iter().find(|pause| *pause < left),
            None => (after <= PATIENCE).then_some(both),
        }
    }
}

/// A share of `whole`; the product alone may be rounded to more than the whole.
fn part(whole: Duration, share: f64) -> Duration {
    Duration::try_from_secs_f64(whole.as_secs_f64() * share).unwrap_or(whole).min(whole)
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The result is the call's result.
    Stop,
    /// Another attempt is worth it, if attempts, time, chain and budget allow for one.
    Again {
        /// What the service asked to be given before it (`Retry-After`).
        after: Option<Duration>,
    },
}

/// What is worth another attempt by default: a failure of the call's own, an attempt that took too long, a fault that was
/// injected. What a policy turned away is not: the policy would do so again, and that is what it is there for.
pub fn failures<T, E>(result: &Result<T, CallError<E>>) -> Decision {
    match result {
        Ok(_) => Decision::Stop,
        Err(CallError::Inner(_)) => Decision::Again { after: None },
        Err(CallError::Rejected(rejected)) => match (rejected.policy, rejected.reason) {
            (PolicyName::Timeout, Reason::Attempt) | (PolicyName::Chaos, _) => {
                Decision::Again { after: rejected.retry_after }
            }
            _ => Decision::Stop,
        },
    }
}

/// As [`failures`], and what a policy turned away as well, after the time that the policy names. Only the end of the whole
/// call's time stays final.
pub fn failures_and_rejections<T, E>(result: &Result<T, CallError<E>>) -> Decision {
    match result {
        Err(CallError::Rejected(rejected)) if rejected.reason != Reason::Deadline => {
            Decision::Again { after: rejected.retry_after }
        }
        _ => failures(result),
    }
}

/// Why there is no other attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRetry {
    /// All attempts were made.
    Attempts,
    /// The wait would not end before the deadline.
    Deadline,
    /// The chain of calls has no retry left.
    Chain,
    /// The budget has none left.
    Budget,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Retries that were made: attempts beyond each call's first.
    pub retries: u64,
    /// Calls that a retry has saved.
    pub recovered: u64,
    /// Calls given up because all attempts were made.
    pub attempts: u64,
    /// Retries not made because there was no time for them.
    pub deadline: u64,
    /// Retries that the chain refused.
    pub chain: u64,
    /// Retries that the budget refused.
    pub budget: u64,
}

#[derive(Debug, Default)]
struct Counters {
    retries: AtomicU64,
    recovered: AtomicU64,
    attempts: AtomicU64,
    deadline: AtomicU64,
    chain: AtomicU64,
    budget: AtomicU64,
}

/// Stands for "no bound" in [`Retrier::chain`].
const UNBOUNDED: u32 = u32::MAX;

/// Repeats calls of one service. A call that works at once costs two loads; everything else happens after a failure.
#[derive(Debug)]
pub struct Retrier {
    name: Name,
    clock: Clock,
    budget: Budget,
    /// [`Retry::chain`], which every call has to know.
    chain: AtomicU32,
    /// [`Retry::attempts`], for the same reason.
    attempts: AtomicU32,
    config: ArcSwap<Retry>,
    counters: Counters,
}

impl Retrier {
    /// With a fresh budget.
    pub fn new(name: Name, config: Retry, clock: Clock) -> Self {
        Self {
            name,
            budget: Budget::new(config.budget, config.budget_floor, clock.now()),
            clock,
            chain: AtomicU32::new(config.chain.unwrap_or(UNBOUNDED)),
            attempts: AtomicU32::new(config.attempts),
            config: ArcSwap::from_pointee(config),
            counters: Counters::default(),
        }
    }

    /// Goes on with other parameters and the same budget. They hold for the next decision of calls under way too.
    pub fn reload(&self, config: Retry) {
        self.budget.reload(config.budget, config.budget_floor);
        self.chain.store(config.chain.unwrap_or(UNBOUNDED), Ordering::Relaxed);
        self.attempts.store(config.attempts, Ordering::Relaxed);
        self.config.store(config.into());
    }

    /// Whose calls these are.
    pub fn name(&self) -> Name {
        self.name
    }

    /// The parameters.
    pub fn config(&self) -> Retry {
        **self.config.load()
    }

    /// Whether a call may be made more than once.
    #[inline]
    pub fn may_repeat(&self) -> bool {
        self.attempts.load(Ordering::Relaxed) > 1
    }

    /// The budget. [`Retrier::call`] pays in by itself.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            retries: read(&counters.retries),
            recovered: read(&counters.recovered),
            attempts: read(&counters.attempts),
            deadline: read(&counters.deadline),
            chain: read(&counters.chain),
            budget: read(&counters.budget),
        }
    }

    /// Makes attempts (`attempt(1)` is the first) until `decide` stops, or until attempts, time, chain or budget are
    /// spent; then the last attempt's result is the call's. `decide` sees every result, errors and values alike:
    /// [`failures`] is the usual one.
    ///
    /// No attempt starts at or after the `deadline`, in the time of the retrier's clock. The deadline does not end an
    /// attempt that is under way. Where [`Retry::chain`] is set and the task is in no [`Chain`] yet, the attempts
    /// run in a new one.
    ///
    /// The result of an attempt that is to be repeated is kept until the next one starts, as it may yet become the
    /// call's.
    ///
    /// A rejection by a policy within `attempt` does not know of the attempts before it
    /// ([`Rejected::had_begun`](crate::Rejected::had_begun)): [`Guard::call`](crate::Guard::call) and the layers see to
    /// that, here it is the caller's to do.
    ///
    /// Cancel safe: dropped while it waits, it gives back what the retry had taken from budget and chain.
    pub async fn call<T, E, F, A, D>(&self, deadline: Option<Tick>, mut attempt: F, mut decide: D) -> Result<T, E>
    where
        F: FnMut(u32) -> A,
        A: Future<Output = Result<T, E>>,
        D: FnMut(&Result<T, E>) -> Decision,
    {
        self.budget.deposit();
        if let Some(chain) = self.new_chain() {
            // What is not usual is boxed, here and below: a call that works at once would otherwise carry all of it
            // along, and that is most of what it would pay.
            return Box::pin(chain.scope(self.attempts(deadline, attempt, decide))).await;
        }
        let result = attempt(1).await;
        let Decision::Again { after } = decide(&result) else { return result };
        let Ok(charge) = self.again(1, Duration::ZERO, deadline, after) else { return result };
        Box::pin(self.repeat(deadline, attempt, decide, result, charge)).await
    }

    /// All attempts, for a call that runs in a chain of its own.
    async fn attempts<T, E, F, A, D>(&self, deadline: Option<Tick>, mut attempt: F, mut decide: D) -> Result<T, E>
    where
        F: FnMut(u32) -> A,
        A: Future<Output = Result<T, E>>,
        D: FnMut(&Result<T, E>) -> Decision,
    {
        let result = attempt(1).await;
        let Decision::Again { after } = decide(&result) else { return result };
        let Ok(charge) = self.again(1, Duration::ZERO, deadline, after) else { return result };
        self.repeat(deadline, attempt, decide, result, charge).await
    }

    /// The chain that a call has to be run in, if the configuration bounds it more closely than what is around it.
    #[inline]
    pub(crate) fn new_chain(&self) -> Option<Chain> {
        let chain = self.chain.load(Ordering::Relaxed);
        if chain == UNBOUNDED { None } else { Chain::narrow(None, Some(chain)) }
    }

    /// What a deadline is by the retrier's clock.
    pub(crate) fn tick_of(&self, deadline: Deadline) -> Tick {
        self.clock.precise() + deadline.left()
    }

    /// Goes on with the second attempt, for which `charge` is paid.
    pub(crate) async fn repeat<T, E, F, A, D>(
        &self,
        deadline: Option<Tick>,
        mut attempt: F,
        mut decide: D,
        mut result: Result<T, E>,
        mut charge: Charge<'_>,
    ) -> Result<T, E>
    where
        F: FnMut(u32) -> A,
        A: Future<Output = Result<T, E>>,
        D: FnMut(&Result<T, E>) -> Decision,
    {
        for number in 2.. {
            if !charge.pause.is_zero() {
                tokio::time::sleep(charge.pause).await;
            }
            // A busy runtime wakes late.
            if deadline.is_some_and(|deadline| self.clock.precise() >= deadline) {
                count(&self.counters.deadline);
                return result;
            }
            let backoff = charge.backoff;
            charge.spend();
            // Before the next attempt: it may hold what that one waits for.
            drop(result);
            result = attempt(number).await;
            let Decision::Again { after } = decide(&result) else {
                if result.is_ok() {
                    count(&self.counters.recovered);
                }
                return result;
            };
            charge = match self.again(number, backoff, deadline, after) {
                Ok(charge) => charge,
                Err(_) => return result,
            };
        }
        result
    }

    /// Decides whether there is another attempt after `made` of them, and takes what it costs from the task's chain and
    /// the budget. `previous` is the last charge's [`backoff`](Charge::backoff), `after` what the service asked for.
    /// For those who make the attempts themselves; they also pay into the budget.
    ///
    /// # Errors
    /// [`NoRetry`], and then nothing was taken.
    pub fn again(
        &self,
        made: u32,
        previous: Duration,
        deadline: Option<Tick>,
        after: Option<Duration>,
    ) -> Result<Charge<'_>, NoRetry> {
        let config = self.config();
        if made >= config.attempts {
            count(&self.counters.attempts);
            return Err(NoRetry::Attempts);
        }
        let now = self.clock.precise();
        let left = deadline.map(|deadline| deadline.since(now));
        let backoff = config.delay(made, previous, fastrand::f64());
        let Some(pause) = config.pause(backoff, after, left) else {
            count(&self.counters.deadline);
            return Err(NoRetry::Deadline);
        };
        let chain = Chain::current();
        if chain.as_ref().is_some_and(|chain| !chain.take()) {
            count(&self.counters.chain);
            return Err(NoRetry::Chain);
        }
        if !self.budget.withdraw(now) {
            if let Some(chain) = chain {
                chain.put_back();
            }
            count(&self.counters.budget);
            return Err(NoRetry::Budget);
        }
        Ok(Charge { backoff, pause, retrier: self, chain, spent: false })
    }
}

impl AsRef<Self> for Retrier {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// A retry that was decided, and is paid for. Dropped, it gives back what it took.
#[derive(Debug)]
#[must_use = "a charge that is dropped is given back"]
pub struct Charge<'a> {
    /// The backoff in it, which decides the next one.
    pub backoff: Duration,
    /// How long to wait before the attempt.
    pub pause: Duration,
    retrier: &'a Retrier,
    chain: Option<Chain>,
    spent: bool,
}

impl Charge<'_> {
    /// The attempt is made now: what it took is spent.
    pub fn spend(mut self) {
        self.spent = true;
        count(&self.retrier.counters.retries);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if !self.spent {
            self.retrier.budget.give_back();
            if let Some(chain) = &self.chain {
                chain.put_back();
            }
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
