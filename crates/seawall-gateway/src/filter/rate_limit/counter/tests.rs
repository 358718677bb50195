use proptest::prelude::*;
use seawall_resilience::rate_limit::{Algorithm, Config, Rate};
use seawall_types::Period;

use super::*;

/// What came, in its order: how many nanoseconds after the one before, and what it costs.
fn arrivals(most: u64) -> impl Strategy<Value = Vec<(u64, u32)>> {
    proptest::collection::vec((prop_oneof![0..most / 50, 0..most / 5, 0..most * 3], 1u32..3), 1..200)
}

fn run(counter: Counter, arrivals: &[(u64, u32)], start: u64) -> Vec<(u64, u32, Decision)> {
    let (mut state, mut now) = (counter.full(), start);
    let mut seen = Vec::new();
    for (after, cost) in arrivals {
        now += after;
        seen.push((now, *cost, counter.take(&mut state, now, *cost)));
    }
    seen
}

/// The most that passed in any time of `length` that begins with a request.
fn most_in(seen: &[(u64, u32, Decision)], length: u64) -> u64 {
    let passed: Vec<_> = seen.iter().filter(|(_, _, decision)| decision.pass).collect();
    let within = |from: u64| passed.iter().filter(move |(at, ..)| (from..from + length).contains(at));
    passed.iter().map(|(from, ..)| within(*from).map(|(_, cost, _)| u64::from(*cost)).sum()).max().unwrap_or(0)
}

fn plan(algorithm: Algorithm, count: u32, burst: u32) -> Counter {
    let rate = Rate::new(count, Period::secs(1)).expect("in range");
    Counter::Plan(Plan::new(&Config { algorithm, rate, burst, wait: Period::default() }, 0))
}

proptest! {
    #[test]
    fn gcra_and_buckets_never_let_more_pass(arrivals in arrivals(NANOS), count in 1u32..20, burst in 2u32..20) {
        let most = most_in(&run(plan(Algorithm::Gcra, count, burst), &arrivals, 5), NANOS);
        prop_assert!(most <= u64::from(burst + count), "{} of {count}+{burst}", most);
        // A refill and a burst on the two sides of one boundary, and the refill of the other.
        let most = most_in(&run(plan(Algorithm::TokenBucket, count, burst), &arrivals, 5), NANOS);
        prop_assert!(most <= u64::from(burst + count.min(burst)), "{} of {count}+{burst}", most);
    }

    #[test]
    fn gcra_is_a_bucket_that_fills_by_the_nanosecond(arrivals in arrivals(NANOS), count in 1u32..20, burst in 2u32..20) {
        let interval = i128::from(NANOS.div_ceil(u64::from(count)));
        let (mut level, mut last) = (i128::from(burst) * interval, 5);
        for (now, cost, decision) in run(plan(Algorithm::Gcra, count, burst), &arrivals, 5) {
            level = (level + i128::from(now - last)).min(i128::from(burst) * interval);
            last = now;
            let need = i128::from(cost) * interval;
            prop_assert_eq!(decision.pass, level >= need);
            if decision.pass {
                level -= need;
            } else {
                prop_assert_eq!(decision.retry_after, Some(Duration::from_nanos((need - level) as u64)));
            }
            prop_assert_eq!(i128::from(decision.remaining), level / interval);
        }
    }

    #[test]
    fn a_sliding_window_is_its_definition(arrivals in arrivals(NANOS), limit in 2u64..30) {
        let mut log: Vec<(u64, u64)> = Vec::new();
        let seen = run(Counter::Window { limit, window: NANOS }, &arrivals, 0);
        for (now, cost, decision) in &seen {
            let (number, elapsed) = (now / NANOS, now % NANOS);
            let count = |wanted: u64| log.iter().filter(|(at, _)| at / NANOS == wanted).map(|(_, cost)| *cost as u128).sum::<u128>();
            let before = if number == 0 { 0 } else { count(number - 1) };
            let used = before * u128::from(NANOS - elapsed) + count(number) * u128::from(NANOS);
            let pass = used + u128::from(*cost) * u128::from(NANOS) <= u128::from(limit) * u128::from(NANOS);
            prop_assert_eq!(decision.pass, pass);
            if pass {
                log.push((*now, u64::from(*cost)));
            }
        }
        // Never more than the limit between two marks, nor twice that anywhere.
        for number in 0..=seen.last().map_or(0, |(now, ..)| now / NANOS) {
            let within: u64 = log.iter().filter(|(at, _)| at / NANOS == number).map(|(_, cost)| cost).sum();
            prop_assert!(within <= limit);
        }
        prop_assert!(most_in(&seen, NANOS) < 2 * limit);
    }

    #[test]
    fn whoever_waits_as_long_as_he_is_told_passes(arrivals in arrivals(NANOS), limit in 2u32..9, which in 0..4) {
        let counter = match which {
            0 => plan(Algorithm::Gcra, limit, limit),
            1 => plan(Algorithm::TokenBucket, limit, limit),
            2 => Counter::Window { limit: limit.into(), window: NANOS },
            _ => Counter::Quota(Quota { limit, per: Calendar::Minute }),
        };
        let (mut state, mut now) = (counter.full(), 0);
        for (after, cost) in arrivals {
            now += after;
            let decision = counter.take(&mut state, now, cost);
            if !decision.pass {
                let wait = decision.retry_after.expect("it is no more than the limit").as_nanos() as u64;
                // Not a tick before, and then indeed.
                prop_assert!(!counter.take(&mut state.clone(), now + wait - 1, cost).pass);
                now += wait;
                prop_assert!(counter.take(&mut state, now, cost).pass);
            }
        }
    }

    #[test]
    fn a_quota_holds_between_two_marks(arrivals in arrivals(90 * 24 * 3600 * NANOS / 10), limit in 2u32..9, start in 0u64..2_000_000_000) {
        for (_, per) in Calendar::ALL {
            let mut used: std::collections::BTreeMap<u64, u32> = std::collections::BTreeMap::new();
            for (now, cost, decision) in run(Counter::Quota(Quota { limit, per }), &arrivals, start * NANOS) {
                let (from, to) = per.around(now / NANOS);
                prop_assert!(from * NANOS <= now && now < to * NANOS);
                let used = used.entry(from).or_default();
                prop_assert_eq!(decision.pass, *used + cost <= limit);
                if decision.pass {
                    *used += cost;
                }
                prop_assert_eq!(decision.remaining, u64::from(limit - *used));
            }
        }
    }
}

#[test]
fn months_are_those_of_the_calendar() {
    let second = |text: &str| text.parse::<Timestamp>().expect("a time").as_second() as u64;
    for (now, from, to) in [
        ("2024-02-29T23:59:59Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
        ("2026-12-31T12:00:00Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
    ] {
        assert_eq!(Calendar::Month.around(second(now)), (second(from), second(to)));
    }
}

#[test]
fn a_clock_that_is_put_back_gives_nothing_back() {
    let counter = Counter::Quota(Quota { limit: 1, per: Calendar::Minute });
    let mut state = counter.full();
    assert!(counter.take(&mut state, 600 * NANOS, 1).pass);
    assert!(!counter.take(&mut state, 59 * NANOS, 1).pass);
    assert!(counter.take(&mut state, 660 * NANOS, 1).pass);
}

#[test]
fn quotas_are_read_and_written() {
    assert_eq!("1000/day".parse::<Quota>().expect("a quota").to_string(), "1000/day");
    for wrong in ["1000", "0/day", "-1/day", "5/year", "5000000000/day", "", "/"] {
        assert!(wrong.parse::<Quota>().is_err(), "{wrong}");
    }
}
