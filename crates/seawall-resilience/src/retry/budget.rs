//! The budget: how many more calls there may be than callers have asked for.

use std::time::Duration;

use seawall_types::Ratio;

use crate::Tick;
use crate::sync::{AtomicU64, Line, Ordering};

/// One token, in the billionths that the bucket is kept in. A floor of `n` tokens a second is then exactly `n` billionths
/// a nanosecond, and every share with up to nine decimals is exact.
const ONE: u64 = 1_000_000_000;
/// No more than this many tokens can be saved up.
const SAVED: u64 = 1000 * ONE;
const SECOND: u64 = Duration::from_secs(1).as_nanos() as u64;

/// A token bucket: every call pays in a share, every retry (or hedge) takes a whole token out. Up to 1000 tokens are
/// saved. Besides, the bucket fills by itself up to `floor` tokens at `floor` tokens a second, for services that are
/// called too seldom to earn any.
///
/// All methods take `&self` and may race: tokens are never lost, and never taken twice. While the bucket is full, the
/// usual state, paying in is one load of a line that nobody writes.
#[derive(Debug)]
pub struct Budget {
    bucket: Line<Bucket>,
    /// What a call pays in, in billionths.
    share: AtomicU64,
    /// The floor, in whole tokens.
    floor: AtomicU64,
}

#[derive(Debug)]
struct Bucket {
    tokens: AtomicU64,
    /// When the floor was last paid in, in nanoseconds.
    refilled: AtomicU64,
}

impl Budget {
    /// The largest floor: as many as can be saved up.
    pub const MAX_FLOOR: u32 = (SAVED / ONE) as u32;

    /// A budget with `floor` tokens in it (at most [`Budget::MAX_FLOOR`]). `ratio` is rounded to nine decimals.
    pub fn new(ratio: Ratio, floor: u32, now: Tick) -> Self {
        let floor = u64::from(floor.min(Self::MAX_FLOOR));
        let bucket = Bucket { tokens: AtomicU64::new(floor * ONE), refilled: AtomicU64::new(now.nanos()) };
        Self { bucket: Line(bucket), share: AtomicU64::new(share(ratio)), floor: AtomicU64::new(floor) }
    }

    /// Goes on with other parameters and the same tokens.
    pub fn reload(&self, ratio: Ratio, floor: u32) {
        self.share.store(share(ratio), Ordering::Relaxed);
        self.floor.store(u64::from(floor.min(Self::MAX_FLOOR)), Ordering::Relaxed);
    }

    /// Pays in for one call.
    #[inline]
    pub fn deposit(&self) {
        if self.bucket.0.tokens.load(Ordering::Relaxed) < SAVED {
            self.pay_in(self.share.load(Ordering::Relaxed));
        }
    }

