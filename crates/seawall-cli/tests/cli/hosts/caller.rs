//! The first host again, as most callers of the crate have it: calls made by [`Guard::call_with`], which asks the parts
//! by itself. What it calls is scripted as the service behind the other hosts is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use seawall_resilience::clock::Manual;
use seawall_resilience::layer::{Classify, Usual};
use seawall_resilience::retry::{Decision as Repeat, failures};
use seawall_resilience::{CallError, Guard, Outcome as Ended, Report, Tick};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::library;
use super::replay::Host;
use super::trace::{Decision, Outcome, Standing};

/// What the service says when it fails: when it wants to be called again.
#[derive(Debug)]
struct Ill(Option<Duration>);

type Outcomes = oneshot::Sender<Outcome>;

/// A guard that makes the calls.
pub(crate) struct Caller {
    guard: Arc<Guard>,
    hand: Manual,
    arrived: mpsc::Sender<(u64, Outcomes)>,
    arrivals: mpsc::Receiver<(u64, Outcomes)>,
    calls: HashMap<u64, Call>,
    waiting: HashMap<u64, JoinHandle<Result<Ended, CallError<Ill>>>>,
    /// Attempts of calls that have waited, until the trace asks for them.
    early: HashMap<u64, Outcomes>,
}

/// A call whose attempt is at the service.
struct Call {
    task: JoinHandle<Result<Ended, CallError<Ill>>>,
    answer: Outcomes,
}

impl Caller {
    pub(crate) fn new(guard: Arc<Guard>, hand: Manual) -> Self {
        let (arrived, arrivals) = mpsc::channel(16);
        Self { guard, hand, arrived, arrivals, calls: HashMap::new(), waiting: HashMap::new(), early: HashMap::new() }
    }

    /// Waits until an attempt of this call has reached the service, or the call is over.
    async fn outcome(&mut self, number: u64, mut task: JoinHandle<Result<Ended, CallError<Ill>>>) -> Decision {
        loop {
            if let Some(answer) = self.early.remove(&number) {
                self.calls.insert(number, Call { task, answer });
                return Decision::of("admitted");
            }
            tokio::select! {
                result = &mut task => return match result.unwrap() {
                    Err(CallError::Rejected(rejected)) => library::of(&rejected),
                    _ => Decision::of("ended"),
                },
                arrival = self.arrivals.recv() => {
                    let (call, answer) = arrival.expect("one of the senders is ours");
                    let known = call == number || self.waiting.contains_key(&call);
                    assert!(known, "another call's attempt has reached the service");
                    self.early.insert(call, answer);
                }
            }
        }
    }

    fn in_queue(&self) -> u32 {
        self.guard.bulkhead.get().map_or(0, |bulkhead| bulkhead.waiting())
    }
}

/// One attempt at the service.
async fn serve(call: u64, arrived: mpsc::Sender<(u64, Outcomes)>) -> Result<Ended, Ill> {
    let (answer, answered) = oneshot::channel();
    arrived.send((call, answer)).await.expect("the host is there for as long as its calls");
    match answered.await {
        Ok(Outcome::Success) => Ok(Ended::Success),
        Ok(Outcome::Failure(after)) => Err(Ill(after.map(Duration::from_secs))),
        Ok(Outcome::Ignored) => Ok(Ended::Ignored),
        // Whoever has given the call up is about to drop it, and so is a guard that has waited long enough.
        Ok(Outcome::GivenUp | Outcome::Silence) | Err(_) => std::future::pending().await,
    }
}

fn classify(result: &Result<Ended, CallError<Ill>>) -> Report {
    match result {
        Ok(ended) => (*ended).into(),
        Err(CallError::Inner(Ill(after))) => Report { retry_after: *after, ..Ended::Failure.into() },
        Err(CallError::Rejected(_)) => Usual.classify(result),
    }
}

fn repeat(result: &Result<Ended, CallError<Ill>>) -> Repeat {
    match result {
        Err(CallError::Inner(Ill(after))) => Repeat::Again { after: *after },
        _ => failures(result),
    }
}

impl Host for Caller {
    async fn go(&mut self, at: u64) {
        self.hand.set(Tick::from_millis(at));
    }

    async fn ask(&mut self, call: u64, priority: Option<&str>, waits: bool) -> Decision {
        assert_eq!(priority, None, "a guard's calls are all of one priority");
        let (guard, arrived) = (self.guard.clone(), self.arrived.clone());
        let before = self.in_queue();
        let task =
            tokio::spawn(async move { guard.call_with(|_| serve(call, arrived.clone()), &classify, repeat).await });
        while waits && !task.is_finished() {
            if self.in_queue() > before {
                self.waiting.insert(call, task);
                return Decision::of("waits");
            }
            tokio::task::yield_now().await;
        }
        self.outcome(call, task).await
    }

    async fn end(&mut self, number: u64, outcome: Outcome) -> Decision {
        if let Some(task) = self.waiting.remove(&number) {
            assert_eq!(outcome, Outcome::GivenUp, "the service has nothing of a call that waits");
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
            return Decision::of("ended");
        }
        let Call { task, answer } = self.calls.remove(&number).expect("a call that was admitted");
        if outcome == Outcome::GivenUp {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
            return Decision::of("ended");
        }
        answer.send(outcome).expect("the service waits");
        self.outcome(number, task).await
    }

    async fn hear(&mut self, number: u64) -> Decision {
        let task = self.waiting.remove(&number).expect("a call that waits");
        self.outcome(number, task).await
    }

    async fn standing(&mut self) -> Standing {
        library::standing(&self.guard)
    }
}
