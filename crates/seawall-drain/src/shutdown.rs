//! The ordered plan: readiness, lameduck, then phase after phase, each with its deadline and all with one together.

mod watchdog;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use crate::drain::{Drain, Shared, Trigger, channel};
use crate::outcome::{End, Failure, Outcome, PhaseOutcome};
use crate::readiness::Readiness;
use crate::report::Report;
use crate::stop::Stop;
use crate::waiting::{PhaseHeld, Stage, Waiting};

/// How often the log says what is waited for, unless the plan says otherwise.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Stands for "never" where a deadline is too far away to be a point in time.
const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

/// A plan for shutting down, made at the start of a service and run at its end.
///
/// [`Shutdown::run`] turns [`Readiness`] to draining, pauses for [`lameduck`](Shutdown::lameduck), and goes through the
/// phases in the order in which they were added. In each it signals the phase's drain and starts its hooks; the phase is
/// over when no guard of it is held and every hook has ended, or when its deadline has passed. Then comes the next,
/// whatever was left.
///
/// Dropping it unrun turns readiness to draining and signals every phase.
#[derive(Debug)]
pub struct Shutdown {
    inner: Arc<Inner>,
    phases: Vec<Phase>,
    lameduck: Duration,
    deadline: Option<Duration>,
    log_every: Duration,
    watchdog: Option<Duration>,
}

impl Shutdown {
    /// An empty plan: no pause, no phases, no deadline for the whole.
    pub fn new() -> Self {
        let inner = Inner {
            readiness: Readiness::new(),
            begun: watch::Sender::new(false),
            progress: Mutex::new(Progress { stage: Stage::Running, until: None, phases: Vec::new() }),
        };
        Self {
            inner: Arc::new(inner),
            phases: Vec::new(),
            lameduck: Duration::ZERO,
            deadline: None,
            log_every: LOG_EVERY,
            watchdog: None,
        }
    }

    /// How long everything is still served after readiness has turned to draining, so that load balancers see it and send
    /// nothing to a closed door. A bit more than one period of their checks; in Kubernetes 5 to 10 seconds. Default: none.
    pub fn lameduck(mut self, pause: Duration) -> Self {
        self.lameduck = pause;
        self
    }

    /// Adds a phase with its deadline, to run after those added before.
    ///
    /// # Panics
    /// When the plan already has a phase of this name.
    #[track_caller]
    pub fn phase(mut self, name: &'static str, deadline: Duration) -> Self {
        assert!(self.phases.iter().all(|phase| phase.name != name), "the plan already has a phase `{name}`");
        let (trigger, drain) = channel();
        self.inner.progress().phases.push((name, trigger.shared.clone()));
        self.phases.push(Phase { name, deadline, trigger, drain, hooks: Vec::new() });
        self
    }

    /// Caps everything, the lameduck pause included. A phase that has not begun by then is signaled, but its hooks are
    /// not run. Default: the sum of the pause and all phases.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How often the log says which phase is under way, what is held, and how long is left. Default: 5 seconds.
    pub fn log_every(mut self, period: Duration) -> Self {
        self.log_every = period;
        self
    }

    /// Ends the process with exit code 1 if the shutdown is still not over this long after its last deadline. For what
    /// no deadline on the runtime can help against: code that blocks the runtime's own thread. A thread waits for it while
    /// [`Shutdown::run`] runs; time that is paused in tests does not stop it. Default: off.
    pub fn watchdog(mut self, grace: Duration) -> Self {
        self.watchdog = Some(grace);
        self
    }

    /// The drain of a phase: it signals when the phase begins, and its guards hold the phase's end back.
    ///
    /// # Panics
    /// When the plan has no phase of this name.
    #[track_caller]
    pub fn drain(&self, phase: &str) -> Drain {
        self.phases[self.index(phase)].drain.clone()
    }

    /// Adds something to do when a phase begins, beside its other hooks. While it runs it is held under `name` like a
    /// guard. At the phase's deadline it is cancelled at its next await, and reported; a panic is reported as a failure.
    /// Neither keeps the next phase from coming.
    ///
    /// A hook has to be async: one that blocks its thread cannot be cancelled, and on a runtime with one thread it stops
    /// everything. Use `tokio::task::spawn_blocking` in it, [`Outcome::exit`] after it, and perhaps
    /// [`Shutdown::watchdog`]. With `panic = "abort"` a panic ends the process, of course.
    ///
    /// # Panics
    /// When the plan has no phase of this name.
    #[track_caller]
    pub fn hook(&mut self, phase: &str, name: &'static str, hook: impl Future<Output = ()> + Send + 'static) {
        self.try_hook(phase, name, async {
            hook.await;
            Ok::<_, std::convert::Infallible>(())
        });
    }

