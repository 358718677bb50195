//! Metrics: counters that only their own worker writes, summed when somebody asks, in Prometheus' text format.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows. Each worker has its own, so that adding never contends.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been counted.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of the latency buckets, in microseconds; the last bucket has none.
const BOUNDS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// How long things took, in fixed buckets from half a millisecond to ten seconds.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Adds one duration.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// Writes a page of metrics.
#[derive(Debug, Default)]
pub struct Page(String);

/// The labels of one sample.
pub type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

impl Page {
    /// Starts a family; its samples follow. `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Adds one sample.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    /// Adds the sum of several workers' histograms, in seconds.
    pub fn histogram<'a>(
        &mut self,
        name: &str,
        labels: Labels<'_>,
        parts: impl Iterator<Item = &'a Histogram> + Clone,
    ) {
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for at in 0..=BOUNDS.len() {
            count += parts.clone().map(|part| part.buckets[at].load(Ordering::Relaxed)).sum::<u64>();
            let bound = BOUNDS.get(at).map_or("+Inf".to_owned(), |micros| (*micros as f64 / 1e6).to_string());
            let labels: Vec<_> = labels.iter().copied().chain([("le", &bound as &dyn Display)]).collect();
            self.sample(&bucket, &labels, count);
        }
        let micros: u64 = parts.map(|part| part.micros.load(Ordering::Relaxed)).sum();
        self.sample(&format!("{name}_sum"), labels, micros as f64 / 1e6);
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_of_workers_add_up_and_labels_are_escaped() {
        let parts = [Histogram::default(), Histogram::default()];
        parts[0].record(Duration::from_micros(500));
        parts[0].record(Duration::from_millis(3));
        parts[1].record(Duration::from_secs(60));
        let mut page = Page::default();
        page.family("seawall_x_seconds", "histogram", "how long");
        page.histogram("seawall_x_seconds", &[("service", &"a\"b")], parts.iter());
        let text = page.into_text();
        for line in [
            r#"seawall_x_seconds_bucket{service="a\"b",le="0.0005"} 1"#,
            r#"seawall_x_seconds_bucket{service="a\"b",le="0.005"} 2"#,
            r#"seawall_x_seconds_bucket{service="a\"b",le="10"} 2"#,
            r#"seawall_x_seconds_bucket{service="a\"b",le="+Inf"} 3"#,
            r#"seawall_x_seconds_sum{service="a\"b"} 60.0035"#,
            r#"seawall_x_seconds_count{service="a\"b"} 3"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
