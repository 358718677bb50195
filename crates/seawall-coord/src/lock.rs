//! The lock: a place in a fair queue, and the guard of whoever is first.
//!
//! Every acquisition is a claim of its own, recognised by its token. So two tasks of one session exclude each other as two
//! sessions do, and a task that acquires a lock that it holds waits for itself, until its time is over. Unless it says who
//! it is: acquisitions by one owner share a claim, see [`Lock::reentrant`].

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::backend::{Backend, BackendError, Claim, ClaimError, MAX_INFO, Released, Want};
use crate::class::{Fence, Fences};
use crate::name::{LockName, Token};
use crate::session::runner::Command;
use crate::session::{Inner, Loss, Session, Why};
use crate::sharing::{Kind, Manner, SharedLocks};

/// The longest that a lock can be waited for.
pub(crate) const MAX_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// The longest pause before a claim that was removed queues anew.
const REQUEUE: Duration = Duration::from_millis(50);

/// A lock of a session. Not held by being there; see [`Lock::acquire_within`].
pub struct Lock<B: Backend> {
    session: Session<B>,
    name: LockName,
    info: String,
    priority: i32,
    owner: Option<Arc<str>>,
    manner: Manner,
    /// Claims in that manner, where it is not the usual one.
    claim_as: Option<ClaimAs<B>>,
}

/// [`SharedLocks::claim_as`] of a backend that has it.
type ClaimAs<B> = for<'a> fn(&'a Inner<B>, &'a Want, &'a Manner, Duration) -> Claiming<'a>;
type Claiming<'a> = Pin<Box<dyn Future<Output = Result<Claim, ClaimError>> + Send + 'a>>;

impl<B: Backend> fmt::Debug for Lock<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Work that was not done, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WithError {
    /// The lock was not acquired; the work has not begun.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The lock was lost and the work was dropped where it stood.
    #[error("the lock was lost during the work: {0}")]
    Lost(Why),
}

impl<B: Backend> Lock<B> {
    pub(crate) fn new(session: Session<B>, name: LockName) -> Self {
        let manner = Manner::default();
        Self { session, name, info: String::new(), priority: 0, owner: None, manner, claim_as: None }
    }

