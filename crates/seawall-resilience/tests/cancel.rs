//! A call may be dropped wherever it waits: polled no, one, two, .. times, and then dropped, it holds nothing, in whichever
//! form it is made, and whoever had the place or the turn that it waited for.
#![cfg(not(feature = "loom"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::Body;
use seawall_resilience::breaker::{self, Breaker, State};
use seawall_resilience::layer::{
    BreakerLayer, BulkheadLayer, ChaosLayer, GuardLayer, HedgeLayer, HttpGuardLayer, RateLimitLayer, RetryLayer,
    ThrottleLayer, TimeoutLayer,
};
use seawall_resilience::retry::Jitter;
use seawall_resilience::{
    Bulkhead, CallError, Chain, Chaos, Clock, Guard, Hedge, Policy, Priority, RateLimiter, Rejected, Retrier, Retry,
    Throttle, Timeout, bulkhead, chaos, hedge, http, rate_limit, throttle,
};
use seawall_types::{Period, Ratio};
use tokio::time::Instant;
use tower::util::BoxCloneService;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

const STEP: Duration = Duration::from_millis(100);
const PROBES: u16 = 3;
const TOKENS: u32 = 10;
const RETRIES: u32 = 5;

/// The single policies of a guard, so that layers and guard are looked at in the same way.
#[derive(Clone)]
struct Of(Arc<Guard>);

macro_rules! parts {
    ($($part:ty: $guard:ident => $get:expr;)*) => {
        $(impl AsRef<$part> for Of {
            fn as_ref(&self) -> &$part {
                let $guard = &self.0;
                $get
            }
        })*
    };
}

parts! {
    Breaker: guard => guard.breaker.get().unwrap();
    Bulkhead: guard => guard.bulkhead.get().unwrap();
    RateLimiter: guard => guard.rate_limit.get().unwrap();
    Hedge: guard => guard.hedge.get().unwrap();
    Throttle: guard => guard.throttle.get().unwrap();
    Retrier: guard => &guard.retry;
    Timeout: guard => &guard.timeout;
    Chaos: guard => &guard.chaos;
}

/// What the service does: after some waits it works, or fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Service {
    Works,
    Fails,
}

/// One guard with everything in it, in a state in which everything has to be waited for.
struct World {
    guard: Arc<Guard>,
    chain: Chain,
    /// A limiter that has seen all but the call.
    twin: RateLimiter,
    calls: Arc<AtomicU32>,
    begun: Instant,
}

impl World {
    /// Half open if the service works, so that the call is a probe; closed if it fails, so that it is repeated.
    fn new(service: Service) -> Self {
        let rate = rate_limit::Config {
            algorithm: rate_limit::Algorithm::Gcra,
            rate: "1/s".parse().unwrap(),
            burst: 1,
            wait: Period::secs(60),
        };
        let retry = |budget_floor| Retry {
            attempts: 3,
            jitter: Jitter::None,
            backoff: Period::millis(300),
            max_backoff: Period::millis(300),
            budget: Ratio::percent(0),
            budget_floor,
            ..Retry::default()
        };
        let policy = |floor| Policy {
            timeout: Period::secs(60),
            attempt_timeout: Some(Period::secs(30)),
            rate_limit: Some(rate.clone()),
            retry: retry(floor),
            hedge: Some(hedge::Config {
                delay: hedge::Delay::After(Period::millis(200)),
                budget: Ratio::percent(100),
                ..hedge::Config::default()
            }),
            throttle: Some(throttle::Config {
                k: 2.0,
                window: Period::secs(60),
                max_reject: Ratio::percent(90),
                minimum_calls: 1000,
            }),
            breaker: Some(breaker::Config {
                limits: breaker::Limits { minimum_calls: 100, ..breaker::Config::default().limits },
                // However old a call is that is given up, it says nothing.
                cancelled_after: Period::secs(3600),
                half_open_calls: PROBES,
                open_for: Period::secs(3600),
                max_open_for: Period::secs(3600),
                probe_lease: Some(Period::secs(7200)),
                ..breaker::Config::default()
            }),
            bulkhead: Some(bulkhead::Config { wait: Period::secs(3), queue: 9, ..bulkhead::Config::places(1) }),
            chaos: Some(chaos::Config {
                seed: Some(7),
                fault: Ratio::percent(0),
                latency: chaos::Latency {
                    share: Ratio::percent(100),
                    by: Period::millis(300),
                    jitter: Period::default(),
                },
                status: chaos::Status { share: Ratio::percent(0), code: 503 },
            }),
        };
        let guard = Arc::new(Guard::new("payment".into(), policy(TOKENS), Clock::tokio(), Arc::default()));
        // The tokens are there; from now on nothing is added to them.
        guard.reload(policy(0));
        let twin = RateLimiter::new("payment".into(), rate.clone(), Clock::tokio());
        for limiter in [guard.rate_limit.get().unwrap(), &twin] {
            limiter.try_acquire().unwrap();
        }
        if service == Service::Works {
            guard.breaker.get().unwrap().set(State::Open);
        }
        Self { guard, chain: Chain::new(RETRIES), twin, calls: Arc::default(), begun: Instant::now() }
    }

