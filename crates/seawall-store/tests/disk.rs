//! What the disk may do to the embedded store: flip bits, lose the end of its log, be full; and files of format 1.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use seawall_store::sqlite::OpenError;
use seawall_store::{CommitError, Embedded, Entry, Event, Keys, LeaseId, Op, STORE_LIMIT, Snapshot, Store, Txn};
use seawall_types::Revision;

/// All that a store shows.
#[derive(Debug, PartialEq)]
struct Whole {
    revision: Revision,
    oldest: Revision,
    entries: Vec<Entry>,
    leases: Vec<(LeaseId, Duration)>,
    history: Vec<Event>,
    next_lease: LeaseId,
}

async fn whole(store: &Embedded) -> Whole {
    let (range, status) = (store.range("").await.unwrap(), store.status().await.unwrap());
    let mut leases = Vec::new();
    for id in (1..=40).map(LeaseId) {
        if let Some(lease) = store.lease(id).await.unwrap() {
            leases.push((id, lease.ttl));
        }
    }
    let mut history = Vec::new();
    if status.oldest <= status.revision {
        let mut watch = store.watch(Keys::prefix(""), status.oldest).await.unwrap();
        while history.last().is_none_or(|last: &Event| last.revision < status.revision) {
            history.extend(watch.next().await.unwrap());
        }
    }
    let (revision, oldest, entries) = (range.revision, status.oldest, range.entries);
    let next_lease = store.grant(Duration::from_secs(60)).await.unwrap().id;
    Whole { revision, oldest, entries, leases, history, next_lease }
}

fn put(key: String, value: impl Into<Bytes>, lease: Option<LeaseId>) -> Op {
    Op::Put { key, value: value.into(), lease }
}

