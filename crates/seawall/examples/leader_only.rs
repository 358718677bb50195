//! Hourly reports and a nightly purge, by the leader only: every copy of the service has the same schedule, one of them runs it.
//!
//! Nobody waits for the night here: the runs are ordered by hand, which goes the same way as those of the schedule.
//!
//! ```console
//! $ cargo run -p seawall --example leader_only --features schedule
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use seawall::coord::{Fence, Owner, StoreBackend};
use seawall::drain::Trigger;
use seawall::schedule::{JobConfig, Jobs, Outcome, Run, Scheduler, SchedulerConfig, State};
use seawall::store::{Embedded, Store};

/// How much of this machine's slowness the example bears.
const SOON: Duration = Duration::from_secs(30);

/// What was done: by whom, which job, under which key, in which term.
type Done = Arc<Mutex<Vec<(String, String, String, Fence)>>>;

/// A copy of the service. This is the part to copy.
async fn copy(name: &str, store: Arc<dyn Store>, done: Done) -> anyhow::Result<Trigger> {
    let jobs = Jobs::new(store.clone());
    // Every copy says the same; whoever says it first adds them.
    jobs.put(&"report".parse()?, JobConfig::new("0 * * * *")).await?;
    jobs.put(&"purge".parse()?, JobConfig::new("0 3 * * *")).await?;
    let backend = StoreBackend::open(store).await?;
    let scheduler = Scheduler::new(jobs, backend, SchedulerConfig::new(Owner::try_new(name)?));
    let (trigger, drain) = seawall::drain::channel();
    let name = name.to_owned();
    let work = move |run: Run| {
        let (name, done) = (name.clone(), done.clone());
        async move {
            match run.job.as_str() {
                // Write the report under `run.key()`, so that a repetition replaces it, and purge with `run.fence`, so that
                // whoever has been the leader deletes nothing any more.
                "report" | "purge" => {
                    let entry = (name, run.job.to_string(), run.key(), run.fence);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                    Outcome::Done
                }
                other => Outcome::Failed(format!("this copy knows no job `{other}`")),
            }
        }
    };
    tokio::spawn(async move {
        if let Err(error) = scheduler.run(drain, work).await {
            eprintln!("no session to be had: {error}");
        }
    });
    Ok(trigger)
}

/// Orders a run and says who has done it.
async fn order(jobs: &Jobs, job: &str) -> anyhow::Result<String> {
    let job = job.parse()?;
    let id = jobs.order(&job).await?;
    let run = jobs.ended(&job, id, SOON).await?;
    ensure!(run.record.state == State::Done && run.record.starts == 1, "{run:?}");
    Ok(run.record.leader)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    // Processes share etcd, or ask a control node to run their jobs. These are tasks, and share a store.
    let store: Arc<dyn Store> = Arc::new(Embedded::memory()?);
    let done = Done::default();
    let first = copy("web-1", store.clone(), done.clone()).await?;
    let jobs = Jobs::new(store.clone());
    let leader = order(&jobs, "report").await?;
    let _second = copy("web-2", store.clone(), done.clone()).await?;
    ensure!(leader == "web-1" && order(&jobs, "report").await? == "web-1", "led by {leader}");
    let next = jobs.get(&"report".parse()?).await?.next;
    println!("hourly: web-1 leads and writes the reports; the next of the schedule is due at {next:?}");
    ensure!(order(&jobs, "purge").await? == "web-1", "the leader purges");
    println!("nightly: web-1 purges");

    // It is stopped, finishes what is under way, and resigns.
    first.drain(SOON).await;
    ensure!(order(&jobs, "purge").await? == "web-2", "the next leader purges");
    println!("handed over: web-2 leads, and purges the next time");

    let done = done.lock().unwrap_or_else(PoisonError::into_inner);
    let mut keys: Vec<_> = done.iter().map(|(_, _, key, _)| key).collect();
    keys.dedup();
    ensure!(done.len() == 4 && keys.len() == 4, "{done:?}");
    ensure!(done.windows(2).all(|pair| pair[0].3 <= pair[1].3) && done[2].3 < done[3].3, "terms only grow: {done:?}");
    println!("once: four runs, each done by one of the two, the later leader's under a larger token");
    Ok(())
}
