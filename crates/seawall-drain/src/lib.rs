//! Graceful shutdown: one trigger, any number of watchers, a deadline, and an answer to "what are we waiting for?".
//!
//! A [`Trigger`] belongs to whoever decides to stop; a [`Drain`] goes to every task that must finish something first.
//! A task holds a [`Guard`] while it has work. [`Trigger::drain`] asks everybody to stop, waits until the last guard
//! is gone or the deadline has passed, and says what was left.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! use std::time::Duration;
//!
//! let (trigger, drain) = seawall_drain::channel();
//! let guard = drain.guard("upload");
//! tokio::spawn(async move {
//!     drain.signaled().await; // stop taking new work
//!     drop(guard);            // and say when the old is done
//! });
//! let report = trigger.drain(Duration::from_secs(5)).await;
//! assert!(report.is_clean());
//! # });
//! ```
//!
//! A guard that is taken after the drain has begun counts like any other; [`Kind::try_guard`] refuses instead. One taken after
//! the drain has ended is too late.
//!
//! The shape follows linkerd's `drain` and hyper-util's `GracefulShutdown`; what is added is that guards have names and ages.

mod drain;
mod report;

pub use drain::{Drain, Guard, Kind, Trigger, channel};
pub use report::{Held, Report};