/// Entries with and without leases, small and larger than a page; deletions; a history that does not go back to the beginning;
/// pages that are free.
async fn populate(store: &Embedded) {
    let mut leases = Vec::new();
    for n in 1..20 {
        leases.push(store.grant(Duration::from_secs(600 + n)).await.unwrap().id);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    for n in 0..240 {
        let size = if n % 40 == 3 { 9000 } else { rng.usize(1..150) };
        let lease = (n % 3 == 0).then(|| leases[n % leases.len()]);
        let mut then = vec![put(format!("key/{}", rng.u32(0..120)), vec![b'a' + (n % 26) as u8; size], lease)];
        if n % 7 == 0 {
            then.push(Op::Delete(format!("key/{}", 200 + n)));
            then.push(put(format!("more/{n}"), "x", None));
        }
        if n % 11 == 0 {
            then.push(Op::DeletePrefix(format!("key/{}", rng.u32(10..12) * 7)));
        }
        let deletes = matches!(then.last(), Some(Op::DeletePrefix(_)));
        let done = store.commit(Txn { then, ..Txn::default() }).await;
        // A key may not be put where its prefix is deleted; then all of it is left out.
        assert!(done.is_ok() || deletes, "{done:?}");
    }
    store.revoke(leases[3]).await.unwrap();
    store.compact(Revision(90)).await.unwrap();
}

async fn closed(store: Embedded, path: &Path) {
    drop(store);
    let log = path.with_extension("db-wal");
    for _ in 0..1000 {
        if !log.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is not closed");
}

#[tokio::test]
async fn a_flipped_bit_is_named_or_was_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path).unwrap();
    populate(&store).await;
    closed(store, &path).await;
    let sound = std::fs::read(&path).unwrap();
    let store = Embedded::open(&path).unwrap();
    let original = whole(&store).await;
    closed(store, &path).await;
    assert!(original.entries.len() > 100 && original.leases.len() == 18 && original.history.len() > 100);

    let seed =
        std::env::var("SEAWALL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let mut rng = fastrand::Rng::with_seed(seed);
    let samples = std::env::var("SEAWALL_FLIPS").ok().and_then(|n| n.parse().ok()).unwrap_or(700);
    let (mut named, mut harmless) = (0, 0);
    for sample in 0..samples {
        let mut bytes = sound.clone();
        // A tenth of them in the first page, where the tables' roots are.
        let at = if sample % 10 == 0 { rng.usize(0..4096) } else { rng.usize(0..bytes.len()) };
        let flipped = if sample % 2 == 0 { bytes[at] ^ (1 << rng.u32(0..8)) } else { rng.u8(..) };
        if flipped == bytes[at] {
            continue;
        }
        let (was, at_sample) = (bytes[at], dir.path().join(format!("{sample}")));
        bytes[at] = flipped;
        std::fs::create_dir(&at_sample).unwrap();
        let path = at_sample.join("store.db");
        std::fs::write(&path, bytes).unwrap();
        let place = format!("SEAWALL_SEED={seed}, sample {sample}: byte {at} is {flipped} instead of {was}");
        match Embedded::open(&path) {
            Ok(store) => {
                assert_eq!(whole(&store).await, original, "{place}");
                harmless += 1;
            }
            Err(error) => {
                assert!(!matches!(error, OpenError::InUse { .. } | OpenError::Directory { .. }), "{place}: {error}");
                assert!(error.to_string().contains("store.db"), "{place}: {error}");
                named += 1;
            }
        }
        std::fs::remove_dir_all(&at_sample).unwrap();
    }
    assert!(named > samples / 4 && harmless > 0, "{named} named, {harmless} harmless");
}

#[tokio::test]
async fn the_place_of_the_damage_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let broken = |sql: &str| {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("store.db");
        std::fs::copy(&path, &copy).unwrap();
        let file = Connection::open(&copy).unwrap();
        assert!(file.execute(sql, []).unwrap() > 0, "{sql}");
        drop(file);
        Embedded::open(&copy).unwrap_err().to_string()
    };
    let store = Embedded::open(&path).unwrap();
    let lease = store.grant(Duration::from_secs(600)).await.unwrap().id;
    store.commit(Txn { then: vec![put("lock/a".into(), "v", Some(lease))], ..Txn::default() }).await.unwrap();
    for n in 0..3 {
        store.commit(Txn::put("b", format!("{n}"))).await.unwrap();
    }
    store.commit(Txn::delete("b")).await.unwrap();
    store.compact(Revision(3)).await.unwrap();
    closed(store, &path).await;
    let table: &[(&str, &[&str])] = &[
        ("UPDATE entry SET value = x'77'", &["table `entry`, key `lock/a`, revision 2", "checksum"]),
        ("UPDATE entry SET modified = 'x'", &["table `entry`, key `lock/a`", "modified"]),
        (
            "UPDATE history SET value = x'77' WHERE revision = 4",
            &["table `history`", "key `b`, revision 4", "checksum"],
        ),
        ("DELETE FROM history WHERE revision = 4", &["table `history`", "revision 5 follows 3"]),
        ("DELETE FROM history WHERE revision = 6", &["table `entry`, key `b`", "missing", "written at 5"]),
        ("DELETE FROM history WHERE revision = 3", &["revision 4 follows 2"]),
        ("UPDATE lease SET ttl_ms = 1", &["table `lease`, lease 1", "checksum"]),
        ("DELETE FROM lease", &["key `lock/a`", "its lease 1 is not in table `lease`"]),
        ("UPDATE meta SET value = 1 WHERE name = 'oldest'", &["table `meta`, row `oldest`", "checksum"]),
        ("DELETE FROM meta WHERE name = 'last_lease'", &["table `meta`, row `last_lease`", "missing"]),
    ];
    for (sql, expected) in table {
        let said = broken(sql);
        for part in expected.iter().chain(&["store.db", "is damaged", "seawall store restore"]) {
            assert!(said.contains(part), "{sql}: {said} has no {part}");
        }
    }
}

#[tokio::test]
async fn a_shorter_or_damaged_log_is_an_older_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path).unwrap();
    for n in 2u64..200 {
        let then =
            vec![put(format!("k/{}", n % 10), n.to_string(), None), put(format!("n/{n}"), vec![b'x'; 100], None)];
        assert_eq!(store.commit(Txn { then, ..Txn::default() }).await.unwrap().revision, Revision(n));
    }
    let (file, log) = (std::fs::read(&path).unwrap(), std::fs::read(dir.path().join("store.db-wal")).unwrap());
    assert!(log.len() > 100_000, "nothing has been written back yet");
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut older = 0;
    for sample in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let mut log = log.clone();
        let at = rng.usize(32..log.len());
        if sample % 2 == 0 {
            log.truncate(at)
        } else {
            log[at] ^= 1 << rng.u32(0..8)
        }
        std::fs::write(&path, &file).unwrap();
        std::fs::write(dir.path().join("store.db-wal"), log).unwrap();
        let store = Embedded::open(&path).unwrap();
        let Whole { revision, entries, history, .. } = whole(&store).await;
        let expected = |n: u64| (2..=revision.0).rev().find(|r| r % 10 == n);
        for n in 0..10 {
            let value = store.get(&format!("k/{n}")).await.unwrap().map(|entry| entry.value);
            assert_eq!(value, expected(n).map(|n| n.to_string().into()), "seed {seed}, sample {sample}");
        }
        assert_eq!(entries.len() as u64, revision.0 - 1 + (revision.0 - 1).min(10), "seed {seed}, sample {sample}");
        assert_eq!(history.len() as u64, 2 * (revision.0 - 1));
        older += u32::from(revision < Revision(199));
    }
    assert!(older > 50);
}

