//! What every backend has to do: one suite, run against each of them by [`conformance!`](crate::conformance!).
//!
//! Every case gets a fresh, empty store. None looks at the clock but those of leases, which leave seconds for a slow machine.
//! What only some backends do (when a history is forgotten, say) is tested beside those.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(missing_docs, reason = "the cases' names say what they are about")]

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use seawall_types::Revision;

use crate::{
    CommitError, Compare, FENCE_BASE, Keys, LeaseId, MAX_KEY, MAX_VALUE, Op, OpResult, Query, Range, Store, Txn,
    WatchError, fence_base,
};

/// Makes a module of tests, one for each case of the suite. The expression gives a fresh store, as `Arc<dyn Store>`, and
/// whatever has to be kept while it is used; it sees what is in scope where the macro is called. The calling crate needs
/// tokio with `macros`, `rt-multi-thread` and `time`.
#[macro_export]
macro_rules! conformance {
    ($backend:ident, $make:expr) => {
        $crate::conformance!(@module $backend, $make,
            reads_what_was_written, revisions_count_transactions, compares_decide,
            pages_cover_the_range, a_prefix_is_deleted_at_one_revision,
            invalid_transactions_change_nothing, a_queue_knows_its_first_and_who_is_before_whom,
            a_lease_matters_only_in_the_branch_taken, leases_take_their_keys_along,
            a_lease_kept_alive_stays, a_lease_says_how_it_stands, watches_miss_nothing,
            watches_resume_from_the_past, a_watch_of_one_key_sees_no_other,
            a_watch_from_now_begins_after_its_revision, a_watch_of_a_quiet_key_outlives_the_history,
            compaction_forgets_the_past_and_no_key, a_status_says_how_much_there_is,
            a_store_has_one_fence_base, concurrent_writers_are_serialised,
            a_lock_is_handed_over_in_order
        );
    };
    (@module $backend:ident, $make:expr, $($case:ident),+) => {
        mod $backend {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let (store, _keep): (std::sync::Arc<dyn $crate::Store>, _) = $make;
                let case = $crate::conformance::$case(store);
                tokio::time::timeout(std::time::Duration::from_secs(60), case).await.expect("hangs");
            })+
        }
    };
}

pub async fn reads_what_was_written(store: Arc<dyn Store>) {
    assert_eq!(store.get("a").await.unwrap(), None);
    let first = store.commit(Txn::put("a", "1")).await.unwrap();
    store.commit(Txn::put("ab", "2")).await.unwrap();
    store.commit(Txn::put("b", "3")).await.unwrap();
    let second = store.commit(Txn::put("a", "4")).await.unwrap();
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.version), (&b"4"[..], 2));
    assert_eq!((entry.created, entry.modified), (first.revision, second.revision));
    let range = store.range("a").await.unwrap();
    assert_eq!(range.revision, second.revision);
    assert_eq!(range.entries.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["a", "ab"]);
    assert_eq!(store.range("").await.unwrap().entries.len(), 3);
    store.commit(Txn::delete("a")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    let again = store.commit(Txn::put("a", "5")).await.unwrap();
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.created, entry.version), (again.revision, 1));
}

pub async fn revisions_count_transactions(store: Arc<dyn Store>) {
    let empty = store.range("").await.unwrap().revision;
    assert_eq!(empty, Revision(1));
    let two = Txn { then: vec![put("a", "1"), put("b", "1"), Op::Get("a".into())], ..Txn::default() };
    let done = store.commit(two).await.unwrap();
    assert_eq!(done.revision, Revision(2), "two writes of one transaction share a revision");
    assert!(matches!(&done.results[2], OpResult::Got(Some(entry)) if entry.modified == Revision(2)));
    let nothing = store.commit(Txn::delete("zzz")).await.unwrap();
    assert_eq!((nothing.revision, &nothing.results[..]), (Revision(2), &[OpResult::Deleted(false)][..]));
    let read = Txn { then: vec![Op::Get("a".into())], ..Txn::default() };
    assert_eq!(store.commit(read).await.unwrap().revision, Revision(2));
}

