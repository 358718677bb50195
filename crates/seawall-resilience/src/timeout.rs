//! Time limits: for one attempt, and for the whole call.
//!
//! A future is polled first, and only if it has to wait is there a timer at all: a call that is answered at once does
//! not pay for one. (tokio's own `timeout` reads the clock and sets the timer up beforehand.) When the time is over the
//! future is dropped, there and then.
//!
//! What it cannot do: interrupt code that does not yield. A future that computes for a minute between two awaits, or
//! blocks in a system call, is dropped when it next returns, a minute late; nothing in a process can do better. Put
//! such code on `spawn_blocking`, where it goes on unseen but its caller does not wait for it.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use seawall_types::Period;
use tokio::time::{Instant, Sleep};

use crate::clock::nanos;
use crate::deadline::{self, Deadline};
use crate::{Name, Outcome, PolicyName, Reason, Rejected, Report};

/// The time for `future`, beginning when it first has to wait: it is dropped, and the answer is [`Elapsed`], when it
/// has not ended by then. With no time at all it is not even begun. Cancel safe if the future is.
///
/// # Panics
/// When polled outside of a tokio runtime with time, if the future has to wait.
#[inline(always)]
pub fn limit<F: Future>(limit: Duration, future: F) -> Limit<F, Elapsed> {
    Limit::new(future, Until::After(limit), Elapsed(()))
}

/// [`limit`] up to a deadline. One that is over already does not begin the future.
///
/// # Panics
/// As there.
#[inline(always)]
pub fn until<F: Future>(deadline: Deadline, future: F) -> Limit<F, Elapsed> {
    Limit::new(future, Until::of(deadline, deadline.left()), Elapsed(()))
}

/// What an attempt means that ran out of its policy's time.
pub(crate) const FAILURE: Report = Report {
    outcome: Outcome::Failure,
    took: None,
    retry_after: None,
    overloaded: true,
    given_up: false,
    trace: 0,
    cause: "timeout",
};

/// What a time limit does; every field is within its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The time for the whole call, all attempts and waits included.
    pub total: Period,
    /// The time for one attempt; `None` for what is left of the whole.
    pub attempt: Option<Period>,
}

/// The time limits of one service; share it by reference or `Arc`.
#[derive(Debug)]
pub struct Timeout {
    name: Name,
    /// In nanoseconds.
    total: AtomicU64,
    /// In nanoseconds, all ones if there is none.
    attempt: AtomicU64,
}

impl Timeout {
    /// The limits of `config`. `name` appears in rejections.
    pub fn new(name: Name, config: Config) -> Self {
        let timeout = Self { name, total: AtomicU64::new(0), attempt: AtomicU64::new(0) };
        timeout.reload(config);
        timeout
    }

    /// The time for a whole call, and for one attempt where that has a limit of its own.
    pub fn limits(&self) -> (Duration, Option<Duration>) {
        let attempt = self.attempt.load(Ordering::Relaxed);
        let attempt = (attempt != u64::MAX).then(|| Duration::from_nanos(attempt));
        (Duration::from_nanos(self.total.load(Ordering::Relaxed)), attempt)
    }

    /// Other limits, for calls and attempts that begin from now on.
    pub fn reload(&self, config: Config) {
        self.total.store(nanos(config.total.get()), Ordering::Relaxed);
        self.attempt.store(config.attempt.map_or(u64::MAX, |attempt| nanos(attempt.get())), Ordering::Relaxed);
    }

    /// When a call that begins now must be over: after the total time, or at the ambient deadline if that is sooner.
    pub fn deadline(&self) -> Deadline {
        Deadline::within(Duration::from_nanos(self.total.load(Ordering::Relaxed)))
    }

    /// The whole call, up to `deadline`. Cancel safe if the future is.
    ///
    /// The future's output, or [`Rejected`] with `deadline`; if there was no time to begin with, it has not begun.
    #[inline(always)]
    pub fn total<F: Future>(&self, deadline: Deadline, future: F) -> Limit<F, Rejected> {
        Limit::new(future, Until::of(deadline, deadline.left()), self.rejected(Reason::Deadline))
    }

    /// One attempt: for its own time, but no longer than `deadline`. Cancel safe if the future is.
    ///
    /// The future's output, or [`Rejected`] with `attempt` or `deadline`, whichever comes first; if there was no time
    /// to begin with, it has not begun.
    #[inline(always)]
    pub fn attempt<F: Future>(&self, deadline: Deadline, future: F) -> Limit<F, Rejected> {
        let (now, own) = (Instant::now(), Duration::from_nanos(self.attempt.load(Ordering::Relaxed)));
        let left = deadline.left_at(now);
        if own < left {
            // From now, not from when it first waits: so it is over before the whole is.
            return Limit::new(future, Until::At(Deadline::at(now + own)), self.rejected(Reason::Attempt));
        }
        Limit::new(future, Until::of(deadline, left), self.rejected(Reason::Deadline))
    }

