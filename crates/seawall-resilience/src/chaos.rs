//! Chaos that somebody has ordered: faults, delays and wrong answers for a share of the calls, so that one can see what
//! the other policies make of them before the night in which it matters. (Basiri et al., "Chaos Engineering", IEEE
//! Software, 2016; the kinds are those of Polly's chaos strategies.)
//!
//! It can be repeated: the nth decision depends on the seed and on n alone, by SplitMix64 (Steele, Lea and Flood, "Fast
//! Splittable Pseudorandom Number Generators", 2014), whose nth number is a mix of `seed + n * gamma`. Threads may take
//! the decisions in any order; as a whole they are always the same. Without a seed one is drawn and shown
//! ([`Chaos::seed`]). Switched off, it costs one load.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use schemars::JsonSchema;
use seawall_types::{Period, Ratio};
use serde::{Deserialize, Serialize};

use crate::problems::merge;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};
use crate::{CallError, Name, PolicyName, Problems, Reason, Rejected};

/// Which trouble to make. None, unless a share is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChaosConfig {
    /// `false` switches it off. Default true, once any share is given.
    pub enabled: Option<bool>,
    /// Makes the same decisions each time. Default: one that is drawn, and shown, when the process starts.
    pub seed: Option<u64>,
    /// The share of calls that fail without being made. Default 0%.
    pub fault: Option<Ratio>,
    /// Calls that are made later than they should be.
    pub latency: LatencyConfig,
    /// Calls that are answered with a status without being made.
    pub status: StatusConfig,
}

/// Calls that are made later than they should be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LatencyConfig {
    /// The share of calls. Default 0%.
    pub share: Option<Ratio>,
    /// By how much, at most 1h. Default 100ms.
    pub by: Option<Period>,
    /// Up to so much more or less, at most `by`. Default 0s.
    pub jitter: Option<Period>,
}

/// Calls that are answered with a status without being made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusConfig {
    /// The share of calls. Default 0%.
    pub share: Option<Ratio>,
    /// The status, 200 to 599. Default 503.
    #[schemars(range(min = 200, max = 599))]
    pub code: Option<u16>,
}

pub(crate) const BY: Period = Period::millis(100);
const LONGEST: Period = Period::secs(3600);

impl ChaosConfig {
    /// Fills what is absent from `base`.
    #[must_use]
    pub(crate) fn or(&self, base: &Self) -> Self {
        Self {
            enabled: self.enabled.or(base.enabled),
            seed: self.seed.or(base.seed),
            fault: self.fault.or(base.fault),
            latency: self.latency.or(&base.latency),
            status: self.status.or(&base.status),
        }
    }

    /// Every value that is out of its range.
    pub(crate) fn problems(&self, found: &mut Problems) {
        let latency = &self.latency;
        found.positive("chaos.latency.by", latency.by);
        found.range("chaos.latency.by", latency.by, Period::default(), LONGEST);
        found.ordered("chaos.latency.jitter", latency.jitter, "by", latency.by);
        found.range("chaos.status.code", self.status.code, 200, 599);
    }

    /// What has no effect for want of something else.
    pub(crate) fn idle(&self, found: &mut Problems) {
        if self.latency.share.is_none() {
            found.idle("chaos.latency.by", self.latency.by, Some(BY), "share");
            found.idle("chaos.latency.jitter", self.latency.jitter, Some(Period::default()), "share");
        }
        if self.status.share.is_none() {
            found.idle("chaos.status.code", self.status.code, Some(503), "share");
        }
    }

    /// Complete, or `None` where there is no chaos.
    pub(crate) fn resolve(&self) -> Option<Config> {
        let by = self.latency.by.unwrap_or(BY).min(LONGEST);
        let nothing = Ratio::percent(0);
        let config = Config {
            seed: self.seed,
            fault: self.fault.unwrap_or(nothing),
            latency: Latency {
                share: self.latency.share.unwrap_or(nothing),
                by,
                jitter: self.latency.jitter.unwrap_or_default().min(by),
            },
            status: Status {
                share: self.status.share.unwrap_or(nothing),
                code: self.status.code.unwrap_or(503).clamp(200, 599),
            },
        };
        let any = [config.fault, config.latency.share, config.status.share].iter().any(|share| *share > nothing);
        (any && self.enabled.unwrap_or(true)).then_some(config)
    }
}

impl LatencyConfig {
    fn or(&self, base: &Self) -> Self {
        merge!(self, base; share, by, jitter)
    }
}

impl StatusConfig {
    fn or(&self, base: &Self) -> Self {
        merge!(self, base; share, code)
    }
}

