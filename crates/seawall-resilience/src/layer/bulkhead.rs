//! The bulkhead as a layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::gate::{Entry, Gated};
use super::{Classify, GuardedError, Usual};
use crate::bulkhead::{Bulkhead, Permit, Priority};
use crate::{deadline, ended};

/// How much a request matters. Implemented by functions of `&R`, and by [`Priority`] itself for one that is always the
/// same.
pub trait Prioritize<R> {
    /// How much it matters.
    fn priority(&self, request: &R) -> Priority;
}

impl<R> Prioritize<R> for Priority {
    fn priority(&self, _: &R) -> Priority {
        *self
    }
}

impl<F, R> Prioritize<R> for F
where
    F: Fn(&R) -> Priority,
{
    fn priority(&self, request: &R) -> Priority {
        self(request)
    }
}

/// As much as the task's own priority says ([`Priority::current`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct Ambient;

impl<R> Prioritize<R> for Ambient {
    fn priority(&self, _: &R) -> Priority {
        Priority::current()
    }
}

/// Puts a bulkhead around a service. A call waits for its place as the bulkhead is configured, at most up to the ambient
/// deadline; one that finds a place at once allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct BulkheadLayer<B, P = Ambient, C = Usual> {
    bulkhead: B,
    priority: P,
    classify: C,
}

/// A service with a bulkhead around it.
#[derive(Clone, Copy, Debug)]
pub struct BulkheadService<S, B, P = Ambient, C = Usual> {
    inner: S,
    bulkhead: B,
    priority: P,
    classify: C,
}

impl<B> BulkheadLayer<B> {
    /// A layer of this bulkhead; all services that it makes share its places.
    pub const fn new(bulkhead: B) -> Self {
        Self { bulkhead, priority: Ambient, classify: Usual }
    }
}

impl<B, P, C> BulkheadLayer<B, P, C> {
    /// Says how much a request matters: a function of it, or one [`Priority`] for all. Default: [`Ambient`].
    pub fn priority<Q>(self, priority: Q) -> BulkheadLayer<B, Q, C> {
        BulkheadLayer { bulkhead: self.bulkhead, priority, classify: self.classify }
    }

    /// Says what a result means to an adaptive limit, in place of [`Usual`].
    pub fn classify<D>(self, classify: D) -> BulkheadLayer<B, P, D> {
        BulkheadLayer { bulkhead: self.bulkhead, priority: self.priority, classify }
    }
}

impl<S, B: Clone, P: Clone, C: Clone> Layer<S> for BulkheadLayer<B, P, C> {
    type Service = BulkheadService<S, B, P, C>;

    fn layer(&self, inner: S) -> Self::Service {
        BulkheadService {
            inner,
            bulkhead: self.bulkhead.clone(),
            priority: self.priority.clone(),
            classify: self.classify.clone(),
        }
    }
}

impl<S, R, B, P, C> Service<R> for BulkheadService<S, B, P, C>
where
    S: Service<R> + Clone,
    S::Error: GuardedError,
    B: AsRef<Bulkhead> + Clone + Send + 'static,
    P: Prioritize<R>,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BulkheadFuture<S::Future, S, R, B, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: R) -> Self::Future {
        let entry = enter(&self.bulkhead, self.priority.priority(&request));
        BulkheadFuture { call: Gated::new(entry, &mut self.inner, request), classify: self.classify.clone() }
    }
}

/// Takes a place, or a wait for one.
#[inline(always)]
fn enter<B>(bulkhead: &B, priority: Priority) -> Entry<Permit<B>>
where
    B: AsRef<Bulkhead> + Clone + Send + 'static,
{
    match Bulkhead::try_or_wait(bulkhead.clone(), priority) {
        Ok(Some(permit)) => Entry::Pass(permit),
        Ok(None) => {
            let limit = deadline::current().map_or(Duration::MAX, deadline::Deadline::left);
            Entry::Wait(Box::pin(Bulkhead::acquire_as(bulkhead.clone(), priority, limit)))
        }
        Err(rejected) => Entry::Reject(rejected),
    }
}

pin_project! {
    /// A call under a bulkhead. Dropped, it gives back its place, or its turn in the queue.
    pub struct BulkheadFuture<F, S, R, B: AsRef<Bulkhead>, C> {
        #[pin]
        call: Gated<F, S, R, Permit<B>>,
        classify: C,
    }
}

impl<F, S, R, B, C, T, E> Future for BulkheadFuture<F, S, R, B, C>
where
    F: Future<Output = Result<T, E>>,
    S: Service<R, Future = F>,
    B: AsRef<Bulkhead>,
    C: Classify<T, E>,
    E: GuardedError,
{
    type Output = Result<T, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (result, place) = ready!(this.call.turn(cx));
        if let Some(place) = place {
            let report = this.classify.classify(&result);
            place.finish(ended(&report), report.took);
        }
        Poll::Ready(result)
    }
}
