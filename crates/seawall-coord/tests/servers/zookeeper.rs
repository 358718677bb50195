//! ZooKeeper.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use seawall_coord::{
    Backend, BackendError, ClaimError, Gone, Keep, Oversight, Owner, Released, Session, SessionConfig, Terms, Want,
    Why, ZooKeeper,
};
use seawall_servers::Server;
use tokio::time::{Instant, sleep, timeout};

use crate::{SOON, cases, config, election, name, priorities, until};

pub(crate) fn url(addr: SocketAddr) -> String {
    format!("zookeeper://{addr}/tests")
}

fn terms(ttl: u64) -> Terms {
    Terms { ttl: Duration::from_millis(ttl), owner: Owner::try_new("a").unwrap() }
}

fn want(lock: &str) -> Want {
    Want::new(name(lock))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_backend_does() {
    let server = Server::zookeeper();
    let backend = ZooKeeper::connect(&url(server.addr())).await.unwrap();
    cases::tasks_exclude_each_other(backend.clone(), "exclude").await;
    cases::tries_and_waits_end(backend.clone(), "try").await;
    cases::dropped_futures_leave_nothing(backend.clone(), "drop").await;
    cases::first_come_first_served(backend.clone(), "order").await;
    cases::a_dead_holders_lock_passes_on(backend.clone(), "ü %", Duration::from_secs(1)).await;
    cases::a_closed_session_gives_all_back(backend.clone(), "..").await;
    cases::leaders_follow_each_other(backend.clone(), "elect").await;
    priorities::the_highest_priority_leads_next(backend.clone(), election("ranks"), true).await;
    priorities::a_leader_steps_down_for_a_higher_priority(backend, election("steps-down")).await;
}

/// A dead holder cannot be made of a session whose client goes on to say that it lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_the_server_ended_is_over_for_good() {
    let server = Server::zookeeper();
    let proxy = server.through();
    let through = ZooKeeper::connect(&url(proxy.addr())).await.unwrap();
    let direct = ZooKeeper::connect(&url(server.addr())).await.unwrap();
    let (lease, ttl) = through.open(&terms(1_000)).await.unwrap();
    assert!(ttl >= Duration::from_millis(900) && ttl <= Duration::from_millis(1_100), "{ttl:?}");
    let want = want("x");
    let claim = through.claim(&lease, &want, SOON).await.unwrap();
    let gone = tokio::spawn({
        let (through, lease, claim) = (through.clone(), lease.clone(), claim.clone());
        async move { through.gone(&lease, &claim).await }
    });
    let next = Session::open(direct.clone(), config("next", 5_000)).await.unwrap();
    proxy.cut();
    let guard = next.lock(name("x")).acquire_within(SOON).await.unwrap();
    assert!(guard.fence() > claim.fence.unwrap());
    proxy.heal();
    assert_eq!(timeout(SOON, gone).await.unwrap().unwrap(), Gone::Session);
    assert!(matches!(through.renew(&lease).await, Err(BackendError::NoSession { .. })));
    assert_eq!(through.claim(&lease, &want, SOON).await, Err(ClaimError::Lost(Why::Ended)));
    assert_eq!(through.withdraw(&lease, &want.name, &want.token).await, Ok(Released::WasNotHeld));
    assert!(guard.check().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_holder_knows_before_the_server_gives_it_away() {
    let server = Server::zookeeper();
    let proxy = server.through();
    let cut_off = ZooKeeper::connect(&url(proxy.addr())).await.unwrap();
    let direct = ZooKeeper::connect(&url(server.addr())).await.unwrap();
    let holder = Session::open(cut_off, config("holder", 2_000)).await.unwrap();
    let guard = holder.lock(name("x")).acquire_within(SOON).await.unwrap();
    let next = Session::open(direct, config("next", 5_000)).await.unwrap();
    let waiting = tokio::spawn(async move {
        let guard = next.lock(name("x")).acquire_within(SOON).await.unwrap();
        (Instant::now(), guard)
    });
    sleep(Duration::from_millis(3_000)).await;
    assert!(guard.check().is_ok() && !waiting.is_finished(), "it is kept alive");
    proxy.cut();
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Expired);
    let lost = Instant::now();
    let (acquired, next) = waiting.await.unwrap();
    assert!(lost < acquired && next.fence() > guard.fence());
}

/// The client itself keeps a session alive; one that nobody renews is over for its holder all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_not_renewed_is_over_for_its_holder() {
    let server = Server::zookeeper();
    let backend = ZooKeeper::connect(&url(server.addr())).await.unwrap();
    let config = SessionConfig { keep: Keep::Once, ..config("a", 1_000) };
    let session = Session::open(backend.clone(), config).await.unwrap();
    let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Expired);
    drop(guard);
    drop(session);
    let (lease, _) = backend.open(&terms(5_000)).await.unwrap();
    assert!(backend.claim(&lease, &want("x"), SOON).await.is_ok(), "and its locks are free when it is dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_found_again_and_leaves_nothing() {
    let server = Server::zookeeper();
    let proxy = server.through();
    let backend = ZooKeeper::connect(&url(proxy.addr())).await.unwrap();
    let direct = ZooKeeper::connect(&url(server.addr())).await.unwrap();
    let (lease, _) = backend.open(&terms(5_000)).await.unwrap();
    // So that the lock's node is there.
    let first = want("x");
    backend.claim(&lease, &first, SOON).await.unwrap();
    backend.withdraw(&lease, &first.name, &first.token).await.unwrap();
    for patience in [Duration::ZERO, SOON] {
        let want = want("x");
        proxy.drop_replies();
        let claiming = tokio::spawn({
            let (backend, lease, want) = (backend.clone(), lease.clone(), want.clone());
            async move { backend.claim(&lease, &want, patience).await }
        });
        sleep(Duration::from_millis(300)).await;
        proxy.heal();
        match timeout(SOON, claiming).await.unwrap().unwrap() {
            Ok(claim) => assert_eq!(claim.token, want.token),
            Err(error) => {
                let named = error.to_string().contains(&proxy.addr().to_string());
                assert!(named && patience.is_zero(), "{error}");
            }
        }
        // At most one claim is there, and none after it was withdrawn.
        assert!(direct.show(&name("x")).await.unwrap().queue.is_empty());
        until("it is withdrawn", || async { backend.withdraw(&lease, &want.name, &want.token).await.is_ok() }).await;
        assert_eq!(direct.show(&name("x")).await.unwrap().holder, None);
    }
    assert!(backend.renew(&lease).await.is_ok(), "the session has come through");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_taken_away_by_force() {
    let server = Server::zookeeper();
    let backend = ZooKeeper::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 5_000)).await.unwrap();
    let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    let forced = backend.force(&name("x"), "operator", "").await.unwrap().unwrap();
    assert_eq!((forced.owner.as_str(), forced.fence), ("a", guard.token()));
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Removed);
    assert!(session.check().is_ok());
    assert_eq!(backend.force(&name("x"), "operator", "").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curator_queues_in_the_same_line() {
    let server = Server::zookeeper();
    let backend = ZooKeeper::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 5_000)).await.unwrap();
    session.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
    // As an InterProcessMutex at /tests/lock/x does.
    let curator = zookeeper_client::Client::connect(&server.addr().to_string()).await.unwrap();
    let path = "/tests/lock/x/_c_5d9b8a3e-0f6d-4a51-a0a7-0d2f2f5f3c11-lock-";
    let options = zookeeper_client::CreateMode::EphemeralSequential.with_acls(zookeeper_client::Acls::anyone_all());
    let (_, sequence) = curator.create(path, b"10.0.0.7", &options).await.unwrap();
    let ClaimError::Busy { holder } = session.lock(name("x")).acquire_within(Duration::ZERO).await.unwrap_err() else {
        panic!("busy")
    };
    assert_eq!(holder.unwrap().owner, "?");
    let lock = session.lock(name("x"));
    let waiting = tokio::spawn(async move { lock.acquire_within(SOON).await.map(drop) });
    until("it waits", || async { backend.show(&name("x")).await.unwrap().queue.len() == 1 }).await;
    curator.delete(&format!("{path}{sequence}"), None).await.unwrap();
    timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ensemble_goes_on_without_its_leader_and_says_when_it_only_reads() {
    let mut ensemble = Server::zookeeper_ensemble(3);
    let all: Vec<_> = ensemble.iter().map(|member| member.addr().to_string()).collect();
    let backend = ZooKeeper::connect(&format!("zookeeper://{}/tests", all.join(","))).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 5_000)).await.unwrap();
    let before = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    let fence = before.fence();
    let leader = (0..3).find(|at| status(ensemble[*at].addr()).contains("Mode: leader")).unwrap();
    ensemble[leader].kill9();
    drop(before);
    until("another session gets a larger token", || async {
        let Ok(next) = Session::open(backend.clone(), config("b", 5_000)).await else { return false };
        let Ok(guard) = next.lock(name("x")).acquire_within(Duration::from_secs(5)).await else { return false };
        assert!(guard.fence() > fence);
        true
    })
    .await;
    let second = (0..3).find(|at| *at != leader).unwrap();
    ensemble[second].kill9();
    let last = 3 - leader - second;
    until("it only reads", || async { status(ensemble[last].addr()).contains("Mode: read-only") }).await;
    let asked = Instant::now();
    let error = backend.open(&terms(5_000)).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(15));
    assert!(error.to_string().contains("only reads") && error.retryable(), "{error}");
}

