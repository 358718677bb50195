//! Queues on real stores: workers that die, replies that are lost, and everything that can become of a job.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../seawall-coord/tests/locks/flaky.rs"]
#[allow(dead_code, reason = "made for other tests, too")]
mod flaky;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flaky::Flaky;
use seawall_coord::Owner;
use seawall_schedule::{Claimed, ItemId, NewItem, Place, QueueError, Queues, Retry};
use seawall_servers::Server;
use seawall_store::{Embedded, Store};
use seawall_types::ServiceName;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(1);
const NO_WAIT: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_secs(20);

fn queue() -> ServiceName {
    "mail".parse().unwrap()
}

fn id(text: &str) -> ItemId {
    text.parse().unwrap()
}

fn me() -> Owner {
    Owner::try_new("worker").unwrap()
}

fn new(text: &str, data: Value) -> NewItem {
    NewItem { id: id(text), data, max_attempts: 2 }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(Embedded::memory().unwrap())
}

/// Queues with a sweeper, which goes with the trigger.
async fn open(store: Arc<dyn Store>) -> (Queues, seawall_drain::Trigger) {
    let queues = Queues::open(store).await.unwrap();
    let (trigger, drain) = seawall_drain::channel();
    let sweeper = queues.clone();
    tokio::spawn(async move { sweeper.sweep(drain).await });
    (queues, trigger)
}

