//! What every backend with fencing tokens does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use seawall_coord::{
    Backend, ClaimError, Elections, Fence, Fences, HandOverError, Observer, Released, Session, Terms, Want, Why,
};
use tokio::time::{Instant, timeout};

use crate::{SOON, config, election, name};

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

async fn session<B: Backend>(backend: &B, owner: &str) -> Session<B> {
    Session::open(backend.clone(), config(owner, 5_000)).await.unwrap()
}

pub(crate) async fn tasks_exclude_each_other<B: Backend<Class: Fences>>(backend: B, lock: &str) {
    let resource = Arc::new(Resource::default());
    let mut tasks = tokio::task::JoinSet::new();
    for owner in 0..4 {
        let session = session(&backend, &format!("owner-{owner}")).await;
        for _ in 0..2 {
            let (session, resource, lock) = (session.clone(), resource.clone(), name(lock));
            tasks.spawn(async move {
                let lock = session.lock(lock);
                for round in 0..10 {
                    let guard = lock.acquire_within(SOON).await.unwrap();
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
    assert_eq!(resource.visits.load(Ordering::SeqCst), 80);
}

pub(crate) async fn tries_and_waits_end<B: Backend<Class: Fences>>(backend: B, lock: &str) {
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let held = a.lock(name(lock)).try_acquire().await.unwrap().expect("it is free");
    assert!(b.lock(name(lock)).try_acquire().await.unwrap().is_none());
    let ClaimError::Busy { holder } = b.lock(name(lock)).acquire_within(Duration::ZERO).await.unwrap_err() else {
        panic!("busy")
    };
    let holder = holder.unwrap();
    assert_eq!((holder.owner.as_str(), holder.fence), ("a", held.token()));
    let error = b.lock(name(lock)).acquire_within(Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(&error, ClaimError::TimedOut { ahead: 1, .. }), "{error:?}");
    let fence = held.fence();
    assert_eq!(held.release().await, Ok(Released::Now));
    let next = b.lock(name(lock)).try_acquire().await.unwrap().expect("nothing of the waits is left");
    assert!(next.fence() > fence);
}

pub(crate) async fn dropped_futures_leave_nothing<B: Backend<Class: Fences>>(backend: B, lock: &str) {
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let contended = b.lock(name(lock));
    let held = a.lock(name(lock)).acquire_within(SOON).await.unwrap();
    for micros in (0..4_000).step_by(200) {
        let _ = timeout(Duration::from_micros(micros), contended.acquire_within(SOON)).await;
    }
    held.release().await.unwrap();
    for micros in (0..4_000).step_by(200) {
        if let Ok(guard) = timeout(Duration::from_micros(micros), contended.acquire_within(SOON)).await {
            let _ = timeout(Duration::ZERO, guard.unwrap().release()).await;
        }
    }
    // Both sessions live on, so a claim that was left would be in the way.
    let guard = a.lock(name(lock)).acquire_within(SOON).await.unwrap();
    assert_eq!(guard.release().await, Ok(Released::Now));
}

pub(crate) async fn first_come_first_served<B: Backend<Class: Fences>>(backend: B, lock: &str) {
    let a = session(&backend, "a").await;
    let held = a.lock(name(lock)).acquire_within(SOON).await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..5 {
        let (session, order, wanted) = (a.clone(), order.clone(), name(lock));
        tasks.spawn(async move {
            let guard = session.lock(wanted).acquire_within(SOON).await.unwrap();
            order.lock().unwrap().push(n);
            guard.release().await.unwrap();
        });
        crate::until("it queues", || async {
            let waited = a.lock(name(lock)).acquire_within(Duration::from_millis(1)).await;
            matches!(waited, Err(ClaimError::TimedOut { ahead, .. }) if ahead == n + 2)
        })
        .await;
    }
    held.release().await.unwrap();
    tasks.join_all().await;
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
}

/// A holder that no longer does anything, as after kill -9.
pub(crate) async fn a_dead_holders_lock_passes_on<B: Backend<Class: Fences>>(backend: B, lock: &str, ttl: Duration) {
    let next = session(&backend, "next").await;
    let terms = Terms { ttl, owner: seawall_coord::Owner::try_new("dead").unwrap() };
    let (lease, granted) = backend.open(&terms).await.unwrap();
    let want = Want::new(name(lock));
    let opened = Instant::now();
    let dead = backend.claim(&lease, &want, SOON).await.unwrap();
    assert_eq!(backend.claim(&lease, &want, SOON).await.unwrap(), dead, "the same want again keeps its place");
    let guard = next.lock(name(lock)).acquire_within(SOON).await.unwrap();
    assert!(opened.elapsed() + Duration::from_millis(500) > granted.min(ttl));
    assert!(guard.fence() > dead.fence.unwrap());
    assert!(backend.renew(&lease).await.is_err(), "the session is over");
    assert_eq!(
        backend.withdraw(&lease, &name(lock), &want.token).await.unwrap_or(Released::WasNotHeld),
        Released::WasNotHeld
    );
    assert!(guard.check().is_ok());
}

pub(crate) async fn a_closed_session_gives_all_back<B: Backend<Class: Fences>>(backend: B, lock: &str) {
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let held = a.lock(name(lock)).acquire_within(SOON).await.unwrap();
    let waiting = tokio::spawn({
        let lock = a.lock(name(lock));
        async move { lock.acquire_within(SOON).await.map(drop) }
    });
    a.close().await.unwrap();
    assert_eq!(held.lost().await, Why::Closed);
    assert!(matches!(waiting.await.unwrap(), Err(ClaimError::Lost(_))));
    b.lock(name(lock)).acquire_within(SOON).await.unwrap().release().await.unwrap();
}

pub(crate) async fn leaders_follow_each_other<B: Elections<Class: Fences>>(backend: B, named: &str) {
    let sessions = [session(&backend, "a").await, session(&backend, "b").await, session(&backend, "c").await];
    let [a, b, c] = sessions.each_ref().map(|session| session.election(election(named)));
    let mut observer = Observer::new(backend.clone(), election(named));
    assert_eq!(observer.next().await.unwrap(), None);
    let leads = a.info("here").campaign(SOON).await.unwrap();
    let seen = observer.next().await.unwrap().unwrap();
    assert_eq!((seen.term, seen.owner.as_str(), seen.info.as_str()), (leads.term(), "a", "here"));
    leads.publish("there").await.unwrap();
    assert_eq!(observer.next().await.unwrap().unwrap().info, "there");

    let HandOverError::NoCandidate { leadership, .. } = leads.hand_over("c").await.unwrap_err() else {
        panic!("nobody stands")
    };
    let (b, c) = (Arc::new(b), Arc::new(c));
    let second = tokio::spawn({
        let b = b.clone();
        async move { b.campaign(SOON).await.unwrap() }
    });
    crate::until("b stands", || async {
        matches!(c.campaign(Duration::from_millis(1)).await, Err(ClaimError::TimedOut { ahead: 2, .. }))
    })
    .await;
    let third = tokio::spawn({
        let c = c.clone();
        async move { c.campaign(SOON).await.unwrap() }
    });
    // Over the head of b, once c stands.
    let mut leadership = Some(leadership);
    let mut term = leadership.as_ref().unwrap().term();
    let end = Instant::now() + SOON;
    let next = loop {
        match leadership.take().unwrap().hand_over("c").await {
            Ok(next) => break next,
            Err(HandOverError::NoCandidate { leadership: still, .. }) => leadership = Some(still),
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for (leader, owner) in [(third, "c"), (second, "b")] {
        let leads = timeout(SOON, leader).await.unwrap().unwrap();
        assert!(leads.term() > term);
        term = leads.term();
        if owner == "c" {
            assert_eq!((next.owner.as_str(), next.term), ("c", term));
        }
        loop {
            let seen = timeout(SOON, observer.next()).await.unwrap().unwrap();
            if let Some(seen) = seen.filter(|seen| seen.owner == owner) {
                assert_eq!(seen.term, term);
                break;
            }
        }
        leads.resign().await.unwrap();
    }
    while timeout(SOON, observer.next()).await.unwrap().unwrap().is_some() {}
}
