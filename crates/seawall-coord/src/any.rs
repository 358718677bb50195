//! A backend that a configuration names by its address.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use seawall_store::StoreUrl;
use serde::{Deserialize, Serialize};

use crate::backend::remote::Remote;
use crate::backend::store::{StoreBackend, StoreLease};
use crate::backend::view::{CandidateView, ClaimView, ElectionView, LockView};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, Released, Terms, Want};
use crate::class::{BestEffort, Class, Fenced, LeaseOnly};
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName, Token};
use crate::oversight::Oversight;
use crate::sharing::{Manner, SharedLocks};

/// What somebody needs of a lock, from most to least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// A fencing token: class fenced.
    #[default]
    Fence,
    /// At most one holder as long as the backend forgets nothing: class lease-only or better.
    Lease,
    /// Most of the time one holder: any class.
    Best,
}

impl Need {
    fn met_by(self, class: &str) -> bool {
        match self {
            Self::Fence => class == Fenced::NAME,
            Self::Lease => class != BestEffort::NAME,
            Self::Best => true,
        }
    }
}

impl FromStr for Need {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fence" => Ok(Self::Fence),
            "lease" => Ok(Self::Lease),
            "best" => Ok(Self::Best),
            _ => Err(format!("`{text}`: it is `fence`, `lease` or `best`")),
        }
    }
}

/// Where locks are: `control://host:port`, `etcd://host:port,host:port/prefix`, `zookeeper://host:port,host:port/prefix`,
/// `postgres://user:password@host:port/database`, `postgres+advisory://...`, `redis://host:port`, or
/// `redlock://host:port,host:port,host:port`, the last perhaps with `?fences=etcd://...`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LocksUrl {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Control(Vec<SocketAddr>),
    Etcd(StoreUrl),
    ZooKeeper(String),
    PgLease(String),
    PgAdvisory(String),
    Redis(String),
    Redlock { nodes: Vec<String>, fences: Option<StoreUrl> },
}

/// A text that names no backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` names no place for locks: {why}")]
pub struct InvalidLocksUrl {
    url: String,
    why: String,
}

/// Without the password, if there is one.
fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((_, rest)) => format!("{scheme}://***@{rest}"),
        None => url.to_owned(),
    }
}

impl FromStr for LocksUrl {
    type Err = InvalidLocksUrl;

    fn from_str(url: &str) -> Result<Self, InvalidLocksUrl> {
        let invalid = |why: String| InvalidLocksUrl { url: shown(url), why };
        let schemes = "control, etcd, zookeeper, postgres, postgres+advisory, redis and redlock";
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| invalid(format!("it has no scheme; there are {schemes}")))?;
        if rest.is_empty() || rest.starts_with('/') {
            return Err(invalid("it names no host".into()));
        }
        let kind = match scheme {
            "control" => {
                let nodes: Result<Vec<SocketAddr>, _> = rest.trim_end_matches('/').split(',').map(str::parse).collect();
                Kind::Control(nodes.map_err(|_| {
                    invalid("after control:// come addresses such as 127.0.0.1:7400, with commas between".into())
                })?)
            }
            "etcd" => Kind::Etcd(url.parse().map_err(|error| invalid(format!("{error}")))?),
            "zookeeper" => Kind::ZooKeeper(url.to_owned()),
            "postgres" | "postgresql" => Kind::PgLease(url.to_owned()),
            "postgres+advisory" => Kind::PgAdvisory(format!("postgres://{rest}")),
            "redis" => Kind::Redis(url.to_owned()),
            "redlock" => {
                let (nodes, query) = rest.split_once('?').unwrap_or((rest, ""));
                let mut fences = None;
                let mut all = String::new();
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    match pair.split_once('=') {
                        Some(("fences", store)) => {
                            let store: StoreUrl = store.parse().map_err(|error| invalid(format!("{error}")))?;
                            if store == StoreUrl::Embedded {
                                let why = "fences=embedded would be another store in each process: name an etcd";
                                return Err(invalid(why.into()));
                            }
                            fences = Some(store);
                        }
                        Some(("max_ttl", _)) => all = format!("?{pair}"),
                        _ => return Err(invalid(format!("`{pair}`; there are `fences=etcd://..` and `max_ttl=60s`"))),
                    }
                }
                let nodes = nodes.trim_end_matches('/').split(',').map(|node| format!("redis://{node}/{all}"));
                Kind::Redlock { nodes: nodes.collect(), fences }
            }
            other => return Err(invalid(format!("`{other}` is not known; there are {schemes}"))),
        };
        Ok(Self { text: url.to_owned(), kind })
    }
}

