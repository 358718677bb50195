use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use seawall_types::{Period, Ratio};

use super::control::RAMP;
use super::*;
use crate::PolicyName;
use crate::clock::Manual;

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

/// A breaker, a clock that stands still until told otherwise, and what the listener has heard.
struct Bench {
    breaker: Arc<Breaker>,
    clock: Manual,
    heard: Arc<Mutex<Vec<Event>>>,
}

impl Bench {
    fn new(config: Config) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        let listener: Listener = Box::new(move |event| sink.lock().unwrap().push(*event));
        let (clock, hand) = Clock::manual();
        Self { breaker: Arc::new(Breaker::new("payment".into(), config, clock, listener)), clock: hand, heard }
    }

    fn permit(&self) -> Result<Permit<Arc<Breaker>>, Rejected> {
        Breaker::try_acquire(self.breaker.clone())
    }

    fn calls(&self, outcomes: &str) -> State {
        for outcome in outcomes.chars() {
            self.permit().expect("admitted").finish(match outcome {
                's' => Outcome::Success,
                'f' => Outcome::Failure,
                _ => Outcome::Ignored,
            });
        }
        self.breaker.state()
    }

    fn wait(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Open, and long enough for a probe.
    fn ready_to_probe(config: Config) -> Self {
        let bench = Self::new(config);
        assert_eq!(bench.calls("ffff"), State::Open);
        bench.wait(31);
        bench
    }

    fn moves(&self) -> Vec<(State, State)> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter_map(|event| if let Event::Moved(t) = event { Some((t.from, t.to)) } else { None }).collect()
    }
}

#[test]
fn opens_at_the_rate_and_not_before_the_minimum() {
    for (outcomes, state) in [
        ("fff", State::Closed),
        ("ffff", State::Open),
        ("sssf", State::Closed),
        ("ffss", State::Open),
        ("ssff", State::Open),
        ("iiiifff", State::Closed),
        ("ssssssfff", State::Closed),
        ("sssssfffff", State::Open),
        ("ssssssssssffff", State::Closed),
        // The window slides: the ten successes have left it.
        ("ssssssssssfffff", State::Open),
    ] {
        assert_eq!(Bench::new(config()).calls(outcomes), state, "{outcomes}");
    }
}

#[test]
fn slow_calls_open_it() {
    let slow = |share| {
        let limits = Limits { slow_rate: Ratio::percent(share), ..config().limits };
        let bench = Bench::new(Config { slow_call: Some(Period::secs(1)), limits, ..config() });
        for seconds in [0, 2, 2, 1, 2] {
            let permit = bench.permit().unwrap();
            bench.wait(seconds);
            permit.finish(Outcome::Success);
        }
        bench.breaker.state()
    };
    assert_eq!(slow(60), State::Open, "three of five; exactly a second is not slow");
    assert_eq!(slow(61), State::Closed);
}

#[test]
fn a_time_window_forgets() {
    let bench = Bench::new(Config { window: Window::Time(Period::secs(10)), ..config() });
    assert_eq!(bench.calls("fff"), State::Closed);
    bench.wait(11);
    assert_eq!(bench.calls("fff"), State::Closed, "the first three are past");
    assert_eq!(bench.calls("s"), State::Open, "the fourth call makes the minimum, whatever it is");
    // Successes that go out of the window may leave failures behind that are too many.
    let bench = Bench::new(Config { window: Window::Time(Period::secs(10)), ..config() });
    assert_eq!(bench.calls("ssssss"), State::Closed);
    bench.wait(5);
    assert_eq!(bench.calls("fffff"), State::Closed);
    bench.wait(5);
    assert_eq!(bench.calls("s"), State::Open, "five of six");
}

#[test]
fn failures_in_a_row() {
    let bench = Bench::new(Config { window: Window::Consecutive(3), ..config() });
    assert_eq!(bench.calls("ffsffsff"), State::Closed);
    assert_eq!(bench.calls("f"), State::Open);
    assert_eq!(bench.breaker.counts().calls, 9);
}

#[test]
fn an_open_breaker_says_how_long() {
    let bench = Bench::new(config());
    assert_eq!(bench.calls("ffff"), State::Open);
    bench.wait(10);
    let rejected = bench.permit().unwrap_err();
    assert_eq!((rejected.policy, rejected.reason), (PolicyName::Breaker, Reason::Open));
    assert_eq!(rejected.retry_after, Some(Duration::from_secs(20)));
    assert_eq!(bench.breaker.open_for(), Duration::from_secs(20));
}

