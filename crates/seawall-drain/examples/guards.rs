//! What a guard costs: taking one and dropping it, in nanoseconds, on one thread and on as many as there are cores.
//!
//! ```console
//! $ cargo run --release -p seawall-drain --example guards
//! ```

use std::hint::black_box;
use std::time::Instant;

use seawall_drain::{Drain, channel};

const ROUNDS: u32 = 5_000_000;
const TRIES: usize = 5;

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{:<32}{:>10}{:>10}", "ns a guard", "1 thread", format!("{cores} threads"));
    let kind = |drain: &Drain| {
        let kind = drain.kind("request");
        move || drop(black_box(kind.guard()))
    };
    row("kind.guard()", cores, kind);
    let refusing = |drain: &Drain| {
        let kind = drain.kind("request");
        move || drop(black_box(kind.try_guard()))
    };
    row("kind.try_guard()", cores, refusing);
    let named = |drain: &Drain| {
        let drain = drain.clone();
        move || drop(black_box(drain.guard("request")))
    };
    row("drain.guard(\"request\")", cores, named);
}

fn row<F: FnMut() + Send>(name: &str, cores: usize, make: impl Fn(&Drain) -> F) {
    let (_trigger, drain) = channel();
    let best = |threads: usize| {
        let tries = (0..TRIES).map(|_| measure((0..threads).map(|_| make(&drain)).collect()));
        tries.fold(f64::INFINITY, f64::min)
    };
    println!("{name:<32}{:>10.1}{:>10.1}", best(1), best(cores));
}

/// Nanoseconds a round, as each thread sees them.
fn measure<F: FnMut() + Send>(workers: Vec<F>) -> f64 {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for mut worker in workers {
            scope.spawn(move || (0..ROUNDS).for_each(|_| worker()));
        }
    });
    started.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
}
