//! Elections on the real store, in memory and on SQLite.

use std::ops::ControlFlow;

use seawall_coord::{
    Candidacy, ElectionName, Elections, HandOverError, HandedOver, Leadership, Observer, lead, lead_while,
};

use super::*;

on_each!(
    terms_only_grow_and_belong_to_one_leader_each,
    a_campaign_that_runs_out_or_is_dropped_leaves_nothing,
    a_resignation_hands_over_at_once,
    a_dead_leader_is_followed_after_its_time,
    a_leader_that_is_cut_off_knows_first,
    what_a_leader_publishes_is_seen,
    an_observer_sees_one_leader_after_the_other,
    a_leader_hands_over_to_a_candidate_by_name,
    a_leader_hands_over_to_nobody_else,
    work_follows_the_leadership_and_never_overlaps,
    work_of_one_candidate_never_overlaps_even_when_it_is_forced_out,
    work_that_is_dropped_leads_no_more,
    only_the_healthy_stand_and_lead,
    the_highest_priority_leads_next,
    a_leader_steps_down_for_a_higher_priority,
    an_election_is_not_a_lock,
    what_became_of_a_hand_over_without_an_answer_is_found_out,
);

async fn the_highest_priority_leads_next(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    priorities::the_highest_priority_leads_next(backend.clone(), election("e"), true).await;
    nobody_is_left(&backend, &store).await;
}

async fn a_leader_steps_down_for_a_higher_priority(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    priorities::a_leader_steps_down_for_a_higher_priority(backend, election("e")).await;
}

fn election(text: &str) -> ElectionName {
    ElectionName::try_new(text).unwrap()
}

async fn campaign(session: &Session<StoreBackend>) -> Leadership<StoreBackend> {
    session.election(election("e")).campaign(SOON).await.unwrap()
}

async fn standing(backend: &StoreBackend, count: usize) {
    let what = format!("{count} stand");
    until(&what, || async { backend.election(&election("e")).await.unwrap().candidates.len() == count }).await;
}

async fn nobody_is_left(backend: &StoreBackend, store: &Arc<dyn Store>) {
    until("nobody stands", || async { backend.elections().await.unwrap().is_empty() }).await;
    assert_eq!(store.range("elect/").await.unwrap().entries, []);
}

async fn terms_only_grow_and_belong_to_one_leader_each(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let resource = Arc::new(Resource::default());
    let mut observer = Observer::new(backend.clone(), election("e"));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..6 {
        let session = session(&backend, &format!("c{n}")).await;
        let resource = resource.clone();
        tasks.spawn(async move {
            for round in 0..20 {
                let leadership = campaign(&session).await;
                // Refuses a term that is not larger than all before, and two leaders at once.
                resource.visit(leadership.term()).await;
                if round % 2 == 0 {
                    assert_eq!(leadership.resign().await, Ok(Released::Now));
                }
            }
        });
    }
    let watching = tokio::spawn(async move {
        let mut terms = Vec::new();
        loop {
            match observer.next().await.unwrap() {
                Some(leader) => terms.push(leader.term),
                // Before the first, or after the last; in between somebody always stands.
                None if !terms.is_empty() => return terms,
                None => {}
            }
        }
    });
    tasks.join_all().await;
    let terms = watching.await.unwrap();
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
    assert_eq!(resource.visits.load(Ordering::SeqCst), 120);
    nobody_is_left(&backend, &store).await;
}

async fn a_campaign_that_runs_out_or_is_dropped_leaves_nothing(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let leads = campaign(&a).await;
    let standing = b.election(election("e"));
    let error = standing.campaign(Duration::from_millis(100)).await.unwrap_err();
    let ClaimError::TimedOut { holder: Some(leader), ahead: 1, .. } = error else { panic!("{error:?}") };
    assert_eq!((&*leader.owner, leader.fence), ("a", Some(leads.term())));
    assert!(matches!(standing.campaign(Duration::ZERO).await, Err(ClaimError::Busy { .. })));
    for micros in (0..4_000).step_by(100) {
        let _ = timeout(Duration::from_micros(micros), standing.campaign(SOON)).await;
    }
    until("only the leader is left", || async { store.range("elect/").await.unwrap().entries.len() == 1 }).await;
    leads.resign().await.unwrap();
    for micros in (0..4_000).step_by(100) {
        if let Ok(leads) = timeout(Duration::from_micros(micros), standing.campaign(SOON)).await {
            let leads = leads.unwrap();
            let _ = timeout(Duration::from_micros(micros / 8), leads.publish("half")).await;
            let _ = timeout(Duration::ZERO, leads.resign()).await;
        }
    }
    nobody_is_left(&backend, &store).await;
}

