//! Seawall's policies.

use std::sync::Arc;
use std::time::Duration;

use seawall_resilience::breaker::{self, Breaker, Mode, State, Window};
use seawall_resilience::bulkhead::{self, Bulkhead};
use seawall_resilience::layer::{
    BreakerLayer, BreakerService, BulkheadLayer, ErrorsService, RateLimitLayer, RetryLayer, TimeoutLayer, errors,
};
use seawall_resilience::rate_limit::{self, Algorithm, RateLimiter};
use seawall_resilience::retry::{self, Retrier};
use seawall_resilience::timeout::{self, Timeout};
use seawall_resilience::{Clock, Events, Guard, Policy};
use seawall_types::Period;
use tower::util::ServiceFn;
use tower::{Layer, ServiceBuilder, service_fn};

use crate::call;
use crate::subject::Subject;

/// Nothing here ever waits as long.
const LONG: Period = Period::secs(3600);

/// A breaker that lives as long as the process, as breakers do.
pub fn breaker(config: breaker::Config) -> &'static Breaker {
    Box::leak(Box::new(Breaker::new("bench".into(), config, Clock::default(), Box::new(|_| {}))))
}

/// What a breaker is told, with this window.
pub fn window(window: Window) -> breaker::Config {
    breaker::Config { window, open_for: LONG, max_open_for: LONG, ..breaker::Config::default() }
}

fn slow(config: breaker::Config) -> breaker::Config {
    breaker::Config { slow_call: Some(Period::secs(1)), ..config }
}

type Guarded<F, B> = BreakerService<ErrorsService<ServiceFn<F>>, B>;

fn around<F, B: Clone>(breaker: B, service: F) -> Guarded<F, B> {
    BreakerLayer::new(breaker).layer(errors().layer(service_fn(service)))
}

/// The window of time that the tables speak of.
pub const TIME: Window = Window::Time(Period::secs(10));

pub(crate) fn subjects() -> Vec<Subject> {
    [breakers(), breakers_by_hand(), others(), stacks()].into_iter().flatten().collect()
}

fn breakers() -> Vec<Subject> {
    let layer = |name, config| Subject::service(name, around(breaker(config), call::future));
    let told = breaker(window(Window::Calls(100)));
    told.tell_calls(true);
    let scraped = breaker(window(Window::Calls(100)));
    scrape(scraped);
    let open = breaker(window(Window::Calls(100)));
    open.set(State::Open);
    vec![
        layer("breaker layer, 100 calls", window(Window::Calls(100))),
        layer("breaker layer, 10,000 calls", window(Window::Calls(10_000))).after(20_000),
        layer("breaker layer, 10 s", window(TIME)),
        layer("breaker layer, 10 s, 500,000 calls in it", window(TIME)).after(500_000),
        layer("breaker layer, consecutive", window(Window::Consecutive(5))),
        layer("breaker layer, 100 calls, slow calls", slow(window(Window::Calls(100)))),
        layer("breaker layer, 10 s, slow calls", slow(window(TIME))),
        Subject::service("breaker layer, 100 calls, scraped", around(scraped, call::future)),
        Subject::service("breaker layer, 100 calls, told of", around(told, call::future)),
        Subject::service("breaker layer, 100 calls, in an Arc", around(shared(), call::future)),
        Subject::service(
            "breaker layer, 100 calls, 1% fail",
            around(breaker(window(Window::Calls(100))), call::unsure),
        ),
        Subject::service("breaker layer, 10 s, 1% fail", around(breaker(window(TIME)), call::unsure)),
        Subject::service("breaker layer, open", around(open, call::future)),
        layer("breaker layer, disabled", breaker::Config { mode: Mode::Disabled, ..window(Window::Calls(100)) }),
    ]
}

fn shared() -> Arc<Breaker> {
    Arc::new(Breaker::new("bench".into(), window(Window::Calls(100)), Clock::default(), Box::new(|_| {})))
}

