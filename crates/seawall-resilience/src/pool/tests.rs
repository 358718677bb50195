use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use futures_util::FutureExt;

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn config(workers: u32, queue: u32) -> Config {
    Config { workers, queue, wait: Period::default(), min: 0, idle: None }
}

fn pool(config: Config) -> Arc<Pool> {
    Arc::new(Pool::new("images".into(), config, Clock::default()))
}

/// A job that says that it has begun and ends when it is told to.
struct Gate {
    begun: mpsc::Receiver<()>,
    end: mpsc::Sender<()>,
}

fn gate() -> (Gate, impl FnOnce() -> Result<&'static str, ()> + Send + 'static) {
    let ((says, begun), (end, told)) = (mpsc::channel(), mpsc::channel());
    let work = move || {
        let _ = says.send(());
        let _ = told.recv_timeout(LONG);
        Ok("done")
    };
    (Gate { begun, end }, work)
}

impl Gate {
    fn has_begun(&self) {
        self.begun.recv_timeout(LONG).expect("a thread takes the job");
    }

    fn end(&self) {
        let _ = self.end.send(());
    }
}

/// Waits for what other threads are about to bring about.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "{what}");
        thread::yield_now();
    }
}

#[tokio::test]
async fn runs_on_its_own_threads_and_gives_back_what_comes_of_it() {
    let pool = pool(config(2, 10));
    assert_eq!(pool.workers(), 0);
    let name = pool.call(|| Ok::<_, ()>(thread::current().name().map(str::to_owned))).await.unwrap().unwrap();
    assert_eq!(name, "images-0");
    assert_eq!(pool.call(|| Err::<(), _>("no")).await, Err(CallError::Inner("no")));
    assert_eq!((pool.queued(), pool.active()), (0, 0));
    let same = pool.clone();
    let blocking = thread::spawn(move || same.call_blocking(|| Ok::<_, ()>(7)));
    assert_eq!(blocking.join().unwrap(), Ok(7));
}

#[tokio::test]
async fn a_full_queue_turns_away_at_once() {
    let pool = pool(config(1, 1));
    let (gate, work) = gate();
    let (mut first, mut second) = (Box::pin(pool.call(work)), Box::pin(pool.call(|| Ok::<_, ()>(2))));
    assert!(first.as_mut().now_or_never().is_none());
    gate.has_begun();
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!((pool.workers(), pool.queued(), pool.active()), (1, 1, 1));
    let rejected = pool.call(|| Ok::<_, ()>(3)).now_or_never().expect("at once").unwrap_err();
    assert_eq!(rejected.rejected().unwrap().reason, Reason::QueueFull);
    gate.end();
    assert_eq!((first.await, second.await), (Ok("done"), Ok(2)));
    assert_eq!(pool.call(|| Ok::<_, ()>(3)).await, Ok(3), "a place is free before the caller learns of the result");
}

#[tokio::test]
async fn waits_for_a_place_in_the_queue_when_told() {
    let pool = pool(Config { wait: Period::secs(60), ..config(1, 0) });
    let (gate, work) = gate();
    let mut first = Box::pin(pool.call(work));
    assert!(first.as_mut().now_or_never().is_none());
    gate.has_begun();
    let mut second = Box::pin(pool.call(|| Ok::<_, ()>(2)));
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!((pool.places().waiting(), pool.queued()), (1, 0));
    gate.end();
    assert_eq!((first.await, second.await), (Ok("done"), Ok(2)));
}

