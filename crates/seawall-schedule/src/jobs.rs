//! The jobs in a store: adding, removing, looking at them, and ordering a run by hand. Any process may; a [`Scheduler`]
//! somewhere sees it at once.
//!
//! [`Scheduler`]: crate::Scheduler

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use seawall_store::{CommitError, Compare, Entry, Keys, Op, Query, ReadError, Store, Txn};
use seawall_types::ServiceName;
use serde::{Deserialize, Serialize};

use crate::job::{Job, JobConfig, JobError};
use crate::keys::{self, Key, Source, Stored};
use crate::run::{Record, RunId, RunView, State};

/// The most jobs.
pub const MAX_JOBS: usize = 1000;
/// How many runs of a job are remembered; those that have not ended count, and are never forgotten.
pub const HISTORY: usize = 100;
/// How many runs of a job may be ordered by hand and not yet started.
const MAX_ORDERED: usize = 10;
/// How long one call to the store may take.
pub(crate) const CALL: Duration = Duration::from_secs(5);
/// How often something is tried again that others were quicker to change.
const TRIES: usize = 20;

/// Something that was not done with a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobsError {
    /// It makes no sense.
    #[error("{}", sentences(.0))]
    Invalid(Vec<JobError>),
    /// There is no such job, or run.
    #[error("there is no {0}")]
    NotFound(String),
    /// It is the file's.
    #[error("the job `{0}` is from the file `seawall.yaml`: change it there and start control again")]
    FromFile(ServiceName),
    /// There are too many.
    #[error("{0}")]
    Full(String),
    /// Nothing was changed; trying again may help.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// It may have been done or not.
    #[error("the store has not answered, it may have been done: {0}")]
    Unknown(String),
}

fn sentences(errors: &[JobError]) -> String {
    errors.iter().map(|error| error.what.as_str()).collect::<Vec<_>>().join("; ")
}

impl From<ReadError> for JobsError {
    fn from(error: ReadError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<CommitError> for JobsError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Unknown(why) => Self::Unknown(why),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its name.
    pub name: ServiceName,
    /// Where it comes from.
    pub source: Source,
    /// What it says.
    #[serde(flatten)]
    pub config: JobConfig,
    /// The next time; none when there is none.
    pub next: Option<Timestamp>,
    /// How many runs are under way.
    pub running: usize,
    /// The latest run.
    pub last: Option<RunView>,
    /// Whether no run has succeeded for `alarm_after`.
    pub alarm: bool,
}

/// Jobs in a store, under the keys `cron/`; cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    pub(crate) store: Arc<dyn Store>,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

/// To the millisecond, as everything here is.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

async fn reading<T>(call: impl Future<Output = Result<T, ReadError>>) -> Result<T, JobsError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(JobsError::Unavailable(format!("no answer within {CALL:?}"))),
    }
}

async fn writing<T>(call: impl Future<Output = Result<T, CommitError>>) -> Result<T, JobsError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(JobsError::Unknown(format!("no answer within {CALL:?}"))),
    }
}

fn contended(name: &ServiceName) -> JobsError {
    JobsError::Unavailable(format!("others change the job `{name}` at the same time"))
}

fn no_job(name: &ServiceName) -> JobsError {
    JobsError::NotFound(format!("job `{name}`"))
}

