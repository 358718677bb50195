use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;

const LONG: Duration = Duration::from_secs(3600);

fn bulkhead(concurrent: u32, wait: u64, queue: u32) -> Arc<Bulkhead> {
    let config = Config { wait: Period::secs(wait), queue, ..Config::places(concurrent) };
    Arc::new(Bulkhead::new("payment".into(), config, Clock::tokio()))
}

fn shares(low: u8, normal: u8, high: u8, critical: u8) -> [Ratio; 4] {
    [low, normal, high, critical].map(Ratio::percent)
}

fn reason<T: fmt::Debug>(result: Result<T, Rejected>) -> Reason {
    result.unwrap_err().reason
}

/// Waits on a task of its own, and is in the queue when this returns.
async fn waiter(
    bulkhead: &Arc<Bulkhead>,
    priority: Priority,
) -> tokio::task::JoinHandle<Result<Permit<Arc<Bulkhead>>, Rejected>> {
    let task = tokio::spawn(Bulkhead::acquire_as(bulkhead.clone(), priority, LONG));
    tokio::task::yield_now().await;
    task
}

#[tokio::test(start_paused = true)]
async fn turns_away_when_full_and_waits_when_told() {
    let none = bulkhead(2, 0, 10);
    let (_a, b) = (Bulkhead::try_acquire(&*none).unwrap(), Bulkhead::acquire(&*none, LONG).await.unwrap());
    assert_eq!(reason(Bulkhead::try_acquire(&*none)), Reason::Full);
    assert_eq!(reason(Bulkhead::acquire(&*none, LONG).await), Reason::Full);
    drop(b);
    assert!(Bulkhead::acquire(&*none, LONG).await.is_ok());
    assert_eq!(none.rejections(), Rejections { full: 2, ..Rejections::default() });

    let some = bulkhead(1, 5, 1);
    let held = Bulkhead::acquire(&*some, LONG).await.unwrap();
    let waiter = waiter(&some, Priority::Normal).await;
    assert_eq!(some.waiting(), 1);
    assert_eq!(reason(Bulkhead::acquire(&*some, LONG).await), Reason::QueueFull);
    assert_eq!(some.rejections().queue_full, 1);
    drop(held);
    assert!(waiter.await.unwrap().is_ok());
    assert_eq!((some.in_use(), some.waiting(), some.available()), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_wait_ends_by_itself_or_by_the_callers_limit() {
    let bulkhead = bulkhead(1, 5, 10);
    let _held = Bulkhead::acquire(&*bulkhead, LONG).await.unwrap();
    for (limit, waited) in [(LONG, 5), (Duration::from_secs(2), 2), (Duration::ZERO, 0)] {
        let started = tokio::time::Instant::now();
        assert_eq!(reason(Bulkhead::acquire(&*bulkhead, limit).await), Reason::Full);
        assert_eq!((started.elapsed().as_secs(), bulkhead.waiting()), (waited, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_waiter_leaves_no_trace() {
    let bulkhead = bulkhead(1, 60, 1);
    let held = Bulkhead::acquire(&*bulkhead, LONG).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(1), Bulkhead::acquire(&*bulkhead, LONG)).await.is_err());
    assert_eq!(bulkhead.waiting(), 0);
    drop(held);
    assert_eq!(bulkhead.available(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_place_given_to_one_who_has_left_goes_to_the_next() {
    let bulkhead = bulkhead(1, 60, 9);
    let held = Bulkhead::acquire(&*bulkhead, LONG).await.unwrap();
    let mut first = Box::pin(Bulkhead::acquire(&*bulkhead, LONG));
    assert!(first.as_mut().now_or_never().is_none());
    let second = waiter(&bulkhead, Priority::Normal).await;
    drop(held);
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (1, 1), "the first has been given the place");
    drop(first);
    assert!(second.await.unwrap().is_ok());
    assert_eq!(bulkhead.in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn serves_by_priority_then_by_arrival() {
    let bulkhead = bulkhead(1, 60, 9);
    let held = Bulkhead::acquire(bulkhead.clone(), LONG).await.unwrap();
    let served = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (at, priority) in
        [Priority::Low, Priority::Normal, Priority::Critical, Priority::Normal, Priority::High].into_iter().enumerate()
    {
        let (bulkhead, served) = (bulkhead.clone(), served.clone());
        tasks.push(tokio::spawn(async move {
            let _permit = Bulkhead::acquire_as(bulkhead, priority, LONG).await.unwrap();
            served.lock().unwrap().push(at);
        }));
        tokio::task::yield_now().await;
    }
    drop(held);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*served.lock().unwrap(), [2, 4, 1, 3, 0]);
}

#[tokio::test(start_paused = true)]
async fn nobody_passes_a_waiter_of_the_same_priority_but_a_higher_one_may() {
    let config = Config { shares: shares(50, 100, 100, 100), wait: Period::secs(60), ..Config::places(4) };
    let bulkhead = Arc::new(Bulkhead::new("payment".into(), config, Clock::default()));
    let held: Vec<_> = (0..2).map(|_| Bulkhead::try_acquire(&*bulkhead).unwrap()).collect();
    let low = waiter(&bulkhead, Priority::Low).await;
    assert_eq!(bulkhead.waiting(), 1);
    let third = Bulkhead::try_acquire(&*bulkhead).expect("normal passes low");
    drop(third);
    assert!(!low.is_finished());
    drop(held);
    assert!(low.await.unwrap().is_ok());

    // A place is free for a moment in which somebody waits for it already: it is not for the newcomer.
    bulkhead.resize(1);
    let held = Bulkhead::try_acquire(&*bulkhead).unwrap();
    let mut first = Box::pin(Bulkhead::acquire(&*bulkhead, LONG));
    assert!(first.as_mut().now_or_never().is_none());
    drop(held);
    assert_eq!(reason(Bulkhead::try_acquire_as(&*bulkhead, Priority::Critical)), Reason::Full, "it is given away");
    assert!(first.as_mut().now_or_never().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn lower_priorities_are_shed_first() {
    let config = Config { shares: shares(30, 50, 75, 100), ..Config::places(10) };
    let bulkhead = Bulkhead::new("payment".into(), config, Clock::default());
    let mut held = Vec::new();
    for (priority, places, then) in [
        (Priority::Low, 3, Reason::Shed),
        (Priority::Normal, 5, Reason::Shed),
        (Priority::High, 8, Reason::Shed),
        (Priority::Critical, 10, Reason::Full),
        (Priority::Low, 10, Reason::Full),
    ] {
        while held.len() < places {
            held.push(Bulkhead::try_acquire_as(&bulkhead, priority).unwrap());
        }
        assert_eq!(reason(Bulkhead::try_acquire_as(&bulkhead, priority)), then, "{priority}");
    }
    assert_eq!(bulkhead.rejections(), Rejections { full: 2, shed: 3, queue_full: 0 });
    bulkhead.resize(1);
    held.clear();
    assert!(Bulkhead::try_acquire_as(&bulkhead, Priority::Low).is_ok(), "a share is one place at least");
}

#[tokio::test(start_paused = true)]
async fn who_matters_more_displaces_the_youngest_of_the_least() {
    let bulkhead = bulkhead(1, 60, 3);
    let held = Bulkhead::try_acquire(&*bulkhead).unwrap();
    let low = [waiter(&bulkhead, Priority::Low).await, waiter(&bulkhead, Priority::Low).await];
    let normal = waiter(&bulkhead, Priority::Normal).await;
    let high = waiter(&bulkhead, Priority::High).await;
    let [first, second] = low;
    assert_eq!(reason(second.await.unwrap()), Reason::Shed);
    assert_eq!(bulkhead.waiting(), 3);
    assert_eq!(reason(Bulkhead::acquire_as(&*bulkhead, Priority::Low, LONG).await), Reason::QueueFull);
    drop(held);
    for task in [high, normal, first] {
        assert!(task.await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn shrinks_and_grows_without_blocking() {
    let bulkhead = bulkhead(4, 60, 9);
    let mut held: Vec<_> = (0..4).map(|_| Bulkhead::try_acquire(&*bulkhead).unwrap()).collect();
    bulkhead.resize(2);
    assert_eq!((bulkhead.limit(), bulkhead.in_use(), bulkhead.available()), (2, 4, 0));
    held.truncate(2);
    assert_eq!(reason(Bulkhead::try_acquire(&*bulkhead)), Reason::Full, "two of two are taken");
    held.truncate(1);
    held.push(Bulkhead::try_acquire(&*bulkhead).unwrap());
    let waiters = [waiter(&bulkhead, Priority::Normal).await, waiter(&bulkhead, Priority::Normal).await];
    assert_eq!(bulkhead.waiting(), 2);
    bulkhead.reload(Config { wait: Period::secs(1), ..Config::places(4) });
    for waiter in waiters {
        assert!(waiter.await.unwrap().is_ok());
    }
    assert_eq!(bulkhead.in_use(), 2);
}

#[tokio::test]
async fn a_panic_gives_the_place_back() {
    let bulkhead = bulkhead(1, 0, 0);
    let clone = bulkhead.clone();
    let panicked = tokio::spawn(async move {
        let _permit = Bulkhead::try_acquire(clone).unwrap();
        std::panic::resume_unwind(Box::new("bang"));
    });
    assert!(panicked.await.is_err());
    assert_eq!(bulkhead.in_use(), 0);
}

#[test]
fn threads_wait_too() {
    let bulkhead = bulkhead_std(1, Duration::from_secs(60));
    let held = Bulkhead::try_acquire(bulkhead.clone()).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| Bulkhead::acquire_blocking(&*bulkhead, Priority::Normal, LONG).map(drop));
        while bulkhead.waiting() == 0 {
            std::thread::yield_now();
        }
        drop(held);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
    let _held = Bulkhead::try_acquire(&*bulkhead).unwrap();
    let briefly = Duration::from_millis(2);
    assert_eq!(reason(Bulkhead::acquire_blocking(&*bulkhead, Priority::Normal, briefly)), Reason::Full);
    assert_eq!(bulkhead.waiting(), 0);
}

fn bulkhead_std(concurrent: u32, wait: Duration) -> Arc<Bulkhead> {
    let config = Config { wait: wait.into(), queue: 10, ..Config::places(concurrent) };
    Arc::new(Bulkhead::new("payment".into(), config, Clock::default()))
}

#[test]
fn many_threads_never_exceed_the_limit_and_lose_nothing() {
    use std::sync::atomic::AtomicU32;
    let bulkhead = bulkhead_std(3, Duration::from_secs(60));
    let (inside, served) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (bulkhead, inside, served) = (&bulkhead, &inside, &served);
            scope.spawn(move || {
                for turn in 0..500 {
                    let priority = Priority::ALL[(thread + turn) % 4];
                    let permit = Bulkhead::acquire_blocking(&**bulkhead, priority, LONG).unwrap();
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                    served.fetch_add(1, Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            });
        }
    });
    assert_eq!((served.into_inner(), bulkhead.in_use(), bulkhead.waiting()), (4000, 0, 0));
}

#[test]
fn an_adaptive_limit_learns_from_what_is_finished() {
    let (clock, hand) = Clock::manual();
    let found = adaptive::Config {
        algorithm: adaptive::Algorithm::Aimd,
        min: 1,
        max: 100,
        initial: 10,
        latency: Some(Period::millis(100)),
    };
    let config = Config { adaptive: Some(found), ..Config::places(7) };
    let bulkhead = Bulkhead::new("payment".into(), config.clone(), clock);
    assert_eq!(bulkhead.limit(), 10);
    let round = |millis, ended| {
        for _ in 0..2 {
            let permits: Vec<_> = (0..bulkhead.limit()).map(|_| Bulkhead::try_acquire(&bulkhead).unwrap()).collect();
            hand.advance(Duration::from_millis(millis));
            permits.into_iter().for_each(|permit| permit.finish(ended, None));
        }
        bulkhead.limit()
    };
    assert_eq!(round(10, Ended::Served), 11);
    assert_eq!(round(10, Ended::Ignored), 11);
    assert_eq!(round(10, Ended::Dropped), 8, "a tenth off for each of the two bursts");
    assert_eq!((round(200, Ended::Served), round(200, Ended::Served)), (8, 7), "8.0, then 7.2");
    bulkhead.reload(config.clone());
    assert_eq!(bulkhead.limit(), 7, "what was found is kept");
    bulkhead.reload(Config { adaptive: None, ..config });
    assert_eq!(bulkhead.limit(), 7);
    let permit = Bulkhead::try_acquire(&bulkhead).unwrap();
    assert_eq!(permit.taken, UNTIMED, "no clock is read");
}

#[test]
fn what_a_call_carries_is_small() {
    let bulkhead = bulkhead_std(1, Duration::ZERO);
    assert_eq!(size_of::<Permit<&Bulkhead>>(), 24);
    assert!(size_of_val(&Bulkhead::acquire(&*bulkhead, LONG)) <= 64);
}

#[test]
fn the_file_is_filled_field_by_field() {
    let parse = |json| serde_json::from_value::<BulkheadConfig>(json).unwrap();
    let base = parse(serde_json::json!({ "concurrent": 8, "wait": "1s", "shares": { "normal": "80%" } }));
    let own = parse(serde_json::json!({ "queue": 3, "shares": { "low": "50%" } }));
    let config = own.or(&base).resolve().unwrap();
    let expected = Config { wait: Period::secs(1), queue: 3, shares: shares(50, 80, 100, 100), ..Config::places(8) };
    assert_eq!(config, expected);
    assert_eq!(BulkheadConfig::default().resolve(), Some(Config::places(1024)));
    assert_eq!(parse(serde_json::json!({ "enabled": false })).resolve(), None);
    let half = parse(serde_json::json!({ "shares": { "high": "50%" } })).resolve().unwrap();
    assert_eq!(half.shares, shares(50, 50, 50, 100), "whoever matters less never has more");
    let adaptive = parse(serde_json::json!({ "concurrent": 9, "adaptive": { "max": 50 } })).resolve().unwrap();
    assert_eq!((adaptive.concurrent, adaptive.queue, adaptive.adaptive.unwrap().max), (9, 50, 50));
    assert_eq!(serde_json::to_value(Priority::Critical).unwrap(), "critical");
}

#[test]
fn what_is_wrong_is_named() {
    let config = serde_json::json!({
        "concurrent": 0, "queue": 1_000_001, "shares": { "low": "60%", "normal": "50%", "critical": "0%" }
    });
    let mut found = Problems::default();
    serde_json::from_value::<BulkheadConfig>(config).unwrap().problems(&mut found);
    let paths: Vec<_> = found.into_vec().into_iter().map(|(path, _)| path).collect();
    assert_eq!(
        paths,
        [
            "bulkhead.concurrent",
            "bulkhead.queue",
            "bulkhead.shares.critical",
            "bulkhead.shares.normal",
            "bulkhead.shares.low"
        ]
    );
}

#[derive(Clone, Debug)]
enum Step {
    Try(usize),
    Wait(usize),
    Poll(usize),
    Cancel(usize),
    GiveBack(usize),
    Resize(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..4usize).prop_map(Step::Try),
        4 => (0..4usize).prop_map(Step::Wait),
        4 => any::<usize>().prop_map(Step::Poll),
        2 => any::<usize>().prop_map(Step::Cancel),
        4 => any::<usize>().prop_map(Step::GiveBack),
        1 => (1..6u32).prop_map(Step::Resize),
    ]
}

/// The obvious bulkhead: counts and lists of ids.
struct Model {
    places: u32,
    queue: usize,
    shares: [Ratio; 4],
    in_use: u32,
    lists: [VecDeque<usize>; 4],
    granted: Vec<usize>,
    displaced: Vec<usize>,
}

impl Model {
    fn may(&self, priority: usize) -> bool {
        self.in_use < self.shares[priority].count_of(self.places)
    }

    fn take(&mut self, priority: usize) -> bool {
        let free = self.may(priority) && self.lists[priority..].iter().all(VecDeque::is_empty);
        self.in_use += u32::from(free);
        free
    }

    fn enqueue(&mut self, priority: usize, id: usize) -> bool {
        if self.lists.iter().map(VecDeque::len).sum::<usize>() >= self.queue {
            let Some(list) = self.lists[..priority].iter_mut().find(|list| !list.is_empty()) else { return false };
            self.displaced.extend(list.pop_back());
        }
        self.lists[priority].push_back(id);
        self.grant();
        true
    }

    fn grant(&mut self) {
        while let Some(priority) = (0..4).rev().find(|priority| !self.lists[*priority].is_empty())
            && self.may(priority)
        {
            self.in_use += 1;
            self.granted.extend(self.lists[priority].pop_front());
        }
    }
}

proptest! {
    /// Any history against the sequential model.
    #[test]
    fn behaves_as_the_model(
        steps in proptest::collection::vec(step(), 0..150),
        percents in proptest::collection::vec(1u8..=100, 4),
    ) {
        let mut percents = percents;
        percents.sort_unstable();
        let shares = [percents[0], percents[1], percents[2], percents[3]].map(Ratio::percent);
        let config = Config { wait: Period::secs(60), queue: 4, shares, ..Config::places(3) };
        let bulkhead = Bulkhead::new("payment".into(), config, Clock::default());
        let mut model = Model {
            places: 3, queue: 4, shares, in_use: 0,
            lists: Default::default(), granted: Vec::new(), displaced: Vec::new(),
        };
        let mut permits: Vec<Permit<&Bulkhead>> = Vec::new();
        let mut waiters: Vec<(usize, Waiting<'_>)> = Vec::new();
        let mut next = 0;
        for step in steps {
            match step {
                Step::Try(priority) => {
                    let taken = Bulkhead::try_acquire_as(&bulkhead, Priority::ALL[priority]);
                    prop_assert_eq!(taken.is_ok(), model.take(priority));
                    permits.extend(taken);
                }
                Step::Wait(priority) => {
                    next += 1;
                    let waiter = bulkhead.enqueue(Priority::ALL[priority]);
                    prop_assert_eq!(waiter.is_ok(), model.enqueue(priority, next));
                    waiters.extend(waiter.map(|waiter| (next, waiter)));
                }
                Step::Poll(at) if !waiters.is_empty() => {
                    let at = at % waiters.len();
                    let (id, waiter) = &mut waiters[at];
                    let polled = Pin::new(waiter).poll(&mut Context::from_waker(Waker::noop()));
                    match polled {
                        Poll::Pending => prop_assert!(!model.granted.contains(id) && !model.displaced.contains(id)),
                        Poll::Ready(Ok(in_flight)) => {
                            prop_assert!(model.granted.contains(id));
                            permits.push(Permit::new(&bulkhead, in_flight));
                        }
                        Poll::Ready(Err(_)) => prop_assert!(model.displaced.contains(id)),
                    }
                    if polled.is_ready() {
                        waiters.remove(at);
                    }
                }
                Step::Cancel(at) if !waiters.is_empty() => {
                    let (id, waiter) = waiters.remove(at % waiters.len());
                    drop(waiter);
                    if model.granted.contains(&id) {
                        model.in_use -= 1;
                    }
                    model.lists.iter_mut().for_each(|list| list.retain(|other| *other != id));
                    if model.granted.contains(&id) {
                        model.grant();
                    } else {
                        // One who leaves from the front may have stood in the way of nobody: places are given at once.
                        prop_assert!(model.lists.iter().flatten().all(|other| *other != id));
                    }
                }
                Step::GiveBack(at) if !permits.is_empty() => {
                    drop(permits.swap_remove(at % permits.len()));
                    model.in_use -= 1;
                    model.grant();
                }
                Step::Resize(places) => {
                    bulkhead.resize(places);
                    model.places = places;
                    model.grant();
                }
                _ => {}
            }
            let waiting: usize = model.lists.iter().map(VecDeque::len).sum();
            prop_assert_eq!((bulkhead.in_use(), bulkhead.waiting() as usize), (model.in_use, waiting));
        }
        drop((permits, waiters));
        prop_assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0));
        prop_assert!(lock(&bulkhead.queue.0).highest().is_none());
    }
}

#[test]
fn a_reload_changes_the_shares() {
    let bulkhead = Bulkhead::new("payment".into(), Config::places(2), Clock::default());
    let _taken = Bulkhead::try_acquire(&bulkhead).unwrap();
    assert!(Bulkhead::try_acquire_as(&bulkhead, Priority::Low).is_ok());
    let (half, all) = (Ratio::percent(50), Ratio::percent(100));
    bulkhead.reload(Config { shares: [half, all, all, all], ..Config::places(2) });
    assert_eq!(Bulkhead::try_acquire_as(&bulkhead, Priority::Low).unwrap_err().reason, Reason::Shed);
    assert!(Bulkhead::try_acquire(&bulkhead).is_ok());
}
