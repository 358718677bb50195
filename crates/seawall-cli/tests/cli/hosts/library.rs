//! The first host: the crate alone. Its parts are asked in the order that the crate documents, by a manual clock.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use seawall_resilience::clock::Manual;
use seawall_resilience::{
    Clock, Events, Guard, Outcome as Ended, Permits, PolicyName, Priority, Rejected, Report, Tick,
};

use super::replay::Host;
use super::trace::{Decision, Outcome, SERVICE, Standing, Trace, policy};

/// A guard that is asked as a caller of the crate would.
pub(crate) struct Library<'a> {
    guard: &'a Guard,
    hand: Manual,
    calls: HashMap<u64, Call<'a>>,
    waiting: HashMap<u64, Waiting<'a>>,
}

/// A call that stands in the queue of the bulkhead.
struct Waiting<'a> {
    admit: Admit<'a>,
    call: Asked,
}

type Admit<'a> = Pin<Box<dyn Future<Output = Result<Permits<'a>, Rejected>> + 'a>>;

/// What a call brings along to each attempt.
#[derive(Clone, Copy)]
struct Asked {
    priority: Priority,
    attempt: u32,
    backoff: Duration,
}

/// A call whose attempt is at the service.
struct Call<'a> {
    permits: Permits<'a>,
    asked: Asked,
}

/// Longer than any trace.
const LIMIT: Duration = Duration::from_secs(3600);

/// A fresh guard of a trace's policy, and what moves its clock.
pub(crate) fn guard(trace: &Trace) -> (Guard, Manual) {
    let (clock, hand) = Clock::manual();
    (Guard::new(SERVICE.into(), policy(trace).complete(), clock, Arc::<Events>::default()), hand)
}

impl<'a> Library<'a> {
    pub(crate) fn new(guard: &'a Guard, hand: Manual) -> Self {
        Self { guard, hand, calls: HashMap::new(), waiting: HashMap::new() }
    }

    async fn attempt(&mut self, number: u64, asked: Asked) -> Decision {
        let admitted = self.guard.admit(asked.priority, LIMIT).await;
        self.admitted(number, asked, admitted)
    }

    fn admitted(&mut self, number: u64, asked: Asked, admitted: Result<Permits<'a>, Rejected>) -> Decision {
        match admitted {
            Ok(mut permits) => {
                permits.begin();
                self.calls.insert(number, Call { permits, asked });
                Decision::of("admitted")
            }
            Err(rejected) => of(&rejected),
        }
    }
}

/// A rejection as a trace has it.
pub(crate) fn of(rejected: &Rejected) -> Decision {
    let after = rejected.retry_after.map(|after| after.as_secs() + u64::from(after.subsec_nanos() > 0));
    let what = match rejected.policy {
        policy @ PolicyName::Timeout => policy.to_string(),
        policy => format!("{policy}:{}", rejected.reason),
    };
    Decision { what, after }
}

impl<'a> Host for Library<'a> {
    async fn go(&mut self, at: u64) {
        self.hand.set(Tick::from_millis(at));
    }

    async fn ask(&mut self, call: u64, priority: Option<&str>, waits: bool) -> Decision {
        let named = |name: &str| Priority::ALL.into_iter().find(|priority| priority.as_str() == name);
        let priority = priority.map_or(Priority::default(), |name| named(name).expect("a priority"));
        if let Some(limiter) = self.guard.rate_limit.get()
            && let Err(rejected) = limiter.acquire(LIMIT).await
        {
            return of(&rejected);
        }
        self.guard.retry.budget().deposit();
        let asked = Asked { priority, attempt: 1, backoff: Duration::ZERO };
        if !waits {
            return self.attempt(call, asked).await;
        }
        let mut admit: Admit<'a> = Box::pin(self.guard.admit(priority, LIMIT));
        match poll_fn(|context| Poll::Ready(admit.as_mut().poll(context))).await {
            Poll::Ready(admitted) => self.admitted(call, asked, admitted),
            Poll::Pending => {
                self.waiting.insert(call, Waiting { admit, call: asked });
                Decision::of("waits")
            }
        }
    }

    async fn end(&mut self, number: u64, outcome: Outcome) -> Decision {
        if self.waiting.remove(&number).is_some() {
            assert_eq!(outcome, Outcome::GivenUp, "the service has nothing of a call that waits");
            return Decision::of("ended");
        }
        let Call { permits, asked } = self.calls.remove(&number).expect("a call that was admitted");
        match outcome {
            Outcome::Success => permits.finish(Ended::Success.into()),
            Outcome::Ignored => permits.finish(Ended::Ignored.into()),
            Outcome::GivenUp => drop(permits),
            Outcome::Silence => unreachable!("limits of time are for whole calls"),
            Outcome::Failure(wanted) => {
                let after = wanted.map(Duration::from_secs);
                permits.finish(Report { retry_after: after, ..Ended::Failure.into() });
                if let Ok(charge) = self.guard.retry.again(asked.attempt, asked.backoff, None, after) {
                    assert!(charge.pause.is_zero(), "nobody waits here");
                    let backoff = charge.backoff;
                    charge.spend();
                    return self.attempt(number, Asked { attempt: asked.attempt + 1, backoff, ..asked }).await;
                }
            }
        }
        Decision::of("ended")
    }

    async fn hear(&mut self, number: u64) -> Decision {
        let Waiting { admit, call } = self.waiting.remove(&number).expect("a call that waits");
        let admitted = admit.await;
        self.admitted(number, call, admitted)
    }

    async fn standing(&mut self) -> Standing {
        standing(self.guard)
    }
}

/// How a guard in this process stands.
pub(crate) fn standing(guard: &Guard) -> Standing {
    let mut standing = Standing { state: "off".to_owned(), ..Standing::default() };
    let mut count = |name: &str, count: u64| _ = standing.counts.insert(name.to_owned(), count);
    if let Some(breaker) = guard.breaker.get() {
        let sums = breaker.sums();
        count("calls", sums.calls.into());
        count("failed", sums.failed.into());
        count("slow", sums.slow.into());
        count("would_open", breaker.counts().would_open);
        standing.state = breaker.state().as_str().to_owned();
    }
    if let Some(bulkhead) = guard.bulkhead.get() {
        count("in_use", bulkhead.in_use().into());
        count("waiting", bulkhead.waiting().into());
    }
    count("retries", guard.retry.counts().retries);
    standing
}
