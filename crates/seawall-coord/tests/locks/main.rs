//! Sessions and locks on the real store, in memory and on SQLite, and on a store that loses replies.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod flaky;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flaky::Flaky;
use seawall_coord::{
    Backend, BackendError, ClaimError, Clock, Fence, Guard, Keep, LockName, Owner, Released, Session, SessionConfig,
    SessionError, StoreBackend, Terms, Token, Want, Why,
};
use seawall_store::{Embedded, Store};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(20);

/// Runs every case on a fresh store of each kind.
macro_rules! cases {
    ($backend:ident, $make:expr, $($case:ident),+ $(,)?) => {
        mod $backend {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let (store, _keep): (Arc<dyn Store>, _) = $make;
                timeout(Duration::from_secs(60), Box::pin(super::$case(store))).await.expect("hangs");
            })+
        }
    };
}

macro_rules! on_each {
    ($($case:ident),+ $(,)?) => {
        cases!(memory, (Arc::new(seawall_store::Embedded::memory().unwrap()), ()), $($case),+);
        cases!(sqlite, {
            let dir = tempfile::tempdir().unwrap();
            (Arc::new(seawall_store::Embedded::open(&dir.path().join("store.db")).unwrap()), dir)
        }, $($case),+);
    };
}

/// A real etcd, for each case its own.
macro_rules! on_etcd {
    ($($case:ident),+ $(,)?) => {
        cases!(etcd, {
            let server = seawall_servers::Server::etcd();
            let etcd = seawall_store::Etcd::connect(&[server.addr().to_string()], "test").await.unwrap();
            (Arc::new(etcd), server)
        }, $($case),+);
    };
}

mod barriers;
mod elections;
mod once;
#[path = "../servers/priorities.rs"]
mod priorities;
mod shared;
mod together;

on_etcd!(
    sixteen_tasks_exclude_each_other,
    whoever_asked_first_has_it_first,
    a_try_takes_only_what_is_free,
    dropped_futures_leave_nothing,
    lost_replies_are_resolved,
    what_was_given_up_does_not_come_back,
);

on_each!(
    sixteen_tasks_exclude_each_other,
    whoever_asked_first_has_it_first,
    a_try_takes_only_what_is_free,
    a_wait_that_runs_out_leaves_nothing,
    dropped_futures_leave_nothing,
    a_killed_holders_lock_passes_on_after_its_time,
    the_holder_knows_first,
    a_session_goes_on_while_its_program_blocks,
    a_session_without_renewal_ends_unless_it_is_extended,
    a_session_lost_in_the_queue_has_no_place,
    a_waiter_whose_place_is_gone_queues_anew,
    a_lock_is_taken_away_by_force,
    a_stale_release_changes_nothing,
    an_owner_has_its_lock_again,
    a_closed_session_gives_everything_back,
    the_same_want_again_keeps_its_place,
    work_is_dropped_when_the_lock_is_lost,
    a_jump_of_the_clock_ends_it_at_once,
    bad_input_is_refused_and_changes_nothing,
    lost_replies_are_resolved,
    an_unknown_outcome_is_said_and_cleared_up,
    what_was_given_up_does_not_come_back,
    holders_that_go_by_their_guards_never_overlap,
);

fn name(text: &str) -> LockName {
    LockName::try_new(text).unwrap()
}

fn config(owner: &str, ttl: u64) -> SessionConfig {
    SessionConfig::new(Owner::try_new(owner).unwrap()).ttl(Duration::from_millis(ttl))
}

