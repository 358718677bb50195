//! Resources that refuse the writes of former holders of a lock.
//!
//! No lock can keep a holder from writing late: it may be paused after its last look at the lock and before its write. But
//! what it writes to can refuse it, if it keeps the largest fencing token that it has seen. These do:
//!
//! - [`SqliteFence`] and [`PgFence`] (features `sqlite` and `postgres`) check a token in the transaction that writes.
//! - [`FencedFile`] replaces a file as a whole.
//! - [`FenceToken`] (feature `axum`) is an extractor for HTTP handlers; [`header`] is the client's side.
//!
//! All of them accept the token that they saw last again, for a holder may write as often as it likes, refuse a smaller one as
//! [`Stale`], and remember the largest over restarts. A resource is named by a text, usually the name of the lock. Two locks
//! must not guard one resource: their tokens have nothing to do with each other.
//!
//! What is not here: the lock. See `seawall_coord`.

mod file;
pub mod header;
#[cfg(feature = "axum")]
mod http;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use file::{FencedFile, FileError};
#[cfg(feature = "axum")]
pub use http::{FenceRejection, FenceToken, Fences, FencesError, Resource};
#[cfg(feature = "postgres")]
pub use postgres::PgFence;
pub use seawall_coord::Fence;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteFence;

/// The longest name of a resource, in bytes.
pub const MAX_RESOURCE: usize = 512;
/// The largest token. What is larger comes from no lock, and would shut everybody out for good.
pub const MAX_FENCE: Fence = Fence::new((1 << 53) - 1);

/// A write that was refused, because a later holder of the lock has been here before. Nothing has changed. The holder that
/// gets this has lost its lock, whether it has noticed or not: it has to stop, and to acquire the lock anew before it writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "stale: `{resource}` was written with the token {given} after it had seen {seen}, so the lock has gone to somebody else; \
     stop, and acquire it anew"
)]
pub struct Stale {
    /// What was to be written.
    pub resource: String,
    /// The largest token that it has seen.
    pub seen: Fence,
    /// The token that it was given.
    pub given: Fence,
}

/// A write that was not allowed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError<E: std::error::Error + 'static> {
    /// The lock has had a later holder.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// What no resource or token can be. Nothing was asked or changed.
    #[error("{0}")]
    Invalid(String),
    /// The resource itself. What that means for the write is said by the error.
    #[error("`{resource}` could not be checked or written: {source}")]
    Failed {
        /// Which.
        resource: String,
        /// Why.
        source: E,
    },
}

impl<E: std::error::Error + 'static> CheckError<E> {
    /// What was refused, if it was.
    pub fn stale(&self) -> Option<&Stale> {
        match self {
            Self::Stale(stale) => Some(stale),
            _ => None,
        }
    }

    fn failed(resource: &str) -> impl Fn(E) -> Self + Copy {
        move |source| Self::Failed { resource: resource.to_owned(), source }
    }
}

/// Why this can be no resource or token.
fn valid(resource: &str, fence: Fence) -> Result<(), String> {
    if resource.is_empty() || resource.len() > MAX_RESOURCE || resource.contains('\0') {
        let length = resource.len();
        return Err(format!("a resource's name of {length} bytes: 1 to {MAX_RESOURCE} without NUL are allowed"));
    }
    if fence > MAX_FENCE {
        return Err(format!("{fence} is no fencing token: they are at most {MAX_FENCE}"));
    }
    Ok(())
}

/// The same for databases, whose integers have a sign.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
fn number<E: std::error::Error>(resource: &str, fence: Fence) -> Result<i64, CheckError<E>> {
    valid(resource, fence).map_err(CheckError::Invalid)?;
    Ok(i64::try_from(fence.get()).expect("at most 53 bits"))
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
fn stale(resource: &str, seen: i64, given: Fence) -> Stale {
    Stale { resource: resource.to_owned(), seen: Fence::new(u64::try_from(seen).unwrap_or(0)), given }
}

/// The guide's examples compile, and those that need no server run.
#[cfg(all(doctest, feature = "sqlite", feature = "postgres", feature = "axum"))]
#[doc = include_str!("../../../docs/fenced.md")]
struct Guide;
