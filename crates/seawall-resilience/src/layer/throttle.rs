//! The adaptive throttler as a layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Classify, GuardedError, Usual};
use crate::throttle::Throttle;
use crate::{Rejected, accepted};

/// Puts a throttler around a service.
#[derive(Clone, Copy, Debug)]
pub struct ThrottleLayer<B, C = Usual> {
    throttle: B,
    classify: C,
}

/// A service with a throttler around it.
#[derive(Clone, Copy, Debug)]
pub struct ThrottleService<S, B, C = Usual> {
    inner: S,
    throttle: B,
    classify: C,
}

impl<B> ThrottleLayer<B> {
    /// A layer of this throttler; all services that it makes share its counts.
    pub const fn new(throttle: B) -> Self {
        Self { throttle, classify: Usual }
    }

    /// Says what a result means, in place of [`Usual`]: a report of overload is a refusal, a success is none, and the rest
    /// is not counted.
    pub fn classify<C>(self, classify: C) -> ThrottleLayer<B, C> {
        ThrottleLayer { throttle: self.throttle, classify }
    }
}

impl<S, B: Clone, C: Clone> Layer<S> for ThrottleLayer<B, C> {
    type Service = ThrottleService<S, B, C>;

    fn layer(&self, inner: S) -> Self::Service {
        ThrottleService { inner, throttle: self.throttle.clone(), classify: self.classify.clone() }
    }
}

impl<S, R, B, C> Service<R> for ThrottleService<S, B, C>
where
    S: Service<R>,
    S::Error: GuardedError,
    B: AsRef<Throttle> + Clone,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ThrottleFuture<S::Future, B, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: R) -> Self::Future {
        // The permit holds nothing; the handle is kept in its place.
        let state = match self.throttle.as_ref().admit() {
            Ok(_) => State::Running {
                future: self.inner.call(request),
                throttle: self.throttle.clone(),
                classify: self.classify.clone(),
            },
            Err(rejected) => State::Rejected { rejected },
        };
        ThrottleFuture { state }
    }
}

pin_project! {
    /// A call under a throttler; holds nothing on the heap. Dropped before its end it is not counted.
    pub struct ThrottleFuture<F, B, C> {
        #[pin]
        state: State<F, B, C>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F, B, C> {
        Rejected { rejected: Rejected },
        Running { #[pin] future: F, throttle: B, classify: C },
    }
}

impl<F, B, C, T, E> Future for ThrottleFuture<F, B, C>
where
    F: Future<Output = Result<T, E>>,
    B: AsRef<Throttle>,
    C: Classify<T, E>,
    E: GuardedError,
{
    type Output = Result<T, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Rejected { rejected } => Poll::Ready(Err((*rejected).into())),
            Projected::Running { future, throttle, classify } => {
                let result = ready!(future.poll(cx));
                if let Some(accepted) = accepted(&classify.classify(&result)) {
                    throttle.as_ref().record(accepted);
                }
                Poll::Ready(result)
            }
        }
    }
}
