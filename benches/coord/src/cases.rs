//! The cases: who does what, how many at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use seawall_store::Store;

use crate::clients::{Subject, put};
use crate::peers::Peers;
use crate::{Line, cpu};

use Subject::{Control, Embedded, Etcd, EtcdGoWait, OursOnEtcd, Redis, ZooKeeper};

/// Locks that each client has to itself, then one lock for all.
const CYCLES: &[(&str, bool, usize, &[Subject])] = &[
    ("own lock", false, 1, &[Control, Embedded, OursOnEtcd, Etcd, Redis, ZooKeeper]),
    ("own lock", false, 16, &[Control, Embedded, OursOnEtcd, Etcd, Redis, ZooKeeper]),
    ("one lock", true, 2, &[Control, Embedded, OursOnEtcd, EtcdGoWait]),
    ("one lock", true, 16, &[Control, Embedded, OursOnEtcd, EtcdGoWait]),
];
/// How many write at a time.
const WRITERS: usize = 64;
/// How many wait for one lock.
const WAITERS: usize = 10_000;

/// Every case once, each for this long.
pub(crate) async fn round(peers: &Peers, time: Duration, only: &str) -> anyhow::Result<()> {
    for (case, shared, clients, subjects) in CYCLES {
        for subject in subjects.iter().filter(|subject| wanted(only, case, subject.name())) {
            compact(peers).await?;
            let run = fastrand::u32(..);
            let mut all = Vec::with_capacity(*clients);
            for at in 0..*clients {
                let lock = if *shared { format!("one-{run}") } else { format!("own-{run}-{at}") };
                all.push(subject.client(peers, &lock).await?);
            }
            let end = Instant::now() + time;
            let tasks = all.into_iter().map(|mut client| {
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    while Instant::now() < end {
                        let began = Instant::now();
                        client.cycle().await?;
                        times.push(began.elapsed());
                    }
                    anyhow::Ok(times)
                })
            });
            figure(case, subject.name(), time, tasks.collect()).await?;
        }
    }
    let stores: [(&str, Arc<dyn Store>); 2] =
        [(Embedded.name(), peers.embedded.clone()), (Etcd.name(), peers.etcd().await?)];
    for (subject, store) in stores.into_iter().filter(|(subject, _)| wanted(only, "put of 256 B", subject)) {
        compact(peers).await?;
        let end = Instant::now() + time;
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < end {
                    let began = Instant::now();
                    put(&*store, writer, times.len()).await?;
                    times.push(began.elapsed());
                }
                anyhow::Ok(times)
            })
        });
        figure("put of 256 B", subject, time, writers.collect()).await?;
    }
    Ok(())
}

fn wanted(only: &str, case: &str, subject: &str) -> bool {
    format!("{case}: {subject}").contains(only)
}

/// What a run leaves behind is no burden for the next. etcd is several times slower with ten thousand dead keys.
async fn compact(peers: &Peers) -> anyhow::Result<()> {
    let etcd = peers.etcd().await?;
    let revision = etcd.status().await?.revision;
    etcd.compact(revision).await?;
    Ok(())
}

type Times = tokio::task::JoinHandle<anyhow::Result<Vec<Duration>>>;

async fn figure(case: &str, subject: &str, time: Duration, tasks: Vec<Times>) -> anyhow::Result<()> {
    let (clients, began, cpu) = (tasks.len(), Instant::now(), cpu::used());
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    // The last cycle of each ends after the time.
    let took = began.elapsed().max(time).as_secs_f64();
    let cpu_us = (cpu::used() - cpu).as_secs_f64() * 1e6 / times.len() as f64;
    times.sort();
    let micros =
        |part: f64| times.get((times.len() as f64 * part) as usize).map_or(f64::NAN, |t| t.as_secs_f64() * 1e6);
    let per_second = times.len() as f64 / took;
    Line::Figure { case, subject, clients, per_second, p50_us: micros(0.5), p99_us: micros(0.99), cpu_us }.print();
    Ok(())
}

/// What is measured once: a long run, and a long queue.
pub(crate) async fn once(peers: &Peers, cycles: usize, only: &str) -> anyhow::Result<()> {
    if wanted(only, "long run", "") {
        long_run(peers, cycles).await?;
    }
    if wanted(only, "long queue", "") {
        long_queue(peers).await?;
    }
    Ok(())
}

/// Whether the store becomes slower by what it has done: the first tenth beside the last.
async fn long_run(peers: &Peers, cycles: usize) -> anyhow::Result<()> {
    let clients = 16;
    let tenth = cycles.div_ceil(10);
    let mut all = Vec::new();
    for at in 0..clients {
        all.push(Embedded.client(peers, &format!("long-{at}")).await?);
    }
    let mut rates = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let tasks: Vec<_> = all
            .into_iter()
            .map(|mut client| {
                tokio::spawn(async move {
                    for _ in 0..tenth.div_ceil(clients) {
                        client.cycle().await?;
                    }
                    anyhow::Ok(client)
                })
            })
            .collect();
        all = Vec::new();
        for task in tasks {
            all.push(task.await??);
        }
        rates.push((tenth.div_ceil(clients) * clients) as f64 / began.elapsed().as_secs_f64());
    }
    let print = |what: &str, value: f64| Line::Fact { what, value, unit: "cycles/s" }.print();
    print("long run, first tenth", rates[0]);
    print("long run, slowest tenth", rates.iter().copied().fold(f64::INFINITY, f64::min));
    print("long run, last tenth", rates[9]);
    Ok(())
}

/// What a waiter costs, and what a release among ten thousand of them costs.
async fn long_queue(peers: &Peers) -> anyhow::Result<()> {
    use seawall_coord::{LockName, Owner, Session, SessionConfig};
    let config = SessionConfig::new(Owner::try_new("bench")?).ttl(Duration::from_secs(30));
    let session = Session::open(peers.in_process().await?, config).await?;
    let name = LockName::try_new("long-queue")?;
    let first = session.lock(name.clone()).acquire_within(Duration::from_secs(5)).await?;
    let before = resident();
    let (got, mut order) = tokio::sync::mpsc::unbounded_channel();
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..WAITERS {
        let (lock, got) = (session.lock(name.clone()), got.clone());
        waiters.spawn(async move {
            let guard = lock.acquire_within(Duration::from_secs(600)).await?;
            let _ = got.send(());
            guard.release().await?;
            anyhow::Ok(())
        });
    }
    let backend = peers.in_process().await?;
    while backend.show(&name).await?.queue.len() < WAITERS {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let each = (resident() - before) * 1024.0 / WAITERS as f64;
    Line::Fact { what: "long queue, memory of a waiter", value: each, unit: "KiB" }.print();
    let began = Instant::now();
    first.release().await?;
    for _ in 0..1000 {
        order.recv().await;
    }
    let each = began.elapsed().as_secs_f64() * 1e3 / 1000.0;
    Line::Fact { what: "long queue, a hand-over", value: each, unit: "ms" }.print();
    waiters.shutdown().await;
    session.close().await?;
    Ok(())
}

/// Resident memory of this process, in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().split(' ').next().and_then(|kilobytes| kilobytes.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}
