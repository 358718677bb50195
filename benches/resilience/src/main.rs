//! What a call costs under each policy of ours, and under those of the peers, in one process.
//!
//! Every subject gives a runner that makes so many calls, all on one instance of the policy: one runner for one thread,
//! two for two threads that meet at a barrier. The subjects take turns, round after round. A sample in which a thread
//! lost its core (its processor time is less than the time that passed) is taken again, up to a limit.

mod subjects;
mod table;

use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tower::Service;

/// Makes so many calls.
pub(crate) type Runner = Box<dyn FnMut(u64) + Send>;

/// Something that is measured.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    /// What it is compared with: `bare`, or a peer's row.
    pub(crate) ours: bool,
    /// The most nanoseconds that it should cost on one thread and on two, where there is such an aim.
    pub(crate) aim: (Option<f64>, Option<f64>),
    /// A runner more, on the same instance.
    pub(crate) runner: Box<dyn Fn() -> Runner>,
}

/// Calls in a sample, samples in a round, and how many may be taken again.
const CALLS: u64 = 20_000;
const SAMPLES: usize = 40;
const AGAIN: usize = 40;

/// The figures of one subject.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) one: Vec<f64>,
    pub(crate) two: Vec<f64>,
    pub(crate) allocations: f64,
    pub(crate) disturbed: usize,
}

fn main() {
    let mut words = std::env::args().skip(1);
    let rounds: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(5);
    let file = words.next();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let subjects = subjects::all();
    let mut figures: Vec<Figures> = subjects.iter().map(|_| Figures::default()).collect();
    for round in 0..rounds {
        for (subject, figures) in subjects.iter().zip(&mut figures) {
            eprint!("\rround {} of {rounds}: {:<48}", round + 1, subject.name);
            measure_one(subject, figures);
            measure_two(subject, figures, runtime.handle());
        }
    }
    eprintln!();
    table::print(&subjects, &figures);
    if let Some(file) = file {
        std::fs::write(&file, table::json(&subjects, &figures)).expect("the file can be written");
        println!("\nwritten to {file}");
    }
}

/// Nanoseconds a call, unless the thread lost its core.
fn sample(runner: &mut Runner) -> Option<f64> {
    let processor = thread_nanos();
    let began = Instant::now();
    runner(CALLS);
    let wall = began.elapsed().as_nanos() as f64;
    let used = thread_nanos().saturating_sub(processor) as f64;
    (used >= 0.97 * wall).then_some(wall / CALLS as f64)
}

fn thread_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn measure_one(subject: &Subject, figures: &mut Figures) {
    let mut runner = (subject.runner)();
    runner(CALLS);
    let counted = allocation_counter::measure(|| runner(1000));
    figures.allocations = counted.count_total as f64 / 1000.0;
    let mut taken = 0;
    for _ in 0..SAMPLES + AGAIN {
        match sample(&mut runner) {
            Some(nanos) => {
                figures.one.push(nanos);
                taken += 1;
            }
            None => figures.disturbed += 1,
        }
        if taken == SAMPLES {
            break;
        }
    }
}

fn measure_two(subject: &Subject, figures: &mut Figures, handle: &Handle) {
    let barrier = Arc::new(Barrier::new(2));
    let all = sched_getaffinity(None).expect("the cores of this thread");
    let run = |mut runner: Runner, core: usize| {
        let (barrier, handle, all) = (barrier.clone(), handle.clone(), all);
        move || {
            let _entered = handle.enter();
            // A core each: together on one they would take turns, and nothing would be shared.
            let mut only = CpuSet::new();
            only.set((0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).nth(core).expect("two cores"));
            sched_setaffinity(None, &only).expect("a core of its own");
            let samples = (0..SAMPLES + AGAIN).map(|_| {
                barrier.wait();
                sample(&mut runner)
            });
            samples.collect::<Vec<_>>()
        }
    };
    let (mut first, second) = (run((subject.runner)(), 0), run((subject.runner)(), 1));
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(second);
        (first(), other.join().expect("a runner does not panic"))
    });
    sched_setaffinity(None, &all).expect("all cores again");
    for pair in first.into_iter().zip(second) {
        match pair {
            (Some(one), Some(other)) => figures.two.push((one + other) / 2.0),
            _ => figures.disturbed += 1,
        }
    }
}

/// One call of a tower service, from readiness to result; nothing of it can be left out by the compiler.
pub(crate) fn drive<S: Service<u64>>(service: &mut S, request: u64) {
    let mut cx = Context::from_waker(Waker::noop());
    let service = black_box(service);
    while service.poll_ready(&mut cx).is_pending() {
        std::hint::spin_loop();
    }
    finish(service.call(black_box(request)), &mut cx);
}

/// Polls a future until it is done; a peer's lock may have it wait.
pub(crate) fn finish<F: Future>(future: F, cx: &mut Context<'_>) {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(cx) {
            black_box(result);
            return;
        }
        std::hint::spin_loop();
    }
}
