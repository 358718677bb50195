//! What every backend without fencing tokens does; it promises no order among those who wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use seawall_coord::{
    Backend, ClaimError, Elections, Gone, HandOverError, Observer, Owner, Released, Session, Terms, Token, Want, Why,
};
use tokio::time::{Instant, timeout};

use crate::{SOON, config, election, name};

async fn session<B: Backend>(backend: &B, owner: &str) -> Session<B> {
    Session::open(backend.clone(), config(owner, 5_000)).await.unwrap()
}

/// Notices two at once.
#[derive(Default)]
pub(crate) struct Resource {
    busy: AtomicBool,
    visits: AtomicU64,
}

impl Resource {
    pub(crate) async fn visit(&self) {
        assert!(!self.busy.swap(true, Ordering::SeqCst), "two at once");
        tokio::task::yield_now().await;
        self.visits.fetch_add(1, Ordering::SeqCst);
        assert!(self.busy.swap(false, Ordering::SeqCst));
    }
}

pub(crate) async fn tasks_exclude_each_other<B: Backend>(backend: B, lock: &str) {
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
                    resource.visit().await;
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

pub(crate) async fn tries_and_waits_end<B: Backend>(backend: B, lock: &str) {
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let held = a.lock(name(lock)).try_acquire().await.unwrap().expect("it is free");
    assert!(b.lock(name(lock)).try_acquire().await.unwrap().is_none());
    let error = b.lock(name(lock)).acquire_within(Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(&error, ClaimError::TimedOut { .. }), "{error:?}");
    assert_eq!(held.release().await, Ok(Released::Now));
    let next = b.lock(name(lock)).try_acquire().await.unwrap().expect("nothing of the waits is left");
    assert_eq!(next.release().await, Ok(Released::Now));
}

pub(crate) async fn dropped_futures_leave_nothing<B: Backend>(backend: B, lock: &str) {
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let contended = b.lock(name(lock));
    for micros in (0..4_000).step_by(200) {
        if let Ok(guard) = timeout(Duration::from_micros(micros), contended.acquire_within(SOON)).await {
            let _ = timeout(Duration::ZERO, guard.unwrap().release()).await;
        }
    }
    // Both sessions live on, so a claim that was left would be in the way.
    let guard = a.lock(name(lock)).acquire_within(SOON).await.unwrap();
    assert_eq!(guard.release().await, Ok(Released::Now));
}

/// A holder that no longer does anything, as after kill -9.
pub(crate) async fn a_dead_holders_lock_passes_on<B: Backend>(backend: B, lock: &str, ttl: Duration) {
    let next = session(&backend, "next").await;
    let (lease, granted) = backend.open(&Terms { ttl, owner: Owner::try_new("dead").unwrap() }).await.unwrap();
    let want = Want::new(name(lock));
    let opened = Instant::now();
    let dead = backend.claim(&lease, &want, SOON).await.unwrap();
    assert_eq!(backend.claim(&lease, &want, SOON).await.unwrap().token, dead.token, "the same want again has it");
    let wrong = Token::random();
    assert_eq!(backend.withdraw(&lease, &name(lock), &wrong).await, Ok(Released::WasNotHeld));
    let guard = next.lock(name(lock)).acquire_within(SOON).await.unwrap();
    assert!(opened.elapsed() + Duration::from_millis(500) > granted.min(ttl));
    let _ = backend.renew(&lease).await;
    assert_eq!(timeout(SOON, backend.gone(&lease, &dead)).await, Ok(Gone::Removed));
    assert_eq!(backend.withdraw(&lease, &name(lock), &want.token).await, Ok(Released::WasNotHeld));
    assert!(guard.check().is_ok());
}

pub(crate) async fn a_closed_session_gives_all_back<B: Backend>(backend: B, lock: &str) {
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

pub(crate) async fn leaders_follow_each_other<B: Elections>(backend: B, named: &str) {
    let sessions = [session(&backend, "a").await, session(&backend, "b").await];
    let [a, b] = sessions.each_ref().map(|session| session.election(election(named)));
    let mut observer = Observer::new(backend.clone(), election(named));
    assert_eq!(observer.next().await.unwrap(), None);
    let leads = a.info("here").campaign(SOON).await.unwrap();
    let seen = observer.next().await.unwrap().unwrap();
    assert_eq!((seen.owner.as_str(), seen.info.as_str()), ("a", "here"));
    leads.publish("there").await.unwrap();
    assert_eq!(observer.next().await.unwrap().unwrap().info, "there");
    let HandOverError::NoCandidate { leadership, .. } = leads.hand_over("b").await.unwrap_err() else {
        panic!("nobody stands")
    };
    let second = tokio::spawn(async move { b.campaign(SOON).await.unwrap() });
    let mut leadership = Some(leadership);
    let end = Instant::now() + SOON;
    let next = loop {
        match leadership.take().unwrap().hand_over("b").await {
            Ok(next) => break next,
            Err(HandOverError::NoCandidate { leadership: still, .. }) => leadership = Some(still),
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(next.owner, "b");
    let leads = timeout(SOON, second).await.unwrap().unwrap();
    loop {
        let seen = timeout(SOON, observer.next()).await.unwrap().unwrap();
        if seen.is_some_and(|seen| seen.owner == "b") {
            break;
        }
    }
    leads.resign().await.unwrap();
    while timeout(SOON, observer.next()).await.unwrap().unwrap().is_some() {}
}
