//! Each edge case in which the known libraries differ, and each defect that their users have reported or that was found by
//! running them, as a test of ours. What another file of this crate proves already is named in the table and not
//! repeated here.
//!
//! `R4j` is Resilience4j, `TR` tower-resilience 0.13; numbers are those of the projects' issues.
//!
//! | case or defect | whose | proved by |
//! |---|---|---|
//! | a call admitted while closed ends while open | R4j, Polly, TR | [`a_late_failure_neither_extends_nor_repeats_an_open_wait`] |
//! | ..., ends while half open | R4j, Polly #217 #218, TR, recloser, failsafe-rs | `breaker/tests.rs: late_results_decide_nothing`, [`late_successes_do_not_close_while_the_probe_runs`], `breaker/loom.rs: a_late_failure_decides_nothing` |
//! | ..., as an ignored error that lifts permits | R4j, failsafe #32 | [`a_late_ignored_result_lifts_no_permit`] |
//! | probes beyond the limit, 1000 of 1000 racing | recloser, failsafe-rs, TR PR#407, open-liberty #7080 | `breaker/tests.rs: racing_callers_never_exceed_the_probes`, `breaker/loom.rs: racing_callers_send_one_probe` |
//! | one probe is too coarse; the first decides | Polly #216 #239 #254 #2381, failsafe-rs, TR 6 | `breaker/tests.rs: probes_decide`, [`neither_the_first_success_closes_nor_the_first_failure_opens`] |
//! | a cancelled probe closes, or is lost | Polly, R4j #332 #682 PR#1633, recloser, TR #367 | [`a_cancelled_probe_does_not_close`], `breaker/tests.rs: probes_are_counted_and_a_lost_one_frees_its_place` |
//! | a lost probe wedges half open | R4j #544 #903 #935 #1389, Polly, TR | `breaker/tests.rs: probes_that_never_come_back_are_replaced` |
//! | an unhandled or ignored result wedges half open, or closes | Polly #311 #717 #1979, TR, recloser | [`an_ignored_probe_neither_closes_nor_wedges`] |
//! | a predicate that throws wedges half open | R4j PR#2488 | [`a_panicking_probe_opens_and_wedges_nothing`], `breaker/tests.rs: a_call_is_judged_and_a_panic_counts` |
//! | an error that is no `Exception` is neither recorded nor released | R4j | [`a_panicking_probe_opens_and_wedges_nothing`] (any payload) |
//! | slow probes close | TR 6 | [`slow_probes_do_not_close`] |
//! | an outer timeout is invisible: 50 of them, none recorded | TR, recloser, failsafe-rs | [`fifty_outer_timeouts_open_it`], `breaker/tests.rs: an_outer_time_limit_is_seen` |
//! | the open wait goes by the wall clock, or one that cannot be replaced | R4j, Polly, TR, recloser | `breaker/tests.rs: an_open_breaker_says_how_long`, [`no_clock_but_the_given_one_counts`] |
//! | a time window ignores the configured clock | R4j `LOCK_FREE` | `breaker/tests.rs: a_time_window_forgets`, [`no_clock_but_the_given_one_counts`] |
//! | a limit that shrinks blocks | R4j `acquireUninterruptibly` | `bulkhead/tests.rs: shrinks_and_grows_without_blocking` |
//! | the count window does not slide | TR 1, mcp-proxy #221, TR #283 | [`a_count_window_slides_after_ten_thousand_calls`] |
//! | `minimum_calls` below the window has no effect | TR 2 | [`minimum_calls_below_the_window_count`] |
//! | the cost of a call and the memory grow with the traffic | TR 3 | [`neither_memory_nor_work_grows_with_the_traffic`] |
//! | inert under axum: state per application | TR 4 #275, acton-service #44, axum #2634, linkerd2-proxy #429 | `tests/http.rs: axum_applies_layers_per_request_and_the_state_is_shared`, `tests/layers.rs: applied_twice_they_share_the_state` |
//! | a layer with a closure is not `Clone` | TR 4 #124 | `tests/http.rs: axum_takes_a_breaker_layer_with_a_closure` |
//! | listeners run under the lock | TR 5 | [`a_listener_may_use_the_breaker_and_holds_up_nobody`] |
//! | allocations, strings and locks on the way of a call | TR 5, R4j #2151 #1391 | `tests/allocations.rs: no_call_allocates` |
//! | one lock, or a pinned epoch, across the user's call | recloser | [`a_call_under_way_blocks_nobody`] |
//! | no reload; a registry that replaces instead of updating | R4j #299 #850 #975 #1749 #1960 #2181, TR 7 | `breaker/tests.rs: a_reload_loses_nothing`, [`a_reload_updates_the_guard_that_callers_hold`] |
//! | no disabled, forced or metrics-only state, no ignored class, no model check | TR 7 | `breaker/tests.rs: the_operator_decides`, `breaker/loom.rs` |
//! | slices of a second and no other | R4j #1034 | `breaker/tests.rs: slices_are_the_last_seconds` |
//! | the state is scoped wrongly: per caller, or one for all | Ocelot #1550, Listenarr #868 | [`a_name_has_one_guard_and_another_name_another`] |
//! | a fallback inside hides the failure from the retry | R4j #515 #558 #593 #614 #902 | [`a_fallback_outside_hides_nothing_from_the_policies`] |
//! | permits across clones and cancellation | TR #365 #367 | `tests/cancel.rs` |
//! | a slot is reserved by readiness; clones called that were not ready | tower PR#434 #547 #626 #636 #753, TR #293 | `tests/layers.rs: every_layer_keeps_the_contract`, `a_call_that_waits_takes_the_ready_instance_along` |
//! | limits queue and never reject | tower #793 | `bulkhead/tests.rs: turns_away_when_full_and_waits_when_told` |
//! | errors are boxed layer by layer | tower Timeout, TR PR#445 | `tests/layers.rs: a_stack_of_layers_works_and_its_errors_are_flat` |
//! | a time limit cuts the body, or ends with the head and lets go of the permit | tower-http #623, TR #373, fs-go #65 #123 | [`a_time_limit_ends_with_the_head_and_the_permit_does_not`] |
//! | a result comes after its time limit all the same | R4j `TimeLimiter` (a `CompletionStage` runs on) | [`what_ran_out_of_time_is_dropped`] |
//! | a hedge's budget kills hedges under way | fs-go #141 | [`an_empty_budget_ends_no_hedge_under_way`] |
//! | the type cannot be named or shared | failsafe-rs #17 | [`a_breaker_is_one_type_whatever_it_judges`] |
//! | a budget that is exact at some ratios alone, or by windows | fs-go #106 | `retry/budget.rs: it_is_the_exact_bucket` |
#![cfg(not(feature = "loom"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::future::{pending, ready};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use futures_util::poll;
use http_body_util::{BodyExt, StreamBody};
use seawall_resilience::breaker::{Breaker, Config, Event, Limits, Listener, Permit, State, Sums, Verdict, Window};
use seawall_resilience::clock::Manual;
use seawall_resilience::layer::{BreakerLayer, FallbackLayer, HttpGuardLayer, RetryLayer, errors};
use seawall_resilience::retry::Jitter;
use seawall_resilience::{
    Bulkhead, CallError, Clock, Deadline, Fallback, Guard, Hedge, Outcome, Policies, Reason, Registry, Rejected,
    Report, Retrier, Retry, deadline, hedge,
};
use seawall_types::{Period, Ratio};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// Ten calls, opens at half of four, for thirty seconds; three probes.
fn config() -> Config {
    Config {
        window: Window::Calls(10),
        limits: Limits { minimum_calls: 4, ..Config::default().limits },
        open_for: Period::secs(30),
        half_open_calls: 3,
        probe_lease: Some(Period::secs(30)),
        ..Config::default()
    }
}

