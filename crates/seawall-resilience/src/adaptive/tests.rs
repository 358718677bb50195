use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// A service of so many workers and one queue, first come, first served; and callers that always use up the limit.
struct Simulation {
    limit: Adaptive,
    random: fastrand::Rng,
    now: u64,
    /// When each worker will be free.
    workers: Vec<u64>,
    capacity: usize,
    /// The service turns away what would make its queue longer.
    backlog: u32,
    /// When they end, when they began, how many were in flight, whether they are turned away.
    calls: BinaryHeap<Reverse<(u64, u64, u32, bool)>>,
    /// A call's mean time of work, in nanoseconds.
    work: f64,
    jitter: Jitter,
}

#[derive(Clone, Copy, Debug)]
enum Jitter {
    /// Within a tenth of the mean.
    Little,
    /// Exponential: the usual model of a service's times, M/M/c.
    Exponential,
    /// One call in fifty takes thirty times as long.
    Outliers,
}

impl Simulation {
    fn new(algorithm: Algorithm, initial: u32, capacity: usize, jitter: Jitter, seed: u64) -> Self {
        let latency = (algorithm == Algorithm::Aimd).then_some(Period::millis(20));
        let config = Config { algorithm, min: 1, max: 1000, initial, latency };
        Self {
            limit: Adaptive::with_random(config, fastrand::Rng::with_seed(seed)),
            random: fastrand::Rng::with_seed(seed + 1),
            now: 0,
            workers: vec![0; 200],
            capacity,
            backlog: u32::MAX,
            calls: BinaryHeap::new(),
            work: 10e6,
            jitter,
        }
    }

    fn work(&mut self) -> u64 {
        let uniform = self.random.f64();
        let factor = match self.jitter {
            Jitter::Little => 0.9 + uniform * 0.2,
            Jitter::Exponential => -(1.0 - uniform).ln(),
            Jitter::Outliers if uniform < 0.02 => 30.0 / 1.58,
            Jitter::Outliers => 1.0 / 1.58,
        };
        (self.work * factor) as u64 + 1
    }

    fn call(&mut self) {
        let in_flight = self.calls.len() as u32 + 1;
        if in_flight > self.backlog {
            self.calls.push(Reverse((self.now + 1_000_000, self.now, in_flight, true)));
            return;
        }
        let work = self.work();
        let worker = self.workers[..self.capacity].iter_mut().min().unwrap();
        *worker = self.now.max(*worker) + work;
        self.calls.push(Reverse((*worker, self.now, in_flight, false)));
    }

    /// Goes on for so many seconds and gives the mean of the limit in the second half of them.
    fn run(&mut self, seconds: u64) -> f64 {
        let (half, end) = (self.now + seconds * 500_000_000, self.now + seconds * 1_000_000_000);
        let (mut area, mut since) = (0.0, half);
        let mut limit = self.limit.limit();
        while self.now < end {
            while self.calls.len() < limit as usize {
                self.call();
            }
            let Reverse((at, begun, in_flight, dropped)) = self.calls.pop().expect("the limit is never zero");
            self.now = at.max(self.now);
            if self.now > half {
                area += f64::from(limit) * (self.now - since) as f64;
                since = self.now;
            }
            let latency = Duration::from_nanos(self.now - begun);
            let sample = Sample { begun: Tick::from_nanos(begun), latency, in_flight, dropped };
            limit = self.limit.step(sample, Tick::from_nanos(self.now));
        }
        area / (since - half) as f64
    }
}

const ALL: [Algorithm; 3] = [Algorithm::Vegas, Algorithm::Gradient2, Algorithm::Aimd];

#[test]
fn each_finds_the_capacity_and_follows_it() {
    for algorithm in ALL {
        for (initial, seed) in [(20, 1), (4, 2), (400, 3)] {
            let mut simulation = Simulation::new(algorithm, initial, 40, Jitter::Little, seed);
            for (capacity, seconds) in [(40, 30), (10, 60), (40, 30), (80, 30)] {
                simulation.capacity = capacity;
                let found = simulation.run(seconds);
                // Vegas aims at a short queue, Gradient2 at 1.5 times the work's time, AIMD's threshold at twice.
                let most = match algorithm {
                    Algorithm::Vegas => 1.1 * capacity as f64 + 6.0,
                    Algorithm::Gradient2 => 1.75 * capacity as f64 + 6.0,
                    Algorithm::Aimd => 2.2 * capacity as f64,
                };
                let range = 0.95 * capacity as f64..=most;
                assert!(range.contains(&found), "{algorithm:?} from {initial}, {capacity} workers: {found:.1}");
            }
        }
    }
}

#[test]
fn none_collapses_under_jitter() {
    for algorithm in ALL {
        for jitter in [Jitter::Exponential, Jitter::Outliers] {
            for seed in 1..=3 {
                let found = Simulation::new(algorithm, 20, 40, jitter, seed).run(60) / 40.0;
                assert!((0.7..=2.5).contains(&found), "{algorithm:?}, {jitter:?}, {seed}: {found:.2}");
            }
        }
    }
}

