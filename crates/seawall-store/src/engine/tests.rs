//! The engine over a disk that can be held up and can fail, where nothing real would do so on demand.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use seawall_types::Revision;

use super::{Disk, Engine, NoDisk};
use crate::history::{BOUNDS, History};
use crate::model::{Change, Model};
use crate::sqlite::OpenError;
use crate::{CommitError, Cursor, Keys, LeaseId, Op, Txn, WatchError};

/// Long enough for a test that has to do something while the lease lives.
const TTL: Duration = Duration::from_millis(1500);

/// How a persist ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Written,
    /// It fails and nothing is written.
    Failed,
    /// It fails and all of it is written.
    Doubtful,
}

#[derive(Debug)]
struct State {
    model: Model,
    history: VecDeque<crate::Event>,
    next: End,
    /// A persist that ends a lease waits while this is set.
    hold: bool,
    /// One waits.
    held: bool,
    /// How often it was read.
    loads: u32,
}

/// A disk of memory, steered by the test.
#[derive(Clone)]
struct Steered(Arc<(Mutex<State>, Condvar)>);

impl Steered {
    fn new() -> Self {
        let state = State {
            model: Model::default(),
            history: VecDeque::new(),
            next: End::Written,
            hold: false,
            held: false,
            loads: 0,
        };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn wait_until_held(&self) {
        let state = self.0.0.lock().unwrap();
        let (_state, timeout) =
            self.0.1.wait_timeout_while(state, Duration::from_secs(20), |state| !state.held).unwrap();
        assert!(!timeout.timed_out(), "no lease ended");
    }
}

impl Disk for Steered {
    fn persist(&mut self, _: &Model, changes: &[Change]) -> Result<(), CommitError> {
        let mut state = self.0.0.lock().unwrap();
        if state.hold && changes.iter().any(|change| matches!(change, Change::Ended(_))) {
            state.held = true;
            self.0.1.notify_all();
            state = self.0.1.wait_while(state, |state| state.hold).unwrap();
            state.held = false;
        }
        let end = std::mem::replace(&mut state.next, End::Written);
        if end != End::Failed {
            for change in changes {
                state.model.apply(change);
                if let Change::Event(event) = change {
                    state.history.push_back(event.clone());
                }
            }
        }
        match end {
            End::Written => Ok(()),
            End::Failed => Err(CommitError::Unavailable("steered".into())),
            End::Doubtful => Err(CommitError::Unknown("steered".into())),
        }
    }

    fn load(&mut self) -> Result<(Model, History), OpenError> {
        let mut state = self.0.0.lock().unwrap();
        state.loads += 1;
        let mut history = History::new(Revision(2), BOUNDS);
        state.history.iter().for_each(|event| history.push(event.clone()));
        Ok((state.model.clone(), history))
    }
}

/// Tries until it holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 20 s: {what}");
}

fn put(key: &str, lease: LeaseId) -> Txn {
    Txn { then: vec![Op::Put { key: key.into(), value: Bytes::new(), lease: Some(lease) }], ..Txn::default() }
}

#[tokio::test]
async fn a_lease_that_is_being_ended_is_not_kept_alive() {
    let disk = Steered::new();
    let engine = Engine::start(disk.clone()).unwrap();
    let lease = engine.grant(TTL).await.unwrap();
    engine.commit(put("a", lease)).await.unwrap();
    disk.set(|state| state.hold = true);
    disk.wait_until_held();
    assert_eq!(engine.keep_alive(lease), Err(CommitError::NoLease(lease)), "its end is on the way to the disk");
    // The end could not be written: it lives again, with its whole time.
    disk.set(|state| (state.next, state.hold) = (End::Failed, false));
    eventually("the lease lives", || engine.keep_alive(lease).is_ok()).await;
    assert!(engine.view().model.get("a").is_some());
    eventually("the lease ends", || engine.view().model.get("a").is_none()).await;
    assert_eq!(engine.keep_alive(lease), Err(CommitError::NoLease(lease)));
}

#[tokio::test]
async fn a_write_of_which_nothing_is_there_leaves_everything_as_it_was() {
    let disk = Steered::new();
    let engine = Engine::start(disk.clone()).unwrap();
    let lease = engine.grant(Duration::from_secs(600)).await.unwrap();
    let before = engine.commit(put("a", lease)).await.unwrap().revision;
    disk.set(|state| state.next = End::Failed);
    assert!(matches!(engine.revoke(lease).await, Err(CommitError::Unavailable(_))));
    assert_eq!(engine.keep_alive(lease), Ok(Duration::from_secs(600)), "whoever holds it need not give up");
    disk.set(|state| state.next = End::Failed);
    assert!(matches!(engine.commit(Txn::put("b", "v")).await, Err(CommitError::Unavailable(_))));
    assert!(engine.view().model.get("b").is_none());
    let done = engine.commit(Txn::delete("a")).await.unwrap();
    assert_eq!((done.revision, done.results), (before.next(), vec![crate::OpResult::Deleted(true)]));
    assert_eq!(disk.0.0.lock().unwrap().loads, 1, "it was not read again");
}