#[tokio::test]
async fn what_is_cancelled_in_the_queue_is_never_started() {
    let pool = pool(config(1, 5));
    let (gate, work) = gate();
    let mut first = Box::pin(pool.call(work));
    assert!(first.as_mut().now_or_never().is_none());
    gate.has_begun();
    let ran = Arc::new(AtomicU32::new(0));
    let mut cancelled = Box::pin(pool.call({
        let ran = ran.clone();
        move || Ok::<_, ()>(ran.fetch_add(1, Ordering::SeqCst))
    }));
    assert!(cancelled.as_mut().now_or_never().is_none());
    drop(cancelled);
    assert_eq!((pool.queued(), pool.places().in_use()), (0, 1));
    assert_eq!(Arc::strong_count(&ran), 1, "the closure is gone");
    gate.end();
    assert_eq!(first.await, Ok("done"));
    assert_eq!(pool.call(|| Ok::<_, ()>(1)).await, Ok(1));
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_has_been_started_keeps_its_place_to_its_end() {
    let pool = pool(config(1, 0));
    let (gate, work) = gate();
    let mut call = Box::pin(pool.call(work));
    assert!(call.as_mut().now_or_never().is_none());
    gate.has_begun();
    drop(call);
    assert_eq!((pool.active(), pool.places().available()), (1, 0));
    gate.end();
    until("the job ends and gives its place back", || pool.places().available() == 1);
}

#[tokio::test]
async fn a_panic_goes_on_in_the_caller_and_the_thread_lives() {
    let pool = pool(config(1, 0));
    let call = AssertUnwindSafe(pool.call(|| -> Result<(), ()> { resume_unwind(Box::new("bang")) }));
    let panic = call.catch_unwind().await.unwrap_err();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "bang");
    let name = pool.call(|| Ok::<_, ()>(thread::current().name().map(str::to_owned))).await.unwrap().unwrap();
    assert_eq!((name.as_str(), pool.workers(), pool.places().in_use()), ("images-0", 1, 0));
}

#[tokio::test]
async fn grows_and_shrinks_while_jobs_run() {
    let pool = pool(config(1, 5));
    let gates: Vec<_> = (0..3).map(|_| gate()).collect();
    let (gates, works): (Vec<_>, Vec<_>) = gates.into_iter().unzip();
    let mut calls: Vec<_> = works.into_iter().map(|work| Box::pin(pool.call(work))).collect();
    calls.iter_mut().for_each(|call| assert!(call.as_mut().now_or_never().is_none()));
    gates[0].has_begun();
    assert_eq!((pool.workers(), pool.queued()), (1, 2));
    pool.reload(config(3, 5));
    gates.iter().skip(1).for_each(Gate::has_begun);
    assert_eq!((pool.workers(), pool.active(), pool.places().limit()), (3, 3, 8));
    pool.reload(config(1, 0));
    assert_eq!((pool.workers(), pool.places().limit()), (3, 1), "nobody is interrupted");
    assert!(pool.call(|| Ok::<_, ()>(())).now_or_never().expect("at once").is_err());
    gates.iter().for_each(Gate::end);
    for call in calls {
        assert_eq!(call.await, Ok("done"));
    }
    until("the surplus ends", || pool.workers() == 1);
}

#[tokio::test]
async fn idle_threads_end_down_to_the_minimum() {
    let pool = pool(Config { min: 1, idle: Some(Period::millis(1)), ..config(3, 0) });
    let (gates, works): (Vec<_>, Vec<_>) = (0..3).map(|_| gate()).unzip();
    let mut calls: Vec<_> = works.into_iter().map(|work| Box::pin(pool.call(work))).collect();
    calls.iter_mut().for_each(|call| assert!(call.as_mut().now_or_never().is_none()));
    gates.iter().for_each(Gate::has_begun);
    assert_eq!(pool.workers(), 3);
    gates.iter().for_each(Gate::end);
    futures_util::future::join_all(calls).await;
    until("two of three end", || pool.workers() == 1);
    assert_eq!(pool.call(|| Ok::<_, ()>(1)).await, Ok(1));
    pool.reload(Config { min: 0, idle: Some(Period::millis(1)), ..config(3, 0) });
    until("the last ends too", || pool.workers() == 0);
    assert_eq!(pool.call(|| Ok::<_, ()>(2)).await, Ok(2), "and another is started");
}

