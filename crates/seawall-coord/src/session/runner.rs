//! The thread of a session: sends keep-alives, fires the loss, watches claims, gives claims back.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::backend::{Backend, BackendError, Claim, Gone};
use crate::clock::Boot;
use crate::name::{LockName, Token};
use crate::session::settling::SETTLED;
use crate::session::state::Event;
use crate::session::{Shared, Why};

/// How long the backend may take to end a session that nobody waits for.
const CLOSING: Duration = Duration::from_secs(2);

/// What the thread is asked to do.
pub(crate) enum Command {
    /// Give a claim back, and tell somebody.
    Withdraw { name: LockName, token: Token },
    /// Look at the claims that have just been granted.
    Settle,
    /// Send a keep-alive now, and tell when one is answered.
    Renew(oneshot::Sender<()>),
    /// End the session.
    Close(oneshot::Sender<Result<(), BackendError>>),
}

/// Starts the thread. It ends when the channel is closed or a [`Command::Close`] was done.
pub(crate) fn start<B: Backend>(
    shared: Arc<Shared>,
    backend: B,
    lease: B::Lease,
    orders: mpsc::UnboundedReceiver<Command>,
) -> Result<(), String> {
    let clock = shared.clock.clone();
    clock.start_thread("seawall-session", Runner { shared, backend, lease, waiting: Vec::new() }.run(orders))
}

struct Runner<B: Backend> {
    shared: Arc<Shared>,
    backend: B,
    lease: B::Lease,
    /// Who wants to hear of an answered keep-alive.
    waiting: Vec<oneshot::Sender<()>>,
}

/// A keep-alive under way.
type Renewal = Pin<Box<dyn Future<Output = Event> + Send>>;

impl<B: Backend> Runner<B> {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Command>) {
        let mut renewal: Option<Renewal> = None;
        let mut event = Event::Look;
        loop {
            let renewed = matches!(event, Event::Renewed { .. });
            if self.shared.step(event) {
                renewal = Some(self.renewal());
            }
            if renewed {
                for waiter in self.waiting.drain(..) {
                    // Whoever no longer waits has dropped its half.
                    let _ = waiter.send(());
                }
            }
            let wake = self.shared.with(|state, _| state.wake());
            event = tokio::select! {
                // In this order: a loss is not held up by a busy channel.
                biased;
                () = sleep_until(&self.shared, wake) => Event::Look,
                event = finished(&mut renewal) => {
                    renewal = None;
                    event
                }
                order = orders.recv() => match order {
                    Some(Command::Close(reply)) => {
                        self.shared.step(Event::Over(Why::Closed));
                        let _ = reply.send(self.close().await);
                        return;
                    }
                    // The last session, lock and guard is gone.
                    None => {
                        self.shared.step(Event::Over(Why::Closed));
                        if let Err(error) = self.close().await {
                            tracing::debug!(%error, "a session was not closed; it ends by its time to live");
                        }
                        return;
                    }
                    Some(order) => self.order(order, renewal.is_some()),
                },
            };
        }
    }

    /// Begins a keep-alive. The clock is read before anything is sent.
    fn renewal(&self) -> Renewal {
        let (backend, lease) = (self.backend.clone(), self.lease.clone());
        let (sent, patience) = self.shared.with(|state, now| (now, state.times().patience()));
        Box::pin(async move {
            match tokio::time::timeout(patience, backend.renew(&lease)).await {
                Ok(Ok(ttl)) => Event::Renewed { sent, ttl },
                Ok(Err(BackendError::NoSession { .. })) => Event::Over(Why::Ended),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a keep-alive failed; it is tried again");
                    Event::Failed
                }
                Err(_) => {
                    tracing::debug!(backend = %backend.name(), ?patience, "a keep-alive was not answered");
                    Event::Failed
                }
            }
        })
    }

    fn order(&mut self, order: Command, renewing: bool) -> Event {
        match order {
            Command::Withdraw { name, token } => {
                let (backend, lease) = (self.backend.clone(), self.lease.clone());
                self.shared.clock.spawn(withdraw(backend, lease, name, token, self.shared.clone()));
            }
            Command::Settle => {
                let (backend, lease) = (self.backend.clone(), self.lease.clone());
                self.shared.clock.spawn(settle(backend, lease, self.shared.clone()));
            }
            Command::Renew(reply) => {
                self.waiting.push(reply);
                if !renewing {
                    return Event::Wanted;
                }
            }
            // Done where it is received.
            Command::Close(_) => {}
        }
        Event::Look
    }

    async fn close(&self) -> Result<(), BackendError> {
        match tokio::time::timeout(CLOSING, self.backend.close(&self.lease)).await {
            Ok(closed) => closed,
            Err(_) => Err(BackendError::Unknown {
                backend: self.backend.name(),
                why: format!("no answer to the end of the session within {CLOSING:?}"),
            }),
        }
    }
}

async fn sleep_until(shared: &Shared, wake: Option<Boot>) {
    match wake {
        Some(wake) => shared.clock.sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

async fn finished(renewal: &mut Option<Renewal>) -> Event {
    match renewal {
        Some(renewal) => renewal.await,
        None => std::future::pending().await,
    }
}

/// Gives a claim back, again and again until the backend has confirmed it, or its session must be over there.
async fn withdraw<B: Backend>(backend: B, lease: B::Lease, name: LockName, token: Token, shared: Arc<Shared>) {
    // One call may take longer than this, several times the session's time. As long as the session is kept alive, so is what
    // is left of the claim.
    let end = Instant::now() + shared.with(|state, _| state.times().ttl) * 4;
    let mut pause = Duration::from_millis(10);
    loop {
        match backend.withdraw(&lease, &name, &token).await {
            Err(error) if error.retryable() && (shared.check().is_ok() || Instant::now() < end) => {}
            _ => return,
        }
        tokio::time::sleep(pause.mul_f64(0.1 + 0.9 * fastrand::f64())).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Begins to watch what is held for a while, until nothing new is there to look at.
async fn settle<B: Backend>(backend: B, lease: B::Lease, shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SETTLED).await;
        let (settled, more) = shared.settling.look(Instant::now());
        for (claim, lost) in settled {
            shared.clock.spawn(watch_claim(backend.clone(), lease.clone(), claim, lost, shared.clone()));
        }
        if !more {
            return;
        }
    }
}

/// Waits until a claim vanishes, and tells its guard; a session that has ended is lost as a whole.
async fn watch_claim<B: Backend>(
    backend: B,
    lease: B::Lease,
    claim: Claim,
    lost: watch::Sender<Option<Why>>,
    shared: Arc<Shared>,
) {
    let gone = tokio::select! {
        biased;
        () = lost.closed() => return,
        gone = backend.gone(&lease, &claim) => gone,
    };
    match gone {
        Gone::Removed => drop(lost.send_replace(Some(Why::Removed))),
        Gone::Session => {
            shared.step(Event::Over(Why::Ended));
            // It may have been over before, for a better reason.
            lost.send_replace(shared.check().err());
        }
    }
}