#[test]
fn probes_decide() {
    for (verdict, probes, state) in [
        (Verdict::Rate, "sss", State::Closed),
        (Verdict::Rate, "ff", State::Open),
        (Verdict::Rate, "sfs", State::Closed),
        (Verdict::Rate, "sff", State::Open),
        (Verdict::All, "ssf", State::Open),
        (Verdict::All, "sss", State::Closed),
        (Verdict::Ramp, "sss", State::HalfOpen),
        (Verdict::Ramp, "ff", State::Open),
    ] {
        let bench = Bench::ready_to_probe(Config { verdict, ..config() });
        assert_eq!(bench.calls(probes), state, "{verdict:?} {probes}");
        let mut expected = vec![(State::Closed, State::Open), (State::Open, State::HalfOpen)];
        if state != State::HalfOpen {
            expected.push((State::HalfOpen, state));
        }
        assert_eq!(bench.moves(), expected);
    }
}

#[test]
fn a_ramp_lets_more_and_more_pass() {
    let bench = Bench::ready_to_probe(Config { verdict: Verdict::Ramp, ..config() });
    assert_eq!(bench.calls("sss"), State::HalfOpen);
    for one_in in RAMP {
        assert_eq!(bench.breaker.state(), State::HalfOpen);
        let mut asked = 0;
        for _ in 0..3 {
            let permit = loop {
                asked += 1;
                match bench.permit() {
                    Ok(permit) => break permit,
                    Err(rejected) => assert_eq!(rejected.reason, Reason::HalfOpen),
                }
            };
            permit.finish(Outcome::Success);
        }
        assert!(asked <= 3 * one_in && asked > 2 * (one_in - 1), "{asked} asked for 3 at 1 in {one_in}");
    }
    assert_eq!(bench.breaker.state(), State::Closed);
}

#[test]
fn probes_are_counted_and_a_lost_one_frees_its_place() {
    let bench = Bench::ready_to_probe(config());
    let mut probes: Vec<_> = (0..3).map(|_| bench.permit().unwrap()).collect();
    assert_eq!(bench.permit().unwrap_err().reason, Reason::HalfOpen);
    drop(probes.pop());
    let again = bench.permit().expect("the place of the cancelled probe");
    assert_eq!(bench.permit().unwrap_err().reason, Reason::HalfOpen);
    for probe in probes {
        probe.finish(Outcome::Success);
    }
    assert_eq!(bench.breaker.state(), State::HalfOpen);
    again.finish(Outcome::Success);
    assert_eq!(bench.breaker.state(), State::Closed);
}

#[test]
fn probes_that_never_come_back_are_replaced() {
    let bench = Bench::ready_to_probe(config());
    let lost: Vec<_> = (0..3).map(|_| bench.permit().unwrap()).collect();
    let rejected = bench.permit().unwrap_err();
    assert_eq!((rejected.reason, rejected.retry_after), (Reason::HalfOpen, Some(Duration::from_secs(30))));
    bench.wait(30);
    assert_eq!(bench.calls("s"), State::HalfOpen);
    for probe in lost {
        probe.finish(Outcome::Failure);
    }
    assert_eq!(bench.breaker.counts().late, 3);
    assert_eq!(bench.calls("ss"), State::Closed);
}

#[test]
fn late_results_decide_nothing() {
    let bench = Bench::new(config());
    let late: Vec<_> = (0..8).map(|_| bench.permit().unwrap()).collect();
    bench.calls("ffff");
    bench.wait(31);
    let probe = bench.permit().unwrap();
    for permit in late {
        permit.finish(Outcome::Failure);
    }
    assert_eq!(bench.breaker.state(), State::HalfOpen);
    probe.finish(Outcome::Success);
    bench.calls("ss");
    assert_eq!(bench.breaker.state(), State::Closed);
    assert_eq!(bench.breaker.sums(), Sums::default(), "the new closed state starts afresh");
}

#[test]
fn a_probe_of_an_earlier_round_does_not_erase_what_a_later_one_has_counted() {
    let bench = Bench::ready_to_probe(config());
    let earlier = Control::unpack(bench.breaker.hot.0.control.load(Ordering::Acquire)).epoch + 1;
    let lost: Vec<_> = (0..3).map(|_| bench.permit().unwrap()).collect();
    bench.wait(30);
    assert_eq!(bench.calls("f"), State::HalfOpen, "the next round has begun");
    // As if it had looked at the control word just before that round.
    bench.breaker.observe_probe(earlier, false, false, bench.breaker.clock.now());
    assert_eq!(bench.calls("f"), State::Open, "two of three have failed");
    assert_eq!(bench.breaker.counts().late, 1);
    drop(lost);
    assert!(control::is_later(0, (1 << 27) - 1) && !control::is_later((1 << 27) - 1, 0) && !control::is_later(5, 5));
}

