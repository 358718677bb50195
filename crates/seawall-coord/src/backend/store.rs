//! Sessions and locks as keys in a store of this process: the recipe.
//!
//! A claim is a key `lock/<name>/<session>-<token>` that goes with the session's lease. The queue is the keys of a lock in
//! the order of the revisions that created them; the first holds the lock. Each waiter watches the key before its own,
//! remembered with its revision, and after every wake-up reads everything again, its own key above all: a session that was
//! lost while it waited has no place any more, whoever has gone before it.
//!
//! The key names the claim's own random token. So to delete it is to release what is one's own and nothing else, once or
//! five times; and after a lost reply, to read it is to know what happened.
//!
//! The candidates of an election are such a queue under `elect/<name>/`.

mod doubts;
mod elections;
mod queries;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use seawall_store::{
    CommitError, Compare, Cursor, Entry, Keys, Lease, LeaseId, Op, OpResult, ReadError, Store, Txn, WatchError,
};
use seawall_types::Revision;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::backend::view::{ClaimView, LockView};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, MAX_INFO, Released, Terms, Want};
use crate::class::{Fence, Fenced};
use crate::lock::Guard;
use crate::name::{LockName, Token};
use crate::session::Why;
use doubts::{Doubts, Settled, TRIES};

/// How long one call to the store may take.
const CALL: Duration = Duration::from_secs(5);
/// How many of the latest forced releases are kept.
const AUDITS: usize = 1000;
/// Where claims, sessions and forced releases are.
const LOCKS: &str = "lock/";
const ELECTIONS: &str = "elect/";
const SESSIONS: &str = "session/";
const AUDIT: &str = "lock-audit/";

/// Sessions and locks in a store; cheap to clone.
#[derive(Clone)]
pub struct StoreBackend {
    store: Arc<dyn Store>,
    fence_base: u64,
    /// This one and its clones, among all that send claims for a session.
    instance: Token,
    doubts: Arc<Doubts>,
}

impl fmt::Debug for StoreBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreBackend").field("fence_base", &self.fence_base).finish_non_exhaustive()
    }
}

/// A session in the store: the number of its lease, and a secret by which another session of the same number, in a store
/// that began anew, is told from it. As text `<number>-<secret>`, both in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLease {
    id: LeaseId,
    secret: Token,
}

impl fmt::Display for StoreLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.id.0, self.secret)
    }
}

impl std::str::FromStr for StoreLease {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-').filter(|(id, _)| id.len() == 16);
        let lease = parts.and_then(|(id, secret)| {
            let id = LeaseId(u64::from_str_radix(id, 16).ok()?);
            Some(Self { id, secret: secret.parse().ok()? })
        });
        lease.ok_or_else(|| "this is no session; one looks like `<16 digits>-<32 digits>`".to_owned())
    }
}

impl StoreLease {
    /// What a session's key says, if it is this session's.
    fn read(&self, value: &[u8]) -> Option<SessionValue> {
        let value: SessionValue = serde_json::from_slice(value).ok()?;
        (value.secret == self.secret.to_string()).then_some(value)
    }
}

/// The value of a session's key.
#[derive(Debug, Serialize, Deserialize)]
struct SessionValue {
    owner: String,
    secret: String,
    since_ms: u64,
    /// Which process sends claims for it.
    #[serde(default)]
    by: String,
}

/// The value of a claim's key.
#[derive(Debug, Serialize, Deserialize)]
struct ClaimValue {
    owner: String,
    since_ms: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    info: String,
}

/// A release by an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The lock; an election's is written `elect/<name>`.
    #[serde(deserialize_with = "LockName::deserialize_any")]
    pub lock: LockName,
    /// Who did it.
    pub by: String,
    /// Why.
    pub why: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who had held it.
    pub holder: ClaimView,
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}

fn queue(name: &LockName) -> String {
    match name.election() {
        Some(name) => format!("{ELECTIONS}{name}/"),
        None => format!("{LOCKS}{name}/"),
    }
}

fn key(name: &LockName, lease: &StoreLease, token: &Token) -> String {
    format!("{}{:016x}-{token}", queue(name), lease.id.0)
}

fn session_key(lease: &StoreLease) -> String {
    format!("{SESSIONS}{:016x}", lease.id.0)
}

const NAME: &str = "the store";

