//! What is measured: primitives of this machine, policies of ours, policies of the peers.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use recloser::{AsyncRecloser, Recloser};
use seawall_resilience::breaker::{self, Breaker, State, Window};
use seawall_resilience::layer::{BreakerLayer, BulkheadLayer, RateLimitLayer, RetryLayer, TimeoutLayer};
use seawall_resilience::{
    Bulkhead, CallError, Clock, Guard, Policies, RateLimiter, Registry, Retrier, Retry, Timeout, bulkhead, rate_limit,
    timeout,
};
use seawall_types::Period;
use tower::{Layer, Service, ServiceBuilder};
use tower_resilience::bulkhead::BulkheadLayer as TrBulkhead;
use tower_resilience::circuitbreaker::CircuitBreakerLayer;
use tower_resilience::retry::RetryLayer as TrRetry;
use tower_resilience::timelimiter::TimeLimiterLayer;

use crate::{Runner, Subject, drive, finish};

/// A service that answers at once. A type of its own, so that it can be cloned and named.
pub(crate) struct Bare<E>(std::marker::PhantomData<fn() -> E>);

impl<E> Clone for Bare<E> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<E> Bare<E> {
    const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<E> Service<u64> for Bare<E> {
    type Response = u64;
    type Error = E;
    type Future = Ready<Result<u64, E>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: u64) -> Self::Future {
        ready(Ok(request))
    }
}

type Own = Bare<CallError<Infallible>>;

fn own() -> Own {
    Bare::new()
}

fn plain() -> Bare<std::io::Error> {
    Bare::new()
}

/// Lives as long as the process: the handle of a policy that costs nothing.
fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn subject(
    name: &'static str,
    ours: bool,
    aim: (Option<f64>, Option<f64>),
    runner: impl Fn() -> Runner + 'static,
) -> Subject {
    Subject { name, ours, aim, runner: Box::new(runner) }
}

fn service<S>(name: &'static str, ours: bool, aim: (Option<f64>, Option<f64>), service: S) -> Subject
where
    S: Service<u64> + Clone + Send + 'static,
{
    subject(name, ours, aim, move || {
        let mut service = service.clone();
        Box::new(move |calls| (0..calls).for_each(|request| drive(&mut service, request)))
    })
}

fn peer<S: Service<u64> + Clone + Send + 'static>(name: &'static str, of: S) -> Subject {
    service(name, false, (None, None), of)
}

/// Something that is done so many times.
fn each(name: &'static str, ours: bool, step: impl Fn() + Clone + Send + 'static) -> Subject {
    subject(name, ours, (None, None), move || {
        let step = step.clone();
        Box::new(move |calls| (0..calls).for_each(|_| step()))
    })
}

fn breaker(config: breaker::Config) -> &'static Breaker {
    leak(Breaker::new("bench".into(), config, Clock::default(), Box::new(|_| {})))
}

fn time(seconds: u64) -> Window {
    Window::Time(Period::secs(seconds))
}

fn with(window: Window) -> breaker::Config {
    breaker::Config { window, ..breaker::Config::default() }
}

fn slow(window: Window) -> breaker::Config {
    breaker::Config { slow_call: Some(Period::secs(1)), ..with(window) }
}

fn in_state(state: State) -> &'static Breaker {
    let breaker = breaker(breaker::Config { open_for: Period::secs(3600), ..breaker::Config::default() });
    breaker.set(state);
    breaker
}

pub(crate) fn all() -> Vec<Subject> {
    let mut subjects = primitives();
    subjects.extend(ours());
    subjects.extend(peers());
    subjects
}

fn primitives() -> Vec<Subject> {
    let counter = leak(AtomicU64::new(0));
    let shared = Arc::new(0u64);
    vec![
        service("bare service", false, (None, None), own()),
        each("shared fetch_add", false, || _ = black_box(counter.fetch_add(1, Ordering::AcqRel))),
        each("Instant::now", false, || _ = black_box(Instant::now())),
        each("coarse clock", false, || _ = black_box(Clock::Coarse.now())),
        each("Arc, cloned and dropped", false, move || drop(black_box(shared.clone()))),
        each("Box, made and dropped", false, || drop(black_box(Box::new(black_box(7u64))))),
    ]
}

