//! The runner: performs what the engine decides. One task a saga; each waits for its log before it acts.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use seawall_drain::Drain;
use seawall_proxy::Client;
use seawall_types::header::IDEMPOTENCY_KEY;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use crate::engine::{CallOut, Direction, Event, Millis, Next, Outcome, Outgoing, Saga, Status};
use crate::log::{Begun, Log, LogError, Stored};
use crate::plan::Plan;
use crate::view::SagaView;

/// The longest key that a client may give.
const MAX_KEY: usize = 200;
/// The largest input.
const MAX_INPUT: usize = 64 * 1024;
/// How soon a log that failed is tried again.
const LOG_PAUSE: Duration = Duration::from_millis(500);

/// What a runner does.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// How many sagas may be under way; more are refused.
    pub live: usize,
    /// How many of them may be calling at once; more wait.
    pub concurrent: usize,
}

impl Default for RunnerConfig {
    fn default() -> Self {
        Self { live: 50_000, concurrent: 256 }
    }
}

/// A start that was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// No plan has this name.
    #[error("there is no saga `{0}`")]
    NoPlan(String),
    /// What was given makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The key was used before, for something else.
    #[error("the key `{key}` was used before with another input, by saga {id}")]
    Conflict {
        /// The key.
        key: String,
        /// The saga that has it.
        id: String,
    },
    /// Too many are under way, or the runner is stopping.
    #[error("no more sagas can be started now: {0}")]
    Busy(&'static str),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// A saga that was started, now or before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its id.
    pub id: String,
    /// Whether it began with this very call.
    pub new: bool,
}

/// Starts sagas and carries them to their end; cheap to clone.
#[derive(Clone, Debug)]
pub struct Runner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: RunnerConfig,
    plans: BTreeMap<String, Arc<Plan>>,
    log: Log,
    client: Client,
    drain: Drain,
    calling: Semaphore,
    live: Mutex<HashMap<Arc<str>, watch::Receiver<Status>>>,
}

impl Runner {
    /// A runner with an open log. Nothing moves before [`Runner::recover`].
    pub fn new(config: RunnerConfig, plans: Vec<Plan>, log: Log, client: Client, drain: Drain) -> Self {
        let plans = plans.into_iter().map(|plan| (plan.name.clone(), Arc::new(plan))).collect();
        let calling = Semaphore::new(config.concurrent.max(1));
        Self { shared: Arc::new(Shared { config, plans, log, client, drain, calling, live: Mutex::default() }) }
    }

    /// Takes up every saga that has not ended, where its log ends. Says how many there were.
    ///
    /// # Errors
    /// [`LogError`] when the log cannot be read.
    pub async fn recover(&self) -> Result<usize, LogError> {
        let unfinished = self.shared.log.unfinished().await?;
        let mut count = 0;
        for stored in unfinished {
            let id = stored.id.clone();
            match take_up(stored) {
                Ok((saga, seq)) => {
                    self.spawn(saga, seq);
                    count += 1;
                }
                Err(error) => tracing::error!(saga = id, %error, "cannot be taken up, needs an operator"),
            }
        }
        if count > 0 {
            tracing::info!(count, "took up unfinished sagas");
        }
        Ok(count)
    }

