//! What a backend can promise. A backend names its class as a type, so that asking for a fencing token where there can be
//! none does not compile.

use std::fmt;

use serde::{Deserialize, Serialize};

mod sealed {
    pub trait Sealed {}
}

/// One of [`Fenced`], [`LeaseOnly`], [`BestEffort`].
pub trait Class: sealed::Sealed + Send + Sync + 'static {
    /// Its name.
    const NAME: &'static str;
}

/// A class whose locks come with a [`Fence`]. Asking another for one does not compile:
///
/// ```compile_fail
/// # use seawall_coord::{AnyLocks, Guard};
/// fn token(guard: &Guard<AnyLocks>) -> seawall_coord::Fence {
///     guard.fence()   // AnyLocks may be a Redis: there is only Guard::token, an Option
/// }
/// ```
pub trait Fences: Class {}

/// At most one holder by the backend's clock, and a token that only grows, by which a resource can refuse a former holder.
#[derive(Clone, Copy, Debug)]
pub enum Fenced {}

/// At most one holder by the backend's clock, as long as the backend itself forgets nothing; no token.
#[derive(Clone, Copy, Debug)]
pub enum LeaseOnly {}

/// Most of the time one holder. For work that may be done twice and had better not be.
#[derive(Clone, Copy, Debug)]
pub enum BestEffort {}

impl sealed::Sealed for Fenced {}
impl sealed::Sealed for LeaseOnly {}
impl sealed::Sealed for BestEffort {}

impl Class for Fenced {
    const NAME: &'static str = "fenced";
}

impl Class for LeaseOnly {
    const NAME: &'static str = "lease-only";
}

impl Class for BestEffort {
    const NAME: &'static str = "best-effort";
}

impl Fences for Fenced {}

/// A fencing token: a later holder of the same lock has a larger one, whatever became of the holders before. Send it with
/// every write, and let the resource refuse what is smaller than the largest that it has seen. Stays below 2^53, so that
/// JSON carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(u64);

impl Fence {
    /// The token as it came from a backend.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
