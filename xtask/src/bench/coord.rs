//! `cargo xtask bench coord`: locks, hand-overs and durable writes of the embedded store beside etcd, Redis and ZooKeeper, in
//! turns, by one client program. It is in `benches/coord`, whose clients of the peers nothing else needs.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::table::{self, Comparison, Samples};
use crate::{machine, process, suite};

const CONTROL: &str = "seawall, control over HTTP";
const EMBEDDED: &str = "seawall, embedded in process";
const ON_ETCD: &str = "seawall on etcd";
const ETCD: &str = "etcd, transaction and delete";
const GO: &str = "etcd, waiting as its Go client does";
const REDIS: &str = "Redis, AOF always";

/// Ours beside a peer: case, clients, and how many times the peer's rate is aimed at.
const RATES: &[(&str, usize, &str, &str, f64)] = &[
    ("own lock", 1, EMBEDDED, ETCD, 2.0),
    ("own lock", 1, CONTROL, ETCD, 2.0),
    ("own lock", 16, EMBEDDED, ETCD, 3.0),
    ("own lock", 16, CONTROL, ETCD, 3.0),
    ("own lock", 1, EMBEDDED, REDIS, 1.0),
    ("own lock", 1, CONTROL, REDIS, 1.0),
    ("own lock", 16, EMBEDDED, REDIS, 1.0),
    ("own lock", 16, CONTROL, REDIS, 1.0),
    ("one lock", 2, ON_ETCD, GO, 10.0),
    ("put of 256 B", 64, EMBEDDED, ETCD, 2.0),
];
/// What is aimed at: a fact and its most, or a case, clients and subject and the most microseconds of the middle cycle.
const FACTS: &[(&str, f64)] = &[
    ("long queue, memory of a waiter", 1.0),
    ("killed holder, next after its time to live, longest", 300.0),
    ("resigned leader, next, longest", 50.0),
];
const MIDDLE: &[(&str, usize, &str, f64)] = &[("one lock", 2, EMBEDDED, 1000.0), ("one lock", 2, CONTROL, 1000.0)];

/// What the program writes.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Figure { case: String, subject: String, clients: usize, per_second: f64, p50_us: f64, p99_us: f64, cpu_us: f64 },
    Fact { what: String, value: f64, unit: String },
}

/// The rounds of one subject in one case.
#[derive(Default)]
struct Figure {
    per_second: Samples,
    p50_us: Samples,
    p99_us: Samples,
    cpu_us: Samples,
}

type Key = (String, usize, String);

#[derive(Default)]
struct Results {
    /// In the order in which they came.
    order: Vec<Key>,
    figures: BTreeMap<Key, Figure>,
    facts: Vec<(String, Samples, String)>,
}

pub(crate) fn run(rounds: usize, seconds: u64) -> anyhow::Result<()> {
    machine::install(suite::SERVERS)?;
    process::run("cargo", &["build", "--release", "--package", "seawall-cli"])?;
    let manifest = process::root().join("benches/coord/Cargo.toml").display().to_string();
    let target = process::root().join("target/bench-coord");
    let dir = target.display().to_string();
    process::run("cargo", &["build", "--release", "--locked", "--manifest-path", &manifest, "--target-dir", &dir])?;
    let mut program = Command::new(target.join("release/coord-bench"));
    program.arg("--seawall").arg(process::root().join("target/release/seawall"));
    program.args(["--rounds", &rounds.to_string(), "--seconds", &seconds.to_string()]);
    let mut results = Results::default();
    results.read(program)?;
    results.report(rounds, seconds)
}