/// A breaker by a clock that stands still, and what it tells.
struct Bench {
    breaker: Arc<Breaker>,
    hand: Manual,
    moves: Arc<Mutex<Vec<State>>>,
}

impl Bench {
    fn new(config: Config) -> Self {
        let moves = Arc::new(Mutex::new(Vec::new()));
        let sink = moves.clone();
        let listener: Listener = Box::new(move |event| {
            if let Event::Moved(transition) = event {
                sink.lock().unwrap().push(transition.to);
            }
        });
        let (clock, hand) = Clock::manual();
        Self { breaker: Arc::new(Breaker::new("payment".into(), config, clock, listener)), hand, moves }
    }

    fn ask(&self) -> Result<Permit<Arc<Breaker>>, Rejected> {
        Breaker::try_acquire(self.breaker.clone())
    }

    fn end(&self, outcome: Outcome, calls: u32) -> State {
        (0..calls).for_each(|_| self.ask().unwrap().finish(outcome));
        self.breaker.state()
    }

    fn open(&self) {
        assert_eq!(self.end(Outcome::Failure, 4), State::Open);
    }

    /// Open, and long enough for probes.
    fn ready_to_probe(&self) {
        self.open();
        self.hand.advance(SECOND * 30);
    }

    /// How many probes it lets pass now; they are given up.
    fn places(&self) -> usize {
        let probes: Vec<_> = std::iter::from_fn(|| self.ask().ok()).take(1000).collect();
        probes.len()
    }
}

/// R4j records it in the old window, Polly and TR count it.
#[test]
fn a_late_failure_neither_extends_nor_repeats_an_open_wait() {
    let bench = Bench::new(config());
    let late = bench.ask().unwrap();
    bench.open();
    bench.hand.advance(SECOND * 20);
    late.finish(Outcome::Failure);
    assert_eq!(bench.breaker.open_for(), SECOND * 10);
    assert_eq!((bench.breaker.counts().late, &*bench.moves.lock().unwrap()), (1, &vec![State::Open]));
}

/// In TR a success that was admitted before it opened closed the circuit while the probe was still running.
#[test]
fn late_successes_do_not_close_while_the_probe_runs() {
    let bench = Bench::new(config());
    let late: Vec<_> = (0..6).map(|_| bench.ask().unwrap()).collect();
    bench.ready_to_probe();
    let probe = bench.ask().unwrap();
    late.into_iter().for_each(|permit| permit.finish(Outcome::Success));
    assert_eq!((bench.breaker.state(), bench.breaker.counts().late), (State::HalfOpen, 6));
    probe.finish(Outcome::Success);
    assert_eq!(bench.breaker.state(), State::HalfOpen, "one probe of three");
}

/// R4j's `releasePermission()` for an ignored error of an earlier state lifts the permits above the limit; in failsafe #32
/// they leak.
#[test]
fn a_late_ignored_result_lifts_no_permit() {
    for outcome in [Some(Outcome::Ignored), None] {
        let bench = Bench::new(config());
        let late: Vec<_> = (0..5).map(|_| bench.ask().unwrap()).collect();
        bench.ready_to_probe();
        let _probes: Vec<_> = (0..3).map(|_| bench.ask().unwrap()).collect();
        for permit in late {
            // Either it ends as something to be ignored, or it is given up.
            if let Some(outcome) = outcome {
                permit.finish(outcome);
            }
        }
        assert_eq!(bench.places(), 0, "{outcome:?}");
        assert_eq!(bench.breaker.state(), State::HalfOpen);
    }
}

/// In failsafe-rs the first success closes; in TR any failure opens again.
#[test]
fn neither_the_first_success_closes_nor_the_first_failure_opens() {
    let bench = Bench::new(config());
    bench.ready_to_probe();
    assert_eq!(bench.end(Outcome::Success, 1), State::HalfOpen);
    assert_eq!(bench.end(Outcome::Failure, 1), State::HalfOpen, "one of three is below half");
    assert_eq!(bench.end(Outcome::Success, 1), State::Closed);
}

/// In Polly a cancellation is not handled, counts as a success, and closes.
#[tokio::test]
async fn a_cancelled_probe_does_not_close() {
    let bench = Bench::new(Config { half_open_calls: 1, ..config() });
    bench.ready_to_probe();
    for _ in 0..5 {
        let mut probe = Box::pin(bench.breaker.call(pending::<Result<(), ()>>()));
        assert!(poll!(&mut probe).is_pending());
        assert_eq!(bench.ask().unwrap_err().reason, Reason::HalfOpen, "its place is taken");
        drop(probe);
        assert_eq!(bench.breaker.state(), State::HalfOpen);
    }
    assert_eq!(bench.end(Outcome::Success, 1), State::Closed, "the next may probe at once");
}

