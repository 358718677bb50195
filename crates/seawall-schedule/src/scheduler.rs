//! Runs jobs while it leads: performs what the [`Table`] decides.
//!
//! Every record is written under the condition that this leader's own claim still stands at the head of the election's queue in
//! the same store. So a leader that has lost, and does not know it yet, writes nothing.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use seawall_coord::{Candidacy, ElectionName, Owner, SessionConfig, SessionError, StoreBackend, lead};
use seawall_drain::Drain;
use seawall_store::{Compare, Cursor, Keys, Op, Txn, WatchError};
use seawall_types::{Revision, ServiceName};
use tokio::sync::{oneshot, watch};

use crate::commit::certainly;
use crate::job::OnUnknown;
use crate::jobs::{CALL, Jobs, now};
use crate::keys;
use crate::run::{Outcome, Record, Run, RunId, State};
use crate::stats::Stats;
use crate::table::{Claim, Leader, Step, Table};

/// The name of the election.
pub const ELECTION: &str = "seawall-cron";
/// How long at most until it is looked at the clock again, which may have been set.
const LOOK: Duration = Duration::from_secs(1);
/// By how much the clocks of two leaders may differ before it is told.
const SKEW: Duration = Duration::from_secs(30);
/// The pauses between two attempts of a run.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How a scheduler stands for its election.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Shown to those who ask who leads.
    pub owner: Owner,
    /// How long others wait after this process has died. Default 5 s.
    pub ttl: Duration,
}

impl SchedulerConfig {
    /// The defaults.
    pub fn new(owner: Owner) -> Self {
        Self { owner, ttl: Duration::from_secs(5) }
    }
}

/// Runs the jobs of a store, whenever it leads.
pub struct Scheduler {
    jobs: Jobs,
    backend: StoreBackend,
    config: SchedulerConfig,
    stats: Arc<Stats>,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Scheduler {
    /// A scheduler of the jobs in a store, with the backend of the same store.
    pub fn new(jobs: Jobs, backend: StoreBackend, config: SchedulerConfig) -> Self {
        Self { jobs, backend, config, stats: Arc::default() }
    }

    /// What it has counted.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Stands for election, and runs what is due while it leads, until `drain` signals; then it starts nothing new, finishes
    /// what is under way, and resigns. `work` does one attempt of one run, and is dropped where it stands when the leadership
    /// is lost, or the run's deadline is over. All of them share one task: what blocks belongs on a thread of its own. Cancel
    /// safe: what was under way is unknown to the next leader.
    ///
    /// # Errors
    /// [`SessionError`] when there is no session to be had, ever.
    pub async fn run<F, W>(self, drain: Drain, work: F) -> Result<(), SessionError>
    where
        F: Fn(Run) -> W + Send + Sync + 'static,
        W: Future<Output = Outcome> + Send + 'static,
    {
        let Self { jobs, backend, config, stats } = self;
        let session = SessionConfig::new(config.owner.clone()).ttl(config.ttl);
        let name = ElectionName::try_new(ELECTION).expect("a valid name");
        let candidacy = Candidacy::new(name, session);
        let work: Arc<Work> = Arc::new(move |run| Box::pin(work(run)));
        let leading = watch::Sender::new(false);
        let mut leads = leading.subscribe();
        let over = drain.clone();
        let standing = lead(backend, candidacy, |leadership| {
            let leading = Leading::begin(leading.clone(), stats.clone());
            let leader = Leader { term: leadership.term(), name: config.owner.to_string() };
            let term = Term {
                jobs: jobs.clone(),
                leadership: leadership.guard().condition(),
                table: Table::new(leader.clone()),
                leader,
                stats: stats.clone(),
                drain: drain.clone(),
                work: work.clone(),
                doing: FuturesUnordered::new(),
                cancels: HashMap::new(),
            };
            async move {
                let _leading = leading;
                term.run().await
            }
        });
        tokio::select! {
            done = standing => done,
            () = async {
                over.signaled().await;
                // Whoever leads ends by itself; the others need not stand any more.
                let _ = leads.wait_for(|leads| !leads).await;
            } => Ok(()),
        }
    }
}

type Work = dyn Fn(Run) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync;
type Doing = Pin<Box<dyn Future<Output = Done> + Send>>;

/// Says that it leads for as long as it is there.
struct Leading(watch::Sender<bool>, Arc<Stats>);

impl Leading {
    fn begin(leading: watch::Sender<bool>, stats: Arc<Stats>) -> Self {
        leading.send_replace(true);
        stats.leads(true);
        Self(leading, stats)
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.send_replace(false);
        self.1.leads(false);
    }
}

/// What has come of something that was under way.
enum Done {
    Claimed(Box<Claim>, Option<Revision>, oneshot::Receiver<()>),
    Ended(ServiceName, RunId, Record, Option<Revision>),
}

/// One leadership.
struct Term {
    jobs: Jobs,
    leadership: Compare,
    leader: Leader,
    table: Table,
    stats: Arc<Stats>,
    drain: Drain,
    work: Arc<Work>,
    doing: FuturesUnordered<Doing>,
    cancels: HashMap<(ServiceName, RunId), oneshot::Sender<()>>,
}

impl Term {
    async fn run(mut self) -> ControlFlow<()> {
        tracing::info!(term = %self.leader.term, "runs the scheduled jobs");
        let mut cursor = self.load().await;
        self.tell_skew();
        let drain = self.drain.clone();
        loop {
            let draining = drain.is_signaled();
            if draining && self.doing.is_empty() {
                tracing::info!(term = %self.leader.term, "hands the scheduled jobs over");
                return ControlFlow::Break(());
            }
            if !draining {
                for step in self.table.steps(now()) {
                    self.perform(step);
                }
            }
            let sleep = self.sleep();
            tokio::select! {
                Some(done) = self.doing.next() => {
                    if !self.settle(done) {
                        // Not at once: it may be that this leads no more, and is about to learn it.
                        tokio::time::sleep(FIRST_PAUSE.mul_f64(fastrand::f64())).await;
                        cursor = self.load().await;
                    }
                }
                events = cursor.next() => match events {
                    Ok(events) => events.iter().for_each(|event| self.table.apply(event)),
                    Err(error) => {
                        if !matches!(error, WatchError::Compacted { .. }) {
                            tracing::warn!(%error, "cannot follow the jobs; trying again");
                            tokio::time::sleep(LOOK).await;
                        }
                        cursor = self.load().await;
                    }
                },
                () = tokio::time::sleep(sleep) => {}
                () = drain.signaled(), if !draining => {}
            }
        }
    }