/// Which trouble to make; every field is within its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the decisions follow from; `None` keeps the one in use, or draws one.
    pub seed: Option<u64>,
    /// The share of calls that fail without being made.
    pub fault: Ratio,
    /// Calls that are made later.
    pub latency: Latency,
    /// Calls that are answered with a status without being made.
    pub status: Status,
}

/// Calls that are made later.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    /// The share of calls.
    pub share: Ratio,
    /// By how much.
    pub by: Period,
    /// Up to so much more or less, at most [`Latency::by`].
    pub jitter: Period,
}

/// Calls that are answered with a status without being made.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The share of calls.
    pub share: Ratio,
    /// The status.
    pub code: u16,
}

/// What happens to one call, in this order. By default nothing does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Wait so long first.
    pub delay: Option<Duration>,
    /// Then fail, without making the call.
    pub fault: bool,
    /// Or answer with this status, without making the call. Never together with a fault.
    pub status: Option<u16>,
}

/// Makes the trouble of one service; share it by reference or `Arc`.
#[derive(Debug)]
pub struct Chaos {
    name: Name,
    /// Whether there is an experiment: all that a call without one looks at.
    on: AtomicBool,
    experiment: ArcSwapOption<Experiment>,
    /// One reload at a time, so that both of the above are of the same.
    reloading: Mutex<()>,
}

/// Decisions under one seed.
#[derive(Debug)]
struct Experiment {
    seed: u64,
    config: Config,
    /// The number of the next decision. Shared by all experiments of the same seed, so that a reload repeats none.
    next: Arc<AtomicU64>,
}

impl Chaos {
    /// The chaos of `config`, if any. `name` appears in rejections.
    pub fn new(name: Name, config: Option<Config>) -> Self {
        let (on, reloading) = (AtomicBool::new(false), Mutex::new(()));
        let chaos = Self { name, on, experiment: ArcSwapOption::empty(), reloading };
        chaos.reload(config);
        chaos
    }

    /// What happens to the next call.
    #[inline]
    pub fn decide(&self) -> Injection {
        if self.on.load(Ordering::Relaxed) { self.decide_next() } else { Injection::default() }
    }

    #[cold]
    fn decide_next(&self) -> Injection {
        match &*self.experiment.load() {
            Some(experiment) => {
                decide(&experiment.config, experiment.seed, experiment.next.fetch_add(1, Ordering::Relaxed))
            }
            None => Injection::default(),
        }
    }

    /// Makes `call`, or the trouble that is decided on: waits first, then fails, or answers with what `outcome` makes of
    /// a status. A call that is not made is dropped unpolled. The wait has no deadline of its own: put it inside of a
    /// [`timeout`](crate::timeout), which is one of the things that it is there to try. Cancel safe if the call is.
    ///
    /// # Errors
    /// [`Rejected`] with `injected`, or the call's own error.
    pub async fn call<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>>,
        outcome: impl FnOnce(u16) -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        let injection = self.decide();
        if let Some(delay) = injection.delay {
            tokio::time::sleep(delay).await;
        }
        if injection.fault {
            return Err(self.fault().into());
        }
        match injection.status {
            Some(status) => outcome(status),
            None => call.await,
        }
        .map_err(CallError::Inner)
    }

    /// What a call fails with whose [`Injection::fault`] is set.
    pub const fn fault(&self) -> Rejected {
        Rejected::new(PolicyName::Chaos, self.name, Reason::Injected)
    }

    /// The seed in use, with which this run can be repeated; `None` if there is no chaos.
    pub fn seed(&self) -> Option<u64> {
        self.experiment.load().as_ref().map(|experiment| experiment.seed)
    }

    /// How many decisions have been made under the seed.
    pub fn decisions(&self) -> u64 {
        self.experiment.load().as_ref().map_or(0, |experiment| experiment.next.load(Ordering::Relaxed))
    }

    /// Other trouble, or none. Under the same seed the decisions go on where they were; another seed, or chaos after
    /// none, begins with the first.
    pub fn reload(&self, config: Option<Config>) {
        let _alone = lock(&self.reloading);
        let old = self.experiment.load();
        let (on, old) = (config.is_some(), old.as_ref());
        self.experiment.store(config.map(|config| {
            // Few enough bits for every reader of numbers in YAML or JSON.
            let seed = config.seed.or(old.map(|old| old.seed)).unwrap_or_else(|| fastrand::u64(..1 << 53));
            let next = old.filter(|old| old.seed == seed).map(|old| old.next.clone()).unwrap_or_default();
            Arc::new(Experiment { seed, config, next })
        }));
        self.on.store(on, Ordering::Relaxed);
    }
}

