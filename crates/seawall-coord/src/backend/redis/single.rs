//! Sessions and locks in one Redis.

use std::fmt;
use std::time::Duration;

use seawall_types::Revision;
use tokio::time::Instant;

use super::line::{Line, Place};
use super::listen::Listener;
use super::node::{Answer, names};
use super::scripts::DEAD;
use super::session::RedisSession;
use crate::backend::home::Home;
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, Released, Terms, Want};
use crate::class::LeaseOnly;
use crate::name::{LockName, Token};

/// How long one call may take.
pub(super) const CALL: Duration = Duration::from_secs(3);
/// How many locks are extended by one script, which holds up everybody else.
pub(super) const CHUNK: usize = 500;
/// The shortest time to live.
pub(super) const MIN_TTL: Duration = Duration::from_millis(200);

/// Sessions and locks in one Redis (6 or later); cheap to clone. With a thread of its own for its two connections. Whoever
/// waits is not served in order: who asks first after a release has the lock.
#[derive(Clone)]
pub struct Redis {
    pub(super) line: Line,
    pub(super) listener: Listener,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis").field(&self.line.place).finish()
    }
}

impl Redis {
    /// Connects to `redis://user:password@host:port/database`. A Redis that has just started is used only when it syncs every
    /// write (`appendonly yes`, `appendfsync always`), or once it has run for longer than any lock lives; the longest is 60 s,
    /// or what `?max_ttl=` in the URL says, which has to be the same for all that use it.
    ///
    /// # Errors
    /// [`BackendError`], within seconds.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        let place = Place::parse(url)?;
        let home = Home::start("seawall-redis").map_err(|why| place.down(why))?;
        let line = Line::new(home.clone(), place.clone());
        line.run_id(CALL).await?;
        Ok(Self { line, listener: Listener::start(&home, place) })
    }

    async fn wait(&self, lease: &RedisSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let began = Instant::now();
        let until = began + patience;
        let about = lease.about(&want.info, want.priority).map_err(|why| self.line.place.refused(why))?;
        let watch = self.listener.watch(&names(&want.name, &want.token).lock);
        lease.enter(want)?;
        loop {
            match self.line.acquire(CALL, want, lease.ttl(), &about).await {
                Ok(Answer::Held(value)) => {
                    lease.held(&want.token);
                    let (name, token, created) = (want.name.clone(), want.token, Revision(value.granted));
                    return Ok(Claim { name, token, created, fence: None });
                }
                Ok(Answer::Withdrawn) => return Err(ClaimError::Removed),
                Ok(Answer::Others(holder, _)) if patience.is_zero() => {
                    return Err(ClaimError::Busy { holder: Some(Box::new(holder.claim())) });
                }
                Ok(Answer::Others(holder, left)) => {
                    let now = Instant::now();
                    if now >= until {
                        let holder = Some(Box::new(holder.claim()));
                        return Err(ClaimError::TimedOut { waited: began.elapsed(), ahead: 1, holder });
                    }
                    // Whoever holds it extends it long before; if not, it is free then.
                    let ends = left + Duration::from_millis(fastrand::u64(1..20));
                    watch.changed(ends.min(until - now)).await;
                }
                Err(error) if !error.retryable() => return Err(error.into()),
                // Safe whatever became of the last try: a token that is there is left as it is.
                Err(_) if Instant::now() < until => {
                    let pause = Duration::from_millis(fastrand::u64(20..200));
                    tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
                }
                Err(error @ BackendError::Unknown { .. }) => return Err(ClaimError::Unknown(error)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Backend for Redis {
    type Class = LeaseOnly;
    type Lease = RedisSession;

    fn name(&self) -> String {
        self.line.place.name.clone()
    }

    fn limits(&self) -> Limits {
        Limits { min_ttl: MIN_TTL, max_ttl: self.line.place.max_ttl }
    }

    async fn open(&self, terms: &Terms) -> Result<(RedisSession, Duration), BackendError> {
        self.limits().check(terms.ttl).map_err(|why| self.line.place.refused(why))?;
        // Nothing is written, but it has to be there.
        self.line.run_id(CALL).await?;
        Ok((RedisSession::new(terms), terms.ttl))
    }

    async fn renew(&self, lease: &RedisSession) -> Result<Duration, BackendError> {
        let claims = lease.beat().ok_or_else(|| BackendError::NoSession { backend: self.name() })?;
        for chunk in claims.chunks(CHUNK).chain(claims.is_empty().then_some(&[][..])) {
            let held = self.line.extend(CALL, chunk, lease.ttl()).await?;
            chunk.iter().zip(held).filter(|(_, held)| !held).for_each(|((token, _), _)| lease.missing(token));
        }
        Ok(lease.ttl())
    }

    async fn close(&self, lease: &RedisSession) -> Result<(), BackendError> {
        for (token, name) in lease.close() {
            self.line.release(CALL, &name, &token, DEAD).await?;
            lease.leave(&token);
        }
        Ok(())
    }

    async fn claim(&self, lease: &RedisSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let claimed = self.wait(lease, want, patience).await;
        if let Err(ClaimError::Busy { .. } | ClaimError::TimedOut { .. }) = &claimed {
            // The last try was answered; one before it may not have been.
            if let Err(error) = self.withdraw(lease, &want.name, &want.token).await {
                return Err(ClaimError::Unknown(error));
            }
        }
        claimed
    }

    async fn withdraw(&self, lease: &RedisSession, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        let remember = if lease.is_held(token) { 0 } else { DEAD };
        let released = self.line.release(CALL, name, token, remember).await?;
        lease.leave(token);
        Ok(released)
    }

    async fn gone(&self, lease: &RedisSession, claim: &Claim) -> Gone {
        let Some(mut gone) = lease.gone(&claim.token) else { return Gone::Removed };
        let watch = self.listener.watch(&names(&claim.name, &claim.token).lock);
        let token = claim.token.to_string();
        loop {
            tokio::select! {
                _ = gone.wait_for(|gone| *gone) => return Gone::Removed,
                () = watch.changed(lease.ttl() / 3) => {}
            }
            if let Ok(value) = self.line.value(CALL, &claim.name).await
                && value.is_none_or(|value| value.token != token)
            {
                return Gone::Removed;
            }
        }
    }
}
