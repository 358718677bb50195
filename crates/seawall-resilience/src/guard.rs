//! A policy with its state: what stands between the callers in this process and one service.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::adaptive::Ended;
use crate::breaker::{self, Breaker};
use crate::bulkhead::{self, Bulkhead, Priority};
use crate::chaos::Chaos;
use crate::deadline::{self, Deadline};
use crate::hedge::Hedge;
use crate::layer::{Classify, Usual, completed};
use crate::rate_limit::RateLimiter;
use crate::retry::{self, Decision, Retrier};
use crate::sync::{AtomicBool, Ordering};
use crate::throttle::{self, Throttle};
use crate::timeout::{self, Timeout};
use crate::{CallError, Clock, Events, Name, Outcome, Policy, Reason, Rejected, Report};

/// A policy that can be switched on and off while calls are under way. Its state survives being off.
#[derive(Debug)]
pub struct Switch<P> {
    on: AtomicBool,
    part: OnceLock<P>,
}

impl<P> Switch<P> {
    fn new() -> Self {
        Self { on: AtomicBool::new(false), part: OnceLock::new() }
    }

    /// The policy, while it is on.
    #[inline]
    pub fn get(&self) -> Option<&P> {
        if self.on.load(Ordering::Acquire) { self.part.get() } else { None }
    }

    /// The policy, whether it is on or not: a call that was admitted while it was on ends under it.
    #[inline]
    pub fn kept(&self) -> Option<&P> {
        self.part.get()
    }

    fn set<C: Clone>(&self, config: Option<&C>, make: impl FnOnce(C) -> P, reload: impl FnOnce(&P, C)) {
        if let Some(config) = config {
            match self.part.get() {
                Some(part) => reload(part, config.clone()),
                None => drop(self.part.set(make(config.clone()))),
            }
        }
        self.on.store(config.is_some(), Ordering::Release);
    }
}

/// The policies of one service, with their state. All methods take `&self`; share it by `Arc`, or leak it.
///
/// The order around a call is fixed, outermost first: total timeout, rate limit, retry (with its budget), hedge,
/// throttle, breaker, bulkhead, attempt timeout, chaos, call. Each attempt asks throttle, breaker and bulkhead anew, and
/// one that waits for the bulkhead has not spent its own time yet. What a fallback makes of an error is said outside of
/// it: see [`crate::Fallback`].
pub struct Guard {
    name: Name,
    clock: Clock,
    events: Arc<Events>,
    policy: ArcSwap<Policy>,
    /// The time for the call and for an attempt.
    pub timeout: Timeout,
    /// How often calls may be made.
    pub rate_limit: Switch<RateLimiter>,
    /// How failed calls are repeated.
    pub retry: Retrier,
    /// When a call is made twice at once.
    pub hedge: Switch<Hedge>,
    /// When a service that refuses is asked less.
    pub throttle: Switch<Throttle>,
    /// When a service is not called at all.
    pub breaker: Switch<Breaker>,
    /// How many calls may be under way.
    pub bulkhead: Switch<Bulkhead>,
    /// What goes wrong on purpose.
    pub chaos: Chaos,
}

impl Guard {
    /// Fresh state for `policy`. Transitions go to `events`.
    pub fn new(name: Name, policy: Policy, clock: Clock, events: Arc<Events>) -> Self {
        let guard = Self {
            name,
            timeout: Timeout::new(name, times(&policy)),
            rate_limit: Switch::new(),
            retry: Retrier::new(name, policy.retry, clock.clone()),
            hedge: Switch::new(),
            throttle: Switch::new(),
            breaker: Switch::new(),
            bulkhead: Switch::new(),
            chaos: Chaos::new(name, policy.chaos.clone()),
            clock,
            events,
            policy: ArcSwap::from_pointee(policy.clone()),
        };
        guard.switch(&policy);
        guard
    }

    /// Goes on under another policy and loses nothing: windows, open waits, places taken, budgets and rates stay as
    /// they are, and calls under way end as they began.
    pub fn reload(&self, policy: Policy) {
        if **self.policy.load() == policy {
            return;
        }
        self.timeout.reload(times(&policy));
        self.retry.reload(policy.retry);
        self.chaos.reload(policy.chaos.clone());
        self.switch(&policy);
        self.policy.store(policy.into());
    }

    fn switch(&self, policy: &Policy) {
        let (name, clock) = (self.name, || self.clock.clone());
        let listener = || -> breaker::Listener {
            let events = self.events.clone();
            Box::new(move |event| events.tell(name, *event))
        };
        let make = |config| Breaker::new(name, config, clock(), listener());
        self.breaker.set(policy.breaker.as_ref(), make, Breaker::reload);
        self.rate_limit.set(policy.rate_limit.as_ref(), |c| RateLimiter::new(name, c, clock()), RateLimiter::reload);
        self.hedge.set(policy.hedge.as_ref(), |c| Hedge::new(name, c, clock()), Hedge::reload);
        self.throttle.set(policy.throttle.as_ref(), |c| Throttle::new(name, c, clock()), Throttle::reload);
        self.bulkhead.set(policy.bulkhead.as_ref(), |c| Bulkhead::new(name, c, clock()), Bulkhead::reload);
    }