    /// Takes out one token, if there is one.
    pub fn withdraw(&self, now: Tick) -> bool {
        self.refill(now);
        let taken = |tokens: u64| tokens.checked_sub(ONE);
        self.bucket.0.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// Gives back a token whose retry was not made after all.
    pub fn give_back(&self) {
        self.pay_in(ONE);
    }

    /// How many whole tokens are saved.
    pub fn saved(&self) -> u32 {
        (self.bucket.0.tokens.load(Ordering::Relaxed) / ONE) as u32
    }

    fn pay_in(&self, amount: u64) {
        if amount == 0 {
            return;
        }
        let tokens = &self.bucket.0.tokens;
        // The addition cannot overflow: whoever makes the bucket too full takes the surplus out at once.
        if tokens.fetch_add(amount, Ordering::Relaxed) + amount > SAVED {
            tokens.fetch_min(SAVED, Ordering::Relaxed);
        }
    }

    /// Brings the bucket up to the floor, at the floor's rate.
    fn refill(&self, now: Tick) {
        let Bucket { tokens, refilled } = &self.bucket.0;
        let last = refilled.load(Ordering::Relaxed);
        let elapsed = now.nanos().saturating_sub(last).min(SECOND);
        // Each stretch of time is paid in by whoever moves the mark over it, so by one.
        if elapsed == 0 || refilled.compare_exchange(last, now.nanos(), Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let floor = self.floor.load(Ordering::Relaxed);
        let filled = |tokens: u64| (tokens < floor * ONE).then(|| (tokens + elapsed * floor).min(floor * ONE));
        let _ = tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, filled);
    }
}

fn share(ratio: Ratio) -> u64 {
    (ratio.get() * ONE as f64).round() as u64
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spend(budget: &Budget, now: Tick) -> usize {
        (0..2000).filter(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn any_share_is_exact() {
        for (share, calls, retries) in [
            ("0.15%", 2000, 3),
            ("0.15%", 20_000, 30),
            ("20%", 5, 1),
            ("20%", 4, 0),
            ("29%", 100, 29),
            ("100%", 7, 7),
            ("0.00001%", 10_000_000, 1),
            ("0.00001%", 9_999_999, 0),
            ("0%", 1000, 0),
        ] {
            let budget = Budget::new(share.parse().unwrap(), 0, Tick::default());
            for _ in 0..calls {
                budget.deposit();
            }
            assert_eq!(spend(&budget, Tick::default()), retries, "{share} of {calls}");
        }
    }

    #[test]
    fn a_thousand_are_saved_and_no_more() {
        let budget = Budget::new(Ratio::percent(30), 3, Tick::default());
        for _ in 0..5000 {
            budget.deposit();
        }
        assert_eq!(budget.bucket.0.tokens.load(Ordering::Relaxed), SAVED);
        budget.give_back();
        assert_eq!(spend(&budget, Tick::default()), 1000);
    }

    #[test]
    fn the_floor_allows_so_many_a_second_in_any_case() {
        let budget = Budget::new(Ratio::percent(0), 3, Tick::default());
        let spend = |millis| spend(&budget, Tick::from_millis(millis));
        assert_eq!([0, 0, 333, 334, 1000, 999, 5000].map(spend), [3, 0, 0, 1, 2, 0, 3]);
    }

    #[test]
    fn a_reload_keeps_the_tokens() {
        let budget = Budget::new(Ratio::percent(100), 0, Tick::default());
        (0..5).for_each(|_| budget.deposit());
        budget.reload(Ratio::percent(50), 2);
        assert_eq!(budget.saved(), 5);
        (0..2).for_each(|_| budget.deposit());
        assert_eq!(spend(&budget, Tick::default()), 6);
        assert_eq!(spend(&budget, Tick::from_millis(500)), 1);
    }

    #[test]
    fn threads_take_what_is_there_and_no_more() {
        let budget = Budget::new("0.3".parse().unwrap(), 10, Tick::default());
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut taken = 0;
                        for _ in 0..1000 {
                            budget.deposit();
                            taken += usize::from(budget.withdraw(Tick::default()));
                        }
                        taken
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken + spend(&budget, Tick::default()), 10 + 1200);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deposit(u32),
        Withdraw,
        GiveBack,
        Pass(u64),
        Reload(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1u32..2000).prop_map(Step::Deposit),
            Just(Step::Withdraw),
            Just(Step::Withdraw),
            Just(Step::GiveBack),
            (0u64..3_000_000_000).prop_map(Step::Pass),
            (0u32..=1_000_000, 0u32..20).prop_map(|(millionths, floor)| Step::Reload(millionths, floor)),
        ]
    }

    proptest! {
        /// It does what the same bucket does when it is kept in exact fractions (billiardths).
        #[test]
        fn it_is_the_exact_bucket(
            millionths in 0u32..=1_000_000,
            floor in 0u32..20,
            steps in proptest::collection::vec(step(), 1..60),
        ) {
            const FINE: u128 = 1_000_000_000_000_000;
            let ratio = |millionths| Ratio::try_new(f64::from(millionths) / 1e6).unwrap();
            let budget = Budget::new(ratio(millionths), floor, Tick::default());
            let (mut share, mut floor) = (u128::from(millionths) * FINE / 1_000_000, u128::from(floor));
            let (mut tokens, mut now, mut last) = (floor * FINE, 0u64, 0u64);
            for step in steps {
                match step {
                    Step::Deposit(calls) => (0..calls).for_each(|_| {
                        budget.deposit();
                        tokens = (tokens + share).min(1000 * FINE);
                    }),
                    Step::GiveBack => {
                        budget.give_back();
                        tokens = (tokens + FINE).min(1000 * FINE);
                    }
                    Step::Pass(nanos) => now += nanos,
                    Step::Reload(millionths, other) => {
                        budget.reload(ratio(millionths), other);
                        (share, floor) = (u128::from(millionths) * FINE / 1_000_000, u128::from(other));
                    }
                    Step::Withdraw => {
                        let earned = u128::from(now - last).min(1_000_000_000) * floor * (FINE / 1_000_000_000);
                        if tokens < floor * FINE {
                            tokens = (tokens + earned).min(floor * FINE);
                        }
                        last = now;
                        let allowed = tokens >= FINE;
                        tokens -= if allowed { FINE } else { 0 };
                        prop_assert_eq!(budget.withdraw(Tick::from_nanos(now)), allowed);
                    }
                }
                prop_assert_eq!(u128::from(budget.bucket.0.tokens.load(Ordering::Relaxed)) * 1_000_000, tokens);
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "loom")]
mod model {
    use loom::thread;

    use super::*;
    use crate::sync::Arc;

    /// Under every interleaving: a second of the floor is paid in once, and each token is taken once.
    #[test]
    fn a_floor_is_paid_once() {
        loom::model(|| {
            let budget = Arc::new(Budget::new(Ratio::percent(0), 1, Tick::default()));
            assert!(budget.withdraw(Tick::default()));
            let other = thread::spawn({
                let budget = budget.clone();
                move || u32::from(budget.withdraw(Tick::from_millis(1000)))
            });
            let own = u32::from(budget.withdraw(Tick::from_millis(1000)));
            let taken = own + other.join().expect("no panic");
            // A loser of the race for the mark may come before the winner has paid in.
            assert!(taken + u32::from(budget.withdraw(Tick::from_millis(1000))) == 1);
        });
    }

    /// Under every interleaving: a full bucket stays full.
    #[test]
    fn what_is_saved_is_bounded() {
        loom::model(|| {
            let budget = Arc::new(Budget::new(Ratio::percent(100), Budget::MAX_FLOOR, Tick::default()));
            assert!(budget.withdraw(Tick::default()));
            let other = thread::spawn({
                let budget = budget.clone();
                move || budget.deposit()
            });
            budget.deposit();
            other.join().expect("no panic");
            assert_eq!(budget.saved(), Budget::MAX_FLOOR);
        });
    }
}
