//! The client side of the registry.
//!
//! [`Control`] speaks the control node's HTTP API. [`Registration`] keeps one instance registered: registers it, beats,
//! registers again when the registry has forgotten it. [`Subscriber`] follows the fleet: it hands every new snapshot to
//! the process, acknowledges its revision, keeps the last good one on disk, and goes on with it while control is away.

mod control;
mod events;
mod registration;
mod subscriber;
mod traffic;

pub use control::{Applied, Control, ControlError};
pub use events::{Event, Events};
pub use registration::Registration;
pub use subscriber::{Subscriber, SubscriberConfig};
pub use traffic::Follower;
