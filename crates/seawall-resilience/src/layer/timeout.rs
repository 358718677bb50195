//! The time limits as a layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::GuardedError;
use crate::Rejected;
use crate::deadline::{self, Scope};
use crate::timeout::{Limit, Timeout};

/// Puts a time limit around a service: for the whole call, outside of what repeats it, or for one attempt. A service that
/// cannot answer within no time at all is not called.
#[derive(Clone, Copy, Debug)]
pub struct TimeoutLayer<B> {
    timeout: B,
    form: Form,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Total,
    Attempt,
}

/// A service with a time limit around it.
#[derive(Clone, Copy, Debug)]
pub struct TimeoutService<S, B> {
    inner: S,
    timeout: B,
    form: Form,
}

impl<B> TimeoutLayer<B> {
    /// Limits the whole call: to the total time, or to the ambient deadline if that is sooner. All that the call does runs
    /// under that as its ambient deadline.
    pub const fn total(timeout: B) -> Self {
        Self { timeout, form: Form::Total }
    }

    /// Limits one attempt: to its own time, or to the ambient deadline if that is sooner.
    pub const fn attempt(timeout: B) -> Self {
        Self { timeout, form: Form::Attempt }
    }
}

impl<S, B: Clone> Layer<S> for TimeoutLayer<B> {
    type Service = TimeoutService<S, B>;

    fn layer(&self, inner: S) -> Self::Service {
        TimeoutService { inner, timeout: self.timeout.clone(), form: self.form }
    }
}

impl<S, R, B> Service<R> for TimeoutService<S, B>
where
    S: Service<R>,
    S::Error: GuardedError,
    B: AsRef<Timeout>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = TimeoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: R) -> Self::Future {
        let (timeout, inner) = (self.timeout.as_ref(), &mut self.inner);
        let state = match self.form {
            Form::Total => {
                let (deadline, left) = timeout.begin();
                // What is below may look at the deadline as soon as it is called.
                let call = || deadline::scope(deadline, deadline::enter(deadline, || inner.call(request)));
                State::Total { call: timeout.total_of(deadline, left, call) }
            }
            Form::Attempt => State::Attempt { call: timeout.attempt_of(deadline::current(), || inner.call(request)) },
        };
        TimeoutFuture { state }
    }
}

pin_project! {
    /// A call with a time limit; holds nothing on the heap.
    pub struct TimeoutFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Total { #[pin] call: Limit<Scope<F>, Rejected> },
        Attempt { #[pin] call: Limit<F, Rejected> },
    }
}

impl<F, T, E> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: GuardedError,
{
    type Output = Result<T, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let limited = match self.project().state.project() {
            Projected::Total { call } => ready!(call.poll(cx)),
            Projected::Attempt { call } => ready!(call.poll(cx)),
        };
        Poll::Ready(limited.unwrap_or_else(|rejected| Err(rejected.into())))
    }
}
