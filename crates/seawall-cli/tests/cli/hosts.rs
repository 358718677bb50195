//! One conformance suite, three hosts: the same traces, replayed against the crate, a gateway and a sidecar, bring about
//! the same decisions. The traces are in `tests/traces`; its README says what is in them and how to make them anew.

mod binary;
mod caller;
mod generate;
mod library;
mod replay;
mod trace;
mod wire;
mod within;

use std::collections::BTreeSet;

use caller::Caller;
use library::Library;
use tokio::task::JoinSet;
use trace::{Step, Trace};
use within::Kind;

/// All traces, and how many there are at least: a file that is empty proves nothing.
fn traces() -> Vec<Trace> {
    let mut traces = trace::read("by-hand.jsonl");
    traces.extend(trace::read("real-time.jsonl"));
    traces.extend(trace::read("generated.jsonl"));
    traces.extend(trace::resilience4j());
    assert!(traces.len() > 300, "{}", traces.len());
    traces
}

/// Runs a test's future on one thread, where a step is over before the next begins.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn against(kind: Kind) {
    async fn one(kind: Kind, trace: Trace) {
        let mut running = within::start(kind, &trace).await;
        replay::replay(&mut running.host, &format!("{kind:?}").to_lowercase(), &trace).await;
        running.stop().await;
    }
    for trace in traces() {
        one(kind, trace).await;
    }
    together(trace::read(WAITS), |trace| one(kind, trace)).await;
}

/// Those in which somebody waits: the waits are real, and so they are waited for side by side.
const WAITS: &str = "waits.jsonl";

async fn together<F: Future<Output = ()> + Send + 'static>(traces: Vec<Trace>, one: impl Fn(Trace) -> F) {
    let mut running: JoinSet<()> = traces.into_iter().map(one).collect();
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

/// No decision, outcome or state has gone missing from them: where one is not asked for, all hosts agree.
#[test]
fn the_traces_have_every_decision_in_them() {
    let mut seen = BTreeSet::new();
    for trace in traces().into_iter().chain(trace::read(WAITS)) {
        for step in trace.steps {
            match step {
                Step::Ask { then, .. } => _ = seen.insert(format!("? {}", then.what)),
                Step::End { outcome, then, .. } => _ = seen.insert(format!("! {} {}", outcome.as_str(), then.what)),
                Step::Hear { then, .. } => _ = seen.insert(format!(": {}", then.what)),
                Step::Look { state, .. } => _ = seen.insert(format!("= {state}")),
            }
        }
    }
    let all = [
        "! failure admitted",
        "! failure breaker:half-open",
        "! failure breaker:open",
        "! failure ended",
        "! given-up ended",
        "! ignored ended",
        "! silence admitted",
        "! silence breaker:open",
        "! silence timeout",
        "! success ended",
        ": admitted",
        "= closed",
        "= disabled",
        "= forced-open",
        "= half-open",
        "= metrics-only",
        "= off",
        "= open",
        "? admitted",
        "? breaker:forced-open",
        "? breaker:half-open",
        "? breaker:open",
        "? bulkhead:full",
        "? bulkhead:queue-full",
        "? bulkhead:shed",
        "? chaos:injected",
        "? rate-limit:limited",
        "? rejected",
        "? timeout",
        "? waits",
    ];
    assert_eq!(seen, all.map(str::to_owned).into());
}

/// What is in the file is what the generator makes of its seeds: nobody has edited it, and the crate still decides so.
#[test]
fn the_generated_traces_are_those_of_the_seeds() {
    run(async {
        let lines =
            generate::all().await.iter().map(|trace| serde_json::to_string(trace).unwrap() + "\n").collect::<String>();
        let path = format!("{}/tests/traces/generated.jsonl", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("SEAWALL_REGENERATE").is_some() {
            std::fs::write(&path, &lines).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = kept.lines().zip(lines.lines()).find(|(kept, made)| kept != made);
        assert_eq!(differs, None, "SEAWALL_REGENERATE=1 writes the traces anew");
        assert_eq!(kept.lines().count(), lines.lines().count());
    });
}

#[test]
fn the_crate_decides_as_the_traces_say() {
    run(async {
        let (traces, waits) = (traces(), trace::read(WAITS));
        for trace in traces.iter().chain(&waits).filter(|trace| !trace.is_for_calls()) {
            let (guard, hand) = library::guard(trace);
            replay::replay(&mut Library::new(&guard, hand), "the crate", trace).await;
        }
        for trace in traces.iter().filter(|trace| !trace.has_priorities()) {
            let (guard, hand) = library::guard(trace);
            replay::replay(&mut Caller::new(guard.into(), hand), "a call of the crate", trace).await;
        }
        let waits = waits.into_iter().filter(|trace| !trace.has_priorities()).collect();
        together(waits, |trace| async move {
            let (guard, hand) = library::guard(&trace);
            replay::replay(&mut Caller::new(guard.into(), hand), "a call of the crate", &trace).await;
        })
        .await;
    });
}

#[test]
fn a_gateway_decides_as_the_traces_say() {
    run(against(Kind::Gateway));
}

#[test]
fn a_sidecar_decides_as_the_traces_say() {
    run(against(Kind::Sidecar));
}