    /// An attempt of a call up to `deadline`, in which its own time, where it has one, is ambient.
    pub(crate) fn scope_attempt<F: Future>(&self, deadline: Deadline, attempt: F) -> deadline::Scope<F> {
        let own = self.limits().1.map_or(deadline, |own| deadline.min(Deadline::after(own)));
        deadline::scope(own, attempt)
    }

    /// [`Timeout::deadline`], and how much time that leaves.
    pub(crate) fn begin(&self) -> (Deadline, Duration) {
        Deadline::begin(Duration::from_nanos(self.total.load(Ordering::Relaxed)))
    }

    /// [`Timeout::total`] of a future that is made only if there is time; `left` is what [`Timeout::begin`] has said.
    #[inline(always)]
    pub(crate) fn total_of<F>(
        &self,
        deadline: Deadline,
        left: Duration,
        make: impl FnOnce() -> F,
    ) -> Limit<F, Rejected> {
        Limit::make(make, Until::of(deadline, left), self.rejected(Reason::Deadline))
    }

    /// [`Timeout::attempt`] of a future that is made only if there is time. Without a deadline or a time of its own it
    /// has no limit but the total time.
    #[inline(always)]
    pub(crate) fn attempt_of<F>(&self, deadline: Option<Deadline>, make: impl FnOnce() -> F) -> Limit<F, Rejected> {
        let own = Duration::from_nanos(self.attempt.load(Ordering::Relaxed));
        let now = Instant::now();
        let (until, reason) = match deadline.map(|deadline| (deadline, deadline.left_at(now))) {
            Some((deadline, left)) if left <= own => (Until::of(deadline, left), Reason::Deadline),
            Some(_) => (Until::At(Deadline::at(now + own)), Reason::Attempt),
            None if own == Duration::from_nanos(u64::MAX) => (Until::After(self.limits().0), Reason::Deadline),
            _ => (Until::After(own), Reason::Attempt),
        };
        Limit::make(make, until, self.rejected(reason))
    }

    const fn rejected(&self, reason: Reason) -> Rejected {
        Rejected::new(PolicyName::Timeout, self.name, reason)
    }
}

impl AsRef<Self> for Timeout {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// The time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed(());

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time is over")
    }
}

impl Error for Elapsed {}

/// When it ends.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// So long after it first has to wait.
    After(Duration),
    /// At that moment.
    At(Deadline),
}

impl Until {
    const fn of(deadline: Deadline, left: Duration) -> Self {
        if left.is_zero() { Self::After(left) } else { Self::At(deadline) }
    }
}

pin_project! {
    /// A future with a limit. `E` is what it answers when the time is over.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless awaited"]
    pub struct Limit<F, E> {
        // Gone once it has been dropped, or was not begun for lack of time.
        #[pin]
        future: Option<F>,
        // There as soon as the future has had to wait.
        #[pin]
        sleep: Option<Sleep>,
        until: Until,
        elapsed: E,
    }
}

impl<F, E> Limit<F, E> {
    // Always, so that it is made where it will be polled: copied there, with its empty place for a timer, it costs more
    // than all the rest.
    #[inline(always)]
    fn new(future: F, until: Until, elapsed: E) -> Self {
        Self::make(|| future, until, elapsed)
    }

    #[inline(always)]
    fn make(make: impl FnOnce() -> F, until: Until, elapsed: E) -> Self {
        let some = !matches!(until, Until::After(left) if left.is_zero());
        Self { future: some.then(make), sleep: None, until, elapsed }
    }
}

impl<F: Future, E: Clone> Future for Limit<F, E> {
    type Output = Result<F::Output, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // Without a future the time is over, however often it is asked.
        let Some(future) = this.future.as_mut().as_pin_mut() else { return Poll::Ready(Err(this.elapsed.clone())) };
        if let Poll::Ready(output) = future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        if expired(this.sleep, *this.until, cx).is_pending() {
            return Poll::Pending;
        }
        this.future.set(None);
        Poll::Ready(Err(this.elapsed.clone()))
    }
}