fn status(addr: SocketAddr) -> String {
    let Ok(mut stream) = std::net::TcpStream::connect(addr) else { return String::new() };
    let _ = stream.write_all(b"srvr");
    let mut status = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut status);
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_or_dies_is_named_in_time() {
    let mut server = Server::zookeeper();
    let backend = ZooKeeper::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 5_000)).await.unwrap();
    let held = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    server.pause();
    let asked = Instant::now();
    let error = session.lock(name("y")).try_acquire().await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(15), "{error}");
    assert!(matches!(timeout(SOON, held.lost()).await.unwrap(), Why::Expired));
    let asked = Instant::now();
    let error = backend.open(&terms(1_000)).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(15));
    assert!(error.to_string().contains(&server.addr().to_string()) && error.retryable(), "{error}");
    server.resume();
    server.restart();
    until("it opens sessions again", || async { backend.open(&terms(5_000)).await.is_ok() }).await;
    server.kill9();
    let asked = Instant::now();
    let error = backend.open(&terms(5_000)).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(15) && matches!(error, BackendError::Down { .. }), "{error}");
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
        let error = ZooKeeper::connect(&url(addr)).await.unwrap_err();
        assert!(asked.elapsed() < Duration::from_secs(15));
        assert!(
            matches!(&error, BackendError::Down { .. }) && error.to_string().contains(&addr.to_string()),
            "{error}"
        );
    }
}