    /// The time at which the open breaker lets probes pass has come for everybody.
    async fn wake(&mut self) {
        let breaker = self.guard.breaker.get().unwrap();
        if breaker.state() == State::Open {
            tokio::time::advance(breaker.open_for()).await;
            // The limiters have filled up meanwhile.
            for limiter in [self.guard.rate_limit.get().unwrap(), &self.twin] {
                limiter.try_acquire().unwrap();
            }
        }
        self.begun = Instant::now();
    }

    fn service(&self, service: Service) -> BoxCloneService<u32, u32, CallError<&'static str>> {
        let calls = self.calls.clone();
        BoxCloneService::new(service_fn(move |request: u32| {
            calls.fetch_add(1, Ordering::Relaxed);
            async move {
                work().await;
                if service == Service::Works { Ok(request) } else { Err(CallError::Inner("500")) }
            }
        }))
    }

    /// Whether nothing is held by the call.
    fn assert_idle(&self, what: &str) {
        let guard = &self.guard;
        let bulkhead = guard.bulkhead.get().unwrap();
        assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0), "places: {what}");
        let retries = guard.retry.counts().retries as u32;
        assert_eq!(guard.retry.budget().saved() + retries, TOKENS, "the budget: {what}");
        assert_eq!(self.chain.left() + retries, RETRIES, "the chain: {what}");
        let limiter = guard.rate_limit.get().unwrap();
        if self.begun.elapsed() < Duration::from_secs(1) {
            // Its turn has not come yet.
            let next = |limiter: &RateLimiter| limiter.try_acquire().map_err(|rejected: Rejected| rejected.retry_after);
            assert_eq!(next(limiter), next(&self.twin), "the turn: {what}");
        }
        let breaker = guard.breaker.get().unwrap();
        match breaker.state() {
            State::Closed => {}
            State::Open | State::HalfOpen => {
                let probes = std::iter::from_fn(|| Breaker::try_acquire(breaker).ok()).take(100);
                let places = probes.collect::<Vec<_>>().len() as u64;
                assert_eq!(places + breaker.counts().calls, u64::from(PROBES), "the probes: {what}");
            }
            other => panic!("{other}: {what}"),
        }
    }
}

