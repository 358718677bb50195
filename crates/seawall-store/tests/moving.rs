//! Snapshots: written and read, put in the place of a store, and moved to another one, with an interruption at every step.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use seawall_store::sqlite::OpenError;
use seawall_store::{
    CommitError, Committed, Cursor, Embedded, Entry, FENCE_BASE, Keys, Lease, LeaseId, LeaseInfo, Limits, MigrateError,
    Op, Query, Range, ReadError, RestoreError, STORE_ID, Snapshot, Status, Store, StoreUrl, Txn, WatchError, connect,
    fence_base, migrate, open, rehearse, restore,
};
use seawall_types::Revision;

const LIMIT: u64 = 1 << 30;

fn put(key: &str, value: &str, lease: Option<LeaseId>) -> Op {
    Op::Put { key: key.into(), value: value.to_owned().into(), lease }
}

/// A name, a fence base, keys of all kinds, two queues, and leases with gaps in their numbers; gives the largest fencing token.
async fn populate(store: &dyn Store) -> u64 {
    store.commit(Txn::put(STORE_ID, "the old one")).await.unwrap();
    let base = fence_base(store).await.unwrap();
    for hundred in 0..3 {
        let numbers = 100 * hundred..100 * (hundred + 1);
        let then = numbers.map(|n| put(&format!("registry/{n}"), &"x".repeat(n), None)).collect();
        store.commit(Txn { then, ..Txn::default() }).await.unwrap();
    }
    let mut last = 0;
    for n in 0..6 {
        let lease = store.grant(Duration::from_secs(100 + n)).await.unwrap().id;
        if n % 2 == 0 {
            store.revoke(lease).await.unwrap();
            continue;
        }
        let then =
            vec![put(&format!("lock/a/{n}"), "claim", Some(lease)), put(&format!("session/{n}"), "s", Some(lease))];
        last = store.commit(Txn { then, ..Txn::default() }).await.unwrap().revision.0;
    }
    store.commit(Txn::delete("registry/7")).await.unwrap();
    base + last
}

fn without_own(entries: &[Entry]) -> Vec<(String, Vec<u8>, bool)> {
    let entries = entries.iter().filter(|entry| !entry.key.starts_with("meta/"));
    entries.map(|entry| (entry.key.to_string(), entry.value.to_vec(), entry.lease.is_some())).collect()
}

async fn contents(store: &dyn Store) -> Vec<(String, Vec<u8>, bool)> {
    without_own(&store.range("").await.unwrap().entries)
}

/// The queue as the lock recipe sees it: from the newest to the oldest.
async fn queue(store: &dyn Store) -> Vec<String> {
    let (mut keys, mut before) = (Vec::new(), Revision(u64::MAX >> 1));
    loop {
        let txn = Txn { then: vec![Op::NewestBefore("lock/a/".into(), before)], ..Txn::default() };
        let done = store.commit(txn).await.unwrap();
        let Some(seawall_store::OpResult::Got(Some(entry))) = done.results.first().cloned() else { return keys };
        before = entry.created;
        keys.push(entry.key.to_string());
    }
}

async fn closed(path: &Path) {
    let log = path.with_file_name(format!("{}-wal", path.file_name().unwrap().display()));
    for _ in 0..1000 {
        if log.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        match Snapshot::check(path) {
            Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => return,
        }
    }
    panic!("it is not closed");
}

async fn closed_after(store: Embedded, path: &Path) {
    drop(store);
    closed(path).await;
}

