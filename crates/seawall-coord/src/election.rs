//! Elections: the leader is whoever holds the election's lock, and its fencing token is the term.
//!
//! So all that is true of locks is true here: at most one leader at a time that goes by its handle, terms that only grow, a
//! leader that knows of its loss by its own clock before anybody else can lead. The candidates are the lock's queue; who has
//! stood longest leads next, unless the leader hands over to another by name.

use std::fmt;
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::backend::view::CandidateView;
use crate::backend::{Backend, BackendError, Claim, ClaimError, Released};
use crate::class::{Fence, Fences};
use crate::health::says;
use crate::lock::{Guard, Lock};
use crate::name::{ElectionName, LockName};
use crate::session::{Session, SessionConfig, SessionError, Why};

/// The longest pause between two tries to stand again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one campaign of [`lead`] waits before it looks again whether its session lives.
const CAMPAIGN: Duration = Duration::from_secs(3600);

/// What became of a hand-over at the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandedOver {
    /// This candidate leads now.
    Now(CandidateView),
    /// Nobody of this name stands (any more); nothing was changed.
    NoCandidate,
    /// The claim does not lead (any more); nothing was changed.
    NotLeading,
}

/// A backend that can elect: whose claims can be rewritten, passed on and watched. All calls are bounded in time by the
/// backend itself, but for [`Elections::changed`].
pub trait Elections: Backend {
    /// Writes anew what a claim says about itself, at most [`MAX_INFO`](crate::MAX_INFO) bytes; false when the claim is gone.
    /// Can be repeated.
    fn publish(
        &self,
        lease: &Self::Lease,
        claim: &Claim,
        info: &str,
    ) -> impl Future<Output = Result<bool, BackendError>> + Send;

    /// Makes a candidate the leader in this claim's place, in one step: the first one whose owner or session's number is `to`.
    /// Candidates before it are passed over: their claims are removed, so that they queue anew. After
    /// [`BackendError::Unknown`] it may have been done.
    fn hand_over(
        &self,
        lease: &Self::Lease,
        claim: &Claim,
        to: &str,
    ) -> impl Future<Output = Result<HandedOver, BackendError>> + Send;

    /// The leader, as soon as it is another than the one `seen`, or has published something else; at once when nothing was
    /// seen yet. May wait for ever; cancel safe.
    fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> impl Future<Output = Result<Option<CandidateView>, BackendError>> + Send;
}

/// An election of a session. Stands for nothing by being there; see [`Election::campaign`].
pub struct Election<B: Elections> {
    session: Session<B>,
    name: ElectionName,
    lock: Lock<B>,
}

impl<B: Elections> fmt::Debug for Election<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<B: Elections> Session<B> {
    /// An election of this session. Asks nobody for anything yet.
    pub fn election(&self, name: ElectionName) -> Election<B> {
        let lock = self.lock(LockName::of_election(&name));
        Election { session: self.clone(), name, lock }
    }
}

impl<B: Elections> Election<B> {
    /// The same with a text for those who ask who leads; at most 4 KiB. Default empty. [`Leadership::publish`] changes it.
    #[must_use]
    pub fn info(mut self, info: impl Into<String>) -> Self {
        self.lock = self.lock.info(info);
        self
    }

    /// Its name.
    pub fn name(&self) -> &ElectionName {
        &self.name
    }

    /// Stands for election and waits at most for `patience` (a day at most; zero leads only if nobody does). A candidate that
    /// is passed over by a hand-over queues anew by itself. Cancel safe: a dropped future stands no more, and the session's
    /// thread clears up what it leaves.
    ///
    /// # Errors
    /// [`ClaimError`]; its `holder` is the leader.
    pub async fn campaign(&self, patience: Duration) -> Result<Leadership<B>, ClaimError> {
        Ok(Leadership { guard: self.lock.acquire_within(patience).await? })
    }

    /// Sees one leader after the other. Needs no candidacy.
    pub fn observe(&self) -> Observer<B> {
        Observer::new(self.session.inner.backend.clone(), self.name.clone())
    }
}

/// A hand-over that was not made. Where the leadership is still held, it is given back here.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError<B: Elections> {
    /// Nobody of this name stands.
    #[error("nobody called `{to}` stands for election")]
    NoCandidate {
        /// Who was asked for.
        to: String,
        /// Still leading.
        leadership: Leadership<B>,
    },
    /// It was lost before.
    #[error("the leadership is lost: {0}")]
    Lost(Why),
    /// The backend did not do it.
    #[error("{error}")]
    Backend {
        /// Why; after [`BackendError::Unknown`] it may have been done, which [`Leadership::lost`] will tell.
        error: BackendError,
        /// Still leading, as far as is known.
        leadership: Leadership<B>,
    },
}