fn down(why: impl fmt::Display) -> BackendError {
    BackendError::Down { backend: NAME.into(), why: why.to_string() }
}

fn refused(why: impl fmt::Display) -> BackendError {
    BackendError::Refused { backend: NAME.into(), why: why.to_string() }
}

impl From<CommitError> for BackendError {
    fn from(error: CommitError) -> Self {
        let backend = NAME.to_owned();
        match error {
            CommitError::NoLease(_) => Self::NoSession { backend },
            CommitError::Unknown(why) => Self::Unknown { backend, why },
            CommitError::Invalid(why) => Self::Refused { backend, why },
            other => Self::Down { backend, why: other.to_string() },
        }
    }
}

impl From<ReadError> for BackendError {
    fn from(error: ReadError) -> Self {
        down(error)
    }
}

/// A wait between two tries at the same thing, longer each time.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Self(Duration::from_millis(10))
    }

    /// Waits; false when that would be past `until`.
    async fn wait(&mut self, until: Instant) -> bool {
        let pause = self.0.mul_f64(0.1 + 0.9 * fastrand::f64());
        self.0 = (self.0 * 2).min(Duration::from_millis(500));
        if Instant::now() + pause >= until {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}

/// A read; one that is not answered in time has done nothing.
async fn reading<T>(call: impl Future<Output = Result<T, ReadError>>) -> Result<T, BackendError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(down(format!("no answer within {CALL:?}"))),
    }
}

/// A write; one that is not answered in time may have been done.
async fn writing<T>(call: impl Future<Output = Result<T, CommitError>>) -> Result<T, BackendError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(BackendError::Unknown { backend: NAME.into(), why: format!("no answer within {CALL:?}") }),
    }
}