#[tokio::test]
async fn a_backup_holds_all_and_is_checked_as_a_store_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path).unwrap();
    populate(&store).await;
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.entries, store.range("").await.unwrap().entries);
    assert!(matches!(Snapshot::check(&path), Err(OpenError::InUse { .. })), "while it runs, nobody else reads it");
    let backup = dir.path().join("backup");
    snapshot.write(&backup).unwrap();
    let report = Snapshot::check(&backup).unwrap();
    assert_eq!((&report.snapshot, report.format, report.events), (&snapshot, 2, 0));
    drop(store);
    closed(&path).await;
    let before = std::fs::read(&path).unwrap();
    assert_eq!(Snapshot::check(&path).unwrap().snapshot, snapshot, "the file itself says the same");
    assert_eq!(std::fs::read(&path).unwrap(), before, "looking changes nothing");

    // A backup is damaged as a store is, and its place is said.
    let mut bytes = std::fs::read(&backup).unwrap();
    let at = bytes.windows(10).rposition(|bytes| bytes == b"xxxxxxxxxx").unwrap();
    bytes[at] = b'y';
    std::fs::write(&backup, bytes).unwrap();
    let said = Snapshot::check(&backup).unwrap_err().to_string();
    assert!(said.contains("backup is damaged") && said.contains("key `registry/"), "{said}");
    std::fs::write(&backup, "").unwrap();
    assert!(Snapshot::check(&backup).unwrap_err().to_string().contains("empty"));
    assert!(Snapshot::check(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    // Nowhere to write.
    let error = snapshot.write(&dir.path().join("no/such/directory")).unwrap_err();
    assert!(error.to_string().contains("no/such/directory"), "{error}");
}

#[tokio::test]
async fn a_restored_store_is_another_one_whose_fencing_tokens_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path).unwrap();
    populate(&store).await;
    let backup = store.snapshot().await.unwrap();
    // The old one goes on for a while, its clock far ahead.
    store.commit(Txn::put(FENCE_BASE, (1u64 << 52).to_string())).await.unwrap();
    let after = store.grant(Duration::from_secs(60)).await.unwrap().id;
    let last = store.commit(Txn::put("later", "x")).await.unwrap().revision;
    assert!(matches!(restore(&path, backup.clone(), true), Err(RestoreError::Open(OpenError::InUse { .. }))));
    drop(store);
    closed(&path).await;
    let error = restore(&path, backup.clone(), false).unwrap_err();
    assert!(matches!(error, RestoreError::Exists { .. }) && error.to_string().contains("--force"), "{error}");
    let restored = restore(&path, backup.clone(), true).unwrap();
    assert_eq!(Snapshot::check(&restored.aside.unwrap()).unwrap().snapshot.revision, last, "the old one is put aside");

    let store = Embedded::open(&path).unwrap();
    assert_eq!(contents(&store).await, without_own(&backup.entries));
    assert_eq!(store.get(STORE_ID).await.unwrap(), None, "it gets a new one");
    let base = fence_base(&store).await.unwrap();
    assert!(base > (1 << 52) + last.0, "{base}");
    let (old, kept) = backup.leases.first_key_value().unwrap();
    assert_eq!(store.keep_alive(*old).await, Ok(*kept));
    assert!(store.grant(Duration::from_secs(60)).await.unwrap().id > after, "no lease is given twice");
    assert_eq!(queue(&store).await, ["lock/a/5", "lock/a/3", "lock/a/1"]);
    store.commit(Txn::put("goes", "on")).await.unwrap();
}

#[tokio::test]
async fn a_damaged_store_is_replaced_and_its_fencing_tokens_are_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path).unwrap();
    populate(&store).await;
    let backup = store.snapshot().await.unwrap();
    store.commit(Txn::put(FENCE_BASE, (1u64 << 52).to_string())).await.unwrap();
    let last = store.commit(Txn::put("later", "x")).await.unwrap().revision;
    drop(store);
    closed(&path).await;
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute("UPDATE entry SET value = 'y' WHERE key = 'registry/9'", []).unwrap();
    drop(file);
    assert!(Embedded::open(&path).is_err());
    let error = restore(&path, backup.clone(), false).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    restore(&path, backup, true).unwrap();
    let store = Embedded::open(&path).unwrap();
    assert!(fence_base(&store).await.unwrap() > (1 << 52) + last.0);
}

