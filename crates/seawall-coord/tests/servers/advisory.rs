//! PostgreSQL's advisory locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use seawall_coord::{Backend, BackendError, ClaimError, Owner, PgAdvisory, Released, Session, Terms, Want, Why};
use seawall_servers::Server;
use tokio::time::{Instant, sleep, timeout};

use crate::postgres::{raw, url};
use crate::{SOON, config, name, until};

async fn session(backend: &PgAdvisory, owner: &str) -> Session<PgAdvisory> {
    Session::open(backend.clone(), config(owner, 10_000)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_tasks_exclude_each_other() {
    let server = Server::postgres();
    let backend = PgAdvisory::connect(&url(server.addr())).await.unwrap();
    let busy = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for owner in 0..3 {
        let session = session(&backend, &format!("owner-{owner}")).await;
        for _ in 0..2 {
            let (session, busy) = (session.clone(), busy.clone());
            tasks.spawn(async move {
                let lock = session.lock(name("one"));
                for round in 0..5 {
                    let guard = lock.acquire_within(SOON).await.unwrap();
                    assert!(!busy.swap(true, Ordering::SeqCst), "two at once");
                    tokio::task::yield_now().await;
                    assert!(busy.swap(false, Ordering::SeqCst));
                    if round % 2 == 0 {
                        assert_eq!(guard.release().await, Ok(Released::Now));
                    }
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_waits_and_dropped_futures_leave_nothing() {
    let server = Server::postgres();
    let backend = PgAdvisory::connect(&url(server.addr())).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let held = a.lock(name("x")).try_acquire().await.unwrap().expect("it is free");
    assert!(a.lock(name("x")).try_acquire().await.unwrap().is_none(), "a session does not have it twice");
    assert!(b.lock(name("x")).try_acquire().await.unwrap().is_none());
    let error = b.lock(name("x")).acquire_within(Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, ClaimError::TimedOut { .. }), "{error}");
    assert_eq!(held.release().await, Ok(Released::Now));
    let lock = b.lock(name("x"));
    for micros in (0..6_000).step_by(200) {
        // The call is dropped wherever it may be; the server does it all the same.
        let _ = timeout(Duration::from_micros(micros), lock.acquire_within(SOON)).await;
    }
    let guard = a.lock(name("x")).acquire_within(SOON).await.unwrap();
    guard.release().await.unwrap();
    let raw = raw(&server).await;
    until("no lock is left", || async {
        raw.query("SELECT FROM pg_locks WHERE locktype = 'advisory'", &[]).await.unwrap().is_empty()
            && raw.query("SELECT FROM seawall_advisory", &[]).await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_the_end_of_its_session() {
    let server = Server::postgres();
    let proxy = server.through();
    let through = PgAdvisory::connect(&url(proxy.addr())).await.unwrap();
    let direct = PgAdvisory::connect(&url(server.addr())).await.unwrap();
    let (a, b) = (session(&through, "a").await, session(&direct, "b").await);
    let held = a.lock(name("x")).acquire_within(SOON).await.unwrap();
    proxy.cut();
    // Long before the time to live is over: the socket says so.
    let from = Instant::now();
    assert_eq!(timeout(SOON, held.lost()).await.unwrap(), Why::Ended);
    assert!(from.elapsed() < Duration::from_secs(5), "{:?}", from.elapsed());
    let next = b.lock(name("x")).acquire_within(SOON).await.unwrap();
    assert_eq!(held.release().await, Ok(Released::WasNotHeld));
    assert!(next.check().is_ok());
    proxy.heal();

    // A process of the server's that was ended by an operator.
    let raw = raw(&server).await;
    raw.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'", &[]).await.unwrap();
    assert_eq!(timeout(SOON, next.lost()).await.unwrap(), Why::Ended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_lost_end_the_session_before_they_can_hold_anything() {
    let server = Server::postgres();
    let proxy = server.through();
    let through = PgAdvisory::connect(&url(proxy.addr())).await.unwrap();
    let direct = PgAdvisory::connect(&url(server.addr())).await.unwrap();
    let (a, b) = (session(&through, "a").await, session(&direct, "b").await);
    proxy.drop_replies();
    let asked = Instant::now();
    let error = a.lock(name("x")).acquire_within(SOON).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(20), "{error}");
    assert!(a.check().is_err() || timeout(SOON, a.loss().wait()).await.is_ok());
    b.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_loses_the_session_in_time() {
    let server = Server::postgres();
    let backend = PgAdvisory::connect(&url(server.addr())).await.unwrap();
    let session = session(&backend, "a").await;
    let held = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    server.pause();
    let from = Instant::now();
    timeout(SOON, held.lost()).await.unwrap();
    assert!(from.elapsed() < Duration::from_secs(15), "{:?}", from.elapsed());
    let terms = Terms { ttl: Duration::from_secs(5), owner: Owner::try_new("b").unwrap() };
    let error = backend.open(&terms).await.unwrap_err();
    assert!(matches!(&error, BackendError::Down { .. }) && error.to_string().contains(&server.addr().to_string()));
    server.resume();
    until("it is free", || async {
        let Ok((lease, _)) = backend.open(&terms).await else { return false };
        let want = Want::new(name("x"));
        backend.claim(&lease, &want, Duration::ZERO).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_one_hash_are_told() {
    let server = Server::postgres();
    let backend = PgAdvisory::connect(&url(server.addr())).await.unwrap();
    // As if somebody held `x`, whose hash is that of `y`.
    let raw = raw(&server).await;
    raw.batch_execute(
        "SELECT pg_advisory_lock(hashtextextended('y', 0));
         INSERT INTO seawall_advisory (hash, name, token, owner, info) VALUES (hashtextextended('y', 0), 'x', '', 'a', '')",
    )
    .await
    .unwrap();
    let session = session(&backend, "b").await;
    let error = session.lock(name("y")).try_acquire().await.unwrap_err().to_string();
    assert!(error.contains("`y`") && error.contains("`x`") && error.contains("same hash"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_is_refused() {
    let server = Server::postgres();
    let pooler = server.pooled("transaction");
    let error = PgAdvisory::connect(&url(pooler.addr())).await.unwrap();
    let terms = Terms { ttl: Duration::from_secs(5), owner: Owner::try_new("b").unwrap() };
    let error = error.open(&terms).await.unwrap_err();
    assert!(
        matches!(&error, BackendError::Refused { .. }) && error.to_string().contains("transaction mode"),
        "{error}"
    );
    let pooler = server.pooled("session");
    let backend = PgAdvisory::connect(&url(pooler.addr())).await.unwrap();
    let session = session(&backend, "a").await;
    let held = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(held.release().await, Ok(Released::Now));
}
