//! Locks and elections in the servers of other projects, with what may happen to those.

#![cfg(any(feature = "postgres", feature = "redis", feature = "zookeeper"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "postgres")]
mod advisory;
#[cfg(all(feature = "postgres", feature = "zookeeper"))]
mod any;
#[cfg_attr(
    not(any(feature = "postgres", feature = "zookeeper")),
    expect(dead_code, reason = "Redlock has a few of them")
)]
mod cases;
#[cfg(all(feature = "postgres", feature = "zookeeper"))]
mod faults;
#[cfg(feature = "postgres")]
mod postgres;
mod priorities;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redlock;
#[cfg(feature = "redis")]
mod unfenced;
#[cfg(feature = "zookeeper")]
mod zookeeper;

use std::time::Duration;

use seawall_coord::{ElectionName, LockName, Owner, SessionConfig};
use tokio::time::{Instant, sleep};

/// Longer than anything takes on a busy machine.
const SOON: Duration = Duration::from_secs(40);

fn name(text: &str) -> LockName {
    LockName::try_new(text).unwrap()
}

fn election(text: &str) -> ElectionName {
    ElectionName::try_new(text).unwrap()
}

fn config(owner: &str, ttl: u64) -> SessionConfig {
    SessionConfig::new(Owner::try_new(owner).unwrap()).ttl(Duration::from_millis(ttl))
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
