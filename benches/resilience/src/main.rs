//! `resilience-bench [ROUNDS [PART]]`: nanoseconds of a call, one thread and two, as lines of JSON. With a part of a name,
//! only the subjects that have it in theirs.

use std::sync::mpsc::{Receiver, Sender, channel};

use resilience_bench::sampler::{Bench, Pair};
use resilience_bench::{Line, subjects};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Samples of a subject in a round.
const SAMPLES: usize = 60;

fn main() -> anyhow::Result<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let runtime = resilience_bench::runtime()?;
    let _entered = runtime.enter();
    let part = std::env::args().nth(2).unwrap_or_default();
    let mut subjects = subjects();
    subjects.retain(|subject| subject.name.contains(&part));
    let mut benches: Vec<Bench> = subjects.iter().map(Bench::alone).collect();
    let calls: Vec<u64> = benches.iter().map(Bench::calls).collect();
    let pair = Pair::default();
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|me| {
            let (begin, begun) = channel::<()>();
            let (ended, end) = channel::<Vec<Line<'static>>>();
            let (subjects, calls, pair) = (&subjects, &calls, &pair);
            scope.spawn(move || {
                let runtime = resilience_bench::runtime()?;
                let _entered = runtime.enter();
                pin(me)?;
                let both = subjects.iter().zip(calls).filter(|(subject, _)| subject.shared);
                let benches = both.map(|(subject, calls)| Bench::one_of_two(subject, *calls)).collect();
                one_of_two(benches, pair, me, &begun, &ended);
                anyhow::Ok(())
            });
            (begin, end)
        });
        for round in 1..=rounds {
            eprintln!("round {round} of {rounds}: one thread");
            for _ in 0..SAMPLES {
                benches.iter_mut().for_each(Bench::sample);
            }
            for bench in &mut benches {
                bench.finish(1).write()?;
            }
            eprintln!("round {round} of {rounds}: two threads");
            threads.iter().try_for_each(|(begin, _)| begin.send(()))?;
            let lines = threads.iter().map(|(_, end)| end.recv()).collect::<Result<Vec<_>, _>>()?;
            // Both have the same.
            lines.into_iter().take(1).flatten().try_for_each(|line| line.write())?;
        }
        Ok(())
    })
}

/// One of the two threads, round after round.
fn one_of_two(
    mut benches: Vec<Bench>,
    pair: &Pair,
    me: usize,
    begun: &Receiver<()>,
    ended: &Sender<Vec<Line<'static>>>,
) {
    while begun.recv().is_ok() {
        for _ in 0..SAMPLES {
            for bench in &mut benches {
                bench.sample_of_two(pair, me);
            }
        }
        let lines = benches.iter_mut().map(|bench| bench.finish(2)).collect();
        if ended.send(lines).is_err() {
            return;
        }
    }
}

/// Gives this thread a core of its own, so that the two never share one.
fn pin(me: usize) -> anyhow::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let core = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).nth(me);
    let core = core.ok_or_else(|| anyhow::anyhow!("two threads need two cores"))?;
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only)?;
    Ok(())
}