#[tokio::test]
async fn a_lease_whose_end_was_written_after_all_stays_ended() {
    let disk = Steered::new();
    let engine = Engine::start(disk.clone()).unwrap();
    let lease = engine.grant(TTL).await.unwrap();
    engine.commit(put("a", lease)).await.unwrap();
    disk.set(|state| (state.next, state.hold) = (End::Doubtful, true));
    disk.wait_until_held();
    disk.set(|state| state.hold = false);
    // Not once may it be kept alive: somebody else may have the key a moment later.
    while engine.view().model.get("a").is_some() {
        assert_eq!(engine.keep_alive(lease), Err(CommitError::NoLease(lease)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(engine.keep_alive(lease), Err(CommitError::NoLease(lease)));
}

#[tokio::test]
async fn a_lease_that_was_granted_after_all_ends_like_any_other() {
    let disk = Steered::new();
    let engine = Engine::start(disk.clone()).unwrap();
    disk.set(|state| state.next = End::Doubtful);
    assert!(matches!(engine.grant(TTL).await, Err(CommitError::Unknown(_))));
    eventually("it is read back", || engine.view().model.leases().count() == 1).await;
    eventually("it ends", || engine.view().model.leases().count() == 0).await;
}

/// A disk that holds many leases.
struct Crowded;

impl Disk for Crowded {
    fn persist(&mut self, _: &Model, _: &[Change]) -> Result<(), CommitError> {
        Ok(())
    }

    fn load(&mut self) -> Result<(Model, History), OpenError> {
        let mut model = Model::default();
        for id in 1..=100_000 {
            model.apply(&Change::Granted(LeaseId(id), Duration::from_secs(600)));
        }
        Ok((model, History::new(Revision(2), BOUNDS)))
    }
}

#[test]
fn a_keep_alive_does_not_look_at_the_other_leases() {
    let engine = Engine::start(Crowded).unwrap();
    let began = Instant::now();
    for _ in 0..20_000 {
        engine.keep_alive(LeaseId(100_000)).unwrap();
    }
    // A scan of 100,000 leases each time takes minutes.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Counts how often a future is polled.
async fn counted<F: Future>(polls: Arc<AtomicUsize>, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        polls.fetch_add(1, Ordering::Relaxed);
        future.as_mut().poll(context)
    })
    .await
}

#[tokio::test]
async fn a_commit_wakes_only_those_whose_keys_it_touches() {
    const WAITERS: usize = 10_000;
    let engine = Engine::start(NoDisk).unwrap();
    let polls = Arc::new(AtomicUsize::new(0));
    let wait = |keys: Keys| {
        let mut cursor = engine.watch_now(keys).unwrap().1;
        tokio::spawn(counted(polls.clone(), async move { cursor.next().await }))
    };
    let mut ones: Vec<_> = (0..WAITERS).map(|n| wait(Keys::one(format!("queue/{n}")))).collect();
    let mut prefixes: Vec<_> = (0..100).map(|n| wait(Keys::prefix(format!("dir{n}/")))).collect();
    let all = WAITERS + prefixes.len();
    while polls.load(Ordering::Relaxed) < all {
        tokio::task::yield_now().await;
    }
    for n in 0..20 {
        engine.commit(Txn::put(format!("other/{n}"), "v")).await.unwrap();
    }
    engine.commit(Txn::delete("queue/7")).await.unwrap();
    let put = engine.commit(Txn::put("queue/7", "v")).await.unwrap().revision;
    let seen = ones.swap_remove(7).await.unwrap().unwrap();
    assert_eq!(seen[0].revision, put);
    let put = engine.commit(Txn::put("dir3/x", "v")).await.unwrap().revision;
    assert_eq!(prefixes.swap_remove(3).await.unwrap().unwrap()[0].revision, put);
    // Whoever was woken by now has been queued before these.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(polls.load(Ordering::Relaxed), all + 2, "two of them had something to see");
    // The others end with the store.
    drop(engine);
    for one in ones.into_iter().chain(prefixes) {
        assert_eq!(one.await.unwrap(), Err(WatchError::Closed));
    }
}

#[tokio::test]
async fn what_was_written_after_all_reaches_the_watchers() {
    let disk = Steered::new();
    let engine = Engine::start(disk.clone()).unwrap();
    let (before, mut watch) = engine.watch_now(Keys::one("a")).unwrap();
    disk.set(|state| state.next = End::Doubtful);
    assert!(matches!(engine.commit(Txn::put("a", "v")).await, Err(CommitError::Unknown(_))));
    let events = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap();
    assert_eq!(events[0].revision, before.next());
}

#[tokio::test]
async fn a_transaction_that_only_reads_waits_for_no_disk() {
    let disk = Steered::new();
    let engine = Engine::start(disk.clone()).unwrap();
    let lease = engine.grant(Duration::from_secs(600)).await.unwrap();
    engine.commit(put("a", lease)).await.unwrap();
    disk.set(|state| state.hold = true);
    let revoked = tokio::spawn({
        let engine = engine.clone();
        async move { engine.revoke(lease).await }
    });
    while !disk.0.0.lock().unwrap().held {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The end of the lease is not durable, so nobody sees it yet; but nobody can put it off any more.
    assert_eq!(engine.keep_alive(lease), Err(CommitError::NoLease(lease)));
    let read = Txn { then: vec![Op::Get("a".into())], ..Txn::default() };
    let done = engine.commit(read.clone()).await.unwrap();
    assert!(matches!(&done.results[..], [crate::OpResult::Got(Some(_))]));
    disk.set(|state| state.hold = false);
    revoked.await.unwrap().unwrap();
    assert_eq!(engine.commit(read).await.unwrap().results, [crate::OpResult::Got(None)]);
}

const KEYS: [&str; 6] = ["a", "a/b", "a/b/c", "a/c", "b", "b/c"];

#[derive(Clone, Debug)]
enum Step {
    /// One transaction that puts these.
    Commit(Vec<usize>),
    Compact(u64),
    /// Watches a key or a prefix from so far back; from now, at 0.
    Open(usize, bool, u64),
    /// Asks a watch, without waiting.
    Read(usize),
    Close(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::btree_set(0..KEYS.len(), 1..4).prop_map(|keys| Step::Commit(keys.into_iter().collect())),
        1 => (0u64..12).prop_map(Step::Compact),
        3 => (0..KEYS.len(), any::<bool>(), 0u64..6).prop_map(|(key, one, back)| Step::Open(key, one, back)),
        6 => any::<usize>().prop_map(Step::Read),
        1 => any::<usize>().prop_map(Step::Close),
    ]
}

/// A watch, and the revision up to which it has been told everything.
struct Open {
    cursor: Cursor,
    keys: Keys,
    told: u64,
    /// It has read what was there when it was opened.
    fresh: bool,
}

proptest! {
    /// Whatever else happens, a watch tells every event of its keys once, in order; or that the next one is forgotten.
    #[test]
    fn watches_tell_everything_or_that_it_is_forgotten(steps in prop::collection::vec(step(), 1..150)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let engine = Engine::start(NoDisk).unwrap();
        let mut happened: Vec<(u64, &str)> = Vec::new();
        let (mut revision, mut oldest) = (1, 2);
        let mut open: Vec<Open> = Vec::new();
        for step in steps {
            match step {
                Step::Commit(keys) => {
                    let put = |key: &usize| Op::Put { key: KEYS[*key].into(), value: Bytes::new(), lease: None };
                    let txn = Txn { then: keys.iter().map(put).collect(), ..Txn::default() };
                    revision = runtime.block_on(engine.commit(txn)).unwrap().revision.0;
                    happened.extend(keys.iter().map(|key| (revision, KEYS[*key])));
                }
                Step::Compact(back) => {
                    let before = (revision + 1).saturating_sub(back);
                    runtime.block_on(engine.compact(Revision(before))).unwrap();
                    oldest = oldest.max(before);
                }
                Step::Open(key, one, back) => {
                    let keys = if one { Keys::one(KEYS[key]) } else { Keys::prefix(KEYS[key]) };
                    let from = (revision + 1).saturating_sub(back);
                    let cursor = match back {
                        0 => engine.watch_now(keys.clone()).map(|(now, cursor)| {
                            assert_eq!(now.0, revision);
                            cursor
                        }),
                        _ => engine.watch(keys.clone(), Revision(from)),
                    };
                    match cursor {
                        Ok(cursor) => open.push(Open { cursor, keys, told: from - 1, fresh: back != 0 }),
                        Err(error) => {
                            prop_assert_eq!(error, WatchError::Compacted { oldest: Revision(oldest) });
                            prop_assert!(from < oldest);
                        }
                    }
                }
                Step::Read(which) => {
                    let count = open.len().max(1);
                    let Some(watch) = open.get_mut(which % count) else { continue };
                    let due = happened.iter().filter(|(at, key)| *at > watch.told && watch.keys.contain(key));
                    let due: Vec<_> = due.copied().collect();
                    let mut next = std::pin::pin!(watch.cursor.next());
                    match next.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                        Poll::Pending => prop_assert_eq!(due, []),
                        Poll::Ready(Ok(events)) => {
                            let told: Vec<_> = events.iter().map(|event| (event.revision.0, &*event.key)).collect();
                            prop_assert!(!told.is_empty());
                            prop_assert_eq!(told, due);
                        }
                        Poll::Ready(Err(error)) => {
                            prop_assert_eq!(error, WatchError::Compacted { oldest: Revision(oldest) });
                            let forgotten = due.first().is_some_and(|(at, _)| *at < oldest);
                            prop_assert!(forgotten || watch.fresh && watch.told + 1 < oldest);
                            continue;
                        }
                    }
                    (watch.told, watch.fresh) = (revision, false);
                }
                Step::Close(which) if !open.is_empty() => drop(open.swap_remove(which % open.len())),
                Step::Close(_) => {}
            }
        }
    }
}