#[test]
fn another_number_of_probes_does_not_wedge_it() {
    for probe_lease in [None, Some(Period::secs(30))] {
        let bench = Bench::ready_to_probe(Config { half_open_calls: 4, probe_lease, ..config() });
        assert_eq!(bench.calls("sss"), State::HalfOpen);
        bench.breaker.reload(Config { half_open_calls: 2, probe_lease, ..config() });
        assert_eq!(bench.calls("ss"), State::Closed, "{probe_lease:?}");
    }
}

#[test]
fn a_call_given_up_speaks_by_its_age() {
    for (seconds, state) in [(0, State::Closed), (1, State::Open)] {
        let bench = Bench::new(config());
        for _ in 0..5 {
            let permit = bench.permit();
            bench.wait(seconds);
            drop(permit);
        }
        assert_eq!(bench.breaker.state(), state, "after {seconds} s");
        assert_eq!(bench.breaker.counts().cancelled, if seconds == 0 { 5 } else { 0 });
    }
}

#[test]
fn the_wait_grows_until_it_has_closed() {
    let bench = Bench::new(Config { open_growth: 2.0, max_open_for: Period::secs(100), ..config() });
    bench.calls("ffff");
    for seconds in [30, 60, 100, 100] {
        assert_eq!(bench.breaker.open_for(), Duration::from_secs(seconds));
        bench.wait(seconds);
        bench.calls("ff");
    }
    bench.wait(100);
    assert_eq!(bench.calls("sss"), State::Closed);
    bench.calls("ffff");
    assert_eq!(bench.breaker.open_for(), Duration::from_secs(30));
    let jittered = Config { open_jitter: Ratio::percent(50), ..config() };
    assert_eq!(jittered.open_wait(1, 0.0), Duration::from_secs(15));
    assert_eq!(jittered.open_wait(1, 1.0), Duration::from_secs(45));
    assert_eq!(Config { open_growth: 10.0, ..config() }.open_wait(u32::MAX, 0.5), Duration::from_secs(300));
}

#[test]
fn it_waits_as_long_as_the_service_asks() {
    let bench = Bench::new(Config { retry_after: true, max_open_for: Period::secs(60), ..config() });
    let report = |seconds| Report { retry_after: Some(Duration::from_secs(seconds)), ..Outcome::Failure.into() };
    for _ in 0..4 {
        bench.permit().unwrap().finish(report(45));
    }
    assert_eq!(bench.breaker.open_for(), Duration::from_secs(45));
    bench.wait(45);
    for _ in 0..2 {
        bench.permit().unwrap().finish(report(1000));
    }
    assert_eq!(bench.breaker.open_for(), Duration::from_secs(60), "the service is not believed everything");
}

#[test]
fn the_operator_decides() {
    let bench = Bench::new(config());
    bench.breaker.set(State::ForcedOpen);
    bench.wait(3600);
    let rejected = bench.permit().unwrap_err();
    assert_eq!((rejected.reason, rejected.retry_after), (Reason::ForcedOpen, None));
    bench.breaker.set(State::Disabled);
    assert_eq!(bench.calls("ffffffffffff"), State::Disabled);
    bench.breaker.set(State::MetricsOnly);
    assert_eq!(bench.calls("ffffffffffff"), State::MetricsOnly);
    assert_eq!(bench.breaker.counts().would_open, 1, "told once, not for each call");
    bench.breaker.set(State::Closed);
    assert_eq!(bench.calls("ffff"), State::Open);
    bench.breaker.set(State::Closed);
    assert_eq!(bench.calls("fff"), State::Closed, "closing it by hand begins anew");
}

#[test]
fn thresholds_can_be_tried_before_they_count() {
    let watch = Limits { failure_rate: Ratio::percent(25), ..config().limits };
    let bench = Bench::new(Config { watch: Some(watch), ..config() });
    assert_eq!(bench.calls("sssf"), State::Closed);
    let sums = Sums { calls: 4, failed: 1, slow: 0 };
    assert_eq!(*bench.heard.lock().unwrap(), [Event::WouldOpen(sums)]);
    bench.calls("ssssf");
    assert_eq!(bench.breaker.counts().would_open, 1, "22% came in between, unseen: no failure made it so");
    bench.calls("sssssssssf");
    bench.calls("f");
    bench.calls("f");
    assert_eq!(bench.breaker.counts().would_open, 2);
}