pub async fn compares_decide(store: Arc<dyn Store>) {
    let created = store.commit(Txn::put("k", "v")).await.unwrap().revision;
    let modified = store.commit(Txn::put("k", "w")).await.unwrap().revision;
    let lease = store.grant(Duration::from_secs(600)).await.unwrap().id;
    let leased = Op::Put { key: "leased".into(), value: Bytes::new(), lease: Some(lease) };
    store.commit(Txn { then: vec![leased], ..Txn::default() }).await.unwrap();
    let k = || "k".to_owned();
    let table = [
        (Compare::Exists(k()), true),
        (Compare::Exists("x".into()), false),
        (Compare::Absent(k()), false),
        (Compare::Absent("x".into()), true),
        (Compare::Created(k(), created), true),
        (Compare::Created(k(), modified), false),
        (Compare::Modified(k(), modified), true),
        (Compare::Modified(k(), created), false),
        (Compare::Value(k(), Bytes::from("w")), true),
        (Compare::Value(k(), Bytes::from("v")), false),
        (Compare::Value("x".into(), Bytes::new()), false),
        (Compare::Unmodified(k(), modified), true),
        (Compare::Unmodified(k(), modified.next()), true),
        (Compare::Unmodified(k(), created), false),
        (Compare::Unmodified("x".into(), Revision(1)), true),
        (Compare::Version(k(), 2), true),
        (Compare::Version(k(), 1), false),
        (Compare::Version("x".into(), 1), false),
        (Compare::Lease("leased".into(), lease), true),
        (Compare::Lease("leased".into(), LeaseId(lease.0 + 1)), false),
        (Compare::Lease(k(), lease), false),
        (Compare::Lease("x".into(), lease), false),
    ];
    for (compare, holds) in table {
        let txn = Txn {
            compare: vec![Compare::Exists(k()), compare.clone()],
            then: vec![Op::Get(k())],
            otherwise: vec![Op::Delete("x".into())],
        };
        let done = store.commit(txn).await.unwrap();
        assert_eq!(done.succeeded, holds, "{compare:?}");
        assert_eq!(matches!(done.results[..], [OpResult::Got(Some(_))]), holds);
    }
}

pub async fn pages_cover_the_range(store: Arc<dyn Store>) {
    for key in ["a", "p/1", "p/2", "p/3", "p/4", "p/5", "q"] {
        store.commit(Txn::put(key, "v")).await.unwrap();
    }
    let mut query = Query { limit: NonZeroU32::new(2), ..Query::new(Keys::prefix("p/")) };
    let mut pages = Vec::new();
    loop {
        let page = store.query(query.clone()).await.unwrap();
        assert_eq!(page.revision, Revision(8));
        query.after = page.entries.last().map(|entry| entry.key.to_string());
        pages.push(page.entries.iter().map(|entry| entry.key[2..].to_owned()).collect::<Vec<_>>().concat());
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, ["12", "34", "5"]);
    let keys = |range: Range| range.entries.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>().join(" ");
    let exact = Query { limit: NonZeroU32::new(5), ..Query::new(Keys::prefix("p/")) };
    assert!(!store.query(exact.clone()).await.unwrap().more, "it fits exactly");
    // An end that was deleted meanwhile, or that lies outside, is as good as any.
    let after = |after: &str| Query { after: Some(after.into()), ..exact.clone() };
    assert_eq!(keys(store.query(after("p/3x")).await.unwrap()), "p/4 p/5");
    assert_eq!(keys(store.query(after("a")).await.unwrap()), "p/1 p/2 p/3 p/4 p/5");
    assert_eq!(keys(store.query(after("z")).await.unwrap()), "");
    assert_eq!(keys(store.query(Query::new(Keys::one("p/1"))).await.unwrap()), "p/1");
    assert_eq!(keys(store.query(Query::new(Keys::one("p/"))).await.unwrap()), "");
    let bare = Query { keys_only: true, ..exact };
    let bare = store.query(bare).await.unwrap().entries;
    assert!(bare.len() == 5 && bare.iter().all(|entry| entry.value.is_empty() && entry.version == 1));
}