    /// Whose policies these are.
    pub const fn name(&self) -> Name {
        self.name
    }

    /// What they say now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Whether a call may be made more than once.
    pub fn may_repeat(&self) -> bool {
        self.retry.may_repeat() || self.hedge.get().is_some()
    }

    /// The clock that they go by.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Makes a call under all policies: `Ok` is a success, `Err` a failure, and failures are repeated. `make(1)` makes the
    /// first attempt, `make(2)` the next; a hedge runs beside its attempt and has the next number, so one may come twice. Only for calls that may be done twice, unless
    /// `retry` and `hedge` are off.
    ///
    /// The deadline is the policy's timeout or the task's own ([`deadline::current`]), whichever is nearer, and the call
    /// runs under it. It matters as much as [`Priority::current`] says. Nothing is allocated on the way of a call that need not wait.
    ///
    /// Cancel safe: a dropped future gives back exactly what it took.
    ///
    /// # Errors
    /// [`CallError::Rejected`] by the policy that turned it away or gave it up, [`CallError::Inner`] if it failed.
    pub async fn call<F, A, T, E>(&self, make: F) -> Result<T, CallError<E>>
    where
        F: Fn(u32) -> A,
        A: Future<Output = Result<T, E>>,
    {
        self.call_with(make, &Usual, retry::failures).await
    }

    /// [`Guard::call`] where `classify` says what a result means to the breaker, and `again` whether it is repeated. If
    /// either panics, that counts as a failure. An attempt that ran out of the policy's time is a failure in any case.
    ///
    /// # Errors
    /// As for [`Guard::call`].
    pub async fn call_with<F, A, T, E, C, D>(&self, make: F, classify: &C, mut again: D) -> Result<T, CallError<E>>
    where
        F: Fn(u32) -> A,
        A: Future<Output = Result<T, E>>,
        C: Classify<T, CallError<E>>,
        D: FnMut(&Result<T, CallError<E>>) -> Decision,
    {
        let (deadline, left) = self.timeout.begin();
        let made = AtomicBool::new(false);
        let given = Given::new(deadline, &made);
        let until = self.clock.precise() + left;
        let whole = async {
            if let Some(limiter) = self.rate_limit.get() {
                limiter.acquire(left).await?;
            }
            let attempt = |number| self.hedged(number, &make, classify, given);
            let again = |result: &_| {
                // The attempt has been counted as it ended; this one counts beside it.
                let panics = Panics(self);
                let decision = again(result);
                std::mem::forget(panics);
                decision
            };
            self.retry.call(Some(until), attempt, again).await
        };
        let result = self.timeout.total_of(deadline, left, || deadline::scope(deadline, whole)).await;
        completed(result.unwrap_or_else(|rejected| Err(rejected.into())), made.load(Ordering::Relaxed))
    }

    async fn hedged<F, A, T, E, C>(
        &self,
        number: u32,
        make: &F,
        classify: &C,
        given: Given<'_>,
    ) -> Result<T, CallError<E>>
    where
        F: Fn(u32) -> A,
        A: Future<Output = Result<T, E>>,
        C: Classify<T, CallError<E>>,
    {
        match self.hedge.get() {
            None => self.attempt(number, make, classify, given).await,
            // Boxed, so that those who do not hedge do not carry it.
            Some(hedge) => {
                Box::pin(hedge.call(|beside| self.attempt(number + beside - 1, make, classify, given))).await
            }
        }
    }

    async fn attempt<F, A, T, E, C>(
        &self,
        number: u32,
        make: &F,
        classify: &C,
        given: Given<'_>,
    ) -> Result<T, CallError<E>>
    where
        F: Fn(u32) -> A,
        A: Future<Output = Result<T, E>>,
        C: Classify<T, CallError<E>>,
    {
        let mut permits = self.admit(Priority::current(), given.deadline.left()).await?;
        permits.begin();
        let call = async {
            let trouble = self.chaos.decide();
            if let Some(delay) = trouble.delay {
                tokio::time::sleep(delay).await;
            }
            // There is no answer to put a status in: it is a fault like the other.
            if trouble.fault || trouble.status.is_some() {
                return Err(self.chaos.fault().into());
            }
            given.made.store(true, Ordering::Relaxed);
            make(number).await.map_err(CallError::Inner)
        };
        let call = self.timeout.scope_attempt(given.deadline, call);
        let result = match self.timeout.attempt(given.deadline, call).await {
            Ok(result) => result,
            // Whatever `classify` would say. If it was given up the permits are dropped.
            Err(rejected) => {
                if !given.ran_out(&rejected) {
                    permits.finish(timeout::FAILURE);
                }
                return Err(rejected.into());
            }
        };
        let report = classify.classify(&result);
        // Dropped otherwise: it was given up.
        if report.outcome != Outcome::Failure || !given.is_over() {
            permits.finish(report);
        }
        result
    }

