//! Redis.

use std::time::Duration;

use seawall_coord::{BackendError, ClaimError, Owner, Redis, Released, Session, Terms, Why};
use seawall_servers::Server;
use tokio::time::{Instant, sleep, timeout};

use crate::{SOON, config, election, name, priorities, unfenced, until};

fn url(addr: std::net::SocketAddr) -> String {
    format!("redis://{addr}/")
}

/// What the server itself says.
async fn raw(server: &Server, words: &[&str]) -> redis::Value {
    let client = redis::Client::open(url(server.addr())).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_backend_does() {
    let server = Server::redis();
    let backend = Redis::connect(&url(server.addr())).await.unwrap();
    unfenced::tasks_exclude_each_other(backend.clone(), "exclude").await;
    unfenced::tries_and_waits_end(backend.clone(), "try").await;
    unfenced::dropped_futures_leave_nothing(backend.clone(), "drop").await;
    unfenced::a_dead_holders_lock_passes_on(backend.clone(), "dead", Duration::from_secs(1)).await;
    unfenced::a_closed_session_gives_all_back(backend.clone(), "close").await;
    unfenced::leaders_follow_each_other(backend.clone(), "elect").await;
    priorities::the_highest_priority_leads_next(backend.clone(), election("ranks"), false).await;
    priorities::a_leader_steps_down_for_a_higher_priority(backend, election("steps-down")).await;
    until("every key is gone", || async { raw(&server, &["KEYS", "*}"]).await == redis::Value::Array(vec![]) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_unknown_and_what_it_left_is_cleared_up() {
    let server = Server::redis();
    let proxy = server.through();
    let backend = Redis::connect(&url(proxy.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 60_000)).await.unwrap();
    session.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
    proxy.drop_replies();
    let error = session.lock(name("x")).acquire_within(Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, ClaimError::Unknown(_) | ClaimError::Backend(_)), "{error:?}");
    assert!(error.to_string().contains(&proxy.addr().to_string()), "{error}");
    proxy.heal();
    // The session lives, so only its withdrawal clears up the claim that was made.
    until("nothing is left", || async { raw(&server, &["EXISTS", "seawall:{lock/x}"]).await == redis::Value::Int(0) })
        .await;
    assert!(session.check().is_ok());
    session.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_a_paused_server_carries_out_later_does_not_come_back() {
    let server = Server::redis();
    let backend = Redis::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 60_000)).await.unwrap();
    session.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
    server.pause();
    let lock = session.lock(name("x"));
    assert!(timeout(Duration::from_millis(300), lock.acquire_within(SOON)).await.is_err(), "dropped while it was sent");
    sleep(Duration::from_millis(300)).await;
    server.resume();
    let other = Session::open(backend, config("b", 60_000)).await.unwrap();
    other.lock(name("x")).acquire_within(SOON).await.unwrap().release().await.unwrap();
    assert_eq!(raw(&server, &["EXISTS", "seawall:{lock/x}"]).await, redis::Value::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_holder_knows_before_the_server_gives_it_away() {
    let server = Server::redis();
    let proxy = server.through();
    let cut_off = Redis::connect(&url(proxy.addr())).await.unwrap();
    let direct = Redis::connect(&url(server.addr())).await.unwrap();
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
    assert!(lost < acquired && next.check().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_deleted_by_hand_is_lost_at_once() {
    let server = Server::redis();
    let backend = Redis::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend, config("a", 3_000)).await.unwrap();
    let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    let other = session.lock(name("y")).acquire_within(SOON).await.unwrap();
    raw(&server, &["DEL", "seawall:{lock/x}"]).await;
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Removed);
    assert!(other.check().is_ok(), "its neighbour stays");
    assert_eq!(guard.release().await, Ok(Released::WasNotHeld));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_may_have_forgotten_locks_is_refused_for_as_long_as_one_lives() {
    let server = Server::redis_several(1, &["--appendonly", "no"]).remove(0);
    let error = Redis::connect(&url(server.addr())).await.unwrap_err();
    assert!(error.to_string().contains("appendfsync always"), "{error}");
    assert!(matches!(error, BackendError::Down { .. }), "{error:?}");
    until("it has run for long enough", || async {
        Redis::connect(&format!("redis://{}/?max_ttl=2s", server.addr())).await.is_ok()
    })
    .await;
    let backend = Redis::connect(&format!("redis://{}/?max_ttl=2s", server.addr())).await.unwrap();
    let error = Session::open(backend, config("a", 3_000)).await.unwrap_err();
    assert!(error.to_string().contains("2s"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_named_in_time() {
    let mut server = Server::redis();
    let backend = Redis::connect(&url(server.addr())).await.unwrap();
    let session = Session::open(backend.clone(), config("a", 60_000)).await.unwrap();
    let lock = session.lock(name("x"));
    // Full.
    raw(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = lock.try_acquire().await.unwrap_err();
    assert!(error.to_string().contains("maxmemory"), "{error}");
    raw(&server, &["CONFIG", "SET", "maxmemory", "0"]).await;
    // A replica.
    raw(&server, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = lock.try_acquire().await.unwrap_err();
    assert!(error.to_string().contains("name the primary"), "{error}");
    raw(&server, &["REPLICAOF", "NO", "ONE"]).await;
    // Somebody else's key.
    raw(&server, &["SET", "seawall:{lock/x}", "mine"]).await;
    let error = lock.try_acquire().await.unwrap_err();
    assert!(error.to_string().contains("seawall:{lock/x}"), "{error}");
    raw(&server, &["DEL", "seawall:{lock/x}"]).await;
    let guard = lock.try_acquire().await.unwrap().expect("it is free again");
    guard.release().await.unwrap();
    // Paused, then dead.
    server.pause();
    let terms = Terms { ttl: SOON, owner: Owner::try_new("late").unwrap() };
    let asked = Instant::now();
    let error = seawall_coord::Backend::open(&backend, &terms).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(15) && error.retryable(), "{error}");
    server.resume();
    server.kill9();
    let error = seawall_coord::Backend::open(&backend, &terms).await.unwrap_err();
    assert!(error.to_string().contains(&server.addr().to_string()) && error.retryable(), "{error}");
    // Garbage.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = Redis::connect(&url(addr)).await.unwrap_err();
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    for (wrong, says) in [("redis://127.0.0.1:1/?ttl=3", "ttl=3"), ("http://127.0.0.1:1", "URL")] {
        let error = Redis::connect(wrong).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// A backend that is only known by its address does the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_found_by_its_address() {
    use seawall_coord::{AnyLocks, LocksUrl, Need};
    let servers = Server::redis_several(4, &[]);
    let nodes: Vec<_> = servers.iter().map(|server| server.addr().to_string()).collect();
    let open = |url: String, need| async move { AnyLocks::open(&url.parse::<LocksUrl>().unwrap(), need).await };
    let error = open(format!("redis://{}", nodes[0]), Need::Fence).await.unwrap_err();
    assert!(error.to_string().contains("cannot give a fencing token"), "{error}");
    let backend = open(format!("redis://{}", nodes[0]), Need::Lease).await.unwrap();
    unfenced::tasks_exclude_each_other(backend.clone(), "any").await;
    unfenced::a_closed_session_gives_all_back(backend.clone(), "any").await;
    unfenced::leaders_follow_each_other(backend.clone(), "any").await;
    let session = Session::open(backend, config("a", 5_000)).await.unwrap();
    assert_eq!(session.lock(name("x")).acquire_within(SOON).await.unwrap().token(), None);
    let etcd = Server::etcd();
    let url = format!("redlock://{}?fences=etcd://{}", nodes[1..].join(","), etcd.addr());
    let session = Session::open(open(url, Need::Fence).await.unwrap(), config("a", 5_000)).await.unwrap();
    let token = session.lock(name("x")).acquire_within(SOON).await.unwrap().token().unwrap();
    assert!(session.lock(name("x")).acquire_within(SOON).await.unwrap().token().unwrap() > token);
}
