//! Whether a candidate is fit to lead: its own health, looked at again and again, and slow to come back when it comes and goes.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// When a candidate is fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// From the end of one check to the next. Default 2 s.
    pub interval: Duration,
    /// A check that takes longer has failed. Default 2 s.
    pub patience: Duration,
    /// So many checks in a row have to fail. Default 3.
    pub failures: u32,
    /// Who was found unfit rests for so long at least, twice as long each time up to the second of these, and half of it to all of
    /// it at random. Who has been fit for ten times the longest rest begins anew. Default 1 s and 60 s.
    pub rest: (Duration, Duration),
}

impl Default for HealthConfig {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { interval: 2 * second, patience: 2 * second, failures: 3, rest: (second, 60 * second) }
    }
}

/// Pure: what the checks so far mean.
#[derive(Debug)]
struct Fitness {
    config: HealthConfig,
    fit: bool,
    /// Failures in a row.
    failed: u32,
    rest: Duration,
    since: Duration,
    /// Not fit before this.
    rests_until: Duration,
}

impl Fitness {
    /// Unfit until a check has passed.
    fn new(config: HealthConfig) -> Self {
        let zero = Duration::ZERO;
        Self { config, fit: false, failed: 0, rest: zero, since: zero, rests_until: zero }
    }

    /// A check has ended. `now` counts from anywhere, `random` is from 0 to 1.
    fn check(&mut self, passed: bool, now: Duration, random: f64) -> bool {
        self.failed = if passed { 0 } else { self.failed.saturating_add(1) };
        let (first, most) = self.config.rest;
        if self.fit && self.failed >= self.config.failures.max(1) {
            let long = now.saturating_sub(self.since) >= 10 * most;
            self.rest = if long { first } else { (self.rest * 2).clamp(first, most) };
            self.rests_until = now + self.rest.mul_f64(0.5 + 0.5 * random);
            self.fit = false;
        } else if !self.fit && passed && now >= self.rests_until {
            self.fit = true;
            self.since = now;
        }
        self.fit
    }
}

/// Checks a health for as long as anybody is told of it: first `false`, then what the checks say.
pub async fn watch_health(config: HealthConfig, mut check: impl AsyncFnMut() -> bool, told: watch::Sender<bool>) {
    let (began, mut fitness) = (Instant::now(), Fitness::new(config));
    told.send_replace(false);
    loop {
        let passed = tokio::select! {
            passed = timeout(config.patience, check()) => passed.unwrap_or(false),
            () = told.closed() => return,
        };
        let fit = fitness.check(passed, began.elapsed(), fastrand::f64());
        told.send_if_modified(|was| std::mem::replace(was, fit) != fit);
        tokio::select! {
            () = sleep(config.interval) => {}
            () = told.closed() => return,
        }
    }
}

/// Resolves when this says so, or at once if it does; never when nobody says anything any more.
pub(crate) async fn says(health: &mut watch::Receiver<bool>, fit: bool) {
    if health.wait_for(|now| *now == fit).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_and_goes_rests_longer_each_time() {
        let second = Duration::from_secs(1);
        let config = HealthConfig { failures: 2, rest: (second, 8 * second), ..HealthConfig::default() };
        let (mut fitness, mut now) = (Fitness::new(config), Duration::ZERO);
        assert!(!fitness.check(false, now, 1.0));
        assert!(fitness.check(true, now, 1.0), "it begins without a rest");
        assert!(fitness.check(false, now, 1.0), "one failure is none");
        assert!(fitness.check(true, now, 1.0));
        let mut rests = Vec::new();
        for _ in 0..5 {
            fitness.check(false, now, 1.0);
            assert!(!fitness.check(false, now, 1.0));
            let from = now;
            while !fitness.check(true, now, 1.0) {
                now += second / 2;
            }
            rests.push((now - from).as_secs());
        }
        assert_eq!(rests, [1, 2, 4, 8, 8]);
        now += 80 * second;
        fitness.check(false, now, 0.0);
        assert!(!fitness.check(false, now, 0.0));
        assert!(!fitness.check(true, now + second / 4, 0.0) && fitness.check(true, now + second / 2, 0.0), "long ago");
    }

    #[tokio::test]
    async fn a_check_that_hangs_has_failed() {
        let (told, mut health) = watch::channel(true);
        let mut checks = 0;
        let short = Duration::from_millis(20);
        let config = HealthConfig { interval: short, patience: short, ..HealthConfig::default() };
        let checking = tokio::spawn(watch_health(
            config,
            async move || {
                checks += 1;
                if checks > 1 {
                    std::future::pending::<()>().await;
                }
                true
            },
            told,
        ));
        says(&mut health, true).await;
        let from = Instant::now();
        says(&mut health, false).await;
        assert!(from.elapsed() >= 3 * config.patience);
        drop(health);
        checking.await.unwrap();
    }
}