async fn a_resignation_hands_over_at_once(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let mut times = Vec::new();
    let (mut leads, mut next) = (session(&backend, "a").await, session(&backend, "b").await);
    for _ in 0..10 {
        let leadership = campaign(&leads).await;
        let standing_for = next.clone();
        let waiting = tokio::spawn(async move {
            let follows = campaign(&standing_for).await;
            (Instant::now(), follows)
        });
        standing(&backend, 1).await;
        let (from, term) = (Instant::now(), leadership.term());
        leadership.resign().await.unwrap();
        let (at, follows) = waiting.await.unwrap();
        assert!(follows.term() > term);
        times.push(at - from);
        follows.resign().await.unwrap();
        std::mem::swap(&mut leads, &mut next);
    }
    times.sort();
    assert!(times[5] < Duration::from_millis(50), "{times:?}");
}

/// A leader that no longer does anything, as after kill -9.
async fn dead_leader(backend: &StoreBackend, ttl: Duration) -> Result<Fence, ClaimError> {
    let (lease, _) = backend.open(&Terms { ttl, owner: Owner::try_new("dead").unwrap() }).await?;
    let lock = LockName::of_election(&election("e"));
    let want = Want::new(lock);
    Ok(backend.claim(&lease, &want, SOON).await?.fence.unwrap())
}

async fn a_dead_leader_is_followed_after_its_time(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let next = session(&backend, "next").await;
    let ttl = Duration::from_millis(800);
    let dead = dead_leader(&backend, ttl).await.unwrap();
    let from = Instant::now();
    let follows = campaign(&next).await;
    let took = from.elapsed();
    assert!(took > ttl - Duration::from_millis(100) && took < ttl + Duration::from_millis(700), "{took:?}");
    assert!(follows.term() > dead);
}

async fn a_leader_that_is_cut_off_knows_first(store: Arc<dyn Store>) {
    let flaky = Flaky::new(store, 2);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let leader = Session::open(backend.clone(), config("leader", 700)).await.unwrap();
    let leads = campaign(&leader).await;
    let next = session(&backend, "next").await;
    let waiting = tokio::spawn(async move {
        let follows = campaign(&next).await;
        (Instant::now(), follows)
    });
    standing(&backend, 1).await;
    flaky.cut_keep_alives(true);
    assert_eq!(timeout(SOON, leads.lost()).await.unwrap(), Why::Expired);
    let lost = Instant::now();
    assert_eq!((leads.remaining(), leads.check()), (Duration::ZERO, Err(Why::Expired)));
    assert_eq!(leads.publish("late").await, Err(ClaimError::Lost(Why::Expired)));
    assert!(matches!(leads.hand_over("next").await, Err(HandOverError::Lost(Why::Expired))));
    flaky.cut_keep_alives(false);
    let (at, follows) = waiting.await.unwrap();
    assert!(lost < at, "the next led {:?} before the leader knew", lost - at);
    assert!(follows.check().is_ok());
}

async fn what_a_leader_publishes_is_seen(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let session = session(&backend, "a").await;
    let stands = session.election(election("e")).info("10.0.0.1:80");
    let mut observer = stands.observe();
    assert_eq!(observer.next().await.unwrap(), None);
    let leads = stands.campaign(SOON).await.unwrap();
    let first = observer.next().await.unwrap().unwrap();
    assert_eq!((&*first.info, &*first.owner, first.term), ("10.0.0.1:80", "a", leads.term()));
    leads.publish("10.0.0.1:81").await.unwrap();
    let second = observer.next().await.unwrap().unwrap();
    assert_eq!((&*second.info, second.term), ("10.0.0.1:81", leads.term()), "the same term");
    assert!(leads.check().is_ok(), "publishing takes nothing away");
    let before = store.range("").await.unwrap();
    let error = leads.publish(&"x".repeat(5_000)).await.unwrap_err();
    assert!(error.to_string().contains("5000 bytes"), "{error}");
    assert_eq!(store.range("").await.unwrap(), before);
    assert!(timeout(Duration::from_millis(200), observer.next()).await.is_err(), "nothing is said twice");
    session.close().await.unwrap();
    assert_eq!(observer.next().await.unwrap(), None);
    assert!(matches!(leads.publish("late").await, Err(ClaimError::Lost(_))));
}

