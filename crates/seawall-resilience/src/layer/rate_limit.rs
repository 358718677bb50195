//! The rate limiter as a layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::GuardedError;
use super::gate::{Entry, Gated};
use crate::deadline;
use crate::rate_limit::RateLimiter;

/// Puts a rate limiter around a service. A call waits for its turn as the limiter is configured, at most up to the
/// ambient deadline; one whose turn it is allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct RateLimitLayer<B> {
    limiter: B,
}

/// A service with a rate limiter around it.
#[derive(Clone, Copy, Debug)]
pub struct RateLimitService<S, B> {
    inner: S,
    limiter: B,
}

impl<B> RateLimitLayer<B> {
    /// A layer of this limiter; all services that it makes share its rate.
    pub const fn new(limiter: B) -> Self {
        Self { limiter }
    }
}

impl<S, B: Clone> Layer<S> for RateLimitLayer<B> {
    type Service = RateLimitService<S, B>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService { inner, limiter: self.limiter.clone() }
    }
}

impl<S, R, B> Service<R> for RateLimitService<S, B>
where
    S: Service<R> + Clone,
    S::Error: GuardedError,
    B: AsRef<RateLimiter> + Clone + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = RateLimitFuture<S::Future, S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: R) -> Self::Future {
        RateLimitFuture { call: Gated::new(enter(&self.limiter), &mut self.inner, request) }
    }
}

#[inline(always)]
fn enter<B>(limiter: &B) -> Entry<()>
where
    B: AsRef<RateLimiter> + Clone + Send + 'static,
{
    let Err(rejected) = limiter.as_ref().try_acquire() else { return Entry::Pass(()) };
    let limit = deadline::current().map_or(Duration::MAX, deadline::Deadline::left);
    if !limiter.as_ref().may_wait(&rejected, limit) {
        return Entry::Reject(rejected);
    }
    let limiter = limiter.clone();
    Entry::Wait(Box::pin(async move { limiter.as_ref().acquire(limit).await }))
}

pin_project! {
    /// A call under a rate limiter. Dropped while it waits, it gives its turn back.
    pub struct RateLimitFuture<F, S, R> {
        #[pin]
        call: Gated<F, S, R, ()>,
    }
}

impl<F, S, R, T, E> Future for RateLimitFuture<F, S, R>
where
    F: Future<Output = Result<T, E>>,
    S: Service<R, Future = F>,
    E: GuardedError,
{
    type Output = Result<T, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (result, _) = ready!(self.project().call.turn(cx));
        Poll::Ready(result)
    }
}
