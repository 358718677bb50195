//! The plan, on paused time.

use super::*;
use crate::State;

const SECOND: Duration = Duration::from_secs(1);

fn never() -> std::future::Pending<Stop> {
    std::future::pending()
}

fn ends(outcome: &Outcome) -> Vec<(&'static str, End)> {
    outcome.phases.iter().map(|phase| (phase.phase, phase.end)).collect()
}

#[tokio::test(start_paused = true)]
async fn readiness_turns_first_then_the_phases_come_in_order() {
    let mut shutdown = Shutdown::new().lameduck(5 * SECOND).phase("accept", SECOND).phase("finish", 30 * SECOND);
    let (accept, finish) = (shutdown.drain("accept"), shutdown.drain("finish"));
    let (readiness, handle) = (shutdown.readiness(), shutdown.handle());
    shutdown.hook("finish", "flush", async { tokio::time::sleep(2 * SECOND).await });
    readiness.ready();
    let request = finish.guard("request");
    assert_eq!(handle.waiting().to_string(), "running: 1 request (oldest 0.0s) of `finish`");

    let running = tokio::spawn(shutdown.run(never()));
    tokio::time::sleep(SECOND).await;
    assert_eq!(readiness.state(), State::Draining);
    assert!(!accept.is_signaled());
    assert_eq!(handle.waiting().to_string(), "lameduck: 1 request (oldest 1.0s) of `finish`, 4.0s left, 35.0s in all");

    accept.signaled().await;
    tokio::time::sleep(SECOND).await;
    let waiting = handle.waiting();
    assert_eq!(waiting.to_string(), "finish: 1 flush (oldest 1.0s), 1 request (oldest 6.0s), 29.0s left, 30.0s in all");
    assert_eq!((waiting.stage, waiting.held().map(Report::count)), (Stage::Phase("finish"), Some(2)));

    drop(request);
    let outcome = running.await.unwrap();
    assert!(outcome.is_clean());
    assert_eq!((outcome.exit_code(), outcome.took.as_secs()), (0, 7));
    assert_eq!(outcome.to_string(), "clean after 7.0s");
    assert_eq!(ends(&outcome), [("accept", End::Done), ("finish", End::Done)]);
    assert_eq!(handle.waiting().to_string(), "ended: nothing");
}

#[tokio::test(start_paused = true)]
async fn a_phase_whose_deadline_passes_is_reported_and_the_next_goes_on() {
    let mut shutdown = Shutdown::new().phase("finish", 3 * SECOND).phase("close", 3 * SECOND);
    let (sent, mut closed) = tokio::sync::oneshot::channel();
    shutdown.hook("close", "pool", async { sent.send(()).unwrap() });
    let _request = shutdown.drain("finish").guard("request");
    let outcome = shutdown.run(never()).await;
    assert_eq!(closed.try_recv(), Ok(()));
    assert_eq!(ends(&outcome), [("finish", End::Deadline), ("close", End::Done)]);
    assert_eq!((outcome.exit_code(), outcome.took.as_secs()), (1, 3));
    assert_eq!(outcome.to_string(), "not clean after 3.0s; finish: 1 request (oldest 3.0s) left");
}

#[tokio::test(start_paused = true)]
async fn hooks_that_hang_panic_or_fail_hold_nobody_up() {
    let mut shutdown = Shutdown::new().phase("close", 2 * SECOND).phase("last", SECOND);
    shutdown.hook("close", "hangs", std::future::pending());
    shutdown.hook("close", "panics", async { panic!("a bug") });
    shutdown.try_hook("close", "fails", async { Err("disk full") });
    let ran = Arc::new(Mutex::new(false));
    let set = ran.clone();
    shutdown.hook("last", "runs", async move { *set.lock().unwrap() = true });
    let outcome = shutdown.run(never()).await;
    assert!(*ran.lock().unwrap());
    assert_eq!((outcome.exit_code(), outcome.took.as_secs()), (1, 2));
    let mut failures: Vec<_> = outcome.phases[0].failures.iter().map(|f| format!("{} {}", f.hook, f.why)).collect();
    failures.sort();
    assert_eq!(failures, ["fails failed: disk full", "panics panicked: a bug"]);
    assert_eq!(outcome.phases[0].left.to_string(), "1 hangs");
    assert!(outcome.phases[1].is_clean());
}

/// It cannot be cancelled, but with another thread to run on the shutdown goes on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_blocks_its_thread_holds_nobody_up() {
    let mut shutdown = Shutdown::new().phase("close", Duration::from_millis(50)).phase("last", 60 * SECOND);
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    shutdown.hook("close", "blocks", async move { assert!(blocked.recv().is_err()) });
    shutdown.hook("last", "runs", async {});
    let outcome = shutdown.run(never()).await;
    assert_eq!(ends(&outcome), [("close", End::Deadline), ("last", End::Done)]);
    assert_eq!(outcome.phases[0].left.to_string(), "1 blocks");
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn one_deadline_caps_all() {
    let mut shutdown = Shutdown::new()
        .lameduck(SECOND)
        .phase("finish", 30 * SECOND)
        .phase("close", 30 * SECOND)
        .phase("idle", SECOND)
        .deadline(4 * SECOND);
    shutdown.hook("close", "pool", async { unreachable!("there is no time for it") });
    let close = shutdown.drain("close");
    let _request = shutdown.drain("finish").guard("request");
    let outcome = shutdown.run(never()).await;
    assert!(close.is_signaled());
    assert_eq!(outcome.took.as_secs(), 4);
    assert_eq!(ends(&outcome), [("finish", End::Deadline), ("close", End::Skipped), ("idle", End::Skipped)]);
    assert_eq!(
        outcome.to_string(),
        "not clean after 4.0s; finish: 1 request (oldest 4.0s) left; close: hook `pool` was not run"
    );
}

