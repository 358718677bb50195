//! PostgreSQL.

use std::io::Write;
use std::time::Duration;

use seawall_coord::{
    Backend, BackendError, ClaimError, Oversight, Owner, PgLease, Released, Session, SessionError, Terms, Want, Why,
};
use seawall_servers::{Proxy, Server};
use tokio::time::{Instant, sleep, timeout};

use crate::{SOON, cases, config, election, name, priorities, until};

pub(crate) fn url(addr: std::net::SocketAddr) -> String {
    format!("postgres://postgres@{addr}/postgres")
}

pub(crate) async fn raw(server: &Server) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&url(server.addr()), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_backend_does() {
    let server = Server::postgres();
    let backend = PgLease::connect(&url(server.addr())).await.unwrap();
    cases::tasks_exclude_each_other(backend.clone(), "exclude").await;
    cases::tries_and_waits_end(backend.clone(), "try").await;
    cases::dropped_futures_leave_nothing(backend.clone(), "drop").await;
    cases::first_come_first_served(backend.clone(), "order").await;
    cases::a_dead_holders_lock_passes_on(backend.clone(), "dead", Duration::from_secs(1)).await;
    cases::a_closed_session_gives_all_back(backend.clone(), "close").await;
    cases::leaders_follow_each_other(backend.clone(), "elect").await;
    priorities::the_highest_priority_leads_next(backend.clone(), election("ranks"), true).await;
    priorities::a_leader_steps_down_for_a_higher_priority(backend, election("steps-down")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connect_to_an_empty_database_at_once() {
    let server = Server::postgres();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let url = url(server.addr());
        tasks.spawn(async move { PgLease::connect(&url).await.map(drop) });
    }
    while let Some(connected) = tasks.join_next().await {
        connected.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_unknown_and_what_it_left_is_cleared_up() {
    let server = Server::postgres();
    let proxy = server.through();
    let backend = PgLease::connect(&url(proxy.addr())).await.unwrap();
    let direct = PgLease::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 60_000)).await.unwrap();
    // The connections are there, and what is asked over them arrives.
    session.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
    proxy.drop_replies();
    let error = session.lock(name("x")).try_acquire().await.unwrap_err();
    assert!(error.to_string().contains(&proxy.addr().to_string()), "{error}");
    let error = session.lock(name("x")).acquire_within(Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, ClaimError::Unknown(_) | ClaimError::Backend(_)), "{error:?}");
    proxy.heal();
    // The session lives, so only its withdrawal clears up the claim that was made.
    until("nothing is left", || async {
        let lock = direct.show(&name("x")).await.unwrap();
        lock.holder.is_none() && lock.queue.is_empty()
    })
    .await;
    assert!(session.check().is_ok());
    session.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_claim_that_the_server_does_later_leaves_nothing() {
    let server = Server::postgres();
    let backend = PgLease::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 60_000)).await.unwrap();
    session.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
    // Somebody has the lock's row, so the claim hangs at the server.
    let raw = raw(&server).await;
    raw.batch_execute("BEGIN; SELECT FROM seawall_lock WHERE name = 'x' FOR UPDATE").await.unwrap();
    let lock = session.lock(name("x"));
    assert!(timeout(Duration::from_millis(300), lock.acquire_within(SOON)).await.is_err());
    // The withdrawal of the dropped future comes first.
    until("it is withdrawn", || async {
        let rows = raw.query("SELECT FROM seawall_claim WHERE name = 'x' AND epoch IS NULL", &[]).await.unwrap();
        !rows.is_empty()
    })
    .await;
    raw.batch_execute("COMMIT").await.unwrap();
    let waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    until("the claim went on", || async { raw.query(waiting, &[]).await.unwrap().is_empty() }).await;
    let lock = backend.show(&name("x")).await.unwrap();
    assert!(lock.holder.is_none() && lock.queue.is_empty(), "{lock:?}");
    session.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_holder_knows_before_the_server_gives_it_away() {
    let server = Server::postgres();
    let proxy = server.through();
    let cut_off = PgLease::connect(&url(proxy.addr())).await.unwrap();
    let direct = PgLease::connect(&url(server.addr())).await.unwrap();
    let holder = Session::open(cut_off, config("holder", 2_000)).await.unwrap();
    let guard = holder.lock(name("x")).acquire_within(SOON).await.unwrap();
    let next = Session::open(direct, config("next", 5_000)).await.unwrap();
    let waiting = tokio::spawn(async move {
        let guard = next.lock(name("x")).acquire_within(SOON).await.unwrap();
        (Instant::now(), guard)
    });
    sleep(Duration::from_millis(2_500)).await;
    assert!(guard.check().is_ok() && !waiting.is_finished(), "it is kept alive");
    proxy.cut();
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Expired);
    let lost = Instant::now();
    let (acquired, next) = waiting.await.unwrap();
    assert!(lost < acquired && next.fence() > guard.fence());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_or_dies_is_named_in_time_and_waits_go_on_after_it() {
    let mut server = Server::postgres();
    let backend = PgLease::connect(&url(server.addr())).await.unwrap();
    let long = Session::open(backend.clone(), config("long", 60_000)).await.unwrap();
    let held = long.lock(name("x")).acquire_within(SOON).await.unwrap();
    let fence = held.fence();
    let waiting = tokio::spawn({
        let lock = Session::open(backend.clone(), config("waits", 60_000)).await.unwrap().lock(name("x"));
        async move { lock.acquire_within(SOON).await.unwrap() }
    });
    server.pause();
    let asked = Instant::now();
    let terms = Terms { ttl: SOON, owner: Owner::try_new("late").unwrap() };
    let error = backend.open(&terms).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    assert!(error.to_string().contains(&server.addr().to_string()) && error.retryable(), "{error}");
    server.resume();
    server.kill9();
    let asked = Instant::now();
    let error = backend.open(&terms).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(15));
    assert!(matches!(error, BackendError::Down { .. } | BackendError::Unknown { .. }), "{error}");
    server.restart();
    assert!(held.check().is_ok(), "a restart takes no lock away from a session that is long enough");
    until("it answers again", || async { backend.open(&terms).await.is_ok() }).await;
    assert!(!waiting.is_finished());
    assert_eq!(held.release().await, Ok(Released::Now));
    assert!(timeout(SOON, waiting).await.unwrap().unwrap().fence() > fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_cannot_do_it_says() {
    let server = Server::postgres_with(&["max_connections=15", "superuser_reserved_connections=0"]);
    let mut held = Vec::new();
    let backend = PgLease::connect(&url(server.addr())).await.unwrap();
    let (lease, _) = backend.open(&Terms { ttl: SOON, owner: Owner::try_new("a").unwrap() }).await.unwrap();
    // A standby, or a primary that was told to only read.
    let admin = raw(&server).await;
    admin
        .batch_execute("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
        .await
        .unwrap_or(());
    admin.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until("it only reads", || async {
        matches!(backend.renew(&lease).await, Err(error @ BackendError::Down { .. }) if error.to_string().contains("25006"))
    })
    .await;
    admin.batch_execute("SET default_transaction_read_only = off").await.unwrap();
    admin.batch_execute("ALTER SYSTEM RESET default_transaction_read_only").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until("it writes again", || async { backend.renew(&lease).await.is_ok() }).await;

    while let Ok((client, connection)) = tokio_postgres::connect(&url(server.addr()), tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        held.push(client);
    }
    let error = PgLease::connect(&url(server.addr())).await.unwrap_err();
    assert!(error.to_string().contains("no connection to spare") && error.retryable(), "{error}");
    drop(held);

    for (user, database, says) in [("nobody", "postgres", "28000"), ("postgres", "nowhere", "3D000")] {
        let url = format!("postgres://{user}@{}/{database}", server.addr());
        let mut error = PgLease::connect(&url).await.unwrap_err();
        let end = Instant::now() + SOON;
        while error.retryable() && Instant::now() < end {
            error = PgLease::connect(&url).await.unwrap_err();
        }
        assert!(error.to_string().contains(says) && !error.retryable(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_silence_are_named_in_time() {
    let garbage = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = garbage.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in garbage.incoming().flatten() {
            let _ = (&stream).write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let silence = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    for addr in [addr, silence.local_addr().unwrap(), nobody] {
        let asked = Instant::now();
        let error = PgLease::connect(&url(addr)).await.unwrap_err();
        assert!(asked.elapsed() < Duration::from_secs(15));
        assert!(
            matches!(&error, BackendError::Down { .. }) && error.to_string().contains(&addr.to_string()),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_ended_sessions_and_bad_terms_change_nothing() {
    let server = Server::postgres();
    let backend = PgLease::connect(&url(server.addr())).await.unwrap();
    let (lease, _) = backend.open(&Terms { ttl: SOON, owner: Owner::try_new("a").unwrap() }).await.unwrap();
    let want = Want::new(name("x"));
    backend.close(&lease).await.unwrap();
    backend.close(&lease).await.unwrap();
    assert_eq!(backend.claim(&lease, &want, SOON).await, Err(ClaimError::Lost(Why::Ended)));
    assert_eq!(backend.withdraw(&lease, &want.name, &want.token).await, Ok(Released::WasNotHeld));
    let error = Session::open(backend.clone(), config("a", 100)).await.unwrap_err();
    assert!(matches!(error, SessionError::Invalid(_)), "{error}");
    assert!(backend.show(&name("x")).await.unwrap().holder.is_none());
}

/// A proxy whose cut is healed: what listens hears again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_heard_at_once_also_after_a_cut() {
    let server = Server::postgres();
    let proxy: Proxy = server.through();
    let backend = PgLease::connect(&url(proxy.addr())).await.unwrap();
    let a = Session::open(backend.clone(), config("a", 60_000)).await.unwrap();
    for round in 0..2 {
        let held = a.lock(name("x")).acquire_within(SOON).await.unwrap();
        let waiting = tokio::spawn({
            let lock = a.lock(name("x"));
            async move { lock.acquire_within(SOON).await.unwrap().release().await.unwrap() }
        });
        until("it waits", || async { backend.show(&name("x")).await.is_ok_and(|lock| lock.queue.len() == 1) }).await;
        if round == 0 {
            proxy.cut();
            sleep(Duration::from_millis(200)).await;
            proxy.heal();
        }
        let _ = held.release().await;
        timeout(SOON, waiting).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_taken_away_by_force_and_tokens_grow_whatever_is_lost() {
    let server = Server::postgres();
    let backend = PgLease::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 60_000)).await.unwrap();
    let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    let forced = backend.force(&name("x"), "operator", "").await.unwrap().unwrap();
    assert_eq!((forced.owner.as_str(), forced.fence), ("a", guard.token()));
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Removed);
    assert_eq!(backend.force(&name("x"), "operator", "").await.unwrap(), None);
    let mut highest = guard.fence();
    let raw = raw(&server).await;
    // As in a backup, or on a standby that had not seen the last commits; and cleared up.
    for lost in ["UPDATE seawall_lock SET epoch = 1", "DELETE FROM seawall_lock"] {
        raw.batch_execute(lost).await.unwrap();
        let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
        assert!(guard.fence() > highest, "{lost}");
        highest = guard.fence();
        guard.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_locks_the_claim_keeps_the_lock_until_its_end() {
    let server = Server::postgres();
    let backend = PgLease::connect(&url(server.addr())).await.unwrap();
    let terms = Terms { ttl: Duration::from_secs(1), owner: Owner::try_new("dead").unwrap() };
    let (lease, _) = backend.open(&terms).await.unwrap();
    let want = Want::new(name("x"));
    let claim = backend.claim(&lease, &want, SOON).await.unwrap();
    let token = i64::try_from(claim.fence.unwrap().get()).unwrap();
    let guard = "SELECT FROM seawall_claim WHERE name = 'x' AND epoch = $1 FOR UPDATE";
    let raw = raw(&server).await;
    raw.batch_execute("BEGIN").await.unwrap();
    assert_eq!(raw.query(guard, &[&token]).await.unwrap().len(), 1);
    let next = Session::open(backend.clone(), config("next", 60_000)).await.unwrap();
    let waiting = tokio::spawn(async move { next.lock(name("x")).acquire_within(SOON).await });
    sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished());
    raw.batch_execute("COMMIT").await.unwrap();
    let next = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    assert!(next.fence() > claim.fence.unwrap());
    assert!(raw.query(guard, &[&token]).await.unwrap().is_empty(), "it is refused from now on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_waiters_passes_one_by_one() {
    let server = Server::postgres();
    let backend = PgLease::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend, config("a", 60_000)).await.unwrap();
    let held = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let lock = session.lock(name("x"));
        tasks.spawn(async move {
            let guard = lock.acquire_within(SOON * 2).await.unwrap();
            let fence = guard.fence();
            guard.release().await.unwrap();
            fence
        });
    }
    held.release().await.unwrap();
    let mut fences = Vec::new();
    while let Some(fence) = timeout(SOON * 2, tasks.join_next()).await.unwrap() {
        fences.push(fence.unwrap());
    }
    fences.sort();
    fences.dedup();
    assert_eq!(fences.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_may_be_between() {
    let server = Server::postgres();
    let pooler = server.pooled("transaction");
    let backend = PgLease::connect(&url(pooler.addr())).await.unwrap();
    cases::tries_and_waits_end(backend.clone(), "try").await;
    cases::first_come_first_served(backend, "order").await;
}