impl TryFrom<String> for LocksUrl {
    type Error = InvalidLocksUrl;

    fn try_from(text: String) -> Result<Self, InvalidLocksUrl> {
        text.parse()
    }
}

impl From<LocksUrl> for String {
    fn from(url: LocksUrl) -> Self {
        url.text
    }
}

impl fmt::Display for LocksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.text))
    }
}

impl fmt::Debug for LocksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl LocksUrl {
    /// The class of what is there.
    pub fn class(&self) -> &'static str {
        match &self.kind {
            Kind::Redis(_) | Kind::PgAdvisory(_) => LeaseOnly::NAME,
            Kind::Redlock { fences: None, .. } => BestEffort::NAME,
            _ => Fenced::NAME,
        }
    }

    /// Whether there are readers and writers, permits, and delays.
    pub fn shares(&self) -> bool {
        matches!(self.kind, Kind::Control(_) | Kind::Etcd(_))
    }

    /// Whether what is there gives what is needed. Asks nobody.
    ///
    /// # Errors
    /// [`AnyError::Class`].
    pub fn check(&self, need: Need) -> Result<(), AnyError> {
        match need.met_by(self.class()) {
            true => Ok(()),
            false => Err(AnyError::Class { url: self.to_string(), class: self.class(), need }),
        }
    }
}

/// A backend that was not opened.
#[derive(Debug, thiserror::Error)]
pub enum AnyError {
    /// It cannot give what is needed.
    #[error(
        "{url} is {class}, which {}: use control, etcd://, zookeeper://, postgres://, or redlock:// with ?fences=etcd://..",
        match need {
            Need::Fence => "cannot give a fencing token",
            Need::Lease | Need::Best => "may let two hold a lock when a clock jumps",
        }
    )]
    Class {
        /// Which.
        url: String,
        /// Its class.
        class: &'static str,
        /// What was needed.
        need: Need,
    },
    /// This program was built without it.
    #[error("{0}: this program was built without that kind of backend")]
    NotBuilt(String),
    /// It does not answer, or not as one.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The etcd does not answer, or not as one.
    #[error(transparent)]
    Store(#[from] seawall_store::StoreError),
}

impl AnyError {
    /// Whether trying again may help, because it is down and not wrong.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Class { .. } | Self::NotBuilt(_) => false,
            Self::Backend(error) => error.retryable(),
            Self::Store(error) => error.retryable(),
        }
    }
}

