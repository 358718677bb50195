//! The exact mode against verdicts that were recorded from Resilience4j itself; `traces/README.md` says how.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use seawall_resilience::breaker::{Breaker, BreakerConfig, Config};
use seawall_resilience::rate_limit::{Config as Limit, RateLimitConfig, RateLimiter};
use seawall_resilience::{Clock, Outcome, PolicyConfig, Rejected, Tick};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

#[derive(Deserialize)]
struct Trace {
    name: String,
    breaker: BreakerConfig,
    steps: Vec<serde_json::Value>,
}

fn config(breaker: BreakerConfig) -> Config {
    let policy = PolicyConfig { breaker, ..PolicyConfig::default() };
    let problems = policy.problems();
    assert!(problems.is_empty(), "{problems:?}");
    policy.complete().breaker.expect("switched on")
}

/// With the longest wait that there is, so that each caller's own decides.
fn limit(rate_limit: RateLimitConfig) -> Limit {
    let rate_limit = RateLimitConfig { wait: Some("1h".parse().unwrap()), ..rate_limit };
    let policy = PolicyConfig { rate_limit, ..PolicyConfig::default() };
    let problems = policy.problems();
    assert!(problems.is_empty(), "{problems:?}");
    policy.complete().rate_limit.expect("it has a rate")
}

/// Every trace of a file.
fn traces<T: DeserializeOwned>(file: &str) -> Vec<T> {
    let path = format!("{}/tests/traces/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Replays every trace of a file; answers how many steps there were.
fn replay(file: &str) -> usize {
    let mut steps = 0;
    for trace in traces::<Trace>(file) {
        let (clock, hand) = Clock::manual();
        let breaker = Breaker::new("trace".into(), config(trace.breaker), clock, Box::new(|_| {}));
        let mut permits = HashMap::new();
        for (number, step) in trace.steps.iter().enumerate() {
            let at = || format!("{}, step {number}: {step}", trace.name);
            let word = |index: usize| step[index].as_str().unwrap_or_default();
            hand.set(Tick::from_millis(step[1].as_u64().unwrap()));
            match word(0) {
                "?" => {
                    let permit = Breaker::try_acquire(&breaker);
                    assert_eq!(if permit.is_ok() { "admitted" } else { "rejected" }, word(3), "{}", at());
                    permits.extend(permit.ok().map(|permit| (step[2].as_u64(), permit)));
                }
                "!" => {
                    let permit = permits.remove(&step[2].as_u64()).unwrap_or_else(|| panic!("no such call: {}", at()));
                    match word(3) {
                        "success" => permit.finish(Outcome::Success),
                        "failure" => permit.finish(Outcome::Failure),
                        "ignored" => permit.finish(Outcome::Ignored),
                        _ => drop(permit),
                    }
                }
                _ => assert_eq!(breaker.state().as_str(), word(2), "{}", at()),
            }
            steps += 1;
        }
        // A call that never ended in the trace never ends here.
        permits.into_values().for_each(std::mem::forget);
    }
    steps
}

#[test]
fn the_exact_mode_decides_as_resilience4j_does() {
    assert!(replay("resilience4j.jsonl") > 90_000);
}

#[test]
fn a_limited_half_open_state_ends_as_in_resilience4j() {
    assert!(replay("resilience4j-probe-lease.jsonl") > 8_000);
}

#[derive(Deserialize)]
struct LimiterTrace {
    name: String,
    rate_limit: RateLimitConfig,
    steps: Vec<Asked>,
}

/// Who asks when, in microseconds, and what comes of it.
#[derive(Deserialize)]
#[serde(try_from = "Vec<serde_json::Value>")]
struct Asked {
    at: Duration,
    /// The longest that it would wait; `None` does not ask for a wait at all.
    most: Option<Duration>,
    admitted: bool,
    wait: Duration,
}

impl TryFrom<Vec<serde_json::Value>> for Asked {
    type Error = String;

    fn try_from(step: Vec<serde_json::Value>) -> Result<Self, String> {
        let time = |index: usize| step[index].as_u64().map(Duration::from_micros);
        let asked = match (step.len(), step.last().and_then(|word| word.as_str())) {
            (3, Some(word)) => (time(1), None, word, Some(Duration::ZERO)),
            (4, Some(word @ "rejected")) => (time(1), time(2), word, Some(Duration::ZERO)),
            (5, None) => (time(1), time(2), step[3].as_str().unwrap_or_default(), time(4)),
            _ => return Err(format!("no step: {step:?}")),
        };
        match asked {
            (Some(at), most, word @ ("admitted" | "rejected"), Some(wait)) if most.is_some() == (step.len() > 3) => {
                Ok(Self { at, most, admitted: word == "admitted", wait })
            }
            _ => Err(format!("no step: {step:?}")),
        }
    }
}

/// A call that sleeps until its turn.
type Waiting<'a> = Pin<Box<dyn Future<Output = Result<(), Rejected>> + 'a>>;

/// Asks once and does not wait: `None` if it would.
fn poll<T>(asked: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Option<T> {
    match asked.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

/// A token bucket that saves no more than one refill is what Resilience4j has: the verdicts are the same to the
/// microsecond, and so are the waits. Those who were let in later wake when the trace says so, give or take the
/// millisecond that a timer of tokio's may be late.
#[tokio::test(start_paused = true)]
async fn the_token_bucket_decides_as_resilience4j_does() {
    const LATE: Duration = Duration::from_millis(1);
    let (mut steps, mut waits) = (0, 0);
    for trace in traces::<LimiterTrace>("resilience4j-rate-limiter.jsonl") {
        let begun = Instant::now();
        let limiter = RateLimiter::new("trace".into(), limit(trace.rate_limit), Clock::tokio());
        let mut waiting: Vec<(Duration, Waiting<'_>)> = Vec::new();
        for (number, step) in trace.steps.iter().enumerate() {
            let at = || format!("{}, step {number} at {:?}", trace.name, step.at);
            tokio::time::advance(step.at - begun.elapsed()).await;
            waiting.retain_mut(|(due, asked)| {
                let woken = poll(asked.as_mut());
                assert!(woken.is_none() || *due <= step.at, "{}: due at {due:?} and woken", at());
                assert!(woken.is_some() || step.at < *due + LATE, "{}: due at {due:?} and asleep", at());
                assert!(woken.is_none_or(|answer| answer == Ok(())), "{}", at());
                woken.is_none()
            });
            steps += 1;
            let Some(most) = step.most else {
                assert_eq!(limiter.try_acquire().is_ok(), step.admitted, "{}", at());
                continue;
            };
            if step.wait > Duration::ZERO {
                // One that would wait a nanosecond less is turned away, and told how long it would have been.
                let less = limiter.acquire(step.wait - Duration::from_nanos(1));
                let told = poll(pin!(less)).expect("it does not wait in vain").map_err(|error| error.retry_after);
                assert_eq!(told, Err(Some(step.wait)), "{}", at());
            }
            let mut asked: Waiting<'_> = Box::pin(limiter.acquire(most));
            match poll(asked.as_mut()) {
                Some(answer) => {
                    assert_eq!(answer.is_ok(), step.admitted, "{}", at());
                    assert_eq!(step.wait, Duration::ZERO, "{}: it does not wait", at());
                }
                None => {
                    assert!(step.admitted && step.wait > Duration::ZERO, "{}: it waits", at());
                    waiting.push((step.at + step.wait, asked));
                    waits += 1;
                }
            }
        }
        for (_, asked) in waiting {
            assert_eq!(asked.await, Ok(()), "{}", trace.name);
        }
    }
    assert_eq!((steps, waits), (6_392, 511));
}