    /// Asks throttle, breaker and bulkhead, in this order, for one attempt; waits for the bulkhead as it is configured,
    /// at most for `limit`.
    ///
    /// Cancel safe: a dropped future has taken nothing.
    ///
    /// # Errors
    /// [`CallError::Rejected`] by the first that turns it away; then nothing was taken.
    pub async fn admit(&self, priority: Priority, limit: Duration) -> Result<Permits<'_>, Rejected> {
        let mut permits = Permits { throttle: None, breaker: None, bulkhead: None };
        if let Some(throttle) = self.throttle.get() {
            permits.throttle = Some(throttle.admit()?);
        }
        if let Some(breaker) = self.breaker.get() {
            permits.breaker = Some(Breaker::try_acquire(breaker)?.waiting());
        }
        if let Some(bulkhead) = self.bulkhead.get() {
            match Bulkhead::acquire_as(bulkhead, priority, limit).await {
                Ok(place) => permits.bulkhead = Some(place),
                Err(rejected) => {
                    permits.finish(Outcome::Ignored.into());
                    return Err(rejected);
                }
            }
        }
        Ok(permits)
    }
}

/// The time that a call has, whose limit that is, and what became of it so far.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) deadline: Deadline,
    /// Whether any attempt has been made.
    pub(crate) made: &'a AtomicBool,
    /// The caller has less time than the policy would give.
    callers: bool,
}

impl<'a> Given<'a> {
    /// A call that begins now, under what [`Timeout::deadline`] has said.
    pub(crate) fn new(deadline: Deadline, made: &'a AtomicBool) -> Self {
        Self { deadline, made, callers: deadline::current() == Some(deadline) }
    }

    /// The same, where the caller has said how much time it has.
    pub(crate) fn told(deadline: Deadline, made: &'a AtomicBool, callers: bool) -> Self {
        Self { deadline, made, callers }
    }

    /// Whether it ended because the caller's time was over. Then the attempt was given up, as by a caller that goes away:
    /// how long it had lasted says whether that speaks against the service.
    pub(crate) fn ran_out(self, rejected: &Rejected) -> bool {
        self.callers && rejected.reason == Reason::Deadline
    }

    /// Whether a failure came when the caller's time was over: whoever is called keeps to it too, and may be first to say
    /// so.
    pub(crate) fn is_over(self) -> bool {
        self.callers && self.deadline.left() <= deadline::EARLY
    }
}

/// Dropped by a panic of the caller's own code.
pub(crate) struct Panics<'a>(pub(crate) &'a Guard);

impl Drop for Panics<'_> {
    #[cold]
    fn drop(&mut self) {
        // One that lets no call pass has nothing to learn from it.
        if let Some(Ok(permit)) = self.0.breaker.get().map(Breaker::try_acquire) {
            permit.finish(Report { cause: "panicked", ..Outcome::Failure.into() });
        }
    }
}

impl AsRef<Self> for Guard {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("name", &self.name).field("breaker", &self.breaker.get()).finish_non_exhaustive()
    }
}

fn times(policy: &Policy) -> timeout::Config {
    timeout::Config { total: policy.timeout, attempt: policy.attempt_timeout }
}

/// What one attempt was given. Dropped, it gives all of it back: the call was given up.
#[derive(Debug)]
#[must_use = "the places are free again as soon as the permits are dropped"]
pub struct Permits<'a> {
    throttle: Option<throttle::Permit<'a>>,
    breaker: Option<breaker::Permit<&'a Breaker>>,
    bulkhead: Option<bulkhead::Permit<&'a Bulkhead>>,
}

impl Permits<'_> {
    /// The call is sent now: its time begins.
    pub fn begin(&mut self) {
        if let Some(permit) = &mut self.breaker {
            permit.begin();
        }
    }

    /// The call has ended.
    pub fn finish(self, report: Report) {
        if let Some(permit) = self.throttle {
            match accepted(&report) {
                Some(true) => permit.accepted(),
                Some(false) => permit.refused(),
                None => {}
            }
        }
        if let Some(place) = self.bulkhead {
            place.finish(ended(&report), report.took);
        }
        if let Some(permit) = self.breaker {
            permit.finish(report);
        }
    }
}

/// What a report tells the throttle: whether the service took the call on, whatever came of it; nothing about a call that
/// says nothing about the service.
pub const fn accepted(report: &Report) -> Option<bool> {
    match report.outcome {
        _ if report.overloaded => Some(false),
        Outcome::Success | Outcome::Failure => Some(true),
        Outcome::Ignored => None,
    }
}

/// What a report tells an adaptive bulkhead.
pub const fn ended(report: &Report) -> Ended {
    match report.outcome {
        _ if report.overloaded => Ended::Dropped,
        Outcome::Success => Ended::Served,
        Outcome::Failure | Outcome::Ignored => Ended::Ignored,
    }
}
