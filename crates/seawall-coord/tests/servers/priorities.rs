//! Priorities of candidates, which are the same wherever there are any.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use seawall_coord::{Candidacy, ElectionName, Elections, Session, lead};
use tokio::time::timeout;

use crate::{SOON, config, until};

async fn stand<B: Elections>(backend: &B, named: &ElectionName, count: usize) {
    let what = format!("{count} stand");
    until(&what, || async { backend.election(named).await.unwrap().candidates.len() == count }).await;
}

/// Whoever resigns is followed by the candidate of the highest priority; in order among equals, where the backend knows one.
pub(crate) async fn the_highest_priority_leads_next<B: Elections>(backend: B, named: ElectionName, ordered: bool) {
    let first = Session::open(backend.clone(), config("first", 5_000)).await.unwrap();
    let leads = first.election(named.clone()).campaign(SOON).await.unwrap();
    let (said, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    let candidates = [("low", -3), ("high", 7), ("middle", 3), ("also-high", 7)];
    for (n, (owner, priority)) in candidates.into_iter().enumerate() {
        let session = Session::open(backend.clone(), config(owner, 5_000)).await.unwrap();
        let stands = session.election(named.clone()).priority(priority);
        let (backend, named, said) = (backend.clone(), named.clone(), said.clone());
        let election = named.clone();
        let reads = backend.clone();
        tasks.spawn(async move {
            let leads = stands.campaign(SOON).await.unwrap();
            leads.publish("what it says leaves its priority as it is").await.unwrap();
            let leader = reads.election(&election).await.unwrap().leader.unwrap();
            assert_eq!((&*leader.owner, leader.priority), (owner, priority));
            said.send(owner).unwrap();
            leads.resign().await.unwrap();
            session.close().await.unwrap();
        });
        stand(&backend, &named, n + 1).await;
    }
    leads.resign().await.unwrap();
    let mut order = Vec::new();
    for _ in candidates {
        order.push(timeout(SOON, hears.recv()).await.unwrap().unwrap());
    }
    tasks.join_all().await;
    if !ordered {
        order[..2].sort_unstable_by(|a, b| b.cmp(a));
    }
    assert_eq!(order, ["high", "also-high", "middle", "low"]);
    until("nobody is left", || async {
        let election = backend.election(&named).await.unwrap();
        election.leader.is_none() && election.candidates.is_empty()
    })
    .await;
}

/// One that is ready to step down ends its work and hands over to a candidate of a higher priority, and to no other.
pub(crate) async fn a_leader_steps_down_for_a_higher_priority<B: Elections>(backend: B, named: ElectionName) {
    let working = Arc::new(AtomicBool::new(false));
    struct Work(Arc<AtomicBool>);
    impl Drop for Work {
        fn drop(&mut self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }
    let candidacy = Candidacy {
        preempt: Some(Duration::from_millis(200)),
        ..Candidacy::new(named.clone(), config("humble", 5_000))
    };
    let humble = tokio::spawn({
        let (backend, working) = (backend.clone(), working.clone());
        lead(backend, candidacy, move |_leadership| {
            let work = Work(working.clone());
            async move {
                work.0.store(true, Ordering::SeqCst);
                std::future::pending::<ControlFlow<()>>().await
            }
        })
    });
    until("it works", || async { working.load(Ordering::SeqCst) }).await;
    let session = Session::open(backend.clone(), config("equal", 5_000)).await.unwrap();
    let equal = session.election(named.clone()).campaign(Duration::from_secs(1)).await;
    assert!(equal.is_err() && working.load(Ordering::SeqCst), "it works on beside its equals");
    let leads = session.election(named.clone()).priority(1).campaign(SOON).await.unwrap();
    assert!(!working.load(Ordering::SeqCst), "the work was over before");
    stand(&backend, &named, 1).await;
    leads.resign().await.unwrap();
    until("it works again", || async { working.load(Ordering::SeqCst) }).await;
    humble.abort();
}