impl Results {
    /// Runs the program to its end and takes in what it writes.
    fn read(&mut self, mut command: Command) -> anyhow::Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
        for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
            let line = line?;
            match serde_json::from_str(&line).with_context(|| format!("not understood: {line}"))? {
                Line::Figure { case, subject, clients, per_second, p50_us, p99_us, cpu_us } => {
                    let key = (case, clients, subject);
                    if !self.figures.contains_key(&key) {
                        self.order.push(key.clone());
                    }
                    let figure = self.figures.entry(key).or_default();
                    figure.per_second.push(per_second);
                    figure.p50_us.push(p50_us);
                    figure.p99_us.push(p99_us);
                    figure.cpu_us.push(cpu_us);
                }
                Line::Fact { what, value, unit } => {
                    if !self.facts.iter().any(|(known, ..)| *known == what) {
                        self.facts.push((what.clone(), Samples::default(), unit));
                    }
                    let fact = self.facts.iter_mut().find(|(known, ..)| *known == what);
                    fact.context("it was just added")?.1.push(value);
                }
            }
        }
        let status = child.wait()?;
        ensure!(status.success(), "{command:?} failed: {status}");
        Ok(())
    }

    fn figure(&self, case: &str, clients: usize, subject: &str) -> anyhow::Result<&Figure> {
        let key = (case.to_owned(), clients, subject.to_owned());
        self.figures.get(&key).with_context(|| format!("`{case}`, {clients}, `{subject}` was not measured"))
    }

    fn fact(&self, what: &str) -> anyhow::Result<f64> {
        let fact = self.facts.iter().find(|(known, ..)| known == what);
        Ok(fact.with_context(|| format!("`{what}` was not measured"))?.1.median())
    }

    fn report(&self, rounds: usize, seconds: u64) -> anyhow::Result<()> {
        println!(
            "\nCycles of acquire and release, or writes, all durable; {rounds} rounds of {seconds} s in turns; median of the \
             rounds (minimum-maximum). CPU is that of client and server together, for one cycle."
        );
        let row = |key: &Key| {
            let figure = &self.figures[key];
            vec![
                key.0.clone(),
                key.1.to_string(),
                key.2.clone(),
                figure.per_second.cell(0),
                figure.p50_us.cell(0),
                figure.p99_us.cell(0),
                figure.cpu_us.cell(0),
            ]
        };
        let mut keys = self.order.clone();
        keys.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let heads = ["case", "clients", "subject", "a second", "p50, us", "p99, us", "CPU, us"];
        table::print(&heads, &keys.iter().map(row).collect::<Vec<_>>());
        let row = |(what, samples, unit): &(String, Samples, String)| vec![what.clone(), samples.cell(1), unit.clone()];
        table::print(&["measured", "median", "unit"], &self.facts.iter().map(row).collect::<Vec<_>>());
        let comparisons = self.print_aims()?;
        table::write("coord", &comparisons)
    }

    /// What was aimed at beside what came out; a missed aim is printed as missed.
    fn print_aims(&self) -> anyhow::Result<Vec<Comparison>> {
        let met = |met: bool| if met { "yes" } else { "NO" }.to_owned();
        let mut rows = Vec::new();
        let mut all = Vec::new();
        for (case, clients, ours, peer, aim) in RATES {
            let rate = |subject| Ok::<_, anyhow::Error>(self.figure(case, *clients, subject)?.per_second.median());
            let (our_rate, peer_rate) = (rate(ours)?, rate(peer)?);
            let ratio = our_rate / peer_rate;
            let what = format!("{case}, {clients}: {ours} / {peer}");
            rows.push(vec![what, format!("at least {aim:.1}"), format!("{ratio:.2}"), met(ratio >= *aim)]);
            let case = format!("{case}, {clients} clients: {ours}");
            let peer_name = (*peer).to_owned();
            all.push(Comparison { case, ours: our_rate, peer: peer_rate, peer_name, unit: "cycles/s", ratio });
        }
        let p99 = |subject| Ok::<_, anyhow::Error>(self.figure("put of 256 B", 64, subject)?.p99_us.median());
        let (ours, peer) = (p99(EMBEDDED)?, p99(ETCD)?);
        let what = "put of 256 B, 64: p99 beside etcd's".to_owned();
        rows.push(vec![what, "below it".into(), format!("{ours:.0} / {peer:.0} us"), met(ours < peer)]);
        for (case, clients, subject, aim) in MIDDLE {
            let p50 = self.figure(case, *clients, subject)?.p50_us.median();
            let what = format!("{case}, {clients}: {subject}, p50 of a cycle");
            rows.push(vec![what, format!("at most {aim:.0} us"), format!("{p50:.0} us"), met(p50 <= *aim)]);
        }
        for (what, aim) in FACTS {
            let value = self.fact(what)?;
            rows.push(vec![(*what).into(), format!("at most {aim:.0}"), format!("{value:.1}"), met(value <= *aim)]);
        }
        let ratio = self.fact("long run, last tenth")? / self.fact("long run, first tenth")?;
        rows.push(vec![
            "long run: last tenth / first".into(),
            "at least 0.95".into(),
            format!("{ratio:.2}"),
            met(ratio >= 0.95),
        ]);
        table::print(&["aim", "", "here", "met"], &rows);
        Ok(all)
    }
}
