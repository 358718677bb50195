//! Which random schedules are run, and how to run one of them again.

/// The seeds of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    count: u64,
}

impl Seeds {
    /// `SEAWALL_SEED` alone if that is set; otherwise so many from `SEAWALL_FIRST_SEED` (0 unless set) on, multiplied by
    /// `SEAWALL_SCHEDULES` (1 unless set), so that a long run has the same proportions as a short one.
    ///
    /// # Panics
    /// When one of them is no number.
    pub fn from_env(count: u64) -> Self {
        let number = |name| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
        };
        match number("SEAWALL_SEED") {
            Some(first) => Self { first, count: 1 },
            None => {
                let first = number("SEAWALL_FIRST_SEED").unwrap_or(0);
                Self { first, count: count.saturating_mul(number("SEAWALL_SCHEDULES").unwrap_or(1)) }
            }
        }
    }

    /// Exactly these.
    pub fn new(first: u64, count: u64) -> Self {
        Self { first, count }
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |at| self.first.wrapping_add(at))
    }
}

/// Runs each seed, on as many threads as there are processors. True for all, or a panic that names one that is not.
///
/// # Panics
/// With the seed in the message, as the variable to set.
pub fn each_seed(seeds: Seeds, run: impl Fn(u64) -> Result<(), String> + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let failed = std::sync::Mutex::new(None);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (run, failed) = (&run, &failed);
            scope.spawn(move || {
                for seed in seeds.iter().filter(|seed| seed % threads == thread) {
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
                    let outcome = outcome.unwrap_or_else(|_| Err("it panicked, see above".into()));
                    let mut failed = failed.lock().expect("nobody panics with it");
                    if let Err(why) = outcome {
                        failed.get_or_insert((seed, why));
                    }
                    if failed.is_some() {
                        return;
                    }
                }
            });
        }
    });
    if let Some((seed, why)) = failed.into_inner().expect("nobody panics with it") {
        panic!("SEAWALL_SEED={seed} fails:\n{why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_run_and_a_failure_is_named() {
        let run = std::sync::Mutex::new(std::collections::BTreeSet::new());
        each_seed(Seeds::new(5, 100), |seed| {
            assert!(run.lock().unwrap().insert(seed));
            Ok(())
        });
        assert_eq!(run.into_inner().unwrap(), (5..105).collect());
        let failed = std::panic::catch_unwind(|| {
            each_seed(Seeds::new(0, 100), |seed| if seed == 42 { Err("no".into()) } else { Ok(()) });
        });
        let said = failed.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(*said, "SEAWALL_SEED=42 fails:\nno");
    }
}
