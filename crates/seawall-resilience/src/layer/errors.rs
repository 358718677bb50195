//! Any service's error as a [`CallError`].

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::CallError;

/// Makes a [`CallError`] of the error of the service below, so that the layers above can put their rejections in it.
pub const fn errors() -> ErrorsLayer {
    ErrorsLayer(())
}

/// See [`errors`].
#[derive(Clone, Copy, Debug)]
pub struct ErrorsLayer(());

/// See [`errors`].
#[derive(Clone, Copy, Debug)]
pub struct ErrorsService<S>(S);

impl<S> Layer<S> for ErrorsLayer {
    type Service = ErrorsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ErrorsService(inner)
    }
}

impl<S, R> Service<R> for ErrorsService<S>
where
    S: Service<R>,
{
    type Response = S::Response;
    type Error = CallError<S::Error>;
    type Future = ErrorsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx).map_err(CallError::Inner)
    }

    #[inline(always)]
    fn call(&mut self, request: R) -> Self::Future {
        ErrorsFuture { future: self.0.call(request) }
    }
}

pin_project! {
    /// A call whose error becomes a [`CallError`].
    pub struct ErrorsFuture<F> {
        #[pin]
        future: F,
    }
}

impl<F, T, E> Future for ErrorsFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, CallError<E>>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().future.poll(cx)).map_err(CallError::Inner))
    }
}
