//! What the data plane counts: one block a service and worker, summed when scraped.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_resilience::breaker::{self, State};
use seawall_resilience::{Bulkhead, Guard};
pub use seawall_telemetry::metrics::Counter;
use seawall_telemetry::metrics::{Histogram, Page};
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

/// Collects the blocks of all workers.
#[derive(Debug, Default)]
pub struct Registry {
    services: Mutex<BTreeMap<ServiceName, Blocks>>,
    filters: Mutex<BTreeMap<&'static str, Family>>,
    routes: Mutex<BTreeMap<Box<str>, Vec<Arc<RouteMetrics>>>>,
    times: Mutex<BTreeMap<&'static str, Vec<Arc<Histogram>>>>,
    /// Lines that the access log did not take.
    pub access_log_dropped: Counter,
}

/// One worker's counters of one route.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    /// Answers by the first digit of their status, 1 to 5.
    pub responses: [Counter; 5],
    /// From the request's arrival to the answer's head.
    pub latency: Histogram,
}

/// Routes that are counted at most before those that are no more are forgotten.
const ROUTES: usize = 20_000;

/// Counters of filters, by their labels.
#[derive(Debug)]
struct Family {
    help: &'static str,
    counters: BTreeMap<Vec<(&'static str, String)>, Arc<Counter>>,
}

#[derive(Debug, Default)]
struct Blocks {
    workers: Vec<Arc<ServiceMetrics>>,
}

impl Registry {
    /// A block for one more worker.
    pub fn worker(&self, service: &ServiceName) -> Arc<ServiceMetrics> {
        let block = Arc::new(ServiceMetrics::default());
        self.services().entry(service.clone()).or_default().workers.push(block.clone());
        block
    }

    /// The counter of a filter; the same for the same family and labels.
    pub fn counter(&self, family: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Arc<Counter> {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let family = filters.entry(family).or_insert_with(|| Family { help, counters: BTreeMap::new() });
        family.counters.entry(labels).or_default().clone()
    }

    /// A block for a route of one more worker; one that its worker has no more use for is taken up again.
    pub fn route(&self, id: &str) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if routes.len() >= ROUTES && !routes.contains_key(id) {
            routes.retain(|_, blocks| blocks.iter().any(|block| Arc::strong_count(block) > 1));
        }
        let blocks = routes.entry(id.into()).or_default();
        if let Some(free) = blocks.iter().find(|block| Arc::strong_count(block) == 1) {
            return free.clone();
        }
        let block = Arc::new(RouteMetrics::default());
        blocks.push(block.clone());
        block
    }

    /// The times of a kind of filter in one more worker.
    pub fn times(&self, filter: &'static str) -> Arc<Histogram> {
        let histogram = Arc::new(Histogram::default());
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.entry(filter).or_default().push(histogram.clone());
        histogram
    }

    fn write_routes(&self, page: &mut Page) {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        page.family(
            "seawall_route_responses_total",
            "counter",
            "Answers of a route by status class, whoever gave them.",
        );
        for (route, blocks) in routes.iter() {
            for (at, class) in ["1xx", "2xx", "3xx", "4xx", "5xx"].iter().enumerate() {
                let sum: u64 = blocks.iter().map(|block| block.responses[at].get()).sum();
                page.sample("seawall_route_responses_total", &[("route", route), ("class", class)], sum);
            }
        }
        page.family("seawall_route_seconds", "histogram", "From a request's arrival to its answer's head, by route.");
        for (route, blocks) in routes.iter() {
            let parts = blocks.iter().map(|block| &block.latency);
            page.histogram("seawall_route_seconds", &[("route", route)], parts);
        }
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        page.family("seawall_filter_seconds", "histogram", "What a filter takes, without what comes after it.");
        for (filter, histograms) in times.iter() {
            let parts = histograms.iter().map(|histogram| &**histogram);
            page.histogram("seawall_filter_seconds", &[("filter", filter)], parts);
        }
        page.family("seawall_access_log_dropped_total", "counter", "Requests that the access log had no place for.");
        page.sample("seawall_access_log_dropped_total", &[], self.access_log_dropped.get());
    }

