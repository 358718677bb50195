//! Seawall for Rust services.
//!
//! A service in any language can use Seawall through its sidecar alone. A Rust service that wants the pieces in its own
//! process finds them here: [`Client`] calls services by name, as an HTTP client does, with the registry, the balancing
//! and the policies inside it; below it are the policies themselves, graceful shutdown, and the registry's client.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = seawall::Client::builder().control(["127.0.0.1:7400"]).build().await?;
//! let charge: serde_json::Value = client.get("http://payment/charges/7").send().await?.json().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A policy by itself, for what is not HTTP:
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

pub mod client;

pub use client::Client;
pub use seawall_discovery as discovery;
pub use seawall_drain as drain;
pub use seawall_resilience as resilience;
pub use seawall_types as types;