#[tokio::test]
async fn a_restore_that_was_interrupted_is_finished_by_the_next_who_opens() {
    let made = tempfile::tempdir().unwrap();
    let path = made.path().join("store.db");
    let store = Embedded::open(&path).unwrap();
    let old = "the old state, still in the log";
    store.commit(Txn::put("k", old)).await.unwrap();
    let (file, log) = (std::fs::read(&path).unwrap(), std::fs::read(made.path().join("store.db-wal")).unwrap());
    store.commit(Txn::put("k", "new")).await.unwrap();
    store.snapshot().await.unwrap().write(&made.path().join("new")).unwrap();
    // Each state that an interruption can leave: which of the old files are still there.
    for (has_log, has_file) in [(true, true), (false, true), (false, false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        if has_file {
            std::fs::write(&path, &file).unwrap();
        }
        if has_log {
            std::fs::write(dir.path().join("store.db-wal"), &log).unwrap();
        }
        std::fs::copy(made.path().join("new"), dir.path().join("store.db.restored")).unwrap();
        let store = Embedded::open(&path).unwrap();
        assert_eq!(store.get("k").await.unwrap().unwrap().value, "new");
        assert!(!dir.path().join("store.db.restored").exists());
    }
    // One that is not complete counts for nothing.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    std::fs::write(&path, &file).unwrap();
    std::fs::write(dir.path().join("store.db-wal"), &log).unwrap();
    std::fs::write(dir.path().join("store.db.restored.part"), "half").unwrap();
    assert_eq!(Embedded::open(&path).unwrap().get("k").await.unwrap().unwrap().value, old);
}

#[tokio::test]
async fn all_moves_to_another_store() {
    let (from, to) = (Embedded::memory().unwrap(), Embedded::memory().unwrap());
    let token = populate(&from).await;
    let before = from.snapshot().await.unwrap();
    let planned = rehearse(&from, &to, "there").await.unwrap();
    assert_eq!(to.status().await.unwrap().revision, Revision(1), "nothing was done");
    let done = migrate(&from, &to, "there").await.unwrap();
    assert_eq!((done.entries, done.leases), (planned.entries, planned.leases));
    assert_eq!(contents(&to).await, without_own(&before.entries));
    assert_eq!(queue(&to).await, ["lock/a/5", "lock/a/3", "lock/a/1"], "nobody overtakes");
    assert!(fence_base(&to).await.unwrap() > token);
    assert_eq!(to.get(STORE_ID).await.unwrap(), None);
    // Who keeps an old lease alive keeps none of the new ones alive.
    let now = to.snapshot().await.unwrap();
    for old in before.leases.keys() {
        assert!(!now.leases.contains_key(old), "{old}");
    }
    let ttls = |snapshot: &Snapshot| {
        let mut ttls: Vec<_> = snapshot.leases.values().copied().collect();
        ttls.sort();
        ttls
    };
    assert_eq!(ttls(&now), ttls(&before));
    // Once more says that it is done; elsewhere it is refused.
    assert_eq!(migrate(&from, &to, "there").await.unwrap().entries, done.entries);
    let third = Embedded::memory().unwrap();
    let error = migrate(&from, &third, "elsewhere").await.unwrap_err();
    assert_eq!(error, MigrateError::Moved { to: "there".into() });
    // A store that has something in it is not overwritten.
    let error = migrate(&third, &to, "there").await.unwrap_err();
    assert!(matches!(error, MigrateError::NotEmpty { .. }), "{error}");
}

/// A store that breaks down for good after some writes; the last one may have been done or not.
struct Breaks {
    store: Arc<dyn Store>,
    left: Arc<AtomicUsize>,
    done: bool,
}

impl Breaks {
    /// Whether it still works; the one write after that is done without anybody hearing of it.
    fn counts(&self) -> Result<bool, CommitError> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).unwrap_or(0);
        match left {
            0 => Err(CommitError::Unavailable("broken".into())),
            1 if self.done => Ok(true),
            1 => Err(CommitError::Unknown("broken".into())),
            _ => Ok(false),
        }
    }
}