async fn an_observer_sees_one_leader_after_the_other(store: Arc<dyn Store>) {
    let flaky = Flaky::new(store, 3);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let mut observer = Observer::new(backend.clone(), election("e"));
    assert_eq!(observer.next().await.unwrap(), None);
    let mut highest = None;
    for n in 0..5 {
        let owner = format!("c{n}");
        let session = session(&backend, &owner).await;
        let leads = campaign(&session).await;
        // Others come and go without being seen.
        let passing = super::session(&backend, "passing").await;
        let standing = passing.election(election("e"));
        let _ = standing.campaign(Duration::from_millis(10)).await;
        if n == 2 {
            flaky.die();
            assert!(timeout(Duration::from_millis(300), observer.next()).await.is_err(), "it waits");
            flaky.live();
        }
        let seen = observer.next().await.unwrap().unwrap();
        assert_eq!((&seen.owner, seen.term), (&owner, leads.term()));
        assert!(Some(seen.term) > highest);
        highest = Some(seen.term);
        // Dropped in the middle, it misses nothing.
        assert!(timeout(Duration::from_millis(20), observer.next()).await.is_err());
        leads.resign().await.unwrap();
        assert_eq!(observer.next().await.unwrap(), None);
    }
}

async fn a_leader_hands_over_to_a_candidate_by_name(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let leader = session(&backend, "leader").await;
    let leads = campaign(&leader).await;
    let mut tasks = Vec::new();
    let (said, mut hears) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..3 {
        let (session, said) = (session(&backend, &format!("c{n}")).await, said.clone());
        tasks.push(tokio::spawn(async move {
            let leads = campaign(&session).await;
            said.send((n, leads.term())).unwrap();
            sleep(Duration::from_millis(50)).await;
            leads.resign().await.unwrap();
        }));
        standing(&backend, n + 1).await;
    }
    let term = leads.term();
    let next = leads.hand_over("c1").await.unwrap();
    assert_eq!(next.owner, "c1");
    let (first, its) = hears.recv().await.unwrap();
    assert_eq!((first, its), (1, next.term));
    // c0 was passed over and stood again, behind c2.
    let ((second, second_term), (third, third_term)) = (hears.recv().await.unwrap(), hears.recv().await.unwrap());
    assert_eq!((second, third), (2, 0));
    assert!(term < its && its < second_term && second_term < third_term);
    for task in tasks {
        task.await.unwrap();
    }
    nobody_is_left(&backend, &store).await;
}

async fn a_leader_hands_over_to_nobody_else(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let leader = session(&backend, "leader").await;
    let leads = campaign(&leader).await;
    let before = store.range("elect/").await.unwrap().entries;
    let mut leads = leads;
    for nobody in ["", "nobody", "leader"] {
        let Err(HandOverError::NoCandidate { leadership, to }) = leads.hand_over(nobody).await else {
            panic!("nobody")
        };
        assert_eq!(to, nobody);
        leads = leadership;
    }
    assert_eq!(store.range("elect/").await.unwrap().entries, before);
    assert!(leads.check().is_ok(), "it still leads");
    // Who does not lead has nothing to hand over.
    let (lease, _) = backend.open(&Terms { ttl: SOON, owner: Owner::try_new("other").unwrap() }).await.unwrap();
    let want = Want::new(LockName::of_election(&election("e")));
    let _ = backend.wait(&lease, &want, Duration::from_millis(20)).await;
    let (claim, leads_too) = backend.resolve(&lease, &want.name, &want.token).await.unwrap().unwrap();
    assert!(!leads_too);
    assert_eq!(backend.hand_over(&lease, &claim, "leader").await, Ok(HandedOver::NotLeading));
    assert!(leads.check().is_ok());
}

