//! Why it opened: the last calls that went wrong, for the person who asks.

use std::time::Duration;

use crate::Tick;
use crate::sync::{Mutex, lock};

/// A call that went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BadCall {
    /// When it ended.
    pub at: Tick,
    /// How long the service took, where that is known.
    pub took: Option<Duration>,
    /// Whether it failed; otherwise it was slow.
    pub failed: bool,
    /// What went wrong, in a word or two.
    pub cause: &'static str,
    /// The trace that it belongs to; zero if none.
    pub trace: u128,
}

/// How many are kept.
const KEPT: usize = 6;

/// The last bad calls. When two end at once one of them may be left out: nobody waits for this.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<(u64, [Kept; KEPT])>);

/// A [`BadCall`] without the gaps between its fields.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    at: Tick,
    took: u64,
    failed: bool,
    cause: &'static str,
    trace: [u64; 2],
}

/// Nobody knows how long it took.
const UNKNOWN: u64 = u64::MAX;

impl History {
    pub(super) fn push(&self, call: BadCall) {
        if let Ok(mut kept) = self.0.try_lock() {
            let BadCall { at, took, failed, cause, trace } = call;
            let took = took.map_or(UNKNOWN, crate::clock::nanos);
            let (count, calls) = &mut *kept;
            calls[(*count % KEPT as u64) as usize] =
                Kept { at, took, failed, cause, trace: [(trace >> 64) as u64, trace as u64] };
            *count += 1;
        }
    }

    /// Oldest first.
    pub(super) fn calls(&self) -> Vec<BadCall> {
        let kept = lock(&self.0);
        let (count, calls) = &*kept;
        let call = |at: u64| {
            let Kept { at, took, failed, cause, trace: [high, low] } = calls[(at % KEPT as u64) as usize];
            let took = (took != UNKNOWN).then_some(Duration::from_nanos(took));
            BadCall { at, took, failed, cause, trace: u128::from(high) << 64 | u128::from(low) }
        };
        (count.saturating_sub(KEPT as u64)..*count).map(call).collect()
    }
}
