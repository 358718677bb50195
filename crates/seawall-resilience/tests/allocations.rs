//! No policy allocates on the way of a call that need not wait: not when it succeeds, not when it is turned away.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use seawall_resilience::breaker::{Breaker, Config, State, Window};
use seawall_resilience::layer::{BreakerLayer, BulkheadLayer, RateLimitLayer, RetryLayer, TimeoutLayer};
use seawall_resilience::{
    Bulkhead, CallError, Clock, Policies, RateLimiter, Registry, Retrier, Retry, Timeout, bulkhead, rate_limit, timeout,
};
use seawall_types::Period;
use tower_layer::Layer;
use tower_service::Service;

#[derive(Clone)]
struct Bare;

impl Service<u64> for Bare {
    type Response = u64;
    type Error = CallError<Infallible>;
    type Future = Ready<Result<u64, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u64) -> Self::Future {
        ready(Ok(request))
    }
}

fn finish<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it should not have to wait"),
    }
}

/// How often a hundred calls allocate, after some that may make what is made once.
fn allocations(mut call: impl FnMut()) -> u64 {
    (0..10).for_each(|_| call());
    allocation_counter::measure(|| (0..100).for_each(|_| call())).count_total
}

fn of_service<S: Service<u64>>(mut service: S) -> u64 {
    allocations(|| {
        assert!(service.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready());
        drop(finish(service.call(7)));
    })
}

fn breaker(window: Window) -> Arc<Breaker> {
    let config = Config { window, slow_call: Some(Period::secs(1)), ..Config::default() };
    Arc::new(Breaker::new("api".into(), config, Clock::default(), Box::new(|_| {})))
}

#[test]
fn no_call_allocates() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    for window in [Window::Calls(100), Window::Time(Period::secs(10)), Window::Consecutive(5)] {
        assert_eq!(of_service(BreakerLayer::new(breaker(window)).layer(Bare)), 0, "{window}");
    }
    for state in [State::Open, State::ForcedOpen, State::Disabled] {
        let breaker = breaker(Window::Calls(100));
        breaker.set(state);
        assert_eq!(of_service(BreakerLayer::new(breaker).layer(Bare)), 0, "{state}");
    }
    let called = breaker(Window::Calls(100));
    assert_eq!(allocations(|| _ = finish(called.call(ready(Ok::<_, Infallible>(7))))), 0, "Breaker::call");
    assert_eq!(allocations(|| _ = finish(called.call(ready(Err::<(), _>(7))))), 0, "a failure, then rejections");
    assert_eq!(allocations(|| _ = called.call_blocking(|| Ok::<_, Infallible>(7))), 0, "Breaker::call_blocking");

    let bulkhead = Arc::new(Bulkhead::new("api".into(), bulkhead::Config::places(1), Clock::default()));
    assert_eq!(of_service(BulkheadLayer::new(bulkhead.clone()).layer(Bare)), 0, "a bulkhead");
    let held = Bulkhead::try_acquire(bulkhead.clone()).unwrap();
    assert_eq!(of_service(BulkheadLayer::new(bulkhead.clone()).layer(Bare)), 0, "a full bulkhead");
    drop(held);
    let times = timeout::Config { total: Period::secs(10), attempt: Some(Period::secs(1)) };
    let times = Arc::new(Timeout::new("api".into(), times));
    let retrier = Arc::new(Retrier::new("api".into(), Retry::default(), Clock::default()));
    let rate = rate_limit::Config {
        algorithm: rate_limit::Algorithm::default(),
        rate: "50/h".parse().unwrap(),
        burst: 50,
        wait: Period::default(),
    };
    let limiter = Arc::new(RateLimiter::new("api".into(), rate, Clock::default()));
    assert_eq!(of_service(RateLimitLayer::new(limiter).layer(Bare)), 0, "a rate limit, reached halfway");
    let stack = BulkheadLayer::new(bulkhead).layer(Bare);
    let stack = BreakerLayer::new(breaker(Window::Calls(100))).layer(stack);
    let stack = TimeoutLayer::total(times).layer(RetryLayer::new(retrier).layer(stack));
    assert_eq!(of_service(stack), 0, "deadline, retry, breaker and bulkhead");
    let guard = Registry::new(Policies::default()).unwrap().guard("api");
    assert_eq!(allocations(|| _ = finish(guard.call(|_| ready(Ok::<_, Infallible>(7))))), 0, "Guard::call");
}

#[test]
fn they_are_counted() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 100, "or the other tests say nothing");
}

#[test]
fn failures_allocate_nothing() {
    let mut number = 0;
    let breaker = breaker(Window::Calls(100));
    let call = || {
        number += 1;
        let result = if number % 10 == 0 { Err(7) } else { Ok(()) };
        assert_eq!(finish(breaker.call(ready(result))).is_ok(), result.is_ok());
    };
    assert_eq!(allocations(call), 0);
    assert_eq!(breaker.state(), State::Closed);
}

/// What every call under a breaker carries along while it lasts.
#[test]
fn a_breakers_future_is_hardly_larger_than_the_one_within() {
    let bare = size_of_val(&Bare.call(7));
    assert_eq!(size_of_val(&BreakerLayer::new(breaker(Window::Calls(100))).layer(Bare).call(7)), bare + 24);
}

#[test]
fn a_breaker_takes_at_most_five_kibibytes() {
    for window in
        [Window::Calls(100), Window::Calls(Window::MAX), Window::Time(Period::secs(10)), Window::Consecutive(5)]
    {
        let mut kept = None;
        let found = allocation_counter::measure(|| {
            let breaker = breaker(window);
            (0..100).for_each(|_| _ = breaker.call_blocking(|| Ok::<_, Infallible>(7)));
            kept = Some(breaker);
        });
        assert!(found.bytes_current <= 5 * 1024, "{window}: {found:?}");
    }
}
