//! Chaos as a layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::GuardedError;
use super::gate::{Entry, Gated};
use crate::chaos::{Chaos, Injection};

/// Puts the trouble that was ordered in front of a service: delays, and faults in place of the call. A status is a fault
/// here, as nobody knows how to put one in the response of a service of any kind.
#[derive(Clone, Copy, Debug)]
pub struct ChaosLayer<B> {
    chaos: B,
}

/// A service with trouble in front of it.
#[derive(Clone, Copy, Debug)]
pub struct ChaosService<S, B> {
    inner: S,
    chaos: B,
}

impl<B> ChaosLayer<B> {
    /// A layer of this chaos; all services that it makes draw from the same numbers.
    pub const fn new(chaos: B) -> Self {
        Self { chaos }
    }
}

impl<S, B: Clone> Layer<S> for ChaosLayer<B> {
    type Service = ChaosService<S, B>;

    fn layer(&self, inner: S) -> Self::Service {
        ChaosService { inner, chaos: self.chaos.clone() }
    }
}

impl<S, R, B> Service<R> for ChaosService<S, B>
where
    S: Service<R> + Clone,
    S::Error: GuardedError,
    B: AsRef<Chaos>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ChaosFuture<S::Future, S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        ChaosFuture { call: Gated::new(enter(self.chaos.as_ref()), &mut self.inner, request) }
    }
}

#[inline]
fn enter(chaos: &Chaos) -> Entry<()> {
    let Injection { delay, fault, status } = chaos.decide();
    let verdict = if fault || status.is_some() { Err(chaos.fault()) } else { Ok(()) };
    match (delay, verdict) {
        (None, Ok(())) => Entry::Pass(()),
        (None, Err(fault)) => Entry::Reject(fault),
        (Some(delay), verdict) => Entry::Wait(Box::pin(async move {
            tokio::time::sleep(delay).await;
            verdict
        })),
    }
}

pin_project! {
    /// A call in trouble, perhaps.
    pub struct ChaosFuture<F, S, R> {
        #[pin]
        call: Gated<F, S, R, ()>,
    }
}

impl<F, S, R, T, E> Future for ChaosFuture<F, S, R>
where
    F: Future<Output = Result<T, E>>,
    S: Service<R, Future = F>,
    E: GuardedError,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (result, _) = ready!(self.project().call.turn(cx));
        Poll::Ready(result)
    }
}
