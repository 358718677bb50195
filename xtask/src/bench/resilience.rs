//! `cargo xtask bench resilience`: the policies beside tower's layers, tower-resilience, recloser and failsafe, in turns
//! in one process. The programs are in `benches/resilience`, whose many dependencies nothing else needs.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::table::{self, Comparison, Samples};
use crate::process;

/// What everything else is compared with.
const BARE: &str = "bare service_fn";
/// Ours, and the peers that do the same.
const PEERS: &[(&str, &[&str])] = &[
    (
        "breaker layer, 100 calls",
        &["tower-resilience breaker, 100 calls", "recloser, async", "failsafe, async, consecutive"],
    ),
    ("breaker layer, 10 s", &["tower-resilience breaker, time, 50,000 calls in it"]),
    ("breaker layer, 100 calls, 1% fail", &["tower-resilience breaker, 1% fail"]),
    ("breaker layer, open", &["tower-resilience breaker, open"]),
    ("Breaker::call_blocking, 100 calls", &["recloser, sync", "failsafe, sync, consecutive", "failsafe, sync, rate"]),
    ("Breaker::call_blocking, open", &["recloser, sync, open", "failsafe, sync, open"]),
    ("bulkhead layer", &["tower ConcurrencyLimit", "tower-resilience bulkhead"]),
    ("timeout layer, one attempt", &["tower Timeout", "tower-resilience time limiter"]),
    ("retry layer", &["tower Retry", "tower-resilience retry"]),
    ("rate limit layer, gcra", &["tower RateLimit", "tower-resilience rate limiter"]),
    (
        "layers: deadline, retry, breaker, bulkhead",
        &["tower Timeout, Retry, ConcurrencyLimit", "tower-resilience time limiter, retry, breaker, bulkhead"],
    ),
    (
        "Guard::call: deadline, retry, breaker, bulkhead",
        &["tower Timeout, Retry, ConcurrencyLimit", "tower-resilience time limiter, retry, breaker, bulkhead"],
    ),
];
/// What is aimed at: threads, and nanoseconds of a call. The aims come from another machine; see `docs/performance.md`.
const AIMS: &[(&str, u32, f64)] = &[
    ("breaker layer, 100 calls", 1, 8.0),
    ("breaker layer, 100 calls", 2, 45.0),
    ("breaker layer, 10 s", 1, 12.0),
    ("breaker layer, 10 s", 2, 20.0),
    ("breaker layer, 10 s, slow calls", 1, 17.0),
    ("breaker layer, 100 calls, scraped", 1, 10.0),
    ("breaker layer, open", 1, 12.0),
    ("layers: deadline, retry, breaker, bulkhead", 1, 90.0),
    ("Guard::call: deadline, retry, breaker, bulkhead", 1, 90.0),
];

/// What the programs write.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Figure { subject: String, threads: u32, ns: f64, samples: usize, retaken: usize, disturbed: usize },
    Allocations { subject: String, count: f64, bytes: f64 },
    Size { of: String, bytes: u64 },
}

/// All of it.
#[derive(Default)]
struct Results {
    /// In the order in which they came.
    subjects: Vec<String>,
    figures: BTreeMap<(String, u32), Samples>,
    allocations: BTreeMap<String, (f64, f64)>,
    sizes: Vec<(String, u64)>,
    samples: usize,
    retaken: usize,
    disturbed: usize,
}

pub(crate) fn run(rounds: usize) -> anyhow::Result<()> {
    let manifest = process::root().join("benches/resilience/Cargo.toml");
    let target = process::root().join("target/bench-resilience");
    let (manifest, dir) = (manifest.display().to_string(), target.display().to_string());
    let words = ["build", "--release", "--locked", "--manifest-path", &manifest, "--target-dir", &dir];
    process::run("cargo", &words)?;
    let mut results = Results::default();
    results.read(Command::new(target.join("release/allocations")))?;
    let mut timing = Command::new(target.join("release/resilience-bench"));
    timing.arg(rounds.to_string());
    results.read(timing)?;
    results.report(rounds)
}

