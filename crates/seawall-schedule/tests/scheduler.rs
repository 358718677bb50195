//! Schedulers on real stores: several of them, that are killed, on one that loses replies, and with all that a job can want.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../seawall-coord/tests/locks/flaky.rs"]
#[allow(dead_code, reason = "made for other tests, too")]
mod flaky;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flaky::Flaky;
use seawall_coord::{Owner, StoreBackend};
use seawall_drain::{Drain, Trigger};
use seawall_schedule::{
    CatchUp, Job, JobConfig, Jobs, JobsError, OnUnknown, Outcome, Overlap, Run, RunId, Scheduler, SchedulerConfig,
    State,
};
use seawall_servers::Server;
use seawall_store::{Embedded, Store};
use seawall_types::{Period, ServiceName};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// What has been done.
type Log = Arc<Mutex<Vec<Run>>>;

struct Node {
    running: JoinHandle<()>,
    trigger: Trigger,
}

impl Node {
    async fn start<W>(store: &Arc<dyn Store>, owner: &str, work: impl Fn(Run) -> W + Send + Sync + 'static) -> Self
    where
        W: Future<Output = Outcome> + Send + 'static,
    {
        let backend = StoreBackend::open(store.clone()).await.unwrap();
        let mut config = SchedulerConfig::new(Owner::try_new(owner).unwrap());
        config.ttl = Duration::from_secs(2);
        let scheduler = Scheduler::new(Jobs::new(store.clone()), backend, config);
        let (trigger, drain): (Trigger, Drain) = seawall_drain::channel();
        Self { running: tokio::spawn(async move { scheduler.run(drain, work).await.unwrap() }), trigger }
    }

    async fn stop(self) {
        assert!(self.trigger.drain(Duration::from_secs(20)).await.is_clean());
        tokio::time::timeout(Duration::from_secs(20), self.running).await.unwrap().unwrap();
    }
}

/// Does what it is told at once.
fn logging(log: &Log) -> impl Fn(Run) -> std::future::Ready<Outcome> + Send + Sync + use<> {
    let log = log.clone();
    move |run| {
        log.lock().unwrap().push(run);
        std::future::ready(Outcome::Done)
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(Embedded::memory().unwrap())
}

/// Three schedulers, of which one is killed again and again: every slot is done once, or was claimed by one that was killed.
async fn every_slot_once(store: Arc<dyn Store>) {
    let jobs = Jobs::new(store.clone());
    let config = JobConfig {
        catch_up: CatchUp::All,
        catch_up_max: 1000,
        on_unknown: OnUnknown::Fail,
        ..JobConfig::new("every 100ms")
    };
    let log: Log = Log::default();
    let mut nodes = Vec::new();
    for n in 0..3 {
        nodes.push(Node::start(&store, &format!("node-{n}"), logging(&log)).await);
    }
    jobs.put(&name("tick"), config.clone()).await.unwrap();
    let end = Instant::now() + Duration::from_secs(7);
    let mut kills = 0;
    while Instant::now() < end {
        sleep(Duration::from_millis(150 + fastrand::u64(..400))).await;
        let node = Node::start(&store, &format!("node-{}", 3 + kills), logging(&log)).await;
        std::mem::replace(&mut nodes[kills % 3], node).running.abort();
        kills += 1;
    }
    for node in nodes {
        node.stop().await;
    }
    let done: Vec<RunId> = log.lock().unwrap().iter().map(|run| run.id).collect();
    let mut once = done.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), done.len(), "done twice: {done:?}");
    let history = jobs.history(&name("tick"), 1000).await.unwrap();
    assert!(history.len() < 100 && history.len() > 20, "{}", history.len());
    let (last, first) = (history.first().unwrap().slot, history.last().unwrap().slot);
    let before = first.checked_sub(jiff::SignedDuration::from_millis(1)).unwrap();
    let all = Job::try_new(config).unwrap().when.latest(before, last, 1000);
    assert_eq!(history.iter().rev().map(|run| run.slot).collect::<Vec<_>>(), all, "none is lost");
    for run in &history {
        let seen = done.contains(&run.id);
        match run.record.state {
            State::Done => assert!(seen, "{run:?}"),
            State::Unknown => assert!(run.record.error.as_ref().unwrap().contains("died"), "{run:?}"),
            _ => panic!("{run:?}"),
        }
    }
    // Terms only grow, over all that was done.
    assert!(log.lock().unwrap().windows(2).all(|pair| pair[0].fence <= pair[1].fence));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slot_once_in_memory() {
    every_slot_once(memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slot_once_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    every_slot_once(Arc::new(Embedded::open(&dir.path().join("store.db")).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slot_once_on_etcd() {
    let etcd = tokio::task::spawn_blocking(Server::etcd).await.unwrap();
    let url = format!("etcd://{}/cron-test", etcd.addr()).parse().unwrap();
    every_slot_once(seawall_store::open(&url, Path::new("unused")).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_lost_double_nothing_and_lose_nothing() {
    let flaky = Flaky::new(memory(), 7);
    let store: Arc<dyn Store> = flaky.clone();
    let jobs = Jobs::new(store.clone());
    let config = JobConfig { catch_up: CatchUp::All, on_unknown: OnUnknown::Fail, ..JobConfig::new("every 100ms") };
    jobs.put(&name("tick"), config.clone()).await.unwrap();
    let log: Log = Log::default();
    let node = Node::start(&store, "a", logging(&log)).await;
    until("it runs", || async { log.lock().unwrap().len() > 2 }).await;
    flaky.troubles(0.3);
    until("it runs on", || async { log.lock().unwrap().len() > 40 }).await;
    flaky.troubles(0.0);
    node.stop().await;
    let done: Vec<_> = log.lock().unwrap().iter().map(|run| run.id.slot).collect();
    let before = done[0].checked_sub(jiff::SignedDuration::from_millis(1)).unwrap();
    assert_eq!(done, Job::try_new(config).unwrap().when.latest(before, *done.last().unwrap(), 1000));
    let history = jobs.history(&name("tick"), 1000).await.unwrap();
    assert!(history.iter().all(|run| run.record.state == State::Done), "{history:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_end_as_their_outcomes_say() {
    let store = memory();
    let jobs = Jobs::new(store.clone());
    let far = || JobConfig { deadline: Period::millis(700), ..JobConfig::new("at 2999-01-01T00:00:00Z") };
    let node = Node::start(&store, "a", move |run: Run| async move {
        let first = run.attempt == 1;
        match run.job.as_str() {
            "refused" => Outcome::Failed("no".into()),
            "later" if first => Outcome::NotDone("not yet".into()),
            "maybe" | "maybe-not" if first => Outcome::Unknown("lost".into()),
            "never" => Outcome::NotDone("still not".into()),
            "hangs" => std::future::pending().await,
            _ => Outcome::Done,
        }
    })
    .await;
    for (job, on_unknown, state, says) in [
        ("good", OnUnknown::Fail, State::Done, ""),
        ("refused", OnUnknown::Rerun, State::Failed, "no"),
        ("later", OnUnknown::Fail, State::Done, ""),
        ("maybe", OnUnknown::Rerun, State::Done, ""),
        ("maybe-not", OnUnknown::Fail, State::Unknown, "lost"),
        ("never", OnUnknown::Rerun, State::Failed, "not done within 700ms: still not"),
        ("hangs", OnUnknown::Rerun, State::Unknown, "not over within 700ms"),
    ] {
        jobs.put(&name(job), JobConfig { on_unknown, ..far() }).await.unwrap();
        let id = jobs.order(&name(job)).await.unwrap();
        let run = jobs.ended(&name(job), id, Duration::from_secs(30)).await.unwrap();
        let error = run.record.error.clone().unwrap_or_default();
        assert!(run.record.state == state && error.contains(says), "{job}: {run:?}");
        assert!(run.record.started <= run.record.ended && run.record.term.is_some());
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_leader_leaves_is_rerun_under_the_same_key_or_unknown() {
    let store = memory();
    let jobs = Jobs::new(store.clone());
    let log: Log = Log::default();
    let hanging = log.clone();
    let first = Node::start(&store, "first", move |run: Run| {
        hanging.lock().unwrap().push(run);
        std::future::pending()
    })
    .await;
    let mut ids = BTreeMap::new();
    for (job, on_unknown) in [("again", OnUnknown::Rerun), ("once", OnUnknown::Fail)] {
        let config = JobConfig { on_unknown, ..JobConfig::new("at 2999-01-01T00:00:00Z") };
        jobs.put(&name(job), config).await.unwrap();
        ids.insert(job, jobs.order(&name(job)).await.unwrap());
    }
    until("both are under way", || async { log.lock().unwrap().len() == 2 }).await;
    assert_eq!(jobs.get(&name("again")).await.unwrap().running, 1);
    first.running.abort();
    let second = Node::start(&store, "second", logging(&log)).await;
    let again = jobs.ended(&name("again"), ids["again"], Duration::from_secs(30)).await.unwrap();
    let once = jobs.ended(&name("once"), ids["once"], Duration::from_secs(30)).await.unwrap();
    assert_eq!((again.record.state, again.record.starts), (State::Done, 2));
    assert_eq!((once.record.state, once.record.starts), (State::Unknown, 1));
    second.stop().await;
    let log = log.lock().unwrap();
    let runs: Vec<_> = log.iter().filter(|run| run.job.as_str() == "again").collect();
    assert!(log.len() == 3 && runs.len() == 2 && runs[0].key() == runs[1].key() && runs[0].fence < runs[1].fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_is_under_way_and_hands_over_at_once() {
    let store = memory();
    let jobs = Jobs::new(store.clone());
    jobs.put(&name("slow"), JobConfig { overlap: Overlap::Allow, ..JobConfig::new("every 100ms") }).await.unwrap();
    let (begun, ended) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
    let counts = (begun.clone(), ended.clone());
    let first = Node::start(&store, "first", move |_| {
        let (begun, ended) = counts.clone();
        async move {
            *begun.lock().unwrap() += 1;
            sleep(Duration::from_millis(500)).await;
            *ended.lock().unwrap() += 1;
            Outcome::Done
        }
    })
    .await;
    until("the first leads", || async { *begun.lock().unwrap() >= 1 }).await;
    let log: Log = Log::default();
    let second = Node::start(&store, "second", logging(&log)).await;
    until("three are under way", || async { *begun.lock().unwrap() >= 3 }).await;
    assert!(log.lock().unwrap().is_empty(), "only one leads");
    first.stop().await;
    assert_eq!(*begun.lock().unwrap(), *ended.lock().unwrap());
    until("the second runs", || async { !log.lock().unwrap().is_empty() }).await;
    second.stop().await;
    let history = jobs.history(&name("slow"), 1000).await.unwrap();
    assert!(history.iter().all(|run| run.record.state == State::Done), "{history:?}");
}

#[tokio::test]
async fn jobs_are_kept_shown_and_guarded() {
    let jobs = Jobs::new(memory());
    let daily = JobConfig::new("0 3 * * *");
    assert_eq!(jobs.put(&name("a"), daily.clone()).await, Ok(true));
    assert_eq!(jobs.put(&name("a"), daily.clone()).await, Ok(false));
    let bad = jobs.put(&name("b"), JobConfig { catch_up_max: 0, ..JobConfig::new("0 3 * *") }).await.unwrap_err();
    assert!(matches!(&bad, JobsError::Invalid(errors) if errors.len() == 2), "{bad}");
    assert_eq!(jobs.get(&name("b")).await.unwrap_err().to_string(), "there is no job `b`");
    assert!(matches!(jobs.order(&name("b")).await, Err(JobsError::NotFound(_))));
    assert!(matches!(jobs.history(&name("b"), 1).await, Err(JobsError::NotFound(_))));
    for _ in 0..10 {
        jobs.order(&name("a")).await.unwrap();
    }
    assert!(matches!(jobs.order(&name("a")).await, Err(JobsError::Full(_))), "nobody starts them");
    assert_eq!(jobs.history(&name("a"), 3).await.unwrap().len(), 3);

    // A file's jobs are the file's.
    let file = |names: &[&str]| names.iter().map(|text| (name(text), daily.clone())).collect::<BTreeMap<_, _>>();
    jobs.declare(&file(&["f", "g"])).await.unwrap();
    assert_eq!(jobs.put(&name("f"), daily.clone()).await, Err(JobsError::FromFile(name("f"))));
    assert_eq!(jobs.remove(&name("f")).await, Err(JobsError::FromFile(name("f"))));
    jobs.declare(&file(&["g"])).await.unwrap();
    let names: Vec<_> = jobs.list().await.unwrap().into_iter().map(|job| job.name.to_string()).collect();
    assert_eq!(names, ["a", "g"]);
    jobs.remove(&name("a")).await.unwrap();
    assert!(matches!(jobs.remove(&name("a")).await, Err(JobsError::NotFound(_))));
    assert!(matches!(jobs.history(&name("a"), 3).await, Err(JobsError::NotFound(_))), "its history is gone");
    for n in 0..999 {
        jobs.put(&name(&format!("n-{n}")), daily.clone()).await.unwrap();
    }
    assert!(matches!(jobs.put(&name("one-more"), daily).await, Err(JobsError::Full(_))));
}
