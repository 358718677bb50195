//! Sessions and locks as keys in a store of this process: the recipe.
//!
//! A claim is a key `lock/<name>/w/<session>-<token>` that goes with the session's lease. The queue is the keys of a lock in
//! the order of the revisions that created them; the first holds the lock. Each waiter watches the key before its own,
//! remembered with its revision, and after every wake-up reads everything again, its own key above all: a session that was
//! lost while it waited has no place any more, whoever has gone before it.
//!
//! Claims that share the lock stand in the same queue, those to read under `lock/<name>/r/` and permits under
//! `lock/<name>/p/`. A reader watches the last key before its own that is not a reader's; what permits wait for is in
//! `permits`.
//!
//! The key names the claim's own random token. So to delete it is to release what is one's own and nothing else, once or
//! five times; and after a lost reply, to read it is to know what happened.
//!
//! The candidates of an election are such a queue under `elect/<name>/`.

mod barriers;
mod claims;
mod doubts;
mod elections;
mod latches;
mod observing;
mod oversight;
mod permits;
mod queries;
mod shared;
mod watching;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use seawall_store::{CommitError, Compare, Entry, Lease, LeaseId, Op, ReadError, Store, Txn};
use seawall_types::Revision;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::backend::view::{ClaimView, LockView};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, MAX_INFO, Released, Terms, Want};
use crate::class::{Fence, Fenced};
use crate::lock::Guard;
use crate::name::{LockName, Token};
use crate::sharing::{Kind, Manner, SharedLocks};
use doubts::Doubts;
pub use observing::{Followed, Following, SessionEnds, SessionNews};
use shared::Delays;
use watching::{Await, Watching};

/// How long one call to the store may take.
const CALL: Duration = Duration::from_secs(5);
/// How long a watch of a claim that is held may be silent before the claim is looked at again.
const SILENCE: Duration = Duration::from_secs(600);
/// How many of the latest forced releases are kept.
const AUDITS: usize = 1000;
/// Where claims, sessions and forced releases are.
const LOCKS: &str = "lock/";
const ELECTIONS: &str = "elect/";
const LATCHES: &str = "once/";
const LATCHED: &str = "once-done/";
const BARRIERS: &str = "barrier/";
const DELAYS: &str = "lock-delay/";
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
    delays: Arc<Delays>,
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
    /// The session's number, as lists show it; no secret.
    pub fn number(&self) -> String {
        format!("{:016x}", self.id.0)
    }

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
    #[serde(default, skip_serializing_if = "Kind::is_exclusive")]
    kind: Kind,
    /// It has its permits and has said so to the one behind it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    held: bool,
    #[serde(default, skip_serializing_if = "crate::backend::view::is_zero")]
    priority: i32,
}

impl ClaimValue {
    /// What a claim's key says. A value that is not understood is taken for the strongest claim.
    fn read(entry: &Entry) -> Self {
        serde_json::from_slice(&entry.value).unwrap_or_else(|_| Self {
            owner: "?".into(),
            since_ms: 0,
            info: String::new(),
            kind: Kind::Exclusive,
            held: false,
            priority: 0,
        })
    }
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
    match (name.election(), name.latch(), name.barrier()) {
        (Some(name), ..) => format!("{ELECTIONS}{name}/"),
        (_, Some(name), _) => format!("{LATCHES}{name}/"),
        (.., Some(name)) => format!("{BARRIERS}{name}/"),
        _ => format!("{LOCKS}{name}/"),
    }
}

/// Where the claims of a kind are.
fn directory(name: &LockName, kind: Kind) -> String {
    let queue = queue(name);
    match kind {
        _ if !name.is_plain() => queue,
        Kind::Exclusive => queue + "w/",
        Kind::Read => queue + "r/",
        Kind::Permits { .. } => queue + "p/",
    }
}

fn key_of(name: &LockName, kind: Kind, lease: &StoreLease, token: &Token) -> String {
    format!("{}{:016x}-{token}", directory(name, kind), lease.id.0)
}

/// The key of an exclusive claim.
fn key(name: &LockName, lease: &StoreLease, token: &Token) -> String {
    key_of(name, Kind::Exclusive, lease, token)
}

/// Where a claim with this token may be; an exclusive one first.
fn keys(name: &LockName, lease: &StoreLease, token: &Token) -> Vec<String> {
    let shared = [Kind::Read, Kind::Permits { limit: 1, take: 1 }];
    let shared = shared.into_iter().filter(|_| name.is_plain());
    let kinds = std::iter::once(Kind::Exclusive).chain(shared);
    kinds.map(|kind| key_of(name, kind, lease, token)).collect()
}

/// Where holders with a delay have left word.
fn delays(name: &LockName) -> String {
    format!("{DELAYS}{name}/")
}

fn delay_key_of(name: &LockName, lease: &StoreLease, token: &Token) -> String {
    format!("{}{:016x}-{token}", delays(name), lease.id.0)
}

