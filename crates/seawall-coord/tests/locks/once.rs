//! Latches that are set once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use seawall_coord::{Backend, ClaimError, Latches, LockName, OnceError, Owner, StoreBackend, Terms, Want, Why};
use seawall_store::Store;
use tokio::time::{sleep, timeout};

use super::flaky::Flaky;
use super::{SOON, name, session, until};

on_each!(
    one_does_it_and_all_get_the_outcome,
    what_failed_is_done_again,
    a_worker_that_was_lost_sets_nothing,
    a_lost_reply_sets_it_once,
);
on_etcd!(
    one_does_it_and_all_get_the_outcome,
    what_failed_is_done_again,
    a_worker_that_was_lost_sets_nothing,
    a_lost_reply_sets_it_once,
);

async fn nothing_is_left(store: &Arc<dyn Store>) {
    until("no claim is left", || async { store.range("once/").await.unwrap().entries.is_empty() }).await;
}

async fn one_does_it_and_all_get_the_outcome(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let works = Arc::new(AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (session, works) = (session(&backend, &format!("s{n}")).await, works.clone());
        tasks.spawn(async move {
            let work = async |_: &_| {
                sleep(Duration::from_millis(50)).await;
                Ok::<_, String>(format!("outcome {}", works.fetch_add(1, Ordering::SeqCst)))
            };
            session.once(name("x")).get_or_run(SOON, work).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap().unwrap(), "outcome 0");
    }
    let session = session(&backend, "late").await;
    let (once, never) = (session.once(name("x")), async |_: &_| Err("it is set"));
    assert_eq!(once.get().await.unwrap().as_deref(), Some("outcome 0"));
    assert_eq!(once.get_or_run(Duration::ZERO, never).await.as_deref(), Ok("outcome 0"));
    nothing_is_left(&store).await;
    // It is not the lock of its name.
    assert!(session.lock(name("x")).try_acquire().await.unwrap().is_some());
    once.reset().await.unwrap();
    assert_eq!(once.get().await, Ok(None));
    assert_eq!(once.get_or_run(SOON, async |_| Ok::<_, String>("again".into())).await.as_deref(), Ok("again"));
}

async fn what_failed_is_done_again(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await.once(name("x")), session(&backend, "b").await.once(name("x")));
    let failing = a.get_or_run(SOON, async |_| {
        sleep(Duration::from_millis(200)).await;
        Err("no luck")
    });
    let after = async {
        until("it works", || async { !store.range("once/x/").await.unwrap().entries.is_empty() }).await;
        b.get_or_run(SOON, async |_| Ok::<_, String>("luck".into())).await
    };
    let (failed, done) = tokio::join!(failing, after);
    assert_eq!((failed, done.as_deref()), (Err(OnceError::Work("no luck")), Ok("luck")));
    // What is too long is not set.
    let other = session(&backend, "c").await.once(name("y"));
    let long = other.get_or_run(SOON, async |_| Ok::<_, String>("x".repeat(5_000))).await;
    assert!(matches!(&long, Err(OnceError::Unset(error)) if error.to_string().contains("5000 bytes")), "{long:?}");
    assert_eq!(other.get().await, Ok(None));
    nothing_is_left(&store).await;
}

async fn a_worker_that_was_lost_sets_nothing(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await.once(name("x")), session(&backend, "b").await.once(name("x")));
    let began = tokio::sync::Notify::new();
    let lost = a.get_or_run(SOON, async |_| {
        began.notify_one();
        std::future::pending::<Result<String, String>>().await
    });
    let force = async {
        began.notified().await;
        let late = b.get_or_run(Duration::from_millis(50), async |_| Ok::<_, String>("b".into())).await;
        assert!(matches!(late, Err(OnceError::Claim(ClaimError::TimedOut { ahead: 1, .. }))), "{late:?}");
        backend.force(&LockName::of_latch(&name("x")), "operator", "").await.unwrap().unwrap();
        b.get_or_run(SOON, async |_| Ok::<_, String>("b".into())).await
    };
    let (lost, done) = timeout(SOON, async { tokio::join!(lost, force) }).await.unwrap();
    assert_eq!((lost, done.as_deref()), (Err(OnceError::Lost(Why::Removed)), Ok("b")));
    // One that has not heard of its loss sets nothing either.
    let (lease, _) = backend.open(&Terms { ttl: SOON, owner: Owner::try_new("late").unwrap() }).await.unwrap();
    let claim = || Want::new(LockName::of_latch(&name("y")));
    let stale = backend.claim(&lease, &claim(), SOON).await.unwrap();
    backend.force(&stale.name, "operator", "").await.unwrap().unwrap();
    assert_eq!(backend.set_latch(&lease, &stale, "stale").await, Ok(false));
    assert_eq!(backend.latch(&name("y")).await, Ok(None));
    // Whoever's turn it is may say it twice.
    let own = backend.claim(&lease, &claim(), SOON).await.unwrap();
    for (value, set) in [("once", true), ("once", true), ("another", false)] {
        assert_eq!(backend.set_latch(&lease, &own, value).await, Ok(set));
    }
    assert_eq!(backend.set_latch(&lease, &stale, "once").await, Ok(false));
    backend.close(&lease).await.unwrap();
    assert_eq!(backend.latch(&name("y")).await.unwrap().as_deref(), Some("once"));
    nothing_is_left(&store).await;
}

async fn a_lost_reply_sets_it_once(store: Arc<dyn Store>) {
    let flaky = Flaky::new(store.clone(), 5);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let session = session(&backend, "a").await;
    flaky.troubles(0.4);
    for n in 0..20 {
        let once = session.once(name(&n.to_string()));
        let mut works = 0;
        let done = once.get_or_run(SOON, async |_| {
            works += 1;
            Ok::<_, String>(format!("{n}"))
        });
        assert_eq!(done.await.unwrap(), n.to_string());
        assert_eq!(works, 1);
        assert_eq!(once.get().await.unwrap(), Some(n.to_string()));
    }
    flaky.troubles(0.0);
    nothing_is_left(&store).await;
}