async fn session(backend: &StoreBackend, owner: &str) -> Session<StoreBackend> {
    Session::open(backend.clone(), config(owner, 5_000)).await.unwrap()
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn queued(backend: &StoreBackend, lock: &str, count: usize) {
    until(&format!("{count} wait"), || async { backend.show(&name(lock)).await.unwrap().queue.len() == count }).await;
}

async fn nothing_is_left(backend: &StoreBackend, store: &Arc<dyn Store>) {
    until("no claim is left", || async { backend.list().await.unwrap().is_empty() }).await;
    assert_eq!(store.range("lock/").await.unwrap().entries, []);
}

/// What a lock protects: it refuses tokens that do not grow, and notices two at once.
#[derive(Default)]
struct Resource {
    highest: AtomicU64,
    busy: AtomicBool,
    visits: AtomicU64,
}

impl Resource {
    async fn visit(&self, fence: Fence) {
        assert!(!self.busy.swap(true, Ordering::SeqCst), "two at once");
        let before = self.highest.swap(fence.get(), Ordering::SeqCst);
        assert!(before < fence.get(), "token {fence} after {before}");
        tokio::task::yield_now().await;
        self.visits.fetch_add(1, Ordering::SeqCst);
        assert!(self.busy.swap(false, Ordering::SeqCst));
    }
}

async fn sixteen_tasks_exclude_each_other(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let resource = Arc::new(Resource::default());
    let mut tasks = tokio::task::JoinSet::new();
    for owner in 0..8 {
        let session = session(&backend, &format!("owner-{owner}")).await;
        // Two tasks of one session exclude each other, too.
        for _ in 0..2 {
            let (session, resource) = (session.clone(), resource.clone());
            tasks.spawn(async move {
                let lock = session.lock(name("one"));
                for round in 0..20 {
                    let guard = lock.acquire_within(SOON).await.unwrap();
                    assert!(guard.remaining() > Duration::from_secs(1));
                    resource.visit(guard.fence()).await;
                    if round % 2 == 0 {
                        assert_eq!(guard.release().await, Ok(Released::Now));
                    }
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(resource.visits.load(Ordering::SeqCst), 320);
    nothing_is_left(&backend, &store).await;
}

async fn whoever_asked_first_has_it_first(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let holder = session(&backend, "holder").await;
    let held = holder.lock(name("a")).acquire_within(SOON).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (session, order) = (session(&backend, &format!("w{n}")).await, order.clone());
        tasks.spawn(async move {
            let guard = session.lock(name("a")).acquire_within(SOON).await.unwrap();
            order.lock().unwrap().push(n);
            guard.release().await.unwrap();
        });
        queued(&backend, "a", n + 1).await;
    }
    let shown = backend.show(&name("a")).await.unwrap();
    assert_eq!(shown.holder.unwrap().owner, "holder");
    assert_eq!(shown.queue[0].owner, "w0");
    assert!(shown.queue.is_sorted_by_key(|claim| claim.fence));
    held.release().await.unwrap();
    tasks.join_all().await;
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

async fn a_try_takes_only_what_is_free(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let guard = a.lock(name("x")).try_acquire().await.unwrap().expect("it is free");
    let before = store.range("").await.unwrap();
    assert!(b.lock(name("x")).try_acquire().await.unwrap().is_none());
    let ClaimError::Busy { holder } = b.lock(name("x")).acquire_within(Duration::ZERO).await.unwrap_err() else {
        panic!("busy")
    };
    assert_eq!(holder.unwrap().fence, guard.token());
    assert_eq!(store.range("").await.unwrap(), before, "nothing was written");
    assert!(b.lock(name("y")).try_acquire().await.unwrap().is_some(), "another lock is free");
}

async fn a_wait_that_runs_out_leaves_nothing(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let guard = a.lock(name("x")).acquire_within(SOON).await.unwrap();
    let from = Instant::now();
    let error = b.lock(name("x")).acquire_within(Duration::from_millis(150)).await.unwrap_err();
    assert!(from.elapsed() >= Duration::from_millis(150) && from.elapsed() < Duration::from_secs(5));
    assert!(matches!(&error, ClaimError::TimedOut { ahead: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("held by a (session"), "{error}");
    assert_eq!(store.range("lock/").await.unwrap().entries.len(), 1);
    drop(guard);
    nothing_is_left(&backend, &store).await;
}

async fn dropped_futures_leave_nothing(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let held = a.lock(name("x")).acquire_within(SOON).await.unwrap();
    let lock = b.lock(name("x"));
    // In the queue.
    for micros in (0..4_000).step_by(40) {
        let _ = timeout(Duration::from_micros(micros), lock.acquire_within(SOON)).await;
    }
    until("the queue is empty", || async { backend.show(&name("x")).await.unwrap().queue.is_empty() }).await;
    held.release().await.unwrap();
    // On the way to the lock itself, after any number of polls.
    for polls in 0..12 {
        let mut left = polls;
        let acquiring = lock.acquire_within(SOON);
        let mut acquiring = std::pin::pin!(acquiring);
        std::future::poll_fn(|context| {
            if left == 0 || acquiring.as_mut().poll(context).is_ready() {
                return std::task::Poll::Ready(());
            }
            left -= 1;
            std::task::Poll::Pending
        })
        .await;
    }
    for micros in (0..4_000).step_by(40) {
        // A release that is dropped goes on.
        if let Ok(guard) = timeout(Duration::from_micros(micros), lock.acquire_within(SOON)).await {
            let _ = timeout(Duration::ZERO, guard.unwrap().release()).await;
        }
    }
    nothing_is_left(&backend, &store).await;
    assert!(a.lock(name("x")).acquire_within(SOON).await.is_ok());
}

/// A holder that no longer does anything, as after kill -9.
async fn dead_holder(backend: &StoreBackend, lock: &str, ttl: Duration) -> Result<Fence, ClaimError> {
    let (lease, _) = backend.open(&Terms { ttl, owner: Owner::try_new("dead").unwrap() }).await?;
    let want = Want::new(name(lock));
    Ok(backend.claim(&lease, &want, SOON).await?.fence.unwrap())
}

async fn a_killed_holders_lock_passes_on_after_its_time(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let next = session(&backend, "next").await;
    let ttl = Duration::from_millis(800);
    let dead = dead_holder(&backend, "x", ttl).await.unwrap();
    let from = Instant::now();
    let guard = next.lock(name("x")).acquire_within(SOON).await.unwrap();
    let took = from.elapsed();
    assert!(took > ttl - Duration::from_millis(100) && took < ttl + Duration::from_millis(700), "{took:?}");
    assert!(guard.fence() > dead);
}

async fn the_holder_knows_first(store: Arc<dyn Store>) {
    let flaky = Flaky::new(store, 1);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let holder = Session::open(backend.clone(), config("holder", 700)).await.unwrap();
    let guard = holder.lock(name("x")).acquire_within(SOON).await.unwrap();
    let next = session(&backend, "next").await;
    let waiting = tokio::spawn(async move {
        let guard = next.lock(name("x")).acquire_within(SOON).await.unwrap();
        (Instant::now(), guard)
    });
    queued(&backend, "x", 1).await;
    // Renewed for longer than its time.
    sleep(Duration::from_millis(1_000)).await;
    assert!(guard.check().is_ok() && !waiting.is_finished());
    // Keep-alives fail from now on, and the holder is cut off from any news.
    flaky.cut_keep_alives(true);
    let why = timeout(SOON, guard.lost()).await.unwrap();
    let lost = Instant::now();
    assert_eq!((why, guard.remaining()), (Why::Expired, Duration::ZERO));
    flaky.cut_keep_alives(false);
    let (acquired, next) = waiting.await.unwrap();
    assert!(lost < acquired, "the next had it {:?} before the holder knew", lost - acquired);
    assert!(next.fence() > guard.fence());
    assert_eq!(guard.check(), Err(Why::Expired), "once lost, always lost");
    assert_eq!(guard.release().await, Ok(Released::WasNotHeld));
    assert!(next.check().is_ok());
}

async fn a_session_goes_on_while_its_program_blocks(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let session = Session::open(backend, config("a", 500)).await.unwrap();
    let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1_200))).await.unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(guard.check().is_ok());
}

async fn a_session_without_renewal_ends_unless_it_is_extended(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let config = SessionConfig { keep: Keep::Once, ..config("a", 1_000) };
    let session = Session::open(backend, config).await.unwrap();
    let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    for _ in 0..3 {
        sleep(Duration::from_millis(400)).await;
        let before = guard.remaining();
        assert!(guard.extend().await.unwrap() > before);
    }
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Expired);
    assert_eq!(guard.extend().await, Err(Why::Expired));
    assert!(matches!(session.lock(name("y")).try_acquire().await, Err(ClaimError::Lost(Why::Expired))));
}

async fn a_session_lost_in_the_queue_has_no_place(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let holder = session(&backend, "holder").await;
    let held = holder.lock(name("x")).acquire_within(SOON).await.unwrap();
    // A waiter whose session ends at the store, without its own clock having noticed.
    let terms = Terms { ttl: SOON, owner: Owner::try_new("waiter").unwrap() };
    let (lease, _) = backend.open(&terms).await.unwrap();
    let want = Want::new(name("x"));
    let waiting = tokio::spawn({
        let (backend, want) = (backend.clone(), want.clone());
        async move { backend.claim(&lease, &want, SOON).await }
    });
    queued(&backend, "x", 1).await;
    backend.close(&lease).await.unwrap();
    assert_eq!(waiting.await.unwrap(), Err(ClaimError::Lost(Why::Ended)));
    // And if both go in the same moment, the waiter has the lock no more than before.
    let (lease, _) = backend.open(&terms).await.unwrap();
    let waiting = tokio::spawn({
        let (backend, want) = (backend.clone(), want.clone());
        async move { backend.claim(&lease, &want, SOON).await }
    });
    queued(&backend, "x", 1).await;
    let (closed, released) = tokio::join!(backend.close(&lease), held.release());
    closed.unwrap();
    released.unwrap();
    assert!(!matches!(waiting.await.unwrap(), Err(ClaimError::TimedOut { .. })));
    nothing_is_left(&backend, &store).await;
    assert_eq!(backend.claim(&lease, &want, SOON).await, Err(ClaimError::Lost(Why::Ended)));
    assert_eq!(backend.renew(&lease).await.map_err(|error| error.retryable()), Err(false));
    nothing_is_left(&backend, &store).await;
}

async fn a_waiter_whose_place_is_gone_queues_anew(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let held = a.lock(name("x")).acquire_within(SOON).await.unwrap();
    let waiting = tokio::spawn(async move { b.lock(name("x")).acquire_within(SOON).await });
    for _ in 0..3 {
        queued(&backend, "x", 1).await;
        let entries = store.range("lock/x/").await.unwrap().entries;
        let waiter = entries.into_iter().max_by_key(|entry| entry.created).unwrap();
        store.commit(seawall_store::Txn::delete(&*waiter.key)).await.unwrap();
    }
    queued(&backend, "x", 1).await;
    let fence = held.fence();
    held.release().await.unwrap();
    assert!(waiting.await.unwrap().unwrap().fence() > fence);
}

async fn a_lock_is_taken_away_by_force(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let first = a.lock(name("x")).info("report").acquire_within(SOON).await.unwrap();
    let other = a.lock(name("y")).acquire_within(SOON).await.unwrap();
    let waiting = tokio::spawn(async move { b.lock(name("x")).acquire_within(SOON).await });
    queued(&backend, "x", 1).await;
    let taken = backend.force(&name("x"), "operator", "it hangs").await.unwrap().unwrap();
    assert_eq!((taken.owner.as_str(), taken.info.as_str(), taken.fence), ("a", "report", first.token()));
    assert_eq!(timeout(SOON, first.lost()).await.unwrap(), Why::Removed);
    let second = waiting.await.unwrap().unwrap();
    assert!(second.fence() > first.fence());
    assert_eq!(first.check(), Err(Why::Removed));
    assert_eq!(first.release().await, Ok(Released::WasNotHeld));
    assert!(second.check().is_ok() && other.check().is_ok() && a.check().is_ok());
    let audits = backend.audits().await.unwrap();
    assert_eq!((audits.len(), &*audits[0].by, &*audits[0].why, &audits[0].holder), (1, "operator", "it hangs", &taken));
    assert_eq!(backend.force(&name("nobody"), "operator", "").await, Ok(None));
    for (by, why) in [("", String::new()), ("x", "y".repeat(10_000))] {
        assert!(matches!(backend.force(&name("x"), by, &why).await, Err(BackendError::Refused { .. })));
    }
    assert!(second.check().is_ok());
}

async fn a_stale_release_changes_nothing(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let terms = Terms { ttl: SOON, owner: Owner::try_new("a").unwrap() };
    let (lease, _) = backend.open(&terms).await.unwrap();
    let want = || Want::new(name("x"));
    let first = backend.claim(&lease, &want(), SOON).await.unwrap();
    assert_eq!(backend.withdraw(&lease, &first.name, &first.token).await, Ok(Released::Now));
    let second = backend.claim(&lease, &want(), SOON).await.unwrap();
    let before = store.range("").await.unwrap();
    assert_eq!(backend.withdraw(&lease, &first.name, &first.token).await, Ok(Released::WasNotHeld));
    assert_eq!(backend.withdraw(&lease, &first.name, &Token::random()).await, Ok(Released::WasNotHeld));
    // The right token, another session.
    let (other, _) = backend.open(&terms).await.unwrap();
    assert_eq!(backend.withdraw(&other, &second.name, &second.token).await, Ok(Released::WasNotHeld));
    assert_eq!(store.range("lock/").await.unwrap().entries, before.entries[..1]);
}

async fn an_owner_has_its_lock_again(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let mine = || a.lock(name("x")).reentrant("me");
    let first = mine().acquire_within(SOON).await.unwrap();
    let second = mine().try_acquire().await.unwrap().expect("mine");
    assert_eq!(first.fence(), second.fence());
    // Another owner of the session, nobody in particular, the same name in another session: all of them wait.
    assert!(a.lock(name("x")).reentrant("you").try_acquire().await.unwrap().is_none());
    assert!(a.lock(name("x")).try_acquire().await.unwrap().is_none());
    assert!(b.lock(name("x")).reentrant("me").try_acquire().await.unwrap().is_none());
    assert!(a.lock(name("y")).reentrant("me").try_acquire().await.unwrap().is_some());
    assert_eq!(first.release().await, Ok(Released::Shared));
    assert!(second.check().is_ok() && b.lock(name("x")).try_acquire().await.unwrap().is_none());
    let third = mine().acquire_within(SOON).await.unwrap();
    drop(second);
    assert_eq!(third.release().await, Ok(Released::Now));
    nothing_is_left(&backend, &store).await;
    // Two tasks of one owner that want it at the same time share it, and do not wait for each other.
    let theirs = b.lock(name("x")).acquire_within(SOON).await.unwrap();
    let (one, two) = (mine(), mine());
    let both = async { tokio::join!(one.acquire_within(SOON), two.acquire_within(SOON)) };
    let late = mine();
    let (both, late, ()) = tokio::join!(both, late.acquire_within(Duration::from_millis(50)), async {
        sleep(Duration::from_millis(200)).await;
        assert_eq!(backend.show(&name("x")).await.unwrap().queue.len(), 1);
        theirs.release().await.unwrap();
    });
    assert!(matches!(late, Err(ClaimError::TimedOut { .. })), "{late:?}");
    let (one, two) = (both.0.unwrap(), both.1.unwrap());
    assert_eq!(one.fence(), two.fence());
    // Taken away, it is anew.
    backend.force(&name("x"), "operator", "").await.unwrap();
    assert_eq!(timeout(SOON, one.lost()).await.unwrap(), Why::Removed);
    let anew = mine().acquire_within(SOON).await.unwrap();
    assert!(anew.fence() > two.fence() && two.check().is_err());
    drop((one, two));
    assert!(anew.check().is_ok());
    drop(anew);
    nothing_is_left(&backend, &store).await;
}

async fn a_closed_session_gives_everything_back(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let guards: Vec<Guard<_>> = vec![
        a.lock(name("x")).acquire_within(SOON).await.unwrap(),
        a.lock(name("y")).acquire_within(SOON).await.unwrap(),
    ];
    let mut loss = a.loss();
    let again = a.clone();
    a.close().await.unwrap();
    assert_eq!(timeout(SOON, loss.wait()).await.unwrap(), Why::Closed);
    assert_eq!(loss.now(), Some(Why::Closed));
    for guard in &guards {
        assert_eq!(guard.check(), Err(Why::Closed));
        assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Closed);
    }
    assert!(b.lock(name("x")).try_acquire().await.unwrap().is_some());
    assert!(matches!(again.lock(name("z")).try_acquire().await, Err(ClaimError::Lost(Why::Closed))));
    drop(b);
    nothing_is_left(&backend, &store).await;
    until("dropped sessions are closed", || async { store.range("session/").await.unwrap().entries.is_empty() }).await;
}

async fn the_same_want_again_keeps_its_place(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let holder = session(&backend, "holder").await;
    let held = holder.lock(name("x")).acquire_within(SOON).await.unwrap();
    let terms = Terms { ttl: SOON, owner: Owner::try_new("a").unwrap() };
    let (lease, _) = backend.open(&terms).await.unwrap();
    let want = Want::new(name("x"));
    let waited = backend.wait(&lease, &want, Duration::from_millis(20)).await;
    assert!(matches!(waited, Err(ClaimError::TimedOut { .. })), "{waited:?}");
    let place = backend.resolve(&lease, &want.name, &want.token).await.unwrap().unwrap();
    assert!(!place.1);
    let late = tokio::spawn({
        let late = session(&backend, "late").await;
        async move { late.lock(name("x")).acquire_within(SOON).await }
    });
    queued(&backend, "x", 2).await;
    held.release().await.unwrap();
    let claim = backend.wait(&lease, &want, SOON).await.unwrap();
    assert_eq!(claim, place.0);
    assert_eq!(backend.wait(&lease, &want, Duration::ZERO).await.unwrap(), claim, "and again, for the holder");
    assert_eq!(backend.resolve(&lease, &want.name, &want.token).await.unwrap(), Some((claim, true)));
    assert!(!late.is_finished());
    backend.close(&lease).await.unwrap();
    drop(late.await.unwrap().unwrap());
}

async fn work_is_dropped_when_the_lock_is_lost(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let session = session(&backend, "a").await;
    let lock = session.lock(name("x"));
    assert_eq!(lock.with(SOON, async |guard| guard.fence() > Fence::new(0)).await, Ok(true));
    nothing_is_left(&backend, &store).await;
    let (force, began) = (backend.clone(), Arc::new(tokio::sync::Notify::new()));
    let working = lock.with(SOON, async |_| {
        began.notify_one();
        std::future::pending::<()>().await
    });
    let forcing = async {
        began.notified().await;
        force.force(&name("x"), "operator", "").await.unwrap()
    };
    let (worked, _) = timeout(SOON, async { tokio::join!(working, forcing) }).await.unwrap();
    assert!(matches!(worked, Err(seawall_coord::WithError::Lost(Why::Removed))), "{worked:?}");
}

async fn a_jump_of_the_clock_ends_it_at_once(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let (clock, hand) = Clock::manual();
    let session = Session::open(backend, SessionConfig { clock, ..config("a", 5_000) }).await.unwrap();
    let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
    assert_eq!(guard.remaining(), Duration::from_millis(5_000 - 50 - 2 - 500));
    hand.advance(Duration::from_millis(4_447));
    assert!(guard.check().is_ok());
    // The machine has slept for an hour. Nobody has to be asked.
    hand.advance(Duration::from_secs(3600));
    assert_eq!(guard.check(), Err(Why::Expired));
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), Why::Expired);
}

async fn bad_input_is_refused_and_changes_nothing(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let session = session(&backend, "a").await;
    let before = store.range("").await.unwrap();
    for (ttl, margin, says) in [
        (Duration::ZERO, None, "0ns: 200ms to 3600s are allowed"),
        (Duration::from_millis(199), None, "199ms: 200ms to"),
        (Duration::from_secs(365 * 86_400), None, "31536000s: 200ms to 3600s"),
        (Duration::MAX, None, "200ms to 3600s"),
        (Duration::from_secs(1), Some(Duration::from_millis(600)), "600ms leaves less than half"),
        (Duration::from_secs(1), Some(Duration::MAX), "leaves less than half"),
    ] {
        let config = SessionConfig { margin, ttl, ..config("a", 1) };
        let error = Session::open(backend.clone(), config).await.unwrap_err();
        assert!(matches!(&error, SessionError::Invalid(why) if why.contains(says)), "{error}");
        let terms = Terms { ttl, owner: Owner::try_new("a").unwrap() };
        if margin.is_none() {
            assert!(matches!(backend.open(&terms).await, Err(BackendError::Refused { .. })));
        }
    }
    let error = session.lock(name("x")).info("x".repeat(5_000)).try_acquire().await.unwrap_err();
    assert!(error.to_string().contains("an info of 5000 bytes: at most 4096"), "{error}");
    assert_eq!(store.range("").await.unwrap(), before);
}

async fn lost_replies_are_resolved(store: Arc<dyn Store>) {
    for seed in 0..8 {
        let flaky = Flaky::new(store.clone(), seed);
        let backend = StoreBackend::open(flaky.clone()).await.unwrap();
        let resource = Arc::new(Resource::default());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..4 {
            let (session, resource) = (session(&backend, &format!("{seed}-{n}")).await, resource.clone());
            tasks.spawn(async move {
                let lock = session.lock(name("x"));
                for _ in 0..10 {
                    let guard = lock.acquire_within(SOON).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    resource.visit(guard.fence()).await;
                    // Unknown is a right answer here; the rest is done in the background.
                    let _ = guard.release().await;
                }
            });
        }
        // From now on two of five writes are not answered, or not done.
        flaky.troubles(0.4);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        flaky.troubles(0.0);
        assert_eq!(resource.visits.load(Ordering::SeqCst), 40, "seed {seed}");
        nothing_is_left(&backend, &store).await;
    }
}

async fn an_unknown_outcome_is_said_and_cleared_up(store: Arc<dyn Store>) {
    let flaky = Flaky::new(store.clone(), 7);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    // The next write is done and not answered, and after it nothing answers.
    flaky.die_after_a_write();
    let error = a.lock(name("x")).acquire_within(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, ClaimError::Unknown(_)), "{error:?}");
    assert_eq!(store.range("lock/").await.unwrap().entries.len(), 1, "it has the lock");
    flaky.live();
    // It is given back without anybody asking, and the session has survived.
    let guard = b.lock(name("x")).acquire_within(SOON).await.unwrap();
    assert!(a.check().is_ok());
    // A release that fails is done later.
    flaky.die_after_a_write();
    assert!(matches!(guard.release().await, Err(error) if error.retryable()));
    flaky.live();
    nothing_is_left(&backend, &store).await;
}

