//! One trigger, any number of watchers, and the guards that hold the stop back.
//!
//! Guards are taken for every request, so they write nothing that threads share: a [`Kind`] is split into stripes, a
//! thread keeps to its own, and even the reference count that a guard takes is its stripe's. To see whether anything is
//! held, all stripes are locked at once: a task that takes a second guard before it lets go of its first is never missed
//! between two looks.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::report::{Held, Report};

/// More threads than this share stripes, which costs time and nothing else.
const STRIPES: usize = 16;

/// Makes a trigger and its first watcher.
pub fn channel() -> (Trigger, Drain) {
    let signal = Signal { on: AtomicBool::new(false), told: watch::Sender::new(false), freed: Notify::new() };
    let shared = Arc::new(Shared { signal: Arc::new(signal), kinds: Mutex::default() });
    (Trigger { shared: shared.clone() }, Drain { shared })
}

/// Decides that it is time to stop. Dropping it without [`Trigger::drain`] signals too, so that nobody waits for ever.
#[derive(Debug)]
pub struct Trigger {
    pub(crate) shared: Arc<Shared>,
}

impl Trigger {
    /// Signals every watcher and returns at once. Once signaled, always signaled.
    pub fn signal(&self) {
        self.shared.signal.set();
    }

    /// Signals every watcher, then waits until no guard is held, at most for `deadline`. The report is clean if there was
    /// a moment without guards; otherwise it says what was left.
    ///
    /// Cancel safe: dropping the future leaves the signal set and waits no more; it can be called again.
    pub async fn drain(&self, deadline: Duration) -> Report {
        self.signal();
        match tokio::time::timeout(deadline, self.idle()).await {
            Ok(()) => Report::default(),
            Err(_) => self.waiting(),
        }
    }

    /// What is still held right now.
    pub fn waiting(&self) -> Report {
        self.shared.report()
    }

    /// Resolves at a moment when no guard is held. Only after [`Trigger::signal`]: before it guards tell nobody.
    pub(crate) async fn idle(&self) {
        loop {
            // Made before the look, so that a guard that goes in between still wakes us.
            let freed = self.shared.signal.freed.notified();
            if self.shared.is_idle() {
                return;
            }
            freed.await;
        }
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.signal();
    }
}

/// Learns that it is time to stop, and holds the stop back while there is work. Clones watch the same trigger.
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<Shared>,
}

impl Drain {
    /// Resolves once the trigger has signaled or is gone; immediately if it already has. Cancel safe.
    pub async fn signaled(&self) {
        // An error would mean that the sender is gone, and we hold it.
        let _ = self.shared.signal.told.subscribe().wait_for(|told| *told).await;
    }

    /// Whether the trigger has signaled or is gone.
    pub fn is_signaled(&self) -> bool {
        self.shared.signal.is_set()
    }

    /// A name under which guards are held. Get it once and keep it where guards are taken often.
    pub fn kind(&self, what: &'static str) -> Kind {
        self.shared.kind(what)
    }

    /// Holds the stop back until dropped; `what` appears in the [`Report`]. Looks the name up under a lock:
    /// [`Drain::kind`] is for what happens all the time.
    pub fn guard(&self, what: &'static str) -> Guard {
        self.kind(what).guard()
    }
}

/// The guards of one name. Clones count together.
#[derive(Clone, Debug)]
pub struct Kind {
    stripes: Arc<[Arc<Stripe>]>,
}

impl Kind {
    /// Holds the stop back until dropped, even when the trigger has signaled already.
    pub fn guard(&self) -> Guard {
        let stripe = self.stripes[own_stripe()].clone();
        let slot = stripe.slots().take(Instant::now());
        Guard { stripe, slot }
    }

    /// Like [`Kind::guard`] while the trigger has not signaled, and `None` after. There is no moment in between: either
    /// the drain waits for the guard, or it is refused.
    pub fn try_guard(&self) -> Option<Guard> {
        // The guard comes first: asked the other way round, the drain could begin and end between the two.
        let guard = self.guard();
        (!guard.stripe.signal.is_set()).then_some(guard)
    }

    /// How many guards are held.
    pub fn held(&self) -> usize {
        lock_all(&self.stripes).iter().map(|slots| slots.held()).sum()
    }