#[test]
fn a_reload_loses_nothing() {
    let bench = Bench::new(config());
    bench.calls("ssf");
    let limits = Limits { failure_rate: Ratio::percent(30), minimum_calls: 3, ..config().limits };
    bench.breaker.reload(Config { limits, ..config() });
    assert_eq!(bench.breaker.sums(), Sums { calls: 3, failed: 1, slow: 0 }, "the window is kept");
    assert_eq!(bench.calls("s"), State::Closed);
    assert_eq!(bench.calls("f"), State::Open, "two of five, by the new rate");
    bench.breaker.reload(Config { window: Window::Time(Period::secs(5)), ..config() });
    assert_eq!((bench.breaker.state(), bench.breaker.open_for()), (State::Open, Duration::from_secs(30)));
    bench.wait(30);
    assert_eq!(bench.calls("sss"), State::Closed);
    let early = bench.permit().unwrap();
    bench.breaker.reload(config());
    early.finish(Outcome::Failure);
    assert_eq!(bench.breaker.sums(), Sums::default(), "what was admitted under another window is counted in none");
    bench.breaker.reload(Config { mode: Mode::ForcedOpen, ..config() });
    assert_eq!(bench.breaker.state(), State::ForcedOpen);
    bench.breaker.set(State::Closed);
    bench.breaker.reload(Config { mode: Mode::ForcedOpen, half_open_calls: 1, ..config() });
    assert_eq!(bench.breaker.state(), State::Closed, "what has not changed in the file does not undo an order");
}

#[test]
fn it_knows_why_it_opened() {
    let bench = Bench::new(config());
    for number in 0..12u8 {
        let Ok(permit) = bench.permit() else { continue };
        bench.wait(1);
        let outcome = if number < 6 { Outcome::Success } else { Outcome::Failure };
        permit.finish(Report { cause: "status 503", trace: u128::from(number), ..outcome.into() });
    }
    let calls = bench.breaker.bad_calls();
    assert_eq!(calls.iter().map(|call| call.trace).collect::<Vec<_>>(), [6, 7, 8, 9, 10]);
    assert_eq!((calls[0].took, calls[0].cause), (Some(Duration::from_secs(1)), "status 503"));
}

#[test]
fn calls_are_told_of_on_request() {
    let bench = Bench::new(config());
    bench.calls("s");
    bench.breaker.tell_calls(true);
    bench.calls("s");
    bench.breaker.set(State::ForcedOpen);
    let _ = bench.permit();
    let heard = bench.heard.lock().unwrap();
    assert!(matches!(heard[..], [Event::Call(_), Event::Moved(_), Event::Rejected(Reason::ForcedOpen)]), "{heard:?}");
}

#[tokio::test]
async fn a_call_is_judged_and_a_panic_counts() {
    let bench = Bench::new(Config { limits: Limits { minimum_calls: 2, ..config().limits }, ..config() });
    let breaker = &bench.breaker;
    assert_eq!(breaker.call(async { Ok::<_, ()>(7) }).await, Ok(7));
    assert_eq!(breaker.call_blocking(|| Err::<(), _>("no")), Err(CallError::Inner("no")));
    assert_eq!(breaker.state(), State::Open);
    assert!(matches!(breaker.call(async { Ok::<_, ()>(7) }).await, Err(CallError::Rejected(_))));
    for panics in 0..3 {
        let bench = Bench::new(config());
        for _ in 0..4 {
            let breaker = bench.breaker.clone();
            let call = async move {
                match panics {
                    0 => breaker.call(async { panic!("in the call") as Result<(), ()> }).await,
                    1 => breaker.call_with(async { Ok(()) }, |_| panic!("in the judge")).await,
                    _ => breaker.call_blocking(|| panic!("in the blocking call")),
                }
            };
            assert!(tokio::spawn(call).await.unwrap_err().is_panic());
        }
        assert_eq!(bench.breaker.state(), State::Open, "{panics}");
        assert_eq!(bench.breaker.bad_calls()[0].cause, "panicked");
    }
}

