//! What a service's latencies look like: an estimator of percentiles that is lock-free, bounded and forgetful.
//!
//! Log-linear buckets as in HdrHistogram (Tene): each power of two is cut into 32 equal parts. The error is that of a
//! bucket's width, whatever the distribution. Old samples fade: whenever [`WINDOW`] of them have come together, all
//! counts are halved, so a sample's weight halves about every `WINDOW / 2` calls.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::sync::{AtomicBool, AtomicU32, Line, Ordering};

/// The finest distinction, as a power of two in nanoseconds: about a microsecond.
const UNIT: u32 = 10;
/// Parts of a power of two, as a power of two.
const PARTS: u32 = 5;
/// Everything from `2^(UNIT + REACH)` nanoseconds on, 68 seconds, is one.
const REACH: u32 = 26;
const BUCKETS: usize = ((REACH - PARTS + 1) << PARTS) as usize;
/// Threads write to different copies of the buckets, so that they do not meet.
const STRIPES: usize = 4;

/// How many samples may come together before all are halved.
pub(super) const WINDOW: u32 = 4096;

/// Counts of latencies. About 11 KB.
#[derive(Debug)]
pub(super) struct Latencies {
    stripes: Box<[Line<Stripe>; STRIPES]>,
    /// Held by whoever adds up or halves; the others go on without.
    busy: AtomicBool,
}

#[derive(Debug)]
struct Stripe {
    /// Samples in this stripe since the beginning.
    seen: AtomicU32,
    buckets: [AtomicU32; BUCKETS],
}

impl Default for Stripe {
    fn default() -> Self {
        Self { seen: AtomicU32::new(0), buckets: std::array::from_fn(|_| AtomicU32::new(0)) }
    }
}

impl Latencies {
    pub(super) fn new() -> Self {
        Self { stripes: Box::new(std::array::from_fn(|_| Line::default())), busy: AtomicBool::new(false) }
    }

