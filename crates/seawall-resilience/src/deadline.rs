//! Deadlines: the moment at which a whole call must be over, handed on through the task and from hop to hop.
//!
//! As gRPC has it, a deadline belongs to the call and not to a client: whoever makes further calls for it makes them
//! under what is left. Within a task it is ambient ([`scope`], [`current`]); between processes it travels as the time
//! that is left, in whole milliseconds, under [`HEADER`], so that clocks need not agree. A hop may shorten it and never
//! lengthens it.
//!
//! A deadline does nothing by itself: [`timeout`](crate::timeout) ends what runs into it. It keeps tokio's time, which a
//! test can pause.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;

/// The header that a deadline travels in.
pub const HEADER: &str = seawall_types::header::TIMEOUT;

/// So much before its end a caller's time counts as over, for who judges a failure: the next hop is told whole milliseconds,
/// rounded down, and keeps to them by timers that go by milliseconds too. So it may be first to say that there is no time.
pub const EARLY: Duration = Duration::from_millis(3);

/// Longer than anything lasts, and short enough to be added to any clock.
const FAR: Duration = Duration::from_secs(30 * 366 * 24 * 3600);

/// When a call must be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now; more than thirty years count as thirty.
    pub fn after(left: Duration) -> Self {
        Self::at(Instant::now() + left.min(FAR))
    }

    /// At a moment of tokio's clock.
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// So long from now, or the ambient deadline if that is sooner: what a call is made under.
    pub fn within(limit: Duration) -> Self {
        Self::begin(limit).0
    }

    /// [`Deadline::within`], and how much time that leaves: both by one look at the clock.
    pub(crate) fn begin(limit: Duration) -> (Self, Duration) {
        let now = Instant::now();
        let own = Self::at(now + limit.min(FAR));
        let deadline = current().map_or(own, |ambient| own.min(ambient));
        (deadline, deadline.left_at(now))
    }

    /// The moment.
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// How much time is left; zero when it is over.
    pub fn left(self) -> Duration {
        self.left_at(Instant::now())
    }

    /// How much time is left at `now`.
    pub fn left_at(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Whether it has been reached.
    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// The sooner of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Ord::min(self, other)
    }

    /// What to send under [`HEADER`]: the whole milliseconds that are left. Rounded down, so the next hop never has more
    /// time than this one.
    pub fn to_header(self) -> String {
        self.left().as_millis().to_string()
    }

    /// What came under [`HEADER`], counted from now. `None` unless it is a plain number; one that is beyond all reason
    /// counts as thirty years.
    pub fn from_header(value: &str) -> Option<Self> {
        let value = value.trim_matches([' ', '\t']);
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self::after(Duration::from_millis(value.parse().unwrap_or(u64::MAX))))
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in {}", seawall_types::Period::from(self.left()))
    }
}

// Set for the length of a poll, as tokio's task-local values are; those cost several times what a plain copy does.
thread_local! {
    static DEADLINE: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// The deadline that the running code is under, if any. A task that is spawned has none: hand it on with [`scope`].
#[inline]
pub fn current() -> Option<Deadline> {
    DEADLINE.get()
}

/// Runs `future` under `deadline`, or under the one around it if that is sooner. It does not end the future: see
/// [`timeout`](crate::timeout).
pub const fn scope<F>(deadline: Deadline, future: F) -> Scope<F> {
    Scope { deadline, future }
}

/// Runs `call`, which may return a future, under `deadline`, or under the one around it if that is sooner.
#[inline(always)]
pub fn enter<T>(deadline: Deadline, call: impl FnOnce() -> T) -> T {
    let around = current();
    DEADLINE.set(Some(around.map_or(deadline, |around| around.min(deadline))));
    let _restore = Restore(around);
    call()
}

/// Runs `future` under no deadline at all: it is no single caller's.
pub(crate) async fn cleared<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        let _restore = Restore(DEADLINE.replace(None));
        future.as_mut().poll(cx)
    })
    .await
}

/// Puts back what was there before, by a panic too.
struct Restore(Option<Deadline>);

impl Drop for Restore {
    #[inline]
    fn drop(&mut self) {
        DEADLINE.set(self.0);
    }
}

pin_project! {
    /// What [`scope`] returns. Cancel safe: dropping it drops the future and nothing else.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless awaited"]
    pub struct Scope<F> {
        deadline: Deadline,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // Looked up at each poll, since it is there that one scope turns out to be inside of another.
        enter(*this.deadline, || this.future.poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn time_runs_out() {
        let deadline = Deadline::after(SECOND * 2);
        assert_eq!((deadline.left(), deadline.is_over()), (SECOND * 2, false));
        tokio::time::advance(SECOND * 3 / 2).await;
        assert_eq!((deadline.left(), deadline.to_string()), (SECOND / 2, "in 500ms".to_owned()));
        assert_eq!(deadline.min(Deadline::after(SECOND)), deadline);
        tokio::time::advance(SECOND).await;
        assert_eq!((deadline.left(), deadline.is_over()), (Duration::ZERO, true));
        assert!(Deadline::after(Duration::MAX).left() > SECOND * 1_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_header_never_lengthens() {
        for (micros, header) in [(1_500_999, "1500"), (999, "0"), (0, "0")] {
            let deadline = Deadline::after(Duration::from_micros(micros));
            assert_eq!(deadline.to_header(), header);
            assert!(Deadline::from_header(header).unwrap() <= deadline);
        }
        assert_eq!(Deadline::from_header(" 250\t").unwrap().left(), SECOND / 4);
        for bad in ["", " ", "-1", "+1", "1.5", "1s", "0x10", "soon"] {
            assert_eq!(Deadline::from_header(bad), None, "{bad}");
        }
        for vast in ["18446744073709551615", "99999999999999999999999999"] {
            assert!(Deadline::from_header(vast).unwrap().left() > SECOND * 1_000_000, "{vast}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_ambient_one_is_only_ever_shortened() {
        assert_eq!(current(), None);
        let (near, far) = (Deadline::after(SECOND), Deadline::after(SECOND * 9));
        scope(near, async {
            assert_eq!(current(), Some(near));
            tokio::task::yield_now().await;
            // Made out here, polled in there: what counts is where it runs.
            let longer = scope(far, async { current() });
            assert_eq!(longer.await, Some(near));
            assert_eq!(Deadline::within(SECOND * 5), near);
            assert_eq!(Deadline::within(SECOND / 2).left(), SECOND / 2);
            let spawned = tokio::spawn(async { current() });
            assert_eq!(spawned.await.unwrap(), None);
        })
        .await;
        assert_eq!(current(), None);
        assert_eq!(scope(far, scope(near, async { current() })).await, Some(near));
        assert_eq!(Deadline::within(SECOND * 5).left(), SECOND * 5);
    }

    #[tokio::test]
    async fn two_tasks_in_one_thread_do_not_mix() {
        let deadlines = [SECOND, SECOND * 2].map(Deadline::after);
        let seen = |deadline| {
            scope(deadline, async move {
                for _ in 0..3 {
                    assert_eq!(current(), Some(deadline));
                    tokio::task::yield_now().await;
                }
            })
        };
        tokio::join!(seen(deadlines[0]), seen(deadlines[1]));
        assert_eq!(current(), None);
    }
}