async fn claim(queues: &Queues, patience: Duration) -> Option<Claimed> {
    queues.claim(&queue(), &me(), TTL, patience).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_put_once_and_done_once() {
    let (queues, _sweeper) = open(memory()).await;
    let queue = queue();
    assert!(claim(&queues, Duration::from_millis(50)).await.is_none());
    assert_eq!(queues.put(&queue, new("a", json!(1))).await, Ok((Place::Pending, true)));
    assert_eq!(queues.put(&queue, new("a", json!(1))).await, Ok((Place::Pending, false)));
    assert_eq!(queues.put(&queue, new("a", json!(2))).await, Err(QueueError::Conflict(id("a"))));
    queues.put(&queue, new("b", json!(2))).await.unwrap();
    let (a, b) = (claim(&queues, NO_WAIT).await.unwrap(), claim(&queues, NO_WAIT).await.unwrap());
    assert_eq!((&a.id, &a.data, a.attempt, &b.id), (&id("a"), &json!(1), 1, &id("b")), "the oldest first");
    assert!(a.fence < b.fence && claim(&queues, NO_WAIT).await.is_none());
    assert_eq!(queues.put(&queue, new("a", json!(1))).await, Ok((Place::Running, false)));
    assert_eq!(queues.keep(&queue, &a.id, a.claim).await, Ok(TTL));
    // Nobody else's claim does anything.
    assert_eq!(queues.keep(&queue, &a.id, b.claim).await, Err(QueueError::NotClaimed(id("a"))));
    assert_eq!(queues.complete(&queue, &a.id, b.claim, json!(0)).await, Err(QueueError::NotClaimed(id("a"))));
    for _ in 0..2 {
        assert_eq!(queues.complete(&queue, &a.id, a.claim, json!("sent")).await, Ok(()), "can be repeated");
    }
    assert_eq!(queues.keep(&queue, &a.id, a.claim).await, Err(QueueError::NotClaimed(id("a"))));
    assert_eq!(queues.fail(&queue, &a.id, b.claim, "no", Retry::Later).await, Err(QueueError::NotClaimed(id("a"))));
    let done = queues.get(&queue, &id("a")).await.unwrap();
    assert_eq!((done.state, done.item.result, done.item.worker.as_str()), (Place::Done, Some(json!("sent")), "worker"));
    assert!(!serde_json::to_string(&queues.get(&queue, &id("b")).await.unwrap()).unwrap().contains("claim"));
    assert_eq!(queues.put(&queue, new("a", json!(1))).await, Ok((Place::Done, false)));
    let totals = queues.totals().await.unwrap().remove(&queue).unwrap();
    assert_eq!(totals, BTreeMap::from([(Place::Running, 1), (Place::Done, 1)]));
    assert_eq!(queues.list(&queue, Place::Running, 9).await.unwrap()[0].id, id("b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fails_is_tried_again_and_parked_at_last() {
    let (queues, _sweeper) = open(memory()).await;
    let queue = queue();
    queues.put(&queue, new("a", json!(1))).await.unwrap();
    let first = claim(&queues, NO_WAIT).await.unwrap();
    let pause = Retry::After(Duration::from_millis(300));
    let from = Instant::now();
    for _ in 0..2 {
        assert_eq!(queues.fail(&queue, &first.id, first.claim, "no paper", pause).await, Ok(true));
    }
    let second = claim(&queues, SOON).await.unwrap();
    assert!(from.elapsed() >= Duration::from_millis(300) && second.attempt == 2 && second.fence > first.fence);
    assert_eq!(queues.complete(&queue, &first.id, first.claim, json!(0)).await, Err(QueueError::NotClaimed(id("a"))));
    assert_eq!(queues.fail(&queue, &second.id, second.claim, "no ink", Retry::Later).await, Ok(false));
    let parked = queues.list(&queue, Place::Parked, 9).await.unwrap();
    assert_eq!((parked.len(), parked[0].item.error.as_deref()), (1, Some("no ink")));
    queues.retry(&queue, &id("a")).await.unwrap();
    let third = claim(&queues, SOON).await.unwrap();
    assert_eq!(third.attempt, 1);
    assert_eq!(queues.fail(&queue, &third.id, third.claim, "for good", Retry::Never).await, Ok(false));
    queues.discard(&queue, &id("a")).await.unwrap();
    assert!(matches!(queues.discard(&queue, &id("a")).await, Err(QueueError::NotFound(_))));
    assert!(matches!(queues.get(&queue, &id("a")).await, Err(QueueError::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_ends_with_its_time_and_a_job_that_kills_its_workers_is_parked() {
    let (queues, _sweeper) = open(memory()).await;
    let queue = queue();
    queues.put(&queue, new("a", json!(1))).await.unwrap();
    let first = claim(&queues, NO_WAIT).await.unwrap();
    let second = claim(&queues, SOON).await.unwrap();
    assert_eq!(second.attempt, 2);
    assert_eq!(queues.complete(&queue, &first.id, first.claim, json!(0)).await, Err(QueueError::NotClaimed(id("a"))));
    assert_eq!(queues.keep(&queue, &first.id, first.claim).await, Err(QueueError::NotClaimed(id("a"))));
    // It lives as long as it is kept alive.
    for _ in 0..8 {
        sleep(TTL / 4).await;
        queues.keep(&queue, &second.id, second.claim).await.unwrap();
    }
    let end = Instant::now() + SOON;
    while queues.get(&queue, &id("a")).await.unwrap().state != Place::Parked {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(20)).await;
    }
    let error = queues.get(&queue, &id("a")).await.unwrap().item.error.unwrap();
    assert!(error.contains("worker claimed it"), "{error}");
}

#[tokio::test]
async fn mistakes_change_nothing() {
    let (queues, _sweeper) = open(memory()).await;
    let queue = queue();
    for bad in ["", "a/b", "a b", "ä", &"x".repeat(129)] {
        assert!(bad.parse::<ItemId>().is_err(), "{bad}");
    }
    let large = json!("x".repeat(70_000));
    assert!(matches!(queues.put(&queue, new("a", large)).await, Err(QueueError::Invalid(_))));
    let never = NewItem { max_attempts: 0, ..new("a", json!(1)) };
    assert!(matches!(queues.put(&queue, never).await, Err(QueueError::Invalid(_))));
    for ttl in [Duration::ZERO, Duration::from_secs(86_400 * 365)] {
        assert!(matches!(queues.claim(&queue, &me(), ttl, NO_WAIT).await, Err(QueueError::Invalid(_))));
    }
    assert!(matches!(queues.retry(&queue, &id("a")).await, Err(QueueError::NotFound(_))));
    assert_eq!(queues.totals().await.unwrap(), BTreeMap::new());
}

/// Workers that die at any moment; every job is completed once, and none is lost.
async fn every_job_once(store: Arc<dyn Store>, jobs: usize) {
    let (queues, _sweeper) = open(store.clone()).await;
    for n in 0..jobs {
        let item = NewItem { id: id(&format!("job-{n}")), data: json!(n), max_attempts: 100 };
        queues.put(&queue(), item).await.unwrap();
    }
    let done: Arc<Mutex<BTreeMap<u64, u32>>> = Arc::default();
    let worker = || {
        let (store, done) = (store.clone(), done.clone());
        tokio::spawn(async move {
            // Of another process, as it were.
            let queues = Queues::open(store).await.unwrap();
            while let Ok(claimed) = queues.claim(&queue(), &me(), TTL, SOON).await {
                let Some(claimed) = claimed else { return };
                sleep(Duration::from_millis(fastrand::u64(..20))).await;
                if queues.complete(&queue(), &claimed.id, claimed.claim, Value::Null).await.is_ok() {
                    *done.lock().unwrap().entry(claimed.data.as_u64().unwrap()).or_default() += 1;
                }
            }
        })
    };
    let mut workers: Vec<_> = (0..4).map(|_| worker()).collect();
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < end, "{:?}", queues.totals().await);
        sleep(Duration::from_millis(100)).await;
        let totals = queues.totals().await.unwrap();
        if totals[&queue()].get(&Place::Done) == Some(&jobs) {
            break;
        }
        std::mem::replace(&mut workers[fastrand::usize(..4)], worker()).abort();
    }
    workers.iter().for_each(|worker| worker.abort());
    // One that was killed between its last write and its note has not noted it.
    let done = done.lock().unwrap().clone();
    assert!(done.values().all(|count| *count == 1), "{done:?}");
    assert!(done.len() > jobs / 2, "{}", done.len());
    assert_eq!(queues.list(&queue(), Place::Done, usize::MAX).await.unwrap().len(), jobs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_once_in_memory() {
    every_job_once(memory(), 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_once_on_etcd() {
    let etcd = tokio::task::spawn_blocking(Server::etcd).await.unwrap();
    let url = format!("etcd://{}/queue-test", etcd.addr()).parse().unwrap();
    every_job_once(seawall_store::open(&url, Path::new("unused")).await.unwrap(), 150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_lost_are_answered_by_the_same_again() {
    let flaky = Flaky::new(memory(), 11);
    let (queues, _sweeper) = open(flaky.clone()).await;
    let queue = queue();
    flaky.troubles(0.4);
    let (mut lost, mut new_ones) = (0, 0);
    for n in 0..100 {
        let item = NewItem { id: id(&format!("job-{n}")), data: json!(n), max_attempts: 100 };
        loop {
            match queues.put(&queue, item.clone()).await {
                Ok((_, new)) => break new_ones += usize::from(new),
                Err(QueueError::Unknown(_)) => lost += 1,
                Err(QueueError::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(lost > 5 && new_ones < 100);
    let mut done = 0;
    while done < 100 {
        let claimed = match queues.claim(&queue, &me(), TTL, SOON).await {
            Ok(claimed) => claimed.expect("none is lost"),
            Err(QueueError::Unknown(_) | QueueError::Unavailable(_)) => continue,
            Err(error) => panic!("{error}"),
        };
        loop {
            match queues.complete(&queue, &claimed.id, claimed.claim, Value::Null).await {
                Ok(()) => break done += 1,
                Err(QueueError::Unknown(_) | QueueError::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    let totals = queues.totals().await.unwrap();
    assert_eq!(totals[&queue], BTreeMap::from([(Place::Done, 100)]));
}
