//! The fallback as a layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::fallback::Fallback;

/// Puts a fallback around a service: `with` makes a response of an error, or leaves the error. It belongs outside of all
/// others, so that those see the failure before it is covered up.
#[derive(Clone, Copy, Debug)]
pub struct FallbackLayer<B, F> {
    fallback: B,
    with: F,
}

/// A service with a fallback around it.
#[derive(Clone, Copy, Debug)]
pub struct FallbackService<S, B, F> {
    inner: S,
    fallback: B,
    with: F,
}

impl<B, F> FallbackLayer<B, F> {
    /// A layer of this fallback, which counts how often it is used. `with` gives another response for an error, or
    /// `None` where that error stays.
    pub const fn new(fallback: B, with: F) -> Self {
        Self { fallback, with }
    }
}

impl<S, B: Clone, F: Clone> Layer<S> for FallbackLayer<B, F> {
    type Service = FallbackService<S, B, F>;

    fn layer(&self, inner: S) -> Self::Service {
        FallbackService { inner, fallback: self.fallback.clone(), with: self.with.clone() }
    }
}

impl<S, R, B, F> Service<R> for FallbackService<S, B, F>
where
    S: Service<R>,
    B: AsRef<Fallback> + Clone,
    F: Fn(&S::Error) -> Option<S::Response> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = FallbackFuture<S::Future, B, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let future = self.inner.call(request);
        FallbackFuture { future, fallback: self.fallback.clone(), with: self.with.clone() }
    }
}

pin_project! {
    /// A call whose error may be covered up; holds nothing on the heap.
    pub struct FallbackFuture<C, B, F> {
        #[pin]
        future: C,
        fallback: B,
        with: F,
    }
}

impl<C, B, F, T, E> Future for FallbackFuture<C, B, F>
where
    C: Future<Output = Result<T, E>>,
    B: AsRef<Fallback>,
    F: Fn(&E) -> Option<T>,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let error = match ready!(this.future.poll(cx)) {
            Ok(value) => return Poll::Ready(Ok(value)),
            Err(error) => error,
        };
        Poll::Ready(match (this.with)(&error) {
            Some(value) => {
                this.fallback.as_ref().count();
                Ok(value)
            }
            None => Err(error),
        })
    }
}
