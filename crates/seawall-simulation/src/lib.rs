//! A fleet of simulated processes, each with a clock of its own, around one store behind a bad network; in virtual time, and all
//! of it decided by one seed.
//!
//! What runs in it is the real code: sessions, locks and elections of `seawall-coord`, the engine of `seawall-store` without its
//! thread and its disk. What is simulated is what surrounds them: [`World`] schedules every task in one order and lets time
//! pass when none can run; a [`Process`] is paused, killed, and its clock runs fast, slow, or leaps; a [`Net`] delays, loses,
//! repeats requests and does them too late; a [`Server`] is paused and restarted, and its disk fails; [`torment`] does
//! all of that at random. What happened is recorded for the checkers of `seawall-histories`.
//!
//! The same seed gives the same history, on any machine, as long as the code is the same. Two things come from elsewhere and
//! are kept from deciding anything: the tokens of claims (no key is compared with another), and the wall clock (its readings
//! are shown to people only).

mod nemesis;
mod net;
mod register;
mod server;
mod world;

pub use nemesis::{Cast, Fault, torment};
pub use net::{Link, Net, Weather};
pub use register::{Register, Registers};
pub use server::Server;
pub use world::{Process, World};

use std::time::Duration;

/// From `from` to `to` milliseconds, both included.
pub fn millis(from: u64, to: u64) -> Duration {
    Duration::from_millis(fastrand::u64(from..=to))
}

/// True so often.
pub fn chance(share: f64) -> bool {
    fastrand::f64() < share
}
