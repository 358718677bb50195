//! Barriers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use seawall_coord::{Backend, Barrier, BarrierError, Barriers, Owner, Party, Step, StoreBackend, Terms, Token};
use seawall_store::Store;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::flaky::Flaky;
use super::{SOON, name, session, until};

on_each!(
    nobody_is_inside_before_all_have_come_nor_gone_before_all_have_ended,
    a_party_that_goes_breaks_it_and_it_can_be_used_anew,
    who_waits_in_vain_is_told_and_leaves_nothing,
    what_is_wrong_with_it_is_said,
    a_party_that_is_killed_breaks_it_when_its_time_is_over,
    lost_replies_of_parties_are_resolved,
);
on_etcd!(
    nobody_is_inside_before_all_have_come_nor_gone_before_all_have_ended,
    a_party_that_goes_breaks_it_and_it_can_be_used_anew,
    who_waits_in_vain_is_told_and_leaves_nothing,
    a_party_that_is_killed_breaks_it_when_its_time_is_over,
    lost_replies_of_parties_are_resolved,
);

async fn barrier(backend: &StoreBackend, owner: &str, parties: u32) -> Barrier<StoreBackend> {
    session(backend, owner).await.barrier(name("b"), parties)
}

async fn nothing_is_left(store: &Arc<dyn Store>) {
    until("nothing is left", || async { store.range("barrier/").await.unwrap().entries.is_empty() }).await;
}

async fn there(backend: &StoreBackend, count: usize) {
    until(&format!("{count} are there"), || async {
        backend.barrier(&name("b")).await.unwrap().map_or(0, |view| view.there.len()) == count
    })
    .await;
}

async fn nobody_is_inside_before_all_have_come_nor_gone_before_all_have_ended(store: Arc<dyn Store>) {
    const PARTIES: u32 = 4;
    const ROUNDS: u32 = 5;
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (came, ended) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut parties = JoinSet::new();
    for n in 0..PARTIES {
        let barrier = barrier(&backend, &format!("p{n}"), PARTIES).await;
        let (came, ended) = (came.clone(), ended.clone());
        parties.spawn(async move {
            for round in 1..=ROUNDS {
                sleep(Duration::from_millis(fastrand::u64(0..20))).await;
                came.fetch_add(1, Ordering::SeqCst);
                let inside = barrier.enter_within(SOON).await.unwrap();
                assert!(came.load(Ordering::SeqCst) >= round * PARTIES, "in before all had come");
                sleep(Duration::from_millis(fastrand::u64(0..10))).await;
                ended.fetch_add(1, Ordering::SeqCst);
                inside.leave_within(SOON).await.unwrap();
                assert!(ended.load(Ordering::SeqCst) >= round * PARTIES, "gone before all had ended");
            }
        });
    }
    while let Some(done) = parties.join_next().await {
        done.unwrap();
    }
    nothing_is_left(&store).await;
}

async fn a_party_that_goes_breaks_it_and_it_can_be_used_anew(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let broken = |who: &str| BarrierError::Broken { who: who.to_owned() };
    // One that gives up while it waits for the last.
    let (a, b) = (barrier(&backend, "a", 3).await, barrier(&backend, "b", 3).await);
    let waiting = tokio::spawn(async move { a.enter_within(SOON).await.map(drop) });
    there(&backend, 1).await;
    let gives_up = tokio::spawn(async move { b.enter_within(SOON).await.map(drop) });
    there(&backend, 2).await;
    gives_up.abort();
    assert_eq!(timeout(SOON, waiting).await.unwrap().unwrap(), Err(broken("b")));
    // One whose session ends inside.
    let (a, b) = (barrier(&backend, "a", 2).await, session(&backend, "b").await);
    let other = b.barrier(name("b"), 2);
    let (in_a, in_b) = tokio::join!(a.enter_within(SOON), other.enter_within(SOON));
    let (in_a, in_b) = (in_a.unwrap(), in_b.unwrap());
    let leaving = tokio::spawn(async move { in_a.leave_within(SOON).await });
    b.close().await.unwrap();
    assert_eq!(timeout(SOON, leaving).await.unwrap().unwrap(), Err(broken("b")));
    assert!(matches!(in_b.leave_within(SOON).await, Err(BarrierError::Lost(_))));
    // Who has said that it has ended may go before the others do.
    let (a, b) = (barrier(&backend, "a", 2).await, barrier(&backend, "b", 2).await);
    let (in_a, in_b) = tokio::join!(a.enter_within(SOON), b.enter_within(SOON));
    let (in_a, in_b) = (in_a.unwrap(), in_b.unwrap());
    assert!(matches!(
        in_a.leave_within(Duration::from_millis(100)).await,
        Err(BarrierError::TimedOut { there: 1, .. })
    ));
    in_b.leave_within(SOON).await.unwrap();
    nothing_is_left(&store).await;
}

