//! All policies of a service as one layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::{Classify, Decide, Usual, attempt};
use crate::sync::{Mutex, lock};
use crate::{CallError, Guard};

/// Puts a whole [`Guard`] around a service, in its fixed order. `G` is how it is held: `&'static Guard` or `Arc<Guard>`.
///
/// Each call is boxed, and the service and the request are cloned for it, because a guard may repeat a call. Where that
/// matters, [`Guard::call`] is the form that allocates nothing, or there are the single layers. Calls that must not be
/// done twice need a policy without `retry` and `hedge`.
#[derive(Clone, Copy, Debug)]
pub struct GuardLayer<G, C = Usual, D = Usual> {
    guard: G,
    classify: C,
    decide: D,
}

/// A service with a guard around it.
#[derive(Clone, Copy, Debug)]
pub struct GuardService<S, G, C = Usual, D = Usual> {
    inner: S,
    guard: G,
    classify: C,
    decide: D,
}

impl<G> GuardLayer<G> {
    /// A layer of this guard; all services that it makes share its state.
    pub const fn new(guard: G) -> Self {
        Self { guard, classify: Usual, decide: Usual }
    }
}

impl<G, C, D> GuardLayer<G, C, D> {
    /// Says what a result means to breaker, bulkhead and throttle, in place of [`Usual`].
    pub fn classify<X>(self, classify: X) -> GuardLayer<G, X, D> {
        GuardLayer { guard: self.guard, classify, decide: self.decide }
    }

    /// Says what is worth another attempt, in place of [`Usual`].
    pub fn decide<X>(self, decide: X) -> GuardLayer<G, C, X> {
        GuardLayer { guard: self.guard, classify: self.classify, decide }
    }
}

impl<S, G: Clone, C: Clone, D: Clone> Layer<S> for GuardLayer<G, C, D> {
    type Service = GuardService<S, G, C, D>;

    fn layer(&self, inner: S) -> Self::Service {
        let (guard, classify, decide) = (self.guard.clone(), self.classify.clone(), self.decide.clone());
        GuardService { inner, guard, classify, decide }
    }
}

impl<S, R, G, C, D> Service<R> for GuardService<S, G, C, D>
where
    S: Service<R> + Clone + Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
    R: Clone + Send + 'static,
    G: AsRef<Guard> + Clone + Send + Sync + 'static,
    C: Classify<S::Response, CallError<S::Error>> + Clone + Send + Sync + 'static,
    D: Decide<S::Response, CallError<S::Error>> + Clone + Send + 'static,
{
    type Response = S::Response;
    type Error = CallError<S::Error>;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, CallError<S::Error>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(CallError::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let clone = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, clone.clone());
        let (guard, classify, decide) = (self.guard.clone(), self.classify.clone(), self.decide.clone());
        Box::pin(async move {
            // Attempts may be made side by side, though never from two threads at once.
            let parts = Mutex::new((Some(ready), clone, request));
            let make = |_| {
                let mut parts = lock(&parts);
                attempt(parts.0.take(), parts.1.clone(), parts.2.clone())
            };
            guard.as_ref().call_with(make, &classify, move |result: &_| decide.decide(result)).await
        })
    }
}