impl Jobs {
    /// The jobs of this store. Reads and writes nothing yet.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Adds a job, or replaces one; says whether it is new. A job that is new, or for other times than before, is due from
    /// now on; otherwise what has been run stays run. Can be repeated.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn put(&self, name: &ServiceName, config: JobConfig) -> Result<bool, JobsError> {
        self.put_from(name, config, Source::Api).await
    }

    async fn put_from(&self, name: &ServiceName, config: JobConfig, source: Source) -> Result<bool, JobsError> {
        Job::try_new(config.clone()).map_err(JobsError::Invalid)?;
        let key = keys::job(name);
        for _ in 0..TRIES {
            let entry = reading(self.store.get(&key)).await?;
            let before: Option<Stored> = entry.as_ref().and_then(|entry| serde_json::from_slice(&entry.value).ok());
            let mut stored = Stored { config: config.clone(), source, since: now() };
            if let Some(before) = before {
                if before.source == Source::File && source == Source::Api {
                    return Err(JobsError::FromFile(name.clone()));
                }
                if (&before.config.when, &before.config.zone) == (&config.when, &config.zone) {
                    stored.since = before.since;
                }
                if before == stored {
                    return Ok(false);
                }
            }
            let condition = match &entry {
                Some(entry) => Compare::Modified(key.clone(), entry.modified),
                None => {
                    self.room().await?;
                    Compare::Absent(key.clone())
                }
            };
            let txn = Txn::put(key.clone(), keys::json(&stored)).when(condition);
            if writing(self.store.commit(txn)).await?.succeeded {
                return Ok(entry.is_none());
            }
        }
        Err(contended(name))
    }

    async fn room(&self) -> Result<(), JobsError> {
        let query = Query { keys_only: true, ..Query::new(Keys::prefix(keys::JOBS)) };
        let count = reading(self.store.query(query)).await?.entries.len();
        if count >= MAX_JOBS {
            return Err(JobsError::Full(format!("there are {count} jobs, {MAX_JOBS} are allowed: remove one")));
        }
        Ok(())
    }

    /// Removes a job and its history. A run under way goes on.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn remove(&self, name: &ServiceName) -> Result<(), JobsError> {
        self.remove_from(name, Source::Api).await
    }

    async fn remove_from(&self, name: &ServiceName, source: Source) -> Result<(), JobsError> {
        let key = keys::job(name);
        for _ in 0..TRIES {
            let entry = reading(self.store.get(&key)).await?.ok_or_else(|| no_job(name))?;
            let stored: Option<Stored> = serde_json::from_slice(&entry.value).ok();
            if source == Source::Api && stored.is_some_and(|stored| stored.source == Source::File) {
                return Err(JobsError::FromFile(name.clone()));
            }
            let then = vec![Op::Delete(key.clone()), Op::DeletePrefix(keys::runs(name))];
            let compare = vec![Compare::Modified(key.clone(), entry.modified)];
            if writing(self.store.commit(Txn { compare, then, ..Txn::default() })).await?.succeeded {
                return Ok(());
            }
        }
        Err(contended(name))
    }

    /// Makes the jobs of a file what the file says: adds, changes and removes them. A job of the same name that was added
    /// otherwise becomes the file's.
    ///
    /// # Errors
    /// [`JobsError`]; some may be changed already.
    pub async fn declare(&self, jobs: &BTreeMap<ServiceName, JobConfig>) -> Result<(), JobsError> {
        for entry in reading(self.store.range(keys::JOBS)).await?.entries {
            let Some(Key::Job(name)) = keys::parse(&entry.key) else { continue };
            let stored: Option<Stored> = serde_json::from_slice(&entry.value).ok();
            if stored.is_some_and(|stored| stored.source == Source::File) && !jobs.contains_key(&name) {
                match self.remove_from(&name, Source::File).await {
                    Ok(()) => tracing::info!(job = %name, "is no longer in the file, and removed"),
                    Err(JobsError::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for (name, config) in jobs {
            self.put_from(name, config.clone(), Source::File).await?;
        }
        Ok(())
    }

    /// Orders a run now, beside those of the schedule; under `overlap: forbid` it waits for the one under way.
    ///
    /// # Errors
    /// [`JobsError`]; after [`JobsError::Unknown`] the run may be ordered.
    pub async fn order(&self, name: &ServiceName) -> Result<RunId, JobsError> {
        let key = keys::job(name);
        let waiting = self.history(name, usize::MAX).await?;
        let waiting = waiting.iter().filter(|run| run.record.state == State::Ordered).count();
        if waiting >= MAX_ORDERED {
            return Err(JobsError::Full(format!("{waiting} runs of `{name}` are ordered and not yet started")));
        }
        for later in 0..TRIES {
            let later = jiff::SignedDuration::from_millis(i64::try_from(later).unwrap_or(0));
            let Ok(slot) = now().checked_add(later) else { break };
            let id = RunId { slot, by_hand: true };
            let run = keys::run(name, id);
            let txn = Txn::put(run.clone(), keys::json(&Record::ordered()));
            let txn = txn.when(Compare::Absent(run)).when(Compare::Exists(key.clone()));
            if writing(self.store.commit(txn)).await?.succeeded {
                return Ok(id);
            }
            if reading(self.store.get(&key)).await?.is_none() {
                return Err(no_job(name));
            }
        }
        Err(contended(name))
    }

    /// The runs of a job, the latest first, at most `limit`.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn history(&self, name: &ServiceName, limit: usize) -> Result<Vec<RunView>, JobsError> {
        let mut runs: Vec<_> =
            reading(self.store.range(&keys::runs(name))).await?.entries.iter().filter_map(view).collect();
        if runs.is_empty() && reading(self.store.get(&keys::job(name))).await?.is_none() {
            return Err(no_job(name));
        }
        runs.reverse();
        runs.truncate(limit);
        Ok(runs)
    }

    /// One run.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn run(&self, name: &ServiceName, id: RunId) -> Result<RunView, JobsError> {
        let entry = reading(self.store.get(&keys::run(name, id))).await?;
        entry.as_ref().and_then(view).ok_or_else(|| JobsError::NotFound(format!("run {id} of `{name}`")))
    }

    /// One run, as soon as it has ended, or as it stands when the time is over. Cancel safe.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn ended(&self, name: &ServiceName, id: RunId, patience: Duration) -> Result<RunView, JobsError> {
        let until = tokio::time::Instant::now() + patience;
        let watch = tokio::time::timeout(CALL, self.store.watch_now(Keys::one(keys::run(name, id)))).await;
        let mut cursor = match watch {
            Ok(Ok((_, cursor))) => cursor,
            Ok(Err(error)) => return Err(JobsError::Unavailable(error.to_string())),
            Err(_) => return Err(JobsError::Unavailable(format!("no answer within {CALL:?}"))),
        };
        loop {
            let run = self.run(name, id).await?;
            if run.record.state.is_final() {
                return Ok(run);
            }
            match tokio::time::timeout_at(until, cursor.next()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(JobsError::Unavailable(error.to_string())),
                Err(_) => return Ok(run),
            }
        }
    }

    /// One job.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn get(&self, name: &ServiceName) -> Result<JobView, JobsError> {
        let entry = reading(self.store.get(&keys::job(name))).await?.ok_or_else(|| no_job(name))?;
        let runs = reading(self.store.range(&keys::runs(name))).await?.entries;
        let runs: Vec<_> = runs.iter().filter_map(view).collect();
        show(name, &entry, &runs).ok_or_else(|| no_job(name))
    }

    /// Every job, by name.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn list(&self) -> Result<Vec<JobView>, JobsError> {
        let entries = reading(self.store.range(keys::ALL)).await?.entries;
        let mut runs = BTreeMap::<ServiceName, Vec<RunView>>::new();
        for entry in &entries {
            if let Some(Key::Run(name, _)) = keys::parse(&entry.key) {
                runs.entry(name).or_default().extend(view(entry));
            }
        }
        let jobs = entries.iter().filter_map(|entry| match keys::parse(&entry.key) {
            Some(Key::Job(name)) => show(&name, entry, runs.get(&name).map_or(&[], Vec::as_slice)),
            _ => None,
        });
        Ok(jobs.collect())
    }
}

