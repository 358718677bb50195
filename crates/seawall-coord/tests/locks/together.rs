//! Several locks at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use seawall_coord::{ClaimError, LockName, Released, StoreBackend, Why};
use seawall_store::Store;
use tokio::time::timeout;

use super::{SOON, name, nothing_is_left, queued, session};

on_each!(all_of_them_or_none, whoever_wants_the_same_locks_never_waits_for_each_other);
on_etcd!(all_of_them_or_none, whoever_wants_the_same_locks_never_waits_for_each_other);

fn names(text: &str) -> Vec<LockName> {
    text.split(' ').map(name).collect()
}

async fn all_of_them_or_none(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let three = a.multi_lock(names("c a b a"));
    assert_eq!(three.names(), names("a b c"));
    let guard = three.acquire_within(SOON).await.unwrap();
    assert!(guard.check().unwrap() > Duration::from_secs(1));
    assert_eq!(guard.guards().len(), 3);
    assert!(guard.fence(&name("b")) > guard.fence(&name("a")) && guard.fence(&name("d")).is_none());
    assert!(b.multi_lock(names("b x")).try_acquire().await.unwrap().is_none());
    assert_eq!(guard.release().await, Ok(Released::Now));
    nothing_is_left(&backend, &store).await;
    // The last of them is not to be had in time; the others were, and are given back.
    let held = b.lock(name("c")).acquire_within(SOON).await.unwrap();
    let error = three.acquire_within(Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(error.name, name("c"));
    assert!(matches!(error.error, ClaimError::TimedOut { ahead: 1, .. }), "{error}");
    assert!(error.to_string().starts_with("lock `c`: it was not free within"), "{error}");
    assert!(timeout(SOON, b.multi_lock(names("a b")).acquire_within(SOON)).await.unwrap().is_ok());
    // A future that is dropped while it waits for the last.
    let waiting = tokio::spawn(async move { three.acquire_within(SOON).await });
    queued(&backend, "c", 1).await;
    waiting.abort();
    // One that was running at that moment may still come to its end, and would hold what it has been given.
    assert!(waiting.await.is_err_and(|error| error.is_cancelled()), "it has not come to have them");
    drop(held);
    nothing_is_left(&backend, &store).await;
    // One that is taken away is the loss of all.
    let guard = a.multi_lock(names("a b")).acquire_within(SOON).await.unwrap();
    let force = async { backend.force(&name("b"), "operator", "").await.unwrap() };
    let (worked, _) = tokio::join!(timeout(SOON, guard.run(std::future::pending::<()>())), force);
    assert_eq!((worked.unwrap(), guard.check()), (Err(Why::Removed), Err(Why::Removed)));
    assert_eq!(guard.release().await, Ok(Released::WasNotHeld));
    nothing_is_left(&backend, &store).await;
    let many = (0..65).map(|n| name(&n.to_string()));
    let error = a.multi_lock(many).try_acquire().await.unwrap_err().to_string();
    assert!(error.contains("65 locks at a time: at most 64"), "{error}");
    assert_eq!(a.multi_lock([]).acquire_within(SOON).await.unwrap().check(), Ok(Duration::MAX));
}

async fn whoever_wants_the_same_locks_never_waits_for_each_other(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let inside: Arc<[AtomicI64; 5]> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8_u64 {
        let (session, inside) = (session(&backend, &format!("s{n}")).await, inside.clone());
        tasks.spawn(async move {
            let mut random = fastrand::Rng::with_seed(n);
            for _ in 0..10 {
                let mut which: Vec<_> = (0..5_usize).collect();
                random.shuffle(&mut which);
                which.truncate(random.usize(2..5));
                let locks = session.multi_lock(which.iter().map(|n| name(&n.to_string())));
                let guard = locks.acquire_within(SOON).await.unwrap();
                for n in &which {
                    assert_eq!(inside[*n].fetch_add(1, Ordering::SeqCst), 0);
                }
                tokio::task::yield_now().await;
                for n in &which {
                    inside[*n].fetch_sub(1, Ordering::SeqCst);
                }
                if random.bool() {
                    assert_eq!(guard.release().await, Ok(Released::Now));
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    nothing_is_left(&backend, &store).await;
}