async fn work_follows_the_leadership_and_never_overlaps(store: Arc<dyn Store>) {
    shifts(store, false).await;
}

async fn work_of_one_candidate_never_overlaps_even_when_it_is_forced_out(store: Arc<dyn Store>) {
    shifts(store, true).await;
}

/// Sixty shifts of four candidates who lose their leadership time and again. One that is taken away by force is somebody
/// else's at once; then only the shifts of each candidate are compared.
async fn shifts(store: Arc<dyn Store>, forced: bool) {
    let flaky = Flaky::new(store.clone(), 4);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let (resource, shifts) = (Arc::new(Resource::default()), Arc::new(AtomicU64::new(0)));
    /// Busy for as long as it is there.
    struct Shift(Arc<Resource>);
    impl Drop for Shift {
        fn drop(&mut self) {
            assert!(self.0.busy.swap(false, Ordering::SeqCst));
        }
    }
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..4 {
        let resource = if forced { Arc::default() } else { resource.clone() };
        let (backend, shifts) = (backend.clone(), shifts.clone());
        let candidacy = Candidacy::new(election("e"), config(&format!("c{n}"), 600));
        tasks.spawn(async move {
            let mut random = fastrand::Rng::with_seed(n);
            lead(backend, candidacy, |leadership| {
                let (resource, shifts) = (resource.clone(), shifts.clone());
                let long = random.u64(0..4) == 0;
                let short = random.u64(0..20);
                async move {
                    assert!(!resource.busy.swap(true, Ordering::SeqCst), "two at once");
                    let shift = Shift(resource.clone());
                    let before = resource.highest.swap(leadership.term().get(), Ordering::SeqCst);
                    assert!(before < leadership.term().get());
                    let shifts = shifts.fetch_add(1, Ordering::SeqCst);
                    // Some hold on until they lose it.
                    sleep(if long { SOON } else { Duration::from_millis(short) }).await;
                    drop(shift);
                    if shifts >= 60 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }
            })
            .await
            .unwrap();
        });
    }
    let troubles = tokio::spawn({
        let (flaky, backend) = (flaky.clone(), backend.clone());
        async move {
            loop {
                sleep(Duration::from_millis(100)).await;
                if forced {
                    drop(backend.force(&LockName::of_election(&election("e")), "test", "test").await);
                    continue;
                }
                flaky.cut_keep_alives(true);
                sleep(Duration::from_millis(700)).await;
                flaky.cut_keep_alives(false);
            }
        }
    });
    until("sixty shifts", || async { shifts.load(Ordering::SeqCst) > 60 }).await;
    // Those that hold on are sent home, too.
    while let Some(done) = tokio::select! {
        done = tasks.join_next() => done,
        () = sleep(SOON) => panic!("somebody does not end"),
    } {
        done.unwrap();
    }
    troubles.abort();
    nobody_is_left(&backend, &store).await;
}

async fn work_that_is_dropped_leads_no_more(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    for after in [0, 1, 5, 50] {
        let candidacy = Candidacy::new(election("e"), config("a", 5_000));
        let leading = lead(backend.clone(), candidacy, |_| async { std::future::pending::<ControlFlow<()>>().await });
        assert!(timeout(Duration::from_millis(after), leading).await.is_err());
        nobody_is_left(&backend, &store).await;
    }
    let candidacy = Candidacy { info: "x".repeat(5_000), ..Candidacy::new(election("e"), config("a", 5_000)) };
    let refused = lead(backend.clone(), candidacy, |_| async { ControlFlow::Break(()) }).await;
    assert!(matches!(refused, Err(SessionError::Backend(BackendError::Refused { .. }))), "{refused:?}");
    let candidacy = Candidacy::new(election("e"), config("a", 1));
    let refused = lead(backend, candidacy, |_| async { ControlFlow::Break(()) }).await;
    assert!(matches!(refused, Err(SessionError::Invalid(_))), "{refused:?}");
}