    fn sleep(&self) -> Duration {
        let now = now();
        let next = self.table.wake(now).map_or(i64::MAX, Timestamp::as_millisecond);
        let millis = u64::try_from(next.saturating_sub(now.as_millisecond())).unwrap_or(0);
        Duration::from_millis(millis).min(LOOK)
    }

    /// Reads everything, and follows what changes from there on. Tries until it can.
    async fn load(&mut self) -> Cursor {
        let mut pause = Duration::from_millis(20);
        loop {
            let store = &self.jobs.store;
            let read = tokio::time::timeout(CALL, async {
                let range = store.range(keys::ALL).await.map_err(|error| error.to_string())?;
                let cursor = store.watch(Keys::prefix(keys::ALL), range.revision.next()).await;
                Ok((range.entries, cursor.map_err(|error| error.to_string())?))
            });
            let why = match read.await {
                Ok(Ok((entries, cursor))) => {
                    self.table.load(&entries);
                    return cursor;
                }
                Ok(Err(error)) => error,
                Err(_) => format!("no answer within {CALL:?}"),
            };
            tracing::warn!(why, "cannot read the jobs; trying again");
            tokio::time::sleep(pause.mul_f64(0.1 + 0.9 * fastrand::f64())).await;
            pause = (pause * 2).min(LOOK);
        }
    }

    fn tell_skew(&self) {
        let ahead = self.table.latest_start().map_or(0, |start| start.as_millisecond() - now().as_millisecond());
        if u128::try_from(ahead).is_ok_and(|ahead| ahead > SKEW.as_millis()) {
            tracing::warn!(
                ahead_ms = ahead,
                "the clock of a former leader was ahead of this one's: jobs wait until this clock has come there"
            );
        }
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::Claim(claim) => {
                let (cancel, cancelled) = oneshot::channel();
                self.cancels.insert((claim.job.clone(), claim.id), cancel);
                let (store, leadership) = (self.jobs.store.clone(), self.leadership.clone());
                self.doing.push(Box::pin(async move {
                    let compare = claim.compare.iter().cloned().chain([leadership]).collect();
                    let txn = Txn { compare, then: claim.then.clone(), ..Txn::default() };
                    let key = keys::run(&claim.job, claim.id);
                    let revision = certainly(&*store, txn, &key, &keys::json(&claim.record)).await;
                    Done::Claimed(claim, revision, cancelled)
                }));
            }
            Step::Cancel(job, id) => {
                if let Some(cancel) = self.cancels.remove(&(job, id)) {
                    // Whoever does not hear it has ended already.
                    let _ = cancel.send(());
                }
            }
            Step::Skipped(job, count) => {
                tracing::warn!(%job, count, "times have passed and are not run");
                self.stats.skipped(&job, count);
            }
            Step::Alarm(job, after) => {
                tracing::error!(%job, "ALARM: no run has succeeded for {after}");
                self.stats.missed(&job);
            }
        }
    }