impl AsRef<Self> for Chaos {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// Decision number `n` under `seed`. Pure.
pub fn decide(config: &Config, seed: u64, n: u64) -> Injection {
    // Four numbers for each decision, each for one question: a share that is changed changes no other answer.
    let number = |question: u64| uniform(seed, n.wrapping_mul(4).wrapping_add(question));
    let hit = |question, share: Ratio| number(question) < share.get();
    let delay = hit(0, config.latency.share).then(|| {
        let Latency { by, jitter, .. } = config.latency;
        let spread = jitter.as_secs_f64() * 2.0 * number(1);
        by.saturating_add(Duration::try_from_secs_f64(spread).unwrap_or_default()).saturating_sub(jitter.get())
    });
    let fault = hit(2, config.fault);
    let status = (!fault && hit(3, config.status.share)).then_some(config.status.code);
    Injection { delay, fault, status }
}

/// The `n`th number of SplitMix64 under `seed`, from 0 up to but not including 1.
fn uniform(seed: u64, n: u64) -> f64 {
    (split_mix(seed, n) >> 11) as f64 / (1u64 << 53) as f64
}

/// The `n`th output of SplitMix64, of which 0 is the first.
const fn split_mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use std::future::ready;

    use tokio::time::Instant;

    use super::*;

    fn config(seed: u64, fault: u8, latency: u8, status: u8) -> Config {
        Config {
            seed: Some(seed),
            fault: Ratio::percent(fault),
            latency: Latency { share: Ratio::percent(latency), by: Period::millis(100), jitter: Period::millis(40) },
            status: Status { share: Ratio::percent(status), code: 418 },
        }
    }

    fn take(chaos: &Chaos, n: usize) -> Vec<Injection> {
        (0..n).map(|_| chaos.decide()).collect()
    }

    #[test]
    fn off_unless_a_share_is_given_and_mistakes_are_named() {
        let share = |percent| Some(Ratio::percent(percent));
        let seed = ChaosConfig { seed: Some(7), enabled: Some(true), ..ChaosConfig::default() };
        assert_eq!((ChaosConfig::default().resolve(), seed.resolve()), (None, None));
        let fault = ChaosConfig { fault: share(1), ..ChaosConfig::default() };
        let expected = Config {
            seed: None,
            fault: Ratio::percent(1),
            latency: Latency { share: Ratio::percent(0), by: Period::millis(100), jitter: Period::default() },
            status: Status { share: Ratio::percent(0), code: 503 },
        };
        assert_eq!(fault.resolve(), Some(expected));
        assert_eq!(ChaosConfig { enabled: Some(false), ..fault.clone() }.resolve(), None);
        assert_eq!(ChaosConfig { fault: share(0), ..fault.clone() }.resolve(), None);

        let mut own = ChaosConfig::default();
        own.latency.share = share(50);
        own.status.code = Some(418);
        let merged = own.or(&fault.or(&seed)).resolve().unwrap();
        assert_eq!((merged.seed, merged.fault, merged.latency.share), (Some(7), Ratio::percent(1), Ratio::percent(50)));
        assert_eq!(merged.status.code, 418);

        let problems = |config: &ChaosConfig| {
            let mut found = Problems::default();
            config.problems(&mut found);
            found.into_vec().into_iter().map(|(path, _)| path).collect::<Vec<_>>()
        };
        assert_eq!(problems(&own), Vec::<String>::new());
        own.latency = LatencyConfig { by: Some(Period::secs(0)), jitter: Some(Period::secs(1)), ..own.latency };
        own.status.code = Some(99);
        assert_eq!(problems(&own), ["chaos.latency.by", "chaos.latency.jitter", "chaos.status.code"]);
    }