/// Declares the backends once: the enum, the sessions, and how a call finds its own.
macro_rules! backends {
    ($($(#[$cfg:meta])* $name:ident($backend:ty, $lease:ty),)*) => {
        /// Any backend, chosen when the program runs. Its class is the least, so that no token can be asked for by its type; where
        /// there is one, [`Guard::token`](crate::Guard::token) has it.
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, reason = "there is one of it, and which variants there are is for features to say")]
        pub enum AnyLocks {
            $($(#[$cfg])* #[doc = concat!("[`", stringify!($name), "`](", stringify!($backend), ").")] $name($backend),)*
        }

        /// A session of one of them.
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        pub enum AnyLease {
            $($(#[$cfg])* #[doc = concat!("Of `", stringify!($name), "`.")] $name($lease),)*
        }

        macro_rules! each {
            ($any:expr, |$b:ident| $then:expr) => {
                match $any { $($(#[$cfg])* AnyLocks::$name($b) => $then,)* }
            };
        }

        macro_rules! both {
            ($any:expr, $session:expr, |$b:ident, $l:ident| $then:expr, else $otherwise:expr) => {
                match ($any, $session) {
                    $($(#[$cfg])* (AnyLocks::$name($b), AnyLease::$name($l)) => $then,)*
                    #[expect(unreachable_patterns, reason = "with one backend there is no other")]
                    #[allow(unfulfilled_lint_expectations, reason = "with several there is")]
                    _ => $otherwise,
                }
            };
        }

        impl AnyLocks {
            async fn opened(&self, terms: &Terms) -> Result<(AnyLease, Duration), BackendError> {
                match self {
                    $($(#[$cfg])* Self::$name(backend) => {
                        let (lease, ttl) = backend.open(terms).await?;
                        Ok((AnyLease::$name(lease), ttl))
                    })*
                }
            }
        }
    };
}

backends! {
    Control(Remote, String),
    Store(StoreBackend, StoreLease),
    #[cfg(feature = "postgres")]
    PgLease(crate::PgLease, crate::PgSession),
    #[cfg(feature = "postgres")]
    PgAdvisory(crate::PgAdvisory, crate::PgLine),
    #[cfg(feature = "redis")]
    Redis(crate::Redis, crate::RedisSession),
    #[cfg(feature = "redis")]
    Redlock(crate::Redlock, crate::RedisSession),
    #[cfg(feature = "redis")]
    RedlockFenced(crate::RedlockFenced, crate::RedisSession),
    #[cfg(feature = "zookeeper")]
    ZooKeeper(crate::ZooKeeper, crate::ZkSession),
}

impl AnyLocks {
    /// Connects, after it has looked whether this kind of backend can give what is needed.
    ///
    /// # Errors
    /// [`AnyError`], within seconds.
    pub async fn open(url: &LocksUrl, need: Need) -> Result<Self, AnyError> {
        url.check(need)?;
        match &url.kind {
            Kind::Control(nodes) => Ok(Self::Control(Remote::new(nodes.clone()))),
            Kind::Etcd(store) => {
                let store = seawall_store::open(store, std::path::Path::new("")).await?;
                Ok(Self::Store(StoreBackend::open(store).await?))
            }
            #[cfg(feature = "postgres")]
            Kind::PgLease(url) => Ok(Self::PgLease(crate::PgLease::connect(url).await?)),
            #[cfg(feature = "postgres")]
            Kind::PgAdvisory(url) => Ok(Self::PgAdvisory(crate::PgAdvisory::connect(url).await?)),
            #[cfg(feature = "redis")]
            Kind::Redis(url) => Ok(Self::Redis(crate::Redis::connect(url).await?)),
            #[cfg(feature = "redis")]
            Kind::Redlock { nodes, fences } => {
                let redlock = crate::Redlock::connect(nodes).await?;
                let Some(fences) = fences else { return Ok(Self::Redlock(redlock)) };
                let store = seawall_store::open(fences, std::path::Path::new("")).await?;
                Ok(Self::RedlockFenced(redlock.with_fences(store).await?))
            }
            #[cfg(feature = "zookeeper")]
            Kind::ZooKeeper(url) => Ok(Self::ZooKeeper(crate::ZooKeeper::connect(url).await?)),
            #[cfg(not(all(feature = "postgres", feature = "redis", feature = "zookeeper")))]
            _ => Err(AnyError::NotBuilt(url.to_string())),
        }
    }

    fn unshared(&self) -> BackendError {
        let why = "it has neither readers and writers nor permits nor delays; control:// and etcd:// have";
        BackendError::Refused { backend: self.name(), why: why.into() }
    }

    /// An error for a session of another backend, which only a mistake in the program can bring here.
    fn foreign(&self) -> BackendError {
        BackendError::Refused { backend: self.name(), why: "the session is of another backend".into() }
    }
}

impl Backend for AnyLocks {
    type Class = BestEffort;
    type Lease = AnyLease;

    fn name(&self) -> String {
        each!(self, |backend| backend.name())
    }

    fn limits(&self) -> Limits {
        each!(self, |backend| backend.limits())
    }

    async fn open(&self, terms: &Terms) -> Result<(AnyLease, Duration), BackendError> {
        Box::pin(self.opened(terms)).await
    }

    async fn renew(&self, lease: &AnyLease) -> Result<Duration, BackendError> {
        both!(self, lease, |backend, lease| Box::pin(backend.renew(lease)).await, else Err(self.foreign()))
    }

    async fn close(&self, lease: &AnyLease) -> Result<(), BackendError> {
        both!(self, lease, |backend, lease| Box::pin(backend.close(lease)).await, else Err(self.foreign()))
    }

    async fn claim(&self, lease: &AnyLease, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        both!(self, lease, |backend, lease| Box::pin(backend.claim(lease, want, patience)).await, else Err(self.foreign().into()))
    }

    async fn withdraw(&self, lease: &AnyLease, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        both!(self, lease, |backend, lease| Box::pin(backend.withdraw(lease, name, token)).await, else Err(self.foreign()))
    }

    async fn release(&self, lease: &AnyLease, claim: &Claim) -> Result<Released, BackendError> {
        both!(self, lease, |backend, lease| Box::pin(backend.release(lease, claim)).await, else Err(self.foreign()))
    }

    async fn gone(&self, lease: &AnyLease, claim: &Claim) -> Gone {
        both!(self, lease, |backend, lease| Box::pin(backend.gone(lease, claim)).await, else Gone::Session)
    }
}

impl Elections for AnyLocks {
    fn prioritises(&self) -> bool {
        each!(self, |backend| backend.prioritises())
    }

    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        each!(self, |backend| Box::pin(backend.election(name)).await)
    }

    async fn publish(&self, lease: &AnyLease, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        both!(self, lease, |backend, lease| Box::pin(backend.publish(lease, claim, info)).await, else Err(self.foreign()))
    }

    async fn hand_over(&self, lease: &AnyLease, claim: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        both!(self, lease, |backend, lease| Box::pin(backend.hand_over(lease, claim, to)).await, else Err(self.foreign()))
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        each!(self, |backend| Box::pin(backend.changed(name, seen)).await)
    }
}

impl Oversight for AnyLocks {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        each!(self, |backend| Box::pin(Oversight::names(backend)).await)
    }

    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        each!(self, |backend| Box::pin(Oversight::show(backend, name)).await)
    }

    async fn force(&self, name: &LockName, by: &str, why: &str) -> Result<Option<ClaimView>, BackendError> {
        each!(self, |backend| Box::pin(Oversight::force(backend, name, by, why)).await)
    }

    fn knows_who_waits(&self) -> bool {
        each!(self, |backend| backend.knows_who_waits())
    }
}

impl SharedLocks for AnyLocks {
    /// Beside the usual manner only at control and in a store.
    async fn claim_as(
        &self,
        lease: &AnyLease,
        want: &Want,
        manner: &Manner,
        patience: Duration,
    ) -> Result<Claim, ClaimError> {
        match (self, lease) {
            (Self::Control(backend), AnyLease::Control(lease)) => {
                Box::pin(backend.claim_as(lease, want, manner, patience)).await
            }
            (Self::Store(backend), AnyLease::Store(lease)) => {
                Box::pin(backend.claim_as(lease, want, manner, patience)).await
            }
            _ if *manner == Manner::default() => self.claim(lease, want, patience).await,
            _ => Err(self.unshared().into()),
        }
    }

    async fn downgrade(&self, lease: &AnyLease, claim: &Claim) -> Result<bool, BackendError> {
        match (self, lease) {
            (Self::Control(backend), AnyLease::Control(lease)) => backend.downgrade(lease, claim).await,
            (Self::Store(backend), AnyLease::Store(lease)) => backend.downgrade(lease, claim).await,
            _ => Err(self.unshared()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_give_a_token_is_refused_before_anybody_is_asked() {
        let class = |url: &str| url.parse::<LocksUrl>().map(|url| url.class());
        for url in [
            "control://127.0.0.1:7400",
            "etcd://127.0.0.1:2379",
            "zookeeper://127.0.0.1:2181/seawall",
            "postgres://user:secret@127.0.0.1/db",
            "redlock://a:1,b:2,c:3?fences=etcd://127.0.0.1:2379&max_ttl=30s",
        ] {
            assert_eq!(class(url), Ok(Fenced::NAME), "{url}");
        }
        for (url, class) in [
            ("redis://127.0.0.1:6379", LeaseOnly::NAME),
            ("postgres+advisory://127.0.0.1/db", LeaseOnly::NAME),
            ("redlock://a:1,b:2,c:3", BestEffort::NAME),
        ] {
            let url: LocksUrl = url.parse().unwrap();
            assert_eq!(url.class(), class);
            let error = url.check(Need::Fence).unwrap_err().to_string();
            assert!(error.contains(class) && error.contains("cannot give a fencing token"), "{error}");
            assert_eq!(url.check(Need::Lease).is_ok(), class == LeaseOnly::NAME);
            assert!(url.check(Need::Best).is_ok());
        }
    }

    #[test]
    fn a_text_that_is_no_address_says_what_one_looks_like() {
        for (url, says) in [
            ("127.0.0.1:7400", "no scheme"),
            ("consul://127.0.0.1", "`consul` is not known"),
            ("control://localhost", "127.0.0.1:7400"),
            ("redis://", "no host"),
            ("redlock://a,b,c?fences=embedded", "another store in each process"),
            ("redlock://a,b,c?quorum=2", "quorum=2"),
        ] {
            let error = url.parse::<LocksUrl>().unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
        let url: LocksUrl = "postgres://user:secret@127.0.0.1/db".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://***@127.0.0.1/db");
        assert!(!format!("{url:?}").contains("secret"));
    }
}
