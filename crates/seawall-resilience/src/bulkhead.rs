//! The bulkhead: at most so many calls at once, and a bounded, fair queue for a bounded time.
//! (Nygard, *Release It!*, 2007.) It is tokio's fair semaphore with a limit on those who wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use seawall_types::Period;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Name, PolicyName, Reason, Rejected};

/// What a bulkhead does; every field is within its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many calls may be under way at once, at least 1.
    pub concurrent: u32,
    /// How long a call waits for a place; zero turns it away at once.
    pub wait: Period,
    /// How many calls may wait.
    pub queue: u32,
}

/// A bulkhead; share it by reference or `Arc`.
#[derive(Debug)]
pub struct Bulkhead {
    name: Name,
    config: Config,
    places: Arc<Semaphore>,
    waiting: AtomicU32,
}

/// A place in the bulkhead, free again when dropped.
#[derive(Debug)]
#[must_use = "the place is free again as soon as the permit is dropped"]
pub struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Bulkhead {
    /// An empty bulkhead. `name` appears in rejections.
    pub fn new(name: Name, config: Config) -> Self {
        let places = (config.concurrent.max(1) as usize).min(Semaphore::MAX_PERMITS);
        Self { name, config, places: Arc::new(Semaphore::new(places)), waiting: AtomicU32::new(0) }
    }

    /// Takes a place, waiting for one as configured but never longer than `limit`. First come, first served.
    /// Cancel safe: a dropped future has taken nothing.
    ///
    /// # Errors
    /// [`Rejected`] with `full` when the wait is over, with `queue-full` when too many wait already.
    pub async fn acquire(&self, limit: Duration) -> Result<Permit, Rejected> {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return Ok(Permit(permit));
        }
        let wait = self.config.wait.get().min(limit);
        if wait.is_zero() {
            return Err(self.rejected(Reason::Full));
        }
        let Some(_waiting) = Waiting::enter(&self.waiting, self.config.queue) else {
            return Err(self.rejected(Reason::QueueFull));
        };
        match tokio::time::timeout(wait, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Permit(permit)),
            Ok(Err(_)) | Err(_) => Err(self.rejected(Reason::Full)),
        }
    }

    /// How many places are free.
    pub fn available(&self) -> usize {
        self.places.available_permits()
    }

    fn rejected(&self, reason: Reason) -> Rejected {
        Rejected { policy: PolicyName::Bulkhead, instance: self.name, reason, retry_after: None }
    }
}

/// Counts one waiter until dropped.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicU32, limit: u32) -> Option<Self> {
        let entered = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1));
        entered.is_ok().then_some(Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn bulkhead(concurrent: u32, wait: u64, queue: u32) -> Bulkhead {
        Bulkhead::new("payment".into(), Config { concurrent, wait: Period::secs(wait), queue })
    }

    #[tokio::test(start_paused = true)]
    async fn turns_away_when_full_and_waits_when_told() {
        let none = bulkhead(2, 0, 10);
        let (_a, b) = (none.acquire(LONG).await.unwrap(), none.acquire(LONG).await.unwrap());
        assert_eq!(none.acquire(LONG).await.unwrap_err().reason, Reason::Full);
        drop(b);
        assert!(none.acquire(LONG).await.is_ok());

        let some = Arc::new(bulkhead(1, 5, 1));
        let held = some.acquire(LONG).await.unwrap();
        let waiter = tokio::spawn({
            let some = some.clone();
            async move { some.acquire(LONG).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(some.acquire(LONG).await.unwrap_err().reason, Reason::QueueFull);
        drop(held);
        assert!(waiter.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_by_itself_or_by_the_callers_limit() {
        let bulkhead = bulkhead(1, 5, 10);
        let _held = bulkhead.acquire(LONG).await.unwrap();
        for (limit, waited) in [(LONG, 5), (Duration::from_secs(2), 2)] {
            let started = tokio::time::Instant::now();
            assert_eq!(bulkhead.acquire(limit).await.unwrap_err().reason, Reason::Full);
            assert_eq!(started.elapsed().as_secs(), waited);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_waiter_leaves_no_trace() {
        let bulkhead = bulkhead(1, 60, 1);
        let held = bulkhead.acquire(LONG).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), bulkhead.acquire(LONG)).await.is_err());
        assert_eq!(bulkhead.waiting.load(Ordering::Relaxed), 0);
        drop(held);
        assert_eq!(bulkhead.available(), 1);
    }
}
