//! One conformance suite, three hosts: the same traces, replayed against the crate, a gateway and a sidecar, bring about
//! the same decisions. The traces are in `tests/traces`; its README says what is in them and how to make them anew.

mod library;
mod replay;
mod trace;
mod wire;
mod within;

use library::Library;
use trace::Trace;
use within::Kind;

/// All traces, and how many there are at least: a file that is empty proves nothing.
fn traces() -> Vec<Trace> {
    let mut traces = trace::read("by-hand.jsonl");
    traces.extend(trace::resilience4j());
    traces
}

/// Runs a test's future on one thread, where a step is over before the next begins.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn against(kind: Kind) {
    let name = format!("{kind:?}").to_lowercase();
    for trace in traces() {
        let mut running = within::start(kind, &trace).await;
        replay::replay(&mut running.host, &name, &trace).await;
        running.stop().await;
    }
}

#[test]
fn the_crate_decides_as_the_traces_say() {
    run(async {
        for trace in traces() {
            let (guard, hand) = library::guard(&trace);
            replay::replay(&mut Library::new(&guard, hand), "the crate", &trace).await;
        }
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
