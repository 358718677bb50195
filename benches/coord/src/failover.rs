//! How long a lock is without a holder: after the holder was killed, and after a leader resigned.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use seawall_coord::{ElectionName, LockName, Owner, Remote, Session, SessionConfig};

use crate::Line;
use crate::peers::Peers;

/// How often each is done.
const TIMES: usize = 10;
/// The time to live of the holder that is killed.
const TTL: Duration = Duration::from_secs(1);

async fn session(peers: &Peers, owner: &str) -> anyhow::Result<Session<Remote>> {
    Ok(Session::open(Remote::new([peers.control()]), SessionConfig::new(Owner::try_new(owner)?)).await?)
}

pub(crate) async fn measure(peers: &Peers, seawall: &Path) -> anyhow::Result<()> {
    let killed = collect(async |_| after_kill(peers, seawall).await).await?;
    print("killed holder, next after its time to live", &killed);
    let resigned = collect(async |at| after_resignation(peers, at).await).await?;
    print("resigned leader, next", &resigned);
    Ok(())
}

async fn collect(mut once: impl AsyncFnMut(usize) -> anyhow::Result<f64>) -> anyhow::Result<Vec<f64>> {
    let mut all = Vec::with_capacity(TIMES);
    for at in 0..TIMES {
        all.push(once(at).await?);
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

fn print(what: &str, sorted: &[f64]) {
    Line::Fact { what: &format!("{what}, median"), value: sorted[sorted.len() / 2], unit: "ms" }.print();
    Line::Fact { what: &format!("{what}, longest"), value: sorted[sorted.len() - 1], unit: "ms" }.print();
}

/// From the kill -9 of a holder until the next has the lock, less the time to live.
async fn after_kill(peers: &Peers, seawall: &Path) -> anyhow::Result<f64> {
    let session = session(peers, "next").await?;
    let lock = session.lock(LockName::try_new("failover")?);
    let mut holder = Command::new(seawall)
        .args(["lock", "failover", "--ttl", "1s", "--control", &peers.control().to_string(), "--", "sleep", "600"])
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("{}", seawall.display()))?;
    let began = Instant::now();
    // Taken back at once where the holder is not there yet.
    while lock.try_acquire().await?.is_some() {
        ensure!(began.elapsed() < Duration::from_secs(20), "the holder does not come to hold the lock");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // So that it is killed somewhere between two keep-alives.
    tokio::time::sleep(Duration::from_millis(fastrand::u64(200..800))).await;
    let waiting =
        tokio::spawn(async move { lock.acquire_within(Duration::from_secs(60)).await.map(|_| Instant::now()) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let killed = Instant::now();
    holder.kill()?;
    holder.wait()?;
    let next = waiting.await??;
    session.close().await?;
    Ok((next.duration_since(killed).as_secs_f64() - TTL.as_secs_f64()) * 1e3)
}

/// From the resignation of a leader until the next one leads.
async fn after_resignation(peers: &Peers, at: usize) -> anyhow::Result<f64> {
    let name = ElectionName::try_new(&format!("failover-{at}"))?;
    let (first, second) = (session(peers, "first").await?, session(peers, "second").await?);
    let leads = first.election(name.clone()).campaign(Duration::from_secs(5)).await?;
    let stands = second.election(name);
    let waiting = tokio::spawn(async move {
        let leads = stands.campaign(Duration::from_secs(60)).await?;
        let now = Instant::now();
        leads.resign().await?;
        anyhow::Ok(now)
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let resigned = Instant::now();
    leads.resign().await?;
    let next = waiting.await??;
    first.close().await?;
    second.close().await?;
    Ok(next.duration_since(resigned).as_secs_f64() * 1e3)
}