    /// Like [`Shutdown::hook`], for what can fail: the error goes into the [`Outcome`] and the log.
    ///
    /// # Panics
    /// When the plan has no phase of this name.
    #[track_caller]
    pub fn try_hook<E: fmt::Display>(
        &mut self,
        phase: &str,
        name: &'static str,
        hook: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let at = self.index(phase);
        let run = Box::pin(async { hook.await.map_err(|error| format!("failed: {error}")) });
        self.phases[at].hooks.push(Hook { name, run });
    }

    /// The readiness that this shutdown turns to draining. Call [`Readiness::ready`] on it once the service serves.
    pub fn readiness(&self) -> Readiness {
        self.inner.readiness.clone()
    }

    /// For whoever wants to look or to begin the shutdown.
    pub fn handle(&self) -> Handle {
        Handle { inner: self.inner.clone() }
    }

    /// Waits for SIGTERM, SIGINT or [`Handle::begin`], then does what [`Shutdown::run`] does. A signal during the
    /// shutdown, of either kind, cuts it short.
    ///
    /// Cancel safety: as for [`Shutdown::run`].
    #[cfg(feature = "signal")]
    pub async fn run_on(self, mut signals: crate::Signals) -> Outcome {
        let mut begun = self.inner.begun.subscribe();
        let by = tokio::select! {
            stop = signals.recv() => stop,
            _ = begun.wait_for(|begun| *begun) => Stop::Asked,
        };
        tracing::info!(%by, "shutting down; a signal from now on stops at once");
        self.run(async move { signals.recv().await }).await
    }

    /// Shuts down, now. When `cut_short` resolves it returns at once, and says in the outcome what was left;
    /// `std::future::pending()` never does.
    ///
    /// Cancel safety: dropping the future is like dropping the plan, from where it is: every phase is signaled, hooks that
    /// run are cancelled and the others never start. Nothing hangs, but nothing is waited for any more either.
    pub async fn run(mut self, cut_short: impl Future<Output = Stop>) -> Outcome {
        let begun = Instant::now();
        self.inner.readiness.draining();
        self.inner.begun.send_replace(true);
        let phases = std::mem::take(&mut self.phases);
        let planned = phases.iter().fold(self.lameduck, |sum, phase| sum.saturating_add(phase.deadline));
        let planned = planned.min(self.deadline.unwrap_or(Duration::MAX));
        let _watchdog = self.watchdog.map(|grace| watchdog::start(planned.saturating_add(grace)));
        let mut run = Run {
            inner: &self.inner,
            cut_short: pin!(cut_short),
            stopped: None,
            until: after(begun, planned),
            log_every: self.log_every.max(Duration::from_millis(1)),
        };
        run.lameduck(self.lameduck).await;
        let mut outcomes = Vec::with_capacity(phases.len());
        for phase in phases {
            outcomes.push(run.phase(phase).await);
        }
        let outcome = Outcome { cut_short: run.stopped, took: begun.elapsed(), phases: outcomes };
        if outcome.is_clean() {
            tracing::info!(%outcome, "shut down");
        } else {
            tracing::warn!(%outcome, "shut down");
        }
        outcome
    }

    #[track_caller]
    fn index(&self, name: &str) -> usize {
        let names = || self.phases.iter().map(|phase| format!("`{}`", phase.name)).collect::<Vec<_>>().join(", ");
        let found = self.phases.iter().position(|phase| phase.name == name);
        found.unwrap_or_else(|| panic!("the plan has no phase `{name}`; it has {}", names()))
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        // After `run`, and instead of it. The phases' triggers signal as they are dropped.
        self.inner.readiness.draining();
        self.inner.begun.send_replace(true);
        self.inner.enter(Stage::Ended, None);
    }
}

/// Looks at a [`Shutdown`], or begins it. Cheap to clone; outlives the plan.
#[derive(Clone, Debug)]
pub struct Handle {
    inner: Arc<Inner>,
}

impl Handle {
    /// Has a plan that waits in `Shutdown::run_on` begin, as a signal would. Without effect once it has begun.
    pub fn begin(&self) {
        self.inner.begun.send_replace(true);
    }

    /// What is waited for right now; before the shutdown, what would be.
    pub fn waiting(&self) -> Waiting {
        self.inner.waiting()
    }

    /// The readiness of the plan.
    pub fn readiness(&self) -> Readiness {
        self.inner.readiness.clone()
    }
}

#[derive(Debug)]
struct Inner {
    readiness: Readiness,
    begun: watch::Sender<bool>,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    stage: Stage,
    until: Option<Until>,
    phases: Vec<(&'static str, Arc<Shared>)>,
}

/// When the stage, and when everything, has to be over.
#[derive(Clone, Copy, Debug)]
struct Until {
    stage: Instant,
    all: Instant,
}

impl Inner {
    fn enter(&self, stage: Stage, until: Option<Until>) {
        let mut progress = self.progress();
        progress.stage = stage;
        progress.until = until;
    }