async fn who_waits_in_vain_is_told_and_leaves_nothing(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let barrier = barrier(&backend, "a", 3).await;
    let error = barrier.enter_within(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, BarrierError::TimedOut { there: 1, parties: 3, .. }), "{error}");
    nothing_is_left(&store).await;
}

/// A party that does nothing any more, as after kill -9: before all have come, and when all are inside.
async fn a_party_that_is_killed_breaks_it_when_its_time_is_over(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let dead = BarrierError::Broken { who: "dead".to_owned() };
    for inside in [false, true] {
        // Longer than the shortest that etcd has.
        let terms = Terms { ttl: Duration::from_secs(2), owner: Owner::try_new("dead").unwrap() };
        let (lease, _) = backend.open(&terms).await.unwrap();
        let party = Party { name: name("b"), token: Token::random(), parties: 2 };
        let lives = barrier(&backend, "lives", 2).await;
        let error = if inside {
            let entering = lives.enter_within(SOON);
            let (entered, met) = tokio::join!(entering, backend.meet(&lease, &party, Step::Enter, SOON));
            met.unwrap();
            entered.unwrap().leave_within(SOON).await.unwrap_err()
        } else {
            let waits = backend.meet(&lease, &party, Step::Enter, Duration::from_millis(1)).await;
            assert!(matches!(waits, Err(BarrierError::TimedOut { there: 1, .. })), "{waits:?}");
            there(&backend, 0).await;
            lives.enter_within(Duration::from_millis(100)).await.map(drop).unwrap_err()
        };
        if inside {
            assert_eq!(error, dead);
        } else {
            assert!(matches!(error, BarrierError::TimedOut { there: 1, .. }), "{error:?}");
        }
        nothing_is_left(&store).await;
    }
    // And it serves the next ones.
    let (a, b) = (barrier(&backend, "a", 2).await, barrier(&backend, "b", 2).await);
    let (a, b) = tokio::join!(a.enter_within(SOON), b.enter_within(SOON));
    let (a, b) = tokio::join!(a.unwrap().leave_within(SOON), b.unwrap().leave_within(SOON));
    assert_eq!((a, b), (Ok(()), Ok(())));
}

async fn what_is_wrong_with_it_is_said(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    for (parties, says) in [(0, "a barrier of 0 parties: 1 to 100"), (101, "1 to 100 are allowed")] {
        let error = barrier(&backend, "a", parties).await.enter_within(SOON).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let a = barrier(&backend, "a", 2).await;
    let waiting = tokio::spawn(async move { a.enter_within(SOON).await.unwrap().leave_within(SOON).await });
    there(&backend, 1).await;
    let error = barrier(&backend, "b", 3).await.enter_within(SOON).await.unwrap_err();
    assert!(error.to_string().contains("the others mean 2"), "{error}");
    // And it has broken nothing. It is not the lock of its name either.
    let b = session(&backend, "b").await;
    assert!(b.lock(name("b")).try_acquire().await.unwrap().is_some());
    b.barrier(name("b"), 2).enter_within(SOON).await.unwrap().leave_within(SOON).await.unwrap();
    waiting.await.unwrap().unwrap();
    // One alone waits for nobody.
    b.barrier(name("c"), 1).enter_within(SOON).await.unwrap().leave_within(SOON).await.unwrap();
    nothing_is_left(&store).await;
}

async fn lost_replies_of_parties_are_resolved(store: Arc<dyn Store>) {
    let flaky = Flaky::new(store.clone(), 7);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let (a, b) = (barrier(&backend, "a", 2).await, barrier(&backend, "b", 2).await);
    flaky.troubles(0.3);
    for _ in 0..10 {
        let round = async |barrier: &Barrier<StoreBackend>| {
            let inside = barrier.enter_within(SOON).await.unwrap();
            inside.leave_within(SOON).await.unwrap();
        };
        timeout(SOON, async { tokio::join!(round(&a), round(&b)) }).await.unwrap();
    }
    flaky.troubles(0.0);
    nothing_is_left(&store).await;
}
