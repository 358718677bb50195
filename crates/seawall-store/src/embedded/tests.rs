//! What is true of the embedded store alone: the bounds of its history, in memory and in its file, and a file that is full.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use seawall_types::Revision;

use super::file::File;
use super::rows::KIND;
use super::{Embedded, STORE_LIMIT};
use crate::engine::{Disk, Engine};
use crate::history::{BOUNDS, Bounds};
use crate::{CommitError, Keys, Op, Store, Txn, WatchError, sqlite};

#[tokio::test]
async fn the_history_in_the_file_is_bounded_by_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let bounds = Bounds { events: 1000, bytes: 100_000 };
    {
        let connection = sqlite::open(&path, &KIND).unwrap();
        let mut disk = File::new(connection, &path, bounds, STORE_LIMIT);
        let (mut model, _) = disk.load().unwrap();
        for n in 0..100u8 {
            let mut changes = Vec::new();
            model.commit(&Txn::put("k", vec![n; 9_999]), &mut changes).unwrap();
            if n == 50 {
                model.compact(Revision(model.revision.0 - 3), &mut changes).unwrap();
            }
            disk.persist(&model, &changes).unwrap();
            let kept: usize = disk
                .connection
                .query_row("SELECT sum(length(key) + length(value)) FROM history", [], |row| row.get(0))
                .unwrap();
            assert_eq!(kept, disk.kept.bytes);
            assert!(kept <= 2 * bounds.bytes, "{kept} bytes after {n}");
        }
    }
    let mut disk = File::new(sqlite::open(&path, &KIND).unwrap(), &path, bounds, STORE_LIMIT);
    let (model, history) = disk.load().unwrap();
    let revisions: Vec<u64> = history.since(Revision(0)).map(|event| event.revision.0).collect();
    assert_eq!(revisions, (history.oldest().0..=model.revision.0).collect::<Vec<_>>(), "no gap");
    assert_eq!(revisions.len(), 10, "in memory it is one length");
    assert!(disk.kept.bytes >= bounds.bytes);
}

#[tokio::test]
async fn a_full_store_says_so_and_goes_on_when_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let connection = sqlite::open(&path, &KIND).unwrap();
    connection.pragma_update(None, "max_page_count", 200).unwrap();
    let store = Engine::start(File::new(connection, &path, BOUNDS, STORE_LIMIT)).unwrap();
    let mut written = 0u8;
    let error = loop {
        match store.commit(Txn::put("k", vec![written; 50_000])).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, CommitError::Full(_)) && !error.retryable(), "{error}");
    let now = store.status().revision;
    assert_eq!(now, Revision(1 + u64::from(written)), "nothing of the last one is seen");
    store.compact(now.next()).await.unwrap();
    let done = store.commit(Txn::put("k", vec![0; 50_000])).await.unwrap();
    assert_eq!(done.revision, now.next());
}

#[tokio::test]
async fn a_commit_writes_a_page_for_its_key_and_one_for_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.db")).unwrap();
    let log = || std::fs::metadata(dir.path().join("store.db-wal")).unwrap().len();
    store.commit(Txn::put("k", "first")).await.unwrap();
    let before = log();
    for _ in 0..100 {
        store.commit(Txn::put("k", "next")).await.unwrap();
    }
    // A frame is a page and its head. Once in a while a page of the history is full.
    let frames = (log() - before) / (4096 + 24);
    assert!((200..=210).contains(&frames), "{frames} for 100 commits");
}

fn both() -> [(Arc<dyn Store>, Option<tempfile::TempDir>); 2] {
    let dir = tempfile::tempdir().unwrap();
    let file = Embedded::open(&dir.path().join("store.db")).unwrap();
    [(Arc::new(Embedded::memory().unwrap()), None), (Arc::new(file), Some(dir))]
}

#[tokio::test]
async fn a_slow_watch_is_told_of_compaction() {
    for (store, _keep) in both() {
        watches_report_compaction(store).await;
    }
}

#[tokio::test]
async fn a_revision_larger_than_the_history_goes_whole() {
    for (store, _keep) in both() {
        a_revision_larger_than_the_history_is_compacted(store).await;
    }
}

async fn watches_report_compaction(store: Arc<dyn Store>) {
    let mut slow = store.watch(Keys::prefix(""), Revision(2)).await.unwrap();
    let many = Txn { then: (0..128).map(|i| put(&format!("{i}"), "v")).collect(), ..Txn::default() };
    for _ in 0..140 {
        store.commit(many.clone()).await.unwrap();
    }
    let WatchError::Compacted { oldest } = slow.next().await.unwrap_err() else { panic!("not compacted") };
    assert!(oldest > Revision(2));
    assert_eq!(slow.next().await.unwrap_err(), WatchError::Compacted { oldest }, "it is said again");
    assert_eq!(store.watch(Keys::prefix(""), Revision(2)).await.unwrap_err(), WatchError::Compacted { oldest });
    assert_eq!(store.watch(Keys::prefix(""), oldest).await.unwrap().next().await.unwrap()[0].revision, oldest);
}

async fn a_revision_larger_than_the_history_is_compacted(store: Arc<dyn Store>) {
    let lease = store.grant(Duration::from_secs(600)).await.unwrap().id;
    for part in 0..140 {
        let op = |i| Op::Put { key: format!("{part}/{i}"), value: Bytes::new(), lease: Some(lease) };
        store.commit(Txn { then: (0..128).map(op).collect(), ..Txn::default() }).await.unwrap();
    }
    let before = store.range("").await.unwrap();
    assert_eq!(before.entries.len(), 140 * 128);
    let mut watch = store.watch(Keys::prefix(""), before.revision.next()).await.unwrap();
    let gone = store.revoke(lease).await.unwrap();
    // All those deletions are one revision, and do not fit: that is said, nothing is left out in silence.
    assert_eq!(watch.next().await.unwrap_err(), WatchError::Compacted { oldest: gone.next() });
    for n in 0..40 {
        store.grant(Duration::from_secs(1 + n)).await.unwrap();
    }
    store.commit(Txn::put("after", "x")).await.unwrap();
    let mut watch = store.watch(Keys::prefix(""), gone.next()).await.unwrap();
    assert_eq!(&*watch.next().await.unwrap()[0].key, "after");
}

fn put(key: &str, value: &'static str) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: None }
}
