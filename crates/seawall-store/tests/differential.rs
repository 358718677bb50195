//! The embedded store and a real etcd, given the same operations, give the same answers.
//!
//! Revisions are compared relative to where a history began, leases by the order in which they were granted. What differs by
//! intention is left out: numbers of leases, when they expire, which of the keys that one transaction created is the older.
//!
//! `SEAWALL_HISTORIES` says how many histories, `SEAWALL_SEED` which is the first; a failure names its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use seawall_servers::Server;
use seawall_store::{
    CommitError, Committed, Compare, Cursor, Embedded, Entry, Etcd, Event, Keys, LeaseId, Op, OpResult, Query, Store,
    Txn, WatchError,
};
use seawall_types::Revision;

const STEPS: usize = 40;

/// Some of them begin others, lie in others' directories, or have what etcd could take for more than a letter.
const KEYS: [&str; 10] = ["a", "ab", "a/b", "q/1", "q/2", "q/r/1", "q//1", "q0", "\u{7f}", "é/ü"];
const PREFIXES: [&str; 8] = ["", "a", "a/", "q/", "q/r/", "é", "none/", "\u{7f}"];
const DIRECTORIES: [&str; 5] = ["q/", "q/r/", "a/", "é/", "none/"];
/// Of leases, some of which are granted in the course of a history.
const LEASES: usize = 4;

/// An operation, with revisions counted from the beginning and leases by their order.
#[derive(Clone, Debug)]
enum Step {
    Commit(Txn),
    Get(&'static str),
    Query(Query),
    Grant(u64),
    KeepAlive(usize),
    Revoke(usize),
    Lease(usize),
    Watch(Keys, u64),
    WatchNow(Keys),
    Compact(u64),
    Status,
}

/// One of the two.
struct Side {
    store: Arc<dyn Store>,
    /// The revision at which the history began.
    base: u64,
    leases: Vec<LeaseId>,
    watches: Vec<(Cursor, Vec<Event>)>,
}

impl Side {
    async fn new(store: Arc<dyn Store>) -> Self {
        let base = store.range("").await.unwrap().revision.0;
        Self { store, base, leases: Vec::new(), watches: Vec::new() }
    }

    fn at(&self, revision: u64) -> Revision {
        Revision(self.base + revision)
    }

    fn since(&self, revision: Revision) -> i128 {
        i128::from(revision.0) - i128::from(self.base)
    }

    /// One that was never granted is unknown to both.
    fn lease(&self, slot: usize) -> LeaseId {
        self.leases.get(slot).copied().unwrap_or(LeaseId(9_999_999))
    }

    fn slot(&self, lease: LeaseId) -> usize {
        self.leases.iter().position(|id| *id == lease).unwrap_or(self.leases.len())
    }

    /// The transaction with this side's revisions and leases.
    fn txn(&self, txn: &Txn) -> Txn {
        let lease = |lease: LeaseId| self.lease(usize::try_from(lease.0).unwrap());
        let compare = |compare: &Compare| match compare.clone() {
            Compare::Modified(key, at) => Compare::Modified(key, self.at(at.0)),
            Compare::Created(key, at) => Compare::Created(key, self.at(at.0)),
            Compare::Unmodified(key, at) => Compare::Unmodified(key, self.at(at.0)),
            Compare::Lease(key, of) => Compare::Lease(key, lease(of)),
            same => same,
        };
        let op = |op: &Op| match op.clone() {
            Op::Put { key, value, lease: Some(of) } => Op::Put { key, value, lease: Some(lease(of)) },
            Op::NewestBefore(directory, at) => Op::NewestBefore(directory, self.at(at.0)),
            same => same,
        };
        Txn {
            compare: txn.compare.iter().map(compare).collect(),
            then: txn.then.iter().map(op).collect(),
            otherwise: txn.otherwise.iter().map(op).collect(),
        }
    }