/// Leads. When it is dropped, the session's thread resigns soon after; [`Leadership::resign`] does it now.
#[must_use = "the leadership is given up when its handle is dropped"]
pub struct Leadership<B: Elections> {
    guard: Guard<B>,
}

impl<B: Elections> fmt::Debug for Leadership<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("claim", self.guard.claim()).finish_non_exhaustive()
    }
}

impl<B: Elections<Class: Fences>> Leadership<B> {
    /// The term, which is a fencing token: larger than that of every leader before, and nobody else's.
    pub fn term(&self) -> Fence {
        self.guard.fence()
    }
}

impl<B: Elections> Leadership<B> {
    /// How long it is still sure without another keep-alive, by the leader's own clock; zero when it is lost.
    pub fn remaining(&self) -> Duration {
        self.guard.remaining()
    }

    /// The same, or why it is lost. Reads the clock; see [`Guard::check`] for what no look can tell.
    ///
    /// # Errors
    /// Why it is lost; once lost, always lost.
    pub fn check(&self) -> Result<Duration, Why> {
        self.guard.check()
    }

    /// Resolves when it is lost: by the leader's own deadline without any answer from the backend, or because it was taken
    /// away there. Cancel safe.
    pub async fn lost(&self) -> Why {
        self.guard.lost().await
    }