    /// Starts a saga, durably, unless `key` has started one before. Dropping the future does not stop it: what is in the
    /// log is also run. The same key tells what became of it.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(&self, name: &str, key: &str, input: Value) -> Result<Started, StartError> {
        let (runner, name, key) = (self.clone(), name.to_owned(), key.to_owned());
        let begun = tokio::spawn(async move { runner.begin(&name, &key, input).await });
        let died = |_| LogError::Unknown("the start was interrupted".into());
        begun.await.map_err(died)?
    }

    async fn begin(&self, name: &str, key: &str, input: Value) -> Result<Started, StartError> {
        let plan = self.shared.plans.get(name).ok_or_else(|| StartError::NoPlan(name.to_owned()))?.clone();
        if key.is_empty() || key.len() > MAX_KEY {
            let length = key.len();
            return Err(StartError::Invalid(format!("a key of {length} bytes: 1 to {MAX_KEY} are allowed")));
        }
        if input.to_string().len() > MAX_INPUT {
            return Err(StartError::Invalid(format!("an input of more than {MAX_INPUT} bytes")));
        }
        if self.shared.drain.is_signaled() {
            return Err(StartError::Busy("this node is stopping"));
        }
        if self.live().len() >= self.shared.config.live {
            return Err(StartError::Busy("too many are under way"));
        }
        let now = now();
        let id = format!("{now:011x}{:08x}", fastrand::u32(..));
        let (mut saga, events) = Saga::begin(id.clone(), plan.clone(), input.clone());
        let events: Vec<_> = events.into_iter().map(|event| (now, event)).collect();
        let stored = Stored {
            id: id.clone(),
            key: key.to_owned(),
            plan,
            input: input.clone(),
            status: Status::Running,
            started: now,
            ended: None,
            events: events.clone(),
        };
        match self.shared.log.start(stored).await? {
            Begun::New => {
                events.iter().for_each(|(at, event)| saga.apply(event, *at));
                self.spawn(saga, events.len());
                Ok(Started { id, new: true })
            }
            Begun::Before(before) if before.input == input => {
                self.adopt(&before).await?;
                Ok(Started { id: before.id, new: false })
            }
            Begun::Before(before) => Err(StartError::Conflict { key: key.to_owned(), id: before.id }),
        }
    }

    /// Runs a saga that is in the log and that nobody runs: the start that wrote it was told that its outcome is unknown.
    async fn adopt(&self, stored: &Stored) -> Result<(), LogError> {
        if stored.status.is_final() || self.live().contains_key(&*stored.id) {
            return Ok(());
        }
        if let Some(stored) = self.shared.log.load(&stored.id).await?.filter(|stored| !stored.status.is_final()) {
            let (saga, seq) = take_up(stored)?;
            self.spawn(saga, seq);
        }
        Ok(())
    }

    /// Waits until a saga has ended, at most for `timeout`.
    pub async fn wait(&self, id: &str, timeout: Duration) {
        let Some(mut status) = self.live().get(id).cloned() else { return };
        // Its sender goes when the saga ends or the node stops; either way there is no more to wait for here.
        let _ = tokio::time::timeout(timeout, status.wait_for(|status| status.is_final())).await;
    }

    /// One saga, as its log has it.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn get(&self, id: &str) -> Result<Option<SagaView>, LogError> {
        self.shared.log.load(id).await?.map(|stored| SagaView::of(&stored)).transpose()
    }

    /// The latest sagas, newest first, without their steps.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn list(&self, status: Option<Status>, limit: usize) -> Result<Vec<SagaView>, LogError> {
        Ok(self.shared.log.list(status, limit.min(1000)).await?.iter().map(SagaView::summary).collect())
    }

    /// How many sagas there are in each status.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn counts(&self) -> Result<Vec<(String, u64)>, LogError> {
        self.shared.log.counts().await
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Arc<str>, watch::Receiver<Status>>> {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, saga: Saga, seq: usize) {
        let id: Arc<str> = saga.id.as_str().into();
        let (status, watcher) = watch::channel(saga.status);
        match self.live().entry(id.clone()) {
            // Whoever came first runs it.
            Entry::Occupied(_) => return,
            Entry::Vacant(place) => drop(place.insert(watcher)),
        }
        let runner = self.clone();
        tokio::spawn(async move {
            runner.run(saga, id.clone(), seq, &status).await;
            runner.live().remove(&id);
        });
    }

    /// Carries one saga to its end, or to the end of this node.
    async fn run(&self, mut saga: Saga, id: Arc<str>, mut seq: usize, status: &watch::Sender<Status>) {
        while let Next::Call(call) = saga.next() {
            let Some(outcome) = self.call(&id, &call).await else { return };
            let at = now();
            let events = saga.observe(call.step, call.direction, outcome, at);
            let mut after = saga.clone();
            events.iter().for_each(|event| after.apply(event, at));
            if !self.append(&id, seq, &events, after.status, at).await {
                return;
            }
            seq += events.len();
            saga = after;
            for event in &events {
                tell(&id, &saga, event);
            }
            if let Some(Event::Failed { step, direction, .. }) = events.last() {
                tokio::select! {
                    () = tokio::time::sleep(saga.pause(*step, *direction, fastrand::f64())) => {}
                    () = self.shared.drain.signaled() => return,
                }
            }
        }
        status.send_replace(saga.status);
    }

    /// Makes events durable; goes on trying while the log fails, since the call has been made. `false` when the node
    /// stops first, or somebody else has written: then the log, and whoever reads it next, decides.
    async fn append(&self, id: &Arc<str>, seq: usize, events: &[Event], status: Status, at: Millis) -> bool {
        loop {
            match self.shared.log.append(id, seq, events.to_vec(), status, at).await {
                Ok(()) => return true,
                Err(error) => tracing::error!(saga = %id, %error, "cannot log a saga's progress; trying again"),
            }
            // A failed sync may have written after all.
            if let Ok(Some(stored)) = self.shared.log.load(id).await
                && let Some(written) = stored.events.get(seq..)
                && !written.is_empty()
            {
                return written.iter().map(|(_, event)| event).eq(events);
            }
            tokio::select! {
                () = tokio::time::sleep(LOG_PAUSE) => {}
                () = self.shared.drain.signaled() => return false,
            }
        }
    }

    /// Makes one attempt. `None` when the node stops before it has begun.
    async fn call(&self, id: &str, call: &CallOut) -> Option<Outcome> {
        let _permit = self.shared.calling.acquire().await.ok()?;
        if self.shared.drain.is_signaled() {
            return None;
        }
        let _guard = self.shared.drain.guard("saga step");
        let outgoing = match &call.request {
            Ok(outgoing) => outgoing,
            Err(why) => return Some(Outcome::Rejected(why.clone())),
        };
        let request = match request(id, call, outgoing) {
            Ok(request) => request,
            Err(error) => return Some(Outcome::Rejected(format!("{outgoing:?} is no request: {error}"))),
        };
        Some(match self.shared.client.call(&outgoing.service, request).await {
            Ok(response) => judge(response.status(), response.body()),
            Err(error) if error.is_unknown() => Outcome::Unknown(error.to_string()),
            Err(error) => Outcome::NotSent(error.to_string()),
        })
    }
}

