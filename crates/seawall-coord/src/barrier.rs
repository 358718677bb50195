//! The double barrier: so many parties begin something together, and none goes on before all have ended it.
//!
//! A party that dies, gives up or is dropped while others count on it breaks the barrier: they are told so, and by whom, and
//! nobody waits for ever for one who does not come. A broken barrier, and one that all have left, can be used anew at once.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, BackendError};
use crate::lock::{MAX_PATIENCE, Pending};
use crate::name::{LockName, Token};
use crate::session::{Session, Why};

/// The most parties of a barrier.
pub const MAX_PARTIES: u32 = 100;

/// One of those who meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The barrier.
    pub name: LockName,
    /// By which the party is recognised.
    pub token: Token,
    /// How many meet; from 1 to [`MAX_PARTIES`], and the same for all.
    pub parties: u32,
}

impl Party {
    /// The name under which the party's place is [withdrawn](Backend::withdraw).
    pub fn claimed(&self) -> LockName {
        LockName::of_barrier(&self.name)
    }
}

/// Who is at a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarrierView {
    /// How many meet.
    pub parties: u32,
    /// All have come, and have gone in.
    pub inside: bool,
    /// Those who are there.
    pub there: Vec<PartyView>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartyView {
    /// Whose session it is.
    pub owner: String,
    /// It has ended what there was to do inside.
    pub left: bool,
}

/// What all have to do before one goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Come.
    Enter,
    /// Have ended what there was to do.
    Leave,
}

/// A step that was not made by all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// A party that others counted on is gone: its session was lost, it gave up, or it was dropped.
    #[error("the barrier is broken: {who} is gone")]
    Broken {
        /// Whose session it was.
        who: String,
    },
    /// The others did not come in time. Nothing of the party is left, and the others find the barrier broken.
    #[error("{there} of {parties} were there within {waited:?}")]
    TimedOut {
        /// How long they were waited for.
        waited: Duration,
        /// How many had made the step.
        there: usize,
        /// How many there have to be.
        parties: u32,
    },
    /// The party's own session was lost; the others find the barrier broken.
    #[error("the session was lost: {0}")]
    Lost(Why),
    /// Whether the step was made is unknown. The party gives up, and the others find the barrier broken.
    #[error("whether all have come is unknown: {0}")]
    Unknown(BackendError),
    /// The backend. [`BackendError::Refused`] when the others mean another number of parties.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// A backend with barriers.
pub trait Barriers: Backend {
    /// Makes a step and waits at most `patience` until all have made it. The same again goes on waiting, also after
    /// [`BarrierError::TimedOut`]. When it is over for the party, in whatever way, the caller has to
    /// [withdraw](Backend::withdraw) it, under the name that [`Party::claimed`] says: whoever counts on it then finds the
    /// barrier broken.
    fn meet(
        &self,
        lease: &Self::Lease,
        party: &Party,
        step: Step,
        patience: Duration,
    ) -> impl Future<Output = Result<(), BarrierError>> + Send;
}

/// A barrier of a session. Is no party by being there.
pub struct Barrier<B: Barriers> {
    session: Session<B>,
    name: LockName,
    parties: u32,
}

impl<B: Barriers> fmt::Debug for Barrier<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier").field("name", &self.name).field("parties", &self.parties).finish_non_exhaustive()
    }
}

impl<B: Barriers> Session<B> {
    /// A barrier where so many meet, from 1 to [`MAX_PARTIES`]. It has nothing to do with the lock of its name. Asks nobody
    /// for anything yet.
    pub fn barrier(&self, name: LockName, parties: u32) -> Barrier<B> {
        Barrier { session: self.clone(), name, parties }
    }
}

impl<B: Barriers> Barrier<B> {
    /// Its name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// Comes, and waits at most for `patience` (a day at most) until all have come. While others are inside, the next ones
    /// wait. Cancel safe: a dropped future has given up, and breaks the barrier for those who count on it.
    ///
    /// # Errors
    /// [`BarrierError`].
    pub async fn enter_within(&self, patience: Duration) -> Result<Inside<B>, BarrierError> {
        let party = Party { name: self.name.clone(), token: Token::random(), parties: self.parties };
        let place = Pending::new(self.session.inner.clone(), party.claimed(), party.token);
        let inside = Inside { session: self.session.clone(), party, _place: place };
        inside.meet(Step::Enter, patience).await?;
        Ok(inside)
    }
}

/// A party that is inside. When it is dropped before it has left, the others find the barrier broken.
#[must_use = "the barrier is broken when its party is dropped"]
pub struct Inside<B: Barriers> {
    session: Session<B>,
    party: Party,
    /// Withdrawn in the background.
    _place: Pending<B>,
}

impl<B: Barriers> fmt::Debug for Inside<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").field("party", &self.party).finish_non_exhaustive()
    }
}

impl<B: Barriers> Inside<B> {
    async fn meet(&self, step: Step, patience: Duration) -> Result<(), BarrierError> {
        self.session.check().map_err(BarrierError::Lost)?;
        let inner = &self.session.inner;
        let mut loss = self.session.loss();
        tokio::select! {
            biased;
            why = loss.wait() => Err(BarrierError::Lost(why)),
            met = inner.backend.meet(&inner.lease, &self.party, step, patience.min(MAX_PATIENCE)) => met,
        }
    }

    /// Has ended what there was to do, and waits at most for `patience` (a day at most) until all have. Cancel safe: a dropped
    /// future waits no more; to the others it has left if it had said so already.
    ///
    /// # Errors
    /// [`BarrierError`].
    pub async fn leave_within(self, patience: Duration) -> Result<(), BarrierError> {
        self.meet(Step::Leave, patience).await
    }
}