pub async fn a_prefix_is_deleted_at_one_revision(store: Arc<dyn Store>) {
    for key in ["p", "p/1", "p/2", "q"] {
        store.commit(Txn::put(key, "v")).await.unwrap();
    }
    let (_, mut watch) = store.watch_now(Keys::prefix("")).await.unwrap();
    let delete = |prefix: &str| Txn { then: vec![Op::DeletePrefix(prefix.into())], ..Txn::default() };
    let done = store.commit(delete("p/")).await.unwrap();
    assert_eq!((done.revision, done.results), (Revision(6), vec![OpResult::DeletedMany(2)]));
    let told = watch.next().await.unwrap();
    assert_eq!(told.iter().map(|e| (&*e.key, e.revision.0)).collect::<Vec<_>>(), [("p/1", 6), ("p/2", 6)]);
    let done = store.commit(delete("p/")).await.unwrap();
    assert_eq!((done.revision, done.results), (Revision(6), vec![OpResult::DeletedMany(0)]));
    let both = Txn { then: vec![put("p/3", "v"), Op::DeletePrefix("p/".into())], ..Txn::default() };
    for txn in [delete(""), both] {
        let error = store.commit(txn).await.unwrap_err();
        assert!(matches!(error, CommitError::Invalid(_)), "{error}");
    }
    let left = store.range("").await.unwrap();
    assert_eq!(left.entries.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["p", "q"]);
}

pub async fn invalid_transactions_change_nothing(store: Arc<dyn Store>) {
    let twice = Txn { then: vec![put("a", "1"), put("a", "2")], ..Txn::default() };
    let long = Txn::put("x".repeat(MAX_KEY + 1), "");
    let large = Txn::put("a", vec![0; MAX_VALUE + 1]);
    let many = Txn { then: (0..200).map(|i| put(&i.to_string(), "")).collect(), ..Txn::default() };
    for txn in [twice, long, large, many, Txn::put("", "v")] {
        let error = store.commit(txn).await.unwrap_err();
        assert!(matches!(error, CommitError::Invalid(_)), "{error}");
    }
    let orphan = Op::Put { key: "a".into(), value: "1".into(), lease: Some(LeaseId(77)) };
    let error = store.commit(Txn { then: vec![put("b", "1"), orphan], ..Txn::default() }).await.unwrap_err();
    assert_eq!(error, CommitError::NoLease(LeaseId(77)));
    assert_eq!(store.range("").await.unwrap().revision, Revision(1));
    assert!(matches!(store.grant(Duration::ZERO).await, Err(CommitError::Invalid(_))));
    assert!(matches!(store.grant(store.limits().max_ttl + Duration::from_secs(1)).await, Err(CommitError::Invalid(_))));
}

