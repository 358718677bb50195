//! Locks in the majority of several Redis.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use seawall_types::Revision;
use tokio::time::Instant;

use super::elections::is_new;
use super::line::{Line, Place};
use super::node::Answer;
use super::scripts::{DEAD, Value};
use super::session::RedisSession;
use super::single::{CALL, CHUNK, MIN_TTL};
use crate::backend::home::Home;
use crate::backend::view::{CandidateView, ElectionView};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, Released, Terms, Want};
use crate::class::BestEffort;
use crate::clock::Clock;
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName, Token};

/// By how much clocks may run apart: a hundredth of the time to live, and this.
const DRIFT: Duration = Duration::from_millis(2);
/// How long one of them is waited for: a hundredth of the time to live, within these.
const NODE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// The longest pause between two tries: a tenth of the time to live, and at most this.
const PAUSE: Duration = Duration::from_millis(200);

/// Locks that the majority of several independent Redis grants; cheap to clone. Better than one Redis when one is lost, and
/// class best-effort all the same: it goes by the clocks of all, so two may hold a lock after a clock jumped, a Redis forgot, or
/// a holder stood still. There is no fencing token, for counters in several Redis do not grow together;
/// [`RedlockFenced`](super::RedlockFenced) has one of a store.
#[derive(Clone)]
pub struct Redlock {
    nodes: Arc<[Line]>,
    clock: Clock,
}

impl fmt::Debug for Redlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redlock").field(&self.name()).finish()
    }
}

/// What the nodes said: of each its answer, or why there is none.
struct Answers<T>(Vec<Result<T, BackendError>>);

impl<T> Answers<T> {
    /// Those that gave none, as an error. One that has been done somewhere is unknown.
    fn error(self, all: &Redlock) -> BackendError {
        let errors: Vec<BackendError> = self.0.into_iter().filter_map(Result::err).collect();
        let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let why = format!("{} of {} have to agree; {}", all.quorum(), all.nodes.len(), why.join("; "));
        let backend = all.name();
        if errors.iter().any(|error| matches!(error, BackendError::Unknown { .. })) {
            return BackendError::Unknown { backend, why };
        }
        match errors.iter().all(|error| matches!(error, BackendError::Refused { .. })) && !errors.is_empty() {
            true => BackendError::Refused { backend, why },
            false => BackendError::Down { backend, why },
        }
    }
}

impl Redlock {
    /// Connects to at least three Redis, an odd number, none twice and none a replica of another. The majority has to be there.
    /// Each URL is as that of [`Redis::connect`](super::Redis::connect).
    ///
    /// # Errors
    /// [`BackendError`], within seconds.
    pub async fn connect<U: AsRef<str>>(urls: &[U]) -> Result<Self, BackendError> {
        let places: Vec<Place> = urls.iter().map(|url| Place::parse(url.as_ref())).collect::<Result<_, _>>()?;
        let refused = |why: String| BackendError::Refused { backend: "Redlock".into(), why };
        if places.len() < 3 || places.len().is_multiple_of(2) {
            let why = format!("{} were named: it takes 3, 5 or another odd number of Redis", places.len());
            return Err(refused(why));
        }
        let home = Home::start("seawall-redlock").map_err(refused)?;
        let lines: Vec<Line> = places.into_iter().map(|place| Line::new(home.clone(), place)).collect();
        let all = Self { nodes: lines.into(), clock: Clock::default() };
        all.look().await?;
        Ok(all)
    }

    /// Asks each who it is. Enough of them have to answer, and no two may be the same.
    async fn look(&self) -> Result<(), BackendError> {
        let answers = self.ask(|node| node.run_id(CALL)).await;
        let mut seen = HashMap::new();
        for (node, run_id) in self.nodes.iter().zip(&answers.0) {
            let Ok(run_id) = run_id else { continue };
            if let Some(other) = seen.insert(run_id.clone(), &node.place.name) {
                let why = format!("{other} and {} are the same; each has to be another process", node.place.name);
                return Err(BackendError::Refused { backend: self.name(), why });
            }
        }
        if seen.len() < self.quorum() {
            return Err(answers.error(self));
        }
        Ok(())
    }

