//! Retry: exponential backoff with full jitter, and a budget that keeps a bad moment from becoming a storm.
//!
//! Jitter after Brooker, "Exponential Backoff and Jitter" (AWS, 2015). The budget is Finagle's idea (each call earns a
//! share of a retry, each retry costs one), kept in thousandths so that any ratio is exact, and charged when the retry
//! is decided, so that those which still wait for their backoff are counted.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use seawall_types::{Period, Ratio};

/// How a call is repeated; every field is within its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// All attempts, the first included: 1 means no retry.
    pub attempts: u32,
    /// The longest wait before the first retry; it doubles each time.
    pub backoff: Period,
    /// No wait is longer.
    pub max_backoff: Period,
    /// How many retries there may be for every call that is made.
    pub budget: Ratio,
}

impl Retry {
    /// How long to wait before retry number `retry` (1 is the first): anything from zero to the doubled backoff.
    /// `random` is uniform in 0..1.
    pub fn delay(&self, retry: u32, random: f64) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << retry.saturating_sub(1).min(20));
        doubled.min(self.max_backoff.get()).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// One retry, in the thousandths that the budget is kept in.
const ONE: i64 = 1000;
/// No more than this many retries can be saved up.
const SAVED: i64 = 1000 * ONE;
/// Without any traffic to earn from, this many retries a second are still allowed.
const FLOOR: i64 = 3 * ONE;

/// A token bucket: every first attempt pays in a share, every retry takes a whole token out.
#[derive(Debug)]
pub struct Budget {
    share: i64,
    tokens: AtomicI64,
    /// When the floor was last paid in, in milliseconds since `base`.
    refilled: AtomicU64,
    base: Instant,
}

impl Budget {
    /// A budget with the floor of one second in it.
    pub fn new(ratio: Ratio) -> Self {
        Self {
            share: (ratio.get() * ONE as f64).round() as i64,
            tokens: AtomicI64::new(FLOOR),
            refilled: AtomicU64::new(0),
            base: Instant::now(),
        }
    }

    /// Pays in for one call.
    pub fn deposit(&self) {
        // A plain load keeps a full bucket, the usual state, from being written at all.
        if self.tokens.load(Ordering::Relaxed) < SAVED {
            self.tokens.fetch_add(self.share, Ordering::Relaxed);
        }
    }

    /// Takes out one retry, if there is one.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.refill(now);
        self.tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n >= ONE).then_some(n - ONE)).is_ok()
    }

    /// Brings the bucket up to the floor, at the floor's rate.
    fn refill(&self, now: Instant) {
        let now = u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX);
        let last = self.refilled.load(Ordering::Acquire);
        let earned = i64::try_from(now.saturating_sub(last)).unwrap_or(i64::MAX).min(1000) * FLOOR / 1000;
        if earned > 0 && self.refilled.compare_exchange(last, now, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let _ = self
                .tokens
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < FLOOR).then_some((n + earned).min(FLOOR)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_limit() {
        let retry = Retry {
            attempts: 9,
            backoff: Period::millis(50),
            max_backoff: Period::millis(300),
            budget: Ratio::percent(20),
        };
        let delays: Vec<_> = (1..=5).map(|n| retry.delay(n, 1.0).as_millis()).collect();
        assert_eq!(delays, [50, 100, 200, 300, 300]);
        assert_eq!(retry.delay(3, 0.0), Duration::ZERO);
        assert_eq!(retry.delay(u32::MAX, 1.0).as_millis(), 300);
    }

    #[test]
    fn the_floor_allows_three_a_second() {
        let budget = Budget::new(Ratio::percent(0));
        let start = Instant::now();
        let spend = |after: u64| (0..100).filter(|_| budget.withdraw(start + Duration::from_millis(after))).count();
        assert_eq!((spend(0), spend(1100), spend(1100), spend(60_000)), (3, 3, 0, 3));
    }

    proptest! {
        /// Whatever the ratio: retries never exceed the share of the calls, beyond the floor that it starts with.
        #[test]
        fn retries_stay_within_the_share(percent in 0u8..=100, calls in 1u32..500) {
            let budget = Budget::new(Ratio::percent(percent));
            let now = budget.base;
            let mut retries = 0;
            for _ in 0..calls {
                budget.deposit();
                retries += u32::from(budget.withdraw(now));
            }
            let earned = f64::from(calls) * f64::from(percent) / 100.0;
            prop_assert!(f64::from(retries) <= earned + 3.0);
            prop_assert!(f64::from(retries) >= earned.floor());
        }
    }
}
