//! Makes the generated traces: policies and traffic from a seed, decisions from the crate. The traffic is steered to
//! where decisions turn: to the last millisecond of an open wait and the first after it, to `slow_call` and the
//! millisecond beyond.

use std::sync::Arc;

use fastrand::Rng;
use seawall_resilience::Guard;
use serde_json::{Value, json};

use super::caller::Caller;
use super::library::{self, Library};
use super::replay::Host;
use super::trace::{Outcome, Step, Trace};

/// How many traces of each family.
const EACH: u64 = 12;

/// Draws a policy.
type Family = fn(&mut Rng) -> Value;

/// What is drawn, by name.
const FAMILIES: [(&str, Family); 16] = [
    ("count", |rng| breaker(json!({}), rng)),
    ("time", |rng| {
        let window = pick(rng, &["100ms", "1s", "3s", "10s"]);
        breaker(json!({ "window": window, "minimum_calls": rng.u32(1..6) }), rng)
    }),
    ("consecutive", |rng| {
        let window = format!("{} consecutive", rng.u32(1..5));
        json!({ "breaker": { "window": window, "open_for": "1s", "half_open_calls": rng.u32(1..4) } })
    }),
    ("slow", |rng| {
        let (slow, rate) = (pick(rng, &["20ms", "100ms", "1s"]), pick(rng, &["25%", "50%", "100%"]));
        breaker(json!({ "slow_call": slow, "slow_rate": rate }), rng)
    }),
    ("all", |rng| breaker(json!({ "verdict": "all" }), rng)),
    ("ramp", |rng| breaker(json!({ "verdict": "ramp", "half_open_calls": 1, "minimum_calls": 1 }), rng)),
    ("lease", |rng| {
        let lease = pick(rng, &["50ms", "300ms", "2s"]);
        breaker(json!({ "probe_lease": lease, "half_open_calls": rng.u32(1..4) }), rng)
    }),
    ("growth", |rng| {
        let most = pick(rng, &["2s", "5s", "1m"]);
        breaker(json!({ "open_growth": rng.u32(1..6), "max_open_for": most, "minimum_calls": 1 }), rng)
    }),
    ("retry-after", |rng| breaker(json!({ "retry_after": true, "max_open_for": "20s", "minimum_calls": 1 }), rng)),
    ("given-up", |rng| {
        let age = pick(rng, &["10ms", "50ms", "200ms"]);
        breaker(json!({ "cancelled_after": age, "minimum_calls": 2 }), rng)
    }),
    ("watch", |rng| {
        let (mode, rate) =
            (pick(rng, &["automatic", "automatic", "metrics_only", "disabled"]), pick(rng, &["10%", "30%"]));
        breaker(json!({ "mode": mode, "watch": { "failure_rate": rate, "minimum_calls": rng.u32(1..4) } }), rng)
    }),
    ("bulkhead", |rng| {
        let mut policy = breaker(json!({}), rng);
        policy["bulkhead"] = json!({ "concurrent": rng.u32(1..6), "shares": { "low": "40%", "normal": "70%" } });
        policy
    }),
    ("rate-limit", |rng| {
        let (algorithm, rate) = (pick(rng, &["gcra", "token_bucket"]), pick(rng, &["10/s", "3/100ms", "1/s", "7/s"]));
        json!({ "rate_limit": { "algorithm": algorithm, "rate": rate, "burst": rng.u32(1..6) } })
    }),
    ("retry", |rng| {
        let mut policy = breaker(json!({ "retry_after": rng.bool() }), rng);
        policy["retry"] = json!({
            "attempts": rng.u32(2..5),
            "budget": pick(rng, &["20%", "50%", "100%"]),
            "budget_floor": rng.u32(0..3),
            "honour_retry_after": false,
        });
        policy
    }),
    ("exact", |rng| {
        let window = pick(rng, &["5 calls", "2s", "10s"]);
        breaker(json!({ "semantics": "resilience4j", "window": window, "slow_call": "100ms" }), rng)
    }),
    ("everything", |rng| {
        let slow = pick(rng, &["20ms", "100ms", "1s"]);
        let mut policy = breaker(json!({ "retry_after": rng.bool(), "slow_call": slow }), rng);
        policy["rate_limit"] = json!({ "rate": pick(rng, &["20/s", "2/100ms"]), "burst": rng.u32(3..8) });
        policy["bulkhead"] = json!({ "concurrent": rng.u32(1..5) });
        policy["hedge"] = json!({
            "enabled": rng.bool(),
            "delay": "10m",
            "on_error": true,
            "budget": pick(rng, &["20%", "100%"]),
            "max": rng.u32(1..3),
        });
        policy["retry"] = json!({
            "attempts": rng.u32(1..5),
            "budget": pick(rng, &["20%", "100%"]),
            "budget_floor": rng.u32(0..3),
            "chain": rng.u32(0..4),
            "honour_retry_after": false,
        });
        policy
    }),
];

fn pick(rng: &mut Rng, words: &[&str]) -> String {
    words[rng.usize(..words.len())].to_owned()
}