    #[test]
    fn the_generator_is_split_mix() {
        // The reference implementation's first numbers under the seed 1234567.
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|n| split_mix(1_234_567, n)), expected);
    }

    #[test]
    fn a_seed_repeats_itself_whatever_the_threads() {
        let run = |seed| take(&Chaos::new("payment".into(), Some(config(seed, 20, 30, 10))), 4000);
        let first = run(7);
        assert_eq!(first, run(7));
        assert_ne!(first, run(8));

        let chaos = Chaos::new("payment".into(), Some(config(7, 20, 30, 10)));
        let mut all: Vec<Injection> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| take(&chaos, 1000))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let mut expected = first;
        let key = |injection: &Injection| (injection.delay, injection.fault, injection.status);
        all.sort_by_key(key);
        expected.sort_by_key(key);
        assert_eq!((all, chaos.decisions()), (expected, 4000));
    }

    #[test]
    fn shares_are_kept_and_do_not_depend_on_each_other() {
        let count = |config: &Config, what: fn(&Injection) -> bool| {
            (0..100_000).filter(|n| what(&decide(config, 7, *n))).count()
        };
        let some = config(7, 20, 30, 10);
        let near = |count: usize, expected: usize| count.abs_diff(expected) < 500;
        assert!(near(count(&some, |i| i.fault), 20_000));
        assert!(near(count(&some, |i| i.delay.is_some()), 30_000));
        // A tenth of those that have not failed.
        assert!(near(count(&some, |i| i.status == Some(418)), 8_000));
        assert!(near(count(&some, |i| i.fault && i.delay.is_some()), 6_000));
        assert_eq!(count(&some, |i| i.fault && i.status.is_some()), 0);
        let (all, none) = (config(7, 100, 100, 100), config(7, 0, 0, 0));
        assert_eq!(count(&all, |i| i.fault && i.delay.is_some()), 100_000);
        assert_eq!(count(&none, |i| *i != Injection::default()), 0);
        // Within the jitter, and on both sides.
        let delays: Vec<_> =
            (0..1000).filter_map(|n| decide(&all, 7, n).delay).map(|delay| delay.as_millis()).collect();
        assert!(delays.iter().all(|delay| (60..=140).contains(delay)));
        assert!(delays.iter().any(|delay| *delay < 65) && delays.iter().any(|delay| *delay > 135));
    }

    #[test]
    fn a_reload_goes_on_under_the_same_seed() {
        let chaos = Chaos::new("payment".into(), None);
        assert_eq!((chaos.decide(), chaos.seed(), chaos.decisions()), (Injection::default(), None, 0));

        let drawn = Config { seed: None, ..config(0, 50, 0, 0) };
        chaos.reload(Some(drawn.clone()));
        let seed = chaos.seed().unwrap();
        let mut seen = take(&chaos, 50);
        chaos.reload(Some(drawn.clone()));
        seen.extend(take(&chaos, 50));
        assert_eq!(seen, (0..100).map(|n| decide(&drawn, seed, n)).collect::<Vec<_>>());
        let shown = Config { seed: Some(seed), ..drawn };
        assert_eq!(
            take(&Chaos::new("payment".into(), Some(shown)), 100),
            seen,
            "the seed that is shown repeats the run"
        );

        chaos.reload(Some(config(9, 50, 0, 0)));
        assert_eq!((chaos.seed(), chaos.decisions()), (Some(9), 0));
        chaos.reload(None);
        assert_eq!((chaos.decide(), chaos.seed()), (Injection::default(), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_meets_what_was_decided() {
        let made = std::sync::atomic::AtomicU32::new(0);
        let call = || async {
            made.fetch_add(1, Ordering::Relaxed);
            Ok::<u16, &str>(200)
        };
        let chaos = Chaos::new("payment".into(), None);
        let start = Instant::now();
        assert_eq!(chaos.call(call(), |_| unreachable!()).await, Ok(200));
        assert_eq!(
            chaos.call(ready(Err::<u16, _>("broken")), |_| unreachable!()).await,
            Err(CallError::Inner("broken"))
        );

        chaos.reload(Some(config(7, 100, 0, 100)));
        let rejected = Rejected::new(PolicyName::Chaos, "payment".into(), Reason::Injected);
        assert_eq!(chaos.call(call(), |_| unreachable!()).await, Err(CallError::Rejected(rejected)));
        assert!(!rejected.had_begun());
        chaos.reload(Some(config(7, 0, 0, 100)));
        assert_eq!(chaos.call(call(), Ok).await, Ok(418));
        assert_eq!(chaos.call(call(), |_| Err("teapot")).await, Err(CallError::Inner("teapot")));
        assert_eq!((made.load(Ordering::Relaxed), start.elapsed()), (1, Duration::ZERO));

        chaos.reload(Some(config(7, 0, 100, 0)));
        let delay = decide(&config(7, 0, 100, 0), 7, chaos.decisions()).delay.unwrap();
        assert_eq!(chaos.call(call(), |_| unreachable!()).await, Ok(200));
        let waited = start.elapsed();
        assert!(waited >= delay && waited <= delay + Duration::from_millis(1), "{waited:?} for {delay:?}");
        assert_eq!(made.into_inner(), 2);
    }
}