/// The part of a poll that a future which is ready never comes to. Kept apart so that the rest stays small.
#[cold]
#[inline(never)]
fn expired(mut sleep: Pin<&mut Option<Sleep>>, until: Until, cx: &mut Context<'_>) -> Poll<()> {
    if sleep.is_none() {
        sleep.set(Some(match until {
            Until::After(limit) => tokio::time::sleep(limit),
            Until::At(deadline) => tokio::time::sleep_until(deadline.instant()),
        }));
    }
    let sleep = sleep.as_pin_mut().expect("it was set just now");
    // A future that uses up the task's share of cooperation would otherwise keep the timer from ever being looked at.
    Pin::new(&mut tokio::task::unconstrained(sleep)).poll(cx)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timeout(total: u64, attempt: Option<u64>) -> Timeout {
        Timeout::new("payment".into(), Config { total: Period::secs(total), attempt: attempt.map(Period::secs) })
    }

    /// The future's output, without any runtime that could have a timer.
    fn without_a_runtime<F: Future>(future: F) -> Poll<F::Output> {
        std::pin::pin!(future).poll(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[test]
    fn one_that_is_ready_needs_no_timer() {
        assert_eq!(without_a_runtime(limit(SECOND, ready(7))), Poll::Ready(Ok(7)));
        assert_eq!(without_a_runtime(timeout(1, None).total(Deadline::after(SECOND), ready(7))), Poll::Ready(Ok(7)));
    }

    #[test]
    fn without_time_nothing_is_begun() {
        let touch = || async { panic!("it was begun") };
        let over = Deadline::at(Instant::now());
        assert_eq!(without_a_runtime(limit(Duration::ZERO, touch())), Poll::Ready(Err(Elapsed(()))));
        assert_eq!(without_a_runtime(until(over, touch())), Poll::Ready(Err(Elapsed(()))));
        for rejected in [
            without_a_runtime(timeout(9, Some(1)).attempt(over, touch())),
            without_a_runtime(timeout(9, None).total(over, touch())),
        ] {
            let expected = Rejected::new(PolicyName::Timeout, "payment".into(), Reason::Deadline);
            assert_eq!(rejected, Poll::Ready(Err::<(), _>(expected)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whichever_comes_first_is_named() {
        for (attempt, left, reason, after) in [
            (None, 5, Reason::Deadline, 5),
            (Some(2), 5, Reason::Attempt, 2),
            (Some(5), 2, Reason::Deadline, 2),
            (Some(2), 2, Reason::Deadline, 2),
        ] {
            let (timeout, start) = (timeout(9, attempt), Instant::now());
            let rejected = timeout.attempt(Deadline::after(SECOND * left), pending::<()>()).await.unwrap_err();
            assert_eq!((rejected.policy, rejected.reason), (PolicyName::Timeout, reason));
            assert_eq!(start.elapsed(), SECOND * after);
        }
        assert_eq!(limit(SECOND, pending::<()>()).await, Err(Elapsed(())));
        assert_eq!(until(Deadline::after(SECOND), pending::<()>()).await, Err(Elapsed(())));
        assert_eq!(limit(Duration::MAX, tokio::time::sleep(SECOND)).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn ready_in_the_last_moment_is_in_time() {
        assert_eq!(limit(SECOND, tokio::time::sleep(SECOND)).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_future_is_dropped_when_the_time_is_over_and_not_later() {
        let held = Arc::new(());
        let copy = held.clone();
        let mut limited = Box::pin(limit(SECOND, async move {
            pending::<()>().await;
            drop(copy);
        }));
        assert!(limited.as_mut().await.is_err());
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(limited.await.is_err(), "asked again, it says so again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_future_does_not_outrun_its_timer() {
        // It uses the task's whole budget at every turn, is never done, and always wants to be polled again.
        let (_sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<()>();
        let busy = poll_fn(|cx| {
            while tokio::task::coop::has_budget_remaining() {
                let _ = tokio::task::coop::poll_proceed(cx).map(|turn| turn.made_progress());
            }
            let _ = receiver.poll_recv(cx);
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        // Paused time does not go on by itself while a task is busy.
        let hand = tokio::spawn(async { tokio::time::advance(SECOND * 2).await });
        assert_eq!(limit(SECOND, busy).await, Err(Elapsed(())));
        hand.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_counts_for_what_begins_afterwards() {
        let timeout = timeout(9, Some(3));
        let start = Instant::now();
        let before = timeout.attempt(timeout.deadline(), pending::<()>());
        timeout.reload(Config { total: Period::secs(4), attempt: None });
        assert_eq!(timeout.deadline().left(), SECOND * 4);
        assert_eq!(before.await.unwrap_err().reason, Reason::Attempt);
        assert_eq!(start.elapsed(), SECOND * 3);
        let outer = Deadline::after(SECOND);
        assert_eq!(crate::deadline::scope(outer, async { timeout.deadline() }).await, outer);
    }

    #[test]
    fn it_is_flat() {
        let inner = size_of::<[u64; 16]>();
        let limited = limit(SECOND, async {
            let kept = [1u64; 16];
            tokio::task::yield_now().await;
            kept
        });
        let sleep = size_of::<Option<Sleep>>();
        assert!(size_of_val(&limited) <= inner + sleep + 64, "{} with a timer of {sleep}", size_of_val(&limited));
    }
}