/// In Polly #311 #717 #1979 a result that nobody handles wedges it; in TR, recloser and failsafe-rs it is a success, and
/// closes.
#[test]
fn an_ignored_probe_neither_closes_nor_wedges() {
    let bench = Bench::new(config());
    bench.ready_to_probe();
    assert_eq!(bench.end(Outcome::Ignored, 20), State::HalfOpen);
    assert_eq!(bench.places(), 3);
    assert_eq!(bench.end(Outcome::Success, 3), State::Closed);
}

/// R4j PR#2488: a predicate that throws keeps the permit for ever; what is no `Exception` is neither recorded nor
/// released.
#[tokio::test]
async fn a_panicking_probe_opens_and_wedges_nothing() {
    for panics in ["in the call", "in the judge", "in the making"] {
        let bench = Bench::new(Config { half_open_calls: 1, ..config() });
        bench.ready_to_probe();
        let breaker = bench.breaker.clone();
        let call = async move {
            // The payload is no string and no error.
            match panics {
                "in the call" => breaker.call(async { std::panic::panic_any(7) as Result<(), ()> }).await,
                "in the judge" => breaker.call_with(async { Ok(()) }, |_| std::panic::panic_any(7)).await,
                _ => {
                    let makes = service_fn(|_: ()| -> std::future::Ready<Result<(), ()>> { std::panic::panic_any(7) });
                    BreakerLayer::new(breaker).layer(errors().layer(makes)).oneshot(()).await
                }
            }
        };
        assert!(tokio::spawn(call).await.unwrap_err().is_panic());
        assert_eq!(bench.breaker.state(), State::Open, "{panics}");
        bench.hand.advance(SECOND * 30);
        assert_eq!(bench.end(Outcome::Success, 1), State::Closed, "{panics}");
    }
}

/// In TR slow probes close it: slowness is not looked at in the half-open state.
#[test]
fn slow_probes_do_not_close() {
    let limits = Limits { slow_rate: Ratio::percent(50), ..config().limits };
    for verdict in [Verdict::All, Verdict::Rate, Verdict::Ramp] {
        let bench = Bench::new(Config { slow_call: Some(Period::secs(1)), limits, verdict, ..config() });
        bench.ready_to_probe();
        for _ in 0..2 {
            let Ok(probe) = bench.ask() else { break };
            bench.hand.advance(SECOND * 2);
            probe.finish(Outcome::Success);
        }
        assert_eq!(bench.breaker.state(), State::Open, "{verdict:?}");
    }
}

/// TR: 50 calls that a time limit outside of the breaker ends leave it closed, with nothing recorded.
#[tokio::test(start_paused = true)]
async fn fifty_outer_timeouts_open_it() {
    let breaker = Arc::new(Breaker::new("payment".into(), Config::default(), Clock::tokio(), Box::new(|_| {})));
    let lasts = service_fn(|_: ()| pending::<Result<(), CallError<Infallible>>>());
    let service = BreakerLayer::new(breaker.clone()).layer(lasts);
    let mut timeouts = 0;
    for _ in 0..50 {
        timeouts += u32::from(tokio::time::timeout(SECOND * 2, service.clone().oneshot(())).await.is_err());
    }
    // The twentieth makes the minimum; then nothing is called, until the wait of ten seconds is over.
    assert_eq!((timeouts, breaker.counts().moves[State::Open as usize]), (20, 1));
    assert_eq!(breaker.bad_calls().last().unwrap().cause, "given up");
}

/// R4j's open wait goes by the wall clock, Polly's by UTC, TR's and recloser's by one that cannot be replaced; R4j's lock-free
/// window ignores the one that is given. Here a process that stands still for no matter how long sees nothing pass.
#[test]
fn no_clock_but_the_given_one_counts() {
    let bench = Bench::new(Config { window: Window::Time(Period::millis(10)), ..config() });
    bench.end(Outcome::Failure, 3);
    // Longer than the window, by any clock of the machine.
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(bench.breaker.sums().calls, 3);
    assert_eq!(bench.end(Outcome::Failure, 1), State::Open);
    bench.breaker.reload(Config { open_for: Period::millis(10), max_open_for: Period::millis(10), ..config() });
    let Err(rejected) = bench.ask() else { panic!("it has just opened") };
    assert_eq!(rejected.retry_after, Some(SECOND * 30));
    bench.hand.advance(SECOND * 30 - Duration::from_micros(1));
    assert!(bench.ask().is_err());
    bench.hand.advance(Duration::from_micros(1));
    assert!(bench.ask().is_ok());
}

/// TR 1: counters are reset by transitions alone, so that after 10,000 successes a breaker of "100 calls" needs 10,000
/// failures in a row.
#[test]
fn a_count_window_slides_after_ten_thousand_calls() {
    let bench = Bench::new(Config { window: Window::Calls(100), ..config() });
    bench.end(Outcome::Success, 10_000);
    assert_eq!(bench.breaker.sums(), Sums { calls: 100, failed: 0, slow: 0 });
    assert_eq!(bench.end(Outcome::Failure, 49), State::Closed);
    assert_eq!(bench.end(Outcome::Failure, 1), State::Open);
}

/// TR 2, mcp-proxy #221: a minimum of 10 in a window of 100 opens after 100.
#[test]
fn minimum_calls_below_the_window_count() {
    let limits = Limits { minimum_calls: 10, ..config().limits };
    let bench = Bench::new(Config { window: Window::Calls(100), limits, ..config() });
    assert_eq!(bench.end(Outcome::Failure, 9), State::Closed);
    assert_eq!(bench.end(Outcome::Failure, 1), State::Open);
}