    /// Does a step, and says what came of it in words that both sides share.
    async fn step(&mut self, step: &Step) -> String {
        match step {
            Step::Commit(txn) => match self.store.commit(self.txn(txn)).await {
                Ok(done) => self.committed(txn, &done),
                Err(error) => self.refused(&error),
            },
            Step::Get(key) => self.store.get(key).await.unwrap().map_or("none".into(), |entry| self.entry(&entry)),
            Step::Query(query) => {
                let range = self.store.query(query.clone()).await.unwrap();
                let entries: Vec<_> = range.entries.iter().map(|entry| self.entry(entry)).collect();
                format!("at {}, more {}: {entries:#?}", self.since(range.revision), range.more)
            }
            Step::Grant(seconds) => {
                let lease = self.store.grant(Duration::from_secs(*seconds)).await.unwrap();
                self.leases.push(lease.id);
                format!("{:?}", lease.ttl)
            }
            Step::KeepAlive(slot) => match self.store.keep_alive(self.lease(*slot)).await {
                Ok(ttl) => format!("{ttl:?}"),
                Err(error) => self.refused(&error),
            },
            Step::Revoke(slot) => match self.store.revoke(self.lease(*slot)).await {
                Ok(revision) => self.since(revision).to_string(),
                Err(error) => self.refused(&error),
            },
            Step::Lease(slot) => {
                let info = self.store.lease(self.lease(*slot)).await.unwrap();
                info.map_or("none".into(), |info| format!("{:?} {:?}", info.ttl, info.keys))
            }
            Step::Watch(keys, from) => match self.store.watch(keys.clone(), self.at(*from)).await {
                Ok(watch) => {
                    self.watches.push((watch, Vec::new()));
                    "watching".into()
                }
                Err(error) => self.unwatchable(&error),
            },
            Step::WatchNow(keys) => {
                let (revision, watch) = self.store.watch_now(keys.clone()).await.unwrap();
                self.watches.push((watch, Vec::new()));
                self.since(revision).to_string()
            }
            Step::Compact(before) => match self.store.compact(self.at(*before)).await {
                Ok(()) => "done".into(),
                Err(error) => self.refused(&error),
            },
            Step::Status => {
                let status = self.store.status().await.unwrap();
                // Before this history others may have compacted; nothing before it is asked for.
                let oldest = self.since(status.oldest).max(1);
                format!("at {}, oldest {oldest}, {} entries", self.since(status.revision), status.entries)
            }
        }
    }

    fn committed(&self, txn: &Txn, done: &Committed) -> String {
        let mut text = format!("at {}, succeeded {}", self.since(done.revision), done.succeeded);
        let ops = if done.succeeded { &txn.then } else { &txn.otherwise };
        assert_eq!(ops.len(), done.results.len());
        for (op, result) in ops.iter().zip(&done.results) {
            let result = match (op, result) {
                (Op::Oldest(_) | Op::NewestBefore(..), OpResult::Got(Some(entry))) => {
                    format!("one created at {}", self.since(entry.created))
                }
                (_, OpResult::Got(Some(entry))) => self.entry(entry),
                (_, other) => format!("{other:?}"),
            };
            write!(text, "\n  {result}").unwrap();
        }
        text
    }

    fn entry(&self, entry: &Entry) -> String {
        let lease = entry.lease.map(|lease| self.slot(lease));
        let (created, modified) = (self.since(entry.created), self.since(entry.modified));
        format!("{:?}={:?} {created} {modified} v{} {lease:?}", entry.key, entry.value, entry.version)
    }

    fn refused(&self, error: &CommitError) -> String {
        match error {
            CommitError::Invalid(_) => "invalid".into(),
            CommitError::NoLease(lease) => format!("no lease {}", self.slot(*lease)),
            CommitError::Full(_) | CommitError::Unavailable(_) | CommitError::Unknown(_) => panic!("{error}"),
        }
    }

    fn unwatchable(&self, error: &WatchError) -> String {
        match error {
            WatchError::Compacted { oldest } => format!("compacted, oldest {}", self.since(*oldest)),
            WatchError::Unavailable(_) | WatchError::Closed => panic!("{error}"),
        }
    }

