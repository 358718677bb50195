//! What a scheduler has counted since it began, for its metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use seawall_telemetry::metrics::Page;
use seawall_types::ServiceName;

use crate::run::State;

/// Counts; those of jobs that are gone stay until the process ends, at most a few thousand.
#[derive(Debug, Default)]
pub struct Stats {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    runs: BTreeMap<(ServiceName, State), u64>,
    skipped: BTreeMap<ServiceName, u64>,
    missed: BTreeMap<ServiceName, u64>,
    leading: bool,
}

/// Where there are so many of one kind, new names are no longer counted.
const MOST: usize = 10_000;

fn add<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, count: u64) {
    if counts.len() < MOST || counts.contains_key(&key) {
        *counts.entry(key).or_default() += count;
    }
}

impl Stats {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn run(&self, job: &ServiceName, state: State) {
        add(&mut self.lock().runs, (job.clone(), state), 1);
    }

    pub(crate) fn skipped(&self, job: &ServiceName, count: usize) {
        add(&mut self.lock().skipped, job.clone(), u64::try_from(count).unwrap_or(u64::MAX));
    }

    pub(crate) fn missed(&self, job: &ServiceName) {
        add(&mut self.lock().missed, job.clone(), 1);
    }

    pub(crate) fn leads(&self, leading: bool) {
        self.lock().leading = leading;
    }

    /// Adds the families to a page.
    pub fn write(&self, page: &mut Page) {
        let counts = self.lock();
        page.family("seawall_cron_leading", "gauge", "Whether this node runs the scheduled jobs.");
        page.sample("seawall_cron_leading", &[], u8::from(counts.leading));
        page.family("seawall_cron_runs_total", "counter", "Runs of scheduled jobs that this node has ended, by how.");
        for ((job, state), count) in &counts.runs {
            page.sample("seawall_cron_runs_total", &[("job", job), ("result", &state.as_str())], count);
        }
        page.family(
            "seawall_cron_skipped_total",
            "counter",
            "Times of scheduled jobs that have passed and are not run.",
        );
        for (job, count) in &counts.skipped {
            page.sample("seawall_cron_skipped_total", &[("job", job)], count);
        }
        page.family(
            "seawall_cron_missed_total",
            "counter",
            "Alarms: no run has succeeded for the job's `alarm_after`.",
        );
        for (job, count) in &counts.missed {
            page.sample("seawall_cron_missed_total", &[("job", job)], count);
        }
    }
}
