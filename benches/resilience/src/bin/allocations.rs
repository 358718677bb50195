//! What a call allocates, and what an instance needs, as lines of JSON.

use allocation_counter::measure;
use resilience_bench::{Line, memory, runtime, subjects};

const CALLS: u64 = 1000;

fn main() -> anyhow::Result<()> {
    let runtime = runtime()?;
    let _entered = runtime.enter();
    for subject in subjects() {
        let mut runner = subject.runner();
        runner(CALLS);
        let info = measure(|| runner(CALLS));
        let each = |total: u64| total as f64 / CALLS as f64;
        let (count, bytes) = (each(info.count_total), each(info.bytes_total));
        Line::Allocations { subject: subject.name, count, bytes }.write()?;
    }
    for (of, make) in memory::INSTANCES {
        let info = measure(make);
        Line::Size { of, bytes: u64::try_from(info.bytes_current)? }.write()?;
    }
    for (of, bytes) in memory::futures() {
        Line::Size { of, bytes: bytes as u64 }.write()?;
    }
    Ok(())
}