#[async_trait]
impl Store for Breaks {
    fn limits(&self) -> Limits {
        self.store.limits()
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        self.store.get(key).await
    }

    async fn query(&self, query: Query) -> Result<Range, ReadError> {
        self.store.query(query).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let lost = self.counts()?;
        let done = self.store.commit(txn).await?;
        if lost { Err(CommitError::Unknown("broken".into())) } else { Ok(done) }
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, CommitError> {
        let lost = self.counts()?;
        let done = self.store.grant(ttl).await?;
        if lost { Err(CommitError::Unknown("broken".into())) } else { Ok(done) }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        self.store.revoke(lease).await
    }

    async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseInfo>, ReadError> {
        self.store.lease(lease).await
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
        self.store.watch(keys, from).await
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        self.store.watch_now(keys).await
    }

    async fn compact(&self, before: Revision) -> Result<(), CommitError> {
        self.store.compact(before).await
    }

    async fn status(&self) -> Result<Status, ReadError> {
        self.store.status().await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.store.snapshot().await
    }
}

/// Whether control would use this store, and find something in it.
async fn rules(file: &Path) -> bool {
    closed(file).await;
    let ruling = match open(&StoreUrl::Embedded, file).await {
        Ok(store) => !contents(&*store).await.is_empty(),
        Err(_) => false,
    };
    closed(file).await;
    ruling
}

#[tokio::test]
async fn a_migration_may_be_interrupted_at_every_step() {
    let (mut steps, mut finished) = (0, false);
    while !finished {
        for done in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (old, new) = (dir.path().join("old.db"), dir.path().join("new.db"));
            let name = "there";
            let (all, token) = {
                let from = Embedded::open(&old).unwrap();
                let token = populate(&from).await;
                let all = without_own(&from.snapshot().await.unwrap().entries);
                let to: Arc<dyn Store> = Arc::new(Embedded::open(&new).unwrap());
                let left = Arc::new(AtomicUsize::new(steps + 1));
                let breaks = |store| Breaks { store, left: left.clone(), done };
                finished = migrate(&breaks(Arc::new(from)), &breaks(to), name).await.is_ok();
                (all, token)
            };
            let old_rules = rules(&old).await;
            let new_rules = rules(&new).await;
            assert!(!(old_rules && new_rules), "step {steps}: two rule");
            if old_rules {
                let from = Embedded::open(&old).unwrap();
                assert_eq!(contents(&from).await, all, "step {steps}: it still has everything");
                from.commit(Txn::put("registry/meanwhile", "x")).await.unwrap();
                closed_after(from, &old).await;
            } else {
                let to = Embedded::open(&new).unwrap();
                assert_eq!(contents(&to).await, all, "step {steps}: the new one is whole, be it marked or not");
                closed_after(to, &new).await;
            }
            // Whatever happened, the same again finishes it, with what came in between.
            let from = Embedded::open(&old).unwrap();
            let to = Embedded::open(&new).unwrap();
            migrate(&from, &to, name).await.unwrap();
            let mut expected = all;
            if old_rules {
                expected.push(("registry/meanwhile".into(), b"x".to_vec(), false));
                expected.sort();
            }
            assert_eq!(contents(&to).await, expected, "step {steps}");
            assert!(fence_base(&to).await.unwrap() > token);
            drop((from, to));
            assert!(!rules(&old).await && rules(&new).await, "step {steps}");
        }
        steps += 1;
    }
    assert!(steps > 12, "{steps}");
}

#[tokio::test]
async fn a_store_that_has_moved_is_refused_with_its_new_address() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let from = connect(&StoreUrl::Embedded, &path, LIMIT).await.unwrap();
    migrate(&*from, &Embedded::memory().unwrap(), "etcd://somewhere:2379/x").await.unwrap();
    drop(from);
    closed(&path).await;
    let error = open(&StoreUrl::Embedded, &path).await.err().unwrap().to_string();
    assert!(error.contains("has moved to etcd://somewhere:2379/x") && error.contains("store.db"), "{error}");
}
