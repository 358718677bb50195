//! What others have for the same purpose, each as its own documents have it used.

use std::future::{Ready, ready};
use std::time::Duration;

use recloser::{AsyncRecloser, Recloser};
use tower::limit::{ConcurrencyLimitLayer, RateLimit, rate::Rate};
use tower::retry::{Policy, RetryLayer};
use tower::timeout::TimeoutLayer;
use tower::{Layer, ServiceBuilder, service_fn};
use tower_resilience::bulkhead::BulkheadLayer;
use tower_resilience::circuitbreaker::{CircuitBreakerLayer, DefaultClassifier, SlidingWindowType};
use tower_resilience::ratelimiter::RateLimiterLayer;
use tower_resilience::retry::RetryLayer as ResilienceRetryLayer;
use tower_resilience::timelimiter::TimeLimiterLayer;

use crate::call::{self, Failure};
use crate::subject::Subject;

const LONG: Duration = Duration::from_secs(3600);
/// More calls than the longest run makes.
const MANY: u64 = 1 << 40;

pub(crate) fn subjects() -> Vec<Subject> {
    [tower(), tower_resilience(), small()].into_iter().flatten().collect()
}

/// tower's own.
fn tower() -> Vec<Subject> {
    let stack = ServiceBuilder::new()
        .layer(TimeoutLayer::new(LONG))
        .layer(RetryLayer::new(Once))
        .layer(ConcurrencyLimitLayer::new(1000))
        .service(service_fn(call::future));
    vec![
        Subject::service("tower ConcurrencyLimit", ConcurrencyLimitLayer::new(1000).layer(service_fn(call::future))),
        Subject::service("tower Timeout", TimeoutLayer::new(LONG).layer(service_fn(call::future))),
        Subject::service("tower Retry", RetryLayer::new(Once).layer(service_fn(call::future))),
        Subject::new("tower RateLimit", || {
            let mut service = RateLimit::new(service_fn(call::future), Rate::new(MANY, LONG));
            move |number| call::serve(&mut service, number)
        })
        .alone(),
        Subject::service("tower Timeout, Retry, ConcurrencyLimit", stack),
    ]
}

/// Repeats what failed, once.
#[derive(Clone, Copy, Debug)]
struct Once;

impl Policy<u64, u64, Failure> for Once {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut u64, result: &mut Result<u64, Failure>) -> Option<Ready<()>> {
        result.is_err().then(|| ready(()))
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}

fn resilience_breaker(kind: SlidingWindowType) -> CircuitBreakerLayer<DefaultClassifier> {
    let builder = CircuitBreakerLayer::builder()
        .failure_rate_threshold(0.5)
        .sliding_window_type(kind)
        .sliding_window_size(100)
        .sliding_window_duration(LONG)
        .minimum_number_of_calls(20)
        .wait_duration_in_open(LONG);
    builder.build().expect("within its ranges")
}

fn tower_resilience() -> Vec<Subject> {
    let bulkhead = || BulkheadLayer::builder().max_concurrent_calls(1000).build().expect("within its ranges");
    let limiter = RateLimiterLayer::builder().limit_for_period(MANY as usize).refresh_period(LONG);
    let time = || TimeLimiterLayer::builder().timeout_duration(LONG).build();
    let count = || resilience_breaker(SlidingWindowType::CountBased);
    // Enough failures to open it, then nothing but rejections.
    let open = count().layer(service_fn(call::failing));
    let stack = ServiceBuilder::new()
        .layer(time())
        .layer(ResilienceRetryLayer::builder().max_attempts(2).build())
        .layer(count())
        .layer(bulkhead())
        .service(service_fn(call::future));
    let retry = ResilienceRetryLayer::<u64, u64, Failure>::builder().max_attempts(2).build();
    let resident = resilience_breaker(SlidingWindowType::TimeBased).layer(service_fn(call::future));
    vec![
        Subject::service("tower-resilience breaker, 100 calls", count().layer(service_fn(call::future))),
        Subject::service("tower-resilience breaker, 1% fail", count().layer(service_fn(call::unsure))),
        Subject::service("tower-resilience breaker, time, 50,000 calls in it", resident).after(50_000).alone(),
        // While it is not closed it waits a millisecond wherever two threads want its lock at once.
        Subject::service("tower-resilience breaker, open", open).after(1000).alone(),
        Subject::service("tower-resilience bulkhead", bulkhead().layer(service_fn(call::future))),
        Subject::service("tower-resilience time limiter", time().layer(service_fn(call::future))),
        Subject::service("tower-resilience retry", retry.layer(service_fn(call::future))),
        Subject::service(
            "tower-resilience rate limiter",
            limiter.build().expect("within its ranges").layer(service_fn(call::future)),
        ),
        Subject::service("tower-resilience time limiter, retry, breaker, bulkhead", stack),
    ]
}

/// A breaker of recloser.
pub fn recloser() -> Recloser {
    Recloser::custom().error_rate(0.5).closed_len(100).open_wait(LONG).build()
}

/// recloser and failsafe: breakers, and no layers.
fn small() -> Vec<Subject> {
    let (sync, unsure, open) = (leak(recloser()), leak(recloser()), leak(recloser()));
    let asynchronous = leak(AsyncRecloser::from(recloser()));
    let policy = || failsafe::failure_policy::consecutive_failures(5, failsafe::backoff::constant(LONG));
    let failsafe = || leak(failsafe::Config::new().failure_policy(policy()).build());
    let (plain, futures, tripped) = (failsafe(), failsafe(), failsafe());
    let rate = leak(failsafe::Config::new().build());
    vec![
        Subject::value("recloser, sync", |number| sync.call(|| call::answer(number))),
        Subject::future("recloser, async", |number| asynchronous.call(call::future(number))),
        Subject::value("recloser, sync, 1% fail", |number| unsure.call(|| call::unsure(number).into_inner())),
        Subject::value("recloser, sync, open", |number| open.call(|| call::failing(number).into_inner())).after(1000),
        Subject::value("failsafe, sync, consecutive", |number| {
            failsafe::CircuitBreaker::call(plain, || call::answer(number))
        }),
        Subject::value("failsafe, sync, rate", |number| failsafe::CircuitBreaker::call(rate, || call::answer(number))),
        Subject::future("failsafe, async, consecutive", |number| {
            failsafe::futures::CircuitBreaker::call(futures, call::future(number))
        }),
        Subject::value("failsafe, sync, open", |number| {
            failsafe::CircuitBreaker::call(tripped, || call::failing(number).into_inner())
        })
        .after(1000),
    ]
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}