impl StoreBackend {
    /// Works in `store`, under the keys `lock/`, `elect/`, `session/`, `lock-audit/` and `meta/fence-base`.
    ///
    /// # Errors
    /// [`BackendError`] when the store cannot be written.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, BackendError> {
        let fence_base = writing(seawall_store::fence_base(&*store)).await?;
        Ok(Self { store, fence_base, instance: Token::random(), doubts: Arc::default() })
    }

    /// The claim with this token, if it is there, and whether it holds the lock.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn resolve(
        &self,
        lease: &StoreLease,
        name: &LockName,
        token: &Token,
    ) -> Result<Option<(Claim, bool)>, BackendError> {
        let key = key(name, lease, token);
        let Some(own) = reading(self.store.get(&key)).await? else { return Ok(None) };
        let place = reading(queries::place(&*self.store, &queue(name), &key, own.created)).await?;
        let own = place.own.filter(|now| now.created == own.created);
        Ok(own.map(|own| (self.claim_of(name, token, &own), place.before.is_none())))
    }

    /// As [`Backend::claim`], but a wait that runs out leaves the claim in the queue, where the same want finds it again;
    /// whoever does not come back has to [`Backend::withdraw`] it.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn wait(&self, lease: &StoreLease, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let began = Instant::now();
        let until = began + patience;
        let (queue, key) = (queue(&want.name), key(&want.name, lease, &want.token));
        if want.info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", want.info.len());
            return Err(refused(why).into());
        }
        if patience.is_zero() {
            // Nothing is written for a lock that is held anyway.
            let first = reading(queries::oldest(&*self.store, &queue)).await?;
            if first.as_ref().is_some_and(|first| *first.key != *key) && reading(self.store.get(&key)).await?.is_none()
            {
                return Err(ClaimError::Busy { holder: self.holder(first.as_ref()) });
            }
        }
        let created = self.enqueue(lease, want, &key, until).await?;
        loop {
            let place = self.look(&queue, &key, created, until).await?;
            // The own key, and no other that has come under the same name since.
            let Some(own) = place.own.as_ref().filter(|own| own.created == created) else {
                return Err(self.why_gone(lease).await);
            };
            let Some(before) = &place.before else { return Ok(self.claim_of(&want.name, &want.token, own)) };
            if patience.is_zero() {
                return Err(ClaimError::Busy { holder: self.holder(place.first.as_ref()) });
            }
            // Known by its key and its revision: the key alone may be another's by now.
            let keys = [(&*before.key, before.created), (&*key, created)];
            let left = self.vanishes(&keys, place.revision);
            if tokio::time::timeout_at(until, left).await.is_err() {
                let holder = self.holder(place.first.as_ref());
                let ahead = reading(queries::ahead(&*self.store, &queue, created)).await.unwrap_or(1);
                return Err(ClaimError::TimedOut { waited: began.elapsed(), ahead, holder });
            }
        }
    }

    /// Puts the claim into the queue, or finds it there; says which revision created it.
    async fn enqueue(
        &self,
        lease: &StoreLease,
        want: &Want,
        key: &str,
        until: Instant,
    ) -> Result<Revision, ClaimError> {
        let mut backoff = Backoff::new();
        let mut doubt = None;
        loop {
            let error = match self.put_claim(lease, want, key).await {
                Ok(created) => return Ok(created),
                Err(error) => error,
            };
            match error {
                error if !error.retryable() => return Err(ClaimError::from_store(error)),
                BackendError::Unknown { .. } => doubt = Some(error.clone()),
                _ => {}
            }
            if !backoff.wait(until).await {
                // The last word: is it there?
                return match (reading(self.store.get(key)).await, doubt) {
                    (Ok(Some(own)), _) => Ok(own.created),
                    (Ok(None), None) => Err(error.into()),
                    (_, doubt) => Err(ClaimError::Unknown(doubt.unwrap_or(error))),
                };
            }
        }
    }

    /// One try at it. Can be repeated whatever became of the last one: a key that is there is left as it is, and what is
    /// still on its way is made void before.
    async fn put_claim(&self, lease: &StoreLease, want: &Want, key: &str) -> Result<Revision, BackendError> {
        for _ in 0..TRIES {
            let Settled { owner, condition } = self.settled(lease).await?;
            let value = json(&ClaimValue { owner, since_ms: unix_ms(), info: want.info.clone() });
            let put = Op::Put { key: key.into(), value: value.into(), lease: Some(lease.id) };
            let txn = Txn {
                compare: vec![Compare::Absent(key.into()), condition],
                then: vec![put, Op::Get(key.into())],
                otherwise: vec![Op::Get(key.into())],
            };
            let attempt = self.doubts.attempt(lease.id);
            let committed = writing(self.store.commit(txn)).await;
            if !matches!(committed, Err(BackendError::Unknown { .. })) {
                attempt.answered();
            }
            if let Some(OpResult::Got(Some(own))) = committed?.results.into_iter().next_back() {
                return Ok(own.created);
            }
            // The session's key was written in this moment: for another claim that was in doubt, or by another process.
        }
        Err(down(doubts::TAKEN_OVER))
    }

    async fn look(
        &self,
        queue: &str,
        key: &str,
        created: Revision,
        until: Instant,
    ) -> Result<queries::Place, ClaimError> {
        let mut backoff = Backoff::new();
        loop {
            match reading(queries::place(&*self.store, queue, key, created)).await {
                Ok(place) => return Ok(place),
                // The claim is in the queue and may come to hold the lock.
                Err(error) if !backoff.wait(until).await => return Err(ClaimError::Unknown(error)),
                Err(_) => {}
            }
        }
    }

    /// Resolves when one of these keys, as it was created, may be gone. `from` is a revision at which all were there.
    async fn vanishes(&self, keys: &[(&str, Revision)], from: Revision) {
        let mut cursors = Vec::with_capacity(keys.len());
        for (key, created) in keys {
            match self.store.watch(Keys::One((*key).into()), from.next()).await {
                Ok(cursor) => cursors.push(deleted(cursor, key, *created)),
                // Look again, and watch from there.
                Err(_) => return tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        let mut cursors: Vec<_> = cursors.into_iter().map(Box::pin).collect();
        std::future::poll_fn(|context| {
            if cursors.iter_mut().any(|cursor| cursor.as_mut().poll(context).is_ready()) {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }

    /// Why a claim that was in the queue is there no more.
    async fn why_gone(&self, lease: &StoreLease) -> ClaimError {
        match self.session(lease).await {
            Ok(_) => ClaimError::Removed,
            Err(error) => ClaimError::from_store(error),
        }
    }

    fn fence(&self, created: Revision) -> Fence {
        Fence::new(self.fence_base + created.0)
    }

    fn claim_of(&self, name: &LockName, token: &Token, own: &Entry) -> Claim {
        Claim { name: name.clone(), token: *token, created: own.created, fence: Some(self.fence(own.created)) }
    }

    fn view(&self, entry: &Entry) -> ClaimView {
        let value: Option<ClaimValue> = serde_json::from_slice(&entry.value).ok();
        let value = value.unwrap_or_else(|| ClaimValue { owner: "?".into(), since_ms: 0, info: String::new() });
        let session = entry.lease.map(|lease| format!("{:016x}", lease.0)).unwrap_or_default();
        let fence = self.fence(entry.created);
        ClaimView { owner: value.owner, session, fence, since_ms: value.since_ms, info: value.info }
    }

    fn holder(&self, first: Option<&Entry>) -> Option<Box<ClaimView>> {
        first.map(|entry| Box::new(self.view(entry)))
    }

    /// A lock with its holder and its queue; a lock that nobody wants has neither.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        let entries = reading(queries::by_age(&*self.store, &queue(name))).await?;
        let mut claims = entries.iter().map(|entry| self.view(entry));
        Ok(LockView { name: name.clone(), holder: claims.next(), queue: claims.collect() })
    }

    /// Every lock that somebody holds, by name.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn list(&self) -> Result<Vec<LockView>, BackendError> {
        let mut locks = std::collections::BTreeMap::<LockName, LockView>::new();
        for entry in reading(queries::by_age(&*self.store, LOCKS)).await? {
            let name = entry.key.strip_prefix(LOCKS).and_then(|rest| rest.split_once('/')).map(|(name, _)| name);
            let Some(name) = name.and_then(|name| LockName::try_new(name).ok()) else { continue };
            let view = self.view(&entry);
            match locks.get_mut(&name) {
                Some(lock) => lock.queue.push(view),
                None => {
                    locks.insert(name.clone(), LockView { name, holder: Some(view), queue: Vec::new() });
                }
            }
        }
        Ok(locks.into_values().collect())
    }

    /// Takes the lock away from its holder, whose guard is lost; its session and its other locks stay. The next in the queue
    /// holds the lock at once, while the former holder may still work: only a resource that checks tokens is safe from it.
    /// The release is recorded. `None` when nobody held it.
    ///
    /// # Errors
    /// [`BackendError`]. After [`BackendError::Unknown`] look at the lock before trying again: another may hold it by now.
    pub async fn force(&self, name: &LockName, by: &str, why: &str) -> Result<Option<ClaimView>, BackendError> {
        if by.is_empty() || by.len() > crate::name::MAX_OWNER || why.len() > MAX_INFO {
            let most = crate::name::MAX_OWNER;
            let why = format!("who does it takes 1 to {most} bytes, and why at most {MAX_INFO}");
            return Err(refused(why));
        }
        let mut tries = 0;
        loop {
            let Some(first) = reading(queries::oldest(&*self.store, &queue(name))).await? else { return Ok(None) };
            let holder = self.view(&first);
            let at_ms = unix_ms();
            let audit = Audit { lock: name.clone(), by: by.into(), why: why.into(), at_ms, holder: holder.clone() };
            let record = format!("{AUDIT}{at_ms:016x}-{}", Token::random());
            let txn = Txn {
                compare: vec![Compare::Created(first.key.to_string(), first.created)],
                then: vec![
                    Op::Delete(first.key.to_string()),
                    Op::Put { key: record, value: json(&audit).into(), lease: None },
                ],
                otherwise: Vec::new(),
            };
            if writing(self.store.commit(txn)).await?.succeeded {
                tracing::warn!(lock = %name, by, why, %holder, "a lock was released by force");
                self.trim_audits().await;
                return Ok(Some(holder));
            }
            // It was released in this very moment; who holds it now is another's.
            tries += 1;
            if tries == 10 {
                return Err(down("the holder changed ten times in a row"));
            }
        }
    }

    /// The latest forced releases, the latest last.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn audits(&self) -> Result<Vec<Audit>, BackendError> {
        let entries = reading(queries::by_age(&*self.store, AUDIT)).await?;
        Ok(entries.iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok()).collect())
    }

    async fn trim_audits(&self) {
        let Ok(entries) = reading(queries::by_age(&*self.store, AUDIT)).await else { return };
        let surplus = entries.len().saturating_sub(AUDITS).min(seawall_store::MAX_OPS);
        let then: Vec<_> = entries[..surplus].iter().map(|entry| Op::Delete(entry.key.to_string())).collect();
        if !then.is_empty() {
            // The next one does it if this fails.
            let _ = writing(self.store.commit(Txn { then, ..Txn::default() })).await;
        }
    }
}

