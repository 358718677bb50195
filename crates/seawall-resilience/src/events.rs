//! What the policies have to tell: every transition, and calls where somebody asks for them.
//!
//! A subscriber reads from a bounded channel: one that is too slow loses the oldest events and is told how many; the
//! calls never wait for it. The last transitions are kept for who comes later.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::{Name, breaker};

/// How many events a subscriber may be behind.
const BEHIND: usize = 1024;
/// How many transitions are kept.
const KEPT: usize = 100;

/// Something that happened to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// Whose policy.
    pub instance: Name,
    /// What.
    pub what: breaker::Event,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "breaker of `{}`: ", self.instance)?;
        match &self.what {
            breaker::Event::Moved(transition) => transition.fmt(f),
            breaker::Event::WouldOpen(sums) => {
                write!(f, "would have opened: {} of {} calls failed, {} were slow", sums.failed, sums.calls, sums.slow)
            }
            breaker::Event::Call(report) => write!(f, "a call ended: {:?}", report.outcome),
            breaker::Event::Rejected(reason) => write!(f, "a call was turned away: {reason}"),
        }
    }
}

/// Told of every event on the thread of the call that caused it. Must not block.
pub type Observer = Box<dyn Fn(&Event) + Send + Sync>;

/// The stream of events of all policies of a registry.
pub struct Events {
    sender: broadcast::Sender<Event>,
    kept: Mutex<VecDeque<Event>>,
    observer: OnceLock<Observer>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND), kept: Mutex::default(), observer: OnceLock::new() }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("subscribers", &self.sender.receiver_count()).finish_non_exhaustive()
    }
}

impl Events {
    /// Everything from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    /// Tells `observer` of everything too, as it happens: for logs. There is one; a second one is not taken.
    pub fn observe(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    /// The last hundred transitions, oldest first.
    pub fn recent(&self) -> Vec<Event> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    pub(crate) fn tell(&self, instance: Name, what: breaker::Event) {
        let event = Event { at: SystemTime::now(), instance, what };
        if !matches!(what, breaker::Event::Call(_) | breaker::Event::Rejected(_)) {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(event);
        }
        if let Some(observer) = self.observer.get() {
            observer(&event);
        }
        // Nobody may be listening.
        let _ = self.sender.send(event);
    }
}
