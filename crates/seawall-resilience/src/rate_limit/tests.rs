use std::sync::Arc;

use proptest::prelude::*;
use tokio::time::{Instant, timeout};

use super::*;
use crate::clock::Manual;

const LONG: Duration = Duration::from_secs(1 << 20);
const BOTH: [Algorithm; 2] = [Algorithm::Gcra, Algorithm::TokenBucket];

fn config(algorithm: Algorithm, rate: &str, burst: u32, wait: Period) -> Config {
    Config { algorithm, rate: rate.parse().unwrap(), burst, wait }
}

fn limiter(config: Config) -> (RateLimiter, Manual) {
    let (clock, hand) = Clock::manual();
    // A beginning that is not zero, as a real clock's is not.
    hand.advance(Duration::from_secs(77));
    (RateLimiter::new("payment".into(), config, clock), hand)
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_service_takes_from_the_default_and_mistakes_are_named() {
    let base = RateLimitConfig { rate: Some("100/s".parse().unwrap()), ..RateLimitConfig::default() };
    let own = RateLimitConfig { burst: Some(7), wait: Some(Period::secs(1)), ..RateLimitConfig::default() };
    assert_eq!(own.resolve(), None, "no rate, no limit");
    assert_eq!(own.or(&base).resolve(), Some(config(Algorithm::Gcra, "100/s", 7, Period::secs(1))));
    assert_eq!(base.resolve().unwrap().burst, 100);
    assert_eq!(RateLimitConfig { enabled: Some(false), ..base.clone() }.resolve(), None);

    let problems = |config: RateLimitConfig| {
        let mut found = Problems::default();
        config.problems(&mut found);
        found.into_vec()
    };
    assert_eq!(problems(own.or(&base)), []);
    let rate = Some("1/24h".parse().unwrap());
    let wrong = RateLimitConfig { burst: Some(0), wait: Some(Period::secs(7200)), ..base };
    let endless = RateLimitConfig { rate, burst: Some(1_000_000), ..RateLimitConfig::default() };
    assert_eq!(
        problems(wrong),
        [
            ("rate_limit.burst".to_owned(), "is 0, allowed is 1 to 1000000".to_owned()),
            ("rate_limit.wait".to_owned(), "is 2h, allowed is 0s to 1h".to_owned()),
        ]
    );
    assert_eq!(problems(endless.clone())[0].1, "of 1000000 would take more than a year to come back at 1/24h");
    assert_eq!(endless.resolve().unwrap().burst, 366, "an unchecked value is brought into its range");
}

#[test]
fn the_burst_passes_at_once_and_then_the_rate() {
    let (limiter, hand) = limiter(config(Algorithm::Gcra, "10/s", 3, Period::default()));
    let all = |limiter: &RateLimiter| (0..100).filter(|_| limiter.try_acquire().is_ok()).count();
    assert_eq!(limiter.available(), 3);
    assert_eq!(all(&limiter), 3);
    assert_eq!(limiter.try_acquire().unwrap_err().retry_after, Some(Duration::from_millis(100)));
    hand.advance(Duration::from_millis(99));
    let rejected = limiter.try_acquire().unwrap_err();
    assert_eq!((rejected.policy, rejected.reason), (PolicyName::RateLimit, Reason::Limited));
    assert_eq!(rejected.retry_after, Some(Duration::from_millis(1)));
    hand.advance(Duration::from_millis(1));
    assert_eq!(all(&limiter), 1);
    hand.advance(seconds(60));
    assert_eq!(limiter.try_acquire_n(4).unwrap_err().retry_after, None, "more than the burst never pass together");
    assert_eq!((limiter.try_acquire_n(3), limiter.try_acquire_n(0)), (Ok(()), Ok(())));
    assert_eq!(limiter.try_acquire_n(2).unwrap_err().retry_after, Some(Duration::from_millis(200)));
}

#[test]
fn the_bucket_is_refilled_at_boundaries_alone() {
    let (limiter, hand) = limiter(config(Algorithm::TokenBucket, "10/s", 15, Period::default()));
    let all = |limiter: &RateLimiter| (0..100).filter(|_| limiter.try_acquire().is_ok()).count();
    assert_eq!(all(&limiter), 15);
    hand.advance(Duration::from_millis(999));
    assert_eq!(all(&limiter), 0);
    assert_eq!(limiter.try_acquire().unwrap_err().retry_after, Some(Duration::from_millis(1)));
    assert_eq!(limiter.try_acquire_n(11).unwrap_err().retry_after, Some(Duration::from_millis(1001)));
    assert_eq!(limiter.try_acquire_n(16).unwrap_err().retry_after, None);
    hand.advance(Duration::from_millis(1));
    assert_eq!(all(&limiter), 10);
    hand.advance(seconds(2));
    assert_eq!(limiter.available(), 15);
    limiter.drain();
    assert_eq!((limiter.available(), all(&limiter)), (0, 0));
}

#[test]
fn draining_leaves_what_comes_back() {
    for algorithm in BOTH {
        let (limiter, hand) = limiter(config(algorithm, "1/s", 5, Period::default()));
        limiter.drain();
        assert_eq!((limiter.available(), limiter.try_acquire().is_ok()), (0, false));
        hand.advance(seconds(2));
        assert_eq!(limiter.available(), 2, "{algorithm:?}");
    }
}

#[test]
fn a_bucket_outlives_its_count_of_periods() {
    // The number of a period goes round after 2^36 of a millisecond each.
    let (limiter, hand) = limiter(config(Algorithm::TokenBucket, "1/ms", 1, Period::default()));
    let year = seconds(365 * 24 * 3600);
    for _ in 0..5 {
        assert!(limiter.try_acquire().is_ok());
        assert!(limiter.try_acquire().is_err());
        hand.advance(year);
    }
}

#[test]
fn a_reload_keeps_what_was_taken() {
    for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(from, to)| (BOTH[from], BOTH[to])) {
        for (rate, burst, left) in [("100/s", 150, 70), ("100/s", 50, 0), ("10/m", 100, 20), ("7/500ms", 81, 1)] {
            let (limiter, hand) = limiter(config(from, "100/s", 100, Period::default()));
            assert_eq!(limiter.try_acquire_n(80), Ok(()));
            let new = config(to, rate, burst, Period::secs(1));
            limiter.reload(new.clone());
            assert_eq!(limiter.config(), new);
            assert_eq!(limiter.available(), left, "{from:?} to {to:?} at {rate} and {burst}");
            assert_eq!(limiter.try_acquire_n(left), Ok(()));
            assert!(limiter.try_acquire().is_err());
            hand.advance(LONG);
            assert_eq!(limiter.available(), burst);
        }
    }
}