/// TR 3: the time window keeps every call and looks at all of them for each: 51 µs with 50,000. Here a breaker never
/// grows after its first call, however many are in the window; and no call can look at more words than there are.
#[test]
fn neither_memory_nor_work_grows_with_the_traffic() {
    for window in [Window::Time(Period::secs(60)), Window::Calls(10_000)] {
        let limits = Limits { minimum_calls: 10_000, ..config().limits };
        let bench = Bench::new(Config { window, limits, ..config() });
        let first = allocation_counter::measure(|| _ = bench.end(Outcome::Success, 1));
        assert!(first.bytes_total < 5 * 1024, "{window}: {}", first.bytes_total);
        let calls = 50_000;
        let rest = allocation_counter::measure(|| {
            for call in 0..calls {
                // One in a thousand fails, which is when it looks at its window.
                bench.end(if call % 1000 == 0 { Outcome::Failure } else { Outcome::Success }, 1);
            }
        });
        // A thread's place for reading the configuration is made once, whenever that may be.
        assert!(rest.count_total <= 1 && rest.bytes_total <= 256, "{window}: {rest:?}");
        let expected = if window == Window::Calls(10_000) { (10_000, 10) } else { (calls + 1, 50) };
        assert_eq!((bench.breaker.sums().calls, bench.breaker.sums().failed), expected, "all of them count");
    }
}

/// TR 5: listeners and metrics run under the lock, so that one that asks the breaker waits for itself, and a slow one holds
/// up every call.
#[test]
fn a_listener_may_use_the_breaker_and_holds_up_nobody() {
    let own: Arc<OnceLock<Arc<Breaker>>> = Arc::default();
    let (entered, at_work) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let listener: Listener = {
        let own = own.clone();
        Box::new(move |event| {
            let Event::Moved(transition) = event else { return };
            if transition.to != State::Open {
                return;
            }
            let breaker = own.get().unwrap();
            assert_eq!(breaker.state(), State::Open);
            assert!(Breaker::try_acquire(&**breaker).is_err());
            breaker.reload(config());
            let _ = (breaker.sums(), breaker.counts(), breaker.bad_calls());
            entered.send(()).unwrap();
            let _ = released.lock().unwrap().recv_timeout(SECOND * 10);
        })
    };
    let (clock, _) = Clock::manual();
    let breaker = Arc::new(Breaker::new("payment".into(), config(), clock, listener));
    own.set(breaker.clone()).unwrap();
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| {
            for _ in 0..4 {
                Breaker::try_acquire(&*breaker).unwrap().finish(Outcome::Failure);
            }
        });
        at_work.recv_timeout(SECOND * 10).expect("the listener is told, and nothing in it waits for itself");
        // While the listener is at it, others are answered.
        assert_eq!(Breaker::try_acquire(&*breaker).unwrap_err().reason, Reason::Open);
        breaker.set(State::Closed);
        Breaker::try_acquire(&*breaker).unwrap().finish(Outcome::Success);
        assert!(!opener.is_finished());
        release.send(()).unwrap();
    });
}

/// recloser keeps an epoch pinned, and its ring's spin lock is one for all: here a call that lasts is in nobody's way,
/// whatever is done meanwhile, and by the call itself.
#[test]
fn a_call_under_way_blocks_nobody() {
    let bench = Bench::new(config());
    let breaker = &bench.breaker;
    let result = breaker.call_blocking(|| {
        let inner = breaker.call_blocking(|| Ok::<_, ()>(7));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                bench.end(Outcome::Success, 3);
                breaker.reload(Config { window: Window::Time(Period::secs(10)), ..config() });
                breaker.set(State::ForcedOpen);
                breaker.set(State::Closed);
            });
        });
        inner
    });
    assert!(matches!(result, Ok(7)));
    assert_eq!((breaker.state(), breaker.counts().late), (State::Closed, 1));
}

fn policies(text: &str) -> Policies {
    serde_json::from_str(text).unwrap()
}

