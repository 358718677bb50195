use std::collections::VecDeque;
use std::sync::Mutex;

use proptest::prelude::*;

use std::sync::Arc;

use super::*;

fn config() -> Config {
    Config {
        failure_rate: Ratio::percent(50),
        slow_call: None,
        slow_rate: Ratio::percent(100),
        window: Window::calls(10).unwrap(),
        minimum_calls: 4,
        open_for: Period::secs(30),
        half_open_calls: 3,
    }
}

/// A breaker, a clock that stands still until told otherwise, and what the listener has heard.
struct Bench {
    breaker: Arc<Breaker>,
    now: Instant,
    heard: Arc<Mutex<Vec<(State, State)>>>,
}

impl Bench {
    fn new(config: Config) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        let listener: Listener = Box::new(move |t| sink.lock().unwrap().push((t.from, t.to)));
        Self { breaker: Arc::new(Breaker::new("payment".into(), config, listener)), now: Instant::now(), heard }
    }

    fn permit(&self) -> Result<Permit<Arc<Breaker>>, Rejected> {
        Breaker::try_acquire(self.breaker.clone(), self.now)
    }

    fn call(&self, outcome: Outcome) {
        self.permit().expect("admitted").finish(outcome, Duration::ZERO, self.now);
    }

    fn calls(&self, outcomes: &str) -> State {
        for outcome in outcomes.chars() {
            self.call(match outcome {
                's' => Outcome::Success,
                'f' => Outcome::Failure,
                _ => Outcome::Ignored,
            });
        }
        self.breaker.state()
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
    let bench = Bench::new(Config { slow_call: Some(Period::secs(1)), ..config() });
    for seconds in [0, 2, 2, 2] {
        let permit = bench.permit().unwrap();
        permit.finish(Outcome::Success, Duration::from_secs(seconds), bench.now);
    }
    assert_eq!(bench.breaker.state(), State::Closed, "three of four are slow, all of four are asked for");
    let bench = Bench::new(Config { slow_call: Some(Period::secs(1)), slow_rate: Ratio::percent(75), ..config() });
    for seconds in [0, 2, 2, 2] {
        bench.permit().unwrap().finish(Outcome::Success, Duration::from_secs(seconds), bench.now);
    }
    assert_eq!(bench.breaker.state(), State::Open);
}

#[test]
fn an_open_breaker_says_how_long() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.calls("ffff"), State::Open);
    bench.now += Duration::from_secs(10);
    let rejected = bench.permit().unwrap_err();
    assert_eq!((rejected.policy, rejected.reason), (PolicyName::Breaker, Reason::Open));
    assert_eq!(rejected.retry_after.unwrap().as_secs_f64().round() as u64, 20);
}

#[test]
fn probes_decide() {
    for (probes, state) in [("sss", State::Closed), ("ff", State::Open), ("sfs", State::Closed), ("sff", State::Open)] {
        let mut bench = Bench::new(config());
        bench.calls("ffff");
        bench.now += Duration::from_secs(31);
        assert_eq!(bench.calls(probes), state, "{probes}");
        let mut expected = vec![(State::Closed, State::Open), (State::Open, State::HalfOpen)];
        expected.push((State::HalfOpen, state));
        assert_eq!(*bench.heard.lock().unwrap(), expected);
    }
}

#[test]
fn probes_are_counted_and_a_lost_one_frees_its_place() {
    let mut bench = Bench::new(config());
    bench.calls("ffff");
    bench.now += Duration::from_secs(31);
    let mut probes: Vec<_> = (0..3).map(|_| bench.permit().unwrap()).collect();
    assert_eq!(bench.permit().unwrap_err().reason, Reason::HalfOpen);
    drop(probes.pop());
    let again = bench.permit().expect("the place of the cancelled probe");
    assert_eq!(bench.permit().unwrap_err().reason, Reason::HalfOpen);
    for probe in probes {
        probe.finish(Outcome::Success, Duration::ZERO, bench.now);
    }
    assert_eq!(bench.breaker.state(), State::HalfOpen);
    again.finish(Outcome::Success, Duration::ZERO, bench.now);
    assert_eq!(bench.breaker.state(), State::Closed);
}