async fn an_election_is_not_a_lock(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store).await.unwrap();
    let session = session(&backend, "a").await;
    let leads = campaign(&session).await;
    let guard = session.lock(name("e")).try_acquire().await.unwrap().expect("a lock of the same name is free");
    assert_eq!(backend.list().await.unwrap().len(), 1);
    let elections = backend.elections().await.unwrap();
    assert_eq!((elections.len(), elections[0].name.as_str()), (1, "e"));
    assert_eq!(elections[0].leader.as_ref().unwrap().term, leads.term());
    guard.release().await.unwrap();
    assert!(leads.check().is_ok());
    // Taken away by force, it is lost at once, and the record says of which it was.
    let lock = LockName::of_election(&election("e"));
    let forced = backend.force(&lock, "ann", "it hangs").await.unwrap().unwrap();
    assert_eq!((forced.fence, timeout(SOON, leads.lost()).await.unwrap()), (Some(leads.term()), Why::Removed));
    let audits = backend.audits().await.unwrap();
    assert_eq!((audits.len(), &audits[0].lock), (1, &lock));
}

async fn what_became_of_a_hand_over_without_an_answer_is_found_out(store: Arc<dyn Store>) {
    let flaky = Flaky::new(store.clone(), 5);
    let backend = StoreBackend::open(flaky.clone()).await.unwrap();
    let (a, b) = (session(&backend, "a").await, session(&backend, "b").await);
    let leads = campaign(&a).await;
    let term = leads.term();
    let waiting = tokio::spawn(async move { campaign(&b).await });
    standing(&backend, 1).await;
    flaky.die_after_a_write();
    let Err(HandOverError::Backend { error, leadership }) = leads.hand_over("b").await else { panic!("no answer") };
    assert!(matches!(error, BackendError::Unknown { .. }), "{error:?}");
    flaky.live();
    assert_eq!(timeout(SOON, leadership.lost()).await.unwrap(), Why::Removed, "it was done");
    assert!(waiting.await.unwrap().term() > term);
    drop(leadership);
    assert!(a.check().is_ok());
    nobody_is_left(&backend, &store).await;
}

async fn only_the_healthy_stand_and_lead(store: Arc<dyn Store>) {
    let backend = StoreBackend::open(store.clone()).await.unwrap();
    let working = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let leads = {
        let (backend, working) = (backend.clone(), working.clone());
        move |owner: &'static str, healthy: tokio::sync::watch::Receiver<bool>| {
            let candidacy = Candidacy::new(election("e"), config(owner, 5_000));
            let (backend, working) = (backend.clone(), working.clone());
            tokio::spawn(async move {
                let done: Result<(), _> = lead_while(backend, candidacy, healthy, |_| async {
                    let work = Working(working.clone());
                    assert_eq!(work.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "one at a time");
                    std::future::pending::<()>().await;
                    std::ops::ControlFlow::Continue(())
                })
                .await;
                done.unwrap();
            })
        }
    };
    struct Working(Arc<std::sync::atomic::AtomicU64>);
    impl Drop for Working {
        fn drop(&mut self) {
            self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let (a, healthy_a) = tokio::sync::watch::channel(false);
    let (b, healthy_b) = tokio::sync::watch::channel(false);
    let tasks = [leads("a", healthy_a), leads("b", healthy_b)];
    let leader = async || backend.election(&election("e")).await.unwrap().leader.map(|leader| leader.owner);
    let candidates = async || backend.election(&election("e")).await.unwrap().candidates.len();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(leader().await, None);
    a.send_replace(true);
    until("a leads", || async { leader().await.as_deref() == Some("a") }).await;
    b.send_replace(true);
    until("b stands", || async { candidates().await == 1 }).await;
    for _ in 0..5 {
        a.send_replace(false);
        until("b leads", || async { leader().await.as_deref() == Some("b") }).await;
        until("a is out of it", || async { candidates().await == 0 }).await;
        a.send_replace(true);
        until("a stands", || async { candidates().await == 1 }).await;
        b.send_replace(false);
        until("a leads", || async { leader().await.as_deref() == Some("a") }).await;
        b.send_replace(true);
        until("b stands", || async { candidates().await == 1 }).await;
    }
    // A candidate that is unhealthy while it waits gives up its place.
    b.send_replace(false);
    until("b is out of it", || async { candidates().await == 0 }).await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}
