//! Locks that several hold: readers and writers, permits, and the delay after a holder that was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use seawall_coord::{
    Backend, BackendError, ClaimError, DowngradeError, Kind, Manner, Released, SharedLocks, StoreBackend, Terms, Want,
    Why,
};
use seawall_store::Store;
use tokio::time::{Instant, sleep, timeout};

use super::flaky::Flaky;
use super::{Owner, SOON, dead_holder, name, nothing_is_left, queued, session, until};

on_each!(
    readers_hold_it_together_and_writers_alone,
    nobody_passes_a_writer_that_waits,
    a_writer_becomes_a_reader_and_no_writer_gets_in_between,
    nobody_becomes_a_writer_without_releasing,
    permits_are_never_more_than_the_limit,
    who_wants_many_permits_is_not_passed,
    another_limit_is_refused_by_name,
    permits_of_the_dead_come_back,
    readers_permits_and_owners_exclude_each_other,
    a_release_wakes_few,
    lost_replies_are_resolved_for_those_who_share,
    what_a_lost_holder_has_under_way_is_waited_for,
);

on_etcd!(
    readers_hold_it_together_and_writers_alone,
    nobody_passes_a_writer_that_waits,
    a_writer_becomes_a_reader_and_no_writer_gets_in_between,
    nobody_becomes_a_writer_without_releasing,
    permits_are_never_more_than_the_limit,
    who_wants_many_permits_is_not_passed,
    another_limit_is_refused_by_name,
    permits_of_the_dead_come_back,
    readers_permits_and_owners_exclude_each_other,
    lost_replies_are_resolved_for_those_who_share,
    what_a_lost_holder_has_under_way_is_waited_for,
);

/// Counts who is inside: writers as a million.
#[derive(Default)]
struct Inside(AtomicI64, AtomicU64);

const WRITER: i64 = 1_000_000;

impl Inside {
    async fn visit(&self, weight: i64, most: i64) {
        let now = self.0.fetch_add(weight, Ordering::SeqCst) + weight;
        assert!(now <= most, "{now} inside, {most} at most");
        sleep(Duration::from_millis(fastrand::u64(0..3))).await;
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.fetch_sub(weight, Ordering::SeqCst);
    }
}