/// R4j's registry replaces: whoever holds the old instance goes on with the old rules.
#[tokio::test]
async fn a_reload_updates_the_guard_that_callers_hold() {
    let registry = Registry::new(policies(r#"{ "payment": { "breaker": { "minimum_calls": 100 } } }"#)).unwrap();
    let held = registry.guard("payment");
    for _ in 0..5 {
        assert_eq!(held.call(|_| ready(Err::<(), _>("500"))).await, Err(CallError::Inner("500")));
    }
    registry.reload(policies(r#"{ "payment": { "breaker": { "minimum_calls": 6 } } }"#)).unwrap();
    // What is wrong changes nothing, and says so.
    let wrong = policies(r#"{ "payment": { "breaker": { "minimum_calls": 0 } }, "order": { "extends": "nobody" } }"#);
    let error = registry.reload(wrong.clone()).unwrap_err().to_string();
    for part in
        ["policies.payment.breaker.minimum_calls is 0, allowed is 1 to 10000", "policies.order.extends names no policy"]
    {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(Registry::new(wrong).unwrap_err().to_string(), error);
    assert!(Arc::ptr_eq(&held, &registry.guard("payment")));
    let _ = held.call(|_| ready(Err::<(), _>("500"))).await;
    assert_eq!(held.breaker.get().unwrap().state(), State::Open, "the five from before the reload count");
}

/// Ocelot #1550 made one for each caller, Listenarr #868 one for all services.
#[test]
fn a_name_has_one_guard_and_another_name_another() {
    let registry = Registry::new(Policies::default()).unwrap();
    let other = registry.clone();
    let (one, two) = (registry.guard("payment"), std::thread::spawn(move || other.guard("payment")).join().unwrap());
    assert!(Arc::ptr_eq(&one, &two));
    one.breaker.get().unwrap().set(State::ForcedOpen);
    assert_eq!(registry.guard("stock").breaker.get().unwrap().state(), State::Closed);
}

/// R4j #558 #593: each annotation has a fallback of its own, and one on the breaker hides the failure from the retry.
#[tokio::test(start_paused = true)]
async fn a_fallback_outside_hides_nothing_from_the_policies() {
    let retry = Retry { attempts: 3, jitter: Jitter::None, budget_floor: 10, ..Retry::default() };
    let retrier = Arc::new(Retrier::new("payment".into(), retry, Clock::tokio()));
    let breaker = Arc::new(Breaker::new("payment".into(), config(), Clock::tokio(), Box::new(|_| {})));
    let fallback = Arc::new(Fallback::new("payment".into()));
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::new(fallback.clone(), |_: &CallError<&str>| Some("a guess")))
        .layer(RetryLayer::new(retrier.clone()))
        .layer(BreakerLayer::new(breaker.clone()))
        .layer(errors())
        .service(service_fn(move |_: ()| {
            seen.fetch_add(1, Ordering::Relaxed);
            ready(Err::<&str, _>("500"))
        }));
    assert_eq!(service.clone().oneshot(()).await, Ok("a guess"));
    assert_eq!((calls.load(Ordering::Relaxed), breaker.sums().failed, retrier.counts().retries), (3, 3, 2));
    assert_eq!(service.oneshot(()).await, Ok("a guess"));
    assert_eq!((breaker.state(), fallback.counts().used), (State::Open, 2));
}

/// tower-http #623 and TR #373: an absolute limit cuts the body off; fs-go #65 #123: the end of the call cancels it.
#[tokio::test(start_paused = true)]
async fn a_time_limit_ends_with_the_head_and_the_permit_does_not() {
    let text = r#"{ "quotes": { "timeout": "1s", "bulkhead": { "concurrent": 1 } } }"#;
    let guard = Registry::with_clock(policies(text), Clock::tokio()).unwrap().guard("quotes");
    let slowly = |_: http::Request<()>| async {
        let piece = |number| async move {
            tokio::time::sleep(SECOND * 20).await;
            (number < 3).then(|| (Ok::<_, Infallible>(http_body::Frame::data(bytes::Bytes::from("x"))), number + 1))
        };
        let body = axum::body::Body::new(StreamBody::new(futures_util::stream::unfold(0, piece)));
        Ok::<_, Infallible>(http::Response::new(body))
    };
    let service = HttpGuardLayer::new(guard.clone()).layer(service_fn(slowly));
    let response = service.oneshot(http::Request::new(())).await.unwrap();
    let bulkhead = guard.bulkhead.get().unwrap();
    assert!(Bulkhead::try_acquire(bulkhead).is_err(), "it lasts until the body has passed");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "xxx");
    assert_eq!((bulkhead.in_use(), guard.breaker.get().unwrap().sums()), (0, Sums { calls: 1, failed: 0, slow: 0 }));
}

/// R4j's `TimeLimiter` lets a `CompletionStage` run on, and its result come to nothing.
#[tokio::test(start_paused = true)]
async fn what_ran_out_of_time_is_dropped() {
    let text = r#"{ "quotes": { "timeout": "5s", "attempt_timeout": "1s", "retry": { "attempts": 1 } } }"#;
    let guard = Registry::with_clock(policies(text), Clock::tokio()).unwrap().guard("quotes");
    let went_on = AtomicU32::new(0);
    let result = guard
        .call(|_| async {
            tokio::time::sleep(SECOND * 2).await;
            went_on.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(())
        })
        .await;
    assert_eq!(result.unwrap_err().rejected().unwrap().reason, Reason::Attempt);
    tokio::time::sleep(SECOND * 10).await;
    assert_eq!(went_on.load(Ordering::Relaxed), 0);
}

/// fs-go #141: when the budget is spent, hedges that are under way are ended.
#[tokio::test(start_paused = true)]
async fn an_empty_budget_ends_no_hedge_under_way() {
    let config = hedge::Config {
        delay: hedge::Delay::After(Period::secs(1)),
        budget: Ratio::percent(50),
        max: 2,
        ..hedge::Config::default()
    };
    let hedge = Hedge::new("payment".into(), config, Clock::tokio());
    let answer = |seconds: u64| async move {
        tokio::time::sleep(SECOND * seconds as u32).await;
        Ok::<_, Infallible>(seconds)
    };
    assert_eq!(hedge.call(|_| answer(0)).await, Ok(0));
    // The two have earned one hedge. It is made after a second, and is the only one that may be: others are refused
    // while it is under way.
    assert_eq!(hedge.call(|number| answer(if number == 1 { 60 } else { 5 })).await, Ok(5));
    assert_eq!(hedge.counts(), hedge::Counts { hedges: 1, won: 1, refused: 1 });
}

/// failsafe-rs #17: its type has the predicate in it, and cannot be written down in a struct.
#[test]
fn a_breaker_is_one_type_whatever_it_judges() {
    struct Client {
        breaker: Arc<Breaker>,
    }
    let client = Client { breaker: Bench::new(config()).breaker };
    let odd = |result: &Result<u32, ()>| -> Report {
        if matches!(result, Ok(number) if number % 2 == 0) { Outcome::Success } else { Outcome::Failure }.into()
    };
    let ask = |number| client.breaker.call_with(ready(Ok(number)), odd);
    let waker = futures_util::task::noop_waker();
    for number in 0..4 {
        let mut context = std::task::Context::from_waker(&waker);
        assert!(std::future::Future::poll(std::pin::pin!(ask(number)), &mut context).is_ready());
    }
    assert_eq!((client.breaker.counts().failed, client.breaker.state()), (2, State::Open));
}

fn patient_guard() -> Arc<Guard> {
    let policies = policies(
        r#"{"payment":{"timeout":"30s","retry":{"attempts":1},"breaker":{"window":"10 calls","minimum_calls":4}}}"#,
    );
    Arc::new(Guard::new("payment".into(), policies.of("payment"), Clock::tokio(), Arc::default()))
}

/// Time that the caller does not have says nothing about the service, until it is so long that the service should have
/// answered: then one that hangs opens the breaker although nobody has the patience to see it time out.
#[tokio::test(start_paused = true)]
async fn a_caller_without_time_accuses_nobody_and_one_with_some_does() {
    let guard = patient_guard();
    let breaker = guard.breaker.get().unwrap();
    for (left, cancelled, failed) in [(500, 1, 0), (1500, 1, 1)] {
        let deadline = Deadline::after(Duration::from_millis(left));
        let hang = |_| pending::<Result<(), &str>>();
        let error = deadline::scope(deadline, guard.call(hang)).await.unwrap_err();
        assert_eq!(error.rejected().unwrap().reason, Reason::Deadline);
        assert_eq!((breaker.counts().cancelled, breaker.sums().failed), (cancelled, failed), "{left} ms");
        let hang = |_| pending::<Result<http::Response<http_body_util::Empty<&[u8]>>, &str>>();
        let guard = patient_guard();
        let call = seawall_resilience::http::call(&guard, hang, seawall_resilience::http::failures);
        assert!(deadline::scope(Deadline::after(Duration::from_millis(left)), call).await.is_err());
        assert_eq!(guard.breaker.get().unwrap().sums().failed, failed, "{left} ms");
    }
}

/// A predicate of the caller's that panics counts as a failure and holds nothing.
#[tokio::test]
async fn a_panicking_predicate_of_a_guard_counts_as_a_failure() {
    let guard = patient_guard();
    // Each counts beside what its attempt was: two of four.
    for _ in 0..2 {
        let guard = guard.clone();
        let call = async move {
            let again =
                |_: &Result<(), CallError<&str>>| -> seawall_resilience::retry::Decision { panic!("on purpose") };
            let _ = guard.call_with(|_| ready(Ok::<_, &str>(())), &seawall_resilience::layer::Usual, again).await;
        };
        assert!(tokio::spawn(call).await.unwrap_err().is_panic());
    }
    let breaker = guard.breaker.get().unwrap();
    assert_eq!((breaker.counts().calls, breaker.counts().failed, breaker.state()), (4, 2, State::Open));
    let http = patient_guard();
    let (handle, call) =
        (http.clone(), |_| ready(Ok::<_, &str>(http::Response::new(http_body_util::Empty::<&[u8]>::new()))));
    let call = async move {
        let _ = seawall_resilience::http::call(&handle, call, |_| panic!("on purpose")).await;
    };
    assert!(tokio::spawn(call).await.unwrap_err().is_panic());
    assert_eq!(http.breaker.get().unwrap().counts().failed, 1);
    assert_eq!(guard.bulkhead.get().unwrap().in_use(), 0);
}

/// Whatever a program puts into the public configurations, no call panics, or hangs, because of it.
#[tokio::test(start_paused = true)]
async fn no_configuration_makes_a_call_panic() {
    use seawall_resilience::{RateLimiter, Throttle, adaptive, bulkhead, chaos, rate_limit, throttle};
    let (never, forever) = (Period::default(), Period::secs(u64::MAX));
    for wild in [never, forever] {
        for number in [0, 1, u32::MAX] {
            for factor in [f64::NAN, f64::NEG_INFINITY, -1.0, f64::INFINITY] {
                let config = bulkhead::Config {
                    concurrent: number,
                    wait: Period::millis(1),
                    queue: number,
                    shares: [Ratio::percent(0); 4],
                    adaptive: Some(adaptive::Config {
                        algorithm: adaptive::Algorithm::Aimd,
                        min: number,
                        max: 0,
                        initial: number,
                        latency: Some(wild),
                    }),
                };
                let bulkhead = Bulkhead::new("payment".into(), config, Clock::tokio());
                for _ in 0..3 {
                    if let Ok(place) = Bulkhead::acquire(&bulkhead, SECOND).await {
                        place.finish(adaptive::Ended::Served, Some(*wild));
                    }
                }
                let config = throttle::Config {
                    k: factor,
                    window: wild,
                    max_reject: Ratio::percent(100),
                    minimum_calls: number,
                };
                let throttle = Throttle::new("payment".into(), config, Clock::tokio());
                for _ in 0..3 {
                    let _ = throttle.admit().map(|permit| permit.refused());
                }
                let retry = Retry {
                    attempts: number.min(3),
                    backoff: wild,
                    max_backoff: wild,
                    multiplier: factor,
                    budget_floor: number,
                    ..Retry::default()
                };
                let retrier = Retrier::new("payment".into(), retry, Clock::tokio());
                let until = Clock::tokio().precise() + SECOND;
                let failing = |_| ready(Err::<(), _>(CallError::Inner("no")));
                let _ = retrier.call(Some(until), failing, seawall_resilience::retry::failures).await;
                for algorithm in [rate_limit::Algorithm::Gcra, rate_limit::Algorithm::TokenBucket] {
                    let config = rate_limit::Config {
                        algorithm,
                        burst: number,
                        wait: Period::millis(1),
                        rate: "1/s".parse().unwrap(),
                    };
                    let limiter = RateLimiter::new("payment".into(), config, Clock::tokio());
                    let _ = limiter.acquire(SECOND).await;
                }
            }
            let config = hedge::Config {
                delay: hedge::Delay::After(never),
                delay_floor: wild,
                minimum_calls: number,
                max: number.min(3),
                on_error: true,
                ..hedge::Config::default()
            };
            let hedge = Hedge::new("payment".into(), config, Clock::tokio());
            let _ = hedge.call(|_| ready(Err::<(), _>(()))).await;
            let config = chaos::Config {
                seed: None,
                fault: Ratio::percent(50),
                latency: chaos::Latency { share: Ratio::percent(100), by: never, jitter: wild },
                status: chaos::Status { share: Ratio::percent(100), code: 0 },
            };
            let _ = seawall_resilience::Chaos::new("payment".into(), Some(config)).decide();
        }
    }
}

/// How long a call has lasted is known to every host: it is slow, and given up late it is a failure.
#[tokio::test(start_paused = true)]
async fn a_call_has_its_age_from_when_it_is_made() {
    let text = r#"{"payment":{"timeout":"30s","retry":{"attempts":1},"bulkhead":{"concurrent":1,"wait":"20s"},
        "breaker":{"window":"10 calls","minimum_calls":10,"slow_call":"100ms"}}}"#;
    let guard = Registry::with_clock(policies(text), Clock::tokio()).unwrap().guard("payment");
    let breaker = guard.breaker.get().unwrap();
    let takes = |millis| {
        guard.call(move |_| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Ok::<_, &str>(())
        })
    };
    // The second one waits for longer than a slow call takes, and is quick itself.
    let (slow, quick) = tokio::join!(takes(300), takes(10));
    assert!(slow.is_ok() && quick.is_ok());
    assert_eq!((breaker.sums().calls, breaker.sums().slow), (2, 1));

    // Who waits in vain accuses nobody; who has called in vain does.
    let hog = guard.admit(seawall_resilience::Priority::Normal, SECOND).await.unwrap();
    assert!(tokio::time::timeout(15 * SECOND, takes(1)).await.is_err());
    drop(hog);
    assert_eq!((breaker.counts().cancelled, breaker.sums().failed), (2, 0));
    let service = service_fn(|_: http::Request<()>| pending::<Result<http::Response<String>, Infallible>>());
    let served = HttpGuardLayer::new(guard.clone()).layer(service).oneshot(http::Request::new(()));
    assert!(tokio::time::timeout(2 * SECOND, served).await.is_err());
    assert_eq!(breaker.sums().failed, 1);
}

/// A policy's own bound for a chain holds within a larger one, and how much a call matters is ambient like its deadline.
#[tokio::test(start_paused = true)]
async fn what_is_ambient_and_what_the_policy_says_hold_together() {
    use seawall_resilience::{Chain, Priority};
    let text = r#"{"payment":{"retry":{"attempts":6,"chain":1,"budget_floor":100},"bulkhead":{"concurrent":2,"shares":{"low":"50%"}}}}"#;
    let guard = Registry::with_clock(policies(text), Clock::tokio()).unwrap().guard("payment");
    let made = AtomicU32::new(0);
    let fail = |_| {
        made.fetch_add(1, Ordering::Relaxed);
        ready(Err::<(), _>("no"))
    };
    let around = Chain::new(10);
    assert!(around.clone().scope(guard.call(fail)).await.is_err());
    assert_eq!((made.swap(0, Ordering::Relaxed), around.left()), (2, 9));
    assert!(Chain::new(0).scope(guard.call(fail)).await.is_err());
    assert_eq!(made.load(Ordering::Relaxed), 1);

    let _place = guard.admit(Priority::Normal, Duration::ZERO).await.unwrap();
    let work = |_| ready(Ok::<_, &str>(()));
    let shed = Priority::Low.scope(guard.call(work)).await.unwrap_err();
    assert_eq!(shed.rejected().unwrap().reason, Reason::Shed);
    assert!(guard.call(work).await.is_ok());
}

/// A rejection is no promise that nothing was done when an earlier attempt, or one beside it, had been made.
#[tokio::test(start_paused = true)]
async fn a_rejection_knows_of_the_attempts_before_it() {
    let text = r#"{"payment":{"retry":{"attempts":3,"budget_floor":100},"breaker":{"window":"1 consecutive"},
        "hedge":{"delay":"10ms","on_error":true,"budget":"100%"}}}"#;
    let guard = || Registry::with_clock(policies(text), Clock::tokio()).unwrap().guard("payment");
    let first = guard();
    let error = first.call(|_| ready(Err::<(), _>("no"))).await.unwrap_err();
    assert!(matches!(error, CallError::Rejected(rejected) if rejected.reason == Reason::Open && rejected.had_begun()));
    let error = first.call(|_| ready(Err::<(), _>("no"))).await.unwrap_err();
    assert!(matches!(error, CallError::Rejected(rejected) if !rejected.had_begun()), "this one was never made");
    let answer = |_| ready(Err::<http::Response<http_body_util::Empty<&[u8]>>, _>("no"));
    let error =
        seawall_resilience::http::call(&guard(), answer, seawall_resilience::http::failures).await.err().unwrap();
    assert!(matches!(error, CallError::Rejected(rejected) if rejected.had_begun()));

    // The same of layers: the second attempt is turned away by the breaker within.
    let breaker = Arc::new(Breaker::new(
        "payment".into(),
        Config { window: Window::Consecutive(1), ..config() },
        Clock::tokio(),
        Box::new(|_| {}),
    ));
    let retry = Retry { attempts: 2, budget: Ratio::percent(100), ..Retry::default() };
    let service = ServiceBuilder::new()
        .layer(
            RetryLayer::new(Arc::new(Retrier::new("payment".into(), retry, Clock::tokio())))
                .decide(seawall_resilience::retry::failures_and_rejections::<(), &str>),
        )
        .layer(BreakerLayer::new(breaker))
        .layer(errors())
        .service(service_fn(|()| ready(Err::<(), _>("no"))));
    let error = service.oneshot(()).await.unwrap_err();
    assert!(matches!(error, CallError::Rejected(rejected) if rejected.had_begun()), "{error:?}");
}

