//! What a lock, a hand-over and a durable write cost, on the embedded store and on the peers: one client program, in turns,
//! in one run. Writes a JSON line for each figure; `cargo xtask bench coord` makes the table.

mod cases;
mod clients;
mod cpu;
mod disk;
mod failover;
mod peers;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;

/// What is measured, and how long.
#[derive(Parser)]
struct Args {
    /// The binary `seawall`, whose control node is measured.
    #[arg(long)]
    seawall: PathBuf,
    /// How often each case is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each time, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only the cases with this in their name.
    #[arg(long, default_value = "")]
    only: String,
    /// How many cycles of the long run are made.
    #[arg(long, default_value_t = 50_000)]
    cycles: usize,
}

/// One line of output.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Line<'a> {
    /// What a subject did in one round of a case. `cpu_us` is the processor time of one cycle, client and server together.
    Figure { case: &'a str, subject: &'a str, clients: usize, per_second: f64, p50_us: f64, p99_us: f64, cpu_us: f64 },
    /// Anything else that was measured.
    Fact { what: &'a str, value: f64, unit: &'a str },
}

impl Line<'_> {
    pub(crate) fn print(&self) {
        println!("{}", serde_json::to_string(self).expect("plain data"));
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let dir = tempfile::tempdir()?;
        let peers = peers::Peers::start(&args.seawall, dir.path()).await?;
        for _ in 0..args.rounds {
            disk::probe(dir.path())?.print();
            cases::round(&peers, Duration::from_secs(args.seconds), &args.only).await?;
        }
        cases::once(&peers, args.cycles, &args.only).await?;
        if args.only.is_empty() || args.only == "failover" {
            failover::measure(&peers, &args.seawall).await?;
        }
        Ok(())
    })
}