fn view(entry: &Entry) -> Option<RunView> {
    let Some(Key::Run(_, id)) = keys::parse(&entry.key) else { return None };
    Some(RunView { id, slot: id.slot, record: serde_json::from_slice(&entry.value).ok()? })
}

fn show(name: &ServiceName, entry: &Entry, runs: &[RunView]) -> Option<JobView> {
    let stored: Stored = serde_json::from_slice(&entry.value).ok()?;
    let job = Job::try_new(stored.config.clone()).ok()?;
    let (scheduled, now) = (runs.iter().rev().find(|run| !run.id.by_hand), now());
    let decided = scheduled.map_or(stored.since, |run| run.slot.max(stored.since));
    let done = runs.iter().filter(|run| run.record.state == State::Done).filter_map(|run| run.record.ended).max();
    Some(JobView {
        name: name.clone(),
        source: stored.source,
        next: job.when.next(decided.max(now)),
        running: runs.iter().filter(|run| run.record.state == State::Started).count(),
        last: runs.iter().rev().find(|run| run.record.state != State::Ordered).cloned(),
        alarm: is_silent(&stored.config, stored.since, done, now),
        config: stored.config,
    })
}

/// Whether no run has succeeded for longer than the job allows.
pub(crate) fn is_silent(config: &JobConfig, since: Timestamp, done: Option<Timestamp>, now: Timestamp) -> bool {
    let Some(after) = config.alarm_after else { return false };
    let last = done.map_or(since, |done| done.max(since));
    now.as_millisecond().saturating_sub(last.as_millisecond()) > i64::try_from(after.as_millis()).unwrap_or(i64::MAX)
}
