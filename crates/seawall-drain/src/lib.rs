//! Graceful shutdown: one trigger, any number of watchers, a deadline, and an answer to "what are we waiting for?".
//!
//! A [`Trigger`] belongs to whoever decides to stop; a [`Drain`] goes to every task that must finish something first.
//! A task holds a [`Guard`] while it has work. [`Trigger::drain`] asks everybody to stop, waits until the last guard
//! is gone or the deadline has passed, and says what was left.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! use std::time::Duration;
//!
//! let (trigger, drain) = seawall_drain::channel();
//! let guard = drain.guard("upload");
//! tokio::spawn(async move {
//!     drain.signaled().await; // stop taking new work
//!     drop(guard);            // and say when the old is done
//! });
//! let report = trigger.drain(Duration::from_secs(5)).await;
//! assert!(report.is_clean());
//! # });
//! ```
//!
//! The shape follows linkerd's `drain` and hyper-util's `GracefulShutdown`; what is added is that guards have names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Makes a trigger and its first watcher.
pub fn channel() -> (Trigger, Drain) {
    let (signal, _) = watch::channel(false);
    let (count, _) = watch::channel(0);
    let shared = Arc::new(Shared { signal, count, held: Mutex::default() });
    (Trigger { shared: shared.clone() }, Drain { signaled: shared.signal.subscribe(), shared })
}

#[derive(Debug)]
struct Shared {
    signal: watch::Sender<bool>,
    count: watch::Sender<usize>,
    held: Mutex<BTreeMap<&'static str, usize>>,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides that it is time to stop. Dropping it without [`Trigger::drain`] signals too, so that nobody waits for ever.
#[derive(Debug)]
pub struct Trigger {
    shared: Arc<Shared>,
}

impl Trigger {
    /// Signals every watcher and returns at once.
    pub fn signal(&self) {
        self.shared.signal.send_replace(true);
    }

    /// Signals every watcher, then waits until no guard is held, at most for `deadline`.
    ///
    /// Cancel safe: dropping the future leaves the signal set and waits no more.
    pub async fn drain(&self, deadline: Duration) -> Report {
        self.signal();
        let mut count = self.shared.count.subscribe();
        // An error would mean that the sender is gone, and we hold it.
        let _ = tokio::time::timeout(deadline, count.wait_for(|held| *held == 0)).await;
        self.waiting()
    }

    /// What is still held right now.
    pub fn waiting(&self) -> Report {
        Report { left: self.shared.held().clone() }
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.signal();
    }
}

/// Learns that it is time to stop, and holds the stop back while there is work.
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<Shared>,
    signaled: watch::Receiver<bool>,
}

impl Drain {
    /// Resolves once the trigger has signaled; immediately if it already has. Cancel safe.
    pub async fn signaled(&self) {
        let mut signaled = self.signaled.clone();
        let _ = signaled.wait_for(|signaled| *signaled).await;
    }

    /// Whether the trigger has signaled.
    pub fn is_signaled(&self) -> bool {
        *self.signaled.borrow()
    }

    /// Holds the stop back until dropped; `what` appears in the [`Report`].
    pub fn guard(&self, what: &'static str) -> Guard {
        *self.shared.held().entry(what).or_default() += 1;
        self.shared.count.send_modify(|held| *held += 1);
        Guard { shared: self.shared.clone(), what }
    }
}

/// Work that has to end before the stop.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
    what: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        {
            let mut held = self.shared.held();
            if let Some(count) = held.get_mut(self.what) {
                *count -= 1;
                if *count == 0 {
                    held.remove(self.what);
                }
            }
        }
        self.shared.count.send_modify(|held| *held -= 1);
    }
}

/// What was still held, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    left: BTreeMap<&'static str, usize>,
}

impl Report {
    /// Whether everything had ended.
    pub fn is_clean(&self) -> bool {
        self.left.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return f.write_str("nothing");
        }
        for (at, (what, count)) in self.left.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let plural = if *count == 1 { "" } else { "s" };
            write!(f, "{comma}{count} {what}{plural}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_guards_and_names_those_that_stay() {
        let (trigger, drain) = channel();
        let (quick, slow) = (drain.guard("request"), drain.guard("stream"));
        let second = drain.guard("stream");
        tokio::spawn(async move {
            drain.signaled().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(quick);
        });
        let started = tokio::time::Instant::now();
        let report = trigger.drain(Duration::from_secs(5)).await;
        assert_eq!(started.elapsed().as_secs(), 5);
        assert_eq!(report.to_string(), "2 streams");
        drop((slow, second));
        assert!(trigger.drain(Duration::ZERO).await.is_clean());
    }

    #[tokio::test]
    async fn a_dropped_trigger_signals() {
        let (trigger, drain) = channel();
        assert!(!drain.is_signaled());
        drop(trigger);
        drain.signaled().await;
        assert!(drain.is_signaled());
    }
}
