//! The layers keep tower's contract, and share their policy's state however often they are applied.
#![cfg(not(feature = "loom"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::poll;
use seawall_resilience::breaker::{self, State};
use seawall_resilience::cache::Bounded;
use seawall_resilience::layer::{
    BreakerLayer, BulkheadLayer, CacheLayer, ChaosLayer, CoalesceLayer, FallbackLayer, GuardLayer, GuardedError,
    HedgeLayer, RateLimitLayer, RetryLayer, ThrottleLayer, TimeoutLayer, errors,
};
use seawall_resilience::retry::{Decision, Jitter};
use seawall_resilience::{
    Breaker, Bulkhead, CallError, Chaos, Clock, Coalesce, Deadline, Fallback, Guard, Hedge, Policy, PolicyName,
    Priority, RateLimiter, Reason, Rejected, Retrier, Retry, Throttle, Timeout, bulkhead, chaos, deadline, hedge,
    rate_limit, throttle, timeout,
};
use seawall_types::{Period, Ratio};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_test::mock::{self, Mock};

type Text = &'static str;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

const SECOND: Duration = Duration::from_secs(1);

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn breaker() -> Arc<Breaker> {
    Arc::new(Breaker::new("payment".into(), opens_at_four(), Clock::tokio(), Box::new(|_| {})))
}

/// Opens at four failures, for thirty seconds, and then sends one probe.
fn opens_at_four() -> breaker::Config {
    let limits = breaker::Limits { minimum_calls: 4, ..breaker::Config::default().limits };
    let window = breaker::Window::Calls(4);
    breaker::Config { window, limits, half_open_calls: 1, open_for: Period::secs(30), ..breaker::Config::default() }
}

fn bulkhead(places: u32, wait: u64) -> Arc<Bulkhead> {
    let config = bulkhead::Config { wait: Period::secs(wait), ..bulkhead::Config::places(places) };
    Arc::new(Bulkhead::new("payment".into(), config, Clock::tokio()))
}

fn limiter(wait: u64) -> Arc<RateLimiter> {
    let config = rate_limit::Config {
        algorithm: rate_limit::Algorithm::Gcra,
        rate: "1/s".parse().unwrap(),
        burst: 1,
        wait: Period::secs(wait),
    };
    Arc::new(RateLimiter::new("payment".into(), config, Clock::tokio()))
}

fn limits(total: u64, attempt: Option<u64>) -> Arc<Timeout> {
    let config = timeout::Config { total: Period::secs(total), attempt: attempt.map(Period::secs) };
    Arc::new(Timeout::new("payment".into(), config))
}

fn retry(attempts: u32) -> Retry {
    Retry {
        attempts,
        jitter: Jitter::None,
        backoff: Period::secs(1),
        max_backoff: Period::secs(1),
        budget: Ratio::percent(0),
        budget_floor: 10,
        ..Retry::default()
    }
}

fn retrier(attempts: u32) -> Arc<Retrier> {
    Arc::new(Retrier::new("payment".into(), retry(attempts), Clock::tokio()))
}

fn throttle() -> Arc<Throttle> {
    let config =
        throttle::Config { k: 1.0, window: Period::secs(60), max_reject: Ratio::percent(100), minimum_calls: 1 };
    Arc::new(Throttle::new("payment".into(), config, Clock::tokio()))
}

fn hedge() -> Arc<Hedge> {
    let config = hedge::Config {
        delay: hedge::Delay::After(Period::secs(1)),
        budget: Ratio::percent(100),
        ..hedge::Config::default()
    };
    Arc::new(Hedge::new("payment".into(), config, Clock::tokio()))
}

fn trouble(fault: u8, latency: u8) -> Arc<Chaos> {
    let config = chaos::Config {
        seed: Some(1),
        fault: Ratio::percent(fault),
        latency: chaos::Latency { share: Ratio::percent(latency), by: Period::secs(2), jitter: Period::default() },
        status: chaos::Status { share: Ratio::percent(0), code: 503 },
    };
    Arc::new(Chaos::new("payment".into(), Some(config)))
}

fn guard(policy: Policy) -> Arc<Guard> {
    Arc::new(Guard::new("payment".into(), policy, Clock::tokio(), Arc::default()))
}

