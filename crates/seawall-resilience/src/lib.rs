//! Policies that stand between a caller and a service that may be slow, failing or gone.
//!
//! Each is a file: [`breaker`], [`bulkhead`], [`retry`] (with its budget). [`Policy`] is what a configuration says of
//! one service, [`Guard`] is that policy with its state. Their order around a call is fixed:
//!
//! total timeout → retry (and budget) → breaker → bulkhead → attempt timeout → call
//!
//! so each attempt asks the breaker anew, and an attempt that waits for the bulkhead has not spent its own time yet.
//! Nothing here does I/O; the decisions take `now` as an argument.

pub mod breaker;
pub mod bulkhead;
mod policy;
pub mod retry;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use breaker::Breaker;
pub use bulkhead::Bulkhead;
pub use policy::{Guard, Policies, Policy, PolicyConfig};
pub use retry::{Budget, Retry};

/// How a call ended, as far as a policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Success,
    /// It failed in a way that speaks against the service.
    Failure,
    /// It ended in a way that says nothing about the service.
    Ignored,
}

/// Which policy turned a call away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyName {
    /// The circuit breaker is open, or half open with all probes under way.
    Breaker,
    /// All places are taken and the wait is over, or the queue is full.
    Bulkhead,
    /// The time for the call is over.
    Timeout,
}

impl PolicyName {
    /// The word used in configuration, headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Breaker => "breaker",
            Self::Bulkhead => "bulkhead",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A call that a policy turned away before it was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{policy} of `{instance}` rejects: {reason}")]
pub struct Rejected {
    /// The policy.
    pub policy: PolicyName,
    /// Whose policy it is: the service that was to be called.
    pub instance: Arc<str>,
    /// Why: `open`, `half-open`, `full`, `queue-full`.
    pub reason: &'static str,
    /// When it is worth trying again, where the policy knows.
    pub retry_after: Option<Duration>,
}
