//! Coordination: one at a time, over processes and machines, and a holder that knows when it is none any more.
//!
//! - A [`Session`] is a lease that a thread keeps alive. It is lost when the holder's own clock says so, before the backend
//!   can give anything away, and without any answer from it.
//! - A [`Lock`] is a fair queue: whoever asked first has it first, and each waits for the one before alone. Its [`Guard`]
//!   carries a fencing token, which only grows, and says how long it is still valid.
//! - An [`RwLock`] is a lock that readers hold together, a [`Semaphore`] one of which several hold a part.
//! - A [`MultiLock`] is several locks, all or none.
//! - A [`OnceLatch`] is set once, and everybody gets what it was set to.
//! - At a [`Barrier`] so many begin together and end together.
//! - An [`Election`] is such a queue, too: whoever holds it leads, and its token is the term. A [`Leadership`] publishes
//!   something about itself, resigns, hands over; an [`Observer`] sees one leader after the other.
//! - A [`Backend`] does all of it somewhere: [`StoreBackend`] in a store of this process, [`Remote`] over control's HTTP API;
//!   `PgLease`, `PgAdvisory` and `ZooKeeper` in servers of other projects (features `postgres`, `zookeeper`).
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use seawall_coord::{LockName, Owner, Session, SessionConfig, StoreBackend};
//!
//! let store = Arc::new(seawall_store::Embedded::memory().unwrap());
//! let backend = StoreBackend::open(store).await.unwrap();
//! let session = Session::open(backend, SessionConfig::new(Owner::try_new("payment").unwrap())).await.unwrap();
//! let lock = session.lock(LockName::try_new("payment-7").unwrap());
//!
//! let guard = lock.acquire_within(Duration::from_secs(5)).await.unwrap();
//! println!("token {}, sure for another {:?}", guard.fence(), guard.remaining());
//! // Cancelled when the lock is lost.
//! guard.run(async { /* pay */ }).await.unwrap();
//! guard.release().await.unwrap();
//! # });
//! ```
//!
//! What no lock can do is described in `docs/coordination.md`: a holder that is paused between its last look and its write
//! writes late. The resource has to refuse tokens smaller than the largest that it has seen.

mod any;
mod backend;
mod barrier;
mod class;
mod clock;
mod deadlock;
mod election;
mod health;
mod lead;
mod lock;
mod multi;
mod name;
mod once;
mod oversight;
mod rw;
mod semaphore;
mod session;
mod sharing;

pub use any::{AnyError, AnyLease, AnyLocks, InvalidLocksUrl, LocksUrl, Need};
#[cfg(feature = "postgres")]
pub use backend::postgres::{PgAdvisory, PgLease, PgLine, PgSession};
#[cfg(feature = "redis")]
pub use backend::redis::{Redis, RedisSession, Redlock, RedlockFenced};
pub use backend::remote::Remote;
pub use backend::store::{Audit, Followed, Following, SessionEnds, SessionNews, StoreBackend, StoreLease};
pub use backend::view::{CandidateView, ClaimView, ElectionView, LockView};
#[cfg(feature = "zookeeper")]
pub use backend::zookeeper::{ZkSession, ZooKeeper};
pub use backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, MAX_INFO, Released, Terms, Want};
pub use barrier::{Barrier, BarrierError, BarrierView, Barriers, Inside, MAX_PARTIES, Party, PartyView, Step};
pub use class::{BestEffort, Class, Fence, Fenced, Fences, LeaseOnly};
pub use clock::{Boot, Clock, Machine, Manual, Task};
pub use deadlock::{Deadlock, Wait, deadlocks};
pub use election::{Election, Elections, HandOverError, HandedOver, Leadership, Observer};
pub use health::{HealthConfig, watch_health};
pub use lead::{Candidacy, lead, lead_while};
pub use lock::{Guard, Lock, WithError};
pub use multi::{MAX_LOCKS, MultiError, MultiGuard, MultiLock};
pub use name::{ElectionName, LockName, MAX_NAME, MAX_OWNER, NameError, Owner, Token, TokenError};
pub use once::{Latches, OnceError, OnceLatch};
pub use oversight::{MAX_NAMES, Oversight};
pub use rw::{DowngradeError, RwLock, WriteGuard};
pub use semaphore::Semaphore;
pub use session::{Keep, Loss, Session, SessionConfig, SessionError, Why};
pub use sharing::{Kind, MAX_DELAY, Manner, SharedLocks};

/// The guide's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/coordination.md")]
struct Guide;