    fn write_filters(&self, page: &mut Page) {
        for (name, family) in self.filters.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            page.family(name, "counter", family.help);
            for (labels, counter) in &family.counters {
                let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, value as &dyn Display)).collect();
                page.sample(name, &labels, counter.get());
            }
        }
    }

    fn services(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Blocks>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the policies have counted; read here, so that counting costs the calls nothing.
fn policies(page: &mut Page, guards: &[Arc<Guard>]) {
    let breakers = || guards.iter().filter_map(|guard| Some((guard.name(), guard.breaker.get()?)));
    page.family("seawall_breaker_state", "gauge", "1 for the state that the breaker is in.");
    for (name, breaker) in breakers() {
        let now = breaker.state();
        for state in State::ALL {
            let labels: [(&str, &dyn Display); 2] = [("service", &name), ("state", &state)];
            page.sample("seawall_breaker_state", &labels, u8::from(state == now));
        }
    }
    page.family("seawall_breaker_transitions_total", "counter", "How often the breaker moved to a state.");
    for (name, breaker) in breakers() {
        let moves = breaker.counts().moves;
        for state in State::ALL {
            let labels: [(&str, &dyn Display); 2] = [("service", &name), ("to", &state)];
            page.sample("seawall_breaker_transitions_total", &labels, moves[state as usize]);
        }
    }
    type OfBreaker = fn(&breaker::Counts) -> u64;
    let counters: [(&str, &str, OfBreaker); 6] = [
        ("seawall_breaker_calls_total", "Calls that the breaker has counted.", |c| c.calls),
        ("seawall_breaker_failed_total", "How many of them failed.", |c| c.failed),
        ("seawall_breaker_slow_total", "How many of them were slow.", |c| c.slow),
        ("seawall_breaker_rejected_total", "Calls that the breaker turned away.", |c| c.rejected),
        ("seawall_breaker_late_total", "Results that came after a change of state.", |c| c.late),
        ("seawall_breaker_would_open_total", "How often the watched thresholds were reached.", |c| c.would_open),
    ];
    for (family, help, pick) in counters {
        page.family(family, "counter", help);
        for (name, breaker) in breakers() {
            page.sample(family, &[("service", &name)], pick(&breaker.counts()));
        }
    }
    type OfBulkhead = fn(&Bulkhead) -> u32;
    let gauges: [(&str, &str, OfBulkhead); 3] = [
        ("seawall_bulkhead_limit", "Places in the bulkhead.", Bulkhead::limit),
        ("seawall_bulkhead_in_use", "Places that are taken.", Bulkhead::in_use),
        ("seawall_bulkhead_waiting", "Calls that wait for a place.", Bulkhead::waiting),
    ];
    for (family, help, pick) in gauges {
        page.family(family, "gauge", help);
        for guard in guards {
            if let Some(bulkhead) = guard.bulkhead.get() {
                page.sample(family, &[("service", &guard.name())], pick(bulkhead));
            }
        }
    }
    type OfGuard = fn(&Guard) -> Option<u64>;
    let counters: [(&str, &str, OfGuard); 4] = [
        ("seawall_retry_recovered_total", "Calls that a retry has saved.", |g| Some(g.retry.counts().recovered)),
        ("seawall_retry_chain_exhausted_total", "Retries that the chain of calls refused.", |g| {
            Some(g.retry.counts().chain)
        }),
        ("seawall_hedges_total", "Calls made beside one that took long.", |g| Some(g.hedge.get()?.counts().hedges)),
        ("seawall_hedges_won_total", "How many of them answered first.", |g| Some(g.hedge.get()?.counts().won)),
    ];
    for (family, help, pick) in counters {
        page.family(family, "counter", help);
        for guard in guards {
            if let Some(count) = pick(guard) {
                page.sample(family, &[("service", &guard.name())], count);
            }
        }
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
    drop(services);
    upstreams.metrics().write_routes(&mut page);
    policies(&mut page, &upstreams.guards());
    upstreams.metrics().write_filters(&mut page);
    page.family("seawall_snapshot_revision", "gauge", "The revision of the registry that is in use.");
    page.sample("seawall_snapshot_revision", &[], upstreams.snapshot().revision);
    page.into_text()
}