    fn waiting(&self) -> Waiting {
        let now = Instant::now();
        let progress = self.progress();
        let phase = |(phase, shared): &(&'static str, Arc<Shared>)| PhaseHeld { phase, held: shared.report() };
        Waiting {
            stage: progress.stage,
            stage_left: progress.until.map(|until| until.stage.saturating_duration_since(now)),
            left: progress.until.map(|until| until.all.saturating_duration_since(now)),
            phases: progress.phases.iter().map(phase).collect(),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Phase {
    name: &'static str,
    deadline: Duration,
    trigger: Trigger,
    drain: Drain,
    hooks: Vec<Hook>,
}

struct Hook {
    name: &'static str,
    run: Pin<Box<dyn Future<Output = Result<(), String>> + Send>>,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A shutdown under way.
struct Run<'a, C> {
    inner: &'a Inner,
    cut_short: Pin<&'a mut C>,
    /// Set when `cut_short` has resolved; it is not asked again.
    stopped: Option<Stop>,
    until: Instant,
    log_every: Duration,
}

impl<C: Future<Output = Stop>> Run<'_, C> {
    async fn lameduck(&mut self, pause: Duration) {
        if pause.is_zero() {
            return;
        }
        tracing::info!(?pause, "not ready any more; still serving so that load balancers see it");
        self.enter(Stage::Lameduck, pause);
        self.wait(std::future::pending(), pause).await;
    }

    async fn phase(&mut self, phase: Phase) -> PhaseOutcome {
        let Phase { name, deadline, trigger, drain, hooks } = phase;
        let begun = Instant::now();
        let mut running = Hooks::default();
        let end = if self.stopped.is_some() || begun >= self.until {
            running.skip(hooks);
            trigger.signal();
            if self.stopped.is_some() { End::CutShort } else { End::Skipped }
        } else {
            self.enter(Stage::Phase(name), deadline);
            tracing::debug!(phase = name, ?deadline, "a phase of the shutdown begins");
            // The guards of the hooks are taken before anybody looks whether there are any.
            running.start(hooks, &drain);
            trigger.signal();
            let work = async {
                running.ended().await;
                trigger.idle().await;
            };
            self.wait(work, deadline).await
        };
        let left = if end == End::Done { Report::default() } else { trigger.waiting() };
        let outcome = PhaseOutcome { phase: name, end, took: begun.elapsed(), left, failures: running.failures() };
        if !outcome.is_clean() {
            tracing::warn!(phase = name, ?end, "{outcome}");
        }
        outcome
    }

    /// Waits for `work`, for the end of the time, or for being cut short, and logs meanwhile.
    async fn wait(&mut self, work: impl Future<Output = ()>, time: Duration) -> End {
        let mut work = pin!(work);
        let now = Instant::now();
        let mut over = pin!(tokio::time::sleep_until(after(now, time).min(self.until)));
        let mut log = tokio::time::interval_at(after(now, self.log_every), self.log_every);
        log.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = &mut work => return End::Done,
                stop = &mut self.cut_short => {
                    self.stopped = Some(stop);
                    return End::CutShort;
                }
                () = &mut over => return End::Deadline,
                _ = log.tick() => tracing::info!("waiting for {}", self.inner.waiting()),
            }
        }
    }

    fn enter(&self, stage: Stage, time: Duration) {
        let until = after(Instant::now(), time).min(self.until);
        self.inner.enter(stage, Some(Until { stage: until, all: self.until }));
    }
}

/// The hooks of one phase. Dropping it cancels those that run.
#[derive(Default)]
struct Hooks {
    names: HashMap<Id, &'static str>,
    tasks: JoinSet<Result<(), String>>,
    failures: Vec<Failure>,
}

impl Hooks {
    fn start(&mut self, hooks: Vec<Hook>, drain: &Drain) {
        for Hook { name, run } in hooks {
            let guard = drain.guard(name);
            let task = self.tasks.spawn(async move {
                let _guard = guard;
                run.await
            });
            self.names.insert(task.id(), name);
        }
    }

    fn skip(&mut self, hooks: Vec<Hook>) {
        self.failures.extend(hooks.iter().map(|hook| Failure { hook: hook.name, why: "was not run".to_owned() }));
    }

    async fn ended(&mut self) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.note(ended);
        }
    }

    /// Those known by now.
    fn failures(mut self) -> Vec<Failure> {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.note(ended);
        }
        self.failures
    }

    fn note(&mut self, ended: Result<(Id, Result<(), String>), JoinError>) {
        let (id, why) = match ended {
            Ok((_, Ok(()))) => return,
            Ok((id, Err(why))) => (id, why),
            Err(error) => (error.id(), panicked(error)),
        };
        let hook = self.names.get(&id).copied().expect("every task was given its name");
        self.failures.push(Failure { hook, why });
    }
}

fn panicked(error: JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else {
        return "was cancelled".to_owned();
    };
    let text = payload.downcast_ref::<&str>().copied();
    match text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)) {
        Some(text) => format!("panicked: {text}"),
        None => "panicked".to_owned(),
    }
}

/// `from` and `time` later, or as good as never.
fn after(from: Instant, time: Duration) -> Instant {
    from + time.min(FAR)
}

#[cfg(test)]
mod tests;