async fn what_was_given_up_does_not_come_back(store: Arc<dyn Store>) {
    let flaky = Flaky::new(store.clone(), 3);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    // Not answered in time: withdrawn, and carried out after that.
    flaky.hold_back(1);
    let error = a.lock(name("x")).try_acquire().await.unwrap_err();
    assert!(matches!(error, ClaimError::Unknown(_)), "{error:?}");
    until("it is void", || flaky.void()).await;
    assert_eq!(flaky.carry_out().await, 0);
    nothing_is_left(&backend, &store).await;
    // The future is dropped while it is under way.
    flaky.hold_back(usize::MAX);
    assert!(timeout(Duration::from_millis(100), a.lock(name("x")).acquire_within(SOON)).await.is_err());
    flaky.hold_back(0);
    until("it is void", || flaky.void()).await;
    assert_eq!(flaky.carry_out().await, 0);
    nothing_is_left(&backend, &store).await;
    // A second try succeeds, and the first one comes when the lock was released and another holds it.
    flaky.hold_back(1);
    let guard = a.lock(name("x")).acquire_within(SOON).await.unwrap();
    assert_eq!(guard.release().await, Ok(Released::Now));
    let guard = b.lock(name("x")).try_acquire().await.unwrap().expect("free");
    assert_eq!(flaky.carry_out().await, 0);
    drop(guard);
    nothing_is_left(&backend, &store).await;
    // The process that had sent it is gone, and another one repeats the claim, or only withdraws it.
    for repeats in [true, false] {
        let terms = Terms { ttl: SOON, owner: Owner::try_new("a").unwrap() };
        let (lease, _) = backend.open(&terms).await.unwrap();
        let want = Want::new(name("x"));
        flaky.hold_back(1);
        assert!(matches!(backend.wait(&lease, &want, Duration::ZERO).await, Err(ClaimError::Unknown(_))));
        let other = StoreBackend::open(store.clone()).await.unwrap();
        if repeats {
            other.wait(&lease, &want, SOON).await.unwrap();
        }
        let released = if repeats { Released::Now } else { Released::WasNotHeld };
        assert_eq!(other.withdraw(&lease, &want.name, &want.token).await, Ok(released));
        assert_eq!(flaky.carry_out().await, 0, "repeats: {repeats}");
        nothing_is_left(&backend, &store).await;
        // Where nobody has given it up it may come.
        flaky.hold_back(1);
        assert!(matches!(backend.wait(&lease, &want, Duration::ZERO).await, Err(ClaimError::Unknown(_))));
        assert_eq!(flaky.carry_out().await, 1);
        assert_eq!(backend.withdraw(&lease, &want.name, &want.token).await, Ok(Released::Now));
    }
}