async fn readers_hold_it_together_and_writers_alone(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let inside = Arc::new(Inside::default());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (session, inside) = (session(&backend, &format!("s{n}")).await, inside.clone());
        tasks.spawn(async move {
            let lock = session.rw_lock(name("x"));
            for _ in 0..10 {
                if n < 3 {
                    let guard = lock.write_within(SOON).await.unwrap();
                    inside.visit(WRITER, WRITER).await;
                    drop(guard);
                } else {
                    let guard = lock.read_within(SOON).await.unwrap();
                    inside.visit(1, WRITER - 1).await;
                    assert_eq!(guard.release().await, Ok(Released::Now));
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(inside.1.load(Ordering::SeqCst), 80);
    nothing_is_left(&backend, &store).await;
    // Two readers at a time, whatever the scheduler did above.
    let (a, b) = (session(&backend, "a").await.rw_lock(name("x")), session(&backend, "b").await.rw_lock(name("x")));
    let (one, two) = (a.read_within(SOON).await.unwrap(), b.try_read().await.unwrap().expect("readers share"));
    assert!(two.fence() > one.fence());
    assert!(a.try_write().await.unwrap().is_none());
    drop((one, two));
}

async fn nobody_passes_a_writer_that_waits(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let lock = |owner: &'static str| {
        let backend = backend.clone();
        async move { session(&backend, owner).await.rw_lock(name("x")) }
    };
    let (first, second) = (lock("r1").await, lock("r2").await);
    let (one, two) = (first.read_within(SOON).await.unwrap(), second.read_within(SOON).await.unwrap());
    let writing = tokio::spawn({
        let writer = lock("w").await;
        async move { writer.write_within(SOON).await.unwrap() }
    });
    queued(&backend, "x", 1).await;
    let third = lock("r3").await;
    assert!(third.try_read().await.unwrap().is_none(), "a writer waits");
    let reading = tokio::spawn(async move { third.read_within(SOON).await.unwrap() });
    queued(&backend, "x", 2).await;
    let shown = backend.show(&name("x")).await.unwrap();
    let owners = |views: &[seawall_coord::ClaimView]| views.iter().map(|view| view.owner.clone()).collect::<Vec<_>>();
    assert_eq!(shown.holder.as_ref().map(|one| (&*one.owner, one.kind)), Some(("r1", Kind::Read)));
    assert_eq!((owners(&shown.sharing), owners(&shown.queue)), (vec!["r2".into()], vec!["w".into(), "r3".into()]));
    assert_eq!(backend.list().await.unwrap(), [shown]);
    drop(one);
    sleep(Duration::from_millis(50)).await;
    assert!(!writing.is_finished());
    let before = two.fence();
    drop(two);
    let writer = writing.await.unwrap();
    sleep(Duration::from_millis(50)).await;
    assert!(!reading.is_finished());
    let written = writer.fence();
    assert_eq!(writer.release().await, Ok(Released::Now));
    let reader = reading.await.unwrap();
    assert!(before < written && written < reader.fence());
}

async fn a_writer_becomes_a_reader_and_no_writer_gets_in_between(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b, c) = (session(&backend, "a").await, session(&backend, "b").await, session(&backend, "c").await);
    let guard = a.rw_lock(name("x")).write_within(SOON).await.unwrap();
    let reading = tokio::spawn(async move { b.rw_lock(name("x")).read_within(SOON).await.unwrap() });
    queued(&backend, "x", 1).await;
    let writing = tokio::spawn(async move { c.rw_lock(name("x")).write_within(SOON).await.unwrap() });
    queued(&backend, "x", 2).await;
    let fence = guard.fence();
    let guard = guard.downgrade().await.unwrap();
    assert_eq!(guard.fence(), fence);
    let beside = timeout(SOON, reading).await.unwrap().unwrap();
    assert!(!writing.is_finished() && guard.check().is_ok());
    assert_eq!(backend.show(&name("x")).await.unwrap().sharing.len(), 1);
    drop(beside);
    sleep(Duration::from_millis(50)).await;
    assert!(!writing.is_finished());
    assert_eq!(guard.release().await, Ok(Released::Now));
    let writer = timeout(SOON, writing).await.unwrap().unwrap();
    // Taken away, it is nothing to read with either.
    backend.force(&name("x"), "operator", "").await.unwrap();
    assert!(matches!(writer.downgrade().await, Err(DowngradeError::Lost(Why::Removed))));
    nothing_is_left(&backend, &store).await;
}

async fn nobody_becomes_a_writer_without_releasing(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let session = session(&backend, "a").await;
    let mine = session.rw_lock(name("x")).reentrant("me");
    let first = mine.read_within(SOON).await.unwrap();
    let error = mine.write_within(SOON).await.unwrap_err();
    assert!(error.to_string().contains("`me` has `x` for reading"), "{error}");
    assert!(matches!(error, ClaimError::Backend(BackendError::Refused { .. })));
    // Reads again, though a writer waits.
    let writing = tokio::spawn({
        let lock = session.rw_lock(name("x"));
        async move { lock.write_within(SOON).await.unwrap() }
    });
    queued(&backend, "x", 1).await;
    let again = mine.try_read().await.unwrap().expect("mine");
    assert_eq!(again.fence(), first.fence());
    drop((first, again));
    drop(writing.await.unwrap());
    // Who writes may read; and does not become a reader while others of it write.
    let writer = mine.write_within(SOON).await.unwrap();
    let reader = mine.read_within(SOON).await.unwrap();
    assert_eq!(writer.fence(), reader.fence());
    let Err(DowngradeError::Shared(writer)) = writer.downgrade().await else { panic!("shared") };
    drop(reader);
    let reader = writer.downgrade().await.unwrap();
    assert!(mine.write_within(SOON).await.is_err());
    drop(reader);
    nothing_is_left(&backend, &store).await;
}

async fn permits_are_never_more_than_the_limit(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let inside = Arc::new(Inside::default());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (session, inside) = (session(&backend, &format!("s{n}")).await, inside.clone());
        tasks.spawn(async move {
            let semaphore = session.semaphore(name("x"), 4);
            for round in 0..10_u32 {
                let take = 1 + (n + round) % 4;
                let guard = semaphore.acquire_within(take, SOON).await.unwrap();
                inside.visit(take.into(), 4).await;
                if round % 2 == 0 {
                    assert_eq!(guard.release().await, Ok(Released::Now));
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(inside.1.load(Ordering::SeqCst), 80);
    nothing_is_left(&backend, &store).await;
    let session = session(&backend, "a").await;
    let semaphore = session.semaphore(name("x"), 3);
    let held = semaphore.acquire_within(2, SOON).await.unwrap();
    assert!(semaphore.try_acquire(2).await.unwrap().is_none());
    let beside = semaphore.try_acquire(1).await.unwrap().expect("one is left");
    assert!(beside.fence() > held.fence());
    let shown = backend.show(&name("x")).await.unwrap();
    assert_eq!(shown.holder.unwrap().kind, Kind::Permits { limit: 3, take: 2 });
    assert_eq!((shown.sharing.len(), shown.queue.len()), (1, 0));
    for (limit, take) in [(3, 0), (3, 4), (0, 1)] {
        let error = session.semaphore(name("x"), limit).try_acquire(take).await.unwrap_err();
        assert!(matches!(error, ClaimError::Backend(BackendError::Refused { .. })), "{error}");
    }
}

async fn who_wants_many_permits_is_not_passed(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let semaphore = |owner: &'static str| {
        let backend = backend.clone();
        async move { session(&backend, owner).await.semaphore(name("x"), 3) }
    };
    let holder = semaphore("a").await;
    let (one, two) = (holder.acquire_within(1, SOON).await.unwrap(), holder.acquire_within(1, SOON).await.unwrap());
    let many = tokio::spawn({
        let semaphore = semaphore("many").await;
        async move { semaphore.acquire_within(3, SOON).await.unwrap() }
    });
    queued(&backend, "x", 1).await;
    let few = semaphore("few").await;
    assert!(few.try_acquire(1).await.unwrap().is_none(), "one is free, but somebody waits for it");
    let few = tokio::spawn(async move { few.acquire_within(1, SOON).await.unwrap() });
    queued(&backend, "x", 2).await;
    drop(one);
    sleep(Duration::from_millis(50)).await;
    assert!(!many.is_finished() && !few.is_finished());
    drop(two);
    let many = timeout(SOON, many).await.unwrap().unwrap();
    sleep(Duration::from_millis(50)).await;
    assert!(!few.is_finished());
    drop(many);
    drop(timeout(SOON, few).await.unwrap().unwrap());
    // One who gives up lets those behind it pass.
    let held = holder.acquire_within(1, SOON).await.unwrap();
    let giving_up = holder.acquire_within(3, Duration::from_millis(300));
    let patient = async {
        queued(&backend, "x", 1).await;
        holder.acquire_within(2, SOON).await.unwrap()
    };
    let (gave_up, patient) = tokio::join!(giving_up, patient);
    assert!(matches!(gave_up, Err(ClaimError::TimedOut { ahead: 1, .. })), "{gave_up:?}");
    drop((held, patient));
    nothing_is_left(&backend, &store).await;
}

async fn another_limit_is_refused_by_name(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let session = session(&backend, "a").await;
    let held = session.semaphore(name("x"), 3).acquire_within(1, SOON).await.unwrap();
    let before = store.range("").await.unwrap();
    for patience in [SOON, Duration::ZERO] {
        let error = session.semaphore(name("x"), 5).acquire_within(1, patience).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("1 of 5 permits") && text.contains("a limit of 3"), "{text}");
        assert!(matches!(error, ClaimError::Backend(BackendError::Refused { .. })), "{error:?}");
    }
    assert_eq!(store.range("").await.unwrap(), before, "nothing was written");
    assert!(session.semaphore(name("x"), 3).try_acquire(2).await.unwrap().is_some());
    drop(held);
    nothing_is_left(&backend, &store).await;
    // Where nobody is any more, there may be another.
    assert!(session.semaphore(name("x"), 5).try_acquire(5).await.unwrap().is_some());
}

async fn permits_of_the_dead_come_back(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let ttl = Duration::from_secs(2);
    let manner = Manner::of(Kind::Permits { limit: 2, take: 1 });
    for _ in 0..2 {
        let (lease, _) = backend.open(&Terms { ttl, owner: Owner::try_new("dead").unwrap() }).await.unwrap();
        let want = Want::new(name("x"));
        backend.claim_as(&lease, &want, &manner, SOON).await.unwrap();
    }
    let session = session(&backend, "next").await;
    assert!(session.semaphore(name("x"), 2).try_acquire(1).await.unwrap().is_none());
    drop(session.semaphore(name("x"), 2).acquire_within(2, SOON).await.unwrap());
    nothing_is_left(&backend, &store).await;
}

async fn readers_permits_and_owners_exclude_each_other(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let session = session(&backend, "a").await;
    let (lock, rw, permits) = (session.lock(name("x")), session.rw_lock(name("x")), session.semaphore(name("x"), 2));
    let reading = rw.read_within(SOON).await.unwrap();
    assert!(lock.try_acquire().await.unwrap().is_none() && permits.try_acquire(1).await.unwrap().is_none());
    drop(reading);
    let held = permits.acquire_within(1, SOON).await.unwrap();
    assert!(lock.try_acquire().await.unwrap().is_none() && rw.try_read().await.unwrap().is_none());
    // Each in its turn: one alone, a reader, permits.
    let order = std::sync::Mutex::new(Vec::new());
    let alone = async {
        let guard = lock.acquire_within(SOON).await.unwrap();
        order.lock().unwrap().push("alone");
        drop(guard);
    };
    let reader = async {
        queued(&backend, "x", 1).await;
        let guard = rw.read_within(SOON).await.unwrap();
        order.lock().unwrap().push("reader");
        drop(guard);
    };
    let permit = async {
        queued(&backend, "x", 2).await;
        let guard = permits.acquire_within(2, SOON).await.unwrap();
        order.lock().unwrap().push("permits");
        drop(guard);
    };
    let begin = async {
        queued(&backend, "x", 3).await;
        drop(held);
    };
    tokio::join!(alone, reader, permit, begin);
    assert_eq!(*order.lock().unwrap(), ["alone", "reader", "permits"]);
    nothing_is_left(&backend, &store).await;
}

async fn a_release_wakes_few(store: Arc<dyn Store>) {
    const WAITERS: usize = 60;
    let flaky = Flaky::new(store.clone(), 1);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let session = session(&backend, "a").await;
    let permits = || session.semaphore(name("x"), 2);
    let held = [permits().acquire_within(1, SOON).await.unwrap(), permits().acquire_within(1, SOON).await.unwrap()];
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WAITERS {
        let permits = permits();
        tasks.spawn(async move { permits.acquire_within(1, SOON).await.unwrap() });
    }
    until("all wait", || async { store.range("lock/").await.unwrap().entries.len() == WAITERS + 2 }).await;
    // They have looked, and begun to watch.
    sleep(Duration::from_millis(300)).await;
    let before = flaky.looks();
    drop(held);
    let (one, two) = (tasks.join_next().await.unwrap().unwrap(), tasks.join_next().await.unwrap().unwrap());
    sleep(Duration::from_millis(300)).await;
    let looks = flaky.looks() - before;
    assert!(looks <= 8, "{looks} looks at the queue after two releases");
    drop((one, two));
    while let Some(guard) = tasks.join_next().await {
        drop(guard.unwrap());
    }
    nothing_is_left(&backend, &store).await;
}

async fn lost_replies_are_resolved_for_those_who_share(store: Arc<dyn Store>) {
    for seed in 0..2 {
        let flaky = Flaky::new(store.clone(), seed);
        let backend = StoreBackend::open(flaky.clone()).await.unwrap();
        let (inside, both) = (Arc::new(Inside::default()), Arc::new(Inside::default()));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..6_u32 {
            let session = session(&backend, &format!("{seed}-{n}")).await;
            let (inside, both) = (inside.clone(), both.clone());
            tasks.spawn(async move {
                let (permits, rw) = (session.semaphore(name("p"), 3), session.rw_lock(name("rw")));
                for round in 0..5 {
                    let take = 1 + (n + round) % 3;
                    let guard = permits.acquire_within(take, SOON).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                    inside.visit(take.into(), 3).await;
                    let _ = guard.release().await;
                    if n % 3 == 0 {
                        let guard = rw.write_within(SOON).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                        both.visit(WRITER, WRITER).await;
                        let _ = guard.release().await;
                    } else {
                        let guard = rw.read_within(SOON).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                        both.visit(1, WRITER - 1).await;
                        drop(guard);
                    }
                }
            });
        }
        flaky.troubles(0.3);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        flaky.troubles(0.0);
        assert_eq!(inside.1.load(Ordering::SeqCst), 30, "seed {seed}");
        nothing_is_left(&backend, &store).await;
    }
}

async fn what_a_lost_holder_has_under_way_is_waited_for(store: Arc<dyn Store>) {
    const DELAY: Duration = Duration::from_secs(2);
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let next = session(&backend, "next").await;
    let delayed = || next.lock(name("x")).delay(DELAY);
    let left = || async { store.range("lock-delay/").await.unwrap().entries.len() };
    // Released, nobody waits.
    let guard = delayed().acquire_within(SOON).await.unwrap();
    assert_eq!(left().await, 1);
    let from = Instant::now();
    let waiting = tokio::spawn({
        let lock = delayed();
        async move { lock.acquire_within(SOON).await.unwrap() }
    });
    queued(&backend, "x", 1).await;
    assert_eq!(guard.release().await, Ok(Released::Now));
    let guard = waiting.await.unwrap();
    assert!(from.elapsed() < DELAY, "{:?}", from.elapsed());
    assert_eq!(guard.release().await, Ok(Released::Now));
    assert_eq!(left().await, 0);
    // Lost, whoever comes next waits, in whatever manner, and says so.
    let manner = Manner { kind: Kind::Exclusive, delay: DELAY };
    let (lease, _) = backend.open(&Terms { ttl: SOON, owner: Owner::try_new("dead").unwrap() }).await.unwrap();
    let want = Want::new(name("x"));
    let dead = backend.claim_as(&lease, &want, &manner, SOON).await.unwrap();
    backend.close(&lease).await.unwrap();
    let from = Instant::now();
    assert!(next.lock(name("x")).try_acquire().await.unwrap().is_none());
    let late = next.lock(name("x")).acquire_within(Duration::from_millis(100)).await;
    assert!(matches!(late, Err(ClaimError::TimedOut { ahead: 0, holder: None, .. })), "{late:?}");
    let lock = next.rw_lock(name("x"));
    let (one, two) = tokio::join!(lock.read_within(SOON), lock.read_within(SOON));
    assert!(from.elapsed() >= DELAY, "{:?}", from.elapsed());
    assert!(one.unwrap().fence() > dead.fence.unwrap() && two.is_ok());
    assert_eq!(left().await, 0);
    // Those who say nothing leave nothing.
    let dead = dead_holder(&backend, "y", Duration::from_secs(1)).await.unwrap();
    assert!(next.lock(name("y")).acquire_within(SOON).await.unwrap().fence() > dead);
    for (manner, says) in [
        (Manner { kind: Kind::Exclusive, delay: Duration::from_secs(61) }, "61s: at most 60s"),
        (Manner { kind: Kind::Read, delay: DELAY }, "only exclusive ones"),
    ] {
        let (lease, _) = backend.open(&Terms { ttl: SOON, owner: Owner::try_new("a").unwrap() }).await.unwrap();
        let error = backend.claim_as(&lease, &want, &manner, SOON).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}