    /// Notes a sample, in two additions to lines that are usually the thread's own. Returns how many its stripe has seen.
    pub(super) fn record(&self, latency: Duration) -> u32 {
        let stripe = &self.stripes[own()].0;
        stripe.buckets[bucket(latency)].fetch_add(1, Ordering::Relaxed);
        stripe.seen.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// The latency that a share of `rank` in 10,000 of the samples does not exceed (by nearest rank, so always that of a
    /// sample), rounded up to the end of its bucket: never less than the exact one, and more by at most 1/32 of it and
    /// a microsecond. `None` below `minimum` samples, and while another thread does the same. Halves when it is time to.
    ///
    /// Costs some microseconds: for now and then.
    pub(super) fn percentile(&self, rank: u32, minimum: u32) -> Option<Duration> {
        if self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        let mut counts = [0u32; BUCKETS];
        for stripe in self.stripes.iter() {
            for (sum, count) in counts.iter_mut().zip(&stripe.0.buckets) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        let total: u32 = counts.iter().sum();
        if total >= WINDOW {
            self.halve();
        }
        self.busy.store(false, Ordering::Release);
        if total == 0 || total < minimum {
            return None;
        }
        let wanted = (u64::from(total) * u64::from(rank)).div_ceil(10_000).max(1);
        let mut below = 0;
        let found = counts.iter().position(|count| {
            below += u64::from(*count);
            below >= wanted
        });
        Some(end(found.unwrap_or(BUCKETS - 1)))
    }

    /// Halves all counts. The halves of odd ones go to every other bucket, so that the total is halved too and a single
    /// old sample does not stay for ever.
    fn halve(&self) {
        for stripe in self.stripes.iter() {
            let mut carry = u32::from(fastrand::bool());
            for count in &stripe.0.buckets {
                let old = count.load(Ordering::Relaxed);
                if old > 0 {
                    let kept = (old + carry) / 2;
                    carry ^= old & 1;
                    // Taken away rather than stored: what is added meanwhile stays.
                    count.fetch_sub(old - kept, Ordering::Relaxed);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn total(&self) -> u32 {
        self.stripes.iter().flat_map(|stripe| &stripe.0.buckets).map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// The bucket of a latency: up to 32 units one bucket for each, then 32 for each power of two.
fn bucket(latency: Duration) -> usize {
    let units = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX) >> UNIT;
    let units = units.min((1 << REACH) - 1) as u32;
    let shift = (u32::BITS - units.leading_zeros()).saturating_sub(PARTS + 1);
    ((shift << PARTS) + (units >> shift)) as usize
}

/// The longest latency of a bucket.
fn end(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    let shift = (bucket >> PARTS).saturating_sub(1);
    let units = (bucket - (shift << PARTS) + 1) << shift;
    Duration::from_nanos((units << UNIT) - 1)
}

/// The stripe of this thread.
fn own() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    OWN.with(|own| *own)
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact(samples: &mut [Duration], rank: u32) -> Duration {
        samples.sort_unstable();
        let wanted = (samples.len() * rank as usize).div_ceil(10_000).max(1);
        samples[wanted - 1]
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        assert_eq!((bucket(Duration::ZERO), bucket(Duration::MAX)), (0, BUCKETS - 1));
        for index in 0..BUCKETS {
            assert_eq!(bucket(end(index)), index);
            if index + 1 < BUCKETS {
                assert_eq!(bucket(end(index) + Duration::from_nanos(1)), index + 1);
            }
        }
        assert_eq!(end(BUCKETS - 1).as_secs(), 68);
    }

    proptest! {
        /// Never less than the exact percentile, and more by at most 1/32 of it and a microsecond.
        #[test]
        fn the_error_is_bounded(
            exponents in proptest::collection::vec((0u32..36, any::<u64>()), 1..500),
            rank in 1u32..=9999,
        ) {
            let latencies = Latencies::new();
            let mut samples = Vec::new();
            for (exponent, random) in exponents {
                // As many short ones as long ones.
                let sample = Duration::from_nanos((1 << exponent) + random % (1 << exponent));
                samples.push(sample);
                latencies.record(sample);
            }
            let (estimate, exact) = (latencies.percentile(rank, 1).unwrap(), exact(&mut samples, rank));
            prop_assert!(estimate >= exact);
            prop_assert!(estimate <= exact + exact / 32 + Duration::from_nanos(1024), "{estimate:?} {exact:?}");
        }

        /// Halving keeps half of everything, to within one in each stripe.
        #[test]
        fn halving_halves(samples in proptest::collection::vec(0u64..100_000_000, 1..2000)) {
            let latencies = Latencies::new();
            for sample in &samples {
                latencies.record(Duration::from_nanos(*sample));
            }
            latencies.halve();
            let half = samples.len() as u32 / 2;
            prop_assert!((half..=half + 1).contains(&latencies.total()));
        }
    }

    #[test]
    fn a_new_regime_takes_over() {
        let latencies = Latencies::new();
        let percentile = |latency: u64, calls: u32| {
            for _ in 0..calls {
                if latencies.record(Duration::from_millis(latency)).is_multiple_of(256) {
                    latencies.percentile(9500, 1);
                }
            }
            latencies.percentile(9500, 1).unwrap().as_millis()
        };
        assert_eq!(percentile(1, 20_000), 1);
        assert!(latencies.total() < WINDOW + 256);
        // A service that turns slow shows after a twentieth of the window; one that turns fast after a few halvings.
        assert!(percentile(100, WINDOW / 10) >= 100);
        assert_eq!(percentile(1, 4 * WINDOW), 1);
    }

    #[test]
    fn an_old_outlier_is_forgotten() {
        let latencies = Latencies::new();
        latencies.record(Duration::from_secs(60));
        let halvings = (1..).find(|_| {
            latencies.halve();
            latencies.total() == 0
        });
        assert!(halvings.unwrap() < 100);
    }

    #[test]
    fn threads_lose_nothing() {
        let latencies = Latencies::new();
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let latencies = &latencies;
                scope.spawn(move || {
                    for _ in 0..500 {
                        latencies.record(Duration::from_millis(thread));
                    }
                });
            }
        });
        assert_eq!(latencies.total(), 4000);
        assert_eq!(latencies.percentile(5000, 4000).unwrap().as_millis(), 3);
        assert_eq!(latencies.percentile(5000, 4001), None);
    }
}
