//! A cache as a layer.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::cache::Cache;

/// Asks a cache before a service, and keeps the responses that `store` agrees to; errors are never kept. `key` says what a
/// request is known by: `None` for one that is neither looked up nor kept. The cache is held by a handle, such as
/// `Arc<Bounded<..>>`.
#[derive(Clone, Copy, Debug)]
pub struct CacheLayer<C, K, F, P> {
    cache: C,
    key: F,
    store: P,
    keys: PhantomData<fn() -> K>,
}

/// A service with a cache in front of it.
#[derive(Clone, Copy, Debug)]
pub struct CacheService<S, C, K, F, P> {
    inner: S,
    cache: C,
    key: F,
    store: P,
    keys: PhantomData<fn() -> K>,
}

impl<C, K, F, P> CacheLayer<C, K, F, P> {
    /// A layer of this cache; all services that it makes share it.
    pub const fn new(cache: C, key: F, store: P) -> Self {
        Self { cache, key, store, keys: PhantomData }
    }
}

impl<S, C: Clone, K, F: Clone, P: Clone> Layer<S> for CacheLayer<C, K, F, P> {
    type Service = CacheService<S, C, K, F, P>;

    fn layer(&self, inner: S) -> Self::Service {
        let (cache, key, store) = (self.cache.clone(), self.key.clone(), self.store.clone());
        CacheService { inner, cache, key, store, keys: PhantomData }
    }
}

impl<S, R, C, K, F, P> Service<R> for CacheService<S, C, K, F, P>
where
    S: Service<R>,
    S::Response: Clone,
    C: Cache<K, S::Response> + Clone,
    F: Fn(&R) -> Option<K>,
    P: Fn(&S::Response) -> bool + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = CacheFuture<S::Future, S::Response, C, K, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let key = (self.key)(&request);
        if let Some(value) = key.as_ref().and_then(|key| self.cache.get(key)) {
            return CacheFuture { state: State::Hit { value: Some(value) } };
        }
        let keep = key.map(|key| (key, self.cache.clone(), self.store.clone()));
        CacheFuture { state: State::Miss { future: self.inner.call(request), keep } }
    }
}

pin_project! {
    /// A call that the cache answers, or the service.
    pub struct CacheFuture<A, T, C, K, P> {
        #[pin]
        state: State<A, T, C, K, P>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<A, T, C, K, P> {
        Hit { value: Option<T> },
        Miss { #[pin] future: A, keep: Option<(K, C, P)> },
    }
}

impl<A, T, E, C, K, P> Future for CacheFuture<A, T, C, K, P>
where
    A: Future<Output = Result<T, E>>,
    T: Clone,
    C: Cache<K, T>,
    P: Fn(&T) -> bool,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Hit { value } => Poll::Ready(Ok(value.take().expect("a future ends once"))),
            Projected::Miss { future, keep } => {
                let result = ready!(future.poll(cx));
                if let (Ok(value), Some((key, cache, store))) = (&result, keep.take())
                    && store(value)
                {
                    cache.put(key, value.clone());
                }
                Poll::Ready(result)
            }
        }
    }
}
