//! Seawall for Rust services.
//!
//! A service in any language can use Seawall through its sidecar alone. A Rust service that wants the pieces in its own
//! process finds them here: the policies, graceful shutdown, and the registry's client.
//!
//! ```
//! use seawall::resilience::{Breaker, Guard, Outcome, Policies};
//!
//! let policies = Policies::default();
//! let guard = Guard::new("payment".into(), policies.of("payment"), Box::new(|transition| eprintln!("{transition}")));
//! let breaker = guard.breaker.as_ref().expect("on by default");
//! let permit = Breaker::try_acquire(breaker.clone())?;
//! permit.finish(Outcome::Success);
//! # Ok::<(), seawall::resilience::Rejected>(())
//! ```

pub use seawall_discovery as discovery;
pub use seawall_drain as drain;
pub use seawall_resilience as resilience;
pub use seawall_types as types;
