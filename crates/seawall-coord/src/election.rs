//! Elections: the leader is whoever holds the election's lock, and its fencing token is the term.
//!
//! So all that is true of locks is true here: at most one leader at a time that goes by its handle, terms that only grow, a
//! leader that knows of its loss by its own clock before anybody else can lead. The candidates are the lock's queue; who has
//! stood longest leads next, unless the leader hands over to another by name. Priorities are made of the same: whoever comes to
//! lead looks whether a candidate of a higher priority stands, and hands over to it before anybody hears of the leadership.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::view::{CandidateView, ElectionView};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Released};
use crate::class::{Fence, Fences};
use crate::lock::{Guard, Lock, MAX_PATIENCE};
use crate::name::{ElectionName, LockName};
use crate::session::{Session, Why};

/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// The shortest time between two looks for a candidate of a higher priority.
const MIN_PREEMPT: Duration = Duration::from_millis(100);

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
    /// Whether candidates can have priorities: whether they are known to each other and a leader can hand over to one.
    fn prioritises(&self) -> bool {
        true
    }

    /// The leader and the candidates; an election that nobody stands in has neither.
    fn election(&self, name: &ElectionName) -> impl Future<Output = Result<ElectionView, BackendError>> + Send;

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
    priority: i32,
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
        Election { session: self.clone(), name, lock, priority: 0 }
    }
}

impl<B: Elections> Election<B> {
    /// The same with a text for those who ask who leads; at most 4 KiB. Default empty. [`Leadership::publish`] changes it.
    #[must_use]
    pub fn info(mut self, info: impl Into<String>) -> Self {
        self.lock = self.lock.info(info);
        self
    }

    /// The same with a priority. When the place becomes free, the candidate with the highest leads next; among equals the one
    /// that has stood longest. A leader is never deposed for its priority; see [`Candidacy::preempt`](crate::Candidacy::preempt) for one that steps down.
    /// Default 0. Advisory locks of PostgreSQL and several Redis know of no candidates, and so of no priorities.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.lock = self.lock.priority(priority);
        self.priority = priority;
        self
    }

    /// Its name.
    pub fn name(&self) -> &ElectionName {
        &self.name
    }

    /// Stands for election and waits at most for `patience` (a day at most; zero leads only if nobody does). A candidate that
    /// is passed over by a hand-over queues anew by itself, and one whose turn it is while another of a higher priority stands
    /// hands over to it and queues anew: for that moment, others see it lead. Cancel safe: a dropped future stands no more, and
    /// the session's thread clears up what it leaves.
    ///
    /// # Errors
    /// [`ClaimError`]; its `holder` is the leader. [`BackendError::Refused`] for a priority where the backend knows of none.
    pub async fn campaign(&self, patience: Duration) -> Result<Leadership<B>, ClaimError> {
        let backend = &self.session.inner.backend;
        if self.priority != 0 && !backend.prioritises() {
            let why = "candidates do not know of each other here, so that none can have a priority".to_owned();
            return Err(BackendError::Refused { backend: backend.name(), why }.into());
        }
        let until = Instant::now() + patience.min(MAX_PATIENCE);
        loop {
            let guard = self.lock.acquire_within(until.saturating_duration_since(Instant::now())).await?;
            if let Some(leadership) = self.unless_outranked(Leadership { guard }).await? {
                return Ok(leadership);
            }
        }
    }

    /// Gives a leadership that has just begun to the candidate of the highest priority, if that is higher than its own. A
    /// priority is a wish and no promise: where the backend does not say who stands, this one leads.
    async fn unless_outranked(&self, mut leadership: Leadership<B>) -> Result<Option<Leadership<B>>, ClaimError> {
        // Whoever was seen to stand may have gone. It is looked again, a few times.
        for _ in 0..3 {
            let Some(above) = self.outranking().await else { break };
            leadership = match leadership.hand_over(&above.session).await {
                Ok(_) => return Ok(None),
                Err(HandOverError::NoCandidate { leadership, .. }) => leadership,
                Err(HandOverError::Lost(Why::Removed)) => return Ok(None),
                Err(HandOverError::Lost(why)) => return Err(ClaimError::Lost(why)),
                Err(HandOverError::Backend { error: BackendError::Unknown { .. }, leadership }) => {
                    // It may have been done. Either way it is given up.
                    drop(leadership.resign().await);
                    return Ok(None);
                }
                Err(HandOverError::Backend { error, leadership }) => {
                    tracing::debug!(%error, election = %self.name, "leads before a candidate of a higher priority");
                    return Ok(Some(leadership));
                }
            };
        }
        Ok(Some(leadership))
    }

    /// The candidate that is to lead rather than this one.
    async fn outranking(&self) -> Option<CandidateView> {
        let backend = &self.session.inner.backend;
        if !backend.prioritises() {
            return None;
        }
        match backend.election(&self.name).await {
            Ok(election) => election.above(self.priority).cloned(),
            Err(error) => {
                tracing::debug!(%error, election = %self.name, "who stands is not known");
                None
            }
        }
    }

    /// Resolves with a candidate of a higher priority that has stood for at least `period`, and for less than twice as long: it
    /// was seen by two looks in a row. For a leader that steps down for it. A backend that does not answer is asked again
    /// the next time. Cancel safe.
    pub async fn outranked(&self, period: Duration) -> CandidateView {
        let mut last = None;
        loop {
            tokio::time::sleep(period.max(MIN_PREEMPT)).await;
            let above = self.outranking().await;
            match (above, &last) {
                (Some(above), Some(seen)) if above.session == *seen => return above,
                (above, _) => last = above.map(|above| above.session),
            }
        }
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
