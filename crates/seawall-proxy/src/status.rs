//! How the policies of a process are, for people and programs that ask: what they say, where they stand, and why.

use std::time::SystemTime;

use seawall_resilience::breaker::{BadCall, Breaker, State};
use seawall_resilience::{Guard, Tick};
use serde_json::{Value, json};

use crate::upstream::Upstreams;

/// An order that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Nobody has called the service from here.
    #[error("`{0}` has not been called from here")]
    UnknownService(String),
    /// Its breaker is switched off.
    #[error("the breaker of `{0}` is switched off in the file")]
    NoBreaker(String),
    /// There is no such state.
    #[error("`{0}` is no state to put a breaker in: there is closed, open, disabled, forced-open, metrics-only")]
    UnknownState(String),
}

/// The policies of every service that has been called from here, and the last transitions.
pub fn policies(upstreams: &Upstreams) -> Value {
    let guards: Vec<Value> = upstreams.guards().iter().map(|guard| of(guard)).collect();
    let events = upstreams.events().recent();
    let events: Vec<Value> = events
        .iter()
        .map(|event| json!({ "at": seconds(event.at), "service": event.instance.as_str(), "what": event.to_string() }))
        .collect();
    json!({ "guards": guards, "events": events })
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn of(guard: &Guard) -> Value {
    let now = guard.clock().now();
    let (timeout, attempt) = guard.timeout.limits();
    let retry = guard.retry.counts();
    let mut view = json!({
        "service": guard.name().as_str(),
        "timeout_ms": timeout.as_millis() as u64,
        "attempt_timeout_ms": attempt.map(|attempt| attempt.as_millis() as u64),
        "retry": { "retries": retry.retries, "recovered": retry.recovered, "budget": guard.retry.budget().saved() },
        "breaker": guard.breaker.get().map(|breaker| breaker_view(breaker, now)),
    });
    if let Some(bulkhead) = guard.bulkhead.get() {
        view["bulkhead"] =
            json!({ "limit": bulkhead.limit(), "in_use": bulkhead.in_use(), "waiting": bulkhead.waiting() });
    }
    if let Some(limiter) = guard.rate_limit.get() {
        view["rate_limit"] = json!({ "available": limiter.available() });
    }
    if let Some(hedge) = guard.hedge.get() {
        let counts = hedge.counts();
        let delay = hedge.delay().map(|delay| delay.as_secs_f64() * 1000.0);
        view["hedge"] = json!({ "delay_ms": delay, "hedges": counts.hedges, "won": counts.won });
    }
    if let Some(throttle) = guard.throttle.get() {
        view["throttle"] = json!({ "rejects": throttle.probability_at(now) });
    }
    if let Some(seed) = guard.chaos.seed() {
        view["chaos"] = json!({ "seed": seed, "decisions": guard.chaos.decisions() });
    }
    view
}

fn breaker_view(breaker: &Breaker, now: Tick) -> Value {
    let (sums, counts) = (breaker.sums(), breaker.counts());
    let bad = |call: &BadCall| {
        json!({
            "ago_ms": now.since(call.at).as_millis() as u64,
            "took_ms": call.took.map(|took| took.as_secs_f64() * 1000.0),
            "cause": call.cause,
            "trace": (call.trace != 0).then(|| format!("{:032x}", call.trace)),
        })
    };
    json!({
        "state": breaker.state().as_str(),
        "open_for_ms": breaker.open_for().as_millis() as u64,
        "calls": sums.calls,
        "failed": sums.failed,
        "slow": sums.slow,
        "opened": counts.moves[State::Open as usize],
        "rejected": counts.rejected,
        "would_open": counts.would_open,
        "bad_calls": breaker.bad_calls().iter().map(bad).collect::<Vec<_>>(),
    })
}

/// Puts the breaker of a service into a state, as an operator orders.
///
/// # Errors
/// [`OrderError`].
pub fn order(upstreams: &Upstreams, service: &str, state: &str) -> Result<(), OrderError> {
    let mut orders = State::ALL.into_iter().filter(|known| *known != State::HalfOpen);
    let state =
        orders.find(|known| known.as_str() == state).ok_or_else(|| OrderError::UnknownState(state.to_owned()))?;
    let guard = upstreams.known_guard(service).ok_or_else(|| OrderError::UnknownService(service.to_owned()))?;
    let breaker = guard.breaker.get().ok_or_else(|| OrderError::NoBreaker(service.to_owned()))?;
    breaker.set(state);
    Ok(())
}