#[tokio::test]
async fn a_shutdown_works_off_the_queue_and_joins_its_threads() {
    let pool = pool(config(1, 5));
    let (gate, work) = gate();
    let mut calls = (Box::pin(pool.call(work)), Box::pin(pool.call(|| Ok::<_, ()>(2))));
    assert!(calls.0.as_mut().now_or_never().is_none() && calls.1.as_mut().now_or_never().is_none());
    gate.has_begun();
    let mut shutdown = Box::pin(pool.shutdown(LONG));
    assert!(shutdown.as_mut().now_or_never().is_none());
    let rejected = pool.call(|| Ok::<_, ()>(3)).await.unwrap_err();
    assert_eq!(rejected.rejected().unwrap().reason, Reason::Full);
    gate.end();
    assert_eq!(shutdown.await, Left::default());
    assert_eq!((calls.0.await, calls.1.await, pool.workers()), (Ok("done"), Ok(2), 0));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_says_what_it_leaves() {
    let pool = pool(config(1, 5));
    let (gate, work) = gate();
    let mut calls = (Box::pin(pool.call(work)), Box::pin(pool.call(|| Ok::<_, ()>(2))));
    assert!(calls.0.as_mut().now_or_never().is_none() && calls.1.as_mut().now_or_never().is_none());
    gate.has_begun();
    assert_eq!(pool.shutdown(Duration::from_secs(5)).await, Left { queued: 1, active: 1 });
    let never = calls.1.await.unwrap_err();
    assert_eq!(never.rejected().unwrap().reason, Reason::Full);
    gate.end();
    assert_eq!(calls.0.await, Ok("done"));
    let other = pool.clone();
    let left = thread::spawn(move || other.shutdown_blocking(LONG)).join().unwrap();
    assert_eq!((left, pool.workers()), (Left::default(), 0));
}

#[test]
fn many_callers_never_run_more_than_the_threads() {
    let pool = pool(Config { wait: Period::secs(60), ..config(3, 2) });
    let (running, ran) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..250 {
                    let (running, ran) = (running.clone(), ran.clone());
                    let work = move || {
                        let together = running.fetch_add(1, Ordering::SeqCst);
                        ran.fetch_add(1, Ordering::SeqCst);
                        running.fetch_sub(1, Ordering::SeqCst);
                        Ok::<_, ()>(together)
                    };
                    assert!(pool.call_blocking(work).unwrap() < 3);
                }
            });
        }
    });
    assert_eq!((ran.load(Ordering::SeqCst), pool.queued(), pool.active()), (1000, 0, 0));
    assert_eq!((pool.places().in_use(), pool.shutdown_blocking(LONG)), (0, Left::default()));
    assert!(pool.workers() == 0);
}

#[test]
fn the_file_has_defaults_and_bounds() {
    let cores = thread::available_parallelism().unwrap().get() as u32;
    let defaults = PoolConfig::default().resolve();
    assert_eq!(defaults, config(cores, 100));
    let bad = serde_json::json!({ "workers": 5000, "min": 9000, "idle": "0s" });
    let bad: PoolConfig = serde_json::from_value(bad).unwrap();
    let mut found = Problems::default();
    bad.problems(&mut found);
    let paths: Vec<_> = found.into_vec().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["pool.workers", "pool.min", "pool.idle", "pool.min"]);
    let own = PoolConfig { workers: Some(2), ..PoolConfig::default() };
    let base = PoolConfig { workers: Some(4), min: Some(3), ..PoolConfig::default() };
    assert_eq!(own.or(&base).resolve(), Config { min: 2, ..config(2, 100) });
}

#[tokio::test]
async fn what_is_ambient_goes_along_and_nobody_waits_beyond_the_deadline() {
    let config = Config { workers: 1, queue: 1, wait: Period::secs(30), min: 1, idle: None };
    let pool = Pool::new("blocking".into(), config, Clock::default());
    let far = Deadline::after(Duration::from_secs(60));
    let seen = Chain::new(3).scope(deadline::scope(
        far,
        Priority::High.scope(pool.call(|| {
            Ok::<_, ()>((deadline::current(), Chain::current().map(|chain| chain.left()), Priority::current()))
        })),
    ));
    assert_eq!(seen.await.unwrap(), (Some(far), Some(3), Priority::High));

    let (release, gate) = std::sync::mpsc::channel::<()>();
    let busy = pool.call(move || gate.recv().map_err(drop));
    let late = async {
        let soon = Deadline::after(Duration::from_millis(50));
        let error = deadline::scope(soon, pool.call(|| Ok::<_, ()>(()))).await.unwrap_err();
        release.send(()).unwrap();
        error
    };
    let (busy, late) = tokio::join!(busy, late);
    assert_eq!((busy, late.rejected().map(|rejected| rejected.reason)), (Ok(()), Some(Reason::Deadline)));
}