pub async fn a_queue_knows_its_first_and_who_is_before_whom(store: Arc<dyn Store>) {
    let mut created = Vec::new();
    for key in ["q/c", "q/a", "qq", "q/in/b", "r/x"] {
        created.push(store.commit(Txn::put(key, "v")).await.unwrap().revision);
    }
    // Written again, it keeps its place.
    store.commit(Txn::put("q/c", "w")).await.unwrap();
    let ask = async |op: Op| {
        let done = store.commit(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
        let [OpResult::Got(entry)] = &done.results[..] else { panic!("{done:?}") };
        entry.as_ref().map(|entry| entry.key.to_string())
    };
    let q = || "q/".to_owned();
    assert_eq!(ask(Op::Oldest(q())).await.as_deref(), Some("q/c"));
    assert_eq!(ask(Op::NewestBefore(q(), created[0])).await, None);
    assert_eq!(ask(Op::NewestBefore(q(), created[1])).await.as_deref(), Some("q/c"));
    assert_eq!(ask(Op::NewestBefore(q(), created[3])).await.as_deref(), Some("q/a"));
    assert_eq!(ask(Op::NewestBefore(q(), created[4])).await.as_deref(), Some("q/in/b"));
    assert_eq!(ask(Op::Oldest("q/in/".into())).await.as_deref(), Some("q/in/b"));
    assert_eq!(ask(Op::Oldest("none/".into())).await, None);
    // Created anew, it is the last; and a transaction sees what it has done itself.
    let again = Txn {
        then: vec![Op::Delete("q/c".into()), Op::Oldest(q()), put("q/z", "v"), Op::NewestBefore(q(), Revision(1000))],
        ..Txn::default()
    };
    let done = store.commit(again).await.unwrap();
    let keys = done.results.iter().map(|result| match result {
        OpResult::Got(Some(entry)) => &*entry.key,
        _ => "",
    });
    assert_eq!(keys.collect::<Vec<_>>(), ["", "q/a", "", "q/z"]);
    for op in [Op::Oldest("q".into()), Op::NewestBefore(String::new(), Revision(2))] {
        let error = store.commit(Txn { then: vec![op], ..Txn::default() }).await.unwrap_err();
        assert!(matches!(error, CommitError::Invalid(_)), "{error}");
    }
}

pub async fn a_lease_matters_only_in_the_branch_taken(store: Arc<dyn Store>) {
    let orphan = || vec![Op::Put { key: "a".into(), value: "1".into(), lease: Some(LeaseId(77)) }];
    let txn = Txn { compare: vec![Compare::Exists("a".into())], then: orphan(), otherwise: vec![put("b", "1")] };
    let done = store.commit(txn).await.unwrap();
    assert_eq!((done.succeeded, done.results), (false, vec![OpResult::Put]));
    let txn = Txn { compare: vec![Compare::Exists("a".into())], then: vec![put("b", "2")], otherwise: orphan() };
    assert_eq!(store.commit(txn).await, Err(CommitError::NoLease(LeaseId(77))));
}

pub async fn leases_take_their_keys_along(store: Arc<dyn Store>) {
    let lease = store.grant(Duration::from_secs(2)).await.unwrap().id;
    let other = store.grant(Duration::from_secs(60)).await.unwrap().id;
    let with = |key: &str, lease| Op::Put { key: key.into(), value: "v".into(), lease };
    for op in [with("a", Some(lease)), with("b", Some(lease)), with("c", Some(lease)), with("d", Some(other))] {
        store.commit(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    }
    // Written again without the lease, `b` no longer goes with it; `c` has moved to the other one.
    store.commit(Txn { then: vec![with("b", None), with("c", Some(other))], ..Txn::default() }).await.unwrap();
    let mut events = store.watch(Keys::prefix(""), store.range("").await.unwrap().revision.next()).await.unwrap();
    let gone = events.next().await.unwrap();
    assert_eq!(gone.iter().map(|e| (&*e.key, e.entry.is_none())).collect::<Vec<_>>(), [("a", true)]);
    assert_eq!(store.keep_alive(lease).await, Err(CommitError::NoLease(lease)));
    assert_eq!(store.revoke(lease).await, Err(CommitError::NoLease(lease)));
    store.revoke(other).await.unwrap();
    let left = store.range("").await.unwrap();
    assert_eq!(left.entries.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["b"]);
}

pub async fn a_lease_kept_alive_stays(store: Arc<dyn Store>) {
    let ttl = Duration::from_secs(2);
    let lease = store.grant(ttl).await.unwrap().id;
    let op = Op::Put { key: "a".into(), value: "v".into(), lease: Some(lease) };
    store.commit(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    let end = tokio::time::Instant::now() + ttl * 3 / 2;
    let mut beat = tokio::time::interval(ttl / 8);
    while tokio::time::Instant::now() < end {
        beat.tick().await;
        assert_eq!(store.keep_alive(lease).await, Ok(ttl));
    }
    assert!(store.get("a").await.unwrap().is_some());
}

pub async fn a_lease_says_how_it_stands(store: Arc<dyn Store>) {
    let limits = store.limits();
    for asked in [Duration::from_nanos(1), limits.min_ttl + Duration::from_micros(1), Duration::from_secs(600)] {
        let granted = store.grant(asked).await.unwrap();
        assert!(granted.ttl >= asked.max(limits.min_ttl), "{granted:?} for {asked:?}");
        assert!(granted.ttl < asked.max(limits.min_ttl) + limits.ttl_step, "{granted:?} for {asked:?}");
    }
    assert!(store.grant(limits.max_ttl).await.is_ok());
    assert!(matches!(store.grant(limits.max_ttl + limits.ttl_step).await, Err(CommitError::Invalid(_))));

    let granted = store.grant(Duration::from_secs(600)).await.unwrap();
    let lease = granted.id;
    for key in ["b", "a"] {
        let op = Op::Put { key: key.into(), value: Bytes::new(), lease: Some(lease) };
        store.commit(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    }
    let info = store.lease(lease).await.unwrap().unwrap();
    assert_eq!((info.id, info.ttl, &info.keys[..]), (lease, granted.ttl, &["a".into(), "b".into()][..]));
    assert!(info.left <= granted.ttl && info.left > granted.ttl / 2, "{info:?}");
    assert_eq!(store.keep_alive(lease).await, Ok(granted.ttl));
    store.commit(Txn::delete("a")).await.unwrap();
    assert_eq!(store.lease(lease).await.unwrap().unwrap().keys, ["b".into()]);
    store.revoke(lease).await.unwrap();
    assert_eq!(store.lease(lease).await.unwrap(), None);
}

pub async fn watches_miss_nothing(store: Arc<dyn Store>) {
    let mut watch = store.watch(Keys::prefix("k/"), Revision(2)).await.unwrap();
    let writer = tokio::spawn(async move {
        for i in 0..500u64 {
            store.commit(Txn::put(format!("k/{}", i % 7), i.to_string())).await.unwrap();
            store.commit(Txn::put("other", "x")).await.unwrap();
        }
        store
    });
    let mut seen = Vec::new();
    while seen.len() < 500 {
        seen.extend(watch.next().await.unwrap());
    }
    assert!(seen.windows(2).all(|pair| pair[0].revision < pair[1].revision));
    let values: Vec<u64> = seen.iter().map(|e| number(&e.entry.as_ref().unwrap().value)).collect();
    assert_eq!(values, (0..500).collect::<Vec<_>>());
    writer.await.unwrap();
}

pub async fn watches_resume_from_the_past(store: Arc<dyn Store>) {
    for i in 0..10 {
        store.commit(Txn::put("a", i.to_string())).await.unwrap();
    }
    store.commit(Txn::delete("a")).await.unwrap();
    let events = store.watch(Keys::prefix("a"), Revision(5)).await.unwrap().next().await.unwrap();
    let revisions: Vec<u64> = events.iter().map(|e| e.revision.0).collect();
    assert_eq!(revisions, (5..=12).collect::<Vec<_>>());
    assert!(events.last().unwrap().entry.is_none());
}

pub async fn a_watch_of_one_key_sees_no_other(store: Arc<dyn Store>) {
    let mut one = store.watch(Keys::one("a/b"), Revision(2)).await.unwrap();
    let mut future = store.watch(Keys::one("a/b"), Revision(6)).await.unwrap();
    for key in ["a/b", "a/bc", "a/", "b", "a/b"] {
        store.commit(Txn::put(key, "v")).await.unwrap();
    }
    let mut late = store.watch(Keys::one("a/b"), Revision(2)).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(one.next().await.unwrap());
    }
    assert_eq!(seen.iter().map(|e| (&*e.key, e.revision.0)).collect::<Vec<_>>(), [("a/b", 2), ("a/b", 6)]);
    assert_eq!(late.next().await.unwrap(), seen);
    assert_eq!(future.next().await.unwrap(), seen[1..]);
}

pub async fn a_watch_from_now_begins_after_its_revision(store: Arc<dyn Store>) {
    let before = store.commit(Txn::put("k", "1")).await.unwrap().revision;
    let (revision, mut one) = store.watch_now(Keys::one("k")).await.unwrap();
    assert_eq!(revision, before);
    let (_, mut all) = store.watch_now(Keys::prefix("")).await.unwrap();
    let after = store.commit(Txn::delete("k")).await.unwrap().revision;
    for watch in [&mut one, &mut all] {
        let events = watch.next().await.unwrap();
        assert_eq!((events.len(), events[0].revision, &events[0].entry), (1, after, &None));
    }
}

pub async fn a_watch_of_a_quiet_key_outlives_the_history(store: Arc<dyn Store>) {
    let (_, mut quiet) = store.watch_now(Keys::one("quiet")).await.unwrap();
    let (_, mut next) = store.watch_now(Keys::prefix("quiet/")).await.unwrap();
    let many = Txn { then: (0..128).map(|i| put(&format!("{i}"), "v")).collect(), ..Txn::default() };
    for _ in 0..140 {
        store.commit(many.clone()).await.unwrap();
    }
    let written = store.commit(Txn { then: vec![put("quiet", "1"), put("quiet/1", "1")], ..Txn::default() }).await;
    let written = written.unwrap().revision;
    assert_eq!(quiet.next().await.unwrap()[0].revision, written);
    assert_eq!(next.next().await.unwrap()[0].revision, written);
}

pub async fn compaction_forgets_the_past_and_no_key(store: Arc<dyn Store>) {
    let mut slow = store.watch(Keys::one("k"), Revision(2)).await.unwrap();
    let (_, mut quiet) = store.watch_now(Keys::one("quiet")).await.unwrap();
    let mut revision = Revision(1);
    for n in 0..5 {
        revision = store.commit(Txn::put("k", n.to_string())).await.unwrap().revision;
    }
    store.compact(revision).await.unwrap();
    let compacted = WatchError::Compacted { oldest: revision };
    // A backend may keep for a slow watch what it has forgotten for others; then all of it, or from where it says.
    let mut told = Vec::new();
    while told.len() < 5 {
        match slow.next().await {
            Ok(events) => told.extend(events.iter().map(|event| event.revision.0)),
            Err(error) => {
                assert_eq!(error, compacted);
                break;
            }
        }
    }
    assert!((2..=6).collect::<Vec<_>>().starts_with(&told), "{told:?}");
    assert_eq!(store.watch(Keys::one("k"), Revision(2)).await.unwrap_err(), compacted);
    assert_eq!(store.watch(Keys::one("k"), revision).await.unwrap().next().await.unwrap()[0].revision, revision);
    assert_eq!(store.get("k").await.unwrap().unwrap().version, 5);
    // What is forgotten already may be forgotten again, and does not come back.
    store.compact(Revision(2)).await.unwrap();
    store.compact(revision).await.unwrap();
    assert_eq!(store.status().await.unwrap().oldest, revision);
    store.compact(revision.next()).await.unwrap();
    assert!(matches!(store.compact(revision.next().next()).await, Err(CommitError::Invalid(_))));
    let written = store.commit(Txn::put("quiet", "v")).await.unwrap().revision;
    assert_eq!(written, revision.next(), "it takes no revision");
    assert_eq!(quiet.next().await.unwrap()[0].revision, written, "who waits has missed nothing");
}

pub async fn a_status_says_how_much_there_is(store: Arc<dyn Store>) {
    let before = store.status().await.unwrap();
    assert_eq!((before.revision, before.entries, before.leases), (Revision(1), 0, 0));
    let lease = store.grant(Duration::from_secs(600)).await.unwrap().id;
    store.commit(Txn { then: vec![put("a", "1"), put("b", "2")], ..Txn::default() }).await.unwrap();
    let large = store.commit(Txn::put("a", vec![b'x'; 500_000])).await.unwrap().revision;
    let mut status = store.status().await.unwrap();
    assert_eq!((status.revision, status.entries, status.leases), (large, 2, 1));
    // How large it is, it may say a moment late.
    while status.bytes < before.bytes + 500_000 {
        tokio::task::yield_now().await;
        status = store.status().await.unwrap();
    }
    assert!(status.bytes < 50_000_000, "{status:?}");
    assert!(!status.backend.is_empty() && status.oldest <= status.revision.next());
    store.revoke(lease).await.unwrap();
    assert_eq!(store.status().await.unwrap().leases, 0);
}

pub async fn a_store_has_one_fence_base(store: Arc<dyn Store>) {
    let asked = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { fence_base(&*store).await })
    });
    let mut bases = Vec::new();
    for asked in asked.collect::<Vec<_>>() {
        bases.push(asked.await.unwrap().unwrap());
    }
    let base = bases[0];
    assert!(bases.iter().all(|other| *other == base), "{bases:?}");
    assert!(base > 1_764_000_000 << 20 && base < 1 << 53, "{base}");
    assert_eq!(store.range(FENCE_BASE).await.unwrap().revision, Revision(2), "it was written once");
    store.commit(Txn::put(FENCE_BASE, "?")).await.unwrap();
    assert!(matches!(fence_base(&*store).await, Err(CommitError::Invalid(_))));
}