    fn quorum(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    async fn ask<'a, T, F>(&'a self, mut ask: impl FnMut(&'a Line) -> F) -> Answers<T>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        Answers(join_all(self.nodes.iter().map(&mut ask)).await)
    }

    /// How long one node is waited for.
    fn patience(ttl: Duration) -> Duration {
        (ttl / 100).clamp(NODE.0, NODE.1)
    }

    /// One try at all nodes. The claim when enough granted it in time, otherwise how long the lock may still be another's.
    async fn round(&self, lease: &RedisSession, want: &Want, about: &str) -> Result<Option<Claim>, ClaimError> {
        let (ttl, began) = (lease.ttl(), self.clock.now());
        let beats = lease.enter(want)?;
        let answers = self.ask(|node| node.acquire(Self::patience(ttl), want, ttl, about)).await;
        let granted = |answer: &&Result<Answer, BackendError>| matches!(answer, Ok(Answer::Held(_)));
        let mut enough = answers.0.iter().filter(granted).count() >= self.quorum();
        if enough && lease.held(&want.token) != beats {
            // A keep-alive was sent meanwhile, from which the session's deadline is counted, and may have missed it.
            enough = self.extended(lease, want).await;
        }
        let drift = ttl / 100 + DRIFT;
        if enough && self.clock.now().since(began) + drift < ttl {
            let newest = answers.0.iter().filter_map(|answer| match answer {
                Ok(Answer::Held(value)) => Some(value.granted),
                _ => None,
            });
            let created = Revision(newest.max().unwrap_or(0));
            return Ok(Some(Claim { name: want.name.clone(), token: want.token, created, fence: None }));
        }
        if answers.0.iter().any(|answer| matches!(answer, Ok(Answer::Withdrawn))) {
            return Err(ClaimError::Removed);
        }
        let answered = answers.0.iter().filter(|answer| answer.is_ok()).count();
        if answered < self.quorum() {
            return Err(answers.error(self).into());
        }
        Ok(None)
    }

    /// Whether enough nodes extend a claim, asked now.
    pub(super) async fn extended(&self, lease: &RedisSession, want: &Want) -> bool {
        let claim = [(want.token, want.name.clone())];
        let answers = self.ask(|node| node.extend(Self::patience(lease.ttl()), &claim, lease.ttl())).await;
        answers.0.iter().filter(|held| held.as_ref().is_ok_and(|held| held[0])).count() >= self.quorum()
    }

    /// Gives a claim back at all nodes, also those that never answered for it.
    async fn release_all(&self, name: &LockName, token: &Token, remember: u64) -> Answers<Released> {
        self.ask(|node| node.release(NODE.1, name, token, remember)).await
    }

    /// The same, answered by enough of them.
    pub(super) async fn release_everywhere(
        &self,
        name: &LockName,
        token: &Token,
        remember: u64,
    ) -> Result<Released, BackendError> {
        let answers = self.release_all(name, token, remember).await;
        let released = answers.0.iter().filter(|answer| **answer == Ok(Released::Now)).count();
        if answers.0.iter().filter(|answer| answer.is_ok()).count() < self.quorum() {
            return Err(answers.error(self));
        }
        Ok(if released >= self.quorum() { Released::Now } else { Released::WasNotHeld })
    }

    async fn wait(&self, lease: &RedisSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let began = Instant::now();
        let until = began + patience;
        let refused = |why| BackendError::Refused { backend: self.name(), why };
        let about = lease.about(&want.info, 0).map_err(refused)?;
        loop {
            let last = match self.round(lease, want, &about).await {
                Ok(Some(claim)) => return Ok(claim),
                Ok(None) if patience.is_zero() => return Err(ClaimError::Busy { holder: None }),
                Ok(None) => ClaimError::TimedOut { waited: began.elapsed(), ahead: 1, holder: None },
                Err(ClaimError::Backend(error)) if error.retryable() => match error {
                    BackendError::Unknown { .. } => ClaimError::Unknown(error),
                    error => error.into(),
                },
                Err(error) => return Err(error),
            };
            // What some have granted is in the way of others, whose luck may be better. The same token may come again.
            let patience = Self::patience(lease.ttl());
            self.ask(|node| node.release(patience, &want.name, &want.token, 0)).await;
            // At random, so that those who split the nodes among them do not go on doing so.
            let pause = (lease.ttl() / 10).min(PAUSE).mul_f64(fastrand::f64());
            if Instant::now() + pause >= until {
                return Err(last);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl Redlock {
    /// Whom most nodes name.
    async fn leader(&self, lock: &LockName) -> Result<Option<CandidateView>, BackendError> {
        Ok(self.holder(lock).await?.map(Value::candidate))
    }

    /// What most nodes have of a lock; granted when the last of them did.
    pub(super) async fn holder(&self, lock: &LockName) -> Result<Option<Value>, BackendError> {
        let answers = self.ask(|node| node.value(CALL, lock)).await;
        if answers.0.iter().filter(|answer| answer.is_ok()).count() < self.quorum() {
            return Err(answers.error(self));
        }
        let values: Vec<&Value> = answers.0.iter().flatten().flatten().collect();
        let same = |token: &str| values.iter().filter(|value| value.token == token).count();
        let leaders = values.iter().filter(|value| same(&value.token) >= self.quorum());
        // Each node has the time at which it was told; the latest is as good as any, and stays.
        Ok(leaders.max_by_key(|value| (value.modified, value.granted)).map(|value| {
            let granted = values.iter().filter(|other| other.token == value.token).map(|other| other.granted);
            Value { granted: granted.max().unwrap_or(0), ..(*value).clone() }
        }))
    }
}

impl Backend for Redlock {
    type Class = BestEffort;
    type Lease = RedisSession;

    fn name(&self) -> String {
        let nodes: Vec<&str> = self.nodes.iter().map(|node| node.place.name.as_str()).collect();
        format!("Redlock over {}", nodes.join(", "))
    }

    fn limits(&self) -> Limits {
        let max_ttl = self.nodes.iter().map(|node| node.place.max_ttl).min().unwrap_or_default();
        Limits { min_ttl: MIN_TTL, max_ttl }
    }

    async fn open(&self, terms: &Terms) -> Result<(RedisSession, Duration), BackendError> {
        self.limits().check(terms.ttl).map_err(|why| BackendError::Refused { backend: self.name(), why })?;
        self.look().await?;
        Ok((RedisSession::new(terms), terms.ttl))
    }

    async fn renew(&self, lease: &RedisSession) -> Result<Duration, BackendError> {
        let claims = lease.beat().ok_or_else(|| BackendError::NoSession { backend: self.name() })?;
        let patience = Self::patience(lease.ttl()).max(lease.ttl() / 12);
        for chunk in claims.chunks(CHUNK).chain(claims.is_empty().then_some(&[][..])) {
            let answers = self.ask(|node| node.extend(patience, chunk, lease.ttl())).await;
            let silent = answers.0.iter().filter(|answer| answer.is_err()).count();
            for (at, (token, _)) in chunk.iter().enumerate() {
                let held = answers.0.iter().flatten().filter(|held| held[at]).count();
                // Where too few hold it even if all that are silent do.
                if held + silent < self.quorum() {
                    lease.missing(token);
                }
            }
            let unsure = |at: usize| {
                let held = answers.0.iter().flatten().filter(|held| held[at]).count();
                held < self.quorum() && lease.is_held(&chunk[at].0)
            };
            if self.nodes.len() - silent < self.quorum() || (0..chunk.len()).any(unsure) {
                return Err(answers.error(self));
            }
        }
        Ok(lease.ttl())
    }

    async fn close(&self, lease: &RedisSession) -> Result<(), BackendError> {
        for (token, name) in lease.close() {
            let answers = self.release_all(&name, &token, DEAD).await;
            if answers.0.iter().filter(|answer| answer.is_ok()).count() < self.quorum() {
                return Err(answers.error(self));
            }
            lease.leave(&token);
        }
        Ok(())
    }

    async fn claim(&self, lease: &RedisSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let claimed = self.wait(lease, want, patience).await;
        if let Err(ClaimError::Busy { .. } | ClaimError::TimedOut { .. }) = &claimed
            && let Err(error) = self.withdraw(lease, &want.name, &want.token).await
        {
            return Err(ClaimError::Unknown(error));
        }
        claimed
    }

    async fn withdraw(&self, lease: &RedisSession, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        let remember = if lease.is_held(token) { 0 } else { DEAD };
        let released = self.release_everywhere(name, token, remember).await?;
        lease.leave(token);
        Ok(released)
    }

    async fn gone(&self, lease: &RedisSession, claim: &Claim) -> Gone {
        if let Some(mut gone) = lease.gone(&claim.token) {
            // The next keep-alive tells.
            let _ = gone.wait_for(|gone| *gone).await;
        }
        Gone::Removed
    }
}

impl Elections for Redlock {
    fn prioritises(&self) -> bool {
        false
    }

    /// Who leads. Those who stand ask at random, and are nowhere written down.
    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        Ok(ElectionView::of(name.clone(), self.leader(&LockName::of_election(name)).await?))
    }

    async fn publish(&self, lease: &RedisSession, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        let about = lease.about(info, 0).map_err(|why| BackendError::Refused { backend: self.name(), why })?;
        let answers = self.ask(|node| node.update(CALL, &claim.name, &claim.token, &about)).await;
        let done = answers.0.iter().filter(|done| **done == Ok(true)).count();
        match answers.0.iter().filter(|answer| answer.is_ok()).count() >= self.quorum() {
            true => Ok(done >= self.quorum()),
            false => Err(answers.error(self)),
        }
    }

    /// There is none here: what the nodes do in one step each would not be one step.
    async fn hand_over(&self, _: &RedisSession, _: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        let why = format!("several Redis cannot make `{to}` the leader in one step: resign, and let them stand for it");
        Err(BackendError::Refused { backend: self.name(), why })
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        let lock = LockName::of_election(name);
        loop {
            let leader = self.leader(&lock).await?;
            if is_new(seen, leader.as_ref()) {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(100..300))).await;
        }
    }
}
