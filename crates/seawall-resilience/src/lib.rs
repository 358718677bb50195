//! Policies that stand between a caller and a service that may be slow, failing or gone.
//!
//! Each is a file: [`breaker`], [`bulkhead`], [`retry`] (with its budget). [`Policy`] is what a configuration says of
//! one service, [`Guard`] is that policy with its state. Their order around a call is fixed:
//!
//! total timeout → retry (and budget) → breaker → bulkhead → attempt timeout → call
//!
//! so each attempt asks the breaker anew, and an attempt that waits for the bulkhead has not spent its own time yet.
//! Nothing here does I/O; the decisions take `now` as an argument, and a [`Clock`] says what it is.

pub mod adaptive;
pub mod breaker;
pub mod bulkhead;
pub mod clock;
pub mod deadline;
pub mod http;
pub mod layer;
mod name;
mod policy;
pub mod pool;
mod problems;
pub mod rate_limit;
pub mod retry;
mod sync;
pub mod timeout;
mod verdict;

pub use breaker::Breaker;
pub use bulkhead::{Bulkhead, BulkheadConfig, Priority};
pub use clock::{Clock, Tick};
pub use deadline::Deadline;
pub use name::Name;
pub use policy::{Guard, Policies, Policy, PolicyConfig};
pub use pool::{Pool, PoolConfig};
pub use problems::Problems;
pub use rate_limit::{RateLimitConfig, RateLimiter};
pub use retry::{Budget, Retry};
pub use timeout::Timeout;
pub use verdict::{CallError, Outcome, PolicyName, Reason, Rejected, Report};
