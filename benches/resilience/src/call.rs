//! One call, the same for everybody: what goes in, what is called, how it is driven, what comes out.
//!
//! The optimiser must neither see what goes in nor that nobody looks at what comes out, and the service itself must not
//! vanish into its caller, as no real one does. So what the service does is a function that is never inlined, and the
//! caller shows a `black_box` the number and, by reference, the result: the bare service then costs a nanosecond or two,
//! and everybody pays the same for it.

use std::future::{Future, Ready, ready};
use std::hint::{black_box, spin_loop};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tower::Service;

/// What a call fails with.
#[derive(Clone, Copy, Debug)]
pub struct Failure;

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failure {}

/// A call that is ready at once.
#[inline(never)]
pub fn answer(number: u64) -> Result<u64, Failure> {
    Ok(black_box(number))
}

/// The same as a future.
#[inline(always)]
pub fn future(number: u64) -> Ready<Result<u64, Failure>> {
    ready(answer(number))
}

/// A call of which one in a hundred fails.
#[inline(always)]
pub fn unsure(number: u64) -> Ready<Result<u64, Failure>> {
    #[inline(never)]
    fn answer(number: u64) -> Result<u64, Failure> {
        if black_box(number).is_multiple_of(100) { Err(Failure) } else { Ok(number) }
    }
    ready(answer(number))
}

/// A call that always fails: what opens a breaker.
#[inline(always)]
pub fn failing(number: u64) -> Ready<Result<u64, Failure>> {
    #[inline(never)]
    fn answer(number: u64) -> Result<u64, Failure> {
        black_box(number);
        Err(Failure)
    }
    ready(answer(number))
}

/// Polls by hand until it is ready. Only a peer that locks ever has to be asked twice.
#[inline(always)]
pub fn drive<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        spin_loop();
    }
}

/// One call of a service, its readiness included.
#[inline(always)]
pub fn serve<S: Service<u64>>(service: &mut S, number: u64) {
    let mut context = Context::from_waker(Waker::noop());
    while service.poll_ready(&mut context).is_pending() {
        spin_loop();
    }
    black_box(&drive(service.call(black_box(number))));
}