fn delay_key(want: &Want, lease: &StoreLease) -> String {
    delay_key_of(&want.name, lease, &want.token)
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
    /// Works in `store`, under the keys `lock/`, `elect/`, `once/`, `once-done/`, `barrier/`, `session/`, `lock-delay/`, `lock-audit/` and `meta/fence-base`.
    ///
    /// # Errors
    /// [`BackendError`] when the store cannot be written.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, BackendError> {
        let fence_base = writing(seawall_store::fence_base(&*store)).await?;
        Ok(Self { store, fence_base, instance: Token::random(), doubts: Arc::default(), delays: Arc::default() })
    }

    /// Resolves when the session has ended. Tries for as long as it takes.
    pub async fn ended(&self, lease: &StoreLease) {
        loop {
            // The watch begins before the look.
            let awaits = vec![Await::Changed(session_key(lease).into())];
            let watching = self.watch(awaits, Instant::now() + CALL).await;
            if let Err(BackendError::NoSession { .. }) = self.session(lease).await {
                return;
            }
            if let Some(watching) = watching {
                watching.happens(Instant::now() + SILENCE).await;
            }
        }
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
        let (_, own) = reading(queries::first_of(&*self.store, &keys(name, lease, token))).await?;
        let Some(own) = own else { return Ok(None) };
        let kind = ClaimValue::read(&own).kind;
        let reads_in_a_writers_place = kind == Kind::Read && *own.key == *key(name, lease, token);
        let kind = if reads_in_a_writers_place { Kind::Exclusive } else { kind };
        let look = reading(queries::look(&*self.store, name, &own.key, kind, own.created)).await?;
        let own = look.own.filter(|now| now.created == own.created);
        Ok(own.map(|own| (self.claim_of(name, token, &own), look.behind.is_empty())))
    }

    fn fence(&self, created: Revision) -> Fence {
        Fence::new(self.fence_base + created.0)
    }

    fn claim_of(&self, name: &LockName, token: &Token, own: &Entry) -> Claim {
        Claim { name: name.clone(), token: *token, created: own.created, fence: Some(self.fence(own.created)) }
    }

    fn view(&self, entry: &Entry) -> ClaimView {
        let ClaimValue { owner, since_ms, info, kind, priority, .. } = ClaimValue::read(entry);
        let session = entry.lease.map(|lease| format!("{:016x}", lease.0)).unwrap_or_default();
        let fence = Some(self.fence(entry.created));
        ClaimView { owner, session, fence, since_ms, info, kind, priority }
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
        Ok(LockView::of(name.clone(), entries.iter().map(|entry| self.view(entry)).collect()))
    }

    /// Every lock that somebody holds, by name.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn list(&self) -> Result<Vec<LockView>, BackendError> {
        let mut locks = std::collections::BTreeMap::<LockName, Vec<ClaimView>>::new();
        for entry in reading(queries::by_age(&*self.store, LOCKS)).await? {
            let name = entry.key.strip_prefix(LOCKS).and_then(|rest| rest.split_once('/')).map(|(name, _)| name);
            let Some(name) = name.and_then(|name| LockName::try_new(name).ok()) else { continue };
            locks.entry(name).or_default().push(self.view(&entry));
        }
        Ok(locks.into_iter().map(|(name, claims)| LockView::of(name, claims)).collect())
    }

    /// Takes the lock away from its holder, of several from the one that has it longest, whose guard is lost; its session and its other locks stay. The next in the queue
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

impl Guard<StoreBackend> {
    /// The condition under which a transaction of the same store is done only while this guard's claim is there: its key exists,
    /// and is the very one that was created with the claim. As the queue goes by age, it then also holds the lock.
    pub fn condition(&self) -> Compare {
        let claim = self.claim();
        let key = key_of(&claim.name, self.kind(), &self.inner().lease, &claim.token);
        Compare::Created(key, claim.created)
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
        self.doubts.forget(lease.id);
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
        self.claim_as(lease, want, &Manner::default(), patience).await
    }

    async fn withdraw(&self, lease: &StoreLease, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        let gone = self.delete(lease, name, token).await?;
        if name.barrier().is_some() {
            self.tidy_barrier(name).await;
        }
        Ok(if gone > 0 { Released::Now } else { Released::WasNotHeld })
    }

    async fn gone(&self, lease: &StoreLease, claim: &Claim) -> Gone {
        let keys = keys(&claim.name, lease, &claim.token);
        let mut watching: Option<Watching> = None;
        loop {
            if let Ok((revision, entry)) = reading(queries::first_of(&*self.store, &keys)).await {
                match entry.filter(|entry| entry.created == claim.created) {
                    Some(entry) => {
                        let awaits = vec![Await::Gone(entry.key, entry.created)];
                        if !watching.as_ref().is_some_and(|watching| watching.are(&awaits)) {
                            watching = self.watch(awaits, Instant::now() + CALL).await;
                            if watching.as_ref().is_none_or(|watching| !watching.follow(revision)) {
                                // It may have gone before the watch began.
                                continue;
                            }
                        }
                        if let Some(watching) = watching.take() {
                            watching.happens(Instant::now() + SILENCE).await;
                        }
                    }
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