/// Failures are no refusals: the service took the calls on.
#[test]
fn a_throttle_counts_what_failed_as_taken_on() {
    let failure = |overloaded| Report { overloaded, ..Outcome::Failure.into() };
    let accepted = |report: Report| seawall_resilience::accepted(&report);
    assert_eq!((accepted(failure(true)), accepted(failure(false))), (Some(false), Some(true)));
    assert_eq!((accepted(Outcome::Success.into()), accepted(Outcome::Ignored.into())), (Some(true), None));
}

/// The same of layers: callers without time open no breaker, throttle nobody and shrink no limit for the others.
#[tokio::test(start_paused = true)]
async fn callers_without_time_accuse_nobody_through_layers_either() {
    use seawall_resilience::layer::{BulkheadLayer, ThrottleLayer, TimeoutLayer};
    use seawall_resilience::timeout::Timeout;
    use seawall_resilience::{Throttle, throttle};
    let config = Config { window: Window::Consecutive(3), ..config() };
    let breaker = Arc::new(Breaker::new("payment".into(), config, Clock::tokio(), Box::new(|_| {})));
    let times = seawall_resilience::timeout::Config { total: Period::secs(10), attempt: None };
    let timeout = Arc::new(Timeout::new("payment".into(), times));
    let settings =
        throttle::Config { k: 1.0, window: Period::secs(120), max_reject: Ratio::percent(90), minimum_calls: 1 };
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::total(timeout.clone()))
        .layer(ThrottleLayer::new(Arc::new(Throttle::new("payment".into(), settings, Clock::tokio()))))
        .layer(BreakerLayer::new(breaker.clone()))
        .layer(BulkheadLayer::new(Arc::new(Bulkhead::new(
            "payment".into(),
            seawall_resilience::bulkhead::Config::places(5),
            Clock::tokio(),
        ))))
        .layer(TimeoutLayer::attempt(timeout))
        .layer(errors())
        .service(service_fn(|()| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<_, &str>(())
        }));
    for left in [0, 5, 5, 5, 5, 5, 5, 5] {
        let call = deadline::scope(Deadline::after(Duration::from_millis(left)), service.clone().oneshot(()));
        assert!(matches!(call.await, Err(CallError::Rejected(rejected)) if rejected.reason == Reason::Deadline));
    }
    assert_eq!((breaker.state(), breaker.counts().failed), (State::Closed, 0));
    assert!(service.oneshot(()).await.is_ok());
}

