//! Seawall for Rust services.
//!
//! A service in any language can use Seawall through its sidecar alone. A Rust service that wants the pieces in its own
//! process finds them here: [`Client`] calls services by name, as an HTTP client does, with the registry, the balancing
//! and the policies inside it; below it are the policies themselves, graceful shutdown, and the registry's client. By feature:
//! locks and elections (`coord`), resources that refuse their former holders (`fenced`), and jobs that a leader runs (`schedule`).
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
//! use seawall::resilience::{Policies, Registry};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let registry = Registry::new(Policies::default()).expect("the defaults are in order");
//! let payment = registry.guard("payment");
//! let charged = payment.call(|_attempt| async { Ok::<_, std::io::Error>("charged") }).await;
//! assert_eq!(charged.unwrap(), "charged");
//! # });
//! ```

pub mod client;

pub use client::Client;
#[cfg(feature = "coord")]
pub use seawall_coord as coord;
pub use seawall_discovery as discovery;
pub use seawall_drain as drain;
#[cfg(feature = "fenced")]
pub use seawall_fenced as fenced;
pub use seawall_resilience as resilience;
#[cfg(feature = "schedule")]
pub use seawall_schedule as schedule;
#[cfg(feature = "coord")]
pub use seawall_store as store;
pub use seawall_types as types;
