//! Sagas: business transactions over many services that always end, done or undone.
//! (Garcia-Molina and Salem, "Sagas", SIGMOD 1987.)
//!
//! [`plan`] is what a file says; [`engine`] decides, purely, what happens next; [`log`] makes it durable; [`runner`]
//! makes the calls. The rules: nothing is called before the intention is durable; every call carries
//! `Idempotency-Key: <saga>/<step>`, and repeats keep the key; a step whose outcome is unknown is undone too; undo runs
//! in reverse and repeats until it succeeds or is parked for an operator.

pub mod engine;
pub mod log;
pub mod plan;
pub mod runner;
mod view;

pub use plan::{Plan, PlanConfig, PlanError};
pub use runner::{Runner, RunnerConfig, StartError, Started};
pub use view::{SagaView, StepView};
