//! A session: a lease at a backend that a thread of its own keeps alive, and that knows when it is lost.
//!
//! The thread is the session's own, so that a program that blocks its runtime does not lose its locks by that. It also does
//! what has to be done when nobody waits for it any more: it gives back the claims of dropped guards and futures.

pub(crate) mod runner;
pub(crate) mod settling;
pub(crate) mod state;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::backend::{Backend, BackendError, Terms};
use crate::clock::{Boot, Clock};
use crate::lock::{Lock, Owners};
use crate::name::{LockName, Owner};
use crate::session::runner::Command;
use crate::session::settling::Settling;
use crate::session::state::{Effect, Event, State, Times};

/// Whether a session goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// It is kept alive as long as the process can.
    #[default]
    Renew,
    /// It ends when its time is over, unless [`Session::renew`] is called.
    Once,
}

/// How a session is opened.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Whose it is, for people to read.
    pub owner: Owner,
    /// How long the backend keeps it without a keep-alive: how long others wait after this process has died. Keep-alives are
    /// sent three times as often. Default 10 s.
    pub ttl: Duration,
    /// How long before the backend could give its locks away the holder is told to stop. Default a tenth of `ttl`, 50 ms at
    /// least. More than half of `ttl` has to be left beside it.
    pub margin: Option<Duration>,
    /// Whether it goes on. Default [`Keep::Renew`].
    pub keep: Keep,
    /// The holder's clock. Default `CLOCK_BOOTTIME`; another one is for tests.
    pub clock: Clock,
}

impl SessionConfig {
    /// The defaults.
    pub fn new(owner: Owner) -> Self {
        let ttl = Duration::from_secs(10);
        Self { owner, ttl, margin: None, keep: Keep::default(), clock: Clock::default() }
    }

    /// The same with another time to live.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

/// Why a session or a lock is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The holder's own deadline passed without an answered keep-alive.
    Expired,
    /// The backend says that the session has ended there.
    Ended,
    /// The lock was taken away by an operator; the session lives.
    Removed,
    /// The session was closed here.
    Closed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the time ran out without an answered keep-alive",
            Self::Ended => "the session has ended at the backend",
            Self::Removed => "it was taken away by an operator",
            Self::Closed => "the session was closed",
        })
    }
}

impl std::error::Error for Why {}

/// A session that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The times do not go together; nothing was asked of the backend.
    #[error("{0}")]
    Invalid(String),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// It took so long to open that it was over.
    #[error("{backend} took {took:?} to open a session of {ttl:?}")]
    Late {
        /// Which backend.
        backend: String,
        /// How long it took.
        took: Duration,
        /// The time to live.
        ttl: Duration,
    },
    /// The operating system gives no thread or no timers.
    #[error("no thread for the session: {0}")]
    Thread(String),
}

/// What session and thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    clock: Clock,
    pub(crate) lost: watch::Sender<Option<Why>>,
    pub(crate) settling: Settling,
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut State, Boot) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        f(&mut state, now)
    }

    /// Lets something happen, and tells the holders if that was the end. True when a keep-alive is to be sent.
    fn step(&self, event: Event) -> bool {
        let effect = self.with(|state, now| {
            let effect = state.step(event, now, fastrand::f64());
            if let Some(Effect::Lose(why)) = effect {
                // Under the lock: whoever finds the session over also finds the reason.
                self.lost.send_replace(Some(why));
            }
            effect
        });
        effect == Some(Effect::Renew)
    }

    /// How long the session is still sure.
    pub(crate) fn check(&self) -> Result<Duration, Why> {
        self.step(Event::Check);
        self.with(|state, now| match state.over() {
            Some(why) => Err(why),
            None => Ok(state.deadline().since(now)),
        })
    }
}

/// Learns of a loss. Cheap to clone; lives longer than what it watches.
#[derive(Clone, Debug)]
pub struct Loss(watch::Receiver<Option<Why>>);

impl Loss {
    pub(crate) fn new(receiver: watch::Receiver<Option<Why>>) -> Self {
        Self(receiver)
    }

    /// Why it is lost, if it is. Says what the session's thread has noticed; [`Session::check`] looks at the clock itself.
    pub fn now(&self) -> Option<Why> {
        *self.0.borrow()
    }