pub async fn concurrent_writers_are_serialised(store: Arc<dyn Store>) {
    store.commit(Txn::put("n", "0")).await.unwrap();
    let writers = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < 25 {
                let entry = store.get("n").await.unwrap().unwrap();
                let next = (number(&entry.value) + 1).to_string();
                let txn = Txn::put("n", next).when(Compare::Modified("n".into(), entry.modified));
                done += u32::from(store.commit(txn).await.unwrap().succeeded);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(number(&store.get("n").await.unwrap().unwrap().value), 200);
}

/// The recipe that locks are made of: a key of one's own in a queue, a watch of the one just before, a lease for the case that
/// its owner dies.
pub async fn a_lock_is_handed_over_in_order(store: Arc<dyn Store>) {
    let enter = async |store: &dyn Store, key: &str, lease| {
        let op = Op::Put { key: key.into(), value: Bytes::new(), lease: Some(lease) };
        store.commit(Txn { then: vec![op], ..Txn::default() }).await.unwrap().revision
    };
    let dead = store.grant(Duration::from_secs(2)).await.unwrap().id;
    let mut expected = vec![enter(&*store, "lock/dead", dead).await];
    let held = Arc::new(Mutex::new(Vec::new()));
    let contenders = (0..10).map(|contender| {
        let (store, held) = (store.clone(), held.clone());
        tokio::spawn(async move {
            let lease = store.grant(Duration::from_secs(600)).await.unwrap().id;
            for round in 0..5 {
                let own = format!("lock/{contender}-{round}");
                let revision = enter(&*store, &own, lease).await;
                let before = Txn { then: vec![Op::NewestBefore("lock/".into(), revision)], ..Txn::default() };
                while let [OpResult::Got(Some(before))] = &store.commit(before.clone()).await.unwrap().results[..] {
                    let (_, mut watch) = store.watch_now(Keys::one(&*before.key)).await.unwrap();
                    if store.get(&before.key).await.unwrap().is_some_and(|entry| entry.created == before.created) {
                        watch.next().await.unwrap();
                    }
                }
                held.lock().unwrap().push(revision);
                let write = Txn::put("resource", own.clone()).when(Compare::Created(own.clone(), revision));
                assert!(store.commit(write).await.unwrap().succeeded, "its key is there as long as it holds the lock");
                let last = held.lock().unwrap().last().copied();
                assert_eq!(last, Some(revision), "nobody else had it meanwhile");
                store.commit(Txn::delete(own)).await.unwrap();
            }
        })
    });
    for contender in contenders.collect::<Vec<_>>() {
        contender.await.unwrap();
    }
    expected.extend(held.lock().unwrap().iter());
    assert_eq!(expected.len(), 51);
    assert!(expected.is_sorted(), "first come, first served: {expected:?}");
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), lease: None }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Embedded;

    crate::conformance!(memory, (Arc::new(Embedded::memory().unwrap()), ()));
    crate::conformance!(embedded, {
        let dir = tempfile::tempdir().unwrap();
        (Arc::new(Embedded::open(&dir.path().join("store.db")).unwrap()), dir)
    });

    #[test]
    fn every_case_is_run() {
        let source = include_str!("conformance.rs");
        let run = source.split("($backend:ident, $make:expr) => {").nth(1).unwrap().split(");").next().unwrap();
        let cases = source.lines().filter_map(|line| line.strip_prefix("pub async fn ")?.split('(').next());
        let missing: Vec<_> = cases.filter(|case| !run.contains(case)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