/// What a guard tells its throttle, and what a reload tells guards that are made later and hedges that are there.
#[tokio::test(start_paused = true)]
async fn a_guard_tells_its_policies_and_a_reload_tells_every_guard() {
    let text =
        r#"{"payment":{"retry":{"attempts":1},"throttle":{"k":1.5,"minimum_calls":10},"breaker":{"enabled":false}}}"#;
    let registry = Registry::with_clock(policies(text), Clock::tokio()).unwrap();
    let guard = registry.guard("payment");
    for outcome in [Ok(()), Err("no")] {
        for _ in 0..200 {
            assert!(!matches!(guard.call(move |_| ready(outcome)).await, Err(CallError::Rejected(_))), "{outcome:?}");
        }
    }
    assert_eq!(guard.throttle.get().unwrap().counts(), (400, 400));

    registry.reload(policies(r#"{"payment":{"timeout":"3s"},"order":{"timeout":"4s"}}"#)).unwrap();
    for (service, seconds) in [("payment", 3), ("order", 4)] {
        assert_eq!(registry.guard(service).policy().timeout, Period::secs(seconds), "{service}");
    }

    let config = hedge::Config {
        delay: hedge::Delay::After(Period::millis(1)),
        budget: Ratio::percent(0),
        ..hedge::Config::default()
    };
    let hedge = Hedge::new("payment".into(), config, Clock::tokio());
    let slow = |_| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok::<_, ()>(())
    };
    hedge.call(slow).await.unwrap();
    assert_eq!((hedge.counts().hedges, hedge.counts().refused), (0, 1));
    hedge.reload(hedge::Config { budget: Ratio::percent(100), ..config });
    hedge.call(slow).await.unwrap();
    assert_eq!(hedge.counts().hedges, 1);
}

/// Among layers the breaker stands around the queue of the bulkhead: that time is not the service's.
#[tokio::test(start_paused = true)]
async fn the_queue_within_a_breaker_is_not_the_services_time() {
    use seawall_resilience::layer::BulkheadLayer;
    let config = Config { slow_call: Some(Period::millis(300)), ..config() };
    let breaker = Arc::new(Breaker::new("payment".into(), config, Clock::tokio(), Box::new(|_| {})));
    let places = seawall_resilience::bulkhead::Config {
        wait: Period::secs(20),
        ..seawall_resilience::bulkhead::Config::places(1)
    };
    let bulkhead = Arc::new(Bulkhead::new("payment".into(), places, Clock::tokio()));
    let service = ServiceBuilder::new()
        .layer(BreakerLayer::new(breaker.clone()))
        .layer(BulkheadLayer::new(bulkhead.clone()))
        .layer(errors())
        .service(service_fn(|millis: u64| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Ok::<_, &str>(())
        }));
    let hog = Bulkhead::try_acquire(bulkhead.clone()).unwrap();
    // One leaves the queue, one is served after it, and one that is slow is slow nevertheless.
    assert!(tokio::time::timeout(5 * SECOND, service.clone().oneshot(1)).await.is_err());
    let served = tokio::spawn(service.clone().oneshot(200));
    tokio::time::sleep(5 * SECOND).await;
    drop(hog);
    served.await.unwrap().unwrap();
    assert_eq!((breaker.sums().calls, breaker.sums().failed, breaker.sums().slow), (1, 0, 0));
    service.clone().oneshot(400).await.unwrap();
    assert_eq!((breaker.sums().calls, breaker.sums().slow), (2, 1));
    assert!(tokio::time::timeout(2 * SECOND, service.oneshot(5000)).await.is_err());
    assert_eq!(breaker.sums().failed, 1);
}