/// What tower asks of every middleware. `idle` says that nothing is held. The mock below panics if an instance is called
/// that was not polled ready.
async fn keeps_the_contract<L>(layer: L, idle: impl Fn() -> bool)
where
    L: Layer<Mock<Text, Text>>,
    L::Service: Service<Text, Response = Text, Error: Debug> + Clone,
{
    // Readiness is that of the service below, and neither asking for it nor having it takes anything.
    let (mock, mut handle) = mock::pair();
    let mut service = layer.layer(mock);
    handle.allow(0);
    assert!(service.poll_ready(&mut noop()).is_pending(), "the service below is not ready");
    handle.allow(1);
    assert!(service.poll_ready(&mut noop()).is_ready());
    assert!(idle(), "a service that is ready holds nothing");
    drop(service);
    assert!(idle());

    // An error in readiness is passed through.
    let (mock, mut handle) = mock::pair();
    let mut service = layer.layer(mock);
    handle.send_error("gone");
    let Poll::Ready(Err(error)) = service.poll_ready(&mut noop()) else { panic!("the service below has failed") };
    assert!(format!("{error:?}").contains("gone"), "{error:?}");

    // The instance that was polled ready is the one that is called, each time anew.
    let (mock, mut handle) = mock::pair();
    let mut service = layer.layer(mock);
    for answer in ["one", "two"] {
        tokio::time::advance(SECOND * 5).await;
        assert!(service.poll_ready(&mut noop()).is_ready());
        let call = service.call("how much?");
        let served = async {
            let (request, respond) = handle.next_request().await.expect("a request");
            assert_eq!(request, "how much?");
            respond.send_response(answer);
        };
        let (result, ()) = tokio::join!(call, served);
        assert_eq!(result.unwrap(), answer);
        assert!(idle());
    }
    // A clone is of the same kind, and has to be polled ready for itself.
    let mut clone = service.clone();
    handle.allow(0);
    assert!(clone.poll_ready(&mut noop()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn every_layer_keeps_the_contract() {
    let b = breaker();
    keeps_the_contract(BreakerLayer::new(b.clone()), || b.state() == State::Closed && b.counts().cancelled == 0).await;
    for wait in [0, 9] {
        let b = bulkhead(1, wait);
        keeps_the_contract(BulkheadLayer::new(b.clone()), || b.in_use() == 0 && b.waiting() == 0).await;
        let l = limiter(wait);
        let asked = AtomicU32::new(0);
        // The two calls are paced; apart from these two, which it sees just after they were let in, it is full.
        keeps_the_contract(RateLimitLayer::new(l.clone()), || {
            l.available() == u32::from(asked.fetch_add(1, Ordering::Relaxed) < 2)
        })
        .await;
    }
    keeps_the_contract(TimeoutLayer::total(limits(9, None)), || deadline::current().is_none()).await;
    keeps_the_contract(TimeoutLayer::attempt(limits(9, Some(5))), || deadline::current().is_none()).await;
    for attempts in [1, 3] {
        let r = retrier(attempts);
        keeps_the_contract(RetryLayer::new(r.clone()), || r.budget().saved() == 10).await;
    }
    let t = throttle();
    keeps_the_contract(ThrottleLayer::new(t.clone()), || t.counts().0 == t.counts().1).await;
    let h = hedge();
    keeps_the_contract(HedgeLayer::new(h.clone()), || h.counts() == hedge::Counts::default()).await;
    let f = Arc::new(Fallback::new("payment".into()));
    let none: fn(&BoxError) -> Option<Text> = |_| None;
    keeps_the_contract(FallbackLayer::new(f.clone(), none), || f.counts().used == 0).await;
    keeps_the_contract(ChaosLayer::new(trouble(0, 100)), || true).await;
    let key = |_: &Text| None::<u32>;
    let cache = Arc::new(Bounded::<u32, Text>::new(9, SECOND, Clock::tokio()));
    keeps_the_contract(CacheLayer::new(cache.clone(), key, |_: &Text| true), || cache.is_empty()).await;
    keeps_the_contract(errors(), || true).await;
    // The calls of each key share one service; those without a key, and each of its own, are made by themselves.
    let together = Coalesce::<Text, Result<Text, String>>::new(9);
    for key in [|_: &Text| None, |text: &Text| Some(*text)] {
        let shared = CoalesceLayer::new(together.clone(), key);
        // Shared errors have to be cloned.
        let layer =
            tower_layer::layer_fn(|mock: Mock<Text, Text>| shared.layer(mock.map_err(|e: BoxError| e.to_string())));
        keeps_the_contract(layer, || together.under_way() == 0).await;
    }
    let g = guard(Policy { bulkhead: Some(bulkhead::Config::places(1)), ..Policy::default() });
    keeps_the_contract(GuardLayer::new(g.clone()), || g.bulkhead.get().unwrap().in_use() == 0).await;
}

/// Two services of the same layer, as axum would make them for two requests.
fn twice<S: Clone, L: Layer<S>>(layer: &L, inner: &S) -> (L::Service, L::Service) {
    (layer.layer(inner.clone()), layer.layer(inner.clone()))
}

fn rejection<T: Debug, E: GuardedError + Debug>(result: Result<T, E>) -> (PolicyName, Reason) {
    let error = result.expect_err("turned away");
    let rejected = error.rejection().expect("by a policy");
    (rejected.policy, rejected.reason)
}

#[tokio::test(start_paused = true)]
async fn applied_twice_they_share_the_state() {
    let fails = service_fn(|_: ()| ready(Err::<(), _>(CallError::Inner("500"))));
    let works = service_fn(|_: ()| ready(Ok::<_, CallError<Text>>(())));
    let lasts = service_fn(|_: ()| pending::<Result<(), CallError<Text>>>());

    let (mut one, mut two) = twice(&BreakerLayer::new(breaker()), &fails);
    for _ in 0..2 {
        assert_eq!(one.call(()).await, Err(CallError::Inner("500")));
        assert_eq!(two.clone().call(()).await, Err(CallError::Inner("500")), "clones share it too");
    }
    assert_eq!(rejection(one.call(()).await), (PolicyName::Breaker, Reason::Open));
    assert_eq!(rejection(two.call(()).await), (PolicyName::Breaker, Reason::Open));

    let (mut one, mut two) = twice(&BulkheadLayer::new(bulkhead(1, 0)), &lasts);
    let mut held = std::pin::pin!(one.call(()));
    assert!(poll!(&mut held).is_pending());
    assert_eq!(rejection(two.call(()).await), (PolicyName::Bulkhead, Reason::Full));

    let (mut one, mut two) = twice(&RateLimitLayer::new(limiter(0)), &works);
    assert_eq!(one.call(()).await, Ok(()));
    assert_eq!(rejection(two.call(()).await), (PolicyName::RateLimit, Reason::Limited));

    let shared = throttle();
    let full: fn(&Result<(), CallError<Text>>) -> seawall_resilience::Report =
        |_| seawall_resilience::Report { overloaded: true, ..seawall_resilience::Outcome::Failure.into() };
    let (mut one, mut two) = twice(&ThrottleLayer::new(shared.clone()).classify(full), &fails);
    for _ in 0..1000 {
        let _ = one.call(()).await;
    }
    let rejected = (0..100).filter(|_| matches!(now(two.call(())), Err(CallError::Rejected(_)))).count();
    assert!(rejected > 80, "{rejected} of 100 although nothing was ever accepted");

    let r = retrier(2);
    let (mut one, mut two) = twice(&RetryLayer::new(r.clone()), &fails);
    let _ = tokio::join!(one.call(()), two.call(()));
    assert_eq!((r.counts().retries, r.budget().saved()), (2, 8), "both took one of the ten");
}

/// The result of a future that is ready.
fn now<F: Future>(future: F) -> F::Output {
    match std::pin::pin!(future).poll(&mut noop()) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it was to be ready"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_takes_the_ready_instance_along() {
    let b = bulkhead(1, 9);
    let (mock, mut handle) = mock::pair::<Text, Text>();
    let mut service = BulkheadLayer::new(b.clone()).layer(mock);
    let place = Bulkhead::try_acquire(b.clone()).unwrap();
    handle.allow(1);
    assert!(service.poll_ready(&mut noop()).is_ready());
    let mut waiting = std::pin::pin!(service.call("one"));
    assert!(poll!(&mut waiting).is_pending());
    assert_eq!(b.waiting(), 1);
    // The instance left behind has not been polled ready, and says so as soon as the one below has no more to give.
    handle.allow(0);
    assert!(service.poll_ready(&mut noop()).is_pending());
    drop(place);
    // The mock would panic here if it were any other instance than the ready one.
    assert!(poll!(&mut waiting).is_pending());
    let (_, respond) = handle.next_request().await.unwrap();
    respond.send_response("answer");
    assert_eq!(waiting.await.unwrap(), "answer");
    assert_eq!((b.in_use(), b.waiting(), b.rejections()), (0, 0, bulkhead::Rejections::default()));
}

#[tokio::test(start_paused = true)]
async fn waits_end_at_the_ambient_deadline() {
    let start = tokio::time::Instant::now();
    let works = service_fn(|_: ()| ready(Ok::<_, CallError<Text>>(())));
    let b = bulkhead(1, 60);
    let _place = Bulkhead::try_acquire(b.clone()).unwrap();
    // The limit is ambient in the call of the service below, before its future is polled.
    let mut service = ServiceBuilder::new()
        .layer(TimeoutLayer::total(limits(2, None)))
        .layer(BulkheadLayer::new(b.clone()))
        .service(works);
    let (policy, _) = rejection(service.call(()).await);
    assert!(matches!(policy, PolicyName::Bulkhead | PolicyName::Timeout));
    assert_eq!((start.elapsed(), b.waiting()), (SECOND * 2, 0));

    let l = limiter(60);
    l.try_acquire().unwrap();
    let mut service = RateLimitLayer::new(l.clone()).layer(works);
    let soon = Deadline::after(SECOND / 2);
    let result = deadline::scope(soon, async { service.call(()).await }).await;
    assert_eq!(rejection(result), (PolicyName::RateLimit, Reason::Limited));
    assert_eq!(start.elapsed(), SECOND * 2, "that it would not come in time was known at once");
    assert_eq!(service.call(()).await, Ok(()));
    assert_eq!(start.elapsed(), SECOND * 3);
}

/// The deadline is ambient in the call of the service below, not in its future alone.
#[tokio::test(start_paused = true)]
async fn a_deadline_is_ambient_as_soon_as_the_service_is_called() {
    let look = service_fn(|_: ()| {
        let in_call = deadline::current();
        async move { Ok::<_, CallError<Text>>((in_call, deadline::current())) }
    });
    let (in_call, in_future) = TimeoutLayer::total(limits(2, None)).layer(look).oneshot(()).await.unwrap();
    assert_eq!((in_call, in_future.map(Deadline::left)), (in_future, Some(SECOND * 2)));
    assert_eq!(TimeoutLayer::attempt(limits(2, Some(1))).layer(look).oneshot(()).await, Ok((None, None)));
}

#[tokio::test(start_paused = true)]
async fn time_limits_name_themselves_and_call_nobody_without_time() {
    let called = AtomicU32::new(0);
    let lasts = service_fn(|_: ()| {
        called.fetch_add(1, Ordering::Relaxed);
        pending::<Result<(), CallError<Text>>>()
    });
    let result = TimeoutLayer::attempt(limits(9, Some(2))).layer(lasts).call(()).await;
    assert_eq!(rejection(result), (PolicyName::Timeout, Reason::Attempt));
    let result = TimeoutLayer::attempt(limits(9, None)).layer(lasts).call(()).await;
    assert_eq!(rejection(result), (PolicyName::Timeout, Reason::Deadline));
    let over = Deadline::at(tokio::time::Instant::now());
    for layer in [TimeoutLayer::attempt(limits(9, Some(2))), TimeoutLayer::total(limits(9, None))] {
        let before = called.load(Ordering::Relaxed);
        let result = deadline::scope(over, async { layer.layer(lasts).call(()).await }).await;
        assert_eq!(rejection(result), (PolicyName::Timeout, Reason::Deadline));
        assert_eq!(called.load(Ordering::Relaxed), before);
    }
}

/// Fails so many times, then works.
#[derive(Clone, Default)]
struct Flaky {
    failures: u32,
    calls: Arc<AtomicU32>,
}

impl Service<Text> for Flaky {
    type Response = u32;
    type Error = CallError<Text>;
    type Future = std::future::Ready<Result<u32, CallError<Text>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Text) -> Self::Future {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        ready(if call > self.failures { Ok(call) } else { Err(CallError::Inner("500")) })
    }
}

#[tokio::test(start_paused = true)]
async fn retries_keep_deadline_budget_and_chain() {
    let flaky = |failures| Flaky { failures, ..Flaky::default() };
    let r = retrier(3);
    assert_eq!(RetryLayer::new(r.clone()).layer(flaky(2)).oneshot("pay").await, Ok(3));
    assert_eq!((r.counts().retries, r.counts().recovered), (2, 1));
    assert_eq!(RetryLayer::new(r.clone()).layer(flaky(3)).oneshot("pay").await, Err(CallError::Inner("500")));
    assert_eq!(r.counts().attempts, 1);

    // The second retry would begin at two seconds.
    let deadline = Deadline::after(SECOND * 3 / 2);
    let service = RetryLayer::new(r.clone()).layer(flaky(9));
    let result = deadline::scope(deadline, async { service.oneshot("pay").await }).await;
    assert_eq!((result, r.counts().deadline), (Err(CallError::Inner("500")), 1));

    // Only what is worth it.
    let never = |_: &Result<u32, CallError<Text>>| Decision::Stop;
    let once = flaky(9);
    let result = RetryLayer::new(r.clone()).decide(never).layer(once.clone()).oneshot("pay").await;
    assert_eq!((result, once.calls.load(Ordering::Relaxed)), (Err(CallError::Inner("500")), 1));
}

#[tokio::test(start_paused = true)]
async fn a_chain_bounds_nested_layers() {
    for (chain, expected) in [(None, 9), (Some(2), 3)] {
        let config = Retry { chain, ..retry(3) };
        let layer = RetryLayer::new(Arc::new(Retrier::new("payment".into(), config, Clock::tokio())));
        let flaky = Flaky { failures: 99, ..Flaky::default() };
        let service = ServiceBuilder::new().layer(layer.clone()).layer(layer).service(flaky.clone());
        assert_eq!(service.oneshot("pay").await, Err(CallError::Inner("500")));
        assert_eq!(flaky.calls.load(Ordering::Relaxed), expected, "{chain:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_asked_for_twice() {
    let calls = Arc::new(AtomicU32::new(0));
    let service = {
        let calls = calls.clone();
        service_fn(move |_: Text| {
            let number = calls.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                tokio::time::sleep(if number == 1 { SECOND * 60 } else { SECOND }).await;
                Ok::<_, BoxError>(number)
            }
        })
    };
    let h = hedge();
    let start = tokio::time::Instant::now();
    assert_eq!(HedgeLayer::new(h.clone()).layer(service).oneshot("pay").await.unwrap(), 2);
    assert_eq!((start.elapsed(), h.counts().won), (SECOND * 2, 1));
}

#[tokio::test(start_paused = true)]
async fn trouble_comes_as_ordered() {
    let start = tokio::time::Instant::now();
    let flaky = Flaky::default();
    let result = ChaosLayer::new(trouble(100, 100)).layer(flaky.clone()).oneshot("pay").await;
    assert_eq!(rejection(result), (PolicyName::Chaos, Reason::Injected));
    assert_eq!((start.elapsed(), flaky.calls.load(Ordering::Relaxed)), (SECOND * 2, 0));
    assert_eq!(ChaosLayer::new(trouble(0, 0)).layer(flaky).oneshot("pay").await, Ok(1));
    assert_eq!(start.elapsed(), SECOND * 2);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_covers_what_it_wants_to() {
    let f = Arc::new(Fallback::new("payment".into()));
    let rejections = |error: &CallError<Text>| error.rejected().map(|_| 0);
    let layer = FallbackLayer::new(f.clone(), rejections);
    let failing = Flaky { failures: 9, ..Flaky::default() };
    assert_eq!(layer.layer(failing).oneshot("pay").await, Err(CallError::Inner("500")));
    let rejected = ChaosLayer::new(trouble(100, 0)).layer(Flaky::default());
    assert_eq!((layer.layer(rejected).oneshot("pay").await, f.counts().used), (Ok(0), 1));
}

#[tokio::test(start_paused = true)]
async fn identical_calls_share_one_and_a_cached_one_makes_none() {
    let calls = Arc::new(AtomicU32::new(0));
    let slow = {
        let calls = calls.clone();
        service_fn(move |_: Text| {
            let number = calls.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                tokio::time::sleep(SECOND).await;
                if number == 1 {
                    Err(Rejected::new(PolicyName::Chaos, "x".into(), Reason::Injected))
                } else {
                    Ok(number)
                }
            }
        })
    };
    let key = |request: &Text| (*request != "pay").then_some(*request);
    let layer = CoalesceLayer::new(Coalesce::<Text, Result<u32, Rejected>>::new(9), key);
    let (one, two) = twice(&layer, &slow);
    let (one, two) = tokio::join!(one.oneshot("price"), two.oneshot("price"));
    assert!(one.is_err() && one == two, "an error is shared as well");
    let (one, two) = twice(&layer, &slow);
    assert_eq!(tokio::join!(one.oneshot("pay"), two.oneshot("pay")), (Ok(2), Ok(3)));

    let cache = Arc::new(Bounded::new(9, SECOND * 5, Clock::tokio()));
    let layer = CacheLayer::new(cache.clone(), key, |value: &u32| *value != 5);
    let ask = |request| layer.layer(slow.clone()).oneshot(request);
    assert_eq!(ask("price").await, Ok(4));
    assert_eq!(ask("price").await, Ok(4), "from the cache");
    assert_eq!(ask("stock").await, Ok(5), "not to be kept");
    assert_eq!(ask("stock").await, Ok(6));
    assert_eq!((ask("pay").await, ask("pay").await), (Ok(7), Ok(8)), "without a key it is never looked up");
    tokio::time::advance(SECOND * 5).await;
    assert_eq!((ask("price").await, cache.len()), (Ok(9), 2));
}

/// Deadline, retry, breaker and bulkhead as one stack: what goes wrong anywhere is one flat error at the top.
#[tokio::test(start_paused = true)]
async fn a_stack_of_layers_works_and_its_errors_are_flat() {
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Declined;

    let (b, place, r) = (breaker(), bulkhead(1, 0), retrier(3));
    let calls = Arc::new(AtomicU32::new(0));
    let service = {
        let calls = calls.clone();
        service_fn(move |answer: Text| {
            calls.fetch_add(1, Ordering::Relaxed);
            async move {
                match answer {
                    "no" => Err(Declined),
                    "never" => pending().await,
                    _ => Ok("charged"),
                }
            }
        })
    };
    let stack = ServiceBuilder::new()
        .layer(TimeoutLayer::total(limits(5, None)))
        .layer(RetryLayer::new(r.clone()))
        .layer(BreakerLayer::new(b.clone()))
        .layer(BulkheadLayer::new(place.clone()).priority(|request: &Text| match *request {
            "low" => Priority::Low,
            _ => Priority::High,
        }))
        .layer(TimeoutLayer::attempt(limits(5, Some(2))))
        .layer(errors())
        .service(service);
    let ask = |request| {
        let stack = stack.clone();
        async move {
            let result: Result<Text, CallError<Declined>> = stack.oneshot(request).await;
            result
        }
    };
    assert_eq!(ask("yes").await, Ok("charged"));
    assert_eq!(ask("no").await, Err(CallError::Inner(Declined)));
    assert_eq!((calls.load(Ordering::Relaxed), b.counts().failed, b.state()), (4, 3, State::Open));
    // The breaker's rejection is not repeated.
    assert_eq!(rejection(ask("yes").await), (PolicyName::Breaker, Reason::Open));
    assert_eq!((calls.load(Ordering::Relaxed), r.counts().retries), (4, 2));
    tokio::time::advance(SECOND * 30).await;
    assert_eq!((ask("yes").await, b.state()), (Ok("charged"), State::Closed));
    // Two attempts of two seconds and a second between: at five the whole is over.
    let start = tokio::time::Instant::now();
    assert_eq!(rejection(ask("never").await).0, PolicyName::Timeout);
    assert_eq!((start.elapsed(), place.in_use(), place.waiting()), (SECOND * 5, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_whole_guard_is_one_layer() {
    let policy = Policy {
        breaker: Some(opens_at_four()),
        bulkhead: Some(bulkhead::Config::places(1)),
        retry: retry(3),
        ..Policy::default()
    };
    let g = guard(policy);
    let layer = GuardLayer::new(g.clone());
    // The error below is any error at all.
    let count = Arc::new(AtomicU32::new(0));
    let service = {
        let count = count.clone();
        service_fn(move |_: Text| ready(if count.fetch_add(1, Ordering::Relaxed) < 2 { Err("500") } else { Ok(()) }))
    };
    let (one, two) = twice(&layer, &service);
    assert_eq!(one.oneshot("pay").await, Ok(()));
    assert_eq!((count.load(Ordering::Relaxed), g.retry.counts().retries), (3, 2));
    let fails = service_fn(|_: Text| ready(Err::<(), _>("500")));
    let three = layer.layer(fails);
    // The third failure of four opens the breaker, which turns the retry away.
    assert_eq!(rejection(three.oneshot("pay").await), (PolicyName::Breaker, Reason::Open));
    assert_eq!(rejection(two.oneshot("pay").await), (PolicyName::Breaker, Reason::Open), "they share the breaker");
    // A layer of a guard that lives as long as the process.
    let kept: &'static Guard =
        Box::leak(Box::new(Guard::new("stock".into(), Policy::default(), Clock::tokio(), Arc::default())));
    let works = service_fn(|_: Text| ready(Ok::<_, Infallible>(7)));
    assert_eq!(GuardLayer::new(kept).layer(works).oneshot("count").await, Ok(7));
}