impl Results {
    /// Runs a program to its end and takes in what it writes.
    fn read(&mut self, mut command: Command) -> anyhow::Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
        for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
            let line = line?;
            match serde_json::from_str(&line).with_context(|| format!("not understood: {line}"))? {
                Line::Figure { subject, threads, ns, samples, retaken, disturbed } => {
                    self.figures.entry((subject, threads)).or_default().push(ns);
                    self.samples += samples;
                    self.retaken += retaken;
                    self.disturbed += disturbed;
                }
                Line::Allocations { subject, count, bytes } => {
                    self.subjects.push(subject.clone());
                    self.allocations.insert(subject, (count, bytes));
                }
                Line::Size { of, bytes } => self.sizes.push((of, bytes)),
            }
        }
        let status = child.wait()?;
        ensure!(status.success(), "{command:?} failed: {status}");
        Ok(())
    }

    fn figure(&self, subject: &str, threads: u32) -> Option<&Samples> {
        self.figures.get(&(subject.to_owned(), threads))
    }

    fn median(&self, subject: &str, threads: u32) -> anyhow::Result<f64> {
        Ok(self.figure(subject, threads).with_context(|| format!("`{subject}` was not measured"))?.median())
    }

    fn report(&self, rounds: usize) -> anyhow::Result<()> {
        println!(
            "\nNanoseconds that a thread needs for a call that is ready at once; {rounds} rounds of 60 samples in turns; \
             median of the rounds (minimum-maximum). Two threads call the same instance."
        );
        self.print_all();
        let comparisons = self.comparisons()?;
        let heads = ["ours", "threads", "beside", "ours / it"];
        let row = |(threads, c): &(u32, Comparison)| {
            vec![c.case.clone(), threads.to_string(), c.peer_name.clone(), format!("{:.2}", c.ratio)]
        };
        let rows: Vec<_> = comparisons.iter().filter(|(_, c)| c.peer_name != BARE).map(row).collect();
        table::print(&heads, &rows);
        self.print_aims()?;
        let rows: Vec<_> = self.sizes.iter().map(|(of, bytes)| vec![of.clone(), bytes.to_string()]).collect();
        table::print(&["size", "bytes"], &rows);
        println!(
            "\n{} samples; {} more were taken again because their thread had lost its core, {} kept all the same.",
            self.samples, self.retaken, self.disturbed
        );
        table::write("resilience", &comparisons.into_iter().map(|(_, comparison)| comparison).collect::<Vec<_>>())
    }

    fn print_all(&self) {
        let cell = |subject: &str, threads| self.figure(subject, threads).map_or("-".into(), |f| f.cell(1));
        let bare = |subject: &str, threads| {
            let ratio = self.figure(subject, threads)?.median() / self.figure(BARE, threads)?.median();
            Some(format!("{ratio:.1}"))
        };
        let row = |subject: &String| {
            let (count, bytes) = self.allocations[subject];
            let ratio = |threads| bare(subject, threads).unwrap_or_else(|| "-".into());
            let heap = if count == 0.0 { "0".into() } else { format!("{count:.0} ({bytes:.0} B)") };
            vec![subject.clone(), cell(subject, 1), ratio(1), cell(subject, 2), ratio(2), heap]
        };
        let heads = ["subject", "1 thread, ns", "/ bare", "2 threads, ns", "/ bare", "allocations"];
        table::print(&heads, &self.subjects.iter().map(row).collect::<Vec<_>>());
    }

    /// Each of ours beside the bare service and its peers, on one thread and, where both can be shared, on two.
    fn comparisons(&self) -> anyhow::Result<Vec<(u32, Comparison)>> {
        let mut all = Vec::new();
        for (case, peers) in PEERS {
            for peer in [BARE].iter().chain(*peers) {
                for threads in [1, 2] {
                    if threads == 2 && (self.figure(case, 2).is_none() || self.figure(peer, 2).is_none()) {
                        continue;
                    }
                    let (ours, peer_ns) = (self.median(case, threads)?, self.median(peer, threads)?);
                    let unit = if threads == 1 { "ns/call, 1 thread" } else { "ns/call, 2 threads" };
                    let (case, peer_name) = ((*case).to_owned(), (*peer).to_owned());
                    let comparison = Comparison { case, ours, peer: peer_ns, peer_name, unit, ratio: ours / peer_ns };
                    all.push((threads, comparison));
                }
            }
        }
        Ok(all)
    }

    fn print_aims(&self) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for (subject, threads, aim) in AIMS {
            let ns = self.median(subject, *threads)?;
            let step = self.median("fetch_add", *threads)?;
            let met = if ns <= *aim { "yes" } else { "no" };
            let [ns, aim, step] = [ns, *aim, step].map(|value| format!("{value:.1}"));
            rows.push(vec![(*subject).to_owned(), threads.to_string(), aim, ns, met.to_owned(), step]);
        }
        table::print(&["aim", "threads", "at most, ns", "here, ns", "met", "one fetch_add here, ns"], &rows);
        Ok(())
    }
}
