//! The exact mode against verdicts that were recorded from Resilience4j itself; `traces/README.md` says how.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use seawall_resilience::breaker::{Breaker, BreakerConfig, Config};
use seawall_resilience::{Clock, Outcome, PolicyConfig, Tick};
use serde::Deserialize;

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

/// Replays every trace of a file; answers how many steps there were.
fn replay(file: &str) -> usize {
    let path = format!("{}/tests/traces/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut steps = 0;
    for line in text.lines() {
        let trace: Trace = serde_json::from_str(line).unwrap();
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
