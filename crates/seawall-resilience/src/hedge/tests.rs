//! Paused time: who is asked when, whose answer counts, and what becomes of the others.

use std::cell::{Cell, RefCell};

use super::*;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Asks again after 50ms, up to twice, within a budget of one for each call.
fn config() -> Config {
    Config { delay: Delay::After(Period::millis(50)), max: 2, budget: Ratio::percent(100), ..Config::default() }
}

/// With enough saved for anything.
fn hedge(config: Config) -> Hedge {
    let hedge = Hedge::new("payment".into(), config, Clock::tokio());
    (0..100).for_each(|_| hedge.budget.deposit());
    hedge
}

/// What the attempts do, in order: take so long, then work or not. Remembers when each began, and how many were dropped.
#[derive(Default)]
struct Script {
    plays: Vec<(u64, bool)>,
    begun: RefCell<Vec<u64>>,
    dropped: Cell<u32>,
}

struct Counted<'a>(Option<&'a Cell<u32>>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(dropped) = self.0 {
            dropped.set(dropped.get() + 1);
        }
    }
}

impl Script {
    fn new(plays: &[(u64, bool)]) -> Self {
        Self { plays: plays.to_vec(), ..Self::default() }
    }

    async fn run(&self, hedge: &Hedge) -> (Result<u32, u32>, u64) {
        let start = tokio::time::Instant::now();
        let since = || start.elapsed().as_millis() as u64;
        let attempt = |number: u32| {
            self.begun.borrow_mut().push(since());
            let (takes, works) = self.plays[number as usize - 1];
            async move {
                let mut counted = Counted(Some(&self.dropped));
                tokio::time::sleep(millis(takes)).await;
                counted.0 = None;
                if works { Ok(number) } else { Err(number) }
            }
        };
        let result = hedge.call(attempt).await;
        (result, since())
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_success_wins() {
    let slow = config();
    let eager = Config { on_error: true, ..config() };
    for (config, plays, result, ended, begun, dropped) in [
        (slow, &[(30, true)][..], Ok(1), 30, &[0][..], 0),
        (slow, &[(60, true), (60, true)], Ok(1), 60, &[0, 50], 1),
        (slow, &[(900, true), (20, true)], Ok(2), 70, &[0, 50], 1),
        (slow, &[(900, true), (900, true), (10, true)], Ok(3), 110, &[0, 50, 100], 2),
        // An error is no answer while others may still give one, and the last one counts.
        (slow, &[(60, false), (60, true), (900, true)], Ok(2), 110, &[0, 50, 100], 1),
        (slow, &[(900, true), (10, false), (10, true)], Ok(3), 110, &[0, 50, 100], 1),
        (slow, &[(60, false), (20, false)], Err(2), 70, &[0, 50], 0),
        (slow, &[(120, false), (10, false), (30, false)], Err(3), 130, &[0, 50, 100], 0),
        // Before anything else is under way an error ends it, unless it is to be asked again.
        (slow, &[(30, false)], Err(1), 30, &[0], 0),
        (eager, &[(30, false), (10, true)], Ok(2), 40, &[0, 30], 0),
        (eager, &[(30, false), (10, false), (10, false)], Err(3), 50, &[0, 30, 40], 0),
        (eager, &[(30, false), (90, true), (10, true)], Ok(3), 90, &[0, 30, 80], 1),
        (eager, &[(900, true), (10, false), (10, true)], Ok(3), 70, &[0, 50, 60], 1),
    ] {
        let script = Script::new(plays);
        let outcome = script.run(&hedge(config)).await;
        assert_eq!(outcome, (result, ended), "{plays:?}");
        assert_eq!(*script.begun.borrow(), begun, "{plays:?}");
        assert_eq!(script.dropped.get(), dropped, "{plays:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hedges_stay_within_their_share() {
    let hedge = Hedge::new("payment".into(), Config { budget: Ratio::percent(10), ..config() }, Clock::tokio());
    let script = Script::new(&[(200, true); 3]);
    for _ in 0..100 {
        assert_eq!(script.run(&hedge).await.0, Ok(1));
    }
    let counts = hedge.counts();
    assert_eq!((counts.hedges, counts.won), (10, 0));
    assert_eq!(script.begun.borrow().len(), 110);
    assert!(counts.refused >= 90);
}

#[tokio::test(start_paused = true)]
async fn giving_up_drops_everything() {
    let hedge = hedge(config());
    let script = Script::new(&[(900, true); 3]);
    assert!(tokio::time::timeout(millis(120), script.run(&hedge)).await.is_err());
    assert_eq!((script.begun.borrow().len(), script.dropped.get()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn the_percentile_is_learnt_and_slow_calls_stay_in_it() {
    let percentile = Config { delay: Delay::Percentile(9500), budget: Ratio::percent(20), max: 1, ..config() };
    let hedge = Hedge::new("payment".into(), percentile, Clock::tokio());
    // One call in twenty-five takes a second; a hedge is answered in 10ms.
    let mut hedged = 0;
    for number in 0..4000u32 {
        let takes = if number % 25 == 0 { 1000 } else { 10 };
        let script = Script::new(&[(takes, true), (10, true)]);
        let (result, took) = script.run(&hedge).await;
        assert!(result.is_ok());
        if number < 96 {
            assert_eq!(script.begun.borrow().len(), 1, "too few have been seen");
        }
        if number > 200 && takes == 1000 {
            hedged += u32::from(took < 100);
        }
    }
    // 4% are slow, so the 95th percentile is that of the quick ones, and stays there although no slow one ever ends.
    let delay = hedge.delay().unwrap();
    assert!(delay >= millis(10) && delay <= millis(11), "{delay:?}");
    assert_eq!(hedged, 151);
    // What was cut off stays in the picture: 4% of the samples are above it.
    let above = hedge.latencies.percentile(9700, 1).unwrap();
    assert!(above > delay, "{above:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_teach_nothing() {
    let percentile = Config { delay: Delay::Percentile(5000), minimum_calls: 20, ..config() };
    let hedge = hedge(percentile);
    for _ in 0..100 {
        let _ = Script::new(&[(5, false); 3]).run(&hedge).await;
    }
    assert_eq!((hedge.delay(), hedge.latencies.total()), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_was_learnt() {
    let percentile = Config { delay: Delay::Percentile(5000), minimum_calls: 20, max: 1, ..config() };
    let hedge = hedge(percentile);
    for number in 0..100 {
        Script::new(&[(if number < 90 { 10 } else { 40 }, true); 3]).run(&hedge).await.0.unwrap();
    }
    let near = |hedge: &Hedge, expected: u64| {
        let delay = hedge.delay().unwrap();
        assert!(delay >= millis(expected) && delay <= millis(expected) * 33 / 32 + millis(1), "{delay:?}");
    };
    near(&hedge, 10);
    hedge.reload(Config { delay_floor: Period::millis(25), ..percentile });
    assert_eq!(hedge.delay(), Some(millis(25)));
    hedge.reload(Config { delay: Delay::Percentile(9900), ..percentile });
    near(&hedge, 40);
    hedge.reload(config());
    assert_eq!(hedge.delay(), Some(millis(50)));
}

#[test]
fn a_configuration_is_read_merged_and_judged() {
    let read = |text: &str| serde_json::from_str::<HedgeConfig>(text).unwrap();
    assert_eq!(HedgeConfig::default().resolve(), None);
    assert_eq!(read(r#"{"enabled": true}"#).resolve(), Some(Config::default()));
    let base = read(r#"{"enabled": true, "delay": "p99.9", "max": 3}"#);
    let merged = read(r#"{"delay": "20ms", "budget": "2.5%", "delay_floor": "0s"}"#).or(&base).resolve().unwrap();
    assert_eq!(
        merged,
        Config {
            delay: Delay::After(Period::millis(20)),
            delay_floor: Period::secs(0),
            max: 3,
            budget: Ratio::try_new(0.025).unwrap(),
            ..Config::default()
        }
    );
    for (text, shown) in [("p95", "p95"), ("p99.9", "p99.9"), ("p50.25", "p50.25"), ("50ms", "50ms"), ("p0", "p0")] {
        assert_eq!(text.parse::<Delay>().unwrap().to_string(), shown);
    }
    for bad in ["p", "p100", "p-1", "pNaN", "95", "often", ""] {
        assert!(bad.parse::<Delay>().is_err(), "{bad}");
    }

    let judge = |config: &HedgeConfig| {
        let mut found = Problems::default();
        config.problems(&mut found);
        found.into_vec().into_iter().map(|(path, _)| path).collect::<Vec<_>>()
    };
    let bad = read(r#"{"enabled": true, "delay": "p10", "minimum_calls": 2001, "max": 6, "budget": 0}"#);
    assert_eq!(judge(&bad), ["hedge.delay", "hedge.minimum_calls", "hedge.max", "hedge.budget"]);
    let resolved = bad.resolve().unwrap();
    assert_eq!((resolved.delay, resolved.minimum_calls, resolved.max), (Delay::Percentile(5000), 2000, 5));
    assert_eq!(judge(&read(r#"{"delay": "0s"}"#)), ["hedge.delay"]);
    assert_eq!(judge(&read(r#"{"delay": "5ms", "delay_floor": "6ms"}"#)), ["hedge.delay"]);
    assert_eq!(judge(&read(r#"{"delay": "p99.9", "delay_floor": "6ms", "max": 5}"#)), [""; 0]);
}
