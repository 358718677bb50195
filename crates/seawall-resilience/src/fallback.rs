//! Fallback: another answer when a call has failed. (Nygard, *Release It!*, 2007; Hystrix's `getFallback`.)
//!
//! It stands outside all other policies, so that those see the failure before it is covered up. A fallback is a promise to
//! the caller that the answer is good enough; count how often it is used ([`Fallback::counts`]), or nobody will notice
//! that the service has been gone for a week.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{CallError, Name};

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Failed calls that were given another answer, or for which one was asked elsewhere.
    pub used: u64,
    /// Alternatives that failed as well.
    pub failed: u64,
}

/// Gives failed calls of one service another answer, and counts them. A call that works costs nothing.
#[derive(Debug)]
pub struct Fallback {
    name: Name,
    used: AtomicU64,
    failed: AtomicU64,
}

/// Where another answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative<T, A> {
    /// Here it is.
    Value(T),
    /// From another call, whose result is then the result.
    Call(A),
}

/// Takes what a policy turned away or gave up, and no error of the call's own.
pub const fn rejections<E>(error: &CallError<E>) -> bool {
    matches!(error, CallError::Rejected(_))
}

/// Takes errors of the call's own, and nothing that a policy turned away.
pub const fn errors<E>(error: &CallError<E>) -> bool {
    matches!(error, CallError::Inner(_))
}

impl Fallback {
    /// With nothing counted.
    pub fn new(name: Name) -> Self {
        Self { name, used: AtomicU64::new(0), failed: AtomicU64::new(0) }
    }

    /// Whose calls these are.
    pub fn name(&self) -> Name {
        self.name
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        Counts { used: self.used.load(Ordering::Relaxed), failed: self.failed.load(Ordering::Relaxed) }
    }

    /// `value` in place of any error: rejections and the call's own.
    pub async fn value<T, E>(&self, call: impl Future<Output = Result<T, CallError<E>>>, value: T) -> T {
        match call.await {
            Ok(own) => own,
            Err(_) => {
                self.count();
                value
            }
        }
    }

    /// What `on` makes of an error, in place of it; the errors that it makes nothing of stay.
    ///
    /// `|error| fallback::rejections(error).then(..)` takes those of the policies alone.
    ///
    /// # Errors
    /// Those for which `on` returns `None`.
    pub async fn with<T, E>(
        &self,
        call: impl Future<Output = Result<T, CallError<E>>>,
        on: impl FnOnce(&CallError<E>) -> Option<T>,
    ) -> Result<T, CallError<E>> {
        self.or(call, |error| on(error).map(Alternative::<T, std::future::Ready<_>>::Value)).await
    }

    /// The result of the call that `on` makes in place of an error; the errors for which it makes none stay.
    ///
    /// Cancel safe if both calls are. `on`'s call has no more time than the first had left: bound it by the same deadline.
    ///
    /// # Errors
    /// Those for which `on` returns `None`, and those of its call.
    pub async fn call<T, E, A>(
        &self,
        call: impl Future<Output = Result<T, CallError<E>>>,
        on: impl FnOnce(&CallError<E>) -> Option<A>,
    ) -> Result<T, CallError<E>>
    where
        A: Future<Output = Result<T, CallError<E>>>,
    {
        self.or(call, |error| on(error).map(Alternative::Call)).await
    }

    /// Either of [`Fallback::with`] and [`Fallback::call`], as `on` decides for each error.
    ///
    /// # Errors
    /// Those for which `on` returns `None`, and those of its call.
    pub async fn or<T, E, A>(
        &self,
        call: impl Future<Output = Result<T, CallError<E>>>,
        on: impl FnOnce(&CallError<E>) -> Option<Alternative<T, A>>,
    ) -> Result<T, CallError<E>>
    where
        A: Future<Output = Result<T, CallError<E>>>,
    {
        let error = match call.await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match on(&error) {
            None => Err(error),
            Some(Alternative::Value(value)) => {
                self.count();
                Ok(value)
            }
            Some(Alternative::Call(alternative)) => {
                self.count();
                let result = alternative.await;
                if result.is_err() {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                }
                result
            }
        }
    }

    pub(crate) fn count(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }
}

impl AsRef<Self> for Fallback {
    fn as_ref(&self) -> &Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;
    use crate::{PolicyName, Reason, Rejected};

    type Result<T = u32> = std::result::Result<T, CallError<&'static str>>;

    const INNER: Result = Err(CallError::Inner("broken"));

    fn rejected() -> Result {
        Err(Rejected::new(PolicyName::Breaker, "payment".into(), Reason::Open).into())
    }

    #[tokio::test]
    async fn any_error_is_covered_by_a_value() {
        let fallback = Fallback::new("payment".into());
        for (result, value) in [(Ok(1), 1), (INNER, 7), (rejected(), 7)] {
            assert_eq!(fallback.value(ready(result), 7).await, value);
        }
        assert_eq!(fallback.counts(), Counts { used: 2, failed: 0 });
    }

    #[tokio::test]
    async fn only_the_errors_that_it_is_told_to_take_are_covered() {
        for (takes, results, used) in [
            (rejections as fn(&CallError<&'static str>) -> bool, [Ok(1), INNER, Ok(7)], 1),
            (errors, [Ok(1), Ok(7), rejected()], 1),
            (|_| true, [Ok(1), Ok(7), Ok(7)], 2),
            (|_| false, [Ok(1), INNER, rejected()], 0),
        ] {
            let fallback = Fallback::new("payment".into());
            for (call, expected) in [Ok(1), INNER, rejected()].into_iter().zip(results) {
                assert_eq!(fallback.with(ready(call), |error| takes(error).then_some(7)).await, expected);
            }
            assert_eq!(fallback.counts(), Counts { used, failed: 0 });
        }
    }

    #[tokio::test]
    async fn another_call_may_answer_or_fail_as_well() {
        let fallback = Fallback::new("payment".into());
        let elsewhere = |result: Result| move |error: &CallError<_>| rejections(error).then(|| ready(result));
        assert_eq!(fallback.call(ready(Ok(1)), elsewhere(Ok(8))).await, Ok(1));
        assert_eq!(fallback.call(ready(INNER), elsewhere(Ok(8))).await, INNER);
        assert_eq!(fallback.call(ready(rejected()), elsewhere(Ok(8))).await, Ok(8));
        assert_eq!(fallback.call(ready(rejected()), elsewhere(INNER)).await, INNER);
        assert_eq!(fallback.counts(), Counts { used: 2, failed: 1 });
        let either = |error: &CallError<_>| {
            Some(if rejections(error) { Alternative::Value(9) } else { Alternative::Call(ready(Ok(8))) })
        };
        assert_eq!(fallback.or(ready(rejected()), either).await, Ok(9));
        assert_eq!(fallback.or(ready(INNER), either).await, Ok(8));
    }
}
