//! Work that is done once, over processes and machines: schedules that a leader runs.
//!
//! [`When`] says when, [`due`] decides what is to be started now; both are pure.

mod job;
mod when;

pub use job::{CatchUp, Due, GRACE, Job, JobConfig, JobError, MAX_CATCH_UP, OnUnknown, Overlap, due};
pub use when::{Cron, When, WhenError};
