//! Policies that stand between a caller and a service that may be slow, failing or gone.
//!
//! Each is a file: [`breaker`], [`bulkhead`], [`retry`], and so on. [`Policy`] is what a configuration says of one
//! service, [`Guard`] is that policy with its state, and a [`Registry`] has the guards of all services. Their order around
//! a call is fixed, outermost first:
//!
//! fallback → total timeout → rate limit → retry (and budget) → hedge → throttle → breaker → bulkhead → attempt timeout
//! → chaos → call
//!
//! so each attempt asks the breaker anew, and an attempt that waits for the bulkhead has not spent its own time yet. For
//! another order there is a [`layer`] of each. Nothing here does I/O; the decisions take `now` as an argument, and a
//! [`Clock`] says what it is.
//!
//! ```
//! use seawall_resilience::{Policies, Registry};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let policies: Policies = serde_json::from_str(r#"{ "payment": { "attempt_timeout": "1s" } }"#)?;
//! let registry = Registry::new(policies)?;
//! let payment = registry.guard("payment");
//! let charged = payment.call(|_attempt| async { Ok::<_, std::io::Error>("charged") }).await;
//! assert_eq!(charged.unwrap(), "charged");
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

pub mod adaptive;
pub mod breaker;
pub mod bulkhead;
pub mod cache;
pub mod chain;
pub mod chaos;
pub mod clock;
pub mod coalesce;
pub mod deadline;
mod events;
pub mod fallback;
mod guard;
pub mod hedge;
pub mod http;
pub mod layer;
mod name;
mod policy;
pub mod pool;
mod problems;
pub mod rate_limit;
mod registry;
pub mod retry;
mod sync;
pub mod throttle;
pub mod timeout;
mod verdict;

pub use breaker::Breaker;
pub use bulkhead::{Bulkhead, Priority};
pub use chain::Chain;
pub use chaos::Chaos;
pub use clock::{Clock, Tick};
pub use coalesce::Coalesce;
pub use deadline::Deadline;
pub use events::{Event, Events, Observer};
pub use fallback::Fallback;
pub use guard::{Guard, Permits, Switch, accepted, ended};
pub use hedge::Hedge;
pub use name::Name;
pub use policy::{DEFAULT, InvalidPolicies, Policies, Policy, PolicyConfig};
pub use pool::Pool;
pub use problems::Problems;
pub use rate_limit::RateLimiter;
pub use registry::Registry;
pub use retry::{Budget, Retrier, Retry};
pub use throttle::Throttle;
pub use timeout::Timeout;
pub use verdict::{CallError, Outcome, PolicyName, Reason, Rejected, Report};

/// The guide's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/resilience.md")]
struct GuideExamples;
