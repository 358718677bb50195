//! The etcd backend on a real etcd.

use std::sync::Arc;
use std::time::{Duration, Instant};

use seawall_servers::Server;
use seawall_store::{
    CommitError, Compare, Entry, Etcd, Keys, LeaseId, Op, OpResult, ReadError, Store, Txn, WatchError,
};
use seawall_types::Revision;

async fn connect(addr: std::net::SocketAddr) -> Etcd {
    Etcd::connect(&[addr.to_string()], "test/a").await.expect("it answers")
}

seawall_store::conformance!(etcd, {
    let server = Server::etcd();
    (Arc::new(connect(server.addr()).await), server)
});

#[tokio::test]
async fn prefixes_are_worlds_of_their_own() {
    let server = Server::etcd();
    let one = connect(server.addr()).await;
    let other = Etcd::connect(&[server.addr().to_string()], "test").await.unwrap();
    let next = Etcd::connect(&[server.addr().to_string()], "test/b").await.unwrap();
    let (_, mut watch) = one.watch_now(Keys::prefix("")).await.unwrap();
    let lease = next.grant(Duration::from_secs(60)).await.unwrap().id;
    let theirs = Op::Put { key: "k".into(), value: "3".into(), lease: Some(lease) };
    next.commit(Txn { then: vec![theirs], ..Txn::default() }).await.unwrap();
    let written = one.commit(Txn::put("k", "1")).await.unwrap().revision;
    assert_eq!(one.range("").await.unwrap().entries.len(), 1);
    assert_eq!(next.range("").await.unwrap().entries.len(), 1);
    assert_eq!(one.lease(lease).await.unwrap().unwrap().keys, []);
    assert_eq!(next.lease(lease).await.unwrap().unwrap().keys, ["k".into()]);
    // A shorter prefix contains a longer one.
    let keys = other.range("").await.unwrap().entries;
    assert_eq!(keys.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["a/k", "b/k"]);
    let events = watch.next().await.unwrap();
    assert_eq!(events.iter().map(|e| (&*e.key, e.revision)).collect::<Vec<_>>(), [("k", written)]);
}

/// More than one page of keys; the first and the last are always written together.
#[tokio::test]
async fn a_snapshot_is_of_one_revision_while_somebody_writes() {
    let server = Server::etcd();
    let store = connect(server.addr()).await;
    for page in 0..30 {
        let put = |n: u32| Op::Put { key: format!("k/{page:02}/{n:02}"), value: vec![b'x'; 1_000].into(), lease: None };
        store.commit(Txn { then: (0..100).map(put).collect(), ..Txn::default() }).await.unwrap();
    }
    let writer = connect(server.addr()).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = tokio::spawn(async move {
        let mut stopped = stopped;
        for n in 0u32.. {
            let put = |key: &str| Op::Put { key: key.to_owned(), value: n.to_string().into(), lease: None };
            writer.commit(Txn { then: vec![put("a"), put("z")], ..Txn::default() }).await.unwrap();
            if stopped.try_recv().is_ok() {
                return n;
            }
        }
        0
    });
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let snapshot = store.snapshot().await.unwrap();
        let value =
            |key: &str| snapshot.entries.iter().find(|entry| &*entry.key == key).map(|entry| entry.value.clone());
        assert_eq!(value("a"), value("z"));
        assert!(
            snapshot.entries.len() >= 3_000 && snapshot.entries.iter().all(|entry| entry.modified <= snapshot.revision)
        );
        seen.extend(value("a"));
    }
    stop.send(()).unwrap();
    assert!(writing.await.unwrap() > 20 && seen.len() > 5, "somebody wrote meanwhile: {}", seen.len());
}

