//! Elections among the members themselves, without a coordinator: for teaching, and for fleets that have none.
//!
//! - [`Bully`]: whoever hears nothing from those above it leads (Garcia-Molina, 1982).
//! - [`Ring`]: a token goes round and comes back with the largest member's name (Chang and Roberts, 1979).
//! - [`Runner`] runs either among the members of a service that the registry knows, over HTTP.
//! - [`sim`] runs either in a simulated network, seeded, and shows when there are two leaders.
//!
//! **Both elect two leaders** when the network is cut, is slow, or a leader is paused; `docs/elections.md` shows how. No
//! algorithm without a majority or a store can do better. So their class is [`Class`], best effort: there is no term and
//! no fencing token, and work done by such a leader must bear being done twice. What must not is for
//! [`seawall_coord::Election`].
//!
//! ```compile_fail
//! # fn example(standing: seawall_peers::Standing) {
//! let term = standing.fence();    // there is none
//! # }
//! ```

mod algorithm;
mod bully;
mod ring;
mod runner;
pub mod sim;

pub use algorithm::{Algorithm, Effect, Event, Peer, Timing, TimingError};
pub use bully::{Bully, BullyMessage};
pub use ring::{Ring, RingMessage};
pub use runner::{Membership, Runner, Standing};

/// The guide's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/elections.md")]
struct Guide;

/// What these elections promise: most of the time one leader.
pub type Class = seawall_coord::BestEffort;
