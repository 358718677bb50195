//! Graceful shutdown of a tokio service: signals, readiness, phases with deadlines, and an answer to "what are we waiting
//! for?".
//!
//! Two layers, of which the lower serves alone:
//!
//! - [`channel`] makes a [`Trigger`] and a [`Drain`]. The trigger belongs to whoever decides to stop; the drain goes to
//!   every task that must finish something first. A task holds a [`Guard`] while it has work. [`Trigger::drain`] asks
//!   everybody to stop, waits until the last guard is gone or the deadline has passed, and says what was left.
//! - [`Shutdown`] is a plan of many such drains, its phases, run in order: [`Readiness`] first turns to draining and stays
//!   so for the lameduck pause while everything is still served; then each phase has its own deadline, and all of them
//!   have one together. With the feature `signal`, `Shutdown::run_on` begins at SIGTERM or SIGINT and stops at once at
//!   a second.
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
//! The whole plan:
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! use std::time::Duration;
//! use seawall_drain::Shutdown;
//!
//! let mut shutdown = Shutdown::new()
//!     .lameduck(Duration::from_millis(10))
//!     .phase("stop accepting", Duration::from_secs(5))
//!     .phase("finish requests", Duration::from_secs(30))
//!     .phase("close the database", Duration::from_secs(5))
//!     .deadline(Duration::from_secs(35));
//! let accepting = shutdown.drain("stop accepting");       // the listener awaits accepting.signaled()
//! let requests = shutdown.drain("finish requests").kind("request"); // each request holds requests.guard()
//! shutdown.hook("close the database", "pool", async { /* pool.close().await */ });
//! shutdown.readiness().ready();
//!
//! // Or shutdown.run_on(signals), to begin at SIGTERM.
//! let outcome = shutdown.run(std::future::pending()).await;
//! assert_eq!(outcome.exit_code(), 0);
//! # drop((accepting, requests)); });
//! ```
//!
//! # What happens when
//!
//! - **A guard is taken after the drain has begun**: it counts like any other, since work that was accepted in the last
//!   moment has to be finished too. [`Kind::try_guard`] refuses instead. A guard taken after the drain has ended is
//!   too late: nobody waits for it.
//! - **The trigger is dropped** without a drain: everybody is signaled, so that nobody waits for ever, and nothing is
//!   waited for. The same holds for a [`Shutdown`] that is dropped, or whose `run` is cancelled: readiness turns to
//!   draining, every phase is signaled, running hooks are cancelled, the others never start.
//! - **A task with a guard panics**: its guard is dropped like everything that it owns.
//! - **A guard is leaked** (`std::mem::forget`): its drain ends at its deadline and names it.
//! - **The deadline passes**: nothing is killed. The report says what was left, and it goes on for as long as the process
//!   lives.
//!
//! What it is not: it starts and supervises no tasks, and it closes no sockets. Who serves decides how to stop.
//!
//! The shape of the lower layer follows linkerd's `drain` and hyper-util's `GracefulShutdown`; what is added is that guards
//! have names and ages.

mod drain;
mod outcome;
mod readiness;
mod report;
mod shutdown;
#[cfg(feature = "signal")]
mod signals;
mod stop;
mod waiting;

pub use drain::{Drain, Guard, Kind, Trigger, channel};
pub use outcome::{End, Failure, Outcome, PhaseOutcome};
pub use readiness::{Readiness, State};
pub use report::{Held, Report};
pub use shutdown::{Handle, Shutdown};
#[cfg(feature = "signal")]
pub use signals::Signals;
pub use stop::Stop;
pub use waiting::{PhaseHeld, Stage, Waiting};

/// The guide's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/shutdown.md")]
struct Guide;