    /// Reads every watch up to this revision, at which all of them see something.
    async fn catch_up(&mut self, revision: u64) -> Vec<String> {
        let end = self.at(revision);
        for (watch, events) in &mut self.watches {
            while events.last().is_none_or(|event| event.revision < end) {
                let next = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
                events.extend(next.unwrap_or_else(|_| panic!("nothing came after {events:?}")).unwrap());
            }
        }
        let event = |event: &Event| match &event.entry {
            Some(entry) => format!("{} {}", self.since(event.revision), self.entry(entry)),
            None => format!("{} {:?} is gone", self.since(event.revision), event.key),
        };
        let told = |(_, events): &(Cursor, Vec<Event>)| events.iter().map(event).collect::<Vec<_>>().join("\n");
        self.watches.iter().map(told).collect()
    }
}

fn key(rng: &mut Rng) -> String {
    KEYS[rng.usize(..KEYS.len())].into()
}

fn keys(rng: &mut Rng) -> Keys {
    if rng.bool() { Keys::one(key(rng)) } else { Keys::prefix(PREFIXES[rng.usize(..PREFIXES.len())]) }
}

fn lease(rng: &mut Rng) -> LeaseId {
    LeaseId(rng.u64(..LEASES as u64))
}

fn compare(rng: &mut Rng, now: u64) -> Compare {
    let (key, at) = (key(rng), Revision(rng.u64(..now + 3)));
    match rng.u8(..8) {
        0 => Compare::Exists(key),
        1 => Compare::Absent(key),
        2 => Compare::Modified(key, at),
        3 => Compare::Created(key, at),
        4 => Compare::Value(key, rng.u8(..3).to_string().into()),
        5 => Compare::Unmodified(key, at),
        6 => Compare::Lease(key, lease(rng)),
        _ => Compare::Version(key, rng.u64(..4)),
    }
}

fn op(rng: &mut Rng, now: u64) -> Op {
    let directory = DIRECTORIES[rng.usize(..DIRECTORIES.len())];
    match rng.u8(..14) {
        0..5 => {
            let lease = (rng.u8(..3) == 0).then(|| lease(rng));
            Op::Put { key: key(rng), value: Bytes::from(rng.u8(..3).to_string()), lease }
        }
        5..8 => Op::Delete(key(rng)),
        // Some of them are empty, which is refused.
        8 => Op::DeletePrefix(PREFIXES[rng.usize(..PREFIXES.len())].into()),
        9..12 => Op::Get(key(rng)),
        12 => Op::Oldest(directory.into()),
        _ => Op::NewestBefore(directory.into(), Revision(rng.u64(..now + 3))),
    }
}

/// A step when the store has come to revision `now`.
fn step(rng: &mut Rng, now: u64) -> Step {
    match rng.u8(..40) {
        0..22 => {
            let ops = |rng: &mut Rng, most| (0..rng.usize(..=most)).map(|_| op(rng, now)).collect();
            let then = ops(rng, 4);
            let compare: Vec<_> = (0..rng.usize(..3)).map(|_| compare(rng, now)).collect();
            Step::Commit(Txn { compare, then, otherwise: ops(rng, 3) })
        }
        22..24 => Step::Get(KEYS[rng.usize(..KEYS.len())]),
        24..28 => {
            let after = rng.bool().then(|| key(rng));
            let limit = NonZeroU32::new(rng.u32(..5));
            Step::Query(Query { keys: keys(rng), after, limit, keys_only: rng.bool() })
        }
        28..30 => Step::Grant(rng.u64(600..605)),
        30 => Step::KeepAlive(rng.usize(..LEASES)),
        31..33 => Step::Revoke(rng.usize(..LEASES)),
        33 => Step::Lease(rng.usize(..LEASES)),
        34..36 => Step::Watch(watchable(rng), rng.u64(1..now + 4)),
        36 => Step::WatchNow(watchable(rng)),
        37 => Step::Compact(rng.u64(..now + 3)),
        _ => Step::Status,
    }
}

/// Keys among which something is written at the end.
fn watchable(rng: &mut Rng) -> Keys {
    match keys(rng) {
        Keys::Prefix(prefix) if *prefix == *"none/" => Keys::prefix(""),
        keys => keys,
    }
}

/// Writes every key on both sides, after which no watch has anything left to wait for.
async fn meet(sides: &mut [Side; 2], seed: u64) {
    let puts = KEYS.iter().map(|&key| Op::Put { key: key.into(), value: "end".into(), lease: None });
    let txn = Txn { then: puts.collect(), ..Txn::default() };
    let mut ends = Vec::new();
    for side in &mut *sides {
        // A watch may have begun in the future.
        for _ in 0..5 {
            side.step(&Step::Commit(txn.clone())).await;
        }
        let end = u64::try_from(side.since(side.store.range("").await.unwrap().revision)).unwrap();
        ends.push(side.catch_up(end).await);
    }
    for (number, (embedded, etcd)) in ends[0].iter().zip(&ends[1]).enumerate() {
        assert_eq!(embedded, etcd, "watch {number} of history {seed}: embedded on the left, etcd on the right");
    }
}

async fn history(seed: u64, server: &Server) {
    let dir = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(&dir.path().join("store.db")).unwrap();
    let etcd = Etcd::connect(&[server.addr().to_string()], &format!("history/{seed}")).await.unwrap();
    let mut sides = [Side::new(Arc::new(embedded)).await, Side::new(Arc::new(etcd)).await];
    let mut rng = Rng::with_seed(seed);
    let mut done = String::new();
    for _ in 0..STEPS {
        let now = sides[0].store.range("").await.unwrap().revision.0 - sides[0].base;
        let step = step(&mut rng, now);
        if matches!(step, Step::Compact(_)) {
            // What a watch that is behind hears then is each store's own affair.
            meet(&mut sides, seed).await;
        }
        writeln!(done, "{step:?}").unwrap();
        let [embedded, etcd] = &mut sides;
        let (embedded, etcd) = tokio::join!(embedded.step(&step), etcd.step(&step));
        assert_eq!(embedded, etcd, "history {seed}: embedded on the left, etcd on the right, after\n{done}");
    }
    meet(&mut sides, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_and_etcd_give_the_same_answers() {
    let number = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    };
    let (first, count): (u64, u64) = (number("SEAWALL_SEED", 1), number("SEAWALL_HISTORIES", 60));
    let server = Server::etcd();
    for seed in first..first + count {
        history(seed, &server).await;
    }
}