/// A caller in a hurry accuses nobody, however deep: what is called keeps to its time too, and may be first to say so.
#[tokio::test(start_paused = true)]
async fn a_hurry_accuses_nobody_at_any_depth() {
    let (outer, inner) = (patient_guard(), patient_guard());
    for _ in 0..6 {
        let nested = |_| async { inner.call(|_| pending::<Result<(), &str>>()).await.map_err(|_| "inner") };
        let soon = Deadline::after(Duration::from_millis(30));
        assert!(deadline::scope(soon, outer.call(nested)).await.is_err());
        // A server that is told the time, and answers for what it calls; the hop rounds it down.
        let callee = inner.clone();
        let handler = service_fn(move |_: http::Request<()>| {
            let callee = callee.clone();
            async move {
                let downstream = callee.call(|_| pending::<Result<(), &str>>()).await;
                let status = if downstream.is_err() { 503 } else { 200 };
                Ok::<_, Infallible>(http::Response::builder().status(status).body(String::new()).unwrap())
            }
        });
        let request = http::Request::builder().header("seawall-timeout-ms", "30").body(()).unwrap();
        let server = HttpGuardLayer::new(outer.clone()).layer(handler);
        let answer = server.oneshot(request).await.unwrap();
        assert!(answer.status().is_server_error());
        let soon = Deadline::after(Duration::from_millis(30));
        let silent = service_fn(|_: http::Request<()>| pending::<Result<http::Response<String>, Infallible>>());
        let ambient = HttpGuardLayer::new(outer.clone()).layer(silent).oneshot(http::Request::new(()));
        assert_eq!(deadline::scope(soon, ambient).await.unwrap().status(), 504);
        let hop = |_| async {
            tokio::time::sleep(deadline::current().unwrap().left() - Duration::from_millis(1)).await;
            Ok::<_, &str>(http::Response::builder().status(504).body(http_body_util::Empty::<&[u8]>::new()).unwrap())
        };
        let soon = Deadline::after(Duration::from_millis(30));
        let _ = deadline::scope(soon, seawall_resilience::http::call(&outer, hop, seawall_resilience::http::failures))
            .await;
    }
    for guard in [&outer, &inner] {
        let breaker = guard.breaker.get().unwrap();
        assert_eq!((breaker.state(), breaker.counts().failed), (State::Closed, 0));
    }
}

/// What one attempt may take is what the next hop is told.
#[tokio::test(start_paused = true)]
async fn the_time_of_an_attempt_is_passed_on() {
    let text = r#"{"payment":{"timeout":"2s","attempt_timeout":"800ms"}}"#;
    let guard = Registry::with_clock(policies(text), Clock::tokio()).unwrap().guard("payment");
    let left = |_| async { Ok::<_, &str>(deadline::current().unwrap().left()) };
    assert_eq!(guard.call(left).await, Ok(Duration::from_millis(800)));
}
