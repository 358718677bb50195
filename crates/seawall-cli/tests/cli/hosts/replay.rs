//! Replaying a trace against a host.

use std::future::Future;

use super::trace::{Decision, Outcome, Standing, Step, Trace};

/// Something that calls a service under policies.
pub(crate) trait Host {
    /// Goes on to a moment, in milliseconds since the beginning.
    fn go(&mut self, at: u64) -> impl Future<Output = ()>;

    /// A call asks. Where it `waits` in a queue, that is a decision too; it is looked for only if it is expected.
    fn ask(&mut self, call: u64, priority: Option<&str>, waits: bool) -> impl Future<Output = Decision>;

    /// The service does something with the attempt that it has; returns when the host has taken that in.
    fn end(&mut self, call: u64, outcome: Outcome) -> impl Future<Output = Decision>;

    /// What becomes of a call that has waited until now.
    fn hear(&mut self, call: u64) -> impl Future<Output = Decision>;

    /// How the policies stand.
    fn standing(&mut self) -> impl Future<Output = Standing>;
}

/// Demands every decision of the trace, in order.
pub(crate) async fn replay(host: &mut impl Host, name: &str, trace: &Trace) {
    for (number, step) in trace.steps.iter().enumerate() {
        host.go(step.at()).await;
        let differs = |got: &dyn std::fmt::Debug| {
            panic!("{name} decides otherwise in `{}`, step {number}\n  trace: {step}\n  got: {got:?}", trace.name)
        };
        match step {
            Step::Ask { call, priority, then, .. } => {
                let decision = host.ask(*call, priority.as_deref(), then.what == "waits").await;
                if !then.met_by(&decision) {
                    differs(&decision);
                }
            }
            Step::End { call, outcome, then, .. } => {
                let decision = host.end(*call, *outcome).await;
                if !then.met_by(&decision) {
                    differs(&decision);
                }
            }
            Step::Hear { call, then, .. } => {
                let decision = host.hear(*call).await;
                if !then.met_by(&decision) {
                    differs(&decision);
                }
            }
            Step::Look { state, counts, .. } => {
                let mut standing = host.standing().await;
                standing.counts.retain(|name, _| counts.contains_key(name));
                if standing.state != *state || standing.counts != *counts {
                    differs(&standing);
                }
            }
        }
    }
}
