//! Tables for what is pure; paused time for the driver.

use std::cell::Cell;
use std::convert::Infallible;

use proptest::prelude::*;

use super::{Strategy, *};
use crate::Rejected;

const NONE: Duration = Duration::ZERO;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Four attempts, 50ms apart and doubling up to 300ms, nothing left to chance, and a budget that does not matter.
fn retry() -> Retry {
    Retry {
        attempts: 4,
        backoff: Period::millis(50),
        max_backoff: Period::millis(300),
        jitter: Jitter::None,
        budget: Ratio::percent(100),
        budget_floor: 100,
        ..Retry::default()
    }
}

fn retrier(config: Retry) -> Retrier {
    Retrier::new("payment".into(), config, Clock::tokio())
}

#[test]
fn every_strategy_and_jitter_waits_as_it_says() {
    use {Jitter as J, Strategy as S};
    for (strategy, multiplier, jitter, random, waits) in [
        (S::Exponential, 2.0, J::None, 0.5, [50, 100, 200, 300, 300]),
        (S::Exponential, 1.0, J::None, 0.5, [50, 50, 50, 50, 50]),
        (S::Exponential, 3.0, J::None, 0.5, [50, 150, 300, 300, 300]),
        (S::Exponential, 2.0, J::Full, 1.0, [50, 100, 200, 300, 300]),
        (S::Exponential, 2.0, J::Full, 0.5, [25, 50, 100, 150, 150]),
        (S::Exponential, 2.0, J::Full, 0.0, [0, 0, 0, 0, 0]),
        (S::Exponential, 2.0, J::Equal, 0.0, [25, 50, 100, 150, 150]),
        (S::Exponential, 2.0, J::Equal, 0.5, [37, 75, 150, 225, 225]),
        (S::Fixed, 2.0, J::None, 0.5, [50, 50, 50, 50, 50]),
        (S::Fixed, 2.0, J::Full, 0.2, [10, 10, 10, 10, 10]),
        // From 50 to three times the previous: at the top 150, then the limit; in the middle 100, 175, 287 and the limit.
        (S::Decorrelated, 2.0, J::None, 1.0, [150, 300, 300, 300, 300]),
        (S::Decorrelated, 2.0, J::Full, 0.5, [100, 175, 287, 300, 300]),
        (S::Decorrelated, 2.0, J::Full, 0.0, [50, 50, 50, 50, 50]),
    ] {
        let retry = Retry { strategy, multiplier, jitter, ..retry() };
        let mut previous = NONE;
        let delays = [1, 2, 3, 4, 5].map(|number| {
            previous = retry.delay(number, previous, random);
            previous.as_millis()
        });
        assert_eq!(delays, waits, "{strategy:?} {jitter:?} {multiplier} {random}");
    }
}

proptest! {
    /// Whatever the parameters: no wait is over its limit, and none is under what the strategy promises.
    #[test]
    fn waits_keep_their_bounds(
        number in any::<u32>(),
        (backoff, max) in (0u64..100_000, 0u64..31_000_000_000),
        multiplier in 1.0f64..=10.0,
        (strategy, jitter) in (0usize..3, 0usize..3),
        previous in any::<u32>(),
        random in -0.5f64..1.5,
    ) {
        let retry = RetryConfig {
            strategy: Some([Strategy::Exponential, Strategy::Decorrelated, Strategy::Fixed][strategy]),
            jitter: Some([Jitter::Full, Jitter::Equal, Jitter::None][jitter]),
            backoff: Some(Period::millis(backoff)),
            max_backoff: Some(Period::millis(max)),
            multiplier: Some(multiplier),
            ..RetryConfig::default()
        }
        .resolve();
        let delay = retry.delay(number, millis(previous.into()), random);
        prop_assert!(delay <= *retry.max_backoff);
        let least = match (retry.strategy, retry.jitter) {
            (Strategy::Decorrelated, _) | (_, Jitter::None) => *retry.backoff,
            (_, Jitter::Equal) => *retry.backoff / 2,
            (_, Jitter::Full) => NONE,
        };
        prop_assert!(delay >= least);
    }
}