    /// The same for an owner within this session, who has the lock again whenever it has it: further guards share the claim
    /// and the token of the first, and the last of them that goes releases it. An owner is a name, not a thread or a task;
    /// whoever says the same name is the same owner.
    #[must_use]
    pub fn reentrant(mut self, owner: &str) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// The same with a text for those who ask who holds the lock; at most 4 KiB. Default empty.
    #[must_use]
    pub fn info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    /// The same for a candidate of this priority.
    pub(crate) fn priority(self, priority: i32) -> Self {
        Self { priority, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// Takes the lock if it is free and nobody waits for it. Cancel safe: what a dropped future may have taken is given back
    /// by the session's thread.
    ///
    /// # Errors
    /// [`ClaimError`], never [`ClaimError::Busy`]: that is `None`.
    pub async fn try_acquire(&self) -> Result<Option<Guard<B>>, ClaimError> {
        match self.claim(Duration::ZERO).await {
            Ok(guard) => Ok(Some(guard)),
            Err(ClaimError::Busy { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for the lock, at most for `patience` (a day at most; zero waits for nothing and may be [`ClaimError::Busy`]).
    /// Cancel safe: a dropped future loses its place in the queue, and the session's thread clears it up.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn acquire_within(&self, patience: Duration) -> Result<Guard<B>, ClaimError> {
        self.claim(patience.min(MAX_PATIENCE)).await
    }

    /// Acquires the lock, does the work, releases the lock. The work is dropped where it stands when the lock is lost; when
    /// the future itself is dropped, the lock is given back.
    ///
    /// # Errors
    /// [`WithError`]. A release that fails is no error of the work: it is tried again in the background.
    pub async fn with<T>(&self, patience: Duration, work: impl AsyncFnOnce(&Guard<B>) -> T) -> Result<T, WithError> {
        let guard = self.acquire_within(patience).await?;
        let done = guard.run(work(&guard)).await.map_err(WithError::Lost)?;
        if let Err(error) = guard.release().await {
            tracing::debug!(%error, lock = %self.name, "a release is tried again in the background");
        }
        Ok(done)
    }

    async fn claim(&self, patience: Duration) -> Result<Guard<B>, ClaimError> {
        let Some(owner) = &self.owner else { return self.claim_anew(patience).await };
        let began = Instant::now();
        let place = self.session.inner.owners.place(&self.name, owner);
        // While another task of the same owner waits for the lock, this one waits for its success.
        let mut place = match timeout(patience, place.lock()).await {
            Ok(place) => place,
            Err(_) if patience.is_zero() => return Err(ClaimError::Busy { holder: None }),
            Err(_) => return Err(ClaimError::TimedOut { waited: began.elapsed(), ahead: 1, holder: None }),
        };
        if let Some(holding) = place.upgrade().filter(|holding| holding.check().is_ok()) {
            if self.manner.kind.is_exclusive() && holding.reads.load(Ordering::SeqCst) {
                let why =
                    format!("`{owner}` has `{}` for reading: nobody becomes a writer without releasing it", self.name);
                return Err(BackendError::Refused { backend: self.session.inner.backend.name(), why }.into());
            }
            return Ok(Guard { holding });
        }
        let guard = self.claim_anew(patience.saturating_sub(began.elapsed())).await?;
        *place = Arc::downgrade(&guard.holding);
        Ok(guard)
    }

    async fn claim_anew(&self, patience: Duration) -> Result<Guard<B>, ClaimError> {
        self.session.check().map_err(ClaimError::Lost)?;
        let inner = &self.session.inner;
        if self.info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", self.info.len());
            return Err(BackendError::Refused { backend: inner.backend.name(), why }.into());
        }
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.claim_once(left).await {
                // Its place was given up while the line to the backend was down. It queues anew, under another token.
                Err(ClaimError::Removed) if Instant::now() < until => {
                    let pause = REQUEUE.mul_f64(0.5 + 0.5 * fastrand::f64());
                    tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
                }
                claimed => return claimed,
            }
        }
    }

    async fn claim_once(&self, patience: Duration) -> Result<Guard<B>, ClaimError> {
        let inner = &self.session.inner;
        let want = Want { info: self.info.clone(), priority: self.priority, ..Want::new(self.name.clone()) };
        let mut pending = Pending::new(inner.clone(), want.name.clone(), want.token);
        let mut loss = self.session.loss();
        let claimed = tokio::select! {
            biased;
            why = loss.wait() => Err(ClaimError::Lost(why)),
            claimed = self.ask(&want, patience) => claimed,
        };
        match claimed {
            Ok(claim) => {
                // The answer may be old by now.
                self.session.check().map_err(ClaimError::Lost)?;
                pending.left = false;
                Ok(Guard { holding: Arc::new(Holding::new(inner.clone(), claim, self.manner.kind)) })
            }
            Err(error) => {
                pending.left = !matches!(error, ClaimError::Busy { .. } | ClaimError::TimedOut { .. });
                Err(error)
            }
        }
    }

    async fn ask(&self, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let inner = &self.session.inner;
        match self.claim_as {
            None => inner.backend.claim(&inner.lease, want, patience).await,
            Some(claim_as) => claim_as(inner, want, &self.manner, patience).await,
        }
    }
}

impl<B: SharedLocks> Lock<B> {
    pub(crate) fn in_manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self.claim_as = Some(|inner, want, manner, patience| {
            Box::pin(inner.backend.claim_as(&inner.lease, want, manner, patience))
        });
        self
    }

    /// The same with a delay: whoever comes after a holder that was lost, rather than having released the lock, waits so long
    /// on its own clock from when it first sees that. For what a holder has under way when it dies and nobody can take back,
    /// where the resource does not check tokens. At most [`MAX_DELAY`](crate::MAX_DELAY). Default none.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        let manner = Manner { delay, ..self.manner };
        self.in_manner(manner)
    }
}

/// A claim that may be in the queue; withdrawn when dropped.
pub(crate) struct Pending<B: Backend> {
    inner: Arc<Inner<B>>,
    name: LockName,
    token: Token,
    left: bool,
}

impl<B: Backend> Pending<B> {
    pub(crate) fn new(inner: Arc<Inner<B>>, name: LockName, token: Token) -> Self {
        Self { inner, name, token, left: true }
    }
}

impl<B: Backend> Drop for Pending<B> {
    fn drop(&mut self) {
        if self.left {
            let order = Command::Withdraw { name: self.name.clone(), token: self.token };
            // Without a thread the session is closed, and the claim with it.
            let _ = self.inner.commands.send(order);
        }
    }
}

/// What the owners of a session hold: for each lock and owner the claim that its guards share.
pub(crate) struct Owners<B: Backend>(Mutex<Places<B>>);

type Places<B> = HashMap<(LockName, Arc<str>), Place<B>>;

/// Locked while somebody claims for this owner.
type Place<B> = Arc<tokio::sync::Mutex<Weak<Holding<B>>>>;

impl<B: Backend> Default for Owners<B> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<B: Backend> Owners<B> {
    fn place(&self, name: &LockName, owner: &Arc<str>) -> Place<B> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get(&(name.clone(), owner.clone())) {
            return place.clone();
        }
        // Those that nobody holds or claims; the lock of such a place is free.
        let in_use = |place: &Place<B>| {
            Arc::strong_count(place) > 1 || place.try_lock().is_ok_and(|holding| holding.strong_count() > 0)
        };
        places.retain(|_, place| in_use(place));
        places.entry((name.clone(), owner.clone())).or_default().clone()
    }
}

/// A claim that holds its lock; given back by the session's thread when the last guard of it is gone.
struct Holding<B: Backend> {
    inner: Arc<Inner<B>>,
    claim: Claim,
    /// As it was claimed.
    kind: Kind,
    /// Only to read, from the beginning or by now.
    reads: AtomicBool,
    /// What happens to this claim alone.
    removed: watch::Receiver<Option<Why>>,
    held: bool,
}

