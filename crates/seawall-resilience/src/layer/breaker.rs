//! The circuit breaker as a layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Classify, GuardedError, Usual};
use crate::Report;
use crate::breaker::{Breaker, Call};

/// Puts a breaker around a service. `B` is how it is held: `&'static Breaker`, `Arc<Breaker>`, or a handle of your own.
#[derive(Clone, Copy, Debug)]
pub struct BreakerLayer<B, C = Usual> {
    breaker: B,
    classify: C,
}

/// A service with a breaker around it.
#[derive(Clone, Copy, Debug)]
pub struct BreakerService<S, B, C = Usual> {
    inner: S,
    breaker: B,
    classify: C,
}

impl<B> BreakerLayer<B> {
    /// A layer of this breaker; all services that it makes share it.
    pub const fn new(breaker: B) -> Self {
        Self { breaker, classify: Usual }
    }

    /// Says what a result means, in place of [`Usual`].
    pub fn classify<C>(self, classify: C) -> BreakerLayer<B, C> {
        BreakerLayer { breaker: self.breaker, classify }
    }
}

impl<S, B: Clone, C: Clone> Layer<S> for BreakerLayer<B, C> {
    type Service = BreakerService<S, B, C>;

    fn layer(&self, inner: S) -> Self::Service {
        BreakerService { inner, breaker: self.breaker.clone(), classify: self.classify.clone() }
    }
}

impl<S, R, B, C> Service<R> for BreakerService<S, B, C>
where
    S: Service<R>,
    S::Error: GuardedError,
    B: AsRef<Breaker> + Clone,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BreakerFuture<S::Future, B, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let inner = &mut self.inner;
        BreakerFuture { call: Call::new(self.breaker.clone(), || inner.call(request), self.classify.clone()) }
    }
}

pin_project! {
    /// A call under a breaker; holds nothing on the heap.
    pub struct BreakerFuture<F, B: AsRef<Breaker>, C> {
        #[pin]
        call: Call<F, B, C>,
    }
}

impl<F, B, C, T, E> Future for BreakerFuture<F, B, C>
where
    F: Future<Output = Result<T, E>>,
    B: AsRef<Breaker>,
    C: Classify<T, E>,
    E: GuardedError,
{
    type Output = Result<T, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let judge = |classify: &mut C, result: &Result<T, E>| -> Report { classify.classify(result) };
        self.project().call.turn(cx, judge, |error| error)
    }
}