/// Reads the counts a thousand times a second, as nobody does.
fn scrape(breaker: &'static Breaker) {
    let read = move || loop {
        std::thread::sleep(Duration::from_millis(1));
        std::hint::black_box(breaker.counts());
    };
    std::thread::spawn(read);
}

fn breakers_by_hand() -> Vec<Subject> {
    let count = breaker(window(Window::Calls(100)));
    let blocking = breaker(window(Window::Calls(100)));
    let open = breaker(window(Window::Calls(100)));
    open.set(State::Open);
    vec![
        Subject::future("Breaker::call, 100 calls", move |number| count.call(call::future(number))),
        Subject::value("Breaker::call_blocking, 100 calls", move |number| {
            blocking.call_blocking(|| call::answer(number))
        }),
        Subject::value("Breaker::call_blocking, open", move |number| open.call_blocking(|| call::answer(number))),
    ]
}

fn others() -> Vec<Subject> {
    let bulkhead = bulkhead();
    let timeout = timeout();
    let served = || errors().layer(service_fn(call::future));
    vec![
        Subject::service("bulkhead layer", BulkheadLayer::new(bulkhead).layer(served())),
        Subject::value("Bulkhead::try_acquire", move |number| {
            Bulkhead::try_acquire(bulkhead).map(|_permit| call::answer(number))
        }),
        Subject::service("timeout layer, whole call", TimeoutLayer::total(timeout).layer(served())),
        Subject::service("timeout layer, one attempt", TimeoutLayer::attempt(timeout).layer(served())),
        Subject::future("timeout::limit", move |number| timeout::limit(LONG.get(), call::future(number))),
        Subject::service("retry layer", RetryLayer::new(retrier()).layer(served())),
        Subject::service("rate limit layer, gcra", RateLimitLayer::new(limiter(Algorithm::Gcra)).layer(served())),
        Subject::service(
            "rate limit layer, token bucket",
            RateLimitLayer::new(limiter(Algorithm::TokenBucket)).layer(served()),
        ),
    ]
}

fn bulkhead() -> &'static Bulkhead {
    leak(Bulkhead::new("bench".into(), bulkhead::Config::places(1000), Clock::default()))
}

fn timeout() -> &'static Timeout {
    leak(Timeout::new("bench".into(), timeout::Config { total: LONG, attempt: Some(Period::secs(60)) }))
}

fn retrier() -> &'static Retrier {
    leak(Retrier::new("bench".into(), retry::Retry::default(), Clock::default()))
}

/// A rate that nobody reaches: what is measured is the decision to let pass.
fn limiter(algorithm: Algorithm) -> &'static RateLimiter {
    let rate = "1000000/ms".parse().expect("a rate");
    let config = rate_limit::Config { algorithm, rate, burst: 1_000_000, wait: Period::default() };
    leak(RateLimiter::new("bench".into(), config, Clock::default()))
}

/// Deadline, retry, breaker and bulkhead in one.
fn stacks() -> Vec<Subject> {
    let policy = Policy {
        breaker: Some(window(Window::Calls(100))),
        bulkhead: Some(bulkhead::Config::places(1000)),
        ..Policy::default()
    };
    let guard = leak(Guard::new("bench".into(), policy, Clock::default(), Arc::new(Events::default())));
    let layers = ServiceBuilder::new()
        .layer(TimeoutLayer::total(timeout()))
        .layer(RetryLayer::new(retrier()))
        .layer(BreakerLayer::new(breaker(window(Window::Calls(100)))))
        .layer(BulkheadLayer::new(bulkhead()))
        .layer(errors())
        .service(service_fn(call::future));
    vec![
        Subject::service("layers: deadline, retry, breaker, bulkhead", layers),
        Subject::future("Guard::call: deadline, retry, breaker, bulkhead", move |number| {
            guard.call(move |_| call::future(number))
        }),
    ]
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}
