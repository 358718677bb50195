//! The scheduler and the processes.
//!
//! All tasks run in one, polled in the order of their numbers whenever any of them can go on; so which was woken first
//! decides nothing. When none can, the paused clock of the runtime leaps to the next timer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use seawall_coord::{Boot, Clock, Machine, Task};
use seawall_histories::Moment;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Everything that is simulated; clones are the same one.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    began: Instant,
    tasks: Mutex<Tasks>,
    ready: Arc<Ready>,
}

#[derive(Default)]
struct Tasks {
    last: u64,
    last_process: u32,
    /// Of which process, and what; nothing while it is being polled.
    all: BTreeMap<u64, (u32, Option<Task>)>,
    /// Tasks that would go on if their processes were not paused.
    paused: BTreeMap<u32, BTreeSet<u64>>,
}

#[derive(Default)]
struct Ready {
    tasks: Mutex<BTreeSet<u64>>,
    all: Mutex<Option<Waker>>,
}

impl Ready {
    fn add(&self, id: u64) {
        lock(&self.tasks).insert(id);
        if let Some(waker) = &*lock(&self.all) {
            waker.wake_by_ref();
        }
    }
}

struct OfTask(u64, Arc<Ready>);

impl Wake for OfTask {
    fn wake(self: Arc<Self>) {
        self.1.add(self.0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("now", &self.now()).finish_non_exhaustive()
    }
}

/// What belongs to no process: the network, servers, whoever makes the trouble.
const NOBODY: u32 = 0;

impl World {
    /// Runs `main` in a new world, in which all that is random comes from `seed`; with its end everything ends. The runtime has to be
    /// one for a single thread with a paused clock.
    pub fn run<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        seed: u64,
        runtime: &Runtime,
        main: impl FnOnce(World) -> F,
    ) -> T {
        fastrand::seed(seed);
        runtime.block_on(async {
            let ready = Arc::new(Ready::default());
            let world = Self(Arc::new(Inner { began: Instant::now(), tasks: Mutex::default(), ready }));
            let result = Arc::new(Mutex::new(None));
            let (to, main) = (result.clone(), main(world.clone()));
            world.spawn(async move {
                let done = main.await;
                *lock(&to) = Some(done);
            });
            let done = poll_fn(|context| world.poll(context, &result)).await;
            // Tasks know the world that knows them. What they do when they are dropped may add others.
            loop {
                let all = std::mem::take(&mut lock(&world.0.tasks).all);
                if all.is_empty() {
                    return done;
                }
            }
        })
    }

    fn poll<T>(&self, context: &mut Context<'_>, result: &Mutex<Option<T>>) -> Poll<T> {
        *lock(&self.0.ready.all) = Some(context.waker().clone());
        loop {
            let ready = std::mem::take(&mut *lock(&self.0.ready.tasks));
            if ready.is_empty() {
                return Poll::Pending;
            }
            for id in ready {
                self.poll_one(id);
                if let Some(done) = lock(result).take() {
                    return Poll::Ready(done);
                }
            }
        }
    }

    fn poll_one(&self, id: u64) {
        let task = {
            let Tasks { all, paused, .. } = &mut *lock(&self.0.tasks);
            let Some((process, task)) = all.get_mut(&id) else { return };
            if let Some(waiting) = paused.get_mut(process) {
                waiting.insert(id);
                return;
            }
            task.take()
        };
        let Some(mut task) = task else { return };
        let waker = Waker::from(Arc::new(OfTask(id, self.0.ready.clone())));
        // The budget of the one task that they all are says nothing about any of them.
        let mut unconstrained = tokio::task::unconstrained(task.as_mut());
        let done = Pin::new(&mut unconstrained).poll(&mut Context::from_waker(&waker)).is_ready();
        let mut tasks = lock(&self.0.tasks);
        if done {
            tasks.all.remove(&id);
        } else if let Some((_, place)) = tasks.all.get_mut(&id) {
            *place = Some(task);
        }
    }