    /// Takes note of what has come of something; false when the table has to be loaded anew.
    fn settle(&mut self, done: Done) -> bool {
        match done {
            Done::Claimed(claim, None, _) => {
                self.cancels.remove(&(claim.job.clone(), claim.id));
                self.table.not_claimed(&claim);
                false
            }
            Done::Claimed(claim, Some(revision), cancelled) => {
                self.table.claimed(&claim, revision);
                if claim.record.state.is_final() {
                    self.cancels.remove(&(claim.job.clone(), claim.id));
                    self.tell(&claim.job, claim.id, &claim.record);
                } else {
                    let work = attempts(self.work.clone(), self.leader.clone(), (*claim).clone());
                    self.doing.push(Box::pin(carry_out(
                        self.jobs.clone(),
                        claim,
                        revision,
                        work,
                        cancelled,
                        self.drain.guard("cron run"),
                    )));
                }
                true
            }
            Done::Ended(job, id, record, revision) => {
                self.cancels.remove(&(job.clone(), id));
                self.tell(&job, id, &record);
                self.table.ended(&job, id, revision.map(|revision| (record, revision)));
                // Removed with its job in the meantime, or another leader has taken it up.
                revision.is_some()
            }
        }
    }

    fn tell(&self, job: &ServiceName, run: RunId, record: &Record) {
        self.stats.run(job, record.state);
        match (record.state, &record.error) {
            (State::Done, _) => tracing::debug!(%job, %run, "done"),
            (state, error) => {
                let error = error.as_deref().unwrap_or("");
                tracing::warn!(%job, %run, "{}: {error}", state.as_str());
            }
        }
    }
}

/// Does the work and records how it has ended.
async fn carry_out(
    jobs: Jobs,
    claim: Box<Claim>,
    claimed: Revision,
    work: impl Future<Output = (State, Option<String>)>,
    cancelled: oneshot::Receiver<()>,
    guard: seawall_drain::Guard,
) -> Done {
    let (state, error) = tokio::select! {
        biased;
        Ok(()) = cancelled => (State::Failed, Some("given up for the next run".to_owned())),
        ended = work => ended,
    };
    let record = claim.record.ended(state, error, now());
    let (key, value) = (keys::run(&claim.job, claim.id), keys::json(&record));
    // Whoever has changed it since knows more. That this still leads is no condition: it is true in any case.
    let compare = vec![Compare::Modified(key.clone(), claimed)];
    let then = vec![Op::Put { key: key.clone(), value: value.clone(), lease: None }];
    let revision = certainly(&*jobs.store, Txn { compare, then, ..Txn::default() }, &key, &value).await;
    drop(guard);
    Done::Ended(claim.job, claim.id, record, revision)
}

/// Attempts until one says how it is, or the deadline is over.
async fn attempts(work: Arc<Work>, leader: Leader, claim: Claim) -> (State, Option<String>) {
    let deadline = claim.config.deadline.get();
    let until = tokio::time::Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    // Whether any attempt may have been done, and what the last one said.
    let (mut unknown, mut last) = (claim.record.starts > 1, None);
    for attempt in 1_u32.. {
        let run = Run {
            job: claim.job.clone(),
            config: claim.config.clone(),
            id: claim.id,
            fence: leader.term,
            attempt,
            left: until.saturating_duration_since(tokio::time::Instant::now()),
        };
        let why = match tokio::time::timeout_at(until, work(run)).await {
            Ok(Outcome::Done) => return (State::Done, None),
            Ok(Outcome::Failed(why)) => return (State::Failed, Some(why)),
            Ok(Outcome::NotDone(why)) => why,
            Ok(Outcome::Unknown(why)) if claim.config.on_unknown == OnUnknown::Fail => {
                return (State::Unknown, Some(why));
            }
            Ok(Outcome::Unknown(why)) => {
                unknown = true;
                why
            }
            Err(_) => {
                let why = format!("attempt {attempt} was not over within {}", claim.config.deadline);
                return (State::Unknown, Some(last.map_or(why.clone(), |last| format!("{why}; before: {last}"))));
            }
        };
        tracing::info!(job = %claim.job, run = %claim.id, attempt, "tries again: {why}");
        last = Some(why);
        let wait = pause.mul_f64(0.5 + 0.5 * fastrand::f64());
        pause = (pause * 2).min(LONGEST_PAUSE);
        if tokio::time::Instant::now() + wait >= until {
            break;
        }
        tokio::time::sleep(wait).await;
    }
    let state = if unknown { State::Unknown } else { State::Failed };
    let why = last.unwrap_or_default();
    (state, Some(format!("not done within {}: {why}", claim.config.deadline)))
}