#[test]
fn probes_that_never_come_back_are_replaced() {
    let mut bench = Bench::new(config());
    bench.calls("ffff");
    bench.now += Duration::from_secs(31);
    let lost: Vec<_> = (0..3).map(|_| bench.permit().unwrap()).collect();
    let rejected = bench.permit().unwrap_err();
    assert_eq!((rejected.reason, rejected.retry_after.unwrap().as_secs_f64().round() as u64), (Reason::HalfOpen, 30));
    bench.now += Duration::from_secs(31);
    assert_eq!(bench.calls("s"), State::HalfOpen);
    for probe in lost {
        probe.finish(Outcome::Failure, Duration::ZERO, bench.now);
    }
    assert_eq!(bench.calls("ss"), State::Closed);
}

#[test]
fn late_results_decide_nothing() {
    let mut bench = Bench::new(config());
    let late: Vec<_> = (0..8).map(|_| bench.permit().unwrap()).collect();
    bench.calls("ffff");
    bench.now += Duration::from_secs(31);
    let probe = bench.permit().unwrap();
    for permit in late {
        permit.finish(Outcome::Failure, Duration::ZERO, bench.now);
    }
    assert_eq!(bench.breaker.state(), State::HalfOpen);
    probe.finish(Outcome::Success, Duration::ZERO, bench.now);
    bench.calls("ss");
    assert_eq!(bench.breaker.state(), State::Closed);
    assert_eq!(bench.breaker.sums(), (0, 0, 0), "the new closed state starts afresh");
}

#[test]
fn racing_callers_never_exceed_the_probes() {
    let mut bench = Bench::new(config());
    bench.calls("ffff");
    bench.now += Duration::from_secs(31);
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
    let ring = Ring::new(1000);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let ring = &ring;
            scope.spawn(move || {
                for i in 0..250 {
                    ring.record((i + thread) % 5 == 0, i % 2 == 0);
                }
            });
        }
    });
    assert_eq!(ring.sums(), (1000, 200, 500));
}

proptest! {
    /// The ring against the obvious model, over many turns.
    #[test]
    fn the_ring_is_the_last_calls(
        size in 1u32..150,
        calls in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..600),
    ) {
        let ring = Ring::new(size);
        let mut model = VecDeque::new();
        for (failed, slow) in calls {
            ring.record(failed, slow);
            model.push_back((failed, slow));
            if model.len() > size as usize {
                model.pop_front();
            }
            let count = |pick: fn(&(bool, bool)) -> bool| model.iter().filter(|call| pick(call)).count() as u32;
            prop_assert_eq!(ring.sums(), (model.len() as u32, count(|c| c.0), count(|c| c.1)));
        }
        ring.clear();
        prop_assert_eq!(ring.sums(), (0, 0, 0));
    }

    /// Whatever happens, in whatever order: no panic, and never more probes in one half-open state than allowed.
    #[test]
    fn any_history_keeps_the_probe_limit(steps in proptest::collection::vec(0u8..8, 0..400)) {
        let Bench { breaker, mut now, .. } = Bench::new(config());
        let mut probes: Vec<Permit<Arc<Breaker>>> = Vec::new();
        for step in steps {
            match step {
                0..=2 => if let Ok(permit) = Breaker::try_acquire(breaker.clone(), now) {
                    if breaker.state() == State::HalfOpen {
                        probes.push(permit);
                    } else {
                        permit.finish(if step == 0 { Outcome::Success } else { Outcome::Failure }, Duration::ZERO, now);
                    }
                },
                3 | 4 => if let Some(permit) = probes.pop() {
                    permit.finish(if step == 3 { Outcome::Success } else { Outcome::Failure }, Duration::ZERO, now);
                },
                5 => drop(probes.pop()),
                6 => if let Some(permit) = probes.pop() { permit.finish(Outcome::Ignored, Duration::ZERO, now); },
                _ => now += Duration::from_secs(16),
            }
            if breaker.state() != State::HalfOpen {
                probes.clear();
            }
            let epoch = Control::unpack(breaker.control.load(Ordering::Acquire)).epoch;
            prop_assert!(probes.iter().filter(|probe| probe.epoch == epoch).count() <= 3);
        }
    }
}