#[tokio::test]
async fn numbers_that_etcd_reads_otherwise_mean_what_they_say() {
    let server = Server::etcd();
    let store = connect(server.addr()).await;
    store.commit(Txn::put("k", "v")).await.unwrap();
    let (k, x) = (|| "k".to_owned(), || "x".to_owned());
    let never = [
        Compare::Created(x(), Revision(0)),
        Compare::Modified(x(), Revision(0)),
        Compare::Version(x(), 0),
        Compare::Lease(x(), LeaseId(0)),
        Compare::Lease(k(), LeaseId(0)),
        Compare::Modified(k(), Revision(u64::MAX)),
        Compare::Lease(k(), LeaseId(u64::MAX)),
    ];
    for compare in never {
        assert!(!store.commit(Txn::default().when(compare.clone())).await.unwrap().succeeded, "{compare:?}");
    }
    let always = Compare::Unmodified(k(), Revision(u64::MAX));
    assert!(store.commit(Txn::default().when(always)).await.unwrap().succeeded);
    store.commit(Txn::put("q/1", "v")).await.unwrap();
    for (before, found) in [(0, false), (1, false), (3, false), (4, true), (u64::MAX, true)] {
        let newest = Op::NewestBefore("q/".into(), Revision(before));
        let done = store.commit(Txn { then: vec![newest], ..Txn::default() }).await.unwrap();
        assert_eq!(matches!(done.results[..], [OpResult::Got(Some(_))]), found, "before {before}");
    }
    for lease in [LeaseId(0), LeaseId(u64::MAX)] {
        let op = Op::Put { key: k(), value: "w".into(), lease: Some(lease) };
        let error = store.commit(Txn { then: vec![op], ..Txn::default() }).await.unwrap_err();
        assert_eq!(error, CommitError::NoLease(lease));
        assert_eq!(store.keep_alive(lease).await, Err(CommitError::NoLease(lease)));
        assert_eq!(store.revoke(lease).await, Err(CommitError::NoLease(lease)));
        assert_eq!(store.lease(lease).await, Ok(None));
    }
}

#[tokio::test]
async fn of_several_leases_the_one_that_is_missing_is_named() {
    let server = Server::etcd();
    let store = connect(server.addr()).await;
    let there = store.grant(Duration::from_secs(60)).await.unwrap().id;
    let gone = store.grant(Duration::from_secs(60)).await.unwrap().id;
    store.revoke(gone).await.unwrap();
    let put = |key: &str, lease| Op::Put { key: key.into(), value: "v".into(), lease: Some(lease) };
    let txn = Txn { then: vec![put("a", there), put("b", gone)], ..Txn::default() };
    assert_eq!(store.commit(txn).await, Err(CommitError::NoLease(gone)));
    // That of the branch that was taken.
    let other = Txn { then: vec![put("a", LeaseId(7))], otherwise: vec![put("b", gone)], ..Txn::default() };
    assert_eq!(store.commit(other.clone()).await, Err(CommitError::NoLease(LeaseId(7))));
    assert_eq!(store.commit(other.when(Compare::Exists("x".into()))).await, Err(CommitError::NoLease(gone)));
}

