//! The right to make one call, and a call under way.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::{Breaker, Refused};
use crate::{CallError, Outcome, Rejected, Report, Tick};

/// The right to make one call. Give it back with [`Permit::finish`]; to drop it means that the call was given up: that
/// frees a probe's place, and counts as a failure if the call had lasted longer than `cancelled_after`, or if the
/// thread is panicking.
#[must_use = "a permit that is dropped at once counts as a cancelled call"]
pub struct Permit<B: AsRef<Breaker>> {
    pub(super) breaker: B,
    pub(super) epoch: u32,
    pub(super) settled: bool,
    /// In nanoseconds; [`UNSTARTED`] until it is known to last.
    pub(super) started: u64,
}

thread_local! {
    /// Whether the call that has just been polled waits for a place, or for its turn.
    static WAITS: Cell<bool> = const { Cell::new(false) };
}

/// Said by a policy further in that lets its call wait: that is not the service's time.
pub(crate) fn waits() {
    WAITS.set(true);
}

/// When nobody knows yet when the call began.
pub(super) const UNSTARTED: u64 = u64::MAX;

impl<B: AsRef<Breaker>> Permit<B> {
    /// Reports how the call ended: an [`Outcome`], or a [`Report`] that says more.
    #[inline(always)]
    pub fn finish(mut self, report: impl Into<Report>) {
        self.settle(report.into());
    }

    /// [`Permit::finish`] at a time that the caller knows.
    pub fn finish_at(mut self, report: impl Into<Report>, now: Tick) {
        self.settled = true;
        self.breaker.as_ref().observe(self.epoch, self.started, report.into(), Some(now));
    }

    #[inline(always)]
    fn settle(&mut self, report: Report) {
        self.settled = true;
        self.breaker.as_ref().observe(self.epoch, self.started, report, None);
    }

    /// The call waits for something else before it is made, such as a place in the bulkhead: if it is given up before
    /// [`Permit::begin`], that says nothing about the service, however long the wait was.
    #[inline]
    pub fn waiting(mut self) -> Self {
        self.started = UNSTARTED;
        self
    }

    /// The call is made only now: what went before, such as a wait for the bulkhead, is not the service's time.
    #[inline]
    pub fn begin(&mut self) {
        self.started = self.breaker.as_ref().clock.now().nanos();
    }

    /// The call lasts: from now on its age is known.
    #[inline]
    fn lasts(&mut self) {
        if self.started == UNSTARTED {
            self.started = self.breaker.as_ref().clock.now().nanos();
        }
    }
}

impl<B: AsRef<Breaker>> Drop for Permit<B> {
    #[inline]
    fn drop(&mut self) {
        if !self.settled {
            self.breaker.as_ref().cancelled(self.epoch, self.started);
        }
    }
}

impl<B: AsRef<Breaker>> fmt::Debug for Permit<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

pin_project! {
    /// A call under a breaker; see [`Breaker::call`]. Holds nothing on the heap.
    #[must_use = "a future does nothing unless it is awaited"]
    pub struct Call<F, B: AsRef<Breaker>, J> {
        #[pin]
        state: State<F, B, J>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F, B: AsRef<Breaker>, J> {
        Rejected { breaker: B, refused: Refused },
        Running { #[pin] future: F, permit: Permit<B>, judge: J },
    }
}

impl<F, B: AsRef<Breaker>, J> Call<F, B, J> {
    /// Asks the breaker now; `future` is made only if it lets the call pass.
    #[inline]
    pub fn new(breaker: B, future: impl FnOnce() -> F, judge: J) -> Self {
        let state = match Breaker::acquire_lazily(breaker) {
            Ok(permit) => State::Running { future: future(), permit, judge },
            Err((breaker, refused)) => State::Rejected { breaker, refused },
        };
        Self { state }
    }

    /// One turn of the call; what went wrong, by whomever, becomes the caller's own error.
    #[inline(always)]
    pub(crate) fn turn<T, E, X>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        classify: impl FnOnce(&mut J, &Result<T, E>) -> Report,
        inner: impl FnOnce(E) -> X,
    ) -> Poll<Result<T, X>>
    where
        F: Future<Output = Result<T, E>>,
        X: From<Rejected>,
    {
        match self.project().state.project() {
            Projected::Rejected { breaker, refused } => {
                let breaker: &Breaker = (*breaker).as_ref();
                Poll::Ready(Err(breaker.rejected(*refused).into()))
            }
            Projected::Running { future, permit, judge } => {
                // A panic is caught by the executor long before the permit is dropped: it has to be noticed here.
                let panics = Panics(permit);
                WAITS.set(false);
                let polled = future.poll(cx);
                let report = if let Poll::Ready(result) = &polled { Some(classify(judge, result)) } else { None };
                std::mem::forget(panics);
                match report {
                    Some(report) => permit.settle(report),
                    // In a queue of ours further in: the call itself is yet to be made.
                    None if WAITS.get() => permit.started = UNSTARTED,
                    None => permit.lasts(),
                }
                polled.map(|result| result.map_err(inner))
            }
        }
    }
}

impl<F, B, J, T, E> Future for Call<F, B, J>
where
    F: Future<Output = Result<T, E>>,
    B: AsRef<Breaker>,
    J: FnMut(&Result<T, E>) -> Report,
{
    type Output = Result<T, CallError<E>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.turn(cx, |judge, result| judge(result), CallError::Inner)
    }
}

/// Dropped by a panic in the call or in the judge of its result.
struct Panics<'a, B: AsRef<Breaker>>(&'a mut Permit<B>);

impl<B: AsRef<Breaker>> Drop for Panics<'_, B> {
    fn drop(&mut self) {
        self.0.settle(Report { cause: "panicked", ..Outcome::Failure.into() });
    }
}
