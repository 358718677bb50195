//! Takes the samples: subjects in turns, each sample checked for having had its core to itself.
//!
//! A sample is up to 20,000 calls, fewer where those would take more than a millisecond: the longer it is, the less
//! likely it is to stay undisturbed. It counts if its thread used the processor for all the time that went by; if not,
//! it is taken again, up to a cap, and what is kept nevertheless is reported.
//!
//! With two threads both call the same instance, begin together at a barrier on which they spin, and go on calling when
//! they are done until the other is too, so that neither ever measures itself alone.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::Line;
use crate::subject::{Runner, Subject};

/// Calls in a sample.
const CALLS: u64 = 20_000;
/// A sample should not last longer.
const LONGEST: Duration = Duration::from_millis(1);
/// The share of the time that a thread must have had a core.
const UNDISTURBED: f64 = 0.98;
/// How often a sample is taken again at most, on average over a round.
const RETAKES: usize = 3;

/// One thread's way to a subject, and the calls of its samples.
pub struct Bench {
    /// As in the table.
    pub name: &'static str,
    runner: Runner,
    calls: u64,
    taken: Taken,
}

/// The samples of a round.
#[derive(Debug, Default)]
struct Taken {
    samples: Vec<f64>,
    retaken: usize,
    disturbed: usize,
}

impl Bench {
    /// For a single thread: finds out how many calls a sample can have.
    pub fn alone(subject: &Subject) -> Self {
        let mut runner = subject.runner();
        runner(200);
        let (ns, _) = timed(&mut runner, 200);
        let most = (LONGEST.as_nanos() as f64 / ns) as u64;
        Self { name: subject.name, runner, calls: most.clamp(20, CALLS), taken: Taken::default() }
    }

    /// For one of two threads; `calls` is what [`Bench::alone`] found. What is slow alone is slower for two.
    pub fn one_of_two(subject: &Subject, calls: u64) -> Self {
        let calls = if calls == CALLS { calls } else { (calls / 4).max(20) };
        Self { name: subject.name, runner: subject.runner(), calls, taken: Taken::default() }
    }

    /// How many calls a sample has.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Takes a sample.
    pub fn sample(&mut self) {
        loop {
            (self.runner)(self.calls / 20 + 1);
            let (ns, undisturbed) = timed(&mut self.runner, self.calls);
            if self.taken.keep(ns, undisturbed) {
                return;
            }
        }
    }

    /// Takes a sample together with the other thread, which does the same.
    pub fn sample_of_two(&mut self, pair: &Pair, me: usize) {
        loop {
            (self.runner)(self.calls / 20 + 1);
            pair.meet();
            let (ns, undisturbed) = timed(&mut self.runner, self.calls);
            pair.done.fetch_add(1, Ordering::AcqRel);
            while pair.done.load(Ordering::Acquire) < 2 {
                (self.runner)(self.calls / 200 + 1);
            }
            // Written before the other can go on, and read before it can write the next: it has to meet us first.
            pair.put(me, ns, undisturbed);
            pair.meet();
            pair.done.store(0, Ordering::Release);
            let (ns, undisturbed) = pair.both();
            // Both threads see the same, so they agree.
            if self.taken.keep(ns, undisturbed) {
                return;
            }
        }
    }

    /// The round is over.
    pub fn finish(&mut self, threads: u32) -> Line<'static> {
        let Taken { mut samples, retaken, disturbed } = std::mem::take(&mut self.taken);
        samples.sort_by(f64::total_cmp);
        let ns = samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN);
        Line::Figure { subject: self.name, threads, ns, samples: samples.len(), retaken, disturbed }
    }
}

impl Taken {
    /// Whether the sample stays.
    fn keep(&mut self, ns: f64, undisturbed: bool) -> bool {
        if !undisturbed && self.retaken < RETAKES * (self.samples.len() + 1) {
            self.retaken += 1;
            return false;
        }
        self.disturbed += usize::from(!undisturbed);
        self.samples.push(ns);
        true
    }
}

/// Nanoseconds of a call, and whether the thread had its core all the time.
fn timed(runner: &mut Runner, calls: u64) -> (f64, bool) {
    let cpu = clock_gettime(ClockId::ThreadCPUTime);
    let started = Instant::now();
    runner(calls);
    let took = started.elapsed();
    let cpu_end = clock_gettime(ClockId::ThreadCPUTime);
    let cpu = (cpu_end.tv_sec - cpu.tv_sec) as f64 * 1e9 + (cpu_end.tv_nsec - cpu.tv_nsec) as f64;
    let took = took.as_nanos() as f64;
    (took / calls as f64, cpu >= UNDISTURBED * took)
}

/// Where two threads meet.
#[derive(Debug, Default)]
pub struct Pair {
    arrived: AtomicU32,
    generation: AtomicU32,
    done: AtomicU32,
    /// Nanoseconds as bits; negative where the sample was disturbed.
    slots: [AtomicU64; 2],
}

impl Pair {
    /// Waits for the other. It spins: to be woken takes as long as a sample.
    pub fn meet(&self) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) == 1 {
            self.arrived.store(0, Ordering::Release);
            self.generation.fetch_add(1, Ordering::AcqRel);
            return;
        }
        let mut turns = 0_u32;
        while self.generation.load(Ordering::Acquire) == generation {
            turns += 1;
            if turns.is_multiple_of(10_000) { std::thread::yield_now() } else { spin_loop() }
        }
    }

    fn put(&self, me: usize, ns: f64, undisturbed: bool) {
        self.slots[me].store(if undisturbed { ns } else { -ns }.to_bits(), Ordering::Release);
    }

    /// The mean of both, and whether both were undisturbed.
    fn both(&self) -> (f64, bool) {
        let [a, b] = [0, 1].map(|at| f64::from_bits(self.slots[at].load(Ordering::Acquire)));
        (f64::midpoint(a.abs(), b.abs()), a > 0.0 && b > 0.0)
    }
}
