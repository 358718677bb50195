//! Work that is done once, over processes and machines: schedules that a leader runs, and queues of jobs.
//!
//! - [`When`] says when: a cron expression in a time zone, every so often, once. [`due`] decides what is to be started now.
//!   Both are pure.
//! - [`Jobs`] are kept in a store, with the history of their runs.
//! - A [`Scheduler`] stands for election and runs what is due while it leads. Each run is claimed in one transaction, under the
//!   condition that nobody has claimed it and that this leader still leads: however many schedulers there are, and however
//!   they die, a run is started once. What becomes of one whose leader died is the job's choice, [`OnUnknown`].
//! - [`Queues`] hold jobs that are put once, claimed by a lease, put back when the claimant dies, and parked when they have failed
//!   too often.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use std::sync::Arc;
//! use seawall_coord::{Owner, StoreBackend};
//! use seawall_schedule::{JobConfig, Jobs, Outcome, Scheduler, SchedulerConfig};
//!
//! let store: Arc<dyn seawall_store::Store> = Arc::new(seawall_store::Embedded::memory().unwrap());
//! let jobs = Jobs::new(store.clone());
//! jobs.put(&"purge".parse().unwrap(), JobConfig::new("0 3 * * *")).await.unwrap();
//! jobs.put(&"tick".parse().unwrap(), JobConfig::new("every 100ms")).await.unwrap();
//!
//! let backend = StoreBackend::open(store).await.unwrap();
//! let scheduler = Scheduler::new(jobs, backend, SchedulerConfig::new(Owner::try_new("web-1").unwrap()));
//! let (trigger, drain) = seawall_drain::channel();
//! let ticks = Arc::new(tokio::sync::Semaphore::new(0));
//! let counter = ticks.clone();
//! let running = tokio::spawn(scheduler.run(drain, move |run| {
//!     let counter = counter.clone();
//!     async move {
//!         match run.job.as_str() {
//!             "tick" => counter.add_permits(1),
//!             other => println!("{other} for {}, key {}, fence {}", run.id.slot, run.key(), run.fence),
//!         }
//!         Outcome::Done
//!     }
//! }));
//! ticks.acquire_many(3).await.unwrap().forget();
//! trigger.drain(std::time::Duration::from_secs(10)).await;
//! running.await.unwrap().unwrap();
//! # });
//! ```

mod commit;
mod job;
mod jobs;
mod keys;
mod queue;
mod run;
mod scheduler;
mod stats;
mod table;
mod when;

pub use job::{CatchUp, Due, GRACE, Job, JobConfig, JobError, MAX_CATCH_UP, OnUnknown, Overlap, due};
pub use jobs::{HISTORY, JobView, Jobs, JobsError, MAX_JOBS};
pub use keys::Source;
pub use queue::{
    ATTEMPTS, ClaimId, Claimed, Item, ItemId, ItemView, MAX_DONE, MAX_PENDING, NewItem, Place, QueueError, Queues,
    Retry,
};
pub use run::{Outcome, Record, Run, RunId, RunView, State};
pub use scheduler::{ELECTION, Scheduler, SchedulerConfig};
pub use stats::Stats;
pub use when::{Cron, When, WhenError};

/// The guide's examples compile and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/schedule.md")]
#[doc = include_str!("../../../docs/queues.md")]
struct Guide;