#[test]
fn a_reload_of_the_wait_alone_changes_no_rule() {
    let (limiter, _) = limiter(config(Algorithm::TokenBucket, "1/s", 1, Period::default()));
    assert!(limiter.try_acquire().is_ok());
    assert!(limiter.reserve(LONG, || limiter.clock.now()).is_err());
    limiter.reload(config(Algorithm::TokenBucket, "1/s", 1, Period::secs(5)));
    let turn = limiter.reserve(LONG, || limiter.clock.now()).unwrap().unwrap();
    assert_eq!(turn.wait, seconds(1));
    assert_eq!(limiter.generation(), 0);
}

#[test]
fn a_turn_from_before_a_reload_is_not_given_back() {
    for algorithm in BOTH {
        let (limiter, _) = limiter(config(algorithm, "1/s", 1, Period::secs(10)));
        assert!(limiter.try_acquire().is_ok());
        let turn = limiter.reserve(LONG, || limiter.clock.now()).unwrap().unwrap();
        limiter.reload(config(algorithm, "1/s", 2, Period::secs(10)));
        assert_eq!(limiter.available(), 0);
        drop(turn);
        assert_eq!(limiter.available(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_turn_and_no_longer_than_it_may() {
    for algorithm in BOTH {
        let limiter = RateLimiter::new("payment".into(), config(algorithm, "1/s", 1, Period::secs(2)), Clock::tokio());
        let start = Instant::now();
        assert_eq!(limiter.acquire(LONG).await, Ok(()));
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(limiter.acquire(LONG).await, Ok(()));
        assert_eq!(start.elapsed(), seconds(1));
        let (first, second, third) = tokio::join!(limiter.acquire(LONG), limiter.acquire(LONG), limiter.acquire(LONG));
        assert_eq!((first, second), (Ok(()), Ok(())));
        // The third would have had its turn in 3s: it was told so at once, and that there is one to try then.
        assert_eq!(third.unwrap_err().retry_after, Some(seconds(3)));
        assert_eq!(start.elapsed(), seconds(3));
        let before = Instant::now();
        assert!(limiter.acquire(Duration::from_millis(999)).await.is_err());
        assert_eq!(before.elapsed(), Duration::ZERO, "it does not wait in vain");
        assert_eq!(limiter.acquire(Duration::from_millis(1000)).await, Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_gives_its_turn_back() {
    for algorithm in BOTH {
        let limiter = RateLimiter::new("payment".into(), config(algorithm, "1/s", 1, Period::secs(9)), Clock::tokio());
        assert!(limiter.try_acquire().is_ok());
        let half = Duration::from_millis(500);
        assert!(timeout(half, limiter.acquire(LONG)).await.is_err());
        assert_eq!(limiter.try_acquire().unwrap_err().retry_after, Some(half), "as if it had never been");

        // Before others: theirs stay where they are, and the next in line takes the one that is free.
        let now = limiter.clock.now();
        let turns: Vec<_> = (0..4).map(|_| limiter.reserve(LONG, || now).unwrap().unwrap()).collect();
        let due = |turn: &Turn<'_>| turn.wait.as_millis();
        assert_eq!(turns.iter().map(due).collect::<Vec<_>>(), [500, 1500, 2500, 3500]);
        let [first, second, third, fourth] = <[_; 4]>::try_from(turns).unwrap();
        drop(second);
        drop(first);
        assert!(limiter.reserve(Duration::from_millis(499), || now).is_err());
        let reused = limiter.reserve(LONG, || now).unwrap().unwrap();
        assert_eq!(due(&reused), 500);
        // Once the later ones are given up as well, nothing is left of any.
        drop((third, fourth, reused));
        assert!(lock(&limiter.book).turns.is_empty() && !limiter.returned.load(Ordering::Relaxed));
        assert_eq!(limiter.try_acquire().unwrap_err().retry_after, Some(half));
    }
}

#[test]
fn a_thread_that_was_held_up_is_not_turned_away_for_it() {
    for algorithm in BOTH {
        // One call a second, and each comes a second after the other; but the second one's clock was read when its
        // thread was held up, and another passed in the meantime.
        let (limiter, hand) = limiter(config(algorithm, "1/s", 1, Period::default()));
        let reads = std::cell::Cell::new(0);
        let clock = || {
            let now = limiter.clock.now();
            if reads.replace(reads.get() + 1) == 0 {
                hand.advance(seconds(5));
                assert_eq!(limiter.try_acquire(), Ok(()));
                hand.advance(seconds(1));
            }
            now
        };
        assert_eq!((limiter.take(1, clock), reads.get()), (Ok(()), 2), "{algorithm:?}");
        assert_eq!(limiter.try_acquire().unwrap_err().retry_after, Some(seconds(1)));
    }
}

#[test]
fn many_threads_get_no_more_than_one_would() {
    for algorithm in BOTH {
        let (limiter, hand) = limiter(config(algorithm, "1000/s", 5000, Period::default()));
        // Room for all that comes back, so that none of it is cut off.
        assert_eq!(limiter.try_acquire_n(800), Ok(()));
        let (limiter, start) = (Arc::new(limiter), std::sync::Barrier::new(4));
        let passed = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    for turn in 0..20_000 {
                        if limiter.try_acquire().is_ok() {
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                        if turn % 1000 == 0 {
                            hand.advance(Duration::from_millis(10));
                        }
                    }
                });
            }
        });
        // 80 steps of 10ms; for the bucket, that is no boundary. What is left shows that none was lost either.
        let refilled = if algorithm == Algorithm::Gcra { 800 } else { 0 };
        assert_eq!(passed.into_inner() + limiter.available(), 4200 + refilled, "{algorithm:?}");
    }
}

/// What the limiter should do, the slow way: tokens in nanoseconds that drip in, or whole refills, one after the other.
struct Model {
    config: Config,
    interval: u64,
    period: u64,
    now: u64,
    level: i64,
    full: i64,
}

impl Model {
    fn new(config: &Config) -> Self {
        let interval = nanos(config.rate.interval());
        let unit = if config.algorithm == Algorithm::Gcra { interval as i64 } else { 1 };
        let full = unit * i64::from(config.burst);
        Self { interval, period: nanos(config.rate.per().get()), config: config.clone(), now: 0, level: full, full }
    }

    fn advance(&mut self, to: u64) {
        match self.config.algorithm {
            Algorithm::Gcra => self.level = (self.level + (to - self.now) as i64).min(self.full),
            Algorithm::TokenBucket => {
                for _ in self.now / self.period..to / self.period {
                    self.level = (self.level + i64::from(self.config.rate.count()).min(self.full)).min(self.full);
                }
            }
        }
        self.now = to;
    }

    fn take(&mut self, n: u32) -> bool {
        let unit = if self.config.algorithm == Algorithm::Gcra { self.interval as i64 } else { 1 };
        let enough = self.level >= unit * i64::from(n);
        if enough {
            self.level -= unit * i64::from(n);
        }
        enough
    }
}

/// At most the burst and what comes back, between any two calls that passed.
fn assert_within(config: &Config, passed: &[u64]) -> Result<(), TestCaseError> {
    let (interval, period) = (nanos(config.rate.interval()), nanos(config.rate.per().get()));
    for (i, from) in passed.iter().enumerate() {
        for (j, to) in passed.iter().enumerate().skip(i) {
            let more = match config.algorithm {
                Algorithm::Gcra => (to - from) / interval,
                Algorithm::TokenBucket => {
                    (to / period - from / period) * u64::from(config.rate.count().min(config.burst))
                }
            };
            prop_assert!((j - i + 1) as u64 <= u64::from(config.burst) + more, "{} from {from} to {to}", j - i + 1);
        }
    }
    Ok(())
}

fn configs() -> impl Strategy<Value = Config> {
    (0..2usize, 1u32..20, 1u64..50, 1u32..30, 0u64..200).prop_map(|(algorithm, count, millis, burst, wait)| Config {
        algorithm: BOTH[algorithm],
        rate: Rate::new(count, Period::millis(millis)).unwrap(),
        burst,
        wait: Period::millis(wait),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Every decision is the slow model's, and every `retry_after` is exact to the nanosecond.
    #[test]
    fn it_decides_as_the_model(
        config in configs(),
        steps in prop::collection::vec((0u64..20_000_000, 1u32..4, any::<bool>()), 1..150),
    ) {
        let (limiter, hand) = limiter(config.clone());
        let mut model = Model::new(&config);
        let (mut now, mut passed) = (0, Vec::new());
        for (gap, n, at_once) in steps {
            let gap = if at_once { 0 } else { gap };
            now += gap;
            hand.advance(Duration::from_nanos(gap));
            model.advance(now);
            let at = limiter.clock.now();
            match limiter.try_acquire_n(n) {
                Ok(()) => {
                    prop_assert!(model.take(n));
                    passed.extend((0..n).map(|_| now));
                }
                Err(rejected) => {
                    prop_assert!(!model.take(n));
                    prop_assert_eq!(rejected.retry_after.is_none(), n > config.burst);
                    if let Some(after) = rejected.retry_after {
                        // Asked on a copy of the state, so that nothing is taken.
                        let word = limiter.word.0.load(Ordering::Relaxed);
                        let wait = |at: Tick| limiter.plan(word).take(word & VALUE, limiter.own(at), n).wait;
                        prop_assert_eq!(wait(at + after), 0);
                        prop_assert_eq!(wait(Tick::from_nanos((at + after).nanos() - 1)), 1);
                    }
                }
            }
        }
        assert_within(&config, &passed)?;
    }

    /// Whoever waits, gives up or comes late: what passes, and when, stays within the rate; nobody waits longer than he
    /// may; and a limiter that was given everything back is as good as new.
    #[test]
    fn turns_given_back_never_exceed_the_rate(
        config in configs(),
        steps in prop::collection::vec((0u64..4_000_000, 0u8..5, 0usize..64), 1..200),
    ) {
        let (limiter, hand) = limiter(config.clone());
        let base = limiter.clock.now();
        let (mut waiting, mut passed): (Vec<Turn<'_>>, Vec<u64>) = (Vec::new(), Vec::new());
        for (gap, what, which) in steps {
            hand.advance(Duration::from_nanos(gap));
            let now = limiter.clock.now();
            // Those whose turn has come go, but for one in four that is dropped just then.
            let mut later = Vec::new();
            for (n, turn) in waiting.drain(..).enumerate() {
                if turn.due > nanos(now.since(base)) {
                    later.push(turn);
                } else if (which + n) % 4 != 0 {
                    passed.push(turn.due);
                    turn.keep();
                }
            }
            waiting = later;
            match what {
                0 if !waiting.is_empty() => drop(waiting.swap_remove(which % waiting.len())),
                1 if limiter.try_acquire().is_ok() => passed.push(nanos(now.since(base))),
                0 | 1 => {}
                _ => match limiter.reserve(LONG, || now) {
                    Ok(None) => passed.push(nanos(now.since(base))),
                    Ok(Some(turn)) => {
                        prop_assert!(turn.due > nanos(now.since(base)) && turn.wait <= config.wait.get());
                        waiting.push(turn);
                    }
                    Err(rejected) => prop_assert!(rejected.retry_after.unwrap() > config.wait.get()),
                },
            }
        }
        passed.extend(waiting.drain(..).map(|turn| {
            let due = turn.due;
            turn.keep();
            due
        }));
        passed.sort_unstable();
        assert_within(&config, &passed)?;
        hand.advance(LONG);
        prop_assert_eq!(limiter.available(), config.burst);
    }
}
