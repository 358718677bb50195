//! The clock that deadlines of holders are computed from: `CLOCK_BOOTTIME`, which nobody sets and which goes on while the
//! machine sleeps. `Instant` stands still then, and a holder that slept would believe in its lock for too long.

use std::fmt;
use std::ops::Add;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// A moment: the time since this machine started, its sleep included. Means nothing on another machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot(Duration);

impl Boot {
    /// So long after the start of the machine.
    pub const fn after(since: Duration) -> Self {
        Self(since)
    }

    /// The time from `earlier` until this; zero if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Boot {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Where the time comes from; cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The kernel's `CLOCK_BOOTTIME`.
    #[default]
    Boottime,
    /// One that a test moves.
    Manual(Manual),
    /// A simulated machine's, whose threads are simulated, too.
    Simulated(Arc<dyn Machine>),
}

/// Something to be done.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a simulation puts in the place of the machine that a process runs on. For tests.
pub trait Machine: fmt::Debug + Send + Sync + 'static {
    /// The time since this machine started.
    fn now(&self) -> Boot;
    /// Resolves at `at`.
    fn sleep_until(&self, at: Boot) -> Task;
    /// Does something in the process, until that ends.
    fn spawn(&self, task: Task);
}

impl Clock {
    /// A clock that stands still until the other half moves it.
    pub fn manual() -> (Self, Manual) {
        let manual = Manual(Arc::new(watch::Sender::new(Boot::default())));
        (Self::Manual(manual.clone()), manual)
    }

    /// The time.
    pub fn now(&self) -> Boot {
        match self {
            Self::Boottime => {
                let time = clock_gettime(ClockId::Boottime);
                // It begins at zero when the machine starts; neither part is ever negative.
                Boot(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
            }
            Self::Manual(manual) => *manual.0.borrow(),
            Self::Simulated(machine) => machine.now(),
        }
    }

    /// Starts a thread with a runtime of its own, to do something.
    pub(crate) fn start_thread(
        &self,
        name: &str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), String> {
        if let Self::Simulated(machine) = self {
            machine.spawn(Box::pin(task));
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(task));
        started.map(drop).map_err(|error| error.to_string())
    }

    /// Does something beside what the thread does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Simulated(machine) => machine.spawn(Box::pin(task)),
            Self::Boottime | Self::Manual(_) => drop(tokio::spawn(task)),
        }
    }

    /// Resolves at `at`, at once if that has passed. Needs a runtime with I/O and time. Cancel safe.
    pub async fn sleep_until(&self, at: Boot) {
        match self {
            Self::Boottime => {
                while self.now() < at {
                    // A process may run out of descriptors; then a timer that stops in the machine's sleep has to do.
                    if boot_timer(at).await.is_err() {
                        tokio::time::sleep(at.since(self.now())).await;
                    }
                }
            }
            Self::Manual(manual) => {
                let mut moved = manual.0.subscribe();
                // The sender lives as long as this clock.
                let _ = moved.wait_for(|now| *now >= at).await;
            }
            Self::Simulated(machine) => machine.sleep_until(at).await,
        }
    }
}

/// A timer of the kernel's, which fires at once when the process is continued or the machine wakes up too late.
async fn boot_timer(at: Boot) -> std::io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Timespec {
        tv_sec: i64::try_from(at.0.as_secs()).unwrap_or(i64::MAX),
        // Zero would switch the timer off; a nanosecond more is none too late.
        tv_nsec: i64::from(at.0.subsec_nanos().max(1)),
    };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval: never, it_value: value })?;
    // Deprecated for descriptors that somebody else may close; this one is owned.
    #[expect(deprecated, reason = "its successor is unsafe to call, and an owned descriptor needs no promise")]
    let timer = AsyncFd::new(timer)?;
    drop(timer.readable().await?);
    Ok(())
}

/// Moves a manual clock. All clones move the same one.
#[derive(Clone, Debug)]
pub struct Manual(Arc<watch::Sender<Boot>>);

impl Manual {
    /// Goes on by `duration`.
    pub fn advance(&self, duration: Duration) {
        self.0.send_modify(|now| *now = *now + duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_timer_waits_until_its_moment_and_not_for_the_past() {
        let clock = Clock::default();
        let from = clock.now();
        clock.sleep_until(from).await;
        clock.sleep_until(from + Duration::from_millis(20)).await;
        let took = clock.now().since(from);
        assert!(took >= Duration::from_millis(20) && took < Duration::from_secs(5), "{took:?}");
    }

    #[tokio::test]
    async fn a_manual_clock_wakes_who_waits() {
        let (clock, hand) = Clock::manual();
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(Boot::after(Duration::from_secs(3600))).await }
        });
        tokio::task::yield_now().await;
        hand.advance(Duration::from_secs(3599));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        hand.advance(Duration::from_secs(1));
        tokio::time::timeout(Duration::from_secs(5), sleeper).await.expect("it wakes").unwrap();
    }
}