fn ours() -> Vec<Subject> {
    let layer = |config| BreakerLayer::new(breaker(config)).layer(own());
    let count = Window::Calls(100);
    let scraped = breaker(with(time(10)));
    std::thread::spawn(move || {
        loop {
            black_box((scraped.counts(), scraped.sums()));
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let called = breaker(with(count));
    let blocking = breaker(with(count));
    let bulkhead = leak(Bulkhead::new("bench".into(), bulkhead::Config::places(1000), Clock::default()));
    let times =
        leak(Timeout::new("bench".into(), timeout::Config { total: Period::secs(10), attempt: Some(Period::secs(1)) }));
    let retrier = leak(Retrier::new("bench".into(), Retry::default(), Clock::default()));
    let rate = rate_limit::Config {
        algorithm: rate_limit::Algorithm::default(),
        rate: "1000000/ms".parse().expect("a rate"),
        burst: 1_000_000,
        wait: Period::default(),
    };
    let limiter = leak(RateLimiter::new("bench".into(), rate, Clock::default()));
    let stack = ServiceBuilder::new()
        .layer(TimeoutLayer::total(times))
        .layer(RetryLayer::new(retrier))
        .layer(BreakerLayer::new(breaker(with(count))))
        .layer(BulkheadLayer::new(bulkhead))
        .service(own());
    let registry = Registry::new(Policies::default());
    let guard: &'static Arc<Guard> = leak(registry.guard("bench"));
    vec![
        service("breaker, 100 calls", true, (Some(8.0), Some(45.0)), layer(with(count))),
        service("breaker, 10000 calls", true, (Some(8.0), None), layer(with(Window::Calls(10_000)))),
        service("breaker, 10 s", true, (Some(12.0), Some(20.0)), layer(with(time(10)))),
        service("breaker, 10 s, being scraped", true, (Some(15.0), None), BreakerLayer::new(scraped).layer(own())),
        service("breaker, 5 consecutive", true, (None, None), layer(with(Window::Consecutive(5)))),
        service("breaker, 100 calls, slow calls", true, (Some(17.0), None), layer(slow(count))),
        service("breaker, 10 s, slow calls", true, (Some(17.0), None), layer(slow(time(10)))),
        service("breaker, open", true, (Some(12.0), None), BreakerLayer::new(in_state(State::Open)).layer(own())),
        service("breaker, disabled", true, (None, None), BreakerLayer::new(in_state(State::Disabled)).layer(own())),
        subject("breaker.call", true, (None, None), move || {
            Box::new(move |calls| {
                let mut cx = Context::from_waker(Waker::noop());
                for call in 0..calls {
                    finish(called.call(ready(Ok::<_, Infallible>(black_box(call)))), &mut cx);
                }
            })
        }),
        each("breaker.call_blocking", true, move || {
            let _ = black_box(blocking.call_blocking(|| Ok::<_, Infallible>(black_box(7))));
        }),
        service("bulkhead", true, (None, None), BulkheadLayer::new(bulkhead).layer(own())),
        service("timeout (attempt)", true, (None, None), TimeoutLayer::attempt(times).layer(own())),
        service("retry (none needed)", true, (None, None), RetryLayer::new(retrier).layer(own())),
        service("rate limit", true, (None, None), RateLimitLayer::new(limiter).layer(own())),
        service("deadline+retry+breaker+bulkhead", true, (Some(90.0), None), stack),
        subject("guard.call (all defaults)", true, (None, None), move || {
            Box::new(move |calls| {
                let mut cx = Context::from_waker(Waker::noop());
                for call in 0..calls {
                    finish(guard.call(|_| ready(Ok::<_, Infallible>(black_box(call)))), &mut cx);
                }
            })
        }),
    ]
}

fn peers() -> Vec<Subject> {
    let hour = Duration::from_secs(3600);
    let breaker =
        CircuitBreakerLayer::builder().failure_rate_threshold(0.5).sliding_window_size(100).build().expect("a breaker");
    let bulkhead = TrBulkhead::builder().max_concurrent_calls(1000).build().expect("a bulkhead");
    let limiter = TimeLimiterLayer::builder().timeout_duration(hour).build();
    let retry = TrRetry::<u64, u64, std::io::Error>::builder().max_attempts(3).build();
    let recloser: &'static Recloser = leak(Recloser::custom().closed_len(100).build());
    let future_recloser: &'static AsyncRecloser = leak(AsyncRecloser::from(Recloser::custom().closed_len(100).build()));
    let failsafe = failsafe::Config::new().build();
    let future_failsafe = failsafe.clone();
    vec![
        peer("tower ConcurrencyLimit", tower::limit::ConcurrencyLimitLayer::new(1000).layer(plain())),
        peer("tower Timeout", tower::timeout::TimeoutLayer::new(hour).layer(plain())),
        peer("tower Retry (none needed)", tower::retry::RetryLayer::new(Never).layer(plain())),
        peer("tower-resilience breaker", breaker.layer(plain())),
        peer("tower-resilience bulkhead", bulkhead.layer(plain())),
        peer("tower-resilience time limiter", limiter.layer(plain())),
        peer("tower-resilience retry", retry.layer(plain())),
        each("recloser", false, || _ = black_box(recloser.call(|| Ok::<_, Infallible>(black_box(7u64))))),
        subject("recloser, async", false, (None, None), || {
            Box::new(|calls| {
                let mut cx = Context::from_waker(Waker::noop());
                for call in 0..calls {
                    finish(future_recloser.call(ready(Ok::<_, Infallible>(black_box(call)))), &mut cx);
                }
            })
        }),
        each("failsafe", false, move || {
            let _ = black_box(failsafe::CircuitBreaker::call(&failsafe, || Ok::<_, Infallible>(black_box(7u64))));
        }),
        subject("failsafe, async", false, (None, None), move || {
            let breaker = future_failsafe.clone();
            Box::new(move |calls| {
                let mut cx = Context::from_waker(Waker::noop());
                for call in 0..calls {
                    let call = ready(Ok::<_, Infallible>(black_box(call)));
                    finish(failsafe::futures::CircuitBreaker::call(&breaker, call), &mut cx);
                }
            })
        }),
    ]
}

/// A policy of tower's retry that never repeats.
#[derive(Clone)]
struct Never;

impl<E> tower::retry::Policy<u64, u64, E> for Never {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut u64, _: &mut Result<u64, E>) -> Option<Self::Future> {
        None
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}
