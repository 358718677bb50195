//! The lower layer: guards, kinds, trigger.

use super::*;

#[tokio::test(start_paused = true)]
async fn waits_for_guards_and_names_those_that_stay() {
    let (trigger, drain) = channel();
    let (quick, slow) = (drain.guard("request"), drain.guard("stream"));
    let second = drain.guard("stream");
    tokio::spawn(async move {
        drain.signaled().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(quick);
    });
    let started = Instant::now();
    let report = trigger.drain(Duration::from_secs(5)).await;
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(report.to_string(), "2 streams");
    assert_eq!(format!("{report:#}"), "2 streams (oldest 5.0s)");
    drop((slow, second));
    assert!(trigger.drain(Duration::ZERO).await.is_clean());
}

#[tokio::test]
async fn a_dropped_trigger_signals() {
    let (trigger, drain) = channel();
    assert!(!drain.is_signaled());
    drop(trigger);
    drain.signaled().await;
    assert!(drain.is_signaled());
}

#[tokio::test(start_paused = true)]
async fn a_report_knows_the_age_of_the_oldest() {
    let (trigger, drain) = channel();
    let request = drain.kind("request");
    let first = request.guard();
    tokio::time::advance(Duration::from_secs(3)).await;
    let second = request.guard();
    tokio::time::advance(Duration::from_secs(4)).await;
    let _connection = drain.guard("connection");
    let held = |what, count, age| Held { what, count, oldest: Duration::from_secs(age) };
    assert_eq!(trigger.waiting().held(), [held("connection", 1, 0), held("request", 2, 7)]);
    drop(first);
    assert_eq!(trigger.waiting().held(), [held("connection", 1, 0), held("request", 1, 4)]);
    drop(second);
    assert_eq!(trigger.waiting().to_string(), "1 connection");
    assert_eq!((request.held(), trigger.waiting().count()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_guard_taken_during_the_drain_counts_and_can_be_refused() {
    let (trigger, drain) = channel();
    let kind = drain.kind("request");
    let early = kind.try_guard().expect("not signaled yet");
    trigger.signal();
    assert!(kind.try_guard().is_none());
    let late = drain.clone().guard("request");
    tokio::spawn(async move {
        drop(early);
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(late);
    });
    let started = Instant::now();
    assert!(trigger.drain(Duration::from_secs(5)).await.is_clean());
    assert_eq!(started.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_drain_can_be_taken_up_again() {
    let (trigger, drain) = channel();
    let guard = drain.guard("request");
    let cancelled = tokio::time::timeout(Duration::from_secs(1), trigger.drain(Duration::from_secs(60))).await;
    assert!(cancelled.is_err() && drain.is_signaled());
    drop(guard);
    assert!(trigger.drain(Duration::from_secs(60)).await.is_clean());
}

#[tokio::test]
async fn a_panicking_holder_lets_go() {
    let (trigger, drain) = channel();
    let guard = drain.guard("request");
    let task = tokio::spawn(async move {
        let _guard = guard;
        panic!("a bug");
    });
    assert!(trigger.drain(Duration::from_secs(60)).await.is_clean());
    assert!(task.await.unwrap_err().is_panic());
}

/// Work goes from thread to thread, the next guard always taken before the last is dropped: there is no moment without.
#[test]
fn a_handover_is_never_missed() {
    const HANDOVERS: usize = 50_000;
    let (trigger, drain) = channel();
    let passing_on = |from: std::sync::mpsc::Receiver<Guard>, to: std::sync::mpsc::Sender<Guard>| {
        let kind = drain.kind("request");
        std::thread::spawn(move || {
            for last in from.iter().take(HANDOVERS) {
                let next = kind.guard();
                drop(last);
                to.send(next).unwrap();
            }
            // Handed back, so that the last guard stays in its queue.
            from
        })
    };
    let (to_one, from_other) = std::sync::mpsc::channel();
    let (to_other, from_one) = std::sync::mpsc::channel();
    to_one.send(drain.guard("request")).unwrap();
    let threads = [passing_on(from_other, to_other), passing_on(from_one, to_one)];
    let mut looks = 0;
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        assert!(!trigger.shared.is_idle(), "missed after {looks} looks");
        looks += 1;
    }
    let queues = threads.map(|thread| thread.join().unwrap());
    assert_eq!(trigger.waiting().to_string(), "1 request");
    drop(queues);
    assert!(trigger.waiting().is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_drain_ends_with_its_last_guard() {
    for _ in 0..200 {
        let (trigger, drain) = channel();
        let kind = drain.kind("request");
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let kind = kind.clone();
                tokio::spawn(async move {
                    while let Some(_guard) = kind.try_guard() {
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(trigger.drain(Duration::from_secs(60)).await.is_clean());
        for worker in workers {
            worker.await.unwrap();
        }
        assert_eq!(kind.held(), 0);
    }
}