/// Waits of each kind: for time, and for its turn.
async fn work() {
    tokio::time::sleep(STEP * 5).await;
    for _ in 0..2 {
        let mut yielded = false;
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

type Call = Pin<Box<dyn Future<Output = bool>>>;

type Form = fn(&World, Service) -> Call;

/// Every form of a call.
fn forms() -> Vec<(&'static str, Form)> {
    fn of<L>(world: &World, service: Service, layer: impl FnOnce(Of) -> L) -> Call
    where
        L: Layer<BoxCloneService<u32, u32, CallError<&'static str>>>,
        L::Service: tower::Service<u32, Future: 'static> + 'static,
    {
        let layered = layer(Of(world.guard.clone())).layer(world.service(service));
        Box::pin(async move { layered.oneshot(7).await.is_ok() })
    }
    vec![
        ("breaker", |w, s| of(w, s, BreakerLayer::new)),
        ("bulkhead", |w, s| of(w, s, BulkheadLayer::new)),
        ("bulkhead, critical", |w, s| of(w, s, |p| BulkheadLayer::new(p).priority(Priority::Critical))),
        ("rate limit", |w, s| of(w, s, RateLimitLayer::new)),
        ("total timeout", |w, s| of(w, s, TimeoutLayer::total)),
        ("attempt timeout", |w, s| of(w, s, TimeoutLayer::attempt)),
        ("retry", |w, s| of(w, s, RetryLayer::new)),
        ("hedge", |w, s| of(w, s, HedgeLayer::new)),
        ("throttle", |w, s| of(w, s, ThrottleLayer::new)),
        ("chaos", |w, s| of(w, s, ChaosLayer::new)),
        ("retry, hedge, bulkhead", |w, s| {
            of(w, s, |part| {
                ServiceBuilder::new()
                    .layer(RetryLayer::new(part.clone()))
                    .layer(HedgeLayer::new(part.clone()))
                    .layer(BulkheadLayer::new(part))
                    .into_inner()
            })
        }),
        ("all layers", |w, s| {
            of(w, s, |part| {
                ServiceBuilder::new()
                    .layer(TimeoutLayer::total(part.clone()))
                    .layer(RateLimitLayer::new(part.clone()))
                    .layer(RetryLayer::new(part.clone()))
                    .layer(HedgeLayer::new(part.clone()))
                    .layer(ThrottleLayer::new(part.clone()))
                    .layer(BreakerLayer::new(part.clone()))
                    .layer(BulkheadLayer::new(part.clone()))
                    .layer(TimeoutLayer::attempt(part.clone()))
                    .layer(ChaosLayer::new(part))
                    .into_inner()
            })
        }),
        ("guard layer", |w, s| of(w, s, |part| GuardLayer::new(part.0))),
        ("guard", |w, s| {
            let (guard, service) = (w.guard.clone(), w.service(s));
            Box::pin(async move { guard.call(|_| service.clone().oneshot(7)).await.is_ok() })
        }),
        ("http client", |w, s| {
            let (guard, service) = (w.guard.clone(), w.service(s));
            Box::pin(async move {
                let attempt = |_| {
                    let service = service.clone();
                    async move { service.oneshot(7).await.map(|_| ::http::Response::new(Body::empty())) }
                };
                http::call(&guard, attempt, http::failures).await.is_ok()
            })
        }),
        ("http server", |w, s| {
            let (guard, service) = (w.guard.clone(), w.service(s));
            let handler = service_fn(move |_: ::http::Request<()>| {
                let service = service.clone();
                async move {
                    let answered = service.oneshot(7).await.is_ok();
                    let status = if answered { 200 } else { 500 };
                    let response = ::http::Response::builder().status(status).body(Body::empty());
                    Ok::<_, Infallible>(response.unwrap())
                }
            });
            let layered = HttpGuardLayer::new(guard).layer(handler);
            Box::pin(async move { layered.oneshot(::http::Request::new(())).await.unwrap().status() == 200 })
        }),
    ]
}

/// Polls it so often, and every tenth of a second once; the place is free again before poll number `release`. Answers
/// whether it has ended.
async fn poll_some(world: &World, call: &mut Call, polls: u32, release: u32) -> bool {
    let mut place = Some(Bulkhead::try_acquire(Of(world.guard.clone())).unwrap());
    for number in 0..polls {
        if number == release {
            place = None;
        }
        if number > 0 {
            tokio::time::advance(STEP).await;
        }
        if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return true;
        }
    }
    drop(place);
    false
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_point_a_call_holds_nothing() {
    for (form, make) in forms() {
        for service in [Service::Works, Service::Fails] {
            for release in [0, 4, 15, u32::MAX] {
                let mut most = 0;
                for polls in 0.. {
                    let what = format!("{form}, {service:?}, the place free at {release}, dropped after {polls} polls");
                    assert!(polls < 300, "it does not end: {what}");
                    let mut world = World::new(service);
                    world.wake().await;
                    let mut call: Call = Box::pin(world.chain.clone().scope(make(&world, service)));
                    let ended = poll_some(&world, &mut call, polls, release).await;
                    drop(call);
                    world.assert_idle(&what);
                    if ended {
                        most = polls;
                        break;
                    }
                }
                assert!(most > 5, "{form} has been dropped at {most} points alone");
            }
        }
    }
}

/// The same with the place given to the one who waits between its last poll and its end: it goes on to the next.
#[tokio::test(start_paused = true)]
async fn a_place_given_to_a_call_that_is_dropped_goes_to_the_next() {
    for form in ["bulkhead", "all layers", "guard", "guard layer", "http client", "http server"] {
        let (_, make) = forms().into_iter().find(|(name, _)| *name == form).unwrap();
        let mut world = World::new(Service::Works);
        world.wake().await;
        let place = Bulkhead::try_acquire(Of(world.guard.clone())).unwrap();
        let bulkhead = world.guard.bulkhead.get().unwrap();
        let mut call: Call = Box::pin(world.chain.clone().scope(make(&world, Service::Works)));
        while bulkhead.waiting() == 0 {
            assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            tokio::time::advance(STEP).await;
        }
        let mut next = Box::pin(Bulkhead::acquire(bulkhead, Duration::MAX));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(place);
        drop(call);
        let given = next.await.unwrap();
        assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (1, 0), "{form}");
        drop(given);
        world.assert_idle(form);
    }
}
