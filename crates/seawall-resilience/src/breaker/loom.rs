//! The shared state under every interleaving of two or three threads
//! (`cargo test -p seawall-resilience --features loom --lib loom`).

use ::loom::sync::Arc;
use ::loom::thread;
use seawall_types::{Period, Ratio};

use super::*;

fn breaker(config: Config) -> (Arc<Breaker>, crate::clock::Manual) {
    let (clock, hand) = Clock::manual();
    let breaker = Breaker::new("loom".into(), config, clock, Box::new(|_| {}));
    // The model does not see that the standard library's cell orders what it makes.
    breaker.ring.get_or_init(Box::default);
    breaker.slices.get_or_init(Slices::default);
    (Arc::new(breaker), hand)
}

fn config() -> Config {
    let limits = Limits { minimum_calls: 2, failure_rate: Ratio::percent(100), ..Config::default().limits };
    Config { window: Window::Calls(2), limits, half_open_calls: 1, open_for: Period::secs(1), ..Config::default() }
}

fn call(breaker: &Breaker, outcome: Outcome) -> bool {
    Breaker::try_acquire(breaker).map(|permit| permit.finish(outcome)).is_ok()
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = ::loom::model::Builder::new();
    // Two switches find most races in seconds; the long form asks for more.
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(model);
}

#[test]
fn two_failures_open_it_whoever_is_first() {
    check(|| {
        let (breaker, _) = breaker(config());
        let other = breaker.clone();
        let thread = thread::spawn(move || call(&other, Outcome::Failure));
        call(&breaker, Outcome::Failure);
        thread.join().unwrap();
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.opens.load(Ordering::Acquire), 1, "it opens once");
    });
}

#[test]
fn racing_callers_send_one_probe() {
    check(|| {
        let (breaker, hand) = breaker(config());
        breaker.set(State::Open);
        hand.advance(Duration::from_secs(2));
        let ask = |breaker: Arc<Breaker>| move || Breaker::try_acquire(&*breaker).map(std::mem::forget).is_ok();
        let threads = [thread::spawn(ask(breaker.clone())), thread::spawn(ask(breaker.clone()))];
        let admitted = threads.map(|thread| thread.join().unwrap()).into_iter().filter(|admitted| *admitted).count();
        assert_eq!(admitted, 1);
        assert_eq!(breaker.state(), State::HalfOpen);
    });
}

#[test]
fn a_cancelled_probe_gives_its_place_to_exactly_one() {
    check(|| {
        let (breaker, hand) = breaker(config());
        breaker.set(State::Open);
        hand.advance(Duration::from_secs(2));
        let probe = Breaker::try_acquire(breaker.clone()).expect("the wait is over");
        let asking = breaker.clone();
        let thread = thread::spawn(move || Breaker::try_acquire(&*asking).map(std::mem::forget).is_ok());
        drop(probe);
        let early = thread.join().unwrap();
        let late = Breaker::try_acquire(&*breaker).map(std::mem::forget).is_ok();
        assert!(early ^ late, "early {early}, late {late}");
    });
}

#[test]
fn a_late_failure_decides_nothing() {
    check(|| {
        let (breaker, hand) = breaker(config());
        let late = Breaker::try_acquire(breaker.clone()).expect("closed");
        breaker.set(State::Open);
        hand.advance(Duration::from_secs(2));
        let thread = thread::spawn(move || late.finish(Outcome::Failure));
        assert!(call(&breaker, Outcome::Success), "the probe");
        thread.join().unwrap();
        assert_eq!(breaker.state(), State::Closed);
    });
}

#[test]
fn an_order_and_a_verdict_do_not_mix() {
    check(|| {
        let (breaker, _) = breaker(config());
        call(&breaker, Outcome::Failure);
        let other = breaker.clone();
        let thread = thread::spawn(move || other.set(State::ForcedOpen));
        call(&breaker, Outcome::Failure);
        thread.join().unwrap();
        assert_eq!(breaker.state(), State::ForcedOpen, "whatever the call did, the order stands");
    });
}

#[test]
fn another_window_in_the_middle_of_calls() {
    check(|| {
        let (breaker, _) = breaker(config());
        let other = breaker.clone();
        let thread = thread::spawn(move || call(&other, Outcome::Failure));
        breaker.reload(Config { window: Window::Consecutive(2), ..config() });
        thread.join().unwrap();
        assert_eq!(breaker.state(), State::Closed, "one failure is not two, in whichever window");
        call(&breaker, Outcome::Failure);
        call(&breaker, Outcome::Failure);
        assert_eq!(breaker.state(), State::Open);
    });
}