impl<B: Backend> Holding<B> {
    fn new(inner: Arc<Inner<B>>, claim: Claim, kind: Kind) -> Self {
        let (lost, removed) = watch::channel(None);
        if inner.shared.settling.add((claim.clone(), lost)) {
            // Without a thread the session is closed, and everybody knows.
            let _ = inner.commands.send(Command::Settle);
        }
        let reads = AtomicBool::new(kind == Kind::Read);
        Self { inner, claim, kind, reads, removed, held: true }
    }

    fn check(&self) -> Result<Duration, Why> {
        match *self.removed.borrow() {
            Some(why) => Err(why),
            None => self.inner.shared.check(),
        }
    }
}

impl<B: Backend> Drop for Holding<B> {
    fn drop(&mut self) {
        if self.held {
            let order = Command::Withdraw { name: self.claim.name.clone(), token: self.claim.token };
            // Without a thread the session is closed, and the lock free.
            let _ = self.inner.commands.send(order);
        }
    }
}

/// Holds a lock. When it is dropped, the session's thread gives the lock back soon after; [`Guard::release`] does it now and
/// says whether it was still held.
#[must_use = "the lock is given back when its guard is dropped"]
pub struct Guard<B: Backend> {
    holding: Arc<Holding<B>>,
}

impl<B: Backend> fmt::Debug for Guard<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("claim", &self.holding.claim).finish_non_exhaustive()
    }
}

impl<B: Backend> Guard<B> {
    pub(crate) fn claim(&self) -> &Claim {
        &self.holding.claim
    }

    pub(crate) fn inner(&self) -> &Inner<B> {
        &self.holding.inner
    }

    /// As what it was claimed; a writer that has become a reader was claimed as a writer.
    pub(crate) fn kind(&self) -> Kind {
        self.holding.kind
    }

    /// How many guards of the same owner share the claim, this one included.
    pub(crate) fn sharers(&self) -> usize {
        Arc::strong_count(&self.holding)
    }

    /// From now on it holds the lock only to read.
    pub(crate) fn reads(&self) {
        self.holding.reads.store(true, Ordering::SeqCst);
    }

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.holding.claim.name
    }

    /// How long the lock is still sure without another keep-alive, by the holder's own clock; zero when it is lost.
    pub fn remaining(&self) -> Duration {
        self.check().unwrap_or_default()
    }

    /// The same, or why the lock is lost. Reads the clock. A look and an act after it are two things: in between the process
    /// may be paused, which only a resource that checks [`Guard::fence`] can notice.
    ///
    /// # Errors
    /// Why it is lost; once lost, always lost.
    pub fn check(&self) -> Result<Duration, Why> {
        self.holding.check()
    }

    /// Resolves when the lock is lost: by the holder's own deadline without any answer from the backend, or because the
    /// claim was removed there. Cancel safe.
    pub async fn lost(&self) -> Why {
        let mut session = Loss::new(self.holding.inner.shared.lost.subscribe());
        let mut removed = self.holding.removed.clone();
        tokio::select! {
            biased;
            why = session.wait() => why,
            // When nobody watches the claim any more, the session says why.
            Ok(why) = removed.wait_for(Option::is_some) => why.unwrap_or(Why::Removed),
        }
    }

    /// Does the work as long as the lock is held, and drops it where it stands when the lock is lost.
    ///
    /// # Errors
    /// Why it was lost.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Why> {
        tokio::select! {
            biased;
            why = self.lost() => Err(why),
            done = work => Ok(done),
        }
    }

    /// Sends a keep-alive now, and says how long the lock is sure after it; for a session that is kept alive by hand.
    ///
    /// # Errors
    /// Why it is lost.
    pub async fn extend(&self) -> Result<Duration, Why> {
        Session { inner: self.holding.inner.clone() }.renew().await?;
        self.check()
    }

    /// Gives the lock back, if it is still this guard's; of a [reentrant](Lock::reentrant) lock, if no other guard shares it.
    /// Cancel safe: the release goes on.
    ///
    /// # Errors
    /// [`BackendError`] when the backend did not confirm it at once; it is tried again in the background until it does or
    /// the session is over.
    pub async fn release(self) -> Result<Released, BackendError> {
        let Some(mut holding) = Arc::into_inner(self.holding) else { return Ok(Released::Shared) };
        // From here, for a way by the session's thread and back costs as much as the write. If this is dropped or fails, the
        // holding is dropped as held, and the thread does it.
        let released = holding.inner.backend.release(&holding.inner.lease, &holding.claim).await;
        holding.held = released.as_ref().is_err_and(BackendError::retryable);
        released
    }
}

impl<B: Backend> Guard<B> {
    /// The fencing token, if the backend has any; for a backend that is only known when the program runs.
    pub fn token(&self) -> Option<Fence> {
        self.holding.claim.fence
    }
}

impl<B: Backend<Class: Fences>> Guard<B> {
    /// The fencing token: larger than that of every holder before.
    pub fn fence(&self) -> Fence {
        self.holding.claim.fence.expect("a backend of this class gives every claim a token")
    }
}