/// Workers that look at their guard before every visit, under everything that can go wrong, by seed: workers that are cut off
/// from the store with all their news, writes that are lost or not answered, dead holders, force, dropped futures. The
/// resource looks whether the tokens fall, and none ever does.
async fn holders_that_go_by_their_guards_never_overlap(store: Arc<dyn Store>) {
    const TTL: u64 = 400;
    for seed in 0..2 {
        let backend = StoreBackend::open(store.clone()).await.unwrap();
        let mut lines = Vec::new();
        let (highest, visits, losses) =
            (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..5_u64 {
            // Each has a line to the store of its own.
            lines.push(Flaky::new(store.clone(), seed * 100 + n));
            let backend = StoreBackend::open(lines[n as usize].clone()).await.unwrap();
            let (highest, visits, losses, over) = (highest.clone(), visits.clone(), losses.clone(), over.clone());
            tasks.spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed * 100 + n);
                while !over.load(Ordering::SeqCst) {
                    let Ok(session) = Session::open(backend.clone(), config(&format!("w{n}"), TTL)).await else {
                        continue;
                    };
                    let lock = session.lock(name("x"));
                    while session.check().is_ok() && !over.load(Ordering::SeqCst) {
                        let patience = Duration::from_millis(random.u64(0..600));
                        let dropped = Duration::from_millis(random.u64(20..800));
                        let Ok(Ok(guard)) = timeout(dropped, lock.acquire_within(patience)).await else {
                            sleep(Duration::from_millis(1)).await;
                            continue;
                        };
                        let long = random.u32(0..3) == 0;
                        for _ in 0..if long { 500 } else { random.u32(1..30) } {
                            if guard.check().is_err() {
                                losses.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                            let before = highest.fetch_max(guard.fence().get(), Ordering::SeqCst);
                            // Force is the exception: the former holder learns of it a little later.
                            assert!(
                                before <= guard.fence().get() || {
                                    sleep(Duration::from_millis(30)).await;
                                    guard.check() == Err(Why::Removed)
                                },
                                "seed {seed}: token {} after {before}",
                                guard.fence(),
                            );
                            visits.fetch_add(1, Ordering::SeqCst);
                            sleep(Duration::from_millis(random.u64(0..4))).await;
                        }
                        if random.bool() {
                            let _ = guard.release().await;
                        }
                    }
                }
            });
        }
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..12 {
            let line = random.choice(&lines).unwrap();
            match random.u32(0..6) {
                0..=2 => line.die(),
                3 => line.troubles(0.4),
                4 => drop(timeout(SOON, dead_holder(&backend, "x", Duration::from_millis(TTL))).await),
                _ => drop(backend.force(&name("x"), "nemesis", "").await),
            }
            sleep(Duration::from_millis(random.u64(10..900))).await;
            line.live();
            line.troubles(0.0);
        }
        // Healed: everybody gets on with it, and in the end nothing is left.
        let healed = visits.load(Ordering::SeqCst);
        until("work goes on", || async { visits.load(Ordering::SeqCst) > healed + 20 }).await;
        over.store(true, Ordering::SeqCst);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        nothing_is_left(&backend, &store).await;
        println!("seed {seed}: {visits:?} visits, {losses:?} losses");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_over_restarts_and_over_a_new_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut last = Fence::new(0);
    for n in 0..6 {
        if n == 3 {
            // What is told to do with a damaged file: move it away and begin anew.
            std::fs::rename(&path, dir.path().join("old.db")).unwrap();
            // A new store starts from the time, in seconds.
            sleep(Duration::from_millis(1_100)).await;
        }
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&path).unwrap());
        let backend = StoreBackend::open(store.clone()).await.unwrap();
        let session = session(&backend, "a").await;
        for _ in 0..3 {
            let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
            assert!(guard.fence() > last, "{} after {last}", guard.fence());
            assert!(guard.fence().get() < 1 << 53);
            last = guard.fence();
            guard.release().await.unwrap();
        }
        session.close().await.unwrap();
        drop((backend, store));
        until("the file is let go", || async { Embedded::open(&path).is_ok() }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_keeps_its_lock_over_a_restart_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let terms = Terms { ttl: Duration::from_secs(2), owner: Owner::try_new("a").unwrap() };
    let want = Want::new(name("x"));
    let (lease, claim) = {
        let backend = StoreBackend::open(Arc::new(seawall_store::Embedded::open(&path).unwrap())).await.unwrap();
        let (lease, _) = backend.open(&terms).await.unwrap();
        (lease, backend.claim(&lease, &want, SOON).await.unwrap())
    };
    // Away for longer than the time to live: not the holder's fault.
    sleep(Duration::from_millis(2_500)).await;
    let backend = StoreBackend::open(Arc::new(seawall_store::Embedded::open(&path).unwrap())).await.unwrap();
    let next = session(&backend, "next").await;
    assert!(next.lock(name("x")).try_acquire().await.unwrap().is_none());
    assert_eq!(backend.renew(&lease).await, Ok(terms.ttl));
    assert_eq!(backend.resolve(&lease, &want.name, &want.token).await.unwrap(), Some((claim, true)));
}