/// The deletion at the very revision that was compacted is lost to etcd's own watches.
#[tokio::test]
async fn a_watch_from_the_compacted_revision_is_refused_rather_than_lossy() {
    let server = Server::etcd();
    let store = connect(server.addr()).await;
    store.commit(Txn::put("k", "1")).await.unwrap();
    let deleted = store.commit(Txn::delete("k")).await.unwrap().revision;
    store.commit(Txn::put("other", "1")).await.unwrap();
    store.compact(deleted).await.unwrap();
    let events = store.watch(Keys::one("k"), deleted).await.unwrap().next().await.unwrap();
    assert_eq!((events.len(), &events[0].entry), (1, &None), "kept whole");
    store.compact(deleted.next()).await.unwrap();
    let error = store.watch(Keys::one("k"), deleted).await.unwrap_err();
    assert_eq!(error, WatchError::Compacted { oldest: deleted.next() });
    assert_eq!(store.status().await.unwrap().oldest, deleted.next());
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_has_an_unknown_outcome() {
    let server = Server::etcd();
    let proxy = server.through();
    let store = connect(proxy.addr()).await;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap().id;
    store.commit(Txn::put("a", "0")).await.unwrap();
    proxy.drop_replies();
    let began = Instant::now();
    let read = Txn { then: vec![Op::Get("a".into())], ..Txn::default() };
    let (write, renew, read, get) =
        tokio::join!(store.commit(Txn::put("a", "1")), store.keep_alive(lease), store.commit(read), store.get("a"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let addr = proxy.addr().to_string();
    let CommitError::Unknown(why) = write.unwrap_err() else { panic!("not unknown") };
    assert!(why.contains(&addr), "{why}");
    assert!(matches!(renew, Err(CommitError::Unknown(_))), "{renew:?}");
    assert!(matches!(read, Err(CommitError::Unavailable(_))), "a reading has written nothing: {read:?}");
    let ReadError::Unavailable(why) = get.unwrap_err();
    assert!(why.contains(&addr), "{why}");
    proxy.heal();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "1", "it was written after all");
}

#[tokio::test]
async fn a_write_that_nobody_saw_is_unavailable() {
    let mut server = Server::etcd();
    let store = connect(server.addr()).await;
    store.commit(Txn::put("a", "0")).await.unwrap();
    server.kill9();
    let addr = server.addr().to_string();
    // The connection may notice during the first one.
    let _ = store.commit(Txn::put("a", "1")).await;
    let began = Instant::now();
    let CommitError::Unavailable(why) = store.commit(Txn::put("a", "2")).await.unwrap_err() else { panic!("unknown") };
    assert!(why.contains(&addr) && began.elapsed() < Duration::from_secs(1), "{why}");
    server.restart();
    store.commit(Txn::put("a", "3")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "3");
}

#[tokio::test]
async fn every_call_has_a_deadline() {
    let server = Server::etcd();
    let store = connect(server.addr()).await;
    server.pause();
    let began = Instant::now();
    let (commit, grant, range, watch, status) = tokio::join!(
        store.commit(Txn::put("a", "1")),
        store.grant(Duration::from_secs(9)),
        store.range(""),
        store.watch_now(Keys::prefix("")),
        store.status()
    );
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(matches!(commit, Err(CommitError::Unknown(_))), "{commit:?}");
    assert!(matches!(grant, Err(CommitError::Unknown(_))), "{grant:?}");
    assert!(range.is_err() && status.is_err());
    assert!(matches!(watch, Err(WatchError::Unavailable(_))), "{watch:?}");
    server.resume();
    store.commit(Txn::put("b", "1")).await.unwrap();
}

#[tokio::test]
async fn the_next_member_is_asked_when_one_is_gone() {
    let server = Server::etcd();
    let proxy = server.through();
    let endpoints = [proxy.addr().to_string(), server.addr().to_string()];
    let store = Etcd::connect(&endpoints, "test").await.unwrap();
    let (_, mut watch) = store.watch_now(Keys::prefix("")).await.unwrap();
    proxy.cut();
    let _ = store.commit(Txn::put("a", "1")).await;
    store.commit(Txn::put("a", "2")).await.unwrap();
    let mut last = None;
    while last.as_deref() != Some(&b"2"[..]) {
        let events = watch.next().await.unwrap();
        last = events.last().and_then(|event| event.entry.as_ref()).map(|entry| entry.value.to_vec());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_misses_nothing_while_connections_break_and_the_server_restarts() {
    let mut server = Server::etcd();
    let proxy = server.through();
    let watcher = connect(proxy.addr()).await;
    let mut watch = watcher.watch(Keys::prefix("k"), Revision(2)).await.unwrap();
    let writer = connect(server.addr()).await;
    for round in 0..5u64 {
        for n in 0..20 {
            writer.commit(Txn::put("k", (round * 20 + n).to_string())).await.unwrap();
        }
        match round {
            2 => {
                server.restart();
                let _ = writer.get("k").await;
            }
            3 => {
                proxy.drop_replies();
                writer.commit(Txn::put("unseen", "x")).await.unwrap();
                proxy.heal();
            }
            _ => {
                proxy.cut();
                proxy.heal();
            }
        }
    }
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let events = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("it goes on").unwrap();
        seen.extend(events.into_iter().map(|event| event.entry.unwrap().value));
    }
    assert_eq!(seen, (0..100).map(|n| n.to_string().into_bytes()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_nobody_asks_holds_up_nothing_and_misses_nothing() {
    let server = Server::etcd();
    let store = connect(server.addr()).await;
    let (_, mut slow) = store.watch_now(Keys::prefix("k")).await.unwrap();
    let value = vec![b'x'; 100_000];
    // More than the connection's window and the queue's places.
    for _ in 0..150 {
        store.commit(Txn::put("k", value.clone())).await.unwrap();
    }
    let mut revisions = Vec::new();
    while revisions.len() < 150 {
        revisions.extend(slow.next().await.unwrap().iter().map(|event| event.revision.0));
    }
    assert_eq!(revisions, (2..152).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_watch_whose_place_is_compacted_while_it_is_away_says_so() {
    let server = Server::etcd();
    let proxy = server.through();
    let watcher = connect(proxy.addr()).await;
    let (_, mut watch) = watcher.watch_now(Keys::prefix("k")).await.unwrap();
    let writer = connect(server.addr()).await;
    proxy.cut();
    writer.commit(Txn::put("k", "1")).await.unwrap();
    let last = writer.commit(Txn::put("k", "2")).await.unwrap().revision;
    writer.compact(last).await.unwrap();
    proxy.heal();
    let compacted = Err(WatchError::Compacted { oldest: last });
    assert_eq!(watch.next().await, compacted);
    assert_eq!(watch.next().await, compacted, "it is said again");
}

/// Each member in turn is killed, or stopped without a word, and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_loses_its_members_in_turn_and_nothing_that_was_acknowledged() {
    let mut cluster = Server::etcd_cluster(3);
    let addrs: Vec<_> = cluster.iter().map(|server| server.addr().to_string()).collect();
    let store = Etcd::connect(&addrs, "test").await.unwrap();
    let mut watch = store.watch(Keys::one("k"), Revision(2)).await.unwrap();
    let lease = store.grant(Duration::from_secs(30)).await.unwrap().id;
    let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let member = &mut cluster[round % 3];
        let kill = round < 3;
        if kill {
            member.kill9()
        } else {
            member.pause()
        }
        let began = Instant::now();
        for n in 0..10 {
            // Written again until it is known to be there.
            let value = format!("{round}-{n}");
            loop {
                match store.commit(Txn::put("k", value.clone())).await {
                    Ok(done) => break acknowledged.push((done.revision, value)),
                    Err(CommitError::Unknown(_)) => unknown.push(value.clone()),
                    Err(CommitError::Unavailable(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        println!("round {round}: {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        store.keep_alive(lease).await.unwrap();
        if kill { member.restart() } else { member.resume() }
    }
    let mut seen = Vec::new();
    while !seen.contains(acknowledged.last().unwrap()) {
        let events = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("it goes on").unwrap();
        let value = |entry: Option<Entry>| String::from_utf8(entry.unwrap().value.to_vec()).unwrap();
        seen.extend(events.into_iter().map(|event| (event.revision, value(event.entry))));
    }
    assert!(seen.is_sorted_by(|last, next| last.0 < next.0), "{seen:?}");
    assert!(acknowledged.iter().all(|write| seen.contains(write)), "{acknowledged:?} but {seen:?}");
    // A member that was stopped does what it was asked when it goes on, long after others have done more.
    for more in seen.iter().filter(|write| !acknowledged.contains(write)) {
        let at = unknown.iter().position(|value| *value == more.1);
        unknown.swap_remove(at.unwrap_or_else(|| panic!("{more:?} was said not to be written: {seen:?}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watches_share_a_connection() {
    let server = Server::etcd();
    let store = connect(server.addr()).await;
    let mut watches = Vec::new();
    for n in 0..1000 {
        watches.push(store.watch_now(Keys::one(n.to_string())).await.unwrap().1);
    }
    for (n, watch) in watches.iter_mut().enumerate() {
        let written = store.commit(Txn::put(n.to_string(), "v")).await.unwrap().revision;
        assert_eq!(watch.next().await.unwrap()[0].revision, written);
    }
    // Those that are let go of free their place.
    drop(watches);
    for n in 0..1000 {
        store.watch_now(Keys::one(n.to_string())).await.unwrap();
    }
    store.commit(Txn::put("k", "v")).await.unwrap();
}

#[tokio::test]
async fn a_full_etcd_says_so() {
    let server = Server::etcd_with(&["--quota-backend-bytes", "2000000"]);
    let store = connect(server.addr()).await;
    let value = vec![b'x'; 300_000];
    let mut refused = None;
    for n in 0..200 {
        if let Err(error) = store.commit(Txn::put(format!("{n}"), value.clone())).await {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(CommitError::Full(_))), "{refused:?}");
    assert!(store.get("0").await.unwrap().is_some(), "it can still be read");
}

#[tokio::test]
async fn what_is_no_etcd_is_named() {
    // Nobody, one who says nothing, one who speaks HTTP/1.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = silent.local_addr().unwrap().port().wrapping_sub(1).max(1024);
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addrs = [
        format!("127.0.0.1:{nobody}"),
        silent.local_addr().unwrap().to_string(),
        other.local_addr().unwrap().to_string(),
    ];
    std::thread::spawn(move || {
        for stream in other.incoming().map_while(Result::ok) {
            let _ = std::io::Write::write_all(&mut &stream, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    for addr in addrs {
        let began = Instant::now();
        let ReadError::Unavailable(why) = Etcd::connect(std::slice::from_ref(&addr), "test").await.unwrap_err();
        assert!(why.contains(&addr), "{why}");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        println!("{why}");
    }
}

/// etcd breaks connections that ask too often whether it is there.
#[tokio::test]
async fn a_quiet_watch_keeps_its_connection() {
    let server = Server::etcd();
    let store = connect(server.addr()).await;
    let (_, mut watch) = store.watch_now(Keys::one("k")).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(20), watch.next()).await.is_err(), "nothing has happened");
    assert!(!server.log().contains("too_many_pings"));
    store.commit(Txn::put("k", "1")).await.expect("the connection still holds");
    watch.next().await.unwrap();
}