/// A small breaker, so that a short trace brings it through its states, over which `more` is laid.
fn breaker(more: Value, rng: &mut Rng) -> Value {
    let size = rng.u32(2..12);
    let mut breaker = json!({
        "window": format!("{size} calls"),
        "minimum_calls": rng.u32(1..=size),
        "failure_rate": pick(rng, &["20%", "50%", "60%", "100%"]),
        "open_for": pick(rng, &["100ms", "1s", "1500ms"]),
        "half_open_calls": rng.u32(1..5),
    });
    for (name, value) in more.as_object().expect("given as an object") {
        breaker[name] = value.clone();
    }
    if let Some(size) = breaker["window"].as_str().and_then(|window| window.strip_suffix(" calls")?.parse().ok()) {
        breaker["minimum_calls"] = json!(breaker["minimum_calls"].as_u64().unwrap().min(size));
    }
    json!({ "breaker": breaker })
}

/// All of them, always the same.
pub(crate) async fn all() -> Vec<Trace> {
    let mut traces = Vec::new();
    for (number, (family, policy)) in FAMILIES.into_iter().enumerate() {
        for seed in 0..EACH {
            let mut rng = Rng::with_seed(1000 * number as u64 + seed);
            let policy = policy(&mut rng);
            let mut trace = Trace { name: format!("{family} {seed}"), policy, steps: Vec::new() };
            let (guard, hand) = library::guard(&trace);
            let guard = Arc::new(guard);
            if trace.is_for_calls() {
                traffic(&mut rng, &mut trace, &mut Caller::new(guard.clone(), hand), &guard).await;
            } else {
                traffic(&mut rng, &mut trace, &mut Library::new(&guard, hand), &guard).await;
            }
            traces.push(trace);
        }
    }
    traces
}

/// Adds steps to a trace, and records what the crate makes of them.
async fn traffic(rng: &mut Rng, trace: &mut Trace, host: &mut impl Host, guard: &Guard) {
    let shares = trace.policy["bulkhead"]["shares"].is_object();
    let gives_up = !trace.policy["breaker"]["cancelled_after"].is_null();
    let limited = guard.rate_limit.get().is_some();
    let config = guard.breaker.get().expect("all of them have one").config();
    let patient = guard.bulkhead.get().map_or(1, |bulkhead| bulkhead.limit()).min(8) + 1;
    let grid = [1, 5, 20, 100][rng.usize(..4)];
    let (mut at, mut next, mut sickness) = (rng.u64(..3), 1, 0);
    let mut under_way: Vec<(u64, u64)> = Vec::new();
    for event in 0..rng.u32(35..60) {
        if event % 12 == 0 {
            // Well, ill, or at the edge.
            sickness = [5, 30, 50, 90][rng.usize(..4)];
        }
        let open = guard.breaker.get().map_or(0, |breaker| breaker.open_for().as_millis() as u64);
        let oldest = under_way.first().map_or(at, |(_, since)| *since);
        let slow = config.slow_call.map_or(0, |slow| slow.as_millis() as u64);
        at = match rng.u32(..10) {
            0..=2 => at,
            3..=6 => at + grid * rng.u64(1..3),
            7 if open > 0 => at + (open + rng.u64(..3)).saturating_sub(1),
            8 if slow > 0 => at.max(oldest + slow + rng.u64(..3) - 1),
            9 => at + grid * rng.u64(..40),
            _ => at + 1,
        };
        host.go(at).await;
        let asks =
            under_way.is_empty() || (under_way.len() < patient as usize && rng.bool()) || (limited && rng.bool());
        if asks {
            let call = next;
            next += 1;
            let priority = shares.then(|| pick(rng, &["low", "normal", "high", "critical"]));
            let decision = host.ask(call, priority.as_deref(), false).await;
            if decision.what == "admitted" {
                under_way.push((call, at));
            }
            trace.steps.push(Step::Ask { at, call, priority, then: decision.into() });
        } else {
            let (call, since) = under_way.remove(rng.usize(..under_way.len()));
            let outcome = match rng.u32(..100) {
                0..30 if gives_up => Outcome::GivenUp,
                0..6 => Outcome::GivenUp,
                30..34 => Outcome::Ignored,
                _ if rng.u32(..100) < sickness => {
                    let asks = config.retry_after && rng.bool();
                    Outcome::Failure(asks.then(|| rng.u64(1..30)))
                }
                _ => Outcome::Success,
            };
            let decision = host.end(call, outcome).await;
            if decision.what == "admitted" {
                under_way.push((call, since));
            }
            trace.steps.push(Step::End { at, call, outcome, then: decision.into() });
        }
        if rng.u32(..5) == 0 {
            trace.steps.push(look(host, at).await);
        }
    }
    trace.steps.push(look(host, at).await);
}

async fn look(host: &mut impl Host, at: u64) -> Step {
    let mut standing = host.standing().await;
    // Nobody waits in any of them.
    standing.counts.remove("waiting");
    Step::Look { at, state: standing.state, counts: standing.counts }
}