#[test]
fn each_keeps_below_what_the_service_turns_away() {
    for algorithm in ALL {
        let mut simulation = Simulation::new(algorithm, 300, 40, Jitter::Exponential, 7);
        simulation.backlog = 44;
        let found = simulation.run(60) / 40.0;
        assert!((0.6..=1.15).contains(&found), "{algorithm:?}: {found:.2}");
    }
}

#[test]
fn a_service_that_grows_slower_is_not_taken_for_a_full_one() {
    for algorithm in [Algorithm::Vegas, Algorithm::Gradient2] {
        let mut simulation = Simulation::new(algorithm, 40, 40, Jitter::Little, 1);
        simulation.run(30);
        simulation.work *= 3.0;
        let found = simulation.run(120) / 40.0;
        assert!((0.9..=2.0).contains(&found), "{algorithm:?}: {found:.2}");
    }
}

fn config(algorithm: Algorithm) -> Config {
    Config { algorithm, min: 2, max: 100, initial: 20, latency: Some(Period::millis(50)) }
}

/// A call that ends `now`.
fn sample(now: Tick, millis: u64, in_flight: u32) -> Sample {
    let latency = Duration::from_millis(millis);
    let begun = Tick::from_nanos(now.nanos().saturating_sub(nanos(latency)));
    Sample { begun, latency, in_flight, dropped: false }
}

#[test]
fn calls_that_were_under_way_together_take_a_tenth_off_once() {
    for algorithm in ALL {
        let mut limit = Adaptive::new(config(algorithm));
        let dropped = |now, in_flight| Sample { dropped: true, ..sample(now, 100, in_flight) };
        let mut now = Tick::from_millis(1000);
        assert_eq!((0..20).map(|_| limit.step(dropped(now, 20), now)).last(), Some(18), "{algorithm:?}");
        now += Duration::from_millis(99);
        assert_eq!(limit.step(dropped(now, 20), now), 18, "it began before the decrease");
        now += Duration::from_millis(1);
        assert_eq!(limit.step(dropped(now, 20), now), 16);
        now += Duration::from_secs(9);
        assert_eq!(limit.step(dropped(now, 7), now), 16, "too few in flight to be the cause");
    }
}

#[test]
fn an_idle_limit_stands_still() {
    for algorithm in ALL {
        let mut limit = Adaptive::new(config(algorithm));
        let mut now = Tick::default();
        let mut seen = Vec::new();
        for latency in [1, 90] {
            for _ in 0..2000 {
                now += Duration::from_millis(200);
                seen.push(limit.step(sample(now, latency, 4), now));
            }
        }
        // A probe halves it for a round.
        assert!(seen.iter().all(|limit| [10, 20].contains(limit)), "{algorithm:?}");
        assert_eq!(limit.limit.round() as u32, 20);
    }
}

#[test]
fn it_stays_within_its_bounds_whatever_it_is_told() {
    for algorithm in ALL {
        let mut random = fastrand::Rng::with_seed(5);
        let mut limit = Adaptive::with_random(config(algorithm), fastrand::Rng::with_seed(6));
        let mut now = Tick::default();
        for _ in 0..50_000 {
            now += Duration::from_micros(random.u64(0..5000));
            let latency = Duration::from_nanos(random.u64(0..200_000_000) * random.u64(0..=1));
            let (in_flight, dropped) = (random.u32(0..200), random.u8(0..50) == 0);
            let sample = Sample { begun: now, latency, in_flight, dropped };
            assert!((2..=100).contains(&limit.step(sample, now)));
        }
        assert_eq!(limit.set(1_000_000), 100);
        assert_eq!(limit.reload(Config { min: 1, max: 7, ..config(algorithm) }), 7);
    }
}

#[test]
fn on_when_something_is_given() {
    let resolve = |config: AdaptiveConfig| config.resolve(Some(50));
    assert_eq!(resolve(AdaptiveConfig::default()), None);
    let on = AdaptiveConfig { enabled: Some(true), ..AdaptiveConfig::default() };
    let expected = Config { algorithm: Algorithm::Vegas, min: 1, max: 1000, initial: 50, latency: None };
    assert_eq!(resolve(on.clone()), Some(expected));
    let off = AdaptiveConfig { enabled: Some(false), max: Some(9), ..AdaptiveConfig::default() };
    assert_eq!(resolve(off.or(&on)), None);
    let bounded = AdaptiveConfig { max: Some(9), ..AdaptiveConfig::default() };
    assert_eq!(resolve(bounded), Some(Config { max: 9, initial: 9, ..expected }));
}

#[test]
fn what_is_contradictory_is_named() {
    let mut found = Problems::default();
    let config = AdaptiveConfig {
        min: Some(0),
        max: Some(5),
        initial: Some(6),
        latency: Some(Period::secs(0)),
        ..AdaptiveConfig::default()
    };
    config.problems(&mut found);
    let paths: Vec<_> = found.into_vec().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["bulkhead.adaptive.min", "bulkhead.adaptive.latency", "bulkhead.adaptive.initial"]);
}
