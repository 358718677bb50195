//! What the embedded store keeps when its process is killed, its file is damaged or taken.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use seawall_store::sqlite::OpenError;
use seawall_store::{Embedded, Keys, Op, Store, Txn};
use seawall_types::Revision;

/// In the child: writes from several tasks and prints what has been acknowledged, until it is killed.
#[test]
fn writer_child() {
    let Ok(path) = std::env::var("SEAWALL_TEST_STORE") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(Path::new(&path)).unwrap();
        for writer in 0..4 {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0u64.. {
                    let key = format!("w{writer}/{n}");
                    let revision = store.commit(Txn::put(key.clone(), n.to_string())).await.unwrap().revision;
                    // One write, so that a line is whole or absent.
                    std::io::stdout().write_all(format!("\nack {key} {revision}\n").as_bytes()).unwrap();
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
    });
}

#[tokio::test]
async fn every_acknowledged_write_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut highest = 1;
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer_child", "--exact", "--nocapture"])
            .env("SEAWALL_TEST_STORE", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = Vec::new();
        let wanted = 50 + round as usize * 37;
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some(rest) = line.strip_prefix("ack ") {
                let (key, revision) = rest.split_once(' ').unwrap();
                acknowledged.push((key.to_owned(), Revision(revision.parse().unwrap())));
            }
            if acknowledged.len() == wanted {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= wanted, "the child stopped by itself");
        let store = Embedded::open(&path).unwrap();
        for (key, revision) in &acknowledged {
            let entry = store.get(key).await.unwrap().unwrap_or_else(|| panic!("{key} was lost"));
            assert_eq!(entry.modified, *revision);
            assert!(revision.0 > highest, "a revision was given twice");
        }
        highest = store.range("").await.unwrap().revision.0;
        let events = store.watch(Keys::prefix(""), Revision(2)).await.unwrap().next().await.unwrap();
        let told: Vec<u64> = events.iter().map(|event| event.revision.0).collect();
        assert_eq!(told, (2..=highest).collect::<Vec<_>>(), "the history has no gap and no repetition");
    }
}

/// A power cut, as far as one can be had: the writer is stopped at any moment, and what its files are then is opened elsewhere.
#[tokio::test]
async fn every_acknowledged_write_is_in_the_files_as_they_are_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["writer_child", "--exact", "--nocapture"])
        .env("SEAWALL_TEST_STORE", &path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    let (acknowledge, acknowledged) = std::sync::mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if let Some((key, revision)) = line.strip_prefix("ack ").and_then(|rest| rest.split_once(' ')) {
                let _ = acknowledge.send((key.to_owned(), Revision(revision.parse().unwrap())));
            }
        }
    });
    let mut known: Vec<(String, Revision)> = vec![acknowledged.recv_timeout(Duration::from_secs(60)).unwrap()];
    for round in 0..25 {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..40_000))).await;
        signal(rustix::process::Signal::STOP);
        // It has stopped when its state says so; what it has told by then precedes the copy.
        let stopped = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(") T ");
        while !stopped() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        known.extend(acknowledged.try_iter());
        let copy = tempfile::tempdir().unwrap();
        for file in ["store.db", "store.db-wal"] {
            std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
        }
        signal(rustix::process::Signal::CONT);
        let store = Embedded::open(&copy.path().join("store.db")).unwrap();
        for (key, revision) in &known {
            let entry = store.get(key).await.unwrap().unwrap_or_else(|| panic!("round {round}: {key} was lost"));
            assert_eq!(entry.modified, *revision);
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(known.len() > 50, "{}", known.len());
}

#[tokio::test]
async fn everything_is_there_after_a_restart_and_leases_start_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let ttl = Duration::from_millis(1500);
    let (lease, before) = {
        let store = Embedded::open(&path).unwrap();
        let lease = store.grant(ttl).await.unwrap().id;
        let op = Op::Put { key: "a".into(), value: "v".into(), lease: Some(lease) };
        store.commit(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
        store.commit(Txn::put("b", "w")).await.unwrap();
        store.compact(Revision(3)).await.unwrap();
        (lease, store.range("").await.unwrap())
    };
    // Away for longer than the lease.
    tokio::time::sleep(ttl + Duration::from_millis(300)).await;
    let store = reopen(&path).await;
    assert_eq!(store.range("").await.unwrap(), before);
    let status = store.status().await.unwrap();
    assert_eq!((status.backend, status.oldest, status.leases), ("embedded", Revision(3), 1));
    assert_eq!(store.keep_alive(lease).await, Ok(ttl));
    assert!(store.grant(ttl).await.unwrap().id > lease);
    let mut watch = store.watch(Keys::prefix("a"), before.revision.next()).await.unwrap();
    let gone = tokio::time::timeout(4 * ttl, watch.next()).await.unwrap().unwrap();
    assert!(gone[0].entry.is_none(), "nobody keeps it alive now");
}

#[tokio::test]
async fn a_file_belongs_to_one_process_and_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let first = Embedded::open(&path).unwrap();
    assert!(matches!(Embedded::open(&path), Err(OpenError::InUse { .. })));
    for n in 0..200 {
        first.commit(Txn::put(format!("key/{n}"), vec![b'x'; 500])).await.unwrap();
    }
    drop(first);
    drop(reopen(&path).await);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8192].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    let error = Embedded::open(&path).unwrap_err().to_string();
    assert!(error.contains("damaged") || error.contains("malformed"), "{error}");
    std::fs::write(&path, vec![b'?'; 8192]).unwrap();
    let error = Embedded::open(&path).unwrap_err().to_string();
    assert!(error.contains("store.db"), "{error}");
}

#[tokio::test]
async fn a_closed_store_ends_its_watches() {
    let store = Embedded::memory().unwrap();
    let mut watch = store.watch(Keys::prefix(""), Revision(2)).await.unwrap();
    drop(store);
    let end = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap();
    assert_eq!(end.unwrap_err(), seawall_store::WatchError::Closed);
}

/// The writer thread closes the file a moment after the last handle is gone.
async fn reopen(path: &Path) -> Embedded {
    for _ in 0..100 {
        match Embedded::open(path) {
            Ok(store) => return store,
            Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("still in use");
}
