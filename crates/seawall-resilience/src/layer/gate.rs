//! What the layers share that may have to wait before they make the call.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{Rejected, breaker};

/// A wait for what a call needs: boxed, since only those who wait pay for it.
pub(super) type Wait<H> = Pin<Box<dyn Future<Output = Result<H, Rejected>> + Send>>;

/// What a policy says to a call.
pub(super) enum Entry<H> {
    /// It passes, and holds this until it has ended.
    Pass(H),
    /// It has to wait.
    Wait(Wait<H>),
    /// It is turned away.
    Reject(Rejected),
}

pin_project! {
    /// A call that was let in, waits, or was turned away. `H` is what it holds while it is under way.
    pub(super) struct Gated<F, S, R, H> {
        #[pin]
        state: State<F, S, R, H>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F, S, R, H> {
        Rejected { rejected: Rejected },
        Waiting { waiting: Box<Waiting<S, R, H>> },
        Running { #[pin] future: F, held: Option<H> },
    }
}

struct Waiting<S, R, H> {
    wait: Wait<H>,
    /// The service that was polled ready, and what to ask it.
    next: Option<(S, R)>,
}

impl<S: Service<R>, R, H> Gated<S::Future, S, R, H> {
    /// Calls now what is let in now. A call that waits takes the service along that was polled ready, and leaves a
    /// clone, which is not, in its place.
    #[inline(always)]
    pub(super) fn new(entry: Entry<H>, service: &mut S, request: R) -> Self
    where
        S: Clone,
    {
        let state = match entry {
            Entry::Pass(held) => State::Running { future: service.call(request), held: Some(held) },
            Entry::Wait(wait) => {
                let clone = service.clone();
                let ready = std::mem::replace(service, clone);
                State::Waiting { waiting: Box::new(Waiting { wait, next: Some((ready, request)) }) }
            }
            Entry::Reject(rejected) => State::Rejected { rejected },
        };
        Self { state }
    }
}

impl<F, S, R, H> Gated<F, S, R, H> {
    /// One turn of the call: its result, and what it has held.
    #[inline(always)]
    pub(super) fn turn<T, E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(Result<T, E>, Option<H>)>
    where
        F: Future<Output = Result<T, E>>,
        S: Service<R, Future = F>,
        E: From<Rejected>,
    {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                Projected::Rejected { rejected } => return Poll::Ready((Err((*rejected).into()), None)),
                Projected::Running { future, held } => {
                    let result = ready!(future.poll(cx));
                    return Poll::Ready((result, held.take()));
                }
                Projected::Waiting { waiting } => match waiting.wait.as_mut().poll(cx) {
                    Poll::Pending => {
                        breaker::waits();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(held)) => {
                        let (mut service, request) = waiting.next.take().expect("a wait ends once");
                        State::Running { future: service.call(request), held: Some(held) }
                    }
                    Poll::Ready(Err(rejected)) => State::Rejected { rejected },
                },
            };
            state.set(next);
        }
    }
}
