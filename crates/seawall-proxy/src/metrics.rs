//! What the data plane counts: one block a service and worker, summed when scraped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_resilience::breaker::State;
use seawall_telemetry::metrics::{Counter, Histogram, Page};
use seawall_types::ServiceName;

use crate::reject::Reason;
use crate::upstream::Upstreams;

/// One worker's counters of one service.
#[derive(Debug, Default)]
pub struct ServiceMetrics {
    /// Responses by the first digit of their status, 1 to 5.
    pub responses: [Counter; 5],
    /// Calls that Seawall answered itself, by [`Reason`].
    pub rejections: [Counter; Reason::COUNT],
    /// Attempts beyond the first.
    pub retries: Counter,
    /// Retries that the budget refused.
    pub budget_exhausted: Counter,
    /// From the request's arrival to the response's head.
    pub latency: Histogram,
    /// Keeps one kind of rejection from filling the log.
    pub(crate) log: [LogLimit; Reason::COUNT],
}

/// Lets one line a second through and counts the rest.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    last: AtomicU64,
    held_back: AtomicU64,
}

impl LogLimit {
    /// How many lines were held back since the last one, if this one may pass.
    pub(crate) fn pass(&self, since_start: Duration) -> Option<u64> {
        // Seconds count from 1, so that the very first line passes.
        let second = since_start.as_secs() + 1;
        if self.last.swap(second, Ordering::Relaxed) == second {
            self.held_back.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.held_back.swap(0, Ordering::Relaxed))
    }
}

impl ServiceMetrics {
    /// Counts a response.
    pub fn response(&self, status: http::StatusCode) {
        if let Some(counter) = self.responses.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            counter.increment();
        }
    }
}

/// How often a breaker has moved to each state; rare enough to be shared.
#[derive(Debug, Default)]
pub struct Transitions([Counter; State::ALL.len()]);

impl Transitions {
    /// Counts one.
    pub fn count(&self, to: State) {
        self.0[to as usize].increment();
    }
}

/// Collects the blocks of all workers.
#[derive(Debug, Default)]
pub struct Registry {
    services: Mutex<BTreeMap<ServiceName, Blocks>>,
}

#[derive(Debug, Default)]
struct Blocks {
    workers: Vec<Arc<ServiceMetrics>>,
    transitions: Arc<Transitions>,
}

impl Registry {
    /// A block for one more worker.
    pub fn worker(&self, service: &ServiceName) -> Arc<ServiceMetrics> {
        let block = Arc::new(ServiceMetrics::default());
        self.services().entry(service.clone()).or_default().workers.push(block.clone());
        block
    }

    /// The transitions of a service's breaker.
    pub fn transitions(&self, service: &ServiceName) -> Arc<Transitions> {
        self.services().entry(service.clone()).or_default().transitions.clone()
    }

    fn services(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Blocks>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that a data plane process has counted, in Prometheus' text format.
pub fn page(upstreams: &Upstreams) -> String {
    let services = upstreams.metrics().services();
    let mut page = Page::default();
    page.family("seawall_responses_total", "counter", "Responses of a service by status class.");
    for (service, blocks) in services.iter() {
        for (at, class) in ["1xx", "2xx", "3xx", "4xx", "5xx"].iter().enumerate() {
            let sum: u64 = blocks.workers.iter().map(|block| block.responses[at].get()).sum();
            page.sample("seawall_responses_total", &[("service", service), ("class", class)], sum);
        }
    }
    page.family("seawall_rejections_total", "counter", "Calls that Seawall answered itself, by reason.");
    for (service, blocks) in services.iter() {
        for reason in Reason::ALL {
            let sum: u64 = blocks.workers.iter().map(|block| block.rejections[reason as usize].get()).sum();
            page.sample("seawall_rejections_total", &[("service", service), ("reason", &reason)], sum);
        }
    }
    type Pick = fn(&ServiceMetrics) -> &Counter;
    let counters: [(&str, &str, Pick); 2] = [
        ("seawall_retries_total", "Attempts beyond the first.", |block| &block.retries),
        ("seawall_retry_budget_exhausted_total", "Retries that the budget refused.", |block| &block.budget_exhausted),
    ];
    for (name, help, pick) in counters {
        page.family(name, "counter", help);
        for (service, blocks) in services.iter() {
            page.sample(name, &[("service", service)], blocks.workers.iter().map(|b| pick(b).get()).sum::<u64>());
        }
    }
    page.family("seawall_request_seconds", "histogram", "From a request's arrival to the head of its response.");
    for (service, blocks) in services.iter() {
        let parts = blocks.workers.iter().map(|block| &block.latency);
        page.histogram("seawall_request_seconds", &[("service", service)], parts);
    }
    page.family("seawall_breaker_transitions_total", "counter", "How often a breaker moved to a state.");
    for (service, blocks) in services.iter() {
        for state in State::ALL {
            let count = blocks.transitions.0[state as usize].get();
            page.sample("seawall_breaker_transitions_total", &[("service", service), ("to", &state)], count);
        }
    }
    drop(services);
    page.family("seawall_breaker_open", "gauge", "1 while the breaker is open, 0.5 while it is half open.");
    for guard in upstreams.guards() {
        if let Some(breaker) = &guard.breaker {
            let value = match breaker.state() {
                State::Closed | State::Disabled | State::MetricsOnly => 0.0,
                State::HalfOpen => 0.5,
                State::Open | State::ForcedOpen => 1.0,
            };
            page.sample("seawall_breaker_open", &[("service", &guard.name)], value);
        }
    }
    page.family("seawall_bulkhead_available", "gauge", "Free places in the bulkhead.");
    for guard in upstreams.guards() {
        if let Some(bulkhead) = &guard.bulkhead {
            page.sample("seawall_bulkhead_available", &[("service", &guard.name)], bulkhead.available());
        }
    }
    page.family("seawall_snapshot_revision", "gauge", "The revision of the registry that is in use.");
    page.sample("seawall_snapshot_revision", &[], upstreams.snapshot().revision);
    page.into_text()
}
