//! Hedging as a layer.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::{GuardedError, attempt, completed, had_begun};
use crate::hedge::Hedge;

/// Asks a service a second time when no answer comes in time. Only for calls that may be done twice.
///
/// Each call is boxed, and the service and the request are cloned for it.
#[derive(Clone, Copy, Debug)]
pub struct HedgeLayer<B> {
    hedge: B,
}

/// A service that is asked a second time.
#[derive(Clone, Copy, Debug)]
pub struct HedgeService<S, B> {
    inner: S,
    hedge: B,
}

impl<B> HedgeLayer<B> {
    /// A layer of this hedge; all services that it makes share its latencies and its budget.
    pub const fn new(hedge: B) -> Self {
        Self { hedge }
    }
}

impl<S, B: Clone> Layer<S> for HedgeLayer<B> {
    type Service = HedgeService<S, B>;

    fn layer(&self, inner: S) -> Self::Service {
        HedgeService { inner, hedge: self.hedge.clone() }
    }
}

impl<S, R, B> Service<R> for HedgeService<S, B>
where
    S: Service<R> + Clone + Send + 'static,
    S::Response: Send + 'static,
    S::Error: GuardedError + Send + 'static,
    S::Future: Send + 'static,
    R: Clone + Send + 'static,
    B: AsRef<Hedge> + Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let clone = self.inner.clone();
        let mut ready = Some(std::mem::replace(&mut self.inner, clone.clone()));
        let hedge = self.hedge.clone();
        Box::pin(async move {
            let mut make = move |_: u32| attempt(ready.take(), clone.clone(), request.clone());
            let begun = AtomicBool::new(false);
            let make = |number| {
                let made = make(number);
                let begun = &begun;
                async move {
                    let result = made.await;
                    begun.fetch_or(had_begun(&result), Ordering::Relaxed);
                    result
                }
            };
            let result = hedge.as_ref().call(make).await;
            completed(result, begun.into_inner())
        })
    }
}