#[tokio::test]
async fn an_outer_time_limit_is_seen() {
    let bench = Bench::new(config());
    for _ in 0..4 {
        let mut call = Box::pin(bench.breaker.call(std::future::pending::<Result<(), ()>>()));
        assert!(futures_util::poll!(&mut call).is_pending());
        bench.wait(2);
        drop(call);
    }
    assert_eq!(bench.breaker.state(), State::Open);
}

#[test]
fn racing_callers_never_exceed_the_probes() {
    let bench = Bench::ready_to_probe(config());
    let admitted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..125 {
                    if let Ok(permit) = bench.permit() {
                        admitted.fetch_add(1, Ordering::Relaxed);
                        std::mem::forget(permit);
                    }
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 3);
}

#[test]
fn threads_recording_together_lose_nothing() {
    for window in [Window::Calls(1000), Window::Time(Period::secs(10))] {
        let limits = Limits { minimum_calls: 10_000, ..config().limits };
        let bench = Bench::new(Config { window, limits, slow_call: Some(Period::secs(1)), ..config() });
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let bench = &bench;
                scope.spawn(move || {
                    for i in 0..250 {
                        let outcome = if (i + thread) % 5 == 0 { Outcome::Failure } else { Outcome::Success };
                        let took = Some(Duration::from_secs(if i % 2 == 0 { 2 } else { 0 }));
                        Breaker::try_acquire(&*bench.breaker).unwrap().finish(Report { took, ..outcome.into() });
                    }
                });
            }
        });
        // A window of calls has had its verdict at its thousandth.
        let counts = bench.breaker.counts();
        assert_eq!((counts.calls, counts.failed, counts.slow), (1000, 200, 500), "{window}");
        if let Window::Time(_) = window {
            assert_eq!(bench.breaker.sums(), Sums { calls: 1000, failed: 200, slow: 500 });
        }
    }
}

#[test]
fn it_is_small() {
    let bench = Bench::new(Config { window: Window::Time(Period::secs(10)), ..config() });
    bench.calls("s");
    assert!(size_of::<Breaker>() + 512 * 8 + size_of::<Config>() <= 5 * 1024, "{}", size_of::<Breaker>());
    assert!(size_of::<Permit<&Breaker>>() <= 24);
}

proptest! {
    /// Ages of the machine, any size of slice: the sums are those of the calls that are young enough.
    #[test]
    fn slices_are_the_last_seconds(
        start in 0u64..1 << 50,
        ms in 10u64..100_000,
        gaps in proptest::collection::vec((0u64..1 << 33, any::<bool>(), any::<bool>()), 1..100),
    ) {
        let config = Config { window: Window::Time(Period::millis(ms)), ..config() };
        let shape = Shape::of(&config).word();
        let slice = Shape::size(shape);
        let slices = Slices::default();
        let mut now = Tick::from_nanos(start);
        let mut model = Vec::new();
        for (gap, failed, slow) in gaps {
            now += Duration::from_nanos(gap % (3 * ms * 1_000_000));
            slices.record(shape, failed, slow, now);
            model.push((now.nanos() / slice, failed, slow));
            let young = || model.iter().filter(|(number, ..)| now.nanos() / slice - number < 10);
            let sums = slices.sums(shape, now);
            prop_assert_eq!(sums.calls as usize, young().count());
            prop_assert_eq!(sums.failed as usize, young().filter(|(_, failed, _)| *failed).count());
            prop_assert_eq!(sums.slow as usize, young().filter(|(.., slow)| *slow).count());
            prop_assert_eq!(slices.total(shape), model.len() as u64);
        }
    }
}

#[test]
fn values_beyond_their_range_become_the_nearest_within() {
    let beyond = |window| Config {
        window,
        limits: Limits { minimum_calls: 0, ..config().limits },
        open_for: Period::secs(u64::MAX),
        open_growth: f64::NAN,
        max_open_for: Period::default(),
        half_open_calls: 0,
        watch: Some(Limits { minimum_calls: u32::MAX, ..config().limits }),
        ..config()
    };
    let windows = [Window::Calls(0), Window::Calls(20_000), Window::Consecutive(0), Window::Time(Period::default())];
    for window in windows.into_iter().chain([Window::Time(Period::secs(u64::MAX))]) {
        for growth in [f64::NAN, -1.0, f64::INFINITY] {
            let bench = Bench::new(Config { open_growth: growth, ..beyond(window) });
            assert_eq!(bench.calls("f"), State::Open, "{window}");
            bench.wait(366 * 24 * 3600);
            assert_eq!(bench.calls("s"), State::Closed, "{window}");
            bench.breaker.reload(Config { open_growth: growth, ..beyond(window) });
            assert_eq!(bench.calls("f"), State::Open, "{window}");
        }
    }
}