/// A saga as its log leaves it, and how many events that is. What was under way may have been done.
fn take_up(stored: Stored) -> Result<(Saga, usize), LogError> {
    let id = stored.id.clone();
    let saga = Saga::replay(stored.id, stored.plan, stored.input, &stored.events);
    let mut saga = saga.map_err(|what| LogError::Damaged(format!("saga {id}: {what}")))?;
    saga.take_up(now());
    Ok((saga, stored.events.len()))
}

fn request(id: &str, call: &CallOut, outgoing: &Outgoing) -> http::Result<Request<Bytes>> {
    let has_body = matches!(outgoing.method, Method::POST | Method::PUT | Method::PATCH);
    let body = if has_body { Bytes::from(outgoing.body.to_string()) } else { Bytes::new() };
    let mut request = Request::builder()
        .method(outgoing.method.clone())
        .uri(&outgoing.path)
        .header(IDEMPOTENCY_KEY, &call.key)
        .header("saga-id", id)
        .header("saga-direction", call.direction.as_str());
    if has_body {
        request = request.header(http::header::CONTENT_TYPE, "application/json");
        request = request.header(http::header::CONTENT_LENGTH, body.len());
    }
    request.body(body)
}

/// What an answer says about the effect. Only 2xx and a clear "no" are certain; a server error may hide either.
fn judge(status: StatusCode, body: &Bytes) -> Outcome {
    let text = || String::from_utf8_lossy(&body[..body.len().min(500)]).trim().to_owned();
    match status.as_u16() {
        200..=299 => Outcome::Done(serde_json::from_slice(body).unwrap_or(Value::Null)),
        429 => Outcome::NotSent(format!("{status}: {}", text())),
        408 | 425 | 500..=599 => Outcome::Unknown(format!("{status}: {}", text())),
        _ => Outcome::Rejected(format!("{status}: {}", text())),
    }
}

fn tell(id: &str, saga: &Saga, event: &Event) {
    let name = |step: &usize| saga.plan.steps[*step].name.clone();
    let plan = &saga.plan.name;
    match event {
        Event::Failed { step, direction, why, .. } => {
            let direction = match direction {
                Direction::Do => "step",
                Direction::Undo => "undo of step",
            };
            tracing::warn!(saga = id, plan, "{direction} `{}` was not answered, trying again: {why}", name(step));
        }
        Event::Refused { step, why, .. } => {
            tracing::info!(saga = id, plan, "step `{}` failed, undoing: {why}", name(step));
        }
        Event::Parked { step, why } => {
            tracing::error!(
                saga = id,
                plan,
                "PARKED, needs an operator: step `{}` cannot be undone: {why}",
                name(step)
            );
        }
        Event::Ended { status } => tracing::debug!(saga = id, plan, "{}", status.as_str()),
        Event::Intent { .. } | Event::Done { .. } => {}
    }
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
