//! Coalescing as a layer.

use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::coalesce::Coalesce;

/// Identical calls of a service that are under way at the same time share one. `key` says which are: `None` for a call
/// that is made by itself. Responses and errors are cloned for all who wait for them.
///
/// A call with a key is boxed.
#[derive(Clone, Debug)]
pub struct CoalesceLayer<K, V, F> {
    coalesce: Coalesce<K, V>,
    key: F,
}

/// A service whose identical calls share one.
#[derive(Clone, Debug)]
pub struct CoalesceService<S, K, V, F> {
    inner: S,
    coalesce: Coalesce<K, V>,
    key: F,
}

impl<K, V, F> CoalesceLayer<K, V, F> {
    /// A layer of these calls; all services that it makes share them. `V` is the result of a call: `Result<Response,
    /// Error>`.
    pub const fn new(coalesce: Coalesce<K, V>, key: F) -> Self {
        Self { coalesce, key }
    }
}

impl<S, K, V, F: Clone> Layer<S> for CoalesceLayer<K, V, F> {
    type Service = CoalesceService<S, K, V, F>;

    fn layer(&self, inner: S) -> Self::Service {
        CoalesceService { inner, coalesce: self.coalesce.clone(), key: self.key.clone() }
    }
}

impl<S, R, K, F> Service<R> for CoalesceService<S, K, Result<S::Response, S::Error>, F>
where
    S: Service<R> + Clone + Send + 'static,
    S::Response: Clone + Send + Sync + 'static,
    S::Error: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    R: Send + 'static,
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Fn(&R) -> Option<K>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = CoalesceFuture<S::Future, S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let Some(key) = (self.key)(&request) else {
            return CoalesceFuture { state: State::Alone { future: self.inner.call(request) } };
        };
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let coalesce = self.coalesce.clone();
        let shared = Box::pin(async move { coalesce.call(key, move || ready.call(request)).await });
        CoalesceFuture { state: State::Shared { shared } }
    }
}

pin_project! {
    /// A call that may be another's, too.
    pub struct CoalesceFuture<F, T, E> {
        #[pin]
        state: State<F, T, E>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F, T, E> {
        Alone { #[pin] future: F },
        Shared { shared: Pin<Box<dyn Future<Output = Result<T, E>> + Send>> },
    }
}

impl<F, T, E> Future for CoalesceFuture<F, T, E>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Alone { future } => future.poll(cx),
            Projected::Shared { shared } => shared.as_mut().poll(cx),
        }
    }
}