/// A verdict that only the new thresholds give waits for no further failure.
#[test]
fn a_reload_that_lowers_the_threshold_decides_at_the_next_call() {
    let bench = Bench::new(config());
    assert_eq!(bench.calls("fssssssss"), State::Closed);
    let limits = Limits { failure_rate: Ratio::percent(10), ..config().limits };
    bench.breaker.reload(Config { limits, ..config() });
    assert_eq!(bench.breaker.state(), State::Closed);
    assert_eq!(bench.calls("s"), State::Open);
}

#[test]
fn an_order_forgets_what_the_service_has_asked_for() {
    let config = Config { retry_after: true, max_open_for: Period::secs(600), ..config() };
    let bench = Bench::new(config);
    let report = Report { retry_after: Some(Duration::from_secs(500)), ..Outcome::Failure.into() };
    bench.permit().unwrap().finish(report);
    bench.breaker.set(State::Closed);
    assert_eq!(bench.calls("ffff"), State::Open);
    assert_eq!(bench.breaker.open_for(), Duration::from_secs(30));
}

/// The executor catches a panic while the call's future lives on, and drops that much later.
#[test]
fn a_panic_counts_although_the_future_is_dropped_long_after() {
    let bench = Bench::new(config());
    for _ in 0..4 {
        let mut call =
            Box::pin(bench.breaker.call(async { if true { panic!("on purpose") } else { Ok::<_, ()>(()) } }));
        let poll = std::panic::AssertUnwindSafe(|| {
            let _ = call.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        });
        assert!(std::panic::catch_unwind(poll).is_err());
        drop(call);
    }
    assert_eq!((bench.breaker.state(), bench.breaker.counts().failed), (State::Open, 4));
    assert_eq!(bench.breaker.bad_calls()[0].cause, "panicked");
}

#[test]
fn a_reload_that_shortens_the_lease_frees_who_waits_for_a_lost_probe() {
    let exact = Config { semantics: Semantics::Resilience4j, probe_lease: None, half_open_calls: 1, ..config() };
    let long = Config { probe_lease: Some(Period::secs(30 * 24 * 3600)), half_open_calls: 1, ..config() };
    for before in [exact.clone(), long] {
        for after in [Config { semantics: exact.semantics, ..before.clone() }, config()] {
            let bench = Bench::ready_to_probe(before.clone());
            std::mem::forget(bench.permit().unwrap());
            bench.breaker.reload(Config { probe_lease: Some(Period::secs(5)), half_open_calls: 1, ..after });
            bench.wait(3600);
            bench.permit().map_or_else(|rejected| assert!(rejected.retry_after < Some(Duration::from_secs(60))), drop);
            bench.wait(3600);
            assert_eq!(bench.calls("s"), State::Closed);
        }
    }
}

/// What a call has asked for is forgotten with the call.
#[test]
fn a_wish_lasts_no_longer_than_its_call_is_looked_back_on() {
    for window in [Window::Calls(10), Window::Time(Period::secs(60)), Window::Consecutive(4)] {
        let bench = Bench::new(Config { window, retry_after: true, max_open_for: Period::secs(600), ..config() });
        let report = Report { retry_after: Some(Duration::from_secs(500)), ..Outcome::Failure.into() };
        bench.permit().unwrap().finish(report);
        for _ in 0..100 {
            bench.calls("s");
            bench.wait(1);
        }
        while bench.calls("f") != State::Open {}
        assert_eq!(bench.breaker.open_for(), Duration::from_secs(30), "{window}");
    }
}

#[test]
fn a_listener_that_panics_loses_no_probe() {
    let (clock, hand) = Clock::manual();
    let listener: Listener = Box::new(|event| {
        assert!(!matches!(event, Event::Moved(Transition { to: State::HalfOpen, .. })), "on purpose");
    });
    let config = Config { half_open_calls: 1, ..config() };
    let breaker = Arc::new(Breaker::new("payment".into(), config, clock, listener));
    breaker.set(State::Open);
    hand.advance(Duration::from_secs(31));
    let ask = || drop(Breaker::try_acquire(&*breaker));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)).is_err());
    Breaker::try_acquire(&*breaker).unwrap().finish(Outcome::Success);
    assert_eq!(breaker.state(), State::Closed);
}