const FORMAT_1: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE entry (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL,
        version INTEGER NOT NULL, lease INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
    CREATE TABLE history (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL, key TEXT NOT NULL,
        value BLOB, created INTEGER, version INTEGER, lease INTEGER
    );
    INSERT INTO meta VALUES ('revision', 6), ('last_lease', 3), ('oldest', 4);
    INSERT INTO lease VALUES (2, 600000);
    INSERT INTO entry VALUES ('a', x'41', 2, 2, 1, NULL), ('b', x'42', 3, 6, 2, 2);
    INSERT INTO history VALUES (7, 4, 'c', x'43', 4, 1, NULL), (8, 5, 'c', NULL, NULL, NULL, NULL),
        (9, 6, 'b', x'42', 3, 2, 2);
    PRAGMA user_version = 1;";

fn format_1(path: &Path, more: &str) {
    let file = Connection::open(path).unwrap();
    file.pragma_update(None, "journal_mode", "WAL").unwrap();
    file.execute_batch(FORMAT_1).unwrap();
    file.execute_batch(more).unwrap();
}

#[tokio::test]
async fn a_file_of_format_1_is_upgraded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    format_1(&path, "");
    for round in 0..2 {
        let store = Embedded::open(&path).unwrap();
        let Whole { revision, oldest, entries, leases, history, next_lease } = whole(&store).await;
        assert_eq!((revision, oldest, next_lease), (Revision(6), Revision(4), LeaseId(4 + round)));
        assert_eq!(
            entries
                .iter()
                .map(|e| (&*e.key, &e.value[..], e.created.0, e.modified.0, e.version, e.lease))
                .collect::<Vec<_>>(),
            [("a", &b"A"[..], 2, 2, 1, None), ("b", b"B", 3, 6, 2, Some(LeaseId(2))),]
        );
        assert_eq!(leases[0], (LeaseId(2), Duration::from_secs(600)));
        assert_eq!(
            history.iter().map(|e| (e.revision.0, &*e.key, e.entry.is_some())).collect::<Vec<_>>(),
            [(4, "c", true), (5, "c", false), (6, "b", true),]
        );
        closed(store, &path).await;
    }
    let file = Connection::open(&path).unwrap();
    let number = |pragma: &str| file.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!((number("user_version"), number("auto_vacuum")), (2, 2), "it can give pages back, too");
}

#[tokio::test]
async fn a_check_of_format_1_reads_it_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    format_1(&path, "");
    let before = std::fs::read(&path).unwrap();
    let report = Snapshot::check(&path).unwrap();
    assert_eq!((report.format, report.snapshot.revision, report.snapshot.entries.len()), (1, Revision(6), 2));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["store.db"], "nothing is left beside it");
}

