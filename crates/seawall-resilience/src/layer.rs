//! The policies as [tower] layers, for those who want another order than that of a [`crate::Guard`].
//!
//! A layer holds its policy by a handle (`&'static`, `Arc`, or one of your own), so applying it twice, or once for each
//! request as axum does, shares the state. A layer passes readiness through and decides in `call`: nothing is reserved
//! by a service that is ready and never called, and a rejection is an answer, never a wait in `poll_ready`.
//!
//! Errors stay flat: a layer puts its [`Rejected`] into the error of the service below, which has to be a
//! [`GuardedError`]. [`CallError`] and tower's `BoxError` are; [`errors`] makes a [`CallError`] of any other.
//!
//! [tower]: https://docs.rs/tower

mod breaker;
mod bulkhead;
mod cache;
mod chaos;
mod coalesce;
mod errors;
mod fallback;
mod gate;
mod guard;
mod hedge;
mod http;
mod rate_limit;
mod retry;
mod throttle;
mod timeout;

use std::future::poll_fn;

use tower_service::Service;

pub use breaker::{BreakerFuture, BreakerLayer, BreakerService};
pub use bulkhead::{Ambient, BulkheadFuture, BulkheadLayer, BulkheadService, Prioritize};
pub use cache::{CacheFuture, CacheLayer, CacheService};
pub use chaos::{ChaosFuture, ChaosLayer, ChaosService};
pub use coalesce::{CoalesceFuture, CoalesceLayer, CoalesceService};
pub use errors::{ErrorsFuture, ErrorsLayer, ErrorsService, errors};
pub use fallback::{FallbackFuture, FallbackLayer, FallbackService};
pub use guard::{GuardLayer, GuardService};
pub use hedge::{HedgeLayer, HedgeService};
pub use http::{HttpGuardLayer, HttpGuardService};
pub use rate_limit::{RateLimitFuture, RateLimitLayer, RateLimitService};
pub use retry::{Decide, RetryFuture, RetryLayer, RetryService};
pub use throttle::{ThrottleFuture, ThrottleLayer, ThrottleService};
pub use timeout::{TimeoutFuture, TimeoutLayer, TimeoutService};

use crate::{CallError, Outcome, PolicyName, Reason, Rejected, Report};

/// An error that may be a policy's rejection.
pub trait GuardedError: From<Rejected> {
    /// The rejection, if it is one.
    fn rejection(&self) -> Option<&Rejected>;
    /// The same, to be completed.
    fn rejection_mut(&mut self) -> Option<&mut Rejected>;
}

impl GuardedError for Rejected {
    fn rejection(&self) -> Option<&Rejected> {
        Some(self)
    }

    fn rejection_mut(&mut self) -> Option<&mut Rejected> {
        Some(self)
    }
}

impl<E> GuardedError for CallError<E> {
    fn rejection(&self) -> Option<&Rejected> {
        self.rejected()
    }

    fn rejection_mut(&mut self) -> Option<&mut Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Inner(_) => None,
        }
    }
}

impl GuardedError for Box<dyn std::error::Error + Send + Sync> {
    fn rejection(&self) -> Option<&Rejected> {
        self.downcast_ref()
    }

    fn rejection_mut(&mut self) -> Option<&mut Rejected> {
        self.downcast_mut()
    }
}

/// Says what a result means to a policy. Implemented by functions of `&Result<T, E>`, and by [`Usual`].
pub trait Classify<T, E> {
    /// What it means.
    fn classify(&self, result: &Result<T, E>) -> Report;
}

impl<F, T, E> Classify<T, E> for F
where
    F: Fn(&Result<T, E>) -> Report,
{
    fn classify(&self, result: &Result<T, E>) -> Report {
        self(result)
    }
}

/// The usual meaning: `Ok` is a success; an error is a failure, unless a policy further in turned the call away before
/// it was made. A time limit of the attempt's own that ended it is a failure; one that ran into the ambient deadline was
/// given up, and its age decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usual;

impl<T, E: GuardedError> Classify<T, E> for Usual {
    #[inline]
    fn classify(&self, result: &Result<T, E>) -> Report {
        match result {
            Ok(_) => Outcome::Success.into(),
            Err(error) => failure(error.rejection()),
        }
    }
}

#[cold]
fn failure(rejection: Option<&Rejected>) -> Report {
    match rejection {
        Some(rejected) if rejected.reason == Reason::Deadline => {
            Report { given_up: true, cause: "given up", ..Outcome::Ignored.into() }
        }
        Some(rejected) if rejected.policy == PolicyName::Timeout => {
            Report { cause: "timeout", overloaded: true, ..Outcome::Failure.into() }
        }
        // Chaos stands in for the service.
        Some(rejected) if rejected.policy == PolicyName::Chaos => Report { cause: "chaos", ..Outcome::Failure.into() },
        Some(_) => Outcome::Ignored.into(),
        None => Outcome::Failure.into(),
    }
}

/// Whether an attempt that ended so had begun.
pub(crate) fn had_begun<T, E: GuardedError>(result: &Result<T, E>) -> bool {
    result.as_ref().err().and_then(GuardedError::rejection).is_none_or(Rejected::had_begun)
}

/// What a call of several attempts ends with: a rejection says whether one of them had begun.
pub(crate) fn completed<T, E: GuardedError>(mut result: Result<T, E>, begun: bool) -> Result<T, E> {
    if let Some(rejected) = result.as_mut().err().and_then(GuardedError::rejection_mut) {
        rejected.begun |= begun;
    }
    result
}

/// One attempt of several: by the instance that was polled ready, or by a clone as soon as that is.
async fn attempt<S: Service<R>, R>(ready: Option<S>, clone: S, request: R) -> Result<S::Response, S::Error> {
    let mut service = match ready {
        Some(ready) => ready,
        None => {
            let mut service = clone;
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service
        }
    };
    service.call(request).await
}