    /// Does the work as long as this leads, and drops it where it stands on the loss.
    ///
    /// # Errors
    /// Why it was lost.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Why> {
        self.guard.run(work).await
    }

    /// What it leads by.
    pub fn guard(&self) -> &Guard<B> {
        &self.guard
    }

    /// Changes the text that those see who ask who leads; at most 4 KiB. When the future is dropped, it may be changed or not.
    ///
    /// # Errors
    /// [`ClaimError::Lost`] and [`ClaimError::Removed`] when this leads no more, [`ClaimError::Unknown`] when it may be
    /// changed or not, [`ClaimError::Backend`] when it is not changed.
    pub async fn publish(&self, info: &str) -> Result<(), ClaimError> {
        self.check().map_err(ClaimError::Lost)?;
        let inner = self.guard.inner();
        match inner.backend.publish(&inner.lease, self.guard.claim(), info).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.check().err().map_or(ClaimError::Removed, ClaimError::Lost)),
            Err(error @ BackendError::Unknown { .. }) => Err(ClaimError::Unknown(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Leads no more; the next candidate does, at once. Cancel safe: it goes on.
    ///
    /// # Errors
    /// [`BackendError`] when the backend did not confirm it at once; it is tried again in the background until it does or
    /// the session is over.
    pub async fn resign(self) -> Result<Released, BackendError> {
        self.guard.release().await
    }

    /// Makes a candidate the leader in this one's place, in one step: the first whose owner, or session's number, is `to`.
    /// Those who have stood longer are passed over and queue anew behind it. Stop what the leader does **before** this: the
    /// other leads when it returns. When the future is dropped, it is handed over or resigned.
    ///
    /// # Errors
    /// [`HandOverError`], with the leadership where it is still held.
    pub async fn hand_over(self, to: &str) -> Result<CandidateView, HandOverError<B>> {
        self.check().map_err(HandOverError::Lost)?;
        let inner = self.guard.inner();
        match inner.backend.hand_over(&inner.lease, self.guard.claim(), to).await {
            Ok(HandedOver::Now(next)) => Ok(next),
            Ok(HandedOver::NoCandidate) => Err(HandOverError::NoCandidate { to: to.to_owned(), leadership: self }),
            Ok(HandedOver::NotLeading) => Err(HandOverError::Lost(self.check().err().unwrap_or(Why::Removed))),
            Err(error) => Err(HandOverError::Backend { error, leadership: self }),
        }
    }
}

/// Sees the leaders of an election, each with its term. Never goes back to an earlier term; leaders of a moment may be missed.
pub struct Observer<B: Elections> {
    backend: B,
    name: ElectionName,
    seen: Option<Option<CandidateView>>,
    highest: Option<Fence>,
}

impl<B: Elections> fmt::Debug for Observer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("name", &self.name).field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl<B: Elections> Observer<B> {
    /// Observes an election without a session.
    pub fn new(backend: B, name: ElectionName) -> Self {
        Self { backend, name, seen: None, highest: None }
    }

    /// The next state: who leads, or that nobody does. The first call says how it stands; the others wait for a change of
    /// leader, or of what it publishes. A backend that does not answer is asked again until it does. Cancel safe.
    ///
    /// # Errors
    /// [`BackendError::Refused`], for which asking again is no help.
    pub async fn next(&mut self) -> Result<Option<CandidateView>, BackendError> {
        let mut pause = Duration::from_millis(20);
        loop {
            match self.backend.changed(&self.name, self.seen.as_ref()).await {
                Ok(leader) => {
                    let term = leader.as_ref().map(|leader| leader.term);
                    self.seen = Some(leader.clone());
                    // From a backend that went back, say to a backup, nothing is passed on until it has caught up.
                    if term.is_none() || term >= self.highest {
                        self.highest = term.max(self.highest);
                        return Ok(leader);
                    }
                }
                Err(error) if error.retryable() => {
                    tracing::debug!(%error, election = %self.name, "observing goes on");
                    tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
                    pause = (pause * 2).min(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// For what [`lead`] stands.
#[derive(Clone, Debug)]
pub struct Candidacy {
    /// The election.
    pub name: ElectionName,
    /// Shown to those who ask who leads; at most 4 KiB, may be empty.
    pub info: String,
    /// How its sessions are opened; there is a new one after each that was lost.
    pub session: SessionConfig,
}

/// Stands for election again and again, and does the work each time it leads. On a loss the work is dropped where it stands,
/// **then** it stands anew, in a new session if the old one is lost; so two calls of the work never overlap. When the work
/// ends by itself, it resigns: with `Break` this returns, with `Continue` it stands again. A backend that does not answer is
/// tried again, at growing random intervals of 1 s at most, without end. Cancel safe: when the future is dropped, the work is,
/// and the leadership is given up in the background. The work is not to keep the handle beyond its own end: it would lead on.
///
/// # Errors
/// [`SessionError`] when the times do not go together, there is no thread, or the backend refuses.
pub async fn lead<B, F, T>(
    backend: B,
    candidacy: Candidacy,
    work: impl FnMut(Arc<Leadership<B>>) -> F,
) -> Result<T, SessionError>
where
    B: Elections,
    F: Future<Output = ControlFlow<T>>,
{
    let (_always, healthy) = watch::channel(true);
    lead_while(backend, candidacy, healthy, work).await
}

/// As [`lead`], but only while `healthy` is true: until then it does not stand, and when it is true no longer, it gives up its place,
/// or drops the work where it stands and **then** resigns. [`watch_health`](crate::watch_health) makes such a channel of a check.
///
/// # Errors
/// As [`lead`].
pub async fn lead_while<B, F, T>(
    backend: B,
    candidacy: Candidacy,
    mut healthy: watch::Receiver<bool>,
    mut work: impl FnMut(Arc<Leadership<B>>) -> F,
) -> Result<T, SessionError>
where
    B: Elections,
    F: Future<Output = ControlFlow<T>>,
{
    let Candidacy { name, info, session: config } = candidacy;
    let mut pause = Duration::from_millis(20);
    loop {
        let failed = match Session::open(backend.clone(), config.clone()).await {
            Ok(session) => {
                let election = session.election(name.clone()).info(info.clone());
                loop {
                    says(&mut healthy, true).await;
                    let campaigned = tokio::select! {
                        campaigned = election.campaign(CAMPAIGN) => campaigned,
                        // The place is given up in the background.
                        () = says(&mut healthy, false) => continue,
                    };
                    match campaigned {
                        Ok(leadership) => {
                            let leadership = Arc::new(leadership);
                            pause = Duration::from_millis(20);
                            let done = tokio::select! {
                                done = leadership.run(work(leadership.clone())) => done,
                                () = says(&mut healthy, false) => {
                                    tracing::warn!(election = %name, "is not healthy, and resigns");
                                    if let Some(leadership) = Arc::into_inner(leadership) {
                                        drop(leadership.resign().await);
                                    }
                                    continue;
                                }
                            };
                            match &done {
                                // Whoever keeps a clone of it keeps leading.
                                Ok(_) => match Arc::into_inner(leadership) {
                                    Some(leadership) => drop(leadership.resign().await),
                                    None => tracing::warn!(election = %name, "the work has ended and still leads"),
                                },
                                Err(why) => tracing::info!(election = %name, %why, "leads no more"),
                            }
                            if let Ok(ControlFlow::Break(value)) = done {
                                return Ok(value);
                            }
                        }
                        Err(ClaimError::TimedOut { .. } | ClaimError::Busy { .. } | ClaimError::Removed) => {}
                        Err(ClaimError::Lost(why)) => break why.to_string(),
                        Err(ClaimError::Unknown(error)) => break error.to_string(),
                        Err(ClaimError::Backend(error)) if error.retryable() => break error.to_string(),
                        Err(ClaimError::Backend(BackendError::NoSession { .. })) => break Why::Ended.to_string(),
                        Err(ClaimError::Backend(error)) => return Err(error.into()),
                    }
                }
            }
            Err(SessionError::Backend(error)) if error.retryable() => error.to_string(),
            Err(error @ SessionError::Late { .. }) => error.to_string(),
            Err(error) => return Err(error),
        };
        tracing::debug!(election = %name, why = failed, "stands again");
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        pause = (pause * 2).min(PAUSE);
    }
}