    fn new(what: &'static str, signal: &Arc<Signal>) -> Self {
        let stripe = |_| Arc::new(Stripe { what, signal: signal.clone(), slots: Mutex::default() });
        Self { stripes: (0..STRIPES).map(stripe).collect() }
    }
}

/// Work that has to end before the stop. May be sent to and dropped on any thread.
#[derive(Debug)]
#[must_use = "a guard that is dropped at once holds nothing back"]
pub struct Guard {
    stripe: Arc<Stripe>,
    slot: u32,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let empty = {
            let mut slots = self.stripe.slots();
            slots.release(self.slot);
            slots.held() == 0
        };
        // Whoever drains has set the signal before it looked into this stripe. If it saw this guard, we see the signal.
        if empty && self.stripe.signal.is_set() {
            self.stripe.signal.freed.notify_waiters();
        }
    }
}

/// What trigger, watchers and guards have in common. Apart from the kinds, whose stripes hold it.
#[derive(Debug)]
struct Signal {
    on: AtomicBool,
    told: watch::Sender<bool>,
    freed: Notify,
}

impl Signal {
    fn set(&self) {
        self.on.store(true, Ordering::SeqCst);
        self.told.send_replace(true);
    }

    fn is_set(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    signal: Arc<Signal>,
    kinds: Mutex<BTreeMap<&'static str, Kind>>,
}

impl Shared {
    /// What is held, as of one moment.
    pub(crate) fn report(&self) -> Report {
        let now = Instant::now();
        let kinds = self.kinds();
        let locked: Vec<_> = kinds.iter().map(|(what, kind)| (*what, lock_all(&kind.stripes))).collect();
        let held = locked.iter().filter_map(|(what, stripes)| {
            let since = stripes.iter().filter_map(|slots| slots.oldest()).min()?;
            let count = stripes.iter().map(|slots| slots.held()).sum();
            Some(Held { what, count, oldest: now.saturating_duration_since(since) })
        });
        Report::new(held.collect())
    }

    fn is_idle(&self) -> bool {
        let kinds = self.kinds();
        let locked: Vec<_> = kinds.values().flat_map(|kind| lock_all(&kind.stripes)).collect();
        locked.iter().all(|slots| slots.held() == 0)
    }

    fn kind(&self, what: &'static str) -> Kind {
        self.kinds().entry(what).or_insert_with(|| Kind::new(what, &self.signal)).clone()
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<&'static str, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's share of a kind. Aligned so that two threads never write the same cache line.
#[repr(align(128))]
struct Stripe {
    what: &'static str,
    signal: Arc<Signal>,
    slots: Mutex<Slots>,
}

impl Stripe {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Stripe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stripe").field("what", &self.what).finish_non_exhaustive()
    }
}

/// Since when each guard is held. As large as the most guards that there were at once.
#[derive(Default)]
struct Slots {
    since: Vec<Option<Instant>>,
    free: Vec<u32>,
}

impl Slots {
    fn take(&mut self, now: Instant) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.since[slot as usize] = Some(now);
            return slot;
        }
        let slot = u32::try_from(self.since.len()).expect("four billion guards do not fit into memory");
        self.since.push(Some(now));
        slot
    }

    fn release(&mut self, slot: u32) {
        self.since[slot as usize] = None;
        self.free.push(slot);
    }

    fn held(&self) -> usize {
        self.since.len() - self.free.len()
    }

    fn oldest(&self) -> Option<Instant> {
        self.since.iter().flatten().min().copied()
    }
}

/// Locks every stripe, always in the same order. A guard locks one alone, so nobody waits in a circle.
fn lock_all(stripes: &[Arc<Stripe>]) -> Vec<MutexGuard<'_, Slots>> {
    stripes.iter().map(|stripe| stripe.slots()).collect()
}

/// The stripe of this thread.
fn own_stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<Option<usize>> = const { Cell::new(None) };
    }
    OWN.with(|own| {
        own.get().unwrap_or_else(|| {
            let stripe = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
            own.set(Some(stripe));
            stripe
        })
    })
}

#[cfg(test)]
mod tests;
