//! The clock of the policies: monotonic, cheap, and replaceable.
//!
//! A precise reading costs about 22 ns, several times what a closed breaker costs in all; windows, waits and slow calls
//! need milliseconds. So the default is the kernel's coarse clock: about 5 ns, a resolution of one to four
//! milliseconds. What needs better (rate limits, measured latencies) asks for [`Clock::precise`].

use std::fmt;
use std::ops::{Add, AddAssign};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment: nanoseconds since a point that is the same for the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(u64);

impl Tick {
    /// So many nanoseconds after the beginning.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// So many milliseconds after the beginning.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the beginning.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; zero if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Tick {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for Tick {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

/// A duration in nanoseconds; 584 years at most.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Where the time comes from. Cheap to clone.
#[derive(Clone, Default)]
pub enum Clock {
    /// The kernel's coarse monotonic clock (`CLOCK_MONOTONIC_COARSE`).
    #[default]
    Coarse,
    /// The kernel's monotonic clock.
    Precise,
    /// tokio's, which a test can pause. Its beginning is the moment at which it was made.
    Tokio(tokio::time::Instant),
    /// One that stands still until it is moved.
    Manual(Manual),
}

impl Clock {
    /// tokio's clock, beginning now.
    pub fn tokio() -> Self {
        Self::Tokio(tokio::time::Instant::now())
    }

    /// A clock that stands still until the other half moves it.
    pub fn manual() -> (Self, Manual) {
        let manual = Manual::default();
        (Self::Manual(manual.clone()), manual)
    }

    /// The time, as exact as the clock is.
    #[inline]
    pub fn now(&self) -> Tick {
        match self {
            Self::Coarse => read(ClockId::MonotonicCoarse),
            _ => self.precise(),
        }
    }

    /// The time to the nanosecond, where the coarse clock is too coarse. May be ahead of [`Clock::now`] by its
    /// resolution; both have the same beginning.
    pub fn precise(&self) -> Tick {
        match self {
            Self::Coarse | Self::Precise => read(ClockId::Monotonic),
            Self::Tokio(base) => Tick(nanos(base.elapsed())),
            Self::Manual(manual) => Tick(manual.0.load(Ordering::Acquire)),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coarse => "Coarse",
            Self::Precise => "Precise",
            Self::Tokio(_) => "Tokio",
            Self::Manual(_) => "Manual",
        })
    }
}

#[inline]
fn read(id: ClockId) -> Tick {
    let time = clock_gettime(id);
    // The monotonic clock begins at zero when the machine starts; neither part is ever negative.
    Tick((time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64))
}

/// Moves a manual clock. All clones move the same one.
#[derive(Clone, Debug, Default)]
pub struct Manual(Arc<AtomicU64>);

impl Manual {
    /// Goes on by `duration`.
    pub fn advance(&self, duration: Duration) {
        self.0.fetch_add(nanos(duration), Ordering::AcqRel);
    }

    /// Goes on to `to`; a clock never goes back.
    pub fn set(&self, to: Tick) {
        self.0.fetch_max(to.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_move_forward_and_agree() {
        let clock = Clock::default();
        let (coarse, precise) = (clock.now(), clock.precise());
        assert!(precise.since(coarse) < Duration::from_millis(100) && coarse.since(precise) == Duration::ZERO);
        let (clock, hand) = Clock::manual();
        assert_eq!(clock.now(), Tick::default());
        hand.advance(Duration::from_millis(3));
        hand.set(Tick::from_millis(2));
        assert_eq!((clock.now(), clock.precise()), (Tick::from_millis(3), Tick::from_millis(3)));
        assert_eq!(Tick::from_millis(1).since(clock.now()), Duration::ZERO);
        assert_eq!(Tick::from_nanos(u64::MAX) + Duration::MAX, Tick::from_nanos(u64::MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn tokios_clock_can_be_paused() {
        let clock = Clock::tokio();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), Tick::from_millis(5000));
    }
}
