//! Redlock over five Redis.

use std::sync::Arc;
use std::time::Duration;

use seawall_coord::{Backend, BackendError, Redlock, Released, Session, Why};
use seawall_servers::Server;
use tokio::time::{Instant, sleep, timeout};

use crate::{SOON, cases, config, name, unfenced, until};

fn urls(servers: &[Server]) -> Vec<String> {
    servers.iter().map(|server| format!("redis://{}/", server.addr())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_backend_does() {
    let servers = Server::redis_several(5, &[]);
    let backend = Redlock::connect(&urls(&servers)).await.unwrap();
    unfenced::tasks_exclude_each_other(backend.clone(), "exclude").await;
    unfenced::tries_and_waits_end(backend.clone(), "try").await;
    unfenced::dropped_futures_leave_nothing(backend.clone(), "drop").await;
    unfenced::a_dead_holders_lock_passes_on(backend.clone(), "dead", Duration::from_secs(1)).await;
    unfenced::a_closed_session_gives_all_back(backend.clone(), "close").await;
    // With tokens of a store they grow.
    let store = Arc::new(seawall_store::Embedded::memory().unwrap());
    let fenced = backend.with_fences(store).await.unwrap();
    cases::tasks_exclude_each_other(fenced, "fenced").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_may_be_lost_and_three_may_not() {
    let mut servers = Server::redis_several(5, &[]);
    let backend = Redlock::connect(&urls(&servers)).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 4_000)).await.unwrap();
    let held = session.lock(name("held")).acquire_within(SOON).await.unwrap();
    servers[0].kill9();
    servers[3].pause();
    let next = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    assert_eq!(next.release().await, Ok(Released::Now));
    sleep(Duration::from_secs(5)).await;
    assert!(held.check().is_ok(), "it is extended by the three that are left");

    servers[4].kill9();
    let asked = Instant::now();
    let error = session.lock(name("x")).acquire_within(Duration::from_secs(1)).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    for lost in [0, 3, 4] {
        assert!(error.to_string().contains(&servers[lost].addr().to_string()), "{error}");
    }
    assert_eq!(timeout(SOON, held.lost()).await.unwrap(), Why::Expired, "by its own clock");
    // They come back with what they had acknowledged.
    servers[3].resume();
    servers[0].restart();
    servers[4].restart();
    let session = Session::open(backend, config("a", 4_000)).await.unwrap();
    until("they agree again", || async { session.lock(name("held")).try_acquire().await.is_ok_and(|g| g.is_some()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_forgot_is_left_out_until_no_lock_from_before_can_live() {
    let mut servers = Server::redis_several(3, &["--appendonly", "no"]);
    let urls: Vec<_> = servers.iter().map(|server| format!("redis://{}/?max_ttl=3s", server.addr())).collect();
    let error = Redlock::connect(&urls).await.unwrap_err();
    assert!(error.to_string().contains("appendfsync always") && error.retryable(), "{error}");
    until("they have run for long enough", || async { Redlock::connect(&urls).await.is_ok() }).await;
    let backend = Redlock::connect(&urls).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 3_000)).await.unwrap();
    let other = Session::open(backend, config("b", 3_000)).await.unwrap();
    let held = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    // Two of three forget: without the rule both would grant it to the other.
    servers[0].restart();
    servers[1].restart();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2_000) {
        assert!(!other.lock(name("x")).try_acquire().await.is_ok_and(|guard| guard.is_some()) || held.check().is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_sets_of_nodes_are_refused() {
    let servers = Server::redis_several(3, &[]);
    let urls = urls(&servers);
    for wrong in [&urls[..2], &[], &[urls[0].clone(), urls[1].clone(), urls[0].clone()][..]] {
        let error = Redlock::connect(wrong).await.unwrap_err();
        assert!(matches!(error, BackendError::Refused { .. }), "{error:?}");
    }
    let error = Redlock::connect(&["redis://127.0.0.1:1/", "redis://127.0.0.1:2/", &urls[0]]).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1") && error.to_string().contains("127.0.0.1:2"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_are_observed() {
    use seawall_coord::{HandOverError, Observer};
    let servers = Server::redis_several(3, &[]);
    let backend = Redlock::connect(&urls(&servers)).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 5_000)).await.unwrap();
    let mut observer = Observer::new(backend.clone(), crate::election("e"));
    assert_eq!(observer.next().await.unwrap(), None);
    let leads = session.election(crate::election("e")).info("here").campaign(SOON).await.unwrap();
    assert_eq!(observer.next().await.unwrap().unwrap().info, "here");
    leads.publish("there").await.unwrap();
    // The nodes are told one after the other.
    while timeout(SOON, observer.next()).await.unwrap().unwrap().unwrap().info != "there" {}
    let HandOverError::Backend { error, leadership } = leads.hand_over("b").await.unwrap_err() else {
        panic!("refused")
    };
    assert!(error.to_string().contains("resign"), "{error}");
    let ranked = session.election(crate::election("f")).priority(1).campaign(SOON).await.unwrap_err();
    assert!(ranked.to_string().contains("priority"), "{ranked}");
    leadership.resign().await.unwrap();
    while timeout(SOON, observer.next()).await.unwrap().unwrap().is_some() {}
    assert_eq!(backend.limits().max_ttl, Duration::from_secs(60));
}
