//! Retries as a layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{GuardedError, Usual, attempt, completed, had_begun};
use crate::retry::{Decision, Retrier};
use crate::{Chain, PolicyName, Reason, Tick, deadline};

/// Says whether a result is worth another attempt. Implemented by functions of `&Result<T, E>`, and by [`Usual`].
pub trait Decide<T, E> {
    /// What to do after an attempt with this result.
    fn decide(&self, result: &Result<T, E>) -> Decision;
}

impl<F, T, E> Decide<T, E> for F
where
    F: Fn(&Result<T, E>) -> Decision,
{
    fn decide(&self, result: &Result<T, E>) -> Decision {
        self(result)
    }
}

/// As [`crate::retry::failures`]: a failure of the call's own, an attempt that took too long, a fault that was injected;
/// nothing else that a policy turned away.
impl<T, E: GuardedError> Decide<T, E> for Usual {
    #[inline(always)]
    fn decide(&self, result: &Result<T, E>) -> Decision {
        let Err(error) = result else { return Decision::Stop };
        match error.rejection().map(|rejected| (rejected.policy, rejected.reason, rejected.retry_after)) {
            None => Decision::Again { after: None },
            Some((PolicyName::Timeout, Reason::Attempt, after) | (PolicyName::Chaos, _, after)) => {
                Decision::Again { after }
            }
            Some(_) => Decision::Stop,
        }
    }
}

/// Repeats the failed calls of a service. Only for calls that may be done twice.
///
/// The service and the request are cloned for each call, unless there is only one attempt; nothing else is done for a
/// call that works, and nothing is allocated. The repetition is boxed. No attempt starts at or after the ambient deadline.
#[derive(Clone, Copy, Debug)]
pub struct RetryLayer<B, D = Usual> {
    retrier: B,
    decide: D,
}

/// A service whose failed calls are repeated.
#[derive(Clone, Copy, Debug)]
pub struct RetryService<S, B, D = Usual> {
    inner: S,
    retrier: B,
    decide: D,
}

impl<B> RetryLayer<B> {
    /// A layer of this retrier; all services that it makes share its budget.
    pub const fn new(retrier: B) -> Self {
        Self { retrier, decide: Usual }
    }

    /// Says what is worth another attempt, in place of [`Usual`].
    pub fn decide<D>(self, decide: D) -> RetryLayer<B, D> {
        RetryLayer { retrier: self.retrier, decide }
    }
}

impl<S, B: Clone, D: Clone> Layer<S> for RetryLayer<B, D> {
    type Service = RetryService<S, B, D>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryService { inner, retrier: self.retrier.clone(), decide: self.decide.clone() }
    }
}

impl<S, R, B, D> Service<R> for RetryService<S, B, D>
where
    S: Service<R> + Clone + Send + 'static,
    S::Response: Send + 'static,
    S::Error: GuardedError + Send + 'static,
    S::Future: Send + 'static,
    R: Clone + Send + 'static,
    B: AsRef<Retrier> + Clone + Send + Sync + 'static,
    D: Decide<S::Response, S::Error> + Clone + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = RetryFuture<S, R, B, D>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: R) -> Self::Future {
        let retrier = self.retrier.as_ref();
        retrier.budget().deposit();
        let again = retrier.may_repeat().then(|| Again {
            // The instance that was polled ready makes the first attempt.
            service: self.inner.clone(),
            request: request.clone(),
            retrier: self.retrier.clone(),
            decide: self.decide.clone(),
        });
        let chain = retrier.new_chain();
        let future = match &chain {
            Some(chain) => chain.clone().within(|| self.inner.call(request)),
            None => self.inner.call(request),
        };
        RetryFuture { state: State::First { future, again }, chain }
    }
}

/// What is needed for more attempts.
struct Again<S, R, B, D> {
    service: S,
    request: R,
    retrier: B,
    decide: D,
}

/// All further attempts.
type Repeat<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<S, R, B, D> Again<S, R, B, D>
where
    S: Service<R> + Clone + Send + 'static,
    S::Response: Send,
    S::Error: GuardedError + Send,
    S::Future: Send,
    R: Clone + Send + 'static,
    B: AsRef<Retrier> + Send + Sync + 'static,
    D: Decide<S::Response, S::Error> + Send + 'static,
{
    /// Goes on after the first attempt has failed.
    async fn go_on(
        self,
        result: Result<S::Response, S::Error>,
        deadline: Option<Tick>,
        after: Option<Duration>,
    ) -> Result<S::Response, S::Error> {
        let Self { service, request, retrier, decide } = self;
        let retrier = retrier.as_ref();
        let Ok(charge) = retrier.again(1, Duration::ZERO, deadline, after) else { return result };
        let make = move |_| attempt(None, service.clone(), request.clone());
        let mut begun = had_begun(&result);
        let any = &mut begun;
        let decide = move |result: &_| {
            *any |= had_begun(result);
            decide.decide(result)
        };
        let result = retrier.repeat(deadline, make, decide, result, charge).await;
        completed(result, begun)
    }
}

pin_project! {
    /// A call that is repeated if it fails. Dropped while it waits, it gives back what the retry had taken.
    pub struct RetryFuture<S: Service<R>, R, B, D> {
        #[pin]
        state: State<S, R, B, D>,
        chain: Option<Chain>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<S: Service<R>, R, B, D> {
        First { #[pin] future: S::Future, again: Option<Again<S, R, B, D>> },
        Repeat { repeat: Repeat<S::Response, S::Error> },
    }
}

impl<S, R, B, D> Future for RetryFuture<S, R, B, D>
where
    S: Service<R> + Clone + Send + 'static,
    S::Response: Send + 'static,
    S::Error: GuardedError + Send + 'static,
    S::Future: Send + 'static,
    R: Clone + Send + 'static,
    B: AsRef<Retrier> + Clone + Send + Sync + 'static,
    D: Decide<S::Response, S::Error> + Clone + Send + 'static,
{
    type Output = Result<S::Response, S::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.chain {
            Some(chain) => chain.clone().within(|| this.state.turn(cx)),
            None => this.state.turn(cx),
        }
    }
}

impl<S, R, B, D> State<S, R, B, D>
where
    S: Service<R> + Clone + Send + 'static,
    S::Response: Send + 'static,
    S::Error: GuardedError + Send + 'static,
    S::Future: Send + 'static,
    R: Clone + Send + 'static,
    B: AsRef<Retrier> + Clone + Send + Sync + 'static,
    D: Decide<S::Response, S::Error> + Clone + Send + 'static,
{
    #[inline(always)]
    fn turn(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<S::Response, S::Error>> {
        loop {
            let (result, again, after) = match self.as_mut().project() {
                Projected::Repeat { repeat } => return repeat.as_mut().poll(cx),
                Projected::First { future, again } => {
                    let result = ready!(future.poll(cx));
                    match again.take().map(|again| (again.decide.decide(&result), again)) {
                        Some((Decision::Again { after }, again)) => (result, again, after),
                        _ => return Poll::Ready(result),
                    }
                }
            };
            let deadline = deadline::current().map(|deadline| again.retrier.as_ref().tick_of(deadline));
            self.set(Self::Repeat { repeat: Box::pin(again.go_on(result, deadline, after)) });
        }
    }
}