#[tokio::test(start_paused = true)]
async fn cut_short_it_returns_at_once() {
    for (cut, at) in [(SECOND, "lameduck"), (4 * SECOND, "finish")] {
        let mut shutdown = Shutdown::new().lameduck(3 * SECOND).phase("finish", 30 * SECOND).phase("close", SECOND);
        let _request = shutdown.drain("finish").guard("request");
        shutdown.hook("close", "pool", async { unreachable!("cut short") });
        let close = shutdown.drain("close");
        let outcome = shutdown
            .run(async move {
                tokio::time::sleep(cut).await;
                Stop::Interrupt
            })
            .await;
        assert_eq!((outcome.took, outcome.cut_short, outcome.exit_code()), (cut, Some(Stop::Interrupt), 130), "{at}");
        assert_eq!(ends(&outcome), [("finish", End::CutShort), ("close", End::CutShort)], "{at}");
        assert_eq!(outcome.phases[0].left.to_string(), "1 request", "{at}");
        assert!(close.is_signaled());
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_or_cancelled_it_tells_everybody() {
    let shutdown = Shutdown::new().phase("finish", SECOND);
    let (drain, readiness, handle) = (shutdown.drain("finish"), shutdown.readiness(), shutdown.handle());
    drop(shutdown);
    drain.signaled().await;
    assert_eq!((readiness.state(), handle.waiting().stage), (State::Draining, Stage::Ended));

    let mut shutdown = Shutdown::new().phase("finish", 60 * SECOND).phase("close", SECOND);
    let (finish, close, handle) = (shutdown.drain("finish"), shutdown.drain("close"), shutdown.handle());
    shutdown.hook("finish", "hangs", std::future::pending());
    let cancelled = tokio::time::timeout(SECOND, shutdown.run(never())).await;
    assert!(cancelled.is_err());
    close.signaled().await;
    assert_eq!(handle.waiting().stage, Stage::Ended);
    // The hook was cancelled, and its guard with it.
    while finish.kind("hangs").held() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn far_deadlines_and_none_are_fine() {
    let shutdown = Shutdown::new().lameduck(Duration::ZERO).phase("ever", Duration::MAX).phase("after", Duration::MAX);
    let guard = shutdown.drain("ever").guard("request");
    tokio::spawn(async move {
        tokio::time::sleep(7 * SECOND).await;
        drop(guard);
    });
    let outcome = shutdown.log_every(Duration::ZERO).watchdog(Duration::MAX).run(never()).await;
    assert_eq!((outcome.is_clean(), outcome.took.as_secs()), (true, 7));
    assert!(Shutdown::new().run(never()).await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_phase_without_time_still_runs_what_takes_none() {
    let shutdown = Shutdown::new().phase("stop accepting", Duration::ZERO).phase("finish", SECOND);
    let accepting = shutdown.drain("stop accepting");
    let outcome = shutdown.run(never()).await;
    assert!(outcome.is_clean() && accepting.is_signaled());
}

#[test]
fn names_are_checked() {
    let unknown = std::panic::catch_unwind(|| Shutdown::new().phase("finish", SECOND).drain("finnish"));
    let unknown = unknown.expect_err("there is no such phase");
    let message = unknown.downcast_ref::<String>().unwrap();
    assert_eq!(message, "the plan has no phase `finnish`; it has `finish`");
    assert!(std::panic::catch_unwind(|| Shutdown::new().phase("a", SECOND).phase("a", SECOND)).is_err());
}

#[cfg(feature = "signal")]
#[tokio::test]
async fn it_can_be_begun_without_a_signal() {
    let shutdown = Shutdown::new().phase("finish", SECOND);
    let handle = shutdown.handle();
    let running = tokio::spawn(shutdown.run_on(crate::Signals::listen().unwrap()));
    handle.begin();
    assert!(running.await.unwrap().is_clean());
}

/// The log says what is waited for while it is waited.
#[tokio::test(start_paused = true)]
async fn it_logs_what_it_waits_for() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let shutdown = Shutdown::new().phase("finish", 3 * SECOND).log_every(2 * SECOND);
    let _request = shutdown.drain("finish").guard("request");
    let outcome = shutdown.run(never()).await;
    assert!(!outcome.is_clean());
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("waiting for finish: 1 request (oldest 2.0s), 1.0s left, 1.0s in all"), "{text}");
    assert!(text.contains("WARN"), "{text}");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A hook that blocks the runtime's only thread is beyond every deadline but the watchdog's.
#[test]
fn the_watchdog_ends_a_blocked_process() {
    const CHILD: &str = "SEAWALL_DRAIN_BLOCKED_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut shutdown =
            Shutdown::new().phase("close", Duration::from_millis(50)).watchdog(Duration::from_millis(50));
        shutdown.hook("close", "blocks", async { std::thread::sleep(60 * SECOND) });
        runtime.block_on(async { shutdown.run(never()).await.exit() });
        return;
    }
    let name = "shutdown::tests::the_watchdog_ends_a_blocked_process";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").stderr(std::process::Stdio::piped());
    let started = std::time::Instant::now();
    let output = child.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the shutdown hangs"), "{stderr}");
    assert!(started.elapsed() < 30 * SECOND);
}