impl ClaimError {
    fn from_store(error: BackendError) -> Self {
        match error {
            BackendError::NoSession { .. } => Self::Lost(Why::Ended),
            error => Self::Backend(error),
        }
    }
}

/// Resolves when the key as it was created is deleted, or the watch cannot say.
async fn deleted(mut cursor: Cursor, key: &str, created: Revision) {
    loop {
        match cursor.next().await {
            Ok(events) => {
                let same = |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.created == created);
                if events.iter().any(|event| &*event.key == key && !same(&event.entry)) {
                    return;
                }
            }
            Err(WatchError::Compacted { .. }) => return,
            Err(WatchError::Closed | WatchError::Unavailable(_)) => {
                return tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Guard<StoreBackend> {
    /// The condition under which a transaction of the same store is done only while this guard's claim is there: its key exists,
    /// and is the very one that was created with the claim. As the queue goes by age, it then also holds the lock.
    pub fn condition(&self) -> Compare {
        let claim = self.claim();
        Compare::Created(key(&claim.name, &self.inner().lease, &claim.token), claim.created)
    }
}

impl Backend for StoreBackend {
    type Class = Fenced;
    type Lease = StoreLease;

    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn limits(&self) -> Limits {
        Limits { min_ttl: Duration::from_millis(200), max_ttl: Duration::from_secs(3600) }
    }

    async fn open(&self, terms: &Terms) -> Result<(StoreLease, Duration), BackendError> {
        self.limits().check(terms.ttl).map_err(refused)?;
        let Lease { id, ttl } = writing(self.store.grant(terms.ttl)).await?;
        let lease = StoreLease { id, secret: Token::random() };
        let (owner, secret) = (terms.owner.as_str().to_owned(), lease.secret.to_string());
        let by = self.instance.to_string();
        let value = json(&SessionValue { owner, secret, since_ms: unix_ms(), by });
        let put = Op::Put { key: session_key(&lease), value: value.into(), lease: Some(id) };
        let opened = writing(self.store.commit(Txn { then: vec![put], ..Txn::default() })).await;
        if let Err(error) = opened {
            // It ends by its time to live otherwise.
            let _ = writing(self.store.revoke(id)).await;
            return Err(error);
        }
        Ok((lease, ttl))
    }

    async fn renew(&self, lease: &StoreLease) -> Result<Duration, BackendError> {
        self.session(lease).await?;
        let ttl = writing(self.store.keep_alive(lease.id)).await?;
        // A store may answer for a lease that it is just ending; then its key is gone by now, or its claims will be missed.
        self.session(lease).await?;
        Ok(ttl)
    }

    async fn close(&self, lease: &StoreLease) -> Result<(), BackendError> {
        let closed = match self.session(lease).await {
            Ok(_) => writing(self.store.revoke(lease.id)).await.map(drop),
            Err(error) => Err(error),
        };
        match closed {
            Err(BackendError::NoSession { .. }) => Ok(()),
            other => other,
        }
    }

    async fn claim(&self, lease: &StoreLease, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let claimed = self.wait(lease, want, patience).await;
        if let Err(ClaimError::Busy { .. } | ClaimError::TimedOut { .. }) = &claimed {
            match self.withdraw(lease, &want.name, &want.token).await {
                Ok(_) | Err(BackendError::NoSession { .. }) => {}
                // May still be in the queue.
                Err(error) => return Err(ClaimError::Unknown(error)),
            }
        }
        claimed
    }

    async fn withdraw(&self, lease: &StoreLease, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        let gone = self.delete(lease, &[key(name, lease, token)]).await?;
        Ok(if gone > 0 { Released::Now } else { Released::WasNotHeld })
    }

    async fn gone(&self, lease: &StoreLease, claim: &Claim) -> Gone {
        let key = key(&claim.name, lease, &claim.token);
        loop {
            if let Ok((revision, entry)) = reading(queries::one(&*self.store, &key)).await {
                match entry.filter(|entry| entry.created == claim.created) {
                    Some(_) => self.vanishes(&[(&key, claim.created)], revision).await,
                    None => match self.session(lease).await {
                        Ok(_) => return Gone::Removed,
                        Err(BackendError::NoSession { .. }) => return Gone::Session,
                        Err(_) => {}
                    },
                }
            }
            // Never in a circle without a pause, whatever the store answers.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
