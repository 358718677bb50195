//! What a policy learns of a call, and what a caller learns of a policy.

use std::fmt;
use std::time::Duration;

use crate::Name;

/// How a call ended, as far as a policy cares. A call that is given up has no outcome: its permit is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Success,
    /// It failed in a way that speaks against the service.
    Failure,
    /// It ended in a way that says nothing about the service.
    Ignored,
}

/// An [`Outcome`], and more where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// How long the service took; by default the time since the permit was given.
    pub took: Option<Duration>,
    /// When the service asked to be called again (`Retry-After`).
    pub retry_after: Option<Duration>,
    /// The service has too much to do: it ran out of time, or turned the call away (429, 503). An adaptive bulkhead and the
    /// throttle look at this alone, whatever the outcome.
    pub overloaded: bool,
    /// The call was given up, because its caller had no more time: how long it had lasted says what that means, as when a
    /// permit is dropped. Then the outcome is not looked at.
    pub given_up: bool,
    /// The trace that the call belongs to, zero if none: "why open" names it.
    pub trace: u128,
    /// What went wrong, in a word or two: `timeout`, `status 503`.
    pub cause: &'static str,
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Self {
        let cause = if outcome == Outcome::Failure { "failed" } else { "" };
        Self { outcome, took: None, retry_after: None, overloaded: false, given_up: false, trace: 0, cause }
    }
}

/// Which policy turned a call away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyName {
    /// The circuit breaker.
    Breaker,
    /// The bulkhead, of fixed or adaptive size.
    Bulkhead,
    /// The time for the call, or for one attempt, is over.
    Timeout,
    /// The rate limiter.
    RateLimit,
    /// The adaptive throttler.
    Throttle,
    /// Chaos, which somebody has ordered.
    Chaos,
}

impl PolicyName {
    /// The word used in configuration, headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Breaker => "breaker",
            Self::Bulkhead => "bulkhead",
            Self::Timeout => "timeout",
            Self::RateLimit => "rate-limit",
            Self::Throttle => "throttle",
            Self::Chaos => "chaos",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a policy turned a call away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The breaker is open.
    Open,
    /// The breaker is half open and lets no more calls pass.
    HalfOpen,
    /// Somebody has forced the breaker open.
    ForcedOpen,
    /// All places are taken, and the wait, if any, is over.
    Full,
    /// All places are taken, and too many wait already.
    QueueFull,
    /// The places that are left are for calls that matter more.
    Shed,
    /// Over the rate, and the wait, if any, would be too long.
    Limited,
    /// The service turns so much away that asking is of little use.
    Throttled,
    /// The time for the whole call is over.
    Deadline,
    /// The time for one attempt is over; it may have been done.
    Attempt,
    /// A fault that was ordered.
    Injected,
}

impl Reason {
    /// The word used in headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::ForcedOpen => "forced-open",
            Self::Full => "full",
            Self::QueueFull => "queue-full",
            Self::Shed => "shed",
            Self::Limited => "limited",
            Self::Throttled => "throttled",
            Self::Deadline => "deadline",
            Self::Attempt => "attempt",
            Self::Injected => "injected",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A call that a policy turned away or, for [`PolicyName::Timeout`], gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{policy} of `{instance}` rejects: {reason}")]
pub struct Rejected {
    /// The policy.
    pub policy: PolicyName,
    /// Whose policy it is: the service that was to be called.
    pub instance: Name,
    /// Why.
    pub reason: Reason,
    /// When it is worth trying again, where the policy knows.
    pub retry_after: Option<Duration>,
    /// Whether an earlier attempt of the call, or one beside it, had begun.
    pub begun: bool,
}

impl Rejected {
    /// A rejection that does not know when it is worth trying again.
    pub const fn new(policy: PolicyName, instance: Name, reason: Reason) -> Self {
        Self { policy, instance, reason, retry_after: None, begun: false }
    }

    /// Whether the call had begun, in any of its attempts, and so may have been done. `false` is a promise that it had
    /// not.
    pub const fn had_begun(&self) -> bool {
        self.begun || matches!(self.policy, PolicyName::Timeout)
    }
}

/// What a guarded call fails with: a policy's rejection, or the call's own error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// A policy turned it away.
    #[error(transparent)]
    Rejected(Rejected),
    /// It was made, and failed.
    #[error("{0}")]
    Inner(#[source] E),
}

impl<E> CallError<E> {
    /// The rejection, if it is one.
    pub const fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Inner(_) => None,
        }
    }

    /// The call's own error, if it is one.
    pub fn into_inner(self) -> Option<E> {
        match self {
            Self::Rejected(_) => None,
            Self::Inner(error) => Some(error),
        }
    }
}

impl<E> From<Rejected> for CallError<E> {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}