    /// Resolves when it is lost. Cancel safe.
    pub async fn wait(&mut self) -> Why {
        match self.0.wait_for(Option::is_some).await {
            Ok(why) => why.unwrap_or(Why::Closed),
            // Whoever could lose it is gone.
            Err(_) => Why::Closed,
        }
    }
}

/// What session, locks and guards share; with the last of them the session ends.
pub(crate) struct Inner<B: Backend> {
    pub(crate) backend: B,
    pub(crate) lease: B::Lease,
    pub(crate) shared: Arc<Shared>,
    /// Unbounded, because a `Drop` cannot wait; holds at most one message for each claim that was ever dropped and not yet
    /// given back.
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) owners: Owners<B>,
}

/// A session; clones are the same one. When the last clone, lock and guard of it is gone, it is closed in the background.
pub struct Session<B: Backend> {
    pub(crate) inner: Arc<Inner<B>>,
}

impl<B: Backend> Clone for Session<B> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<B: Backend> fmt::Debug for Session<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("lease", &self.inner.lease).finish_non_exhaustive()
    }
}

impl<B: Backend> Session<B> {
    /// Opens a session and starts its thread. When the future is dropped, what it may have opened ends by its time to live.
    ///
    /// # Errors
    /// [`SessionError`]. Times that are refused change nothing at the backend.
    pub async fn open(backend: B, config: SessionConfig) -> Result<Self, SessionError> {
        let SessionConfig { owner, ttl, margin, keep, clock } = config;
        backend.limits().check(ttl).map_err(SessionError::Invalid)?;
        let margin = margin.unwrap_or_else(|| Times::default_margin(ttl));
        let times = Times { ttl, margin, renewed: keep == Keep::Renew };
        if times.valid() <= ttl / 2 {
            let why = format!("a margin of {margin:?} leaves less than half of a time to live of {ttl:?}");
            return Err(SessionError::Invalid(why));
        }
        let sent = clock.now();
        let (lease, granted) = backend.open(&Terms { ttl, owner }).await?;
        let times = Times { ttl: granted.min(ttl), ..times };
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(times, sent)),
            clock: clock.clone(),
            lost: watch::Sender::new(None),
            settling: Settling::default(),
        });
        let late = shared.check().is_err();
        let (commands, orders) = mpsc::unbounded_channel();
        runner::start(shared.clone(), backend.clone(), lease.clone(), orders).map_err(SessionError::Thread)?;
        if late {
            // The thread closes it: its channel is dropped here.
            let took = clock.now().since(sent);
            return Err(SessionError::Late { backend: backend.name(), took, ttl });
        }
        Ok(Self { inner: Arc::new(Inner { backend, lease, shared, commands, owners: Owners::default() }) })
    }

    /// A lock of this session. Asks nobody for anything yet.
    pub fn lock(&self, name: LockName) -> Lock<B> {
        Lock::new(self.clone(), name)
    }

    /// How long the session is still sure, by the holder's own clock at this moment; zero when it is lost.
    pub fn remaining(&self) -> Duration {
        self.check().unwrap_or_default()
    }

    /// The same, or why it is lost. Reads the clock, and so is right even when the thread could not run.
    ///
    /// # Errors
    /// Why it is lost; once lost, always lost.
    pub fn check(&self) -> Result<Duration, Why> {
        self.inner.shared.check()
    }

    /// A token that is cancelled when the session is lost.
    pub fn loss(&self) -> Loss {
        Loss::new(self.inner.shared.lost.subscribe())
    }

    /// Sends a keep-alive now, and says how long the session is sure after it. Cancel safe: the keep-alive goes on.
    ///
    /// # Errors
    /// Why the session is lost. A keep-alive that fails is tried again until then.
    pub async fn renew(&self) -> Result<Duration, Why> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inner.commands.send(Command::Renew(reply));
        let mut loss = self.loss();
        tokio::select! {
            biased;
            _ = answer => {}
            why = loss.wait() => return Err(why),
        }
        self.check()
    }

    /// Ends the session: every guard of it is lost, and others may have its locks when this returns. Cancel safe: it goes on.
    ///
    /// # Errors
    /// [`BackendError`] when the backend did not confirm it; then it ends there by its time to live.
    pub async fn close(self) -> Result<(), BackendError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inner.commands.send(Command::Close(reply));
        answer.await.unwrap_or_else(|_| {
            let why = "the session's thread has ended".to_owned();
            Err(BackendError::Unknown { backend: self.inner.backend.name(), why })
        })
    }
}