#[test]
fn a_pause_respects_the_service_and_the_deadline() {
    let (honour, not) = (retry(), Retry { honour_retry_after: false, ..retry() });
    for (retry, delay, after, left, pause) in [
        (honour, 50, None, None, Some(50)),
        (honour, 50, None, Some(51), Some(50)),
        (honour, 50, None, Some(50), None),
        (honour, 0, None, Some(0), None),
        (honour, 50, Some(1000), None, Some(1050)),
        (honour, 50, Some(1000), Some(2000), Some(1050)),
        // No time for both: what the service asked for alone.
        (honour, 50, Some(1000), Some(1010), Some(1000)),
        (honour, 50, Some(1000), Some(1000), None),
        (honour, 50, Some(2000), Some(1000), None),
        (honour, 50, Some(60_000), None, Some(60_050)),
        (honour, 50, Some(60_001), None, None),
        (not, 50, Some(1000), Some(100), Some(50)),
    ] {
        assert_eq!(
            retry.pause(millis(delay), after.map(millis), left.map(millis)),
            pause.map(millis),
            "{delay} {after:?} {left:?}"
        );
    }
}

#[test]
fn a_configuration_is_read_merged_and_judged() {
    let read = |text: &str| serde_json::from_str::<RetryConfig>(text).unwrap();
    let base = read(r#"{"attempts": 5, "strategy": "decorrelated", "chain": 3, "budget": "0.15%"}"#);
    let merged = read(r#"{"attempts": 3, "jitter": "equal", "multiplier": 1.5, "max_backoff": "10ms"}"#).or(&base);
    let resolved = merged.resolve();
    assert_eq!(
        resolved,
        Retry {
            attempts: 3,
            strategy: Strategy::Decorrelated,
            backoff: Period::millis(10),
            max_backoff: Period::millis(10),
            multiplier: 1.5,
            jitter: Jitter::Equal,
            budget: Ratio::try_new(0.0015).unwrap(),
            budget_floor: 3,
            honour_retry_after: true,
            chain: Some(3),
        }
    );
    assert!(serde_json::from_str::<RetryConfig>(r#"{"atempts": 5}"#).is_err());

    let judge = |config: RetryConfig| {
        let mut found = Problems::default();
        config.problems(&mut found);
        found.into_vec().into_iter().map(|(path, _)| path).collect::<Vec<_>>()
    };
    let bad = RetryConfig {
        attempts: Some(21),
        multiplier: Some(f64::NAN),
        budget_floor: Some(1001),
        chain: Some(1001),
        backoff: Some(Period::secs(2)),
        max_backoff: Some(Period::secs(1)),
        ..RetryConfig::default()
    };
    let paths = ["retry.attempts", "retry.multiplier", "retry.budget_floor", "retry.chain", "retry.backoff"];
    assert_eq!(judge(bad.clone()), paths);
    let resolved = bad.resolve();
    assert_eq!((resolved.attempts, resolved.multiplier, resolved.budget_floor), (20, 2.0, 1000));
    assert_eq!(
        judge(read(r#"{"strategy": "decorrelated", "jitter": "full", "multiplier": 2}"#)),
        ["retry.multiplier", "retry.jitter"]
    );
    assert_eq!(judge(read(r#"{"strategy": "fixed", "jitter": "none", "attempts": 1}"#)), [""; 0]);
}

#[test]
fn only_what_may_go_better_is_repeated_by_default() {
    let again = |after| Decision::Again { after };
    let rejected = |policy, reason| {
        let rejected = Rejected { retry_after: Some(millis(7)), ..Rejected::new(policy, "payment".into(), reason) };
        Err(CallError::<()>::Rejected(rejected))
    };
    let later = again(Some(millis(7)));
    for (result, usual, all) in [
        (Ok(()), Decision::Stop, Decision::Stop),
        (Err(CallError::Inner(())), again(None), again(None)),
        (rejected(PolicyName::Timeout, Reason::Attempt), later, later),
        (rejected(PolicyName::Timeout, Reason::Deadline), Decision::Stop, Decision::Stop),
        (rejected(PolicyName::Chaos, Reason::Injected), later, later),
        (rejected(PolicyName::Breaker, Reason::Open), Decision::Stop, later),
        (rejected(PolicyName::Bulkhead, Reason::Full), Decision::Stop, later),
        (rejected(PolicyName::RateLimit, Reason::Limited), Decision::Stop, later),
        (rejected(PolicyName::Throttle, Reason::Throttled), Decision::Stop, later),
    ] {
        assert_eq!((failures(&result), failures_and_rejections(&result)), (usual, all), "{result:?}");
    }
}

fn always<T>(_: &T) -> Decision {
    Decision::Again { after: None }
}

fn errors<T, E>(result: &Result<T, E>) -> Decision {
    if result.is_err() { always(result) } else { Decision::Stop }
}

#[tokio::test(start_paused = true)]
async fn it_repeats_until_it_works_or_attempts_are_spent() {
    let retrier = retrier(retry());
    let started = tokio::time::Instant::now();
    let result = retrier.call(None, |n| async move { if n < 3 { Err(n) } else { Ok(n) } }, errors).await;
    assert_eq!((result, started.elapsed().as_millis()), (Ok(3), 150));
    let result = retrier.call(None, |n| async move { Err::<(), _>(n) }, errors).await;
    assert_eq!((result, started.elapsed().as_millis()), (Err(4), 500));
    // A result can be worth another attempt too, and the last one is what the caller gets.
    let result = retrier.call(None, |n| async move { Ok::<_, Infallible>(n) }, always).await;
    assert_eq!(result, Ok(4));
    let counts = Counts { retries: 2 + 3 + 3, recovered: 1, attempts: 2, ..Counts::default() };
    assert_eq!(retrier.counts(), counts);
}

#[tokio::test(start_paused = true)]
async fn a_result_is_gone_before_the_next_attempt() {
    let retrier = retrier(retry());
    // As with a bulkhead of one place that a response keeps taken: an attempt would wait for the one before.
    let place = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let attempt = |_| async { Ok::<_, Infallible>(place.clone().try_acquire_owned().expect("free")) };
    assert!(retrier.call(None, attempt, always).await.is_ok());
    assert_eq!(retrier.counts().retries, 3);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_after_the_deadline() {
    let retrier = retrier(retry());
    let begun = retrier.clock.now();
    let fail = |n| async move {
        tokio::time::sleep(millis(10)).await;
        Err::<(), _>(n)
    };
    // 10 + 50 + 10 + 100 + 10: the third attempt would start at 170.
    for (deadline, attempts, passed) in [(170, 2, 70), (171, 3, 180)] {
        let started = retrier.clock.now();
        let result = retrier.call(Some(started + millis(deadline)), fail, errors).await;
        assert_eq!((result, retrier.clock.now().since(started).as_millis()), (Err(attempts), passed));
    }
    // Asked to wait longer than there is time: not at all.
    let later = |_: &_| Decision::Again { after: Some(millis(500)) };
    assert_eq!(retrier.call(Some(retrier.clock.now() + millis(400)), fail, later).await, Err(1));
    let started = retrier.clock.now();
    assert_eq!(retrier.call(Some(started + millis(900)), fail, later).await, Err(2));
    assert_eq!(retrier.clock.now().since(started).as_millis(), 10 + 550 + 10);
    assert!(retrier.clock.now() > begun);
    assert_eq!(retrier.counts().deadline, 4);
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_wakes_too_late_is_not_made_and_not_paid_for() {
    // A clock that the runtime's does not move: it jumps while the call waits.
    let (clock, hand) = Clock::manual();
    let retrier = Retrier::new("payment".into(), Retry { budget: Ratio::percent(0), ..retry() }, clock);
    let call = retrier.call(Some(Tick::from_millis(200)), |n| async move { Err::<(), _>(n) }, errors);
    let (result, ()) = tokio::join!(call, async { hand.advance(millis(200)) });
    assert_eq!((result, retrier.counts().retries, retrier.budget().saved()), (Err(1), 0, 100));
}

#[tokio::test(start_paused = true)]
async fn the_budget_is_charged_when_a_retry_is_decided() {
    let config = Retry { budget: Ratio::percent(0), budget_floor: 3, backoff: Period::secs(1), ..retry() };
    let retrier = retrier(Retry { max_backoff: Period::secs(1), attempts: 2, ..config });
    let call = || retrier.call(None, |n| async move { Err::<(), _>(n) }, errors);
    let results = tokio::join!(call(), call(), call(), call());
    assert_eq!(results, (Err(2), Err(2), Err(2), Err(1)));
    assert_eq!((retrier.counts().retries, retrier.counts().budget), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_given_up_while_it_waits_gives_back() {
    let retrier = retrier(Retry { budget_floor: 0, ..retry() });
    (0..2).for_each(|_| retrier.budget().deposit());
    let chain = Chain::new(5);
    let call = retrier.call(None, |n| async move { Err::<(), _>(n) }, errors);
    assert!(tokio::time::timeout(millis(60), chain.clone().scope(call)).await.is_err());
    // The first retry was made, the second was waiting.
    assert_eq!((retrier.counts().retries, chain.left()), (1, 4));
    assert_eq!(retrier.budget().saved(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_chain_bounds_the_retries_of_nested_calls() {
    let (outer, inner) = (retrier(Retry { chain: Some(3), ..retry() }), retrier(Retry { chain: Some(9), ..retry() }));
    let calls = Cell::new(0);
    let result = outer
        .call(
            None,
            |_| {
                let inner = || {
                    let call = |_| async {
                        calls.set(calls.get() + 1);
                        Err::<(), _>(())
                    };
                    inner.call(None, call, errors)
                };
                async move { tokio::join!(inner(), inner()).0 }
            },
            errors,
        )
        .await;
    // Two calls and three retries, where there would have been 4 * 2 * 4.
    assert_eq!((result, calls.get()), (Err(()), 5));
    assert_eq!((outer.counts().chain, inner.counts().chain, inner.counts().retries), (1, 2, 3));

    // A refusal by the budget costs the chain nothing.
    let poor = retrier(Retry { budget: Ratio::percent(0), budget_floor: 0, ..retry() });
    let chain = Chain::new(2);
    let call = poor.call(None, |n| async move { Err::<(), _>(n) }, errors);
    assert_eq!((chain.clone().scope(call).await, chain.left()), (Err(1), 2));
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_the_budget_and_holds_at_once() {
    let retrier = retrier(Retry { budget: Ratio::percent(0), budget_floor: 5, ..retry() });
    let fail = |_| async { Err::<(), _>(()) };
    assert_eq!(retrier.call(None, fail, errors).await, Err(()));
    assert_eq!(retrier.budget().saved(), 2);
    retrier.reload(Retry { attempts: 2, budget: Ratio::percent(0), budget_floor: 0, ..retry() });
    for retries in [4, 5, 5] {
        assert_eq!(retrier.call(None, fail, errors).await, Err(()));
        assert_eq!(retrier.counts().retries, retries);
    }
}

#[test]
fn a_call_that_works_adds_little_to_the_future() {
    let retrier = Retrier::new("payment".into(), Retry::default(), Clock::default());
    let call = retrier.call(None, |_| std::future::ready(Ok::<_, ()>(())), errors);
    assert!(std::mem::size_of_val(&call) <= 100, "{}", std::mem::size_of_val(&call));
}
