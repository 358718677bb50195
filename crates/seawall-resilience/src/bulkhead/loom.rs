//! The shared state under every interleaving of two or three threads
//! (`cargo test -p seawall-resilience --features loom --lib loom`).

use ::loom::future::block_on;
use ::loom::sync::Arc;
use ::loom::thread;

use super::*;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = ::loom::model::Builder::new();
    // Two switches find most races in seconds; the long form asks for more.
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(model);
}

fn bulkhead(places: u32) -> Arc<Bulkhead> {
    let config = Config { wait: Period::secs(60), queue: 4, ..Config::places(places) };
    Arc::new(Bulkhead::new("loom".into(), config, Clock::manual().0))
}

/// As `acquire` without its timer; a wake-up that is lost is a deadlock, which the model reports.
fn acquire(bulkhead: &Bulkhead) -> Permit<&Bulkhead> {
    let in_flight = match bulkhead.take(Priority::Normal) {
        Ok(in_flight) => in_flight,
        Err(_) => block_on(bulkhead.enqueue(Priority::Normal).expect("the queue has room")).expect("nobody displaces"),
    };
    Permit::new(bulkhead, in_flight)
}

#[test]
fn never_more_than_the_limit() {
    check(|| {
        let bulkhead = bulkhead(1);
        let inside = Arc::new(AtomicU32::new(0));
        let call = |bulkhead: Arc<Bulkhead>, inside: Arc<AtomicU32>| {
            move || {
                if let Ok(permit) = Bulkhead::try_acquire(&*bulkhead) {
                    assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                    inside.fetch_sub(1, Ordering::Relaxed);
                    drop(permit);
                }
            }
        };
        let threads = [(); 2].map(|()| thread::spawn(call(bulkhead.clone(), inside.clone())));
        call(bulkhead.clone(), inside)();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(bulkhead.in_use(), 0);
    });
}

#[test]
fn no_wake_up_is_lost_between_giving_back_and_waiting() {
    check(|| {
        let bulkhead = bulkhead(1);
        let inside = Arc::new(AtomicU32::new(0));
        let call = |bulkhead: Arc<Bulkhead>, inside: Arc<AtomicU32>| {
            move || {
                let permit = acquire(&bulkhead);
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
                inside.fetch_sub(1, Ordering::Relaxed);
                drop(permit);
            }
        };
        let threads = [(); 2].map(|()| thread::spawn(call(bulkhead.clone(), inside.clone())));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(bulkhead.state.0.load(Ordering::Acquire), 0);
    });
}

#[test]
fn three_share_one_place() {
    check(|| {
        let bulkhead = bulkhead(1);
        let call = |bulkhead: Arc<Bulkhead>| move || drop(acquire(&bulkhead));
        let threads = [(); 2].map(|()| thread::spawn(call(bulkhead.clone())));
        call(bulkhead.clone())();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(bulkhead.state.0.load(Ordering::Acquire), 0);
    });
}

#[test]
fn one_who_leaves_passes_the_place_on() {
    check(|| {
        let bulkhead = bulkhead(1);
        let held = bulkhead.take(Priority::Normal).expect("it is empty");
        assert_eq!(held, 1);
        let leaver = thread::spawn({
            let bulkhead = bulkhead.clone();
            // It may have been given the place by the time it leaves.
            move || drop(bulkhead.enqueue(Priority::High).expect("the queue has room"))
        });
        let stayer = thread::spawn({
            let bulkhead = bulkhead.clone();
            move || drop(acquire(&bulkhead))
        });
        bulkhead.release();
        leaver.join().unwrap();
        stayer.join().unwrap();
        assert_eq!(bulkhead.state.0.load(Ordering::Acquire), 0);
    });
}

#[test]
fn who_gives_up_has_the_place_or_leaves_no_trace() {
    check(|| {
        let bulkhead = bulkhead(1);
        bulkhead.take(Priority::Normal).expect("it is empty");
        let other = bulkhead.clone();
        let waiter = thread::spawn(move || {
            let mut waiting = other.enqueue(Priority::Normal).expect("the queue has room");
            let taken = waiting.give_up();
            drop(waiting);
            taken.is_ok()
        });
        bulkhead.release();
        let taken = waiter.join().unwrap();
        assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (u32::from(taken), 0));
    });
}

#[test]
fn a_resize_races_with_giving_back() {
    check(|| {
        let bulkhead = bulkhead(2);
        bulkhead.take(Priority::Normal).expect("it is empty");
        bulkhead.take(Priority::Normal).expect("a place is left");
        let waiter = thread::spawn({
            let bulkhead = bulkhead.clone();
            move || drop(acquire(&bulkhead))
        });
        let resizer = thread::spawn({
            let bulkhead = bulkhead.clone();
            move || bulkhead.resize(1)
        });
        bulkhead.release();
        bulkhead.release();
        resizer.join().unwrap();
        waiter.join().unwrap();
        assert_eq!(bulkhead.state.0.load(Ordering::Acquire), 0);
        assert_eq!(bulkhead.limit(), 1);
    });
}

#[test]
fn growing_wakes_who_waits() {
    check(|| {
        let bulkhead = bulkhead(1);
        bulkhead.take(Priority::Normal).expect("it is empty");
        let waiter = thread::spawn({
            let bulkhead = bulkhead.clone();
            move || drop(acquire(&bulkhead))
        });
        bulkhead.resize(2);
        waiter.join().unwrap();
        assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (1, 0));
    });
}
