//! What an operator sees of locks, and does to them, whatever keeps them.

use std::future::Future;

use crate::backend::view::{ClaimView, LockView};
use crate::backend::{Backend, BackendError};
use crate::name::LockName;

/// A backend whose locks an operator can look at, and take away. All calls are bounded in time by the backend itself.
pub trait Oversight: Backend {
    /// Every lock that somebody holds, and every election that somebody leads ([`LockName::election`]), by name; at most
    /// [`MAX_NAMES`] of each kind. [`BackendError::Refused`] where that cannot be found out.
    fn names(&self) -> impl Future<Output = Result<Vec<LockName>, BackendError>> + Send;

    /// A lock with its holder and its queue; a lock that nobody wants has neither.
    fn show(&self, name: &LockName) -> impl Future<Output = Result<LockView, BackendError>> + Send;

    /// Takes the lock away from its holder, whose guard is lost; its session and its other locks stay. The next has it at once,
    /// while the former holder may still work. `None` when nobody held it. Where the backend keeps records, who did it and why
    /// is recorded. After [`BackendError::Unknown`] look at the lock before trying again: another may hold it by now.
    fn force(
        &self,
        name: &LockName,
        by: &str,
        why: &str,
    ) -> impl Future<Output = Result<Option<ClaimView>, BackendError>> + Send;

    /// Whether it is known who waits, so that an empty queue means that nobody does.
    fn knows_who_waits(&self) -> bool {
        true
    }
}

/// The most names of a kind that are listed.
pub const MAX_NAMES: usize = 10_000;