    /// The time since the beginning.
    pub fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// The same, as it is recorded.
    pub fn moment(&self) -> Moment {
        Moment::after(self.now())
    }

    /// Does something that belongs to no process: nothing pauses or kills it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_in(NOBODY, Box::pin(task));
    }

    fn spawn_in(&self, process: u32, task: Task) {
        let id = {
            let mut tasks = lock(&self.0.tasks);
            tasks.last += 1;
            let id = tasks.last;
            tasks.all.insert(id, (process, Some(task)));
            id
        };
        self.0.ready.add(id);
    }

    /// A process on a machine of its own, that was started some time ago and whose clock runs by `rate` faster than the world's.
    pub fn process(&self, rate: f64) -> Process {
        let id = {
            let mut tasks = lock(&self.0.tasks);
            tasks.last_process += 1;
            tasks.last_process
        };
        let ahead = Duration::from_millis(fastrand::u64(0..1_000_000));
        let of_process = OfProcess { world: self.clone(), id, rate, ahead: watch::Sender::new(ahead) };
        Process(Arc::new(of_process))
    }
}

/// A simulated process; clones are the same one. It is also its machine, for [`Clock::Simulated`].
#[derive(Clone)]
pub struct Process(Arc<OfProcess>);

struct OfProcess {
    world: World,
    id: u32,
    rate: f64,
    /// What its clock is ahead of the time since the beginning, besides its rate.
    ahead: watch::Sender<Duration>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0.id)
    }
}

impl Process {
    /// Its clock.
    pub fn clock(&self) -> Clock {
        Clock::Simulated(Arc::new(self.clone()))
    }

    /// When, by the world's clock, its own clock will have gone on by `remaining`, unless it leaps.
    pub fn moment_after(&self, remaining: Duration) -> Moment {
        Moment::after(self.0.world.now() + remaining.div_f64(self.0.rate))
    }

    /// Does something in it.
    pub fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(Box::pin(task));
    }

    /// Nothing in it goes on for so long, while time does: it is stopped.
    pub fn pause(&self, duration: Duration) {
        lock(&self.0.world.0.tasks).paused.entry(self.0.id).or_default();
        let of_process = self.0.clone();
        self.0.world.spawn(async move {
            sleep(duration).await;
            let waiting = lock(&of_process.world.0.tasks).paused.remove(&of_process.id).unwrap_or_default();
            waiting.into_iter().for_each(|id| of_process.world.0.ready.add(id));
        });
    }

    /// Ends it at once, with -9.
    pub fn kill(&self) {
        let mut tasks = lock(&self.0.world.0.tasks);
        let (gone, left) = std::mem::take(&mut tasks.all).into_iter().partition(|(_, (id, _))| *id == self.0.id);
        tasks.all = left;
        drop(tasks);
        // Outside of the lock: what is dropped may wake others, and begin something that is part of it.
        let gone: BTreeMap<u64, (u32, Option<Task>)> = gone;
        drop(gone);
        lock(&self.0.world.0.tasks).all.retain(|_, (id, _)| *id != self.0.id);
    }

    /// Its clock leaps ahead: the machine has slept.
    pub fn leap(&self, by: Duration) {
        self.0.ahead.send_modify(|ahead| *ahead += by);
    }
}

impl Machine for Process {
    fn now(&self) -> Boot {
        Boot::after(*self.0.ahead.borrow() + self.0.world.now().mul_f64(self.0.rate))
    }

    fn sleep_until(&self, at: Boot) -> Task {
        let process = self.clone();
        Box::pin(async move {
            let mut leapt = process.0.ahead.subscribe();
            loop {
                let left = at.since(process.now());
                if left.is_zero() {
                    return;
                }
                // Timers go by whole milliseconds, and not before their time.
                let left = left.div_f64(process.0.rate) + Duration::from_micros(1);
                tokio::select! {
                    biased;
                    _ = leapt.changed() => {}
                    () = sleep(left) => {}
                }
            }
        })
    }

    fn spawn(&self, task: Task) {
        self.0.world.spawn_in(self.0.id, task);
    }
}