#[tokio::test]
async fn a_damaged_file_of_format_1_is_named_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let all = "INSERT INTO meta VALUES ('x', 1); DELETE FROM history; UPDATE meta SET value = 7 WHERE name = 'oldest'";
    format_1(&dir.path().join("empty-history.db"), all);
    assert_eq!(
        Embedded::open(&dir.path().join("empty-history.db")).unwrap().status().await.unwrap().revision,
        Revision(6)
    );
    for (n, more) in ["DELETE FROM history WHERE revision = 5", "DELETE FROM lease", "UPDATE entry SET value = x'44'"]
        .into_iter()
        .enumerate()
    {
        let path = dir.path().join(format!("{n}.db"));
        format_1(&path, more);
        let error = Embedded::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_store_at_its_limit_takes_deletions_and_goes_on() {
    const LIMIT: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open_within(&path, LIMIT).unwrap();
    let big = |n: u64| put(format!("k/{n}"), vec![b'x'; 20_000], None);
    let mut written = 0;
    let error = loop {
        match store.commit(Txn { then: vec![big(written)], ..Txn::default() }).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    let said = error.to_string();
    assert!(matches!(error, CommitError::Full(_)), "{said}");
    assert!(said.contains("store.db") && said.contains("4194304") && said.contains("control.store_limit"), "{said}");
    assert!(written > 100, "{written}");
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert_eq!(store.range("k/").await.unwrap().entries.len() as u64, written, "it is read");
    // What writes nothing in the branch that is taken is no matter of room.
    store.commit(Txn { otherwise: vec![big(0)], ..Txn::default() }).await.unwrap();
    for n in 0..written / 2 {
        store.commit(Txn::delete(format!("k/{n}"))).await.unwrap();
    }
    store.commit(Txn { then: vec![big(0)], ..Txn::default() }).await.unwrap();
    store.grant(Duration::from_secs(5)).await.unwrap();
    // Overwriting for ever does not fill it: the history has a bound that fits.
    for n in 0..400 {
        store.commit(Txn { then: vec![big(n % 20)], ..Txn::default() }).await.unwrap();
    }
    closed(store, &path).await;
    assert!(size(&path) <= LIMIT + (1 << 20), "{}", size(&path));
    drop(Embedded::open_within(&path, LIMIT).unwrap());
}

#[tokio::test]
async fn pages_that_are_free_go_back_to_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open_within(&path, STORE_LIMIT).unwrap();
    for n in 0..40 {
        store.commit(Txn::put(format!("k/{n}"), vec![n; 1 << 19])).await.unwrap();
    }
    let full = store.status().await.unwrap();
    assert!(full.bytes > 40 << 20, "{full:?}");
    store.commit(Txn { then: vec![Op::DeletePrefix("k/".into())], ..Txn::default() }).await.unwrap();
    store.compact(full.revision.next()).await.unwrap();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The file itself becomes shorter when the log is written back.
        store.commit(Txn::put("tick", "x")).await.unwrap();
        if std::fs::metadata(&path).unwrap().len() < 16 << 20 {
            return;
        }
    }
    panic!("{:?}", std::fs::metadata(&path).unwrap().len());
}

/// In the child: fills the disk that it was given, makes room, and goes on.
#[test]
fn full_disk_child() {
    let Ok(dir) = std::env::var("SEAWALL_TEST_FULL") else { return };
    let dir = Path::new(&dir);
    let by_limit = std::env::var("SEAWALL_TEST_FULL_BY").is_ok_and(|by| by == "rlimit");
    let path = dir.join("store.db");
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(&path).unwrap();
        let value = |n: u8| vec![n; 30_000];
        let mut written = 0u8;
        for round in 0..2 {
            let error = loop {
                match store.commit(Txn::put(format!("k/{written}"), value(written))).await {
                    Ok(_) => written += 1,
                    Err(error) => break error,
                }
            };
            let said = error.to_string();
            assert!(said.contains(&*path.to_string_lossy()), "{said}");
            assert!(by_limit || matches!(error, CommitError::Full(_)), "{said}");
            assert!(written > 20, "{written}: {said}");
            // What is there is read.
            assert_eq!(store.range("k/").await.unwrap().entries.len(), usize::from(written));
            assert_eq!(store.get("k/3").await.unwrap().unwrap().value, value(3));
            if round == 0 {
                if by_limit {
                    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
                    limit.current = limit.current.map(|now| 2 * now);
                    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
                } else {
                    std::fs::remove_file(&ballast).unwrap();
                }
                store.commit(Txn::put(format!("k/{written}"), value(written))).await.unwrap();
                written += 1;
            }
        }
        drop(store);
        let store = loop {
            match Embedded::open(&path) {
                Ok(store) => break store,
                Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(store.range("k/").await.unwrap().entries.len(), usize::from(written));
        println!("\nfull and well");
    });
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let exe = std::env::current_exe().unwrap();
    let at = dir.path().display();
    let child = |script: String, by: &str| {
        let mut command = match by {
            "tmpfs" => Command::new("unshare"),
            _ => Command::new("sh"),
        };
        if by == "tmpfs" {
            command.args(["--map-root-user", "--mount", "sh"]);
        }
        command.args(["-c", &script, "sh"]).arg(&exe).args(["full_disk_child", "--exact", "--nocapture"]);
        command.env("SEAWALL_TEST_FULL", dir.path()).env("SEAWALL_TEST_FULL_BY", by);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("full and well"), "{by}: {said}");
    };
    // A file system of its own, of six megabytes, if this user may have one.
    let mount = format!("mount -t tmpfs -o size=6m none {at}");
    let mounts = Command::new("unshare").args(["--map-root-user", "--mount", "sh", "-c", &mount]).output();
    if mounts.is_ok_and(|output| output.status.success()) {
        child(format!("{mount} && exec \"$@\""), "tmpfs");
    }
    // Files of three megabytes at most; a write beyond that is an error, not a signal. The unit is 512 bytes or 1024.
    child("trap '' XFSZ; ulimit -S -f 4096; exec \"$@\"".into(), "rlimit");
}
